//! Where tests strike: each transaction of the engine and each run of a stage
//! is a point at which [`super::testkit`] can have it fail or the process die.
//! Nothing happens, and nothing is counted, unless a test armed it.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// On which side of a point it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing is done.
    Before,
    /// It is done (a transaction is committed), but nobody hears of it.
    After,
}

/// What happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The process dies: it does nothing more.
    Die,
    /// It gets an error, as of a connection that broke, and lives on.
    GoOn,
}

/// A point in the life of an engine: the kind of transaction (`claim`,
/// `commit`, `effect`, `beat`, `recover`, `reclaim`, `clock`, `tidy`, `give back`), or
/// `stage`; and the how manieth of its kind since the engine began, from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// The kind.
    pub kind: String,
    /// The how manieth.
    pub nth: usize,
}

/// A failure that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub at: Point,
    /// Before or after.
    pub when: When,
    /// And then.
    pub then: Then,
}

#[derive(Debug, Default)]
struct State {
    fault: Option<Fault>,
    counts: HashMap<String, usize>,
    passed: Vec<Point>,
    struck: bool,
    /// Stages that this process is not to know.
    unknown: Vec<String>,
}

/// The points of one engine.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    armed: AtomicBool,
    dead: AtomicBool,
    /// Transactions between a point's beginning and its end.
    inside: AtomicUsize,
    state: Mutex<State>,
}

/// Counts who is inside of a point.
struct Inside<'a>(&'a AtomicUsize);

impl<'a> Inside<'a> {
    fn of(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn broken() -> Error {
    Error::unavailable("a test broke the connection", 1)
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the points from now on, and strikes at one.
    pub(super) fn arm(&self, fault: Option<Fault>) {
        self.state().fault = fault;
        self.armed.store(true, Ordering::Release);
    }

    /// Has this process not know a stage, as one of an earlier version.
    pub(super) fn unlearn(&self, stage: &str) {
        self.state().unknown.push(stage.to_owned());
        self.armed.store(true, Ordering::Release);
    }

    /// Whether it knows it.
    pub(super) fn knows(&self, stage: &str) -> bool {
        !self.armed.load(Ordering::Relaxed) || !self.state().unknown.iter().any(|it| it == stage)
    }

    /// Whether the process has died.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Whether it has struck.
    pub(super) fn struck(&self) -> bool {
        self.state().struck
    }

    /// Has it die now.
    pub(super) fn die(&self) {
        self.armed.store(true, Ordering::Release);
        self.dead.store(true, Ordering::Release);
    }

    /// Who is inside of a point, which ends although the process is dead.
    pub(super) fn inside(&self) -> usize {
        self.inside.load(Ordering::Acquire)
    }

    /// The points that were passed.
    pub(super) fn passed(&self) -> Vec<Point> {
        self.state().passed.clone()
    }

    fn enter(&self, kind: &str) -> Option<(When, Then)> {
        let mut state = self.state();
        let count = state.counts.entry(kind.to_owned()).or_default();
        let at = Point { kind: kind.to_owned(), nth: *count };
        *count += 1;
        state.passed.push(at.clone());
        let fault = state.fault.take_if(|it| it.at == at)?;
        state.struck = true;
        Some((fault.when, fault.then))
    }

    /// Passes a point.
    pub(super) async fn at<R>(&self, kind: &str, doing: impl Future<Output = Result<R>>) -> Result<R> {
        if !self.armed.load(Ordering::Relaxed) {
            return doing.await;
        }
        if self.is_dead() {
            return pending().await;
        }
        // What a stage does dies with its process; a statement that was sent does not.
        let inside = (kind != "stage").then(|| Inside::of(&self.inside));
        let struck = self.enter(kind);
        let result = match struck {
            None => doing.await,
            Some((When::Before, _)) => Err(broken()),
            Some((When::After, _)) => doing.await.and_then(|_| Err(broken())),
        };
        if matches!(struck, Some((_, Then::Die))) {
            self.die();
        }
        drop(inside);
        // Who is dead hears no answer.
        if self.is_dead() { pending().await } else { result }
    }

    /// As [`Faults::at`], on a thread that may block.
    pub(super) fn at_blocking<R>(&self, kind: &str, doing: impl FnOnce() -> Result<R>) -> Result<R> {
        if !self.armed.load(Ordering::Relaxed) {
            return doing();
        }
        if self.is_dead() {
            return Err(broken());
        }
        let _inside = Inside::of(&self.inside);
        match self.enter(kind) {
            None => doing(),
            Some((when, then)) => {
                let result =
                    if when == When::After { doing().and_then(|_| Err(broken())) } else { Err(broken()) };
                if then == Then::Die {
                    self.die();
                }
                result
            }
        }
    }
}
