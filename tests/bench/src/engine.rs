//! The task engine alone, beside the floor under it and the engines of others: rates, CPU, how
//! soon a task is picked up, how soon a dead process's tasks are taken up, and what a claim costs
//! in a full table.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use diesel::{
    Connection as _, PgConnection, SqliteConnection, connection::SimpleConnection as _, prelude::*,
    sql_types::BigInt,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{
    Result,
    peers::{self, Words},
    postgres::Cluster,
    process::{self, sibling},
    report::{Bar, Limit, Report, Table},
    rest::Database,
};
use schema::floor;

/// How long one measurement may take, its preparation included.
const PATIENCE: Duration = Duration::from_secs(300);

/// Callers that start tasks at once.
const CALLERS: usize = 64;

/// Stages in flight.
const FLIGHT: usize = 128;

/// What to measure, and how often.
pub struct Plan<'a> {
    /// The databases.
    pub databases: Vec<Database>,
    /// Each rate is measured so often, and the best kept.
    pub rounds: usize,
    /// A fifth of the tasks.
    pub quick: bool,
    /// Where the engines of others are, or are to be.
    pub peers: Option<&'a Path>,
}

/// Where the databases of the measurements are.
struct Place {
    folder: TempDir,
    cluster: Option<Cluster>,
}

impl Place {
    /// Makes an empty database, in the place of one of the same name, and gives its URL.
    fn database(&self, database: Database, name: &str) -> Result<String> {
        match (database, &self.cluster) {
            (Database::Postgres, Some(cluster)) => cluster.create(name),
            (Database::Postgres, None) => Err("there is no PostgreSQL".into()),
            (Database::Sqlite, _) => {
                let folder = self.folder.path().join(name);
                if folder.exists() {
                    fs::remove_dir_all(&folder)?;
                }
                fs::create_dir(&folder)?;
                Ok(format!("sqlite://{}", folder.join("tasks.db").display()))
            }
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The CPU time of the database's own processes.
    fn cpu(&self, database: Database) -> Duration {
        match database {
            Database::Postgres => self.cluster.as_ref().and_then(Cluster::cpu).unwrap_or_default(),
            Database::Sqlite => Duration::ZERO,
        }
    }
}

/// A program under measurement; it is killed when it goes out of scope.
struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Program {
    fn start(words: &[String], log: PathBuf) -> Result<Self> {
        let (program, arguments) = words.split_first().ok_or("no program")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log)?)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        let output = child.stdout.take().ok_or("a program without output")?;
        Ok(Self { child, lines: BufReader::new(output).lines(), log })
    }

    fn id(&self) -> Result<u32> {
        Ok(self.child.id().ok_or("the program has ended")?)
    }

    /// The next line that it prints.
    async fn line(&mut self) -> Result<String> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        line.map_err(|_| "the program took too long")?
            .map_err(crate::Fault::from)?
            .ok_or_else(|| format!("the program ended early:\n{}", process::end_of(&self.log)).into())
    }

    /// Kills it at once, and waits until it is gone.
    async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// `bench-engine` with some words.
fn ours(url: &str, words: &[&str]) -> Result<Words> {
    let mut all = vec![sibling("bench-engine")?.display().to_string(), "--database-url".into(), url.into()];
    all.extend(words.iter().map(|&word| word.to_owned()));
    Ok(all)
}

/// What came of a measurement.
#[derive(Clone, Copy)]
struct Figures {
    /// Tasks (or stages) per second.
    rate: f64,
    /// CPU microseconds for each: of the worker, and of the database's processes.
    worker: f64,
    database: f64,
}

impl Figures {
    fn cpu(&self) -> f64 {
        self.worker + self.database
    }
}

/// Runs a program that prints `begin` when its time begins, and then what came of it.
async fn timed(words: &[String], database: Database, place: &Place) -> Result<Figures> {
    let mut program = Program::start(words, place.log())?;
    let id = program.id()?;
    let read = || (process::cpu_in_ticks(id), place.cpu(database));
    let begin = program.line().await?;
    let before = read();
    if begin != "begin" {
        return Err(format!("{begin:?} instead of \"begin\"").into());
    }
    let line = program.line().await?;
    let after = read();
    let told: Value = serde_json::from_str(&line)?;
    let number = |name: &str| told[name].as_f64().ok_or_else(|| format!("{name} is missing in {told}"));
    let (tasks, seconds) = (number("tasks")?, number("seconds")?);
    program.child.wait().await?;
    let each = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() * 1e6 / tasks;
    Ok(Figures { rate: tasks / seconds, worker: each(before.0, after.0), database: each(before.1, after.1) })
}

/// Tables of the report.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Drain,
    Five,
    Live,
    Commits,
}

impl Group {
    const ALL: [Self; 4] = [Self::Drain, Self::Five, Self::Live, Self::Commits];

    fn heading(self) -> &'static str {
        match self {
            Self::Drain => "Draining tasks of one stage",
            Self::Five => "Draining tasks of five stages",
            Self::Live => "Starting tasks while they run",
            Self::Commits => "128 stages in flight",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Drain => {
                "The tasks are there before the workers start; the time ends when the last end is on disk. \
                 graphile-worker with a local queue: concurrency 24, a queue of 500, ends written in \
                 batches, its quickest way. River: a cool-down of 1 ms, 1,000 workers."
            }
            Self::Five => "Each stage is on disk before the next begins. DBOS: workflows of five steps.",
            Self::Live => {
                "So many callers, each of whom starts one task after another by the engine's own call, \
                 durably, while the workers run them; the time ends with the last task."
            }
            Self::Commits => "Stages per second, each on disk before the same task's next begins.",
        }
    }
}

/// A row of a table.
struct Cell {
    group: Group,
    name: String,
    database: Database,
    /// With [`DATABASE`] where the URL belongs.
    words: Words,
}

/// Measures all of it.
pub async fn measure(plan: &Plan<'_>, report: &mut Report) -> Result<()> {
    let wanted = |database| plan.databases.contains(&database);
    let place = Place {
        folder: tempfile::Builder::new().prefix("podyard-bench-").tempdir()?,
        cluster: if wanted(Database::Postgres) { Some(Cluster::open()?) } else { None },
    };
    let version = place.cluster.as_ref().map(|it| format!(", PostgreSQL {}", it.version)).unwrap_or_default();
    report.heading(2, &format!("The task engine{version}"));
    report.paragraph(
        "Tasks that do nothing, on durable commits. CPU is user and system time for each task, of the \
         worker's process and of all processes of the database; SQLite works within the worker's.",
    );
    floor(plan, &place, report)?;
    rates(plan, &place, report).await?;
    idle(plan, &place, report).await?;
    recovery(plan, &place, report).await?;
    claims(plan, &place, report).await
}

/// The rates of all engines, in turn.
async fn rates(plan: &Plan<'_>, place: &Place, report: &mut Report) -> Result<()> {
    let cells = cells(plan, report)?;
    let mut best: BTreeMap<usize, Figures> = BTreeMap::new();
    let mut left_out = BTreeSet::new();
    for round in 0..plan.rounds {
        for (number, cell) in cells.iter().enumerate() {
            if left_out.contains(&number) {
                continue;
            }
            eprintln!(
                "engine: round {}: {}: {} on {}",
                round + 1,
                cell.group.heading().to_lowercase(),
                cell.name,
                cell.database
            );
            let url = place.database(cell.database, "bench_engine")?;
            let words: Words = cell.words.iter().map(|it| it.replace(DATABASE, &url)).collect();
            match timed(&words, cell.database, place).await {
                Ok(figures) => {
                    let kept = best.entry(number).or_insert(figures);
                    if figures.rate > kept.rate {
                        *kept = figures;
                    }
                }
                Err(error) if cell.name.starts_with(OURS) => return Err(error),
                Err(error) => {
                    left_out.insert(number);
                    best.remove(&number);
                    report.paragraph(format!("{} is left out: {error}", cell.name));
                }
            }
        }
    }
    for group in Group::ALL {
        report.heading(3, group.heading());
        report.paragraph(group.text());
        let mut table = Table::new(&["engine", "database", "rate /s", "CPU µs each", "worker + database"]);
        for (number, cell) in cells.iter().enumerate().filter(|(_, cell)| cell.group == group) {
            let Some(figures) = best.get(&number) else { continue };
            table.row([
                cell.name.clone(),
                cell.database.to_string(),
                format!("{:.0}", figures.rate),
                format!("{:.0}", figures.cpu()),
                format!("{:.0} + {:.0}", figures.worker, figures.database),
            ]);
        }
        report.table(&table);
    }
    let rate = |group: Group, name: &str, database: Database| {
        let at =
            cells.iter().position(|it| it.group == group && it.name == name && it.database == database)?;
        best.get(&at).map(|it| it.rate)
    };
    let on = Database::Postgres;
    let (callers, one) = (format!("{OURS}, {CALLERS} callers"), format!("{GRAPHILE_FAST}, 1 caller"));
    for (group, mine, other, limit) in [
        (Group::Drain, OURS, GRAPHILE_FAST, 1.0),
        (Group::Drain, OURS, GRAPHILE, 3.0),
        (Group::Drain, OURS, RIVER, 1.0),
        (Group::Live, &callers, &one, 5.0),
        (Group::Five, OURS, DBOS, 20.0),
    ] {
        if let (Some(ours), Some(theirs)) = (rate(group, mine, on), rate(group, other, on)) {
            report.bar(Bar {
                name: format!("{}: rate, of that of {other}", group.heading()),
                value: ours / theirs,
                limit: Limit::AtLeast(limit),
                unit: "×",
            });
        }
    }
    for &database in &plan.databases {
        let grouped = rate(Group::Commits, OURS, database).unwrap_or(f64::NAN);
        let each = rate(Group::Commits, ONE_EACH, database).unwrap_or(f64::NAN);
        let name = format!("{database}: stage commits with {FLIGHT} in flight");
        report.bar(Bar { name: name.clone(), value: grouped, limit: Limit::AtLeast(20_000.0), unit: " /s" });
        report.bar(Bar {
            name: format!("{name}, of the rate with one commit each"),
            value: grouped / each,
            limit: Limit::AtLeast(2.5),
            unit: "×",
        });
    }
    Ok(())
}

const OURS: &str = "Podyard";
const ONE_EACH: &str = "Podyard, one commit each";
const GRAPHILE: &str = "graphile-worker, concurrency 10";
const GRAPHILE_FAST: &str = "graphile-worker, local queue";
const RIVER: &str = "River (Rust)";
const DBOS: &str = "DBOS (Python)";

/// Stands for the URL of a database, which each run has anew.
const DATABASE: &str = "{database}";

/// What is measured; a peer that is not to be had is left out, and the report says so.
fn cells(plan: &Plan<'_>, report: &mut Report) -> Result<Vec<Cell>> {
    let mut cells: Vec<Cell> = Vec::new();
    let some = |tasks: usize| if plan.quick { tasks / 5 } else { tasks };
    let seconds = if plan.quick { 1 } else { 4 };
    for &database in &plan.databases {
        for (group, name, line) in [
            (Group::Drain, OURS.into(), format!("drain --tasks {}", some(50_000))),
            (Group::Five, OURS.into(), format!("drain --stages 5 --tasks {}", some(20_000))),
            (Group::Live, by(OURS, CALLERS), format!("live --callers {CALLERS} --tasks {}", some(20_000))),
            (Group::Live, by(OURS, 1), format!("live --callers 1 --tasks {}", some(3_000))),
            (Group::Commits, OURS.into(), format!("commits --flight {FLIGHT} --seconds {seconds}")),
            (
                Group::Commits,
                ONE_EACH.into(),
                format!("--group 1 commits --flight {FLIGHT} --seconds {seconds}"),
            ),
        ] {
            let words = ours(DATABASE, &line.split(' ').collect::<Vec<_>>())?;
            cells.push(Cell { group, name, database, words });
        }
    }
    let Some(folder) = plan.peers.filter(|_| plan.databases.contains(&Database::Postgres)) else {
        return Ok(cells);
    };
    let found = [
        (
            "graphile-worker",
            peers::graphile(folder),
            vec![
                (Group::Drain, GRAPHILE.into(), format!("drain {} 1 default", some(10_000))),
                (Group::Drain, GRAPHILE_FAST.into(), format!("drain {} 1 fast", some(50_000))),
                (Group::Live, by(GRAPHILE_FAST, 1), format!("live {} 1 fast", some(1_000))),
                (Group::Live, by(GRAPHILE_FAST, CALLERS), format!("live {} {CALLERS} fast", some(10_000))),
            ],
        ),
        (
            "River",
            peers::river(folder),
            vec![
                (Group::Drain, RIVER.into(), format!("drain {} 1", some(50_000))),
                (Group::Live, by(RIVER, 1), format!("live {} 1", some(3_000))),
                (Group::Live, by(RIVER, CALLERS), format!("live {} {CALLERS}", some(20_000))),
            ],
        ),
        ("DBOS", peers::dbos(folder), vec![(Group::Five, DBOS.into(), format!("{} {CALLERS}", some(500)))]),
    ];
    for (peer, start, runs) in found {
        match start {
            Err(error) => report.paragraph(format!("{peer} is left out: {error}")),
            Ok(start) => cells.extend(runs.into_iter().map(|(group, name, line)| {
                let rest = line.split(' ').map(ToOwned::to_owned);
                let words = start.iter().cloned().chain([DATABASE.to_owned()]).chain(rest).collect();
                Cell { group, name, database: Database::Postgres, words }
            })),
        }
    }
    Ok(cells)
}

fn by(name: &str, callers: usize) -> String {
    format!("{name}, {callers} caller{}", if callers == 1 { "" } else { "s" })
}

mod schema {
    diesel::table! {
        floor (id) {
            id -> BigInt,
            n -> BigInt,
        }
    }
}

/// What the database and the disk give to durable updates of one row each.
fn floor(plan: &Plan<'_>, place: &Place, report: &mut Report) -> Result<()> {
    eprintln!("engine: the floor");
    let time = Duration::from_millis(if plan.quick { 500 } else { 2000 });
    report.heading(3, "The floor");
    report.paragraph(
        "What the disk gives, and durable updates of one row by its key, each in a commit of its own.",
    );
    let mut table = Table::new(&["what", "rate /s", "CPU µs each", "worker + database"]);
    let mut row = |name: String, n: usize, took: Duration, own: Duration, database: Duration| {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / n as f64;
        table.row([
            name,
            format!("{:.0}", n as f64 / took.as_secs_f64()),
            format!("{:.0}", each(own + database)),
            format!("{:.0} + {:.0}", each(own), each(database)),
        ]);
    };
    let mut file = tempfile::tempfile_in(place.folder.path())?;
    let (begun, before, mut n) = (Instant::now(), process::own_cpu(), 0);
    while begun.elapsed() < time {
        use std::io::Write as _;
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
        n += 1;
    }
    row(
        "a write of 4 KiB and fdatasync".into(),
        n,
        begun.elapsed(),
        process::own_cpu() - before,
        Duration::ZERO,
    );

    const ROWS: i64 = 1000;
    let fill = format!(
        "INSERT INTO floor (id, n) WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s \
         WHERE n < {ROWS}) SELECT n, 0 FROM s"
    );
    for &database in &plan.databases {
        let url = place.database(database, "bench_floor")?;
        let mut connection = Connection::open(&url)?;
        let space = if database == Database::Postgres { "WITH (fillfactor = 50)" } else { "" };
        connection.run(&format!("CREATE TABLE floor (id BIGINT PRIMARY KEY, n BIGINT NOT NULL) {space}"))?;
        connection.run(&fill)?;
        let clients: &[usize] = if database == Database::Postgres { &[1, 8, 32] } else { &[1] };
        for &clients in clients {
            let stop = Arc::new(AtomicBool::new(false));
            let mut threads = Vec::new();
            let (begun, before) = (Instant::now(), (process::own_cpu(), place.cpu(database)));
            for client in 0..clients {
                let mut connection = Connection::open(&url)?;
                let stop = Arc::clone(&stop);
                threads.push(std::thread::spawn(move || -> Result<usize> {
                    let (mut n, mut at) = (0, client as i64 * 7919);
                    while !stop.load(Ordering::Relaxed) {
                        at += 104_729;
                        connection.add(at % ROWS + 1)?;
                        n += 1;
                    }
                    Ok(n)
                }));
            }
            std::thread::sleep(time.saturating_sub(begun.elapsed()));
            stop.store(true, Ordering::Relaxed);
            let mut n = 0;
            for thread in threads {
                n += thread.join().map_err(|_| "a client of the floor fell over")??;
            }
            let took = begun.elapsed();
            let (own, cluster) =
                (process::own_cpu() - before.0, place.cpu(database).saturating_sub(before.1));
            row(format!("{database}, {clients} at once"), n, took, own, cluster);
        }
    }
    report.table(&table);
    Ok(())
}

/// A connection to either database, for what is measured beside the engine.
enum Connection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    n: i64,
}

impl Connection {
    fn open(url: &str) -> Result<Self> {
        Ok(match url.strip_prefix("sqlite://") {
            None => Self::Postgres(PgConnection::establish(url)?),
            Some(path) => {
                let mut connection = SqliteConnection::establish(path)?;
                connection.batch_execute(
                    "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL",
                )?;
                Self::Sqlite(connection)
            }
        })
    }

    fn run(&mut self, sql: &str) -> Result<()> {
        match self {
            Self::Sqlite(connection) => connection.batch_execute(sql)?,
            Self::Postgres(connection) => connection.batch_execute(sql)?,
        }
        Ok(())
    }

    /// The number that a statement gives under the name `n`.
    fn number(&mut self, sql: &str) -> Result<i64> {
        let number: Number = match self {
            Self::Sqlite(connection) => diesel::sql_query(sql).get_result(connection)?,
            Self::Postgres(connection) => diesel::sql_query(sql).get_result(connection)?,
        };
        Ok(number.n)
    }

    /// One durable update of one row.
    fn add(&mut self, id: i64) -> Result<()> {
        let update = diesel::update(floor::table.find(id)).set(floor::n.eq(floor::n + 1));
        match self {
            Self::Sqlite(connection) => update.execute(connection)?,
            Self::Postgres(connection) => update.execute(connection)?,
        };
        Ok(())
    }
}

/// How soon a task is picked up while nothing else happens.
async fn idle(plan: &Plan<'_>, place: &Place, report: &mut Report) -> Result<()> {
    report.heading(3, "Picked up while idle");
    report.paragraph(
        "One task now and then: from the insert, before its commit, to the claim. Across processes, one \
         process starts the tasks and another runs them.",
    );
    let mut table = Table::new(&["database", "mean ms", "p50 ms", "p99 ms", "most ms"]);
    let tasks = if plan.quick { 100 } else { 400 };
    for &database in &plan.databases {
        for across in [false, true] {
            if across && database == Database::Sqlite {
                continue;
            }
            let name = format!("{database}, {} process", if across { "another" } else { "the same" });
            eprintln!("engine: picked up while idle: {name}");
            let url = place.database(database, "bench_engine")?;
            let tasks = tasks.to_string();
            let mut words = vec!["idle", "--tasks", &tasks];
            let mut worker = None;
            if across {
                prepare(&url, place).await?;
                let log = place.folder.path().join("worker.log");
                worker = Some(Program::start(&ours(&url, &["work"])?, log)?);
                words.push("--no-worker");
            }
            let mut program = Program::start(&ours(&url, &words)?, place.log())?;
            let told: Value = serde_json::from_str(&program.line().await?)?;
            drop(worker);
            let waits = told["waits_us"].as_array().ok_or("no waits")?;
            let mut waits: Vec<f64> = waits.iter().filter_map(Value::as_f64).map(|it| it / 1e3).collect();
            waits.sort_by(f64::total_cmp);
            if waits.len().to_string() != tasks {
                return Err(format!("{name}: {} of {tasks} tasks ran", waits.len()).into());
            }
            let (median, high) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
            table.row([
                name.clone(),
                format!("{:.2}", waits.iter().sum::<f64>() / waits.len() as f64),
                format!("{median:.2}"),
                format!("{high:.2}"),
                format!("{:.2}", waits[waits.len() - 1]),
            ]);
            for (what, value, limit) in [("median", median, 3.0), ("p99", high, 15.0)] {
                report.bar(Bar {
                    name: format!("picked up while idle, {what}: {name}"),
                    value,
                    limit: Limit::AtMost(limit),
                    unit: " ms",
                });
            }
        }
    }
    report.table(&table);
    Ok(())
}

/// Makes the tables.
async fn prepare(url: &str, place: &Place) -> Result<()> {
    Program::start(&ours(url, &["prepare", "--objects", "1"])?, place.log())?.line().await.map(drop)
}

/// Where the process that dies was, and where the one that takes over is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takeover {
    /// On the same machine, standing by.
    SameHost,
    /// As if on another machine, standing by: it sees only that the other's heart stands still.
    OtherHost,
    /// It is started after the death.
    Restart,
}

/// How soon the tasks of a process that was killed run in another.
async fn recovery(plan: &Plan<'_>, place: &Place, report: &mut Report) -> Result<()> {
    const TASKS: i64 = 100;

    report.heading(3, "After kill -9");
    report.paragraph(format!(
        "A process runs {TASKS} long tasks and is killed; the time until another has taken up all of them."
    ));
    let mut table = Table::new(&["database", "ms"]);
    for &database in &plan.databases {
        for takeover in [Takeover::SameHost, Takeover::OtherHost, Takeover::Restart] {
            // Only a cluster has workers on other machines.
            if takeover == Takeover::OtherHost
                && (database == Database::Sqlite || !rustix::process::geteuid().is_root())
            {
                continue;
            }
            let name = match takeover {
                Takeover::SameHost => format!("{database}, another process stands by"),
                Takeover::OtherHost => format!("{database}, a process of another host stands by"),
                Takeover::Restart => format!("{database}, started again"),
            };
            eprintln!("engine: after kill -9: {name}");
            let url = place.database(database, "bench_engine")?;
            let mut long =
                Program::start(&ours(&url, &["long", "--tasks", &TASKS.to_string()])?, place.log())?;
            long.line().await?;
            drop(long);
            let work = |log: &str| Program::start(&ours(&url, &["work"])?, place.folder.path().join(log));
            let mut connection = Connection::open(&url)?;
            let mut first = match takeover {
                Takeover::OtherHost => {
                    let mut words: Words =
                        ["unshare", "--uts", "sh", "-c", "hostname elsewhere; exec \"$@\"", "sh"]
                            .map(ToOwned::to_owned)
                            .into();
                    words.extend(ours(&url, &["work"])?);
                    Program::start(&words, place.folder.path().join("first.log"))?
                }
                _ => work("first.log")?,
            };
            until(&mut connection, "SELECT count(*) AS n FROM tasks WHERE status = 'running'", TASKS).await?;
            // Tasks of the first worker have the epoch 1; whoever takes them up raises it.
            let taken = "SELECT count(*) AS n FROM tasks WHERE status = 'running' AND epoch >= 2";
            let mut second = None;
            if takeover != Takeover::Restart {
                second = Some(work("second.log")?);
                // It has no row of its own until it holds a task.
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            let begun = Instant::now();
            first.kill().await?;
            if takeover == Takeover::Restart {
                second = Some(work("second.log")?);
            }
            until(&mut connection, taken, TASKS).await?;
            let took = begun.elapsed().as_secs_f64() * 1e3;
            drop(second);
            table.row([name.clone(), format!("{took:.0}")]);
            report.bar(Bar {
                name: format!("after kill -9: {name}"),
                value: took / 1e3,
                limit: Limit::AtMost(5.0),
                unit: " s",
            });
        }
    }
    report.table(&table);
    Ok(())
}

/// Waits until a statement gives a number.
async fn until(connection: &mut Connection, sql: &str, wanted: i64) -> Result<()> {
    let begun = Instant::now();
    while connection.number(sql)? < wanted {
        if begun.elapsed() > Duration::from_secs(60) {
            return Err(format!("{sql}: not {wanted} within a minute").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// What a claim costs in a full table.
async fn claims(plan: &Plan<'_>, place: &Place, report: &mut Report) -> Result<()> {
    const ENDED: i64 = 1_000_000;
    const WAITING: i64 = 100_000;

    report.heading(3, "Claims in a full table");
    report.paragraph(format!(
        "One slot, so that each task has a claim of its own. The full table has {ENDED} tasks that have \
         ended, and {WAITING} that wait: half of them for a time to come, half of them due but behind the \
         measured ones. Then the same while a transaction that was begun before all this stays open, so \
         that nothing can be cleaned up."
    ));
    let mut table = Table::new(&["table", "claims /s", "CPU µs each", "worker + database", "× the empty"]);
    let tasks = if plan.quick { "1000" } else { "5000" };
    for &database in &plan.databases {
        eprintln!("engine: filling a table of {database} with {ENDED} tasks");
        let empty = place.database(database, "bench_engine")?;
        let full = place.database(database, "bench_engine_full")?;
        prepare(&empty, place).await?;
        prepare(&full, place).await?;
        fill(&full, ENDED, WAITING)?;
        let mut best: [Option<Figures>; 3] = [None; 3];
        let mut old = Connection::open(&full)?;
        for (kinds, is_old) in [(&[0, 1][..], false), (&[2][..], true)] {
            if let (Some(cluster), Database::Postgres) = (&place.cluster, database) {
                cluster.settle("bench_engine_full")?;
            }
            if is_old {
                let begin = if database == Database::Postgres {
                    "BEGIN ISOLATION LEVEL REPEATABLE READ"
                } else {
                    "BEGIN"
                };
                old.run(begin)?;
                old.number("SELECT count(*) AS n FROM task_ready")?;
            }
            for round in 0..plan.rounds {
                for &kind in kinds {
                    eprintln!("engine: {database}: claims, round {}", round + 1);
                    let url = if kind == 0 { &empty } else { &full };
                    let words = ours(url, &["--slots", "1", "drain", "--tasks", tasks])?;
                    let figures = timed(&words, database, place).await?;
                    let kept = best[kind].get_or_insert(figures);
                    if figures.cpu() < kept.cpu() {
                        *kept = figures;
                    }
                }
            }
        }
        let names = ["empty", "full", "full, an old transaction open"];
        let base = best[0].map_or(f64::NAN, |it| it.cpu());
        for (name, figures) in names.into_iter().zip(best) {
            let Some(figures) = figures else { continue };
            let ratio = figures.cpu() / base;
            table.row([
                format!("{database}, {name}"),
                format!("{:.0}", figures.rate),
                format!("{:.0}", figures.cpu()),
                format!("{:.0} + {:.0}", figures.worker, figures.database),
                format!("{ratio:.2}"),
            ]);
            if name != "empty" {
                report.bar(Bar {
                    name: format!("{database}: a claim's cost, {name}, of that in an empty table"),
                    value: ratio,
                    limit: Limit::AtMost(1.5),
                    unit: "×",
                });
            }
        }
    }
    report.table(&table);
    Ok(())
}

/// Fills the tables behind the engine's back.
fn fill(url: &str, ended: i64, waiting: i64) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let later = now + 24 * 3600 * 1_000_000;
    let all = ended + waiting;
    let half = ended + waiting / 2;
    let id = "substr(CAST(1000000000000 + n AS TEXT), 2)";
    let sql = format!(
        "BEGIN;
         INSERT INTO tasks (id, version, created_at, updated_at, task_name, obj_type, obj_id, obj_name,
             domain_id, project_id, user_id, user_cred, params, priority, status, stage, progress, attempt,
             epoch, seq, secret, retry_stage, reason_kind, reason, run_at, started_at, ended_at,
             cancel_requested, cancelling, lane, active_key, queue)
         WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {all})
         SELECT '00000000-0000-7000-8000-' || {id}, 3, {now}, {now}, 'many', 'job', 'job-' || {id}, '',
             '', '', '', '{{}}', '1', CASE WHEN n > {half} THEN 90 ELSE 50 END,
             CASE WHEN n <= {ended} THEN 'done' WHEN n <= {half} THEN 'waiting' ELSE 'queued' END,
             'on_init', 0, 1, 1, 1, 'secret', 'on_init', '', '',
             CASE WHEN n > {ended} AND n <= {half} THEN {later} ELSE {now} END,
             CASE WHEN n <= {half} THEN {now} END, CASE WHEN n <= {ended} THEN {now} END,
             FALSE, FALSE, 'job:job-' || {id}, CASE WHEN n > {ended} THEN 'job:job-' || {id} END,
             CASE WHEN n > {half} THEN '90//many' ELSE '50//many' END
         FROM s;
         INSERT INTO task_history (task_id, epoch, stage, attempt, worker_id, started_at, ended_at, outcome, reason)
         SELECT id, 1, 'on_init', 1, 'somebody', {now}, {now}, 'done', '' FROM tasks WHERE status = 'done';
         INSERT INTO task_ready (task_id, queue, due, run_at)
         SELECT id, queue, status = 'queued', run_at FROM tasks WHERE status = 'queued' OR status = 'waiting'
         ON CONFLICT (task_id) DO NOTHING;
         COMMIT"
    );
    let mut connection = Connection::open(url)?;
    connection.run(&sql)?;
    let ready = connection.number("SELECT count(*) AS n FROM task_ready WHERE due = TRUE")?;
    if ready * 2 == waiting { Ok(()) } else { Err(format!("{ready} filled tasks are due").into()) }
}
