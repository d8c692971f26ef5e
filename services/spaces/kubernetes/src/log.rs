//! Logs of pods.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{AsyncRead, AsyncReadExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};
use podyard_driver::{Error, Result};
use tokio::sync::mpsc;

use crate::driver::Inner;
use crate::error::{is, raw, told};
use crate::seen::Seen;

const WHAT: &str = "the space's log cannot be read";
/// How much is read at once, and waits for the receiver.
const PIECE: usize = 16 << 10;
/// Pieces that wait for the receiver.
const PIECES: usize = 4;
/// So many bytes of a log are a line at least, for all that is asked for.
const LINE: usize = 16;

/// The last `bytes` of what a pod wrote; nothing if it has not begun, or is gone.
pub(crate) async fn tail(pods: &Api<Pod>, seen: &Seen, bytes: usize) -> Result<Vec<u8>> {
    let Some(container) = &seen.speaker else { return Ok(Vec::new()) };
    let lines = i64::try_from(bytes / LINE).unwrap_or(i64::MAX).max(1);
    let wanted =
        LogParams { container: Some(container.to_string()), tail_lines: Some(lines), ..LogParams::default() };
    let read = async {
        let mut stream = std::pin::pin!(open(pods, &seen.name, &wanted).await?);
        let mut tail = Vec::new();
        if let Some(stream) = stream.as_mut().as_pin_mut() {
            let mut stream = stream;
            let mut piece = vec![0; PIECE];
            loop {
                let n = stream.read(&mut piece).await.map_err(broken)?;
                if n == 0 {
                    break;
                }
                tail.extend_from_slice(&piece[..n]);
                // Lines may be longer than was thought.
                if tail.len() > 2 * bytes + PIECE {
                    tail.drain(..tail.len() - bytes);
                }
            }
        }
        tail.drain(..tail.len().saturating_sub(bytes));
        Ok(tail)
    };
    let limit = std::time::Duration::from_secs(30);
    tokio::time::timeout(limit, read)
        .await
        .unwrap_or_else(|_| Err(broken(std::io::ErrorKind::TimedOut.into())))
}

/// Opens a log; none if there is none yet, or no more.
async fn open(pods: &Api<Pod>, name: &str, wanted: &LogParams) -> Result<Option<impl AsyncRead + use<>>> {
    match raw(WHAT, pods.log_stream(name, wanted)).await? {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if is(&error, 404) || is(&error, 400) => Ok(None),
        Err(error) => Err(told(WHAT, error)),
    }
}

fn broken(source: std::io::Error) -> Error {
    Error::Io { what: WHAT.to_owned(), source }
}

/// Follows what a space's pod writes, from its last `lines` on, until the run
/// is over or the receiver is dropped.
pub(crate) async fn follow(inner: &Arc<Inner>, space: &str, lines: usize) -> Result<mpsc::Receiver<Bytes>> {
    let (to, receiver) = mpsc::channel(PIECES);
    let Some(seen) = inner.cache.pod(space) else { return Ok(receiver) };
    let (inner, space) = (inner.clone(), space.to_owned());
    tokio::spawn(async move {
        tokio::select! {
            () = to.closed() => {}
            followed = pass_on(&inner, &space, &seen.uid, lines, &to) => {
                if let Err(error) = followed {
                    tracing::debug!(space, %error, "a log cannot be followed any more");
                }
            }
        }
    });
    Ok(receiver)
}

/// Passes on the log of each container that speaks, the one before the program
/// and then the program.
async fn pass_on(
    inner: &Inner,
    space: &str,
    uid: &str,
    lines: usize,
    to: &mpsc::Sender<Bytes>,
) -> Result<()> {
    let mut heard: Option<Box<str>> = None;
    let mut changes = inner.cache.changes();
    loop {
        changes.borrow_and_update();
        let Some(seen) = inner.cache.pod(space).filter(|it| &*it.uid == uid) else { return Ok(()) };
        if seen.speaker.is_some() && seen.speaker != heard {
            let wanted = LogParams {
                container: seen.speaker.as_deref().map(str::to_owned),
                follow: true,
                tail_lines: i64::try_from(lines).ok(),
                ..LogParams::default()
            };
            let mut stream = std::pin::pin!(open(&inner.pods, &seen.name, &wanted).await?);
            if let Some(mut stream) = stream.as_mut().as_pin_mut() {
                let mut piece = vec![0; PIECE];
                loop {
                    let n = stream.read(&mut piece).await.map_err(broken)?;
                    if n == 0 || to.send(Bytes::copy_from_slice(&piece[..n])).await.is_err() {
                        break;
                    }
                }
            }
            heard = seen.speaker;
            continue;
        }
        if seen.is_over() || changes.changed().await.is_err() {
            return Ok(());
        }
    }
}
