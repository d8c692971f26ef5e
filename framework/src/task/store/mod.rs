//! All the engine's SQL, and all in it that differs between the databases.
//!
//! Locks are taken in one order: object, task (by id), its parent, ready row.
//! A claim waits for none of them: it skips what somebody holds. All times are
//! the engine's own (see [`super::clock`]) and come in as values.

mod advance;
mod claim;
mod keep;
mod lanes;
mod lease;
mod mend;
mod outside;

use chrono::{DateTime, Utc};

use super::stage::Reason;
use crate::Result;
use crate::db::{self, AnyConnection, Dialect, FromRow, RowReader, Sql, Value};

pub(super) use advance::{Advanced, Move, Why, advance, held};
pub(super) use claim::{Floor, Look, Share, claim, heads, look, promote_timers};
pub(super) use keep::{Note, forget, history, holding, note, running, take_one};
pub(super) use lanes::{Entered, enter, give_up, lane_under};
pub(super) use lease::{Process, Seen, keep, lease, renew, seen, take_back};
pub(super) use mend::{Cursor, depths, give_head, look_for_stuck, wake};
pub(super) use outside::{
    ask_to_cancel, callback_data, cancel, cancel_children, cancel_requested, for_callback, keep_callback,
    members, resume, retry, secret, status, was_called_back,
};

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Behind an earlier task of its object.
    Blocked,
    Queued,
    Running,
    Waiting,
    Done,
    Failed,
    Cancelled,
    /// Holds a further object for the task that it is a part of.
    Member,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Member => "member",
        }
    }

    pub(crate) fn parse(word: &str) -> Self {
        match word {
            "blocked" => Self::Blocked,
            "queued" => Self::Queued,
            "running" => Self::Running,
            "waiting" => Self::Waiting,
            "done" => Self::Done,
            "cancelled" => Self::Cancelled,
            "member" => Self::Member,
            _ => Self::Failed,
        }
    }

    pub(crate) fn is_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// Locks rows that are read to be changed; on SQLite all is locked.
fn for_update(conn: &AnyConnection) -> &'static str {
    conn.dialect().for_update()
}

fn text(value: Option<&str>) -> Value<'_> {
    Value::Text(value.map(Into::into))
}

/// A task to be.
pub(super) struct NewTask<'a> {
    pub(super) id: &'a str,
    /// The moment of the request, which made it.
    pub(super) created_at: DateTime<Utc>,
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
    pub(super) lane: &'a str,
    pub(super) unique_key: Option<&'a str>,
    pub(super) priority: i64,
    /// The task that it is a part of, and the place in that one's life.
    pub(super) parent: Option<(&'a str, i64)>,
    /// Further objects that it works on.
    pub(super) members: i64,
    pub(super) now: i64,
    /// How long until it is due, in microseconds.
    pub(super) delay: i64,
    pub(super) deadline: Option<i64>,
}

impl NewTask<'_> {
    /// Its place among what is due: first by priority, then in turn by
    /// project, then by name.
    fn queue(&self) -> String {
        format!("{:02}/{}/{}", self.priority.clamp(0, 99), self.project_id, self.task_name)
    }
}

/// How a task enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// Ready to run, at the head of its lane.
    Head,
    /// Behind the head, at that place.
    Behind(i64),
    /// As the holder of an object for its parent.
    Member,
}

/// Stores a task. `false`: the object or the unique key is taken.
pub(super) fn insert(conn: &mut AnyConnection, new: &NewTask<'_>, entry: Entry) -> Result<bool> {
    let dialect = conn.dialect();
    let mut sql = Sql::default();
    if dialect == Dialect::Postgres {
        sql.push("WITH t AS (");
    }
    sql.push(dialect.insert_new());
    sql.push(
        "\"tasks\" (\"id\", \"task_name\", \"obj_type\", \"obj_id\", \"obj_name\", \"domain_id\", \
         \"project_id\", \"user_id\", \"user_cred\", \"params\", \"secret\", \"lane\", \"active_key\", \
         \"blocked_on\", \"status\", \"unique_key\", \"queue\", \"parent_task_id\", \"parent_seq\", \"priority\", \
         \"lane_seq\", \"lane_tail\", \"members\", \"created_at\", \"updated_at\", \"run_at\", \"deadline\", \
         \"version\", \"stage\", \"retry_stage\", \"progress\", \"attempt\", \"epoch\", \"seq\", \"reason_kind\", \
         \"reason\", \"cancel_requested\", \"cancelling\", \"followers\", \"open_children\", \"ending\", \
         \"progress_text\") VALUES (",
    );
    let lane = Some(new.lane);
    let (active, blocked, status, seq) = match entry {
        Entry::Head => (lane, None, Status::Queued, 0),
        Entry::Behind(seq) => (None, lane, Status::Blocked, seq),
        Entry::Member => (lane, None, Status::Member, 0),
    };
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
        new.lane,
    ];
    for value in texts {
        sql.bind(value).push(", ");
    }
    sql.bind(text(active)).push(", ").bind(text(blocked)).push(", ").bind(status.as_str());
    sql.push(", ").bind(text(new.unique_key)).push(", ").bind(new.queue());
    sql.push(", ").bind(text(new.parent.map(|it| it.0)));
    for number in [new.parent.map_or(0, |it| it.1), new.priority, seq, seq, new.members] {
        sql.push(", ").bind(number);
    }
    sql.push(", ").bind(new.created_at).push(", ").bind(new.created_at);
    sql.push(", ").bind(new.now + new.delay).push(", ").bind(Value::Int(new.deadline));
    sql.push(", 1, 'on_init', 'on_init', 0, 0, 0, 1, '', '', FALSE, FALSE, 0, 0, '', '')");
    sql.push(dialect.or_ignore());
    let due = new.delay <= 0;
    if dialect == Dialect::Postgres {
        sql.push(" RETURNING \"id\", \"queue\", \"run_at\", \"status\"), r AS (");
        sql.push("INSERT INTO \"task_ready\" (\"task_id\", \"queue\", \"due\", \"run_at\") ");
        sql.push("SELECT \"id\", \"queue\", ")
            .bind(due)
            .push(", \"run_at\" FROM t WHERE \"status\" = 'queued') ");
        sql.push("SELECT count(*) FROM t");
        return Ok(db::load_one::<(i64,)>(conn, sql)?.is_some_and(|(n,)| n == 1));
    }
    // A trigger makes the ready row.
    let stored = db::execute(conn, &sql)? == 1;
    if stored && !due && entry == Entry::Head {
        let sql = Sql::new("UPDATE \"task_ready\" SET \"due\" = FALSE WHERE \"task_id\" = ").value(new.id);
        db::execute(conn, &sql)?;
    }
    Ok(stored)
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
    pub(crate) retry_stage: String,
    pub(crate) data: Option<String>,
    pub(crate) reason: Reason,
    pub(crate) attempt: i64,
    pub(crate) epoch: i64,
    pub(crate) seq: i64,
    pub(crate) cancelling: bool,
    pub(crate) run_at: i64,
    pub(crate) started_at: i64,
    pub(crate) lane: String,
    pub(crate) queue: String,
    pub(crate) parent: Option<String>,
    pub(crate) parent_seq: i64,
    /// What is to be undone if it fails, as JSON: the last is undone first.
    pub(crate) undo: Option<String>,
    /// The status that it ends with, while it is being undone.
    pub(crate) ending: String,
    pub(crate) progress: f64,
    pub(crate) progress_text: String,
    pub(crate) deadline: Option<i64>,
    /// Further objects that it works on.
    pub(crate) members: i64,
}

const CLAIMED: &str = "\"id\", \"task_name\", \"obj_type\", \"obj_id\", \"user_cred\", \"params\", \"secret\", \
     \"stage\", \"retry_stage\", \"data\", \"reason_kind\", \"reason\", \"attempt\", \"epoch\", \"seq\", \
     \"cancelling\", \"run_at\", \"started_at\", \"lane\", \"queue\", \"parent_task_id\", \"parent_seq\", \
     \"undo\", \"ending\", \"progress\", \"progress_text\", \"deadline\", \"members\"";

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
            retry_stage: row.get()?,
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
            lane: row.get()?,
            queue: row.get()?,
            parent: row.get()?,
            parent_seq: row.get()?,
            undo: row.get()?,
            ending: row.get()?,
            progress: row.get()?,
            progress_text: row.get()?,
            deadline: row.get()?,
            members: row.get()?,
        })
    }
}

/// Makes a task ready that is queued or waits, as its row says.
fn ready(conn: &mut AnyConnection, id: &str, due: bool) -> Result<()> {
    let mut sql =
        Sql::new("INSERT INTO \"task_ready\" (\"task_id\", \"queue\", \"due\", \"run_at\") SELECT \"id\", ");
    sql.push("\"queue\", ").bind(due).push(", \"run_at\" FROM \"tasks\" WHERE \"id\" = ").bind(id);
    db::execute(conn, &sql)?;
    Ok(())
}

/// Makes a ready row due.
fn due_now(conn: &mut AnyConnection, id: &str, now: i64) -> Result<()> {
    let mut sql = Sql::new("UPDATE \"task_ready\" SET \"due\" = TRUE, \"run_at\" = ").value(now);
    sql.push(" WHERE \"task_id\" = ").bind(id);
    db::execute(conn, &sql)?;
    Ok(())
}
