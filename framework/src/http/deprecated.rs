//! What is on its way out says so: since when, until when, and what to use
//! instead (RFC 9745, RFC 8594).

use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use chrono::NaiveDate;

static DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
static SUNSET: HeaderName = HeaderName::from_static("sunset");

/// Something on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Deprecated {
    /// The day since when nobody should begin to use it: `2026-12-31`.
    pub since: &'static str,
    /// The day from which it may be gone.
    pub sunset: Option<&'static str>,
    /// What to use instead: an action of the same type.
    pub successor: Option<&'static str>,
}

/// `/resources/space` goes by the keyword where all else goes by the plural.
pub(super) const BY_KEYWORD: Deprecated =
    Deprecated { since: "2026-11-21", sunset: Some("2027-11-21"), successor: None };

fn moment(day: &str) -> Option<chrono::NaiveDateTime> {
    day.parse::<NaiveDate>().ok()?.and_hms_opt(0, 0, 0)
}

impl Deprecated {
    /// Adds the headers. `instead` is the path of the successor, if there is one.
    pub(super) fn tell(&self, headers: &mut HeaderMap, instead: Option<&str>) {
        let mut set = |name: &HeaderName, value: Option<String>| {
            if let Some(value) = value.and_then(|it| HeaderValue::from_str(&it).ok()) {
                headers.insert(name.clone(), value);
            }
        };
        set(&DEPRECATION, moment(self.since).map(|it| format!("@{}", it.and_utc().timestamp())));
        let gone = self.sunset.and_then(moment);
        set(&SUNSET, gone.map(|it| it.format("%a, %d %b %Y %H:%M:%S GMT").to_string()));
        set(&header::LINK, instead.map(|it| format!("<{it}>; rel=\"successor-version\"")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let mut headers = HeaderMap::new();
        let it = Deprecated { since: "2026-11-21", sunset: Some("2027-11-21"), successor: None };
        it.tell(&mut headers, Some("/a/b"));
        let of = |name: &str| headers.get(name).unwrap().to_str().unwrap();
        assert_eq!(of("deprecation"), "@1795219200");
        assert_eq!(of("sunset"), "Sun, 21 Nov 2027 00:00:00 GMT");
        assert_eq!(of("link"), "</a/b>; rel=\"successor-version\"");
    }
}
