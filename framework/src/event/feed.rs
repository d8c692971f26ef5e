//! The reader of the log, one per process, and what all watchers share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OnceCell, broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{Change, Position, store, tasks};
use crate::ctx::{Core, now};
use crate::db::{self, Cost};
use crate::{Error, Kind, Result, telemetry};

/// How the change feed of a process behaves.
#[derive(Debug, Clone)]
pub struct FeedOptions {
    /// How often to look for what other processes wrote, while somebody watches.
    pub poll: Duration,
    /// How long records are kept.
    pub retention: Duration,
    /// How often the log is swept.
    pub sweep: Duration,
    /// A sign of life after so much silence.
    pub heartbeat: Duration,
    /// How often a watcher's token is looked at.
    pub check: Duration,
    /// A client that takes nothing for so long is dropped.
    pub stall: Duration,
    /// Most streams of one user.
    pub per_user: usize,
    /// Most streams of the process.
    pub per_process: usize,
}

impl Default for FeedOptions {
    fn default() -> Self {
        Self {
            poll: Duration::from_millis(300),
            retention: Duration::from_secs(90 * 24 * 3600),
            sweep: Duration::from_secs(600),
            heartbeat: Duration::from_secs(15),
            check: Duration::from_secs(2),
            stall: Duration::from_secs(60),
            per_user: 50,
            per_process: 2000,
        }
    }
}

/// Records that were read at once. A watcher that stands before `from` has
/// missed some and reads the log itself.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) from: Position,
    pub(super) to: Position,
    pub(super) changes: Vec<Change>,
}

/// Batches that a watcher may be behind before it has to read the log itself.
const BEHIND: usize = 64;

/// The change feed of a process. Without [`run`] nothing is ever told.
#[derive(Clone)]
pub struct Feed(Arc<Shared>);

struct Shared {
    options: FeedOptions,
    batches: broadcast::Sender<Arc<Batch>>,
    /// A commit, or the first watcher.
    wake: Notify,
    stop: watch::Sender<bool>,
    watchers: AtomicUsize,
    by_user: Mutex<HashMap<String, usize>>,
    sent: AtomicU64,
    lag_us: AtomicI64,
    log: OnceCell<Arc<str>>,
}

impl Feed {
    /// Not running.
    #[must_use]
    pub fn new(options: FeedOptions) -> Self {
        Self(Arc::new(Shared {
            options,
            batches: broadcast::Sender::new(BEHIND),
            wake: Notify::new(),
            stop: watch::Sender::new(false),
            watchers: AtomicUsize::new(0),
            by_user: Mutex::default(),
            sent: AtomicU64::new(0),
            lag_us: AtomicI64::new(0),
            log: OnceCell::new(),
        }))
    }

    /// How it behaves.
    #[must_use]
    pub fn options(&self) -> &FeedOptions {
        &self.0.options
    }

    /// How many streams are open.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.0.watchers.load(Ordering::Relaxed)
    }

    /// What the log of the process's database is called.
    pub(super) async fn log(&self, core: &Core) -> Result<Arc<str>> {
        let ask = || async { Ok(core.db.write(None, store::name).await?.value.into()) };
        self.0.log.get_or_try_init(ask).await.cloned()
    }

    /// Ends all streams, so that their clients go elsewhere, and takes no more.
    pub fn shut_down(&self) {
        self.0.stop.send_replace(true);
    }

    /// Adds its numbers to `GET /metrics`.
    #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
    pub fn readings(&self) {
        let it = self.clone();
        telemetry::watch("podyard_watchers", "gauge", "Open watch streams.", move || it.watchers() as f64);
        let it = self.clone();
        telemetry::watch("podyard_events_sent_total", "counter", "Events sent to watchers.", move || {
            it.0.sent.load(Ordering::Relaxed) as f64
        });
        let it = self.clone();
        let help =
            "Seconds from the oldest record that watchers have not got; 0: nobody watches or nothing waits.";
        telemetry::watch("podyard_feed_lag_seconds", "gauge", help, move || {
            it.0.lag_us.load(Ordering::Relaxed) as f64 / 1e6
        });
    }

    /// A record was written in the transaction that runs: once it is on disk,
    /// the reader looks. Costs a load while nobody watches.
    pub(crate) fn will_change(&self) {
        if self.watchers() > 0 {
            let it = self.clone();
            db::after_commit(move || it.0.wake.notify_one());
        }
    }

    pub(super) fn stopped(&self) -> watch::Receiver<bool> {
        self.0.stop.subscribe()
    }

    pub(super) fn sent(&self, events: usize) {
        self.0.sent.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// A place among the watchers, and what they are told from now on.
    pub(super) fn join(&self, user_id: &str) -> Result<(Seat, broadcast::Receiver<Arc<Batch>>)> {
        let options = &self.0.options;
        if *self.0.stop.borrow() {
            return Err(Error::unavailable("the server is shutting down", 1));
        }
        let refused = |text: String| {
            Err(Error::new(Kind::TooManyRequests, text).class("TooManyWatchersError").retry_after(10))
        };
        let mut by_user = self.0.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        if self.watchers() >= options.per_process {
            return refused(format!("{} streams are open on this server already", options.per_process));
        }
        let open = by_user.entry(user_id.to_owned()).or_default();
        if *open >= options.per_user {
            return refused(format!("you have {} streams open already", options.per_user));
        }
        *open += 1;
        self.0.watchers.fetch_add(1, Ordering::Relaxed);
        drop(by_user);
        let batches = self.0.batches.subscribe();
        self.0.wake.notify_one();
        Ok((Seat { feed: self.clone(), user_id: user_id.to_owned() }, batches))
    }

    fn publish(&self, batch: Batch) {
        // Nobody may be there any more.
        let _ = self.0.batches.send(Arc::new(batch));
    }
}

/// A watcher's place, given back when dropped.
pub(super) struct Seat {
    feed: Feed,
    user_id: String,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut by_user = self.feed.0.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = by_user.get_mut(&self.user_id) {
            *open -= 1;
            if *open == 0 {
                by_user.remove(&self.user_id);
            }
        }
        self.feed.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The running feed of a process; it ends when dropped.
pub struct Running(Vec<JoinHandle<()>>);

impl Drop for Running {
    fn drop(&mut self) {
        for handle in &self.0 {
            handle.abort();
        }
    }
}

/// Runs the feed on the tokio runtime of the caller, and keeps the log short.
///
/// # Panics
/// Outside of a tokio runtime.
#[must_use]
pub fn run(core: &Arc<Core>) -> Running {
    let (reader, short, tasks) = (follow(core.clone()), keep_short(core.clone()), tasks::keep(core.clone()));
    Running(vec![tokio::spawn(reader), tokio::spawn(short), tokio::spawn(tasks)])
}

/// After a commit that is not settled yet, PostgreSQL is asked again so soon,
/// then later and later up to the poll.
const SOON: Duration = Duration::from_millis(5);

/// How often it is looked up what waits behind an open transaction.
const LAG: Duration = Duration::from_secs(2);

async fn follow(core: Arc<Core>) {
    let feed = core.feed.clone();
    let shared = &feed.0;
    loop {
        while feed.watchers() == 0 {
            shared.lag_us.store(0, Ordering::Relaxed);
            shared.wake.notified().await;
        }
        let mut at = match core.db.read(Cost::Bounded, store::end).await {
            Ok(done) => done.value,
            Err(error) => {
                tracing::warn!(%error, "the change feed cannot be read");
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        tracing::debug!(%at, "the change feed is followed");
        // Whoever began before reads what is in between.
        feed.publish(Batch { from: at, to: at, changes: Vec::new() });
        let mut pause = shared.options.poll;
        let mut looked = Instant::now();
        while feed.watchers() > 0 {
            match core.db.read(Cost::Bounded, move |conn| store::changes(conn, at)).await {
                Ok(done) => {
                    let changes = done.value.changes;
                    if let (Some(first), Some(last)) = (changes.first(), changes.last()) {
                        let lag = now().timestamp_micros() - first.made_at;
                        shared.lag_us.store(lag, Ordering::Relaxed);
                        let to = last.at;
                        tracing::debug!(records = changes.len(), from = %at, %to, lag_us = lag, "changes");
                        feed.publish(Batch { from: at, to, changes });
                        at = to;
                        looked = Instant::now();
                        continue;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the change feed cannot be read");
                    pause = Duration::from_secs(1);
                }
            }
            if looked.elapsed() > LAG {
                looked = Instant::now();
                let waits = core.db.read(Cost::Bounded, move |conn| store::waiting_since(conn, at)).await;
                let since = waits.ok().and_then(|done| done.value);
                let lag = since.map_or(0, |since| now().timestamp_micros() - since);
                shared.lag_us.store(lag, Ordering::Relaxed);
            }
            pause = match timeout(pause, shared.wake.notified()).await {
                Ok(()) => SOON,
                Err(_) => (pause * 2).min(shared.options.poll),
            };
        }
        tracing::debug!("nobody watches any more");
    }
}

/// Removes what is older than the retention, a little at a time.
async fn keep_short(core: Arc<Core>) {
    if let Err(error) = core.db.write(None, store::settle_count).await {
        tracing::warn!(%error, "the log's transaction numbers could not be compared");
    }
    let options = core.feed.options();
    loop {
        let keep = i64::try_from(options.retention.as_micros()).unwrap_or(i64::MAX / 2);
        let before = now().timestamp_micros() - keep;
        let mut gone = 0;
        loop {
            match core.db.write(None, move |conn| store::sweep(conn, before)).await {
                Ok(done) if done.value == 0 => break,
                Ok(done) => gone += done.value,
                Err(error) => {
                    tracing::warn!(%error, "the log could not be swept");
                    break;
                }
            }
            // Writers come first.
            sleep(Duration::from_millis(50)).await;
        }
        if gone > 0 {
            tracing::info!(records = gone, "old records were removed from the log");
        }
        // Processes that started together need not sweep together.
        let spread = options.sweep.mul_f64(rand::random_range(0.9..1.1));
        sleep(spread).await;
    }
}
