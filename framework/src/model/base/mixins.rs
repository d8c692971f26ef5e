//! Mixins: columns and behaviour that a resource takes beside its base, by one
//! field with `#[mixin]`. The dispatcher finds them by their type.

use chrono::{DateTime, Utc};
use podyard_macros::Columns;

use super::Stamp;

/// A row that can be switched off. Types that have it, or a field `enabled`
/// of their own, have the actions `enable` and `disable`.
#[derive(Debug, Clone, Columns)]
pub struct Enabled {
    /// Whether it is switched on.
    #[field(list = "user", create = "optional", update = "user", default = true)]
    pub enabled: bool,
}

impl Default for Enabled {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// A row whose delete is a mark at first: it can be had back by `undelete`
/// until it is deleted a second time or the mark is too old.
#[derive(Debug, Clone, Default, Columns)]
pub struct Trash {
    /// Whether it waits to be deleted.
    #[field(list = "user")]
    pub pending_deleted: bool,
    /// Since when.
    #[field(list = "user", index)]
    pub pending_deleted_at: Option<DateTime<Utc>>,
}

/// A row that others may be let see, by `public` and `private`.
#[derive(Debug, Clone, Columns)]
pub struct Sharing {
    /// Whether others than its owner see it.
    #[field(list = "user")]
    pub is_public: bool,
    /// Who does: some projects, domains, or everybody.
    #[field(list = "user", default = "none", choices("none", "project", "domain", "system"), max = 16)]
    pub public_scope: String,
}

impl Default for Sharing {
    fn default() -> Self {
        Self { is_public: false, public_scope: "none".into() }
    }
}

/// A row that stands for something in another system.
#[derive(Debug, Clone, Default, Columns)]
#[columns(stamp)]
pub struct External {
    /// What it is called there; no other row of the type has the same.
    #[field(list = "user", create = "optional", update = "admin", unique)]
    pub external_id: Option<String>,
    /// The system that it came from.
    #[field(list = "user", create = "optional", update = "admin", max = 64)]
    pub source: String,
    /// When it was taken over from there.
    #[field(list = "user")]
    pub imported_at: Option<DateTime<Utc>>,
}

impl External {
    fn stamped(&mut self, by: &Stamp<'_>) {
        // Of no id there may be many: as NULL they do not collide.
        self.external_id = self.external_id.take().filter(|id| !id.is_empty());
        if self.external_id.is_some() && self.imported_at.is_none() {
            self.imported_at = Some(by.now);
        }
    }
}
