//! One connection type for all databases. Apart, since what diesel's derive
//! writes beside it has no documentation.
#![expect(missing_docs, reason = "diesel's derive writes public items without docs")]

use diesel::connection::Connection;

/// A connection to any of the databases. One code path for all: what diesel's
/// `MultiConnection` cannot do (RETURNING, upserts, row locks) is a `match`
/// on [`Dialect`] in this module or in the task engine's claims.
#[derive(diesel::MultiConnection)]
pub enum AnyConnection {
    /// For clusters. First, since diesel tries the variants in this order when
    /// it connects, and SQLite would take any text for a file's name.
    Postgres(diesel::PgConnection),
    /// Embedded.
    Sqlite(diesel::SqliteConnection),
}

/// Which database speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Embedded SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

impl AnyConnection {
    /// Which database this is.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }
}
