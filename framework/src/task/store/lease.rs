//! Worker processes: a row each while they hold tasks, and a count of beats
//! in it. Whoever watches the count stand still for long enough, by a clock of
//! its own, may take the process for dead; nobody compares clocks.

use super::for_update;
use crate::Result;
use crate::db::{self, AnyConnection, Sql};

/// A worker process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// Machine, boot and process namespace: where a pid means one process.
    pub(crate) host: String,
    pub(crate) pid: i64,
    /// When the kernel started it, which tells it from a later one of the same pid.
    pub(crate) started: i64,
}

/// A worker process as others see it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) id: String,
    pub(crate) of: Process,
    /// How often its heart has beaten.
    pub(crate) beat: i64,
}

/// Begins a worker's lease, or lengthens it.
pub(crate) fn lease(conn: &mut AnyConnection, worker: &str, of: &Process, now: i64) -> Result<()> {
    if renew(conn, worker, now)? {
        return Ok(());
    }
    let mut sql = Sql::new(
        "INSERT INTO \"workers\" (\"id\", \"host\", \"pid\", \"pid_started\", \"started_at\", \"beat\", \
         \"seen_at\") VALUES (",
    );
    sql.bind(worker).push(", ").bind(&of.host).push(", ").bind(of.pid).push(", ").bind(of.started);
    // A count that no earlier row of this worker had: who watched that one
    // must not take this for its beat.
    sql.push(", ").bind(now).push(", ").bind(now).push(", ").bind(now).push(")");
    db::execute(conn, &sql)?;
    Ok(())
}

/// Lengthens a worker's lease; `false`: its row is gone, and its tasks with it.
/// One that was late but whose row is still there was taken up by nobody, since
/// who takes it up removes it.
pub(crate) fn renew(conn: &mut AnyConnection, worker: &str, now: i64) -> Result<bool> {
    let mut sql = Sql::new("UPDATE \"workers\" SET \"beat\" = \"beat\" + 1, \"seen_at\" = ").value(now);
    sql.push(" WHERE \"id\" = ").bind(worker);
    Ok(db::execute(conn, &sql)? == 1)
}

/// Keeps a worker's row to the transaction's end; `false`: it is gone. Who
/// takes the worker for dead waits for that, and so sees what it claimed
/// although it may have been killed before it knew.
pub(crate) fn keep(conn: &mut AnyConnection, worker: &str) -> Result<bool> {
    let mut sql = Sql::new("SELECT \"beat\" FROM \"workers\" WHERE \"id\" = ").value(worker);
    sql.push(conn.dialect().for_key_share());
    Ok(db::load_one::<(i64,)>(conn, sql)?.is_some())
}

/// All worker processes that have a row.
pub(crate) fn seen(conn: &mut AnyConnection) -> Result<Vec<Seen>> {
    let sql = Sql::new("SELECT \"id\", \"host\", \"pid\", \"pid_started\", \"beat\" FROM \"workers\"");
    let rows: Vec<(String, String, i64, i64, i64)> = db::load(conn, sql)?;
    let seen = |(id, host, pid, started, beat)| Seen { id, of: Process { host, pid, started }, beat };
    Ok(rows.into_iter().map(seen).collect())
}

/// Takes a worker's tasks from it: they are ready at once. With a beat, only
/// if it has not beaten since. `refund`: the attempt does not count, as when
/// the worker gives them back itself. Tells which, if it did.
pub(crate) fn take_back(
    conn: &mut AnyConnection,
    worker: &str,
    beat: Option<i64>,
    now: i64,
    outcome: &str,
    refund: bool,
) -> Result<Option<usize>> {
    // First its row, so that it can neither beat nor claim any more.
    let mut sql = Sql::new("DELETE FROM \"workers\" WHERE \"id\" = ").value(worker);
    if let Some(beat) = beat {
        sql.push(" AND \"beat\" = ").bind(beat);
    }
    if db::execute(conn, &sql)? == 0 && beat.is_some() {
        return Ok(None);
    }
    let mut sql = Sql::new(
        "SELECT \"id\" FROM \"tasks\" WHERE \"active_key\" IS NOT NULL AND \"status\" = 'running' AND \"worker_id\" = ",
    );
    sql.bind(worker).push(" ORDER BY \"id\"").push(for_update(conn));
    let ids: Vec<(String,)> = db::load(conn, sql)?;
    for (id,) in &ids {
        super::keep::requeue(conn, id, now, outcome, refund)?;
    }
    Ok(Some(ids.len()))
}
