//! The four kinds of PATCH.

use serde_json::{Value, json};

use crate::fields::{Lists, key_of, lists};
use crate::kinds::event;
use crate::route::Target;
use crate::status::{Cause, Failure};
use crate::store::State;
use crate::value::{drop_field, map, version};
use crate::write::{self, Ask, Written};

const CUSTOM: &str =
    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

/// Carries out a PATCH of the media type `kind`.
pub(crate) fn patch(
    state: &mut State,
    target: &Target,
    kind: &str,
    body: &[u8],
    ask: &Ask,
) -> Result<Written, Failure> {
    let custom = target.of.custom.is_some();
    match kind {
        "application/apply-patch+yaml" => {
            if ask.manager.is_empty() {
                let cause = Cause::required("fieldManager", "is required for apply patch");
                return Err(Failure::options("PatchOptions", &[cause]));
            }
            let text = String::from_utf8_lossy(body);
            let config: Value = serde_saphyr::from_str(&text)
                .map_err(|error| Failure::bad(format!("error decoding YAML: {error}")))?;
            write::apply(state, target, config, ask)
        }
        "application/merge-patch+json" => change(state, target, ask, body, |object, patch| {
            json_patch::merge(object, patch);
            Ok(())
        }),
        "application/strategic-merge-patch+json" if !custom => {
            change(state, target, ask, body, |object, patch| {
                strategic(object, patch, "");
                Ok(())
            })
        }
        "application/json-patch+json" => change(state, target, ask, body, |object, patch| {
            let patch: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|error| Failure::bad(format!("json: cannot unmarshal: {error}")))?;
            json_patch::patch(object, &patch).map_err(|_| {
                Failure::new(422, "Invalid", "the server rejected our request due to an error in our request")
                    .details(json!({}))
            })
        }),
        _ if custom => Err(Failure::media(CUSTOM)),
        _ => Err(Failure::new(415, "UnsupportedMediaType", "415: Unsupported Media Type").details(json!({}))),
    }
}

fn change(
    state: &mut State,
    target: &Target,
    ask: &Ask,
    body: &[u8],
    how: impl Fn(&mut Value, &Value) -> Result<(), Failure>,
) -> Result<Written, Failure> {
    let patch: Value = serde_json::from_slice(body)
        .map_err(|error| Failure::bad(format!("error decoding patch: {error}")))?;
    let old = write::find(state, target)?;
    let mut new = Value::clone(&old);
    if target.of.store() == "events" {
        new = event::shown(&target.of, new);
        new["apiVersion"] = json!(target.of.api_version());
    }
    how(&mut new, &patch)?;
    if version(&new) == version(&old) {
        drop_field(&mut new["metadata"], "resourceVersion");
    }
    let checked = write::fit(&target.of, &mut new);
    checked?;
    write::replace(state, target, &old, new, ask, false).map_err(|failure| {
        // What cannot be read after a patch is the patch's fault.
        if failure.code == 400 && failure.message.contains("cannot be handled as") && !ask.strict {
            let cause = Cause::invalid("patch", &json!(patch.to_string()), failure.message);
            return Failure::invalid_as("", "", "", "", &[cause]);
        }
        failure
    })
}

/// Strategic merge: lists with keys are merged, `$patch` says otherwise.
pub(crate) fn strategic(object: &mut Value, patch: &Value, field: &str) {
    match patch {
        Value::Object(changes) => {
            if changes.get("$patch").is_some_and(|it| it == "replace") {
                let mut changes = patch.clone();
                drop_field(&mut changes, "$patch");
                *object = changes;
                return;
            }
            let object = map(object);
            for (field, change) in changes {
                if let Some(of) = field.strip_prefix("$deleteFromPrimitiveList/") {
                    let gone = change.as_array().cloned().unwrap_or_default();
                    if let Some(items) = object.get_mut(of).and_then(Value::as_array_mut) {
                        items.retain(|item| !gone.contains(item));
                    }
                    continue;
                }
                if field.starts_with('$') {
                    continue;
                }
                if change.is_null() {
                    object.remove(field);
                    continue;
                }
                strategic(object.entry(field.clone()).or_insert(Value::Null), change, field);
            }
        }
        Value::Array(items) => {
            let how = lists(field, items, None);
            let replaced = items.iter().any(|it| it["$patch"] == "replace");
            match (how, object.as_array_mut()) {
                (Lists::Set, Some(into)) => {
                    for item in items {
                        if !into.contains(item) {
                            into.push(item.clone());
                        }
                    }
                }
                (Lists::Keyed(keys), Some(into)) if !replaced => {
                    for item in items {
                        let key = key_of(item, &keys);
                        let at = into.iter().position(|it| key_of(it, &keys) == key);
                        match at {
                            Some(at) if item["$patch"] == "delete" => {
                                into.remove(at);
                            }
                            Some(at) => strategic(&mut into[at], item, ""),
                            None if item["$patch"] == "delete" => {}
                            None => into.push(item.clone()),
                        }
                    }
                }
                _ => {
                    let plain = items.iter().filter(|it| it.get("$patch").is_none());
                    *object = plain.cloned().collect();
                }
            }
        }
        other => *object = other.clone(),
    }
}
