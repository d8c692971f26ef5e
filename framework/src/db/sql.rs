//! A statement of text and bound values, and its three ways to run. Text
//! comes from `'static` metadata only; whatever a client sent is bound.

use std::borrow::Cow;
use std::marker::PhantomData;

use diesel::connection::{Connection, LoadConnection};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text, Untyped};

use super::{AnyConnection, DOOMED, MultiBackend, RowReader, Value};
use crate::Result;

/// A statement under construction: one text, and where in it the values stand.
#[derive(Debug, Clone, Default)]
pub struct Sql<'a> {
    text: String,
    binds: Vec<(usize, Value<'a>)>,
    unbounded: bool,
}

impl<'a> Sql<'a> {
    /// Begins with a text.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        // What a list of a type with twenty fields takes.
        let mut it =
            Self { text: String::with_capacity(512), binds: Vec::with_capacity(8), unbounded: false };
        it.push(text);
        it
    }

    /// Adds text.
    pub fn push(&mut self, text: impl Into<Cow<'static, str>>) -> &mut Self {
        self.text.push_str(&text.into());
        self
    }

    /// Adds a bound value.
    pub fn bind(&mut self, value: impl Into<Value<'a>>) -> &mut Self {
        self.binds.push((self.text.len(), value.into()));
        self
    }

    /// Adds text (chaining by value).
    #[must_use]
    pub fn text(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.push(text);
        self
    }

    /// Adds a bound value (chaining by value).
    #[must_use]
    pub fn value(mut self, value: impl Into<Value<'a>>) -> Self {
        self.bind(value);
        self
    }

    /// Adds `(v, v, …)`. Its text grows with the values, so the statement is
    /// not kept prepared: the cache must not grow with what clients send.
    pub fn list(&mut self, values: impl IntoIterator<Item = Value<'a>>) -> &mut Self {
        self.unbounded = true;
        let mut open = "(";
        for value in values {
            self.push(open).bind(value);
            open = ", ";
        }
        // `IN ()` is no SQL; no row is in an empty list.
        self.push(if open == "(" { "(NULL)" } else { ")" })
    }

    /// Says that clients can give the text more forms than are worth keeping
    /// prepared.
    pub fn unbounded(&mut self) -> &mut Self {
        self.unbounded = true;
        self
    }

    /// Adds another statement's text and values.
    pub fn append(&mut self, other: Sql<'a>) -> &mut Self {
        self.unbounded |= other.unbounded;
        let start = self.text.len();
        self.text.push_str(&other.text);
        self.binds.extend(other.binds.into_iter().map(|(at, value)| (start + at, value)));
        self
    }

    /// With values of its own.
    pub(crate) fn into_owned(self) -> Sql<'static> {
        let binds = self.binds.into_iter().map(|(at, value)| (at, value.into_owned())).collect();
        Sql { text: self.text, binds, unbounded: self.unbounded }
    }

    /// The text with `?` where values stand.
    pub(crate) fn shape(&self) -> String {
        let (mut shape, mut from) = (String::new(), 0);
        for (at, _) in &self.binds {
            shape.push_str(&self.text[from..*at]);
            shape.push('?');
            from = *at;
        }
        shape.push_str(&self.text[from..]);
        shape
    }
}

impl QueryFragment<MultiBackend> for Sql<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, MultiBackend>) -> QueryResult<()> {
        if self.unbounded {
            out.unsafe_to_cache_prepared();
        }
        let mut from = 0;
        for (at, value) in &self.binds {
            out.push_sql(&self.text[from..*at]);
            from = *at;
            match value {
                Value::Text(Some(v)) => out.push_bind_param::<Text, str>(v)?,
                Value::Text(None) => out.push_bind_param::<Nullable<Text>, Option<String>>(&None)?,
                Value::Int(v) => out.push_bind_param::<Nullable<BigInt>, Option<i64>>(v)?,
                Value::Float(v) => out.push_bind_param::<Nullable<Double>, Option<f64>>(v)?,
                Value::Bool(v) => out.push_bind_param::<Nullable<Bool>, Option<bool>>(v)?,
            }
        }
        out.push_sql(&self.text[from..]);
        Ok(())
    }
}

impl QueryId for Sql<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Sql<'_> {
    type SqlType = Untyped;
}

/// A statement whose text is the same each time for `M`: it is found among the
/// prepared ones by that, without its text.
struct Fixed<'s, 'a, M>(&'s Sql<'a>, PhantomData<M>);

impl<M> QueryFragment<MultiBackend> for Fixed<'_, '_, M> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, MultiBackend>) -> QueryResult<()> {
        self.0.walk_ast(out)
    }
}

impl<M: 'static> QueryId for Fixed<'_, '_, M> {
    type QueryId = Fixed<'static, 'static, M>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

/// What can be read from one row.
pub trait FromRow: Sized {
    /// Reads it from the row's columns, left to right.
    ///
    /// # Errors
    /// When a column holds something else.
    fn from_row(row: &mut RowReader<'_, '_, '_>) -> Result<Self>;
}

macro_rules! tuple_from_row {
    ($($T:ident),+) => {
        impl<$($T: super::Column),+> FromRow for ($($T,)+) {
            fn from_row(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
                Ok(($(row.get::<$T>()?,)+))
            }
        }
    };
}
tuple_from_row!(A);
tuple_from_row!(A, B);
tuple_from_row!(A, B, C);
tuple_from_row!(A, B, C, D);
tuple_from_row!(A, B, C, D, E);
tuple_from_row!(A, B, C, D, E, F);
tuple_from_row!(A, B, C, D, E, F, G);
tuple_from_row!(A, B, C, D, E, F, G, H);

/// Runs a statement that answers rows.
///
/// # Errors
/// What the database says.
pub fn load<T: FromRow>(conn: &mut AnyConnection, sql: Sql<'_>) -> Result<Vec<T>> {
    let mut rows = Vec::new();
    each(conn, sql, |row| {
        if rows.len() == 1 {
            // No single row, so most likely a page: moved once instead of at each doubling.
            rows.reserve(31);
        }
        rows.push(T::from_row(row)?);
        Ok(())
    })?;
    Ok(rows)
}

/// Runs a statement and calls back with each row that it answers: for columns
/// whose types are known at run time only.
///
/// # Errors
/// What the database or the callback says.
pub fn each(
    conn: &mut AnyConnection,
    sql: Sql<'_>,
    mut read: impl FnMut(&mut RowReader<'_, '_, '_>) -> Result<()>,
) -> Result<()> {
    expect_living()?;
    show(&sql);
    for row in LoadConnection::load(conn, sql).inspect_err(doomed)? {
        read(&mut RowReader::new(&row.inspect_err(doomed)?))?;
    }
    Ok(())
}

/// For those who want to see what the database is asked: `--log podyard::sql=trace`.
/// Without the values, which are the clients' own business.
fn show(sql: &Sql<'_>) {
    tracing::trace!(target: "podyard::sql", statement = sql.shape());
}

/// MySQL ends a transaction that was chosen to break a deadlock, and would
/// commit what comes after, statement by statement: if somebody goes on in
/// spite of the error, we refuse, as PostgreSQL does by itself.
fn expect_living() -> Result<()> {
    if DOOMED.get() {
        return Err(crate::Error::unavailable("two requests got in each other's way; try again", 1));
    }
    Ok(())
}

fn doomed(error: &diesel::result::Error) {
    use diesel::result::{DatabaseErrorKind, Error};
    match error {
        Error::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => DOOMED.set(true),
        // After these SQLite has undone the whole transaction, and would
        // commit what comes after, statement by statement.
        Error::DatabaseError(DatabaseErrorKind::Unknown, about)
            if ["disk is full", "disk I/O error", "out of memory"]
                .iter()
                .any(|it| about.message().contains(it)) =>
        {
            DOOMED.set(true);
        }
        _ => {}
    }
}

/// Runs a statement that answers at most one row.
///
/// # Errors
/// What the database says.
pub fn load_one<T: FromRow>(conn: &mut AnyConnection, sql: Sql<'_>) -> Result<Option<T>> {
    Ok(load(conn, sql)?.into_iter().next())
}

/// As [`execute`], of a statement whose text never differs for `M`, whatever
/// its values are.
pub(crate) fn execute_fixed<M: 'static>(conn: &mut AnyConnection, sql: &Sql<'_>) -> Result<usize> {
    expect_living()?;
    show(sql);
    Ok(conn.execute_returning_count(&Fixed::<M>(sql, PhantomData)).inspect_err(doomed)?)
}

/// Runs a statement that answers how many rows it changed.
///
/// # Errors
/// What the database says.
pub fn execute(conn: &mut AnyConnection, sql: &Sql<'_>) -> Result<usize> {
    expect_living()?;
    show(sql);
    Ok(conn.execute_returning_count(sql).inspect_err(doomed)?)
}
