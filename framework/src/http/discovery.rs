//! `GET /resources`: what types there are, and of one all that a console or a
//! command line needs to know of it.

use schemars::SchemaGenerator;
use serde_json::{Value, json};

use crate::dispatch::{MOST_CREATED, MOST_ROWS};
use crate::model::{Action, ActionKind, Field, Meta};
use crate::registry::{Registry, Type};
use crate::{Error, Result};

/// The list of types, or one of them.
pub(super) fn document(registry: &Registry, plural: Option<&str>) -> Result<Vec<u8>> {
    let value = match plural {
        None => {
            let types: Vec<_> = registry.types().map(summary).collect();
            json!({"resources": types})
        }
        Some(name) => {
            let found = registry.get(name).or_else(|| registry.keyword(name));
            let of = found.ok_or_else(|| Error::not_found("resource", name))?;
            json!({"resource": full(registry, of)})
        }
    };
    serde_json::to_vec(&value).map_err(Error::internal)
}

fn summary(of: &Type) -> Value {
    let meta = of.handler.meta();
    let verbs = meta.source.verbs;
    json!({
        "keyword": meta.keyword(),
        "plural": meta.plural(),
        "description": meta.source.doc,
        "path": format!("/{}", meta.plural()),
        "runtime": meta.is_runtime(),
        "watch": !meta.source.unlogged,
        "scope": format!("{:?}", meta.source.scope).to_lowercase(),
        "verbs": {
            "list": verbs.list, "get": verbs.get, "create": verbs.create,
            "update": verbs.update, "delete": verbs.delete,
        },
    })
}

fn full(registry: &Registry, of: &Type) -> Value {
    let meta = of.handler.meta();
    let mut generator = super::openapi::generator();
    let mut value = summary(of);
    value["fields"] = meta.fields().iter().map(|f| field(f, &mut generator)).collect();
    value["extra"] =
        meta.extra().iter().map(|(name, doc)| json!({"name": name, "description": doc})).collect();
    value["actions"] = of.actions.values().map(|a| action(a, &mut generator)).collect();
    if meta.source.verbs.list != crate::auth::Access::Never {
        let path = format!("/{}/statistics", meta.plural());
        value["statistics"] = json!({"path": path, "by_status": meta.has("status")});
        value["exports"] = json!(["csv", "ndjson"]);
    }
    value["batch"] = json!({"most_created": MOST_CREATED, "most_rows": MOST_ROWS, "apply": meta.has("name")});
    value["contexts"] = contexts(registry, meta).into();
    value["joint"] = json!(meta.source.joint.map(|(one, other)| [one, other]));
    value["owner"] = json!(meta.source.owner);
    value["schemas"] = json!(generator.take_definitions(true));
    value
}

/// Where the type's rows are found below rows of another.
fn contexts(registry: &Registry, meta: &Meta) -> Vec<Value> {
    let all = registry.contexts();
    let here = all.iter().filter(|(_, it)| it.leads_to == meta.plural());
    here.map(|((above, name), it)| {
        json!({
            "path": format!("/{above}/{{id}}/{name}"),
            "resource": above,
            "field": it.field,
            "joint": it.other.is_some(),
        })
    })
    .collect()
}

fn field(it: &Field, generator: &mut SchemaGenerator) -> Value {
    json!({
        "name": it.name,
        "description": it.doc,
        "schema": (it.schema)(generator),
        "nullable": it.nullable,
        "stored": it.stored,
        "list": it.list,
        "get": it.get,
        "create": it.create.access,
        "required": it.create.required,
        "update": it.update,
        "default": it.default,
        "unique": it.unique,
        "operators": if it.stored && it.list != crate::auth::Access::Never {
            json!(crate::query::operators(it))
        } else {
            json!([])
        },
        "indexed": it.index,
        "searched": it.search,
        "references": it.references,
        "cascade": it.cascade,
        "choices": it.choices,
        "min": it.range.min,
        "max": it.range.max,
        "max_length": if it.column == crate::db::ColumnType::Text { json!(it.max) } else { Value::Null },
    })
}

fn action(it: &Action, generator: &mut SchemaGenerator) -> Value {
    let kind = match it.kind {
        ActionKind::Item => "action",
        ActionKind::Class => "class_action",
        ActionKind::Property => "property",
        ActionKind::Detail => "detail",
    };
    json!({
        "name": it.name,
        "kind": kind,
        "description": it.doc,
        "access": it.access,
        "when": it.when,
        "input": (it.input)(generator),
        "output": it.output.map(|schema| schema(generator)),
    })
}
