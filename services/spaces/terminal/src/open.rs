//! `GET /spaces/<id>/terminal`: who asks, for which space, of which size; and
//! then the websocket. Whatever is wrong is said before it, in HTTP.

use std::sync::Arc;
use std::time::Instant;

use actix_web::http::header::{self, HeaderMap};
use actix_web::http::{StatusCode, Version};
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use podyard::auth::UserCred;
use podyard::http::{App, address, language, problem, query_params, request_id};
use podyard::{Ctx, Error, Kind, Result, new_id, telemetry};
use podyard_driver::TerminalSize;
use podyard_spaces::terminal_space;
use schemars::SchemaGenerator;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::Inner;
use crate::body::{Down, PIPE};
use crate::protocol::{self, Size};
use crate::session::Opening;

podyard::inventory::submit! {
    podyard::http::ExtraPaths { paths }
}

/// What the API's document says of it.
fn paths(_: &mut SchemaGenerator) -> Vec<(&'static str, Value)> {
    let number = |name, default| {
        let schema =
            json!({"type": "integer", "minimum": 1, "maximum": protocol::LARGEST, "default": default});
        json!({"name": name, "in": "query", "schema": schema})
    };
    let id = json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string"}});
    let says = |text: &str| json!({"description": text});
    let get = json!({
        "operationId": "spaces.terminal",
        "tags": ["spaces"],
        "summary": "Opens a terminal in the space: a websocket with the subprotocol podyard.terminal.v1.",
        "parameters": [id, number("columns", 80), number("rows", 24)],
        "responses": {
            "101": says("The terminal: binary frames are bytes, text frames are JSON."),
            "400": says("A parameter, the key or the subprotocol is wrong."),
            "401": says("No token, or one that is not valid."),
            "403": says("The caller sees the space and may not open terminals in it."),
            "404": says("There is no such space, or it is somebody else's."),
            "409": says("The space does not run, or has as many terminals as it may."),
            "426": says("It was not asked for by a websocket."),
            "503": says("The server has as many terminals as it may, or is about to end."),
        },
    });
    vec![("/spaces/{id}/terminal", json!({ "get": get }))]
}

pub(crate) async fn open(
    inner: &Arc<Inner>,
    req: HttpRequest,
    payload: web::Payload,
    app: web::Data<App>,
) -> HttpResponse {
    let (start, id) = (Instant::now(), request_id(&req));
    let mut user = None;
    let response = match upgrade(inner, &req, payload, &app, &id, &mut user).await {
        Ok(response) => response,
        Err(error) => {
            let user = user.as_ref().map_or("", |it: &Arc<UserCred>| it.user_name.as_str());
            let (path, status) = (req.path(), error.kind().status());
            if error.kind() == Kind::Internal {
                tracing::error!(request_id = id, path, status, user, %error, "request failed");
            } else {
                tracing::info!(request_id = id, path, status, user, %error, "request refused");
            }
            refuse(&error, &req, &id)
        }
    };
    let status = response.status();
    telemetry::REQUESTS.with_label_values(&["GET", "terminals", status.as_str()]).inc();
    telemetry::DURATION.with_label_values(&["GET", "terminals"]).observe(start.elapsed().as_secs_f64());
    response
}

fn refuse(error: &Error, req: &HttpRequest, id: &str) -> HttpResponse {
    let mut response = problem(error, req, id);
    if error.kind() == Kind::UpgradeRequired {
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, header::HeaderValue::from_static("13"));
    }
    response
}

async fn upgrade(
    inner: &Arc<Inner>,
    req: &HttpRequest,
    payload: web::Payload,
    app: &App,
    id: &str,
    user: &mut Option<Arc<UserCred>>,
) -> Result<HttpResponse> {
    // Who comes before what, as everywhere.
    let offers = offers(req.headers());
    let token = token(req, &offers)?;
    let cred = app.core.authenticate(&token);
    let cred = cred.ok_or_else(|| Error::unauthorized("the token is not valid, expired or revoked"))?;
    *user = Some(cred.clone());
    let size = size(req.query_string())?;
    let accept = handshake(req)?;
    let chosen = chosen(&offers)?;
    let from = address(req, app.options.trust_forwarded);
    let ctx = Ctx::new(app.core.clone(), cred.clone(), id).from_address(from);
    let name = req.match_info().get("id").unwrap_or_default();
    let space = terminal_space(&ctx, name, inner.options.rights.of(&cred)).await?;
    let seat = inner.sit(&space.id)?;
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let (connected, gone) = oneshot::channel();
    let opening = Opening {
        inner: inner.clone(),
        ctx,
        space,
        id: new_id(),
        token,
        lang: language(req),
        seat,
        gone,
        socket: podyard_gateway::socket(req),
    };
    let (tell, told) = oneshot::channel();
    // In a task of its own: if the client goes meanwhile, what was opened is closed as always, and
    // that is noted down.
    inner.runtime.spawn(async move {
        match opening.open(size).await {
            Ok(session) => {
                // Then its pipe is closed, too.
                let _ = tell.send(Ok(()));
                session.run(theirs).await;
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    });
    told.await.map_err(|_| Error::internal("the task that opens the terminal is gone"))??;
    let mut response = HttpResponse::build(StatusCode::SWITCHING_PROTOCOLS);
    response
        .upgrade("websocket")
        .insert_header((header::SEC_WEBSOCKET_ACCEPT, accept))
        .insert_header(("X-Request-Id", id));
    if let Some(chosen) = chosen {
        response.insert_header((header::SEC_WEBSOCKET_PROTOCOL, chosen));
    }
    Ok(response.body(Down::new(ours, payload, &inner.stats, connected)))
}

/// The subprotocols that the client offers.
fn offers(headers: &HeaderMap) -> Vec<String> {
    let texts = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).filter_map(|it| it.to_str().ok());
    texts.flat_map(|it| it.split(',')).map(|it| it.trim().to_owned()).filter(|it| !it.is_empty()).collect()
}

/// The caller's token: in a header, or among the subprotocols. The cookie of the
/// gateway does not count here: code in a space must not reach other terminals by it.
fn token(req: &HttpRequest, offers: &[String]) -> Result<String> {
    if let Some(token) = podyard::http::token(req) {
        return Ok(token.to_owned());
    }
    let Some(offered) = offers.iter().find_map(|it| it.strip_prefix(protocol::TOKEN)) else {
        return Err(Error::unauthorized("this needs a token: POST /v3/auth/tokens, then X-Auth-Token"));
    };
    let bytes = URL_SAFE_NO_PAD.decode(offered).ok();
    let token = bytes.and_then(|it| String::from_utf8(it).ok());
    token.ok_or_else(|| Error::unauthorized("the token among the subprotocols is not base64url"))
}

/// The window's size, 80 by 24 unless said.
fn size(query: &str) -> Result<TerminalSize> {
    let (mut columns, mut rows) = (None, None);
    for (key, value) in query_params(query)? {
        let field = match key.as_ref() {
            "columns" => &mut columns,
            "rows" => &mut rows,
            key => return Err(Error::field(key, "is not a known parameter")),
        };
        let number = value.parse::<u16>().ok().filter(|it| (1..=protocol::LARGEST).contains(it));
        let text = || format!("must be a number from 1 to {}", protocol::LARGEST);
        let number = number.ok_or_else(|| Error::field(key.as_ref(), text()))?;
        if field.replace(number).is_some() {
            return Err(Error::field(key.as_ref(), "is given twice"));
        }
    }
    let size = Size { columns: columns.unwrap_or(80), rows: rows.unwrap_or(24) };
    size.checked().map_err(Error::bad_request)
}

/// Checks that it is a websocket's handshake. Gives what is to be accepted.
fn handshake(req: &HttpRequest) -> Result<String> {
    let has = |name: header::HeaderName, word: &str| {
        let texts = req.headers().get_all(name).filter_map(|it| it.to_str().ok());
        texts.flat_map(|it| it.split(',')).any(|it| it.trim().eq_ignore_ascii_case(word))
    };
    let required = |text: &str| Error::new(Kind::UpgradeRequired, text);
    if req.version() != Version::HTTP_11
        || !has(header::CONNECTION, "upgrade")
        || !has(header::UPGRADE, "websocket")
    {
        return Err(required("a terminal is a websocket: connect to it by one, with HTTP/1.1"));
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(required("only version 13 of websockets is spoken here"));
    }
    let key = req.headers().get(header::SEC_WEBSOCKET_KEY).and_then(|it| it.to_str().ok()).map(str::trim);
    let key = key.filter(|it| STANDARD.decode(it).is_ok_and(|it| it.len() == 16));
    let key = key.ok_or_else(|| Error::field("Sec-WebSocket-Key", "must be 16 bytes in base64"))?;
    Ok(derive_accept_key(key.as_bytes()))
}

/// The subprotocol that is spoken; none needs to be named.
fn chosen(offers: &[String]) -> Result<Option<&'static str>> {
    if offers.iter().any(|it| it == protocol::NAME) {
        return Ok(Some(protocol::NAME));
    }
    match offers.iter().find(|it| !it.starts_with(protocol::TOKEN)) {
        None => Ok(None),
        Some(_) => {
            let text = format!("none of those is spoken here; offer {}", protocol::NAME);
            Err(Error::field("Sec-WebSocket-Protocol", text).class("UnsupportedSubprotocolError"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let of = |query| size(query).map(|it| (it.columns, it.rows));
        assert_eq!(of("").unwrap(), (80, 24));
        assert_eq!(of("columns=132&rows=1000").unwrap(), (132, 1000));
        for (query, field) in [
            ("columns=0", "columns"),
            ("rows=1001", "rows"),
            ("rows=x", "rows"),
            ("rows=", "rows"),
            ("columns=-5", "columns"),
            ("columns=80&columns=81", "columns"),
            ("width=80", "width"),
        ] {
            assert_eq!(size(query).unwrap_err().field_errors()[0].field, field, "{query}");
        }
    }

    #[test]
    fn subprotocols() {
        let of = |offers: &[&str]| chosen(&offers.iter().map(|&it| it.to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["podyard.token.eA"]).unwrap(), None);
        assert_eq!(of(&["other", protocol::NAME]).unwrap(), Some(protocol::NAME));
        assert_eq!(of(&["v5.channel.k8s.io"]).unwrap_err().class_name(), "UnsupportedSubprotocolError");
    }
}
