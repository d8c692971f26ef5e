use podyard::prelude::*;

/// A thing.
#[derive(Debug, Clone, Resource)]
#[resource(keyword = "gadget", plural = "gadgets")]
pub struct Gadget {
    /// The base.
    pub base: StatusBase,
}

impl Manager for Gadget {}
impl Model for Gadget {}

/// Work on it.
pub struct Work;

#[stages(object = Gadget)]
impl Work {
    async fn on_init(_: &mut TaskCtx<Gadget>) -> Stage {
        Stage::complete()
    }
}

fn main() {}
