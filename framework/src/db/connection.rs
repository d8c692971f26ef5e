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
    /// The field's own.
    #[cfg(feature = "mysql")]
    Mysql(diesel::MysqlConnection),
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
    /// MySQL or MariaDB; spoken only with the cargo feature `mysql`.
    Mysql,
}

impl Dialect {
    /// How an insert begins that leaves a row alone which is there already;
    /// [`Dialect::or_ignore`] is its end.
    #[must_use]
    pub fn insert_new(self) -> &'static str {
        match self {
            Self::Sqlite | Self::Postgres => "INSERT INTO ",
            Self::Mysql => "INSERT IGNORE INTO ",
        }
    }

    /// The end of an insert that began with [`Dialect::insert_new`].
    #[must_use]
    pub fn or_ignore(self) -> &'static str {
        match self {
            Self::Sqlite | Self::Postgres => " ON CONFLICT DO NOTHING",
            Self::Mysql => "",
        }
    }

    /// The end of an insert that changes these columns of the row that has
    /// the same `key` (columns in quotes), if there is one.
    #[must_use]
    pub fn or_update(self, key: &str, columns: &[&str]) -> String {
        let (mut sql, open, close) = match self {
            Self::Sqlite | Self::Postgres => {
                (format!(" ON CONFLICT ({key}) DO UPDATE SET "), "excluded.", "")
            }
            Self::Mysql => (" ON DUPLICATE KEY UPDATE ".to_owned(), "VALUES(", ")"),
        };
        for (i, column) in columns.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            sql.push_str(&format!("{comma}\"{column}\" = {open}\"{column}\"{close}"));
        }
        sql
    }

    /// The end of a `SELECT` that locks its rows to the transaction's end; on
    /// SQLite, a writer has the whole database.
    #[must_use]
    pub fn for_update(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres | Self::Mysql => " FOR UPDATE",
        }
    }

    /// As [`Dialect::for_update`], and leaves out what others have locked.
    #[must_use]
    pub fn skip_locked(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres | Self::Mysql => " FOR UPDATE SKIP LOCKED",
        }
    }

    /// The end of a `SELECT` that keeps its rows from being deleted to the
    /// transaction's end (on MySQL from being changed, too).
    #[must_use]
    pub fn for_key_share(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => " FOR KEY SHARE",
            Self::Mysql => " LOCK IN SHARE MODE",
        }
    }
}

impl AnyConnection {
    /// Which database this is.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
            #[cfg(feature = "mysql")]
            Self::Mysql(_) => Dialect::Mysql,
        }
    }
}
