//! The two watches of a process: all pods, and all claims, of its installation.
//!
//! kube's runtime lists and watches, takes bookmarks, lists anew when a
//! version is gone, waits longer after each failure. What it brings goes into
//! the [`Cache`], which keeps far less than the objects: that is why there is
//! no reflector, whose store keeps them whole.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::Api;
use kube::runtime::watcher as watch;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;

use crate::cache::Cache;
use crate::claim::Kept;
use crate::seen::Seen;
use crate::{Options, error, names};

/// After so many seconds the server ends a watch, and it is begun anew where
/// it was. One that is silent for five more, without as much as a bookmark, is
/// given up: so long can a broken one go unnoticed. It is one request a
/// minute for each kind.
const RENEWED: u32 = 60;

/// How long to wait after the first failure and at most: a cluster that is
/// back is seen within seconds.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Waits twice as long after each failure, a little differently in each
/// process: not all of them come back at once.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSES.0)
    }
}

impl Pause {
    fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::random_range(0.5..1.0));
        self.0 = (self.0 * 2).min(PAUSES.1);
        pause
    }
}

fn selected(options: &Options) -> watcher::Config {
    watcher::Config::default().labels(&names::selector(options)).timeout(RENEWED)
}

/// Watches the pods until it is dropped.
pub(crate) async fn pods(api: Api<Pod>, cache: Arc<Cache>, options: Arc<Options>) {
    let (mut began, mut listed) = (Instant::now(), HashSet::new());
    follow(api, selected(&options), &cache.clone(), |event| match event {
        Event::Init => (began, listed) = (Instant::now(), HashSet::new()),
        Event::InitApply(pod) => {
            if let Some(space) = names::space_of_pod(&pod.metadata, &options) {
                cache.put(&space, Seen::of(&pod), false);
                listed.insert(space);
            }
        }
        Event::InitDone => cache.pods_listed(&std::mem::take(&mut listed), began),
        Event::Apply(pod) => {
            if let Some(space) = names::space_of_pod(&pod.metadata, &options) {
                cache.put(&space, Seen::of(&pod), false);
            }
        }
        Event::Delete(pod) => {
            if let Some(space) = names::space_of_pod(&pod.metadata, &options) {
                // What it was at last says how it ended.
                let seen = Seen::of(&pod);
                let uid = seen.uid.clone();
                cache.put(&space, seen, false);
                cache.gone(&space, &uid);
            }
        }
    })
    .await;
}

/// Watches the claims until it is dropped.
pub(crate) async fn claims(api: Api<PersistentVolumeClaim>, cache: Arc<Cache>, options: Arc<Options>) {
    let mut listed = HashMap::new();
    follow(api, selected(&options), &cache.clone(), |event| match event {
        Event::Init => listed = HashMap::new(),
        Event::InitApply(claim) => {
            if let Some(space) = names::space_of(&claim.metadata, &options) {
                listed.insert(space, Kept::of(&claim));
            }
        }
        Event::InitDone => cache.claims_listed(std::mem::take(&mut listed)),
        Event::Apply(claim) => {
            if let Some(space) = names::space_of(&claim.metadata, &options) {
                cache.put_claim(&space, Kept::of(&claim));
            }
        }
        Event::Delete(claim) => {
            if let Some(space) = names::space_of(&claim.metadata, &options) {
                cache.claim_gone(&space, claim.metadata.uid.as_deref().unwrap_or_default());
            }
        }
    })
    .await;
}

async fn follow<K>(api: Api<K>, config: watcher::Config, cache: &Cache, mut take: impl FnMut(Event<K>))
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(watch(api, config));
    let (mut pause, mut failed) = (Pause::default(), false);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // That a list is about to be asked for says nothing of the cluster yet.
                if !matches!(event, Event::Init) {
                    (pause, failed) = (Pause::default(), false);
                }
                take(event);
            }
            Err(trouble) => {
                let why = trouble_text(&trouble);
                // That a version is gone is everyday: it is listed anew.
                let everyday = matches!(&trouble, watcher::Error::WatchError(status) if status.code == 410);
                if !failed && !everyday {
                    tracing::warn!(why, "the cluster cannot be watched; it is tried again");
                }
                failed |= !everyday;
                cache.failed(why);
                tokio::time::sleep(pause.next()).await;
            }
        }
    }
}

fn trouble_text(trouble: &watcher::Error) -> String {
    use watcher::Error as Watcher;
    match trouble {
        Watcher::InitialListFailed(kube::Error::Api(status))
        | Watcher::WatchStartFailed(kube::Error::Api(status))
        | Watcher::WatchFailed(kube::Error::Api(status))
        | Watcher::WatchError(status) => status.message.clone(),
        other => error::reason(other),
    }
}
