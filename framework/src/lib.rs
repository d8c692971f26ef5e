//! Podyard: resource-oriented control planes.
//!
//! A resource type is one struct and a migration; the dispatcher gives it
//! REST, filters, permissions and an audit trail, and whatever takes time runs
//! as a persisted task. The rooms stand in the order a request walks through
//! them: `http`, `auth`, `policy`, `dispatch`, `model`, `query`, `db`.

// The macros write `::podyard::…`, also here.
extern crate self as podyard;

pub mod auth;
mod cache;
mod context;
mod ctx;
pub mod db;
pub mod dispatch;
mod error;
pub mod event;
pub mod http;
pub mod i18n;
mod idempotency;
pub mod model;
mod oplog;
mod owner;
mod part;
mod policy;
pub mod query;
pub mod quota;
pub mod registry;
pub mod runtime;
mod sharing;
mod tags;
pub mod task;
pub mod telemetry;
pub mod tls;
pub mod trash;
pub mod webhook;
pub mod worker;

pub use cache::Rows;
pub use ctx::{Core, Ctx, Prepared, Tx, new_id, now};
pub use error::{Error, FieldError, Kind, Result};
pub use oplog::before;
pub use podyard_macros::{Columns, Resource, actions, stages};

// What the macros' code names; a service needs no such dependency of its own.
#[doc(hidden)]
pub use inventory;
#[doc(hidden)]
pub use serde_json::value::RawValue;

/// The input of an action that takes none.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// What a file with a resource type begins with.
pub mod prelude {
    pub use crate::model::{
        AnonBase, Base, Columns, DomainBase, Enabled, External, Extra, Manager, Model, Owner, Record,
        Sharing, StandaloneBase, StatusBase, Trash, UserBase, VirtualBase,
    };
    pub use crate::query::Select;
    pub use crate::quota::QuotaUse;
    pub use crate::task::{Reason, Stage, TaskCtx};
    pub use crate::{Columns as DeriveColumns, Ctx, Error, Nothing, Resource, Result, Tx, actions, stages};
    // What the inputs of actions derive; their crates are still to be dependencies.
    pub use schemars::JsonSchema;
    pub use serde::{Deserialize, Serialize};
}

migrations!(
    "framework",
    "../migrations/framework/sqlite",
    "../migrations/framework/postgres",
    "../migrations/framework/mysql"
);
