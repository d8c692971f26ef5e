//! The parameters of a list, read and checked.

use super::cond::Cond;
use super::filter::{self, Asker, MAX_VALUES, listed};
use super::order::{self, Order};
use super::scope::{self, Owner};
use super::select::Marked;
use super::{DEFAULT_LIMIT, MAX_LIMIT, Params, fields};
use crate::auth::{Access, UserCred};
use crate::ctx::Ctx;
use crate::db::Value;
use crate::model::{Field, Meta, Scope};
use crate::tags::TagFilter;
use crate::{Error, Result};

/// Most expressions in `filter=` of one request.
const MAX_FILTERS: usize = 50;
/// Most values that all filters of a request bind.
const MAX_BOUND: usize = 1000;
/// Most texts to search for at once.
const MAX_SEARCHES: usize = 10;
/// Most tags to filter by at once.
const MAX_TAGS: usize = 10;
/// Most fields of `distinct_field`.
const MAX_DISTINCT: usize = 5;
/// Parameters that make no sense twice.
const ONCE: [&str; 11] = [
    "limit",
    "offset",
    "marker",
    "order",
    "details",
    "total",
    "filter_any",
    "scope",
    "deleted",
    "pending_deleted",
    "export",
];

/// Fields that are asked for by words of their own.
const MARKS: [&str; 2] = ["deleted", "pending_deleted"];

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// RFC 4180, with a header.
    Csv,
    /// One object per line.
    Ndjson,
}

/// A list as the client asked for it, checked.
pub struct ListRequest {
    /// `field=value`, by field.
    pub(super) plain: Vec<(&'static Field, Vec<Value<'static>>)>,
    /// `filter=` and the filters over references.
    pub(super) filters: Vec<Cond>,
    pub(super) search: Option<Cond>,
    pub(super) regexp: bool,
    pub(super) order: Vec<Order>,
    /// Rows of the page.
    pub limit: i64,
    /// The limit as the client gave it.
    pub(crate) wanted: Option<i64>,
    pub(super) offset: i64,
    pub(super) after: Option<Vec<Value<'static>>>,
    /// Which values of `after` are beginnings only.
    pub(super) cut: Vec<usize>,
    /// Whether the marker leads back.
    pub(crate) back: bool,
    /// Bits of the fields to show.
    pub mask: u64,
    /// Names of the extra columns to show; `None`: all.
    pub extra: Option<Vec<String>>,
    /// Whether the number of all rows was asked for.
    pub total: bool,
    pub(super) owner: Option<Owner>,
    pub(super) deleted: Marked,
    pub(super) pending: Marked,
    /// `tag=` and `without_tag=`.
    pub(super) tagged: Vec<TagFilter>,
    /// Whether the rows are to be shown with their tags.
    pub(crate) tags: bool,
    /// The fields whose combinations of values are asked for, in place of rows.
    pub(crate) distinct: Vec<&'static Field>,
    /// In which form the whole list is asked for.
    pub(crate) export: Option<Format>,
    /// Whether few enough rows of others lie between the caller's.
    pub(super) near: bool,
}

fn yes(key: &str, value: &str) -> Result<bool> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Error::field(key, "must be true or false")),
    }
}

fn marked(key: &str, value: &str) -> Result<Marked> {
    match value {
        "true" => Ok(Marked::Only),
        "any" => Ok(Marked::Any),
        "false" => Ok(Marked::Hidden),
        _ => Err(Error::field(key, "must be true, false or any")),
    }
}

/// Reads the list grammar.
///
/// # Errors
/// 400 that names the parameter, 403 for a scope beyond the caller's rank.
pub fn parse(ctx: &Ctx, meta: &Meta, params: &Params<'_>) -> Result<ListRequest> {
    let core = ctx.core();
    let asker = Asker { registry: &core.registry, cred: ctx.cred(), dialect: core.db.dialect() };
    read(&asker, meta, params)
}

/// What is put together once all parameters are read.
#[derive(Default)]
struct Loose<'p> {
    desc: Option<bool>,
    names: Vec<&'p str>,
    marker: Option<&'p str>,
    filters: Vec<Cond>,
    any: bool,
    expressions: usize,
    bound: usize,
    texts: Vec<&'p str>,
    /// `template.name=value`, by name.
    ways: Vec<(&'p str, Vec<&'p str>)>,
    pending: Option<Marked>,
}

pub(super) fn read(asker: &Asker<'_>, meta: &Meta, params: &Params<'_>) -> Result<ListRequest> {
    let cred = asker.cred;
    let (mask, extra) = fields::selection(meta, params, meta.list_mask(cred.level))?;
    let mut it = ListRequest {
        plain: Vec::new(),
        filters: Vec::new(),
        search: None,
        regexp: false,
        order: Vec::with_capacity(2),
        limit: DEFAULT_LIMIT,
        wanted: None,
        offset: 0,
        after: None,
        cut: Vec::new(),
        back: false,
        mask,
        extra,
        total: false,
        owner: None,
        deleted: Marked::Hidden,
        pending: Marked::Any,
        tagged: Vec::new(),
        tags: fields::shows_tags(meta, params)?,
        distinct: Vec::new(),
        export: None,
        near: near(meta, cred),
    };
    let mut loose = Loose::default();
    for (i, (key, value)) in params.iter().enumerate() {
        let (key, value) = (key.as_ref(), value.as_ref());
        let word = ONCE.contains(&key) && (MARKS.contains(&key) || !meta.has(key));
        if word && params[..i].iter().any(|(k, _)| k == key) {
            return Err(Error::field(key, "is given twice"));
        }
        if !common(&mut it, &mut loose, key, value)? && !rare(&mut it, &mut loose, asker, meta, key, value)? {
            plain(&mut it, &mut loose, asker, meta, key, value)?;
        }
    }
    finish(it, loose, asker, meta)
}

fn number(key: &str, value: &str) -> Result<i64> {
    let number = value.parse::<i64>().ok().filter(|n| *n >= 0);
    number.ok_or_else(|| Error::field(key, format!("{value:?} is not a whole number from 0")))
}

/// Paging, order and what to show.
fn common<'p>(it: &mut ListRequest, loose: &mut Loose<'p>, key: &'p str, value: &'p str) -> Result<bool> {
    match key {
        "field" | "exclude" => {}
        "limit" => match number(key, value)? {
            0 => return Err(Error::field("limit", "must be at least 1")),
            n => {
                it.wanted = Some(n);
                it.limit = n.min(MAX_LIMIT);
            }
        },
        "offset" => it.offset = number(key, value)?,
        "marker" => loose.marker = Some(value),
        "order_by" => loose.names.extend(value.split(',')),
        "order" => {
            loose.desc = Some(match value {
                "asc" => false,
                "desc" => true,
                _ => return Err(Error::field("order", format!("{value:?} is neither asc nor desc"))),
            });
        }
        "details" => match value {
            "total" => it.total = true,
            "true" => {}
            "false" => it.extra = Some(it.extra.take().unwrap_or_default()),
            _ => return Err(Error::field("details", "must be true, false or total")),
        },
        _ => return Ok(false),
    }
    Ok(true)
}

/// Filters in words, scope, and other answers than a page.
fn rare<'p>(
    it: &mut ListRequest,
    loose: &mut Loose<'p>,
    asker: &Asker<'_>,
    meta: &Meta,
    key: &str,
    value: &'p str,
) -> Result<bool> {
    if meta.has(key) && !MARKS.contains(&key) {
        // A type's own field beats the word: of quotas, `scope` is one.
        return Ok(false);
    }
    match key {
        "total" => it.total |= yes(key, value)?,
        "filter" => {
            loose.expressions += 1;
            if loose.expressions > MAX_FILTERS {
                return Err(Error::field("filter", format!("is given more than {MAX_FILTERS} times")));
            }
            let asked =
                filter::expression(asker, meta, value).map_err(|wrong| Error::field("filter", wrong))?;
            loose.bound += asked.values;
            it.regexp |= asked.regexp;
            loose.filters.push(asked.cond);
        }
        "filter_any" => loose.any = yes(key, value)?,
        "search" => {
            if loose.texts.len() == MAX_SEARCHES {
                return Err(Error::field("search", format!("is given more than {MAX_SEARCHES} times")));
            }
            filter::short("search", value).map_err(|wrong| Error::field("search", wrong))?;
            loose.texts.push(value);
        }
        // Beside what the rank lets them see, so it only ever narrows.
        "scope" => it.owner = scope::asked(meta, asker.cred, value)?,
        // For others the field is not there at all.
        "deleted" if meta.has("deleted") && asker.cred.level == Access::Admin => {
            it.deleted = marked(key, value)?;
        }
        "pending_deleted" if meta.has("pending_deleted") => loose.pending = Some(marked(key, value)?),
        "tag" | "without_tag" if meta.tagged() => {
            if it.tagged.len() == MAX_TAGS {
                return Err(Error::field(key, format!("is given more than {MAX_TAGS} times")));
            }
            it.tagged.push(TagFilter::parse(key, value, asker.cred.level)?);
        }
        "tags" if meta.shows_tags() => {}
        "distinct_field" => {
            for name in value.split(',').map(str::trim) {
                let field = listed(meta, asker.cred, name).ok_or_else(|| {
                    Error::field(key, format!("{name:?} is not a field of {}", meta.keyword()))
                })?;
                if it.distinct.iter().any(|f| f.name == name) || it.distinct.len() == MAX_DISTINCT {
                    let text = format!("names different fields, at most {MAX_DISTINCT}");
                    return Err(Error::field(key, text));
                }
                it.distinct.push(field);
            }
        }
        "export" => {
            it.export = Some(match value {
                "csv" => Format::Csv,
                "ndjson" => Format::Ndjson,
                _ => return Err(Error::field("export", "must be csv or ndjson")),
            });
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// `field=value`, also over references.
fn plain<'p>(
    it: &mut ListRequest,
    loose: &mut Loose<'p>,
    asker: &Asker<'_>,
    meta: &Meta,
    name: &'p str,
    text: &'p str,
) -> Result<()> {
    loose.bound += 1;
    let Some(field) = listed(meta, asker.cred, name) else {
        if !name.contains('.') {
            return Err(Error::field(name, "is not a known parameter or field"));
        }
        match loose.ways.iter_mut().find(|(way, _)| *way == name) {
            Some((_, texts)) => texts.push(text),
            None => loose.ways.push((name, vec![text])),
        }
        return Ok(());
    };
    let value = filter::typed(field.column, text).map_err(|wrong| Error::field(name, wrong))?;
    match it.plain.iter_mut().find(|(f, _)| f.name == field.name) {
        Some((_, values)) => values.push(value),
        None => it.plain.push((field, vec![value])),
    }
    Ok(())
}

fn finish(mut it: ListRequest, mut loose: Loose<'_>, asker: &Asker<'_>, meta: &Meta) -> Result<ListRequest> {
    if loose.bound > MAX_BOUND {
        return Err(Error::field(
            "filter",
            format!("all filters together have more than {MAX_BOUND} values"),
        ));
    }
    let mut filters = std::mem::take(&mut loose.filters);
    if loose.any && filters.len() > 1 {
        it.filters.push(Cond::Any(filters));
    } else {
        it.filters.append(&mut filters);
    }
    for (way, texts) in &loose.ways {
        let mut leaf = |field: &'static Field| {
            let values = texts.iter().map(|text| filter::typed(field.column, text));
            Ok(filter::any_of(field.name, values.collect::<Result<_, String>>()?))
        };
        let cond = filter::along(asker, meta, way, filter::MAX_LEVELS, &mut leaf);
        it.filters.push(cond.map_err(|wrong| Error::field(*way, wrong))?);
    }
    if !loose.texts.is_empty() {
        let searched = |f: &&'static Field| f.search && f.list.allows(asker.cred.level);
        let columns: Vec<_> = meta.stored().filter(searched).map(|f| f.name).collect();
        if columns.is_empty() {
            return Err(Error::field("search", format!("{} have no field to search in", meta.plural())));
        }
        it.search =
            Some(Cond::Like(columns, loose.texts.iter().map(|text| filter::containing(text)).collect()));
    }
    if meta.has("pending_deleted") {
        // Who asks for deleted rows means them, however they went.
        let usual = if it.deleted == Marked::Hidden { Marked::Hidden } else { Marked::Any };
        it.pending = loose.pending.unwrap_or(usual);
    }
    if it.tags {
        it.extra = fields::with_tags(it.extra);
    }
    orders(&mut it, &loose, asker, meta)?;
    if let Some(marker) = loose.marker {
        if it.offset > 0 {
            return Err(Error::field("offset", "does not go with marker"));
        }
        let order::Marker { values, cut, back } = order::read_marker(meta, &it.order, marker)?;
        it.after = Some(values);
        (it.cut, it.back) = (cut, back);
    }
    fits(&it, &loose)?;
    Ok(it)
}

fn orders(it: &mut ListRequest, loose: &Loose<'_>, asker: &Asker<'_>, meta: &Meta) -> Result<()> {
    for name in &loose.names {
        let (name, desc) = match name.trim().as_bytes().first() {
            Some(b'-') => (&name.trim()[1..], true),
            Some(b'+') => (&name.trim()[1..], false),
            // In a query string a + is a space.
            _ if name.starts_with(' ') && loose.desc == Some(true) => {
                return Err(Error::field("order_by", "a + is written %2B"));
            }
            _ => (name.trim(), loose.desc.unwrap_or(false)),
        };
        let Some(field) = listed(meta, asker.cred, name) else {
            return Err(Error::field("order_by", format!("{name:?} is not a field of {}", meta.keyword())));
        };
        if it.order.iter().any(|o| o.column == field.name) {
            return Err(Error::field("order_by", format!("{name:?} stands there twice")));
        }
        it.order.push(Order::by(field, desc));
    }
    if it.distinct.is_empty() && it.order.is_empty() {
        // The newest first, unless told otherwise.
        it.order.push(Order { column: "created_at", desc: loose.desc.unwrap_or(true), nullable: false });
    }
    // Ties are broken by the id, in the last field's direction, so that pages neither repeat nor skip.
    if let Some(last) = it.order.last().copied().filter(|_| it.order.iter().all(|o| o.column != "id")) {
        it.order.push(Order { column: "id", desc: last.desc, nullable: false });
    }
    Ok(())
}

/// Refuses what does not go together.
fn fits(it: &ListRequest, loose: &Loose<'_>) -> Result<()> {
    if !it.distinct.is_empty() {
        let shown = [
            ("order_by", !loose.names.is_empty()),
            ("order", loose.desc.is_some()),
            ("marker", loose.marker.is_some()),
            ("total", it.total),
            ("export", it.export.is_some()),
        ];
        if let Some((name, _)) = shown.iter().find(|(_, given)| *given) {
            return Err(Error::field(*name, "does not go with distinct_field"));
        }
    }
    if it.export.is_some() {
        let shown = [("offset", it.offset > 0), ("marker", it.back), ("total", it.total)];
        if let Some((name, _)) = shown.iter().find(|(_, given)| *given) {
            return Err(Error::field(*name, "does not go with an export"));
        }
    }
    Ok(())
}

/// Whether the rows of others that lie between the caller's are few: there are
/// none, or an index leads to the caller's own.
fn near(meta: &Meta, cred: &UserCred) -> bool {
    matches!(
        (meta.source.scope, cred.level),
        (Scope::All, _) | (_, Access::Admin) | (Scope::User, Access::User)
    ) && (!meta.shared() || cred.level == Access::Admin)
}

const _: () = assert!(MAX_VALUES <= MAX_BOUND);
