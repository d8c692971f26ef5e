//! What the ops log tells: the change feed and the audit.
//!
//! One reader per process (`feed`) follows the log while somebody watches and
//! hands each batch to all watchers (`watch`), which read the rows anew as
//! their caller may see them (`rows`). Nobody's buffer grows: whoever falls
//! behind reads the log itself from where it stands (`store`). `Event` is the
//! log as a resource type.

mod feed;
mod position;
mod resource;
pub(crate) mod rows;
mod store;
mod tasks;
mod watch;

pub use feed::{Feed, FeedOptions, Running, run};
pub use position::Position;
pub(crate) use resource::of_row;
pub use resource::{Besides, Event};
pub use rows::{Told, Watched};
pub use store::Change;
pub(crate) use tasks::is_watchable;
pub(crate) use watch::{is_watch, open};
