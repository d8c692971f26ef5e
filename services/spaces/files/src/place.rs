//! The one folder that is served, and the way from a request's path to a place
//! in it. Every path that comes in goes through here.
//!
//! A program in the space can do whatever this process can, so what is kept
//! out are not races that it might win but paths that lead outside.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::error::{Error, Result};

/// The folder that is served.
#[derive(Debug)]
pub(crate) struct Place {
    root: PathBuf,
}

impl Place {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let root = dir.canonicalize()?;
        if !root.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                format!("{} is no folder", dir.display()),
            ));
        }
        Ok(Self { root })
    }

    /// What is at `path`, all links followed. Refused if they lead outside.
    pub(crate) fn existing(&self, path: &str) -> Result<PathBuf> {
        let names = names(path)?;
        self.inside(path, self.root.join(names.join("/")).canonicalize())
    }

    /// The place of `path`, where there need not be anything yet. Links on the
    /// way are followed, but not one at the place itself.
    pub(crate) fn entry(&self, path: &str) -> Result<PathBuf> {
        let names = names(path)?;
        let Some((last, above)) = names.split_last() else {
            return Err(Error::invalid("path", "the folder of the space itself cannot be changed"));
        };
        let above = self.inside(path, self.root.join(above.join("/")).canonicalize())?;
        Ok(above.join(last))
    }

    /// Where to write a file at `path`: through a link, if one is there.
    pub(crate) fn file(&self, path: &str) -> Result<PathBuf> {
        let entry = self.entry(path)?;
        match entry.symlink_metadata() {
            Ok(found) if found.is_symlink() => self.existing(path),
            _ => Ok(entry),
        }
    }

    /// What a link leads to, if it leads to something in here.
    pub(crate) fn target(&self, link: &Path) -> Option<Metadata> {
        let target = link.canonicalize().ok()?;
        if target.starts_with(&self.root) { target.metadata().ok() } else { None }
    }

    fn inside(&self, path: &str, found: io::Result<PathBuf>) -> Result<PathBuf> {
        let found = found.map_err(|error| Error::io(path, &error))?;
        if found.starts_with(&self.root) {
            Ok(found)
        } else {
            Err(Error::forbidden(format!("{path:?} leads out of the space's folder")))
        }
    }
}

/// The names on a path, each of which stays where it is.
fn names(path: &str) -> Result<Vec<&str>> {
    if path.contains('\0') {
        return Err(Error::invalid("path", "a path has no NUL byte"));
    }
    if path.starts_with('/') {
        return Err(Error::invalid("path", "a path begins in the space's folder, without a slash"));
    }
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| *name == "." || *name == "..") {
        return Err(Error::invalid("path", "a path has no . and no .."));
    }
    Ok(names)
}

/// Opens a file to read it. Only a file: not a folder, and not a pipe, on
/// which one would wait for ever.
pub(crate) fn open_file(path: &str, place: &Path) -> Result<(File, Metadata)> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(place)
        .and_then(|file| Ok((file.metadata()?, file)));
    let (found, file) = opened.map_err(|error| Error::io(path, &error))?;
    if !found.is_file() {
        return Err(Error::conflict(format!("{path:?} is not a file")));
    }
    Ok((file, found))
}

/// Names a file's content: another file, size or time makes another tag.
pub(crate) fn etag(found: &Metadata) -> String {
    format!("\"{:x}-{:x}-{:x}.{:x}\"", found.ino(), found.size(), found.mtime(), found.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        let place = Place::open(root.path()).unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        std::fs::write(root.path().join("a/file"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("out")).unwrap();
        std::os::unix::fs::symlink(root.path().join("a"), root.path().join("in")).unwrap();
        std::os::unix::fs::symlink("../..", root.path().join("a/up")).unwrap();
        std::os::unix::fs::symlink("/no/such", root.path().join("gone")).unwrap();

        for path in ["", "a", "a//file", "in/file", "in/"] {
            assert!(place.existing(path).is_ok(), "{path}");
        }
        for path in [
            "..",
            "a/../..",
            "/",
            "/etc/passwd",
            ".",
            "a/./file",
            "a\0",
            "out",
            "out/x",
            "a/up",
            "a/up/x",
            "gone",
        ] {
            assert!(place.existing(path).is_err(), "{path}");
            assert!(place.file(path).is_err(), "{path}");
        }
        assert!(place.file("in/new").is_ok());
        assert!(place.entry("out").is_ok(), "the link itself may be removed");
        assert!(place.entry("out/new").is_err());
        assert!(place.entry("").is_err());
    }
}
