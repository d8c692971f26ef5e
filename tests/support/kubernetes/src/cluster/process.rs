//! What runs in a container: a process of this machine, or the pretence of one.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::{mpsc, watch};

use super::behaviour::Plan;
use super::log::Log;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    pub code: i32,
    pub reason: &'static str,
    pub message: String,
}

impl Exit {
    pub fn of(code: i32) -> Self {
        let reason = if code == 0 { "Completed" } else { "Error" };
        Self { code, reason, message: String::new() }
    }

    pub fn oom() -> Self {
        Self { code: 137, reason: "OOMKilled", message: String::new() }
    }
}

/// What is asked of what runs.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Term,
    Kill,
    /// It ends so, whatever it does.
    End(Exit),
}

/// Something that runs.
pub(crate) struct Run {
    asks: mpsc::UnboundedSender<Ask>,
    end: watch::Receiver<Option<Exit>>,
}

/// What is to be run.
pub(crate) struct Job {
    pub plan: Plan,
    pub stubborn: bool,
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    pub dir: PathBuf,
    pub marker: String,
    pub log: Arc<Log>,
    /// Whether anything else was started in it.
    pub entered: Arc<AtomicBool>,
    /// What a moment is.
    pub moment: Duration,
}

/// The name of the variable with which the processes of a container are found.
pub(crate) const MARKER: &str = "KUBERNETES_DOUBLE";

impl Run {
    /// Starts it, or says why it cannot be.
    pub fn start(job: Job) -> Result<Self, String> {
        let (asks, asked) = mpsc::unbounded_channel();
        let (told, end) = watch::channel(None);
        if job.plan == Plan::CannotStart {
            return Err(start_error("/no/such/binary"));
        }
        if job.plan != Plan::Real {
            tokio::spawn(pretend(job, asked, told));
            return Ok(Self { asks, end });
        }
        let Some((program, arguments)) = job.command.split_first() else {
            // The image's own program, of which nothing is known here.
            tokio::spawn(pretend(Job { plan: Plan::Serve, ..job }, asked, told));
            return Ok(Self { asks, end });
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(job.env.iter().cloned())
            .current_dir(&job.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|_| start_error(program))?;
        let written = [
            child.stdout.take().map(|it| tokio::spawn(copy(it, job.log.clone()))),
            child.stderr.take().map(|it| tokio::spawn(copy(it, job.log.clone()))),
        ];
        tokio::spawn(async move {
            let exit = drive(&mut child, asked, &job.marker).await;
            // With a container's first process all others end.
            let marker = job.marker.clone();
            let _ = tokio::task::spawn_blocking(move || kill_marked(&marker)).await;
            for copy in written.into_iter().flatten() {
                let _ = tokio::time::timeout(Duration::from_millis(200), copy).await;
            }
            job.log.end();
            told.send_replace(Some(exit));
        });
        Ok(Self { asks, end })
    }

    pub fn ask(&self, ask: Ask) {
        let _ = self.asks.send(ask);
    }

    pub fn ended(&self) -> Option<Exit> {
        self.end.borrow().clone()
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Exit {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await.map(|it| it.clone()) {
            Ok(Some(exit)) => exit,
            _ => Exit::of(137),
        }
    }
}

fn start_error(program: &str) -> String {
    format!(
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: \
         runc create failed: unable to start container process: exec: \"{program}\": stat {program}: \
         no such file or directory: unknown"
    )
}

async fn copy(from: impl AsyncRead + Unpin, log: Arc<Log>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while let Ok(1..) = from.read_until(b'\n', &mut line).await {
        log.write(&line);
        line.clear();
    }
}

async fn drive(
    child: &mut tokio::process::Child,
    mut asked: mpsc::UnboundedReceiver<Ask>,
    marker: &str,
) -> Exit {
    let pid = child.id().and_then(|it| i32::try_from(it).ok()).and_then(Pid::from_raw);
    let mut forced = None;
    loop {
        tokio::select! {
            status = child.wait() => {
                use std::os::unix::process::ExitStatusExt;
                let Ok(status) = status else { return Exit::of(137) };
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(9));
                return forced.unwrap_or_else(|| Exit::of(code));
            }
            Some(ask) = asked.recv() => {
                let Some(pid) = pid else { continue };
                match ask {
                    Ask::Term => {
                        let _ = kill_process(pid, Signal::TERM);
                    }
                    Ask::Kill => {
                        let _ = kill_process_group(pid, Signal::KILL);
                    }
                    Ask::End(exit) => {
                        forced = Some(exit);
                        let _ = kill_process_group(pid, Signal::KILL);
                        let marker = marker.to_owned();
                        let _ = tokio::task::spawn_blocking(move || kill_marked(&marker)).await;
                    }
                }
            }
        }
    }
}

async fn pretend(job: Job, mut asked: mpsc::UnboundedReceiver<Ask>, told: watch::Sender<Option<Exit>>) {
    let (after, planned) = match job.plan {
        Plan::Exit { code, after } => {
            job.log.write(b"starting\n");
            if code != 0 {
                job.log.write(b"something went wrong\n");
            }
            (Some(job.moment * after / 1000), Exit::of(code))
        }
        Plan::Oom => (Some(job.moment), Exit::oom()),
        _ => {
            job.log.write(b"started\n");
            (None, Exit::of(0))
        }
    };
    let end = async {
        match after {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    let exit = loop {
        tokio::select! {
            () = &mut end => break planned,
            ask = asked.recv() => match ask {
                Some(Ask::Term) if job.stubborn => {}
                Some(Ask::Term) => break Exit::of(0),
                Some(Ask::Kill) | None => break Exit::of(137),
                Some(Ask::End(exit)) => break exit,
            },
        }
    };
    if job.entered.load(Ordering::Relaxed) {
        let marker = job.marker.clone();
        let _ = tokio::task::spawn_blocking(move || kill_marked(&marker)).await;
    }
    job.log.end();
    told.send_replace(Some(exit));
}

/// Kills every process that has the marker in its environment, until there is none.
pub(crate) fn kill_marked(marker: &str) {
    for _ in 0..20 {
        let mut found = false;
        let Ok(processes) = std::fs::read_dir("/proc") else { return };
        for entry in processes.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|it| it.parse::<i32>().ok()) else {
                continue;
            };
            let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
            let has = environment.split(|it| *it == 0).any(|variable| {
                variable.starts_with(MARKER.as_bytes())
                    && variable.windows(marker.len()).any(|it| it == marker.as_bytes())
            });
            if has && let Some(pid) = Pid::from_raw(pid) {
                found = true;
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        if !found {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
