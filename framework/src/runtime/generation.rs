//! How the processes on one database come to know the same definitions: one
//! number there, raised by each change in its own transaction. The process
//! that changed takes over at its commit, the others within a second, or
//! sooner where a request meets what they do not know.

use std::sync::Arc;
use std::time::Duration;

use super::ResourceType;
use crate::ctx::{Core, Ctx, Tx};
use crate::db::{self, AnyConnection, Cost, FromRow, RowReader, Sql};
use crate::model::Meta;
use crate::webhook::Webhook;
use crate::{Error, Result};

/// The class of the error of a statement that knew an old definition.
pub(crate) const STALE: &str = "StaleResourceTypeError";

/// Whether it is the error of a statement that knew an old definition: a type
/// has changed or gone since the request was read.
pub(crate) fn is_stale(error: &Error) -> bool {
    error.class_name() == STALE
}

/// It.
pub(crate) fn stale() -> Error {
    Error::unavailable("the resource type has just changed; try again", 1).class(STALE)
}

/// Raises the generation, and so waits for other changes to commit.
pub(crate) fn raise(tx: &mut Tx<'_>) -> Result<i64> {
    let sql = Sql::new("UPDATE \"runtime_generation\" SET \"generation\" = \"generation\" + 1");
    super::table::briefly(tx, &sql)?;
    read(tx.conn)
}

fn read(conn: &mut AnyConnection) -> Result<i64> {
    let sql = Sql::new("SELECT \"generation\" FROM \"runtime_generation\"");
    Ok(db::load_one::<(i64,)>(conn, sql)?.map_or(0, |(it,)| it))
}

struct Row<T>(T);

impl<T: crate::model::Record> FromRow for Row<T> {
    fn from_row(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        T::read(row).map(Self)
    }
}

fn all<T: crate::model::Record>(conn: &mut AnyConnection) -> Result<Vec<T>> {
    let meta = T::meta();
    let sql = Sql::new("SELECT ")
        .text(meta.columns())
        .text(" FROM \"")
        .text(meta.table())
        .text("\" ORDER BY \"created_at\", \"id\"");
    Ok(db::load::<Row<T>>(conn, sql)?.into_iter().map(|row| row.0).collect())
}

/// All definitions.
pub(super) fn rows(conn: &mut AnyConnection) -> Result<Vec<ResourceType>> {
    all(conn)
}

/// All that is defined at run time, as of a generation.
struct Defined {
    generation: i64,
    types: Vec<ResourceType>,
    hooks: Vec<Webhook>,
}

/// The generation is read first: what comes after it may be newer, never older.
fn defined(conn: &mut AnyConnection) -> Result<Defined> {
    Ok(Defined { generation: read(conn)?, types: all(conn)?, hooks: all(conn)? })
}

fn install(core: &Core, it: Defined) {
    core.registry.install(it.generation, |known, is_cached| {
        let build =
            |row: &ResourceType| known(&row.table_name).unwrap_or_else(|| super::of::build(row, is_cached));
        it.types.iter().map(build).collect()
    });
    core.hooks.install(it.generation, it.hooks);
}

/// Has this process take over what the transaction changed, once it is on disk.
pub(crate) fn publish(tx: &mut Tx<'_>) -> Result<()> {
    let defined = defined(tx.conn)?;
    let core = tx.ctx.core().clone();
    db::after_commit(move || install(&core, defined));
    Ok(())
}

/// Takes over what other processes changed; tells whether there was anything.
///
/// # Errors
/// What the database says.
pub async fn refresh(core: &Arc<Core>) -> Result<bool> {
    let known = core.registry.generation();
    let ctx = Ctx::system(core);
    let done =
        ctx.read(
            Cost::Bounded,
            move |tx| {
                if read(tx.conn)? == known { Ok(None) } else { defined(tx.conn).map(Some) }
            },
        );
    let Some(defined) = done.await?.value else { return Ok(false) };
    install(core, defined);
    Ok(true)
}

/// Follows other processes' changes for as long as the process lives, and
/// clears away old deliveries of webhooks and tables that no type has.
pub async fn follow(core: Arc<Core>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ticks: u64 = 0;
    loop {
        tick.tick().await;
        if let Err(error) = refresh(&core).await {
            tracing::warn!(%error, "definitions of types could not be read");
        }
        if ticks.is_multiple_of(3600)
            && let Err(error) = crate::webhook::tidy(&core).await
        {
            tracing::warn!(%error, "old deliveries of webhooks could not be cleared away");
        }
        if ticks.is_multiple_of(3600)
            && let Err(error) = super::table::sweep(&core).await
        {
            tracing::warn!(%error, "tables that no resource type has could not be dropped");
        }
        ticks += 1;
    }
}

/// The metadata of all types that were defined at run time: for checks of the
/// database without a process around it.
///
/// # Errors
/// What the database says.
pub fn metas(conn: &mut AnyConnection) -> Result<Vec<&'static Meta>> {
    let build = |row: &ResourceType| super::of::build(row, |_| false).handler.meta();
    Ok(rows(conn)?.iter().map(build).collect())
}
