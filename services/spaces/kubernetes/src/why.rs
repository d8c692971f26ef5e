//! What a pod's status means, in words that a space's user understands.
//!
//! Pure functions: a status goes in, how far the run is and why it is no
//! further come out. What runtimes and kubelets say is passed on and never
//! taken apart, since it differs between them; only reasons and the
//! scheduler's own sentences are.
//!
//! Final, so that a start fails at once: an image name that is none, a program
//! that ended (a pod's program is started once), a command that cannot be
//! run, a step before the program that failed, a crash loop (where a template
//! has its program restarted), an eviction, a deadline, a lost node. All else may
//! still come right and is waited for until the start's limit: no room, an image
//! that cannot be had, a volume that is not there, a secret that is missing.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podyard_driver::Happening;

use crate::guard::MAIN;
use crate::pod::CLONE;

/// Why a pod is over that its node can tell nothing of any more.
pub(crate) const NODE_LOST: &str = "its node was lost";

/// How far a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// On its way.
    Starting,
    /// Its program answers, or did and is slow now.
    Ready,
    /// It is over.
    Over(Ended),
}

/// How a program ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// What it returned; none if it never ran or nobody knows.
    pub(crate) code: Option<i32>,
    /// When, in microseconds of Unix time; 0 if nobody knows.
    pub(crate) at: i64,
    /// Why, where a code does not say it.
    pub(crate) reason: String,
    /// Whether the cluster ended the pod for its own ends, so that another could run elsewhere.
    pub(crate) moved: bool,
}

/// How far a pod is, and why it is no further; empty if there is nothing to say.
pub(crate) fn stage(pod: &Pod) -> (Stage, String) {
    let starting = |why: String| (Stage::Starting, why);
    let Some(status) = &pod.status else { return starting(String::new()) };
    if let Some(ended) = ended(pod, status) {
        let why = ended.reason.clone();
        return (Stage::Over(ended), why);
    }
    if let Some(why) = unscheduled(status) {
        return starting(why);
    }
    let mut beside = String::new();
    for (container, first) in containers(status) {
        let Some(waiting) = container.state.as_ref().and_then(|it| it.waiting.as_ref()) else { continue };
        let (reason, message) = (text(waiting.reason.as_ref()), text(waiting.message.as_ref()));
        let what = match (first, container.name.as_str()) {
            (true, CLONE) => "the container that clones the repository",
            (true, _) => "a container that runs before the program",
            (false, MAIN) => "it",
            (false, _) => "a container beside the program",
        };
        let why = match reason {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "RegistryUnavailable"
            | "ImageInspectError" => {
                format!("the image {} cannot be had: {}", container.image, without_back_off(message))
            }
            "CreateContainerConfigError" => format!("{what} cannot be made: {message}"),
            "CreateContainerError" | "RunContainerError" | "PreStartHookError" | "PostStartHookError" => {
                format!("{what} cannot be started: {message}")
            }
            // `ended` has left these: the program itself may run as it should.
            "CrashLoopBackOff" => {
                beside = crash_loop(container, container.last_state.as_ref(), first).reason;
                continue;
            }
            // On their way.
            _ => continue,
        };
        return starting(why);
    }
    let or_beside = |words: &str| if beside.is_empty() { words.to_owned() } else { beside.clone() };
    let ready = status.conditions.iter().flatten().find(|it| it.type_ == "Ready");
    let Some(main) = status.container_statuses.iter().flatten().find(|it| it.name == MAIN) else {
        return starting(or_beside(""));
    };
    let Some(running) = main.state.as_ref().and_then(|it| it.running.as_ref()) else {
        let again = main.state.as_ref().is_some_and(|it| it.terminated.is_some());
        return starting(or_beside(if again { "its program ended and is started again" } else { "" }));
    };
    if status.pod_ip.is_none() {
        return starting(or_beside(""));
    }
    let Some(ready) = ready else { return starting(or_beside("")) };
    if ready.status == "True" {
        return (Stage::Ready, String::new());
    }
    // That the condition turned false after the program began means that it was true in between.
    let was_ready = match (&ready.last_transition_time, &running.started_at) {
        (Some(turned), Some(began)) => turned.0 > began.0,
        _ => false,
    };
    if was_ready {
        (Stage::Ready, or_beside("its program is slow to answer"))
    } else {
        starting(or_beside("its program runs and does not answer yet"))
    }
}

/// How it ended, if it has.
fn ended(pod: &Pod, status: &PodStatus) -> Option<Ended> {
    let spec = pod.spec.as_ref();
    let restarts = spec.and_then(|it| it.restart_policy.as_deref()).unwrap_or("Always");
    let going = pod.metadata.deletion_timestamp.is_some();
    let phase = status.phase.as_deref().unwrap_or_default();
    let main = status.container_statuses.iter().flatten().find(|it| it.name == MAIN);
    let terminated = main.and_then(|it| it.state.as_ref()).and_then(|it| it.terminated.as_ref());
    let over = matches!(phase, "Failed" | "Succeeded");
    let stays = |code: i32| going || restarts == "Never" || (restarts == "OnFailure" && code == 0);

    // A kubelet that is away tells of no end: what its containers were at last stays written.
    if is_lost(pod) && !over && terminated.is_none() {
        return Some(Ended { reason: NODE_LOST.to_owned(), ..Ended::default() });
    }
    // What the cluster did to the pod as a whole says more than how its program took it.
    let disrupted = (over || terminated.is_some()).then(|| disruption(status)).flatten();
    if let Some(reason) = disrupted {
        let (code, at) =
            terminated.map_or((None, 0), |it| (Some(it.exit_code), micros(it.finished_at.as_ref())));
        let moved = text(status.reason.as_ref()) != "DeadlineExceeded";
        return Some(Ended { code, at, reason, moved });
    }
    for (container, first) in containers(status) {
        let (state, last) = (container.state.as_ref(), container.last_state.as_ref());
        let before = first && !stays_beside(pod, &container.name);
        let waiting = state.and_then(|it| it.waiting.as_ref()).and_then(|it| it.reason.as_deref());
        match waiting {
            Some("InvalidImageName") => {
                let reason = format!("{:?} is no name of an image", container.image);
                return Some(Ended { reason, ..Ended::default() });
            }
            // What runs beside the program does not end it by crashing.
            Some("CrashLoopBackOff") if before || container.name == MAIN => {
                return Some(crash_loop(container, last, first));
            }
            _ => {}
        }
        if before
            && let Some(end) = state.and_then(|it| it.terminated.as_ref())
            && end.exit_code != 0
            && (over || restarts == "Never")
        {
            return Some(before_it(container, end));
        }
    }
    match terminated {
        Some(end) if over || stays(end.exit_code) => Some(of_program(pod, end)),
        _ if over => {
            let reason = [&status.message, &status.reason].into_iter().flatten().next().cloned();
            Some(Ended { reason: reason.unwrap_or_default(), ..Ended::default() })
        }
        _ => None,
    }
}

/// Whether a container that is started before the program then runs beside it:
/// the kubelet starts it again whenever it ends.
fn stays_beside(pod: &Pod, name: &str) -> bool {
    let mut first = pod.spec.iter().flat_map(|it| it.init_containers.iter().flatten());
    first.any(|it| it.name == name && it.restart_policy.as_deref() == Some("Always"))
}

/// Whether a pod is being deleted because its node is lost, so that nobody is
/// left to tell that it ended. A node may also only not want its pods any more:
/// then its kubelet ends them in its own time, and tells of it. The two differ in
/// that of a lost node the controller alone turns the pod not ready, while the
/// kubelet's word of its containers stays.
pub(crate) fn is_lost(pod: &Pod) -> bool {
    let Some(status) = pod.status.as_ref().filter(|_| pod.metadata.deletion_timestamp.is_some()) else {
        return false;
    };
    if status.reason.as_deref() == Some("NodeLost") {
        return true;
    }
    let find = |of: &str| status.conditions.iter().flatten().find(|it| it.type_ == of);
    let is = |of: &str, value: &str| find(of).is_some_and(|it| it.status == value);
    match find("DisruptionTarget").filter(|it| it.status == "True").and_then(|it| it.reason.as_deref()) {
        Some("DeletionByPodGC") => true,
        Some("DeletionByTaintManager") => {
            let gates = find("Ready").and_then(|it| it.reason.as_deref()) == Some("ReadinessGatesNotReady");
            is("Ready", "False") && is("ContainersReady", "True") && !gates
        }
        _ => false,
    }
}

/// Why the cluster ended a pod; none if it did not.
fn disruption(status: &PodStatus) -> Option<String> {
    let message = text(status.message.as_ref());
    let with = |words: &str, message: &str| {
        Some(if message.is_empty() { words.to_owned() } else { format!("{words}: {message}") })
    };
    match text(status.reason.as_ref()) {
        "Evicted" => return with("its node was short of something and evicted it", message),
        "DeadlineExceeded" => return Some("the time that it may run was over".to_owned()),
        "Preempting" | "Preempted" => return with("something more important took its place", message),
        "NodeLost" => return with(NODE_LOST, message),
        "Shutdown" | "NodeShutdown" | "Terminated" => return with("its node was shut down", message),
        "NodeAffinity" | "OutOfcpu" | "OutOfmemory" | "OutOfpods" | "UnexpectedAdmissionError" => {
            return with("its node refused it", message);
        }
        _ => {}
    }
    let target = status
        .conditions
        .iter()
        .flatten()
        .find(|it| it.type_ == "DisruptionTarget" && it.status == "True")?;
    let message = text(target.message.as_ref());
    match text(target.reason.as_ref()) {
        "EvictionByEvictionAPI" => Some("it was evicted, as when its node is emptied".to_owned()),
        "PreemptionByScheduler" => with("something more important took its place", message),
        "DeletionByTaintManager" => with("its node did not want it any more", message),
        "DeletionByPodGC" => with(NODE_LOST, message),
        "TerminationByKubelet" => with("its node ended it", message),
        _ => with("the cluster ended it", message),
    }
}

fn crash_loop(container: &ContainerStatus, last: Option<&ContainerState>, first: bool) -> Ended {
    let last = last.and_then(|it| it.terminated.as_ref());
    let who = match (first, container.name.as_str()) {
        (false, MAIN) => "its program".to_owned(),
        (true, CLONE) => "cloning the repository".to_owned(),
        (_, name) => format!("its container {name:?}"),
    };
    let times = container.restart_count + 1;
    let how = match last {
        Some(end) if end.reason.as_deref() == Some("OOMKilled") => "out of memory".to_owned(),
        Some(end) => format!("exit code {}", end.exit_code),
        None => "nobody knows how".to_owned(),
    };
    Ended {
        code: last.filter(|_| !first && container.name == MAIN).map(|it| it.exit_code),
        at: last.map_or(0, |it| micros(it.finished_at.as_ref())),
        reason: format!("{who} crashes again and again ({times} times; the last: {how})"),
        moved: false,
    }
}

/// How a step before the program failed.
fn before_it(container: &ContainerStatus, end: &ContainerStateTerminated) -> Ended {
    let what = match container.name.as_str() {
        CLONE => "its repository cannot be cloned".to_owned(),
        name => format!("the container {name:?}, which runs before the program, failed"),
    };
    let reason = match end.reason.as_deref() {
        Some("OOMKilled") => format!("{what}: out of memory"),
        Some("StartError" | "ContainerCannotRun") => format!("{what}: {}", text(end.message.as_ref())),
        _ => format!("{what}: exit code {}", end.exit_code),
    };
    Ended { code: None, at: micros(end.finished_at.as_ref()), reason, moved: false }
}

/// How the program itself ended.
fn of_program(pod: &Pod, end: &ContainerStateTerminated) -> Ended {
    let at = micros(end.finished_at.as_ref());
    match end.reason.as_deref() {
        Some("OOMKilled") => {
            let containers = pod.spec.iter().flat_map(|it| &it.containers);
            let limit = containers
                .filter(|it| it.name == MAIN)
                .find_map(|it| Some(it.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone()));
            let reason = match limit {
                Some(limit) => format!("it ran out of memory: it may use {limit}"),
                None => "it ran out of memory".to_owned(),
            };
            Ended { code: Some(end.exit_code), at, reason, moved: false }
        }
        Some("StartError" | "ContainerCannotRun") => {
            let reason = format!("its command cannot be run: {}", text(end.message.as_ref()));
            Ended { code: None, at, reason, moved: false }
        }
        _ => Ended { code: Some(end.exit_code), at, ..Ended::default() },
    }
}

/// Why no node has taken it.
fn unscheduled(status: &PodStatus) -> Option<String> {
    let condition = status.conditions.iter().flatten().find(|it| it.type_ == "PodScheduled")?;
    if condition.status == "True" {
        return None;
    }
    let message = text(condition.message.as_ref());
    if condition.reason.as_deref() == Some("SchedulingGated") {
        return Some("the cluster holds it back".to_owned());
    }
    // The scheduler tells of each node; the first that fits says what can be done.
    let has = |word: &str| message.to_ascii_lowercase().contains(word);
    let words = if has("persistentvolumeclaim") {
        "the volume of its files is not there yet"
    } else if has("volume node affinity conflict") || has("no available volume zone") {
        "the volume of its files is where no node is free"
    } else if has("insufficient") || has("too many pods") {
        "no room: no node has enough left"
    } else if has("node affinity") || has("node selector") || has("nodeselector") {
        "no node has the labels that it needs"
    } else if has("taint") {
        "no node wants it"
    } else {
        "no node takes it"
    };
    Some(if message.is_empty() { words.to_owned() } else { format!("{words}: {message}") })
}

/// What of a pod's events says more than its status does: the last warning
/// that holds a start up.
pub(crate) fn of_events(events: &[Happening]) -> Option<String> {
    let warnings = events.iter().filter(|it| it.warning);
    warnings.rev().find_map(|event| {
        let words = match event.reason.as_str() {
            "ProvisioningFailed" | "FailedBinding" => "the volume of its files cannot be made",
            "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => {
                "the volume of its files cannot be mounted"
            }
            "FailedCreatePodSandBox" | "FailedCreatePodContainer" | "NetworkNotReady" => {
                "its node cannot set it up"
            }
            "Unhealthy" => "its program runs and does not answer yet",
            _ => return None,
        };
        Some(format!("{words}: {}", event.message.trim()))
    })
}

/// The containers that run before the program (`true`), and the others.
fn containers(status: &PodStatus) -> impl Iterator<Item = (&ContainerStatus, bool)> {
    let first = status.init_container_statuses.iter().flatten().map(|it| (it, true));
    first.chain(status.container_statuses.iter().flatten().map(|it| (it, false)))
}

/// The message without how long the next try is away, which changes all the time.
fn without_back_off(message: &str) -> &str {
    match message.strip_prefix("Back-off pulling image").and_then(|it| it.split_once(": ")) {
        Some((_, rest)) => rest.strip_prefix("ErrImagePull: ").unwrap_or(rest),
        None => message,
    }
}

fn text(text: Option<&String>) -> &str {
    text.map_or("", String::as_str)
}

fn micros(time: Option<&Time>) -> i64 {
    time.map_or(0, |it| it.0.as_microsecond())
}

#[cfg(test)]
#[path = "why_tests.rs"]
mod tests;
