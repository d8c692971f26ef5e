//! What the driver is told by whoever starts Podyard, and the client made of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::client::retry::RetryPolicy;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use podyard_driver::{Error, Result};
use tower::buffer::BufferLayer;
use tower::retry::RetryLayer;

/// How long to wait between repetitions of a request that the API server had
/// no time for (429, 503, 504), at first and at most, unless it says for how
/// long itself.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));
/// How often it is repeated.
const RETRIES: u32 = 5;
/// How long the connection of a watch may be silent: longer than a watch lasts.
const SILENCE: Duration = Duration::from_secs(70);
/// Requests that may wait to be sent.
const QUEUE: usize = 1024;

/// How programs in pods are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// By the pod's own address: Podyard runs in the cluster, or in its network.
    #[default]
    Direct,
    /// Through the API server's proxy: Podyard runs outside.
    Proxy,
}

/// Who makes the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Way {
    /// The driver itself.
    #[default]
    Pods,
    /// A controller, from the custom resources that the driver writes.
    CustomResources,
}

/// What a [`crate::KubernetesDriver`] needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file with the cluster's address and the login; if none, `$KUBECONFIG`,
    /// `~/.kube/config`, or the service account of the pod that Podyard runs in.
    pub kubeconfig: Option<PathBuf>,
    /// The context of that file; its current one if empty.
    pub context: String,
    /// Where the objects are; the context's own namespace if empty.
    pub namespace: String,
    /// Which Podyard this is. What carries another one's mark is never touched,
    /// so that two may share a namespace.
    pub installation: String,
    /// Which of the processes of this Podyard this one is.
    pub identity: String,
    /// The storage class where a template names none; the cluster's default if empty.
    pub storage_class: String,
    /// Names of secrets with the image registries' logins, for every pod.
    pub pull_secrets: Vec<String>,
    /// Labels that a node must have, for every pod.
    pub node_selector: BTreeMap<String, String>,
    /// The image that clones git repositories: it needs `sh` and `git`.
    pub git_image: String,
    /// How long a program may take to end when its pod is deleted by somebody else.
    pub grace: Duration,
    /// How programs are reached.
    pub reach: Reach,
    /// Who makes the pods.
    pub way: Way,
    /// Lets a template's patch undo the rules that keep a program from its node.
    pub unsafe_patches: bool,
    /// How long the Lease holds that says which process reconciles.
    pub lease: Duration,
    /// How long a pod that no space claims must have been there before it is ended.
    pub orphan_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: String::new(),
            namespace: String::new(),
            installation: "podyard".to_owned(),
            identity: "podyard".to_owned(),
            storage_class: String::new(),
            pull_secrets: Vec::new(),
            node_selector: BTreeMap::new(),
            git_image: "docker.io/alpine/git:2.49.1".to_owned(),
            grace: Duration::from_secs(10),
            reach: Reach::default(),
            way: Way::default(),
            unsafe_patches: false,
            lease: Duration::from_secs(15),
            orphan_grace: Duration::from_secs(60),
        }
    }
}

/// A client, and what it was made of.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// For watches: one whose connection says nothing for longer than a watch
    /// may take gives it up. Logs and terminals are silent for as long as they like.
    pub(crate) watching: Client,
    pub(crate) config: Config,
    pub(crate) namespace: String,
}

/// Reads the login and makes a client of it. Asks the cluster nothing.
pub(crate) async fn connect(options: &Options) -> Result<Cluster> {
    let wrong = |why: String| Error::Unavailable(format!("the cluster's login cannot be read: {why}"));
    let context = KubeConfigOptions {
        context: Some(options.context.clone()).filter(|it| !it.is_empty()),
        ..KubeConfigOptions::default()
    };
    let read = match &options.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|e| wrong(e.to_string()))?;
            Config::from_custom_kubeconfig(file, &context).await.map_err(|e| e.to_string())
        }
        None if context.context.is_some() => {
            Config::from_kubeconfig(&context).await.map_err(|e| e.to_string())
        }
        None => Config::infer().await.map_err(|e| e.to_string()),
    };
    let mut config = read.map_err(wrong)?;
    // The library's own repetition goes on for hours; see below.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    let namespace = Some(&options.namespace).filter(|it| !it.is_empty()).unwrap_or(&config.default_namespace);
    let namespace = namespace.clone();
    let client = client(config.clone()).map_err(wrong)?;
    let mut watched = config.clone();
    watched.read_timeout = Some(SILENCE);
    watched.reset_reader_on_write = true;
    let watching = Client::try_from(watched).map_err(|e| wrong(e.to_string()))?;
    Ok(Cluster { client, watching, config, namespace })
}

/// A client that repeats what the API server had no time for.
fn client(config: Config) -> std::result::Result<Client, String> {
    let service = ClientBuilder::try_from(config).map_err(|e| e.to_string())?;
    let policy = RetryPolicy::new(RETRY.0, RETRY.1, RETRIES, true).map_err(|e| e.to_string())?;
    Ok(service.with_layer(&BufferLayer::new(QUEUE)).with_layer(&RetryLayer::new(policy)).build())
}
