//! Metrics, in one registry per process, for `GET /metrics`.

use std::sync::LazyLock;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder};

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

fn register<C: prometheus::core::Collector + Clone + 'static>(made: prometheus::Result<C>) -> C {
    // Names and labels are constants above: a wrong one shows at the first start.
    let collector = made.expect("metric names are valid");
    REGISTRY.register(Box::new(collector.clone())).expect("each metric is registered once");
    collector
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
