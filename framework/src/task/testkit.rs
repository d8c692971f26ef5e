//! For tests of tasks: time that passes when it is told to, and failures at
//! any moment. A [`Kit`] is an engine whose process may die and be followed by
//! another, over one database; [`replay`] runs a scenario once for each point
//! of the engine's life (each transaction, each stage) and each way to fail
//! there, and so proves that none of them loses or repeats anything.
//!
//! ```no_run
//! # use std::{sync::Arc, time::Duration};
//! # use podyard::task::testkit::{Kit, check, replay, reset};
//! # async fn example(core: impl Fn() -> Arc<podyard::Core> + Send + Sync + Clone + 'static) {
//! let kits = async || Kit::new(core.clone(), Default::default());
//! replay(kits, async |kit: &Kit| {
//!     reset(&kit.core()).await.unwrap();
//!     kit.write("start", |tx| { /* tx.start_task… */ Ok(()) }).await.unwrap();
//!     kit.settle().await;                      // waits and delays take no time
//!     assert_eq!(check(&kit.core()).await.unwrap(), Vec::<String>::new());
//! })
//! .await;
//! # }
//! ```

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel::Connection as _;
use diesel::connection::InstrumentationEvent;
use futures_util::FutureExt as _;
use tokio::time::sleep;

use super::clock::micros;
pub use super::faults::{Fault, Point, Then, When};
use super::{Engine, WorkerOptions, Workers, store};
use crate::ctx::{Core, Ctx, Tx};
use crate::db::{self, Cost, Sql};
use crate::{Error, Result};

/// How often what cannot wake anybody is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// When a test is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the time of a process's engine go by: what is due within it is due
/// now. Stages' own sleeps and time limits are not of it.
pub fn skip(core: &Core, time: Duration) {
    core.tasks.clock().ahead.fetch_add(micros(time), Ordering::Relaxed);
    core.tasks.waker().look();
}

/// Pretends that the database's clock jumps by so many microseconds, forward
/// or back, as this process sees it. The engine must take it for what it is.
pub fn jump(core: &Core, micros: i64) {
    core.tasks.clock().skew.fetch_add(micros, Ordering::Relaxed);
}

/// Has an engine fail at a point.
pub fn arm(core: &Core, fault: Option<Fault>) {
    core.tasks.faults().arm(fault);
}

/// Has a process not know a stage, as one of an earlier version of the program
/// would not.
pub fn unlearn(core: &Core, stage: &str) {
    core.tasks.faults().unlearn(stage);
}

struct Process {
    core: Arc<Core>,
    workers: Option<Workers>,
}

/// A process that runs tasks, and those that follow it when it dies.
pub struct Kit {
    open: Box<dyn Fn() -> Arc<Core> + Send + Sync>,
    options: WorkerOptions,
    process: Mutex<Process>,
    /// Faults for the processes to come, the last first.
    faults: Mutex<Vec<Fault>>,
    passed: Mutex<Vec<Point>>,
    struck: AtomicI64,
    deaths: AtomicI64,
    ahead: AtomicI64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kit {
    /// Not running yet. `open` puts a process together; all of them must be
    /// on one database (and may share its [`db::Db`]). In a tokio runtime.
    #[must_use]
    pub fn new(open: impl Fn() -> Arc<Core> + Send + Sync + 'static, options: WorkerOptions) -> Self {
        let core = open();
        core.tasks.faults().arm(None);
        Self {
            open: Box::new(open),
            options,
            process: Mutex::new(Process { core, workers: None }),
            faults: Mutex::default(),
            passed: Mutex::default(),
            struck: AtomicI64::new(0),
            deaths: AtomicI64::new(0),
            ahead: AtomicI64::new(0),
        }
    }

    /// Failures to come, each of which waits for the one before.
    #[must_use]
    pub fn with_faults(self, mut faults: Vec<Fault>) -> Self {
        faults.reverse();
        let first = faults.pop();
        *lock(&self.faults) = faults;
        self.core().tasks.faults().arm(first);
        self
    }

    /// The process that lives now.
    #[must_use]
    pub fn core(&self) -> Arc<Core> {
        lock(&self.process).core.clone()
    }

    /// How many processes died.
    #[must_use]
    pub fn deaths(&self) -> i64 {
        self.deaths.load(Ordering::Relaxed)
    }

    /// Begins to run tasks.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run(&self) -> Result<()> {
        let mut process = lock(&self.process);
        if process.workers.is_none() {
            process.workers = Some(Engine::run(&process.core, self.options.clone())?);
        }
        Ok(())
    }

    /// Makes time go by.
    pub fn skip(&self, time: Duration) {
        self.ahead.fetch_add(micros(time), Ordering::Relaxed);
        skip(&self.core(), time);
    }

    /// Has the process die now, as by `kill -9`, and starts another.
    ///
    /// # Errors
    /// What the database says.
    pub async fn kill(&self) -> Result<()> {
        self.core().tasks.faults().die();
        self.revive().await
    }

    /// Ends the process well, as at SIGTERM, unless it dies of that, and starts
    /// another.
    ///
    /// # Errors
    /// What the database says.
    pub async fn drain(&self) -> Result<()> {
        let (core, workers) = (self.core(), lock(&self.process).workers.take());
        if let Some(workers) = workers {
            tokio::select! {
                () = workers.drain() => {}
                () = death(&core) => {}
            }
        }
        self.kill().await?;
        self.run()
    }

    /// Does what is else done now and then: deletes old tasks, finds stuck ones.
    pub async fn tidy(&self) {
        // Taken, since its process may die meanwhile.
        let (core, workers) = (self.core(), lock(&self.process).workers.take());
        let Some(workers) = workers else { return };
        tokio::select! {
            () = workers.tidy() => {}
            () = death(&core) => {}
        }
        lock(&self.process).workers = Some(workers);
    }

    /// Another process, if this one is dead.
    async fn revive(&self) -> Result<()> {
        let old = self.core();
        if !old.tasks.faults().is_dead() {
            return Ok(());
        }
        // What it had sent to the database is done there, whoever lives.
        self.quiet(&old, || old.tasks.faults().inside() == 0).await;
        let workers = lock(&self.process).workers.take();
        let ran = workers.is_some();
        drop(workers);
        self.quiet(&old, || old.tasks.metrics().running.load(Ordering::Relaxed) == 0).await;
        self.note(&old);
        self.deaths.fetch_add(1, Ordering::Relaxed);
        let core = (self.open)();
        core.tasks.clock().ahead.store(self.ahead.load(Ordering::Relaxed), Ordering::Relaxed);
        let next = lock(&self.faults).pop();
        core.tasks.faults().arm(next);
        // It is in this process, which lives: say of it what the system would.
        let dead = |conn: &mut db::AnyConnection| {
            db::execute(conn, &Sql::new("UPDATE \"workers\" SET \"pid_started\" = -1"))
        };
        core.db.write(None, dead).await?;
        lock(&self.process).core = core;
        if ran { self.run() } else { Ok(()) }
    }

    fn note(&self, core: &Core) {
        lock(&self.passed).extend(core.tasks.faults().passed());
        self.struck.fetch_add(i64::from(core.tasks.faults().struck()), Ordering::Relaxed);
    }

    async fn quiet(&self, core: &Core, done: impl Fn() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < PATIENCE, "a dead process does not end: {:?}", core.tasks.metrics());
            sleep(LOOK).await;
        }
    }

    /// A write by the outside (a request, a callback), which is a point as the
    /// engine's own are. It is tried again until an answer comes, so what it
    /// does must bear to be done already.
    ///
    /// # Errors
    /// What the closure says, but for a 503.
    pub async fn write<R, F>(&self, kind: &str, f: F) -> Result<R>
    where
        R: Send + 'static,
        F: Fn(&mut Tx<'_>) -> Result<R> + Clone + Send + 'static,
    {
        loop {
            let core = self.core();
            let (ctx, f) = (Ctx::system(&core), f.clone());
            let write = core.tasks.faults().at(kind, ctx.write(None, move |tx| f(tx)));
            tokio::select! {
                biased;
                done = write => match done {
                    Ok(done) => return Ok(done.value),
                    Err(error) if error.kind() == crate::Kind::Unavailable => {}
                    Err(error) => return Err(error),
                },
                () = death(&core) => self.revive().await?,
            }
        }
    }

    /// A number from the database.
    ///
    /// # Errors
    /// What the database says.
    pub async fn number(&self, sql: &'static str) -> Result<i64> {
        number(&self.core(), sql).await
    }

    /// Waits for something, and starts processes as they die.
    ///
    /// # Panics
    /// When it does not come in a minute.
    pub async fn until<R>(&self, what: &str, look: impl AsyncFn(&Arc<Core>) -> Option<R>) -> R {
        let begin = Instant::now();
        loop {
            if let Err(error) = self.revive().await {
                tracing::warn!(%error, "no new process yet");
            }
            if let Some(it) = look(&self.core()).await {
                return it;
            }
            assert!(begin.elapsed() < PATIENCE, "waited too long for {what}");
            sleep(LOOK).await;
        }
    }

    /// Runs all tasks to their ends. When nothing is left but to wait, it
    /// skips to the next timer.
    ///
    /// # Panics
    /// When they do not end in a minute.
    pub async fn settle(&self) {
        self.until("the tasks' ends", async |core| {
            let open =
                number(core, "SELECT count(*) FROM \"tasks\" WHERE \"ended_at\" IS NULL").await.ok()?;
            if open == 0 {
                return Some(());
            }
            // Of one moment: what is due next must not have become so meanwhile.
            let next = "SELECT CASE WHEN EXISTS (SELECT 1 FROM \"tasks\" WHERE \"status\" = 'running') \
                 OR EXISTS (SELECT 1 FROM \"task_ready\" WHERE \"due\" = TRUE) THEN 0 ELSE coalesce((SELECT \
                 min(\"run_at\") FROM \"task_ready\" WHERE \"due\" = FALSE), 0) END";
            let next = number(core, next).await.ok()?;
            let now = core.tasks.clock().time();
            if next > now && now > 0 {
                self.skip(Duration::from_micros(u64::try_from(next - now).unwrap_or(0)));
            }
            None
        })
        .await;
    }

    /// Ends it, dead or alive, and tells which points it passed.
    async fn end(&self) -> Vec<Point> {
        let core = self.core();
        core.tasks.faults().die();
        self.quiet(&core, || core.tasks.faults().inside() == 0).await;
        drop(lock(&self.process).workers.take());
        self.quiet(&core, || core.tasks.metrics().running.load(Ordering::Relaxed) == 0).await;
        self.note(&core);
        lock(&self.passed).clone()
    }
}

/// Until a process is dead.
async fn death(core: &Core) {
    while !core.tasks.faults().is_dead() {
        sleep(LOOK).await;
    }
}

async fn number(core: &Arc<Core>, sql: &'static str) -> Result<i64> {
    let read = move |conn: &mut db::AnyConnection| db::load_one::<(i64,)>(conn, Sql::new(sql));
    let found = core.db.read(Cost::Unbounded, read).await?.value;
    found.map(|(it,)| it).ok_or_else(|| Error::internal("no row"))
}

/// Deletes all tasks and workers.
///
/// # Errors
/// What the database says.
pub async fn reset(core: &Arc<Core>) -> Result<()> {
    let all = |conn: &mut db::AnyConnection| {
        for table in ["task_ready", "task_history", "task_callbacks", "tasks", "workers"] {
            db::execute(conn, &Sql::new("DELETE FROM \"").text(table).text("\""))?;
        }
        Ok(())
    };
    core.db.write(None, all).await?;
    Ok(())
}

/// What is wrong with the engine's tables, now that all tasks have ended: each
/// sentence is a promise that was broken. None: all is well.
///
/// # Errors
/// What the database says.
pub async fn check(core: &Arc<Core>) -> Result<Vec<String>> {
    const NONE: [(&str, &str); 9] = [
        ("a task has not ended", "SELECT count(*) FROM \"tasks\" WHERE \"ended_at\" IS NULL"),
        (
            "an ended task has another status",
            "SELECT count(*) FROM \"tasks\" WHERE \"status\" NOT IN ('done', 'failed', 'cancelled')",
        ),
        ("a ready row was left", "SELECT count(*) FROM \"task_ready\""),
        (
            "an ended task holds its object, a key or a worker",
            "SELECT count(*) FROM \"tasks\" WHERE \"active_key\" IS NOT NULL OR \"unique_key\" IS NOT NULL \
             OR \"blocked_on\" IS NOT NULL OR \"worker_id\" IS NOT NULL",
        ),
        (
            "a task that is to be undone was left",
            "SELECT count(*) FROM \"tasks\" WHERE \"ending\" <> '' OR (\"undo\" IS NOT NULL AND \"status\" <> 'failed')",
        ),
        (
            "a claim has no entry in the history, or one too many",
            "SELECT count(*) FROM \"tasks\" t WHERE \"epoch\" <> \
             (SELECT count(*) FROM \"task_history\" h WHERE h.\"task_id\" = t.\"id\")",
        ),
        (
            "a history of no task",
            "SELECT count(*) FROM \"task_history\" h WHERE NOT EXISTS \
             (SELECT 1 FROM \"tasks\" t WHERE t.\"id\" = h.\"task_id\")",
        ),
        (
            "a callback of no task",
            "SELECT count(*) FROM \"task_callbacks\" c WHERE NOT EXISTS \
             (SELECT 1 FROM \"tasks\" t WHERE t.\"id\" = c.\"task_id\")",
        ),
        // A process knows the engine's time to half of a round trip to the database,
        // which takes a while on a machine with much to do: by less than a second
        // nothing is said.
        (
            "an attempt began before the one before it had ended",
            "SELECT count(*) FROM \"task_history\" a JOIN \"task_history\" b ON b.\"task_id\" = a.\"task_id\" \
             AND b.\"epoch\" = a.\"epoch\" + 1 WHERE b.\"started_at\" < a.\"ended_at\" - 1000000",
        ),
    ];
    let mut wrong = Vec::new();
    for (what, sql) in NONE {
        let n = number(core, sql).await?;
        if n != 0 {
            wrong.push(format!("{what}: {n}"));
        }
    }
    Ok(wrong)
}

/// What a look and a claim read.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// Tasks that were there to be claimed.
    pub claimed: usize,
    /// On PostgreSQL, blocks of the engine's tables and their indexes, those of
    /// the claim's own writes too.
    pub blocks: i64,
    /// On SQLite, how each statement finds its rows, in the words of
    /// `EXPLAIN QUERY PLAN`.
    pub plans: Vec<String>,
}

/// Looks and claims so many tasks of each queue as a worker that has just
/// begun does, tells what that read, and undoes it.
///
/// # Errors
/// What the database says.
pub async fn claim(core: &Arc<Core>, n: i64) -> Result<Claim> {
    let told = Arc::new(Mutex::new(Claim::default()));
    let (tell, of) = (told.clone(), core.clone());
    let undone = core.db.write_engine(move |conn| {
        let now = of.tasks.clock().now(conn)?;
        let texts = Arc::new(Mutex::new(Vec::new()));
        if let db::AnyConnection::Sqlite(conn) = conn {
            let texts = texts.clone();
            conn.set_instrumentation(move |event: InstrumentationEvent<'_>| {
                if let InstrumentationEvent::StartQuery { query, .. } = event {
                    lock(&texts).push(query.to_string());
                }
            });
        }
        let claimed = try_claim(conn, now, n);
        let mut claim = Claim { claimed: claimed?, ..Claim::default() };
        if let db::AnyConnection::Sqlite(conn) = conn {
            conn.set_instrumentation(diesel::connection::get_default_instrumentation());
        }
        let texts = std::mem::take(&mut *lock(&texts));
        for text in &texts {
            let text = text.split(" -- binds").next().unwrap_or_default();
            let rows = db::load::<(i64, i64, i64, String)>(conn, Sql::new(format!("EXPLAIN QUERY PLAN {text}")))?;
            claim.plans.extend(rows.into_iter().map(|(.., detail)| detail));
        }
        if conn.dialect() == db::Dialect::Postgres {
            let sql = "SELECT sum(pg_stat_get_xact_blocks_fetched(oid))::bigint FROM pg_class WHERE relname IN \
                 ('tasks', 'task_ready', 'workers') OR oid IN (SELECT indexrelid FROM pg_index JOIN pg_class t ON \
                 t.oid = indrelid WHERE t.relname IN ('tasks', 'task_ready', 'workers'))";
            claim.blocks = db::load_one::<(Option<i64>,)>(conn, Sql::new(sql))?.and_then(|(n,)| n).unwrap_or(0);
        }
        *lock(&tell) = claim;
        Err::<(), _>(Error::conflict("undone"))
    });
    match undone.await {
        Err(error) if error.kind() == crate::Kind::Conflict => Ok(lock(&told).clone()),
        Err(error) => Err(error),
        Ok(_) => Err(Error::internal("a claim was not undone")),
    }
}

fn try_claim(conn: &mut db::AnyConnection, now: i64, n: i64) -> Result<usize> {
    store::look(conn, now, 64, &[])?;
    let heads = store::heads(conn, "", 64, &[])?;
    let shares: Vec<_> = heads.into_iter().map(|queue| store::Share { queue, n, floor: 0 }).collect();
    store::promote_timers(conn, now, n)?;
    Ok(store::claim(conn, "nobody", now, &shares)?.len())
}

/// What a replay did.
#[derive(Debug)]
pub struct Replayed {
    /// The points that the scenario passes when nothing fails.
    pub points: Vec<Point>,
    /// How often it was run.
    pub runs: usize,
    /// Faults that struck. Not every one does: with another timing, there may
    /// be one point fewer.
    pub struck: i64,
}

/// Runs a scenario as it is, then once for each of its points, failing before
/// and after it, with the process dying of it and living on; and after each
/// death once more, dying again while its tasks are taken up. The scenario is
/// to begin with an empty database and to check what it holds for true.
///
/// # Panics
/// When the scenario does, after telling at which fault.
pub async fn replay(kits: impl AsyncFn() -> Kit, scenario: impl AsyncFn(&Kit)) -> Replayed {
    let mut replayed = Replayed { points: Vec::new(), runs: 0, struck: 0 };
    replayed.points = one(&kits, &scenario, Vec::new(), &mut replayed).await;
    for at in replayed.points.clone() {
        for when in [When::Before, When::After] {
            let fault = |then| Fault { at: at.clone(), when, then };
            one(&kits, &scenario, vec![fault(Then::GoOn)], &mut replayed).await;
            one(&kits, &scenario, vec![fault(Then::Die)], &mut replayed).await;
            let recover = Point { kind: "recover".to_owned(), nth: 0 };
            let again = Fault { at: recover, when, then: Then::Die };
            one(&kits, &scenario, vec![fault(Then::Die), again], &mut replayed).await;
        }
    }
    replayed
}

async fn one(
    kits: &impl AsyncFn() -> Kit,
    scenario: &impl AsyncFn(&Kit),
    faults: Vec<Fault>,
    replayed: &mut Replayed,
) -> Vec<Point> {
    let kit = kits().await.with_faults(faults.clone());
    let ended = AssertUnwindSafe(scenario(&kit)).catch_unwind().await;
    let passed = kit.end().await;
    if let Err(panic) = ended {
        #[expect(clippy::print_stderr, reason = "for who reads why a test failed")]
        {
            eprintln!(
                "with {faults:?}, after {} points: {:?} …",
                passed.len(),
                passed.iter().take(40).collect::<Vec<_>>()
            );
        }
        std::panic::resume_unwind(panic);
    }
    replayed.runs += 1;
    replayed.struck += kit.struck.load(Ordering::Relaxed);
    passed
}
