//! The bases: columns and behaviour that many types share. Each stands on the
//! one before it, and a resource reaches their fields as its own.

mod mixins;

use chrono::{DateTime, Utc};
use podyard_macros::Columns;

use super::Scope;
use crate::auth::{Access, UserCred};

pub use mixins::{Enabled, External, Sharing, Trash};

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

/// A row that belongs to a domain.
#[derive(Debug, Clone, Default, Columns)]
#[columns(stamp)]
pub struct DomainBase {
    /// The base below.
    pub base: StatusBase,
    /// The domain that it belongs to.
    #[field(list = "user", create = "domain", references = "domain", index)]
    pub domain_id: String,
}

impl DomainBase {
    fn stamped(&mut self, by: &Stamp<'_>) {
        or_else(&mut self.domain_id, &by.cred.domain_id);
    }
}

/// A row that belongs to a user, whatever the project.
#[derive(Debug, Clone, Default, Columns)]
#[columns(stamp)]
pub struct UserBase {
    /// The base below.
    pub base: StatusBase,
    /// The domain of its user.
    #[field(list = "user", create = "domain", references = "domain", index)]
    pub domain_id: String,
    /// The user that it belongs to.
    #[field(list = "user", create = "domain", references = "user", index)]
    pub user_id: String,
}

impl UserBase {
    fn stamped(&mut self, by: &Stamp<'_>) {
        or_else(&mut self.domain_id, &by.cred.domain_id);
        or_else(&mut self.user_id, &by.cred.user_id);
    }
}

/// Keeps what an administrator has given.
fn or_else(it: &mut String, other: &str) {
    if it.is_empty() {
        other.clone_into(it);
    }
}

/// A row that belongs to a project and a user, and is marked when deleted.
#[derive(Debug, Clone, Default, Columns)]
#[columns(stamp)]
pub struct VirtualBase {
    /// The base below.
    pub base: StatusBase,
    /// The domain of its project.
    #[field(list = "user", create = "domain", references = "domain", index)]
    pub domain_id: String,
    /// The project that it belongs to.
    #[field(list = "user", create = "domain", references = "project", index)]
    pub project_id: String,
    /// The user that it belongs to.
    #[field(list = "user", create = "domain", references = "user", index)]
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
        or_else(&mut self.domain_id, &by.cred.domain_id);
        or_else(&mut self.project_id, &by.cred.project_id);
        or_else(&mut self.user_id, &by.cred.user_id);
    }
}

/// What a type on a base is unless it says otherwise.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no base of resources",
    note = "there are AnonBase, StandaloneBase, StatusBase, DomainBase, UserBase and VirtualBase"
)]
pub trait Defaults: Base {
    /// Whose rows a user sees.
    const SCOPE: Scope = Scope::All;
    /// Who may list and get.
    const READ: Access = Access::Admin;
    /// Who may create, change and delete.
    const WRITE: Access = Access::Admin;
    /// The columns that say whose a row is.
    const OWNER: &'static [&'static str] = &[];
}

impl Defaults for AnonBase {}
impl Defaults for StandaloneBase {}
impl Defaults for StatusBase {}

impl Defaults for DomainBase {
    const SCOPE: Scope = Scope::Domain;
    const READ: Access = Access::User;
    const WRITE: Access = Access::Domain;
    const OWNER: &'static [&'static str] = &["domain_id"];
}

impl Defaults for UserBase {
    const SCOPE: Scope = Scope::User;
    const READ: Access = Access::User;
    const WRITE: Access = Access::User;
    const OWNER: &'static [&'static str] = &["domain_id", "user_id"];
}

impl Defaults for VirtualBase {
    const SCOPE: Scope = Scope::User;
    const READ: Access = Access::User;
    const WRITE: Access = Access::User;
    const OWNER: &'static [&'static str] = &["domain_id", "project_id", "user_id"];
}

/// Whose a row is; empty where its base has no such owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The domain.
    pub domain_id: &'a str,
    /// The project.
    pub project_id: &'a str,
    /// The user.
    pub user_id: &'a str,
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
    /// Whose it is.
    fn owner(&self) -> Option<Owner<'_>> {
        None
    }
    /// Makes it somebody else's.
    fn set_owner(&mut self, _: Owner<'_>) {}
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

impl Base for DomainBase {
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
    fn owner(&self) -> Option<Owner<'_>> {
        Some(Owner { domain_id: &self.domain_id, ..Owner::default() })
    }
    fn set_owner(&mut self, owner: Owner<'_>) {
        owner.domain_id.clone_into(&mut self.domain_id);
    }
}

impl Base for UserBase {
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
    fn owner(&self) -> Option<Owner<'_>> {
        Some(Owner { domain_id: &self.domain_id, user_id: &self.user_id, ..Owner::default() })
    }
    fn set_owner(&mut self, owner: Owner<'_>) {
        owner.domain_id.clone_into(&mut self.domain_id);
        owner.user_id.clone_into(&mut self.user_id);
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
    fn owner(&self) -> Option<Owner<'_>> {
        Some(Owner { domain_id: &self.domain_id, project_id: &self.project_id, user_id: &self.user_id })
    }
    fn set_owner(&mut self, owner: Owner<'_>) {
        owner.domain_id.clone_into(&mut self.domain_id);
        owner.project_id.clone_into(&mut self.project_id);
        owner.user_id.clone_into(&mut self.user_id);
    }
    fn owned(&self) -> Option<&VirtualBase> {
        Some(self)
    }
    fn owned_mut(&mut self) -> Option<&mut VirtualBase> {
        Some(self)
    }
}
