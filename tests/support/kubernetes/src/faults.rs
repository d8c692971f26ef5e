//! Faults that are put in on purpose, and the count of what was asked.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::status::Failure;

/// A fault, as `POST /_double/faults` takes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Fault {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; all if left out.
    #[serde(default)]
    verb: Option<String>,
    /// `pods`, `pods/exec`; all if left out.
    #[serde(default)]
    resource: Option<String>,
    /// How many requests it meets; every one if left out.
    #[serde(default)]
    count: Option<u64>,
    /// The request is held this long first, in milliseconds.
    #[serde(default)]
    delay_ms: u64,
    /// The answer. None: only held.
    #[serde(default)]
    status: Option<u16>,
    /// `Retry-After`, in seconds.
    #[serde(default)]
    retry_after: Option<u64>,
    /// Another reason than the status's usual one.
    #[serde(default)]
    message: Option<String>,
    /// The connection is cut: `before` the request is carried out, or `after` it.
    #[serde(default)]
    cut: Option<String>,
}

/// What is done to a request.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub delay: Duration,
    pub failure: Option<Failure>,
    /// The connection is cut without an answer.
    pub cut_before: bool,
    /// It is carried out, and the connection is cut all the same.
    pub cut_after: bool,
}

/// How the watches of a kind are disturbed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Disturbance {
    /// Nothing is sent any more, and the stream stays open.
    pub silent: bool,
    /// Every event is sent this often beside the first time.
    pub duplicates: u32,
    /// Events are held this long: those of other kinds overtake them.
    pub delay_ms: u64,
}

/// The newest end that was put to watches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut {
    count: u64,
    /// The kind; empty for all.
    pub of: String,
    /// Whether the streams end as they should.
    pub clean: bool,
}

#[derive(Debug)]
pub(crate) struct Faults {
    faults: Mutex<Vec<Fault>>,
    counts: Mutex<BTreeMap<String, u64>>,
    /// By store; `*` for all.
    disturbances: watch::Sender<BTreeMap<String, Disturbance>>,
    /// When open watches are to end.
    cuts: watch::Sender<Cut>,
}

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faults {
    pub fn new() -> Self {
        Self {
            faults: Mutex::default(),
            counts: Mutex::default(),
            disturbances: watch::channel(BTreeMap::new()).0,
            cuts: watch::channel(Cut::default()).0,
        }
    }

    pub fn add(&self, fault: Fault) {
        lock(&self.faults).push(fault);
    }

    /// All is well again.
    pub fn clear(&self) {
        lock(&self.faults).clear();
        self.disturbances.send_replace(BTreeMap::new());
    }

    pub fn disturb(&self, store: &str, how: Disturbance) {
        self.disturbances.send_modify(|all| {
            all.insert(store.to_owned(), how);
        });
    }

    pub fn disturbed(&self, store: &str) -> Disturbance {
        let all = self.disturbances.borrow();
        all.get(store).or_else(|| all.get("*")).cloned().unwrap_or_default()
    }

    pub fn disturbances(&self) -> watch::Receiver<BTreeMap<String, Disturbance>> {
        self.disturbances.subscribe()
    }

    pub fn cut_watches(&self, store: &str, clean: bool) {
        self.cuts.send_modify(|cut| {
            cut.count += 1;
            cut.clean = clean;
            store.clone_into(&mut cut.of);
        });
    }

    pub fn cuts(&self) -> watch::Receiver<Cut> {
        self.cuts.subscribe()
    }

    /// Counts a request, and tells what is to become of it.
    pub fn judge(&self, verb: &str, resource: &str) -> Verdict {
        *lock(&self.counts).entry(format!("{verb} {resource}")).or_default() += 1;
        let mut verdict = Verdict::default();
        let mut faults = lock(&self.faults);
        for fault in &mut *faults {
            let meets = |wanted: &Option<String>, is: &str| {
                wanted.as_deref().is_none_or(|wanted| wanted == is || wanted == "*")
            };
            if fault.count == Some(0) || !meets(&fault.verb, verb) || !meets(&fault.resource, resource) {
                continue;
            }
            if let Some(count) = &mut fault.count {
                *count -= 1;
            }
            verdict.delay += Duration::from_millis(fault.delay_ms);
            verdict.cut_before |= fault.cut.as_deref() == Some("before");
            verdict.cut_after |= fault.cut.as_deref() == Some("after");
            if let Some(status) = fault.status {
                verdict.failure = Some(failure(status, fault, resource));
                break;
            }
        }
        faults.retain(|fault| fault.count != Some(0));
        verdict
    }

    pub fn counts(&self) -> Value {
        let counts = lock(&self.counts);
        json!({"total": counts.values().sum::<u64>(), "requests": *counts})
    }

    pub fn reset_counts(&self) {
        lock(&self.counts).clear();
    }
}

fn failure(status: u16, fault: &Fault, resource: &str) -> Failure {
    let (reason, message) = match status {
        400 => ("BadRequest", "the request is bad"),
        401 => ("Unauthorized", "Unauthorized"),
        403 => ("Forbidden", "is forbidden: access is refused"),
        404 => ("NotFound", "the server could not find the requested resource"),
        409 => (
            "Conflict",
            "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest version and try again",
        ),
        410 => ("Expired", "The resourceVersion for the provided list is too old."),
        429 => (
            "TooManyRequests",
            "the server has received too many requests and has asked us to try again later",
        ),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
        504 => ("Timeout", "the server was unable to return a response in the time allotted"),
        _ => ("InternalError", "Internal error occurred: the double was told to fail"),
    };
    let message = match &fault.message {
        Some(message) => message.clone(),
        None if status == 403 => format!("{resource} {message}"),
        None => message.to_owned(),
    };
    let mut failure = Failure::new(status, reason, message);
    failure.retry = fault.retry_after;
    if let Some(seconds) = fault.retry_after {
        failure = failure.details(json!({"retryAfterSeconds": seconds}));
    }
    failure
}
