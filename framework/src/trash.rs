//! The trash: a delete is a mark at first. What is marked is hidden from
//! lists, takes no changes and holds no name; `undelete` brings it back, a
//! second delete, `?purge=true` or the [`sweep`] removes it for good, through
//! the type's hooks like any delete.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::ctx::{Core, Ctx, Tx, snapshot};
use crate::db::{self, Cost, Sql};
use crate::dispatch::IfMatch;
use crate::model::builtin::BuiltIn;
use crate::model::{ActionInput, ActionOutput, AnyRow, Meta, Record, Trash, read_input};
use crate::registry::Type;
use crate::webhook::admit;
use crate::{Error, Kind, Nothing, Result};

/// What the log calls the first delete of a row, which is a mark.
pub(crate) const PENDING_DELETE: &str = "pending-delete";

/// The one action that what is marked takes.
pub(crate) const UNDELETE: &str = "undelete";

pub(crate) static ACTIONS: [BuiltIn; 1] = [BuiltIn::item(
    Meta::trash,
    UNDELETE,
    undelete,
    "Takes it out of the trash. Refused when its name was taken meanwhile.",
)];

/// Refuses to change what is in the trash.
pub(crate) fn expect_living<T: Record>(row: &T) -> Result<()> {
    if T::meta().trash() && row.find_mixin::<Trash>().is_some_and(|it| it.pending_deleted) {
        let text =
            format!("{} {} is in the trash; undelete it first", T::meta().keyword(), row.base().anon().id);
        return Err(Error::conflict(text).class("PendingDeletedError"));
    }
    Ok(())
}

/// Marks a row that is not marked yet; `false`: it is to be deleted for good.
pub(crate) fn mark<T: Record>(tx: &mut Tx<'_>, row: &mut T) -> Result<bool> {
    if !T::meta().trash() {
        return Ok(false);
    }
    let before = snapshot(row);
    let now = tx.now();
    let found = row.mixin_mut(std::any::TypeId::of::<Trash>()).and_then(<dyn std::any::Any>::downcast_mut);
    match found {
        Some(Trash { pending_deleted: true, .. }) | None => return Ok(false),
        Some(trash) => *trash = Trash { pending_deleted: true, pending_deleted_at: Some(now) },
    }
    tx.expect_unused(T::meta(), &row.base().anon().id)?;
    tx.save_and_log(row, PENDING_DELETE, &before)?;
    Ok(true)
}

fn undelete(row: &mut dyn AnyRow, tx: &mut Tx<'_>, input: &ActionInput) -> Result<ActionOutput> {
    let _: Nothing = read_input(input)?;
    let before = row.values();
    let trash = row.expect::<Trash>()?;
    if !trash.pending_deleted {
        let text = format!("{} {} is not in the trash", row.meta().keyword(), row.id());
        return Err(Error::conflict(text).class("NotPendingDeletedError"));
    }
    *trash = Trash::default();
    row.save(tx, UNDELETE, &before, None)?;
    Ok(ActionOutput::Row)
}

/// Rows deleted at once.
const BATCH: i64 = 100;

/// Removes what lies in the trash for longer than `keep`, for as long as the
/// process lives. Several processes do not get in each other's way.
pub async fn sweep(core: Arc<Core>, keep: Duration) {
    // Often enough that nothing stays much longer than it may.
    let every = (keep / 10).clamp(Duration::from_secs(1), Duration::from_secs(600));
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match sweep_once(&core, keep).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, "emptied the trash"),
            Err(error) => tracing::warn!(%error, "the trash could not be emptied"),
        }
    }
}

/// One round of [`sweep`]; tells how many rows are gone.
///
/// # Errors
/// What the database says.
pub async fn sweep_once(core: &Arc<Core>, keep: Duration) -> Result<usize> {
    let keep = chrono::Duration::from_std(keep).unwrap_or(chrono::Duration::MAX);
    let Some(before) = crate::now().checked_sub_signed(keep) else { return Ok(0) };
    let mut gone = 0;
    for of in core.registry.types().filter(|of| of.handler.meta().trash()) {
        gone += sweep_type(core, of, before).await?;
    }
    Ok(gone)
}

async fn sweep_type(core: &Arc<Core>, of: &Type, before: DateTime<Utc>) -> Result<usize> {
    let ctx = Ctx::system(core);
    let meta = of.handler.meta();
    let mut after = (0_i64, String::new());
    let mut gone = 0;
    loop {
        let from = after.clone();
        let found = ctx.read(Cost::Bounded, move |tx| expired(tx, meta, before, &from)).await?.value;
        let last = found.len() < usize::try_from(BATCH).unwrap_or(usize::MAX);
        for (id, version, since) in found {
            after = (since, id.clone());
            // Whoever takes it out meanwhile raises its version.
            let known = IfMatch::Versions(vec![version]);
            let row = id.clone();
            match purge(&ctx, of, row, known).await {
                Ok(_) => gone += 1,
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::PreconditionFailed) => {}
                Err(error) => tracing::warn!(%error, resource = meta.keyword(), id, "stays in the trash"),
            }
        }
        if last {
            return Ok(gone);
        }
    }
}

async fn purge(ctx: &Ctx, of: &Type, id: String, known: IfMatch) -> Result<()> {
    let handler = of.handler;
    let it = admit(ctx.clone(), of, "delete", Some(id), actix_web::web::Bytes::new(), known).await?;
    it.ctx.write(None, move |tx| handler.delete(tx, &it.id, &it.known, true)).await?;
    Ok(())
}

/// Id, version and moment of the next that have been there too long.
fn expired(
    tx: &mut Tx<'_>,
    meta: &'static Meta,
    before: DateTime<Utc>,
    (since, id): &(i64, String),
) -> Result<Vec<(String, i64, i64)>> {
    let mut sql = Sql::new("SELECT \"id\", \"version\", \"pending_deleted_at\" FROM \"");
    sql.push(meta.table())
        .push("\" WHERE \"pending_deleted\" = TRUE AND \"pending_deleted_at\" < ")
        .bind(before);
    sql.push(" AND (\"pending_deleted_at\" > ").bind(*since);
    sql.push(" OR (\"pending_deleted_at\" = ")
        .bind(*since)
        .push(" AND \"id\" > ")
        .bind(id.clone())
        .push("))");
    if meta.has("deleted") {
        sql.push(" AND \"deleted\" = FALSE");
    }
    sql.push(" ORDER BY \"pending_deleted_at\", \"id\" LIMIT ").bind(BATCH);
    db::load(tx.conn, sql)
}
