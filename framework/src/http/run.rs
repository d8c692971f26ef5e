//! From what a request asks for to the pipeline that answers it: rights,
//! parameters, the kind of transaction, the status.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web;

use super::export::{self, Export};
use super::nested;
use super::route::Target;
use crate::auth::UserCred;
use crate::ctx::Ctx;
use crate::db::{Cost, Done, Lock};
use crate::dispatch::{IfMatch, Reply, ResourceHandler, Shown, enveloped};
use crate::model::{Action, ActionInput, ActionKind, ActionOutput, Meta, Owner, Run};
use crate::registry::Type;
use crate::webhook::{Admitted, admit};
use crate::{Error, Result, policy, query};

/// What an answer is made from.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) reply: Reply,
    pub(super) location: Option<String>,
    pub(super) statements: u32,
    pub(super) db: Duration,
    /// A body of its own, in place of the reply's.
    pub(super) export: Option<Export>,
}

/// The name of the class lock: one for each owner, so that nobody waits for a
/// stranger.
fn class_lock(meta: &Meta, cred: &UserCred) -> Lock {
    let (domain_id, project_id, user_id) = (&cred.domain_id, &cred.project_id, &cred.user_id);
    let name = crate::owner::lock_of(meta, Owner { domain_id, project_id, user_id });
    Lock { name, fenced: meta.fenced() }
}

/// Parameters that only a list has are refused elsewhere, like all unknown ones.
fn shown(meta: &Meta, params: &query::Params<'_>, cred: &UserCred) -> Result<Shown> {
    let tags = query::shows_tags(meta, params)?;
    let known = |key: &str| key == "field" || key == "exclude" || (key == "tags" && meta.shows_tags());
    if let Some((key, _)) = params.iter().find(|(key, _)| !known(key)) {
        return Err(Error::field(key.clone().into_owned(), "is not a known parameter"));
    }
    if params.is_empty() {
        return Ok(Shown::default());
    }
    let (mask, extra) = query::selection(meta, params, meta.get_mask(cred.level))?;
    let extra = if tags { query::with_tags(extra) } else { extra };
    Ok(Shown { mask: Some(mask), extra, tags })
}

/// Whether a delete is to be forced, and whether it is for good, where that
/// means something.
fn how_to_delete(handler: &dyn ResourceHandler, params: &query::Params<'_>) -> Result<(bool, bool)> {
    let (mut force, mut purge) = (false, false);
    for (key, value) in params {
        let to = match key.as_ref() {
            "force" if handler.takes_force() => &mut force,
            "purge" if handler.meta().trash() => &mut purge,
            key => return Err(Error::field(key, "is not a known parameter")),
        };
        *to = value.parse().map_err(|_| Error::field(key.as_ref(), "must be true or false"))?;
    }
    Ok((force, purge))
}

fn no_params(params: &query::Params<'_>) -> Result<()> {
    match params.first() {
        Some((key, _)) => Err(Error::field(key.clone().into_owned(), "is not a known parameter")),
        None => Ok(()),
    }
}

pub(super) async fn run(
    of: &Type,
    target: Target,
    ctx: Ctx,
    params: &query::Params<'_>,
    body: web::Bytes,
    known: IfMatch,
) -> Result<Answer> {
    let handler = of.handler;
    let meta = handler.meta();
    let verbs = meta.source.verbs;
    let cred = ctx.cred().clone();
    let allowed = |rank, verb: &str| policy::require(&cred, rank, &format!("to {verb} {}", meta.plural()));
    let ok = |status, done: Done<Reply>| Answer {
        status,
        reply: done.value,
        location: None,
        statements: done.statements,
        db: done.time,
        export: None,
    };
    match target {
        Target::Nested(target, within) => {
            nested::allowed(ctx.core(), of, &within, &cred)?;
            Box::pin(run(of, *target, ctx.within(within), params, body, known)).await
        }
        Target::Discovery(_) => Err(Error::internal("discovery is no resource")),
        Target::List => {
            allowed(verbs.list, "list")?;
            let request = query::parse(&ctx, meta, params)?;
            if let Some(format) = request.export {
                let done = export::start(handler, ctx, request, format).await?;
                let export = Some(done.value);
                let done = Done { value: Reply::default(), statements: done.statements, time: done.time };
                return Ok(Answer { export, ..ok(StatusCode::OK, done) });
            }
            let cost = request.cost(meta);
            let done = ctx.read(cost, move |tx| handler.list(tx, &request)).await?;
            Ok(ok(StatusCode::OK, done))
        }
        Target::Statistics => {
            allowed(verbs.list, "list")?;
            query::ListRequest::only_conditions(params)?;
            let request = query::parse(&ctx, meta, params)?;
            let done = ctx.read(Cost::Unbounded, move |tx| handler.statistics(tx, &request)).await?;
            Ok(ok(StatusCode::OK, done))
        }
        Target::Get(id) => {
            allowed(verbs.get, "get")?;
            let shown = shown(meta, params, &cred)?;
            let done = ctx.read(Cost::Bounded, move |tx| handler.get(tx, &id, &shown)).await?;
            Ok(ok(StatusCode::OK, done))
        }
        Target::Create => {
            allowed(verbs.create, "create")?;
            no_params(params)?;
            let lock = class_lock(meta, &cred);
            let it = admit(ctx, of, "create", None, body, known).await?;
            let done = it.ctx.write(Some(lock), move |tx| handler.create(tx, &it.body)).await?;
            let location = done.value.id.as_ref().map(|id| format!("/{}/{id}", meta.plural()));
            Ok(Answer { location, ..ok(StatusCode::CREATED, done) })
        }
        Target::Update(id) => {
            allowed(verbs.update, "update")?;
            no_params(params)?;
            let it = admit(ctx, of, "update", Some(id), body, known).await?;
            let explain = Admitted::explain(it.is_pinned());
            let done = it.ctx.write(None, move |tx| handler.update(tx, &it.id, &it.body, &it.known)).await;
            Ok(ok(StatusCode::OK, done.map_err(explain)?))
        }
        Target::Delete(id) => {
            allowed(verbs.delete, "delete")?;
            let (force, purge) = how_to_delete(handler, params)?;
            let ctx = ctx.with_force(force);
            if !body.is_empty() && body.as_ref() != b"{}" {
                return Err(Error::field("body", "a delete takes none"));
            }
            let it = admit(ctx, of, "delete", Some(id), body, known).await?;
            let explain = Admitted::explain(it.is_pinned());
            let done = it.ctx.write(None, move |tx| handler.delete(tx, &it.id, &it.known, purge)).await;
            Ok(ok(StatusCode::OK, done.map_err(explain)?))
        }
        Target::Action(action, id) => {
            let reading = matches!(action.kind, ActionKind::Property | ActionKind::Detail);
            let own = match action.kind {
                ActionKind::Property => verbs.list,
                ActionKind::Detail => verbs.get,
                ActionKind::Item | ActionKind::Class => verbs.update,
            };
            allowed(action.access.unwrap_or(own), action.name)?;
            if reading {
                return act(of, action, id, ctx, ActionInput::from_query(params), known).await;
            }
            no_params(params)?;
            let on_row = id.is_some();
            let it = admit(ctx, of, action.name, id, body, known).await?;
            let explain = Admitted::explain(it.is_pinned());
            let entries = crate::model::entries(&it.body, meta.keyword(), meta.plural())?;
            let input = ActionInput::from_entries(entries)?;
            let done = act(of, action, on_row.then_some(it.id), it.ctx, input, it.known).await;
            done.map_err(explain)
        }
    }
}

async fn act(
    of: &Type,
    action: &'static Action,
    id: Option<String>,
    ctx: Ctx,
    input: ActionInput,
    known: IfMatch,
) -> Result<Answer> {
    let handler = of.handler;
    let meta = handler.meta();
    let reading = matches!(action.kind, ActionKind::Property | ActionKind::Detail);
    let id = id.unwrap_or_default();
    let done = match action.run {
        Run::Item(_) | Run::AnyItem(_) if reading => {
            ctx.read(Cost::Unbounded, move |tx| handler.act(tx, &id, action, &input, &known)).await?
        }
        Run::Item(_) | Run::AnyItem(_) => {
            ctx.write(None, move |tx| handler.act(tx, &id, action, &input, &known)).await?
        }
        Run::Class(_) | Run::AnyClass(_) if reading => {
            ctx.read(Cost::Unbounded, move |tx| handler.act_class(tx, action, &input)).await?
        }
        Run::Class(_) | Run::AnyClass(_) => {
            let lock = class_lock(meta, ctx.cred());
            ctx.write(Some(lock), move |tx| handler.act_class(tx, action, &input)).await?
        }
        Run::ItemAsync(run) => {
            let row = ctx.read(Cost::Bounded, move |tx| handler.load(tx, &id, &known, !reading)).await?;
            let output = run(row.value, ctx.clone(), input).await?;
            show(of, &ctx, meta.keyword(), output, row.statements, row.time).await?
        }
        Run::ClassAsync(run) => {
            let output = run(ctx.clone(), input).await?;
            show(of, &ctx, meta.plural(), output, 0, Duration::ZERO).await?
        }
    };
    let (status, location) = match &done.value.task {
        Some(task) => (StatusCode::ACCEPTED, Some(format!("/tasks/{task}"))),
        None => (StatusCode::OK, None),
    };
    Ok(Answer {
        status,
        reply: done.value,
        location,
        statements: done.statements,
        db: done.time,
        export: None,
    })
}

async fn show(
    of: &Type,
    ctx: &Ctx,
    key: &str,
    output: ActionOutput,
    statements: u32,
    time: Duration,
) -> Result<Done<Reply>> {
    match output {
        ActionOutput::Json(json) => Ok(Done { value: enveloped(key, &json), statements, time }),
        ActionOutput::Row => {
            Err(Error::internal("an action outside of the transaction answers a value or the row it read"))
        }
        ActionOutput::Record(row) => {
            let handler = of.handler;
            let slot = std::sync::Mutex::new(Some(row));
            let done = ctx.read(Cost::Bounded, move |tx| {
                let row = slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                handler.show(tx, row.ok_or_else(|| Error::unavailable("the connection broke; try again", 1))?)
            });
            let done = done.await?;
            Ok(Done { statements: done.statements + statements, time: done.time + time, ..done })
        }
    }
}
