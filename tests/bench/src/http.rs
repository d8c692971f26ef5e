//! As much of HTTP/1.1 as a load generator needs, and no more, so that it stays cheaper than
//! the servers that it measures.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::Result;

/// What a server says of itself in `Server-Timing: db;dur=0.21;desc="3 statements"`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// The time in the database, in microseconds.
    pub database: f64,
    /// The number of statements.
    pub statements: f64,
}

/// The head of an answer, and where its body lies.
#[derive(Debug, Clone, Copy)]
struct Head {
    status: u16,
    length: Length,
    timing: Option<Timing>,
    /// The bytes of the head, with the empty line.
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
enum Length {
    Bytes(usize),
    Chunked,
}

/// An answer; the body stays in the connection until the next request.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The HTTP status.
    pub status: u16,
    /// The body, without chunk marks if it was chunked only once (see [`Connection::send`]).
    pub body: &'a [u8],
    /// What the server said of its time.
    pub timing: Option<Timing>,
}

impl Answer<'_> {
    /// Whether the status is one of success.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// A keep-alive connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 32 * 1024], filled: 0 })
    }

    /// Sends a whole request and waits for the whole answer.
    ///
    /// A chunked body is given with its chunk marks: the load does not look at it, and the
    /// checks use [`dechunk`].
    pub async fn send(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.filled = 0;
        let mut head: Option<Head> = None;
        loop {
            if self.filled == self.buffer.len() {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
            let read = self.stream.read(&mut self.buffer[self.filled..]).await?;
            if read == 0 {
                return Err("the server closed the connection in the middle of an answer".into());
            }
            self.filled += read;
            if head.is_none() {
                head = parse_head(&self.buffer[..self.filled])?;
            }
            let Some(head) = head else { continue };
            let body = &self.buffer[head.bytes..self.filled];
            let whole = match head.length {
                Length::Bytes(length) => body.len() >= length,
                Length::Chunked => body.ends_with(b"0\r\n\r\n"),
            };
            if whole {
                return Ok(Answer {
                    status: head.status,
                    body: &self.buffer[head.bytes..self.filled],
                    timing: head.timing,
                });
            }
        }
    }
}

/// Reads the head, if all of it is there.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length_of_head) = response.parse(bytes)? else {
        return Ok(None);
    };
    let status = response.code.ok_or("an answer without a status")?;
    let mut head = Head { status, length: Length::Bytes(0), timing: None, bytes: length_of_head };
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            head.length = Length::Bytes(std::str::from_utf8(header.value)?.trim().parse()?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            head.length = Length::Chunked;
        } else if header.name.eq_ignore_ascii_case("server-timing") {
            head.timing = parse_timing(std::str::from_utf8(header.value)?);
        }
    }
    Ok(Some(head))
}

/// Reads the `db` metric: its duration and the number at the start of its description.
fn parse_timing(value: &str) -> Option<Timing> {
    let metric = value.split(',').map(str::trim).find(|metric| metric.split(';').next() == Some("db"))?;
    let mut timing = Timing::default();
    for parameter in metric.split(';').skip(1) {
        match parameter.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
            Some(("dur", milliseconds)) => timing.database = milliseconds.parse::<f64>().ok()? * 1e3,
            Some(("desc", text)) => {
                let number = text.trim_matches('"').split_whitespace().next();
                timing.statements = number.and_then(|number| number.parse().ok()).unwrap_or(0.0);
            }
            _ => {}
        }
    }
    Some(timing)
}

/// Takes the chunk marks out of a chunked body; another body is given as it is.
#[must_use]
pub fn dechunk(body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let Some(size) = size.filter(|size| end + 2 + size <= rest.len()) else { break };
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[(end + 4 + size).min(rest.len())..];
    }
    body.to_vec()
}

/// Writes a request into a buffer that is used again and again.
pub fn write_request(buffer: &mut Vec<u8>, method: &str, path: &str, headers: &str, body: Option<&str>) {
    use std::io::Write as _;

    buffer.clear();
    // Writing to a vector cannot fail.
    let _ = write!(buffer, "{method} {path} HTTP/1.1\r\nHost: bench\r\n{headers}");
    let _ = match body {
        Some(body) => {
            write!(buffer, "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        None => write!(buffer, "\r\n"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let answer = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\
            Server-Timing: app;dur=1, db;dur=0.25;desc=\"3 statements\"\r\n\r\nok";
        assert!(parse_head(&answer[..40]).unwrap().is_none());
        let head = parse_head(answer).unwrap().unwrap();
        assert_eq!(head.status, 201);
        assert!(matches!(head.length, Length::Bytes(2)));
        assert_eq!(&answer[head.bytes..], b"ok");
        let timing = head.timing.unwrap();
        assert!((timing.database - 250.0).abs() < 1e-9);
        assert!((timing.statements - 3.0).abs() < 1e-9);
    }

    #[test]
    fn chunk_marks_are_taken_out() {
        assert_eq!(dechunk(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), b"abcde");
        assert_eq!(dechunk(b"{}"), b"{}");
    }

    #[test]
    fn a_request_has_its_length() {
        let mut buffer = Vec::new();
        write_request(&mut buffer, "POST", "/servers", "X-Auth-Token: t\r\n", Some("{}"));
        assert_eq!(
            String::from_utf8(buffer).unwrap(),
            "POST /servers HTTP/1.1\r\nHost: bench\r\nX-Auth-Token: t\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        );
    }
}
