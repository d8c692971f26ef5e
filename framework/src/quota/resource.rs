//! `quotas`: the limits that administrators set; `usages`: what is used of them.

use schemars::JsonSchema;
use serde::Serialize;

use super::{SCOPES, id_of, recount, set};
use crate::auth::Access;
use crate::ctx::Tx;
use crate::db::{self, Sql};
use crate::model::{AnonBase, Extra, Manager, Model, Record};
use crate::query::Select;
use crate::{Error, Resource, Result, actions};

/// How much of something a domain, a project or a user may have.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "quota", plural = "quotas", read = "user", write = "admin", cached)]
pub struct Quota {
    /// Its id says what it is about: `user:<id>:spaces`.
    pub base: AnonBase,
    /// For whom: `domain`, `project` or `user`.
    #[field(list = "user", create = "admin_required", choices("domain", "project", "user"))]
    pub scope: String,
    /// The domain, project or user; empty: each that has no quota of its own.
    #[field(list = "user", create = "admin", index, max = 64)]
    pub target_id: String,
    /// What is counted: a type's plural, or what the type says that it counts.
    #[field(list = "user", create = "admin_required", max = 64)]
    pub resource: String,
    /// The most that there may be at a time.
    #[field(list = "user", create = "admin_required", update = "admin")]
    pub most: i64,
}

/// Narrows to what concerns the caller.
fn own<T: Record>(tx: &Tx<'_>, select: &mut Select<T>) {
    let cred = tx.cred();
    match cred.level {
        Access::Admin => {}
        // A domain's administrator reads its users' and projects' through the
        // items of those; ids of other domains tell nothing here.
        Access::Domain | Access::User | Access::Never => {
            let targets = ["", &cred.domain_id, &cred.project_id, &cred.user_id];
            select.narrow_in("target_id", targets.map(ToOwned::to_owned));
        }
    }
}

impl Manager for Quota {
    fn list_item_filter(tx: &mut Tx<'_>, select: &mut Select<Self>) -> Result<()> {
        own(tx, select);
        Ok(())
    }

    fn validate_create_data(tx: &mut Tx<'_>, input: &mut QuotaCreate) -> Result<()> {
        let ctx = tx.ctx;
        let registry = &ctx.core().registry;
        if !registry.types().any(|of| of.handler.meta().counts(&input.resource)) {
            let mut known: Vec<_> = registry.types().flat_map(|of| of.handler.meta().counted()).collect();
            known.sort_unstable();
            let text = format!("{:?} is not counted; there are {}", input.resource, known.join(", "));
            return Err(Error::field("resource", text));
        }
        if !input.target_id.is_empty() {
            let found = registry.keyword(&input.scope);
            let found = found.map(|of| of.handler.exists(tx, &input.target_id)).transpose()?;
            if found != Some(true) {
                let text = format!("there is no {} {}", input.scope, input.target_id);
                return Err(Error::field("target_id", text).class("ReferenceNotFoundError"));
            }
        }
        Ok(())
    }
}

impl Model for Quota {
    fn customize_create(&mut self, _: &mut Tx<'_>, _: &QuotaCreate) -> Result<()> {
        self.base.id = id_of(&self.scope, &self.target_id, &self.resource);
        not_negative(self.most)
    }

    fn post_create(&mut self, tx: &mut Tx<'_>, _: &QuotaCreate) -> Result<()> {
        // What was counted under a quota of former times was not kept up since.
        forget(tx, self)
    }

    fn pre_update(&mut self, _: &mut Tx<'_>, _: &QuotaUpdate) -> Result<()> {
        not_negative(self.most)
    }

    fn post_delete(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        forget(tx, self)
    }
}

fn not_negative(most: i64) -> Result<()> {
    if most < 0 {
        return Err(Error::field("most", "must be 0 or more; delete the quota to have no limit"));
    }
    Ok(())
}

/// Drops counters; the next use counts the rows anew.
fn forget(tx: &mut Tx<'_>, quota: &Quota) -> Result<()> {
    let mut sql = Sql::new("DELETE FROM \"usages\" WHERE \"scope\" = ")
        .value(quota.scope.clone())
        .text(" AND \"resource\" = ")
        .value(quota.resource.clone());
    if !quota.target_id.is_empty() {
        sql.push(" AND \"target_id\" = ").bind(quota.target_id.clone());
    }
    db::execute(tx.conn, &sql)?;
    Ok(())
}

/// Drops the counters of something of which nothing is left.
pub(crate) fn forget_all(tx: &mut Tx<'_>, resource: &str) -> Result<()> {
    let sql = Sql::new("DELETE FROM \"usages\" WHERE \"resource\" = ").value(resource);
    db::execute(tx.conn, &sql)?;
    Ok(())
}

/// What is used of something that a quota limits. There is one from the first
/// use under the quota on.
#[derive(Debug, Clone, Default, Resource)]
#[resource(
    keyword = "usage",
    plural = "usages",
    read = "user",
    write = "never",
    unlogged,
    extra(most = "The most that there may be.")
)]
pub struct Usage {
    /// Its id says what it is about: `user:<id>:spaces`.
    pub base: AnonBase,
    /// For whom it is counted.
    #[field(list = "user", choices("domain", "project", "user"))]
    pub scope: String,
    /// The domain, project or user.
    #[field(list = "user", index)]
    pub target_id: String,
    /// What is counted.
    #[field(list = "user")]
    pub resource: String,
    /// How much is in use.
    #[field(list = "user")]
    pub used: i64,
    /// How much is held for tasks that have not ended.
    #[field(list = "user")]
    pub pending: i64,
    /// The caches' generation with which it was last counted.
    #[field()]
    pub generation: i64,
}

impl Manager for Usage {
    fn list_item_filter(tx: &mut Tx<'_>, select: &mut Select<Self>) -> Result<()> {
        own(tx, select);
        Ok(())
    }

    fn get_customize_columns(tx: &mut Tx<'_>, rows: &[Self], extra: &mut [Extra]) -> Result<()> {
        let quotas = tx.cached::<Quota>()?;
        for (row, extra) in rows.iter().zip(extra) {
            let quota = quotas.get(&row.base.id);
            let quota = quota.or_else(|| quotas.get(&id_of(&row.scope, "", &row.resource)));
            extra.set("most", quota.map(|it| it.most));
        }
        Ok(())
    }
}

impl Model for Usage {}

/// What a recount found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RecountOutput {
    /// Counters looked at.
    pub checked: i64,
    /// Counters that were wrong and are right now.
    pub corrected: i64,
}

#[actions]
impl Usage {
    /// Counts the rows anew and corrects the counters.
    #[action(access = "admin")]
    fn perform_class_recount(tx: &mut Tx<'_>) -> Result<RecountOutput> {
        // Every write under a quota waits for its counter: hold them all.
        let rows = Self::select().unscoped().for_update().order("id", false).rows(tx)?;
        let mut corrected = 0;
        for row in &rows {
            let Some(scope) = SCOPES.into_iter().find(|it| *it == row.scope) else { continue };
            let (used, pending) = recount(tx, scope, &row.target_id, &row.resource)?;
            if (used, pending) == (row.used, row.pending) {
                continue;
            }
            corrected += 1;
            let generation = tx.cache_generation()?;
            set(tx, &row.base.id, (used, pending), generation)?;
        }
        Ok(RecountOutput { checked: i64::try_from(rows.len()).unwrap_or(i64::MAX), corrected })
    }
}
