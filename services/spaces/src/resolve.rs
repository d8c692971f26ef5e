//! Where `/ws/<sid>/` leads, for whoever asks.

use std::sync::Arc;

use podyard::auth::UserCred;
use podyard::db::Cost;
use podyard::model::Record;
use podyard::{Core, Ctx, Result};
use podyard_driver::Endpoint;

use crate::space::{RUNNING, STARTING, STOPPING};
use crate::{Space, Spaces, Template};

/// What a sid means for a caller.
#[derive(Debug)]
pub enum Place {
    /// Its program answers.
    Open {
        /// Where.
        endpoint: Endpoint,
        /// Whether the program wants the whole path.
        keep_prefix: bool,
    },
    /// It is on its way.
    Starting {
        /// The space's name.
        name: String,
        /// What it is doing.
        status: String,
    },
    /// Nothing runs.
    Stopped {
        /// The space's name.
        name: String,
        /// Why, if that needs saying.
        reason: Option<String>,
        /// What its program returned.
        exit_code: Option<i32>,
        /// The last lines that it wrote.
        last_lines: Vec<String>,
    },
    /// There is none, or it is somebody else's.
    NotFound,
}

/// Finds a space by its place in the URL, for a caller.
///
/// # Errors
/// What the database says.
pub async fn resolve(core: &Arc<Core>, spaces: &Spaces, cred: Arc<UserCred>, sid: &str) -> Result<Place> {
    let ctx = Ctx::new(core.clone(), cred, "");
    let sid = sid.to_owned();
    let done = ctx.read(Cost::Bounded, move |tx| {
        let Some(space) = Space::select().eq("sid", sid.clone()).one(tx)? else { return Ok(None) };
        let template = tx.cached::<Template>()?.get(&space.template_id).cloned();
        Ok(Some((space, template.is_some_and(|it| it.keep_prefix))))
    });
    let Some((space, keep_prefix)) = done.await?.value else { return Ok(Place::NotFound) };
    let name = space.name.clone();
    Ok(match space.status.as_str() {
        RUNNING => match spaces.driver(&space.driver)?.endpoint(&space.id).await {
            Some(endpoint) => Place::Open { endpoint, keep_prefix },
            // It has just died, or this process has not found it again yet.
            None => Place::Starting { name, status: "looking for its program".into() },
        },
        // What it waits for, if its driver knows.
        STARTING if !space.status_reason.is_empty() => {
            Place::Starting { name, status: space.status_reason.clone() }
        }
        STARTING | STOPPING => Place::Starting { name, status: space.status.clone() },
        _ => {
            // A failed start's reason ends with the lines, which stand apart here.
            let reason = space.status_reason.lines().next().unwrap_or_default().to_owned();
            Place::Stopped {
                name,
                reason: Some(reason).filter(|it| !it.is_empty()),
                exit_code: space.exit_code,
                last_lines: space.last_lines.clone(),
            }
        }
    })
}
