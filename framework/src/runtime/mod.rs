//! Resource types that are defined at run time: an administrator posts a
//! definition, and its rows have the same REST, filters, permissions, audit
//! and documentation as those of a compiled type. For users: docs/runtime-types.md.
//!
//! A definition is a row of `resource_types` and a table of its own, made and
//! changed as if in one transaction with it (`table`). From the row metadata is
//! made as the derive makes it (`of`), and one Rust type, told by a
//! thread-local which type is meant, goes through the pipelines for all of
//! them (`row`). `generation` keeps processes on one database together.

mod generation;
mod names;
mod of;
mod resource;
mod row;
mod spec;
mod table;

pub use generation::{follow, metas, refresh};
pub(crate) use generation::{is_stale, publish, raise, stale};
pub use resource::{ResourceType, ResourceTypeCreate, ResourceTypeUpdate};
pub use spec::{FieldSpec, FieldType, Fields, Ranks, Unique};
