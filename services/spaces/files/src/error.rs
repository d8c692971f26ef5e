//! What goes wrong, as the caller is told.

use std::fmt;
use std::io::{self, ErrorKind};

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use serde_json::json;

/// A result of a handler.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// An answer that is an error: `{"error": "…", "field": "path"}`.
#[derive(Debug)]
pub(crate) struct Error {
    status: StatusCode,
    message: String,
    field: Option<&'static str>,
}

impl Error {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), field: None }
    }

    pub(crate) fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self { field: Some(field), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// The disk's answer about `path`, which is as the person wrote it.
    pub(crate) fn io(path: &str, error: &io::Error) -> Self {
        let (status, reason) = match error.kind() {
            ErrorKind::NotFound => (StatusCode::NOT_FOUND, "does not exist"),
            ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, "may not be accessed"),
            ErrorKind::ReadOnlyFilesystem => {
                (StatusCode::FORBIDDEN, "is on a disk that cannot be written to")
            }
            ErrorKind::AlreadyExists => (StatusCode::CONFLICT, "exists already"),
            ErrorKind::DirectoryNotEmpty => (StatusCode::CONFLICT, "is a folder that is not empty"),
            ErrorKind::NotADirectory => (StatusCode::CONFLICT, "is not in a folder"),
            ErrorKind::IsADirectory => (StatusCode::CONFLICT, "is a folder"),
            ErrorKind::CrossesDevices => (StatusCode::CONFLICT, "is on another disk"),
            ErrorKind::ResourceBusy => (StatusCode::CONFLICT, "is in use"),
            ErrorKind::InvalidFilename => (StatusCode::BAD_REQUEST, "has too long a name"),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                (StatusCode::INSUFFICIENT_STORAGE, "cannot be written: the disk is full")
            }
            // A link where a file was a moment ago; it is not followed.
            _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                (StatusCode::FORBIDDEN, "is a link that leads nowhere or outside")
            }
            _ => {
                tracing::error!(path, %error, "the disk refuses");
                return Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("{path:?} cannot be used: {error}"),
                );
            }
        };
        Self { field: Some("path"), ..Self::new(status, format!("{path:?} {reason}")) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut body = json!({ "error": self.message });
        if let Some(field) = self.field {
            body["field"] = field.into();
        }
        HttpResponse::build(self.status).json(body)
    }
}
