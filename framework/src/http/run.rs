//! From what a request asks for to the pipeline that answers it: rights,
//! parameters, the kind of transaction, the status.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web;

use super::export::{self, Export};
use super::nested;
use super::route::Target;
use super::write::{self, Manner, write};
use crate::auth::UserCred;
use crate::ctx::{Ctx, Tx};
use crate::db::{Cost, Done, Lock, OneRow};
use crate::dispatch::{Each, IfMatch, Reply, ResourceHandler, Rows, Shown, apply_each, bodies, enveloped};
use crate::model::{Action, ActionInput, ActionKind, ActionOutput, Meta, Owner, Run};
use crate::registry::Type;
use crate::webhook::{Admitted, admit, asks};
use crate::{Error, Result, policy, query};

/// A parameter, decoded.
pub(super) type Param<'a> = (std::borrow::Cow<'a, str>, std::borrow::Cow<'a, str>);

/// What an answer is made from.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) reply: Reply,
    pub(super) location: Option<String>,
    pub(super) statements: u32,
    pub(super) db: Duration,
    /// A body of its own, in place of the reply's.
    pub(super) export: Option<Export>,
    /// Whether it is of a dry run.
    pub(super) dry_run: bool,
    /// Whether it was kept under an idempotency key.
    pub(super) replayed: bool,
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

pub(super) async fn run(
    of: &Type,
    target: Target,
    ctx: Ctx,
    params: &query::Params<'_>,
    body: web::Bytes,
    mut manner: Manner,
) -> Result<Answer> {
    let handler = of.handler;
    let meta = handler.meta();
    let verbs = meta.source.verbs;
    let cred = ctx.cred().clone();
    let allowed = |rank, verb: &str| policy::require(&cred, rank, &format!("to {verb} {}", meta.plural()));
    let ok = |status, done: Done<Reply>| Answer {
        status,
        reply: done.value,
        statements: done.statements,
        db: done.time,
        ..Answer::default()
    };
    match target {
        Target::Nested(target, within) => {
            nested::allowed(ctx.core(), of, &within, &cred)?;
            Box::pin(run(of, *target, ctx.within(within), params, body, manner)).await
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
            manner.only(params)?;
            let lock = class_lock(meta, &cred);
            let Some(bodies) = bodies(meta, &body)? else {
                if let Some(answer) = answered(&ctx, meta, "create", &manner).await? {
                    return Ok(answer);
                }
                let Admitted { ctx, body, .. } = admit(ctx, of, "create", None, body, IfMatch::Any).await?;
                let ctx = prepared(ctx, handler, [&body[..]]).await?;
                let work = move |tx: &mut Tx<'_>| Ok(write::row(meta, handler.create(tx, &body)?));
                return write(&ctx, Some(lock), manner, work).await;
            };
            let ctx = prepared(ctx, handler, bodies.iter().map(String::as_bytes)).await?;
            let work = move |tx: &mut Tx<'_>| {
                let made = handler.create_many(tx, &bodies)?;
                write::parts(tx, meta, made, |reply| write::row(meta, reply))
            };
            write(&ctx, Some(lock), manner, work).await
        }
        Target::Apply => {
            // Which of the two rights it takes is known when the row is found, or not.
            if !verbs.update.allows(cred.level) {
                allowed(verbs.create, "apply")?;
            }
            manner.only(params)?;
            let lock = class_lock(meta, &cred);
            let bodies = bodies(meta, &body)?;
            let ctx = match &bodies {
                None => prepared(ctx, handler, [&body[..]]).await?,
                Some(bodies) => prepared(ctx, handler, bodies.iter().map(String::as_bytes)).await?,
            };
            let work = move |tx: &mut Tx<'_>| match &bodies {
                None => Ok(write::row(meta, handler.apply(tx, &body)?)),
                Some(bodies) => {
                    let made = apply_each(handler, tx, bodies)?;
                    write::parts(tx, meta, made, |reply| write::row(meta, reply))
                }
            };
            write(&ctx, Some(lock), manner, work).await
        }
        Target::Copy(id) => {
            allowed(verbs.get, "get")?;
            allowed(verbs.create, "create")?;
            manner.only(params)?;
            let lock = class_lock(meta, &cred);
            let ctx = prepared(ctx, handler, [&body[..]]).await?;
            let work = move |tx: &mut Tx<'_>| Ok(write::row(meta, handler.copy(tx, &id, &body)?));
            write(&ctx, Some(lock), manner, work).await
        }
        Target::Update(id) => {
            allowed(verbs.update, "update")?;
            manner.only(params)?;
            let it = admit(ctx, of, "update", Some(id), body, manner.known.clone()).await?;
            let (explain, patch) = (Admitted::explain(it.is_pinned()), manner.patch);
            let Admitted { ctx, id, body, known, .. } = it;
            manner.of = Some(OneRow { kind: meta.keyword(), name: id.to_string() });
            let work =
                move |tx: &mut Tx<'_>| Ok(write::row(meta, handler.update(tx, &id, &body, &known, patch)?));
            write(&ctx, None, manner, work).await.map_err(explain)
        }
        Target::UpdateMany => {
            allowed(verbs.update, "update")?;
            let each = Each::Update(body.to_vec(), manner.patch);
            many(handler, &ctx, params, manner, each).await
        }
        Target::Delete(id) => {
            allowed(verbs.delete, "delete")?;
            let (force, purge) = how_to_delete(handler, &manner.params(params)?)?;
            let ctx = ctx.with_force(force);
            expect_no_body(&body)?;
            let it = admit(ctx, of, "delete", Some(id), body, manner.known.clone()).await?;
            let explain = Admitted::explain(it.is_pinned());
            let Admitted { ctx, id, known, .. } = it;
            let work = move |tx: &mut Tx<'_>| Ok(write::row(meta, handler.delete(tx, &id, &known, purge)?));
            write(&ctx, None, manner, work).await.map_err(explain)
        }
        Target::DeleteMany => {
            allowed(verbs.delete, "delete")?;
            expect_no_body(&body)?;
            let words =
                |key: &str| (key == "force" && handler.takes_force()) || (key == "purge" && meta.trash());
            let (how, which): (Vec<_>, Vec<_>) = params.iter().cloned().partition(|(key, _)| words(key));
            let (force, purge) = how_to_delete(handler, &how)?;
            many(handler, &ctx.with_force(force), &which, manner, Each::Delete(purge)).await
        }
        Target::ActMany(action) => {
            allowed(action.access.unwrap_or(verbs.update), action.name)?;
            if !matches!(action.run, Run::Item(_) | Run::AnyItem(_)) {
                let text = format!("{} runs outside of any transaction: ask for it one by one", action.name);
                return Err(Error::bad_request(text).class("BatchNotPossibleError"));
            }
            let input =
                ActionInput::from_entries(crate::model::entries(&body, meta.keyword(), meta.plural())?)?;
            many(handler, &ctx, params, manner, Each::Act(action, input)).await
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
            if reading {
                return act(of, action, id, ctx, ActionInput::from_query(params), manner).await;
            }
            manner.only(params)?;
            let on_row = id.is_some();
            if let Some(answer) = answered(&ctx, meta, action.name, &manner).await? {
                return Ok(answer);
            }
            let it = admit(ctx, of, action.name, id, body, manner.known.clone()).await?;
            let explain = Admitted::explain(it.is_pinned());
            let entries = crate::model::entries(&it.body, meta.keyword(), meta.plural())?;
            let input = ActionInput::from_entries(entries)?;
            manner.known = it.known;
            act(of, action, on_row.then_some(it.id), it.ctx, input, manner).await.map_err(explain)
        }
    }
}

/// The request with what its type makes ready for a create. What is wrong with
/// a body the create will say.
async fn prepared(
    ctx: Ctx,
    handler: &'static dyn ResourceHandler,
    bodies: impl IntoIterator<Item = &[u8]>,
) -> Result<Ctx> {
    let Some(prepare) = handler.prepare() else { return Ok(ctx) };
    let meta = handler.meta();
    let draft = |body| {
        let entries = crate::model::entries(body, meta.keyword(), meta.plural()).ok()?;
        let member = |(key, value): (std::borrow::Cow<'_, str>, &serde_json::value::RawValue)| {
            Some((key.into_owned(), serde_json::from_str(value.get()).ok()?))
        };
        entries.into_iter().map(member).collect()
    };
    let drafts = bodies.into_iter().filter_map(draft).collect();
    let made = prepare(ctx.clone(), drafts).await?;
    Ok(ctx.with_prepared(made))
}

/// What was answered under the request's key: whoever was asked then need not
/// be asked again. Where nobody is, the key is looked up where it is claimed.
async fn answered(ctx: &Ctx, meta: &Meta, action: &str, manner: &Manner) -> Result<Option<Answer>> {
    let Some(key) = manner.key.as_ref().filter(|_| !manner.dry_run && asks(ctx, meta, action)) else {
        return Ok(None);
    };
    let made = key.answered(ctx).await?;
    Ok(made.map(|made| write::answer(made, true, 1, Duration::ZERO)))
}

fn expect_no_body(body: &[u8]) -> Result<()> {
    if body.is_empty() || body == b"{}" {
        return Ok(());
    }
    Err(Error::field("body", "a delete takes none"))
}

/// The same for each row that the parameters choose.
async fn many(
    handler: &'static dyn ResourceHandler,
    ctx: &Ctx,
    params: &query::Params<'_>,
    mut manner: Manner,
    each: Each,
) -> Result<Answer> {
    let meta = handler.meta();
    manner.expect_no_version()?;
    let params = manner.params(params)?;
    let rows = Rows::parse(ctx, meta, &params)?;
    let work = move |tx: &mut Tx<'_>| {
        let done = crate::dispatch::each(handler, tx, &rows, &each)?;
        let made = |reply| match each {
            Each::Act(..) => write::acted(reply),
            Each::Update(..) | Each::Delete(_) => write::row(meta, reply),
        };
        write::parts(tx, meta, done, made)
    };
    write(ctx, None, manner, work).await
}

async fn act(
    of: &Type,
    action: &'static Action,
    id: Option<String>,
    ctx: Ctx,
    input: ActionInput,
    manner: Manner,
) -> Result<Answer> {
    let handler = of.handler;
    let meta = handler.meta();
    let reading = matches!(action.kind, ActionKind::Property | ActionKind::Detail);
    let id = id.unwrap_or_default();
    let known = manner.known.clone();
    let (made, statements, db) = match action.run {
        Run::Item(_) | Run::AnyItem(_) if reading => {
            let done =
                ctx.read(Cost::Unbounded, move |tx| handler.act(tx, &id, action, &input, &known)).await?;
            (write::acted(done.value), done.statements, done.time)
        }
        Run::Class(_) | Run::AnyClass(_) if reading => {
            let done = ctx.read(Cost::Unbounded, move |tx| handler.act_class(tx, action, &input)).await?;
            (write::acted(done.value), done.statements, done.time)
        }
        Run::Item(_) | Run::AnyItem(_) => {
            let work = move |tx: &mut Tx<'_>| Ok(write::acted(handler.act(tx, &id, action, &input, &known)?));
            return write(&ctx, None, manner, work).await;
        }
        Run::Class(_) | Run::AnyClass(_) => {
            let lock = class_lock(meta, ctx.cred());
            let work = move |tx: &mut Tx<'_>| Ok(write::acted(handler.act_class(tx, action, &input)?));
            return write(&ctx, Some(lock), manner, work).await;
        }
        Run::ItemAsync(_) | Run::ClassAsync(_) => {
            if manner.dry_run {
                let text = format!("{} works outside of the transaction and cannot be undone", action.name);
                return Err(Error::field("dry_run", text));
            }
            let outside = outside(handler, action, id, ctx.clone(), input, known);
            let Some(key) = manner.key else {
                let done = outside.await?;
                return Ok(write::answer(write::acted(done.value), false, done.statements, done.time));
            };
            let made =
                key.once_outside(ctx.clone(), async { Ok(write::acted(outside.await?.value)) }).await?;
            crate::idempotency::sweep(&ctx);
            return Ok(write::answer(made.0, made.1, 0, Duration::ZERO));
        }
    };
    Ok(write::answer(made, false, statements, db))
}

/// An action that holds no transaction while it runs.
async fn outside(
    handler: &'static dyn ResourceHandler,
    action: &'static Action,
    id: String,
    ctx: Ctx,
    input: ActionInput,
    known: IfMatch,
) -> Result<Done<Reply>> {
    match action.run {
        Run::ItemAsync(run) => {
            let changes = action.kind == ActionKind::Item;
            let row = ctx.read(Cost::Bounded, move |tx| handler.load(tx, &id, &known, changes)).await?;
            let output = run(row.value, ctx.clone(), input).await?;
            show(handler, &ctx, handler.meta().keyword(), output, row.statements, row.time).await
        }
        Run::ClassAsync(run) => {
            let output = run(ctx.clone(), input).await?;
            show(handler, &ctx, handler.meta().plural(), output, 0, Duration::ZERO).await
        }
        Run::Item(_) | Run::AnyItem(_) | Run::Class(_) | Run::AnyClass(_) => {
            Err(Error::internal("an action inside of the transaction"))
        }
    }
}

async fn show(
    handler: &'static dyn ResourceHandler,
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
