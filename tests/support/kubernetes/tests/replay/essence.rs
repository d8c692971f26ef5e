//! What of an object is compared: what a client decides by.

use serde_json::{Map, Value, json};

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn condition(of: &Value) -> String {
    let status = of["status"].as_str().unwrap();
    match of["reason"].as_str() {
        Some(reason) if !reason.is_empty() => format!("{status}:{reason}"),
        _ => status.to_owned(),
    }
}

fn state(of: &Value) -> String {
    let state = &of["state"];
    if let Some(waiting) = state.get("waiting") {
        return format!("waiting:{}", waiting["reason"].as_str().unwrap_or_default());
    }
    if state.get("running").is_some() {
        return "running".to_owned();
    }
    match state.get("terminated") {
        Some(ended) => {
            format!("terminated:{}:{}", ended["exitCode"], ended["reason"].as_str().unwrap_or_default())
        }
        None => String::new(),
    }
}

fn conditions(status: &Value, only: &[&str]) -> Value {
    let found = list(&status["conditions"])
        .iter()
        .filter(|it| only.is_empty() || only.contains(&it["type"].as_str().unwrap()));
    found.map(|it| (it["type"].as_str().unwrap().to_owned(), json!(condition(it)))).collect()
}

pub fn of(object: &Value) -> Value {
    let kind = object["kind"].as_str().unwrap_or_default();
    let meta = &object["metadata"];
    let status = &object["status"];
    if kind == "Event" {
        return event(object);
    }
    let mut it = Map::new();
    if !kind.is_empty() {
        it.insert("kind".to_owned(), json!(kind));
    }
    if meta.get("generateName").is_none() && meta.get("name").is_some() {
        it.insert("name".to_owned(), meta["name"].clone());
    }
    for field in ["labels", "finalizers", "generation", "deletionGracePeriodSeconds"] {
        if let Some(value) = meta.get(field) {
            it.insert(field.to_owned(), value.clone());
        }
    }
    if let Some(annotations) = meta["annotations"].as_object()
        && !matches!(kind, "ConfigMap" | "CustomResourceDefinition")
    {
        let mut keys: Vec<&String> = annotations.keys().filter(|it| !it.starts_with("double/")).collect();
        keys.sort();
        if !keys.is_empty() {
            it.insert("annotations".to_owned(), json!(keys));
        }
    }
    let owners: Vec<&Value> = list(&meta["ownerReferences"]).iter().map(|it| &it["name"]).collect();
    if !owners.is_empty() {
        it.insert("owners".to_owned(), json!(owners));
    }
    match kind {
        "Pod" => {
            it.insert("phase".to_owned(), status["phase"].clone());
            if let Some(reason) = status["reason"].as_str() {
                it.insert("reason".to_owned(), json!(reason));
            }
            it.insert("node".to_owned(), json!(object["spec"]["nodeName"].is_string()));
            it.insert("ip".to_owned(), json!(status["podIP"].is_string()));
            let only = ["PodScheduled", "Ready", "Initialized", "DisruptionTarget"];
            it.insert("conditions".to_owned(), conditions(status, &only));
            let containers: Map<String, Value> = list(&status["initContainerStatuses"])
                .iter()
                .chain(list(&status["containerStatuses"]))
                .map(|it| {
                    let last = it["lastState"].as_object().is_some_and(|it| !it.is_empty());
                    let all = json!([state(it), it["ready"], it["restartCount"], last]);
                    (it["name"].as_str().unwrap().to_owned(), all)
                })
                .collect();
            it.insert("containers".to_owned(), Value::Object(containers));
        }
        "PersistentVolumeClaim" => {
            let spec = &object["spec"];
            it.insert("phase".to_owned(), status["phase"].clone());
            it.insert("volume".to_owned(), json!(spec["volumeName"].is_string()));
            it.insert("asked".to_owned(), spec["resources"]["requests"]["storage"].clone());
            it.insert("has".to_owned(), status["capacity"]["storage"].clone());
            it.insert("storageClass".to_owned(), spec["storageClassName"].clone());
        }
        "Namespace" => {
            it.insert("phase".to_owned(), status["phase"].clone());
        }
        "Lease" => {
            it.insert("spec".to_owned(), object["spec"].clone());
        }
        "ConfigMap" => {
            let mut data = object["data"].as_object().cloned().unwrap_or_default();
            data.remove("ca.crt");
            it.insert("data".to_owned(), Value::Object(data));
        }
        "Deployment" | "ReplicaSet" => {
            let mut counts = status.clone();
            let conditions = conditions(status, &[]);
            if let Some(counts) = counts.as_object_mut() {
                counts.remove("conditions");
            }
            it.insert("replicas".to_owned(), object["spec"]["replicas"].clone());
            it.insert(
                "image".to_owned(),
                object["spec"]["template"]["spec"]["containers"][0]["image"].clone(),
            );
            it.insert("conditions".to_owned(), conditions);
            it.insert("status".to_owned(), counts);
        }
        "EndpointSlice" => {
            it.remove("generation");
            let mut endpoints: Vec<Value> = list(&object["endpoints"])
                .iter()
                .map(|it| &it["conditions"])
                .map(|it| json!([it["ready"], it["serving"], it["terminating"]]))
                .collect();
            endpoints.sort_by_key(Value::to_string);
            let none = object["endpoints"].is_null();
            it.insert("endpoints".to_owned(), if none { Value::Null } else { json!(endpoints) });
        }
        "CustomResourceDefinition" => {
            it.insert("conditions".to_owned(), conditions(status, &[]));
        }
        "Widget" => {
            let mut status = status.as_object().cloned().unwrap_or_default();
            status.remove("conditions");
            it.insert("spec".to_owned(), object["spec"].clone());
            it.insert("status".to_owned(), Value::Object(status));
        }
        "ResourceQuota" | "SelfSubjectAccessReview" => {
            it.insert("status".to_owned(), status.clone());
        }
        _ => {}
    }
    Value::Object(it)
}

fn event(of: &Value) -> Value {
    if of.get("involvedObject").is_none() {
        return json!({"kind": "Event", "type": of["type"], "reason": of["reason"],
            "about": of["regarding"]["name"], "note": of["note"],
            "controller": of["reportingController"]});
    }
    // The last letters of a ReplicaSet's pods are made up.
    let mut about = of["involvedObject"]["name"].clone();
    if of["involvedObject"]["kind"] == "Pod" {
        let parts: Vec<&str> = about.as_str().unwrap().split('-').collect();
        if let [.., hash, last] = parts[..]
            && hash.len() > 7
            && last.len() == 5
        {
            about = json!(format!("{}-*", about.as_str().unwrap().rsplit_once('-').unwrap().0));
        }
    }
    let component = match of["source"]["component"].as_str() {
        Some(component) => json!(component),
        None => of["reportingComponent"].clone(),
    };
    json!({"kind": "Event", "type": of["type"], "reason": of["reason"],
        "about": about, "path": of["involvedObject"]["fieldPath"],
        "message": of["message"].as_str().unwrap_or_default().trim(), "component": component,
        "eventTime": of["eventTime"].is_string()})
}
