//! Terminals in spaces: `GET /spaces/<id>/terminal`, a websocket.
//!
//! ```text
//! client ══ websocket ══ actix ─┬─ Down (the body of the 101)   ◄─┐
//!                               └─ a task that reads the payload ─┤ a pipe of 16 KiB
//!                                                                 ▼
//!                                  Session, a task: frames ⇄ bytes, pings, time-outs
//!                                                                 ▲
//!                                                 driver's Terminal, bounded channels
//! ```
//!
//! Everything on the way has a small bound, so whoever does not read stops the
//! other side, and each side's end ends the other: the client's drops the
//! driver's [`Terminal`](podyard_driver::Terminal), which ends the shell; the
//! shell's closes the websocket. Sessions run on the runtime that [`Terminals`]
//! was made in, since they write their last record after the connection is gone.
//!
//! What is spoken in the websocket is in [`protocol`].

mod body;
mod open;
pub mod protocol;
mod right;
mod session;
mod stats;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::web;
use podyard::{Error, Kind, Result};
use tokio::runtime::Handle;
use tokio::sync::watch;

pub use podyard_spaces::Whose;
pub use right::{Right, Rights};
pub use stats::Stats;

podyard::catalogue!(Chinese, "i18n/zh.toml");

/// How terminals behave.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who may open one, by roles.
    pub rights: Rights,
    /// Most terminals of this server.
    pub most: usize,
    /// Most terminals in one space.
    pub most_in_space: usize,
    /// One in which nothing has moved for this long is closed.
    pub idle: Duration,
    /// How often a client is asked whether it is still there. One that does not answer three times
    /// is gone.
    pub ping: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rights: Rights::default(),
            most: 1000,
            most_in_space: 20,
            idle: Duration::from_secs(3600),
            ping: Duration::from_secs(20),
        }
    }
}

/// All terminals of a server. Cheap to clone; all clones are the same one.
#[derive(Debug, Clone)]
pub struct Terminals {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) options: Options,
    pub(crate) stats: Arc<Stats>,
    pub(crate) runtime: Handle,
    pub(crate) stopping: watch::Sender<bool>,
    /// How many are open, by space.
    seats: Mutex<HashMap<String, usize>>,
    /// Changes whenever one is closed.
    closed: watch::Sender<()>,
}

impl Terminals {
    /// Terminals that run on the present runtime.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            inner: Arc::new(Inner {
                options,
                stats: Arc::default(),
                runtime: Handle::current(),
                stopping: watch::Sender::new(false),
                seats: Mutex::default(),
                closed: watch::Sender::new(()),
            }),
        }
    }

    /// Registers the route. Call it before the framework's own.
    pub fn configure(&self, cfg: &mut web::ServiceConfig) {
        let inner = self.inner.clone();
        let open = move |req, payload, app| {
            let inner = inner.clone();
            async move { open::open(&inner, req, payload, app).await }
        };
        cfg.service(web::resource("/spaces/{id}/terminal").route(web::get().to(open)));
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        self.inner.stats.clone()
    }

    /// Asks all terminals to end, and those that still come; waits until they
    /// have, with their records, at most this long.
    pub async fn shut_down(&self, within: Duration) {
        self.inner.stopping.send_replace(true);
        let mut closed = self.inner.closed.subscribe();
        let all = async {
            while !self.inner.seats().is_empty() {
                if closed.changed().await.is_err() {
                    break;
                }
            }
        };
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!(open = self.inner.seats().len(), "terminals did not end in time");
        }
    }
}

impl Inner {
    fn seats(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more terminal in a space.
    pub(crate) fn sit(self: &Arc<Self>, space: &str) -> Result<Seat> {
        if *self.stopping.borrow() {
            return Err(Error::unavailable("the server is about to end", 1));
        }
        let mut seats = self.seats();
        let all: usize = seats.values().sum();
        if all >= self.options.most {
            let text = format!("{all} terminals are open, as many as the server has room for");
            return Err(Error::unavailable(text, 10).class("TooManyTerminalsError"));
        }
        let mine = seats.entry(space.to_owned()).or_default();
        if *mine >= self.options.most_in_space {
            let text =
                format!("{mine} terminals are open in the space, and no more are possible; close one first");
            return Err(Error::new(Kind::Conflict, text).class("TooManyTerminalsError"));
        }
        *mine += 1;
        self.stats.opened();
        Ok(Seat { inner: self.clone(), space: space.to_owned() })
    }
}

/// The place of one terminal.
#[derive(Debug)]
pub(crate) struct Seat {
    inner: Arc<Inner>,
    space: String,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.inner.seats();
        if let Some(count) = seats.get_mut(&self.space) {
            *count -= 1;
            if *count == 0 {
                seats.remove(&self.space);
            }
        }
        drop(seats);
        self.inner.stats.closed();
        self.inner.closed.send_replace(());
    }
}
