//! One request to `/ws/…`, from its path to its answer.

use std::rc::Rc;

use actix_web::{
    HttpRequest, HttpResponse,
    body::{BodySize, MessageBody},
    http::{ConnectionType, Method, StatusCode, Version, header},
    web,
};
use bytes::Bytes;
use hyper::{
    Request, Response, Uri,
    body::Incoming,
    header as up,
    http::{request::Parts, uri::PathAndQuery},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    Activity, Ask, Inner, Route, Source, Worker,
    body::{Download, Upload},
    client::{self, Failure, Key, Kind, Limits, Sender},
    connection::Connection,
    headers::{self, Homeward, Onward},
    login, origin,
    pages::{Page, answer, request_id, wants_html, with_request_id},
    path::{self, Target},
    stats::Stats,
    through::{self, Strip, Verdict, Way},
    tunnel::{self, Program},
    watch::{Moved, Watched},
};

/// Answers a request to `/ws/…`.
pub(crate) async fn serve(worker: &Worker, req: HttpRequest, payload: web::Payload) -> HttpResponse {
    let mut response = respond(worker, &req, payload).await;
    // actix does not chunk the answer to a request for an upgrade, nor does HTTP/1.0 know chunks;
    // the end of the connection is the end of the answer.
    let unframed = is_websocket(&req) || req.version() < Version::HTTP_11;
    if unframed && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        if response.body().size() == BodySize::Stream {
            response.head_mut().no_chunking(true);
        }
        response.head_mut().set_connection_type(ConnectionType::Close);
    }
    response
}

async fn respond(worker: &Worker, req: &HttpRequest, payload: web::Payload) -> HttpResponse {
    let inner = &*worker.inner;
    let options = &inner.options;
    let own = |page: &Page<'_>| answer(req, options, page);
    Stats::add(&inner.stats.requests, 1);

    let raw = req.uri().path();
    let (sid, rest) = match path::target(raw) {
        Target::Inside { sid, rest } => (sid, rest),
        Target::Bare { sid } => return with_request_id(req, options, with_slash(req, sid)),
        Target::Nothing if raw == path::LOGOUT && req.method() == Method::POST => {
            return login::end_session(worker, req).await;
        }
        Target::Nothing => return own(&Page::NotFound),
    };
    if let Some(why) = path::refused(rest) {
        return own(&Page::BadRequest(&format!("path: {why}")));
    }
    let upgrade = is_websocket(req);
    if upgrade && let Some(why) = bad_upgrade(req) {
        return own(&Page::BadRequest(why));
    }

    let ask = Ask {
        sid: sid.to_owned(),
        credentials: headers::credentials(req.headers(), &options.cookie_name),
        client_ip: origin::client_ip(req, options.trust_forwarded),
    };
    let resolution = inner.resolver.resolve(&ask).await;
    let used = resolution.used.and_then(|i| ask.credentials.get(i));
    // A browser sends a cookie along whoever made it send the request.
    if used.is_some_and(|c| c.source == Source::Cookie)
        && (upgrade || !origin::is_safe_method(req.method()))
        && origin::is_foreign(req, options.trust_forwarded)
    {
        return own(&Page::CrossSite);
    }
    let (addr, secret, host, way, path) = match &resolution.route {
        Route::Open { addr, secret, host, keep_prefix, through } => {
            let path = if *keep_prefix { raw } else { rest };
            (*addr, secret.as_str(), host.as_deref(), through.clone().map(Way), path)
        }
        Route::Starting { name, waited, status_text } => {
            return own(&Page::Starting { name, waited: *waited, status_text });
        }
        Route::Stopped { name, reason, exit_code, last_lines } => {
            return own(&Page::Stopped {
                name,
                reason: reason.as_deref(),
                exit_code: *exit_code,
                last_lines,
            });
        }
        Route::NotFound => return own(&Page::NotFound),
        Route::Login => return own(&Page::Login { next: &next(req, sid), failed: None }),
        Route::Unavailable => return own(&Page::Unavailable),
    };

    let public_host = origin::host(req, options.trust_forwarded).unwrap_or_else(|| addr.to_string());
    let sent_host = match host {
        Some(host) => host.to_owned(),
        // As the client sent it, even if a proxy in front is believed about another one.
        None => origin::host(req, false).unwrap_or_else(|| addr.to_string()),
    };
    let id = request_id(req, options);
    let mut onward = headers::request(
        req.headers(),
        &Onward {
            options,
            sid,
            host: &sent_host,
            public_host: &public_host,
            scheme: origin::scheme(req, options.trust_forwarded),
            peer: req.peer_addr().map(|a| a.ip()),
            secret,
            used,
            request_id: id.as_deref(),
            upgrade,
        },
    );
    let (body, kind, payload) = body_and_kind(req, payload, &mut onward, upgrade, inner);
    if let Some(way) = &way {
        through::outward(&mut onward, way);
    }
    let prefix = way.as_ref().map(|it| it.0.prefix());
    let Some(parts) = parts(req, &format!("{}{path}", prefix.unwrap_or_default()), onward) else {
        return own(&Page::BadRequest("path: it cannot be passed on"));
    };

    inner.resolver.activity(sid, Activity::Request);
    let key = Key { sid: Rc::from(sid), addr, prefix: prefix.map(Rc::from) };
    let limits = Limits { connect: options.connect_timeout, head: options.head_timeout };
    let sent = client::send(&worker.pool, &key, way.as_ref(), limits, &inner.stats, parts, body, kind).await;
    let (mut response, sender) = match sent {
        Ok(sent) => sent,
        Err(failure) => {
            Stats::add(&inner.stats.upstream_errors, 1);
            tracing::warn!(sid, %addr, request_id = id, error = %failure, "the program of a space does not answer");
            return own(&match failure {
                Failure::Timeout => Page::GatewayTimeout,
                Failure::Connect(_) | Failure::Broken(_) => Page::BadGateway,
            });
        }
    };

    let mut ready = Vec::new();
    let mut strip = None;
    if let Some(way) = &way {
        match timeout(options.head_timeout, through::judge(&mut response)).await {
            Ok(Verdict::Program(pieces)) => ready = pieces,
            Ok(Verdict::ApiServer(why)) => {
                Stats::add(&inner.stats.upstream_errors, 1);
                let status = response.status();
                tracing::warn!(sid, request_id = id, %status, why, "the API server does not reach the program of a space");
                return own(&Page::BadGateway);
            }
            Err(_) => return own(&Page::GatewayTimeout),
        }
        through::homeward(response.headers_mut(), way);
        strip = through::is_page(response.headers()).then(|| Strip::of(way));
    }
    let homeward = Homeward {
        options,
        sid,
        addr,
        hosts: [&public_host, &sent_host],
        upgrade: response.status() == hyper::StatusCode::SWITCHING_PROTOCOLS,
    };
    let mut headers = headers::response(response.headers(), &homeward);
    if strip.is_some() {
        through::forget_bytes(&mut headers);
    }
    let watched = Watched {
        inner: worker.inner.clone(),
        ask: Rc::new(ask),
        addr,
        way,
        moved: Moved::new(),
        endless: homeward.upgrade || is_event_stream(&response),
        report: homeward.upgrade,
    };
    let answered = match payload {
        Some(payload) if homeward.upgrade => open_tunnel(req, response, payload, watched).await,
        _ if homeward.upgrade => None,
        _ => Some(stream(req, response, (sender, key, worker.pool.clone()), watched, ready, strip)),
    };
    let Some(mut answered) = answered else {
        Stats::add(&inner.stats.upstream_errors, 1);
        return own(&Page::BadGateway);
    };
    *answered.headers_mut() = merge(headers, answered.headers());
    answered
}

/// The program's headers, and those that the answer got here.
fn merge(mut headers: header::HeaderMap, own: &header::HeaderMap) -> header::HeaderMap {
    for (name, value) in own {
        headers.insert(name.clone(), value.clone());
    }
    headers
}

/// `/ws/<sid>` → `/ws/<sid>/`, whether or not there is such a space: programs link relatively.
fn with_slash(req: &HttpRequest, sid: &str) -> HttpResponse {
    let query = req.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    HttpResponse::PermanentRedirect()
        .insert_header((header::LOCATION, format!("/ws/{sid}/{query}")))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .finish()
}

/// Where a login leads: to the page that was asked for, if it can be asked for again.
fn next(req: &HttpRequest, sid: &str) -> String {
    let asked = req.uri().path_and_query().map(|p| p.as_str()).unwrap_or_default();
    let again = req.method() == Method::GET && wants_html(req) && path::is_safe_next(asked);
    if again { asked.to_owned() } else { format!("/ws/{sid}/") }
}

/// Does actix take this for the beginning of a WebSocket, and everything after it for its bytes?
/// The same rule as in actix, since nothing is worse here than two opinions on where a body ends.
fn is_websocket(req: &HttpRequest) -> bool {
    let mut upgrades = req.headers().get_all(header::UPGRADE).filter_map(|v| v.to_str().ok());
    upgrades.any(|v| v.trim().eq_ignore_ascii_case("websocket"))
}

/// Why a request for a WebSocket is none, if so. A body would be taken for the tunnel's bytes.
fn bad_upgrade(req: &HttpRequest) -> Option<&'static str> {
    let headers = req.headers();
    let asked = headers.get_all(header::CONNECTION).filter_map(|v| v.to_str().ok());
    if !asked.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case("upgrade")) {
        Some("Connection: an upgrade needs `Connection: Upgrade`")
    } else if req.method() != Method::GET || req.version() != Version::HTTP_11 {
        Some("Upgrade: only a GET by HTTP/1.1 can be upgraded")
    } else if headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|v| v != "0")
    {
        Some("Upgrade: a request for an upgrade has no body")
    } else {
        None
    }
}

/// Decides how the body is framed for the program, and whether the request may be sent twice.
/// Gives the payload back if it is the tunnel's.
fn body_and_kind(
    req: &HttpRequest,
    payload: web::Payload,
    onward: &mut up::HeaderMap,
    upgrade: bool,
    inner: &Inner,
) -> (Upload, Kind, Option<web::Payload>) {
    if upgrade {
        return (Upload::empty(), Kind::Upgrade, Some(payload));
    }
    // actix has refused whatever has both, several, or one that is no number.
    if req.headers().contains_key(header::TRANSFER_ENCODING) {
        onward.insert(up::TRANSFER_ENCODING, up::HeaderValue::from_static("chunked"));
        return (Upload::new(payload, None, inner.stats.clone()), Kind::Once, None);
    }
    let len = origin::header(req, "content-length").and_then(|v| v.parse::<u64>().ok());
    if let Some(len) = len {
        onward.insert(up::CONTENT_LENGTH, len.into());
    }
    match len {
        None | Some(0) => {
            let repeatable = [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE];
            let kind = if repeatable.contains(req.method()) { Kind::Repeatable } else { Kind::Once };
            (Upload::empty(), kind, None)
        }
        Some(len) => (Upload::new(payload, Some(len), inner.stats.clone()), Kind::Once, None),
    }
}

/// The request as it goes to the program: the path as it was sent, without the prefix.
fn parts(req: &HttpRequest, rest: &str, headers: up::HeaderMap) -> Option<Parts> {
    let target = match req.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let target = PathAndQuery::from_maybe_shared(Bytes::from(target)).ok()?;
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = hyper::Method::from_bytes(req.method().as_str().as_bytes()).ok()?;
    parts.uri = Uri::from(target);
    parts.headers = headers;
    Some(parts)
}

fn is_event_stream(response: &Response<Incoming>) -> bool {
    let kind = response.headers().get(up::CONTENT_TYPE).map(up::HeaderValue::as_bytes);
    kind.is_some_and(|k| k.to_ascii_lowercase().starts_with(b"text/event-stream"))
}

/// An answer whose body is passed on as it comes.
fn stream(
    req: &HttpRequest,
    response: Response<Incoming>,
    connection: (Sender, Key, Rc<client::Pool>),
    watched: Watched,
    ready: Vec<Bytes>,
    strip: Option<Strip>,
) -> HttpResponse {
    let (parts, incoming) = response.into_parts();
    let status = StatusCode::from_u16(parts.status.as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    let len = parts.headers.get(up::CONTENT_LENGTH).cloned();
    let number = len.as_ref().and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let no_body = req.method() == Method::HEAD
        || [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
    let size = match number {
        // The length of what a GET would have brought.
        Some(n) if req.method() == Method::HEAD => BodySize::Sized(n),
        _ if no_body => BodySize::None,
        // It becomes shorter.
        _ if strip.is_some() => BodySize::Stream,
        Some(n) => BodySize::Sized(n),
        None => BodySize::Stream,
    };
    let body = Download::new(incoming, size, connection, watched, ready, strip);
    let mut answered = HttpResponse::new(status).set_body(body).map_into_boxed_body();
    if let (StatusCode::NOT_MODIFIED, Some(n)) = (status, number) {
        answered.headers_mut().insert(header::CONTENT_LENGTH, header::HeaderValue::from(n));
    }
    answered
}

/// A `101`, and behind it the tunnel.
async fn open_tunnel(
    req: &HttpRequest,
    mut response: Response<Incoming>,
    payload: web::Payload,
    watched: Watched,
) -> Option<HttpResponse> {
    let upgraded = hyper::upgrade::on(&mut response).await.ok()?;
    let (program, first) = match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => (Program::direct(parts.io.into_inner()), parts.read_buf),
        Err(upgraded) => {
            let parts = upgraded.downcast::<TokioIo<Box<dyn podyard_driver::Stream>>>().ok()?;
            (Program::through(parts.io.into_inner()), parts.read_buf)
        }
    };
    let client = req.conn_data::<Connection>().copied();
    let tunnel = tunnel::open(program, first, payload, client, watched);
    let mut answered =
        HttpResponse::new(StatusCode::SWITCHING_PROTOCOLS).set_body(tunnel).map_into_boxed_body();
    answered.head_mut().set_connection_type(ConnectionType::Upgrade);
    Some(answered)
}
