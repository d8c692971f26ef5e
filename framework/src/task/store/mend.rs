//! What should never be, looked for a piece at a time and set right: tasks
//! that nothing would ever wake.

use super::{Note, for_update, lanes, note};
use crate::Result;
use crate::db::{self, AnyConnection, Sql};

/// Tasks that one look sees at most.
const PIECE: usize = 2000;

/// How a look through the active tasks goes on with the next.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cursor {
    active: String,
    lane: String,
}

/// What a look found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Queued or waiting tasks without a row in `task_ready`.
    pub(crate) asleep: Vec<String>,
    /// Lanes with blocked tasks and no head.
    pub(crate) headless: Vec<String>,
}

/// Where the next look begins: after the last of a full piece, else at the front.
fn next<T>(rows: &[T], key: impl Fn(&T) -> &str) -> String {
    rows.last().filter(|_| rows.len() >= PIECE).map_or_else(String::new, |it| key(it).to_owned())
}

/// Looks at a piece of what is active and blocked, and has not changed since.
pub(crate) fn look_for_stuck(
    conn: &mut AnyConnection,
    from: &Cursor,
    before: i64,
) -> Result<(Found, Cursor)> {
    type Active = (String, String, String, i64, bool);
    let limit = i64::try_from(PIECE).unwrap_or(i64::MAX);
    let mut sql = Sql::new(
        "SELECT t.\"active_key\", t.\"id\", t.\"status\", t.\"updated_at\", EXISTS (SELECT 1 FROM \"task_ready\" r \
         WHERE r.\"task_id\" = t.\"id\") FROM \"tasks\" t WHERE t.\"active_key\" IS NOT NULL AND t.\"active_key\" > ",
    );
    sql.bind(&from.active).push(" ORDER BY t.\"active_key\" LIMIT ").bind(limit);
    let active: Vec<Active> = db::load(conn, sql)?;
    let mut sql = Sql::new(
        "SELECT b.l, EXISTS (SELECT 1 FROM \"tasks\" h WHERE h.\"active_key\" = b.l) FROM (SELECT DISTINCT \
         \"blocked_on\" AS l FROM \"tasks\" WHERE \"blocked_on\" IS NOT NULL AND \"blocked_on\" > ",
    );
    sql.bind(&from.lane).push(" ORDER BY \"blocked_on\" LIMIT ").bind(limit).push(") b ORDER BY b.l");
    let lanes: Vec<(String, bool)> = db::load(conn, sql)?;
    let cursor = Cursor { active: next(&active, |it| &it.0), lane: next(&lanes, |it| &it.0) };
    let asleep = |it: &Active| (it.2 == "queued" || it.2 == "waiting") && !it.4 && it.3 < before;
    let found = Found {
        asleep: active.into_iter().filter(asleep).map(|it| it.1).collect(),
        headless: lanes.into_iter().filter(|it| !it.1).map(|it| it.0).collect(),
    };
    Ok((found, cursor))
}

/// Makes a task ready again that has no row for it; tells whether it had none.
pub(crate) fn wake(conn: &mut AnyConnection, id: &str, now: i64) -> Result<bool> {
    let mut sql = Sql::new("SELECT \"run_at\" FROM \"tasks\" WHERE \"id\" = ").value(id);
    sql.push(" AND \"status\" IN ('queued', 'waiting')").push(for_update(conn));
    let Some((run_at,)) = db::load_one::<(i64,)>(conn, sql)? else { return Ok(false) };
    let sql = Sql::new("SELECT \"task_id\" FROM \"task_ready\" WHERE \"task_id\" = ").value(id);
    if db::load_one::<(String,)>(conn, sql)?.is_some() {
        return Ok(false);
    }
    super::ready(conn, id, run_at <= now)?;
    note(conn, id, &Note::Repair, "", now)?;
    Ok(true)
}

/// Gives a lane without one its head; tells whether it had none. Whoever takes
/// the place meanwhile makes it fail on the index.
pub(crate) fn give_head(conn: &mut AnyConnection, lane: &str, now: i64) -> Result<bool> {
    const HEAD: &str = "SELECT \"id\" FROM \"tasks\" WHERE \"active_key\" = ";
    if db::load_one::<(String,)>(conn, Sql::new(HEAD).value(lane))?.is_some() {
        return Ok(false);
    }
    lanes::promote(conn, lane, now)?;
    let Some((id,)) = db::load_one::<(String,)>(conn, Sql::new(HEAD).value(lane))? else { return Ok(false) };
    note(conn, &id, &Note::Repair, "", now)?;
    Ok(true)
}

/// What waits in a queue.
#[derive(Debug)]
pub(crate) struct Depth {
    pub(crate) queue: String,
    /// How many are due, counted up to a bound.
    pub(crate) due: i64,
    /// Since when the oldest is.
    pub(crate) oldest: i64,
}

/// The queues that have something due, as far as a look goes.
pub(crate) fn depths(conn: &mut AnyConnection) -> Result<Vec<Depth>> {
    const NEXT: &str = "SELECT min(\"queue\") FROM \"task_ready\" WHERE \"due\" = TRUE AND \"queue\" > ";
    let mut sql = Sql::new("WITH RECURSIVE h (q) AS (").text(NEXT).value("");
    sql.push(" UNION ALL SELECT (").push(NEXT).push("h.q) FROM h WHERE h.q IS NOT NULL) ");
    sql.push("SELECT q, (SELECT count(*) FROM (SELECT 1 FROM \"task_ready\" r WHERE r.\"due\" = TRUE AND ");
    sql.push("r.\"queue\" = h.q LIMIT 1000) c), (SELECT min(r.\"run_at\") FROM \"task_ready\" r WHERE r.\"due\" = TRUE ");
    sql.push("AND r.\"queue\" = h.q) FROM h WHERE q IS NOT NULL LIMIT 256");
    let rows: Vec<(String, i64, Option<i64>)> = db::load(conn, sql)?;
    let depth = |(queue, due, oldest): (_, _, Option<i64>)| Some(Depth { queue, due, oldest: oldest? });
    Ok(rows.into_iter().filter_map(depth).collect())
}
