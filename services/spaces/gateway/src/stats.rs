//! Counters that the server can export.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// What the gateway has done since it was made. All counters only grow, except
/// [`open_tunnels`](Self::open_tunnels).
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests to `/ws/…`, whatever became of them.
    pub requests: AtomicU64,
    /// Tunnels opened.
    pub tunnels: AtomicU64,
    /// Tunnels open now.
    pub open_tunnels: AtomicU64,
    /// Bytes of bodies and tunnels from clients to programs.
    pub bytes_up: AtomicU64,
    /// Bytes of bodies and tunnels from programs to clients.
    pub bytes_down: AtomicU64,
    /// Programs that could not be reached, did not answer in time or broke off.
    pub upstream_errors: AtomicU64,
    /// Requests sent a second time because the pooled connection was dead.
    pub retries: AtomicU64,
}

impl Stats {
    pub(crate) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Relaxed);
    }

    /// Counts a tunnel as open until the guard is dropped.
    pub(crate) fn tunnel(self: &Arc<Self>) -> OpenTunnel {
        Self::add(&self.tunnels, 1);
        Self::add(&self.open_tunnels, 1);
        OpenTunnel(self.clone())
    }
}

/// One open tunnel.
pub(crate) struct OpenTunnel(Arc<Stats>);

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.open_tunnels.fetch_sub(1, Relaxed);
    }
}
