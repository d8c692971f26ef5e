//! The workers of a process: who claims tasks, and has them run in its slots.
//! What goes on in a slot is in `attempts`, what is done for others' tasks in
//! `upkeep`.

mod attempts;
mod upkeep;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::commit::{self, Committer, Next};
use super::engine::{Metrics, Waker, WorkerOptions};
use super::share::Shares;
use super::store::{self, Process};
use super::{TaskEntry, entry, heart, kind, names};
use crate::Result;
use crate::ctx::{Core, Ctx, Tx, new_id};
use crate::db::{Cost, Dialect};
use crate::worker::{Report, Reporter};

/// Tasks in one claim at most.
const BATCH: usize = 100;
/// Queues that one look sees; with more, it takes turns among them.
const HEADS: i64 = 64;
/// The same, as a number of rows.
const FULL: usize = HEADS as usize;
/// Timers that one claim makes due.
const TIMERS: i64 = 500;

/// Which lease the process has.
struct Lease {
    id: Arc<str>,
    /// Until when it surely holds, by this process's clock.
    sure: Option<Instant>,
}

pub(super) struct Worker {
    core: Arc<Core>,
    options: WorkerOptions,
    names: Arc<[&'static str]>,
    process: Process,
    waker: Arc<Waker>,
    metrics: Arc<Metrics>,
    stopped: watch::Receiver<bool>,
    lease: Mutex<Lease>,
    running: AtomicUsize,
    /// Whether the dispatcher waits for a slot.
    full: AtomicBool,
    idle: Notify,
    /// The tasks in slots.
    handles: Mutex<HashMap<u64, (String, AbortHandle)>>,
    /// Whether the database may hold tasks as ours that nobody here runs: an
    /// answer did not come.
    doubt: AtomicBool,
    /// Whether it was dropped; a claim may still be on its way to the slots.
    gone: AtomicBool,
    serial: AtomicU64,
    shares: Shares,
    committer: Committer,
    watched: Mutex<HashMap<String, Watched>>,
    /// The last queue of a look that did not see all of them.
    cursor: Mutex<String>,
    /// How far the look for stuck tasks is.
    mended: Mutex<store::Cursor>,
}

/// What this process has seen of another's heart.
#[derive(Debug, Clone, Copy)]
struct Watched {
    beat: i64,
    /// Since when the beat is the same.
    since: Instant,
    /// The last look. After a gap (we or the database stood still) it all
    /// begins anew: a process that could not beat is not dead.
    looked: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slot in use; dropped with the task that uses it, however that ends.
struct Slot {
    worker: Arc<Worker>,
    serial: u64,
    kind: &'static TaskEntry,
    /// Whether it is known what became of the task.
    settled: bool,
}

impl Slot {
    async fn work(mut self, worker: &Arc<str>, next: Next) {
        let of = self.worker.clone();
        self.settled = of.work(self.kind, worker, next).await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.worker.shares.end(self.kind.name);
        lock(&self.worker.handles).remove(&self.serial);
        if !self.settled {
            self.worker.doubt.store(true, Ordering::Release);
            self.worker.waker.look();
        }
        self.worker.metrics.running.fetch_sub(1, Ordering::Relaxed);
        if self.worker.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.worker.idle.notify_waiters();
        }
        self.worker.waker.free(self.worker.free());
        // A kind of which only some may run has room again.
        let was_full = self.kind.options.concurrency.is_some()
            || self.worker.options.limits.contains_key(self.kind.name);
        if self.worker.full.swap(false, Ordering::AcqRel) || was_full {
            self.worker.waker.due();
        }
    }
}

/// 80 to 120 % of a time, so that processes do not go in step.
fn jitter(time: Duration) -> Duration {
    time.mul_f64(0.8 + 0.4 * rand::random::<f64>())
}

impl Reporter for Worker {
    fn reports(&self) -> Vec<Report> {
        vec![Report {
            name: "task-slots".to_owned(),
            kind: "tasks",
            parallel: Some(self.options.slots as u64),
            active: self.running.load(Ordering::Relaxed) as u64,
            queued: 0,
            // What is due waits in the database, for any process.
            queue: None,
            done: self.metrics.stages.load(Ordering::Relaxed),
            rejected: 0,
            panicked: 0,
            wait_seconds: Duration::from_micros(self.metrics.latency_us.load(Ordering::Relaxed))
                .as_secs_f64(),
        }]
    }
}

impl Worker {
    /// In a tokio runtime.
    pub(super) fn new(core: Arc<Core>, options: WorkerOptions, stopped: watch::Receiver<bool>) -> Arc<Self> {
        let known = names();
        let wanted = |name: &&'static str| options.names.as_ref().is_none_or(|it| it.contains(name));
        Arc::new(Self {
            shares: Shares::new(options.limits.clone()),
            committer: Committer::start(&core, options.group),
            watched: Mutex::default(),
            cursor: Mutex::default(),
            mended: Mutex::default(),
            waker: core.tasks.waker(),
            metrics: core.tasks.metrics().clone(),
            names: known.into_iter().filter(wanted).collect(),
            process: heart::this_process(),
            stopped,
            lease: Mutex::new(Lease { id: new_id().into(), sure: None }),
            running: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            idle: Notify::new(),
            handles: Mutex::new(HashMap::new()),
            doubt: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            serial: AtomicU64::new(0),
            core,
            options,
        })
    }

    pub(super) fn lease_time(&self) -> Duration {
        self.options.lease
    }

    /// The kinds that it runs.
    pub(super) fn names(&self) -> Arc<[&'static str]> {
        self.names.clone()
    }

    /// Says when it is to stop.
    pub(super) fn stopped(&self) -> watch::Receiver<bool> {
        self.stopped.clone()
    }

    fn is_stopping(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Claims and spawns, until it is to stop.
    pub(super) async fn dispatch(self: Arc<Self>) {
        if self.names.is_empty() || self.options.slots == 0 {
            return;
        }
        self.waker.free(self.options.slots);
        self.register().await;
        let mut stopped = self.stopped.clone();
        let mut pause = Duration::ZERO;
        let mut looked: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|it| *it) => return,
                () = self.waker.woken() => {}
                () = sleep(pause) => {}
            }
            pause = match self.round(&mut looked).await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::warn!(%error, "tasks cannot be claimed");
                    jitter(self.options.poll)
                }
            };
        }
    }

    /// Looks and claims once; tells how long to sleep.
    async fn round(self: &Arc<Self>, looked: &mut Option<Instant>) -> Result<Duration> {
        if self.doubt.swap(false, Ordering::AcqRel) {
            self.reclaim().await.inspect_err(|_| self.doubt.store(true, Ordering::Release))?;
        }
        let (due, news) = (self.waker.take_due(), self.waker.take_news());
        let mut timers = false;
        // Under load nobody sleeps, but dead workers and timers are to be found all the same.
        if !due || news || looked.is_none_or(|at| at.elapsed() >= self.options.poll) {
            let look = self.look().await?;
            *looked = Some(Instant::now());
            let dead = self.judge(&look.workers);
            timers = look.timer_in == Some(0);
            if !dead.is_empty() {
                self.recover(dead).await?;
            } else if !due && !timers && !look.heads.iter().any(|it| self.shares.wants(&self.names, it)) {
                let poll = jitter(self.options.poll);
                let timer = look.timer_in.map(|it| Duration::from_micros(u64::try_from(it).unwrap_or(0)));
                return Ok(timer.map_or(poll, |it| it.min(poll)));
            }
        }
        let mut free = self.free();
        if free == 0 {
            self.full.store(true, Ordering::Release);
            // One may have ended between the two.
            free = self.free();
            if free == 0 {
                return Ok(jitter(self.options.poll));
            }
        }
        let wanted = free.min(BATCH);
        let doubt = |_: &crate::Error| self.doubt.store(true, Ordering::Release);
        let (worker, claimed) = self.claim(wanted, timers).await.inspect_err(doubt)?;
        let n = claimed.len();
        for next in claimed {
            self.spawn(worker.clone(), next);
        }
        if n == wanted {
            // There may be more, for the slots that are left, here or elsewhere.
            if n == free {
                self.waker.others();
            }
            self.waker.due();
        }
        // Next it looks what is due; what somebody holds locked is not ours to spin for.
        Ok(if n == 0 { jitter(Duration::from_millis(20)) } else { Duration::ZERO })
    }

    pub(super) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    fn free(&self) -> usize {
        self.options.slots.saturating_sub(self.running.load(Ordering::Acquire))
    }

    /// Looks, without writing unless the database's clock is to be asked.
    async fn look(&self) -> Result<store::Look> {
        let clock = self.core.tasks.clock().clone();
        if clock.is_stale() {
            let clock = clock.clone();
            let sync = self.core.db.write(None, move |conn| clock.sync(conn));
            self.core.tasks.faults().at("clock", sync).await?;
        }
        let (shares, names) = (self.shares.clone(), self.names.clone());
        let look = move |conn: &mut crate::db::AnyConnection| {
            let now = clock.peek(conn)?;
            shares.pause(kind::paused(conn)?);
            let floors = shares.floors();
            let mut look = store::look(conn, now, HEADS, &floors)?;
            // What nobody here may run must not hide what comes after it.
            let wants = |it: &String| shares.wants(&names, it);
            while look.heads.len() >= FULL && !look.heads.iter().any(wants) {
                let last = look.heads.last().map_or("", |it| it);
                look.heads = store::heads(conn, last, HEADS, &floors)?;
            }
            Ok(look)
        };
        Ok(self.core.db.read(Cost::Bounded, look).await?.value)
    }

    /// Makes its kinds known to administrators.
    async fn register(&self) {
        let names = self.names.clone();
        let missing = move |conn: &mut crate::db::AnyConnection| kind::unregistered(conn, &names);
        let done = match self.core.db.read(Cost::Bounded, missing).await {
            Ok(missing) if missing.value.is_empty() => return,
            Ok(missing) => {
                self.core.db.write(None, move |conn| kind::register(conn, &missing.value)).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "kinds of tasks could not be made known");
        }
    }

    async fn claim(&self, wanted: usize, timers: bool) -> Result<(Arc<str>, Vec<Next>)> {
        let (worker, fresh) = {
            let lease = lock(&self.lease);
            let half = Instant::now() + self.options.lease / 2;
            (lease.id.clone(), lease.sure.is_some_and(|sure| sure > half))
        };
        let (process, begun, id) = (self.process.clone(), Instant::now(), worker.clone());
        let (names, core) = (self.names.clone(), self.core.clone());
        let shares = self.shares.clone();
        let cursor = lock(&self.cursor).clone();
        let done = self.core.db.write_engine(move |conn| {
            let ctx = Ctx::system(&core);
            let now = core.tasks.clock().now(conn)?;
            if timers {
                store::promote_timers(conn, now, TIMERS)?;
            }
            let (mut heads, cursor) = heads(conn, &cursor, &shares, &names)?;
            let mut claimed: Vec<Next> = Vec::new();
            while claimed.len() < wanted {
                let parts = shares.divide(&names, &mut heads, wanted - claimed.len());
                if parts.is_empty() {
                    break;
                }
                let got = store::claim(conn, &id, now, &parts)?;
                let times: Vec<_> = got.iter().map(|it| (it.queue.as_str(), it.run_at)).collect();
                shares.note(&parts, &times);
                claimed.extend(got.into_iter().map(|it| (it, None)));
            }
            if !(claimed.is_empty() || fresh && store::keep(conn, &id)?) {
                store::lease(conn, &id, &process, now)?;
            }
            let mut tx = Tx::new(conn, &ctx);
            if tx.conn.dialect() != Dialect::Sqlite {
                commit::fetch(&mut tx, &mut claimed)?;
            }
            Ok((claimed, cursor))
        });
        let (claimed, cursor) = self.core.tasks.faults().at("claim", done).await?.value;
        *lock(&self.cursor) = cursor;
        if *lock(&self.lease).id != *worker {
            // The lease was lost while the claim was on its way, and what it
            // gave stands under the old name.
            let (id, clock) = (worker.clone(), self.core.tasks.clock().clone());
            let done = self.core.db.write_engine(move |conn| {
                let now = clock.now(conn)?;
                store::take_back(conn, &id, None, now, "lost", true)
            });
            self.core.tasks.faults().at("give back", done).await?;
            return Ok((worker, Vec::new()));
        }
        if !fresh && !claimed.is_empty() {
            self.sure(&worker, begun);
        }
        Metrics::add(&self.metrics.claimed, claimed.len());
        for (task, _) in &claimed {
            let waited = u64::try_from(task.started_at.saturating_sub(task.run_at)).unwrap_or(0);
            self.metrics.latency_us.fetch_add(waited, Ordering::Relaxed);
        }
        Ok((worker, claimed))
    }

    /// Notes that the lease was lengthened at that moment.
    fn sure(&self, worker: &str, at: Instant) {
        let mut lease = lock(&self.lease);
        if *lease.id == *worker {
            lease.sure = Some(at + self.options.lease);
        }
    }

    fn spawn(self: &Arc<Self>, worker: Arc<str>, next: Next) {
        // Only known kinds are claimed.
        let Some(kind) = entry(&next.0.task_name) else { return };
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::AcqRel);
        self.metrics.running.fetch_add(1, Ordering::Relaxed);
        self.waker.free(self.free());
        self.shares.begin(kind.name);
        let slot = Slot { worker: self.clone(), serial, kind, settled: false };
        let (go, begin) = oneshot::channel();
        let id = next.0.id.clone();
        let handle = tokio::spawn(async move {
            if begin.await.is_ok() {
                slot.work(&worker, next).await;
            }
        });
        // Its handle first, so that it cannot end before it is there.
        lock(&self.handles).insert(serial, (id, handle.abort_handle()));
        if self.gone.load(Ordering::Acquire) {
            self.abandon();
        }
        let _ = go.send(());
    }

    /// One heartbeat, on its own thread.
    pub(super) fn beat(&self) {
        // An idle process writes nothing; its next claim begins a lease.
        if self.running.load(Ordering::Acquire) == 0 || lock(&self.lease).sure.is_none() {
            return;
        }
        let (id, begun, clock) =
            (lock(&self.lease).id.clone(), Instant::now(), self.core.tasks.clock().clone());
        let (worker, time) = (id.clone(), clock.clone());
        let beat = move |conn: &mut crate::db::AnyConnection| {
            let now = time.now(conn)?;
            store::renew(conn, &worker, now)
        };
        let faults = self.core.tasks.faults();
        match faults.at_blocking("beat", || self.core.db.write_engine_blocking(beat)) {
            Ok(true) => self.sure(&id, begun),
            Ok(false) => {
                tracing::warn!(worker = %id, "others took up this worker's tasks; it drops them");
                Metrics::add(&self.metrics.lost, 1);
                *lock(&self.lease) = Lease { id: new_id().into(), sure: None };
                self.abandon();
                // What it claimed since, under the old name.
                let free = move |conn: &mut crate::db::AnyConnection| {
                    let now = clock.now(conn)?;
                    store::take_back(conn, &id, None, now, "lost", false)
                };
                let freed = faults.at_blocking("give back", || self.core.db.write_engine_blocking(free));
                if let Err(error) = freed {
                    tracing::warn!(%error, "tasks could not be given back");
                }
            }
            Err(error) => tracing::warn!(%error, "the lease could not be renewed"),
        }
    }

    /// Stops all stages where they are.
    pub(super) fn abandon(&self) {
        let handles: Vec<_> = lock(&self.handles).drain().map(|(_, (_, handle))| handle).collect();
        for handle in handles {
            handle.abort();
        }
    }

    /// Stops all stages, now and those of a claim that is being made.
    pub(super) fn vanish(&self) {
        self.gone.store(true, Ordering::Release);
        self.abandon();
    }

    /// Waits for the running stages, but no longer than the grace time.
    pub(super) async fn settle(&self) {
        let all = async {
            loop {
                let idle = self.idle.notified();
                tokio::pin!(idle);
                idle.as_mut().enable();
                if self.running.load(Ordering::Acquire) == 0 {
                    return;
                }
                idle.await;
            }
        };
        if timeout(self.options.grace, all).await.is_err() {
            tracing::warn!("stages did not end in time; others will run them again");
            self.abandon();
        }
    }

    /// Gives back what this worker still holds, and its lease.
    pub(super) async fn give_back(&self) {
        let id = lock(&self.lease).id.clone();
        let clock = self.core.tasks.clock().clone();
        let done = self.core.db.write_engine(move |conn| {
            let now = clock.now(conn)?;
            store::take_back(conn, &id, None, now, "given back", true)
        });
        match self.core.tasks.faults().at("give back", done).await.map(|it| it.value.unwrap_or(0)) {
            Ok(n) if n > 0 => tracing::info!(tasks = n, "gave tasks back"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "tasks could not be given back; the lease will end"),
        }
    }
}

/// The queues that have something due: from the first one, and where there
/// are more of one priority than a look sees, from where the last one ended.
/// Those of which this process may run none, at the front, are left out.
fn heads(
    conn: &mut crate::db::AnyConnection,
    cursor: &str,
    shares: &Shares,
    names: &[&'static str],
) -> Result<(Vec<String>, String)> {
    let (floors, begun) = (shares.floors(), Instant::now());
    let mut heads = store::heads(conn, "", HEADS, &floors)?;
    if floors.is_empty() {
        shares.looked(begun.elapsed());
    }
    while heads.len() >= FULL && !heads.iter().any(|it| shares.wants(names, it)) {
        heads = store::heads(conn, heads.last().map_or("", |it| it), HEADS, &floors)?;
    }
    let level = |key: &str| key.split('/').next().unwrap_or_default().to_owned();
    let (Some(first), Some(last)) = (heads.first(), heads.last()) else { return Ok((heads, String::new())) };
    if heads.len() < FULL || level(first) != level(last) {
        return Ok((heads, String::new()));
    }
    let mut rest = store::heads(conn, cursor, HEADS, &floors)?;
    rest.retain(|it| level(it) == level(first));
    match rest.last().cloned() {
        Some(last) => Ok((rest, last)),
        None => {
            let last = last.clone();
            Ok((heads, last))
        }
    }
}
