//! Counters that the server can export.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the terminals have done since the server began.
#[derive(Debug, Default)]
pub struct Stats {
    /// Terminals opened.
    pub opened: AtomicU64,
    /// Terminals open now.
    pub open: AtomicU64,
    /// Tasks that carry their bytes now.
    pub tasks: AtomicU64,
    /// Bytes typed.
    pub typed: AtomicU64,
    /// Bytes shown.
    pub shown: AtomicU64,
}

impl Stats {
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// Counts a task until the guard is dropped.
    pub(crate) fn task(self: &std::sync::Arc<Self>) -> Task {
        self.tasks.fetch_add(1, Relaxed);
        Task(self.clone())
    }
}

/// One task that runs.
#[derive(Debug)]
pub(crate) struct Task(std::sync::Arc<Stats>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Relaxed);
    }
}
