//! What the API's document says of writes: dry runs, idempotency keys,
//! batches, apply and copy. The same for all types.

use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::openapi::{list_parameters, operation, parameter, reference};
use crate::auth::Access;
use crate::dispatch::{MOST_CREATED, MOST_ROWS, narrows};
use crate::model::{ActionKind, Meta, Run};
use crate::registry::Type;

fn header(description: &str) -> Value {
    json!({"description": description, "schema": {"type": "string"}})
}

/// Adds parameters to an operation, and the headers of its answers.
fn parameters(it: &mut Value, method: &str, undone: bool) {
    let mut more = it["parameters"].as_array().cloned().unwrap_or_default();
    if undone {
        let doc = "Do it all, hooks and rights included, then undo it: 200 with what it would have given.";
        more.push(parameter("dry_run", "query", false, json!({"type": "boolean"}), doc));
    }
    if method == "post" {
        let doc =
            "1 to 255 printable characters: the same request under the same key is done once, for 24 hours.";
        let schema = json!({"type": "string", "minLength": 1, "maxLength": 255});
        more.push(parameter("Idempotency-Key", "header", false, schema, doc));
    }
    it["parameters"] = more.into();
    let problem = json!({"$ref": "#/components/responses/Problem"});
    let Some(responses) = it["responses"].as_object_mut() else { return };
    for status in ["200", "201", "202", "207"] {
        let Some(answer) = responses.get_mut(status) else { continue };
        let mut headers = Map::new();
        if undone {
            headers.insert("X-Dry-Run".into(), header("`true` for a dry run."));
        }
        if method == "post" {
            headers.insert("Idempotency-Replayed".into(), header("`true` where it was done before."));
        }
        if matches!(status, "201" | "202") {
            headers.insert("Location".into(), header("Where the resource, or the task, is."));
        }
        answer["headers"] = headers.into();
    }
    if method == "post" {
        responses.insert("422".into(), problem);
    }
    // A dry run of what answers 201 or 202 is 200 with the same body.
    if undone
        && !responses.contains_key("200")
        && let Some(made) = responses.get("201").or_else(|| responses.get("202")).cloned()
    {
        responses.insert("200".into(), made);
    }
}

/// `207`: what each of many was told.
fn many(meta: &Meta, name: &str) -> Value {
    let (keyword, plural) = (meta.keyword(), meta.plural());
    let one = json!({"type": "object", "required": ["status", "body"], "properties": {
        "status": {"type": "integer", "description": "What its own request would have been answered."},
        "id": {"type": "string"},
        "body": {"anyOf": [
            {"type": "object", "required": [keyword], "properties": {keyword: reference(name), "task_id": {"type": "string"}}},
            {"$ref": "#/components/schemas/Problem"},
        ]},
    }});
    json!({"description": "One answer each.", "content": {"application/json": {"schema": {
        "type": "object", "required": [plural], "properties": {plural: {"type": "array", "items": one}},
    }}}})
}

fn bodies(meta: &Meta, name: &str, count: bool) -> Vec<Value> {
    let (keyword, plural) = (meta.keyword(), meta.plural());
    let body = reference(&format!("{name}Create"));
    let list = json!({"type": "array", "items": body, "minItems": 1, "maxItems": MOST_CREATED});
    let mut all = vec![json!({
        "type": "object", "required": [plural], "properties": {plural: list}, "additionalProperties": false,
    })];
    if count {
        let number = json!({"type": "integer", "minimum": 1, "maximum": MOST_CREATED,
            "description": "How many; `#` in the name is the number, else `-1`, `-2` is added."});
        all.push(json!({
            "type": "object", "required": [keyword, "count"], "additionalProperties": false,
            "properties": {keyword: body, "count": number},
        }));
    }
    all
}

/// Completes the paths of a type.
pub(super) fn add(of: &Type, name: &str, generator: &mut SchemaGenerator, paths: &mut Map<String, Value>) {
    let meta = of.handler.meta();
    let (keyword, plural, verbs) = (meta.keyword(), meta.plural(), meta.source.verbs);
    let (class, item) = (format!("/{plural}"), format!("/{plural}/{{id}}"));
    // Those of one row.
    for (path, methods) in [(&class, &["post"][..]), (&item, &["put", "patch", "delete"])] {
        for method in methods {
            if let Some(it) = paths.get_mut(path).and_then(|path| path.get_mut(*method)) {
                parameters(it, method, true);
            }
        }
    }
    for action in of.actions.values() {
        let path = match action.kind {
            ActionKind::Item => format!("{item}/{}", action.name),
            ActionKind::Class => format!("{class}/{}", action.name),
            ActionKind::Property | ActionKind::Detail => continue,
        };
        if let Some(it) = paths.get_mut(&path).and_then(|path| path.get_mut("post")) {
            let outside = matches!(action.run, Run::ItemAsync(_) | Run::ClassAsync(_));
            parameters(it, "post", !outside);
        }
    }
    if let Some(patch) = paths.get_mut(&item).and_then(|path| path.get_mut("patch")) {
        let content = &mut patch["requestBody"]["content"];
        content["application/merge-patch+json"] = content["application/json"].clone();
    }
    // Those of many.
    let which = narrowing(meta, generator);
    let mut batch = |path: &str, method: &str, id: &str, summary: String, body: Option<Value>| {
        let mut it = operation(id, plural, &summary, ("207", many(meta, name)));
        it["parameters"] = which.clone().into();
        if let Some(body) = body {
            it["requestBody"] = body;
        }
        parameters(&mut it, method, true);
        let entry = paths.entry(path.to_owned()).or_insert_with(|| json!({}));
        if entry.get(method).is_none() {
            entry[method] = it;
        }
    };
    if verbs.update != Access::Never {
        for method in ["put", "patch"] {
            let id = format!("{plural}.{}_many", if method == "put" { "update" } else { "patch" });
            let kind = if method == "put" { "application/json" } else { "application/merge-patch+json" };
            let body =
                json!({"required": true, "content": {kind: {"schema": reference(&format!("{name}Update"))}}});
            batch(&class, method, &id, format!("Change many {plural}, each by itself"), Some(body));
        }
    }
    if verbs.delete != Access::Never {
        let id = format!("{plural}.delete_many");
        batch(&class, "delete", &id, format!("Delete many {plural}, each by itself"), None);
    }
    for action in of.actions.values() {
        if action.kind == ActionKind::Item && matches!(action.run, Run::Item(_) | Run::AnyItem(_)) {
            let input = serde_json::to_value((action.input)(generator)).unwrap_or_default();
            let body = json!({"required": false, "content": {"application/json": {"schema": input}}});
            let (path, id) =
                (format!("{class}/{}", action.name), format!("{plural}.perform.many.{}", action.name));
            batch(&path, "post", &id, format!("For many: {}", action.doc), Some(body));
        }
    }
    // How a delete may go further.
    let mut words = Vec::new();
    if meta.trash() {
        words.push(("purge", "For good, not into the trash."));
    }
    if of.handler.takes_force() {
        words.push(("force", "Also what else would have to go first."));
    }
    for (word, doc) in words {
        for path in [&class, &item] {
            let all = paths.get_mut(path).and_then(|it| it.get_mut("delete")?["parameters"].as_array_mut());
            let Some(all) = all.filter(|all| all.iter().all(|it| it["name"] != word)) else { continue };
            all.push(parameter(word, "query", false, json!({"enum": ["true", "false"]}), doc));
        }
    }
    if verbs.create == Access::Never {
        return;
    }
    let row = |status: &str| {
        json!({status: {"description": "The resource.", "content": {"application/json": {"schema": {
            "type": "object", "required": [keyword], "properties": {keyword: reference(name)},
        }}}}})[status]
            .clone()
    };
    if let Some(create) = paths.get_mut(&class).and_then(|path| path.get_mut("post")) {
        create["responses"]["207"] = many(meta, name);
        let schema = &mut create["requestBody"]["content"]["application/json"]["schema"]["anyOf"];
        schema.as_array_mut().into_iter().for_each(|it| it.extend(bodies(meta, name, true)));
    }
    let mut one =
        |path: String, id: &str, summary: String, status: &str, schemas: Vec<Value>, required: bool| {
            let entry = paths.entry(path).or_insert_with(|| json!({}));
            if entry.get("post").is_some() {
                // The type has an action of that name, which wins.
                return;
            }
            let mut it = operation(&format!("{plural}.{id}"), plural, &summary, (status, row(status)));
            it["requestBody"] = json!({
                "required": required, "content": {"application/json": {"schema": {"anyOf": schemas}}},
            });
            if id == "apply" {
                it["responses"]["200"] = row("200");
                it["responses"]["207"] = many(meta, name);
            } else {
                entry["parameters"] =
                    json!([parameter("id", "path", true, json!({"type": "string"}), "Id or name.")]);
            }
            parameters(&mut it, "post", true);
            entry["post"] = it;
        };
    let create = || reference(&format!("{name}Create"));
    let enveloped =
        |schema: Value| json!({"type": "object", "required": [keyword], "properties": {keyword: schema}});
    let overrides = json!({"type": "object", "description": "What is to differ from the copied row."});
    one(format!("{item}/copy"), "copy", format!("Copy a {keyword}"), "201", vec![overrides], false);
    if meta.has("name") {
        let mut schemas = vec![enveloped(create()), create()];
        schemas.extend(bodies(meta, name, false));
        let summary = format!("Create a {keyword}, or change what differs in the one of that name");
        one(format!("{class}/apply"), "apply", summary, "201", schemas, true);
    }
}

/// The parameters that choose the rows of a batch.
fn narrowing(meta: &Meta, generator: &mut SchemaGenerator) -> Vec<Value> {
    let all = list_parameters(meta, generator);
    let narrow = |it: &&Value| it["name"].as_str().is_some_and(|name| narrows(meta, name));
    let mut chosen: Vec<_> = all.as_array().into_iter().flatten().filter(narrow).cloned().collect();
    let doc =
        format!("All that the caller may see, at most {MOST_ROWS}; without it some condition is needed.");
    chosen.push(parameter("all", "query", false, json!({"enum": ["true"]}), &doc));
    chosen
}
