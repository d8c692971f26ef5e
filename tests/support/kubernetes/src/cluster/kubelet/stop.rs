//! The end of a pod that is being deleted.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::Life;
use crate::cluster::Word;
use crate::cluster::process::{Ask, Exit};
use crate::value::{list, name, namespace, text};

impl Life {
    /// Ends what runs, tells of it and removes the object.
    pub(super) async fn stop(&mut self) {
        if self.gone {
            return self.kill().await;
        }
        let containers = list(&self.pod["spec"]["containers"]).to_vec();
        for container in &containers {
            let name = text(&container["name"]);
            self.say(false, "Killing", &format!("Stopping container {name}"), Some(name));
        }
        self.tell();
        let grace = self.server.cluster.scaled(Duration::from_secs(self.grace()));
        let end = Instant::now() + grace;
        for run in self.runs.iter().flatten() {
            run.ask(Ask::Term);
        }
        let mut exits: Vec<Option<Exit>> = Vec::new();
        for at in 0..self.runs.len() {
            let Some(run) = self.runs[at].take() else {
                exits.push(None);
                continue;
            };
            // Meanwhile it may be removed at once.
            let ended = loop {
                tokio::select! {
                    ended = timeout_at(end, run.wait()) => break ended.ok(),
                    word = self.words.recv() => match word {
                        Some(Word::Gone) | None => {
                            self.gone = true;
                            run.ask(Ask::Kill);
                            run.wait().await;
                            break None;
                        }
                        Some(Word::Changed(pod)) => self.pod = pod,
                        Some(_) => {}
                    },
                }
            };
            let exit = match ended {
                Some(exit) => exit,
                None => {
                    run.ask(Ask::Kill);
                    run.wait().await
                }
            };
            exits.push(Some(exit));
        }
        if self.gone {
            return self.kill().await;
        }
        self.server.cluster.sleep(100).await;
        for (at, exit) in exits.into_iter().enumerate() {
            if let (Some(exit), Some(slot)) = (exit, self.model.main.get_mut(at)) {
                slot.ends(&exit);
                self.ended(&containers[at]);
            }
        }
        if self.model.main.iter().any(|it| !it.id.is_empty()) {
            let fine = self.model.main.iter().all(|it| it.code().unwrap_or(0) == 0);
            self.model.phase = if fine { "Succeeded" } else { "Failed" };
            self.tell();
            self.server.cluster.sleep(600).await;
        }
        self.farewell().await;
    }

    /// The last write: grace 0, and the object goes unless a finalizer holds it.
    pub(super) async fn farewell(&mut self) {
        self.last_write();
        let held = !list(&self.pod["metadata"]["finalizers"]).is_empty();
        if !held {
            let (space, name) = (namespace(&self.pod).to_owned(), name(&self.pod).to_owned());
            let id = crate::value::uid(&self.pod).to_owned();
            self.server.store.write(|state| {
                if state
                    .get("pods", &space, &name)
                    .is_some_and(|it: std::sync::Arc<Value>| crate::value::uid(&it) == id)
                {
                    state.remove("pods", &space, &name);
                }
            });
            return;
        }
        while let Some(word) = self.words.recv().await {
            if matches!(word, Word::Gone) {
                return;
            }
        }
    }

    async fn kill(&mut self) {
        for run in self.runs.drain(..).flatten() {
            run.ask(Ask::Kill);
            run.wait().await;
        }
        for here in self.known.containers().values_mut() {
            here.running = false;
        }
    }
}
