//! A database for each test.

use std::path::Path;
use std::sync::OnceLock;

use podyard_tests::postgres::{self, Shared};

use super::{HELPER, random};

/// Which database a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
    #[cfg(feature = "mysql")]
    Mysql,
}

impl Kind {
    /// Whether `PODYARD_TEST_DATABASES` leaves it in.
    pub(crate) fn is_wanted(self) -> bool {
        let name = match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            #[cfg(feature = "mysql")]
            Self::Mysql => "mysql",
        };
        std::env::var("PODYARD_TEST_DATABASES").map_or(true, |it| it.split(',').any(|it| it.trim() == name))
    }
}

/// An empty database. One on a server is dropped at the end, an SQLite one
/// goes with the folder of its [`House`](super::House).
pub(crate) struct Database {
    /// For `--database-url`; none: SQLite in the data folder.
    pub(crate) url: Option<String>,
    /// What drops it: the kind, the server and the name.
    drop: Option<(Kind, String, String)>,
}

/// A connection to a server's database, past Podyard.
pub(crate) enum Session {
    Postgres(diesel::PgConnection),
    #[cfg(feature = "mysql")]
    Mysql(diesel::MysqlConnection),
}

impl Session {
    pub(crate) fn open(url: &str) -> Self {
        use diesel::Connection as _;
        #[cfg(feature = "mysql")]
        if url.starts_with("mysql:") {
            let mut it = Self::Mysql(diesel::MysqlConnection::establish(url).unwrap());
            it.execute(podyard_tests::mysql::SESSION);
            return it;
        }
        Self::Postgres(diesel::PgConnection::establish(url).unwrap())
    }

    pub(crate) fn execute(&mut self, sql: &str) {
        use diesel::connection::SimpleConnection as _;
        let done = match self {
            Self::Postgres(it) => it.batch_execute(sql),
            #[cfg(feature = "mysql")]
            Self::Mysql(it) => it.batch_execute(sql),
        };
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

/// Runs SQL on a server.
fn execute(kind: Kind, server: &str, sql: &str) -> Result<(), String> {
    match kind {
        #[cfg(feature = "mysql")]
        Kind::Mysql => podyard_tests::mysql::execute(server, sql),
        Kind::Postgres | Kind::Sqlite => postgres::execute(server, sql),
    }
}

fn server() -> &'static Shared {
    static SERVER: OnceLock<Shared> = OnceLock::new();
    SERVER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres");
        match postgres::shared(&folder, Path::new(HELPER)) {
            Ok(it) => it,
            Err(error) => panic!("{error}"),
        }
    })
}

impl Database {
    pub(crate) fn new(kind: Kind) -> Self {
        let server = &match kind {
            Kind::Sqlite => return Self { url: None, drop: None },
            Kind::Postgres => server().url.clone(),
            #[cfg(feature = "mysql")]
            Kind::Mysql => podyard_tests::mysql::url().unwrap(),
        };
        let name = format!("t_{:016x}", random(u64::MAX));
        execute(kind, server, &format!("CREATE DATABASE {name}")).unwrap();
        let (rest, options) = server.split_once('?').map_or((server.as_str(), ""), |(rest, it)| (rest, it));
        let scheme = rest.find("://").unwrap() + 3;
        let base = rest[scheme..].find('/').map_or(rest, |slash| &rest[..scheme + slash]);
        let question = if options.is_empty() { "" } else { "?" };
        let url = format!("{base}/{name}{question}{options}");
        Self { url: Some(url), drop: Some((kind, server.clone(), name)) }
    }

    /// A database that somebody else looks after.
    pub(crate) fn at(url: String) -> Self {
        Self { url: Some(url), drop: None }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some((kind, server, name)) = &self.drop {
            let force = if *kind == Kind::Postgres { " WITH (FORCE)" } else { "" };
            // What fails here is left to the end of the server.
            let _ = execute(*kind, server, &format!("DROP DATABASE IF EXISTS {name}{force}"));
        }
    }
}
