//! Writes of one row on PostgreSQL without a transaction around them: the row
//! is read, judged, and written together with its record by one statement that
//! finds it only as it was read. Two round trips instead of four.
//!
//! That holds as long as the work asks for nothing else. As soon as it does,
//! or somebody else was quicker with the row, all is begun anew in a
//! transaction that locks the row; nothing was written until then. Who asks
//! for something else is found by diesel's own instrumentation, so it makes no
//! difference how a hook uses its connection. (One that opens another of its
//! own is not seen, and was never a part of the transaction.)

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use super::group::Job;
use super::{AnyConnection, Sql, execute};
use crate::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// An ordinary transaction.
    Off,
    /// Nothing was asked yet.
    Fresh,
    /// The row may be read now.
    Reading,
    /// The row was read.
    Read,
    /// The write is made up and not sent.
    Held,
    /// The write was sent.
    Sent,
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State::Off) };
    static HELD: RefCell<Option<Sql<'static>>> = const { RefCell::new(None) };
}

/// What unwinds work that needs a transaction.
struct NeedsTransaction;

/// Whether a panic is ours, and not the work's.
pub(super) fn is_ours(panic: &(dyn Any + Send)) -> bool {
    panic.is::<NeedsTransaction>()
}

fn leave() -> ! {
    // Not a panic: nobody is told, and it is always caught below.
    resume_unwind(Box::new(NeedsTransaction))
}

/// Told of every statement before it is sent.
pub(super) fn observe() {
    match STATE.get() {
        State::Off | State::Sent => {}
        State::Reading => STATE.set(State::Read),
        State::Fresh | State::Read | State::Held => leave(),
    }
}

/// Reads the row that is to be changed; `read` is told whether to lock it.
pub(crate) fn read<R>(read: impl FnOnce(bool) -> R) -> R {
    if STATE.get() != State::Fresh {
        return read(true);
    }
    STATE.set(State::Reading);
    let row = read(false);
    STATE.set(State::Read);
    row
}

/// Takes the write and its record, if it can be sent when all is done.
pub(crate) fn hold(sql: Sql<'_>) -> std::result::Result<(), Sql<'_>> {
    if STATE.get() != State::Read {
        return Err(sql);
    }
    HELD.set(Some(sql.into_owned()));
    STATE.set(State::Held);
    Ok(())
}

/// Sends the write that was held, if there is one.
pub(super) fn send(conn: &mut AnyConnection) -> Result<()> {
    let Some(sql) = HELD.take() else { return Ok(()) };
    STATE.set(State::Sent);
    let written = execute(conn, &sql).map_err(|error| match error.is_connection_lost() {
        true => {
            let text = "the connection to the database was lost; the change may have been made: look before you try again";
            Error::unavailable(text, 2).caused_by(error)
        }
        false => error,
    })?;
    if written == 0 {
        // Somebody else was quicker.
        leave();
    }
    Ok(())
}

/// Runs the work so and tells whether it succeeded; `None`: it is to be run
/// anew in a transaction.
pub(super) fn run(conn: &mut AnyConnection, job: &mut dyn Job) -> Option<bool> {
    let kind = job.of_row()?.kind;
    if !is_worth_it(kind) {
        return None;
    }
    STATE.set(State::Fresh);
    let done = catch_unwind(AssertUnwindSafe(|| job.run(conn)));
    let state = STATE.replace(State::Off);
    HELD.take();
    match done {
        // A connection that was lost before the write: another may have been found meanwhile.
        Ok(_) if state != State::Sent && job.lost_connection() => None,
        Ok(kept) => Some(kept),
        Err(panic) if is_ours(panic.as_ref()) => {
            match state {
                State::Fresh => {}
                State::Sent => in_vain(kind, BREATH),
                _ => in_vain(kind, PAUSE),
            }
            None
        }
        Err(panic) => resume_unwind(panic),
    }
}

/// Kinds of work that were begun in vain, and for how many more it is not tried.
static IN_VAIN: Mutex<Option<HashMap<&'static str, u32>>> = Mutex::new(None);

/// So many are done the safe way after one that was begun in vain: most likely
/// the type has a hook that asks the database.
const PAUSE: u32 = 1000;

/// So many after one whose row somebody else was quicker with: rare where rows are
/// many, and where all want one row most are done the way that waits for it.
const BREATH: u32 = 8;

fn in_vain(kind: &'static str, pause: u32) {
    let mut all = IN_VAIN.lock().unwrap_or_else(PoisonError::into_inner);
    all.get_or_insert_default().insert(kind, pause);
}

fn is_worth_it(kind: &'static str) -> bool {
    let mut all = IN_VAIN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(left) = all.as_mut().and_then(|all| all.get_mut(kind)) else { return true };
    *left = left.saturating_sub(1);
    *left == 0
}
