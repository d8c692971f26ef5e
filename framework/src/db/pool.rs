//! A few threads that run jobs on pooled connections: all of PostgreSQL's
//! work, and SQLite's unbounded reads. As many threads as connections, so a
//! job that is taken never waits for a connection.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use diesel::connection::SimpleConnection;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool, PooledConnection};
use tokio::sync::oneshot;

use super::group::{self, Job, Work, Write};
use super::{
    AnyConnection, Dialect, Done, GENERATION, Lock, Options, READ_GENERATION, SQLITE_PRAGMAS, Sql,
    begin_anew, glance, guarded, load_one, measure,
};
use crate::worker::{Counters, Report};
use crate::{Error, Result};

type Manager = ConnectionManager<AnyConnection>;
type Conn = PooledConnection<Manager>;
type ThreadJob = Box<dyn FnOnce(&Pool<Manager>) + Send>;

pub(super) struct Threads {
    jobs: flume::Sender<ThreadJob>,
    queues: Arc<Queues>,
    queue: usize,
    name: &'static str,
    threads: usize,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct ReadOnlySqlite;

impl CustomizeConnection<AnyConnection, diesel::r2d2::Error> for ReadOnlySqlite {
    fn on_acquire(&self, conn: &mut AnyConnection) -> std::result::Result<(), diesel::r2d2::Error> {
        conn.batch_execute(SQLITE_PRAGMAS)
            .and_then(|()| conn.batch_execute("PRAGMA query_only = ON"))
            .map_err(diesel::r2d2::Error::QueryError)
    }
}

#[derive(Debug)]
struct PostgresSession {
    /// The longest that a statement may take.
    statement: std::time::Duration,
    /// Whether it is the task engine's.
    engine: bool,
}

impl CustomizeConnection<AnyConnection, diesel::r2d2::Error> for PostgresSession {
    /// What was answered is on disk, and no forgotten transaction holds
    /// others up for ever.
    fn on_acquire(&self, conn: &mut AnyConnection) -> std::result::Result<(), diesel::r2d2::Error> {
        let statement = self.statement.as_millis().max(1);
        conn.batch_execute(&format!(
            "SET synchronous_commit = on; SET idle_in_transaction_session_timeout = '60s'; \
             SET statement_timeout = '{statement}ms'; SET lock_timeout = '30s'; SET client_min_messages = warning",
        ))
        .map_err(diesel::r2d2::Error::QueryError)?;
        if self.engine {
            // Every statement of the engine goes by an index, also one that
            // was planned when a table was small or its statistics were old.
            // (What a disabled scan is reckoned to cost would also have small
            // statements compiled, which takes far longer than they do.)
            conn.batch_execute("SET enable_seqscan = off; SET jit = off")
                .map_err(diesel::r2d2::Error::QueryError)?;
        }
        Ok(())
    }
}

impl Threads {
    pub(super) fn sqlite(path: &Path, options: Options) -> Result<Self> {
        let url = PathBuf::from(path).to_string_lossy().into_owned();
        let pool = Pool::builder()
            .max_size(options.readers)
            .min_idle(Some(0))
            .test_on_check_out(false)
            .connection_customizer(Box::new(ReadOnlySqlite))
            .build_unchecked(Manager::new(url));
        Self::start("sqlite-reader", options.readers, options, &pool)
    }

    pub(super) fn postgres(url: &str, options: Options) -> Result<Self> {
        let session = PostgresSession { statement: options.statement_timeout, engine: false };
        Self::server("postgres", url, options, Box::new(session))
    }

    /// The task engine's: two that commit, one that claims, one that beats.
    pub(super) fn engine(url: &str) -> Result<Self> {
        let options = Options { pool: 4, ..Options::default() };
        let session = PostgresSession { statement: options.statement_timeout, engine: true };
        Self::server("postgres-tasks", url, options, Box::new(session))
    }

    #[cfg(feature = "mysql")]
    pub(super) fn mysql(url: &str, options: Options) -> Result<Self> {
        Self::server("mysql", url, options, Box::new(super::mysql::Session))
    }

    fn server(
        name: &'static str,
        url: &str,
        options: Options,
        session: Box<dyn CustomizeConnection<AnyConnection, diesel::r2d2::Error>>,
    ) -> Result<Self> {
        let pool = Pool::builder()
            .max_size(options.pool)
            .min_idle(Some(1))
            // A `SELECT 1` before each job costs a third of the reads; a
            // broken connection is found by the job instead, and replaced.
            .test_on_check_out(false)
            // An outage is told soon; the pool goes on trying by itself.
            .connection_timeout(std::time::Duration::from_secs(3))
            .connection_customizer(session)
            .build(Manager::new(url))
            .map_err(|e| Error::unavailable("the database cannot be reached", 2).caused_by(e))?;
        Self::start(name, options.pool, options, &pool)
    }

    fn start(name: &'static str, threads: u32, options: Options, pool: &Pool<Manager>) -> Result<Self> {
        let (jobs, inbox) = flume::bounded::<ThreadJob>(options.queue);
        let counters = Arc::new(Counters::default());
        for _ in 0..threads {
            let (inbox, pool, counters) = (inbox.clone(), pool.clone(), counters.clone());
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || {
                    while let Ok(job) = inbox.recv() {
                        counters.begin();
                        job(&pool);
                        counters.end(1);
                    }
                })
                .map_err(Error::internal)?;
        }
        let queues = Queues {
            jobs: Mutex::default(),
            waiting: AtomicUsize::new(0),
            group: options.group.max(1),
            rows: Mutex::default(),
            // Half of them: the other half is there for reads, and that commits are shared at all.
            lanes: if name == "postgres" { threads.div_ceil(2) as usize } else { 0 },
        };
        Ok(Self {
            jobs,
            queues: Arc::new(queues),
            queue: options.queue,
            name,
            threads: threads as usize,
            counters,
        })
    }

    pub(super) fn waiting(&self) -> usize {
        self.jobs.len() + self.queues.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn report(&self) -> Report {
        let report = self.counters.report(self.name, "threads", self.threads, self.queue);
        Report { queued: self.waiting() as u64, ..report }
    }

    /// What those hear for whom there is no room.
    fn full(&self) -> Error {
        self.counters.reject();
        Error::unavailable("too many requests are waiting", 1)
    }

    async fn send<R: Send + 'static>(
        &self,
        f: impl FnOnce(&Pool<Manager>) -> Result<Done<R>> + Send + 'static,
    ) -> Result<Done<R>> {
        let (reply, answer) = oneshot::channel();
        let job: ThreadJob = Box::new(move |pool| {
            // Nobody waits any more: the request was cancelled; what it wrote stands.
            let _ = reply.send(f(pool));
        });
        self.jobs.try_send(job).map_err(|_| self.full())?;
        answer.await.map_err(|_| Error::unavailable("the database is shutting down", 1))?
    }

    pub(super) async fn read<R, F>(&self, f: F) -> Result<Done<R>>
    where
        R: Send + 'static,
        F: Fn(&mut AnyConnection) -> Result<R> + Send + 'static,
    {
        self.send(move |pool| {
            let mut tries = tries(pool);
            loop {
                let mut conn = checkout(pool)?;
                begin_anew();
                match guarded(|| measure(|| f(&mut conn))) {
                    // The server went away and came back: all idle connections
                    // are stale, and each is thrown away once it is found so.
                    Err(error)
                        if error.is_connection_lost() && tries.next().is_some() && discard(conn, pool) => {}
                    result => return result,
                }
            }
        })
        .await
    }

    /// Writes without a lock have a transaction each. Those under the same
    /// class lock would only wait for each other: they share one transaction.
    pub(super) async fn write<R, F>(&self, lock: Option<Lock>, work: Work<F>) -> Result<Done<R>>
    where
        R: Send + 'static,
        F: FnMut(&mut AnyConnection) -> Result<R> + Send + 'static,
    {
        let full = || self.full();
        let (job, answer) = Write::new(work, u32::from(lock.is_some()));
        match lock {
            None if self.queues.lanes > 0 && job.of_row().is_some() => {
                if self.queues.push_row(job, self.queue) {
                    let (queues, jobs) = (self.queues.clone(), self.jobs.clone());
                    let run = move |pool: &Pool<Manager>| serve_rows(pool, &queues, &jobs);
                    if self.jobs.try_send(Box::new(run)).is_err() {
                        self.queues.refuse_rows();
                    }
                }
            }
            None => {
                let run = move |pool: &Pool<Manager>| together(pool, None, vec![job]);
                self.jobs.try_send(Box::new(run)).map_err(|_| full())?;
            }
            Some(lock) => {
                if self.queues.push(&lock, job, self.queue) {
                    let (queues, jobs) = (self.queues.clone(), self.jobs.clone());
                    let name = lock.name.clone();
                    let run = move |pool: &Pool<Manager>| serve_queue(pool, &queues, &lock, &jobs);
                    if self.jobs.try_send(Box::new(run)).is_err() {
                        self.queues.refuse(&name);
                    }
                }
            }
        }
        answer.await.map_err(|_| full())?
    }
}

/// Writes that wait for a class lock, by its name.
struct Queues {
    jobs: Mutex<HashMap<String, VecDeque<Box<dyn Job>>>>,
    waiting: AtomicUsize,
    /// Most of them in one transaction.
    group: usize,
    rows: Mutex<Rows>,
    /// Most threads that serve those at once; 0: they are not shared.
    lanes: usize,
}

/// Writes of a row each.
#[derive(Default)]
struct Rows {
    waiting: VecDeque<Box<dyn Job>>,
    /// How many threads serve them.
    served: usize,
}

impl Queues {
    fn all(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Box<dyn Job>>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job; `true` if somebody must be sent to serve the queue. A job
    /// beyond `most` is dropped, which its owner hears.
    fn push(&self, lock: &Lock, job: Box<dyn Job>, most: usize) -> bool {
        if self.waiting.load(Ordering::Relaxed) >= most {
            return false;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut all = self.all();
        match all.get_mut(&lock.name) {
            Some(queue) => {
                queue.push_back(job);
                false
            }
            None => {
                all.insert(lock.name.clone(), VecDeque::from([job]));
                true
            }
        }
    }

    /// The next group; none: nobody waits, and whoever comes next sends anew.
    fn take(&self, name: &str) -> Vec<Box<dyn Job>> {
        let mut all = self.all();
        let Some(queue) = all.get_mut(name) else { return Vec::new() };
        let n = queue.len().min(self.group);
        let jobs: Vec<_> = queue.drain(..n).collect();
        if jobs.is_empty() {
            all.remove(name);
        }
        self.waiting.fetch_sub(jobs.len(), Ordering::Relaxed);
        jobs
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Queues::push`] of a write of one row.
    fn push_row(&self, job: Box<dyn Job>, most: usize) -> bool {
        if self.waiting.load(Ordering::Relaxed) >= most {
            return false;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut rows = self.rows();
        rows.waiting.push_back(job);
        let is_wanted = rows.served < self.lanes;
        rows.served += usize::from(is_wanted);
        is_wanted
    }

    /// One of a row, or several if many wait; none: whoever asks serves no more.
    fn take_rows(&self) -> Vec<Box<dyn Job>> {
        let mut rows = self.rows();
        let n = (rows.waiting.len() * 2 / self.lanes).clamp(1, self.group.min(MOST_ROWS));
        let n = n.min(rows.waiting.len());
        let jobs: Vec<_> = rows.waiting.drain(..n).collect();
        rows.served -= usize::from(jobs.is_empty());
        self.waiting.fetch_sub(n, Ordering::Relaxed);
        jobs
    }

    /// One who should serve cannot: if nobody else does, all that wait are told.
    fn refuse_rows(&self) {
        let mut rows = self.rows();
        rows.served -= 1;
        if rows.served == 0 {
            self.waiting.fetch_sub(rows.waiting.len(), Ordering::Relaxed);
            rows.waiting.clear();
        }
    }

    /// Nobody can be sent: all that wait are told.
    fn refuse(&self, name: &str) {
        let jobs = self.all().remove(name).unwrap_or_default();
        self.waiting.fetch_sub(jobs.len(), Ordering::Relaxed);
    }
}

/// Most writes of a row each in one transaction: all are locked until its end.
const MOST_ROWS: usize = 16;

/// [`serve_queue`] of writes of a row each.
fn serve_rows(pool: &Pool<Manager>, queues: &Arc<Queues>, threads: &flume::Sender<ThreadJob>) {
    for _ in 0..8 {
        let jobs = queues.take_rows();
        match jobs.len() {
            0 => return,
            1 => together(pool, None, jobs),
            _ => shared(pool, jobs),
        }
    }
    let (again, same) = (queues.clone(), threads.clone());
    let run = move |pool: &Pool<Manager>| serve_rows(pool, &again, &same);
    if threads.try_send(Box::new(run)).is_err() {
        queues.refuse_rows();
    }
}

/// Serves a queue for a while, then lets others have the thread.
fn serve_queue(pool: &Pool<Manager>, queues: &Arc<Queues>, lock: &Lock, threads: &flume::Sender<ThreadJob>) {
    for _ in 0..8 {
        let jobs = queues.take(&lock.name);
        if jobs.is_empty() {
            return;
        }
        together(pool, Some(lock), jobs);
    }
    let (again, next, same) = (queues.clone(), lock.clone(), threads.clone());
    let run = move |pool: &Pool<Manager>| serve_queue(pool, &again, &next, &same);
    if threads.try_send(Box::new(run)).is_err() {
        queues.refuse(&lock.name);
    }
}

/// Runs jobs in one transaction and answers them.
fn together(pool: &Pool<Manager>, lock: Option<&Lock>, mut jobs: Vec<Box<dyn Job>>) {
    if let [only] = &mut jobs[..]
        && lock.is_none()
        && let Some(failure) = alone(pool, only.as_mut())
    {
        jobs.into_iter().for_each(|job| job.finish(failure.as_deref()));
        return;
    }
    let failure = match begin(pool, lock) {
        Ok(mut conn) => {
            let result = group::run(&mut conn, &mut jobs);
            if let Err(text) = &result {
                tracing::warn!(error = %text, jobs = jobs.len(), "writes were not committed");
                if conn.batch_execute("ROLLBACK").is_err() {
                    discard(conn, pool);
                }
            }
            result.err()
        }
        Err(error) => Some(error.to_string()),
    };
    for job in jobs {
        job.finish(failure.as_deref());
    }
}

/// Runs a job that may do without a transaction and tells whether it failed;
/// `None`: it needs one.
fn alone(pool: &Pool<Manager>, job: &mut dyn Job) -> Option<Option<String>> {
    job.of_row()?;
    let mut conn = match checkout(pool) {
        Ok(conn) => conn,
        Err(error) => return Some(Some(error.to_string())),
    };
    if conn.dialect() != Dialect::Postgres {
        return None;
    }
    begin_anew();
    let done = glance::run(&mut conn, job);
    if job.lost_connection() {
        discard(conn, pool);
    }
    done.map(|_| None)
}

/// Runs jobs of a row each, which wait for no lock until they write, and
/// commits them at once: under load a commit costs as much as what it commits.
/// Who cannot be run so, or must give way, is run alone.
fn shared(pool: &Pool<Manager>, mut jobs: Vec<Box<dyn Job>>) {
    // All take their rows in one order, so no two wait for each other.
    jobs.sort_by(|one, other| one.of_row().cmp(&other.of_row()));
    let mut again = vec![false; jobs.len()];
    let mut failure = None;
    match begin(pool, None) {
        // No use in asking anew for each: who waits for a connection waits for long.
        Err(error) => failure = Some(error.to_string()),
        Ok(mut conn) => {
            let is_fine = jobs.iter_mut().zip(&mut again).all(|(job, again)| {
                let kept = glance::run(&mut conn, job.as_mut());
                *again = kept.is_none();
                // What failed by a statement has ended the transaction.
                !job.lost_connection() && (kept != Some(false) || conn.batch_execute("SELECT 1").is_ok())
            });
            if is_fine {
                failure = group::control(&mut conn, "COMMIT").err();
            } else {
                again.fill(true);
            }
            if (!is_fine || failure.is_some()) && conn.batch_execute("ROLLBACK").is_err() {
                discard(conn, pool);
            }
        }
    }
    if let Some(text) = &failure {
        tracing::warn!(error = %text, jobs = jobs.len(), "writes were not committed");
    }
    for (job, again) in jobs.into_iter().zip(again) {
        match again {
            true => together(pool, None, vec![job]),
            false => job.finish(failure.as_deref()),
        }
    }
}

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
fn begin(pool: &Pool<Manager>, lock: Option<&Lock>) -> Result<Conn> {
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

fn checkout(pool: &Pool<Manager>) -> Result<Conn> {
    pool.get().map_err(|e| Error::unavailable("the database cannot be reached; try again", 2).caused_by(e))
}

/// How often to try another connection: as many as may be stale, and one.
/// A statement that breaks every connection must not go on for ever.
fn tries(pool: &Pool<Manager>) -> std::ops::Range<u32> {
    0..pool.max_size() + 1
}

/// Gives a broken connection back (the pool then drops it) and says whether
/// another try makes sense: only while the pool still holds connections from
/// before the break, or can make a new one.
fn discard(mut conn: Conn, pool: &Pool<Manager>) -> bool {
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
