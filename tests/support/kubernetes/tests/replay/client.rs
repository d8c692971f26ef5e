//! A client that says exactly what a fixture says.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

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

/// The lines of a watch, read as they come.
pub struct Lines {
    from: mpsc::UnboundedReceiver<Result<Value, Duration>>,
    ended: Option<Duration>,
}

impl Lines {
    /// Those of an answer, for so long.
    pub fn of(response: hyper::Response<Incoming>, time: Duration) -> Self {
        let (to, from) = mpsc::unbounded_channel();
        let begun = Instant::now();
        tokio::spawn(async move {
            let mut body = response.into_body();
            let mut rest = Vec::new();
            loop {
                match tokio::time::timeout_at(begun + time, body.frame()).await {
                    Ok(Some(Ok(frame))) => rest.extend_from_slice(&frame.into_data().unwrap()),
                    Ok(None) => return drop(to.send(Err(begun.elapsed()))),
                    _ => return,
                }
                while let Some(at) = rest.iter().position(|it| *it == b'\n') {
                    let line: Vec<u8> = rest.drain(..=at).collect();
                    let mut event: Value = serde_json::from_slice(&line).unwrap();
                    event["after"] = json!(begun.elapsed().as_secs_f64());
                    let _ = to.send(Ok(event));
                }
            }
        });
        Self { from, ended: None }
    }

    /// The next event, with after how many seconds it came; none at the end.
    pub async fn next(&mut self) -> Option<Value> {
        match self.from.recv().await? {
            Ok(event) => Some(event),
            Err(time) => {
                self.ended = Some(time);
                None
            }
        }
    }

    /// After how long the stream ended by itself, and as it should.
    pub fn ended(&self) -> Option<Duration> {
        self.ended
    }

    /// All of them, to the end.
    pub async fn all(mut self) -> Vec<Value> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

/// Whether nobody listens, within five seconds.
pub async fn refused(at: &str) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        match TcpStream::connect(at).await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return true,
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    false
}
