//! From a definition to metadata as every other type has it. It is leaked,
//! once for each version of a definition that a process sees: a few KB for a
//! change of a type, which are rare, and so `&'static` everywhere stays true.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator};
use serde_json::value::RawValue;

use super::ResourceType;
use super::row::DynHandler;
use super::spec::{FieldSpec, FieldType, Owner};
use crate::auth::Access;
use crate::db::{Column, Value};
use crate::dispatch::ResourceHandler as _;
use crate::model::{
    Columns as _, Create, Defaults as _, Field, Meta, MetaSource, Range, Scope, StandaloneBase, Verbs,
    builtin,
};
use crate::model::{VirtualBase, parse_field};
use crate::registry::Type;

/// A type that was defined at run time.
pub(super) struct DynType {
    pub(super) meta: Meta,
    pub(super) owned: bool,
    /// The fields that are not the base's.
    pub(super) own: &'static [Own],
}

/// A field of such a type.
pub(super) struct Own {
    pub(super) field: Field,
    pub(super) kind: FieldType,
    pub(super) default: Value<'static>,
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

/// The columns of the base.
pub(super) fn base_fields(owner: Owner) -> Vec<&'static Field> {
    let mut fields = Vec::new();
    match owner {
        Owner::None => StandaloneBase::fields(&mut fields),
        _ => VirtualBase::fields(&mut fields),
    }
    fields
}

fn schema(kind: FieldType, nullable: bool) -> fn(&mut SchemaGenerator) -> Schema {
    use chrono::{DateTime, Utc};
    match (kind, nullable) {
        (FieldType::Text, false) => |g| g.subschema_for::<String>(),
        (FieldType::Text, true) => |g| g.subschema_for::<Option<String>>(),
        (FieldType::Integer, false) => |g| g.subschema_for::<i64>(),
        (FieldType::Integer, true) => |g| g.subschema_for::<Option<i64>>(),
        (FieldType::Number, false) => |g| g.subschema_for::<f64>(),
        (FieldType::Number, true) => |g| g.subschema_for::<Option<f64>>(),
        (FieldType::Boolean, false) => |g| g.subschema_for::<bool>(),
        (FieldType::Boolean, true) => |g| g.subschema_for::<Option<bool>>(),
        (FieldType::Time, false) => |g| g.subschema_for::<DateTime<Utc>>(),
        (FieldType::Time, true) => |g| g.subschema_for::<Option<DateTime<Utc>>>(),
        (FieldType::Json, false) => |g| g.subschema_for::<serde_json::Value>(),
        (FieldType::Json, true) => |g| g.subschema_for::<Option<serde_json::Value>>(),
        (FieldType::List, false) => |g| g.subschema_for::<Vec<String>>(),
        (FieldType::List, true) => |g| g.subschema_for::<Option<Vec<String>>>(),
    }
}

/// The field's rules, without its texts: to judge a value before anything is
/// leaked.
pub(super) fn rules(spec: &FieldSpec) -> Field {
    let text = spec.kind == FieldType::Text;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be from 1 to 2^20"
    )]
    let max = match (spec.kind, spec.max) {
        (FieldType::Text, Some(max)) => max.clamp(1.0, 1_048_576.0) as usize,
        (FieldType::Json | FieldType::List, _) => 65_536,
        _ => 255,
    };
    Field {
        name: "",
        doc: "",
        column: spec.kind.column(),
        nullable: spec.nullable(),
        stored: true,
        list: spec.list,
        get: spec.get.unwrap_or(spec.list),
        create: Create { access: spec.create, required: spec.required },
        update: spec.update,
        default: None,
        unique: spec.unique.is_some(),
        references: None,
        cascade: false,
        index: spec.indexed(),
        search: spec.search,
        max,
        multiline: spec.multiline,
        choices: &[],
        range: if text { Range::ANY } else { Range { min: spec.min, max: spec.max } },
        schema: schema(spec.kind, spec.nullable()),
    }
}

/// A client's value for a field.
pub(super) fn parse(kind: FieldType, field: &Field, value: &RawValue) -> Result<Value<'static>, String> {
    fn typed<T: serde::de::DeserializeOwned + Column>(
        field: &Field,
        value: &RawValue,
    ) -> Result<Value<'static>, String> {
        if field.nullable {
            return parse_field::<Option<T>>(field, value).map(|it| it.value().into_owned());
        }
        parse_field::<T>(field, value).map(|it| it.value().into_owned())
    }
    match kind {
        FieldType::Text => typed::<String>(field, value),
        FieldType::Integer => typed::<i64>(field, value),
        FieldType::Number => typed::<f64>(field, value),
        FieldType::Boolean => typed::<bool>(field, value),
        FieldType::Time => typed::<chrono::DateTime<chrono::Utc>>(field, value),
        FieldType::Json => typed::<serde_json::Value>(field, value),
        FieldType::List => typed::<Vec<String>>(field, value),
    }
}

/// A value of a definition for its field.
pub(super) fn parse_json(
    spec: &FieldSpec,
    rules: &Field,
    value: &serde_json::Value,
) -> Result<Value<'static>, String> {
    if let Some(text) = value.as_str().filter(|_| !spec.choices.is_empty())
        && !spec.choices.iter().any(|it| it == text)
    {
        return Err(format!("must be one of {}", spec.choices.join(", ")));
    }
    let raw = RawValue::from_string(value.to_string()).map_err(|e| e.to_string())?;
    parse(spec.kind, rules, &raw)
}

/// The value of a row for which nobody gave one.
pub(super) fn default_of(spec: &FieldSpec) -> Value<'static> {
    let given = spec.default.as_ref().and_then(|it| parse_json(spec, &rules(spec), it).ok());
    given.unwrap_or_else(|| spec.kind.zero(spec.nullable()))
}

fn own(spec: &FieldSpec) -> Own {
    let choices: Vec<&'static str> = spec.choices.iter().map(|it| leak(it)).collect();
    let field = Field {
        name: leak(&spec.name),
        doc: leak(&spec.description),
        default: spec.default.as_ref().map(|it| leak(&it.to_string())),
        references: spec.references.as_deref().map(leak),
        choices: Box::leak(choices.into_boxed_slice()),
        ..rules(spec)
    };
    Own { field, kind: spec.kind, default: default_of(spec) }
}

pub(super) fn verbs(row: &ResourceType) -> Verbs {
    let usual = if Owner::parse(&row.owner) == Owner::None { Access::Admin } else { Access::User };
    let it = row.access;
    let read = |one: Option<Access>| one.or(it.read).unwrap_or(usual);
    let write = |one: Option<Access>| one.or(it.write).unwrap_or(usual);
    Verbs {
        list: read(it.list),
        get: read(it.get),
        create: write(it.create),
        update: write(it.update),
        delete: write(it.delete),
    }
}

/// Leaks the metadata of a type and its dispatcher.
pub(super) fn build(row: &ResourceType, is_cached: impl Fn(&str) -> bool) -> &'static Type {
    let owner = Owner::parse(&row.owner);
    let own: &'static [Own] = Box::leak(row.fields.0.iter().map(own).collect::<Vec<_>>().into_boxed_slice());
    let mut fields = base_fields(owner);
    fields.extend(own.iter().map(|it| &it.field));
    let source = MetaSource {
        keyword: leak(&row.keyword),
        plural: leak(&row.plural),
        doc: leak(&row.description),
        verbs: verbs(row),
        scope: match owner {
            Owner::None => Scope::All,
            Owner::Domain => Scope::Domain,
            Owner::Project => Scope::Project,
            Owner::User => Scope::User,
        },
        cached: false,
        unlogged: false,
        // Rows that belong to somebody can be limited, by the plural.
        quota: (owner != Owner::None).then_some(&[]),
        extra: &[],
        owner: if owner == Owner::None { &[] } else { VirtualBase::OWNER },
        joint: None,
        fields: |_| {},
    };
    let meta = Meta::at_runtime(source, leak(&row.table_name), fields);
    // As the registry does for compiled types; quotas are cached.
    let refers = meta.fields().iter().any(|f| f.references.is_some_and(&is_cached));
    meta.set_fenced(refers || owner != Owner::None);
    let of: &'static DynType = Box::leak(Box::new(DynType { meta, owned: owner != Owner::None, own }));
    let handler: &'static DynHandler = Box::leak(Box::new(DynHandler(of)));
    let actions: BTreeMap<_, _> = builtin::of(handler.meta()).map(|it| ((it.kind, it.name), it)).collect();
    Box::leak(Box::new(Type { handler, actions }))
}
