//! Logs of pods.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{AsyncRead, AsyncReadExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};
use podyard_driver::{Error, Result};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::driver::Inner;
use crate::error::{is, told};
use crate::seen::Seen;

const WHAT: &str = "the space's log cannot be read";
/// How much is read at once, and waits for the receiver.
const PIECE: usize = 16 << 10;
/// Pieces that wait for the receiver.
const PIECES: usize = 4;
/// So many bytes of a log are a line at least, for all that is asked for.
const LINE: usize = 16;
/// How long the API server may take for what it must have at hand.
const LIMIT: Duration = Duration::from_secs(30);
/// After a stream's end it is waited so long before the next, and longer each
/// time that nothing came, ...
const PAUSE: Duration = Duration::from_secs(1);
/// ... up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often the log of a pod that is over is asked for in vain.
const LAST: u32 = 5;
/// A time before a line is no longer than this.
const STAMP: usize = 64;

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
    timeout(LIMIT, read).await.unwrap_or_else(|_| Err(broken(std::io::ErrorKind::TimedOut.into())))
}

/// Opens a log, however long that takes; none if there is none yet, or no more.
async fn open(pods: &Api<Pod>, name: &str, wanted: &LogParams) -> Result<Option<impl AsyncRead + use<>>> {
    match pods.log_stream(name, wanted).await {
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
///
/// A stream that ends says little: the API server restarts, or something on the
/// way has had enough of it. So it is opened again for as long as the pod is not
/// over, and once more after that, for what was said while none was open.
async fn pass_on(
    inner: &Inner,
    space: &str,
    uid: &str,
    lines: usize,
    to: &mpsc::Sender<Bytes>,
) -> Result<()> {
    let mut changes = inner.cache.changes();
    let pod = || inner.cache.pod(space).filter(|it| &*it.uid == uid);
    let mut speaker: Option<Box<str>> = None;
    let mut heard = Heard::default();
    let mut pause = PAUSE;
    let mut last = LAST;
    loop {
        changes.borrow_and_update();
        let Some(seen) = pod() else { return Ok(()) };
        let Some(container) = &seen.speaker else {
            if seen.is_over() || changes.changed().await.is_err() {
                return Ok(());
            }
            continue;
        };
        if speaker.as_ref() != Some(container) {
            speaker = Some(container.clone());
            heard = Heard::default();
            pause = PAUSE;
        }
        let before = heard.pieces;
        let turn = Turn { seen: &seen, pod: &pod, changes: changes.clone() };
        let listened = listen(inner, &turn, lines, &mut heard, to).await;
        match listened {
            Ok(Ended::Unheard) => return Ok(()),
            // It was over before this began, so nothing can come behind it.
            Ok(Ended::Whole) if seen.is_over() => return Ok(()),
            Ok(_) => {}
            // What is asked for is refused, and waiting does not change that.
            Err(error) if !matches!(error, Error::Io { .. }) => return Err(error),
            Err(error) => {
                if seen.is_over() {
                    last -= 1;
                    if last == 0 {
                        return Err(error);
                    }
                }
                tracing::debug!(space, %error, "a log is opened again");
            }
        }
        if heard.pieces > before {
            pause = PAUSE;
        }
        // The end of a run is seen a moment after that of its log.
        let _ = timeout(pause, turn.comes()).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// How a stream ended.
enum Ended {
    /// As it should.
    Whole,
    /// Nobody listens any more.
    Unheard,
}

/// What becomes of a pod while its log is read.
struct Turn<'a, F> {
    seen: &'a Seen,
    pod: &'a F,
    changes: watch::Receiver<()>,
}

impl<F: Fn() -> Option<Seen>> Turn<'_, F> {
    /// Waits until another container speaks, or the pod is over or gone.
    async fn comes(&self) {
        let mut changes = self.changes.clone();
        loop {
            changes.borrow_and_update();
            let same = |it: Seen| it.speaker == self.seen.speaker && it.is_over() == self.seen.is_over();
            if !(self.pod)().is_some_and(same) || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits for something of a stream. A log in which nothing comes is no
    /// trouble, but its end must come soon after the pod's: if not, the
    /// connection is lost.
    async fn or<T>(&self, it: impl Future<Output = T>) -> Result<T> {
        let lost = async {
            if !self.seen.is_over() {
                self.comes().await;
            }
            sleep(LIMIT).await;
        };
        tokio::select! {
            biased;
            it = it => Ok(it),
            () = lost => Err(broken(std::io::ErrorKind::TimedOut.into())),
        }
    }
}

/// Passes on one stream, but for what has been heard.
async fn listen<F: Fn() -> Option<Seen>>(
    inner: &Inner,
    turn: &Turn<'_, F>,
    lines: usize,
    heard: &mut Heard,
    to: &mpsc::Sender<Bytes>,
) -> Result<Ended> {
    let seen = turn.seen;
    let mut wanted = LogParams {
        container: seen.speaker.as_deref().map(str::to_owned),
        follow: true,
        timestamps: true,
        ..LogParams::default()
    };
    match heard.since() {
        Some(since) => wanted.since_time = Some(since),
        None => wanted.tail_lines = i64::try_from(lines).ok(),
    }
    let asked = Timestamp::now();
    // The kubelet answers only once there is something to say.
    let opened = turn.or(open(&inner.pods, &seen.name, &wanted)).await??;
    let mut stream = std::pin::pin!(opened);
    let Some(mut stream) = stream.as_mut().as_pin_mut() else { return Ok(Ended::Whole) };
    if lines == 0 && heard.at.is_none() {
        // Not from the end again: what comes from now on is wanted.
        heard.from.get_or_insert(asked);
    }
    let mut news = News::after(heard);
    let mut piece = vec![0; PIECE];
    loop {
        let n = turn.or(stream.read(&mut piece)).await?.map_err(broken)?;
        if n == 0 {
            return Ok(Ended::Whole);
        }
        let mut new = Vec::with_capacity(n);
        news.take(heard, &piece[..n], &mut new);
        if new.is_empty() {
            continue;
        }
        heard.pieces += 1;
        if to.send(new.into()).await.is_err() {
            return Ok(Ended::Unheard);
        }
    }
}

/// How far a container's log has been passed on.
#[derive(Debug, Default)]
struct Heard {
    /// The time of the last line, ...
    at: Option<Timestamp>,
    /// ... and how many bytes of lines of that time there were.
    bytes: usize,
    /// Where to begin while no line has come; none: as was asked for.
    from: Option<Timestamp>,
    pieces: u64,
}

impl Heard {
    /// What to ask for: whole seconds only, which are never later than the last line.
    fn since(&self) -> Option<Timestamp> {
        Timestamp::from_second(self.at.or(self.from)?.as_second()).ok()
    }
}

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Heard already.
    Old,
    /// As old as the last that was heard, so that a part of it may be new.
    Last,
    New,
    /// Without a time: the kubelet's own word.
    Told,
}

/// Takes the times off a stream's lines, and what was heard before.
#[derive(Debug)]
struct News {
    /// Whether only what was heard before has come yet.
    behind: bool,
    /// Bytes of the last time that are still to be left out.
    known: usize,
    /// The beginning of a line whose time is not whole yet.
    head: Vec<u8>,
    /// The line that goes on; none at the beginning of one.
    line: Option<Line>,
}

impl News {
    fn after(heard: &Heard) -> Self {
        Self { behind: heard.at.is_some(), known: heard.bytes, head: Vec::new(), line: None }
    }

    fn take(&mut self, heard: &mut Heard, mut piece: &[u8], new: &mut Vec<u8>) {
        while !piece.is_empty() {
            if let Some(line) = self.line {
                let end = piece.iter().position(|it| *it == b'\n').map_or(piece.len(), |it| it + 1);
                let (text, rest) = piece.split_at(end);
                self.text(heard, line, text, new);
                piece = rest;
                continue;
            }
            let end = piece.iter().position(|it| matches!(it, b' ' | b'\n'));
            let (head, rest) = piece.split_at(end.map_or(piece.len(), |it| it + 1));
            self.head.extend_from_slice(head);
            piece = rest;
            if end.is_none() && self.head.len() <= STAMP {
                continue;
            }
            let head = std::mem::take(&mut self.head);
            let at = head.strip_suffix(b" ").and_then(|it| std::str::from_utf8(it).ok()?.parse().ok());
            match at {
                Some(at) => self.line = Some(self.begin(heard, at)),
                None => {
                    // It says that once, not each time that the log is opened.
                    let line = if self.behind { Line::Old } else { Line::Told };
                    self.text(heard, line, &head, new);
                }
            }
        }
    }

    fn begin(&mut self, heard: &mut Heard, at: Timestamp) -> Line {
        if self.behind && heard.at == Some(at) {
            return Line::Last;
        }
        if self.behind && heard.at.is_some_and(|last| at < last) {
            return Line::Old;
        }
        self.behind = false;
        if heard.at != Some(at) {
            heard.at = Some(at);
            heard.bytes = 0;
        }
        Line::New
    }

    /// A part of a line, to its end at most.
    fn text(&mut self, heard: &mut Heard, line: Line, text: &[u8], new: &mut Vec<u8>) {
        self.line = (!text.ends_with(b"\n")).then_some(line);
        let text = match line {
            Line::Old => return,
            Line::New | Line::Told => text,
            Line::Last => {
                let known = self.known.min(text.len());
                self.known -= known;
                &text[known..]
            }
        };
        new.extend_from_slice(text);
        if line != Line::Told {
            heard.bytes += text.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is new of a stream, in pieces of every size.
    fn new(heard: &[&str], stream: &str) -> String {
        let mut all: Vec<String> = (1..=stream.len())
            .map(|size| {
                let (mut so_far, mut passed) = (Heard::default(), Vec::new());
                for it in heard {
                    News::after(&so_far).take(&mut so_far, it.as_bytes(), &mut passed);
                }
                passed.clear();
                let mut news = News::after(&so_far);
                for piece in stream.as_bytes().chunks(size) {
                    news.take(&mut so_far, piece, &mut passed);
                }
                String::from_utf8(passed).unwrap()
            })
            .collect();
        all.dedup();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    const A: &str = "2026-01-02T03:04:05.100000000Z";
    const B: &str = "2026-01-02T11:04:05.2+08:00";
    const C: &str = "2026-01-02T03:04:06Z";

    #[test]
    fn lines_go_without_their_times() {
        assert_eq!(new(&[], &format!("{A} one\n{A} \n{B} three four\n{C} fi")), "one\n\nthree four\nfi");
        assert_eq!(new(&[], "unable to retrieve the log\nx\n"), "unable to retrieve the log\nx\n");
    }

    #[test]
    fn nothing_is_said_twice_and_nothing_left_out() {
        let before = format!("{A} one\n{B} two\n");
        assert_eq!(new(&[&before], &format!("{before}{C} three\n")), "three\n");
        // Of the same time, and within a line.
        assert_eq!(new(&[&before], &format!("{before}{B} more\n{C} three\n")), "more\nthree\n");
        assert_eq!(new(&[&format!("{A} one\n{B} t")], &format!("{before}{C} three\n")), "wo\nthree\n");
        assert_eq!(new(&[&format!("{A} one\n{B} two\n2026-")], &format!("{before}{C} x\n")), "x\n");
        // Three streams.
        assert_eq!(new(&[&before, &format!("{before}{B} mo")], &format!("{before}{B} more\n")), "re\n");
        // The log was turned over meanwhile; a clock that was set back later on hides nothing.
        assert_eq!(new(&[&before], &format!("{C} three\n{A} four\n")), "three\nfour\n");
        assert_eq!(new(&[&before], &format!("not there\n{C} three\n")), "three\n");
    }

    #[test]
    fn what_is_asked_for_is_never_later_than_what_came() {
        let mut heard = Heard::default();
        assert_eq!(heard.since(), None);
        News::after(&heard).take(&mut heard, b"2026-01-02T03:04:05.9Z x\n", &mut Vec::new());
        assert_eq!(heard.since(), Some("2026-01-02T03:04:05Z".parse().unwrap()));
    }
}
