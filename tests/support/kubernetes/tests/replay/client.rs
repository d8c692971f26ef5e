//! A client that says exactly what a fixture says.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

/// Sends what a step says; `at` is `host:port`.
pub async fn send(at: &str, token: Option<&str>, step: &Value) -> hyper::Response<Incoming> {
    let stream = TcpStream::connect(at).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let query = match step["query"].as_str() {
        Some(query) => format!("?{query}"),
        None => String::new(),
    };
    let path = step["path"].as_str().unwrap().replace(' ', "%20");
    let body = match &step["body"] {
        Value::Null => Bytes::new(),
        Value::Object(map) if map.len() == 1 && map.contains_key("text") => {
            Bytes::from(map["text"].as_str().unwrap().to_owned())
        }
        body => Bytes::from(body.to_string()),
    };
    let mut request = hyper::Request::builder()
        .method(step["method"].as_str().unwrap())
        .uri(format!("{path}{query}"))
        .header("Host", at);
    let headers = step["headers"].as_object();
    let named = |name: &str| headers.is_some_and(|it| it.contains_key(name));
    if !named("Accept") {
        request = request.header("Accept", "application/json");
    }
    if !step["body"].is_null() && !named("Content-Type") {
        request = request.header("Content-Type", "application/json");
    }
    for (name, value) in headers.into_iter().flatten() {
        request = request.header(name, value.as_str().unwrap());
    }
    if named("Upgrade") {
        request = request.header("Connection", "Upgrade").header("Sec-WebSocket-Version", "13");
    }
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap()
}

/// A body as a fixture has it: JSON, or `{"text": …}`.
pub async fn body_of(response: hyper::Response<Incoming>) -> Value {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => value,
        _ => json!({"text": String::from_utf8_lossy(&bytes)}),
    }
}

/// The lines of a watch, for so long.
pub async fn lines(response: hyper::Response<Incoming>, time: Duration) -> Vec<Value> {
    let mut body = response.into_body();
    let mut events = Vec::new();
    let end = tokio::time::Instant::now() + time;
    let mut rest = Vec::new();
    while let Ok(Some(Ok(frame))) = tokio::time::timeout_at(end, body.frame()).await {
        rest.extend_from_slice(&frame.into_data().unwrap());
        while let Some(at) = rest.iter().position(|it| *it == b'\n') {
            let line: Vec<u8> = rest.drain(..=at).collect();
            events.push(serde_json::from_slice(&line).unwrap());
        }
    }
    events
}

/// Lives through a session; what the server sent, runs of a channel joined.
pub async fn session(response: hyper::Response<Incoming>, frames: &[Value]) -> Vec<Value> {
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    let (mut to, mut from) = socket.split();
    let inputs: Vec<Value> =
        frames.iter().filter(|it| it[0] == "in" || it[0] == "in-close").cloned().collect();
    let ends_first =
        frames.iter().position(|it| it[0] == "in-close") < frames.iter().position(|it| it[0] == "close");
    let writer = tokio::spawn(async move {
        for input in inputs {
            tokio::time::sleep(Duration::from_millis(300)).await;
            if input[0] == "in-close" {
                if ends_first {
                    let frame = CloseFrame { code: 1000.into(), reason: "".into() };
                    let _ = to.send(Message::Close(Some(frame))).await;
                }
                continue;
            }
            let mut bytes = vec![u8::try_from(input[1].as_u64().unwrap()).unwrap()];
            match &input[2] {
                Value::String(text) => bytes.extend(text.as_bytes()),
                Value::Number(count) => {
                    bytes.extend(vec![b'x'; usize::try_from(count.as_u64().unwrap()).unwrap()]);
                }
                _ => {}
            }
            if to.send(Message::binary(bytes)).await.is_err() {
                return;
            }
        }
        // Held open until the server ends.
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
    let mut got: Vec<Value> = Vec::new();
    loop {
        let message = tokio::time::timeout(Duration::from_secs(20), from.next()).await;
        match message.expect("the session ends") {
            Some(Ok(Message::Binary(bytes))) => {
                let text = String::from_utf8_lossy(&bytes[1..]).into_owned();
                assert!(bytes.len() <= 8193, "frames are short");
                got.push(match bytes[0] {
                    3 => json!(["status", serde_json::from_str::<Value>(&text).unwrap_or_default()]),
                    channel => json!(["out", channel, text]),
                });
            }
            Some(Ok(Message::Text(text))) => got.push(json!(["text", text.as_str()])),
            Some(Ok(Message::Close(frame))) => {
                got.push(json!(["close", frame.map(|it| u16::from(it.code))]));
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => {
                got.push(json!(["eof"]));
                writer.abort();
                return got;
            }
        }
    }
}
