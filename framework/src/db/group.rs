//! Writes that share a transaction: each runs in a savepoint, all are committed
//! at once, and each is answered after that. A sync of the disk for many.

use diesel::connection::{Connection as _, SimpleConnection};
use tokio::sync::oneshot;

use super::{
    AnyConnection, DOOMED, Dialect, Done, GENERATION, Hook, Sql, glance, guarded, measure, take_hooks,
};
use crate::{Error, Result};

/// Most jobs in one commit: enough to share a sync, few enough that the first
/// of them does not wait long (and that PostgreSQL keeps its savepoints in
/// shared memory, which holds 64).
pub(super) const GROUP: usize = 48;

/// A row, as a request names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OneRow {
    /// The keyword of its type.
    pub(crate) kind: &'static str,
    /// Its id or name.
    pub(crate) name: String,
}

/// A write, without its type.
pub(super) trait Job: Send {
    /// Runs it; `false` when its changes are to be undone.
    fn run(&mut self, conn: &mut AnyConnection) -> bool;
    /// Whether it can be run anew after all was undone.
    fn is_repeatable(&self) -> bool;
    /// The one row that it is about, if it is.
    fn of_row(&self) -> Option<&OneRow>;
    /// Whether it failed for want of a connection.
    fn lost_connection(&self) -> bool;
    /// Answers, once it is known whether the group was committed.
    fn finish(self: Box<Self>, failure: Option<&str>);
}

/// A write and who waits for it.
pub(super) struct Write<R, F> {
    f: F,
    repeatable: bool,
    of: Option<OneRow>,
    result: Option<Result<Done<R>>>,
    hooks: Vec<Hook>,
    /// Statements that were sent for it beside its own: its lock.
    extra: u32,
    reply: oneshot::Sender<Result<Done<R>>>,
}

impl<R, F> Write<R, F> {
    pub(super) fn new(work: Work<F>, extra: u32) -> (Box<Self>, oneshot::Receiver<Result<Done<R>>>) {
        let (reply, answer) = oneshot::channel();
        let Work { f, repeatable, of } = work;
        (Box::new(Self { f, repeatable, of, result: None, hooks: Vec::new(), extra, reply }), answer)
    }
}

/// What a write does.
pub(super) struct Work<F> {
    f: F,
    repeatable: bool,
    of: Option<OneRow>,
}

impl<F> Work<F> {
    /// That can be done anew after it was undone.
    pub(super) fn repeatable(f: F, of: Option<OneRow>) -> Self {
        Self { f, repeatable: true, of }
    }
}

/// Work that can be done once only.
pub(super) fn once<R>(
    f: impl FnOnce(&mut AnyConnection) -> Result<R> + Send + 'static,
) -> Work<impl FnMut(&mut AnyConnection) -> Result<R> + Send + 'static> {
    let mut f = Some(f);
    let f = move |conn: &mut AnyConnection| match f.take() {
        Some(f) => f(conn),
        None => Err(Error::internal("a write that cannot be repeated was")),
    };
    Work { f, repeatable: false, of: None }
}

impl<R, F> Job for Write<R, F>
where
    R: Send,
    F: FnMut(&mut AnyConnection) -> Result<R> + Send,
{
    fn run(&mut self, conn: &mut AnyConnection) -> bool {
        drop(take_hooks());
        let generation = GENERATION.get();
        DOOMED.set(false);
        let mut result = guarded(|| {
            measure(|| {
                let value = (self.f)(conn)?;
                glance::send(conn)?;
                Ok(value)
            })
        });
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

    fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    fn of_row(&self) -> Option<&OneRow> {
        self.of.as_ref()
    }

    fn lost_connection(&self) -> bool {
        matches!(&self.result, Some(Err(error)) if error.is_connection_lost())
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
    if conn.dialect() == Dialect::Sqlite {
        // Prepared once; parsing them each time costs more than they do.
        let mut parts = sql.split("; ");
        return parts
            .try_for_each(|part| conn.execute_returning_count(&Sql::new(part)).map(drop))
            .map_err(|e| format!("{sql}: {e}"));
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
