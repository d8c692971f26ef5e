//! What an administrator says of a type, and whether it can be one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::names::{RESERVED_FIELDS, check_name};
use crate::auth::Access;
use crate::db::{Column, ColumnType, RowReader, Value};
use crate::{FieldError, Result};

/// What a field holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FieldType {
    /// Text.
    #[default]
    Text,
    /// A whole number of 64 bits.
    Integer,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// A time, like `2026-01-31T12:00:00Z`.
    Time,
    /// Any JSON.
    Json,
    /// A list of texts.
    List,
}

impl FieldType {
    /// What its column holds.
    pub(super) fn column(self) -> ColumnType {
        match self {
            Self::Text => ColumnType::Text,
            Self::Integer => ColumnType::Int,
            Self::Number => ColumnType::Float,
            Self::Boolean => ColumnType::Bool,
            Self::Time => ColumnType::Time,
            Self::Json | Self::List => ColumnType::Json,
        }
    }

    /// The value of a row for which nobody gave one.
    pub(super) fn zero(self, nullable: bool) -> Value<'static> {
        match (self, nullable) {
            (Self::Text | Self::Json | Self::List, true) => Value::Text(None),
            (Self::Integer | Self::Time, true) => Value::Int(None),
            (Self::Number, true) => Value::Float(None),
            (Self::Boolean, true) => Value::Bool(None),
            (Self::Text, false) => "".into(),
            (Self::Json, false) => "null".into(),
            (Self::List, false) => "[]".into(),
            (Self::Integer | Self::Time, false) => 0_i64.into(),
            (Self::Number, false) => Value::Float(Some(0.0)),
            (Self::Boolean, false) => false.into(),
        }
    }

    /// Whether what is there can stay when the field becomes one of `to`.
    pub(super) fn widens(self, to: Self) -> bool {
        matches!((self, to), (Self::Integer, Self::Number) | (Self::List, Self::Json))
    }
}

/// Among which rows a value must be the only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unique {
    /// Among those of one owner.
    Owner,
    /// Among all.
    All,
}

/// Whose the rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    None,
    Domain,
    Project,
    User,
}

impl Owner {
    pub(super) fn parse(text: &str) -> Self {
        match text {
            "domain" => Self::Domain,
            "project" => Self::Project,
            "user" => Self::User,
            _ => Self::None,
        }
    }

    /// The column with the owner's id.
    pub(super) fn column(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Domain => Some("domain_id"),
            Self::Project => Some("project_id"),
            Self::User => Some("user_id"),
        }
    }
}

fn user() -> Access {
    Access::User
}

fn is_false(it: &bool) -> bool {
    !*it
}

/// A field of a type that was defined at run time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FieldSpec {
    /// Its name in JSON and its column: small letters, digits and `_`.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What it holds.
    #[serde(default, rename = "type")]
    pub kind: FieldType,
    /// Who sees it in lists, and filters and orders by it.
    #[serde(default = "user")]
    pub list: Access,
    /// Who sees it in a get; without it as `list`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub get: Option<Access>,
    /// Who may give it at creation.
    #[serde(default = "user")]
    pub create: Access,
    /// Who may change it.
    #[serde(default = "user")]
    pub update: Access,
    /// Whether a create without it is refused.
    #[serde(default, skip_serializing_if = "is_false")]
    pub required: bool,
    /// Its value when none is given. A field with neither this nor `required` may be null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<serde_json::Value>,
    /// The values it may have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// Keyword of the resource type whose id it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub references: Option<String>,
    /// Among which rows a value must be the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<Unique>,
    /// Whether an index makes filters and orders by it cheap.
    #[serde(default, skip_serializing_if = "is_false")]
    pub index: bool,
    /// Whether `search` looks into it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub search: bool,
    /// Whether line breaks and tabs may stand in the text.
    #[serde(default, skip_serializing_if = "is_false")]
    pub multiline: bool,
    /// The smallest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The largest number; of a text, the most characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

impl FieldSpec {
    /// Whether it may be null.
    pub(super) fn nullable(&self) -> bool {
        !self.required && self.default.is_none()
    }

    /// Whether an index must begin with it.
    pub(super) fn indexed(&self) -> bool {
        self.index || self.references.is_some() || self.unique == Some(Unique::All)
    }
}

/// The fields of a type, in their order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Fields(pub Vec<FieldSpec>);

/// The rank that each verb takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ranks {
    /// List and get, where they do not say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Access>,
    /// Create, update and delete, where they do not say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<Access>,
    /// `GET /<plural>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<Access>,
    /// `GET /<plural>/<id>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub get: Option<Access>,
    /// `POST /<plural>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<Access>,
    /// `PUT /<plural>/<id>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Access>,
    /// `DELETE /<plural>/<id>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete: Option<Access>,
}

/// A value that stands as JSON in one column.
macro_rules! json_column {
    ($T:ty) => {
        impl Column for $T {
            const TYPE: ColumnType = ColumnType::Json;

            fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
                let text = row.text()?.unwrap_or_default();
                serde_json::from_str(&text).map_err(crate::Error::internal)
            }

            fn value(&self) -> Value<'_> {
                // Made of texts, numbers and words only, which always serialise.
                serde_json::to_string(self).unwrap_or_default().into()
            }
        }
    };
}
json_column!(Fields);
json_column!(Ranks);

/// Most fields of a type, its base's among them: a mask has so many bits.
const MOST_FIELDS: usize = 64;

/// What is wrong with fields in themselves; `has` tells the base's columns,
/// `known` which types there are.
pub(super) fn check_fields(
    fields: &Fields,
    (keyword, plural): (&str, &str),
    base: &[&'static crate::model::Field],
    known: impl Fn(&str) -> bool,
    wrong: &mut Vec<FieldError>,
) {
    if fields.0.len() + base.len() > MOST_FIELDS {
        let message = format!("has more than {} fields", MOST_FIELDS - base.len());
        wrong.push(FieldError { field: "fields".into(), message });
    }
    for (i, spec) in fields.0.iter().enumerate() {
        let mut blame = |member: &str, message: String| {
            let field = format!("fields[{i}].{member}");
            wrong.push(FieldError { field, message });
        };
        let name = spec.name.as_str();
        if let Err(message) = check_name(name) {
            blame("name", message);
        } else if RESERVED_FIELDS.contains(&name)
            || base.iter().any(|f| f.name == name)
            || name == keyword
            || name == plural
        {
            blame("name", format!("{name:?} is reserved"));
        } else if fields.0[..i].iter().any(|other| other.name == name) {
            blame("name", format!("{name:?} stands there twice"));
        }
        if spec.description.chars().count() > 1024 {
            blame("description", "is longer than 1024 characters".into());
        }
        let text = spec.kind == FieldType::Text;
        let number = matches!(spec.kind, FieldType::Integer | FieldType::Number);
        let compound = matches!(spec.kind, FieldType::Json | FieldType::List);
        for (member, given, fits) in [
            ("choices", !spec.choices.is_empty(), text),
            ("references", spec.references.is_some(), text),
            ("search", spec.search, text),
            ("multiline", spec.multiline, text),
            ("min", spec.min.is_some(), number),
            ("max", spec.max.is_some(), number || text),
            ("unique", spec.unique.is_some(), !compound),
            ("index", spec.index, !compound),
        ] {
            if given && !fits {
                blame(member, "does not go with this type".into());
            }
        }
        if spec.required && spec.create == Access::Never {
            blame("required", "does not go with create never: nobody could give it".into());
        }
        if text && spec.max.is_some_and(|max| max.fract() != 0.0 || !(1.0..=1_048_576.0).contains(&max)) {
            blame("max", "must be a whole number from 1 to 1048576".into());
        }
        if let (Some(min), Some(max)) = (spec.min, spec.max)
            && min > max
        {
            blame("min", "is larger than max".into());
        }
        if spec.choices.len() > 256 || spec.choices.iter().any(|it| it.is_empty() || it.len() > 255) {
            blame("choices", "must be at most 256 texts of 1 to 255 bytes".into());
        }
        if let Some(twice) = (1..spec.choices.len()).find(|n| spec.choices[..*n].contains(&spec.choices[*n]))
        {
            blame("choices", format!("{:?} stands there twice", spec.choices[twice]));
        }
        if spec.references.as_deref() == Some("resource-type") {
            // Its rows go with tables of their own: nothing can hold them.
            blame("references", "a resource type cannot be referred to".into());
        }
        // PostgreSQL takes 2704 bytes in an index, MySQL 3072 with an id, and
        // a character up to four.
        let indexed = spec.indexed() || spec.unique.is_some();
        if text && indexed && spec.max.is_some_and(|max| max > 512.0) {
            blame("max", "must be at most 512 for a field with an index or unique".into());
        }
        if let Some(target) = &spec.references {
            if !known(target) {
                blame("references", format!("there is no resource type {target:?}"));
            }
            if spec.default.is_some() || !spec.choices.is_empty() {
                blame("references", "does not go with default or choices".into());
            }
        }
        let rules = super::of::rules(spec);
        if let Some(bad) = spec.choices.iter().find_map(|it| rules.check_text(it).err()) {
            blame("choices", bad);
        }
        if let Some(default) = &spec.default
            && let Err(message) = super::of::parse_json(spec, &rules, default)
        {
            blame("default", message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(fields: serde_json::Value) -> Vec<String> {
        let fields: Fields = serde_json::from_value(fields).unwrap();
        let mut wrong = Vec::new();
        check_fields(&fields, ("thing", "things"), &[], |it| it == "space", &mut wrong);
        wrong.into_iter().map(|it| it.field).collect()
    }

    #[test]
    fn names_that_are_none() {
        for bad in ["", "A", "1a", "a-b", "a b", "a\"b", "a;drop", "a__b", "a_", "_a", "é", &"a".repeat(32)]
        {
            let found = wrong(serde_json::json!([{"name": bad}]));
            assert_eq!(found, ["fields[0].name"], "{bad:?}");
            let mut found = Vec::new();
            crate::runtime::names::check_type_name("keyword", bad, &mut found);
            assert_eq!(found.len(), 1, "{bad:?}");
        }
        for bad in ["id", "deleted", "limit", "thing", "things", "xmin"] {
            assert_eq!(wrong(serde_json::json!([{"name": bad}])), ["fields[0].name"], "{bad:?}");
        }
        assert!(wrong(serde_json::json!([{"name": "select"}, {"name": "table"}])).is_empty());
    }

    #[test]
    fn properties_must_fit() {
        for (field, member) in [
            (serde_json::json!({"type": "integer", "choices": ["a"]}), "choices"),
            (serde_json::json!({"type": "text", "min": 1}), "min"),
            (serde_json::json!({"type": "json", "unique": "all"}), "unique"),
            (serde_json::json!({"type": "integer", "default": "x"}), "default"),
            (serde_json::json!({"type": "integer", "default": 11, "max": 10}), "default"),
            (serde_json::json!({"choices": ["a"], "default": "b"}), "default"),
            (serde_json::json!({"references": "nothing"}), "references"),
            (serde_json::json!({"type": "time", "default": "yesterday"}), "default"),
            (serde_json::json!({"max": 0}), "max"),
            (serde_json::json!({"choices": ["a", "a"]}), "choices"),
            (serde_json::json!({"create": "never", "required": true}), "required"),
        ] {
            let mut field = field;
            field["name"] = "x".into();
            assert_eq!(wrong(serde_json::json!([field])), [format!("fields[0].{member}")], "{field}");
        }
        assert!(wrong(serde_json::json!([{"name": "x", "references": "space"}])).is_empty());
    }
}
