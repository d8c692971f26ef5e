//! The JSON API: list, read, save, make, move, delete, upload.
//!
//! All that waits for the disk happens on other threads ([`on_disk`], or
//! tokio's files).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, web};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::Files;
use crate::answer::Answer;
use crate::error::{Error, Result};
use crate::place::{etag, open_file};

/// A larger file is offered for download instead of the editor.
const EDIT_BYTES: u64 = 2 << 20;

/// A text grows while it is edited.
const SAVE_BYTES: usize = 8 << 20;

/// The largest file that can be uploaded.
const UPLOAD_BYTES: u64 = 1 << 30;

/// A list shows no more than this, and says so.
const LIST_ENTRIES: usize = 10_000;

#[derive(Debug, Deserialize)]
pub(crate) struct PathQuery {
    #[serde(default)]
    pub(crate) path: String,
}

/// One line of a list.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    size: u64,
    /// Milliseconds of Unix time.
    mtime: i64,
    /// Whether it is a link, to something of this type.
    link: bool,
}

/// Runs what waits for the disk on a thread where it holds up nobody.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    web::block(work)
        .await
        .map_err(|_| Error::new(StatusCode::SERVICE_UNAVAILABLE, "the program is about to stop"))?
}

pub(crate) async fn list(files: web::Data<Files>, query: web::Query<PathQuery>) -> Result<Answer> {
    on_disk(move || {
        let path = &query.path;
        let folder = files.place.existing(path)?;
        let mut entries = Vec::new();
        let mut truncated = false;
        for entry in std::fs::read_dir(&folder).map_err(|error| Error::io(path, &error))? {
            if entries.len() == LIST_ENTRIES {
                truncated = true;
                break;
            }
            let entry = entry.map_err(|error| Error::io(path, &error))?;
            // One that was removed meanwhile is not in the list.
            let Ok(mut found) = entry.metadata() else { continue };
            let link = found.is_symlink();
            let mut known = true;
            if link {
                match files.place.target(&entry.path()) {
                    Some(target) => found = target,
                    None => known = false,
                }
            }
            let name = entry.file_name();
            let kind = match name.to_str() {
                Some(_) if known && found.is_dir() => "folder",
                Some(_) if known && found.is_file() => "file",
                // A name that is no text cannot be asked for either.
                _ => "other",
            };
            entries.push(Entry {
                name: name.to_string_lossy().into_owned(),
                kind,
                size: if kind == "file" { found.size() } else { 0 },
                mtime: milliseconds(&found),
                link,
            });
        }
        entries.sort_by_cached_key(|entry| {
            (entry.kind != "folder", entry.name.to_lowercase(), entry.name.clone())
        });
        Ok(Answer::ok(
            &json!({ "path": path, "entries": entries, "truncated": truncated, "limit": LIST_ENTRIES }),
        ))
    })
    .await
}

fn milliseconds(found: &std::fs::Metadata) -> i64 {
    found.mtime() * 1000 + found.mtime_nsec() / 1_000_000
}

/// A file for the editor. Of what cannot be edited only the facts.
pub(crate) async fn read(files: web::Data<Files>, query: web::Query<PathQuery>) -> Result<Answer> {
    on_disk(move || {
        let path = &query.path;
        let (file, found) = open_file(path, &files.place.existing(path)?)?;
        let tag = etag(&found);
        let mut answer =
            json!({ "path": path, "size": found.size(), "mtime": milliseconds(&found), "etag": tag });
        if found.size() > EDIT_BYTES {
            answer["kind"] = "large".into();
        } else {
            let mut bytes = Vec::new();
            file.take(EDIT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| Error::io(path, &error))?;
            match String::from_utf8(bytes) {
                Ok(text) if !text.contains('\0') => {
                    answer["kind"] = "text".into();
                    answer["text"] = text.into();
                }
                _ => answer["kind"] = "binary".into(),
            }
        }
        Ok(Answer::ok(&answer).with_etag(tag))
    })
    .await
}

/// Replaces a file's content, if it still is what `If-Match` names; makes a new
/// one with `If-None-Match: *`.
pub(crate) async fn save(
    files: web::Data<Files>,
    query: web::Query<PathQuery>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<Answer> {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let expected = match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (Some(tag), None) => Some(tag),
        (None, Some(any)) if any == "*" => None,
        _ => {
            return Err(Error::new(
                StatusCode::PRECONDITION_REQUIRED,
                "a save needs If-Match with the ETag that was read, or If-None-Match: * for a new file",
            ));
        }
    };
    let body = body(payload).await?;
    on_disk(move || {
        let path = &query.path;
        let place = files.place.file(path)?;
        let at = |error: io::Error| Error::io(path, &error);
        let mode = match place.metadata() {
            Ok(found) if !found.is_file() => return Err(Error::conflict(format!("{path:?} is not a file"))),
            Ok(found) => Some(found.permissions().mode() & 0o7777),
            Err(_) => None,
        };
        let (mut file, temporary) = Temporary::beside(&place).map_err(at)?;
        file.write_all(&body).map_err(at)?;
        if let Some(mode) = mode {
            file.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(at)?;
        }
        file.sync_all().map_err(at)?;

        let _saving = files.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match place.metadata() {
            Ok(found) => Some(etag(&found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(at(error)),
        };
        match (&expected, &now) {
            (None, Some(_)) => return Err(Error::conflict(format!("{path:?} exists already"))),
            (Some(expected), now) if now.as_ref() != Some(expected) => {
                return Err(Error::new(
                    StatusCode::PRECONDITION_FAILED,
                    format!("{path:?} was changed by somebody else since it was read"),
                ));
            }
            _ => {}
        }
        temporary.rename(&place, expected.is_some()).map_err(at)?;
        let found = file.metadata().map_err(at)?;
        let tag = etag(&found);
        let status = if expected.is_some() { StatusCode::OK } else { StatusCode::CREATED };
        Ok(Answer::new(status, &saved(path, &found)).with_etag(tag))
    })
    .await
}

fn saved(path: &str, found: &std::fs::Metadata) -> serde_json::Value {
    json!({ "path": path, "size": found.size(), "mtime": milliseconds(found), "etag": etag(found) })
}

async fn body(mut payload: web::Payload) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(piece) = payload.next().await {
        let piece = piece.map_err(|error| cut_off(&error))?;
        if body.len() + piece.len() > SAVE_BYTES {
            return Err(Error::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a text may have at most {} MB; upload the file instead", SAVE_BYTES >> 20),
            ));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn cut_off(error: &actix_web::error::PayloadError) -> Error {
    Error::new(StatusCode::BAD_REQUEST, format!("the body was cut off: {error}"))
}

#[derive(Debug, Deserialize)]
pub(crate) struct NewFolder {
    path: String,
}

pub(crate) async fn make_folder(files: web::Data<Files>, input: web::Json<NewFolder>) -> Result<Answer> {
    on_disk(move || {
        let place = files.place.entry(&input.path)?;
        std::fs::create_dir(place).map_err(|error| Error::io(&input.path, &error))?;
        Ok(Answer::created(&json!({ "path": input.path })))
    })
    .await
}

#[derive(Debug, Deserialize)]
pub(crate) struct Move {
    from: String,
    to: String,
}

/// Renames or moves; never over something that is there.
pub(crate) async fn rename(files: web::Data<Files>, input: web::Json<Move>) -> Result<Answer> {
    on_disk(move || {
        let (from, to) = (files.place.entry(&input.from)?, files.place.entry(&input.to)?);
        from.symlink_metadata().map_err(|error| Error::io(&input.from, &error))?;
        if to.starts_with(&from) && to != from {
            return Err(Error::conflict("a folder cannot be moved into itself"));
        }
        rename_to(&from, &to, false).map_err(|error| Error::io(&input.to, &error))?;
        Ok(Answer::ok(&json!({ "path": input.to })))
    })
    .await
}

#[derive(Debug, Deserialize)]
pub(crate) struct Delete {
    #[serde(default)]
    path: String,
    #[serde(default)]
    recursive: bool,
}

pub(crate) async fn delete(files: web::Data<Files>, query: web::Query<Delete>) -> Result<Answer> {
    on_disk(move || {
        let place = files.place.entry(&query.path)?;
        let at = |error: io::Error| Error::io(&query.path, &error);
        // Of a link only itself is removed, never what it leads to.
        if !place.symlink_metadata().map_err(at)?.is_dir() {
            std::fs::remove_file(place).map_err(at)?;
        } else if query.recursive {
            std::fs::remove_dir_all(place).map_err(at)?;
        } else {
            std::fs::remove_dir(place).map_err(at)?;
        }
        Ok(Answer::no_content())
    })
    .await
}

#[derive(Debug, Deserialize)]
pub(crate) struct Upload {
    #[serde(default)]
    path: String,
    #[serde(default)]
    replace: bool,
}

/// Takes a file as the request's body. It is seen when it is whole.
pub(crate) async fn upload(
    files: web::Data<Files>,
    query: web::Query<Upload>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<Answer> {
    let too_large = || {
        Error::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a file may have at most {} MB", UPLOAD_BYTES >> 20),
        )
    };
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > UPLOAD_BYTES) {
        return Err(too_large());
    }
    let Upload { path, replace } = query.into_inner();
    let (asked, shared) = (path.clone(), files.clone());
    let (place, file, temporary) = on_disk(move || {
        let place = shared.place.file(&asked)?;
        match place.symlink_metadata() {
            Ok(found) if !found.is_file() => return Err(Error::conflict(format!("{asked:?} is not a file"))),
            Ok(_) if !replace => return Err(Error::conflict(format!("{asked:?} exists already"))),
            _ => {}
        }
        let (file, temporary) = Temporary::beside(&place).map_err(|error| Error::io(&asked, &error))?;
        Ok((place, file, temporary))
    })
    .await?;

    // From here on `temporary` removes what was written, should the person go away.
    let at = |error: io::Error| Error::io(&path, &error);
    let mut writer = tokio::io::BufWriter::with_capacity(256 << 10, tokio::fs::File::from_std(file));
    let mut written = 0;
    while let Some(piece) = payload.next().await {
        let piece: Bytes = piece.map_err(|error| cut_off(&error))?;
        written += piece.len() as u64;
        if written > UPLOAD_BYTES {
            return Err(too_large());
        }
        writer.write_all(&piece).await.map_err(at)?;
    }
    writer.flush().await.map_err(at)?;
    let file = writer.into_inner().into_std().await;
    on_disk(move || {
        let at = |error: io::Error| Error::io(&path, &error);
        if let Ok(found) = place.metadata() {
            file.set_permissions(found.permissions()).map_err(at)?;
        }
        file.sync_all().map_err(at)?;
        temporary.rename(&place, replace).map_err(at)?;
        let found = file.metadata().map_err(at)?;
        Ok(Answer::created(&saved(&path, &found)).with_etag(etag(&found)))
    })
    .await
}

/// A file that is not finished. It is removed unless it is renamed.
struct Temporary(Option<PathBuf>);

impl Temporary {
    /// Makes one on the same disk as `place`, with the usual rights.
    fn beside(place: &Path) -> io::Result<(File, Self)> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let folder = place.parent().unwrap_or(place);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".podyard-unfinished-{}-{number}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path) {
                Ok(file) => return Ok((file, Self(Some(path)))),
                // Left by one that was killed and had the same process number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts it in its place, and makes that last.
    fn rename(mut self, place: &Path, replace: bool) -> io::Result<()> {
        if let Some(path) = &self.0 {
            rename_to(path, place, replace)?;
            self.0 = None;
        }
        File::open(place.parent().unwrap_or(place))?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "an unfinished file is left");
        }
    }
}

/// Renames; without `replace` only if nothing is there.
fn rename_to(from: &Path, to: &Path, replace: bool) -> io::Result<()> {
    if replace {
        return std::fs::rename(from, to);
    }
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // This disk's file system cannot do both in one.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            renamed => return Ok(renamed?),
        }
    }
    if to.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    std::fs::rename(from, to)
}
