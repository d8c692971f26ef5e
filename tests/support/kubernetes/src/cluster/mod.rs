//! The cluster behind the server: controllers, a scheduler, a kubelet. They see
//! every change and write back, as the real ones do.

pub(crate) mod behaviour;
mod collector;
mod definitions;
mod expand;
mod kubelet;
pub(crate) mod log;
mod namespaces;
mod note;
pub(crate) mod probe;
pub(crate) mod process;
mod scheduler;
mod spec;
mod state;
mod volumes;
mod workloads;

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Server;
use crate::store::Change;
use crate::value::{leaving, name, namespace, new_uid, now, uid};
use log::Log;

/// What a pod's life is told.
#[derive(Debug, Clone)]
pub(crate) enum Word {
    /// The object was written.
    Changed(Arc<Value>),
    /// The object is gone.
    Gone,
    /// Something changed that a pod without a node may wait for.
    Retry,
    /// What a test wants: a container's end, an eviction, an ear for probes.
    Steer(Steer),
}

/// What a test wants of a pod.
#[derive(Debug, Clone)]
pub(crate) enum Steer {
    /// Its containers end with this code.
    Exit(i32),
    Oom,
    Evict(String),
    /// Whether its probes pass, whatever they find.
    Ready(bool),
}

/// A pod that the kubelet knows.
pub(crate) struct Pod {
    pub ip: Ipv4Addr,
    pub words: mpsc::UnboundedSender<Word>,
    /// No node has it yet.
    pub waits: AtomicBool,
    pub containers: Mutex<HashMap<String, Container>>,
}

/// A container, as exec and logs see it.
#[derive(Clone)]
pub(crate) struct Container {
    pub log: Arc<Log>,
    pub previous: Option<Arc<Log>>,
    pub running: bool,
    /// Whether anything else was started in it.
    pub entered: Arc<AtomicBool>,
    pub env: Vec<(String, String)>,
    pub dir: PathBuf,
}

impl Pod {
    pub fn containers(&self) -> MutexGuard<'_, HashMap<String, Container>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Cluster {
    speed: AtomicU64,
    pods: Mutex<HashMap<String, Arc<Pod>>>,
    addresses: AtomicU32,
    /// When a Deployment was last seen to get on, by its uid.
    progress: Mutex<HashMap<String, Instant>>,
    files: TempDir,
    /// In the environment of every process of this cluster.
    pub marker: String,
}

impl Cluster {
    pub fn new(speed: f64) -> io::Result<Self> {
        Ok(Self {
            speed: AtomicU64::new(speed.to_bits()),
            pods: Mutex::default(),
            addresses: AtomicU32::new(0),
            progress: Mutex::default(),
            files: tempfile::Builder::new().prefix("kubernetes-double-").tempdir()?,
            marker: new_uid(),
        })
    }

    pub fn pods(&self) -> MutexGuard<'_, HashMap<String, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.pods().get(uid).cloned()
    }

    pub fn set_speed(&self, speed: f64) {
        self.speed.store(speed.max(0.001).to_bits(), Ordering::Relaxed);
    }

    /// A time of the cluster's, in ours.
    pub fn scaled(&self, time: Duration) -> Duration {
        time.div_f64(f64::from_bits(self.speed.load(Ordering::Relaxed)))
    }

    pub async fn sleep(&self, milliseconds: u64) {
        tokio::time::sleep(self.scaled(Duration::from_millis(milliseconds))).await;
    }

    /// An address of this machine that only one pod has.
    fn address(&self) -> Ipv4Addr {
        let [_, _, high, low] = (self.addresses.fetch_add(1, Ordering::Relaxed) + 2).to_be_bytes();
        // Two doubles on one machine are told apart by their process.
        let own = (std::process::id() % 200).to_be_bytes()[3];
        Ipv4Addr::new(127, own + 20, high, low)
    }

    fn dir(&self, of: &str) -> PathBuf {
        let dir = self.files.path().join(of);
        let _ = std::fs::create_dir_all(&dir);
        dir
    }

    /// Ends all processes of pods.
    pub fn kill_all(&self) {
        process::kill_marked(&self.marker);
    }

    pub async fn end(&self) {
        let marker = self.marker.clone();
        let _ = tokio::task::spawn_blocking(move || process::kill_marked(&marker)).await;
    }
}

/// What a cluster has from the beginning.
pub(crate) fn seed(server: &Server) {
    server.store.write(|state| {
        for space in ["default", "kube-system"] {
            state.put(
                "namespaces",
                json!({"kind": "Namespace", "apiVersion": "v1",
                "metadata": {"name": space, "uid": new_uid(), "creationTimestamp": now(),
                    "labels": {"kubernetes.io/metadata.name": space}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}),
            );
            namespaces::furnish(state, space);
        }
        for (class, binding, default) in
            [("standard", "Immediate", true), ("standard-wffc", "WaitForFirstConsumer", false)]
        {
            let mut object = json!({"kind": "StorageClass", "apiVersion": "storage.k8s.io/v1",
                "metadata": {"name": class, "uid": new_uid(), "creationTimestamp": now()},
                "provisioner": "local.test/dir", "reclaimPolicy": "Delete",
                "allowVolumeExpansion": true, "volumeBindingMode": binding});
            if default {
                object["metadata"]["annotations"] =
                    json!({"storageclass.kubernetes.io/is-default-class": "true"});
            }
            state.put("storageclasses.storage.k8s.io", object);
        }
        state.put(
            "nodes",
            json!({"kind": "Node", "apiVersion": "v1",
            "metadata": {"name": "node1", "uid": new_uid(), "creationTimestamp": now(),
                "labels": {"kubernetes.io/hostname": "node1", "kubernetes.io/os": "linux",
                    "kubernetes.io/arch": "amd64"}},
            "spec": {},
            "status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "20000"},
                "capacity": {"cpu": "64", "memory": "256Gi", "pods": "20000"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}}),
        );
    });
}

/// Sees every change and lets the controllers act.
pub(crate) async fn run(server: Arc<Server>) {
    let mut news = server.store.news();
    let mut seen = 100;
    loop {
        let changes = server.store.read(|state| state.since(seen));
        for change in changes {
            if change.version > seen {
                seen = change.version;
                act(&server, &change);
            }
        }
        if news.changed().await.is_err() {
            return;
        }
    }
}

fn act(server: &Arc<Server>, change: &Change) {
    collector::act(server, change);
    workloads::act(server, change);
    match change.store.as_str() {
        "pods" => pods(server, change),
        "persistentvolumeclaims" => {
            volumes::act(server, change);
            retry(server);
        }
        "nodes" | "persistentvolumes" | "storageclasses.storage.k8s.io" => {
            volumes::look_again(server);
            retry(server);
        }
        "secrets" | "configmaps" => retry(server),
        "namespaces" => namespaces::act(server, change),
        "customresourcedefinitions.apiextensions.k8s.io" => definitions::act(server, change),
        _ => {}
    }
}

fn pods(server: &Arc<Server>, change: &Change) {
    let id = uid(&change.shown);
    match (&change.new, server.cluster.pod(id)) {
        (Some(pod), Some(known)) => {
            let _ = known.words.send(Word::Changed(pod.clone()));
        }
        (Some(pod), None) if !leaving(pod) => {
            let (words, heard) = mpsc::unbounded_channel();
            let ip = server.cluster.address();
            let known =
                Arc::new(Pod { ip, words, waits: AtomicBool::new(true), containers: Mutex::default() });
            server.cluster.pods().insert(id.to_owned(), known.clone());
            tokio::spawn(kubelet::life(server.clone(), pod.clone(), known, heard));
        }
        (None, known) => {
            if let Some(known) = known {
                let _ = known.words.send(Word::Gone);
            }
            volumes::look_again(server);
            retry(server);
        }
        _ => {}
    }
}

/// Tells the pods that wait for something.
fn retry(server: &Server) {
    for pod in server.cluster.pods().values().filter(|it| it.waits.load(Ordering::Relaxed)) {
        let _ = pod.words.send(Word::Retry);
    }
}

/// Changes an object if it is there and still the same.
fn rewrite(server: &Server, store: &str, of: &Value, change: impl FnOnce(&mut Value)) -> Option<Arc<Value>> {
    server.store.write(|state| {
        let is = state.get(store, namespace(of), name(of))?;
        if uid(&is) != uid(of) {
            return None;
        }
        let mut new = Value::clone(&is);
        change(&mut new);
        if new == *is { Some(is) } else { Some(state.put(store, new)) }
    })
}
