//! One terminal, from its opening to the record of its end.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::maybe_done;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use podyard::i18n::{self, Lang};
use podyard::{Ctx, Kind, Result};
use podyard_driver::{Terminal, TerminalEnd, TerminalInput, TerminalSize};
use podyard_spaces::{Closed, Space, note_closed, open_terminal, terminal_space};
use socket2::Socket;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::protocol::{self, FromServer};
use crate::{Inner, Place};

/// Most bytes of a frame from a client. A paste is cut into more.
const FRAME: usize = 64 * 1024;
/// Frames that may wait for the client, beside what the pipe holds.
const FRAMES: usize = 2;
/// How long a client has to take the last frames and to say goodbye.
const LAST: Duration = Duration::from_secs(3);
/// How long the connection has to close of itself after that.
const HANG_UP: Duration = Duration::from_secs(1);
/// How often a record is tried to be written that the database did not take.
const TRIES: u32 = 5;

type Socketed = WebSocketStream<DuplexStream>;

/// One terminal that is to be.
pub(crate) struct Opening {
    pub(crate) inner: Arc<Inner>,
    pub(crate) ctx: Ctx,
    pub(crate) space: Space,
    /// Its own id, in the log and in the records.
    pub(crate) id: String,
    pub(crate) token: String,
    /// The language of what the client is told.
    pub(crate) lang: Lang,
    pub(crate) seat: Place,
    /// Dropped by the other side: the connection is gone.
    pub(crate) gone: oneshot::Receiver<()>,
    /// The connection, to end it where the client does not.
    pub(crate) socket: Option<Socket>,
}

impl Opening {
    /// Opens it, and notes that down.
    pub(crate) async fn open(self, size: TerminalSize) -> Result<Session> {
        let terminal = open_terminal(&self.ctx, &self.space, &self.id, size).await?;
        Ok(Session { opening: self, terminal })
    }
}

/// One terminal.
pub(crate) struct Session {
    opening: Opening,
    terminal: Terminal,
}

/// Why it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The shell has ended, or the space.
    Shell,
    /// The client has closed it, or is gone.
    Client,
    /// The client answers no pings.
    Silent,
    /// The client does not speak the protocol.
    Odd,
    /// The client sent a frame of more than is taken.
    Large,
    /// Nothing has moved for too long.
    Idle,
    /// The token has expired or was revoked.
    Token,
    /// The space is not theirs any more, or they see it no more.
    Right,
    /// The server ends.
    Stopping,
}

impl Over {
    /// One word for the record.
    fn word(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Client => "client",
            Self::Silent => "silent",
            Self::Odd => "protocol",
            Self::Large => "large",
            Self::Idle => "idle",
            Self::Token => "token",
            Self::Right => "right",
            Self::Stopping => "stopping",
        }
    }

    /// What the client is told, but of the shell's end.
    fn goodbye(self, lang: Lang) -> Option<(CloseCode, FromServer)> {
        let (code, class, message) = match self {
            Self::Shell | Self::Client => return None,
            Self::Silent => (CloseCode::Policy, "TerminalSilentError", "no ping was answered"),
            Self::Odd => (CloseCode::Protocol, "TerminalProtocolError", "what was sent is not this protocol"),
            Self::Large => (CloseCode::Size, "TerminalFrameError", "a frame has more than 64 KiB"),
            Self::Idle => (CloseCode::Policy, "TerminalIdleError", "nothing has moved for too long"),
            Self::Token => (CloseCode::Policy, "UnauthorizedError", "the token is not valid any more"),
            Self::Right => {
                (CloseCode::Policy, "ForbiddenError", "a terminal in this space is not allowed any more")
            }
            Self::Stopping => (CloseCode::Away, "ServiceUnavailableError", "the server ends"),
        };
        Some((code, FromServer::error(class, i18n::text(lang, message))))
    }
}

/// What the parts of a session tell each other.
struct Moved {
    begin: Instant,
    /// When bytes last moved, either way, in milliseconds since the beginning.
    last: AtomicU64,
    /// Since when a ping waits for anything from the client; 0: none does.
    asked: AtomicU64,
    /// What the client sent waits for the shell, so that nothing more is heard of it.
    held: AtomicBool,
    /// The client does not take what is there for it: a ping waits behind that.
    stuck: AtomicBool,
    typed: AtomicU64,
    shown: AtomicU64,
}

impl Moved {
    fn new() -> Self {
        let (last, asked, typed, shown) = <(AtomicU64, AtomicU64, AtomicU64, AtomicU64)>::default();
        let (held, stuck) = <(AtomicBool, AtomicBool)>::default();
        Self { begin: Instant::now(), last, asked, held, stuck, typed, shown }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn moved(&self) {
        self.last.store(self.now(), Relaxed);
    }

    /// When it is idle for too long, as things are.
    fn idle_at(&self, idle: Duration) -> Instant {
        self.begin + Duration::from_millis(self.last.load(Relaxed)) + idle
    }

    fn heard(&self) {
        self.asked.store(0, Relaxed);
    }

    /// A ping is on its way to the client.
    fn ask(&self) {
        // A second question does not make the first one younger.
        let _ = self.asked.compare_exchange(0, self.now().max(1), Relaxed, Relaxed);
    }

    fn is_silent(&self, most: Duration) -> bool {
        let asked = self.asked.load(Relaxed);
        let waits = asked > 0 && !self.held.load(Relaxed) && !self.stuck.load(Relaxed);
        waits && Duration::from_millis(self.now().saturating_sub(asked)) >= most
    }
}

impl Session {
    pub(crate) async fn run(self, pipe: DuplexStream) {
        let Opening { inner, ctx, space: row, id, token, lang, seat, gone, socket: connection } =
            self.opening;
        let Terminal { input, mut output, end } = self.terminal;
        let task = inner.stats.task();
        let (user, space) = (ctx.cred().user_name.clone(), row.id.clone());
        tracing::info!(request_id = ctx.request_id(), terminal = id, user, space, "terminal opened");
        let config = WebSocketConfig::default()
            .read_buffer_size(4096)
            .write_buffer_size(0)
            .max_write_buffer_size(4 * FRAME)
            .max_message_size(Some(FRAME))
            .max_frame_size(Some(FRAME));
        let socket = WebSocketStream::from_raw_socket(pipe, Role::Server, Some(config)).await;
        let (sink, mut stream) = socket.split();
        let moved = Moved::new();
        let (send, frames) = mpsc::channel(FRAMES);
        // It may be over before it is waited for again.
        let mut writer = std::pin::pin!(maybe_done(write(sink, frames, &moved)));
        let over = tokio::select! {
            biased;
            over = down(&mut output, &send, &moved, &inner) => over,
            over = up(&input, &mut stream, &send, &moved, &inner, lang) => over,
            over = watch(&inner, &ctx, &row, &token, &send, &moved) => over,
            () = seat.seat.stopping() => Over::Stopping,
            () = &mut writer => Over::Client,
        };
        // Only a shell that is over can say how; the others are ended by this.
        drop((input, output));
        let end = if over == Over::Shell { Some(ended(end).await) } else { None };
        let last = async {
            tokio::join!(say(over, end.as_ref(), send, lang), &mut writer);
            // The client's goodbye, or the answer to it.
            while let Some(Ok(_)) = stream.next().await {}
        };
        // One that does not take it is hung up on.
        let _ = timeout(LAST, last).await;
        let (typed, shown) = (moved.typed.load(Relaxed), moved.shown.load(Relaxed));
        let lasted = moved.begin.elapsed();
        let closed = Closed { terminal: id.clone(), lasted, end, why: over.word(), typed, shown };
        tracing::info!(
            request_id = ctx.request_id(),
            terminal = id,
            user,
            space,
            why = over.word(),
            code = closed.end.as_ref().and_then(|it| it.code),
            seconds = lasted.as_secs_f64(),
            typed,
            shown,
            "terminal closed"
        );
        let noted = async {
            record(&ctx, row, closed).await;
            drop(seat);
        };
        tokio::join!(noted, hang_up(gone, connection));
        drop(task);
    }
}

/// How the shell ended.
async fn ended(end: oneshot::Receiver<TerminalEnd>) -> TerminalEnd {
    let unknown = || TerminalEnd { code: None, reason: "how the shell ended is not known".into() };
    match timeout(LAST, end).await {
        Ok(Ok(end)) => end,
        _ => unknown(),
    }
}

/// From the shell to the client, no faster than the client takes it.
async fn down(
    output: &mut mpsc::Receiver<Bytes>,
    send: &mpsc::Sender<Message>,
    moved: &Moved,
    inner: &Inner,
) -> Over {
    while let Some(bytes) = output.recv().await {
        let count = bytes.len() as u64;
        if send.send(Message::Binary(bytes)).await.is_err() {
            return Over::Client;
        }
        moved.moved();
        moved.shown.fetch_add(count, Relaxed);
        inner.stats.shown.fetch_add(count, Relaxed);
    }
    Over::Shell
}

/// From the client to the shell, no faster than the shell takes it.
async fn up(
    input: &mpsc::Sender<TerminalInput>,
    stream: &mut SplitStream<Socketed>,
    send: &mpsc::Sender<Message>,
    moved: &Moved,
    inner: &Inner,
    lang: Lang,
) -> Over {
    while let Some(message) = stream.next().await {
        moved.heard();
        let it = match message {
            Ok(Message::Binary(bytes)) if bytes.is_empty() => continue,
            Ok(Message::Binary(bytes)) => {
                let count = bytes.len() as u64;
                moved.typed.fetch_add(count, Relaxed);
                inner.stats.typed.fetch_add(count, Relaxed);
                TerminalInput::Data(bytes)
            }
            Ok(Message::Text(text)) => match protocol::read(&text) {
                Ok(size) => TerminalInput::Resize(size),
                Err(error) => {
                    let error = FromServer::error("TerminalControlError", i18n::text(lang, &error));
                    // Who does not read what is wrong is not listened to either.
                    if send.send(Message::text(error.text())).await.is_err() {
                        return Over::Client;
                    }
                    continue;
                }
            },
            // Pings are answered by the library.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
            Ok(Message::Close(_)) => return Over::Client,
            Err(WsError::Io(_) | WsError::ConnectionClosed | WsError::AlreadyClosed) => return Over::Client,
            Err(WsError::Capacity(_)) => return Over::Large,
            Err(error) => {
                tracing::debug!(%error, "not the protocol of terminals");
                let broken_off = matches!(
                    error,
                    WsError::Protocol(
                        tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake
                    )
                );
                return if broken_off { Over::Client } else { Over::Odd };
            }
        };
        moved.held.store(true, Relaxed);
        if input.send(it).await.is_err() {
            // It is over; what it wrote and how it ended comes the other way.
            return std::future::pending().await;
        }
        moved.held.store(false, Relaxed);
        moved.moved();
    }
    Over::Client
}

/// Writes frames until there are no more.
async fn write(mut sink: SplitSink<Socketed, Message>, mut frames: mpsc::Receiver<Message>, moved: &Moved) {
    while let Some(frame) = frames.recv().await {
        let asks = frame.is_ping();
        moved.stuck.store(true, Relaxed);
        if sink.send(frame).await.is_err() {
            return;
        }
        moved.stuck.store(false, Relaxed);
        if asks {
            moved.ask();
        }
    }
}

/// Asks after the client and looks whether it may go on.
async fn watch(
    inner: &Inner,
    ctx: &Ctx,
    space: &Space,
    token: &str,
    send: &mpsc::Sender<Message>,
    moved: &Moved,
) -> Over {
    let mut ping = interval(inner.options.ping);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = sleep_until(moved.idle_at(inner.options.idle)) => {
                if Instant::now() >= moved.idle_at(inner.options.idle) {
                    return Over::Idle;
                }
            }
            _ = ping.tick() => {
                if let Some(over) = may_not(inner, ctx, space, token).await {
                    return over;
                }
                if moved.is_silent(inner.options.ping * 3) {
                    return Over::Silent;
                }
                // If there is no room, the client has something to take anyway.
                let _ = send.try_send(Message::Ping(Bytes::new()));
            }
        }
    }
}

/// Why whoever has the terminal may have it no longer: who may today is judged
/// anew, with what the token says today.
async fn may_not(inner: &Inner, ctx: &Ctx, space: &Space, token: &str) -> Option<Over> {
    let Some(cred) = ctx.core().authenticate(token) else { return Some(Over::Token) };
    let whose = inner.options.rights.of(&cred);
    let ctx = Ctx::new(ctx.core().clone(), cred, ctx.request_id());
    let error = terminal_space(&ctx, &space.id, whose).await.err()?;
    // One that stops is ended by its driver, and a database that does not answer throws nobody out.
    matches!(error.kind(), Kind::NotFound | Kind::Forbidden).then_some(Over::Right)
}

/// Tells the client why it is over, unless that is by itself.
async fn say(over: Over, end: Option<&TerminalEnd>, send: mpsc::Sender<Message>, lang: Lang) {
    if over == Over::Client {
        return;
    }
    let (code, text) = match (over.goodbye(lang), end) {
        (Some((code, error)), _) => (code, Some(error)),
        (None, Some(end)) => (CloseCode::Normal, Some(FromServer::exit(end, lang))),
        (None, None) => (CloseCode::Normal, None),
    };
    if let Some(text) = text
        && send.send(Message::text(text.text())).await.is_err()
    {
        return;
    }
    let _ = send.send(Message::Close(Some(CloseFrame { code, reason: "".into() }))).await;
}

/// Writes the record of the end, which a database that is away for a moment must not lose.
async fn record(ctx: &Ctx, space: Space, closed: Closed) {
    let mut pause = Duration::from_millis(200);
    for _ in 1..TRIES {
        match note_closed(ctx, space.clone(), closed.clone()).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(terminal = closed.terminal, %error, "a terminal's end is not noted yet")
            }
        }
        sleep(pause).await;
        pause *= 3;
    }
    if let Err(error) = note_closed(ctx, space, closed.clone()).await {
        tracing::error!(?closed, %error, "a terminal's end could not be noted down");
    }
}

/// Ends the connection where the client does not: actix would wait for it.
async fn hang_up(gone: oneshot::Receiver<()>, socket: Option<Socket>) {
    if timeout(HANG_UP, gone).await.is_err()
        && let Some(socket) = socket
    {
        // It may be closed by now, and so much the better.
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }
}
