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
    fn on_init(_: &mut TaskCtx<Gadget>) -> Stage {
        Stage::complete()
    }
    async fn on_init_failed(_: &mut TaskCtx<Gadget>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// More work.
pub struct More;

#[stages(object = Gadget)]
impl More {
    async fn on_init(_: &mut TaskCtx<Gadget>) -> Stage {
        Stage::complete()
    }
    async fn on_init_failed(_: &mut TaskCtx<Gadget>) -> Stage {
        Stage::complete()
    }
}

/// Still more.
pub struct StillMore;

#[stages(object = Gadget)]
impl StillMore {
    async fn on_init(_: &mut TaskCtx<Gadget>, data: String) -> Stage {
        Stage::complete()
    }
    async fn on_init_failed(_: &mut TaskCtx<Gadget>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// The answer.
pub struct Answer;

#[stages(object = Gadget)]
impl Answer {
    async fn on_init(_: &mut TaskCtx<Gadget>) -> bool {
        true
    }
    async fn on_init_failed(_: &mut TaskCtx<Gadget>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}

/// Nothing to work on.
pub struct Nowhere;

#[stages]
impl Nowhere {}

fn main() {}
