//! The grammar, with anything a client could think of: nothing panics, and
//! whatever comes in, the SQL is made of known pieces only.

use std::borrow::Cow;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::cond::Cond;
use super::filter::Asker;
use super::request::{self, ListRequest};
use crate::Error;
use crate::auth::{Access, UserCred};
use crate::db::{Cost, Dialect};
use crate::model::{Meta, Record as _};
use crate::prelude::*;
use crate::registry::Registry;

/// What a thing is of.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "query_stuff", plural = "query_stuffs", read = "user", write = "admin")]
pub struct Stuff {
    /// Name and description.
    pub base: StandaloneBase,
    /// For administrators.
    #[field(list = "admin")]
    pub price: f64,
}

impl Manager for Stuff {}

impl Model for Stuff {}

/// Listed by administrators only.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "query_secret", plural = "query_secrets")]
pub struct Secret {
    /// Name and description.
    pub base: StandaloneBase,
}

impl Manager for Secret {}

impl Model for Secret {}

/// A thing to ask for.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "query_thing", plural = "query_things", read = "user", extra(shine = "How it shines."))]
pub struct Thing {
    /// Name, status and owner.
    pub base: StatusBase,
    /// Its owner.
    #[field(list = "user", index)]
    pub user_id: String,
    /// What it is of.
    #[field(list = "user", references = "query_stuff", index)]
    pub stuff_id: String,
    /// Known to few.
    #[field(list = "user", references = "query_secret")]
    pub hidden: String,
    /// Where it lies.
    #[field(list = "user", references = "query_thing")]
    pub within: Option<String>,
    /// How much.
    #[field(list = "user")]
    pub weight: f64,
    /// How many.
    #[field(list = "user")]
    pub pieces: Option<i32>,
    /// Whether it is new.
    #[field(list = "user")]
    pub fresh: bool,
    /// Words.
    #[field(list = "user")]
    pub words: Vec<String>,
    /// Nobody's business.
    #[field()]
    pub key: String,
}

impl Manager for Thing {}

impl Model for Thing {}

fn cred(level: Access) -> UserCred {
    UserCred { level, user_id: "u".into(), project_id: "p".into(), ..UserCred::system() }
}

fn read(
    registry: &Registry,
    level: Access,
    dialect: Dialect,
    params: &[(&str, &str)],
) -> Result<ListRequest> {
    let cred = cred(level);
    let asker = Asker { registry, cred: &cred, dialect };
    let params: Vec<_> = params.iter().map(|(k, v)| (Cow::from(*k), Cow::from(*v))).collect();
    request::read(&asker, Thing::meta(), &params)
}

/// As the pipeline would ask, but for what hooks say.
fn sql(request: &ListRequest, level: Access, dialect: Dialect) -> String {
    let mut query = request.page(Thing::meta());
    for cond in &mut query.conds {
        show(cond);
    }
    query.statement(&[Thing::meta().columns()], Thing::meta(), &cred(level), dialect).shape()
}

fn show(cond: &mut Cond) {
    match cond {
        Cond::Any(all) => all.iter_mut().for_each(show),
        Cond::Refers(it) => {
            it.visible = Some(Vec::new());
            show(&mut it.cond);
        }
        _ => {}
    }
}

fn filtered(filter: &str) -> String {
    let registry = Registry::collect();
    let request = read(&registry, Access::User, Dialect::Postgres, &[("filter", filter)]).unwrap();
    let text = sql(&request, Access::User, Dialect::Postgres);
    text.split(" WHERE ")
        .skip(1)
        .collect::<Vec<_>>()
        .join(" WHERE ")
        .split(" ORDER BY ")
        .next()
        .unwrap()
        .to_owned()
}

fn wrong(filter: &str) -> String {
    let registry = Registry::collect();
    let error: Error =
        read(&registry, Access::User, Dialect::Sqlite, &[("filter", filter)]).map(|_| ()).unwrap_err();
    assert_eq!(error.field_errors()[0].field, "filter", "{filter}");
    error.message().to_owned()
}

#[test]
fn expressions_become_sql() {
    for (filter, expected) in [
        ("name.eq(a)", "\"name\" = ?"),
        ("name.in(a,b)", "\"name\" IN (?, ?)"),
        ("name.ne(a)", "(\"name\" NOT IN (?))"),
        ("pieces.notin(1,2)", "(\"pieces\" NOT IN (?, ?) OR \"pieces\" IS NULL)"),
        ("weight.ge(1.5)", "\"weight\" >= ?"),
        ("created_at.between(2026-01-01T00:00:00Z, 2026-02-01T00:00:00Z)", "\"created_at\" BETWEEN ? AND ?"),
        (
            "name.contains(a,b)",
            "(LOWER(\"name\") LIKE LOWER(?) ESCAPE '!' OR LOWER(\"name\") LIKE LOWER(?) ESCAPE '!')",
        ),
        ("pieces.isnull()", "\"pieces\" IS NULL"),
        ("words.isempty()", "\"words\" IN (?, ?, ?, ?)"),
        ("name.isnullorempty()", "(\"name\" IS NULL OR \"name\" IN (?))"),
        ("name.regexp(^a)", "(\"name\" ~ ?)"),
        ("stuff.name.eq(a)", "\"stuff_id\" IN (SELECT \"id\" FROM \"query_stuffs\" WHERE \"name\" = ?)"),
        (
            "query_stuff.name.eq(a)",
            "\"stuff_id\" IN (SELECT \"id\" FROM \"query_stuffs\" WHERE \"name\" = ?)",
        ),
    ] {
        assert_eq!(filtered(filter), expected, "{filter}");
    }
}

#[test]
fn what_cannot_be_asked_for_is_refused() {
    for (filter, says) in [
        ("nothing.eq(a)", "\"nothing\" is not a field"),
        ("key.eq(a)", "\"key\" is not a field"),
        ("name.same(a)", "is not an operator"),
        ("name.lt(a,b)", "takes one value"),
        ("name.between(a)", "takes 2 values"),
        ("name.eq()", "takes 1 to 500 values"),
        ("name.isnull(a)", "takes no value"),
        ("pieces.eq(x)", "is not an integer"),
        ("pieces.contains(1)", "is not possible with pieces"),
        ("fresh.lt(true)", "is not possible with fresh"),
        ("created_at.gt(x)", "is not a time"),
        ("name.regexp(a)", "SQLite"),
        // Not listed, or of a type that is not, or too far.
        ("stuff.price.gt(1)", "\"price\" is not a field"),
        ("hidden.name.eq(a)", "\"hidden\" is not a field"),
        ("query_secret.name.eq(a)", "\"query_secret\" is not a field"),
        ("name.name.eq(a)", "\"name\" is not a field"),
        ("query_thing.query_thing.query_thing.query_thing.name.eq(a)", "more than 3 references"),
    ] {
        let message = wrong(filter);
        assert!(message.contains(says), "{filter}: {message}");
    }
    let many = vec!["a"; 501].join(",");
    assert!(wrong(&format!("name.in({many})")).contains("takes 1 to 500 values"));
}

#[test]
fn visible_rows_only_are_referred_to() {
    let registry = Registry::collect();
    let request = read(&registry, Access::User, Dialect::Sqlite, &[("filter", "stuff.name.eq(a)")]).unwrap();
    let query = request.page(Thing::meta());
    let text = query.statement(&["1"], Thing::meta(), &cred(Access::User), Dialect::Sqlite).shape();
    assert!(text.contains("\"name\" = ? AND FALSE)"), "nobody said what may be seen: {text}");
}

#[test]
fn what_is_not_bounded_for_sure_is_unbounded() {
    let registry = Registry::collect();
    let cost = |params: &[(&str, &str)]| {
        read(&registry, Access::Admin, Dialect::Sqlite, params).unwrap().cost(Thing::meta())
    };
    for bounded in [
        &[][..],
        &[("status", "ready"), ("order_by", "created_at"), ("limit", "20")],
        &[("id", "x"), ("name", "y"), ("order_by", "weight")],
        &[("order_by", "name")],
        &[("offset", "1000")],
    ] {
        assert_eq!(cost(bounded), Cost::Bounded, "{bounded:?}");
    }
    for unbounded in [
        &[("weight", "1")][..],
        &[("order_by", "weight")],
        &[("order_by", "name,-created_at")],
        &[("status", "ready"), ("order_by", "name")],
        &[("status", "ready"), ("stuff_id", "x")],
        &[("status", "a"), ("status", "b")],
        &[("filter", "status.eq(ready)")],
        &[("stuff.name", "x")],
        &[("search", "x")],
        &[("total", "true")],
        &[("export", "csv")],
        &[("distinct_field", "status")],
        &[("offset", "1001")],
    ] {
        assert_eq!(cost(unbounded), Cost::Unbounded, "{unbounded:?}");
    }
}

#[test]
fn what_is_bounded_is_kept_prepared() {
    let registry = Registry::collect();
    let rare = |params: &[(&str, &str)]| {
        read(&registry, Access::Admin, Dialect::Sqlite, params).unwrap().page(Thing::meta()).rare
    };
    assert!(!rare(&[]) && !rare(&[("status", "ready")]));
    assert!(
        rare(&[("weight", "1")])
            && rare(&[("filter", "status.eq(a)")])
            && rare(&[("order_by", "name,status")])
    );
}

const KEYWORDS: [&str; 24] = [
    "SELECT", "FROM", "WHERE", "AND", "OR", "NOT", "IN", "IS", "NULL", "LIKE", "LOWER", "ESCAPE", "BETWEEN",
    "ORDER", "BY", "DESC", "NULLS", "FIRST", "LAST", "LIMIT", "OFFSET", "TRUE", "FALSE", "REGEXP",
];

/// Takes a statement apart and says what in it is no known piece.
fn unknown_piece(text: &str, known: &[&str]) -> Option<String> {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = if c == '"' {
            let end = rest[1..].find('"')? + 2;
            if !known.contains(&&rest[1..end - 1]) {
                return Some(rest[..end].to_owned());
            }
            end
        } else if c.is_ascii_alphabetic() {
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            if !KEYWORDS.contains(&&rest[..end]) {
                return Some(rest[..end].to_owned());
            }
            end
        } else if rest.starts_with("'!'") {
            3
        } else if " (),=<>?~".contains(c) {
            1
        } else {
            return Some(rest.to_owned());
        };
        rest = &rest[length..];
    }
    None
}

const PIECES: [&str; 58] = [
    "name",
    "status",
    "id",
    "weight",
    "pieces",
    "fresh",
    "words",
    "key",
    "created_at",
    "stuff",
    "query_stuff",
    "hidden",
    "query_thing",
    "price",
    "nothing",
    ".",
    ".",
    ".",
    "(",
    ")",
    ")",
    ",",
    "'",
    "\"",
    "\\",
    " ",
    "eq",
    "ne",
    "in",
    "notin",
    "lt",
    "ge",
    "between",
    "like",
    "contains",
    "isnull",
    "isempty",
    "isnullorempty",
    "regexp",
    "startswith",
    "1",
    "-1.5",
    "true",
    "%",
    "_",
    "!",
    ";",
    "--",
    "DROP TABLE x",
    "' OR 1=1",
    "é",
    "\u{1f680}",
    "\t",
    "2026-01-01T00:00:00Z",
    "-",
    "+",
    "user",
    "NULL",
];

const KEYS: [&str; 18] = [
    "filter",
    "filter",
    "filter",
    "filter",
    "filter_any",
    "order_by",
    "order",
    "search",
    "limit",
    "offset",
    "scope",
    "total",
    "exclude",
    "field",
    "distinct_field",
    "marker",
    "name",
    "stuff.name",
];

fn anything(random: &mut StdRng) -> String {
    let n = random.random_range(0..9);
    match random.random_range(0..8) {
        // Mostly right.
        0..4 => {
            let piece = |random: &mut StdRng| PIECES[random.random_range(0..PIECES.len())];
            let way = if random.random_bool(0.2) { "stuff." } else { "" };
            let (field, op) = (PIECES[random.random_range(0..9)], PIECES[random.random_range(26..40)]);
            let value: String = (0..n / 3).map(|_| piece(random)).collect();
            let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
            format!("{way}{field}.{op}('{quoted}')")
        }
        4..7 => (0..n).map(|_| PIECES[random.random_range(0..PIECES.len())]).collect(),
        _ => (0..n).map(|_| random.random::<char>()).collect(),
    }
}

#[test]
fn nothing_that_comes_in_panics_or_becomes_sql() {
    let registry = Registry::collect();
    let mut known: Vec<&str> = Vec::new();
    for meta in [Thing::meta(), Stuff::meta()] {
        let meta: &'static Meta = meta;
        known.push(meta.table());
        known.extend(meta.stored().filter(|f| f.name != "key").map(|f| f.name));
    }
    // The columns that are read are all of them; not what is asked by.
    let columns = Thing::meta().columns();
    let mut random = StdRng::seed_from_u64(20_261_121);
    let mut good = 0;
    for _ in 0..20_000 {
        let n = random.random_range(1..5);
        let params: Vec<(&str, String)> = (0..n)
            .map(|_| {
                let key = KEYS[random.random_range(0..KEYS.len())];
                let value = match key {
                    "filter_any" | "total" => "true".to_owned(),
                    "limit" | "offset" => random.random_range(0..2000).to_string(),
                    "order_by" | "field" | "exclude" | "distinct_field" if random.random_bool(0.8) => {
                        PIECES[random.random_range(0..9)].to_owned()
                    }
                    _ => anything(&mut random),
                };
                (key, value)
            })
            .collect();
        let borrowed: Vec<_> = params.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let dialect = if random.random_bool(0.5) { Dialect::Sqlite } else { Dialect::Postgres };
        match read(&registry, Access::User, dialect, &borrowed) {
            Ok(request) => {
                good += 1;
                let text = sql(&request, Access::User, dialect).replace(columns, "\"id\"");
                assert_eq!(unknown_piece(&text, &known), None, "{params:?}: {text}");
            }
            Err(error) => {
                assert!([400, 403].contains(&error.kind().status()), "{params:?}: {error}");
                assert_eq!(error.field_errors().len(), 1, "{params:?}: {error}");
            }
        }
    }
    assert!(good > 2_000, "only {good} of them were understood: the test tests little");
    assert_eq!(unknown_piece("SELECT \"id\" FROM x", &known).as_deref(), Some("x"));
    assert_eq!(unknown_piece("WHERE \"key\" = 'x'", &known).as_deref(), Some("\"key\""));
}
