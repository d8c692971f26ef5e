//! Writes that share a transaction: each runs in a savepoint, all are committed
//! at once, and each is answered after that. A sync of the disk for many.

use diesel::connection::SimpleConnection;
use tokio::sync::oneshot;

use super::{AnyConnection, DOOMED, Done, GENERATION, Hook, guarded, measure, take_hooks};
use crate::{Error, Result};

/// Most jobs in one commit: enough to share a sync, few enough that the first
/// of them does not wait long (and that PostgreSQL keeps its savepoints in
/// shared memory, which holds 64).
pub(super) const GROUP: usize = 48;

/// A write, without its type.
pub(super) trait Job: Send {
    /// Runs it; `false` when its changes are to be undone.
    fn run(&mut self, conn: &mut AnyConnection) -> bool;
    /// Answers, once it is known whether the group was committed.
    fn finish(self: Box<Self>, failure: Option<&str>);
}

/// A write and who waits for it.
pub(super) struct Write<R, F> {
    f: Option<F>,
    result: Option<Result<Done<R>>>,
    hooks: Vec<Hook>,
    /// Statements that were sent for it beside its own: its lock.
    extra: u32,
    reply: oneshot::Sender<Result<Done<R>>>,
}

impl<R, F> Write<R, F> {
    pub(super) fn new(f: F, extra: u32) -> (Box<Self>, oneshot::Receiver<Result<Done<R>>>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Self { f: Some(f), result: None, hooks: Vec::new(), extra, reply }), answer)
    }
}

impl<R, F> Job for Write<R, F>
where
    R: Send,
    F: FnOnce(&mut AnyConnection) -> Result<R> + Send,
{
    fn run(&mut self, conn: &mut AnyConnection) -> bool {
        let Some(f) = self.f.take() else { return false };
        drop(take_hooks());
        let generation = GENERATION.get();
        DOOMED.set(false);
        let mut result = guarded(|| measure(|| f(conn)));
        if DOOMED.get() && result.is_ok() {
            result = Err(Error::unavailable("two requests got in each other's way; try again", 1));
        }
        self.hooks = take_hooks();
        match &mut result {
            Ok(done) => done.statements += self.extra,
            // What it saw of its own writes is undone with them.
            Err(_) => GENERATION.set(generation),
        }
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn finish(self: Box<Self>, failure: Option<&str>) {
        let result = match (self.result, failure) {
            (Some(Err(error)), _) => Err(error),
            (_, Some(failure)) => Err(commit_error(failure)),
            (Some(ok), None) => {
                for hook in self.hooks {
                    hook();
                }
                ok
            }
            (None, None) => Err(Error::internal("the job did not run")),
        };
        // Nobody waits any more: the request was cancelled; the write stands.
        let _ = self.reply.send(result);
    }
}

fn commit_error(text: &str) -> Error {
    if text.contains("full") || text.contains("No space left") {
        return Error::new(crate::Kind::InsufficientStorage, "the disk of the database is full")
            .caused_by(text.to_owned());
    }
    Error::unavailable("the write could not be committed; nothing was changed", 1).caused_by(text.to_owned())
}

/// A statement of transaction control; its error is one of the whole group.
pub(super) fn control(conn: &mut AnyConnection, sql: &'static str) -> std::result::Result<(), String> {
    #[cfg(feature = "mysql")]
    if let AnyConnection::Mysql(_) = conn {
        return super::mysql::control(conn, sql).map_err(|e| format!("{sql}: {e}"));
    }
    conn.batch_execute(sql).map_err(|e| format!("{sql}: {e}"))
}

/// Runs jobs in the open transaction and commits it. One alone needs no
/// savepoint. An error is one of the whole group: nothing is committed.
pub(super) fn run(conn: &mut AnyConnection, jobs: &mut [Box<dyn Job>]) -> std::result::Result<(), String> {
    if let [only] = jobs {
        let end = if only.run(conn) { "COMMIT" } else { "ROLLBACK" };
        return control(conn, end);
    }
    // One round trip ends the savepoint before and sets the next.
    let mut between = "SAVEPOINT job";
    let mut keep = true;
    for job in jobs {
        control(conn, between)?;
        keep = job.run(conn);
        between = if keep { "RELEASE SAVEPOINT job; SAVEPOINT job" } else { "ROLLBACK TO SAVEPOINT job" };
    }
    control(conn, if keep { "COMMIT" } else { "ROLLBACK TO SAVEPOINT job; COMMIT" })
}
