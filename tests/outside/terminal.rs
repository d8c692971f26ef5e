//! Terminals in spaces, over a websocket.

use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::harness::terminal::{connect, no_shells, open, records, running, shells, try_open};
use crate::harness::{House, Kind, key, programs, until};

on_each_database!(
    a_shell_over_a_websocket,
    what_is_refused_before_the_websocket,
    a_right_of_its_own,
    who_opened_it_is_on_record,
    it_ends_with_the_space_and_the_server,
    it_ends_with_the_token,
    it_ends_with_the_right,
);

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
    // However many they are.
    for _ in 0..20 {
        shell.control("{}");
    }
    for _ in 0..20 {
        assert_eq!(shell.said()["error"]["class"], "TerminalControlError");
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
    // A frame has its bounds.
    let mut large = open(&ann, &id);
    large.socket.send(Message::binary(vec![b'x'; 70_000])).unwrap();
    let (said, code) = large.end();
    assert_eq!((&said["error"]["class"], code), (&json!("TerminalFrameError"), CloseCode::Size), "{said}");
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

fn it_ends_with_the_right(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin, ann, id) = running(&house, &["--terminal-ping", "1"]);
    let bob = admin.member("bob").user_id();
    let mut shell = open(&ann, &id);
    shell.type_in("sleep 912 & echo ready-$((1+1))\n");
    shell.until("ready-2");
    // What runs is given to nobody, so nobody loses a terminal that way.
    let to_bob = json!({ "user_id": bob });
    admin.post(&format!("/spaces/{id}/change-owner"), &to_bob).refused(409, "SpaceIsRunningError");
    shell.type_in("echo still-$((1+1))\n");
    shell.until("still-2");
    // Whoever has it by other means has it from the next ping on.
    house.execute(&format!("UPDATE spaces SET user_id = '{bob}' WHERE id = '{id}'"));
    let (said, code) = shell.end();
    assert_eq!((&said["error"]["class"], code), (&json!("ForbiddenError"), CloseCode::Policy), "{said}");
    assert_eq!(said["error"]["message"], "a terminal in this space is not allowed any more");
    no_shells(&id);
    let last = until("its end is noted", Duration::from_secs(10), || {
        records(&admin, &id).pop().filter(|it| it["action"] == "terminal_closed")
    });
    assert_eq!(
        (&last["notes"]["why"]["new"], &last["user_name"]),
        (&json!("right"), &json!("ann")),
        "{last}"
    );
    assert_eq!(try_open(&ann, &id).err().unwrap().status, 404);
    // The space runs on, and its new owner's terminals are theirs.
    let bob = admin.login("bob", "password-of-bob");
    let mut shell = open(&bob, &id);
    shell.type_in("exit 4\n");
    assert_eq!(shell.end().0["exit"]["code"], 4);
}

#[test]
fn the_document_tells_of_it() {
    let house = House::new(Kind::Sqlite);
    let server = house.serve(&[]);
    let document = server.client().get("/openapi.json").expect(200).json();
    let get = &document["paths"]["/spaces/{id}/terminal"]["get"];
    assert!(get["responses"]["101"].is_object() && get["responses"]["426"].is_object(), "{get}");
}
