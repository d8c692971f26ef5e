//! Media types: JSON, by its plain name or by the API's own with its version.

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderValue};

use crate::{Error, Kind, Result};

/// JSON.
pub(super) const JSON: &str = "application/json";
/// The same, with the version of the API.
pub(super) const V1: &str = "application/vnd.podyard.v1+json";
/// What a client can ask for, for the one who asked for something else. The
/// last three are what lists can be exported and watched as.
const SPOKEN: [&str; 5] = [JSON, V1, "text/csv", "application/x-ndjson", "text/event-stream"];

/// What to answer in, of what the client accepts.
///
/// # Errors
/// 406 when it accepts nothing that is spoken here.
pub(super) fn accepted(req: &HttpRequest) -> Result<&'static str> {
    let Some(value) = req.headers().get(header::ACCEPT) else { return Ok(JSON) };
    // What nearly everybody sends.
    if value == "*/*" || value == JSON {
        return Ok(JSON);
    }
    choose(req.headers().get_all(header::ACCEPT))
}

fn choose<'a>(values: impl Iterator<Item = &'a HeaderValue>) -> Result<&'static str> {
    let mut best: Option<(f32, &'static str)> = None;
    let mut wanted = String::new();
    for range in values.filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|it| it.strip_prefix("q=")?.trim().parse::<f32>().ok()).unwrap_or(1.0);
        let found = match essence.as_str() {
            V1 => Some(V1),
            // Exports and streams have a type of their own; errors are problems anyway.
            "" | "*/*" | "application/*" | "text/*" | "application/problem+json" => Some(JSON),
            other => SPOKEN.contains(&other).then_some(JSON),
        };
        match found {
            Some(found) if quality > 0.0 && best.is_none_or(|(most, _)| quality > most) => {
                best = Some((quality, found));
            }
            Some(_) => {}
            None => wanted = essence,
        }
    }
    best.map(|(_, it)| it).ok_or_else(|| {
        let text = format!("{wanted} is not spoken here; possible: {}", SPOKEN.join(", "));
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
        let of = |text: &'static str| choose([HeaderValue::from_static(text)].iter());
        for json in [
            "application/json; charset=utf-8",
            "text/html, */*;q=0.1",
            "application/vnd.podyard.v1+json;q=0.5, application/json",
            "application/vnd.podyard.v2+json, application/json;q=0.1",
            "text/csv",
            "",
        ] {
            assert_eq!(of(json).unwrap(), JSON, "{json}");
        }
        assert_eq!(of("application/vnd.podyard.v1+json, */*;q=0.5").unwrap(), V1);
        for bad in ["application/vnd.podyard.v2+json", "text/html", "application/json;q=0", "image/*"] {
            assert_eq!(of(bad).unwrap_err().kind(), Kind::NotAcceptable, "{bad}");
        }
    }

    #[test]
    fn bodies() {
        assert!(is_json("application/merge-patch+json") && is_json(V1) && is_json("text/json"));
        assert!(!is_json("text/plain") && !is_json("application/vnd.podyard.v2+json") && !is_json(""));
    }
}
