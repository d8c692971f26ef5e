//! Housekeeping: the history, stuck tasks, and the end of old ones.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::for_update;
use crate::Result;
use crate::db::{self, AnyConnection, FromRow, RowReader, Sql, Value};

/// One thing in a task's life, for people.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    at: DateTime<Utc>,
    #[serde(flatten)]
    what: What,
}

/// What it was.
#[derive(Debug, Serialize)]
#[serde(tag = "what", rename_all = "lowercase")]
enum What {
    /// The task was made, by whom.
    Created { by: String },
    /// An attempt at a stage.
    Attempt {
        stage: String,
        attempt: i64,
        worker_id: String,
        started_at: Option<DateTime<Utc>>,
        ended_at: DateTime<Utc>,
        /// How long it took, in seconds.
        seconds: f64,
        outcome: String,
        reason: String,
    },
    /// A callback was taken, or kept for the wait that it came before.
    Callback {},
    /// Somebody asked to cancel it.
    Cancel { by: String },
    /// Somebody had it run again.
    Retry { by: String },
    /// It was stuck, and was set right.
    Repair {},
}

/// An attempt's row.
struct Attempt(Entry);

impl FromRow for Attempt {
    fn from_row(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        let (stage, attempt, worker_id) = (row.get()?, row.get()?, row.get()?);
        let (started_at, ended_at): (Option<DateTime<Utc>>, DateTime<Utc>) = (row.get()?, row.get()?);
        let took = started_at.map_or(0, |it| (ended_at - it).num_microseconds().unwrap_or(0));
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let seconds = took.max(0) as f64 / 1e6;
        let (outcome, reason) = (row.get()?, row.get()?);
        let what =
            What::Attempt { stage, attempt, worker_id, started_at, ended_at, seconds, outcome, reason };
        Ok(Self(Entry { at: started_at.unwrap_or(ended_at), what }))
    }
}

/// Entries of one sort that a get shows at most, the last: attempts at a poll
/// can be many.
const SHOWN: i64 = 100;

/// What was done to a task beside its stages, as its notes say it.
pub(crate) enum Note {
    Cancel,
    Retry,
    Repair,
}

impl Note {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Repair => "repair",
        }
    }
}

/// Notes what was done to a task, and by whom.
pub(crate) fn note(conn: &mut AnyConnection, id: &str, what: &Note, by: &str, now: i64) -> Result<()> {
    let mut sql = Sql::new(
        "INSERT INTO \"task_notes\" (\"id\", \"task_id\", \"at\", \"what\", \"user_name\") VALUES (",
    );
    sql.bind(crate::new_id()).push(", ").bind(id).push(", ").bind(now).push(", ").bind(what.as_str());
    sql.push(", ").bind(by).push(")");
    db::execute(conn, &sql)?;
    Ok(())
}

/// A task's life, in order.
pub(crate) fn history(
    conn: &mut AnyConnection,
    id: &str,
    made_at: DateTime<Utc>,
    by: String,
) -> Result<Vec<Entry>> {
    let mut sql = Sql::new(
        "SELECT \"stage\", \"attempt\", \"worker_id\", \"started_at\", \"ended_at\", \"outcome\", \"reason\" \
         FROM \"task_history\" WHERE \"task_id\" = ",
    );
    sql.bind(id).push(" ORDER BY \"epoch\" DESC LIMIT ").bind(SHOWN);
    let mut life: Vec<Entry> = db::load::<Attempt>(conn, sql)?.into_iter().rev().map(|it| it.0).collect();
    let mut sql = Sql::new("SELECT \"received_at\" FROM \"task_callbacks\" WHERE \"task_id\" = ").value(id);
    sql.push(" ORDER BY \"received_at\" DESC LIMIT ").bind(SHOWN);
    for (at,) in db::load::<(DateTime<Utc>,)>(conn, sql)? {
        life.push(Entry { at, what: What::Callback {} });
    }
    let mut sql =
        Sql::new("SELECT \"at\", \"what\", \"user_name\" FROM \"task_notes\" WHERE \"task_id\" = ").value(id);
    sql.push(" ORDER BY \"id\" DESC LIMIT ").bind(SHOWN);
    for (at, what, by) in db::load::<(DateTime<Utc>, String, String)>(conn, sql)? {
        let what = match what.as_str() {
            "cancel" => What::Cancel { by },
            "retry" => What::Retry { by },
            _ => What::Repair {},
        };
        life.push(Entry { at, what });
    }
    life.sort_by_key(|it| it.at);
    // First, also where the request's clock was ahead of the engine's.
    life.insert(0, Entry { at: made_at, what: What::Created { by } });
    Ok(life)
}

/// Makes a running task, locked, ready, and says so in its history.
pub(super) fn requeue(
    conn: &mut AnyConnection,
    id: &str,
    now: i64,
    outcome: &str,
    refund: bool,
) -> Result<()> {
    let mut sql = Sql::new(
        "INSERT INTO \"task_history\" (\"task_id\", \"epoch\", \"stage\", \"attempt\", \"worker_id\", \
         \"started_at\", \"ended_at\", \"outcome\", \"reason\") SELECT \"id\", \"epoch\", \"stage\", \"attempt\", \
         coalesce(\"worker_id\", ''), \"started_at\", ",
    );
    sql.bind(now).push(", ").bind(outcome).push(", '' FROM \"tasks\" WHERE \"id\" = ").bind(id);
    db::execute(conn, &sql)?;
    let mut sql = Sql::new("UPDATE \"tasks\" SET \"status\" = 'queued', \"version\" = \"version\" + 1");
    sql.push(", \"worker_id\" = ").bind(Value::Text(None));
    sql.push(", \"attempt\" = \"attempt\" - ").bind(i64::from(refund));
    sql.push(", \"run_at\" = ").bind(now).push(", \"updated_at\" = ").bind(now);
    sql.push(" WHERE \"id\" = ").bind(id);
    db::execute(conn, &sql)?;
    super::ready(conn, id, true)
}

/// A running task, for who looks whether it is stuck.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) id: String,
    pub(crate) epoch: i64,
    pub(crate) task_name: String,
    pub(crate) stage: String,
    pub(crate) age: Duration,
    /// Whether its worker has a row.
    pub(crate) leased: bool,
}

impl FromRow for Running {
    fn from_row(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        Ok(Self {
            id: row.get()?,
            epoch: row.get()?,
            task_name: row.get()?,
            stage: row.get()?,
            age: Duration::from_micros(u64::try_from(row.get::<i64>()?).unwrap_or(0)),
            leased: row.get()?,
        })
    }
}

/// The tasks that have run for longer than `age` microseconds.
pub(crate) fn running(conn: &mut AnyConnection, now: i64, age: i64) -> Result<Vec<Running>> {
    let mut sql = Sql::new("SELECT \"id\", \"epoch\", \"task_name\", \"stage\", ").value(now);
    sql.push(" - \"started_at\", EXISTS (SELECT 1 FROM \"workers\" w WHERE w.\"id\" = \"worker_id\")");
    sql.push(
        " FROM \"tasks\" WHERE \"active_key\" IS NOT NULL AND \"status\" = 'running' AND \"started_at\" < ",
    );
    sql.bind(now - age);
    db::load(conn, sql)
}

/// The tasks that run for a worker, and their epochs.
pub(crate) fn holding(conn: &mut AnyConnection, worker: &str) -> Result<Vec<(String, i64)>> {
    let mut sql = Sql::new("SELECT \"id\", \"epoch\" FROM \"tasks\" WHERE \"active_key\" IS NOT NULL");
    sql.push(" AND \"status\" = 'running' AND \"worker_id\" = ").bind(worker);
    db::load(conn, sql)
}

/// Takes one task from a worker that does not end it.
pub(crate) fn take_one(conn: &mut AnyConnection, id: &str, epoch: i64, now: i64) -> Result<bool> {
    let mut sql = Sql::new("SELECT \"id\" FROM \"tasks\" WHERE \"id\" = ").value(id);
    sql.push(" AND \"epoch\" = ").bind(epoch).push(" AND \"status\" = 'running'").push(for_update(conn));
    if db::load_one::<(String,)>(conn, sql)?.is_none() {
        return Ok(false);
    }
    requeue(conn, id, now, "lost", false)?;
    Ok(true)
}

/// Deletes tasks that ended before a time, up to `limit`, with all that is theirs.
pub(crate) fn forget(conn: &mut AnyConnection, before: i64, limit: i64) -> Result<usize> {
    let mut sql = Sql::new("SELECT \"id\" FROM \"tasks\" WHERE \"ended_at\" < ").value(before);
    sql.push(" ORDER BY \"ended_at\" LIMIT ").bind(limit).push(conn.dialect().skip_locked());
    let ids: Vec<(String,)> = db::load(conn, sql)?;
    for (id,) in &ids {
        for (table, column) in [
            ("task_history", "task_id"),
            ("task_callbacks", "task_id"),
            ("task_notes", "task_id"),
            ("tasks", "id"),
        ] {
            let sql = Sql::new("DELETE FROM \"")
                .text(table)
                .text("\" WHERE \"")
                .text(column)
                .text("\" = ")
                .value(id);
            db::execute(conn, &sql)?;
        }
    }
    Ok(ids.len())
}
