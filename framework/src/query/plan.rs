//! What a list that was read asks of the database: what it may cost, and its
//! statements.

use super::cond::{self, Cond};
use super::order::{self, Order};
use super::scope::Owner;
use super::select::{Marked, Query, Select};
use super::{ListRequest, Params};
use crate::ctx::Tx;
use crate::db::{Cost, Value};
use crate::model::{Meta, Record, Scope};
use crate::{Error, Kind, Result};

impl ListRequest {
    /// Whether the database can answer it in bounded time: by ids, or along
    /// an index of `(field, created_at, id)` or `(field)`, as `index` and
    /// `unique` of a field promise them. What is not sure is unbounded.
    #[must_use]
    pub fn cost(&self, meta: &Meta) -> Cost {
        let odd = !self.filters.is_empty()
            || self.search.is_some()
            || self.total
            || self.export.is_some()
            || !self.distinct.is_empty()
            || self.owner.is_some()
            || !self.tagged.is_empty()
            || self.pending == Marked::Only
            || self.deleted != Marked::Hidden;
        // A log of everything, of which a hook picks what the caller may see.
        let picked = meta.source.unlogged && meta.source.scope == Scope::All;
        if odd || picked || self.plain.iter().any(|(_, values)| values.len() > 100) {
            return Cost::Unbounded;
        }
        if self.plain.iter().any(|(field, _)| field.unique) {
            return Cost::Bounded;
        }
        let indexed = |name: &str| meta.field(name).is_some_and(|f| f.index);
        let first = self.order[0].column;
        let ordered = indexed(first) && (self.order.len() == 1 || self.order[1].column == "id");
        let filtered = match self.plain.as_slice() {
            [] => true,
            [(field, values)] => field.index && values.len() == 1 && matches!(first, "created_at" | "id"),
            _ => false,
        };
        if self.near && self.offset <= 1000 && ordered && filtered { Cost::Bounded } else { Cost::Unbounded }
    }

    /// The query, with one row more than the page: it tells whether there is
    /// more that way. A page before a marker comes in reverse.
    pub(crate) fn select<T: Record>(&self, tx: &mut Tx<'_>) -> Result<Select<T>> {
        let after = self.start::<T>(tx)?;
        self.select_after(tx, after.as_deref(), self.limit + 1)
    }

    /// The query of so many rows from a position on.
    pub(crate) fn select_after<T: Record>(
        &self,
        tx: &mut Tx<'_>,
        after: Option<&[Value<'static>]>,
        limit: i64,
    ) -> Result<Select<T>> {
        let mut query = self.paged(T::meta(), after, limit);
        cond::resolve(tx, &mut query.conds)?;
        Ok(Select::of(query))
    }

    fn paged(&self, meta: &Meta, after: Option<&[Value<'static>]>, limit: i64) -> Query {
        let reversed = |o: &Order| if self.back { o.reversed() } else { *o };
        let mut query = self.query(meta);
        query.order = self.order.iter().map(reversed).collect();
        if let Some(values) = after {
            query.conds.push(Cond::After(query.order.clone(), values.to_vec()));
        }
        query.limit = Some(limit);
        query.offset = self.offset;
        query
    }

    #[cfg(test)]
    pub(super) fn page(&self, meta: &Meta) -> Query {
        self.paged(meta, self.after.as_deref(), self.limit + 1)
    }

    /// The query without paging: to count, to group, or to go over all.
    pub(crate) fn conditions<T: Record>(&self, tx: &mut Tx<'_>) -> Result<Select<T>> {
        let mut query = self.query(T::meta());
        cond::resolve(tx, &mut query.conds)?;
        Ok(Select::of(query))
    }

    fn query(&self, meta: &Meta) -> Query {
        let mut conds = Vec::with_capacity(self.plain.len() + self.filters.len() + 4);
        conds.extend(self.owner.clone().and_then(Owner::cond));
        conds.extend(self.tagged.iter().map(|it| Cond::Within("id", it.ids(meta), it.has)));
        conds.extend(self.plain.iter().map(|(field, values)| match values.as_slice() {
            [one] => Cond::Compare(field.name, "=", one.clone()),
            many => Cond::In(field.name, many.to_vec()),
        }));
        conds.extend(self.filters.iter().cloned());
        conds.extend(self.search.clone());
        // Kept prepared is what is asked often and has few forms.
        let indexed = |name: &str| meta.field(name).is_some_and(|f| f.index);
        let few = self.filters.is_empty()
            && self.tagged.is_empty()
            && self.plain.len() <= 2
            && self.plain.iter().all(|(field, _)| field.index)
            && self.order.len() <= 2
            && self.order.iter().all(|o| indexed(o.column));
        Query { conds, deleted: self.deleted, pending: self.pending, rare: !few, ..Query::default() }
    }

    /// A query for `distinct_field`, with one row more than the page.
    pub(crate) fn distinct_select<T: Record>(&self, tx: &mut Tx<'_>) -> Result<Select<T>> {
        let mut select = self.conditions::<T>(tx)?;
        select.query.order = self.distinct.iter().map(|field| Order::by(field, false)).collect();
        select.query.limit = Some(self.limit + 1);
        select.query.offset = self.offset;
        select.query.rare = true;
        Ok(select)
    }

    /// Where the page after this one begins, if there is one.
    pub(crate) fn next_offset(&self) -> i64 {
        self.offset.saturating_add(self.limit)
    }

    /// Whether rows come before the page's first, as far as the request tells.
    pub(crate) fn begins_later(&self) -> bool {
        self.after.is_some() || self.offset > 0
    }

    /// Where the client wants it to begin.
    pub(crate) fn start<T: Record>(&self, tx: &mut Tx<'_>) -> Result<Option<Vec<Value<'static>>>> {
        let mut after = self.after.clone();
        if let Some(values) = after.as_mut().filter(|_| !self.cut.is_empty()) {
            let id = self.order.iter().position(|o| o.column == "id").map(|at| values[at].clone());
            let row = match id {
                Some(id) => Select::<T>::new().with_deleted().pending(Marked::Any).eq("id", id).one(tx)?,
                None => None,
            };
            let now = row.map(|row| self.position(&row));
            order::complete(values, &self.cut, &self.order, self.back, now);
        }
        Ok(after)
    }

    /// The marker of the page after this row, or before it.
    pub(crate) fn marker<T: Record>(&self, row: &T, back: bool) -> String {
        order::marker(&self.order, row, back)
    }

    /// The position after this row.
    pub(crate) fn position<T: Record>(&self, row: &T) -> Vec<Value<'static>> {
        order::position(&self.order, row).into_iter().map(Value::into_owned).collect()
    }

    /// Refuses what only a page of rows has, for answers that are none.
    ///
    /// # Errors
    /// 400 that names the parameter.
    pub(crate) fn only_conditions(params: &Params<'_>) -> Result<()> {
        const PAGE: [&str; 13] = [
            "field",
            "exclude",
            "limit",
            "offset",
            "marker",
            "order_by",
            "order",
            "details",
            "total",
            "distinct_field",
            "export",
            "tags",
            "watch",
        ];
        match params.iter().find(|(key, _)| PAGE.contains(&key.as_ref())) {
            Some((key, _)) => Err(Error::field(key.clone().into_owned(), "is for lists of rows only")),
            None => Ok(()),
        }
    }

    /// An error of the statement as the client may read it: what a database
    /// does not take of a pattern is the client's fault, not ours.
    pub(crate) fn blame(&self, error: Error) -> Error {
        if self.regexp && error.kind() == Kind::Internal {
            return Error::field("filter", "the database does not take this pattern of regexp")
                .caused_by(error);
        }
        error
    }
}
