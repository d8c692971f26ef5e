//! Worker managers: named pools that run so many things at once, let so many
//! wait and refuse the rest, so that overload is told and never a queue
//! without end. All that has such bounds reports here, for `GET /workers` and
//! the metrics: pools of this kind, the database's threads, the task slots.

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use futures_util::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Error, Result};

/// What a pool does now and has done since the start.
#[derive(Debug, Clone, serde::Serialize, schemars::JsonSchema)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// What works in it: `pool`, `threads`, `tasks` or `connections`.
    pub kind: &'static str,
    /// How many run at once at most; none: not bounded here.
    pub parallel: Option<u64>,
    /// How many run.
    pub active: u64,
    /// How many wait.
    pub queued: u64,
    /// How many may wait; none: they wait in the database.
    pub queue: Option<u64>,
    /// How many have ended.
    pub done: u64,
    /// How many were refused, since too many waited.
    pub rejected: u64,
    /// How many ended in a panic.
    pub panicked: u64,
    /// How long all that ran have waited together, in seconds.
    pub wait_seconds: f64,
}

/// Whoever has pools to report of.
pub trait Reporter: Send + Sync {
    /// Its pools.
    fn reports(&self) -> Vec<Report>;
}

static REPORTERS: Mutex<Vec<Weak<dyn Reporter>>> = Mutex::new(Vec::new());

/// Has somebody's pools reported, for as long as they live.
pub fn register<R: Reporter + 'static>(reporter: &Arc<R>) {
    let mut all = REPORTERS.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|it| it.strong_count() > 0);
    let weak = Arc::downgrade(reporter);
    all.push(weak);
}

/// All pools of the process, by name.
#[must_use]
pub fn reports() -> Vec<Report> {
    let all: Vec<_> = {
        let all = REPORTERS.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect()
    };
    let mut reports: Vec<_> = all.iter().flat_map(|it| it.reports()).collect();
    reports.sort_by(|a, b| a.name.cmp(&b.name));
    reports
}

/// The pools as metrics in Prometheus' text format.
pub(crate) fn render(text: &mut String) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge of small numbers")]
    let number = |it: u64| it as f64;
    type Read = fn(&Report) -> Option<u64>;
    let numbers: [(&str, &str, &str, Read); 6] = [
        ("podyard_pool_parallel", "gauge", "How many may run at once.", |it| it.parallel),
        ("podyard_pool_active", "gauge", "How many run.", |it| Some(it.active)),
        ("podyard_pool_queued", "gauge", "How many wait.", |it| Some(it.queued)),
        ("podyard_pool_done_total", "counter", "How many have ended.", |it| Some(it.done)),
        ("podyard_pool_rejected_total", "counter", "How many were refused.", |it| Some(it.rejected)),
        ("podyard_pool_panicked_total", "counter", "How many ended in a panic.", |it| Some(it.panicked)),
    ];
    let reports = reports();
    let mut lines = |name: &str, kind: &str, help: &str, read: &dyn Fn(&Report) -> Option<f64>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for report in &reports {
            if let Some(value) = read(report) {
                let _ = writeln!(text, "{name}{{pool=\"{}\"}} {value}", report.name);
            }
        }
    };
    for (name, kind, help, read) in numbers {
        lines(name, kind, help, &|it| read(it).map(number));
    }
    let help = "How long all that ran have waited together.";
    lines("podyard_pool_wait_seconds_total", "counter", help, &|it| Some(it.wait_seconds));
}

/// What a pool counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    active: AtomicUsize,
    queued: AtomicUsize,
    done: AtomicU64,
    rejected: AtomicU64,
    panicked: AtomicU64,
    wait_us: AtomicU64,
}

impl Counters {
    pub(crate) fn begin(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    pub(crate) fn end(&self, n: usize) {
        self.active.fetch_sub(1, Relaxed);
        self.done.fetch_add(n as u64, Relaxed);
    }

    pub(crate) fn reject(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    /// A report, where somebody else knows how many wait.
    pub(crate) fn report(&self, name: &str, kind: &'static str, parallel: usize, queue: usize) -> Report {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of years are exact")]
        let wait_seconds = self.wait_us.load(Relaxed) as f64 / 1e6;
        Report {
            name: name.to_owned(),
            kind,
            parallel: Some(parallel as u64),
            active: self.active.load(Relaxed) as u64,
            queued: self.queued.load(Relaxed) as u64,
            queue: Some(queue as u64),
            done: self.done.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            panicked: self.panicked.load(Relaxed),
            wait_seconds,
        }
    }
}

/// A pool: so many run at once, so many wait, the rest is refused. Cheap to
/// clone; all clones are the same one.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: &'static str,
    parallel: usize,
    queue: usize,
    slots: Arc<Semaphore>,
    counters: Counters,
}

impl Reporter for Inner {
    fn reports(&self) -> Vec<Report> {
        vec![self.counters.report(self.name, "pool", self.parallel, self.queue)]
    }
}

/// A slot in use, given back however its work ends.
struct Turn {
    pool: Arc<Inner>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pool.counters.end(1);
    }
}

/// A place in the queue, given up however the wait ends.
struct Waiting<'a>(&'a Counters);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Relaxed);
    }
}

impl Pool {
    /// A pool that runs `parallel` at once and lets `queue` wait.
    #[must_use]
    pub fn new(name: &'static str, parallel: usize, queue: usize) -> Self {
        let parallel = parallel.max(1);
        let slots = Arc::new(Semaphore::new(parallel));
        let inner = Arc::new(Inner { name, parallel, queue, slots, counters: Counters::default() });
        register(&inner);
        Self(inner)
    }

    async fn turn(&self) -> Result<Turn> {
        let it = &self.0;
        let slot = match it.slots.clone().try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                let waiting = Waiting(&it.counters);
                if it.counters.queued.fetch_add(1, Relaxed) >= it.queue {
                    drop(waiting);
                    it.counters.reject();
                    return Err(Error::unavailable("too many requests are waiting", 1));
                }
                let since = Instant::now();
                let slot = it.slots.clone().acquire_owned().await.map_err(Error::internal)?;
                let us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                it.counters.wait_us.fetch_add(us, Relaxed);
                drop(waiting);
                slot
            }
        };
        it.counters.begin();
        Ok(Turn { pool: it.clone(), _slot: slot })
    }

    fn panicked(&self) -> Error {
        self.0.counters.panicked.fetch_add(1, Relaxed);
        Error::internal(format!("a panic in the pool {}", self.0.name))
    }

    /// Runs a future when it is its turn.
    ///
    /// # Errors
    /// 503 when too many wait; 500 when it panics.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output> {
        let _turn = self.turn().await?;
        AssertUnwindSafe(work).catch_unwind().await.map_err(|_| self.panicked())
    }

    /// Runs what blocks on a thread of its own when it is its turn. The slot is
    /// taken until it ends, also if nobody waits for it any more.
    ///
    /// # Errors
    /// 503 when too many wait; 500 when it panics.
    pub async fn block<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Result<R> {
        let turn = self.turn().await?;
        let job = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        job.await.map_err(|_| self.panicked())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(pool: &Pool) -> Report {
        pool.0.reports().remove(0)
    }

    #[tokio::test]
    async fn what_is_too_much_is_refused_and_then_it_goes_on() {
        let pool = Pool::new("test", 1, 1);
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn({
            let pool = pool.clone();
            async move { pool.block(move || gate.recv().is_ok()).await }
        });
        while report(&pool).active == 0 {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(async { 2 }).await }
        });
        while report(&pool).queued == 0 {
            tokio::task::yield_now().await;
        }
        let error = pool.run(async { 3 }).await.unwrap_err();
        assert_eq!((error.kind(), error.retry_after_seconds()), (crate::Kind::Unavailable, Some(1)));
        // Whoever gives up leaves the queue.
        second.abort();
        let _ = second.await;
        assert_eq!(report(&pool).queued, 0);
        release.send(()).unwrap();
        assert!(first.await.unwrap().unwrap());
        assert_eq!(pool.run(async { 4 }).await.unwrap(), 4);
        let report = report(&pool);
        assert_eq!((report.active, report.done, report.rejected), (0, 2, 1));
    }

    #[tokio::test]
    async fn a_panic_gives_its_slot_back() {
        let pool = Pool::new("panics", 1, 0);
        for _ in 0..3 {
            assert!(pool.run(async { panic!("a bug") }).await.is_err());
            assert!(pool.block(|| panic!("a bug")).await.is_err());
        }
        assert_eq!((report(&pool).panicked, report(&pool).active), (6, 0));
        assert!(reports().iter().any(|it| it.name == "panics"));
        drop(pool);
        assert!(!reports().iter().any(|it| it.name == "panics"));
    }
}
