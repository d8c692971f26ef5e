//! Who the client says it is talking to, by what, and from which page.

use std::net::IpAddr;

use actix_web::{HttpRequest, http::Method, http::header};

/// A header's text, if there is exactly one such header.
pub(crate) fn header<'a>(req: &'a HttpRequest, name: &str) -> Option<&'a str> {
    let mut all = req.headers().get_all(name);
    let first = all.next()?.to_str().ok()?;
    all.next().is_none().then(|| first.trim())
}

/// The first element of a list that proxies add to.
fn first(list: &str) -> Option<&str> {
    list.split(',').next().map(str::trim).filter(|s| !s.is_empty())
}

/// The host that the client asked, with its port if it named one.
pub(crate) fn host(req: &HttpRequest, trust: bool) -> Option<String> {
    if trust && let Some(host) = header(req, "x-forwarded-host").and_then(first) {
        return Some(host.to_owned());
    }
    header(req, "host")
        .map(str::to_owned)
        .or_else(|| req.uri().authority().map(|a| a.as_str().to_owned()))
        .filter(|h| !h.is_empty())
}

/// `http` or `https`.
pub(crate) fn scheme(req: &HttpRequest, trust: bool) -> &'static str {
    if trust && let Some(proto) = header(req, "x-forwarded-proto").and_then(first) {
        return if proto.eq_ignore_ascii_case("https") { "https" } else { "http" };
    }
    if req.app_config().secure() { "https" } else { "http" }
}

/// Where the request came from.
pub(crate) fn client_ip(req: &HttpRequest, trust: bool) -> Option<IpAddr> {
    if trust
        && let Some(ip) = header(req, "x-forwarded-for").and_then(first)
        && let Ok(ip) = ip.parse()
    {
        return Some(ip);
    }
    req.peer_addr().map(|a| a.ip())
}

/// Is a page of `origin` a page of `host`? The scheme is left out of it: a proxy that ends TLS
/// hides it.
fn is_same(origin: &str, host: &str) -> bool {
    let (authority, port) = if let Some(rest) = origin.strip_prefix("https://") {
        (rest, ":443")
    } else if let Some(rest) = origin.strip_prefix("http://") {
        (rest, ":80")
    } else {
        return false;
    };
    let bare = |s: &str| s.strip_suffix(port).unwrap_or(s).to_ascii_lowercase();
    bare(authority) == bare(host)
}

/// For requests that a cookie speaks for: was it sent by another site's page? A request without
/// any sign is not from a browser of today, and passes.
pub(crate) fn is_foreign(req: &HttpRequest, trust: bool) -> bool {
    // A page that sends no referrer sends `Origin: null` to its own site, too; this header no page
    // can set, and a page without an origin (a sandbox) is `cross-site` in it.
    if header(req, "origin") == Some("null") && header(req, "sec-fetch-site") == Some("same-origin") {
        return false;
    }
    if req.headers().contains_key(header::ORIGIN) {
        let same = header(req, "origin").zip(host(req, trust)).is_some_and(|(o, h)| is_same(o, &h));
        return !same;
    }
    header(req, "sec-fetch-site").is_some_and(|s| s == "cross-site" || s == "same-site")
}

/// For forms of the gateway's own: does every sign say that it was sent by a page of ours, and is
/// there a sign at all?
pub(crate) fn is_ours(req: &HttpRequest, trust: bool) -> bool {
    let site = req.headers().contains_key("sec-fetch-site");
    let origin = req.headers().contains_key(header::ORIGIN);
    (site || origin)
        && (!site || header(req, "sec-fetch-site") == Some("same-origin"))
        && (!origin || !is_foreign(req, trust))
}

/// Does this method change nothing?
pub(crate) fn is_safe_method(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(method)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same() {
        for (origin, host) in [
            ("http://a.example", "a.example"),
            ("https://a.example", "A.example"),
            ("https://a.example", "a.example:443"),
            ("http://a.example:8080", "a.example:8080"),
            ("http://[::1]:80", "[::1]"),
        ] {
            assert!(is_same(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("null", "a.example"),
            ("http://a.example", "a.example:8080"),
            ("http://a.example.evil.example", "a.example"),
            ("https://a.example", "a.example:80"),
            ("vscode-webview://a.example", "a.example"),
            ("", ""),
        ] {
            assert!(!is_same(origin, host), "{origin} {host}");
        }
    }
}
