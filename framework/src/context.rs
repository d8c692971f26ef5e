//! Contexts: the rows of a type below a row of another that they refer to
//! (`/projects/<id>/spaces`), and joint types seen from either of their sides
//! (`/groups/<id>/users/<id>`).
//!
//! The registry finds which there are; a request that takes such a path
//! carries it as [`Nested`], and the pipelines of the type that it leads to
//! look up the rows above and fix the fields: lists and look-ups are narrowed,
//! creates are filled. So they are the plain pipelines, with all their hooks.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde_json::value::RawValue;

use crate::auth::Access;
use crate::ctx::Tx;
use crate::db::{self, Sql, Value};
use crate::model::{Entries, Extra, Manager, Meta, Record};
use crate::query::Select;
use crate::registry::Type;
use crate::{Error, Result};

/// By the plural above and the name below.
pub(crate) type Contexts = BTreeMap<(&'static str, &'static str), Context>;

/// A type below another.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// Plural of the type that it leads to.
    pub(crate) leads_to: &'static str,
    /// Its field that holds the id of the row above.
    pub(crate) field: &'static str,
    /// Of a joint type: the other side's field and plural, which is the path's name.
    pub(crate) other: Option<(&'static str, &'static str)>,
}

/// Finds all contexts. Of two fields that refer to one type the first counts;
/// a joint type's sides come before plain references.
pub(crate) fn find<'t>(
    types: impl Iterator<Item = &'t Type>,
    by_keyword: &dyn Fn(&str) -> Option<&'t Type>,
) -> Contexts {
    let mut all = Contexts::new();
    let plural = |keyword: &str| by_keyword(keyword).map(|of| of.handler.meta().plural());
    let types: Vec<_> = types.map(|of| of.handler.meta()).collect();
    for meta in &types {
        let Some((one, other)) = meta.source.joint else { continue };
        let side = |name: &str| meta.field(name).and_then(|f| Some((f.name, plural(f.references?)?)));
        let (Some(one), Some(other)) = (side(one), side(other)) else { continue };
        for (above, below) in [(one, other), (other, one)] {
            let context = Context { leads_to: meta.plural(), field: above.0, other: Some(below) };
            all.entry((above.1, below.1)).or_insert(context);
        }
    }
    for meta in &types {
        for field in meta.stored().filter(|f| f.list != Access::Never) {
            let Some(above) = field.references.and_then(plural) else { continue };
            let context = Context { leads_to: meta.plural(), field: field.name, other: None };
            all.entry((above, meta.plural())).or_insert(context);
        }
    }
    all
}

/// What a path fixed of the rows that it leads to.
#[derive(Debug, Clone)]
pub(crate) struct Nested {
    /// Keyword of their type.
    pub(crate) of: &'static str,
    /// Field, plural of the type above, and id or name there.
    pub(crate) above: Vec<(&'static str, &'static str, String)>,
}

/// Fields and the ids that they must have.
pub(crate) type Fixed = Vec<(&'static str, String)>;

/// What the request's path fixes of this type: the rows above must be there,
/// and the caller must see them.
fn fixed(tx: &mut Tx<'_>, meta: &Meta) -> Result<Fixed> {
    let ctx = tx.ctx;
    let Some(nested) = ctx.nested.as_ref().filter(|it| it.of == meta.keyword()) else {
        return Ok(Vec::new());
    };
    if let Some(fixed) = &tx.fixed {
        return Ok(fixed.clone());
    }
    // While a row of the same type is looked up above, nothing is fixed.
    tx.fixed = Some(Vec::new());
    let mut fixed = Vec::with_capacity(nested.above.len());
    for (field, plural, id) in &nested.above {
        let of = ctx.core().registry.get(plural);
        let of = of.ok_or_else(|| Error::internal(format!("there is no type {plural}")))?;
        fixed.push((*field, of.handler.resolve(tx, id)?));
    }
    tx.fixed = Some(fixed.clone());
    Ok(fixed)
}

/// Narrows a list or a look-up to what stands below the path.
pub(crate) fn narrow<T: Manager>(tx: &mut Tx<'_>, select: &mut Select<T>) -> Result<()> {
    if tx.ctx.nested.is_none() {
        return Ok(());
    }
    for (field, id) in fixed(tx, T::meta())? {
        select.narrow(field, id);
    }
    Ok(())
}

/// The fields that the path fixes, as members of a body.
pub(crate) fn members(tx: &mut Tx<'_>, meta: &Meta) -> Result<Vec<(&'static str, Box<RawValue>)>> {
    if tx.ctx.nested.is_none() {
        return Ok(Vec::new());
    }
    let raw = |(field, id): (_, String)| {
        Ok((field, serde_json::value::to_raw_value(&id).map_err(Error::internal)?))
    };
    fixed(tx, meta)?.into_iter().map(raw).collect()
}

/// Adds to a create's members what the path fixes; a body that says something
/// else is refused. Whose a row is, only administrators say: to everybody else
/// the path may say what would be so anyway.
pub(crate) fn fill<'a>(
    tx: &Tx<'_>,
    meta: &Meta,
    entries: &mut Entries<'a>,
    members: &'a [(&'static str, Box<RawValue>)],
) -> Result<()> {
    contradicts(entries, members)?;
    let cred = tx.cred();
    for (field, id) in members {
        let own = match *field {
            _ if !meta.source.owner.contains(field) => None,
            "domain_id" => Some(&cred.domain_id),
            "project_id" => Some(&cred.project_id),
            _ => Some(&cred.user_id),
        };
        let same = own.is_some_and(|own| serde_json::from_str::<String>(id.get()).is_ok_and(|id| id == *own));
        if !same && entries.iter().all(|(key, _)| key != field) {
            entries.push((Cow::Borrowed(*field), &**id));
        }
    }
    Ok(())
}

/// Refuses a body that says another thing than the path.
pub(crate) fn contradicts(entries: &Entries<'_>, members: &[(&'static str, Box<RawValue>)]) -> Result<()> {
    for (field, id) in members {
        if entries.iter().any(|(key, value)| key == field && value.get() != id.get()) {
            return Err(Error::field(*field, format!("is {} by the path", id.get())).class("ContextError"));
        }
    }
    Ok(())
}

/// Who sees a joint row sees both its sides: those of whose sides one is
/// hidden from the caller are hidden, too.
pub(crate) fn both_sides<T: Manager>(tx: &mut Tx<'_>, select: &mut Select<T>) -> Result<()> {
    let Some((one, other)) = T::meta().source.joint.filter(|_| tx.level() != Access::Admin) else {
        return Ok(());
    };
    let ctx = tx.ctx;
    for name in [one, other] {
        let found = T::meta().field(name).and_then(|f| Some((f.name, f.references?)));
        let Some((field, of)) =
            found.and_then(|(f, keyword)| Some((f, ctx.core().registry.keyword(keyword)?)))
        else {
            return Err(Error::internal(format!("{} has no side {name}", T::meta().keyword())));
        };
        let ids = of.handler.visible_ids(tx)?;
        select.within(field, ids);
    }
    Ok(())
}

/// Tells the names of both sides: one statement for a page.
pub(crate) fn describe<T: Record>(tx: &mut Tx<'_>, rows: &[T], extra: &mut [Extra]) -> Result<()> {
    let Some((one, other)) = T::meta().source.joint else { return Ok(()) };
    let ctx = tx.ctx;
    let at = |name: &str| T::meta().stored().position(|f| f.name == name);
    let mut sql = Sql::new("");
    let mut sides = Vec::new();
    for name in [one, other] {
        let (Some(at), Some(keyword)) = (at(name), T::meta().field(name).and_then(|f| f.references)) else {
            continue;
        };
        let ids: Vec<String> = rows.iter().filter_map(|row| value_at(row, at)).collect();
        let target = ctx.core().registry.keyword(keyword).map(|of| of.handler.meta());
        if let Some(target) = target.filter(|meta| meta.has("name")) {
            let word = if sides.is_empty() { "SELECT '" } else { " UNION ALL SELECT '" };
            sql.push(word).push(name).push("', \"id\", \"name\" FROM \"").push(target.table());
            sql.push("\" WHERE \"id\" IN ").list(ids.iter().cloned().map(Value::from));
            sides.push((name, name.strip_suffix("_id").unwrap_or(keyword), ids));
        }
    }
    if sides.is_empty() {
        return Ok(());
    }
    let found: Vec<(String, String, String)> = db::load(tx.conn, sql)?;
    let names: HashMap<_, _> = found.into_iter().map(|(side, id, name)| ((side, id), name)).collect();
    for (field, member, ids) in sides {
        for (id, extra) in ids.into_iter().zip(extra.iter_mut()) {
            extra.set(member, names.get(&(field.to_owned(), id)).cloned());
        }
    }
    Ok(())
}

fn value_at<T: Record>(row: &T, at: usize) -> Option<String> {
    let mut values = Vec::new();
    row.write(&mut values);
    match values.into_iter().nth(at) {
        Some(Value::Text(Some(text))) => Some(text.into_owned()),
        _ => None,
    }
}

/// What is missing or doubled in a joint type, in its own words.
pub(crate) fn explain(meta: &Meta, error: Error) -> Error {
    match error.class_name() {
        "DuplicateResourceError" if meta.source.joint.is_some() => {
            Error::conflict("they are attached already").class("AlreadyAttachedError").caused_by(error)
        }
        _ => error,
    }
}
