//! The bases: columns and behaviour that many types share. Each stands on the
//! one before it, and a resource reaches their fields as its own.

use chrono::{DateTime, Utc};
use podyard_macros::Columns;

use crate::auth::UserCred;

/// What the framework gives each new row.
#[derive(Debug)]
pub struct Stamp<'a> {
    /// The row's id.
    pub id: String,
    /// The moment of the request.
    pub now: DateTime<Utc>,
    /// Who creates it.
    pub cred: &'a UserCred,
}

/// A row with an id, a version and times, but no name.
#[derive(Debug, Clone, Default, Columns)]
#[columns(stamp)]
pub struct AnonBase {
    /// The id; unique over all rows, never used again.
    #[field(list = "user", unique, index, max = 64)]
    pub id: String,
    /// Raised by each change; the `ETag` is made from it.
    #[field(list = "user")]
    pub version: i64,
    /// When it was created.
    #[field(list = "user", index)]
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    #[field(list = "user")]
    pub updated_at: DateTime<Utc>,
}

impl AnonBase {
    fn stamped(&mut self, by: &Stamp<'_>) {
        if self.id.is_empty() {
            self.id.clone_from(&by.id);
        }
        self.version = 1;
        self.created_at = by.now;
        self.updated_at = by.now;
    }
}

/// A row with a name.
#[derive(Debug, Clone, Default, Columns)]
pub struct StandaloneBase {
    /// The base below.
    pub base: AnonBase,
    /// The name; an id or a name finds the resource.
    #[field(list = "user", create = "required", update = "user", search, index, max = 128)]
    pub name: String,
    /// For people.
    #[field(list = "user", create = "optional", update = "user", search, multiline, max = 1024)]
    pub description: String,
}

/// A row with a status.
#[derive(Debug, Clone, Default, Columns)]
pub struct StatusBase {
    /// The base below.
    pub base: StandaloneBase,
    /// Where it stands in its life.
    #[field(list = "user", default = "ready", index, max = 32)]
    pub status: String,
    /// Why it stands there, if that needs saying.
    #[field(list = "user", multiline, max = 8192)]
    pub status_reason: String,
}

/// A row that belongs to a project and a user, and is marked when deleted.
#[derive(Debug, Clone, Default, Columns)]
#[columns(stamp)]
pub struct VirtualBase {
    /// The base below.
    pub base: StatusBase,
    /// The domain of its project.
    #[field(list = "user", references = "domain", index)]
    pub domain_id: String,
    /// The project that it belongs to.
    #[field(list = "user", references = "project", index)]
    pub project_id: String,
    /// The user that it belongs to.
    #[field(list = "user", references = "user", index)]
    pub user_id: String,
    /// Whether it is deleted. A deleted row is kept for the audit only.
    #[field()]
    pub deleted: bool,
    /// When it was deleted.
    #[field()]
    pub deleted_at: Option<DateTime<Utc>>,
}

impl VirtualBase {
    fn stamped(&mut self, by: &Stamp<'_>) {
        self.domain_id.clone_from(&by.cred.domain_id);
        self.project_id.clone_from(&by.cred.project_id);
        self.user_id.clone_from(&by.cred.user_id);
    }
}

/// What the dispatcher needs of a row whatever its base.
pub trait Base: Send + Sync {
    /// Id, version and times.
    fn anon(&self) -> &AnonBase;
    /// Id, version and times, to be changed.
    fn anon_mut(&mut self) -> &mut AnonBase;
    /// Name and description.
    fn standalone(&self) -> Option<&StandaloneBase> {
        None
    }
    /// The status.
    fn status(&self) -> Option<&StatusBase> {
        None
    }
    /// The status, to be changed.
    fn status_mut(&mut self) -> Option<&mut StatusBase> {
        None
    }
    /// Owner and deletion.
    fn owned(&self) -> Option<&VirtualBase> {
        None
    }
    /// Owner and deletion, to be changed.
    fn owned_mut(&mut self) -> Option<&mut VirtualBase> {
        None
    }
}

impl Base for AnonBase {
    fn anon(&self) -> &AnonBase {
        self
    }
    fn anon_mut(&mut self) -> &mut AnonBase {
        self
    }
}

impl Base for StandaloneBase {
    fn anon(&self) -> &AnonBase {
        &self.base
    }
    fn anon_mut(&mut self) -> &mut AnonBase {
        &mut self.base
    }
    fn standalone(&self) -> Option<&StandaloneBase> {
        Some(self)
    }
}

impl Base for StatusBase {
    fn anon(&self) -> &AnonBase {
        self.base.anon()
    }
    fn anon_mut(&mut self) -> &mut AnonBase {
        self.base.anon_mut()
    }
    fn standalone(&self) -> Option<&StandaloneBase> {
        Some(&self.base)
    }
    fn status(&self) -> Option<&StatusBase> {
        Some(self)
    }
    fn status_mut(&mut self) -> Option<&mut StatusBase> {
        Some(self)
    }
}

impl Base for VirtualBase {
    fn anon(&self) -> &AnonBase {
        self.base.anon()
    }
    fn anon_mut(&mut self) -> &mut AnonBase {
        self.base.anon_mut()
    }
    fn standalone(&self) -> Option<&StandaloneBase> {
        self.base.standalone()
    }
    fn status(&self) -> Option<&StatusBase> {
        Some(&self.base)
    }
    fn status_mut(&mut self) -> Option<&mut StatusBase> {
        Some(&mut self.base)
    }
    fn owned(&self) -> Option<&VirtualBase> {
        Some(self)
    }
    fn owned_mut(&mut self) -> Option<&mut VirtualBase> {
        Some(self)
    }
}
