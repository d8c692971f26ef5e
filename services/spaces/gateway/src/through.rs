//! Programs that are not in reach themselves, but through the proxy of an API
//! server: what is said to it on the way there, and what it did to the answer
//! is undone on the way back.
//!
//! It answers for the pod under a path of its own. So it puts that path in
//! front of every `Location` and of every absolute link in a page, says in
//! headers who answered, and forbids to keep the answer. Where the pod does
//! not answer it says so itself, by a `Status` of its API. And who speaks to it
//! is a client of the cluster: what the browser sends must not pass for the
//! platform's own word there.

use std::{fmt, sync::Arc};

use actix_web::http::header as down;
use bytes::{Bytes, BytesMut};
use hyper::{
    Response,
    body::Incoming,
    header::{self as up, HeaderMap, HeaderName, HeaderValue},
};
use podyard_driver::Through;

use crate::body::collect;

/// A `Status` of an API server is shorter.
const STATUS: usize = 16 * 1024;

/// What the API server would take for a word about who asks.
const IDENTITY: [&str; 2] = ["impersonate-", "x-remote-"];

/// What the API server adds to all of its answers.
const ITS_OWN: [&str; 3] =
    ["audit-id", "x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"];

/// What it says of every answer, also where the program has said something else.
const UNKEPT: &[u8] = b"no-cache, private";

/// A way through. Equal are those that lead to the same place.
#[derive(Clone)]
pub(crate) struct Way(pub(crate) Arc<dyn Through>);

impl PartialEq for Way {
    fn eq(&self, other: &Self) -> bool {
        self.0.prefix() == other.0.prefix()
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Way").field(&self.0.prefix()).finish()
    }
}

/// The head of a request as the API server may see it.
pub(crate) fn outward(headers: &mut HeaderMap, way: &Way) {
    let named = |name: &HeaderName| IDENTITY.iter().any(|it| name.as_str().starts_with(it));
    let odd: Vec<_> = headers.keys().filter(|it| named(it)).cloned().collect();
    for name in odd {
        headers.remove(name);
    }
    // It would be tried as a credential of the cluster, and refused or, worse, taken.
    headers.remove(up::AUTHORIZATION);
    strip_bearer_protocols(headers);
    // Pages must be readable for their links to be put right.
    headers.insert(up::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    for (name, value) in way.0.headers() {
        let (Ok(name), Ok(mut value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value))
        else {
            continue;
        };
        value.set_sensitive(true);
        headers.insert(name, value);
    }
}

/// A websocket can carry a credential of the cluster as a subprotocol, too.
fn strip_bearer_protocols(headers: &mut HeaderMap) {
    const OF_THE_CLUSTER: &str = "base64url.bearer.authorization.k8s.io.";
    let all: Vec<String> = headers
        .get_all(up::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split(','))
        .map(|it| it.trim().to_owned())
        .collect();
    if !all.iter().any(|it| it.starts_with(OF_THE_CLUSTER)) {
        return;
    }
    let kept: Vec<_> = all.into_iter().filter(|it| !it.starts_with(OF_THE_CLUSTER)).collect();
    headers.remove(up::SEC_WEBSOCKET_PROTOCOL);
    if let Ok(value) = HeaderValue::from_str(&kept.join(", "))
        && !kept.is_empty()
    {
        headers.insert(up::SEC_WEBSOCKET_PROTOCOL, value);
    }
}

/// The head of an answer as the program sent it, as far as that can be known.
pub(crate) fn homeward(headers: &mut HeaderMap, way: &Way) {
    for name in ITS_OWN {
        headers.remove(name);
    }
    let mut unkept = headers.get_all(up::CACHE_CONTROL).iter().cloned().collect::<Vec<_>>();
    if let Some(at) = unkept.iter().position(|it| it.as_bytes() == UNKEPT) {
        unkept.remove(at);
        headers.remove(up::CACHE_CONTROL);
        for value in unkept {
            headers.append(up::CACHE_CONTROL, value);
        }
    }
    for name in [up::LOCATION, up::CONTENT_LOCATION] {
        let own = headers.get(&name).and_then(|it| it.to_str().ok()).and_then(|it| location(it, way));
        if let Some(value) = own.and_then(|it| HeaderValue::from_str(&it).ok()) {
            headers.insert(name, value);
        }
    }
}

/// Where a `Location` leads without the proxy's path: only what has that path
/// was rewritten, and then its host is the proxy's.
fn location(value: &str, way: &Way) -> Option<String> {
    let path = match value.split_once("://") {
        Some((_, rest)) => &rest[rest.find('/')?..],
        None => value,
    };
    let rest = path.strip_prefix(way.0.prefix())?;
    match rest.chars().next() {
        None => Some("/".to_owned()),
        Some('/') => Some(rest.to_owned()),
        Some('?' | '#') => Some(format!("/{rest}")),
        Some(_) => None,
    }
}

/// Whether the answer is a page, whose links the API server has rewritten.
pub(crate) fn is_page(headers: &HeaderMap) -> bool {
    let kind = headers.get(up::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let kind = kind.split(|it| *it == b';').next().unwrap_or_default().trim_ascii();
    let encoding = headers.get(up::CONTENT_ENCODING).map(HeaderValue::as_bytes);
    kind.eq_ignore_ascii_case(b"text/html") && encoding.is_none_or(|it| it.eq_ignore_ascii_case(b"identity"))
}

/// Headers that name the very bytes of a page do not hold for a changed one.
pub(crate) fn forget_bytes(headers: &mut down::HeaderMap) {
    headers.remove("content-md5");
    headers.remove("digest");
}

/// What an answer that may be the API server's own turned out to be.
pub(crate) enum Verdict {
    /// The program's. The body's beginning has been read.
    Program(Vec<Bytes>),
    /// The API server's: the program was not reached, because of this.
    ApiServer(String),
}

/// Looks at an answer that has failed. The API server's own is short JSON.
pub(crate) async fn judge(response: &mut Response<Incoming>) -> Verdict {
    let json = response
        .headers()
        .get(up::CONTENT_TYPE)
        .is_some_and(|it| it.as_bytes().starts_with(b"application/json"));
    if !json || !response.status().is_client_error() && !response.status().is_server_error() {
        return Verdict::Program(Vec::new());
    }
    let pieces = collect(response.body_mut(), STATUS).await;
    #[derive(serde::Deserialize)]
    struct Status {
        kind: String,
        #[serde(rename = "apiVersion")]
        api_version: String,
        #[serde(default)]
        message: String,
        #[serde(default)]
        reason: String,
    }
    match serde_json::from_slice::<Status>(&pieces.concat()) {
        Ok(it) if it.kind == "Status" && it.api_version == "v1" => {
            Verdict::ApiServer(if it.message.is_empty() { it.reason } else { it.message })
        }
        _ => Verdict::Program(pieces),
    }
}

/// Takes a text out of a stream of bytes, wherever its pieces are cut.
pub(crate) struct Strip {
    needle: Bytes,
    held: BytesMut,
}

impl Strip {
    /// Of the proxy's path.
    pub(crate) fn of(way: &Way) -> Self {
        Self { needle: Bytes::copy_from_slice(way.0.prefix().as_bytes()), held: BytesMut::new() }
    }

    /// What can be passed on, once this has come.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Bytes {
        self.held.extend_from_slice(piece);
        let needle = &self.needle[..];
        if needle.is_empty() {
            return self.held.split().freeze();
        }
        let mut out = BytesMut::with_capacity(self.held.len());
        let mut at = 0;
        while let Some(found) = find(&self.held[at..], needle) {
            out.extend_from_slice(&self.held[at..at + found]);
            at += found + needle.len();
        }
        // What may be its beginning waits for the rest.
        let rest = &self.held[at..];
        let longest = (needle.len() - 1).min(rest.len());
        let waits = (1..=longest).rev().find(|n| needle.starts_with(&rest[rest.len() - n..])).unwrap_or(0);
        out.extend_from_slice(&rest[..rest.len() - waits]);
        let keep = self.held.len() - waits;
        let _ = self.held.split_to(keep);
        out.freeze()
    }

    /// What waited for a rest that does not come.
    pub(crate) fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    let first = needle.first()?;
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|it| it == first) {
        if text[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use podyard_driver::{Pending, Stream};

    use super::*;

    const PREFIX: &str = "/api/v1/namespaces/n/pods/ws-a:8080/proxy";

    struct Fixed;

    impl Through for Fixed {
        fn connect(&self) -> Pending<'_, std::io::Result<Box<dyn Stream>>> {
            Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
        }

        fn prefix(&self) -> &str {
            PREFIX
        }

        fn headers(&self) -> Vec<(String, String)> {
            vec![("authorization".into(), "Bearer of-the-cluster".into())]
        }
    }

    fn way() -> Way {
        Way(Arc::new(Fixed))
    }

    #[test]
    fn a_text_goes_wherever_it_is_cut() {
        let text = format!("<a href=\"{PREFIX}/x\">{PREFIX}</a> /api/v1/names {PREFIX}{PREFIX}/y /api");
        let want = "<a href=\"/x\"></a> /api/v1/names /y /api";
        for size in 1..text.len() {
            let mut strip = Strip::of(&way());
            let mut got = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                got.extend_from_slice(&strip.push(piece));
            }
            got.extend_from_slice(&strip.finish());
            assert_eq!(String::from_utf8(got).unwrap(), want, "{size}");
        }
    }

    #[test]
    fn locations_lose_the_proxy() {
        for (from, want) in [
            (format!("{PREFIX}/login?to=/x"), Some("/login?to=/x")),
            (format!("https://api.example:6443{PREFIX}/x"), Some("/x")),
            (PREFIX.to_owned(), Some("/")),
            (format!("{PREFIX}?a"), Some("/?a")),
            (format!("{PREFIX}x"), None),
            ("/x".to_owned(), None),
            ("https://elsewhere.example".to_owned(), None),
            ("x/y".to_owned(), None),
        ] {
            assert_eq!(location(&from, &way()).as_deref(), want, "{from}");
        }
    }

    #[test]
    fn nobody_speaks_for_the_platform() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer of-the-client"),
            ("impersonate-user", "system:admin"),
            ("impersonate-extra-scopes", "x"),
            ("x-remote-user", "root"),
            ("x-remote-group", "system:masters"),
            ("sec-websocket-protocol", "chat, base64url.bearer.authorization.k8s.io.dG9rZW4"),
            ("accept-encoding", "gzip"),
            ("x-other", "stays"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        outward(&mut headers, &way());
        let mut left: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(
            left,
            [
                "accept-encoding: identity",
                "authorization: Bearer of-the-cluster",
                "sec-websocket-protocol: chat",
                "x-other: stays"
            ]
        );
    }

    #[test]
    fn what_the_api_server_adds_goes() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("audit-id", "x"),
            ("x-kubernetes-pf-flowschema-uid", "x"),
            ("cache-control", "no-cache, private"),
            ("cache-control", "max-age=60"),
            ("location", "/api/v1/namespaces/n/pods/ws-a:8080/proxy/x"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        homeward(&mut headers, &way());
        assert_eq!(headers.len(), 2, "{headers:?}");
        assert_eq!(
            (&headers["cache-control"], &headers["location"]),
            (&"max-age=60".parse().unwrap(), &"/x".parse().unwrap())
        );
    }
}
