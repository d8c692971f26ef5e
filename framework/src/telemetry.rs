//! Metrics, in one registry per process, for `GET /metrics`; and what writes the log.

use std::io::{BufWriter, Stderr, Write};
use std::sync::LazyLock;
use std::time::Duration;

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// The registry that `GET /metrics` shows.
#[must_use]
pub fn registry() -> &'static Registry {
    &REGISTRY
}

/// Requests by method, resource type and status.
pub static REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new("podyard_http_requests_total", "Requests by method, resource type and status.");
    register(IntCounterVec::new(opts, &["method", "resource", "status"]))
});

/// Time from the request's head to its answer.
pub static DURATION: LazyLock<HistogramVec> = LazyLock::new(|| {
    let opts = HistogramOpts::new("podyard_http_request_duration_seconds", "Time to the answer.")
        .buckets(vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]);
    register(HistogramVec::new(opts, &["method", "resource"]))
});

/// Time that an attempt at a stage took, by kind of task.
pub(crate) static STAGES: LazyLock<HistogramVec> = LazyLock::new(|| {
    let opts = HistogramOpts::new("podyard_task_stage_duration_seconds", "Time that an attempt took.")
        .buckets(vec![0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 600.0]);
    register(HistogramVec::new(opts, &["kind"]))
});

/// Attempts at stages by kind and what came of them.
pub(crate) static ATTEMPTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new("podyard_task_attempts_total", "Attempts at stages, by what came of them.");
    register(IntCounterVec::new(opts, &["kind", "outcome"]))
});

/// Tasks that ended, by kind and status; `failed` are the dead letters.
pub(crate) static TASKS_ENDED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new("podyard_task_ends_total", "Tasks that ended, by kind and status.");
    register(IntCounterVec::new(opts, &["kind", "status"]))
});

/// Tasks that could run now, by kind.
pub(crate) static TASKS_DUE: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let help = "Tasks that could run now, in all processes; counted up to 1000 for each project.";
    register(IntGaugeVec::new(Opts::new("podyard_tasks_due", help), &["kind"]))
});

/// Since when the oldest of them waits.
pub(crate) static TASKS_OLDEST: LazyLock<GaugeVec> = LazyLock::new(|| {
    let opts =
        Opts::new("podyard_tasks_oldest_due_seconds", "Since when the oldest task that could run waits.");
    register(GaugeVec::new(opts, &["kind"]))
});

/// Kinds of tasks that are paused.
pub(crate) static KINDS_PAUSED: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register(IntGaugeVec::new(
        Opts::new("podyard_task_kind_paused", "1 while the kind is paused."),
        &["kind"],
    ))
});

/// What the last look for stuck tasks found.
pub(crate) static TASKS_STUCK: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let help = "What the last look found stuck: queues that nobody takes from (unclaimed), tasks that nothing \
                would wake (asleep), objects whose tasks wait behind none (headless).";
    register(IntGaugeVec::new(Opts::new("podyard_tasks_stuck", help), &["why"]))
});

/// Stuck tasks that were set right.
pub(crate) static TASKS_REPAIRED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new("podyard_tasks_repaired_total", "Stuck tasks that were set right.");
    register(IntCounterVec::new(opts, &["why"]))
});

fn register<C: prometheus::core::Collector + Clone + 'static>(made: prometheus::Result<C>) -> C {
    // Names and labels are constants above: a wrong one shows at the first start.
    let collector = made.expect("metric names are valid");
    REGISTRY.register(Box::new(collector.clone())).expect("each metric is registered once");
    collector
}

/// Lines of the log that may wait to be written; more are lost, and counted.
const LOG_LINES: usize = 16_384;

/// How long lines of the log gather before they are written.
const LOG_EVERY: Duration = Duration::from_millis(20);

pub use tracing_appender::non_blocking::{NonBlocking as LogWriter, WorkerGuard as LogGuard};

/// What writes the log to the standard error, until the guard is dropped: a
/// thread of its own, so that no request waits for a log that nobody reads.
pub fn log_writer() -> (LogWriter, LogGuard) {
    let (writer, guard) = tracing_appender::non_blocking::NonBlockingBuilder::default()
        .buffered_lines_limit(LOG_LINES)
        .thread_name("log")
        .finish(Gathered(BufWriter::with_capacity(1 << 16, std::io::stderr())));
    let lost = writer.error_counter();
    watch(
        "podyard_log_lines_lost_total",
        "counter",
        "Lines of the log that were lost, since nobody read them.",
        move || f64::from(u32::try_from(lost.dropped_lines()).unwrap_or(u32::MAX)),
    );
    (writer, guard)
}

/// Writes what has gathered at once, and rests after it: to wake this thread
/// for each line costs whoever logs more than the line itself.
struct Gathered(BufWriter<Stderr>);

impl Write for Gathered {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.write(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let done = self.0.flush();
        std::thread::sleep(LOG_EVERY);
        done
    }
}

type Reading = (&'static str, &'static str, &'static str, Box<dyn Fn() -> f64 + Send + Sync>);

static READINGS: std::sync::Mutex<Vec<Reading>> = std::sync::Mutex::new(Vec::new());

/// Adds a number that is read when somebody looks: `kind` is `gauge` or `counter`.
pub fn watch(
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    read: impl Fn() -> f64 + Send + Sync + 'static,
) {
    READINGS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((
        name,
        kind,
        help,
        Box::new(read),
    ));
}

/// All metrics in Prometheus' text format.
#[must_use]
pub fn render() -> String {
    let mut text = String::new();
    // Writing to a String fails for invalid metrics only, and these are registered.
    let _ = TextEncoder::new().encode_utf8(&REGISTRY.gather(), &mut text);
    for (name, kind, help, read) in READINGS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter()
    {
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {}\n", read()));
    }
    crate::worker::render(&mut text);
    text
}
