//! The end of a program, asked for, and of all that a space has kept.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::watcher::{Death, clean_up, reap};
use super::{Inner, State, blocking, state};
use crate::disk::{self, Folder, Run};
use crate::pty;
use crate::sweep::Found;
use crate::{Error, Exit, Result};

/// How long a shim may take beyond the grace that it was given. Then it is
/// killed, and what it left is searched for.
const SHIM_MARGIN: Duration = Duration::from_secs(5);

/// What a stop has to wait for.
struct Stopping {
    instance: String,
    death: Death,
    shim: Pid,
}

pub(super) async fn stop(inner: &Arc<Inner>, id: &str, grace: Duration) -> Result<Option<Exit>> {
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

pub(super) fn delete(inner: &Inner, id: &str) -> Result<()> {
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
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
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
