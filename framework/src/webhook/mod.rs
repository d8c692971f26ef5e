//! Webhooks: an administrator's own code as the hooks of a type, behind HTTP.
//! For users: docs/webhooks.md.
//!
//! What happened is told (`created`, `updated`, …): a delivery is stored in
//! the very transaction of the write, and a task sends it until it is taken
//! (`deliver`). What is about to happen is asked (`before_create`, …): before
//! any transaction, since the answer may take time, with the version of the
//! row held to it (`admission`). Which webhooks there are every process keeps
//! in memory: requests that none wants to know of cost a look at a flag.

mod admission;
mod deliver;
mod resource;
mod send;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Semaphore;

use crate::model::Meta;

pub(crate) use admission::{Admitted, admit, asks, expect_admitted};
pub(crate) use deliver::tidy;
pub use deliver::{WebhookDeliver, WebhookDelivery};
pub use resource::{Webhook, WebhookCreate, WebhookUpdate};

/// Questions to webhooks that may be under way at once in a process.
const AT_ONCE: usize = 64;

/// The webhooks, as a process knows them.
pub(crate) struct Hooks {
    any: AtomicBool,
    all: RwLock<(i64, Arc<Vec<Webhook>>)>,
    asking: Semaphore,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), all: RwLock::default(), asking: Semaphore::new(AT_ONCE) }
    }
}

impl Hooks {
    /// Takes over what is in the database, unless something newer is here.
    pub(crate) fn install(&self, generation: i64, mut hooks: Vec<Webhook>) {
        hooks.retain(|it| it.enabled);
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if all.0 < generation {
            self.any.store(!hooks.is_empty(), Ordering::Release);
            *all = (generation, Arc::new(hooks));
        }
    }

    /// The webhooks for an event of a type, in the order of their creation.
    fn matching(&self, meta: &Meta, event: &str) -> Vec<Webhook> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner).1.clone();
        all.iter().filter(|it| it.wants(meta.keyword(), event)).cloned().collect()
    }

    fn any_for(&self, meta: &Meta, event: impl FnOnce() -> String) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let event = event();
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner).1.clone();
        all.iter().any(|it| it.wants(meta.keyword(), &event))
    }
}

/// What an action is called once it is done.
fn event_of(action: &str) -> &str {
    match action {
        "create" => "created",
        "update" => "updated",
        "delete" => "deleted",
        other => other,
    }
}
