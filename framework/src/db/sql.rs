//! A statement of text and bound values, and its three ways to run. Text
//! comes from `'static` metadata only; whatever a client sent is bound.

use std::borrow::Cow;

use diesel::connection::{Connection, LoadConnection};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text, Untyped};

use super::{AnyConnection, MultiBackend, RowReader, Value};
use crate::Result;

enum Piece<'a> {
    Text(Cow<'static, str>),
    Bind(Value<'a>),
}

/// A statement under construction.
#[derive(Default)]
pub struct Sql<'a> {
    pieces: Vec<Piece<'a>>,
    unbounded: bool,
}

impl<'a> Sql<'a> {
    /// Begins with a text.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        let mut it = Self { pieces: Vec::with_capacity(12), unbounded: false };
        it.push(text);
        it
    }

    /// Adds text.
    pub fn push(&mut self, text: impl Into<Cow<'static, str>>) -> &mut Self {
        self.pieces.push(Piece::Text(text.into()));
        self
    }

    /// Adds a bound value.
    pub fn bind(&mut self, value: impl Into<Value<'a>>) -> &mut Self {
        self.pieces.push(Piece::Bind(value.into()));
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

    /// Adds another statement's pieces.
    pub fn append(&mut self, mut other: Sql<'a>) -> &mut Self {
        self.unbounded |= other.unbounded;
        self.pieces.append(&mut other.pieces);
        self
    }
}

impl QueryFragment<MultiBackend> for Sql<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, MultiBackend>) -> QueryResult<()> {
        if self.unbounded {
            out.unsafe_to_cache_prepared();
        }
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_sql(text),
                Piece::Bind(Value::Text(Some(v))) => out.push_bind_param::<Text, str>(v)?,
                Piece::Bind(Value::Text(None)) => {
                    out.push_bind_param::<Nullable<Text>, Option<String>>(&None)?;
                }
                Piece::Bind(Value::Int(v)) => out.push_bind_param::<Nullable<BigInt>, Option<i64>>(v)?,
                Piece::Bind(Value::Float(v)) => out.push_bind_param::<Nullable<Double>, Option<f64>>(v)?,
                Piece::Bind(Value::Bool(v)) => out.push_bind_param::<Nullable<Bool>, Option<bool>>(v)?,
            }
        }
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
    let cursor = LoadConnection::load(conn, sql)?;
    let mut rows = Vec::new();
    for row in cursor {
        rows.push(T::from_row(&mut RowReader::new(&row?))?);
    }
    Ok(rows)
}

/// Runs a statement that answers at most one row.
///
/// # Errors
/// What the database says.
pub fn load_one<T: FromRow>(conn: &mut AnyConnection, sql: Sql<'_>) -> Result<Option<T>> {
    Ok(load(conn, sql)?.into_iter().next())
}

/// Runs a statement that answers how many rows it changed.
///
/// # Errors
/// What the database says.
pub fn execute(conn: &mut AnyConnection, sql: &Sql<'_>) -> Result<usize> {
    Ok(conn.execute_returning_count(sql)?)
}
