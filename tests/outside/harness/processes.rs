//! What runs on this machine, as /proc says.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|it| it.file_name().to_str()?.parse().ok())
}

fn variable(pid: i32, name: &str) -> Option<String> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let start = format!("{name}=");
    let value = environ.split(|it| *it == 0).find_map(|it| it.strip_prefix(start.as_bytes()))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Whether a process is there and not just waiting to be taken note of.
pub(crate) fn alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit(')').next().and_then(|it| it.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// The processes of a space.
pub(crate) fn programs(space_id: &str) -> Vec<i32> {
    let of_it =
        |pid: &i32| variable(*pid, "PODYARD_SPACE_ID").is_some_and(|it| it == space_id) && alive(*pid);
    all().filter(of_it).collect()
}

/// The programs of all spaces of a data folder, and what supervises them.
pub(crate) fn programs_under(folder: &Path) -> Vec<i32> {
    let inside = |pid: &i32| {
        let program =
            variable(*pid, "PODYARD_SPACE_DIR").is_some_and(|it| Path::new(&it).starts_with(folder));
        let supervisor = || {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let args: Vec<_> = line.split(|it| *it == 0).map(String::from_utf8_lossy).collect();
            args.get(1).is_some_and(|it| it == "shim")
                && args.iter().any(|it| Path::new(&**it).starts_with(folder))
        };
        (program || supervisor()) && alive(*pid)
    };
    all().filter(inside).collect()
}

/// Sends a signal; one that is gone already is no error.
pub(crate) fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}
