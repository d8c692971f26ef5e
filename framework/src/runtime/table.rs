//! Tables of types that were defined at run time. Each change of a type gives
//! its table a new name with the generation of all definitions in it. So a
//! process that has not heard of the change yet fails cleanly, in the very
//! statement, instead of writing by rules that hold no more; a prepared
//! statement never meets a table of another shape; and no name comes twice.
//!
//! To MySQL a definition of a table ends the transaction that it stands in.
//! There each change makes a new table on a connection of its own, fills it,
//! and drops the old one after the commit; what nobody got to drop is swept
//! away later. Which tables are in use says `podyard_runtime_tables`, in the
//! transaction: who writes holds the table's row there ([`hold`]), who changes
//! the type takes it away.
//!
//! Names in these statements were checked to be small letters, digits and
//! `_`; values are bound, or are the zeros below.

use std::sync::Arc;

use diesel::connection::SimpleConnection as _;

use super::ResourceType;
use super::of::{base_fields, default_of};
use super::spec::{FieldSpec, FieldType, Owner, Unique};
use crate::ctx::{Core, Tx};
use crate::db::{self, AnyConnection, ColumnType, Dialect, Sql, Value};
use crate::{Error, Result};

/// The name of a type's table as of a generation.
pub(super) fn name(plural: &str, generation: i64) -> String {
    format!("rt_{plural}_{generation}")
}

fn run(tx: &mut Tx<'_>, sql: &str) -> Result<()> {
    tx.conn.batch_execute(sql).map_err(Error::from)
}

/// Runs a statement that waits for a lock but shortly: who changes a type
/// while others use it for long is told to try again. On PostgreSQL all that
/// comes after it in the transaction waits as shortly.
pub(super) fn briefly(tx: &mut Tx<'_>, sql: &Sql<'_>) -> Result<usize> {
    match tx.conn.dialect() {
        Dialect::Sqlite => db::execute(tx.conn, sql),
        Dialect::Postgres => {
            run(tx, "SET LOCAL lock_timeout = '3s'")?;
            db::execute(tx.conn, sql)
        }
        // Such a setting would outlast the transaction.
        Dialect::Mysql => {
            run(tx, "SET @before = @@innodb_lock_wait_timeout, SESSION innodb_lock_wait_timeout = 3")?;
            let result = db::execute(tx.conn, sql);
            run(tx, "SET SESSION innodb_lock_wait_timeout = @before")?;
            result
        }
    }
}

/// Keeps everybody else from the table to the transaction's end.
pub(super) fn lock(tx: &mut Tx<'_>, table: &str) -> Result<()> {
    match tx.conn.dialect() {
        Dialect::Sqlite => Ok(()),
        Dialect::Postgres => run(tx, &format!("LOCK TABLE \"{table}\" IN ACCESS EXCLUSIVE MODE")),
        Dialect::Mysql => {
            let sql = Sql::new("DELETE FROM \"podyard_runtime_tables\" WHERE \"name\" = ").value(table);
            briefly(tx, &sql).map(drop)
        }
    }
}

/// Before a write to the rows of a type: keeps its table from being changed to
/// the transaction's end. On the other databases writing does that by itself.
///
/// # Errors
/// When the type has changed or gone meanwhile.
pub(super) fn hold(tx: &mut Tx<'_>, table: &'static str) -> Result<()> {
    if tx.conn.dialect() != Dialect::Mysql || tx.held.contains(&table) {
        return Ok(());
    }
    let sql = Sql::new("SELECT 1 FROM \"podyard_runtime_tables\" WHERE \"name\" = ").value(table);
    match db::load_one::<(i64,)>(tx.conn, sql.text(" LOCK IN SHARE MODE"))? {
        Some(_) => {
            tx.held.push(table);
            Ok(())
        }
        None => Err(super::generation::stale()),
    }
}

fn sql_type(column: ColumnType) -> &'static str {
    match column {
        ColumnType::Text | ColumnType::Json => "TEXT",
        ColumnType::Int | ColumnType::Time => "BIGINT",
        ColumnType::Float => "DOUBLE PRECISION",
        ColumnType::Bool => "BOOLEAN",
    }
}

/// What an added column holds before its default is written.
fn zero(kind: FieldType) -> &'static str {
    match kind {
        FieldType::Text => "''",
        FieldType::Json => "'null'",
        FieldType::List => "'[]'",
        FieldType::Integer | FieldType::Time | FieldType::Number => "0",
        FieldType::Boolean => "FALSE",
    }
}

/// The type of a text with an index on MySQL, which indexes no endless text:
/// as long as [`super::spec`] lets one be.
const MYSQL_INDEXED_TEXT: &str = "VARCHAR(512)";

/// A column as it is added: one that refuses NULL must say what the rows that
/// are there get.
fn added(spec: &FieldSpec, name: &str, dialect: Dialect) -> String {
    let bounded = dialect == Dialect::Mysql
        && spec.kind == FieldType::Text
        && (spec.indexed() || spec.unique.is_some());
    let kind = if bounded { MYSQL_INDEXED_TEXT } else { sql_type(spec.kind.column()) };
    if spec.nullable() {
        return format!("\"{name}\" {kind}");
    }
    format!("\"{name}\" {kind} NOT NULL DEFAULT {}", zero(spec.kind))
}

/// An index: its name, and what stands after `ON "table"`.
#[derive(Debug, Clone, PartialEq)]
struct Index {
    name: String,
    unique: bool,
    on: String,
    field: Option<String>,
}

impl Index {
    fn create(&self, table: &str) -> String {
        let unique = if self.unique { "UNIQUE " } else { "" };
        format!("CREATE {unique}INDEX \"{}\" ON \"{table}\" {};", self.name, self.on)
    }
}

/// The columns that a unique value is unique among.
fn among(row: &ResourceType, unique: Unique) -> Option<&'static str> {
    if unique == Unique::Owner { Owner::parse(&row.owner).column() } else { None }
}

/// The indexes that a type's table has, beside its primary key. The names
/// begin with the type's serial number: names of tables change, and these
/// must be short.
fn indexes(row: &ResourceType) -> Vec<Index> {
    let owner = Owner::parse(&row.owner);
    // As in the migrations of compiled types; on MySQL it is translated as theirs.
    let living = if owner == Owner::None { "" } else { " WHERE \"deleted\" = FALSE" };
    let prefix = format!("rt{}", row.serial);
    let plain =
        |name: &str, on: String| Index { name: format!("{prefix}__{name}"), unique: false, on, field: None };
    let mut all =
        vec![plain("created", "(\"created_at\", \"id\")".into()), plain("name", "(\"name\")".into())];
    if let Some(column) = owner.column() {
        all.push(plain("owner", format!("(\"{column}\", \"created_at\", \"id\")")));
        for other in ["domain_id", "project_id", "user_id"].into_iter().filter(|it| *it != column) {
            all.push(plain(other, format!("(\"{other}\")")));
        }
        all.push(plain("status", "(\"status\", \"created_at\", \"id\")".into()));
    }
    let mut unique = |field: &str, among: Option<&str>, own: bool| {
        let first = among.map(|it| format!("\"{it}\", ")).unwrap_or_default();
        all.push(Index {
            name: format!("{prefix}__{field}_key"),
            unique: true,
            on: format!("({first}\"{field}\"){living}"),
            field: own.then(|| field.to_owned()),
        });
    };
    unique("name", owner.column(), false);
    for spec in &row.fields.0 {
        if let Some(it) = spec.unique {
            unique(&spec.name, among(row, it), true);
        }
    }
    for spec in row.fields.0.iter().filter(|it| it.indexed() || it.unique.is_some()) {
        all.push(Index {
            name: format!("{prefix}__{}_idx", spec.name),
            unique: false,
            on: format!("(\"{0}\", \"id\")", spec.name),
            field: Some(spec.name.clone()),
        });
    }
    all
}

/// The indexes in the order to be made in, so that of several values that are
/// taken all databases blame the same, the first: PostgreSQL looks into the
/// oldest unique index first, SQLite into the newest.
fn in_order(mut all: Vec<Index>, dialect: Dialect) -> Vec<Index> {
    if dialect == Dialect::Sqlite {
        all.reverse();
    }
    all
}

/// The table of a type and its indexes.
fn definition(row: &ResourceType, dialect: Dialect) -> String {
    let base = base_fields(Owner::parse(&row.owner));
    let mut columns: Vec<String> = base
        .iter()
        .map(|f| {
            let refuse = if f.nullable { "" } else { " NOT NULL" };
            let key = if f.name == "id" { " PRIMARY KEY" } else { "" };
            format!("\"{}\" {}{refuse}{key}", f.name, sql_type(f.column))
        })
        .collect();
    columns.extend(row.fields.0.iter().map(|it| added(it, &it.name, dialect)));
    let mut sql = format!("CREATE TABLE \"{}\" ({});", row.table_name, columns.join(", "));
    for index in in_order(indexes(row), dialect) {
        sql.push_str(&index.create(&row.table_name));
    }
    sql
}

/// Makes the table of a new type.
pub(super) fn create(tx: &mut Tx<'_>, row: &ResourceType) -> Result<()> {
    if tx.conn.dialect() == Dialect::Mysql {
        return create_apart(tx, row, None);
    }
    run(tx, &definition(row, tx.conn.dialect()))
}

/// Makes a table past the transaction, and fills it; one of a rehearsal goes again.
fn create_apart(tx: &mut Tx<'_>, row: &ResourceType, fill: Option<&Sql<'_>>) -> Result<()> {
    let table = &row.table_name;
    let sql = Sql::new("INSERT INTO \"podyard_runtime_tables\" (\"name\") VALUES (").value(table).text(")");
    db::execute(tx.conn, &sql)?;
    let mut conn = apart(tx.ctx.core())?;
    // One of this name is left of a change that was not committed.
    drop_apart(&mut conn, table)?;
    let mut result = db::define(&mut conn, &definition(row, Dialect::Mysql));
    if let (Ok(()), Some(fill)) = (&result, fill) {
        result = db::execute(&mut conn, fill).map(drop);
    }
    if result.is_err() || tx.rehearsal { result.and(drop_apart(&mut conn, table)) } else { result }
}

/// A connection beside the transaction, which waits for tables but shortly.
fn apart(core: &Core) -> Result<AnyConnection> {
    let mut conn = core.db.apart()?;
    conn.batch_execute("SET SESSION lock_wait_timeout = 3")?;
    Ok(conn)
}

fn drop_apart(conn: &mut AnyConnection, table: &str) -> Result<()> {
    Ok(conn.batch_execute(&format!("DROP TABLE IF EXISTS \"{table}\""))?)
}

/// Removes a type's table.
pub(super) fn drop_table(tx: &mut Tx<'_>, table: &str) -> Result<()> {
    if tx.conn.dialect() != Dialect::Mysql {
        return run(tx, &format!("DROP TABLE \"{table}\""));
    }
    let (core, table) = (tx.ctx.core().clone(), table.to_owned());
    db::after_commit(move || {
        if let Err(error) = apart(&core).and_then(|mut conn| drop_apart(&mut conn, &table)) {
            tracing::warn!(%error, table, "an old table is in use; it is swept away later");
        }
    });
    Ok(())
}

/// Drops the tables of types that belong to no definition: on MySQL they are
/// left of changes that were not committed, and of ends in the middle of one.
///
/// # Errors
/// What the database says.
pub(super) async fn sweep(core: &Arc<Core>) -> Result<()> {
    if core.db.dialect() != Dialect::Mysql {
        return Ok(());
    }
    let work = |tx: &mut Tx<'_>| {
        // No change is under way while it is locked.
        let generation = Sql::new("SELECT \"generation\" FROM \"runtime_generation\" FOR UPDATE");
        db::load_one::<(i64,)>(tx.conn, generation)?;
        let there = Sql::new(
            "SELECT CAST(table_name AS CHAR) FROM information_schema.tables WHERE table_schema = DATABASE() \
             AND table_type = 'BASE TABLE'",
        );
        let there = db::load::<(String,)>(tx.conn, there)?;
        let used = Sql::new("SELECT \"name\" FROM \"podyard_runtime_tables\"");
        let used = db::load::<(String,)>(tx.conn, used)?;
        let left: Vec<_> = there.into_iter().filter(|it| is_name(&it.0) && !used.contains(it)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let mut conn = apart(tx.ctx.core())?;
        left.iter().try_for_each(|(table,)| {
            tracing::info!(table, "drops a table that no resource type has");
            drop_apart(&mut conn, table)
        })
    };
    crate::ctx::Ctx::system(core).write(None, work).await.map(drop)
}

/// Whether a table has a name that [`name`] could have given it.
fn is_name(table: &str) -> bool {
    let parts = table.strip_prefix("rt_").and_then(|it| it.rsplit_once('_'));
    parts.is_some_and(|(plural, number)| !plural.is_empty() && number.parse::<u64>().is_ok())
}

/// Rows that live.
pub(super) fn any_rows(tx: &mut Tx<'_>, row: &ResourceType) -> Result<bool> {
    let living = if Owner::parse(&row.owner) == Owner::None { "" } else { " WHERE \"deleted\" = FALSE" };
    let sql = Sql::new(format!("SELECT \"id\" FROM \"{}\"{living} LIMIT 1", row.table_name));
    Ok(db::load_one::<(String,)>(tx.conn, sql)?.is_some())
}

/// The id of a row for which the condition holds.
fn example(tx: &mut Tx<'_>, table: &str, condition: Sql<'_>) -> Result<Option<String>> {
    let mut sql = Sql::new(format!("SELECT \"id\" FROM \"{table}\" WHERE "));
    sql.append(condition);
    sql.push(" LIMIT 1");
    Ok(db::load_one::<(String,)>(tx.conn, sql)?.map(|(id,)| id))
}

fn conflict(field: &str, class: &'static str, message: String) -> Error {
    Error::conflict(format!("{field}: {message}")).class(class).blame(format!("fields.{field}"))
}

/// `"x" <> value`, or whether it is there at all.
fn differs<'a>(spec: &FieldSpec, value: Value<'a>) -> Sql<'a> {
    let name = &spec.name;
    if value.is_null() {
        return Sql::new(format!("\"{name}\" IS NOT NULL"));
    }
    let mut sql = Sql::new(format!("(\"{name}\" IS NOT NULL AND \"{name}\" <> "));
    sql.bind(value).push(")");
    sql
}

/// What changing a type's table asks of the world.
pub(super) struct Change<'a> {
    pub(super) old: &'a ResourceType,
    pub(super) new: &'a ResourceType,
    /// Whether values may be lost.
    pub(super) force: bool,
    /// The table of a type, to look up references in.
    pub(super) table_of: &'a dyn Fn(&str) -> Option<String>,
}

impl Change<'_> {
    /// Brings the table to what the new definition says; its rows stay.
    pub(super) fn run(&self, tx: &mut Tx<'_>) -> Result<()> {
        lock(tx, &self.old.table_name)?;
        for spec in &self.new.fields.0 {
            match self.before(spec) {
                Some(before) => self.judge(tx, before, spec)?,
                None => self.expect_value(tx, spec)?,
            }
        }
        for spec in self.removed() {
            self.expect_empty(tx, spec)?;
        }
        let had = indexes(self.old);
        for spec in &self.new.fields.0 {
            let known = |index: &Index| index.unique && index.field.as_ref() == Some(&spec.name);
            let same = |index: &Index| had.contains(index) && !self.is_rebuilt(spec);
            if indexes(self.new).iter().any(|index| known(index) && !same(index)) {
                self.expect_unique(tx, spec)?;
            }
        }
        if tx.conn.dialect() == Dialect::Mysql { self.copy(tx) } else { self.alter(tx) }
    }

    /// A field as it was.
    fn before(&self, spec: &FieldSpec) -> Option<&FieldSpec> {
        self.old.fields.0.iter().find(|it| it.name == spec.name)
    }

    fn removed(&self) -> impl Iterator<Item = &FieldSpec> {
        self.old.fields.0.iter().filter(|it| self.new.fields.0.iter().all(|new| new.name != it.name))
    }

    /// Whether a field's column must be made anew.
    fn is_rebuilt(&self, spec: &FieldSpec) -> bool {
        self.before(spec)
            .is_some_and(|old| old.kind.column() != spec.kind.column() || old.nullable() != spec.nullable())
    }

    /// A field's value, of a row of the old table.
    fn value(&self, spec: &FieldSpec, dialect: Dialect) -> Sql<'static> {
        if self.before(spec).is_none() {
            return Sql::new("").value(default_of(spec));
        }
        let name = format!("\"{}\"", spec.name);
        if !self.is_rebuilt(spec) {
            return Sql::new(name);
        }
        // What is widened on MySQL is so by the column that it comes into.
        let cast = match dialect {
            Dialect::Mysql => name,
            _ => format!("CAST({name} AS {})", sql_type(spec.kind.column())),
        };
        if spec.nullable() {
            return Sql::new(cast);
        }
        Sql::new(format!("COALESCE({cast}, ")).value(default_of(spec)).text(")")
    }

    /// Changes the table in its place.
    fn alter(&self, tx: &mut Tx<'_>) -> Result<()> {
        let table = self.old.table_name.as_str();
        let dialect = tx.conn.dialect();
        let (had, wanted) = (indexes(self.old), in_order(indexes(self.new), dialect));
        let rebuilt: Vec<_> = self.new.fields.0.iter().filter(|it| self.is_rebuilt(it)).collect();
        let afresh = |index: &Index| {
            index.field.as_ref().is_some_and(|name| rebuilt.iter().any(|spec| spec.name == *name))
        };
        // Their order tells which of them a row is blamed for, so one that comes
        // moves them all.
        let disorder = wanted.iter().any(|it| it.unique && (!had.contains(it) || afresh(it)));
        let moved = |index: &Index| afresh(index) || (index.unique && disorder);
        for index in had.iter().filter(|it| !wanted.contains(it) || moved(it)) {
            run(tx, &format!("DROP INDEX \"{}\"", index.name))?;
        }
        for spec in self.removed() {
            run(tx, &format!("ALTER TABLE \"{table}\" DROP COLUMN \"{}\"", spec.name))?;
        }
        for spec in &rebuilt {
            self.rebuild(tx, spec)?;
        }
        for spec in self.new.fields.0.iter().filter(|it| self.before(it).is_none()) {
            run(tx, &format!("ALTER TABLE \"{table}\" ADD COLUMN {}", added(spec, &spec.name, dialect)))?;
            if default_of(spec) != spec.kind.zero(spec.nullable()) {
                let mut sql = Sql::new(format!("UPDATE \"{table}\" SET \"{}\" = ", spec.name));
                sql.append(self.value(spec, dialect));
                db::execute(tx.conn, &sql)?;
            }
        }
        for index in wanted.iter().filter(|it| !had.contains(it) || moved(it)) {
            run(tx, &index.create(table))?;
        }
        run(tx, &format!("ALTER TABLE \"{table}\" RENAME TO \"{}\"", self.new.table_name))
    }

    /// Makes a column anew, of another type or with another word on NULL, with
    /// the values of the old one: SQLite knows no other way.
    fn rebuild(&self, tx: &mut Tx<'_>, spec: &FieldSpec) -> Result<()> {
        const NEW: &str = "rt__new";
        let (table, name) = (&self.old.table_name, &spec.name);
        let column = added(spec, NEW, tx.conn.dialect());
        run(tx, &format!("ALTER TABLE \"{table}\" ADD COLUMN {column}"))?;
        let mut sql = Sql::new(format!("UPDATE \"{table}\" SET \"{NEW}\" = "));
        sql.append(self.value(spec, tx.conn.dialect()));
        db::execute(tx.conn, &sql)?;
        run(
            tx,
            &format!(
                "ALTER TABLE \"{table}\" DROP COLUMN \"{name}\"; \
                 ALTER TABLE \"{table}\" RENAME COLUMN \"{NEW}\" TO \"{name}\""
            ),
        )
    }

    /// Makes a new table with the old one's rows.
    fn copy(&self, tx: &mut Tx<'_>) -> Result<()> {
        let base = base_fields(Owner::parse(&self.new.owner));
        let names = base.iter().map(|it| it.name).chain(self.new.fields.0.iter().map(|it| it.name.as_str()));
        let names: Vec<_> = names.map(|it| format!("\"{it}\"")).collect();
        let mut sql =
            Sql::new(format!("INSERT INTO \"{}\" ({}) SELECT ", self.new.table_name, names.join(", ")));
        sql.push(names[..base.len()].join(", "));
        for spec in &self.new.fields.0 {
            sql.push(", ").append(self.value(spec, tx.conn.dialect()));
        }
        sql.push(format!(" FROM \"{}\"", self.old.table_name));
        create_apart(tx, self.new, Some(&sql))?;
        drop_table(tx, &self.old.table_name)
    }

    /// Of a field that goes: no value may be lost.
    fn expect_empty(&self, tx: &mut Tx<'_>, spec: &FieldSpec) -> Result<()> {
        if !self.force
            && let Some(id) = example(tx, &self.old.table_name, differs(spec, default_of(spec)))?
        {
            let message =
                format!("{} {id} has a value in it; force removes it all the same", self.old.keyword);
            return Err(conflict(&spec.name, "FieldInUseError", message));
        }
        Ok(())
    }

    /// Of a field that comes: there must be a value for the rows.
    fn expect_value(&self, tx: &mut Tx<'_>, spec: &FieldSpec) -> Result<()> {
        let table = &self.old.table_name;
        if spec.required && spec.default.is_none() && example(tx, table, Sql::new("1 = 1"))?.is_some() {
            let message = "is required, and rows are there: give a default for them".to_owned();
            return Err(conflict(&spec.name, "FieldNeedsDefaultError", message));
        }
        Ok(())
    }

    /// Whether a field may change so.
    fn judge(&self, tx: &mut Tx<'_>, old: &FieldSpec, new: &FieldSpec) -> Result<()> {
        let table = &self.old.table_name;
        if old.kind != new.kind && !old.kind.widens(new.kind) {
            let message = "its type can be widened only: integer to number, list to json".to_owned();
            return Err(conflict(&new.name, "FieldTypeError", message));
        }
        if old.nullable() && !new.nullable() && new.default.is_none() {
            let null = Sql::new(format!("\"{}\" IS NULL", new.name));
            if let Some(id) = example(tx, table, null)? {
                let message = format!("{} {id} has none: give a default for it", self.old.keyword);
                return Err(conflict(&new.name, "FieldNeedsDefaultError", message));
            }
        }
        if let Some(target) = new.references.as_ref().filter(|_| old.references != new.references) {
            let Some(other) = (self.table_of)(target) else {
                return Err(Error::internal(format!("no table of {target}")));
            };
            let dangling = format!(
                "\"{0}\" IS NOT NULL AND NOT EXISTS (SELECT 1 FROM \"{other}\" o WHERE o.\"id\" = \"{table}\".\"{0}\")",
                new.name
            );
            if let Some(id) = example(tx, table, Sql::new(dangling))? {
                let message = format!("{} {id} does not hold the id of a {target}", self.old.keyword);
                return Err(conflict(&new.name, "ReferenceNotFoundError", message));
            }
        }
        Ok(())
    }

    /// Of a field that becomes unique: no two rows may have the same.
    fn expect_unique(&self, tx: &mut Tx<'_>, spec: &FieldSpec) -> Result<()> {
        let row = self.new;
        let mut first = spec.unique.and_then(|it| among(row, it)).map(|it| format!("\"{it}\""));
        let living = if Owner::parse(&row.owner) == Owner::None { "" } else { " WHERE \"deleted\" = FALSE" };
        let mut sql = Sql::new("SELECT MIN(\"id\"), MAX(\"id\") FROM (SELECT \"id\", ");
        if let Some(first) = &mut first {
            first.push_str(", ");
            sql.push(first.clone());
        }
        sql.append(self.value(spec, tx.conn.dialect()));
        sql.push(format!(
            " AS \"rt__new\" FROM \"{}\"{living}) t WHERE \"rt__new\" IS NOT NULL \
             GROUP BY {}\"rt__new\" HAVING COUNT(*) > 1 LIMIT 1",
            self.old.table_name,
            first.unwrap_or_default()
        ));
        match db::load_one::<(String, String)>(tx.conn, sql)? {
            None => Ok(()),
            Some((one, other)) => {
                let message = format!("cannot be unique: {} {one} and {other} have the same", row.keyword);
                Err(conflict(&spec.name, "DuplicateResourceError", message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_of_types_are_swept() {
        assert!(is_name(&name("devices", 7)));
        assert!(is_name(&name("of_users", 12)));
        for other in ["rt_devices", "rt_7", "rt__7", "spaces", "rt_devices_x", "xrt_devices_7"] {
            assert!(!is_name(other), "{other}");
        }
    }
}
