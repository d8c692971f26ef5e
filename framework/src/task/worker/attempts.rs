//! A task in its slot: its stages are run, and their results written.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::time::{sleep, timeout};

use super::{Worker, jitter};
use crate::Result;
use crate::auth::UserCred;
use crate::ctx::Ctx;
use crate::task::commit::{self, Next, Written};
use crate::task::ctx::{Fetched, Ran};
use crate::task::engine::Metrics;
use crate::task::plan::{Now, Plan};
use crate::task::stage::{Effect, Reason, ReasonKind, Spawn, Step};
use crate::task::store::{Claimed, Move, Status};
use crate::task::{StageSpec, TaskEntry, is_winding_up};
use crate::telemetry;

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

impl Worker {
    /// Runs a task's stages, one after another, until it has to wait, ends, or
    /// is no longer ours. Tells whether it knows which of them.
    pub(super) async fn work(
        &self,
        kind: &'static TaskEntry,
        worker: &Arc<str>,
        (mut task, mut object): Next,
    ) -> bool {
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
}
