//! What all tests use: databases, servers, clients, and eyes on the processes
//! of this machine.

mod client;
mod cluster;
mod database;
mod processes;
mod server;
pub(crate) mod terminal;

use std::time::{Duration, Instant};

pub(crate) use client::{Answer, Client, body, key, raw};
pub(crate) use cluster::Cluster;
pub(crate) use database::{Database, Kind, Session};
pub(crate) use processes::{alive, kill, programs, programs_under};
pub(crate) use server::{ADMIN_PASSWORD, House, Server, podyard};

/// The tests' own program for spaces.
pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_podyard-tests-helper");

/// Makes of each function a test on each database.
macro_rules! on_each_database {
    (without mysql: $($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn sqlite() {
                super::$name(crate::harness::Kind::Sqlite);
            }

            #[test]
            fn postgres() {
                if crate::harness::Kind::Postgres.is_wanted() {
                    super::$name(crate::harness::Kind::Postgres);
                }
            }
        }
    )+};
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn sqlite() {
                super::$name(crate::harness::Kind::Sqlite);
            }

            #[test]
            fn postgres() {
                if crate::harness::Kind::Postgres.is_wanted() {
                    super::$name(crate::harness::Kind::Postgres);
                }
            }

            #[cfg(feature = "mysql")]
            #[test]
            fn mysql() {
                if crate::harness::Kind::Mysql.is_wanted() {
                    super::$name(crate::harness::Kind::Mysql);
                }
            }
        }
    )+};
}

/// Asks again and again until there is an answer.
#[track_caller]
pub(crate) fn until<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < within, "within {within:?} it did not come to be that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs the work on so many threads, which all begin at the same moment.
pub(crate) fn at_once<T: Send>(n: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = std::sync::Barrier::new(n);
    let (barrier, work) = (&barrier, &work);
    std::thread::scope(|scope| {
        let run = |i| {
            scope.spawn(move || {
                barrier.wait();
                work(i)
            })
        };
        let threads: Vec<_> = (0..n).map(run).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

/// A number nobody can foresee.
pub(crate) fn random(below: u64) -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() % below
}
