//! Tests of the task engine on each database that there is.
#![allow(dead_code, reason = "not every test binary uses all of it")]

#[path = "../databases/mod.rs"]
mod databases;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podyard::Core;
use podyard::auth::{Authenticator, UserCred};
use podyard::db::{self, Db, Options};

pub use databases::TestDb;

/// Lets nobody in.
pub struct Nobody;

impl Authenticator for Nobody {
    fn authenticate(&self, _: &str) -> Option<Arc<UserCred>> {
        None
    }
}

impl TestDb {
    /// A process on it.
    pub fn core(&self) -> Arc<Core> {
        let db = Db::open(&self.url, Options { pool: 8, ..Options::default() }).unwrap();
        Arc::new(Core::new(db, Arc::new(Nobody)))
    }
}

/// Runs a test on each database that there is, with tables of its own beside
/// the framework's.
pub fn each<F, Fut>(tables: &'static str, test: F)
where
    F: Fn(Arc<TestDb>) -> Fut,
    Fut: Future<Output = ()>,
{
    on(TestDb::all(), tables, test);
}

/// Runs a test on these databases, with tables of its own beside the framework's.
pub fn on<F, Fut>(databases: Vec<TestDb>, tables: &'static str, test: F)
where
    F: Fn(Arc<TestDb>) -> Fut,
    Fut: Future<Output = ()>,
{
    for db in databases {
        db::migrate(&db.url).unwrap();
        let db = Arc::new(db);
        let core = db.core();
        core.db.write_blocking(|conn| db::define(conn, tables)).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test(db.clone()));
        runtime.shutdown_background();
    }
}

/// Looks until it finds something.
pub async fn until<R, F, Fut>(what: &str, f: F) -> R
where
    F: Fn() -> Fut,
    Fut: Future<Output = Option<R>>,
{
    let begin = Instant::now();
    loop {
        if let Some(it) = f().await {
            return it;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
