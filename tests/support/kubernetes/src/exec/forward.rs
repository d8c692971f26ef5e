//! Ports of a pod over a websocket: for each one channel with its bytes and one
//! with what went wrong.

use std::net::Ipv4Addr;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::session::{FRAME, Socket, bye};
use crate::http::Request;
use crate::status::Failure;

pub(super) const PROTOCOL: &str = "v4.channel.k8s.io";
/// The older protocol in a tunnel, which the double only opens and closes.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// The ports that a request wants.
pub(super) fn ports(request: &Request) -> Result<Vec<u16>, Failure> {
    let wrong = |why: String| Failure::text(400, why);
    let asked = request.query.iter().filter(|(key, _)| key == "ports").flat_map(|(_, it)| it.split(','));
    let ports = asked
        .map(|it| match it.parse() {
            Ok(port @ 1..) => Ok(port),
            _ => Err(wrong(format!("unable to parse \"{it}\" as a port"))),
        })
        .collect::<Result<Vec<u16>, _>>()?;
    if ports.is_empty() { Err(wrong("query parameter \"port\" is required".to_owned())) } else { Ok(ports) }
}

/// A tunnel that nobody speaks in, until the client goes.
pub(super) async fn tunnel(socket: Socket) {
    let (mut to, mut from) = socket.split();
    while let Some(Ok(message)) = from.next().await {
        if matches!(message, Message::Close(_)) {
            return bye(&mut to).await;
        }
    }
}

pub(super) async fn run(socket: Socket, ports: Vec<u16>, pod: String, ip: Ipv4Addr) {
    let (mut to, mut from) = socket.split();
    let channel = |at: usize| u8::try_from(at * 2).unwrap_or_default();
    for (at, port) in ports.iter().enumerate() {
        let [low, high] = port.to_le_bytes();
        for channel in [channel(at), channel(at) + 1] {
            if to.send(Message::binary(vec![channel, low, high])).await.is_err() {
                return;
            }
        }
    }
    let (pieces, mut read) = mpsc::channel::<Vec<u8>>(1);
    let mut writers = Vec::new();
    for (at, port) in ports.iter().enumerate() {
        let stream = match TcpStream::connect((ip, *port)).await {
            Ok(stream) => stream,
            Err(_) => {
                let mut frame = vec![channel(at) + 1];
                let why = format!(
                    "error forwarding port {port} to pod {pod}, uid : failed to execute portforward in network \
                     namespace \"{pod}\": failed to connect to localhost:{port} inside namespace \"{pod}\", \
                     IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused IPv6 dial tcp6: address \
                     localhost: no suitable address found "
                );
                frame.extend(why.as_bytes());
                let _ = to.send(Message::binary(frame)).await;
                return bye(&mut to).await;
            }
        };
        let (mut reader, writer) = stream.into_split();
        writers.push(writer);
        let (pieces, channel) = (pieces.clone(), channel(at));
        tokio::spawn(async move {
            let mut buffer = vec![0; FRAME];
            while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                let mut frame = vec![channel];
                frame.extend_from_slice(&buffer[..count]);
                if pieces.send(frame).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(pieces);
    loop {
        tokio::select! {
            piece = read.recv() => match piece {
                Some(frame) => {
                    if to.send(Message::binary(frame)).await.is_err() {
                        return;
                    }
                }
                None => return bye(&mut to).await,
            },
            message = from.next() => match message {
                Some(Ok(Message::Binary(frame))) => {
                    let Some((channel, data)) = frame.split_first() else { continue };
                    // The channels of errors are the server's.
                    if channel % 2 == 0 && let Some(writer) = writers.get_mut(usize::from(channel / 2)) {
                        let _ = writer.write_all(data).await;
                    }
                }
                Some(Ok(Message::Close(_))) => return bye(&mut to).await,
                Some(Ok(_)) => {}
                _ => return,
            },
        }
    }
}
