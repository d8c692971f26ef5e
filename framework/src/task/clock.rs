//! The engine's time: the database's clock, carried on by this process's own
//! steady one. Due times are in it, so a database whose clock is set an hour
//! forward or back neither ends waits early nor lets tasks lie: whoever sees
//! the jump first adds its opposite to the offset that all processes share
//! (`task_clock`).

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::Result;
use crate::db::{self, AnyConnection, Dialect, Sql};

/// How long this process goes on by itself before it asks the database again.
const FRESH: i64 = 5_000_000;
/// How far the database's clock may be from ours before it has jumped, in microseconds.
const JUMP: i64 = 2_000_000;

/// Microseconds since the machine's start, those asleep too: this machine's
/// sleep is no jump of the database's clock.
fn steady() -> i64 {
    #[cfg(target_os = "linux")]
    let id = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let id = rustix::time::ClockId::Monotonic;
    let it = rustix::time::clock_gettime(id);
    it.tv_sec * 1_000_000 + it.tv_nsec / 1_000
}

/// The database's own clock, in microseconds since 1970, as SQL.
fn reading(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Sqlite => "CAST(unixepoch('subsec') * 1000000 AS INTEGER)",
        Dialect::Postgres => "(extract(epoch from clock_timestamp()) * 1000000)::bigint",
        Dialect::Mysql => "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
    }
}

#[derive(Debug, Clone, Copy)]
struct Anchor {
    /// The engine's time at `steady`.
    time: i64,
    steady: i64,
}

/// A process's view of the engine's time.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    anchor: Mutex<Option<Anchor>>,
    /// What a test pretends that the database's clock jumped by, in microseconds.
    pub(crate) skew: AtomicI64,
    /// How far a test is ahead of the time, in microseconds: everybody's time,
    /// so nothing has jumped.
    pub(super) ahead: AtomicI64,
}

impl Clock {
    fn expected(&self, at: i64) -> Option<(i64, i64)> {
        let anchor = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        anchor.map(|it| (it.time + at - it.steady, at - it.steady))
    }

    fn ahead(&self) -> i64 {
        self.ahead.load(Ordering::Relaxed)
    }

    fn set(&self, time: i64, steady: i64) {
        *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = Some(Anchor { time, steady });
    }

    /// The engine's time, in microseconds since 1970. Asks the database when
    /// it has not for some seconds, so `conn` must be able to write.
    pub(crate) fn now(&self, conn: &mut AnyConnection) -> Result<i64> {
        match self.expected(steady()) {
            Some((time, age)) if age < FRESH => Ok(time + self.ahead()),
            _ => self.sync(conn),
        }
    }

    /// As [`Clock::now`], on a connection that only reads: right once
    /// [`Clock::sync`] has been called, and good enough before.
    pub(super) fn peek(&self, conn: &mut AnyConnection) -> Result<i64> {
        match self.expected(steady()) {
            Some((time, _)) => Ok(time + self.ahead()),
            None => Ok(self.read(conn)?.0 + self.ahead()),
        }
    }

    /// What the database's clock shows, for what goes by the time of day.
    pub(crate) fn wall(&self, conn: &mut AnyConnection) -> Result<DateTime<Utc>> {
        let sql = Sql::new("SELECT ").text(reading(conn.dialect()));
        let (clock,) = db::load_one::<(i64,)>(conn, sql)?.unwrap_or_default();
        let skew = self.skew.load(std::sync::atomic::Ordering::Relaxed);
        Ok(DateTime::from_timestamp_micros(clock + skew).unwrap_or_default())
    }

    /// The engine's time by this process alone; zero before the first [`Clock::sync`].
    pub(super) fn time(&self) -> i64 {
        self.expected(steady()).map_or(0, |(time, _)| time + self.ahead())
    }

    /// Whether the database is to be asked again.
    pub(super) fn is_stale(&self) -> bool {
        self.expected(steady()).is_none_or(|(_, age)| age >= FRESH / 5)
    }

    /// Engine time and offset as the database has them, and the steady time of the reading.
    fn read(&self, conn: &mut AnyConnection) -> Result<(i64, i64, i64)> {
        let before = steady();
        let mut sql = Sql::new("SELECT ");
        sql.push(reading(conn.dialect())).push(", \"offset_us\" FROM \"task_clock\" WHERE \"id\" = 1");
        let (clock, offset) = db::load_one::<(i64, i64)>(conn, sql)?.unwrap_or_default();
        let skew = self.skew.load(Ordering::Relaxed);
        Ok((clock + skew + offset, offset, before + (steady() - before) / 2))
    }

    /// Asks the database, and makes a jump of its clock none.
    pub(super) fn sync(&self, conn: &mut AnyConnection) -> Result<i64> {
        Ok(self.agree(conn)? + self.ahead())
    }

    fn agree(&self, conn: &mut AnyConnection) -> Result<i64> {
        for _ in 0..3 {
            let (told, offset, at) = self.read(conn)?;
            let Some((expected, age)) = self.expected(at) else {
                self.set(told, at);
                return Ok(told);
            };
            // Clocks run apart by some hundred millionths at most.
            let drift = told - expected;
            if drift.abs() <= JUMP + age / 2_000 {
                self.set(told, at);
                return Ok(told);
            }
            let mut sql = Sql::new("UPDATE \"task_clock\" SET \"offset_us\" = ").value(offset - drift);
            sql.push(" WHERE \"id\" = 1 AND \"offset_us\" = ").bind(offset);
            // Who is slower finds it done, and no drift any more.
            if db::execute(conn, &sql)? == 1 {
                #[expect(clippy::cast_precision_loss, reason = "for people")]
                let seconds = drift as f64 / 1e6;
                tracing::warn!(seconds, "the database's clock jumped; due times stay as they were");
                self.set(expected, at);
                return Ok(expected);
            }
        }
        // Others are at it; the next call will see what came of it.
        Ok(self.expected(steady()).map_or(0, |(time, _)| time))
    }
}

/// A time as the engine counts it.
pub(super) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}
