//! An exec session, lived through frame by frame as it was recorded.
//!
//! What the server sent, in a fixture's `frames`:
//! - `["out", channel, what]`: output, however it was cut into frames. `what` is a
//!   text, a count of bytes, or `{"base64": …}`. In a text, `…` is anything and `❯`
//!   a shell's prompt: both belong to the recorded machine. An empty first frame is
//!   one of its own.
//! - `["text", it]`, `["pong", it]`, `["status", it]`, `["close", code]`, `["eof"]`.
//!
//! What the client did, once it had seen what stands before:
//! - `["in", channel, what]`, `["in-text", it]`, `["in-ping", it]`, `["in-close"]`.
//! - `["idle", seconds]`: it waited, and nothing at all came.
//! - `["pause", seconds]`: it waited for what it had typed to begin, which takes its
//!   time whatever the cluster's pace.
//! - `["drop"]`: it went without a word.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use crate::compare::within;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

struct Session {
    socket: WebSocketStream<TokioIo<Upgraded>>,
    /// What came on a channel and was not compared yet.
    out: BTreeMap<u8, Vec<u8>>,
    /// All else that came.
    others: VecDeque<Value>,
    first: Option<(u8, usize)>,
    ended: bool,
}

/// Lives through it; `done` tells how many frames are behind. Why it went wrong.
pub async fn live(
    response: hyper::Response<Incoming>,
    frames: &[Value],
    pace: f64,
    done: &watch::Sender<usize>,
) -> Result<(), String> {
    let upgraded = hyper::upgrade::on(response).await.map_err(|it| it.to_string())?;
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    let mut session =
        Session { socket, out: BTreeMap::new(), others: VecDeque::new(), first: None, ended: false };
    for (at, frame) in frames.iter().enumerate() {
        if frame[0] == "drop" {
            done.send_replace(frames.len());
            return Ok(());
        }
        if let Err(why) = session.frame(frame, pace).await {
            let (out, others) = (session.shown(), &session.others);
            return Err(format!("frame {at}, {frame}: {why}\n   came beside: {out} {others:?}"));
        }
        done.send_replace(at + 1);
    }
    Ok(())
}

impl Session {
    async fn frame(&mut self, frame: &Value, pace: f64) -> Result<(), String> {
        let text = || frame[1].as_str().unwrap_or_default().to_owned();
        match frame[0].as_str().unwrap() {
            "out" => {
                let channel = u8::try_from(frame[1].as_u64().unwrap()).unwrap();
                if frame[2] == "" {
                    while self.first.is_none() {
                        self.receive(PATIENCE).await?;
                    }
                    return match self.first {
                        Some((is, 0)) if is == channel => Ok(()),
                        other => Err(format!("the first frame is {other:?}")),
                    };
                }
                let wanted = pattern(&frame[2]);
                loop {
                    let is = self.out.entry(channel).or_default();
                    if let Some(length) = begins(&wanted, is) {
                        is.drain(..length);
                        return Ok(());
                    }
                    self.receive(PATIENCE).await?;
                }
            }
            "text" | "pong" | "status" | "close" | "eof" => {
                while self.others.is_empty() {
                    self.receive(PATIENCE).await?;
                }
                let is = self.others.pop_front().unwrap();
                // Everything that was written comes before the end is told.
                if self.out.values().any(|it| !it.is_empty()) || !within(frame, &is) {
                    return Err(format!("is {is}"));
                }
                Ok(())
            }
            "in" => {
                let mut bytes = vec![u8::try_from(frame[1].as_u64().unwrap()).unwrap()];
                match &frame[2] {
                    Value::Number(count) => {
                        bytes.extend(vec![b'x'; usize::try_from(count.as_u64().unwrap()).unwrap()])
                    }
                    text => bytes.extend(text.as_str().unwrap().as_bytes()),
                }
                self.send(Message::binary(bytes)).await
            }
            "in-text" => self.send(Message::text(text())).await,
            "in-ping" => self.send(Message::Ping(text().into_bytes().into())).await,
            "in-close" => {
                let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                self.send(Message::Close(Some(normal))).await
            }
            "idle" => {
                let time = Duration::from_secs_f64(frame[1].as_f64().unwrap() / pace);
                match self.receive(time).await {
                    Err(_) if !self.ended => Ok(()),
                    other => Err(format!("something came: {other:?}")),
                }
            }
            "pause" => {
                tokio::time::sleep(Duration::from_secs_f64(frame[1].as_f64().unwrap())).await;
                Ok(())
            }
            other => Err(format!("nobody knows {other}")),
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), String> {
        self.socket.send(message).await.map_err(|it| it.to_string())
    }

    /// Receives one message, within a time.
    async fn receive(&mut self, time: Duration) -> Result<(), String> {
        if self.ended {
            return Err("it has ended".to_owned());
        }
        let message = tokio::time::timeout(time, self.socket.next()).await;
        let other = match message.map_err(|_| "nothing comes".to_owned())? {
            Some(Ok(Message::Binary(bytes))) => {
                let (channel, data) = bytes.split_first().ok_or("a frame without a channel")?;
                self.first.get_or_insert((*channel, data.len()));
                if data.len() > 8192 {
                    return Err(format!("a frame of {}", data.len()));
                }
                if *channel != 3 {
                    self.out.entry(*channel).or_default().extend_from_slice(data);
                    return Ok(());
                }
                json!(["status", serde_json::from_slice::<Value>(data).map_err(|it| it.to_string())?])
            }
            Some(Ok(Message::Text(text))) => json!(["text", text.as_str()]),
            Some(Ok(Message::Pong(bytes))) => json!(["pong", String::from_utf8_lossy(&bytes)]),
            Some(Ok(Message::Ping(_))) => json!(["ping"]),
            Some(Ok(Message::Close(frame))) => json!(["close", frame.map(|it| u16::from(it.code))]),
            Some(Ok(Message::Frame(_))) => return Ok(()),
            Some(Err(_)) | None => {
                self.ended = true;
                json!(["eof"])
            }
        };
        self.others.push_back(other);
        Ok(())
    }

    fn shown(&self) -> String {
        let all = self.out.iter().filter(|it| !it.1.is_empty());
        all.map(|(channel, it)| format!("{channel}: {:?} ", String::from_utf8_lossy(it))).collect()
    }
}

enum Part {
    Bytes(Vec<u8>),
    Count(usize),
    Anything,
    Prompt,
}

fn pattern(what: &Value) -> Vec<Part> {
    if let Some(count) = what.as_u64() {
        return vec![Part::Count(usize::try_from(count).unwrap())];
    }
    if let Some(base64) = what["base64"].as_str() {
        return vec![Part::Bytes(STANDARD.decode(base64).unwrap())];
    }
    what.as_str()
        .unwrap()
        .split_inclusive(['…', '❯'])
        .flat_map(|text| {
            let plain = text.trim_end_matches(['…', '❯']);
            let special = match text.chars().last() {
                Some('…') => Some(Part::Anything),
                Some('❯') => Some(Part::Prompt),
                _ => None,
            };
            std::iter::once(Part::Bytes(plain.as_bytes().to_vec())).chain(special)
        })
        .collect()
}

/// How much of `is` it takes, if it begins so: as little as can be.
fn begins(pattern: &[Part], is: &[u8]) -> Option<usize> {
    let Some((part, rest)) = pattern.split_first() else { return Some(0) };
    let after = |length: usize| Some(length + begins(rest, is.get(length..)?)?);
    match part {
        Part::Bytes(bytes) => is.starts_with(bytes).then(|| after(bytes.len())).flatten(),
        Part::Count(count) => after(*count),
        Part::Anything => (0..=is.len()).find_map(after),
        Part::Prompt => (2..=is.len())
            .take_while(|length| !is[..*length].contains(&b'\n'))
            .filter(|length| matches!(&is[length - 2..*length], b"# " | b"$ "))
            .find_map(after),
    }
}
