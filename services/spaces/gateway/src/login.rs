//! Logging in to open a space in a browser, and out again.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header,
    web::{Bytes, Query},
};
use serde::Deserialize;

use crate::{
    LoginError, LoginRequest, Session, Source, Worker, headers, origin,
    pages::{LoginFailed, Page, answer, request_id, with_request_id},
    path,
};

/// `?next=` of the login page.
#[derive(Deserialize)]
pub(crate) struct Asked {
    #[serde(default)]
    next: String,
}

/// The login form, as it is sent.
#[derive(Deserialize)]
struct Form {
    user: String,
    password: String,
    #[serde(default)]
    domain: String,
    #[serde(default)]
    next: String,
}

/// A form is small.
const LONGEST: usize = 16 * 1024;

/// `GET /login`.
pub(crate) fn page(worker: &Worker, req: &HttpRequest, asked: Option<Query<Asked>>) -> HttpResponse {
    let next = asked.map(|q| q.into_inner().next).filter(|n| path::is_safe_next(n)).unwrap_or_default();
    answer(req, &worker.inner.options, &Page::LoginForm { next: &next })
}

/// `POST /login`.
pub(crate) async fn submit(worker: &Worker, req: HttpRequest, body: Bytes) -> HttpResponse {
    let options = &worker.inner.options;
    if !origin::is_ours(&req, options.trust_forwarded) {
        return answer(&req, options, &Page::CrossSite);
    }
    let form =
        (body.len() <= LONGEST).then(|| Query::<Form>::from_query(std::str::from_utf8(&body).unwrap_or("")));
    let Some(Ok(form)) = form else {
        return answer(&req, options, &Page::BadRequest("form: user and password are needed"));
    };
    let form = form.into_inner();
    let next = if path::is_safe_next(&form.next) { form.next } else { String::new() };
    let login = LoginRequest {
        user: form.user,
        password: form.password,
        domain: Some(form.domain).filter(|d| !d.is_empty()),
        client_ip: origin::client_ip(&req, options.trust_forwarded),
    };
    let failed = match worker.inner.resolver.login(login).await {
        Ok(session) => match cookie(worker, &req, &session) {
            Some(cookie) => {
                let to = if next.is_empty() { options.home.as_str() } else { next.as_str() };
                return with_request_id(&req, options, redirect(to, Some(&cookie)));
            }
            None => {
                let request_id = request_id(&req, options);
                tracing::error!(request_id, "the token of a new session cannot stand in a cookie");
                LoginFailed::Unavailable
            }
        },
        Err(LoginError::Refused) => LoginFailed::Refused,
        Err(LoginError::Throttled { retry_after }) => LoginFailed::Throttled(retry_after),
        Err(LoginError::Unavailable) => LoginFailed::Unavailable,
    };
    answer(&req, options, &Page::Login { next: &next, failed: Some(failed) })
}

/// `POST /logout`. The cookie is sent only below `/ws/`, so that is where it goes on.
pub(crate) async fn logout(worker: &Worker, req: HttpRequest) -> HttpResponse {
    if !origin::is_ours(&req, worker.inner.options.trust_forwarded) {
        return answer(&req, &worker.inner.options, &Page::CrossSite);
    }
    let onward = HttpResponse::TemporaryRedirect()
        .insert_header((header::LOCATION, path::LOGOUT))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .finish();
    with_request_id(&req, &worker.inner.options, onward)
}

/// `POST` to [`path::LOGOUT`].
pub(crate) async fn end_session(worker: &Worker, req: &HttpRequest) -> HttpResponse {
    let options = &worker.inner.options;
    if !origin::is_ours(req, options.trust_forwarded) {
        return answer(req, options, &Page::CrossSite);
    }
    for credential in headers::credentials(req.headers(), &options.cookie_name) {
        if credential.source == Source::Cookie {
            worker.inner.resolver.logout(&credential.token).await;
        }
    }
    let gone = Session { token: String::new(), max_age: Duration::ZERO };
    with_request_id(req, options, redirect("/login", cookie(worker, req, &gone).as_deref()))
}

fn redirect(to: &str, cookie: Option<&str>) -> HttpResponse {
    let mut answer = HttpResponse::SeeOther();
    answer.insert_header((header::LOCATION, to)).insert_header((header::CACHE_CONTROL, "no-store"));
    if let Some(cookie) = cookie {
        answer.insert_header((header::SET_COOKIE, cookie));
    }
    answer.finish()
}

/// The `Set-Cookie` of a session, if its token can stand in one.
fn cookie(worker: &Worker, req: &HttpRequest, session: &Session) -> Option<String> {
    let options = &worker.inner.options;
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b',' | b';' | b'\\');
    if !session.token.bytes().all(plain) {
        return None;
    }
    let https = origin::scheme(req, options.trust_forwarded) == "https";
    let secure = if options.secure_cookie.unwrap_or(https) { "; Secure" } else { "" };
    Some(format!(
        "{}={}; Path=/ws/; Max-Age={}; HttpOnly; SameSite=Lax{secure}",
        options.cookie_name,
        session.token,
        session.max_age.as_secs()
    ))
}
