//! CustomResourceDefinitions: accepted, established, and taken down with their objects.

use std::sync::Arc;

use serde_json::{Value, json};

use super::rewrite;
use crate::Server;
use crate::delete::{Options, delete};
use crate::resource::of_definition;
use crate::route::Target;
use crate::store::Change;
use crate::value::{leaving, name, namespace, now};

const STORE: &str = "customresourcedefinitions.apiextensions.k8s.io";

pub(crate) fn act(server: &Arc<Server>, change: &Change) {
    let Some(definition) = change.new.clone() else { return };
    let server = server.clone();
    if change.old.is_none() {
        tokio::spawn(async move { establish(&server, &definition).await });
    } else if leaving(&definition) && !change.old.as_ref().is_some_and(|it| leaving(it)) {
        tokio::spawn(async move { take_down(&server, &definition).await });
    }
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": status, "lastTransitionTime": now(), "reason": reason,
        "message": message})
}

async fn establish(server: &Server, definition: &Value) {
    rewrite(server, STORE, definition, |definition| {
        definition["status"]["acceptedNames"] = definition["spec"]["names"].clone();
        definition["status"]["conditions"] = json!([
            condition("NamesAccepted", "True", "NoConflicts", "no conflicts found"),
            condition("Established", "False", "Installing", "the initial names have been accepted"),
        ]);
    });
    server.cluster.sleep(30).await;
    rewrite(server, STORE, definition, |definition| {
        if let Some(established) = definition["status"]["conditions"].get_mut(1) {
            established["status"] = json!("True");
            established["reason"] = json!("InitialNamesAccepted");
        }
    });
}

async fn take_down(server: &Server, definition: &Value) {
    server.cluster.sleep(200).await;
    rewrite(server, STORE, definition, |definition| {
        if let Some(last) = definition["status"]["conditions"].as_array_mut().and_then(|it| it.last_mut()) {
            last["reason"] = json!("InstanceDeletionInProgress");
            last["message"] = json!("CustomResource deletion is in progress");
        }
    });
    let mut news = server.store.news();
    let Some(of) = of_definition(definition).into_iter().next() else { return };
    loop {
        let left = server.store.write(|state| {
            let objects = state.all(&of.store(), None);
            for object in &objects {
                let target = Target {
                    of: of.clone(),
                    space: Some(namespace(object).to_owned()).filter(|it| !it.is_empty()),
                    name: name(object).to_owned(),
                    sub: String::new(),
                    rest: String::new(),
                    verb: "delete",
                };
                let _ = delete(state, &target, &Options::default());
            }
            objects.len()
        });
        if left == 0 {
            break;
        }
        if news.changed().await.is_err() {
            return;
        }
    }
    server.store.write(|state| state.remove(STORE, "", name(definition)));
    // Who watched its objects is let go.
    server.faults.cut_watches(&of.store(), true);
}
