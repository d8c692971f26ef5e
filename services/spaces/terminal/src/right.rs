//! The right to a terminal: one of its own, by role. To see a space, or to
//! administer it, is not to have a shell in it.

use std::collections::BTreeMap;
use std::str::FromStr;

use podyard::auth::UserCred;
use podyard_spaces::Whose;

/// Whose spaces each role may open terminals in. A role that is not named: its
/// bearer's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights(BTreeMap<String, Whose>);

impl Rights {
    /// What a caller may, by the role that may most.
    pub(crate) fn of(&self, cred: &UserCred) -> Whose {
        let given = |role: &String| self.0.get(role).copied().unwrap_or(Whose::Own);
        cred.roles.iter().map(given).max().unwrap_or(Whose::None)
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(all: I) -> Self {
        Self(all.into_iter().map(|Right(role, whose)| (role, whose)).collect())
    }
}

/// `ROLE=own`, `ROLE=all` or `ROLE=none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right(String, Whose);

impl FromStr for Right {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "must be a role and own, all or none, like admin=all".to_owned();
        let (role, whose) = text.split_once('=').ok_or_else(wrong)?;
        let whose = match whose {
            "none" => Whose::None,
            "own" => Whose::Own,
            "all" => Whose::All,
            _ => return Err(wrong()),
        };
        if role.is_empty() { Err(wrong()) } else { Ok(Self(role.to_owned(), whose)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(rights: &[&str], roles: &[&str]) -> Whose {
        let rights: Rights = rights.iter().map(|it| it.parse::<Right>().unwrap()).collect();
        let roles = roles.iter().map(|&it| it.to_owned()).collect();
        rights.of(&UserCred { roles, ..UserCred::system() })
    }

    #[test]
    fn ones_own_unless_said_otherwise() {
        assert_eq!(may(&[], &["admin"]), Whose::Own);
        assert_eq!(may(&["admin=all"], &["admin"]), Whose::All);
        assert_eq!(may(&["admin=all"], &["member"]), Whose::Own);
        assert_eq!(may(&["member=none"], &["member"]), Whose::None);
        // The role that may most counts; who has none may nothing.
        assert_eq!(may(&["member=none", "admin=all"], &["member", "admin"]), Whose::All);
        assert_eq!(may(&["admin=all"], &[]), Whose::None);
    }

    #[test]
    fn what_is_no_right() {
        for text in ["admin", "=all", "admin=", "admin=some"] {
            assert!(text.parse::<Right>().unwrap_err().contains("admin=all"), "{text}");
        }
    }
}
