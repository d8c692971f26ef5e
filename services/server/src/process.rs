//! What every way to start shares: the runtime, the log, signals, migrations.

use std::io::IsTerminal as _;

use podyard::db::{self, DatabaseUrl, Db};
use podyard::registry::Registry;
use podyard::telemetry::{LogGuard, log_writer};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, MigrateArgs};

/// Runs a command on a runtime of a few threads; HTTP has its own.
pub(crate) fn block_on<F: Future<Output = Result<(), String>>>(future: F) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let result = runtime.block_on(future);
    // What still blocks (a stop that waits for its program) must not hold the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

/// Starts the log, which is written until the guard is dropped.
pub(crate) fn log(filter: &str, format: LogFormat) -> Result<LogGuard, String> {
    // The client of clusters tells of each failed try, which Podyard does once and in its
    // own words; who wants to hear it names it.
    let filter = EnvFilter::try_new(format!("kube_client=off,kube_runtime=off,{filter}"))
        .map_err(|e| format!("--log {filter}: {e}"))?;
    let (writer, guard) = log_writer();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let text = match format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    };
    if text {
        builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
    } else {
        builder.json().flatten_event(true).with_target(false).with_current_span(false).init();
    }
    Ok(guard)
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn asked_to_end() -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut int = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: ends what is under way"),
        _ = int.recv() => tracing::info!("SIGINT: ends what is under way"),
    }
    Ok(())
}

/// `podyard migrate`.
pub(crate) fn migrate(args: &MigrateArgs) -> Result<(), String> {
    let url = args.data.database();
    let (names, word) = if args.dry_run {
        (podyard::db::pending(&url).map_err(|e| e.to_string())?, "pending")
    } else {
        (podyard::db::migrate(&url).map_err(|e| e.to_string())?, "done")
    };
    for name in &names {
        println!("{word}: {name}");
    }
    println!("{}: {} migrations {word}", url.redacted(), names.len());
    if args.check { check(&url) } else { Ok(()) }
}

/// Each table against its struct.
fn check(url: &DatabaseUrl) -> Result<(), String> {
    let db = Db::open(url, db::Options::default()).map_err(|e| e.to_string())?;
    let registry = Registry::collect();
    let metas: Vec<_> = registry.types().map(|of| of.handler.meta()).collect();
    let found = db.read_blocking(move |conn| {
        let mut types = metas.len();
        let mut all = Vec::new();
        for meta in &metas {
            all.extend(db::differences(conn, meta)?);
        }
        if all.is_empty() {
            for meta in podyard::runtime::metas(conn)? {
                all.extend(db::differences(conn, meta)?);
                types += 1;
            }
        }
        Ok((all, types))
    });
    let (found, types) = found.map_err(|e| e.to_string())?;
    for line in &found {
        println!("differs: {line}");
    }
    if found.is_empty() {
        println!("{types} types: tables and structs agree");
        return Ok(());
    }
    Err(format!("{} differences between tables and structs", found.len()))
}
