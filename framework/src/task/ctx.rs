//! What a stage works with.

use std::any::Any;
use std::sync::Arc;

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
    progress: Option<f64>,
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
            self.progress = Some(percent.clamp(0.0, 100.0));
        }
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

/// What a stage gave, and the progress it told.
pub(crate) struct Ran {
    pub(crate) stage: Result<Stage>,
    pub(crate) progress: Option<f64>,
}

pub(crate) type RunFn = fn(Ctx, Arc<Claimed>) -> BoxFuture<'static, Result<Option<Ran>>>;
pub(crate) type LockFn = fn(&mut Tx<'_>, &str) -> Result<Option<Box<dyn Any>>>;
pub(crate) type ApplyFn = fn(&mut Tx<'_>, Box<dyn Any>, Effect, &str) -> Result<()>;

/// Runs a stage; `None`: its object is gone.
pub(crate) fn run<T: TaskType>(ctx: Ctx, claimed: Arc<Claimed>) -> BoxFuture<'static, Result<Option<Ran>>> {
    Box::pin(async move {
        let id = claimed.obj_id.clone();
        let found = ctx.read(Cost::Bounded, move |tx| {
            T::Object::select().unscoped().with_deleted().eq("id", id.clone()).one(tx)
        });
        let Some(object) = found.await?.value else { return Ok(None) };
        let params = serde_json::from_str(&claimed.params)
            .map_err(|e| Error::bad_request(format!("the parameters of {}: {e}", T::NAME)))?;
        let input = StageInput { data: claimed.data.clone(), why: claimed.reason.clone() };
        let mut t = TaskCtx { ctx, claimed: claimed.clone(), object, params, progress: None };
        let stage = T::run(&claimed.stage, &mut t, input).await;
        Ok(Some(Ran { stage, progress: t.progress }))
    })
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
