//! What users and administrators see of tasks, over HTTP with workers that
//! run: callbacks, kinds that are paused, schedules, timelines, watches. SQLite
//! always, PostgreSQL where `PODYARD_TEST_POSTGRES_URL` names one.
#![expect(clippy::unwrap_used, reason = "a test may stop at once")]

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use actix_web::{App as ActixApp, HttpServer, web};
use diesel::connection::{Connection as _, SimpleConnection as _};
use podyard::auth::{Access, Authenticator, UserCred};
use podyard::db::{self, DatabaseUrl, Db, Options, Sql};
use podyard::event::{self, FeedOptions};
use podyard::http::{App, HttpOptions};
use podyard::prelude::*;
use podyard::task::{Engine, TaskType, WorkerOptions, Workers};
use podyard::{Core, new_id};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A thing to work on.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "gadget", plural = "gadgets")]
pub struct Gadget {
    /// The base.
    pub base: VirtualBase,
}

impl Manager for Gadget {}
impl Model for Gadget {}

const TABLES: &str = "CREATE TABLE gadgets (id TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, \
     created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL, \
     status TEXT NOT NULL, status_reason TEXT NOT NULL, domain_id TEXT NOT NULL, project_id TEXT NOT NULL, \
     user_id TEXT NOT NULL, deleted BOOLEAN NOT NULL, deleted_at BIGINT);";

/// Callback tokens that stages gave out, by object.
static TOKENS: LazyLock<Mutex<HashMap<String, String>>> = LazyLock::new(Mutex::default);

/// How a task goes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// How long a stage takes.
    #[serde(default)]
    nap_ms: u64,
    /// Whether it fails, until it is retried.
    #[serde(default)]
    fail: bool,
}

/// Waits for a callback, and gives what that brought.
pub struct Call;

#[stages(object = Gadget, params = Params)]
impl Call {
    async fn on_init(t: &mut TaskCtx<Gadget, Params>) -> Stage {
        TOKENS.lock().unwrap().insert(t.object().id.clone(), t.callback());
        tokio::time::sleep(Duration::from_millis(t.params().nap_ms)).await;
        Stage::wait(Self::ON_CALLED).within(Duration::from_secs(60))
    }
    async fn on_init_failed(_: &mut TaskCtx<Gadget, Params>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_called(_: &mut TaskCtx<Gadget, Params>, data: Value) -> Stage {
        Stage::complete().data(data)
    }
    async fn on_called_failed(_: &mut TaskCtx<Gadget, Params>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// Two stages that take a while.
pub struct Work;

#[stages(object = Gadget, params = Params)]
impl Work {
    async fn on_init(t: &mut TaskCtx<Gadget, Params>) -> Stage {
        tokio::time::sleep(Duration::from_millis(t.params().nap_ms)).await;
        Stage::next(Self::ON_SECOND).data("input")
    }
    async fn on_init_failed(_: &mut TaskCtx<Gadget, Params>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_second(t: &mut TaskCtx<Gadget, Params>, _: String) -> Stage {
        if t.params().fail { Stage::fail("it was to fail") } else { Stage::complete() }
    }
    async fn on_second_failed(_: &mut TaskCtx<Gadget, Params>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// One of a kind that nobody pauses.
pub struct Other;

#[stages(object = Gadget, params = Params, concurrency = 7, per_second = 500, priority = 60)]
impl Other {
    async fn on_init(_: &mut TaskCtx<Gadget, Params>) -> Stage {
        Stage::complete()
    }
    async fn on_init_failed(_: &mut TaskCtx<Gadget, Params>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// Those who own, and what they are in.
fn owners() -> String {
    let mut sql = String::new();
    for table in ["users", "projects", "domains"] {
        sql += &format!(
            "CREATE TABLE {table} (id TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, created_at BIGINT NOT NULL, \
             updated_at BIGINT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL);"
        );
    }
    let mut domains = std::collections::BTreeSet::new();
    for token in [ANN, BOB, ADMIN] {
        let it = cred(token).unwrap();
        domains.insert(it.domain_id.clone());
        for (table, id) in [("users", &it.user_id), ("projects", &it.project_id)] {
            sql += &format!("INSERT INTO {table} VALUES ('{id}', 1, 0, 0, '{id}', '');");
        }
    }
    for id in domains {
        sql += &format!("INSERT INTO domains VALUES ('{id}', 1, 0, 0, '{id}', '');");
    }
    sql
}

/// The types that a note refers to by its base.
mod owners {
    use podyard::prelude::*;

    macro_rules! owner {
        ($name:ident, $keyword:literal, $plural:literal) => {
            /// An owner.
            #[derive(Debug, Clone, Default, Resource)]
            #[resource(keyword = $keyword, plural = $plural)]
            pub struct $name {
                /// The base.
                pub base: StandaloneBase,
            }
            impl Manager for $name {}
            impl Model for $name {}
        };
    }
    owner!(User, "user", "users");
    owner!(Project, "project", "projects");
    owner!(Domain, "domain", "domains");
}

/// A token is `<user>:<domain>:<rank>`.
struct Tokens;

fn cred(token: &str) -> Option<UserCred> {
    let mut parts = token.split(':');
    let (user, domain, rank) = (parts.next()?, parts.next()?, parts.next()?);
    let level = match rank {
        "admin" => Access::Admin,
        "domain" => Access::Domain,
        _ => Access::User,
    };
    Some(UserCred {
        user_id: user.into(),
        user_name: user.into(),
        domain_id: domain.into(),
        project_id: format!("p-{user}"),
        project_name: String::new(),
        roles: Vec::new(),
        level,
    })
}

impl Authenticator for Tokens {
    fn authenticate(&self, token: &str) -> Option<Arc<UserCred>> {
        cred(token).map(Arc::new)
    }
}

const ANN: &str = "ann:red:user";
const BOB: &str = "bob:red:user";
const ADMIN: &str = "root:green:admin";

struct House {
    core: Arc<Core>,
    addr: SocketAddr,
    workers: Option<Workers>,
    _feed: event::Running,
    _folder: tempfile::TempDir,
    _server: actix_web::dev::ServerHandle,
}

fn quick() -> WorkerOptions {
    WorkerOptions {
        lease: Duration::from_millis(900),
        grace: Duration::from_millis(300),
        poll: Duration::from_millis(100),
        backoff: Duration::from_millis(20),
        ..WorkerOptions::default()
    }
}

async fn house(url: Option<String>) -> House {
    let folder = tempfile::tempdir().unwrap();
    let url = match url {
        Some(url) => DatabaseUrl::Postgres(url),
        None => DatabaseUrl::Sqlite(folder.path().join("db")),
    };
    let db = tokio::task::spawn_blocking(move || {
        db::migrate(&url).unwrap();
        match &url {
            DatabaseUrl::Sqlite(path) => {
                let mut conn = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
                conn.batch_execute(&(TABLES.to_owned() + &owners())).unwrap();
            }
            DatabaseUrl::Postgres(url) => {
                let mut conn = diesel::PgConnection::establish(url).unwrap();
                conn.batch_execute(&(TABLES.to_owned() + &owners())).unwrap();
            }
            DatabaseUrl::Mysql(_) => unreachable!("not one of these tests'"),
        }
        Db::open(&url, Options::default()).unwrap()
    });
    let core = Arc::new(Core::new(db.await.unwrap(), Arc::new(Tokens)).with_feed(FeedOptions::default()));
    let app = web::Data::new(App::new(core.clone(), HttpOptions::default()));
    let server =
        HttpServer::new(move || ActixApp::new().app_data(app.clone()).configure(podyard::http::configure))
            .workers(1)
            .disable_signals()
            .bind("127.0.0.1:0")
            .unwrap();
    let addr = server.addrs()[0];
    let server = server.run();
    let handle = server.handle();
    tokio::spawn(server);
    let workers = Some(Engine::run(&core, quick()).unwrap());
    House { _feed: event::run(&core), core, addr, workers, _folder: folder, _server: handle }
}

/// A database of its own on the server of the environment.
struct Database {
    server: String,
    name: String,
}

impl Database {
    fn new() -> Option<Self> {
        let server = std::env::var("PODYARD_TEST_POSTGRES_URL").ok()?;
        let name = format!("w_{}", new_id().replace('-', ""));
        let mut conn = diesel::PgConnection::establish(&server).unwrap();
        conn.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        Some(Self { server, name })
    }

    fn url(&self) -> String {
        let (base, _) = self.server.rsplit_once('/').unwrap();
        format!("{base}/{}", self.name)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Ok(mut conn) = diesel::PgConnection::establish(&self.server) {
            // What fails here is left to the end of the server.
            let _ = conn.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        }
    }
}

impl House {
    fn stream(&self, method: &str, path: &str, token: &str, body: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.addr).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(head.as_bytes()).unwrap();
        socket
    }

    /// Asks and gives status and body.
    async fn ask(&self, method: &str, path: &str, token: &str, body: &str) -> (u16, Value) {
        let mut socket = self.stream(method, path, token, body);
        let text = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            socket.read_to_string(&mut text).unwrap();
            text
        });
        let text = text.await.unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        let body = text.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    /// Opens a stream and waits until it is ready.
    async fn watch(&self, path: &str, token: &str) -> TcpStream {
        let socket = self.stream("GET", path, token, "");
        let (socket, text) = read_until(socket, "event: ready").await;
        assert!(text.contains(" 200 OK"), "{text}");
        socket
    }

    async fn get(&self, path: &str, token: &str) -> Value {
        let (status, answer) = self.ask("GET", path, token, "").await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    async fn gadget(&self) -> Gadget {
        let ctx = podyard::Ctx::new(self.core.clone(), Arc::new(cred(ANN).unwrap()), "r");
        let name = new_id();
        let made = ctx.write(None, move |tx| {
            let mut row = Gadget::from_create(&GadgetCreate::default());
            row.name = name;
            tx.create(row)
        });
        made.await.unwrap().value
    }

    async fn start<T: TaskType<Object = Gadget>>(&self, row: &Gadget, params: T::Params) -> String {
        let ctx = podyard::Ctx::new(self.core.clone(), Arc::new(cred(ANN).unwrap()), "r");
        let row = row.clone();
        ctx.write(None, move |tx| tx.start_task::<T>(&row, params)).await.unwrap().value
    }

    async fn task(&self, id: &str) -> Value {
        self.get(&format!("/tasks/{id}"), ANN).await["task"].clone()
    }

    async fn in_status(&self, id: &str, status: &str) -> Value {
        let begin = Instant::now();
        loop {
            let task = self.task(id).await;
            if task["status"] == status {
                return task;
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "not {status}: {task}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn number(&self, sql: &'static str) -> i64 {
        let ctx = podyard::Ctx::system(&self.core);
        let read = move |tx: &mut Tx<'_>| Ok(db::load_one::<(i64,)>(tx.conn, Sql::new(sql))?.unwrap().0);
        ctx.write(None, read).await.unwrap().value
    }

    async fn sql(&self, sql: String) {
        let ctx = podyard::Ctx::system(&self.core);
        ctx.write(None, move |tx| db::execute(tx.conn, &Sql::new(sql))).await.unwrap();
    }
}

/// Reads until a text has come, and gives all of it.
async fn read_until(mut socket: TcpStream, wanted: &str) -> (TcpStream, String) {
    let wanted = wanted.to_owned();
    tokio::task::spawn_blocking(move || {
        let (mut text, mut piece) = (String::new(), [0; 65536]);
        let mut from = 0;
        while !text[from..].contains(&wanted) {
            // A text may come in two pieces.
            from = text.len().saturating_sub(wanted.len());
            let n = socket.read(&mut piece).unwrap();
            assert!(n > 0, "the stream ended before {wanted:?}, after {} bytes", text.len());
            text.push_str(std::str::from_utf8(&piece[..n]).unwrap());
        }
        (socket, text)
    })
    .await
    .unwrap()
}

macro_rules! on_each_database {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$name(None).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                let Some(database) = super::Database::new() else { return };
                super::$name(Some(database.url())).await;
            }
        }
    )+};
}

on_each_database!(
    a_callback_needs_its_token_only,
    a_wrong_token_waits_for_no_lock,
    a_paused_kind_waits_and_others_run,
    a_schedule_starts_one_task_a_tick,
    a_schedule_says_what_is_wrong_with_it,
    a_tick_while_the_task_before_runs,
    a_task_tells_its_life,
    tasks_are_told_while_somebody_watches,
    a_watch_that_begins_under_load_misses_nothing,
    stuck_tasks_are_told_and_set_right,
    many_are_cancelled_and_retried_at_once,
);

/// Strangers may send any number of them: none may queue where writes do.
async fn a_wrong_token_waits_for_no_lock(url: Option<String>) {
    let house = house(url).await;
    let row = house.gadget().await;
    let id = house.start::<Call>(&row, Params::default()).await;
    house.in_status(&id, "waiting").await;
    let (answered, wait) = std::sync::mpsc::channel::<()>();
    let (begun, holding) = tokio::sync::oneshot::channel();
    let (core, task) = (house.core.clone(), id.clone());
    let holder = tokio::spawn(async move {
        let ctx = podyard::Ctx::system(&core);
        let held = ctx.write(None, move |tx| {
            let sql = db::Sql::new("UPDATE tasks SET version = version + 1 WHERE id = ").value(task);
            db::execute(tx.conn, &sql)?;
            let _ = begun.send(());
            // Until the stranger has its answer, or gives up on it.
            Ok(wait.recv_timeout(Duration::from_secs(10)).is_ok())
        });
        held.await.unwrap().value
    });
    holding.await.unwrap();
    let wrong = json!({"token": format!("{id}.1.AAAAAAAAAAAAAAAAAAAAAA")}).to_string();
    assert_eq!(house.ask("POST", &format!("/tasks/{id}"), "", &wrong).await.0, 404);
    let _ = answered.send(());
    assert!(holder.await.unwrap(), "it waited for the lock");
}

async fn a_callback_needs_its_token_only(url: Option<String>) {
    let house = house(url).await;
    // Early: while the stage that will wait still runs.
    let row = house.gadget().await;
    let id = house.start::<Call>(&row, Params { nap_ms: 700, fail: false }).await;
    let token = token_of(&row).await;
    let path = format!("/tasks/{id}");
    let body = json!({"token": token, "data": {"port": 80}}).to_string();
    for wrong in [format!("{id}.1.AAAAAAAAAAAAAAAAAAAAAA"), "x".into(), String::new()] {
        let (status, answer) = house.ask("POST", &path, "", &json!({"token": wrong}).to_string()).await;
        assert_eq!((status, &answer["class"]), (404, &json!("ResourceNotFoundError")), "{answer}");
    }
    let (status, answer) = house.ask("POST", &path, "", &body).await;
    assert_eq!((status, answer), (202, json!({"callback": "kept"})));
    let (status, answer) = house.ask("POST", &path, "", &body).await;
    assert_eq!((status, &answer["class"]), (409, &json!("CallbackUsedError")), "{answer}");
    let task = house.in_status(&id, "done").await;
    assert_eq!(task["result"], json!({"port": 80}), "{task}");

    // In time, in the path's parameter: then the whole body is the data.
    let row = house.gadget().await;
    let id = house.start::<Call>(&row, Params::default()).await;
    let token = token_of(&row).await;
    house.in_status(&id, "waiting").await;
    // The token is good for its own task only.
    let other = house.ask("POST", &format!("{path}?token={token}"), "", "").await;
    assert_eq!(other.0, 404, "{other:?}");
    let path = format!("/tasks/{id}");
    let (status, answer) = house.ask("POST", &format!("{path}?token={token}"), "", "[1, 2]").await;
    assert_eq!((status, answer), (200, json!({"callback": "taken"})));
    assert_eq!(house.in_status(&id, "done").await["result"], json!([1, 2]));
    let (status, answer) = house.ask("POST", &format!("{path}?token={token}"), "", "").await;
    assert_eq!((status, &answer["class"]), (409, &json!("CallbackUsedError")), "{answer}");

    // Late: somebody cancelled the wait.
    let row = house.gadget().await;
    let id = house.start::<Call>(&row, Params::default()).await;
    let token = token_of(&row).await;
    house.in_status(&id, "waiting").await;
    assert_eq!(house.ask("POST", &format!("/tasks/{id}/cancel"), ANN, "").await.0, 200);
    house.in_status(&id, "cancelled").await;
    let path = format!("/tasks/{id}");
    let (status, answer) = house.ask("POST", &path, "", &json!({"token": token}).to_string()).await;
    assert_eq!((status, &answer["class"]), (409, &json!("CallbackLateError")), "{answer}");

    // What is no callback is none, and everything else asks for a login.
    let blamed = |answer: &Value| answer["errors"][0]["field"].clone();
    let (status, answer) = house.ask("POST", &path, "", "{}").await;
    assert_eq!((status, blamed(&answer)), (400, json!("token")), "{answer}");
    let (status, answer) = house.ask("POST", &format!("{path}?more=1"), "", "{}").await;
    assert_eq!((status, blamed(&answer)), (400, json!("more")), "{answer}");
    let (status, answer) = house.ask("POST", &format!("{path}?token={token}"), "", "{").await;
    assert_eq!((status, blamed(&answer)), (400, json!("body")), "{answer}");
    let much = json!({"token": token, "data": "x".repeat(300_000)}).to_string();
    assert_eq!(house.ask("POST", &path, "", &much).await.0, 413);
    for (method, path) in [
        ("GET", path.clone()),
        ("DELETE", path.clone()),
        ("POST", "/tasks/retry".into()),
        ("POST", format!("{path}/cancel")),
        ("POST", format!("{path}/callback")),
    ] {
        assert_eq!(house.ask(method, &path, "", "").await.0, 401, "{method} {path}");
    }
}

async fn token_of(row: &Gadget) -> String {
    let begin = Instant::now();
    loop {
        if let Some(token) = TOKENS.lock().unwrap().get(&row.id) {
            return token.clone();
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "no token");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn a_paused_kind_waits_and_others_run(url: Option<String>) {
    let mut house = house(url).await;
    let begin = Instant::now();
    let kinds = loop {
        let kinds = house.get("/task-kinds", ANN).await["task-kinds"].clone();
        if kinds.as_array().is_some_and(|it| it.iter().any(|it| it["name"] == "other")) {
            break kinds;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{kinds}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let other = kinds.as_array().unwrap().iter().find(|it| it["name"] == "other").unwrap();
    assert_eq!(
        (&other["paused"], &other["concurrency"], &other["per_second"], &other["priority"]),
        (&json!(false), &json!(7), &json!(500), &json!(60))
    );
    // A stage that runs ends; the next one waits.
    let row = house.gadget().await;
    let running = house.start::<Work>(&row, Params { nap_ms: 500, fail: false }).await;
    house.in_status(&running, "running").await;
    assert_eq!(house.ask("POST", "/task-kinds/work/pause", ANN, "").await.0, 403);
    let (status, answer) = house.ask("POST", "/task-kinds/work/pause", ADMIN, "").await;
    assert_eq!((status, &answer["task_kind"]["paused"]), (200, &json!(true)), "{answer}");
    let waits = house.in_status(&running, "queued").await;
    assert_eq!(waits["stage"], "on_second");
    // More projects' queues than a look sees must not hide those that may run.
    let mut queued = Vec::new();
    for i in 0..70 {
        let mut row = house.gadget().await;
        row.project_id = format!("project {i:02}");
        queued.push(house.start::<Work>(&row, Params::default()).await);
    }
    let row = house.gadget().await;
    let free = house.start::<Other>(&row, Params::default()).await;
    house.in_status(&free, "done").await;
    // A process that starts now holds to it.
    house.workers.take().unwrap().drain().await;
    house.workers = Some(Engine::run(&house.core, quick()).unwrap());
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(house.task(&running).await["status"], "queued");
    assert_eq!(house.task(&queued[0]).await["status"], "queued");
    let told = house.get("/task-kinds/work/statistics", ADMIN).await;
    let told = told.as_object().unwrap().values().next().unwrap().clone();
    assert_eq!((&told["by_status"]["queued"], &told["due"]), (&json!(71), &json!(71)), "{told}");
    assert!(told["oldest_due_seconds"].as_f64().unwrap() > 0.3, "{told}");
    assert_eq!(house.ask("GET", "/task-kinds/work/statistics", ANN, "").await.0, 403);
    assert_eq!(house.ask("POST", "/task-kinds/work/resume", ADMIN, "").await.0, 200);
    house.in_status(&running, "done").await;
    for id in &queued {
        house.in_status(id, "done").await;
    }
}

async fn schedule(house: &House, with: Value) -> (u16, Value) {
    let mut body = json!({"name": format!("s {}", new_id()), "task_name": "other", "cron": "* * * * * *"});
    for (key, value) in with.as_object().unwrap() {
        body[key] = value.clone();
    }
    let (status, answer) = house.ask("POST", "/schedules", ADMIN, &body.to_string()).await;
    (status, if status == 201 { answer["schedule"].clone() } else { answer })
}

async fn a_schedule_starts_one_task_a_tick(url: Option<String>) {
    let house = house(url).await;
    // A second process on the same database.
    let second = Engine::run(&house.core, quick()).unwrap();
    let row = house.gadget().await;
    let (status, made) = schedule(&house, json!({"obj_id": row.id})).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["obj_type"], &made["time_zone"]), (&json!("gadget"), &json!("UTC")));
    let path = format!("/schedules/{}", made["id"].as_str().unwrap());
    tokio::time::sleep(Duration::from_millis(4_300)).await;
    assert_eq!(house.ask("POST", &format!("{path}/disable"), ADMIN, "").await.0, 200);
    let now = house.get(&path, ADMIN).await["schedule"].clone();
    assert_eq!((&now["next_at"], &now["last_outcome"]), (&Value::Null, &json!("started")), "{now}");
    let tasks = house.get("/tasks?task_name=other", ANN).await["tasks"].clone();
    let made_at: Vec<_> = tasks.as_array().unwrap().iter().map(|it| it["created_at"].to_string()).collect();
    assert!((3..=5).contains(&made_at.len()), "{made_at:?}");
    let mut seconds: Vec<_> = made_at.iter().map(|it| it[..20].to_owned()).collect();
    seconds.dedup();
    assert_eq!(seconds.len(), made_at.len(), "two in one second: {made_at:?}");
    assert_eq!(tasks[0]["id"], now["last_task_id"]);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(house.number("SELECT count(*) FROM tasks").await, i64::try_from(made_at.len()).unwrap());
    // However many ticks were missed, one makes up for them.
    house.sql("UPDATE schedules SET enabled = TRUE, cron = '0 0 1 1 *', next_at = 1000000".into()).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(house.number("SELECT count(*) FROM tasks").await, 1 + i64::try_from(made_at.len()).unwrap());
    let now = house.get(&path, ADMIN).await["schedule"].clone();
    assert!(now["next_at"].as_str().unwrap().contains("-01-01T00:00:00"), "{now}");
    // Its object is gone: it says so and starts nothing more.
    house.sql(format!("DELETE FROM gadgets WHERE id = '{}'", row.id)).await;
    house.sql("UPDATE schedules SET next_at = 1000000".into()).await;
    let begin = Instant::now();
    loop {
        let now = house.get(&path, ADMIN).await["schedule"].clone();
        if now["enabled"] == false {
            assert!(now["last_outcome"].as_str().unwrap().contains("is gone"), "{now}");
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{now}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    second.drain().await;
}

async fn a_schedule_says_what_is_wrong_with_it(url: Option<String>) {
    let house = house(url).await;
    let row = house.gadget().await;
    for (with, field) in [
        (json!({"cron": "every day"}), "cron"),
        (json!({"cron": "0 0 30 2 *"}), "cron"),
        (json!({"cron": "61 * * * *"}), "cron"),
        (json!({"time_zone": "Berlin"}), "time_zone"),
        (json!({"task_name": "nothing-such"}), "task_name"),
        (json!({"obj_type": "user"}), "obj_type"),
        (json!({"obj_id": "none"}), "obj_id"),
        (json!({"params": {"more": 1}}), "params"),
        (json!({"params": 7}), "params"),
        (json!({"overlap": "both"}), "overlap"),
    ] {
        let mut all = json!({"obj_id": row.id});
        for (key, value) in with.as_object().unwrap() {
            all[key] = value.clone();
        }
        let (status, answer) = schedule(&house, all).await;
        assert_eq!((status, &answer["errors"][0]["field"]), (400, &json!(field)), "{with}: {answer}");
    }
    let (status, made) = schedule(&house, json!({"obj_id": row.id, "enabled": false})).await;
    assert_eq!((status, &made["next_at"]), (201, &Value::Null));
    let path = format!("/schedules/{}", made["id"].as_str().unwrap());
    let (status, answer) = house.ask("PATCH", &path, ADMIN, &json!({"cron": "nope"}).to_string()).await;
    assert_eq!((status, &answer["errors"][0]["field"]), (400, &json!("cron")), "{answer}");
    let change = json!({"cron": "0 12 * * *", "time_zone": "Asia/Tokyo", "enabled": true});
    let (status, answer) = house.ask("PATCH", &path, ADMIN, &change.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["schedule"]["next_at"].as_str().unwrap().contains("T03:00:00"), "{answer}");
    assert_eq!(house.ask("GET", "/schedules", ANN, "").await.0, 403);
    assert_eq!(house.ask("GET", &path, ANN, "").await.0, 403);
}

async fn a_tick_while_the_task_before_runs(url: Option<String>) {
    let house = house(url).await;
    for (overlap, most, says) in [("skip", 1, "has not ended"), ("queue", 2, "waits already")] {
        let row = house.gadget().await;
        let with =
            json!({"obj_id": row.id, "task_name": "work", "params": {"nap_ms": 60_000}, "overlap": overlap});
        let (status, made) = schedule(&house, with).await;
        assert_eq!(status, 201, "{made}");
        let path = format!("/schedules/{}", made["id"].as_str().unwrap());
        let begin = Instant::now();
        loop {
            let now = house.get(&path, ADMIN).await["schedule"].clone();
            if now["last_outcome"].as_str().unwrap().contains(says) {
                break;
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "{now}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(house.ask("DELETE", &path, ADMIN, "").await.0, 200);
        let tasks = house.get(&format!("/tasks?obj_id={}", row.id), ANN).await["tasks"].clone();
        assert_eq!(tasks.as_array().unwrap().len(), most, "{overlap}: {tasks}");
    }
}

async fn a_task_tells_its_life(url: Option<String>) {
    let house = house(url).await;
    let words = |task: &Value| -> Vec<String> {
        let of = |it: &Value| match it["what"].as_str().unwrap() {
            "attempt" => format!("{}: {}", it["stage"].as_str().unwrap(), it["outcome"].as_str().unwrap()),
            what => match it["by"].as_str() {
                Some(by) => format!("{what} by {by}"),
                None => what.to_owned(),
            },
        };
        task["history"].as_array().unwrap().iter().map(of).collect()
    };
    let row = house.gadget().await;
    let id = house.start::<Call>(&row, Params::default()).await;
    let token = token_of(&row).await;
    house.in_status(&id, "waiting").await;
    house.ask("POST", &format!("/tasks/{id}"), "", &json!({"token": token, "data": 7}).to_string()).await;
    let done = house.in_status(&id, "done").await;
    assert_eq!(words(&done), ["created by ann", "on_init: waits", "callback", "on_called: done"]);
    assert_eq!(done["result"], 7);
    for it in done["history"].as_array().unwrap().iter().filter(|it| it["what"] == "attempt") {
        assert!(it["seconds"].is_number() && it["worker_id"].is_string() && it["at"].is_string(), "{it}");
    }
    // Others see neither the task nor what it gave.
    assert_eq!(house.ask("GET", &format!("/tasks/{id}"), BOB, "").await.0, 404);

    let row = house.gadget().await;
    let id = house.start::<Work>(&row, Params { nap_ms: 0, fail: true }).await;
    let failed = house.in_status(&id, "failed").await;
    assert!(failed.get("result").is_none_or(Value::is_null), "{failed}");
    assert_eq!(house.ask("POST", &format!("/tasks/{id}/retry"), ADMIN, "").await.0, 200);
    let begin = Instant::now();
    let failed = loop {
        let task = house.in_status(&id, "failed").await;
        if words(&task).len() == 7 {
            break task;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{task}");
    };
    let twice = ["on_second: failed", "on_second_failed: failed"];
    let told = [["created by ann", "on_init: done"], twice, ["retry by root", twice[0]]].concat();
    assert_eq!(words(&failed)[..6], told);
    assert!(failed["history"][2]["reason"].as_str().unwrap().contains("to fail"), "{failed}");

    let row = house.gadget().await;
    let id = house.start::<Call>(&row, Params::default()).await;
    house.in_status(&id, "waiting").await;
    house.ask("POST", &format!("/tasks/{id}/cancel"), ADMIN, "").await;
    let gone = house.in_status(&id, "cancelled").await;
    assert!(words(&gone).contains(&"cancel by root".to_owned()), "{gone}");
    // What was done without a result shows none, and not what its last stage was given.
    let row = house.gadget().await;
    let id = house.start::<Work>(&row, Params::default()).await;
    let done = house.in_status(&id, "done").await;
    assert!(done.get("result").is_none_or(Value::is_null), "{done}");
}

async fn tasks_are_told_while_somebody_watches(url: Option<String>) {
    let house = house(url).await;
    const RECORDS: &str = "SELECT count(*) FROM ops_log WHERE obj_type = 'task' AND obj_id <> ''";
    let row = house.gadget().await;
    let before = house.start::<Work>(&row, Params::default()).await;
    house.in_status(&before, "done").await;
    assert_eq!(house.number(RECORDS).await, 0, "nobody watches");

    let mine = house.watch("/tasks?watch=true", ANN).await;
    let his = house.watch("/tasks?watch=true", BOB).await;
    let row = house.gadget().await;
    let id = house.start::<Call>(&row, Params::default()).await;
    let token = token_of(&row).await;
    let one = house.watch(&format!("/tasks/{id}?watch=true"), ANN).await;
    let (mine, waits) = read_until(mine, "\"action\":\"waiting\"").await;
    assert!(waits.contains("event: created") && waits.contains(&id), "{waits}");
    assert!(!waits.contains(&before), "{waits}");
    house.in_status(&id, "waiting").await;
    house.ask("POST", &format!("/tasks/{id}"), "", &json!({"token": token}).to_string()).await;
    let (_, told) = read_until(mine, "\"action\":\"done\"").await;
    assert!(told.contains("event: updated") && told.contains("\"status\":\"done\""), "{told}");
    read_until(one, "\"action\":\"done\"").await;
    // What is another's is not told; what is one's own is.
    let ctx = podyard::Ctx::new(house.core.clone(), Arc::new(cred(BOB).unwrap()), "r");
    let bobs = ctx.write(None, |tx| {
        let mut row = Gadget::from_create(&GadgetCreate::default());
        row.name = "his".into();
        let row = tx.create(row)?;
        tx.start_task::<Other>(&row, Params::default())
    });
    let bobs = bobs.await.unwrap().value;
    let (_, heard) = read_until(his, "\"action\":\"done\"").await;
    assert!(heard.contains(&bobs) && !heard.contains(&id), "{heard}");

    // From a position: what came since, and nothing before.
    let ready =
        waits.lines().chain(told.lines()).filter_map(|it| it.strip_prefix("id: ")).next_back().unwrap();
    let row = house.gadget().await;
    let later = house.start::<Other>(&row, Params::default()).await;
    house.in_status(&later, "done").await;
    let again = house.stream("GET", &format!("/tasks?watch=true&since={ready}"), ANN, "");
    let (_, told) = read_until(again, "\"action\":\"done\"").await;
    assert!(told.contains(&later) && !told.contains(&id), "{told}");
    // Where records were not made all the time, nobody can go on.
    house.sql("UPDATE task_watch SET watched = FALSE, ready = FALSE, until = 0".into()).await;
    let socket = house.stream("GET", &format!("/tasks?watch=true&since={ready}"), ANN, "");
    let (_, gone) = read_until(socket, "EventsExpiredError").await;
    assert!(gone.contains(" 410 "), "{gone}");
    // They are no matter of the audit.
    let events = house.get("/events?limit=1000", ADMIN).await;
    assert!(!events.to_string().contains("\"obj_type\":\"task\""), "{events}");
    house.sql("UPDATE task_watch SET watched = FALSE, ready = FALSE, until = 0".into()).await;
    let n = house.number(RECORDS).await;
    let row = house.gadget().await;
    let silent = house.start::<Other>(&row, Params::default()).await;
    house.in_status(&silent, "done").await;
    assert_eq!(house.number(RECORDS).await, n, "nobody watches any more");
}

async fn a_watch_that_begins_under_load_misses_nothing(url: Option<String>) {
    let house = Arc::new(house(url).await);
    let (starter, stop) = (house.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let ended = stop.clone();
    let starting = tokio::spawn(async move {
        let mut all = Vec::new();
        while !ended.load(std::sync::atomic::Ordering::Relaxed) {
            let row = starter.gadget().await;
            all.push(starter.start::<Work>(&row, Params::default()).await);
        }
        all
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stream = house.watch("/tasks?watch=true", ANN).await;
    // What the stream does not tell was so before: it is read after `ready`.
    let there = house.get("/tasks?limit=2048", ANN).await["tasks"].clone();
    let mut status: HashMap<String, String> = HashMap::new();
    for task in there.as_array().unwrap() {
        status.insert(task["id"].as_str().unwrap().into(), task["status"].as_str().unwrap().into());
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let all = starting.await.unwrap();
    for id in &all {
        house.in_status(id, "done").await;
    }
    let row = house.gadget().await;
    let last = house.start::<Other>(&row, Params::default()).await;
    house.in_status(&last, "done").await;
    let (_, told) = read_until(stream, &format!("{last}\",\"version\"")).await;
    let told =
        told.lines().filter_map(|it| it.strip_prefix("data: ")).filter(|it| it.starts_with("{\"task\""));
    for data in told {
        let data: Value = serde_json::from_str(data).unwrap();
        let task = &data["task"];
        status.insert(task["id"].as_str().unwrap().into(), task["status"].as_str().unwrap().into());
    }
    assert!(all.len() > 20, "{}", all.len());
    let open: Vec<_> = all.iter().filter(|id| status.get(*id).is_none_or(|it| it != "done")).collect();
    assert!(open.is_empty(), "{} of {} never told as done: {open:?}", open.len(), all.len());
}

async fn metrics(house: &House) -> String {
    let mut socket = house.stream("GET", "/metrics", ADMIN, "");
    tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text
    })
    .await
    .unwrap()
}

async fn stuck_tasks_are_told_and_set_right(url: Option<String>) {
    let mut house = house(url).await;
    house.workers.take().unwrap().drain().await;
    // Queued without a row that would wake it; and behind a head that is none.
    let row = house.gadget().await;
    let asleep = house.start::<Other>(&row, Params::default()).await;
    let row = house.gadget().await;
    let head = house.start::<Other>(&row, Params::default()).await;
    let ctx = podyard::Ctx::new(house.core.clone(), Arc::new(cred(ANN).unwrap()), "r");
    let behind = ctx
        .write(None, move |tx| tx.task::<Other>(&row, Params::default()).behind().start())
        .await
        .unwrap()
        .value;
    assert_eq!(house.task(&behind).await["status"], "blocked");
    let late = house.gadget().await;
    let late = house.start::<Work>(&late, Params::default()).await;
    house.sql(format!("UPDATE task_ready SET run_at = run_at - 900000000 WHERE task_id = '{late}'")).await;
    house.sql(format!("DELETE FROM task_ready WHERE task_id IN ('{asleep}', '{head}')")).await;
    house.sql(format!("UPDATE tasks SET status = 'done', active_key = NULL WHERE id = '{head}'")).await;
    house.sql(format!("UPDATE tasks SET updated_at = updated_at - 60000000 WHERE id = '{asleep}'")).await;
    let told = metrics(&house).await;
    let line = |name: &str| {
        let of = told.lines().find(|it| it.starts_with(&format!("{name}{{kind=\"work\"}} ")));
        of.unwrap_or_else(|| panic!("no {name} in {told}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse::<f64>()
            .unwrap()
    };
    assert!(line("podyard_tasks_due") >= 1.0 && line("podyard_tasks_oldest_due_seconds") >= 900.0, "{told}");
    // A worker of another kind looks after them.
    let options = WorkerOptions { names: Some(vec!["call"]), ..quick() };
    let workers = Engine::run(&house.core, options).unwrap();
    workers.tidy().await;
    let told = metrics(&house).await;
    for it in [
        "podyard_tasks_stuck{why=\"unclaimed\"} 1",
        "podyard_tasks_stuck{why=\"asleep\"} 1",
        "podyard_tasks_stuck{why=\"headless\"} 1",
        "podyard_tasks_repaired_total{why=\"asleep\"} 1",
        "podyard_tasks_repaired_total{why=\"headless\"} 1",
    ] {
        assert!(told.contains(it), "{it} in {told}");
    }
    workers.tidy().await;
    assert!(metrics(&house).await.contains("podyard_tasks_stuck{why=\"asleep\"} 0"));
    workers.drain().await;
    let _workers = Engine::run(&house.core, quick()).unwrap();
    for id in [&asleep, &behind, &late] {
        let task = house.in_status(id, "done").await;
        let repaired = task["history"].to_string().contains("repair");
        assert_eq!(repaired, id != &late, "{task}");
    }
    let told = metrics(&house).await;
    for it in [
        "podyard_task_ends_total{kind=\"other\",status=\"done\"} 2",
        "podyard_task_attempts_total{kind=\"work\",outcome=\"done\"} 2",
        "podyard_task_stage_duration_seconds_count{kind=\"work\"} 2",
        "podyard_task_kind_paused{kind=\"other\"} 0",
    ] {
        assert!(told.contains(it), "{it} in {told}");
    }
}

async fn many_are_cancelled_and_retried_at_once(url: Option<String>) {
    let house = house(url).await;
    let mut failed = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let row = house.gadget().await;
        failed.push(house.start::<Work>(&row, Params { nap_ms: 0, fail: true }).await);
        let row = house.gadget().await;
        waiting.push(house.start::<Call>(&row, Params::default()).await);
    }
    for (a, b) in failed.iter().zip(&waiting) {
        house.in_status(a, "failed").await;
        house.in_status(b, "waiting").await;
    }
    // Without a condition it is none.
    assert_eq!(house.ask("POST", "/tasks/cancel", ADMIN, "").await.0, 400);
    assert_eq!(house.ask("POST", "/tasks/retry?status=failed", ANN, "").await.0, 403);
    let (status, answer) = house.ask("POST", "/tasks/cancel?status=waiting&task_name=call", ANN, "").await;
    assert!(status == 200 || status == 207, "{status} {answer}");
    for id in &waiting {
        house.in_status(id, "cancelled").await;
    }
    let (status, answer) = house.ask("POST", "/tasks/retry?status=failed&task_name=work", ADMIN, "").await;
    assert!(status == 200 || status == 207, "{status} {answer}");
    for id in &failed {
        let task = house.in_status(id, "failed").await;
        assert!(task["history"].to_string().contains("\"retry\""), "{task}");
    }
    // What a task consists of.
    let parent = house.get(&format!("/tasks?parent_task_id={}", failed[0]), ANN).await;
    assert_eq!(parent["tasks"], json!([]));
}
