//! What the kubelet knows of a pod, and how it writes that down as a status.

use serde_json::{Value, json};

use super::process::Exit;
use crate::value::{list, map, now, text};

/// How far a container is.
#[derive(Debug, Clone)]
pub(crate) enum At {
    Waiting(String, String),
    Running(String),
    Ended(Value),
}

#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub name: String,
    pub at: At,
    pub last: Option<Value>,
    pub ready: bool,
    pub restarts: u32,
    /// The container's id; empty before the first.
    pub id: String,
    pub image_there: bool,
}

impl Slot {
    pub fn new(container: &Value, reason: &str) -> Self {
        Self {
            name: text(&container["name"]).to_owned(),
            at: At::Waiting(reason.to_owned(), String::new()),
            last: None,
            ready: false,
            restarts: 0,
            id: String::new(),
            image_there: false,
        }
    }

    pub fn waits(&mut self, reason: &str, message: &str) {
        if let At::Ended(ended) = &self.at {
            self.last = Some(ended.clone());
        }
        self.at = At::Waiting(reason.to_owned(), message.to_owned());
        self.ready = false;
    }

    pub fn runs(&mut self, id: &str) {
        if let At::Ended(ended) = &self.at {
            self.last = Some(ended.clone());
        }
        self.at = At::Running(now());
        id.clone_into(&mut self.id);
        self.image_there = true;
    }

    pub fn ends(&mut self, exit: &Exit) {
        let started = match &self.at {
            At::Running(since) => since.clone(),
            _ => "1970-01-01T00:00:00Z".to_owned(),
        };
        let mut ended = json!({"exitCode": exit.code, "reason": exit.reason,
            "startedAt": started, "finishedAt": now(),
            "containerID": format!("containerd://{}", self.id)});
        if !exit.message.is_empty() {
            ended["message"] = json!(exit.message);
        }
        self.at = At::Ended(ended);
        self.ready = false;
    }

    pub fn code(&self) -> Option<i64> {
        match &self.at {
            At::Ended(ended) => ended["exitCode"].as_i64(),
            _ => None,
        }
    }

    fn status(&self, container: &Value) -> Value {
        let state = match &self.at {
            At::Waiting(reason, message) if message.is_empty() => {
                json!({"waiting": {"reason": reason}})
            }
            At::Waiting(reason, message) => {
                json!({"waiting": {"reason": reason, "message": message}})
            }
            At::Running(since) => json!({"running": {"startedAt": since}}),
            At::Ended(ended) => json!({"terminated": ended}),
        };
        let last = self.last.as_ref().map_or(json!({}), |it| json!({"terminated": it}));
        let mut status = json!({
            "name": self.name, "state": state, "lastState": last, "ready": self.ready,
            "restartCount": self.restarts, "image": container["image"],
            "imageID": if self.image_there { "sha256:194d0209a7ff241b27f9c4c0e73f5a0c74b2c1125d1c380ce0d7079b50172dbd" } else { "" },
            "started": matches!(self.at, At::Running(_)),
        });
        if !self.id.is_empty() {
            status["containerID"] = json!(format!("containerd://{}", self.id));
            status["resources"] = container["resources"].clone();
            if let Some(requests) = container["resources"].get("requests") {
                status["allocatedResources"] = requests.clone();
            }
        }
        let mounts: Vec<Value> = list(&container["volumeMounts"])
            .iter()
            .map(|it| {
                let mut mount = json!({"name": it["name"], "mountPath": it["mountPath"]});
                if it["readOnly"] == true {
                    mount["readOnly"] = json!(true);
                    mount["recursiveReadOnly"] = json!("Disabled");
                }
                mount
            })
            .collect();
        if !mounts.is_empty() {
            status["volumeMounts"] = json!(mounts);
        }
        status
    }
}

/// A pod, as the kubelet sees it.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub phase: &'static str,
    pub reason: String,
    pub message: String,
    pub started: String,
    /// Whether its sandbox, and with it its network, is there.
    pub sandbox: bool,
    /// The address, once it is told.
    pub ip: Option<String>,
    pub init: Vec<Slot>,
    pub main: Vec<Slot>,
}

impl Model {
    pub fn new(pod: &Value) -> Self {
        let init = list(&pod["spec"]["initContainers"]);
        let reason = if init.is_empty() { "ContainerCreating" } else { "PodInitializing" };
        Self {
            phase: "Pending",
            reason: String::new(),
            message: String::new(),
            started: now(),
            sandbox: false,
            ip: None,
            init: init.iter().map(|it| Slot::new(it, "PodInitializing")).collect(),
            main: list(&pod["spec"]["containers"]).iter().map(|it| Slot::new(it, reason)).collect(),
        }
    }

    fn initialized(&self) -> bool {
        self.init.iter().all(|it| it.code() == Some(0))
    }

    /// Writes all of it into a pod.
    pub fn write(&self, pod: &mut Value) {
        let generation = pod["metadata"]["generation"].clone();
        let restarts_never = pod["spec"]["restartPolicy"] == "Never";
        let ended = |slots: &[Slot]| slots.iter().all(|it| it.code().is_some());
        let failed = self.phase == "Failed"
            || (restarts_never
                && (self.main.iter().any(|it| it.code().is_some_and(|it| it != 0))
                    || self.init.iter().any(|it| it.code().is_some_and(|it| it != 0))));
        let completed = self.phase == "Succeeded" || (restarts_never && ended(&self.main) && !failed);
        let unready: Vec<&str> = self.main.iter().filter(|it| !it.ready).map(|it| it.name.as_str()).collect();
        let incomplete: Vec<&str> =
            self.init.iter().filter(|it| it.code() != Some(0)).map(|it| it.name.as_str()).collect();
        let why_not_ready = if failed {
            ("PodFailed", String::new())
        } else if completed {
            ("PodCompleted", String::new())
        } else {
            ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
        };
        let ready = unready.is_empty() && !failed && !completed;
        let sandbox = self.sandbox && !matches!(self.phase, "Failed" | "Succeeded");
        let init = if self.initialized() {
            let reason = if completed { "PodCompleted" } else { "" };
            (true, reason, String::new())
        } else {
            let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
            (false, "ContainersNotInitialized", message)
        };
        let not = |it: &(&'static str, String)| {
            if ready { (true, "", String::new()) } else { (false, it.0, it.1.clone()) }
        };
        let wanted = [
            ("PodReadyToStartContainers", (sandbox, "", String::new())),
            ("Initialized", init),
            ("Ready", not(&why_not_ready)),
            ("ContainersReady", not(&why_not_ready)),
            ("PodScheduled", (true, "", String::new())),
        ];
        let before = pod["status"]["conditions"].clone();
        let mut conditions: Vec<Value> = wanted
            .into_iter()
            .map(|(kind, (holds, reason, message))| {
                let was = list(&before).iter().find(|it| it["type"] == kind);
                let status = if holds { "True" } else { "False" };
                let since = was
                    .filter(|it| it["status"] == status)
                    .map_or_else(|| json!(now()), |it| it["lastTransitionTime"].clone());
                let mut condition = json!({"type": kind, "observedGeneration": generation,
                    "status": status, "lastProbeTime": null, "lastTransitionTime": since});
                if !reason.is_empty() {
                    condition["reason"] = json!(reason);
                }
                if !message.is_empty() {
                    condition["message"] = json!(message);
                }
                condition
            })
            .collect();
        conditions
            .extend(list(&before).iter().filter(|it| !conditions_of_kubelet(text(&it["type"]))).cloned());
        let spec = pod["spec"].clone();
        let statuses = |slots: &[Slot], of: &Value| -> Vec<Value> {
            slots.iter().zip(list(of)).map(|(slot, container)| slot.status(container)).collect()
        };
        let status = map(&mut pod["status"]);
        status.insert("observedGeneration".to_owned(), generation);
        status.insert("phase".to_owned(), json!(self.phase));
        status.insert("conditions".to_owned(), json!(conditions));
        status.insert("hostIP".to_owned(), json!("10.244.0.1"));
        status.insert("hostIPs".to_owned(), json!([{"ip": "10.244.0.1"}]));
        status.insert("startTime".to_owned(), json!(self.started));
        for (field, value) in [("reason", &self.reason), ("message", &self.message)] {
            if value.is_empty() {
                status.remove(field);
            } else {
                status.insert(field.to_owned(), json!(value));
            }
        }
        if let Some(ip) = &self.ip {
            status.insert("podIP".to_owned(), json!(ip));
            status.insert("podIPs".to_owned(), json!([{"ip": ip}]));
        }
        if !self.init.is_empty() {
            let all = statuses(&self.init, &spec["initContainers"]);
            status.insert("initContainerStatuses".to_owned(), json!(all));
        }
        let all = statuses(&self.main, &spec["containers"]);
        status.insert("containerStatuses".to_owned(), json!(all));
        // Those of the pod as a whole, which has none of its own.
        status.insert("resources".to_owned(), json!({}));
    }
}

fn conditions_of_kubelet(kind: &str) -> bool {
    matches!(kind, "PodReadyToStartContainers" | "Initialized" | "Ready" | "ContainersReady" | "PodScheduled")
}
