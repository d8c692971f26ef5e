//! Telling what happened: stored with the write, sent by a task until it is
//! taken. In the order of an object's changes, as long as they are taken:
//! one that was given up does not hold up those after it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Webhook, event_of, send};
use crate::ctx::{Core, Ctx, Tx};
use crate::db::{self, Cost, Sql};
use crate::model::{AnonBase, JsonObject, Manager, Meta, Model, Record};
use crate::task::{Reason, Stage, TaskCtx};
use crate::{Resource, Result, stages};

/// Deliveries are kept so long.
const KEEP: Duration = Duration::from_secs(14 * 86_400);

/// Something that a webhook is told.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "webhook-delivery", plural = "webhook-deliveries", read = "admin", write = "never")]
pub struct WebhookDelivery {
    /// Id, version and times; the id goes with each attempt.
    pub base: AnonBase,
    /// Whom it is told.
    #[field(list = "admin", index)]
    pub webhook_id: String,
    /// What happened.
    #[field(list = "admin", max = 64)]
    pub event: String,
    /// Keyword of the type of the row that it happened to.
    #[field(list = "admin", max = 64)]
    pub obj_type: String,
    /// The row that it happened to.
    #[field(list = "admin", index, max = 64)]
    pub obj_id: String,
    /// What is sent.
    #[field(get = "admin")]
    pub payload: Value,
    /// Whether it was taken, or given up.
    #[field(list = "admin")]
    pub ended: bool,
}

impl Manager for WebhookDelivery {}

impl Model for WebhookDelivery {}

impl Tx<'_> {
    /// Whether any webhook is to be told of an action.
    pub(crate) fn told(&self, meta: &Meta, action: &str) -> bool {
        self.ctx.core().hooks.any_for(meta, || event_of(action).to_owned())
    }

    /// Stores what webhooks are to be told of an action on a row, and starts
    /// the tasks that tell it. `changes` is as in the ops log; none: nobody
    /// is to be told.
    pub(crate) fn tell<T: Record>(&mut self, row: &T, action: &str, changes: Option<String>) -> Result<()> {
        let Some(changes) = changes else { return Ok(()) };
        let (meta, event) = (T::meta(), event_of(action));
        let mut object = Vec::new();
        let mut view = JsonObject::open(&mut object, meta.get_mask(crate::auth::Access::Admin));
        row.view(&mut view);
        view.close();
        let cred = self.ctx.cred();
        let payload = json!({
            "event": event,
            "resource": meta.keyword(),
            "id": row.base().anon().id,
            "version": row.base().anon().version,
            "at": self.now(),
            "request_id": self.ctx.request_id(),
            "user": {"id": cred.user_id, "name": cred.user_name, "project_id": cred.project_id},
            "changes": serde_json::from_str::<Value>(&changes).unwrap_or_default(),
            "object": serde_json::from_slice::<Value>(&object).unwrap_or_default(),
        });
        // The platform tells it, not who made the change: the task is not theirs to see or cancel.
        let ctx = Ctx::system(self.ctx.core());
        let hooks = self.ctx.core().hooks.matching(meta, event);
        let mut tx = Tx::new(self.conn, &ctx);
        for hook in hooks {
            let delivery = tx.create(WebhookDelivery {
                webhook_id: hook.base.base.id.clone(),
                event: event.to_owned(),
                obj_type: meta.keyword().to_owned(),
                obj_id: row.base().anon().id.clone(),
                payload: payload.clone(),
                ..WebhookDelivery::default()
            })?;
            tx.start_task::<WebhookDeliver>(&delivery, crate::Nothing {})?;
        }
        Ok(())
    }
}

/// Marks a delivery as ended; not through its row, whose version and audit are
/// nobody's concern.
fn ended(tx: &mut Tx<'_>, delivery: &mut WebhookDelivery) -> Result<()> {
    let sql = Sql::new("UPDATE \"webhook_deliveries\" SET \"ended\" = TRUE WHERE \"id\" = ")
        .value(&delivery.base.id);
    db::execute(tx.conn, &sql)?;
    Ok(())
}

/// Whether the same webhook has not been told yet what happened to the same
/// object before.
fn is_next(tx: &mut Tx<'_>, webhook: &str, object: &str, id: &str) -> Result<bool> {
    let sql = Sql::new("SELECT \"id\" FROM \"webhook_deliveries\" WHERE \"obj_id\" = ")
        .value(object)
        .text(" AND \"webhook_id\" = ")
        .value(webhook)
        .text(" AND \"ended\" = FALSE AND \"id\" < ")
        .value(id)
        .text(" LIMIT 1");
    Ok(db::load_one::<(String,)>(tx.conn, sql)?.is_none())
}

/// How long to wait for those before: about as long as it has waited already.
fn patience(age: Duration) -> Duration {
    age.clamp(Duration::from_millis(250), Duration::from_secs(60))
}

/// Sends a delivery until it is taken.
pub struct WebhookDeliver;

#[stages(object = WebhookDelivery, params = crate::Nothing)]
impl WebhookDeliver {
    // From a second to an hour apart: about nine hours in all.
    #[stage(timeout_s = 60, attempts = 20)]
    async fn on_init(t: &mut TaskCtx<WebhookDelivery, crate::Nothing>) -> Result<Stage> {
        let it = t.object().clone();
        let (webhook, object, id) = (it.webhook_id.clone(), it.obj_id.clone(), it.base.id.clone());
        let found = t.ctx().read(Cost::Bounded, move |tx| {
            let hook = Webhook::select().unscoped().eq("id", webhook.clone()).one(tx)?;
            Ok((hook, is_next(tx, &webhook, &object, &id)?))
        });
        let (hook, next) = found.await?.value;
        let Some(hook) = hook.filter(|it| it.enabled) else {
            // Nobody wants to know any more.
            return Ok(Stage::complete().with(ended));
        };
        if !next {
            let age = (crate::now() - it.base.created_at).to_std().unwrap_or_default();
            return Ok(Stage::next(Self::ON_INIT).after(patience(age)));
        }
        let why = match send::post(&hook, &it.event, &it.base.id, it.payload.to_string()).await {
            Ok(answer) if (200..300).contains(&answer.status) => {
                return Ok(Stage::complete().with(ended));
            }
            Ok(answer) => format!("answered {}", answer.status),
            Err(error) => error,
        };
        let wait = 2_u64.saturating_pow(u32::try_from(t.attempt() - 1).unwrap_or(0)).min(3600);
        Ok(Stage::retry(why).after(Duration::from_secs(wait)))
    }

    async fn on_init_failed(_: &mut TaskCtx<WebhookDelivery, crate::Nothing>, why: Reason) -> Stage {
        Stage::fail(why).with(ended)
    }
}

/// Removes deliveries that ended long ago.
pub(crate) async fn tidy(core: &Arc<Core>) -> Result<()> {
    let ctx = Ctx::system(core);
    let before = crate::now() - KEEP;
    let done = ctx.write(None, move |tx| {
        let sql = Sql::new("DELETE FROM \"webhook_deliveries\" WHERE \"ended\" = TRUE AND \"created_at\" < ")
            .value(before);
        db::execute(tx.conn, &sql)
    });
    done.await?;
    Ok(())
}
