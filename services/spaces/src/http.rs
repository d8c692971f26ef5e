//! `GET /spaces/<id>/log?follow=true`: what a space's program writes, as text
//! that goes on. It is a route of its own, since an answer of the dispatcher
//! has an end; without `follow` the request passes on to that.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, guard, web};
use bytes::Bytes;
use podyard::db::Cost;
use podyard::dispatch::IfMatch;
use podyard::http::{App, authenticate, problem, query_params, request_id};
use podyard::{Ctx, Error, Result};
use podyard_gateway::Client;
use tokio::sync::mpsc;
use tokio::time::{Interval, interval};

use crate::space::read_error;
use crate::{Space, Spaces};

/// Lines of what is there, if nothing else is asked for.
const LINES: usize = 100;
/// Most of them.
const MOST_LINES: u32 = 100_000;

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
        Ok(lines) => HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            // A proxy must not hold it back until there is more.
            .insert_header(("X-Accel-Buffering", "no"))
            .insert_header(("X-Request-Id", id))
            .body(Lines { lines, client: Client::of(&req), look: interval(LOOK) }),
        Err(error) => problem(&error, &req, &id),
    }
}

async fn begin(req: &HttpRequest, app: &App, id: &str) -> Result<mpsc::Receiver<Bytes>> {
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
    spaces.driver(&space.driver)?.follow_log(&space.id, tail).await.map_err(read_error)
}

/// The space of that id or name, as the dispatcher finds it for this caller.
async fn found(ctx: &Ctx, wanted: String) -> Result<Space> {
    let of = ctx.core().registry.get("spaces").ok_or_else(|| Error::internal("no type space"))?.handler;
    let done = ctx.read(Cost::Bounded, move |tx| of.load(tx, &wanted, &IfMatch::Any, false));
    let row = done.await?.value.downcast::<Space>();
    row.map(|it| *it).map_err(|_| Error::internal("another type's row"))
}

/// How often it is looked whether the client of a log in which nothing comes is
/// still there: only a write would tell.
const LOOK: Duration = Duration::from_secs(5);

/// The body: the driver is read when the client takes more, and let go when
/// the client goes.
struct Lines {
    lines: mpsc::Receiver<Bytes>,
    client: Option<Client>,
    look: Interval,
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
        if let Poll::Ready(piece) = self.lines.poll_recv(cx) {
            return Poll::Ready(piece.map(Ok));
        }
        while self.look.poll_tick(cx).is_ready() {
            if self.client.as_ref().is_some_and(Client::has_gone) {
                return Poll::Ready(None);
            }
        }
        Poll::Pending
    }
}
