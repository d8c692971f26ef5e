//! Measures what the framework costs beside code written by hand, and prints a report.
//!
//! ```text
//! cargo run --release -p podyard-bench
//! cargo run --release -p podyard-bench -- rest --quick --database sqlite
//! ```

use std::{path::PathBuf, process::Command, time::Duration};

use clap::{Parser, ValueEnum};
use podyard_bench::{
    Result, engine, peers,
    process::sibling,
    report::Report,
    rest::{self, Contender, Database, Plan},
    startup, tasks,
};

/// The benchmarks of Podyard.
#[derive(Parser)]
struct Options {
    /// What to measure; all of it, unless said.
    sections: Vec<Section>,
    /// One short round instead of several: for a first look, not for figures to keep.
    #[arg(long)]
    quick: bool,
    /// The databases to measure on.
    #[arg(long, value_enum, default_value_t = Databases::Both)]
    database: Databases,
    /// Measures each cell so often and keeps the best (3, or 1 with --quick).
    #[arg(long)]
    rounds: Option<usize>,
    /// The numbers of connections.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    connections: Vec<usize>,
    /// Also writes the report to this file.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Exits with 1 if a bar is missed.
    #[arg(long)]
    check_bars: bool,
    /// The server to measure, with {listen}, {database} (a path or a postgres:// URL) and
    /// {folder} where those belong. Header lines to send are what it prints as `header: …`.
    #[arg(long, default_value = "bench-podyard --listen {listen} --database-url {database}")]
    podyard_cmd: String,
    /// A header line to send to it, as in "X-Auth-Token: …".
    #[arg(long)]
    podyard_header: Vec<String>,
    /// Another server to measure beside it, as in "no-oplog=bench-podyard --no-oplog …".
    #[arg(long, value_name = "NAME=COMMAND")]
    variant: Vec<String>,
    /// Also measures others, for readers of the report: beside the requests Django REST framework
    /// and FastAPI, beside the task engine graphile-worker, River and DBOS. Installs them from their
    /// registries into this folder, or finds them there.
    #[arg(long, value_name = "FOLDER")]
    peers: Option<PathBuf>,
    /// Measures the yardstick alone.
    #[arg(long)]
    yardstick_only: bool,
    /// The program whose start and memory are measured; the one beside this one, unless said.
    #[arg(long)]
    podyard: Option<PathBuf>,
    /// Does not build the servers first.
    #[arg(long)]
    no_build: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// What a request costs, beside the yardstick.
    Rest,
    /// Durable creates with one commit for all that wait, and with one each.
    Commits,
    /// A page in the middle of a million rows.
    Deep,
    /// How soon tasks run, and how many.
    Tasks,
    /// The task engine alone: rates, pick-up, recovery and claims, beside the engines of others.
    Engine,
    /// Start, stop, and memory and CPU at rest.
    Process,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Databases {
    Sqlite,
    Postgres,
    Both,
}

fn main() -> Result<()> {
    let options = Options::parse();
    // One thread for all of it: the load must leave the machine to the servers.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::default();
    let done = runtime.block_on(async {
        tokio::select! {
            done = measure(&options, &mut report) => done,
            // The servers and folders go as the other branch is dropped.
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        }
    });
    report.bars();
    println!("{}", report.text());
    if let Some(path) = &options.report {
        std::fs::write(path, report.text())?;
    }
    done?;
    if options.check_bars && report.has_missed() {
        return Err("a bar was missed".into());
    }
    Ok(())
}

async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let wanted = |section| options.sections.is_empty() || options.sections.contains(&section);
    if !options.no_build {
        build(options, wanted)?;
    }
    report.heading(1, "Podyard bench");
    report.paragraph(machine());
    if cfg!(debug_assertions) {
        report.paragraph("**A debug build: these figures mean nothing.**");
    }
    let plan = plan(options, wanted(Section::Rest))?;
    let databases = [(Database::Sqlite, Databases::Postgres), (Database::Postgres, Databases::Sqlite)];
    let databases = databases.into_iter().filter(|(_, other)| options.database != *other).map(|(it, _)| it);
    if wanted(Section::Rest) {
        report.paragraph(format!(
            "10,000 rows, 2,000 of each status. Rounds take turns between the servers; each cell is the \
             best of {} of {:.1} s each. CPU is user and system time of the server and of all processes \
             of the database, per request: the figure to trust, since it hardly moves with the load of \
             the machine. × is that figure against the yardstick's; a bar takes the worst of all numbers \
             of connections.",
            plan.rounds,
            plan.time.as_secs_f64()
        ));
        for database in databases.clone() {
            rest::measure(database, &plan, report).await?;
        }
    }
    if wanted(Section::Commits) && !options.yardstick_only {
        rest::commits(&plan, report).await?;
    }
    if wanted(Section::Deep) && !options.yardstick_only {
        for database in databases.clone() {
            rest::deep(database, &plan, report).await?;
        }
    }
    if wanted(Section::Tasks) && !options.yardstick_only {
        for database in databases.clone() {
            tasks::measure(database, &plan.contenders, report).await?;
        }
    }
    if wanted(Section::Engine) && !options.yardstick_only {
        let plan = engine::Plan {
            databases: databases.collect(),
            rounds: plan.rounds,
            quick: options.quick,
            peers: options.peers.as_deref(),
        };
        engine::measure(&plan, report).await?;
    }
    if wanted(Section::Process) {
        let program = match &options.podyard {
            Some(program) => program.clone(),
            None => sibling("podyard")?,
        };
        startup::measure(&program, options.quick, report).await?;
    }
    Ok(())
}

fn plan(options: &Options, peers: bool) -> Result<Plan> {
    let mut contenders = Vec::new();
    if !options.yardstick_only {
        contenders.push(Contender {
            name: "podyard".to_owned(),
            command: options.podyard_cmd.clone(),
            headers: options.podyard_header.clone(),
        });
        for variant in &options.variant {
            let (name, command) = variant.split_once('=').ok_or("--variant needs NAME=COMMAND")?;
            contenders.push(Contender {
                name: name.to_owned(),
                command: command.to_owned(),
                headers: options.podyard_header.clone(),
            });
        }
    }
    if let Some(folder) = options.peers.as_ref().filter(|_| peers) {
        contenders.extend(peers::contenders(folder)?);
    }
    let (rounds, warm_up, time) = if options.quick { (1, 200, 700) } else { (3, 400, 2000) };
    Ok(Plan {
        rounds: options.rounds.unwrap_or(rounds),
        warm_up: Duration::from_millis(warm_up),
        time: Duration::from_millis(time),
        connections: options.connections.clone(),
        contenders,
    })
}

/// Builds what is measured, so that it is never yesterday's. Only under cargo, which says where it is.
fn build(options: &Options, wanted: impl Fn(Section) -> bool) -> Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let servers = [Section::Rest, Section::Commits, Section::Deep, Section::Tasks].into_iter().any(&wanted);
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "-p", "podyard-bench", "--bin", "bench"]);
    if servers {
        command.args(["--bin", "yardstick"]);
    }
    if servers && !options.yardstick_only && options.podyard_cmd.starts_with("bench-podyard ") {
        command.args(["--bin", "bench-podyard"]);
    }
    if wanted(Section::Engine) && !options.yardstick_only {
        command.args(["--bin", "bench-engine"]);
    }
    if wanted(Section::Process) && options.podyard.is_none() {
        command.args(["-p", "podyard-server", "--bin", "podyard"]);
    }
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    if command.status()?.success() { Ok(()) } else { Err("the servers did not build".into()) }
}

/// What a reader has to know of the machine to place the figures.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    let sync = sync_time().map_or("?".to_owned(), |time| format!("{:.2} ms", time.as_secs_f64() * 1e3));
    format!("{cores} cores ({model}), load {load} at the start; one write and fsync of 4 KiB: {sync}.")
}

/// The median time of a small write that has to reach the disk, where the databases will be.
fn sync_time() -> Result<Duration> {
    use std::io::Write as _;

    let mut file = tempfile::tempfile()?;
    let mut times = Vec::new();
    for _ in 0..51 {
        let start = std::time::Instant::now();
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}
