//! Terminals: a pty of this process, and a shell on its other side that a
//! small process of its own supervises (see [`crate::shell`]).
//!
//! Three pipes tie the two together. The supervisor's standard input is never
//! written to: its end says that nobody holds the terminal any more, whatever
//! became of this process. By its standard output it tells how the shell
//! ended, and its standard error is the shell's side of the pty.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::pty::OpenptFlags;
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::disk::{self, Folder, Run};
use crate::process::{blocking, is_inherited};
use crate::{Error, Result, Terminal, TerminalEnd, TerminalInput, TerminalSize, sweep};

/// Most bytes that are read at once: as many as a pty gives.
const PIECE: usize = 4096;
/// Pieces that may wait for whoever reads the terminal. Beyond that the pty is
/// left full, and the shell waits.
const OUTPUT: usize = 4;
/// Inputs that may wait for the shell.
const INPUT: usize = 8;

/// How long a supervisor may take to end what its shell has started.
const PATIENCE: Duration = Duration::from_secs(5);

/// The folder in a space's `run` with a file for each terminal that is open, in
/// whichever process.
const FOLDER: &str = "terminals";

/// The terminals that this process holds open.
#[derive(Debug, Default)]
pub(crate) struct Terminals(Mutex<HashMap<String, Held>>);

/// One of them, by its own id.
#[derive(Debug)]
struct Held {
    space: String,
    /// Why it has to end.
    stop: watch::Sender<Option<&'static str>>,
    /// Closed once nothing of it is left.
    gone: watch::Receiver<()>,
}

impl Terminals {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all terminals of a space, and waits until nothing of them is left,
    /// but not for ever.
    pub(crate) async fn end(&self, space: &str, why: &'static str) {
        let waiting: Vec<_> = self
            .all()
            .values()
            .filter(|it| it.space == space)
            .map(|it| {
                it.stop.send_replace(Some(why));
                it.gone.clone()
            })
            .collect();
        let all = async {
            for mut gone in waiting {
                // An error is what is waited for: its sender was dropped.
                while gone.changed().await.is_ok() {}
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::warn!(space, "terminals do not end");
        }
    }
}

/// Ends what terminals of other processes, or of dead ones, may have left of a
/// space. To be called once its run is over.
pub(crate) fn sweep(folder: &Folder) -> io::Result<()> {
    let run = folder.run();
    let files = match std::fs::read_dir(run.file(FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files?,
    };
    let left: Vec<_> = files.flatten().collect();
    if left.is_empty() {
        return Ok(());
    }
    sweep::kill_marked(&folder.data())?;
    left.iter().try_for_each(|file| run.remove(&name_in(&file.file_name().to_string_lossy())))
}

fn name_in(terminal: &str) -> String {
    format!("{FOLDER}/{terminal}")
}

/// Opens a terminal in a space that runs.
pub(crate) async fn open(
    terminals: &Arc<Terminals>,
    folder: Folder,
    space: &str,
    podyard: &Path,
    size: TerminalSize,
    runtime: &Handle,
) -> Result<Terminal> {
    let (terminals, space, podyard) = (terminals.clone(), space.to_owned(), podyard.to_owned());
    let runtime = runtime.clone();
    // Not undone half way if the caller gives up: what was made is then dropped, and ends.
    blocking(move || begin(&terminals, &folder, space, podyard, size, &runtime)).await
}

fn begin(
    terminals: &Arc<Terminals>,
    folder: &Folder,
    space: String,
    podyard: PathBuf,
    size: TerminalSize,
    runtime: &Handle,
) -> Result<Terminal> {
    let run = folder.run();
    let at = || Error::io("the terminal cannot be opened");
    let stopped = || Error::Unavailable("the space does not run".into());
    // The descriptors belong to the driver's own runtime, which outlives the caller's.
    let _runtime = runtime.enter();
    // Until it is noted down: a stop that comes later finds it.
    let Some(_door) = run.door().map_err(at())? else { return Err(stopped()) };
    let launch = run.launch().map_err(at())?.filter(|_| run.is_held().unwrap_or(false));
    let Some(launch) = launch else { return Err(stopped()) };
    if run.instance(&launch.instance).map_err(at())?.is_none() {
        return Err(stopped());
    }
    let id = disk::random_hex::<8>().map_err(at())?;
    disk::create_private(&run.file(FOLDER)).map_err(at())?;
    std::fs::File::create(run.file(&name_in(&id))).map_err(at())?;
    let started =
        pair(size).and_then(|(ours, theirs)| Ok((register(ours)?, spawn(&podyard, &run, &id, theirs)?)));
    let (pty, supervisor) = match started {
        Ok(started) => started,
        Err(error) => {
            run.remove(&name_in(&id)).map_err(at())?;
            return Err(at()(error));
        }
    };
    let (input, typed) = mpsc::channel(INPUT);
    let (shown, output) = mpsc::channel(OUTPUT);
    let (ended, end) = oneshot::channel();
    let (stop, stopping) = watch::channel(None);
    let (leaving, gone) = watch::channel(());
    terminals.all().insert(id.clone(), Held { space, stop, gone });
    let open = Open { terminals: terminals.clone(), run, id, supervisor, _leaving: leaving };
    runtime.spawn(open.serve(Pty(pty), typed, shown, ended, stopping));
    Ok(Terminal { input, output, end })
}

/// A pty of that size: our side, and the shell's.
fn pair(size: TerminalSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    #[cfg(target_os = "linux")]
    let flags = flags | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    #[cfg(target_os = "linux")]
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    #[cfg(not(target_os = "linux"))]
    let theirs = {
        use rustix::fs::{Mode, OFlags};
        let name = rustix::pty::ptsname(&ours, Vec::new())?;
        rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?
    };
    // What erases a character must know how many bytes it has.
    let mut modes = tcgetattr(&theirs)?;
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(&theirs, OptionalActions::Now, &modes)?;
    tcsetwinsize(&ours, winsize(size))?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

fn winsize(size: TerminalSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "tokio asks for the promise that the descriptor stays open")]
    // SAFETY: the descriptor is owned, and moves in.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::WRITABLE) };
    Ok(fd?)
}

fn spawn(podyard: &Path, run: &Run, id: &str, theirs: OwnedFd) -> io::Result<Child> {
    Command::new(podyard)
        .arg("shell")
        .arg(run.path())
        .arg(id)
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| is_inherited(&name.to_string_lossy())))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(theirs)
        .spawn()
}

/// Our side of a pty.
struct Pty(AsyncFd<OwnedFd>);

impl Pty {
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            // That it would block is said by the outer result.
            if let Ok(read) = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?)) {
                return read;
            }
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            if let Ok(written) = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                bytes = bytes.get(written?..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// A terminal that is open, on the side of this process.
struct Open {
    terminals: Arc<Terminals>,
    run: Run,
    id: String,
    supervisor: Child,
    _leaving: watch::Sender<()>,
}

impl Open {
    /// Carries bytes until one side ends, then sees to the end of the other.
    async fn serve(
        mut self,
        pty: Pty,
        mut typed: mpsc::Receiver<TerminalInput>,
        shown: mpsc::Sender<Bytes>,
        ended: oneshot::Sender<TerminalEnd>,
        mut stopping: watch::Receiver<Option<&'static str>>,
    ) {
        let reading = async {
            let mut piece = vec![0; PIECE];
            // Nothing is read that nobody has room for. The error at the end is the pty's way to
            // say that the other side was closed.
            while let Ok(room) = shown.reserve().await
                && let Ok(count @ 1..) = pty.read(&mut piece).await
            {
                room.send(Bytes::copy_from_slice(piece.get(..count).unwrap_or_default()));
            }
        };
        let typing = async {
            while let Some(it) = typed.recv().await {
                let done = match it {
                    TerminalInput::Data(bytes) => pty.write(&bytes).await,
                    TerminalInput::Resize(size) => {
                        tcsetwinsize(&pty.0, winsize(size)).map_err(io::Error::from)
                    }
                };
                if done.is_err() {
                    // The other side is closed; what it wrote before may still be read.
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            () = reading => {}
            () = typing => {}
            () = shown.closed() => {}
            _ = stopping.wait_for(Option::is_some) => {}
        }
        // A reader that went on would find the end of the output before it is told how it came.
        let why = *stopping.borrow();
        drop(pty);
        drop(self.supervisor.stdin.take());
        let told = self.told().await;
        let end = match (why, told) {
            (Some(why), _) => TerminalEnd { code: None, reason: why.to_owned() },
            (None, Some(Told::Code(code))) => TerminalEnd { code: Some(code), reason: String::new() },
            (None, Some(Told::Signal(signal))) => {
                TerminalEnd { code: None, reason: format!("the shell was ended by signal {signal}") }
            }
            (None, None) => TerminalEnd { code: None, reason: "the shell was killed".to_owned() },
        };
        // Nobody may wait for it any more.
        let _ = ended.send(end);
        drop(shown);
        self.clean_up().await;
    }

    /// How the shell ended, as its supervisor tells at that moment.
    async fn told(&mut self) -> Option<Told> {
        let mut pipe = self.supervisor.stdout.take()?;
        let mut text = [0; 16];
        let mut length = 0;
        while let Some(room) = text.get_mut(length..).filter(|it| !it.is_empty()) {
            match pipe.read(room).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => length += count,
            }
            let line = std::str::from_utf8(text.get(..length)?).ok()?;
            if let Some(line) = line.strip_suffix('\n') {
                return Told::parse(line);
            }
        }
        None
    }

    /// Waits for the supervisor, who leaves nothing behind, or does what it could not do.
    async fn clean_up(mut self) {
        let status = self.supervisor.wait().await;
        let (run, id) = (self.run.clone(), self.id.clone());
        let cleaned = blocking(move || {
            let at = || Error::io("what is left of a terminal cannot be ended");
            if !status.is_ok_and(|it| it.success()) {
                sweep::kill_with(TERMINAL, &id).map_err(at())?;
            }
            run.remove(&name_in(&id)).map_err(at())
        })
        .await;
        if let Err(error) = cleaned {
            tracing::warn!(%error, "a terminal leaves something behind");
        }
        self.terminals.all().remove(&self.id);
    }
}

/// The variable by which the processes of a terminal are found.
pub(crate) const TERMINAL: &str = "PODYARD_TERMINAL";

/// What a supervisor tells of its shell's end: `3`, or `s9`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// What it returned.
    Code(i32),
    /// What signal it ended by.
    Signal(i32),
}

impl Told {
    fn parse(line: &str) -> Option<Self> {
        match line.strip_prefix('s') {
            Some(signal) => signal.parse().ok().map(Self::Signal),
            None => line.parse().ok().map(Self::Code),
        }
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Signal(signal) => write!(f, "s{signal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Told;

    #[test]
    fn ends_are_told_and_read() {
        for told in [Told::Code(0), Told::Code(255), Told::Signal(9)] {
            assert_eq!(Told::parse(&told.to_string()), Some(told));
        }
        for odd in ["", "s", "x", "3 "] {
            assert_eq!(Told::parse(odd), None, "{odd:?}");
        }
    }
}
