//! Terminals in pods, by the websocket protocol of Kubernetes's `exec`.
//!
//! A process in a pod does not end with the connection that started it: neither
//! with a close frame nor with a lost connection does the kubelet end it. So a
//! terminal is two execs. The first has no TTY; it starts a small script that
//! does nothing but wait for lines, one each [`BEAT`]. The second is the shell,
//! which refuses to begin if the first is not there. Once the script's input
//! ends, or no line has come for [`PATIENCE`], it ends all that bears the
//! terminal's id or is in a session of such a process, and then itself. So the
//! shell ends whatever happens to this process or to the way between.
//!
//! Both scripts need no more than `sh`: they use `stty`, `sleep` and bash if
//! they are there. What a process hides its environment, its arguments and its
//! session with is found by nobody, and lasts as long as the pod.

mod pulse;

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Client;
use kube::api::AttachParams;
use podyard_driver::{Error, Result, Terminal, TerminalEnd, TerminalInput, TerminalSize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use self::pulse::{PING, Pulse};

/// How often the script in the pod is told that the terminal is held. It is also
/// what keeps proxies on the way from closing an idle connection.
const BEAT: Duration = Duration::from_secs(10);
/// After so many seconds without that it ends the terminal.
const PATIENCE: u32 = 40;
/// How long the pod may take to begin either exec.
const OPEN: Duration = Duration::from_secs(30);
/// How long the script has to do its work before the connection is left to itself.
const END: Duration = Duration::from_secs(5);
/// Pieces of at most 8 KiB that may wait for whoever reads the terminal.
const OUTPUT: usize = 4;
/// Inputs that may wait for the shell.
const INPUT: usize = 8;

/// What a runtime says of a process that was killed, as all of a pod are at its end.
const KILLED: i32 = 137;
/// How long the two ends of a pod's two processes may be apart.
const TOGETHER: Duration = Duration::from_secs(1);

/// The channels of the protocol: the first byte of each message.
mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STATUS: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
    pub(super) const CLOSE: u8 = 255;
}

/// Waits for the terminal's end, then ends what is left of it. Its argument is
/// the terminal's id.
///
/// `read -t` is not in every sh; where it is missing a loop in the background
/// looks whether lines still come.
const KEEPER: &str = include_str!("exec/keeper.sh");
/// Begins the shell. Its arguments: the terminal's id, the keeper's pid, columns, lines.
const SHELL: &str = include_str!("exec/shell.sh");

/// A script without what is only for its readers: it becomes a part of a URL.
fn script(text: &str) -> String {
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.fold(String::new(), |all, line| all + line + "\n")
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Sink = SplitSink<Socket, Message>;

/// Opens a terminal in a container.
pub(crate) async fn terminal(
    client: Client,
    namespace: &str,
    pod: &str,
    container: &str,
    size: TerminalSize,
) -> Result<Terminal> {
    let [namespace, pod, container] = [namespace, pod, container].map(str::to_owned);
    // In a task: if the caller goes meanwhile, what was opened is dropped, and ends.
    let opening = tokio::spawn(begin(Place { client, namespace, pod, container }, size));
    let cut_off = |_| Error::Stuck("the terminal's opening was cut off".into());
    opening.await.map_err(cut_off)?
}

async fn begin(place: Place, size: TerminalSize) -> Result<Terminal> {
    let id = id();
    let slow = |_| Error::Stuck(format!("the pod did not open a terminal within {} s", OPEN.as_secs()));
    let (keeper, pid) = timeout(OPEN, keeper(&place, &id)).await.map_err(slow)??;
    let [columns, rows] = [size.columns, size.rows].map(|it| it.to_string());
    let script = script(SHELL);
    let command = ["sh", "-c", &script, "podyard-terminal", &id, &pid, &columns, &rows];
    let begun = timeout(OPEN, place.exec(&command, true)).await.map_err(slow);
    let shell = match begun.and_then(|it| it) {
        Ok(shell) => shell,
        Err(error) => {
            keeper.end().await;
            return Err(error);
        }
    };
    let (input, typed) = mpsc::channel(INPUT);
    let (shown, output) = mpsc::channel(OUTPUT);
    let (ended, end) = oneshot::channel();
    tokio::spawn(serve(keeper, shell, size, typed, shown, ended));
    Ok(Terminal { input, output, end })
}

/// Nobody can foresee it, so that nobody can have it in their environment.
fn id() -> String {
    rand::random::<[u8; 16]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A container.
struct Place {
    client: Client,
    namespace: String,
    pod: String,
    container: String,
}

/// An exec that has begun.
struct Exec {
    sink: Sink,
    stream: SplitStream<Socket>,
    /// Whether the end of its input can be told: v5 of the protocol.
    closes: bool,
}

impl Place {
    /// Begins a command, with a TTY or without.
    async fn exec(&self, command: &[&str], tty: bool) -> Result<Exec> {
        let params = AttachParams::default().container(self.container.as_str());
        let params = params.stdin(true).stdout(true).stderr(false).tty(tty);
        let path = format!("/api/v1/namespaces/{}/pods", self.namespace);
        let request = kube::core::Request::new(path).exec(&self.pod, command.iter().copied(), &params);
        let request =
            request.map_err(|e| Error::Invalid(format!("the terminal cannot be asked for: {e}")))?;
        let connection = self.client.connect(request).await.map_err(|e| refused(&e))?;
        let closes = connection.supports_stream_close();
        let (sink, stream) = connection.into_stream().split();
        Ok(Exec { sink, stream, closes })
    }
}

/// What the cluster says, in words for the user.
fn refused(error: &kube::Error) -> Error {
    match error {
        kube::Error::Api(status) => match status.code {
            403 => Error::Unavailable(format!(
                "the cluster does not allow Podyard terminals (pods/exec): {}",
                status.message
            )),
            404 => Error::Unavailable("the space's pod is gone".into()),
            400 => Error::Unavailable(format!("the space's pod has no terminal yet: {}", status.message)),
            _ => Error::Stuck(format!("the pod does not open a terminal: {}", status.message)),
        },
        error => Error::Stuck(format!("the cluster does not answer: {error}")),
    }
}

/// What arrives on an exec.
enum News {
    Output(Bytes),
    /// It is over.
    Over(TerminalEnd),
}

/// The next of what an exec says.
async fn next(stream: &mut SplitStream<Socket>, pulse: &Pulse) -> News {
    let lost = |reason: String| News::Over(TerminalEnd { code: None, reason });
    loop {
        let message = stream.next().await;
        if let Some(Ok(message)) = &message {
            pulse.heard(message);
        }
        let mut bytes = match message {
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Close(_))) | None => {
                return lost("the cluster closed the connection to the pod".into());
            }
            Some(Ok(_)) => continue,
            Some(Err(error)) => return lost(format!("the connection to the pod was lost: {error}")),
        };
        if bytes.is_empty() {
            continue;
        }
        let channel = bytes.split_to(1);
        match channel.first() {
            // The first message is empty; it says that the exec has begun.
            Some(&channel::STDOUT) if !bytes.is_empty() => return News::Output(bytes),
            Some(&channel::STATUS) => return News::Over(ended(&bytes)),
            _ => {}
        }
    }
}

/// How a command ended, by the status on its channel. Its message differs
/// between versions of the protocol, its cause does not.
fn ended(status: &[u8]) -> TerminalEnd {
    let Ok(status) = serde_json::from_slice::<Status>(status) else {
        return TerminalEnd { code: None, reason: "the cluster did not say how the shell ended".into() };
    };
    if status.status.as_deref() == Some("Success") {
        return TerminalEnd { code: Some(0), reason: String::new() };
    }
    let causes = status.details.and_then(|it| it.causes).unwrap_or_default();
    let code = causes.iter().find(|it| it.reason.as_deref() == Some("ExitCode"));
    let code = code.and_then(|it| it.message.as_deref()?.parse().ok());
    let reason = if code.is_some() { String::new() } else { status.message.unwrap_or_default() };
    TerminalEnd { code, reason }
}

/// How an exec ends, whatever it says before.
async fn over(stream: &mut SplitStream<Socket>, pulse: &Pulse) -> TerminalEnd {
    loop {
        if let News::Over(end) = next(stream, pulse).await {
            return end;
        }
    }
}

/// What it means for a terminal that its keeper is over.
fn let_go(keeper: &TerminalEnd) -> TerminalEnd {
    let reason = match keeper.code {
        Some(KILLED) => "the space has ended".to_owned(),
        Some(code) => format!("the pod does not hold the terminal any more: exit code {code}"),
        None => format!("the pod does not hold the terminal any more: {}", keeper.reason),
    };
    TerminalEnd { code: None, reason }
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(data.len() + 1);
    bytes.put_u8(channel);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

fn resize(size: TerminalSize) -> Message {
    let size = format!(r#"{{"Width":{},"Height":{}}}"#, size.columns, size.rows);
    message(channel::RESIZE, size.as_bytes())
}

/// The script that ends the terminal, whatever happens.
struct Keeper(Exec);

/// Begins it. Gives its pid, too.
async fn keeper(place: &Place, id: &str) -> Result<(Keeper, String)> {
    let patience = PATIENCE.to_string();
    let command = ["sh", "-c", &script(KEEPER), "podyard-keeper", id, &patience];
    let mut exec = place.exec(&command, false).await?;
    let (mut said, pulse) = (BytesMut::new(), Pulse::new());
    loop {
        match next(&mut exec.stream, &pulse).await {
            News::Output(bytes) => said.extend_from_slice(&bytes),
            News::Over(end) => {
                let why = if end.reason.is_empty() { "its sh ended at once" } else { end.reason.as_str() };
                return Err(Error::Unavailable(format!("the space's image has no shell that runs: {why}")));
            }
        }
        let line = std::str::from_utf8(&said).ok().and_then(|it| it.split_once('\n'));
        if let Some((pid, _)) = line {
            let pid = pid.trim().to_owned();
            return Ok((Keeper(exec), pid));
        }
        if said.len() > 256 {
            return Err(Error::Unavailable("the space's image has no shell that is understood".into()));
        }
    }
}

impl Keeper {
    /// Has it end the terminal, and waits a while for that.
    async fn end(mut self) {
        let ending = async {
            let said = if self.0.closes {
                self.0.sink.send(Message::Binary(Bytes::from_static(&[channel::CLOSE, channel::STDIN]))).await
            } else {
                // An older cluster cannot be told that the input ends.
                self.0.sink.send(message(channel::STDIN, b"end\n")).await
            };
            if said.is_ok() {
                over(&mut self.0.stream, &Pulse::new()).await;
            }
        };
        // If it does not come through, it sees that no lines come any more.
        let _ = timeout(END, ending).await;
        let _ = timeout(END, self.0.sink.close()).await;
    }
}

/// Carries bytes until one side ends, then sees to the end of the other.
async fn serve(
    keeper: Keeper,
    shell: Exec,
    size: TerminalSize,
    mut typed: mpsc::Receiver<TerminalInput>,
    shown: mpsc::Sender<Bytes>,
    ended: oneshot::Sender<TerminalEnd>,
) {
    let Exec { mut sink, mut stream, .. } = shell;
    let Keeper(Exec { sink: mut keeper_sink, stream: mut keeper_stream, closes }) = keeper;
    let (pulse, keeper_pulse) = (Pulse::new(), Pulse::new());
    let reading = async {
        loop {
            // While nobody has room nothing is read: the cluster holds it back, and the shell waits.
            pulse.hold();
            let Ok(room) = shown.reserve().await else { return None };
            pulse.go_on();
            match next(&mut stream, &pulse).await {
                News::Output(bytes) => room.send(bytes),
                News::Over(end) => return Some(end),
            }
        }
    };
    let typing = async {
        // The script in the pod sets it, too, if it can: before the shell begins.
        if sink.send(resize(size)).await.is_err() {
            return std::future::pending().await;
        }
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let frame = tokio::select! {
                it = typed.recv() => match it {
                    Some(TerminalInput::Data(bytes)) => {
                        pulse.send(bytes.len());
                        message(channel::STDIN, &bytes)
                    }
                    Some(TerminalInput::Resize(size)) => resize(size),
                    None => return None,
                },
                _ = ping.tick() => pulse.ping(),
            };
            if sink.send(frame).await.is_err() {
                // What came before may still be read.
                return std::future::pending().await;
            }
        }
    };
    let keeping = async {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let lost = || {
            let reason = "the connection to the pod was lost".to_owned();
            Some(TerminalEnd { code: None, reason })
        };
        loop {
            let frame = tokio::select! {
                news = next(&mut keeper_stream, &keeper_pulse) => match news {
                    News::Output(_) => continue,
                    // Without it nobody would end the shell.
                    News::Over(end) => return Some(let_go(&end)),
                },
                _ = beat.tick() => {
                    // The two are connections of their own, and either may be lost alone.
                    if pulse.is_lost() || keeper_pulse.is_lost() {
                        return lost();
                    }
                    message(channel::STDIN, b"\n")
                }
                _ = ping.tick() => keeper_pulse.ping(),
            };
            if keeper_sink.send(frame).await.is_err() {
                return lost();
            }
        }
    };
    let begin = Instant::now();
    let end = tokio::select! {
        // A shell's own end says most, and comes at the same time as the pod's.
        biased;
        end = reading => end,
        end = keeping => end,
        end = typing => end,
        () = shown.closed() => None,
    };
    // A pod's end kills both, and either may be heard first.
    let end = match end {
        Some(end) if end.code == Some(KILLED) => {
            let over = timeout(TOGETHER, over(&mut keeper_stream, &keeper_pulse)).await;
            Some(over.map_or(end, |it| let_go(&it)))
        }
        end => end,
    };
    tracing::debug!(seconds = begin.elapsed().as_secs(), ?end, "a terminal in a pod ended");
    if let Some(end) = end {
        // Nobody may wait for it any more.
        let _ = ended.send(end);
    }
    drop(shown);
    let _ = timeout(END, sink.close()).await;
    Keeper(Exec { sink: keeper_sink, stream: keeper_stream, closes }).end().await;
}

#[cfg(test)]
mod tests;
