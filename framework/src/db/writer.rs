//! SQLite's one writer: a thread that runs all writes that wait in one
//! transaction and commits them together. `database is locked` cannot happen,
//! and what was answered is on disk at the price of one sync for many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::group::{self, Job, Work, Write, control};
use super::{AnyConnection, DOOMED, Done, GENERATION, Options, READ_GENERATION, Sql, begin_anew, load_one};
use crate::worker::{Counters, Report};
use crate::{Error, Result};

pub(super) struct Writer {
    jobs: flume::Sender<Box<dyn Job>>,
    waiting: Arc<AtomicUsize>,
    queue: usize,
    counters: Arc<Counters>,
}

impl Writer {
    pub(super) fn start(conn: AnyConnection, options: Options) -> Result<Self> {
        let (jobs, inbox) = flume::bounded::<Box<dyn Job>>(options.queue);
        let waiting = Arc::new(AtomicUsize::new(0));
        let counters = Arc::new(Counters::default());
        let (gauge, counted) = (waiting.clone(), counters.clone());
        std::thread::Builder::new()
            .name("sqlite-writer".into())
            .spawn(move || work(conn, &inbox, &gauge, options.group, &counted))
            .map_err(Error::internal)?;
        Ok(Self { jobs, waiting, queue: options.queue, counters })
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn report(&self) -> Report {
        let report = self.counters.report("sqlite-writer", "threads", 1, self.queue);
        // Those of the group that is being written wait for it, and no longer in the queue.
        Report { queued: self.jobs.len() as u64, ..report }
    }

    pub(super) async fn write<R, F>(&self, work: Work<F>) -> Result<Done<R>>
    where
        R: Send + 'static,
        F: FnMut(&mut AnyConnection) -> Result<R> + Send + 'static,
    {
        let (job, answer) = Write::new(work, 0);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.jobs.try_send(job).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counters.reject();
            return Err(Error::unavailable("too many writes are waiting", 1));
        }
        answer.await.map_err(|_| Error::unavailable("the database is shutting down", 1))?
    }
}

fn work(
    mut conn: AnyConnection,
    inbox: &flume::Receiver<Box<dyn Job>>,
    waiting: &AtomicUsize,
    most: usize,
    counters: &Counters,
) {
    // Groups still to be run with care, since one has had to be undone.
    let mut careful = 0_u32;
    while let Ok(first) = inbox.recv() {
        counters.begin();
        let mut jobs = vec![first];
        jobs.extend(inbox.try_iter().take(most.saturating_sub(1)));
        let result = run(&mut conn, &mut jobs, &mut careful);
        if let Err(text) = &result {
            tracing::error!(error = %text, jobs = jobs.len(), "a group of writes was not committed");
            // Fails when SQLite has already rolled back by itself; then there is nothing to undo.
            let _ = control(&mut conn, "ROLLBACK");
        }
        waiting.fetch_sub(jobs.len(), Ordering::Relaxed);
        counters.end(jobs.len());
        let failure = result.err();
        for job in jobs {
            job.finish(failure.as_deref());
        }
    }
}

/// So many groups are run with care after one in which a job failed: others
/// like it may follow.
const CARE: u32 = 100;

/// Runs jobs in one transaction: without a savepoint for each, which would copy
/// every page that they change, if they can all be run again should one fail.
fn run(
    conn: &mut AnyConnection,
    jobs: &mut [Box<dyn Job>],
    careful: &mut u32,
) -> std::result::Result<(), String> {
    begin(conn)?;
    if jobs.len() > 1 && jobs.iter().all(|job| job.is_repeatable()) {
        if *careful == 0 {
            if all_succeed(conn, jobs)? {
                return control(conn, "COMMIT");
            }
            *careful = CARE;
            control(conn, "ROLLBACK")?;
            begin(conn)?;
        }
        *careful -= 1;
        if is_clean(conn, jobs)? {
            return control(conn, "COMMIT");
        }
        control(conn, "ROLLBACK")?;
        begin(conn)?;
    }
    group::run(conn, jobs)
}

/// Runs a job and tells whether it succeeded.
fn succeeds(conn: &mut AnyConnection, job: &mut dyn Job) -> std::result::Result<bool, String> {
    let kept = job.run(conn);
    // Nothing more may run then: each statement would commit by itself.
    if DOOMED.get() { Err("the database ended the transaction".to_owned()) } else { Ok(kept) }
}

/// Runs jobs one after the other, up to one that fails.
fn all_succeed(conn: &mut AnyConnection, jobs: &mut [Box<dyn Job>]) -> std::result::Result<bool, String> {
    for job in jobs {
        if !succeeds(conn, job.as_mut())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Runs jobs one after the other; tells whether none failed after it had
/// changed something, which costs a look after each. (Definitions are not
/// counted: the one hook that makes some, that of types at run time, changes
/// a row first.)
fn is_clean(conn: &mut AnyConnection, jobs: &mut [Box<dyn Job>]) -> std::result::Result<bool, String> {
    let mut before = changes(conn)?;
    for job in jobs {
        let kept = succeeds(conn, job.as_mut())?;
        let after = changes(conn)?;
        if !kept && after != before {
            return Ok(false);
        }
        before = after;
    }
    Ok(true)
}

/// How many rows this connection has ever changed.
fn changes(conn: &mut AnyConnection) -> std::result::Result<Option<i64>, String> {
    let row = load_one::<(i64,)>(conn, Sql::new("SELECT total_changes()"));
    row.map(|row| row.map(|(n,)| n)).map_err(|e| e.to_string())
}

fn begin(conn: &mut AnyConnection) -> std::result::Result<(), String> {
    control(conn, "BEGIN IMMEDIATE")?;
    begin_anew();
    // Read once for the whole group: only this thread writes, and another
    // process cannot while the transaction lasts.
    let generation = load_one::<(i64,)>(conn, Sql::new(READ_GENERATION)).ok().flatten();
    GENERATION.set(generation.map(|(it,)| it));
    Ok(())
}
