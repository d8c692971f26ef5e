//! Terminals in spaces, over a websocket and on the command line.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use rustix::process::Signal;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::HeaderMap;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

use crate::harness::{Client, House, Kind, Server, key, kill, programs, until};

on_each_database!(
    a_shell_over_a_websocket,
    what_is_refused_before_the_websocket,
    a_right_of_its_own,
    who_opened_it_is_on_record,
    it_ends_with_the_space_and_the_server,
    it_ends_with_the_token,
);

const PATH: &str = "columns=100&rows=30";

struct Shell {
    socket: WebSocket<TcpStream>,
    /// What the server said of itself.
    head: HeaderMap,
    seen: String,
}

#[derive(Debug)]
struct Refused {
    status: u16,
    body: Value,
    head: HeaderMap,
}

fn connect(client: &Client, path: &str, headers: &[(&'static str, &str)]) -> Result<Shell, Box<Refused>> {
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

fn try_open(client: &Client, space: &str) -> Result<Shell, Box<Refused>> {
    let token = client.token.clone().unwrap();
    let headers = [("x-auth-token", token.as_str()), ("sec-websocket-protocol", "podyard.terminal.v1")];
    connect(client, &format!("/spaces/{space}/terminal?{PATH}"), &headers)
}

#[track_caller]
fn open(client: &Client, space: &str) -> Shell {
    try_open(client, space).unwrap_or_else(|it| panic!("{it:?}"))
}

impl Shell {
    fn type_in(&mut self, text: &str) {
        self.socket.send(Message::binary(text.as_bytes().to_vec())).unwrap();
    }

    fn control(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// Reads until the text has come, which no frame of another sort may do before.
    #[track_caller]
    fn until(&mut self, text: &str) -> String {
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
    fn said(&mut self) -> Value {
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
    fn end(mut self) -> (Value, CloseCode) {
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
fn running(house: &House, args: &[&str]) -> (Server, Client, Client, String) {
    let server = house.serve(args);
    let admin = server.admin();
    let template = admin.serving_template();
    let ann = admin.member("ann");
    let id = key(&ann.running_space("work", &template), "id");
    (server, admin, ann, id)
}

/// Shells and their children: what runs of a space beside its program.
fn shells(space: &str) -> usize {
    let marked = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|it| *it == 0).any(|it| it.starts_with(b"PODYARD_TERMINAL="))
    };
    programs(space).iter().filter(|it| marked(it)).count()
}

#[track_caller]
fn no_shells(space: &str) {
    until("no shell is left", Duration::from_secs(15), || (shells(space) == 0).then_some(()));
}

fn a_shell_over_a_websocket(kind: Kind) {
    let house = House::new(kind);
    let (_server, _, ann, id) = running(&house, &[]);
    let mut shell = open(&ann, &id);
    assert_eq!(shell.head["sec-websocket-protocol"], "podyard.terminal.v1");
    assert!(shell.head.contains_key("x-request-id"));
    shell.type_in("x=; echo \"größer $x空間 🦀 $TERM $PODYARD_SPACE_ID\"; stty size\n");
    shell.until(&format!("größer 空間 🦀 xterm-256color {id}"));
    shell.until("30 100");
    shell.control(r#"{"resize": {"columns": 132, "rows": 43}}"#);
    shell.type_in("stty size\n");
    shell.until("43 132");
    // What is no control frame is said so, and changes nothing.
    for odd in ["{", r#"{"resize": {"columns": 0, "rows": 1}}"#, r#"{"kill": 1}"#] {
        shell.control(odd);
        let said = shell.said();
        assert_eq!(said["error"]["class"], "TerminalControlError", "{said}");
    }
    // Bytes of all sorts, there and back.
    shell.type_in(
        "stty raw -echo; printf g$((1+1))o; head -c 70000 | cat; stty -raw echo; echo done-$((1+1))\n",
    );
    shell.until("g2o");
    let bytes: Vec<u8> = (0..70_000_u32).map(|it| it.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    for piece in bytes.chunks(9000) {
        shell.socket.send(Message::binary(piece.to_vec())).unwrap();
    }
    let mut back = Vec::new();
    while back.len() < bytes.len() {
        if let Message::Binary(more) = shell.socket.read().unwrap() {
            back.extend_from_slice(&more);
        }
    }
    assert!(back[..bytes.len()] == bytes, "what came back is not what was sent");
    shell.seen = String::from_utf8_lossy(&back[bytes.len()..]).into_owned();
    shell.until("done-2");
    shell.type_in("sleep 900 & exit 7\n");
    assert_eq!(shell.end(), (json!({"exit": {"code": 7, "reason": ""}}), CloseCode::Normal));
    no_shells(&id);
    // By name, by bearer, and by a token among the subprotocols, as browsers can.
    let token = ann.token.clone().unwrap();
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&token);
    let offered = format!("podyard.token.{encoded}, podyard.terminal.v1");
    let bearer = format!("Bearer {token}");
    for headers in [[("authorization", bearer.as_str())], [("sec-websocket-protocol", &offered)]] {
        let mut shell = connect(&ann, "/spaces/work/terminal", &headers).unwrap();
        shell.type_in("stty size; exec false\n");
        shell.until("24 80");
        assert_eq!(shell.end().0, json!({"exit": {"code": 1, "reason": ""}}));
    }
    // The client's goodbye is answered, and ends the shell.
    let mut shell = open(&ann, &id);
    shell.type_in("echo ready-$((1+1)); sleep 901\n");
    shell.until("ready-2");
    shell.socket.close(None).unwrap();
    until("it is closed", Duration::from_secs(5), || shell.socket.read().is_err().then_some(()));
    no_shells(&id);
    assert_eq!(programs(&id).len(), 1, "the space's program is still there");
}

fn what_is_refused_before_the_websocket(kind: Kind) {
    let house = House::new(kind);
    let (server, admin, ann, id) = running(&house, &["--max-space-terminals", "2", "--max-terminals", "3"]);
    let token = ann.token.clone().unwrap();
    let me = ("x-auth-token", token.as_str());
    let path = format!("/spaces/{id}/terminal");
    let at = |query: &str| format!("{path}?{query}");
    let refused = |path: &str, headers: &[(&'static str, &str)]| connect(&ann, path, headers).err().unwrap();
    let cookie = format!("podyard_session={token}");
    // Who.
    for headers in [
        &[][..],
        &[("x-auth-token", "nonsense")],
        &[("sec-websocket-protocol", "podyard.token.!")],
        &[("cookie", &cookie)],
    ] {
        let it = refused(&path, headers);
        assert_eq!((it.status, &it.body["class"]), (401, &json!("UnauthorizedError")), "{it:?}");
        assert!(it.head["www-authenticate"].to_str().unwrap().contains("Keystone"));
    }
    // What.
    for (query, field) in [
        ("columns=0", "columns"),
        ("rows=1001", "rows"),
        ("rows=x", "rows"),
        ("columns=1&columns=2", "columns"),
        ("width=80", "width"),
    ] {
        let it = refused(&at(query), &[me]);
        assert_eq!((it.status, &it.body["errors"][0]["field"]), (400, &json!(field)), "{query}: {it:?}");
    }
    let it = refused(&path, &[me, ("sec-websocket-protocol", "v5.channel.k8s.io")]);
    assert_eq!((it.status, &it.body["class"]), (400, &json!("UnsupportedSubprotocolError")), "{it:?}");
    let it = refused(&path, &[me, ("sec-websocket-key", "short")]);
    assert_eq!((it.status, &it.body["errors"][0]["field"]), (400, &json!("Sec-WebSocket-Key")), "{it:?}");
    let it = refused(&path, &[me, ("sec-websocket-version", "8")]);
    assert_eq!((it.status, &it.head["sec-websocket-version"]), (426, &"13".parse().unwrap()), "{it:?}");
    let plain = ann.get(&path).refused(426, "UpgradeRequiredError");
    assert_eq!(plain.header("upgrade"), "websocket");
    ann.post(&path, &json!({})).refused(405, "MethodNotAllowedError");
    // Which.
    let it = refused("/spaces/none/terminal", &[me]);
    assert_eq!((it.status, &it.body["class"]), (404, &json!("ResourceNotFoundError")), "{it:?}");
    let chinese = refused("/spaces/none/terminal", &[me, ("accept-language", "zh-CN")]);
    assert_eq!(chinese.body["detail"], "找不到 space none");
    let stopped = ann.space("stopped", "files");
    let it = try_open(&ann, &stopped).err().unwrap();
    assert_eq!((it.status, &it.body["class"]), (409, &json!("SpaceNotRunningError")), "{it:?}");
    // How many.
    let held = [open(&ann, &id), open(&ann, &id)];
    let it = try_open(&ann, &id).err().unwrap();
    assert_eq!((it.status, &it.body["class"]), (409, &json!("TooManyTerminalsError")), "{it:?}");
    let own = key(&admin.running_space("own", "files"), "id");
    let mut third = open(&admin, &own);
    let it = try_open(&admin, &own).err().unwrap();
    assert_eq!((it.status, &it.body["class"]), (503, &json!("TooManyTerminalsError")), "{it:?}");
    assert!(it.head.contains_key("retry-after"));
    drop(held);
    third.type_in("exit\n");
    third.end();
    until("there is room again", Duration::from_secs(10), || try_open(&ann, &id).ok());
    let log = server.logged();
    assert!(!log.contains(&token), "a token is in the log");
}

fn a_right_of_its_own(kind: Kind) {
    let house = House::new(kind);
    let (server, admin, ann, id) = running(&house, &[]);
    let bob = admin.member("bob");
    // Another's space looks like none; an administrator sees it, and may not.
    assert_eq!(try_open(&bob, &id).err().unwrap().status, 404);
    let it = try_open(&admin, &id).err().unwrap();
    assert_eq!((it.status, &it.body["class"]), (403, &json!("ForbiddenError")), "{it:?}");
    assert_eq!(shells(&id), 0);
    drop(open(&ann, &id));
    server.end();
    // Unless the right was given, and it can be taken away.
    let server = house.serve(&["--terminal-right", "admin=all", "--terminal-right", "member=none"]);
    let (admin, ann, bob) = (admin.at(&server.base), ann.at(&server.base), bob.at(&server.base));
    let mut shell =
        until("its program is found again", Duration::from_secs(10), || try_open(&admin, &id).ok());
    shell.type_in("exit 2\n");
    assert_eq!(shell.end().0["exit"]["code"], 2);
    assert_eq!(try_open(&ann, &id).err().unwrap().status, 403);
    assert_eq!(try_open(&bob, &id).err().unwrap().status, 404);
}

/// The records of a space's terminals, oldest first.
fn records(client: &Client, id: &str) -> Vec<Value> {
    let all = client.get(&format!("/events?obj_id={id}&limit=200&order=asc")).expect(200).json();
    let is = |it: &&Value| it["action"].as_str().is_some_and(|it| it.starts_with("terminal_"));
    let mut found: Vec<Value> = all["events"].as_array().unwrap().iter().filter(is).cloned().collect();
    found.sort_by_key(|it| it["at"].as_str().unwrap_or_default().to_owned());
    found
}

fn who_opened_it_is_on_record(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin, ann, id) = running(&house, &[]);
    let mut shell = open(&ann, &id);
    shell.type_in("echo ready-$((1+1))\n");
    shell.until("ready-2");
    let opened = records(&admin, &id);
    assert_eq!(opened.len(), 1, "{opened:?}");
    assert_eq!(opened[0]["action"], "terminal_opened");
    assert_eq!(opened[0]["user_name"], "ann", "{}", opened[0]);
    assert_eq!(opened[0]["client_ip"], "127.0.0.1", "{}", opened[0]);
    std::thread::sleep(Duration::from_millis(1100));
    shell.type_in("exit 5\n");
    shell.end();
    let both = until("its end is noted", Duration::from_secs(10), || {
        let found = records(&admin, &id);
        (found.len() == 2).then_some(found)
    });
    let (opened, closed) = (&both[0], &both[1]);
    assert_eq!(closed["action"], "terminal_closed", "{closed}");
    assert_eq!((&closed["user_name"], &closed["client_ip"]), (&opened["user_name"], &opened["client_ip"]));
    let note = |name: &str| closed["notes"][name]["new"].clone();
    assert_eq!(note("terminal"), opened["notes"]["terminal"]["new"], "{closed}");
    assert_eq!((note("exit_code"), note("why")), (json!(5), json!("shell")), "{closed}");
    assert!(note("seconds").as_f64().unwrap() >= 1.0, "{closed}");
    assert!(
        note("bytes_typed").as_u64().unwrap() > 10 && note("bytes_shown").as_u64().unwrap() > 10,
        "{closed}"
    );
    // One that breaks off has its end on record as well.
    let shell = open(&ann, &id);
    drop(shell);
    let all = until("its end is noted", Duration::from_secs(10), || {
        let found = records(&admin, &id);
        (found.len() == 4).then_some(found)
    });
    assert_eq!(all[3]["notes"]["why"]["new"], "client", "{}", all[3]);
    // And what is refused is not.
    assert_eq!(try_open(&admin, &id).err().unwrap().status, 403);
    assert_eq!(records(&admin, &id).len(), 4);
}

fn it_ends_with_the_space_and_the_server(kind: Kind) {
    let house = House::new(kind);
    let (mut server, admin, ann, id) = running(&house, &[]);
    let mut shell = open(&ann, &id);
    shell.type_in("trap '' HUP TERM; nohup sleep 902 & sleep 903\n");
    until("it runs", Duration::from_secs(10), || (shells(&id) >= 3).then_some(()));
    ann.stop(&id);
    let (said, code) = shell.end();
    assert_eq!((&said["exit"]["code"], code), (&Value::Null, CloseCode::Normal), "{said}");
    assert!(said["exit"]["reason"].as_str().unwrap().contains("the space"), "{said}");
    assert_eq!(shells(&id), 0);
    assert_eq!(try_open(&ann, &id).err().unwrap().status, 409);
    // A server that ends lets go of them soon, and notes it down.
    ann.start(&id);
    let shell = open(&ann, &id);
    let start = Instant::now();
    server.ask_to_end();
    let (said, code) = shell.end();
    assert_eq!(
        (&said["error"]["class"], code),
        (&json!("ServiceUnavailableError"), CloseCode::Away),
        "{said}"
    );
    assert!(server.wait(Duration::from_secs(15)).success());
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    no_shells(&id);
    let server = house.serve(&[]);
    let (admin, ann) = (admin.at(&server.base), ann.at(&server.base));
    let last = records(&admin, &id).pop().unwrap();
    assert_eq!(
        (&last["action"], &last["notes"]["why"]["new"]),
        (&json!("terminal_closed"), &json!("stopping"))
    );
    // A server that is killed cannot; its shells end all the same.
    let mut shell = until("its program is found again", Duration::from_secs(10), || try_open(&ann, &id).ok());
    shell.type_in("nohup sleep 904 & sleep 905\n");
    until("it runs", Duration::from_secs(10), || (shells(&id) >= 3).then_some(()));
    let mut server = server;
    server.kill_9();
    no_shells(&id);
    assert_eq!(programs(&id).len(), 1, "the space's program is still there");
}

fn it_ends_with_the_token(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin, ann, id) = running(&house, &["--terminal-ping", "1"]);
    let shell = open(&ann, &id);
    let token = ann.token.clone().unwrap();
    ann.send("DELETE", "/v3/auth/tokens", &[("X-Subject-Token", &token)], None).expect(204);
    let (said, code) = shell.end();
    assert_eq!((&said["error"]["class"], code), (&json!("UnauthorizedError"), CloseCode::Policy), "{said}");
    no_shells(&id);
    assert_eq!(try_open(&ann, &id).err().unwrap().status, 401);
    let last = until("its end is noted", Duration::from_secs(10), || {
        records(&admin, &id).pop().filter(|it| it["action"] == "terminal_closed")
    });
    assert_eq!(last["notes"]["why"]["new"], "token");
}

#[test]
fn the_idle_and_the_silent_are_closed() {
    let house = House::new(Kind::Sqlite);
    let (_server, _, ann, id) = running(&house, &["--terminal-idle", "2", "--terminal-ping", "1"]);
    let mut shell = open(&ann, &id);
    // As long as something moves, it is not idle.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(800));
        shell.type_in("echo still-$((1+1))\n");
        shell.until("still-2");
    }
    let start = Instant::now();
    let (said, code) = shell.end();
    assert_eq!((&said["error"]["class"], code), (&json!("TerminalIdleError"), CloseCode::Policy), "{said}");
    let took = start.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(6)).contains(&took), "{took:?}");
    no_shells(&id);
    // Pings come, and who leaves them unanswered is gone.
    let mut shell = open(&ann, &id);
    shell.type_in("while sleep 0.5; do echo .; done\n");
    let mut stream = shell.socket.get_ref().try_clone().unwrap();
    let (start, mut bytes, mut piece) = (Instant::now(), Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
        }
        assert!(start.elapsed() < Duration::from_secs(20), "a silent client is still there");
    }
    assert!(bytes.windows(2).any(|it| it == [0x89, 0]), "no ping came");
    assert!(String::from_utf8_lossy(&bytes).contains("TerminalSilentError"));
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    no_shells(&id);
}

/// What /proc says of a process.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|it| it.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn metrics(client: &Client) -> BTreeMap<String, f64> {
    let text = client.get("/metrics").expect(200).text();
    let numbers = text.lines().filter_map(|it| it.split_once(' '));
    numbers.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}

#[test]
fn who_does_not_read_stops_the_shell() {
    let house = House::new(Kind::Sqlite);
    let (server, admin, ann, id) = running(&house, &["--terminal-ping", "1"]);
    drop(open(&ann, &id));
    no_shells(&id);
    let before = resident(server.pid());
    let mut all: Vec<_> = (0..10).map(|_| open(&ann, &id)).collect();
    for shell in &mut all {
        shell.type_in("yes 'a line that is repeated for as long as somebody reads it'\n");
    }
    let shown = || metrics(&admin)["podyard_terminal_bytes_shown_total"];
    std::thread::sleep(Duration::from_secs(4));
    let (first, start) = (shown(), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let more = shown() - first;
    assert!(more < 1_000_000.0, "{more} bytes went on in {:?} to those who do not read", start.elapsed());
    let grown = resident(server.pid()).saturating_sub(before);
    assert!(grown < 24 << 20, "{} KiB more are in memory", grown >> 10);
    // Nor is one that only writes read without end.
    let mut deaf = open(&ann, &id);
    deaf.type_in("stty raw -echo; echo ready-$((1+1)); sleep 1000\n");
    deaf.until("ready-2");
    let mut stream = deaf.socket.get_ref().try_clone().unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut frame = vec![0x82, 0xfe, 0xff, 0x00, 0, 0, 0, 0];
    frame.resize(8 + 0xff00, b'x');
    let mut sent = 0_usize;
    while sent < 64 << 20 && stream.write_all(&frame).is_ok() {
        sent += frame.len();
    }
    assert!(sent < 32 << 20, "{sent} bytes were taken for a shell that does not read");
    let grown = resident(server.pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "{} KiB more are in memory", grown >> 10);
    // Ctrl-C passes though the output is stuck, and reading goes on where it stopped.
    let mut first = all.remove(0);
    first.type_in("\u{3}echo over-$((1+1))\n");
    first.until("over-2");
    drop((first, all, deaf, stream));
    no_shells(&id);
}

/// Ends a connection as a network does that breaks.
fn reset(stream: &TcpStream) {
    // SO_LINGER 0 is not in std; a closed reading side with data on the way does the same.
    let _ = stream.shutdown(Shutdown::Both);
}

#[test]
fn a_thousand_come_and_go_and_nothing_is_left() {
    let house = House::new(Kind::Sqlite);
    let (server, admin, ann, id) = running(&house, &["--max-space-terminals", "1000"]);
    let pid = server.pid();
    let token = ann.token.clone().unwrap();
    let address = ann.base.strip_prefix("http://").unwrap().to_owned();
    let path = format!("/spaces/{id}/terminal");
    let one = |i: usize| match i % 5 {
        // Gone before the answer.
        0 => {
            let mut stream = TcpStream::connect(&address).unwrap();
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).unwrap();
            if i.is_multiple_of(2) {
                std::thread::sleep(Duration::from_millis((i % 13) as u64));
            }
        }
        // Opened and closed at once.
        1 => drop(try_open(&ann, &id)),
        // In the middle of output.
        2 => {
            if let Ok(mut shell) = try_open(&ann, &id) {
                shell.type_in("yes\n");
                shell.until("y\r\ny");
                reset(shell.socket.get_ref());
            }
        }
        // With children that ignore a hang-up.
        3 => {
            if let Ok(mut shell) = try_open(&ann, &id) {
                shell.type_in("trap '' HUP; nohup sleep 906 >/dev/null 2>&1 & echo up-$((1+1))\n");
                shell.until("up-2");
            }
        }
        // Politely.
        _ => {
            if let Ok(mut shell) = try_open(&ann, &id) {
                shell.type_in("exit\n");
                let _ = shell.end();
            }
        }
    };
    let rounds = |from: usize, to: usize| {
        let next = std::sync::atomic::AtomicUsize::new(from);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if i >= to {
                            break;
                        }
                        one(i);
                    }
                });
            }
        });
    };
    let names = ["podyard_terminals_open", "podyard_terminal_tasks"];
    let settled = || {
        no_shells(&id);
        until("all terminals are closed", Duration::from_secs(30), || {
            let now = metrics(&admin);
            names.iter().all(|it| now[*it] == 0.0).then_some(())
        });
    };
    let children = || {
        let all = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|it| fs::read_to_string(it.path().join("stat")).ok());
        all.filter(|it| {
            it.rsplit(')').next().is_some_and(|it| it.split_whitespace().nth(1) == Some(&pid.to_string()))
        })
        .count()
    };
    // The first ones warm up what is kept on purpose.
    rounds(0, 100);
    settled();
    let tasks = || metrics(&admin)["podyard_async_tasks"];
    let before = (descriptors(pid), children(), tasks(), resident(pid));
    rounds(100, 1100);
    settled();
    let back = |what: &str, now: &dyn Fn() -> f64, was: f64| {
        let start = Instant::now();
        while now() > was {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}: {} and not {was}", now());
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    // Connections of the tests' own clients and of the database come and go, too.
    back("descriptors", &|| descriptors(pid) as f64, before.0 as f64 + 3.0);
    back("processes", &|| children() as f64, before.1 as f64);
    back("tasks", &tasks, before.2 + 2.0);
    let grown = resident(pid).saturating_sub(before.3);
    assert!(grown < 8 << 20, "{} KiB more are in memory", grown >> 10);
    eprintln!(
        "after 1000 terminals: {} KiB more, {} descriptors, {} children",
        grown >> 10,
        descriptors(pid),
        children()
    );
    let now = metrics(&admin);
    assert!(now["podyard_terminals_opened_total"] >= 800.0, "{}", now["podyard_terminals_opened_total"]);
    // Each that was opened has its end on record, too.
    let count =
        |action: &str| house.count(&format!("SELECT count(*) FROM ops_log WHERE action = '{action}'"));
    until("all ends are on record", Duration::from_secs(60), || {
        (count("terminal_opened") == count("terminal_closed")).then_some(())
    });
    assert!(count("terminal_closed") >= 800);
}

/// `podyard terminal`, told where and who.
fn command(house: &House, client: &Client, space: &str) -> Command {
    let mut command = house.command();
    command.args(["terminal", space, "--url", &client.base]);
    command.env("PODYARD_TOKEN", client.token.as_deref().unwrap_or_default());
    command
}

#[test]
fn the_command_is_a_terminal_too() {
    let house = House::new(Kind::Sqlite);
    let (_server, _, ann, id) = running(&house, &[]);
    // With a pipe: what is in it is typed, then the end.
    let mut child = command(&house, &ann, "work");
    let mut child =
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all("x=; echo größer $x空間; exit 9\n".as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("größer 空間"));
    let mut child = command(&house, &ann, &id);
    let output = child.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "the end of the input ends the shell: {output:?}");
    // Errors in words.
    let said = |mut command: Command| {
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = said(command(&house, &ann, "none"));
    assert!(code == Some(255) && text.contains("space none not found"), "{code:?} {text}");
    let (code, text) = said(command(&house, &ann.with_token("nonsense"), "work"));
    assert!(code == Some(255) && text.contains("token"), "{code:?} {text}");
    let (code, text) = said(command(&house, &ann.at("ftp://x"), "work"));
    assert!(code == Some(255) && text.contains("http://"), "{code:?} {text}");
    let (code, text) = said(command(&house, &ann.at("http://127.0.0.1:1"), "work"));
    assert!(code == Some(255) && text.contains("127.0.0.1:1"), "{code:?} {text}");
    let mut without = command(&house, &ann, "work");
    without.env_remove("PODYARD_TOKEN");
    let (code, text) = said(without);
    assert!(code == Some(2) && text.contains("--token"), "{code:?} {text}");
    no_shells(&id);
}

/// A pty whose other side a command has.
struct Pty {
    ours: fs::File,
    theirs: fs::File,
    seen: String,
}

impl Pty {
    fn new(columns: u16, rows: u16) -> Self {
        use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).unwrap();
        unlockpt(&ours).unwrap();
        let theirs = ioctl_tiocgptpeer(&ours, flags).unwrap();
        let it = Self { ours: ours.into(), theirs: theirs.into(), seen: String::new() };
        it.resize(columns, rows);
        it
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.ours, size).unwrap();
    }

    fn modes(&self) -> String {
        format!("{:?}", rustix::termios::tcgetattr(&self.theirs).unwrap())
    }

    fn give_to(&self, command: &mut Command) {
        let side = || Stdio::from(self.theirs.try_clone().unwrap());
        command.stdin(side()).stdout(side()).stderr(side());
    }

    #[track_caller]
    fn until(&mut self, text: &str) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        while !self.seen.contains(text) {
            let wait = Timespec { tv_sec: 20, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&self.ours, PollFlags::IN)], Some(&wait)).unwrap();
            assert!(ready > 0, "{text:?} does not come after {:?}", self.seen);
            let mut piece = [0; 4096];
            let count = self.ours.read(&mut piece).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        self.seen.clear();
    }
}

#[test]
fn ones_own_terminal_is_as_it_was_before() {
    let house = House::new(Kind::Sqlite);
    let (_server, _, ann, id) = running(&house, &[]);
    let mut pty = Pty::new(90, 25);
    let before = pty.modes();
    let mut child = command(&house, &ann, "work");
    pty.give_to(&mut child);
    let mut child = child.spawn().unwrap();
    pty.ours.write_all(b"stty size; echo here-$((1+1))\n").unwrap();
    pty.until("25 90");
    assert_ne!(pty.modes(), before, "it is raw meanwhile");
    pty.resize(111, 33);
    kill(i32::try_from(child.id()).unwrap(), Signal::WINCH);
    std::thread::sleep(Duration::from_millis(300));
    pty.ours.write_all(b"stty size\n").unwrap();
    pty.until("33 111");
    // Keys that end things here end them there.
    pty.ours.write_all(b"sleep 907\n").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    pty.ours.write_all(b"\x03echo back-$((1+1))\n").unwrap();
    pty.until("back-2");
    pty.ours.write_all(b"exit 3\n").unwrap();
    let status = until("it has ended", Duration::from_secs(10), || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(3));
    assert_eq!(pty.modes(), before);
    // Signals, too, leave it as it was, and end the shell.
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut pty = Pty::new(80, 24);
        let before = pty.modes();
        let mut child = command(&house, &ann, "work");
        pty.give_to(&mut child);
        let mut child = child.spawn().unwrap();
        pty.ours.write_all(b"echo here-$((1+1))\n").unwrap();
        pty.until("here-2");
        assert_ne!(pty.modes(), before);
        kill(i32::try_from(child.id()).unwrap(), signal);
        let status = until("it has ended", Duration::from_secs(10), || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(128 + signal.as_raw()), "{signal:?}");
        assert_eq!(pty.modes(), before, "{signal:?}");
        no_shells(&id);
    }
}

#[test]
fn the_document_tells_of_it() {
    let house = House::new(Kind::Sqlite);
    let server = house.serve(&[]);
    let document = server.client().get("/openapi.json").expect(200).json();
    let get = &document["paths"]["/spaces/{id}/terminal"]["get"];
    assert!(get["responses"]["101"].is_object() && get["responses"]["426"].is_object(), "{get}");
}
