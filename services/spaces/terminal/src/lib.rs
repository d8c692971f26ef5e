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

use std::sync::Arc;
use std::time::Duration;

use actix_web::web;
use podyard::{Error, Result};
use podyard_spaces::{Full, Seat, Seats};
use tokio::runtime::Handle;

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
    /// Those who have one.
    seats: Arc<Seats>,
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
                seats: Arc::default(),
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
        self.inner.seats.shut_down();
        if tokio::time::timeout(within, self.inner.seats.empty()).await.is_err() {
            tracing::warn!(open = self.inner.seats.count(), "terminals did not end in time");
        }
    }
}

impl Inner {
    /// A place for one more terminal in a space.
    pub(crate) fn sit(self: &Arc<Self>, space: &str) -> Result<Place> {
        let Options { most, most_in_space, .. } = self.options;
        let seat = self.seats.take(space, most, most_in_space).map_err(|full| match full {
            Full::Stopping => Error::unavailable("the server is about to end", 1),
            Full::Server(all) => {
                let text = format!("{all} terminals are open, as many as the server has room for");
                Error::unavailable(text, 10).class("TooManyTerminalsError")
            }
            Full::Space(mine) => {
                let text = format!(
                    "{mine} terminals are open in the space, and no more are possible; close one first"
                );
                Error::conflict(text).class("TooManyTerminalsError")
            }
        })?;
        self.stats.opened();
        Ok(Place { seat, stats: self.stats.clone() })
    }
}

/// The place of one terminal, which is counted while it is open.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) seat: Seat,
    stats: Arc<Stats>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stats.closed();
    }
}
