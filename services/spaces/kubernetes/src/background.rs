//! What goes on beside the watches: an end is looked into before it is told,
//! and a start that takes long is looked at.

use std::sync::Arc;
use std::time::Duration;

use podyard_driver::Happening;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::cache::Finished;
use crate::driver::Inner;
use crate::known::NOT_WANTED;
use crate::seen::Seen;
use crate::{change, custom, events, log, why};

/// Most that is looked into at once.
const AT_ONCE: usize = 8;
/// How much of a log's end is looked at for its last lines.
const TAIL: usize = 64 << 10;
/// How long looking into an end may take before it is told without its log.
const LIMIT: Duration = Duration::from_secs(5);

/// Looks into each end, and tells it.
pub(crate) async fn ends(inner: Arc<Inner>, mut ends: mpsc::UnboundedReceiver<Finished>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut looking = JoinSet::new();
    while let Some((space, seen)) = ends.recv().await {
        while looking.try_join_next().is_some() {}
        let (inner, places) = (inner.clone(), places.clone());
        looking.spawn(async move {
            // An error would be that the places are closed, which they never are.
            let _place = places.acquire().await;
            let lines = last_lines(&inner, &seen).await;
            inner.cache.finish(&space, &seen.uid, lines);
        });
    }
}

/// The last lines that a pod wrote; none if they cannot be had.
pub(crate) async fn last_lines(inner: &Inner, seen: &Seen) -> Vec<String> {
    if seen.speaker.is_none() {
        return Vec::new();
    }
    match tokio::time::timeout(LIMIT, log::tail(&inner.pods, seen, TAIL)).await {
        Ok(Ok(tail)) => podyard_driver::last_lines(&tail),
        Ok(Err(error)) => {
            tracing::debug!(pod = %seen.name, %error, "the log of a pod that ended cannot be read");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// Looks at the starts that take long, each after a while and then less and
/// less often. While nothing starts it asks for nothing.
pub(crate) async fn looks(inner: Arc<Inner>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut looking = JoinSet::new();
    let mut beat = tokio::time::interval(Duration::from_millis(500));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        inner.cache.give_up_waiting();
        inner.cache.give_up_lost();
        while looking.try_join_next().is_some() {}
        for space in inner.cache.missed() {
            let inner = inner.clone();
            looking.spawn(async move {
                match custom::ask_for(&inner, &space).await {
                    Ok(Some(why)) => inner.cache.explain_missed(&space, &why),
                    Ok(None) => inner.cache.await_no_more(&space, NOT_WANTED),
                    Err(error) => tracing::debug!(space, %error, "a custom resource cannot be looked at"),
                }
            });
        }
        for (space, seen) in inner.cache.due() {
            let (inner, places) = (inner.clone(), places.clone());
            looking.spawn(async move {
                let _place = places.acquire().await;
                // Also finds what a silent watch has not told.
                match change::look(&inner, &space, &seen).await {
                    Ok(Some(seen)) if !seen.is_over() => look_into(&inner, &space, &seen).await,
                    Ok(_) => {}
                    Err(error) => tracing::debug!(space, %error, "a start cannot be looked at"),
                }
            });
        }
    }
}

/// Asks for the events of a pod that is on its way, and notes what they say.
pub(crate) async fn look_into(inner: &Inner, space: &str, seen: &Seen) {
    let cluster = &inner.cluster;
    let mut all: Vec<Happening> = Vec::new();
    let claim = inner.cache.claim(space).map(|it| it.name).filter(|it| **it != *seen.name);
    for name in std::iter::once(seen.name.to_string()).chain(claim) {
        match events::of(&cluster.client, &cluster.namespace, &name).await {
            Ok(some) => all.extend(some),
            Err(error) => tracing::debug!(space, %error, "events cannot be read"),
        }
    }
    // What was told before this pod was made is of another.
    all.retain(|it| it.about != "pod" || it.at >= seen.made_at);
    if let Some(why) = why::of_events(&all) {
        inner.cache.explain(space, &seen.uid, why);
    }
}
