//! Events: two groups, one store. They are kept in the form of the core group.

use serde_json::{Map, Value};

use crate::resource::Resource;
use crate::status::Cause;
use crate::value::{map, text};

/// The names of a field: `(core, events.k8s.io)`.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// The form of the core group.
pub(crate) fn to_core(of: &Resource, event: &mut Value) {
    if of.group == "events.k8s.io" {
        rename(event, &NAMES.map(|(core, new)| (new, core)));
        event["apiVersion"] = "v1".into();
    }
    for (field, empty) in [
        ("source", Value::Object(Map::new())),
        ("firstTimestamp", Value::Null),
        ("lastTimestamp", Value::Null),
        ("eventTime", Value::Null),
        ("reportingComponent", "".into()),
        ("reportingInstance", "".into()),
        ("involvedObject", Value::Object(Map::new())),
    ] {
        map(event).entry(field).or_insert(empty);
    }
}

/// The form that `of` shows.
pub(crate) fn shown(of: &Resource, mut event: Value) -> Value {
    if of.group == "events.k8s.io" {
        rename(&mut event, &NAMES);
        if event.get("apiVersion").is_some() {
            event["apiVersion"] = "events.k8s.io/v1".into();
        }
    }
    event
}

fn rename(event: &mut Value, names: &[(&str, &str)]) {
    let event = map(event);
    for (from, to) in names {
        if let Some(value) = event.remove(*from) {
            event.insert((*to).to_owned(), value);
        }
    }
}

/// What is wrong with it. Only those with an `eventTime` are looked at closely.
pub(crate) fn validate(event: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if !event["eventTime"].is_string() {
        return causes;
    }
    if text(&event["reportingComponent"]).is_empty() {
        causes.push(Cause::required("reportingController", ""));
    }
    if !matches!(text(&event["type"]), "Normal" | "Warning") {
        let why = format!("has invalid value: {}", text(&event["type"]));
        causes.push(Cause::invalid("type", &"".into(), why));
    }
    if text(&event["message"]).len() > 1024 {
        let why = "can have at most 1024 characters";
        causes.push(Cause::invalid("message", &"".into(), why));
    }
    causes
}
