//! What a stage works with.

use std::any::Any;
use std::sync::Arc;

use super::plan::Progress;
use super::stage::{Effect, Stage, StageInput};
use super::store::{self, Claimed};
use super::{BoxFuture, TaskType, callback};
use crate::ctx::{Ctx, Tx, snapshot};
use crate::db::Cost;
use crate::model::Record;
use crate::{Error, Nothing, Result};

/// A stage's view of its task and the task's object.
pub struct TaskCtx<O, P = Nothing> {
    ctx: Ctx,
    claimed: Arc<Claimed>,
    object: O,
    params: P,
    progress: Progress,
}

impl<O, P> TaskCtx<O, P> {
    /// The object, as it was when the stage began.
    #[must_use]
    pub fn object(&self) -> &O {
        &self.object
    }

    /// What the task was started with.
    #[must_use]
    pub fn params(&self) -> &P {
        &self.params
    }

    /// The outside: services, reads; acts for who started the task.
    #[must_use]
    pub fn ctx(&self) -> &Ctx {
        &self.ctx
    }

    /// The task's id.
    #[must_use]
    pub fn task_id(&self) -> &str {
        &self.claimed.id
    }

    /// Which attempt at this stage it is, from 1.
    #[must_use]
    pub fn attempt(&self) -> i64 {
        self.claimed.attempt
    }

    /// A key for outside services that forget what they have done already:
    /// task, stage and attempt.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}/{}/{}", self.claimed.id, self.claimed.seq, self.claimed.stage, self.claimed.attempt)
    }

    /// The token with which the outside calls back for the wait that this
    /// stage is going to ask for. It is the same in all attempts at the stage,
    /// and a callback that comes before the stage ends is kept for it.
    #[must_use]
    pub fn callback(&self) -> String {
        callback::token(&self.claimed.id, self.claimed.seq, &self.claimed.secret)
    }

    /// How far the task is, in percent; kept when the stage ends.
    pub fn progress(&mut self, percent: f64) {
        if percent.is_finite() {
            self.progress.percent = Some(percent.clamp(0.0, 100.0));
        }
    }

    /// What it is doing, in words for its owner; kept when the stage ends.
    pub fn progress_text(&mut self, text: impl Into<String>) {
        let text: String = text.into();
        // PostgreSQL keeps no NUL in a text.
        self.progress.text = Some(text.chars().filter(|c| *c != '\0').take(1024).collect());
    }

    /// Whether somebody asked to cancel the task: a long stage looks now and
    /// then and ends early. (Also asked of the database, hence async.)
    pub async fn cancelled(&self) -> bool {
        if self.claimed.cancelling {
            return true;
        }
        let id = self.claimed.id.clone();
        let asked = self.ctx.read(Cost::Bounded, move |tx| store::cancel_requested(tx.conn, &id)).await;
        // Who cannot ask goes on; the commit will see it.
        asked.is_ok_and(|done| done.value)
    }
}

impl<O: Record, P> TaskCtx<O, P> {
    /// All objects that the task works on, its own first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn objects(&self) -> Result<Vec<O>> {
        let (id, own) = (self.claimed.id.clone(), self.claimed.obj_id.clone());
        let members = self.claimed.members;
        let done = self.ctx.read(Cost::Bounded, move |tx| {
            let mut ids = vec![own.clone()];
            if members > 0 {
                ids.extend(store::members(tx.conn, &id)?);
            }
            let rows = O::select().unscoped().with_deleted().is_in("id", ids.clone()).rows(tx)?;
            let place = |row: &O| ids.iter().position(|id| *id == row.base().anon().id);
            let mut rows = rows;
            rows.sort_by_key(place);
            Ok(rows)
        });
        Ok(done.await?.value)
    }
}

/// What a stage gave, and the progress it told.
pub(crate) struct Ran {
    pub(crate) stage: Result<Stage>,
    pub(crate) progress: Progress,
}

/// An object that was read beforehand.
pub(crate) type Fetched = Box<dyn Any + Send>;
pub(crate) type RunFn = fn(Ctx, Arc<Claimed>, Option<Fetched>) -> BoxFuture<'static, Result<Option<Ran>>>;
pub(crate) type FetchFn = fn(&mut Tx<'_>, &[&str]) -> Result<Vec<(String, Fetched)>>;
pub(crate) type LockFn = fn(&mut Tx<'_>, &str) -> Result<Option<Box<dyn Any>>>;
pub(crate) type CheckFn = fn(&serde_json::Value) -> Result<()>;
pub(crate) type StartFn = fn(&mut Tx<'_>, &str, &serde_json::Value, bool) -> Result<Option<String>>;
pub(crate) type ApplyFn = fn(&mut Tx<'_>, Box<dyn Any>, Effect, &str) -> Result<()>;

/// Runs a stage; `None`: its object is gone.
pub(crate) fn run<T: TaskType>(
    ctx: Ctx,
    claimed: Arc<Claimed>,
    fetched: Option<Fetched>,
) -> BoxFuture<'static, Result<Option<Ran>>> {
    Box::pin(async move {
        let object = match fetched.and_then(|it| it.downcast::<T::Object>().ok()) {
            Some(object) => *object,
            None => {
                let id = claimed.obj_id.clone();
                let found = ctx.read(Cost::Bounded, move |tx| {
                    T::Object::select().unscoped().with_deleted().eq("id", id.clone()).one(tx)
                });
                let Some(object) = found.await?.value else { return Ok(None) };
                object
            }
        };
        let params = serde_json::from_str(&claimed.params)
            .map_err(|e| Error::bad_request(format!("the parameters of {}: {e}", T::NAME)))?;
        let input = StageInput { data: claimed.data.clone(), why: claimed.reason.clone() };
        let mut t = TaskCtx { ctx, claimed: claimed.clone(), object, params, progress: Progress::default() };
        let stage = T::run(&claimed.stage, &mut t, input).await;
        Ok(Some(Ran { stage, progress: t.progress }))
    })
}

/// Reads objects for the stages that are about to run.
pub(crate) fn fetch<T: TaskType>(tx: &mut Tx<'_>, ids: &[&str]) -> Result<Vec<(String, Fetched)>> {
    let select = T::Object::select().unscoped().with_deleted();
    let rows = match ids {
        [one] => select.eq("id", (*one).to_owned()).rows(tx)?,
        _ => select.is_in("id", ids.iter().map(|it| (*it).to_owned())).rows(tx)?,
    };
    Ok(rows.into_iter().map(|row| (row.base().anon().id.clone(), Box::new(row) as Fetched)).collect())
}

/// Reads and locks the object for a stage's effect.
pub(crate) fn lock<T: TaskType>(tx: &mut Tx<'_>, id: &str) -> Result<Option<Box<dyn Any>>> {
    let found = T::Object::select().unscoped().with_deleted().eq("id", id.to_owned()).for_update().one(tx)?;
    Ok(found.map(|it| Box::new(it) as Box<dyn Any>))
}

/// Runs a stage's effect on the locked object and logs what it changed.
pub(crate) fn apply<T: TaskType>(
    tx: &mut Tx<'_>,
    object: Box<dyn Any>,
    effect: Effect,
    action: &str,
) -> Result<()> {
    let mut object = object
        .downcast::<T::Object>()
        .map_err(|_| Error::internal("the task's object is of another type"))?;
    let before = snapshot(&*object);
    effect(tx, &mut *object)?;
    if snapshot(&*object) != before {
        tx.log(&*object, action, Some(&before))?;
    }
    Ok(())
}

fn params<T: TaskType>(value: &serde_json::Value) -> Result<T::Params> {
    let value = if value.is_null() { serde_json::json!({}) } else { value.clone() };
    serde_json::from_value(value)
        .map_err(|e| Error::field("params", format!("{} does not take them: {e}", T::NAME)))
}

/// Whether the kind can be started with these parameters.
pub(crate) fn check<T: TaskType>(value: &serde_json::Value) -> Result<()> {
    params::<T>(value).map(drop)
}

/// Starts the kind on an object by its id, behind others if it may be; `None`:
/// the object is gone.
pub(crate) fn start<T: TaskType>(
    tx: &mut Tx<'_>,
    id: &str,
    value: &serde_json::Value,
    behind: bool,
) -> Result<Option<String>> {
    let params = params::<T>(value)?;
    let Some(row) = T::Object::select().unscoped().eq("id", id.to_owned()).one(tx)? else { return Ok(None) };
    let task = tx.task::<T>(&row, params);
    if behind { task.behind() } else { task }.start().map(Some)
}
