//! A field that does not say who may see it.
use podyard::prelude::*;

/// A thing.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "thing", plural = "things")]
struct Thing {
    base: StandaloneBase,
    /// How many.
    count: i64,
}

fn main() {}
