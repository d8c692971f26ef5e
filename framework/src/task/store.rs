//! All the engine's SQL, and all in it that differs between the databases.
//!
//! Locks are taken in one order: object, task, ready row. A claim waits for
//! none of them: it skips what somebody holds. The database's clock decides
//! leases, due times and ends of waits.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::TWIN;
use super::stage::{Reason, ReasonKind};
use crate::Result;
use crate::db::{self, AnyConnection, Dialect, FromRow, RowReader, Sql, Value};

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Queued,
    Running,
    Waiting,
    Done,
    Failed,
    Cancelled,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn parse(word: &str) -> Self {
        match word {
            "queued" => Self::Queued,
            "running" => Self::Running,
            "waiting" => Self::Waiting,
            "done" => Self::Done,
            "cancelled" => Self::Cancelled,
            _ => Self::Failed,
        }
    }

    pub(crate) fn is_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// The database's clock, in microseconds since 1970. On PostgreSQL in a
/// subquery: bare, it is asked anew for each row, and so no index is used.
fn clock(conn: &AnyConnection) -> &'static str {
    match conn.dialect() {
        Dialect::Sqlite => "CAST(unixepoch('subsec') * 1000000 AS INTEGER)",
        Dialect::Postgres => "(SELECT (extract(epoch from clock_timestamp()) * 1000000)::bigint)",
        Dialect::Mysql => "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
    }
}

/// Locks rows that are read to be changed; on SQLite all is locked.
fn for_update(conn: &AnyConnection) -> &'static str {
    conn.dialect().for_update()
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

fn text(value: Option<&str>) -> Value<'_> {
    Value::Text(value.map(Into::into))
}

/// A task to be.
pub(super) struct NewTask<'a> {
    pub(super) id: &'a str,
    pub(super) now: DateTime<Utc>,
    pub(super) task_name: &'a str,
    pub(super) obj_type: &'a str,
    pub(super) obj_id: &'a str,
    pub(super) obj_name: &'a str,
    pub(super) domain_id: &'a str,
    pub(super) project_id: &'a str,
    pub(super) user_id: &'a str,
    pub(super) user_cred: String,
    pub(super) params: String,
    pub(super) secret: String,
    pub(super) active_key: String,
}

/// Stores a task, ready to run.
pub(super) fn insert(conn: &mut AnyConnection, new: &NewTask<'_>) -> Result<()> {
    let dialect = conn.dialect();
    let mut sql = Sql::default();
    if dialect == Dialect::Postgres {
        sql.push("WITH t AS (");
    }
    sql.push(
        "INSERT INTO \"tasks\" (\"id\", \"task_name\", \"obj_type\", \"obj_id\", \"obj_name\", \"domain_id\", \
         \"project_id\", \"user_id\", \"user_cred\", \"params\", \"secret\", \"active_key\", \"created_at\", \
         \"updated_at\", \"version\", \"priority\", \"status\", \"stage\", \"retry_stage\", \"progress\", \
         \"attempt\", \"epoch\", \"seq\", \"reason_kind\", \"reason\", \"cancel_requested\", \"cancelling\", \
         \"run_at\") VALUES (",
    );
    let texts = [
        new.id,
        new.task_name,
        new.obj_type,
        new.obj_id,
        new.obj_name,
        new.domain_id,
        new.project_id,
        new.user_id,
        &new.user_cred,
        &new.params,
        &new.secret,
        &new.active_key,
    ];
    for value in texts {
        sql.bind(value).push(", ");
    }
    sql.bind(new.now).push(", ").bind(new.now);
    sql.push(", 1, 0, 'queued', 'on_init', 'on_init', 0, 0, 0, 1, '', '', FALSE, FALSE, ").push(clock(conn));
    sql.push(")");
    const READY: &str = "INSERT INTO \"task_ready\" (\"task_id\", \"task_name\", \"priority\", \"run_at\")";
    match dialect {
        Dialect::Postgres => {
            sql.push(" RETURNING \"id\", \"task_name\", \"priority\", \"run_at\") ");
            sql.push(READY).push(" SELECT * FROM t");
            db::execute(conn, &sql)?;
        }
        // A trigger makes the ready row.
        Dialect::Sqlite | Dialect::Mysql => {
            db::execute(conn, &sql)?;
        }
    }
    Ok(())
}

/// A task that this process has claimed.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub(crate) id: String,
    pub(crate) task_name: String,
    pub(crate) obj_type: String,
    pub(crate) obj_id: String,
    pub(crate) user_cred: String,
    pub(crate) params: String,
    pub(crate) secret: String,
    pub(crate) stage: String,
    pub(crate) data: Option<String>,
    pub(crate) reason: Reason,
    pub(crate) attempt: i64,
    pub(crate) epoch: i64,
    pub(crate) seq: i64,
    pub(crate) cancelling: bool,
    pub(crate) run_at: i64,
    pub(crate) started_at: i64,
}

const CLAIMED: &str = "\"id\", \"task_name\", \"obj_type\", \"obj_id\", \"user_cred\", \"params\", \"secret\", \
     \"stage\", \"data\", \"reason_kind\", \"reason\", \"attempt\", \"epoch\", \"seq\", \"cancelling\", \"run_at\", \
     \"started_at\"";

impl FromRow for Claimed {
    fn from_row(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        Ok(Self {
            id: row.get()?,
            task_name: row.get()?,
            obj_type: row.get()?,
            obj_id: row.get()?,
            user_cred: row.get()?,
            params: row.get()?,
            secret: row.get()?,
            stage: row.get()?,
            data: row.get()?,
            reason: {
                let kind: String = row.get()?;
                Reason::stored(&kind, row.get()?)
            },
            attempt: row.get()?,
            epoch: row.get()?,
            seq: row.get()?,
            cancelling: row.get()?,
            run_at: row.get()?,
            started_at: row.get()?,
        })
    }
}

/// The kinds of task that a process runs, as a condition on `task_name`.
fn known<'a>(sql: &mut Sql<'a>, names: &[&'a str]) {
    // As many for the life of a process: the statement is kept prepared.
    sql.push("\"task_name\" IN (");
    for (i, name) in names.iter().enumerate() {
        sql.push(if i == 0 { "" } else { ", " }).bind(*name);
    }
    sql.push(")");
}

/// Takes up to `limit` tasks that are due. A wait that is due is over: its
/// stage's twin is what runs.
pub(super) fn claim(
    conn: &mut AnyConnection,
    worker: &str,
    names: &[&str],
    limit: i64,
) -> Result<Vec<Claimed>> {
    let (dialect, now) = (conn.dialect(), clock(conn));
    let mut due = Sql::default();
    // The task is locked with its ready row, and whatever is locked is left: a
    // claim never waits, so it is in nobody's circle.
    due.push(match dialect {
        Dialect::Sqlite => "SELECT \"task_id\" FROM \"task_ready\" WHERE \"run_at\" <= ",
        Dialect::Postgres => {
            "SELECT r.\"task_id\" FROM \"task_ready\" r JOIN \"tasks\" t ON t.\"id\" = r.\"task_id\" \
             WHERE r.\"run_at\" <= "
        }
        // In the index's order: MySQL locks what it reads, and sorts after.
        Dialect::Mysql => {
            "SELECT r.\"task_id\" FROM \"task_ready\" r FORCE INDEX (\"task_ready_due\") STRAIGHT_JOIN \
             \"tasks\" t ON t.\"id\" = r.\"task_id\" WHERE r.\"run_at\" <= "
        }
    });
    due.push(now).push(if dialect == Dialect::Sqlite { " AND " } else { " AND r." });
    known(&mut due, names);
    due.push(if dialect == Dialect::Sqlite {
        " ORDER BY \"run_at\", \"task_id\" LIMIT "
    } else {
        " ORDER BY r.\"run_at\", r.\"task_id\" LIMIT "
    });
    due.bind(limit);
    let mut ids: Vec<(String,)> = Vec::new();
    if dialect == Dialect::Mysql {
        due.push(dialect.skip_locked());
        ids = db::load(conn, due)?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        due = Sql::default();
    }
    let listed = |sql: &mut Sql<'_>| {
        for (i, (id,)) in ids.iter().enumerate() {
            sql.push(if i == 0 { "" } else { ", " }).bind(id.clone());
        }
    };
    listed(&mut due);
    let mut sql = Sql::default();
    if dialect == Dialect::Postgres {
        sql.push("WITH due AS (").append(due);
        sql.push(
            " FOR UPDATE SKIP LOCKED), gone AS (DELETE FROM \"task_ready\" r USING due WHERE r.\"task_id\" = \
             due.\"task_id\") ",
        );
        due = Sql::new("SELECT \"task_id\" FROM due");
    }
    sql.push("UPDATE \"tasks\" SET \"worker_id\" = ").bind(worker);
    sql.push(", \"epoch\" = \"epoch\" + 1, \"version\" = \"version\" + 1, \"updated_at\" = ");
    sql.push(now).push(", \"started_at\" = ").push(now);
    sql.push(", \"stage\" = CASE WHEN \"status\" = 'waiting' THEN \"stage\" || ").bind(TWIN);
    sql.push(
        " ELSE \"stage\" END, \"seq\" = CASE WHEN \"status\" = 'waiting' THEN \"seq\" + 1 ELSE \"seq\" END",
    );
    sql.push(", \"attempt\" = CASE WHEN \"status\" = 'waiting' THEN 1 ELSE \"attempt\" + 1 END");
    sql.push(", \"reason_kind\" = CASE WHEN \"status\" = 'waiting' THEN ").bind(ReasonKind::Timeout.as_str());
    sql.push(" ELSE \"reason_kind\" END, \"reason\" = CASE WHEN \"status\" = 'waiting' THEN ");
    sql.bind("no callback came in time").push(" ELSE \"reason\" END");
    // Last: to MySQL, a column has its new value in what stands after it.
    sql.push(", \"status\" = 'running'");
    sql.push(" WHERE \"status\" IN ('queued', 'waiting') AND \"id\" IN (").append(due).push(")");
    if dialect == Dialect::Mysql {
        db::execute(conn, &sql)?;
        let mut gone = Sql::new("DELETE FROM \"task_ready\" WHERE \"task_id\" IN (");
        listed(&mut gone);
        gone.push(")");
        db::execute(conn, &gone)?;
        let mut sql = Sql::new("SELECT ").text(CLAIMED).text(" FROM \"tasks\" WHERE \"status\" = 'running'");
        sql.push(" AND \"worker_id\" = ").bind(worker).push(" AND \"id\" IN (");
        listed(&mut sql);
        sql.push(")");
        return db::load(conn, sql);
    }
    sql.push(" RETURNING ").push(CLAIMED);
    let claimed: Vec<Claimed> = db::load(conn, sql)?;
    if dialect == Dialect::Sqlite {
        for task in &claimed {
            let sql = Sql::new("DELETE FROM \"task_ready\" WHERE \"task_id\" = ").value(&task.id);
            db::execute(conn, &sql)?;
        }
    }
    Ok(claimed)
}

/// What a worker that has nothing to do looks for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Look {
    /// Until the next task is due; `None`: there is none.
    pub(super) due_in: Option<Duration>,
    /// Whether a worker's lease is over.
    pub(super) dead: bool,
}

/// Looks, without writing, what is due.
pub(super) fn look(conn: &mut AnyConnection, names: &[&str]) -> Result<Look> {
    let now = clock(conn);
    let mut sql = Sql::new("SELECT (SELECT \"run_at\" FROM \"task_ready\" WHERE ");
    known(&mut sql, names);
    sql.push(" ORDER BY \"run_at\" LIMIT 1) - ").push(now);
    sql.push(", EXISTS (SELECT 1 FROM \"workers\" WHERE \"until\" < ").push(now).push(")");
    let (due, dead) = db::load_one::<(Option<i64>, bool)>(conn, sql)?.unwrap_or_default();
    let due_in = due.map(|it| Duration::from_micros(u64::try_from(it).unwrap_or(0)));
    Ok(Look { due_in, dead })
}

/// What becomes of the reason that a task has.
#[derive(Debug, Clone)]
pub(super) enum Why {
    Keep,
    Clear,
    Set(Reason),
}

/// How a stage's attempt moves its task on.
#[derive(Debug, Clone)]
pub(super) struct Move {
    /// The status it has then.
    pub(super) status: Status,
    /// The stage it stands at then; `None`: the same, for another attempt.
    pub(super) stage: Option<String>,
    /// What that stage is given; the outer `None` leaves what is there.
    pub(super) data: Option<Option<String>>,
    /// Whether a retry by hand begins at that stage.
    pub(super) begins: bool,
    /// Why it goes there.
    pub(super) why: Why,
    /// Whether the task is being cancelled from now on.
    pub(super) cancelling: bool,
    /// Whether the attempt does not count.
    pub(super) refund: bool,
    /// How long until it is due.
    pub(super) delay: Duration,
    /// The progress that the stage told.
    pub(super) progress: Option<f64>,
    /// What the history says of the attempt.
    pub(super) outcome: &'static str,
    /// Whether it may pass although somebody asked to cancel.
    pub(super) regardless: bool,
}

/// Moves a task on, if this worker still holds it. `None`: nothing is written,
/// since it does not, or somebody asked to cancel. Else the moment.
pub(super) fn advance(
    conn: &mut AnyConnection,
    worker: &str,
    task: &Claimed,
    to: &Move,
) -> Result<Option<i64>> {
    let (dialect, now) = (conn.dialect(), clock(conn));
    let mut sql = Sql::default();
    if dialect == Dialect::Postgres {
        sql.push("WITH moved AS (");
    }
    sql.push("UPDATE \"tasks\" SET \"version\" = \"version\" + 1, \"updated_at\" = ").push(now);
    sql.push(", \"status\" = ").bind(to.status.as_str());
    if let Some(stage) = &to.stage {
        sql.push(", \"stage\" = ").bind(stage);
        if to.status != Status::Waiting {
            // A wait belongs to the stage that asked for it, and so does its token.
            sql.push(", \"seq\" = \"seq\" + 1");
        }
        if to.begins {
            sql.push(", \"retry_stage\" = ").bind(stage);
        }
        sql.push(", \"attempt\" = ").bind(i64::from(to.status == Status::Running));
    } else if to.refund {
        sql.push(", \"attempt\" = \"attempt\" - 1");
    }
    if let Some(data) = &to.data {
        sql.push(", \"data\" = ").bind(text(data.as_deref()));
    }
    match &to.why {
        Why::Keep => {}
        Why::Clear => {
            sql.push(", \"reason_kind\" = '', \"reason\" = ''");
        }
        Why::Set(why) => {
            sql.push(", \"reason_kind\" = ").bind(why.kind.as_str()).push(", \"reason\" = ").bind(&why.text);
        }
    }
    if to.cancelling {
        sql.push(", \"cancelling\" = TRUE");
    }
    if let Some(progress) = to.progress {
        sql.push(", \"progress\" = ").bind(Value::Float(Some(progress)));
    }
    if to.status == Status::Running {
        sql.push(", \"epoch\" = \"epoch\" + 1, \"started_at\" = ").push(now);
    } else {
        sql.push(", \"worker_id\" = ").bind(Value::Text(None));
    }
    let ready = matches!(to.status, Status::Queued | Status::Waiting);
    if ready {
        sql.push(", \"run_at\" = ").push(now).push(" + ").bind(micros(to.delay));
    }
    if to.status.is_ended() {
        sql.push(", \"active_key\" = ").bind(Value::Text(None)).push(", \"ended_at\" = ").push(now);
    }
    hold(&mut sql, worker, task);
    if !to.regardless {
        sql.push(" AND \"cancel_requested\" = FALSE");
    }
    let mut log = Sql::new(
        "INSERT INTO \"task_history\" (\"task_id\", \"epoch\", \"stage\", \"attempt\", \"worker_id\", \
         \"started_at\", \"outcome\", \"reason\", \"ended_at\") ",
    );
    log.push(if dialect == Dialect::Postgres { "SELECT " } else { "VALUES (" });
    log.bind(&task.id).push(", ").bind(task.epoch).push(", ").bind(&task.stage).push(", ").bind(task.attempt);
    log.push(", ").bind(worker).push(", ").bind(task.started_at).push(", ").bind(to.outcome);
    log.push(", ").bind(match &to.why {
        Why::Set(why) => why.text.as_str(),
        Why::Keep | Why::Clear => "",
    });
    const READY: &str = "INSERT INTO \"task_ready\" (\"task_id\", \"task_name\", \"priority\", \"run_at\") \
         SELECT \"id\", \"task_name\", \"priority\", \"run_at\" FROM ";
    if dialect == Dialect::Postgres {
        sql.push(" RETURNING \"id\", \"task_name\", \"priority\", \"run_at\", \"updated_at\"), log AS (");
        sql.append(log);
        sql.push(", \"updated_at\" FROM moved)");
        if ready {
            sql.push(", ready AS (").push(READY).push("moved)");
        }
        sql.push(" SELECT \"updated_at\" FROM moved");
        return Ok(db::load_one::<(i64,)>(conn, sql)?.map(|(at,)| at));
    }
    let at = if dialect == Dialect::Sqlite {
        sql.push(" RETURNING \"updated_at\"");
        db::load_one::<(i64,)>(conn, sql)?
    } else if db::execute(conn, &sql)? == 0 {
        None
    } else {
        let sql = Sql::new("SELECT \"updated_at\" FROM \"tasks\" WHERE \"id\" = ").value(&task.id);
        db::load_one::<(i64,)>(conn, sql)?
    };
    let Some((at,)) = at else { return Ok(None) };
    log.push(", ").bind(at).push(")");
    db::execute(conn, &log)?;
    if ready {
        let sql = Sql::new(READY).text("\"tasks\" WHERE \"id\" = ").value(&task.id);
        db::execute(conn, &sql)?;
    }
    Ok(Some(at))
}

/// Only while this worker holds the task, by this very claim.
fn hold<'a>(sql: &mut Sql<'a>, worker: &'a str, task: &'a Claimed) {
    sql.push(" WHERE \"id\" = ").bind(&task.id).push(" AND \"epoch\" = ").bind(task.epoch);
    sql.push(" AND \"worker_id\" = ").bind(worker).push(" AND \"status\" = 'running'");
}

/// Whether somebody asked to cancel a task that this worker holds; `None`: it
/// does not hold it.
pub(super) fn held(conn: &mut AnyConnection, worker: &str, task: &Claimed) -> Result<Option<bool>> {
    let mut sql = Sql::new("SELECT \"cancel_requested\" FROM \"tasks\"");
    hold(&mut sql, worker, task);
    sql.push(for_update(conn));
    Ok(db::load_one::<(bool,)>(conn, sql)?.map(|(it,)| it))
}

/// Whether somebody asked to cancel the task.
pub(super) fn cancel_requested(conn: &mut AnyConnection, id: &str) -> Result<bool> {
    let sql = Sql::new("SELECT \"cancel_requested\" FROM \"tasks\" WHERE \"id\" = ").value(id);
    Ok(db::load_one::<(bool,)>(conn, sql)?.is_some_and(|(it,)| it))
}

/// What a callback must know of its task.
pub(super) struct Called {
    pub(super) status: Status,
    pub(super) seq: i64,
    pub(super) secret: String,
}

/// The task that a callback is for, locked.
pub(super) fn for_callback(conn: &mut AnyConnection, id: &str) -> Result<Option<Called>> {
    let mut sql = Sql::new("SELECT \"status\", \"seq\", \"secret\" FROM \"tasks\" WHERE \"id\" = ").value(id);
    sql.push(for_update(conn));
    let row = db::load_one::<(String, i64, String)>(conn, sql)?;
    Ok(row.map(|(status, seq, secret)| Called { status: Status::parse(&status), seq, secret }))
}

/// Whether a callback with that token was accepted.
pub(super) fn was_called_back(conn: &mut AnyConnection, token: &str) -> Result<bool> {
    Ok(callback_data(conn, token)?.is_some())
}

/// What the callback with that token brought.
pub(super) fn callback_data(conn: &mut AnyConnection, token: &str) -> Result<Option<String>> {
    let sql = Sql::new("SELECT \"data\" FROM \"task_callbacks\" WHERE \"token\" = ").value(token);
    Ok(db::load_one::<(String,)>(conn, sql)?.map(|(it,)| it))
}

/// Keeps a callback; `false`: there is one with that token.
pub(super) fn keep_callback(conn: &mut AnyConnection, token: &str, id: &str, data: &str) -> Result<bool> {
    let dialect = conn.dialect();
    let mut sql = Sql::new(dialect.insert_new());
    sql.push("\"task_callbacks\" (\"token\", \"task_id\", \"data\", \"received_at\") VALUES (");
    sql.bind(token).push(", ").bind(id).push(", ").bind(data).push(", ").push(clock(conn));
    sql.push(")").push(dialect.or_ignore());
    Ok(db::execute(conn, &sql)? == 1)
}

/// Makes a waiting task, locked, go on with what its callback brought.
pub(super) fn resume(conn: &mut AnyConnection, id: &str, data: &str) -> Result<()> {
    let now = clock(conn);
    let mut sql =
        Sql::new("UPDATE \"tasks\" SET \"status\" = 'queued', \"seq\" = \"seq\" + 1, \"attempt\" = 0");
    sql.push(", \"retry_stage\" = \"stage\", \"version\" = \"version\" + 1, \"data\" = ").bind(data);
    sql.push(", \"run_at\" = ").push(now).push(", \"updated_at\" = ").push(now);
    sql.push(" WHERE \"id\" = ").bind(id).push(" AND \"status\" = 'waiting'");
    db::execute(conn, &sql)?;
    due_now(conn, id)
}

fn due_now(conn: &mut AnyConnection, id: &str) -> Result<()> {
    let mut sql = Sql::new("UPDATE \"task_ready\" SET \"run_at\" = ");
    sql.push(clock(conn)).push(" WHERE \"task_id\" = ").bind(id);
    db::execute(conn, &sql)?;
    Ok(())
}

/// Makes a queued or waiting task, locked, run its stage's twin now.
pub(super) fn cancel(conn: &mut AnyConnection, id: &str, why: &Reason) -> Result<()> {
    let now = clock(conn);
    let mut sql =
        Sql::new("UPDATE \"tasks\" SET \"status\" = 'queued', \"seq\" = \"seq\" + 1, \"attempt\" = 0");
    sql.push(", \"stage\" = \"stage\" || ").bind(TWIN);
    sql.push(", \"cancel_requested\" = TRUE, \"cancelling\" = TRUE, \"version\" = \"version\" + 1");
    sql.push(", \"reason_kind\" = ").bind(why.kind.as_str()).push(", \"reason\" = ").bind(&why.text);
    sql.push(", \"run_at\" = ").push(now).push(", \"updated_at\" = ").push(now);
    sql.push(" WHERE \"id\" = ").bind(id).push(" AND \"status\" IN ('queued', 'waiting')");
    db::execute(conn, &sql)?;
    due_now(conn, id)
}

/// Tells a running task that it is to be cancelled.
pub(super) fn ask_to_cancel(conn: &mut AnyConnection, id: &str) -> Result<()> {
    let mut sql = Sql::new("UPDATE \"tasks\" SET \"cancel_requested\" = TRUE, \"version\" = \"version\" + 1");
    sql.push(", \"updated_at\" = ").push(clock(conn)).push(" WHERE \"id\" = ").bind(id);
    db::execute(conn, &sql)?;
    Ok(())
}

/// Makes a failed task, locked, run again.
pub(super) fn retry(conn: &mut AnyConnection, id: &str, active_key: &str) -> Result<()> {
    let now = clock(conn);
    let mut sql =
        Sql::new("UPDATE \"tasks\" SET \"status\" = 'queued', \"seq\" = \"seq\" + 1, \"attempt\" = 0");
    sql.push(
        ", \"stage\" = \"retry_stage\", \"reason_kind\" = '', \"reason\" = '', \"cancel_requested\" = FALSE",
    );
    sql.push(", \"cancelling\" = FALSE, \"version\" = \"version\" + 1, \"active_key\" = ").bind(active_key);
    sql.push(", \"ended_at\" = ").bind(Value::Int(None));
    sql.push(", \"run_at\" = ").push(now).push(", \"updated_at\" = ").push(now);
    sql.push(" WHERE \"id\" = ").bind(id).push(" AND \"status\" = 'failed'");
    db::execute(conn, &sql)?;
    let sql = Sql::new(
        "INSERT INTO \"task_ready\" (\"task_id\", \"task_name\", \"priority\", \"run_at\") SELECT \"id\", \
         \"task_name\", \"priority\", \"run_at\" FROM \"tasks\" WHERE \"id\" = ",
    );
    db::execute(conn, &sql.value(id))?;
    Ok(())
}

/// One attempt at a stage, for people.
#[derive(Debug, Serialize)]
pub(super) struct Attempt {
    stage: String,
    attempt: i64,
    started_at: Option<DateTime<Utc>>,
    ended_at: DateTime<Utc>,
    outcome: String,
    reason: String,
}

impl FromRow for Attempt {
    fn from_row(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        Ok(Self {
            stage: row.get()?,
            attempt: row.get()?,
            started_at: row.get()?,
            ended_at: row.get()?,
            outcome: row.get()?,
            reason: row.get()?,
        })
    }
}

/// Attempts that a get shows at most: those of a poll can be many.
const SHOWN: i64 = 100;

/// The last attempts of a task, in order.
pub(super) fn history(conn: &mut AnyConnection, id: &str) -> Result<Vec<Attempt>> {
    let mut sql = Sql::new(
        "SELECT \"stage\", \"attempt\", \"started_at\", \"ended_at\", \"outcome\", \"reason\" FROM \"task_history\" \
         WHERE \"task_id\" = ",
    );
    sql.bind(id).push(" ORDER BY \"epoch\" DESC LIMIT ").bind(SHOWN);
    let mut rows: Vec<Attempt> = db::load(conn, sql)?;
    rows.reverse();
    Ok(rows)
}

/// A worker process.
#[derive(Debug, Clone)]
pub(super) struct Process {
    /// Machine, boot and process namespace: where a pid means one process.
    pub(super) host: String,
    pub(super) pid: i64,
    /// When the kernel started it, which tells it from a later one of the same pid.
    pub(super) started: i64,
}

/// Begins or lengthens a worker's lease.
pub(super) fn lease(conn: &mut AnyConnection, worker: &str, of: &Process, time: Duration) -> Result<()> {
    let now = clock(conn);
    let mut sql = Sql::new(
        "INSERT INTO \"workers\" (\"id\", \"host\", \"pid\", \"pid_started\", \"started_at\", \"until\") VALUES (",
    );
    sql.bind(worker).push(", ").bind(&of.host).push(", ").bind(of.pid).push(", ").bind(of.started);
    sql.push(", ").push(now).push(", ").push(now).push(" + ").bind(micros(time));
    sql.push(")").push(conn.dialect().or_update("\"id\"", &["until"]));
    db::execute(conn, &sql)?;
    Ok(())
}

/// Lengthens a worker's lease; `false`: its row is gone, and its tasks with it.
/// One that is over but whose row is still there was taken up by nobody, since
/// who takes it up removes it.
pub(super) fn renew(conn: &mut AnyConnection, worker: &str, time: Duration) -> Result<bool> {
    let mut sql = Sql::new("UPDATE \"workers\" SET \"until\" = ");
    sql.push(clock(conn)).push(" + ").bind(micros(time)).push(" WHERE \"id\" = ").bind(worker);
    Ok(db::execute(conn, &sql)? == 1)
}

/// The other workers of this host, with the pid and its start.
pub(super) fn neighbours(conn: &mut AnyConnection, host: &str) -> Result<Vec<(String, i64, i64)>> {
    let sql =
        Sql::new("SELECT \"id\", \"pid\", \"pid_started\" FROM \"workers\" WHERE \"host\" = ").value(host);
    db::load(conn, sql)
}

/// Ends a worker's lease at once.
pub(super) fn expire(conn: &mut AnyConnection, worker: &str) -> Result<()> {
    let sql = Sql::new("UPDATE \"workers\" SET \"until\" = 0 WHERE \"id\" = ").value(worker);
    db::execute(conn, &sql)?;
    Ok(())
}

/// The workers whose lease is over, locked.
pub(super) fn dead(conn: &mut AnyConnection) -> Result<Vec<String>> {
    let mut sql = Sql::new("SELECT \"id\" FROM \"workers\" WHERE \"until\" < ");
    sql.push(clock(conn));
    sql.push(conn.dialect().skip_locked());
    Ok(db::load::<(String,)>(conn, sql)?.into_iter().map(|(id,)| id).collect())
}

/// Takes a worker's tasks from it: they are ready at once. `refund`: the
/// attempt does not count, as when the worker gives them back itself.
pub(super) fn take_back(
    conn: &mut AnyConnection,
    worker: &str,
    outcome: &str,
    refund: bool,
) -> Result<usize> {
    let mut sql = Sql::new(
        "SELECT \"id\" FROM \"tasks\" WHERE \"active_key\" IS NOT NULL AND \"status\" = 'running' AND \"worker_id\" = ",
    );
    sql.bind(worker).push(" ORDER BY \"active_key\"").push(for_update(conn));
    let ids: Vec<(String,)> = db::load(conn, sql)?;
    for (id,) in &ids {
        requeue(conn, id, outcome, refund)?;
    }
    let sql = Sql::new("DELETE FROM \"workers\" WHERE \"id\" = ").value(worker);
    db::execute(conn, &sql)?;
    Ok(ids.len())
}

/// Makes a running task, locked, ready, and says so in its history.
fn requeue(conn: &mut AnyConnection, id: &str, outcome: &str, refund: bool) -> Result<()> {
    let now = clock(conn);
    let mut sql = Sql::new(
        "INSERT INTO \"task_history\" (\"task_id\", \"epoch\", \"stage\", \"attempt\", \"worker_id\", \
         \"started_at\", \"ended_at\", \"outcome\", \"reason\") SELECT \"id\", \"epoch\", \"stage\", \"attempt\", \
         coalesce(\"worker_id\", ''), \"started_at\", ",
    );
    sql.push(now).push(", ").bind(outcome).push(", '' FROM \"tasks\" WHERE \"id\" = ").bind(id);
    db::execute(conn, &sql)?;
    let mut sql = Sql::new("UPDATE \"tasks\" SET \"status\" = 'queued', \"version\" = \"version\" + 1");
    sql.push(", \"worker_id\" = ").bind(Value::Text(None));
    sql.push(", \"attempt\" = \"attempt\" - ").bind(i64::from(refund));
    sql.push(", \"run_at\" = ")
        .push(now)
        .push(", \"updated_at\" = ")
        .push(now)
        .push(" WHERE \"id\" = ")
        .bind(id);
    db::execute(conn, &sql)?;
    let sql = Sql::new(
        "INSERT INTO \"task_ready\" (\"task_id\", \"task_name\", \"priority\", \"run_at\") SELECT \"id\", \
         \"task_name\", \"priority\", \"run_at\" FROM \"tasks\" WHERE \"id\" = ",
    );
    db::execute(conn, &sql.value(id))?;
    Ok(())
}

/// A running task, for who looks whether it is stuck.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) id: String,
    pub(super) epoch: i64,
    pub(super) task_name: String,
    pub(super) stage: String,
    pub(super) age: Duration,
    /// Whether its worker has a row.
    pub(super) leased: bool,
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

/// The tasks that have run for longer than `age`.
pub(super) fn running(conn: &mut AnyConnection, age: Duration) -> Result<Vec<Running>> {
    let now = clock(conn);
    let mut sql = Sql::new("SELECT \"id\", \"epoch\", \"task_name\", \"stage\", ");
    sql.push(now)
        .push(" - \"started_at\", EXISTS (SELECT 1 FROM \"workers\" w WHERE w.\"id\" = \"worker_id\")");
    sql.push(
        " FROM \"tasks\" WHERE \"active_key\" IS NOT NULL AND \"status\" = 'running' AND \"started_at\" < ",
    );
    sql.push(now).push(" - ").bind(micros(age));
    db::load(conn, sql)
}

/// Takes one task from a worker that does not end it.
pub(super) fn take_one(conn: &mut AnyConnection, id: &str, epoch: i64) -> Result<bool> {
    let mut sql = Sql::new("SELECT \"id\" FROM \"tasks\" WHERE \"id\" = ").value(id);
    sql.push(" AND \"epoch\" = ").bind(epoch).push(" AND \"status\" = 'running'").push(for_update(conn));
    if db::load_one::<(String,)>(conn, sql)?.is_none() {
        return Ok(false);
    }
    requeue(conn, id, "lost", false)?;
    Ok(true)
}

/// Deletes tasks that ended long ago, up to `limit`, with all that is theirs.
pub(super) fn forget(conn: &mut AnyConnection, age: Duration, limit: i64) -> Result<usize> {
    let mut sql = Sql::new("SELECT \"id\" FROM \"tasks\" WHERE \"ended_at\" < ");
    sql.push(clock(conn)).push(" - ").bind(micros(age)).push(" ORDER BY \"ended_at\" LIMIT ").bind(limit);
    sql.push(conn.dialect().skip_locked());
    let ids: Vec<(String,)> = db::load(conn, sql)?;
    for (id,) in &ids {
        for (table, column) in [("task_history", "task_id"), ("task_callbacks", "task_id"), ("tasks", "id")] {
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
