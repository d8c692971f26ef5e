//! From a space's row to what a driver is told to run.

use podyard::db::Cost;
use podyard::{Ctx, Error, Result};
use podyard_driver::Launch;

use crate::{Space, Spec, Template};

/// What to run for a space, by its template and size as they are now.
pub(crate) async fn launch(ctx: &Ctx, space: &Space) -> Result<Launch> {
    let (template_id, spec_id) = (space.template_id.clone(), space.spec_id.clone());
    let found = ctx.read(Cost::Bounded, move |tx| {
        let template = tx.cached::<Template>()?.get(&template_id).cloned();
        let spec = tx.cached::<Spec>()?.get(&spec_id).cloned();
        Ok((template, spec))
    });
    let (Some(template), Some(spec)) = found.await?.value else {
        return Err(Error::conflict("its template or size is gone").class("TemplateNotFoundError"));
    };
    let pair = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    Ok(Launch {
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
        container: None,
    })
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
