//! Finds processes and ends them: the shim its descendants, the driver what a
//! killed shim has left behind.
//!
//! A process is held by a pidfd while it is looked at and signalled, so that
//! no other that was given its number meanwhile can be hit.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid};

/// A process that was found.
#[derive(Debug)]
pub(crate) struct Found {
    pid: Pid,
    #[cfg(target_os = "linux")]
    fd: Option<std::os::fd::OwnedFd>,
}

impl Found {
    /// Takes hold of a process. `None` if it is gone.
    pub(crate) fn open(pid: Pid) -> Option<Self> {
        #[cfg(target_os = "linux")]
        {
            use rustix::io::Errno;
            use rustix::process::{PidfdFlags, pidfd_open};
            match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(fd) => Some(Self { pid, fd: Some(fd) }),
                Err(Errno::SRCH) => None,
                // An old kernel, or too many open files: the number must do.
                Err(_) => Some(Self { pid, fd: None }),
            }
        }
        #[cfg(not(target_os = "linux"))]
        Some(Self { pid })
    }

    /// Sends a signal; that it is gone already is no error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        let sent = match &self.fd {
            Some(fd) => rustix::process::pidfd_send_signal(fd, signal),
            None => rustix::process::kill_process(self.pid, signal),
        };
        #[cfg(not(target_os = "linux"))]
        let sent = rustix::process::kill_process(self.pid, signal);
        match sent {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Waits until it is dead, which is after its sockets are closed.
    fn wait(&self, within: Duration) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        if let Some(fd) = &self.fd {
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            let within = Timespec::try_from(within).map_err(io::Error::other)?;
            return Ok(poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&within))? > 0);
        }
        let deadline = Instant::now() + within;
        loop {
            if rustix::process::test_kill_process(self.pid).is_err() {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A descriptor that becomes readable when it dies.
    #[cfg(target_os = "linux")]
    pub(crate) fn into_fd(self) -> Option<std::os::fd::OwnedFd> {
        self.fd
    }
}

/// All that descends from this process, which must be a subreaper.
#[cfg(target_os = "linux")]
fn descendants() -> HashSet<Pid> {
    let mut found = HashSet::new();
    let mut open = vec![getpid()];
    // The kernel's lists of children cost as much as the tree is large. Not
    // every kernel has them; then all processes are looked through.
    if children(getpid(), &mut Vec::new()) {
        while let Some(pid) = open.pop() {
            let mut below = Vec::new();
            children(pid, &mut below);
            open.extend(below.into_iter().filter(|child| found.insert(*child)));
        }
        return found;
    }
    let mut below: HashMap<Pid, Vec<Pid>> = HashMap::new();
    for pid in all() {
        if let Some(parent) = parent(pid) {
            below.entry(parent).or_default().push(pid);
        }
    }
    while let Some(pid) = open.pop() {
        for child in below.remove(&pid).unwrap_or_default() {
            found.insert(child);
            open.push(child);
        }
    }
    found
}

/// Adds the children of `pid`; false if the kernel keeps no such list.
#[cfg(target_os = "linux")]
fn children(pid: Pid, into: &mut Vec<Pid>) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    for thread in threads.flatten() {
        match std::fs::read_to_string(thread.path().join("children")) {
            Ok(list) => into.extend(list.split_ascii_whitespace().filter_map(parse_pid)),
            Err(_) if thread.path().exists() => return false,
            Err(_) => {}
        }
    }
    true
}

#[cfg(target_os = "linux")]
fn parent(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything, brackets too.
    parse_pid(stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?)
}

fn parse_pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}

/// Every process of the machine. Empty where there is no `/proc`.
fn all() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| parse_pid(entry.file_name().to_str()?)).collect()
}

/// Sends `signal` to all that descends from this process.
#[cfg(target_os = "linux")]
pub(crate) fn signal_descendants(signal: Signal) {
    for pid in descendants() {
        signal_descendant(pid, signal);
    }
}

/// Ends all that descends from this process. They are stopped at first, until
/// no new one turns up, so that none can run away by forking.
#[cfg(target_os = "linux")]
pub(crate) fn kill_descendants() {
    let mut stopped = HashSet::new();
    for _ in 0..100 {
        let new: Vec<Pid> = descendants().difference(&stopped).copied().collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            signal_descendant(pid, Signal::STOP);
            stopped.insert(pid);
        }
    }
    for pid in descendants() {
        signal_descendant(pid, Signal::KILL);
    }
}

#[cfg(target_os = "linux")]
fn signal_descendant(pid: Pid, signal: Signal) {
    let Some(found) = Found::open(pid) else { return };
    // It might have been another's that got the number just before it was
    // taken hold of.
    let mut above = pid;
    while let Some(parent) = parent(above) {
        if parent == getpid() {
            // An error here is a program of another user, which the shim
            // may not signal. It stays and waits for its end.
            let _ = found.signal(signal);
            return;
        }
        above = parent;
    }
}

/// The processes that bear the mark of a space, by the folder that it names.
/// One look at all of them, for when many spaces are asked about.
pub(crate) fn marked() -> HashMap<String, Vec<Pid>> {
    let mut found: HashMap<String, Vec<Pid>> = HashMap::new();
    for pid in all() {
        if let Some(dir) = mark(pid) {
            found.entry(dir).or_default().push(pid);
        }
    }
    found
}

/// The folder in the environment with which a process was started.
fn mark(pid: Pid) -> Option<String> {
    variable(pid, "PODYARD_SPACE_DIR")
}

/// A variable in the environment with which a process was started.
fn variable(pid: Pid, name: &str) -> Option<String> {
    if pid == getpid() {
        return None;
    }
    let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |item: &&[u8]| item.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
    String::from_utf8(environ.split(|byte| *byte == 0).find_map(|item| value(&item))?).ok()
}

/// Ends every process that bears the mark of this folder, and waits until
/// they are gone. What has taken the mark out of its environment is not found.
pub(crate) fn kill_marked(dir: &Path) -> io::Result<()> {
    kill_with("PODYARD_SPACE_DIR", &dir.to_string_lossy())
}

/// Ends every process that was started with that value of the variable, and
/// waits until they are gone.
pub(crate) fn kill_with(name: &str, value: &str) -> io::Result<()> {
    let is_one = |pid: Pid| variable(pid, name).is_some_and(|it| it == value);
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let mut left = Vec::new();
        for pid in all().into_iter().filter(|pid| is_one(*pid)) {
            if let Some(found) = Found::open(pid)
                && is_one(pid)
            {
                left.push(found);
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        for found in &left {
            found.signal(Signal::KILL)?;
        }
        for found in &left {
            if !found.wait(deadline.saturating_duration_since(Instant::now()))? {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("process {} was killed and does not die", found.pid),
                ));
            }
        }
        // Again: one may have started another before it died.
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its processes start new ones without end"));
        }
    }
}
