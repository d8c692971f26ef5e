//! From a space's row to what a driver is told to run.

use std::time::Duration;

use podyard::db::Cost;
use podyard::{Ctx, Error, Result};
use podyard_driver::{Container, Launch, Repository};

use crate::{KUBERNETES, Space, Spaces, Spec, Template};

/// What to run for a space, by its template and size as they are now, and how
/// long it may take until it is ready.
pub(crate) async fn launch(ctx: &Ctx, space: &Space) -> Result<(Launch, Duration)> {
    let (template_id, spec_id) = (space.template_id.clone(), space.spec_id.clone());
    let found = ctx.read(Cost::Bounded, move |tx| {
        let template = tx.cached::<Template>()?.get(&template_id).cloned();
        let spec = tx.cached::<Spec>()?.get(&spec_id).cloned();
        Ok((template, spec))
    });
    let (Some(template), Some(spec)) = found.await?.value else {
        return Err(Error::conflict("its template or size is gone").class("TemplateNotFoundError"));
    };
    let own = template.start_limit.and_then(|it| u64::try_from(it).ok()).map(Duration::from_secs);
    let limit = own.unwrap_or(ctx.service::<Spaces>()?.options.start_timeout);
    let container = if space.driver == KUBERNETES { Some(container(space, &template, limit)?) } else { None };
    let pair = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let launch = Launch {
        id: space.id.clone(),
        sid: space.sid.clone(),
        base_path: format!("/ws/{}/", space.sid),
        command: template.command.clone(),
        env: template.env.iter().filter_map(pair).collect(),
        cpu: spec.cpu.clone(),
        memory: spec.memory.clone(),
        storage: spec.storage.clone(),
        user: space.user_id.clone(),
        name: space.name.clone(),
        container,
    };
    Ok((launch, limit))
}

/// The template's container with what the space says of it.
fn container(space: &Space, template: &Template, limit: Duration) -> Result<Container> {
    let missing = || Error::conflict("its template names no image").class("TemplateUnavailableError");
    let mut it = template.container()?.ok_or_else(missing)?;
    if !space.repository.is_empty() {
        it.repository = Some(Repository { url: space.repository.clone(), branch: space.branch.clone() });
    } else if let Some(repository) = it.repository.as_mut().filter(|_| !space.branch.is_empty()) {
        repository.branch.clone_from(&space.branch);
    }
    it.start_limit = u32::try_from(limit.as_secs()).unwrap_or(u32::MAX);
    Ok(it)
}

/// A driver's error as one of ours: what the launch or the machine lacks is
/// told to the person, what passes is tried again.
pub(crate) fn driver_error(error: podyard_driver::Error) -> Error {
    use podyard_driver::Error as Driver;
    match &error {
        Driver::Invalid(_) | Driver::Unavailable(_) | Driver::Running => {
            Error::conflict(error.to_string()).class("SpaceStartError")
        }
        Driver::Stuck(_) | Driver::Io { .. } => Error::unavailable(error.to_string(), 1).caused_by(error),
    }
}
