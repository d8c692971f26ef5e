//! The template that needs nothing installed: a web page on which a person
//! browses, edits, uploads and downloads the files of a space.
//!
//! Podyard runs it as `podyard files`, like any other program of a space, behind
//! the gateway. It serves one folder and nothing outside of it: see `place`.

mod answer;
mod api;
mod download;
mod error;
mod place;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::{Method, header};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};

use crate::error::{Error, Result};
use crate::place::Place;

/// The gateway proves itself with this header.
const SECRET_HEADER: &str = "X-Podyard-Space-Secret";

/// Whatever changes something must carry this header. A foreign page cannot
/// send it without being asked for leave first, which it does not get.
const CHANGE_HEADER: &str = "X-Podyard-Files";

/// For the page and the API: nothing but this page's own files runs or loads.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// What every request needs.
struct Files {
    place: Place,
    secret: Option<String>,
    /// Held while a save compares and replaces, so that two tabs cannot both win.
    saving: Mutex<()>,
}

/// Serves the files under `dir` until SIGTERM.
///
/// `base` is the path under which people see it (`/ws/<sid>/`). The gateway
/// takes it off; a request that still has it is understood too. With a
/// `secret`, every request must carry it in `X-Podyard-Space-Secret`.
pub fn run(listen: SocketAddr, dir: &Path, base: &str, secret: Option<String>) -> io::Result<()> {
    let place = Place::open(dir)?;
    let files = web::Data::new(Files { place, secret, saving: Mutex::new(()) });
    let base = match base.trim_matches('/') {
        "" => None,
        base => Some(format!("/{base}")),
    };
    let server = move || {
        App::new()
            .app_data(files.clone())
            .app_data(web::QueryConfig::default().error_handler(|error, _| {
                Error::invalid("path", format!("the query cannot be read: {error}")).into()
            }))
            .app_data(web::JsonConfig::default().error_handler(|error, _| {
                Error::invalid("body", format!("the body cannot be read: {error}")).into()
            }))
            .wrap(from_fn(guard))
            .configure(|app| {
                if let Some(base) = &base {
                    app.service(web::scope(base).configure(routes));
                }
            })
            .configure(routes)
            .default_service(web::to(nothing_here))
    };
    actix_web::rt::System::new().block_on(async move {
        HttpServer::new(server)
            // One person's files: one thread, and a few for the disk.
            .workers(1)
            .worker_max_blocking_threads(8)
            // Longer than the gateway keeps a connection that it does not use.
            .keep_alive(Duration::from_secs(120))
            .shutdown_timeout(3)
            .bind(listen)?
            .run()
            .await
    })
}

fn routes(app: &mut web::ServiceConfig) {
    app.route("", web::get().to(add_slash))
        .route("/", web::get().to(|| page("text/html; charset=utf-8", include_str!("../page/index.html"))))
        .route("/app.js", web::get().to(|| page("text/javascript", include_str!("../page/app.js"))))
        .route("/texts.js", web::get().to(|| page("text/javascript", include_str!("../page/texts.js"))))
        .route("/style.css", web::get().to(|| page("text/css", include_str!("../page/style.css"))))
        .route("/api/list", web::get().to(api::list))
        .route("/api/file", web::get().to(api::read))
        .route("/api/file", web::put().to(api::save))
        .route("/api/folder", web::post().to(api::make_folder))
        .route("/api/move", web::post().to(api::rename))
        .route("/api/entry", web::delete().to(api::delete))
        .route("/api/upload", web::put().to(api::upload))
        .route("/api/download", web::get().to(download::download))
        .route("/api/download", web::head().to(download::download));
}

async fn page(kind: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, kind))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .body(text)
}

/// The page's own links are relative, and need the slash at the end.
async fn add_slash(request: HttpRequest) -> HttpResponse {
    let last = request.path().rsplit('/').next().unwrap_or_default();
    HttpResponse::PermanentRedirect().insert_header((header::LOCATION, format!("{last}/"))).finish()
}

async fn nothing_here() -> Result<HttpResponse> {
    Err(Error::not_found("there is nothing at this address"))
}

/// Lets in whoever has the secret, and puts the headers on every answer that
/// keep a browser from doing more than it should.
async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> std::result::Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let mut response = match refuse(&request) {
        Some(error) => request.error_response(error).map_into_boxed_body(),
        None => next.call(request).await?.map_into_boxed_body(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "SAMEORIGIN"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        if !headers.contains_key(&name) {
            headers.insert(name, header::HeaderValue::from_static(value));
        }
    }
    Ok(response)
}

fn refuse(request: &ServiceRequest) -> Option<Error> {
    let secret = request.app_data::<web::Data<Files>>().and_then(|files| files.secret.as_deref());
    if let Some(secret) = secret {
        let given = request.headers().get(SECRET_HEADER).map_or(&b""[..], |value| value.as_bytes());
        if !same(given, secret.as_bytes()) {
            return Some(Error::forbidden("this is reached through Podyard only"));
        }
    }
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    if !reads && !request.headers().contains_key(CHANGE_HEADER) {
        return Some(Error::forbidden(format!(
            "a request that changes something needs the header {CHANGE_HEADER}"
        )));
    }
    None
}

/// Whether two secrets are the same, in a time that does not tell how much of
/// them is.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differ = a.iter().zip(b).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
    a.len() == b.len() && differ == 0
}
