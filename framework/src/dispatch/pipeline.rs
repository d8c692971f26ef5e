//! The pipelines themselves. The order of the hooks is the design's; change
//! it there first.

use super::any_row::Typed;
use super::{Handler, IfMatch, Part, Reply, Shown, merge};
use crate::ctx::{Tx, values};
use crate::db::glance;
use crate::http::route::hides;
use crate::model::{
    Action, ActionInput, ActionKind, ActionOutput, Entries, Extra, Input as _, JsonObject, Manager, Meta,
    Mode, Record, Run,
};
use crate::query::{ListRequest, Marked, Select};
use crate::webhook::expect_admitted;
use crate::{Error, Result, context, owner, sharing, tags, trash};

/// The row, if the caller may see it; `lock` to change it.
pub(super) fn find<T: Manager>(tx: &mut Tx<'_>, id: &str, lock: bool) -> Result<T> {
    let meta = T::meta();
    let mut select = T::select().pending(Marked::Any).limit(2);
    if !id.is_empty() || meta.source.joint.is_none() {
        select = select.id_or_name(id);
    }
    if meta.trash() {
        select = select.order("pending_deleted", false);
    }
    narrow(tx, &mut select)?;
    let mut rows = if lock {
        glance::read(|lock| if lock { select.for_update().rows(tx) } else { select.rows(tx) })?
    } else {
        select.rows(tx)?
    };
    if rows.len() > 1 {
        // An id beats a name, and what lives beats what lies in the trash.
        let living = trash::expect_living(&rows[0]).is_ok() && trash::expect_living(&rows[1]).is_err();
        let at = rows.iter().position(|row| row.base().anon().id == id).or(living.then_some(0));
        if let Some(at) = at {
            return taken(tx, rows.swap_remove(at), lock);
        }
        let text = format!("several {} are named {id}; use the id", T::meta().plural());
        return Err(Error::conflict(text).class("AmbiguousNameError"));
    }
    let row = rows.pop().ok_or_else(|| match id {
        "" => Error::new(crate::Kind::NotFound, format!("there is no {} of these two", meta.keyword()))
            .class("ResourceNotFoundError"),
        id => Error::not_found(meta.keyword(), id),
    })?;
    taken(tx, row, lock)
}

/// A row that was found; `lock`: to be changed, by somebody who may.
fn taken<T: Manager>(tx: &mut Tx<'_>, row: T, lock: bool) -> Result<T> {
    if lock {
        sharing::expect_own(tx, &row)?;
        tx.remember(&row);
    }
    Ok(row)
}

/// What the framework itself and the type add to the rows of a page.
pub(crate) fn describe<T: Manager>(tx: &mut Tx<'_>, rows: &[T], extra: &mut [Extra]) -> Result<()> {
    context::describe(tx, rows, extra)?;
    sharing::describe(tx, rows, extra)?;
    T::get_customize_columns(tx, rows, extra)
}

/// What the path and the type's hook leave of the rows that a caller may see.
pub(crate) fn narrow<T: Manager>(tx: &mut Tx<'_>, select: &mut Select<T>) -> Result<()> {
    context::narrow(tx, select)?;
    visible(tx, select)
}

/// What the type's hook leaves of the rows that a caller may see, wherever they stand.
pub(crate) fn visible<T: Manager>(tx: &mut Tx<'_>, select: &mut Select<T>) -> Result<()> {
    context::both_sides(tx, select)?;
    T::list_item_filter(tx, select)
}

/// Writes a row as the caller may see it.
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
        describe(tx, std::slice::from_ref(row), &mut extra)?;
        row.get_extra_details(tx, &mut extra[0])?;
    }
    if shown.tags {
        tags::describe(tx, std::slice::from_ref(row), &mut extra)?;
    }
    let mask = shown.mask.unwrap_or(u64::MAX) & meta.get_mask(tx.level());
    let task = tx.started_task.take();
    Ok(render(tx, row, mask, &extra[0], shown.extra.as_deref(), task))
}

fn render<T: Manager>(
    tx: &Tx<'_>,
    row: &T,
    mask: u64,
    extra: &Extra,
    shown: Option<&[String]>,
    task: Option<String>,
) -> Reply {
    let mut body = Vec::with_capacity(768);
    body.extend_from_slice(b"{\"");
    body.extend_from_slice(T::meta().keyword().as_bytes());
    body.extend_from_slice(b"\":");
    write_row(&mut body, row, mask, extra, shown);
    // Of a rehearsal there will be no task.
    let task = task.filter(|_| !tx.rehearsal);
    if let Some(task) = &task {
        body.extend_from_slice(b",\"task_id\":\"");
        // An id of ours: nothing in it needs escaping.
        body.extend_from_slice(task.as_bytes());
        body.push(b'"');
    }
    body.push(b'}');
    let anon = row.base().anon();
    let (version, id) = (Some(anon.version), Some(anon.id.clone()));
    Reply { body, version, id, task, private: extra.is_secret(), ..Reply::default() }
}

pub(super) fn get<T: Manager>(tx: &mut Tx<'_>, id: &str, shown: &Shown) -> Result<Reply> {
    let row = find::<T>(tx, id, false)?;
    reply(tx, &row, shown)
}

/// References that were found to lead somewhere: of many that are created at
/// once, one and the same is asked for once.
pub(super) type Checked = Vec<(&'static str, String)>;

/// Every id given in a field that refers to another type must be one that the
/// caller may see.
pub(super) fn check_references(
    tx: &mut Tx<'_>,
    meta: &Meta,
    entries: &Entries<'_>,
    checked: &mut Checked,
) -> Result<()> {
    for (key, value) in entries {
        let Some((field, keyword)) = meta.field(key).and_then(|f| Some((f, f.references?))) else { continue };
        let Ok(Some(id)) = serde_json::from_str::<Option<String>>(value.get()) else { continue };
        if checked.iter().any(|(of, known)| *of == keyword && *known == id) {
            continue;
        }
        let ctx = tx.ctx;
        let Some(target) = ctx.core().registry.keyword(keyword) else {
            return Err(Error::internal(format!("{} refers to the unknown type {keyword}", meta.keyword())));
        };
        if !target.handler.exists(tx, &id)? {
            return Err(Error::field(field.name, format!("there is no {keyword} {id}"))
                .class("ReferenceNotFoundError"));
        }
        checked.push((keyword, id));
    }
    Ok(())
}

/// The same of an update: what stays as it is need not be one that the caller may see.
pub(super) fn check_changed_references<T: Manager>(
    tx: &mut Tx<'_>,
    row: &T,
    entries: &Entries<'_>,
) -> Result<()> {
    let meta = T::meta();
    if entries.iter().all(|(key, _)| meta.field(key).is_none_or(|f| f.references.is_none())) {
        return Ok(());
    }
    let changed = merge::without_unchanged(tx, row, entries)?;
    check_references(tx, meta, &changed, &mut Checked::new())
}

/// Refuses a name by which the row could not be had: something else stands at
/// that path.
fn expect_reachable<T: Manager>(tx: &Tx<'_>, row: &T) -> Result<()> {
    let Some(name) = row.base().standalone().map(|it| it.name.as_str()) else { return Ok(()) };
    let of = tx.ctx.core().registry.keyword(T::meta().keyword());
    if of.is_some_and(|of| hides(of, name)) {
        let text = format!("{name:?} is reserved: /{}/{name} is something else", T::meta().plural());
        return Err(Error::field("name", text));
    }
    Ok(())
}

/// One new row, with all hooks but those for all rows of a request.
fn make<T: Manager>(tx: &mut Tx<'_>, body: &[u8], checked: &mut Checked) -> Result<T> {
    let meta = T::meta();
    expect_admitted(tx, meta, "create")?;
    let above = context::members(tx, meta)?;
    let mut entries = crate::model::entries(body, meta.keyword(), meta.plural())?;
    context::fill(tx, meta, &mut entries, &above)?;
    let tags = tags::take(tx, meta, &mut entries)?;
    let mut input = T::Create::default();
    crate::model::fill(meta, &entries, tx.level(), Mode::Create, &mut input)?;
    check_references(tx, meta, &entries, checked)?;
    owner::given(tx, meta, &entries, &mut input)?;
    T::validate_create_data(tx, &mut input)?;
    let mut row = T::from_create(&input);
    row.stamp(&tx.stamp());
    row.customize_create(tx, &input)?;
    expect_reachable(tx, &row)?;
    tx.insert_and_log(&row, "create").map_err(|error| context::explain(meta, error))?;
    tags::attach(tx, &row, &tags)?;
    row.post_create(tx, &input)?;
    Ok(row)
}

pub(super) fn create<T: Manager>(tx: &mut Tx<'_>, body: &[u8]) -> Result<Reply> {
    let row = make::<T>(tx, body, &mut Checked::new())?;
    T::on_create_complete(tx, std::slice::from_ref(&row))?;
    let reply = reply(tx, &row, &Shown::default())?;
    Ok(Reply { created: true, ..reply })
}

pub(super) fn create_many<T: Manager>(tx: &mut Tx<'_>, bodies: &[String]) -> Result<Vec<Part>> {
    let (mut rows, mut tasks, mut checked) = (Vec::new(), Vec::new(), Checked::new());
    let mut errors = Vec::with_capacity(bodies.len());
    for body in bodies {
        let known = checked.len();
        match tx.savepoint(|tx| make::<T>(tx, body.as_bytes(), &mut checked))? {
            Ok(row) => {
                rows.push(row);
                tasks.push(tx.started_task.take());
                errors.push(None);
            }
            Err(error) => {
                // What it held is let go with it.
                checked.truncate(known);
                errors.push(Some(error));
            }
        }
    }
    let mut extra = vec![Extra::default(); rows.len()];
    if !rows.is_empty() {
        T::on_create_complete(tx, &rows)?;
        describe(tx, &rows, &mut extra)?;
    }
    let mask = T::meta().get_mask(tx.level());
    let mut made = rows.iter().zip(&extra).zip(tasks);
    let mut parts = Vec::with_capacity(bodies.len());
    for error in errors {
        let part = match error {
            Some(error) => Part { id: None, result: Err(error) },
            None => {
                let Some(((row, extra), task)) = made.next() else { break };
                let mut extra = extra.clone();
                row.get_extra_details(tx, &mut extra)?;
                let reply = Reply { created: true, ..render(tx, row, mask, &extra, None, task) };
                Part { id: reply.id.clone(), result: Ok(reply) }
            }
        };
        parts.push(part);
    }
    Ok(parts)
}

/// Ids of the rows that a batch is about, held to the transaction's end.
pub(super) fn ids<T: Manager>(tx: &mut Tx<'_>, request: &ListRequest, most: usize) -> Result<Vec<String>> {
    let mut select = request.conditions::<T>(tx)?.order("id", false).for_update();
    narrow(tx, &mut select)?;
    let limit = i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1);
    let rows = select.limit(limit).rows(tx)?;
    if rows.len() > most {
        let mut select = request.conditions::<T>(tx)?;
        narrow(tx, &mut select)?;
        let n = select.count(tx)?;
        let text = format!("{n} {} match, at most {most} at once; nothing was done", T::meta().plural());
        return Err(Error::bad_request(text).class("TooManyRowsError"));
    }
    Ok(rows.into_iter().map(|row| row.base().anon().id.clone()).collect())
}

pub(super) fn update<T: Manager>(
    tx: &mut Tx<'_>,
    id: &str,
    body: &[u8],
    known: &IfMatch,
    patch: bool,
) -> Result<Reply> {
    let meta = T::meta();
    expect_admitted(tx, meta, "update")?;
    let mut entries = crate::model::entries(body, meta.keyword(), meta.plural())?;
    let defaults = if patch { merge::defaults::<T>(&entries)? } else { Vec::new() };
    for (i, value) in &defaults {
        entries[*i].1 = value;
    }
    let mut input = T::Update::default();
    let filled = crate::model::fill(meta, &entries, tx.level(), Mode::Update, &mut input);
    let found = find::<T>(tx, id, true);
    let mut row = match (found, filled) {
        (Ok(row), Ok(())) => row,
        // A rule may have become stricter than what is there.
        (Ok(row), Err(_)) => {
            let changed = merge::without_unchanged(tx, &row, &entries)?;
            input = T::Update::default();
            crate::model::fill(meta, &changed, tx.level(), Mode::Update, &mut input)?;
            row
        }
        (Err(missing), filled) => return Err(filled.err().unwrap_or(missing)),
    };
    known.check(meta.keyword(), id, row.base().anon().version)?;
    trash::expect_living(&row)?;
    context::contradicts(&entries, &context::members(tx, meta)?)?;
    if patch {
        for (i, value) in merge::merged(&row, &entries)? {
            let key = entries[i].0.as_ref();
            input.set(key, &value).map_err(|text| Error::field(key, text))?;
        }
    }
    check_changed_references(tx, &row, &entries)?;
    change(tx, &mut row, &mut input, "update")?;
    reply(tx, &row, &Shown::default())
}

/// Changes a row that is locked. Nothing to change is no change: no new
/// version, no record.
pub(super) fn change<T: Manager>(
    tx: &mut Tx<'_>,
    row: &mut T,
    input: &mut T::Update,
    action: &str,
) -> Result<()> {
    row.validate_update_data(tx, input)?;
    let old = row.clone();
    row.apply(input);
    row.pre_update(tx, input)?;
    let before = values(&old);
    if values(row) != before {
        let name = |it: &T| it.base().standalone().map(|it| it.name.clone());
        if name(row) != name(&old) {
            expect_reachable(tx, row)?;
        }
        tx.save_and_log(row, action, &before)?;
        row.post_update(tx, &old)?;
    }
    Ok(())
}

pub(super) fn delete<T: Manager>(tx: &mut Tx<'_>, id: &str, known: &IfMatch, purge: bool) -> Result<Reply> {
    let meta = T::meta();
    expect_admitted(tx, meta, "delete")?;
    let mut row = find::<T>(tx, id, true)?;
    known.check(meta.keyword(), id, row.base().anon().version)?;
    row.validate_delete_condition(tx)?;
    if !purge && trash::mark(tx, &mut row)? {
        return reply(tx, &row, &Shown::default());
    }
    destroy(tx, &mut row)?;
    reply(tx, &row, &Shown::default())
}

/// A delete of a row that may be deleted, with its hooks and what goes with it.
fn destroy<T: Manager>(tx: &mut Tx<'_>, row: &mut T) -> Result<()> {
    let ctx = tx.ctx;
    for by in T::meta().cascades() {
        if let Some(of) = ctx.core().registry.keyword(by.keyword) {
            of.handler.detach(tx, by.column, &row.base().anon().id)?;
        }
    }
    let old = row.clone();
    row.customize_delete(tx)?;
    row.pre_delete(tx)?;
    row.delete(tx)?;
    tx.log(row, "delete", Some(&values(&old)))?;
    row.post_delete(tx)
}

/// Deletes the rows that refer to one that goes, each as if it were asked for.
pub(super) fn detach<T: Manager>(tx: &mut Tx<'_>, field: &'static str, id: &str) -> Result<()> {
    expect_admitted(tx, T::meta(), "delete")?;
    let select = T::select().unscoped().pending(Marked::Any).eq(field, id.to_owned()).for_update();
    for mut row in select.rows(tx)? {
        tx.remember(&row);
        row.validate_delete_condition(tx)?;
        destroy(tx, &mut row)?;
    }
    Ok(())
}

pub(super) fn act<T: Manager>(
    tx: &mut Tx<'_>,
    id: &str,
    action: &'static Action,
    input: &ActionInput,
    known: &IfMatch,
) -> Result<Reply> {
    let changes = action.kind == ActionKind::Item;
    if changes {
        expect_admitted(tx, T::meta(), action.name)?;
    }
    let mut row = find::<T>(tx, id, changes)?;
    known.check(T::meta().keyword(), id, row.base().anon().version)?;
    if changes && action.name != trash::UNDELETE {
        trash::expect_living(&row)?;
    }
    let run = match action.run {
        Run::Item(run) => run,
        Run::AnyItem(run) => {
            let output = run(&mut Typed(&mut row), tx, input)?;
            return finish::<T>(tx, Some(&row), T::meta().keyword(), output);
        }
        _ => return Err(Error::internal("not an action on a row")),
    };
    let old = changes.then(|| row.clone());
    let output = run(&mut row, tx, input)?;
    if let Some(old) = old {
        tx.log(&row, action.name, Some(&values(&old)))?;
    }
    finish::<T>(tx, Some(&row), T::meta().keyword(), output)
}

pub(super) fn act_class<T: Manager>(
    tx: &mut Tx<'_>,
    action: &'static Action,
    input: &ActionInput,
) -> Result<Reply> {
    if action.kind == ActionKind::Class {
        expect_admitted(tx, T::meta(), action.name)?;
    }
    let output = match action.run {
        Run::Class(run) => run(tx, input)?,
        Run::AnyClass(run) => run(&Handler::<T>::NEW, tx, input)?,
        _ => return Err(Error::internal("not an action on the class")),
    };
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
            answer.task = tx.started_task.take().filter(|_| !tx.rehearsal);
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
    Reply { body, private: json != b"{}", ..Reply::default() }
}
