//! Quotas: how much of what a domain, a project or a user may have. What a
//! row uses is a function of the row (`Model::quota_use`), so every write
//! takes and gives back the difference, in its own transaction: a failed task
//! gives back what it held by the status that it sets, and the sum over the
//! rows is at any time what the counters say.
//!
//! Nothing is counted that nobody limits: without a quota a write costs no
//! statement more, with one it costs one.

mod resource;

use std::any::Any;
use std::collections::BTreeMap;

pub(crate) use resource::forget_all;
pub use resource::{Quota, Usage};

use crate::ctx::Tx;
use crate::db::{self, Sql, Value};
use crate::model::Record;
use crate::{Error, Result};

/// What a row uses of one countable thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaUse {
    /// What: the type's plural, or one of the names in `quota(…)`.
    pub resource: &'static str,
    /// How much, in the unit that the type documents.
    pub amount: i64,
    /// Whether it is held for something that has not come to be yet.
    pub pending: bool,
}

impl QuotaUse {
    /// In use.
    #[must_use]
    pub fn used(resource: &'static str, amount: i64) -> Self {
        Self { resource, amount, pending: false }
    }

    /// Held for a task that may still fail.
    #[must_use]
    pub fn pending(resource: &'static str, amount: i64) -> Self {
        Self { resource, amount, pending: true }
    }
}

/// For whom is counted.
const SCOPES: [&str; 3] = ["domain", "project", "user"];

/// Used and pending.
type Amounts = (i64, i64);
/// Scope, target and resource to amounts; ordered, so that counters are
/// always taken in the same order.
type Sums = BTreeMap<(&'static str, String, &'static str), Amounts>;

/// Adds what a row uses, `sign` times, to the sums of its owners.
fn add<T: Record>(tx: &mut Tx<'_>, row: &T, sign: i64, sums: &mut Sums) -> Result<()> {
    let Some(owner) = row.base().owner() else { return Ok(()) };
    // What lies in the trash uses nothing; to take it out takes it up again.
    if row.base().owned().is_some_and(|it| it.deleted) || crate::trash::expect_living(row).is_err() {
        return Ok(());
    }
    let targets = [owner.domain_id, owner.project_id, owner.user_id].map(str::to_owned);
    for part in row.uses(tx)? {
        for (scope, target) in SCOPES.into_iter().zip(&targets) {
            if target.is_empty() {
                continue;
            }
            let sum = sums.entry((scope, target.clone(), part.resource)).or_default();
            *(if part.pending { &mut sum.1 } else { &mut sum.0 }) += sign * part.amount;
        }
    }
    Ok(())
}

/// One counter that is to change.
struct Line {
    id: String,
    scope: &'static str,
    target: String,
    resource: &'static str,
    used: i64,
    pending: i64,
    most: i64,
}

impl Line {
    fn more(&self) -> i64 {
        self.used + self.pending
    }
}

/// The id of a quota or a counter: what it is about.
fn id_of(scope: &str, target: &str, resource: &str) -> String {
    format!("{scope}:{target}:{resource}")
}

impl Tx<'_> {
    /// Keeps a row as it was read to be changed, so that a save later need not
    /// read it again to know what it used.
    pub(crate) fn remember<T: Record>(&mut self, row: &T) {
        if T::meta().source.quota.is_some() {
            self.remembered = Some(Box::new(row.clone()) as Box<dyn Any + Send>);
        }
    }

    /// Takes what a new row uses.
    pub(crate) fn quota_insert<T: Record>(&mut self, row: &T) -> Result<()> {
        if T::meta().source.quota.is_none() || self.cached::<Quota>()?.is_empty() {
            return Ok(());
        }
        let mut sums = Sums::new();
        add(self, row, 1, &mut sums)?;
        self.settle(sums)
    }

    /// Takes or gives back the difference that a change makes.
    pub(crate) fn quota_change<T: Record>(&mut self, row: &T) -> Result<()> {
        if T::meta().source.quota.is_none() || self.cached::<Quota>()?.is_empty() {
            return Ok(());
        }
        let mut sums = Sums::new();
        if let Some(old) = self.row_before(row)? {
            add(self, &old, -1, &mut sums)?;
        }
        add(self, row, 1, &mut sums)?;
        self.remember(row);
        self.settle(sums)
    }

    /// Gives back what a row used that goes.
    pub(crate) fn quota_remove<T: Record>(&mut self, row: &T) -> Result<()> {
        if T::meta().source.quota.is_none() || self.cached::<Quota>()?.is_empty() {
            return Ok(());
        }
        let mut sums = Sums::new();
        if let Some(old) = self.row_before(row)? {
            add(self, &old, -1, &mut sums)?;
        }
        self.settle(sums)
    }

    /// The row as the database has it.
    fn row_before<T: Record>(&mut self, row: &T) -> Result<Option<T>> {
        let id = &row.base().anon().id;
        if let Some(kept) = self.remembered.take()
            && let Ok(kept) = kept.downcast::<T>()
            && kept.base().anon().id == *id
        {
            return Ok(Some(*kept));
        }
        T::select().unscoped().with_deleted().eq("id", id.clone()).one(self)
    }

    fn settle(&mut self, sums: Sums) -> Result<()> {
        let quotas = self.cached::<Quota>()?;
        let mut lines = Vec::new();
        for ((scope, target, resource), (used, pending)) in sums {
            if used == 0 && pending == 0 {
                continue;
            }
            let id = id_of(scope, &target, resource);
            let Some(quota) = quotas.get(&id).or_else(|| quotas.get(&id_of(scope, "", resource))) else {
                continue;
            };
            lines.push(Line { id, scope, target, resource, used, pending, most: quota.most });
        }
        let generation = self.cache_generation()?;
        if lines.is_empty() || take(self, &lines, generation)? {
            return Ok(());
        }
        // Not all there, not all fresh, or not enough left: find out which.
        let there = read(self, &lines)?;
        for line in &lines {
            if there.get(&line.id).is_none_or(|it| it.2 != generation) {
                count(self, line, generation)?;
            }
        }
        if take(self, &lines, generation)? {
            return Ok(());
        }
        let there = read(self, &lines)?;
        for line in &lines {
            let (used, pending, _) = there.get(&line.id).copied().unwrap_or_default();
            if line.more() > 0 && used + pending + line.more() > line.most {
                return Err(exceeded(line, used, pending));
            }
        }
        Err(Error::conflict("the quotas were changed meanwhile; try again"))
    }
}

fn exceeded(line: &Line, used: i64, pending: i64) -> Error {
    let held = if pending == 0 { String::new() } else { format!(" and {pending} pending") };
    let text = format!(
        "the quota of {} {} is {} {}: {used} used{held}, {} more asked for",
        line.scope,
        line.target,
        line.most,
        line.resource,
        line.more()
    );
    Error::conflict(text).class("OutOfQuotaError").blame(line.resource)
}

/// The counters that have room and are of this generation of the caches: what
/// a row uses may depend on cached types (its size), so a change of one of
/// these has the counters count anew.
fn with_room(sql: &mut Sql<'static>, lines: &[Line], generation: i64) {
    sql.push(" WHERE \"generation\" = ").bind(generation);
    let mut word = " AND (";
    for line in lines {
        sql.push(word).push("(\"id\" = ").bind(line.id.clone());
        if line.more() > 0 {
            sql.push(" AND \"used\" + \"pending\" <= ").bind(line.most.saturating_sub(line.more()));
        }
        sql.push(")");
        word = " OR ";
    }
    sql.push(")");
}

/// Changes all counters by their amounts, or tells that it cannot: one is not
/// there, not fresh or would exceed its limit.
fn take(tx: &mut Tx<'_>, lines: &[Line], generation: i64) -> Result<bool> {
    let mut sql = Sql::new("UPDATE \"usages\" SET \"version\" = \"version\" + 1, \"updated_at\" = ");
    sql.bind(tx.now());
    let case = |sql: &mut Sql<'static>, of: fn(&Line) -> i64| {
        sql.push("CASE \"id\"");
        for line in lines {
            sql.push(" WHEN ").bind(line.id.clone()).push(" THEN ").bind(of(line));
        }
        sql.push(" END");
    };
    sql.push(", \"used\" = \"used\" + ");
    case(&mut sql, |line| line.used);
    sql.push(", \"pending\" = \"pending\" + ");
    case(&mut sql, |line| line.pending);
    with_room(&mut sql, lines, generation);
    if lines.len() == 1 {
        return Ok(db::execute(tx.conn, &sql)? == 1);
    }
    // All or none: a part must not be taken where the rest is refused.
    sql.push(" AND ").bind(i64::try_from(lines.len()).unwrap_or(i64::MAX));
    // A subquery in it: MySQL does not read otherwise what it is changing.
    sql.push(" = (SELECT \"n\" FROM (SELECT COUNT(*) AS \"n\" FROM \"usages\"");
    with_room(&mut sql, lines, generation);
    sql.push(") AS \"counted\")");
    Ok(db::execute(tx.conn, &sql)? == lines.len())
}

/// Used, pending and the generation, by the counters' ids.
fn read(tx: &mut Tx<'_>, lines: &[Line]) -> Result<BTreeMap<String, (i64, i64, i64)>> {
    let what = "SELECT \"id\", \"used\", \"pending\", \"generation\" FROM \"usages\" WHERE \"id\" IN ";
    let mut sql = Sql::new(what);
    sql.list(lines.iter().map(|line| Value::from(line.id.clone())));
    let lock = tx.conn.dialect().for_update();
    if !lock.is_empty() {
        sql.push(" ORDER BY \"id\"").push(lock);
    }
    let rows: Vec<(String, i64, i64, i64)> = db::load(tx.conn, sql)?;
    Ok(rows.into_iter().map(|(id, used, pending, of)| (id, (used, pending, of))).collect())
}

/// Sets a counter to what the rows that are there use.
fn count(tx: &mut Tx<'_>, line: &Line, generation: i64) -> Result<()> {
    let (used, pending) = recount(tx, line.scope, &line.target, line.resource)?;
    if set(tx, &line.id, (used, pending), generation)? {
        return Ok(());
    }
    let dialect = tx.conn.dialect();
    // Somebody else may begin at the same moment; this waits for them.
    let mut sql = Sql::new(dialect.insert_new());
    sql.push(
        "\"usages\" (\"id\", \"version\", \"created_at\", \"updated_at\", \"scope\", \
         \"target_id\", \"resource\", \"used\", \"pending\", \"generation\") VALUES (",
    );
    sql.bind(line.id.clone()).push(", 1, ").bind(tx.now()).push(", ").bind(tx.now());
    sql.push(", ").bind(line.scope).push(", ").bind(line.target.clone()).push(", ").bind(line.resource);
    sql.push(", ")
        .bind(used)
        .push(", ")
        .bind(pending)
        .push(", ")
        .bind(generation)
        .push(")")
        .push(dialect.or_ignore());
    db::execute(tx.conn, &sql)?;
    Ok(())
}

/// Corrects a counter; tells whether it is there.
pub(crate) fn set(tx: &mut Tx<'_>, id: &str, (used, pending): Amounts, generation: i64) -> Result<bool> {
    let mut sql = Sql::new("UPDATE \"usages\" SET \"version\" = \"version\" + 1, \"used\" = ");
    sql.bind(used).push(", \"pending\" = ").bind(pending);
    sql.push(", \"generation\" = ").bind(generation).push(" WHERE \"id\" = ").bind(id.to_owned());
    Ok(db::execute(tx.conn, &sql)? > 0)
}

/// What the rows of a target use now, by the rows themselves.
pub(crate) fn recount(tx: &mut Tx<'_>, scope: &str, target: &str, resource: &str) -> Result<Amounts> {
    let column = SCOPES.into_iter().zip(["domain_id", "project_id", "user_id"]);
    let Some((_, column)) = column.into_iter().find(|(it, _)| *it == scope) else { return Ok((0, 0)) };
    let ctx = tx.ctx;
    let mut sum = (0, 0);
    for of in ctx.core().registry.types() {
        if !of.handler.meta().counts(resource) || !of.handler.meta().has(column) {
            continue;
        }
        for part in of.handler.uses(tx, column, target)? {
            if part.resource == resource {
                *(if part.pending { &mut sum.1 } else { &mut sum.0 }) += part.amount;
            }
        }
    }
    Ok(sum)
}
