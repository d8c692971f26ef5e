//! From what a request asks for to the pipeline that answers it: rights,
//! parameters, the kind of transaction, the status.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web;

use super::route::Target;
use crate::auth::UserCred;
use crate::ctx::Ctx;
use crate::db::{Cost, Done, Lock};
use crate::dispatch::{IfMatch, Reply, Shown, enveloped};
use crate::model::{Action, ActionInput, ActionKind, ActionOutput, Meta, Run, Scope};
use crate::registry::Type;
use crate::{Error, Result, policy, query};

/// What an answer is made from.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) reply: Reply,
    pub(super) location: Option<String>,
    pub(super) statements: u32,
    pub(super) db: Duration,
}

/// The name of the class lock: one for each owner, so that nobody waits for a
/// stranger.
fn class_lock(meta: &Meta, cred: &UserCred) -> Lock {
    let owner = match meta.source.scope {
        Scope::All => "",
        Scope::Project => &cred.project_id,
        Scope::User => &cred.user_id,
    };
    Lock { name: format!("{}/{owner}", meta.plural()), fenced: meta.fenced() }
}

/// Parameters that only a list has are refused elsewhere, like all unknown ones.
fn shown(meta: &Meta, params: &query::Params<'_>, cred: &UserCred) -> Result<Shown> {
    if let Some((key, _)) = params.iter().find(|(key, _)| key != "field") {
        return Err(Error::field(key.clone().into_owned(), "is not a known parameter"));
    }
    if params.is_empty() {
        return Ok(Shown::default());
    }
    let (mask, extra) = query::selection(meta, params, meta.get_mask(cred.level))?;
    Ok(Shown { mask: Some(mask), extra })
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
    };
    match target {
        Target::Discovery(_) => Err(Error::internal("discovery is no resource")),
        Target::List => {
            allowed(verbs.list, "list")?;
            let request = query::parse(meta, params, cred.level)?;
            let cost = request.cost(meta);
            let done = ctx.read(cost, move |tx| handler.list(tx, &request)).await?;
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
            let done = ctx.write(Some(lock), move |tx| handler.create(tx, &body)).await?;
            let location = done.value.id.as_ref().map(|id| format!("/{}/{id}", meta.plural()));
            Ok(Answer { location, ..ok(StatusCode::CREATED, done) })
        }
        Target::Update(id) => {
            allowed(verbs.update, "update")?;
            no_params(params)?;
            let done = ctx.write(None, move |tx| handler.update(tx, &id, &body, &known)).await?;
            Ok(ok(StatusCode::OK, done))
        }
        Target::Delete(id) => {
            allowed(verbs.delete, "delete")?;
            no_params(params)?;
            if !body.is_empty() && body.as_ref() != b"{}" {
                return Err(Error::field("body", "a delete takes none"));
            }
            let done = ctx.write(None, move |tx| handler.delete(tx, &id, &known)).await?;
            Ok(ok(StatusCode::OK, done))
        }
        Target::Events(id) => {
            allowed(verbs.get, "get")?;
            let done = crate::event::of_row(&ctx, handler, id, params).await?;
            Ok(ok(StatusCode::OK, done))
        }
        Target::Action(action, id) => {
            let reading = matches!(action.kind, ActionKind::Property | ActionKind::Detail);
            let own = match action.kind {
                ActionKind::Property => verbs.list,
                ActionKind::Detail => verbs.get,
                ActionKind::Item | ActionKind::Class => verbs.update,
            };
            allowed(action.access.unwrap_or(own), action.name)?;
            let input = if reading {
                ActionInput::from_query(params)
            } else {
                no_params(params)?;
                ActionInput::from_entries(crate::model::entries(&body, meta.keyword(), meta.plural())?)?
            };
            act(of, action, id, ctx, input, known).await
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
        Run::Item(_) if reading => {
            ctx.read(Cost::Unbounded, move |tx| handler.act(tx, &id, action, &input, &known)).await?
        }
        Run::Item(_) => ctx.write(None, move |tx| handler.act(tx, &id, action, &input, &known)).await?,
        Run::Class(_) if reading => {
            ctx.read(Cost::Unbounded, move |tx| handler.act_class(tx, action, &input)).await?
        }
        Run::Class(_) => {
            let lock = class_lock(meta, ctx.cred());
            ctx.write(Some(lock), move |tx| handler.act_class(tx, action, &input)).await?
        }
        Run::ItemAsync(run) => {
            let row = ctx.read(Cost::Bounded, move |tx| handler.load(tx, &id, &known)).await?;
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
    Ok(Answer { status, reply: done.value, location, statements: done.statements, db: done.time })
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
