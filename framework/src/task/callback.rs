//! Callbacks: the outside tells a task that what it waits for has happened. A
//! token names the task and its stage's place in the task's life; what makes
//! it unguessable is a code over both with a key that only the task's row has.
//! So it can be told before the wait begins, and nothing is stored for it.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;

use super::Engine;
use super::store::{self, Status};
use crate::ctx::{Core, Ctx, Tx};
use crate::db::Cost;
use crate::{Error, Kind, Result};

/// Bytes of the code in a token.
const CODE: usize = 16;

/// A key for a new task's tokens.
pub(super) fn secret() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 24]>())
}

fn code(id: &str, seq: i64, secret: &str) -> Option<Hmac<Sha256>> {
    let mut code = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).ok()?;
    code.update(format!("{id}.{seq}").as_bytes());
    Some(code)
}

/// The token of a task's stage.
pub(super) fn token(id: &str, seq: i64, secret: &str) -> String {
    // A key of any length makes a code.
    let bytes = code(id, seq, secret).map(|it| it.finalize().into_bytes());
    let code = bytes.map(|it| URL_SAFE_NO_PAD.encode(&it[..CODE])).unwrap_or_default();
    format!("{id}.{seq}.{code}")
}

struct Parsed<'a> {
    id: &'a str,
    seq: i64,
    code: Vec<u8>,
}

impl Parsed<'_> {
    /// Whether it was made with that key.
    fn is_of(&self, secret: &str) -> bool {
        code(self.id, self.seq, secret).is_some_and(|it| it.verify_truncated_left(&self.code).is_ok())
    }
}

fn parse(token: &str) -> Option<Parsed<'_>> {
    let mut parts = token.split('.');
    let it = Parsed {
        id: parts.next().filter(|id| uuid::Uuid::try_parse(id).is_ok())?,
        seq: parts.next()?.parse().ok()?,
        code: URL_SAFE_NO_PAD.decode(parts.next()?).ok().filter(|it| it.len() == CODE)?,
    };
    parts.next().is_none().then_some(it)
}

fn unknown() -> Error {
    Error::new(Kind::NotFound, "there is no such callback token")
}

impl Engine {
    /// Tells a task what it waits for; for services' own code, without a
    /// request. When it has returned, the callback is on disk.
    ///
    /// # Errors
    /// 404 for a token that is none, 409 `CallbackUsedError` for one that was
    /// used, 409 `CallbackLateError` for one whose wait is over.
    pub async fn callback(core: &Arc<Core>, token: &str, data: Value) -> Result<()> {
        let token = token.to_owned();
        Ctx::system(core).write(None, move |tx| tx.callback(&token, &data)).await?;
        Ok(())
    }
}

/// What became of a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The task goes on with it.
    Resumed,
    /// It came before the task waits, and is kept for it.
    Early,
}

/// Refuses a token that is none without a write: strangers may send any
/// number of them, and must not hold a lock or the writer for it.
///
/// # Errors
/// 404 for a token that is none.
pub(crate) async fn expect_token(ctx: &Ctx, token: &str) -> Result<()> {
    let token = token.to_owned();
    let done = ctx.read(Cost::Bounded, move |tx| {
        let parsed = parse(&token).ok_or_else(unknown)?;
        let secret = store::secret(tx.conn, parsed.id)?.ok_or_else(unknown)?;
        if parsed.is_of(&secret) { Ok(()) } else { Err(unknown()) }
    });
    done.await.map(drop)
}

impl Tx<'_> {
    /// Tells a task what it waits for, in this transaction.
    ///
    /// # Errors
    /// As [`Engine::callback`].
    pub fn callback(&mut self, token: &str, data: &Value) -> Result<Received> {
        let parsed = parse(token).ok_or_else(unknown)?;
        let task = store::for_callback(self.conn, parsed.id)?.ok_or_else(unknown)?;
        if !parsed.is_of(&task.secret) {
            return Err(unknown());
        }
        let used = || Error::conflict("this callback was made already").class("CallbackUsedError");
        let elsewhere = task.status == Status::Waiting && task.open_children > 0;
        if parsed.seq != task.seq || task.status.is_ended() || elsewhere {
            if store::was_called_back(self.conn, token)? {
                return Err(used());
            }
            let text = "the task does not wait for this any more";
            return Err(Error::conflict(text).class("CallbackLateError"));
        }
        let data = data.to_string();
        let now = self.ctx.core().tasks.clock().now(self.conn)?;
        if !store::keep_callback(self.conn, token, parsed.id, &data, now)? {
            return Err(used());
        }
        // Else it is early: the stage that is going to wait finds it.
        if task.status == Status::Waiting {
            store::resume(self.conn, parsed.id, &data, now)?;
            self.wake_workers();
            return Ok(Received::Resumed);
        }
        Ok(Received::Early)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01890000-0000-7000-8000-000000000000";

    fn genuine(token: &str, secret: &str) -> bool {
        parse(token).is_some_and(|it| it.is_of(secret))
    }

    #[test]
    fn tokens_hold_only_for_their_task_and_stage() {
        let (mine, other) = (secret(), secret());
        let it = token(ID, 3, &mine);
        assert!(genuine(&it, &mine));
        assert!(!genuine(&it, &other));
        assert!(!genuine(&it.replace(".3.", ".4."), &mine));
        assert_eq!(it, token(ID, 3, &mine));
        for bad in [
            "",
            ".",
            "a.1.b",
            &it[..it.len() - 1],
            &format!("{it}."),
            &format!("{ID}.3."),
            &format!("{ID}.3"),
        ] {
            assert!(!genuine(bad, &mine), "{bad}");
        }
    }
}
