//! An empty database of each kind for a test: SQLite always, and PostgreSQL
//! and (with the feature `mysql`) MySQL where `PODYARD_TEST_POSTGRES_URL` and
//! `PODYARD_TEST_MYSQL_URL` name a server. `PODYARD_TEST_DATABASES=mysql` leaves
//! the others out.

use diesel::connection::{Connection as _, SimpleConnection as _};
use podyard::db::DatabaseUrl;

/// One of them; it goes with the test.
pub struct TestDb {
    pub url: DatabaseUrl,
    _folder: tempfile::TempDir,
    /// The server and the database on it.
    drop: Option<(String, String)>,
}

/// Runs SQL on a server.
fn on_server(server: &str, sql: &str) -> Option<()> {
    #[cfg(feature = "mysql")]
    if server.starts_with("mysql:") {
        return diesel::MysqlConnection::establish(server).ok()?.batch_execute(sql).ok();
    }
    diesel::PgConnection::establish(server).ok()?.batch_execute(sql).ok()
}

impl TestDb {
    /// One of each kind that there is.
    pub fn all() -> Vec<Self> {
        let wanted = std::env::var("PODYARD_TEST_DATABASES");
        let is_wanted = |name| wanted.as_ref().map_or(true, |it| it.split(',').any(|it| it.trim() == name));
        let mut all = Vec::new();
        if is_wanted("sqlite") {
            all.push(Self::sqlite());
        }
        for (name, variable) in
            [("postgres", "PODYARD_TEST_POSTGRES_URL"), ("mysql", "PODYARD_TEST_MYSQL_URL")]
        {
            if is_wanted(name)
                && (name != "mysql" || cfg!(feature = "mysql"))
                && let Ok(server) = std::env::var(variable)
            {
                all.push(Self::of_server(&server));
            }
        }
        all
    }

    fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("test.db"));
        Self { url, _folder: folder, drop: None }
    }

    fn of_server(server: &str) -> Self {
        let name = format!("test_{}", podyard::new_id().replace('-', ""));
        on_server(server, &format!("CREATE DATABASE {name}")).unwrap();
        let (base, query) =
            server.split_once('?').map_or((server, String::new()), |(b, q)| (b, format!("?{q}")));
        let (base, _) = base.rsplit_once('/').unwrap();
        let url = format!("{base}/{name}{query}").parse().unwrap();
        Self { url, _folder: tempfile::tempdir().unwrap(), drop: Some((server.to_owned(), name)) }
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        if let Some((server, name)) = &self.drop {
            let force = if matches!(self.url, DatabaseUrl::Postgres(_)) { " WITH (FORCE)" } else { "" };
            // What fails here is left to the end of the server.
            let _ = on_server(server, &format!("DROP DATABASE IF EXISTS {name}{force}"));
        }
    }
}
