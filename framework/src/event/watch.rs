//! `?watch=true` on a list or a get: server-sent events, one task per stream.
//! The task holds no connection and no row while it waits; whatever it tells
//! is read anew with the rights of its caller.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{Method, header};
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};

use super::feed::{Batch, Seat};
use super::rows::PIECE;
use super::store::{self, CHUNK, Read, Standing};
use super::{Change, Position, Told, Watched, tasks};
use crate::auth::UserCred;
use crate::context;
use crate::ctx::Ctx;
use crate::db::Cost;
use crate::dispatch::{ResourceHandler, Shown};
use crate::http::request::{query_params, segments};
use crate::http::route::{Target, route};
use crate::http::{App, address, authenticate, nested, token};
use crate::model::Meta;
use crate::query::{self, Params};
use crate::{Error, Kind, Result, policy};

/// Whether a request asks for a stream.
pub(crate) fn is_watch(req: &HttpRequest) -> bool {
    let asks = |pair: &str| pair == "watch" || pair.starts_with("watch=");
    *req.method() == Method::GET && req.query_string().split('&').any(asks)
}

/// What is asked of the stream itself.
#[derive(Default)]
struct Asked {
    initial: bool,
    since: Option<Since>,
}

/// The id of an event of a stream: a place in a log, and which log's.
struct Since {
    at: Position,
    /// Empty: of a server that did not tell yet.
    log: String,
}

fn flag(key: &str, value: &str) -> Result<bool> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Error::field(key, "must be true or false")),
    }
}

fn position(name: &str, text: &str) -> Result<Since> {
    let (at, log) = text.match_indices('-').nth(1).map_or((text, ""), |(i, _)| (&text[..i], &text[i + 1..]));
    let wrong = || Error::field(name, format!("{text:?} is not the id of an event of a stream"));
    let sane = log.len() <= 64 && log.bytes().all(|b| b.is_ascii_alphanumeric());
    Ok(Since { at: at.parse().ok().filter(|_| sane).ok_or_else(wrong)?, log: log.to_owned() })
}

type Param<'a> = (Cow<'a, str>, Cow<'a, str>);

/// Takes what is the stream's from the parameters; the rest is the list's.
fn asked<'a>(req: &HttpRequest, params: &Params<'a>) -> Result<(Asked, Vec<Param<'a>>)> {
    const PAGING: [&str; 8] =
        ["limit", "marker", "order", "order_by", "offset", "total", "export", "distinct_field"];
    let mut it = Asked::default();
    let mut rest = Vec::new();
    for (i, (key, value)) in params.iter().enumerate() {
        let own = matches!(key.as_ref(), "watch" | "initial" | "since");
        if own && params[..i].iter().any(|(k, _)| k == key) {
            return Err(Error::field(key.as_ref(), "is given twice"));
        }
        match key.as_ref() {
            "watch" if !flag(key, value)? => {
                return Err(Error::field("watch", "must be true, or left out"));
            }
            "watch" => {}
            "initial" => it.initial = flag(key, value)?,
            "since" => it.since = Some(position(key, value)?),
            "details" if value == "total" => return Err(Error::field("details", "does not go with watch")),
            name if PAGING.contains(&name) => {
                return Err(Error::field(name, "does not go with watch: a stream has no pages"));
            }
            _ => rest.push((key.clone(), value.clone())),
        }
    }
    if it.initial && it.since.is_some() {
        return Err(Error::field("initial", "does not go with since"));
    }
    // What a browser sends when it connects again, to the same address.
    if let Some(value) = req.headers().get("Last-Event-ID") {
        let text = value.to_str().unwrap_or_default();
        it.since = Some(position("Last-Event-ID", text)?);
        it.initial = false;
    }
    Ok((it, rest))
}

fn expired() -> Error {
    Error::new(Kind::Gone, "the events after this position are kept no longer; list again and watch from now")
        .class("EventsExpiredError")
}

/// Opens a stream.
pub(crate) async fn open(
    req: &HttpRequest,
    app: &App,
    id: &str,
    resource: &mut &'static str,
    user: &mut Option<Arc<UserCred>>,
) -> Result<HttpResponse> {
    let cred = authenticate(&app.core, req)?;
    *user = Some(cred.clone());
    let path = segments(req.uri().path())?;
    let params = query_params(req.query_string())?;
    let (of, target) = route(&app.core, req.method(), &path)?;
    let nothing = || Error::field("watch", "goes with a list or one resource");
    let Some(of) = of else { return Err(nothing()) };
    let (handler, meta) = (of.handler, of.handler.meta());
    *resource = meta.plural();
    let verbs = meta.source.verbs;
    let (target, within) = match target {
        Target::Nested(target, within) => (*target, Some(within)),
        target => (target, None),
    };
    let (rank, verb, item) = match target {
        Target::List => (verbs.list, "list", None),
        Target::Get(item) => (verbs.get, "get", Some(item)),
        _ => return Err(nothing()),
    };
    policy::require(&cred, rank, &format!("to {verb} {}", meta.plural()))?;
    if let Some(within) = &within {
        nested::allowed(&app.core, of, within, &cred)?;
    }
    if !tasks::is_watchable(meta) {
        let text = format!("{} cannot be watched: their changes are not in the log", meta.plural());
        return Err(Error::field("watch", text).class("NotWatchableError"));
    }
    let (asked, rest) = asked(req, &params)?;
    let mut ctx =
        Ctx::new(app.core.clone(), cred.clone(), id).from_address(address(req, app.options.trust_forwarded));
    if let Some(within) = within {
        ctx = ctx.within(within);
    }
    let watched = watched(&ctx, handler, meta, item, &rest).await?;
    let (seat, batches) = app.core.feed.join(&cred.user_id)?;
    let on_demand = tasks::on_demand(meta);
    let log = app.core.feed.log(&app.core).await?;
    let at = begin(&ctx, asked.since.as_ref(), &log, on_demand).await?;
    tracing::debug!(request_id = id, resource, user = cred.user_name, %at, "watch begins");
    let (out, pieces) = mpsc::channel(QUEUE);
    let stream = Stream {
        stop: app.core.feed.stopped(),
        token: token(req).unwrap_or_default().to_owned(),
        ctx,
        handler,
        watched: Arc::new(watched),
        log,
        at,
        out,
        last: Instant::now(),
        renewed: on_demand.then(Instant::now),
    };
    tokio::spawn(stream.run(seat, batches, asked));
    let pieces = stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((Ok::<_, Infallible>(piece), pieces))
    });
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        // A compressor or a proxy would hold events back.
        .insert_header((header::CONTENT_ENCODING, "identity"))
        .insert_header(("X-Accel-Buffering", "no"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header(("X-Request-Id", id))
        .streaming(pieces))
}

/// What is watched, checked.
async fn watched(
    ctx: &Ctx,
    handler: &'static dyn ResourceHandler,
    meta: &'static Meta,
    item: Option<String>,
    params: &Params<'_>,
) -> Result<Watched> {
    let level = ctx.cred().level;
    let Some(item) = item else {
        if ctx.nested.is_some() {
            // 404 of the row above, too.
            ctx.read(Cost::Bounded, move |tx| context::members(tx, meta).map(|_| ())).await?;
        }
        return Ok(Watched { request: query::parse(ctx, meta, params)?, only: None });
    };
    if let Some((key, _)) = params.iter().find(|(key, _)| key != "field") {
        return Err(Error::field(key.clone().into_owned(), "is not a known parameter"));
    }
    let (mask, extra) = query::selection(meta, params, meta.get_mask(level))?;
    // 404 comes before the stream.
    let bare = Shown { mask: Some(0), extra: Some(Vec::new()), tags: false };
    let found = ctx.read(Cost::Bounded, move |tx| handler.get(tx, &item, &bare)).await?;
    let mut request = query::parse(ctx, meta, &[])?;
    (request.mask, request.extra) = (mask, extra);
    Ok(Watched { request, only: found.value.id })
}

/// Where the stream begins.
async fn begin(ctx: &Ctx, since: Option<&Since>, log: &str, on_demand: bool) -> Result<Position> {
    // The beginning is every log's.
    if since.is_some_and(|it| it.log != log && it.at != Position::default()) {
        // Of another database: its numbers say nothing here.
        return Err(expired());
    }
    let since = since.map(|it| it.at);
    if on_demand {
        let whole = tasks::record(ctx.core()).await?;
        if since.is_some_and(|since| since < whole) {
            return Err(expired());
        }
    }
    let done = ctx.read(Cost::Bounded, move |tx| match since {
        None => store::end(tx.conn),
        Some(since) => match store::standing(tx.conn, since)? {
            Standing::Good => Ok(since),
            Standing::Expired | Standing::Ahead => Err(expired()),
        },
    });
    Ok(done.await?.value)
}

/// Pieces that may wait for the client, each about [`FRAME`] long.
const QUEUE: usize = 4;
/// How soon it is looked again for a record that others wait for.
const WAIT: Duration = Duration::from_millis(100);
const FRAME: usize = 64 * 1024;

/// The stream has ended: its client went, or was told why.
struct Ended;

struct Stream {
    stop: watch::Receiver<bool>,
    token: String,
    ctx: Ctx,
    handler: &'static dyn ResourceHandler,
    watched: Arc<Watched>,
    /// Which log it is.
    log: Arc<str>,
    /// All changes up to here are told.
    at: Position,
    out: mpsc::Sender<web::Bytes>,
    /// When something was last sent.
    last: Instant,
    /// When it was last said that records are to be made; `None`: they always are.
    renewed: Option<Instant>,
}

impl Stream {
    async fn run(mut self, seat: Seat, mut batches: broadcast::Receiver<Arc<Batch>>, asked: Asked) {
        let Err(Ended) = self.follow(&mut batches, &asked).await;
        let (user, at) = (&self.ctx.cred().user_name, self.at);
        tracing::debug!(request_id = self.ctx.request_id(), user, %at, "watch ends");
        drop(seat);
    }

    /// A position as the client is to name it.
    fn id(&self, at: Position) -> String {
        format!("{at}-{}", self.log)
    }

    async fn follow(
        &mut self,
        batches: &mut broadcast::Receiver<Arc<Batch>>,
        asked: &Asked,
    ) -> std::result::Result<Infallible, Ended> {
        // The position was read before the rows: what changes meanwhile is told after them.
        if asked.initial {
            self.existing().await?;
        }
        let ready = format!(
            "retry: 2000\nid: {0}\nevent: ready\ndata: {{\"position\":\"{0}\"}}\n\n",
            self.id(self.at)
        );
        self.send(ready.into()).await?;
        if asked.since.is_some() {
            self.catch_up(self.at).await?;
        }
        let options = self.ctx.core().feed.options().clone();
        let mut check = interval(options.check);
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                () = asked_to_end(&mut stop) => return self.end(&leaving()).await,
                () = self.out.closed() => return Err(Ended),
                _ = check.tick() => self.check().await?,
                () = sleep_until(self.last + options.heartbeat) => {
                    // The id moves on, so that a stream that nothing concerns does not expire.
                    self.send(format!(": alive\nid: {}\n\n", self.id(self.at)).into()).await?;
                }
                batch = batches.recv() => match batch {
                    Ok(batch) if batch.from > self.at => {
                        self.catch_up(batch.to).await?;
                        self.at = self.at.max(batch.to);
                    }
                    Ok(batch) => {
                        self.tell(batch.changes.iter()).await?;
                        self.at = self.at.max(batch.to);
                    }
                    Err(RecvError::Lagged(_)) => self.catch_up(self.at).await?,
                    Err(RecvError::Closed) => return Err(Ended),
                },
            }
        }
    }

    /// The token's end is the stream's.
    async fn check(&mut self) -> std::result::Result<(), Ended> {
        if self.renewed.is_some_and(|at| at.elapsed() >= tasks::RENEW) {
            match tasks::record(self.ctx.core()).await {
                // There is a gap: this process was away for too long.
                Ok(whole) if whole > self.at => return self.end(&expired()).await.map(|_| ()),
                Ok(_) => self.renewed = Some(Instant::now()),
                Err(error) => tracing::warn!(%error, "a watch of tasks could not be renewed"),
            }
        }
        if self.ctx.core().authenticate(&self.token).is_some() {
            return Ok(());
        }
        self.end(&Error::unauthorized("the token is not valid any more")).await.map(|_| ())
    }

    async fn existing(&mut self) -> std::result::Result<(), Ended> {
        let mut after = String::new();
        loop {
            self.check().await?;
            let (handler, watched, from) = (self.handler, self.watched.clone(), after.clone());
            let read = self.ctx.read(Cost::Unbounded, move |tx| handler.existing(tx, &watched, &from)).await;
            match read {
                Ok(done) => {
                    let told = done.value;
                    let more = i64::try_from(told.len()).is_ok_and(|n| n == PIECE);
                    if let Some(last) = told.last() {
                        after.clone_from(&last.id);
                    }
                    self.send_all(told).await?;
                    if !more {
                        return Ok(());
                    }
                }
                Err(error) => self.bear(error).await?,
            }
        }
    }

    /// Reads the log itself up to its end, and at least to a position.
    async fn catch_up(&mut self, to: Position) -> std::result::Result<(), Ended> {
        loop {
            let (at, on_demand) = (self.at, self.renewed.is_some());
            let read = self.ctx.read(Cost::Bounded, move |tx| {
                let changes = store::changes(tx.conn, at)?;
                // After the records: had some been removed before they were read, it shows.
                match store::standing(tx.conn, at)? {
                    Standing::Expired => Err(expired()),
                    _ if on_demand && !tasks::is_whole(tx.conn, at)? => Err(expired()),
                    Standing::Good | Standing::Ahead => Ok(changes),
                }
            });
            match read.await {
                Ok(done) => {
                    let Read { changes, waits } = done.value;
                    self.tell(changes.iter()).await?;
                    if let Some(last) = changes.last() {
                        self.at = self.at.max(last.at);
                    }
                    if waits && self.at < to {
                        sleep(WAIT).await;
                    } else if waits || !i64::try_from(changes.len()).is_ok_and(|n| n == CHUNK) {
                        return Ok(());
                    }
                }
                Err(error) => self.bear(error).await?,
            }
        }
    }

    /// Tells those of the changes that are new and concern the caller.
    async fn tell<'c>(
        &mut self,
        changes: impl Iterator<Item = &'c Change>,
    ) -> std::result::Result<(), Ended> {
        let new = changes.filter(|change| change.at > self.at);
        let picked = self.watched.pick(self.handler.meta(), self.ctx.cred(), new);
        if picked.is_empty() {
            return Ok(());
        }
        self.check().await?;
        let picked = Arc::new(picked);
        loop {
            let (handler, watched, picked) = (self.handler, self.watched.clone(), picked.clone());
            match self.ctx.read(Cost::Bounded, move |tx| handler.changed(tx, &watched, &picked)).await {
                Ok(done) => return self.send_all(done.value).await,
                Err(error) => self.bear(error).await?,
            }
        }
    }

    /// Waits where an error will pass, and ends the stream where it will not.
    async fn bear(&mut self, error: Error) -> std::result::Result<(), Ended> {
        if error.kind() != Kind::Unavailable {
            tracing::warn!(request_id = self.ctx.request_id(), %error, "a watch failed");
            return self.end(&error).await.map(|_| ());
        }
        let mut stop = self.stop.clone();
        tokio::select! {
            () = sleep(Duration::from_secs(1)) => Ok(()),
            () = self.out.closed() => Err(Ended),
            () = asked_to_end(&mut stop) => self.end(&leaving()).await.map(|_| ()),
        }
    }

    async fn send_all(&mut self, told: Vec<Told>) -> std::result::Result<(), Ended> {
        let n = told.len();
        let mut piece = Vec::new();
        for it in told {
            if let Some(at) = it.at {
                piece.extend_from_slice(format!("id: {}\n", self.id(at)).as_bytes());
            }
            piece.extend_from_slice(format!("event: {}\ndata: ", it.event).as_bytes());
            piece.extend_from_slice(&it.data);
            piece.extend_from_slice(b"\n\n");
            if piece.len() >= FRAME {
                self.send(std::mem::take(&mut piece).into()).await?;
            }
        }
        if !piece.is_empty() {
            self.send(piece.into()).await?;
        }
        self.ctx.core().feed.sent(n);
        Ok(())
    }

    /// Sends, or ends: the client went, takes nothing, or the server ends.
    async fn send(&mut self, piece: web::Bytes) -> std::result::Result<(), Ended> {
        let stall = self.ctx.core().feed.options().stall;
        let mut stop = self.stop.clone();
        tokio::select! {
            sent = timeout(stall, self.out.send(piece)) => match sent {
                Ok(Ok(())) => {
                    self.last = Instant::now();
                    Ok(())
                }
                Ok(Err(_)) => Err(Ended),
                Err(_) => {
                    let user = &self.ctx.cred().user_name;
                    tracing::info!(request_id = self.ctx.request_id(), user, "a watcher that reads nothing is dropped");
                    Err(Ended)
                }
            },
            () = asked_to_end(&mut stop) => Err(Ended),
        }
    }

    /// Says why it ends, if the client listens.
    async fn end(&mut self, why: &Error) -> std::result::Result<Infallible, Ended> {
        let data = serde_json::json!({
            "status": why.kind().status(), "class": why.class_name(), "detail": why.message(),
            "request_id": self.ctx.request_id(),
        });
        let _ = self.out.try_send(format!("event: end\ndata: {data}\n\n").into());
        Err(Ended)
    }
}

/// Returns when the process is to end.
async fn asked_to_end(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as the process.
    let _ = stop.wait_for(|it| *it).await;
}

fn leaving() -> Error {
    Error::unavailable("the server ends; connect again with the last id", 1)
}
