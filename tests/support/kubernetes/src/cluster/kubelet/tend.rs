//! While the containers run: their ends, their restarts, their probes.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::{Break, Life};
use crate::cluster::behaviour::Plan;
use crate::cluster::process::{Ask, Exit};
use crate::cluster::{Steer, Word};
use crate::value::{list, name, namespace, text, uid};

/// What the kubelet has in mind for a container.
pub(super) struct Care {
    /// When it is started again.
    pub again: Option<Instant>,
    back_off: u64,
    /// How often it ended.
    ends: u32,
    next_probe: Option<Instant>,
    failures: u64,
    /// When it is asked whether it lives.
    pub next_sign: Option<Instant>,
    /// How often in a row it gave none.
    pub silences: u64,
}

impl Life {
    /// Starts the containers and stays with them.
    pub(super) async fn tend(&mut self) -> Result<(), Break> {
        let containers = list(&self.pod["spec"]["containers"]).to_vec();
        self.runs = Vec::new();
        let mut cares: Vec<Care> = Vec::new();
        for (at, container) in containers.iter().enumerate() {
            self.fetch(container, None).await?;
            self.ip();
            let run = match self.start(container) {
                Ok((run, id)) => {
                    self.model.main[at].runs(&id);
                    Some(run)
                }
                Err(message) => {
                    let exit = Exit { code: 128, reason: "StartError", message };
                    self.model.main[at].id = uuid::Uuid::new_v4().simple().to_string();
                    self.model.main[at].ends(&exit);
                    None
                }
            };
            let probed = run.is_some() && container["readinessProbe"].is_object();
            self.model.main[at].ready = run.is_some() && !probed && !self.behaviour(container).unready;
            let first = container["readinessProbe"]["initialDelaySeconds"].as_u64().unwrap_or(0) * 1000;
            cares.push(Care {
                again: None,
                back_off: 10,
                ends: u32::from(run.is_none()),
                next_probe: probed.then(|| self.later(first.max(100))),
                failures: 0,
                next_sign: run.is_some().then(|| self.first_sign(container)).flatten(),
                silences: 0,
            });
            self.runs.push(run);
        }
        let deadline = self.pod["spec"]["activeDeadlineSeconds"].as_u64();
        let deadline = deadline.map(|it| self.later(it * 1000));
        if self.runs.iter().any(Option::is_some) {
            self.model.phase = "Running";
        }
        self.tell();
        self.settle(&containers, &mut cares).await?;
        loop {
            let next = cares
                .iter()
                .flat_map(|it| [it.again, it.next_probe, it.next_sign])
                .flatten()
                .chain(deadline)
                .min()
                .unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let ended = any_end(&self.runs);
            let word = tokio::select! {
                at = ended => {
                    self.end_of(at, &containers, &mut cares).await?;
                    continue;
                }
                () = tokio::time::sleep_until(next) => None,
                word = self.words.recv() => Some(word.ok_or(Break::Leaving)?),
            };
            match word {
                Some(word) => self.steered(word)?,
                None => {
                    if deadline.is_some_and(|it| it <= Instant::now()) {
                        return self.too_long().await;
                    }
                    self.restart(&containers, &mut cares).await?;
                    self.probe(&containers, &mut cares).await;
                    self.signs(&containers, &mut cares).await?;
                }
            }
        }
    }

    pub(super) fn later(&self, milliseconds: u64) -> Instant {
        Instant::now() + self.server.cluster.scaled(Duration::from_millis(milliseconds))
    }

    fn steered(&mut self, word: Word) -> Result<(), Break> {
        let Some(steer) = self.hear(word)? else { return Ok(()) };
        let end = |exit: Exit| {
            for run in self.runs.iter().flatten() {
                run.ask(Ask::End(exit.clone()));
            }
        };
        match steer {
            Steer::Exit(code) => end(Exit::of(code)),
            Steer::Oom => end(Exit::oom()),
            Steer::Evict(message) => return self.evicted(&message),
            Steer::Ready(ready) => {
                self.steered_ready = Some(ready);
                for slot in &mut self.model.main {
                    slot.ready = ready && slot.code().is_none();
                }
                if !ready {
                    self.say(true, "Unhealthy", "Readiness probe failed: the double was told so", None);
                }
                self.tell();
            }
        }
        Ok(())
    }

    /// A container that could not be started counts as one that ended.
    async fn settle(&mut self, containers: &[Value], cares: &mut [Care]) -> Result<(), Break> {
        for at in 0..containers.len() {
            if self.runs[at].is_none() {
                self.after_end(at, containers, cares).await?;
            }
        }
        Ok(())
    }

    async fn end_of(&mut self, at: usize, containers: &[Value], cares: &mut [Care]) -> Result<(), Break> {
        let Some(run) = self.runs[at].take() else { return Ok(()) };
        let exit = run.ended().unwrap_or_else(|| Exit::of(137));
        // It is seen a moment later.
        self.pause(300).await?;
        self.model.main[at].ends(&exit);
        self.ended(&containers[at]);
        cares[at].next_probe = None;
        cares[at].next_sign = None;
        cares[at].ends += 1;
        self.tell();
        self.after_end(at, containers, cares).await
    }

    pub(super) async fn after_end(
        &mut self,
        at: usize,
        containers: &[Value],
        cares: &mut [Care],
    ) -> Result<(), Break> {
        let code = self.model.main[at].code().unwrap_or_default();
        let policy = self.restart_policy();
        let again = policy == "Always" || (policy == "OnFailure" && code != 0);
        if !again {
            let codes: Option<Vec<i64>> =
                self.model.main.iter().map(super::super::state::Slot::code).collect();
            let Some(codes) = codes else { return Ok(()) };
            self.pause(1200).await?;
            self.model.phase = if codes.iter().all(|it| *it == 0) { "Succeeded" } else { "Failed" };
            self.tell();
            return Err(Break::Over);
        }
        let care = &mut cares[at];
        // The first restart is at once.
        if care.ends <= 1 {
            care.again = Some(Instant::now());
            return Ok(());
        }
        let container = text(&containers[at]["name"]).to_owned();
        let (called, space, id) =
            (name(&self.pod).to_owned(), namespace(&self.pod).to_owned(), uid(&self.pod).to_owned());
        self.say(
            true,
            "BackOff",
            &format!("Back-off restarting failed container {container} in pod {called}_{space}({id})"),
            Some(&container),
        );
        let seconds = cares[at].back_off;
        cares[at].back_off = (seconds * 2).min(300);
        // Shown as waiting only after a while.
        self.pause(1000).await?;
        self.model.main[at].waits(
            "CrashLoopBackOff",
            &format!(
                "back-off {seconds}s restarting failed container={container} pod={called}_{space}({id})"
            ),
        );
        self.tell();
        cares[at].again = Some(self.later(seconds * 1000));
        Ok(())
    }

    async fn restart(&mut self, containers: &[Value], cares: &mut [Care]) -> Result<(), Break> {
        for at in 0..containers.len() {
            if cares[at].again.is_none_or(|it| it > Instant::now()) {
                continue;
            }
            cares[at].again = None;
            let container = &containers[at];
            self.model.main[at].restarts += 1;
            match self.start(container) {
                Ok((run, id)) => {
                    let probed = container["readinessProbe"].is_object();
                    self.model.main[at].runs(&id);
                    self.model.main[at].ready = !probed;
                    self.runs[at] = Some(run);
                    cares[at].next_probe = probed.then(|| self.later(200));
                    cares[at].next_sign = self.first_sign(container);
                    cares[at].silences = 0;
                    self.tell();
                }
                Err(message) => {
                    self.model.main[at].ends(&Exit { code: 128, reason: "StartError", message });
                    cares[at].ends += 1;
                    self.tell();
                    self.after_end(at, containers, cares).await?;
                }
            }
        }
        Ok(())
    }

    async fn too_long(&mut self) -> Result<(), Break> {
        self.say(true, "DeadlineExceeded", "Active deadline exceeded", None);
        let seconds = self.pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
        let end = self.later(seconds * 1000);
        for (at, slot) in self.model.main.iter_mut().enumerate() {
            if let Some(run) = self.runs[at].take() {
                run.ask(Ask::Term);
                let exit = match tokio::time::timeout_at(end, run.wait()).await {
                    Ok(exit) => exit,
                    Err(_) => {
                        run.ask(Ask::Kill);
                        run.wait().await
                    }
                };
                slot.ends(&exit);
            }
        }
        self.model.phase = "Failed";
        self.model.reason = "DeadlineExceeded".to_owned();
        self.model.message = "Pod was active on the node longer than the specified deadline".to_owned();
        self.tell();
        Err(Break::Over)
    }

    async fn probe(&mut self, containers: &[Value], cares: &mut [Care]) {
        for at in 0..containers.len() {
            if cares[at].next_probe.is_none_or(|it| it > Instant::now()) {
                continue;
            }
            let container = &containers[at];
            let probe = &container["readinessProbe"];
            let period = probe["periodSeconds"].as_u64().unwrap_or(10).max(1);
            cares[at].next_probe = Some(self.later(period * 1000));
            let behaviour = self.behaviour(container);
            let found = match self.steered_ready {
                Some(true) => Ok(()),
                Some(false) => Err("the double was told so".to_owned()),
                None if behaviour.unready => Err("HTTP probe failed with statuscode: 503".to_owned()),
                // It eats its memory before it listens.
                None if behaviour.plan == Plan::Oom => Err("connect: connection refused".to_owned()),
                None if behaviour.plan == Plan::Real => {
                    super::super::probe::ask(&self.known, container, probe).await
                }
                None => Ok(()),
            };
            let was = self.model.main[at].ready;
            let limit = probe["failureThreshold"].as_u64().unwrap_or(3);
            let is = match &found {
                Ok(()) => {
                    cares[at].failures = 0;
                    true
                }
                Err(why) => {
                    cares[at].failures += 1;
                    let told = format!("Readiness probe failed: {why}");
                    self.say(true, "Unhealthy", &told, Some(text(&container["name"])));
                    was && cares[at].failures < limit
                }
            };
            // Until it passes it is asked more often.
            if !is {
                cares[at].next_probe = Some(self.later(500.min(period * 1000)));
            }
            if is != was {
                self.model.main[at].ready = is;
                self.tell();
            }
        }
    }
}

/// Which of them ends next.
async fn any_end(runs: &[Option<super::Run>]) -> usize {
    let mut waits: Vec<_> = runs
        .iter()
        .enumerate()
        .filter_map(|(at, run)| run.as_ref().map(|run| (at, run)))
        .map(|(at, run)| {
            Box::pin(async move {
                run.wait().await;
                at
            })
        })
        .collect();
    if waits.is_empty() {
        return std::future::pending().await;
    }
    futures_util::future::select_all(waits.drain(..)).await.0
}
