//! Brings rows and reality together: what the driver sees goes to the tasks
//! that wait for it, what died is shown as stopped, and what runs without a
//! row that says so is ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use podyard::db::Cost;
use podyard::model::Record;
use podyard::task::{Engine, Task};
use podyard::{Core, Ctx, Kind, Result};
use podyard_driver::{Exit, Observed, Phase};
use tokio::sync::Notify;

use crate::space::{RUNNING, STARTING, STOPPED, STOPPING};
use crate::tasks::Started;
use crate::{Space, Spaces};

/// How often rows and reality are compared whatever the driver says.
const ROUND: Duration = Duration::from_secs(10);

/// The starts that wait in this process, by space. What is lost with the
/// process is found again by the start's stage, which runs again, or in the
/// task's row.
#[derive(Default)]
pub(crate) struct Waiters {
    waiting: Mutex<HashMap<String, Waiter>>,
    look: Notify,
    looks: Mutex<Vec<String>>,
}

/// A start that waits for news of one run of a program.
struct Waiter {
    instance: String,
    token: String,
}

impl Waiters {
    /// A start waits for news of this run. The observer looks at it at once:
    /// the program may have answered, or ended, already.
    pub(crate) fn expect(&self, space: &str, instance: &str, token: String) {
        let waiter = Waiter { instance: instance.to_owned(), token };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(space.to_owned(), waiter);
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).push(space.to_owned());
        self.look.notify_one();
    }

    /// The token of who waits for news of this run; `Err`: somebody waits, but
    /// for another run.
    fn take(&self, space: &str, instance: &str) -> Result<Option<String>, ()> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.get(space) {
            None => Ok(None),
            Some(it) if it.instance == instance => Ok(waiting.remove(space).map(|it| it.token)),
            Some(_) => Err(()),
        }
    }

    /// Nobody waits any more.
    pub(crate) fn forget(&self, space: &str) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(space);
    }

    fn to_look_at(&self) -> Vec<String> {
        std::mem::take(&mut *self.looks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Watches the driver for as long as the process lives.
pub async fn observe(core: Arc<Core>, spaces: Arc<Spaces>) {
    let mut events = spaces.driver.observe();
    let ctx = Ctx::system(&core);
    let mut round = tokio::time::interval(ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let result = tokio::select! {
            event = events.recv() => match event {
                Ok(seen) => take(&ctx, &spaces, seen).await,
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => reconcile(&ctx, &spaces).await,
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            },
            () = spaces.waiters.look.notified() => look(&ctx, &spaces).await,
            _ = round.tick() => reconcile(&ctx, &spaces).await,
        };
        if let Err(error) = result {
            tracing::warn!(%error, "looking after the spaces");
        }
    }
}

async fn look(ctx: &Ctx, spaces: &Spaces) -> Result<()> {
    let wanted = spaces.waiters.to_look_at();
    let all = spaces.driver.list().await.map_err(podyard::Error::internal)?;
    for seen in all.into_iter().filter(|it| wanted.contains(&it.id) && it.phase != Phase::Starting) {
        take(ctx, spaces, seen).await?;
    }
    Ok(())
}

/// One thing that the driver saw.
async fn take(ctx: &Ctx, spaces: &Spaces, seen: Observed) -> Result<()> {
    let news = match &seen.phase {
        Phase::Starting => return Ok(()),
        Phase::Ready { .. } => Started::Ready,
        Phase::Exited(exit) => Started::Exited(exit.clone()),
    };
    if call_back(ctx, spaces, &seen, &news).await? {
        return Ok(());
    }
    if let Phase::Exited(exit) = &seen.phase {
        died(ctx, spaces, &seen.id, Some(exit)).await?;
    }
    Ok(())
}

/// Tells the start that waits, if one does.
async fn call_back(ctx: &Ctx, spaces: &Spaces, seen: &Observed, news: &Started) -> Result<bool> {
    let token = match spaces.waiters.take(&seen.id, &seen.instance) {
        Ok(Some(token)) => token,
        // That a run has ended, while another begins, is old news.
        Err(()) if matches!(news, Started::Exited(_)) => return Ok(true),
        // That one answers is good news for whoever waits.
        Ok(None) | Err(()) => match Engine::waiting(ctx, "space", &seen.id).await? {
            Some(token) => token,
            None => return Ok(false),
        },
    };
    let data = serde_json::to_value(news).map_err(podyard::Error::internal)?;
    match Engine::callback(ctx.core(), &token, data).await {
        Ok(()) => Ok(true),
        // Somebody was faster, or the wait is over: the row tells what to do.
        Err(error) if matches!(error.kind(), Kind::Conflict | Kind::NotFound) => Ok(false),
        Err(error) => {
            spaces.waiters.expect(&seen.id, &seen.instance, token);
            Err(error)
        }
    }
}

/// A program is gone: its row says so, if it still said that it ran and no
/// task is on it.
async fn died(ctx: &Ctx, spaces: &Spaces, id: &str, exit: Option<&Exit>) -> Result<()> {
    let (key, exit) = (id.to_owned(), exit.cloned());
    let done = ctx.write(None, move |tx| {
        let found = Space::select().eq("id", key.clone()).for_update().one(tx)?;
        let Some(mut space) = found.filter(|space| space.status == RUNNING) else { return Ok(()) };
        let before = podyard::before(&space);
        space.ended(exit.as_ref(), tx.now());
        let reason = match &exit {
            Some(Exit { code: Some(code), .. }) => format!("its program ended with exit code {code}"),
            Some(Exit { signal: Some(signal), .. }) => format!("its program was ended by signal {signal}"),
            _ => "its program was gone".to_owned(),
        };
        tx.set_status(&mut space, STOPPED, &reason)?;
        tracing::info!(space = space.id, reason, "a space ended by itself");
        tx.log(&space, "died", Some(&before))
    });
    done.await?;
    // Takes note of the exit, and ends what may be left of it.
    if !active(ctx, id).await? {
        spaces.driver.stop(id, Duration::ZERO).await.map_err(podyard::Error::internal)?;
    }
    Ok(())
}

/// Whether a task is on the space.
async fn active(ctx: &Ctx, id: &str) -> Result<bool> {
    let key = format!("space:{id}");
    let done = ctx.read(Cost::Bounded, move |tx| {
        Ok(Task::select().unscoped().eq("active_key", key.clone()).one(tx)?.is_some())
    });
    Ok(done.await?.value)
}

/// Compares all rows that should run with all that does.
async fn reconcile(ctx: &Ctx, spaces: &Spaces) -> Result<()> {
    // The rows first: a row says `running` only after its program was there.
    let node = spaces.options.node.clone();
    let rows = ctx.read(Cost::Unbounded, move |tx| {
        let busy = [STARTING, RUNNING, STOPPING].map(str::to_owned);
        let rows = Space::select().unscoped().is_in("status", busy).rows(tx)?;
        Ok(rows.into_iter().filter(|row| row.node.as_ref().is_none_or(|it| *it == node)).collect::<Vec<_>>())
    });
    let rows = rows.await?.value;
    let real = spaces.driver.list().await.map_err(podyard::Error::internal)?;
    for row in &rows {
        let seen = real.iter().find(|it| it.id == row.id);
        match (row.status.as_str(), seen.map(|it| &it.phase)) {
            (RUNNING, None) => died(ctx, spaces, &row.id, None).await?,
            (RUNNING, Some(Phase::Exited(exit))) => died(ctx, spaces, &row.id, Some(exit)).await?,
            (STARTING, Some(Phase::Ready { .. } | Phase::Exited(_))) if active(ctx, &row.id).await? => {
                if let Some(seen) = seen {
                    take(ctx, spaces, seen.clone()).await?;
                }
            }
            (STARTING | STOPPING, _) if !active(ctx, &row.id).await? => stuck(ctx, &row.id).await?,
            _ => {}
        }
    }
    for seen in real.iter().filter(|it| !rows.iter().any(|row| row.id == it.id)) {
        orphan(ctx, spaces, seen).await?;
    }
    Ok(())
}

/// A row in the middle of something that nobody does any more (its task was
/// given up): stopped is what it will be once `orphan` has ended the rest.
async fn stuck(ctx: &Ctx, id: &str) -> Result<()> {
    let key = id.to_owned();
    let done = ctx.write(None, move |tx| {
        let found = Space::select().eq("id", key.clone()).for_update().one(tx)?;
        let Some(mut space) = found.filter(|it| it.status == STARTING || it.status == STOPPING) else {
            return Ok(());
        };
        let busy = Task::select().unscoped().eq("active_key", format!("space:{key}")).one(tx)?;
        if busy.is_some() {
            return Ok(());
        }
        let before = podyard::before(&space);
        let reason = format!("it was {} and no task was left to end that", space.status);
        tx.set_status(&mut space, STOPPED, &reason)?;
        tx.log(&space, "stopped", Some(&before))
    });
    done.await?;
    Ok(())
}

/// Something runs (or an exit waits to be noted) that no row claims.
async fn orphan(ctx: &Ctx, spaces: &Spaces, seen: &Observed) -> Result<()> {
    let key = seen.id.clone();
    let done = ctx.read(Cost::Bounded, move |tx| Space::select().eq("id", key.clone()).one(tx));
    let row = done.await?.value;
    let claimed = row.as_ref().is_some_and(|it| [STARTING, RUNNING, STOPPING].contains(&it.status.as_str()));
    if claimed || active(ctx, &seen.id).await? {
        return Ok(());
    }
    if !matches!(seen.phase, Phase::Exited(_)) {
        tracing::warn!(space = seen.id, instance = seen.instance, "ends a program that no row claims");
    }
    spaces.driver.stop(&seen.id, Duration::ZERO).await.map_err(podyard::Error::internal)?;
    Ok(())
}
