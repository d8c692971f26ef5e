//! Exec, attach and forwarded ports over a websocket: the handshake, and what goes to
//! and fro.

mod forward;
mod session;
mod shell;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{self, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha1::{Digest, Sha1};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::Server;
use crate::auth::User;
use crate::cluster::Container;
use crate::http::{self, Request, Response};
use crate::route::Target;
use crate::status::Failure;
use crate::value::{list, text, uid};
use crate::write::find;

/// The subprotocols, best first.
const PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

/// How frames are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Protocol {
    /// Stdin can be closed.
    pub closes: bool,
    /// How it ended is told on channel 3.
    pub status: bool,
    pub base64: bool,
}

/// What is asked for.
pub(crate) struct Ask {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
    pub attach: bool,
}

/// The name of the container that a request means.
pub(crate) fn container_of(pod: &Value, asked: &str) -> Result<String, Failure> {
    let names: Vec<&str> = list(&pod["spec"]["containers"])
        .iter()
        .chain(list(&pod["spec"]["initContainers"]))
        .map(|it| text(&it["name"]))
        .collect();
    let called = crate::value::name(pod);
    let main = list(&pod["spec"]["containers"]).len();
    match (asked, main) {
        ("", 1) => Ok(names[0].to_owned()),
        ("", _) => Err(Failure::bad(format!(
            "a container name must be specified for pod {called}, choose one of: [{}]",
            names[..main].join(" "),
        ))),
        (asked, _) if names.contains(&asked) => Ok(asked.to_owned()),
        (asked, _) => Err(Failure::bad(format!("container {asked} is not valid for pod {called}"))),
    }
}

/// Answers the handshake; the session goes on by itself.
pub(crate) fn upgrade(
    server: &Arc<Server>,
    target: &Target,
    mut request: Request,
    _: &User,
) -> Result<Response, Failure> {
    let Some(upgrade) = request.upgrade.take() else {
        return Err(Failure::bad("Upgrade request required"));
    };
    if request.method != Method::GET {
        return Ok(http::bare(405, "bad method"));
    }
    let pod = server.store.read(|state| find(state, target))?;
    let name = container_of(&pod, request.param("container"))?;
    if text(&pod["spec"]["nodeName"]).is_empty() {
        let called = &target.name;
        return Err(Failure::bad(format!("pod {called} does not have a host assigned")));
    }
    if target.sub == "portforward" {
        let offered = offers(&request);
        let chosen = [forward::PROTOCOL, forward::TUNNEL].into_iter().find(|it| offered.contains(it));
        let Some(chosen) = chosen else { return Ok(http::bare(403, "")) };
        let Some(here) = server.cluster.pod(uid(&pod)) else {
            return Err(Failure::text(500, "the pod does not run"));
        };
        if chosen == forward::TUNNEL {
            return Ok(switch(server, &request, upgrade, chosen, forward::tunnel));
        }
        let ports = forward::ports(&request)?;
        let id = uid(&pod).to_owned();
        return Ok(switch(server, &request, upgrade, chosen, move |it| forward::run(it, ports, id, here.ip)));
    }
    let ask = Ask {
        command: request
            .query
            .iter()
            .filter(|(key, _)| key == "command")
            .map(|(_, value)| value.clone())
            .collect(),
        stdin: request.flag("stdin"),
        stdout: request.flag("stdout"),
        stderr: request.flag("stderr") && !request.flag("tty"),
        tty: request.flag("tty"),
        attach: target.sub == "attach",
    };
    let (chosen, protocol) = match choose(&request) {
        Ok(chosen) => chosen,
        Err(()) => return Ok(http::bare(403, "")),
    };
    let here: Option<Container> = server
        .cluster
        .pod(uid(&pod))
        .and_then(|it| it.containers().get(&name).cloned())
        .filter(|it| it.running);
    let Some(here) = here else {
        return Err(Failure::text(500, format!("container not found (\"{name}\")")));
    };
    if !(ask.stdin || ask.stdout || ask.stderr) {
        return Err(Failure::text(400, "you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(switch(server, &request, upgrade, chosen, move |it| session::run(it, protocol, ask, here)))
}

/// Answers with 101, and lets the session live on.
fn switch<F: Future<Output = ()> + Send + 'static>(
    server: &Server,
    request: &Request,
    upgrade: OnUpgrade,
    chosen: &'static str,
    session: impl FnOnce(session::Socket) -> F + Send + 'static,
) -> Response {
    let accept = accept(request.header("sec-websocket-key"));
    let mut cuts = server.door.cuts();
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        tokio::select! {
            () = session(socket) => {}
            _ = cuts.changed() => {}
        }
    });
    let mut response = http::bytes(101, "", "");
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
}

/// The subprotocols that a client offers.
fn offers(request: &Request) -> Vec<&str> {
    let offered = request.header("sec-websocket-protocol");
    offered.split(',').map(str::trim).filter(|it| !it.is_empty()).collect()
}

/// The subprotocol; an error if only unknown ones are offered.
fn choose(request: &Request) -> Result<(&'static str, Protocol), ()> {
    let offered = offers(request);
    let chosen = PROTOCOLS.into_iter().find(|it| offered.contains(it));
    let chosen = match chosen {
        Some(chosen) => chosen,
        None if offered.is_empty() => "",
        None => return Err(()),
    };
    let protocol = Protocol {
        closes: chosen.starts_with("v5"),
        status: chosen.starts_with('v'),
        base64: chosen.contains("base64"),
    };
    Ok((chosen, protocol))
}

fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}
