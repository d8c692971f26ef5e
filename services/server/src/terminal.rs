//! `podyard terminal <space>`: the websocket of a space's terminal, in one's own.
//!
//! While it runs one's own terminal is raw: every key goes to the shell there.
//! However this ends, the terminal is as it was before.

use std::io::{self, IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::time::Duration;

use actix_web::http::Uri;
use futures_util::{SinkExt as _, StreamExt as _};
use podyard_terminal::protocol::{FromClient, FromServer, LARGEST, NAME, Size};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{interval, timeout};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::config::TerminalArgs;

/// What it returns when there was no shell to tell.
const FAILED: u8 = 255;
/// How long it may take until the terminal is open.
const CONNECT: Duration = Duration::from_secs(60);
/// How often the server is asked whether it is still there, ...
const PING: Duration = Duration::from_secs(15);
/// ... and how long it may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// Ctrl-D: what a shell takes for the end of its input.
const END: &[u8] = &[4];

/// Runs it, and returns what the shell there returned.
pub(crate) fn main(args: &TerminalArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(|e| e.to_string()).and_then(|runtime| {
        let result = runtime.block_on(run(args));
        // The thread that reads the keyboard waits for a key that nobody will press.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(FAILED)),
        Err(text) => {
            eprintln!("podyard: {text}");
            ExitCode::from(FAILED)
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}
type Socket = WebSocketStream<Box<dyn Stream>>;

async fn run(args: &TerminalArgs) -> Result<i32, String> {
    let size = size().unwrap_or(Size { columns: 80, rows: 24 });
    let socket = match timeout(CONNECT, connect(args, size)).await {
        Ok(socket) => socket?,
        Err(_) => return Err(format!("{}: no answer within {} s", args.url, CONNECT.as_secs())),
    };
    let mut signals = Signals::listen().map_err(|e| e.to_string())?;
    let raw = Raw::enter().map_err(|e| format!("this terminal cannot be set: {e}"))?;
    let result = converse(socket, &mut signals).await;
    drop(raw);
    result
}

/// Carries bytes until one side ends. Gives what the shell returned.
async fn converse(socket: Socket, signals: &mut Signals) -> Result<i32, String> {
    let (mut sink, mut stream) = socket.split();
    let (send, mut frames) = mpsc::channel::<Message>(4);
    let writing = async move {
        while let Some(frame) = frames.recv().await {
            if sink.send(frame).await.is_err() {
                break;
            }
        }
        // How it ended comes the other way.
        std::future::pending::<Result<i32, String>>().await
    };
    let typing = async {
        let mut typed = keyboard();
        while let Some(bytes) = typed.recv().await {
            if send.send(Message::binary(bytes)).await.is_err() {
                break;
            }
        }
        std::future::pending::<Result<i32, String>>().await
    };
    let watching = async {
        let mut ping = interval(PING);
        loop {
            let frame = tokio::select! {
                _ = ping.tick() => Message::Ping(Vec::new().into()),
                resized = signals.next() => match resized {
                    Signal::Resized => match size() {
                        Some(size) => Message::text(serde_json::to_string(&FromClient::Resize(size)).unwrap_or_default()),
                        None => continue,
                    },
                    Signal::End(number) => {
                        // Said as politely as it can be in a moment; the rest is the connection's end.
                        let _ = timeout(Duration::from_millis(500), send.send(Message::Close(None))).await;
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        return Ok(128 + number);
                    }
                },
            };
            // What is in front of it says as much.
            let _ = send.try_send(frame);
        }
    };
    let reading = async {
        let mut out = tokio::io::stdout();
        let mut error = None;
        loop {
            let message = match timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(WsError::ConnectionClosed)) | None) => break,
                Ok(Some(Err(e))) => {
                    return Err(error.unwrap_or_else(|| format!("the connection was lost: {e}")));
                }
                Err(_) => return Err(format!("the server has said nothing for {} s", SILENCE.as_secs())),
            };
            match message {
                Message::Binary(bytes) => {
                    // Whoever reads this is waited for, and the shell there waits as well.
                    let written = async { out.write_all(&bytes).await.and(out.flush().await) };
                    written.await.map_err(|e| format!("nothing can be written here: {e}"))?;
                }
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(FromServer::Exit { code: Some(code), .. }) => return Ok(code),
                    Ok(FromServer::Exit { code: None, reason }) => return Err(reason),
                    Ok(FromServer::Error { message, .. }) => error = Some(message),
                    Err(_) => {}
                },
                Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
            }
        }
        Err(error.unwrap_or_else(|| "the server has closed the terminal".to_owned()))
    };
    tokio::select! {
        result = reading => result,
        result = watching => result,
        result = writing => result,
        result = typing => result,
    }
}

/// What is typed here, read by a thread of its own: a terminal knows no other
/// way that does not change it for others as well.
fn keyboard() -> mpsc::Receiver<Vec<u8>> {
    let (send, typed) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = io::stdin();
        let is_terminal = stdin.is_terminal();
        let mut piece = vec![0; 4096];
        loop {
            match stdin.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count @ 1..) => {
                    if send.blocking_send(piece.get(..count).unwrap_or_default().to_vec()).is_err() {
                        return;
                    }
                }
                Ok(_) | Err(_) if is_terminal => return,
                Ok(_) | Err(_) => {
                    // Again and again: one that comes while the shell sets its terminal is lost.
                    while send.blocking_send(END.to_vec()).is_ok() {
                        std::thread::sleep(Duration::from_secs(1));
                    }
                    return;
                }
            }
        }
    });
    typed
}

/// The size of one's own terminal, if it is one.
fn size() -> Option<Size> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    let within = |it: u16| it.clamp(1, LARGEST);
    (size.ws_col > 0 && size.ws_row > 0)
        .then(|| Size { columns: within(size.ws_col), rows: within(size.ws_row) })
}

/// One's own terminal while it is raw; as it was when this is dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> io::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal may be gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

enum Signal {
    Resized,
    /// One that ends this.
    End(i32),
}

/// The signals that matter: in raw mode none of them comes from a key.
struct Signals {
    resized: tokio::signal::unix::Signal,
    ends: Vec<(i32, tokio::signal::unix::Signal)>,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let ends =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let listen = |kind: SignalKind| Ok((kind.as_raw_value(), signal(kind)?));
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            ends: ends.into_iter().map(listen).collect::<io::Result<_>>()?,
        })
    }

    async fn next(&mut self) -> Signal {
        let ends = futures_util::future::select_all(self.ends.iter_mut().map(|(number, it)| {
            Box::pin(async move {
                it.recv().await;
                *number
            })
        }));
        tokio::select! {
            _ = self.resized.recv() => Signal::Resized,
            (number, ..) = ends => Signal::End(number),
        }
    }
}

/// Opens the terminal, or says what the server says.
async fn connect(args: &TerminalArgs, size: Size) -> Result<Socket, String> {
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", args.url);
    let uri: Uri = args.url.parse().map_err(|_| at(&"is not a URL"))?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(at(&"must begin with http:// or https://")),
    };
    let authority = uri.authority().ok_or_else(|| at(&"names no host"))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(|e| at(&e))?;
    stream.set_nodelay(true).map_err(|e| at(&e))?;
    let stream: Box<dyn Stream> = if tls {
        let name = ServerName::try_from(host.to_owned()).map_err(|e| at(&e))?;
        Box::new(podyard::tls::connector().await?.connect(name, stream).await.map_err(|e| at(&e))?)
    } else {
        Box::new(stream)
    };
    let space: String = args.space.bytes().map(encode).collect();
    let path = uri.path().trim_end_matches('/');
    let Size { columns, rows } = size;
    let url = format!("ws://{authority}{path}/spaces/{space}/terminal?columns={columns}&rows={rows}");
    let mut request = url.into_client_request().map_err(|e| at(&e))?;
    let token = args.token.trim();
    let token = HeaderValue::from_str(token).map_err(|_| "--token: is no token".to_owned())?;
    request.headers_mut().insert("x-auth-token", token);
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(NAME));
    if let Some(language) = language() {
        request.headers_mut().insert("accept-language", language);
    }
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(answer)) => {
            let problem = answer.body().as_deref().and_then(|it| serde_json::from_slice(it).ok());
            let problem: serde_json::Value = problem.unwrap_or_default();
            let status = answer.status();
            Err(problem["detail"].as_str().map_or_else(|| at(&status), str::to_owned))
        }
        Err(error) => Err(at(&error)),
    }
}

/// A byte of a path's segment.
fn encode(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

/// The language of one's own terminal, as browsers say it.
fn language() -> Option<HeaderValue> {
    let locale = ["LC_ALL", "LC_MESSAGES", "LANG"].iter().find_map(|name| std::env::var(name).ok())?;
    let tag = locale.split(['.', '@']).next()?.replace('_', "-");
    HeaderValue::from_str(&tag).ok().filter(|it| !it.is_empty())
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn names_become_segments() {
        let encoded = |name: &str| name.bytes().map(encode).collect::<String>();
        assert_eq!(encoded("my space"), "my%20space");
        assert_eq!(encoded("a/b?c"), "a%2Fb%3Fc");
        assert_eq!(encoded("空"), "%E7%A9%BA");
    }
}
