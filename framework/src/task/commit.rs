//! How results of stages reach the database: as many in one transaction as
//! wait, each answered when it is on disk. A result with an effect has a
//! transaction of its own, which holds its object; on SQLite all of them share
//! commits anyway.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::ctx::Fetched;
use super::engine::Waker;
use super::stage::{Effect, Spawn};
use super::store::{self, Advanced, Claimed, Move, Status};
use super::{TaskEntry, callback, entry};
use crate::ctx::{Core, Ctx, Tx};
use crate::db::{self, Dialect};
use crate::{Error, Result};

/// A task that this worker goes on with, and its object, if it was read along.
pub(super) type Next = (Claimed, Option<Fetched>);

/// How a try to move a task on went.
pub(super) enum Written {
    /// Done; the task, if this worker goes on with it.
    On(Option<Box<Next>>),
    /// Not done: somebody asked to cancel. What was to be done comes back unused.
    Cancelled(Option<Effect>, Vec<Spawn>),
    /// Not done: the object is gone.
    Gone,
    /// Not done: the task is not ours.
    Stale,
}

/// A result that waits for its place in a transaction.
struct Item {
    worker: Arc<str>,
    task: Arc<Claimed>,
    to: Move,
    reply: oneshot::Sender<Result<Written>>,
}

/// Commits the results of a process.
#[derive(Debug)]
pub(super) struct Committer {
    inbox: mpsc::UnboundedSender<Item>,
}

/// Transactions at once on a server: one is written while the next gathers.
const WRITERS: usize = 2;

impl Committer {
    /// Starts it on the runtime of the caller; it ends when dropped. What it
    /// holds is bounded by the task slots.
    pub(super) fn start(core: &Arc<Core>, group: usize) -> Self {
        let (inbox, outbox) = mpsc::unbounded_channel();
        let outbox = Arc::new(tokio::sync::Mutex::new(outbox));
        let writers =
            if core.db.dialect() == Dialect::Sqlite || group <= 1 { group.clamp(1, 16) } else { WRITERS };
        for _ in 0..writers {
            let (core, outbox) = (core.clone(), outbox.clone());
            tokio::spawn(async move {
                loop {
                    let mut items = Vec::new();
                    if outbox.lock().await.recv_many(&mut items, group.max(1)).await == 0 {
                        return;
                    }
                    commit(&core, items).await;
                }
            });
        }
        Self { inbox }
    }

    /// Moves a task on that has nothing else to do in the database.
    pub(super) async fn advance(&self, worker: &Arc<str>, task: &Arc<Claimed>, to: &Move) -> Result<Written> {
        let (reply, answer) = oneshot::channel();
        let item = Item { worker: worker.clone(), task: task.clone(), to: to.clone(), reply };
        let gone = || Error::unavailable("the worker is shutting down", 1);
        self.inbox.send(item).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Writes results together; if that fails, each by itself, so that one that
/// cannot be written holds up no other.
async fn commit(core: &Arc<Core>, mut items: Vec<Item>) {
    items.sort_by(|a, b| a.task.id.cmp(&b.task.id));
    let told = |items: &[Item]| -> Vec<_> {
        items.iter().map(|it| (it.worker.clone(), it.task.clone(), it.to.clone())).collect()
    };
    let (mut left, together) = match write(core, told(&items)).await {
        Ok(all) => {
            for (item, written) in items.into_iter().zip(all) {
                let _ = item.reply.send(Ok(written));
            }
            return;
        }
        Err(error) => (items, error),
    };
    if let [_] = left.as_slice() {
        for item in left.drain(..) {
            let _ = item.reply.send(Err(Error::unavailable(together.message().to_owned(), 1)));
        }
        return;
    }
    tracing::debug!(error = %together, results = left.len(), "results are written one by one");
    for item in left {
        let one = write(core, told(std::slice::from_ref(&item))).await;
        let _ = item.reply.send(one.and_then(|mut it| it.pop().ok_or_else(|| Error::internal("no result"))));
    }
}

async fn write(core: &Arc<Core>, items: Vec<(Arc<str>, Arc<Claimed>, Move)>) -> Result<Vec<Written>> {
    let ctx = Ctx::system(core);
    let done = core.db.write_engine(move |conn| {
        let mut tx = Tx::new(conn, &ctx);
        advance_all(&mut tx, &items)
    });
    Ok(core.tasks.faults().at("commit", done).await?.value)
}

/// In one transaction: moves tasks on, wakes what that makes ready, and reads
/// the objects for the stages that come next.
fn advance_all(tx: &mut Tx<'_>, items: &[(Arc<str>, Arc<Claimed>, Move)]) -> Result<Vec<Written>> {
    let now = tx.ctx.core().tasks.clock().now(tx.conn)?;
    let mut moved = vec![Advanced::Refused; items.len()];
    // All are of one lease, but for the moment after one was lost.
    let mut by_lease: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, (worker, ..)) in items.iter().enumerate() {
        by_lease.entry(worker).or_default().push(i);
    }
    for (worker, group) in by_lease {
        let moves: Vec<_> = group.iter().map(|i| (&*items[*i].1, &items[*i].2)).collect();
        for (i, result) in group.iter().zip(store::advance(tx.conn, worker, &moves, now)?) {
            moved[*i] = result;
        }
    }
    let mut written = Vec::with_capacity(items.len());
    let mut waker = None;
    for ((worker, task, to), moved) in items.iter().zip(moved) {
        let Advanced::Moved { woke } = moved else {
            written.push(match store::held(tx.conn, worker, task)? {
                Some(true) => Written::Cancelled(None, Vec::new()),
                Some(false) | None => Written::Stale,
            });
            continue;
        };
        if to.status != Status::Running {
            waker = after(tx, task, to, woke, now)?.max(waker);
            written.push(Written::On(None));
            continue;
        }
        written.push(Written::On(Some(Box::new((to.apply(task, now), None)))));
    }
    wake(tx, waker);
    if tx.conn.dialect() != Dialect::Sqlite {
        let next = written.iter_mut().filter_map(|it| match it {
            Written::On(Some(next)) => Some(&mut **next),
            _ => None,
        });
        fetch(tx, next)?;
    }
    Ok(written)
}

/// What is to be woken after a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wake {
    /// Something will be due.
    Look,
    /// Something is.
    Due,
}

fn wake(tx: &Tx<'_>, what: Option<Wake>) {
    let Some(what) = what else { return };
    let waker: Arc<Waker> = tx.ctx.core().tasks.waker();
    db::after_commit(move || match what {
        Wake::Look => waker.look(),
        Wake::Due => waker.due(),
    });
}

/// What a move brings about, beside the task's own row.
fn after(tx: &mut Tx<'_>, task: &Claimed, to: &Move, woke: bool, now: i64) -> Result<Option<Wake>> {
    if to.status == Status::Waiting && to.children == 0 {
        // The callback may have been quicker than the stage.
        let token = callback::token(&task.id, task.seq, &task.secret);
        if let Some(data) = store::callback_data(tx.conn, &token)? {
            store::resume(tx.conn, &task.id, &data, now)?;
            return Ok(Some(Wake::Due));
        }
    }
    Ok(match to.status {
        Status::Queued | Status::Waiting => Some(if to.delay.is_zero() { Wake::Due } else { Wake::Look }),
        // Who waited behind it, or for it.
        _ => woke.then_some(Wake::Due),
    })
}

/// Reads the objects of tasks that are about to run.
pub(super) fn fetch<'a>(tx: &mut Tx<'_>, tasks: impl IntoIterator<Item = &'a mut Next>) -> Result<()> {
    let mut by_kind: HashMap<String, Vec<&'a mut Next>> = HashMap::new();
    for next in tasks {
        by_kind.entry(next.0.task_name.clone()).or_default().push(next);
    }
    for (name, mut tasks) in by_kind {
        let Some(kind) = entry(&name) else { continue };
        let ids: Vec<&str> = tasks.iter().map(|it| it.0.obj_id.as_str()).collect();
        let mut found: HashMap<String, Fetched> = (kind.fetch)(tx, &ids)?.into_iter().collect();
        for next in &mut tasks {
            next.1 = found.remove(&next.0.obj_id);
        }
    }
    Ok(())
}

/// The transaction of a result with an effect: object, task, effect, in the
/// order that locks are taken.
pub(super) fn with_effect(
    tx: &mut Tx<'_>,
    kind: &'static TaskEntry,
    worker: &str,
    task: &Claimed,
    to: &Move,
    effect: Option<Effect>,
    spawns: Vec<Spawn>,
) -> Result<Written> {
    let now = tx.ctx.core().tasks.clock().now(tx.conn)?;
    let object = match &effect {
        Some(_) => (kind.lock)(tx, &task.obj_id)?,
        None => None,
    };
    if effect.is_some() && object.is_none() {
        return Ok(Written::Gone);
    }
    let Some(Advanced::Moved { woke }) = store::advance(tx.conn, worker, &[(task, to)], now)?.pop() else {
        return Ok(match store::held(tx.conn, worker, task)? {
            Some(true) => Written::Cancelled(effect, spawns),
            Some(false) | None => Written::Stale,
        });
    };
    let what = after(tx, task, to, woke, now)?;
    wake(tx, what);
    if to.status == Status::Waiting {
        for spawn in spawns {
            spawn(tx, task)?;
        }
    }
    if let (Some(effect), Some(object)) = (effect, object) {
        (kind.apply)(tx, object, effect, kind.name)?;
    }
    let next = (to.status == Status::Running).then(|| Box::new((to.apply(task, now), None)));
    Ok(Written::On(next))
}
