//! The API's own description: whole, true, and the same as yesterday unless
//! somebody meant to change it.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Client, House, Kind, key};

on_each_database!(the_document_is_sound, the_registry_is_as_it_was);

/// Calls back with every value in a document and where it stands.
fn walk(value: &Value, place: &str, each: &mut impl FnMut(&str, &Value)) {
    each(place, value);
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                walk(value, &format!("{place}/{}", name.replace('~', "~0").replace('/', "~1")), each);
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                walk(value, &format!("{place}/{i}"), each);
            }
        }
        _ => {}
    }
}

fn the_document_is_sound(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let answer = server.client().get("/openapi.json").expect(200);
    assert_eq!(answer.header("content-type"), "application/json");
    let document = answer.json();
    assert!(key(&document, "openapi").starts_with("3.1."), "{}", document["openapi"]);
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    // What is referred to is there.
    let mut references = 0;
    walk(&document, "", &mut |place, value| {
        let Some(target) = value.get("$ref").and_then(Value::as_str) else { return };
        references += 1;
        let pointer = target.strip_prefix('#').unwrap_or_else(|| panic!("{place} leads to {target}"));
        assert!(document.pointer(pointer).is_some(), "{place} leads to {target}, which is not there");
    });
    assert!(references > 50);
    let mut ids = HashSet::new();
    let schemes: HashSet<_> = document["components"]["securitySchemes"].as_object().unwrap().keys().collect();
    let tags: HashSet<_> = document["tags"].as_array().unwrap().iter().map(|it| key(it, "name")).collect();
    assert!(tags.contains("spaces"));
    for (path, item) in document["paths"].as_object().unwrap() {
        assert!(path.starts_with('/') && !path.contains("//"), "{path}");
        let named: HashSet<_> =
            path.split('{').skip(1).map(|it| it.split('}').next().unwrap().to_owned()).collect();
        let shared = item["parameters"].as_array().cloned().unwrap_or_default();
        let operations = item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters");
        let mut any = false;
        for (method, operation) in operations {
            any = true;
            let place = format!("{method} {path}");
            assert!(["get", "post", "put", "patch", "delete", "head"].contains(&method.as_str()), "{place}");
            let id = key(operation, "operationId");
            assert!(ids.insert(id.clone()), "{place}: another operation is {id} too");
            let mut parameters = shared.clone();
            parameters.extend(operation["parameters"].as_array().cloned().unwrap_or_default());
            let mut seen = HashSet::new();
            let mut declared = HashSet::new();
            for parameter in &parameters {
                let (name, within) = (key(parameter, "name"), key(parameter, "in"));
                assert!(seen.insert((name.clone(), within.clone())), "{place}: {name} stands there twice");
                assert!(parameter["schema"].is_object(), "{place}: {name} has no schema");
                assert!(
                    ["path", "query", "header"].contains(&within.as_str()),
                    "{place}: {name} in {within}"
                );
                if within == "path" {
                    assert_eq!(parameter["required"], true, "{place}: {name}");
                    declared.insert(name);
                }
            }
            assert_eq!(declared, named, "{place}: its path's parameters");
            let responses = operation["responses"].as_object().unwrap();
            assert!(!responses.is_empty() && responses.keys().all(|it| it.parse::<u16>().is_ok()), "{place}");
            for (status, response) in responses {
                assert!(
                    response["$ref"].is_string() || response["description"].is_string(),
                    "{place}: {status}"
                );
            }
            if method == "get" {
                assert!(operation.get("requestBody").is_none(), "{place}");
            }
            for scheme in operation["security"].as_array().into_iter().flatten() {
                assert!(scheme.as_object().unwrap().keys().all(|it| schemes.contains(it)), "{place}");
            }
        }
        assert!(any, "{path} has no operation");
    }
    // It tells of all that there is, and nothing that there is not.
    let admin = server.admin();
    let paths = &document["paths"];
    for resource in admin.get("/resources").of("resources").as_array().unwrap() {
        let plural = key(resource, "plural");
        assert!(paths[format!("/{plural}")]["get"].is_object(), "{plural}");
        admin.get(&format!("/{plural}")).expect(200);
    }
    for action in ["start", "stop", "restart"] {
        assert!(paths[format!("/spaces/{{id}}/{action}")]["post"].is_object(), "{action}");
    }
    let create = &document["components"]["schemas"]["SpaceCreate"];
    assert_eq!(create["additionalProperties"], false);
    let mut required: Vec<_> =
        create["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    required.sort_unstable();
    assert_eq!(required, ["name", "spec_id", "template_id"]);
    assert!(!answer.text().contains("password_hash"), "what nobody sees is told nobody");
}

fn words(value: &Value, names: &[&str]) -> String {
    let mut text = String::new();
    for name in names {
        let said = match &value[*name] {
            Value::String(word) => word.clone(),
            other => other.to_string(),
        };
        write!(text, " {name}={said}").unwrap();
    }
    text
}

/// Every type with its fields, their ranks, and its actions, a line each.
fn table(admin: &Client) -> String {
    let mut text = String::new();
    for summary in admin.get("/resources").expect(200).of("resources").as_array().unwrap() {
        let plural = key(summary, "plural");
        let full = admin.get(&format!("/resources/{plural}")).expect(200).of("resource");
        let verbs = words(&full["verbs"], &["list", "get", "create", "update", "delete"]);
        writeln!(text, "{plural} ({}) scope={}{verbs}", key(&full, "keyword"), key(&full, "scope")).unwrap();
        for field in full["fields"].as_array().unwrap() {
            let ranks = words(field, &["list", "get", "create", "update"]);
            write!(text, "  {:<18}{ranks}", key(field, "name")).unwrap();
            for flag in ["required", "unique", "indexed", "searched", "nullable"] {
                if field[flag] == true {
                    write!(text, " {flag}").unwrap();
                }
            }
            if field["stored"] == false {
                text.push_str(" input-only");
            }
            for name in ["references", "default", "max_length"] {
                if !field[name].is_null() {
                    text.push_str(&words(field, &[name]));
                }
            }
            if field["choices"].as_array().is_some_and(|it| !it.is_empty()) {
                text.push_str(&words(field, &["choices"]));
            }
            text.push('\n');
        }
        for extra in full["extra"].as_array().unwrap() {
            writeln!(text, "  + {}", key(extra, "name")).unwrap();
        }
        for action in full["actions"].as_array().unwrap() {
            writeln!(
                text,
                "  {} {}{}",
                key(action, "kind"),
                key(action, "name"),
                words(action, &["access", "when"])
            )
            .unwrap();
        }
        text.push('\n');
    }
    text
}

fn the_registry_is_as_it_was(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let now = table(&server.admin());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots/registry.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some_and(|it| it == "1") {
        std::fs::write(&file, &now).unwrap();
    }
    let before = std::fs::read_to_string(&file).unwrap_or_default();
    let (was, is): (HashSet<_>, HashSet<_>) = (before.lines().collect(), now.lines().collect());
    let mut news: Vec<_> = was.difference(&is).map(|it| format!("- {it}")).collect();
    news.extend(is.difference(&was).map(|it| format!("+ {it}")));
    let hint = "if that was meant, run the test with UPDATE_SNAPSHOTS=1 and look at the difference";
    assert!(before == now, "the registry has changed; {hint}:\n{}", news.join("\n"));
}
