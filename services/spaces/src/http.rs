//! `GET /spaces/<id>/log?follow=true`: what a space's program writes, as text
//! that goes on. It is a route of its own, since an answer of the dispatcher
//! has an end; without `follow` the request passes on to that.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, guard, web};
use bytes::Bytes;
use podyard::db::Cost;
use podyard::dispatch::IfMatch;
use podyard::http::{App, authenticate, problem, query_params, request_id, token};
use podyard::{Core, Ctx, Error, Kind, Result};
use podyard_gateway::Client;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::seats::{Full, Seat, Seats};
use crate::space::read_error;
use crate::{Space, Spaces};

/// Lines of what is there, if nothing else is asked for.
const LINES: usize = 100;
/// Most of them.
const MOST_LINES: u32 = 100_000;
/// Most that follow the log of one space, ...
const MOST_IN_SPACE: usize = 8;
/// ... and those of all spaces of this server.
const MOST: usize = 256;

/// Adds the routes; before those of the dispatcher.
pub fn configure(cfg: &mut web::ServiceConfig) {
    let follows = guard::fn_guard(|ctx| {
        ctx.head().method == actix_web::http::Method::GET
            && ctx.head().uri.query().unwrap_or_default().split('&').any(|it| it == "follow=true")
    });
    cfg.service(web::resource("/spaces/{id}/log").guard(follows).to(follow));
}

async fn follow(req: HttpRequest, app: web::Data<App>) -> HttpResponse {
    let id = request_id(&req);
    match begin(&req, &app, &id).await {
        Ok(followed) => HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            // A proxy must not hold it back until there is more.
            .insert_header(("X-Accel-Buffering", "no"))
            .insert_header(("X-Request-Id", id))
            .body(Lines::of(followed, Client::of(&req))),
        Err(error) => problem(&error, &req, &id),
    }
}

/// A log that is followed, and by whom.
struct Followed {
    lines: mpsc::Receiver<Bytes>,
    seat: Seat,
    core: Arc<Core>,
    token: String,
    request_id: String,
    space: String,
}

async fn begin(req: &HttpRequest, app: &App, id: &str) -> Result<Followed> {
    let cred = authenticate(&app.core, req)?;
    let mut tail = LINES;
    for (key, value) in query_params(req.uri().query().unwrap_or_default())? {
        match key.as_ref() {
            "follow" => {}
            "tail" => {
                let wrong =
                    || Error::field("tail", format!("must be a number of lines from 0 to {MOST_LINES}"));
                let lines = value.parse::<u32>().ok().filter(|it| *it <= MOST_LINES);
                tail = lines.ok_or_else(wrong)? as usize;
            }
            "bytes" => {
                return Err(Error::field("bytes", "cannot be asked for together with follow: use tail"));
            }
            _ => return Err(Error::field(key.into_owned(), "is not a known parameter")),
        }
    }
    let ctx = Ctx::new(app.core.clone(), cred, id);
    let wanted = req.match_info().get("id").unwrap_or_default().to_owned();
    let space = found(&ctx, wanted).await?;
    let spaces = ctx.service::<Spaces>()?;
    let seat = sit(&spaces.followers, &space.id)?;
    let lines = spaces.driver(&space.driver)?.follow_log(&space.id, tail).await.map_err(read_error)?;
    let token = token(req).unwrap_or_default().to_owned();
    let (core, request_id, space) = (app.core.clone(), id.to_owned(), space.id.clone());
    Ok(Followed { lines, seat, core, token, request_id, space })
}

/// The space of that id or name, as the dispatcher finds it for this caller.
async fn found(ctx: &Ctx, wanted: String) -> Result<Space> {
    let of = ctx.core().registry.get("spaces").ok_or_else(|| Error::internal("no type space"))?.handler;
    let done = ctx.read(Cost::Bounded, move |tx| of.load(tx, &wanted, &IfMatch::Any, false));
    let row = done.await?.value.downcast::<Space>();
    row.map(|it| *it).map_err(|_| Error::internal("another type's row"))
}

/// A place for one more who follows the log of a space.
fn sit(seats: &Arc<Seats>, space: &str) -> Result<Seat> {
    seats.take(space, MOST, MOST_IN_SPACE).map_err(|full| match full {
        Full::Stopping => Error::unavailable("the server is shutting down", 1),
        Full::Server(all) => {
            let text = format!("{all} logs are followed, as many as the server has room for");
            Error::unavailable(text, 10).class("TooManyFollowersError")
        }
        Full::Space(mine) => {
            let text =
                format!("the space's log is followed {mine} times, and no more is possible; end one first");
            Error::conflict(text).class("TooManyFollowersError")
        }
    })
}

/// How often it is looked whether the client of a log is still there, since in
/// one in which nothing comes only a write would tell, and whether it still may.
const LOOK: Duration = Duration::from_secs(5);

/// The body: the driver is read when the client takes more, and let go when
/// the client goes.
struct Lines {
    lines: mpsc::Receiver<Bytes>,
    /// Comes to its end when the client has to go, or has gone; none afterwards.
    over: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Lines {
    fn of(followed: Followed, client: Option<Client>) -> Self {
        let Followed { lines, seat, core, token, request_id, space } = followed;
        let over = async move {
            let look = async {
                let mut look = interval(LOOK);
                look.set_missed_tick_behavior(MissedTickBehavior::Delay);
                look.tick().await;
                loop {
                    look.tick().await;
                    let gone = client.as_ref().is_some_and(Client::has_gone);
                    if gone || !may_go_on(&core, &token, &request_id, &space).await {
                        return;
                    }
                }
            };
            tokio::select! {
                () = look => {}
                // Else it would hold up the server's end.
                () = seat.stopping() => {}
            }
            drop(seat);
        };
        Self { lines, over: Some(Box::pin(over)) }
    }
}

/// Whether the token still holds, and its owner still sees the space.
async fn may_go_on(core: &Arc<Core>, token: &str, request_id: &str, space: &str) -> bool {
    let Some(cred) = core.authenticate(token) else { return false };
    let seen = found(&Ctx::new(core.clone(), cred, request_id), space.to_owned()).await;
    // A database that does not answer is no reason to throw somebody out.
    !seen.is_err_and(|it| matches!(it.kind(), Kind::NotFound | Kind::Forbidden | Kind::Unauthorized))
}

impl MessageBody for Lines {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Bytes, Self::Error>>> {
        // First: a log in which much comes must end as well.
        let Some(over) = &mut self.over else { return Poll::Ready(None) };
        if over.as_mut().poll(cx).is_ready() {
            self.over = None;
            return Poll::Ready(None);
        }
        self.lines.poll_recv(cx).map(|piece| piece.map(Ok))
    }
}
