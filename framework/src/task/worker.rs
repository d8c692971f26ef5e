//! The workers of a process: who claims, runs stages and moves tasks on.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::ctx::Ran;
use super::engine::{Metrics, Waker, WorkerOptions};
use super::stage::{Effect, Reason, ReasonKind, Stage, Step, is_temporary};
use super::store::{self, Claimed, Move, Process, Status, Why};
use super::{StageSpec, TWIN, TaskEntry, callback, entry, heart, names};
use crate::auth::UserCred;
use crate::ctx::{Core, Ctx, Tx, new_id};
use crate::db::{self, Cost};
use crate::worker::{Report, Reporter};
use crate::{Error, Result};

/// Tasks in one claim at most.
const BATCH: usize = 100;
/// How long a running task is left before somebody asks whether it is stuck.
const SUSPECT: Duration = Duration::from_secs(30);
/// Ended tasks that one transaction deletes.
const FORGET: i64 = 200;
/// How often old tasks are deleted.
const FORGET_EVERY: Duration = Duration::from_secs(600);
/// How long a task whose stage this process does not know is left to others.
const UNKNOWN: Duration = Duration::from_secs(10);

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
    handles: Mutex<HashMap<u64, AbortHandle>>,
    serial: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slot in use; dropped with the task that uses it, however that ends.
struct Slot {
    worker: Arc<Worker>,
    serial: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.worker.handles).remove(&self.serial);
        self.worker.metrics.running.fetch_sub(1, Ordering::Relaxed);
        if self.worker.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.worker.idle.notify_waiters();
        }
        if self.worker.full.swap(false, Ordering::AcqRel) {
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
    pub(super) fn new(core: Arc<Core>, options: WorkerOptions, stopped: watch::Receiver<bool>) -> Self {
        let known = names();
        let wanted = |name: &&'static str| options.names.as_ref().is_none_or(|it| it.contains(name));
        Self {
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
            serial: AtomicU64::new(0),
            core,
            options,
        }
    }

    pub(super) fn lease_time(&self) -> Duration {
        self.options.lease
    }

    fn is_stopping(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Claims and spawns, until it is to stop.
    pub(super) async fn dispatch(self: Arc<Self>) {
        if self.names.is_empty() {
            return;
        }
        self.bury_neighbours().await;
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
        let due = self.waker.take_due();
        // Under load nobody sleeps, but dead workers are to be found all the same.
        if !due || looked.is_none_or(|at| at.elapsed() >= self.options.poll) {
            let names = self.names.clone();
            let look = self.core.db.read(Cost::Bounded, move |conn| store::look(conn, &names)).await?.value;
            *looked = Some(Instant::now());
            if look.dead {
                self.recover().await?;
            } else if !due && look.due_in != Some(Duration::ZERO) {
                let poll = jitter(self.options.poll);
                return Ok(look.due_in.map_or(poll, |it| it.min(poll)));
            }
        }
        let mut free = self.options.slots.saturating_sub(self.running.load(Ordering::Acquire));
        if free == 0 {
            self.full.store(true, Ordering::Release);
            // One may have ended between the two.
            free = self.options.slots.saturating_sub(self.running.load(Ordering::Acquire));
            if free == 0 {
                return Ok(jitter(self.options.poll));
            }
        }
        let wanted = free.min(BATCH);
        let (worker, claimed) = self.claim(wanted).await?;
        let n = claimed.len();
        for task in claimed {
            self.spawn(worker.clone(), task);
        }
        if n == wanted {
            // There may be more, for the slots that are left.
            self.waker.due();
        }
        // Next it looks what is due; what somebody holds locked is not ours to spin for.
        Ok(if n == 0 { jitter(Duration::from_millis(20)) } else { Duration::ZERO })
    }

    async fn claim(&self, wanted: usize) -> Result<(Arc<str>, Vec<Claimed>)> {
        let (worker, fresh) = {
            let lease = lock(&self.lease);
            let half = Instant::now() + self.options.lease / 2;
            (lease.id.clone(), lease.sure.is_some_and(|sure| sure > half))
        };
        let (names, process, time) = (self.names.clone(), self.process.clone(), self.options.lease);
        let (begun, id) = (Instant::now(), worker.clone());
        let limit = i64::try_from(wanted).unwrap_or(i64::MAX);
        let done = self.core.db.write(None, move |conn| {
            let claimed = store::claim(conn, &id, &names, limit)?;
            if !fresh && !claimed.is_empty() {
                store::lease(conn, &id, &process, time)?;
            }
            Ok(claimed)
        });
        let claimed = done.await?.value;
        if !fresh && !claimed.is_empty() {
            self.sure(&worker, begun);
        }
        Metrics::add(&self.metrics.claimed, claimed.len());
        for task in &claimed {
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

    fn spawn(self: &Arc<Self>, worker: Arc<str>, task: Claimed) {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::AcqRel);
        self.metrics.running.fetch_add(1, Ordering::Relaxed);
        let slot = Slot { worker: self.clone(), serial };
        let (go, begin) = oneshot::channel();
        let handle = tokio::spawn(async move {
            if begin.await.is_ok() {
                slot.worker.work(&worker, task).await;
            }
        });
        // Its handle first, so that it cannot end before it is there.
        lock(&self.handles).insert(serial, handle.abort_handle());
        let _ = go.send(());
    }

    /// Runs a task's stages, one after another, until it has to wait, ends, or
    /// is no longer ours.
    async fn work(&self, worker: &Arc<str>, mut task: Claimed) {
        let Some(kind) = entry(&task.task_name) else { return };
        loop {
            let task_now = Arc::new(task);
            let Some(plan) = self.attempt(kind, &task_now).await else { return };
            Metrics::add(&self.metrics.stages, 1);
            match self.commit(kind, worker, &task_now, plan).await {
                Some(next) => task = next,
                None => return,
            }
        }
    }

    /// Runs one stage and says what is to become of the task. `None`: this
    /// process has no idea, but another may.
    async fn attempt(&self, kind: &'static TaskEntry, task: &Arc<Claimed>) -> Option<Plan> {
        let Some(spec) = kind.stage(&task.stage) else {
            tracing::warn!(
                task = task.id,
                name = task.task_name,
                stage = task.stage,
                "this version has no such stage"
            );
            return Some(Plan::leave());
        };
        if task.attempt > spec.attempts {
            // Each attempt ended with the worker: this one would too.
            let text = format!("the worker died in each of {} attempts", spec.attempts);
            return Some(Plan::of(Step::Fail(Reason::new(ReasonKind::Lost, &text))));
        }
        let cred: UserCred = match serde_json::from_str(&task.user_cred) {
            Ok(cred) => cred,
            Err(error) => return Some(Plan::of(Step::Fail(format!("its credential: {error}").into()))),
        };
        let ctx = Ctx::task(self.core.clone(), Arc::new(cred), task.id.as_str());
        let limit = Duration::from_secs(spec.timeout_s);
        let run = AssertUnwindSafe((kind.run)(ctx, task.clone())).catch_unwind();
        let plan = match timeout(limit, run).await {
            Err(_) => {
                let text = format!("{} took longer than {} s", task.stage, spec.timeout_s);
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
            Ok(Ok(Ok(Some(Ran { stage: Err(error), progress })))) => {
                Plan { progress, ..Plan::error(task, error) }
            }
            Ok(Ok(Err(error))) => Plan::error(task, error),
        };
        Some(plan)
    }

    /// Moves the task on, however long the database may be away. Gives the
    /// task back if this worker goes on with it.
    async fn commit(
        &self,
        kind: &'static TaskEntry,
        worker: &Arc<str>,
        task: &Arc<Claimed>,
        mut plan: Plan,
    ) -> Option<Claimed> {
        let mut pause = Duration::from_millis(100);
        let mut cancel = false;
        loop {
            let effect = plan.effect.take();
            let had_effect = effect.is_some();
            let to = plan.moved(kind, task, &self.options, cancel, self.is_stopping());
            let result = self.write(kind, worker, task, to, effect).await;
            match result {
                Ok(Written::On(next)) => return next.map(|it| *it),
                Ok(Written::Cancelled(effect)) => {
                    cancel = true;
                    plan.effect = effect;
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
                    return None;
                }
                // The effect was tried and is used up: this attempt has
                // failed. If it was written all the same and only the answer
                // was lost, the next try finds the task no longer held.
                Err(error) if had_effect => plan = Plan::error(task, error),
                Err(error) => {
                    tracing::warn!(task = task.id, stage = task.stage, %error, "a result cannot be written yet");
                    sleep(jitter(pause)).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
        }
    }

    /// One try to move the task on, in one transaction with its effect.
    async fn write(
        &self,
        kind: &'static TaskEntry,
        worker: &Arc<str>,
        task: &Arc<Claimed>,
        to: Move,
        effect: Option<Effect>,
    ) -> Result<Written> {
        let cred = serde_json::from_str(&task.user_cred).unwrap_or_else(|_| UserCred::system());
        let ctx = Ctx::task(self.core.clone(), Arc::new(cred), task.id.as_str());
        let (worker, of, waker) = (worker.clone(), task.clone(), self.waker.clone());
        let counted = to.clone();
        let done = ctx.write(None, move |tx| {
            let written = write(tx, kind, &worker, &of, &to, effect)?;
            if matches!(to.status, Status::Queued | Status::Waiting) {
                db::after_commit(move || waker.look());
            }
            Ok(written)
        });
        let written = done.await?.value;
        if let Written::On(_) = &written {
            self.count(&counted);
        }
        Ok(written)
    }

    fn count(&self, to: &Move) {
        match (to.status, &to.stage) {
            (Status::Done, _) => Metrics::add(&self.metrics.completed, 1),
            (Status::Failed, _) => Metrics::add(&self.metrics.failed, 1),
            (Status::Cancelled, _) => Metrics::add(&self.metrics.cancelled, 1),
            (Status::Queued, None) => Metrics::add(&self.metrics.retried, 1),
            _ => {}
        }
    }

    /// Takes up what dead workers had.
    async fn recover(&self) -> Result<()> {
        // Who looks is alive: if only its heartbeat is late, its stages are
        // still at it. Others may judge otherwise.
        let busy = self.running.load(Ordering::Acquire) > 0;
        let me = lock(&self.lease).id.clone();
        let done = self.core.db.write(None, move |conn| {
            let mut n = 0;
            for worker in store::dead(conn)? {
                if !(busy && *worker == *me) {
                    n += store::take_back(conn, &worker, "lost", false)?;
                }
            }
            Ok(n)
        });
        let n = done.await?.value;
        if n > 0 {
            tracing::info!(tasks = n, "took up the tasks of a worker that is gone");
            Metrics::add(&self.metrics.recovered, n);
        }
        Ok(())
    }

    /// Ends the leases of processes of this host that have ended, so that a
    /// restart goes on at once.
    async fn bury_neighbours(&self) {
        if self.process.host.is_empty() {
            return;
        }
        let host = self.process.host.clone();
        let found = self.core.db.read(Cost::Bounded, move |conn| store::neighbours(conn, &host)).await;
        let dead: Vec<_> = match found {
            Ok(done) => {
                done.value.into_iter().filter(|(_, pid, start)| heart::is_dead(*pid, *start)).collect()
            }
            // Their leases will end.
            Err(_) => return,
        };
        if dead.is_empty() {
            return;
        }
        let done = self
            .core
            .db
            .write(None, move |conn| dead.iter().try_for_each(|(id, ..)| store::expire(conn, id)));
        if let Err(error) = done.await {
            tracing::warn!(%error, "the leases of dead workers could not be ended");
        }
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
        if forget && let Err(error) = self.forget().await {
            tracing::warn!(%error, "old tasks could not be deleted");
        }
        if let Err(error) = self.free_stuck().await {
            tracing::warn!(%error, "stuck tasks could not be looked for");
        }
    }

    /// Takes tasks from workers that have no lease at all, or that have not
    /// ended a stage long after its time.
    async fn free_stuck(&self) -> Result<()> {
        let running = self.core.db.read(Cost::Unbounded, |conn| store::running(conn, SUSPECT)).await?.value;
        for task in running {
            let limit = entry(&task.task_name).and_then(|it| it.stage(&task.stage)).map(|it| it.timeout_s);
            let over =
                limit.is_some_and(|s| task.age > Duration::from_secs(s) + self.options.lease + SUSPECT);
            if task.leased && !over {
                continue;
            }
            let (id, epoch) = (task.id.clone(), task.epoch);
            if self.core.db.write(None, move |conn| store::take_one(conn, &id, epoch)).await?.value {
                tracing::warn!(task = task.id, stage = task.stage, "took a stuck task from its worker");
                Metrics::add(&self.metrics.recovered, 1);
                self.waker.due();
            }
        }
        Ok(())
    }

    async fn forget(&self) -> Result<()> {
        let keep = self.options.keep;
        loop {
            let n = self.core.db.write(None, move |conn| store::forget(conn, keep, FORGET)).await?.value;
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
        if self.running.load(Ordering::Acquire) == 0 {
            return;
        }
        let (id, begun, time) = (lock(&self.lease).id.clone(), Instant::now(), self.options.lease);
        let worker = id.clone();
        match self.core.db.write_blocking(move |conn| store::renew(conn, &worker, time)) {
            Ok(true) => self.sure(&id, begun),
            Ok(false) => {
                tracing::warn!(worker = %id, "others took up this worker's tasks; it drops them");
                *lock(&self.lease) = Lease { id: new_id().into(), sure: None };
                self.abandon();
                // What it claimed since, under the old name.
                let freed =
                    self.core.db.write_blocking(move |conn| store::take_back(conn, &id, "lost", false));
                if let Err(error) = freed {
                    tracing::warn!(%error, "tasks could not be given back");
                }
            }
            Err(error) => tracing::warn!(%error, "the lease could not be renewed"),
        }
    }

    /// Stops all stages where they are.
    pub(super) fn abandon(&self) {
        let handles: Vec<_> = lock(&self.handles).drain().map(|(_, handle)| handle).collect();
        for handle in handles {
            handle.abort();
        }
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
        let done = self.core.db.write(None, move |conn| store::take_back(conn, &id, "given back", true));
        match done.await {
            Ok(done) if done.value > 0 => tracing::info!(tasks = done.value, "gave tasks back"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "tasks could not be given back; the lease will end"),
        }
    }
}

/// How a try to move a task on went.
enum Written {
    /// Done; the task, if this worker goes on with it.
    On(Option<Box<Claimed>>),
    /// Not done: somebody asked to cancel. The effect comes back unused.
    Cancelled(Option<Effect>),
    /// Not done: the object is gone.
    Gone,
    /// Not done: the task is not ours.
    Stale,
}

/// The transaction: object, task, effect, in the order that locks are taken.
fn write(
    tx: &mut Tx<'_>,
    kind: &'static TaskEntry,
    worker: &str,
    task: &Claimed,
    to: &Move,
    effect: Option<Effect>,
) -> Result<Written> {
    let object = match &effect {
        Some(_) => (kind.lock)(tx, &task.obj_id)?,
        None => None,
    };
    if effect.is_some() && object.is_none() {
        return Ok(Written::Gone);
    }
    let Some(at) = store::advance(tx.conn, worker, task, to)? else {
        return Ok(match store::held(tx.conn, worker, task)? {
            Some(_) => Written::Cancelled(effect),
            None => Written::Stale,
        });
    };
    if to.status == Status::Waiting {
        // The callback may have been quicker than the stage.
        let token = callback::token(&task.id, task.seq, &task.secret);
        if let Some(data) = store::callback_data(tx.conn, &token)? {
            store::resume(tx.conn, &task.id, &data)?;
            tx.wake_workers();
        }
    }
    if let (Some(effect), Some(object)) = (effect, object) {
        (kind.apply)(tx, object, effect, kind.name)?;
    }
    if to.status != Status::Running {
        return Ok(Written::On(None));
    }
    let mut next = task.clone();
    if let Some(stage) = &to.stage {
        next.stage.clone_from(stage);
    }
    if let Some(data) = &to.data {
        next.data.clone_from(data);
    }
    if let Why::Set(why) = &to.why {
        next.reason.clone_from(why);
    }
    next.cancelling |= to.cancelling;
    next.attempt = 1;
    next.seq += 1;
    next.epoch += 1;
    next.started_at = at;
    Ok(Written::On(Some(Box::new(next))))
}

/// What is to become of a task after an attempt.
struct Plan {
    step: PlanStep,
    data: Option<serde_json::Result<String>>,
    after: Option<Duration>,
    effect: Option<Effect>,
    progress: Option<f64>,
}

enum PlanStep {
    Step(Step),
    /// The object is gone.
    Gone(Reason),
    /// This process does not know the stage.
    Leave,
}

impl Plan {
    fn of(step: Step) -> Self {
        Self { step: PlanStep::Step(step), data: None, after: None, effect: None, progress: None }
    }

    fn stage(stage: Stage, progress: Option<f64>) -> Self {
        let Stage { step, data, after, effect } = stage;
        Self { step: PlanStep::Step(step), data, after, effect, progress }
    }

    fn leave() -> Self {
        Self { step: PlanStep::Leave, ..Self::of(Step::Complete) }
    }

    fn gone(task: &Claimed) -> Self {
        let why = Reason::from(format!("{} {} is gone", task.obj_type, task.obj_id));
        Self { step: PlanStep::Gone(why), ..Self::of(Step::Complete) }
    }

    fn error(task: &Claimed, error: Error) -> Self {
        tracing::warn!(task = task.id, name = task.task_name, stage = task.stage, %error, "a stage failed");
        let retry = is_temporary(&error);
        let why = Reason::from(error);
        Self::of(if retry { Step::Retry(why) } else { Step::Fail(why) })
    }

    /// The move in the database. `cancel`: somebody asked to cancel while the
    /// stage ran. `stopping`: leave the next stage to another process.
    fn moved(
        &self,
        kind: &'static TaskEntry,
        task: &Claimed,
        options: &WorkerOptions,
        cancel: bool,
        stopping: bool,
    ) -> Move {
        let is_twin = task.stage.ends_with(TWIN);
        let here = if stopping { Status::Queued } else { Status::Running };
        let base = Move {
            status: here,
            stage: None,
            data: None,
            begins: false,
            why: if is_twin { Why::Keep } else { Why::Clear },
            cancelling: false,
            refund: false,
            delay: Duration::ZERO,
            progress: self.progress,
            outcome: "done",
            regardless: false,
        };
        let twin = |of: &str, why: &Reason, outcome: &'static str| Move {
            stage: Some(format!("{of}{TWIN}")),
            why: Why::Set(why.clone()),
            outcome,
            ..base.clone()
        };
        let end = |status: Status, why: Option<&Reason>, outcome: &'static str| Move {
            status: if task.cancelling || (cancel && is_twin) { Status::Cancelled } else { status },
            why: match why {
                // Who is cancelled knows why.
                _ if task.cancelling => Why::Keep,
                Some(why) => Why::Set(why.clone()),
                None => base.why.clone(),
            },
            progress: if status == Status::Done { Some(100.0) } else { self.progress },
            outcome,
            regardless: true,
            ..base.clone()
        };
        let fail = |why: &Reason, outcome: &'static str| {
            if is_twin { end(Status::Failed, Some(why), outcome) } else { twin(&task.stage, why, outcome) }
        };
        let step = match &self.step {
            PlanStep::Step(step) => step,
            PlanStep::Gone(why) => {
                return Move { status: Status::Cancelled, ..end(Status::Cancelled, Some(why), "gone") };
            }
            PlanStep::Leave => {
                return Move {
                    status: Status::Queued,
                    why: Why::Keep,
                    refund: true,
                    delay: UNKNOWN,
                    outcome: "left",
                    regardless: true,
                    ..base
                };
            }
        };
        // A twin that winds a task up is let do so, as is a cancel's.
        let cancelled = Reason::cancelled("cancelled while it ran");
        let mut it = match step {
            Step::Complete => end(Status::Done, None, "done"),
            Step::Next(to) | Step::Wait(to, _) if kind.stage(to.as_str()).is_none() => {
                fail(&format!("{} has no stage {}", kind.name, to.as_str()).into(), "failed")
            }
            Step::Next(to) | Step::Wait(to, _) if cancel && !is_twin && !task.cancelling => {
                Move { cancelling: true, ..twin(to.as_str(), &cancelled, "done") }
            }
            Step::Next(to) => {
                let data = match &self.data {
                    Some(Ok(data)) => Some(data.clone()),
                    None => None,
                    Some(Err(error)) => {
                        return fail(&format!("the data for {}: {error}", to.as_str()).into(), "failed");
                    }
                };
                let delay = self.after.unwrap_or_default();
                Move {
                    status: if delay.is_zero() { here } else { Status::Queued },
                    stage: Some(to.as_str().to_owned()),
                    data: Some(data),
                    begins: true,
                    delay,
                    ..base.clone()
                }
            }
            Step::Wait(to, time) => Move {
                status: Status::Waiting,
                stage: Some(to.as_str().to_owned()),
                delay: *time,
                outcome: "waits",
                ..base.clone()
            },
            Step::Retry(_) | Step::Fail(_) if cancel && !is_twin && !task.cancelling => {
                Move { cancelling: true, ..twin(&task.stage, &cancelled, "failed") }
            }
            Step::Retry(why) => {
                let attempts = kind.stage(&task.stage).map_or(1, |it: &StageSpec| it.attempts);
                if task.attempt >= attempts {
                    fail(why, "failed")
                } else {
                    Move {
                        status: Status::Queued,
                        // A twin has the reason that it is run for.
                        why: if is_twin { Why::Keep } else { Why::Set(why.clone()) },
                        delay: self.after.unwrap_or_else(|| backoff(options, task.attempt)),
                        outcome: "retried",
                        ..base.clone()
                    }
                }
            }
            Step::Fail(why) => fail(why, "failed"),
        };
        // Once the cancel is in the move, or can change nothing more.
        it.regardless |= cancel || is_twin || task.cancelling;
        it
    }
}

/// Doubles with each attempt, up to a longest, and never the same for two.
fn backoff(options: &WorkerOptions, attempt: i64) -> Duration {
    let doubled = options.backoff * 2_u32.saturating_pow(u32::try_from(attempt - 1).unwrap_or(0).min(20));
    let full = doubled.min(options.backoff_max);
    full.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}
