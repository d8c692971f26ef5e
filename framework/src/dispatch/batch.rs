//! Many at once: bodies to create, and rows that ids or filters choose. Each
//! is judged by itself, in a savepoint, in the one transaction of the request.

use std::collections::BTreeSet;

use serde_json::value::RawValue;

use super::{IfMatch, Reply, ResourceHandler};
use crate::ctx::Tx;
use crate::model::{Action, ActionInput, Entries, Meta};
use crate::query::{self, ListRequest, Params};
use crate::{Error, Result};

/// Most resources that one request creates or applies.
pub const MOST_CREATED: usize = 200;
/// Most rows that one request changes, deletes or acts on.
pub const MOST_ROWS: usize = 1000;

/// What became of one of many.
pub struct Part {
    /// The row, where one is known.
    pub id: Option<String>,
    /// What its own request would have been answered.
    pub result: Result<Reply>,
}

/// A body for many, taken apart: one body each.
pub(crate) type Bodies = Vec<String>;

/// The bodies of a batch create: `{"<plural>": [{…}, …]}`, or
/// `{"<keyword>": {…}, "count": n}`. `None`: the body is one of one resource.
///
/// # Errors
/// 400 that names the member.
pub(crate) fn bodies(meta: &Meta, body: &[u8]) -> Result<Option<Bodies>> {
    // A look that costs next to nothing for the body of one.
    let holds = |word: &str| {
        body.windows(word.len() + 2)
            .any(|it| it.starts_with(b"\"") && it.ends_with(b"\"") && &it[1..=word.len()] == word.as_bytes())
    };
    if !holds(meta.plural()) && !holds("count") {
        return Ok(None);
    }
    let text = std::str::from_utf8(body).map_err(|_| Error::field("body", "is not UTF-8"))?;
    let outer = crate::model::object(text)?;
    let find = |name: &str| outer.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
    if let Some(list) = find(meta.plural()).filter(|it| it.get().starts_with('[')) {
        if let Some((other, _)) = outer.iter().find(|(key, _)| key != meta.plural()) {
            return Err(Error::field(other.clone().into_owned(), "does not go with a list"));
        }
        let list: Vec<&RawValue> =
            serde_json::from_str(list.get()).map_err(|e| Error::field(meta.plural(), e.to_string()))?;
        expect_few(meta.plural(), list.len())?;
        return Ok(Some(list.into_iter().map(|it| it.get().to_owned()).collect()));
    }
    let (Some(one), Some(count)) = (find(meta.keyword()), find("count")) else { return Ok(None) };
    if outer.len() > 2 || !one.get().starts_with('{') {
        return Ok(None);
    }
    let n =
        count.get().parse::<usize>().map_err(|_| Error::field("count", "must be a whole number from 1"))?;
    expect_few("count", n)?;
    let entries = crate::model::object(one.get())?;
    Ok(Some((1..=n).map(|i| numbered(&entries, i)).collect()))
}

fn expect_few(field: &str, n: usize) -> Result<()> {
    match n {
        0 => Err(Error::field(field, "must be at least one")),
        n if n > MOST_CREATED => {
            Err(Error::field(field, format!("{n} are too many; at most {MOST_CREATED} at once")))
        }
        _ => Ok(()),
    }
}

/// The body of the i-th of many that are the same but for their names.
fn numbered(entries: &Entries<'_>, i: usize) -> String {
    let named: Vec<_> = entries
        .iter()
        .map(|(key, value)| {
            let name = (key == "name").then(|| serde_json::from_str::<String>(value.get()).ok()).flatten();
            let text = name.map(|it| serde_json::Value::from(pattern(&it, i)).to_string());
            (key.as_ref(), text.unwrap_or_else(|| value.get().to_owned()))
        })
        .collect();
    joined(named.iter().map(|(key, value)| (*key, value.as_str())))
}

/// A JSON object of members that are JSON already.
pub(super) fn joined<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::from("{");
    for (key, value) in members {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(&serde_json::Value::from(key).to_string());
        out.push(':');
        out.push_str(value);
    }
    out.push('}');
    out
}

/// `x##` → `x01`, `x02`; `x` → `x-1`, `x-2`.
fn pattern(name: &str, i: usize) -> String {
    let Some(end) = name.rfind('#') else { return format!("{name}-{i}") };
    let start = name[..=end].trim_end_matches('#').len();
    format!("{}{i:0width$}{}", &name[..start], &name[end + 1..], width = end + 1 - start)
}

/// The rows that a batch is about.
pub(crate) struct Rows {
    request: ListRequest,
    /// Those that were named by id: each gets an answer, there or not.
    named: Vec<String>,
}

/// What narrows a batch; how a page looks has no place there.
pub(crate) fn narrows(meta: &Meta, key: &str) -> bool {
    ["filter", "filter_any", "search", "scope"].contains(&key)
        || key.contains('.')
        || (meta.tagged() && ["tag", "without_tag"].contains(&key))
        || meta.field(key).is_some()
}

impl Rows {
    /// Reads them from a request's parameters.
    ///
    /// # Errors
    /// 400 that names the parameter, or asks for a condition.
    pub(crate) fn parse(ctx: &crate::Ctx, meta: &Meta, params: &Params<'_>) -> Result<Self> {
        let mut all = false;
        let mut conditions = Vec::with_capacity(params.len());
        for (key, value) in params {
            match (key.as_ref(), value.as_ref()) {
                ("all", "true") => all = true,
                ("all", _) => return Err(Error::field("all", "must be true, or not be there")),
                (name, _) if narrows(meta, name) => conditions.push((key.clone(), value.clone())),
                _ => return Err(Error::field(key.clone().into_owned(), "is not a known parameter here")),
            }
        }
        // What leaves no row out is no condition.
        let idle = |key: &str, value: &str| {
            ["scope", "filter_any"].contains(&key) || (key == "search" && value.trim().is_empty())
        };
        if conditions.iter().all(|(key, value)| idle(key, value)) && !all {
            let text = "say which: id=…, a filter, or all=true";
            return Err(Error::bad_request(text).class("ConditionRequiredError").blame("id"));
        }
        let named = conditions.iter().filter(|(key, _)| key == "id").map(|(_, id)| id.to_string()).collect();
        Ok(Self { request: query::parse(ctx, meta, &conditions)?, named })
    }
}

/// What is done to each row.
pub(crate) enum Each {
    /// A change with this body.
    Update(Vec<u8>, bool),
    /// A delete; whether it is for good where there is a trash.
    Delete(bool),
    /// An action.
    Act(&'static Action, ActionInput),
}

/// Does it to each row, in the order of their ids, so that two batches cannot
/// wait for each other in a ring.
pub(crate) fn each(
    handler: &dyn ResourceHandler,
    tx: &mut Tx<'_>,
    rows: &Rows,
    work: &Each,
) -> Result<Vec<Part>> {
    let found: BTreeSet<String> = handler.ids(tx, &rows.request, MOST_ROWS)?.into_iter().collect();
    let all: BTreeSet<&String> = found.iter().chain(&rows.named).collect();
    let mut parts = Vec::with_capacity(all.len());
    for id in all {
        let result = if found.contains(id) {
            tx.savepoint(|tx| match work {
                Each::Update(body, patch) => handler.update(tx, id, body, &IfMatch::Any, *patch),
                Each::Delete(purge) => handler.delete(tx, id, &IfMatch::Any, *purge),
                Each::Act(action, input) => handler.act(tx, id, action, input, &IfMatch::Any),
            })?
        } else {
            Err(Error::not_found(handler.meta().keyword(), id))
        };
        parts.push(Part { id: Some(id.clone()), result });
    }
    Ok(parts)
}

/// Applies each body.
pub(crate) fn apply(handler: &dyn ResourceHandler, tx: &mut Tx<'_>, bodies: &Bodies) -> Result<Vec<Part>> {
    bodies
        .iter()
        .map(|body| Ok(Part { id: None, result: tx.savepoint(|tx| handler.apply(tx, body.as_bytes()))? }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_pattern() {
        let names = |name: &str| [1, 2, 10, 100].map(|i| pattern(name, i));
        assert_eq!(names("x"), ["x-1", "x-2", "x-10", "x-100"]);
        assert_eq!(names("x##"), ["x01", "x02", "x10", "x100"]);
        assert_eq!(names("#"), ["1", "2", "10", "100"]);
        assert_eq!(names("a#-b##c"), ["a#-b01c", "a#-b02c", "a#-b10c", "a#-b100c"]);
        assert_eq!(names("名#字"), ["名1字", "名2字", "名10字", "名100字"]);
    }

    #[test]
    fn members_are_joined() {
        let entries = crate::model::object(r#"{"name": "a\"b", "x": [1, 2]}"#).unwrap();
        assert_eq!(numbered(&entries, 2), r#"{"name":"a\"b-2","x":[1, 2]}"#);
    }
}
