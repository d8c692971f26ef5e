//! Deployments: a ReplicaSet for each template, and the way from one to the next.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{DEPLOYMENTS, REPLICASETS, counters, create, get, number, owned, owned_by, revise};
use crate::Server;
use crate::cluster::note::{self, From, Note};
use crate::store::State;
use crate::value::{list, map, name, namespace, now, text, uid};

const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";

pub(super) fn act(server: &Arc<Server>, of: &Value, gone: bool) {
    if gone {
        server.cluster.progress().remove(uid(of));
    }
    sync(server, namespace(of), name(of));
}

/// One step of a roll-out; every change that it makes leads to the next.
pub(super) fn sync(server: &Arc<Server>, space: &str, called: &str) {
    let progressed = server.store.write(|state| {
        let of = get(state, DEPLOYMENTS, space, called)?;
        let known = server.cluster.progress().get(uid(&of)).copied();
        let limit = Duration::from_secs(of["spec"]["progressDeadlineSeconds"].as_u64().unwrap_or(600));
        let limit = server.cluster.scaled(limit);
        let late = known.is_some_and(|it| it.elapsed() >= limit);
        let mut step = Step { state, of, late, progressed: false };
        step.go();
        let (id, progressed) = (uid(&step.of).to_owned(), step.progressed);
        progressed.then(|| {
            server.cluster.progress().insert(id, Instant::now());
            limit
        })
    });
    // Nothing happens when nothing happens: it is looked at again then.
    if let Some(limit) = progressed {
        let (server, space, called) = (server.clone(), space.to_owned(), called.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(limit + Duration::from_millis(5)).await;
            sync(&server, &space, &called);
        });
    }
}

struct Step<'a> {
    state: &'a mut State,
    of: Arc<Value>,
    /// There was no progress for too long.
    late: bool,
    progressed: bool,
}

impl Step<'_> {
    fn go(&mut self) {
        let mut old = owned(self.state, REPLICASETS, &self.of);
        old.sort_by_key(|it| text(&it["metadata"]["creationTimestamp"]).to_owned());
        let current = old.iter().position(|it| template_of(it) == self.of["spec"]["template"]);
        let mut new = current.map(|at| old.remove(at));
        let wanted = self.wanted();
        let active = |it: &Arc<Value>| size(it) > 0;
        let desired = wanted.to_string();
        let of_another_size = |it: &Arc<Value>| it["metadata"]["annotations"][DESIRED] != *desired;
        if new.iter().chain(&old).any(|it| active(it) && of_another_size(it)) {
            // One takes the whole difference, more of them what the roll-out gives them.
            let alone = new.iter().chain(&old).filter(|it| active(it)).count() == 1;
            for set in new.iter_mut().chain(&mut old).filter(|it| size(it) > 0) {
                let count = if alone { wanted } else { size(set) };
                self.scale(set, count);
            }
            return self.tell(new.as_ref(), &old, false);
        }
        // The name of a new one is somebody else's: no recording shows that.
        let Some(mut new) = self.current(new, &old) else { return };
        if !self.grow(&mut new, &old) {
            self.shrink(&new, &mut old);
        }
        self.tell(Some(&new), &old, true);
    }

    fn wanted(&self) -> i64 {
        number(&self.of["spec"]["replicas"])
    }

    /// How many more there may be, and how many may be missing.
    fn bounds(&self) -> (i64, i64) {
        let strategy = &self.of["spec"]["strategy"];
        if strategy["type"] == "Recreate" {
            return (0, self.wanted());
        }
        let part = |of: &Value, up: bool| match of {
            Value::String(share) => {
                let share = share.trim_end_matches('%').parse::<i64>().unwrap_or_default() * self.wanted();
                if up { (share + 99) / 100 } else { share / 100 }
            }
            count => number(count),
        };
        let surge = part(&strategy["rollingUpdate"]["maxSurge"], true);
        let missing = part(&strategy["rollingUpdate"]["maxUnavailable"], false);
        if surge == 0 && missing == 0 { (0, 1) } else { (surge, missing) }
    }

    /// The ReplicaSet of the template, with the newest revision.
    fn current(&mut self, new: Option<Arc<Value>>, old: &[Arc<Value>]) -> Option<Arc<Value>> {
        let newest = old.iter().map(|it| revision(it)).max().unwrap_or_default() + 1;
        let mut condition = None;
        let set = match new {
            Some(set) if revision(&set) >= newest => set,
            Some(set) => {
                let before = revision(&set);
                revise(self.state, REPLICASETS, &set, |set| {
                    let annotations = map(&mut set["metadata"]["annotations"]);
                    annotations.insert(REVISION.to_owned(), json!(newest.to_string()));
                    let earlier = match annotations.get(HISTORY).map(text) {
                        Some(earlier) => format!("{earlier},{before}"),
                        None => before.to_string(),
                    };
                    annotations.insert(HISTORY.to_owned(), json!(earlier));
                })
            }
            None => {
                let mut made = self.replica_set(newest);
                let others: i64 = old.iter().map(size).sum();
                let room = (self.wanted() + self.bounds().0 - others).clamp(0, self.wanted());
                made["spec"]["replicas"] = json!(room);
                let made = create(self.state, REPLICASETS, made).ok()?;
                let message = format!("Created new replica set \"{}\"", name(&made));
                condition = Some(("NewReplicaSetCreated", message));
                self.scaled(&made, 0, size(&made));
                made
            }
        };
        let revision = revision(&set).to_string();
        let told = self.of.clone();
        self.of = revise(self.state, DEPLOYMENTS, &told, |of| {
            let annotations = map(&mut of["metadata"]).entry("annotations").or_insert_with(|| json!({}));
            annotations[REVISION] = json!(revision);
            if let Some((reason, message)) = &condition {
                set_condition(&mut of["status"], "Progressing", true, reason, message);
            }
        });
        self.progressed |= condition.is_some();
        Some(set)
    }

    fn replica_set(&self, revision: i64) -> Value {
        let mut template = self.of["spec"]["template"].clone();
        let hash = hash(&template);
        let labels = map(&mut template["metadata"]).entry("labels").or_insert_with(|| json!({}));
        labels[HASH] = json!(hash);
        let labels = labels.clone();
        let mut selector = self.of["spec"]["selector"].clone();
        selector["matchLabels"][HASH] = json!(hash);
        json!({"metadata": {"name": format!("{}-{hash}", name(&self.of)), "namespace": namespace(&self.of),
                "labels": labels, "annotations": {DESIRED: self.wanted().to_string(),
                    MOST: (self.wanted() + self.bounds().0).to_string(), REVISION: revision.to_string()},
                "ownerReferences": owned_by(&self.of)},
            "spec": {"selector": selector, "template": template}})
    }

    /// More of the new ones, or fewer, as far as there is room.
    fn grow(&mut self, new: &mut Arc<Value>, old: &[Arc<Value>]) -> bool {
        let (is, wanted) = (size(new), self.wanted());
        let others: i64 = old.iter().map(size).sum();
        let room = wanted + self.bounds().0 - others - is;
        let count = if is > wanted { wanted } else { is + room.clamp(0, wanted - is) };
        self.scale(new, count);
        count != is
    }

    /// Fewer of the old ones: first what does not serve, then as far as others do.
    fn shrink(&mut self, new: &Arc<Value>, old: &mut [Arc<Value>]) {
        let least = self.wanted() - self.bounds().1;
        let others: i64 = old.iter().map(size).sum();
        let mut left = others + size(new) - least - (size(new) - serving(new));
        for set in old.iter_mut() {
            let useless = (size(set) - serving(set)).clamp(0, left.max(0));
            left -= useless;
            self.scale(set, size(set) - useless);
        }
        let serve: i64 = old.iter().map(serving).sum::<i64>() + serving(new);
        let mut spare = (serve - least).min(left);
        for set in old.iter_mut() {
            let fewer = size(set).min(spare.max(0));
            spare -= fewer;
            self.scale(set, size(set) - fewer);
        }
    }

    fn scale(&mut self, set: &mut Arc<Value>, count: i64) {
        let (before, wanted, most) = (size(set), self.wanted(), self.wanted() + self.bounds().0);
        *set = revise(self.state, REPLICASETS, set, |set| {
            set["spec"]["replicas"] = json!(count);
            if count > 0 || before > 0 {
                set["metadata"]["annotations"][DESIRED] = json!(wanted.to_string());
                set["metadata"]["annotations"][MOST] = json!(most.to_string());
            }
        });
        self.scaled(set, before, count);
    }

    fn scaled(&mut self, set: &Value, before: i64, count: i64) {
        if before == count {
            return;
        }
        let way = if count > before { "up" } else { "down" };
        let message = format!("Scaled {way} replica set {} from {before} to {count}", name(set));
        let from = From::Deployments;
        let reason = "ScalingReplicaSet";
        let it = Note { from, warning: false, reason, message: &message, container: None };
        note::write(self.state, &self.of, &it);
    }

    /// Writes how far it is; a change of size is no progress.
    fn tell(&mut self, new: Option<&Arc<Value>>, old: &[Arc<Value>], rolls: bool) {
        let sum =
            |field: &str| -> i64 { new.into_iter().chain(old).map(|it| number(&it["status"][field])).sum() };
        let sizes: i64 = new.into_iter().chain(old).map(size).sum();
        let (replicas, available) = (sum("replicas"), sum("availableReplicas"));
        let updated = new.map_or(0, |it| number(&it["status"]["replicas"]));
        let (wanted, missing) = (self.wanted(), self.bounds().1);
        let before = self.of["status"].clone();
        let reason = reason(&before, "Progressing").to_owned();
        let complete = updated == wanted && replicas == wanted && available == wanted;
        let moves = updated > number(&before["updatedReplicas"])
            || replicas - updated < number(&before["replicas"]) - number(&before["updatedReplicas"])
            || sum("readyReplicas") > number(&before["readyReplicas"])
            || available > number(&before["availableReplicas"]);
        let done = replicas == updated && reason == "NewReplicaSetAvailable";
        let set = new.map(|it| name(it).to_owned()).unwrap_or_default();
        let late = self.late && !self.progressed;
        let (ready, terminating) = (sum("readyReplicas"), sum("terminatingReplicas"));
        let progressed = &mut self.progressed;
        let told = self.of.clone();
        self.of = revise(self.state, DEPLOYMENTS, &told, |of| {
            let generation = of["metadata"]["generation"].clone();
            let status = &mut of["status"];
            status["observedGeneration"] = generation;
            counters(
                status,
                &[
                    ("replicas", replicas),
                    ("updatedReplicas", updated),
                    ("readyReplicas", ready),
                    ("availableReplicas", available),
                    ("unavailableReplicas", sizes - available),
                ],
            );
            status["terminatingReplicas"] = json!(terminating);
            let (serves, why, message) = if available >= wanted - missing {
                (true, "MinimumReplicasAvailable", "Deployment has minimum availability.")
            } else {
                (false, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
            };
            set_condition(status, "Available", serves, why, message);
            if !rolls || done {
                return;
            }
            let mut say = |well, why: &str, what: &str| {
                let message = format!("ReplicaSet \"{set}\" {what}.");
                set_condition(status, "Progressing", well, why, &message);
            };
            if complete {
                say(true, "NewReplicaSetAvailable", "has successfully progressed");
            } else if moves {
                *progressed = true;
                say(true, "ReplicaSetUpdated", "is progressing");
            } else if late && reason != "NewReplicaSetAvailable" {
                say(false, "ProgressDeadlineExceeded", "has timed out progressing");
            }
        });
    }
}

/// Sets a condition, which comes last then; the same one again changes nothing.
fn set_condition(status: &mut Value, kind: &str, well: bool, reason: &str, message: &str) {
    let conditions = map(status).entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else { return };
    let word = if well { "True" } else { "False" };
    let mut since = now();
    if let Some(at) = conditions.iter().position(|it| it["type"] == kind) {
        let is = &conditions[at];
        let again = is["status"] == word && is["reason"] == reason;
        // What goes on is told with a new time; all else is told once.
        if again && reason != "ReplicaSetUpdated" {
            return;
        }
        if is["status"] == word {
            text(&is["lastTransitionTime"]).clone_into(&mut since);
        }
        conditions.remove(at);
    }
    conditions.push(json!({"type": kind, "status": word, "lastUpdateTime": now(),
        "lastTransitionTime": since, "reason": reason, "message": message}));
}

fn reason<'a>(status: &'a Value, kind: &str) -> &'a str {
    list(&status["conditions"]).iter().find(|it| it["type"] == kind).map_or("", |it| text(&it["reason"]))
}

fn size(set: &Arc<Value>) -> i64 {
    number(&set["spec"]["replicas"])
}

fn serving(set: &Arc<Value>) -> i64 {
    number(&set["status"]["availableReplicas"])
}

fn revision(set: &Value) -> i64 {
    text(&set["metadata"]["annotations"][REVISION]).parse().unwrap_or_default()
}

/// A ReplicaSet's template without its own label.
fn template_of(set: &Value) -> Value {
    let mut template = set["spec"]["template"].clone();
    map(&mut template["metadata"]["labels"]).remove(HASH);
    template
}

/// A short name for a template. The real one hashes how Go would print it.
fn hash(template: &Value) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let hash = template
        .to_string()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|it| char::from(LETTERS[usize::from(it) % LETTERS.len()])).collect()
}
