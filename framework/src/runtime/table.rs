//! Tables of types that were defined at run time. Each change of a type gives
//! its table a new name with the generation of all definitions in it. So a
//! process that has not heard of the change yet fails cleanly, in the very
//! statement, instead of writing by rules that hold no more; a prepared
//! statement never meets a table of another shape; and no name comes twice.
//!
//! Names in these statements were checked to be small letters, digits and
//! `_`; values are bound, or are the zeros below.

use diesel::connection::SimpleConnection as _;

use super::ResourceType;
use super::of::{base_fields, default_of};
use super::spec::{FieldSpec, FieldType, Owner, Unique};
use crate::ctx::Tx;
use crate::db::{self, ColumnType, Dialect, Sql, Value};
use crate::{Error, Result};

/// The name of a type's table as of a generation.
pub(super) fn name(plural: &str, generation: i64) -> String {
    format!("rt_{plural}_{generation}")
}

fn run(tx: &mut Tx<'_>, sql: &str) -> Result<()> {
    tx.conn.batch_execute(sql).map_err(Error::from)
}

/// Has this transaction wait for locks but shortly: who changes a type while
/// others use it for long is told to try again.
pub(super) fn be_brief(tx: &mut Tx<'_>) -> Result<()> {
    match tx.conn.dialect() {
        Dialect::Sqlite => Ok(()),
        Dialect::Postgres => run(tx, "SET LOCAL lock_timeout = '3s'"),
        // Such a setting would outlast the transaction.
        Dialect::Mysql => Ok(()),
    }
}

/// Keeps everybody else from the table to the transaction's end.
pub(super) fn lock(tx: &mut Tx<'_>, table: &str) -> Result<()> {
    match tx.conn.dialect() {
        Dialect::Sqlite | Dialect::Mysql => Ok(()),
        Dialect::Postgres => run(tx, &format!("LOCK TABLE \"{table}\" IN ACCESS EXCLUSIVE MODE")),
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

/// A column as it is added: one that refuses NULL must say what the rows that
/// are there get.
fn added(spec: &FieldSpec, name: &str) -> String {
    let kind = sql_type(spec.kind.column());
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
    // As in the migrations of compiled types; MySQL has no such indexes.
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

/// Makes the table of a new type.
///
/// # Errors
/// On MySQL always: there a definition commits whatever came before it.
pub(super) fn create(tx: &mut Tx<'_>, row: &ResourceType) -> Result<()> {
    if tx.conn.dialect() == Dialect::Mysql {
        let text = "resource types cannot be defined at run time on this server: its database, MySQL, \
             makes no tables in transactions";
        return Err(Error::bad_request(text).class("DatabaseCannotError"));
    }
    let base = base_fields(Owner::parse(&row.owner));
    let mut columns: Vec<String> = base
        .iter()
        .map(|f| {
            let refuse = if f.nullable { "" } else { " NOT NULL" };
            let key = if f.name == "id" { " PRIMARY KEY" } else { "" };
            format!("\"{}\" {}{refuse}{key}", f.name, sql_type(f.column))
        })
        .collect();
    columns.extend(row.fields.0.iter().map(|it| added(it, &it.name)));
    let mut sql = format!("CREATE TABLE \"{}\" ({});", row.table_name, columns.join(", "));
    for index in in_order(indexes(row), tx.conn.dialect()) {
        sql.push_str(&index.create(&row.table_name));
    }
    run(tx, &sql)
}

/// Removes a type's table.
pub(super) fn drop(tx: &mut Tx<'_>, row: &ResourceType) -> Result<()> {
    run(tx, &format!("DROP TABLE \"{}\"", row.table_name))
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
        let (old, new) = (self.old, self.new);
        let table = old.table_name.as_str();
        lock(tx, table)?;
        let find = |of: &'_ ResourceType, name: &str| of.fields.0.iter().find(|it| it.name == name).cloned();
        let mut rebuilt = Vec::new();
        for spec in &new.fields.0 {
            if let Some(before) = find(old, &spec.name)
                && self.judge(tx, &before, spec)?
            {
                rebuilt.push(spec);
            }
        }
        let (had, wanted) = (indexes(old), in_order(indexes(new), tx.conn.dialect()));
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
        for spec in old.fields.0.iter().filter(|it| find(new, &it.name).is_none()) {
            self.remove(tx, spec)?;
        }
        for spec in &rebuilt {
            rebuild(tx, table, spec)?;
        }
        for spec in new.fields.0.iter().filter(|it| find(old, &it.name).is_none()) {
            self.add(tx, spec)?;
        }
        for index in wanted.iter().filter(|it| !had.contains(it) || moved(it)) {
            if let (true, Some(name)) = (index.unique, &index.field)
                && let Some(spec) = find(new, name)
            {
                self.expect_unique(tx, &spec)?;
            }
            run(tx, &index.create(table))?;
        }
        run(tx, &format!("ALTER TABLE \"{table}\" RENAME TO \"{}\"", new.table_name))
    }

    fn remove(&self, tx: &mut Tx<'_>, spec: &FieldSpec) -> Result<()> {
        let table = &self.old.table_name;
        if !self.force
            && let Some(id) = example(tx, table, differs(spec, default_of(spec)))?
        {
            let message =
                format!("{} {id} has a value in it; force removes it all the same", self.old.keyword);
            return Err(conflict(&spec.name, "FieldInUseError", message));
        }
        run(tx, &format!("ALTER TABLE \"{table}\" DROP COLUMN \"{}\"", spec.name))
    }

    fn add(&self, tx: &mut Tx<'_>, spec: &FieldSpec) -> Result<()> {
        let table = &self.old.table_name;
        if spec.required && spec.default.is_none() && example(tx, table, Sql::new("1 = 1"))?.is_some() {
            let message = "is required, and rows are there: give a default for them".to_owned();
            return Err(conflict(&spec.name, "FieldNeedsDefaultError", message));
        }
        run(tx, &format!("ALTER TABLE \"{table}\" ADD COLUMN {}", added(spec, &spec.name)))?;
        let value = default_of(spec);
        if value == spec.kind.zero(spec.nullable()) {
            return Ok(());
        }
        let mut sql = Sql::new(format!("UPDATE \"{table}\" SET \"{}\" = ", spec.name));
        sql.bind(value);
        db::execute(tx.conn, &sql)?;
        Ok(())
    }

    /// Whether a field may change so; tells whether its column must be made anew.
    fn judge(&self, tx: &mut Tx<'_>, old: &FieldSpec, new: &FieldSpec) -> Result<bool> {
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
        Ok(old.kind.column() != new.kind.column() || old.nullable() != new.nullable())
    }

    fn expect_unique(&self, tx: &mut Tx<'_>, spec: &FieldSpec) -> Result<()> {
        let row = self.new;
        let first = spec.unique.and_then(|it| among(row, it));
        let group = first.map(|it| format!("\"{it}\", ")).unwrap_or_default();
        let living = if Owner::parse(&row.owner) == Owner::None { "" } else { " AND \"deleted\" = FALSE" };
        let sql = Sql::new(format!(
            "SELECT MIN(\"id\"), MAX(\"id\") FROM \"{0}\" WHERE \"{1}\" IS NOT NULL{living} \
             GROUP BY {group}\"{1}\" HAVING COUNT(*) > 1 LIMIT 1",
            self.old.table_name, spec.name
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

/// Makes a column anew, of another type or with another word on NULL, with
/// the values of the old one: SQLite knows no other way.
fn rebuild(tx: &mut Tx<'_>, table: &str, spec: &FieldSpec) -> Result<()> {
    const NEW: &str = "rt__new";
    let name = &spec.name;
    run(tx, &format!("ALTER TABLE \"{table}\" ADD COLUMN {}", added(spec, NEW)))?;
    let cast = format!("CAST(\"{name}\" AS {})", sql_type(spec.kind.column()));
    let mut sql = Sql::new(format!("UPDATE \"{table}\" SET \"{NEW}\" = "));
    if spec.nullable() {
        sql.push(cast);
    } else {
        sql.push(format!("COALESCE({cast}, ")).bind(default_of(spec)).push(")");
    }
    db::execute(tx.conn, &sql)?;
    run(
        tx,
        &format!(
            "ALTER TABLE \"{table}\" DROP COLUMN \"{name}\"; \
             ALTER TABLE \"{table}\" RENAME COLUMN \"{NEW}\" TO \"{name}\""
        ),
    )
}
