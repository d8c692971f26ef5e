//! The connection's side of a terminal: the body of the `101`, and a task that
//! reads what the client sends.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::rt::task::JoinHandle;
use actix_web::web;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, DuplexStream, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::oneshot;

use crate::Stats;

/// Most bytes that wait between a connection and its session, each way.
pub(crate) const PIPE: usize = 16 * 1024;
/// How much of it is handed to the connection at once.
const PIECE: usize = 8 * 1024;

/// What goes to the client.
pub(crate) struct Down {
    pipe: ReadHalf<DuplexStream>,
    piece: Box<[u8]>,
    reader: JoinHandle<()>,
    /// Told by its end: the connection is gone.
    _gone: oneshot::Sender<()>,
}

impl Down {
    /// Ties a connection to the pipe of its session.
    pub(crate) fn new(
        pipe: DuplexStream,
        payload: web::Payload,
        stats: &Arc<Stats>,
        gone: oneshot::Sender<()>,
    ) -> Self {
        let (pipe, up) = tokio::io::split(pipe);
        let task = stats.task();
        let reader = actix_web::rt::spawn(async move {
            read(payload, up).await;
            drop(task);
        });
        Self { pipe, piece: vec![0; PIECE].into(), reader, _gone: gone }
    }
}

/// Passes on what the client sends, no faster than the session takes it, and then its end.
async fn read(mut payload: web::Payload, mut up: WriteHalf<DuplexStream>) {
    while let Some(Ok(bytes)) = payload.next().await {
        if up.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The session may be over, and knows then.
    let _ = up.shutdown().await;
}

impl Drop for Down {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl MessageBody for Down {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        let this = self.get_mut();
        let mut piece = ReadBuf::new(&mut this.piece);
        match Pin::new(&mut this.pipe).poll_read(cx, &mut piece) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                Poll::Ready(Some(Ok(Bytes::copy_from_slice(piece.filled()))))
            }
            Poll::Ready(_) => Poll::Ready(None),
        }
    }
}
