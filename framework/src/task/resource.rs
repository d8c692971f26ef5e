//! Tasks as a resource: whoever owns the object sees how far its tasks are
//! and may cancel them.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Deserialize;

use super::stage::Reason;
use super::start::in_progress;
use super::store::{self, Status};
use super::{entry, is_winding_up};
use crate::auth::UserCred;
use crate::ctx::Tx;
use crate::model::{AnonBase, Extra, Manager, Model, Record};
use crate::{Error, Resource, Result, actions};

/// Durable work on an object, stage by stage.
#[derive(Debug, Clone, Resource)]
#[resource(
    keyword = "task",
    plural = "tasks",
    read = "user",
    write = "never",
    scope = "user",
    unlogged,
    extra(
        history = "Its life in order: when it was created and by whom, each attempt at each stage, callbacks, \
                   and who cancelled or retried it.",
        result = "What it gave, once it is done."
    )
)]
pub struct Task {
    /// Id, version and times.
    pub base: AnonBase,
    /// The kind of task, like `space-start`.
    #[field(list = "user")]
    pub task_name: String,
    /// Keyword of the type of the object that it works on.
    #[field(list = "user")]
    pub obj_type: String,
    /// The object that it works on.
    #[field(list = "user", index)]
    pub obj_id: String,
    /// The object's name when the task began.
    #[field(list = "user")]
    pub obj_name: String,
    /// The domain of the object, or of who started it.
    #[field(list = "user")]
    pub domain_id: String,
    /// The project of the object, or of who started it.
    #[field(list = "user")]
    pub project_id: String,
    /// The object's owner, or who started it.
    #[field(list = "user", index)]
    pub user_id: String,
    /// For whom it acts.
    #[field()]
    pub user_cred: String,
    /// What it was started with.
    #[field(get = "admin")]
    pub params: serde_json::Value,
    /// Smaller goes first.
    #[field(list = "admin")]
    pub priority: i64,
    /// Where it stands in its life.
    #[field(
        list = "user",
        choices("blocked", "queued", "running", "waiting", "done", "failed", "cancelled", "member")
    )]
    pub status: String,
    /// The stage that runs, or runs next.
    #[field(list = "user")]
    pub stage: String,
    /// How far it is, in percent.
    #[field(list = "user")]
    pub progress: f64,
    /// What it is doing, in words.
    #[field(list = "user")]
    pub progress_text: String,
    /// Which attempt at the stage it is.
    #[field(list = "user")]
    pub attempt: i64,
    /// Raised by each claim; a worker with an older one writes nothing.
    #[field(list = "admin")]
    pub epoch: i64,
    /// The stage's place in the task's life.
    #[field(list = "admin")]
    pub seq: i64,
    /// What its callback tokens are made with.
    #[field()]
    pub secret: String,
    /// The stage that a retry by hand begins with.
    #[field()]
    pub retry_stage: String,
    /// What the stage is given.
    #[field()]
    pub data: Option<String>,
    /// Of what sort the failure is: failed, timeout, cancelled, panic, lost.
    #[field(list = "user")]
    pub reason_kind: String,
    /// Why it failed, if it did.
    #[field(list = "user", multiline)]
    pub reason: String,
    /// The worker that runs it.
    #[field(list = "admin")]
    pub worker_id: Option<String>,
    /// When it was or will be due; of a wait, its end.
    #[field(list = "user")]
    pub run_at: DateTime<Utc>,
    /// When the attempt began.
    #[field(list = "user")]
    pub started_at: Option<DateTime<Utc>>,
    /// When the task ended.
    #[field(list = "user")]
    pub ended_at: Option<DateTime<Utc>>,
    /// The task that it is a part of.
    #[field(list = "user")]
    pub parent_task_id: Option<String>,
    /// Whether somebody asked to cancel it.
    #[field(list = "user")]
    pub cancel_requested: bool,
    /// Whether it is being cancelled.
    #[field(list = "user")]
    pub cancelling: bool,
    /// Held by the object's one active task.
    #[field()]
    pub active_key: Option<String>,
    /// What the tasks have in common that run one after the other: the object.
    #[field()]
    pub lane: String,
    /// Its place in the lane.
    #[field()]
    pub lane_seq: i64,
    /// The last place that was given away behind it.
    #[field()]
    pub lane_tail: i64,
    /// Tasks that wait behind it for the object.
    #[field(list = "user")]
    pub followers: i64,
    /// The lane that it waits in.
    #[field()]
    pub blocked_on: Option<String>,
    /// Its place among what is due: priority, project, name.
    #[field()]
    pub queue: String,
    /// At most one active task has it.
    #[field(list = "admin")]
    pub unique_key: Option<String>,
    /// The place in its parent's life that it is a part of; -1: it holds an object for it.
    #[field()]
    pub parent_seq: i64,
    /// Subtasks that it waits for.
    #[field(list = "user")]
    pub open_children: i64,
    /// Further objects that it works on.
    #[field(list = "user")]
    pub members: i64,
    /// What is undone if it fails, the last first.
    #[field()]
    pub undo: Option<String>,
    /// The status that it ends with, while what it did is undone.
    #[field(list = "user")]
    pub ending: String,
    /// When it must have ended.
    #[field(list = "user")]
    pub deadline: Option<DateTime<Utc>>,
}

/// A callback over HTTP.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CallbackInput {
    /// The token that the stage gave out.
    pub token: String,
    /// What the next stage is given.
    #[serde(default)]
    pub data: serde_json::Value,
}

impl Manager for Task {}

impl Model for Task {
    fn get_extra_details(&self, tx: &mut Tx<'_>, extra: &mut Extra) -> Result<()> {
        let by = serde_json::from_str::<UserCred>(&self.user_cred).map(|it| it.user_name).unwrap_or_default();
        let history = store::history(tx.conn, &self.base.id, self.created_at, by)?;
        extra.set("history", serde_json::to_value(history).map_err(Error::internal)?);
        let result = self.data.as_deref().filter(|_| self.status() == Status::Done);
        if let Some(result) = result {
            extra.set("result", serde_json::from_str::<serde_json::Value>(result).unwrap_or_default());
        }
        Ok(())
    }
}

impl Task {
    /// Takes over what a statement of the store changed.
    fn reread(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        if let Some(row) = Self::select().unscoped().eq("id", self.base.id.clone()).one(tx)? {
            *self = row;
        }
        Ok(())
    }

    fn status(&self) -> Status {
        Status::parse(&self.status)
    }
}

#[actions]
impl Task {
    /// Cancels it: the `_failed` twin of its stage undoes what was done, and
    /// the task ends as cancelled. A stage that runs now is let end first.
    #[action(access = "user", when("blocked", "queued", "running", "waiting"))]
    fn perform_cancel(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        let status = self.status();
        if status.is_ended() {
            return Err(
                Error::conflict(format!("the task is {} already", self.status)).class("TaskEndedError")
            );
        }
        if status == Status::Member {
            let text =
                format!("it holds an object for the task {}", self.parent_task_id.as_deref().unwrap_or(""));
            return Err(Error::conflict(text).class("TaskMemberError"));
        }
        let now = tx.ctx.core().tasks.clock().now(tx.conn)?;
        let why = Reason::cancelled(&format!("cancelled by {}", tx.cred().user_name));
        if self.cancelling || is_winding_up(&self.stage) {
            return Err(Error::conflict("the task is being wound up already").class("TaskEndingError"));
        }
        if status == Status::Running {
            store::ask_to_cancel(tx.conn, &self.base.id, &why, now)?;
        } else if status == Status::Waiting && self.open_children > 0 {
            store::give_up(tx.conn, &self.base.id, &why, true, now)?;
            tx.wake_workers();
        } else {
            store::cancel(tx.conn, &self.base.id, &why, now)?;
            tx.wake_workers();
        }
        store::note(tx.conn, &self.base.id, &store::Note::Cancel, &tx.ctx.cred().user_name, now)?;
        self.reread(tx)
    }

    /// Tells the task what it waits for.
    #[action(access = "user", when("queued", "running", "waiting"))]
    fn perform_callback(&mut self, tx: &mut Tx<'_>, input: CallbackInput) -> Result<()> {
        if !input.token.starts_with(&format!("{}.", self.base.id)) {
            return Err(Error::new(crate::Kind::NotFound, "there is no such callback token"));
        }
        tx.callback(&input.token, &input.data)?;
        self.reread(tx)
    }

    /// Runs a failed task again, from the stage that failed.
    #[action(access = "admin", when("failed"))]
    fn perform_retry(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        if self.status() != Status::Failed {
            let text = format!("the task is {}; only a failed one can be retried", self.status);
            return Err(Error::conflict(text).class("TaskNotFailedError"));
        }
        if entry(&self.task_name).is_none_or(|it| it.stage(&self.retry_stage).is_none()) {
            let text = format!("there is no stage {} of {} any more", self.retry_stage, self.task_name);
            return Err(Error::conflict(text));
        }
        // What it was about may long be settled: a start that failed last week
        // must not be taken up under the one that succeeded since.
        let newer = Self::select().unscoped().eq("obj_id", self.obj_id.clone()).order("created_at", true);
        let settled = |it: Self| {
            it.base.id != self.base.id && it.created_at >= self.created_at && it.active_key.is_none()
        };
        if newer.one(tx)?.is_some_and(settled) {
            let text = format!("another task has worked on {} {} since", self.obj_type, self.obj_id);
            return Err(Error::conflict(text).class("TaskOutdatedError"));
        }
        let now = tx.ctx.core().tasks.clock().now(tx.conn)?;
        store::retry(tx.conn, &self.base.id, &self.lane, now)
            .map_err(|e| in_progress(e, &self.obj_type, &self.obj_id))?;
        store::note(tx.conn, &self.base.id, &store::Note::Retry, &tx.ctx.cred().user_name, now)?;
        tx.wake_workers();
        self.reread(tx)
    }
}
