//! What an exec starts: a process of this machine, with pipes or at a terminal of its own.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::fs::{Access, OFlags, access, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

use super::Ask;
use crate::cluster::Container;

/// A terminal's master side.
pub(crate) struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    /// Reads; 0 is the end.
    pub async fn read(&self, into: &mut [u8]) -> usize {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return 0 };
            match ready.try_io(|it| rustix::io::read(it, &mut *into).map_err(io::Error::from)) {
                // The last one at the other side has gone.
                Ok(Err(_)) => return 0,
                Ok(Ok(count)) => return count,
                Err(_) => {}
            }
        }
    }

    pub async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            if let Ok(written) = ready.try_io(|it| rustix::io::write(it, bytes).map_err(io::Error::from)) {
                bytes = &bytes[written?..];
            }
        }
        Ok(())
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = tcsetwinsize(&self.0, size);
    }
}

/// What was started.
pub(crate) struct Shell {
    pub child: Child,
    pub terminal: Option<Terminal>,
}

/// Starts it; an error is what the runtime would say.
pub(crate) fn start(ask: &Ask, here: &Container) -> Result<Shell, String> {
    let said = |why: &str| {
        format!(
            "error executing command in container: failed to exec in container: failed to start exec: \
             OCI runtime exec failed: exec failed: unable to start container process: {why}"
        )
    };
    let Some((program, arguments)) = ask.command.split_first() else {
        return Err(said("exec: \"\": executable file not found in $PATH"));
    };
    found(program).map_err(|why| said(&format!("exec: \"{program}\": {why}")))?;
    let io = |error: io::Error| said(&error.to_string());
    let mut command = match ask.tty {
        // It makes a session, and the terminal its own.
        true => {
            let mut command = Command::new("setsid");
            command.arg("--ctty").arg(program);
            command
        }
        false => {
            let mut command = Command::new(program);
            command.process_group(0);
            command
        }
    };
    command.args(arguments).envs(here.env.iter().cloned()).current_dir(&here.dir);
    let terminal = if ask.tty {
        let (terminal, slave) = terminal().map_err(io)?;
        command
            .env("TERM", "xterm")
            .stdin(Stdio::from(slave.try_clone().map_err(io)?))
            .stdout(Stdio::from(slave.try_clone().map_err(io)?))
            .stderr(Stdio::from(slave));
        Some(terminal)
    } else {
        let pipe = |wanted| if wanted { Stdio::piped() } else { Stdio::null() };
        command.stdin(pipe(ask.stdin)).stdout(pipe(ask.stdout)).stderr(pipe(ask.stderr));
        None
    };
    let child = command.spawn().map_err(io)?;
    here.entered.store(true, std::sync::atomic::Ordering::Relaxed);
    Ok(Shell { child, terminal })
}

fn terminal() -> io::Result<(Terminal, File)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name: CString = ptsname(&master, Vec::new())?;
    let path = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
    // Opening it must not make it the double's own.
    let flags = i32::try_from(OFlags::NOCTTY.bits()).unwrap_or_default();
    let slave = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let flags = fcntl_getfl(&master)?;
    fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
    #[expect(unsafe_code, reason = "tokio asks for the promise that the descriptor stays open")]
    // SAFETY: the descriptor is owned, and moves in.
    let master = unsafe { AsyncFd::register(master) }?;
    Ok((Terminal(master), slave))
}

/// Whether a program can be started.
fn found(program: &str) -> Result<(), &'static str> {
    let fine = |path: &Path| access(path, Access::EXEC_OK).is_ok() && path.is_file();
    if program.contains('/') {
        return match (Path::new(program).exists(), fine(Path::new(program))) {
            (_, true) => Ok(()),
            (true, _) => Err("permission denied"),
            _ => Err("no such file or directory"),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).any(|dir| fine(&dir.join(program))) {
        true => Ok(()),
        false => Err("executable file not found in $PATH"),
    }
}

/// An exit code as a shell counts it.
pub(crate) fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(9))
}
