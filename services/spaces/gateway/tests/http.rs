//! Requests and answers, as they are on the wire.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{
    Reply, SECRET, Server, TOKEN, canned, exchange, get, mirror, pattern, program, read_head, unchunk, value,
};
use podyard_gateway::{Activity, Options};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

#[actix_web::test]
async fn path_and_query_arrive_as_they_were_sent() {
    let server = Server::start();
    server.platform.open("s1", mirror().await);
    for (path, want) in [
        ("/ws/s1/", "/"),
        ("/ws/s1/a%2Fb%20c/./d;e=f?x=%2F&y=a+b&z", "/a%2Fb%20c/./d;e=f?x=%2F&y=a+b&z"),
        ("/ws/s1//double//x", "//double//x"),
        ("/ws/s1/?", "/?"),
        ("/ws/s1/%E4%BD%A0%0A/%41", "/%E4%BD%A0%0A/%41"),
        ("/ws/s1/ws/s1/", "/ws/s1/"),
        ("/ws/s1/proxy/8080/..%2f", "/proxy/8080/..%2f"),
    ] {
        let reply = server.get(path, "").await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.text().lines().next().unwrap(), format!("GET {want} HTTP/1.1"), "{path}");
    }
}

#[actix_web::test]
async fn paths_that_lead_upwards_are_refused() {
    let server = Server::start();
    server.platform.open("s1", mirror().await);
    for path in ["/ws/s1/../s2/", "/ws/s1/a/%2e%2E/b", "/ws/s1/.%2e", "/ws/s1/a%00b"] {
        let reply = server.get(path, "").await;
        assert_eq!(reply.status, 400, "{path}");
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        assert!(reply.text().contains("\"detail\":\"path: "), "{}", reply.text());
    }
}

#[actix_web::test]
async fn a_missing_slash_is_added() {
    let server = Server::start();
    let reply = server.ask(&get(server.addr, "/ws/s1?folder=/x%20y", "")).await;
    assert_eq!((reply.status, reply.header("location")), (308, Some("/ws/s1/?folder=/x%20y")));
}

#[actix_web::test]
async fn what_the_program_gets_to_see() {
    let server = Server::start();
    server.platform.open("s1", mirror().await);
    let request = format!(
        "GET /ws/s1/x HTTP/1.1\r\nHost: ide.example:8443\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\
         Keep-Alive: timeout=5\r\nTE: trailers\r\nProxy-Authorization: Basic eA==\r\nProxy-Connection: close\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAMA\r\nExpect: something\r\n\
         Cookie: a=1; podyard_session={TOKEN}; b=\"2; podyard_session=other\r\nCookie: c=3\r\n\
         Authorization: Bearer the-program's-own\r\nAccept-Encoding: br\r\nX-Request-Id: r-1\r\n\
         X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Prefix: /evil\r\nX-Forwarded-Port: 99\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n\
         X-Podyard-Space-Secret: forged\r\nX-Podyard-Space-Other: forged\r\nX-Podyard-Files: 1\r\n\r\n"
    );
    let reply = server.ask(&request).await;
    let mut got: Vec<String> = reply.text().trim_end().lines().skip(1).map(str::to_owned).collect();
    got.sort();
    let mut want: Vec<String> = [
        "host: ide.example:8443",
        "cookie: a=1; b=\"2",
        "cookie: c=3",
        "authorization: Bearer the-program's-own",
        "accept-encoding: br",
        "x-request-id: r-1",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: ide.example:8443",
        "x-forwarded-proto: http",
        "x-forwarded-prefix: /ws/s1",
        &format!("x-podyard-space-secret: {SECRET}"),
        "x-podyard-files: 1",
    ]
    .map(str::to_owned)
    .to_vec();
    want.sort();
    assert_eq!(got, want);
}

#[actix_web::test]
async fn our_tokens_do_not_reach_the_program() {
    let server = Server::start();
    server.platform.open("s1", mirror().await);
    for headers in [
        format!("X-Auth-Token: {TOKEN}\r\n"),
        format!("Authorization: bearer {TOKEN}\r\n"),
        format!("X-Auth-Token: {TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\n"),
        format!("Cookie: podyard_session={TOKEN}\r\n"),
        format!("Cookie: podyard_session=stale; podyard_session={TOKEN}\r\nX-Auth-Token: not-ours\r\n"),
    ] {
        let reply = server.ask(&get(server.addr, "/ws/s1/", &headers)).await;
        assert_eq!(reply.status, 200, "{headers}");
        let seen = reply.text().to_lowercase();
        for word in [TOKEN, "x-auth-token", "authorization", "podyard_session"] {
            assert!(!seen.contains(word), "{headers}: {seen}");
        }
    }
    // Basic is not ours.
    let reply = server.get("/ws/s1/", "Authorization: Basic eDp5\r\n").await;
    assert_eq!(value(&reply.text(), "authorization"), Some("Basic eDp5"));
}

#[actix_web::test]
async fn a_trusted_proxy_is_believed() {
    let server = Server::with(Options { trust_forwarded: true, ..Options::default() });
    server.platform.open("s1", mirror().await);
    let headers = "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Host: ide.example\r\nX-Forwarded-Proto: https\r\n\
                   X-Forwarded-Prefix: /cloud/\r\nX-Forwarded-Port: 443\r\n";
    let seen = server.get("/ws/s1/", headers).await.text();
    assert_eq!(value(&seen, "x-forwarded-for"), Some("9.9.9.9, 127.0.0.1"));
    assert_eq!(value(&seen, "x-forwarded-host"), Some("ide.example"));
    assert_eq!(value(&seen, "x-forwarded-proto"), Some("https"));
    assert_eq!(value(&seen, "x-forwarded-prefix"), Some("/cloud/ws/s1"));
    assert_eq!(value(&seen, "x-forwarded-port"), Some("443"));
    assert_eq!(value(&seen, "host"), Some(server.addr.to_string().as_str()));
}

#[actix_web::test]
async fn what_the_client_gets_to_see() {
    let server = Server::start();
    let addr = canned(
        "HTTP/1.1 302 Found\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
         Location: /login?to=.%2F\r\nSet-Cookie: a=b; Path=/; HttpOnly\r\nSet-Cookie: podyard_session=evil; Path=/ws/\r\n\
         Set-Cookie: =podyard_session=evil\r\nSet-Cookie: c=d; Domain=example; Secure\r\nService-Worker-Allowed: /\r\n\
         Clear-Site-Data: \"*\"\r\nStrict-Transport-Security: max-age=1\r\nX-Podyard-Space-Secret: x\r\n\
         Content-Encoding: gzip\r\nETag: \"1\"\r\nContent-Length: 5\r\n\r\n\x1fabcd",
    )
    .await;
    server.platform.open("s1", addr);
    let reply = server.get("/ws/s1/", "").await;
    assert_eq!(reply.status, 302);
    assert_eq!(reply.header("location"), Some("/ws/s1/login?to=.%2F"));
    assert_eq!(reply.all("set-cookie"), ["a=b; Path=/ws/s1/; HttpOnly", "c=d; Secure"]);
    assert_eq!(reply.header("service-worker-allowed"), Some("/ws/s1/"));
    assert_eq!(reply.header("content-encoding"), Some("gzip"));
    assert_eq!(reply.header("etag"), Some("\"1\""));
    assert_eq!(reply.all("content-length"), ["5"]);
    for gone in [
        "x-hop",
        "keep-alive",
        "clear-site-data",
        "strict-transport-security",
        "x-podyard-space-secret",
        "transfer-encoding",
    ] {
        assert_eq!(reply.header(gone), None, "{gone}");
    }
    assert_eq!(reply.body, b"\x1fabcd");
}

#[actix_web::test]
async fn redirects_to_the_program_itself_stay_with_the_gateway() {
    let server = Server::start();
    for location in ["http://{addr}/x?y", "http://ide.example/x?y", "/x?y", "/ws/s1/x?y"] {
        let own = Arc::new(location.to_owned());
        let addr = program(move |mut stream, _| {
            let own = own.clone();
            async move {
                let addr = stream.local_addr().unwrap().to_string();
                read_head(&mut stream, &mut Vec::new()).await;
                let to = own.replace("{addr}", &addr);
                let answer = format!("HTTP/1.1 307 Go\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        server.platform.open("s1", addr);
        let request = format!(
            "GET /ws/s1/ HTTP/1.1\r\nHost: ide.example\r\nConnection: close\r\nX-Auth-Token: {TOKEN}\r\n\r\n"
        );
        assert_eq!(server.ask(&request).await.header("location"), Some("/ws/s1/x?y"), "{location}");
    }
}

#[actix_web::test]
async fn events_arrive_before_the_answer_ends() {
    let server = Server::start();
    let (go, wait) = tokio::sync::mpsc::channel::<()>(1);
    let wait = Arc::new(tokio::sync::Mutex::new(wait));
    let addr = program(move |mut stream, _| {
        let wait = wait.clone();
        async move {
            read_head(&mut stream, &mut Vec::new()).await;
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(b"9\r\ndata: 1\n\n\r\n").await.unwrap();
            wait.lock().await.recv().await;
            stream.write_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    server.platform.open("s1", addr);
    let mut client = TcpStream::connect(server.addr).await.unwrap();
    let request = get(server.addr, "/ws/s1/events", &format!("X-Auth-Token: {TOKEN}\r\n"));
    client.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    let first = timeout(Duration::from_secs(5), async {
        while !String::from_utf8_lossy(&got).contains("data: 1\n\n") {
            assert_ne!(client.read_buf(&mut got).await.unwrap(), 0);
        }
    });
    first.await.expect("the first event comes while the program is still busy");
    go.send(()).await.unwrap();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(Reply::parse(&got).text(), "data: 1\n\ndata: 2\n\n");
}

#[actix_web::test]
async fn a_program_that_breaks_off_is_not_taken_for_one_that_ends() {
    let server = Server::start();
    let addr = program(|mut stream, _| async move {
        read_head(&mut stream, &mut Vec::new()).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
            .await
            .unwrap();
    })
    .await;
    server.platform.open("s1", addr);
    let mut client = TcpStream::connect(server.addr).await.unwrap();
    let request = get(server.addr, "/ws/s1/", &format!("X-Auth-Token: {TOKEN}\r\n"));
    client.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    let _ = client.read_to_end(&mut got).await;
    assert!(!got.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&got));
}

const MIB: usize = 1024 * 1024;

/// A program that takes a body to its end, and answers with its length and sum; `?down` answers
/// with 50 MiB.
async fn big() -> std::net::SocketAddr {
    program(|mut stream, _| async move {
        let mut rest = Vec::new();
        let head = read_head(&mut stream, &mut rest).await.unwrap();
        if head.starts_with("GET /down") {
            let body = pattern(50 * MIB);
            let head = match head.starts_with("GET /down?chunked") {
                true => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
                false => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()),
            };
            stream.write_all(head.as_bytes()).await.unwrap();
            if head.contains("chunked") {
                for piece in body.chunks(100_000) {
                    stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await.unwrap();
                    stream.write_all(piece).await.unwrap();
                    stream.write_all(b"\r\n").await.unwrap();
                }
                stream.write_all(b"0\r\n\r\n").await.unwrap();
            } else {
                stream.write_all(&body).await.unwrap();
            }
            return;
        }
        let body = if value(&head, "transfer-encoding") == Some("chunked") {
            assert_eq!(value(&head, "content-length"), None);
            while !rest.ends_with(b"\r\n0\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut rest).await.unwrap(), 0);
            }
            unchunk(&rest)
        } else {
            let len: usize = value(&head, "content-length").unwrap().parse().unwrap();
            while rest.len() < len {
                assert_ne!(stream.read_buf(&mut rest).await.unwrap(), 0);
            }
            rest
        };
        let answer =
            if body == pattern(body.len()) { format!("{} exact", body.len()) } else { "differs".into() };
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await
}

#[actix_web::test]
async fn fifty_mebibytes_up_and_down_are_exact() {
    let server = Server::start();
    server.platform.open("s1", big().await);
    let body = pattern(50 * MIB);

    let head = format!(
        "PUT /ws/s1/up HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Auth-Token: {TOKEN}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let reply = exchange(server.addr, &[head.as_bytes(), &body].concat()).await;
    assert_eq!(reply.text(), format!("{} exact", body.len()));

    let mut request =
        format!("POST /ws/s1/up HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Auth-Token: {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n")
            .into_bytes();
    for piece in body.chunks(123_456) {
        request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        request.extend_from_slice(piece);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(exchange(server.addr, &request).await.text(), format!("{} exact", body.len()));

    for path in ["/ws/s1/down", "/ws/s1/down?chunked"] {
        let reply = server.get(path, "").await;
        assert!(reply.body == body, "{path}: {} bytes", reply.body.len());
    }
    let stats = server.gateway.stats();
    assert_eq!(stats.requests.load(Ordering::Relaxed), 4);
    assert_eq!(stats.upstream_errors.load(Ordering::Relaxed), 0);
    assert!(stats.bytes_up.load(Ordering::Relaxed) as usize >= 100 * MIB);
    assert!(stats.bytes_down.load(Ordering::Relaxed) as usize >= 100 * MIB);
}

#[actix_web::test]
async fn a_side_that_does_not_read_holds_the_other_back() {
    let server = Server::start();
    let (sent, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    // Down: a program that sends without end to a client that does not read.
    let counter = sent.clone();
    let addr = program(move |mut stream, _| {
        let counter = counter.clone();
        async move {
            read_head(&mut stream, &mut Vec::new()).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
            let piece = vec![0; 65536];
            while stream.write_all(&piece).await.is_ok() {
                counter.fetch_add(piece.len(), Ordering::SeqCst);
            }
        }
    })
    .await;
    server.platform.open("down", addr);
    let mut client = TcpStream::connect(server.addr).await.unwrap();
    let request = get(server.addr, "/ws/down/", &format!("X-Auth-Token: {TOKEN}\r\n"));
    client.write_all(request.as_bytes()).await.unwrap();

    // Up: a client that sends without end to a program that does not read.
    let addr = program(|stream, _| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    server.platform.open("up", addr);
    let mut upload = TcpStream::connect(server.addr).await.unwrap();
    let head = format!(
        "PUT /ws/up/ HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {TOKEN}\r\nContent-Length: 1000000000\r\n\r\n"
    );
    upload.write_all(head.as_bytes()).await.unwrap();
    let counter = seen.clone();
    actix_web::rt::spawn(async move {
        let piece = vec![0; 65536];
        while upload.write_all(&piece).await.is_ok() {
            counter.fetch_add(piece.len(), Ordering::SeqCst);
        }
    });

    tokio::time::sleep(Duration::from_secs(2)).await;
    // What sockets on one machine hold is some MB; without back-pressure it would be all of it.
    for counter in [&sent, &seen] {
        let before = counter.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(counter.load(Ordering::SeqCst), before, "it stands still");
        assert!(before < 40 * MIB, "{before}");
    }
}

#[actix_web::test]
async fn an_answer_may_come_before_the_request_ends() {
    let server = Server::start();
    let addr = program(|mut stream, _| async move {
        read_head(&mut stream, &mut Vec::new()).await;
        stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig").await.unwrap();
        let mut sink = vec![0; 65536];
        while stream.read(&mut sink).await.is_ok_and(|n| n > 0) {}
    })
    .await;
    server.platform.open("s1", addr);
    let mut client = TcpStream::connect(server.addr).await.unwrap();
    let head = format!(
        "PUT /ws/s1/ HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {TOKEN}\r\nContent-Length: 1000000\r\n\r\nstart"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    timeout(Duration::from_secs(10), client.read_to_end(&mut got)).await.unwrap().unwrap();
    let reply = Reply::parse(&got);
    assert_eq!((reply.status, reply.text().as_str()), (413, "big"));
}

#[actix_web::test]
async fn connections_are_used_again_and_a_dead_one_is_replaced() {
    let server = Server::start();
    server.platform.open("s1", mirror().await);
    for _ in 0..5 {
        let reply = server.get("/ws/s1/", "").await;
        assert_eq!(reply.header("x-connection"), Some("0"));
    }
    // Another space on the same port gets another connection.
    let addr = mirror().await;
    server.platform.open("s2", addr);
    server.platform.open("s3", addr);
    assert_eq!(server.get("/ws/s2/", "").await.header("x-connection"), Some("0"));
    assert_eq!(server.get("/ws/s3/", "").await.header("x-connection"), Some("1"));

    // A program that answers once and closes when the next request has come.
    let addr = program(|mut stream, n| async move {
        let mut rest = Vec::new();
        read_head(&mut stream, &mut rest).await;
        let answer = format!("HTTP/1.1 200 OK\r\nX-Connection: {n}\r\nContent-Length: 2\r\n\r\nok");
        stream.write_all(answer.as_bytes()).await.unwrap();
        read_head(&mut stream, &mut rest).await;
    })
    .await;
    server.platform.open("s4", addr);
    assert_eq!(server.get("/ws/s4/", "").await.header("x-connection"), Some("0"));
    assert_eq!(server.get("/ws/s4/", "").await.header("x-connection"), Some("1"));
    assert_eq!(server.gateway.stats().retries.load(Ordering::Relaxed), 1);
    // What has a body, or may do harm twice, is not sent twice.
    let post = format!(
        "POST /ws/s4/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Auth-Token: {TOKEN}\r\nContent-Length: 1\r\n\r\nx"
    );
    assert_eq!(server.ask(&post).await.status, 502);
}

#[actix_web::test]
async fn methods_and_answers_without_a_body() {
    let server = Server::start();
    server.platform.open("s1", canned("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await);
    let head =
        format!("HEAD /ws/s1/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Auth-Token: {TOKEN}\r\n\r\n");
    let reply = server.ask(&head).await;
    assert_eq!((reply.status, reply.all("content-length"), reply.body.len()), (200, vec!["1234"], 0));

    server.platform.open("s1", canned("HTTP/1.1 204 No Content\r\nETag: \"x\"\r\n\r\n").await);
    let reply = server.get("/ws/s1/", "").await;
    assert_eq!((reply.status, reply.header("etag"), reply.body.len()), (204, Some("\"x\""), 0));

    server.platform.open("s1", canned("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n").await);
    assert_eq!(server.get("/ws/s1/", "").await.status, 304);

    server.platform.open("s1", mirror().await);
    let odd = format!(
        "PROPFIND /ws/s1/dav HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Auth-Token: {TOKEN}\r\n\r\n"
    );
    assert!(server.ask(&odd).await.text().starts_with("PROPFIND /dav HTTP/1.1\r\n"));

    // HTTP/1.0 knows no chunks.
    let chunked = canned("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
    server.platform.open("s1", chunked);
    let old = format!("GET /ws/s1/ HTTP/1.0\r\nX-Auth-Token: {TOKEN}\r\n\r\n");
    let reply = server.ask(&old).await;
    assert_eq!((reply.header("transfer-encoding"), reply.text().as_str()), (None, "ok"));
}

#[actix_web::test]
async fn ambiguous_requests_do_not_pass() {
    let server = Server::start();
    server.platform.open("s1", mirror().await);
    for headers in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Upgrade: websocket\r\nContent-Length: 5\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 5\r\n",
    ] {
        let request = format!(
            "POST /ws/s1/ HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {TOKEN}\r\n{headers}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
        );
        assert_eq!(server.ask(&request).await.status, 400, "{headers}");
    }
    assert_eq!(server.gateway.stats().upstream_errors.load(Ordering::Relaxed), 0);
}

#[actix_web::test]
async fn a_program_that_does_not_answer() {
    let server = Server::with(Options { head_timeout: Duration::from_millis(300), ..Options::default() });
    // Nobody listens here any more.
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    server.platform.open("s1", addr);
    let reply = server.get("/ws/s1/", "Accept: text/html\r\n").await;
    assert_eq!(reply.status, 502);
    assert!(reply.text().contains("restart it"), "{}", reply.text());
    let reply = server.get("/ws/s1/", "X-Request-Id: r-7\r\n").await;
    assert!(
        reply.text().contains("\"class\":\"BadGatewayError\"")
            && reply.text().contains("\"request_id\":\"r-7\"")
    );
    assert!(!reply.text().contains("127.0.0.1"), "no address in an answer");

    let addr = program(|mut stream, _| async move {
        read_head(&mut stream, &mut Vec::new()).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
    })
    .await;
    server.platform.open("s1", addr);
    assert_eq!(server.get("/ws/s1/", "").await.status, 504);

    server.platform.open("s1", canned("SSH-2.0-nonsense\r\n\r\n").await);
    assert_eq!(server.get("/ws/s1/", "").await.status, 502);
    assert_eq!(server.gateway.stats().upstream_errors.load(Ordering::Relaxed), 4);
}

/// A request has one name, wherever it is told.
#[actix_web::test]
async fn a_request_is_named_once() {
    static MADE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let made = |_: &actix_web::HttpRequest| format!("made-{}", MADE.fetch_add(1, Ordering::Relaxed));
    let server = Server::with(Options { request_id: Some(made), ..Options::default() });
    server.platform.open("s1", mirror().await);
    let seen = server.get("/ws/s1/", "X-Request-Id: of the client\r\n").await.text();
    assert_eq!(value(&seen, "x-request-id"), Some("made-0"));
    let missing = server.get("/ws/s2/", "").await;
    assert!(missing.text().contains("\"request_id\":\"made-1\""), "{}", missing.text());
    assert_eq!(missing.all("x-request-id"), ["made-1"]);
    let page = server.browse("/ws/s2/", "").await;
    assert_eq!((page.status, page.header("x-request-id")), (401, Some("made-2")));
    assert_eq!(server.get("/ws/s1", "").await.header("x-request-id"), Some("made-3"));
    // Sent on to the program, and then told to the client when that fails.
    server.platform.open("s1", canned("SSH-2.0-nonsense\r\n\r\n").await);
    let broken = server.get("/ws/s1/", "").await;
    assert_eq!((broken.status, broken.header("x-request-id")), (502, Some("made-4")));
    assert!(broken.text().contains("\"request_id\":\"made-4\""), "{}", broken.text());
}

#[actix_web::test]
async fn a_long_answer_ends_when_access_is_lost() {
    let server = Server::with(Options { recheck: Duration::from_millis(200), ..Options::default() });
    let addr = program(|mut stream, _| async move {
        read_head(&mut stream, &mut Vec::new()).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n").await.unwrap();
        // Until the gateway hangs up.
        let _ = stream.read(&mut [0; 16]).await;
    })
    .await;
    server.platform.open("s1", addr);
    let mut client = TcpStream::connect(server.addr).await.unwrap();
    let request = get(server.addr, "/ws/s1/", &format!("X-Auth-Token: {TOKEN}\r\n"));
    client.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"2\r\nhi\r\n") {
        client.read_buf(&mut got).await.unwrap();
    }
    assert!(timeout(Duration::from_millis(600), client.read_buf(&mut got)).await.is_err(), "it goes on");
    server.platform.routes.lock().unwrap().clear();
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(3), client.read_to_end(&mut rest)).await.expect("it ends");
    assert!(!rest.ends_with(b"0\r\n\r\n"));
    assert_eq!(server.platform.activities.lock().unwrap()[..], [("s1".to_owned(), Activity::Request)]);
}
