//! Metadata of one field: what it holds, who may see it, who may set it.

use schemars::{Schema, SchemaGenerator};

use crate::auth::Access;
use crate::db::ColumnType;

/// Who may give a field when a resource is created, and whether they must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Create {
    /// The rank it takes.
    pub access: Access,
    /// Whether a create without it is refused.
    pub required: bool,
}

/// Between which bounds a number must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// The smallest.
    pub min: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
}

impl Range {
    /// Any number.
    pub const ANY: Self = Self { min: None, max: None };

    /// What is wrong with a number, if anything.
    ///
    /// # Errors
    /// A sentence for the client.
    pub fn check(&self, number: f64) -> Result<(), String> {
        match (self.min, self.max) {
            (Some(min), _) if number < min => Err(format!("must be at least {min}")),
            (_, Some(max)) if number > max => Err(format!("must be at most {max}")),
            _ => Ok(()),
        }
    }
}

/// A field. The dispatcher, discovery, the API's document and the console all
/// read this one description.
pub struct Field {
    /// Its name in JSON and its column.
    pub name: &'static str,
    /// The field's doc comment.
    pub doc: &'static str,
    /// What its column holds.
    pub column: ColumnType,
    /// Whether it may be null.
    pub nullable: bool,
    /// Whether it has a column at all; else it is an input only.
    pub stored: bool,
    /// Who sees it in lists, and may filter and order by it.
    pub list: Access,
    /// Who sees it in a get.
    pub get: Access,
    /// Who may give it at creation.
    pub create: Create,
    /// Who may change it.
    pub update: Access,
    /// Its value when none is given, as written in the source.
    pub default: Option<&'static str>,
    /// Whether an index refuses a second row with the same value.
    pub unique: bool,
    /// Keyword of the resource type whose id it holds.
    pub references: Option<&'static str>,
    /// Whether the row goes with the one that the field refers to; else that
    /// one cannot go.
    pub cascade: bool,
    /// Whether an index serves filters and orders by it.
    pub index: bool,
    /// Whether `search` looks into it.
    pub search: bool,
    /// Most characters, for text.
    pub max: usize,
    /// Whether line breaks and tabs may stand in the text.
    pub multiline: bool,
    /// The values it may have; empty: any.
    pub choices: &'static [&'static str],
    /// The bounds of a number.
    pub range: Range,
    /// Its JSON schema.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Field {
    /// What is wrong with a text for this field, if anything.
    ///
    /// # Errors
    /// A sentence for the client.
    pub fn check_text(&self, text: &str) -> Result<(), String> {
        let count = text.chars().count();
        if count > self.max {
            return Err(format!("is longer than {} characters ({count})", self.max));
        }
        let control = |c: char| {
            c.is_control() && !(self.multiline && matches!(c, '\n' | '\r' | '\t'))
                // Invisible characters that turn or split a line of text.
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
        };
        if let Some(bad) = text.chars().find(|c| control(*c)) {
            return Err(format!("has a control character (U+{:04X})", u32::from(bad)));
        }
        if !self.choices.is_empty() && !self.choices.contains(&text) {
            return Err(format!("must be one of {}", self.choices.join(", ")));
        }
        if self.name == "name" && (text.trim().is_empty() || text.trim() != text) {
            return Err("must not be empty nor begin or end with a space".into());
        }
        // It would be taken for an id, or for a step in a path.
        if self.name == "name" && (uuid::Uuid::try_parse(text).is_ok() || text == "." || text == "..") {
            return Err("must not look like an id, nor be . or ..".into());
        }
        Ok(())
    }
}
