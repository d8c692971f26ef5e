//! What is kept of a pod: some hundred bytes, whatever its size.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::guard::MAIN;
use crate::names;
use crate::why::{self, Stage};

/// How many seconds a pod may be there beyond its grace until its node is given up.
const GIVEN_UP: i64 = 30;

/// A pod, as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) name: Box<str>,
    pub(crate) uid: Box<str>,
    /// The uid of the custom resource that it belongs to; empty if it is nobody's.
    pub(crate) owner: Box<str>,
    /// Its version, which says which of two sights is the newer; 0 if that is no number.
    pub(crate) version: u64,
    pub(crate) instance: Box<str>,
    pub(crate) secret: Box<str>,
    pub(crate) node: Option<Box<str>>,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) port: u16,
    /// When it was made, in microseconds of Unix time.
    pub(crate) made_at: i64,
    pub(crate) stage: Stage,
    /// Why it is no further.
    pub(crate) why: String,
    /// Whether it is being deleted.
    pub(crate) going: bool,
    /// From when on, in microseconds of Unix time, nobody is believed to be there
    /// that still ends it; none if it is not being deleted.
    pub(crate) given_up: Option<i64>,
    /// The container whose log says most: the program's, or the one before it
    /// that is not over or failed. None while nothing has run.
    pub(crate) speaker: Option<Box<str>>,
}

impl Seen {
    pub(crate) fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let (stage, why) = why::stage(pod);
        let main = pod.spec.iter().flat_map(|it| &it.containers).find(|it| it.name == MAIN);
        let annotations = meta.annotations.as_ref();
        let text = |text: Option<&String>| text.map_or("", String::as_str).into();
        Self {
            name: text(meta.name.as_ref()),
            uid: text(meta.uid.as_ref()),
            owner: text(
                meta.owner_references
                    .iter()
                    .flatten()
                    .find(|it| it.controller == Some(true))
                    .map(|it| &it.uid),
            ),
            version: meta.resource_version.as_ref().and_then(|it| it.parse().ok()).unwrap_or(0),
            // A pod that somebody took the annotation from is still one run.
            instance: text(annotations.and_then(|it| it.get(names::INSTANCE)).or(meta.uid.as_ref())),
            secret: variable(main, "PODYARD_SPACE_SECRET").into(),
            node: pod.spec.as_ref().and_then(|it| it.node_name.as_deref()).map(Into::into),
            ip: pod.status.as_ref().and_then(|it| it.pod_ip.as_ref()).and_then(|it| it.parse().ok()),
            port: variable(main, "PODYARD_PORT").parse().unwrap_or(0),
            made_at: meta.creation_timestamp.as_ref().map_or(0, |it| it.0.as_microsecond()),
            stage,
            why,
            going: meta.deletion_timestamp.is_some(),
            given_up: given_up(pod),
            speaker: speaker(pod),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over(_))
    }

    /// Whether its node had its time to end it, or is known to be lost.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.is_some_and(|at| at <= jiff::Timestamp::now().as_microsecond())
    }
}

/// When a pod is given up that is being deleted: at once if its node is lost, else
/// a while after its node should have ended it. That is the time that it is
/// to be gone by, and its grace once more: the grace may have been made shorter
/// after its kubelet began.
fn given_up(pod: &Pod) -> Option<i64> {
    let by = pod.metadata.deletion_timestamp.as_ref()?.0.as_microsecond();
    if why::is_lost(pod) {
        return Some(0);
    }
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0).max(0);
    let more = grace.saturating_add(GIVEN_UP).saturating_mul(1_000_000);
    Some(by.saturating_add(more))
}

/// The value of a variable that was given as a text.
fn variable<'a>(container: Option<&'a Container>, name: &str) -> &'a str {
    let env = container.iter().flat_map(|it| it.env.iter().flatten());
    env.filter(|it| it.name == name).find_map(|it| it.value.as_deref()).unwrap_or_default()
}

fn speaker(pod: &Pod) -> Option<Box<str>> {
    let status = pod.status.as_ref()?;
    let spoke = |it: &&k8s_openapi::api::core::v1::ContainerStatus| {
        let state = it.state.as_ref();
        it.restart_count > 0 || state.is_some_and(|it| it.running.is_some() || it.terminated.is_some())
    };
    let main = status.container_statuses.iter().flatten().filter(|it| it.name == MAIN).find(spoke);
    let first = status.init_container_statuses.iter().flatten().rev().find(spoke);
    main.or(first).map(|it| it.name.clone().into())
}
