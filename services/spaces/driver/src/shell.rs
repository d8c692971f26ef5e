//! The small process that runs a terminal's shell (`podyard shell <run dir> <id>`).
//!
//! It lasts as long as somebody holds the terminal, which it sees by the end of
//! its standard input: also when Podyard was killed. Whatever the shell has
//! started is its descendant and ends with it, in whichever session and
//! whatever it ignores.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::disk::Run;
use crate::pty::{TERMINAL, Told};
use crate::shim::{close_inherited, environment, signals};

/// How long the shell and its children have to end after a hang-up.
const GRACE: Duration = Duration::from_millis(500);

/// Runs one terminal's shell and waits for its end. The body of the hidden
/// command `podyard shell <run dir> <id>`; call it before anything else is set up.
#[must_use]
pub fn shell_main(run_dir: &Path, terminal: &str) -> ExitCode {
    close_inherited();
    match supervise(&Run::new(run_dir.to_owned()), terminal) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn supervise(run: &Run, terminal: &str) -> io::Result<()> {
    // Or a Ctrl-C at Podyard's own terminal would end it.
    let _ = rustix::process::setsid();
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    std::env::set_current_dir("/")?;
    let wake = signals::listen()?;
    let tty = io::stderr().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stderr(std::fs::File::open("/dev/null")?)?;
    let shell = match spawn(run, terminal, &tty) {
        Ok(shell) => shell,
        Err(error) => {
            // There is nobody else to say it.
            let _ = writeln!(std::fs::File::from(tty), "podyard: no shell can be run: {error}\r");
            return tell(Told::Code(127));
        }
    };
    // The pty's end is seen once nobody has its other side open.
    drop(tty);
    Supervisor { shell, wake, held: true, ended: None }.wait()
}

/// Says how the shell ended. Whoever asked may be gone.
fn tell(how: Told) -> io::Result<()> {
    let mut out = io::stdout();
    let _ = writeln!(out, "{how}").and_then(|()| out.flush());
    Ok(())
}

struct Supervisor {
    shell: Pid,
    wake: OwnedFd,
    /// Somebody holds the terminal.
    held: bool,
    /// Since when it is over.
    ended: Option<Instant>,
}

impl Supervisor {
    fn wait(mut self) -> io::Result<()> {
        let mut pause = Duration::from_millis(5);
        let mut kill_at = None;
        loop {
            if self.reap()? {
                return Ok(());
            }
            if (!self.held || signals::take_stop()) && self.ended.is_none() {
                self.ended = Some(Instant::now());
            }
            if let Some(at) = self.ended {
                let kill_at = kill_at.get_or_insert_with(|| {
                    self.signal(Signal::HUP);
                    // Or one that is stopped never hears of it.
                    self.signal(Signal::CONT);
                    at + GRACE
                });
                if Instant::now() >= *kill_at {
                    self.kill();
                    *kill_at = Instant::now() + pause;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
            self.sleep(kill_at)?;
        }
    }

    /// Takes the dead; true if no child is left, and hence no descendant.
    fn reap(&mut self) -> io::Result<bool> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.shell => {
                    let code = status.exit_status().map(Told::Code);
                    let how = code.or(status.terminating_signal().map(Told::Signal));
                    tell(how.unwrap_or(Told::Code(0)))?;
                    self.ended.get_or_insert_with(Instant::now);
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(false),
                Err(Errno::CHILD) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn signal(&self, signal: Signal) {
        crate::sweep::signal_descendants(signal);
    }

    #[cfg(target_os = "linux")]
    fn kill(&self) {
        crate::sweep::kill_descendants();
    }

    #[cfg(not(target_os = "linux"))]
    fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process_group(self.shell, signal);
    }

    #[cfg(not(target_os = "linux"))]
    fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Sleeps until a signal, the end of the holder, or `until`.
    fn sleep(&mut self, until: Option<Instant>) -> io::Result<()> {
        let timeout = match until {
            Some(at) => Some(
                Timespec::try_from(at.saturating_duration_since(Instant::now())).map_err(io::Error::other)?,
            ),
            None => None,
        };
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        if self.held {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Nobody writes to it: whatever happens there is its end.
        let gone = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        signals::drain(&self.wake);
        self.held &= !gone;
        Ok(())
    }
}

fn spawn(run: &Run, terminal: &str, tty: &OwnedFd) -> io::Result<Pid> {
    let gone = || io::Error::other("the space does not run");
    let launch = run.launch()?.ok_or_else(gone)?;
    let instance = run.instance(&launch.instance)?.ok_or_else(gone)?;
    let mut env: Vec<(String, OsString)> = environment(&launch, &instance);
    env.push((TERMINAL.to_owned(), terminal.into()));
    env.push(("TERM".to_owned(), "xterm-256color".into()));
    let last = |name: &str| {
        let own = env.iter().rev().find(|(it, _)| it == name).map(|(_, value)| value.clone());
        own.or_else(|| std::env::var_os(name))
    };
    let path = last("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let speaks_utf8 =
        ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| last(name).filter(|it| !it.is_empty()));
    let speaks_utf8 = speaks_utf8.is_some_and(|it| is_utf8(&it.to_string_lossy()));
    let shell = find(&path).ok_or_else(|| io::Error::other("neither bash nor sh was found"))?;
    let mut command = Command::new(&shell);
    command.envs(env).env("SHELL", &shell).current_dir(&launch.dir);
    if !speaks_utf8 {
        command.env_remove("LC_ALL").env("LC_CTYPE", "C.UTF-8");
    }
    command.stdin(tty.try_clone()?).stdout(tty.try_clone()?).stderr(tty.try_clone()?);
    lead(&mut command);
    let child = command.spawn()?;
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no pid"))
}

fn is_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// bash if it is there, else sh.
fn find(path: &OsString) -> Option<PathBuf> {
    let executable = |it: &PathBuf| {
        it.is_absolute() && it.is_file() && rustix::fs::access(it, rustix::fs::Access::EXEC_OK).is_ok()
    };
    let named = |name: &str| std::env::split_paths(path).map(|it| it.join(name)).find(executable);
    named("bash").or_else(|| named("sh")).or_else(|| Some(PathBuf::from("/bin/sh")).filter(executable))
}

/// The shell leads a session whose terminal is its standard input, and must
/// not outlive this process, even if that was killed by force.
fn lead(command: &mut Command) {
    #[cfg(target_os = "linux")]
    let supervisor = rustix::process::getpid();
    #[expect(
        unsafe_code,
        reason = "only between fork and exec can a program be given a session and a terminal"
    )]
    // SAFETY: the closure makes a few system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            #[cfg(target_os = "linux")]
            {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // It may have died before the signal was asked for.
                if rustix::process::getppid() != Some(supervisor) {
                    return Err(Errno::SRCH.into());
                }
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::is_utf8;

    #[test]
    fn locales() {
        assert!(is_utf8("C.UTF-8") && is_utf8("de_DE.utf8") && !is_utf8("C") && !is_utf8("de_DE"));
    }
}
