//! The yardstick's table as a resource of the framework: what the benchmarks measure beside it.
//!
//! Nothing is left out that a real service has: login by the identity service, hooks, rights,
//! the class lock, versions, the ops log, metrics, the log, and workers that run tasks.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{App as ActixApp, HttpServer, web};
use clap::Parser;
use podyard::{
    Core, Nothing,
    db::{self, DatabaseUrl, Db},
    http::{App, HttpOptions},
    prelude::*,
    task::{Engine, WorkerOptions},
};
use podyard_identity::{Credentials, Identity, IdentityOptions};
use tracing_subscriber::EnvFilter;

podyard::migrations!("bench", "migrations/sqlite", "migrations/postgres");

/// The administrator's password, for a database that goes with the benchmark.
const PASSWORD: &str = "only for benchmarks";

/// The framework's server of the benchmarks.
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
    connections: u32,
    /// Most writes in one commit; the framework's own number, unless said.
    #[arg(long)]
    group: Option<usize>,
    /// What the log tells; as much as the real server's does, unless said.
    #[arg(long, default_value = "info")]
    log: String,
}

/// A server, as the yardstick has it.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "server", plural = "servers", read = "user", write = "user")]
pub struct Server {
    /// Name and description.
    pub base: StandaloneBase,
    /// Where it stands.
    #[field(list = "user", create = "optional", update = "user", default = "ready", index, max = 32)]
    pub status: String,
    /// Whose it is.
    #[field(list = "user", create = "required", max = 64)]
    pub owner: String,
    /// Its processor cores.
    #[field(list = "user", create = "optional", update = "user", default = 1)]
    pub cpu: i32,
}

impl Manager for Server {
    fn validate_create_data(_: &mut Tx<'_>, input: &mut ServerCreate) -> Result<()> {
        if input.cpu < 0 {
            return Err(Error::field("cpu", "must not be negative"));
        }
        Ok(())
    }
}

impl Model for Server {
    fn pre_update(&mut self, _: &mut Tx<'_>, _: &ServerUpdate) -> Result<()> {
        if self.cpu < 0 {
            return Err(Error::field("cpu", "must not be negative"));
        }
        Ok(())
    }
}

#[actions]
impl Server {
    /// Starts a task that does nothing.
    fn perform_nothing(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        tx.start_task::<DoNothing>(self, Nothing {})?;
        Ok(())
    }
}

/// Does nothing, in one stage.
pub struct DoNothing;

#[stages(object = Server)]
impl DoNothing {
    async fn on_init(_: &mut TaskCtx<Server, Nothing>) -> Stage {
        Stage::complete()
    }

    async fn on_init_failed(_: &mut TaskCtx<Server, Nothing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

fn main() -> std::result::Result<(), Fault> {
    let options = Options::parse();
    let (log, _log) = podyard::telemetry::log_writer();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&options.log)?)
        .with_writer(log)
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_current_span(false)
        .init();
    // Tasks run on these; HTTP has its own, as in the real server.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(options))
}

fn open(url: &DatabaseUrl, settings: db::Options) -> Result<(Db, Arc<Identity>)> {
    db::migrate(url)?;
    let db = Db::open(url, settings)?;
    let identity = Identity::open(&db, IdentityOptions::default())?;
    Ok((db, Arc::new(identity)))
}

async fn serve(options: Options) -> std::result::Result<(), Fault> {
    let workers = match options.workers {
        Some(workers) => workers,
        None => std::thread::available_parallelism()?.get(),
    };
    let url = &options.database_url;
    let url = if url.contains("://") { url.clone() } else { format!("sqlite://{url}") };
    let url: DatabaseUrl = url.parse()?;
    let settings = db::Options::default();
    let group = options.group.unwrap_or(settings.group);
    let settings = db::Options { pool: options.connections, group, ..settings };
    let (db, identity) = tokio::task::spawn_blocking(move || open(&url, settings)).await??;
    let core = Arc::new(Core::new(db, identity.clone()).with_service(identity.clone()));
    podyard_identity::bootstrap(&core, Some(PASSWORD.to_owned())).await?;
    let login = Credentials {
        user: podyard_identity::UserRef::Name("admin".to_owned()),
        domain: "Default".to_owned(),
        password: PASSWORD.to_owned(),
        address: String::new(),
    };
    let (token, _) = identity.login(&core, login).await.map_err(Error::from)?;
    println!("header: X-Auth-Token: {token}");

    let app = web::Data::new(App::new(core.clone(), HttpOptions::default()));
    let login = web::Data::new(identity.clone());
    let server = HttpServer::new(move || {
        ActixApp::new()
            .wrap(actix_web::middleware::from_fn(podyard::http::manners))
            .app_data(app.clone())
            .app_data(login.clone())
            .configure(podyard_identity::configure)
            .configure(podyard::http::configure)
    })
    .workers(workers)
    .shutdown_timeout(1)
    .bind(options.listen)?
    .run();
    let server = tokio::spawn(server);
    let tasks = Engine::run(&core, WorkerOptions::default())?;
    core.tasks.watch();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            // The next try is a second away.
            let _ = identity.sync(&core.db).await;
        }
    });
    server.await??;
    tasks.drain().await;
    Ok(())
}
