//! What a cluster tells of a space, among the records of `GET /spaces/<id>/events`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use podyard::db::Cost;
use podyard::event::Besides;
use podyard::model::Record;
use podyard::task::BoxFuture;
use podyard::{Ctx, Result};
use podyard_driver::Happening;
use serde_json::{Value, json};

use crate::{Space, Spaces};

/// How long the records wait for what the cluster tells.
const PATIENCE: Duration = Duration::from_secs(5);

podyard::inventory::submit! {
    Besides { keyword: "space", read }
}

fn read(ctx: Ctx, id: String) -> BoxFuture<'static, Result<Vec<Value>>> {
    Box::pin(async move {
        let spaces = ctx.service::<Spaces>()?;
        let key = id.clone();
        let found = ctx.read(Cost::Bounded, move |tx| Space::select().eq("id", key.clone()).one(tx));
        let Some(space) = found.await?.value else { return Ok(Vec::new()) };
        match spaces.driver(&space.driver) {
            Ok(driver) => match tokio::time::timeout(PATIENCE, driver.events(&id)).await {
                Ok(Ok(all)) => Ok(all.iter().map(|it| shown(&space, it)).collect()),
                // The records are there all the same.
                Ok(Err(error)) => {
                    tracing::warn!(space = id, %error, "the cluster's events cannot be read");
                    Ok(Vec::new())
                }
                Err(_) => {
                    tracing::warn!(space = id, "the cluster's events do not come");
                    Ok(Vec::new())
                }
            },
            Err(_) => Ok(Vec::new()),
        }
    })
}

/// As a record: what was done is the cluster's word for it, and who did it is
/// a part of the cluster.
fn shown(space: &Space, it: &Happening) -> Value {
    let at = DateTime::<Utc>::from_timestamp_micros(it.at).unwrap_or_default();
    json!({
        "created_at": at,
        "obj_type": "space",
        "obj_id": space.id,
        "obj_name": space.name,
        "action": it.reason,
        "user_name": it.source,
        "reason": it.reason,
        "message": it.message,
        "warning": it.warning,
        "count": it.count,
        "source": it.source,
        "about": it.about,
    })
}
