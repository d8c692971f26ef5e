//! What a claim costs does not grow with the tables, whatever the statistics
//! say and whoever keeps an old snapshot open.

use std::sync::Arc;
use std::time::Duration;

use diesel::connection::{Connection as _, SimpleConnection as _};
use podyard::db::{self, DatabaseUrl, Dialect, Sql};
use podyard::prelude::*;
use podyard::task::testkit;
use podyard::task::{Engine, WorkerOptions};
use podyard::{Core, Nothing};

use crate::each;
use crate::harness::{TestDb, until};
use crate::things::{TABLES, Thing, thing};

/// Ended tasks, and tasks that wait; `PODYARD_PROOF_ROWS` and a tenth of it.
fn rows() -> i64 {
    std::env::var("PODYARD_PROOF_ROWS").ok().and_then(|it| it.parse().ok()).unwrap_or(1_000_000)
}

/// Does nothing.
pub struct Trifle;

#[stages(object = Thing)]
impl Trifle {
    async fn on_init(_: &mut TaskCtx<Thing>) -> Stage {
        Stage::complete()
    }
    async fn on_init_failed(_: &mut TaskCtx<Thing>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

async fn write<R: Send + 'static>(
    core: &Arc<Core>,
    f: impl FnOnce(&mut Tx<'_>) -> Result<R> + Send + 'static,
) -> R {
    Ctx::system(core).write(None, f).await.unwrap().value
}

/// Tasks that have ended, or that wait for something a year away.
async fn fill(core: &Arc<Core>, prefix: &'static str, n: i64, waits: bool) {
    let sqlite = core.db.dialect() == Dialect::Sqlite;
    let (status, ended, key) =
        if waits { ("waiting", "NULL", "'thing:' || i") } else { ("done", "1700000000000000 + i", "NULL") };
    let series = if sqlite {
        format!("WITH RECURSIVE s (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {n}) ")
    } else {
        String::new()
    };
    let from = if sqlite { "s".to_owned() } else { format!("generate_series(1, {n}) AS s (i)") };
    let tasks = format!(
        "INSERT INTO tasks (id, task_name, obj_type, obj_id, obj_name, domain_id, project_id, user_id, user_cred, \
         params, secret, lane, active_key, status, queue, priority, created_at, updated_at, run_at, version, stage, \
         retry_stage, progress, attempt, epoch, seq, reason_kind, reason, cancel_requested, cancelling, ended_at) \
         {series} SELECT '{prefix}-' || i, 'trifle', 'thing', '{prefix}-' || i, '', '', 'p', 'u', '{{}}', '{{}}', 's', \
         'thing:{prefix}-' || i, {key}, '{status}', '50/p/trifle', 50, 1700000000000000 + i, 1700000000000000 + i, \
         1700000000000000 + i, 1, 'on_init', 'on_init', 0, 1, 1, 1, '', '', FALSE, FALSE, {ended} FROM {from}",
    );
    let ready = "INSERT INTO task_ready (task_id, queue, due, run_at) SELECT id, queue, FALSE, 4000000000000000 \
         FROM tasks WHERE status = 'waiting'";
    write(core, move |tx| {
        db::execute(tx.conn, &Sql::new(tasks))?;
        if waits { db::execute(tx.conn, &Sql::new(ready)) } else { Ok(0) }
    })
    .await;
}

async fn trifles(core: &Arc<Core>, n: i64) {
    for _ in 0..n / 100 {
        write(core, |tx| {
            for _ in 0..100 {
                let row = thing(tx, &podyard::new_id())?;
                tx.start_task::<Trifle>(&row, Nothing {})?;
            }
            Ok(())
        })
        .await;
    }
}

#[test]
fn a_claim_goes_by_index_however_many_tasks_there_are() {
    each(TABLES, async |db: Arc<TestDb>| {
        let core = db.core();
        if core.db.dialect() == Dialect::Mysql {
            return;
        }
        if core.db.dialect() == Dialect::Postgres {
            // They are as they were when the tables were empty, and stay so.
            write(&core, |tx| {
                for table in ["tasks", "task_ready"] {
                    let sql = format!("ALTER TABLE {table} SET (autovacuum_enabled = false)");
                    db::execute(tx.conn, &Sql::new(sql))?;
                    db::execute(tx.conn, &Sql::new(format!("ANALYZE {table}")))?;
                }
                Ok(())
            })
            .await;
        }
        // The engine's own connections.
        let workers = Engine::run(&core, WorkerOptions { slots: 1, ..WorkerOptions::default() }).unwrap();
        workers.drain().await;
        trifles(&core, 100).await;
        let small = testkit::claim(&core, 20).await.unwrap();
        fill(&core, "done", rows(), false).await;
        fill(&core, "wait", rows() / 10, true).await;
        let large = testkit::claim(&core, 20).await.unwrap();
        assert_eq!((small.claimed, large.claimed), (20, 20));
        println!("{:?}: {} blocks, then {}", core.db.dialect(), small.blocks, large.blocks);
        if core.db.dialect() == Dialect::Postgres {
            // An index is some levels higher; a scan would be of many thousands.
            assert!(small.blocks > 0);
            assert!(large.blocks < small.blocks * 3 + 300, "{} blocks after {}", large.blocks, small.blocks);
        } else {
            assert!(!large.plans.is_empty());
            for plan in &large.plans {
                let tables = ["tasks", "task_ready", " r", " t", "task_callbacks"];
                let scan = plan.starts_with("SCAN") && tables.iter().any(|it| plan.contains(it));
                assert!(!scan, "{plan} in {:?}", large.plans);
            }
        }
        // And it still runs: the trifles end, quickly, among all those.
        let begin = std::time::Instant::now();
        let _workers = Engine::run(&core, WorkerOptions::default()).unwrap();
        until("the trifles", || async {
            let sql = "SELECT count(*) FROM task_ready WHERE due = TRUE";
            let due = write(&core, move |tx| db::load_one::<(i64,)>(tx.conn, Sql::new(sql))).await;
            (due.unwrap().0 == 0).then_some(())
        })
        .await;
        println!("{:?}: 100 tasks in {:?}", core.db.dialect(), begin.elapsed());
    });
}

/// Blocks of the table of what is due and of its indexes that all have read.
fn read_so_far(url: &str) -> i64 {
    use diesel::prelude::*;
    let mut conn = diesel::PgConnection::establish(url).unwrap();
    let sql = "(coalesce(heap_blks_read, 0) + coalesce(heap_blks_hit, 0) + coalesce(idx_blks_read, 0) \
         + coalesce(idx_blks_hit, 0))::bigint";
    let sql = diesel::dsl::sql::<diesel::sql_types::BigInt>(&format!(
        "{sql} FROM pg_statio_user_tables WHERE relname = 'task_ready'"
    ));
    diesel::select(sql).get_result(&mut conn).unwrap()
}

#[test]
fn a_transaction_that_lasts_makes_claims_little_dearer() {
    each(TABLES, async |db: Arc<TestDb>| {
        let DatabaseUrl::Postgres(url) = db.url.clone() else { return };
        let batch = 2000;
        let mut costs = Vec::new();
        let mut old = None;
        for round in 0..5 {
            let core = db.core();
            trifles(&core, batch).await;
            // What its connections have counted is told when they end.
            drop(core);
            tokio::time::sleep(Duration::from_millis(500)).await;
            let before = read_so_far(&url);
            let core = db.core();
            let workers = Engine::run(&core, WorkerOptions::default()).unwrap();
            until("the batch", || async {
                let sql = "SELECT count(*) FROM tasks WHERE active_key IS NOT NULL";
                let open = write(&core, move |tx| db::load_one::<(i64,)>(tx.conn, Sql::new(sql))).await;
                (open.unwrap().0 == 0).then_some(())
            })
            .await;
            workers.drain().await;
            drop(core);
            tokio::time::sleep(Duration::from_millis(500)).await;
            costs.push((read_so_far(&url) - before) / batch);
            if round == 0 {
                let mut conn = diesel::PgConnection::establish(&url).unwrap();
                conn.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM tasks")
                    .unwrap();
                old = Some(conn);
            }
        }
        drop(old);
        println!("blocks of task_ready per task, with an old snapshot from the second on: {costs:?}");
        assert!(costs[0] > 0, "nothing was counted");
        // Dead rows stay: a claim begins behind them, the look for queues does not.
        assert!(costs[4] < costs[0] * 4 + 40, "{costs:?}");
    });
}
