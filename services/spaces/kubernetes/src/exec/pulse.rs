//! Whether anybody is at the other side of a websocket.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

/// How often each websocket is asked whether the other side is there; the server
/// itself asks never.
pub(super) const PING: Duration = Duration::from_secs(20);
/// One of which nothing came for so long is lost: TCP would notice that only
/// after a quarter of an hour, and only if something was to be sent.
const SILENCE: Duration = PING.saturating_mul(3);
/// So many bytes of input always have room on the way to the shell.
pub(super) const ROOM: usize = 4096;

/// When the other side of a websocket was last heard.
pub(super) struct Pulse {
    begin: Instant,
    /// In milliseconds since the beginning; 0: no ping was answered yet. A server
    /// that answers none is not judged by that.
    heard: AtomicU64,
    /// Nothing is read, since nobody takes what was read.
    held: AtomicBool,
    /// Bytes of input that were sent, ...
    sent: AtomicU64,
    /// ... and how many of them the server is known to have read.
    taken: AtomicU64,
}

impl Pulse {
    pub(super) fn new() -> Self {
        let (heard, sent, taken) = <(AtomicU64, AtomicU64, AtomicU64)>::default();
        Self { begin: Instant::now(), heard, held: AtomicBool::default(), sent, taken }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// A ping says how much was sent before it, and its answer says it again.
    pub(super) fn ping(&self) -> Message {
        Message::Ping(Bytes::copy_from_slice(&self.sent.load(Relaxed).to_be_bytes()))
    }

    /// So many bytes of input are about to be sent.
    pub(super) fn send(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn heard(&self, message: &Message) {
        if let Message::Pong(said) = message {
            if let Ok(taken) = <[u8; 8]>::try_from(&said[..]) {
                self.taken.fetch_max(u64::from_be_bytes(taken), Relaxed);
            }
        } else if self.heard.load(Relaxed) == 0 {
            return;
        }
        self.heard.store(self.now(), Relaxed);
    }

    pub(super) fn hold(&self) {
        self.held.store(true, Relaxed);
    }

    /// It is read again. What waits may come first.
    pub(super) fn go_on(&self) {
        if self.held.swap(false, Relaxed) && self.heard.load(Relaxed) > 0 {
            self.heard.store(self.now(), Relaxed);
        }
    }

    /// Whether nobody seems to be there any more.
    pub(super) fn is_lost(&self) -> bool {
        let heard = self.heard.load(Relaxed);
        if heard == 0 || self.held.load(Relaxed) {
            return false;
        }
        // A shell that reads nothing holds up the server, which then reads no pings.
        let waits = self.sent.load(Relaxed).saturating_sub(self.taken.load(Relaxed)) > ROOM as u64;
        !waits && Duration::from_millis(self.now().saturating_sub(heard)) >= SILENCE
    }
}
