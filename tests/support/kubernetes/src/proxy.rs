//! The way through the API server to a pod's port, for requests and for upgrades.

use std::io;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::StatusCode;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderValue};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;

use crate::Server;
use crate::cluster::probe::port;
use crate::http::{Request, Response};
use crate::route::Target;
use crate::status::Failure;
use crate::value::{list, uid};
use crate::write::find;

pub(crate) async fn answer(
    server: &Arc<Server>,
    target: &Target,
    mut request: Request,
) -> Result<Response, Failure> {
    // `name`, `name:port`, `scheme:name:port`.
    let called = percent_decode_str(&target.name).decode_utf8_lossy().into_owned();
    let parts: Vec<&str> = called.split(':').collect();
    let (name, wanted) = match parts.as_slice() {
        [name] => (*name, ""),
        [name, port] | [_, name, port] => (*name, *port),
        _ => return Err(Failure::bad(format!("invalid pod request {called:?}"))),
    };
    let mut one = target.clone();
    name.clone_into(&mut one.name);
    let pod = server.store.read(|state| find(state, &one))?;
    let containers = list(&pod["spec"]["containers"]);
    let port = if wanted.is_empty() {
        containers.iter().find_map(|it| port(it, &it["ports"][0]["containerPort"])).unwrap_or(80)
    } else {
        let value = serde_json::Value::from(wanted);
        containers
            .iter()
            .find_map(|it| port(it, &value))
            .ok_or_else(|| Failure::bad(format!("no port {wanted:?}")))?
    };
    let unreachable = |why: String| {
        Failure::new(503, "ServiceUnavailable", format!("error trying to reach service: {why}"))
    };
    let Some(ip) =
        server.cluster.pod(uid(&pod)).filter(|_| pod["status"]["podIP"].is_string()).map(|it| it.ip)
    else {
        return Err(Failure::bad("address not allowed"));
    };
    let stream = TcpStream::connect((ip, port))
        .await
        .map_err(|_| unreachable(format!("dial tcp {ip}:{port}: connect: connection refused")))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(error.to_string()))?;
    tokio::spawn(connection.with_upgrades());

    let query = if request.raw_query.is_empty() { String::new() } else { format!("?{}", request.raw_query) };
    let mut outgoing = hyper::Request::new(Full::new(request.body.clone()));
    *outgoing.method_mut() = request.method.clone();
    *outgoing.uri_mut() =
        format!("/{}{query}", target.rest).parse().map_err(|_| Failure::bad("invalid path"))?;
    let upgrade = request.upgrade.take();
    for (name, value) in &request.headers {
        let kept = match *name {
            // The credentials are for the API server.
            header::AUTHORIZATION | header::HOST | header::CONTENT_LENGTH | header::TRANSFER_ENCODING => {
                false
            }
            header::CONNECTION => upgrade.is_some(),
            _ => true,
        };
        if kept {
            outgoing.headers_mut().append(name, value.clone());
        }
    }
    if let Ok(host) = HeaderValue::from_str(&format!("{ip}:{port}")) {
        outgoing.headers_mut().insert(header::HOST, host);
    }
    let mut response = sender.send_request(outgoing).await.map_err(|error| unreachable(error.to_string()))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(upgrade) = upgrade
    {
        let theirs = hyper::upgrade::on(&mut response);
        let cuts = server.door.cuts();
        tokio::spawn(async move {
            let (Ok(ours), Ok(theirs)) = (upgrade.await, theirs.await) else { return };
            let mut cuts = cuts;
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {}
                _ = cuts.changed() => {}
            }
        });
    }
    let prefix = format!("/api/v1/namespaces/{}/pods/{}/proxy", target.space(), target.name);
    // A redirection stays behind the proxy.
    let moved = response.headers().get(header::LOCATION).and_then(|it| it.to_str().ok());
    if let Some(path) = moved.filter(|it| it.starts_with('/'))
        && let Ok(location) = HeaderValue::from_str(&format!("{prefix}{path}"))
    {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response.map(|body| body.map_err(io::Error::other).boxed_unsync()))
}
