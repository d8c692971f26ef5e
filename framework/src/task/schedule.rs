//! Tasks that start by themselves, at the times of a cron expression. Each
//! tick starts at most one task in a cluster: the transaction that starts it
//! holds the schedule's row and moves it on to the next tick.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds, Year};
use tokio::sync::watch;
use tokio::time::sleep;

use super::store::{self, Status};
use super::{entry, names};
use crate::ctx::{Core, Ctx, Tx, snapshot};
use crate::db::{self, AnyConnection, Cost, Sql};
use crate::model::{Manager, Model, Record as _, StandaloneBase};
use crate::{Error, Kind, Resource, Result, actions};

/// How late a tick may be noticed at most.
const LOOK: Duration = Duration::from_secs(1);
/// Schedules that one look sees.
const BATCH: i64 = 100;

/// When a task is started by itself, and which.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "schedule", plural = "schedules", read = "admin", write = "admin")]
pub struct Schedule {
    /// Name and description.
    pub base: StandaloneBase,
    /// Whether it starts anything.
    #[field(list = "admin", create = "optional", update = "admin", default = true)]
    pub enabled: bool,
    /// The kind of task, like `space-start`.
    #[field(list = "admin", create = "required", max = 128)]
    pub task_name: String,
    /// Keyword of the type of the object; what the kind works on, if it is left out.
    #[field(list = "admin", create = "optional", max = 64)]
    pub obj_type: String,
    /// The object that the task works on.
    #[field(list = "admin", create = "required", index, max = 64)]
    pub obj_id: String,
    /// What the task is started with.
    #[field(get = "admin", create = "optional", update = "admin")]
    pub params: serde_json::Value,
    /// Minute, hour, day of the month, month and day of the week; with a sixth
    /// field in front: second.
    #[field(list = "admin", create = "required", update = "admin", max = 255)]
    pub cron: String,
    /// The zone whose clocks it goes by, like `Europe/Berlin`.
    #[field(list = "admin", create = "optional", update = "admin", default = "UTC", max = 64)]
    pub time_zone: String,
    /// What becomes of a tick while the task before runs still.
    #[field(
        list = "admin",
        create = "optional",
        update = "admin",
        default = "skip",
        choices("skip", "queue"),
        max = 16
    )]
    pub overlap: String,
    /// The next tick; none while it is disabled.
    #[field(list = "admin")]
    pub next_at: Option<DateTime<Utc>>,
    /// When the last tick was taken.
    #[field(list = "admin")]
    pub last_at: Option<DateTime<Utc>>,
    /// The last task that it started.
    #[field(list = "admin")]
    pub last_task_id: Option<String>,
    /// What came of the last tick: started, or why not.
    #[field(list = "admin", multiline, max = 4096)]
    pub last_outcome: String,
}

impl Manager for Schedule {}

impl Model for Schedule {
    fn customize_create(&mut self, tx: &mut Tx<'_>, _: &ScheduleCreate) -> Result<()> {
        let of = self.of()?;
        if self.obj_type.is_empty() {
            of.clone_into(&mut self.obj_type);
        }
        if self.obj_type != of {
            return Err(Error::field("obj_type", format!("{} works on a {of}", self.task_name)));
        }
        let handler = tx.ctx.core().registry.keyword(of).map(|it| it.handler);
        if !handler.map(|it| it.exists(tx, &self.obj_id)).transpose()?.unwrap_or(false) {
            let text = format!("there is no {of} {}", self.obj_id);
            return Err(Error::field("obj_id", text).class("ReferenceNotFoundError"));
        }
        self.plan(tx)
    }

    fn pre_update(&mut self, tx: &mut Tx<'_>, _: &ScheduleUpdate) -> Result<()> {
        self.plan(tx)
    }
}

#[actions]
impl Schedule {
    /// Lets it start tasks again, from its next tick on.
    fn perform_enable(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        self.enabled = true;
        self.plan(tx)?;
        tx.save(self)
    }

    /// Has it start nothing.
    fn perform_disable(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        self.enabled = false;
        self.plan(tx)?;
        tx.save(self)
    }
}

impl Schedule {
    /// Keyword of what the kind of task works on.
    fn of(&self) -> Result<&'static str> {
        let kind = entry(&self.task_name).ok_or_else(|| {
            let text =
                format!("there is no kind of task {:?}; there are {}", self.task_name, names().join(", "));
            Error::field("task_name", text)
        })?;
        Ok((kind.object)().keyword())
    }

    /// Checks what may be changed, and counts the next tick anew.
    fn plan(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        if let Some(kind) = entry(&self.task_name) {
            (kind.check)(&self.params)?;
        }
        let now = tx.ctx.core().tasks.clock().wall(tx.conn)?;
        let next = next(&self.cron, &self.time_zone, now)?;
        self.next_at = self.enabled.then_some(next);
        Ok(())
    }
}

/// The first tick after a moment, by the clocks of a zone.
fn next(cron: &str, zone: &str, after: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let unknown =
        |_| Error::field("time_zone", format!("{zone:?} is no time zone; say it like Europe/Berlin"));
    let zone: Tz = zone.parse().map_err(unknown)?;
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
    let bad = |e| Error::field("cron", format!("{cron:?} is no cron expression: {e}"));
    let parsed = parser.parse(cron).map_err(bad)?;
    let never = |_| Error::field("cron", format!("{cron:?} never comes"));
    Ok(parsed.find_next_occurrence(&after.with_timezone(&zone), false).map_err(never)?.with_timezone(&Utc))
}

/// Takes the ticks that are due, until it is to stop.
pub(super) async fn keep(core: Arc<Core>, known: Arc<[&'static str]>, mut stopped: watch::Receiver<bool>) {
    if known.is_empty() {
        return;
    }
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            _ = stopped.wait_for(|it| *it) => return,
            () = sleep(pause) => {}
        }
        pause = match round(&core, &known).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::warn!(%error, "schedules could not be looked at");
                LOOK
            }
        };
    }
}

async fn round(core: &Arc<Core>, known: &Arc<[&'static str]>) -> Result<Duration> {
    let (clock, of) = (core.tasks.clock().clone(), known.clone());
    let look = move |conn: &mut AnyConnection| Ok((clock.wall(conn)?, planned(conn, &of)?));
    let (now, planned) = core.db.read(Cost::Bounded, look).await?.value;
    let mut pause = LOOK;
    for (id, at) in planned {
        if at > now {
            let until = (at - now).to_std().unwrap_or_default();
            pause = pause.min(until.max(Duration::from_millis(5)));
            break;
        }
        let ctx = Ctx::system(core);
        if let Err(error) = ctx.write(None, move |tx| tick(tx, &id, at)).await {
            tracing::warn!(%error, "a schedule's task could not be started yet");
        }
    }
    Ok(pause)
}

/// The next ticks of the kinds that this process knows, in order.
fn planned(conn: &mut AnyConnection, known: &[&'static str]) -> Result<Vec<(String, DateTime<Utc>)>> {
    let mut sql = Sql::new("SELECT \"id\", \"next_at\" FROM \"schedules\" WHERE \"next_at\" IS NOT NULL");
    for (i, name) in known.iter().enumerate() {
        sql.push(if i == 0 { " AND \"task_name\" IN (" } else { ", " }).bind(*name);
    }
    sql.push(") ORDER BY \"next_at\" LIMIT ").bind(BATCH);
    db::load(conn, sql)
}

/// Takes one tick, unless another process has.
fn tick(tx: &mut Tx<'_>, id: &str, at: DateTime<Utc>) -> Result<()> {
    let found = Schedule::select().unscoped().eq("id", id.to_owned()).for_update().one(tx)?;
    let Some(mut row) = found.filter(|it| it.next_at == Some(at)) else { return Ok(()) };
    let before = snapshot(&row);
    let now = tx.ctx.core().tasks.clock().wall(tx.conn)?;
    row.last_at = Some(now);
    row.last_outcome = begin(tx, &mut row)?;
    // Whatever was missed is made up for by one.
    row.next_at = None;
    if row.enabled {
        match next(&row.cron, &row.time_zone, now.max(at)) {
            Ok(next) => row.next_at = Some(next),
            Err(error) => {
                row.enabled = false;
                row.last_outcome = format!("{}; disabled: {}", row.last_outcome, error.message());
            }
        }
    }
    tracing::info!(
        schedule = row.name,
        outcome = row.last_outcome,
        task = row.last_task_id,
        "a schedule's tick"
    );
    tx.save_and_log(&mut row, "tick", &before)
}

/// Starts the task of a tick; tells what came of it.
fn begin(tx: &mut Tx<'_>, row: &mut Schedule) -> Result<String> {
    let Some(kind) = entry(&row.task_name) else { return Ok(format!("no kind {}", row.task_name)) };
    let previous = match &row.last_task_id {
        Some(id) => store::status(tx.conn, id)?.filter(|it| !it.is_ended()),
        None => None,
    };
    let queue = row.overlap == "queue";
    match previous {
        Some(_) if !queue => return Ok("skipped: the task before has not ended".to_owned()),
        // One that waits is enough: they would only pile up.
        Some(Status::Blocked) => return Ok("skipped: a task of it waits already".to_owned()),
        _ => {}
    }
    match tx.savepoint(|tx| (kind.start)(tx, &row.obj_id, &row.params, queue))? {
        Ok(Some(id)) => {
            row.last_task_id = Some(id);
            Ok("started".to_owned())
        }
        Ok(None) => {
            row.enabled = false;
            Ok(format!("disabled: {} {} is gone", row.obj_type, row.obj_id))
        }
        Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Internal) => Err(error),
        Err(error) => {
            let what = if error.class_name() == "TaskInProgressError" { "skipped" } else { "failed" };
            let why: String = error.message().chars().take(1000).collect();
            Ok(format!("{what}: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn ticks(cron: &str, zone: &str, from: &str, n: usize) -> Vec<String> {
        let mut at = at(from);
        let mut all = Vec::new();
        for _ in 0..n {
            at = next(cron, zone, at).expect("a tick");
            all.push(at.format("%m-%dT%H:%M:%S").to_string());
        }
        all
    }

    #[test]
    fn ticks_go_by_the_zones_clocks() {
        assert_eq!(
            ticks("*/15 * * * *", "UTC", "2026-01-01T00:07:03.5Z", 2),
            ["01-01T00:15:00", "01-01T00:30:00"]
        );
        assert_eq!(ticks("@daily", "UTC", "2026-01-01T00:00:30Z", 1), ["01-02T00:00:00"]);
        assert_eq!(ticks("30 0 0 * * *", "UTC", "2026-01-01T00:00:30Z", 1), ["01-02T00:00:30"]);
        assert_eq!(ticks("0 9 * * MON", "Asia/Tokyo", "2026-01-01T00:00:00Z", 1), ["01-05T00:00:00"]);
    }

    /// What is documented of the nights when clocks are changed.
    #[test]
    fn a_day_has_its_tick_once_when_clocks_change() {
        // Berlin, 29 March 2026: 02:00 is followed by 03:00, which is 01:00 UTC.
        let spring = ticks("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3);
        assert_eq!(spring, ["03-28T01:30:00", "03-29T01:00:00", "03-30T00:30:00"]);
        // 25 October 2026: 02:30 comes twice, at 00:30 and 01:30 UTC.
        let autumn = ticks("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(autumn, ["10-25T00:30:00", "10-26T01:30:00"]);
        // What comes each half hour comes in both hours, and in none that is left out.
        let each = ticks("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:45:00Z", 5);
        assert_eq!(
            each,
            ["10-25T00:00:00", "10-25T00:30:00", "10-25T01:00:00", "10-25T01:30:00", "10-25T02:00:00"]
        );
        let each = ticks("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:15:00Z", 2);
        assert_eq!(each, ["03-29T00:30:00", "03-29T01:00:00"]);
    }

    #[test]
    fn what_is_wrong_names_its_field() {
        let now = at("2026-01-01T00:00:00Z");
        let blamed =
            |cron: &str, zone: &str| next(cron, zone, now).map_err(|e| e.field_errors()[0].field.clone());
        assert!(blamed("* * * * *", "UTC").is_ok());
        for cron in ["", "x", "* * * *", "61 * * * *", "* * * * * * 2030", "0 0 30 2 *"] {
            assert_eq!(blamed(cron, "UTC"), Err("cron".to_owned()), "{cron:?}");
        }
        assert_eq!(blamed("* * * * *", "Mars/Olympus"), Err("time_zone".to_owned()));
    }
}
