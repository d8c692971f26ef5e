//! How Rust values stand in columns. Every database keeps the same five
//! kinds: text, 64-bit integers, doubles and booleans, each nullable or not.
//! Times are integers (microseconds since 1970, UTC), so that they compare,
//! index and add alike everywhere; ids and JSON are text.

use std::borrow::Cow;

use chrono::{DateTime, Datelike as _, Timelike as _, Utc};
use diesel::deserialize::FromSql;
use diesel::row::{Field as _, Row as _};
use diesel::sql_types::{BigInt, Bool, Double, Text};
use serde::Serialize;

use super::{MultiBackend, MultiRow};
use crate::{Error, Result};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// `TEXT`.
    Text,
    /// `BIGINT`.
    Int,
    /// `DOUBLE PRECISION`.
    Float,
    /// `BOOLEAN`.
    Bool,
    /// `BIGINT`, microseconds since 1970-01-01T00:00:00Z.
    Time,
    /// `TEXT` that holds JSON.
    Json,
}

/// A value to bind. `None` is NULL, which needs its type too.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Text, an id or JSON.
    Text(Option<Cow<'a, str>>),
    /// An integer or a time.
    Int(Option<i64>),
    /// A double.
    Float(Option<f64>),
    /// A boolean.
    Bool(Option<bool>),
}

impl Value<'_> {
    /// Whether it is NULL.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Text(None) | Self::Int(None) | Self::Float(None) | Self::Bool(None))
    }

    /// A copy that borrows nothing.
    #[must_use]
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Self::Text(text) => Value::Text(text.map(|t| Cow::Owned(t.into_owned()))),
            Self::Int(v) => Value::Int(v),
            Self::Float(v) => Value::Float(v),
            Self::Bool(v) => Value::Bool(v),
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(Cow::Borrowed(text)))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(Some(Cow::Borrowed(text)))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Some(Cow::Owned(text)))
    }
}

impl From<i64> for Value<'_> {
    fn from(v: i64) -> Self {
        Self::Int(Some(v))
    }
}

impl From<bool> for Value<'_> {
    fn from(v: bool) -> Self {
        Self::Bool(Some(v))
    }
}

impl From<DateTime<Utc>> for Value<'_> {
    fn from(v: DateTime<Utc>) -> Self {
        Self::Int(Some(v.timestamp_micros()))
    }
}

/// Reads the columns of a row from left to right.
pub struct RowReader<'r, 'conn, 'query> {
    row: &'r MultiRow<'conn, 'query>,
    at: usize,
}

impl<'r, 'conn, 'query> RowReader<'r, 'conn, 'query> {
    pub(super) fn new(row: &'r MultiRow<'conn, 'query>) -> Self {
        Self { row, at: 0 }
    }

    fn next<T, ST>(&mut self) -> Result<Option<T>>
    where
        T: FromSql<ST, MultiBackend>,
    {
        let at = self.at;
        self.at += 1;
        let field = self.row.get(at).ok_or_else(|| Error::internal(format!("the row has no column {at}")))?;
        match field.value() {
            None => Ok(None),
            Some(raw) => T::from_sql(raw).map(Some).map_err(|e| Error::internal(format!("column {at}: {e}"))),
        }
    }

    /// Whether the next column is NULL; it stays the next.
    fn is_null(&self) -> bool {
        self.row.get(self.at).is_some_and(|field| field.is_null())
    }

    /// The next column as text.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn text(&mut self) -> Result<Option<String>> {
        self.next::<String, Text>()
    }

    /// The next column as an integer.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn int(&mut self) -> Result<Option<i64>> {
        self.next::<i64, BigInt>()
    }

    /// The next column as a double.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn float(&mut self) -> Result<Option<f64>> {
        self.next::<f64, Double>()
    }

    /// The next column as a boolean.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn bool(&mut self) -> Result<Option<bool>> {
        self.next::<bool, Bool>()
    }

    /// The next column as any column type.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn get<T: Column>(&mut self) -> Result<T> {
        T::read(self)
    }
}

/// Writes a time as serde does, in a tenth of the time: lists are full of
/// them. `false`: its year has not four digits, and nothing is written.
fn time_json(time: DateTime<Utc>, out: &mut Vec<u8>) -> bool {
    fn digits<const N: usize>(out: &mut Vec<u8>, mut number: u32) {
        let mut text = [b'0'; N];
        for digit in text.iter_mut().rev() {
            // The remainder is below ten.
            *digit += (number % 10) as u8;
            number /= 10;
        }
        out.extend_from_slice(&text);
    }
    let Ok(year @ 0..=9999) = u32::try_from(time.year()) else { return false };
    let nanos = time.nanosecond();
    if nanos >= 1_000_000_000 || !nanos.is_multiple_of(1000) {
        return false;
    }
    out.push(b'"');
    digits::<4>(out, year);
    for (mark, number) in [(b'-', time.month()), (b'-', time.day()), (b'T', time.hour())] {
        out.push(mark);
        digits::<2>(out, number);
    }
    for number in [time.minute(), time.second()] {
        out.push(b':');
        digits::<2>(out, number);
    }
    match nanos / 1000 {
        0 => {}
        micros if micros.is_multiple_of(1000) => {
            out.push(b'.');
            digits::<3>(out, micros / 1000);
        }
        micros => {
            out.push(b'.');
            digits::<6>(out, micros);
        }
    }
    out.extend_from_slice(b"Z\"");
    true
}

fn null() -> Error {
    Error::internal("NULL in a column that has none")
}

/// A Rust type that can be a field of a resource.
pub trait Column: Sized + Serialize {
    /// The column's type.
    const TYPE: ColumnType;
    /// Whether NULL is a value of it.
    const NULLABLE: bool = false;

    /// Reads it from the next column.
    ///
    /// # Errors
    /// When the column holds something else.
    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self>;

    /// As a value to bind.
    fn value(&self) -> Value<'_>;

    /// Writes it as JSON.
    ///
    /// # Errors
    /// When it has none: maps whose keys are no text.
    fn json(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        serde_json::to_writer(out, self)
    }

    /// NULL of this type.
    #[must_use]
    fn null() -> Value<'static> {
        match Self::TYPE {
            ColumnType::Text | ColumnType::Json => Value::Text(None),
            ColumnType::Int | ColumnType::Time => Value::Int(None),
            ColumnType::Float => Value::Float(None),
            ColumnType::Bool => Value::Bool(None),
        }
    }
}

impl Column for String {
    const TYPE: ColumnType = ColumnType::Text;

    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        row.text()?.ok_or_else(null)
    }

    fn value(&self) -> Value<'_> {
        self.into()
    }
}

impl Column for i64 {
    const TYPE: ColumnType = ColumnType::Int;

    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        row.int()?.ok_or_else(null)
    }

    fn value(&self) -> Value<'_> {
        (*self).into()
    }
}

impl Column for i32 {
    const TYPE: ColumnType = ColumnType::Int;

    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        let wide = row.int()?.ok_or_else(null)?;
        Self::try_from(wide).map_err(Error::internal)
    }

    fn value(&self) -> Value<'_> {
        i64::from(*self).into()
    }
}

impl Column for f64 {
    const TYPE: ColumnType = ColumnType::Float;

    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        row.float()?.ok_or_else(null)
    }

    fn value(&self) -> Value<'_> {
        Value::Float(Some(*self))
    }
}

impl Column for bool {
    const TYPE: ColumnType = ColumnType::Bool;

    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        row.bool()?.ok_or_else(null)
    }

    fn value(&self) -> Value<'_> {
        (*self).into()
    }
}

impl Column for DateTime<Utc> {
    const TYPE: ColumnType = ColumnType::Time;

    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        let micros = row.int()?.ok_or_else(null)?;
        Self::from_timestamp_micros(micros).ok_or_else(|| Error::internal("a time out of range"))
    }

    fn value(&self) -> Value<'_> {
        (*self).into()
    }

    fn json(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        if time_json(*self, out) { Ok(()) } else { serde_json::to_writer(out, self) }
    }
}

impl Column for serde_json::Value {
    const TYPE: ColumnType = ColumnType::Json;

    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        let text = row.text()?.ok_or_else(null)?;
        serde_json::from_str(&text).map_err(Error::internal)
    }

    fn value(&self) -> Value<'_> {
        self.to_string().into()
    }
}

impl Column for Vec<String> {
    const TYPE: ColumnType = ColumnType::Json;

    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        let text = row.text()?.ok_or_else(null)?;
        serde_json::from_str(&text).map_err(Error::internal)
    }

    fn value(&self) -> Value<'_> {
        // A list of strings always serialises.
        serde_json::to_string(self).unwrap_or_default().into()
    }
}

impl<T: Column> Column for Option<T> {
    const TYPE: ColumnType = T::TYPE;
    const NULLABLE: bool = true;

    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        if row.is_null() {
            row.at += 1;
            return Ok(None);
        }
        T::read(row).map(Some)
    }

    fn value(&self) -> Value<'_> {
        match self {
            Some(it) => it.value(),
            None => T::null(),
        }
    }

    fn json(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        match self {
            Some(it) => it.json(out),
            None => {
                out.extend_from_slice(b"null");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_serde_writes_them() {
        let micros = [
            0,
            1,
            1_000,
            123_000,
            1_763_700_000_000_000,
            1_763_700_000_120_000,
            1_763_700_000_123_456,
            -1,
            -62_135_596_800_000_000,
            253_402_300_799_999_999,
            253_402_300_800_000_000,
            -99_999_999_999_000_000,
        ];
        for micros in micros {
            let time = DateTime::from_timestamp_micros(micros).unwrap();
            let mut out = Vec::new();
            time.json(&mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&time).unwrap());
        }
    }
}
