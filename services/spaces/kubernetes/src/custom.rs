//! The driver by way of custom resources: it writes what is to be, and a
//! controller (`crate::controller`) makes it so, with the same pods.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use podyard_driver::{Error, Exit, Instance, Launch, Result};
use serde_json::json;

use crate::change::{self, applied};
use crate::driver::Inner;
use crate::error::{ask, is, raw, told};
use crate::names;
use crate::pod::{self, Run};
use crate::space::{Space, SpaceSpec};

const WHAT: &str = "the space's custom resource cannot be written";

pub(crate) fn api(inner: &Inner) -> Api<Space> {
    Api::namespaced(inner.cluster.client.clone(), &inner.cluster.namespace)
}

/// The resource of a space, under whatever name it was made.
async fn find(inner: &Inner, space: &str) -> Result<Option<Space>> {
    let wanted = ListParams::default().labels(&names::selector_of(&inner.options, space));
    let list = ask(WHAT, api(inner).list(&wanted)).await?;
    Ok(list.items.into_iter().find(|it| it.spec.id == space))
}

/// Why a space that is to run has no pod, as its resource says; none: it is not to run.
pub(crate) async fn ask_for(inner: &Inner, space: &str) -> Result<Option<String>> {
    let there = find(inner, space).await?;
    let wanted = there.filter(|it| it.spec.running && it.metadata.deletion_timestamp.is_none());
    let why = |it: Space| {
        let seen = it.status.filter(|status| Some(status.observed_generation) == it.metadata.generation);
        seen.map_or_else(
            || "no controller has made its pod yet: does `podyard controller` run?".to_owned(),
            |status| status.message,
        )
    };
    Ok(wanted.map(why))
}

/// Says that a space is to run, or finds that it is to already.
pub(crate) async fn start(inner: &Arc<Inner>, launch: &Launch) -> Result<Instance> {
    let run = Run::new();
    pod::pod(launch, &inner.options, &run, None, None)?;
    inner.synced().await?;
    if let Some(seen) = inner.cache.pod(&launch.id)
        && let Some(seen) = change::look(inner, &launch.id, &seen).await?
    {
        if !seen.is_over() && !seen.going {
            return Ok(Instance { id: seen.instance.to_string(), started_at: seen.made_at });
        }
        stop(inner, &launch.id, Duration::ZERO).await?;
    }
    let started_at = jiff::Timestamp::now().as_microsecond();
    let there = find(inner, &launch.id).await?;
    if let Some(there) = there.as_ref().filter(|it| it.spec.running && !it.spec.run.is_empty()) {
        inner.cache.expect(&launch.id, &there.spec.run);
        return Ok(Instance { id: there.spec.run.clone(), started_at });
    }
    let found = there.and_then(|it| it.metadata.name);
    let name = match found {
        Some(name) => name,
        None => {
            let name = names::object_name(launch);
            if ask(WHAT, api(inner).get_opt(&name)).await?.is_some() {
                return Err(Error::Unavailable(format!(
                    "the cluster has a custom resource {name} already that is not Podyard's own"
                )));
            }
            name
        }
    };
    let space = json!({
        "apiVersion": "podyard.dev/v1alpha1",
        "kind": "Space",
        "metadata": {
            "name": name,
            "labels": names::labels(launch, &inner.options),
            "annotations": names::annotations(launch),
        },
        "spec": SpaceSpec::of(launch, &run.instance),
    });
    ask(WHAT, api(inner).patch(&name, &applied(), &Patch::Apply(&space))).await?;
    inner.cache.expect(&launch.id, &run.instance);
    tracing::info!(space = launch.id, resource = name, instance = run.instance, "space is to run");
    Ok(Instance { id: run.instance, started_at })
}

/// Says that a space is not to run, and ends its pod.
pub(crate) async fn stop(inner: &Arc<Inner>, space: &str, grace: Duration) -> Result<Option<Exit>> {
    inner.synced().await?;
    // The controller may be the faster to end it, and nobody else it is.
    if let Some(seen) = inner.cache.pod(space) {
        inner.cache.stopping(space, &seen.uid);
    }
    if let Some(there) = find(inner, space).await?.filter(|it| it.spec.running) {
        let name = there.metadata.name.unwrap_or_default();
        let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
        let stopped = json!({ "spec": { "running": false } });
        match raw(WHAT, api(inner).patch(&name, &params, &Patch::Merge(&stopped))).await? {
            Ok(_) => {}
            Err(error) if is(&error, 404) => {}
            Err(error) => return Err(told(WHAT, error)),
        }
    }
    change::stop(inner, space, grace).await
}

/// Removes the resource, and with it all that is kept.
pub(crate) async fn delete(inner: &Arc<Inner>, space: &str) -> Result<()> {
    inner.synced().await?;
    if inner.cache.pod(space).is_some_and(|it| !it.is_over() && !it.going) {
        return Err(Error::Running);
    }
    if let Some(there) = find(inner, space).await? {
        let name = there.metadata.name.unwrap_or_default();
        match raw(WHAT, api(inner).delete(&name, &DeleteParams::background())).await? {
            Ok(_) => {}
            Err(error) if is(&error, 404) => {}
            Err(error) => return Err(told(WHAT, error)),
        }
    }
    change::delete(inner, space).await
}
