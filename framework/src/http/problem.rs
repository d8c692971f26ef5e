//! Errors as `application/problem+json` (RFC 9457) with Cloudpods' `class`,
//! `code` and `details` beside the standard members.

use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};

use crate::{Error, Kind};

/// The answer that tells an error. The cause stays here: it is in the log,
/// under the request id that the answer carries.
#[must_use]
pub fn problem(error: &Error, req: &HttpRequest, request_id: &str) -> HttpResponse {
    let kind = error.kind();
    let body = document(error, req.path(), request_id);
    let status = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut builder = HttpResponseBuilder::new(status);
    builder.content_type("application/problem+json");
    builder.insert_header(("X-Request-Id", request_id));
    builder.insert_header((header::CACHE_CONTROL, "no-store"));
    if let Some(seconds) = error.retry_after_seconds() {
        builder.insert_header((header::RETRY_AFTER, seconds));
    }
    match kind {
        Kind::Unauthorized => {
            let origin = super::origin(req);
            builder.insert_header((header::WWW_AUTHENTICATE, format!("Keystone uri=\"{origin}/v3\"")));
        }
        Kind::MethodNotAllowed => {
            if let Some((_, allow)) = error.message().rsplit_once(": ") {
                builder.insert_header((header::ALLOW, allow));
            }
        }
        Kind::UnsupportedMediaType if req.method() == Method::PATCH => {
            builder.insert_header(("Accept-Patch", super::write::PATCHES));
        }
        _ => {}
    }
    builder.body(body.to_string())
}

/// An error as its document.
pub(super) fn document(error: &Error, instance: &str, request_id: &str) -> serde_json::Value {
    let kind = error.kind();
    let mut body = serde_json::json!({
        "type": "about:blank",
        "title": kind.title(),
        "status": kind.status(),
        "detail": error.message(),
        "instance": instance,
        "class": error.class_name(),
        "code": kind.status(),
        "details": error.message(),
        "request_id": request_id,
    });
    if !error.field_errors().is_empty() {
        body["errors"] = serde_json::json!(error.field_errors());
    }
    body
}
