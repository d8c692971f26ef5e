//! The engine as the rest of the program sees it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::clock::Clock;
use super::faults::Faults;
use super::heart::Heart;
use super::notify;
use super::worker::Worker;
use crate::Result;
use crate::ctx::Core;

/// What the engine of a process has done since its start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Claims: stages taken from the queue.
    pub claimed: AtomicU64,
    /// Attempts at stages that ended, however.
    pub stages: AtomicU64,
    /// Tasks that ended as done.
    pub completed: AtomicU64,
    /// Tasks that ended as failed.
    pub failed: AtomicU64,
    /// Tasks that ended as cancelled.
    pub cancelled: AtomicU64,
    /// Attempts that are to be made again.
    pub retried: AtomicU64,
    /// Tasks taken from dead workers.
    pub recovered: AtomicU64,
    /// Results that were refused, since the task was no longer this worker's.
    pub stale: AtomicU64,
    /// Leases that this process lost: others took it for dead.
    pub lost: AtomicU64,
    /// Tasks in slots now.
    pub running: AtomicU64,
    /// Microseconds from due to claimed, summed over all claims.
    pub latency_us: AtomicU64,
}

impl Metrics {
    pub(super) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Wakes the workers of this process.
#[derive(Debug, Default)]
pub(crate) struct Waker {
    wake: Notify,
    due: AtomicBool,
    /// Slots that are free in this process: who has some needs no help.
    free: AtomicUsize,
    /// Other processes are to be told.
    tell: Notify,
    news: AtomicBool,
}

impl Waker {
    /// Something is due now.
    pub(crate) fn due(&self) {
        self.due.store(true, Ordering::Release);
        self.wake.notify_one();
        if self.free.load(Ordering::Relaxed) == 0 {
            self.tell.notify_one();
        }
    }

    /// Notes how many slots are free.
    pub(super) fn free(&self, slots: usize) {
        self.free.store(slots, Ordering::Relaxed);
    }

    /// More is due than this process has slots for.
    pub(super) fn others(&self) {
        self.tell.notify_one();
    }

    /// Waits until other processes are to be told.
    pub(super) async fn to_be_told(&self) {
        self.tell.notified().await;
    }

    /// Something will be due.
    pub(super) fn look(&self) {
        self.wake.notify_one();
    }

    /// What may run has changed, by a kind that was paused or resumed.
    pub(super) fn news(&self) {
        self.news.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    pub(super) fn take_news(&self) -> bool {
        self.news.swap(false, Ordering::AcqRel)
    }

    pub(super) fn take_due(&self) -> bool {
        self.due.swap(false, Ordering::AcqRel)
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }
}

/// The engine of a process. Without [`Engine::run`] it starts tasks for
/// others to run.
#[derive(Debug, Default)]
pub struct Engine {
    waker: Arc<Waker>,
    metrics: Arc<Metrics>,
    clock: Arc<Clock>,
    faults: Faults,
}

/// How a process runs tasks.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Tasks that run at once; with none, this process only tells others of
    /// what it starts.
    pub slots: usize,
    /// How many of a kind run at once in this process, by its name.
    pub limits: HashMap<String, usize>,
    /// Kinds of task to run; `None`: all that this process knows.
    pub names: Option<Vec<&'static str>>,
    /// How long a worker's heart must stand still before others take it for dead.
    pub lease: Duration,
    /// Most results of stages in one transaction; 1 has each in its own.
    pub group: usize,
    /// How long running stages may take to end when the process is to end.
    pub grace: Duration,
    /// How often to look for what other processes made ready.
    pub poll: Duration,
    /// The wait before the second attempt at a stage; it doubles with each.
    pub backoff: Duration,
    /// The longest wait between two attempts.
    pub backoff_max: Duration,
    /// How long ended tasks are kept.
    pub keep: Duration,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            slots: 16,
            limits: HashMap::new(),
            names: None,
            lease: Duration::from_secs(3),
            group: 256,
            grace: Duration::from_secs(20),
            poll: Duration::from_millis(500),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            keep: Duration::from_secs(14 * 24 * 3600),
        }
    }
}

impl Engine {
    /// Not running.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What it has done.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    pub(crate) fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(crate) fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    /// Runs tasks on the tokio runtime of the caller, until the handle is
    /// drained or dropped.
    ///
    /// # Errors
    /// When its thread cannot be started.
    ///
    /// # Panics
    /// Outside of a tokio runtime, and when two kinds of task have one name.
    pub fn run(core: &Arc<Core>, options: WorkerOptions) -> Result<Workers> {
        let (stop, stopped) = watch::channel(false);
        core.db.open_engine()?;
        let worker = Worker::new(core.clone(), options, stopped);
        crate::worker::register(&worker);
        let heart = Heart::start(worker.clone())?;
        notify::start(&worker, core.db.postgres_url(), worker.stopped());
        let dispatcher = tokio::spawn(worker.clone().dispatch());
        let schedules = super::schedule::keep(core.clone(), worker.names(), worker.stopped());
        let house = worker.clone().keep_house();
        let keeper = tokio::spawn(async move { tokio::join!(house, schedules) }.map(drop));
        Ok(Workers { worker, stop, dispatcher, keeper, heart })
    }
}

/// The running workers of a process. Dropped, they stop at once and leave
/// their tasks to whoever finds the lease over; see [`Workers::drain`].
pub struct Workers {
    worker: Arc<Worker>,
    stop: watch::Sender<bool>,
    dispatcher: JoinHandle<()>,
    keeper: JoinHandle<()>,
    heart: Heart,
}

impl Workers {
    /// Ends well: claims nothing more, lets running stages end within the
    /// grace time, and gives back what has not ended, ready for others at once.
    pub async fn drain(mut self) {
        let _ = self.stop.send(true);
        // It ends with the claim that it may be in, so that nothing is claimed after.
        let _ = (&mut self.dispatcher).await;
        self.keeper.abort();
        self.worker.settle().await;
        self.heart.stop();
        self.worker.give_back().await;
    }

    /// Does now what is else done now and then: for tests.
    #[doc(hidden)]
    pub async fn tidy(&self) {
        self.worker.tidy(true).await;
    }

    /// Stops renewing the lease, as if the process hung: for tests.
    #[doc(hidden)]
    pub fn stop_heart(&self) {
        self.heart.stop();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        self.dispatcher.abort();
        self.keeper.abort();
        self.heart.stop();
        self.worker.vanish();
    }
}
