//! A gateway on a real port, a platform that says what a test tells it, programs and clients that
//! speak over plain sockets.

// Each test file uses its own part of this.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "shared by several test files")]

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_web::{App, HttpServer, dev::ServerHandle};
use futures_util::future::BoxFuture;
use podyard_gateway::{
    Activity, Ask, Gateway, LoginError, LoginRequest, Options, Resolution, Resolver, Route, Session,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// The only good token.
pub const TOKEN: &str = "good-token";

/// What every program is told as its secret.
pub const SECRET: &str = "s3cret-of-the-space";

/// A platform whose answers a test sets.
#[derive(Default)]
pub struct Platform {
    pub routes: Mutex<HashMap<String, Route>>,
    pub logins: Mutex<Vec<LoginRequest>>,
    pub logouts: Mutex<Vec<String>>,
    pub activities: Mutex<Vec<(String, Activity)>>,
    pub asked: AtomicUsize,
}

impl Platform {
    pub fn set(&self, sid: &str, route: Route) {
        self.routes.lock().unwrap().insert(sid.to_owned(), route);
    }

    pub fn open(&self, sid: &str, addr: SocketAddr) {
        self.set(
            sid,
            Route::Open { addr, secret: SECRET.into(), host: None, keep_prefix: false, through: None },
        );
    }
}

impl Resolver for Platform {
    fn resolve<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Resolution> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let used = ask.credentials.iter().position(|c| c.token == TOKEN);
            let route = match used {
                None => Route::Login,
                Some(_) => self.routes.lock().unwrap().get(&ask.sid).cloned().unwrap_or(Route::NotFound),
            };
            Resolution { route, used }
        })
    }

    fn login(&self, login: LoginRequest) -> BoxFuture<'_, Result<Session, LoginError>> {
        Box::pin(async move {
            let answer = match (login.user.as_str(), login.password.as_str()) {
                ("ann", "correct horse") => {
                    Ok(Session { token: TOKEN.into(), max_age: Duration::from_secs(3600) })
                }
                ("busy", _) => Err(LoginError::Throttled { retry_after: Duration::from_secs(17) }),
                _ => Err(LoginError::Refused),
            };
            self.logins.lock().unwrap().push(login);
            answer
        })
    }

    fn logout<'a>(&'a self, token: &'a str) -> BoxFuture<'a, ()> {
        self.logouts.lock().unwrap().push(token.to_owned());
        Box::pin(async {})
    }

    fn activity(&self, sid: &str, activity: Activity) {
        self.activities.lock().unwrap().push((sid.to_owned(), activity));
    }
}

/// A running gateway.
pub struct Server {
    pub addr: SocketAddr,
    pub platform: Arc<Platform>,
    pub gateway: Gateway,
    pub handle: ServerHandle,
}

impl Server {
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        Self::lingering(options, Duration::from_secs(1))
    }

    /// With this `client_disconnect_timeout`.
    pub fn lingering(options: Options, linger: Duration) -> Self {
        let platform = Arc::new(Platform::default());
        let gateway = Gateway::new(platform.clone(), options);
        let routes = gateway.clone();
        let server = HttpServer::new(move || App::new().configure(|cfg| routes.configure(cfg)))
            .workers(1)
            .disable_signals()
            .on_connect(podyard_gateway::connected)
            .client_disconnect_timeout(linger)
            .shutdown_timeout(5)
            .bind(("127.0.0.1", 0))
            .unwrap();
        let addr = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Self { addr, platform, gateway, handle }
    }

    /// Sends one request and reads the answer to the end of the connection.
    pub async fn ask(&self, request: &str) -> Reply {
        exchange(self.addr, request.as_bytes()).await
    }

    /// A `GET` with the good token and these further header lines.
    pub async fn get(&self, path: &str, headers: &str) -> Reply {
        self.ask(&get(self.addr, path, &format!("X-Auth-Token: {TOKEN}\r\n{headers}"))).await
    }

    /// A `GET` as a browser sends it.
    pub async fn browse(&self, path: &str, headers: &str) -> Reply {
        self.ask(&get(self.addr, path, &format!("Accept: text/html\r\n{headers}"))).await
    }
}

pub fn get(addr: SocketAddr, path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{headers}\r\n")
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer has a head");
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<_> = head
            .lines()
            .skip(1)
            .map(|l| l.split_once(':').unwrap())
            .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
            .collect();
        let raw = &bytes[end + 4..];
        let chunked = headers.iter().any(|(n, v)| n == "transfer-encoding" && v == "chunked");
        let body = if chunked { unchunk(raw) } else { raw.to_vec() };
        Self { status, head, headers, body }
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Takes the chunks together; an answer that was cut off panics.
pub fn unchunk(mut raw: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = raw.windows(2).position(|w| w == b"\r\n").expect("a chunk has a length");
        let len = usize::from_str_radix(std::str::from_utf8(&raw[..line]).unwrap(), 16).unwrap();
        raw = &raw[line + 2..];
        if len == 0 {
            return body;
        }
        body.extend_from_slice(&raw[..len]);
        raw = &raw[len + 2..];
    }
}

pub async fn exchange(addr: SocketAddr, request: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut all)).await;
    read.expect("the answer ends").unwrap();
    Reply::parse(&all)
}

/// Reads a head, with the empty line; what came after it is left in `rest`.
pub async fn read_head(stream: &mut TcpStream, rest: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = rest.windows(4).position(|w| w == b"\r\n\r\n") {
            let after = rest.split_off(end + 4);
            let head = std::mem::replace(rest, after);
            return Some(String::from_utf8(head).unwrap());
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => rest.extend_from_slice(&piece[..n]),
        }
    }
}

/// A header's value in a raw head.
pub fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|l| l.split_once(':'));
    lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
}

/// A program: `serve` gets each connection, and how many there were before it.
pub async fn program<F, R>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream, usize) -> R + 'static,
    R: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    actix_web::rt::spawn(async move {
        for n in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            actix_web::rt::spawn(serve(stream, n));
        }
    });
    addr
}

/// A program that answers each request with these bytes, and keeps its connections.
pub async fn canned(answer: impl Into<String>) -> SocketAddr {
    let answer: Arc<str> = answer.into().into();
    program(move |mut stream, _| {
        let answer = answer.clone();
        async move {
            let mut rest = Vec::new();
            while read_head(&mut stream, &mut rest).await.is_some() {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await
}

/// A program that answers with the head it got, as it got it. In its own header: on which of its
/// connections it came.
pub async fn mirror() -> SocketAddr {
    program(|mut stream, n| async move {
        let mut rest = Vec::new();
        while let Some(head) = read_head(&mut stream, &mut rest).await {
            let len: usize = value(&head, "content-length").map_or(0, |v| v.parse().unwrap());
            while rest.len() < len {
                let mut piece = vec![0; 65536];
                let n = stream.read(&mut piece).await.unwrap();
                rest.extend_from_slice(&piece[..n]);
            }
            rest.drain(..len);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nX-Connection: {n}\r\nContent-Length: {}\r\n\r\n{head}",
                head.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

/// Bytes that are not the same everywhere.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut x: u32 = 0x9e37_79b9;
    let mut bytes = Vec::with_capacity(len + 4);
    while bytes.len() < len {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
