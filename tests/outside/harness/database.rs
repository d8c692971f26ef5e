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
}

impl Kind {
    /// Whether `PODYARD_TEST_DATABASES` leaves it in.
    pub(crate) fn is_wanted(self) -> bool {
        let name = if self == Self::Sqlite { "sqlite" } else { "postgres" };
        std::env::var("PODYARD_TEST_DATABASES").map_or(true, |it| it.split(',').any(|it| it.trim() == name))
    }
}

/// An empty database. A PostgreSQL one is dropped at the end, an SQLite one
/// goes with the folder of its [`House`](super::House).
pub(crate) struct Database {
    /// For `--database-url`; none: SQLite in the data folder.
    pub(crate) url: Option<String>,
    drop: Option<(String, String)>,
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
        if kind == Kind::Sqlite {
            return Self { url: None, drop: None };
        }
        let server = &server().url;
        let name = format!("t_{:016x}", random(u64::MAX));
        postgres::execute(server, &format!("CREATE DATABASE {name}")).unwrap();
        let (rest, options) = server.split_once('?').map_or((server.as_str(), ""), |(rest, it)| (rest, it));
        let scheme = rest.find("://").unwrap() + 3;
        let base = rest[scheme..].find('/').map_or(rest, |slash| &rest[..scheme + slash]);
        let question = if options.is_empty() { "" } else { "?" };
        Self { url: Some(format!("{base}/{name}{question}{options}")), drop: Some((server.clone(), name)) }
    }

    /// A database that somebody else looks after.
    pub(crate) fn at(url: String) -> Self {
        Self { url: Some(url), drop: None }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some((server, name)) = &self.drop {
            // What fails here is left to the end of the cluster.
            let _ = postgres::execute(server, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        }
    }
}
