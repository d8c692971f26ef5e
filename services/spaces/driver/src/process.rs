//! The driver that runs programs on this machine.

mod begin;
mod end;
mod watcher;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::Pid;
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc};
use tokio::task::AbortHandle;

pub(crate) use self::begin::is_inherited;
use self::begin::{find_program, start};
use self::end::{delete, remove_tree, stop};
use self::watcher::{Watcher, clean_up};
use crate::disk::{self, Folder, InstanceFile, LaunchFile, Run};
use crate::follow::follow;
use crate::pty::{self, Terminals};
use crate::sweep;
use crate::{
    Driver, Endpoint, Error, Exit, Instance, Launch, Observed, Pending, Phase, Result, Terminal, TerminalSize,
};

/// How many events an observer may lag behind.
const EVENTS: usize = 4096;

/// What a [`ProcessDriver`] needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Podyard's data folder. The driver keeps `spaces`, `ports` and `trash` in it.
    pub data_dir: PathBuf,
    /// The executable whose command `shim` is [`crate::shim_main`]: Podyard
    /// itself. Ask for it when Podyard starts: once the file was replaced by a
    /// newer one, `current_exe` names what is no longer there.
    pub podyard: PathBuf,
}

/// Runs programs on this machine.
///
/// Each program has a folder, a port on 127.0.0.1 and a supervising process of
/// its own (`podyard shim`), which outlives Podyard. Several Podyards may use
/// one data folder at the same time.
///
/// It does not keep spaces apart: all programs run as the user that Podyard
/// runs as, and could read each other's files and Podyard's own. `cpu`,
/// `memory` and `storage` of a launch are told to the program (`PODYARD_CPU`,
/// `PODYARD_MEMORY`, `PODYARD_STORAGE`) and not enforced. It is the driver for
/// one person, a trusted team, and for trying Podyard out.
///
/// It is made for Linux. Elsewhere it runs too, but a program that leaves its
/// process group, or whose shim was killed by force, may be left behind.
///
/// Under systemd the unit needs `KillMode=process`, or a restart of Podyard
/// ends all programs.
#[derive(Debug)]
pub struct ProcessDriver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    spaces: PathBuf,
    trash: PathBuf,
    podyard: PathBuf,
    /// What lives, as far as this process has seen.
    known: Mutex<HashMap<String, Known>>,
    /// The shims that this process started and must reap, by instance.
    children: Mutex<HashMap<String, Child>>,
    events: broadcast::Sender<Observed>,
    terminals: Arc<Terminals>,
    runtime: Handle,
}

#[derive(Debug)]
struct Known {
    instance: String,
    phase: Phase,
    watcher: AbortHandle,
}

/// What a space's folder says, seen from behind its door.
enum State {
    Nothing,
    Alive(LaunchFile),
    /// It is over and nobody has taken note; without an exit its shim was killed.
    Ended(LaunchFile, Option<Exit>),
}

impl ProcessDriver {
    /// Opens the data folder and finds what lives in it. To be called within
    /// a tokio runtime, on which the driver watches from then on.
    pub async fn open(options: Options) -> Result<Self> {
        let runtime = Handle::current();
        let inner = blocking(move || {
            let root = options.data_dir;
            let podyard = std::path::absolute(&options.podyard)
                .map_err(Error::io("where Podyard's executable is cannot be told"))?;
            let (spaces, trash) = (root.join("spaces"), root.join("trash"));
            for path in [&spaces, &trash] {
                disk::create_private(path)
                    .map_err(Error::io(format!("the folder {} cannot be made", path.display())))?;
            }
            // One spelling, since it marks the processes that belong here.
            let spaces = spaces.canonicalize().map_err(Error::io("the data folder cannot be found"))?;
            Ok(Arc::new(Inner {
                spaces,
                trash,
                podyard,
                known: Mutex::default(),
                children: Mutex::default(),
                events: broadcast::Sender::new(EVENTS),
                terminals: Arc::default(),
                runtime,
            }))
        })
        .await?;
        let driver = Self { inner };
        driver.list().await?;
        // What a crash kept from being removed.
        let trash = driver.inner.trash.clone();
        driver.inner.runtime.spawn_blocking(move || {
            for entry in std::fs::read_dir(trash).into_iter().flatten().flatten() {
                if let Err(error) = remove_tree(&entry.path()) {
                    tracing::warn!(path = %entry.path().display(), %error, "old trash cannot be removed");
                }
            }
        });
        Ok(driver)
    }
}

impl Drop for ProcessDriver {
    fn drop(&mut self) {
        // The programs stay. Only the watchers end, which hold `inner`.
        for (_, known) in self.inner.known().drain() {
            known.watcher.abort();
        }
    }
}

impl Driver for ProcessDriver {
    fn name(&self) -> &'static str {
        "process"
    }

    fn available(&self, command: &[String]) -> Result<PathBuf> {
        find_program(command, &[], &self.inner.podyard, None)
    }

    fn start<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Result<Instance>> {
        let (inner, launch) = (self.inner.clone(), launch.clone());
        Box::pin(blocking(move || start(&inner, &launch)))
    }

    fn stop<'a>(&'a self, id: &'a str, grace: Duration) -> Pending<'a, Result<Option<Exit>>> {
        Box::pin(stop(&self.inner, id, grace))
    }

    fn delete<'a>(&'a self, id: &'a str) -> Pending<'a, Result<()>> {
        let (inner, id) = (self.inner.clone(), id.to_owned());
        Box::pin(blocking(move || delete(&inner, &id)))
    }

    fn endpoint<'a>(&'a self, id: &'a str) -> Pending<'a, Option<Endpoint>> {
        Box::pin(async move {
            if let Some(known) = self.inner.known().get(id) {
                return match &known.phase {
                    Phase::Ready { endpoint } => Some(endpoint.clone()),
                    _ => None,
                };
            }
            // Another Podyard may have started it over the same data folder.
            let (inner, id) = (self.inner.clone(), id.to_owned());
            let seen = blocking(move || look(&inner, &id)).await;
            match seen {
                Ok(Some(Observed { phase: Phase::Ready { endpoint }, .. })) => Some(endpoint),
                Ok(_) => None,
                Err(error) => {
                    tracing::warn!(%error, "a space cannot be looked at");
                    None
                }
            }
        })
    }

    fn list(&self) -> Pending<'_, Result<Vec<Observed>>> {
        let inner = self.inner.clone();
        Box::pin(blocking(move || list(&inner)))
    }

    fn look<'a>(&'a self, id: &'a str) -> Pending<'a, Result<Option<Observed>>> {
        let (inner, id) = (self.inner.clone(), id.to_owned());
        Box::pin(blocking(move || look(&inner, &id)))
    }

    fn observe(&self) -> broadcast::Receiver<Observed> {
        self.inner.events.subscribe()
    }

    fn log<'a>(&'a self, id: &'a str, tail_bytes: usize) -> Pending<'a, Result<String>> {
        let (inner, id) = (self.inner.clone(), id.to_owned());
        Box::pin(blocking(move || {
            let tail = inner.folder(&id)?.run().log_tail(tail_bytes as u64).map_err(Error::io("the log"))?;
            Ok(String::from_utf8_lossy(&tail).into_owned())
        }))
    }

    fn terminal<'a>(&'a self, id: &'a str, size: TerminalSize) -> Pending<'a, Result<Terminal>> {
        Box::pin(async move {
            let folder = self.inner.folder(id)?;
            pty::open(&self.inner.terminals, folder, id, &self.inner.podyard, size, &self.inner.runtime).await
        })
    }

    fn follow_log<'a>(&'a self, id: &'a str, tail: usize) -> Pending<'a, Result<mpsc::Receiver<Bytes>>> {
        let (inner, id) = (self.inner.clone(), id.to_owned());
        Box::pin(async move {
            let (run, instance) = blocking(move || {
                let run = inner.folder(&id)?.run();
                let launch = run.launch().map_err(Error::io("the log"))?;
                Ok((run, launch.map(|it| it.instance)))
            })
            .await?;
            Ok(follow(run, instance, tail))
        })
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn children(&self) -> MutexGuard<'_, HashMap<String, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder of a space. The id becomes a path, so it may only be a name.
    fn folder(&self, id: &str) -> Result<Folder> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if id.is_empty() || id.len() > 64 || !id.chars().all(is_name) {
            return Err(Error::Invalid(format!("{id:?} is no id of a space")));
        }
        Ok(Folder::new(self.spaces.join(id)))
    }

    fn tell(&self, id: &str, instance: &str, phase: Phase) {
        // That nobody listens is no error: `list` tells the same later.
        let _ = self.events.send(Observed {
            id: id.to_owned(),
            instance: instance.to_owned(),
            phase,
            detail: String::new(),
        });
    }

    /// Watches a run from now on, unless it is watched already. Returns its phase.
    fn watch(self: &Arc<Self>, launch: &LaunchFile, folder: &Folder) -> Phase {
        let mut known = self.known();
        if let Some(known) = known.get(&launch.id)
            && known.instance == launch.instance
        {
            return known.phase.clone();
        }
        if let Some(older) = known.get(&launch.id) {
            // Another Podyard started it again before this one saw the end,
            // and how it ended is written nowhere any more.
            let exit = Exit {
                code: None,
                signal: None,
                at: disk::now(),
                last_lines: Vec::new(),
                reason: String::new(),
            };
            self.tell(&launch.id, &older.instance, Phase::Exited(exit));
        }
        let ready = ready_endpoint(&folder.run(), &launch.instance);
        let phase = match &ready {
            Some(endpoint) => Phase::Ready { endpoint: endpoint.clone() },
            None => Phase::Starting,
        };
        self.tell(&launch.id, &launch.instance, phase.clone());
        let watcher = Watcher {
            inner: self.clone(),
            folder: folder.clone(),
            id: launch.id.clone(),
            instance: launch.instance.clone(),
        };
        let watcher = self.runtime.spawn(watcher.run(ready.is_some())).abort_handle();
        let entry = Known { instance: launch.instance.clone(), phase: phase.clone(), watcher };
        known.insert(launch.id.clone(), entry);
        phase
    }

    /// Tells that a run is over, once, and forgets it.
    fn finish(&self, id: &str, instance: &str, exit: &Exit) {
        let mut known = self.known();
        if known.get(id).is_some_and(|known| known.instance == instance) {
            known.remove(id);
            self.tell(id, instance, Phase::Exited(exit.clone()));
        }
    }
}

/// Where a run answers, if it ever did.
fn ready_endpoint(run: &Run, instance: &str) -> Option<Endpoint> {
    let ready = std::fs::read_to_string(run.file("ready")).ok()?;
    (ready == instance).then(|| run.instance(instance).ok().flatten()).flatten().map(|file| endpoint(&file))
}

fn endpoint(file: &InstanceFile) -> Endpoint {
    Endpoint {
        addr: SocketAddr::from((Ipv4Addr::LOCALHOST, file.port)),
        secret: file.secret.clone(),
        through: None,
    }
}

/// What a space's folder says. Only the holder of the door may ask.
fn state(run: &Run) -> io::Result<State> {
    let Some(launch) = run.launch()? else { return Ok(State::Nothing) };
    if run.is_held()? {
        return Ok(State::Alive(launch));
    }
    let exit = run.exit()?.filter(|file| file.instance == launch.instance).map(|file| file.exit);
    Ok(State::Ended(launch, exit))
}

/// Looks at one space, and watches it if it lives.
fn look(inner: &Arc<Inner>, id: &str) -> Result<Option<Observed>> {
    let folder = inner.folder(id)?;
    let run = folder.run();
    let Some(_door) = run.door().map_err(Error::io("the space cannot be looked at"))? else {
        return Ok(None);
    };
    match state(&run).map_err(Error::io("the space cannot be looked at"))? {
        State::Nothing => Ok(None),
        State::Alive(launch) => {
            let phase = inner.watch(&launch, &folder);
            Ok(Some(Observed { id: launch.id, instance: launch.instance, phase, detail: String::new() }))
        }
        State::Ended(launch, exit) => Ok(exit.map(|exit| Observed {
            id: launch.id,
            instance: launch.instance,
            phase: Phase::Exited(exit),
            detail: String::new(),
        })),
    }
}

fn list(inner: &Arc<Inner>) -> Result<Vec<Observed>> {
    let mut seen = Vec::new();
    let mut unexplained = Vec::new();
    let entries = std::fs::read_dir(&inner.spaces).map_err(Error::io("the spaces cannot be listed"))?;
    for entry in entries.flatten() {
        let Some(id) = entry.file_name().to_str().map(str::to_owned) else { continue };
        match look(inner, &id) {
            Ok(Some(observed)) => seen.push(observed),
            Ok(None) => unexplained.push(id),
            Err(Error::Invalid(_)) => {}
            // One space's trouble must not hide the others.
            Err(error) => tracing::warn!(space = %id, %error, "a space cannot be looked at"),
        }
    }
    // After a power cut that is every space: all processes are looked through
    // once, not once for each.
    let mut marked = None;
    for id in unexplained {
        match explain(inner, &id, &mut marked) {
            Ok(observed) => seen.extend(observed),
            Err(error) => tracing::warn!(space = %id, %error, "a space cannot be cleaned up"),
        }
    }
    Ok(seen)
}

/// Finds out about a space that has ended without telling how.
fn explain(
    inner: &Inner,
    id: &str,
    marked: &mut Option<HashMap<String, Vec<Pid>>>,
) -> Result<Option<Observed>> {
    let folder = inner.folder(id)?;
    let run = folder.run();
    let mut tried = || -> io::Result<Option<Observed>> {
        let Some(_door) = run.door()? else { return Ok(None) };
        let State::Ended(launch, None) = state(&run)? else { return Ok(None) };
        let marked = marked.get_or_insert_with(sweep::marked);
        let sweep = marked.contains_key(folder.data().to_string_lossy().as_ref());
        let exit = clean_up(&folder, &launch, sweep)?;
        Ok(Some(Observed {
            id: launch.id,
            instance: launch.instance,
            phase: Phase::Exited(exit),
            detail: String::new(),
        }))
    };
    tried().map_err(Error::io("what is left of the space cannot be ended"))
}

/// Runs what waits for the disk where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Io { what: "the work was cut off".into(), source: io::Error::other(error) }),
    }
}
