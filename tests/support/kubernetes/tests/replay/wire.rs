//! Answers as they come over the wire: which bytes make which chunk.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::compare::within;

/// Sends what was recorded; the answer's head is waited for.
pub async fn begin(at: &str, token: &str, step: &Value) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let query = step["query"].as_str().unwrap();
    let request = format!(
        "GET {}?{query} HTTP/1.1\r\nHost: {at}\r\nAccept: application/json\r\nAuthorization: Bearer {token}\r\n\r\n",
        step["path"].as_str().unwrap(),
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.windows(4).any(|it| it == b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "it ends within its head");
    }
    (stream, read)
}

/// Reads to the last chunk; what is not as it was recorded.
pub async fn rest((mut stream, mut read): (TcpStream, Vec<u8>), step: Value) -> Vec<String> {
    while !read.ends_with(b"\r\n0\r\n\r\n") {
        match tokio::time::timeout(Duration::from_secs(10), stream.read_buf(&mut read)).await {
            Ok(Ok(1..)) => {}
            _ => return vec![format!("it does not end: {}", String::from_utf8_lossy(&read))],
        }
    }
    let text = String::from_utf8(read).unwrap();
    let (head, rest) = text.split_once("\r\n\r\n").unwrap();
    let mut wrong = Vec::new();
    for line in step["head"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()) {
        if !head.lines().any(|it| it.eq_ignore_ascii_case(line)) {
            wrong.push(format!("no {line} in {head}"));
        }
    }
    let is = chunks(rest);
    let wanted = step["chunks"].as_array().unwrap();
    let same = |wanted: &Value, is: &&str| match wanted {
        Value::String(text) => text == is,
        // An event: one chunk, one line.
        event => {
            is.ends_with('\n')
                && is.lines().count() == 1
                && serde_json::from_str(is).is_ok_and(|is| within(event, &is))
        }
    };
    if wanted.len() != is.len() || !wanted.iter().zip(&is).all(|(wanted, is)| same(wanted, is)) {
        wrong.push(format!("chunks {is:?}"));
    }
    wrong
}

/// The chunks of a body, without the last, which is empty.
fn chunks(mut rest: &str) -> Vec<&str> {
    let mut chunks = Vec::new();
    loop {
        let (size, after) = rest.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return chunks;
        }
        let (chunk, after) = after.split_at(size);
        chunks.push(chunk);
        rest = after.strip_prefix("\r\n").unwrap();
    }
}
