//! Holds the database against the structs: each type's table has exactly its
//! fields, of their types, and the indexes that the metadata promises.

use super::{AnyConnection, ColumnType, Dialect, Sql, load, load_one};
use crate::Result;
use crate::model::Meta;

fn expected(column: ColumnType, dialect: Dialect) -> &'static str {
    match (column, dialect) {
        (ColumnType::Text | ColumnType::Json, _) => "text",
        (ColumnType::Int | ColumnType::Time, _) => "bigint",
        (ColumnType::Float, _) => "double precision",
        (ColumnType::Bool, _) => "boolean",
    }
}

/// Name, type in small letters, whether NULL is refused.
fn columns(conn: &mut AnyConnection, table: &'static str) -> Result<Vec<(String, String, bool)>> {
    let sql = match conn.dialect() {
        Dialect::Sqlite => {
            Sql::new("SELECT \"name\", LOWER(\"type\"), CAST(\"notnull\" AS BOOLEAN) FROM pragma_table_info(")
                .value(table)
                .text(")")
        }
        Dialect::Postgres => Sql::new(
            "SELECT column_name::text, data_type::text, is_nullable = 'NO' FROM information_schema.columns \
             WHERE table_schema = current_schema() AND table_name = ",
        )
        .value(table),
    };
    load(conn, sql)
}

/// For each index: its first and last column and whether it is unique.
fn indexes(conn: &mut AnyConnection, table: &'static str) -> Result<Vec<(String, String, bool)>> {
    let sql = match conn.dialect() {
        Dialect::Sqlite => Sql::new(
            "SELECT f.\"name\", l.\"name\", CAST(il.\"unique\" AS BOOLEAN) FROM pragma_index_list(",
        )
        .value(table)
        .text(
            ") il JOIN pragma_index_info(il.\"name\") f ON f.\"seqno\" = 0 JOIN pragma_index_info(il.\"name\") l \
             ON l.\"seqno\" = (SELECT MAX(\"seqno\") FROM pragma_index_info(il.\"name\")) \
             WHERE f.\"name\" IS NOT NULL AND l.\"name\" IS NOT NULL",
        ),
        Dialect::Postgres => Sql::new(
            "SELECT f.attname::text, l.attname::text, i.indisunique FROM pg_index i \
             JOIN pg_class c ON c.oid = i.indrelid AND c.relnamespace = current_schema()::regnamespace \
             JOIN pg_attribute f ON f.attrelid = c.oid AND f.attnum = i.indkey[0] \
             JOIN pg_attribute l ON l.attrelid = c.oid AND l.attnum = i.indkey[i.indnkeyatts - 1] \
             WHERE c.relname = ",
        )
        .value(table),
    };
    load(conn, sql)
}

fn is_view(conn: &mut AnyConnection, table: &'static str) -> Result<bool> {
    let sql = match conn.dialect() {
        Dialect::Sqlite => Sql::new("SELECT 1 FROM sqlite_master WHERE type = 'view' AND name = "),
        Dialect::Postgres => Sql::new(
            "SELECT 1::bigint FROM information_schema.views WHERE table_schema = current_schema() AND table_name = ",
        ),
    };
    Ok(load_one::<(i64,)>(conn, sql.value(table))?.is_some())
}

/// Where a type's table differs from its struct, in sentences; empty: nowhere.
///
/// # Errors
/// When the database cannot be read.
pub fn differences(conn: &mut AnyConnection, meta: &'static Meta) -> Result<Vec<String>> {
    let table = meta.table();
    let dialect = conn.dialect();
    let view = is_view(conn, table)?;
    let there = columns(conn, table)?;
    if there.is_empty() {
        return Ok(vec![format!("{table}: there is no such table; write a migration")]);
    }
    let mut found = Vec::new();
    for field in meta.stored() {
        let Some((_, kind, not_null)) = there.iter().find(|(name, ..)| name == field.name) else {
            found.push(format!("{table}.{}: there is no such column", field.name));
            continue;
        };
        let wanted = expected(field.column, dialect);
        if kind != wanted {
            found.push(format!("{table}.{}: is {kind}, the field wants {wanted}", field.name));
        }
        // Of a view, databases do not tell what is never NULL, and it has no indexes.
        if *not_null == field.nullable && !view {
            let word = if field.nullable { "allow" } else { "refuse" };
            found.push(format!("{table}.{}: must {word} NULL", field.name));
        }
    }
    for (name, ..) in &there {
        if !meta.has(name) {
            found.push(format!("{table}.{name}: no field of {} is named so", meta.keyword()));
        }
    }
    if view {
        return Ok(found);
    }
    let indexes = indexes(conn, table)?;
    for field in meta.stored().filter(|f| f.index) {
        if !indexes.iter().any(|(first, ..)| first == field.name) {
            found.push(format!("{table}.{}: no index begins with it", field.name));
        }
    }
    for field in meta.stored().filter(|f| f.unique) {
        if !indexes.iter().any(|(_, last, unique)| *unique && last == field.name) {
            found.push(format!("{table}.{}: no unique index ends with it", field.name));
        }
    }
    Ok(found)
}
