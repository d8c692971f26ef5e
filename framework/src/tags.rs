//! Tags: keys and values that hang on any row with a name. Plain keys are for
//! whoever may change the row; keys that begin with `sys:` are seen by all who
//! see the row and set by administrators; those that begin with `__` only
//! administrators see.
//!
//! A value may be long, so the index has only its head. What hangs on a row
//! goes with it, in the statement that records its deletion (a trigger).

use std::collections::{BTreeMap, HashMap};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::auth::Access;
use crate::ctx::Tx;
use crate::db::{self, Sql, Value};
use crate::dispatch::ResourceHandler;
use crate::model::builtin::BuiltIn;
use crate::model::{ActionInput, ActionOutput, AnyRow, Entries, Extra, Meta, Record, read_input};
use crate::{Error, FieldError, Nothing, Result};

const LONGEST_KEY: usize = 64;
const LONGEST_VALUE: usize = 4096;
/// Most tags of one row.
const MOST: usize = 100;
/// Characters of a value that the index has.
const HEAD: usize = 64;

type Schemas = fn(&mut schemars::SchemaGenerator) -> schemars::Schema;

const INPUT: Schemas = |g| g.subschema_for::<BTreeMap<String, Option<String>>>();
const OUTPUT: Schemas = |g| g.subschema_for::<Tags>();

pub(crate) static ACTIONS: [BuiltIn; 4] = [
    BuiltIn::detail(Meta::tagged, "metadata", get, "Its tags.").output(OUTPUT),
    BuiltIn::item(
        Meta::tagged,
        "metadata",
        merge,
        "Sets tags, and removes those that are null; others stay. Keys `sys:…` and `__…` are for administrators.",
    )
    .input(INPUT)
    .output(OUTPUT),
    BuiltIn::item(
        Meta::tagged,
        "set-metadata",
        replace,
        "Makes these its tags; what an administrator set (`sys:…`, `__…`) stays.",
    )
    .input(|g| g.subschema_for::<BTreeMap<String, String>>())
    .output(OUTPUT),
    BuiltIn::property(
        Meta::tagged,
        "tags",
        pairs,
        "The tags that are in use among the rows that you see, the most used first; at most 1000.",
    )
    .output(|g| g.subschema_for::<Pairs>()),
];

/// The tags of a row.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Tags {
    /// Keys and values.
    metadata: BTreeMap<String, String>,
}

/// Tags in use.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Pairs {
    /// Keys and values.
    tags: Vec<Pair>,
}

/// A tag in use.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Pair {
    /// Its key.
    key: String,
    /// Its value.
    value: String,
    /// How many rows have it.
    count: i64,
}

fn hidden(key: &str) -> bool {
    key.starts_with("__")
}

fn is_system(key: &str) -> bool {
    key.starts_with("sys:")
}

fn head(value: &str) -> String {
    value.chars().take(HEAD).collect()
}

fn wrong_text(text: &str, longest: usize) -> Option<String> {
    let count = text.chars().count();
    if count > longest {
        return Some(format!("is longer than {longest} characters ({count})"));
    }
    let bad = text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))?;
    Some(format!("has a control character (U+{:04X})", u32::from(bad)))
}

fn check_key(key: &str) -> Option<String> {
    let plain = key.strip_prefix("sys:").or_else(|| key.strip_prefix("__")).unwrap_or(key);
    if plain.is_empty() || plain.trim() != plain || plain.chars().any(char::is_control) {
        return Some(
            "a tag's key must not be empty, begin or end with a space or have control characters".into(),
        );
    }
    if plain.contains(':') {
        return Some("a tag's key has no `:` but that of `sys:`".into());
    }
    wrong_text(key, LONGEST_KEY)
}

/// Checks what a client wants set; `None` removes.
fn checked(tx: &Tx<'_>, given: &Map<String, Json>) -> Result<BTreeMap<String, Option<String>>> {
    let mut tags = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut forbidden = None;
    for (key, value) in given {
        let value = match value {
            Json::Null => Ok(None),
            Json::String(text) => wrong_text(text, LONGEST_VALUE).map_or_else(|| Ok(Some(text.clone())), Err),
            _ => Err("must be a text, or null to remove it".to_owned()),
        };
        if let Some(message) = check_key(key) {
            wrong.push(FieldError { field: key.clone(), message });
        } else if (hidden(key) || is_system(key)) && tx.level() != Access::Admin {
            forbidden = forbidden.or_else(|| Some(key.clone()));
        } else {
            match value {
                Ok(value) => {
                    tags.insert(key.clone(), value);
                }
                Err(message) => wrong.push(FieldError { field: key.clone(), message }),
            }
        }
    }
    if !wrong.is_empty() {
        return Err(Error::fields(wrong));
    }
    match forbidden {
        Some(key) => Err(Error::forbidden(format!("{key} may be set by administrators only")).blame(key)),
        None => Ok(tags),
    }
}

/// The tags of some rows, as the caller may see them.
fn load(tx: &mut Tx<'_>, meta: &Meta, ids: &[&str]) -> Result<HashMap<String, BTreeMap<String, String>>> {
    let mut sql = Sql::new("SELECT \"obj_id\", \"key\", \"value\" FROM \"metadata\" WHERE \"obj_type\" = ");
    sql.bind(meta.keyword());
    match ids {
        [id] => {
            sql.push(" AND \"obj_id\" = ").bind(*id);
        }
        ids => {
            sql.push(" AND \"obj_id\" IN ").list(ids.iter().map(|id| Value::from(*id)));
        }
    }
    let rows: Vec<(String, String, String)> = db::load(tx.conn, sql)?;
    let mut all: HashMap<String, BTreeMap<String, String>> = HashMap::new();
    for (id, key, value) in rows {
        if !hidden(&key) || tx.level() == Access::Admin {
            all.entry(id).or_default().insert(key, value);
        }
    }
    Ok(all)
}

/// Adds the tags to the rows of a page, in one statement.
pub(crate) fn describe<T: Record>(tx: &mut Tx<'_>, rows: &[T], extra: &mut [Extra]) -> Result<()> {
    let ids: Vec<_> = rows.iter().map(|row| row.base().anon().id.as_str()).collect();
    let mut all = load(tx, T::meta(), &ids)?;
    for (id, extra) in ids.iter().zip(extra) {
        let tags = all.remove(*id).unwrap_or_default();
        extra.set("metadata", serde_json::to_value(tags).map_err(Error::internal)?);
    }
    Ok(())
}

fn get(row: &mut dyn AnyRow, tx: &mut Tx<'_>, input: &ActionInput) -> Result<ActionOutput> {
    let _: Nothing = crate::model::read_query(input)?;
    answer(row, tx)
}

fn answer(row: &dyn AnyRow, tx: &mut Tx<'_>) -> Result<ActionOutput> {
    let metadata = load(tx, row.meta(), &[row.id()])?.remove(row.id()).unwrap_or_default();
    ActionOutput::json(&Tags { metadata })
}

/// The tags of a body: bare, or as a get answers them.
fn members(input: &ActionInput) -> &Map<String, Json> {
    match (input.0.len(), input.0.get("metadata")) {
        (1, Some(Json::Object(inner))) => inner,
        _ => &input.0,
    }
}

fn merge(row: &mut dyn AnyRow, tx: &mut Tx<'_>, input: &ActionInput) -> Result<ActionOutput> {
    let wanted = checked(tx, members(input))?;
    let have = everything(tx, row)?;
    store(row, tx, "metadata", &have, wanted)?;
    answer(row, tx)
}

/// What [`merge`] does, for an apply that carries tags.
pub(crate) fn set(
    row: &mut dyn AnyRow,
    tx: &mut Tx<'_>,
    wanted: BTreeMap<String, Option<String>>,
) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let have = everything(tx, row)?;
    store(row, tx, "metadata", &have, wanted)
}

fn replace(row: &mut dyn AnyRow, tx: &mut Tx<'_>, input: &ActionInput) -> Result<ActionOutput> {
    let given = members(input);
    if let Some(key) = given.keys().find(|key| hidden(key) || is_system(key)) {
        return Err(Error::field(key.clone(), "is not replaced; set it by the action metadata"));
    }
    if let Some((key, _)) = given.iter().find(|(_, value)| value.is_null()) {
        return Err(Error::field(key.clone(), "must be a text"));
    }
    let mut wanted = checked(tx, given)?;
    let have = everything(tx, row)?;
    for key in have.keys().filter(|key| !hidden(key) && !is_system(key)) {
        wanted.entry(key.clone()).or_insert(None);
    }
    store(row, tx, "set-metadata", &have, wanted)?;
    answer(row, tx)
}

/// The tags whoever may see them: what is to be changed.
fn everything(tx: &mut Tx<'_>, row: &dyn AnyRow) -> Result<BTreeMap<String, String>> {
    let mut sql = Sql::new("SELECT \"key\", \"value\" FROM \"metadata\" WHERE \"obj_type\" = ");
    sql.bind(row.meta().keyword()).push(" AND \"obj_id\" = ").bind(row.id());
    let rows: Vec<(String, String)> = db::load(tx.conn, sql)?;
    Ok(rows.into_iter().collect())
}

/// Writes what differs, raises the row's version and records the difference.
fn store(
    row: &mut dyn AnyRow,
    tx: &mut Tx<'_>,
    action: &str,
    have: &BTreeMap<String, String>,
    wanted: BTreeMap<String, Option<String>>,
) -> Result<()> {
    let changed: BTreeMap<_, _> =
        wanted.into_iter().filter(|(key, value)| have.get(key) != value.as_ref()).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let more = changed.iter().filter(|(key, value)| value.is_some() && !have.contains_key(*key)).count();
    let removed = changed.iter().filter(|(_, value)| value.is_none()).count();
    if have.len() + more - removed > MOST {
        return Err(Error::bad_request(format!("a row has at most {MOST} tags")));
    }
    let (mut old, mut new) = (Map::new(), Map::new());
    for (key, value) in &changed {
        if hidden(key) {
            // Its owner reads the record, but not this.
            new.insert("__".into(), "***".into());
            continue;
        }
        if let Some(was) = have.get(key) {
            old.insert(key.clone(), was.as_str().into());
        }
        if let Some(is) = value {
            new.insert(key.clone(), is.as_str().into());
        }
    }
    let diff = serde_json::json!({"old": old, "new": new});
    let (keyword, id) = (row.meta().keyword(), row.id().to_owned());
    let gone: Vec<_> = changed.keys().filter(|key| have.contains_key(*key)).collect();
    if !gone.is_empty() {
        let mut sql = Sql::new("DELETE FROM \"metadata\" WHERE \"obj_type\" = ").value(keyword);
        sql.push(" AND \"obj_id\" = ").bind(&id).push(" AND \"key\" IN ");
        sql.list(gone.into_iter().map(Value::from));
        db::execute(tx.conn, &sql)?;
    }
    let set = changed.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_deref()?)));
    insert(tx, keyword, &id, set)?;
    let before = row.values();
    row.save(tx, action, &before, Some(("metadata", diff)))
}

fn insert<'t>(
    tx: &mut Tx<'_>,
    keyword: &str,
    id: &str,
    tags: impl Iterator<Item = (&'t str, &'t str)>,
) -> Result<()> {
    let mut sql =
        Sql::new("INSERT INTO \"metadata\" (\"obj_type\", \"obj_id\", \"key\", \"head\", \"value\") VALUES ");
    let mut open = "(";
    for (key, value) in tags {
        sql.push(open).bind(keyword).push(", ").bind(id).push(", ").bind(key);
        sql.push(", ").bind(head(value)).push(", ").bind(value).push(")");
        open = ", (";
    }
    if open != "(" {
        db::execute(tx.conn, &sql)?;
    }
    Ok(())
}

/// The tags that a create carries as `metadata`, taken out of its members.
pub(crate) fn take(
    tx: &Tx<'_>,
    meta: &Meta,
    entries: &mut Entries<'_>,
) -> Result<BTreeMap<String, Option<String>>> {
    let found = entries.iter().position(|(key, _)| key == "metadata").filter(|_| meta.tagged());
    let Some(at) = found else { return Ok(BTreeMap::new()) };
    let (_, raw) = entries.remove(at);
    let given = serde_json::from_str(raw.get())
        .map_err(|_| Error::field("metadata", "must be an object of texts"))?;
    let tags = checked(tx, &given)?;
    if tags.len() > MOST {
        return Err(Error::field("metadata", format!("a row has at most {MOST} tags")));
    }
    Ok(tags)
}

/// Stores the tags of a new row.
pub(crate) fn attach<T: Record>(
    tx: &mut Tx<'_>,
    row: &T,
    tags: &BTreeMap<String, Option<String>>,
) -> Result<()> {
    let set = tags.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_deref()?)));
    if tags.is_empty() {
        return Ok(());
    }
    insert(tx, T::meta().keyword(), &row.base().anon().id, set)
}

/// What `tag=` and `without_tag=` ask of the rows of a list.
#[derive(Debug, Clone)]
pub(crate) struct TagFilter {
    key: String,
    value: Option<String>,
    /// Whether the rows are to have it.
    pub(crate) has: bool,
}

impl TagFilter {
    /// Reads `key` or `key:value`.
    ///
    /// # Errors
    /// 400 that names the parameter.
    pub(crate) fn parse(name: &str, text: &str, caller: Access) -> Result<Self> {
        let has = name == "tag";
        let from = if is_system(text) { 4 } else { 0 };
        let (key, value) = match text[from..].find(':').map(|at| at + from) {
            Some(at) => (&text[..at], Some(text[at + 1..].to_owned())),
            None => (text, None),
        };
        if let Some(wrong) = check_key(key) {
            return Err(Error::field(name, wrong));
        }
        if hidden(key) && caller != Access::Admin {
            return Err(Error::field(name, "keys that begin with __ are for administrators"));
        }
        if !has && value.is_some() {
            return Err(Error::field(name, "is a key without a value"));
        }
        Ok(Self { key: key.to_owned(), value, has })
    }

    /// `SELECT` of the ids of the rows that have it.
    pub(crate) fn ids(&self, meta: &Meta) -> Sql<'static> {
        let mut sql = Sql::new("SELECT \"obj_id\" FROM \"metadata\" WHERE \"obj_type\" = ");
        sql.bind(meta.keyword()).push(" AND \"key\" = ").bind(self.key.clone());
        if let Some(value) = &self.value {
            sql.push(" AND \"head\" = ").bind(head(value)).push(" AND \"value\" = ").bind(value.clone());
        }
        sql
    }
}

fn pairs(of: &dyn ResourceHandler, tx: &mut Tx<'_>, input: &ActionInput) -> Result<ActionOutput> {
    let _: Nothing = read_input(input)?;
    let mut sql = Sql::new("SELECT \"key\", \"value\", COUNT(*) FROM \"metadata\" WHERE \"obj_type\" = ");
    sql.bind(of.meta().keyword()).push(" AND \"obj_id\" IN (");
    sql.append(of.visible_ids(tx)?);
    sql.push(")");
    if tx.level() != Access::Admin {
        sql.push(" AND \"key\" NOT LIKE '!_!_%' ESCAPE '!'");
    }
    sql.push(" GROUP BY \"key\", \"value\" ORDER BY 3 DESC, \"key\", \"value\" LIMIT 1000");
    let rows: Vec<(String, String, i64)> = db::load(tx.conn, sql)?;
    let tags = rows.into_iter().map(|(key, value, count)| Pair { key, value, count }).collect();
    ActionOutput::json(&Pairs { tags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_know_keys_from_values() {
        let read = |text: &str| {
            let it = TagFilter::parse("tag", text, Access::User).unwrap();
            (it.key, it.value)
        };
        assert_eq!(read("env"), ("env".into(), None));
        assert_eq!(read("env:"), ("env".into(), Some(String::new())));
        assert_eq!(read("env:a:b"), ("env".into(), Some("a:b".into())));
        assert_eq!(read("sys:env:prod"), ("sys:env".into(), Some("prod".into())));
        assert_eq!(read("sys:env"), ("sys:env".into(), None));
        for bad in ["", ":x", "sys:", "sys::x", " a", "__x"] {
            let error = TagFilter::parse("tag", bad, Access::User).unwrap_err();
            assert_eq!(error.field_errors()[0].field, "tag", "{bad:?}");
        }
        assert!(TagFilter::parse("tag", "__x", Access::Admin).is_ok());
        assert!(TagFilter::parse("without_tag", "a:b", Access::Admin).is_err());
    }

    #[test]
    fn keys_have_rules() {
        for good in ["a", "sys:a", "__a", "app.kubernetes.io/name", "größe"] {
            assert_eq!(check_key(good), None, "{good}");
        }
        for bad in ["", "sys:", "__", "a:b", "a\n", " a", &"x".repeat(65)] {
            assert!(check_key(bad).is_some(), "{bad:?}");
        }
    }
}
