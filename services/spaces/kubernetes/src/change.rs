//! What changes something in the cluster: start, stop, delete, resize.
//!
//! Each finds out what there is, does the one next thing, and looks again, so
//! that it may be cut off anywhere and asked for again, here or in another
//! process. What is deleted is named by its uid: never its successor.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use podyard_driver::{Error, Exit, Instance, Launch, Result};
use tokio::time::Instant;

use crate::claim::{self, Kept};
use crate::driver::Inner;
use crate::error::{ask, is, raw, status, told};
use crate::pod::{self, Run};
use crate::seen::Seen;
use crate::{background, names};

/// How long a pod may take to go beyond its grace.
const GOING: Duration = Duration::from_secs(30);
/// How often whoever waits looks itself: a watch that is silent holds up nobody.
const LOOK: Duration = Duration::from_secs(3);
/// How long a start may take to get past what others do to its pod.
const STARTS: Duration = Duration::from_secs(60);
/// How long to wait before what others got in the way of is done again, and how often.
const PAUSE: Duration = Duration::from_millis(200);
const TRIES: u32 = 5;
/// How long a claim may take to go once nothing uses it.
const CLAIM_GOES: Duration = Duration::from_secs(15);
/// How long a claim may take to grow before it is said that it will at the next start.
const GROWS: Duration = Duration::from_secs(5);

const START: &str = "the space's pod cannot be made";
const LOOKING: &str = "the space's pod cannot be looked at";
const STOP: &str = "the space's pod cannot be ended";
const CLAIM: &str = "the claim of the space's files cannot be made";
const GROW: &str = "the space's files cannot grow";

pub(crate) fn applied() -> PatchParams {
    PatchParams::apply(names::MANAGER).force()
}

/// Starts a space, or finds that it runs.
pub(crate) async fn start(inner: &Arc<Inner>, launch: &Launch) -> Result<Instance> {
    start_run(inner, launch, &Run::new(), None).await
}

/// The same as a run that whoever asks has named, of an owner's.
pub(crate) async fn start_run(
    inner: &Arc<Inner>,
    launch: &Launch,
    run: &Run,
    owner: Option<&OwnerReference>,
) -> Result<Instance> {
    // What is wrong with the launch is told before anything is asked.
    pod::pod(launch, &inner.options, run, None, None)?;
    inner.synced().await?;
    let deadline = Instant::now() + STARTS;
    loop {
        if Instant::now() >= deadline {
            return Err(Error::Stuck("others in the cluster get in the way of the space's pod".to_owned()));
        }
        if let Some(seen) = inner.cache.pod(&launch.id) {
            // The cache may be behind.
            let Some(seen) = look(inner, &launch.id, &seen).await? else { continue };
            if !seen.is_over() && !seen.going {
                return Ok(instance(&seen));
            }
            end(inner, &launch.id, &seen, Duration::ZERO).await?;
            continue;
        }
        let kept = ensure_claim(inner, launch, owner).await?;
        let pod = pod::pod(launch, &inner.options, run, Some(&kept), owner)?;
        let name = names::object_name(launch);
        match raw(START, inner.pods.patch(&name, &applied(), &Patch::Apply(&pod))).await? {
            Ok(made) => {
                let seen = Seen::of(&made);
                inner.cache.put(&launch.id, seen.clone(), true);
                tracing::info!(space = launch.id, pod = name, instance = run.instance, "space started");
                return Ok(instance(&seen));
            }
            // A pod of another run has the name: it cannot be changed into this one.
            Err(error) if is(&error, 422) || is(&error, 409) => {
                let there = ask(LOOKING, inner.pods.get_opt(&name)).await?;
                match there {
                    Some(there) if own(inner, &there, &launch.id) => {
                        inner.cache.put(&launch.id, Seen::of(&there), true);
                        if inner.cache.pod(&launch.id).is_none() {
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                    Some(_) => return Err(foreign("pod", &name)),
                    // It went in between.
                    None if is(&error, 409) => tokio::time::sleep(PAUSE).await,
                    None => return Err(told(START, error)),
                }
            }
            Err(error) => return Err(told(START, error)),
        }
    }
}

fn instance(seen: &Seen) -> Instance {
    Instance { id: seen.instance.to_string(), started_at: seen.made_at }
}

fn own(inner: &Inner, pod: &Pod, space: &str) -> bool {
    names::space_of_pod(&pod.metadata, &inner.options).as_deref() == Some(space)
}

fn foreign(what: &str, name: &str) -> Error {
    Error::Unavailable(format!("the cluster has a {what} {name} already that is not Podyard's own"))
}

/// Asks the API server for a pod, and notes the answer. None if it is gone.
pub(crate) async fn look(inner: &Inner, space: &str, seen: &Seen) -> Result<Option<Seen>> {
    let there = ask(LOOKING, inner.pods.get_opt(&seen.name)).await?;
    let there = there.filter(|it| own(inner, it, space)).map(|it| Seen::of(&it));
    match &there {
        Some(there) => inner.cache.put(space, there.clone(), true),
        None => inner.cache.gone(space, &seen.uid),
    }
    Ok(there)
}

/// Makes the claim, or finds that it is there; lets it grow.
async fn ensure_claim(inner: &Inner, launch: &Launch, owner: Option<&OwnerReference>) -> Result<Kept> {
    let name = names::object_name(launch);
    let mut kept = inner.cache.claim(&launch.id);
    if kept.is_none() {
        // What has the name may be somebody else's, or not have come by the watch yet.
        if let Some(there) = ask(CLAIM, inner.claims.get_opt(&name)).await? {
            if names::space_of(&there.metadata, &inner.options).as_ref() != Some(&launch.id) {
                return Err(foreign("claim", &name));
            }
            kept = Some(Kept::of(&there));
        }
    }
    let Some(kept) = kept else {
        let wanted = claim::claim(launch, &inner.options, owner)?;
        let made = ask(CLAIM, inner.claims.patch(&name, &applied(), &Patch::Apply(&wanted))).await?;
        let made = Kept::of(&made);
        inner.cache.put_claim(&launch.id, made.clone());
        return Ok(made);
    };
    if kept.going {
        return Err(Error::Unavailable("the claim of the space's files is being removed".to_owned()));
    }
    if !kept.is_less_than(&launch.storage) {
        return Ok(kept);
    }
    match grow(inner, launch, &kept).await {
        // Who resizes is told; a start goes on with what is there, or nobody got at the files.
        Err(Error::Invalid(why)) => {
            tracing::warn!(
                space = launch.id,
                has = kept.asked,
                wants = launch.storage,
                why,
                "a volume is smaller than its space"
            );
            Ok(kept)
        }
        other => other,
    }
}

async fn grow(inner: &Inner, launch: &Launch, kept: &Kept) -> Result<Kept> {
    let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
    let patch = claim::grown(&launch.storage);
    match raw(GROW, inner.claims.patch(&kept.name, &params, &Patch::Merge(&patch))).await? {
        Ok(made) => {
            let made = Kept::of(&made);
            inner.cache.put_claim(&launch.id, made.clone());
            Ok(made)
        }
        Err(error) if is(&error, 403) && !is_quota(&error) => {
            let why = status(&error).map(|it| it.message.clone()).unwrap_or_default();
            Err(Error::Invalid(format!("the volume of the space's files cannot grow: {why}")))
        }
        // A claim that is not bound yet does not change; it will once it is.
        Err(error) if is(&error, 422) && kept.phase == "Pending" => Ok(kept.clone()),
        Err(error) => Err(told(GROW, error)),
    }
}

fn is_quota(error: &kube::Error) -> bool {
    status(error).is_some_and(|it| it.message.contains("quota"))
}

/// Gives a space's files the room that its launch names.
pub(crate) async fn resize(inner: &Arc<Inner>, launch: &Launch) -> Result<bool> {
    inner.synced().await?;
    // What is not there yet is made as large as it is to be.
    let Some(kept) = inner.cache.claim(&launch.id) else { return Ok(true) };
    if !kept.is_less_than(&launch.storage) {
        if crate::quantity::parse(&kept.asked) == crate::quantity::parse(&launch.storage) {
            return Ok(has(&kept, &launch.storage));
        }
        return Err(Error::Invalid(format!("a space's files cannot shrink: they have {}", kept.asked)));
    }
    grow(inner, launch, &kept).await?;
    let mut changes = inner.cache.changes();
    let deadline = Instant::now() + GROWS;
    loop {
        match inner.cache.claim(&launch.id) {
            Some(kept) if has(&kept, &launch.storage) => return Ok(true),
            Some(kept) if !kept.grows_at_start => {}
            _ => return Ok(false),
        }
        if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
            return Ok(false);
        }
    }
}

fn has(kept: &Kept, wanted: &str) -> bool {
    crate::quantity::parse(&kept.has) >= crate::quantity::parse(wanted)
}

/// Ends a space's pod, and tells how it ended.
pub(crate) async fn stop(inner: &Arc<Inner>, space: &str, grace: Duration) -> Result<Option<Exit>> {
    inner.synced().await?;
    match running(inner, space).await? {
        Some(seen) => end(inner, space, &seen, grace).await,
        None => Ok(inner.cache.take_note(space)),
    }
}

/// The pod of a space. What the cache does not have, another process may just
/// have made.
async fn running(inner: &Inner, space: &str) -> Result<Option<Seen>> {
    if let Some(seen) = inner.cache.pod(space) {
        return Ok(Some(seen));
    }
    if inner.cache.is_noted(space) {
        return Ok(None);
    }
    find(inner, space).await
}

/// A space's pod as the API server has it now, into the cache: the watch may
/// be behind, and another process may have started it.
pub(crate) async fn look_anew(inner: &Inner, space: &str) -> Result<()> {
    let known = match inner.cache.pod(space) {
        Some(seen) => look(inner, space, &seen).await?,
        None => None,
    };
    if known.is_none() {
        find(inner, space).await?;
    }
    Ok(())
}

async fn find(inner: &Inner, space: &str) -> Result<Option<Seen>> {
    let wanted = ListParams::default().labels(&names::selector_of(&inner.options, space));
    let found = ask(LOOKING, inner.pods.list(&wanted)).await?;
    let found = found.items.iter().find(|it| own(inner, it, space)).map(Seen::of);
    if let Some(seen) = &found {
        inner.cache.put(space, seen.clone(), true);
    }
    Ok(found)
}

/// Deletes a pod and waits until it is gone. A pod that runs gets a second at
/// least: with less the cluster forgets it while its program still runs. (One
/// whose containers have all ended goes at once, whatever it gets.) A
/// kubelet keeps to the grace that it was given first; a later, shorter one is
/// passed on for those that do not. A pod whose node is lost gets no grace: nobody
/// is left to end it, and the cluster would keep it and its name for ever.
pub(crate) async fn end(
    inner: &Arc<Inner>,
    space: &str,
    seen: &Seen,
    grace: Duration,
) -> Result<Option<Exit>> {
    inner.cache.stopping(space, &seen.uid);
    if !seen.is_over() && seen.stage == crate::why::Stage::Starting {
        // It never got ready: why, and what it said, goes with the pod.
        background::look_into(inner, space, seen).await;
    }
    let why = inner.cache.why(space);
    let lines = match seen.stage {
        crate::why::Stage::Starting => background::last_lines(inner, seen).await,
        _ => Vec::new(),
    };
    let seconds = grace.as_secs().max(1);
    let mut given_up = seen.is_given_up();
    remove(inner, space, seen, if given_up { 0 } else { seconds }).await?;
    let deadline = Instant::now() + Duration::from_secs(seconds) + GOING;
    let mut changes = inner.cache.changes();
    let mut next = Instant::now() + LOOK;
    while let Some(there) = inner.cache.pod(space).filter(|it| it.uid == seen.uid) {
        if !given_up && there.is_given_up() {
            given_up = true;
            remove(inner, space, seen, 0).await?;
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(Error::Stuck("the space's pod does not end: its node may be away".to_owned()));
        }
        if now >= next {
            next = now + LOOK;
            look(inner, space, seen).await?;
            continue;
        }
        // An error would be that the driver is gone, and this with it.
        let _ = tokio::time::timeout_at(next, changes.changed()).await;
    }
    let mut exit = inner.cache.take_note(space);
    if let Some(exit) = &mut exit {
        if exit.reason.is_empty() && seen.stage == crate::why::Stage::Starting {
            exit.reason = why;
        }
        if exit.last_lines.is_empty() {
            exit.last_lines = lines;
        }
    }
    Ok(exit)
}

/// Deletes a pod, and never its successor.
async fn remove(inner: &Inner, space: &str, seen: &Seen, seconds: u64) -> Result<()> {
    let params = DeleteParams {
        grace_period_seconds: Some(u32::try_from(seconds).unwrap_or(u32::MAX)),
        preconditions: Some(Preconditions { uid: Some(seen.uid.to_string()), resource_version: None }),
        ..DeleteParams::default()
    };
    let mut tries = 0;
    while let Err(error) = raw(STOP, inner.pods.delete(&seen.name, &params)).await? {
        if !is(&error, 404) && !is(&error, 409) {
            return Err(told(STOP, error));
        }
        // It is gone, or another has its name; or it was only changed meanwhile.
        match look(inner, space, seen).await? {
            Some(there) if there.uid == seen.uid && (seconds == 0 || !there.going) => {}
            _ => break,
        }
        tries += 1;
        if tries == TRIES {
            return Err(told(STOP, error));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Removes what is kept of a space.
pub(crate) async fn delete(inner: &Arc<Inner>, space: &str) -> Result<()> {
    const WHAT: &str = "the claim of the space's files cannot be removed";
    inner.synced().await?;
    if let Some(seen) = running(inner, space).await? {
        match look(inner, space, &seen).await? {
            Some(seen) if !seen.is_over() && !seen.going => return Err(Error::Running),
            Some(seen) => {
                end(inner, space, &seen, Duration::ZERO).await?;
            }
            None => {}
        }
    }
    inner.cache.take_note(space);
    let wanted = ListParams::default().labels(&names::selector_of(&inner.options, space));
    let claims = ask(WHAT, inner.claims.list(&wanted)).await?;
    for claim in claims.items {
        if names::space_of(&claim.metadata, &inner.options).as_deref() != Some(space) {
            continue;
        }
        let kept = Kept::of(&claim);
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(kept.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        match raw(WHAT, inner.claims.delete(&kept.name, &params)).await? {
            Ok(_) => {}
            Err(error) if is(&error, 404) => {}
            Err(error) => return Err(told(WHAT, error)),
        }
        // Whatever else uses it keeps it until then.
        let deadline = Instant::now() + CLAIM_GOES;
        let mut pause = Duration::from_millis(50);
        while ask(WHAT, inner.claims.get_opt(&kept.name))
            .await?
            .is_some_and(|it| it.metadata.uid.as_deref() == Some(&kept.uid))
        {
            if Instant::now() >= deadline {
                return Err(Error::Stuck(
                    "the claim of the space's files does not go: something uses it".to_owned(),
                ));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
        inner.cache.claim_gone(space, &kept.uid);
    }
    tracing::info!(space, "space's files removed");
    Ok(())
}
