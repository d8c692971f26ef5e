//! Watches: the changes after a version, one line and one chunk for each.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::Server;
use crate::http::Request;
use crate::present::Shape;
use crate::read::{check_options, selector, shown, version_of};
use crate::resource::Resource;
use crate::route::Target;
use crate::select::Selector;
use crate::status::Failure;
use crate::store::Change;

struct Watch {
    server: Arc<Server>,
    of: Resource,
    space: Option<String>,
    selector: Selector,
    shape: Shape,
    bookmarks: bool,
    to: mpsc::Sender<io::Result<Bytes>>,
    /// Up to which version everything was looked at.
    seen: u64,
}

/// Begins a watch; what it sees comes through the channel.
pub(crate) fn watch(
    server: &Arc<Server>,
    target: &Target,
    request: &Request,
    shape: Shape,
) -> Result<mpsc::Receiver<io::Result<Bytes>>, Failure> {
    check_options(request, true)?;
    let selector = selector(&target.of, request)?;
    let asked = version_of(request.param("resourceVersion"), true)?;
    let timeout = match request.param("timeoutSeconds") {
        "" => Duration::from_secs(rand::random_range(1800..3600)),
        text => Duration::from_secs(text.parse().unwrap_or(1800)),
    };
    let initial = request.flag("sendInitialEvents");
    let (to, from) = mpsc::channel(64);
    let mut watch = Watch {
        server: server.clone(),
        of: target.of.clone(),
        space: target.space.clone(),
        selector,
        shape,
        bookmarks: request.flag("allowWatchBookmarks"),
        to,
        seen: asked,
    };
    // An own name restricts a watch as a selector does.
    let all = initial || asked == 0;
    tokio::spawn(async move { watch.run(all, initial, timeout).await });
    Ok(from)
}

impl Watch {
    async fn run(&mut self, all: bool, initial: bool, timeout: Duration) {
        let server = self.server.clone();
        let end = Instant::now() + timeout;
        let mut cuts = server.faults.cuts();
        let mut disturbances = server.faults.disturbances();
        cuts.mark_unchanged();
        if all {
            if self.existing(initial).await.is_err() {
                return;
            }
        } else {
            let oldest = server.store.read(|state| state.oldest(&self.of.store()));
            if self.seen < oldest {
                let failure = Failure::expired(format!("too old resource version: {} ({oldest})", self.seen));
                let _ = self.line("ERROR", &failure.body()).await;
                return;
            }
        }
        let mut news = server.store.news();
        // Two more shortly before the end, and one each minute of the cluster's.
        let mut marks: VecDeque<Instant> = VecDeque::new();
        if self.bookmarks {
            let last = end.checked_sub(Duration::from_millis(500).min(timeout / 4));
            let before = end.checked_sub(Duration::from_secs(2));
            let start = Instant::now();
            marks.extend(before.into_iter().chain(last).filter(|at| *at > start));
        }
        let period = server.cluster.scaled(Duration::from_secs(60)).max(Duration::from_millis(500));
        let mut minute = Instant::now() + period;
        loop {
            if self.changes().await.is_err() {
                return;
            }
            let mark = marks.front().copied().unwrap_or(end).min(minute);
            tokio::select! {
                () = self.to.closed() => return,
                () = sleep_until(end) => return,
                () = sleep_until(mark), if self.bookmarks => {
                    if marks.front().is_some_and(|at| *at <= Instant::now()) {
                        marks.pop_front();
                    } else {
                        minute += period;
                    }
                    if self.bookmark(false).await.is_err() {
                        return;
                    }
                }
                changed = news.changed() => if changed.is_err() { return },
                _ = disturbances.changed() => {}
                _ = cuts.changed() => {
                    let cut = cuts.borrow_and_update().clone();
                    if !cut.of.is_empty() && cut.of != self.of.store() {
                        continue;
                    }
                    if cut.clean {
                        let _ = self.changes().await;
                    } else {
                        let _ = self.to.try_send(Err(io::ErrorKind::ConnectionReset.into()));
                    }
                    return;
                }
            }
        }
    }

    /// All that is there, as ADDED.
    async fn existing(&mut self, initial: bool) -> Result<(), ()> {
        let (objects, version) = self
            .server
            .store
            .read(|state| (state.all(&self.of.store(), self.space.as_deref()), state.version));
        for object in objects.iter().filter(|it| self.selector.matches(it)) {
            self.event("ADDED", object).await?;
        }
        self.seen = version;
        if initial && self.bookmarks {
            self.bookmark(true).await?;
        }
        Ok(())
    }

    async fn bookmark(&mut self, first: bool) -> Result<(), ()> {
        if self.server.faults.disturbed(&self.of.store()).silent {
            return Ok(());
        }
        let mut object = json!({"kind": self.of.kind, "apiVersion": self.of.api_version(),
            "metadata": {"resourceVersion": self.seen.to_string()}});
        if first {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        if self.of.is_pod() {
            object["spec"] = json!({"containers": null});
            object["status"] = json!({});
        }
        let object = self.shape.one(&self.of, object);
        self.line("BOOKMARK", &object).await
    }

    async fn changes(&mut self) -> Result<(), ()> {
        loop {
            let disturbed = self.server.faults.disturbed(&self.of.store());
            if disturbed.silent {
                return Ok(());
            }
            let changes = self.server.store.read(|state| state.since(self.seen));
            if changes.is_empty() {
                return Ok(());
            }
            if disturbed.delay_ms > 0 {
                tokio::time::sleep(Duration::from_millis(disturbed.delay_ms)).await;
            }
            for change in changes {
                // A version of the future: nothing until it is there.
                if change.version <= self.seen {
                    continue;
                }
                self.seen = change.version;
                let Some((kind, object)) = self.seen_as(&change) else { continue };
                for _ in 0..=disturbed.duplicates {
                    self.event(kind, &object).await?;
                }
            }
        }
    }

    /// What a change is to this watch.
    fn seen_as(&self, change: &Change) -> Option<(&'static str, Arc<Value>)> {
        if change.store != self.of.store() || self.space.as_deref().is_some_and(|space| space != change.key.0)
        {
            return None;
        }
        let before = change.old.as_ref().filter(|it| self.selector.matches(it));
        let after = change.new.as_ref().filter(|it| self.selector.matches(it));
        match (before, after) {
            (None, None) => None,
            (None, Some(new)) => Some(("ADDED", new.clone())),
            (Some(_), Some(new)) => Some(("MODIFIED", new.clone())),
            // The object as it was before, with the new version.
            (Some(old), None) => {
                let mut object = Value::clone(old);
                object["metadata"]["resourceVersion"] = json!(change.version.to_string());
                Some(("DELETED", Arc::new(object)))
            }
        }
    }

    async fn event(&self, kind: &str, object: &Value) -> Result<(), ()> {
        let object = self.shape.one(&self.of, shown(&self.of, object));
        self.line(kind, &object).await
    }

    async fn line(&self, kind: &str, object: &Value) -> Result<(), ()> {
        let mut line = json!({"type": kind, "object": object}).to_string();
        line.push('\n');
        self.to.send(Ok(Bytes::from(line))).await.map_err(|_| ())
    }
}
