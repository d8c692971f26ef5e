//! What a process does for tasks that are not in its slots: those of dead
//! workers, stuck ones, old ones, and its own of which an answer was lost.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{Watched, Worker, jitter, lock};
use crate::Result;
use crate::db::Cost;
use crate::task::clock::micros;
use crate::task::engine::Metrics;
use crate::task::store::{self, Seen};
use crate::task::{entry, heart, mend};
use crate::telemetry;

/// How long a running task is left before somebody asks whether it is stuck.
const SUSPECT: Duration = Duration::from_secs(30);
/// Ended tasks that one transaction deletes.
const FORGET: i64 = 200;
/// How often old tasks are deleted.
const FORGET_EVERY: Duration = Duration::from_secs(600);

impl Worker {
    /// The processes that are dead, and the beat that they had.
    pub(super) fn judge(&self, seen: &[Seen]) -> Vec<(String, i64)> {
        let me = lock(&self.lease).id.clone();
        let busy = self.running.load(Ordering::Acquire) > 0;
        let (now, gap) = (Instant::now(), self.options.poll * 3 + Duration::from_millis(500));
        let mut watched = lock(&self.watched);
        watched.retain(|id, _| seen.iter().any(|it| it.id == *id));
        let mut dead = Vec::new();
        for it in seen {
            let mine = *it.id == *me;
            // Who looks is alive: if only its heartbeat is late, its stages are
            // still at it. Others may judge otherwise.
            if mine && busy {
                continue;
            }
            let here = !it.of.host.is_empty() && it.of.host == self.process.host;
            if here && heart::is_dead(it.of.pid, it.of.started) {
                dead.push((it.id.clone(), it.beat));
                continue;
            }
            let fresh = Watched { beat: it.beat, since: now, looked: now };
            let entry = watched.entry(it.id.clone()).or_insert(fresh);
            if entry.beat != it.beat || now - entry.looked > gap {
                *entry = fresh;
            }
            entry.looked = now;
            // A process that this machine still has is late or stopped rather than dead.
            let patience = if here && !mine { self.options.lease * 3 } else { self.options.lease };
            if now - entry.since >= patience {
                dead.push((it.id.clone(), it.beat));
            }
        }
        dead
    }

    /// Takes up what the database has as ours and nobody here runs: a claim or
    /// a commit was written and its answer lost. Between two claims, so that
    /// none is on its way.
    pub(super) async fn reclaim(&self) -> Result<()> {
        let id = lock(&self.lease).id.clone();
        let held = self.core.db.read(Cost::Bounded, move |conn| store::holding(conn, &id)).await?.value;
        // In this order: what ends meanwhile is written before it leaves its slot.
        let here: HashSet<String> = lock(&self.handles).values().map(|(id, _)| id.clone()).collect();
        for (id, epoch) in held.into_iter().filter(|(id, _)| !here.contains(id)) {
            let (task, clock) = (id.clone(), self.core.tasks.clock().clone());
            let done = self.core.db.write_engine(move |conn| {
                let now = clock.now(conn)?;
                store::take_one(conn, &task, epoch, now)
            });
            if self.core.tasks.faults().at("reclaim", done).await?.value {
                tracing::info!(task = id, "took up a task of which no answer came");
                Metrics::add(&self.metrics.recovered, 1);
                self.waker.due();
            }
        }
        Ok(())
    }

    /// Takes up what dead workers had.
    pub(super) async fn recover(&self, dead: Vec<(String, i64)>) -> Result<()> {
        let clock = self.core.tasks.clock().clone();
        let done = self.core.db.write_engine(move |conn| {
            let now = clock.now(conn)?;
            let mut n = 0;
            for (worker, beat) in dead {
                n += store::take_back(conn, &worker, Some(beat), now, "lost", false)?.unwrap_or(0);
            }
            Ok(n)
        });
        let n = self.core.tasks.faults().at("recover", done).await?.value;
        if n > 0 {
            tracing::info!(tasks = n, "took up the tasks of a worker that is gone");
            Metrics::add(&self.metrics.recovered, n);
        }
        Ok(())
    }

    /// Now and then: finds stuck tasks and deletes old ones.
    pub(in crate::task) async fn keep_house(self: Arc<Self>) {
        let mut forgot: Option<Instant> = None;
        loop {
            sleep(jitter(SUSPECT)).await;
            let forget = forgot.is_none_or(|at| at.elapsed() >= FORGET_EVERY);
            if forget {
                forgot = Some(Instant::now());
            }
            self.tidy(forget).await;
        }
    }

    /// Deletes old tasks, if it is time to, and finds stuck ones.
    pub(in crate::task) async fn tidy(&self, forget: bool) {
        self.register().await;
        if forget && let Err(error) = self.forget().await {
            tracing::warn!(%error, "old tasks could not be deleted");
        }
        if let Err(error) = self.free_stuck().await {
            tracing::warn!(%error, "stuck tasks could not be looked for");
        }
        let from = lock(&self.mended).clone();
        match mend::mend(&self.core, from).await {
            Ok(cursor) => *lock(&self.mended) = cursor,
            Err(error) => tracing::warn!(%error, "stuck tasks could not be looked for"),
        }
    }

    /// Takes tasks from workers that have no lease at all, or that have not
    /// ended a stage long after its time.
    async fn free_stuck(&self) -> Result<()> {
        let clock = self.core.tasks.clock().clone();
        let look = move |conn: &mut crate::db::AnyConnection| {
            let now = clock.peek(conn)?;
            store::running(conn, now, micros(SUSPECT))
        };
        let running = self.core.db.read(Cost::Unbounded, look).await?.value;
        for task in running {
            let limit = entry(&task.task_name).and_then(|it| it.stage(&task.stage)).map(|it| it.timeout_s);
            let over =
                limit.is_some_and(|s| task.age > Duration::from_secs(s) + self.options.lease + SUSPECT);
            if task.leased && !over {
                continue;
            }
            let (id, epoch, clock) = (task.id.clone(), task.epoch, self.core.tasks.clock().clone());
            let take = move |conn: &mut crate::db::AnyConnection| {
                let now = clock.now(conn)?;
                store::take_one(conn, &id, epoch, now)
            };
            if self.core.tasks.faults().at("tidy", self.core.db.write(None, take)).await?.value {
                tracing::warn!(task = task.id, stage = task.stage, "took a stuck task from its worker");
                Metrics::add(&self.metrics.recovered, 1);
                telemetry::TASKS_REPAIRED.with_label_values(&["running"]).inc();
                self.waker.due();
            }
        }
        Ok(())
    }

    async fn forget(&self) -> Result<()> {
        let keep = micros(self.options.keep);
        loop {
            let clock = self.core.tasks.clock().clone();
            let forget = move |conn: &mut crate::db::AnyConnection| {
                let now = clock.now(conn)?;
                store::forget(conn, now - keep, FORGET)
            };
            let n = self.core.tasks.faults().at("tidy", self.core.db.write(None, forget)).await?.value;
            if n == 0 {
                return Ok(());
            }
            // Others want to write too.
            sleep(Duration::from_millis(50)).await;
        }
    }
}
