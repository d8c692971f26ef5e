//! Owners: whose a new row is when an administrator makes it for somebody
//! else, whether a row is the caller's, and `change-owner`.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::auth::{Access, UserCred};
use crate::ctx::Tx;
use crate::db::{self, Sql};
use crate::model::builtin::BuiltIn;
use crate::model::{ActionInput, ActionOutput, AnyRow, Base, Entries, Input, Meta, Owner, Scope, read_input};
use crate::{Error, Result};

pub(crate) static ACTIONS: [BuiltIn; 1] = [BuiltIn::item(
    |meta| !meta.source.owner.is_empty(),
    "change-owner",
    change_owner,
    "Gives it to another user, project or domain: within their domain by its administrators, else by the system's.",
)
.access(Access::Domain)
.input(|g| g.subschema_for::<OwnerInput>())];

/// Who is to have it; what is not given follows from what is.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct OwnerInput {
    /// The domain; follows from the project or user.
    pub domain_id: Option<String>,
    /// The project; follows from the user.
    pub project_id: Option<String>,
    /// The user; else it stays with the one that it has.
    pub user_id: Option<String>,
}

/// An owner, apart from any row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ids {
    domain_id: String,
    project_id: String,
    user_id: String,
}

impl Ids {
    fn of(owner: Owner<'_>) -> Self {
        let Owner { domain_id, project_id, user_id } = owner;
        Self { domain_id: domain_id.into(), project_id: project_id.into(), user_id: user_id.into() }
    }

    fn as_owner(&self) -> Owner<'_> {
        Owner { domain_id: &self.domain_id, project_id: &self.project_id, user_id: &self.user_id }
    }
}

/// Whether the row is the caller's own, or below their rank: who only sees it
/// because it is shared may not change it.
pub(crate) fn owns(meta: &Meta, row: &dyn Base, cred: &UserCred) -> bool {
    let owner = row.owner().unwrap_or_default();
    match (meta.source.scope, cred.level) {
        (Scope::All, _) | (_, Access::Admin) => true,
        (_, Access::Domain) | (Scope::Domain, _) => owner.domain_id == cred.domain_id,
        (Scope::Project, _) => owner.project_id == cred.project_id,
        (Scope::User, _) => owner.user_id == cred.user_id,
    }
}

/// Two columns of the row of another type that tell whose it is.
fn owner_of(tx: &mut Tx<'_>, keyword: &str, id: &str) -> Result<Option<(String, String)>> {
    let ctx = tx.ctx;
    let Some(meta) = ctx.core().registry.keyword(keyword).map(|of| of.handler.meta()) else {
        return Ok(None);
    };
    let column = |name| if meta.has(name) { name } else { "" };
    let mut sql = Sql::new("SELECT ");
    for (name, comma) in [("domain_id", ", "), ("project_id", " FROM \"")] {
        match column(name) {
            "" => sql.push("''"),
            name => sql.push("\"").push(name).push("\""),
        };
        sql.push(comma);
    }
    sql.push(meta.table()).push("\" WHERE \"id\" = ").bind(id.to_owned());
    db::load_one(tx.conn, sql)
}

/// The whole owner, from what is given and, for the rest, from `from`.
fn resolve(tx: &mut Tx<'_>, meta: &Meta, asked: &OwnerInput, from: Ids) -> Result<Ids> {
    let has = |name: &str| meta.source.owner.contains(&name);
    let mut to = from.clone();
    let mut domain = None;
    if let Some(user) = &asked.user_id {
        to.user_id.clone_from(user);
        if let Some((of, project)) = owner_of(tx, "user", user)? {
            if has("project_id") && !project.is_empty() {
                if asked.project_id.as_ref().is_some_and(|it| *it != project) {
                    return Err(Error::field("project_id", "is not the project of that user"));
                }
                to.project_id = project;
                domain = Some(of);
            } else if !has("project_id") {
                domain = Some(of);
            }
        }
    }
    if let Some(project) = &asked.project_id {
        to.project_id.clone_from(project);
        domain = owner_of(tx, "project", project)?.map(|(of, _)| of);
    }
    let known = domain.filter(|it| !it.is_empty());
    match (&asked.domain_id, known) {
        (Some(asked), Some(known)) if *asked != known => {
            let text =
                format!("is not the domain of that {}", if has("project_id") { "project" } else { "user" });
            return Err(Error::field("domain_id", text));
        }
        (Some(asked), None) if has("project_id") && *asked != from.domain_id => {
            return Err(Error::field("project_id", "is required: a project of that domain"));
        }
        (Some(asked), None) => to.domain_id.clone_from(asked),
        (_, Some(known)) => to.domain_id = known,
        (None, None) => {}
    }
    if tx.level() != Access::Admin && to.domain_id != tx.cred().domain_id {
        let text = "only administrators of the system give to another domain";
        return Err(Error::forbidden(text).blame("domain_id"));
    }
    Ok(to)
}

/// Completes the owner that an administrator gives a new row, and takes the
/// class lock of that owner, as the hooks expect it.
pub(crate) fn given(
    tx: &mut Tx<'_>,
    meta: &Meta,
    entries: &Entries<'_>,
    input: &mut dyn Input,
) -> Result<()> {
    let text = |name: &str| {
        let found = meta.source.owner.iter().find(|it| **it == name)?;
        let (_, value) = entries.iter().find(|(key, _)| key == found)?;
        serde_json::from_str::<String>(value.get()).ok().filter(|id| !id.is_empty())
    };
    let (domain_id, project_id, user_id) = (text("domain_id"), text("project_id"), text("user_id"));
    if domain_id.is_none() && project_id.is_none() && user_id.is_none() {
        return Ok(());
    }
    let cred = tx.cred();
    let caller = Owner { domain_id: &cred.domain_id, project_id: &cred.project_id, user_id: &cred.user_id };
    let caller = Ids::of(caller);
    let to = resolve(tx, meta, &OwnerInput { domain_id, project_id, user_id }, caller.clone())?;
    for (name, id) in [("domain_id", &to.domain_id), ("project_id", &to.project_id), ("user_id", &to.user_id)]
    {
        if meta.source.owner.contains(&name) {
            let raw = serde_json::value::to_raw_value(id).map_err(Error::internal)?;
            input.set(name, &raw).map_err(|wrong| Error::field(name, wrong))?;
        }
    }
    let (own, other) = (lock_of(meta, caller.as_owner()), lock_of(meta, to.as_owner()));
    if own == other { Ok(()) } else { tx.lock(&other) }
}

/// The name of the class lock of an owner.
pub(crate) fn lock_of(meta: &Meta, owner: Owner<'_>) -> String {
    let whose = match meta.source.scope {
        Scope::All => "",
        Scope::Domain => owner.domain_id,
        Scope::Project => owner.project_id,
        Scope::User => owner.user_id,
    };
    format!("{}/{whose}", meta.plural())
}

fn change_owner(row: &mut dyn AnyRow, tx: &mut Tx<'_>, input: &ActionInput) -> Result<ActionOutput> {
    let asked: OwnerInput = read_input(input)?;
    let meta = row.meta();
    let sides = [("domain", &asked.domain_id), ("project", &asked.project_id), ("user", &asked.user_id)];
    let mut any = false;
    for (keyword, id) in sides {
        let Some(id) = id else { continue };
        any = true;
        let name = format!("{keyword}_id");
        if !meta.source.owner.contains(&name.as_str()) {
            return Err(Error::field(name, format!("{} belong to no {keyword}", meta.plural())));
        }
        let ctx = tx.ctx;
        let there = match ctx.core().registry.keyword(keyword) {
            Some(of) => of.handler.exists(tx, id)?,
            None => false,
        };
        if !there {
            let error = Error::field(name, format!("there is no {keyword} {id}"));
            return Err(error.class("ReferenceNotFoundError"));
        }
    }
    if !any {
        let names = meta.source.owner.join(", ");
        return Err(Error::bad_request(format!("say who is to have it: {names}")));
    }
    if meta.shared() && row.expect::<crate::model::Sharing>()?.is_public {
        let text = format!("{} {} is shared; make it private first", meta.keyword(), row.id());
        return Err(Error::conflict(text).class("SharedResourceError"));
    }
    let from = Ids::of(row.base().owner().unwrap_or_default());
    let to = resolve(tx, meta, &asked, from.clone())?;
    if to == from {
        return Ok(ActionOutput::Row);
    }
    // Who makes rows for the new owner waits, so that what the hook counts holds.
    tx.lock(&lock_of(meta, to.as_owner()))?;
    row.validate_change_owner(tx, to.as_owner())?;
    row.give(tx, "change-owner", to.as_owner())?;
    Ok(ActionOutput::Row)
}
