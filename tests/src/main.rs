//! What the black-box tests start: a program for spaces that does what a test
//! wants of it, and the keeper of the PostgreSQL that all tests share.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, json};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["postgres", folder] => podyard_tests::postgres::keep(Path::new(folder)),
        ["serve", port] => serve(port).map_err(|e| e.to_string()),
        // One in a container, which listens there.
        ["serve-at", host, port] => serve_at(host, port).map_err(|e| e.to_string()),
        // One that takes so many milliseconds before it listens.
        ["serve", port, ms] => {
            std::thread::sleep(Duration::from_millis(ms.parse().unwrap_or(0)));
            serve(port).map_err(|e| e.to_string())
        }
        ["deaf", port] => deaf(port).map_err(|e| e.to_string()),
        ["exit", code] => end(code),
        _ => Err("serve PORT [MS] | serve-at HOST PORT | deaf PORT | exit CODE | postgres FOLDER".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Says its last words and ends.
fn end(code: &str) -> Result<(), String> {
    for line in ["first line", "second line", "last line"] {
        println!("{line}");
    }
    std::process::exit(code.parse().map_err(|_| format!("{code:?} is no exit code"))?)
}

fn listen(port: &str) -> io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", port.parse().map_err(io::Error::other)?))
}

/// Takes connections and never answers.
fn deaf(port: &str) -> io::Result<()> {
    let mut kept = Vec::new();
    println!("deaf on {port}");
    for stream in listen(port)?.incoming() {
        kept.push(stream?);
    }
    Ok(())
}

/// Tells whoever asks what was asked, and echoes websocket messages.
fn serve(port: &str) -> io::Result<()> {
    serve_at("127.0.0.1", port)
}

fn serve_at(host: &str, port: &str) -> io::Result<()> {
    let listener = TcpListener::bind((host, port.parse().map_err(io::Error::other)?))?;
    println!("listening on {port}");
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            let _ = answer(stream);
        });
    }
    Ok(())
}

/// The head of a request, left in the socket for whoever reads it next.
fn peek(stream: &TcpStream) -> io::Result<String> {
    let mut bytes = [0; 16 * 1024];
    for _ in 0..1000 {
        let n = stream.peek(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes[..n]);
        if n == 0 || text.contains("\r\n\r\n") {
            return Ok(text.into_owned());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn answer(stream: TcpStream) -> io::Result<()> {
    let head = peek(&stream)?.to_ascii_lowercase();
    if head.contains("upgrade: websocket") {
        return echo(stream);
    }
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) =
        (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = Map::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        if name == "content-length" {
            length = value.parse().unwrap_or(0);
        }
        headers.insert(name, value.into());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (route, query) = path.split_once('?').unwrap_or((&path, ""));
    let number = query.rsplit('=').next().and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
    let mut more = "";
    match route {
        "/exit" => {
            println!("asked to end");
            println!("with {number}");
            std::process::exit(i32::try_from(number).unwrap_or(1));
        }
        "/say" => {
            for i in 1..=number {
                println!("line {i} of {number}");
            }
        }
        "/slow" => std::thread::sleep(Duration::from_millis(number)),
        "/evil" => {
            more = "Set-Cookie: podyard_session=evil; Path=/\r\nSet-Cookie: own=1; Path=/\r\n\
                    X-Podyard-Space-Evil: yes\r\nClear-Site-Data: \"*\"\r\n";
        }
        _ => {}
    }
    let told = json!({
        "method": method, "path": path, "headers": headers, "pid": std::process::id(),
        "body": String::from_utf8_lossy(&body),
    });
    let text = told.to_string();
    let mut stream = reader.into_inner();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n{more}Content-Length: {}\r\n\r\n{text}",
        text.len()
    )
}

fn echo(stream: TcpStream) -> io::Result<()> {
    let mut socket = tungstenite::accept(stream).map_err(|e| io::Error::other(e.to_string()))?;
    loop {
        let message = socket.read().map_err(io::Error::other)?;
        if message.is_text() || message.is_binary() {
            socket.send(message).map_err(io::Error::other)?;
        }
    }
}
