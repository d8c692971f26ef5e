//! What [`crate::cache::Cache`] keeps behind its lock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use podyard_driver::{Exit, Observed, Phase};

use crate::claim::Kept;
use crate::seen::Seen;
use crate::why::{Ended, Stage};

/// When a start that goes on is looked at again, after it was first seen.
const LOOKS: [u64; 5] = [2, 5, 10, 20, 40];
/// And from then on how often.
const LATER: u64 = 60;

/// Why a run is over, or about to be, that somebody else has ended.
pub(crate) const DELETED: &str = "its pod was deleted in the cluster";
pub(crate) const NOT_WANTED: &str = "it was stopped in the cluster";
pub(crate) const BEING_DELETED: &str = "its pod is being deleted in the cluster";

/// A pod of a space and what was told of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) seen: Seen,
    /// What events say beyond the pod's status.
    pub(crate) events: String,
    /// How it ended, with the end of its log, once that was read.
    pub(crate) exit: Option<Exit>,
    /// When this process was first told of it by an answer of its own, before
    /// the watch has it.
    pub(crate) fresh: Option<Instant>,
    /// Whether somebody in this process is ending it.
    pub(crate) stopped: bool,
}

/// A run that is over and whose pod is gone.
#[derive(Debug)]
pub(crate) struct Tomb {
    pub(crate) instance: Box<str>,
    pub(crate) exit: Exit,
    pub(crate) since: Instant,
}

/// A run whose pod a controller is to make.
#[derive(Debug)]
pub(crate) struct Awaited {
    pub(crate) instance: Box<str>,
    pub(crate) since: Instant,
    /// Why it is not there.
    pub(crate) why: String,
    /// Whether there was none of this run yet.
    pub(crate) first: bool,
    /// When its resource was last asked for.
    pub(crate) asked: Option<Instant>,
}

/// A start that goes on.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) began: Instant,
    pub(crate) done: usize,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) pods: HashMap<String, Entry>,
    pub(crate) claims: HashMap<String, Kept>,
    pub(crate) tombs: HashMap<String, Tomb>,
    pub(crate) looks: HashMap<String, Look>,
    pub(crate) awaited: HashMap<String, Awaited>,
    /// Pods that are no more, of which the watch may still bring old news.
    pub(crate) dead: HashMap<Box<str>, Instant>,
    pub(crate) synced: (bool, bool),
    /// What the watches last failed at; none while they work.
    pub(crate) trouble: Option<String>,
}

impl Look {
    /// Whether it is time to look again.
    pub(crate) fn is_due(&self) -> bool {
        let after = match LOOKS.get(self.done) {
            Some(seconds) => *seconds,
            None => LATER * (self.done - LOOKS.len() + 1) as u64,
        };
        self.began.elapsed() >= Duration::from_secs(after)
    }
}

pub(crate) fn detail(entry: &Entry) -> String {
    if entry.seen.stage == Stage::Starting && !entry.events.is_empty() {
        entry.events.clone()
    } else if entry.seen.going && !entry.stopped && !entry.seen.is_over() {
        BEING_DELETED.to_owned()
    } else {
        entry.seen.why.clone()
    }
}

pub(crate) fn awaiting(space: &str, it: &Awaited) -> Observed {
    Observed {
        id: space.to_owned(),
        instance: it.instance.to_string(),
        phase: Phase::Starting,
        detail: it.why.clone(),
    }
}

pub(crate) fn exit_of(ended: &Ended, last_lines: Vec<String>) -> Exit {
    let at = if ended.at == 0 { jiff::Timestamp::now().as_microsecond() } else { ended.at };
    Exit { code: ended.code, signal: None, at, last_lines, reason: ended.reason.clone() }
}
