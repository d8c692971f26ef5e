//! What was recorded beside what is.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Replay, essence};

impl Replay {
    /// An answer; what it tells of versions and names is kept.
    pub fn compare(&mut self, index: usize, step: &Value, body: &Value) {
        let meta = &body["metadata"];
        for (field, here) in [
            ("version", &meta["resourceVersion"]),
            ("uid", &meta["uid"]),
            ("continue", &meta["continue"]),
            ("called", &meta["name"]),
            ("ip", &body["status"]["podIP"]),
        ] {
            if let (Some(recorded), Some(here)) = (step[field].as_str(), here.as_str()) {
                let known = if field == "version" { &mut self.versions } else { &mut self.words };
                known.insert(recorded.to_owned(), here.to_owned());
            }
        }
        let mut expect = step["expect"].clone();
        for (from, to) in &self.words {
            expect = serde_json::from_str(&expect.to_string().replace(from, to)).unwrap();
        }
        let Some((how, wanted)) = expect.as_object().and_then(|it| it.iter().next()) else { return };
        let wrong = match how.as_str() {
            "exact" => !within(wanted, body),
            "subset" => !within(wanted, body),
            "contains" => {
                let text = body["text"].as_str().unwrap_or_default();
                !wanted.as_array().unwrap().iter().all(|it| text.contains(it.as_str().unwrap()))
            }
            // Whose which fields are, whenever they became so.
            "managed" => {
                let mut managed = meta["managedFields"].clone();
                for entry in managed.as_array_mut().into_iter().flatten() {
                    entry.as_object_mut().unwrap().remove("time");
                }
                managed != *wanted
            }
            // How far it is at a moment, its watch tells.
            "essence" => {
                let (mut wanted, mut is) = (wanted.clone(), essence::of(body));
                if matches!(wanted["kind"].as_str(), Some("Pod" | "Deployment")) {
                    for field in ["phase", "reason", "node", "ip", "conditions", "containers", "status"] {
                        for it in [&mut wanted, &mut is] {
                            it.as_object_mut().unwrap().remove(field);
                        }
                    }
                }
                !alike(&wanted, &is)
            }
            "text" | "ends" => {
                // Stamps are of their time.
                let plain = |text: &str| -> Vec<String> {
                    text.lines().map(|it| it.split_once("Z ").map_or(it, |it| it.1).to_owned()).collect()
                };
                let (wanted, is) = (wanted.as_str().unwrap(), body["text"].as_str().unwrap_or_default());
                match how.as_str() {
                    "ends" => !plain(is).ends_with(&plain(wanted)),
                    _ => !wanted.starts_with("apiVersion") && plain(wanted) != plain(is),
                }
            }
            "list" => {
                let names: Vec<&Value> =
                    body["items"].as_array().unwrap().iter().map(|it| &it["metadata"]["name"]).collect();
                let items = wanted.get("items").is_some_and(|it| *it != json!(names));
                body["kind"] != wanted["kind"]
                    || items
                    || meta["continue"].is_string() != wanted["continue"]
                    || meta["remainingItemCount"].is_u64() != wanted["remaining"].is_u64()
            }
            "resources" => {
                let is: BTreeMap<&str, Value> = body["resources"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|it| (it["name"].as_str().unwrap(), json!([it["kind"], it["namespaced"]])))
                    .collect();
                wanted.as_object().unwrap().iter().any(|(name, it)| is.get(name.as_str()) != Some(it))
            }
            "groups" => {
                let is: Vec<&Value> =
                    body["groups"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
                wanted.as_array().unwrap().iter().any(|it| !is.contains(&it))
            }
            "table" => body["columnDefinitions"][0]["name"] != wanted["columns"][0],
            other => panic!("nothing compares {other}"),
        };
        if wrong {
            let is = if how == "essence" { essence::of(body) } else { body.clone() };
            self.fail(index, step, &format!("\n   wanted {wanted}\n   is     {is}"));
        }
    }
}

/// What is wrong with the events of a watch; nothing once all that is wanted came.
pub fn events(step: &Value, events: &[Value], pace: f64) -> Vec<String> {
    let wanted = by_object(
        step["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| (it[0].as_str().unwrap(), it[1].clone(), it[2].clone())),
    );
    let is = by_object(events.iter().map(|it| {
        let object = &it["object"];
        let kind = it["type"].as_str().unwrap();
        let shown = match kind {
            "ERROR" => json!({"code": object["code"], "reason": object["reason"],
                "message": plain(object["message"].as_str().unwrap_or_default())}),
            "BOOKMARK" => json!({"kind": object["kind"],
                "initial": object["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"}),
            _ => essence::of(object),
        };
        let meta = &object["metadata"];
        let name = match object["kind"].as_str() {
            Some("Event") => Value::Null,
            // The rest of it is made up.
            _ => meta.get("generateName").unwrap_or(&meta["name"]).clone(),
        };
        (kind, name, shown)
    }));
    let mut wrong = Vec::new();
    for (name, wanted) in &wanted {
        let is = is.get(name).cloned().unwrap_or_default();
        // Of events only what was told first counts, and bookmarks come when they do.
        let told = wanted.iter().any(|it| it.1["kind"] == "Event") || name.starts_with("BOOKMARK");
        let loose = step["loose"]
            .as_array()
            .is_some_and(|it| it.iter().any(|it| it.as_str() == Some(name.trim_matches('"'))));
        let fine = if told || loose {
            let mut left = is.iter();
            wanted.iter().all(|it| left.any(|is| is.0 == it.0 && alike(&it.1, &is.1)))
        } else {
            // The recorder went before the watch did.
            wanted.len() <= is.len()
                && wanted.iter().zip(&is).all(|(it, is)| it.0 == is.0 && alike(&it.1, &is.1))
        };
        if !fine {
            let show = |it: &[(String, Value)]| {
                it.iter().map(|it| format!("      {} {}", it.0, it.1)).collect::<Vec<_>>().join("\n")
            };
            wrong.push(format!("{name}\n   wanted\n{}\n   is\n{}", show(wanted), show(&is)));
        }
    }
    if step["marks"].is_array() {
        wrong.extend(marks(step, events, pace));
    }
    wrong
}

/// Bookmarks: what they show, and that each is of a newer version.
fn marks(step: &Value, events: &[Value], pace: f64) -> Option<String> {
    let marks: Vec<&Value> = events.iter().filter(|it| it["type"] == "BOOKMARK").collect();
    let version = |it: &Value| it["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>();
    let newer = marks.windows(2).all(|it| version(it[0]).unwrap() < version(it[1]).unwrap());
    let bare = |it: &Value| {
        let mut object = it["object"].clone();
        object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        object
    };
    let wanted = step["marks"].as_array().unwrap();
    // Each in its minute, and not before.
    let due = |after: &Value, is: &Value| {
        let (due, is) = (after.as_f64().unwrap() / pace, is["after"].as_f64().unwrap());
        (due * 0.9..due + 1.0).contains(&is)
    };
    let fine = marks.len() >= wanted.len()
        && wanted.iter().zip(&marks).all(|(it, is)| it[1] == bare(is) && due(&it[0], is));
    (!fine || !newer).then(|| format!("bookmarks {marks:?}"))
}

/// A text whose numbers are of their time.
pub fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if plain.ends_with('#') => {}
            '0'..='9' => plain.push('#'),
            other => plain.push(other),
        }
    }
    plain
}

type Seen = Vec<(String, Value)>;

/// What is told of each object, without repetitions.
fn by_object<'a>(events: impl Iterator<Item = (&'a str, Value, Value)>) -> BTreeMap<String, Seen> {
    let mut all: BTreeMap<String, Seen> = BTreeMap::new();
    for (kind, name, shown) in events {
        let event = shown["kind"] == "Event" && kind != "BOOKMARK";
        let key = match kind {
            "BOOKMARK" => "BOOKMARK".to_owned(),
            _ if event => format!("events of {}", shown["about"]),
            _ => name.to_string(),
        };
        let seen = all.entry(key).or_default();
        if event {
            let known = seen.iter().any(|it| it.1 == shown);
            if kind == "ADDED" && !known {
                seen.push((kind.to_owned(), shown));
            }
        } else if seen.last().is_none_or(|it| it.1 != shown || it.0 != kind) {
            seen.push((kind.to_owned(), shown));
        }
    }
    all
}

/// Whether all of `wanted` is in `is`.
pub fn within(wanted: &Value, is: &Value) -> bool {
    match (wanted, is) {
        (Value::Object(wanted), Value::Object(is)) => {
            wanted.iter().all(|(key, value)| is.get(key).is_some_and(|is| within(value, is)))
        }
        // Causes come in any order.
        (Value::Array(wanted), Value::Array(is)) if wanted.iter().any(|it| it["field"].is_string()) => {
            wanted.len() == is.len() && wanted.iter().all(|a| is.iter().any(|b| within(a, b)))
        }
        (Value::Array(wanted), Value::Array(is)) => {
            wanted.len() == is.len() && wanted.iter().zip(is).all(|(a, b)| within(a, b))
        }
        _ => wanted == is,
    }
}

/// Equal; of events the message only where it was recorded.
fn alike(wanted: &Value, is: &Value) -> bool {
    if wanted["kind"] == "Event" { within(wanted, is) } else { wanted == is }
}
