//! MySQL and MariaDB: their sessions and their migrations.
//!
//! Both get the same texts. What only one of them knows stands in a comment
//! that the other does not execute: `/*M! MariaDB */`, `/*!80000 MySQL */`.

use std::sync::atomic::{AtomicBool, Ordering};

use diesel::connection::{BoxableConnection, Connection, SimpleConnection};
use diesel::migration::{Migration, MigrationSource};
use diesel::r2d2::CustomizeConnection;
use diesel::result::QueryResult;
use diesel::sqlite::Sqlite;
use diesel::{MysqlConnection, RunQueryDsl as _, sql_query};

use super::checkout::LOCK_ROWS;
use super::portable::{self, Index, Step, TEXT_KEY};
use super::{AnyConnection, MigrationSet, Sql};
use crate::{Error, Result};

/// The collation of all texts: by code point, and a space at the end counts,
/// as on the other databases.
pub(super) const COLLATION: &str = "/*M!100202 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */";

/// A session speaks standard SQL (`"name"`, `||`, no `\` in texts), refuses
/// what does not fit, and waits for nothing for ever.
fn session() -> String {
    format!(
        "SET SESSION sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES,\
         NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO', collation_connection = {COLLATION}, \
         innodb_lock_wait_timeout = 30, lock_wait_timeout = 30, max_sort_length = 65536 \
         /*M!100301 , max_statement_time = 120, idle_transaction_timeout = 60 */ \
         /*!80000 , max_execution_time = 120000 */; \
         SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
    )
}

/// Sets up pooled connections.
#[derive(Debug)]
pub(super) struct Session;

impl CustomizeConnection<AnyConnection, diesel::r2d2::Error> for Session {
    fn on_acquire(&self, conn: &mut AnyConnection) -> std::result::Result<(), diesel::r2d2::Error> {
        conn.batch_execute(&session()).map_err(diesel::r2d2::Error::QueryError)
    }
}

/// A connection to migrate with.
pub(super) fn connect(url: &str) -> Result<AnyConnection> {
    let mut conn = MysqlConnection::establish(url).map_err(Error::internal)?;
    conn.batch_execute(&session())?;
    // A statement that changes a large table may take its time.
    conn.batch_execute(
        "SET SESSION innodb_lock_wait_timeout = 300, lock_wait_timeout = 300 /*M! , max_statement_time = 0 */",
    )?;
    Ok(AnyConnection::Mysql(conn))
}

/// Statements of transaction control. A batch of them is three round trips, a
/// prepared statement is one; MariaDB prepares them all, MySQL not all.
pub(super) fn control(conn: &mut AnyConnection, sql: &'static str) -> QueryResult<()> {
    static UNPREPARED: AtomicBool = AtomicBool::new(false);
    for statement in sql.split("; ") {
        if !UNPREPARED.load(Ordering::Relaxed) {
            match conn.execute_returning_count(&Sql::new(statement)) {
                Err(error) if error.to_string().contains("prepared statement protocol") => {
                    UNPREPARED.store(true, Ordering::Relaxed);
                }
                result => {
                    result?;
                    continue;
                }
            }
        }
        conn.batch_execute(statement)?;
    }
    Ok(())
}

#[derive(diesel::QueryableByName)]
struct TextRow {
    #[diesel(sql_type = diesel::sql_types::Text)]
    value: String,
}

#[derive(diesel::QueryableByName)]
struct NumberRow {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    value: i64,
}

#[derive(diesel::QueryableByName)]
struct ColumnRow {
    #[diesel(sql_type = diesel::sql_types::Text)]
    name: String,
    /// As `varchar(255)`.
    #[diesel(sql_type = diesel::sql_types::Text)]
    kind: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    nullable: i64,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
    default: Option<String>,
}

/// Waits until nobody else migrates, and makes what the framework itself
/// needs: diesel's table of what was run, how far a migration got, the rows of
/// the named locks, and the tables of types that were defined at run time.
pub(super) fn prepare_to_migrate(conn: &mut MysqlConnection) -> Result<()> {
    // Ends with the connection. One server has many databases.
    let got = sql_query(
        "SELECT CAST(COALESCE(GET_LOCK(CONCAT('podyard/', LEFT(DATABASE(), 48)), 600), 0) AS SIGNED) AS value",
    )
    .get_result::<NumberRow>(conn)?;
    if got.value != 1 {
        return Err(Error::unavailable("somebody else has been migrating for ten minutes", 60));
    }
    for (table, columns) in [
        (
            "__diesel_schema_migrations",
            "\"version\" VARCHAR(50) PRIMARY KEY NOT NULL, \"run_on\" TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP",
        ),
        ("podyard_migration_steps", "\"version\" VARCHAR(50) PRIMARY KEY NOT NULL, \"done\" BIGINT NOT NULL"),
        ("podyard_locks", "\"id\" BIGINT PRIMARY KEY NOT NULL"),
        ("podyard_runtime_tables", "\"name\" VARCHAR(64) PRIMARY KEY NOT NULL"),
    ] {
        conn.batch_execute(&format!(
            "CREATE TABLE IF NOT EXISTS \"{table}\" ({columns}) ENGINE = InnoDB \
             DEFAULT CHARSET = utf8mb4 COLLATE = {COLLATION}"
        ))?;
    }
    let there = sql_query("SELECT COUNT(*) AS value FROM \"podyard_locks\"").get_result::<NumberRow>(conn)?;
    if there.value < LOCK_ROWS {
        let rows: Vec<_> = (0..LOCK_ROWS).map(|id| format!("({id})")).collect();
        let sql = format!("INSERT IGNORE INTO \"podyard_locks\" (\"id\") VALUES {}", rows.join(", "));
        conn.batch_execute(&sql)?;
    }
    Ok(())
}

/// A connection that only keeps what it is to execute: an embedded migration
/// shows its text to nobody else.
struct Text(String);

impl SimpleConnection for Text {
    fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        query.clone_into(&mut self.0);
        Ok(())
    }
}

impl BoxableConnection<Sqlite> for Text {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

type Portable = Box<dyn Migration<Sqlite>>;

fn applied(conn: &mut MysqlConnection) -> Result<Vec<String>> {
    let rows =
        sql_query("SELECT \"version\" AS value FROM \"__diesel_schema_migrations\"").load::<TextRow>(conn)?;
    Ok(rows.into_iter().map(|row| row.value).collect())
}

fn version(migration: &Portable) -> String {
    migration.name().version().to_string()
}

/// All migrations of a set, in order: SQLite's, but for those that MySQL has
/// of its own.
fn all(set: &MigrationSet) -> Result<Vec<Portable>> {
    let own = (set.mysql)().map(|it| it.migrations()).transpose().map_err(Error::internal)?;
    let mut migrations: Vec<Portable> = (set.sqlite)().migrations().map_err(Error::internal)?;
    for own in own.into_iter().flatten() {
        match migrations.iter_mut().find(|it| version(it) == version(&own)) {
            Some(place) => *place = own,
            None => migrations.push(own),
        }
    }
    migrations.sort_by_key(version);
    Ok(migrations)
}

/// The migrations of a set that have not been run, in order.
pub(super) fn pending(conn: &mut MysqlConnection, set: &MigrationSet) -> Result<Vec<Portable>> {
    let applied = applied(conn)?;
    Ok(all(set)?.into_iter().filter(|it| !applied.contains(&version(it))).collect())
}

/// Runs a migration. Here each statement commits by itself: how many were run
/// is kept, so that after a failure the next try goes on where this one ended.
pub(super) fn run(conn: &mut MysqlConnection, migration: &dyn Migration<Sqlite>) -> Result<()> {
    let mut text = Text(String::new());
    migration.run(&mut text).map_err(Error::internal)?;
    let version = migration.name().version().to_string();
    let done = sql_query("SELECT \"done\" AS value FROM \"podyard_migration_steps\" WHERE \"version\" = ?")
        .bind::<diesel::sql_types::Text, _>(&version)
        .load::<NumberRow>(conn)?;
    let done = done.first().map_or(0, |row| row.value);
    let steps = translate(&text.0, &version)?;
    for (i, step) in (1..).zip(steps) {
        if i <= done {
            continue;
        }
        perform(conn, step)
            .map_err(|e| Error::internal(format!("{}, statement {i}: {e}", migration.name())))?;
        sql_query("REPLACE INTO \"podyard_migration_steps\" (\"version\", \"done\") VALUES (?, ?)")
            .bind::<diesel::sql_types::Text, _>(&version)
            .bind::<diesel::sql_types::BigInt, _>(i)
            .execute(conn)?;
    }
    sql_query("INSERT INTO \"__diesel_schema_migrations\" (\"version\") VALUES (?)")
        .bind::<diesel::sql_types::Text, _>(&version)
        .execute(conn)?;
    Ok(())
}

/// Undoes the migrations of a set, the last first, and names them.
pub(super) fn revert(conn: &mut MysqlConnection, set: &MigrationSet) -> Result<Vec<String>> {
    let applied = applied(conn)?;
    let mut done = Vec::new();
    for migration in all(set)?.into_iter().rev() {
        let version = version(&migration);
        if !applied.contains(&version) {
            continue;
        }
        let mut text = Text(String::new());
        migration.revert(&mut text).map_err(Error::internal)?;
        for step in translate(&text.0, &version)? {
            perform(conn, step)?;
        }
        for table in ["__diesel_schema_migrations", "podyard_migration_steps"] {
            sql_query(format!("DELETE FROM \"{table}\" WHERE \"version\" = ?"))
                .bind::<diesel::sql_types::Text, _>(&version)
                .execute(conn)?;
        }
        done.push(migration.name().to_string());
    }
    Ok(done)
}

/// Runs portable definitions.
pub(super) fn define(conn: &mut MysqlConnection, sql: &str) -> Result<()> {
    for step in translate(sql, "a definition")? {
        perform(conn, step)?;
    }
    Ok(())
}

fn translate(sql: &str, what: &str) -> Result<Vec<Step>> {
    portable::translate(sql).map_err(|e| Error::internal(format!("{what}: {e}")))
}

fn perform(conn: &mut MysqlConnection, step: Step) -> Result<()> {
    match step {
        Step::Sql(sql) => conn.batch_execute(&sql)?,
        Step::Index(index) => add_index(conn, &index)?,
        Step::DropIndex { name, if_exists } => {
            let table = sql_query(
                "SELECT CAST(table_name AS CHAR) AS value FROM information_schema.statistics \
                 WHERE table_schema = DATABASE() AND index_name = ? LIMIT 1",
            )
            .bind::<diesel::sql_types::Text, _>(&name)
            .load::<TextRow>(conn)?;
            match table.first() {
                Some(table) => {
                    conn.batch_execute(&format!("DROP INDEX \"{name}\" ON \"{}\"", table.value))?;
                }
                None if if_exists => {}
                None => return Err(Error::internal(format!("there is no index {name}"))),
            }
        }
    }
    Ok(())
}

fn columns_of(conn: &mut MysqlConnection, table: &str) -> Result<Vec<ColumnRow>> {
    Ok(sql_query(
        "SELECT CAST(column_name AS CHAR) AS name, CAST(column_type AS CHAR) AS kind, \
         CAST(is_nullable = 'YES' AS SIGNED) AS nullable, CAST(column_default AS CHAR) AS \"default\" \
         FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ?",
    )
    .bind::<diesel::sql_types::Text, _>(table)
    .load(conn)?)
}

/// A default, as the server tells it, in SQL: MariaDB as `'it\'s'`, MySQL as
/// `_utf8mb4\'its\'`.
fn default_of(told: &str) -> String {
    match told.strip_prefix("_utf8mb4") {
        Some(rest) => format!(" DEFAULT ({})", rest.replace("\\'", "'")),
        None => format!(" DEFAULT ({})", told.replace("\\'", "''").replace("\\\\", "\\")),
    }
}

/// Adds an index to a table that is there already: its texts may have no
/// length yet, without which they cannot be indexed.
fn add_index(conn: &mut MysqlConnection, index: &Index) -> Result<()> {
    let columns = columns_of(conn, &index.table)?;
    let mut changes = Vec::new();
    for name in index.columns() {
        let Some(column) = columns.iter().find(|it| it.name == name) else {
            return Err(Error::internal(format!("{}: there is no column {name}", index.table)));
        };
        if column.kind == "longtext" {
            let null = if column.nullable == 1 { "NULL" } else { "NOT NULL" };
            let default = column.default.as_deref().map(default_of).unwrap_or_default();
            changes.push(format!("MODIFY \"{name}\" {TEXT_KEY} {null}{default}"));
        }
    }
    if let Some(condition) = &index.generated {
        let last = index.last();
        let kind = columns.iter().find(|it| it.name == last).map(|it| it.kind.as_str());
        let kind = kind.filter(|kind| *kind != "longtext").unwrap_or(TEXT_KEY);
        changes.push(format!("ADD COLUMN {}", portable::generated(last, kind, condition)));
    }
    changes.push(format!("ADD {}", index.definition()));
    conn.batch_execute(&format!("ALTER TABLE \"{}\" {}", index.table, changes.join(", ")))?;
    Ok(())
}
