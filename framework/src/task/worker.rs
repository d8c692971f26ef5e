//! The workers of a process: who claims, runs stages and moves tasks on.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::clock::micros;
use super::commit::{self, Committer, Next, Written};
use super::ctx::{Fetched, Ran};
use super::engine::{Metrics, Waker, WorkerOptions};
use super::plan::{Now, Plan};
use super::share::Shares;
use super::stage::{Effect, Reason, ReasonKind, Spawn, Step};
use super::store::{self, Claimed, Move, Process, Seen, Status};
use super::{StageSpec, TaskEntry, entry, heart, is_winding_up, kind, mend, names};
use crate::Result;
use crate::auth::UserCred;
use crate::ctx::{Core, Ctx, Tx, new_id};
use crate::db::{Cost, Dialect};
use crate::telemetry;
use crate::worker::{Report, Reporter};

/// Tasks in one claim at most.
const BATCH: usize = 100;
/// How long a running task is left before somebody asks whether it is stuck.
const SUSPECT: Duration = Duration::from_secs(30);
/// Ended tasks that one transaction deletes.
const FORGET: i64 = 200;
/// How often old tasks are deleted.
const FORGET_EVERY: Duration = Duration::from_secs(600);
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

/// What came of a stage's result.
enum Committed {
    /// This worker goes on with the task.
    On(Box<Next>),
    /// It does not.
    Left,
    /// The task was not ours, or no longer: another worker has it, or an
    /// earlier try was written and its answer lost.
    Stale,
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

    /// The processes that are dead, and the beat that they had.
    fn judge(&self, seen: &[Seen]) -> Vec<(String, i64)> {
        let me = lock(&self.lease).id.clone();
        let busy = self.running.load(Ordering::Acquire) > 0;
        let (now, gap) = (Instant::now(), self.options.poll * 3 + Duration::from_millis(500));
        let mut watched = lock(&self.watched);
        watched.retain(|id, _| seen.iter().any(|it| it.id == *id));
        let mut dead = Vec::new();
        for it in seen {
            let mine = *it.id == *me;
            // Who looks is alive: if only its heartbeat is late, its stages are
            // still at it. Others may judge otherwise.
            if mine && busy {
                continue;
            }
            let here = !it.of.host.is_empty() && it.of.host == self.process.host;
            if here && heart::is_dead(it.of.pid, it.of.started) {
                dead.push((it.id.clone(), it.beat));
                continue;
            }
            let fresh = Watched { beat: it.beat, since: now, looked: now };
            let entry = watched.entry(it.id.clone()).or_insert(fresh);
            if entry.beat != it.beat || now - entry.looked > gap {
                *entry = fresh;
            }
            entry.looked = now;
            // A process that this machine still has is late or stopped rather than dead.
            let patience = if here && !mine { self.options.lease * 3 } else { self.options.lease };
            if now - entry.since >= patience {
                dead.push((it.id.clone(), it.beat));
            }
        }
        dead
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

    /// Runs a task's stages, one after another, until it has to wait, ends, or
    /// is no longer ours. Tells whether it knows which of them.
    async fn work(&self, kind: &'static TaskEntry, worker: &Arc<str>, (mut task, mut object): Next) -> bool {
        loop {
            let task_now = Arc::new(task);
            let begun = Instant::now();
            let plan = self.attempt(kind, &task_now, object.take()).await;
            telemetry::STAGES.with_label_values(&[kind.name]).observe(begun.elapsed().as_secs_f64());
            Metrics::add(&self.metrics.stages, 1);
            match self.commit(kind, worker, &task_now, plan).await {
                Committed::On(next) => (task, object) = *next,
                Committed::Left => return true,
                Committed::Stale => return false,
            }
        }
    }

    /// Runs one stage and says what is to become of the task.
    async fn attempt(&self, kind: &'static TaskEntry, task: &Arc<Claimed>, object: Option<Fetched>) -> Plan {
        let knows = |_: &&StageSpec| self.core.tasks.faults().knows(&task.stage);
        let Some(spec) = kind.stage(&task.stage).filter(knows) else {
            tracing::warn!(
                task = task.id,
                name = task.task_name,
                stage = task.stage,
                "this version has no such stage"
            );
            return Plan::leave();
        };
        if task.attempt > spec.attempts {
            // Each attempt ended with the worker: this one would too.
            let text = format!("the worker died in each of {} attempts", spec.attempts);
            return Plan::of(Step::Fail(Reason::new(ReasonKind::Lost, &text)));
        }
        let mut limit = Duration::from_secs(spec.timeout_s);
        if let Some(deadline) = task.deadline.filter(|_| !is_winding_up(&task.stage)) {
            let left = deadline - self.core.tasks.clock().time();
            if left <= 0 {
                return Plan::of(Step::Fail(Reason::timeout("the task took longer than it may")));
            }
            limit = limit.min(Duration::from_micros(u64::try_from(left).unwrap_or(0)));
        }
        let cred: UserCred = match serde_json::from_str(&task.user_cred) {
            Ok(cred) => cred,
            Err(error) => return Plan::of(Step::Fail(format!("its credential: {error}").into())),
        };
        let ctx = Ctx::task(self.core.clone(), Arc::new(cred), task.id.as_str());
        let run = self.core.tasks.faults().at("stage", (kind.run)(ctx, task.clone(), object));
        let run = AssertUnwindSafe(run).catch_unwind();
        match timeout(limit, run).await {
            Err(_) => {
                let text = format!("{} took longer than {} s", task.stage, limit.as_secs_f64().ceil());
                Plan::of(Step::Retry(Reason::timeout(&text)))
            }
            Ok(Err(panic)) => {
                let text = panic
                    .downcast_ref::<&str>()
                    .map(ToString::to_string)
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "no message".to_owned());
                tracing::error!(
                    task = task.id,
                    name = task.task_name,
                    stage = task.stage,
                    text,
                    "a stage panicked"
                );
                Plan::of(Step::Retry(Reason::new(ReasonKind::Panic, &format!("panic: {text}"))))
            }
            Ok(Ok(Ok(None))) => Plan::gone(task),
            Ok(Ok(Ok(Some(Ran { stage: Ok(stage), progress })))) => Plan::stage(stage, progress),
            Ok(Ok(Ok(Some(Ran { stage: Err(error), progress })))) => Plan::error(task, error).told(progress),
            Ok(Ok(Err(error))) => Plan::error(task, error),
        }
    }

    /// Moves the task on, however long the database may be away. Gives the
    /// task back if this worker goes on with it.
    async fn commit(
        &self,
        kind: &'static TaskEntry,
        worker: &Arc<str>,
        task: &Arc<Claimed>,
        mut plan: Plan,
    ) -> Committed {
        let mut pause = Duration::from_millis(100);
        let mut cancel = false;
        loop {
            let now = Now {
                options: &self.options,
                time: self.core.tasks.clock().time(),
                cancel,
                stopping: self.is_stopping() || self.shares.is_paused(kind.name),
            };
            let to = plan.moved(kind, task, &now);
            let (effect, spawns) = (plan.effect.take(), std::mem::take(&mut plan.spawns));
            let used_up = effect.is_some() || !spawns.is_empty();
            let written = if used_up {
                self.write(kind, worker, task, to.clone(), effect, spawns).await
            } else {
                self.committer.advance(worker, task, &to).await
            };
            match written {
                Ok(Written::On(next)) => {
                    self.count(kind.name, &to);
                    return next.map_or(Committed::Left, Committed::On);
                }
                Ok(Written::Cancelled(effect, spawns)) => {
                    cancel = true;
                    (plan.effect, plan.spawns) = (effect, spawns);
                }
                Ok(Written::Gone) => plan = Plan::gone(task),
                Ok(Written::Stale) => {
                    Metrics::add(&self.metrics.stale, 1);
                    tracing::info!(
                        task = task.id,
                        stage = task.stage,
                        epoch = task.epoch,
                        "a result came too late"
                    );
                    return Committed::Stale;
                }
                // The effect was tried and is used up: this attempt has
                // failed. If it was written all the same and only the answer
                // was lost, the next try finds the task no longer held.
                Err(error) if used_up => plan = Plan::error(task, error),
                Err(error) => {
                    tracing::warn!(task = task.id, stage = task.stage, %error, "a result cannot be written yet");
                    sleep(jitter(pause)).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
        }
    }

    /// One try to move the task on, in one transaction with what it changes.
    async fn write(
        &self,
        kind: &'static TaskEntry,
        worker: &Arc<str>,
        task: &Arc<Claimed>,
        to: Move,
        effect: Option<Effect>,
        spawns: Vec<Spawn>,
    ) -> Result<Written> {
        let cred = serde_json::from_str(&task.user_cred).unwrap_or_else(|_| UserCred::system());
        let ctx = Ctx::task(self.core.clone(), Arc::new(cred), task.id.as_str());
        let (worker, of) = (worker.clone(), task.clone());
        let done =
            ctx.write(None, move |tx| commit::with_effect(tx, kind, &worker, &of, &to, effect, spawns));
        Ok(self.core.tasks.faults().at("effect", done).await?.value)
    }

    fn count(&self, kind: &str, to: &Move) {
        telemetry::ATTEMPTS.with_label_values(&[kind, to.outcome]).inc();
        if to.status.is_ended() {
            telemetry::TASKS_ENDED.with_label_values(&[kind, to.status.as_str()]).inc();
        }
        match (to.status, &to.stage) {
            (Status::Done, _) => Metrics::add(&self.metrics.completed, 1),
            (Status::Failed, _) => Metrics::add(&self.metrics.failed, 1),
            (Status::Cancelled, _) => Metrics::add(&self.metrics.cancelled, 1),
            (Status::Queued, None) => Metrics::add(&self.metrics.retried, 1),
            _ => {}
        }
    }

    /// Takes up what the database has as ours and nobody here runs: a claim or
    /// a commit was written and its answer lost. Between two claims, so that
    /// none is on its way.
    async fn reclaim(&self) -> Result<()> {
        let id = lock(&self.lease).id.clone();
        let held = self.core.db.read(Cost::Bounded, move |conn| store::holding(conn, &id)).await?.value;
        // In this order: what ends meanwhile is written before it leaves its slot.
        let here: HashSet<String> = lock(&self.handles).values().map(|(id, _)| id.clone()).collect();
        for (id, epoch) in held.into_iter().filter(|(id, _)| !here.contains(id)) {
            let (task, clock) = (id.clone(), self.core.tasks.clock().clone());
            let done = self.core.db.write_engine(move |conn| {
                let now = clock.now(conn)?;
                store::take_one(conn, &task, epoch, now)
            });
            if self.core.tasks.faults().at("reclaim", done).await?.value {
                tracing::info!(task = id, "took up a task of which no answer came");
                Metrics::add(&self.metrics.recovered, 1);
                self.waker.due();
            }
        }
        Ok(())
    }

    /// Takes up what dead workers had.
    async fn recover(&self, dead: Vec<(String, i64)>) -> Result<()> {
        let clock = self.core.tasks.clock().clone();
        let done = self.core.db.write_engine(move |conn| {
            let now = clock.now(conn)?;
            let mut n = 0;
            for (worker, beat) in dead {
                n += store::take_back(conn, &worker, Some(beat), now, "lost", false)?.unwrap_or(0);
            }
            Ok(n)
        });
        let n = self.core.tasks.faults().at("recover", done).await?.value;
        if n > 0 {
            tracing::info!(tasks = n, "took up the tasks of a worker that is gone");
            Metrics::add(&self.metrics.recovered, n);
        }
        Ok(())
    }

    /// Now and then: finds stuck tasks and deletes old ones.
    pub(super) async fn keep_house(self: Arc<Self>) {
        let mut forgot: Option<Instant> = None;
        loop {
            sleep(jitter(SUSPECT)).await;
            let forget = forgot.is_none_or(|at| at.elapsed() >= FORGET_EVERY);
            if forget {
                forgot = Some(Instant::now());
            }
            self.tidy(forget).await;
        }
    }

    /// Deletes old tasks, if it is time to, and finds stuck ones.
    pub(super) async fn tidy(&self, forget: bool) {
        self.register().await;
        if forget && let Err(error) = self.forget().await {
            tracing::warn!(%error, "old tasks could not be deleted");
        }
        if let Err(error) = self.free_stuck().await {
            tracing::warn!(%error, "stuck tasks could not be looked for");
        }
        let from = lock(&self.mended).clone();
        match mend::mend(&self.core, from).await {
            Ok(cursor) => *lock(&self.mended) = cursor,
            Err(error) => tracing::warn!(%error, "stuck tasks could not be looked for"),
        }
    }

    /// Takes tasks from workers that have no lease at all, or that have not
    /// ended a stage long after its time.
    async fn free_stuck(&self) -> Result<()> {
        let clock = self.core.tasks.clock().clone();
        let look = move |conn: &mut crate::db::AnyConnection| {
            let now = clock.peek(conn)?;
            store::running(conn, now, micros(SUSPECT))
        };
        let running = self.core.db.read(Cost::Unbounded, look).await?.value;
        for task in running {
            let limit = entry(&task.task_name).and_then(|it| it.stage(&task.stage)).map(|it| it.timeout_s);
            let over =
                limit.is_some_and(|s| task.age > Duration::from_secs(s) + self.options.lease + SUSPECT);
            if task.leased && !over {
                continue;
            }
            let (id, epoch, clock) = (task.id.clone(), task.epoch, self.core.tasks.clock().clone());
            let take = move |conn: &mut crate::db::AnyConnection| {
                let now = clock.now(conn)?;
                store::take_one(conn, &id, epoch, now)
            };
            if self.core.tasks.faults().at("tidy", self.core.db.write(None, take)).await?.value {
                tracing::warn!(task = task.id, stage = task.stage, "took a stuck task from its worker");
                Metrics::add(&self.metrics.recovered, 1);
                telemetry::TASKS_REPAIRED.with_label_values(&["running"]).inc();
                self.waker.due();
            }
        }
        Ok(())
    }

    async fn forget(&self) -> Result<()> {
        let keep = micros(self.options.keep);
        loop {
            let clock = self.core.tasks.clock().clone();
            let forget = move |conn: &mut crate::db::AnyConnection| {
                let now = clock.now(conn)?;
                store::forget(conn, now - keep, FORGET)
            };
            let n = self.core.tasks.faults().at("tidy", self.core.db.write(None, forget)).await?.value;
            if n == 0 {
                return Ok(());
            }
            // Others want to write too.
            sleep(Duration::from_millis(50)).await;
        }
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
