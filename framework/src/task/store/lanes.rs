//! Lanes: the tasks of one object, one at a time, in the order they came. A
//! unique index lets one task be active; the others are blocked behind it,
//! counted by it, and whoever ends makes the next one ready in the same
//! transaction. Subtasks and their parents, too: who ends last wakes it.

use super::{Entry, NewTask, for_update, insert};
use crate::Result;
use crate::db::{self, AnyConnection, Dialect, Sql, Value};
use crate::task::TWIN;
use crate::task::stage::Reason;

/// What came of a start.
#[derive(Debug)]
pub(crate) enum Entered {
    Stored,
    /// Another task works on the object.
    Busy,
    /// There is a task with that unique key.
    Exists(String),
}

/// Stores a task at the head of its lane, or behind it if it may.
pub(crate) fn enter(conn: &mut AnyConnection, new: &NewTask<'_>, behind: bool) -> Result<Entered> {
    // The head may end between two of these; then its place is free.
    for _ in 0..8 {
        if insert(conn, new, Entry::Head)? {
            return Ok(Entered::Stored);
        }
        if let Some(key) = new.unique_key {
            let sql = Sql::new("SELECT \"id\" FROM \"tasks\" WHERE \"unique_key\" = ").value(key);
            if let Some((id,)) = db::load_one::<(String,)>(conn, sql)? {
                return Ok(Entered::Exists(id));
            }
        }
        if !behind {
            return Ok(Entered::Busy);
        }
        if let Some(place) = follow(conn, new.lane)?
            && insert(conn, new, Entry::Behind(place))?
        {
            return Ok(Entered::Stored);
        }
    }
    Ok(Entered::Busy)
}

/// Takes a place behind a lane's head, which cannot end before this
/// transaction does. `None`: there is no head.
pub(crate) fn follow(conn: &mut AnyConnection, lane: &str) -> Result<Option<i64>> {
    let mut sql =
        Sql::new("UPDATE \"tasks\" SET \"followers\" = \"followers\" + 1, \"lane_tail\" = \"lane_tail\" + 1");
    sql.push(" WHERE \"active_key\" = ").bind(lane);
    if conn.dialect() != Dialect::Mysql {
        sql.push(" RETURNING \"lane_tail\"");
        return Ok(db::load_one::<(i64,)>(conn, sql)?.map(|(it,)| it));
    }
    if db::execute(conn, &sql)? == 0 {
        return Ok(None);
    }
    let sql = Sql::new("SELECT \"lane_tail\" FROM \"tasks\" WHERE \"active_key\" = ").value(lane);
    Ok(db::load_one::<(i64,)>(conn, sql)?.map(|(it,)| it))
}

/// Makes the next task of a lane its head, whose place is free.
pub(super) fn promote(conn: &mut AnyConnection, lane: &str, now: i64) -> Result<()> {
    let mut sql = Sql::new("SELECT \"id\", \"run_at\", \"status\" FROM \"tasks\" WHERE \"blocked_on\" = ");
    sql.bind(lane).push(" ORDER BY \"lane_seq\" LIMIT 1").push(for_update(conn));
    let Some((id, run_at, _)) = db::load_one::<(String, i64, String)>(conn, sql)? else { return Ok(()) };
    // How many follow it: counted once, by the few that there are.
    let mut sql = Sql::new("SELECT count(*), max(\"lane_seq\") FROM \"tasks\" WHERE \"blocked_on\" = ");
    sql.bind(lane);
    let (left, tail) = db::load_one::<(i64, Option<i64>)>(conn, sql)?.unwrap_or_default();
    let mut sql = Sql::new("UPDATE \"tasks\" SET \"status\" = 'queued', \"version\" = \"version\" + 1");
    sql.push(", \"active_key\" = ").bind(lane).push(", \"blocked_on\" = ").bind(Value::Text(None));
    sql.push(", \"followers\" = ").bind(left - 1).push(", \"lane_tail\" = ").bind(tail.unwrap_or(0));
    sql.push(", \"updated_at\" = ").bind(now).push(", \"run_at\" = ").bind(run_at.max(now));
    sql.push(" WHERE \"id\" = ").bind(&id);
    db::execute(conn, &sql)?;
    super::ready(conn, &id, run_at <= now)
}

/// Ends the holders of a task's further objects with it.
pub(super) fn end_members(conn: &mut AnyConnection, id: &str, status: &str, now: i64) -> Result<()> {
    let mut sql = Sql::new("SELECT \"id\", \"lane\" FROM \"tasks\" WHERE \"parent_task_id\" = ").value(id);
    sql.push(" AND \"status\" = 'member' ORDER BY \"id\"").push(for_update(conn));
    let members: Vec<(String, String)> = db::load(conn, sql)?;
    for (member, lane) in &members {
        let mut sql = Sql::new("UPDATE \"tasks\" SET \"status\" = ").value(status);
        sql.push(", \"active_key\" = ").bind(Value::Text(None)).push(", \"version\" = \"version\" + 1");
        sql.push(", \"ended_at\" = ").bind(now).push(", \"updated_at\" = ").bind(now);
        sql.push(" WHERE \"id\" = ").bind(member);
        db::execute(conn, &sql)?;
        promote(conn, lane, now)?;
    }
    Ok(())
}

/// How a task's subtasks ended.
#[derive(Debug, Default, serde::Serialize)]
struct Ended {
    total: i64,
    done: i64,
    failed: i64,
    cancelled: i64,
}

/// A subtask has ended: its parent goes on, if it was the last.
pub(super) fn child_ended(conn: &mut AnyConnection, parent: &str, seq: i64, now: i64) -> Result<()> {
    let mut sql = Sql::new("UPDATE \"tasks\" SET \"open_children\" = \"open_children\" - 1 WHERE \"id\" = ");
    sql.bind(parent).push(" AND \"seq\" = ").bind(seq).push(" AND \"status\" = 'waiting'");
    const OF: &str = "\"open_children\", \"stage\"";
    let left = if conn.dialect() == Dialect::Mysql {
        if db::execute(conn, &sql)? == 0 {
            return Ok(());
        }
        let sql = Sql::new("SELECT ").text(OF).text(" FROM \"tasks\" WHERE \"id\" = ").value(parent);
        db::load_one::<(i64, String)>(conn, sql)?
    } else {
        sql.push(" RETURNING ").push(OF);
        db::load_one::<(i64, String)>(conn, sql)?
    };
    // None: the parent does not wait any more.
    let Some((0, stage)) = left else { return Ok(()) };
    if stage.ends_with(TWIN) {
        // It was given up, and waited for them to wind up.
        let mut sql = Sql::new("UPDATE \"tasks\" SET \"status\" = 'queued', \"seq\" = \"seq\" + 1");
        sql.push(", \"attempt\" = 0, \"version\" = \"version\" + 1, \"run_at\" = ").bind(now);
        sql.push(", \"updated_at\" = ").bind(now).push(" WHERE \"id\" = ").bind(parent);
        db::execute(conn, &sql)?;
        return super::due_now(conn, parent, now);
    }
    let mut sql =
        Sql::new("SELECT \"status\", count(*) FROM \"tasks\" WHERE \"parent_task_id\" = ").value(parent);
    sql.push(" AND \"parent_seq\" = ").bind(seq).push(" GROUP BY \"status\"");
    let mut ended = Ended::default();
    for (status, n) in db::load::<(String, i64)>(conn, sql)? {
        match status.as_str() {
            "done" => ended.done = n,
            "failed" => ended.failed = n,
            "cancelled" => ended.cancelled = n,
            _ => continue,
        }
        ended.total += n;
    }
    let data = serde_json::to_string(&ended).map_err(crate::Error::internal)?;
    super::resume(conn, parent, &data, now)
}

/// Gives up the wait of a task, locked, for its subtasks: they are cancelled,
/// and when the last has ended, its stage's twin runs. So it never works on an
/// object beside one of them, nor ends before them.
pub(crate) fn give_up(
    conn: &mut AnyConnection,
    id: &str,
    why: &Reason,
    cancelling: bool,
    now: i64,
) -> Result<()> {
    let theirs = Reason::cancelled(&format!("what it is a part of was given up: {why}"));
    super::cancel_children(conn, id, &theirs, now)?;
    let mut sql = Sql::new("UPDATE \"tasks\" SET \"stage\" = \"stage\" || ").value(TWIN);
    sql.push(", \"cancelling\" = ").bind(cancelling).push(", \"cancel_requested\" = ").bind(cancelling);
    sql.push(", \"reason_kind\" = ").bind(why.kind.as_str()).push(", \"reason\" = ").bind(&why.text);
    sql.push(", \"version\" = \"version\" + 1, \"updated_at\" = ").bind(now);
    sql.push(" WHERE \"id\" = ").bind(id);
    db::execute(conn, &sql)?;
    // Its subtasks have times of their own.
    let mut sql = Sql::new("UPDATE \"task_ready\" SET \"due\" = FALSE, \"run_at\" = ").value(NEVER);
    sql.push(" WHERE \"task_id\" = ").bind(id);
    db::execute(conn, &sql)?;
    Ok(())
}

/// A time that does not come.
const NEVER: i64 = i64::MAX / 4;

/// Gives up the wait for subtasks whose time is over; `false`: it is another wait.
pub(super) fn gives_up(conn: &mut AnyConnection, id: &str, now: i64) -> Result<bool> {
    let mut sql =
        Sql::new("SELECT \"stage\" FROM \"tasks\" WHERE \"status\" = 'waiting' AND \"open_children\" > 0");
    sql.push(" AND \"id\" = ").bind(id).push(for_update(conn));
    let Some((stage,)) = db::load_one::<(String,)>(conn, sql)? else { return Ok(false) };
    if !stage.ends_with(TWIN) {
        give_up(conn, id, &Reason::timeout("the subtasks did not end in time"), false, now)?;
    }
    Ok(true)
}

/// The lane of a subtask on an object: the object's own, or, where the parent
/// or what that is a part of holds it, one below it.
pub(crate) fn lane_under(conn: &mut AnyConnection, key: &str, parent: &str) -> Result<String> {
    const OF: &str = "SELECT \"id\", \"parent_task_id\", \"status\" FROM \"tasks\" WHERE ";
    type Of = (String, Option<String>, String);
    let sql = Sql::new(OF).text("\"active_key\" = ").value(key);
    let Some((id, above, status)) = db::load_one::<Of>(conn, sql)? else { return Ok(key.to_owned()) };
    let holder = if status == "member" { above.unwrap_or_default() } else { id };
    let mut at = Some(parent.to_owned());
    while let Some(id) = at {
        if id == holder {
            return Ok(format!("{parent}/{key}"));
        }
        let sql = Sql::new(OF).text("\"id\" = ").value(&*id);
        at = db::load_one::<Of>(conn, sql)?.and_then(|(_, above, _)| above);
    }
    Ok(key.to_owned())
}
