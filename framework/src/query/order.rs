//! The order of a list, and markers: where in that order a page ends. NULL is
//! the largest value in every order, on every database.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::db::{ColumnType, Dialect, Sql, Value};
use crate::model::{Field, Meta, Record};
use crate::{Error, Result};

/// One column of an order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Order {
    pub(super) column: &'static str,
    pub(super) desc: bool,
    pub(super) nullable: bool,
}

impl Order {
    pub(super) fn by(field: &Field, desc: bool) -> Self {
        Self { column: field.name, desc, nullable: field.nullable }
    }

    pub(super) fn reversed(self) -> Self {
        Self { desc: !self.desc, ..self }
    }
}

/// ` ORDER BY …`.
pub(super) fn write(sql: &mut Sql<'_>, order: &[Order], dialect: Dialect) {
    let mut word = " ORDER BY ";
    for order in order {
        if order.nullable && dialect == Dialect::Mysql {
            sql.push(word).push("(\"").push(order.column).push("\" IS NULL)");
            sql.push(if order.desc { " DESC" } else { "" });
            word = ", ";
        }
        sql.push(word).push("\"").push(order.column).push(if order.desc { "\" DESC" } else { "\"" });
        if order.nullable {
            match dialect {
                // An index serves these; its own order on PostgreSQL.
                Dialect::Sqlite | Dialect::Postgres => {
                    sql.push(if order.desc { " NULLS FIRST" } else { " NULLS LAST" });
                }
                // It has no such words: told above.
                Dialect::Mysql => {}
            }
        }
        word = ", ";
    }
}

/// `(a, b) > (x, y)`, written so that an index on `(a, b)` serves it where
/// all directions are the same and no column is nullable, and one on `(a)`
/// where they are not. MySQL looks into no index for two columns at once.
pub(super) fn after<'v>(sql: &mut Sql<'v>, order: &[Order], values: &[Value<'v>], dialect: Dialect) {
    let same = dialect != Dialect::Mysql && order.iter().all(|o| !o.nullable && o.desc == order[0].desc);
    if same {
        for (i, o) in order.iter().enumerate() {
            sql.push(if i == 0 { "(\"" } else { ", \"" }).push(o.column).push("\"");
        }
        sql.push(if order[0].desc { ") < (" } else { ") > (" });
        for (i, value) in values.iter().enumerate() {
            if i > 0 {
                sql.push(", ");
            }
            sql.bind(value.clone());
        }
        sql.push(")");
        return;
    }
    let (first, from) = (order[0], &values[0]);
    if !from.is_null() && (first.desc || !first.nullable) {
        // Says nothing new, but it is what an index can begin at.
        sql.push("\"").push(first.column).push(if first.desc { "\" <= " } else { "\" >= " });
        sql.bind(from.clone()).push(" AND ");
    }
    for i in 0..order.len() {
        sql.push(if i == 0 { "((" } else { " OR (" });
        for (o, value) in order[..i].iter().zip(values) {
            sql.push("\"").push(o.column);
            if value.is_null() {
                sql.push("\" IS NULL AND ");
            } else {
                sql.push("\" = ").bind(value.clone()).push(" AND ");
            }
        }
        beyond(sql, order[i], &values[i]);
        sql.push(")");
    }
    sql.push(")");
}

/// What comes after a value in a column.
fn beyond<'v>(sql: &mut Sql<'v>, o: Order, value: &Value<'v>) {
    match (value.is_null(), o.desc) {
        // NULL is the largest: nothing comes after it upwards.
        (true, false) => {
            sql.push("FALSE");
        }
        (true, true) => {
            sql.push("\"").push(o.column).push("\" IS NOT NULL");
        }
        (false, true) => {
            sql.push("\"").push(o.column).push("\" < ").bind(value.clone());
        }
        (false, false) => {
            sql.push("(\"").push(o.column).push("\" > ").bind(value.clone());
            if o.nullable {
                sql.push(" OR \"").push(o.column).push("\" IS NULL");
            }
            sql.push(")");
        }
    }
}

/// What a marker holds for: `spaces:-created_at,-id`.
fn name(meta: &Meta, order: &[Order], out: &mut Vec<u8>) {
    out.extend_from_slice(meta.plural().as_bytes());
    for (i, o) in order.iter().enumerate() {
        out.push(if i == 0 { b':' } else { b',' });
        if o.desc {
            out.push(b'-');
        }
        out.extend_from_slice(o.column.as_bytes());
    }
}

/// The values of a row that an order asks for.
pub(super) fn position<'r, T: Record>(order: &[Order], row: &'r T) -> Vec<Value<'r>> {
    let mut values = Vec::with_capacity(T::meta().fields().len());
    row.write(&mut values);
    let of = |o: &Order| {
        let at = T::meta().stored().position(|f| f.name == o.column);
        at.and_then(|at| values.get(at)).cloned().unwrap_or(Value::Text(None))
    };
    order.iter().map(of).collect()
}

/// Most bytes of all texts in a marker, which has to fit into a URI: of longer
/// ones it has the beginning, and the row is asked for the rest.
const TEXTS: usize = 1536;

fn head<'t>(text: &'t str, order: &[Order]) -> Option<&'t str> {
    let most = TEXTS / order.len().max(1);
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    (text.len() > most).then(|| &text[..end])
}

/// The marker of the page after this row, or before it.
pub(super) fn marker<T: Record>(order: &[Order], row: &T, back: bool) -> String {
    // Each list that goes on has one, so it is written, not built.
    let mut text = Vec::with_capacity(160);
    text.extend_from_slice(b"[\"");
    name(T::meta(), order, &mut text);
    text.extend_from_slice(b"\",[");
    for (i, value) in position(order, row).iter().enumerate() {
        if i > 0 {
            text.push(b',');
        }
        // A vector takes all that is written to it.
        let _ = match value {
            Value::Text(Some(it)) if order[i].column != "id" && head(it, order).is_some() => {
                serde_json::to_writer(&mut text, &[head(it, order)])
            }
            Value::Text(it) => serde_json::to_writer(&mut text, it),
            Value::Int(it) => serde_json::to_writer(&mut text, it),
            Value::Float(it) => serde_json::to_writer(&mut text, it),
            Value::Bool(it) => serde_json::to_writer(&mut text, it),
        };
    }
    text.extend_from_slice(if back { b"],true]" } else { b"],false]" });
    URL_SAFE_NO_PAD.encode(text)
}

/// A marker, read.
#[derive(Debug, PartialEq)]
pub(super) struct Marker {
    pub(super) values: Vec<Value<'static>>,
    /// Which of the values are beginnings only.
    pub(super) cut: Vec<usize>,
    /// Whether it leads back.
    pub(super) back: bool,
}

/// Completes the values that a marker has the beginnings of by those that its
/// row has. Where the row is gone or has become another, the beginning itself
/// says where to go on: rows that begin alike may come twice, and none is
/// passed over.
pub(super) fn complete(
    values: &mut [Value<'static>],
    cut: &[usize],
    order: &[Order],
    back: bool,
    now: Option<Vec<Value<'static>>>,
) {
    for &i in cut {
        let Value::Text(Some(head)) = &values[i] else { continue };
        let text = now.as_ref().and_then(|now| match &now[i] {
            Value::Text(Some(text)) if text.starts_with(head.as_ref()) => Some(text.to_string()),
            _ => None,
        });
        values[i] = match text {
            Some(text) => text.into(),
            None if order[i].desc != back => format!("{head}{}", char::MAX).into(),
            None => continue,
        };
    }
}

/// Reads a marker.
pub(super) fn read_marker(meta: &Meta, order: &[Order], marker: &str) -> Result<Marker> {
    let wrong =
        || Error::field("marker", "is not a next_marker or previous_marker of this list in this order");
    let bytes = URL_SAFE_NO_PAD.decode(marker).map_err(|_| wrong())?;
    let (of, values, back): (String, Vec<serde_json::Value>, bool) =
        serde_json::from_slice(&bytes).map_err(|_| wrong())?;
    let mut known = Vec::new();
    name(meta, order, &mut known);
    if of.as_bytes() != known || values.len() != order.len() {
        return Err(wrong());
    }
    let mut cut = Vec::new();
    let mut value = |(i, (o, value)): (usize, (&Order, serde_json::Value))| {
        let field = meta.field(o.column).ok_or_else(wrong)?;
        use serde_json::Value as Json;
        Ok(match (field.column, value) {
            (_, Json::Null) if !field.nullable => return Err(wrong()),
            (ColumnType::Text | ColumnType::Json, Json::Null) => Value::Text(None),
            (ColumnType::Text | ColumnType::Json, Json::String(text)) if !text.contains('\0') => text.into(),
            (ColumnType::Text | ColumnType::Json, Json::Array(one)) if o.column != "id" => {
                let [Json::String(head)] = one.as_slice() else { return Err(wrong()) };
                if head.contains('\0') {
                    return Err(wrong());
                }
                cut.push(i);
                head.clone().into()
            }
            (ColumnType::Int | ColumnType::Time, Json::Null) => Value::Int(None),
            (ColumnType::Int | ColumnType::Time, Json::Number(n)) => n.as_i64().ok_or_else(wrong)?.into(),
            (ColumnType::Float, Json::Null) => Value::Float(None),
            (ColumnType::Float, Json::Number(n)) => Value::Float(n.as_f64()),
            (ColumnType::Bool, Json::Null) => Value::Bool(None),
            (ColumnType::Bool, Json::Bool(b)) => b.into(),
            _ => return Err(wrong()),
        })
    };
    let values = order.iter().zip(values).enumerate().map(&mut value).collect::<Result<_>>()?;
    Ok(Marker { values, cut, back })
}
