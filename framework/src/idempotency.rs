//! Idempotency keys: a write that is sent twice under one key is done once,
//! and answered twice with the same words.
//!
//! A key is claimed by a row of its own before the work begins. Inside a
//! transaction claim, work and answer commit together or not at all, and a
//! second request waits at the row's unique id until the first has ended. An
//! action outside of transactions claims first and keeps the answer after; who
//! comes meanwhile is told to come again.

use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};

use crate::auth::UserCred;
use crate::ctx::{Ctx, Tx};
use crate::db::{self, Cost, Sql};
use crate::dispatch::{Made, Reply};
use crate::{Error, Kind, Result};

/// How long an answer is kept, in microseconds.
const KEPT: i64 = 24 * 3600 * 1_000_000;
/// How often what is older is removed, in microseconds.
const SWEEP: i64 = 60 * 1_000_000;
/// Most rows of one sweep's transaction.
const SWEPT: i64 = 1000;

/// A client's key and what it stands for.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    id: String,
    fingerprint: String,
}

/// What was kept under a key.
struct Kept {
    fingerprint: String,
    status: i64,
    body: Option<String>,
    location: Option<String>,
    version: Option<i64>,
    created_at: i64,
}

impl Kept {
    /// Whether it is young enough to count.
    fn holds(&self, now: DateTime<Utc>) -> bool {
        self.created_at >= now.timestamp_micros() - KEPT
    }
}

impl Key {
    /// Checks a key; `request` is all that makes two requests the same.
    ///
    /// # Errors
    /// 400 that names the header.
    pub(crate) fn new(cred: &UserCred, key: &[u8], request: &[&[u8]]) -> Result<Self> {
        let sane = !key.is_empty() && key.len() <= 255 && key.iter().all(|b| (b' '..=b'~').contains(b));
        if !sane {
            return Err(Error::field("Idempotency-Key", "must be 1 to 255 printable characters"));
        }
        let hash = |parts: &mut dyn Iterator<Item = &[u8]>| {
            let mut hasher = Sha256::new();
            for part in parts {
                hasher.update((part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
            URL_SAFE_NO_PAD.encode(hasher.finalize())
        };
        let id = hash(&mut [cred.user_id.as_bytes(), key].into_iter());
        let fingerprint = hash(&mut request.iter().copied().chain([cred.project_id.as_bytes()]));
        Ok(Self { id, fingerprint })
    }

    /// Does the work once, inside the transaction. `true`: it was done before.
    pub(crate) fn once(
        &self,
        tx: &mut Tx<'_>,
        work: impl FnOnce(&mut Tx<'_>) -> Result<Made>,
    ) -> Result<(Made, bool)> {
        if let Some(made) = self.claim(tx)? {
            return Ok((made, true));
        }
        let made = work(tx)?;
        self.keep(tx, &made)?;
        Ok((made, false))
    }

    /// What was answered under the key, for those who do more than the work
    /// before it: asking webhooks. Claiming comes later all the same.
    pub(crate) async fn answered(&self, ctx: &Ctx) -> Result<Option<Made>> {
        let key = self.clone();
        let done = ctx.read(Cost::Bounded, move |tx| {
            let kept = key.find(tx)?.filter(|it| it.holds(tx.now()));
            kept.map(|it| key.answer(it)).transpose()
        });
        Ok(done.await?.value)
    }

    /// Does the work once, outside of any transaction. It goes on to its end
    /// when the client goes away: nobody else could tell how it ended.
    pub(crate) async fn once_outside(
        self,
        ctx: Ctx,
        work: impl Future<Output = Result<Made>> + Send + 'static,
    ) -> Result<(Made, bool)> {
        let key = self.clone();
        let claimed = ctx.write(None, move |tx| key.claim(tx)).await?;
        if let Some(made) = claimed.value {
            return Ok((made, true));
        }
        let run = async move {
            let result = tokio::spawn(work).await.map_err(Error::internal).flatten();
            match result {
                Ok(made) => {
                    let kept = ctx.write(None, move |tx| self.keep(tx, &made).map(|()| made)).await?;
                    Ok((kept.value, false))
                }
                Err(error) => {
                    ctx.write(None, move |tx| self.release(tx)).await?;
                    Err(error)
                }
            }
        };
        tokio::spawn(run).await.map_err(Error::internal)?
    }

    /// Claims the key, or finds what was answered under it.
    fn claim(&self, tx: &mut Tx<'_>) -> Result<Option<Made>> {
        loop {
            let now = tx.now();
            let dialect = tx.conn.dialect();
            let mut sql = Sql::new(dialect.insert_new());
            sql.push("\"idempotency_keys\" (\"id\", \"fingerprint\", \"status\", \"created_at\") VALUES (");
            sql.bind(&self.id)
                .push(", ")
                .bind(&self.fingerprint)
                .push(", 0, ")
                .bind(now)
                .push(")")
                .push(dialect.or_ignore());
            if db::execute(tx.conn, &sql)? > 0 {
                return Ok(None);
            }
            let Some(kept) = self.find(tx)? else { continue };
            if kept.holds(now) {
                return self.answer(kept).map(Some);
            }
            self.release(tx)?;
        }
    }

    fn find(&self, tx: &mut Tx<'_>) -> Result<Option<Kept>> {
        let sql = Sql::new(
            "SELECT \"fingerprint\", \"status\", \"body\", \"location\", \"version\", \"created_at\" \
             FROM \"idempotency_keys\" WHERE \"id\" = ",
        );
        type Row = (String, i64, Option<String>, Option<String>, Option<i64>, i64);
        let row: Option<Row> = db::load_one(tx.conn, sql.value(&self.id))?;
        Ok(row.map(|(fingerprint, status, body, location, version, created_at)| Kept {
            fingerprint,
            status,
            body,
            location,
            version,
            created_at,
        }))
    }

    fn answer(&self, kept: Kept) -> Result<Made> {
        if kept.fingerprint != self.fingerprint {
            let text = "this Idempotency-Key was used for another request";
            let error = Error::new(Kind::Unprocessable, text).class("IdempotencyKeyReusedError");
            return Err(error.blame("Idempotency-Key"));
        }
        if kept.status == 0 {
            let text = "the request with this Idempotency-Key has begun and not ended";
            return Err(Error::conflict(text).class("IdempotencyKeyInUseError").retry_after(1));
        }
        let Some(body) = kept.body else {
            let text = "the request with this Idempotency-Key was done; its answer may hold a secret and is not kept";
            return Err(Error::conflict(text).class("IdempotentAnswerNotKeptError"));
        };
        let reply = Reply { body: body.into_bytes(), version: kept.version, ..Reply::default() };
        Ok(Made { status: u16::try_from(kept.status).unwrap_or(200), location: kept.location, reply })
    }

    fn keep(&self, tx: &mut Tx<'_>, made: &Made) -> Result<()> {
        let body = match &made.reply.private {
            true => None,
            false => Some(std::str::from_utf8(&made.reply.body).map_err(Error::internal)?),
        };
        let mut sql = Sql::new("UPDATE \"idempotency_keys\" SET \"status\" = ");
        sql.bind(i64::from(made.status)).push(", \"body\" = ").bind(db::Value::Text(body.map(Into::into)));
        sql.push(", \"location\" = ").bind(db::Value::Text(made.location.as_deref().map(Into::into)));
        sql.push(", \"version\" = ").bind(db::Value::Int(made.reply.version));
        sql.push(" WHERE \"id\" = ").bind(&self.id);
        db::execute(tx.conn, &sql)?;
        Ok(())
    }

    fn release(&self, tx: &mut Tx<'_>) -> Result<()> {
        let sql = Sql::new("DELETE FROM \"idempotency_keys\" WHERE \"id\" = ").value(&self.id);
        db::execute(tx.conn, &sql)?;
        Ok(())
    }
}

/// When a process removes next what is too old.
#[derive(Default)]
pub(crate) struct Sweeps(AtomicI64);

/// Removes what is too old, now and then, beside the requests: only those with
/// a key make the table grow, and only those come here.
pub(crate) fn sweep(ctx: &Ctx) {
    let due = &ctx.core().sweeps.0;
    let now = crate::now().timestamp_micros();
    let next = due.load(Ordering::Relaxed);
    if now < next || due.compare_exchange(next, now + SWEEP, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return;
    }
    let ctx = ctx.clone();
    tokio::spawn(async move {
        loop {
            match ctx.write(None, move |tx| remove(tx, now - KEPT)).await {
                Ok(done) if done.value == SWEPT as usize => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(%error, "old idempotency keys could not be removed");
                    return;
                }
            }
        }
    });
}

fn remove(tx: &mut Tx<'_>, before: i64) -> Result<usize> {
    // The inner query has a name of its own, since MySQL takes no LIMIT without.
    let sql = Sql::new(
        "DELETE FROM \"idempotency_keys\" WHERE \"id\" IN (SELECT \"id\" FROM (SELECT \"id\" FROM \
         \"idempotency_keys\" WHERE \"created_at\" < ",
    );
    let sql = sql.value(before).text(" ORDER BY \"created_at\" LIMIT ").value(SWEPT).text(") AS \"old\")");
    db::execute(tx.conn, &sql)
}
