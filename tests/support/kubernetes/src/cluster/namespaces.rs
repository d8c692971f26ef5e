//! What a namespace is given when it comes, and how it goes.

use std::sync::Arc;

use serde_json::{Value, json};

use super::rewrite;
use crate::Server;
use crate::delete::{Options, delete};
use crate::resource::{Resource, built_in, of_definition};
use crate::route::Target;
use crate::store::{Change, State};
use crate::value::{leaving, name, namespace, new_uid, now};

pub(crate) fn act(server: &Arc<Server>, change: &Change) {
    let Some(space) = &change.new else { return };
    let was_leaving = change.old.as_ref().is_some_and(|it| leaving(it));
    if change.old.is_none() {
        let (server, space) = (server.clone(), name(space).to_owned());
        tokio::spawn(async move {
            server.cluster.sleep(300).await;
            server.store.write(|state| {
                if state.get("namespaces", "", &space).is_some_and(|it| !leaving(&it)) {
                    furnish(state, &space);
                }
            });
        });
    } else if leaving(space) && !was_leaving {
        tokio::spawn(go(server.clone(), space.clone()));
    }
}

/// The service account and the certificates of a new namespace.
pub(crate) fn furnish(state: &mut State, space: &str) {
    state.put(
        "serviceaccounts",
        json!({"kind": "ServiceAccount", "apiVersion": "v1",
        "metadata": {"name": "default", "namespace": space, "uid": new_uid(),
            "creationTimestamp": now()}}),
    );
    state.put(
        "configmaps",
        json!({"kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": "kube-root-ca.crt", "namespace": space, "uid": new_uid(),
            "creationTimestamp": now()}, "data": {"ca.crt": ""}}),
    );
}

async fn go(server: Arc<Server>, space: Arc<Value>) {
    let name = name(&space).to_owned();
    server.cluster.sleep(1000).await;
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": status, "lastTransitionTime": now(), "reason": reason,
            "message": message})
    };
    rewrite(&server, "namespaces", &space, |space| {
        space["status"]["conditions"] = json!([
            condition(
                "NamespaceDeletionDiscoveryFailure",
                "False",
                "ResourcesDiscovered",
                "All resources successfully discovered"
            ),
            condition(
                "NamespaceDeletionContentFailure",
                "False",
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization"
            ),
        ]);
    });
    let mut news = server.store.news();
    loop {
        let left = server.store.write(|state| {
            let mut left = 0;
            for of in kinds(state) {
                for object in state.all(&of.store(), Some(&name)) {
                    left += 1;
                    if leaving(&object) {
                        continue;
                    }
                    let target = Target {
                        of: of.clone(),
                        space: Some(name.clone()),
                        name: crate::value::name(&object).to_owned(),
                        sub: String::new(),
                        rest: String::new(),
                        verb: "delete",
                    };
                    let _ = delete(state, &target, &Options::default());
                }
            }
            left
        });
        if left == 0 {
            break;
        }
        if news.changed().await.is_err() {
            return;
        }
        server.cluster.sleep(200).await;
    }
    server.store.write(|state| {
        state.remove("namespaces", namespace(&space), &name);
    });
}

/// The kinds with namespaces.
fn kinds(state: &State) -> Vec<Resource> {
    let definitions = state.all("customresourcedefinitions.apiextensions.k8s.io", None);
    let mut all = built_in();
    all.extend(definitions.iter().flat_map(|it| of_definition(it)));
    all.retain(|it| it.namespaced && it.group != "events.k8s.io");
    all
}
