//! Projects: what resources belong to.

use podyard::auth::Access;
use podyard::prelude::*;

/// A project: resources belong to one.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "project", plural = "projects", read = "user", write = "admin")]
pub struct Project {
    /// Name and description.
    pub base: StandaloneBase,
    /// The domain that it belongs to.
    #[field(list = "user", create = "optional", default = "default", references = "domain", index)]
    pub domain_id: String,
    /// Whether its users may log in.
    #[field(list = "user", create = "optional", update = "admin", default = true)]
    pub enabled: bool,
}

impl Manager for Project {
    fn list_item_filter(tx: &mut Tx<'_>, select: &mut Select<Self>) -> Result<()> {
        match tx.level() {
            Access::Admin => {}
            Access::Domain => select.narrow("domain_id", tx.cred().domain_id.clone()),
            _ => select.narrow("id", tx.cred().project_id.clone()),
        }
        Ok(())
    }
}

impl Model for Project {
    fn pre_update(&mut self, tx: &mut Tx<'_>, _: &ProjectUpdate) -> Result<()> {
        if !self.enabled && (self.id == tx.cred().project_id) {
            return Err(Error::conflict("you would lock yourself out").class("ProtectedResourceError"));
        }
        Ok(())
    }

    fn post_update(&mut self, tx: &mut Tx<'_>, before: &Self) -> Result<()> {
        if before.enabled && !self.enabled {
            crate::user::revoke_all(tx, "project_id", &self.id)?;
        }
        Ok(())
    }
}
