//! CORS: which web pages of other origins may call the API. None unless told;
//! never the paths of spaces, where other people's programs answer.

use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::http::{Method, StatusCode};

/// Headers that pages may send.
const REQUEST_HEADERS: &str = "Accept, Accept-Language, Authorization, Content-Type, Idempotency-Key, If-Match, \
     If-None-Match, Last-Event-ID, traceparent, tracestate, X-Auth-Token, X-Request-Id, X-Subject-Token";
/// Headers that pages may read.
const ANSWER_HEADERS: &str = "Allow, Content-Language, Deprecation, ETag, Link, Location, RateLimit-Limit, \
     RateLimit-Remaining, RateLimit-Reset, Retry-After, Server-Timing, Sunset, traceresponse, WWW-Authenticate, \
     X-Request-Id, X-Subject-Token";
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
/// How long a browser may remember a preflight's answer, in seconds.
const MAX_AGE: &str = "600";

/// An origin, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Any,
    Exact(String),
    /// What stands before the host (`https://`, or nothing for any), and `.example.org`.
    Under(String, String),
}

/// The origins that may call.
#[derive(Debug, Clone, Default)]
pub struct Cors(Vec<Pattern>);

impl Cors {
    /// Reads origins: `https://app.example.org`, `*.example.org`,
    /// `https://*.example.org`, or `*` for all (then without credentials).
    ///
    /// # Errors
    /// Names the one that is none.
    pub fn new<'a>(origins: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        origins.into_iter().map(pattern).collect::<Result<_, _>>().map(Self)
    }

    /// Whether any origin may call.
    pub(super) fn is_on(&self) -> bool {
        !self.0.is_empty()
    }

    /// What to answer to pages of an origin; none: they may not call.
    fn allowed<'a>(&self, origin: &'a HeaderValue) -> Option<&'a HeaderValue> {
        let text = origin.to_str().ok()?;
        let fits = |it: &Pattern| match it {
            Pattern::Any => true,
            Pattern::Exact(own) => own.eq_ignore_ascii_case(text),
            Pattern::Under(scheme, domain) => {
                let lower = text.to_ascii_lowercase();
                let host = match (scheme.as_str(), lower.split_once("://")) {
                    ("", Some(("http" | "https", host))) => Some(host),
                    ("", _) => None,
                    (scheme, _) => lower.strip_prefix(scheme),
                };
                host.is_some_and(|host| host.len() > domain.len() && host.ends_with(domain.as_str()))
            }
        };
        self.0.iter().any(fits).then_some(origin)
    }

    fn with_credentials(&self, origin: &str) -> bool {
        // A page that only `*` lets in must not act with what the browser keeps.
        let only_any = Self(self.0.iter().filter(|it| **it != Pattern::Any).cloned().collect());
        HeaderValue::from_str(origin).is_ok_and(|it| only_any.allowed(&it).is_some())
    }

    /// Adds what an answer tells to pages of that origin.
    pub(super) fn tell(&self, origin: &HeaderValue, headers: &mut HeaderMap) {
        // Also to those who may not: a shared cache must keep the answers apart.
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        let Some(text) = self.allowed(origin).and_then(|it| it.to_str().ok()) else { return };
        if self.with_credentials(text) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        } else {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(ANSWER_HEADERS));
    }

    /// The answer to a preflight, if that is what it is and the page may call.
    pub(super) fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<HttpResponse> {
        let origin = headers.get(header::ORIGIN)?;
        let asks = headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if *method != Method::OPTIONS || !asks {
            return None;
        }
        self.allowed(origin)?;
        let mut response = HttpResponse::new(StatusCode::NO_CONTENT);
        let own = response.headers_mut();
        self.tell(origin, own);
        own.remove(header::ACCESS_CONTROL_EXPOSE_HEADERS);
        own.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        own.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(REQUEST_HEADERS));
        own.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        Some(response)
    }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    let wrong = || {
        format!("{text}: must be an origin like https://app.example.org, a domain like *.example.org, or *")
    };
    if text == "*" {
        return Ok(Pattern::Any);
    }
    let lower = text.to_ascii_lowercase();
    let (scheme, host) = match lower.split_once("://") {
        Some((scheme @ ("http" | "https"), host)) => (format!("{scheme}://"), host),
        Some(_) => return Err(wrong()),
        None => (String::new(), lower.as_str()),
    };
    let sane =
        |it: &str| !it.is_empty() && it.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b));
    match host.strip_prefix('*') {
        Some(domain) if domain.starts_with('.') && sane(&domain[1..]) => {
            Ok(Pattern::Under(scheme, domain.to_owned()))
        }
        None if !scheme.is_empty() && sane(host) => Ok(Pattern::Exact(lower)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let cors = Cors::new(["https://app.example.org", "*.dev.example.org", "https://*.only.tls"]).unwrap();
        let allowed = |origin: &'static str| cors.allowed(&HeaderValue::from_static(origin)).is_some();
        for good in [
            "https://app.example.org",
            "http://x.dev.example.org",
            "https://x.y.dev.example.org",
            "https://a.only.tls",
        ] {
            assert!(allowed(good), "{good}");
        }
        for bad in [
            "http://app.example.org",
            "https://app.example.org.evil.org",
            "https://app.example.org:8443",
            "https://dev.example.org",
            "https://evildev.example.org",
            "http://a.only.tls",
            "null",
            "ftp://x.dev.example.org",
        ] {
            assert!(!allowed(bad), "{bad}");
        }
        assert!(cors.with_credentials("https://app.example.org"));
        let any = Cors::new(["*"]).unwrap();
        assert!(any.allowed(&HeaderValue::from_static("null")).is_some());
        assert!(!any.with_credentials("https://app.example.org"));
    }

    #[test]
    fn what_is_no_origin() {
        for bad in ["example.org", "https://", "*example.org", "https://a/b", "*.", "ws://x.org", ""] {
            assert!(Cors::new([bad]).is_err(), "{bad}");
        }
    }
}
