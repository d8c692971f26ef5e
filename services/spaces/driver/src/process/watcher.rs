//! Follows a run from its start to its end, and cleans up after a shim that was killed.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::{Inner, State, blocking, endpoint, look, state};
use crate::disk::{self, ExitFile, Folder, InstanceFile, LaunchFile, Run};
use crate::probe;
use crate::sweep::{self, Found};
use crate::{Error, Exit, Phase, Result};

/// How often the lock is looked at where the kernel cannot tell of a death.
const POLL: Duration = Duration::from_millis(500);

/// Follows one run from its start to its end.
pub(super) struct Watcher {
    pub(super) inner: Arc<Inner>,
    pub(super) folder: Folder,
    pub(super) id: String,
    pub(super) instance: String,
}

impl Watcher {
    pub(super) async fn run(self, was_ready: bool) {
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
pub(super) enum Death {
    #[cfg(target_os = "linux")]
    Pidfd(tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>),
    /// No such descriptor is to be had: the lock is looked at now and then.
    Lock(Run, String),
}

impl Death {
    pub(super) fn of(shim: Option<Pid>, run: Run, instance: String) -> Self {
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

    pub(super) async fn wait(&self) {
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
pub(super) fn reap(inner: &Inner, instance: &str) {
    let child = inner.children().remove(instance);
    if let Some(mut child) = child {
        // What it returned says nothing that `exit` does not.
        let _ = child.wait();
    }
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
pub(super) fn clean_up(folder: &Folder, launch: &LaunchFile, sweep: bool) -> io::Result<Exit> {
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
