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
        Stage::wait(Self::ON_INIT)
    }
    async fn on_init_failed(_: &mut TaskCtx<Gadget>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

fn main() {}
