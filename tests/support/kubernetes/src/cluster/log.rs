//! What a container wrote.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::value::nano_now;

/// A line, with its end unless it is the last and has none.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub at: String,
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Log {
    lines: Mutex<Vec<Line>>,
    /// How many there are, and whether the container has ended.
    news: watch::Sender<(usize, bool)>,
}

impl Log {
    pub fn new() -> Self {
        Self { lines: Mutex::default(), news: watch::channel((0, false)).0 }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self, bytes: &[u8]) {
        let mut lines = self.lock();
        lines.push(Line { at: nano_now(), bytes: bytes.to_vec() });
        let count = lines.len();
        drop(lines);
        self.news.send_modify(|it| it.0 = count);
    }

    pub fn end(&self) {
        self.news.send_modify(|it| it.1 = true);
    }

    pub fn from(&self, first: usize) -> Vec<Line> {
        self.lock().get(first..).unwrap_or_default().to_vec()
    }

    pub fn news(&self) -> watch::Receiver<(usize, bool)> {
        self.news.subscribe()
    }
}
