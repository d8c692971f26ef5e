//! How a write is done: for real or as a rehearsal, once under an idempotency
//! key, and with which status and place it is answered.

use actix_web::HttpRequest;
use actix_web::http::{Method, StatusCode, header};
use serde_json::value::RawValue;

use super::run::Answer;
use crate::auth::UserCred;
use crate::ctx::{Ctx, Tx};
use crate::db::{Done, Lock, OneRow};
use crate::dispatch::{IfMatch, Made, Part, Reply};
use crate::model::Meta;
use crate::query::Params;
use crate::{Error, Kind, Result, idempotency};

/// What a request's headers and method say of how to write.
pub(super) struct Manner {
    /// The version that the client knows.
    pub(super) known: IfMatch,
    /// Whether the body is a merge patch.
    pub(super) patch: bool,
    /// Whether everything is undone in the end.
    pub(super) dry_run: bool,
    /// The one row that it is to change.
    pub(super) of: Option<OneRow>,
    /// The client's key.
    pub(super) key: Option<idempotency::Key>,
}

impl Manner {
    pub(super) fn of(req: &HttpRequest, cred: &UserCred, body: &[u8]) -> Result<Self> {
        let known = super::conditional::if_match(req)?;
        let key = match req.headers().get("idempotency-key").filter(|_| req.method() == Method::POST) {
            Some(key) => {
                let query = req.uri().query().unwrap_or_default();
                let parts = [req.method().as_str(), req.path(), query].map(str::as_bytes);
                Some(idempotency::Key::new(cred, key.as_bytes(), &[parts[0], parts[1], parts[2], body])?)
            }
            None => None,
        };
        Ok(Self { known, patch: req.method() == Method::PATCH, dry_run: false, of: None, key })
    }

    /// Takes `dry_run` out of the parameters; gives the others.
    pub(super) fn params<'p>(&mut self, params: &Params<'p>) -> Result<Vec<super::run::Param<'p>>> {
        let mut others = Vec::new();
        for (key, value) in params {
            match (key.as_ref(), value.as_ref()) {
                ("dry_run", "true") => self.dry_run = true,
                ("dry_run", "false") => {}
                ("dry_run", _) => return Err(Error::field("dry_run", "must be true or false")),
                _ => others.push((key.clone(), value.clone())),
            }
        }
        Ok(others)
    }

    /// For a write that takes no other parameters.
    pub(super) fn only(&mut self, params: &Params<'_>) -> Result<()> {
        match self.params(params)?.first() {
            Some((key, _)) => Err(Error::field(key.clone().into_owned(), "is not a known parameter")),
            None => Ok(()),
        }
    }

    /// A batch is of many rows: one version says nothing of them.
    pub(super) fn expect_no_version(&self) -> Result<()> {
        match self.known {
            IfMatch::Any => Ok(()),
            IfMatch::Versions(_) => Err(Error::field("If-Match", "does not go with a batch")),
        }
    }
}

/// Writes, as the manner says.
pub(super) async fn write(
    ctx: &Ctx,
    lock: Option<Lock>,
    manner: Manner,
    work: impl FnMut(&mut Tx<'_>) -> Result<Made> + Send + 'static,
) -> Result<Answer> {
    let Manner { dry_run, of, key, .. } = manner;
    if dry_run {
        let done = ctx.write(lock, move |tx| tx.rehearse(work)).await?;
        let Done { value: made, statements, time } = done;
        let reply = Reply { version: None, ..made.reply };
        let status = if made.status == 207 { StatusCode::MULTI_STATUS } else { StatusCode::OK };
        return Ok(Answer { status, reply, statements, db: time, dry_run, ..Answer::default() });
    }
    let Some(key) = key else {
        let done = ctx.write_repeatable(lock, of, work).await?;
        return Ok(answer(done.value, false, done.statements, done.time));
    };
    let done = ctx.write(lock, move |tx| key.once(tx, work)).await?;
    idempotency::sweep(ctx);
    Ok(answer(done.value.0, done.value.1, done.statements, done.time))
}

/// An answer from what was made.
pub(super) fn answer(made: Made, replayed: bool, statements: u32, db: std::time::Duration) -> Answer {
    let Made { status, location, reply } = made;
    let status = StatusCode::from_u16(status).unwrap_or_default();
    Answer { status, reply, location, statements, db, replayed, ..Answer::default() }
}

/// A row: 201 where it is new.
pub(super) fn row(meta: &Meta, reply: Reply) -> Made {
    let location = reply.id.as_ref().filter(|_| reply.created).map(|id| format!("/{}/{id}", meta.plural()));
    Made { status: if reply.created { 201 } else { 200 }, location, reply }
}

/// What an action gave: 202 where a task goes on with it.
pub(super) fn acted(reply: Reply) -> Made {
    match &reply.task {
        Some(task) => Made { status: 202, location: Some(format!("/tasks/{task}")), reply },
        None => Made { status: 200, location: None, reply },
    }
}

/// One of a batch, as it is shown.
#[derive(serde::Serialize)]
struct Shown {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    body: Box<RawValue>,
}

/// The answer to a batch: `207` with what each of them would have been told.
pub(super) fn parts(
    tx: &Tx<'_>,
    meta: &Meta,
    parts: Vec<Part>,
    made: impl Fn(Reply) -> Made,
) -> Result<Made> {
    let raw = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).map_err(Error::internal)?;
        RawValue::from_string(text).map_err(Error::internal)
    };
    let mut shown = Vec::with_capacity(parts.len());
    let mut private = false;
    for Part { id, result } in parts {
        shown.push(match result {
            Ok(reply) => {
                let Made { status, reply, .. } = made(reply);
                private |= reply.private;
                let status = if tx.rehearsal { 200 } else { status };
                Shown { status, id: id.or(reply.id), body: raw(reply.body)? }
            }
            Err(error) => {
                let request_id = tx.ctx.request_id();
                if error.kind() == Kind::Internal {
                    tracing::error!(request_id, resource = meta.plural(), id, %error, "one of a batch failed");
                }
                let place = match &id {
                    Some(id) => format!("/{}/{id}", meta.plural()),
                    None => format!("/{}", meta.plural()),
                };
                let problem = super::problem::document(&error, &place, request_id, tx.ctx.lang());
                Shown { status: error.kind().status(), id, body: raw(problem.to_string().into_bytes())? }
            }
        });
    }
    let body = serde_json::to_vec(&std::collections::BTreeMap::from([(meta.plural(), shown)]));
    let reply = Reply { body: body.map_err(Error::internal)?, private, ..Reply::default() };
    Ok(Made { status: 207, location: None, reply })
}

/// What a `PATCH` may be sent as; other patches have other meanings.
pub(super) const PATCHES: &str = "application/merge-patch+json, application/json";

/// Refuses a patch of another kind.
pub(super) fn expect_merge_patch(req: &HttpRequest) -> Result<()> {
    let Some(value) = req.headers().get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim();
    if essence.ends_with("+json") && essence != "application/merge-patch+json" {
        let text = format!("Content-Type {essence} is no patch that is understood; send {PATCHES}");
        return Err(Error::new(Kind::UnsupportedMediaType, text).blame("Content-Type"));
    }
    Ok(())
}
