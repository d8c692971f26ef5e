//! Watching tasks. They change far too often for a record of each change, so
//! records are made only while somebody watches: the database's own triggers
//! make them, in the transaction of the change, where `task_watch` says so.
//! While it does not, they cost one look at a table of one row per statement.
//!
//! Whoever opens a stream says so there, for some minutes. A transaction that
//! had looked before may still be under way; so a marker is written after it,
//! and the stream begins when all that is older than the marker has ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Position, store};
use crate::ctx::{Core, new_id};
use crate::db::{self, AnyConnection, Cost, Dialect, Sql};
use crate::model::Meta;
use crate::{Error, Result};

/// How long records are made after the last watcher was heard of, and kept, in
/// microseconds: whoever was cut off can go on.
const HOLD: i64 = 600_000_000;
/// How often a watcher is heard of.
pub(super) const RENEW: Duration = Duration::from_secs(60);
/// How long a stream waits for older transactions to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Records that one transaction removes.
const CHUNK: i64 = 500;

/// Whether a type's changes have records only while somebody watches.
pub(super) fn on_demand(meta: &Meta) -> bool {
    meta.keyword() == "task"
}

/// Whether changes of a type are told at all.
pub(crate) fn is_watchable(meta: &Meta) -> bool {
    !meta.source.unlogged || on_demand(meta)
}

/// Has tasks' changes recorded for some minutes more; tells from where on they
/// are without gap.
pub(super) async fn record(core: &Arc<Core>) -> Result<Position> {
    let clock = core.tasks.clock().clone();
    let standing = core.db.write(None, move |conn| {
        let until = clock.wall(conn)?.timestamp_micros() + HOLD;
        let mut sql = Sql::new("UPDATE \"task_watch\" SET \"watched\" = TRUE, \"until\" = ").value(until);
        // Not for each of many streams that are opened at once.
        sql.push(" WHERE \"id\" = 1 AND \"until\" < ").bind(until - HOLD / 100);
        db::execute(conn, &sql)?;
        horizon(conn)
    });
    if let Some(at) = standing.await?.value {
        return Ok(at);
    }
    let marker = core.db.write(None, mark).await?.value;
    let end = Instant::now() + PATIENCE;
    while core.db.read(Cost::Bounded, store::end).await?.value < marker {
        if Instant::now() > end {
            let text =
                "a transaction of the database has been open for long; tasks can be watched when it ends";
            return Err(Error::unavailable(text, 5));
        }
        sleep(Duration::from_millis(5)).await;
    }
    let ready = move |conn: &mut AnyConnection| {
        let mut sql = Sql::new("UPDATE \"task_watch\" SET \"ready\" = TRUE, \"xid\" = ").value(marker.xid);
        sql.push(", \"seq\" = ").bind(marker.seq).push(" WHERE \"ready\" = FALSE AND \"watched\" = TRUE");
        db::execute(conn, &sql)?;
        horizon(conn)
    };
    core.db
        .write(None, ready)
        .await?
        .value
        .ok_or_else(|| Error::unavailable("tasks cannot be watched yet", 1))
}

/// From where on tasks' records are without gap; `None`: they are not.
fn horizon(conn: &mut AnyConnection) -> Result<Option<Position>> {
    let sql = Sql::new("SELECT \"xid\", \"seq\" FROM \"task_watch\" WHERE \"ready\" = TRUE");
    Ok(db::load_one::<(i64, i64)>(conn, sql)?.map(|(xid, seq)| Position { xid, seq }))
}

/// Whether all records of tasks after a position are there.
pub(super) fn is_whole(conn: &mut AnyConnection, after: Position) -> Result<bool> {
    Ok(horizon(conn)?.is_some_and(|it| it <= after))
}

/// Writes a record that is of no task, and tells where it stands.
fn mark(conn: &mut AnyConnection) -> Result<Position> {
    let id = new_id();
    let mut sql = Sql::new(
        "INSERT INTO \"ops_log\" (\"at\", \"obj_type\", \"obj_id\", \"obj_name\", \"obj_version\", \"action\", \
         \"owner_domain_id\", \"owner_project_id\", \"owner_user_id\", \"user_id\", \"user_name\", \"project_id\", \
         \"domain_id\", \"request_id\", \"task_id\", \"notes\", \"id\") VALUES (",
    );
    sql.bind(crate::now()).push(", 'task', '', '', 0, 'watch', '', '', '', '', '', '', '', '', '', '{}', ");
    sql.bind(&id).push(")");
    db::execute(conn, &sql)?;
    let mut sql = Sql::new("SELECT ").text(store::position(conn.dialect()));
    sql.push(" FROM \"ops_log\" WHERE \"obj_type\" = 'task' AND \"id\" = ").bind(&id);
    let (xid, seq) = db::load_one::<(i64, i64)>(conn, sql)?.unwrap_or_default();
    Ok(Position { xid, seq })
}

/// Ends the records when nobody has watched for long, and removes old ones.
pub(super) async fn keep(core: Arc<Core>) {
    loop {
        // Processes that started together need not do it together.
        sleep(RENEW.mul_f64(rand::random_range(0.9..1.1))).await;
        loop {
            let clock = core.tasks.clock().clone();
            let tidy = move |conn: &mut AnyConnection| {
                let now = clock.wall(conn)?.timestamp_micros();
                tidy(conn, now)
            };
            match core.db.write(None, tidy).await {
                Ok(done) if done.value == 0 => break,
                Ok(_) => sleep(Duration::from_millis(50)).await,
                Err(error) => {
                    tracing::warn!(%error, "old records of tasks could not be removed");
                    break;
                }
            }
        }
    }
}

/// Gives how many records went.
fn tidy(conn: &mut AnyConnection, now: i64) -> Result<usize> {
    let mut sql = Sql::new("UPDATE \"task_watch\" SET \"watched\" = FALSE, \"ready\" = FALSE");
    sql.push(" WHERE \"watched\" = TRUE AND \"until\" < ").bind(now);
    db::execute(conn, &sql)?;
    let dialect = conn.dialect();
    let mut sql = Sql::new("SELECT ").text(store::position(dialect));
    sql.push(" FROM \"ops_log\" WHERE \"obj_type\" = 'task' AND \"at\" < ").bind(now - HOLD);
    // The newest record stays: an idle log tells by it where it stands.
    sql.push(match dialect {
        Dialect::Sqlite | Dialect::Mysql => " AND \"seq\" < (SELECT max(\"seq\") FROM \"ops_log\")",
        Dialect::Postgres => {
            " AND (\"xid\", \"seq\") < (SELECT \"xid\", \"seq\" FROM \"ops_log\" ORDER BY \"xid\" DESC, \"seq\" DESC LIMIT 1)"
        }
    });
    sql.push(" ORDER BY \"at\" LIMIT ").bind(CHUNK);
    let old: Vec<(i64, i64)> = db::load(conn, sql)?;
    let Some(last) = old.iter().map(|&(xid, seq)| Position { xid, seq }).max() else { return Ok(0) };
    let mut sql = Sql::new("UPDATE \"task_watch\" SET \"xid\" = ").value(last.xid);
    sql.push(", \"seq\" = ").bind(last.seq).push(" WHERE ");
    match dialect {
        Dialect::Postgres => {
            sql.push("(\"xid\", \"seq\") < (").bind(last.xid).push(", ").bind(last.seq).push(")")
        }
        Dialect::Sqlite | Dialect::Mysql => sql.push("\"seq\" < ").bind(last.seq),
    };
    db::execute(conn, &sql)?;
    let mut sql = Sql::new("DELETE FROM \"ops_log\" WHERE \"obj_type\" = 'task' AND ");
    sql.push(if dialect == Dialect::Postgres { "(\"xid\", \"seq\") IN (" } else { "\"seq\" IN (" });
    for (i, (xid, seq)) in old.iter().enumerate() {
        sql.push(if i == 0 { "" } else { ", " });
        match dialect {
            Dialect::Postgres => sql.push("(").bind(*xid).push(", ").bind(*seq).push(")"),
            Dialect::Sqlite | Dialect::Mysql => sql.bind(*seq),
        };
    }
    sql.push(")");
    db::execute(conn, &sql)
}
