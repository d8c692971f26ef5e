//! What becomes of sessions when one side goes, beyond what was recorded: nothing
//! outlives its container, and a server that crashes says no word.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use podyard_kubernetes_double::{Double, Options};
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use crate::client;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

const POD: &str = "/api/v1/namespaces/default/pods/one";

async fn double() -> (Double, String) {
    let options = Options { speed: 20.0, real: true, ..Options::default() };
    let double = Double::start(options).await.unwrap();
    let at = double.url().trim_start_matches("http://").to_owned();
    let pod = json!({"method": "POST", "path": "/api/v1/namespaces/default/pods", "body": {
        "metadata": {"name": "one"}, "spec": {"terminationGracePeriodSeconds": 2, "containers": [
            {"name": "main", "image": "busybox:1.37", "command": ["sleep", "1000"]}]}}});
    assert_eq!(client::send(&at, Some(double.token()), &pod).await.status(), 201);
    loop {
        let get = json!({"method": "GET", "path": POD});
        let pod = client::body_of(client::send(&at, Some(double.token()), &get).await).await;
        if pod["status"]["phase"] == "Running" {
            return (double, at);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn exec(at: &str, token: &str, query: &str) -> Socket {
    open(at, token, "exec", query, "v5.channel.k8s.io").await
}

async fn open(at: &str, token: &str, what: &str, query: &str, protocol: &str) -> Socket {
    let step = json!({"method": "GET", "path": format!("{POD}/{what}"), "query": query, "headers": {
        "Upgrade": "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": protocol}});
    let response = client::send(at, Some(token), &step).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["Sec-WebSocket-Accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

/// Reads until the output has what is waited for.
async fn reads(socket: &mut Socket, until: &str) -> String {
    let mut output = String::new();
    while !output.contains(until) {
        let next = tokio::time::timeout(Duration::from_secs(10), socket.next()).await;
        let message = next.unwrap_or_else(|_| panic!("no {until:?} in {output:?}")).unwrap().unwrap();
        let bytes = message.into_data();
        assert_eq!(bytes[0], 1, "all output of a terminal is on channel 1: {bytes:?}");
        output.push_str(&String::from_utf8_lossy(&bytes[1..]));
    }
    output
}

/// The rest of a session: the status, the close, the end.
async fn end(socket: &mut Socket) -> (Option<Value>, bool) {
    let (mut status, mut closed) = (None, false);
    while let Ok(Some(Ok(message))) = tokio::time::timeout(Duration::from_secs(10), socket.next()).await {
        match message {
            Message::Binary(bytes) if bytes[0] == 3 => {
                status = Some(serde_json::from_slice(&bytes[1..]).unwrap());
            }
            Message::Close(frame) => closed = frame.is_some_and(|it| u16::from(it.code) == 1000),
            _ => {}
        }
    }
    (status, closed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_listens_in_a_pod_is_reached_by_its_port() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (double, at) = double().await;
    let get = json!({"method": "GET", "path": POD});
    let pod = client::body_of(client::send(&at, Some(double.token()), &get).await).await;
    let ip = pod["status"]["podIP"].as_str().unwrap().to_owned();
    let listener = tokio::net::TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let query = format!("ports={port}");
    let mut socket = open(&at, double.token(), "portforward", &query, "v4.channel.k8s.io").await;
    let (mut stream, _) = listener.accept().await.unwrap();
    let [low, high] = port.to_le_bytes();
    for channel in [0, 1] {
        let told = socket.next().await.unwrap().unwrap().into_data();
        assert_eq!(&told[..], [channel, low, high]);
    }
    socket.send(Message::binary(b"\0ping".to_vec())).await.unwrap();
    let mut got = [0; 4];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
    stream.write_all(b"pong").await.unwrap();
    assert_eq!(&socket.next().await.unwrap().unwrap().into_data()[..], b"\0pong");
    drop(stream);
    assert_eq!(end(&mut socket).await, (None, true), "the end of the connection is its end");
    double.stop().await;
}

/// The processes of this machine with a word among their arguments.
fn with(word: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let has = |it: &std::fs::DirEntry| {
        let line = std::fs::read(it.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|argument| argument == word)
    };
    processes.filter(has).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_started_outlives_its_client_and_ends_with_its_container() {
    let (double, at) = double().await;
    let word = "77719.25";
    let query = format!("command=sh&command=-c&command=echo+go%3B+sleep+{word}&stdin=true&stdout=true");
    let mut dropped = exec(&at, double.token(), &query).await;
    reads(&mut dropped, "go\n").await;
    drop(dropped);
    let mut closed = exec(&at, double.token(), &query).await;
    reads(&mut closed, "go\n").await;
    let normal = CloseFrame { code: 1000.into(), reason: "".into() };
    closed.close(Some(normal)).await.unwrap();
    assert_eq!(end(&mut closed).await, (None, true), "a close is answered, and nothing else");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(with(word), 2);
    // The pod goes, and with it all that was started in it.
    let mut open = exec(&at, double.token(), &query).await;
    reads(&mut open, "go\n").await;
    let delete = json!({"method": "DELETE", "path": POD});
    assert_eq!(client::send(&at, Some(double.token()), &delete).await.status(), 200);
    let (status, closed) = end(&mut open).await;
    assert_eq!(status.unwrap()["details"]["causes"][0]["message"], "137");
    assert!(closed);
    // Each is told of its own end, and they end one after the other.
    let limit = Instant::now() + Duration::from_secs(5);
    while with(word) > 0 {
        assert!(Instant::now() < limit, "{} are left", with(word));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    double.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_ends_sessions_and_makes_versions_too_old() {
    let (double, at) = double().await;
    let get = json!({"method": "GET", "path": "/api/v1/namespaces/default/pods"});
    let list = client::body_of(client::send(&at, Some(double.token()), &get).await).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let query = "command=sh&stdin=true&stdout=true&tty=true";
    let mut socket = exec(&at, double.token(), query).await;
    reads(&mut socket, "").await;
    let restart = json!({"method": "POST", "path": "/_double/restart", "body": {"milliseconds": 200}});
    client::send(&at, None, &restart).await;
    assert_eq!(end(&mut socket).await, (None, false), "it ends without a word");
    tokio::time::sleep(Duration::from_millis(600)).await;
    let watch = json!({"method": "GET", "path": "/api/v1/namespaces/default/pods",
        "query": format!("watch=true&timeoutSeconds=3&resourceVersion={version}")});
    let response = client::send(&at, Some(double.token()), &watch).await;
    let events = client::Lines::of(response, Duration::from_secs(3)).all().await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((&events[0]["type"], &events[0]["object"]["code"]), (&json!("ERROR"), &json!(410)));
    // What is listed now can be watched from.
    let list = client::body_of(client::send(&at, Some(double.token()), &get).await).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = json!({"method": "GET", "path": "/api/v1/namespaces/default/pods",
        "query": format!("watch=true&timeoutSeconds=1&resourceVersion={version}")});
    let response = client::send(&at, Some(double.token()), &watch).await;
    let events = client::Lines::of(response, Duration::from_secs(3)).all().await;
    assert!(events.iter().all(|it| it["type"] != "ERROR"), "{events:?}");
    double.stop().await;
}
