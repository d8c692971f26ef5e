//! Programs behind the proxy of an API server: a stand-in that does to requests and answers what
//! that does, with a program behind it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use podyard_driver::{Pending, Stream, Through};
use podyard_gateway::Route;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const PREFIX: &str = "/api/v1/namespaces/spaces/pods/ws-a:8080/proxy";

/// A way to a stand-in for an API server.
struct Proxy(std::net::SocketAddr);

impl Through for Proxy {
    fn connect(&self) -> Pending<'_, std::io::Result<Box<dyn Stream>>> {
        let addr = self.0;
        Box::pin(async move { Ok(Box::new(TcpStream::connect(addr).await?) as Box<dyn Stream>) })
    }

    fn prefix(&self) -> &str {
        PREFIX
    }

    fn headers(&self) -> Vec<(String, String)> {
        vec![("Authorization".into(), "Bearer of-the-cluster".into())]
    }
}

fn open(server: &Server, sid: &str, api: std::net::SocketAddr) {
    let through: Option<Arc<dyn Through>> = Some(Arc::new(Proxy(api)));
    // Nobody listens there: whoever connected to it would fail.
    let addr = ([127, 0, 0, 1], 1).into();
    let route = Route::Open { addr, secret: SECRET.into(), host: None, keep_prefix: false, through };
    server.platform.set(sid, route);
}

#[actix_web::test]
async fn requests_go_under_the_proxys_path_as_the_platform() {
    let server = Server::start();
    open(&server, "s1", mirror().await);
    let headers = "Authorization: Basic bWluZTptaW5l\r\nImpersonate-User: system:admin\r\nX-Remote-Group: system:masters\r\n\
                   Accept-Encoding: gzip\r\nCookie: a=b; podyard_session=x\r\n";
    let reply = server.get("/ws/s1/a%20b/?c=d", headers).await;
    assert_eq!(reply.status, 200, "{}", reply.head);
    let seen = reply.text();
    assert!(seen.starts_with(&format!("GET {PREFIX}/a%20b/?c=d HTTP/1.1\r\n")), "{seen}");
    assert_eq!(value(&seen, "authorization"), Some("Bearer of-the-cluster"));
    assert_eq!(value(&seen, "x-podyard-space-secret"), Some(SECRET));
    assert_eq!(value(&seen, "cookie"), Some("a=b"));
    assert_eq!(value(&seen, "accept-encoding"), Some("identity"));
    for name in ["impersonate-user", "x-remote-group", "x-auth-token"] {
        assert_eq!(value(&seen, name), None, "{name} in {seen}");
    }
}

#[actix_web::test]
async fn what_the_proxy_wrote_into_answers_is_taken_out() {
    let server = Server::start();
    let page = format!("<a href=\"{PREFIX}/x\">x</a><img src=\"{PREFIX}/y.png\">");
    let (left, right) = page.split_at(30);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nAudit-Id: 7\r\nCache-Control: no-cache, private\r\nCache-Control: max-age=9\r\n\
         Content-Type: text/html; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{left}\r\n{:x}\r\n{right}\r\n0\r\n\r\n",
        left.len(),
        right.len()
    );
    open(&server, "s1", canned(answer).await);
    let reply = server.get("/ws/s1/", "").await;
    assert_eq!(reply.text(), "<a href=\"/x\">x</a><img src=\"/y.png\">");
    assert_eq!(reply.all("cache-control"), ["max-age=9"]);
    assert_eq!(reply.header("audit-id"), None);

    // Its own length is the changed page's no more.
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{page}", page.len());
    open(&server, "s2", canned(answer).await);
    assert_eq!(server.get("/ws/s2/", "").await.text(), "<a href=\"/x\">x</a><img src=\"/y.png\">");

    // What is no page stays as it is.
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{page}",
        page.len()
    );
    open(&server, "s3", canned(answer).await);
    assert_eq!(server.get("/ws/s3/", "").await.text(), page);

    for (sid, location, want) in [
        ("s4", format!("{PREFIX}/login?to=/x"), "/ws/s4/login?to=/x"),
        ("s5", format!("https://api.example:6443{PREFIX}/x"), "/ws/s5/x"),
        ("s6", "https://elsewhere.example/x".to_owned(), "https://elsewhere.example/x"),
    ] {
        let answer = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        open(&server, sid, canned(answer).await);
        let reply = server.get(&format!("/ws/{sid}/"), "").await;
        assert_eq!(reply.header("location"), Some(want), "{location}");
    }
}

#[actix_web::test]
async fn an_api_server_that_does_not_reach_the_program_is_a_bad_gateway() {
    let server = Server::start();
    let status = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"error trying to reach service: dial tcp 10.1.2.3:8080: connect: connection refused","reason":"ServiceUnavailable","code":503}"#;
    for (code, sid) in
        [("503 Service Unavailable", "s1"), ("404 Not Found", "s2"), ("401 Unauthorized", "s3")]
    {
        let answer = format!(
            "HTTP/1.1 {code}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{status}",
            status.len()
        );
        open(&server, sid, canned(answer).await);
        let reply = server.get(&format!("/ws/{sid}/"), "").await;
        assert_eq!(reply.status, 502, "{}", reply.text());
        assert!(!reply.text().contains("10.1.2.3"), "{}", reply.text());
    }
    // The program's own errors pass, whole.
    for (sid, body) in [
        ("s4", r#"{"kind":"Status","code":7}"#.to_owned()),
        ("s5", format!("{{\"error\":\"{}\"}}", "x".repeat(100_000))),
    ] {
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        open(&server, sid, canned(answer).await);
        let reply = server.get(&format!("/ws/{sid}/"), "").await;
        assert_eq!((reply.status, reply.text() == body), (503, true));
    }
    // Nobody there at all.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    open(&server, "s6", gone);
    assert_eq!(server.get("/ws/s6/", "").await.status, 502);
}

#[actix_web::test]
async fn websockets_go_through_and_both_ends_end() {
    let server = Server::start();
    let api = program(|mut stream, _| async move {
        let mut rest = Vec::new();
        let head = read_head(&mut stream, &mut rest).await.unwrap();
        assert!(head.starts_with(&format!("GET {PREFIX}/socket HTTP/1.1\r\n")), "{head}");
        assert_eq!(value(&head, "sec-websocket-protocol"), Some("chat"));
        assert_eq!(value(&head, "authorization"), Some("Bearer of-the-cluster"));
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Protocol: chat\r\n\r\nfirst";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut piece = vec![0; 65536];
        loop {
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(n) => stream.write_all(&piece[..n]).await.unwrap(),
            }
        }
    })
    .await;
    open(&server, "s1", api);
    let mut client = TcpStream::connect(server.addr).await.unwrap();
    let request = format!(
        "GET /ws/s1/socket HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Auth-Token: {TOKEN}\r\n\
         Sec-WebSocket-Protocol: chat, base64url.bearer.authorization.k8s.io.dG9rZW4\r\n\r\n",
        server.addr
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let head = read_head(&mut client, &mut rest).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let sent = pattern(3 << 20);
    let (mut read, mut write) = client.into_split();
    let copy = sent.clone();
    let writing = actix_web::rt::spawn(async move {
        write.write_all(&copy).await.unwrap();
        write
    });
    let mut got = rest;
    while got.len() < sent.len() + 5 {
        let mut piece = vec![0; 65536];
        let n = tokio::time::timeout(std::time::Duration::from_secs(20), read.read(&mut piece))
            .await
            .unwrap()
            .unwrap();
        assert!(n > 0, "it ended after {}", got.len());
        got.extend_from_slice(&piece[..n]);
    }
    assert_eq!(&got[..5], b"first");
    assert!(got[5..] == sent[..], "bytes were changed");
    // The client's end is the program's, whose end is the client's.
    let mut write = writing.await.unwrap();
    write.shutdown().await.unwrap();
    let mut piece = [0; 16];
    let end = tokio::time::timeout(std::time::Duration::from_secs(20), read.read(&mut piece)).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    server.gateway.shut_down();
}
