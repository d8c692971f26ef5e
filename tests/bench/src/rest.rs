//! The same four requests to each server in turn, and what each of them cost.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::DateTime;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Result,
    http::{Connection, dechunk, write_request},
    load::{Crowd, Random, Script, Tally},
    postgres::Cluster,
    process::{self, Server},
    report::{Bar, Limit, Report, Table},
};

/// The first name in the table: what the others are measured against.
pub const YARDSTICK: &str = "yardstick";

/// Rows that are there before anything is measured.
const ROWS: usize = 10_000;

/// They are spread evenly over these.
const STATUSES: [&str; 5] = ["failed", "ready", "running", "stopped", "unknown"];

/// Rows that the load creates get another status, so that the lists stay what they are.
const NEW: &str = "new";

const OWNER: &str = "0198c0de-0000-7000-8000-00000000beef";

const PAGE: usize = 20;

/// The databases that the servers are measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// A file in a temporary folder.
    Sqlite,
    /// A cluster of our own, or the one of the environment.
    Postgres,
}

impl Display for Database {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        })
    }
}

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Each cell is measured so often; the best counts.
    pub rounds: usize,
    /// How long before the measuring starts.
    pub warm_up: Duration,
    /// How long a cell is measured.
    pub time: Duration,
    /// Numbers of connections.
    pub connections: Vec<usize>,
    /// The servers to measure beside the yardstick.
    pub contenders: Vec<Contender>,
}

/// A server to measure beside the yardstick.
#[derive(Debug, Clone)]
pub struct Contender {
    /// What the table calls it.
    pub name: String,
    /// Its command, with `{listen}`, `{database}` and `{folder}` where those belong.
    pub command: String,
    /// Header lines for each request, beside those that the server prints at its start.
    pub headers: Vec<String>,
}

/// A request that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Get,
    List,
    Update,
    Create,
}

impl Operation {
    // Creates come last in a round, since they make the table grow.
    const ALL: [Self; 4] = [Self::Get, Self::List, Self::Update, Self::Create];

    fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list of 20",
            Self::Update => "update",
            Self::Create => "create",
        }
    }

    /// So many times the yardstick's CPU is what the framework may take.
    fn limit(self) -> f64 {
        match self {
            Self::Get => 1.5,
            Self::List => 1.25,
            Self::Update | Self::Create => 1.6,
        }
    }
}

/// A running server with its rows.
pub(crate) struct Target {
    pub(crate) server: Server,
    /// Header lines for each request.
    pub(crate) headers: String,
    /// Ids of the rows.
    pub(crate) ids: Arc<[String]>,
    /// Numbers the rows that the load makes, so that no name comes twice.
    created: Arc<AtomicUsize>,
    /// Numbers the changes, so that none sets what is there already: that would be none.
    changed: Arc<AtomicUsize>,
}

/// What one cell came to. Times are microseconds.
#[derive(Debug, Clone, Copy)]
struct Figures {
    rate: f64,
    median: f64,
    p99: f64,
    /// CPU per request: the server, and the database's processes.
    server: f64,
    database: f64,
    /// CPU per request of the load generator, for an honest comparison.
    client: f64,
}

impl Figures {
    fn cpu(&self) -> f64 {
        self.server + self.database
    }

    /// The better of two rounds: noise only ever adds.
    fn best(self, other: Self) -> Self {
        let cheaper = if self.cpu() <= other.cpu() { self } else { other };
        Self {
            rate: self.rate.max(other.rate),
            median: self.median.min(other.median),
            p99: self.p99.min(other.p99),
            ..cheaper
        }
    }
}

/// Measures all servers on one database.
pub async fn measure(database: Database, plan: &Plan, report: &mut Report) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("podyard-bench-").tempdir()?;
    let cluster = match database {
        Database::Sqlite => None,
        Database::Postgres => Some(Cluster::open()?),
    };
    let yardstick = Contender {
        name: YARDSTICK.to_owned(),
        command: "yardstick --listen {listen} --database-url {database}".to_owned(),
        headers: Vec::new(),
    };
    let mut targets = Vec::new();
    let mut urls = Vec::new();
    for contender in std::iter::once(&yardstick).chain(&plan.contenders) {
        let url = database_for(&contender.name, cluster.as_ref(), &folder)?;
        eprintln!("{database}: starting {} and filling its table", contender.name);
        let mut target = start(contender, &url, folder.path()).await?;
        target.ids = seed(&target).await?.into();
        check(&target).await.map_err(|error| format!("{}: {error}", contender.name))?;
        targets.push(target);
        urls.push(url);
    }
    if let Some(cluster) = &cluster {
        for contender in std::iter::once(&yardstick).chain(&plan.contenders) {
            cluster.settle(&database_name(&contender.name))?;
        }
    }

    let mut cells: BTreeMap<(Operation, usize, usize), Figures> = BTreeMap::new();
    for round in 0..plan.rounds {
        for operation in Operation::ALL {
            for &connections in &plan.connections {
                eprintln!("{database}: round {}: {}, {connections} connections", round + 1, operation.name());
                for turn in 0..targets.len() {
                    // Who goes first changes, so that what one leaves behind harms both alike.
                    let number = if round % 2 == 0 { turn } else { targets.len() - 1 - turn };
                    let target = &targets[number];
                    let figures = cell(target, cluster.as_ref(), operation, connections, plan).await?;
                    let key = (operation, connections, number);
                    let best = cells.get(&key).map_or(figures, |before| before.best(figures));
                    cells.insert(key, best);
                }
            }
        }
    }
    let version = cluster.as_ref().map(|cluster| format!(" {}", cluster.version)).unwrap_or_default();
    report.heading(2, &format!("REST on {database}{version}"));
    tell(database, &cells, &targets, cluster.as_ref(), report);

    // The yardstick only tells its times when asked, since telling costs a little.
    let Target { server, ids, created, changed, .. } = targets.remove(0);
    server.stop()?;
    let timing = Contender { command: format!("{} --server-timing", yardstick.command), ..yardstick };
    let again = start(&timing, &urls[0], folder.path()).await?;
    targets.insert(0, Target { ids, created, changed, ..again });
    where_the_rest_goes(database, &targets, plan, report).await?;
    Ok(())
}

fn database_name(server: &str) -> String {
    let name: String = server.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("bench_{}", name.to_ascii_lowercase())
}

/// Makes an empty database, and gives its URL or path.
pub(crate) fn database_for(server: &str, cluster: Option<&Cluster>, folder: &TempDir) -> Result<String> {
    let name = database_name(server);
    match cluster {
        Some(cluster) => cluster.create(&name),
        None => Ok(folder.path().join(format!("{name}.db")).display().to_string()),
    }
}

pub(crate) async fn start(contender: &Contender, database: &str, folder: &Path) -> Result<Target> {
    let address = process::free_address()?;
    let own_folder = folder.join(database_name(&contender.name));
    fs::create_dir_all(&own_folder)?;
    let mut words = contender.command.split_whitespace().map(|word| {
        word.replace("{listen}", &address.to_string())
            .replace("{database}", database)
            .replace("{folder}", &own_folder.display().to_string())
    });
    let program = words.next().ok_or_else(|| format!("{} has no command", contender.name))?;
    let beside = process::sibling(&program)?;
    let mut command = if beside.is_file() { Command::new(beside) } else { Command::new(program) };
    command.args(words);
    let log = folder.join(format!("{}.log", contender.name));
    let server = Server::start(&contender.name, &mut command, address, "/readyz", &log).await?;
    // A server that asks for a login says at its start what to send: `header: X-Auth-Token: …`.
    let printed = fs::read_to_string(&log)?;
    let headers = printed
        .lines()
        .filter_map(|line| line.strip_prefix("header: "))
        .chain(contender.headers.iter().map(String::as_str))
        .fold(String::new(), |all, line| all + line + "\r\n");
    Ok(Target { server, headers, ids: Arc::new([]), created: Arc::default(), changed: Arc::default() })
}

/// The body of a create.
fn create_body(number: usize, status: &str) -> String {
    format!(
        "{{\"server\":{{\"name\":\"server-{number:07}\",\"description\":\"The server of bench {number:07}\",\
         \"status\":\"{status}\",\"owner\":\"{OWNER}\",\"cpu\":{}}}}}",
        number % 64
    )
}

/// Fills the table through the API, which works the same for all servers and databases.
pub(crate) async fn seed(target: &Target) -> Result<Vec<String>> {
    async fn some(address: SocketAddr, headers: String, next: Arc<AtomicUsize>) -> Result<Vec<String>> {
        let mut connection = Connection::open(address).await?;
        let mut request = Vec::new();
        let mut ids = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= ROWS {
                return Ok(ids);
            }
            let body = create_body(number, STATUSES[number % STATUSES.len()]);
            write_request(&mut request, "POST", "/servers", &headers, Some(&body));
            let answer = connection.send(&request).await?;
            let body = dechunk(answer.body);
            let object: Value =
                if answer.is_success() { serde_json::from_slice(&body)? } else { Value::Null };
            let id = object["server"]["id"].as_str().ok_or_else(|| {
                format!("a create answered {}: {}", answer.status, String::from_utf8_lossy(&body))
            })?;
            ids.push(id.to_owned());
        }
    }

    let next = Arc::clone(&target.created);
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..64 {
        running.spawn(some(target.server.address, target.headers.clone(), Arc::clone(&next)));
    }
    let mut ids = Vec::with_capacity(ROWS);
    while let Some(some) = running.join_next().await {
        ids.append(&mut some??);
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Sees that a server does what is measured: a wrong answer is no fast one.
async fn check(target: &Target) -> Result<()> {
    let mut connection = Connection::open(target.server.address).await?;
    let mut request = Vec::new();
    let mut ask = async |operation, number: usize| -> Result<Value> {
        let mut script = script(target, operation, number as u64);
        script(&mut request);
        let answer = connection.send(&request).await?;
        let body = dechunk(answer.body);
        if !answer.is_success() {
            let body = String::from_utf8_lossy(&body);
            return Err(format!("{operation:?} answered {}: {body}", answer.status).into());
        }
        Ok(serde_json::from_slice(&body)?)
    };
    for seed in 0..20 {
        // What the script of this seed asks for.
        let mut random = Random(seed as u64);
        let id = &target.ids[random.below(ROWS)];
        let object = &ask(Operation::Get, seed).await?["server"];
        expect(object["id"] == **id && object["owner"] == *OWNER, "get", object)?;

        let status = STATUSES[Random(seed as u64).below(STATUSES.len())];
        let list = ask(Operation::List, seed).await?;
        let rows = list["servers"].as_array().ok_or("a list without servers")?;
        let key = |row: &Value| {
            let time = row["created_at"].as_str().unwrap_or_default();
            (DateTime::parse_from_rfc3339(time).ok(), row["id"].to_string())
        };
        expect(rows.len() == PAGE, "list: its length", &list)?;
        expect(rows.iter().all(|row| row["status"] == *status), "list: status", &list)?;
        expect(rows.is_sorted_by_key(key), "list: order", &list)?;

        let before = object["cpu"].clone();
        let changed = &ask(Operation::Update, seed).await?["server"];
        expect(changed["id"] == **id, "update: id", changed)?;
        expect(changed["cpu"] != before, "update: cpu", changed)?;
        expect(changed["name"] == object["name"], "update: name", changed)?;

        let made = &ask(Operation::Create, seed).await?["server"];
        expect(made["status"] == *NEW && made["id"].is_string(), "create", made)?;
    }
    Ok(())
}

fn expect(holds: bool, what: &str, answer: &Value) -> Result<()> {
    if holds { Ok(()) } else { Err(format!("a wrong answer ({what}): {answer:.2000}").into()) }
}

/// What one connection sends.
fn script(target: &Target, operation: Operation, seed: u64) -> Script {
    let mut random = Random(seed);
    let headers = target.headers.clone();
    let ids = Arc::clone(&target.ids);
    let (created, changed) = (Arc::clone(&target.created), Arc::clone(&target.changed));
    match operation {
        Operation::Get => Box::new(move |request| {
            let path = ["/servers/", &ids[random.below(ids.len())]].concat();
            write_request(request, "GET", &path, &headers, None);
        }),
        Operation::List => Box::new(move |request| {
            let status = STATUSES[random.below(STATUSES.len())];
            // The order is stated, since servers may differ in the one they have by themselves.
            let path = format!("/servers?status={status}&limit={PAGE}&order_by=created_at&order=asc");
            write_request(request, "GET", &path, &headers, None);
        }),
        Operation::Update => Box::new(move |request| {
            let path = ["/servers/", &ids[random.below(ids.len())]].concat();
            // A cpu that no row has yet.
            let cpu = 1000 + changed.fetch_add(1, Ordering::Relaxed);
            let body = format!("{{\"server\":{{\"description\":\"Changed to {cpu}\",\"cpu\":{cpu}}}}}");
            write_request(request, "PUT", &path, &headers, Some(&body));
        }),
        Operation::Create => Box::new(move |request| {
            let body = create_body(created.fetch_add(1, Ordering::Relaxed), NEW);
            write_request(request, "POST", "/servers", &headers, Some(&body));
        }),
    }
}

/// Opens the connections of one cell.
async fn crowd(target: &Target, operation: Operation, connections: usize) -> Result<Crowd> {
    let scripts = (0..connections).map(|number| script(target, operation, number as u64 * 7919 + 1));
    Crowd::open(target.server.address, scripts).await
}

/// Runs a phase of load, and takes no failure for a figure.
async fn run(target: &Target, operation: Operation, crowd: &mut Crowd, time: Duration) -> Result<Tally> {
    let tally = crowd.run(time).await?;
    if tally.errors > 0 {
        let first = tally.first_error.as_deref().unwrap_or_default();
        return Err(format!(
            "{}: {} of {} answers to {} were errors, the first: {first}",
            target.server.name,
            tally.errors,
            tally.latencies.len(),
            operation.name()
        )
        .into());
    }
    Ok(tally)
}

/// What one commit for all that wait is worth: durable creates of many clients,
/// beside the same server with one commit for each.
pub async fn commits(plan: &Plan, report: &mut Report) -> Result<()> {
    const CLIENTS: usize = 64;

    let folder = tempfile::Builder::new().prefix("podyard-bench-").tempdir()?;
    let grouped = plan.contenders.first().ok_or("nothing to measure")?;
    let each = Contender {
        name: "one-commit-each".to_owned(),
        command: format!("{} --group 1", grouped.command),
        headers: grouped.headers.clone(),
    };
    let mut targets = Vec::new();
    for contender in [grouped, &each] {
        eprintln!("commits: starting {}", contender.name);
        let url = database_for(&contender.name, None, &folder)?;
        targets.push(start(contender, &url, folder.path()).await?);
    }
    let mut rates = [0.0_f64; 2];
    for round in 0..plan.rounds {
        eprintln!("commits: round {}", round + 1);
        for (target, rate) in targets.iter().zip(&mut rates) {
            let figures = cell(target, None, Operation::Create, CLIENTS, plan).await?;
            *rate = rate.max(figures.rate);
        }
    }
    report.heading(2, "Durable creates on SQLite, 64 clients");
    let mut table = Table::new(&["server", "creates/s"]);
    for (target, rate) in targets.iter().zip(rates) {
        table.row([target.server.name.clone(), format!("{rate:.0}")]);
    }
    report.table(&table);
    report.bar(Bar {
        name: "SQLite: rate with one commit for all that wait, of the rate with one each".to_owned(),
        value: rates[0] / rates[1],
        limit: Limit::AtLeast(4.0),
        unit: "×",
    });
    Ok(())
}

/// What a page in the middle of a million rows costs beside the first.
pub async fn deep(database: Database, plan: &Plan, report: &mut Report) -> Result<()> {
    const MANY: usize = 1_000_000;

    let folder = tempfile::Builder::new().prefix("podyard-bench-").tempdir()?;
    let cluster = match database {
        Database::Sqlite => None,
        Database::Postgres => Some(Cluster::open()?),
    };
    let contender = plan.contenders.first().ok_or("nothing to measure")?;
    let contender = Contender { name: "deep".to_owned(), ..contender.clone() };
    let url = database_for(&contender.name, cluster.as_ref(), &folder)?;
    eprintln!("{database}: filling a table with {MANY} rows");
    let target = start(&contender, &url, folder.path()).await?;
    fill(database, &url, MANY)?;
    if let Some(cluster) = &cluster {
        cluster.settle(&database_name(&contender.name))?;
    }
    report.heading(2, &format!("A page in the middle of {MANY} rows on {database}"));
    let mut table = Table::new(&["list of 20", "CPU µs/req", "× the first"]);
    for (name, list) in [("of all rows", String::new()), ("filtered by status", "&status=ready".to_owned())] {
        // By created_at and id over the index on (status, created_at, id), or over the one on (created_at, id).
        let first = format!("/servers?limit={PAGE}&order_by=created_at&order=asc{list}");
        let middle = if list.is_empty() { MANY / 2 } else { MANY / STATUSES.len() / 2 };
        let mut connection = Connection::open(target.server.address).await?;
        let mut request = Vec::new();
        let path = format!("/servers?limit=1&order_by=created_at&order=asc&offset={middle}{list}");
        write_request(&mut request, "GET", &path, &target.headers, None);
        let answer = connection.send(&request).await?;
        let found: Value = serde_json::from_slice(&dechunk(answer.body))?;
        let marker = found["next_marker"].as_str().ok_or_else(|| format!("no marker: {found:.500}"))?;
        let pages = [first.clone(), format!("{first}&marker={marker}")];
        let mut best = [f64::INFINITY; 2];
        for _ in 0..plan.rounds.max(3) {
            for (path, best) in pages.iter().zip(&mut best) {
                let scripts = (0..16).map(|_| -> Script {
                    let (path, headers) = (path.clone(), target.headers.clone());
                    Box::new(move |request| write_request(request, "GET", &path, &headers, None))
                });
                let crowd = Crowd::open(target.server.address, scripts).await?;
                let figures = cost(&target, cluster.as_ref(), Operation::List, crowd, plan).await?;
                *best = best.min(figures.cpu());
            }
        }
        let ratio = best[1] / best[0];
        table.row([format!("{name}, the first page"), format!("{:.1}", best[0]), String::new()]);
        table.row([format!("{name}, in the middle"), format!("{:.1}", best[1]), format!("{ratio:.2}")]);
        let name = format!("{database}: a page in the middle of a million rows ({name})");
        report.bar(Bar { name, value: ratio, limit: Limit::AtMost(1.5), unit: "×" });
    }
    report.table(&table);
    Ok(())
}

/// Fills the table behind the server's back: over HTTP it would take an hour.
fn fill(database: Database, url: &str, rows: usize) -> Result<()> {
    use diesel::connection::SimpleConnection as _;
    use diesel::prelude::*;

    let statuses = STATUSES.map(|it| format!("'{it}'")).join(", ");
    let columns =
        "INSERT INTO servers (id, version, created_at, updated_at, name, description, status, owner, cpu)";
    let index = "CREATE INDEX servers_created ON servers (created_at, id)";
    match database {
        Database::Sqlite => {
            let mut connection = SqliteConnection::establish(url)?;
            let status = "CASE n % 5 WHEN 0 THEN 'failed' WHEN 1 THEN 'ready' WHEN 2 THEN 'running' \
                          WHEN 3 THEN 'stopped' ELSE 'unknown' END";
            connection.batch_execute(&format!(
                "PRAGMA busy_timeout = 60000; {index}; \
                 WITH RECURSIVE series(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {rows}) \
                 {columns} SELECT printf('%032x', n * 7919), 1, 1700000000000000 + n, 1700000000000000 + n, \
                 'server-' || n, 'A server of many', {status}, '{OWNER}', n % 64 FROM series; ANALYZE;"
            ))?;
        }
        Database::Postgres => {
            let mut connection = PgConnection::establish(url)?;
            connection.batch_execute(&format!(
                "{index}; {columns} SELECT lpad(to_hex(n::bigint * 7919), 32, '0'), 1, 1700000000000000 + n, \
                 1700000000000000 + n, 'server-' || n, 'A server of many', \
                 (ARRAY[{statuses}])[n % 5 + 1], '{OWNER}', n % 64 FROM generate_series(1, {rows}) n"
            ))?;
        }
    }
    Ok(())
}

/// Measures one operation of one server at one number of connections.
async fn cell(
    target: &Target,
    cluster: Option<&Cluster>,
    operation: Operation,
    connections: usize,
    plan: &Plan,
) -> Result<Figures> {
    let crowd = crowd(target, operation, connections).await?;
    cost(target, cluster, operation, crowd, plan).await
}

/// What requests of a crowd cost.
async fn cost(
    target: &Target,
    cluster: Option<&Cluster>,
    operation: Operation,
    mut crowd: Crowd,
    plan: &Plan,
) -> Result<Figures> {
    // Long enough for what a server does after its answer.
    const PAUSE: Duration = Duration::from_millis(20);

    run(target, operation, &mut crowd, plan.warm_up).await?;
    tokio::time::sleep(PAUSE).await;
    let read = || {
        let database = cluster.and_then(Cluster::cpu).unwrap_or_default();
        (process::cpu(target.server.id()), database, process::cpu_of_one(std::process::id()))
    };
    let before = read();
    let tally = run(target, operation, &mut crowd, plan.time).await?;
    let client = process::cpu_of_one(std::process::id());
    tokio::time::sleep(PAUSE).await;
    let after = read();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / tally.latencies.len() as f64;
    Ok(Figures {
        rate: tally.rate(),
        median: tally.percentile(0.5),
        p99: tally.percentile(0.99),
        server: each(after.0.saturating_sub(before.0)),
        database: each(after.1.saturating_sub(before.1)),
        client: each(client.saturating_sub(before.2)),
    })
}

/// Writes the table and the bars of one database.
fn tell(
    database: Database,
    cells: &BTreeMap<(Operation, usize, usize), Figures>,
    targets: &[Target],
    cluster: Option<&Cluster>,
    report: &mut Report,
) {
    if cluster.is_some_and(|cluster| cluster.cpu().is_none()) {
        report.paragraph("The database runs on another machine: its CPU time is not counted.");
    }
    let mut table = Table::new(&[
        "operation",
        "connections",
        "server",
        "req/s",
        "p50 ms",
        "p99 ms",
        "CPU µs/req",
        "server + database",
        "× yardstick",
    ]);
    let mut worst: BTreeMap<Operation, f64> = BTreeMap::new();
    let mut client: Vec<f64> = Vec::new();
    for (&(operation, connections, number), figures) in cells {
        let base = cells.get(&(operation, connections, 0)).map_or(f64::NAN, Figures::cpu);
        let ratio = figures.cpu() / base;
        client.push(figures.client);
        // The variants are there to learn from; only the framework as it is has bars.
        if number == 1 {
            let worst = worst.entry(operation).or_insert(ratio);
            *worst = worst.max(ratio);
        }
        table.row([
            operation.name().to_owned(),
            connections.to_string(),
            targets[number].server.name.clone(),
            format!("{:.0}", figures.rate),
            format!("{:.2}", figures.median / 1e3),
            format!("{:.2}", figures.p99 / 1e3),
            format!("{:.1}", figures.cpu()),
            format!("{:.0} + {:.0}", figures.server, figures.database),
            if number == 0 { String::new() } else { format!("{ratio:.2}") },
        ]);
    }
    report.table(&table);
    let memory: Vec<String> = targets
        .iter()
        .map(|target| format!("{} {:.0} MiB", target.server.name, process::resident(target.server.id())))
        .collect();
    let (least, most) = client
        .iter()
        .fold((f64::INFINITY, 0.0_f64), |(least, most), &each| (least.min(each), most.max(each)));
    report.paragraph(format!(
        "The load generator itself took {least:.1} to {most:.1} µs per request. No answer was an error. \
         Resident memory after the load: {}.",
        memory.join(", ")
    ));
    for (operation, ratio) in worst {
        report.bar(Bar {
            name: format!("{database}: {}", operation.name()),
            value: ratio,
            limit: Limit::AtMost(operation.limit()),
            unit: "×",
        });
    }
}

/// Splits an answer's time into the database's and the rest, as the servers tell it.
async fn where_the_rest_goes(
    database: Database,
    targets: &[Target],
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    eprintln!("{database}: asking the servers for their times");
    report.heading(3, "Where the rest goes");
    report.paragraph(
        "One connection, so that nothing waits in a queue. \"Database\" is what the server says in \
         `Server-Timing`: statements, commit and, where the server counts them, hand-offs. \"Rest\" is \
         the mean answer less that: network, HTTP, routing, login, rights, hooks, JSON.",
    );
    let mut table = Table::new(&["operation", "server", "statements", "database µs", "rest µs", "answer µs"]);
    for operation in Operation::ALL {
        for target in targets {
            let mut crowd = crowd(target, operation, 1).await?;
            run(target, operation, &mut crowd, plan.warm_up).await?;
            let tally = run(target, operation, &mut crowd, plan.time / 2).await?;
            let told = tally.timed as f64;
            let mut cells = vec![operation.name().to_owned(), target.server.name.clone()];
            if tally.timed == 0 {
                cells.extend(["?", "?", "?"].map(str::to_owned));
            } else {
                cells.push(format!("{:.1}", tally.timing.statements / told));
                cells.push(format!("{:.0}", tally.timing.database / told));
                cells.push(format!("{:.0}", tally.mean() - tally.timing.database / told));
            }
            cells.push(format!("{:.0}", tally.mean()));
            table.row(cells);
        }
    }
    report.table(&table);
    Ok(())
}
