//! A session: frames in, frames out, and how it ended.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdin;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::shell::{self, Shell, Terminal};
use super::{Ask, Protocol};
use crate::cluster::Container;

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// How much of an output goes into one frame.
pub(super) const FRAME: usize = 8192;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

struct Out {
    sink: SplitSink<Socket, Message>,
    protocol: Protocol,
}

impl Out {
    async fn frame(&mut self, channel: u8, data: &[u8]) -> Result<(), ()> {
        let message = if self.protocol.base64 {
            Message::text(format!("{channel}{}", STANDARD.encode(data)))
        } else {
            let mut frame = Vec::with_capacity(data.len() + 1);
            frame.push(channel);
            frame.extend_from_slice(data);
            Message::binary(frame)
        };
        self.sink.send(message).await.map_err(|_| ())
    }

    /// The end: how it went, and a close without a reason.
    async fn finish(&mut self, status: &Value) {
        if self.protocol.status {
            let _ = self.frame(STATUS, status.to_string().as_bytes()).await;
        }
        self.close().await;
    }

    async fn close(&mut self) {
        bye(&mut self.sink).await;
    }
}

/// Closes without a reason.
pub(super) async fn bye(sink: &mut SplitSink<Socket, Message>) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = sink.send(Message::Close(Some(frame))).await;
    // The answer to the client's own close waits to be sent.
    let _ = sink.flush().await;
}

pub(crate) async fn run(socket: Socket, protocol: Protocol, ask: Ask, here: Container) {
    let (sink, incoming) = socket.split();
    let mut out = Out { sink, protocol };
    let first = if ask.stdout || ask.tty {
        STDOUT
    } else if ask.stderr {
        STDERR
    } else {
        STATUS
    };
    if out.frame(first, b"").await.is_err() {
        return;
    }
    if ask.attach {
        return attach(out, incoming, &here).await;
    }
    match shell::start(&ask, &here) {
        Ok(shell) => hold(out, incoming, protocol, shell, &ask.command).await,
        Err(why) => {
            let message = format!("Internal error occurred: Internal error occurred: {why}");
            out.finish(&json!({"metadata": {}, "status": "Failure", "message": message,
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]}, "code": 500}))
                .await;
        }
    }
}

/// The output of what already runs, until one side ends.
async fn attach(mut out: Out, mut incoming: SplitStream<Socket>, here: &Container) {
    let mut news = here.log.news();
    let mut seen = here.log.from(0).len();
    loop {
        for line in here.log.from(seen) {
            seen += 1;
            if out.frame(STDOUT, &line.bytes).await.is_err() {
                return;
            }
        }
        if news.borrow_and_update().1 {
            return out.finish(&json!({"metadata": {}, "status": "Success"})).await;
        }
        tokio::select! {
            _ = news.changed() => {}
            message = incoming.next() => match message {
                Some(Ok(Message::Close(_))) => return out.close().await,
                Some(Ok(_)) => {}
                _ => return,
            },
        }
    }
}

/// What the shell wrote.
type Piece = (u8, Vec<u8>);

async fn hold(
    mut out: Out,
    mut incoming: SplitStream<Socket>,
    protocol: Protocol,
    shell: Shell,
    command: &[String],
) {
    let Shell { mut child, terminal } = shell;
    let terminal = terminal.map(Arc::new);
    let (pieces, mut written) = mpsc::channel::<Piece>(1);
    let mut pumps = Vec::new();
    if let Some(terminal) = &terminal {
        pumps.push(tokio::spawn(pump_terminal(terminal.clone(), pieces.clone())));
    }
    if let Some(from) = child.stdout.take() {
        pumps.push(tokio::spawn(pump(from, STDOUT, pieces.clone())));
    }
    if let Some(from) = child.stderr.take() {
        pumps.push(tokio::spawn(pump(from, STDERR, pieces.clone())));
    }
    drop(pieces);
    let stdin = child.stdin.take();
    let (ended, mut end) = oneshot::channel();
    // Nobody's going away ends it: what was started goes on until the container ends.
    tokio::spawn(async move {
        let status = child.wait().await;
        for mut pump in pumps {
            // A child of its own may keep a pipe open.
            if tokio::time::timeout(Duration::from_millis(300), &mut pump).await.is_err() {
                pump.abort();
            }
        }
        let _ = ended.send(status.map_or(137, shell::code));
    });
    let at_terminal = terminal.is_some();
    let (typed, input) = mpsc::channel::<Input>(16);
    tokio::spawn(feed(stdin, terminal, input));
    let mut code = None;
    let mut open = true;
    let mut sizes = Sizes::Read;
    loop {
        tokio::select! {
            piece = written.recv(), if open => match piece {
                Some((channel, data)) => {
                    if out.frame(channel, &data).await.is_err() {
                        return;
                    }
                }
                None => open = false,
            },
            status = &mut end, if code.is_none() => code = Some(status.unwrap_or(137)),
            message = incoming.next(), if sizes != Sizes::Blocked => match message {
                Some(Ok(Message::Close(_))) => return out.close().await,
                Some(Ok(message)) => match read(message, protocol) {
                    Some(Input::Resize(size)) if at_terminal => match (sizes, size) {
                        (Sizes::Read, Ok(Some((columns, rows)))) => {
                            let _ = typed.send(Input::Size(columns, rows)).await;
                        }
                        (Sizes::Read, Ok(None)) => {}
                        (Sizes::Read, Err(())) => sizes = Sizes::Unread,
                        _ => sizes = Sizes::Blocked,
                    },
                    // What comes after the end of its input is nobody's.
                    Some(input) => drop(typed.send(input).await),
                    None => {}
                },
                _ => return,
            },
        }
        if let Some(code) = code
            && !open
        {
            return out.finish(&status(code, command, protocol)).await;
        }
    }
}

fn status(code: i32, command: &[String], protocol: Protocol) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    let how = match protocol.closes {
        true => format!("command terminated with exit code {code}"),
        false => format!("error executing command [{}], exit code {code}", command.join(" ")),
    };
    let message = format!("command terminated with non-zero exit code: {how}");
    json!({"metadata": {}, "status": "Failure", "message": message, "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})
}

enum Input {
    Bytes(Vec<u8>),
    End,
    /// A frame of the channel of sizes: one that is none, or is nothing, does no harm.
    Resize(Result<Option<(u16, u16)>, ()>),
    Size(u16, u16),
}

/// Who reads the channel of sizes: a text that is no size ends its reader, and the
/// next one then waits for ever to be read, with all that comes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sizes {
    Read,
    Unread,
    Blocked,
}

fn read(message: Message, protocol: Protocol) -> Option<Input> {
    let bytes = match message {
        Message::Binary(bytes) => bytes.to_vec(),
        Message::Text(text) if protocol.base64 => {
            let (channel, data) = text.split_at_checked(1)?;
            let mut bytes = vec![channel.parse().ok()?];
            bytes.extend(STANDARD.decode(data).ok()?);
            bytes
        }
        Message::Text(text) => text.as_bytes().to_vec(),
        _ => return None,
    };
    let (channel, data) = bytes.split_first()?;
    match *channel {
        STDIN => Some(Input::Bytes(data.to_vec())),
        CLOSE if protocol.closes && data.first() == Some(&STDIN) => Some(Input::End),
        RESIZE => Some(Input::Resize(size(data))),
        _ => None,
    }
}

/// Columns and rows; none if there are none of either.
fn size(of: &[u8]) -> Result<Option<(u16, u16)>, ()> {
    let size: serde_json::Map<String, Value> = serde_json::from_slice(of).map_err(|_| ())?;
    let part = |upper: &str, lower: &str| match size.get(upper).or_else(|| size.get(lower)) {
        Some(value) => value.as_u64().and_then(|it| u16::try_from(it).ok()).ok_or(()),
        None => Ok(0),
    };
    let (columns, rows) = (part("Width", "width")?, part("Height", "height")?);
    Ok((columns > 0 && rows > 0).then_some((columns, rows)))
}

/// Gives the shell what was typed. The input stays open when the client goes.
async fn feed(stdin: Option<ChildStdin>, terminal: Option<Arc<Terminal>>, mut from: mpsc::Receiver<Input>) {
    let mut stdin = stdin;
    while let Some(input) = from.recv().await {
        match input {
            Input::Bytes(bytes) => {
                if let Some(terminal) = &terminal {
                    let _ = terminal.write(&bytes).await;
                } else if let Some(stdin) = &mut stdin {
                    let _ = stdin.write_all(&bytes).await;
                }
            }
            // A terminal knows no end of its input.
            Input::End if terminal.is_none() => stdin = None,
            Input::End | Input::Resize(_) => {}
            Input::Size(columns, rows) => {
                if let Some(terminal) = &terminal {
                    terminal.resize(columns, rows);
                }
            }
        }
    }
    // Held until the other end has gone.
    if let Some(stdin) = stdin {
        let mut wait = stdin;
        while wait.write(&[]).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if closed(&wait) {
                return;
            }
        }
    }
}

/// Whether nobody reads a pipe any more.
fn closed(pipe: &ChildStdin) -> bool {
    use std::os::fd::AsFd;
    let fd = pipe.as_fd();
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::empty())];
    let _ = rustix::event::poll(&mut polled, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled[0].revents().contains(rustix::event::PollFlags::ERR)
}

/// Reads to the end, whether anybody listens or not.
async fn pump(mut from: impl AsyncRead + Unpin, channel: u8, to: mpsc::Sender<Piece>) {
    let mut buffer = vec![0; FRAME];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let _ = to.send((channel, buffer[..count].to_vec())).await;
    }
}

async fn pump_terminal(from: Arc<Terminal>, to: mpsc::Sender<Piece>) {
    let mut buffer = vec![0; FRAME];
    loop {
        let count = from.read(&mut buffer).await;
        if count == 0 {
            return;
        }
        let _ = to.send((STDOUT, buffer[..count].to_vec())).await;
    }
}
