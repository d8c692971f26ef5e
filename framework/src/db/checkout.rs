//! Connections taken from a pool, in a transaction and under a lock if that
//! is wanted, and given back once they are broken.

use diesel::connection::SimpleConnection;
use diesel::r2d2::{ConnectionManager, Pool, PooledConnection};

use super::{AnyConnection, Dialect, GENERATION, Lock, READ_GENERATION, Sql, begin_anew, load_one};
use crate::{Error, Result};

pub(super) type Manager = ConnectionManager<AnyConnection>;
type Conn = PooledConnection<Manager>;

/// Begins a transaction and takes its lock; that of a fenced one PostgreSQL
/// takes later, with the generation.
fn open(conn: &mut AnyConnection, lock: Option<&Lock>) -> Result<()> {
    match (conn.dialect(), lock) {
        // One round trip for both; the number is a hash, so there is nothing to inject.
        (Dialect::Postgres, Some(lock)) if !lock.fenced => {
            let begin = format!("BEGIN; SELECT pg_advisory_xact_lock({})", lock_key(&lock.name));
            Ok(conn.batch_execute(&begin)?)
        }
        #[cfg(feature = "mysql")]
        (Dialect::Mysql, _) => {
            super::mysql::control(conn, "BEGIN")?;
            if let Some(lock) = lock {
                let sql = Sql::new(MYSQL_LOCK).value(lock_row(lock_key(&lock.name))).text(" FOR UPDATE");
                if let Err(error) = load_one::<(i64,)>(conn, sql) {
                    conn.batch_execute("ROLLBACK")?;
                    return Err(error);
                }
            }
            Ok(())
        }
        _ => Ok(conn.batch_execute("BEGIN")?),
    }
}

/// A connection in a transaction that holds the lock.
pub(super) fn begin(pool: &Pool<Manager>, lock: Option<&Lock>) -> Result<Conn> {
    begin_anew();
    let mut tries = tries(pool);
    let mut conn = loop {
        let mut conn = checkout(pool)?;
        match open(&mut conn, lock) {
            Ok(()) => break conn,
            Err(error) if error.is_connection_lost() && tries.next().is_some() && discard(conn, pool) => {}
            Err(error) => return Err(error),
        }
    };
    if let Some(lock) = lock.filter(|lock| lock.fenced) {
        // Shared, so that a cached row which this transaction relies on (a
        // template) cannot change or go before it ends.
        let sql = match conn.dialect() {
            Dialect::Mysql => Sql::new(READ_GENERATION).text(" LOCK IN SHARE MODE"),
            Dialect::Postgres | Dialect::Sqlite => {
                Sql::new("SELECT \"generation\" FROM \"cache_generation\", pg_advisory_xact_lock(")
                    .value(lock_key(&lock.name))
                    .text(") FOR SHARE OF \"cache_generation\"")
            }
        };
        match load_one::<(i64,)>(&mut conn, sql) {
            Ok(row) => GENERATION.set(row.map(|(it,)| it)),
            Err(error) => {
                if conn.batch_execute("ROLLBACK").is_err() {
                    discard(conn, pool);
                }
                return Err(error);
            }
        }
    }
    Ok(conn)
}

pub(super) fn checkout(pool: &Pool<Manager>) -> Result<Conn> {
    pool.get().map_err(|e| Error::unavailable("the database cannot be reached; try again", 2).caused_by(e))
}

/// How often to try another connection: as many as may be stale, and one.
/// A statement that breaks every connection must not go on for ever.
pub(super) fn tries(pool: &Pool<Manager>) -> std::ops::Range<u32> {
    0..pool.max_size() + 1
}

/// Gives a broken connection back (the pool then drops it) and says whether
/// another try makes sense: only while the pool still holds connections from
/// before the break, or can make a new one.
pub(super) fn discard(mut conn: Conn, pool: &Pool<Manager>) -> bool {
    use diesel::r2d2::R2D2Connection;
    let broken = conn.is_broken() || conn.ping().is_err();
    drop(conn);
    (broken && pool.state().connections > 0) || pool.get_timeout(std::time::Duration::from_secs(2)).is_ok()
}

/// The number of a named lock: FNV-1a, which is stable over versions and
/// processes. Two names that collide only wait for each other needlessly.
pub(crate) fn lock_key(name: &str) -> i64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash.cast_signed()
}

/// MySQL has no lock that ends with its transaction but that on a row: named
/// locks are rows, as many as [`LOCK_ROWS`].
pub(crate) const MYSQL_LOCK: &str = "SELECT \"id\" FROM \"podyard_locks\" WHERE \"id\" = ";

/// How many rows named locks share on MySQL.
pub(super) const LOCK_ROWS: i64 = 1024;

/// The row of a named lock's number.
pub(crate) fn lock_row(key: i64) -> i64 {
    key.rem_euclid(LOCK_ROWS)
}
