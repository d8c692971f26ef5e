//! Terminals in spaces: whose they may be, and the records of them.

use std::time::Duration;

use podyard::auth::UserCred;
use podyard::db::Cost;
use podyard::model::Record;
use podyard::{Ctx, Error, Result};
use podyard_driver::{Terminal, TerminalEnd, TerminalSize};
use serde_json::{Map, json};

use crate::space::RUNNING;
use crate::{Space, Spaces};

/// Whose spaces somebody may open terminals in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    /// Nobody's.
    None,
    /// Their own, and no others that they see.
    Own,
    /// All that they see.
    All,
}

impl Whose {
    fn admits(self, cred: &UserCred, space: &Space) -> bool {
        match self {
            Self::None => false,
            Self::Own => space.user_id == cred.user_id,
            Self::All => true,
        }
    }
}

/// Finds the space in which a terminal may be opened now.
///
/// # Errors
/// 404 if the caller does not see it, 403 if they see it and may not, 409 if it does not run.
pub async fn terminal_space(ctx: &Ctx, id: &str, whose: Whose) -> Result<Space> {
    let key = id.to_owned();
    let done = ctx.read(Cost::Bounded, move |tx| {
        let of = tx.ctx.core().registry.get("spaces");
        let of = of.ok_or_else(|| Error::internal("there are no spaces"))?.handler;
        let id = of.resolve(tx, &key)?;
        Space::select().eq("id", id).one(tx)?.ok_or_else(|| Error::not_found("space", &key))
    });
    let space = done.await?.value;
    let cred = ctx.cred();
    if !whose.admits(cred, &space) {
        let text = format!("a terminal in space {} is not allowed to {}", space.name, cred.user_name);
        return Err(Error::forbidden(text));
    }
    if space.status != RUNNING {
        let text = format!("space {} is {}, and a terminal needs one that runs", space.name, space.status);
        return Err(Error::conflict(text).class("SpaceNotRunningError").blame("status"));
    }
    Ok(space)
}

/// Opens a terminal, once it is noted down that somebody does.
///
/// # Errors
/// 409 and 503 from what runs the space.
pub async fn open_terminal(ctx: &Ctx, space: &Space, id: &str, size: TerminalSize) -> Result<Terminal> {
    let spaces = ctx.service::<Spaces>()?;
    let terminal = spaces.driver(&space.driver)?.terminal(&space.id, size).await.map_err(refused)?;
    let (row, id) = (space.clone(), id.to_owned());
    let noted = ctx.write(None, move |tx| {
        let mut notes = Map::new();
        notes.insert("terminal".into(), json!(id));
        notes.insert("size".into(), json!({"columns": size.columns, "rows": size.rows}));
        tx.log_noted(&row, OPENED, notes)
    });
    // Without the record there is no terminal: what was opened is dropped, and ends.
    noted.await?;
    Ok(terminal)
}

fn refused(error: podyard_driver::Error) -> Error {
    use podyard_driver::Error as Driver;
    match &error {
        Driver::Invalid(_) | Driver::Unavailable(_) | Driver::Running => {
            Error::conflict(error.to_string()).class("TerminalUnavailableError")
        }
        Driver::Stuck(_) | Driver::Io { .. } => Error::unavailable(error.to_string(), 1).caused_by(error),
    }
}

/// What is noted down of a terminal at its end.
#[derive(Debug, Clone)]
pub struct Closed {
    /// Its own id.
    pub terminal: String,
    /// How long it was open.
    pub lasted: Duration,
    /// How its shell ended, if that is known.
    pub end: Option<TerminalEnd>,
    /// Why it was closed.
    pub why: &'static str,
    /// Bytes that were typed.
    pub typed: u64,
    /// Bytes that were shown.
    pub shown: u64,
}

/// Notes down that a terminal was closed.
///
/// # Errors
/// What the database says.
pub async fn note_closed(ctx: &Ctx, space: Space, closed: Closed) -> Result<()> {
    let noted = ctx.write(None, move |tx| {
        let mut notes = vec![
            ("terminal", json!(closed.terminal)),
            ("seconds", json!(closed.lasted.as_secs_f64())),
            ("why", json!(closed.why)),
            ("bytes_typed", json!(closed.typed)),
            ("bytes_shown", json!(closed.shown)),
        ];
        if let Some(end) = &closed.end {
            notes.push(("exit_code", json!(end.code)));
            if !end.reason.is_empty() {
                notes.push(("reason", json!(end.reason)));
            }
        }
        let notes = notes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        tx.log_noted(&space, CLOSED, notes)
    });
    noted.await?;
    Ok(())
}

/// What the log says when a terminal is opened, ...
pub(crate) const OPENED: &str = "terminal_opened";
/// ... and when it is closed.
pub(crate) const CLOSED: &str = "terminal_closed";
