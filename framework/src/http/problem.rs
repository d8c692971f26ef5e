//! Errors as `application/problem+json` (RFC 9457) with Cloudpods' `class`,
//! `code` and `details` beside the standard members, for people in the
//! language that they ask for.

use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, HttpResponseBuilder};
use serde_json::{Value, json};

use super::Trace;
use crate::i18n::{self, Lang};
use crate::{Error, FieldError, Kind};

/// The language that a client wants to read.
#[must_use]
pub fn language(req: &HttpRequest) -> Lang {
    let header = req.headers().get(header::ACCEPT_LANGUAGE).and_then(|it| it.to_str().ok());
    header.map_or(Lang::English, Lang::accepted)
}

/// What an error says, in a language: `detail`, and the fields to blame.
fn told(error: &Error, lang: Lang) -> (String, Vec<FieldError>) {
    let mut fields = error.field_errors().to_vec();
    let joined = |fields: &[FieldError]| {
        fields.iter().map(|f| format!("{}: {}", f.field, f.message)).collect::<Vec<_>>().join("; ")
    };
    let whole = !fields.is_empty() && error.message() == joined(&fields);
    for it in &mut fields {
        it.message = i18n::text(lang, &it.message).into_owned();
    }
    let detail = if whole { joined(&fields) } else { i18n::text(lang, error.message()).into_owned() };
    (detail, fields)
}

/// An error as a document. The cause stays here: it is in the log, under the
/// request id that the answer carries.
#[must_use]
pub fn problem_document(error: &Error, req: &HttpRequest, request_id: &str) -> Value {
    let mut body = document(error, req.path(), request_id, language(req));
    if let Some(trace) = req.extensions().get::<Trace>() {
        body["trace_id"] = trace.trace_id.as_str().into();
    }
    body
}

/// The same, of a part of a request.
pub(super) fn document(error: &Error, instance: &str, request_id: &str, lang: Lang) -> Value {
    let kind = error.kind();
    let (detail, fields) = told(error, lang);
    let mut body = json!({
        "type": "about:blank",
        "title": i18n::text(lang, kind.title()),
        "status": kind.status(),
        "detail": detail,
        "instance": instance,
        "class": error.class_name(),
        "code": kind.status(),
        "details": detail,
        "request_id": request_id,
    });
    if !fields.is_empty() {
        body["errors"] = json!(fields);
    }
    body
}

/// The answer that tells an error.
#[must_use]
pub fn problem(error: &Error, req: &HttpRequest, request_id: &str) -> HttpResponse {
    let kind = error.kind();
    let status = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut builder = HttpResponseBuilder::new(status);
    builder.content_type("application/problem+json");
    builder.insert_header(("X-Request-Id", request_id));
    builder.insert_header((header::CACHE_CONTROL, "no-store"));
    builder.insert_header((header::CONTENT_LANGUAGE, language(req).tag()));
    builder.insert_header((header::VARY, "Accept-Language"));
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
    builder.body(problem_document(error, req, request_id).to_string())
}
