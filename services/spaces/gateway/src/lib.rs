//! The gateway: from `/ws/<sid>/…` to the program of a space.
//!
//! It is a reverse proxy for HTTP/1.1 and WebSocket, and it knows neither the framework nor the
//! database. Whatever it must know of a space and of a caller it asks a [`Resolver`]:
//!
//! ```text
//! browser ── /ws/<sid>/path ──► Gateway ── resolve(sid, credentials) ──► Resolver
//!                                 │   Open      proxy or tunnel to the address
//!                                 │   Starting  a page that waits, 503
//!                                 │   Stopped   a page that says why, 409
//!                                 │   NotFound  404, the same for "not yours"
//!                                 │   Login     a login form, 401
//!                                 ▼
//!                         /path at 127.0.0.1:port
//! ```
//!
//! Bodies are streamed both ways and never collected. The platform's own credentials never reach
//! a program: its cookie and its token headers are taken out before a request is passed on, and a
//! program cannot set them either.
//!
//! # What the server around it should know
//!
//! * Leave `h1_allow_half_closed` at its default (`true`), or a client that has finished sending
//!   loses the rest of the answer.
//! * Give [`connected`] to `HttpServer::on_connect`, or a tunnel's end waits for a client that does
//!   not read.
//! * Leave `client_disconnect_timeout` at 1 s or more: actix counts it from a clock that is up to
//!   half a second late, and a deadline that is past when it is set leaves a connection open.
//! * Do not wrap these routes in a compressing middleware: it would hold back streams.
//! * Call [`Gateway::shut_down`] when the server starts to stop, or open tunnels hold it up until
//!   its own time limit.
//! * Say in [`Options::request_id`] how a request is called, or put a [`RequestId`] into its
//!   extensions: it is then the same in the log, in the problem documents, in the `X-Request-Id` of
//!   the gateway's own answers and in what the program gets.
//! * An upgrade to anything but `websocket` is answered as if it had not been asked for, since
//!   actix reads the bytes after it as the next request.

mod body;
mod client;
mod connection;
mod headers;
mod login;
mod origin;
mod pages;
mod path;
mod proxy;
mod resolver;
mod stats;
mod through;
mod tunnel;
mod watch;

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use actix_web::{HttpRequest, web};

pub use connection::{Client, connected, socket};
pub use resolver::{
    Activity, Ask, Credential, LoginError, LoginRequest, Resolution, Resolver, Route, Session, Source,
};
pub use stats::Stats;

/// What a request is called, in its extensions. The gateway puts it there if nobody else has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(pub String);

/// How the gateway behaves. The defaults are right for a server that browsers reach directly.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of the platform's own cookie.
    pub cookie_name: String,
    /// Further cookies of the platform (the console's, for one): never passed on to a program,
    /// and no program can set them.
    pub platform_cookies: Vec<String>,
    /// Believe `X-Forwarded-For`, `-Host`, `-Proto` and `-Prefix` of a request. Only for a server
    /// that nothing but a trusted proxy can reach.
    pub trust_forwarded: bool,
    /// Whether the cookie is `Secure`. `None`: if the request came by https.
    pub secure_cookie: Option<bool>,
    /// Where the gateway's own pages link back to, and where a login without a `next` goes.
    pub home: String,
    /// How long a connection to a program may take to be made.
    pub connect_timeout: Duration,
    /// How long a program may take from the last byte of the request to the head of its answer.
    pub head_timeout: Duration,
    /// A tunnel or a streamed answer in which nothing has moved for this long is ended.
    pub idle_timeout: Duration,
    /// After one side of a tunnel has closed, the other has this long to finish.
    pub finish_timeout: Duration,
    /// How often the resolver is asked again whether a tunnel or a long answer may go on.
    pub recheck: Duration,
    /// How many bytes a client may be ahead of the program in a tunnel before it is slowed down.
    pub tunnel_buffer: usize,
    /// How long an unused connection to a program is kept. Shorter than Node's 5 s, so that a
    /// request rarely meets a connection that is just being closed.
    pub pool_idle: Duration,
    /// How many unused connections are kept per space and worker thread.
    pub pool_size: usize,
    /// Names a request that has no [`RequestId`]; asked once per request. `None`: by what the
    /// client sent as `X-Request-Id`, if anything.
    pub request_id: Option<fn(&HttpRequest) -> String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cookie_name: "podyard_session".into(),
            platform_cookies: Vec::new(),
            trust_forwarded: false,
            secure_cookie: None,
            home: "/".into(),
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(2 * 3600),
            finish_timeout: Duration::from_secs(30),
            recheck: Duration::from_secs(60),
            tunnel_buffer: 4 * 1024 * 1024,
            pool_idle: Duration::from_secs(4),
            pool_size: 16,
            request_id: None,
        }
    }
}

impl Options {
    /// Is this the name of one of the platform's own cookies?
    pub(crate) fn is_platform_cookie(&self, name: &str) -> bool {
        name == self.cookie_name || self.platform_cookies.iter().any(|c| c == name)
    }
}

/// The gateway. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

/// What all worker threads share.
pub(crate) struct Inner {
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) options: Options,
    pub(crate) stats: Arc<Stats>,
    pub(crate) stopping: tokio::sync::watch::Sender<bool>,
}

/// What one worker thread has: the shared part and its own pool of connections.
pub(crate) struct Worker {
    pub(crate) inner: Arc<Inner>,
    pub(crate) pool: Rc<client::Pool>,
}

impl Gateway {
    /// A gateway that asks `resolver`.
    pub fn new(resolver: Arc<dyn Resolver>, options: Options) -> Self {
        let (stopping, _) = tokio::sync::watch::channel(false);
        Self { inner: Arc::new(Inner { resolver, options, stats: Arc::default(), stopping }) }
    }

    /// Registers `/ws/…`, `/login` and `/logout`. Call it in the `App` factory:
    /// `App::new().configure(|cfg| gateway.configure(cfg))`.
    pub fn configure(&self, cfg: &mut web::ServiceConfig) {
        let worker = Rc::new(Worker {
            inner: self.inner.clone(),
            pool: client::Pool::new(self.inner.options.pool_idle, self.inner.options.pool_size),
        });
        // A scope's default service, not a pattern: actix matches patterns on the decoded path,
        // and the gateway must see it as it was sent.
        let proxy = worker.clone();
        cfg.service(web::scope("/ws").default_service(web::to(move |req, payload| {
            let worker = proxy.clone();
            async move { proxy::serve(&worker, req, payload).await }
        })));
        let (page, form, out) = (worker.clone(), worker.clone(), worker);
        cfg.service(
            web::resource("/login")
                .route(web::get().to(move |req, query| {
                    let worker = page.clone();
                    async move { login::page(&worker, &req, query) }
                }))
                .route(web::post().to(move |req, body| {
                    let worker = form.clone();
                    async move { login::submit(&worker, req, body).await }
                })),
        );
        cfg.service(web::resource("/logout").route(web::post().to(move |req| {
            let worker = out.clone();
            async move { login::logout(&worker, req).await }
        })));
    }

    /// The counters.
    pub fn stats(&self) -> Arc<Stats> {
        self.inner.stats.clone()
    }

    /// Ends all tunnels and event streams, and those that still come. Ordinary answers are left
    /// to finish.
    pub fn shut_down(&self) {
        self.inner.stopping.send_replace(true);
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

/// Registers a gateway whose counters and shutdown nobody needs. See [`Gateway`] for the rest.
pub fn configure(cfg: &mut web::ServiceConfig, resolver: Arc<dyn Resolver>, options: Options) {
    Gateway::new(resolver, options).configure(cfg);
}

/// The address of a program, as it would name itself.
pub(crate) fn own_names(addr: SocketAddr) -> Vec<String> {
    let mut names = vec![addr.to_string()];
    if addr.ip().is_loopback() {
        names.push(format!("localhost:{}", addr.port()));
    }
    // What a program says that listens everywhere and knows no better.
    names.push(format!("0.0.0.0:{}", addr.port()));
    names
}
