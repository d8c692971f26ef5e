//! From the list grammar to one statement. Names come from `'static` metadata
//! only, values are always bound, and a name that the caller may not list does
//! not exist for them.

use std::borrow::Cow;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::auth::{Access, UserCred};
use crate::ctx::{Tx, value_json};
use crate::db::{self, ColumnType, Cost, Dialect, FromRow, RowReader, Sql, Value};
use crate::model::{Field, Meta, Record, Scope};
use crate::{Error, Result};

/// Rows of a page when the client does not say.
pub const DEFAULT_LIMIT: i64 = 100;
/// Most rows of a page, whatever the client says.
pub const MAX_LIMIT: i64 = 1000;

/// Parameters of a request, decoded.
pub type Params<'a> = [(Cow<'a, str>, Cow<'a, str>)];

enum Cond {
    Compare(&'static str, &'static str, Value<'static>),
    In(&'static str, Vec<Value<'static>>),
    IdOrName(String),
    Search(Vec<&'static str>, String),
    AnyOf(Vec<(&'static str, Value<'static>)>),
    After(Vec<Order>, Vec<Value<'static>>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Order {
    column: &'static str,
    desc: bool,
    nullable: bool,
}

/// A query over the rows of a type, for hooks and for the dispatcher.
pub struct Select<T> {
    conds: Vec<Cond>,
    order: Vec<Order>,
    limit: Option<i64>,
    offset: i64,
    scope: Option<Option<UserScope>>,
    deleted: bool,
    for_update: bool,
    key_share: bool,
    of: PhantomData<fn() -> T>,
}

pub(crate) struct UserScope {
    pub(crate) column: &'static str,
    pub(crate) value: String,
}

impl<T: Record> Default for Select<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Record> Select<T> {
    /// All living rows that the transaction's caller may see.
    #[must_use]
    pub fn new() -> Self {
        Self {
            conds: Vec::new(),
            order: Vec::new(),
            limit: None,
            offset: 0,
            scope: None,
            deleted: false,
            for_update: false,
            key_share: false,
            of: PhantomData,
        }
    }

    /// Rows of everybody: for hooks that count or look up for the platform.
    #[must_use]
    pub fn unscoped(mut self) -> Self {
        self.scope = Some(None);
        self
    }

    /// Rows that are marked as deleted, too: for the platform's own clean-up.
    #[must_use]
    pub fn with_deleted(mut self) -> Self {
        self.deleted = true;
        self
    }

    /// Only rows whose field equals the value.
    #[must_use]
    pub fn eq(self, field: &'static str, value: impl Into<Value<'static>>) -> Self {
        self.compare(field, "=", value)
    }

    /// Only rows whose field differs from the value.
    #[must_use]
    pub fn ne(self, field: &'static str, value: impl Into<Value<'static>>) -> Self {
        self.compare(field, "<>", value)
    }

    /// Adds a condition in a hook that has only a reference.
    pub fn narrow(&mut self, field: &'static str, value: impl Into<Value<'static>>) {
        self.conds.push(Cond::Compare(field, "=", value.into()));
    }

    /// Adds a condition in a hook that has only a reference: one of these.
    pub fn narrow_in<V: Into<Value<'static>>>(
        &mut self,
        field: &'static str,
        values: impl IntoIterator<Item = V>,
    ) {
        self.conds.push(Cond::In(field, values.into_iter().map(Into::into).collect()));
    }

    /// Adds that at least one of the fields has its value.
    pub fn narrow_any(&mut self, of: Vec<(&'static str, Value<'static>)>) {
        self.conds.push(Cond::AnyOf(of));
    }

    /// Only rows whose id is larger: to walk a table in pieces.
    #[must_use]
    pub(crate) fn after_id(self, id: &str) -> Self {
        self.compare("id", ">", id.to_owned())
    }

    /// Whether a row of which nothing but its id is known would be found: only
    /// if no condition asks for more.
    pub(crate) fn admits(&self, id: &str) -> bool {
        let by_id = |cond: &Cond| matches!(cond, Cond::Compare("id", "=", it) if *it == Value::from(id));
        self.conds.iter().all(by_id)
    }

    fn compare(mut self, field: &'static str, op: &'static str, value: impl Into<Value<'static>>) -> Self {
        self.conds.push(Cond::Compare(field, op, value.into()));
        self
    }

    /// Only rows whose field is one of the values.
    #[must_use]
    pub fn is_in<V: Into<Value<'static>>>(
        mut self,
        field: &'static str,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        self.conds.push(Cond::In(field, values.into_iter().map(Into::into).collect()));
        self
    }

    /// Only the row with that id, or, where rows have names, that name.
    #[must_use]
    pub fn id_or_name(mut self, id: &str) -> Self {
        // What looks like an id is one: an index on names need not be asked.
        let named = T::meta().has("name") && uuid::Uuid::try_parse(id).is_err();
        self.conds.push(if named {
            Cond::IdOrName(id.to_owned())
        } else {
            Cond::Compare("id", "=", id.to_owned().into())
        });
        self
    }

    /// At most so many rows.
    #[must_use]
    pub fn limit(mut self, limit: i64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Ordered by a field.
    #[must_use]
    pub fn order(mut self, field: &'static str, desc: bool) -> Self {
        let nullable = T::meta().field(field).is_some_and(|f| f.nullable);
        self.order.push(Order { column: field, desc, nullable });
        self
    }

    /// Keeps the rows from being deleted to the transaction's end.
    #[must_use]
    pub(crate) fn for_key_share(mut self) -> Self {
        self.key_share = true;
        self
    }

    /// Locks the rows to the transaction's end (on SQLite they are).
    #[must_use]
    pub fn for_update(mut self) -> Self {
        self.for_update = true;
        self
    }

    fn where_clause(&mut self, sql: &mut Sql<'static>, cred: &UserCred) {
        let meta = T::meta();
        let mut word = " WHERE ";
        let mut and = |sql: &mut Sql<'static>| {
            sql.push(word);
            word = " AND ";
        };
        let scope = self.scope.take().unwrap_or_else(|| scope_of(meta, cred));
        if let Some(scope) = scope {
            and(sql);
            sql.push("\"").push(scope.column).push("\" = ").bind(scope.value);
        }
        if !self.deleted && meta.has("deleted") {
            and(sql);
            sql.push("\"deleted\" = FALSE");
        }
        for cond in self.conds.drain(..) {
            and(sql);
            match cond {
                Cond::Compare(column, op, value) => {
                    sql.push("\"").push(column).push("\" ").push(op).push(" ").bind(value);
                }
                Cond::In(column, values) => {
                    sql.push("\"").push(column).push("\" IN ").list(values);
                }
                Cond::IdOrName(id) => {
                    sql.push("(\"id\" = ").bind(id.clone()).push(" OR \"name\" = ").bind(id).push(")");
                }
                Cond::Search(columns, text) => {
                    let escaped = text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
                    let pattern = format!("%{escaped}%");
                    let mut open = "(";
                    for column in columns {
                        sql.push(open)
                            .push("LOWER(\"")
                            .push(column)
                            .push("\") LIKE LOWER(")
                            .bind(pattern.clone());
                        sql.push(") ESCAPE '\\'");
                        open = " OR ";
                    }
                    sql.push(")");
                }
                Cond::AnyOf(of) => {
                    let mut open = "(";
                    for (column, value) in of {
                        sql.push(open).push("\"").push(column).push("\" = ").bind(value);
                        open = " OR ";
                    }
                    sql.push(if open == "(" { "FALSE" } else { ")" });
                }
                Cond::After(order, values) => after(sql, &order, &values),
            }
        }
    }

    fn statement(mut self, what: &str, cred: &UserCred, dialect: Dialect) -> Sql<'static> {
        let mut sql = Sql::new("SELECT ");
        sql.push(what.to_owned()).push(" FROM \"").push(T::meta().table()).push("\"");
        self.where_clause(&mut sql, cred);
        let mut word = " ORDER BY ";
        for order in &self.order {
            let direction = if order.desc { " DESC" } else { "" };
            sql.push(word);
            if order.nullable {
                // Databases differ in where NULL stands; here it is the largest.
                sql.push("(\"").push(order.column).push("\" IS NULL)").push(direction).push(", ");
            }
            sql.push("\"").push(order.column).push("\"").push(direction);
            word = ", ";
        }
        if let Some(limit) = self.limit {
            sql.push(" LIMIT ").bind(limit);
        }
        if self.offset > 0 {
            sql.push(" OFFSET ").bind(self.offset);
        }
        if self.for_update && dialect == Dialect::Postgres {
            sql.push(" FOR UPDATE");
        } else if self.key_share && dialect == Dialect::Postgres {
            sql.push(" FOR KEY SHARE");
        }
        sql
    }

    /// The rows.
    ///
    /// # Errors
    /// What the database says.
    pub fn rows(self, tx: &mut Tx<'_>) -> Result<Vec<T>> {
        let meta = T::meta();
        let fenced = meta.fenced() && db::generation().is_none();
        let what = if fenced {
            format!("{}, (SELECT \"generation\" FROM \"cache_generation\")", meta.columns())
        } else {
            meta.columns().to_owned()
        };
        let sql = self.statement(&what, tx.cred(), tx.conn.dialect());
        if fenced {
            let rows: Vec<Fenced<T>> = db::load(tx.conn, sql)?;
            if let Some(row) = rows.first() {
                db::set_generation(row.generation);
            }
            return Ok(rows.into_iter().map(|row| row.row).collect());
        }
        let rows: Vec<Plain<T>> = db::load(tx.conn, sql)?;
        Ok(rows.into_iter().map(|row| row.0).collect())
    }

    /// The only row, or the first.
    ///
    /// # Errors
    /// What the database says.
    pub fn one(self, tx: &mut Tx<'_>) -> Result<Option<T>> {
        Ok(self.limit(1).rows(tx)?.into_iter().next())
    }

    /// How many rows.
    ///
    /// # Errors
    /// What the database says.
    pub fn count(mut self, tx: &mut Tx<'_>) -> Result<i64> {
        self.order.clear();
        let sql = self.statement("COUNT(*)", tx.cred(), tx.conn.dialect());
        Ok(db::load_one::<(i64,)>(tx.conn, sql)?.map_or(0, |(n,)| n))
    }
}

struct Plain<T>(T);

impl<T: Record> FromRow for Plain<T> {
    fn from_row(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        T::read(row).map(Self)
    }
}

/// A row that carries the caches' generation of its moment.
struct Fenced<T> {
    row: T,
    generation: Option<i64>,
}

impl<T: Record> FromRow for Fenced<T> {
    fn from_row(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        Ok(Self { row: T::read(row)?, generation: row.int()? })
    }
}

/// The condition that keeps a caller to their rows.
pub(crate) fn scope_of(meta: &Meta, cred: &UserCred) -> Option<UserScope> {
    let scope = |column, value: &String| Some(UserScope { column, value: value.clone() });
    match (meta.source.scope, cred.level) {
        (Scope::All, _) | (_, Access::Admin) => None,
        (_, Access::Domain) => scope("domain_id", &cred.domain_id),
        (Scope::Project, _) => scope("project_id", &cred.project_id),
        (Scope::User, _) => scope("user_id", &cred.user_id),
    }
}

/// `(a, b) > (x, y)`, written so that an index on `(a, b)` serves it where
/// all directions are the same and no column is nullable.
fn after(sql: &mut Sql<'static>, order: &[Order], values: &[Value<'static>]) {
    let same = order.iter().all(|o| !o.nullable && o.desc == order[0].desc);
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
    for i in 0..order.len() {
        sql.push(if i == 0 { "(" } else { " OR " });
        for j in 0..=i {
            sql.push(if j == 0 { "(" } else { " AND " });
            let (o, value) = (order[j], &values[j]);
            let column = |sql: &mut Sql<'static>| {
                sql.push("\"").push(o.column).push("\"");
            };
            match (j == i, value.is_null(), o.desc) {
                (false, true, _) => {
                    column(sql);
                    sql.push(" IS NULL");
                }
                (false, false, _) => {
                    column(sql);
                    sql.push(" = ").bind(value.clone());
                }
                // NULL is the largest: nothing comes after it upwards.
                (true, true, false) => {
                    sql.push("FALSE");
                }
                (true, true, true) => {
                    column(sql);
                    sql.push(" IS NOT NULL");
                }
                (true, false, desc) => {
                    sql.push("(");
                    column(sql);
                    sql.push(if desc { " < " } else { " > " }).bind(value.clone());
                    if o.nullable && !desc {
                        sql.push(" OR ");
                        column(sql);
                        sql.push(" IS NULL");
                    }
                    sql.push(")");
                }
            }
        }
        sql.push(")");
    }
    sql.push(")");
}

/// A list as the client asked for it, checked.
pub struct ListRequest {
    filters: Vec<(&'static Field, Vec<Value<'static>>)>,
    search: Option<String>,
    order: Vec<Order>,
    /// Rows of the page.
    pub limit: i64,
    offset: i64,
    after: Option<Vec<Value<'static>>>,
    /// Bits of the fields to show.
    pub mask: u64,
    /// Names of the extra columns to show; `None`: all.
    pub extra: Option<Vec<String>>,
    /// Whether the number of all rows was asked for.
    pub total: bool,
}

fn text_of(field: &Field, text: &str) -> Result<Value<'static>> {
    let wrong = |what: &str| Error::field(field.name, format!("{text:?} is not {what}"));
    Ok(match field.column {
        ColumnType::Text | ColumnType::Json => text.to_owned().into(),
        ColumnType::Int => text.parse::<i64>().map_err(|_| wrong("an integer"))?.into(),
        ColumnType::Float => {
            let value =
                text.parse::<f64>().ok().filter(|v| v.is_finite()).ok_or_else(|| wrong("a number"))?;
            Value::Float(Some(value))
        }
        ColumnType::Bool => match text {
            "true" => true.into(),
            "false" => false.into(),
            _ => return Err(wrong("true or false")),
        },
        ColumnType::Time => {
            let time = chrono::DateTime::parse_from_rfc3339(text)
                .map_err(|_| wrong("a time like 2026-01-31T12:00:00Z"))?;
            time.to_utc().into()
        }
    })
}

/// The fields and extra columns that `field=` parameters name.
pub(crate) fn selection(
    meta: &Meta,
    params: &Params<'_>,
    visible: u64,
) -> Result<(u64, Option<Vec<String>>)> {
    let mut fields: Vec<&str> = Vec::new();
    let mut extra: Vec<String> = Vec::new();
    let mut any = false;
    for (_, value) in params.iter().filter(|(key, _)| key == "field") {
        for name in value.split(',').map(str::trim) {
            any = true;
            match meta.fields().iter().enumerate().find(|(_, f)| f.name == name) {
                Some((i, f)) if visible >> i & 1 == 1 => fields.push(f.name),
                _ if meta.source.extra.iter().any(|(n, _)| *n == name) => extra.push(name.to_owned()),
                _ => {
                    return Err(Error::field(
                        "field",
                        format!("{name:?} is not a field of {}", meta.keyword()),
                    ));
                }
            }
        }
    }
    if !any {
        return Ok((visible, None));
    }
    Ok((meta.mask_of(&fields) & visible, Some(extra)))
}

/// Reads the list grammar.
///
/// # Errors
/// 400 that names the parameter.
pub fn parse(meta: &Meta, params: &Params<'_>, caller: Access) -> Result<ListRequest> {
    let visible = meta.list_mask(caller);
    let (mask, extra) = selection(meta, params, visible)?;
    let mut it = ListRequest {
        filters: Vec::new(),
        search: None,
        order: Vec::new(),
        limit: DEFAULT_LIMIT,
        offset: 0,
        after: None,
        mask,
        extra,
        total: false,
    };
    let listed = |name: &str| {
        let field = meta.field(name)?;
        (field.stored && field.list.allows(caller)).then_some(field)
    };
    let (mut desc, mut names, mut marker) = (None, Vec::new(), None);
    for (i, (key, value)) in params.iter().enumerate() {
        let once = ["limit", "offset", "marker", "search", "order", "details"].contains(&key.as_ref());
        if once && params[..i].iter().any(|(k, _)| k == key) {
            return Err(Error::field(key.clone().into_owned(), "is given twice"));
        }
        let number = || {
            value.parse::<i64>().ok().filter(|n| *n >= 0).ok_or_else(|| {
                Error::field(key.clone().into_owned(), format!("{value:?} is not a whole number from 0"))
            })
        };
        match key.as_ref() {
            "field" => {}
            "limit" => match number()? {
                0 => return Err(Error::field("limit", "must be at least 1")),
                n => it.limit = n.min(MAX_LIMIT),
            },
            "offset" => it.offset = number()?,
            "marker" => marker = Some(value.as_ref()),
            "search" => it.search = Some(value.to_string()),
            "order_by" => names.extend(value.split(',').map(str::trim)),
            "order" => {
                desc = Some(match value.as_ref() {
                    "asc" => false,
                    "desc" => true,
                    _ => return Err(Error::field("order", format!("{value:?} is neither asc nor desc"))),
                });
            }
            "details" => match value.as_ref() {
                "total" => it.total = true,
                "true" => {}
                "false" => it.extra = it.extra.or_else(|| Some(Vec::new())),
                _ => return Err(Error::field("details", "must be true, false or total")),
            },
            name => {
                let Some(field) = listed(name) else {
                    return Err(Error::field(name, "is not a known parameter or field"));
                };
                let value = text_of(field, value)?;
                match it.filters.iter_mut().find(|(f, _)| f.name == field.name) {
                    Some((_, values)) => values.push(value),
                    None => it.filters.push((field, vec![value])),
                }
            }
        }
    }
    for name in names {
        let Some(field) = listed(name) else {
            return Err(Error::field("order_by", format!("{name:?} is not a field of {}", meta.keyword())));
        };
        if it.order.iter().any(|o| o.column == field.name) {
            return Err(Error::field("order_by", format!("{name:?} stands there twice")));
        }
        it.order.push(Order { column: field.name, desc: desc.unwrap_or(false), nullable: field.nullable });
    }
    if it.order.is_empty() {
        // The newest first, unless told otherwise.
        it.order.push(Order { column: "created_at", desc: desc.unwrap_or(true), nullable: false });
    }
    // Ties are broken by the id, in the last field's direction, so that pages neither repeat nor skip.
    if it.order.last().is_some_and(|o| o.column != "id") {
        let desc = it.order.last().is_some_and(|o| o.desc);
        it.order.push(Order { column: "id", desc, nullable: false });
    }
    if let Some(marker) = marker {
        if it.offset > 0 {
            return Err(Error::field("offset", "does not go with marker"));
        }
        it.after = Some(read_marker(meta, &it.order, marker)?);
    }
    Ok(it)
}

impl ListRequest {
    /// Whether the database can answer it in bounded time.
    #[must_use]
    pub fn cost(&self, meta: &Meta) -> Cost {
        let indexed = |name: &str| meta.field(name).is_some_and(|f| f.index);
        let ordered = self.order.iter().all(|o| indexed(o.column));
        // A log of everything, of which a hook picks what the caller may see.
        let picked = meta.source.unlogged && meta.source.scope == Scope::All;
        let filtered = self.filters.is_empty() || self.filters.iter().any(|(f, _)| f.index);
        if picked || self.search.is_some() || self.total || self.offset > 1000 || !ordered || !filtered {
            return Cost::Unbounded;
        }
        Cost::Bounded
    }

    /// The query, with one row more than the page: it tells whether there is a next.
    pub(crate) fn select<T: Record>(&self) -> Select<T> {
        let mut select = self.conditions::<T>();
        if let Some(values) = &self.after {
            select.conds.push(Cond::After(self.order.clone(), values.clone()));
        }
        select.order.clone_from(&self.order);
        select.limit = Some(self.limit + 1);
        select.offset = self.offset;
        select
    }

    /// The query without paging, to count.
    pub(crate) fn conditions<T: Record>(&self) -> Select<T> {
        let mut select = Select::new();
        for (field, values) in &self.filters {
            select.conds.push(match values.as_slice() {
                [one] => Cond::Compare(field.name, "=", one.clone()),
                many => Cond::In(field.name, many.to_vec()),
            });
        }
        if let Some(text) = &self.search {
            let columns: Vec<_> = T::meta().stored().filter(|f| f.search).map(|f| f.name).collect();
            if !columns.is_empty() {
                select.conds.push(Cond::Search(columns, text.clone()));
            }
        }
        select
    }

    /// The marker of the page after this row.
    pub(crate) fn marker<T: Record>(&self, last: &T) -> String {
        let mut values = Vec::new();
        last.write(&mut values);
        let of = |o: &Order| {
            let at = T::meta().stored().position(|f| f.name == o.column);
            at.and_then(|i| values.get(i)).map_or(serde_json::Value::Null, value_json)
        };
        let marker = serde_json::json!([
            order_text(T::meta(), &self.order),
            self.order.iter().map(of).collect::<Vec<_>>()
        ]);
        URL_SAFE_NO_PAD.encode(marker.to_string())
    }
}

fn order_text(meta: &Meta, order: &[Order]) -> String {
    let term = |o: &Order| format!("{}{}", if o.desc { "-" } else { "" }, o.column);
    format!("{}:{}", meta.plural(), order.iter().map(term).collect::<Vec<_>>().join(","))
}

fn read_marker(meta: &Meta, order: &[Order], marker: &str) -> Result<Vec<Value<'static>>> {
    let wrong = || Error::field("marker", "is not a next_marker of this list in this order");
    let bytes = URL_SAFE_NO_PAD.decode(marker).map_err(|_| wrong())?;
    let (of, values): (String, Vec<serde_json::Value>) =
        serde_json::from_slice(&bytes).map_err(|_| wrong())?;
    if of != order_text(meta, order) || values.len() != order.len() {
        return Err(wrong());
    }
    let value = |(o, value): (&Order, serde_json::Value)| {
        let field = meta.field(o.column).ok_or_else(wrong)?;
        use serde_json::Value as Json;
        Ok(match (field.column, value) {
            (ColumnType::Text | ColumnType::Json, Json::Null) => Value::Text(None),
            (ColumnType::Text | ColumnType::Json, Json::String(text)) if !text.contains('\0') => text.into(),
            (ColumnType::Int | ColumnType::Time, Json::Null) => Value::Int(None),
            (ColumnType::Int | ColumnType::Time, Json::Number(n)) => n.as_i64().ok_or_else(wrong)?.into(),
            (ColumnType::Float, Json::Null) => Value::Float(None),
            (ColumnType::Float, Json::Number(n)) => Value::Float(n.as_f64()),
            (ColumnType::Bool, Json::Null) => Value::Bool(None),
            (ColumnType::Bool, Json::Bool(b)) => b.into(),
            _ => return Err(wrong()),
        })
    };
    order.iter().zip(values).map(value).collect()
}
