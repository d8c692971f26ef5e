//! One request to a webhook: a connection of its own, to an address that was
//! looked at first, ended by a timeout whatever the other side does.
//! Redirects are not followed, proxies are not asked.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;

use super::Webhook;

/// Most bytes of an answer.
const MOST: usize = 256 * 1024;

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

struct Place {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

fn place(url: &str) -> Result<Place, String> {
    let uri: Uri = url.parse().map_err(|_| "is not a URL".to_owned())?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err("must begin with http:// or https://".into()),
    };
    let authority = uri.authority().ok_or("names no host")?;
    if authority.as_str().contains('@') {
        return Err("must have no user in it: the signature tells who calls".into());
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        return Err("names no host".into());
    }
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let path = uri.path_and_query().map_or("/", |it| it.as_str()).to_owned();
    Ok(Place { tls, host, port, authority: authority.as_str().to_owned(), path })
}

/// What is wrong with a URL, if anything.
pub(super) fn check_url(url: &str) -> Result<(), String> {
    let place = place(url)?;
    match place.host.parse() {
        Ok(ip) if !allowed(ip) => Err(format!("{ip} is no address for webhooks")),
        _ => Ok(()),
    }
}

/// Whether a webhook may be there. Clouds serve secrets of the machine at
/// link-local addresses and a few others; nobody is at the rest of these.
/// Loopback and private networks are allowed: who sets up webhooks is an
/// administrator, and what they tell is often next door.
fn allowed(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(it) => {
            let metadata = [[100, 100, 100, 200], [168, 63, 129, 16], [192, 0, 0, 192]];
            !(it.is_link_local()
                || it.is_unspecified()
                || it.is_multicast()
                || it.is_broadcast()
                || it.octets()[0] == 0
                || metadata.contains(&it.octets()))
        }
        IpAddr::V6(it) => {
            if let Some(inner) = it.to_ipv4_mapped() {
                return allowed(inner.into());
            }
            let [first, second, ..] = it.segments();
            // NAT64 leads to addresses of the old kind.
            let nat64 = first == 0x64 && second == 0xff9b;
            let metadata: std::net::Ipv6Addr = [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254].into();
            !(it.is_unspecified() || it.is_multicast() || first & 0xffc0 == 0xfe80 || nat64 || it == metadata)
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(place: &Place) -> Result<Box<dyn Stream>, String> {
    let found = tokio::net::lookup_host((place.host.as_str(), place.port));
    let all: Vec<SocketAddr> = found.await.map_err(|e| format!("{}: {e}", place.host))?.collect();
    // A name that also leads elsewhere is not to be trusted with any of it.
    if let Some(bad) = all.iter().find(|it| !allowed(it.ip())) {
        return Err(format!("{} is no address for webhooks", bad.ip()));
    }
    let mut last = format!("{}: no address", place.host);
    for addr in all {
        match TcpStream::connect(addr).await {
            Ok(stream) if place.tls => {
                let name = ServerName::try_from(place.host.clone()).map_err(|e| e.to_string())?;
                let stream =
                    crate::tls::connector().await?.connect(name, stream).await.map_err(|e| e.to_string())?;
                return Ok(Box::new(stream));
            }
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => last = format!("{addr}: {error}"),
        }
    }
    Err(last)
}

/// `sha256=…` over the moment and the body, so that neither can be changed
/// and an old request is told from a new one.
fn signature(secret: &str, timestamp: i64, body: &str) -> String {
    // A key of any length makes a code.
    let Ok(mut code) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return String::new() };
    code.update(format!("{timestamp}.").as_bytes());
    code.update(body.as_bytes());
    let bytes = code.finalize().into_bytes();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={hex}")
}

async fn read(mut body: Incoming) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() {
            if bytes.len() + data.len() > MOST {
                return Err(format!("answered more than {MOST} bytes"));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

/// Ends a task with whoever started it.
struct Tied(tokio::task::JoinHandle<()>);

impl Drop for Tied {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn exchange(hook: &Webhook, event: &str, id: &str, body: String) -> Result<Answer, String> {
    let place = place(&hook.url)?;
    let stream = connect(&place).await?;
    let (mut sender, connection) =
        http1::handshake::<_, String>(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let _connection = Tied(tokio::spawn(async move {
        // What broke is told by the request.
        let _ = connection.await;
    }));
    let timestamp = crate::now().timestamp();
    let request = Request::post(&place.path)
        .header(header::HOST, &place.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("podyard/", env!("CARGO_PKG_VERSION")))
        .header("X-Podyard-Event", event)
        .header("X-Podyard-Delivery", id)
        .header("X-Podyard-Timestamp", timestamp)
        .header("X-Podyard-Signature", signature(&hook.secret, timestamp, &body))
        .body(body)
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = response.status().as_u16();
    Ok(Answer { status, body: read(response.into_body()).await? })
}

/// Sends a body and waits for the answer, within the webhook's time.
pub(super) async fn post(hook: &Webhook, event: &str, id: &str, body: String) -> Result<Answer, String> {
    let time = Duration::from_secs(hook.timeout.clamp(1, 10).unsigned_abs());
    match tokio::time::timeout(time, exchange(hook, event, id, body)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("gave no answer within {} s", time.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_refused() {
        for bad in [
            "http://169.254.169.254/latest/meta-data",
            "http://[fe80::1]/",
            "http://[::ffff:169.254.169.254]/",
            "http://[fd00:ec2::254]/",
            "http://[64:ff9b::a9fe:a9fe]/",
            "http://100.100.100.200/",
            "http://0.0.0.0/",
            "http://224.0.0.1/",
            "ftp://example.org/",
            "file:///etc/passwd",
            "http://user@example.org/",
            "/path",
            "",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
        for good in
            ["http://127.0.0.1:8080/x", "https://example.org/hooks?a=b", "http://10.0.0.1/", "http://[::1]/"]
        {
            check_url(good).unwrap();
        }
    }

    #[test]
    fn a_signature_is_over_moment_and_body() {
        let one = signature("key", 1, "{}");
        assert_eq!(one.len(), "sha256=".len() + 64);
        assert_ne!(one, signature("key", 2, "{}"));
        assert_ne!(one, signature("key", 1, "[]"));
        assert_ne!(one, signature("yek", 1, "{}"));
    }
}
