//! `/v3/auth/tokens` in Keystone's shape, and the version documents that its
//! clients look for first.

use std::sync::Arc;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use podyard::http::{App, client_ip, problem, problem_document, query_params, read_body, request_id, token};
use podyard::{Ctx, Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::login::{Credentials, UserRef};
use crate::token::{Identity, MOST_ANCESTORS, Token};

/// Adds the routes.
pub fn configure(cfg: &mut web::ServiceConfig) {
    cfg.service(web::resource("/").route(web::get().to(versions)))
        .service(web::resource(["/v3", "/v3/"]).route(web::get().to(version)))
        .service(
            web::resource("/v3/auth/tokens")
                .route(web::post().to(issue))
                .route(web::get().to(validate))
                .route(web::delete().to(revoke)),
        );
}

podyard::inventory::submit! {
    podyard::http::ExtraPaths { paths: |_| paths() }
}

fn base(req: &HttpRequest) -> String {
    podyard::http::origin(req)
}

fn version_value(req: &HttpRequest) -> Value {
    json!({
        "id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": format!("{}/v3/", base(req))}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    })
}

async fn versions(req: HttpRequest) -> HttpResponse {
    let body = json!({"versions": {"values": [version_value(&req)]}});
    HttpResponseBuilder::new(StatusCode::MULTIPLE_CHOICES).json(body)
}

async fn version(req: HttpRequest) -> HttpResponse {
    HttpResponse::Ok().json(json!({"version": version_value(&req)}))
}

/// Keystone's error member beside the house's, so that both kinds of client
/// find what they know.
fn refuse(error: &Error, req: &HttpRequest, id: &str) -> HttpResponse {
    let mut body = problem_document(error, req, id);
    body["error"] = json!({"code": body["status"], "message": body["detail"], "title": body["title"]});
    problem(error, req, id).set_body(body.to_string()).map_into_boxed_body()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    auth: Auth,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    identity: Methods,
    #[serde(default)]
    scope: Option<Scope>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Methods {
    methods: Vec<String>,
    #[serde(default)]
    password: Option<Password>,
    #[serde(default)]
    token: Option<TokenId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Password {
    user: PasswordUser,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PasswordUser {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    domain: Option<Named>,
    password: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenId {
    id: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scope {
    Project { project: ProjectScope },
    Other(Value),
}

#[derive(Deserialize)]
struct ProjectScope {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

fn iso(micros: i64) -> String {
    let time = chrono::DateTime::from_timestamp_micros(micros).unwrap_or_default();
    time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// The answer about a token.
fn describe(token: &Token, req: &HttpRequest) -> Value {
    let cred = &token.cred;
    let domain = json!({"id": cred.domain_id, "name": token.domain_name});
    let mut audit = vec![token.audit_id.clone()];
    audit.extend(token.ancestors.last().cloned());
    let roles: Vec<_> = cred.roles.iter().map(|name| json!({"id": name, "name": name})).collect();
    let mut value = json!({
        "methods": token.methods,
        "user": {"domain": domain, "id": cred.user_id, "name": cred.user_name, "password_expires_at": null},
        "audit_ids": audit,
        "expires_at": iso(token.expires_at),
        "issued_at": iso(token.issued_at),
        "project": {"domain": domain, "id": cred.project_id, "name": cred.project_name},
        "is_domain": false,
        "roles": roles,
    });
    if !req.query_string().split('&').any(|p| p == "nocatalog" || p.starts_with("nocatalog=")) {
        let endpoint = |id: &str, path: &str| {
            json!([{"id": id, "interface": "public", "region_id": "RegionOne", "region": "RegionOne",
                "url": format!("{}{path}", base(req))}])
        };
        value["catalog"] = json!([
            {"id": "identity", "type": "identity", "name": "podyard-identity", "endpoints": endpoint("identity-public", "/v3")},
            {"id": "podyard", "type": "podyard", "name": "podyard", "endpoints": endpoint("podyard-public", "")},
        ]);
    }
    json!({"token": value})
}

fn answer(status: StatusCode, text: &str, token: &Token, req: &HttpRequest, id: &str) -> HttpResponse {
    HttpResponseBuilder::new(status)
        .insert_header(("X-Subject-Token", text))
        .insert_header((header::VARY, "X-Auth-Token"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header(("X-Request-Id", id))
        .insert_header(("x-openstack-request-id", id))
        .json(describe(token, req))
}

async fn issue(
    req: HttpRequest,
    payload: web::Payload,
    app: web::Data<App>,
    identity: web::Data<Arc<Identity>>,
) -> HttpResponse {
    let id = request_id(&req);
    match try_issue(&req, payload, &app, &identity).await {
        Ok((text, token)) => {
            tracing::info!(
                request_id = id,
                user = token.cred.user_name,
                audit_id = token.audit_id,
                "token issued"
            );
            answer(StatusCode::CREATED, &text, &token, &req, &id)
        }
        Err(error) => refuse(&error, &req, &id),
    }
}

async fn try_issue(
    req: &HttpRequest,
    payload: web::Payload,
    app: &App,
    identity: &Arc<Identity>,
) -> Result<(String, Token)> {
    let body = read_body(req, payload, 64 << 10).await?;
    let params = query_params(req.query_string())?;
    if let Some((key, _)) = params.iter().find(|(key, _)| key != "nocatalog") {
        return Err(Error::field(key.clone().into_owned(), "is not a known parameter"));
    }
    let mut de = serde_json::Deserializer::from_slice(&body);
    let request: Request = serde_path_to_error::deserialize(&mut de).map_err(|e| {
        let path = e.path().to_string();
        let field = if path == "." { "auth".to_owned() } else { path };
        Error::field(field, e.inner().to_string())
    })?;
    let auth = request.auth;
    let methods: Vec<&str> = auth.identity.methods.iter().map(String::as_str).collect();
    let (text, token) = match methods.as_slice() {
        ["password"] => {
            let missing = || Error::field("auth.identity.password", "is required");
            let user = auth.identity.password.ok_or_else(missing)?.user;
            let by_name = |name: Option<String>| name.map(UserRef::Name);
            let name = user.id.map(UserRef::Id).or_else(|| by_name(user.name));
            let name = name.ok_or_else(|| Error::field("auth.identity.password.user.name", "is required"))?;
            let (UserRef::Id(text) | UserRef::Name(text)) = &name;
            plain("auth.identity.password.user.name", text)?;
            let domain = user.domain.and_then(|d| d.id.or(d.name)).unwrap_or_else(|| "default".into());
            plain("auth.identity.password.user.domain", &domain)?;
            let address = client_ip(req, app.options.trust_forwarded);
            let credentials = Credentials { user: name, domain, password: user.password, address };
            identity.login(&app.core, credentials).await?
        }
        ["token"] => {
            let missing = || Error::field("auth.identity.token", "is required");
            let parent = auth.identity.token.ok_or_else(missing)?.id;
            let parent =
                identity.token(&parent).ok_or_else(|| Error::unauthorized("the token is not valid"))?;
            if parent.ancestors.len() >= MOST_ANCESTORS {
                return Err(Error::forbidden("this token was made from too many others; log in again"));
            }
            let (cred, moment) = (parent.cred.clone(), parent.issued_at);
            // As old as its parent: what revokes that by its age revokes this.
            identity.issue(cred, &parent.domain_name, &["token", "password"], Some(&parent), moment)?
        }
        _ => {
            return Err(Error::field("auth.identity.methods", "must be [\"password\"] or [\"token\"]"));
        }
    };
    check_scope(auth.scope.as_ref(), &token)?;
    Ok((text, token))
}

/// Names and ids have no control characters; PostgreSQL's text cannot hold a NUL.
fn plain(field: &str, text: &str) -> Result<()> {
    if text.chars().any(char::is_control) {
        return Err(Error::field(field, "has a control character"));
    }
    Ok(())
}

/// Each user has one project, so a scope can only say what is so anyway.
fn check_scope(scope: Option<&Scope>, token: &Token) -> Result<()> {
    match scope {
        None => Ok(()),
        Some(Scope::Other(Value::String(text))) if text == "unscoped" => Ok(()),
        Some(Scope::Project { project }) => {
            let cred = &token.cred;
            let id = project.id.as_ref().is_none_or(|id| *id == cred.project_id);
            let name = project.name.as_ref().is_none_or(|name| *name == cred.project_name);
            if id && name {
                Ok(())
            } else {
                Err(Error::unauthorized("this user has no role in that project"))
            }
        }
        Some(Scope::Other(_)) => Err(Error::unauthorized("this user has no role in that scope")),
    }
}

/// The caller, and the token that the call is about.
fn subject(req: &HttpRequest, identity: &Identity) -> Result<(Token, String, Token)> {
    let caller = token(req).and_then(|t| identity.token(t));
    let caller = caller.ok_or_else(|| Error::unauthorized("this needs a valid token in X-Auth-Token"))?;
    let text = req.headers().get("X-Subject-Token").and_then(|v| v.to_str().ok());
    let nothing =
        || Error::new(podyard::Kind::NotFound, "there is no such token").class("TokenNotFoundError");
    let text = text.ok_or_else(nothing)?;
    let found = identity.token(text).ok_or_else(nothing)?;
    let own = found.cred.user_id == caller.cred.user_id;
    if !own && caller.cred.level != podyard::auth::Access::Admin {
        // Another's token must look like none.
        return Err(nothing());
    }
    Ok((caller, text.to_owned(), found))
}

async fn validate(req: HttpRequest, identity: web::Data<Arc<Identity>>) -> HttpResponse {
    let id = request_id(&req);
    match subject(&req, &identity) {
        Ok((_, text, token)) => answer(StatusCode::OK, &text, &token, &req, &id),
        Err(error) => refuse(&error, &req, &id),
    }
}

async fn revoke(req: HttpRequest, app: web::Data<App>, identity: web::Data<Arc<Identity>>) -> HttpResponse {
    let id = request_id(&req);
    let (caller, _, token) = match subject(&req, &identity) {
        Ok(found) => found,
        Err(error) => return refuse(&error, &req, &id),
    };
    let ctx = Ctx::new(app.core.clone(), Arc::new(caller.cred), id.as_str());
    let (service, audit_id) = (identity.as_ref().clone(), token.audit_id.clone());
    match ctx.write(None, move |tx| service.revoke_token(tx, &token)).await {
        Ok(_) => {
            tracing::info!(request_id = id, audit_id, "token revoked");
            HttpResponse::NoContent().insert_header(("X-Request-Id", id)).finish()
        }
        Err(error) => refuse(&error, &req, &id),
    }
}

fn paths() -> Vec<(&'static str, Value)> {
    let problem = json!({"$ref": "#/components/responses/Problem"});
    let object = json!({"application/json": {"schema": {"type": "object"}}});
    let named =
        json!({"type": "object", "properties": {"id": {"type": "string"}, "name": {"type": "string"}}});
    let body = json!({"required": true, "content": {"application/json": {"schema": {
        "type": "object", "required": ["auth"], "properties": {"auth": {
            "type": "object", "required": ["identity"], "properties": {
                "identity": {"type": "object", "required": ["methods"], "properties": {
                    "methods": {"type": "array", "items": {"enum": ["password", "token"]}},
                    "password": {"type": "object", "properties": {"user": {"type": "object",
                        "required": ["password"], "properties": {"id": {"type": "string"}, "name": {"type": "string"},
                        "domain": named, "password": {"type": "string"}}}}},
                    "token": {"type": "object", "properties": {"id": {"type": "string"}}},
                }},
                "scope": {"type": "object", "properties": {"project": named}},
            },
        }},
    }}}});
    let subject = json!({"name": "X-Subject-Token", "in": "header", "required": true,
        "schema": {"type": "string"}, "description": "The token that the call is about."});
    let tokens = json!({
        "post": {"operationId": "tokens.issue", "tags": ["identity"], "security": [], "requestBody": body,
            "summary": "Log in: the token comes in X-Subject-Token",
            "responses": {"201": {"description": "The token.", "content": object.clone()}, "400": problem.clone(),
                "401": problem.clone(), "413": problem.clone(), "415": problem.clone(), "429": problem.clone()}},
        "get": {"operationId": "tokens.validate", "tags": ["identity"], "summary": "Check a token",
            "parameters": [subject.clone()],
            "responses": {"200": {"description": "The token.", "content": object.clone()}, "401": problem.clone(),
                "404": problem.clone()}},
        "delete": {"operationId": "tokens.revoke", "tags": ["identity"], "summary": "Revoke a token",
            "parameters": [subject],
            "responses": {"204": {"description": "Revoked."}, "401": problem.clone(), "404": problem}},
    });
    let version = |status: &str, id: &str| {
        json!({"get": {"operationId": id, "tags": ["identity"], "security": [], "summary": "Keystone's version document",
            "responses": {status: {"description": "The document.", "content": object.clone()}}}})
    };
    vec![
        ("/v3/auth/tokens", tokens),
        ("/v3", version("200", "identity.version")),
        ("/", version("300", "identity.versions")),
    ]
}
