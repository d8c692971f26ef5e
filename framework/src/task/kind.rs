//! Kinds of tasks as a resource: what may run how often, and whether it may
//! run at all. Administrators pause a kind for all processes; its tasks wait
//! in the queue meanwhile.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{TaskEntry, entry};
use crate::ctx::{Ctx, Tx};
use crate::db::{self, AnyConnection, Cost, Sql, Value};
use crate::model::{AnonBase, Manager, Model};
use crate::{Resource, Result, actions};

/// A kind of task that a worker has known. Its id is its name.
#[derive(Debug, Clone, Resource)]
#[resource(keyword = "task_kind", plural = "task-kinds", read = "user", write = "never")]
pub struct TaskKind {
    /// Id, version and times.
    pub base: AnonBase,
    /// Its name, like `space-start`.
    #[field(list = "user")]
    pub name: String,
    /// Whether its stages wait until somebody resumes it.
    #[field(list = "user")]
    pub paused: bool,
    /// The priority that its tasks have unless they say otherwise; smaller goes first.
    #[field(list = "user")]
    pub priority: i64,
    /// How many of it a process runs at once at most.
    #[field(list = "user")]
    pub concurrency: Option<i64>,
    /// How many of its stages a process begins in a second at most.
    #[field(list = "user")]
    pub per_second: Option<i64>,
}

/// How the tasks of a kind stand.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KindStatistics {
    /// How many there are, by status.
    pub by_status: BTreeMap<String, i64>,
    /// How many could run now.
    pub due: i64,
    /// Since how many seconds the oldest of those waits.
    pub oldest_due_seconds: f64,
}

impl Manager for TaskKind {}

impl Model for TaskKind {}

#[actions]
impl TaskKind {
    /// Has its tasks wait: no process begins a stage of it any more, those
    /// that run end. It holds until somebody resumes it.
    #[action(access = "admin")]
    fn perform_pause(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        self.set(tx, true)
    }

    /// Lets its tasks run again.
    #[action(access = "admin")]
    fn perform_resume(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        self.set(tx, false)
    }

    /// How its tasks stand now. It looks at all of them.
    #[action(access = "admin")]
    async fn get_details_statistics(&self, ctx: &Ctx) -> Result<KindStatistics> {
        let name = self.name.clone();
        let clock = ctx.core().tasks.clock().clone();
        let done = ctx.read(Cost::Unbounded, move |tx| {
            let now = clock.peek(tx.conn)?;
            statistics(tx.conn, &name, now)
        });
        Ok(done.await?.value)
    }
}

impl TaskKind {
    fn set(&mut self, tx: &mut Tx<'_>, paused: bool) -> Result<()> {
        self.paused = paused;
        tx.save(self)?;
        // Others see it with their next look.
        let waker = tx.ctx.core().tasks.waker();
        db::after_commit(move || waker.news());
        Ok(())
    }
}

fn statistics(conn: &mut AnyConnection, name: &str, now: i64) -> Result<KindStatistics> {
    let mut sql = Sql::new("SELECT \"status\", count(*) FROM \"tasks\" WHERE \"task_name\" = ").value(name);
    sql.push(" GROUP BY \"status\"");
    let by_status = db::load::<(String, i64)>(conn, sql)?.into_iter().collect();
    // Names hold no wildcards: they are made of letters, digits and dashes.
    let mut sql = Sql::new("SELECT count(*), min(\"run_at\") FROM \"task_ready\" WHERE \"due\" = TRUE AND ");
    sql.push("\"queue\" LIKE ").bind(format!("%/{name}"));
    let (due, oldest) = db::load_one::<(i64, Option<i64>)>(conn, sql)?.unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let oldest_due_seconds = oldest.map_or(0.0, |at| (now - at).max(0) as f64 / 1e6);
    Ok(KindStatistics { by_status, due, oldest_due_seconds })
}

/// The kinds that are paused.
pub(super) fn paused(conn: &mut AnyConnection) -> Result<Vec<String>> {
    let sql = Sql::new("SELECT \"name\" FROM \"task_kinds\" WHERE \"paused\" = TRUE");
    Ok(db::load::<(String,)>(conn, sql)?.into_iter().map(|(it,)| it).collect())
}

/// All kinds, and whether they are paused.
pub(super) fn all(conn: &mut AnyConnection) -> Result<Vec<(String, bool)>> {
    db::load(conn, Sql::new("SELECT \"name\", \"paused\" FROM \"task_kinds\""))
}

type Known = (String, i64, Option<i64>, Option<i64>);

fn known(kind: &TaskEntry) -> Known {
    let number = |it: Option<usize>| it.and_then(|it| i64::try_from(it).ok());
    let options = &kind.options;
    (kind.name.into(), options.priority, number(options.concurrency), options.per_second.map(i64::from))
}

/// The kinds whose row is missing or tells something else than this process.
pub(super) fn unregistered(conn: &mut AnyConnection, names: &[&'static str]) -> Result<Vec<&'static str>> {
    let sql = Sql::new("SELECT \"name\", \"priority\", \"concurrency\", \"per_second\" FROM \"task_kinds\"");
    let there: Vec<Known> = db::load(conn, sql)?;
    let differs = |name: &&str| entry(name).is_some_and(|kind| !there.contains(&known(kind)));
    Ok(names.iter().copied().filter(differs).collect())
}

/// Makes the rows of kinds as this process knows them. The last version that
/// starts has the last word, in a rolling upgrade too.
pub(super) fn register(conn: &mut AnyConnection, names: &[&'static str]) -> Result<()> {
    let (now, dialect) = (crate::now(), conn.dialect());
    for kind in names.iter().filter_map(|name| entry(name)) {
        let (name, priority, concurrency, per_second) = known(kind);
        let mut sql = Sql::new(dialect.insert_new());
        sql.push(
            "\"task_kinds\" (\"id\", \"name\", \"version\", \"created_at\", \"updated_at\", \"paused\", ",
        );
        sql.push("\"priority\", \"concurrency\", \"per_second\") VALUES (")
            .bind(&name)
            .push(", ")
            .bind(&name);
        sql.push(", 1, ").bind(now).push(", ").bind(now).push(", FALSE, ").bind(priority);
        sql.push(", ").bind(Value::Int(concurrency)).push(", ").bind(Value::Int(per_second)).push(")");
        sql.push(dialect.or_ignore());
        if db::execute(conn, &sql)? == 0 {
            let mut sql =
                Sql::new("UPDATE \"task_kinds\" SET \"version\" = \"version\" + 1, \"priority\" = ");
            sql.bind(priority).push(", \"concurrency\" = ").bind(Value::Int(concurrency));
            sql.push(", \"per_second\" = ")
                .bind(Value::Int(per_second))
                .push(", \"updated_at\" = ")
                .bind(now);
            sql.push(" WHERE \"id\" = ").bind(&name);
            db::execute(conn, &sql)?;
        }
    }
    Ok(())
}
