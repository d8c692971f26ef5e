//! Claims: what is due, taken in batches, in turn between projects. What a
//! claim reads does not grow with the tables: it seeks from queue to queue,
//! and in each begins where it ended last time.

use super::{CLAIMED, Claimed};
use crate::Result;
use crate::db::{self, AnyConnection, Dialect, Sql};
use crate::task::TWIN;
use crate::task::stage::ReasonKind;

/// How much of a queue a claim may take.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Share {
    /// Priority, project and name.
    pub(crate) queue: String,
    /// At most so many.
    pub(crate) n: i64,
    /// Only what was due at this time or later: before it, all is claimed.
    pub(crate) floor: i64,
}

/// A queue, and the time before which all of it is claimed.
pub(crate) type Floor = (String, i64);

/// Most floors that a look for queues is given: its statement grows with them.
const FLOORS: usize = 8;

/// The queues that have something due, after one, in order: a seek each. Of
/// those whose floor is known only what is above it counts: below it an old
/// snapshot may keep any number of entries that are gone.
pub(crate) fn heads(
    conn: &mut AnyConnection,
    after: &str,
    limit: i64,
    floors: &[Floor],
) -> Result<Vec<String>> {
    const DUE: &str = " FROM \"task_ready\" WHERE \"due\" = TRUE AND \"queue\" ";
    let floors: Vec<_> = match conn.dialect() {
        // Its entries go with the rows.
        Dialect::Mysql => Vec::new(),
        _ => floors.iter().filter(|(queue, _)| queue.as_str() > after).take(FLOORS).collect(),
    };
    let mut sql = Sql::new("WITH RECURSIVE ");
    for i in 0..=floors.len() {
        let from = if i == 0 { after } else { floors[i - 1].0.as_str() };
        let next = |sql: &mut Sql<'_>| {
            if let Some((to, _)) = floors.get(i) {
                sql.push(" AND \"queue\" < ").bind(to.clone());
            }
        };
        sql.push(format!("{}h{i} (q) AS (SELECT min(\"queue\"){DUE}> ", if i == 0 { "" } else { ", " }));
        sql.bind(from);
        next(&mut sql);
        sql.push(format!(" UNION ALL SELECT (SELECT min(\"queue\"){DUE}> h{i}.q"));
        next(&mut sql);
        sql.push(format!(") FROM h{i} WHERE h{i}.q IS NOT NULL)"));
    }
    for i in 0..=floors.len() {
        sql.push(if i == 0 { " " } else { " UNION ALL " });
        sql.push(format!("SELECT q FROM (SELECT q FROM h{i} WHERE q IS NOT NULL LIMIT ")).bind(limit);
        sql.push(format!(") AS g{i}"));
        if let Some((queue, floor)) = floors.get(i) {
            sql.push(" UNION ALL SELECT ").bind(queue.as_str()).push(" WHERE EXISTS (SELECT 1").push(DUE);
            sql.push("= ").bind(queue.as_str()).push(" AND \"run_at\" >= ").bind(*floor).push(")");
        }
    }
    let mut heads: Vec<_> = db::load::<(String,)>(conn, sql)?.into_iter().map(|(it,)| it).collect();
    // As the index has them.
    heads.sort_unstable();
    heads.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(heads)
}

/// Makes due what has become so; tells how many.
pub(crate) fn promote_timers(conn: &mut AnyConnection, now: i64, limit: i64) -> Result<usize> {
    let mut sql = Sql::new("SELECT \"task_id\" FROM \"task_ready\" WHERE \"due\" = FALSE AND \"run_at\" <= ");
    sql.bind(now).push(" ORDER BY \"run_at\" LIMIT ").bind(limit).push(conn.dialect().skip_locked());
    let ids: Vec<(String,)> = db::load(conn, sql)?;
    for (id,) in &ids {
        if !super::lanes::gives_up(conn, id, now)? {
            super::due_now(conn, id, now)?;
        }
    }
    Ok(ids.len())
}

/// Takes what is due of some queues. A wait that is due is over: its stage's
/// twin is what runs.
pub(crate) fn claim(
    conn: &mut AnyConnection,
    worker: &str,
    now: i64,
    shares: &[Share],
) -> Result<Vec<Claimed>> {
    match conn.dialect() {
        Dialect::Postgres => claim_at_once(conn, worker, now, shares),
        Dialect::Sqlite | Dialect::Mysql => {
            let mut all = Vec::new();
            for share in shares {
                all.extend(claim_of(conn, worker, now, share)?);
            }
            Ok(all)
        }
    }
}

/// One statement for all queues. The task is locked with its ready row, and
/// whatever is locked is left: a claim never waits, so it is in nobody's circle.
fn claim_at_once(conn: &mut AnyConnection, worker: &str, now: i64, shares: &[Share]) -> Result<Vec<Claimed>> {
    const OF: &str = "SELECT r.\"task_id\" FROM \"task_ready\" r JOIN \"tasks\" t ON t.\"id\" = r.\"task_id\" \
         WHERE r.\"due\" = TRUE AND r.\"queue\" = ";
    const IDS: &str = "ARRAY(SELECT \"task_id\" FROM due)";
    const IN_ORDER: &str = " ORDER BY r.\"run_at\", r.\"task_id\" LIMIT ";
    let mut sql = Sql::new("WITH due AS (");
    if let [one] = shares {
        sql.push(OF)
            .bind(&one.queue)
            .push(" AND r.\"run_at\" >= ")
            .bind(one.floor)
            .push(IN_ORDER)
            .bind(one.n);
        sql.push(" FOR UPDATE SKIP LOCKED");
    } else {
        let shares = serde_json::to_string(shares).map_err(crate::Error::internal)?;
        sql.push("SELECT c.\"task_id\" FROM json_to_recordset(").bind(shares);
        sql.push("::json) AS q (queue text, n bigint, floor bigint) CROSS JOIN LATERAL (").push(OF);
        sql.push("q.queue COLLATE \"C\" AND r.\"run_at\" >= q.floor").push(IN_ORDER);
        sql.push("q.n FOR UPDATE SKIP LOCKED) c");
    }
    sql.push("), gone AS (DELETE FROM \"task_ready\" WHERE \"task_id\" = ANY(");
    // As an array: whatever the planner believes of the tables, it goes by key.
    sql.push(IDS).push(")) ");
    take(&mut sql, worker, now);
    sql.push(" = ANY(").push(IDS).push(") RETURNING ").push(CLAIMED);
    db::load(conn, sql)
}

/// What a claim changes of a task, up to what its id must be.
fn take<'a>(sql: &mut Sql<'a>, worker: &'a str, now: i64) {
    sql.push("UPDATE \"tasks\" SET \"worker_id\" = ").bind(worker);
    sql.push(", \"epoch\" = \"epoch\" + 1, \"version\" = \"version\" + 1, \"updated_at\" = ");
    sql.bind(now).push(", \"started_at\" = ").bind(now);
    sql.push(", \"stage\" = CASE WHEN \"status\" = 'waiting' THEN \"stage\" || ").bind(TWIN);
    sql.push(
        " ELSE \"stage\" END, \"seq\" = CASE WHEN \"status\" = 'waiting' THEN \"seq\" + 1 ELSE \"seq\" END",
    );
    sql.push(", \"attempt\" = CASE WHEN \"status\" = 'waiting' THEN 1 ELSE \"attempt\" + 1 END");
    sql.push(", \"reason_kind\" = CASE WHEN \"status\" = 'waiting' THEN ").bind(ReasonKind::Timeout.as_str());
    sql.push(" ELSE \"reason_kind\" END, \"reason\" = CASE WHEN \"status\" = 'waiting' THEN ");
    sql.bind("no callback came in time").push(" ELSE \"reason\" END");
    // Last: to MySQL, a column has its new value in what stands after it.
    sql.push(", \"status\" = 'running' WHERE \"status\" IN ('queued', 'waiting') AND \"id\"");
}

fn claim_of(conn: &mut AnyConnection, worker: &str, now: i64, share: &Share) -> Result<Vec<Claimed>> {
    let dialect = conn.dialect();
    let mut due = Sql::default();
    due.push(match dialect {
        // In the index's order: MySQL locks what it reads, and sorts after.
        Dialect::Mysql => {
            "SELECT r.\"task_id\" FROM \"task_ready\" r FORCE INDEX (\"task_ready_due\") STRAIGHT_JOIN \
             \"tasks\" t ON t.\"id\" = r.\"task_id\" WHERE r.\"due\" = TRUE AND r.\"queue\" = "
        }
        _ => "SELECT r.\"task_id\" FROM \"task_ready\" r WHERE r.\"due\" = TRUE AND r.\"queue\" = ",
    });
    due.bind(&share.queue).push(" AND r.\"run_at\" >= ").bind(share.floor);
    due.push(" ORDER BY r.\"run_at\", r.\"task_id\" LIMIT ").bind(share.n);
    if dialect == Dialect::Sqlite {
        let mut sql = Sql::default();
        take(&mut sql, worker, now);
        sql.push(" IN (").append(due).push(") RETURNING ").push(CLAIMED);
        let claimed: Vec<Claimed> = db::load(conn, sql)?;
        for task in &claimed {
            let sql = Sql::new("DELETE FROM \"task_ready\" WHERE \"task_id\" = ").value(&task.id);
            db::execute(conn, &sql)?;
        }
        return Ok(claimed);
    }
    due.push(dialect.skip_locked());
    let ids: Vec<(String,)> = db::load(conn, due)?;
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let listed = |sql: &mut Sql<'_>| {
        for (i, (id,)) in ids.iter().enumerate() {
            sql.push(if i == 0 { "" } else { ", " }).bind(id.clone());
        }
        sql.push(")");
    };
    let mut sql = Sql::default();
    take(&mut sql, worker, now);
    sql.push(" IN (");
    listed(&mut sql);
    db::execute(conn, &sql)?;
    let mut gone = Sql::new("DELETE FROM \"task_ready\" WHERE \"task_id\" IN (");
    listed(&mut gone);
    db::execute(conn, &gone)?;
    let mut sql = Sql::new("SELECT ").text(CLAIMED).text(" FROM \"tasks\" WHERE \"status\" = 'running'");
    sql.push(" AND \"worker_id\" = ").bind(worker).push(" AND \"id\" IN (");
    listed(&mut sql);
    db::load(conn, sql)
}

/// What a worker that has nothing to do looks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Look {
    /// Microseconds until the next timer; `None`: there is none.
    pub(crate) timer_in: Option<i64>,
    /// The queues that have something due.
    pub(crate) heads: Vec<String>,
    /// All worker processes that have a row.
    pub(crate) workers: Vec<super::Seen>,
}

/// Looks, without writing, what is due.
pub(crate) fn look(conn: &mut AnyConnection, now: i64, limit: i64, floors: &[Floor]) -> Result<Look> {
    let sql = Sql::new("SELECT min(\"run_at\") FROM \"task_ready\" WHERE \"due\" = FALSE");
    let timer = db::load_one::<(Option<i64>,)>(conn, sql)?.and_then(|(at,)| at);
    Ok(Look {
        timer_in: timer.map(|at| (at - now).max(0)),
        heads: heads(conn, "", limit, floors)?,
        workers: super::seen(conn)?,
    })
}
