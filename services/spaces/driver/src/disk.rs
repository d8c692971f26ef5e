//! What lies in a space's folder, and the locks that make it true.
//!
//! ```text
//! spaces/<id>/data/          the person's files
//! spaces/<id>/run/door       locked by a driver for the moments in which it changes what is here
//! spaces/<id>/run/lock       locked by the shim for as long as it lives
//! spaces/<id>/run/launch     what was asked for, written before the shim is started
//! spaces/<id>/run/instance   the shim's pid, the port and the secret
//! spaces/<id>/run/ready      names the instance that has answered
//! spaces/<id>/run/grace      how long a stop may take, in milliseconds
//! spaces/<id>/run/exit       how the run ended
//! spaces/<id>/run/log, log.1 what the program wrote
//! spaces/<id>/run/terminals/ a file for each terminal that is open
//! ```
//!
//! A run lives while its lock is held, and nothing else decides that. A
//! `launch` without a held lock is a run that is over and of which nobody has
//! taken note; without an `exit` of the same instance, its shim was killed.
//!
//! A shim that an older Podyard started lives on beside a newer one: whatever is
//! added to these files needs a default, and what is there keeps its meaning.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Exit;

/// The log is begun anew when it is this long; one older piece is kept.
pub(crate) const LOG_BYTES: u64 = 5 << 20;

const LAST_LINES: usize = 20;
const LINE_CHARS: usize = 500;

/// `launch`: what the shim has to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LaunchFile {
    pub(crate) instance: String,
    pub(crate) started_at: i64,
    pub(crate) id: String,
    pub(crate) sid: String,
    pub(crate) base_path: String,
    /// Where the program was found.
    pub(crate) program: PathBuf,
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dir: PathBuf,
    pub(crate) podyard: PathBuf,
}

/// `instance`: what the shim made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct InstanceFile {
    pub(crate) instance: String,
    pub(crate) shim: i32,
    pub(crate) port: u16,
    pub(crate) secret: String,
    pub(crate) started_at: i64,
}

/// `exit`: how it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExitFile {
    pub(crate) instance: String,
    #[serde(flatten)]
    pub(crate) exit: Exit,
}

/// One space's folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    pub(crate) fn run(&self) -> Run {
        Run(self.0.join("run"))
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        create_private(&self.data())?;
        create_private(&self.run().0)
    }
}

/// Makes a folder, and those above it, that only its owner may enter.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The `run` folder of a space.
#[derive(Debug, Clone)]
pub(crate) struct Run(PathBuf);

impl Run {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Takes the door: between its holder and the shim, the state is exact.
    /// `None` if the folder is not there.
    pub(crate) fn door(&self) -> io::Result<Option<Door>> {
        let path = self.file("door");
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut pause = Duration::from_millis(1);
        loop {
            let file = match open_lock(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            match file.try_lock() {
                // The folder may have been deleted, and made anew, while this waited.
                Ok(()) if is_same_file(&file, &path) => return Ok(Some(Door(file))),
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another Podyard does not let go of it"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Whether the lock is held: by the shim, if the caller holds the door.
    pub(crate) fn is_held(&self) -> io::Result<bool> {
        let file = match open_lock(&self.file("lock")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        // Shared, so that two who look do not see each other.
        match file.try_lock_shared() {
            Ok(()) => {
                file.unlock()?;
                Ok(false)
            }
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether this run lives. Needs no door.
    pub(crate) fn lives(&self, instance: &str) -> io::Result<bool> {
        Ok(self.is_held()? && self.launch()?.is_some_and(|launch| launch.instance == instance))
    }

    /// Takes the lock that the shim will inherit, or `None` if one holds it.
    pub(crate) fn take_lock(&self) -> io::Result<Option<File>> {
        let file = open_lock(&self.file("lock"))?;
        // Somebody who looks holds it for an instant.
        for _ in 0..1000 {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) if self.is_held()? => return Ok(None),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// `None` too for a file that a power cut left half written: it says nothing.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match std::fs::read(self.file(name)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn launch(&self) -> io::Result<Option<LaunchFile>> {
        self.read("launch")
    }

    pub(crate) fn instance(&self, instance: &str) -> io::Result<Option<InstanceFile>> {
        Ok(self.read::<InstanceFile>("instance")?.filter(|file| file.instance == instance))
    }

    pub(crate) fn exit(&self) -> io::Result<Option<ExitFile>> {
        self.read("exit")
    }

    /// Writes a file that is there whole or not at all, and that only its
    /// owner may read. Only one process at a time may write one name: the
    /// holder of the door or of the lock.
    ///
    /// Nothing is synced. A power cut ends every run anyway, and what it left
    /// half written counts as not there. Waiting for a busy disk would only
    /// make each stop slow.
    pub(crate) fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let new = self.file(&format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        std::fs::rename(&new, self.file(name))
    }

    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.file(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// The end of the log, across its two files.
    pub(crate) fn log_tail(&self, bytes: u64) -> io::Result<Vec<u8>> {
        let new = read_tail(&self.file("log"), bytes)?;
        let missing = bytes - new.len() as u64;
        if missing == 0 {
            return Ok(new);
        }
        let mut tail = read_tail(&self.file("log.1"), missing)?;
        tail.extend_from_slice(&new);
        Ok(tail)
    }

    /// The last lines among the log's last `bytes`.
    pub(crate) fn last_lines(&self, bytes: u64) -> Vec<String> {
        // A log that cannot be read must not hide the exit that it belongs to.
        let tail = self.log_tail(bytes.min(64 << 10)).unwrap_or_default();
        last_lines(&tail)
    }
}

/// The lines of a log's end as [`crate::Exit::last_lines`] has them.
#[must_use]
pub fn last_lines(tail: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(tail);
    let mut lines: Vec<String> =
        text.lines().rev().map(clean_line).filter(|line| !line.is_empty()).take(LAST_LINES).collect();
    lines.reverse();
    lines
}

/// Held while the state of a space is read or changed.
#[derive(Debug)]
pub(crate) struct Door(File);

impl Drop for Door {
    fn drop(&mut self) {
        // Said outright: a child that another thread is just forking has a
        // copy of the descriptor, and closing ours would leave it locked.
        // Nothing can be done about an error.
        let _ = self.0.unlock();
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

pub(crate) fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn read_tail(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut tail = Vec::new();
    file.take(bytes).read_to_end(&mut tail)?;
    Ok(tail)
}

/// A line as people may see it: without colours and other control, cut.
fn clean_line(line: &str) -> String {
    let mut clean = String::new();
    let mut chars = line.chars().peekable();
    let mut count = 0;
    while let Some(c) = chars.next() {
        if count == LINE_CHARS {
            break;
        }
        if c == '\u{1b}' {
            // A terminal's control sequence: ESC [ … letter, or ESC ] … BEL.
            match chars.next() {
                Some('[') => while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
                Some(']') => while chars.next().is_some_and(|c| c != '\u{7}' && c != '\u{1b}') {},
                _ => {}
            }
        } else if c == '\t' {
            clean.push(' ');
            count += 1;
        } else if !c.is_control() {
            clean.push(c);
            count += 1;
        }
    }
    clean.truncate(clean.trim_end().len());
    clean
}

/// Microseconds of Unix time.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// `N` random bytes, in hexadecimal.
pub(crate) fn random_hex<const N: usize>() -> io::Result<String> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::clean_line;

    #[test]
    fn lines_are_cleaned_and_cut() {
        assert_eq!(clean_line("\u{1b}[31mred\u{1b}[0m\tend\u{7}\r"), "red end");
        assert_eq!(clean_line("\u{1b}]0;title\u{7}text"), "text");
        assert_eq!(clean_line(&"é".repeat(900)).chars().count(), 500);
    }
}
