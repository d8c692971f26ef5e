//! Actions, properties and details: methods that `#[actions]` found and that
//! the dispatcher calls by name. Their receiver says item or class, and
//! whether they take a `Tx` or a `Ctx` says inside or outside the transaction.

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::AnyRow;
use super::input::Entries;
use crate::auth::Access;
use crate::ctx::{Ctx, Tx};
use crate::dispatch::ResourceHandler;
use crate::{Error, FieldError, Result};

/// Which path leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ActionKind {
    /// `POST /<plural>/<id>/<name>`.
    Item,
    /// `POST /<plural>/<name>`.
    Class,
    /// `GET /<plural>/<name>`.
    Property,
    /// `GET /<plural>/<id>/<name>`.
    Detail,
}

/// What a client sent with it: body members of a POST, parameters of a GET.
#[derive(Debug, Clone, Default)]
pub struct ActionInput(pub(crate) serde_json::Map<String, serde_json::Value>);

/// What it gave.
pub enum ActionOutput {
    /// The row, to be shown through the caller's view.
    Row,
    /// A row of the type.
    Record(Box<dyn Any + Send>),
    /// JSON.
    Json(Vec<u8>),
}

/// What an action outside of the transaction gives, when it is done.
pub type Outcome = Pin<Box<dyn Future<Output = Result<ActionOutput>> + Send>>;

/// A built-in method on a row.
pub type OnRow = fn(&mut dyn AnyRow, &mut Tx<'_>, &ActionInput) -> Result<ActionOutput>;
/// A built-in method on a class.
pub type OnClass = fn(&dyn ResourceHandler, &mut Tx<'_>, &ActionInput) -> Result<ActionOutput>;

/// How it is called. A row crosses as `Any`; the macro on the type puts it
/// back, so the cast cannot fail.
#[derive(Clone, Copy)]
pub enum Run {
    /// On a row, inside the transaction.
    Item(fn(&mut dyn Any, &mut Tx<'_>, &ActionInput) -> Result<ActionOutput>),
    /// On the class, inside the transaction.
    Class(fn(&mut Tx<'_>, &ActionInput) -> Result<ActionOutput>),
    /// On a row, outside of any transaction.
    ItemAsync(fn(Box<dyn Any + Send>, Ctx, ActionInput) -> Outcome),
    /// On the class, outside of any transaction.
    ClassAsync(fn(Ctx, ActionInput) -> Outcome),
    /// Built in, on a row of any type, inside the transaction. It writes its
    /// record itself.
    AnyItem(OnRow),
    /// Built in, on the class of any type, inside the transaction.
    AnyClass(OnClass),
}

/// One action, property or detail of a type.
pub struct Action {
    /// The type it belongs to.
    pub of: fn() -> TypeId,
    /// Its name in the path.
    pub name: &'static str,
    /// Which path.
    pub kind: ActionKind,
    /// The method's doc comment.
    pub doc: &'static str,
    /// The rank it takes; none stated: the type's own for changes (actions)
    /// or for reading (properties and details).
    pub access: Option<Access>,
    /// The statuses in which an item's action is possible, for consoles; empty: any.
    pub when: &'static [&'static str],
    /// Whether it is on its way out.
    pub deprecated: Option<crate::http::Deprecated>,
    /// The method.
    pub run: Run,
    /// Schema of what it takes.
    pub input: fn(&mut SchemaGenerator) -> Schema,
    /// Schema of what it gives; none: the resource.
    pub output: Option<fn(&mut SchemaGenerator) -> Schema>,
}

inventory::collect!(Action);

impl ActionInput {
    pub(crate) fn from_entries(entries: Entries<'_>) -> Result<Self> {
        let mut map = serde_json::Map::new();
        for (key, value) in entries {
            let value =
                serde_json::from_str(value.get()).map_err(|e| Error::field(key.clone(), e.to_string()))?;
            map.insert(key.into_owned(), value);
        }
        Ok(Self(map))
    }

    pub(crate) fn from_query(query: &[(Cow<'_, str>, Cow<'_, str>)]) -> Self {
        let pairs = query.iter().map(|(k, v)| (k.clone().into_owned(), serde_json::Value::from(v.as_ref())));
        Self(pairs.collect())
    }
}

/// Reads an action's typed input from a body. Unknown members are errors if
/// the type says `deny_unknown_fields`, which `#[actions]` cannot see, so they
/// are refused here for every type: its schema names the fields.
///
/// # Errors
/// 400 that names the field.
pub fn read_input<T: DeserializeOwned + JsonSchema>(input: &ActionInput) -> Result<T> {
    known::<T>(input)?;
    typed(serde_json::Value::Object(input.0.clone()))
}

/// Reads a property's or detail's typed input from the query: all values are
/// text there, so numbers and booleans are recognised by the type's schema.
///
/// # Errors
/// 400 that names the parameter.
pub fn read_query<T: DeserializeOwned + JsonSchema>(input: &ActionInput) -> Result<T> {
    known::<T>(input)?;
    let properties = properties::<T>();
    let mut map = input.0.clone();
    for (key, value) in &mut map {
        let types = properties.get(key).map(|schema| schema["type"].to_string()).unwrap_or_default();
        let text = value.as_str().unwrap_or_default().to_owned();
        let words = [("integer", "an integer"), ("number", "a number"), ("boolean", "a boolean")];
        if let Some((_, word)) = words.iter().find(|(name, _)| types.contains(name)) {
            *value = serde_json::from_str(&text)
                .ok()
                .filter(|v: &serde_json::Value| v.is_number() || v.is_boolean())
                .ok_or_else(|| Error::field(key.clone(), format!("{text:?} is not {word}")))?;
        }
    }
    typed(serde_json::Value::Object(map))
}

fn properties<T: JsonSchema>() -> serde_json::Map<String, serde_json::Value> {
    let schema = schemars::schema_for!(T);
    match schema.get("properties") {
        Some(serde_json::Value::Object(map)) => map.clone(),
        _ => serde_json::Map::new(),
    }
}

fn known<T: JsonSchema>(input: &ActionInput) -> Result<()> {
    if input.0.is_empty() {
        return Ok(());
    }
    let properties = properties::<T>();
    let unknown = input.0.keys().filter(|key| !properties.contains_key(*key));
    let wrong: Vec<_> = unknown
        .map(|key| FieldError { field: key.clone(), message: "is not a known field".into() })
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(Error::fields(wrong)) }
}

fn typed<T: DeserializeOwned>(value: serde_json::Value) -> Result<T> {
    serde_json::from_value(value.clone()).map_err(|e| {
        // The message names the field only for missing ones; find the other by trial.
        let text = e.to_string();
        let named = text.split('`').nth(1).filter(|_| text.contains("field"));
        let field =
            named.map(str::to_owned).or_else(|| culprit::<T>(&value)).unwrap_or_else(|| "body".into());
        Error::field(field, super::input::in_json_words(&text))
    })
}

/// The member without which the rest fails in another way or not at all.
fn culprit<T: DeserializeOwned>(value: &serde_json::Value) -> Option<String> {
    let object = value.as_object()?;
    let whole = serde_json::from_value::<T>(value.clone()).err()?.to_string();
    object.keys().find_map(|key| {
        let mut rest = object.clone();
        rest.remove(key);
        let changed = match serde_json::from_value::<T>(rest.into()) {
            Ok(_) => true,
            Err(e) => e.to_string() != whole,
        };
        changed.then(|| key.clone())
    })
}

impl ActionOutput {
    /// JSON of a typed answer.
    ///
    /// # Errors
    /// When it cannot be serialised.
    pub fn json<T: Serialize>(value: &T) -> Result<Self> {
        serde_json::to_vec(value).map(Self::Json).map_err(Error::internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize, JsonSchema)]
    struct Tail {
        lines: Option<u32>,
        follow: Option<bool>,
        name: Option<String>,
    }

    fn query(pairs: &[(&'static str, &'static str)]) -> ActionInput {
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| (Cow::from(*k), Cow::from(*v))).collect();
        ActionInput::from_query(&pairs)
    }

    #[test]
    fn query_values_take_the_type_of_the_schema() {
        let tail: Tail = read_query(&query(&[("lines", "5"), ("follow", "true"), ("name", "7")])).unwrap();
        assert_eq!((tail.lines, tail.follow, tail.name.as_deref()), (Some(5), Some(true), Some("7")));
    }

    #[test]
    fn errors_name_the_field() {
        let field = |input| read_query::<Tail>(&input).unwrap_err().field_errors()[0].field.clone();
        assert_eq!(field(query(&[("lines", "x")])), "lines");
        assert_eq!(field(query(&[("lines", "-5")])), "lines");
        assert_eq!(field(query(&[("other", "x")])), "other");
    }
}
