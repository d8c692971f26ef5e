//! The start of a program: what it is, what it is given, and the shim that runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::watcher::clean_up;
use super::{Inner, State, state};
use crate::disk::{self, LaunchFile};
use crate::{Error, Instance, Launch, Result};

/// What of Podyard's environment a program is given. Everything else, above
/// all Podyard's own secrets, stays here.
const INHERITED: &[&str] = &[
    "PATH",
    "LANG",
    "LANGUAGE",
    "TERM",
    "TZ",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

pub(super) fn start(inner: &Arc<Inner>, launch: &Launch) -> Result<Instance> {
    let folder = inner.folder(&launch.id)?;
    launch.check()?;
    let run = folder.run();
    let at = || Error::io(format!("the space's folder {} cannot be used", folder.path().display()));
    // The folder may be deleted between its making and the taking of its door.
    let _door = loop {
        folder.create().map_err(at())?;
        if let Some(door) = run.door().map_err(at())? {
            break door;
        }
    };
    match state(&run).map_err(at())? {
        State::Alive(launch) => {
            inner.watch(&launch, &folder);
            return Ok(Instance { id: launch.instance, started_at: launch.started_at });
        }
        State::Ended(last, exit) => {
            let exit = match exit {
                Some(exit) => exit,
                None => clean_up(&folder, &last, true).map_err(at())?,
            };
            inner.finish(&launch.id, &last.instance, &exit);
        }
        State::Nothing => {}
    }
    let program = find_program(&launch.command, &launch.env, &inner.podyard, Some(&folder.data()))?;
    let Some(lock) = run.take_lock().map_err(at())? else {
        return Err(Error::Stuck("the space's lock is held by a process that is not its shim".into()));
    };
    for name in ["exit", "ready", "grace", "instance"] {
        run.remove(name).map_err(at())?;
    }
    let mut env = launch.env.clone();
    for (name, value) in [
        ("PODYARD_CPU", &launch.cpu),
        ("PODYARD_MEMORY", &launch.memory),
        ("PODYARD_STORAGE", &launch.storage),
    ] {
        env.push((name.to_owned(), value.clone()));
    }
    let file = LaunchFile {
        instance: disk::random_hex::<16>().map_err(at())?,
        started_at: disk::now(),
        id: launch.id.clone(),
        sid: launch.sid.clone(),
        base_path: launch.base_path.clone(),
        program,
        command: launch.command.clone(),
        env,
        dir: folder.data(),
        podyard: inner.podyard.clone(),
    };
    run.write("launch", &file).map_err(at())?;
    let spawned = Command::new(&inner.podyard)
        .arg("shim")
        .arg(run.path())
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| is_inherited(&name.to_string_lossy())))
        // The lock goes over to the shim while it is held; see there.
        .stdin(Stdio::from(lock))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let child = match spawned {
        Ok(child) => child,
        Err(error) => {
            run.remove("launch").map_err(at())?;
            return Err(Error::io(format!("{} cannot be run", inner.podyard.display()))(error));
        }
    };
    inner.children().insert(file.instance.clone(), child);
    inner.watch(&file, &folder);
    tracing::info!(space = %launch.id, instance = %file.instance, "space started");
    Ok(Instance { id: file.instance, started_at: file.started_at })
}

pub(crate) fn is_inherited(name: &str) -> bool {
    INHERITED.contains(&name) || name.starts_with("LC_")
}

/// Where the program of a command is. Without `dir`, a program in the space's
/// own folder is taken as there.
pub(super) fn find_program(
    command: &[String],
    env: &[(String, String)],
    podyard: &Path,
    dir: Option<&Path>,
) -> Result<PathBuf> {
    let Some(name) = command.first().filter(|name| !name.is_empty()) else {
        return Err(Error::Invalid("the command is empty: it needs a program".into()));
    };
    let mut name = name.replace("{podyard}", &podyard.to_string_lossy());
    if name.contains("{dir}") {
        match dir {
            Some(dir) => name = name.replace("{dir}", &dir.to_string_lossy()),
            None => return Ok(PathBuf::from(name)),
        }
    }
    if name.contains('/') {
        let path = PathBuf::from(&name);
        if path.is_relative() {
            return Err(Error::Invalid(format!(
                "the program {name:?} is a relative path: write it in full, begin with {{dir}}, \
                 or give a name that is in PATH"
            )));
        }
        return match path.metadata() {
            Ok(_) if is_executable(&path) => Ok(path),
            Ok(_) => Err(Error::Unavailable(format!("{name} is no program that may be executed"))),
            Err(error) => Err(Error::Unavailable(format!("the program {name} was not found: {error}"))),
        };
    }
    let path = match env.iter().rev().find(|(name, _)| name == "PATH") {
        Some((_, path)) => path.into(),
        None => std::env::var_os("PATH").unwrap_or_default(),
    };
    std::env::split_paths(&path)
        .map(|folder| folder.join(&name))
        .find(|path| path.is_absolute() && is_executable(path))
        .ok_or_else(|| {
            Error::Unavailable(format!(
                "the program {name:?} was not found; looked for it in PATH: {}",
                path.to_string_lossy()
            ))
        })
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}
