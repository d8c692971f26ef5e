//! An export as a body that is read from the database as the client takes it.

use std::sync::Arc;

use actix_web::body::{BodyStream, BoxBody, MessageBody as _};
use actix_web::web::Bytes;

use crate::Result;
use crate::ctx::Ctx;
use crate::db::{Cost, Done};
use crate::dispatch::{Chunk, Place, ResourceHandler};
use crate::query::{Format, ListRequest};

/// An answer that is more than a body of JSON.
pub(super) struct Export {
    pub(super) content_type: &'static str,
    pub(super) file: String,
    pub(super) body: BoxBody,
}

/// Where a stream of pieces stands.
struct Going {
    handler: &'static dyn ResourceHandler,
    ctx: Ctx,
    request: Arc<ListRequest>,
    place: Place,
}

impl Going {
    async fn chunk(&self) -> Result<Done<Chunk>> {
        let (handler, request, place) = (self.handler, self.request.clone(), self.place.clone());
        self.ctx.read(Cost::Unbounded, move |tx| handler.export(tx, &request, &place)).await
    }
}

/// Reads the first piece, whose errors still are answers, and makes the body
/// that reads the others. It asks for the next piece when the client has taken
/// the last, and ends with the client; when a piece fails, the connection is
/// broken off, so that nobody takes a part for the whole.
pub(super) async fn start(
    handler: &'static dyn ResourceHandler,
    ctx: Ctx,
    request: ListRequest,
    format: Format,
) -> Result<Done<Export>> {
    let place = Place::start(&request);
    let mut going = Going { handler, ctx, request: Arc::new(request), place };
    let first = going.chunk().await?;
    let (body, next) = (first.value.body, first.value.next);
    let (content_type, ending) = match format {
        Format::Csv => ("text/csv; charset=utf-8; header=present", "csv"),
        Format::Ndjson => ("application/x-ndjson", "ndjson"),
    };
    let rest = next.map(|place| {
        going.place = place;
        going
    });
    let stream = futures_util::stream::try_unfold((Some(body), rest), |(ready, going)| async move {
        if let Some(body) = ready {
            return Ok(Some((Bytes::from(body), (None, going))));
        }
        let Some(mut going) = going else { return Ok(None) };
        let chunk = match going.chunk().await {
            Ok(done) => done.value,
            Err(error) => {
                tracing::warn!(request_id = going.ctx.request_id(), %error, "an export was broken off");
                return Err(error);
            }
        };
        let rest = chunk.next.map(|place| {
            going.place = place;
            going
        });
        Ok(Some((Bytes::from(chunk.body), (None, rest))))
    });
    let file = format!("{}.{ending}", handler.meta().plural());
    let value = Export { content_type, file, body: BodyStream::new(stream).boxed() };
    Ok(Done { value, statements: first.statements, time: first.time })
}
