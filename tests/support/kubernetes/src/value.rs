//! Small things that are done to objects.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

pub(crate) fn namespace(object: &Value) -> &str {
    text(&object["metadata"]["namespace"])
}

pub(crate) fn uid(object: &Value) -> &str {
    text(&object["metadata"]["uid"])
}

pub(crate) fn version(object: &Value) -> &str {
    text(&object["metadata"]["resourceVersion"])
}

pub(crate) fn leaving(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(crate) fn map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object"),
    }
}

/// Removes a field, where the way to it exists.
pub(crate) fn drop_field(value: &mut Value, field: &str) {
    if let Value::Object(map) = value {
        map.remove(field);
    }
}

/// Sets a field unless it is there.
pub(crate) fn default(value: &mut Value, field: &str, to: Value) {
    let map = map(value);
    if map.get(field).is_none_or(Value::is_null) {
        map.insert(field.to_owned(), to);
    }
}

pub(crate) fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// The time, as the cluster's machine has it.
#[expect(clippy::disallowed_methods, reason = "the double has a clock of its own")]
pub(crate) fn utc() -> DateTime<Utc> {
    Utc::now()
}

pub(crate) fn now() -> String {
    stamp(utc())
}

/// The time in microseconds, as leases and scheduler events have it.
pub(crate) fn micro_now() -> String {
    utc().to_rfc3339_opts(SecondsFormat::Micros, true)
}

pub(crate) fn nano_now() -> String {
    utc().to_rfc3339_opts(SecondsFormat::Nanos, true)
}

pub(crate) fn in_future(by: Duration) -> String {
    stamp(utc() + by)
}

/// Letters for names that are generated.
pub(crate) fn five() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])).collect()
}

pub(crate) fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A quantity's worth; none if it is no quantity.
pub(crate) fn quantity(of: &Value) -> Option<f64> {
    let text = match of {
        Value::Number(number) => return number.as_f64(),
        Value::String(text) => text.as_str(),
        _ => return None,
    };
    let cut =
        text.find(|letter: char| !(letter.is_ascii_digit() || ".+-".contains(letter))).unwrap_or(text.len());
    let (number, unit) = text.split_at(cut);
    let factor = match unit {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "Pi" => 1024.0 * 1024.0 * 1024.0 * 1024.0 * 1024.0,
        power if power.starts_with(['e', 'E']) => 10f64.powi(power[1..].parse().ok()?),
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}
