//! Kubernetes on the command line: its options, `podyard doctor kubernetes`
//! and `podyard controller`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use podyard_kubernetes::{Level, Options, Reach, Way};

use crate::config::LogFormat;
use crate::process::{asked_to_end, log};

/// How programs in pods are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReachArg {
    /// Directly inside of a cluster, else through the API server.
    Auto,
    /// By the pod's own address.
    Direct,
    /// Through the API server's proxy.
    Proxy,
}

/// Who makes the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WayArg {
    /// Podyard itself.
    Pods,
    /// `podyard controller`, from custom resources that Podyard writes.
    CustomResources,
}

/// Where the cluster is and how spaces run in it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Kubernetes")]
pub(crate) struct KubernetesArgs {
    /// The file with the cluster's address and the login; without it $KUBECONFIG, ~/.kube/config, or
    /// the service account of the pod that Podyard runs in.
    #[arg(long, env = "PODYARD_KUBERNETES_KUBECONFIG", value_name = "FILE")]
    pub(crate) kubernetes_kubeconfig: Option<PathBuf>,
    /// The context of that file; else its current one.
    #[arg(long, env = "PODYARD_KUBERNETES_CONTEXT", value_name = "NAME")]
    pub(crate) kubernetes_context: Option<String>,
    /// The namespace of the spaces; else the context's or the pod's own.
    #[arg(long, env = "PODYARD_KUBERNETES_NAMESPACE", value_name = "NAME", value_parser = namespace)]
    pub(crate) kubernetes_namespace: Option<String>,
    /// Which Podyard this is, as a label of its objects: what carries another one's is never touched.
    #[arg(long, env = "PODYARD_KUBERNETES_INSTALLATION", default_value = "podyard", value_name = "NAME", value_parser = label)]
    pub(crate) kubernetes_installation: String,
    /// The name of this process in the Lease that says who looks after all spaces; else made up.
    #[arg(long, env = "PODYARD_KUBERNETES_IDENTITY", value_name = "NAME")]
    pub(crate) kubernetes_identity: Option<String>,
    /// The storage class of the spaces' files where a template names none; else the cluster's default.
    #[arg(long, env = "PODYARD_KUBERNETES_STORAGE_CLASS", value_name = "NAME", value_parser = dns_name)]
    pub(crate) kubernetes_storage_class: Option<String>,
    /// A secret with the login of an image registry, for all spaces. May be given several times.
    #[arg(long, env = "PODYARD_KUBERNETES_PULL_SECRET", value_delimiter = ',', value_name = "NAME", value_parser = dns_name)]
    pub(crate) kubernetes_pull_secret: Vec<String>,
    /// A label that the nodes of all spaces must have. May be given several times.
    #[arg(long, env = "PODYARD_KUBERNETES_NODE_SELECTOR", value_delimiter = ',', value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) kubernetes_node_selector: Vec<(String, String)>,
    /// The image that clones repositories: it needs sh and git.
    #[arg(long, env = "PODYARD_KUBERNETES_GIT_IMAGE", value_name = "IMAGE")]
    pub(crate) kubernetes_git_image: Option<String>,
    /// How programs in pods are reached.
    #[arg(long, env = "PODYARD_KUBERNETES_REACH", value_enum, default_value = "auto")]
    pub(crate) kubernetes_reach: ReachArg,
    /// Who makes the pods.
    #[arg(long, env = "PODYARD_KUBERNETES_WAY", value_enum, default_value = "pods")]
    pub(crate) kubernetes_way: WayArg,
    /// Lets a template's patch undo what keeps a program from its node: root, privileges, the host's folders.
    #[arg(long, env = "PODYARD_KUBERNETES_UNSAFE_PATCHES")]
    pub(crate) kubernetes_unsafe_patches: bool,
    /// How long the Lease holds, in seconds: so long after its end another process looks after the spaces.
    #[arg(long, env = "PODYARD_KUBERNETES_LEASE", default_value_t = 15, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(3..=300))]
    pub(crate) kubernetes_lease: u64,
    /// How long a pod without a space is left alone, in seconds.
    #[arg(long, env = "PODYARD_KUBERNETES_ORPHAN_GRACE", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub(crate) kubernetes_orphan_grace: u64,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let wrong = || "must be a label like disk=fast".to_owned();
    let (key, value) = text.split_once('=').ok_or_else(wrong)?;
    if key.is_empty() { Err(wrong()) } else { Ok((key.to_owned(), value.to_owned())) }
}

/// A name of DNS, as Kubernetes names most objects; empty is none.
fn dns_name(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label =
        |it: &str| !it.is_empty() && it.chars().all(fine) && !it.starts_with('-') && !it.ends_with('-');
    if text.is_empty() || (text.len() <= 253 && text.split('.').all(label)) {
        return Ok(text.to_owned());
    }
    Err("must be of lower-case letters and digits, with - and . within it, at most 253".to_owned())
}

/// The same without dots, and shorter.
fn namespace(text: &str) -> Result<String, String> {
    match dns_name(text) {
        Ok(name) if name.len() <= 63 && !name.contains('.') => Ok(name),
        _ => Err("must be of lower-case letters, digits and - within it, at most 63".to_owned()),
    }
}

/// The value of a label that is there.
fn label(text: &str) -> Result<String, String> {
    let edge = |c: char| c.is_ascii_alphanumeric();
    let fine = |c: char| edge(c) || "._-".contains(c);
    if (1..=63).contains(&text.len())
        && text.chars().all(fine)
        && text.starts_with(edge)
        && text.ends_with(edge)
    {
        return Ok(text.to_owned());
    }
    Err("must be of letters, digits, and - _ . within it, at most 63".to_owned())
}

/// A name that no other process has: two of them on a machine, or two runs of one, are not the same.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = std::env::var("HOSTNAME").ok().filter(|it| !it.is_empty()).unwrap_or(host);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}-{:x}", host.trim(), std::process::id(), since.as_millis())
}

impl KubernetesArgs {
    /// As the driver takes them; `grace`: how long a program may take to end.
    pub(crate) fn options(&self, grace: Duration) -> Options {
        let defaults = Options::default();
        let inside = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let node_selector: BTreeMap<_, _> = self.kubernetes_node_selector.iter().cloned().collect();
        Options {
            kubeconfig: self.kubernetes_kubeconfig.clone(),
            context: self.kubernetes_context.clone().unwrap_or_default(),
            namespace: self.kubernetes_namespace.clone().unwrap_or_default(),
            installation: self.kubernetes_installation.clone(),
            identity: self.kubernetes_identity.clone().filter(|it| !it.is_empty()).unwrap_or_else(identity),
            storage_class: self.kubernetes_storage_class.clone().unwrap_or_default(),
            pull_secrets: self.kubernetes_pull_secret.clone(),
            node_selector,
            git_image: self.kubernetes_git_image.clone().unwrap_or(defaults.git_image),
            grace,
            reach: match self.kubernetes_reach {
                ReachArg::Auto if inside => Reach::Direct,
                ReachArg::Auto | ReachArg::Proxy => Reach::Proxy,
                ReachArg::Direct => Reach::Direct,
            },
            way: match self.kubernetes_way {
                WayArg::Pods => Way::Pods,
                WayArg::CustomResources => Way::CustomResources,
            },
            unsafe_patches: self.kubernetes_unsafe_patches,
            lease: Duration::from_secs(self.kubernetes_lease),
            orphan_grace: Duration::from_secs(self.kubernetes_orphan_grace),
        }
    }
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Doctor {
    /// Check a cluster: is it there, may Podyard do there what it must, does a trial pod run.
    Kubernetes(KubernetesArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ControllerArgs {
    #[command(flatten)]
    pub(crate) kubernetes: KubernetesArgs,
    /// How long a space's program may take to end before it is killed, in seconds.
    #[arg(long, env = "PODYARD_STOP_GRACE", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(crate) stop_grace: u64,
    /// What the log tells: error, warn, info, debug, trace, or a filter like podyard=debug.
    #[arg(long, env = "PODYARD_LOG", default_value = "info", value_name = "FILTER")]
    pub(crate) log: String,
    /// How the log is written, to standard error.
    #[arg(long, env = "PODYARD_LOG_FORMAT", value_enum, default_value = "auto")]
    pub(crate) log_format: LogFormat,
}

/// `podyard doctor`.
pub(crate) async fn doctor(what: Doctor) -> Result<(), String> {
    let Doctor::Kubernetes(args) = what;
    let stop = async {
        if asked_to_end().await.is_err() {
            std::future::pending().await
        }
    };
    let checks = podyard_kubernetes::doctor(&args.options(Duration::from_secs(10)), stop).await;
    let mut failed = 0;
    for check in &checks {
        let mark = match check.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Failure => {
                failed += 1;
                "FAILED "
            }
        };
        println!("{mark} {}: {}", check.name, check.text);
        if !check.advice.is_empty() {
            for line in check.advice.lines() {
                println!("        {line}");
            }
        }
    }
    match failed {
        0 => Ok(()),
        n => Err(format!("{n} of {} checks failed", checks.len())),
    }
}

/// `podyard controller`.
pub(crate) async fn controller(args: ControllerArgs) -> Result<(), String> {
    let _log = log(&args.log, args.log_format)?;
    let options = args.kubernetes.options(Duration::from_secs(args.stop_grace));
    let end = async {
        if let Err(error) = asked_to_end().await {
            tracing::error!(error, "signals cannot be heard");
        }
    };
    podyard_kubernetes::control(options, end).await.map_err(|e| e.to_string())?;
    tracing::info!("ended");
    Ok(())
}

/// `podyard crd`.
pub(crate) fn crd() -> Result<(), String> {
    let text = serde_saphyr::to_string(&podyard_kubernetes::crd()).map_err(|e| e.to_string())?;
    println!("# Made from the code by `podyard crd`.\n{}", text.trim_end());
    Ok(())
}
