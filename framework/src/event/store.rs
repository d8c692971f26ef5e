//! The statements on the log.

use super::Position;
use crate::Result;
use crate::db::{self, AnyConnection, Dialect, FromRow, RowReader, Sql};

/// Most records of one read.
pub(super) const CHUNK: i64 = 500;

/// A record as the feed carries it: enough to know whom it may concern.
#[derive(Debug, Clone)]
pub struct Change {
    pub(crate) at: Position,
    /// When, in microseconds since 1970.
    pub(crate) made_at: i64,
    pub(crate) obj_type: String,
    pub(crate) obj_id: String,
    pub(crate) obj_name: String,
    pub(crate) version: i64,
    pub(crate) action: String,
    pub(crate) owner_domain_id: String,
    pub(crate) owner_project_id: String,
    pub(crate) owner_user_id: String,
    /// Whether its row was made in the batch that it was picked from.
    pub(crate) began: bool,
}

impl FromRow for Change {
    fn from_row(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        Ok(Self {
            at: Position { xid: row.get()?, seq: row.get()? },
            made_at: row.get()?,
            obj_type: row.get()?,
            obj_id: row.get()?,
            obj_name: row.get()?,
            version: row.get()?,
            action: row.get()?,
            owner_domain_id: row.get()?,
            owner_project_id: row.get()?,
            owner_user_id: row.get()?,
            began: false,
        })
    }
}

/// The columns of a position.
pub(super) fn position(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Sqlite | Dialect::Mysql => "0, \"seq\"",
        Dialect::Postgres => "\"xid\", \"seq\"",
    }
}

/// Records after a position.
fn after(sql: &mut Sql<'_>, dialect: Dialect, at: Position) {
    match dialect {
        Dialect::Sqlite | Dialect::Mysql => sql.push("\"seq\" > ").bind(at.seq),
        Dialect::Postgres => {
            sql.push("(\"xid\", \"seq\") > (").bind(at.xid).push(", ").bind(at.seq).push(")")
        }
    };
}

/// The order of the feed.
fn order(dialect: Dialect, desc: bool) -> &'static str {
    match (dialect, desc) {
        (Dialect::Sqlite | Dialect::Mysql, false) => " ORDER BY \"seq\"",
        (Dialect::Sqlite | Dialect::Mysql, true) => " ORDER BY \"seq\" DESC",
        (Dialect::Postgres, false) => " ORDER BY \"xid\", \"seq\"",
        (Dialect::Postgres, true) => " ORDER BY \"xid\" DESC, \"seq\" DESC",
    }
}

/// Only records that none can come before any more; on MySQL see [`wait`].
fn settled(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Sqlite | Dialect::Mysql => "TRUE",
        Dialect::Postgres => "\"xid\" < pg_snapshot_xmin(pg_current_snapshot())::text::bigint",
    }
}

/// MySQL tells nobody which transactions run, but a read that locks waits for
/// the records that are there and not committed.
fn wait(dialect: Dialect) -> &'static str {
    if dialect == Dialect::Mysql { " LOCK IN SHARE MODE" } else { "" }
}

/// How old a record has to be for MySQL's feed to step over numbers that are
/// missing before it. They were given out; who took them has given up, or is
/// between taking the number and making the record.
const GAP: i64 = 2_000_000;

/// Leaves out what stands after numbers that are missing and may yet come;
/// tells whether there was any.
fn without_gaps(changes: &mut Vec<Change>, at: Position, now: i64) -> bool {
    let mut last = at.seq;
    let hole = changes.iter().position(|it| {
        let missing = it.at.seq != std::mem::replace(&mut last, it.at.seq) + 1;
        missing && it.made_at > now - GAP
    });
    changes.truncate(hole.unwrap_or(changes.len()));
    hole.is_some()
}

/// Records of the log, in the order of the feed.
pub(super) struct Read {
    pub(super) changes: Vec<Change>,
    /// Whether more are there that have to wait for one that may come before
    /// them: two seconds at most.
    pub(super) waits: bool,
}

/// The next records after a position, in the order of the feed.
pub(super) fn changes(conn: &mut AnyConnection, at: Position) -> Result<Read> {
    let dialect = conn.dialect();
    let mut sql = Sql::new("SELECT ").text(position(dialect)).text(
        ", \"at\", \"obj_type\", \"obj_id\", \"obj_name\", \"obj_version\", \"action\", \"owner_domain_id\", \
         \"owner_project_id\", \"owner_user_id\" FROM \"ops_log\" WHERE ",
    );
    after(&mut sql, dialect, at);
    sql.push(" AND ").push(settled(dialect)).push(order(dialect, false));
    sql.push(" LIMIT ").bind(CHUNK).push(wait(dialect));
    let mut changes = db::load(conn, sql)?;
    let waits = dialect == Dialect::Mysql && without_gaps(&mut changes, at, crate::now().timestamp_micros());
    Ok(Read { changes, waits })
}

/// Where the feed stands now: after the last record that is settled.
pub(super) fn end(conn: &mut AnyConnection) -> Result<Position> {
    let dialect = conn.dialect();
    let sql = Sql::new("SELECT ")
        .text(position(dialect))
        .text(" FROM \"ops_log\" WHERE ")
        .text(settled(dialect))
        .text(order(dialect, true))
        // As many as may be under way.
        .text(if dialect == Dialect::Mysql { " LIMIT 500" } else { " LIMIT 1" })
        .text(wait(dialect));
    let row = db::load_one::<(i64, i64)>(conn, sql)?;
    Ok(row.map_or_else(Position::default, |(xid, seq)| Position { xid, seq }))
}

/// When the oldest record was made that nobody can read yet, if there is one.
pub(super) fn waiting_since(conn: &mut AnyConnection, at: Position) -> Result<Option<i64>> {
    let dialect = conn.dialect();
    let mut sql = Sql::new("SELECT \"at\" FROM \"ops_log\" WHERE ");
    after(&mut sql, dialect, at);
    sql.push(order(dialect, false)).push(" LIMIT 1");
    Ok(db::load_one::<(i64,)>(conn, sql)?.map(|(made_at,)| made_at))
}

/// What this log is called, so that nobody takes a position of another
/// database for one of this: made up by whoever asks first.
pub(super) fn name(conn: &mut AnyConnection) -> Result<String> {
    let dialect = conn.dialect();
    let mut sql = Sql::new(dialect.insert_new());
    sql.push("\"feed_log\" (\"one\", \"name\") VALUES (1, ");
    sql.bind(format!("{:08x}", rand::random::<u32>())).push(")").push(dialect.or_ignore());
    db::execute(conn, &sql)?;
    let found = db::load_one::<(String,)>(conn, Sql::new("SELECT \"name\" FROM \"feed_log\""))?;
    found.map(|(name,)| name).ok_or_else(|| crate::Error::internal("the log has no name"))
}

/// What a position is to this log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Whatever came after it is there.
    Good,
    /// Records after it are kept no longer.
    Expired,
    /// It is ahead of the log, which was put back from a copy.
    Ahead,
}

/// Whether one can go on from a position.
pub(super) fn standing(conn: &mut AnyConnection, at: Position) -> Result<Standing> {
    let sql = Sql::new(match conn.dialect() {
        Dialect::Sqlite | Dialect::Mysql => {
            "SELECT \"xid\", \"seq\", 0, (SELECT COALESCE(MAX(\"seq\"), 0) FROM \"ops_log\") FROM \"feed_horizon\""
        }
        Dialect::Postgres => {
            "SELECT \"xid\", \"seq\", pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1, \
             9223372036854775807 FROM \"feed_horizon\""
        }
    });
    let Some((xid, seq, last_xid, last_seq)) = db::load_one::<(i64, i64, i64, i64)>(conn, sql)? else {
        return Ok(Standing::Good);
    };
    Ok(if at < (Position { xid, seq }) {
        Standing::Expired
    } else if at > (Position { xid: last_xid, seq: last_seq }) {
        Standing::Ahead
    } else {
        Standing::Good
    })
}

/// Removes the oldest records made before a moment, in the order of the feed,
/// and moves the horizon. The newest record stays, so that an idle log still
/// tells where it stands. Gives how many went.
pub(super) fn sweep(conn: &mut AnyConnection, before: i64) -> Result<usize> {
    let dialect = conn.dialect();
    let sql = Sql::new("SELECT ")
        .text(position(dialect))
        .text(", \"at\" FROM \"ops_log\"")
        .text(order(dialect, false))
        .text(" LIMIT ")
        .value(CHUNK + 1);
    let mut oldest = db::load::<(i64, i64, i64)>(conn, sql)?;
    oldest.pop();
    let old = oldest.iter().take_while(|(_, _, at)| *at < before).last();
    let Some(&(xid, seq, _)) = old else { return Ok(0) };
    let last = Position { xid, seq };
    // First: a second process that sweeps waits here.
    let horizon = Sql::new("UPDATE \"feed_horizon\" SET \"xid\" = ").value(last.xid).text(", \"seq\" = ");
    let horizon = horizon.value(last.seq).text(" WHERE (\"xid\", \"seq\") < (").value(last.xid).text(", ");
    db::execute(conn, &horizon.value(last.seq).text(")"))?;
    let sql = match dialect {
        Dialect::Sqlite | Dialect::Mysql => {
            Sql::new("DELETE FROM \"ops_log\" WHERE \"seq\" <= ").value(last.seq)
        }
        Dialect::Postgres => Sql::new("DELETE FROM \"ops_log\" WHERE (\"xid\", \"seq\") <= (")
            .value(last.xid)
            .text(", ")
            .value(last.seq)
            .text(")"),
    };
    db::execute(conn, &sql)
}

/// A PostgreSQL that was filled from a dump counts its transactions anew: the
/// records of the old count go before all of the new one.
pub(super) fn settle_count(conn: &mut AnyConnection) -> Result<()> {
    if conn.dialect() == Dialect::Postgres {
        let next = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
        for table in ["ops_log", "feed_horizon"] {
            let text = format!("UPDATE \"{table}\" SET \"xid\" = 0 WHERE \"xid\" >= {next}");
            db::execute(conn, &Sql::new(text))?;
        }
    }
    Ok(())
}
