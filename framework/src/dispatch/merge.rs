//! `PATCH` as a JSON merge patch (RFC 7396). A resource is changed member by
//! member in any case; what a patch adds is what `null` means, and that a
//! field which holds JSON is merged instead of replaced.

use std::borrow::Cow;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::auth::Access;
use crate::ctx::Tx;
use crate::db::ColumnType;
use crate::model::{Columns, Entries, Field, JsonObject, Manager, Meta};
use crate::{Error, Result};

/// New values for some of a body's members, by their place.
pub(super) type Values = Vec<(usize, Box<RawValue>)>;

fn stored<'m>(meta: &'m Meta, name: &str) -> Option<(usize, &'m Field)> {
    let at = meta.fields().iter().position(|f| f.name == name)?;
    Some((at, meta.fields()[at])).filter(|(_, f)| f.stored && f.update != Access::Never)
}

/// One field of a row as JSON, whoever may see it.
fn json_of<T: Columns>(row: &T, at: usize, name: &str) -> Result<Box<RawValue>> {
    let mut out = Vec::new();
    let mut object = JsonObject::open(&mut out, 1 << at);
    row.view(&mut object);
    object.close();
    // `{"name":…}`
    let inner = out.get(name.len() + 4..out.len() - 1).unwrap_or_default();
    let text = String::from_utf8(inner.to_vec()).map_err(Error::internal)?;
    RawValue::from_string(text).map_err(Error::internal)
}

/// The members that differ from what the row holds, as far as the caller sees it.
pub(super) fn without_unchanged<'a, T: Manager>(
    tx: &Tx<'_>,
    row: &T,
    entries: &Entries<'a>,
) -> Result<Entries<'a>> {
    let mask = T::meta().get_mask(tx.level());
    let mut changed = Entries::new();
    for (key, value) in entries {
        let same = match stored(T::meta(), key).filter(|(at, _)| mask >> at & 1 == 1) {
            Some((at, field)) => {
                let (is, asked) = (json_of(row, at, field.name)?, serde_json::from_str::<Value>(value.get()));
                serde_json::from_str::<Value>(is.get()).ok() == asked.ok()
            }
            None => false,
        };
        if !same {
            changed.push((key.clone(), *value));
        }
    }
    Ok(changed)
}

/// `null` takes a member away: a field that cannot be null goes back to its
/// default, if it has one.
pub(super) fn defaults<T: Manager>(entries: &Entries<'_>) -> Result<Values> {
    let meta = T::meta();
    let null = |(i, (key, value)): (usize, &(Cow<'_, str>, &RawValue))| {
        let (at, field) = stored(meta, key).filter(|_| value.get() == "null")?;
        (!field.nullable && !field.create.required).then_some((i, at, field.name))
    };
    let nulls: Vec<_> = entries.iter().enumerate().filter_map(null).collect();
    if nulls.is_empty() {
        return Ok(Vec::new());
    }
    let fresh = T::from_create(&T::Create::default());
    nulls.into_iter().map(|(i, at, name)| Ok((i, json_of(&fresh, at, name)?))).collect()
}

/// The members that hold JSON objects, merged with what the row holds.
pub(super) fn merged<T: Manager>(row: &T, entries: &Entries<'_>) -> Result<Values> {
    let mut values = Vec::new();
    for (i, (key, value)) in entries.iter().enumerate() {
        let Some((at, field)) = stored(T::meta(), key) else { continue };
        if field.column != ColumnType::Json || !value.get().starts_with('{') {
            continue;
        }
        let parse = |text: &str| {
            serde_json::from_str::<Value>(text).map_err(|e| Error::field(field.name, e.to_string()))
        };
        let mut now = parse(json_of(row, at, field.name)?.get())?;
        merge(&mut now, parse(value.get())?);
        values.push((i, serde_json::value::to_raw_value(&now).map_err(Error::internal)?));
    }
    Ok(values)
}

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(members) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            members.remove(&key);
        } else {
            merge(members.entry(key).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_examples_of_the_rfc() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut it = target.clone();
            merge(&mut it, patch.clone());
            assert_eq!(it, result, "{target} with {patch}");
        }
    }
}
