//! Reading a request: its id, token, path, parameters and body.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use actix_web::http::header::{self, HeaderName};
use actix_web::{HttpRequest, web};
use futures_util::{Stream, StreamExt as _};
use percent_encoding::percent_decode_str;

use crate::{Error, Kind, Result};

// As text, they would be parsed again for each request.
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// The request's id: the client's, if it is a sane one, else a new one.
#[must_use]
pub fn request_id(req: &HttpRequest) -> String {
    let sane = |id: &&str| {
        !id.is_empty()
            && id.len() <= 64
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    let given = req.headers().get(&REQUEST_ID).and_then(|v| v.to_str().ok()).filter(sane);
    given.map_or_else(|| format!("req-{}", uuid::Uuid::now_v7()), str::to_owned)
}

/// The token, from `X-Auth-Token` or `Authorization: Bearer`.
#[must_use]
pub fn token(req: &HttpRequest) -> Option<&str> {
    if let Some(value) = req.headers().get(&AUTH_TOKEN) {
        return value.to_str().ok().map(str::trim).filter(|t| !t.is_empty());
    }
    let value = req.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()).filter(|t| !t.is_empty())
}

/// A header of a proxy in front, if it is to be believed: anybody could send it.
fn forwarded<'a>(req: &'a HttpRequest, name: &str, trust: bool) -> Option<&'a str> {
    let value = req.headers().get(name).filter(|_| trust)?.to_str().ok()?;
    value.split(',').next().map(str::trim).filter(|it| !it.is_empty())
}

/// The server as the client called it: `http://host:port`.
#[must_use]
pub fn origin(req: &HttpRequest) -> String {
    let trust = req.app_data::<web::Data<super::App>>().is_some_and(|app| app.options.trust_forwarded);
    let https = forwarded(req, "X-Forwarded-Proto", trust).is_some_and(|it| it.eq_ignore_ascii_case("https"));
    let own = || req.headers().get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or("localhost");
    let host = forwarded(req, "X-Forwarded-Host", trust).unwrap_or_else(own);
    format!("{}://{host}", if https { "https" } else { "http" })
}

/// Where the request comes from, as the connection says, or a proxy that is trusted.
#[must_use]
pub fn client_ip(req: &HttpRequest, trust: bool) -> String {
    address(req, trust).map(|ip| ip.to_string()).unwrap_or_default()
}

/// The same as an address.
#[must_use]
pub fn address(req: &HttpRequest, trust: bool) -> Option<IpAddr> {
    let told = forwarded(req, "X-Forwarded-For", trust).and_then(|it| it.parse().ok());
    told.or_else(|| req.peer_addr().map(|addr| addr.ip()))
}

/// Segments of the path, decoded.
pub(crate) fn segments(path: &str) -> Result<Vec<Cow<'_, str>>> {
    let wrong = |what: &str| Error::field("path", what.to_owned());
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut segments = Vec::with_capacity(3);
    if path.is_empty() {
        return Ok(segments);
    }
    for raw in path.split('/') {
        let segment = percent_decode_str(raw).decode_utf8().map_err(|_| wrong("is not UTF-8"))?;
        if segment.is_empty() {
            return Err(wrong("has an empty segment"));
        }
        if segment == "." || segment == ".." {
            return Err(wrong("has a . or .. segment"));
        }
        if segment.chars().any(char::is_control) {
            return Err(wrong("has a control character"));
        }
        if segment.len() > 512 {
            return Err(wrong("has a segment longer than 512 bytes"));
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn decode<'a>(name: &str, raw: &'a str) -> Result<Cow<'a, str>> {
    let spaced: Cow<'a, str> = if raw.contains('+') { raw.replace('+', " ").into() } else { raw.into() };
    let wrong = |what: &str| Error::field(name.to_owned(), what.to_owned());
    let decoded = match spaced {
        Cow::Borrowed(text) => percent_decode_str(text).decode_utf8().map_err(|_| wrong("is not UTF-8"))?,
        Cow::Owned(text) => {
            percent_decode_str(&text).decode_utf8().map_err(|_| wrong("is not UTF-8"))?.into_owned().into()
        }
    };
    if decoded.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t' | '\r')) {
        return Err(wrong("has a control character"));
    }
    Ok(decoded)
}

/// Parameters of a query string, decoded, in order.
///
/// # Errors
/// 400 that names the parameter.
pub fn query_params(query: &str) -> Result<Vec<(Cow<'_, str>, Cow<'_, str>)>> {
    let mut params = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decode("query", key)?;
        let value = decode(&key, value)?;
        params.push((key, value));
        if params.len() > 200 {
            return Err(Error::field("query", "has more than 200 parameters"));
        }
    }
    Ok(params)
}

/// How long a client may take to send a body: every socket has an end.
const BODY_TIME: Duration = Duration::from_secs(60);

/// The whole body, refused beyond the limit.
///
/// # Errors
/// 408, 413 or 415.
pub async fn read_body(req: &HttpRequest, mut payload: web::Payload, limit: usize) -> Result<web::Bytes> {
    let too_large =
        || Error::new(Kind::TooLarge, format!("the body is larger than {limit} bytes")).blame("body");
    let announced =
        req.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|n| n > limit) {
        drain(payload).await;
        return Err(too_large());
    }
    let mut body = web::BytesMut::new();
    let end = tokio::time::Instant::now() + BODY_TIME;
    let slow =
        |_| Error::new(Kind::RequestTimeout, format!("the body took longer than {} s", BODY_TIME.as_secs()));
    while let Some(chunk) = tokio::time::timeout_at(end, payload.next()).await.map_err(slow)? {
        let chunk = chunk.map_err(|e| Error::field("body", format!("could not be read: {e}")))?;
        if body.len() + chunk.len() > limit {
            drain(payload).await;
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    if !body.is_empty() {
        json_only(req)?;
        if req.method() == actix_web::http::Method::PATCH {
            super::write::expect_merge_patch(req)?;
        }
    }
    Ok(body.freeze())
}

/// JSON, also by the name that `curl -d` gives everything.
fn json_only(req: &HttpRequest) -> Result<()> {
    let Some(value) = req.headers().get(header::CONTENT_TYPE) else { return Ok(()) };
    if value == super::media::JSON {
        return Ok(());
    }
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim();
    if super::media::is_json(essence) {
        return Ok(());
    }
    let text = format!("Content-Type {essence} is not understood; send application/json");
    Err(Error::new(Kind::UnsupportedMediaType, text).blame("Content-Type"))
}

/// Reads and forgets what a client is still sending, so that it can read the
/// answer; within bounds, since it may send for ever.
pub(super) async fn drain<E>(mut payload: impl Stream<Item = Result<web::Bytes, E>> + Unpin) {
    const MOST: usize = 64 << 20;
    let reading = async {
        let mut seen = 0;
        while let Some(Ok(chunk)) = payload.next().await {
            seen += chunk.len();
            if seen > MOST {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), reading).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(segments("/spaces/a%20b/start").unwrap(), ["spaces", "a b", "start"]);
        assert_eq!(segments("/spaces/").unwrap(), ["spaces"]);
        for bad in ["/a/%00", "/a/..", "/a/%2e%2e/b", "/a//b", "/a/%ff", "/a/%0a"] {
            assert_eq!(segments(bad).unwrap_err().field_errors()[0].field, "path", "{bad}");
        }
    }

    #[test]
    fn parameters() {
        let params = query_params("name=a+b&x=%C3%A9&x=2&flag").unwrap();
        let params: Vec<_> = params.iter().map(|(k, v)| (k.as_ref(), v.as_ref())).collect();
        assert_eq!(params, [("name", "a b"), ("x", "é"), ("x", "2"), ("flag", "")]);
        assert_eq!(query_params("name=%00").unwrap_err().field_errors()[0].field, "name");
    }
}
