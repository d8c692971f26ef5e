//! What others may ask the engine: whether a task waits for news of an
//! object, and how the work goes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Engine, Metrics, Task, callback};
use crate::ctx::Ctx;
use crate::db::Cost;
use crate::model::Record;
use crate::{Result, telemetry};

impl Engine {
    /// The callback token of the task that waits for news of an object, if one
    /// does: for an observer that lost it with its process.
    ///
    /// # Errors
    /// What the database says.
    pub async fn waiting(ctx: &Ctx, obj_type: &str, obj_id: &str) -> Result<Option<String>> {
        let key = super::start::active_key(obj_type, obj_id);
        let done = ctx.read(Cost::Bounded, move |tx| {
            let found =
                Task::select().unscoped().eq("active_key", key.clone()).eq("status", "waiting".to_owned());
            Ok(found.one(tx)?.map(|it| callback::token(&it.id, it.seq, &it.secret)))
        });
        Ok(done.await?.value)
    }

    /// Adds the engine's numbers to the metrics.
    pub fn watch(&self) {
        type Read = fn(&Metrics) -> &AtomicU64;
        let all: [(&str, &str, &str, Read); 10] = [
            ("podyard_task_claims_total", "counter", "Stages taken from the queue.", |m| &m.claimed),
            ("podyard_task_stages_total", "counter", "Attempts at stages that ended.", |m| &m.stages),
            ("podyard_tasks_completed_total", "counter", "Tasks that ended as done.", |m| &m.completed),
            ("podyard_tasks_failed_total", "counter", "Tasks that ended as failed.", |m| &m.failed),
            ("podyard_tasks_cancelled_total", "counter", "Tasks that ended as cancelled.", |m| &m.cancelled),
            ("podyard_task_retries_total", "counter", "Attempts to be made again.", |m| &m.retried),
            ("podyard_tasks_recovered_total", "counter", "Tasks taken from dead workers.", |m| &m.recovered),
            ("podyard_task_stale_total", "counter", "Results refused for a lost lease.", |m| &m.stale),
            (
                "podyard_task_leases_lost_total",
                "counter",
                "Times that others took this process for dead.",
                |m| &m.lost,
            ),
            ("podyard_tasks_running", "gauge", "Tasks in slots now.", |m| &m.running),
        ];
        for (name, kind, help, read) in all {
            let metrics = self.metrics().clone();
            #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
            telemetry::watch(name, kind, help, move || read(&metrics).load(Ordering::Relaxed) as f64);
        }
    }
}
