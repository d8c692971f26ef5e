//! A type with every feature switched on (`disk.rs`, `up.sql`), beside one with
//! none: what it takes to write, and what it costs. On SQLite always, and on
//! PostgreSQL where `PODYARD_TEST_POSTGRES_URL` names one.
#![expect(clippy::unwrap_used, reason = "a test may stop at once")]

mod disk;

use std::sync::Arc;

use actix_web::body::to_bytes;
use actix_web::{App, test, web};
use diesel::connection::{Connection, SimpleConnection};
use podyard::auth::{Access, Authenticator, UserCred};
use podyard::db::{self, DatabaseUrl, Db, Dialect, Options};
use podyard::http::HttpOptions;
use podyard::prelude::*;
use podyard::{Core, http};
use serde_json::{Value, json};

macro_rules! plain {
    ($Type:ident, $Base:ident, $keyword:literal, $plural:literal) => {
        /// A type with nothing but its base.
        #[derive(Debug, Clone, Default, Resource)]
        #[resource(keyword = $keyword, plural = $plural, read = "user", write = "user")]
        pub struct $Type {
            /// The base.
            pub base: $Base,
        }
        impl Manager for $Type {}
        impl Model for $Type {}
    };
}
plain!(Domain, StandaloneBase, "domain", "domains");
plain!(Project, StandaloneBase, "project", "projects");
plain!(User, StandaloneBase, "user", "users");
plain!(Rack, StandaloneBase, "rack", "racks");
plain!(Bare, VirtualBase, "bare", "bares");

#[actions]
impl Bare {
    /// Gets it ready.
    fn perform_ready(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        tx.set_status(self, "ready", "")
    }
}

const STANDALONE: &str = "id TEXT PRIMARY KEY NOT NULL, version BIGINT NOT NULL, created_at BIGINT NOT NULL, \
     updated_at BIGINT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL";
const BARE: &str = "status TEXT NOT NULL, status_reason TEXT NOT NULL, domain_id TEXT NOT NULL, \
     project_id TEXT NOT NULL, user_id TEXT NOT NULL, deleted BOOLEAN NOT NULL, deleted_at BIGINT";

/// A token is the user's name; `root` is an administrator.
struct Names;

impl Authenticator for Names {
    fn authenticate(&self, token: &str) -> Option<Arc<UserCred>> {
        let level = if token == "root" { Access::Admin } else { Access::User };
        let (user_id, user_name) = (token.to_owned(), token.to_owned());
        Some(Arc::new(UserCred {
            user_id,
            user_name,
            level,
            project_id: "p".into(),
            domain_id: "d".into(),
            ..UserCred::system()
        }))
    }
}

struct Answer {
    status: u16,
    body: Value,
    statements: u32,
}

struct House(Arc<Core>);

impl House {
    fn open(url: &DatabaseUrl) -> Self {
        db::migrate(url).unwrap();
        let db = Db::open(url, Options::default()).unwrap();
        db.write_blocking(|conn| {
            let mut sql = include_str!("up.sql").to_owned();
            for (table, id) in [("domains", "d"), ("projects", "p"), ("users", "ann"), ("racks", "r")] {
                sql += &format!("CREATE TABLE {table} ({STANDALONE});");
                sql += &format!("CREATE UNIQUE INDEX {table}__name_key ON {table} (name);");
                sql += &format!("INSERT INTO {table} VALUES ('{id}', 1, 0, 0, '{id}', '');");
            }
            sql += "INSERT INTO users VALUES ('root', 1, 0, 0, 'root', '');";
            sql += "INSERT INTO projects VALUES ('q', 1, 0, 0, 'q', '');";
            sql += &format!("CREATE TABLE bares ({STANDALONE}, {BARE});");
            sql += "CREATE UNIQUE INDEX bares__name_key ON bares (user_id, name) WHERE deleted = FALSE;";
            Ok(conn.batch_execute(&sql)?)
        })
        .unwrap();
        Self(Arc::new(Core::new(db, Arc::new(Names))))
    }

    async fn ask(&self, who: &str, method: &str, path: &str, body: Value) -> Answer {
        let data = web::Data::new(http::App::new(self.0.clone(), HttpOptions::default()));
        let app = test::init_service(App::new().app_data(data).configure(http::configure)).await;
        let mut request = test::TestRequest::with_uri(path)
            .method(method.parse().unwrap())
            .insert_header(("X-Auth-Token", who));
        if !body.is_null() {
            request = request.set_json(body);
        }
        let response = test::call_service(&app, request.to_request()).await;
        let status = response.status().as_u16();
        let timing = response.headers().get("server-timing").unwrap().to_str().unwrap().to_owned();
        let statements = timing.split("desc=\"").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let body = serde_json::from_slice(&to_bytes(response.into_body()).await.unwrap()).unwrap();
        Answer { status, body, statements }
    }

    /// What is answered to ann.
    async fn ann(&self, method: &str, path: &str, body: Value) -> Answer {
        let answer = self.ask("ann", method, path, body).await;
        assert!(answer.status < 300, "{method} {path}: {} {}", answer.status, answer.body);
        answer
    }

    /// How many statements ann's request takes.
    async fn cost(&self, method: &str, path: &str, body: Value) -> u32 {
        self.ann(method, path, body).await.statements
    }
}

/// Runs a test on each database that there is.
fn each<F: Future<Output = ()>>(run: impl Fn(House, Dialect) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let on = |url: &DatabaseUrl, dialect| actix_web::rt::System::new().block_on(run(House::open(url), dialect));
    on(&DatabaseUrl::Sqlite(folder.path().join("db")), Dialect::Sqlite);
    if let Ok(server) = std::env::var("PODYARD_TEST_POSTGRES_URL") {
        let name = format!("k_{}", podyard::new_id().replace('-', ""));
        let mut conn = diesel::PgConnection::establish(&server).unwrap();
        conn.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        on(&DatabaseUrl::Postgres(format!("{}/{name}", server.rsplit_once('/').unwrap().0)), Dialect::Postgres);
        conn.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).unwrap();
    }
}

#[::core::prelude::v1::test]
fn everything_fits_into_eighty_lines() {
    assert!(include_str!("disk.rs").lines().count() < 80);
}

#[::core::prelude::v1::test]
fn the_table_is_as_the_type() {
    each(|house, _| async move {
        let meta = disk::Disk::meta();
        let wrong = house.0.db.read(db::Cost::Bounded, move |conn| db::differences(conn, meta)).await;
        assert_eq!(wrong.unwrap().value, [""; 0]);
    });
}

/// Get, list of 1 and of 20, with search, tags and a total, create, update, action, delete.
async fn costs(house: &House, plural: &str, action: (&str, Value), body: &Value) -> Vec<(&'static str, u32)> {
    let named = |name: String| {
        let mut body = body.clone();
        body["name"] = name.into();
        body
    };
    let list = format!("/{plural}");
    let _ = house.ann("POST", &list, named("0".into())).await;
    let one = format!("/{plural}/0");
    let _ = house.ann("GET", &one, Value::Null).await;
    let queries = ["", "?tags=true", "?details=total", "?search=x"];
    let mut costs = Vec::new();
    let _ = queries;
    costs.push(("get", house.cost("GET", &one, Value::Null).await));
    costs.push(("list 1", house.cost("GET", &list, Value::Null).await));
    for i in 1..20 {
        let _ = house.ann("POST", &list, named(i.to_string())).await;
    }
    let page = house.ann("GET", &list, Value::Null).await;
    assert_eq!(page.body[plural].as_array().unwrap().len(), 20);
    costs.push(("list 20", page.statements));
    costs.push(("list 20 with tags", house.cost("GET", &format!("{list}?tags=true"), Value::Null).await));
    costs.push(("list 20 with a total", house.cost("GET", &format!("{list}?details=total"), Value::Null).await));
    costs.push(("create", house.cost("POST", &list, named("new".into())).await));
    costs.push(("update", house.cost("PUT", &one, json!({"description": "x"})).await));
    costs.push(("action", house.cost("POST", &format!("{one}/{}", action.0), action.1).await));
    costs.push(("delete", house.cost("DELETE", &format!("/{plural}/1"), Value::Null).await));
    costs
}

#[::core::prelude::v1::test]
fn features_cost_few_statements() {
    each(|house, dialect| async move {
        let bare = costs(&house, "bares", ("ready", json!({})), &json!({})).await;
        let off = costs(&house, "disks", ("grow", json!({"by": 1})), &json!({"size": 1})).await;
        for (bare, off) in bare.iter().zip(&off) {
            println!("{dialect:?}: {:<20} {} {}", bare.0, bare.1, off.1);
        }
    });
}
