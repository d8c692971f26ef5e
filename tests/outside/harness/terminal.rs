//! Terminals in spaces, over a websocket, and what there is of them on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::HeaderMap;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

use super::{Client, House, Server, key, programs, until};

const PATH: &str = "columns=100&rows=30";

pub(crate) struct Shell {
    pub(crate) socket: WebSocket<TcpStream>,
    /// What the server said of itself.
    pub(crate) head: HeaderMap,
    pub(crate) seen: String,
}

#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) body: Value,
    pub(crate) head: HeaderMap,
}

pub(crate) fn connect(
    client: &Client,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Shell, Box<Refused>> {
    let address = client.base.strip_prefix("http://").unwrap();
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    match tungstenite::client(request, stream) {
        Ok((socket, answer)) => Ok(Shell { socket, head: answer.headers().clone(), seen: String::new() }),
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
            Err(Box::new(Refused {
                status: answer.status().as_u16(),
                head: answer.headers().clone(),
                body: serde_json::from_slice(answer.body().as_deref().unwrap_or_default())
                    .unwrap_or_default(),
            }))
        }
        Err(error) => panic!("{path}: {error}"),
    }
}

pub(crate) fn try_open(client: &Client, space: &str) -> Result<Shell, Box<Refused>> {
    let token = client.token.clone().unwrap();
    let headers = [("x-auth-token", token.as_str()), ("sec-websocket-protocol", "podyard.terminal.v1")];
    connect(client, &format!("/spaces/{space}/terminal?{PATH}"), &headers)
}

#[track_caller]
pub(crate) fn open(client: &Client, space: &str) -> Shell {
    try_open(client, space).unwrap_or_else(|it| panic!("{it:?}"))
}

impl Shell {
    pub(crate) fn type_in(&mut self, text: &str) {
        self.socket.send(Message::binary(text.as_bytes().to_vec())).unwrap();
    }

    pub(crate) fn control(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// Reads until the text has come, which no frame of another sort may do before.
    #[track_caller]
    pub(crate) fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("{text:?} does not come after {:?}: {other:?}", self.seen),
            }
        }
    }

    /// A control frame of the server.
    #[track_caller]
    pub(crate) fn said(&mut self) -> Value {
        loop {
            match self.socket.read().unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Binary(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// What the server says last, and the code that it closes with.
    #[track_caller]
    pub(crate) fn end(mut self) -> (Value, CloseCode) {
        let said = self.said();
        loop {
            match self.socket.read().unwrap() {
                Message::Close(Some(frame)) => return (said, frame.code),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A server, an administrator and a member with a space that runs.
pub(crate) fn running(house: &House, args: &[&str]) -> (Server, Client, Client, String) {
    let server = house.serve(args);
    let admin = server.admin();
    let template = admin.serving_template();
    let ann = admin.member("ann");
    let id = key(&ann.running_space("work", &template), "id");
    (server, admin, ann, id)
}

/// Shells and their children: what runs of a space beside its program.
pub(crate) fn shells(space: &str) -> usize {
    let marked = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|it| *it == 0).any(|it| it.starts_with(b"PODYARD_TERMINAL="))
    };
    programs(space).iter().filter(|it| marked(it)).count()
}

#[track_caller]
pub(crate) fn no_shells(space: &str) {
    until("no shell is left", Duration::from_secs(15), || (shells(space) == 0).then_some(()));
}

/// The records of a space's terminals, oldest first.
pub(crate) fn records(client: &Client, id: &str) -> Vec<Value> {
    let all = client.get(&format!("/events?obj_id={id}&limit=200&order=asc")).expect(200).json();
    let is = |it: &&Value| it["action"].as_str().is_some_and(|it| it.starts_with("terminal_"));
    let mut found: Vec<Value> = all["events"].as_array().unwrap().iter().filter(is).cloned().collect();
    found.sort_by_key(|it| it["at"].as_str().unwrap_or_default().to_owned());
    found
}

/// What /proc says of a process.
pub(crate) fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|it| it.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

pub(crate) fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

pub(crate) fn metrics(client: &Client) -> BTreeMap<String, f64> {
    let text = client.get("/metrics").expect(200).text();
    let numbers = text.lines().filter_map(|it| it.split_once(' '));
    numbers.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}

/// `podyard terminal`, told where and who.
pub(crate) fn command(house: &House, client: &Client, space: &str) -> Command {
    let mut command = house.command();
    command.args(["terminal", space, "--url", &client.base]);
    command.env("PODYARD_TOKEN", client.token.as_deref().unwrap_or_default());
    command
}
