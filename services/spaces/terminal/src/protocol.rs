//! `podyard.terminal.v1`, the websocket's subprotocol.
//!
//! A binary frame holds bytes: from the client what is typed, from the server
//! what the shell writes. They mean nothing else to anybody on the way; a
//! character may begin in one frame and end in the next.
//!
//! A text frame holds one JSON object with one member.
//!
//! | from | object | says |
//! | --- | --- | --- |
//! | client | `{"resize": {"columns": 120, "rows": 40}}` | the window has this size now |
//! | server | `{"exit": {"code": 3, "reason": ""}}` | the shell is over; `code` is null if it did not return one, then `reason` says why. A close frame with 1000 follows |
//! | server | `{"error": {"class": "TerminalIdleError", "message": "…"}}` | why the terminal is closed, then a close frame follows; or what was wrong with a text frame, and the terminal goes on |
//!
//! Each side may send pings, and answers them. The server sends one now and
//! then; a client that leaves three of them without an answer is gone.

use podyard::i18n::{self, Lang};
use podyard_driver::{TerminalEnd, TerminalSize};
use serde::{Deserialize, Serialize};

/// The subprotocol's name.
pub const NAME: &str = "podyard.terminal.v1";
/// What stands before a token that is handed over as a subprotocol, in base64url without padding:
/// for browsers, which can set no header.
pub const TOKEN: &str = "podyard.token.";
/// Most characters in a line, and most lines.
pub const LARGEST: u16 = 1000;

/// What a client says beside bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum FromClient {
    /// The window has this size now.
    Resize(Size),
}

/// The size of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Size {
    /// As drivers have it, unless it is none.
    ///
    /// # Errors
    /// A sentence that names the member.
    pub fn checked(self) -> Result<TerminalSize, String> {
        for (name, value) in [("columns", self.columns), ("rows", self.rows)] {
            if !(1..=LARGEST).contains(&value) {
                return Err(format!("{name}: must be from 1 to {LARGEST}"));
            }
        }
        Ok(TerminalSize { columns: self.columns, rows: self.rows })
    }
}

/// What the server says beside bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FromServer {
    /// The shell is over.
    Exit {
        /// What it returned.
        code: Option<i32>,
        /// In words, where there is more to say.
        reason: String,
    },
    /// Why it is closed, or what was wrong.
    Error {
        /// For programs.
        class: String,
        /// For people.
        message: String,
    },
}

impl FromServer {
    pub(crate) fn exit(end: &TerminalEnd, lang: Lang) -> Self {
        Self::Exit { code: end.code, reason: i18n::text(lang, &end.reason).into_owned() }
    }

    pub(crate) fn error(class: &str, message: impl Into<String>) -> Self {
        Self::Error { class: class.to_owned(), message: message.into() }
    }

    pub(crate) fn text(&self) -> String {
        // Texts and numbers: that cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Reads a client's text frame.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn read(text: &str) -> Result<TerminalSize, String> {
    let FromClient::Resize(size) = serde_json::from_str(text).map_err(|e| format!("not understood: {e}"))?;
    size.checked()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_say() {
        let size = read(r#"{"resize": {"columns": 120, "rows": 40}}"#).unwrap();
        assert_eq!((size.columns, size.rows), (120, 40));
        for (text, word) in [
            ("", "not understood"),
            ("{}", "not understood"),
            (r#"{"resize": {"columns": 0, "rows": 40}}"#, "columns"),
            (r#"{"resize": {"columns": 80, "rows": 1001}}"#, "rows"),
            (r#"{"resize": {"columns": 80}}"#, "rows"),
            (r#"{"resize": {"columns": 70000, "rows": 4}}"#, "70000"),
            (r#"{"resize": {"columns": 80, "rows": 4, "x": 1}}"#, "x"),
            (r#"{"kill": {}}"#, "kill"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn what_the_server_says() {
        let exit = FromServer::exit(&TerminalEnd { code: Some(3), reason: String::new() }, Lang::English);
        assert_eq!(exit.text(), r#"{"exit":{"code":3,"reason":""}}"#);
        let exit = FromServer::exit(
            &TerminalEnd { code: None, reason: "the space has ended".into() },
            Lang::Chinese,
        );
        assert_eq!(exit.text(), r#"{"exit":{"code":null,"reason":"空间已结束"}}"#);
        let error = FromServer::error("TerminalIdleError", "idle");
        assert_eq!(error.text(), r#"{"error":{"class":"TerminalIdleError","message":"idle"}}"#);
    }
}
