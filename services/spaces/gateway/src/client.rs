//! Connections to programs: made, used again, and given up.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use hyper::{Request, Response, body::Incoming, client::conn::http1, http::request::Parts};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    body::{Progress, Upload},
    stats::Stats,
    through::Way,
};

/// The end of a connection that takes requests.
pub(crate) type Sender = http1::SendRequest<Upload>;

/// Bounds the head of an answer, and what is buffered of a body.
const BUFFER: usize = 128 * 1024;

/// Whose connection it is. The space is part of it: a port that passes from one space to another
/// must not hand over a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) sid: Rc<str>,
    pub(crate) addr: SocketAddr,
    /// The path of the proxy that it goes through.
    pub(crate) prefix: Option<Rc<str>>,
}

/// Unused connections of one worker thread.
pub(crate) struct Pool {
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
    keep: Duration,
    size: usize,
    sweeping: Cell<bool>,
}

struct Idle {
    sender: Sender,
    until: Instant,
}

/// Why a program gave no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It could not be reached.
    Connect(io::Error),
    /// It took too long.
    Timeout,
    /// It broke off, or what it sent is not HTTP.
    Broken(hyper::Error),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(e) => write!(f, "connect: {e}"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Broken(e) => write!(f, "broken answer: {e}"),
        }
    }
}

impl Pool {
    pub(crate) fn new(keep: Duration, size: usize) -> Rc<Self> {
        Rc::new(Self { idle: RefCell::default(), keep, size, sweeping: Cell::new(false) })
    }

    fn take(&self, key: &Key) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        let stack = idle.get_mut(key)?;
        let now = Instant::now();
        let mut found = None;
        // The one used last is the one most likely alive.
        while let Some(Idle { sender, until }) = stack.pop() {
            if until > now && sender.is_ready() {
                found = Some(sender);
                break;
            }
        }
        if stack.is_empty() {
            idle.remove(key);
        }
        found
    }

    /// Keeps a connection whose answer has been read to its end.
    pub(crate) fn give_back(self: &Rc<Self>, key: Key, mut sender: Sender) {
        if sender.is_closed() || self.size == 0 {
            return;
        }
        let pool = self.clone();
        // The connection becomes ready only when its own task has seen the end of the answer, and
        // of the request if the program answered early.
        actix_web::rt::spawn(async move {
            if sender.ready().await.is_ok() {
                pool.put(key, sender);
            }
        });
    }

    fn put(self: &Rc<Self>, key: Key, sender: Sender) {
        {
            let mut idle = self.idle.borrow_mut();
            let stack = idle.entry(key).or_default();
            if stack.len() < self.size {
                stack.push(Idle { sender, until: Instant::now() + self.keep });
            }
        }
        if !self.sweeping.replace(true) {
            let pool = Rc::downgrade(self);
            let keep = self.keep;
            actix_web::rt::spawn(async move {
                loop {
                    sleep(keep.max(Duration::from_millis(100))).await;
                    let Some(pool) = pool.upgrade() else { return };
                    if pool.sweep() {
                        pool.sweeping.set(false);
                        return;
                    }
                }
            });
        }
    }

    /// Drops what is too old. True if nothing is left.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut idle = self.idle.borrow_mut();
        idle.retain(|_, stack| {
            stack.retain(|i| i.until > now && !i.sender.is_closed());
            !stack.is_empty()
        });
        idle.is_empty()
    }
}

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) connect: Duration,
    pub(crate) head: Duration,
}

/// A new connection. With `upgrade`, its stream can be taken over after a `101`.
async fn connect(
    addr: SocketAddr,
    way: Option<&Way>,
    limit: Duration,
    upgrade: bool,
) -> Result<Sender, Failure> {
    let late = || Failure::Connect(io::ErrorKind::TimedOut.into());
    if let Some(way) = way {
        let connected = timeout(limit, way.0.connect()).await.map_err(|_| late())?;
        return speak(connected.map_err(Failure::Connect)?, upgrade).await;
    }
    let connected = timeout(limit, TcpStream::connect(addr)).await.map_err(|_| late())?;
    let stream = connected.map_err(Failure::Connect)?;
    // Neither is worth an error: they make the connection better, not right.
    let _ = stream.set_nodelay(true);
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(20));
    let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    speak(stream, upgrade).await
}

async fn speak<S>(stream: S, upgrade: bool) -> Result<Sender, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Failure::Broken)?;
    // Its errors reach whoever waits for an answer.
    if upgrade {
        actix_web::rt::spawn(async move { drop(connection.with_upgrades().await) });
    } else {
        actix_web::rt::spawn(async move { drop(connection.await) });
    }
    Ok(sender)
}

/// Sends a request to a program and waits for the head of the answer.
#[expect(clippy::too_many_arguments, reason = "one call, and each is another thing")]
pub(crate) async fn send(
    pool: &Pool,
    key: &Key,
    way: Option<&Way>,
    limits: Limits,
    stats: &Stats,
    mut parts: Parts,
    mut body: Upload,
    kind: Kind,
) -> Result<(Response<Incoming>, Sender), Failure> {
    let progress = body.progress();
    let pooled = if kind == Kind::Upgrade { None } else { pool.take(key) };
    if let Some(mut sender) = pooled {
        let spare = (kind == Kind::Repeatable).then(|| parts.clone());
        let answer = sender.try_send_request(Request::from_parts(parts, body));
        match head(answer, &progress, limits.head).await? {
            Ok(response) => return Ok((response, sender)),
            // The program closed the connection while the request was on its way. If nothing of
            // it was sent, or if sending it twice does no harm, it goes by a new connection.
            Err(mut error) => {
                (parts, body) = match (error.take_message(), spare) {
                    (Some(request), _) => request.into_parts(),
                    (None, Some(parts)) => (parts, Upload::empty()),
                    (None, None) => return Err(Failure::Broken(error.into_error())),
                }
            }
        }
        Stats::add(&stats.retries, 1);
    }
    let mut sender = connect(key.addr, way, limits.connect, kind == Kind::Upgrade).await?;
    let answer = sender.send_request(Request::from_parts(parts, body));
    let response = head(answer, &progress, limits.head).await?.map_err(Failure::Broken)?;
    Ok((response, sender))
}

/// What kind of request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Idempotent and without a body.
    Repeatable,
    /// To be sent once.
    Once,
    /// A tunnel, which needs a connection to itself.
    Upgrade,
}

/// Waits for the head of an answer, and gives up when the limit has passed since the body last
/// moved: a long upload is not a slow answer.
async fn head<T>(
    answer: impl Future<Output = T>,
    progress: &Progress,
    limit: Duration,
) -> Result<T, Failure> {
    tokio::pin!(answer);
    progress.touch();
    loop {
        let deadline = progress.last() + limit;
        tokio::select! {
            done = &mut answer => return Ok(done),
            () = sleep_until(deadline) => {
                if progress.last() + limit <= Instant::now() {
                    return Err(Failure::Timeout);
                }
            }
        }
    }
}
