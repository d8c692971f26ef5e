//! Handlers that fail in every way, and neighbours that must not care; old and
//! new programs on one database; and clocks that jump.

use std::sync::Arc;
use std::time::{Duration, Instant};

use podyard::Core;
use podyard::db::{self, Db, Options, Sql};
use podyard::prelude::*;
use podyard::task::testkit::{self, jump, skip, unlearn};
use podyard::task::{Engine, WorkerOptions, Workers};
use serde::{Deserialize, Serialize};

use crate::each;
use crate::harness::{TestDb, until};
use crate::things::{Inside, TABLES, Thing, mark, marks, tasks, thing};

fn options() -> WorkerOptions {
    WorkerOptions {
        lease: Duration::from_millis(900),
        poll: Duration::from_millis(50),
        backoff: Duration::from_millis(20),
        backoff_max: Duration::from_millis(200),
        grace: Duration::from_millis(200),
        ..WorkerOptions::default()
    }
}

fn run(core: &Arc<Core>) -> Workers {
    Engine::run(core, options()).unwrap()
}

async fn write<R: Send + 'static>(
    core: &Arc<Core>,
    f: impl Fn(&mut Tx<'_>) -> Result<R> + Clone + Send + 'static,
) -> R {
    loop {
        match Ctx::system(core).write(None, f.clone()).await {
            Ok(done) => return done.value,
            // It shared a transaction with one that filled the disk.
            Err(error) if error.kind() == podyard::Kind::Unavailable => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// How a stage behaves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manners {
    how: String,
}

async fn start<T>(core: &Arc<Core>, how: &str) -> (Thing, String)
where
    T: podyard::task::TaskType<Object = Thing, Params = Manners>,
{
    let how = how.to_owned();
    write(core, move |tx| {
        let row = thing(tx, &podyard::new_id())?;
        let id = tx.start_task::<T>(&row, Manners { how: how.clone() })?;
        Ok((row, id))
    })
    .await
}

/// Behaves as it is told to.
pub struct Unruly;

#[stages(object = Thing, params = Manners)]
impl Unruly {
    #[stage(timeout_s = 1)]
    async fn on_init(t: &mut TaskCtx<Thing, Manners>) -> podyard::Result<Stage> {
        let _inside = Inside::enter(&t.object().id);
        let task = t.task_id().to_owned();
        match t.params().how.as_str() {
            "panic" => panic!("out of my depth"),
            "hang" => tokio::time::sleep(Duration::from_secs(3600)).await,
            "error" => return Err(Error::bad_request("this will never do")),
            // More than there is room for, however often it tries.
            "fill" => {
                return Ok(Stage::complete().with(move |tx, _: &mut Thing| {
                    for n in 0..4000 {
                        let text = "x".repeat(4000);
                        let mut sql =
                            Sql::new("INSERT INTO effects (obj_id, task_id, n, place) VALUES (").value(text);
                        sql.push(", ").bind(&task).push(", ").bind(n).push(", 0)");
                        db::execute(tx.conn, &sql)?;
                    }
                    Ok(())
                }));
            }
            "effect panics" => {
                return Ok(Stage::complete().with(|_, _: &mut Thing| panic!("out of its depth")));
            }
            _ => {}
        }
        Ok(Stage::next(Self::ON_LAST).with(move |tx, it: &mut Thing| mark(tx, it, &task, 1)))
    }
    async fn on_init_failed(t: &mut TaskCtx<Thing, Manners>, why: Reason) -> Stage {
        let (task, text) = (t.task_id().to_owned(), why.to_string());
        Stage::fail(why).with(move |tx, it: &mut Thing| {
            it.status_reason = text;
            mark(tx, it, &task, -1)
        })
    }
    async fn on_last(t: &mut TaskCtx<Thing, Manners>) -> Stage {
        let task = t.task_id().to_owned();
        Stage::complete().with(move |tx, it: &mut Thing| mark(tx, it, &task, 2))
    }
    async fn on_last_failed(t: &mut TaskCtx<Thing, Manners>, why: Reason) -> Stage {
        let task = t.task_id().to_owned();
        Stage::fail(why).with(move |tx, it: &mut Thing| mark(tx, it, &task, -2))
    }
}

async fn all_ended(core: &Arc<Core>) {
    until("all to end", || async {
        let all = tasks(core).await;
        all.iter().all(|it| it.ended_at.is_some()).then_some(())
    })
    .await;
}

/// A SQLite database may have so many pages more, or as many as it likes.
async fn room(core: &Arc<Core>, more: Option<i64>) {
    write(core, move |tx| {
        let used = db::load_one::<(i64,)>(tx.conn, Sql::new("PRAGMA page_count"))?.unwrap().0;
        let most = more.map_or(i64::from(u32::MAX - 1), |it| used + it);
        db::load_one::<(i64,)>(tx.conn, Sql::new(format!("PRAGMA max_page_count = {most}")))
    })
    .await;
}

#[test]
fn handlers_that_fail_harm_nobody_else() {
    each(TABLES, async |db: Arc<TestDb>| {
        let core = db.core();
        let is_sqlite = core.db.dialect() == db::Dialect::Sqlite;
        let ways = ["panic", "hang", "error", "effect panics"];
        if is_sqlite {
            room(&core, Some(1500)).await;
        }
        let _workers = run(&core);
        let mut all = Vec::new();
        for round in 0..60 {
            let how = match round % 3 {
                // Those whose write shares its commit have to try once more.
                0 if round == 30 && is_sqlite => "fill",
                0 => ways[round / 3 % ways.len()],
                _ => "well",
            };
            all.push((how, start::<Unruly>(&core, how).await));
        }
        all_ended(&core).await;
        let ended = tasks(&core).await;
        for (how, (row, id)) in &all {
            let task = ended.iter().find(|it| it.id == *id).unwrap();
            let (status, expected, marked) = match *how {
                "well" => ("done", "", vec![1, 2]),
                "panic" => ("failed", "panic: out of my depth", vec![-1]),
                "hang" => ("failed", "on_init took longer than 1 s", vec![-1]),
                "error" => ("failed", "this will never do", vec![-1]),
                "fill" => ("failed", "the disk of the database is full", vec![-1]),
                _ => ("failed", "", vec![-1]),
            };
            assert_eq!(task.status, status, "{how}: {} {}", task.stage, task.reason);
            assert!(task.reason.contains(expected), "{how}: {}", task.reason);
            assert_eq!(marks(&core, &row.id).await, marked, "{how}");
            assert!(Inside::most(&row.id) <= 1, "{how}");
        }
        assert_eq!(testkit::check(&core).await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_full_disk_holds_tasks_up_and_loses_none() {
    each(TABLES, async |db: Arc<TestDb>| {
        let core = db.core();
        if core.db.dialect() != db::Dialect::Sqlite {
            return;
        }
        let mut all = Vec::new();
        for _ in 0..40 {
            all.push(start::<Unruly>(&core, "well").await);
        }
        room(&core, Some(0)).await;
        let workers = run(&core);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let held_up = tasks(&core).await.iter().filter(|it| it.ended_at.is_none()).count();
        assert!(held_up > 0, "the disk was not full");
        room(&core, None).await;
        all_ended(&core).await;
        for (row, _) in &all {
            assert_eq!(marks(&core, &row.id).await, [1, 2]);
        }
        drop(workers);
        assert_eq!(testkit::check(&core).await.unwrap(), Vec::<String>::new());
    });
}

// ---------------------------------------------------------------- versions

/// Has a stage that earlier versions have not.
pub struct Upgraded;

#[stages(object = Thing, params = Manners)]
impl Upgraded {
    async fn on_init(t: &mut TaskCtx<Thing, Manners>) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        let task = t.task_id().to_owned();
        Stage::next(Self::ON_NEW).with(move |tx, it: &mut Thing| mark(tx, it, &task, 1))
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing, Manners>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    #[stage(attempts = 1)]
    async fn on_new(t: &mut TaskCtx<Thing, Manners>) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        let task = t.task_id().to_owned();
        Stage::complete().with(move |tx, it: &mut Thing| mark(tx, it, &task, 2))
    }
    async fn on_new_failed(_: &mut TaskCtx<Thing, Manners>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// A kind that earlier versions have not.
pub struct Novel;

#[stages(object = Thing, params = Manners)]
impl Novel {
    async fn on_init(t: &mut TaskCtx<Thing, Manners>) -> Stage {
        let task = t.task_id().to_owned();
        Stage::complete().with(move |tx, it: &mut Thing| mark(tx, it, &task, 3))
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing, Manners>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

#[test]
fn old_and_new_programs_share_a_database() {
    each(TABLES, async |db: Arc<TestDb>| {
        let (old, new) = (db.core(), db.core());
        unlearn(&old, "on_new");
        let known = Some(vec!["upgraded", "unruly"]);
        let _old = Engine::run(&old, WorkerOptions { names: known, ..options() }).unwrap();
        let _new = run(&new);
        let mut all = Vec::new();
        for i in 0..120 {
            let core = if i % 2 == 0 { &old } else { &new };
            all.push(match i % 3 {
                0 => (start::<Novel>(core, "").await, vec![3]),
                _ => (start::<Upgraded>(core, "").await, vec![1, 2]),
            });
        }
        let begin = Instant::now();
        until("all to end", || async {
            // What an old program leaves, it leaves for ten seconds.
            for core in [&old, &new] {
                skip(core, Duration::from_millis(500));
            }
            assert!(begin.elapsed() < Duration::from_secs(30));
            tasks(&new).await.iter().all(|it| it.ended_at.is_some()).then_some(())
        })
        .await;
        for ((row, id), marked) in &all {
            assert_eq!(marks(&new, &row.id).await, *marked, "{id}");
            assert!(Inside::most(&row.id) <= 1);
        }
        let left = "SELECT count(*) FROM task_history WHERE outcome = 'left'";
        let left = write(&new, move |tx| db::load_one::<(i64,)>(tx.conn, Sql::new(left))).await.unwrap().0;
        assert!(left > 0, "the old program met nothing new");
        assert!(tasks(&new).await.iter().all(|it| it.status == "done"));
        assert_eq!(testkit::check(&new).await.unwrap(), Vec::<String>::new());
    });
}

// ---------------------------------------------------------------- clocks

/// Waits for half an hour, or naps.
pub struct Clocked;

#[stages(object = Thing, params = Manners)]
impl Clocked {
    async fn on_init(t: &mut TaskCtx<Thing, Manners>) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        if t.params().how == "wait" {
            return Stage::wait(Self::ON_LAST).within(Duration::from_secs(1800));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let task = t.task_id().to_owned();
        Stage::next(Self::ON_LAST).with(move |tx, it: &mut Thing| mark(tx, it, &task, 1))
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing, Manners>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_last(t: &mut TaskCtx<Thing, Manners>) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        let task = t.task_id().to_owned();
        Stage::complete().with(move |tx, it: &mut Thing| mark(tx, it, &task, 2))
    }
    async fn on_last_failed(t: &mut TaskCtx<Thing, Manners>, why: Reason) -> Stage {
        let task = t.task_id().to_owned();
        Stage::fail(why).with(move |tx, it: &mut Thing| mark(tx, it, &task, -2))
    }
}

const HOUR: i64 = 3_600_000_000;

#[test]
fn the_clock_jumps_an_hour_forward_and_back() {
    each(TABLES, async |db: Arc<TestDb>| {
        let opened = Db::open(&db.url, Options { pool: 8, ..Options::default() }).unwrap();
        let core = || Arc::new(Core::new(opened.clone(), Arc::new(crate::harness::Nobody)));
        let cores = [core(), core()];
        let workers = [run(&cores[0]), run(&cores[1])];
        let offset = async || {
            let sql = "SELECT offset_us FROM task_clock";
            write(&cores[0], move |tx| db::load_one::<(i64,)>(tx.conn, Sql::new(sql))).await.unwrap().0
        };
        let (waits, id) = start::<Clocked>(&cores[0], "wait").await;
        let later = write(&cores[0], |tx| {
            let row = thing(tx, "later")?;
            tx.task::<Clocked>(&row, Manners { how: "nap".into() }).after(Duration::from_secs(1800)).start()
        })
        .await;
        let mut all = Vec::new();
        let mut skew = 0;
        // Forward, back to what it was, and an hour further back.
        for by in [HOUR, -HOUR, -HOUR] {
            for i in 0..40 {
                all.push(start::<Clocked>(&cores[i % 2], "nap").await);
            }
            for core in &cores {
                jump(core, by);
            }
            skew += by;
            until("the jump to be seen", || async {
                ((offset().await + skew).abs() < 5_000_000).then_some(())
            })
            .await;
            // A process that begins now sees the same time as they do.
            let third = core();
            jump(&third, skew);
            let other = run(&third);
            all.push(start::<Clocked>(&third, "nap").await);
            tokio::time::sleep(Duration::from_millis(400)).await;
            let ids = [&id, &later];
            for task in tasks(&cores[0]).await.into_iter().filter(|it| ids.contains(&&it.id)) {
                assert!(task.ended_at.is_none(), "after {by}: {} ended early", task.stage);
            }
            other.drain().await;
        }
        until("the others to end", || async {
            let open = tasks(&cores[0]).await.iter().filter(|it| it.ended_at.is_none()).count();
            (open == 2).then_some(())
        })
        .await;
        for core in &cores {
            skip(core, Duration::from_secs(1700));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(tasks(&cores[0]).await.iter().filter(|it| it.ended_at.is_none()).count(), 2);
        for core in &cores {
            skip(core, Duration::from_secs(110));
        }
        all_ended(&cores[0]).await;
        for (row, _) in &all {
            assert_eq!(marks(&cores[0], &row.id).await, [1, 2]);
            assert!(Inside::most(&row.id) <= 1);
        }
        assert_eq!(marks(&cores[0], &waits.id).await, [-2]);
        assert_eq!(all.len(), 123);
        drop(workers);
        assert_eq!(testkit::check(&cores[0]).await.unwrap(), Vec::<String>::new());
    });
}
