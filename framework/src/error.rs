//! The one error of the framework: a stable class for programs, a status for
//! HTTP, a sentence for people and the fields to blame. The cause is for the
//! log and never leaves the process.

use std::fmt;

/// What everything here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The family of an error; it decides the HTTP status and the default class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request cannot be understood or breaks a rule of a field.
    BadRequest,
    /// Nobody, or a token that is not valid.
    Unauthorized,
    /// Known, but without the right.
    Forbidden,
    /// Does not exist, or belongs to somebody else.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// None of the media types that the client accepts is spoken here.
    NotAcceptable,
    /// The client took too long to send its request.
    RequestTimeout,
    /// Clashes with what is there now.
    Conflict,
    /// Was there and is kept no longer.
    Gone,
    /// `If-Match` names another version than the present one.
    PreconditionFailed,
    /// The body is larger than allowed.
    TooLarge,
    /// The path with its parameters is longer than allowed.
    UriTooLong,
    /// The body is not JSON.
    UnsupportedMediaType,
    /// Understood, but it cannot be done as it stands.
    Unprocessable,
    /// The path speaks another protocol: a websocket.
    UpgradeRequired,
    /// Too often.
    TooManyRequests,
    /// The headers are too many or too large.
    HeadersTooLarge,
    /// A fault of ours.
    Internal,
    /// Overloaded or on the way down; try again.
    Unavailable,
    /// It took longer than a request may take.
    Timeout,
    /// The disk is full.
    InsufficientStorage,
}

impl Kind {
    /// The HTTP status of the family.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::RequestTimeout => 408,
            Self::Conflict => 409,
            Self::Gone => 410,
            Self::PreconditionFailed => 412,
            Self::TooLarge => 413,
            Self::UriTooLong => 414,
            Self::UnsupportedMediaType => 415,
            Self::Unprocessable => 422,
            Self::UpgradeRequired => 426,
            Self::TooManyRequests => 429,
            Self::HeadersTooLarge => 431,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::Timeout => 504,
            Self::InsufficientStorage => 507,
        }
    }

    /// The status in words, as RFC 9110 has them.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "Bad Request",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not Found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::NotAcceptable => "Not Acceptable",
            Self::RequestTimeout => "Request Timeout",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::PreconditionFailed => "Precondition Failed",
            Self::TooLarge => "Content Too Large",
            Self::UriTooLong => "URI Too Long",
            Self::UnsupportedMediaType => "Unsupported Media Type",
            Self::Unprocessable => "Unprocessable Content",
            Self::UpgradeRequired => "Upgrade Required",
            Self::TooManyRequests => "Too Many Requests",
            Self::HeadersTooLarge => "Request Header Fields Too Large",
            Self::Internal => "Internal Server Error",
            Self::Unavailable => "Service Unavailable",
            Self::Timeout => "Gateway Timeout",
            Self::InsufficientStorage => "Insufficient Storage",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::BadRequest => "InputParameterError",
            Self::Unauthorized => "UnauthorizedError",
            Self::Forbidden => "ForbiddenError",
            Self::NotFound => "ResourceNotFoundError",
            Self::MethodNotAllowed => "MethodNotAllowedError",
            Self::NotAcceptable => "NotAcceptableError",
            Self::RequestTimeout => "RequestTimeoutError",
            Self::Conflict => "ConflictError",
            Self::Gone => "GoneError",
            Self::PreconditionFailed => "PreconditionFailedError",
            Self::TooLarge => "TooLargeEntityError",
            Self::UriTooLong => "UriTooLongError",
            Self::UnsupportedMediaType => "UnsupportedMediaTypeError",
            Self::Unprocessable => "UnprocessableError",
            Self::UpgradeRequired => "UpgradeRequiredError",
            Self::TooManyRequests => "TooManyRequestsError",
            Self::HeadersTooLarge => "HeadersTooLargeError",
            Self::Internal => "InternalError",
            Self::Unavailable => "ServiceUnavailableError",
            Self::Timeout => "TimeoutError",
            Self::InsufficientStorage => "OutOfResourceError",
        }
    }
}

/// One field that is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FieldError {
    /// Path of the field in the body or name of the query parameter.
    pub field: String,
    /// What is wrong with it, for people.
    pub message: String,
}

/// An error. Boxed inside, so that a `Result` stays small.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    class: &'static str,
    message: String,
    fields: Vec<FieldError>,
    retry_after: Option<u32>,
    connection_lost: bool,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of the family with the family's class.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            class: kind.class(),
            message: message.into(),
            fields: Vec::new(),
            retry_after: None,
            connection_lost: false,
            cause: None,
        }))
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Kind::BadRequest, message)
    }

    /// 400 that blames one field.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        let (field, message) = (field.into(), message.into());
        let mut it = Self::bad_request(format!("{field}: {message}"));
        it.0.fields.push(FieldError { field, message });
        it
    }

    /// 400 that blames several fields at once.
    #[must_use]
    pub fn fields(fields: Vec<FieldError>) -> Self {
        let text = fields.iter().map(|f| format!("{}: {}", f.field, f.message)).collect::<Vec<_>>();
        let mut it = Self::bad_request(text.join("; "));
        it.0.fields = fields;
        it
    }

    /// 401.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(Kind::Unauthorized, message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(Kind::Forbidden, message)
    }

    /// 404 of one resource. The words are the same for a row that does not
    /// exist and for one that the caller must not know of.
    pub fn not_found(keyword: &str, id: &str) -> Self {
        Self::new(Kind::NotFound, format!("{keyword} {id} not found"))
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, message)
    }

    /// 503, to be tried again after so many seconds.
    pub fn unavailable(message: impl Into<String>, retry_after: u32) -> Self {
        Self::new(Kind::Unavailable, message).retry_after(retry_after)
    }

    /// 500. The cause is logged, the client reads only that it was ours.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let mut it = Self::new(Kind::Internal, "internal error; the request id tells the operators more");
        it.0.cause = Some(cause.into());
        it
    }

    /// The same with a class of its own, as each rule of a service has one.
    #[must_use]
    pub fn class(mut self, class: &'static str) -> Self {
        self.0.class = class;
        self
    }

    /// The same, blaming a field too.
    #[must_use]
    pub fn blame(mut self, field: impl Into<String>) -> Self {
        let message = self.0.message.clone();
        self.0.fields.push(FieldError { field: field.into(), message });
        self
    }

    /// The same with a `Retry-After`, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after = Some(seconds);
        self
    }

    /// The same with a cause for the log.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// The family.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The stable class name.
    #[must_use]
    pub fn class_name(&self) -> &'static str {
        self.0.class
    }

    /// The sentence for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The fields to blame.
    #[must_use]
    pub fn field_errors(&self) -> &[FieldError] {
        &self.0.fields
    }

    /// Seconds after which to try again: always some where trying again helps.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u32> {
        let helps = matches!(self.0.kind, Kind::TooManyRequests | Kind::Unavailable);
        self.0.retry_after.or(helps.then_some(1))
    }

    /// Whether the connection to the database broke, so that a read may be
    /// tried again on another.
    #[must_use]
    pub fn is_connection_lost(&self) -> bool {
        self.0.connection_lost
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.class, self.0.message)?;
        match &self.0.cause {
            Some(cause) => write!(f, " ({cause})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.cause.as_ref().map(|c| &**c as &(dyn std::error::Error + 'static))
    }
}

impl From<diesel::result::Error> for Error {
    fn from(cause: diesel::result::Error) -> Self {
        use diesel::result::{DatabaseErrorKind as Db, Error as Diesel};
        let Diesel::DatabaseError(kind, info) = &cause else {
            return Self::internal(cause);
        };
        let text = info.message();
        match kind {
            Db::UniqueViolation => {
                let field = unique_field(info.constraint_name(), text);
                let message = format!("another row has this {field} already");
                let class = if field == "name" { "DuplicateNameError" } else { "DuplicateResourceError" };
                Self::conflict(message.clone()).class(class).blame(field).caused_by(cause)
            }
            Db::SerializationFailure => {
                Self::unavailable("two requests got in each other's way; try again", 1).caused_by(cause)
            }
            Db::ClosedConnection | Db::UnableToSendCommand => lost(cause),
            _ if text.contains("invalid byte sequence for encoding")
                || text.contains("Incorrect string value") =>
            {
                Self::bad_request("a text has a character that the database cannot keep").caused_by(cause)
            }
            // Tables of types that are defined at run time change their names
            // with each change of the type.
            _ if text.contains("no such table: rt_")
                || text.contains("relation \"rt_") && text.contains("does not exist")
                || text.contains(".rt_") && text.contains("doesn't exist") =>
            {
                crate::runtime::stale().caused_by(cause)
            }
            // MySQL, where a column that is indexed has a longest text.
            _ if text.contains("Data too long for column") => {
                let field = text.split('\'').nth(1).unwrap_or_default().to_owned();
                Self::field(field, "is longer than the database can keep").caused_by(cause)
            }
            // MySQL, which counts them when the table is made.
            _ if text.contains("Too many key") || text.contains("Row size too large") => {
                Self::bad_request("the database cannot keep so many fields that are indexed")
                    .class("DatabaseCannotError")
                    .caused_by(cause)
            }
            _ if [
                "lock timeout",
                "statement timeout",
                "Lock wait timeout",
                "max_statement_time",
                "maximum statement",
            ]
            .iter()
            .any(|it| text.contains(it)) =>
            {
                Self::unavailable("the database is busy; try again", 2).caused_by(cause)
            }
            _ if text.contains("deadlock detected") || text.contains("Deadlock found") => {
                Self::unavailable("two requests got in each other's way; try again", 1).caused_by(cause)
            }
            _ if text.contains("terminating connection")
                || text.contains("server closed the connection")
                || text.contains("connection to server")
                || text.contains("could not receive data")
                || text.contains("no connection to the server")
                || text.contains("the database system is")
                || LOST_MYSQL.iter().any(|it| text.contains(it)) =>
            {
                lost(cause)
            }
            _ if text.contains("database or disk is full")
                || text.contains("No space left")
                || (text.starts_with("The table") && text.ends_with("is full")) =>
            {
                Self::new(Kind::InsufficientStorage, "the disk of the database is full").caused_by(cause)
            }
            _ if text.contains("database is locked") => {
                Self::unavailable("the database is busy; try again", 1).caused_by(cause)
            }
            _ => Self::internal(cause),
        }
    }
}

/// How MySQL and MariaDB, and their client libraries, say that they are gone.
const LOST_MYSQL: [&str; 7] = [
    "server has gone away",
    "Lost connection to",
    "Can't connect to",
    "Server shutdown in progress",
    "Connection was killed",
    "Too many connections",
    "Commands out of sync",
];

fn lost(cause: diesel::result::Error) -> Error {
    let mut it = Error::unavailable("the database cannot be reached; try again", 2).caused_by(cause);
    it.0.connection_lost = true;
    it
}

/// The field that a unique index guards. Unique indexes are named
/// `<table>__<field>_key` with the field to blame as their last column;
/// PostgreSQL and MySQL report the name, SQLite the columns.
fn unique_field(constraint: Option<&str>, text: &str) -> String {
    let of_mysql = text.rsplit_once("' for key '").and_then(|(_, name)| name.strip_suffix('\''));
    if of_mysql.is_some_and(|name| name == "PRIMARY" || name.ends_with(".PRIMARY")) {
        return "id".to_owned();
    }
    if let Some(name) = constraint.or(of_mysql) {
        let name = name.strip_suffix("_key").unwrap_or(name);
        if name.ends_with("_pkey") {
            return "id".to_owned();
        }
        let field = name.split_once("__").map_or(name, |(_, field)| field);
        return field.rsplit_once('.').map_or(field, |(_, f)| f).to_owned();
    }
    let columns = text.rsplit_once(": ").map_or(text, |(_, columns)| columns);
    let last = columns.rsplit(", ").next().unwrap_or(columns);
    last.rsplit('.').next().unwrap_or(last).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_violations_name_the_field() {
        assert_eq!(unique_field(None, "UNIQUE constraint failed: spaces.user_id, spaces.name"), "name");
        assert_eq!(unique_field(Some("spaces__name_key"), ""), "name");
        assert_eq!(unique_field(Some("spaces_pkey"), ""), "id");
        assert_eq!(unique_field(None, "Duplicate entry 'u-x: a, b' for key 'spaces__name_key'"), "name");
        assert_eq!(unique_field(None, "Duplicate entry 'x' for key 'spaces.spaces__name_key'"), "name");
        assert_eq!(unique_field(None, "Duplicate entry 'x' for key 'PRIMARY'"), "id");
    }

    #[test]
    fn several_fields_are_blamed_at_once() {
        let blame = |f: &str| FieldError { field: f.into(), message: "is required".into() };
        let error = Error::fields(vec![blame("a"), blame("b")]);
        assert_eq!(error.field_errors().len(), 2);
        assert_eq!(error.message(), "a: is required; b: is required");
    }
}
