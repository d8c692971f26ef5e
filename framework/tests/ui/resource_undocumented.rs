//! What has no comment has no documentation in the API.
use podyard::prelude::*;

#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "thing", plural = "things")]
struct Thing {
    base: StandaloneBase,
}

/// A thing.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "thing", plural = "things")]
struct Other {
    base: StandaloneBase,
    #[field(list = "user")]
    count: i64,
}

/// Without a base.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "thing", plural = "things")]
struct Baseless {
    /// How many.
    #[field(list = "user")]
    count: i64,
}

fn main() {}
