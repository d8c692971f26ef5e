//! Databases for tests of the framework: SQLite always, and PostgreSQL and
//! (with the feature `mysql`) MySQL where `PODYARD_TEST_POSTGRES_URL` and
//! `PODYARD_TEST_MYSQL_URL` name one. `PODYARD_TEST_DATABASES=mysql` leaves the
//! others out.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::{Connection, SimpleConnection};
use podyard::Core;
use podyard::auth::{Authenticator, UserCred};
use podyard::db::{self, DatabaseUrl, Db, Options};

/// Lets nobody in.
pub struct Nobody;

impl Authenticator for Nobody {
    fn authenticate(&self, _: &str) -> Option<Arc<UserCred>> {
        None
    }
}

/// A database for a test, dropped with it.
pub struct TestDb {
    /// Where it is.
    pub url: DatabaseUrl,
    _folder: tempfile::TempDir,
    /// The server and the database on it.
    drop: Option<(String, String)>,
}

/// Runs SQL on a server.
pub fn on_server(server: &str, sql: &str) -> Option<()> {
    #[cfg(feature = "mysql")]
    if server.starts_with("mysql:") {
        return diesel::MysqlConnection::establish(server).ok()?.batch_execute(sql).ok();
    }
    diesel::PgConnection::establish(server).ok()?.batch_execute(sql).ok()
}

impl TestDb {
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("test.db"));
        Self { url, _folder: folder, drop: None }
    }

    pub fn of_server(server: &str) -> Self {
        let name = format!("test_{}", podyard::new_id().replace('-', ""));
        on_server(server, &format!("CREATE DATABASE {name}")).unwrap();
        let (base, query) =
            server.split_once('?').map_or((server, String::new()), |(b, q)| (b, format!("?{q}")));
        let (base, _) = base.rsplit_once('/').unwrap();
        let url = format!("{base}/{name}{query}").parse().unwrap();
        Self { url, _folder: tempfile::tempdir().unwrap(), drop: Some((server.to_owned(), name)) }
    }

    /// A process on it.
    pub fn core(&self) -> Arc<Core> {
        let db = Db::open(&self.url, Options { pool: 8, ..Options::default() }).unwrap();
        Arc::new(Core::new(db, Arc::new(Nobody)))
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        if let Some((server, name)) = &self.drop {
            let force = if matches!(self.url, DatabaseUrl::Postgres(_)) { " WITH (FORCE)" } else { "" };
            let _ = on_server(server, &format!("DROP DATABASE {name}{force}"));
        }
    }
}

/// Runs a test on each database that there is, with tables of its own beside
/// the framework's.
pub fn each<F, Fut>(tables: &'static str, test: F)
where
    F: Fn(Arc<TestDb>) -> Fut,
    Fut: Future<Output = ()>,
{
    let wanted = std::env::var("PODYARD_TEST_DATABASES");
    let is_wanted = |name| wanted.as_ref().map_or(true, |it| it.split(',').any(|it| it.trim() == name));
    let mut dbs = Vec::new();
    if is_wanted("sqlite") {
        dbs.push(TestDb::sqlite());
    }
    for (name, variable) in [("postgres", "PODYARD_TEST_POSTGRES_URL"), ("mysql", "PODYARD_TEST_MYSQL_URL")] {
        if is_wanted(name)
            && (name != "mysql" || cfg!(feature = "mysql"))
            && let Ok(server) = std::env::var(variable)
        {
            dbs.push(TestDb::of_server(&server));
        }
    }
    for db in dbs {
        db::migrate(&db.url).unwrap();
        let db = Arc::new(db);
        let core = db.core();
        core.db.write_blocking(|conn| db::define(conn, tables)).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test(db.clone()));
        runtime.shutdown_background();
    }
}

/// Looks until it finds something.
pub async fn until<R, F, Fut>(what: &str, f: F) -> R
where
    F: Fn() -> Fut,
    Fut: Future<Output = Option<R>>,
{
    let begin = Instant::now();
    loop {
        if let Some(it) = f().await {
            return it;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
