//! What really runs a space's program, and tells what became of it.
//!
//! This crate knows nothing of resources, HTTP or databases: it is handed a
//! [`Launch`] and answers with what is. [`Driver`] is the face that all
//! drivers share; [`ProcessDriver`] runs programs on this machine.
//!
//! A driver keeps the truth outside the process that uses it. Whoever is
//! killed at any moment makes a new driver over the same place and
//! [`Driver::list`] tells what lives and what has ended.

mod disk;
mod follow;
mod probe;
mod process;
mod pty;
mod shell;
mod shim;
mod sweep;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc, oneshot};

pub use disk::last_lines;
pub use process::{Options, ProcessDriver};
pub use shell::shell_main;
pub use shim::shim_main;

/// What a driver's methods return: a future that may be kept behind `dyn`.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Runs the programs of spaces.
///
/// Every method may be called again after a crash of the caller: `start`
/// finds what it already started, `stop` and `delete` of what is gone succeed.
pub trait Driver: Send + Sync + 'static {
    /// The word that templates use for this driver: `process`, `kubernetes`.
    fn name(&self) -> &'static str;

    /// Where the program of `command` is, or why it cannot be run here.
    fn available(&self, command: &[String]) -> Result<PathBuf>;

    /// Starts the program, unless it lives: then it is adopted and the same
    /// instance is returned. Does not wait until it is ready. A start during a
    /// stop finds the program that is about to end: the caller keeps the two apart.
    fn start<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Result<Instance>>;

    /// Ends the program and all that it started, and tells how it ended:
    /// asked to end at first, killed after `grace`.
    ///
    /// When this returns, nothing of the space runs. It is also how an exit is
    /// taken note of: [`Driver::list`] no longer shows it. Called again it
    /// returns the same exit, until the next start. A second call with a
    /// shorter `grace`, while the first still waits, hurries it.
    fn stop<'a>(&'a self, id: &'a str, grace: Duration) -> Pending<'a, Result<Option<Exit>>>;

    /// Removes all that is kept for the space. Refused while it runs.
    fn delete<'a>(&'a self, id: &'a str) -> Pending<'a, Result<()>>;

    /// Where the program answers, once it is ready. Cheap enough to be asked
    /// for every request that is proxied.
    fn endpoint<'a>(&'a self, id: &'a str) -> Pending<'a, Option<Endpoint>>;

    /// What really is: every space that lives, and every one whose exit nobody
    /// has taken note of yet (see [`Driver::stop`]).
    fn list(&self) -> Pending<'_, Result<Vec<Observed>>>;

    /// What really is of one space, asked anew where [`Driver::list`] may be
    /// behind: before somebody takes it for dead.
    fn look<'a>(&'a self, id: &'a str) -> Pending<'a, Result<Option<Observed>>> {
        Box::pin(async move { Ok(self.list().await?.into_iter().find(|it| it.id == id)) })
    }

    /// What happens from now on. A receiver that falls behind is told so by
    /// the channel, and then reads [`Driver::list`].
    fn observe(&self) -> broadcast::Receiver<Observed>;

    /// The end of what the program wrote, at most `tail_bytes` of it.
    fn log<'a>(&'a self, id: &'a str, tail_bytes: usize) -> Pending<'a, Result<String>>;

    /// What the program writes: the last `tail` lines of what is there (all of
    /// it with `usize::MAX`), and whatever comes until the run is over or the
    /// receiver is dropped. Nothing is read while nobody takes it.
    fn follow_log<'a>(&'a self, _: &'a str, _: usize) -> Pending<'a, Result<mpsc::Receiver<Bytes>>> {
        Box::pin(async { Err(Error::Unavailable("its log cannot be followed".to_owned())) })
    }

    /// Opens a terminal in the space, with a shell of its own.
    fn terminal<'a>(&'a self, _: &'a str, _: TerminalSize) -> Pending<'a, Result<Terminal>> {
        Box::pin(async { Err(Error::Unavailable("it has no terminals".to_owned())) })
    }

    /// What was told of the space by what runs it, oldest first: a cluster's events.
    fn events<'a>(&'a self, _: &'a str) -> Pending<'a, Result<Vec<Happening>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// What is wrong with a container that a template asks for, beyond what
    /// holds for all, which is its patch: it does not fit. Asks nobody.
    fn check(&self, _: &Container) -> Result<()> {
        Ok(())
    }

    /// The node that a space runs on, if that is not this machine.
    fn node<'a>(&'a self, _: &'a str) -> Pending<'a, Option<String>> {
        Box::pin(async { None })
    }

    /// Gives what is kept for the space its room, where that can be changed;
    /// `true` once it has it, `false` if it will after the next start.
    fn resize<'a>(&'a self, _: &'a Launch) -> Pending<'a, Result<bool>> {
        Box::pin(async { Ok(true) })
    }

    /// Whether this process may end what no row claims. Of several that look
    /// at the same cluster one does.
    fn reconciles(&self) -> bool {
        true
    }

    /// How long a run that no row claims must have been seen before it is ended.
    fn orphan_grace(&self) -> Duration {
        Duration::ZERO
    }

    /// This process ends: it gives up what others wait for. What runs goes on.
    fn close(&self) -> Pending<'_, ()> {
        Box::pin(async {})
    }
}

/// A terminal that is open. Dropping it ends the shell and all that it started.
#[derive(Debug)]
pub struct Terminal {
    /// What is typed, and new sizes. A full channel is a shell that does not read.
    pub input: mpsc::Sender<TerminalInput>,
    /// What the shell writes. It is held back while nobody takes it; closed
    /// once the shell is over.
    pub output: mpsc::Receiver<Bytes>,
    /// How the shell ended; an error if that cannot be known any more.
    pub end: oneshot::Receiver<TerminalEnd>,
}

/// What goes into a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminalInput {
    /// Bytes that were typed.
    Data(Bytes),
    /// The window has another size now.
    Resize(TerminalSize),
}

/// How many characters a terminal's window has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// How a terminal's shell ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminalEnd {
    /// What the shell returned; none if it was killed or the space ended.
    pub code: Option<i32>,
    /// In words, where there is more to say.
    pub reason: String,
}

/// Something that was told of a space by what runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happening {
    /// When it last happened, in microseconds of Unix time.
    pub at: i64,
    /// Whether it is a warning.
    pub warning: bool,
    /// One word for it: `FailedScheduling`.
    pub reason: String,
    /// What happened.
    pub message: String,
    /// How often.
    pub count: u32,
    /// Who told it: `kubelet`.
    pub source: String,
    /// What it is about: `pod`, `persistentvolumeclaim`.
    pub about: String,
}

/// What is to be run.
///
/// In the arguments of `command` and in the values of `env` these words are
/// replaced: `{port}` by the port to listen on, `{dir}` by the folder of the
/// space's files, `{base}` by `base_path`, `{podyard}` by this executable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The space's id. Letters, digits, `-` and `_`.
    pub id: String,
    /// The space's place in the URL.
    pub sid: String,
    /// The path under which people reach it: `/ws/<sid>/`.
    pub base_path: String,
    /// The program and its arguments. No shell reads them.
    pub command: Vec<String>,
    /// More environment for the program. Names that begin `PODYARD_` are the
    /// driver's own and are refused.
    pub env: Vec<(String, String)>,
    /// How much CPU it may use, in the notation of Kubernetes.
    pub cpu: String,
    /// How much memory it may use.
    pub memory: String,
    /// How much its files may take.
    pub storage: String,
    /// The id of the user whose space it is.
    pub user: String,
    /// The space's name, for people.
    pub name: String,
    /// What only a container needs; none for a program of this machine.
    pub container: Option<Container>,
}

impl Launch {
    /// Checks what no driver can run: a NUL in a text, and names in the environment
    /// that are none or Podyard's own.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(&self) -> Result<()> {
        let texts = self.command.iter().chain(self.env.iter().flat_map(|(name, value)| [name, value]));
        if texts.chain([&self.sid, &self.base_path]).any(|text| text.contains('\0')) {
            return Err(Error::Invalid("a NUL byte is in the command or the environment".to_owned()));
        }
        for (name, _) in &self.env {
            if name.is_empty() || name.contains('=') {
                return Err(Error::Invalid(format!("{name:?} is no name of an environment variable")));
            }
            if name.starts_with("PODYARD_") {
                return Err(Error::Invalid(format!(
                    "the environment variable {name} is reserved: names that begin PODYARD_ are set by Podyard"
                )));
            }
        }
        Ok(())
    }
}

/// What a container needs beside a program's command, environment and size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The image. With an empty `command` its own program runs.
    pub image: String,
    /// When the image is pulled: `Always`, `IfNotPresent`, `Never`; the cluster's own rule if empty.
    pub pull_policy: String,
    /// Names of secrets with the image registry's logins.
    pub pull_secrets: Vec<String>,
    /// The port that the program listens on.
    pub port: u16,
    /// The path of the readiness probe; empty: an open port is enough.
    pub probe_path: String,
    /// Where the space's files are.
    pub mount: String,
    /// The storage class; the cluster's default if empty.
    pub storage_class: String,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations, as Kubernetes writes them.
    pub tolerations: Vec<serde_json::Value>,
    /// The user that it runs as; the image's own, which must not be root, if none.
    pub run_as: Option<i64>,
    /// A repository that is cloned into empty files.
    pub repository: Option<Repository>,
    /// What is laid over the pod as a strategic merge patch.
    pub patch: Option<serde_json::Value>,
    /// How long it may take until it is ready, in seconds.
    pub start_limit: u32,
}

/// A git repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// Where it is.
    pub url: String,
    /// Its branch; the repository's own choice if empty.
    pub branch: String,
}

/// One run of a space's program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// New for each run.
    pub id: String,
    /// When it was asked for, in microseconds of Unix time.
    pub started_at: i64,
}

/// What a driver saw of a space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The space's id.
    pub id: String,
    /// The id of the [`Instance`].
    pub instance: String,
    /// How far it is.
    pub phase: Phase,
    /// Why it is no further, in words for its user; empty if there is nothing to say.
    pub detail: String,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Its program was started and does not answer yet.
    Starting,
    /// Its program has answered an HTTP request.
    Ready {
        /// Where it answers.
        endpoint: Endpoint,
    },
    /// It is over.
    Exited(Exit),
}

/// Where a space's program answers.
#[derive(Clone)]
pub struct Endpoint {
    /// Its address.
    pub addr: SocketAddr,
    /// What the program was given as `PODYARD_SPACE_SECRET`. Whoever proxies to it
    /// sends this in `X-Podyard-Space-Secret`, so that the program can tell
    /// the gateway from anybody else on the machine.
    pub secret: String,
    /// How it is reached, if not by a connection to `addr`.
    pub through: Option<Arc<dyn Through>>,
}

/// A way to a program that is not in reach itself: the proxy of an API server.
pub trait Through: Send + Sync + 'static {
    /// Opens a connection that speaks HTTP/1.1.
    fn connect(&self) -> Pending<'_, std::io::Result<Box<dyn Stream>>>;
    /// What stands before every path, without a slash at its end.
    fn prefix(&self) -> &str;
    /// Headers that go along with every request: who asks. Read anew for each,
    /// since tokens expire.
    fn headers(&self) -> Vec<(String, String)>;
}

/// A connection's two directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        let way = |it: &Self| it.through.as_ref().map(|it| it.prefix().to_owned());
        self.addr == other.addr && self.secret == other.secret && way(self) == way(other)
    }
}

impl Eq for Endpoint {}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// How a run ended. When neither a code nor a signal is known, its supervisor
/// was killed or the machine went down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// What the program returned.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// When, in microseconds of Unix time.
    pub at: i64,
    /// The last lines that it wrote: at most 20, each of at most 500
    /// characters, without control characters.
    pub last_lines: Vec<String>,
    /// Why, in words for its user, where a code does not say it: out of memory, evicted.
    #[serde(default)]
    pub reason: String,
}

/// Why a driver could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The launch itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The program is not here.
    #[error("{0}")]
    Unavailable(String),
    /// It runs, and may not.
    #[error("the space is running: stop it first")]
    Running,
    /// Something does not come to an end.
    #[error("{0}")]
    Stuck(String),
    /// The machine refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The answer.
        source: std::io::Error,
    },
}

impl Error {
    /// For `map_err`: says what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
