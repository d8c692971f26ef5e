//! What writes promise to the hooks of a type: their order, what a savepoint
//! undoes, what is kept under a key. In process, on each database (`databases`).
#![expect(clippy::unwrap_used, reason = "a test may stop at once")]

mod databases;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use actix_web::{App as ActixApp, test as http, web};
use diesel::connection::SimpleConnection;
use futures_util::future::join_all;
use podyard::auth::{Access, Authenticator, UserCred};
use podyard::db::{self, Db, Dialect, Options, Sql};
use podyard::http::{App, HttpOptions};
use podyard::prelude::*;
use podyard::{Core, Nothing};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use databases::TestDb;

/// A thing with a document.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "paper", plural = "papers")]
pub struct Paper {
    /// Name and owner.
    pub base: VirtualBase,
    /// What is in it.
    #[field(list = "user", create = "optional", update = "user")]
    pub content: Value,
    /// What may be missing.
    #[field(list = "user", create = "optional", update = "user")]
    pub note: Option<String>,
    /// Five, unless said.
    #[field(list = "user", create = "optional", update = "user", default = 5)]
    pub weight: i64,
    /// Who may not see it may not copy it.
    #[field(list = "admin", create = "optional")]
    pub hidden: String,
}

/// What the hooks were called with, by the name of the row or of the caller.
static CALLS: LazyLock<Mutex<HashMap<String, Vec<String>>>> = LazyLock::new(Mutex::default);

fn called(tx: &Tx<'_>, what: String) {
    CALLS.lock().unwrap().entry(tx.cred().user_id.clone()).or_default().push(what);
}

fn calls(user: &str) -> Vec<String> {
    CALLS.lock().unwrap().remove(user).unwrap_or_default()
}

impl Manager for Paper {
    fn validate_create_data(tx: &mut Tx<'_>, input: &mut PaperCreate) -> Result<()> {
        called(tx, format!("validate {}", input.name));
        match input.name.as_str() {
            "bad" => Err(Error::field("name", "is bad")),
            "panic" => panic!("a hook of a test"),
            _ => Ok(()),
        }
    }

    fn on_create_complete(tx: &mut Tx<'_>, rows: &[Self]) -> Result<()> {
        let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
        called(tx, format!("complete {}", names.join(" ")));
        if names.contains(&"last straw") { Err(Error::conflict("all of it is undone")) } else { Ok(()) }
    }

    fn get_customize_columns(tx: &mut Tx<'_>, rows: &[Self], _: &mut [Extra]) -> Result<()> {
        called(tx, format!("customize {}", rows.len()));
        Ok(())
    }
}

impl Model for Paper {
    fn post_create(&mut self, tx: &mut Tx<'_>, _: &PaperCreate) -> Result<()> {
        called(tx, format!("post {}", self.name));
        let (user, name) = (tx.cred().user_id.clone(), self.name.clone());
        db::after_commit(move || {
            CALLS.lock().unwrap().entry(user).or_default().push(format!("committed {name}"));
        });
        if self.name.starts_with("late") { Err(Error::conflict("too late")) } else { Ok(()) }
    }

    fn post_update(&mut self, tx: &mut Tx<'_>, _: &Self) -> Result<()> {
        match self.note.as_deref() {
            // Past all that the framework sees.
            Some("asks") => Ok(tx.conn.batch_execute("UPDATE papers SET hidden = 'asked'")?),
            Some("spoils") => {
                tx.conn.batch_execute("UPDATE papers SET weight = 99, hidden = 'spoiled'")?;
                Err(Error::conflict("it is undone"))
            }
            _ => Ok(()),
        }
    }
}

/// An answer that must not be kept.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Secret {
    /// It.
    pub secret: String,
}

/// How long to take.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct SlowInput {
    /// A name for who lets it go on.
    pub gate: String,
}

static GATES: LazyLock<Mutex<HashMap<String, u32>>> = LazyLock::new(Mutex::default);

#[actions]
impl Paper {
    /// Tells a secret.
    fn perform_class_tell(tx: &mut Tx<'_>) -> Result<Secret> {
        called(tx, "tell".into());
        Ok(Secret { secret: "hush".into() })
    }

    /// Waits outside of any transaction until somebody opens the gate.
    async fn perform_slow(&self, _: &Ctx, input: SlowInput) -> Result<Nothing> {
        *GATES.lock().unwrap().entry(input.gate.clone()).or_default() += 1;
        while GATES.lock().unwrap().get(&format!("{} open", input.gate)).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Nothing {})
    }

    /// Has parts that fail, and one in another.
    fn perform_class_parts(tx: &mut Tx<'_>) -> Result<()> {
        let make = |tx: &mut Tx<'_>, name: &str| {
            let mut paper = Paper { weight: 1, ..Paper::default() };
            paper.name = name.into();
            let done = name.to_owned();
            let user = tx.cred().user_id.clone();
            db::after_commit(move || {
                CALLS.lock().unwrap().entry(user).or_default().push(format!("committed {done}"));
            });
            tx.create(paper).map(|_| ())
        };
        make(tx, "before")?;
        let lost: Result<()> = tx.savepoint(|tx| {
            make(tx, "lost")?;
            // Inside of what is lost, what is kept is lost too.
            tx.savepoint(|tx| make(tx, "lost within"))??;
            Err(Error::conflict("no"))
        })?;
        assert!(lost.is_err());
        tx.savepoint(|tx| {
            make(tx, "kept")?;
            let lost: Result<()> = tx.savepoint(|tx| make(tx, "kept"))?;
            assert_eq!(lost.unwrap_err().class_name(), "DuplicateNameError");
            make(tx, "kept after")
        })??;
        make(tx, "after")
    }
}

/// A thing that is kept in memory.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "shelf", plural = "shelves", read = "user", write = "user", cached)]
pub struct Shelf {
    /// Name and description.
    pub base: StandaloneBase,
}

impl Manager for Shelf {}
impl Model for Shelf {}

#[actions]
impl Shelf {
    /// Counts them before, in and after a part that is undone.
    fn perform_class_count(tx: &mut Tx<'_>) -> Result<Vec<usize>> {
        let mut counts = vec![tx.cached::<Shelf>()?.len()];
        let lost: Result<()> = tx.savepoint(|tx| {
            tx.create(Shelf::default())?;
            counts.push(tx.cached::<Shelf>()?.len());
            Err(Error::conflict("no"))
        })?;
        assert!(lost.is_err());
        counts.push(tx.cached::<Shelf>()?.len());
        Ok(counts)
    }
}

const TABLES: &str = "CREATE TABLE papers (id TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, \
     created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL, \
     status TEXT NOT NULL, status_reason TEXT NOT NULL, domain_id TEXT NOT NULL, project_id TEXT NOT NULL, \
     user_id TEXT NOT NULL, deleted BOOLEAN NOT NULL, deleted_at BIGINT, content TEXT NOT NULL, note TEXT, \
     weight BIGINT NOT NULL, hidden TEXT NOT NULL); \
     CREATE UNIQUE INDEX papers__name_key ON papers (user_id, name) WHERE deleted = FALSE; \
     CREATE TABLE shelves (id TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, created_at BIGINT NOT NULL, \
     updated_at BIGINT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL);";

// Stand-ins for what a VirtualBase refers to.
macro_rules! owner {
    ($Type:ident, $keyword:literal, $plural:literal) => {
        /// A stand-in.
        #[derive(Debug, Clone, Default, Resource)]
        #[resource(keyword = $keyword, plural = $plural)]
        pub struct $Type {
            /// Name and description.
            pub base: StandaloneBase,
        }
        impl Manager for $Type {}
        impl Model for $Type {}
    };
}
owner!(User, "user", "users");
owner!(Project, "project", "projects");
owner!(Domain, "domain", "domains");

const OWNERS: &str = "(id TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, created_at BIGINT NOT NULL, \
     updated_at BIGINT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL);";

/// A token is the user's name; `root` is an administrator.
struct Names;

impl Authenticator for Names {
    fn authenticate(&self, token: &str) -> Option<Arc<UserCred>> {
        let level = if token == "root" { Access::Admin } else { Access::User };
        let (user_id, user_name) = (token.to_owned(), token.to_owned());
        Some(Arc::new(UserCred { user_id, user_name, level, project_id: "p".into(), ..UserCred::system() }))
    }
}

struct Scene {
    core: Arc<Core>,
    who: &'static str,
    _database: TestDb,
}

struct Told {
    status: u16,
    replayed: bool,
    body: Value,
}

impl Scene {
    fn new(database: TestDb, who: &'static str) -> Self {
        db::migrate(&database.url).unwrap();
        let db = Db::open(&database.url, Options::default()).unwrap();
        db.write_blocking(|conn| {
            db::define(conn, TABLES).unwrap();
            for table in ["users", "projects", "domains"] {
                db::define(conn, &format!("CREATE TABLE {table} {OWNERS}")).unwrap();
            }
            for (table, id) in [("projects", "p"), ("domains", "default"), ("users", who), ("users", "root")]
            {
                let row = format!("INSERT INTO {table} VALUES ('{id}', 1, 0, 0, '{id}', '')");
                conn.batch_execute(&row).unwrap();
            }
            Ok(())
        })
        .unwrap();
        Self { core: Arc::new(Core::new(db, Arc::new(Names))), who, _database: database }
    }

    async fn told(&self, who: &str, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Told {
        let app = web::Data::new(App::new(self.core.clone(), HttpOptions::default()));
        let app = http::init_service(ActixApp::new().app_data(app).configure(podyard::http::configure)).await;
        let mut request = http::TestRequest::with_uri(path).method(method.parse().unwrap());
        request = request.insert_header(("X-Auth-Token", who));
        for header in headers {
            request = request.insert_header(*header);
        }
        if !body.is_null() {
            request = request.set_payload(body.to_string());
        }
        let answer = http::call_service(&app, request.to_request()).await;
        let replayed = answer.headers().contains_key("idempotency-replayed");
        let status = answer.status().as_u16();
        Told { status, replayed, body: serde_json::from_slice(&http::read_body(answer).await).unwrap() }
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let told = self.told(self.who, method, path, &[], body).await;
        (told.status, told.body)
    }

    async fn names(&self) -> Vec<String> {
        let (_, body) = self.ask("GET", "/papers?order_by=name", Value::Null).await;
        body["papers"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    }

    fn count(&self, sql: &'static str) -> i64 {
        let read = self.core.db.read_blocking(move |conn| db::load_one::<(i64,)>(conn, Sql::new(sql)));
        read.unwrap().unwrap().0
    }
}

/// On each database, as somebody else on each.
async fn on_each<F: AsyncFn(Scene)>(who: &str, test: F) {
    for (i, database) in TestDb::all().into_iter().enumerate() {
        test(Scene::new(database, format!("{who}-{i}").leak())).await;
    }
}

#[actix_web::test]
async fn hooks_of_a_batch_run_in_order_and_once_for_all() {
    on_each("hooks", async |it: Scene| {
        let list = json!({"papers": [{"name": "a"}, {"name": "bad"}, {"name": "late"}, {"name": "panic"}, {"name": "b"}]});
        let (status, body) = it.ask("POST", "/papers", list).await;
        assert_eq!(status, 207);
        let statuses: Vec<_> = body["papers"].as_array().unwrap().iter().map(|it| it["status"].as_u64().unwrap()).collect();
        assert_eq!(statuses, [201, 400, 409, 500, 201]);
        assert!(!body.to_string().contains("a hook of a test"), "causes stay here");
        let expected = [
            "validate a", "post a", "validate bad", "validate late", "post late", "validate panic", "validate b",
            "post b", "complete a b", "customize 2", "committed a", "committed b",
        ];
        assert_eq!(calls(it.who), expected);
        assert_eq!(it.names().await, ["a", "b"]);
        // What is refused for all is undone for all.
        calls(it.who);
        let list = json!({"papers": [{"name": "c"}, {"name": "last straw"}]});
        assert_eq!(it.ask("POST", "/papers", list).await.0, 409);
        assert_eq!(it.names().await, ["a", "b"]);
        assert!(!calls(it.who).iter().any(|it| it.starts_with("committed")));
        assert_eq!(it.count("SELECT COUNT(*) FROM ops_log"), 2);
        // Nobody hears of a rehearsal.
        calls(it.who);
        assert_eq!(it.ask("POST", "/papers?dry_run=true", json!({"name": "d"})).await.0, 200);
        assert_eq!(calls(it.who), ["validate d", "post d", "complete d", "customize 1"]);
        assert_eq!(it.count("SELECT COUNT(*) FROM ops_log"), 2);
    })
    .await;
}

#[actix_web::test]
async fn a_savepoint_undoes_its_part() {
    on_each("parts", async |it: Scene| {
        let (status, body) = it.ask("POST", "/papers/parts", Value::Null).await;
        assert_eq!(status, 200, "{body}");
        let committed = ["committed before", "committed kept", "committed kept after", "committed after"];
        assert_eq!(calls(it.who), committed);
        assert_eq!(it.names().await, ["after", "before", "kept", "kept after"]);
        for _ in 0..2 {
            let (status, body) = it.ask("POST", "/shelves/count", Value::Null).await;
            assert_eq!((status, &body["shelves"]), (200, &json!([0, 1, 0])), "{body}");
        }
        assert_eq!(it.ask("POST", "/shelves", json!({"name": "s"})).await.0, 201);
        assert_eq!(it.ask("POST", "/shelves/count", Value::Null).await.1["shelves"], json!([1, 2, 1]));
    })
    .await;
}

#[actix_web::test]
async fn a_patch_merges_json_and_a_put_replaces_it() {
    on_each("merge", async |it: Scene| {
        let content = json!({"a": 1, "b": {"c": 2, "d": [1, 2]}});
        let made = json!({"name": "x", "content": content, "note": "n", "weight": 9});
        assert_eq!(it.ask("POST", "/papers", made).await.0, 201);
        let patch = json!({"content": {"a": null, "b": {"c": 3, "e": {"f": null, "g": 1}}}});
        let (status, body) = it.ask("PATCH", "/papers/x", patch.clone()).await;
        let merged = json!({"b": {"c": 3, "d": [1, 2], "e": {"g": 1}}});
        assert_eq!((status, &body["paper"]["content"]), (200, &merged), "{body}");
        assert_eq!(body["paper"]["version"], 2);
        // The same again changes nothing.
        assert_eq!(it.ask("PATCH", "/papers/x", patch.clone()).await.1["paper"]["version"], 2);
        assert_eq!(
            it.ask("PATCH", "/papers/x", json!({"content": [1]})).await.1["paper"]["content"],
            json!([1])
        );
        assert_eq!(it.ask("PUT", "/papers/x", patch.clone()).await.1["paper"]["content"], patch["content"]);
        // `null`: for what may be null, and for what has a default.
        let (_, body) = it.ask("PATCH", "/papers/x", json!({"note": null, "weight": null})).await;
        assert_eq!((&body["paper"]["note"], &body["paper"]["weight"]), (&Value::Null, &json!(5)));
        assert_eq!(it.ask("PATCH", "/papers?all=true", json!({"content": {"z": 1}})).await.0, 207);
        let (_, body) = it.ask("GET", "/papers/x", Value::Null).await;
        assert_eq!(body["paper"]["content"]["z"], 1);
        assert_eq!(body["paper"]["content"]["b"], patch["content"]["b"]);
    })
    .await;
}

#[actix_web::test]
async fn a_copy_has_what_the_caller_sees() {
    on_each("copy", async |it: Scene| {
        let made = json!({"name": "x", "content": {"a": "\"q\""}, "hidden": "h", "weight": 7});
        assert_eq!(it.ask("POST", "/papers", made).await.0, 201);
        let (status, body) = it.ask("POST", "/papers/x/copy", json!({"weight": 8})).await;
        assert_eq!(status, 201, "{body}");
        let row = &body["paper"];
        assert_eq!(
            (&row["content"], &row["note"], &row["weight"]),
            (&json!({"a": "\"q\""}), &Value::Null, &json!(8))
        );
        assert_eq!(it.count("SELECT COUNT(*) FROM papers WHERE hidden = 'h'"), 1);
        let told = it.told("root", "POST", "/papers/x/copy", &[], Value::Null).await;
        assert_eq!((told.status, &told.body["paper"]["hidden"]), (201, &json!("h")), "{}", told.body);
    })
    .await;
}

#[actix_web::test]
async fn answers_that_may_be_secret_are_not_kept() {
    on_each("secret", async |it: Scene| {
        let key = [("Idempotency-Key", "k")];
        let first = it.told(it.who, "POST", "/papers/tell", &key, Value::Null).await;
        assert_eq!((first.status, &first.body["papers"]["secret"]), (200, &json!("hush")));
        let again = it.told(it.who, "POST", "/papers/tell", &key, Value::Null).await;
        assert_eq!((again.status, &again.body["class"]), (409, &json!("IdempotentAnswerNotKeptError")));
        assert_eq!(calls(it.who), ["tell"]);
        assert_eq!(it.count("SELECT COUNT(*) FROM idempotency_keys WHERE body LIKE '%hush%'"), 0);
        assert_eq!(it.count("SELECT COUNT(*) FROM idempotency_keys"), 1);
    })
    .await;
}

#[actix_web::test]
async fn an_action_outside_is_never_run_twice() {
    on_each("slow", async |it: Scene| {
        assert_eq!(it.ask("POST", "/papers", json!({"name": "x"})).await.0, 201);
        let key = [("Idempotency-Key", "k")];
        let input = json!({"gate": it.who});
        let slow = it.told(it.who, "POST", "/papers/x/slow", &key, input.clone());
        // The client goes away in the middle; the action does not.
        let entered = async {
            while GATES.lock().unwrap().get(it.who).is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = slow => panic!("the gate is closed"),
            () = entered => {}
        }
        let told = it.told(it.who, "POST", "/papers/x/slow", &key, input.clone()).await;
        assert_eq!((told.status, &told.body["class"]), (409, &json!("IdempotencyKeyInUseError")));
        let other = it.told(it.who, "POST", "/papers/x/slow", &key, json!({"gate": "other"})).await;
        assert_eq!(other.status, 422);
        GATES.lock().unwrap().insert(format!("{} open", it.who), 1);
        let start = Instant::now();
        loop {
            let told = it.told(it.who, "POST", "/papers/x/slow", &key, input.clone()).await;
            if told.status == 200 {
                assert!(told.replayed && told.body == json!({"paper": {}}), "{}", told.body);
                break;
            }
            assert!(told.status == 409 && start.elapsed() < Duration::from_secs(30), "{}", told.body);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(GATES.lock().unwrap()[it.who], 1, "it ran once");
    })
    .await;
}

#[actix_web::test]
async fn nothing_is_created_for_who_is_gone() {
    on_each("gone", async |it: Scene| {
        let told = it.told("ghost", "POST", "/papers", &[], json!({"name": "x"})).await;
        assert_eq!((told.status, &told.body["class"]), (401, &json!("UnauthorizedError")), "{}", told.body);
        assert_eq!(it.count("SELECT COUNT(*) FROM papers") + it.count("SELECT COUNT(*) FROM ops_log"), 0);
        // While a create lasts, its owner stays.
        let ctx = Ctx::new(it.core.clone(), Names.authenticate(it.who).unwrap(), "");
        let gone = it.core.db.clone();
        let (who, dialect) = (it.who, it.core.db.dialect());
        let done = ctx.write(None, move |tx| {
            let create = tx.ctx.core().registry.get("papers").unwrap().handler;
            create.create(tx, b"{\"name\": \"y\"}")?;
            if dialect == Dialect::Sqlite {
                return Ok(true);
            }
            let sql = Sql::new("SELECT id FROM users WHERE id = ").value(who).text(" FOR UPDATE NOWAIT");
            let other = std::thread::spawn(move || {
                gone.write_blocking(move |conn| db::load_one::<(String,)>(conn, sql))
            });
            Ok(other.join().unwrap().is_err())
        });
        assert!(done.await.unwrap().value, "the owner was free to go");
    })
    .await;
}

#[actix_web::test]
async fn what_is_old_is_removed() {
    on_each("old", async |it: Scene| {
        let day = 24 * 3600 * 1_000_000;
        let now = podyard::now().timestamp_micros();
        it.core
            .db
            .write_blocking(move |conn| {
                for (id, at) in [("old", now - day - 1_000_000), ("young", now - day / 2)] {
                    let sql = "INSERT INTO idempotency_keys (id, fingerprint, status, created_at) VALUES (";
                    db::execute(conn, &Sql::new(sql).value(id).text(", '', 200, ").value(at).text(")"))?;
                }
                Ok(())
            })
            .unwrap();
        let key = [("Idempotency-Key", "k")];
        assert_eq!(it.told(it.who, "POST", "/papers", &key, json!({"name": "x"})).await.status, 201);
        let start = Instant::now();
        while it.count("SELECT COUNT(*) FROM idempotency_keys WHERE id = 'old'") > 0 {
            assert!(start.elapsed() < Duration::from_secs(30), "it is still there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // One that has aged is as if it had never been.
        it.core
            .db
            .write_blocking(move |conn| {
                let sql = "UPDATE idempotency_keys SET created_at = 1 WHERE id NOT IN ('old', 'young')";
                db::execute(conn, &Sql::new(sql)).map(|_| ())
            })
            .unwrap();
        let again = it.told(it.who, "POST", "/papers", &key, json!({"name": "y"})).await;
        assert_eq!((again.status, again.replayed), (201, false));
        assert_eq!(it.count("SELECT COUNT(*) FROM idempotency_keys WHERE id = 'young'"), 1);
    })
    .await;
}

#[actix_web::test]
async fn writes_that_share_a_commit_are_undone_one_by_one() {
    on_each("shares", async |it: Scene| {
        let late = |i: usize| i % 7 == 3;
        let post = async |i: usize| {
            let name = format!("{}{i}", if late(i) { "late" } else { "paper" });
            it.ask("POST", "/papers", json!({ "name": name })).await.0
        };
        let statuses = join_all((0..60).map(post)).await;
        for (i, status) in statuses.into_iter().enumerate() {
            assert_eq!(status, if late(i) { 409 } else { 201 }, "the {i}th");
        }
        let mut made: Vec<_> = (0..60).filter(|&i| !late(i)).map(|i| format!("paper{i}")).collect();
        made.sort_unstable();
        let (_, body) = it.ask("GET", "/papers?order_by=name&limit=100", Value::Null).await;
        let there: Vec<_> =
            body["papers"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!(there, made);
        assert_eq!(it.count("SELECT COUNT(*) FROM ops_log"), made.len() as i64);
        // Whatever ran twice, what follows a commit followed once.
        let mut committed: Vec<_> = calls(it.who)
            .into_iter()
            .filter_map(|it| Some(it.strip_prefix("committed ")?.to_owned()))
            .collect();
        committed.sort_unstable();
        assert_eq!(committed, made);
    })
    .await;
}

#[actix_web::test]
async fn updates_of_one_row_at_once_all_count() {
    on_each("crowd", async |it: Scene| {
        let (_, body) = it.ask("POST", "/papers", json!({"name": "a"})).await;
        let path = format!("/papers/{}", body["paper"]["id"].as_str().unwrap());
        let put = async |i: i64| it.ask("PUT", &path, json!({ "weight": 100 + i })).await;
        for (status, body) in join_all((0..40).map(put)).await {
            assert_eq!(status, 200, "{body}");
        }
        let (_, body) = it.ask("GET", &path, Value::Null).await;
        assert_eq!(body["paper"]["version"], 41);
        let (_, body) = it
            .ask("GET", &format!("{path}/events?limit=100&order=asc&order_by=obj_version"), Value::Null)
            .await;
        let mut weight = json!(5);
        for (i, event) in body["events"].as_array().unwrap().iter().skip(1).enumerate() {
            assert_eq!(event["obj_version"], i + 2);
            assert_eq!(event["notes"]["weight"]["old"], weight, "each saw the one before: {event}");
            weight = event["notes"]["weight"]["new"].clone();
        }
        assert_eq!(it.count("SELECT COUNT(*) FROM ops_log"), 41);
    })
    .await;
}

#[actix_web::test]
async fn updates_that_share_a_commit_are_each_by_themselves() {
    on_each("many", async |it: Scene| {
        let make = async |i: usize| {
            let (_, body) = it.ask("POST", "/papers", json!({"name": format!("p{i}")})).await;
            format!("/papers/{}", body["paper"]["id"].as_str().unwrap())
        };
        let paths = join_all((0..10).map(make)).await;
        let put = async |i: usize| {
            let path = if i % 13 == 5 { "/papers/nobody" } else { &paths[i % 10] };
            let weight = if i % 17 == 8 { json!("much") } else { json!(100 + i) };
            it.ask("PUT", path, json!({ "weight": weight })).await
        };
        let mut written = [0; 10];
        for (i, (status, body)) in join_all((0..300).map(put)).await.into_iter().enumerate() {
            let (nobody, wrong) = (i % 13 == 5, i % 17 == 8);
            match status {
                404 => assert!(nobody, "{body}"),
                400 => assert!(wrong, "{body}"),
                200 => {
                    assert!(!nobody && !wrong, "{body}");
                    assert_eq!(body["paper"]["weight"], 100 + i, "each is told of its own");
                    written[i % 10] += 1;
                }
                _ => panic!("{status} {body}"),
            }
        }
        for (path, written) in paths.iter().zip(written) {
            let (_, body) = it.ask("GET", path, Value::Null).await;
            assert_eq!(body["paper"]["version"], written + 1);
        }
        let all = 10 + i64::from(written.iter().sum::<i32>());
        assert_eq!(it.count("SELECT COUNT(*) FROM ops_log"), all);
        assert_eq!(it.count("SELECT COUNT(DISTINCT obj_version || obj_id) FROM ops_log"), all);
    })
    .await;
}

#[actix_web::test]
async fn a_hook_that_asks_the_database_has_its_transaction() {
    on_each("asks", async |it: Scene| {
        let (_, body) = it.ask("POST", "/papers", json!({"name": "a"})).await;
        let path = format!("/papers/{}", body["paper"]["id"].as_str().unwrap());
        let hidden = "SELECT COUNT(*) FROM papers WHERE hidden = 'asked' AND weight = 5";
        for round in 0..3 {
            let spoils = it.ask("PUT", &path, json!({"note": "spoils"})).await;
            assert_eq!(spoils.0, 409, "{}", spoils.1);
            assert_eq!(it.count("SELECT COUNT(*) FROM papers WHERE hidden = 'spoiled' OR weight = 99"), 0);
            assert_eq!(it.ask("PUT", &path, json!({"note": "asks"})).await.0, 200);
            assert_eq!(it.count(hidden), 1);
            assert_eq!(it.ask("PUT", &path, json!({"note": format!("quiet {round}")})).await.0, 200);
        }
        let (_, body) = it.ask("GET", &path, Value::Null).await;
        assert_eq!(body["paper"]["version"], 7);
        assert_eq!(it.count("SELECT COUNT(*) FROM ops_log"), 7);
        // Of a row that is not there nothing is written.
        assert_eq!(it.ask("PUT", "/papers/nobody", json!({"note": "x"})).await.0, 404);
    })
    .await;
}
