//! The driver that runs programs on this machine.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::{Pid, Signal};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc};
use tokio::task::AbortHandle;

use crate::disk::{self, ExitFile, Folder, InstanceFile, LaunchFile, Run};
use crate::follow::follow;
use crate::pty::{self, Terminals};
use crate::sweep::{self, Found};
use crate::{
    Driver, Endpoint, Error, Exit, Instance, Launch, Observed, Pending, Phase, Result, Terminal,
    TerminalSize, probe,
};

/// What of Podyard's environment a program is given. Everything else, above
/// all Podyard's own secrets, stays here.
const INHERITED: &[&str] = &[
    "PATH",
    "LANG",
    "LANGUAGE",
    "TERM",
    "TZ",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// How long a shim may take beyond the grace that it was given. Then it is
/// killed, and what it left is searched for.
const SHIM_MARGIN: Duration = Duration::from_secs(5);

/// How often the lock is looked at where the kernel cannot tell of a death.
const POLL: Duration = Duration::from_millis(500);

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

/// Follows one run from its start to its end.
struct Watcher {
    inner: Arc<Inner>,
    folder: Folder,
    id: String,
    instance: String,
}

impl Watcher {
    async fn run(self, was_ready: bool) {
        if let Some(file) = self.await_shim().await {
            let death = self.death(Pid::from_raw(file.shim)).await;
            if was_ready {
                death.wait().await;
            } else {
                tokio::select! {
                    () = death.wait() => {}
                    never = self.await_ready(&file) => match never {},
                }
            }
        }
        self.conclude().await;
    }

    async fn death(&self, shim: Option<Pid>) -> Death {
        let (run, instance) = (self.folder.run(), self.instance.clone());
        let otherwise = Death::Lock(run.clone(), instance.clone());
        blocking(move || Ok(Death::of(shim, run, instance))).await.unwrap_or(otherwise)
    }

    /// Waits until the shim has said who it is; `None` if it died before.
    async fn await_shim(&self) -> Option<InstanceFile> {
        let mut pause = Duration::from_millis(2);
        loop {
            let (run, instance) = (self.folder.run(), self.instance.clone());
            let seen = blocking(move || {
                let lives = run.lives(&instance).map_err(Error::io("the lock"))?;
                Ok((lives, run.instance(&instance).map_err(Error::io("the instance"))?))
            })
            .await;
            match seen {
                Ok((true, Some(file))) => return Some(file),
                Ok((false, _)) => return None,
                Ok((true, None)) => {}
                Err(error) => tracing::warn!(space = %self.id, %error, "a space cannot be watched"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Asks until the program answers, makes that known, and never returns.
    async fn await_ready(&self, file: &InstanceFile) -> std::convert::Infallible {
        let endpoint = endpoint(file);
        let mut pause = Duration::from_millis(25);
        let mut timeout = Duration::from_secs(1);
        while !probe::answers(endpoint.addr, &endpoint.secret, timeout).await {
            tokio::time::sleep(pause).await;
            pause = (pause * 5 / 4).min(Duration::from_millis(250));
            // One that is slow to answer must not be asked over and over.
            timeout = (timeout * 5 / 4).min(Duration::from_secs(10));
        }
        let (path, instance) = (self.folder.run().file("ready"), self.instance.clone());
        let written = blocking(move || std::fs::write(path, instance).map_err(Error::io("ready"))).await;
        if let Err(error) = written {
            // Then the next Podyard asks the program again; nothing is lost.
            tracing::warn!(space = %self.id, %error, "that a space is ready cannot be kept");
        }
        let phase = Phase::Ready { endpoint };
        if let Some(known) = self.inner.known().get_mut(&self.id)
            && known.instance == self.instance
        {
            known.phase = phase.clone();
        }
        self.inner.tell(&self.id, &self.instance, phase);
        std::future::pending().await
    }

    /// Tells how it ended, and leaves nothing of it behind.
    async fn conclude(self) {
        self.inner.terminals.end(&self.id, "the space has ended").await;
        let (inner, folder, instance) = (self.inner.clone(), self.folder.clone(), self.instance.clone());
        let concluded = blocking(move || {
            reap(&inner, &instance);
            conclude(&folder, &instance)
        })
        .await;
        let exit = concluded.unwrap_or_else(|error| {
            tracing::error!(space = %self.id, %error, "a space has ended and leaves something behind");
            unknown_exit(&self.folder.run())
        });
        self.inner.finish(&self.id, &self.instance, &exit);
        // Another Podyard may have started it again meanwhile.
        let (inner, id) = (self.inner.clone(), self.id.clone());
        if let Err(error) = blocking(move || look(&inner, &id)).await {
            tracing::warn!(space = %self.id, %error, "a space cannot be looked at");
        }
    }
}

/// Tells when a shim has died.
enum Death {
    #[cfg(target_os = "linux")]
    Pidfd(tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>),
    /// No such descriptor is to be had: the lock is looked at now and then.
    Lock(Run, String),
}

impl Death {
    fn of(shim: Option<Pid>, run: Run, instance: String) -> Self {
        #[cfg(target_os = "linux")]
        {
            use tokio::io::{Interest, unix::AsyncFd};
            // The lock is looked at after the process was taken hold of. If it
            // is still held, the descriptor is the shim's and no other's.
            if let Some(fd) = shim.and_then(Found::open).and_then(Found::into_fd)
                && run.lives(&instance).unwrap_or(false)
            {
                #[expect(unsafe_code, reason = "tokio asks for the promise that the descriptor stays open")]
                // SAFETY: the descriptor is owned, and moves in.
                let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
                if let Ok(fd) = fd {
                    return Self::Pidfd(fd);
                }
            }
        }
        let _ = shim;
        Self::Lock(run, instance)
    }

    async fn wait(&self) {
        match self {
            #[cfg(target_os = "linux")]
            Self::Pidfd(fd) => {
                // The only error is that the runtime ends, and all with it.
                let _ = fd.readable().await;
            }
            Self::Lock(run, instance) => loop {
                let (run, instance) = (run.clone(), instance.clone());
                if !blocking(move || run.lives(&instance).map_err(Error::io("the lock")))
                    .await
                    .unwrap_or(true)
                {
                    return;
                }
                tokio::time::sleep(POLL).await;
            },
        }
    }
}

/// Takes the exit status of a shim that this process started.
fn reap(inner: &Inner, instance: &str) {
    let child = inner.children().remove(instance);
    if let Some(mut child) = child {
        // What it returned says nothing that `exit` does not.
        let _ = child.wait();
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

/// How a run ended of which nobody can tell.
fn unknown_exit(run: &Run) -> Exit {
    Exit {
        code: None,
        signal: None,
        at: disk::now(),
        last_lines: run.last_lines(64 << 10),
        reason: String::new(),
    }
}

/// Ends what a killed shim has left, and writes the exit in its place. Only
/// the holder of the door may, and only while the lock is free.
fn clean_up(folder: &Folder, launch: &LaunchFile, sweep: bool) -> io::Result<Exit> {
    let run = folder.run();
    if sweep {
        sweep::kill_marked(&folder.data())?;
        if let Some(file) = run.instance(&launch.instance)? {
            await_port(file.port);
        }
    }
    let exit = unknown_exit(&run);
    run.write("exit", &ExitFile { instance: launch.instance.clone(), exit: exit.clone() })?;
    Ok(exit)
}

/// A process that is being killed loses its memory, by which it is found,
/// an instant before its sockets.
fn await_port(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(1);
    while TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How the given run ended, of which it is known that it is over.
fn conclude(folder: &Folder, instance: &str) -> Result<Exit> {
    let run = folder.run();
    let tried = || -> io::Result<Exit> {
        let Some(_door) = run.door()? else { return Ok(unknown_exit(&run)) };
        if let Some(file) = run.exit()?
            && file.instance == instance
        {
            return Ok(file.exit);
        }
        match state(&run)? {
            State::Ended(launch, None) if launch.instance == instance => clean_up(folder, &launch, true),
            // It was started again, or deleted, before anybody asked.
            _ => Ok(unknown_exit(&run)),
        }
    };
    tried().map_err(Error::io("what is left of the space cannot be ended"))
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

fn start(inner: &Arc<Inner>, launch: &Launch) -> Result<Instance> {
    let folder = inner.folder(&launch.id)?;
    launch.check()?;
    let run = folder.run();
    let at = || Error::io(format!("the space's folder {} cannot be used", folder.path().display()));
    // The folder may be deleted between its making and the taking of its door.
    let _door = loop {
        folder.create().map_err(at())?;
        if let Some(door) = run.door().map_err(at())? {
            break door;
        }
    };
    match state(&run).map_err(at())? {
        State::Alive(launch) => {
            inner.watch(&launch, &folder);
            return Ok(Instance { id: launch.instance, started_at: launch.started_at });
        }
        State::Ended(last, exit) => {
            let exit = match exit {
                Some(exit) => exit,
                None => clean_up(&folder, &last, true).map_err(at())?,
            };
            inner.finish(&launch.id, &last.instance, &exit);
        }
        State::Nothing => {}
    }
    let program = find_program(&launch.command, &launch.env, &inner.podyard, Some(&folder.data()))?;
    let Some(lock) = run.take_lock().map_err(at())? else {
        return Err(Error::Stuck("the space's lock is held by a process that is not its shim".into()));
    };
    for name in ["exit", "ready", "grace", "instance"] {
        run.remove(name).map_err(at())?;
    }
    let mut env = launch.env.clone();
    for (name, value) in [
        ("PODYARD_CPU", &launch.cpu),
        ("PODYARD_MEMORY", &launch.memory),
        ("PODYARD_STORAGE", &launch.storage),
    ] {
        env.push((name.to_owned(), value.clone()));
    }
    let file = LaunchFile {
        instance: disk::random_hex::<16>().map_err(at())?,
        started_at: disk::now(),
        id: launch.id.clone(),
        sid: launch.sid.clone(),
        base_path: launch.base_path.clone(),
        program,
        command: launch.command.clone(),
        env,
        dir: folder.data(),
        podyard: inner.podyard.clone(),
    };
    run.write("launch", &file).map_err(at())?;
    let spawned = Command::new(&inner.podyard)
        .arg("shim")
        .arg(run.path())
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| is_inherited(&name.to_string_lossy())))
        // The lock goes over to the shim while it is held; see there.
        .stdin(Stdio::from(lock))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let child = match spawned {
        Ok(child) => child,
        Err(error) => {
            run.remove("launch").map_err(at())?;
            return Err(Error::io(format!("{} cannot be run", inner.podyard.display()))(error));
        }
    };
    inner.children().insert(file.instance.clone(), child);
    inner.watch(&file, &folder);
    tracing::info!(space = %launch.id, instance = %file.instance, "space started");
    Ok(Instance { id: file.instance, started_at: file.started_at })
}

pub(crate) fn is_inherited(name: &str) -> bool {
    INHERITED.contains(&name) || name.starts_with("LC_")
}

/// Where the program of a command is. Without `dir`, a program in the space's
/// own folder is taken as there.
fn find_program(
    command: &[String],
    env: &[(String, String)],
    podyard: &Path,
    dir: Option<&Path>,
) -> Result<PathBuf> {
    let Some(name) = command.first().filter(|name| !name.is_empty()) else {
        return Err(Error::Invalid("the command is empty: it needs a program".into()));
    };
    let mut name = name.replace("{podyard}", &podyard.to_string_lossy());
    if name.contains("{dir}") {
        match dir {
            Some(dir) => name = name.replace("{dir}", &dir.to_string_lossy()),
            None => return Ok(PathBuf::from(name)),
        }
    }
    if name.contains('/') {
        let path = PathBuf::from(&name);
        if path.is_relative() {
            return Err(Error::Invalid(format!(
                "the program {name:?} is a relative path: write it in full, begin with {{dir}}, \
                 or give a name that is in PATH"
            )));
        }
        return match path.metadata() {
            Ok(_) if is_executable(&path) => Ok(path),
            Ok(_) => Err(Error::Unavailable(format!("{name} is no program that may be executed"))),
            Err(error) => Err(Error::Unavailable(format!("the program {name} was not found: {error}"))),
        };
    }
    let path = match env.iter().rev().find(|(name, _)| name == "PATH") {
        Some((_, path)) => path.into(),
        None => std::env::var_os("PATH").unwrap_or_default(),
    };
    std::env::split_paths(&path)
        .map(|folder| folder.join(&name))
        .find(|path| path.is_absolute() && is_executable(path))
        .ok_or_else(|| {
            Error::Unavailable(format!(
                "the program {name:?} was not found; looked for it in PATH: {}",
                path.to_string_lossy()
            ))
        })
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// What a stop has to wait for.
struct Stopping {
    instance: String,
    death: Death,
    shim: Pid,
}

async fn stop(inner: &Arc<Inner>, id: &str, grace: Duration) -> Result<Option<Exit>> {
    let folder = inner.folder(id)?;
    let mut patience = 0;
    let instance = loop {
        let (this, that) = (inner.clone(), folder.clone());
        match blocking(move || ask_to_stop(&this, &that, grace)).await? {
            Asked::Ended(instance) => break instance,
            Asked::Told(stopping) => {
                if tokio::time::timeout(grace + SHIM_MARGIN, stopping.death.wait()).await.is_err() {
                    tracing::warn!(space = %id, "the shim does not end: it is killed");
                    let (run, shim, instance) = (folder.run(), stopping.shim, stopping.instance.clone());
                    blocking(move || {
                        signal_shim(&run, shim, &instance, Signal::KILL)
                            .map_err(Error::io("the space's shim cannot be killed"))
                    })
                    .await?;
                    if tokio::time::timeout(SHIM_MARGIN, stopping.death.wait()).await.is_err() {
                        return Err(Error::Stuck("the space's shim was killed and does not die".into()));
                    }
                }
                break Some(stopping.instance);
            }
            Asked::NotYet if patience < 500 => {
                // Its shim was only just started.
                patience += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Asked::NotYet => return Err(Error::Stuck("the space's shim does not say who it is".into())),
        }
    };
    inner.terminals.end(id, "the space was stopped").await;
    let (inner, id) = (inner.clone(), id.to_owned());
    blocking(move || {
        if let Some(instance) = &instance {
            reap(&inner, instance);
        }
        pty::sweep(&folder).map_err(Error::io("what is left of the space cannot be ended"))?;
        let exit = take_note(&folder, instance.as_deref())?;
        if let (Some(instance), Some(exit)) = (&instance, &exit) {
            inner.finish(&id, instance, exit);
        }
        Ok(exit)
    })
    .await
}

enum Asked {
    Told(Stopping),
    NotYet,
    /// Nothing runs. The run that ended last, if one did.
    Ended(Option<String>),
}

fn ask_to_stop(inner: &Arc<Inner>, folder: &Folder, grace: Duration) -> Result<Asked> {
    let run = folder.run();
    let at = || Error::io("the space cannot be stopped");
    let Some(_door) = run.door().map_err(at())? else { return Ok(Asked::Ended(None)) };
    let launch = match state(&run).map_err(at())? {
        State::Nothing => return Ok(Asked::Ended(None)),
        State::Ended(launch, _) => return Ok(Asked::Ended(Some(launch.instance))),
        State::Alive(launch) => launch,
    };
    // So that the end is told to those who observe.
    inner.watch(&launch, folder);
    let Some(file) = run.instance(&launch.instance).map_err(at())? else { return Ok(Asked::NotYet) };
    let Some(shim) = Pid::from_raw(file.shim) else { return Ok(Asked::NotYet) };
    run.write("grace", &u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)).map_err(at())?;
    let death = Death::of(Some(shim), run.clone(), launch.instance.clone());
    signal_shim(&run, shim, &launch.instance, Signal::TERM).map_err(at())?;
    Ok(Asked::Told(Stopping { instance: launch.instance, death, shim }))
}

/// Signals the process only if it is the shim: if the lock is held once the
/// process was taken hold of.
fn signal_shim(run: &Run, shim: Pid, instance: &str, signal: Signal) -> io::Result<()> {
    match Found::open(shim) {
        Some(found) if run.lives(instance)? => found.signal(signal),
        _ => Ok(()),
    }
}

/// Makes sure that nothing is left, and that the exit is not told again.
fn take_note(folder: &Folder, instance: Option<&str>) -> Result<Option<Exit>> {
    let run = folder.run();
    let tried = || -> io::Result<Option<Exit>> {
        let Some(_door) = run.door()? else { return Ok(None) };
        match state(&run)? {
            State::Nothing => Ok(run.exit()?.map(|file| file.exit)),
            State::Ended(launch, exit) => {
                let exit = match exit {
                    Some(exit) => exit,
                    None => clean_up(folder, &launch, true)?,
                };
                if instance == Some(launch.instance.as_str()) {
                    run.remove("launch")?;
                }
                Ok(Some(exit))
            }
            // Somebody has started it again. What was to be stopped is.
            State::Alive(_) => Ok(None),
        }
    };
    tried().map_err(Error::io("what is left of the space cannot be ended"))
}

fn delete(inner: &Inner, id: &str) -> Result<()> {
    let folder = inner.folder(id)?;
    let run = folder.run();
    let at = || Error::io(format!("the space's folder {} cannot be removed", folder.path().display()));
    let trash = inner.trash.join(format!("{id}.{}", disk::random_hex::<8>().map_err(at())?));
    {
        let door = run.door().map_err(at())?;
        if door.is_some() {
            match state(&run).map_err(at())? {
                State::Alive(_) => return Err(Error::Running),
                State::Ended(last, exit) => {
                    let exit = match exit {
                        Some(exit) => exit,
                        None => clean_up(&folder, &last, true).map_err(at())?,
                    };
                    inner.finish(id, &last.instance, &exit);
                }
                State::Nothing => {}
            }
        }
        // At once out of sight, then piece by piece: a crash in between leaves
        // trash and no half of a space.
        match std::fs::rename(folder.path(), &trash) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(at())?,
        }
    }
    remove_tree(&trash).map_err(at())?;
    tracing::info!(space = %id, "space's data removed");
    Ok(())
}

/// Removes a folder and all in it, also folders that may not be written to,
/// which tools like to make of their caches.
fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(path)?;
            std::fs::remove_dir_all(path)
        }
        removed => removed,
    }
}

fn make_writable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
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
