//! The proofs of the task engine: what it promises, whatever fails and
//! whenever. On SQLite, and on PostgreSQL where there is one; on MySQL, too, if
//! `PODYARD_PROOF_MYSQL` is set and the feature is on.
#![expect(clippy::unwrap_used, reason = "a test may stop at once")]

mod cluster;
mod crashes;
mod features;
mod handlers;
#[path = "../harness/mod.rs"]
mod harness;
mod plans;
mod things;

use std::sync::Arc;

use harness::TestDb;
use podyard::db::DatabaseUrl;

/// Runs a proof on each database.
fn each<F, Fut>(tables: &'static str, test: F)
where
    F: Fn(Arc<TestDb>) -> Fut,
    Fut: Future<Output = ()>,
{
    let asked = std::env::var_os("PODYARD_PROOF_MYSQL").is_some();
    let is_wanted = |it: &TestDb| asked || !matches!(it.url, DatabaseUrl::Mysql(_));
    harness::on(TestDb::all().into_iter().filter(is_wanted).collect(), tables, test);
}
