//! Who asks, and what they may.

use serde_json::{Value, json};

use crate::resource::Resource;
use crate::status::Failure;
use crate::store::State;
use crate::value::{list, text};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum User {
    /// May do everything.
    Admin,
    Anonymous,
    /// A service account.
    Account {
        space: String,
        name: String,
    },
}

/// The token that may do everything.
pub(crate) const ADMIN: &str = "double-admin";
const ACCOUNT: &str = "double-account.";

impl User {
    pub fn name(&self) -> String {
        match self {
            Self::Admin => "kubernetes-admin".to_owned(),
            Self::Anonymous => "system:anonymous".to_owned(),
            Self::Account { space, name } => format!("system:serviceaccount:{space}:{name}"),
        }
    }

    /// The user of an `Authorization` header.
    pub fn of(header: &str, open: bool) -> Result<Self, Failure> {
        let Some(token) = header.strip_prefix("Bearer ") else {
            return Ok(if open { Self::Admin } else { Self::Anonymous });
        };
        if token == ADMIN {
            return Ok(Self::Admin);
        }
        let mut parts = token.strip_prefix(ACCOUNT).unwrap_or_default().split('.');
        match (parts.next(), parts.next()) {
            (Some(space), Some(name)) if !space.is_empty() => {
                Ok(Self::Account { space: space.to_owned(), name: name.to_owned() })
            }
            _ => Err(Failure::unauthorized()),
        }
    }

    /// The token of a service account.
    pub fn token(space: &str, name: &str) -> String {
        format!("{ACCOUNT}{space}.{name}")
    }
}

/// What is to be done with what.
pub(crate) struct Act<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    /// With its subresource: `pods/exec`.
    pub resource: String,
    pub space: Option<&'a str>,
    pub name: &'a str,
}

impl Act<'_> {
    pub fn refusal(&self, user: &User, of: &Resource) -> Failure {
        let place = match self.space {
            Some(space) => format!("in the namespace \"{space}\""),
            None => "at the cluster scope".to_owned(),
        };
        let subject = match self.name {
            "" => of.full(),
            name => format!("{} \"{name}\"", of.full()),
        };
        Failure::new(
            403,
            "Forbidden",
            format!(
                "{subject} is forbidden: User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
                user.name(),
                self.verb,
                self.resource,
                self.group,
            ),
        )
        .details(of.details(self.name))
    }

    /// Whether it is allowed, by the roles that are stored.
    pub fn allowed(&self, user: &User, state: &State) -> bool {
        let (home, account) = match user {
            User::Admin => return true,
            User::Anonymous => return false,
            User::Account { space, name } => (space, name),
        };
        if self.resource == "selfsubjectaccessreviews" {
            return true;
        }
        let bound = |binding: &Value| {
            list(&binding["subjects"]).iter().any(|it| {
                it["kind"] == "ServiceAccount"
                    && it["name"] == *account
                    && it.get("namespace").is_none_or(|space| space == home)
            })
        };
        let group = "rbac.authorization.k8s.io";
        let rules = |binding: &Value| -> Option<Value> {
            let role = &binding["roleRef"];
            let space = match text(&role["kind"]) {
                "Role" => text(&binding["metadata"]["namespace"]),
                _ => "",
            };
            let store = if space.is_empty() { "clusterroles" } else { "roles" };
            let role = state.get(&format!("{store}.{group}"), space, text(&role["name"]))?;
            Some(role["rules"].clone())
        };
        let clusterwide = state.all(&format!("clusterrolebindings.{group}"), None);
        let local = match self.space {
            Some(space) => state.all(&format!("rolebindings.{group}"), Some(space)),
            None => Vec::new(),
        };
        clusterwide
            .iter()
            .chain(&local)
            .filter(|binding| bound(binding))
            .filter_map(|binding| rules(binding))
            .any(|rules| list(&rules).iter().any(|rule| self.covered(rule)))
    }

    fn covered(&self, rule: &Value) -> bool {
        let has = |field: &str, wanted: &str| list(&rule[field]).iter().any(|it| it == "*" || it == wanted);
        let names = list(&rule["resourceNames"]);
        has("apiGroups", self.group)
            && has("resources", &self.resource)
            && has("verbs", self.verb)
            && (names.is_empty() || names.iter().any(|it| it == self.name))
    }
}

/// The answer to a SelfSubjectAccessReview.
pub(crate) fn review(user: &User, asked: &Value, state: &State) -> Value {
    let of = &asked["spec"]["resourceAttributes"];
    let resource = match text(&of["subresource"]) {
        "" => text(&of["resource"]).to_owned(),
        sub => format!("{}/{sub}", text(&of["resource"])),
    };
    let act = Act {
        verb: text(&of["verb"]),
        group: text(&of["group"]),
        resource,
        space: Some(text(&of["namespace"])).filter(|it| !it.is_empty()),
        name: text(&of["name"]),
    };
    json!({
        "kind": "SelfSubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {},
        "spec": asked["spec"],
        "status": {"allowed": act.allowed(user, state)},
    })
}
