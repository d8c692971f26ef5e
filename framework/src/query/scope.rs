//! Whose rows: what a caller's rank lets them see, and `scope=`, which names a
//! part of it. It never shows more than the rank does.

use super::cond::Cond;
use crate::auth::{Access, UserCred};
use crate::model::{Meta, Scope};
use crate::{Error, Result, sharing};

/// Whose rows a statement sees.
#[derive(Debug, Clone)]
pub(crate) enum Owner {
    Everybody,
    /// The rows with that value in that column.
    Of(&'static str, String),
}

impl Owner {
    pub(super) fn cond(self) -> Option<Cond> {
        match self {
            Self::Everybody => None,
            Self::Of(column, value) => Some(Cond::Compare(column, "=", value.into())),
        }
    }

    fn user(cred: &UserCred) -> Self {
        Self::Of("user_id", cred.user_id.clone())
    }

    fn project(cred: &UserCred) -> Self {
        Self::Of("project_id", cred.project_id.clone())
    }

    fn domain(cred: &UserCred) -> Self {
        Self::Of("domain_id", cred.domain_id.clone())
    }
}

/// Their own rows, and those that others share with them.
pub(super) fn or_shared(own: Cond, meta: &Meta, cred: &UserCred) -> Cond {
    if meta.shared() { Cond::Any(vec![own, Cond::Shared(sharing::with(meta, cred))]) } else { own }
}

/// The condition that keeps a caller to their rows.
pub(crate) fn of(meta: &Meta, cred: &UserCred) -> Owner {
    match (meta.source.scope, cred.level) {
        (Scope::All, _) | (_, Access::Admin) => Owner::Everybody,
        (_, Access::Domain) | (Scope::Domain, _) => Owner::domain(cred),
        (Scope::Project, _) => Owner::project(cred),
        (Scope::User, _) => Owner::user(cred),
    }
}

/// What `scope=` asks for, beside what the rank lets the caller see anyway.
///
/// # Errors
/// 400 where the type has no such owner, 403 where the rank is too low.
pub(super) fn asked(meta: &Meta, cred: &UserCred, word: &str) -> Result<Option<Owner>> {
    let (owner, column, needed) = match word {
        "user" => (Owner::user(cred), "user_id", Access::User),
        "project" => {
            let own = meta.source.scope == Scope::Project;
            (Owner::project(cred), "project_id", if own { Access::User } else { Access::Domain })
        }
        "domain" => {
            let own = meta.source.scope == Scope::Domain;
            (Owner::domain(cred), "domain_id", if own { Access::User } else { Access::Domain })
        }
        "system" => (Owner::Everybody, "id", Access::Admin),
        _ => return Err(Error::field("scope", "must be user, project, domain or system")),
    };
    if meta.source.scope == Scope::All {
        // It has no owners: its rows are the system's, as without the word.
        return match word {
            "system" => Ok(None),
            _ => {
                Err(Error::field("scope", format!("{} have no owners; there is only system", meta.plural())))
            }
        };
    }
    if !meta.has(column) {
        return Err(Error::field("scope", format!("{} belong to no {word}", meta.plural())));
    }
    if !needed.allows(cred.level) {
        let text = format!("scope {word} of {} is not allowed to {}", meta.plural(), cred.user_name);
        return Err(Error::forbidden(text).class("ScopeForbiddenError").blame("scope"));
    }
    Ok(match (&owner, of(meta, cred)) {
        (Owner::Of(asked, _), Owner::Of(own, _)) if *asked == own => None,
        (Owner::Everybody, _) => None,
        _ => Some(owner),
    })
}
