//! Holds the database against the structs: each type's table has exactly its
//! fields, of their types, and the indexes that the metadata promises.

use super::{AnyConnection, ColumnType, Dialect, Sql, load, load_one};
use crate::Result;
use crate::model::Meta;

fn expected(column: ColumnType, dialect: Dialect) -> &'static str {
    match (column, dialect) {
        (ColumnType::Float, Dialect::Mysql) => "double",
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
        // `VARCHAR` is what a text has to be where it is indexed, and
        // `tinyint(1)` is what BOOLEAN means. Generated columns are nobody's.
        Dialect::Mysql => Sql::new(
            "SELECT CAST(column_name AS CHAR), CASE WHEN data_type IN ('longtext', 'varchar') THEN 'text' \
             WHEN column_type = 'tinyint(1)' THEN 'boolean' ELSE CAST(data_type AS CHAR) END, is_nullable = 'NO' \
             FROM information_schema.columns WHERE table_schema = DATABASE() AND COALESCE(generation_expression, '') = '' \
             AND table_name = ",
        )
        .value(table)
        .text(" ORDER BY ordinal_position"),
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
        // Without the mark that an index is partial by on the other databases,
        // and by the columns that generated ones stand for.
        Dialect::Mysql => Sql::new(
            "SELECT CAST(MIN(CASE WHEN i.n = 1 THEN i.name END) AS CHAR), CAST(REPLACE(MIN(CASE WHEN i.n = i.most \
             THEN i.name END), '__unique', '') AS CHAR), MIN(i.non_unique) = 0 FROM (SELECT s.index_name, \
             s.column_name AS name, s.non_unique, ROW_NUMBER() OVER w AS n, COUNT(*) OVER (PARTITION BY \
             s.index_name) AS most FROM information_schema.statistics s WHERE s.table_schema = DATABASE() AND NOT \
             (s.column_name IN ('deleted', 'pending_deleted') AND s.seq_in_index = 1) AND s.table_name = ",
        )
        .value(table)
        .text(" WINDOW w AS (PARTITION BY s.index_name ORDER BY s.seq_in_index)) i GROUP BY i.index_name"),
    };
    load(conn, sql)
}

fn is_view(conn: &mut AnyConnection, table: &'static str) -> Result<bool> {
    let sql = match conn.dialect() {
        Dialect::Sqlite => Sql::new("SELECT 1 FROM sqlite_master WHERE type = 'view' AND name = "),
        Dialect::Mysql => Sql::new(
            "SELECT 1 FROM information_schema.views WHERE table_schema = DATABASE() AND table_name = ",
        ),
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
        // Of what a view computes, SQLite tells no type.
        if kind != wanted && !(view && kind.is_empty()) {
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
    if dialect == Dialect::Mysql {
        let lengths = Sql::new(
            "SELECT CAST(column_name AS CHAR), CAST(character_maximum_length AS SIGNED) FROM \
             information_schema.columns WHERE table_schema = DATABASE() AND data_type = 'varchar' AND table_name = ",
        );
        let lengths = load::<(String, i64)>(conn, lengths.value(table))?;
        for field in meta.stored() {
            let length = lengths.iter().find(|(name, _)| name == field.name).map(|(_, length)| *length);
            if let Some(length) = length.filter(|it| usize::try_from(*it).is_ok_and(|it| it < field.max)) {
                found.push(format!(
                    "{table}.{}: is indexed, and so holds {length} characters, not {}",
                    field.name, field.max
                ));
            }
        }
    }
    for field in meta.stored().filter(|f| f.unique) {
        if !indexes.iter().any(|(_, last, unique)| *unique && last == field.name) {
            found.push(format!("{table}.{}: no unique index ends with it", field.name));
        }
    }
    Ok(found)
}
