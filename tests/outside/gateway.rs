//! The way to a space's program: websockets, pages for people, and what must
//! not pass.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;
use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

use crate::harness::{Client, HELPER, House, Kind, Server, key, until};

on_each_database!(
    a_websocket_passes_both_ways,
    a_websocket_ends_with_the_space_and_the_server,
    the_platforms_own_headers_do_not_pass,
    browsers_are_asked_to_log_in,
    pages_wait_and_tell,
    problems_carry_the_request_id,
);

type Socket = WebSocket<TcpStream>;

fn connect(client: &Client, url: &str, header: Option<(&'static str, &str)>) -> Result<Socket, u16> {
    let address = client.base.strip_prefix("http://").unwrap();
    let mut request = format!("ws://{address}{url}").into_client_request().unwrap();
    if let Some((name, value)) = header {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    match tungstenite::client(request, stream) {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
            Err(answer.status().as_u16())
        }
        Err(error) => panic!("{url}: {error}"),
    }
}

fn open(client: &Client, url: &str) -> Socket {
    let token = client.token.clone().unwrap();
    connect(client, url, Some(("x-auth-token", &token))).unwrap_or_else(|it| panic!("{url}: {it}"))
}

fn echoed(socket: &mut Socket, message: Message) {
    socket.send(message.clone()).unwrap();
    assert_eq!(socket.read().unwrap(), message);
}

fn a_websocket_passes_both_ways(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let ann = admin.member("ann");
    let url = format!("{}socket?x=1", key(&ann.running_space("ws", &template), "url"));
    let mut sockets: Vec<_> = (0..10).map(|_| open(&ann, &url)).collect();
    for (i, socket) in sockets.iter_mut().enumerate() {
        echoed(socket, Message::text(format!("message {i}")));
        echoed(socket, Message::binary(vec![0, 255, 1]));
    }
    let large: Vec<u8> = (0..3_000_000_u32).map(|it| it.to_le_bytes()[0]).collect();
    echoed(&mut sockets[3], Message::binary(large));
    echoed(&mut sockets[4], Message::text("after the large one"));
    // A goodbye passes as well.
    let mut last = sockets.pop().unwrap();
    last.close(None).unwrap();
    until("it is closed", Duration::from_secs(5), || last.read().is_err().then_some(()));
    // By bearer too, and by nothing else.
    let bearer = format!("Bearer {}", ann.token.as_deref().unwrap());
    echoed(&mut connect(&ann, &url, Some(("authorization", &bearer))).unwrap(), Message::text("x"));
    assert_eq!(connect(&ann, &url, None).unwrap_err(), 401);
    assert_eq!(connect(&ann, &url, Some(("x-auth-token", "nonsense"))).unwrap_err(), 401);
    let bob = admin.member("bob");
    assert_eq!(connect(&bob, &url, Some(("x-auth-token", bob.token.as_deref().unwrap()))).unwrap_err(), 404);
    // A browser that another site sends is turned away.
    let cookie = format!("podyard_session={}", ann.token.as_deref().unwrap());
    let address = ann.base.strip_prefix("http://").unwrap();
    for (origin, status) in [(ann.base.clone(), 101), ("http://evil.example".to_owned(), 403)] {
        let mut request = format!("ws://{address}{url}").into_client_request().unwrap();
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
        request.headers_mut().insert("origin", origin.parse().unwrap());
        let got = match tungstenite::client(request, TcpStream::connect(address).unwrap()) {
            Ok(_) => 101,
            Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
                answer.status().as_u16()
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(got, status, "{origin}");
    }
}

/// The other side ends it, soon.
#[track_caller]
fn ends(mut socket: Socket) {
    socket.get_ref().set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    loop {
        match socket.read() {
            Ok(message) => assert!(message.is_close(), "{message:?}"),
            Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("the websocket is still open 5 s later")
            }
            Err(_) => return,
        }
    }
}

fn a_websocket_ends_with_the_space_and_the_server(kind: Kind) {
    let house = House::new(kind);
    let mut server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let space = admin.running_space("ws", &template);
    let (id, url) = (key(&space, "id"), key(&space, "url"));
    let mut socket = open(&admin, &url);
    echoed(&mut socket, Message::text("x"));
    admin.stop(&id);
    ends(socket);
    assert_eq!(
        connect(&admin, &url, Some(("x-auth-token", admin.token.as_deref().unwrap()))).unwrap_err(),
        409
    );
    admin.start(&id);
    let mut socket = open(&admin, &url);
    echoed(&mut socket, Message::text("x"));
    // An open tunnel does not hold up the server's end.
    let start = std::time::Instant::now();
    server.ask_to_end();
    assert!(server.wait(Duration::from_secs(15)).success());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    ends(socket);
}

fn the_platforms_own_headers_do_not_pass(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let ann = admin.member("ann");
    let url = key(&ann.running_space("x", &template), "url");
    let token = ann.token.clone().unwrap();
    let cookie = format!("own=1; podyard_session={token}; other=2");
    let headers = [
        ("X-Podyard-Space-Secret", "forged"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", "/evil"),
        ("Forwarded", "for=6.6.6.6"),
        ("Cookie", cookie.as_str()),
        ("X-Own", "passes"),
        ("Accept-Language", "de"),
    ];
    let told = ann.send("GET", &url, &headers, None).expect(200);
    assert!(!told.text().contains(&token), "{}", told.text());
    let told = told.json()["headers"].clone();
    for name in ["x-auth-token", "authorization", "forwarded"] {
        assert!(told.get(name).is_none(), "{name} in {told}");
    }
    assert_eq!(told["cookie"], "own=1; other=2");
    assert_eq!((&told["x-own"], &told["accept-language"]), (&json!("passes"), &json!("de")));
    assert_eq!(told["x-forwarded-for"], "127.0.0.1");
    assert_eq!(told["x-forwarded-proto"], "http");
    assert_eq!(told["x-forwarded-prefix"], url.trim_end_matches('/'));
    assert_eq!(told["x-forwarded-host"], ann.base.strip_prefix("http://").unwrap());
    let secret = key(&told, "x-podyard-space-secret");
    assert!(secret.len() >= 32 && secret != "forged", "{told}");
    // As bearer and as cookie alone it stays here as well.
    let bearer = format!("Bearer {token}");
    let told = ann.nobody().send("GET", &url, &[("Authorization", &bearer)], None).expect(200);
    assert!(!told.text().contains(&token), "{}", told.text());
    let told =
        ann.nobody().send("GET", &url, &[("Cookie", &format!("podyard_session={token}"))], None).expect(200);
    assert!(!told.text().contains(&token), "{}", told.text());
    // A program's own authorization is its own business.
    let told = ann.send("GET", &url, &[("Authorization", "Basic b3duOm93bg==")], None).expect(200).json();
    assert_eq!(told["headers"]["authorization"], "Basic b3duOm93bg==");
    // What a program may not say.
    let answer = ann.get(&format!("{url}evil")).expect(200);
    for name in ["x-podyard-space-evil", "clear-site-data"] {
        assert!(answer.headers.get(name).is_none(), "{name} passes");
    }
    let cookies: Vec<_> =
        answer.headers.get_all("set-cookie").iter().filter_map(|it| it.to_str().ok()).collect();
    assert_eq!(cookies, [format!("own=1; Path={url}")]);
    // Nobody on this machine gets past the gateway to a program that asks for the secret.
    let files = ann.space("files", "files");
    ann.stop(&key(&ann.get("/spaces/x").of("space"), "id"));
    ann.start(&files);
    let log = crate::harness::programs(&files);
    let args = std::fs::read(format!("/proc/{}/cmdline", log[0])).unwrap();
    let args: Vec<_> = args.split(|it| *it == 0).map(String::from_utf8_lossy).collect();
    let listen = args.iter().find(|it| it.starts_with("127.0.0.1:")).unwrap();
    Client::new(&format!("http://{listen}")).get("/api/list").expect(403);
}

/// Sends the login form as a browser does.
fn form(server: &Server, fields: &str, origin: Option<&str>) -> crate::harness::Answer {
    let mut headers = vec![("Content-Type", "application/x-www-form-urlencoded"), ("Accept", "text/html")];
    headers.extend(origin.map(|it| ("Origin", it)));
    server.client().send("POST", "/login", &headers, Some(fields.as_bytes()))
}

fn browsers_are_asked_to_log_in(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let ann = admin.member("ann");
    let url = format!("{}page?a=b", key(&ann.running_space("x", &template), "url"));
    let html = [("Accept", "text/html,application/xhtml+xml")];
    let page = server.client().send("GET", &url, &html, None).expect(401);
    assert!(page.header("content-type").starts_with("text/html"), "{:?}", page.headers);
    assert!(page.text().contains("<form") && page.text().contains("name=\"password\""), "{}", page.text());
    assert!(page.text().contains("page?a=b"), "it leads back to where it came from");
    // A program gets a problem.
    server.client().get(&url).refused(401, "UnauthorizedError");
    // Wrong, from elsewhere, and right.
    let base = server.base.clone();
    let next = url.replace('/', "%2F").replace('?', "%3F").replace('=', "%3D");
    let fields = |password: &str| format!("user=ann&password={password}&next={next}");
    let wrong = form(&server, &fields("wrong-password"), Some(&base)).expect(401);
    assert!(wrong.headers.get("set-cookie").is_none() && wrong.text().contains("wrong"), "{}", wrong.text());
    form(&server, &fields("password-of-ann"), Some("http://evil.example")).expect(403);
    form(&server, &fields("password-of-ann"), None).expect(403);
    let right = form(&server, &fields("password-of-ann"), Some(&base)).expect(303);
    assert_eq!(right.header("location"), url);
    let cookie = right.header("set-cookie").to_owned();
    for part in ["podyard_session=", "HttpOnly", "SameSite=Lax", "Path=/ws/", "Max-Age="] {
        assert!(cookie.contains(part), "no {part} in {cookie}");
    }
    let session = cookie.split(';').next().unwrap().to_owned();
    let with = |path: &str, more: &[(&str, &str)], method: &str| {
        let mut headers = vec![("Cookie", session.as_str()), ("Accept", "text/html")];
        headers.extend_from_slice(more);
        server.client().send(method, path, &headers, (method == "POST").then_some(b""))
    };
    assert_eq!(with(&url, &[], "GET").expect(200).json()["path"], "/page?a=b");
    // The cookie opens spaces and nothing of the API.
    with("/spaces", &[], "GET").expect(401);
    // A link elsewhere leads nowhere else.
    let elsewhere = "user=ann&password=password-of-ann&next=https%3A%2F%2Fevil.example%2F";
    let answer = form(&server, elsewhere, Some(&base)).expect(303);
    assert!(!answer.header("location").contains("evil"), "{}", answer.header("location"));
    // Another site's page cannot act with it.
    with(&url, &[("Origin", "http://evil.example")], "POST").expect(403);
    with(&url, &[("Origin", &base)], "POST").expect(200);
    // Logging out ends the session, not only the cookie.
    let out = with("/logout", &[("Origin", &base)], "POST").expect(307);
    let out = with(out.header("location"), &[("Origin", &base)], "POST").expect(303);
    assert!(out.header("set-cookie").contains("Max-Age=0"), "{:?}", out.headers);
    with(&url, &[], "GET").expect(401);
    // Too many wrong ones are throttled here as they are at the API.
    for _ in 0..5 {
        form(&server, &fields("wrong-password"), Some(&base));
    }
    let throttled = form(&server, &fields("password-of-ann"), Some(&base)).expect(429);
    assert!(!throttled.header("retry-after").is_empty());
}

fn pages_wait_and_tell(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let slow = admin.template("Slow", &[HELPER, "serve", "{port}", "1200"]);
    let id = admin.space("the <b>slow</b> one", &slow);
    let url = key(&admin.read_space(&id), "url");
    let html = [("Accept", "text/html")];
    let page = |status: u16| admin.send("GET", &url, &html, None).expect(status);
    let stopped = page(409).text();
    assert!(stopped.contains("is stopped") && !stopped.contains("<b>slow"), "{stopped}");
    admin.act(&id, "start").expect(202);
    let waiting = page(503);
    assert!(
        waiting.text().contains("is starting") && waiting.text().contains("<script>"),
        "{}",
        waiting.text()
    );
    assert!(!waiting.header("retry-after").is_empty() && waiting.header("cache-control") == "no-store");
    assert!(waiting.header("content-security-policy").contains("default-src 'none'"));
    // The page asks again until it opens.
    until("it opens", Duration::from_secs(10), || {
        (admin.send("GET", &url, &html, None).status == 200).then_some(())
    });
    // Without the slash it leads to where the slash is.
    let redirect = admin.send("GET", url.trim_end_matches('/'), &html, None);
    assert!([301, 302, 307, 308].contains(&redirect.status), "{}", redirect.status);
    assert_eq!(redirect.header("location").trim_start_matches(&admin.base), url);
    // One that does not exist, in both languages.
    let gone = admin.send("GET", "/ws/0123456789abcdef/", &html, None).expect(404).text();
    assert!(gone.contains("no such space"), "{gone}");
    let chinese = [("Accept", "text/html"), ("Accept-Language", "zh-CN,zh;q=0.9")];
    assert!(admin.send("GET", "/ws/0123456789abcdef/", &chinese, None).text().contains("lang=\"zh\""));
    admin.stop(&id);
    page(409);
}

/// Whoever reads an error can tell the operators which request it was.
fn problems_carry_the_request_id(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let id = admin.space("x", "files");
    let url = key(&admin.read_space(&id), "url");
    for (path, status) in [(url.as_str(), 409), ("/ws/0123456789abcdef/", 404), ("/ws/x/%00", 400)] {
        let given = admin.send("GET", path, &[("X-Request-Id", "mine-7")], None).expect(status);
        assert_eq!(given.json()["request_id"], "mine-7", "{path}");
        let made = admin.get(path).expect(status);
        assert!(made.json()["request_id"].is_string(), "{path}: no request_id in {}", made.text());
    }
    admin.nobody().get(&url).expect(401).json()["request_id"].as_str().unwrap();
}
