//! The life of a pod on its node, in the order in which a kubelet tells it.

mod alive;
mod pull;
mod stop;
mod tend;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::behaviour::{self, Behaviour};
use super::log::Log;
use super::note::{From, Note, note};
use super::process::{Exit, Job, Run};
use super::state::Model;
use super::{Container, Pod, Word, rewrite, scheduler, spec};
use crate::Server;
use crate::managed::{self, Manager};
use crate::value::{list, text, uid};

/// A pod's life, from when it is made until it is gone.
pub(crate) async fn life(
    server: Arc<Server>,
    pod: Arc<Value>,
    known: Arc<Pod>,
    mut words: mpsc::UnboundedReceiver<Word>,
) {
    server.cluster.sleep(20).await;
    let placed = scheduler::place(&server, &pod, &mut words).await;
    known.waits.store(false, std::sync::atomic::Ordering::Relaxed);
    if let Some(placed) = placed {
        let mut life = Life {
            model: Model::new(&placed),
            pod: placed,
            server: server.clone(),
            known,
            words,
            runs: Vec::new(),
            gone: false,
            steered_ready: None,
        };
        life.live().await;
        for run in life.runs.drain(..).flatten() {
            run.ask(super::process::Ask::Kill);
            run.wait().await;
        }
    }
    server.cluster.pods().remove(uid(&pod));
    let _ = std::fs::remove_dir_all(server.cluster.files.path().join(format!("pod-{}", uid(&pod))));
}

pub(super) struct Life {
    server: Arc<Server>,
    /// As it was last seen.
    pod: Arc<Value>,
    known: Arc<Pod>,
    words: mpsc::UnboundedReceiver<Word>,
    model: Model,
    /// What runs, in the order of the containers.
    runs: Vec<Option<Run>>,
    gone: bool,
    steered_ready: Option<bool>,
}

/// Why a step was left.
pub(super) enum Break {
    /// The pod is being deleted, or was.
    Leaving,
    /// It is over by itself.
    Over,
}

impl Life {
    async fn live(&mut self) {
        let result = match self.begin().await {
            Ok(()) => self.tend().await,
            left => left,
        };
        match result {
            Err(Break::Leaving) => self.stop().await,
            // It stays as it ended until somebody deletes it.
            Ok(()) | Err(Break::Over) => {
                while let Some(word) = self.words.recv().await {
                    match word {
                        Word::Gone => return,
                        Word::Changed(pod) if crate::value::leaving(&pod) => {
                            self.pod = pod;
                            return self.farewell().await;
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// Writes what is known.
    fn tell(&mut self) {
        let model = &self.model;
        let written = rewrite(&self.server, "pods", &self.pod, |pod| {
            let before = pod.clone();
            model.write(pod);
            managed::note(None, Some(&before), pod, &Manager::kubelet());
        });
        if let Some(pod) = written {
            self.pod = pod;
        }
    }

    fn say(&self, warning: bool, reason: &str, message: &str, container: Option<&str>) {
        let note_it = Note { from: From::Kubelet, warning, reason, message, container };
        note(&self.server, &self.pod, &note_it);
    }

    /// Hears what was said; an error if the pod leaves.
    fn hear(&mut self, word: Word) -> Result<Option<super::Steer>, Break> {
        match word {
            Word::Gone => {
                self.gone = true;
                Err(Break::Leaving)
            }
            Word::Changed(pod) => {
                let leaves = crate::value::leaving(&pod);
                self.pod = pod;
                if leaves { Err(Break::Leaving) } else { Ok(None) }
            }
            Word::Retry => Ok(None),
            Word::Steer(steer) => Ok(Some(steer)),
        }
    }

    /// Sleeps a time of the cluster's, unless the pod leaves.
    async fn pause(&mut self, milliseconds: u64) -> Result<(), Break> {
        let time = self.server.cluster.scaled(Duration::from_millis(milliseconds));
        let end = tokio::time::Instant::now() + time;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return Ok(()),
                word = self.words.recv() => {
                    let Some(word) = word else { return Err(Break::Leaving) };
                    if let Some(super::Steer::Evict(message)) = self.hear(word)? {
                        return self.evicted(&message);
                    }
                }
            }
        }
    }

    /// The node throws it out.
    fn evicted(&mut self, message: &str) -> Result<(), Break> {
        self.model.phase = "Failed";
        self.model.reason = "Evicted".to_owned();
        message.clone_into(&mut self.model.message);
        self.say(true, "Evicted", message, None);
        for run in self.runs.iter().flatten() {
            run.ask(super::process::Ask::Kill);
        }
        for slot in self.model.main.iter_mut().filter(|it| it.code().is_none()) {
            if !slot.id.is_empty() {
                slot.ends(&Exit::of(137));
            }
        }
        self.tell();
        Err(Break::Over)
    }

    fn behaviour(&self, container: &Value) -> Behaviour {
        behaviour::of(&self.pod, container, self.server.options.real)
    }

    /// From the first status to the last init container.
    async fn begin(&mut self) -> Result<(), Break> {
        self.pause(100).await?;
        self.tell();
        self.pause(400).await?;
        self.model.sandbox = true;
        self.tell();
        let init = list(&self.pod["spec"]["initContainers"]).to_vec();
        for (at, container) in init.iter().enumerate() {
            self.init(at, container).await?;
        }
        if !init.is_empty() {
            self.pause(300).await?;
        }
        Ok(())
    }

    /// Runs one init container to its end.
    async fn init(&mut self, at: usize, container: &Value) -> Result<(), Break> {
        let never = self.pod["spec"]["restartPolicy"] == "Never";
        let mut back_off = 10_u64;
        loop {
            self.fetch(container, Some(at)).await?;
            let started = self.start(container);
            self.ip();
            let run = match started {
                Ok((run, id)) => {
                    self.model.init[at].runs(&id);
                    self.tell();
                    Ok(run)
                }
                Err(why) => Err(why),
            };
            let exit = match run {
                Ok(run) => self.until_end(run).await?,
                Err(message) => Exit { code: 128, reason: "StartError", message },
            };
            self.model.init[at].ends(&exit);
            self.ended(container);
            self.model.init[at].ready = exit.code == 0;
            if exit.code == 0 {
                self.tell();
                return Ok(());
            }
            self.tell();
            if never {
                self.pause(1000).await?;
                self.model.phase = "Failed";
                self.tell();
                return Err(Break::Over);
            }
            let name = text(&container["name"]).to_owned();
            let (called, id) = (crate::value::name(&self.pod).to_owned(), uid(&self.pod).to_owned());
            let space = crate::value::namespace(&self.pod).to_owned();
            self.say(
                true,
                "BackOff",
                &format!("Back-off restarting failed container {name} in pod {called}_{space}({id})"),
                Some(&name),
            );
            let message =
                format!("back-off {back_off}s restarting failed container={name} pod={called}_{space}({id})");
            self.model.init[at].waits("CrashLoopBackOff", &message);
            self.tell();
            self.pause(back_off * 1000).await?;
            back_off = (back_off * 2).min(300);
            self.model.init[at].restarts += 1;
        }
    }

    async fn until_end(&mut self, run: Run) -> Result<Exit, Break> {
        let result = loop {
            tokio::select! {
                exit = run.wait() => break Ok(exit),
                word = self.words.recv() => {
                    let Some(word) = word else { break Err(Break::Leaving) };
                    match self.hear(word) {
                        Ok(Some(super::Steer::Exit(code))) => run.ask(super::process::Ask::End(Exit::of(code))),
                        Ok(Some(super::Steer::Oom)) => run.ask(super::process::Ask::End(Exit::oom())),
                        Ok(_) => {}
                        Err(left) => break Err(left),
                    }
                }
            }
        };
        if result.is_err() {
            self.runs.push(Some(run));
        }
        result
    }

    /// The address is told with the first container.
    fn ip(&mut self) {
        self.model.ip = Some(self.known.ip.to_string());
    }

    /// Starts a container; the events tell of it.
    fn start(&mut self, container: &Value) -> Result<(Run, String), String> {
        let name = text(&container["name"]).to_owned();
        let image = text(&container["image"]);
        self.say(
            false,
            "Pulled",
            &format!("Container image \"{image}\" already present on machine and can be accessed by the pod"),
            Some(&name),
        );
        self.say(false, "Created", "Container created", Some(&name));
        let id = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        let start = spec::start(&self.server, &self.pod, container, &self.known, &id);
        let behaviour = self.behaviour(container);
        let log = Arc::new(Log::new());
        let previous = self.known.containers().get(&name).map(|it| it.log.clone());
        let here = Container {
            log: log.clone(),
            previous,
            running: true,
            entered: Arc::default(),
            env: start.env.clone(),
            dir: start.dir.clone(),
        };
        let run = Run::start(Job {
            plan: behaviour.plan,
            stubborn: behaviour.stubborn,
            command: start.command,
            env: start.env,
            dir: start.dir,
            marker: start.marker,
            log,
            entered: here.entered.clone(),
            moment: self.server.cluster.scaled(Duration::from_secs(1)),
        });
        match run {
            Ok(run) => {
                self.known.containers().insert(name.clone(), here);
                self.say(false, "Started", "Container started", Some(&name));
                Ok((run, id))
            }
            Err(why) => {
                self.say(true, "Failed", &format!("Error: {why}"), Some(&name));
                Err(why)
            }
        }
    }

    /// A container runs no more.
    fn ended(&self, container: &Value) {
        if let Some(here) = self.known.containers().get_mut(text(&container["name"])) {
            here.running = false;
        }
    }

    fn grace(&self) -> u64 {
        self.pod["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(0)
    }

    fn restart_policy(&self) -> String {
        text(&self.pod["spec"]["restartPolicy"]).to_owned()
    }

    /// A finalizer may hold a pod whose processes have ended.
    fn last_write(&mut self) {
        let written = rewrite(&self.server, "pods", &self.pod, |pod| {
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        });
        if let Some(pod) = written {
            self.pod = pod;
        }
    }
}
