//! Words that are no ranks and no properties.
use podyard::prelude::*;

/// A thing.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "thing", plural = "things")]
struct Rank {
    base: StandaloneBase,
    /// How many.
    #[field(list = "everybody")]
    count: i64,
}

/// A thing.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "thing", plural = "things")]
struct Property {
    base: StandaloneBase,
    /// How many.
    #[field(lst = "user")]
    count: i64,
}

/// A thing.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "thing", plurals = "things")]
struct Plural {
    base: StandaloneBase,
}

/// A thing.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "Thing", plural = "things")]
struct Keyword {
    base: StandaloneBase,
}

fn main() {}
