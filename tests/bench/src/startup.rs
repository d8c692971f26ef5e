//! The process itself: how soon it is there, and what it takes while nobody asks for anything.

use std::{fs, path::Path, process::Command, time::Duration};

use crate::{
    Result,
    process::{self, Server},
    report::{Bar, Limit, Report, Table},
};

/// Starts with an existing database; the best counts.
const STARTS: usize = 5;

/// Measures the real server.
pub async fn measure(program: &Path, quick: bool, report: &mut Report) -> Result<()> {
    eprintln!("starting {} from nothing, and again", program.display());
    let folder = tempfile::Builder::new().prefix("podyard-bench-").tempdir()?;
    let data = folder.path().join("data");
    let log = folder.path().join("log");
    let start = async || {
        let address = process::free_address()?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--listen").arg(address.to_string()).arg("--data-dir").arg(&data);
        Server::start("podyard", &mut command, address, "/readyz", &log).await
    };

    let server = start().await?;
    let first = server.ready_after;
    let mut stops = vec![server.stop()?];
    let mut again = Vec::new();
    for _ in 1..STARTS {
        let server = start().await?;
        again.push(server.ready_after);
        stops.push(server.stop()?);
    }
    let server = start().await?;
    again.push(server.ready_after);
    let calm = Duration::from_secs(if quick { 2 } else { 10 });
    tokio::time::sleep(calm).await;
    let before = process::cpu(server.id());
    let rest = Duration::from_secs(if quick { 3 } else { 20 });
    tokio::time::sleep(rest).await;
    let idle = process::cpu(server.id()).saturating_sub(before).as_secs_f64() / rest.as_secs_f64();
    let resident = process::resident(server.id());
    stops.push(server.stop()?);

    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let best = |times: &[Duration]| times.iter().min().copied().map_or(f64::NAN, milliseconds);
    let (again, stop) = (best(&again), best(&stops));
    report.heading(2, "The process");
    let mut table = Table::new(&["figure", "value"]);
    for (name, value) in [
        ("first start to ready, empty folder", format!("{:.0} ms", milliseconds(first))),
        ("start to ready, existing database (best of 5)", format!("{again:.0} ms")),
        ("SIGTERM to the end, at rest (best of 6)", format!("{stop:.0} ms")),
        ("resident memory at rest", format!("{resident:.1} MiB")),
        ("CPU at rest", format!("{:.2} % of a core", idle * 100.0)),
        ("program", format!("{:.1} MiB", fs::metadata(program)?.len() as f64 / 1_048_576.0)),
    ] {
        table.row([name.to_owned(), value]);
    }
    report.table(&table);
    for (name, value, limit, unit) in [
        ("ready at the first start", milliseconds(first), 1000.0, " ms"),
        ("ready with an existing database", again, 300.0, " ms"),
        ("resident memory at rest", resident, 50.0, " MiB"),
    ] {
        report.bar(Bar { name: name.to_owned(), value, limit: Limit::AtMost(limit), unit });
    }
    Ok(())
}
