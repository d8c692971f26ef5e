//! HTTP: from a request to a pipeline and back. Nine routes serve any number
//! of resource types; everything else here is manners: request ids, problem
//! details, `Server-Timing`, limits.

mod discovery;
mod openapi;
mod problem;
mod request;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::body::BoxBody;
use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};

use crate::auth::UserCred;
use crate::ctx::{Core, Ctx};
use crate::db::{Cost, Done, Lock};
use crate::dispatch::{IfMatch, Reply, Shown, enveloped};
use crate::model::{Action, ActionInput, ActionKind, ActionOutput, Meta, Run, Scope};
use crate::registry::Type;
use crate::{Error, Kind, Result, policy, query, telemetry};

pub use openapi::ExtraPaths;
pub use problem::problem;
pub use request::{client_ip, origin, query_params, read_body, request_id, token};

/// What the HTTP side of a process is set to.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Most bytes of a JSON body.
    pub body_limit: usize,
    /// A token of its own for whoever reads the metrics; else an
    /// administrator's is asked for.
    pub metrics_token: Option<String>,
    /// Whether `X-Forwarded-*` headers are believed.
    pub trust_forwarded: bool,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self { body_limit: 1 << 20, metrics_token: None, trust_forwarded: false }
    }
}

/// The process and its settings, shared by all workers.
pub struct App {
    /// The process.
    pub core: Arc<Core>,
    /// Settings.
    pub options: HttpOptions,
}

/// Adds the framework's routes. Services add theirs before: what they do not
/// take comes to the dispatcher.
pub fn configure(cfg: &mut web::ServiceConfig) {
    cfg.route("/healthz", web::get().to(healthz))
        .route("/readyz", web::get().to(readyz))
        .route("/metrics", web::get().to(metrics))
        .route("/openapi.json", web::get().to(openapi::serve))
        .default_service(web::to(dispatch));
}

async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({"status": "ok"}))
}

/// Ready: the database answers.
async fn readyz(app: web::Data<App>) -> HttpResponse {
    let ping = app.core.db.read(Cost::Bounded, |conn| {
        crate::db::load_one::<(i64,)>(conn, crate::db::Sql::new(crate::db::READ_GENERATION))
    });
    match tokio::time::timeout(Duration::from_secs(5), ping).await {
        Ok(Ok(_)) => HttpResponse::Ok().json(serde_json::json!({"status": "ready"})),
        Ok(Err(error)) => {
            tracing::warn!(%error, "not ready");
            HttpResponse::ServiceUnavailable()
                .json(serde_json::json!({"status": "the database does not answer"}))
        }
        Err(_) => {
            HttpResponse::ServiceUnavailable().json(serde_json::json!({"status": "the database is slow"}))
        }
    }
}

async fn metrics(req: HttpRequest, app: web::Data<App>) -> HttpResponse {
    let token = token(&req);
    let scraper = match (&app.options.metrics_token, token) {
        (Some(known), Some(token)) => same(known.as_bytes(), token.as_bytes()),
        _ => false,
    };
    if !scraper {
        let cred = match authenticate(&app.core, &req) {
            Ok(cred) => cred,
            Err(error) => return problem(&error, &req, &request_id(&req)),
        };
        if let Err(error) = policy::require(&cred, crate::auth::Access::Admin, "reading the metrics") {
            return problem(&error, &req, &request_id(&req));
        }
    }
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(telemetry::render())
}

/// Compares secrets in time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

/// Who calls.
///
/// # Errors
/// 401 without a valid token.
pub fn authenticate(core: &Core, req: &HttpRequest) -> Result<Arc<UserCred>> {
    let Some(token) = token(req) else {
        return Err(Error::unauthorized("this needs a token: POST /v3/auth/tokens, then X-Auth-Token"));
    };
    core.authenticate(token).ok_or_else(|| Error::unauthorized("the token is not valid, expired or revoked"))
}

/// What a request asks for, once its path is read.
enum Target {
    Discovery(Option<String>),
    List,
    Create,
    Get(String),
    Update(String),
    Delete(String),
    Action(&'static Action, Option<String>),
}

struct Answer {
    status: StatusCode,
    reply: Reply,
    location: Option<String>,
    statements: u32,
    db: Duration,
}

async fn dispatch(req: HttpRequest, payload: web::Payload, app: web::Data<App>) -> HttpResponse {
    let start = Instant::now();
    let id = request_id(&req);
    let mut resource = "none";
    let mut user = None;
    let result = handle(&req, payload, &app, &id, &mut resource, &mut user).await;
    let (response, error) = match result {
        Ok(answer) => (respond(answer, &id), None),
        Err(error) => (problem(&error, &req, &id), Some(error)),
    };
    observe(&req, &response, &id, resource, user.as_deref(), start, error.as_ref());
    response
}

fn observe(
    req: &HttpRequest,
    response: &HttpResponse,
    id: &str,
    resource: &str,
    user: Option<&UserCred>,
    start: Instant,
    error: Option<&Error>,
) {
    let (method, status, took) = (req.method(), response.status(), start.elapsed());
    telemetry::REQUESTS.with_label_values(&[method.as_str(), resource, status.as_str()]).inc();
    telemetry::DURATION.with_label_values(&[method.as_str(), resource]).observe(took.as_secs_f64());
    let (path, user) = (req.path(), user.map_or("", |u| u.user_name.as_str()));
    let (status, ms) = (status.as_u16(), (took.as_secs_f64() * 1_000_000.0).round() / 1000.0);
    match error {
        Some(error) if error.kind() == Kind::Internal => {
            tracing::error!(request_id = id, %method, path, status, ms, user, %error, "request failed");
        }
        Some(error) => {
            tracing::info!(request_id = id, %method, path, status, ms, user, %error, "request refused")
        }
        // Reads are many and change nothing: told on request, or when slow.
        None if *method == Method::GET && ms < 1000.0 => {
            tracing::debug!(request_id = id, %method, path, status, ms, user, "request");
        }
        None => tracing::info!(request_id = id, %method, path, status, ms, user, "request"),
    }
}

fn respond(answer: Answer, id: &str) -> HttpResponse {
    let mut builder = HttpResponseBuilder::new(answer.status);
    builder.content_type("application/json");
    builder.insert_header(("X-Request-Id", id));
    builder.insert_header((header::CACHE_CONTROL, "no-store"));
    builder.insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
    let timing =
        format!("db;dur={:.3};desc=\"{} statements\"", answer.db.as_secs_f64() * 1000.0, answer.statements);
    builder.insert_header(("Server-Timing", timing));
    if let Some(version) = answer.reply.version {
        builder.insert_header((header::ETAG, format!("\"{version}\"")));
    }
    if let Some(location) = &answer.location {
        builder.insert_header((header::LOCATION, location.as_str()));
    }
    builder.body(answer.reply.body)
}

async fn handle(
    req: &HttpRequest,
    payload: web::Payload,
    app: &App,
    id: &str,
    resource: &mut &'static str,
    user: &mut Option<Arc<UserCred>>,
) -> Result<Answer> {
    // Who comes before what: without a token nothing tells which paths exist.
    let cred = match authenticate(&app.core, req) {
        Ok(cred) => cred,
        Err(error) => {
            request::drain(payload).await;
            return Err(error);
        }
    };
    *user = Some(cred.clone());
    let segments = request::segments(req.uri().path())?;
    let params = request::query_params(req.uri().query().unwrap_or_default())?;
    let found = route(&app.core, req.method(), &segments);
    let (of, target) = match found {
        Ok(found) => found,
        Err(error) => {
            request::drain(payload).await;
            return Err(error);
        }
    };
    if let Some(of) = of {
        *resource = of.handler.meta().plural();
    }
    let ctx = Ctx::new(app.core.clone(), cred, id);
    let body = read_body(req, payload, app.options.body_limit).await?;
    let Some(of) = of else {
        let Target::Discovery(plural) = target else { return Err(Error::internal("a route without a type")) };
        let body = discovery::document(&app.core.registry, plural.as_deref())?;
        let reply = Reply { body, ..Reply::default() };
        return Ok(Answer {
            status: StatusCode::OK,
            reply,
            location: None,
            statements: 0,
            db: Duration::ZERO,
        });
    };
    run(of, target, ctx, &params, body, if_match(req)?).await
}

/// Finds what the path means.
fn route<'a>(
    core: &'a Core,
    method: &Method,
    segments: &[Cow<'_, str>],
) -> Result<(Option<&'a Type>, Target)> {
    let nowhere = || Error::new(Kind::NotFound, "there is nothing at this path").class("NotFoundError");
    let Some(plural) = segments.first() else { return Err(nowhere()) };
    let read = *method == Method::GET || *method == Method::HEAD;
    let not_allowed = |allow: &str| {
        Error::new(Kind::MethodNotAllowed, format!("{method} is not possible here; possible: {allow}"))
    };
    if plural == "resources" {
        return match segments {
            _ if !read => Err(not_allowed("GET")),
            [_] => Ok((None, Target::Discovery(None))),
            [_, name] => Ok((None, Target::Discovery(Some(name.to_string())))),
            _ => Err(nowhere()),
        };
    }
    let Some(of) = core.registry.get(plural) else { return Err(nowhere()) };
    let action = |kind, name: &str| of.actions.get(&(kind, name)).copied();
    let no_action = |name: &str| {
        let text = format!(
            "{} has no {} {name}",
            of.handler.meta().keyword(),
            if read { "detail" } else { "action" }
        );
        Error::new(Kind::NotFound, text).class(if read { "SpecNotFoundError" } else { "ActionNotFoundError" })
    };
    let target = match segments {
        [_] if read => Target::List,
        [_] if *method == Method::POST => Target::Create,
        [_] => return Err(not_allowed("GET, POST")),
        [_, name] if read => match action(ActionKind::Property, name) {
            Some(found) => Target::Action(found, None),
            None => Target::Get(name.to_string()),
        },
        [_, name] if *method == Method::POST => {
            Target::Action(action(ActionKind::Class, name).ok_or_else(|| no_action(name))?, None)
        }
        [_, id] if *method == Method::PUT || *method == Method::PATCH => Target::Update(id.to_string()),
        [_, id] if *method == Method::DELETE => Target::Delete(id.to_string()),
        [_, _] => return Err(not_allowed("GET, PUT, PATCH, DELETE, POST")),
        [_, id, name] if read => {
            let found = action(ActionKind::Detail, name).ok_or_else(|| no_action(name))?;
            Target::Action(found, Some(id.to_string()))
        }
        [_, id, name] if *method == Method::POST => {
            let found = action(ActionKind::Item, name).ok_or_else(|| no_action(name))?;
            Target::Action(found, Some(id.to_string()))
        }
        [_, _, _] => return Err(not_allowed("GET, POST")),
        _ => return Err(nowhere()),
    };
    Ok((Some(of), target))
}

fn if_match(req: &HttpRequest) -> Result<IfMatch> {
    let Some(value) = req.headers().get(header::IF_MATCH) else { return Ok(IfMatch::Any) };
    let wrong = || Error::field("If-Match", "must be \"*\" or the ETag of an answer, like \"3\"");
    let text = value.to_str().map_err(|_| wrong())?;
    if text.trim() == "*" {
        return Ok(IfMatch::Any);
    }
    // A tag that is well-formed but none of ours is one of another state.
    let version = |tag: &str| {
        let tag = tag.trim();
        let inner = tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')?;
        if inner.contains('"') {
            return None;
        }
        let own =
            tag.starts_with('"') && inner.bytes().all(|b| b.is_ascii_digit()) && !inner.starts_with('0');
        Some(inner.parse().ok().filter(|_| own).unwrap_or(-1))
    };
    let versions: Option<Vec<i64>> = text.split(',').map(version).collect();
    versions.map(IfMatch::Versions).ok_or_else(wrong)
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

async fn run(
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

/// For services' own routes: an answer in JSON with the house's headers.
#[must_use]
pub fn json(status: u16, body: &serde_json::Value, request_id: &str) -> HttpResponse<BoxBody> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    HttpResponseBuilder::new(status)
        .insert_header(("X-Request-Id", request_id))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(body)
}
