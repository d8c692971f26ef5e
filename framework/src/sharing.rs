//! Sharing: a row's owner, or who administers it, lets others see it. They
//! find it in their lists and read it; they do not change it.
//!
//! Whom a row is shared with stands in `shared_resources`, one row for each
//! target: `project:<id>`, `domain:<id>` or `system`. One indexed look-up then
//! says what is shared with a caller, whatever the scope.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::auth::{Access, UserCred};
use crate::ctx::Tx;
use crate::db::{self, Sql, Value};
use crate::model::builtin::BuiltIn;
use crate::model::{ActionInput, ActionOutput, AnyRow, Extra, Meta, Record, Sharing, read_input};
use crate::{Error, Nothing, Result, owner};

pub(crate) static ACTIONS: [BuiltIn; 2] = [
    BuiltIn::item(
        Meta::shared,
        "public",
        public,
        "Lets others see it: projects of its domain, its domain, other domains, or everybody. \
         Beyond its domain takes an administrator of the system.",
    )
    .access(Access::Domain)
    .input(|g| g.subschema_for::<PublicInput>()),
    BuiltIn::item(Meta::shared, "private", private, "Takes back every share."),
];

/// How far a share goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PublicScope {
    /// To the projects that are named.
    Project,
    /// To the domains that are named, else to its own.
    Domain,
    /// To everybody.
    System,
}

/// With whom.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct PublicInput {
    /// How far it goes.
    pub scope: PublicScope,
    /// The projects, all of the row's domain.
    #[serde(default)]
    pub project_ids: Vec<String>,
    /// The domains.
    #[serde(default)]
    pub domain_ids: Vec<String>,
}

/// Most targets of one row.
const MOST: usize = 200;

/// `SELECT` of the ids of the rows that are shared with a caller: few, and
/// found by an index.
pub(crate) fn with(meta: &Meta, cred: &UserCred) -> Sql<'static> {
    let mut sql = Sql::new("SELECT \"obj_id\" FROM \"shared_resources\" WHERE \"obj_type\" = ");
    sql.bind(meta.keyword());
    sql.push(" AND \"target\" IN (").bind(format!("project:{}", cred.project_id));
    sql.push(", ").bind(format!("domain:{}", cred.domain_id)).push(", 'system')");
    sql
}

/// Refuses a change to what is only shared with the caller. They see it, so
/// it need not look like none.
pub(crate) fn expect_own<T: Record>(tx: &Tx<'_>, row: &T) -> Result<()> {
    if !T::meta().shared() || owner::owns(T::meta(), row.base(), tx.cred()) {
        return Ok(());
    }
    let text =
        format!("{} {} is shared with you for reading only", T::meta().keyword(), row.base().anon().id);
    Err(Error::forbidden(text).class("SharedReadOnlyError"))
}

/// Tells owners whom their rows are shared with: one statement for a page, and
/// none where nothing is shared.
pub(crate) fn describe<T: Record>(tx: &mut Tx<'_>, rows: &[T], extra: &mut [Extra]) -> Result<()> {
    let meta = T::meta();
    if !meta.shared() {
        return Ok(());
    }
    let public = |row: &T| row.find_mixin::<Sharing>().is_some_and(|it| it.is_public);
    let own: Vec<usize> = (0..rows.len())
        .filter(|i| public(&rows[*i]) && owner::owns(meta, rows[*i].base(), tx.cred()))
        .collect();
    if own.is_empty() {
        return Ok(());
    }
    let mut sql = Sql::new("SELECT \"obj_id\", \"target\" FROM \"shared_resources\" WHERE \"obj_type\" = ");
    sql.bind(meta.keyword()).push(" AND \"obj_id\" IN ");
    sql.list(own.iter().map(|i| Value::from(rows[*i].base().anon().id.as_str())));
    sql.push(" ORDER BY \"target\"");
    let targets: Vec<(String, String)> = db::load(tx.conn, sql)?;
    for i in own {
        let its = targets.iter().filter(|(id, _)| *id == rows[i].base().anon().id);
        let mut of = [Vec::new(), Vec::new()];
        for (_, target) in its {
            match target.split_once(':') {
                Some(("project", id)) => of[0].push(id),
                Some(("domain", id)) => of[1].push(id),
                _ => {}
            }
        }
        let [projects, domains] = of;
        extra[i].set("shared_projects", projects);
        extra[i].set("shared_domains", domains);
    }
    Ok(())
}

/// Removes the shares of a row.
pub(crate) fn forget(tx: &mut Tx<'_>, keyword: &str, id: &str) -> Result<()> {
    let mut sql = Sql::new("DELETE FROM \"shared_resources\" WHERE \"obj_type\" = ").value(keyword);
    sql.push(" AND \"obj_id\" = ").bind(id);
    db::execute(tx.conn, &sql)?;
    Ok(())
}

/// Checks the input and makes the targets of it.
fn targets(tx: &mut Tx<'_>, row: &dyn AnyRow, input: PublicInput) -> Result<Vec<String>> {
    let unwanted = |name: &str, list: &[String], scope: &str| {
        let text = format!("does not go with scope {scope}");
        if list.is_empty() { Ok(()) } else { Err(Error::field(name, text)) }
    };
    let domain = row.base().owner().map(|it| it.domain_id.to_owned()).unwrap_or_default();
    let needs_admin = |tx: &Tx<'_>, what: &str| {
        let text = format!("sharing with {what} is for administrators of the system");
        if tx.level() == Access::Admin { Ok(()) } else { Err(Error::forbidden(text).blame("scope")) }
    };
    let mut targets = match input.scope {
        PublicScope::Project => {
            unwanted("domain_ids", &input.domain_ids, "project")?;
            if input.project_ids.is_empty() {
                return Err(Error::field("project_ids", "is required with scope project"));
            }
            expect_all(tx, "project", "project_ids", &input.project_ids, Some(&domain))?;
            input.project_ids.iter().map(|id| format!("project:{id}")).collect::<Vec<_>>()
        }
        PublicScope::Domain => {
            unwanted("project_ids", &input.project_ids, "domain")?;
            if input.domain_ids.is_empty() {
                vec![format!("domain:{domain}")]
            } else {
                if input.domain_ids.iter().any(|id| *id != domain) {
                    needs_admin(tx, "other domains")?;
                }
                expect_all(tx, "domain", "domain_ids", &input.domain_ids, None)?;
                input.domain_ids.iter().map(|id| format!("domain:{id}")).collect()
            }
        }
        PublicScope::System => {
            unwanted("project_ids", &input.project_ids, "system")?;
            unwanted("domain_ids", &input.domain_ids, "system")?;
            needs_admin(tx, "everybody")?;
            vec!["system".to_owned()]
        }
    };
    targets.sort();
    targets.dedup();
    if targets.len() > MOST {
        return Err(Error::bad_request(format!("a row is shared with at most {MOST} projects or domains")));
    }
    Ok(targets)
}

/// All ids must be there, and in that domain.
fn expect_all(
    tx: &mut Tx<'_>,
    keyword: &str,
    name: &str,
    ids: &[String],
    domain: Option<&str>,
) -> Result<()> {
    let ctx = tx.ctx;
    let meta = ctx.core().registry.keyword(keyword).map(|of| of.handler.meta());
    let meta = meta.ok_or_else(|| Error::internal(format!("there is no type {keyword}")))?;
    let mut sql = Sql::new("SELECT \"id\" FROM \"").text(meta.table()).text("\" WHERE \"id\" IN ");
    sql.list(ids.iter().map(|id| Value::from(id.as_str())));
    if let Some(domain) = domain.filter(|_| meta.has("domain_id")) {
        sql.push(" AND \"domain_id\" = ").bind(domain);
    }
    let there: Vec<(String,)> = db::load(tx.conn, sql)?;
    match ids.iter().find(|id| !there.iter().any(|(it,)| it == *id)) {
        None => Ok(()),
        Some(id) => {
            let place = if domain.is_some() { " in its domain" } else { "" };
            Err(Error::field(name, format!("there is no {keyword} {id}{place}"))
                .class("ReferenceNotFoundError"))
        }
    }
}

fn public(row: &mut dyn AnyRow, tx: &mut Tx<'_>, input: &ActionInput) -> Result<ActionOutput> {
    let input: PublicInput = read_input(input)?;
    let word = match input.scope {
        PublicScope::Project => "project",
        PublicScope::Domain => "domain",
        PublicScope::System => "system",
    };
    let targets = targets(tx, row, input)?;
    share(row, tx, "public", word, targets)
}

fn private(row: &mut dyn AnyRow, tx: &mut Tx<'_>, input: &ActionInput) -> Result<ActionOutput> {
    let _: Nothing = read_input(input)?;
    share(row, tx, "private", "none", Vec::new())
}

fn share(
    row: &mut dyn AnyRow,
    tx: &mut Tx<'_>,
    action: &str,
    scope: &str,
    targets: Vec<String>,
) -> Result<ActionOutput> {
    let before = row.values();
    let sharing = row.expect::<Sharing>()?;
    if !sharing.is_public && targets.is_empty() {
        return Ok(ActionOutput::Row);
    }
    sharing.is_public = !targets.is_empty();
    scope.clone_into(&mut sharing.public_scope);
    let (keyword, id) = (row.meta().keyword(), row.id().to_owned());
    forget(tx, keyword, &id)?;
    let mut sql = Sql::new("INSERT INTO \"shared_resources\" (\"obj_type\", \"obj_id\", \"target\") VALUES ");
    for (i, target) in targets.iter().enumerate() {
        sql.push(if i == 0 { "(" } else { ", (" }).bind(keyword).push(", ").bind(&id);
        sql.push(", ").bind(target).push(")");
    }
    if !targets.is_empty() {
        db::execute(tx.conn, &sql)?;
    }
    row.save(tx, action, &before, Some(("shared_with", serde_json::json!({"new": targets}))))?;
    Ok(ActionOutput::Row)
}
