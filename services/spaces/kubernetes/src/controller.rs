//! The controller: makes pods and claims of custom resources, and keeps them
//! while nobody else of Podyard is there.
//!
//! Pods and claims belong to their resource: the cluster removes them with it.
//! Of several controllers one leads; the others wait.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Resource as _, ResourceExt as _};
use podyard_driver::{Error, Result};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use crate::custom::api;
use crate::driver::{Inner, Role};
use crate::error::told;
use crate::pod::Run;
use crate::seen::Seen;
use crate::space::{Space, SpaceStatus};
use crate::why::{Ended, Stage};
use crate::{KubernetesDriver, Options, Reach, Way, change, names};

/// How often a resource is looked at whatever happens. It asks for nothing
/// while all is as it should be.
const ROUND: Duration = Duration::from_secs(60);
/// How often while a pod is being deleted.
const GOING: Duration = Duration::from_secs(1);
/// When what failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// How old a pod must be that the cluster has ended, before the next one is made.
const REST: Duration = Duration::from_secs(20);
/// Resources that are worked on at once.
const AT_ONCE: u16 = 32;

/// Keeps what the custom resources of an installation say, until `shutdown`.
///
/// # Errors
/// When there is no login.
pub async fn control(options: Options, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
    let options = Options { way: Way::Pods, reach: Reach::Direct, ..options };
    let driver = KubernetesDriver::with_role(options, Role::Controller).await?;
    let mut leads = driver.inner.leads();
    let work = async {
        loop {
            // The sender lives as long as the driver.
            if leads.wait_for(|it| *it).await.is_err() {
                return;
            }
            tracing::info!("this controller leads");
            tokio::select! {
                () = lead(&driver.inner) => {}
                _ = leads.wait_for(|it| !*it) => tracing::warn!("this controller leads no more"),
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown => {}
    }
    driver.end().await;
    Ok(())
}

/// What reconciling needs.
struct Context {
    inner: Arc<Inner>,
    /// The names of the resources, by their spaces' ids.
    names: Mutex<HashMap<String, String>>,
}

/// Reconciles until it is dropped.
async fn lead(inner: &Arc<Inner>) {
    let context = Arc::new(Context { inner: inner.clone(), names: Mutex::default() });
    let selected = watcher::Config::default().labels(&names::selector(&inner.options)).timeout(60);
    let (observed, known, namespace) =
        (inner.cache.observe(), context.clone(), inner.cluster.namespace.clone());
    // What happens to a pod is a reason to look at its resource.
    let pods = stream::unfold(observed, |mut observed| async move {
        loop {
            match observed.recv().await {
                Ok(seen) => return Some((seen.id, observed)),
                // What was missed is found in the next round.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let pods = pods.filter_map(move |space| {
        let name = known.names.lock().unwrap_or_else(PoisonError::into_inner).get(&space).cloned();
        std::future::ready(name.map(|it| ObjectRef::new(&it).within(&namespace)))
    });
    let watched: Api<Space> = Api::namespaced(inner.cluster.watching.clone(), &inner.cluster.namespace);
    Controller::new(watched, selected)
        .with_config(controller::Config::default().concurrency(AT_ONCE))
        .reconcile_on(pods)
        .run(reconcile, |_, _, _| Action::requeue(AGAIN), context)
        .for_each(|done| {
            match done {
                // Its pod goes after it, which is no reason to look at what is gone.
                Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
                Err(controller::Error::QueueError(error)) if is_unknown(&error) => {
                    tracing::error!(
                        "the cluster does not know spaces: apply what `podyard crd` prints; it is tried again"
                    );
                }
                Err(error) => {
                    tracing::warn!(%error, "a space's custom resource cannot be followed; it is tried again");
                }
            }
            std::future::ready(())
        })
        .await;
}

/// Whether the cluster has no definition of the resource.
fn is_unknown(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

async fn reconcile(space: Arc<Space>, context: Arc<Context>) -> Result<Action> {
    let (inner, spec) = (&context.inner, &space.spec);
    let name = space.name_any();
    let names = || context.names.lock().unwrap_or_else(PoisonError::into_inner);
    // Its pod and claim go with it.
    if space.meta().deletion_timestamp.is_some() {
        let mut names = names();
        if names.get(&spec.id) == Some(&name) {
            names.remove(&spec.id);
        }
        return Ok(Action::await_change());
    }
    inner.synced().await?;
    let pod = inner.cache.pod(&spec.id);
    if pod.is_some_and(|it| !it.owner.is_empty() && Some(&*it.owner) != space.meta().uid.as_deref()) {
        let message = format!("another resource has the id {} and a pod", spec.id);
        let status = SpaceStatus { phase: "Failed".to_owned(), message, ..status_of(&space, None, "") };
        write(inner, &space, status).await?;
        return Ok(Action::requeue(ROUND));
    }
    names().insert(spec.id.clone(), name);
    mark(inner, &space).await?;
    let done = act(inner, &space).await;
    let status = match &done {
        Ok(()) => status_of(&space, inner.cache.pod(&spec.id).as_ref(), &inner.cache.why(&spec.id)),
        Err(error) => SpaceStatus {
            phase: "Failed".to_owned(),
            message: error.to_string(),
            ..status_of(&space, None, "")
        },
    };
    write(inner, &space, status).await?;
    match done {
        // Nothing but another spec mends that.
        Err(Error::Invalid(_)) => Ok(Action::await_change()),
        Err(error) => Err(error),
        // What has ended says no more when it is gone.
        Ok(()) if inner.cache.pod(&spec.id).is_some_and(|it| it.going) => Ok(Action::requeue(GOING)),
        Ok(()) => Ok(Action::requeue(inner.cache.pod(&spec.id).as_ref().and_then(rests).unwrap_or(ROUND))),
    }
}

/// Labels one that was made by hand as Podyard's own are, by which they are found.
async fn mark(inner: &Inner, space: &Space) -> Result<()> {
    let labels = names::labels(&space.spec.launch(), &inner.options);
    let is = space.labels();
    if labels.iter().all(|(key, value)| is.get(key).is_some_and(|it| *value == **it)) {
        return Ok(());
    }
    let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
    let patch = json!({ "metadata": { "labels": labels } });
    let marked = api(inner).patch(&space.name_any(), &params, &Patch::Merge(&patch)).await;
    marked.map(|_| ()).map_err(|error| told("it cannot be labelled", error))
}

/// Does what the spec asks for and the pod is not.
async fn act(inner: &Arc<Inner>, space: &Space) -> Result<()> {
    let spec = &space.spec;
    let seen = inner.cache.pod(&spec.id);
    let other = seen.as_ref().filter(|it| !spec.run.is_empty() && *it.instance != *spec.run);
    let other = other.or(seen.as_ref().filter(|it| rests(it) == Some(Duration::ZERO)));
    match (&seen, spec.running) {
        (None, false) => {}
        // What ended by itself stays so until there is another run; what is
        // being deleted is made anew once it is gone.
        (Some(_), true) if other.is_none() => {}
        (seen, running) => {
            if let Some(seen) = seen.as_ref().filter(|_| !running || other.is_some()) {
                let status = SpaceStatus { phase: "Stopping".to_owned(), ..status_of(space, Some(seen), "") };
                write(inner, space, status).await?;
                change::stop(inner, &spec.id, inner.options.grace).await?;
            }
            if running {
                let mut run = Run::new();
                if !spec.run.is_empty() {
                    run.instance.clone_from(&spec.run);
                }
                let owner = space.controller_owner_ref(&());
                change::start_run(inner, &spec.launch(), &run, owner.as_ref()).await?;
            }
        }
    }
    // Who deletes a resource takes note of no exit.
    inner.cache.take_note(&spec.id);
    Ok(())
}

/// How long it is until a pod that the cluster ended for its own ends is made
/// anew; none if it is not. One that is evicted again and again is not to keep the
/// cluster busy.
fn rests(seen: &Seen) -> Option<Duration> {
    let Stage::Over(Ended { moved: true, .. }) = &seen.stage else { return None };
    let age = Timestamp::now().as_microsecond().saturating_sub(seen.made_at);
    Some(REST.saturating_sub(Duration::from_micros(u64::try_from(age).unwrap_or(0))))
}

fn status_of(space: &Space, seen: Option<&Seen>, why: &str) -> SpaceStatus {
    let (phase, message) = match seen.map(|it| &it.stage) {
        None if space.spec.running => ("Starting", String::new()),
        None => ("Stopped", String::new()),
        Some(Stage::Starting) => ("Starting", why.to_owned()),
        Some(Stage::Ready) => ("Ready", why.to_owned()),
        Some(Stage::Over(ended)) => match (ended.code, ended.reason.as_str()) {
            (Some(0), "") => ("Ended", "its program ended".to_owned()),
            (Some(code), "") => ("Failed", format!("its program ended with exit code {code}")),
            (_, reason) => ("Failed", reason.to_owned()),
        },
    };
    SpaceStatus {
        phase: phase.to_owned(),
        message,
        pod: seen.map(|it| it.name.to_string()),
        node: seen.and_then(|it| it.node.as_deref().map(str::to_owned)),
        run: seen.map_or_else(|| space.spec.run.clone(), |it| it.instance.to_string()),
        observed_generation: space.metadata.generation.unwrap_or(0),
        conditions: Vec::new(),
    }
}

/// Writes a status that says something new.
async fn write(inner: &Inner, space: &Space, mut status: SpaceStatus) -> Result<()> {
    let before = space.status.as_ref();
    let is = if status.phase == "Ready" { "True" } else { "False" };
    let last = before.and_then(|it| it.conditions.iter().find(|it| it.type_ == "Ready" && it.status == is));
    status.conditions = vec![Condition {
        type_: "Ready".to_owned(),
        status: is.to_owned(),
        reason: status.phase.clone(),
        message: status.message.clone(),
        last_transition_time: last
            .map_or_else(|| Time(Timestamp::now()), |it| it.last_transition_time.clone()),
        observed_generation: Some(status.observed_generation),
    }];
    if before == Some(&status) {
        return Ok(());
    }
    let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
    let patch = json!({ "status": status });
    let (api, name) = (api(inner), space.name_any());
    let written = api.patch_status(&name, &params, &Patch::Merge(&patch)).await;
    match written.map_err(|error| told("its status cannot be written", error)) {
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::debug!(space = space.spec.id, %error, "a status cannot be written");
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::launch;
    use crate::space::SpaceSpec;

    #[test]
    fn what_is_said_of_a_space() {
        let mut space = Space::new("s", SpaceSpec::of(&launch(), "r"));
        let said = |space: &Space, seen: Option<&Seen>| {
            let status = status_of(space, seen, "no room");
            (status.phase, status.message)
        };
        let pair = |phase: &str, message: &str| (phase.to_owned(), message.to_owned());
        assert_eq!(said(&space, None), pair("Starting", ""));
        let mut seen = Seen::of(&k8s_openapi::api::core::v1::Pod::default());
        assert_eq!(said(&space, Some(&seen)), pair("Starting", "no room"));
        seen.stage = Stage::Over(Ended { code: Some(3), ..Ended::default() });
        assert_eq!(said(&space, Some(&seen)), pair("Failed", "its program ended with exit code 3"));
        seen.stage = Stage::Over(Ended { reason: "evicted".into(), ..Ended::default() });
        assert_eq!(said(&space, Some(&seen)), pair("Failed", "evicted"));
        space.spec.running = false;
        assert_eq!(said(&space, None), pair("Stopped", ""));
    }
}
