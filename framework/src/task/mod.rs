//! Tasks: whatever takes time, as rows. A task is made in the transaction
//! that asks for it, runs stage by stage on any process's workers, survives a
//! `kill -9`, and changes the database exactly once per stage.
//!
//! ```text
//! /// Starts a space and waits until its program answers.
//! pub struct SpaceStart;
//!
//! #[stages(object = Space, params = StartParams)]      // `params` may be left out: Nothing
//! impl SpaceStart {
//!     /// Outside work first, holding no connection; `with` runs in the
//!     /// transaction that moves the task on, on the object read anew.
//!     async fn on_init(t: &mut TaskCtx<Space, StartParams>) -> Result<Stage> {
//!         let driver = t.ctx().service::<Drivers>()?;
//!         driver.start(t.object(), &t.callback(), &t.idempotency_key()).await?;
//!         Ok(Stage::wait(Self::ON_STARTED).within(Duration::from_secs(60)))
//!     }
//!     async fn on_init_failed(t: &mut TaskCtx<Space, StartParams>, why: Reason) -> Stage {
//!         let text = why.to_string();
//!         Stage::fail(why).with(move |tx, space: &mut Space| tx.set_status(space, "start_failed", &text))
//!     }
//!     /// `data` is what the callback brought (or `Stage::next(..).data(..)`).
//!     #[stage(timeout_s = 60, attempts = 3)]            // defaults: 600 and 5
//!     async fn on_started(t: &mut TaskCtx<Space, StartParams>, data: Started) -> Stage {
//!         Stage::complete().with(move |tx, space: &mut Space| tx.set_status(space, "running", ""))
//!     }
//!     async fn on_started_failed(t: &mut TaskCtx<Space, StartParams>, why: Reason) -> Stage { … }
//! }
//!
//! tx.start_task::<SpaceStart>(&space, StartParams { … })?;      // in a hook or action
//! Engine::callback(ctx.core(), &token, serde_json::json!({ … })).await?;   // from a driver
//! let workers = Engine::run(&core, WorkerOptions::default())?;    // in a tokio runtime
//! workers.drain().await;                                        // at SIGTERM
//! ```
//!
//! A stage answers `Stage` or `Result<Stage>`:
//! [`Stage::next`] (with `.data(value)` for it, `.after(delay)`),
//! [`Stage::wait`]`(stage).within(time)`, [`Stage::retry`]`(why)` (with `.after(delay)`),
//! [`Stage::complete`], [`Stage::fail`]`(why)`; each with `.with(closure)`.
//! An `Err` is a retry if it is temporary (503, 429, 507, a lost compare-and-set),
//! else a failure. A failure, the last attempt, a wait that timed out and a
//! cancel all run the stage's `_failed` twin; of a wait, the twin of the stage
//! that was waited for. A twin may go on as any stage can; when it fails
//! itself, the task ends `failed`. A stage runs at least once, so it must bear
//! to run again; its `with` takes effect exactly once.
//!
//! `start_task` answers 409 `TaskInProgressError` while the object has another
//! active task. A callback answers 409 `CallbackUsedError` the second time and
//! 409 `CallbackLateError` when the wait is over; an unknown token is 404.
//!
//! How it is kept (see `store`): `tasks` has the rows, `task_ready` what is due
//! or will be, `task_history` an entry per attempt, `task_callbacks` what was
//! called back, `workers` a lease per process. Each claim raises the task's
//! epoch, and each later statement names it, so a worker that lost its lease
//! writes nothing. All races (callback, timeout, cancel, commit) are decided
//! on the task's row.

mod callback;
mod clock;
mod commit;
mod ctx;
mod engine;
mod faults;
mod heart;
mod kind;
mod mend;
mod notify;
mod outlook;
mod plan;
mod resource;
mod schedule;
mod share;
mod stage;
mod start;
mod store;
pub mod testkit;
mod worker;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;
use crate::model::{Meta, Record};

pub use callback::Received;
pub(crate) use callback::expect_token;
pub use ctx::TaskCtx;
pub use engine::{Engine, Metrics, WorkerOptions, Workers};
pub use kind::{KindStatistics, TaskKind};
pub(crate) use mend::sample;
pub use resource::{CallbackInput, Task};
pub use schedule::Schedule;
pub use stage::{FanOut, IntoStage, Reason, ReasonKind, Stage, StageInput, StageName, Subtasks, Wait};
pub use start::TaskStart;

/// A future that may be sent to another thread.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A stage's name and bounds.
#[derive(Debug, Clone, Copy)]
pub struct StageSpec {
    /// The method's name.
    pub name: &'static str,
    /// Seconds that one attempt may take.
    pub timeout_s: u64,
    /// Attempts before its `_failed` twin runs.
    pub attempts: i64,
    /// Milliseconds before the second attempt, which double with each; 0: the
    /// worker's own.
    pub backoff_ms: u64,
}

/// How a kind of task runs.
#[derive(Debug, Clone, Copy)]
pub struct TaskOptions {
    /// 0 to 99, smaller goes first.
    pub priority: i64,
    /// How many of it a process runs at once at most.
    pub concurrency: Option<usize>,
    /// How many stages of it a process begins in a second at most.
    pub per_second: Option<u32>,
    /// Seconds that a whole task may take.
    pub timeout_s: Option<u64>,
}

impl TaskOptions {
    /// What is so unless the kind says otherwise.
    pub const DEFAULT: Self = Self { priority: 50, concurrency: None, per_second: None, timeout_s: None };
}

/// A kind of task. Written by `#[stages]`, never by hand.
pub trait TaskType: Send + Sync + 'static {
    /// The name in the database, like `space-start`.
    const NAME: &'static str;
    /// All stages, twins too.
    const STAGES: &'static [StageSpec];
    /// How it runs.
    const OPTIONS: TaskOptions;
    /// What it works on.
    type Object: Record;
    /// What it is started with.
    type Params: Serialize + DeserializeOwned + Send + Sync + 'static;

    /// Runs a stage.
    fn run<'a>(
        stage: &'a str,
        t: &'a mut TaskCtx<Self::Object, Self::Params>,
        input: StageInput,
    ) -> BoxFuture<'a, Result<Stage>>;
}

/// A kind of task without its types, as `inventory` holds it.
pub struct TaskEntry {
    /// The name in the database.
    pub name: &'static str,
    /// All stages, twins too.
    pub stages: &'static [StageSpec],
    /// How it runs.
    pub options: TaskOptions,
    /// What it works on.
    pub object: fn() -> &'static Meta,
    pub(crate) run: ctx::RunFn,
    pub(crate) fetch: ctx::FetchFn,
    pub(crate) lock: ctx::LockFn,
    pub(crate) apply: ctx::ApplyFn,
    pub(crate) check: ctx::CheckFn,
    pub(crate) start: ctx::StartFn,
}

impl TaskEntry {
    /// The entry of a kind of task.
    #[must_use]
    pub const fn of<T: TaskType>() -> Self {
        Self {
            name: T::NAME,
            stages: T::STAGES,
            options: T::OPTIONS,
            object: <T::Object as Record>::meta,
            run: ctx::run::<T>,
            fetch: ctx::fetch::<T>,
            lock: ctx::lock::<T>,
            apply: ctx::apply::<T>,
            check: ctx::check::<T>,
            start: ctx::start::<T>,
        }
    }

    pub(crate) fn stage(&self, name: &str) -> Option<&'static StageSpec> {
        self.stages.iter().find(|it| it.name == name)
    }
}

inventory::collect!(TaskEntry);

/// The kind of task of that name.
pub(crate) fn entry(name: &str) -> Option<&'static TaskEntry> {
    inventory::iter::<TaskEntry>.into_iter().find(|it| it.name == name)
}

/// Names of the kinds of tasks that work on a type's rows.
pub(crate) fn names_of(meta: &Meta) -> impl Iterator<Item = &'static str> {
    let keyword = meta.keyword();
    let of = move |it: &&TaskEntry| (it.object)().keyword() == keyword;
    inventory::iter::<TaskEntry>.into_iter().filter(of).map(|it| it.name)
}

/// What the twin of a stage is called.
pub(crate) const TWIN: &str = "_failed";

/// What the undoing of a stage is called.
pub(crate) const UNDO: &str = "_undo";

/// Whether a task in that stage is on its way to its end already.
pub(crate) fn is_winding_up(stage: &str) -> bool {
    stage.ends_with(TWIN) || stage.ends_with(UNDO)
}

/// Names of all kinds of tasks of this process.
///
/// # Panics
/// When two have one name: a fault of the program, found at its first start.
#[must_use]
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = inventory::iter::<TaskEntry>.into_iter().map(|it| it.name).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        assert!(pair[0] != pair[1], "two tasks are named {}", pair[0]);
    }
    names
}
