//! River's Rust crate on jobs that do nothing: `river-peer <database URL> drain|live <jobs> <callers>`.
//! Prints `begin` when the time begins, then one line of JSON.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use riverqueue::{
    BoxError, Client, Job, JobArgs, QueueConfig, WorkContext, WorkOutcome, Workers, migrate::PostgresMigrator,
    sqlx::{self, PgPool, postgres::PgPoolOptions},
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, JobArgs, Serialize)]
#[river(kind = "nothing")]
struct Nothing {}

/// Jobs that ran.
static RUN: AtomicUsize = AtomicUsize::new(0);

async fn nothing(_: WorkContext, _: Job<Nothing>) -> Result<WorkOutcome, BoxError> {
    RUN.fetch_add(1, Ordering::Relaxed);
    Ok(WorkOutcome::Complete)
}

/// When all have ended, on disk: the completer writes their ends after the work.
async fn all_done(pool: &PgPool, jobs: usize) -> Result<(), sqlx::Error> {
    while RUN.load(Ordering::Relaxed) < jobs {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    loop {
        let done: i64 = sqlx::query_scalar("SELECT count(*) FROM river_job WHERE state = 'completed'")
            .fetch_one(pool)
            .await?;
        if done >= jobs as i64 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, what, jobs, callers] = words.as_slice() else { return Err("four arguments are needed".into()) };
    let (jobs, callers): (usize, usize) = (jobs.parse()?, callers.parse()?);
    let pool = PgPoolOptions::new().max_connections(32).connect(url).await?;
    PostgresMigrator::new(pool.clone()).migrate_up().await?;
    let mut workers = Workers::new();
    workers.add_fn(nothing)?;
    let cooldown = Duration::from_millis(1);
    let client = Client::builder(pool.clone())
        .workers(workers)
        .fetch_cooldown(cooldown)
        .queue("default", QueueConfig::new(1000).with_fetch_cooldown(cooldown).with_fetch_poll_interval(Duration::from_millis(10)))
        .build()?;

    let begun;
    let mut run;
    if what == "drain" {
        for start in (0..jobs).step_by(1000) {
            client.insert_many(vec![Nothing {}; (jobs - start).min(1000)]).await?;
        }
        println!("begin");
        begun = Instant::now();
        run = client.start()?;
    } else {
        run = client.start()?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        println!("begin");
        begun = Instant::now();
        let next = Arc::new(AtomicUsize::new(0));
        let mut all = Vec::new();
        for _ in 0..callers {
            let (client, next) = (client.clone(), next.clone());
            all.push(tokio::spawn(async move {
                while next.fetch_add(1, Ordering::Relaxed) < jobs {
                    client.insert(Nothing {}).await?;
                }
                Ok::<_, riverqueue::Error>(())
            }));
        }
        for ended in all {
            ended.await??;
        }
    }
    all_done(&pool, jobs).await?;
    println!("{{\"tasks\":{jobs},\"seconds\":{}}}", begun.elapsed().as_secs_f64());
    run.stop().await?;
    Ok(())
}
