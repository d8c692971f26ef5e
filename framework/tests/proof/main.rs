//! The proofs of the task engine: what it promises, whatever fails and
//! whenever. On SQLite, and on PostgreSQL where there is one.
#![expect(clippy::unwrap_used, reason = "a test may stop at once")]

mod cluster;
mod crashes;
mod features;
mod handlers;
#[path = "../harness/mod.rs"]
mod harness;
mod plans;
mod things;
