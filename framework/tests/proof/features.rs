//! What a start, a stage and a kind of task can say, each with what it promises.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use podyard::auth::UserCred;
use podyard::db::{Db, Options};
use podyard::model::{ActionInput, ActionKind};
use podyard::prelude::*;
use podyard::registry::Registry;
use podyard::task::testkit::{self, Kit};
use podyard::task::{Subtasks, Task, WorkerOptions};
use podyard::{Core, Kind};
use serde::{Deserialize, Serialize};

use crate::each;
use crate::harness::{Nobody, TestDb};
use crate::things::{TABLES, Thing, mark, marks, tasks, thing};

/// Runs a test on each database with a kit that lets no process die.
fn with_kit(options: &WorkerOptions, test: impl AsyncFn(&Kit)) {
    each(TABLES, async |db: Arc<TestDb>| {
        let opened = Db::open(&db.url, Options { pool: 8, ..Options::default() }).unwrap();
        let open = move || Arc::new(Core::new(opened.clone(), Arc::new(Nobody)));
        let kit = Kit::new(open, options.clone());
        test(&kit).await;
        kit.settle().await;
        assert_eq!(testkit::check(&kit.core()).await.unwrap(), Vec::<String>::new());
    });
}

fn options() -> WorkerOptions {
    WorkerOptions {
        poll: Duration::from_millis(50),
        backoff: Duration::from_millis(5),
        ..WorkerOptions::default()
    }
}

async fn made(kit: &Kit, name: &str) -> Thing {
    let name = name.to_owned();
    kit.write("make", move |tx| thing(tx, &name)).await.unwrap()
}

/// `POST /tasks/<id>/<action>`.
async fn act(kit: &Kit, id: &str, action: &'static str) -> Result<()> {
    let id = id.to_owned();
    let act = move |tx: &mut Tx<'_>| {
        let registry = Registry::collect();
        let of = registry.get("tasks").unwrap();
        let action = of.actions[&(ActionKind::Item, action)];
        of.handler.act(tx, &id, action, &ActionInput::default(), &podyard::dispatch::IfMatch::Any)?;
        Ok(())
    };
    kit.write("act", act).await
}

async fn of(kit: &Kit, id: &str) -> Task {
    tasks(&kit.core()).await.into_iter().find(|it| it.id == id).unwrap()
}

async fn in_status(kit: &Kit, id: &str, status: &str) -> Task {
    kit.until(status, async |core| {
        tasks(core).await.into_iter().find(|it| it.id == id && it.status == status)
    })
    .await
}

// ---------------------------------------------------------------- deadlines

/// How it passes the time.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Way {
    how: String,
}

/// Never gets anywhere.
pub struct Dawdle;

#[stages(object = Thing, params = Way)]
impl Dawdle {
    #[stage(attempts = 100, backoff_ms = 3_600_000)]
    async fn on_init(t: &mut TaskCtx<Thing, Way>) -> Stage {
        match t.params().how.as_str() {
            "retry" => Stage::retry("not yet"),
            "later" => Stage::next(Self::ON_INIT).after(Duration::from_secs(3600)),
            "wait" => Stage::wait(Self::ON_INIT).within(Duration::from_secs(3600)),
            _ => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Stage::complete()
            }
        }
    }
    async fn on_init_failed(t: &mut TaskCtx<Thing, Way>, why: Reason) -> Stage {
        let (task, n) = (t.task_id().to_owned(), if why.is_timeout() { -1 } else { -9 });
        Stage::fail(why).with(move |tx, it: &mut Thing| mark(tx, it, &task, n))
    }
}

#[test]
fn a_deadline_ends_a_task_wherever_it_is() {
    with_kit(&options(), async |kit: &Kit| {
        for (how, within) in [("retry", 20), ("later", 20), ("wait", 20), ("hang", 1)] {
            let row = made(kit, how).await;
            let it = row.clone();
            let start = move |tx: &mut Tx<'_>| {
                let way = Way { how: how.to_owned() };
                tx.task::<Dawdle>(&it, way).within(Duration::from_secs(within)).start()
            };
            let id = kit.write("start", start).await.unwrap();
            kit.run().unwrap();
            kit.settle().await;
            let task = of(kit, &id).await;
            assert_eq!((task.status.as_str(), task.reason_kind.as_str()), ("failed", "timeout"), "{how}");
            assert_eq!(marks(&kit.core(), &row.id).await, [-1], "{how}");
            let over = task.ended_at.unwrap() - task.deadline.unwrap();
            assert!(over.num_seconds() < 20, "{how}: {over} late");
        }
    });
}

// ---------------------------------------------------------------- subtasks

/// Waits for a callback that nobody makes.
pub struct Idle;

#[stages(object = Thing)]
impl Idle {
    async fn on_init(_: &mut TaskCtx<Thing>) -> Stage {
        Stage::wait(Self::ON_NEVER).within(Duration::from_secs(24 * 3600))
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_never(_: &mut TaskCtx<Thing>) -> Stage {
        Stage::complete()
    }
    async fn on_never_failed(t: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        let (task, n) = (t.task_id().to_owned(), if why.is_cancelled() { -1 } else { -9 });
        Stage::fail(why).with(move |tx, it: &mut Thing| mark(tx, it, &task, n))
    }
}

/// Has two subtasks that wait for ever, and something to undo.
pub struct Parent;

#[stages(object = Thing, params = Way)]
impl Parent {
    async fn on_init(t: &mut TaskCtx<Thing, Way>) -> Stage {
        let task = t.task_id().to_owned();
        Stage::next(Self::ON_SPLIT).with(move |tx, it: &mut Thing| mark(tx, it, &task, 1))
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing, Way>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_init_undo(t: &mut TaskCtx<Thing, Way>, _: Option<i64>) -> Stage {
        let task = t.task_id().to_owned();
        Stage::complete().with(move |tx, it: &mut Thing| mark(tx, it, &task, -1))
    }
    async fn on_split(t: &mut TaskCtx<Thing, Way>) -> podyard::Result<Stage> {
        let read = |tx: &mut Tx<'_>| Ok([thing(tx, "kid-a")?, thing(tx, "kid-b")?]);
        let [a, b] = t.ctx().read(podyard::db::Cost::Bounded, read).await?.value;
        Ok(Stage::fan_out(Self::ON_JOINED)
            .subtask::<Idle>(a, podyard::Nothing {})
            .subtask::<Idle>(b, podyard::Nothing {})
            .within(Duration::from_secs(60)))
    }
    async fn on_split_failed(_: &mut TaskCtx<Thing, Way>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_joined(_: &mut TaskCtx<Thing, Way>, _: Subtasks) -> Stage {
        Stage::complete()
    }
    async fn on_joined_failed(t: &mut TaskCtx<Thing, Way>, why: Reason) -> Stage {
        match t.params().how.as_str() {
            "on" => Stage::next(Self::ON_AFTER),
            _ => Stage::fail(why),
        }
    }
    async fn on_after(_: &mut TaskCtx<Thing, Way>) -> Stage {
        Stage::complete()
    }
    async fn on_after_failed(_: &mut TaskCtx<Thing, Way>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

#[test]
fn who_ends_cancels_its_subtasks() {
    with_kit(&options(), async |kit: &Kit| {
        for (how, end, left) in
            [("undo", "failed", vec![1, -1]), ("on", "done", vec![1]), ("cancel", "cancelled", vec![1, -1])]
        {
            testkit::reset(&kit.core()).await.unwrap();
            let (a, b) = (made(kit, "kid-a").await, made(kit, "kid-b").await);
            let before = (marks(&kit.core(), &a.id).await.len(), marks(&kit.core(), &b.id).await.len());
            let row = made(kit, how).await;
            let it = row.clone();
            let start = move |tx: &mut Tx<'_>| tx.start_task::<Parent>(&it, Way { how: how.to_owned() });
            let id = kit.write("start", start).await.unwrap();
            kit.run().unwrap();
            if how == "cancel" {
                kit.until("three that wait", async |core| {
                    (tasks(core).await.iter().filter(|it| it.status == "waiting").count() == 3).then_some(())
                })
                .await;
                act(kit, &id, "cancel").await.unwrap();
            }
            // No time is skipped for the subtasks: they would wait for a day.
            kit.until("its end", async |core| {
                let all = tasks(core).await;
                let open = all.iter().filter(|it| it.ended_at.is_none());
                if all.len() == 3 && open.clone().all(|it| it.status == "waiting") && how != "cancel" {
                    kit.skip(Duration::from_secs(1));
                }
                (all.len() == 3 && open.count() == 0).then_some(())
            })
            .await;
            assert_eq!(of(kit, &id).await.status, end, "{how}");
            for it in tasks(&kit.core()).await.iter().filter(|it| it.id != id) {
                assert_eq!(it.status, "cancelled", "{how}");
            }
            assert_eq!(marks(&kit.core(), &row.id).await, left, "{how}");
            assert_eq!(marks(&kit.core(), &a.id).await[before.0..], [-1], "{how}");
            assert_eq!(marks(&kit.core(), &b.id).await[before.1..], [-1], "{how}");
        }
    });
}

// ---------------------------------------------------------------- undoing

static STUCK: AtomicUsize = AtomicUsize::new(0);

/// Its second undoing fails as long as it is stuck.
pub struct Sticky;

#[stages(object = Thing)]
impl Sticky {
    async fn on_init(t: &mut TaskCtx<Thing>) -> Stage {
        let task = t.task_id().to_owned();
        Stage::next(Self::ON_MORE).undo_data(5).with(move |tx, it: &mut Thing| mark(tx, it, &task, 1))
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    #[stage(attempts = 2)]
    async fn on_init_undo(t: &mut TaskCtx<Thing>, n: i64) -> Stage {
        if STUCK.load(Ordering::Relaxed) == 1 {
            return Stage::retry("stuck");
        }
        let task = t.task_id().to_owned();
        Stage::complete().with(move |tx, it: &mut Thing| mark(tx, it, &task, -n))
    }
    async fn on_more(_: &mut TaskCtx<Thing>) -> Stage {
        Stage::next(Self::ON_LAST).undo_data(6)
    }
    async fn on_more_failed(_: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_more_undo(t: &mut TaskCtx<Thing>, n: i64) -> Stage {
        let task = t.task_id().to_owned();
        Stage::complete().with(move |tx, it: &mut Thing| mark(tx, it, &task, -n))
    }
    async fn on_last(_: &mut TaskCtx<Thing>) -> Stage {
        Stage::fail("no more")
    }
    async fn on_last_failed(_: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

#[test]
fn an_undoing_that_fails_is_gone_on_with_by_a_retry() {
    with_kit(&options(), async |kit: &Kit| {
        STUCK.store(1, Ordering::Relaxed);
        let row = made(kit, "it").await;
        let it = row.clone();
        let id =
            kit.write("start", move |tx| tx.start_task::<Sticky>(&it, podyard::Nothing {})).await.unwrap();
        kit.run().unwrap();
        kit.settle().await;
        let task = of(kit, &id).await;
        assert_eq!((task.status.as_str(), task.stage.as_str()), ("failed", "on_init_undo"));
        assert_eq!(task.reason, "no more; then on_init_undo failed: stuck");
        assert_eq!(marks(&kit.core(), &row.id).await, [1, -6], "what was undone is not undone again");
        STUCK.store(0, Ordering::Relaxed);
        act(kit, &id, "retry").await.unwrap();
        kit.settle().await;
        assert_eq!(marks(&kit.core(), &row.id).await, [1, -6, -5]);
        assert_eq!(of(kit, &id).await.status, "failed");
        // All is undone: now a retry begins anew.
        act(kit, &id, "retry").await.unwrap();
        kit.settle().await;
        assert_eq!(marks(&kit.core(), &row.id).await, [1, -6, -5, 1, -6, -5]);
    });
}

// ---------------------------------------------------------------- objects

#[test]
fn all_of_its_objects_are_its_own() {
    with_kit(&options(), async |kit: &Kit| {
        let (a, b) = (made(kit, "a").await, made(kit, "b").await);
        let (x, y) = (a.clone(), b.clone());
        let id = kit
            .write("start", move |tx| tx.task::<Idle>(&x, podyard::Nothing {}).also([&y]).start())
            .await
            .unwrap();
        kit.run().unwrap();
        in_status(kit, &id, "waiting").await;
        for row in [&a, &b] {
            let row = row.clone();
            let error = kit
                .write("start", move |tx| tx.start_task::<Idle>(&row, podyard::Nothing {}))
                .await
                .unwrap_err();
            assert_eq!((error.kind(), error.class_name()), (Kind::Conflict, "TaskInProgressError"));
        }
        let member = tasks(&kit.core()).await.into_iter().find(|it| it.status == "member").unwrap();
        assert_eq!(member.obj_id, b.id);
        let error = act(kit, &member.id, "cancel").await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{error}");
        // Busy in its second object, it leaves nothing of its first.
        let (c, y) = (made(kit, "c").await, b.clone());
        let also = c.clone();
        kit.write("start", move |tx| tx.task::<Idle>(&also, podyard::Nothing {}).also([&y]).start())
            .await
            .unwrap_err();
        let free = c.clone();
        let other =
            kit.write("start", move |tx| tx.start_task::<Idle>(&free, podyard::Nothing {})).await.unwrap();
        in_status(kit, &other, "waiting").await;
        // One behind its further object runs when it has ended.
        let y = b.clone();
        let next = kit
            .write("start", move |tx| tx.task::<Idle>(&y, podyard::Nothing {}).behind().start())
            .await
            .unwrap();
        assert_eq!(of(kit, &next).await.status, "blocked");
        act(kit, &id, "cancel").await.unwrap();
        in_status(kit, &next, "waiting").await;
        assert_eq!(of(kit, &member.id).await.status, "cancelled");
        act(kit, &next, "cancel").await.unwrap();
        act(kit, &other, "cancel").await.unwrap();
        kit.settle().await;
        assert_eq!(marks(&kit.core(), &b.id).await, [-1]);
    });
}

#[test]
fn who_leaves_a_lane_holds_up_nobody() {
    with_kit(&options(), async |kit: &Kit| {
        let row = made(kit, "it").await;
        let it = row.clone();
        let ids = kit
            .write("start", move |tx| {
                let ids: Result<Vec<_>> =
                    (0..4).map(|_| tx.task::<Idle>(&it, podyard::Nothing {}).behind().start()).collect();
                ids
            })
            .await
            .unwrap();
        kit.run().unwrap();
        in_status(kit, &ids[0], "waiting").await;
        // The one in the middle: it still has its turn, to wind up.
        act(kit, &ids[1], "cancel").await.unwrap();
        act(kit, &ids[0], "cancel").await.unwrap();
        in_status(kit, &ids[2], "waiting").await;
        assert_eq!(of(kit, &ids[1]).await.status, "cancelled");
        assert_eq!(of(kit, &ids[3]).await.status, "blocked");
        act(kit, &ids[2], "cancel").await.unwrap();
        in_status(kit, &ids[3], "waiting").await;
        act(kit, &ids[3], "cancel").await.unwrap();
    });
}

// ---------------------------------------------------------------- shares

/// What ran, in order; inside now and at most.
#[derive(Default)]
struct Ran {
    order: Vec<String>,
    inside: usize,
    most: usize,
}

static RAN: LazyLock<Mutex<Ran>> = LazyLock::new(Mutex::default);

async fn note(of: &str, nap: Duration) {
    {
        let mut ran = RAN.lock().unwrap();
        ran.order.push(of.to_owned());
        ran.inside += 1;
        ran.most = ran.most.max(ran.inside);
    }
    tokio::time::sleep(nap).await;
    RAN.lock().unwrap().inside -= 1;
}

macro_rules! kind {
    ($(#[$doc:meta])* $name:ident, $nap:expr $(, $key:ident = $value:expr)*) => {
        $(#[$doc])*
        pub struct $name;

        #[stages(object = Thing, params = Way $(, $key = $value)*)]
        impl $name {
            async fn on_init(t: &mut TaskCtx<Thing, Way>) -> Stage {
                note(&t.params().how, Duration::from_millis($nap)).await;
                Stage::complete()
            }
            async fn on_init_failed(_: &mut TaskCtx<Thing, Way>, why: Reason) -> Stage {
                Stage::fail(why)
            }
        }
    };
}

kind!(
    /// Notes that it ran.
    Plain,
    1
);
kind!(
    /// Two at once at most.
    Pair,
    10,
    concurrency = 2
);
kind!(
    /// Twenty a second at most.
    Slow,
    0,
    per_second = 20
);

/// These look at what all of them ran.
static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn fresh() -> tokio::sync::MutexGuard<'static, ()> {
    let guard = ONE.lock().await;
    *RAN.lock().unwrap() = Ran::default();
    guard
}

fn order() -> Vec<String> {
    std::mem::take(&mut *RAN.lock().unwrap()).order
}

async fn many<T>(kit: &Kit, project: &str, names: &[&str], priority: i64)
where
    T: podyard::task::TaskType<Object = Thing, Params = Way>,
{
    let cred = UserCred { project_id: project.to_owned(), ..UserCred::system() };
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let start = move |tx: &mut Tx<'_>| {
        for how in names {
            let row = thing(tx, &podyard::new_id())?;
            tx.task::<T>(&row, Way { how }).priority(priority).start()?;
        }
        Ok(())
    };
    Ctx::new(kit.core(), Arc::new(cred), "r").write(None, start).await.unwrap();
}

#[test]
fn smaller_priorities_go_first() {
    with_kit(&WorkerOptions { slots: 1, ..options() }, async |kit: &Kit| {
        let _guard = fresh().await;
        many::<Plain>(kit, "p", &["90"; 5], 90).await;
        many::<Plain>(kit, "p", &["50"; 5], 50).await;
        many::<Plain>(kit, "p", &["10"; 5], 10).await;
        kit.run().unwrap();
        kit.settle().await;
        assert_eq!(order(), [["10"; 5], ["50"; 5], ["90"; 5]].concat());
    });
}

#[test]
fn projects_take_turns() {
    with_kit(&WorkerOptions { slots: 2, ..options() }, async |kit: &Kit| {
        let _guard = fresh().await;
        many::<Plain>(kit, "big", &["big"; 200], 50).await;
        many::<Plain>(kit, "small", &["small"; 10], 50).await;
        many::<Plain>(kit, "tiny", &["tiny"; 3], 50).await;
        kit.run().unwrap();
        kit.settle().await;
        let order = order();
        let last = |of: &str| order.iter().rposition(|it| it == of).unwrap();
        // In turn, of three and then of two: 3 × 3 and 7 × 2; twice that, for
        // what a turn gives at once.
        assert!(last("tiny") < 20, "tiny waited for {} others", last("tiny"));
        assert!(last("small") < 50, "small waited for {} others", last("small"));
        assert_eq!(order.len(), 213);
    });
}

#[test]
fn a_kind_runs_no_more_at_once_than_it_says() {
    // It looks seldom: who ends must make room for the next.
    with_kit(&WorkerOptions { poll: Duration::from_secs(2), ..options() }, async |kit: &Kit| {
        let _guard = fresh().await;
        many::<Pair>(kit, "p", &["it"; 40], 50).await;
        let begin = Instant::now();
        kit.run().unwrap();
        kit.settle().await;
        let took = begin.elapsed();
        assert_eq!(RAN.lock().unwrap().most, 2);
        assert_eq!(order().len(), 40);
        assert!(took < Duration::from_secs(10), "a slot that is free is not used: {took:?}");
    });
}

#[test]
fn a_kind_begins_no_more_in_a_second_than_it_says() {
    with_kit(&options(), async |kit: &Kit| {
        let _guard = fresh().await;
        many::<Slow>(kit, "p", &["it"; 50], 50).await;
        let begin = Instant::now();
        kit.run().unwrap();
        kit.settle().await;
        // A second's worth at once, and the others one by one.
        let took = begin.elapsed();
        assert_eq!(order().len(), 50);
        assert!(took > Duration::from_millis(1200), "{took:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
    });
}
