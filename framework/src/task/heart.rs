//! The heartbeat: a thread of its own that renews the process's lease while
//! it holds tasks, since a runtime that a stage blocks must not lose them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};

use super::store::Process;
use super::worker::Worker;
use crate::{Error, Result};

pub(super) struct Heart {
    thread: Thread,
    stop: Arc<AtomicBool>,
}

impl Heart {
    pub(super) fn start(worker: Arc<Worker>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let handle = thread::Builder::new()
            .name("task-heart".into())
            .spawn(move || {
                loop {
                    // Thrice in a lease: one lost beat is none.
                    thread::park_timeout(worker.lease_time() / 3);
                    if stopped.load(Ordering::Acquire) {
                        break;
                    }
                    worker.beat();
                }
            })
            .map_err(Error::internal)?;
        Ok(Self { thread: handle.thread().clone(), stop })
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// When the kernel started a process, in its clock ticks since boot.
fn started(pid: i64) -> Option<i64> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may hold anything; what follows does not.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// This process. Where there is no `/proc`, its host is empty and nobody
/// judges it but by its lease.
pub(super) fn this_process() -> Process {
    let pid = i64::from(std::process::id());
    let place = || {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let boot = read("/proc/sys/kernel/random/boot_id")?;
        // The same pid is another process in another container.
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
        Some((format!("{name} {boot} {}", namespace.display()), started(pid)?))
    };
    let (host, started) = place().unwrap_or_default();
    Process { host, pid, started }
}

/// Whether a process of this host has ended.
pub(super) fn is_dead(pid: i64, start: i64) -> bool {
    started(pid) != Some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_another_is_not() {
        let me = this_process();
        assert!(!is_dead(me.pid, me.started));
        assert!(is_dead(me.pid, me.started - 1));
        assert!(is_dead(i64::MAX, me.started));
    }
}
