//! ReplicaSets: as many pods as they want.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{REPLICASETS, counters, create, get, is_over, is_ready, number, owned, owned_by, revise};
use crate::Server;
use crate::cluster::collector::remove;
use crate::cluster::note::{self, From, Note};
use crate::store::State;
use crate::value::{leaving, name, namespace, text};

pub(super) fn sync(server: &Arc<Server>, space: &str, called: &str) {
    let refused = server.store.write(|state| {
        let Some(set) = get(state, REPLICASETS, space, called) else { return false };
        let (leave, stay): (Vec<_>, Vec<_>) =
            owned(state, "pods", &set).into_iter().filter(|it| !is_over(it)).partition(|it| leaving(it));
        let wanted = usize::try_from(number(&set["spec"]["replicas"])).unwrap_or_default();
        let say = |state: &mut State, warning, reason, message: &str| {
            let from = From::ReplicaSets;
            note::write(state, &set, &Note { from, warning, reason, message, container: None });
        };
        let mut refused = false;
        for _ in stay.len()..wanted {
            match create(state, "pods", pod(&set)) {
                Ok(made) => {
                    say(state, false, "SuccessfulCreate", &format!("Created pod: {}", name(&made)));
                }
                Err(why) => {
                    say(state, true, "FailedCreate", &format!("Error creating: {why}"));
                    refused = true;
                    break;
                }
            }
        }
        // Those that serve stay the longest, and of them the oldest.
        let mut order = stay.clone();
        order.sort_by_key(|it| {
            (is_ready(it), std::cmp::Reverse(text(&it["metadata"]["creationTimestamp"]).to_owned()))
        });
        for pod in order.iter().take(stay.len().saturating_sub(wanted)) {
            remove(state, "pods", pod);
            say(state, false, "SuccessfulDelete", &format!("Deleted pod: {}", name(pod)));
        }
        // What was there before: the rest is told when it is seen.
        let count = |of: usize| i64::try_from(of).unwrap_or_default();
        let ready = count(stay.iter().filter(|it| is_ready(it)).count());
        revise(state, REPLICASETS, &set, |set| {
            let generation = set["metadata"]["generation"].clone();
            let status = &mut set["status"];
            status["replicas"] = json!(stay.len());
            let all = count(stay.len());
            counters(
                status,
                &[("fullyLabeledReplicas", all), ("readyReplicas", ready), ("availableReplicas", ready)],
            );
            status["terminatingReplicas"] = json!(leave.len());
            status["observedGeneration"] = generation;
        });
        refused
    });
    if refused {
        let (server, space, called) = (server.clone(), space.to_owned(), called.to_owned());
        tokio::spawn(async move {
            server.cluster.sleep(500).await;
            sync(&server, &space, &called);
        });
    }
}

fn pod(set: &Value) -> Value {
    let template = &set["spec"]["template"];
    let mut pod = json!({"metadata": template["metadata"], "spec": template["spec"]});
    if !pod["metadata"].is_object() {
        pod["metadata"] = json!({});
    }
    pod["metadata"]["generateName"] = json!(format!("{}-", name(set)));
    pod["metadata"]["namespace"] = json!(namespace(set));
    pod["metadata"]["ownerReferences"] = owned_by(set);
    pod
}
