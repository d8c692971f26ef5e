//! The pipelines of `GET /<plural>`: a page of rows, the different values of
//! fields, and how many rows there are in which status.

use super::Reply;
use super::pipeline::{self, write_row};
use crate::ctx::Tx;
use crate::db::{ColumnType, RowReader};
use crate::model::{Extra, JsonObject, Manager};
use crate::query::{ListRequest, Select};
use crate::{Error, Result, tags};

/// What the type adds to the rows of a page, where it is to be shown.
pub(super) fn extras<T: Manager>(tx: &mut Tx<'_>, request: &ListRequest, rows: &[T]) -> Result<Vec<Extra>> {
    let mut extra = vec![Extra::default(); rows.len()];
    if !rows.is_empty() && request.extra.as_ref().is_none_or(|names| !names.is_empty()) {
        pipeline::describe(tx, rows, &mut extra)?;
    }
    if request.tags && !rows.is_empty() {
        tags::describe(tx, rows, &mut extra)?;
    }
    Ok(extra)
}

/// The rows, narrowed by the type's hook.
pub(super) fn rows<T: Manager>(
    tx: &mut Tx<'_>,
    request: &ListRequest,
    mut select: Select<T>,
) -> Result<Vec<T>> {
    pipeline::narrow(tx, &mut select)?;
    select.rows(tx).map_err(|error| request.blame(error))
}

pub(super) fn list<T: Manager>(tx: &mut Tx<'_>, request: &ListRequest) -> Result<Reply> {
    if !request.distinct.is_empty() {
        return distinct::<T>(tx, request);
    }
    let select = request.select::<T>(tx)?;
    let mut rows = rows(tx, request, select)?;
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    if request.back {
        rows.reverse();
    }
    let extra = extras(tx, request, &rows)?;
    let total = if request.total {
        let mut select = request.conditions::<T>(tx)?;
        pipeline::narrow(tx, &mut select)?;
        Some(select.count(tx)?)
    } else {
        None
    };
    let mut body = Vec::with_capacity(512 * rows.len() + 256);
    let envelope = JsonObject::open(&mut body, 0);
    envelope.raw(T::meta().plural());
    body.push(b'[');
    for (i, (row, extra)) in rows.iter().zip(&extra).enumerate() {
        if i > 0 {
            body.push(b',');
        }
        write_row(&mut body, row, request.mask, extra, request.extra.as_deref());
    }
    body.push(b']');
    let mut rest = JsonObject::resume(&mut body);
    rest.member("limit", &request.limit);
    // Who came back from a page can go there again; who came past rows can go back.
    let (next, previous) = if request.back { (true, more) } else { (more, request.begins_later()) };
    if let Some(last) = rows.last().filter(|_| next) {
        rest.member("next_marker", &request.marker(last, false));
    }
    if let Some(first) = rows.first().filter(|_| previous) {
        rest.member("previous_marker", &request.marker(first, true));
    }
    if let Some(total) = total {
        rest.member("total", &total);
    }
    rest.close();
    Ok(Reply { body, ..Reply::default() })
}

/// The next column as JSON.
fn column_json(row: &mut RowReader<'_, '_, '_>, of: ColumnType) -> Result<serde_json::Value> {
    Ok(match of {
        ColumnType::Text => row.text()?.into(),
        ColumnType::Int => row.int()?.into(),
        ColumnType::Float => row.float()?.into(),
        ColumnType::Bool => row.bool()?.into(),
        ColumnType::Time => {
            let time = row.get::<Option<chrono::DateTime<chrono::Utc>>>()?;
            serde_json::to_value(time).map_err(Error::internal)?
        }
        ColumnType::Json => match row.text()? {
            Some(text) => serde_json::from_str(&text).map_err(Error::internal)?,
            None => serde_json::Value::Null,
        },
    })
}

/// `{"spaces": [{"status": "running", "count": 3}, …]}`.
fn distinct<T: Manager>(tx: &mut Tx<'_>, request: &ListRequest) -> Result<Reply> {
    let mut select = request.distinct_select::<T>(tx)?;
    pipeline::narrow(tx, &mut select)?;
    let columns: Vec<_> = request.distinct.iter().map(|f| f.name).collect();
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let mut body = Vec::with_capacity(1024);
    JsonObject::open(&mut body, 0).raw(T::meta().plural());
    body.push(b'[');
    let mut seen = 0;
    let read = |row: &mut RowReader<'_, '_, '_>| {
        seen += 1;
        if seen > limit {
            return Ok(());
        }
        if seen > 1 {
            body.push(b',');
        }
        let mut object = JsonObject::open(&mut body, 0);
        for field in &request.distinct {
            object.member(field.name, &column_json(row, field.column)?);
        }
        object.member("count", &row.int()?.unwrap_or(0));
        object.close();
        Ok(())
    };
    select.groups(&columns, tx, read).map_err(|error| request.blame(error))?;
    body.push(b']');
    let mut rest = JsonObject::resume(&mut body);
    rest.member("limit", &request.limit);
    if seen > limit {
        rest.member("next_offset", &request.next_offset());
    }
    rest.close();
    Ok(Reply { body, ..Reply::default() })
}

/// `{"spaces": {"total": 5, "by_status": {"running": 3, "stopped": 2}}}`.
pub(super) fn statistics<T: Manager>(tx: &mut Tx<'_>, request: &ListRequest) -> Result<Reply> {
    let mut select = request.conditions::<T>(tx)?;
    pipeline::narrow(tx, &mut select)?;
    let level = tx.level();
    let status = T::meta().field("status").filter(|f| f.stored && f.list.allows(level));
    let mut total = 0;
    let mut by_status = serde_json::Map::new();
    if status.is_some() {
        let read = |row: &mut RowReader<'_, '_, '_>| {
            let (name, count) = (row.text()?.unwrap_or_default(), row.int()?.unwrap_or(0));
            total += count;
            by_status.insert(name, count.into());
            Ok(())
        };
        select.groups(&["status"], tx, read).map_err(|error| request.blame(error))?;
    } else {
        total = select.count(tx).map_err(|error| request.blame(error))?;
    }
    let mut json = serde_json::json!({"total": total});
    if status.is_some() {
        json["by_status"] = by_status.into();
    }
    Ok(super::enveloped(T::meta().plural(), json.to_string().as_bytes()))
}
