//! Tunnels: after a `101`, bytes in both directions and no more questions.
//!
//! Down (program to client) is the body of the `101` and runs in the connection's own task, so
//! that the program is read only when the client's socket has room. Up runs in a task of the
//! tunnel, so that a client that does not read can still send.
//!
//! An idle tunnel owns no buffer: memory is taken when there is something to read.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::Shutdown,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use actix_web::{
    body::{BodySize, MessageBody},
    rt::task::JoinHandle,
    web,
};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use podyard_driver::Stream as Way;
use socket2::{SockRef, Socket};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use crate::{
    connection::Connection,
    stats::{OpenTunnel, Stats},
    watch::{Moved, Watched, watch},
};

/// How much is read from a program at once.
const PIECE: usize = 32 * 1024;

/// A program that has closed its side is mostly gone altogether. Only a client that is just
/// sending is worth waiting for.
const QUIET: Duration = Duration::from_millis(250);

/// From the end of a tunnel on: so long may a client still send what nobody reads, so that what it
/// has been sent is not lost in a reset, ...
const LAST_READ: Duration = Duration::from_millis(250);

/// ... and so long it has to take what it has been sent.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// From this fill on, actix stops decoding what a client sends.
const ACTIX_PAUSE: usize = 32 * 1024;

/// A program's side of a tunnel.
pub(crate) struct Program {
    read: Reading,
    write: Writing,
}

/// What a program sends.
enum Reading {
    Direct(OwnedReadHalf),
    Through(ReadHalf<Box<dyn Way>>),
}

/// What a program is sent.
enum Writing {
    Direct(OwnedWriteHalf),
    Through(WriteHalf<Box<dyn Way>>),
}

impl Program {
    /// By a connection to it.
    pub(crate) fn direct(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self { read: Reading::Direct(read), write: Writing::Direct(write) }
    }

    /// By a connection to what passes it on.
    pub(crate) fn through(stream: Box<dyn Way>) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self { read: Reading::Through(read), write: Writing::Through(write) }
    }
}

impl Reading {
    /// The next piece; none at the end.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let half = match self {
            Self::Direct(half) => half,
            Self::Through(half) => {
                // On the stack, since who waits must own no buffer.
                let mut space = [0; PIECE / 2];
                let mut piece = ReadBuf::new(&mut space);
                return Pin::new(half).poll_read(cx, &mut piece).map_ok(|()| {
                    let filled = piece.filled();
                    (!filled.is_empty()).then(|| Bytes::copy_from_slice(filled))
                });
            }
        };
        loop {
            match half.as_ref().poll_read_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {
                    let mut piece = BytesMut::with_capacity(PIECE);
                    match half.try_read_buf(&mut piece) {
                        Ok(0) => return Poll::Ready(Ok(None)),
                        Ok(_) => return Poll::Ready(Ok(Some(piece.freeze()))),
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
            }
        }
    }
}

impl Writing {
    fn half(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        match self {
            Self::Direct(half) => Pin::new(half),
            Self::Through(half) => Pin::new(half),
        }
    }

    /// Ends it so that the program does not take it for a clean end, as far as
    /// that can be done.
    fn abort(self) {
        if let Self::Direct(half) = self {
            let _ = SockRef::from(half.as_ref()).set_linger(Some(Duration::ZERO));
            // Dropped, this half would send the clean end.
            half.forget();
        }
    }
}

/// What the two directions share.
struct Shared {
    read: RefCell<Option<Reading>>,
    moved: Rc<Moved>,
    /// When the client last sent something that the program took.
    last_up: Cell<Instant>,
    /// The program has closed its side.
    down_closed: Notify,
    /// Wakes the down side when the tunnel has been ended.
    waker: RefCell<Option<Waker>>,
    /// The client's connection, if the server has told. It lasts as long as [`Tunnel`] does.
    client: Option<Connection>,
    stats: Arc<Stats>,
}

/// The down side, as the body of the `101`.
pub(crate) struct Tunnel {
    shared: Rc<Shared>,
    /// What came with the `101`.
    first: Option<Bytes>,
    at_end: bool,
    task: JoinHandle<()>,
}

/// Starts a tunnel. `first` is what the program has sent already.
pub(crate) fn open(
    program: Program,
    first: Bytes,
    payload: web::Payload,
    client: Option<Connection>,
    watched: Watched,
) -> Tunnel {
    let Program { read, write } = program;
    let shared = Rc::new(Shared {
        read: RefCell::new(Some(read)),
        moved: watched.moved.clone(),
        last_up: Cell::new(Instant::now()),
        down_closed: Notify::new(),
        waker: RefCell::new(None),
        client,
        stats: watched.inner.stats.clone(),
    });
    let task = actix_web::rt::spawn(run(payload, write, shared.clone(), watched, shared.stats.tunnel()));
    Tunnel { shared, first: Some(first).filter(|b| !b.is_empty()), at_end: false, task }
}

impl Drop for Tunnel {
    // The client's connection is gone, so the program's goes as well.
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl MessageBody for Tunnel {
    type Error = io::Error;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, io::Error>>> {
        let bytes = match self.first.take() {
            Some(bytes) => bytes,
            None => match self.poll_read(cx) {
                Poll::Ready(Some(bytes)) => bytes,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            },
        };
        self.shared.moved.down(bytes.len());
        Stats::add(&self.shared.stats.bytes_down, bytes.len());
        Poll::Ready(Some(Ok(bytes)))
    }
}

impl Tunnel {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut read = self.shared.read.borrow_mut();
        // Taken away: the tunnel has been ended.
        let Some(reading) = read.as_mut() else { return Poll::Ready(None) };
        if !self.at_end {
            match reading.poll_piece(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(Some(piece))) => return Poll::Ready(Some(piece)),
                Poll::Ready(Ok(None) | Err(_)) => {
                    self.at_end = true;
                    // The end of this body would be the end of the client's connection, both ways.
                    // The task decides when, since the client may still be sending.
                    self.shared.down_closed.notify_one();
                }
            }
        }
        *self.shared.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// The up side, and the end of both.
async fn run(payload: web::Payload, write: Writing, shared: Rc<Shared>, watched: Watched, _open: OpenTunnel) {
    let finish = watched.inner.options.finish_timeout;
    let limit = watched.inner.options.tunnel_buffer;
    let sid = watched.ask.sid.clone();
    let mut up = std::pin::pin!(send_up(payload, write, &shared, limit));
    let mut watching = std::pin::pin!(watch(watched));
    let ended = tokio::select! {
        sent = &mut up => match sent {
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => None,
            // The client has finished, or the program takes no more. What it still has to say may
            // come.
            _ => tokio::select! {
                _ = timeout(finish, shared.down_closed.notified()) => None,
                end = &mut watching => Some(end),
            },
        },
        () = shared.down_closed.notified() => {
            let until = Instant::now() + finish;
            loop {
                let quiet = shared.last_up.get().elapsed() >= QUIET;
                if quiet || Instant::now() >= until {
                    break None;
                }
                tokio::select! {
                    _ = &mut up => break None,
                    end = &mut watching => break Some(end),
                    () = sleep(QUIET / 5) => {}
                }
            }
        }
        end = &mut watching => Some(end),
    };
    if let Some(end) = ended {
        tracing::debug!(sid, ?end, "tunnel ended by the gateway");
    }
    shared.read.borrow_mut().take();
    let waker = shared.waker.borrow_mut().take();
    // Not in this task, which ends with the body.
    actix_web::rt::spawn(hang_up(shared.client.as_ref().and_then(Connection::socket), waker));
}

/// Sees to it that the client's connection ends with the tunnel.
///
/// At the end of the body actix sends what it still has, for as long as the client lets it wait,
/// and then reads until a deadline that it counts from a clock of half a second: with a short
/// timeout the deadline can be past when it is set, and then nothing wakes actix any more. So
/// nothing of this is left to actix or to the client.
async fn hang_up(client: Option<Socket>, waker: Option<Waker>) {
    let wake = || {
        if let Some(waker) = &waker {
            waker.wake_by_ref();
        }
    };
    let shut = |how| {
        if let Some(client) = &client {
            // It may be closed by now, and so much the better.
            let _ = client.shutdown(how);
        }
    };
    wake();
    sleep(LAST_READ).await;
    // To actix it is as if the client had closed: it sends the rest and closes as well.
    shut(Shutdown::Read);
    wake();
    sleep(LAST_WRITE.saturating_sub(LAST_READ)).await;
    shut(Shutdown::Both);
    wake();
}

/// Sends what the client sends, and then its end.
///
/// The payload is emptied at once, into a queue, and not when the program has room: an end that
/// actix sees while a payload is full makes it lose what it has not decoded yet. Only a client
/// that is ahead by more than the limit is held back; if it then closes, nobody can know whether
/// something was lost, and the program gets a reset and not a clean end.
async fn send_up(
    mut payload: web::Payload,
    mut write: Writing,
    shared: &Shared,
    limit: usize,
) -> io::Result<()> {
    let mut queue: VecDeque<Bytes> = VecDeque::new();
    let mut queued = 0;
    let mut at_end = false;
    // Whether the payload has been left alone since it was last found empty, and how much has come
    // out of it since then. It can have been full only if that is as much as makes it full.
    let mut held = true;
    let mut since_held = 0;
    let sent = std::future::poll_fn(|cx| {
        loop {
            while !at_end && queued < limit {
                match Pin::new(&mut payload).poll_next(cx) {
                    Poll::Ready(Some(Ok(bytes))) => {
                        queued += bytes.len();
                        since_held += bytes.len();
                        queue.push_back(bytes);
                        if queued >= limit && !held {
                            (held, since_held) = (true, 0);
                        }
                    }
                    // actix reports the end of an upgraded connection as an incomplete body.
                    Poll::Ready(Some(Err(_)) | None) => at_end = true,
                    Poll::Pending => {
                        held = false;
                        break;
                    }
                }
            }
            let Some(front) = queue.front_mut() else {
                // Encrypted, some of it may wait for the socket still.
                match write.half().poll_flush(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
                return if at_end { Poll::Ready(Ok(())) } else { Poll::Pending };
            };
            match write.half().poll_write(cx, front) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    front.advance(n);
                    if front.is_empty() {
                        queue.pop_front();
                    }
                    queued -= n;
                    shared.moved.up(n);
                    shared.last_up.set(Instant::now());
                    Stats::add(&shared.stats.bytes_up, n);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    sent?;
    if held && since_held >= ACTIX_PAUSE {
        write.abort();
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    write.half().shutdown().await
}
