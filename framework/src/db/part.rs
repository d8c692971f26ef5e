//! Parts of a transaction that can be undone by themselves: a savepoint, with
//! what is remembered beside the connection.

use diesel::connection::SimpleConnection;

use super::{AFTER_COMMIT, AnyConnection, GENERATION, Hook, STATEMENTS};
use crate::{Error, Result};

/// How things stood as a part began.
pub(crate) struct Part {
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

/// Begins a part. Parts nest: a savepoint hides those before it of the same name.
pub(crate) fn begin_part(conn: &mut AnyConnection) -> Result<Part> {
    control(conn, "SAVEPOINT part")?;
    Ok(Part { generation: GENERATION.get(), hooks: AFTER_COMMIT.take() })
}

/// Ends a part: keeps what it did, or undoes it.
///
/// # Errors
/// Of the whole transaction, which then cannot be gone on with.
pub(crate) fn end_part(conn: &mut AnyConnection, part: Part, keep: bool) -> Result<()> {
    let Part { generation, mut hooks } = part;
    let own = AFTER_COMMIT.take();
    if keep {
        hooks.extend(own);
    } else {
        GENERATION.set(generation);
    }
    AFTER_COMMIT.set(hooks);
    control(
        conn,
        if keep { "RELEASE SAVEPOINT part" } else { "ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part" },
    )
}
