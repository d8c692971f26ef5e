//! Who owns which field: server-side apply, and the notes that other writes leave.

use serde_json::{Value, json};

use crate::fields::{self, Path, Set};
use crate::resource::Resource;
use crate::status::{Cause, Failure};
use crate::value::{list, name, now};

/// Who writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manager {
    pub name: String,
    pub apply: bool,
    pub api_version: String,
    pub sub: String,
}

impl Manager {
    /// The kubelet, which writes how pods are.
    pub fn kubelet() -> Self {
        Self {
            name: "kubelet".to_owned(),
            apply: false,
            api_version: "v1".to_owned(),
            sub: "status".to_owned(),
        }
    }
}

/// One entry of `managedFields`.
#[derive(Debug, Clone)]
struct Entry {
    manager: Manager,
    time: String,
    set: Set,
}

/// A custom resource's schema.
pub(crate) fn schema(of: &Resource) -> Option<&Value> {
    of.custom.as_deref().map(|version| &version["schema"]["openAPIV3Schema"])
}

fn read(object: &Value) -> Vec<Entry> {
    list(&object["metadata"]["managedFields"])
        .iter()
        .map(|entry| {
            let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
            Entry {
                manager: Manager {
                    name: text("manager"),
                    apply: entry["operation"] == "Apply",
                    api_version: text("apiVersion"),
                    sub: text("subresource"),
                },
                time: text("time"),
                set: fields::from_json(&entry["fieldsV1"]),
            }
        })
        .collect()
}

fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.set.is_empty());
    // Apply first, then by time.
    entries.sort_by(|a, b| {
        (!a.manager.apply, &a.time, &a.manager.name).cmp(&(!b.manager.apply, &b.time, &b.manager.name))
    });
    if entries.is_empty() {
        crate::value::drop_field(&mut object["metadata"], "managedFields");
        return;
    }
    object["metadata"]["managedFields"] = entries
        .iter()
        .map(|entry| {
            let mut json = json!({
                "manager": entry.manager.name,
                "operation": if entry.manager.apply { "Apply" } else { "Update" },
                "apiVersion": entry.manager.api_version,
                "time": entry.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": fields::to_json(&entry.set),
            });
            if !entry.manager.sub.is_empty() {
                json["subresource"] = json!(entry.manager.sub);
            }
            json
        })
        .collect();
}

/// What of an object can be owned at all.
fn ownable(object: &Value) -> Value {
    let mut own = object.clone();
    for field in ["apiVersion", "kind"] {
        crate::value::drop_field(&mut own, field);
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "managedFields",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generateName",
    ] {
        crate::value::drop_field(&mut own["metadata"], field);
    }
    if own["metadata"].as_object().is_some_and(serde_json::Map::is_empty) {
        crate::value::drop_field(&mut own, "metadata");
    }
    own
}

/// Notes in `new` that `manager` made it of `old` by another way than apply.
pub(crate) fn note(schema: Option<&Value>, old: Option<&Value>, new: &mut Value, manager: &Manager) {
    let empty = json!({});
    let before = old.map_or(json!({}), ownable);
    let after = ownable(new);
    let had = fields::fields(&before, schema);
    let has = fields::fields(&after, schema);
    let changed: Set = has
        .iter()
        .filter(|path| !had.contains(*path) || fields::find(&before, path) != fields::find(&after, path))
        // An item's own place changes only when it comes.
        .filter(|path| !(had.contains(*path) && path.last().is_some_and(|step| step.starts_with("k:"))))
        .cloned()
        .chain(fields::brought(&before, &after, schema))
        .collect();
    let mut entries = read(old.unwrap_or(&empty));
    for entry in &mut entries {
        let same = entry.manager == *manager;
        entry.set.retain(|path| {
            (has.contains(path) || fields::find(&after, path).is_some()) && (same || !changed.contains(path))
        });
    }
    if !changed.is_empty() {
        take(&mut entries, manager).set.extend(changed);
    }
    write(new, entries);
}

/// The entry of a manager, made if it is not there.
fn take<'a>(entries: &'a mut Vec<Entry>, manager: &Manager) -> &'a mut Entry {
    let at = entries.iter().position(|it| it.manager == *manager).unwrap_or_else(|| {
        entries.push(Entry { manager: manager.clone(), time: String::new(), set: Set::new() });
        entries.len() - 1
    });
    let entry = &mut entries[at];
    entry.time = now();
    entry
}

/// Applies a configuration; returns what the object becomes.
pub(crate) fn apply(
    of: &Resource,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager,
    force: bool,
) -> Result<Value, Failure> {
    let schema = schema(of);
    let wanted = ownable(config);
    let set = fields::fields(&wanted, schema);
    let empty = json!({});
    let base = live.unwrap_or(&empty);
    let mut entries = read(base);
    let own = entries.iter().find(|it| it.manager == *manager).map(|it| it.set.clone());

    let mut conflicts: Vec<(Manager, String, Path)> = Vec::new();
    for entry in entries.iter_mut().filter(|it| it.manager != *manager) {
        let clash: Vec<Path> = entry
            .set
            .intersection(&set)
            .filter(|path| {
                !path.last().is_some_and(|step| step.starts_with("k:"))
                    && fields::find(base, path) != fields::find(&wanted, path)
            })
            .cloned()
            .collect();
        for path in clash {
            entry.set.remove(&path);
            conflicts.push((entry.manager.clone(), entry.time.clone(), path));
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(conflict(&conflicts));
    }

    let mut merged = match live {
        Some(live) => live.clone(),
        None => json!({"apiVersion": config["apiVersion"], "kind": config["kind"],
            "metadata": {"name": name(config)}}),
    };
    fields::merge(&mut merged, &wanted, "", schema);
    // What it owned, wants no more and nobody else owns goes.
    let others: Set =
        entries.iter().filter(|it| it.manager != *manager).flat_map(|it| it.set.iter().cloned()).collect();
    let dropped: Vec<Path> = own
        .unwrap_or_default()
        .into_iter()
        .filter(|path| {
            let kept = |of: &Set| of.range(path.clone()..).next().is_some_and(|it| it.starts_with(path));
            !kept(&set) && !kept(&others)
        })
        .collect();
    for path in dropped.iter().rev() {
        fields::remove(&mut merged, path);
    }
    let entry = take(&mut entries, manager);
    entry.set = set;
    write(&mut merged, entries);
    Ok(merged)
}

fn conflict(with: &[(Manager, String, Path)]) -> Failure {
    let shown = |path: &Path| {
        path.iter().fold(String::new(), |text, step| match step.split_once(':') {
            Some(("f", field)) => format!("{text}.{field}"),
            Some(("k", key)) => {
                let key: Value = serde_json::from_str(key).unwrap_or_default();
                let parts: Vec<String> = key
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(field, value)| format!("{field}={value}"))
                    .collect();
                format!("{text}[{}]", parts.join(","))
            }
            Some((_, value)) => format!("{text}[={value}]"),
            None => text,
        })
    };
    let called = |manager: &Manager, time: &str| {
        if manager.apply {
            format!("conflict with \"{}\"", manager.name)
        } else {
            let sub = match manager.sub.as_str() {
                "" => String::new(),
                sub => format!(" with subresource \"{sub}\""),
            };
            format!("conflict with \"{}\"{sub} using {} at {time}", manager.name, manager.api_version)
        }
    };
    let causes: Vec<Cause> = with
        .iter()
        .map(|(manager, time, path)| Cause {
            reason: "FieldManagerConflict",
            message: called(manager, time),
            field: shown(path),
        })
        .collect();
    let (manager, time, path) = &with[0];
    let message = match with {
        [_] => format!("{}: {}", called(manager, time), shown(path)),
        many => many
            .chunk_by(|a, b| a.0 == b.0)
            .map(|of| {
                let of_whom = called(&of[0].0, &of[0].1).replacen("conflict", "conflicts", 1);
                let fields: Vec<String> = of.iter().map(|it| format!("- {}", shown(&it.2))).collect();
                format!("{of_whom}:\n{}", fields.join("\n"))
            })
            .collect::<Vec<_>>()
            .join("\n"),
    };
    let count = with.len();
    let plural = if count == 1 { "conflict" } else { "conflicts" };
    Failure::new(409, "Conflict", format!("Apply failed with {count} {plural}: {message}")).details(
        json!({"causes": causes.iter().map(|it| json!({
            "reason": it.reason, "message": it.message, "field": it.field
        })).collect::<Vec<_>>()}),
    )
}
