//! What becomes of a request.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use serde_json::{Value, json};

use crate::auth::{Act, User, review};
use crate::http::{self, Request, Response};
use crate::kinds;
use crate::present::Shape;
use crate::read;
use crate::resource::{Resource, built_in, of_definition};
use crate::route::Target;
use crate::status::{Cause, Failure};
use crate::value::{leaving, list, name};
use crate::write::{self, Ask, Written};
use crate::{Server, control, delete, discovery, exec, logs, patch, protobuf, proxy, scale, watch};

/// Answers a request. An error cuts the connection.
pub(crate) async fn handle(server: Arc<Server>, request: hyper::Request<Incoming>) -> io::Result<Response> {
    let request = Request::read(request).await.map_err(io::Error::other)?;
    if let Some(rest) = request.path.strip_prefix("/_double/") {
        return Ok(control::handle(&server, &request, rest).await.unwrap_or_else(|it| http::refusal(&it)));
    }
    let parsed = parse(&server, &request);
    let (verb, resource) = match &parsed {
        Ok(Some(target)) => (target.verb.to_owned(), target.resource()),
        _ => (request.method.as_str().to_lowercase(), request.path.clone()),
    };
    let verdict = server.faults.judge(&verb, &resource);
    if !verdict.delay.is_zero() {
        tokio::time::sleep(verdict.delay).await;
    }
    if verdict.cut_before {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    if let Some(failure) = verdict.failure {
        return Ok(http::refusal(&failure));
    }
    let response = answer(&server, request, parsed).await.unwrap_or_else(|it| http::refusal(&it));
    if verdict.cut_after {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok(response)
}

/// All kinds that there are now.
pub(crate) fn resources(server: &Server) -> Vec<Resource> {
    let mut all = built_in();
    let definitions =
        server.store.read(|state| state.all("customresourcedefinitions.apiextensions.k8s.io", None));
    all.extend(definitions.iter().flat_map(|it| of_definition(it)));
    all
}

/// The target of a path; none if it is not about objects.
fn parse(server: &Server, request: &Request) -> Result<Option<Target>, Failure> {
    let path = request.path.as_str();
    let (group, version, steps) = if let Some(rest) = path.strip_prefix("/api/v1/") {
        ("", "v1", rest)
    } else if let Some(rest) = path.strip_prefix("/apis/") {
        let mut parts = rest.splitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(group), Some(version), Some(steps)) if !steps.is_empty() => (group, version, steps),
            _ => return Ok(None),
        }
    } else {
        return Ok(None);
    };
    if steps.is_empty() {
        return Ok(None);
    }
    let known: Vec<Resource> =
        resources(server).into_iter().filter(|it| it.group == group && it.version == version).collect();
    if known.is_empty() {
        return Err(Failure::page());
    }
    Target::parse(request, &known, steps).map(Some)
}

async fn answer(
    server: &Arc<Server>,
    request: Request,
    parsed: Result<Option<Target>, Failure>,
) -> Result<Response, Failure> {
    let user = User::of(request.header("authorization"), server.options.open)?;
    let public = matches!(request.path.as_str(), "/version" | "/healthz" | "/readyz" | "/livez");
    let Some(target) = parsed? else {
        if user == User::Anonymous && !public {
            return Err(Failure::new(
                403,
                "Forbidden",
                format!(
                    "forbidden: User \"system:anonymous\" cannot {} path \"{}\"",
                    request.method.as_str().to_lowercase(),
                    request.path
                ),
            )
            .details(json!({})));
        }
        return discovery::answer(server, &request);
    };
    authorize(server, &user, &target, &request)?;
    match target.sub.as_str() {
        "exec" | "attach" | "portforward" => return exec::upgrade(server, &target, request, &user),
        "log" => return logs::answer(server, &target, &request).await,
        "proxy" => return proxy::answer(server, &target, request).await,
        "scale" => {
            let ask = ask(&request)?;
            let shown = server.store.write(|state| scale::answer(state, &target, &request, &ask))?;
            return Ok(http::json(200, &shown));
        }
        _ => {}
    }
    let shape = Shape::of(request.header("accept"))?;
    match target.verb {
        "get" => {
            let wanted = read::version_of(request.param("resourceVersion"), false)?;
            read::not_too_new(&server.store, wanted).await?;
            let object = server.store.read(|state| read::get(state, &target))?;
            let object = match target.of.store().as_str() {
                "resourcequotas" => server.store.read(|state| {
                    let mut object = object;
                    object["status"] = kinds::quota::status(state, &object);
                    object
                }),
                _ => object,
            };
            Ok(render(&request, 200, &shape.one(&target.of, object)))
        }
        "list" => {
            let found = read::list(&server.store, &target, &request).await?;
            Ok(render(&request, 200, &shape.many(&target.of, found)))
        }
        "watch" => {
            let from = watch::watch(server, &target, &request, shape)?;
            Ok(http::stream("application/json", from))
        }
        "delete" | "deletecollection" => remove(server, &target, &request, shape).await,
        _ => change(server, &target, &request, shape, &user).await,
    }
}

fn authorize(server: &Server, user: &User, target: &Target, request: &Request) -> Result<(), Failure> {
    let named = target.of.plural == "namespaces" && !target.name.is_empty();
    let act = |verb| Act {
        verb,
        group: &target.of.group,
        resource: target.resource(),
        space: if named { Some(target.name.as_str()) } else { target.space.as_deref() },
        name: &target.name,
    };
    let allowed = |verb| server.store.read(|state| act(verb).allowed(user, state));
    if !allowed(target.verb) {
        return Err(act(target.verb).refusal(user, &target.of));
    }
    // A websocket is opened by GET, and needs what a POST would need as well.
    if target.sub == "exec" && request.method == Method::GET && !allowed("create") {
        return Err(Failure::forbidden(&target.of, &target.name, ""));
    }
    Ok(())
}

fn render(request: &Request, code: u16, body: &Value) -> Response {
    if request.header("accept").starts_with("application/yaml") {
        return http::bytes(code, "application/yaml", body.to_string());
    }
    http::json(code, body)
}

fn ask(request: &Request) -> Result<Ask, Failure> {
    let dry = request.param("dryRun");
    if !matches!(dry, "" | "All") {
        let cause = Cause::unsupported("dryRun", &json!([dry]), &["All"]);
        return Err(Failure::options("PatchOptions", &[cause]));
    }
    let apply = request.header("content-type").starts_with("application/apply-patch");
    let agent = request.header("user-agent").split('/').next().unwrap_or_default();
    let manager = match (request.param("fieldManager"), agent) {
        ("", _) if apply => "",
        ("", "") => "unknown",
        ("", agent) => agent,
        (manager, _) => manager,
    };
    Ok(Ask {
        manager: manager.to_owned(),
        dry: dry == "All",
        force: request.flag("force"),
        strict: request.param("fieldValidation") == "Strict",
    })
}

fn decode(of: &Resource, request: &Request) -> Result<Value, Failure> {
    let kind = request.header("content-type").split(';').next().unwrap_or_default().trim();
    let unreadable = |why: &str| {
        let text = String::from_utf8_lossy(&request.body);
        let begin = match text.char_indices().nth(30) {
            _ if text.is_empty() => "<empty>".to_owned(),
            Some((at, _)) => format!("{} ...", &text[..at]),
            None => text.into_owned(),
        };
        Failure::bad(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {why} ({begin})",
            of.kind
        ))
    };
    let mut body: Value = match kind {
        "" | "application/json" => serde_json::from_slice(&request.body).map_err(|error| {
            if error.is_eof() {
                unreadable("unexpected end of JSON input")
            } else {
                unreadable(&error.to_string())
            }
        })?,
        "application/yaml" => serde_saphyr::from_str(&String::from_utf8_lossy(&request.body))
            .map_err(|error| unreadable(&error.to_string()))?,
        it => protobuf::read(&request.body).filter(|_| it == protobuf::TYPE).ok_or_else(|| {
            Failure::media("application/json, application/yaml, application/vnd.kubernetes.protobuf")
        })?,
    };
    if !body.is_object() {
        body = json!({});
    }
    Ok(body)
}

async fn change(
    server: &Arc<Server>,
    target: &Target,
    request: &Request,
    shape: Shape,
    user: &User,
) -> Result<Response, Failure> {
    let of = &target.of;
    let ask = ask(request)?;
    if target.verb == "patch" {
        let kind = request.header("content-type").split(';').next().unwrap_or_default().trim();
        if kind.starts_with("application/apply-patch") {
            ready_for(server, target).await;
        }
        let written = server.store.write(|state| patch::patch(state, target, kind, &request.body, &ask))?;
        return Ok(written_answer(target, shape, written));
    }
    let body = decode(of, request)?;
    if target.verb == "update" {
        let written = server.store.write(|state| write::update(state, target, body, &ask))?;
        return Ok(written_answer(target, shape, written));
    }
    match (of.plural.as_str(), target.sub.as_str()) {
        ("selfsubjectaccessreviews", _) => {
            return Ok(http::json(201, &server.store.read(|state| review(user, &body, state))));
        }
        ("pods", "eviction") => {
            let status = server.store.write(|state| delete::evict(state, target, &body))?;
            return Ok(http::json(201, &status));
        }
        ("serviceaccounts", "token") => {
            let account = server.store.read(|state| read::get(state, target))?;
            let seconds = body["spec"]["expirationSeconds"].as_u64().unwrap_or(3600);
            return Ok(http::json(
                201,
                &json!({"kind": "TokenRequest",
                "apiVersion": "authentication.k8s.io/v1",
                "metadata": {"name": target.name, "namespace": target.space(),
                    "uid": account["metadata"]["uid"], "creationTimestamp": crate::value::now()},
                "spec": {"audiences": ["https://kubernetes.default.svc.cluster.local"],
                    "expirationSeconds": seconds, "boundObjectRef": null},
                "status": {"token": User::token(target.space(), &target.name),
                    "expirationTimestamp": crate::value::in_future(Duration::from_secs(seconds))}}),
            ));
        }
        (_, "") => {}
        _ => return Err(Failure::no_method()),
    }
    ready_for(server, target).await;
    let written = server.store.write(|state| write::create(state, target, body, &ask, false))?;
    Ok(written_answer(target, shape, written))
}

/// A pod of a new namespace is held until its service account is there.
async fn ready_for(server: &Server, target: &Target) {
    if !target.of.is_pod() {
        return;
    }
    let mut news = server.store.news();
    let waits = async {
        loop {
            let fine = server.store.read(|state| {
                let space = state.get("namespaces", "", target.space());
                space.is_none_or(|it| leaving(&it))
                    || state.get("serviceaccounts", target.space(), "default").is_some()
            });
            if fine || news.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), waits).await;
}

fn written_answer(target: &Target, shape: Shape, written: Written) -> Response {
    let code = if written.created { 201 } else { 200 };
    let object = read::shown(&target.of, &written.object);
    let mut response = http::json(code, &shape.one(&target.of, object));
    for field in written.unknown {
        let text = format!("299 - \"unknown field \\\"{field}\\\"\"");
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append("Warning", value);
        }
    }
    response
}

async fn remove(
    server: &Server,
    target: &Target,
    request: &Request,
    shape: Shape,
) -> Result<Response, Failure> {
    let body = if request.body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&request.body)
            .map_err(|error| Failure::bad(format!("json parse error: {error}")))?
    };
    let options = delete::Options::parse(&body, &|name| request.param(name).to_owned())?;
    if target.verb == "delete" {
        let mut shown = server.store.write(|state| delete::delete(state, target, &options))?;
        if target.of.plural == "resourcequotas" {
            shown["status"] = server.store.read(|state| kinds::quota::status(state, &shown));
        }
        let shown = if shown["kind"] == "Status" { shown } else { shape.one(&target.of, shown) };
        return Ok(http::json(200, &shown));
    }
    let found = read::list(&server.store, target, request).await?;
    server.store.write(|state| {
        for object in list(&found["items"]) {
            let mut one = target.clone();
            name(object).clone_into(&mut one.name);
            one.space = object["metadata"]["namespace"].as_str().map(str::to_owned);
            // Who is gone meanwhile is gone.
            let _ = delete::delete(state, &one, &options);
        }
    });
    Ok(http::json(200, &shape.many(&target.of, found)))
}
