//! Bases and mixins, joint types and contexts, over HTTP in the process, with
//! types made for it, on each database (`databases`).
#![expect(clippy::unwrap_used, reason = "a test may stop at once")]

mod databases;

use std::sync::Arc;
use std::time::Duration;

use actix_web::body::to_bytes;
use actix_web::{App, test, web};
use diesel::connection::SimpleConnection;
use podyard::auth::{Access, Authenticator, UserCred};
use podyard::db::{self, Db, Dialect, Options, Sql};
use podyard::prelude::*;
use podyard::{Core, http, trash};
use serde_json::{Value, json};

use databases::TestDb;

// ----------------------------------------------------------------- the types

/// A domain.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "domain", plural = "domains", read = "user", write = "admin")]
pub struct Domain {
    /// The base.
    pub base: StandaloneBase,
}

/// A project.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "project", plural = "projects", read = "user", write = "admin")]
pub struct Project {
    /// The base.
    pub base: StandaloneBase,
    /// Its domain.
    #[field(list = "user", create = "required", references = "domain", index)]
    pub domain_id: String,
}

/// A user.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "user", plural = "users", read = "user", write = "admin")]
pub struct User {
    /// The base.
    pub base: StandaloneBase,
    /// Their domain.
    #[field(list = "user", create = "required", references = "domain", index)]
    pub domain_id: String,
    /// Their project.
    #[field(list = "user", create = "required", references = "project", index)]
    pub project_id: String,
}

/// Everything at once.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "server", plural = "servers", quota, extra(shout = "Its name, louder."))]
pub struct Server {
    /// Name, status and owner.
    pub base: VirtualBase,
    /// Can be switched off.
    #[mixin]
    pub switch: Enabled,
    /// Goes into the trash.
    #[mixin]
    pub trash: Trash,
    /// Can be shared.
    #[mixin]
    pub sharing: Sharing,
    /// May come from elsewhere.
    #[mixin]
    pub external: External,
    /// Cores.
    #[field(list = "user", create = "optional", update = "user", default = 1)]
    pub cores: i32,
}

/// A network of a domain.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "network", plural = "networks")]
pub struct Network {
    /// Name, status and domain.
    pub base: DomainBase,
    /// Can be shared, and goes for good when it is deleted.
    #[mixin]
    pub sharing: Sharing,
}

/// A key of a user.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "key", plural = "keys")]
pub struct Key {
    /// Name, status and user.
    pub base: UserBase,
}

/// Which server is in which network.
#[derive(Debug, Clone, Default, Resource)]
#[resource(
    keyword = "server_network",
    plural = "server_networks",
    read = "user",
    write = "user",
    joint("network_id", "server_id")
)]
pub struct ServerNetwork {
    /// The base.
    pub base: AnonBase,
    /// The network; it cannot go while a server is in it.
    #[field(list = "user", create = "required", references = "network", index)]
    pub network_id: String,
    /// The server; when it goes, it leaves its networks.
    #[field(list = "user", create = "required", references = "server", cascade, unique)]
    pub server_id: String,
    /// Its address there.
    #[field(list = "user", create = "optional", update = "user")]
    pub address: String,
}

macro_rules! plain {
    ($($T:ty),*) => { $(impl Manager for $T {} impl Model for $T {})* };
}
plain!(Domain, Project, User, Network, Key, ServerNetwork);

impl Manager for Server {
    fn get_customize_columns(_: &mut Tx<'_>, rows: &[Self], extra: &mut [Extra]) -> Result<()> {
        for (row, extra) in rows.iter().zip(extra) {
            extra.set("shout", row.name.to_uppercase());
        }
        Ok(())
    }
}

impl Model for Server {
    fn validate_change_owner(&self, _: &mut Tx<'_>, _: Owner<'_>) -> Result<()> {
        if self.status == "running" {
            return Err(Error::conflict("it runs").class("InvalidStatusError"));
        }
        Ok(())
    }

    fn validate_delete_condition(&self, _: &mut Tx<'_>) -> Result<()> {
        if self.switch.enabled {
            return Err(Error::conflict("disable it first").class("InvalidStatusError"));
        }
        Ok(())
    }
}

#[actions]
impl Server {
    /// Does nothing.
    fn perform_poke(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        self.cores += 1;
        tx.save(self)
    }
}

const ANON: &str = "id TEXT PRIMARY KEY NOT NULL, version BIGINT NOT NULL, created_at BIGINT NOT NULL, \
     updated_at BIGINT NOT NULL";

fn tables() -> String {
    let named = format!("{ANON}, name TEXT NOT NULL, description TEXT NOT NULL");
    let status = format!("{named}, status TEXT NOT NULL, status_reason TEXT NOT NULL");
    let common = |table: &str, name: &str| {
        format!(
            "CREATE INDEX {table}_created ON {table} (created_at, id); CREATE INDEX {table}_name ON {table} (name); {name}"
        )
    };
    let owner = "domain_id TEXT NOT NULL, project_id TEXT NOT NULL";
    format!(
        "CREATE TABLE domains ({named}); {}
         CREATE TABLE projects ({named}, domain_id TEXT NOT NULL); {}
         CREATE TABLE users ({named}, {owner}); {}
         CREATE TABLE servers ({status}, {owner}, user_id TEXT NOT NULL, deleted BOOLEAN NOT NULL,
            deleted_at BIGINT, enabled BOOLEAN NOT NULL, pending_deleted BOOLEAN NOT NULL, pending_deleted_at BIGINT,
            is_public BOOLEAN NOT NULL, public_scope TEXT NOT NULL, external_id TEXT, source TEXT NOT NULL,
            imported_at BIGINT, cores BIGINT NOT NULL); {}
         CREATE INDEX servers_status ON servers (status, created_at, id);
         CREATE INDEX servers_owner ON servers (user_id, created_at, id);
         CREATE INDEX servers_project ON servers (project_id);
         CREATE INDEX servers_domain ON servers (domain_id);
         CREATE INDEX servers_trash ON servers (pending_deleted_at, id) WHERE pending_deleted = TRUE;
         CREATE UNIQUE INDEX servers__external_id_key ON servers (external_id);
         CREATE TABLE networks ({status}, domain_id TEXT NOT NULL, is_public BOOLEAN NOT NULL,
            public_scope TEXT NOT NULL); {}
         CREATE INDEX networks_status ON networks (status); CREATE INDEX networks_domain ON networks (domain_id);
         CREATE TABLE keys ({status}, domain_id TEXT NOT NULL, user_id TEXT NOT NULL); {}
         CREATE INDEX keys_status ON keys (status); CREATE INDEX keys_domain ON keys (domain_id);
         CREATE INDEX keys_user ON keys (user_id);
         CREATE TABLE server_networks ({ANON}, network_id TEXT NOT NULL, server_id TEXT NOT NULL,
            address TEXT NOT NULL);
         CREATE INDEX server_networks_created ON server_networks (created_at, id);
         CREATE INDEX server_networks_server ON server_networks (server_id);
         CREATE UNIQUE INDEX server_networks__server_id_key ON server_networks (network_id, server_id);",
        common("domains", ""),
        common("projects", "CREATE INDEX projects_domain ON projects (domain_id);"),
        common("users", "CREATE INDEX users_d ON users (domain_id); CREATE INDEX users_p ON users (project_id);"),
        common(
            "servers",
            "CREATE UNIQUE INDEX servers__name_key ON servers (project_id, name)
             WHERE deleted = FALSE AND pending_deleted = FALSE;"
        ),
        common("networks", "CREATE UNIQUE INDEX networks__name_key ON networks (domain_id, name);"),
        common("keys", "CREATE UNIQUE INDEX keys__name_key ON keys (user_id, name);"),
    )
}

// ----------------------------------------------------------------- the house

/// A token is what it says: `user/project/domain/rank`.
struct Words;

impl Authenticator for Words {
    fn authenticate(&self, token: &str) -> Option<Arc<UserCred>> {
        let [user, project, domain, rank] = token.split('/').collect::<Vec<_>>().try_into().ok()?;
        let level = match rank {
            "admin" => Access::Admin,
            "domain" => Access::Domain,
            _ => Access::User,
        };
        Some(Arc::new(UserCred {
            user_id: user.into(),
            user_name: user.into(),
            domain_id: domain.into(),
            project_id: project.into(),
            project_name: project.into(),
            roles: vec![],
            level,
        }))
    }
}

const ROOT: &str = "root/p1/d1/admin";
const BOSS: &str = "boss/p1/d1/domain";
const ANN: &str = "ann/p1/d1/user";
/// Of another project of the domain.
const BOB: &str = "bob/p2/d1/user";
/// Of another domain.
const EVE: &str = "eve/p3/d2/user";

/// What came back.
#[derive(Debug)]
struct Answer {
    asked: String,
    status: u16,
    body: Value,
    statements: u32,
}

impl Answer {
    #[track_caller]
    fn ok(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}: {}", self.asked, self.body);
        self
    }

    /// Refused, with this status and class.
    #[track_caller]
    fn no(self, status: u16, class: &str) -> Self {
        let it = self.ok(status);
        assert_eq!(it.body["class"], class, "{}: {}", it.asked, it.body);
        it
    }

    #[track_caller]
    fn blames(self, field: &str) {
        assert_eq!(self.body["errors"][0]["field"], field, "{}: {}", self.asked, self.body);
    }

    /// Names of the rows of a list.
    #[track_caller]
    fn names(&self, plural: &str) -> Vec<String> {
        let rows = self.body[plural].as_array().unwrap_or_else(|| panic!("{}: {}", self.asked, self.body));
        let mut names: Vec<_> = rows.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }
}

struct House(Arc<Core>);

impl House {
    async fn send(&self, who: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        let data = web::Data::new(http::App::new(self.0.clone(), http::HttpOptions::default()));
        let app = test::init_service(App::new().app_data(data).configure(http::configure)).await;
        let mut request = test::TestRequest::with_uri(path)
            .method(method.parse().unwrap())
            .insert_header(("X-Auth-Token", who));
        if let Some(body) = body {
            request = request.set_json(body);
        }
        let response = test::call_service(&app, request.to_request()).await;
        let status = response.status().as_u16();
        let timing = response.headers().get("server-timing").map(|it| it.to_str().unwrap().to_owned());
        let statements = timing
            .and_then(|it| it.split("desc=\"").nth(1)?.split(' ').next()?.parse().ok())
            .unwrap_or_default();
        let bytes = to_bytes(response.into_body()).await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { asked: format!("{who}: {method} {path}"), status, body, statements }
    }

    async fn get(&self, who: &str, path: &str) -> Answer {
        self.send(who, "GET", path, None).await
    }

    async fn post(&self, who: &str, path: &str, body: Value) -> Answer {
        self.send(who, "POST", path, Some(body)).await
    }

    async fn put(&self, who: &str, path: &str, body: Value) -> Answer {
        self.send(who, "PUT", path, Some(body)).await
    }

    async fn delete(&self, who: &str, path: &str) -> Answer {
        self.send(who, "DELETE", path, None).await
    }

    /// Makes a server and gives its id.
    async fn server(&self, who: &str, name: &str) -> String {
        let made = self.post(who, "/servers", json!({"name": name})).await.ok(201);
        made.body["server"]["id"].as_str().unwrap().to_owned()
    }

    async fn statement<T: db::FromRow + Send + 'static>(&self, text: &'static str) -> Vec<T> {
        self.0.db.read(db::Cost::Bounded, move |conn| db::load(conn, Sql::new(text))).await.unwrap().value
    }

    async fn log(&self, action: &str) -> i64 {
        let sql = "SELECT action, COUNT(*) FROM ops_log GROUP BY action";
        let all: Vec<(String, i64)> = self.statement(sql).await;
        all.iter().find(|(it, _)| it == action).map_or(0, |(_, n)| *n)
    }
}

/// Two domains; p1 and p2 in d1, p3 in d2; ann in p1, bob in p2, eve in p3.
fn seed(conn: &mut db::AnyConnection) -> Result<()> {
    let row = |id: &str| format!("'{id}', 1, 1, 1, '{id}', ''");
    let mut text = String::new();
    for id in ["d1", "d2"] {
        text += &format!("INSERT INTO domains VALUES ({});", row(id));
    }
    for (id, domain) in [("p1", "d1"), ("p2", "d1"), ("p3", "d2")] {
        text += &format!("INSERT INTO projects VALUES ({}, '{domain}');", row(id));
    }
    for (id, domain, project) in [
        ("root", "d1", "p1"),
        ("boss", "d1", "p1"),
        ("ann", "d1", "p1"),
        ("bob", "d1", "p2"),
        ("eve", "d2", "p3"),
    ] {
        text += &format!("INSERT INTO users VALUES ({}, '{domain}', '{project}');", row(id));
    }
    Ok(conn.batch_execute(&text)?)
}

/// Runs a test on each database that there is.
fn each<F, Fut>(test: F)
where
    F: Fn(House) -> Fut,
    Fut: Future<Output = ()>,
{
    for db in TestDb::all() {
        db::migrate(&db.url).unwrap();
        let open = Db::open(&db.url, Options { pool: 4, ..Options::default() }).unwrap();
        let core = Arc::new(Core::new(open, Arc::new(Words)));
        core.db.write_blocking(|conn| db::define(conn, &tables())).unwrap();
        core.db.write_blocking(seed).unwrap();
        actix_web::rt::System::new().block_on(test(House(core.clone())));
    }
}

#[::core::prelude::v1::test]
fn the_tables_agree() {
    each(|house| async move {
        for of in house.0.registry.types() {
            let meta = of.handler.meta();
            let wrong = house.0.db.read(db::Cost::Bounded, move |conn| db::differences(conn, meta)).await;
            let wrong = wrong.unwrap().value;
            assert!(wrong.is_empty(), "{wrong:#?}");
        }
    });
}

// ------------------------------------------------------------------- enabled

#[::core::prelude::v1::test]
fn what_has_a_switch_is_switched() {
    each(|house| async move {
        let id = house.server(ANN, "web").await;
        let path = format!("/servers/{id}");
        let row = house.get(ANN, &path).await.ok(200).body;
        assert_eq!((&row["server"]["enabled"], &row["server"]["shout"]), (&json!(true), &json!("WEB")));
        let off = house.post(ANN, &format!("{path}/disable"), json!({})).await.ok(200);
        assert_eq!(
            (&off.body["server"]["enabled"], &off.body["server"]["version"]),
            (&json!(false), &json!(2))
        );
        // What is off stays as it is.
        let again = house.post(ANN, &format!("{path}/disable"), json!({})).await.ok(200);
        assert_eq!(again.body["server"]["version"], 2);
        house.post(ANN, &format!("{path}/enable"), json!({})).await.ok(200);
        house.post(ANN, &format!("{path}/enable"), json!({"x": 1})).await.ok(400).blames("x");
        house.post(BOB, &format!("{path}/disable"), json!({})).await.no(404, "ResourceNotFoundError");
        assert_eq!((house.log("enable").await, house.log("disable").await), (1, 1));
        // A create and a list take the mixin's fields as their own.
        let made =
            house.post(ANN, "/servers", json!({"name": "off", "enabled": false, "cores": 4})).await.ok(201);
        assert_eq!(
            (&made.body["server"]["enabled"], &made.body["server"]["cores"]),
            (&json!(false), &json!(4))
        );
        assert_eq!(house.get(ANN, "/servers?enabled=false").await.names("servers"), ["off"]);
        house.post(ANN, "/networks/x/enable", json!({})).await.no(404, "ActionNotFoundError");
    });
}

#[::core::prelude::v1::test]
fn administrators_set_a_status() {
    each(|house| async move {
        let id = house.server(ANN, "web").await;
        let path = format!("/servers/{id}/status");
        house.post(ANN, &path, json!({"status": "error"})).await.no(403, "ForbiddenError");
        house.post(ROOT, &path, json!({"status": ""})).await.ok(400).blames("status");
        house.post(ROOT, &path, json!({"status": "x".repeat(33)})).await.ok(400).blames("status");
        let set = house.post(ROOT, &path, json!({"status": "error", "reason": "by hand"})).await.ok(200);
        assert_eq!(
            (&set.body["server"]["status"], &set.body["server"]["status_reason"]),
            (&json!("error"), &json!("by hand"))
        );
        assert_eq!(house.log("status").await, 1);
    });
}

// -------------------------------------------------------------------- owners

#[::core::prelude::v1::test]
fn rows_belong_to_domains_and_users() {
    each(|house| async move {
        house.post(ANN, "/networks", json!({"name": "lan"})).await.no(403, "ForbiddenError");
        house.post(BOSS, "/networks", json!({"name": "lan"})).await.ok(201);
        let row = house.get(ANN, "/networks/lan").await.ok(200).body;
        assert_eq!(row["network"]["domain_id"], "d1");
        assert_eq!(house.get(BOB, "/networks").await.names("networks"), ["lan"]);
        assert!(house.get(EVE, "/networks").await.names("networks").is_empty());
        house.get(EVE, "/networks/lan").await.no(404, "ResourceNotFoundError");
        house.post(ANN, "/keys", json!({"name": "mine"})).await.ok(201);
        assert!(house.get(BOB, "/keys").await.names("keys").is_empty());
        assert_eq!(house.get("ann/p2/d1/user", "/keys").await.names("keys"), ["mine"]);
        assert_eq!(house.get(BOSS, "/keys").await.names("keys"), ["mine"]);
    });
}

#[::core::prelude::v1::test]
fn administrators_make_rows_for_others() {
    each(|house| async move {
        let owner = |it: &Answer| {
            let row = &it.body["server"];
            ["domain_id", "project_id", "user_id"].map(|name| row[name].as_str().unwrap().to_owned())
        };
        house.post(ANN, "/servers", json!({"name": "a", "user_id": "bob"})).await.no(403, "ForbiddenError");
        let made = house.post(ROOT, "/servers", json!({"name": "a", "user_id": "eve"})).await.ok(201);
        assert_eq!(owner(&made), ["d2", "p3", "eve"], "the rest follows from the user");
        let made = house.post(ROOT, "/servers", json!({"name": "b", "project_id": "p3"})).await.ok(201);
        assert_eq!(owner(&made), ["d2", "p3", "root"]);
        let made = house
            .post(BOSS, "/servers", json!({"name": "c", "project_id": "p2", "user_id": "bob"}))
            .await
            .ok(201);
        assert_eq!(owner(&made), ["d1", "p2", "bob"]);
        let wrong = json!({"name": "d", "project_id": "p3", "domain_id": "d1"});
        house.post(ROOT, "/servers", wrong).await.ok(400).blames("domain_id");
        house
            .post(ROOT, "/servers", json!({"name": "d", "domain_id": "d2"}))
            .await
            .ok(400)
            .blames("project_id");
        house
            .post(ROOT, "/servers", json!({"name": "d", "project_id": "nope"}))
            .await
            .no(400, "ReferenceNotFoundError");
        house
            .post(BOSS, "/servers", json!({"name": "d", "project_id": "p3"}))
            .await
            .no(403, "ForbiddenError");
        assert_eq!(house.get(EVE, "/servers").await.names("servers"), ["a"]);
        assert_eq!(house.get(BOB, "/servers").await.names("servers"), ["c"]);
    });
}

#[::core::prelude::v1::test]
fn owners_change() {
    each(|house| async move {
        let id = house.server(ANN, "web").await;
        let path = format!("/servers/{id}/change-owner");
        house.post(ANN, &path, json!({"user_id": "bob"})).await.no(403, "ForbiddenError");
        house.post(BOSS, &path, json!({})).await.ok(400);
        house.post(BOSS, &path, json!({"user_id": "nobody"})).await.ok(400).blames("user_id");
        house.post(BOSS, &path, json!({"project_id": "p3"})).await.no(403, "ForbiddenError");
        house
            .post(ROOT, &path, json!({"project_id": "p3", "domain_id": "d1"}))
            .await
            .ok(400)
            .blames("domain_id");
        house.post(ROOT, &format!("/servers/{id}/status"), json!({"status": "running"})).await.ok(200);
        house.post(BOSS, &path, json!({"user_id": "bob"})).await.no(409, "InvalidStatusError");
        house.post(ROOT, &format!("/servers/{id}/status"), json!({"status": "ready"})).await.ok(200);
        // The name is taken there.
        house.server(BOB, "web").await;
        house.post(BOSS, &path, json!({"user_id": "bob"})).await.no(409, "DuplicateNameError");
        house.put(ANN, &format!("/servers/{id}"), json!({"name": "www"})).await.ok(200);
        let given = house.post(BOSS, &path, json!({"user_id": "bob"})).await.ok(200);
        assert_eq!(
            (&given.body["server"]["user_id"], &given.body["server"]["project_id"]),
            (&json!("bob"), &json!("p2"))
        );
        house.get(ANN, &format!("/servers/{id}")).await.no(404, "ResourceNotFoundError");
        house.get(BOB, &format!("/servers/{id}")).await.ok(200);
        // One record for each of the two owners.
        assert_eq!(house.log("change-owner").await, 2);
        // A domain's and a user's.
        house.post(BOSS, "/networks", json!({"name": "lan"})).await.ok(201);
        house
            .post(BOSS, "/networks/lan/change-owner", json!({"domain_id": "d2"}))
            .await
            .no(403, "ForbiddenError");
        house
            .post(ROOT, "/networks/lan/change-owner", json!({"project_id": "p3"}))
            .await
            .ok(400)
            .blames("project_id");
        house.post(ROOT, "/networks/lan/change-owner", json!({"domain_id": "d2"})).await.ok(200);
        house.get(EVE, "/networks/lan").await.ok(200);
        house.post(ANN, "/keys", json!({"name": "mine"})).await.ok(201);
        let given = house.post(ROOT, "/keys/mine/change-owner", json!({"user_id": "eve"})).await.ok(200);
        assert_eq!(given.body["key"]["domain_id"], "d2");
    });
}

// --------------------------------------------------------------------- trash

#[::core::prelude::v1::test]
fn what_is_deleted_waits_in_the_trash() {
    each(|house| async move {
        let id = house.server(ANN, "web").await;
        let path = format!("/servers/{id}");
        house.delete(ANN, &path).await.no(409, "InvalidStatusError");
        house.post(ANN, &format!("{path}/disable"), json!({})).await.ok(200);
        let gone = house.delete(ANN, &path).await.ok(200);
        assert_eq!(gone.body["server"]["pending_deleted"], true);
        assert!(house.get(ANN, "/servers").await.names("servers").is_empty());
        for word in ["true", "any"] {
            let all = house.get(ANN, &format!("/servers?pending_deleted={word}")).await.ok(200);
            assert_eq!(all.names("servers"), ["web"]);
        }
        house.get(ANN, "/servers?pending_deleted=x").await.ok(400).blames("pending_deleted");
        assert!(house.get(BOB, "/servers?pending_deleted=any").await.names("servers").is_empty());
        assert_eq!(house.get(ANN, &path).await.ok(200).body["server"]["pending_deleted"], true);
        house.get(BOB, &path).await.no(404, "ResourceNotFoundError");
        for refused in [
            house.put(ANN, &path, json!({"cores": 3})).await,
            house.post(ANN, &format!("{path}/poke"), json!({})).await,
            house.post(ANN, &format!("{path}/metadata"), json!({"a": "b"})).await,
        ] {
            refused.no(409, "PendingDeletedError");
        }
        // Its name is free, and the living one has it.
        let other = house.server(ANN, "web").await;
        assert_eq!(house.get(ANN, "/servers/web").await.ok(200).body["server"]["id"], other);
        house.post(ANN, &format!("{path}/undelete"), json!({})).await.no(409, "DuplicateNameError");
        house.put(ANN, &format!("/servers/{other}"), json!({"name": "www"})).await.ok(200);
        house.post(BOB, &format!("{path}/undelete"), json!({})).await.no(404, "ResourceNotFoundError");
        let back = house.post(ANN, &format!("{path}/undelete"), json!({})).await.ok(200);
        assert_eq!(
            (&back.body["server"]["pending_deleted"], &back.body["server"]["pending_deleted_at"]),
            (&json!(false), &Value::Null)
        );
        house.post(ANN, &format!("{path}/undelete"), json!({})).await.no(409, "NotPendingDeletedError");
        // Twice is for good, and so is to ask for it.
        house.delete(ANN, &path).await.ok(200);
        house.delete(ANN, &path).await.ok(200);
        house.get(ANN, &path).await.no(404, "ResourceNotFoundError");
        house.post(ANN, &format!("/servers/{other}/disable"), json!({})).await.ok(200);
        house.delete(ANN, &format!("/servers/{other}?purge=perhaps")).await.ok(400).blames("purge");
        house.delete(ANN, &format!("/servers/{other}?purge=true")).await.ok(200);
        assert!(house.get(ANN, "/servers?pending_deleted=any").await.names("servers").is_empty());
        house.delete(ANN, "/keys/x?purge=true").await.ok(400).blames("purge");
    });
}

#[::core::prelude::v1::test]
fn the_trash_is_emptied() {
    each(|house| async move {
        let mut ids = Vec::new();
        for name in ["old", "kept", "living"] {
            ids.push(house.server(ANN, name).await);
            house.post(ANN, &format!("/servers/{name}/disable"), json!({})).await.ok(200);
        }
        for id in &ids[..2] {
            house.delete(ANN, &format!("/servers/{id}")).await.ok(200);
        }
        // Switched on in the trash by somebody with the database: its hook refuses.
        let on = "UPDATE servers SET enabled = TRUE WHERE name = 'kept'";
        house.0.db.write(None, move |conn| Ok(conn.batch_execute(on)?)).await.unwrap();
        assert_eq!(trash::sweep_once(&house.0, Duration::from_secs(3600)).await.unwrap(), 0);
        assert_eq!(trash::sweep_once(&house.0, Duration::ZERO).await.unwrap(), 1);
        let left = house.get(ANN, "/servers?pending_deleted=any").await.names("servers");
        assert_eq!(left, ["kept", "living"]);
        assert_eq!((house.log("pending-delete").await, house.log("delete").await), (2, 1));
    });
}

// ------------------------------------------------------------------- sharing

#[::core::prelude::v1::test]
fn shared_rows_are_seen_and_not_touched() {
    each(|house| async move {
        let id = house.server(ANN, "web").await;
        let path = format!("/servers/{id}");
        let public = format!("{path}/public");
        let seen = async |who| house.get(who, "/servers").await.names("servers") == ["web"];
        house
            .post(ANN, &public, json!({"scope": "project", "project_ids": ["p2"]}))
            .await
            .no(403, "ForbiddenError");
        for (body, field) in [
            (json!({"scope": "project"}), "project_ids"),
            (json!({"scope": "project", "project_ids": ["p3"]}), "project_ids"),
            (json!({"scope": "project", "project_ids": ["p2"], "domain_ids": ["d1"]}), "domain_ids"),
            (json!({"scope": "system", "project_ids": ["p2"]}), "project_ids"),
            (json!({"scope": "galaxy"}), "scope"),
            (json!({}), "scope"),
        ] {
            house.post(BOSS, &public, body).await.ok(400).blames(field);
        }
        for body in [json!({"scope": "system"}), json!({"scope": "domain", "domain_ids": ["d2"]})] {
            house.post(BOSS, &public, body).await.no(403, "ForbiddenError");
        }
        assert!(!seen(BOB).await && !seen(EVE).await);
        let shared =
            house.post(BOSS, &public, json!({"scope": "project", "project_ids": ["p2"]})).await.ok(200);
        assert_eq!(
            (&shared.body["server"]["is_public"], &shared.body["server"]["public_scope"]),
            (&json!(true), &json!("project"))
        );
        assert!(seen(BOB).await && !seen(EVE).await && seen(ANN).await);
        // The owner is told with whom, and only they are.
        let own = house.get(ANN, "/servers").await.body;
        assert_eq!(own["servers"][0]["shared_projects"], json!(["p2"]));
        assert_eq!(house.get(BOB, &path).await.ok(200).body["server"].get("shared_projects"), None);
        for refused in [
            house.put(BOB, &path, json!({"cores": 3})).await,
            house.delete(BOB, &path).await,
            house.post(BOB, &format!("{path}/poke"), json!({})).await,
            house.post(BOB, &format!("{path}/disable"), json!({})).await,
            house.post(BOB, &format!("{path}/metadata"), json!({"a": "b"})).await,
            house.post(BOB, &format!("{path}/private"), json!({})).await,
        ] {
            refused.no(403, "SharedReadOnlyError");
        }
        house.put(EVE, &path, json!({"cores": 3})).await.no(404, "ResourceNotFoundError");
        house
            .post(ROOT, &format!("{path}/change-owner"), json!({"user_id": "bob"}))
            .await
            .no(409, "SharedResourceError");
        house.post(BOSS, &public, json!({"scope": "domain"})).await.ok(200);
        assert!(seen(BOB).await && !seen(EVE).await);
        house.post(ROOT, &public, json!({"scope": "domain", "domain_ids": ["d2"]})).await.ok(200);
        assert!(!seen(BOB).await && seen(EVE).await);
        house.post(ROOT, &public, json!({"scope": "system"})).await.ok(200);
        assert!(seen(BOB).await && seen(EVE).await);
        // As many statements as without: what is shared is found in the same one.
        assert_eq!(house.get(EVE, "/servers").await.statements, 1);
        house.post(ANN, &format!("{path}/private"), json!({})).await.ok(200);
        assert!(!seen(BOB).await && !seen(EVE).await && seen(ANN).await);
        assert_eq!(house.get(ANN, "/servers").await.statements, 1);
        let left: Vec<(i64,)> = house.statement("SELECT COUNT(*) FROM shared_resources").await;
        assert_eq!(left[0].0, 0);
    });
}

#[::core::prelude::v1::test]
fn an_owners_list_uses_indexes_where_rows_are_shared() {
    each(|house| async move {
        // Enough for a planner to care: many rows of strangers, few of ann's.
        let dialect = house.0.db.dialect();
        let rows = "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000) SELECT n FROM c) x";
        let columns = "id, version, created_at, updated_at, name, description, status, status_reason, domain_id, \
             project_id, user_id, deleted, deleted_at, enabled, pending_deleted, pending_deleted_at, is_public, \
             public_scope, external_id, source, imported_at, cores";
        let fill = format!(
            "INSERT INTO servers ({columns}) SELECT 'id' || n, 1, n, n, 'name' || n, '', 'ready', '', 'd1', 'p9', \
             'stranger', FALSE, NULL, TRUE, FALSE, NULL, FALSE, 'none', NULL, '', NULL, 1 FROM {rows}"
        );
        let (more, analyze) = match dialect {
            Dialect::Mysql => (
                "SET SESSION /*M! max_recursive_iterations */ /*!80000 cte_max_recursion_depth */ = 100000",
                "ANALYZE TABLE servers",
            ),
            _ => ("SELECT 1", "ANALYZE"),
        };
        let fill = format!("{more}; {fill}");
        house.0.db.write(None, move |conn| Ok(conn.batch_execute(&fill)?)).await.unwrap();
        house.0.db.write(None, move |conn| Ok(conn.batch_execute(analyze)?)).await.unwrap();
        for i in 0..3 {
            house.server(ANN, &format!("own{i}")).await;
        }
        let shared = "SELECT obj_id FROM shared_resources WHERE obj_type = 'server' AND target IN ('project:p1', 'domain:d1', 'system')";
        let (explain, of) = match dialect {
            Dialect::Postgres => ("EXPLAIN", format!("= ANY(ARRAY({shared}))")),
            Dialect::Mysql => ("EXPLAIN FORMAT = JSON", format!("IN ({shared})")),
            Dialect::Sqlite => ("EXPLAIN QUERY PLAN", format!("IN ({shared})")),
        };
        let select = format!(
            "{explain} SELECT id, name FROM servers WHERE (user_id = 'ann' OR id {of}) AND deleted = FALSE \
             AND pending_deleted = FALSE ORDER BY created_at DESC, id DESC LIMIT 21"
        );
        let plan = house.0.db.read(db::Cost::Unbounded, move |conn| {
            let sql = Sql::new(select.clone());
            Ok(if dialect == Dialect::Sqlite {
                db::load::<(i64, i64, i64, String)>(conn, sql)?.into_iter().map(|it| it.3).collect()
            } else {
                db::load::<(String,)>(conn, sql)?.into_iter().map(|(it,)| it).collect::<Vec<_>>()
            })
        });
        let plan = plan.await.unwrap().value.join("\n");
        assert!(plan.contains("servers_owner"), "{plan}");
        assert!(!plan.contains("Seq Scan on servers") && !plan.contains("SCAN servers"), "{plan}");
        assert!(!plan.contains("\"access_type\": \"ALL\""), "{plan}");
        assert_eq!(house.get(ANN, "/servers").await.names("servers").len(), 3);
    });
}

// ------------------------------------------------------------------ external

#[::core::prelude::v1::test]
fn external_ids_are_unique_where_there_are_any() {
    each(|house| async move {
        for name in ["a", "b"] {
            house.server(ANN, name).await;
        }
        let made = house
            .post(ANN, "/servers", json!({"name": "c", "external_id": "i-1", "source": "cloud"}))
            .await
            .ok(201);
        assert!(made.body["server"]["imported_at"].is_string());
        house
            .post(BOB, "/servers", json!({"name": "c", "external_id": "i-1"}))
            .await
            .ok(409)
            .blames("external_id");
        house.post(BOB, "/servers", json!({"name": "d", "external_id": ""})).await.ok(201);
        house.post(BOB, "/servers", json!({"name": "e", "external_id": ""})).await.ok(201);
        assert_eq!(house.get(ANN, "/servers?external_id=i-1").await.names("servers"), ["c"]);
    });
}

// --------------------------------------------------------------------- joint

/// A network of the domain, ann's server and bob's.
async fn wired(house: &House) -> (String, String) {
    house.post(BOSS, "/networks", json!({"name": "lan"})).await.ok(201);
    (house.server(ANN, "web").await, house.server(BOB, "db").await)
}

#[::core::prelude::v1::test]
fn two_resources_are_attached_and_detached() {
    each(|house| async move {
        let (web, _) = wired(&house).await;
        let path = "/networks/lan/servers/web";
        house.get(ANN, path).await.no(404, "ResourceNotFoundError");
        let made = house.post(ANN, path, json!({"address": "10.0.0.1"})).await.ok(201);
        let row = &made.body["server_network"];
        assert_eq!(
            (&row["server_id"], &row["server"], &row["network"]),
            (&json!(web), &json!("web"), &json!("lan"))
        );
        house.post(ANN, path, json!({})).await.no(409, "AlreadyAttachedError");
        house.post(ANN, "/servers/web/networks/lan", json!({})).await.no(409, "AlreadyAttachedError");
        house.post(ANN, "/networks/lan/servers/nope", json!({})).await.no(404, "ResourceNotFoundError");
        house.post(ANN, "/networks/nope/servers/web", json!({})).await.no(404, "ResourceNotFoundError");
        house.post(ANN, path, json!({"server_id": "other"})).await.ok(400).blames("server_id");
        // From both sides, and as a type of its own.
        for path in [path, "/servers/web/networks/lan"] {
            let got = house.get(ANN, path).await.ok(200);
            assert_eq!(got.body["server_network"]["address"], "10.0.0.1");
        }
        for path in [
            "/networks/lan/servers",
            "/servers/web/networks",
            "/server_networks",
            "/networks/lan/server_networks",
        ] {
            let list = house.get(ANN, path).await.ok(200);
            let rows = list.body["server_networks"].as_array().unwrap();
            assert_eq!(rows.len(), 1, "{path}");
            assert_eq!((&rows[0]["server"], &rows[0]["network"]), (&json!("web"), &json!("lan")), "{path}");
        }
        house.post(ANN, "/networks/lan/servers", json!({})).await.ok(405);
        let changed =
            house.put(ANN, "/servers/web/networks/lan", json!({"address": "10.0.0.2"})).await.ok(200);
        assert_eq!(changed.body["server_network"]["address"], "10.0.0.2");
        house.delete(ANN, path).await.ok(200);
        house.delete(ANN, path).await.no(404, "ResourceNotFoundError");
        let logged: Vec<(String, i64)> = house
            .statement("SELECT action, COUNT(*) FROM ops_log WHERE obj_type = 'server_network' GROUP BY action ORDER BY 1")
            .await;
        assert_eq!(logged, [("create".into(), 1), ("delete".into(), 1), ("update".into(), 1)]);
    });
}

#[::core::prelude::v1::test]
fn who_sees_not_both_sees_no_joint_row() {
    each(|house| async move {
        wired(&house).await;
        house.post(ANN, "/networks/lan/servers/web", json!({})).await.ok(201);
        house.post(BOB, "/networks/lan/servers/db", json!({})).await.ok(201);
        house.post(BOB, "/networks/lan/servers/web", json!({})).await.no(404, "ResourceNotFoundError");
        let servers = async |who, path| {
            let list = house.get(who, path).await.ok(200);
            let rows = list.body["server_networks"].as_array().unwrap();
            let mut names: Vec<_> = rows.iter().map(|it| it["server"].as_str().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        for path in ["/networks/lan/servers", "/server_networks"] {
            assert_eq!(servers(BOB, path).await, ["db"]);
            assert_eq!(servers(ANN, path).await, ["web"]);
            assert_eq!(servers(BOSS, path).await, ["db", "web"]);
            assert_eq!(servers(ROOT, path).await, ["db", "web"]);
        }
        assert_eq!(servers(EVE, "/server_networks").await, [""; 0]);
        house.get(EVE, "/networks/lan/servers").await.no(404, "ResourceNotFoundError");
        let all = house.get(ROOT, "/server_networks").await;
        for row in all.body["server_networks"].as_array().unwrap() {
            let path = format!("/server_networks/{}", row["id"].as_str().unwrap());
            house.get(EVE, &path).await.no(404, "ResourceNotFoundError");
            house.delete(EVE, &path).await.no(404, "ResourceNotFoundError");
        }
        let total = house.get(BOB, "/networks/lan/servers?details=total").await.ok(200);
        assert_eq!(total.body["total"], 1);
    });
}

#[::core::prelude::v1::test]
fn two_who_attach_at_once_make_one() {
    each(|house| async move {
        wired(&house).await;
        for _ in 0..5 {
            let path = "/networks/lan/servers/web";
            let attach = || house.post(ANN, path, json!({}));
            let (a, b, c) = tokio::join!(attach(), attach(), attach());
            let mut all = [a.status, b.status, c.status];
            all.sort_unstable();
            assert_eq!(all, [201, 409, 409]);
            house.delete(ANN, path).await.ok(200);
        }
    });
}

#[::core::prelude::v1::test]
fn what_is_attached_goes_or_holds() {
    each(|house| async move {
        let (web, _) = wired(&house).await;
        house.post(ANN, "/networks/lan/servers/web", json!({})).await.ok(201);
        house.delete(BOSS, "/networks/lan").await.no(409, "ResourceInUseError");
        house.post(ANN, "/servers/web/disable", json!({})).await.ok(200);
        let path = format!("/servers/{web}");
        // In the trash it is still attached; nothing new can be.
        house.delete(ANN, &path).await.ok(200);
        assert_eq!(
            house.get(ROOT, "/server_networks").await.body["server_networks"].as_array().unwrap().len(),
            1
        );
        house.post(ANN, "/server_networks", json!({"network_id": "x", "server_id": web})).await.ok(400);
        house.delete(ANN, &path).await.ok(200);
        assert_eq!(house.get(ROOT, "/server_networks").await.body["server_networks"], json!([]));
        house.delete(BOSS, "/networks/lan").await.ok(200);
        let logged: Vec<(i64,)> = house
            .statement("SELECT COUNT(*) FROM ops_log WHERE obj_type = 'server_network' AND action = 'delete'")
            .await;
        assert_eq!(logged[0].0, 1);
    });
}

// ------------------------------------------------------------------ contexts

#[::core::prelude::v1::test]
fn rows_are_found_below_what_they_refer_to() {
    each(|house| async move {
        let web = house.server(ANN, "web").await;
        house.server(BOB, "db").await;
        assert_eq!(house.get(ROOT, "/projects/p1/servers").await.ok(200).names("servers"), ["web"]);
        assert_eq!(house.get(ROOT, "/users/bob/servers").await.ok(200).names("servers"), ["db"]);
        assert_eq!(
            house.get(ROOT, "/domains/d1/servers?limit=1&details=total").await.ok(200).body["total"],
            2
        );
        house.get(ROOT, "/projects/nope/servers").await.no(404, "ResourceNotFoundError");
        house.get(ROOT, "/projects/p1/nope").await.no(404, "SpecNotFoundError");
        let path = "/projects/p1/servers/web";
        house.get(ROOT, path).await.ok(200);
        house.get(ROOT, "/projects/p2/servers/web").await.no(404, "ResourceNotFoundError");
        house.get(BOB, path).await.no(404, "ResourceNotFoundError");
        let changed = house.put(ROOT, path, json!({"cores": 5})).await.ok(200);
        assert_eq!(changed.body["server"]["cores"], 5);
        let poked = house.post(ROOT, &format!("{path}/poke"), json!({})).await.ok(200);
        assert_eq!(poked.body["server"]["cores"], 6);
        house.post(ROOT, &format!("{path}/nope"), json!({})).await.no(404, "ActionNotFoundError");
        house.post(ROOT, "/projects/p2/servers/web/poke", json!({})).await.no(404, "ResourceNotFoundError");
        house.post(ROOT, path, json!({})).await.ok(405);
        // A create takes what the path says, and nothing against it.
        let made = house.post(ROOT, "/projects/p3/servers", json!({"name": "far"})).await.ok(201);
        assert_eq!(
            (&made.body["server"]["project_id"], &made.body["server"]["domain_id"]),
            (&json!("p3"), &json!("d2"))
        );
        let wrong = json!({"name": "x", "project_id": "p2"});
        house.post(ROOT, "/projects/p3/servers", wrong).await.no(400, "ContextError").blames("project_id");
        house.post(ANN, "/projects/p1/servers", json!({"name": "own"})).await.ok(201);
        house.post(ANN, "/projects/p2/servers", json!({"name": "own2"})).await.no(403, "ForbiddenError");
        house.delete(ROOT, "/projects/p2/servers/web").await.no(404, "ResourceNotFoundError");
        house.post(ROOT, &format!("{path}/disable"), json!({})).await.ok(200);
        house.delete(ROOT, path).await.ok(200);
        assert_eq!(
            house.get(ROOT, &format!("/servers/{web}")).await.ok(200).body["server"]["pending_deleted"],
            true
        );
        // Two statements: the row above, and the rows.
        assert_eq!(house.get(ROOT, "/projects/p1/servers").await.statements, 2);
        // The description tells of them.
        let about = house.get(ROOT, "/resources/servers").await.ok(200).body;
        let paths: Vec<_> = about["resource"]["contexts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["path"].as_str().unwrap())
            .collect();
        assert_eq!(paths, ["/domains/{id}/servers", "/projects/{id}/servers", "/users/{id}/servers"]);
    });
}

// ---------------------------------------------------------------------- tags

#[::core::prelude::v1::test]
fn tags_hang_on_rows_and_go_with_them() {
    each(|house| async move {
        let tagged = json!({"name": "web", "metadata": {"env": "prod", "note": "é".repeat(4096)}});
        let id = house.post(ANN, "/servers", tagged).await.ok(201).body["server"]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        house.server(ANN, "db").await;
        let path = format!("/servers/{id}");
        assert_eq!(house.get(ANN, "/servers?tag=env:prod").await.names("servers"), ["web"]);
        assert_eq!(house.get(ANN, "/servers?without_tag=env").await.names("servers"), ["db"]);
        // The index has the head of it; the whole is compared.
        let almost = format!("/servers?tag=note:{}", "%C3%A9".repeat(4095));
        assert!(house.get(ANN, &almost).await.ok(200).names("servers").is_empty());
        // One statement more for a page, whatever its rows; none where they are not asked for.
        assert_eq!(house.get(ANN, "/servers").await.statements, 1);
        let page = house.get(ANN, "/servers?tags=true").await.ok(200);
        assert_eq!(page.statements, 2);
        assert_eq!(page.body["servers"][0]["metadata"], json!({}), "{}", page.body);
        assert_eq!(page.body["servers"][1]["metadata"]["env"], "prod");
        assert_eq!(house.get(ANN, "/servers?tag=env&tag=note").await.statements, 1);
        // Who sees a shared row sees its tags.
        house.post(BOSS, &format!("{path}/public"), json!({"scope": "domain"})).await.ok(200);
        assert_eq!(
            house.get(BOB, &format!("{path}/metadata")).await.ok(200).body["server"]["metadata"]["env"],
            "prod"
        );
        assert_eq!(
            house.get(BOB, "/servers/tags").await.ok(200).body["servers"]["tags"].as_array().unwrap().len(),
            2
        );
        assert_eq!(house.get(EVE, "/servers/tags").await.ok(200).body["servers"]["tags"], json!([]));
        house.post(ANN, &format!("{path}/disable"), json!({})).await.ok(200);
        house.delete(ANN, &path).await.ok(200);
        let left = "SELECT (SELECT COUNT(*) FROM metadata), (SELECT COUNT(*) FROM shared_resources)";
        assert_eq!(house.statement::<(i64, i64)>(left).await[0], (2, 1), "what is in the trash keeps them");
        house.delete(ANN, &path).await.ok(200);
        // The share stays, so that those it was shared with hear of it.
        assert_eq!(house.statement::<(i64, i64)>(left).await[0], (0, 1));
    });
}

#[::core::prelude::v1::test]
fn shares_go_with_rows_that_go_for_good() {
    each(|house| async move {
        house.post(BOSS, "/networks", json!({"name": "n"})).await.ok(201);
        house.post(BOSS, "/networks", json!({"name": "other"})).await.ok(201);
        for name in ["n", "other"] {
            house.post(BOSS, &format!("/networks/{name}/public"), json!({"scope": "domain"})).await.ok(200);
        }
        let shares = "SELECT COUNT(*) FROM shared_resources";
        assert_eq!(house.statement::<(i64,)>(shares).await[0], (2,));
        house.delete(BOSS, "/networks/n").await.ok(200);
        assert_eq!(house.statement::<(i64,)>(shares).await[0], (1,));
    });
}

// ------------------------------------------------------------ with the others

#[::core::prelude::v1::test]
fn what_lies_in_the_trash_uses_no_quota() {
    each(|house| async move {
        let most = json!({"scope": "user", "target_id": "ann", "resource": "servers", "most": 1});
        house.post(ROOT, "/quotas", most).await.ok(201);
        let id = house.server(ANN, "one").await;
        house.post(ANN, "/servers", json!({"name": "two"})).await.no(409, "OutOfQuotaError");
        house.post(ANN, "/servers/one/disable", json!({})).await.ok(200);
        house.delete(ANN, "/servers/one").await.ok(200);
        house.server(ANN, "two").await;
        house.post(ANN, &format!("/servers/{id}/undelete"), json!({})).await.no(409, "OutOfQuotaError");
        // Given to another, it counts there.
        house.post(BOSS, "/servers/two/change-owner", json!({"user_id": "bob"})).await.ok(200);
        house.post(ANN, &format!("/servers/{id}/undelete"), json!({})).await.ok(200);
    });
}

#[::core::prelude::v1::test]
fn a_batch_judges_each_by_its_own_rules() {
    each(|house| async move {
        let shared = house.server(ANN, "web").await;
        house.post(BOSS, &format!("/servers/{shared}/public"), json!({"scope": "domain"})).await.ok(200);
        let own = house.server(BOB, "db").await;
        let done = house.put(BOB, "/servers?all=true", json!({"cores": 9})).await.ok(207);
        let mut parts: Vec<_> = done.body["servers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| (it["id"].as_str().unwrap().to_owned(), it["status"].as_i64().unwrap()))
            .collect();
        parts.sort();
        let mut wanted = vec![(shared.clone(), 403), (own.clone(), 200)];
        wanted.sort();
        assert_eq!(parts, wanted, "{}", done.body);
        assert_eq!(house.get(ANN, "/servers/web").await.body["server"]["cores"], 1);
        // Built-in actions, and rows chosen by their tags.
        house.post(BOB, "/servers/db/metadata", json!({"env": "test"})).await.ok(200);
        let off = house.post(BOB, "/servers/disable?tag=env:test", json!({})).await.ok(207);
        assert_eq!(off.body["servers"][0]["body"]["server"]["enabled"], false, "{}", off.body);
        assert_eq!(off.body["servers"].as_array().unwrap().len(), 1);
        let dry = house.delete(BOB, "/servers/db?dry_run=true").await.ok(200);
        assert_eq!(dry.body["server"]["pending_deleted"], true);
        assert_eq!(house.get(BOB, "/servers/db").await.body["server"]["pending_deleted"], false);
    });
}

#[::core::prelude::v1::test]
fn an_apply_carries_tags() {
    each(|house| async move {
        let wanted = |env: &str| json!({"name": "web", "cores": 2, "metadata": {"env": env}});
        house.post(ANN, "/servers/apply", wanted("test")).await.ok(201);
        let same = house.post(ANN, "/servers/apply", wanted("test")).await.ok(200);
        assert_eq!(same.body["server"]["version"], 1, "nothing differs");
        let other = house.post(ANN, "/servers/apply", wanted("prod")).await.ok(200);
        assert_eq!(other.body["server"]["version"], 2);
        assert_eq!(house.get(ANN, "/servers?tag=env:prod").await.names("servers"), ["web"]);
        // What administrators set is not overwritten by a way around.
        let hidden = json!({"name": "web", "metadata": {"sys:x": "1"}});
        house.post(ANN, "/servers/apply", hidden).await.no(403, "ForbiddenError");
    });
}

#[::core::prelude::v1::test]
fn records_tell_of_tags_and_shares_to_the_owner() {
    each(|house| async move {
        let id = house.server(ANN, "web").await;
        house.post(ANN, "/servers/web/metadata", json!({"env": "test"})).await.ok(200);
        house.post(ROOT, "/servers/web/metadata", json!({"env": "prod", "__x": "secret"})).await.ok(200);
        house
            .post(BOSS, "/servers/web/public", json!({"scope": "project", "project_ids": ["p2"]}))
            .await
            .ok(200);
        let events = house
            .get(ANN, &format!("/servers/{id}/events?action=metadata&order_by=obj_version"))
            .await
            .ok(200);
        let notes: Vec<_> = events.body["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["notes"]["metadata"].clone())
            .collect();
        assert_eq!(notes[0], json!({"old": {}, "new": {"env": "test"}}));
        assert_eq!(notes[1], json!({"old": {"env": "test"}, "new": {"env": "prod", "__": "***"}}));
        assert!(!events.body.to_string().contains("secret"));
        let shares = house.get(ANN, &format!("/servers/{id}/events?action=public")).await.ok(200);
        assert_eq!(shares.body["events"][0]["notes"]["shared_with"], json!({"new": ["project:p2"]}));
        let below = house.get(ROOT, "/projects/p1/servers/web/events").await.ok(200);
        assert_eq!(below.body["events"].as_array().unwrap().len(), 4);
    });
}
