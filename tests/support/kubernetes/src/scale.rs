//! The subresource `scale`: how many there are of something, and how many there should be.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::http::Request;
use crate::route::Target;
use crate::status::Failure;
use crate::store::State;
use crate::value::{name, namespace, text, uid, version};
use crate::write::{self, Ask};

/// Answers a request for it.
pub(crate) fn answer(
    state: &mut State,
    target: &Target,
    request: &Request,
    ask: &Ask,
) -> Result<Value, Failure> {
    let old = write::find(state, target)?;
    if target.verb == "get" {
        return Ok(shown(&old));
    }
    let sent: Value = serde_json::from_slice(&request.body)
        .map_err(|error| Failure::bad(format!("error decoding patch: {error}")))?;
    let mut scale = shown(&old);
    if target.verb == "update" {
        scale = sent;
    } else {
        json_patch::merge(&mut scale, &sent);
    }
    let mut new = Value::clone(&old);
    new["spec"]["replicas"] = json!(scale["spec"]["replicas"].as_i64().unwrap_or_default());
    if let Some(sent) = scale["metadata"]["resourceVersion"].as_str() {
        new["metadata"]["resourceVersion"] = json!(sent);
    }
    let mut whole = target.clone();
    whole.sub.clear();
    Ok(shown(&write::replace(state, &whole, &old, new, ask, false)?.object))
}

fn shown(of: &Value) -> Value {
    let mut selector = String::new();
    for (key, value) in of["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten() {
        let comma = if selector.is_empty() { "" } else { "," };
        let _ = write!(selector, "{comma}{key}={}", text(value));
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": name(of), "namespace": namespace(of), "uid": uid(of),
            "resourceVersion": version(of), "creationTimestamp": of["metadata"]["creationTimestamp"]},
        "spec": {"replicas": of["spec"]["replicas"]},
        "status": {"replicas": of["status"]["replicas"].as_i64().unwrap_or_default(), "selector": selector}})
}
