//! HTTP: from a request to a pipeline and back. Nine routes serve any number
//! of resource types; everything else here is manners: request ids, problem
//! details, `Server-Timing`, limits, conditional answers.

mod callback;
mod compress;
mod conditional;
mod cors;
mod deprecated;
mod discovery;
mod export;
mod limit;
mod manners;
mod media;
pub(crate) mod nested;
mod openapi;
mod openapi_writes;
mod problem;
pub(crate) mod request;
pub(crate) mod route;
mod run;
mod trace;
mod workers;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::body::BoxBody;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, HttpResponseBuilder, web};

use self::limit::Limits;
use self::media::Media;
use self::route::Target;
use self::run::Answer;
use crate::auth::UserCred;
use crate::ctx::{Core, Ctx};
use crate::db::Cost;
use crate::dispatch::Reply;
use crate::{Error, Kind, Result, event, policy, runtime, telemetry};

pub use cors::Cors;
pub use deprecated::Deprecated;
pub use limit::Rate;
pub use manners::manners;
pub use openapi::ExtraPaths;
pub use problem::{language, problem, problem_document};
pub use request::{address, client_ip, origin, query_params, read_body, request_id, token};
pub use trace::Trace;

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
    /// Which pages of other origins may call.
    pub cors: Cors,
    /// How often one user may ask.
    pub rate: Rate,
    /// How often one address may ask without a token.
    pub anonymous_rate: Rate,
    /// How long a request may take until its answer begins.
    pub timeout: Duration,
    /// Whether to compress large answers for those who accept it.
    pub compress: bool,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            body_limit: 1 << 20,
            metrics_token: None,
            trust_forwarded: false,
            cors: Cors::default(),
            rate: Rate::default(),
            anonymous_rate: Rate::default(),
            timeout: Duration::from_secs(60),
            compress: true,
        }
    }
}

/// The process and its settings, shared by all workers.
pub struct App {
    /// The process.
    pub core: Arc<Core>,
    /// Settings.
    pub options: HttpOptions,
    limits: Limits,
}

impl App {
    /// The process with its settings.
    #[must_use]
    pub fn new(core: Arc<Core>, options: HttpOptions) -> Self {
        let limits = Limits::new(options.rate, options.anonymous_rate);
        Self { core, options, limits }
    }
}

/// Adds the framework's routes. Services add theirs before: what they do not
/// take comes to the dispatcher.
pub fn configure(cfg: &mut web::ServiceConfig) {
    // Resources, not bare routes: so other methods are refused here.
    cfg.service(web::resource("/healthz").route(web::get().to(healthz)))
        .service(web::resource("/readyz").route(web::get().to(readyz)))
        .service(web::resource("/metrics").route(web::get().to(metrics)))
        .service(web::resource("/openapi.json").route(web::get().to(openapi::serve)))
        .service(web::resource("/workers").route(web::get().to(workers::list)))
        .service(web::resource("/workers/{name}").route(web::get().to(workers::get)))
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
            not_ready("the database does not answer")
        }
        Err(_) => not_ready("the database is slow"),
    }
}

fn not_ready(why: &str) -> HttpResponse {
    HttpResponse::ServiceUnavailable()
        .insert_header((header::RETRY_AFTER, 1))
        .json(serde_json::json!({"status": why}))
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
    // What the queues hold is in the database; without it the other numbers are told all the same.
    match tokio::time::timeout(Duration::from_secs(2), crate::task::sample(&app.core)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the queues of tasks could not be read"),
        Err(_) => tracing::warn!("the queues of tasks could not be read in time"),
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

/// What is known of a request as it goes on: for its answer and the log.
struct Seen {
    resource: &'static str,
    user: Option<Arc<UserCred>>,
    /// The media type of the answer.
    media: &'static str,
    /// What it used that is on its way out, and the path to use instead.
    deprecated: Option<(Deprecated, Option<String>)>,
}

async fn dispatch(req: HttpRequest, payload: web::Payload, app: web::Data<App>) -> HttpResponse {
    let start = Instant::now();
    let id = request_id(&req);
    let mut seen = Seen { resource: "none", user: None, media: media::JSON, deprecated: None };
    if event::is_watch(&req) {
        let result = event::open(&req, &app, &id, &mut seen.resource, &mut seen.user).await;
        let (response, error) = match result {
            Ok(response) => (response, None),
            Err(error) => (problem(&error, &req, &id), Some(error)),
        };
        observe(&req, &response, &id, &seen, start, error.as_ref());
        return response;
    }
    if let Some(task) = callback::task_of(&req) {
        seen.resource = "tasks";
        let result = callback::take(&req, payload, &app, &id, task).await;
        let (response, error) = match result {
            Ok(response) => (response, None),
            Err(error) => (problem(&error, &req, &id), Some(error)),
        };
        observe(&req, &response, &id, &seen, start, error.as_ref());
        return response;
    }
    let result = handle(&req, payload, &app, &id, &mut seen).await;
    let result = result.and_then(|it| match it {
        Handled::Answer(answer) => respond(answer, &req, &id, &seen),
        Handled::Options(allow) => Ok(manners::options(&allow, &id)),
    });
    let (mut response, error) = match result {
        Ok(response) => (response, None),
        Err(error) => (problem(&error, &req, &id), Some(error)),
    };
    if let Some((it, instead)) = &seen.deprecated {
        it.tell(response.headers_mut(), instead.as_deref());
    }
    observe(&req, &response, &id, &seen, start, error.as_ref());
    response
}

fn observe(
    req: &HttpRequest,
    response: &HttpResponse,
    id: &str,
    seen: &Seen,
    start: Instant,
    error: Option<&Error>,
) {
    let (method, status, took) = (req.method(), response.status(), start.elapsed());
    telemetry::REQUESTS.with_label_values(&[method.as_str(), seen.resource, status.as_str()]).inc();
    telemetry::DURATION.with_label_values(&[method.as_str(), seen.resource]).observe(took.as_secs_f64());
    let (path, user) = (req.path(), seen.user.as_ref().map_or("", |u| u.user_name.as_str()));
    let (status, ms) = (status.as_u16(), (took.as_secs_f64() * 1_000_000.0).round() / 1000.0);
    let extensions = req.extensions();
    let trace_id = extensions.get::<Trace>().map(|it| it.trace_id.as_str());
    match error {
        Some(error) if error.kind() == Kind::Internal => {
            tracing::error!(request_id = id, trace_id, %method, path, status, ms, user, %error, "request failed");
        }
        Some(error) => {
            tracing::info!(request_id = id, trace_id, %method, path, status, ms, user, %error, "request refused")
        }
        // Reads are many and change nothing: told on request, or when slow.
        None if *method == Method::GET && ms < 1000.0 => {
            tracing::debug!(request_id = id, trace_id, %method, path, status, ms, user, "request");
        }
        None => tracing::info!(request_id = id, trace_id, %method, path, status, ms, user, "request"),
    }
}

static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What a get or list answers depends on beside its path.
const VARY: &str = "Accept, Accept-Encoding, Accept-Language, Authorization, X-Auth-Token";

fn respond(answer: Answer, req: &HttpRequest, id: &str, seen: &Seen) -> Result<HttpResponse> {
    let mut builder = HttpResponseBuilder::new(answer.status);
    builder.insert_header((REQUEST_ID.clone(), id));
    builder.insert_header((header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")));
    let timing =
        format!("db;dur={:.3};desc=\"{} statements\"", answer.db.as_secs_f64() * 1000.0, answer.statements);
    builder.insert_header((SERVER_TIMING.clone(), timing));
    if let Some(export) = answer.export {
        let disposition = format!("attachment; filename=\"{}\"", export.file);
        builder.content_type(export.content_type).insert_header((header::CACHE_CONTROL, "no-store"));
        return Ok(builder.insert_header((header::CONTENT_DISPOSITION, disposition)).body(export.body));
    }
    if *req.method() == Method::GET && answer.status == StatusCode::OK {
        return conditional(builder, answer.reply, req, seen);
    }
    builder.insert_header((header::CONTENT_TYPE, HeaderValue::from_static(seen.media)));
    builder.insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")));
    if let Some(version) = answer.reply.version {
        builder.insert_header((header::ETAG, format!("\"{version}\"")));
    }
    if let Some(location) = &answer.location {
        builder.insert_header((header::LOCATION, location.as_str()));
    }
    if answer.dry_run {
        builder.insert_header(("X-Dry-Run", "true"));
    }
    if answer.replayed {
        builder.insert_header(("Idempotency-Replayed", "true"));
    }
    Ok(builder.body(answer.reply.body))
}

/// The answer to a `GET`: kept by the client, who asks each time whether it
/// still holds.
fn conditional(
    mut builder: HttpResponseBuilder,
    reply: Reply,
    req: &HttpRequest,
    seen: &Seen,
) -> Result<HttpResponse> {
    let tag = conditional::tag(reply.version, &reply.body);
    builder.insert_header((header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache")));
    builder.insert_header((header::VARY, HeaderValue::from_static(VARY)));
    if let Some(known) = conditional::known(req, &tag)? {
        return Ok(builder.status(StatusCode::NOT_MODIFIED).insert_header((header::ETAG, known)).finish());
    }
    builder.insert_header((header::CONTENT_TYPE, HeaderValue::from_static(seen.media)));
    builder.insert_header((header::ETAG, tag));
    Ok(builder.body(reply.body))
}

/// What a request came to.
enum Handled {
    Answer(Answer),
    /// The methods that are possible.
    Options(String),
}

/// What is possible at a path, for a caller: as the router has it, so that
/// nothing is listed twice.
fn allowed(core: &Core, segments: &[std::borrow::Cow<'_, str>], cred: &UserCred) -> Option<String> {
    const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let possible = |method: &&Method| {
        let Ok((of, target)) = route::route(core, method, segments) else { return false };
        let Some(of) = of else { return true };
        permits(of, &target, cred)
    };
    let methods: Vec<_> = METHODS.iter().filter(possible).map(Method::as_str).collect();
    (!methods.is_empty()).then(|| manners::allow(methods.into_iter()))
}

/// Whether the type's ranks let the caller do that at all.
fn permits(of: &crate::registry::Type, target: &Target, cred: &UserCred) -> bool {
    let verbs = of.handler.meta().source.verbs;
    let rank = match target {
        Target::List | Target::Statistics => verbs.list,
        Target::Get(_) | Target::Events(_) => verbs.get,
        Target::Create | Target::Copy(_) => verbs.create,
        Target::Update(_) | Target::UpdateMany => verbs.update,
        Target::Delete(_) | Target::DeleteMany => verbs.delete,
        Target::Apply => return verbs.create.allows(cred.level) || verbs.update.allows(cred.level),
        Target::Action(action, _) | Target::ActMany(action) => {
            return action.access.is_none_or(|it| it.allows(cred.level));
        }
        Target::Nested(target, _) => return permits(of, target, cred),
        Target::Discovery(_) => return true,
    };
    rank.allows(cred.level)
}

async fn handle(
    req: &HttpRequest,
    payload: web::Payload,
    app: &App,
    id: &str,
    seen: &mut Seen,
) -> Result<Handled> {
    // Who comes before what: without a token nothing tells which paths exist.
    let cred = match authenticate(&app.core, req) {
        Ok(cred) => cred,
        Err(error) => {
            request::drain(payload).await;
            return Err(error);
        }
    };
    seen.user = Some(cred.clone());
    let segments = request::segments(req.uri().path())?;
    let mut params = request::query_params(req.uri().query().unwrap_or_default())?;
    let mut found = route::route(&app.core, req.method(), &segments);
    if found.is_err() && segments.first().is_some_and(|it| app.core.registry.get(it).is_none()) {
        // Another process may just have defined it.
        if runtime::refresh(&app.core).await? {
            found = route::route(&app.core, req.method(), &segments);
        }
    }
    let found = match found {
        Err(error) if error.kind() == Kind::MethodNotAllowed || *req.method() == Method::OPTIONS => {
            match allowed(&app.core, &segments, &cred) {
                Some(allow) if *req.method() == Method::OPTIONS => return Ok(Handled::Options(allow)),
                Some(allow) => Err(manners::method_not_allowed(req.method(), &allow)),
                None => Err(error),
            }
        }
        found => found.and_then(|found| Ok((media::accepted(req, found.1.lists())?, found))),
    };
    let (of, target) = match found {
        Ok((media, found)) => {
            match media {
                Media::Json(name) => seen.media = name,
                Media::Export(format) if params.iter().all(|(key, _)| key != "export") => {
                    params.push(("export".into(), format.into()));
                }
                Media::Export(_) => {}
            }
            found
        }
        Err(error) => {
            request::drain(payload).await;
            return Err(error);
        }
    };
    if let Some(of) = of {
        seen.resource = of.handler.meta().plural();
    }
    if let Target::Action(action, id) = &target {
        seen.deprecated = action.deprecated.map(|it| (it, successor(seen.resource, id.as_deref(), &it)));
    }
    let mut ctx = Ctx::new(app.core.clone(), cred, id);
    if let Some(trace) = req.extensions().get::<Trace>() {
        ctx = ctx.with_trace(trace.clone());
    }
    ctx = ctx.from_address(address(req, app.options.trust_forwarded)).with_lang(language(req));
    let body = read_body(req, payload, app.options.body_limit).await?;
    let Some(of) = of else {
        let Target::Discovery(name) = target else { return Err(Error::internal("a route without a type")) };
        let name = name.as_deref();
        let registry = &app.core.registry;
        if let Some(of) = name.filter(|it| registry.get(it).is_none()).and_then(|it| registry.keyword(it)) {
            let instead = format!("/resources/{}", of.handler.meta().plural());
            seen.deprecated = Some((deprecated::BY_KEYWORD, Some(instead)));
        }
        let body = discovery::document(registry, name, language(req))?;
        let reply = Reply { body, ..Reply::default() };
        return Ok(Handled::Answer(Answer { reply, ..Answer::default() }));
    };
    let work = async {
        let manner = write::Manner::of(req, ctx.cred(), &body)?;
        let done = run::run(of, target, ctx.clone(), &params, body.clone(), manner).await;
        match done {
            // A type was changed by another process, or just now; nothing was done yet.
            Err(error) if runtime::is_stale(&error) => {
                runtime::refresh(&app.core).await?;
                let (of, target) = route::route(&app.core, req.method(), &segments)?;
                let of = of.ok_or(error)?;
                let manner = write::Manner::of(req, ctx.cred(), &body)?;
                run::run(of, target, ctx, &params, body, manner).await
            }
            done => done,
        }
    };
    match tokio::time::timeout(app.options.timeout, work).await {
        Ok(answer) => answer.map(Handled::Answer),
        Err(_) => {
            let seconds = app.options.timeout.as_secs_f64();
            let text = format!("it took longer than {seconds} s; a change may have been made all the same");
            Err(Error::new(Kind::Timeout, text))
        }
    }
}

/// The path of what to use instead of an action.
fn successor(plural: &str, id: Option<&str>, it: &Deprecated) -> Option<String> {
    let name = it.successor?;
    let encode =
        |id: &str| percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC).to_string();
    Some(match id {
        Some(id) => format!("/{plural}/{}/{name}", encode(id)),
        None => format!("/{plural}/{name}"),
    })
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
