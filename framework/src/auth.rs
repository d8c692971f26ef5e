//! Who calls: a token becomes a user credential. How tokens are made and
//! checked is the identity service's business; the framework knows only this
//! face of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A rank: what a caller has, and what a field or verb asks for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Asked for: nobody at all.
    Never,
    /// Everybody who is logged in, within what is theirs.
    User,
    /// Administrators of a domain, within it.
    Domain,
    /// Administrators of the system.
    Admin,
}

impl Access {
    /// Whether a caller of rank `caller` has what `self` asks for.
    #[must_use]
    pub const fn allows(self, caller: Self) -> bool {
        !matches!(self, Self::Never) && caller as u8 >= self as u8
    }

    /// The word for it in metadata.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::User => "user",
            Self::Domain => "domain",
            Self::Admin => "admin",
        }
    }
}

/// Who calls, as a token says it. Kept with each task, which acts for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserCred {
    /// The user.
    pub user_id: String,
    /// Their name.
    pub user_name: String,
    /// The domain of the project.
    pub domain_id: String,
    /// The project that what they create belongs to.
    pub project_id: String,
    /// Its name.
    pub project_name: String,
    /// Names of their roles there.
    pub roles: Vec<String>,
    /// Their rank.
    pub level: Access,
}

impl UserCred {
    /// The platform itself: start-up, reconcilers, tasks nobody asked for.
    #[must_use]
    pub fn system() -> Self {
        Self {
            user_id: String::new(),
            user_name: "podyard".into(),
            domain_id: "default".into(),
            project_id: String::new(),
            project_name: String::new(),
            roles: Vec::new(),
            level: Access::Admin,
        }
    }
}

/// Checks tokens. Must not touch the database: it runs before every request.
pub trait Authenticator: Send + Sync {
    /// The credential behind a token that is signed by us, not expired and
    /// not revoked.
    fn authenticate(&self, token: &str) -> Option<Arc<UserCred>>;
}

#[cfg(test)]
mod tests {
    use super::Access::{Admin, Domain, Never, User};

    #[test]
    fn ranks() {
        assert!(User.allows(User) && User.allows(Admin) && Domain.allows(Admin));
        assert!(!Admin.allows(User) && !Admin.allows(Domain));
        assert!(!Never.allows(Admin) && !Never.allows(Never));
    }
}
