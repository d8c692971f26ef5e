//! WebSocket: the handshake, and raw bytes behind it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::{Reply, SECRET, Server, TOKEN, canned, pattern, program, read_head, value};
use podyard_gateway::{Activity, Options};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-Extra: yes\r\n";

const MIB: usize = 1024 * 1024;

fn handshake(path: &str, headers: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: ide.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Extensions: permessage-deflate\r\n{headers}\r\n"
    )
}

fn with_token(path: &str) -> String {
    handshake(path, &format!("X-Auth-Token: {TOKEN}\r\n"))
}

/// A program that sends everything back until its end, and then closes.
async fn echo() -> std::net::SocketAddr {
    program(|mut stream, _| async move {
        let mut rest = Vec::new();
        let Some(_) = read_head(&mut stream, &mut rest).await else { return };
        // Some of the tunnel's bytes come in the same packet.
        stream.write_all(format!("{SWITCH}\r\nhello").as_bytes()).await.unwrap();
        stream.write_all(&rest).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

/// A client behind its handshake; what came with the `101` is returned with it.
async fn connect(server: &Server, request: &str) -> (TcpStream, Reply, Vec<u8>) {
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let head = timeout(Duration::from_secs(5), read_head(&mut stream, &mut rest)).await.unwrap().unwrap();
    (stream, Reply::parse(head.as_bytes()), rest)
}

async fn read_exactly(stream: &mut (impl AsyncReadExt + Unpin), got: &mut Vec<u8>, len: usize) {
    let all = timeout(Duration::from_secs(30), async {
        while got.len() < len {
            assert_ne!(stream.read_buf(got).await.unwrap(), 0, "ended after {}", got.len());
        }
    });
    all.await.expect("all comes back");
}

#[actix_web::test]
async fn the_handshake_passes_with_the_right_headers() {
    let server = Server::start();
    let addr = program(|mut stream, _| async move {
        let head = read_head(&mut stream, &mut Vec::new()).await.unwrap();
        stream.write_all(format!("{SWITCH}\r\n{head}").as_bytes()).await.unwrap();
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    server.platform.open("s1", addr);
    let cookie = format!("Cookie: podyard_session={TOKEN}; own=1\r\nOrigin: http://ide.example\r\n");
    let (mut stream, reply, mut got) = connect(&server, &handshake("/ws/s1/stable?a=%2F", &cookie)).await;
    assert_eq!(reply.status, 101);
    assert_eq!(reply.header("connection"), Some("upgrade"));
    assert_eq!(reply.all("upgrade"), ["websocket"]);
    assert_eq!(reply.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(reply.header("x-extra"), Some("yes"));
    assert_eq!((reply.header("transfer-encoding"), reply.header("content-length")), (None, None));
    while !got.ends_with(b"\r\n\r\n") {
        stream.read_buf(&mut got).await.unwrap();
    }
    let seen = String::from_utf8(got).unwrap();
    assert!(seen.starts_with("GET /stable?a=%2F HTTP/1.1\r\n"), "{seen}");
    // code-server compares these two.
    assert_eq!(value(&seen, "host"), Some("ide.example"));
    assert_eq!(value(&seen, "origin"), Some("http://ide.example"));
    assert_eq!(value(&seen, "x-forwarded-host"), Some("ide.example"));
    assert_eq!(value(&seen, "connection"), Some("Upgrade"));
    assert_eq!(value(&seen, "upgrade"), Some("websocket"));
    assert_eq!(value(&seen, "sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(value(&seen, "sec-websocket-extensions"), Some("permessage-deflate"));
    assert_eq!(value(&seen, "cookie"), Some("own=1"));
    assert_eq!(value(&seen, "x-podyard-space-secret"), Some(SECRET));
    assert!(!seen.contains(TOKEN) && !seen.contains("transfer-encoding"), "{seen}");
}

#[actix_web::test]
async fn ten_mebibytes_both_ways_at_once_and_a_half_close() {
    let server = Server::start();
    server.platform.open("s1", echo().await);
    let (stream, reply, mut got) = connect(&server, &with_token("/ws/s1/")).await;
    assert_eq!(reply.status, 101);
    let body = pattern(10 * MIB);
    let (mut read, mut write) = stream.into_split();
    let sending = body.clone();
    let sender = actix_web::rt::spawn(async move {
        write.write_all(&sending).await.unwrap();
        // The client has said everything; what is on its way back must still arrive.
        write.shutdown().await.unwrap();
        write
    });
    read_exactly(&mut read, &mut got, 5 + body.len()).await;
    assert!(got[..5] == *b"hello" && got[5..] == body[..]);
    let end = timeout(Duration::from_secs(5), read.read(&mut [0; 16])).await.expect("and then it ends");
    assert_eq!(end.unwrap(), 0);
    drop(sender.await.unwrap());
    let stats = server.gateway.stats();
    assert_eq!(stats.bytes_up.load(Ordering::Relaxed) as usize, body.len());
    assert_eq!(stats.tunnels.load(Ordering::Relaxed), 1);
    closes(&server).await;
}

async fn closes(server: &Server) {
    let stats = server.gateway.stats();
    let none = timeout(Duration::from_secs(5), async {
        while stats.open_tunnels.load(Ordering::Relaxed) > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    });
    none.await.expect("no tunnel is left");
}

#[actix_web::test]
async fn a_program_that_closes_first_still_gets_what_is_on_its_way() {
    let server = Server::start();
    let (done, mut total) = tokio::sync::mpsc::channel(1);
    let addr = program(move |mut stream, _| {
        let done = done.clone();
        async move {
            let mut got = Vec::new();
            read_head(&mut stream, &mut got).await;
            stream.write_all(format!("{SWITCH}\r\nbye").as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = stream.read_to_end(&mut got).await;
            done.send(got.len()).await.unwrap();
        }
    })
    .await;
    server.platform.open("s1", addr);
    let (mut stream, _, mut got) = connect(&server, &with_token("/ws/s1/")).await;
    read_exactly(&mut stream, &mut got, 3).await;
    for _ in 0..20 {
        stream.write_all(&[7; 50_000]).await.unwrap();
        sleep(Duration::from_millis(25)).await;
    }
    stream.shutdown().await.unwrap();
    assert_eq!(timeout(Duration::from_secs(5), total.recv()).await.unwrap(), Some(1_000_000));
    closes(&server).await;
}

#[actix_web::test]
async fn a_client_that_is_far_ahead_is_held_back_and_never_cut_off_cleanly() {
    const LIMIT: usize = 64 * 1024;
    const PIECE: usize = 16 * 1024;
    let server = Server::with(Options { tunnel_buffer: LIMIT, ..Options::default() });
    let stats = server.gateway.stats();
    // How far the client is ahead when it closes: not held back, held back with nothing more to
    // come, and so that actix holds bytes which it will lose.
    for ahead in [LIMIT / 2, LIMIT, LIMIT + 8 * PIECE, LIMIT + 64 * PIECE] {
        let (done, mut result) = tokio::sync::mpsc::channel(1);
        let go = Arc::new(tokio::sync::Notify::new());
        let may_read = go.clone();
        let addr = program(move |mut stream, _| {
            let (done, may_read) = (done.clone(), may_read.clone());
            async move {
                let mut got = Vec::new();
                read_head(&mut stream, &mut got).await;
                stream.write_all(format!("{SWITCH}\r\n").as_bytes()).await.unwrap();
                may_read.notified().await;
                let end = stream.read_to_end(&mut got).await;
                done.send((end.is_ok(), got)).await.unwrap();
            }
        })
        .await;
        server.platform.open("s1", addr);
        let (mut stream, ..) = connect(&server, &with_token("/ws/s1/")).await;
        let body = pattern(64 * MIB);
        let before = stats.bytes_up.load(Ordering::Relaxed);
        let taken = || (stats.bytes_up.load(Ordering::Relaxed) - before) as usize;
        // Until the sockets to the program are full.
        let mut sent = 0;
        while taken() == sent {
            stream.write_all(&body[sent..sent + PIECE]).await.unwrap();
            sent += PIECE;
            for _ in 0..100 {
                if taken() == sent {
                    break;
                }
                sleep(Duration::from_millis(1)).await;
            }
        }
        // And then so much more, in pieces that the gateway sees one by one.
        while sent < taken() + ahead {
            let room = timeout(Duration::from_secs(1), stream.write_all(&body[sent..sent + PIECE])).await;
            room.expect("the sockets take it").unwrap();
            sent += PIECE;
            sleep(Duration::from_millis(2)).await;
        }
        stream.shutdown().await.unwrap();
        sleep(Duration::from_millis(100)).await;
        go.notify_one();
        let (clean, got) = timeout(Duration::from_secs(10), result.recv()).await.unwrap().unwrap();
        assert!(body.starts_with(&got));
        assert!(!clean || got.len() == sent, "{ahead} ahead: a clean end after {} of {sent}", got.len());
        assert!(clean || ahead > LIMIT, "{ahead} ahead: nothing was lost, and yet it was broken off");
    }
    closes(&server).await;
}

#[actix_web::test]
async fn a_quiet_tunnel_ends_soon_after_the_program_closes() {
    let server = Server::start();
    let addr = program(|mut stream, _| async move {
        read_head(&mut stream, &mut Vec::new()).await;
        stream.write_all(format!("{SWITCH}\r\n").as_bytes()).await.unwrap();
    })
    .await;
    server.platform.open("s1", addr);
    let started = Instant::now();
    let (mut stream, ..) = connect(&server, &with_token("/ws/s1/")).await;
    let end = timeout(Duration::from_secs(5), stream.read(&mut [0; 1])).await.expect("it ends");
    assert_eq!(end.unwrap(), 0);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    closes(&server).await;
}

/// actix counts its timeouts from a clock that stands still for half a second.
#[actix_web::test]
async fn a_clients_connection_ends_whenever_the_tunnel_does() {
    let server = Server::lingering(Options::default(), Duration::from_millis(200));
    let addr = program(|mut stream, _| async move {
        read_head(&mut stream, &mut Vec::new()).await;
        stream.write_all(format!("{SWITCH}\r\n").as_bytes()).await.unwrap();
    })
    .await;
    server.platform.open("s1", addr);
    let mut clients = Vec::new();
    for _ in 0..20 {
        let addr = server.addr;
        clients.push(actix_web::rt::spawn(async move {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(with_token("/ws/s1/").as_bytes()).await.unwrap();
            let mut got = Vec::new();
            timeout(Duration::from_millis(1500), stream.read_to_end(&mut got))
                .await
                .expect("it ends")
                .unwrap();
        }));
        sleep(Duration::from_millis(53)).await;
    }
    for client in clients {
        client.await.unwrap();
    }
}

#[actix_web::test]
async fn a_client_that_does_not_read_holds_up_nothing() {
    let server = Server::start();
    let addr = program(|mut stream, _| async move {
        read_head(&mut stream, &mut Vec::new()).await;
        stream.write_all(format!("{SWITCH}\r\n").as_bytes()).await.unwrap();
        while stream.write_all(&[7; 65536]).await.is_ok() {}
    })
    .await;
    server.platform.open("s1", addr);
    let (stream, ..) = connect(&server, &with_token("/ws/s1/")).await;
    // Until nothing more fits anywhere.
    let stats = server.gateway.stats();
    let down = || stats.bytes_down.load(Ordering::Relaxed);
    let mut before = u64::MAX;
    while before != down() {
        before = down();
        sleep(Duration::from_millis(200)).await;
    }
    assert!(before > 0);
    let started = Instant::now();
    server.gateway.shut_down();
    server.handle.stop(true).await;
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
    drop(stream);
}

#[actix_web::test]
async fn a_client_that_vanishes_takes_the_programs_side_with_it() {
    let server = Server::with(Options { finish_timeout: Duration::from_millis(500), ..Options::default() });
    let (done, mut ended) = tokio::sync::mpsc::channel(1);
    let addr = program(move |mut stream, _| {
        let done = done.clone();
        async move {
            let mut got = Vec::new();
            read_head(&mut stream, &mut got).await;
            stream.write_all(format!("{SWITCH}\r\n").as_bytes()).await.unwrap();
            // The client's end arrives at once, but this program never closes by itself.
            let n = stream.read(&mut [0; 16]).await.unwrap();
            done.send(n).await.unwrap();
            sleep(Duration::from_secs(60)).await;
        }
    })
    .await;
    server.platform.open("s1", addr);
    let (stream, ..) = connect(&server, &with_token("/ws/s1/")).await;
    drop(stream);
    assert_eq!(timeout(Duration::from_secs(5), ended.recv()).await.unwrap(), Some(0));
    closes(&server).await;
}

#[actix_web::test]
async fn a_client_that_breaks_off_ends_the_tunnel_at_once() {
    let server = Server::start();
    let addr = program(|mut stream, _| async move {
        read_head(&mut stream, &mut Vec::new()).await;
        stream.write_all(format!("{SWITCH}\r\n").as_bytes()).await.unwrap();
        sleep(Duration::from_secs(60)).await;
    })
    .await;
    server.platform.open("s1", addr);
    let (stream, ..) = connect(&server, &with_token("/ws/s1/")).await;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    // Far sooner than a program is given to finish.
    closes(&server).await;
}

#[actix_web::test]
async fn a_program_may_refuse() {
    let server = Server::start();
    for (answer, body) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\nX-Why: origin\r\n\r\nnot yours", "not yours"),
        (
            "HTTP/1.1 403 Forbidden\r\nX-Why: origin\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nnot\r\n6\r\n yours\r\n0\r\n\r\n",
            "not yours",
        ),
        ("HTTP/1.1 403 Forbidden\r\nX-Why: origin\r\nContent-Length: 0\r\n\r\n", ""),
    ] {
        server.platform.open("s1", canned(answer).await);
        let reply = server.ask(&with_token("/ws/s1/")).await;
        assert_eq!((reply.status, reply.header("x-why"), reply.text().as_str()), (403, Some("origin"), body));
        assert_eq!(reply.header("upgrade"), None);
        assert_eq!(reply.header("transfer-encoding"), None);
    }
    assert_eq!(server.gateway.stats().open_tunnels.load(Ordering::Relaxed), 0);
}

#[actix_web::test]
async fn another_sites_page_cannot_use_the_cookie() {
    let server = Server::start();
    server.platform.open("s1", echo().await);
    let cookie = format!("Cookie: podyard_session={TOKEN}\r\n");
    for origin in ["http://evil.example", "null", "http://ide.example:81", "http://ide.example.evil.example"]
    {
        let reply = server.ask(&handshake("/ws/s1/", &format!("{cookie}Origin: {origin}\r\n"))).await;
        assert_eq!(reply.status, 403, "{origin}");
        let post = format!(
            "POST /ws/s1/ HTTP/1.1\r\nHost: ide.example\r\nConnection: close\r\nContent-Length: 0\r\n{cookie}Origin: {origin}\r\n\r\n"
        );
        assert_eq!(server.ask(&post).await.status, 403, "{origin}");
    }
    for headers in ["Origin: http://ide.example\r\n", "Origin: https://IDE.example\r\n", ""] {
        assert_eq!(
            connect(&server, &handshake("/ws/s1/", &format!("{cookie}{headers}"))).await.1.status,
            101
        );
    }
    // Whoever shows a token of his own is no browser that was led here.
    let own =
        handshake("/ws/s1/", &format!("Authorization: Bearer {TOKEN}\r\nOrigin: http://evil.example\r\n"));
    assert_eq!(connect(&server, &own).await.1.status, 101);
}

#[actix_web::test]
async fn tunnels_end_with_the_space_the_right_and_the_server() {
    let server = Server::with(Options {
        recheck: Duration::from_millis(200),
        idle_timeout: Duration::from_millis(1500),
        ..Options::default()
    });
    let addr = echo().await;
    server.platform.open("s1", addr);
    let (mut lost, ..) = connect(&server, &with_token("/ws/s1/")).await;
    sleep(Duration::from_millis(500)).await;
    lost.write_all(b"x").await.unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(server.gateway.stats().open_tunnels.load(Ordering::Relaxed), 1);
    let seen = server.platform.activities.lock().unwrap().clone();
    assert!(seen.contains(&("s1".into(), Activity::Tunnel { up: 1, down: 1 })), "{seen:?}");
    // The database being away throws nobody out.
    server.platform.set("s1", podyard_gateway::Route::Unavailable);
    sleep(Duration::from_millis(400)).await;
    assert_eq!(server.gateway.stats().open_tunnels.load(Ordering::Relaxed), 1);
    server.platform.set("s1", podyard_gateway::Route::NotFound);
    closes(&server).await;

    server.platform.open("s1", addr);
    let (_idle, ..) = connect(&server, &with_token("/ws/s1/")).await;
    sleep(Duration::from_millis(700)).await;
    assert_eq!(server.gateway.stats().open_tunnels.load(Ordering::Relaxed), 1);
    closes(&server).await;

    let (mut stopped, _, mut got) = connect(&server, &with_token("/ws/s1/")).await;
    read_exactly(&mut stopped, &mut got, 5).await;
    let started = Instant::now();
    server.gateway.shut_down();
    closes(&server).await;
    assert!(started.elapsed() < Duration::from_secs(1));
    let end = timeout(Duration::from_secs(3), stopped.read(&mut [0; 1])).await.expect("the client sees it");
    assert_eq!(end.unwrap(), 0);
}

#[actix_web::test]
async fn two_hundred_idle_tunnels() {
    let server = Server::start();
    server.platform.open("s1", echo().await);
    let mut open = Vec::new();
    for _ in 0..200 {
        open.push(connect(&server, &with_token("/ws/s1/")).await);
    }
    assert_eq!(server.gateway.stats().open_tunnels.load(Ordering::Relaxed), 200);
    for (stream, _, got) in &mut open {
        stream.write_all(b"ping").await.unwrap();
        read_exactly(stream, got, 9).await;
        assert_eq!(got, b"helloping");
    }
    drop(open);
    closes(&server).await;
}

#[actix_web::test]
async fn an_upgrade_to_something_else_is_not_passed_on() {
    let server = Server::start();
    server.platform.open("s1", common::mirror().await);
    let seen = server.get("/ws/s1/", "Upgrade: h2c\r\n").await.text();
    assert_eq!(value(&seen, "upgrade"), None);
    assert_eq!(value(&seen, "connection"), None);
}
