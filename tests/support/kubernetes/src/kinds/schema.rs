//! Structural schemas of custom resources: defaults, unknown fields, validation,
//! and the plainest rules (`self == oldSelf`, `self.a <= self.b`).

use serde_json::Value;

use crate::status::Cause;
use crate::value::{list, text};

fn keeps_all(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

/// The schema of a field of an object; none for one that is unknown.
fn of_field<'a>(schema: &'a Value, field: &str) -> Option<&'a Value> {
    schema["properties"].get(field).or_else(|| match &schema["additionalProperties"] {
        Value::Object(_) => Some(&schema["additionalProperties"]),
        _ => None,
    })
}

/// Fills in defaults.
pub(crate) fn default_all(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(map) => {
            for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = schema.get("default")
                    && map.get(field).is_none_or(|it| it.is_null() && schema["nullable"] != true)
                {
                    map.insert(field.clone(), default.clone());
                }
            }
            for (field, value) in map {
                if let Some(schema) = of_field(schema, field) {
                    default_all(value, schema);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                default_all(item, &schema["items"]);
            }
        }
        _ => {}
    }
}

/// Removes what the schema does not know; returns where it was.
pub(crate) fn prune(object: &mut Value, schema: &Value) -> Vec<String> {
    let mut gone = Vec::new();
    if let Value::Object(map) = object {
        let top = ["apiVersion", "kind", "metadata"];
        map.retain(|field, value| {
            if top.contains(&field.as_str()) {
                return true;
            }
            keep(field, value, schema, "", &mut gone)
        });
    }
    gone
}

fn keep(field: &str, value: &mut Value, schema: &Value, at: &str, gone: &mut Vec<String>) -> bool {
    let path = if at.is_empty() { field.to_owned() } else { format!("{at}.{field}") };
    let any = schema["additionalProperties"] == true || keeps_all(schema);
    match of_field(schema, field) {
        Some(schema) => {
            walk(value, schema, &path, gone);
            true
        }
        None if any => true,
        None => {
            gone.push(path);
            false
        }
    }
}

fn walk(value: &mut Value, schema: &Value, at: &str, gone: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.retain(|field, value| keep(field, value, schema, at, gone)),
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                walk(item, &schema["items"], &format!("{at}[{index}]"), gone);
            }
        }
        _ => {}
    }
}

/// What is wrong with an object.
pub(crate) fn validate(object: &Value, old: Option<&Value>, schema: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    check(object, schema, "", &mut causes);
    if !causes.is_empty() {
        if has_rules(schema) {
            causes.push(Cause::invalid(
                "<nil>",
                &Value::Null,
                "some validation rules were not checked because the object was invalid; \
                 correct the existing errors to complete validation",
            ));
        }
        return causes;
    }
    rules(object, old, schema, "", &mut causes);
    causes
}

fn has_rules(schema: &Value) -> bool {
    schema.get("x-kubernetes-validations").is_some()
        || schema["properties"].as_object().into_iter().flatten().any(|(_, it)| has_rules(it))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check(value: &Value, schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    // A status is looked at on its own.
    let name = if at.starts_with("status.") { at.rsplit('.').next().unwrap_or_default() } else { at };
    let wanted = text(&schema["type"]);
    let is = kind_of(value);
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    let fits = wanted.is_empty()
        || wanted == is
        || (wanted == "number" && is == "integer")
        || (schema["x-kubernetes-int-or-string"] == true && matches!(is, "integer" | "string"));
    if !fits {
        causes.push(Cause::wrong_type(at, is, name, wanted));
        return;
    }
    if let Some(known) = schema["enum"].as_array()
        && !known.contains(value)
    {
        let known: Vec<&str> = known.iter().map(text).collect();
        causes.push(Cause::unsupported(at, value, &known));
    }
    if let Some(number) = value.as_f64() {
        if schema["minimum"].as_f64().is_some_and(|least| number < least) {
            let why = format!("{at} in body should be greater than or equal to {}", schema["minimum"]);
            causes.push(Cause::invalid(at, value, why));
        }
        if schema["maximum"].as_f64().is_some_and(|most| number > most) {
            let why = format!("{at} in body should be less than or equal to {}", schema["maximum"]);
            causes.push(Cause::invalid(at, value, why));
        }
    }
    if let Some(text) = value.as_str() {
        let length = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
        if schema["minLength"].as_u64().is_some_and(|least| length < least) {
            let why = format!("{at} in body should be at least {} chars long", schema["minLength"]);
            causes.push(Cause::invalid(at, value, why));
        }
        if schema["maxLength"].as_u64().is_some_and(|most| length > most) {
            let why = format!("{at} in body should be at most {} chars long", schema["maxLength"]);
            causes.push(Cause::invalid(at, value, why));
        }
    }
    let join = |field: &str| if at.is_empty() { field.to_owned() } else { format!("{at}.{field}") };
    match value {
        Value::Object(map) => {
            for field in list(&schema["required"]).iter().map(text) {
                if !map.contains_key(field) {
                    causes.push(Cause::required(join(field), ""));
                }
            }
            for (field, value) in map {
                if let Some(schema) = of_field(schema, field) {
                    check(value, schema, &join(field), causes);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check(item, &schema["items"], &format!("{at}[{index}]"), causes);
            }
        }
        _ => {}
    }
}

fn rules(value: &Value, old: Option<&Value>, schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    for rule in list(&schema["x-kubernetes-validations"]) {
        if !holds(text(&rule["rule"]), value, old) {
            let message = text(&rule["message"]);
            causes.push(match value {
                Value::Object(_) => Cause::broken(at, message),
                value => Cause::invalid(at, value, message),
            });
        }
    }
    for (field, value) in value.as_object().into_iter().flatten() {
        if let Some(schema) = of_field(schema, field) {
            let at = if at.is_empty() { field.clone() } else { format!("{at}.{field}") };
            rules(value, old.and_then(|it| it.get(field)), schema, &at, causes);
        }
    }
}

/// Whether a rule holds. What is not understood holds.
fn holds(rule: &str, value: &Value, old: Option<&Value>) -> bool {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let [left, operator, right] = words.as_slice() else { return true };
    let find = |word: &str| -> Option<Value> {
        let (root, path) = match word.split_once('.') {
            Some((root, path)) => (root, Some(path)),
            None => (word, None),
        };
        let from = match root {
            "self" => value,
            "oldSelf" => old?,
            _ => return None,
        };
        let found = path.map_or(Some(from), |path| path.split('.').try_fold(from, |at, it| at.get(it)));
        found.cloned()
    };
    let (Some(left), Some(right)) = (find(left), find(right)) else { return true };
    let order = left.as_f64().zip(right.as_f64()).and_then(|(a, b)| a.partial_cmp(&b));
    match *operator {
        "==" => left == right,
        "!=" => left != right,
        "<=" => order.is_none_or(std::cmp::Ordering::is_le),
        "<" => order.is_none_or(std::cmp::Ordering::is_lt),
        ">=" => order.is_none_or(std::cmp::Ordering::is_ge),
        ">" => order.is_none_or(std::cmp::Ordering::is_gt),
        _ => true,
    }
}
