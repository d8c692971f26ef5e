//! Brings rows and reality together: what a driver sees goes to the tasks
//! that wait for it, what died is shown as stopped, and what runs without a
//! row that says so is ended.
//!
//! One observer for each driver. Where several processes see the same (a
//! cluster), one of them leads and looks after all; the others only tell the
//! starts that wait in them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use podyard::db::Cost;
use podyard::model::Record;
use podyard::task::{Engine, Task};
use podyard::{Core, Ctx, Kind, Result};
use podyard_driver::{Driver, Exit, Observed, Phase};
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{AbortHandle, JoinSet};

use crate::space::{RUNNING, STARTING, STOP_FAILED, STOPPED, STOPPING};
use crate::tasks::Started;
use crate::{PROCESS, Space, Spaces};

/// How often rows and reality are compared whatever the driver says.
const ROUND: Duration = Duration::from_secs(10);

/// How often it is looked whether this process has begun to lead.
const LEADS: Duration = Duration::from_secs(1);

/// The starts of one driver that wait in this process, by space. What is lost with the
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

    /// Whether a start waits in this process.
    fn waits(&self, space: &str) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).contains_key(space)
    }

    /// Nobody waits any more.
    pub(crate) fn forget(&self, space: &str) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(space);
    }

    fn to_look_at(&self) -> Vec<String> {
        std::mem::take(&mut *self.looks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Watches the drivers for as long as the process lives.
pub async fn observe(core: Arc<Core>, spaces: Arc<Spaces>) {
    let mut all = JoinSet::new();
    for (driver, waiters) in spaces.driven() {
        let observer = Observer {
            ctx: Ctx::system(&core),
            spaces: spaces.clone(),
            driver: driver.clone(),
            waiters: waiters.clone(),
            orphans: HashMap::new(),
            told: HashMap::new(),
            ends: JoinSet::new(),
            ending: HashMap::new(),
        };
        all.spawn(observer.run());
    }
    while all.join_next().await.is_some() {}
}

/// Looks after the spaces of one driver.
struct Observer {
    ctx: Ctx,
    spaces: Arc<Spaces>,
    driver: Arc<dyn Driver>,
    waiters: Arc<Waiters>,
    /// Since when something runs that no row claims.
    orphans: HashMap<String, Instant>,
    /// What was last told of why a start is no further.
    told: HashMap<String, String>,
    /// What ends something, each beside the round: where a node is away, one end
    /// may take half a minute, and the others are not to wait for it.
    ends: JoinSet<()>,
    /// The spaces that they are on: one at most for each.
    ending: HashMap<String, AbortHandle>,
}

impl Observer {
    async fn run(mut self) {
        let mut events = self.driver.observe();
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leads = tokio::time::interval(LEADS);
        leads.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut led = false;
        let waiters = self.waiters.clone();
        loop {
            let result = tokio::select! {
                event = events.recv() => match event {
                    Ok(seen) => self.take(seen).await,
                    Err(RecvError::Lagged(_)) => self.reconcile().await,
                    Err(RecvError::Closed) => return,
                },
                () = waiters.look.notified() => self.look().await,
                _ = round.tick() => self.reconcile().await,
                _ = leads.tick() => {
                    let (before, now) = (led, self.driver.reconciles());
                    led = now;
                    // What nobody looked after since the last leader went.
                    if now && !before { self.reconcile().await } else { Ok(()) }
                }
            };
            if let Err(error) = result {
                tracing::warn!(driver = self.driver.name(), %error, "looking after the spaces");
            }
        }
    }

    async fn list(&self) -> Result<Vec<Observed>> {
        self.driver.list().await.map_err(podyard::Error::internal)
    }

    /// Looks at what starts have just begun to wait for.
    async fn look(&mut self) -> Result<()> {
        let wanted = self.waiters.to_look_at();
        for seen in self.list().await?.into_iter().filter(|it| wanted.contains(&it.id)) {
            let id = seen.id.clone();
            note(&id, self.take(seen).await);
        }
        Ok(())
    }

    /// One thing that the driver saw.
    async fn take(&mut self, seen: Observed) -> Result<()> {
        if !self.driver.reconciles() && !self.waiters.waits(&seen.id) {
            return Ok(());
        }
        let news = match &seen.phase {
            Phase::Starting => return self.wait(&seen).await,
            Phase::Ready { .. } => Started::Ready,
            Phase::Exited(exit) => Started::Exited(exit.clone()),
        };
        let waited = self.told.remove(&seen.id).is_some();
        if self.call_back(&seen, &news).await? {
            return Ok(());
        }
        match &seen.phase {
            Phase::Exited(exit) => self.died(&seen.id, Some(exit)).await,
            Phase::Ready { .. } if waited => self.recovered(&seen.id).await,
            _ => Ok(()),
        }
    }

    /// A space that runs answers again: maybe elsewhere.
    async fn recovered(&self, id: &str) -> Result<()> {
        let (key, node) = (id.to_owned(), self.driver.node(id).await);
        let done = self.ctx.write(None, move |tx| {
            let found = Space::select().eq("id", key.clone()).for_update().one(tx)?;
            let Some(mut space) = found.filter(is_away) else { return Ok(()) };
            let before = podyard::before(&space);
            if node.is_some() {
                space.node = node.clone();
            }
            tx.set_status(&mut space, RUNNING, "")?;
            tx.log(&space, "recovered", Some(&before))
        });
        done.await?;
        Ok(())
    }

    /// Tells the row of a space why it does not answer yet, or no longer.
    async fn wait(&mut self, seen: &Observed) -> Result<()> {
        if seen.detail.is_empty() || self.told.get(&seen.id) == Some(&seen.detail) {
            return Ok(());
        }
        let (key, detail) = (seen.id.clone(), seen.detail.clone());
        let done = self.ctx.write(None, move |tx| {
            let Some(mut space) = Space::select().eq("id", key.clone()).for_update().one(tx)? else {
                return Ok(());
            };
            let reason = match space.status.as_str() {
                STARTING => detail.clone(),
                RUNNING => format!("it cannot be reached now: {detail}"),
                _ => return Ok(()),
            };
            if space.status_reason == reason {
                return Ok(());
            }
            let (before, status) = (podyard::before(&space), space.status.clone());
            tx.set_status(&mut space, &status, &reason)?;
            tx.log(&space, "waits", Some(&before))
        });
        done.await?;
        self.told.insert(seen.id.clone(), seen.detail.clone());
        Ok(())
    }

    /// Tells the start that waits, if one does.
    async fn call_back(&self, seen: &Observed, news: &Started) -> Result<bool> {
        let token = match self.waiters.take(&seen.id, &seen.instance) {
            Ok(Some(token)) => token,
            // That a run has ended, while another begins, is old news.
            Err(()) if matches!(news, Started::Exited(_)) => return Ok(true),
            // That one answers is good news for whoever waits, in whatever process.
            Ok(None) | Err(()) => match Engine::waiting(&self.ctx, "space", &seen.id).await? {
                Some(token) => token,
                None => return Ok(false),
            },
        };
        let data = serde_json::to_value(news).map_err(podyard::Error::internal)?;
        match Engine::callback(self.ctx.core(), &token, data).await {
            Ok(()) => Ok(true),
            // Somebody was faster, or the wait is over: the row tells what to do.
            Err(error) if matches!(error.kind(), Kind::Conflict | Kind::NotFound) => Ok(false),
            Err(error) => {
                self.waiters.expect(&seen.id, &seen.instance, token);
                Err(error)
            }
        }
    }

    /// A program is gone: its row says so, if it said that it ran or could not be
    /// stopped.
    async fn died(&mut self, id: &str, exit: Option<&Exit>) -> Result<()> {
        // What was seen may be old by now, or be of the run before this one.
        let exit = match self.driver.look(id).await.map_err(podyard::Error::internal)?.map(|it| it.phase) {
            Some(Phase::Starting | Phase::Ready { .. }) => return Ok(()),
            Some(Phase::Exited(exit)) => Some(exit),
            None => exit.cloned(),
        };
        let key = id.to_owned();
        let done = self.ctx.write(None, move |tx| {
            let found = Space::select().eq("id", key.clone()).for_update().one(tx)?;
            let ended = |it: &Space| it.status == RUNNING || it.status == STOP_FAILED;
            let Some(mut space) = found.filter(ended) else { return Ok(()) };
            let before = podyard::before(&space);
            space.ended(exit.as_ref(), tx.now());
            if space.status == STOP_FAILED {
                // It was to end; now it has.
                tx.set_status(&mut space, STOPPED, "")?;
                return tx.log(&space, "stopped", Some(&before));
            }
            let reason = match &exit {
                Some(exit) if !exit.reason.is_empty() => exit.reason.clone(),
                Some(Exit { code: Some(code), .. }) => format!("its program ended with exit code {code}"),
                Some(Exit { signal: Some(signal), .. }) => {
                    format!("its program was ended by signal {signal}")
                }
                _ => "its program was gone".to_owned(),
            };
            tx.set_status(&mut space, STOPPED, &reason)?;
            tracing::info!(space = space.id, reason, "a space ended by itself");
            tx.log(&space, "died", Some(&before))
        });
        done.await?;
        // Takes note of the exit, and ends what may be left of it.
        self.end(id);
        Ok(())
    }

    /// Whether what is left of a space is being ended.
    fn is_ending(&self, id: &str) -> bool {
        self.ending.get(id).is_some_and(|it| !it.is_finished())
    }

    /// Ends what is left of a space that no task is on, beside the round. What
    /// fails is found again in the next one.
    fn end(&mut self, id: &str) {
        while self.ends.try_join_next().is_some() {}
        self.ending.retain(|_, it| !it.is_finished());
        if self.ending.contains_key(id) {
            return;
        }
        let (ctx, driver, space) = (self.ctx.clone(), self.driver.clone(), id.to_owned());
        let grace = self.spaces.options.stop_grace;
        let end = async move {
            let ended = async {
                if !active(&ctx, &space).await? {
                    driver.stop(&space, grace).await.map_err(podyard::Error::internal)?;
                }
                Ok::<_, podyard::Error>(())
            };
            note(&space, ended.await);
        };
        self.ending.insert(id.to_owned(), self.ends.spawn(end));
    }

    /// Compares all rows that should run with all that does.
    async fn reconcile(&mut self) -> Result<()> {
        if !self.driver.reconciles() {
            self.orphans.clear();
            return Ok(());
        }
        // The rows first: a row says `running` only after its program was there.
        let (driver, node) = (self.driver.name(), self.spaces.options.node.clone());
        let rows = self.ctx.read(Cost::Unbounded, move |tx| {
            let busy = [STARTING, RUNNING, STOPPING, STOP_FAILED].map(str::to_owned);
            let select = Space::select().unscoped().is_in("status", busy).eq("driver", driver.to_owned());
            let rows = select.rows(tx)?;
            // Programs are seen on their own machine only, containers from everywhere.
            let mine = |row: &Space| driver != PROCESS || row.node.as_ref().is_none_or(|it| *it == node);
            Ok(rows.into_iter().filter(mine).collect::<Vec<_>>())
        });
        let rows = rows.await?.value;
        let real: HashMap<_, _> = self.list().await?.into_iter().map(|it| (it.id.clone(), it)).collect();
        self.told.retain(|id, _| real.contains_key(id));
        for row in &rows {
            note(&row.id, self.compare(row, real.get(&row.id)).await);
        }
        // What could not be stopped is not to run.
        let claims = rows.iter().filter(|it| it.status != STOP_FAILED);
        let claimed: HashSet<_> = claims.map(|it| it.id.as_str()).collect();
        self.orphans.retain(|id, _| real.contains_key(id) && !claimed.contains(id.as_str()));
        for seen in real.values().filter(|it| !claimed.contains(it.id.as_str())) {
            note(&seen.id, self.orphan(seen).await);
        }
        Ok(())
    }

    /// Compares one row that should run with what was seen of it.
    async fn compare(&mut self, row: &Space, seen: Option<&Observed>) -> Result<()> {
        match (row.status.as_str(), seen.map(|it| &it.phase)) {
            (RUNNING | STOP_FAILED, None) => self.died(&row.id, None).await,
            (RUNNING | STOP_FAILED, Some(Phase::Exited(exit))) => self.died(&row.id, Some(exit)).await,
            // Another process may have told of it, which is no more.
            (RUNNING, Some(Phase::Ready { .. })) if is_away(row) => self.recovered(&row.id).await,
            (RUNNING, Some(Phase::Starting)) => match seen {
                Some(seen) => self.wait(seen).await,
                None => Ok(()),
            },
            (STARTING, Some(_)) if active(&self.ctx, &row.id).await? => match seen {
                Some(seen) => self.take(seen.clone()).await,
                None => Ok(()),
            },
            (STARTING | STOPPING, _) if !active(&self.ctx, &row.id).await? => stuck(&self.ctx, &row.id).await,
            _ => Ok(()),
        }
    }

    /// Something runs (or an exit waits to be noted) that no row claims.
    async fn orphan(&mut self, seen: &Observed) -> Result<()> {
        if self.is_ending(&seen.id) {
            return Ok(());
        }
        let key = seen.id.clone();
        let found = self.ctx.read(Cost::Bounded, move |tx| Space::select().eq("id", key.clone()).one(tx));
        let row = found.await?.value;
        let claimed =
            row.as_ref().is_some_and(|it| [STARTING, RUNNING, STOPPING].contains(&it.status.as_str()));
        if claimed || active(&self.ctx, &seen.id).await? {
            self.orphans.remove(&seen.id);
            return Ok(());
        }
        // In a cluster somebody may just be moving a database; they have this long.
        let since = *self.orphans.entry(seen.id.clone()).or_insert_with(Instant::now);
        if since.elapsed() < self.driver.orphan_grace() {
            return Ok(());
        }
        if !matches!(seen.phase, Phase::Exited(_)) {
            tracing::warn!(space = seen.id, instance = seen.instance, "ends a program that is not to run");
        }
        // It counts as one until it is seen no more: what fails is tried in the next round.
        self.end(&seen.id);
        Ok(())
    }
}

/// What stands before the reason why a space that runs does not answer.
const AWAY: &str = "it cannot be reached now: ";

fn is_away(space: &Space) -> bool {
    space.status == RUNNING && space.status_reason.starts_with(AWAY)
}

/// What goes wrong with one space is told, and the others get their turn.
fn note(space: &str, done: Result<()>) {
    if let Err(error) = done {
        tracing::warn!(space, %error, "looking after a space");
    }
}

/// Whether a task is on the space.
async fn active(ctx: &Ctx, id: &str) -> Result<bool> {
    let key = format!("space:{id}");
    let done = ctx.read(Cost::Bounded, move |tx| {
        Ok(Task::select().unscoped().eq("active_key", key.clone()).one(tx)?.is_some())
    });
    Ok(done.await?.value)
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
