//! The change feed and the audit in one process, on real sockets: what needs
//! settings that nobody would run a server with; on each database (`databases`).
#![expect(clippy::unwrap_used, reason = "a test may stop at once")]

mod databases;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::{App as ActixApp, HttpServer, web};
use podyard::auth::{Access, Authenticator, UserCred};
use podyard::db::{self, Db, Options};
use podyard::event::{self, FeedOptions};
use podyard::http::{App, HttpOptions};
use podyard::prelude::*;
use podyard::{Core, new_id};
use serde_json::Value;

use databases::TestDb;

/// A note, which is somebody's.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "note", plural = "notes")]
pub struct Note {
    /// The base.
    pub base: VirtualBase,
    /// For administrators.
    #[field(list = "admin", update = "admin")]
    pub secret: String,
    /// For administrators of the domain.
    #[field(get = "domain", update = "domain")]
    pub remark: String,
}

impl Manager for Note {}
impl Model for Note {}

/// A board, which can be shared, and goes into the trash.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "board", plural = "boards")]
pub struct Board {
    /// The base.
    pub base: VirtualBase,
    /// Goes into the trash.
    #[mixin]
    pub trash: Trash,
    /// Can be shared.
    #[mixin]
    pub sharing: Sharing,
}

impl Manager for Board {}
impl Model for Board {}

/// A leaflet, which is nobody's; some are hidden by other means than owners.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "leaflet", plural = "leaflets", read = "user", write = "user")]
pub struct Leaflet {
    /// The base.
    pub base: StandaloneBase,
    /// Whether it may be seen.
    #[field(list = "user", create = "optional", update = "user", default = false)]
    pub public: bool,
}

impl Manager for Leaflet {
    fn list_item_filter(tx: &mut Tx<'_>, select: &mut Select<Self>) -> Result<()> {
        if tx.level() == Access::User {
            select.narrow("public", true);
        }
        Ok(())
    }
}
impl Model for Leaflet {}

const TABLES: &str = "CREATE TABLE notes (id TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, \
     created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL, \
     status TEXT NOT NULL, status_reason TEXT NOT NULL, domain_id TEXT NOT NULL, project_id TEXT NOT NULL, \
     user_id TEXT NOT NULL, deleted BOOLEAN NOT NULL, deleted_at BIGINT, secret TEXT NOT NULL, \
     remark TEXT NOT NULL); \
     CREATE TABLE boards (id TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, \
     created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL, \
     status TEXT NOT NULL, status_reason TEXT NOT NULL, domain_id TEXT NOT NULL, project_id TEXT NOT NULL, \
     user_id TEXT NOT NULL, deleted BOOLEAN NOT NULL, deleted_at BIGINT, pending_deleted BOOLEAN NOT NULL, \
     pending_deleted_at BIGINT, is_public BOOLEAN NOT NULL, public_scope TEXT NOT NULL); \
     CREATE TABLE leaflets (id TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, created_at BIGINT NOT NULL, \
     updated_at BIGINT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL, public BOOLEAN NOT NULL);";

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
    for token in [ANN, BOB, RED, BLUE, ADMIN] {
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
const RED: &str = "ruth:red:domain";
const BLUE: &str = "bea:blue:domain";
const ADMIN: &str = "root:green:admin";

struct House {
    core: Arc<Core>,
    addr: SocketAddr,
    _feed: event::Running,
    _database: TestDb,
    _server: actix_web::dev::ServerHandle,
}

async fn house(database: TestDb, feed: FeedOptions) -> House {
    let url = database.url.clone();
    let db = tokio::task::spawn_blocking(move || {
        db::migrate(&url).unwrap();
        let db = Db::open(&url, Options::default()).unwrap();
        db.write_blocking(|conn| db::define(conn, &(TABLES.to_owned() + &owners()))).unwrap();
        db
    });
    let core = Arc::new(Core::new(db.await.unwrap(), Arc::new(Tokens)).with_feed(feed));
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
    House { _feed: event::run(&core), core, addr, _database: database, _server: handle }
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

    async fn make(&self, path: &str, token: &str, body: Value) -> String {
        let (status, answer) = self.ask("POST", path, token, &body.to_string()).await;
        assert_eq!(status, 201, "{answer}");
        let row = answer.as_object().unwrap().values().next().unwrap();
        row["id"].as_str().unwrap().to_owned()
    }

    /// Opens a stream and waits until it is ready.
    async fn watch(&self, path: &str, token: &str) -> TcpStream {
        let socket = self.stream("GET", path, token, "");
        let (socket, text) = read_until(socket, "event: ready").await;
        assert!(text.contains(" 200 OK"), "{text}");
        socket
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

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(30), "it did not come to be that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

macro_rules! on_each_database {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_each() {
                for database in super::TestDb::all() {
                    super::$name(database).await;
                }
            }
        }
    )+};
}

on_each_database!(
    a_client_that_reads_nothing_is_dropped,
    the_audit_keeps_to_domains_and_ranks,
    rows_hidden_by_a_hook_stay_hidden,
    a_shared_row_is_told_to_those_it_is_shared_with,
    the_process_takes_no_more_streams_than_it_is_set_to,
);

async fn a_client_that_reads_nothing_is_dropped(database: TestDb) {
    let options = FeedOptions { stall: Duration::from_secs(3), ..FeedOptions::default() };
    let house = house(database, options).await;
    let feed = &house.core.feed;
    let deaf = house.stream("GET", "/notes?watch=true", ADMIN, "");
    let good = house.watch("/notes?watch=true", ADMIN).await;
    until("both watch", || feed.watchers() == 2).await;
    let reading = tokio::spawn(read_until(good, "the end"));
    let ctx = podyard::Ctx::new(house.core.clone(), Arc::new(cred(ADMIN).unwrap()), "r");
    // More than the sockets' buffers hold.
    for _ in 0..60 {
        let write = ctx.write(None, |tx| {
            for _ in 0..150 {
                let mut note = Note { secret: String::new(), ..Note::default() };
                note.name = "x".into();
                note.description = "y".repeat(1000);
                note.stamp(&podyard::model::Stamp {
                    id: new_id(),
                    now: tx.now(),
                    cred: &tx.ctx.cred().clone(),
                });
                tx.insert_and_log(&note, "create")?;
            }
            Ok(())
        });
        write.await.unwrap();
    }
    until("the deaf one is dropped", || feed.watchers() == 1).await;
    house.make("/notes", ADMIN, serde_json::json!({"name": "the end"})).await;
    let (good, text) = reading.await.unwrap();
    assert_eq!(text.matches("event: created").count(), 9001, "who reads gets all");
    drop((deaf, good));
}

async fn notes_of(house: &House, id: &str, token: &str) -> Vec<Value> {
    let (status, answer) = house.ask("GET", &format!("/events?obj_id={id}&order=asc"), token, "").await;
    assert_eq!(status, 200, "{answer}");
    answer["events"].as_array().unwrap().iter().map(|it| it["notes"].clone()).collect()
}

async fn the_audit_keeps_to_domains_and_ranks(database: TestDb) {
    let house = house(database, FeedOptions::default()).await;
    let id = house.make("/notes", ANN, serde_json::json!({"name": "hers"})).await;
    let change = r#"{"secret": "s", "remark": "r", "description": "d"}"#;
    assert_eq!(house.ask("PUT", &format!("/notes/{id}"), ADMIN, change).await.0, 200);
    let fields = |notes: &[Value]| -> Vec<String> {
        notes.last().map(|it| it.as_object().unwrap().keys().cloned().collect()).unwrap_or_default()
    };
    assert_eq!(fields(&notes_of(&house, &id, ANN).await), ["description"]);
    assert_eq!(fields(&notes_of(&house, &id, RED).await), ["description", "remark"]);
    assert_eq!(fields(&notes_of(&house, &id, ADMIN).await), ["description", "remark", "secret"]);
    for stranger in [BOB, BLUE] {
        assert!(notes_of(&house, &id, stranger).await.is_empty(), "{stranger}");
        assert_eq!(house.ask("GET", &format!("/notes/{id}/events"), stranger, "").await.0, 404);
    }
    let (status, answer) = house.ask("GET", &format!("/notes/{id}/events"), RED, "").await;
    assert_eq!((status, answer["events"].as_array().unwrap().len()), (200, 2));
}

async fn rows_hidden_by_a_hook_stay_hidden(database: TestDb) {
    let house = house(database, FeedOptions::default()).await;
    let ann = house.watch("/leaflets?watch=true", ANN).await;
    let root = house.watch("/leaflets?watch=true", ADMIN).await;
    let hidden = house.make("/leaflets", ADMIN, serde_json::json!({"name": "hidden"})).await;
    let path = format!("/leaflets/{hidden}");
    assert_eq!(house.ask("PUT", &path, ADMIN, r#"{"description": "still hidden"}"#).await.0, 200);
    assert_eq!(house.ask("DELETE", &path, ADMIN, "").await.0, 200);
    house.make("/leaflets", ADMIN, serde_json::json!({"name": "the end", "public": true})).await;
    let (_, hers) = read_until(ann, "the end").await;
    assert!(!hers.contains("hidden") && !hers.contains(&hidden), "{hers}");
    let (_, all) = read_until(root, "the end").await;
    assert!(all.contains(&hidden), "{all}");
}

async fn a_shared_row_is_told_to_those_it_is_shared_with(database: TestDb) {
    let house = house(database, FeedOptions::default()).await;
    let id = house.make("/boards", ANN, serde_json::json!({"name": "secret"})).await;
    let path = format!("/boards/{id}");
    let streams =
        [house.watch("/boards?watch=true", ANN).await, house.watch("/boards?watch=true", BOB).await];
    assert_eq!(house.ask("PUT", &path, ANN, r#"{"name": "still secret"}"#).await.0, 200);
    let [hers, his] = streams;
    // What one may see is judged as a change is told: this one is, before the share.
    let (hers, _) = read_until(hers, "\"version\":2").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let share = house.ask("POST", &format!("{path}/public"), ADMIN, r#"{"scope": "system"}"#).await;
    assert_eq!(share.0, 200, "{}", share.1);
    assert_eq!(house.ask("PUT", &path, ANN, r#"{"name": "for all"}"#).await.0, 200);
    assert_eq!(house.ask("DELETE", &path, ANN, "").await.0, 200);
    read_until(hers, "event: deleted").await;
    let (_, text) = read_until(his, "event: deleted").await;
    assert!(!text.contains("\"version\":2"), "that was before it was shared: {text}");
    house.core.feed.shut_down();
}

async fn the_process_takes_no_more_streams_than_it_is_set_to(database: TestDb) {
    let house = house(database, FeedOptions { per_process: 2, ..FeedOptions::default() }).await;
    let streams = [house.watch("/notes?watch=true", ANN).await, house.watch("/notes?watch=true", BOB).await];
    let (status, answer) = house.ask("GET", "/notes?watch=true", RED, "").await;
    assert_eq!((status, answer["class"].as_str()), (429, Some("TooManyWatchersError")));
    house.core.feed.shut_down();
    for stream in streams {
        read_until(stream, "event: end").await;
    }
    until("all have gone", || house.core.feed.watchers() == 0).await;
    let (status, _) = house.ask("GET", "/notes?watch=true", RED, "").await;
    assert_eq!(status, 503);
}
