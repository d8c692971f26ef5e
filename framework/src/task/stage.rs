//! What a stage answers, and what it is given.

use std::any::Any;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::TaskType;
use super::store::Claimed;
use crate::ctx::Tx;
use crate::model::Record;
use crate::{Error, Kind, Result};

/// A stage of a task, as `Self::ON_STARTED`; only `#[stages]` makes them, so a
/// move to a stage that does not exist does not compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageName(&'static str);

impl StageName {
    #[doc(hidden)]
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// The method's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

/// Of what sort a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasonKind {
    /// The stage said so, or answered an error.
    Failed,
    /// A wait or a stage took too long.
    Timeout,
    /// Somebody cancelled the task.
    Cancelled,
    /// The stage panicked.
    Panic,
    /// The worker died in it, each time.
    Lost,
}

impl ReasonKind {
    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Panic => "panic",
            Self::Lost => "lost",
        }
    }

    fn parse(word: &str) -> Self {
        match word {
            "timeout" => Self::Timeout,
            "cancelled" => Self::Cancelled,
            "panic" => Self::Panic,
            "lost" => Self::Lost,
            _ => Self::Failed,
        }
    }
}

/// Why a stage failed, for its twin and for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The sort.
    pub kind: ReasonKind,
    /// A sentence.
    pub text: String,
}

impl Reason {
    /// A reason of that sort. Kept to a length that a column bears.
    #[must_use]
    pub fn new(kind: ReasonKind, text: &str) -> Self {
        // PostgreSQL keeps no NUL in a text.
        Self { kind, text: text.chars().filter(|c| *c != '\0').take(4096).collect() }
    }

    /// Something took too long.
    #[must_use]
    pub fn timeout(text: &str) -> Self {
        Self::new(ReasonKind::Timeout, text)
    }

    /// Somebody cancelled the task.
    #[must_use]
    pub fn cancelled(text: &str) -> Self {
        Self::new(ReasonKind::Cancelled, text)
    }

    /// Whether something took too long.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.kind == ReasonKind::Timeout
    }

    /// Whether somebody cancelled the task.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.kind == ReasonKind::Cancelled
    }

    pub(crate) fn stored(kind: &str, text: String) -> Self {
        Self { kind: ReasonKind::parse(kind), text }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self::new(ReasonKind::Failed, text)
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self::new(ReasonKind::Failed, &text)
    }
}

impl From<&Error> for Reason {
    /// The sentence for people; the cause stays in the log.
    fn from(error: &Error) -> Self {
        Self::new(ReasonKind::Failed, error.message())
    }
}

impl From<Error> for Reason {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

/// Whether it may go better another time: overload, a full disk, or a row that
/// somebody else changed between our read and our write.
pub(crate) fn is_temporary(error: &Error) -> bool {
    match error.kind() {
        Kind::Unavailable | Kind::TooManyRequests | Kind::InsufficientStorage => true,
        Kind::Conflict => error.class_name() == "ConflictError",
        _ => false,
    }
}

/// What runs in the transaction that moves the task on.
pub(crate) type Effect = Box<dyn FnOnce(&mut Tx<'_>, &mut dyn Any) -> Result<()> + Send>;

/// Starts a subtask in the transaction that moves its parent on.
pub(crate) type Spawn = Box<dyn FnOnce(&mut Tx<'_>, &Claimed) -> Result<()> + Send>;

/// Where a stage leads.
pub(crate) enum Step {
    Next(StageName),
    Wait(StageName, Duration),
    /// As a wait, for the subtasks.
    FanOut(StageName, Duration),
    Retry(Reason),
    Complete,
    Fail(Reason),
}

/// What a stage answers: where the task goes from here, and what changes in
/// the database when it does.
#[must_use = "a stage is what the method answers"]
pub struct Stage {
    pub(crate) step: Step,
    pub(crate) data: Option<serde_json::Result<String>>,
    pub(crate) undo: Option<serde_json::Result<String>>,
    pub(crate) after: Option<Duration>,
    pub(crate) effect: Option<Effect>,
    pub(crate) spawns: Vec<Spawn>,
}

impl Stage {
    fn of(step: Step) -> Self {
        Self { step, data: None, undo: None, after: None, effect: None, spawns: Vec::new() }
    }

    /// Goes on with another stage (or this one again, as a poll).
    pub fn next(stage: StageName) -> Self {
        Self::of(Step::Next(stage))
    }

    /// Waits for a callback with the token of [`super::TaskCtx::callback`],
    /// then goes on with that stage; when the time is over, with its twin.
    pub fn wait(stage: StageName) -> Wait {
        Wait(stage)
    }

    /// Starts subtasks, and goes on with that stage when all have ended; it is
    /// given [`Subtasks`]. If that takes too long, they are cancelled, and when
    /// all have ended, its twin runs.
    pub fn fan_out(stage: StageName) -> FanOut {
        FanOut { stage, spawns: Vec::new() }
    }

    /// Runs this stage again, later and later, until its attempts are used up;
    /// then its twin.
    pub fn retry(reason: impl Into<Reason>) -> Self {
        Self::of(Step::Retry(reason.into()))
    }

    /// Ends the task.
    pub fn complete() -> Self {
        Self::of(Step::Complete)
    }

    /// Runs the stage's twin; from a twin, ends the task as failed.
    pub fn fail(reason: impl Into<Reason>) -> Self {
        Self::of(Step::Fail(reason.into()))
    }

    /// What this stage's `_undo` is given, if the task fails later on; if not
    /// said, what this stage was given itself.
    pub fn undo_data(mut self, value: impl Serialize) -> Self {
        self.undo = Some(serde_json::to_string(&value));
        self
    }

    /// What the next stage is given, after [`Stage::next`], or the task's
    /// result, after [`Stage::complete`]. (After a wait, a stage is given what
    /// the callback brought.)
    pub fn data(mut self, value: impl Serialize) -> Self {
        self.data = Some(serde_json::to_string(&value));
        self
    }

    /// Not before so much time, after [`Stage::next`] and [`Stage::retry`].
    pub fn after(mut self, delay: Duration) -> Self {
        self.after = Some(delay);
        self
    }

    /// Changes the database in the very transaction that moves the task on, so
    /// exactly once. The object was read and locked in it; saving it is the
    /// closure's to do. An `Err` undoes all and fails this attempt. Called
    /// again, it adds to what is there.
    pub fn with<O: Record>(
        mut self,
        effect: impl FnOnce(&mut Tx<'_>, &mut O) -> Result<()> + Send + 'static,
    ) -> Self {
        let first = self.effect.take();
        self.effect = Some(Box::new(move |tx, object| {
            if let Some(first) = first {
                first(tx, object)?;
            }
            let object = object.downcast_mut::<O>().ok_or_else(|| {
                Error::internal(format!("the task's object is no {}", std::any::type_name::<O>()))
            })?;
            effect(tx, object)
        }));
        self
    }
}

/// A wait that has no end yet.
#[must_use = "say how long: .within(…)"]
pub struct Wait(StageName);

impl Wait {
    /// How long it may take; then the twin of the stage waited for runs.
    pub fn within(self, time: Duration) -> Stage {
        Stage::of(Step::Wait(self.0, time))
    }
}

/// Subtasks that are to be started.
#[must_use = "say how long: .within(…)"]
pub struct FanOut {
    stage: StageName,
    spawns: Vec<Spawn>,
}

impl FanOut {
    /// A task that is a part of this one. If its object is busy, it waits
    /// behind; if it is this task's own, it runs while this one waits.
    pub fn subtask<T: TaskType>(mut self, row: T::Object, params: T::Params) -> Self {
        self.spawns
            .push(Box::new(move |tx, parent| tx.task::<T>(&row, params).part_of(parent).start().map(drop)));
        self
    }

    /// How long all may take; then those that have not ended are cancelled, and
    /// after them the twin of the stage runs.
    pub fn within(self, time: Duration) -> Stage {
        Stage { spawns: self.spawns, ..Stage::of(Step::FanOut(self.stage, time)) }
    }
}

/// How the subtasks ended, as the stage after [`Stage::fan_out`] is given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub struct Subtasks {
    /// How many there were.
    pub total: u64,
    /// How many ended as done.
    pub done: u64,
    /// How many failed.
    pub failed: u64,
    /// How many were cancelled.
    pub cancelled: u64,
}

/// What a stage may answer.
pub trait IntoStage {
    /// As a result.
    ///
    /// # Errors
    /// The stage's own.
    fn into_stage(self) -> Result<Stage>;
}

impl IntoStage for Stage {
    fn into_stage(self) -> Result<Stage> {
        Ok(self)
    }
}

impl IntoStage for Result<Stage> {
    fn into_stage(self) -> Result<Stage> {
        self
    }
}

/// What a stage is given beside its context.
pub struct StageInput {
    pub(crate) data: Option<String>,
    pub(crate) why: Reason,
}

impl StageInput {
    /// The data, typed.
    ///
    /// # Errors
    /// When it is of another shape.
    pub fn data<D: DeserializeOwned>(&self, stage: &str) -> Result<D> {
        serde_json::from_str(self.data.as_deref().unwrap_or("null"))
            .map_err(|e| Error::bad_request(format!("the data for {stage}: {e}")))
    }

    /// Why the stage failed, for its twin.
    #[must_use]
    pub fn why(self) -> Reason {
        self.why
    }
}
