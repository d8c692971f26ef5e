//! Exports: the whole list, a piece at a time. Each piece is a read of its
//! own that begins after the last row of the one before, so that a slow
//! client holds no connection and memory never grows with the list.

use std::sync::Arc;

use serde_json::Value as Json;

use super::lists;
use super::pipeline::write_row;
use crate::ctx::Tx;
use crate::db::Value;
use crate::model::{Manager, Meta};
use crate::query::{Format, ListRequest};
use crate::{Error, Result};

/// Rows of a piece.
const ROWS: i64 = 250;

/// Where the next piece begins.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Nothing is written yet.
    first: bool,
    after: Option<Arc<[Value<'static>]>>,
    /// How many rows may still come; `None`: all.
    left: Option<i64>,
}

/// A piece of an export.
#[derive(Debug)]
pub struct Chunk {
    /// Its text.
    pub body: Vec<u8>,
    /// Where the next begins; none: this was the last.
    pub next: Option<Place>,
}

impl Place {
    /// The beginning.
    #[must_use]
    pub fn start(request: &ListRequest) -> Self {
        Self { first: true, after: None, left: request.wanted }
    }
}

pub(super) fn chunk<T: Manager>(tx: &mut Tx<'_>, request: &ListRequest, place: &Place) -> Result<Chunk> {
    let limit = place.left.map_or(ROWS, |left| left.min(ROWS));
    let start = if place.first { request.start::<T>(tx)? } else { None };
    let after = start.as_deref().or(place.after.as_deref());
    let select = request.select_after::<T>(tx, after, limit)?;
    let rows = lists::rows(tx, request, select)?;
    let extra = lists::extras(tx, request, &rows)?;
    let mut body = Vec::with_capacity(512 * rows.len() + 256);
    let mut ends = Vec::with_capacity(rows.len());
    for (row, extra) in rows.iter().zip(&extra) {
        write_row(&mut body, row, request.mask, extra, request.extra.as_deref());
        if request.export == Some(Format::Ndjson) {
            body.push(b'\n');
        }
        ends.push(body.len());
    }
    if request.export == Some(Format::Csv) {
        body = csv(T::meta(), request, place.first, &body, &ends)?;
    }
    let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    let left = place.left.map(|left| left - count);
    let last = rows.last().filter(|_| count == limit && left != Some(0));
    let next = last.map(|last| Place { first: false, after: Some(request.position(last).into()), left });
    Ok(Chunk { body, next })
}

/// The rows, which are JSON objects up to these ends, as CSV.
fn csv(meta: &Meta, request: &ListRequest, header: bool, rows: &[u8], ends: &[usize]) -> Result<Vec<u8>> {
    let shown = |(i, _): &(usize, &&'static crate::model::Field)| request.mask >> i & 1 == 1;
    let mut columns: Vec<_> = meta.fields().iter().enumerate().filter(shown).map(|(_, f)| f.name).collect();
    let wanted = |name: &str| {
        let named = request.extra.as_ref().is_none_or(|names| names.iter().any(|n| n == name));
        named && (name != "metadata" || request.tags)
    };
    columns.extend(meta.extra().iter().map(|(name, _)| *name).filter(|name| wanted(name)));
    let terminator = csv::Terminator::CRLF;
    let mut writer =
        csv::WriterBuilder::new().terminator(terminator).from_writer(Vec::with_capacity(rows.len()));
    if header {
        writer.write_record(&columns).map_err(Error::internal)?;
    }
    let mut from = 0;
    for end in ends {
        // Nested values stay the text that they are, however deep.
        let row: std::collections::HashMap<String, &serde_json::value::RawValue> =
            serde_json::from_slice(&rows[from..*end]).map_err(Error::internal)?;
        from = *end;
        let mut record = Vec::with_capacity(columns.len());
        for name in &columns {
            record.push(match row.get(*name).map(|it| it.get()) {
                None => String::new(),
                Some(nested) if nested.starts_with(['{', '[']) => nested.to_owned(),
                Some(plain) => cell(&serde_json::from_str(plain).map_err(Error::internal)?),
            });
        }
        writer.write_record(record).map_err(Error::internal)?;
    }
    writer.into_inner().map_err(|error| Error::internal(error.to_string()))
}

/// A value as a cell. A text that a spreadsheet would take for a formula
/// begins with a `'` in its place.
fn cell(value: &Json) -> String {
    match value {
        Json::Null => String::new(),
        Json::String(text) if text.starts_with(['=', '+', '-', '@', '\t', '\r']) => format!("'{text}"),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cells() {
        assert_eq!(cell(&json!("=1+1")), "'=1+1");
        assert_eq!(cell(&json!("@x")), "'@x");
        assert_eq!(cell(&json!(-5)), "-5");
        assert_eq!(cell(&json!("a, b")), "a, b");
        assert_eq!(cell(&json!(["a", 1])), r#"["a",1]"#);
        assert_eq!(cell(&json!(null)), "");
    }
}
