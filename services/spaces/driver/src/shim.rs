//! The small process that stands between Podyard and a space's program.
//!
//! It outlives Podyard, holds the lock that says "it lives", keeps the log
//! within bounds, and leaves nothing of the program's tree when it ends. It is
//! one thread without a runtime: ten thousand of them must cost little.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group};

use crate::Exit;
use crate::disk::{self, ExitFile, InstanceFile, LOG_BYTES, LaunchFile, Run};

/// How long what the program left behind may take to end, after it ended by
/// itself. Short, since its death is not told before.
const LEFTOVERS: Duration = Duration::from_millis(500);

/// How long a stop may take when nobody has said.
const GRACE: Duration = Duration::from_secs(10);

/// Outside the range from which kernels take the ports of outgoing
/// connections, the gateway's own among them.
const PORTS: std::ops::Range<u16> = 10240..32768;

/// Runs one space's program and waits for its end. The body of the hidden
/// command `podyard shim <run dir>`; call it before anything else is set up.
#[must_use]
pub fn shim_main(run_dir: &Path) -> ExitCode {
    close_inherited();
    let run = Run::new(run_dir.to_owned());
    match supervise(&run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Its stderr leads nowhere; the log is where people look.
            if let Ok(mut log) = Log::open(&run) {
                log.write(format!("podyard: {error}\n").as_bytes());
            }
            ExitCode::FAILURE
        }
    }
}

/// Closes what Podyard had open without meaning to hand it over: a library in
/// C (MySQL's client) opens its connections so that children inherit them.
/// They would be the program's too, and last for as long as it runs.
pub(crate) fn close_inherited() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers: Vec<i32> =
        open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // The folder itself, which was among them, is closed by now.
    let is_open = |fd: &i32| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok();
    for fd in numbers.into_iter().filter(|fd| *fd > 2 && is_open(fd)) {
        #[expect(unsafe_code, reason = "whatever is open here, nothing in this process has opened it")]
        // SAFETY: this is the first that the process does, so nothing owns the descriptor.
        unsafe {
            rustix::io::close(fd);
        }
    }
}

fn supervise(run: &Run) -> io::Result<()> {
    // Kept until this process is gone, which is what unlocks it.
    let _lock = inherit_lock(run)?;
    // Fails if it leads a session already, as when it is run by hand.
    let _ = rustix::process::setsid();
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    std::env::set_current_dir("/")?;
    let signals = signals::listen()?;

    let launch = run.launch()?.ok_or_else(|| io::Error::other("there is nothing to launch"))?;
    let mut log = Log::open(run)?;
    let (port, _reservation) = pick_port(run)?;
    let instance = InstanceFile {
        instance: launch.instance.clone(),
        shim: rustix::process::getpid().as_raw_nonzero().get(),
        port,
        secret: disk::random_hex::<32>()?,
        started_at: disk::now(),
    };
    run.write("instance", &instance)?;

    let (output, input) = io::pipe()?;
    rustix::io::ioctl_fionbio(&output, true)?;
    let (code, signal) = match spawn(&launch, &instance, input) {
        Ok(child) => Supervisor { run, child, output: Some(output), log: &mut log, signals }.wait()?,
        Err(error) => {
            log.write(format!("podyard: cannot run {}: {error}\n", launch.program.display()).as_bytes());
            (Some(127), None)
        }
    };
    let exit = Exit {
        code,
        signal,
        at: disk::now(),
        last_lines: run.last_lines(log.written),
        reason: String::new(),
    };
    run.write("exit", &ExitFile { instance: launch.instance, exit })
}

/// The driver hands over the lock as standard input, held already: there is
/// no moment in which nobody holds it.
fn inherit_lock(run: &Run) -> io::Result<File> {
    // A copy that the program does not inherit.
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    if disk::is_same_file(&stdin, &run.file("lock")) {
        return Ok(stdin);
    }
    run.take_lock()?.ok_or_else(|| io::Error::other("it runs already"))
}

/// A port that is free, and a lock on it that keeps the other shims away from
/// it until the program listens and as long as it runs.
fn pick_port(run: &Run) -> io::Result<(u16, Option<File>)> {
    // spaces/<id>/run → <root>/ports
    let ports = run.path().ancestors().nth(3).unwrap_or(run.path()).join("ports");
    disk::create_private(&ports)?;
    for _ in 0..200 {
        let random = u16::from_str_radix(&disk::random_hex::<2>()?, 16).map_err(io::Error::other)?;
        let port = PORTS.start + random % (PORTS.end - PORTS.start);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(ports.join(port.to_string()))?;
        if file.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok((port, Some(file)));
        }
    }
    Ok((TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port(), None))
}

/// The text with its words replaced by what they stand for in this run.
fn fill(text: &str, launch: &LaunchFile, instance: &InstanceFile) -> String {
    text.replace("{port}", &instance.port.to_string())
        .replace("{dir}", &launch.dir.to_string_lossy())
        .replace("{base}", &launch.base_path)
        .replace("{podyard}", &launch.podyard.to_string_lossy())
}

/// What a space's processes have in their environment, beside what the shim
/// was started with: that is what may be inherited, and nothing else.
pub(crate) fn environment(launch: &LaunchFile, instance: &InstanceFile) -> Vec<(String, OsString)> {
    let own = launch.env.iter().map(|(name, value)| (name.clone(), fill(value, launch, instance).into()));
    let ours: [(&str, OsString); 7] = [
        ("HOME", launch.dir.clone().into()),
        ("PODYARD_SPACE_ID", launch.id.clone().into()),
        ("PODYARD_SPACE_SID", launch.sid.clone().into()),
        ("PODYARD_SPACE_DIR", launch.dir.clone().into()),
        ("PODYARD_SPACE_SECRET", instance.secret.clone().into()),
        ("PODYARD_PORT", instance.port.to_string().into()),
        ("PODYARD_BASE_PATH", launch.base_path.clone().into()),
    ];
    own.chain(ours.map(|(name, value)| (name.to_owned(), value))).collect()
}

fn spawn(launch: &LaunchFile, instance: &InstanceFile, output: io::PipeWriter) -> io::Result<Pid> {
    let fill = |text: &str| fill(text, launch, instance);
    let mut command = Command::new(&launch.program);
    if let Some((name, arguments)) = launch.command.split_first() {
        command.arg0(fill(name)).args(arguments.iter().map(|argument| fill(argument)));
    }
    command
        .envs(environment(launch, instance))
        .current_dir(&launch.dir)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0);
    #[cfg(target_os = "linux")]
    die_with_shim(&mut command);
    let child = command.spawn()?;
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no pid"))
}

/// A program must not outlive its shim, even one that was killed by force.
#[cfg(target_os = "linux")]
fn die_with_shim(command: &mut Command) {
    use rustix::process::{getpid, getppid, set_parent_process_death_signal};
    let shim = getpid();
    #[expect(unsafe_code, reason = "only between fork and exec can a program be bound to its parent's life")]
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The shim may have died before the signal was asked for.
            if getppid() == Some(shim) { Ok(()) } else { Err(Errno::SRCH.into()) }
        });
    }
}

struct Supervisor<'a> {
    run: &'a Run,
    child: Pid,
    /// Where the program's output comes from, until its end.
    output: Option<io::PipeReader>,
    log: &'a mut Log,
    signals: OwnedFd,
}

impl Supervisor<'_> {
    /// Waits for the end of the whole tree, and tells how the program ended.
    fn wait(mut self) -> io::Result<(Option<i32>, Option<i32>)> {
        let mut ended = None;
        let mut leftovers_told = false;
        let mut kill_at: Option<Instant> = None;
        let mut pause = Duration::from_millis(5);
        loop {
            if signals::take_stop() {
                let at = Instant::now() + self.grace();
                kill_at = Some(kill_at.map_or(at, |before| before.min(at)));
                if ended.is_none() {
                    self.signal_group(Signal::TERM);
                    // Or one that is stopped never hears of it.
                    self.signal_group(Signal::CONT);
                }
            }
            if self.reap(&mut ended)? {
                break;
            }
            if ended.is_some() && !leftovers_told {
                leftovers_told = true;
                kill_at.get_or_insert(Instant::now() + LEFTOVERS);
                #[cfg(target_os = "linux")]
                crate::sweep::signal_descendants(Signal::TERM);
            }
            if let Some(at) = kill_at
                && Instant::now() >= at
            {
                #[cfg(target_os = "linux")]
                crate::sweep::kill_descendants();
                #[cfg(not(target_os = "linux"))]
                self.signal_group(Signal::KILL);
                // Until nothing is left: what cannot be killed keeps the lock.
                kill_at = Some(Instant::now() + pause);
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            self.sleep(kill_at)?;
        }
        // Without a subreaper what is left can only be reached by its group.
        #[cfg(not(target_os = "linux"))]
        self.signal_group(Signal::KILL);
        while self.copy_output()? {}
        Ok(ended.unwrap_or_default())
    }

    /// Takes the dead; true if no child is left, and hence no descendant.
    fn reap(&self, ended: &mut Option<(Option<i32>, Option<i32>)>) -> io::Result<bool> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.child => {
                    *ended = Some((status.exit_status(), status.terminating_signal()));
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(false),
                Err(Errno::CHILD) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Only before the program was reaped: then nobody else can have its number.
    fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.child, signal);
    }

    fn grace(&self) -> Duration {
        match std::fs::read_to_string(self.run.file("grace")) {
            Ok(text) => text.trim().parse().map_or(GRACE, Duration::from_millis),
            Err(_) => GRACE,
        }
    }

    /// Sleeps until a signal, output, or `until`.
    fn sleep(&mut self, until: Option<Instant>) -> io::Result<()> {
        let timeout = match until {
            Some(at) => Some(
                Timespec::try_from(at.saturating_duration_since(Instant::now())).map_err(io::Error::other)?,
            ),
            None => None,
        };
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if let Some(output) = &self.output {
            fds.push(PollFd::new(output, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_output = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        signals::drain(&self.signals);
        if has_output {
            self.copy_output()?;
        }
        Ok(())
    }

    /// Copies a piece of output into the log; false if there is none now.
    fn copy_output(&mut self) -> io::Result<bool> {
        let Some(output) = &mut self.output else { return Ok(false) };
        let mut buffer = [0; 16 << 10];
        match output.read(&mut buffer) {
            Ok(0) => {
                self.output = None;
                Ok(false)
            }
            Ok(count) => {
                self.log.write(&buffer[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// The program's output, in two files that never grow beyond [`LOG_BYTES`].
struct Log {
    path: PathBuf,
    older: PathBuf,
    file: File,
    length: u64,
    /// How much of it is of this run.
    written: u64,
}

impl Log {
    fn open(run: &Run) -> io::Result<Self> {
        let path = run.file("log");
        let file = Self::append(&path)?;
        let length = file.metadata()?.len();
        Ok(Self { path, older: run.file("log.1"), file, length, written: 0 })
    }

    fn append(path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(path)
    }

    /// A disk that is full must not end the program: what cannot be written is lost.
    fn write(&mut self, bytes: &[u8]) {
        if self.length + bytes.len() as u64 > LOG_BYTES {
            self.begin_anew();
        }
        if self.file.write_all(bytes).is_ok() {
            self.length += bytes.len() as u64;
            self.written += bytes.len() as u64;
        } else if let Ok(file) = self.file.metadata() {
            self.length = file.len();
        }
    }

    fn begin_anew(&mut self) {
        let moved = std::fs::rename(&self.path, &self.older).and_then(|()| Self::append(&self.path));
        match moved {
            Ok(file) => self.file = file,
            // Rather without its older part than without bounds.
            Err(_) => drop(self.file.set_len(0)),
        }
        self.length = 0;
    }
}

/// SIGTERM and SIGCHLD, as bytes in a pipe: the one way that works on every
/// Unix and lets one thread wait for them and for output.
pub(crate) mod signals {
    use super::*;

    static WAKE: AtomicI32 = AtomicI32::new(-1);
    static STOP: AtomicBool = AtomicBool::new(false);

    #[expect(unsafe_code, reason = "a signal handler may do no more than a system call")]
    extern "C" fn on_signal(signal: libc::c_int) {
        if signal != libc::SIGCHLD {
            STOP.store(true, Ordering::SeqCst);
        }
        // SAFETY: `write` may be called in a handler; the descriptor is never
        // closed. A full pipe is fine: it wakes as well. The handler must not
        // change errno, since it interrupts code that is about to read it.
        unsafe {
            let errno = std::io::Error::last_os_error().raw_os_error();
            libc::write(WAKE.load(Ordering::SeqCst), [0_u8].as_ptr().cast(), 1);
            if let Some(errno) = errno {
                set_errno(errno);
            }
        }
    }

    #[expect(unsafe_code, reason = "errno is a thread's own variable of the C library")]
    fn set_errno(value: i32) {
        // SAFETY: the address is this thread's errno, valid while it runs.
        unsafe {
            #[cfg(target_os = "linux")]
            {
                *libc::__errno_location() = value;
            }
            #[cfg(target_vendor = "apple")]
            {
                *libc::__error() = value;
            }
            #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
            let _ = value;
        }
    }

    /// Starts to listen; the descriptor is readable after a signal.
    pub(crate) fn listen() -> io::Result<OwnedFd> {
        let (reader, writer) = io::pipe()?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        rustix::io::ioctl_fionbio(&writer, true)?;
        WAKE.store(std::os::fd::IntoRawFd::into_raw_fd(writer), Ordering::SeqCst);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD] {
            #[expect(unsafe_code, reason = "no safe crate that is here sets a handler")]
            // SAFETY: the action is zeroed but for a handler that is safe to run at any moment.
            let set = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
                action.sa_flags = libc::SA_RESTART;
                libc::sigaction(signal, &action, std::ptr::null_mut())
            };
            if set != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(reader.into())
    }

    /// Whether it was asked to stop since the last time.
    pub(crate) fn take_stop() -> bool {
        STOP.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn drain(fd: &OwnedFd) {
        let mut buffer = [0_u8; 64];
        while rustix::io::read(fd, &mut buffer).is_ok_and(|count| count == buffer.len()) {}
    }
}
