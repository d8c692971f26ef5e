//! What comes from outside of the workers: callbacks, cancels, retries.

use super::{Status, due_now, for_update};
use crate::Result;
use crate::db::{self, AnyConnection, Sql, Value};
use crate::task::TWIN;
use crate::task::stage::Reason;

/// Whether somebody asked to cancel the task.
pub(crate) fn cancel_requested(conn: &mut AnyConnection, id: &str) -> Result<bool> {
    let sql = Sql::new("SELECT \"cancel_requested\" FROM \"tasks\" WHERE \"id\" = ").value(id);
    Ok(db::load_one::<(bool,)>(conn, sql)?.is_some_and(|(it,)| it))
}

/// Where a task stands; `None`: there is none any more.
pub(crate) fn status(conn: &mut AnyConnection, id: &str) -> Result<Option<Status>> {
    let sql = Sql::new("SELECT \"status\" FROM \"tasks\" WHERE \"id\" = ").value(id);
    Ok(db::load_one::<(String,)>(conn, sql)?.map(|(it,)| Status::parse(&it)))
}

/// What a callback must know of its task.
pub(crate) struct Called {
    pub(crate) status: Status,
    pub(crate) seq: i64,
    pub(crate) secret: String,
    /// Subtasks that it waits for; then it waits for nothing else.
    pub(crate) open_children: i64,
}

/// The task that a callback is for, locked.
pub(crate) fn for_callback(conn: &mut AnyConnection, id: &str) -> Result<Option<Called>> {
    let mut sql =
        Sql::new("SELECT \"status\", \"seq\", \"secret\", \"open_children\" FROM \"tasks\" WHERE \"id\" = ");
    sql.bind(id).push(for_update(conn));
    let row = db::load_one::<(String, i64, String, i64)>(conn, sql)?;
    let called = |(status, seq, secret, open_children): (String, _, _, _)| Called {
        status: Status::parse(&status),
        seq,
        secret,
        open_children,
    };
    Ok(row.map(called))
}

/// What a task's callback tokens are made with.
pub(crate) fn secret(conn: &mut AnyConnection, id: &str) -> Result<Option<String>> {
    let sql = Sql::new("SELECT \"secret\" FROM \"tasks\" WHERE \"id\" = ").value(id);
    Ok(db::load_one::<(String,)>(conn, sql)?.map(|(it,)| it))
}

/// Whether a callback with that token was accepted.
pub(crate) fn was_called_back(conn: &mut AnyConnection, token: &str) -> Result<bool> {
    Ok(callback_data(conn, token)?.is_some())
}

/// What the callback with that token brought.
pub(crate) fn callback_data(conn: &mut AnyConnection, token: &str) -> Result<Option<String>> {
    let sql = Sql::new("SELECT \"data\" FROM \"task_callbacks\" WHERE \"token\" = ").value(token);
    Ok(db::load_one::<(String,)>(conn, sql)?.map(|(it,)| it))
}

/// Keeps a callback; `false`: there is one with that token.
pub(crate) fn keep_callback(
    conn: &mut AnyConnection,
    token: &str,
    id: &str,
    data: &str,
    now: i64,
) -> Result<bool> {
    let dialect = conn.dialect();
    let mut sql = Sql::new(dialect.insert_new());
    sql.push("\"task_callbacks\" (\"token\", \"task_id\", \"data\", \"received_at\") VALUES (");
    sql.bind(token).push(", ").bind(id).push(", ").bind(data).push(", ").bind(now);
    sql.push(")").push(dialect.or_ignore());
    Ok(db::execute(conn, &sql)? == 1)
}

/// Makes a waiting task, locked, go on with what its callback brought.
pub(crate) fn resume(conn: &mut AnyConnection, id: &str, data: &str, now: i64) -> Result<()> {
    let mut sql =
        Sql::new("UPDATE \"tasks\" SET \"status\" = 'queued', \"seq\" = \"seq\" + 1, \"attempt\" = 0");
    sql.push(", \"retry_stage\" = \"stage\", \"version\" = \"version\" + 1, \"data\" = ").bind(data);
    sql.push(", \"run_at\" = ").bind(now).push(", \"updated_at\" = ").bind(now);
    sql.push(" WHERE \"id\" = ").bind(id).push(" AND \"status\" = 'waiting'");
    db::execute(conn, &sql)?;
    due_now(conn, id, now)
}

/// Makes a queued, waiting or blocked task, locked, run its stage's twin, now
/// or when it is its turn.
pub(crate) fn cancel(conn: &mut AnyConnection, id: &str, why: &Reason, now: i64) -> Result<()> {
    let mut sql = Sql::new("UPDATE \"tasks\" SET \"seq\" = \"seq\" + 1, \"attempt\" = 0");
    sql.push(", \"status\" = CASE \"status\" WHEN 'blocked' THEN 'blocked' ELSE 'queued' END");
    sql.push(", \"stage\" = \"stage\" || ").bind(TWIN);
    sql.push(", \"cancel_requested\" = TRUE, \"cancelling\" = TRUE, \"version\" = \"version\" + 1");
    sql.push(", \"reason_kind\" = ").bind(why.kind.as_str()).push(", \"reason\" = ").bind(&why.text);
    sql.push(", \"run_at\" = ").bind(now).push(", \"updated_at\" = ").bind(now);
    sql.push(" WHERE \"id\" = ").bind(id).push(" AND \"status\" IN ('queued', 'waiting', 'blocked')");
    db::execute(conn, &sql)?;
    due_now(conn, id, now)
}

/// Tells a running task that it is to be cancelled.
pub(crate) fn ask_to_cancel(conn: &mut AnyConnection, id: &str, why: &Reason, now: i64) -> Result<()> {
    let mut sql = Sql::new("UPDATE \"tasks\" SET \"cancel_requested\" = TRUE, \"version\" = \"version\" + 1");
    sql.push(", \"reason_kind\" = ").bind(why.kind.as_str()).push(", \"reason\" = ").bind(&why.text);
    sql.push(", \"updated_at\" = ").bind(now).push(" WHERE \"id\" = ").bind(id);
    db::execute(conn, &sql)?;
    Ok(())
}

/// Cancels what a task has started and what has not ended, and what that has
/// started.
pub(crate) fn cancel_children(conn: &mut AnyConnection, id: &str, why: &Reason, now: i64) -> Result<()> {
    let mut sql = Sql::new(
        "SELECT \"id\", \"status\", \"open_children\", \"cancelling\", \"stage\" FROM \"tasks\" WHERE \"parent_task_id\" = ",
    );
    sql.bind(id)
        .push(" AND \"ended_at\" IS NULL AND \"status\" <> 'member' ORDER BY \"id\"")
        .push(for_update(conn));
    for (child, status, children, cancelling, stage) in
        db::load::<(String, String, i64, bool, String)>(conn, sql)?
    {
        if cancelling || crate::task::is_winding_up(&stage) {
            continue;
        }
        match status.as_str() {
            "running" => ask_to_cancel(conn, &child, why, now)?,
            "waiting" if children > 0 => super::give_up(conn, &child, why, true, now)?,
            _ => cancel(conn, &child, why, now)?,
        }
    }
    Ok(())
}

/// The further objects of a task.
pub(crate) fn members(conn: &mut AnyConnection, id: &str) -> Result<Vec<String>> {
    let sql =
        Sql::new("SELECT \"obj_id\" FROM \"tasks\" WHERE \"parent_seq\" = -1 AND \"parent_task_id\" = ");
    Ok(db::load::<(String,)>(conn, sql.value(id).text(" ORDER BY \"id\""))?
        .into_iter()
        .map(|(it,)| it)
        .collect())
}

/// Makes a failed task, locked, run again.
pub(crate) fn retry(conn: &mut AnyConnection, id: &str, lane: &str, now: i64) -> Result<()> {
    let mut sql =
        Sql::new("UPDATE \"tasks\" SET \"status\" = 'queued', \"seq\" = \"seq\" + 1, \"attempt\" = 0");
    sql.push(
        ", \"stage\" = \"retry_stage\", \"cancel_requested\" = FALSE, \"reason_kind\" = CASE \"ending\" \
         WHEN '' THEN '' ELSE \"reason_kind\" END, \"reason\" = CASE \"ending\" WHEN '' THEN '' ELSE \"reason\" END",
    );
    sql.push(", \"cancelling\" = FALSE, \"version\" = \"version\" + 1, \"active_key\" = ").bind(lane);
    sql.push(", \"ended_at\" = ").bind(Value::Int(None)).push(", \"deadline\" = ").bind(Value::Int(None));
    sql.push(", \"run_at\" = ").bind(now).push(", \"updated_at\" = ").bind(now);
    sql.push(" WHERE \"id\" = ").bind(id).push(" AND \"status\" = 'failed'");
    db::execute(conn, &sql)?;
    let mut sql =
        Sql::new("UPDATE \"tasks\" SET \"status\" = 'member', \"active_key\" = \"lane\", \"ended_at\" = ");
    sql.bind(Value::Int(None)).push(", \"version\" = \"version\" + 1 WHERE \"parent_seq\" = -1");
    sql.push(" AND \"parent_task_id\" = ").bind(id);
    db::execute(conn, &sql)?;
    super::ready(conn, id, true)
}
