//! Bodies on their way through. Each side takes the next piece only when the other has room.

use std::{
    cell::Cell,
    collections::VecDeque,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use actix_web::{
    body::{BodySize, MessageBody},
    web,
};
use bytes::Bytes;
use futures_util::{Stream, future::LocalBoxFuture};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use crate::{
    client::{Key, Pool, Sender},
    stats::Stats,
    through::Strip,
    watch::{End, Moved, Watched, watch},
};

/// When something of a request's body last moved.
#[derive(Clone)]
pub(crate) struct Progress(Rc<Cell<Instant>>);

impl Progress {
    pub(crate) fn touch(&self) {
        self.0.set(Instant::now());
    }

    pub(crate) fn last(&self) -> Instant {
        self.0.get()
    }
}

/// The body of a request.
pub(crate) struct Upload {
    payload: Option<web::Payload>,
    /// What is still to come, if the client has said.
    left: Option<u64>,
    progress: Progress,
    stats: Option<Arc<Stats>>,
}

impl Upload {
    /// No body.
    pub(crate) fn empty() -> Self {
        Self {
            payload: None,
            left: Some(0),
            progress: Progress(Rc::new(Cell::new(Instant::now()))),
            stats: None,
        }
    }

    /// What the client sends; `len` if it has said how much.
    pub(crate) fn new(payload: web::Payload, len: Option<u64>, stats: Arc<Stats>) -> Self {
        Self { payload: Some(payload), left: len, stats: Some(stats), ..Self::empty() }
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Some(payload) = self.payload.as_mut() else { return Poll::Ready(None) };
        let piece = match Pin::new(payload).poll_next(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(piece) => piece,
        };
        self.progress.touch();
        match piece {
            Some(Ok(bytes)) => {
                if let Some(left) = self.left.as_mut() {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                if let Some(stats) = &self.stats {
                    Stats::add(&stats.bytes_up, bytes.len());
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            // The client is gone. An error makes the program see a request that was cut off, and
            // not one that ended.
            Some(Err(error)) => {
                self.payload = None;
                Poll::Ready(Some(Err(io::Error::other(error.to_string()))))
            }
            None => {
                self.payload = None;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.payload.is_none() || self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The beginning of a body, at least so much of it if there is that much.
pub(crate) async fn collect(body: &mut Incoming, most: usize) -> Vec<Bytes> {
    let (mut pieces, mut len) = (Vec::new(), 0);
    while len < most {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        // What has failed fails again for whoever reads on.
        let Some(Ok(frame)) = frame else { break };
        if let Ok(bytes) = frame.into_data() {
            len += bytes.len();
            pieces.push(bytes);
        }
    }
    pieces
}

/// The body of an answer.
pub(crate) struct Download {
    incoming: Incoming,
    /// What has been read of it already.
    ready: VecDeque<Bytes>,
    strip: Option<Strip>,
    size: BodySize,
    connection: Option<(Sender, Key, Rc<Pool>)>,
    stats: Arc<Stats>,
    moved: Rc<Moved>,
    watched: Option<Watched>,
    watching: Option<LocalBoxFuture<'static, End>>,
}

impl Download {
    pub(crate) fn new(
        incoming: Incoming,
        size: BodySize,
        connection: (Sender, Key, Rc<Pool>),
        watched: Watched,
        ready: Vec<Bytes>,
        strip: Option<Strip>,
    ) -> Self {
        let mut body = Self {
            incoming,
            ready: ready.into(),
            strip,
            size,
            connection: Some(connection),
            stats: watched.inner.stats.clone(),
            moved: watched.moved.clone(),
            watched: Some(watched),
            watching: None,
        };
        // actix does not ask an empty body for anything.
        if body.incoming.is_end_stream() && body.ready.is_empty() {
            body.release();
        }
        body
    }

    fn release(&mut self) {
        if let Some((sender, key, pool)) = self.connection.take() {
            pool.give_back(key, sender);
        }
    }

    /// A piece as the client gets it; none: it all has to wait for the next.
    fn passed(&mut self, bytes: Bytes) -> Option<Bytes> {
        let bytes = match &mut self.strip {
            Some(strip) => strip.push(&bytes),
            None => bytes,
        };
        if bytes.is_empty() && self.strip.is_some() {
            return None;
        }
        self.moved.down(bytes.len());
        Stats::add(&self.stats.bytes_down, bytes.len());
        Some(bytes)
    }

    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Some(watched) = self.watched.take() {
            self.watching = Some(Box::pin(watch(watched)));
        }
        match &mut self.watching {
            Some(watching) => watching.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl MessageBody for Download {
    type Error = io::Error;

    fn size(&self) -> BodySize {
        self.size
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, io::Error>>> {
        while let Some(bytes) = self.ready.pop_front() {
            if let Some(bytes) = self.passed(bytes) {
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers end here: actix cannot send any.
                    let Ok(bytes) = frame.into_data() else { continue };
                    if let Some(bytes) = self.passed(bytes) {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    Stats::add(&self.stats.upstream_errors, 1);
                    return Poll::Ready(Some(Err(io::Error::other(error))));
                }
                Poll::Ready(None) => {
                    self.release();
                    let last = self.strip.take().map(|mut it| it.finish()).filter(|it| !it.is_empty());
                    return Poll::Ready(last.map(Ok));
                }
                Poll::Pending => break,
            }
        }
        match self.poll_watch(cx) {
            Poll::Pending => Poll::Pending,
            // An event stream may end anywhere, and its client comes again.
            Poll::Ready(End::Stopping) => {
                self.watching = None;
                Poll::Ready(None)
            }
            Poll::Ready(end) => {
                self.watching = None;
                Poll::Ready(Some(Err(io::Error::other(format!("ended by the gateway: {end:?}")))))
            }
        }
    }
}
