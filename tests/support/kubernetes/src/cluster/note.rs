//! Events about objects. The same one again counts on; the scheduler's have a series.

use serde_json::{Value, json};

use crate::Server;
use crate::store::State;
use crate::value::{micro_now, name, namespace, new_uid, now, uid, version};

/// Who tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Kubelet,
    Scheduler,
    Volumes,
    Growth,
    Deployments,
    ReplicaSets,
}

/// What is told of an object.
pub(crate) struct Note<'a> {
    pub from: From,
    pub warning: bool,
    pub reason: &'a str,
    pub message: &'a str,
    /// Of a pod: the container.
    pub container: Option<&'a str>,
}

/// Tells it.
pub(crate) fn note(server: &Server, of: &Value, it: &Note<'_>) {
    server.store.write(|state| write(state, of, it));
}

pub(crate) fn write(state: &mut State, of: &Value, it: &Note<'_>) {
    let space = namespace(of);
    // Nothing is told in a namespace that goes.
    if state.get("namespaces", "", space).is_none_or(|it| crate::value::leaving(&it)) {
        return;
    }
    let kind = if it.warning { "Warning" } else { "Normal" };
    let path = it.container.map(|name| format!("spec.containers{{{name}}}"));
    let known = state.named("events", space, &format!("{}.", name(of))).into_iter().find(|event| {
        event["involvedObject"]["uid"] == uid(of)
            && event["reason"] == it.reason
            && event["message"] == it.message
            && event["involvedObject"].get("fieldPath").and_then(Value::as_str) == path.as_deref()
    });
    if let Some(known) = known {
        let mut event = Value::clone(&known);
        if it.from == From::Scheduler {
            let count = event["series"]["count"].as_u64().unwrap_or(1) + 1;
            event["series"] = json!({"count": count, "lastObservedTime": micro_now()});
        } else {
            event["count"] = json!(event["count"].as_u64().unwrap_or(1) + 1);
            event["lastTimestamp"] = json!(now());
        }
        state.put("events", event);
        return;
    }
    let mut about = json!({"kind": of["kind"], "namespace": space, "name": name(of),
        "uid": uid(of), "apiVersion": of["apiVersion"], "resourceVersion": version(of)});
    if let Some(path) = path {
        about["fieldPath"] = json!(path);
    }
    let event_name = format!("{}.{:016x}", name(of), rand::random::<u64>());
    let mut event = json!({"kind": "Event", "apiVersion": "v1",
        "metadata": {"name": event_name, "namespace": space, "uid": new_uid(),
            "creationTimestamp": now()},
        "involvedObject": about, "reason": it.reason, "message": it.message, "type": kind});
    let (component, host) = match it.from {
        From::Scheduler => ("default-scheduler", "default-scheduler-host"),
        From::Kubelet => ("kubelet", "node1"),
        From::Volumes => ("persistentvolume-controller", ""),
        From::Growth => ("volume_expand", ""),
        From::Deployments => ("deployment-controller", ""),
        From::ReplicaSets => ("replicaset-controller", ""),
    };
    event["reportingComponent"] = json!(component);
    event["reportingInstance"] = json!(host);
    if it.from == From::Scheduler {
        event["eventTime"] = json!(micro_now());
        event["action"] = json!(if it.warning { "Scheduling" } else { "Binding" });
        event["source"] = json!({});
        event["firstTimestamp"] = Value::Null;
        event["lastTimestamp"] = Value::Null;
    } else {
        event["source"] = json!({"component": component});
        if !host.is_empty() {
            event["source"]["host"] = json!(host);
        }
        event["firstTimestamp"] = json!(now());
        event["lastTimestamp"] = json!(now());
        event["count"] = json!(1);
        event["eventTime"] = Value::Null;
    }
    state.put("events", event);
}
