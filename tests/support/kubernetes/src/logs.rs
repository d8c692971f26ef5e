//! What containers wrote.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::Server;
use crate::cluster::log::{Line, Log};
use crate::exec::container_of;
use crate::http::{self, Request, Response};
use crate::route::Target;
use crate::status::{Cause, Failure};
use crate::value::{list, text, uid, utc};
use crate::write::find;

#[derive(Default)]
struct Options {
    tail: Option<usize>,
    since: Option<DateTime<Utc>>,
    limit: Option<usize>,
    stamps: bool,
}

fn options(target: &Target, request: &Request) -> Result<Options, Failure> {
    let number = |name: &str| -> Result<Option<i64>, Failure> {
        match request.param(name) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| Failure::bad(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        }
    };
    let mut causes = Vec::new();
    let tail = number("tailLines")?;
    let limit = number("limitBytes")?;
    let seconds = number("sinceSeconds")?;
    if let Some(bad) = tail.filter(|it| *it < 0) {
        causes.push(Cause::invalid("tailLines", &json!(bad), "must be greater than or equal to 0"));
    }
    if let Some(bad) = limit.filter(|it| *it < 1) {
        causes.push(Cause::invalid("limitBytes", &json!(bad), "must be greater than 0"));
    }
    let time = request.param("sinceTime");
    if seconds.is_some() && !time.is_empty() {
        causes.push(Cause::forbidden("[]", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    } else if let Some(bad) = seconds.filter(|it| *it < 1) {
        causes.push(Cause::invalid("sinceSeconds", &json!(bad), "must be greater than 0"));
    }
    if !causes.is_empty() {
        return Err(Failure::invalid_as("PodLogOptions", "", "PodLogOptions", &target.name, &causes));
    }
    let since = match seconds {
        Some(seconds) => Some(utc() - chrono::Duration::seconds(seconds)),
        None => DateTime::parse_from_rfc3339(time).ok().map(|it| it.with_timezone(&Utc)),
    };
    Ok(Options {
        tail: tail.and_then(|it| usize::try_from(it).ok()),
        since,
        limit: limit.and_then(|it| usize::try_from(it).ok()),
        stamps: request.flag("timestamps"),
    })
}

pub(crate) async fn answer(
    server: &Arc<Server>,
    target: &Target,
    request: &Request,
) -> Result<Response, Failure> {
    let pod = server.store.read(|state| find(state, target))?;
    let options = options(target, request)?;
    let name = container_of(&pod, request.param("container"))?;
    if text(&pod["spec"]["nodeName"]).is_empty() {
        return Ok(http::bytes(204, "", ""));
    }
    let here = server.cluster.pod(uid(&pod)).and_then(|it| it.containers().get(&name).cloned());
    let Some(here) = here else { return Err(waits(&pod, &name)) };
    let log = if request.flag("previous") {
        here.previous.ok_or_else(|| {
            Failure::bad(format!(
                "previous terminated container \"{name}\" in pod \"{}\" not found",
                target.name
            ))
        })?
    } else {
        here.log
    };
    let (to, from) = mpsc::channel(64);
    let mut cuts = server.faults.cuts();
    cuts.mark_unchanged();
    let follow = request.flag("follow");
    tokio::spawn(async move {
        tokio::select! {
            () = send(log, options, follow, to) => {}
            // As when something on the way has had enough of it: an end like every other.
            () = async { while cuts.changed().await.is_ok() && cuts.borrow_and_update().of != "logs" {} } => {}
        }
    });
    Ok(http::stream("text/plain", from))
}

fn waits(pod: &Value, name: &str) -> Failure {
    let statuses = list(&pod["status"]["containerStatuses"]);
    let reason = statuses
        .iter()
        .chain(list(&pod["status"]["initContainerStatuses"]))
        .find(|it| it["name"] == name)
        .map_or("ContainerCreating", |it| text(&it["state"]["waiting"]["reason"]));
    let why = match reason {
        "ErrImagePull" | "ImagePullBackOff" => "trying and failing to pull image",
        "" => "ContainerCreating",
        reason => reason,
    };
    let called = crate::value::name(pod);
    Failure::bad(format!("container \"{name}\" in pod \"{called}\" is waiting to start: {why}"))
}

type To = mpsc::Sender<std::io::Result<Bytes>>;

async fn send(log: Arc<Log>, options: Options, follow: bool, to: To) {
    let mut news = log.news();
    let all = log.from(0);
    let mut seen = all.len();
    let recent = |line: &Line| {
        options.since.is_none_or(|since| {
            DateTime::parse_from_rfc3339(&line.at).is_ok_and(|at| at.with_timezone(&Utc) >= since)
        })
    };
    let chosen: Vec<Line> = all.into_iter().filter(|it| recent(it)).collect();
    let skip = options.tail.map_or(0, |tail| chosen.len().saturating_sub(tail));
    let mut left = options.limit.unwrap_or(usize::MAX);
    let mut lines = chosen[skip..].to_vec();
    loop {
        for line in &lines {
            let mut bytes = Vec::new();
            if options.stamps {
                bytes.extend_from_slice(line.at.as_bytes());
                bytes.push(b' ');
            }
            bytes.extend_from_slice(&line.bytes);
            bytes.truncate(left);
            left -= bytes.len();
            if to.send(Ok(Bytes::from(bytes))).await.is_err() || left == 0 {
                return;
            }
        }
        lines = log.from(seen);
        seen += lines.len();
        if !lines.is_empty() {
            continue;
        }
        let ended = news.borrow_and_update().1;
        if ended || !follow {
            // The end is seen a moment later.
            if follow {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            return;
        }
        tokio::select! {
            _ = news.changed() => {}
            () = to.closed() => return,
        }
    }
}
