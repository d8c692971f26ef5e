//! Looks for tasks that are stuck, says so, and sets right what can be set
//! right without harm. None of it should ever happen; if it does, by a fault of
//! ours or by somebody's hand in the database, nobody has to find it.

use super::engine::Waker;
use super::store;
use crate::Result;
use crate::ctx::Core;
use crate::db::{AnyConnection, Cost};
use crate::telemetry;

/// How long a task may be due, of a kind that is not paused, before somebody
/// is told: no worker knows it, or they have too much to do.
const UNCLAIMED: i64 = 300_000_000;
/// How long a task must not have changed to be looked at, in microseconds.
const STILL: i64 = 30_000_000;

/// One look; it goes on where the last one ended.
pub(super) async fn mend(core: &Core, from: store::Cursor) -> Result<store::Cursor> {
    let clock = core.tasks.clock().clone();
    let look = move |conn: &mut AnyConnection| {
        let now = clock.peek(conn)?;
        let (found, cursor) = store::look_for_stuck(conn, &from, now - STILL)?;
        Ok((found, cursor, store::depths(conn)?, super::kind::paused(conn)?, now))
    };
    let (found, cursor, depths, paused, now) = core.db.read(Cost::Unbounded, look).await?.value;
    let stuck = |why: &str, n: usize| {
        telemetry::TASKS_STUCK.with_label_values(&[why]).set(i64::try_from(n).unwrap_or(i64::MAX));
    };
    let is_paused = |queue: &str| paused.iter().any(|name| queue.rsplit('/').next() == Some(name));
    let late: Vec<_> =
        depths.iter().filter(|it| now - it.oldest > UNCLAIMED && !is_paused(&it.queue)).collect();
    for it in &late {
        let seconds = (now - it.oldest) / 1_000_000;
        tracing::warn!(queue = it.queue, due = it.due, seconds, "tasks are due and nobody takes them");
    }
    stuck("unclaimed", late.len());
    stuck("asleep", found.asleep.len());
    stuck("headless", found.headless.len());
    let asleep = found.asleep.into_iter().map(|it| ("asleep", it));
    let headless = found.headless.into_iter().map(|it| ("headless", it));
    for (why, it) in asleep.chain(headless) {
        let (clock, what) = (core.tasks.clock().clone(), it.clone());
        let set_right = move |conn: &mut AnyConnection| {
            let now = clock.now(conn)?;
            match why {
                "asleep" => store::wake(conn, &what, now),
                _ => store::give_head(conn, &what, now),
            }
        };
        match core.db.write(None, set_right).await {
            Ok(done) if done.value => {
                tracing::warn!(why, what = it, "a stuck task was set right");
                telemetry::TASKS_REPAIRED.with_label_values(&[why]).inc();
                Waker::due(&core.tasks.waker());
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(why, what = it, %error, "a stuck task could not be set right"),
        }
    }
    Ok(cursor)
}

/// Takes the numbers of the queues, for who reads the metrics.
pub(crate) async fn sample(core: &Core) -> Result<()> {
    let clock = core.tasks.clock().clone();
    let look = move |conn: &mut AnyConnection| {
        let now = clock.peek(conn)?;
        Ok((store::depths(conn)?, super::kind::all(conn)?, now))
    };
    let (depths, kinds, now) = core.db.read(Cost::Bounded, look).await?.value;
    let (due, oldest, paused) = (&telemetry::TASKS_DUE, &telemetry::TASKS_OLDEST, &telemetry::KINDS_PAUSED);
    for (kind, is_paused) in &kinds {
        let labels = [kind.as_str()];
        paused.with_label_values(&labels).set(i64::from(*is_paused));
        due.with_label_values(&labels).set(0);
        oldest.with_label_values(&labels).set(0.0);
    }
    for it in &depths {
        let labels = [it.queue.rsplit('/').next().unwrap_or_default()];
        due.with_label_values(&labels).add(it.due);
        #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
        let age = (now - it.oldest).max(0) as f64 / 1e6;
        let gauge = oldest.with_label_values(&labels);
        gauge.set(gauge.get().max(age));
    }
    Ok(())
}
