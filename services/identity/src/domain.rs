//! Domains: the outermost owners. To begin with there is one.

use podyard::prelude::*;

/// The domain that is there from the first start.
pub(crate) const DEFAULT_DOMAIN: &str = "default";

/// An organisation: users and projects belong to one.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "domain", plural = "domains", read = "user", write = "admin")]
pub struct Domain {
    /// Name and description.
    pub base: StandaloneBase,
    /// Whether its users may log in.
    #[field(list = "user", create = "optional", update = "admin", default = true)]
    pub enabled: bool,
}

impl Manager for Domain {
    fn list_item_filter(tx: &mut Tx<'_>, select: &mut Select<Self>) -> Result<()> {
        if tx.level() != podyard::auth::Access::Admin {
            select.narrow("id", tx.cred().domain_id.clone());
        }
        Ok(())
    }
}

impl Model for Domain {
    fn pre_update(&mut self, tx: &mut Tx<'_>, _: &DomainUpdate) -> Result<()> {
        if !self.enabled && (self.id == tx.cred().domain_id || self.id == DEFAULT_DOMAIN) {
            return Err(Error::conflict("you would lock yourself out").class("ProtectedResourceError"));
        }
        Ok(())
    }

    fn post_update(&mut self, tx: &mut Tx<'_>, before: &Self) -> Result<()> {
        if before.enabled && !self.enabled {
            crate::user::revoke_all(tx, "domain_id", &self.id)?;
        }
        Ok(())
    }
}
