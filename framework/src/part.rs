//! Parts of a request: a savepoint around some of its hooks, so that an error
//! there undoes that part only, and the rehearsal of a whole request.

use crate::Result;
use crate::ctx::Tx;
use crate::db;

impl Tx<'_> {
    /// Runs a part of the transaction. If it fails, what it wrote is undone,
    /// with its tasks, its hooks for after the commit and what it did to
    /// caches; what came before stands, and the transaction goes on.
    ///
    /// # Errors
    /// The outer error is one of the transaction itself, to be passed on; the
    /// inner is the part's own.
    pub fn savepoint<R>(&mut self, f: impl FnOnce(&mut Self) -> Result<R>) -> Result<Result<R>> {
        self.part(f, Result::is_ok)
    }

    /// Runs a part with all its hooks and undoes it, whatever it gave.
    pub(crate) fn rehearse<R>(&mut self, f: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        self.rehearsal = true;
        self.part(f, |_| false)?
    }

    fn part<R>(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<R>,
        keep: impl FnOnce(&Result<R>) -> bool,
    ) -> Result<Result<R>> {
        let part = db::begin_part(self.conn)?;
        let (written, task) = (self.written.clone(), self.started_task.take());
        let result = db::guarded(|| f(self));
        let keep = keep(&result);
        if !keep {
            (self.written, self.started_task) = (written, task);
            // Of a row that may be as it was again: it is to be read anew.
            self.remembered = None;
        } else if self.started_task.is_none() {
            self.started_task = task;
        }
        match (db::end_part(self.conn, part, keep), result) {
            (Ok(()), result) => Ok(result),
            // It is broken because of what the part ran into: that says more.
            (Err(_), Err(error)) => Err(error),
            (Err(error), Ok(_)) => Err(error),
        }
    }
}
