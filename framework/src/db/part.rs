//! Parts of a transaction that can be undone by themselves: a savepoint, with
//! what is remembered beside the connection.

use std::cell::Cell;

use diesel::connection::SimpleConnection;

use super::{AFTER_COMMIT, AnyConnection, GENERATION, Hook, STATEMENTS};
use crate::{Error, Result};

thread_local! {
    /// Parts that are open: each has a savepoint of its own name, since to
    /// MySQL a second one of a name ends the first.
    static OPEN: Cell<u32> = const { Cell::new(0) };
}

/// How things stood as a part began.
pub(crate) struct Part {
    number: u32,
    generation: Option<i64>,
    /// What is to be done after the commit, of what came before.
    hooks: Vec<Hook>,
}

/// Sends transaction control, which is not counted as a statement.
fn control(conn: &mut AnyConnection, sql: &str) -> Result<()> {
    let before = STATEMENTS.get();
    let result = conn.batch_execute(sql).map_err(Error::from);
    STATEMENTS.set(before);
    result
}

/// Begins a part. Parts nest.
pub(crate) fn begin_part(conn: &mut AnyConnection) -> Result<Part> {
    let number = OPEN.get() + 1;
    control(conn, &format!("SAVEPOINT part{number}"))?;
    OPEN.set(number);
    Ok(Part { number, generation: GENERATION.get(), hooks: AFTER_COMMIT.take() })
}

/// Ends a part: keeps what it did, or undoes it.
///
/// # Errors
/// Of the whole transaction, which then cannot be gone on with.
pub(crate) fn end_part(conn: &mut AnyConnection, part: Part, keep: bool) -> Result<()> {
    let Part { number, generation, mut hooks } = part;
    OPEN.set(number - 1);
    let own = AFTER_COMMIT.take();
    if keep {
        hooks.extend(own);
    } else {
        GENERATION.set(generation);
    }
    AFTER_COMMIT.set(hooks);
    let undo = if keep { String::new() } else { format!("ROLLBACK TO SAVEPOINT part{number}; ") };
    control(conn, &format!("{undo}RELEASE SAVEPOINT part{number}"))
}
