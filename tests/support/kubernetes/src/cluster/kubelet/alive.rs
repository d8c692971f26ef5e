//! Liveness: a container that gives no sign of life too often is ended and started anew.

use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::tend::Care;
use super::{Break, Life};
use crate::cluster::behaviour::Plan;
use crate::cluster::probe;
use crate::cluster::process::Ask;
use crate::value::text;

impl Life {
    /// When a container is asked for the first time.
    pub(super) fn first_sign(&self, container: &Value) -> Option<Instant> {
        let probe = container["livenessProbe"].as_object()?;
        let first = probe.get("initialDelaySeconds").and_then(Value::as_u64).unwrap_or(0) * 1000;
        Some(self.later(first.max(100)))
    }

    /// Asks those whose time has come.
    pub(super) async fn signs(&mut self, containers: &[Value], cares: &mut [Care]) -> Result<(), Break> {
        for at in 0..containers.len() {
            if cares[at].next_sign.is_none_or(|it| it > Instant::now()) {
                continue;
            }
            let container = &containers[at];
            let wanted = &container["livenessProbe"];
            let period = wanted["periodSeconds"].as_u64().unwrap_or(10).max(1);
            cares[at].next_sign = Some(self.later(period * 1000));
            let found = match self.behaviour(container).plan {
                Plan::Real => probe::ask(&self.known, container, wanted).await,
                _ => Ok(()),
            };
            let Err(why) = found else {
                cares[at].silences = 0;
                continue;
            };
            cares[at].silences += 1;
            let name = Some(text(&container["name"]));
            self.say(true, "Unhealthy", &format!("Liveness probe failed: {why}"), name);
            if cares[at].silences >= wanted["failureThreshold"].as_u64().unwrap_or(3) {
                self.revive(at, containers, cares).await?;
            }
        }
        Ok(())
    }

    /// Ends a container. It is started again at once and without a back-off, and
    /// nothing is told in between: the kubelet does both in one go.
    async fn revive(&mut self, at: usize, containers: &[Value], cares: &mut [Care]) -> Result<(), Break> {
        let Some(run) = self.runs[at].take() else { return Ok(()) };
        let container = &containers[at];
        let name = text(&container["name"]);
        let again = self.restart_policy() != "Never";
        let then = if again { ", will be restarted" } else { "" };
        self.say(false, "Killing", &format!("Container {name} failed liveness probe{then}"), Some(name));
        cares[at].next_sign = None;
        let own = container["livenessProbe"]["terminationGracePeriodSeconds"].as_u64();
        let grace = own.or_else(|| self.pod["spec"]["terminationGracePeriodSeconds"].as_u64()).unwrap_or(30);
        let end = self.later(grace * 1000);
        run.ask(Ask::Term);
        let exit = loop {
            tokio::select! {
                exit = timeout_at(end, run.wait()) => match exit {
                    Ok(exit) => break exit,
                    Err(_) => {
                        run.ask(Ask::Kill);
                        break run.wait().await;
                    }
                },
                word = self.words.recv() => {
                    let heard = match word {
                        Some(word) => self.hear(word),
                        None => Err(Break::Leaving),
                    };
                    if let Err(left) = heard {
                        self.runs[at] = Some(run);
                        return Err(left);
                    }
                }
            }
        };
        self.model.main[at].ends(&exit);
        self.ended(container);
        if again {
            cares[at].again = Some(Instant::now());
            return Ok(());
        }
        self.tell();
        self.after_end(at, containers, cares).await
    }
}
