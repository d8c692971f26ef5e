//! May they: the rank that a verb or an action takes against the caller's.
//! Nothing is allowed that nobody allowed.

use crate::auth::{Access, UserCred};
use crate::{Error, Result};

/// Refuses a caller whose rank is too low, before any name is looked up.
pub(crate) fn require(cred: &UserCred, needed: Access, what: &str) -> Result<()> {
    if needed.allows(cred.level) {
        return Ok(());
    }
    Err(Error::forbidden(format!("{what} is not allowed to {}", cred.user_name)))
}
