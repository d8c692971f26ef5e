//! Specs: the sizes of spaces.

use podyard::prelude::*;

use crate::Quantity;

/// A size that a space may have.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "spec", plural = "specs", read = "user", write = "admin", cached)]
pub struct Spec {
    /// Name and description.
    pub base: StandaloneBase,
    /// Processor cores, as a Kubernetes quantity: `2`, `500m`.
    #[field(list = "user", create = "required", update = "admin", max = 32)]
    pub cpu: String,
    /// Memory: `4Gi`.
    #[field(list = "user", create = "required", update = "admin", max = 32)]
    pub memory: String,
    /// Room for files: `8Gi`.
    #[field(list = "user", create = "required", update = "admin", max = 32)]
    pub storage: String,
    /// Whether new spaces may have it.
    #[field(list = "user", create = "optional", update = "admin", default = true)]
    pub enabled: bool,
}

impl Spec {
    fn check(&self) -> Result<()> {
        for (field, text) in [("cpu", &self.cpu), ("memory", &self.memory), ("storage", &self.storage)] {
            text.parse::<Quantity>().map_err(|message| Error::field(field, message))?;
        }
        Ok(())
    }
}

impl Manager for Spec {}

impl Model for Spec {
    fn customize_create(&mut self, _: &mut Tx<'_>, _: &SpecCreate) -> Result<()> {
        self.check()
    }

    fn pre_update(&mut self, _: &mut Tx<'_>, _: &SpecUpdate) -> Result<()> {
        self.check()
    }
}
