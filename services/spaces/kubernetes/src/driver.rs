//! The driver: what Podyard asks for, done with the cluster.
//!
//! The pod is the run: what lives is what the API server shows, and nothing is
//! kept beside it. Reads come from the [`Cache`]; only what changes something,
//! logs and events are requests.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::Api;
use podyard_driver::{
    Container, Driver, Endpoint, Error, Exit, Happening, Instance, Launch, Observed, Pending, Result,
    Terminal, TerminalSize,
};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;

use crate::cache::Cache;
use crate::guard::MAIN;
use crate::options::{Cluster, connect};
use crate::pod::{Run, pod};
use crate::through::ApiServer;
use crate::{Options, Reach, Way, background, change, custom, events, lease, log, watches};

/// How long whoever asks waits for the first answer of a cluster.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs spaces on Kubernetes: a pod for each while it runs, a claim for its files.
///
/// Several Podyard processes may use one namespace at the same time, and
/// several installations too. To be dropped within the runtime that it was
/// made in; the pods stay.
pub struct KubernetesDriver {
    pub(crate) inner: Arc<Inner>,
    /// The watches and what else goes on. They end with the driver.
    tasks: Mutex<JoinSet<()>>,
}

/// For what the cluster is watched. Those of one role elect one that leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A server or worker of Podyard.
    Server,
    /// A controller of custom resources.
    Controller,
    /// Somebody who is gone soon and never leads.
    Guest,
}

impl Role {
    /// What is added to the name of the Lease.
    pub(crate) fn suffix(self) -> &'static str {
        if self == Self::Controller { "-controller" } else { "" }
    }
}

/// What the driver's parts share.
pub(crate) struct Inner {
    pub(crate) cluster: Cluster,
    pub(crate) options: Arc<Options>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) pods: Api<Pod>,
    pub(crate) claims: Api<PersistentVolumeClaim>,
    leads: Arc<watch::Sender<bool>>,
    role: Role,
}

impl KubernetesDriver {
    /// Reads the login and begins to watch. The cluster may be away: then
    /// [`Driver::list`] and all that changes something are errors until it answers.
    ///
    /// # Errors
    /// When there is no login.
    pub async fn open(options: Options) -> Result<Self> {
        Self::with_role(options, Role::Server).await
    }

    pub(crate) async fn with_role(options: Options, role: Role) -> Result<Self> {
        let cluster = connect(&options).await?;
        let options = Arc::new(options);
        let (finished, ends) = mpsc::unbounded_channel();
        let through = match options.reach {
            Reach::Direct => None,
            Reach::Proxy => Some(ApiServer::new(&cluster.config, &cluster.namespace).await?),
        };
        let server = through.clone();
        let ways = Box::new(move |seen: &crate::seen::Seen, addr| Endpoint {
            addr,
            secret: seen.secret.to_string(),
            through: server.as_ref().map(|it| it.to_pod(&seen.name, seen.port)),
        });
        let cache = Arc::new(Cache::new(finished, ways, options.way == Way::CustomResources));
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let leads = Arc::new(watch::Sender::new(false));
        let inner = Arc::new(Inner {
            cluster: cluster.clone(),
            options: options.clone(),
            cache: cache.clone(),
            pods,
            claims,
            leads: leads.clone(),
            role,
        });
        let mut tasks = JoinSet::new();
        let (watched, of) = (Api::namespaced(cluster.watching.clone(), &cluster.namespace), options.clone());
        tasks.spawn(watches::pods(watched, cache.clone(), of));
        let (watched, of) = (Api::namespaced(cluster.watching.clone(), &cluster.namespace), options.clone());
        tasks.spawn(watches::claims(watched, cache.clone(), of));
        tasks.spawn(background::ends(inner.clone(), ends));
        tasks.spawn(background::looks(inner.clone()));
        if role != Role::Guest {
            tasks.spawn(lease::hold(cluster, options, role, leads));
        }
        if let Some(server) = through {
            tasks.spawn(async move { server.keep_login().await });
        }
        Ok(Self { inner, tasks: Mutex::new(tasks) })
    }

    /// Whether this process is the one that reconciles.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        *self.inner.leads.borrow()
    }

    /// Ends what goes on, and gives up the lead so that another takes it at once.
    pub async fn end(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        if *self.inner.leads.borrow() {
            lease::release(&self.inner.cluster, &self.inner.options, self.inner.role).await;
        }
    }
}

impl std::fmt::Debug for KubernetesDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesDriver").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl Inner {
    /// Waits until the cluster has shown what there is.
    pub(crate) async fn synced(&self) -> Result<()> {
        let mut changes = self.cache.changes();
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.cache.synced().is_err() {
                if changes.changed().await.is_err() {
                    break;
                }
            }
        });
        // Why it is not is asked below.
        let _ = waited.await;
        self.cache.synced().map_err(|why| away(&why))
    }

    /// The owner's lead, and every change of it.
    pub(crate) fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }
}

/// The cluster has not been seen yet. It passes, or somebody is told.
fn away(why: &str) -> Error {
    Error::Io {
        what: "the cluster cannot be reached".to_owned(),
        source: std::io::Error::other(why.to_owned()),
    }
}

impl Driver for KubernetesDriver {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn available(&self, _: &[String]) -> Result<PathBuf> {
        match self.inner.cache.synced() {
            // What is in an image is known once it runs.
            Ok(()) => Ok(PathBuf::new()),
            Err(why) => Err(Error::Unavailable(format!("the cluster cannot be reached: {why}"))),
        }
    }

    fn check(&self, container: &Container) -> Result<()> {
        let launch = Launch {
            id: "check".to_owned(),
            sid: "check".to_owned(),
            base_path: "/ws/check/".to_owned(),
            command: Vec::new(),
            env: Vec::new(),
            cpu: "1".to_owned(),
            memory: "1Gi".to_owned(),
            storage: "1Gi".to_owned(),
            user: "check".to_owned(),
            name: String::new(),
            container: Some(container.clone()),
        };
        let made = pod(&launch, &self.inner.options, &Run::new(), None, None)?;
        // Whether it is a pod at all: a number where a text belongs is refused here.
        serde_json::from_value::<Pod>(made)
            .map_err(|error| Error::Invalid(format!("the template's patch makes no pod: {error}")))?;
        Ok(())
    }

    fn start<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Result<Instance>> {
        match self.inner.options.way {
            Way::Pods => Box::pin(change::start(&self.inner, launch)),
            Way::CustomResources => Box::pin(custom::start(&self.inner, launch)),
        }
    }

    fn stop<'a>(&'a self, id: &'a str, grace: Duration) -> Pending<'a, Result<Option<Exit>>> {
        match self.inner.options.way {
            Way::Pods => Box::pin(change::stop(&self.inner, id, grace)),
            Way::CustomResources => Box::pin(custom::stop(&self.inner, id, grace)),
        }
    }

    fn delete<'a>(&'a self, id: &'a str) -> Pending<'a, Result<()>> {
        match self.inner.options.way {
            Way::Pods => Box::pin(change::delete(&self.inner, id)),
            Way::CustomResources => Box::pin(custom::delete(&self.inner, id)),
        }
    }

    fn endpoint<'a>(&'a self, id: &'a str) -> Pending<'a, Option<Endpoint>> {
        Box::pin(std::future::ready(self.inner.cache.endpoint(id)))
    }

    fn list(&self) -> Pending<'_, Result<Vec<Observed>>> {
        Box::pin(async {
            self.inner.synced().await?;
            Ok(self.inner.cache.list())
        })
    }

    fn look<'a>(&'a self, id: &'a str) -> Pending<'a, Result<Option<Observed>>> {
        Box::pin(async move {
            change::look_anew(&self.inner, id).await?;
            Ok(self.inner.cache.list().into_iter().find(|it| it.id == id))
        })
    }

    fn observe(&self) -> broadcast::Receiver<Observed> {
        self.inner.cache.observe()
    }

    fn log<'a>(&'a self, id: &'a str, tail_bytes: usize) -> Pending<'a, Result<String>> {
        Box::pin(async move {
            let Some(seen) = self.inner.cache.pod(id) else { return Ok(String::new()) };
            let tail = log::tail(&self.inner.pods, &seen, tail_bytes).await?;
            Ok(String::from_utf8_lossy(&tail).into_owned())
        })
    }

    fn follow_log<'a>(&'a self, id: &'a str, tail: usize) -> Pending<'a, Result<mpsc::Receiver<Bytes>>> {
        Box::pin(log::follow(&self.inner, id, tail))
    }

    fn terminal<'a>(&'a self, id: &'a str, size: TerminalSize) -> Pending<'a, Result<Terminal>> {
        Box::pin(async move {
            let seen =
                self.inner.cache.pod(id).filter(|it| !it.is_over() && it.speaker.as_deref() == Some(MAIN));
            let Some(seen) = seen else {
                return Err(Error::Unavailable("its program does not run".to_owned()));
            };
            let cluster = &self.inner.cluster;
            crate::exec::terminal(cluster.client.clone(), &cluster.namespace, &seen.name, MAIN, size).await
        })
    }

    fn events<'a>(&'a self, id: &'a str) -> Pending<'a, Result<Vec<Happening>>> {
        Box::pin(async move {
            let cluster = &self.inner.cluster;
            let pod = self.inner.cache.pod(id).map(|it| it.name.to_string());
            let claim = self.inner.cache.claim(id).map(|it| it.name);
            let mut names: Vec<String> = pod.into_iter().chain(claim).collect();
            names.dedup();
            let mut all = Vec::new();
            for name in names {
                all.extend(events::of(&cluster.client, &cluster.namespace, &name).await?);
            }
            all.sort_by_key(|it| it.at);
            Ok(all)
        })
    }

    fn resize<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Result<bool>> {
        Box::pin(change::resize(&self.inner, launch))
    }

    fn reconciles(&self) -> bool {
        self.is_leader()
    }

    fn orphan_grace(&self) -> Duration {
        self.inner.options.orphan_grace
    }

    fn node<'a>(&'a self, id: &'a str) -> Pending<'a, Option<String>> {
        let node = self.inner.cache.pod(id).and_then(|it| it.node);
        Box::pin(std::future::ready(node.map(Into::into)))
    }

    fn close(&self) -> Pending<'_, ()> {
        Box::pin(self.end())
    }
}
