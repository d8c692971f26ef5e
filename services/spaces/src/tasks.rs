//! The tasks of a space. Each stage may run again after a crash: the driver
//! finds what it started and stopping what has stopped succeeds.

use std::time::Duration;

use podyard::task::{Reason, ReasonKind, Stage, TaskCtx, Wait};
use podyard::{Error, Nothing, Result, Tx, stages};
use podyard_driver::{Exit, Phase};
use serde::{Deserialize, Serialize};

use crate::launch::{driver_error, launch};
use crate::space::{RUNNING, START_FAILED, STOP_FAILED, STOPPED};
use crate::{Space, Spaces};

/// What the observer tells a start that waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Started {
    /// The program answers.
    Ready,
    /// It ended before it did.
    Exited(Exit),
}

/// Has the driver start the program; the observer calls back with what comes of it.
async fn begin(t: &mut TaskCtx<Space, Nothing>) -> Result<Duration> {
    let spaces = t.ctx().service::<Spaces>()?;
    let launch = launch(t.ctx(), t.object()).await?;
    let instance = spaces.driver.start(&launch).await.map_err(driver_error)?;
    // Only news of this run counts: that the one before it has ended may be
    // told later than this one begins.
    spaces.waiters.expect(&t.object().id, &instance.id, t.callback());
    Ok(spaces.options.start_timeout)
}

/// Ends whatever runs of a space.
async fn end(t: &TaskCtx<Space, Nothing>, grace: Duration) -> Result<Option<Exit>> {
    let spaces = t.ctx().service::<Spaces>()?;
    spaces.driver.stop(&t.object().id, grace).await.map_err(driver_error)
}

fn describe(exit: &Exit) -> String {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => format!("the program ended with exit code {code}"),
        (None, Some(signal)) => format!("the program was ended by signal {signal}"),
        (None, None) => "the program was killed".to_owned(),
    };
    let lines = exit.last_lines.join("\n");
    if lines.is_empty() { how } else { format!("{how}:\n{lines}") }
}

fn running(tx: &mut Tx<'_>, space: &mut Space) -> Result<()> {
    let spaces = tx.ctx.service::<Spaces>()?;
    space.started_at = Some(tx.now());
    space.stopped_at = None;
    space.exit_code = None;
    space.exit_signal = None;
    space.last_lines.clear();
    space.node = Some(spaces.options.node.clone());
    tx.set_status(space, RUNNING, "")
}

/// A start that did not come off: nothing of it stays, and the row says why.
async fn give_up(t: &mut TaskCtx<Space, Nothing>, why: Reason) -> Stage {
    if let Ok(spaces) = t.ctx().service::<Spaces>() {
        spaces.waiters.forget(&t.object().id);
    }
    let exit = match end(t, Duration::ZERO).await {
        Ok(exit) => exit,
        Err(error) => return Stage::retry(error.message().to_owned()),
    };
    let cancelled = why.kind == ReasonKind::Cancelled;
    let text = why.to_string();
    Stage::fail(why).with(move |tx: &mut Tx<'_>, space: &mut Space| {
        space.ended(exit.as_ref(), tx.now());
        tx.set_status(space, if cancelled { STOPPED } else { START_FAILED }, &text)
    })
}

/// Goes on with what the observer told.
async fn started(t: &mut TaskCtx<Space, Nothing>, data: &Started, again: Wait) -> Result<Stage> {
    let exit = match data {
        Started::Ready => return Ok(Stage::complete().with(running)),
        Started::Exited(exit) => exit,
    };
    // Another process's observer knows no instances: if a program lives, the
    // news was of the run before it.
    let spaces = t.ctx().service::<Spaces>()?;
    let all = spaces.driver.list().await.map_err(driver_error)?;
    let id = &t.object().id;
    if all.iter().any(|it| it.id == *id && !matches!(it.phase, Phase::Exited(_))) {
        let within = begin(t).await?;
        return Ok(again.within(within));
    }
    Ok(Stage::fail(describe(exit)))
}

/// Starts a space and waits until its program answers.
pub struct SpaceStart;

#[stages(object = Space, params = Nothing)]
impl SpaceStart {
    async fn on_init(t: &mut TaskCtx<Space, Nothing>) -> Result<Stage> {
        let within = begin(t).await?;
        Ok(Stage::wait(Self::ON_STARTED).within(within))
    }

    async fn on_init_failed(t: &mut TaskCtx<Space, Nothing>, why: Reason) -> Stage {
        give_up(t, why).await
    }

    async fn on_started(t: &mut TaskCtx<Space, Nothing>, data: Started) -> Result<Stage> {
        started(t, &data, Stage::wait(Self::ON_STARTED)).await
    }

    async fn on_started_failed(t: &mut TaskCtx<Space, Nothing>, why: Reason) -> Stage {
        give_up(t, why).await
    }
}

/// Stops a space.
pub struct SpaceStop;

#[stages(object = Space, params = Nothing)]
impl SpaceStop {
    async fn on_init(t: &mut TaskCtx<Space, Nothing>) -> Result<Stage> {
        let grace = t.ctx().service::<Spaces>()?.options.stop_grace;
        let exit = end(t, grace).await?;
        Ok(Stage::complete().with(move |tx: &mut Tx<'_>, space: &mut Space| {
            space.ended(exit.as_ref(), tx.now());
            tx.set_status(space, STOPPED, "")
        }))
    }

    async fn on_init_failed(_: &mut TaskCtx<Space, Nothing>, why: Reason) -> Stage {
        let text = why.to_string();
        Stage::fail(why)
            .with(move |tx: &mut Tx<'_>, space: &mut Space| tx.set_status(space, STOP_FAILED, &text))
    }
}

/// Stops a space and starts it again.
pub struct SpaceRestart;

#[stages(object = Space, params = Nothing)]
impl SpaceRestart {
    async fn on_init(t: &mut TaskCtx<Space, Nothing>) -> Result<Stage> {
        let grace = t.ctx().service::<Spaces>()?.options.stop_grace;
        end(t, grace).await?;
        Ok(Stage::next(Self::ON_STOPPED))
    }

    async fn on_init_failed(_: &mut TaskCtx<Space, Nothing>, why: Reason) -> Stage {
        let text = why.to_string();
        Stage::fail(why)
            .with(move |tx: &mut Tx<'_>, space: &mut Space| tx.set_status(space, STOP_FAILED, &text))
    }

    async fn on_stopped(t: &mut TaskCtx<Space, Nothing>) -> Result<Stage> {
        let within = begin(t).await?;
        Ok(Stage::wait(Self::ON_STARTED).within(within))
    }

    async fn on_stopped_failed(t: &mut TaskCtx<Space, Nothing>, why: Reason) -> Stage {
        give_up(t, why).await
    }

    async fn on_started(t: &mut TaskCtx<Space, Nothing>, data: Started) -> Result<Stage> {
        started(t, &data, Stage::wait(Self::ON_STARTED)).await
    }

    async fn on_started_failed(t: &mut TaskCtx<Space, Nothing>, why: Reason) -> Stage {
        give_up(t, why).await
    }
}

/// Removes the files of a space whose row is deleted.
pub struct SpaceDelete;

#[stages(object = Space, params = Nothing)]
impl SpaceDelete {
    async fn on_init(t: &mut TaskCtx<Space, Nothing>) -> Result<Stage> {
        end(t, Duration::ZERO).await?;
        let spaces = t.ctx().service::<Spaces>()?;
        spaces.driver.delete(&t.object().id).await.map_err(|e| Error::unavailable(e.to_string(), 1))?;
        Ok(Stage::complete())
    }

    async fn on_init_failed(_: &mut TaskCtx<Space, Nothing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}
