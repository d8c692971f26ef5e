//! Media types: JSON, by its plain name or by the API's own with its version.

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderValue};

use crate::{Error, Kind, Result};

/// JSON.
pub(super) const JSON: &str = "application/json";
/// The same, with the version of the API.
pub(super) const V1: &str = "application/vnd.podyard.v1+json";
/// What lists can be had as besides, and the words of `export=` for it.
const EXPORTS: [(&str, &str); 2] = [("text/csv", "csv"), ("application/x-ndjson", "ndjson")];

/// What to answer in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Media {
    /// JSON, by this name.
    Json(&'static str),
    /// An export, in the words of `export=`.
    Export(&'static str),
}

/// What to answer in, of what the client accepts; a `list` can be exported.
///
/// # Errors
/// 406 when it accepts nothing that it can be had as.
pub(super) fn accepted(req: &HttpRequest, list: bool) -> Result<Media> {
    let Some(value) = req.headers().get(header::ACCEPT) else { return Ok(Media::Json(JSON)) };
    // What nearly everybody sends.
    if value == "*/*" || value == JSON {
        return Ok(Media::Json(JSON));
    }
    choose(req.headers().get_all(header::ACCEPT), list)
}

/// How well a range names a type: not at all, or 1 (all types) to 3 (itself).
fn specificity(range: &str, name: &str) -> Option<u8> {
    match range {
        // Errors are problems anyway, and who asks for a stream has said so in the path.
        "application/problem+json" | "text/event-stream" if name == JSON => Some(1),
        "" | "*/*" => Some(1),
        range if range == name => Some(3),
        range => range.strip_suffix("/*").is_some_and(|it| name.split('/').next() == Some(it)).then_some(2),
    }
}

fn choose<'a>(values: impl Iterator<Item = &'a HeaderValue>, list: bool) -> Result<Media> {
    let mut ranges = Vec::new();
    for range in values.filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = |it: &str| it.strip_prefix("q=").or(it.strip_prefix("Q="))?.trim().parse::<f32>().ok();
        ranges.push((essence, parts.find_map(quality).unwrap_or(1.0)));
    }
    let exports = EXPORTS.iter().filter(|_| list).map(|(name, word)| (*name, Media::Export(word)));
    let json = [JSON, V1].into_iter().map(|name| (name, Media::Json(name)));
    // Of each type the range counts that names it best; of types that are
    // wanted alike the one that was named best, then first.
    let mut best: Option<((f32, u8), usize, Media)> = None;
    let mut names = Vec::new();
    for (name, media) in json.chain(exports) {
        names.push(name);
        let found = ranges.iter().enumerate().filter_map(|(at, (range, quality))| {
            Some((specificity(range, name)?, std::cmp::Reverse(at), *quality))
        });
        let Some((how, at, quality)) = found.max_by_key(|(how, at, _)| (*how, *at)) else { continue };
        let better = best
            .is_none_or(|(most, first, _)| (quality, how) > most || ((quality, how) == most && at.0 < first));
        if quality > 0.0 && better {
            best = Some(((quality, how), at.0, media));
        }
    }
    best.map(|(_, _, it)| it).ok_or_else(|| {
        let wanted: Vec<_> = ranges.into_iter().map(|(range, _)| range).collect();
        let text = format!("{} is not spoken here; possible: {}", wanted.join(", "), names.join(", "));
        Error::new(Kind::NotAcceptable, text).blame("Accept")
    })
}

/// Whether a body's media type is JSON, also by the name that `curl -d` gives
/// everything; of the API's own only versions that are spoken.
pub(super) fn is_json(essence: &str) -> bool {
    let other_version = essence.starts_with("application/vnd.podyard.") && essence != V1;
    let json = essence == JSON
        || essence.ends_with("+json")
        || essence == "application/x-www-form-urlencoded"
        || essence == "text/json";
    json && !other_version
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_what_is_accepted() {
        let of = |text: &'static str, list| choose([HeaderValue::from_static(text)].iter(), list);
        for json in [
            "application/json; charset=utf-8",
            "text/html, */*;q=0.1",
            "application/vnd.podyard.v1+json;q=0.5, application/json",
            "application/vnd.podyard.v2+json, application/json;q=0.1",
            "text/csv;q=0, */*",
            "text/csv;q=0.5, application/json",
            "application/json, text/csv",
            "",
        ] {
            assert_eq!(of(json, false).unwrap(), Media::Json(JSON), "{json}");
            assert_eq!(of(json, true).unwrap(), Media::Json(JSON), "{json}");
        }
        for v1 in ["application/vnd.podyard.v1+json, */*;q=0.5", "application/json;q=0, application/*"] {
            assert_eq!(of(v1, false).unwrap(), Media::Json(V1), "{v1}");
        }
        for csv in
            ["text/csv", "text/csv, application/json", "text/csv, */*", "text/*", "*/*;q=0.1, text/csv"]
        {
            assert_eq!(of(csv, true).unwrap(), Media::Export("csv"), "{csv}");
        }
        let ndjson = "text/csv;q=0, application/x-ndjson;q=0.2, application/json;q=0.1";
        assert_eq!(of(ndjson, true).unwrap(), Media::Export("ndjson"));
        for bad in ["application/vnd.podyard.v2+json", "text/html", "*/*;q=0", "image/*"] {
            assert_eq!(of(bad, true).unwrap_err().kind(), Kind::NotAcceptable, "{bad}");
        }
        for bad in ["application/json;q=0", "text/csv", "application/x-ndjson, text/*"] {
            assert_eq!(of(bad, false).unwrap_err().kind(), Kind::NotAcceptable, "{bad}");
        }
    }

    #[test]
    fn bodies() {
        assert!(is_json("application/merge-patch+json") && is_json(V1) && is_json("text/json"));
        assert!(!is_json("text/plain") && !is_json("application/vnd.podyard.v2+json") && !is_json(""));
    }
}
