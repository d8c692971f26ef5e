//! Asking what may happen, before any transaction. The answer holds for the
//! version of the row that was shown: the write that follows is for that
//! version alone.

use std::time::Duration;

use actix_web::web;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Webhook, send};
use crate::auth::Access;
use crate::ctx::{Ctx, Tx};
use crate::db::Cost;
use crate::dispatch::{IfMatch, Shown};
use crate::model::{Meta, entries};
use crate::registry::Type;
use crate::{Error, Kind, Result};

/// What a webhook answers.
#[derive(Debug, Deserialize)]
struct Verdict {
    allowed: bool,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    field: Option<String>,
    #[serde(default)]
    patch: Map<String, Value>,
}

/// A request that may go on, as it may go on.
pub(crate) struct Admitted {
    pub(crate) ctx: Ctx,
    /// The row; its id, if any webhook was asked.
    pub(crate) id: String,
    pub(crate) body: web::Bytes,
    pub(crate) known: IfMatch,
    pinned: bool,
}

impl Admitted {
    /// Says what became of the version that webhooks saw, where the client
    /// had named none.
    pub(crate) fn explain(pinned: bool) -> impl Fn(Error) -> Error {
        move |error| {
            if pinned && error.kind() == Kind::PreconditionFailed {
                return Error::conflict("the row was changed while webhooks were asked; try again");
            }
            error
        }
    }

    /// Whether the version comes from what webhooks saw.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned
    }
}

/// What the question before an action is called.
pub(super) fn before(action: &str) -> String {
    format!("before_{action}")
}

/// Whether any webhook wants to be asked first.
pub(crate) fn asks(ctx: &Ctx, meta: &Meta, action: &str) -> bool {
    ctx.core().hooks.any_for(meta, || before(action))
}

/// Refuses what a webhook must be asked first and was not: a way to write
/// that does not ask is no way around.
pub(crate) fn expect_admitted(tx: &Tx<'_>, meta: &Meta, action: &str) -> Result<()> {
    if !tx.ctx.is_admitted() && asks(tx.ctx, meta, action) {
        let text = format!("a webhook must be asked before this: {action} one {} at a time", meta.keyword());
        return Err(Error::conflict(text).class("AdmissionRequiredError"));
    }
    Ok(())
}

/// Asks all webhooks that want to be asked, one after the other, each shown
/// what those before it made of the input.
///
/// # Errors
/// What a webhook refuses; 503 when one that must answer does not; 404 and
/// 412 of the row.
pub(crate) async fn admit(
    ctx: Ctx,
    of: &Type,
    action: &str,
    id: Option<String>,
    body: web::Bytes,
    known: IfMatch,
) -> Result<Admitted> {
    let meta = of.handler.meta();
    let event = before(action);
    let hooks = ctx.core().hooks.matching(meta, &event);
    let given = id.clone().unwrap_or_default();
    if hooks.is_empty() {
        return Ok(Admitted { ctx, id: given, body, known, pinned: false });
    }
    let mut input = Map::new();
    for (key, value) in entries(&body, meta.keyword(), meta.plural())? {
        input.insert(key.into_owned(), serde_json::from_str(value.get()).map_err(Error::internal)?);
    }
    let mut it = Admitted { ctx, id: given, body, known, pinned: false };
    let mut object = Value::Null;
    if let Some(name) = id {
        let handler = of.handler;
        let done = it.ctx.read(Cost::Bounded, move |tx| handler.get(tx, &name, &Shown::default())).await?;
        let mut shown: Value = serde_json::from_slice(&done.value.body).map_err(Error::internal)?;
        object = shown[meta.keyword()].take();
        let (Some(id), Some(version)) = (done.value.id, done.value.version) else {
            return Err(Error::internal("a row without id or version"));
        };
        it.known.check(meta.keyword(), &id, version)?;
        it.pinned = matches!(it.known, IfMatch::Any);
        it.known = IfMatch::Versions(vec![version]);
        it.id = id;
    }
    for hook in hooks {
        if let Some(patch) = ask(&it.ctx, &hook, meta, &event, &input, &object).await? {
            input.extend(patch);
        }
    }
    if !input.is_empty() {
        it.body = Value::Object(input).to_string().into();
    }
    it.ctx = it.ctx.with_admission();
    Ok(it)
}

/// The input as webhooks see it: without what is nobody's to read. Inputs of
/// actions have no metadata, so what sounds like a secret is taken for one.
fn shown(meta: &Meta, input: &Map<String, Value>) -> Map<String, Value> {
    let secret = |name: &str| match meta.field(name) {
        Some(field) => field.list == Access::Never && field.get == Access::Never,
        None => ["password", "secret", "token"].iter().any(|word| name.contains(word)),
    };
    let shown = |(name, value): (&String, &Value)| {
        (name.clone(), if secret(name) { "***".into() } else { value.clone() })
    };
    input.iter().map(shown).collect()
}

/// Asks one webhook; gives what it changes.
async fn ask(
    ctx: &Ctx,
    hook: &Webhook,
    meta: &Meta,
    event: &str,
    input: &Map<String, Value>,
    object: &Value,
) -> Result<Option<Map<String, Value>>> {
    let cred = ctx.cred();
    let question = json!({
        "event": event,
        "resource": meta.keyword(),
        "request_id": ctx.request_id(),
        "user": {
            "id": cred.user_id, "name": cred.user_name, "domain_id": cred.domain_id,
            "project_id": cred.project_id, "roles": cred.roles, "level": cred.level,
        },
        "input": shown(meta, input),
        "object": object,
    });
    let verdict = match answer(ctx, hook, event, question.to_string()).await {
        Ok(it) => it,
        Err(why) => {
            tracing::warn!(webhook = hook.base.name, event, why, request_id = ctx.request_id(), "no verdict");
            if hook.failure_policy == "ignore" {
                return Ok(None);
            }
            // Where and how is the administrator's business.
            let text = format!("the webhook {} gave no verdict; try again", hook.base.name);
            return Err(Error::unavailable(text, 2).class("WebhookUnavailableError"));
        }
    };
    if verdict.allowed {
        return Ok(Some(verdict.patch));
    }
    let message: String =
        verdict.message.unwrap_or_else(|| format!("refused by the webhook {}", hook.base.name));
    let message: String = message.chars().take(1024).collect();
    Err(match verdict.field {
        Some(field) => Error::field(field, message).class("AdmissionRefusedError"),
        None => Error::forbidden(message).class("AdmissionRefusedError"),
    })
}

async fn answer(ctx: &Ctx, hook: &Webhook, event: &str, question: String) -> Result<Verdict, String> {
    let turn = tokio::time::timeout(Duration::from_secs(2), ctx.core().hooks.asking.acquire()).await;
    let Ok(Ok(_turn)) = turn else { return Err("too many questions are under way".into()) };
    let answer = send::post(hook, event, &crate::new_id(), question).await?;
    if !(200..300).contains(&answer.status) {
        return Err(format!("answered {}", answer.status));
    }
    serde_json::from_slice(&answer.body).map_err(|e| format!("its answer is no verdict: {e}"))
}
