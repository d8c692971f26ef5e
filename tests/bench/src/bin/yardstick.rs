//! The yardstick: one table served by hand, as fast as this stack is known to go.
//!
//! It is the lower bound that the framework is measured against, so it is written for speed
//! and for nothing else: no login, no hooks, no audit, no validation beyond the types.
//!
//! - SQLite: each actix worker reads inline on a connection of its own; all writes go through
//!   one thread, which commits for everybody that waits, a savepoint each, and answers after
//!   the commit. `synchronous=FULL`: what was answered is on disk.
//! - PostgreSQL: 16 threads own a connection each and take work from one channel.
//!
//! Both use plain typed diesel and write the JSON on the thread that has the rows.

use std::{
    error::Error,
    fmt::Write as _,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{App, HttpResponse, HttpServer, http::StatusCode, http::header, web};
use chrono::{DateTime, SubsecRound as _, Utc};
use clap::Parser;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The yardstick server of the benchmarks.
#[derive(Parser)]
struct Options {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The path of an SQLite file, or a postgres:// URL.
    #[arg(long)]
    database_url: String,
    /// The number of actix workers; as many as there are cores, unless said.
    #[arg(long)]
    workers: Option<usize>,
    /// The number of threads with a PostgreSQL connection.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Tells the time in the database in a `Server-Timing` header.
    #[arg(long)]
    server_timing: bool,
}

/// The body of a create.
#[derive(Deserialize)]
struct Create {
    name: String,
    #[serde(default)]
    description: String,
    status: String,
    owner: String,
    cpu: i32,
}

/// The body of an update: what is absent stays as it is.
#[derive(Deserialize)]
struct Update {
    name: Option<String>,
    description: Option<String>,
    status: Option<String>,
    cpu: Option<i32>,
}

/// The envelope of one object.
#[derive(Serialize, Deserialize)]
struct One<T> {
    server: T,
}

/// The envelope of a list.
#[derive(Serialize)]
struct Many<T> {
    servers: Vec<T>,
}

/// The query of a list.
#[derive(Deserialize)]
struct Page {
    status: String,
    #[serde(default = "default_limit")]
    limit: i64,
}

fn default_limit() -> i64 {
    20
}

/// What a request asks of the database.
enum Op {
    Get(Uuid),
    List(Page),
    Create(Create),
    Update(Uuid, Update),
    Delete(Uuid),
}

/// What the database said: a JSON body, no such row, or a fault.
type Outcome = Result<Option<Vec<u8>>, Fault>;

type Fault = Box<dyn Error + Send + Sync>;

/// An outcome with the time that its statements took; of a group's commit everybody is told all.
struct Answer {
    outcome: Outcome,
    database: Duration,
}

/// A request on its way to a thread with a connection.
struct Job {
    op: Op,
    reply: tokio::sync::oneshot::Sender<Answer>,
}

/// The table, its row and its five statements, for one database.
///
/// diesel's types differ with the database (SQLite keeps ids and times as text, PostgreSQL has
/// types for both), so the lines are written once and expanded twice, which costs nothing.
macro_rules! back_end {
    (
        $name:ident,
        $connection:ty,
        ($id_sql:ty, $id:ty, $to_id:path),
        ($time_sql:ty, $time:ty, $to_time:path)
    ) => {
        mod $name {
            use diesel::prelude::*;

            use super::*;

            diesel::table! {
                servers (id) {
                    id -> $id_sql,
                    name -> Text,
                    description -> Text,
                    status -> Text,
                    owner -> Text,
                    cpu -> Integer,
                    created_at -> $time_sql,
                }
            }

            #[derive(Queryable, Insertable, Serialize)]
            #[diesel(table_name = servers)]
            struct Row {
                id: $id,
                name: String,
                description: String,
                status: String,
                owner: String,
                cpu: i32,
                created_at: $time,
            }

            #[derive(AsChangeset)]
            #[diesel(table_name = servers)]
            struct Change {
                name: Option<String>,
                description: Option<String>,
                status: Option<String>,
                cpu: Option<i32>,
            }

            /// Runs one request's statement and writes its JSON.
            pub(super) fn run(connection: &mut $connection, op: &Op) -> Outcome {
                let row = match op {
                    Op::Get(id) => {
                        servers::table.find($to_id(*id)).get_result::<Row>(connection).optional()?
                    }
                    Op::List(page) => {
                        let rows = servers::table
                            .filter(servers::status.eq(&page.status))
                            .order((servers::created_at, servers::id))
                            .limit(page.limit)
                            .load::<Row>(connection)?;
                        return Ok(Some(json(&Many { servers: rows }, 4096)?));
                    }
                    Op::Create(input) => {
                        let row = Row {
                            id: $to_id(Uuid::now_v7()),
                            name: input.name.clone(),
                            description: input.description.clone(),
                            status: input.status.clone(),
                            owner: input.owner.clone(),
                            cpu: input.cpu,
                            created_at: $to_time(now()),
                        };
                        diesel::insert_into(servers::table).values(&row).execute(connection)?;
                        Some(row)
                    }
                    Op::Update(id, input) => {
                        let change = Change {
                            name: input.name.clone(),
                            description: input.description.clone(),
                            status: input.status.clone(),
                            cpu: input.cpu,
                        };
                        diesel::update(servers::table.find($to_id(*id)))
                            .set(change)
                            .get_result::<Row>(connection)
                            .optional()?
                    }
                    Op::Delete(id) => {
                        let gone = diesel::delete(servers::table.find($to_id(*id))).execute(connection)?;
                        return Ok((gone > 0).then(Vec::new));
                    }
                };
                row.map(|server| json(&One { server }, 320)).transpose()
            }
        }
    };
}

back_end!(sqlite_table, diesel::SqliteConnection, (Text, String, id_text), (Text, String, time_text));
back_end!(
    postgres_table,
    diesel::PgConnection,
    (diesel::sql_types::Uuid, uuid::Uuid, std::convert::identity),
    (diesel::sql_types::Timestamptz, chrono::DateTime<chrono::Utc>, std::convert::identity)
);

fn id_text(id: Uuid) -> String {
    id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()).to_owned()
}

fn time_text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// The time, as exact as PostgreSQL keeps it.
fn now() -> DateTime<Utc> {
    DateTime::<Utc>::from(std::time::SystemTime::now()).trunc_subsecs(6)
}

fn json<T: Serialize>(value: &T, capacity: usize) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::with_capacity(capacity);
    serde_json::to_writer(&mut body, value)?;
    Ok(body)
}

/// Where requests go for their data.
#[derive(Clone)]
enum Store {
    /// Reads run where they are, writes on the writer's thread.
    Sqlite { path: Arc<str>, writer: flume::Sender<Job> },
    /// All run on the threads behind the channel.
    Postgres { threads: flume::Sender<Job> },
}

impl Store {
    fn open(url: &str, connections: usize) -> Result<Self, Fault> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            postgres::open(url, connections)
        } else {
            sqlite::open(url)
        }
    }

    async fn run(&self, op: Op) -> Answer {
        let (reply, answer) = tokio::sync::oneshot::channel();
        match self {
            Self::Sqlite { path, .. } if matches!(op, Op::Get(_) | Op::List(_)) => {
                return sqlite::read(path, &op);
            }
            // The channels are unbounded: a send never waits, and only fails when the thread died.
            Self::Sqlite { writer: threads, .. } | Self::Postgres { threads } => {
                if let Err(error) = threads.send(Job { op, reply }) {
                    return Answer { outcome: Err(error.to_string().into()), database: Duration::ZERO };
                }
            }
        }
        answer.await.unwrap_or_else(|error| Answer { outcome: Err(error.into()), database: Duration::ZERO })
    }
}

mod sqlite {
    //! Reads inline, writes in groups.

    use std::cell::RefCell;

    use diesel::{SqliteConnection, connection::SimpleConnection as _, prelude::*};

    use super::*;

    /// So many writes share one commit at most.
    const GROUP: usize = 64;

    thread_local! {
        /// The connection that this actix worker reads with.
        static READER: RefCell<Option<SqliteConnection>> = const { RefCell::new(None) };
    }

    pub(super) fn open(path: &str) -> Result<Store, Fault> {
        let mut connection = connect(path)?;
        connection.batch_execute(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             CREATE TABLE IF NOT EXISTS servers (
                 id TEXT NOT NULL PRIMARY KEY,
                 name TEXT NOT NULL,
                 description TEXT NOT NULL,
                 status TEXT NOT NULL,
                 owner TEXT NOT NULL,
                 cpu INTEGER NOT NULL,
                 created_at TEXT NOT NULL
             );
             CREATE INDEX IF NOT EXISTS servers_status ON servers (status, created_at, id);",
        )?;
        let (writer, jobs) = flume::unbounded();
        std::thread::Builder::new().name("writer".into()).spawn(move || write(&mut connection, &jobs))?;
        Ok(Store::Sqlite { path: path.into(), writer })
    }

    fn connect(path: &str) -> Result<SqliteConnection, Fault> {
        let mut connection = SqliteConnection::establish(path)?;
        connection.batch_execute("PRAGMA busy_timeout = 5000;")?;
        Ok(connection)
    }

    /// Runs a read on this thread: get and list are bounded, so they cannot hold a worker up.
    pub(super) fn read(path: &str, op: &Op) -> Answer {
        let start = Instant::now();
        let outcome = READER.with_borrow_mut(|reader| {
            let connection = match reader {
                Some(connection) => connection,
                None => reader.insert(connect(path)?),
            };
            sqlite_table::run(connection, op)
        });
        Answer { outcome, database: start.elapsed() }
    }

    /// The writer's life: takes what waits, runs it in one transaction, commits, answers.
    fn write(connection: &mut SqliteConnection, jobs: &flume::Receiver<Job>) {
        let mut answers = Vec::with_capacity(GROUP);
        while let Ok(first) = jobs.recv() {
            let start = Instant::now();
            let committed = group(connection, first, jobs, &mut answers);
            let database = start.elapsed();
            for (outcome, reply) in answers.drain(..) {
                let outcome = match &committed {
                    Ok(()) => outcome,
                    Err(error) => Err(error.to_string().into()),
                };
                // A client that went away is not waiting for its answer.
                let _ = reply.send(Answer { outcome, database });
            }
        }
    }

    type Waiting = (Outcome, tokio::sync::oneshot::Sender<Answer>);

    fn group(
        connection: &mut SqliteConnection,
        first: Job,
        jobs: &flume::Receiver<Job>,
        answers: &mut Vec<Waiting>,
    ) -> QueryResult<()> {
        let begun = connection.batch_execute("BEGIN IMMEDIATE");
        for job in std::iter::once(first).chain(jobs.try_iter()).take(GROUP) {
            let outcome = match &begun {
                Ok(()) => one(connection, &job.op),
                Err(error) => Err(error.to_string().into()),
            };
            answers.push((outcome, job.reply));
        }
        begun?;
        connection.batch_execute("COMMIT").inspect_err(|_| {
            // The commit's own error is the one to tell.
            let _ = connection.batch_execute("ROLLBACK");
        })
    }

    /// One request's writes, which fail without the others'.
    fn one(connection: &mut SqliteConnection, op: &Op) -> Outcome {
        connection.batch_execute("SAVEPOINT one")?;
        let outcome = sqlite_table::run(connection, op);
        connection.batch_execute(match outcome {
            Ok(_) => "RELEASE one",
            Err(_) => "ROLLBACK TO one; RELEASE one",
        })?;
        outcome
    }
}

mod postgres {
    //! Threads with a connection each.

    use diesel::{
        PgConnection,
        connection::SimpleConnection as _,
        prelude::*,
        result::{DatabaseErrorKind, Error as DieselError},
    };

    use super::*;

    pub(super) fn open(url: &str, connections: usize) -> Result<Store, Fault> {
        PgConnection::establish(url)?.batch_execute(
            "CREATE TABLE IF NOT EXISTS servers (
                 id uuid NOT NULL PRIMARY KEY,
                 name text NOT NULL,
                 description text NOT NULL,
                 status text NOT NULL,
                 owner text NOT NULL,
                 cpu integer NOT NULL,
                 created_at timestamptz NOT NULL
             );
             CREATE INDEX IF NOT EXISTS servers_status ON servers (status, created_at, id);",
        )?;
        let (threads, jobs) = flume::unbounded();
        for number in 0..connections {
            let (url, jobs) = (url.to_owned(), jobs.clone());
            let mut connection = PgConnection::establish(&url)?;
            std::thread::Builder::new()
                .name(format!("postgres-{number}"))
                .spawn(move || work(&url, &mut connection, &jobs))?;
        }
        Ok(Store::Postgres { threads })
    }

    fn work(url: &str, connection: &mut PgConnection, jobs: &flume::Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let start = Instant::now();
            let mut outcome = postgres_table::run(connection, &job.op);
            if let Err(error) = &outcome
                && is_broken(error)
                && let Ok(fresh) = PgConnection::establish(url)
            {
                *connection = fresh;
                outcome = postgres_table::run(connection, &job.op);
            }
            // A client that went away is not waiting for its answer.
            let _ = job.reply.send(Answer { outcome, database: start.elapsed() });
        }
    }

    fn is_broken(error: &Fault) -> bool {
        matches!(
            error.downcast_ref(),
            Some(DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                _
            ))
        )
    }
}

/// What every worker has.
#[derive(Clone)]
struct Site {
    store: Store,
    server_timing: bool,
}

impl Site {
    /// Runs the request and makes its answer.
    async fn answer(&self, op: Op, success: StatusCode) -> HttpResponse {
        let answer = self.store.run(op).await;
        let (status, body) = match answer.outcome {
            Ok(Some(body)) => (success, body),
            Ok(None) => (StatusCode::NOT_FOUND, b"{}".to_vec()),
            Err(error) => return HttpResponse::InternalServerError().body(error.to_string()),
        };
        let mut response = HttpResponse::build(status);
        if self.server_timing {
            let mut timing = String::with_capacity(48);
            let milliseconds = answer.database.as_secs_f64() * 1e3;
            // Writing to a string cannot fail.
            let _ = write!(timing, "db;dur={milliseconds:.3};desc=\"1 statements\"");
            response.insert_header(("Server-Timing", timing));
        }
        response.insert_header((header::CONTENT_TYPE, "application/json")).body(body)
    }
}

type Shared = web::Data<Site>;

async fn list(site: Shared, page: web::Query<Page>) -> HttpResponse {
    site.answer(Op::List(page.into_inner()), StatusCode::OK).await
}

async fn get(site: Shared, id: web::Path<Uuid>) -> HttpResponse {
    site.answer(Op::Get(*id), StatusCode::OK).await
}

async fn create(site: Shared, body: web::Bytes) -> HttpResponse {
    match serde_json::from_slice::<One<Create>>(&body) {
        Ok(input) => site.answer(Op::Create(input.server), StatusCode::CREATED).await,
        Err(error) => HttpResponse::BadRequest().body(error.to_string()),
    }
}

async fn update(site: Shared, id: web::Path<Uuid>, body: web::Bytes) -> HttpResponse {
    match serde_json::from_slice::<One<Update>>(&body) {
        Ok(input) => site.answer(Op::Update(*id, input.server), StatusCode::OK).await,
        Err(error) => HttpResponse::BadRequest().body(error.to_string()),
    }
}

async fn delete(site: Shared, id: web::Path<Uuid>) -> HttpResponse {
    site.answer(Op::Delete(*id), StatusCode::NO_CONTENT).await
}

async fn ready() -> &'static str {
    "ok"
}

#[actix_web::main]
async fn main() -> Result<(), Fault> {
    let options = Options::parse();
    let workers = match options.workers {
        Some(workers) => workers,
        None => std::thread::available_parallelism()?.get(),
    };
    let site = Site {
        store: Store::open(&options.database_url, options.connections)?,
        server_timing: options.server_timing,
    };
    HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(site.clone()))
            .route("/readyz", web::get().to(ready))
            .route("/servers", web::get().to(list))
            .route("/servers", web::post().to(create))
            .route("/servers/{id}", web::get().to(get))
            .route("/servers/{id}", web::put().to(update))
            .route("/servers/{id}", web::delete().to(delete))
    })
    .workers(workers)
    .shutdown_timeout(1)
    .bind(options.listen)?
    .run()
    .await?;
    Ok(())
}
