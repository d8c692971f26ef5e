//! What goes on for long is asked now and then whether it may.

use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc};

use tokio::time::{Instant, sleep_until};

use crate::{Activity, Ask, Inner, Route, through::Way};

/// Why a tunnel or a long answer must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing has moved for too long.
    Idle,
    /// The space has stopped or moved, or the caller has lost the right to it.
    Lost,
    /// The server stops.
    Stopping,
}

/// A tunnel or a long answer.
pub(crate) struct Watched {
    pub(crate) inner: Arc<Inner>,
    pub(crate) ask: Rc<Ask>,
    pub(crate) addr: SocketAddr,
    pub(crate) way: Option<Way>,
    pub(crate) moved: Rc<Moved>,
    /// End it as soon as the server begins to stop, since it would not end of itself.
    pub(crate) endless: bool,
    /// Report what moved as activity.
    pub(crate) report: bool,
}

/// What has moved, and when last.
pub(crate) struct Moved {
    last: Cell<Instant>,
    up: Cell<u64>,
    down: Cell<u64>,
}

impl Moved {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { last: Cell::new(Instant::now()), up: Cell::new(0), down: Cell::new(0) })
    }

    pub(crate) fn up(&self, n: usize) {
        self.last.set(Instant::now());
        self.up.set(self.up.get() + n as u64);
    }

    pub(crate) fn down(&self, n: usize) {
        self.last.set(Instant::now());
        self.down.set(self.down.get() + n as u64);
    }

    pub(crate) fn last(&self) -> Instant {
        self.last.get()
    }
}

/// Resolves when the watched must end.
pub(crate) async fn watch(it: Watched) -> End {
    let options = &it.inner.options;
    let mut stopping = it.inner.stopping.subscribe();
    let mut next_ask = Instant::now() + options.recheck;
    loop {
        let idle_end = it.moved.last() + options.idle_timeout;
        tokio::select! {
            () = sleep_until(idle_end.min(next_ask)) => {}
            _ = stopping.wait_for(|s| *s), if it.endless => return End::Stopping,
        }
        let now = Instant::now();
        if now >= it.moved.last() + options.idle_timeout {
            return End::Idle;
        }
        if now < next_ask {
            continue;
        }
        next_ask = now + options.recheck;
        let (up, down) = (it.moved.up.take(), it.moved.down.take());
        if it.report && up + down > 0 {
            it.inner.resolver.activity(&it.ask.sid, Activity::Tunnel { up, down });
        }
        match it.inner.resolver.resolve(&it.ask).await.route {
            Route::Open { addr, through, .. } if addr == it.addr && through.clone().map(Way) == it.way => {}
            // Not knowing is no reason to throw somebody out.
            Route::Unavailable => {}
            _ => return End::Lost,
        }
    }
}
