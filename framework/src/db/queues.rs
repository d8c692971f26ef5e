//! Writes that wait for others: those under one class lock, and those of one
//! row each. Whoever serves them has several of them share a transaction.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use diesel::connection::SimpleConnection;
use diesel::r2d2::Pool;

use super::checkout::{Manager, begin, checkout, discard};
use super::group::{self, Job};
use super::pool::ThreadJob;
use super::{Dialect, Lock, begin_anew, glance};

/// Writes that wait for a class lock, by its name.
pub(super) struct Queues {
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
    /// `group`: most writes in one transaction; `lanes`: most threads that serve
    /// writes of a row each at once, 0 if they are not shared.
    pub(super) fn new(group: usize, lanes: usize) -> Self {
        Self {
            jobs: Mutex::default(),
            waiting: AtomicUsize::new(0),
            group: group.max(1),
            rows: Mutex::default(),
            lanes,
        }
    }

    /// How many writes wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether writes of a row each wait here.
    pub(super) fn has_lanes(&self) -> bool {
        self.lanes > 0
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Box<dyn Job>>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job; `true` if somebody must be sent to serve the queue. A job
    /// beyond `most` is dropped, which its owner hears.
    pub(super) fn push(&self, lock: &Lock, job: Box<dyn Job>, most: usize) -> bool {
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
    pub(super) fn push_row(&self, job: Box<dyn Job>, most: usize) -> bool {
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
    pub(super) fn refuse_rows(&self) {
        let mut rows = self.rows();
        rows.served -= 1;
        if rows.served == 0 {
            self.waiting.fetch_sub(rows.waiting.len(), Ordering::Relaxed);
            rows.waiting.clear();
        }
    }

    /// Nobody can be sent: all that wait are told.
    pub(super) fn refuse(&self, name: &str) {
        let jobs = self.all().remove(name).unwrap_or_default();
        self.waiting.fetch_sub(jobs.len(), Ordering::Relaxed);
    }
}

/// Most writes of a row each in one transaction: all are locked until its end.
const MOST_ROWS: usize = 16;

/// [`serve_queue`] of writes of a row each.
pub(super) fn serve_rows(pool: &Pool<Manager>, queues: &Arc<Queues>, threads: &flume::Sender<ThreadJob>) {
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
pub(super) fn serve_queue(
    pool: &Pool<Manager>,
    queues: &Arc<Queues>,
    lock: &Lock,
    threads: &flume::Sender<ThreadJob>,
) {
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
pub(super) fn together(pool: &Pool<Manager>, lock: Option<&Lock>, mut jobs: Vec<Box<dyn Job>>) {
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
