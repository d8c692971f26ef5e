//! The task engine alone: what it takes to run tasks that do nothing. Started by `bench`, one
//! measurement a process, on a database that goes with it; prints `begin` when the time begins,
//! and then one line of JSON.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use podyard::{
    Core, Nothing,
    auth::{Authenticator, UserCred},
    db::{self, DatabaseUrl, Db, Sql},
    prelude::*,
    task::{Engine, TaskType, WorkerOptions, Workers},
};
use podyard_bench::process;
use serde_json::json;

/// The task engine of the benchmarks.
#[derive(Parser)]
struct Options {
    /// An sqlite:// or postgres:// URL.
    #[arg(long)]
    database_url: String,
    /// Tasks that run at once.
    #[arg(long, default_value_t = 256)]
    slots: usize,
    /// Most results of stages, and most writes, in one commit; the engine's own numbers, unless said.
    #[arg(long)]
    group: Option<usize>,
    /// What to measure.
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Runs tasks that are there already: from the start of the workers to the end of the last.
    Drain {
        /// How many.
        #[arg(long, default_value_t = 50_000)]
        tasks: usize,
        /// Stages of each: 1 or 5.
        #[arg(long, default_value_t = 1)]
        stages: u32,
    },
    /// Stages in flight, each committed before the next: for some seconds.
    Commits {
        /// How many tasks at once.
        #[arg(long, default_value_t = 128)]
        flight: usize,
        /// For how long.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Starts tasks one by one, over so many callers at once, while workers run them.
    Live {
        /// How many.
        #[arg(long, default_value_t = 20_000)]
        tasks: usize,
        /// Callers at once.
        #[arg(long, default_value_t = 64)]
        callers: usize,
    },
    /// Starts a task now and then, while nothing else happens.
    Idle {
        /// How many.
        #[arg(long, default_value_t = 200)]
        tasks: usize,
        /// Leaves the running to other processes.
        #[arg(long)]
        no_worker: bool,
    },
    /// Only works, until it is killed.
    Work,
    /// Starts tasks that take an hour, and leaves the running to other processes.
    Long {
        /// How many.
        #[arg(long, default_value_t = 100)]
        tasks: usize,
    },
    /// Only makes the tables and the objects.
    Prepare {
        /// How many objects.
        #[arg(long, default_value_t = 50_000)]
        objects: usize,
    },
}

/// What the tasks work on.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "job", plural = "jobs", read = "never", write = "never", unlogged)]
pub struct Job {
    /// The base.
    pub base: AnonBase,
}

impl Manager for Job {}
impl Model for Job {}

const TABLE: &str = "CREATE TABLE jobs (id TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, \
     created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL)";

/// Does nothing, in one stage.
pub struct One;

#[stages(object = Job)]
impl One {
    async fn on_init(_: &mut TaskCtx<Job>) -> Stage {
        Stage::complete()
    }
    async fn on_init_failed(_: &mut TaskCtx<Job>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// Does nothing, in so many stages as its parameters say.
pub struct Many;

#[stages(object = Job, params = u32)]
impl Many {
    async fn on_init(t: &mut TaskCtx<Job, u32>) -> Stage {
        if *t.params() <= 1 { Stage::complete() } else { Stage::next(Self::ON_STEP).data(2) }
    }
    async fn on_init_failed(_: &mut TaskCtx<Job, u32>, why: Reason) -> Stage {
        Stage::fail(why)
    }
    async fn on_step(t: &mut TaskCtx<Job, u32>, n: u32) -> Stage {
        if n >= *t.params() { Stage::complete() } else { Stage::next(Self::ON_STEP).data(n + 1) }
    }
    async fn on_step_failed(_: &mut TaskCtx<Job, u32>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// Takes an hour.
pub struct Hour;

#[stages(object = Job)]
impl Hour {
    #[stage(timeout_s = 7200)]
    async fn on_init(_: &mut TaskCtx<Job>) -> Stage {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        Stage::complete()
    }
    async fn on_init_failed(_: &mut TaskCtx<Job>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

struct Nobody;

impl Authenticator for Nobody {
    fn authenticate(&self, _: &str) -> Option<Arc<UserCred>> {
        None
    }
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

fn main() -> std::result::Result<(), Fault> {
    let options = Options::parse();
    tracing_subscriber::fmt().with_env_filter("warn").with_writer(std::io::stderr).init();
    let url: DatabaseUrl = options.database_url.parse()?;
    db::migrate(&url)?;
    let defaults = db::Options::default();
    let db = Db::open(&url, db::Options { group: options.group.unwrap_or(defaults.group), ..defaults })?;
    let core = Arc::new(Core::new(db, Arc::new(Nobody)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let line = runtime.block_on(measure(&core, &options))?;
    println!("{line}");
    Ok(())
}

async fn measure(core: &Arc<Core>, options: &Options) -> Result<serde_json::Value> {
    let defaults = WorkerOptions::default();
    let group = options.group.unwrap_or(defaults.group);
    let run = || -> Result<Workers> {
        Engine::run(core, WorkerOptions { slots: options.slots, group, ..defaults.clone() })
    };
    let metrics = core.tasks.metrics().clone();
    let done = move || metrics.completed.load(Ordering::Relaxed);
    Ok(match options.what {
        What::Prepare { objects } => {
            jobs(core, objects).await?;
            json!({})
        }
        What::Long { tasks } => {
            start::<Hour>(core, jobs(core, tasks).await?, Nothing {}).await?;
            json!({ "tasks": tasks })
        }
        What::Work => {
            let _workers = run()?;
            std::future::pending::<()>().await;
            json!({})
        }
        What::Drain { tasks, stages } => {
            let rows = jobs(core, tasks).await?;
            for some in rows.chunks(500) {
                start::<Many>(core, some.to_vec(), stages).await?;
            }
            let (begun, before) = begin();
            let workers = run()?;
            until(|| done() >= tasks as u64).await;
            let took = begun.elapsed();
            let cpu = process::own_cpu().saturating_sub(before);
            workers.drain().await;
            json!({ "tasks": tasks, "seconds": took.as_secs_f64(), "cpu": cpu.as_secs_f64() })
        }
        What::Commits { flight, seconds } => {
            let rows = jobs(core, flight).await?;
            start::<Many>(core, rows, u32::MAX).await?;
            let workers = run()?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let stages = || core.tasks.metrics().stages.load(Ordering::Relaxed);
            let ((begun, cpu), before) = (begin(), stages());
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            let (n, took) = (stages() - before, begun.elapsed());
            let cpu = process::own_cpu().saturating_sub(cpu);
            drop(workers);
            json!({ "tasks": n, "seconds": took.as_secs_f64(), "cpu": cpu.as_secs_f64() })
        }
        What::Live { tasks, callers } => {
            let rows = Arc::new(jobs(core, tasks).await?);
            let workers = run()?;
            let (begun, before) = begin();
            let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..callers {
                let (core, rows, next) = (core.clone(), rows.clone(), next.clone());
                all.spawn(async move {
                    while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                        start::<One>(&core, vec![row.clone()], Nothing {}).await?;
                    }
                    Ok::<_, Error>(())
                });
            }
            while let Some(ended) = all.join_next().await {
                ended.map_err(Error::internal)??;
            }
            until(|| done() >= tasks as u64).await;
            let took = begun.elapsed();
            let cpu = process::own_cpu().saturating_sub(before);
            workers.drain().await;
            json!({ "tasks": tasks, "seconds": took.as_secs_f64(), "cpu": cpu.as_secs_f64() })
        }
        What::Idle { tasks, no_worker } => {
            let rows = jobs(core, tasks).await?;
            let slots = if no_worker { 0 } else { options.slots };
            let workers = Engine::run(core, WorkerOptions { slots, group, ..defaults.clone() })?;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let ctx = Ctx::system(core);
            for row in rows {
                start::<One>(core, vec![row], Nothing {}).await?;
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            // From the insert, before its commit, to the claim, by the engine's time.
            let waits = ctx.write(None, |tx| {
                let sql =
                    "SELECT started_at - run_at FROM tasks WHERE task_name = 'one' AND ended_at IS NOT NULL";
                db::load::<(i64,)>(tx.conn, Sql::new(sql))
            });
            let waits: Vec<i64> = waits.await?.value.into_iter().map(|(it,)| it).collect();
            workers.drain().await;
            json!({ "tasks": waits.len(), "waits_us": waits })
        }
    })
}

async fn until(is: impl Fn() -> bool) {
    while !is() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// New objects, and their table.
async fn jobs(core: &Arc<Core>, n: usize) -> Result<Vec<Job>> {
    let ctx = Ctx::system(core);
    // It may be there already.
    let _ = ctx.write(None, |tx| db::define(tx.conn, TABLE)).await;
    let mut all = Vec::with_capacity(n);
    while all.len() < n {
        let some = (n - all.len()).min(500);
        let made = ctx
            .write(None, move |tx| (0..some).map(|_| tx.create(Job::default())).collect::<Result<Vec<_>>>());
        all.extend(made.await?.value);
    }
    Ok(all)
}

/// Starts a task on each, in one transaction.
async fn start<T>(core: &Arc<Core>, rows: Vec<Job>, params: T::Params) -> Result<()>
where
    T: TaskType<Object = Job>,
    T::Params: Clone,
{
    let ctx = Ctx::system(core);
    let done = ctx.write(None, move |tx| {
        rows.iter().try_for_each(|row| tx.start_task::<T>(row, params.clone()).map(drop))
    });
    done.await?;
    Ok(())
}

/// Says that the time begins; gives it, and the CPU time so far.
fn begin() -> (Instant, Duration) {
    println!("begin");
    (Instant::now(), process::own_cpu())
}
