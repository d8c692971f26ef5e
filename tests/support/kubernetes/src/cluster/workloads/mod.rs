//! The controllers behind Deployments and Services. Each acts on what is there
//! when a change is seen, one change after the other, so that what is told of them
//! comes in the same order every time.

mod deployments;
mod replicasets;
mod slices;

use std::sync::Arc;

use serde_json::{Value, json};

use super::collector::kind_of;
use crate::Server;
use crate::route::Target;
use crate::store::{Change, State};
use crate::value::{leaving, list, map, name, namespace, text, uid};
use crate::write::{self, Ask};

pub(crate) const DEPLOYMENTS: &str = "deployments.apps";
pub(crate) const REPLICASETS: &str = "replicasets.apps";

pub(crate) fn act(server: &Arc<Server>, change: &Change) {
    let of = &change.shown;
    match change.store.as_str() {
        DEPLOYMENTS => deployments::act(server, of, change.new.is_none()),
        REPLICASETS => {
            replicasets::sync(server, namespace(of), name(of));
            if let Some(owner) = owner(of, "Deployment") {
                deployments::sync(server, namespace(of), owner);
            }
        }
        "pods" => {
            if let Some(owner) = owner(of, "ReplicaSet") {
                replicasets::sync(server, namespace(of), owner);
            }
            slices::sync(server, namespace(of));
        }
        "services" => slices::sync(server, namespace(of)),
        _ => {}
    }
}

/// The name of what an object is controlled by, if it is of that kind.
fn owner<'a>(of: &'a Value, kind: &str) -> Option<&'a str> {
    list(&of["metadata"]["ownerReferences"])
        .iter()
        .find(|it| it["controller"] == true && it["kind"] == kind)
        .map(|it| text(&it["name"]))
}

/// The reference of what `owner` makes.
fn owned_by(owner: &Value) -> Value {
    json!([{"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": name(owner),
        "uid": uid(owner), "controller": true, "blockOwnerDeletion": true}])
}

/// Those of its objects that begin with its name.
fn owned(state: &State, store: &str, owner: &Value) -> Vec<Arc<Value>> {
    let mut all = state.named(store, namespace(owner), &format!("{}-", name(owner)));
    all.retain(|it| list(&it["metadata"]["ownerReferences"]).iter().any(|it| it["uid"] == uid(owner)));
    all
}

/// An object that is not about to go.
fn get(state: &State, store: &str, space: &str, name: &str) -> Option<Arc<Value>> {
    state.get(store, space, name).filter(|it| !leaving(it))
}

/// Makes an object, as a client would; why not, if it is refused.
fn create(state: &mut State, store: &str, object: Value) -> Result<Arc<Value>, String> {
    let Some(of) = kind_of(state, store) else { return Err("there is no such kind".to_owned()) };
    let target = Target {
        of,
        space: Some(namespace(&object).to_owned()),
        name: name(&object).to_owned(),
        sub: String::new(),
        rest: String::new(),
        verb: "create",
    };
    let manager = "kube-controller-manager".to_owned();
    let ask = Ask { manager, dry: false, force: false, strict: false };
    let made = write::create(state, &target, object, &ask, false).map_err(|it| it.message)?;
    Ok(Arc::new(made.object))
}

/// Changes an object; without a difference it stays as it is.
fn revise(state: &mut State, store: &str, of: &Arc<Value>, change: impl FnOnce(&mut Value)) -> Arc<Value> {
    let mut new = Value::clone(of);
    change(&mut new);
    if new == **of {
        return of.clone();
    }
    if new["spec"] != of["spec"] {
        new["metadata"]["generation"] = json!(new["metadata"]["generation"].as_i64().unwrap_or_default() + 1);
    }
    state.put(store, new)
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

/// The counters of a status; those that are zero are left out.
fn counters(status: &mut Value, counts: &[(&str, i64)]) {
    for (field, count) in counts {
        if *count > 0 {
            status[*field] = json!(count);
        } else {
            map(status).remove(*field);
        }
    }
}

fn is_ready(pod: &Value) -> bool {
    list(&pod["status"]["conditions"]).iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
}

/// Whether a pod has ended for good.
fn is_over(pod: &Value) -> bool {
    matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed")
}
