//! The log as a resource type: who did what to which object, from where, and
//! what it was before and after.

use chrono::TimeDelta;
use serde_json::{Map, Value};

use crate::auth::Access;
use crate::ctx::{Ctx, Tx, made_at};
use crate::db::{ColumnType, Cost, Done};
use crate::dispatch::{Reply, ResourceHandler, Shown};
use crate::model::{AnonBase, Extra, Field, Manager, Meta, Model};
use crate::query::{self, Params, Select};
use crate::registry::Registry;
use crate::task::BoxFuture;
use crate::{Error, Resource, Result, policy};

/// A record of the audit: one change of one object.
#[derive(Debug, Clone, Default, Resource)]
#[resource(
    keyword = "event",
    plural = "events",
    read = "user",
    write = "never",
    scope = "all",
    unlogged,
    extra(notes = "What it was before and after, by field: {\"old\": …, \"new\": …}.")
)]
pub struct Event {
    /// Its id, when it was made, and the version that the object then had.
    pub base: AnonBase,
    /// Keyword of the object's type.
    #[field(list = "user")]
    pub obj_type: String,
    /// The object.
    #[field(list = "user", index)]
    pub obj_id: String,
    /// The object's name then.
    #[field(list = "user", search)]
    pub obj_name: String,
    /// The object's version after it.
    #[field(list = "user")]
    pub obj_version: i64,
    /// What was done: create, update, delete, an action or a kind of task.
    #[field(list = "user", search)]
    pub action: String,
    /// The domain that the object belonged to.
    #[field(list = "user")]
    pub owner_domain_id: String,
    /// The project that the object belonged to.
    #[field(list = "user")]
    pub owner_project_id: String,
    /// The user that the object belonged to.
    #[field(list = "user")]
    pub owner_user_id: String,
    /// Who did it; empty: the platform itself.
    #[field(list = "user", index)]
    pub user_id: String,
    /// Their name then.
    #[field(list = "user", search)]
    pub user_name: String,
    /// The domain that they acted in.
    #[field(list = "user")]
    pub domain_id: String,
    /// The project that they acted in.
    #[field(list = "user")]
    pub project_id: String,
    /// The request that did it; of a task, the task's id.
    #[field(list = "user")]
    pub request_id: String,
    /// From where; empty: from inside.
    #[field(list = "user")]
    pub client_ip: String,
    /// The task that did it, if one did.
    #[field(list = "user")]
    pub task_id: String,
    /// As it is kept; `notes` is what the reader may see of it.
    #[field()]
    pub changes: Value,
    /// The owner, where somebody else did it: what an index is for.
    #[field()]
    pub other_owner: Option<String>,
}

impl Manager for Event {
    /// Administrators see all, those of a domain what belonged to it, others
    /// what belonged to them or what they did.
    fn list_item_filter(tx: &mut Tx<'_>, select: &mut Select<Self>) -> Result<()> {
        by_time(select);
        let cred = tx.cred();
        let owner = match cred.level {
            Access::Admin => return Ok(()),
            Access::Domain => ("owner_domain_id", cred.domain_id.clone().into()),
            Access::User | Access::Never => ("other_owner", cred.user_id.clone().into()),
        };
        select.narrow_any(vec![owner, ("user_id", cred.user_id.clone().into())]);
        Ok(())
    }

    fn get_customize_columns(tx: &mut Tx<'_>, rows: &[Self], extra: &mut [Extra]) -> Result<()> {
        let ctx = tx.ctx;
        for (row, extra) in rows.iter().zip(extra) {
            extra.set("notes", visible(&ctx.core().registry, row, tx.level()));
        }
        Ok(())
    }
}

impl Model for Event {}

/// Has records that are asked for by id be found by the time in it: an index
/// on ids would cost every write more than all look-ups are worth.
fn by_time(select: &mut Select<Event>) {
    let Some(ids) = select.asked_ids() else { return };
    // An id that tells no time is none of a record's.
    let times: Vec<_> = ids.into_iter().filter_map(made_at).collect();
    let (first, last) = (times.iter().min().copied(), times.iter().max().copied());
    let (first, last) = (first.unwrap_or_default(), last.unwrap_or_default());
    select.narrow_between("created_at", first, last + TimeDelta::microseconds(999));
}

/// Whether it is what hangs on a row that its owner sees: hidden tags are in
/// no record.
fn hangs(meta: &Meta, name: &str) -> bool {
    (name == "metadata" && meta.tagged()) || (name == "shared_with" && meta.shared())
}

/// The changes of the fields that the reader may see in the object itself.
fn visible(registry: &Registry, row: &Event, level: Access) -> Value {
    let Value::Object(changes) = &row.changes else { return Value::Object(Map::new()) };
    let meta = registry.keyword(&row.obj_type).map(|of| of.handler.meta());
    let field = |name: &str| meta.and_then(|meta| meta.field(name));
    let seen = |name: &str| match field(name) {
        Some(field) => field.get.allows(level) || field.list.allows(level),
        // A type or a field that is no more: nobody can say who might see it.
        None => level == Access::Admin || meta.is_some_and(|meta| hangs(meta, name)),
    };
    let shown = changes.iter().filter(|(name, _)| seen(name));
    shown.map(|(name, change)| (name.clone(), pair(field(name), change))).collect::<Map<_, _>>().into()
}

/// Old and new as the API writes such fields. Records of older versions have
/// the value of a new row alone.
fn pair(field: Option<&Field>, change: &Value) -> Value {
    let is_pair =
        |it: &Map<String, Value>| !it.is_empty() && it.keys().all(|key| key == "old" || key == "new");
    match change {
        Value::Object(map) if is_pair(map) => {
            map.iter().map(|(key, value)| (key.clone(), json(field, value))).collect::<Map<_, _>>().into()
        }
        value => serde_json::json!({"new": json(field, value)}),
    }
}

/// A column's value as the API writes it.
fn json(field: Option<&Field>, value: &Value) -> Value {
    let typed = match (field.map(|it| it.column), value) {
        (Some(ColumnType::Time), Value::Number(micros)) => {
            let time = micros.as_i64().and_then(chrono::DateTime::from_timestamp_micros);
            time.and_then(|it| serde_json::to_value(it).ok())
        }
        (Some(ColumnType::Json), Value::String(text)) => serde_json::from_str(text).ok(),
        _ => None,
    };
    typed.unwrap_or_else(|| value.clone())
}

/// What happened to rows of a type beside what the log has, told by what is
/// outside: it stands among the records of `GET /<plural>/<id>/events`, where
/// no parameter asks for a part of them.
pub struct Besides {
    /// Keyword of the type.
    pub keyword: &'static str,
    /// Reads it for a row, by its id; each is an object with `created_at`.
    pub read: fn(Ctx, String) -> BoxFuture<'static, Result<Vec<Value>>>,
}

inventory::collect!(Besides);

/// Puts what others tell among the records, the newest first.
async fn with_besides(ctx: &Ctx, keyword: &str, id: String, mut reply: Reply) -> Result<Reply> {
    let Some(besides) = inventory::iter::<Besides>.into_iter().find(|it| it.keyword == keyword) else {
        return Ok(reply);
    };
    let more = (besides.read)(ctx.clone(), id).await?;
    if more.is_empty() {
        return Ok(reply);
    }
    let mut body: Value = serde_json::from_slice(&reply.body).map_err(Error::internal)?;
    if let Some(list) = body.get_mut("events").and_then(Value::as_array_mut) {
        list.extend(more);
        let at = |it: &Value| {
            let time = it["created_at"].as_str().unwrap_or_default();
            time.parse::<chrono::DateTime<chrono::Utc>>().ok()
        };
        list.sort_by_key(|it| std::cmp::Reverse(at(it)));
    }
    reply.body = serde_json::to_vec(&body).map_err(Error::internal)?;
    Ok(reply)
}

/// `GET /<plural>/<id>/events`: the records of a row that the caller may see,
/// as far as they may see those.
pub(crate) async fn of_row(
    ctx: &Ctx,
    of: &'static dyn ResourceHandler,
    id: String,
    params: &Params<'_>,
) -> Result<Done<Reply>> {
    if let Some((key, _)) = params.iter().find(|(key, _)| key == "obj_type" || key == "obj_id") {
        return Err(Error::field(key.clone().into_owned(), "is in the path already"));
    }
    let bare = Shown { mask: Some(0), extra: Some(Vec::new()), tags: false };
    let found = ctx.read(Cost::Bounded, move |tx| of.get(tx, &id, &bare)).await?;
    let id = found.value.id.unwrap_or_default();
    let whole = params.is_empty();
    let mut params = params.to_vec();
    params.push(("obj_type".into(), of.meta().keyword().into()));
    params.push(("obj_id".into(), id.clone().into()));
    let events =
        ctx.core().registry.keyword("event").ok_or_else(|| Error::internal("no type event"))?.handler;
    policy::require(ctx.cred(), events.meta().source.verbs.list, "to list events")?;
    let request = query::parse(ctx, events.meta(), &params)?;
    let done = ctx.read(Cost::Unbounded, move |tx| events.list(tx, &request)).await?;
    let value =
        if whole { with_besides(ctx, of.meta().keyword(), id, done.value).await? } else { done.value };
    Ok(Done { value, statements: done.statements + found.statements, time: done.time + found.time })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(obj_type: &str, changes: Value) -> Event {
        Event { obj_type: obj_type.into(), changes, ..Event::default() }
    }

    #[test]
    fn notes_show_what_the_reader_may_see() {
        let registry = Registry::collect();
        let changes = json!({
            "status": {"old": "queued", "new": "running"}, "worker_id": {"old": null, "new": "w"},
            "started_at": {"new": 1_700_000_000_000_000_i64}, "params": {"new": "{\"a\":1}"},
            "secret": {"old": "***", "new": "***"}, "stage": "on_init", "was_a_field": {"old": 1},
        });
        let seen = |level| visible(&registry, &event("task", changes.clone()), level);
        let user = json!({
            "status": {"old": "queued", "new": "running"},
            "started_at": {"new": "2023-11-14T22:13:20Z"}, "stage": {"new": "on_init"},
        });
        assert_eq!(seen(Access::User), user);
        let admin = seen(Access::Admin);
        assert_eq!(admin["worker_id"]["new"], "w");
        assert_eq!(admin["params"]["new"], json!({"a": 1}));
        assert_eq!(admin["was_a_field"]["old"], 1);
        assert!(admin.get("secret").is_none(), "that is nobody's: {admin}");
        let unknown = event("gone", json!({"a": {"new": 1}}));
        assert_eq!(visible(&registry, &unknown, Access::User), json!({}));
        assert_eq!(visible(&registry, &unknown, Access::Admin), json!({"a": {"new": 1}}));
    }
}
