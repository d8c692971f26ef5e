//! What holds for every request, whoever answers it: bounds on its head, HEAD
//! and OPTIONS, CORS, limits of how often, traces, compression. One layer
//! around all routes; the paths of spaces pass it untouched, since what is
//! said there is between a browser and somebody's program.

use std::time::Instant;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, web};

use super::compress::{self, Coding};
use super::limit::Standing;
use super::trace::Trace;
use super::{App, client_ip, problem, request, request_id};
use crate::{Error, Kind, Result};

/// Most bytes of a path with its parameters.
const URI: usize = 8 * 1024;
/// Most bytes of all headers.
const HEADERS: usize = 32 * 1024;
/// Most headers; actix itself refuses what it cannot count.
const HEADER_COUNT: usize = 64;

fn within(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The layer: `App::new().wrap(from_fn(manners))`.
///
/// # Errors
/// What the routes return as such; none of ours does.
pub async fn manners<B: MessageBody + 'static>(
    mut req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let app = req.app_data::<web::Data<App>>().cloned();
    let Some(app) = app.filter(|_| !within(req.path(), "/ws")) else {
        return Ok(next.call(req).await?.map_into_boxed_body());
    };
    let page = matches!(req.path(), "/login" | "/logout");
    let origin = req.headers().get(header::ORIGIN).filter(|_| app.options.cors.is_on() && !page).cloned();
    let trace = Trace::of(req.headers());
    if let Some(trace) = &trace {
        req.extensions_mut().insert(trace.clone());
    }
    let method = req.method().clone();
    let (mut answer, standing) = match before(&app, &req, origin.as_ref()) {
        Ok((None, standing)) => {
            if method == Method::HEAD {
                // A HEAD is a GET of which only the head is sent, which the connection knows.
                req.head_mut().method = Method::GET;
            }
            (next.call(req).await?.map_into_boxed_body(), standing)
        }
        Ok((Some(response), standing)) => (req.into_response(response), standing),
        Err((error, standing)) => {
            let (http, payload) = req.into_parts();
            request::drain(payload).await;
            let response = problem(&error, &http, &request_id(&http));
            (ServiceResponse::new(http, response), standing)
        }
    };
    if answer.status() == StatusCode::METHOD_NOT_ALLOWED {
        answer = not_allowed(answer, &method);
    }
    if method == Method::HEAD && matches!(answer.response().body().size(), BodySize::Stream) {
        // A stream that nobody reads would never end.
        answer = answer.map_body(|_, _| BoxBody::new(Headless));
    }
    if let Some(origin) = &origin {
        app.options.cors.tell(origin, answer.headers_mut());
    }
    if let Some(standing) = standing {
        standing.tell(answer.headers_mut());
    }
    if let Some(trace) = &trace {
        trace.tell(answer.headers_mut());
    }
    if app.options.compress && compress::is_worth_it(answer.response()) {
        answer = compressed(answer).await;
    }
    Ok(answer)
}

type Before = std::result::Result<(Option<HttpResponse>, Option<Standing>), (Error, Option<Standing>)>;

/// What is decided before anybody else sees the request.
fn before(app: &App, req: &ServiceRequest, origin: Option<&HeaderValue>) -> Before {
    size(req).map_err(|error| (error, None))?;
    if origin.is_some()
        && let Some(response) = app.options.cors.preflight(req.method(), req.headers())
    {
        return Ok((Some(response), None));
    }
    let standing = admit(app, req.request());
    match standing.and_then(|it| it.wait) {
        None => Ok((None, standing)),
        Some(seconds) => {
            let text = format!("too many requests; try again in {seconds} s");
            Err((Error::new(Kind::TooManyRequests, text).retry_after(seconds), standing))
        }
    }
}

fn size(req: &ServiceRequest) -> Result<()> {
    let uri = req.uri().path().len() + req.uri().query().map_or(0, str::len);
    if uri > URI {
        let text = format!("the path and its parameters are longer than {URI} bytes");
        return Err(Error::new(Kind::UriTooLong, text));
    }
    let (mut count, mut bytes) = (0, 0);
    for (name, value) in req.headers() {
        count += 1;
        bytes += name.as_str().len() + value.len();
    }
    if count > HEADER_COUNT || bytes > HEADERS {
        let text = format!("the headers are more than {HEADER_COUNT} or larger than {HEADERS} bytes");
        return Err(Error::new(Kind::HeadersTooLarge, text));
    }
    Ok(())
}

/// Takes the request from its caller's bucket. Whoever watches over the
/// process is not counted.
fn admit(app: &App, req: &HttpRequest) -> Option<Standing> {
    if !app.limits.is_on() || matches!(req.path(), "/healthz" | "/readyz" | "/metrics") {
        return None;
    }
    let now = Instant::now();
    let cred = request::token(req).and_then(|it| app.core.authenticate(it));
    match cred {
        Some(cred) => app.limits.users.as_ref().map(|it| it.take(&cred.user_id, now)),
        None => {
            let address = client_ip(req, app.options.trust_forwarded);
            app.limits.strangers.as_ref().map(|it| it.take(&address, now))
        }
    }
}

/// `Allow`, with what goes wherever anything goes.
pub(super) fn allow<'a>(methods: impl Iterator<Item = &'a str>) -> String {
    let mut all: Vec<&str> = methods.collect();
    if let Some(get) = all.iter().position(|it| *it == "GET")
        && !all.contains(&"HEAD")
    {
        all.insert(get + 1, "HEAD");
    }
    all.push("OPTIONS");
    all.join(", ")
}

/// Routes of their own know which methods they have; that is said as all of
/// ours say it.
fn not_allowed(answer: ServiceResponse<BoxBody>, method: &Method) -> ServiceResponse<BoxBody> {
    let told = answer.headers().get(header::CONTENT_TYPE).is_some();
    let methods = answer.headers().get(header::ALLOW).and_then(|it| it.to_str().ok());
    let (Some(methods), false) = (methods, told) else { return answer };
    let allow = allow(methods.split(',').map(str::trim).filter(|it| !it.is_empty()));
    let req = answer.request();
    let response = if *method == Method::OPTIONS {
        options(&allow, &request_id(req))
    } else {
        problem(&method_not_allowed(method, &allow), req, &request_id(req))
    };
    let (req, _) = answer.into_parts();
    ServiceResponse::new(req, response)
}

pub(super) fn method_not_allowed(method: &Method, allow: &str) -> Error {
    Error::new(Kind::MethodNotAllowed, format!("{method} is not possible here; possible: {allow}"))
}

/// The answer to OPTIONS.
pub(super) fn options(allow: &str, request_id: &str) -> HttpResponse {
    HttpResponse::NoContent()
        .insert_header((header::ALLOW, allow))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header(("X-Request-Id", request_id))
        .finish()
}

async fn compressed(answer: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    let (req, mut response) = answer.into_parts();
    vary(response.headers_mut());
    let accepted = req.headers().get(header::ACCEPT_ENCODING).and_then(|it| it.to_str().ok());
    if let Some(coding) = accepted.and_then(Coding::accepted) {
        response = compress::compressed(response, coding).await;
    }
    ServiceResponse::new(req, response)
}

/// Caches must keep codings apart.
fn vary(headers: &mut HeaderMap) {
    let told = headers
        .get_all(header::VARY)
        .any(|it| it.to_str().is_ok_and(|it| it.to_ascii_lowercase().contains("accept-encoding")));
    if !told {
        headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// The body of a stream's head.
struct Headless;

impl MessageBody for Headless {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<web::Bytes, Self::Error>>> {
        std::task::Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed() {
        assert_eq!(allow(["GET", "POST"].into_iter()), "GET, HEAD, POST, OPTIONS");
        assert_eq!(allow(["POST"].into_iter()), "POST, OPTIONS");
        assert_eq!(allow(["GET", "HEAD"].into_iter()), "GET, HEAD, OPTIONS");
    }

    #[test]
    fn spaces_are_left_alone() {
        assert!(within("/ws", "/ws") && within("/ws/x", "/ws") && !within("/wsx", "/ws"));
    }
}
