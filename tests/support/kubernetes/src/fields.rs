//! Sets of fields, as `metadata.managedFields` writes them, and the merge of lists
//! whose items have a key.
//!
//! A field is a path of steps: `f:spec`, `k:{"name":"main"}`, `v:"x"`. A path ends
//! where ownership does: at a value, a list that is one value, or an item itself.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::value::{list, map};

pub(crate) type Path = Vec<String>;
pub(crate) type Set = BTreeSet<Path>;

/// How a list is merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lists {
    /// As one value.
    Atomic,
    /// By the values themselves.
    Set,
    /// By these fields of its items.
    Keyed(Vec<String>),
}

/// How the list at a field is merged. `schema` is the field's, of a custom resource.
pub(crate) fn lists(field: &str, items: &[Value], schema: Option<&Value>) -> Lists {
    if let Some(schema) = schema {
        return match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => Lists::Set,
            Some("map") => Lists::Keyed(
                list(&schema["x-kubernetes-list-map-keys"])
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
            ),
            _ => Lists::Atomic,
        };
    }
    let keys: &[&str] = match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "secrets" => &["name"],
        "conditions" => &["type"],
        "ownerReferences" => &["uid"],
        "volumeMounts" => &["mountPath"],
        "volumeDevices" => &["devicePath"],
        "podIPs" | "hostAliases" => &["ip"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        "ports" if items.iter().any(|it| it.get("containerPort").is_some()) => &["containerPort", "protocol"],
        "ports" if items.iter().any(|it| it.get("port").is_some()) => &["port", "protocol"],
        "finalizers" => return Lists::Set,
        _ => return Lists::Atomic,
    };
    Lists::Keyed(keys.iter().map(|it| (*it).to_owned()).collect())
}

/// Maps that are one value.
fn atomic_map(field: &str) -> bool {
    matches!(
        field,
        "nodeSelector"
            | "fieldRef"
            | "secretKeyRef"
            | "configMapKeyRef"
            | "resourceFieldRef"
            | "labelSelector"
            | "involvedObject"
    )
}

/// The key of an item: its fields as JSON. A port without a protocol is TCP.
pub(crate) fn key_of(item: &Value, keys: &[String]) -> String {
    let mut key = Map::new();
    for field in keys {
        match item.get(field) {
            Some(value) => key.insert(field.clone(), value.clone()),
            None if field == "protocol" => key.insert(field.clone(), json!("TCP")),
            None => None,
        };
    }
    Value::Object(key).to_string()
}

fn below<'a>(schema: Option<&'a Value>, field: &str) -> Option<&'a Value> {
    let schema = schema?;
    schema["properties"].get(field).or_else(|| schema.get("additionalProperties"))
}

/// All fields of a value.
pub(crate) fn fields(of: &Value, schema: Option<&Value>) -> Set {
    let mut set = Set::new();
    collect(of, "", schema, &mut Vec::new(), &mut set);
    set
}

fn collect(value: &Value, field: &str, schema: Option<&Value>, at: &mut Path, set: &mut Set) {
    match value {
        Value::Object(map) if !map.is_empty() && !atomic_map(field) => {
            for (name, value) in map {
                at.push(format!("f:{name}"));
                collect(value, name, below(schema, name), at, set);
                at.pop();
            }
        }
        Value::Array(items) if !items.is_empty() => match lists(field, items, schema) {
            Lists::Atomic => {
                set.insert(at.clone());
            }
            Lists::Set => {
                for item in items {
                    at.push(format!("v:{item}"));
                    set.insert(at.clone());
                    at.pop();
                }
            }
            Lists::Keyed(keys) => {
                for item in items {
                    at.push(format!("k:{}", key_of(item, &keys)));
                    set.insert(at.clone());
                    collect(item, "", schema.map(|it| &it["items"]), at, set);
                    at.pop();
                }
            }
        },
        _ => {
            if !at.is_empty() {
                set.insert(at.clone());
            }
        }
    }
}

/// The maps and lists of `after` that `before` does not have, beside the fields of
/// which they are made: who brings one by another way than apply owns it, too.
pub(crate) fn brought(before: &Value, after: &Value, schema: Option<&Value>) -> Set {
    let mut paths = Set::new();
    for path in fields(after, schema) {
        for length in 1..path.len() {
            let above = &path[..length];
            let whole = above.last().is_some_and(|step| step.starts_with("f:"));
            if whole && !paths.contains(above) && !always(above, schema) && find(before, above).is_none() {
                paths.insert(above.to_vec());
            }
        }
    }
    paths
}

/// What an object has before anything is in it: nobody brings it.
fn always(path: &[String], schema: Option<&Value>) -> bool {
    let steps: Vec<&str> = path.iter().map(|it| it.trim_start_matches("f:")).collect();
    match steps.as_slice() {
        ["metadata"] => true,
        ["spec" | "status"] => schema.is_none(),
        ["spec", "template", rest @ ..] | ["spec", rest @ ..] => {
            schema.is_none()
                && matches!(
                    rest,
                    [] | ["metadata" | "spec" | "containers" | "strategy"] | ["spec", "containers"]
                )
        }
        _ => false,
    }
}

/// `fieldsV1` of a set.
pub(crate) fn to_json(set: &Set) -> Value {
    let mut root = json!({});
    for path in set {
        let mut at = &mut root;
        for step in path {
            at = map(at).entry(step.clone()).or_insert_with(|| json!({}));
        }
        // A path that goes on elsewhere is marked at itself.
        let goes_on = set.range(path.clone()..).nth(1).is_some_and(|next| next.starts_with(path));
        if goes_on {
            map(at).insert(".".to_owned(), json!({}));
        }
    }
    root
}

/// The set of a `fieldsV1`.
pub(crate) fn from_json(fields: &Value) -> Set {
    fn walk(value: &Value, at: &mut Path, set: &mut Set) {
        let Some(map) = value.as_object() else { return };
        if (map.is_empty() || map.contains_key(".")) && !at.is_empty() {
            set.insert(at.clone());
        }
        for (step, value) in map.iter().filter(|(step, _)| *step != ".") {
            at.push(step.clone());
            walk(value, at, set);
            at.pop();
        }
    }
    let mut set = Set::new();
    walk(fields, &mut Vec::new(), &mut set);
    set
}

/// The place of the item that a step names.
fn position(items: &[Value], step: &str) -> Option<usize> {
    if let Some(value) = step.strip_prefix("v:") {
        let value: Value = serde_json::from_str(value).ok()?;
        return items.iter().position(|it| *it == value);
    }
    let key: Value = serde_json::from_str(step.strip_prefix("k:")?).ok()?;
    let key = key.as_object()?;
    items.iter().position(|item| {
        key.iter().all(|(field, value)| match item.get(field) {
            Some(is) => is == value,
            None => field == "protocol" && value == "TCP",
        })
    })
}

/// The value at a path.
pub(crate) fn find<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |at, step| match step.strip_prefix("f:") {
        Some(field) => at.get(field),
        None => {
            let items = at.as_array()?;
            items.get(position(items, step)?)
        }
    })
}

/// Takes away what is at a path, and what is then empty around it.
pub(crate) fn remove(value: &mut Value, path: &[String]) {
    let [step, rest @ ..] = path else { return };
    match (step.strip_prefix("f:"), value) {
        (Some(field), Value::Object(map)) => {
            if rest.is_empty() {
                map.remove(field);
            } else if let Some(inner) = map.get_mut(field) {
                let filled = !is_empty(inner);
                remove(inner, rest);
                if filled && is_empty(inner) {
                    map.remove(field);
                }
            }
        }
        (None, Value::Array(items)) => {
            if let Some(at) = position(items, step) {
                if rest.is_empty() {
                    items.remove(at);
                } else {
                    remove(&mut items[at], rest);
                }
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Lays `over` on `under`: maps and lists with keys are merged, all else is replaced.
pub(crate) fn merge(under: &mut Value, over: &Value, field: &str, schema: Option<&Value>) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) if !atomic_map(field) => {
            for (name, value) in over {
                match under.get_mut(name) {
                    Some(inner) => merge(inner, value, name, below(schema, name)),
                    None => {
                        under.insert(name.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(under), Value::Array(over)) => match lists(field, over, schema) {
            Lists::Atomic => under.clone_from(over),
            Lists::Set => {
                for item in over {
                    if !under.contains(item) {
                        under.push(item.clone());
                    }
                }
            }
            Lists::Keyed(keys) => {
                for item in over {
                    let step = format!("k:{}", key_of(item, &keys));
                    match position(under, &step) {
                        Some(at) => {
                            merge(&mut under[at], item, "", schema.map(|it| &it["items"]));
                        }
                        None => under.push(item.clone()),
                    }
                }
            }
        },
        (under, over) => *under = over.clone(),
    }
}
