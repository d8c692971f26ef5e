//! The API's document, OpenAPI 3.1, made from the metadata at the first
//! request for it, and anew when types are defined. Nothing in it is written by hand but what a service's own
//! routes say of themselves.

use std::sync::PoisonError;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{App, conditional, problem, request_id};
use crate::auth::Access;
use crate::context::Context;
use crate::model::{Action, ActionKind, Field, Meta};
use crate::registry::{Registry, Type};

/// What a service's own routes add to `paths`.
pub struct ExtraPaths {
    /// Path and path item.
    pub paths: fn(&mut SchemaGenerator) -> Vec<(&'static str, Value)>,
}

inventory::collect!(ExtraPaths);

/// A generator whose definitions stand where OpenAPI keeps them.
pub(super) fn generator() -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    settings.into_generator()
}

pub(super) async fn serve(req: HttpRequest, app: web::Data<App>) -> HttpResponse {
    let (document, tag) = current(&app.core.registry);
    let mut builder = match conditional::known(&req, &tag) {
        Ok(None) => HttpResponse::Ok(),
        Ok(Some(_)) => {
            let mut builder = HttpResponse::NotModified();
            builder.insert_header((header::ETAG, tag)).insert_header((header::CACHE_CONTROL, "no-cache"));
            return builder.finish();
        }
        Err(error) => return problem(&error, &req, &request_id(&req)),
    };
    builder.insert_header((header::ETAG, tag)).insert_header((header::CACHE_CONTROL, "no-cache"));
    builder.content_type("application/json").body(document)
}

/// The document as of the types that there are now, and its tag.
fn current(registry: &Registry) -> (web::Bytes, String) {
    let generation = registry.generation();
    let mut kept = registry.document.lock().unwrap_or_else(PoisonError::into_inner);
    match &*kept {
        Some((of, document, tag)) if *of == generation => (document.clone(), tag.clone()),
        _ => {
            let document: web::Bytes = document(registry).to_string().into();
            let tag = conditional::tag(None, &document);
            *kept = Some((generation, document.clone(), tag.clone()));
            (document, tag)
        }
    }
}

/// The document.
fn document(registry: &Registry) -> Value {
    let mut generator = generator();
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for of in registry.types() {
        type_paths(of, &mut generator, &mut paths, &mut schemas);
    }
    for (place, context) in &registry.contexts() {
        nested_paths(registry, *place, context, &mut paths);
    }
    for extra in inventory::iter::<ExtraPaths> {
        for (path, item) in (extra.paths)(&mut generator) {
            // What it says stands beside what a type's own path has already.
            match (paths.get_mut(path), item) {
                (Some(Value::Object(there)), Value::Object(more)) => there.extend(more),
                (_, item) => drop(paths.insert(path.to_owned(), item)),
            }
        }
    }
    fixed_paths(&mut paths);
    schemas.extend(generator.take_definitions(true));
    schemas.insert("Problem".into(), problem_schema());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Podyard",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Resources, their actions and tasks. Every path but health, login and this document takes a token.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {"bearer": []}],
        "tags": registry.types().map(|of| tag(of.handler.meta())).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": header_components(),
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
            "responses": {
                "NotModified": {"description": "What is known by its ETag still holds."},
                "Problem": {
                    "description": "What went wrong, and with which fields; in English or Chinese by Accept-Language.",
                    "headers": {
                        "X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"},
                        "Retry-After": {"$ref": "#/components/headers/Retry-After"},
                        "Content-Language": {"$ref": "#/components/headers/Content-Language"},
                        "RateLimit-Limit": {"$ref": "#/components/headers/RateLimit-Limit"},
                        "RateLimit-Remaining": {"$ref": "#/components/headers/RateLimit-Remaining"},
                        "RateLimit-Reset": {"$ref": "#/components/headers/RateLimit-Reset"},
                    },
                    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                },
            },
        },
    })
}

fn tag(meta: &Meta) -> Value {
    json!({"name": meta.plural(), "description": meta.source.doc})
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "An error (RFC 9457).",
        "required": ["type", "title", "status", "detail", "class", "request_id"],
        "properties": {
            "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
            "detail": {"type": "string"}, "instance": {"type": "string"},
            "class": {"type": "string", "description": "A stable name of the error, for programs."},
            "code": {"type": "integer"}, "details": {"type": "string"}, "request_id": {"type": "string"},
            "trace_id": {"type": "string", "description": "Of the client's `traceparent`."},
            "errors": {"type": "array", "items": {
                "type": "object", "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            }},
        },
    })
}

/// A field's schema with its docs and limits.
fn property(field: &Field, generator: &mut SchemaGenerator) -> Value {
    let mut schema = serde_json::to_value((field.schema)(generator)).unwrap_or_default();
    if !schema.is_object() {
        schema = json!({});
    }
    schema["description"] = field.doc.into();
    if field.column == crate::db::ColumnType::Text && schema.get("$ref").is_none() {
        schema["maxLength"] = field.max.into();
        if !field.choices.is_empty() {
            schema["enum"] = json!(field.choices);
        }
    }
    if let Some(min) = field.range.min {
        schema["minimum"] = json!(min);
    }
    if let Some(max) = field.range.max {
        schema["maximum"] = json!(max);
    }
    if let Some(keyword) = field.references {
        schema["x-references"] = keyword.into();
    }
    schema
}

fn object(fields: impl Iterator<Item = Value>, names: &[&str], required: &[&str], closed: bool) -> Value {
    let properties: Map<String, Value> = names.iter().map(ToString::to_string).zip(fields).collect();
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if closed {
        schema["additionalProperties"] = false.into();
    }
    schema
}

/// `Space`, `SpaceCreate`, `SpaceUpdate`.
fn type_schemas(meta: &Meta, generator: &mut SchemaGenerator, schemas: &mut Map<String, Value>) -> String {
    // A name with a dot is nobody's but theirs: Rust types have none.
    let name: String = if meta.is_runtime() {
        format!("rt.{}", meta.keyword())
    } else {
        meta.keyword().split(['_', '-']).map(capital).collect()
    };
    let mut add = |suffix: &str, fields: Vec<&&'static Field>, closed: bool, required: Vec<&str>| {
        let names: Vec<_> = fields.iter().map(|f| f.name).collect();
        let properties: Vec<_> = fields.iter().map(|f| property(f, generator)).collect();
        schemas.insert(format!("{name}{suffix}"), object(properties.into_iter(), &names, &required, closed));
    };
    let visible = meta.fields().iter().filter(|f| f.get != Access::Never || f.list != Access::Never);
    // None is required: `field=` leaves out whatever was not asked for.
    add("", visible.collect(), false, Vec::new());
    let created = meta.fields().iter().filter(|f| f.create.access != Access::Never);
    let required = meta.fields().iter().filter(|f| f.create.required).map(|f| f.name);
    add("Create", created.collect(), true, required.collect());
    add("Update", meta.fields().iter().filter(|f| f.update != Access::Never).collect(), true, Vec::new());
    let created = schemas.get_mut(&format!("{name}Create")).and_then(|s| s.get_mut("properties"));
    if let (Some(Value::Object(properties)), true) = (created, meta.tagged()) {
        let text = json!({"type": "string"});
        let tags = json!({"type": "object", "additionalProperties": text, "description": "Its tags."});
        properties.insert("metadata".into(), tags);
    }
    if let Some(Value::Object(properties)) = schemas.get_mut(&name).and_then(|s| s.get_mut("properties")) {
        for (extra, doc) in meta.extra() {
            properties.insert((*extra).to_owned(), json!({"description": doc}));
        }
    }
    name
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn enveloped(key: &str, schema: &Value) -> Value {
    json!({"application/json": {"schema": {
        "type": "object", "required": [key], "properties": {key: schema},
    }}})
}

/// Headers of an answer: those of every one, and further ones by name.
fn headers(names: &[&str]) -> Value {
    let of = |name: &str| (name.to_owned(), json!({"$ref": format!("#/components/headers/{name}")}));
    let all: Map<String, Value> =
        ["X-Request-Id", "Server-Timing"].iter().chain(names).map(|it| of(it)).collect();
    all.into()
}

/// What the headers say.
fn header_components() -> Value {
    let text = |doc: &str| json!({"schema": {"type": "string"}, "description": doc});
    let number = |doc: &str| json!({"schema": {"type": "integer"}, "description": doc});
    json!({
        "X-Request-Id": text("The client's own, or a new one; under it the log tells more."),
        "Server-Timing": text("Time in the database, and the number of statements."),
        "ETag": text("For If-Match and If-None-Match."),
        "Location": text("The path of what was made: the row, or the task."),
        "Retry-After": number("Seconds: with 429 and 503."),
        "Content-Language": text("The language of the texts, by Accept-Language: en or zh-CN."),
        "RateLimit-Limit": number("Requests at once; only while rates are limited."),
        "RateLimit-Remaining": number("How many of them are left."),
        "RateLimit-Reset": number("Seconds until all are there again."),
    })
}

/// An operation with the errors that any may answer.
pub(super) fn operation(id: &str, tag: &str, summary: &str, ok: (&str, Value)) -> Value {
    let problem = json!({"$ref": "#/components/responses/Problem"});
    let mut responses = Map::new();
    responses.insert(ok.0.to_owned(), ok.1);
    for status in [
        "400", "401", "403", "404", "406", "408", "409", "410", "412", "413", "414", "415", "429", "431",
        "500", "503", "504", "507",
    ] {
        responses.insert(status.to_owned(), problem.clone());
    }
    json!({"operationId": id, "tags": [tag], "summary": summary, "responses": responses})
}

pub(super) fn parameter(name: &str, place: &str, required: bool, schema: Value, doc: &str) -> Value {
    json!({"name": name, "in": place, "required": required, "schema": schema, "description": doc})
}

/// What turns a read into a stream.
fn watch_parameters(meta: &Meta) -> Vec<Value> {
    if !crate::event::is_watchable(meta) {
        return Vec::new();
    }
    let flag = || json!({"type": "boolean"});
    let position = || json!({"type": "string", "pattern": "^[0-9]+-[0-9]+$"});
    vec![
        parameter("watch", "query", false, flag(), "Answer changes as they come, as server-sent events."),
        parameter("initial", "query", false, flag(), "With `watch`: first what is there now."),
        parameter("since", "query", false, position(), "With `watch`: go on after this event."),
        parameter("Last-Event-ID", "header", false, position(), "With `watch`: go on after this event."),
    ]
}

/// The parameters that say which rows, of lists and of statistics.
fn filter_parameters(meta: &Meta, generator: &mut SchemaGenerator) -> Vec<Value> {
    let query = |name: &str, schema: Value, doc: &str| parameter(name, "query", false, schema, doc);
    let texts = || json!({"type": "array", "items": {"type": "string"}});
    let mut parameters = vec![
        query(
            "filter",
            texts(),
            "`field.op(value, …)`; the field may lie behind a reference, as `template.name` does. All of them must hold.",
        ),
        query("filter_any", json!({"type": "boolean"}), "Any of the `filter` is enough."),
        query("search", texts(), "Text to find in the searched fields, in any ASCII case; any of several."),
        query(
            "scope",
            json!({"enum": ["user", "project", "domain", "system"]}),
            "Whose rows, within what the caller may see.",
        ),
    ];
    // A type's own field beats a word.
    parameters.retain(|it| !it["name"].as_str().is_some_and(|name| meta.has(name)));
    let marks = [("deleted", "For administrators: deleted rows."), ("pending_deleted", "Rows in the trash.")];
    for (name, doc) in marks.into_iter().filter(|(name, _)| meta.has(name)) {
        parameters.push(query(name, json!({"enum": ["true", "false", "any"]}), doc));
    }
    if meta.tagged() {
        parameters.push(query("tag", texts(), "A tag that the rows have: `key` or `key:value`."));
        parameters.push(query("without_tag", texts(), "A key that the rows have no tag of."));
    }
    for field in meta.stored().filter(|f| f.list != Access::Never && !marks.iter().any(|(m, _)| *m == f.name))
    {
        let mut schema = property(field, generator);
        if let Some(map) = schema.as_object_mut() {
            map.remove("description");
            map.remove("maxLength");
        }
        let values = json!({"type": "array", "items": schema});
        parameters.push(query(field.name, values, &format!("Equal to. {}", field.doc)));
    }
    parameters
}

pub(super) fn list_parameters(meta: &Meta, generator: &mut SchemaGenerator) -> Value {
    let query = |name: &str, schema: Value, doc: &str| parameter(name, "query", false, schema, doc);
    let names: Vec<_> = meta.stored().filter(|f| f.list != Access::Never).map(|f| f.name).collect();
    let ordered: Vec<_> = names.iter().flat_map(|name| [(*name).to_owned(), format!("-{name}")]).collect();
    let mut selectable = names.clone();
    selectable.extend(meta.source.extra.iter().map(|(name, _)| *name));
    let count = |least: u32| json!({"type": "integer", "minimum": least});
    let several = |names: &[&str]| json!({"type": "array", "items": {"enum": names}});
    let mut parameters = vec![
        query("limit", count(1), "Rows of the page; at most 1000."),
        query(
            "marker",
            json!({"type": "string"}),
            "`next_marker` of the page before, or `previous_marker` of the one after.",
        ),
        query("offset", count(0), "Rows to skip: the slow way."),
        query(
            "order_by",
            json!({"type": "array", "items": {"enum": ordered}}),
            "Fields to order by; with a `-`, downwards.",
        ),
        query("order", json!({"enum": ["asc", "desc"]}), "The direction of fields without a sign."),
        query("field", several(&selectable), "Fields to show."),
        query("exclude", several(&selectable), "Fields to leave out."),
        query(
            "details",
            json!({"enum": ["true", "false", "total"]}),
            "`false`: stored fields only; `total`: count all rows.",
        ),
        query("total", json!({"type": "boolean"}), "Count all rows."),
        query("distinct_field", several(&names), "The different values of these fields, in place of rows."),
        query("export", json!({"enum": ["csv", "ndjson"]}), "The whole list, as a file."),
    ];
    parameters.retain(|it| !it["name"].as_str().is_some_and(|name| meta.has(name)));
    parameters.extend(filter_parameters(meta, generator));
    parameters.extend(watch_parameters(meta));
    parameters.into()
}

/// The answer of a list.
fn page(plural: &str, name: &str) -> Value {
    let text = || json!({"schema": {"type": "string"}});
    json!({"description": "A page.", "headers": headers(&["ETag"]), "content": {
        "application/json": {"schema": {
            "type": "object", "required": [plural, "limit"], "properties": {
                plural: {"type": "array", "items": reference(name)},
                "limit": {"type": "integer"}, "total": {"type": "integer"},
                "next_marker": {"type": "string", "description": "There are rows after these."},
                "previous_marker": {"type": "string", "description": "There are rows before these."},
                "next_offset": {"type": "integer", "description": "Of `distinct_field`: there are more values."},
            },
        }},
        "text/csv": text(), "application/x-ndjson": text(),
    }})
}

/// `GET /<plural>/statistics`.
fn statistics(meta: &Meta, generator: &mut SchemaGenerator) -> Value {
    let plural = meta.plural();
    let numbers = json!({"type": "object", "required": ["total"], "properties": {
        "total": {"type": "integer"},
        "by_status": {"type": "object", "additionalProperties": {"type": "integer"}},
    }});
    let ok = json!({"description": "How many rows there are.", "content": enveloped(plural, &numbers)});
    let summary = format!("Count {plural}, also by status");
    let mut it = operation(&format!("{plural}.statistics"), plural, &summary, ("200", ok));
    it["parameters"] = filter_parameters(meta, generator).into();
    it
}

fn type_paths(
    of: &Type,
    generator: &mut SchemaGenerator,
    paths: &mut Map<String, Value>,
    schemas: &mut Map<String, Value>,
) {
    let meta = of.handler.meta();
    let verbs = meta.source.verbs;
    let name = type_schemas(meta, generator, schemas);
    let (keyword, plural) = (meta.keyword(), meta.plural());
    let row = || {
        json!({
            "description": "The resource.", "headers": headers(&["ETag"]),
            "content": enveloped(keyword, &reference(&name)),
        })
    };
    let body = |schema: &str| {
        json!({"required": true, "content": {"application/json": {"schema": {"anyOf": [
            {"type": "object", "required": [keyword], "properties": {keyword: reference(schema)}, "additionalProperties": false},
            reference(schema),
        ]}}}})
    };
    let id = || parameter("id", "path", true, json!({"type": "string"}), "Id or name.");
    let if_match =
        || parameter("If-Match", "header", false, json!({"type": "string"}), "The ETag that is known.");
    let if_none_match = || {
        let doc = "ETags that are known: 304 if the answer has one of them.";
        parameter("If-None-Match", "header", false, json!({"type": "string"}), doc)
    };
    let unchanged = || json!({"$ref": "#/components/responses/NotModified"});
    let mut class = Map::new();
    let mut item = Map::new();
    if verbs.list != Access::Never {
        let ok = ("200", page(plural, &name));
        let mut it = operation(&format!("{plural}.list"), plural, &format!("List {plural}"), ok);
        it["parameters"] = list_parameters(meta, generator);
        if let Some(parameters) = it["parameters"].as_array_mut() {
            parameters.push(if_none_match());
        }
        it["responses"]["304"] = unchanged();
        class.insert("get".into(), it);
        paths.insert(format!("/{plural}/statistics"), json!({"get": statistics(meta, generator)}));
    }
    if verbs.create != Access::Never {
        let mut made = row();
        made["headers"] = headers(&["ETag", "Location"]);
        let mut it =
            operation(&format!("{plural}.create"), plural, &format!("Create a {keyword}"), ("201", made));
        it["requestBody"] = body(&format!("{name}Create"));
        class.insert("post".into(), it);
    }
    if verbs.get != Access::Never {
        let mut it = operation(&format!("{plural}.get"), plural, &format!("Get a {keyword}"), ("200", row()));
        let mut parameters = vec![
            parameter("field", "query", false, json!({"type": "string"}), "Fields to show."),
            parameter("exclude", "query", false, json!({"type": "string"}), "Fields to leave out."),
            if_none_match(),
        ];
        if meta.shows_tags() {
            let words = json!({"enum": ["true", "false"]});
            parameters.push(parameter("tags", "query", false, words, "Whether to show its tags."));
        }
        parameters.extend(watch_parameters(meta));
        it["parameters"] = parameters.into();
        it["responses"]["304"] = unchanged();
        item.insert("get".into(), it);
    }
    if verbs.update != Access::Never {
        for method in ["put", "patch"] {
            let id = format!("{plural}.{}", if method == "put" { "update" } else { "patch" });
            let mut it = operation(&id, plural, &format!("Change a {keyword}"), ("200", row()));
            it["parameters"] = json!([if_match()]);
            it["requestBody"] = body(&format!("{name}Update"));
            item.insert(method.into(), it);
        }
    }
    if verbs.delete != Access::Never {
        let mut it =
            operation(&format!("{plural}.delete"), plural, &format!("Delete a {keyword}"), ("200", row()));
        it["parameters"] = json!([if_match()]);
        item.insert("delete".into(), it);
    }
    if !class.is_empty() {
        paths.insert(format!("/{plural}"), class.into());
    }
    if !item.is_empty() {
        item.insert("parameters".into(), json!([id()]));
        paths.insert(format!("/{plural}/{{id}}"), item.into());
    }
    let own = of.actions.contains_key(&(ActionKind::Detail, "events"));
    if verbs.get != Access::Never && !own && !meta.source.unlogged {
        let content =
            json!({"application/json": {"schema": {"type": "object", "required": ["events", "limit"]}}});
        let page =
            json!({"description": "A page, with the parameters of `GET /events`.", "content": content});
        let what = format!("What was done to a {keyword}");
        let it = operation(&format!("{plural}.events"), plural, &what, ("200", page));
        paths.insert(format!("/{plural}/{{id}}/events"), json!({"get": it, "parameters": [id()]}));
    }
    for action in of.actions.values() {
        let (path, key) = match action.kind {
            ActionKind::Item | ActionKind::Detail => (format!("/{plural}/{{id}}/{}", action.name), keyword),
            ActionKind::Class | ActionKind::Property => (format!("/{plural}/{}", action.name), plural),
        };
        let (method, it) = action_operation(action, plural, key, &name, generator);
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[method] = it;
        if matches!(action.kind, ActionKind::Item | ActionKind::Detail) {
            entry["parameters"] = json!([id()]);
        }
    }
    super::openapi_writes::add(of, &name, generator, paths);
}

/// A type's rows below a row of another: lists and creates, and of joint types
/// the row of two others. They are the plain operations with an id before them;
/// further paths, which answer as the plain ones do, discovery tells of.
fn nested_paths(
    registry: &Registry,
    (above, below): (&'static str, &'static str),
    context: &Context,
    paths: &mut Map<String, Value>,
) {
    let taken = |of: &Type| {
        let word = |kind: &ActionKind| matches!(kind, ActionKind::Detail | ActionKind::Item);
        of.actions.keys().any(|(kind, name)| word(kind) && *name == below)
    };
    let (Some(of), false) = (registry.get(context.leads_to), registry.get(above).is_none_or(taken)) else {
        return;
    };
    let plural = of.handler.meta().plural();
    let id = |name: &str, of: &str| {
        parameter(name, "path", true, json!({"type": "string"}), &format!("Id or name, of {of}."))
    };
    let mut copy = |from: &str, to: String, methods: &[&str], first: Value, rename: &str| {
        let mut item = Map::new();
        for method in methods {
            let Some(mut it) = paths.get(from).and_then(|item| item.get(method)).cloned() else { continue };
            it["operationId"] = format!("{above}.{rename}.{method}").into();
            item.insert((*method).to_owned(), it);
        }
        if !item.is_empty() {
            item.insert("parameters".into(), first);
            paths.insert(to, item.into());
        }
    };
    let (class, row) = (format!("/{plural}"), format!("/{plural}/{{id}}"));
    let one = format!("/{above}/{{id}}/{below}");
    match context.other {
        None => copy(&class, one, &["get", "post"], json!([id("id", above)]), below),
        Some(_) => {
            copy(&class, one.clone(), &["get"], json!([id("id", above)]), below);
            let both = json!([id("id", above), id("other_id", below)]);
            let two = format!("{one}/{{other_id}}");
            copy(&row, two.clone(), &["get", "put", "patch", "delete"], both.clone(), &format!("{below}.of"));
            let Some(mut attach) = paths.get(&class).and_then(|item| item.get("post")).cloned() else {
                return;
            };
            attach["operationId"] = format!("{above}.{below}.attach").into();
            // The path says both sides; a body says the rest, if there is any.
            attach["requestBody"] =
                json!({"required": false, "content": {"application/json": {"schema": {"type": "object"}}}});
            let entry = paths.entry(two).or_insert_with(|| json!({"parameters": both}));
            entry["post"] = attach;
        }
    }
}

fn action_operation(
    action: &Action,
    plural: &str,
    key: &str,
    name: &str,
    generator: &mut SchemaGenerator,
) -> (&'static str, Value) {
    let output = match action.output {
        Some(schema) => serde_json::to_value(schema(generator)).unwrap_or_default(),
        None if matches!(action.kind, ActionKind::Item | ActionKind::Detail) => reference(name),
        None => json!({"type": "object"}),
    };
    let ok = json!({"description": "Done.", "content": enveloped(key, &output)});
    let read = matches!(action.kind, ActionKind::Property | ActionKind::Detail);
    let kind = if read { "show" } else { "perform" };
    let id = format!("{plural}.{kind}.{}.{}", format!("{:?}", action.kind).to_lowercase(), action.name);
    let mut it = operation(&id, plural, action.doc, ("200", ok.clone()));
    if action.deprecated.is_some() {
        it["deprecated"] = true.into();
    }
    let input = serde_json::to_value((action.input)(generator)).unwrap_or_default();
    if read {
        let resolved = resolve(&input, generator);
        let properties = resolved.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        let parameters: Vec<_> = properties
            .iter()
            .map(|(name, schema)| {
                let doc = schema.get("description").and_then(Value::as_str).unwrap_or_default();
                parameter(name, "query", false, schema.clone(), doc)
            })
            .collect();
        it["parameters"] = parameters.into();
        return ("get", it);
    }
    it["responses"]["202"] = json!({
        "description": "A task was started; `task_id` names it.", "headers": headers(&["Location"]), "content": enveloped(key, &output),
    });
    it["requestBody"] = json!({"required": false, "content": {"application/json": {"schema": input}}});
    ("post", it)
}

/// A schema behind its reference.
fn resolve(schema: &Value, generator: &mut SchemaGenerator) -> Value {
    let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.rsplit('/').next()) else {
        return schema.clone();
    };
    generator.definitions().get(name).cloned().unwrap_or_default()
}

fn fixed_paths(paths: &mut Map<String, Value>) {
    let plain = |id: &str, summary: &str, open: bool| {
        let ok =
            json!({"description": "Fine.", "content": {"application/json": {"schema": {"type": "object"}}}});
        let mut it = operation(id, "platform", summary, ("200", ok));
        if open {
            it["security"] = json!([]);
        }
        json!({"get": it})
    };
    paths.insert("/healthz".into(), plain("healthz", "The process lives", true));
    paths.insert("/readyz".into(), plain("readyz", "The database answers", true));
    paths.insert("/openapi.json".into(), plain("openapi", "This document", true));
    paths.insert("/resources".into(), plain("resources", "All resource types", false));
    let mut one = plain("resources.get", "One resource type, with all its metadata", false);
    one["parameters"] = json!([parameter("name", "path", true, json!({"type": "string"}), "Its plural.")]);
    paths.insert("/resources/{name}".into(), one);
}
