//! The shapes in which a client may want objects: whole, only their metadata, as a
//! table for people, as YAML.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::resource::Resource;
use crate::status::Failure;
use crate::value::{list, name, text, utc};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Whole,
    Metadata,
    Table,
}

impl Shape {
    /// What an `Accept` header wants.
    pub fn of(accept: &str) -> Result<Self, Failure> {
        for wanted in accept.split(',').map(str::trim) {
            let (kind, options) = wanted.split_once(';').unwrap_or((wanted, ""));
            if !matches!(kind.trim(), "" | "*/*" | "application/*" | "application/json" | "application/yaml")
            {
                continue;
            }
            let shape = options.split(';').find_map(|it| it.trim().strip_prefix("as="));
            match shape {
                None => return Ok(Self::Whole),
                Some("Table") => return Ok(Self::Table),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => {
                    return Ok(Self::Metadata);
                }
                Some(_) => {}
            }
        }
        Err(Failure::new(
            406,
            "NotAcceptable",
            "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, \
             application/vnd.kubernetes.protobuf, application/json;stream=watch, \
             application/vnd.kubernetes.protobuf;stream=watch",
        )
        .details(json!({})))
    }

    /// One object.
    pub fn one(self, of: &Resource, object: Value) -> Value {
        match self {
            Self::Whole => object,
            Self::Metadata => partial(&object),
            Self::Table => table(of, &[object], &json!({})),
        }
    }

    /// A list.
    pub fn many(self, of: &Resource, found: Value) -> Value {
        match self {
            Self::Whole => found,
            Self::Metadata => json!({"kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1", "metadata": found["metadata"],
                "items": list(&found["items"]).iter().map(partial).collect::<Vec<_>>()}),
            Self::Table => table(of, list(&found["items"]), &found["metadata"]),
        }
    }
}

fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"]})
}

struct Column {
    name: String,
    kind: String,
    path: Option<String>,
    /// 0: always shown; others only where there is room (`kubectl get -o wide`).
    priority: i64,
}

fn columns(of: &Resource) -> Vec<Column> {
    let plain = |name: &str, kind: &str| Column {
        name: name.to_owned(),
        kind: kind.to_owned(),
        path: None,
        priority: 0,
    };
    let mut columns = vec![plain("Name", "string")];
    match (of.custom.as_deref(), of.plural.as_str()) {
        (Some(version), _) => {
            let own = list(&version["additionalPrinterColumns"]);
            columns.extend(own.iter().map(|it| Column {
                name: text(&it["name"]).to_owned(),
                kind: text(&it["type"]).to_owned(),
                path: it["jsonPath"].as_str().map(str::to_owned),
                priority: it["priority"].as_i64().unwrap_or(0),
            }));
            if !own.is_empty() {
                return columns;
            }
        }
        (_, "pods") => {
            columns.extend(["Ready", "Status", "Restarts"].map(|it| plain(it, "string")));
        }
        (_, "persistentvolumeclaims") => {
            columns.extend(["Status", "Volume", "Capacity"].map(|it| plain(it, "string")));
        }
        (_, "namespaces") => columns.push(plain("Status", "string")),
        _ => {}
    }
    columns.push(plain("Age", "string"));
    columns
}

fn table(of: &Resource, objects: &[Value], meta: &Value) -> Value {
    let columns = columns(of);
    let definitions: Vec<Value> = columns
        .iter()
        .map(|it| {
            let format = if it.path.is_none() && it.name == "Name" { "name" } else { "" };
            json!({"name": it.name, "type": it.kind, "format": format, "description": it.name,
                "priority": it.priority})
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells: Vec<Value> = columns.iter().map(|it| cell(object, it)).collect();
            json!({"cells": cells, "object": partial(object)})
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
        "columnDefinitions": definitions, "rows": rows})
}

fn cell(object: &Value, column: &Column) -> Value {
    if let Some(path) = &column.path {
        let found = path.trim_start_matches('.').split('.').fold(object, |at, it| &at[it]);
        return match column.kind.as_str() {
            "date" => json!(age(found)),
            _ => found.clone(),
        };
    }
    let status = &object["status"];
    let containers = list(&status["containerStatuses"]);
    match column.name.as_str() {
        "Name" => json!(name(object)),
        "Age" => json!(age(&object["metadata"]["creationTimestamp"])),
        "Ready" => {
            let ready = containers.iter().filter(|it| it["ready"] == true).count();
            json!(format!("{ready}/{}", list(&object["spec"]["containers"]).len()))
        }
        "Restarts" => {
            json!(containers.iter().filter_map(|it| it["restartCount"].as_i64()).sum::<i64>())
        }
        "Status" => {
            let waits = containers.iter().find_map(|it| it["state"]["waiting"]["reason"].as_str());
            let leaves = object["metadata"]["deletionTimestamp"].is_string();
            match waits {
                _ if leaves => json!("Terminating"),
                Some(reason) => json!(reason),
                None => status["phase"].clone(),
            }
        }
        "Volume" => object["spec"]["volumeName"].clone(),
        "Capacity" => status["capacity"]["storage"].clone(),
        _ => Value::Null,
    }
}

fn age(since: &Value) -> String {
    let Ok(since) = DateTime::parse_from_rfc3339(text(since)) else {
        return "<unknown>".to_owned();
    };
    let seconds = (utc() - since.with_timezone(&Utc)).num_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
