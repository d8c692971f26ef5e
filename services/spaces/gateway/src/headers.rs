//! Which headers pass, in both directions, and what is written into them on the way.

use std::net::{IpAddr, SocketAddr};

use actix_web::http::header as down;
use hyper::header::{self as up, HeaderMap, HeaderName, HeaderValue};

use crate::{Credential, Options, Source, own_names};

/// Meant for one connection only (RFC 9110 §7.6.1), besides those that `Connection` names.
/// `Expect` is here because actix has answered it already.
const HOP_BY_HOP: [&str; 11] = [
    "connection",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What a program may not say, because a browser would apply it to the whole origin and so to the
/// platform and to everybody's spaces.
const ORIGIN_WIDE: [&str; 6] =
    ["alt-svc", "clear-site-data", "nel", "public-key-pins", "report-to", "strict-transport-security"];

/// What only the platform may say. Everything that begins so is dropped from both sides.
const OURS: &str = "x-podyard-space-";

/// Where the program finds the secret.
const SECRET: HeaderName = HeaderName::from_static("x-podyard-space-secret");

/// Finds everything that may be a token of the platform, in the order to try. More than one cookie
/// of our name can come: a page of a space can add one for its own path, and must not be able to
/// log its visitor out.
pub(crate) fn credentials(headers: &down::HeaderMap, cookie: &str) -> Vec<Credential> {
    let mut found = Vec::new();
    let mut add = |source, token: &str| {
        let known = found.iter().any(|c: &Credential| c.source == source && c.token == token);
        if !token.is_empty() && !known {
            found.push(Credential { source, token: token.to_owned() });
        }
    };
    if let Some(token) = headers.get("x-auth-token").and_then(|v| v.to_str().ok()) {
        add(Source::AuthToken, token.trim());
    }
    if let Some(token) = headers.get(down::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(bearer) {
        add(Source::Bearer, token);
    }
    for value in headers.get_all(down::COOKIE).filter_map(|v| v.to_str().ok()) {
        for (name, value) in value.split(';').filter_map(|pair| pair.split_once('=')) {
            if name.trim() == cookie {
                add(Source::Cookie, value.trim().trim_matches('"'));
            }
        }
    }
    found.truncate(6);
    found
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What [`request`] must know of a request besides its headers.
pub(crate) struct Onward<'a> {
    pub(crate) options: &'a Options,
    pub(crate) sid: &'a str,
    /// The `Host` to send.
    pub(crate) host: &'a str,
    /// The host that the client asked.
    pub(crate) public_host: &'a str,
    pub(crate) scheme: &'static str,
    pub(crate) peer: Option<IpAddr>,
    pub(crate) secret: &'a str,
    /// The credential that authenticated.
    pub(crate) used: Option<&'a Credential>,
    pub(crate) request_id: Option<&'a str>,
    pub(crate) upgrade: bool,
}

/// The headers for the program. Nothing that frames the body is among them.
pub(crate) fn request(from: &down::HeaderMap, to: &Onward<'_>) -> HeaderMap {
    let named = named_by_connection(from.get_all(down::CONNECTION).map(|v| v.as_bytes()));
    let mut headers = HeaderMap::with_capacity(from.len() + 8);
    set(&mut headers, up::HOST, to.host);
    for (name, value) in from {
        let text = name.as_str();
        if matches!(text, "host" | "content-length" | "x-auth-token" | "x-real-ip" | "forwarded")
            || matches!(
                text,
                "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto" | "x-forwarded-prefix"
            )
            || (text.starts_with("x-forwarded-") && !to.options.trust_forwarded)
            || (text == "x-request-id" && to.request_id.is_some())
            || text.starts_with(OURS)
            || HOP_BY_HOP.contains(&text)
            || named.iter().any(|n| n == text)
            || (text == "authorization" && carries(value, to.used))
        {
            continue;
        }
        if text == "cookie" {
            if let Some(rest) = other_cookies(value.as_bytes(), to.options) {
                add(&mut headers, text, &rest);
            }
            continue;
        }
        add(&mut headers, text, value.as_bytes());
    }
    forwarded(&mut headers, from, to);
    if let Some(id) = to.request_id {
        set(&mut headers, HeaderName::from_static("x-request-id"), id);
    }
    if to.upgrade {
        headers.insert(up::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(up::UPGRADE, HeaderValue::from_static("websocket"));
    }
    if !to.secret.is_empty() {
        set(&mut headers, SECRET, to.secret);
        if let Some(value) = headers.get_mut(SECRET) {
            value.set_sensitive(true);
        }
    }
    headers
}

/// Did this `Authorization` carry the token that authenticated?
fn carries(value: &down::HeaderValue, used: Option<&Credential>) -> bool {
    value.to_str().ok().and_then(bearer).zip(used).is_some_and(|(token, used)| token == used.token)
}

fn forwarded(headers: &mut HeaderMap, from: &down::HeaderMap, to: &Onward<'_>) {
    let before = |name: &str| {
        let value = from.get(name).filter(|_| to.options.trust_forwarded);
        value.and_then(|v| v.to_str().ok()).map(str::trim).filter(|v| !v.is_empty())
    };
    let peer = to.peer.map(|ip| ip.to_string());
    let chain = match (before("x-forwarded-for"), peer) {
        (Some(chain), Some(ip)) => Some(format!("{chain}, {ip}")),
        (Some(chain), None) => Some(chain.to_owned()),
        (None, ip) => ip,
    };
    if let Some(chain) = chain {
        set(headers, HeaderName::from_static("x-forwarded-for"), &chain);
    }
    let prefix = before("x-forwarded-prefix").unwrap_or_default().trim_end_matches('/');
    set(headers, HeaderName::from_static("x-forwarded-host"), to.public_host);
    set(headers, HeaderName::from_static("x-forwarded-proto"), to.scheme);
    set(headers, HeaderName::from_static("x-forwarded-prefix"), &format!("{prefix}/ws/{}", to.sid));
}

/// The names that `Connection` declares to be of this connection only.
fn named_by_connection<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    values
        .filter_map(|v| std::str::from_utf8(v).ok())
        .flat_map(|v| v.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect()
}

/// A `Cookie` header without the platform's cookies; the others stay as they were sent.
fn other_cookies(value: &[u8], options: &Options) -> Option<Vec<u8>> {
    let mine = |pair: &[u8]| {
        let name = pair.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii();
        std::str::from_utf8(name).is_ok_and(|name| options.is_platform_cookie(name))
    };
    let pairs = value.split(|b| *b == b';').map(<[u8]>::trim_ascii);
    let kept: Vec<&[u8]> = pairs.filter(|pair| !pair.is_empty() && !mine(pair)).collect();
    (!kept.is_empty()).then(|| kept.join(&b"; "[..]))
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn add(headers: &mut HeaderMap, name: &str, value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
        headers.append(name, value);
    }
}

/// What [`response`] must know of a request.
pub(crate) struct Homeward<'a> {
    pub(crate) options: &'a Options,
    pub(crate) sid: &'a str,
    pub(crate) addr: SocketAddr,
    /// The hosts under which the client or the program may know the program.
    pub(crate) hosts: [&'a str; 2],
    /// The answer is `101`.
    pub(crate) upgrade: bool,
}

/// The headers for the client. `Content-Length` is not among them: the body says how long it is.
pub(crate) fn response(from: &HeaderMap, to: &Homeward<'_>) -> down::HeaderMap {
    let named = named_by_connection(from.get_all(up::CONNECTION).iter().map(HeaderValue::as_bytes));
    let mut headers = down::HeaderMap::with_capacity(from.len());
    for (name, value) in from {
        let text = name.as_str();
        if to.upgrade && text == "upgrade" {
            append(&mut headers, text, value.as_bytes());
            continue;
        }
        if text == "content-length"
            || text.starts_with(OURS)
            || HOP_BY_HOP.contains(&text)
            || ORIGIN_WIDE.contains(&text)
            || named.iter().any(|n| n == text)
        {
            continue;
        }
        match text {
            "location" | "content-location" => {
                let rewritten = std::str::from_utf8(value.as_bytes()).ok().and_then(|v| location(v, to));
                append(&mut headers, text, rewritten.as_deref().map_or(value.as_bytes(), str::as_bytes));
            }
            "set-cookie" => {
                if let Some(cookie) =
                    std::str::from_utf8(value.as_bytes()).ok().and_then(|v| set_cookie(v, to))
                {
                    append(&mut headers, text, cookie.as_bytes());
                }
            }
            "service-worker-allowed" => {
                if let Some(scope) = value.to_str().ok().and_then(|v| worker_scope(v, to.sid)) {
                    append(&mut headers, text, scope.as_bytes());
                }
            }
            _ => append(&mut headers, text, value.as_bytes()),
        }
    }
    headers
}

fn append(headers: &mut down::HeaderMap, name: &str, value: &[u8]) {
    if let (Ok(name), Ok(value)) =
        (down::HeaderName::from_bytes(name.as_bytes()), down::HeaderValue::from_bytes(value))
    {
        headers.append(name, value);
    }
}

/// A path of the program as the client must ask for it. A program that knows its prefix has put it
/// there itself.
fn prefixed(path: &str, sid: &str) -> String {
    let inside = path.strip_prefix("/ws/").and_then(|p| p.strip_prefix(sid));
    if inside.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#'])) {
        path.to_owned()
    } else {
        format!("/ws/{sid}{path}")
    }
}

/// A `Location` that leads to the program itself, rewritten to pass the gateway. `None`: leave it.
fn location(value: &str, to: &Homeward<'_>) -> Option<String> {
    let value = value.trim();
    let rest = value
        .strip_prefix("//")
        .or_else(|| value.get(..7).filter(|s| s.eq_ignore_ascii_case("http://")).map(|_| &value[7..]))
        .or_else(|| value.get(..8).filter(|s| s.eq_ignore_ascii_case("https://")).map(|_| &value[8..]));
    let Some(rest) = rest else {
        return value.starts_with('/').then(|| prefixed(value, to.sid));
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let own = to.hosts.iter().any(|h| h.eq_ignore_ascii_case(authority))
        || own_names(to.addr).iter().any(|n| n.eq_ignore_ascii_case(authority));
    let slash = if path.starts_with('/') { "" } else { "/" };
    own.then(|| prefixed(&format!("{slash}{path}"), to.sid))
}

/// A `Set-Cookie` confined to the space: its path lies below the space's, and no other host gets
/// it. `None`: it tries to be one of the platform's.
fn set_cookie(value: &str, to: &Homeward<'_>) -> Option<String> {
    let mut parts = value.split(';');
    let pair = parts.next()?.trim();
    // A cookie without a name is sent back as its bare value, so "=a=b" comes back as "a=b".
    let named = pair.trim_start_matches(['=', ' ', '\t']);
    if to.options.is_platform_cookie(named.split('=').next().unwrap_or_default().trim()) {
        return None;
    }
    let mut cookie = pair.to_owned();
    for part in parts.map(str::trim) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let (name, value) = (name.trim(), value.trim());
        if name.eq_ignore_ascii_case("domain") {
            continue;
        }
        cookie.push_str("; ");
        if name.eq_ignore_ascii_case("path") && value.starts_with('/') {
            cookie.push_str("Path=");
            cookie.push_str(&prefixed(value, to.sid));
        } else {
            cookie.push_str(part);
        }
    }
    Some(cookie)
}

/// A service worker may be allowed all of its space, and nothing beyond.
fn worker_scope(value: &str, sid: &str) -> Option<String> {
    let value = value.trim();
    let clean = value.starts_with('/') && !value.starts_with("//") && !value.contains('\\');
    (clean && crate::path::refused(value).is_none()).then(|| prefixed(value, sid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(options: &Options) -> Homeward<'_> {
        Homeward {
            options,
            sid: "s1",
            addr: SocketAddr::from(([127, 0, 0, 1], 4001)),
            hosts: ["ide.example:8443", "ide.example:8443"],
            upgrade: false,
        }
    }

    #[test]
    fn locations() {
        let options = Options::default();
        let to = home(&options);
        for (from, want) in [
            ("/", Some("/ws/s1/")),
            ("/login?to=/x", Some("/ws/s1/login?to=/x")),
            ("/ws/s1/x", Some("/ws/s1/x")),
            ("/ws/s1", Some("/ws/s1")),
            ("/ws/s12/x", Some("/ws/s1/ws/s12/x")),
            ("http://127.0.0.1:4001/x", Some("/ws/s1/x")),
            ("HTTP://LOCALHOST:4001", Some("/ws/s1/")),
            ("http://0.0.0.0:4001?q", Some("/ws/s1/?q")),
            ("https://ide.example:8443/x", Some("/ws/s1/x")),
            ("//ide.example:8443/ws/s1/x", Some("/ws/s1/x")),
            ("http://127.0.0.1:4002/x", None),
            ("https://elsewhere.example/x", None),
            ("//elsewhere.example/x", None),
            ("./x", None),
            ("x/y", None),
            ("?q", None),
        ] {
            assert_eq!(location(from, &to).as_deref(), want, "{from}");
        }
    }

    #[test]
    fn cookies_of_programs() {
        let options = Options { platform_cookies: vec!["console".into()], ..Options::default() };
        let to = home(&options);
        for (from, want) in [
            ("a=b; Path=/; HttpOnly", Some("a=b; Path=/ws/s1/; HttpOnly")),
            ("a=b;path=/x;Domain=ide.example", Some("a=b; Path=/ws/s1/x")),
            ("a=b; Path=/ws/s1/", Some("a=b; Path=/ws/s1/")),
            ("a=b", Some("a=b")),
            ("a=b; Path=", Some("a=b; Path=")),
            ("podyard_session=evil; Path=/ws/", None),
            (" podyard_session =evil", None),
            ("=podyard_session=evil", None),
            ("podyard_session", None),
            ("console=1", None),
            ("podyard_session2=fine", Some("podyard_session2=fine")),
        ] {
            assert_eq!(set_cookie(from, &to).as_deref(), want, "{from}");
        }
    }

    #[test]
    fn cookies_of_clients() {
        let options = Options::default();
        let kept = |v: &str| other_cookies(v.as_bytes(), &options).map(|v| String::from_utf8(v).unwrap());
        assert_eq!(kept("a=1; podyard_session=t; b=2").as_deref(), Some("a=1; b=2"));
        assert_eq!(kept("podyard_session=t").as_deref(), None);
        assert_eq!(kept("podyard_session2=t;podyard_session=x").as_deref(), Some("podyard_session2=t"));
    }

    #[test]
    fn worker_scopes() {
        assert_eq!(worker_scope("/", "s1").as_deref(), Some("/ws/s1/"));
        assert_eq!(worker_scope("/ws/s1/a/", "s1").as_deref(), Some("/ws/s1/a/"));
        for bad in ["//x/", "https://x/", "../", "/../", ""] {
            assert_eq!(worker_scope(bad, "s1"), None, "{bad}");
        }
    }
}
