//! [`Select`]: a statement over the rows of one type. What it does without
//! the type is in [`Query`], which is compiled once.

use std::marker::PhantomData;

use super::cond::{Cond, Visible};
use super::order::{self, Order};
use super::scope;
use crate::Result;
use crate::auth::UserCred;
use crate::ctx::Tx;
use crate::db::{self, Dialect, FromRow, RowReader, Sql, Value};
use crate::model::{Meta, Record};

/// Which rows, by a mark on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Marked {
    /// Those without it.
    #[default]
    Hidden,
    /// Both.
    Any,
    /// Only those with it.
    Only,
}

impl Marked {
    pub(super) fn cond(self, column: &'static str) -> Option<Cond> {
        match self {
            Self::Hidden => Some(Cond::Compare(column, "=", false.into())),
            Self::Any => None,
            Self::Only => Some(Cond::Compare(column, "=", true.into())),
        }
    }
}

/// A statement, whatever the type.
#[derive(Debug, Clone, Default)]
pub(super) struct Query {
    pub(super) conds: Vec<Cond>,
    pub(super) order: Vec<Order>,
    pub(super) limit: Option<i64>,
    pub(super) offset: i64,
    pub(super) unscoped: bool,
    pub(super) deleted: Marked,
    /// Of a type with a trash.
    pub(super) pending: Marked,
    /// Not worth keeping prepared.
    pub(super) rare: bool,
    pub(super) for_update: bool,
    pub(super) key_share: bool,
}

impl Query {
    /// The conditions that the caller did not ask for.
    fn own(&self, meta: &Meta, cred: &UserCred) -> impl Iterator<Item = Cond> {
        let scope = if self.unscoped { None } else { scope::of(meta, cred).cond() };
        let scope = scope.map(|own| scope::or_shared(own, meta, cred));
        let deleted = if meta.has("deleted") { self.deleted } else { Marked::Any };
        let pending = if meta.trash() { self.pending } else { Marked::Any };
        scope.into_iter().chain(deleted.cond("deleted")).chain(pending.cond("pending_deleted"))
    }

    fn where_clause(&mut self, sql: &mut Sql<'static>, meta: &Meta, cred: &UserCred, dialect: Dialect) {
        let mut word = " WHERE ";
        if !self.unscoped
            && let scope::Owner::Of(column, value) = scope::of(meta, cred)
        {
            sql.push(word);
            if meta.shared() {
                scope::or_shared(Cond::Compare(column, "=", value.into()), meta, cred).write(sql, dialect);
            } else {
                sql.push("\"").push(column).push("\" = ").bind(value);
            }
            word = " AND ";
        }
        if self.deleted != Marked::Any && meta.has("deleted") {
            // Written out: it is by this word that a database knows its partial index.
            let is =
                if self.deleted == Marked::Hidden { "\"deleted\" = FALSE" } else { "\"deleted\" = TRUE" };
            sql.push(word).push(is);
            word = " AND ";
        }
        if self.pending != Marked::Any && meta.trash() {
            let is = match self.pending {
                Marked::Hidden => "\"pending_deleted\" = FALSE",
                _ => "\"pending_deleted\" = TRUE",
            };
            sql.push(word).push(is);
            word = " AND ";
        }
        for cond in self.conds.drain(..) {
            sql.push(word);
            cond.write(sql, dialect);
            word = " AND ";
        }
    }

    /// `SELECT what FROM … WHERE …`.
    fn begin(
        &mut self,
        what: &[&'static str],
        meta: &Meta,
        cred: &UserCred,
        dialect: Dialect,
    ) -> Sql<'static> {
        let mut sql = Sql::new("SELECT ");
        for what in what {
            sql.push(*what);
        }
        sql.push(" FROM \"").push(meta.table()).push("\"");
        self.where_clause(&mut sql, meta, cred, dialect);
        if self.rare {
            sql.unbounded();
        }
        sql
    }

    fn end(&self, sql: &mut Sql<'static>, dialect: Dialect) {
        order::write(sql, &self.order, dialect);
        if let Some(limit) = self.limit {
            sql.push(" LIMIT ").bind(limit);
        }
        if self.offset > 0 {
            sql.push(" OFFSET ").bind(self.offset);
        }
        if self.for_update {
            sql.push(dialect.for_update());
        } else if self.key_share {
            sql.push(dialect.for_key_share());
        }
    }

    /// The whole statement.
    pub(super) fn statement(
        mut self,
        what: &[&'static str],
        meta: &Meta,
        cred: &UserCred,
        dialect: Dialect,
    ) -> Sql<'static> {
        let mut sql = self.begin(what, meta, cred, dialect);
        self.end(&mut sql, dialect);
        sql
    }

    /// `SELECT a, b, COUNT(*) … GROUP BY a, b`, ordered by them.
    pub(super) fn groups(
        mut self,
        columns: &[&'static str],
        meta: &Meta,
        cred: &UserCred,
        dialect: Dialect,
    ) -> Sql<'static> {
        let quoted = |sql: &mut Sql<'static>| {
            for (i, column) in columns.iter().enumerate() {
                sql.push(if i == 0 { "\"" } else { ", \"" }).push(*column).push("\"");
            }
        };
        let mut what = Vec::with_capacity(3 * columns.len() + 1);
        for column in columns {
            what.extend(["\"", *column, "\", "]);
        }
        what.push("COUNT(*)");
        let mut sql = self.begin(&what, meta, cred, dialect);
        sql.push(" GROUP BY ");
        quoted(&mut sql);
        self.end(&mut sql, dialect);
        sql
    }
}

/// A query over the rows of a type, for hooks and for the dispatcher.
pub struct Select<T> {
    pub(super) query: Query,
    of: PhantomData<fn() -> T>,
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
        Self::of(Query::default())
    }

    pub(super) fn of(query: Query) -> Self {
        Self { query, of: PhantomData }
    }

    /// Rows of everybody: for hooks that count or look up for the platform.
    #[must_use]
    pub fn unscoped(mut self) -> Self {
        self.query.unscoped = true;
        self
    }

    /// Rows that are marked as deleted, too: for the platform's own clean-up.
    #[must_use]
    pub fn with_deleted(mut self) -> Self {
        self.query.deleted = Marked::Any;
        self.query.pending = Marked::Any;
        self
    }

    /// Rows in the trash, too, or only those.
    #[must_use]
    pub fn pending(mut self, pending: Marked) -> Self {
        self.query.pending = pending;
        self
    }

    /// Only rows whose field is one of those that a statement gives.
    pub(crate) fn within(&mut self, field: &'static str, values: Sql<'static>) {
        self.query.conds.push(Cond::Within(field, values, true));
    }

    /// `SELECT` of the ids of the rows, for a statement about another table.
    pub(crate) fn ids(self, tx: &Tx<'_>) -> Sql<'static> {
        self.query.statement(&["\"id\""], T::meta(), tx.cred(), tx.conn.dialect())
    }

    /// Only rows whose field equals the value.
    #[must_use]
    pub fn eq(mut self, field: &'static str, value: impl Into<Value<'static>>) -> Self {
        self.narrow(field, value);
        self
    }

    /// Only rows whose field differs from the value.
    #[must_use]
    pub fn ne(mut self, field: &'static str, value: impl Into<Value<'static>>) -> Self {
        self.query.conds.push(Cond::Compare(field, "<>", value.into()));
        self
    }

    /// Adds a condition in a hook that has only a reference.
    pub fn narrow(&mut self, field: &'static str, value: impl Into<Value<'static>>) {
        self.query.conds.push(Cond::Compare(field, "=", value.into()));
    }

    /// Adds a condition in a hook that has only a reference: one of these.
    pub fn narrow_in<V: Into<Value<'static>>>(
        &mut self,
        field: &'static str,
        values: impl IntoIterator<Item = V>,
    ) {
        self.query.conds.push(Cond::In(field, values.into_iter().map(Into::into).collect()));
    }

    /// Adds that at least one of the fields has its value.
    pub fn narrow_any(&mut self, of: Vec<(&'static str, Value<'static>)>) {
        let any = of.into_iter().map(|(field, value)| Cond::Compare(field, "=", value));
        self.query.conds.push(Cond::Any(any.collect()));
    }

    /// The ids that it asks for, if it asks for some.
    pub(crate) fn asked_ids(&self) -> Option<Vec<&str>> {
        self.query.conds.iter().find_map(|cond| match cond {
            Cond::Compare("id", "=", Value::Text(Some(id))) => Some(vec![id.as_ref()]),
            Cond::In("id", values) => values
                .iter()
                .map(|value| if let Value::Text(Some(id)) = value { Some(id.as_ref()) } else { None })
                .collect(),
            _ => None,
        })
    }

    /// Adds that a field lies between two values, both included.
    pub(crate) fn narrow_between(
        &mut self,
        field: &'static str,
        low: impl Into<Value<'static>>,
        high: impl Into<Value<'static>>,
    ) {
        self.query.conds.push(Cond::Between(field, low.into(), high.into()));
    }

    /// Only rows whose id is larger: to walk a table in pieces.
    #[must_use]
    pub(crate) fn after_id(mut self, id: &str) -> Self {
        self.query.conds.push(Cond::Compare("id", ">", id.to_owned().into()));
        self
    }

    /// Whether a row of which nothing but its id is known would be found: only
    /// if no condition asks for more.
    pub(crate) fn admits(&self, id: &str) -> bool {
        let by_id = |cond: &Cond| matches!(cond, Cond::Compare("id", "=", it) if *it == Value::from(id));
        self.query.conds.iter().all(by_id)
    }

    /// Only rows whose field is one of the values.
    #[must_use]
    pub fn is_in<V: Into<Value<'static>>>(
        mut self,
        field: &'static str,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        self.narrow_in(field, values);
        self
    }

    /// Only the row with that id, or, where rows have names, that name.
    #[must_use]
    pub fn id_or_name(mut self, id: &str) -> Self {
        // What looks like an id is one: an index on names need not be asked.
        let named = T::meta().has("name") && uuid::Uuid::try_parse(id).is_err();
        self.query.conds.push(if named {
            Cond::IdOrName(id.to_owned())
        } else {
            Cond::Compare("id", "=", id.to_owned().into())
        });
        self
    }

    /// At most so many rows.
    #[must_use]
    pub fn limit(mut self, limit: i64) -> Self {
        self.query.limit = Some(limit);
        self
    }

    /// Ordered by a field.
    #[must_use]
    pub fn order(mut self, field: &'static str, desc: bool) -> Self {
        let nullable = T::meta().field(field).is_some_and(|f| f.nullable);
        self.query.order.push(Order { column: field, desc, nullable });
        self
    }

    /// Keeps the rows from being deleted to the transaction's end.
    #[must_use]
    pub(crate) fn for_key_share(mut self) -> Self {
        self.query.key_share = true;
        self
    }

    /// Locks the rows to the transaction's end (on SQLite they are).
    #[must_use]
    pub fn for_update(mut self) -> Self {
        self.query.for_update = true;
        self
    }

    /// What keeps the caller to these rows, for conditions on other types
    /// that refer to them.
    pub(crate) fn visible(mut self, cred: &UserCred) -> Visible {
        let mut conds: Vec<_> = self.query.own(T::meta(), cred).collect();
        conds.append(&mut self.query.conds);
        Visible(conds)
    }

    /// The rows.
    ///
    /// # Errors
    /// What the database says.
    pub fn rows(self, tx: &mut Tx<'_>) -> Result<Vec<T>> {
        let meta = T::meta();
        let fenced = meta.fenced() && db::generation().is_none();
        let generation = if fenced { ", (SELECT \"generation\" FROM \"cache_generation\")" } else { "" };
        let dialect = tx.conn.dialect();
        let sql = self.query.statement(&[meta.columns(), generation], meta, tx.cred(), dialect);
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
        self.query.order.clear();
        let sql = self.query.statement(&["COUNT(*)"], T::meta(), tx.cred(), tx.conn.dialect());
        Ok(db::load_one::<(i64,)>(tx.conn, sql)?.map_or(0, |(n,)| n))
    }

    /// How many rows there are of each combination of values of these fields;
    /// the rows are read as the columns and, last, the number.
    pub(crate) fn groups(
        self,
        columns: &[&'static str],
        tx: &mut Tx<'_>,
        read: impl FnMut(&mut RowReader<'_, '_, '_>) -> Result<()>,
    ) -> Result<()> {
        let sql = self.query.groups(columns, T::meta(), tx.cred(), tx.conn.dialect());
        db::each(tx.conn, sql, read)
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
