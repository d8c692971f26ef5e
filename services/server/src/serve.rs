//! `podyard serve` and `podyard worker`: puts the process together and takes
//! it apart again when asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::middleware::from_fn;
use actix_web::{App as ActixApp, HttpServer, web};
use podyard::db::{self, DatabaseUrl, Db};
use podyard::event::{self, FeedOptions};
use podyard::http::{App, Cors, HttpOptions, Rate};
use podyard::task::{Engine, WorkerOptions, Workers};
use podyard::{Core, telemetry};
use podyard_driver::{Driver, ProcessDriver};
use podyard_gateway::Gateway;
use podyard_identity::{Identity, IdentityOptions};
use podyard_kubernetes::KubernetesDriver;
use podyard_spaces::{Spaces, SpacesOptions};
use podyard_terminal::Terminals;

use crate::config::{DriverName, ResetPasswordArgs, ServeArgs};
use crate::process::{asked_to_end, log};
use crate::resolver::Platform;

/// A process put together, before it serves or works.
struct Process {
    core: Arc<Core>,
    identity: Arc<Identity>,
    spaces: Arc<Spaces>,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// An error of ours at start, where there is no request: its cause says more
/// than the sentence that is meant for clients.
fn told(error: &podyard::Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.message().to_owned(), ToString::to_string)
}

/// Opens the database, migrated.
fn open(url: &DatabaseUrl, options: db::Options) -> Result<Db, String> {
    for name in db::migrate(url).map_err(|e| format!("{}: {}", url.redacted(), told(&e)))? {
        tracing::info!(name, "migrated");
    }
    Db::open(url, options).map_err(|e| format!("{}: {}", url.redacted(), told(&e)))
}

async fn assemble(args: &ServeArgs) -> Result<Process, String> {
    let folder = &args.data.data_dir;
    let embedded = matches!(args.data.database(), DatabaseUrl::Sqlite(_));
    if embedded || args.driver.contains(&DriverName::Process) {
        private_folder(folder).map_err(|e| format!("--data-dir {}: {e}", folder.display()))?;
    }
    let options = db::Options {
        pool: args.database_pool,
        // Its client has been answered by then.
        statement_timeout: Duration::from_secs_f64(args.request_timeout + 1.0),
        ..db::Options::default()
    };
    let url = args.data.database();
    let db = tokio::task::spawn_blocking(move || open(&url, options)).await.map_err(text)??;
    let identity_options = IdentityOptions {
        token_lifetime: Duration::from_secs(args.token_lifetime),
        password_workers: args.password_workers.into(),
        password_queue: args.password_queue as usize,
    };
    let identity = {
        let db = db.clone();
        tokio::task::spawn_blocking(move || Identity::open(&db, identity_options)).await.map_err(text)?
    };
    let identity = Arc::new(identity.map_err(|e| told(&e))?);
    let drivers = drivers(args).await?;
    let spaces_options = SpacesOptions {
        max_spaces: args.max_spaces,
        max_running: args.max_running,
        start_timeout: Duration::from_secs(args.start_timeout),
        stop_grace: Duration::from_secs(args.stop_grace),
        node: args.node.clone(),
        image: args.image.clone(),
    };
    let spaces = Arc::new(Spaces::new(spaces_options, drivers));
    let feed = FeedOptions {
        retention: Duration::from_secs(args.event_retention * 86_400),
        ..FeedOptions::default()
    };
    let core = Core::new(db, identity.clone()).with_feed(feed);
    let core = Arc::new(core.with_service(identity.clone()).with_service(spaces.clone()));
    podyard::runtime::refresh(&core).await.map_err(|e| told(&e))?;
    Ok(Process { core, identity, spaces })
}

/// What runs spaces, the first for templates that name none.
async fn drivers(args: &ServeArgs) -> Result<Vec<Arc<dyn Driver>>, String> {
    let mut all: Vec<Arc<dyn Driver>> = Vec::new();
    for (i, name) in args.driver.iter().enumerate() {
        if args.driver[..i].contains(name) {
            return Err("--driver: names one of them twice".to_owned());
        }
        all.push(match name {
            DriverName::Process => {
                let podyard = std::env::current_exe().map_err(text)?;
                let options = podyard_driver::Options { data_dir: args.data.data_dir.clone(), podyard };
                Arc::new(ProcessDriver::open(options).await.map_err(text)?)
            }
            DriverName::Kubernetes => {
                let options = args.kubernetes.options(Duration::from_secs(args.stop_grace));
                Arc::new(KubernetesDriver::open(options).await.map_err(text)?)
            }
        });
    }
    Ok(all)
}

/// A socket that takes connections from now on; they wait until the process
/// is ready.
fn listen(addr: std::net::SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    // Whoever takes nothing for a minute is gone, whatever was still to be sent.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(60)))?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The folder, for this user only: databases and people's files are in it.
fn private_folder(folder: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if folder.exists() && !folder.is_dir() {
        return Err(std::io::Error::other("is not a folder"));
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn start_workers(core: &Arc<Core>, args: &ServeArgs) -> Result<Workers, String> {
    let known = podyard::task::names();
    let kind = |name: &str, option: &str| {
        let found = known.iter().find(|it| **it == name).copied();
        found.ok_or_else(|| {
            format!("{option} {name}: there is no such kind of task; there are {}", known.join(", "))
        })
    };
    let names: Result<Vec<_>, _> = args.task_names.iter().map(|it| kind(it, "--task-names")).collect();
    let names = Some(names?).filter(|it| !it.is_empty());
    for (name, _) in &args.task_limit {
        kind(name, "--task-limit")?;
    }
    let options = WorkerOptions {
        slots: args.task_slots as usize,
        names,
        limits: args.task_limit.iter().cloned().collect(),
        lease: Duration::from_secs(args.task_lease),
        keep: Duration::from_secs(args.task_retention * 86_400),
        grace: Duration::from_secs(args.shutdown_grace),
        ..WorkerOptions::default()
    };
    Engine::run(core, options).map_err(text)
}

/// What runs beside the requests for as long as the process lives; some of it
/// ends with what is returned.
#[must_use]
fn background(process: &Process, args: &ServeArgs) -> event::Running {
    let feed = event::run(&process.core);
    let keep = Duration::from_secs(args.trash_retention);
    tokio::spawn(podyard::trash::sweep(process.core.clone(), keep));
    let (core, spaces) = (process.core.clone(), process.spaces.clone());
    tokio::spawn(podyard_spaces::observe(core, spaces));
    tokio::spawn(podyard::runtime::follow(process.core.clone()));
    let (core, identity) = (process.core.clone(), process.identity.clone());
    tokio::spawn(async move {
        // Other processes' revocations are known here within a second.
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(error) = identity.sync(&core.db).await {
                tracing::warn!(%error, "revocations could not be read");
            }
        }
    });
    feed
}

fn readings(core: &Arc<Core>, gateway: Option<&Gateway>) {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    let db = core.db.clone();
    #[expect(clippy::cast_precision_loss, reason = "a gauge of small numbers")]
    telemetry::watch("podyard_db_waiting", "gauge", "Jobs that wait for the database.", move || {
        db.waiting() as f64
    });
    core.tasks.watch();
    core.feed.readings();
    telemetry::watch("process_resident_memory_bytes", "gauge", "Memory in RAM.", resident);
    let Some(stats) = gateway.map(Gateway::stats) else { return };
    type Read = fn(&podyard_gateway::Stats) -> &AtomicU64;
    let all: [(&str, &str, &str, Read); 6] = [
        ("podyard_gateway_requests_total", "counter", "Requests passed on to spaces.", |s| &s.requests),
        ("podyard_gateway_tunnels_total", "counter", "Websockets opened.", |s| &s.tunnels),
        ("podyard_gateway_open_tunnels", "gauge", "Websockets open now.", |s| &s.open_tunnels),
        ("podyard_gateway_bytes_up_total", "counter", "Bytes to spaces.", |s| &s.bytes_up),
        ("podyard_gateway_bytes_down_total", "counter", "Bytes from spaces.", |s| &s.bytes_down),
        ("podyard_gateway_upstream_errors_total", "counter", "Spaces that did not answer.", |s| {
            &s.upstream_errors
        }),
    ];
    for (name, kind, help, read) in all {
        let stats = stats.clone();
        #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
        telemetry::watch(name, kind, help, move || read(&stats).load(Relaxed) as f64);
    }
}

/// The terminals, with their numbers.
fn terminals(args: &ServeArgs) -> Terminals {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    let terminals = Terminals::new(podyard_terminal::Options {
        rights: args.terminal_right.iter().cloned().collect(),
        most: args.max_terminals as usize,
        most_in_space: args.max_space_terminals as usize,
        idle: Duration::from_secs(args.terminal_idle),
        ping: Duration::from_secs(args.terminal_ping),
    });
    type Read = fn(&podyard_terminal::Stats) -> &AtomicU64;
    let all: [(&str, &str, &str, Read); 5] = [
        ("podyard_terminals_opened_total", "counter", "Terminals opened.", |s| &s.opened),
        ("podyard_terminals_open", "gauge", "Terminals open now.", |s| &s.open),
        ("podyard_terminal_tasks", "gauge", "Tasks that carry terminals' bytes now.", |s| &s.tasks),
        ("podyard_terminal_bytes_typed_total", "counter", "Bytes typed in terminals.", |s| &s.typed),
        ("podyard_terminal_bytes_shown_total", "counter", "Bytes shown in terminals.", |s| &s.shown),
    ];
    for (name, kind, help, read) in all {
        let stats = terminals.stats();
        #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
        telemetry::watch(name, kind, help, move || read(&stats).load(Relaxed) as f64);
    }
    let tasks = tokio::runtime::Handle::current().metrics();
    #[expect(clippy::cast_precision_loss, reason = "a gauge of small numbers")]
    telemetry::watch("podyard_async_tasks", "gauge", "Tasks of the main runtime.", move || {
        tasks.num_alive_tasks() as f64
    });
    terminals
}

/// Resident memory, where /proc tells.
fn resident() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|it| it.split(' ').nth(1)?.parse::<f64>().ok()).unwrap_or(0.0);
    #[expect(clippy::cast_precision_loss, reason = "a page is a few KiB")]
    let size = rustix::param::page_size() as f64;
    pages * size
}

/// A rate with room for twice as many at once, unless told otherwise.
fn rate(per_second: u32, burst: u32) -> Rate {
    Rate { per_second, burst: if burst == 0 { per_second.saturating_mul(2) } else { burst } }
}

pub(crate) async fn serve(args: ServeArgs) -> Result<(), String> {
    let start = Instant::now();
    let cors = Cors::new(args.cors_origin.iter().map(String::as_str));
    let cors = cors.map_err(|e| format!("--cors-origin {e}"))?;
    let _log = log(&args.log, args.log_format)?;
    // Before anything is made: a port that is taken must not leave a first
    // login behind that nobody will look for.
    let listener = listen(args.listen).map_err(|e| format!("--listen {}: {e}", args.listen))?;
    let process = assemble(&args).await?;
    let (core, identity) = (process.core.clone(), process.identity.clone());
    let password =
        podyard_identity::bootstrap(&core, args.admin_password.clone()).await.map_err(|e| told(&e))?;
    if let Some(password) = &password {
        // Before anything else can fail: it is told once only.
        println!("First login: user admin, password {password}");
        println!("It is shown once; `podyard reset-password` makes a new one.");
    }
    podyard_spaces::seed(&core).await.map_err(|e| told(&e))?;
    core.warm().await.map_err(|e| told(&e))?;

    let resolver =
        Platform { core: core.clone(), identity: identity.clone(), spaces: process.spaces.clone() };
    let gateway_options = podyard_gateway::Options {
        trust_forwarded: args.trust_forwarded,
        request_id: Some(podyard::http::request_id),
        ..podyard_gateway::Options::default()
    };
    let gateway = Gateway::new(Arc::new(resolver), gateway_options);
    readings(&core, Some(&gateway));
    let terminals = terminals(&args);

    let http = HttpOptions {
        body_limit: args.body_limit,
        metrics_token: args.metrics_token.clone(),
        trust_forwarded: args.trust_forwarded,
        cors,
        rate: rate(args.rate_limit, args.rate_burst),
        anonymous_rate: rate(args.anonymous_rate_limit, 0),
        timeout: Duration::from_secs_f64(args.request_timeout),
        compress: !args.no_compression,
    };
    let app = web::Data::new(App::new(core.clone(), http));
    let identity = web::Data::new(identity);
    let (factory_gateway, factory_terminals) = (gateway.clone(), terminals.clone());
    let mut server = HttpServer::new(move || {
        ActixApp::new()
            .wrap(from_fn(podyard::http::manners))
            .app_data(app.clone())
            .app_data(identity.clone())
            .configure(podyard_identity::configure)
            .configure(|cfg| factory_gateway.configure(cfg))
            .configure(|cfg| factory_terminals.configure(cfg))
            .configure(podyard_spaces::configure)
            .configure(podyard::http::configure)
    })
    .disable_signals()
    .on_connect(podyard_gateway::connected)
    .client_request_timeout(Duration::from_secs(args.header_timeout))
    // Well above the half second by which actix's clock may be late: a deadline
    // that is past when it is set would leave the connection open.
    .client_disconnect_timeout(Duration::from_secs(1))
    .shutdown_timeout(args.shutdown_grace)
    .server_hostname("podyard");
    if args.http_threads > 0 {
        server = server.workers(usize::from(args.http_threads));
    }
    let server = server.listen(listener).map_err(|e| format!("--listen {}: {e}", args.listen))?;
    let addrs = server.addrs();
    let server = server.run();
    let handle = server.handle();
    let serving = tokio::spawn(server);
    let workers = start_workers(&core, &args)?;
    let _feed = background(&process, &args);
    let addr = addrs.first().copied().unwrap_or(args.listen);
    let ms = start.elapsed().as_millis();
    tracing::info!(%addr, database = args.data.database().redacted(), ms, "ready");
    println!("Podyard {} listens on http://{addr} (ready after {ms} ms)", env!("CARGO_PKG_VERSION"));

    asked_to_end().await?;
    gateway.shut_down();
    core.feed.shut_down();
    process.spaces.shut_down();
    // Requests end and stages end or hand back their lease, side by side.
    let grace = Duration::from_secs(args.shutdown_grace);
    tokio::join!(handle.stop(true), workers.drain(), terminals.shut_down(grace));
    let _ = serving.await;
    process.spaces.close().await;
    tracing::info!("ended");
    Ok(())
}

pub(crate) async fn work(args: ServeArgs) -> Result<(), String> {
    let _log = log(&args.log, args.log_format)?;
    let process = assemble(&args).await?;
    readings(&process.core, None);
    let workers = start_workers(&process.core, &args)?;
    let _feed = background(&process, &args);
    tracing::info!(database = args.data.database().redacted(), "works on tasks");
    asked_to_end().await?;
    workers.drain().await;
    process.spaces.close().await;
    tracing::info!("ended");
    Ok(())
}

pub(crate) async fn reset_password(args: ResetPasswordArgs) -> Result<(), String> {
    let url = args.data.database();
    let db =
        tokio::task::spawn_blocking(move || open(&url, db::Options::default())).await.map_err(text)??;
    let identity = {
        let db = db.clone();
        tokio::task::spawn_blocking(move || Identity::open(&db, IdentityOptions::default())).await
    };
    let identity = Arc::new(identity.map_err(text)?.map_err(text)?);
    let core = Arc::new(Core::new(db, identity.clone()).with_service(identity));
    let password =
        podyard_identity::reset_password(&core, &args.user, args.domain.as_deref()).await.map_err(text)?;
    println!("User {}, password {password}", args.user);
    Ok(())
}
