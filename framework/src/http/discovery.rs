//! `GET /resources`: what types there are, and of one all that a console or a
//! command line needs to know of it.

use schemars::SchemaGenerator;
use serde_json::{Value, json};

use crate::dispatch::{MOST_CREATED, MOST_ROWS};
use crate::i18n::{self, Lang};
use crate::model::{Action, ActionKind, Field, Meta};
use crate::registry::{Registry, Type};
use crate::{Error, Result};

/// The list of types, or one of them.
pub(super) fn document(registry: &Registry, plural: Option<&str>, lang: Lang) -> Result<Vec<u8>> {
    let value = match plural {
        None => {
            let types: Vec<_> = registry.types().map(|of| summary(of, lang)).collect();
            json!({"resources": types})
        }
        Some(name) => {
            let found = registry.get(name).or_else(|| registry.keyword(name));
            let of = found.ok_or_else(|| Error::not_found("resource", name))?;
            json!({"resource": full(registry, of, lang)})
        }
    };
    serde_json::to_vec(&value).map_err(Error::internal)
}

/// What a name is called on a page: `template_id` is `Template`.
fn label(name: &str, lang: Lang) -> String {
    let words = name.strip_suffix("_id").unwrap_or(name).replace(['_', '-'], " ");
    let mut chars = words.chars();
    let english: String = chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default();
    i18n::label(lang, &english).into_owned()
}

fn summary(of: &Type, lang: Lang) -> Value {
    let meta = of.handler.meta();
    let verbs = meta.source.verbs;
    json!({
        "keyword": meta.keyword(),
        "plural": meta.plural(),
        "label": label(meta.keyword(), lang),
        "label_plural": label(meta.plural(), lang),
        "description": meta.source.doc,
        "path": format!("/{}", meta.plural()),
        "runtime": meta.is_runtime(),
        "watch": crate::event::is_watchable(meta),
        "scope": format!("{:?}", meta.source.scope).to_lowercase(),
        "verbs": {
            "list": verbs.list, "get": verbs.get, "create": verbs.create,
            "update": verbs.update, "delete": verbs.delete,
        },
    })
}

fn full(registry: &Registry, of: &Type, lang: Lang) -> Value {
    let meta = of.handler.meta();
    let mut generator = super::openapi::generator();
    let mut value = summary(of, lang);
    value["fields"] = meta.fields().iter().map(|f| field(f, lang, &mut generator)).collect();
    let extra =
        |(name, doc): &(&str, &str)| json!({"name": name, "label": label(name, lang), "description": doc});
    value["extra"] = meta.extra().iter().map(extra).collect();
    value["actions"] = of.actions.values().map(|a| action(of, a, lang, &mut generator)).collect();
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

fn field(it: &Field, lang: Lang, generator: &mut SchemaGenerator) -> Value {
    json!({
        "name": it.name,
        "label": label(it.name, lang),
        "description": it.doc,
        "type": format!("{:?}", it.column).to_lowercase(),
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

fn action(of: &Type, it: &Action, lang: Lang, generator: &mut SchemaGenerator) -> Value {
    let plural = of.handler.meta().plural();
    let item = matches!(it.kind, ActionKind::Item | ActionKind::Detail);
    let reads = matches!(it.kind, ActionKind::Property | ActionKind::Detail);
    let kind = match it.kind {
        ActionKind::Item => "action",
        ActionKind::Class => "class_action",
        ActionKind::Property => "property",
        ActionKind::Detail => "detail",
    };
    json!({
        "name": it.name,
        "label": label(it.name, lang),
        "kind": kind,
        "method": if reads { "GET" } else { "POST" },
        "path": if item { format!("/{plural}/{{id}}/{}", it.name) } else { format!("/{plural}/{}", it.name) },
        "description": it.doc,
        "access": it.access,
        "when": it.when,
        "deprecated": it.deprecated,
        "input": (it.input)(generator),
        "output": it.output.map(|schema| schema(generator)),
    })
}
