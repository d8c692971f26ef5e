//! A template's strategic merge patch, laid over the pod here, so that what is
//! applied is the whole pod and no second request is needed.
//!
//! As the API server does it: maps are merged, `null` removes, lists of things
//! with a name are merged by it, other lists are replaced; `$patch: delete`
//! and `$patch: replace` mean what they mean there.

use serde_json::{Map, Value};

/// The lists of a pod that are merged item by item, and by which member.
const KEYS: &[(&str, &str)] = &[
    ("containers", "name"),
    ("initContainers", "name"),
    ("volumes", "name"),
    ("imagePullSecrets", "name"),
    ("env", "name"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("ports", "containerPort"),
    ("hostAliases", "ip"),
    ("topologySpreadConstraints", "topologyKey"),
    ("resourceClaims", "name"),
    ("schedulingGates", "name"),
];

const DIRECTIVE: &str = "$patch";

/// Lays `patch` over `target`.
///
/// # Errors
/// In words, with the path of what is wrong.
pub(crate) fn lay(target: &mut Value, patch: &Value) -> Result<(), String> {
    let Value::Object(patch) = patch else { return Err("the patch must be an object".to_owned()) };
    let Value::Object(target) = target else { return Err("there is nothing to patch".to_owned()) };
    map(target, patch, "")
}

fn map(target: &mut Map<String, Value>, patch: &Map<String, Value>, at: &str) -> Result<(), String> {
    match directive(patch, at)? {
        Some("replace") => target.clear(),
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        _ => {}
    }
    for (key, value) in patch.iter().filter(|(key, _)| *key != DIRECTIVE) {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        if key.starts_with('$') {
            return Err(format!("{path}: of the directives only $patch is known"));
        }
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(value) => {
                let there = target.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
                if !there.is_object() {
                    *there = Value::Object(Map::new());
                }
                if let Value::Object(there) = there {
                    map(there, value, &path)?;
                }
            }
            Value::Array(items) => {
                let merged = match KEYS.iter().find(|(name, _)| name == key) {
                    Some((_, by)) => list(target.get(key), items, by, &path)?,
                    None => items.clone(),
                };
                target.insert(key.clone(), Value::Array(merged));
            }
            plain => {
                target.insert(key.clone(), plain.clone());
            }
        }
    }
    Ok(())
}

fn list(there: Option<&Value>, patch: &[Value], by: &str, at: &str) -> Result<Vec<Value>, String> {
    let mut merged = there.and_then(Value::as_array).cloned().unwrap_or_default();
    for (i, item) in patch.iter().enumerate() {
        let path = format!("{at}[{i}]");
        let Value::Object(item) = item else { return Err(format!("{path} must be an object")) };
        let directive = directive(item, &path)?;
        // A list is replaced by an item that says so and nothing else.
        if directive == Some("replace") && item.len() == 1 {
            merged.clear();
            continue;
        }
        let Some(name) = item.get(by) else {
            return Err(format!("{path} needs {by:?}, by which it is merged"));
        };
        let found = merged.iter().position(|it| it.get(by) == Some(name));
        match (found, directive) {
            (Some(found), Some("delete")) => {
                merged.remove(found);
            }
            (None, Some("delete")) => {}
            (Some(found), _) => {
                if let Value::Object(there) = &mut merged[found] {
                    map(there, item, &path)?;
                }
            }
            (None, _) => {
                let mut new = Map::new();
                map(&mut new, item, &path)?;
                merged.push(Value::Object(new));
            }
        }
    }
    Ok(merged)
}

fn directive<'a>(patch: &'a Map<String, Value>, at: &str) -> Result<Option<&'a str>, String> {
    match patch.get(DIRECTIVE).map(Value::as_str) {
        None => Ok(None),
        Some(Some(word @ ("merge" | "replace" | "delete"))) => Ok(Some(word)),
        Some(_) => Err(format!("{at}.$patch must be merge, replace or delete")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(target: Value, patch: Value, wanted: Value) {
        let mut target = target;
        lay(&mut target, &patch).unwrap();
        assert_eq!(target, wanted);
    }

    #[test]
    fn maps_merge_and_null_removes() {
        check(
            json!({"a": 1, "b": {"c": 2, "d": 3}, "e": 4}),
            json!({"b": {"c": null, "x": 5}, "e": null, "f": {"g": {"h": null, "i": 1}}}),
            json!({"a": 1, "b": {"d": 3, "x": 5}, "f": {"g": {"i": 1}}}),
        );
    }

    #[test]
    fn lists_merge_by_their_name() {
        check(
            json!({"containers": [{"name": "main", "image": "a", "env": [{"name": "A", "value": "1"}]}]}),
            json!({"containers": [
                {"name": "main", "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}]},
                {"name": "side", "image": "b"},
            ]}),
            json!({"containers": [
                {"name": "main", "image": "a", "env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}]},
                {"name": "side", "image": "b"},
            ]}),
        );
    }

    #[test]
    fn other_lists_are_replaced() {
        check(
            json!({"tolerations": [{"key": "a"}], "args": ["x", "y"]}),
            json!({"tolerations": [{"key": "b"}], "args": ["z"]}),
            json!({"tolerations": [{"key": "b"}], "args": ["z"]}),
        );
    }

    #[test]
    fn directives() {
        check(
            json!({"volumes": [{"name": "a"}, {"name": "b"}], "m": {"x": 1, "y": 2}}),
            json!({"volumes": [{"name": "a", "$patch": "delete"}], "m": {"$patch": "replace", "z": 3}}),
            json!({"volumes": [{"name": "b"}], "m": {"z": 3}}),
        );
        check(
            json!({"env": [{"name": "a"}, {"name": "b"}]}),
            json!({"env": [{"$patch": "replace"}, {"name": "c"}]}),
            json!({"env": [{"name": "c"}]}),
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |patch: Value| lay(&mut json!({"containers": []}), &patch).unwrap_err();
        assert_eq!(wrong(json!([])), "the patch must be an object");
        assert_eq!(
            wrong(json!({"containers": [{"image": "x"}]})),
            "containers[0] needs \"name\", by which it is merged"
        );
        assert_eq!(wrong(json!({"a": {"$patch": "burn"}})), "a.$patch must be merge, replace or delete");
        assert_eq!(
            wrong(json!({"a": {"$setElementOrder/b": []}})),
            "a.$setElementOrder/b: of the directives only $patch is known"
        );
    }
}
