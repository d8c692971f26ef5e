//! Finds a node for a pod, or says why there is none.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::note::{From, Note, note};
use super::{Word, rewrite, volumes};
use crate::Server;
use crate::select::has_all;
use crate::value::{default, leaving, list, map, name, namespace, now, quantity, text, uid};

enum Verdict {
    /// It fits this node.
    Node(String),
    /// It fits, once these claims have their volumes.
    After(Vec<String>),
    No(String),
}

/// Places a pod; none if it went before.
pub(crate) async fn place(
    server: &Arc<Server>,
    pod: &Arc<Value>,
    words: &mut mpsc::UnboundedReceiver<Word>,
) -> Option<Arc<Value>> {
    let mut told = String::new();
    loop {
        match judge(server, pod) {
            Verdict::Node(node) => {
                let placed = rewrite(server, "pods", pod, |pod| {
                    pod["spec"]["nodeName"] = json!(node);
                    crate::value::drop_field(&mut pod["status"], "nominatedNodeName");
                    condition(
                        pod,
                        json!({"type": "PodScheduled", "status": "True",
                        "lastProbeTime": null, "lastTransitionTime": now()}),
                    );
                })?;
                let message = format!("Successfully assigned {}/{} to {node}", namespace(pod), name(pod));
                note(
                    server,
                    pod,
                    &Note {
                        from: From::Scheduler,
                        warning: false,
                        reason: "Scheduled",
                        message: &message,
                        container: None,
                    },
                );
                return Some(placed);
            }
            Verdict::After(claims) => {
                rewrite(server, "pods", pod, |pod| {
                    pod["status"]["nominatedNodeName"] = json!("node1");
                });
                for claim in claims {
                    let claim = server
                        .store
                        .read(|state| state.get("persistentvolumeclaims", namespace(pod), &claim));
                    let Some(claim) = claim else { continue };
                    rewrite(server, "persistentvolumeclaims", &claim, |claim| {
                        let annotations =
                            map(&mut claim["metadata"]).entry("annotations").or_insert(json!({}));
                        default(annotations, "volume.kubernetes.io/selected-node", json!("node1"));
                    });
                }
            }
            Verdict::No(why) => {
                rewrite(server, "pods", pod, |pod| {
                    let generation = pod["metadata"]["generation"].clone();
                    condition(
                        pod,
                        json!({"type": "PodScheduled", "status": "False",
                        "observedGeneration": generation, "lastProbeTime": null,
                        "lastTransitionTime": now(), "reason": "Unschedulable", "message": why}),
                    );
                });
                if told != why {
                    note(
                        server,
                        pod,
                        &Note {
                            from: From::Scheduler,
                            warning: true,
                            reason: "FailedScheduling",
                            message: &why,
                            container: None,
                        },
                    );
                    told = why;
                }
            }
        }
        loop {
            match words.recv().await? {
                Word::Gone => return None,
                Word::Retry => break,
                Word::Changed(_) | Word::Steer(_) => {}
            }
        }
        // What else was said meanwhile is one look.
        while let Ok(word) = words.try_recv() {
            if matches!(word, Word::Gone) {
                return None;
            }
        }
    }
}

/// Sets a condition; the time stays if nothing else changed.
fn condition(pod: &mut Value, new: Value) {
    let conditions = map(&mut pod["status"]).entry("conditions").or_insert_with(|| json!([]));
    if conditions.is_null() {
        *conditions = json!([]);
    }
    let Some(conditions) = conditions.as_array_mut() else { return };
    match conditions.iter_mut().find(|it| it["type"] == new["type"]) {
        Some(is) => {
            let same = ["status", "reason", "message"].iter().all(|it| is[*it] == new[*it]);
            if !same {
                *is = new;
            }
        }
        None => conditions.push(new),
    }
}

fn judge(server: &Server, pod: &Value) -> Verdict {
    let (nodes, pods) = server.store.read(|state| (state.all("nodes", None), state.all("pods", None)));
    let count = nodes.len();
    let none = |why: String| Verdict::No(format!("0/{count} nodes are available: {why}"));
    let mut waiting = Vec::new();
    for claim in volumes::claims(pod) {
        let found = server.store.read(|state| state.get("persistentvolumeclaims", namespace(pod), claim));
        let Some(found) = found else {
            return none(format!("persistentvolumeclaim \"{claim}\" not found. not found"));
        };
        if leaving(&found) {
            return none(format!("persistentvolumeclaim \"{claim}\" is being deleted. not found"));
        }
        if found["status"]["phase"] != "Bound" {
            if !volumes::waits(server, &found) {
                return none("pod has unbound immediate PersistentVolumeClaims. not found".to_owned());
            }
            waiting.push(claim.to_owned());
        }
    }
    let wanted = |what: &str| need(pod, what);
    let mut reasons: Vec<(String, usize)> = Vec::new();
    let mut no = |why: &str| match reasons.iter_mut().find(|(known, _)| known == why) {
        Some((_, count)) => *count += 1,
        None => reasons.push((why.to_owned(), 1)),
    };
    for node in &nodes {
        let ready = list(&node["status"]["conditions"])
            .iter()
            .any(|it| it["type"] == "Ready" && it["status"] == "True");
        if !ready {
            no("node(s) had untolerated taint(s)");
            continue;
        }
        if node["spec"]["unschedulable"] == true {
            no("node(s) were unschedulable");
            continue;
        }
        let taints = list(&node["spec"]["taints"]);
        if taints.iter().any(|taint| !tolerates(pod, taint)) {
            no("node(s) had untolerated taint(s)");
            continue;
        }
        if !has_all(&node["metadata"]["labels"], &pod["spec"]["nodeSelector"]) {
            no("node(s) didn't match Pod's node affinity/selector");
            continue;
        }
        let here: Vec<&Arc<Value>> = pods
            .iter()
            .filter(|it| {
                it["spec"]["nodeName"] == node["metadata"]["name"]
                    && !matches!(text(&it["status"]["phase"]), "Succeeded" | "Failed")
                    && uid(it) != uid(pod)
            })
            .collect();
        let room = |what: &str| quantity(&node["status"]["allocatable"][what]).unwrap_or(f64::MAX);
        let lacks = |what: &str| {
            let used: f64 = here.iter().map(|it| need(it, what)).sum();
            wanted(what) > 0.0 && used + wanted(what) > room(what)
        };
        if lacks("cpu") {
            no("Insufficient cpu");
        } else if lacks("memory") {
            no("Insufficient memory");
        } else {
            return match waiting.is_empty() {
                true => Verdict::Node(name(node).to_owned()),
                false => Verdict::After(waiting),
            };
        }
    }
    let each: Vec<String> = reasons.iter().map(|(why, count)| format!("{count} {why}")).collect();
    none(format!(
        "{}. no new claims to deallocate, preemption: 0/{count} nodes are available: {count} \
         Preemption is not helpful for scheduling.",
        each.join(", "),
    ))
}

fn tolerates(pod: &Value, taint: &Value) -> bool {
    list(&pod["spec"]["tolerations"]).iter().any(|it| {
        let key = it.get("key").is_none_or(|key| *key == taint["key"]);
        let effect = it.get("effect").is_none_or(|effect| *effect == taint["effect"]);
        let value = it["operator"] == "Exists" || text(&it["value"]) == text(&taint["value"]);
        key && effect && value
    })
}

fn need(pod: &Value, what: &str) -> f64 {
    list(&pod["spec"]["containers"])
        .iter()
        .filter_map(|it| quantity(&it["resources"]["requests"][what]))
        .sum()
}
