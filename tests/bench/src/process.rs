//! Servers as child processes, and what `/proc` says of them.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Result, http};

/// Linux tells CPU times to programs in hundredths of a second, whatever its own clock does.
const TICK: Duration = Duration::from_millis(10);

/// A server that is stopped when it goes out of scope.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// What the report calls it.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// How long it took from its start to the first good answer.
    pub ready_after: Duration,
}

impl Server {
    /// Starts a server and waits until `GET path` answers 200.
    ///
    /// What it writes goes to the log file, whose end is a part of the error if it does not
    /// come up.
    pub async fn start(
        name: &str,
        command: &mut Command,
        address: SocketAddr,
        path: &str,
        log: &Path,
    ) -> Result<Self> {
        let output = fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let start = Instant::now();
        let child =
            command.spawn().map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        let mut server = Self { child, name: name.to_owned(), address, ready_after: Duration::ZERO };
        loop {
            if is_ready(address, path).await {
                server.ready_after = start.elapsed();
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("{name} ended at its start ({status}):\n{}", end_of(log)).into());
            }
            if start.elapsed() > Duration::from_secs(30) {
                return Err(format!("{name} was not ready within 30 s:\n{}", end_of(log)).into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The id of its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop, waits, and gives the time it took.
    pub fn stop(mut self) -> Result<Duration> {
        let start = Instant::now();
        stop(&mut self.child, Signal::TERM)?;
        Ok(start.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing is left to be done with an error here.
        let _ = stop(&mut self.child, Signal::TERM);
    }
}

/// Sends the signal, and kills what has not ended after ten seconds.
pub(crate) fn stop(child: &mut Child, signal: Signal) -> Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or("a process without an id")?;
    kill_process(pid, signal)?;
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > Duration::from_secs(10) {
            child.kill()?;
            child.wait()?;
            return Err("a process did not stop within 10 s and was killed".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

async fn is_ready(address: SocketAddr, path: &str) -> bool {
    let mut request = Vec::new();
    http::write_request(&mut request, "GET", path, "Connection: close\r\n", None);
    let Ok(mut connection) = http::Connection::open(address).await else { return false };
    let answer = tokio::time::timeout(Duration::from_secs(5), connection.send(&request)).await;
    matches!(answer, Ok(Ok(answer)) if answer.status == 200)
}

/// The last lines of a log, to explain a failure.
pub(crate) fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// An address on this machine that nobody listens on now.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The program beside this one.
pub fn sibling(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// One line of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy)]
struct Stat {
    parent: u32,
    /// User and system time of the process.
    own: Duration,
    /// The same of its children that have ended and were waited for.
    ended_children: Duration,
}

fn stat(id: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

fn parse_stat(line: &str) -> Option<Stat> {
    // The name of the program is in brackets and may hold anything, brackets too.
    let fields: Vec<&str> = line[line.rfind(')')? + 1..].split_whitespace().collect();
    // Counted from the state, which proc(5) calls field 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<u32>().ok();
    Some(Stat {
        parent: field(4)?,
        own: TICK * (field(14)? + field(15)?),
        ended_children: TICK * (field(16)? + field(17)?),
    })
}

/// The parent of a process.
#[must_use]
pub fn parent(id: u32) -> Option<u32> {
    stat(id).map(|stat| stat.parent)
}

/// A process and all that it started, directly or not.
#[must_use]
pub fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some((id, stat)) = id.and_then(|id| Some((id, stat(id)?))) {
            children.entry(stat.parent).or_default().push(id);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(id) = found.get(next) {
        found.extend(children.remove(id).unwrap_or_default());
        next += 1;
    }
    found
}

/// The CPU time (user and system) of a process and all that it started, the dead included.
#[must_use]
pub fn cpu(root: u32) -> Duration {
    tree(root)
        .into_iter()
        .filter_map(|id| {
            let stat = stat(id)?;
            Some(exact(id).unwrap_or(stat.own) + stat.ended_children)
        })
        .sum()
}

/// The same to the tick, for a program whose threads may have ended by the time this reads: it
/// counts even one that has ended and was not waited for yet.
#[must_use]
pub fn cpu_in_ticks(root: u32) -> Duration {
    tree(root).into_iter().filter_map(stat).map(|stat| stat.own + stat.ended_children).sum()
}

/// The CPU time of one process, without those that it started.
#[must_use]
pub fn cpu_of_one(id: u32) -> Duration {
    stat(id).map(|stat| exact(id).unwrap_or(stat.own)).unwrap_or_default()
}

/// The CPU time of this process, with all its threads, the ended ones too.
#[must_use]
pub fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The time on the CPU to the nanosecond, for a process of a single thread.
///
/// A PostgreSQL cluster is dozens of processes, each of which would be rounded to the tick.
fn exact(id: u32) -> Option<Duration> {
    if fs::read_dir(format!("/proc/{id}/task")).ok()?.count() != 1 {
        return None;
    }
    let line = fs::read_to_string(format!("/proc/{id}/schedstat")).ok()?;
    line.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// The resident memory of a process and all that it started, in MiB.
#[must_use]
pub fn resident(root: u32) -> f64 {
    let kibibytes: f64 = tree(root)
        .into_iter()
        .filter_map(|id| {
            let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        })
        .sum();
    kibibytes / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        let line = "7 (a) b) S 3 7 7 0 -1 4194304 1 2 3 4 150 50 20 30 20 0 1 0";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat.parent, 3);
        assert_eq!(stat.own, Duration::from_secs(2));
        assert_eq!(stat.ended_children, Duration::from_millis(500));
    }

    #[test]
    fn this_process_is_in_its_parents_tree() {
        let own = std::process::id();
        assert!(tree(parent(own).unwrap()).contains(&own));
        assert!(resident(own) > 1.0);
    }
}
