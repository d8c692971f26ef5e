//! Webhooks as a resource.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::Serialize;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::admission::before;
use super::{event_of, send};
use crate::ctx::Tx;
use crate::db::{self, Sql};
use crate::model::{Action, ActionKind, Extra, Manager, Model, StandaloneBase};
use crate::registry::{Registry, Type};
use crate::trash::PENDING_DELETE;
use crate::{Error, Resource, Result, actions, runtime, task};

/// Types that webhooks are not told of: they would be told of being told.
const OWN: &[&str] = &["webhook", "webhook-delivery", "task"];

/// Where the platform tells what happens, or asks what may happen.
#[derive(Debug, Clone, Default, Resource)]
#[resource(
    keyword = "webhook",
    plural = "webhooks",
    read = "admin",
    write = "admin",
    extra(new_secret = "The secret that was made up, in the answer to the create only.")
)]
pub struct Webhook {
    /// Name and description.
    pub base: StandaloneBase,
    /// Where it is told: http or https.
    #[field(list = "admin", create = "required", update = "admin", max = 2048)]
    pub url: String,
    /// Keyword of the resource type, or `*` for all.
    #[field(list = "admin", create = "required", update = "admin", max = 64)]
    pub resource: String,
    /// `created`, `updated`, `deleted` or an action, told when it is done;
    /// `before_create`, `before_update`, `before_delete` or `before_<action>`,
    /// asked before.
    #[field(list = "admin", create = "required", update = "admin", max = 4096)]
    pub events: Vec<String>,
    /// What signatures are made with; never shown. One is made up if none is given.
    #[field(create = "admin", update = "admin", max = 255)]
    pub secret: String,
    /// Seconds that an answer may take.
    #[field(list = "admin", create = "optional", update = "admin", default = 5)]
    pub timeout: i64,
    /// What becomes of a request when a webhook that is asked gives no answer.
    #[field(
        list = "admin",
        create = "optional",
        update = "admin",
        default = "fail",
        choices("fail", "ignore"),
        max = 16
    )]
    pub failure_policy: String,
    /// Whether it is told and asked at all.
    #[field(list = "admin", create = "optional", update = "admin", default = true)]
    pub enabled: bool,
    /// The secret that was made up for it, until the create is answered.
    #[field(transient)]
    pub made_up: String,
}

/// A delivery, as its webhook shows it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Delivered {
    /// Its id, which goes with each attempt.
    pub id: String,
    /// What happened.
    pub event: String,
    /// Keyword of the type.
    pub resource: String,
    /// The row.
    pub resource_id: String,
    /// The task that delivers it.
    pub task_id: Option<String>,
    /// The task's status: done, or failed once all attempts are.
    pub status: Option<String>,
    /// Attempts at it.
    pub attempt: Option<i64>,
    /// Why the last attempt failed.
    pub reason: Option<String>,
}

/// All that a webhook can be told or asked of a type; `*`: of any.
fn events(registry: &Registry, keyword: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let of = |of: &&Type| {
        let its = of.handler.meta().keyword();
        if keyword == "*" { !OWN.contains(&its) } else { keyword == its }
    };
    for of in registry.types().filter(of) {
        let meta = of.handler.meta();
        let acts = |action: &&&Action| matches!(action.kind, ActionKind::Item | ActionKind::Class);
        let actions = of.actions.values().filter(acts).map(|it| it.name);
        all.extend(["create", "update", "delete"].into_iter().chain(actions.clone()).map(before));
        all.extend(["create", "update", "delete"].into_iter().map(|it| event_of(it).to_owned()));
        let trash = meta.trash().then_some(PENDING_DELETE);
        let tasks = task::names_of(meta);
        let told = actions.chain(tasks).chain(trash).chain(of.handler.events().iter().copied());
        all.extend(told.map(str::to_owned));
    }
    all
}

impl Webhook {
    /// Whether it is to be told or asked.
    pub(super) fn wants(&self, keyword: &str, event: &str) -> bool {
        let of = self.resource == keyword || self.resource == "*";
        of && !OWN.contains(&keyword) && self.events.iter().any(|it| it == event)
    }

    fn check(&self, tx: &Tx<'_>) -> Result<()> {
        send::check_url(&self.url).map_err(|message| Error::field("url", message))?;
        let known = || tx.ctx.core().registry.keyword(&self.resource).is_some();
        if self.resource != "*" && (OWN.contains(&self.resource.as_str()) || !known()) {
            return Err(Error::field("resource", "is neither * nor the keyword of a resource type"));
        }
        if self.events.is_empty() {
            return Err(Error::field("events", "names none"));
        }
        let valid = events(&tx.ctx.core().registry, &self.resource);
        if let Some(bad) = self.events.iter().find(|it| !valid.contains(it.as_str())) {
            let valid: Vec<_> = valid.into_iter().collect();
            let bad: String = bad.chars().take(64).collect();
            let text = format!("{bad:?} is no event of {}; possible: {}", self.resource, valid.join(", "));
            return Err(Error::field("events", text));
        }
        if !(1..=10).contains(&self.timeout) {
            return Err(Error::field("timeout", "must be from 1 to 10 seconds"));
        }
        if self.secret.is_empty() {
            return Err(Error::field("secret", "must not be empty"));
        }
        Ok(())
    }
}

impl Manager for Webhook {}

impl Model for Webhook {
    fn customize_create(&mut self, tx: &mut Tx<'_>, _: &WebhookCreate) -> Result<()> {
        if self.secret.is_empty() {
            self.secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 24]>());
            self.made_up.clone_from(&self.secret);
        }
        self.check(tx)?;
        runtime::raise(tx)?;
        Ok(())
    }

    fn get_extra_details(&self, _: &mut Tx<'_>, extra: &mut Extra) -> Result<()> {
        if !self.made_up.is_empty() {
            extra.set_secret("new_secret", self.made_up.as_str());
        }
        Ok(())
    }

    fn post_create(&mut self, tx: &mut Tx<'_>, _: &WebhookCreate) -> Result<()> {
        runtime::publish(tx)
    }

    fn pre_update(&mut self, tx: &mut Tx<'_>, _: &WebhookUpdate) -> Result<()> {
        self.check(tx)?;
        runtime::raise(tx)?;
        Ok(())
    }

    fn post_update(&mut self, tx: &mut Tx<'_>, _: &Self) -> Result<()> {
        runtime::publish(tx)
    }

    fn pre_delete(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        runtime::raise(tx)?;
        Ok(())
    }

    fn post_delete(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        runtime::publish(tx)
    }
}

type Row = (String, String, String, String, Option<String>, Option<String>, Option<i64>, Option<String>);

#[actions]
impl Webhook {
    /// The last hundred things that it was told, or is going to be.
    fn get_details_deliveries(&self, tx: &mut Tx<'_>) -> Result<Vec<Delivered>> {
        let sql = Sql::new(
            "SELECT d.\"id\", d.\"event\", d.\"obj_type\", d.\"obj_id\", t.\"id\", t.\"status\", t.\"attempt\", \
             t.\"reason\" FROM \"webhook_deliveries\" d LEFT JOIN \"tasks\" t ON t.\"obj_id\" = d.\"id\" \
             WHERE d.\"webhook_id\" = ",
        )
        .value(&self.base.base.id)
        .text(" ORDER BY d.\"id\" DESC LIMIT 100");
        let rows: Vec<Row> = db::load(tx.conn, sql)?;
        let shown = |(id, event, resource, resource_id, task_id, status, attempt, reason): Row| Delivered {
            id,
            event,
            resource,
            resource_id,
            task_id,
            status,
            attempt,
            reason,
        };
        Ok(rows.into_iter().map(shown).collect())
    }
}
