//! Follows a log: what is there, and what comes until the run is over.
//!
//! The log is two files, of which the newer is renamed when it is full (see
//! `shim`). So whoever follows keeps the file open that they read, reads it to
//! its end, and goes on with the next one that has its name.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::disk::{Run, is_same_file};

/// How much is read at once, and how many such pieces wait to be taken.
const PIECE: usize = 32 << 10;
const WAITING: usize = 8;

/// How often a log is looked at in which nothing comes.
const PAUSE: Duration = Duration::from_millis(200);

/// Begins with the last `tail` lines. `instance`: the run, if one lives.
pub(crate) fn follow(run: Run, instance: Option<String>, tail: usize) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let space = run.path().to_owned();
        if let Err(error) = copy(run, instance, tail, &sender).await {
            tracing::warn!(space = %space.display(), %error, "a log cannot be followed");
        }
    });
    receiver
}

async fn copy(run: Run, instance: Option<String>, tail: usize, to: &mpsc::Sender<Bytes>) -> io::Result<()> {
    let begin = {
        let run = run.clone();
        off_thread(move || Reader::begin(run, tail))
    };
    let (older, mut reader) = begin.await?;
    for piece in older.chunks(PIECE) {
        if to.send(Bytes::copy_from_slice(piece)).await.is_err() {
            return Ok(());
        }
    }
    drop(older);
    loop {
        // Asked before the read: what is written before the end is read after it.
        let (lives, piece);
        (reader, lives, piece) = {
            let instance = instance.clone();
            off_thread(move || {
                let lives = match &instance {
                    Some(instance) => reader.run.lives(instance)?,
                    None => false,
                };
                let piece = reader.next()?;
                Ok((reader, lives, piece))
            })
            .await?
        };
        if !piece.is_empty() {
            if to.send(piece).await.is_err() {
                return Ok(());
            }
        } else if !lives {
            return Ok(());
        } else {
            tokio::select! {
                () = to.closed() => return Ok(()),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Where in the newer file somebody is.
struct Reader {
    run: Run,
    /// None until there is a log.
    file: Option<File>,
}

impl Reader {
    /// The end of what is there, and what follows it. Between the two nothing
    /// is lost and nothing comes twice: the newer file is read on where it was.
    fn begin(run: Run, tail: usize) -> io::Result<(Vec<u8>, Self)> {
        let mut file = open(&run, "log")?;
        let mut text = Vec::new();
        if let Some(file) = &mut file {
            file.read_to_end(&mut text)?;
        }
        // Renamed meanwhile, it would be the file that is open; then this is all there was.
        let renamed = file.as_ref().is_some_and(|it| is_same_file(it, &run.file("log.1")));
        if !renamed
            && lines_from(&text, tail) == 0
            && let Some(mut older) = open(&run, "log.1")?
        {
            let mut all = Vec::new();
            older.read_to_end(&mut all)?;
            all.append(&mut text);
            text = all;
        }
        let from = lines_from(&text, tail);
        text.drain(..from);
        Ok((text, Self { run, file }))
    }

    /// The next piece; empty: nothing is there yet.
    fn next(&mut self) -> io::Result<Bytes> {
        let mut piece = vec![0; PIECE];
        loop {
            let Some(file) = &mut self.file else {
                self.file = open(&self.run, "log")?;
                if self.file.is_none() {
                    return Ok(Bytes::new());
                }
                continue;
            };
            // Without room on the disk the log is cut instead of renamed.
            if file.metadata()?.len() < file.stream_position()? {
                file.seek(SeekFrom::Start(0))?;
            }
            let current = is_same_file(file, &self.run.file("log"));
            let n = file.read(&mut piece)?;
            if n > 0 {
                piece.truncate(n);
                return Ok(piece.into());
            }
            if current {
                return Ok(Bytes::new());
            }
            self.file = None;
        }
    }
}

fn open(run: &Run, name: &str) -> io::Result<Option<File>> {
    match File::open(run.file(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Where the last `count` lines begin.
fn lines_from(text: &[u8], count: usize) -> usize {
    if count == 0 {
        return text.len();
    }
    // The last line's own end does not begin another.
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(count - 1).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_last_lines_begin() {
        for (text, count, want) in [
            ("", 3, ""),
            ("a\nb\nc\n", 0, ""),
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc", 1, "c"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\nb\nc\n", usize::MAX, "a\nb\nc\n"),
            ("\n\n", 1, "\n"),
        ] {
            assert_eq!(&text[lines_from(text.as_bytes(), count)..], want, "{text:?} {count}");
        }
    }
}
