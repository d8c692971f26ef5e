//! A few threads that run jobs on pooled connections: all of PostgreSQL's
//! work, and SQLite's unbounded reads. As many threads as connections, so a
//! job that is taken never waits for a connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use diesel::connection::SimpleConnection;
use diesel::r2d2::{CustomizeConnection, Pool};
use tokio::sync::oneshot;

use super::checkout::{Manager, checkout, discard, tries};
use super::group::{Job, Work, Write};
use super::queues::{Queues, serve_queue, serve_rows, together};
use super::{AnyConnection, Done, Lock, Options, SQLITE_PRAGMAS, begin_anew, guarded, measure};
use crate::worker::{Counters, Report};
use crate::{Error, Result};

/// What a thread does.
pub(super) type ThreadJob = Box<dyn FnOnce(&Pool<Manager>) + Send>;

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
        // Half of them: the other half is there for reads, and that commits are shared at all.
        let lanes = if name == "postgres" { threads.div_ceil(2) as usize } else { 0 };
        let queues = Queues::new(options.group, lanes);
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
        self.jobs.len() + self.queues.waiting()
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
            None if self.queues.has_lanes() && job.of_row().is_some() => {
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
