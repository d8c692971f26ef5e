//! A double of the Kubernetes API server, for tests: a real HTTP server that
//! behaves as recorded from a real cluster, with a small cluster behind it, and
//! with faults on demand.
//!
//! A test starts it with [`Double::start`], on a free port; the binary of the same
//! name does so on its own. What a pod does is chosen by its image's name or by
//! annotations (see `cluster::behaviour`); `/_double/` steers it while it runs
//! (see `control`).

mod api;
mod auth;
mod cluster;
mod control;
mod delete;
mod discovery;
mod exec;
mod faults;
mod fields;
mod http;
mod kinds;
mod logs;
mod managed;
mod patch;
mod present;
mod protobuf;
mod proxy;
mod read;
mod resource;
mod route;
mod scale;
mod select;
mod serve;
mod status;
mod store;
mod value;
mod watch;
mod write;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::cluster::Cluster;
use crate::faults::Faults;
use crate::store::Store;

/// How a double is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// The port; 0 is any that is free.
    pub port: u16,
    /// How much faster than a real cluster's its time goes.
    pub speed: f64,
    /// Every container's command really runs, as a process of this machine.
    pub real: bool,
    /// Who brings no credentials may do everything.
    pub open: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { port: 0, speed: 1.0, real: false, open: false }
    }
}

/// What all parts share.
pub(crate) struct Server {
    pub options: Options,
    pub store: Store,
    pub faults: Faults,
    pub cluster: Cluster,
    pub door: serve::Door,
}

/// A double that runs. It ends when it is dropped.
pub struct Double {
    server: Arc<Server>,
    address: SocketAddr,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Double {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// If the port cannot be listened on.
    pub async fn start(options: Options) -> io::Result<Self> {
        let at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, options.port);
        let listener = TcpListener::bind(at).await?;
        let address = listener.local_addr()?;
        let server = Arc::new(Server {
            store: Store::new(),
            faults: Faults::new(),
            cluster: Cluster::new(options.speed)?,
            door: serve::Door::new(),
            options,
        });
        cluster::seed(&server);
        let tasks = vec![
            tokio::spawn(serve::run(server.clone(), listener)),
            tokio::spawn(cluster::run(server.clone())),
        ];
        Ok(Self { server, address, tasks })
    }

    /// Where it is: `http://127.0.0.1:…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The token of one who may do everything.
    #[must_use]
    pub fn token(&self) -> &'static str {
        auth::ADMIN
    }

    /// A kubeconfig for it, whose user may do everything.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: double\n\
             clusters:\n- name: double\n  cluster:\n    server: {}\n\
             users:\n- name: admin\n  user:\n    token: {}\n\
             contexts:\n- name: double\n  context:\n    cluster: double\n    user: admin\n    namespace: default\n",
            self.url(),
            auth::ADMIN,
        )
    }

    /// Writes [`Self::kubeconfig`].
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.kubeconfig())
    }

    /// Waits until it ends by itself, which it does not.
    pub async fn wait(&mut self) {
        for task in &mut self.tasks {
            let _ = task.await;
        }
    }

    /// Ends it and all processes of its pods.
    pub async fn stop(self) {
        self.server.cluster.end().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.server.door.close();
        self.server.cluster.kill_all();
    }
}
