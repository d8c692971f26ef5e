//! From the list grammar to one statement. Names come from `'static` metadata
//! only, values are always bound, and a name that the caller may not list does
//! not exist for them.
//!
//! `grammar` takes an expression apart, `filter` gives it a meaning, `cond`
//! makes SQL of it; `order` has the order and the markers, `scope` whose rows
//! they are, `fields` which of them are shown; `request` reads it all from a
//! query string, `plan` says what it costs, and `select` is the statement.

mod cond;
mod fields;
mod filter;
mod grammar;
mod order;
mod plan;
mod request;
mod scope;
mod select;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub use cond::Visible;
pub(crate) use fields::{selection, shows_tags, with_tags};
pub(crate) use filter::operators;
pub use request::{Format, ListRequest, parse};
pub(crate) use scope::{Owner, of as owner_of};
pub use select::{Marked, Select};

/// Rows of a page when the client does not say.
pub const DEFAULT_LIMIT: i64 = 100;
/// Most rows of a page, whatever the client says.
pub const MAX_LIMIT: i64 = 1000;

/// Parameters of a request, decoded.
pub type Params<'a> = [(Cow<'a, str>, Cow<'a, str>)];
