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
        let timing = response.headers().get("server-timing").map(|it| it.to_str().unwrap().to_owned());
        let statements = timing.and_then(|it| it.split("desc=\"").nth(1)?.split(' ').next()?.parse().ok());
        let body = serde_json::from_slice(&to_bytes(response.into_body()).await.unwrap()).unwrap();
        Answer { status, body, statements: statements.unwrap_or(u32::MAX) }
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
    let on =
        |url: &DatabaseUrl, dialect| actix_web::rt::System::new().block_on(run(House::open(url), dialect));
    on(&DatabaseUrl::Sqlite(folder.path().join("db")), Dialect::Sqlite);
    if let Ok(server) = std::env::var("PODYARD_TEST_POSTGRES_URL") {
        let name = format!("k_{}", podyard::new_id().replace('-', ""));
        let mut conn = diesel::PgConnection::establish(&server).unwrap();
        conn.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        on(
            &DatabaseUrl::Postgres(format!("{}/{name}", server.rsplit_once('/').unwrap().0)),
            Dialect::Postgres,
        );
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

/// What a row is made of, named.
fn named(body: &Value, name: impl Into<Value>) -> Value {
    let mut body = body.clone();
    body["name"] = name.into();
    body
}

/// What reading takes: a get, a list, one without details, one with a filter
/// and an order, one with tags, and one with a total.
async fn reads(house: &House, plural: &str, rows: usize) -> [u32; 6] {
    let asks =
        ["/0", "", "?details=false", "?filter=name.ge(0)&order_by=-name", "?tags=true", "?details=total"];
    let mut costs = [0; 6];
    for (cost, ask) in costs.iter_mut().zip(asks) {
        let answer = house.ann("GET", &format!("/{plural}{ask}"), Value::Null).await;
        assert_eq!(answer.body[plural].as_array().map_or(rows, Vec::len), rows, "{ask}");
        *cost = answer.statements;
    }
    costs
}

/// What writing takes: a create, an update, an action and a delete.
async fn writes(house: &House, plural: &str, body: &Value, action: &str, input: Value) -> [u32; 4] {
    let mut costs = [0; 4];
    // What is kept in memory is read at its first use after a change: the second time counts.
    for name in ["first", "second"] {
        let row = format!("/{plural}/{name}");
        costs = [
            house.cost("POST", &format!("/{plural}"), named(body, name)).await,
            house.cost("PUT", &row, json!({"description": "new"})).await,
            house.cost("POST", &format!("{row}/{action}"), input.clone()).await,
            house.cost("DELETE", &row, Value::Null).await,
        ];
    }
    costs
}

/// As the administrator.
async fn root(house: &House, path: &str, body: Value) {
    let answer = house.ask("root", "POST", path, body).await;
    assert!(answer.status < 300, "{path}: {}", answer.body);
}

#[::core::prelude::v1::test]
fn a_read_takes_as_many_with_everything_and_for_twenty_rows() {
    each(|house, _| async move {
        for (plural, body) in [("bares", json!({})), ("disks", json!({"size": 1, "rack_id": "r"}))] {
            for (rows, new) in [(1, 0..1), (20, 1..20)] {
                for i in new {
                    house.ann("POST", &format!("/{plural}"), named(&body, i.to_string())).await;
                }
                let _ = house.ann("GET", &format!("/{plural}"), Value::Null).await;
                // Tags and totals are asked for, and are one more each.
                assert_eq!(reads(&house, plural, rows).await, [1, 1, 1, 1, 2, 2], "{rows} {plural}");
            }
        }
        // Whose rows are shared is told with whom: one more for the page.
        for shared in [0..1, 1..20] {
            for i in shared {
                let with = json!({"scope": "project", "project_ids": ["q"]});
                root(&house, &format!("/disks/{i}/public"), with).await;
            }
            assert_eq!(reads(&house, "disks", 20).await, [2, 2, 1, 2, 3, 3], "shared disks");
        }
    });
}

#[::core::prelude::v1::test]
fn a_write_takes_at_most_one_statement_more_for_each_feature() {
    each(|house, dialect| async move {
        // SQLite reads an updated row before it locks it; PostgreSQL does both in one.
        let more = u32::from(dialect == Dialect::Sqlite);
        let disks = async |body: &Value| writes(&house, "disks", body, "grow", json!({"by": 1})).await;
        let bare = writes(&house, "bares", &json!({}), "ready", json!({})).await;
        assert_eq!(bare, [2, 2 + more, 3, 3], "create, update, act, delete: a bare type");
        let mut body = json!({"size": 1, "serial": null});
        // Growing starts a task. The trash is a mark.
        assert_eq!(disks(&body).await, [2, 2 + more, 4, 2 + more], "everything is there, and not used");
        body["rack_id"] = "r".into();
        assert_eq!(disks(&body).await, [3, 2 + more, 4, 2 + more], "a reference is looked up");
        body["metadata"] = json!({"a": "1", "b": "2", "c": "3"});
        assert_eq!(disks(&body).await, [4, 2 + more, 4, 2 + more], "three tags");
        for (resource, scope, whose) in
            [("disks", "user", "ann"), ("gigabytes", "user", "ann"), ("disks", "project", "p")]
        {
            let quota = json!({"scope": scope, "target_id": whose, "resource": resource, "most": 1000});
            root(&house, "/quotas", quota).await;
        }
        assert_eq!(disks(&body).await, [5, 2 + more, 5, 3 + more], "three quotas");
        let events = json!(["created", "updated", "deleted", "grow", "pending-delete"]);
        let hook = json!({"name": "h", "url": "http://127.0.0.1:9/", "resource": "disk", "events": events});
        root(&house, "/webhooks", hook).await;
        // The one that takes two: a delivery, and the task that makes it.
        assert_eq!(disks(&body).await, [7, 4 + more, 7, 5 + more], "a webhook that is told");
    });
}
