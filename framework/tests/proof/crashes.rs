//! Every commit of the engine as a point to crash at, before and after, in
//! each kind of life that a task can lead.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use podyard::db::{self, Db, Options, Sql};
use podyard::prelude::*;
use podyard::registry::Registry;
use podyard::task::testkit::{self, Kit, Replayed};
use podyard::task::{Subtasks, Task, TaskType, WorkerOptions};
use podyard::{Core, Kind};
use serde::{Deserialize, Serialize};

use crate::each;
use crate::features::{Parent, Way};
use crate::harness::{Nobody, TestDb};
use crate::things::{Inside, TABLES, Thing, mark, marks, tasks, thing};

// ---------------------------------------------------------------- the tasks

/// Three stages, each of which leaves a mark.
pub struct Walk;

#[stages(object = Thing, params = First)]
impl Walk {
    async fn on_init(t: &mut TaskCtx<Thing, First>) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        marking(t, Stage::next(Self::ON_SECOND), 1)
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing, First>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_second(t: &mut TaskCtx<Thing, First>) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        // Without a mark: it shares a commit.
        t.progress(50.0);
        Stage::next(Self::ON_THIRD).data(7)
    }
    async fn on_second_failed(_: &mut TaskCtx<Thing, First>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_third(t: &mut TaskCtx<Thing, First>, n: i64) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        tokio::time::sleep(Duration::from_millis(t.params().nap_ms)).await;
        marking(t, Stage::complete(), n)
    }
    async fn on_third_failed(_: &mut TaskCtx<Thing, First>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// What the first mark is counted from.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct First {
    first: i64,
    nap_ms: u64,
}

fn marking(t: &TaskCtx<Thing, First>, stage: Stage, n: i64) -> Stage {
    let (task, n) = (t.task_id().to_owned(), t.params().first + n);
    stage.with(move |tx, thing: &mut Thing| mark(tx, thing, &task, n))
}

static TOKENS: LazyLock<Mutex<HashMap<String, String>>> = LazyLock::new(Mutex::default);

/// Waits for a callback for an hour.
pub struct Call;

#[stages(object = Thing)]
impl Call {
    async fn on_init(t: &mut TaskCtx<Thing>) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        TOKENS.lock().unwrap().insert(t.object().id.clone(), t.callback());
        if t.object().status == "early" {
            // Until it has been called, which the database knows.
            let token = t.callback();
            let asked = move |tx: &mut Tx<'_>| {
                let sql = Sql::new("SELECT COUNT(*) FROM task_callbacks WHERE token = ").value(token.clone());
                Ok(db::load_one::<(i64,)>(tx.conn, sql)?.is_some_and(|(n,)| n == 1))
            };
            while !t.ctx().read(db::Cost::Bounded, asked.clone()).await.is_ok_and(|it| it.value) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        Stage::wait(Self::ON_CALLED).within(Duration::from_secs(3600))
    }
    async fn on_init_failed(t: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        let task = t.task_id().to_owned();
        Stage::fail(why).with(move |tx, thing: &mut Thing| mark(tx, thing, &task, -1))
    }
    async fn on_called(t: &mut TaskCtx<Thing>, n: i64) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        let task = t.task_id().to_owned();
        Stage::complete().with(move |tx, thing: &mut Thing| mark(tx, thing, &task, n))
    }
    async fn on_called_failed(t: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        let n = if why.is_timeout() { -2 } else { -3 };
        let task = t.task_id().to_owned();
        Stage::fail(why).with(move |tx, thing: &mut Thing| mark(tx, thing, &task, n))
    }
}

/// Tries until it gives up.
pub struct GiveUp;

#[stages(object = Thing)]
impl GiveUp {
    #[stage(attempts = 4, backoff_ms = 60_000)]
    async fn on_init(t: &mut TaskCtx<Thing>) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        Stage::retry("not yet")
    }
    async fn on_init_failed(t: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        let task = t.task_id().to_owned();
        Stage::fail(why).with(move |tx, thing: &mut Thing| mark(tx, thing, &task, -1))
    }
}

/// Runs until somebody cancels it.
pub struct Patient;

#[stages(object = Thing)]
impl Patient {
    async fn on_init(t: &mut TaskCtx<Thing>) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        while !t.cancelled().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Stage::fail("told to stop")
    }
    async fn on_init_failed(t: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        let n = if why.is_cancelled() { -1 } else { -9 };
        let task = t.task_id().to_owned();
        Stage::fail(why).with(move |tx, thing: &mut Thing| mark(tx, thing, &task, n))
    }
}

/// Does three things and fails at the fourth.
pub struct Undone;

#[stages(object = Thing)]
impl Undone {
    async fn on_init(t: &mut TaskCtx<Thing>) -> Stage {
        let task = t.task_id().to_owned();
        Stage::next(Self::ON_SECOND).undo_data(11).with(move |tx, it: &mut Thing| mark(tx, it, &task, 1))
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_init_undo(t: &mut TaskCtx<Thing>, n: i64) -> Stage {
        let task = t.task_id().to_owned();
        Stage::complete().with(move |tx, it: &mut Thing| mark(tx, it, &task, -n))
    }
    async fn on_second(t: &mut TaskCtx<Thing>) -> Stage {
        let task = t.task_id().to_owned();
        Stage::next(Self::ON_THIRD).undo_data(12).with(move |tx, it: &mut Thing| mark(tx, it, &task, 2))
    }
    async fn on_second_failed(_: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_second_undo(t: &mut TaskCtx<Thing>, n: i64) -> Stage {
        let task = t.task_id().to_owned();
        Stage::complete().with(move |tx, it: &mut Thing| mark(tx, it, &task, -n))
    }
    async fn on_third(_: &mut TaskCtx<Thing>) -> Stage {
        Stage::fail("thought better of it")
    }
    async fn on_third_failed(_: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// Three subtasks, the second of which gives up, and one on its own object.
pub struct Family;

#[stages(object = Thing)]
impl Family {
    async fn on_init(t: &mut TaskCtx<Thing>) -> podyard::Result<Stage> {
        let _inside = Inside::enter(&t.object().id);
        let names = ["kid-0", "kid-1", "kid-2"];
        let read = move |tx: &mut Tx<'_>| names.iter().map(|it| thing(tx, it)).collect::<Result<Vec<_>>>();
        let kids = t.ctx().read(db::Cost::Bounded, read).await?.value;
        let [a, b, c] = <[Thing; 3]>::try_from(kids).unwrap();
        let own = t.object().clone();
        Ok(Stage::fan_out(Self::ON_TOGETHER)
            .subtask::<Walk>(a, First { first: 100, nap_ms: 0 })
            .subtask::<GiveUp>(b, podyard::Nothing {})
            .subtask::<Walk>(c, First { first: 200, nap_ms: 0 })
            .subtask::<Walk>(own, First { first: 300, nap_ms: 0 })
            .within(Duration::from_secs(24 * 3600)))
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_together(t: &mut TaskCtx<Thing>, how: Subtasks) -> Stage {
        let _inside = Inside::enter(&t.object().id);
        let n = i64::try_from(how.total * 100 + how.done * 10 + how.failed).unwrap();
        let task = t.task_id().to_owned();
        Stage::complete().with(move |tx, it: &mut Thing| mark(tx, it, &task, n))
    }
    async fn on_together_failed(_: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// Marks each object that it works on.
pub struct Several;

#[stages(object = Thing)]
impl Several {
    async fn on_init(t: &mut TaskCtx<Thing>) -> podyard::Result<Stage> {
        let all = t.objects().await?;
        let _inside: Vec<_> = all.iter().map(|it| Inside::enter(&it.id)).collect();
        let (task, own) = (t.task_id().to_owned(), t.object().id.clone());
        Ok(Stage::complete().with(move |tx, it: &mut Thing| {
            mark(tx, it, &task, 1)?;
            for mut other in all.into_iter().filter(|it| it.id != own) {
                mark(tx, &mut other, &task, 2)?;
            }
            Ok(())
        }))
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

// ---------------------------------------------------------------- the ways

fn options() -> WorkerOptions {
    WorkerOptions {
        slots: 8,
        poll: Duration::from_millis(15),
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_secs(3600),
        lease: Duration::from_secs(2),
        grace: Duration::from_millis(200),
        ..WorkerOptions::default()
    }
}

/// Replays a scenario on each database. `must` are the points that it is there for.
fn replay<S>(options: &WorkerOptions, must: &[&str], scenario: S)
where
    S: AsyncFn(&Kit) + Clone,
{
    each(TABLES, async |db: Arc<TestDb>| {
        let opened = Db::open(&db.url, Options { pool: 8, ..Options::default() }).unwrap();
        let kits = async || {
            let opened = opened.clone();
            Kit::new(move || Arc::new(Core::new(opened.clone(), Arc::new(Nobody))), options.clone())
        };
        let Replayed { points, runs, struck } = testkit::replay(kits, async |kit: &Kit| {
            testkit::reset(&kit.core()).await.unwrap();
            let empty = |tx: &mut Tx<'_>| {
                db::execute(tx.conn, &Sql::new("DELETE FROM effects"))?;
                db::execute(tx.conn, &Sql::new("DELETE FROM things"))
            };
            Ctx::system(&kit.core()).write(None, empty).await.unwrap();
            scenario(kit).await;
            kit.settle().await;
            assert_eq!(testkit::check(&kit.core()).await.unwrap(), Vec::<String>::new());
        })
        .await;
        println!("{:?}: {runs} runs, {struck} faults at {} points", opened.dialect(), points.len());
        for kind in must {
            assert!(points.iter().any(|it| it.kind == *kind), "no {kind} in {points:?}");
        }
        assert!(struck * 10 >= i64::try_from(runs).unwrap() * 8, "{struck} faults in {runs} runs");
    });
}

/// A thing, made if need be.
async fn made(kit: &Kit, name: &'static str) -> Thing {
    kit.write("make", move |tx| thing(tx, name)).await.unwrap()
}

/// Starts tasks in one transaction, unless that was done already.
async fn started<F>(kit: &Kit, f: F)
where
    F: Fn(&mut Tx<'_>) -> Result<()> + Clone + Send + 'static,
{
    let start = move |tx: &mut Tx<'_>| if Task::select().unscoped().count(tx)? > 0 { Ok(()) } else { f(tx) };
    kit.write("start", start).await.unwrap();
    kit.run().unwrap();
}

/// Starts a task of a kind.
async fn start<T: TaskType<Object = Thing>>(kit: &Kit, row: &Thing, params: T::Params)
where
    T::Params: Clone,
{
    let row = row.clone();
    started(kit, move |tx| tx.start_task::<T>(&row, params.clone()).map(drop)).await;
}

async fn in_status(kit: &Kit, status: &str) -> Task {
    kit.until(status, async |core| tasks(core).await.into_iter().find(|it| it.status == status)).await
}

/// Cancels it as a request does; that it is being cancelled already is well.
async fn cancel(kit: &Kit, id: &str) {
    let id = id.to_owned();
    let cancel = move |tx: &mut Tx<'_>| {
        let registry = Registry::collect();
        let of = registry.get("tasks").unwrap();
        let action = of.actions[&(podyard::model::ActionKind::Item, "cancel")];
        let (input, any) = (podyard::model::ActionInput::default(), podyard::dispatch::IfMatch::Any);
        match of.handler.act(tx, &id, action, &input, &any) {
            Err(error) if error.kind() != Kind::Conflict => Err(error),
            _ => Ok(()),
        }
    };
    kit.write("cancel", cancel).await.unwrap();
}

/// Calls back as a request does; that it was done already is well.
async fn call_back(kit: &Kit, token: String, n: i64) {
    let call = move |tx: &mut Tx<'_>| match tx.callback(&token, &serde_json::json!(n)) {
        Err(error) if error.class_name() != "CallbackUsedError" => Err(error),
        _ => Ok(()),
    };
    kit.write("callback", call).await.unwrap();
}

/// How the tasks ended.
async fn ends(kit: &Kit) -> Vec<String> {
    kit.settle().await;
    tasks(&kit.core()).await.into_iter().map(|it| it.status).collect()
}

async fn assert_marks(kit: &Kit, row: &Thing, expected: &[i64]) {
    assert_eq!(marks(&kit.core(), &row.id).await, expected, "{:?}", tasks(&kit.core()).await);
    assert!(Inside::most(&row.id) <= 1, "two stages at once");
}

// ---------------------------------------------------------------- the lives

#[test]
fn stages_with_effects() {
    replay(&options(), &["start", "claim", "stage", "effect", "commit"], async |kit: &Kit| {
        let row = made(kit, "it").await;
        start::<Walk>(kit, &row, First::default()).await;
        assert_eq!(ends(kit).await, ["done"]);
        assert_marks(kit, &row, &[1, 7]).await;
    });
}

/// An answer that is lost leaves a task that runs for a worker that knows
/// nothing of it, and whose heart beats.
#[test]
fn a_busy_worker() {
    replay(&options(), &["start", "claim", "stage", "effect", "commit"], async |kit: &Kit| {
        let (busy, row) = (made(kit, "busy").await, made(kit, "it").await);
        let (a, b) = (busy.clone(), row.clone());
        started(kit, move |tx| {
            tx.start_task::<Patient>(&a, podyard::Nothing {})?;
            tx.task::<Walk>(&b, First::default()).after(Duration::from_secs(60)).start()?;
            Ok(())
        })
        .await;
        let task = in_status(kit, "running").await;
        kit.skip(Duration::from_secs(60));
        let begin = std::time::Instant::now();
        in_status(kit, "done").await;
        assert!(begin.elapsed() < Duration::from_secs(20), "it took {:?}", begin.elapsed());
        assert_marks(kit, &row, &[1, 7]).await;
        cancel(kit, &task.id).await;
        let mut all = ends(kit).await;
        all.sort();
        assert_eq!(all, ["cancelled", "done"]);
    });
}

#[test]
fn a_stage_that_outlasts_beats() {
    let options = WorkerOptions { lease: Duration::from_millis(240), ..options() };
    replay(&options, &["beat"], async |kit: &Kit| {
        let row = made(kit, "it").await;
        start::<Walk>(kit, &row, First { first: 0, nap_ms: 200 }).await;
        assert_eq!(ends(kit).await, ["done"]);
        assert_marks(kit, &row, &[1, 7]).await;
    });
}

#[test]
fn a_wait_that_is_called_back() {
    replay(&options(), &["callback"], async |kit: &Kit| {
        let row = made(kit, "it").await;
        start::<Call>(kit, &row, podyard::Nothing {}).await;
        in_status(kit, "waiting").await;
        let token = TOKENS.lock().unwrap()[&row.id].clone();
        call_back(kit, token.clone(), 5).await;
        call_back(kit, token, 6).await;
        assert_eq!(ends(kit).await, ["done"]);
        assert_marks(kit, &row, &[5]).await;
        assert_eq!(kit.number("SELECT COUNT(*) FROM task_callbacks").await.unwrap(), 1);
    });
}

#[test]
fn a_wait_that_is_called_back_early() {
    replay(&options(), &["callback"], async |kit: &Kit| {
        let row = made(kit, "it").await;
        let id = row.id.clone();
        let early = move |tx: &mut Tx<'_>| {
            db::execute(
                tx.conn,
                &Sql::new("UPDATE things SET status = 'early' WHERE id = ").value(id.clone()),
            )
        };
        kit.write("make", early).await.unwrap();
        start::<Call>(kit, &row, podyard::Nothing {}).await;
        let token = kit.until("a token", async |_| TOKENS.lock().unwrap().get(&row.id).cloned()).await;
        call_back(kit, token, 5).await;
        assert_eq!(ends(kit).await, ["done"]);
        assert_marks(kit, &row, &[5]).await;
    });
}

#[test]
fn a_wait_that_nobody_ends() {
    replay(&options(), &[], async |kit: &Kit| {
        let row = made(kit, "it").await;
        start::<Call>(kit, &row, podyard::Nothing {}).await;
        assert_eq!(ends(kit).await, ["failed"]);
        assert_marks(kit, &row, &[-2]).await;
    });
}

#[test]
fn attempts_and_then_the_twin() {
    replay(&options(), &[], async |kit: &Kit| {
        let row = made(kit, "it").await;
        start::<GiveUp>(kit, &row, podyard::Nothing {}).await;
        assert_eq!(ends(kit).await, ["failed"]);
        assert_marks(kit, &row, &[-1]).await;
    });
}

#[test]
fn a_cancel_while_it_runs() {
    replay(&options(), &["cancel"], async |kit: &Kit| {
        let row = made(kit, "it").await;
        start::<Patient>(kit, &row, podyard::Nothing {}).await;
        let task = in_status(kit, "running").await;
        cancel(kit, &task.id).await;
        assert_eq!(ends(kit).await, ["cancelled"]);
        assert_marks(kit, &row, &[-1]).await;
    });
}

#[test]
fn a_cancel_while_it_waits_or_is_queued_or_blocked() {
    replay(&options(), &["cancel"], async |kit: &Kit| {
        let (waits, later) = (made(kit, "waits").await, made(kit, "later").await);
        let (a, b) = (waits.clone(), later.clone());
        started(kit, move |tx| {
            tx.start_task::<Call>(&a, podyard::Nothing {})?;
            tx.task::<Patient>(&a, podyard::Nothing {}).behind().start()?;
            tx.task::<Patient>(&b, podyard::Nothing {}).after(Duration::from_secs(3600)).start()?;
            Ok(())
        })
        .await;
        for status in ["blocked", "queued", "waiting"] {
            let task = match status {
                // Not the first one before it waits.
                "queued" => {
                    let find = async |core: &Arc<Core>| {
                        tasks(core).await.into_iter().find(|it| it.obj_id == later.id)
                    };
                    kit.until("the later one", find).await
                }
                _ => in_status(kit, status).await,
            };
            cancel(kit, &task.id).await;
        }
        assert_eq!(ends(kit).await, ["cancelled"; 3]);
        assert_marks(kit, &waits, &[-3, -1]).await;
        assert_marks(kit, &later, &[-1]).await;
    });
}

#[test]
fn what_was_done_is_undone() {
    replay(&options(), &[], async |kit: &Kit| {
        let row = made(kit, "it").await;
        start::<Undone>(kit, &row, podyard::Nothing {}).await;
        assert_eq!(ends(kit).await, ["failed"]);
        assert_marks(kit, &row, &[1, 2, -12, -11]).await;
    });
}

#[test]
fn subtasks_of_which_one_fails() {
    replay(&options(), &[], async |kit: &Kit| {
        let row = made(kit, "it").await;
        let mut kids = Vec::new();
        for name in ["kid-0", "kid-1", "kid-2"] {
            kids.push(made(kit, name).await);
        }
        start::<Family>(kit, &row, podyard::Nothing {}).await;
        let mut all = ends(kit).await;
        all.sort();
        assert_eq!(all, ["done", "done", "done", "done", "failed"]);
        assert_marks(kit, &row, &[301, 307, 431]).await;
        assert_marks(kit, &kids[0], &[101, 107]).await;
        assert_marks(kit, &kids[1], &[-1]).await;
        assert_marks(kit, &kids[2], &[201, 207]).await;
    });
}

async fn family(kit: &Kit) -> ([Thing; 3], String) {
    let all = [made(kit, "it").await, made(kit, "kid-a").await, made(kit, "kid-b").await];
    start::<Parent>(kit, &all[0], Way::default()).await;
    let wait = async |core: &Arc<Core>| {
        let tasks = tasks(core).await;
        let waits = tasks.iter().filter(|it| it.status == "waiting").count();
        (waits == 3).then(|| tasks.into_iter().find(|it| it.obj_id == all[0].id).unwrap().id.clone())
    };
    let id = kit.until("all three to wait", wait).await;
    (all, id)
}

#[test]
fn a_cancel_of_a_family() {
    replay(&options(), &["cancel"], async |kit: &Kit| {
        let (all, id) = family(kit).await;
        cancel(kit, &id).await;
        assert_eq!(ends(kit).await, ["cancelled"; 3]);
        for (row, marks) in all.iter().zip([[1, -1].as_slice(), &[-1], &[-1]]) {
            assert_marks(kit, row, marks).await;
        }
    });
}

#[test]
fn subtasks_that_take_too_long() {
    replay(&options(), &[], async |kit: &Kit| {
        let (all, _) = family(kit).await;
        kit.skip(Duration::from_secs(61));
        let parent = async |core: &Arc<Core>| {
            tasks(core).await.into_iter().find(|it| it.status == "failed" && it.obj_id == all[0].id)
        };
        kit.until("the parent's end", parent).await;
        let mut ends = ends(kit).await;
        ends.sort();
        assert_eq!(ends, ["cancelled", "cancelled", "failed"]);
        for (row, marks) in all.iter().zip([[1, -1].as_slice(), &[-1], &[-1]]) {
            assert_marks(kit, row, marks).await;
        }
    });
}

#[test]
fn a_process_that_drains() {
    let options = WorkerOptions { grace: Duration::from_millis(10), ..options() };
    replay(&options, &["give back"], async |kit: &Kit| {
        let row = made(kit, "it").await;
        // Longer than it is let end.
        start::<Walk>(kit, &row, First { first: 0, nap_ms: 60 }).await;
        in_status(kit, "running").await;
        kit.drain().await.unwrap();
        assert_eq!(ends(kit).await, ["done"]);
        assert_marks(kit, &row, &[1, 7]).await;
    });
}

#[test]
fn old_tasks_that_are_deleted() {
    let options = WorkerOptions { keep: Duration::from_secs(3600), ..options() };
    replay(&options, &["tidy"], async |kit: &Kit| {
        let row = made(kit, "it").await;
        let it = row.clone();
        started(kit, move |tx| {
            tx.start_task::<Walk>(&it, First::default())?;
            tx.task::<Walk>(&it, First::default()).behind().start().map(drop)
        })
        .await;
        assert_eq!(ends(kit).await, ["done"; 2]);
        assert_marks(kit, &row, &[1, 7, 1, 7]).await;
        kit.skip(Duration::from_secs(3601));
        let none = async |core: &Arc<Core>| {
            kit.tidy().await;
            tasks(core).await.is_empty().then_some(())
        };
        kit.until("no tasks", none).await;
    });
}

#[test]
fn a_lane_of_three() {
    replay(&options(), &[], async |kit: &Kit| {
        let row = made(kit, "it").await;
        let it = row.clone();
        started(kit, move |tx| {
            for first in [0, 10, 20] {
                tx.task::<Walk>(&it, First { first, nap_ms: 0 }).behind().start()?;
            }
            Ok(())
        })
        .await;
        assert_eq!(ends(kit).await, ["done"; 3]);
        assert_marks(kit, &row, &[1, 7, 11, 17, 21, 27]).await;
    });
}

#[test]
fn several_objects_at_once() {
    replay(&options(), &[], async |kit: &Kit| {
        let (a, b) = (made(kit, "a").await, made(kit, "b").await);
        let (x, y) = (a.clone(), b.clone());
        started(kit, move |tx| {
            tx.task::<Several>(&x, podyard::Nothing {}).also([&y]).start()?;
            tx.task::<Walk>(&y, First { first: 10, nap_ms: 0 }).behind().start()?;
            Ok(())
        })
        .await;
        assert_eq!(ends(kit).await, ["done"; 3]);
        assert_marks(kit, &a, &[1]).await;
        assert_marks(kit, &b, &[2, 11, 17]).await;
    });
}

#[test]
fn one_of_a_unique_key() {
    replay(&options(), &["start"], async |kit: &Kit| {
        let (a, b) = (made(kit, "a").await, made(kit, "b").await);
        let (x, y) = (a.clone(), b.clone());
        started(kit, move |tx| {
            let first = tx.task::<Walk>(&x, First::default()).unique("key").start()?;
            let second = tx.task::<Walk>(&y, First::default()).unique("key").start()?;
            assert_eq!(first, second);
            Ok(())
        })
        .await;
        assert_eq!(ends(kit).await, ["done"]);
        assert_marks(kit, &a, &[1, 7]).await;
        assert_marks(kit, &b, &[]).await;
        // And it is free again.
        let row = b.clone();
        let again = move |tx: &mut Tx<'_>| match Task::select().unscoped().count(tx)? {
            1 => tx.task::<Walk>(&row, First::default()).unique("key").start().map(drop),
            _ => Ok(()),
        };
        kit.write("start", again).await.unwrap();
        assert_eq!(ends(kit).await, ["done"; 2]);
        assert_marks(kit, &b, &[1, 7]).await;
    });
}

#[test]
fn a_start_that_is_put_off() {
    replay(&options(), &[], async |kit: &Kit| {
        let row = made(kit, "it").await;
        let it = row.clone();
        started(kit, move |tx| {
            tx.task::<Walk>(&it, First::default()).after(Duration::from_secs(86_400)).start().map(drop)
        })
        .await;
        kit.skip(Duration::from_secs(86_000));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_marks(kit, &row, &[]).await;
        assert_eq!(ends(kit).await, ["done"]);
        assert_marks(kit, &row, &[1, 7]).await;
    });
}
