//! Moving tasks on: the results of stages, as many in one transaction as wait.

use serde::Serialize;

use super::{Claimed, Status, for_update, lanes, ready, text};
use crate::Result;
use crate::db::{self, AnyConnection, Dialect, Sql, Value};
use crate::task::clock::micros;
use crate::task::stage::{Reason, ReasonKind};

/// What becomes of the reason that a task has.
#[derive(Debug, Clone)]
pub(crate) enum Why {
    Keep,
    Clear,
    Set(Reason),
}

/// How a stage's attempt moves its task on.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    /// The status it has then.
    pub(crate) status: Status,
    /// The stage it stands at then; `None`: the same, for another attempt.
    pub(crate) stage: Option<String>,
    /// What that stage is given; the outer `None` leaves what is there.
    pub(crate) data: Option<Option<String>>,
    /// The stage that a retry by hand begins with; `None` leaves what is there.
    pub(crate) retry_stage: Option<String>,
    /// Why it goes there.
    pub(crate) why: Why,
    /// Whether the task is being cancelled from now on.
    pub(crate) cancelling: bool,
    /// Whether the attempt does not count.
    pub(crate) refund: bool,
    /// How long until it is due.
    pub(crate) delay: std::time::Duration,
    /// The progress that the stage told.
    pub(crate) progress: Option<f64>,
    /// And in words.
    pub(crate) progress_text: Option<String>,
    /// What the history says of the attempt.
    pub(crate) outcome: &'static str,
    /// Whether it may pass although somebody asked to cancel.
    pub(crate) regardless: bool,
    /// What is to be undone from now on; the outer `None` leaves what is there.
    pub(crate) undo: Option<Option<String>>,
    /// The status that it ends with once all is undone.
    pub(crate) ending: Option<&'static str>,
    /// Subtasks that it waits for.
    pub(crate) children: i64,
}

/// What became of a task that was to be moved on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advanced {
    /// Done; whether another task is ready because of it.
    Moved { woke: bool },
    /// Nothing was written: the worker does not hold it, or somebody asked to cancel.
    Refused,
}

/// All of a task's row that a move sets, as it is then.
#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    epoch: i64,
    next_epoch: i64,
    status: &'static str,
    stage: &'a str,
    retry_stage: &'a str,
    seq: i64,
    attempt: i64,
    data: Option<&'a str>,
    reason_kind: &'static str,
    reason: &'a str,
    cancelling: bool,
    progress: f64,
    progress_text: &'a str,
    run_at: i64,
    started_at: i64,
    ended: bool,
    ready: bool,
    due: bool,
    regardless: bool,
    undo: Option<&'a str>,
    ending: &'a str,
    children: i64,
    /// The attempt that ended.
    of_stage: &'a str,
    of_attempt: i64,
    of_started: i64,
    outcome: &'static str,
    note: &'a str,
}

impl<'a> Row<'a> {
    fn new(task: &'a Claimed, to: &'a Move, now: i64) -> Self {
        let running = to.status == Status::Running;
        let ready = matches!(to.status, Status::Queued | Status::Waiting);
        // A wait belongs to the stage that asked for it, and so does its token.
        let steps = to.stage.is_some() && to.status != Status::Waiting;
        let (kind, reason, note) = match &to.why {
            Why::Keep => (task.reason.kind.as_str(), task.reason.text.as_str(), ""),
            Why::Clear => ("", "", ""),
            Why::Set(why) => (why.kind.as_str(), why.text.as_str(), why.text.as_str()),
        };
        let kind = if reason.is_empty() && kind == ReasonKind::Failed.as_str() { "" } else { kind };
        let stage = to.stage.as_deref().unwrap_or(&task.stage);
        let attempt = match (&to.stage, to.refund) {
            (Some(_), _) => i64::from(running),
            (None, refund) => task.attempt - i64::from(refund),
        };
        Self {
            id: &task.id,
            epoch: task.epoch,
            next_epoch: task.epoch + i64::from(running),
            status: to.status.as_str(),
            stage,
            retry_stage: to.retry_stage.as_deref().unwrap_or(&task.retry_stage),
            seq: task.seq + i64::from(steps),
            attempt,
            data: to.data.as_ref().map_or(task.data.as_deref(), |it| it.as_deref()),
            reason_kind: kind,
            reason,
            cancelling: task.cancelling || to.cancelling,
            progress: to.progress.unwrap_or(task.progress),
            progress_text: to.progress_text.as_deref().unwrap_or(&task.progress_text),
            run_at: if ready { now + micros(to.delay) } else { task.run_at },
            started_at: if running { now } else { task.started_at },
            ended: to.status.is_ended(),
            ready,
            due: to.status == Status::Queued && to.delay.is_zero(),
            regardless: to.regardless,
            undo: to.undo.as_ref().map_or(task.undo.as_deref(), |it| it.as_deref()),
            ending: to.ending.unwrap_or(&task.ending),
            children: to.children,
            of_stage: &task.stage,
            of_attempt: task.attempt,
            of_started: task.started_at,
            outcome: to.outcome,
            note,
        }
    }
}

/// Moves tasks on that this worker still holds, in their ids' order.
pub(crate) fn advance(
    conn: &mut AnyConnection,
    worker: &str,
    moves: &[(&Claimed, &Move)],
    now: i64,
) -> Result<Vec<Advanced>> {
    let rows: Vec<Row<'_>> = moves.iter().map(|(task, to)| Row::new(task, to, now)).collect();
    let moved = match conn.dialect() {
        Dialect::Postgres => at_once(conn, worker, &rows, now)?,
        Dialect::Sqlite | Dialect::Mysql => {
            let moved: Result<Vec<_>> = rows.iter().map(|row| one(conn, worker, row, now)).collect();
            moved?
        }
    };
    let mut results = Vec::with_capacity(moved.len());
    for ((task, to), ended) in moves.iter().zip(&moved) {
        results.push(match ended {
            None => Advanced::Refused,
            Some(ended) if to.status.is_ended() => {
                Advanced::Moved { woke: settle(conn, task, to, ended, now)? }
            }
            Some(_) => Advanced::Moved { woke: false },
        });
    }
    Ok(results)
}

/// What the end of a task must know.
#[derive(Debug, Clone, Copy)]
struct Ended {
    followers: i64,
    open_children: i64,
}

/// What the end of a task brings about; whether another may be ready now.
fn settle(conn: &mut AnyConnection, task: &Claimed, to: &Move, ended: &Ended, now: i64) -> Result<bool> {
    if task.members > 0 {
        lanes::end_members(conn, &task.id, to.status.as_str(), now)?;
    }
    if ended.followers > 0 {
        lanes::promote(conn, &task.lane, now)?;
    }
    if ended.open_children > 0 {
        let why = Reason::cancelled("the task that it was a part of has ended");
        super::cancel_children(conn, &task.id, &why, now)?;
    }
    if let Some(parent) = &task.parent {
        lanes::child_ended(conn, parent, task.parent_seq, now)?;
    }
    let alone = task.members + ended.followers + ended.open_children == 0 && task.parent.is_none();
    Ok(!alone)
}

/// All rows in one statement. It finds them by one walk of the array through
/// the key; that the rows are matched by an expression keeps PostgreSQL from
/// going through all of the array once more for each of them, and that it cannot
/// guess how few they are (`CASE`) keeps it from comparing each with each.
fn at_once(conn: &mut AnyConnection, worker: &str, rows: &[Row<'_>], now: i64) -> Result<Vec<Option<Ended>>> {
    let json = serde_json::to_string(rows).map_err(crate::Error::internal)?;
    let mut sql = Sql::new("WITH m AS MATERIALIZED (SELECT * FROM json_to_recordset(").value(json);
    sql.push(
        "::json) AS m (id text, epoch bigint, next_epoch bigint, status text, stage text, retry_stage text, \
         seq bigint, attempt bigint, data text, reason_kind text, reason text, cancelling boolean, \
         progress double precision, progress_text text, run_at bigint, started_at bigint, ended boolean, \
         ready boolean, due boolean, regardless boolean, undo text, ending text, children bigint, \
         of_stage text, of_attempt bigint, of_started bigint, outcome text, note text)), w AS (SELECT ",
    );
    sql.bind(worker).push("::text AS id, ").bind(now).push(
        "::bigint AS now), moved AS (UPDATE \"tasks\" t SET \"version\" = t.\"version\" + 1, \"updated_at\" = w.now, \
         \"status\" = m.status, \"stage\" = m.stage, \"retry_stage\" = m.retry_stage, \"seq\" = m.seq, \
         \"attempt\" = m.attempt, \"data\" = m.data, \"reason_kind\" = m.reason_kind, \"reason\" = m.reason, \
         \"cancelling\" = m.cancelling, \"progress\" = m.progress, \"progress_text\" = m.progress_text, \
         \"run_at\" = m.run_at, \"started_at\" = m.started_at, \"epoch\" = m.next_epoch, \"undo\" = m.undo, \
         \"ending\" = m.ending, \"open_children\" = CASE WHEN m.status = 'waiting' THEN m.children ELSE t.\"open_children\" END, \
         \"worker_id\" = CASE WHEN m.status = 'running' THEN t.\"worker_id\" END, \
         \"active_key\" = CASE WHEN m.ended THEN NULL ELSE t.\"active_key\" END, \
         \"unique_key\" = CASE WHEN m.ended THEN NULL ELSE t.\"unique_key\" END, \
         \"ended_at\" = CASE WHEN m.ended THEN w.now END FROM m, w \
         WHERE t.\"id\" = ANY(ARRAY(SELECT m.id FROM m)) AND t.\"id\" || '' = m.id AND t.\"epoch\" = m.epoch \
         AND CASE WHEN t.\"worker_id\" = w.id AND t.\"status\" = 'running' \
         THEN m.regardless OR t.\"cancel_requested\" = FALSE ELSE FALSE END \
         RETURNING t.\"id\", t.\"queue\", t.\"followers\", t.\"open_children\", m.epoch AS of_epoch, m.of_stage, \
         m.of_attempt, m.of_started, m.outcome, m.note, m.ready, m.due, m.run_at AS next_at, w.id AS by, w.now), \
         log AS (INSERT INTO \"task_history\" (\"task_id\", \"epoch\", \"stage\", \"attempt\", \"worker_id\", \
         \"started_at\", \"ended_at\", \"outcome\", \"reason\") SELECT \"id\", of_epoch, of_stage, of_attempt, \
         by, of_started, now, outcome, note FROM moved), \
         ready AS (INSERT INTO \"task_ready\" (\"task_id\", \"queue\", \"due\", \"run_at\") SELECT \"id\", \"queue\", \
         due, next_at FROM moved WHERE ready) \
         SELECT \"id\", \"followers\", \"open_children\" FROM moved",
    );
    let moved: std::collections::HashMap<String, Ended> = db::load::<(String, i64, i64)>(conn, sql)?
        .into_iter()
        .map(|(id, followers, open_children)| (id, Ended { followers, open_children }))
        .collect();
    Ok(rows.iter().map(|row| moved.get(row.id).copied()).collect())
}

fn one(conn: &mut AnyConnection, worker: &str, row: &Row<'_>, now: i64) -> Result<Option<Ended>> {
    let mut sql =
        Sql::new("UPDATE \"tasks\" SET \"version\" = \"version\" + 1, \"updated_at\" = ").value(now);
    for (column, value) in [
        (", \"status\" = ", row.status),
        (", \"stage\" = ", row.stage),
        (", \"retry_stage\" = ", row.retry_stage),
        (", \"reason_kind\" = ", row.reason_kind),
        (", \"reason\" = ", row.reason),
        (", \"progress_text\" = ", row.progress_text),
        (", \"ending\" = ", row.ending),
    ] {
        sql.push(column).bind(value);
    }
    for (column, value) in [
        (", \"seq\" = ", row.seq),
        (", \"attempt\" = ", row.attempt),
        (", \"run_at\" = ", row.run_at),
        (", \"started_at\" = ", row.started_at),
        (", \"epoch\" = ", row.next_epoch),
    ] {
        sql.push(column).bind(value);
    }
    sql.push(", \"data\" = ").bind(text(row.data)).push(", \"undo\" = ").bind(text(row.undo));
    sql.push(", \"cancelling\" = ").bind(row.cancelling);
    sql.push(", \"progress\" = ").bind(Value::Float(Some(row.progress)));
    if row.ended {
        sql.push(", \"active_key\" = ")
            .bind(Value::Text(None))
            .push(", \"unique_key\" = ")
            .bind(Value::Text(None));
        sql.push(", \"ended_at\" = ").bind(now);
    }
    // Those that it waited for in vain are its own until it ends.
    if row.status == Status::Waiting.as_str() {
        sql.push(", \"open_children\" = ").bind(row.children);
    }
    if row.status != Status::Running.as_str() {
        sql.push(", \"worker_id\" = ").bind(Value::Text(None));
    }
    hold(&mut sql, worker, row.id, row.epoch);
    if !row.regardless {
        sql.push(" AND \"cancel_requested\" = FALSE");
    }
    const OF: &str = "\"followers\", \"open_children\"";
    let ended = if conn.dialect() == Dialect::Sqlite {
        sql.push(" RETURNING ").push(OF);
        db::load_one::<(i64, i64)>(conn, sql)?
    } else if db::execute(conn, &sql)? == 0 {
        None
    } else {
        let sql = Sql::new("SELECT ").text(OF).text(" FROM \"tasks\" WHERE \"id\" = ").value(row.id);
        db::load_one::<(i64, i64)>(conn, sql)?
    };
    let Some((followers, open_children)) = ended else { return Ok(None) };
    let mut log = Sql::new(
        "INSERT INTO \"task_history\" (\"task_id\", \"epoch\", \"stage\", \"attempt\", \"worker_id\", \
         \"started_at\", \"ended_at\", \"outcome\", \"reason\") VALUES (",
    );
    log.bind(row.id).push(", ").bind(row.epoch).push(", ").bind(row.of_stage).push(", ").bind(row.of_attempt);
    log.push(", ").bind(worker).push(", ").bind(row.of_started).push(", ").bind(now);
    log.push(", ").bind(row.outcome).push(", ").bind(row.note).push(")");
    db::execute(conn, &log)?;
    if row.ready {
        ready(conn, row.id, row.due)?;
    }
    Ok(Some(Ended { followers, open_children }))
}

/// Only while this worker holds the task, by this very claim.
fn hold<'a>(sql: &mut Sql<'a>, worker: &'a str, id: &'a str, epoch: i64) {
    sql.push(" WHERE \"id\" = ").bind(id).push(" AND \"epoch\" = ").bind(epoch);
    sql.push(" AND \"worker_id\" = ").bind(worker).push(" AND \"status\" = 'running'");
}

/// Whether somebody asked to cancel a task that this worker holds; `None`: it
/// does not hold it.
pub(crate) fn held(conn: &mut AnyConnection, worker: &str, task: &Claimed) -> Result<Option<bool>> {
    let mut sql = Sql::new("SELECT \"cancel_requested\" FROM \"tasks\"");
    hold(&mut sql, worker, &task.id, task.epoch);
    sql.push(for_update(conn));
    Ok(db::load_one::<(bool,)>(conn, sql)?.map(|(it,)| it))
}

impl Move {
    /// The task as it is after the move, for the worker that goes on with it.
    pub(crate) fn apply(&self, task: &Claimed, now: i64) -> Claimed {
        let row = Row::new(task, self, now);
        Claimed {
            stage: row.stage.to_owned(),
            retry_stage: row.retry_stage.to_owned(),
            data: row.data.map(ToOwned::to_owned),
            reason: match &self.why {
                Why::Set(why) => why.clone(),
                Why::Keep => task.reason.clone(),
                Why::Clear => Reason::new(ReasonKind::Failed, ""),
            },
            attempt: row.attempt,
            epoch: row.next_epoch,
            seq: row.seq,
            cancelling: row.cancelling,
            started_at: row.started_at,
            undo: row.undo.map(ToOwned::to_owned),
            ending: row.ending.to_owned(),
            progress: row.progress,
            progress_text: row.progress_text.to_owned(),
            ..task.clone()
        }
    }
}
