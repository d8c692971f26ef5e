//! What a client sends, field by field: each key of the body is looked up in
//! the metadata, judged by the caller's rank, parsed and checked. All errors
//! are told at once.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{Field, Meta};
use crate::auth::Access;
use crate::db::Column;
use crate::{Error, FieldError, Kind, Result};

/// The typed body of a create or an update; written by the derive.
pub trait Input {
    /// Takes one value. `Ok(false)`: no such field here.
    ///
    /// # Errors
    /// What is wrong with the value, for the client.
    fn set(&mut self, field: &str, value: &RawValue) -> Result<bool, String>;
}

impl Input for () {
    fn set(&mut self, _: &str, _: &RawValue) -> Result<bool, String> {
        Ok(false)
    }
}

/// Parses one JSON value; the error leaves out where in the line it was.
///
/// # Errors
/// What is wrong with it, for the client.
pub fn parse_value<T: DeserializeOwned>(value: &RawValue) -> Result<T, String> {
    serde_json::from_str(value.get()).map_err(|e| {
        let text = e.to_string();
        in_json_words(text.split(" at line ").next().unwrap_or(&text))
    })
}

/// What serde says of a value, whose words are Rust's, in the words of JSON.
pub(crate) fn in_json_words(text: &str) -> String {
    let Some((found, expected)) = text.rsplit_once(", expected ") else { return text.to_owned() };
    let expected = match expected {
        "i8" | "i16" | "i32" | "i64" | "isize" => "an integer",
        "u8" | "u16" | "u32" | "u64" | "usize" => "an integer from 0",
        "f32" | "f64" => "a number",
        "a sequence" => "an array",
        "a map" | "map" => "an object",
        "unit" => "null",
        it if it.starts_with("struct ") => "an object",
        it if it.starts_with("a tuple") => "an array",
        it => it,
    };
    let found = match found.split_once(": ") {
        Some((what, "sequence")) => format!("{what}: array"),
        Some((what, "map")) => format!("{what}: object"),
        Some((what, it)) if it.starts_with("floating point ") => {
            format!("{what}: number{}", &it["floating point".len()..])
        }
        _ => found.to_owned(),
    };
    format!("{found}, expected {expected}")
}

/// Parses one JSON value for a field and checks it against the field's rules.
///
/// # Errors
/// What is wrong with it, for the client.
pub fn parse_field<T: DeserializeOwned + Column>(field: &Field, value: &RawValue) -> Result<T, String> {
    let it: T = parse_value(value)?;
    match it.value() {
        crate::db::Value::Text(Some(text)) if T::TYPE == crate::db::ColumnType::Text => {
            field.check_text(&text)?;
        }
        crate::db::Value::Text(Some(text)) if text.len() > field.max.max(65_536) => {
            return Err(format!("is longer than {} bytes", field.max.max(65_536)));
        }
        crate::db::Value::Float(Some(v)) if !v.is_finite() => return Err("is not a finite number".into()),
        crate::db::Value::Float(Some(v)) => field.range.check(v)?,
        #[expect(clippy::cast_precision_loss, reason = "bounds are doubles")]
        crate::db::Value::Int(Some(v)) if T::TYPE == crate::db::ColumnType::Int => {
            field.range.check(v as f64)?;
        }
        _ => {}
    }
    Ok(it)
}

/// Create or update: other ranks, other required fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A new row.
    Create,
    /// A change.
    Update,
}

/// The members of a JSON object, in order.
pub(crate) type Entries<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

struct EntriesVisitor;

impl<'de> serde::de::Visitor<'de> for EntriesVisitor {
    type Value = Entries<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        use serde::de::Error as _;
        let mut entries: Entries<'de> = Vec::with_capacity(8);
        while let Some(key) = map.next_key::<Key<'de>>()? {
            if entries.iter().any(|(k, _)| *k == key.0) {
                return Err(A::Error::custom(format!("duplicate field `{}`", key.0)));
            }
            entries.push((key.0, map.next_value()?));
        }
        Ok(entries)
    }
}

/// A key, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> serde::de::Visitor<'de> for V {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> std::result::Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> std::result::Result<Self::Value, E> {
                Ok(Key(Cow::Owned(v.to_owned())))
            }
        }
        d.deserialize_str(V)
    }
}

/// The members of a JSON object.
pub(crate) fn parse_object(text: &str) -> Result<Entries<'_>> {
    use serde::Deserializer as _;
    let mut de = serde_json::Deserializer::from_str(text);
    let entries = de
        .deserialize_map(EntriesVisitor)
        .and_then(|entries| de.end().map(|()| entries))
        .map_err(|e| Error::field("body", e.to_string()))?;
    Ok(entries)
}

/// The members of a body, out of its envelope `{"<keyword>": {…}}` if it has
/// one. No body is an empty object.
pub(crate) fn entries<'a>(body: &'a [u8], keyword: &str, plural: &str) -> Result<Entries<'a>> {
    let text = std::str::from_utf8(body).map_err(|_| Error::field("body", "is not UTF-8"))?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let outer = parse_object(text)?;
    match outer.as_slice() {
        [(key, inner)] if (key == keyword || key == plural) && inner.get().starts_with('{') => {
            parse_object(inner.get())
        }
        _ => Ok(outer),
    }
}

/// Fills an input from a body's members by the type's metadata.
pub(crate) fn fill(
    meta: &Meta,
    entries: &Entries<'_>,
    caller: Access,
    mode: Mode,
    input: &mut dyn Input,
) -> Result<()> {
    let mut wrong: Vec<FieldError> = Vec::new();
    let mut forbidden: Vec<&str> = Vec::new();
    let mut blame =
        |field: &str, message: String| wrong.push(FieldError { field: field.to_owned(), message });
    for (key, value) in entries {
        let Some(field) = meta.field(key) else {
            blame(key, "is not a known field".into());
            continue;
        };
        let rank = match mode {
            Mode::Create => field.create.access,
            Mode::Update => field.update,
        };
        if rank == Access::Never {
            let verb = if mode == Mode::Create { "given" } else { "changed" };
            blame(key, format!("cannot be {verb}"));
        } else if !rank.allows(caller) {
            forbidden.push(field.name);
        } else {
            match input.set(field.name, value) {
                Ok(true) => {}
                Ok(false) => blame(key, "is not a known field".into()),
                Err(message) => blame(key, message),
            }
        }
    }
    if mode == Mode::Create {
        for field in meta.fields().iter().filter(|f| f.create.required && f.create.access.allows(caller)) {
            if !entries.iter().any(|(key, _)| key == field.name) {
                blame(field.name, "is required".into());
            }
        }
    }
    if !wrong.is_empty() {
        return Err(Error::fields(wrong));
    }
    if let Some(first) = forbidden.first() {
        let text = format!("{} may be set by administrators only", forbidden.join(", "));
        return Err(Error::new(Kind::Forbidden, text).blame(*first));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_and_bare_objects() {
        let names = |body: &str| -> Vec<String> {
            entries(body.as_bytes(), "space", "spaces")
                .unwrap()
                .into_iter()
                .map(|(k, _)| k.into_owned())
                .collect()
        };
        assert_eq!(names(r#"{"space": {"name": "a", "cpu": 2}}"#), ["name", "cpu"]);
        assert_eq!(names(r#"{"name": "a"}"#), ["name"]);
        // A field of the keyword's name that is no object is a field.
        assert_eq!(names(r#"{"space": 1}"#), ["space"]);
        assert!(names("").is_empty());
        assert!(names("  ").is_empty());
    }

    #[test]
    fn types_are_named_as_json_has_them() {
        fn said<T: DeserializeOwned>(text: &str) -> String {
            parse_value::<T>(&RawValue::from_string(text.to_owned()).unwrap()).err().unwrap()
        }
        assert_eq!(
            said::<i64>("\"x, expected y\""),
            "invalid type: string \"x, expected y\", expected an integer"
        );
        assert_eq!(said::<i64>("1.5"), "invalid type: number `1.5`, expected an integer");
        assert_eq!(said::<u32>("-1"), "invalid value: integer `-1`, expected an integer from 0");
        assert_eq!(said::<f64>("[]"), "invalid type: array, expected a number");
        assert_eq!(said::<Vec<String>>("{}"), "invalid type: object, expected an array");
        assert_eq!(said::<bool>("null"), "invalid type: null, expected a boolean");
    }

    #[test]
    fn bodies_that_are_no_object() {
        for body in ["[", "[]", "1", "{} x", r#"{"a":1,"a":2}"#, r#"{"a":}"#] {
            let error = entries(body.as_bytes(), "space", "spaces").unwrap_err();
            assert_eq!(error.field_errors()[0].field, "body", "{body}");
        }
        assert!(entries(&[0xff, 0xfe], "space", "spaces").is_err());
    }
}
