//! Many tasks on a cluster under fire: three processes that start tasks and
//! call them back and three that run them, on a PostgreSQL of their own, while
//! processes are killed and stopped, connections cut and the server restarted.
//!
//! `PODYARD_PROOF_SECONDS` (40) is how long tasks are started, up to
//! `PODYARD_PROOF_TASKS` (10000); with `PODYARD_PROOF_SECONDS=0` all of these
//! are started, however long it takes. `PODYARD_PROOF_SEED` repeats what a run
//! did to its processes, as far as time allows.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::{Connection as _, SimpleConnection as _};
use podyard::Core;
use podyard::db::{self, Cost, DatabaseUrl, Db, Options, Sql};
use podyard::prelude::*;
use podyard::task::testkit;
use podyard::task::{Engine, WorkerOptions};
use podyard_tests::postgres::Cluster;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::harness::Nobody;
use crate::things::{TABLES, Thing, thing};

const OBJECTS: i64 = 500;
const PROCESSES: usize = 3;
/// Tasks that one transaction starts.
const BATCH: i64 = 5;
/// Tasks that have not ended, at most.
const OPEN: i64 = 3000;

/// What is checked in the end: who was where (`stage` of `task`, in the order
/// of `place`), what took effect, what was called back, what was started.
const TRACES: &str = "CREATE TABLE traces (place BIGSERIAL PRIMARY KEY, obj_id TEXT NOT NULL, task_id TEXT NOT NULL, \
     attempt TEXT NOT NULL, n BIGINT NOT NULL, what TEXT NOT NULL); \
     CREATE TABLE calls (token TEXT NOT NULL PRIMARY KEY, called BOOLEAN NOT NULL); \
     CREATE TABLE begun (server BIGINT NOT NULL, batch BIGINT NOT NULL, tasks BIGINT NOT NULL, \
     PRIMARY KEY (server, batch));";

// ---------------------------------------------------------------- the tasks

/// The how manieth task of its object it is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Nth {
    n: i64,
}

fn trace(tx: &mut Tx<'_>, t: &Nth, ids: &[String; 3], what: &str) -> Result<()> {
    let mut sql = Sql::new("INSERT INTO traces (obj_id, task_id, attempt, n, what) VALUES (").value(&ids[0]);
    sql.push(", ").bind(&ids[1]).push(", ").bind(&ids[2]).push(", ").bind(t.n);
    sql.push(", ").bind(what).push(")");
    db::execute(tx.conn, &sql)?;
    Ok(())
}

fn ids(t: &TaskCtx<Thing, Nth>) -> [String; 3] {
    [t.object().id.clone(), t.task_id().to_owned(), t.idempotency_key()]
}

/// Enters a stage: on the record, if the task is still this attempt's.
async fn enter(t: &TaskCtx<Thing, Nth>, stage: &'static str) -> Result<()> {
    let (ids, nth, attempt) = (ids(t), *t.params(), t.attempt());
    let enter = move |tx: &mut Tx<'_>| {
        let mut sql = Sql::new("SELECT id FROM tasks WHERE status = 'running' AND id = ").value(&ids[1]);
        sql.push(" AND attempt = ").bind(attempt).push(" AND stage = ").bind(stage).push(" FOR SHARE");
        if db::load_one::<(String,)>(tx.conn, sql)?.is_none() {
            return Err(Error::unavailable("not mine any more", 1));
        }
        trace(tx, &nth, &ids, "enter")
    };
    t.ctx().write(None, enter).await.map(drop)
}

fn leave(t: &TaskCtx<Thing, Nth>, stage: Stage, what: &'static str) -> Stage {
    let (ids, nth) = (ids(t), *t.params());
    stage.with(move |tx, it: &mut Thing| {
        it.count += 1;
        tx.save(it)?;
        trace(tx, &nth, &ids, what)
    })
}

/// Stages with effects and one without, and now and then an outside that
/// answers late.
pub struct Errand;

#[stages(object = Thing, params = Nth)]
impl Errand {
    #[stage(attempts = 1000)]
    async fn on_init(t: &mut TaskCtx<Thing, Nth>) -> podyard::Result<Stage> {
        enter(t, "on_init").await?;
        Ok(leave(t, Stage::next(Self::ON_AWAY), "first"))
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing, Nth>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    #[stage(attempts = 1000)]
    async fn on_away(t: &mut TaskCtx<Thing, Nth>) -> podyard::Result<Stage> {
        if t.params().n % 10 != 3 {
            return Ok(Stage::next(Self::ON_BACK).data("by itself"));
        }
        let token = t.callback();
        let call = move |tx: &mut Tx<'_>| {
            let sql = Sql::new("INSERT INTO calls (token, called) VALUES (").value(token).text(", FALSE)");
            db::execute(tx.conn, &sql.text(" ON CONFLICT DO NOTHING"))
        };
        t.ctx().write(None, call).await?;
        Ok(Stage::wait(Self::ON_BACK).within(Duration::from_secs(600)))
    }
    async fn on_away_failed(_: &mut TaskCtx<Thing, Nth>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    #[stage(attempts = 1000)]
    async fn on_back(t: &mut TaskCtx<Thing, Nth>, _: String) -> podyard::Result<Stage> {
        enter(t, "on_back").await?;
        // Long enough to be killed in.
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(leave(t, Stage::complete(), "last"))
    }
    async fn on_back_failed(_: &mut TaskCtx<Thing, Nth>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

// ---------------------------------------------------------------- the processes

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|it| it.parse().ok()).unwrap_or(default)
}

fn options() -> WorkerOptions {
    WorkerOptions {
        lease: Duration::from_millis(700),
        poll: Duration::from_millis(200),
        backoff: Duration::from_millis(20),
        backoff_max: Duration::from_millis(500),
        ..WorkerOptions::default()
    }
}

fn core(url: &str, pool: u32) -> Option<Arc<Core>> {
    let db = Db::open(&url.parse().unwrap(), Options { pool, ..Options::default() }).ok()?;
    Some(Arc::new(Core::new(db, Arc::new(Nobody))))
}

async fn write<R: Send + 'static>(
    core: &Arc<Core>,
    f: impl Fn(&mut Tx<'_>) -> Result<R> + Clone + Send + 'static,
) -> R {
    loop {
        match Ctx::system(core).write(None, f.clone()).await {
            Ok(done) => return done.value,
            Err(error) => {
                eprintln!("tries again: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn ask(core: &Arc<Core>, sql: &'static str) -> i64 {
    write(core, move |tx| Ok(db::load_one::<(i64,)>(tx.conn, Sql::new(sql))?.map_or(0, |(n,)| n))).await
}

/// Calls back whatever wants to be, maybe as another does.
async fn call_back(core: &Arc<Core>) {
    let read = |conn: &mut db::AnyConnection| {
        db::load::<(String,)>(conn, Sql::new("SELECT token FROM calls WHERE called = FALSE LIMIT 10"))
    };
    let Ok(tokens) = core.db.read(Cost::Bounded, read).await else { return };
    for (token,) in tokens.value {
        match Engine::callback(core, &token, serde_json::json!("called")).await {
            Err(error) if error.class_name() != "CallbackUsedError" => eprintln!("{token}: {error}"),
            _ => {
                write(core, move |tx| {
                    let sql = Sql::new("UPDATE calls SET called = TRUE WHERE token = ").value(token.clone());
                    db::execute(tx.conn, &sql)
                })
                .await;
            }
        }
    }
}

/// Starts tasks on its part of the objects: batch by batch, each known by its
/// number, so that one which takes its place goes on.
async fn serve(core: Arc<Core>, me: i64) {
    let (seconds, tasks) = (number("PODYARD_PROOF_SECONDS", 40), number("PODYARD_PROOF_TASKS", 10_000));
    let until = number("PODYARD_PROOF_UNTIL", 0);
    let over = || seconds > 0 && podyard::now().timestamp() >= i64::try_from(until).unwrap();
    let mine: Vec<i64> = (0..OBJECTS).filter(|it| it % PROCESSES as i64 == me).collect();
    let chunks: Vec<Vec<i64>> = mine.chunks(BATCH as usize).map(<[i64]>::to_vec).collect();
    let batches = i64::try_from(tasks).unwrap() / OBJECTS * i64::try_from(chunks.len()).unwrap();
    let mut batch = 0;
    loop {
        call_back(&core).await;
        if batch >= batches || over() {
            write(&core, move |tx| {
                let sql = Sql::new("INSERT INTO begun (server, batch, tasks) VALUES (").value(me);
                db::execute(tx.conn, &sql.text(", -1, 0) ON CONFLICT DO NOTHING"))
            })
            .await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let open = "SELECT count(*) FROM tasks WHERE active_key IS NOT NULL OR blocked_on IS NOT NULL";
        if ask(&core, open).await > OPEN {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        for _ in 0..10 {
            let (chunk, n) = (
                chunks[usize::try_from(batch).unwrap() % chunks.len()].clone(),
                batch / i64::try_from(chunks.len()).unwrap(),
            );
            write(&core, move |tx| {
                let mut sql = Sql::new("INSERT INTO begun (server, batch, tasks) VALUES (").value(me);
                sql.push(", ").bind(batch).push(", ").bind(i64::try_from(chunk.len()).unwrap());
                sql.push(") ON CONFLICT DO NOTHING");
                if db::execute(tx.conn, &sql)? == 0 {
                    return Ok(());
                }
                for object in &chunk {
                    let row = thing(tx, &format!("thing-{object}"))?;
                    tx.task::<Errand>(&row, Nth { n }).behind().start()?;
                }
                Ok(())
            })
            .await;
            batch += 1;
        }
    }
}

/// Not a test: a process of the next one.
#[test]
#[ignore = "run by a_cluster_under_fire"]
fn process() {
    let Ok(url) = std::env::var("PODYARD_PROOF_URL") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        // It may begin while the server is away.
        let core = loop {
            match core(&url, 6) {
                Some(core) => break core,
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        match std::env::var("PODYARD_PROOF_SERVER") {
            Ok(me) => serve(core, me.parse().unwrap()).await,
            Err(_) => {
                let _workers = loop {
                    match Engine::run(&core, options()) {
                        Ok(it) => break it,
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                };
                std::future::pending::<()>().await;
            }
        }
    });
}

struct Process(Child);

impl Process {
    fn start(url: &str, until: i64, server: Option<usize>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "cluster::process", "--ignored"]).env("PODYARD_PROOF_URL", url);
        command.env("PODYARD_PROOF_UNTIL", until.to_string());
        if let Some(server) = server {
            command.env("PODYARD_PROOF_SERVER", server.to_string());
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    /// With SIGKILL, whatever it is doing.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---------------------------------------------------------------- the test

/// A connection of the checker's own.
fn rows<T: db::FromRow + Send + 'static>(core: &Arc<Core>, sql: &'static str) -> Vec<T> {
    for _ in 0..100 {
        if let Ok(rows) = core.db.write_blocking(move |conn| db::load::<T>(conn, Sql::new(sql))) {
            return rows;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the database cannot be asked: {sql}");
}

fn one(core: &Arc<Core>, sql: &'static str) -> i64 {
    rows::<(i64,)>(core, sql)[0].0
}

#[test]
fn a_cluster_under_fire() {
    let mut cluster = match Cluster::new() {
        Ok(cluster) => cluster,
        Err(why) => {
            println!("SKIPPED, since there is no PostgreSQL to restart: {why}");
            return;
        }
    };
    let (seconds, tasks) = (number("PODYARD_PROOF_SECONDS", 40), number("PODYARD_PROOF_TASKS", 10_000));
    let seed = number("PODYARD_PROOF_SEED", rand::random::<u32>().into());
    println!("PODYARD_PROOF_SEED={seed} repeats it");
    let mut random = StdRng::seed_from_u64(seed);
    let url = cluster.url();
    db::migrate(&DatabaseUrl::Postgres(url.clone())).unwrap();
    let core = core(&url, 4).unwrap();
    core.db
        .write_blocking(|conn| {
            db::define(conn, TABLES)?;
            db::define(conn, TRACES)
        })
        .unwrap();

    let begin = Instant::now();
    let until = podyard::now().timestamp() + i64::try_from(seconds).unwrap();
    let start = |server| Process::start(&url, until, server);
    let mut servers: Vec<_> = (0..PROCESSES).map(|i| start(Some(i))).collect();
    let mut workers: Vec<_> = (0..PROCESSES).map(|_| start(None)).collect();
    let mut done = [0; 5];
    // One sleeps for longer than others wait for it, and wakes as a zombie.
    std::thread::sleep(Duration::from_secs(1));
    workers[0].signal(Signal::STOP);
    let mut stopped = Some((0, Instant::now()));
    let served = "SELECT count(*) FROM begun WHERE batch = -1";
    // Under fire, until all tasks are started.
    while one(&core, served) < PROCESSES as i64 {
        std::thread::sleep(Duration::from_millis(random.random_range(300..1500)));
        if let Some((i, _)) = stopped.take_if(|(_, at)| at.elapsed() > Duration::from_millis(3000)) {
            workers[i].signal(Signal::CONT);
            done[1] += 1;
        }
        let i = random.random_range(0..PROCESSES);
        match random.random_range(0..10) {
            0..=3 if stopped.is_none_or(|(it, _)| it != i) => {
                done[0] += 1;
                workers[i] = start(None);
            }
            4..=5 if stopped.is_none() => {
                workers[i].signal(Signal::STOP);
                stopped = Some((i, Instant::now()));
            }
            6 => {
                done[2] += 1;
                servers[i] = start(Some(i));
            }
            7..=8 => {
                done[3] += 1;
                let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
                     AND backend_type = 'client backend'";
                if let Ok(mut conn) = diesel::PgConnection::establish(&url) {
                    let _ = conn.batch_execute(cut);
                }
            }
            9 if begin.elapsed() > Duration::from_secs(4) => {
                done[4] += 1;
                cluster.stop();
                std::thread::sleep(Duration::from_millis(random.random_range(0..700)));
                cluster.start().unwrap();
            }
            _ => {}
        }
        let limit =
            if seconds > 0 { Duration::from_secs(seconds * 3 + 60) } else { Duration::from_secs(7200) };
        assert!(begin.elapsed() < limit, "the servers do not come to an end");
    }
    if let Some((i, _)) = stopped {
        workers[i].signal(Signal::CONT);
    }
    let under_fire = begin.elapsed();
    // And now they are left alone.
    let open = "SELECT count(*) FROM tasks WHERE ended_at IS NULL";
    let (mut left, mut moved) = (one(&core, open), Instant::now());
    while left > 0 {
        std::thread::sleep(Duration::from_millis(200));
        let now = one(&core, open);
        if now < left {
            (left, moved) = (now, Instant::now());
        }
        if moved.elapsed() > Duration::from_secs(45) {
            let all: Vec<(String, String, String, i64)> = rows(
                &core,
                "SELECT status, stage, reason, count(*) FROM tasks WHERE ended_at IS NULL GROUP BY 1, 2, 3",
            );
            panic!("{left} tasks do not end: {all:?}");
        }
    }
    let all = one(&core, "SELECT count(*) FROM tasks");
    let lost = one(&core, "SELECT count(*) FROM task_history WHERE outcome = 'lost'");
    let [killed, stopped, servers_killed, cut, restarted] = done;
    println!(
        "{all} of {tasks} tasks in {:.0} s, of which {:.0} s under fire: {killed} workers and {servers_killed} servers \
         killed, {stopped} workers stopped and woken, connections cut {cut} times, PostgreSQL restarted {restarted} times; \
         {lost} attempts lost",
        begin.elapsed().as_secs_f64(),
        under_fire.as_secs_f64(),
    );
    drop((workers, servers));

    assert_eq!(one(&core, "SELECT count(*) FROM tasks WHERE status <> 'done'"), 0);
    let begun = one(&core, "SELECT sum(tasks)::bigint FROM begun");
    assert_eq!(all, begun, "each was started, and once");
    assert!(all > 0);
    for (what, sql) in [
        ("first", "SELECT count(DISTINCT task_id) FROM traces WHERE what = 'first'"),
        ("last", "SELECT count(DISTINCT task_id) FROM traces WHERE what = 'last'"),
    ] {
        assert_eq!(one(&core, sql), all, "an effect is missing: {what}");
    }
    let effects = one(&core, "SELECT count(*) FROM traces WHERE what <> 'enter'");
    assert_eq!(effects, 2 * all, "an effect happened twice");
    let count = one(&core, "SELECT sum(count)::bigint FROM things");
    assert_eq!(count, effects, "a change of an object is missing");
    // Between entering and leaving, nobody else left: those that took effect had it to themselves.
    let overlaps = one(
        &core,
        "SELECT count(*) FROM traces e JOIN traces l ON l.attempt = e.attempt AND l.what <> 'enter' \
         JOIN traces o ON o.obj_id = e.obj_id AND o.place > e.place AND o.place < l.place WHERE e.what = 'enter'",
    );
    assert_eq!(overlaps, 0, "two stages of one object overlapped");
    let disorder = one(
        &core,
        "SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY obj_id ORDER BY place) AS before FROM traces) it \
         WHERE n < before",
    );
    assert_eq!(disorder, 0, "an object's tasks ran out of order");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wrong = runtime.block_on(testkit::check(&core)).unwrap();
    assert_eq!(wrong, Vec::<String>::new());
    let late = one(&core, "SELECT count(*) FROM calls WHERE NOT called");
    println!("{late} calls were not noted as made");
}
