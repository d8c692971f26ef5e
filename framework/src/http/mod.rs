//! HTTP: from a request to a pipeline and back. Nine routes serve any number
//! of resource types; everything else here is manners: request ids, problem
//! details, `Server-Timing`, limits.

mod discovery;
mod export;
mod nested;
mod openapi;
mod openapi_writes;
mod problem;
pub(crate) mod request;
pub(crate) mod route;
mod run;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::body::BoxBody;
use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};

use self::route::Target;
use self::run::Answer;
use crate::auth::UserCred;
use crate::ctx::{Core, Ctx};
use crate::db::Cost;
use crate::dispatch::{IfMatch, Reply};
use crate::{Error, Kind, Result, event, policy, runtime, telemetry};

pub use openapi::ExtraPaths;
pub use problem::problem;
pub use request::{address, client_ip, origin, query_params, read_body, request_id, token};

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

async fn dispatch(req: HttpRequest, payload: web::Payload, app: web::Data<App>) -> HttpResponse {
    let start = Instant::now();
    let id = request_id(&req);
    let mut resource = "none";
    let mut user = None;
    if event::is_watch(&req) {
        let result = event::open(&req, &app, &id, &mut resource, &mut user).await;
        let (response, error) = match result {
            Ok(response) => (response, None),
            Err(error) => (problem(&error, &req, &id), Some(error)),
        };
        observe(&req, &response, &id, resource, user.as_deref(), start, error.as_ref());
        return response;
    }
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
    builder.content_type(answer.export.as_ref().map_or("application/json", |it| it.content_type));
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
    if answer.dry_run {
        builder.insert_header(("X-Dry-Run", "true"));
    }
    if answer.replayed {
        builder.insert_header(("Idempotency-Replayed", "true"));
    }
    if let Some(export) = answer.export {
        let disposition = format!("attachment; filename=\"{}\"", export.file);
        builder.insert_header((header::CONTENT_DISPOSITION, disposition));
        return builder.body(export.body);
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
    let mut params = request::query_params(req.uri().query().unwrap_or_default())?;
    let mut found = route::route(&app.core, req.method(), &segments);
    if found.is_err() && segments.first().is_some_and(|it| app.core.registry.get(it).is_none()) {
        // Another process may just have defined it.
        if runtime::refresh(&app.core).await? {
            found = route::route(&app.core, req.method(), &segments);
        }
    }
    let (of, target) = match found {
        Ok(found) => found,
        Err(error) => {
            request::drain(payload).await;
            return Err(error);
        }
    };
    if let (Target::List, Some(format)) = (&target, export::wanted(req.headers()))
        && params.iter().all(|(key, _)| key != "export")
    {
        params.push(("export".into(), format.into()));
    }
    if let Some(of) = of {
        *resource = of.handler.meta().plural();
    }
    let ctx = Ctx::new(app.core.clone(), cred, id).from_address(address(req, app.options.trust_forwarded));
    let body = read_body(req, payload, app.options.body_limit).await?;
    let Some(of) = of else {
        let Target::Discovery(plural) = target else { return Err(Error::internal("a route without a type")) };
        let body = discovery::document(&app.core.registry, plural.as_deref())?;
        let reply = Reply { body, ..Reply::default() };
        return Ok(Answer { reply, ..Answer::default() });
    };
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

/// For services' own routes: an answer in JSON with the house's headers.
#[must_use]
pub fn json(status: u16, body: &serde_json::Value, request_id: &str) -> HttpResponse<BoxBody> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    HttpResponseBuilder::new(status)
        .insert_header(("X-Request-Id", request_id))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(body)
}
