//! The pipelines themselves. The order of the hooks is the design's; change
//! it there first.

use super::{IfMatch, Reply, Shown};
use crate::ctx::{Tx, snapshot};
use crate::model::{
    Action, ActionInput, ActionKind, ActionOutput, Extra, JsonObject, Manager, Meta, Mode, Record, Run,
};
use crate::query::ListRequest;
use crate::{Error, Result};

/// The row, if the caller may see it; `lock` to change it.
pub(super) fn find<T: Manager>(tx: &mut Tx<'_>, id: &str, lock: bool) -> Result<T> {
    let mut select = T::select().id_or_name(id).limit(2);
    if lock {
        select = select.for_update();
    }
    T::list_item_filter(tx, &mut select)?;
    let mut rows = select.rows(tx)?;
    if rows.len() > 1 {
        // An id beats a name.
        if let Some(at) = rows.iter().position(|row| row.base().anon().id == id) {
            let row = rows.swap_remove(at);
            if lock {
                tx.remember(&row);
            }
            return Ok(row);
        }
        let text = format!("several {} are named {id}; use the id", T::meta().plural());
        return Err(Error::conflict(text).class("AmbiguousNameError"));
    }
    let row = rows.pop().ok_or_else(|| Error::not_found(T::meta().keyword(), id))?;
    if lock {
        tx.remember(&row);
    }
    Ok(row)
}

pub(crate) fn write_row<T: Record>(
    out: &mut Vec<u8>,
    row: &T,
    mask: u64,
    extra: &Extra,
    shown: Option<&[String]>,
) {
    let mut object = JsonObject::open(out, mask);
    row.view(&mut object);
    for (name, value) in extra.members() {
        if shown.is_none_or(|names| names.iter().any(|n| n == name)) {
            object.member(name, value);
        }
    }
    object.close();
}

/// `{"<keyword>": {…}}` of one row as the caller may see it.
pub(super) fn reply<T: Manager>(tx: &mut Tx<'_>, row: &T, shown: &Shown) -> Result<Reply> {
    let meta = T::meta();
    let mut extra = [Extra::default()];
    if shown.extra.as_ref().is_none_or(|names| !names.is_empty()) {
        T::get_customize_columns(tx, std::slice::from_ref(row), &mut extra)?;
        row.get_extra_details(tx, &mut extra[0])?;
    }
    let mask = shown.mask.unwrap_or(u64::MAX) & meta.get_mask(tx.level());
    let mut body = Vec::with_capacity(768);
    body.extend_from_slice(b"{\"");
    body.extend_from_slice(meta.keyword().as_bytes());
    body.extend_from_slice(b"\":");
    write_row(&mut body, row, mask, &extra[0], shown.extra.as_deref());
    let task = tx.started_task.take();
    if let Some(task) = &task {
        body.extend_from_slice(b",\"task_id\":\"");
        // An id of ours: nothing in it needs escaping.
        body.extend_from_slice(task.as_bytes());
        body.push(b'"');
    }
    body.push(b'}');
    let anon = row.base().anon();
    Ok(Reply { body, version: Some(anon.version), id: Some(anon.id.clone()), task })
}

pub(super) fn list<T: Manager>(tx: &mut Tx<'_>, request: &ListRequest) -> Result<Reply> {
    let mut select = request.select::<T>();
    T::list_item_filter(tx, &mut select)?;
    let mut rows = select.rows(tx)?;
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let mut extra = vec![Extra::default(); rows.len()];
    if !rows.is_empty() && request.extra.as_ref().is_none_or(|names| !names.is_empty()) {
        T::get_customize_columns(tx, &rows, &mut extra)?;
    }
    let total = if request.total {
        let mut select = request.conditions::<T>();
        T::list_item_filter(tx, &mut select)?;
        Some(select.count(tx)?)
    } else {
        None
    };
    let mut body = Vec::with_capacity(512 * rows.len() + 128);
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
    if let (true, Some(last)) = (more, rows.last()) {
        rest.member("next_marker", &request.marker(last));
    }
    if let Some(total) = total {
        rest.member("total", &total);
    }
    rest.close();
    Ok(Reply { body, ..Reply::default() })
}

pub(super) fn get<T: Manager>(tx: &mut Tx<'_>, id: &str, shown: &Shown) -> Result<Reply> {
    let row = find::<T>(tx, id, false)?;
    reply(tx, &row, shown)
}

/// Every id given in a field that refers to another type must be one that the
/// caller may see.
fn check_references(tx: &mut Tx<'_>, meta: &Meta, entries: &crate::model::Entries<'_>) -> Result<()> {
    for (key, value) in entries {
        let Some((field, keyword)) = meta.field(key).and_then(|f| Some((f, f.references?))) else { continue };
        let Ok(Some(id)) = serde_json::from_str::<Option<String>>(value.get()) else { continue };
        let ctx = tx.ctx;
        let Some(target) = ctx.core().registry.keyword(keyword) else {
            return Err(Error::internal(format!("{} refers to the unknown type {keyword}", meta.keyword())));
        };
        if !target.handler.exists(tx, &id)? {
            return Err(Error::field(field.name, format!("there is no {keyword} {id}"))
                .class("ReferenceNotFoundError"));
        }
    }
    Ok(())
}

pub(super) fn create<T: Manager>(tx: &mut Tx<'_>, body: &[u8]) -> Result<Reply> {
    let meta = T::meta();
    let entries = crate::model::entries(body, meta.keyword(), meta.plural())?;
    let mut input = T::Create::default();
    crate::model::fill(meta, &entries, tx.level(), Mode::Create, &mut input)?;
    check_references(tx, meta, &entries)?;
    T::validate_create_data(tx, &mut input)?;
    let mut row = T::from_create(&input);
    row.stamp(&tx.stamp());
    row.customize_create(tx, &input)?;
    tx.insert_and_log(&row, "create")?;
    row.post_create(tx, &input)?;
    T::on_create_complete(tx, std::slice::from_ref(&row))?;
    reply(tx, &row, &Shown::default())
}

pub(super) fn update<T: Manager>(tx: &mut Tx<'_>, id: &str, body: &[u8], known: &IfMatch) -> Result<Reply> {
    let meta = T::meta();
    let entries = crate::model::entries(body, meta.keyword(), meta.plural())?;
    let mut input = T::Update::default();
    crate::model::fill(meta, &entries, tx.level(), Mode::Update, &mut input)?;
    let mut row = find::<T>(tx, id, true)?;
    known.check(meta.keyword(), id, row.base().anon().version)?;
    check_references(tx, meta, &entries)?;
    row.validate_update_data(tx, &mut input)?;
    let old = row.clone();
    let before = snapshot(&row);
    row.apply(&input);
    row.pre_update(tx, &input)?;
    if snapshot(&row) == before {
        // Nothing to change is no change: no new version, no record.
        return reply(tx, &row, &Shown::default());
    }
    tx.save_and_log(&mut row, "update", &before)?;
    row.post_update(tx, &old)?;
    reply(tx, &row, &Shown::default())
}

pub(super) fn delete<T: Manager>(tx: &mut Tx<'_>, id: &str, known: &IfMatch) -> Result<Reply> {
    let meta = T::meta();
    let mut row = find::<T>(tx, id, true)?;
    known.check(meta.keyword(), id, row.base().anon().version)?;
    row.validate_delete_condition(tx)?;
    let before = snapshot(&row);
    row.customize_delete(tx)?;
    row.pre_delete(tx)?;
    row.delete(tx)?;
    tx.log(&row, "delete", Some(&before))?;
    row.post_delete(tx)?;
    reply(tx, &row, &Shown::default())
}

pub(super) fn act<T: Manager>(
    tx: &mut Tx<'_>,
    id: &str,
    action: &'static Action,
    input: &ActionInput,
    known: &IfMatch,
) -> Result<Reply> {
    let Run::Item(run) = action.run else { return Err(Error::internal("not an action on a row")) };
    let changes = action.kind == ActionKind::Item;
    let mut row = find::<T>(tx, id, changes)?;
    known.check(T::meta().keyword(), id, row.base().anon().version)?;
    let before = changes.then(|| snapshot(&row));
    let output = run(&mut row, tx, input)?;
    if let Some(before) = before {
        tx.log(&row, action.name, Some(&before))?;
    }
    finish::<T>(tx, Some(&row), T::meta().keyword(), output)
}

pub(super) fn act_class<T: Manager>(
    tx: &mut Tx<'_>,
    action: &'static Action,
    input: &ActionInput,
) -> Result<Reply> {
    let Run::Class(run) = action.run else { return Err(Error::internal("not an action on the class")) };
    let output = run(tx, input)?;
    finish::<T>(tx, None, T::meta().plural(), output)
}

fn finish<T: Manager>(tx: &mut Tx<'_>, row: Option<&T>, key: &str, output: ActionOutput) -> Result<Reply> {
    match output {
        ActionOutput::Row => match row {
            Some(row) => reply(tx, row, &Shown::default()),
            None => Err(Error::internal("a class action has no row to answer")),
        },
        ActionOutput::Record(record) => match record.downcast::<T>() {
            Ok(record) => reply(tx, &*record, &Shown::default()),
            Err(_) => Err(Error::internal("another type's row")),
        },
        ActionOutput::Json(json) => {
            let mut answer = enveloped(key, &json);
            answer.task = tx.started_task.take();
            answer.version = row.map(|row| row.base().anon().version);
            Ok(answer)
        }
    }
}

/// `{"<key>": …}`.
pub(crate) fn enveloped(key: &str, json: &[u8]) -> Reply {
    let mut body = Vec::with_capacity(json.len() + key.len() + 5);
    body.extend_from_slice(b"{\"");
    body.extend_from_slice(key.as_bytes());
    body.extend_from_slice(b"\":");
    body.extend_from_slice(json);
    body.push(b'}');
    Reply { body, ..Reply::default() }
}
