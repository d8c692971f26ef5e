//! Embedded migrations: each service hands its own set to `inventory`, and
//! they run in the order of their sets and versions, at start or by
//! `podyard migrate`. Versions are unique over all services. MySQL has none
//! of its own: it gets SQLite's, translated (`portable`).

use diesel::migration::{Migration, MigrationSource};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness};

use super::{AnyConnection, DatabaseUrl, connect_sqlite, private_file};
use crate::{Error, Result};
use diesel::connection::{Connection, SimpleConnection};

/// The migrations of one service, for each database.
pub struct MigrationSet {
    /// The service's name.
    pub service: &'static str,
    /// For SQLite.
    pub sqlite: fn() -> EmbeddedMigrations,
    /// For PostgreSQL.
    pub postgres: fn() -> EmbeddedMigrations,
    /// For MySQL, in the place of SQLite's of the same version: what cannot
    /// be translated.
    pub mysql: fn() -> Option<EmbeddedMigrations>,
}

inventory::collect!(MigrationSet);

fn sets() -> Vec<&'static MigrationSet> {
    let mut sets: Vec<_> = inventory::iter::<MigrationSet>.into_iter().collect();
    sets.sort_by_key(|set| (set.service != "framework", set.service));
    sets
}

/// A connection that may take its time.
pub(super) fn connect(url: &DatabaseUrl) -> Result<AnyConnection> {
    match url {
        DatabaseUrl::Sqlite(path) => connect_sqlite(path, true),
        DatabaseUrl::Postgres(url) => {
            diesel::PgConnection::establish(url).map(AnyConnection::Postgres).map_err(Error::internal)
        }
        #[cfg(feature = "mysql")]
        DatabaseUrl::Mysql(url) => super::mysql::connect(url),
        #[cfg(not(feature = "mysql"))]
        DatabaseUrl::Mysql(_) => Err(Error::internal("built without the feature mysql")),
    }
}

/// Two processes that start at once must not migrate at once. PostgreSQL and
/// MySQL: a session lock, which ends with the connection. SQLite: a lock file beside
/// the database, held from before it is opened, since the first to open it
/// switches it to WAL, and SQLite does not wait there.
struct Guarded {
    conn: AnyConnection,
    _file: Option<std::fs::File>,
}

fn guarded(url: &DatabaseUrl) -> Result<Guarded> {
    if let DatabaseUrl::Sqlite(path) = url {
        private_file(path)?;
        let mut name = path.clone().into_os_string();
        name.push(".migrate.lock");
        let file = std::fs::File::create(name).map_err(Error::internal)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map_err(Error::internal)?;
        return Ok(Guarded { conn: connect(url)?, _file: Some(file) });
    }
    let mut conn = connect(url)?;
    match &mut conn {
        #[cfg(feature = "mysql")]
        AnyConnection::Mysql(conn) => super::mysql::prepare_to_migrate(conn)?,
        _ => {
            let key = super::checkout::lock_key("podyard/migrate");
            conn.batch_execute(&format!("SELECT pg_advisory_lock({key})"))?;
        }
    }
    Ok(Guarded { conn, _file: None })
}

fn pending_of<DB: diesel::backend::Backend>(
    conn: &mut impl MigrationHarness<DB>,
    source: impl MigrationSource<DB>,
) -> Result<Vec<Box<dyn Migration<DB>>>> {
    conn.pending_migrations(source).map_err(Error::internal)
}

/// Runs what is pending and names it.
///
/// # Errors
/// When the database cannot be reached or a migration fails; those before it
/// stay, it itself is undone.
pub fn run(url: &DatabaseUrl) -> Result<Vec<String>> {
    let mut guarded = guarded(url)?;
    let conn = &mut guarded.conn;
    let mut done = Vec::new();
    for set in sets() {
        match conn {
            AnyConnection::Sqlite(conn) => {
                for migration in pending_of(conn, (set.sqlite)())? {
                    conn.run_migration(&*migration).map_err(Error::internal)?;
                    done.push(format!("{}/{}", set.service, migration.name()));
                }
            }
            AnyConnection::Postgres(conn) => {
                for migration in pending_of(conn, (set.postgres)())? {
                    conn.run_migration(&*migration).map_err(Error::internal)?;
                    done.push(format!("{}/{}", set.service, migration.name()));
                }
            }
            #[cfg(feature = "mysql")]
            AnyConnection::Mysql(conn) => {
                for migration in super::mysql::pending(conn, set)? {
                    super::mysql::run(conn, &*migration)?;
                    done.push(format!("{}/{}", set.service, migration.name()));
                }
            }
        }
    }
    Ok(done)
}

/// Runs SQL that defines tables, indexes and triggers, written once for all
/// databases as the migrations are: on MySQL it is translated.
///
/// # Errors
/// What the database says, or what cannot be translated.
pub fn define(conn: &mut AnyConnection, sql: &str) -> Result<()> {
    match conn {
        #[cfg(feature = "mysql")]
        AnyConnection::Mysql(conn) => super::mysql::define(conn, sql),
        _ => Ok(conn.batch_execute(sql)?),
    }
}

/// Names what [`run`] would run.
///
/// # Errors
/// When the database cannot be reached.
pub fn pending(url: &DatabaseUrl) -> Result<Vec<String>> {
    let mut guarded = guarded(url)?;
    let conn = &mut guarded.conn;
    let mut names = Vec::new();
    for set in sets() {
        let of_set: Vec<String> = match conn {
            AnyConnection::Sqlite(conn) => {
                pending_of(conn, (set.sqlite)())?.iter().map(|m| m.name().to_string()).collect()
            }
            AnyConnection::Postgres(conn) => {
                pending_of(conn, (set.postgres)())?.iter().map(|m| m.name().to_string()).collect()
            }
            #[cfg(feature = "mysql")]
            AnyConnection::Mysql(conn) => {
                super::mysql::pending(conn, set)?.iter().map(|m| m.name().to_string()).collect()
            }
        };
        names.extend(of_set.into_iter().map(|name| format!("{}/{name}", set.service)));
    }
    Ok(names)
}

/// Undoes all migrations of all services, the last first. Data is lost.
///
/// # Errors
/// When a migration cannot be undone.
pub fn revert(url: &DatabaseUrl) -> Result<Vec<String>> {
    let mut guarded = guarded(url)?;
    let conn = &mut guarded.conn;
    let mut done = Vec::new();
    for set in sets().into_iter().rev() {
        match conn {
            AnyConnection::Sqlite(conn) => revert_set(conn, (set.sqlite)(), set.service, &mut done)?,
            AnyConnection::Postgres(conn) => revert_set(conn, (set.postgres)(), set.service, &mut done)?,
            #[cfg(feature = "mysql")]
            AnyConnection::Mysql(conn) => {
                for name in super::mysql::revert(conn, set)? {
                    done.push(format!("{}/{name}", set.service));
                }
            }
        }
    }
    Ok(done)
}

fn revert_set<DB: diesel::backend::Backend>(
    conn: &mut impl MigrationHarness<DB>,
    source: impl MigrationSource<DB>,
    service: &str,
    done: &mut Vec<String>,
) -> Result<()> {
    let applied = conn.applied_migrations().map_err(Error::internal)?;
    let mut migrations = source.migrations().map_err(Error::internal)?;
    migrations.sort_by(|a, b| b.name().version().cmp(&a.name().version()));
    for migration in migrations {
        if applied.contains(&migration.name().version().as_owned()) {
            conn.revert_migration(&*migration).map_err(Error::internal)?;
            done.push(format!("{service}/{}", migration.name()));
        }
    }
    Ok(())
}

/// Registers the migrations of a service: its name and the folders for SQLite
/// and PostgreSQL, relative to the crate, and one with those for MySQL that
/// cannot be translated, if there are any. The crate depends on
/// `diesel_migrations`.
#[macro_export]
macro_rules! migrations {
    ($service:literal, $sqlite:literal, $postgres:literal $(, $mysql:literal)?) => {
        const _: () = {
            const SQLITE: ::diesel_migrations::EmbeddedMigrations =
                ::diesel_migrations::embed_migrations!($sqlite);
            const POSTGRES: ::diesel_migrations::EmbeddedMigrations =
                ::diesel_migrations::embed_migrations!($postgres);
            const MYSQL: [::diesel_migrations::EmbeddedMigrations; 0 $(+ $crate::migrations!(@one $mysql))?] =
                [$(::diesel_migrations::embed_migrations!($mysql))?];
            $crate::inventory::submit! {
                $crate::db::MigrationSet {
                    service: $service,
                    sqlite: || SQLITE,
                    postgres: || POSTGRES,
                    mysql: || MYSQL.into_iter().next(),
                }
            }
        };
    };
    (@one $mysql:literal) => { 1 };
}
