//! Kinds: how templates are grouped for people.

use podyard::prelude::*;

/// A group of templates.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "kind", plural = "kinds", read = "user", write = "admin", cached)]
pub struct Kind {
    /// Name and description.
    pub base: StandaloneBase,
}

impl Manager for Kind {}

impl Model for Kind {}
