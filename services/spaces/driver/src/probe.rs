//! Whether a program answers: one real HTTP request.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Asks for `/`; true if any HTTP status comes back within `timeout`. That a
/// port is open is not enough: some programs listen before they can answer.
pub(crate) async fn answers(addr: SocketAddr, secret: &str, timeout: Duration) -> bool {
    tokio::time::timeout(timeout, ask(addr, secret)).await.is_ok_and(|answer| answer.unwrap_or(false))
}

async fn ask(addr: SocketAddr, secret: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {addr}\r\nUser-Agent: podyard-probe\r\nAccept: */*\r\n\
         X-Podyard-Space-Secret: {secret}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // "HTTP/1.1 200": the version, a space, the status.
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    Ok(head.starts_with(b"HTTP/1.") && head[8] == b' ' && head[9..].iter().all(u8::is_ascii_digit))
}
