//! The tasks of a space. Each stage may run again after a crash: the driver
//! finds what it started and stopping what has stopped succeeds.

use std::time::Duration;

use podyard::task::{Reason, ReasonKind, Stage, TaskCtx, Wait};
use podyard::{Error, Kind, Nothing, Result, Tx, stages};
use podyard_driver::{Exit, Observed, Phase};
use serde::{Deserialize, Serialize};

use crate::launch::{driver_error, launch};
use crate::space::{RUNNING, START_FAILED, STOP_FAILED, STOPPED};
use crate::{PROCESS, Space, Spaces};

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
    let (launch, limit) = launch(t.ctx(), t.object()).await?;
    let start = tokio::time::timeout(limit, spaces.driver(&t.object().driver)?.start(&launch)).await;
    let late = |_| {
        let text = "it could not be started in time: what is to run it does not answer";
        Error::conflict(text).class("SpaceStartError")
    };
    let instance = start.map_err(late)?.map_err(driver_error)?;
    // Only news of this run counts: that the one before it has ended may be
    // told later than this one begins.
    spaces.waiters(&t.object().driver)?.expect(&t.object().id, &instance.id, t.callback());
    Ok(limit)
}

/// Ends whatever runs of a space.
async fn end<P>(t: &TaskCtx<Space, P>, driver: &str, grace: Duration) -> Result<Option<Exit>> {
    let spaces = t.ctx().service::<Spaces>()?;
    let done = spaces.driver(driver)?.stop(&t.object().id, grace).await.map_err(driver_error);
    done.map_err(|error| if error.kind() == Kind::Conflict { error.class("SpaceStopError") } else { error })
}

/// What its driver sees of the space.
async fn seen(t: &TaskCtx<Space, Nothing>) -> Result<Option<Observed>> {
    let spaces = t.ctx().service::<Spaces>()?;
    spaces.driver(&t.object().driver)?.look(&t.object().id).await.map_err(driver_error)
}

/// The space runs: its row will say so.
async fn runs(t: &TaskCtx<Space, Nothing>) -> Result<Stage> {
    let spaces = t.ctx().service::<Spaces>()?;
    let node = spaces.driver(&t.object().driver)?.node(&t.object().id).await;
    Ok(Stage::complete().with(move |tx: &mut Tx<'_>, space: &mut Space| running(tx, space, node)))
}

fn describe(exit: &Exit) -> String {
    let how = match (exit.code, exit.signal) {
        _ if !exit.reason.is_empty() => exit.reason.clone(),
        (Some(code), _) => format!("the program ended with exit code {code}"),
        (None, Some(signal)) => format!("the program was ended by signal {signal}"),
        (None, None) => "the program was killed".to_owned(),
    };
    let lines = exit.last_lines.join("\n");
    if lines.is_empty() { how } else { format!("{how}:\n{lines}") }
}

fn running(tx: &mut Tx<'_>, space: &mut Space, node: Option<String>) -> Result<()> {
    let spaces = tx.ctx.service::<Spaces>()?;
    space.started_at = Some(tx.now());
    space.stopped_at = None;
    space.exit_code = None;
    space.exit_signal = None;
    space.last_lines.clear();
    space.node = node.or_else(|| (space.driver == PROCESS).then(|| spaces.options.node.clone()));
    tx.set_status(space, RUNNING, "")
}

/// How long looking at a start that did not come off may take, and ending it.
const ENDING: Duration = Duration::from_secs(15);
/// How often either is tried before the row says that it failed.
const TRIES: i64 = 3;

/// A start that did not come off: nothing of it stays, and the row says why.
async fn give_up(t: &mut TaskCtx<Space, Nothing>, why: Reason) -> Stage {
    if let Ok(spaces) = t.ctx().service::<Spaces>()
        && let Ok(waiters) = spaces.waiters(&t.object().driver)
    {
        waiters.forget(&t.object().id);
    }
    let mut detail = None;
    if why.is_timeout() {
        // Asked before what would tell it is gone.
        match tokio::time::timeout(ENDING, seen(t)).await.unwrap_or(Ok(None)) {
            // Nobody was there to be told: Podyard was down.
            Ok(Some(Observed { phase: Phase::Ready { .. }, .. })) => {
                return runs(t).await.unwrap_or_else(|error| Stage::retry(error.message().to_owned()));
            }
            Ok(seen) => detail = seen.map(|it| it.detail).filter(|it| !it.is_empty()),
            Err(error) if t.attempt() < TRIES => return Stage::retry(error.message().to_owned()),
            Err(_) => {}
        }
    }
    let exit = match tokio::time::timeout(ENDING, end(t, &t.object().driver, Duration::ZERO)).await {
        Ok(Ok(exit)) => exit,
        Ok(Err(error)) if t.attempt() < TRIES => return Stage::retry(error.message().to_owned()),
        // The observer ends what is left of it, once that can be reached.
        _ => None,
    };
    let cancelled = why.kind == ReasonKind::Cancelled;
    let why = match (why.is_timeout(), detail) {
        (true, Some(detail)) => Reason::new(why.kind, &format!("it was not ready in time: {detail}")),
        (true, None) => Reason::new(why.kind, "it was not ready in time"),
        (false, _) => why,
    };
    let text = why.to_string();
    Stage::fail(why).with(move |tx: &mut Tx<'_>, space: &mut Space| {
        space.ended(exit.as_ref(), tx.now());
        tx.set_status(space, if cancelled { STOPPED } else { START_FAILED }, &text)
    })
}

/// Goes on with what the observer told.
async fn started(t: &mut TaskCtx<Space, Nothing>, data: &Started, again: Wait) -> Result<Stage> {
    let exit = match data {
        Started::Ready => return runs(t).await,
        Started::Exited(exit) => exit,
    };
    // Another process's observer knows no instances: if a program lives, the
    // news was of the run before it.
    if seen(t).await?.is_some_and(|it| !matches!(it.phase, Phase::Exited(_))) {
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
        let exit = end(t, &t.object().driver, grace).await?;
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
        end(t, &t.object().driver, grace).await?;
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

/// What a change of size is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResizeParams {
    /// The size that it had.
    pub from: String,
}

/// Has a space's storage grow to what its size says.
pub struct SpaceResize;

#[stages(object = Space, params = ResizeParams)]
impl SpaceResize {
    #[stage(timeout_s = 60, attempts = 5)]
    async fn on_init(t: &mut TaskCtx<Space, ResizeParams>) -> Result<Stage> {
        let spaces = t.ctx().service::<Spaces>()?;
        let (launch, _) = launch(t.ctx(), t.object()).await?;
        let done = spaces.driver(&t.object().driver)?.resize(&launch).await.map_err(driver_error)?;
        if !done {
            t.progress_text("its storage grows at the next start");
        }
        Ok(Stage::complete())
    }

    async fn on_init_failed(t: &mut TaskCtx<Space, ResizeParams>, why: Reason) -> Stage {
        let from = t.params().from.clone();
        let to = t.object().spec_id.clone();
        let text = format!("its storage could not grow: {why}");
        Stage::fail(why).with(move |tx: &mut Tx<'_>, space: &mut Space| {
            // As it was: the row must not tell of room that is not there.
            if space.spec_id == to {
                space.spec_id = from;
            }
            let status = space.status.clone();
            tx.set_status(space, &status, &text)
        })
    }
}

/// What a delete is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeleteParams {
    /// The driver that has the files. (Tasks from before there were several say none.)
    #[serde(default = "process")]
    pub driver: String,
}

fn process() -> String {
    PROCESS.to_owned()
}

/// How long to wait before files that could not be removed in several attempts are tried again.
const DELETE_AGAIN: Duration = Duration::from_secs(60);

/// Removes the files of a space whose row is deleted.
pub struct SpaceDelete;

#[stages(object = Space, params = DeleteParams)]
impl SpaceDelete {
    async fn on_init(t: &mut TaskCtx<Space, DeleteParams>) -> Result<Stage> {
        end(t, &t.params().driver, Duration::ZERO).await?;
        let spaces = t.ctx().service::<Spaces>()?;
        let driver = spaces.driver(&t.params().driver)?;
        driver.delete(&t.object().id).await.map_err(|e| Error::unavailable(e.to_string(), 1))?;
        Ok(Stage::complete())
    }

    async fn on_init_failed(t: &mut TaskCtx<Space, DeleteParams>, why: Reason) -> Stage {
        let here = t.ctx().service::<Spaces>().is_ok_and(|it| it.driver(&t.params().driver).is_ok());
        if why.is_cancelled() || !here {
            return Stage::fail(why);
        }
        // Nothing else knows of the files any more, so they are not given up for a cluster that is away.
        Stage::next(Self::ON_INIT).after(DELETE_AGAIN)
    }
}
