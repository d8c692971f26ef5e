//! Mixins and joint types in the wrong shape.

use podyard::prelude::*;

/// A mixin that says what its own fields say.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "a", plural = "as")]
pub struct Ranked {
    pub base: StandaloneBase,
    #[mixin]
    #[field(list = "user")]
    pub trash: Trash,
}

/// A mixin with words of its own.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "b", plural = "bs")]
pub struct Worded {
    pub base: StandaloneBase,
    #[mixin(list = "user")]
    pub trash: Trash,
}

/// One mixin under two names.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "c", plural = "cs")]
pub struct Twice {
    pub base: StandaloneBase,
    #[mixin]
    pub trash: Trash,
    #[mixin]
    pub bin: Trash,
}

/// Goes with nothing.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "d", plural = "ds")]
pub struct Lonely {
    pub base: StandaloneBase,
    /// Refers to nothing.
    #[field(list = "user", cascade)]
    pub other: String,
}

/// Joins a field that is none of its own.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "e", plural = "es", joint("group_id", "user_id"))]
pub struct HalfJoint {
    pub base: AnonBase,
    /// One side.
    #[field(list = "user", create = "required", references = "group", index)]
    pub group_id: String,
}

/// Joins a field that a create may leave out.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "f", plural = "fs", joint("group_id", "user_id"))]
pub struct OptionalJoint {
    pub base: AnonBase,
    /// One side.
    #[field(list = "user", create = "optional", references = "group", index)]
    pub group_id: String,
    /// The other.
    #[field(list = "user", create = "required", references = "user", index)]
    pub user_id: String,
}

/// Joins with a name.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "g", plural = "gs", joint("group_id", "user_id"))]
pub struct NamedJoint {
    pub base: StandaloneBase,
}

/// Joins three.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "h", plural = "hs", joint("a_id", "b_id", "c_id"))]
pub struct TripleJoint {
    pub base: AnonBase,
}

/// Seen by the wrong word.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "i", plural = "is", scope = "galaxy")]
pub struct Scoped {
    pub base: AnonBase,
}

fn main() {}
