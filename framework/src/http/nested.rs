//! Paths below a row of another type: `/<masters>/<id>/<slaves>`, with an id
//! and an action of the slaves behind it, and the same of joint types, where
//! the two rows' ids name the one that joins them.

use std::borrow::Cow;

use actix_web::http::Method;

use super::route::Target;
use crate::auth::UserCred;
use crate::context::Nested;
use crate::ctx::Core;
use crate::model::ActionKind;
use crate::registry::Type;
use crate::{Error, Kind, Result, policy};

/// A joint row is the one of both its sides; it needs no id.
const THE_ONE: &str = "";

/// What the path means, if it leads below another type; `None`: it does not,
/// or the type above has something of its own there.
pub(super) fn route<'a>(
    core: &'a Core,
    method: &Method,
    segments: &[Cow<'_, str>],
) -> Result<Option<(Option<&'a Type>, Target)>> {
    let [above, id, name, rest @ ..] = segments else { return Ok(None) };
    let read = *method == Method::GET || *method == Method::HEAD;
    let Some(of) = core.registry.get(above) else { return Ok(None) };
    let kind = if read { ActionKind::Detail } else { ActionKind::Item };
    if rest.is_empty() && of.actions.keys().any(|(k, n)| *k == kind && *n == name.as_ref()) {
        return Ok(None);
    }
    let Some(context) = core.registry.context(above, name) else { return Ok(None) };
    let above = of.handler.meta().plural();
    let Some(of) = core.registry.get(context.leads_to) else { return Ok(None) };
    let meta = of.handler.meta();
    let mut nested = Nested { of: meta.keyword(), above: vec![(context.field, above, id.to_string())] };
    let not_allowed = |allow: &str| {
        Error::new(Kind::MethodNotAllowed, format!("{method} is not possible here; possible: {allow}"))
    };
    let (post, put, delete) = (
        *method == Method::POST,
        *method == Method::PUT || *method == Method::PATCH,
        *method == Method::DELETE,
    );
    let row = match (context.other, rest.first()) {
        (Some((field, plural)), Some(id)) => {
            nested.above.push((field, plural, id.to_string()));
            THE_ONE.to_owned()
        }
        (None, Some(id)) => id.to_string(),
        (_, None) => String::new(),
    };
    let joint = context.other.is_some();
    let target = match rest {
        [] if read => Target::List,
        [] if post && !joint => Target::Create,
        [] => return Err(not_allowed(if joint { "GET" } else { "GET, POST" })),
        [_] if read => Target::Get(row),
        [_] if post && joint => Target::Create,
        [_] if put => Target::Update(row),
        [_] if delete => Target::Delete(row),
        [_] => return Err(not_allowed("GET, PUT, PATCH, DELETE")),
        [_, action] => {
            let refuse = || {
                let (word, class) =
                    if read { ("detail", "SpecNotFoundError") } else { ("action", "ActionNotFoundError") };
                let text = format!("{} has no {word} {action}", meta.keyword());
                Error::new(Kind::NotFound, text).class(class)
            };
            if !read && !post {
                return Err(not_allowed("GET, POST"));
            }
            match of.actions.get(&(kind, action.as_ref())).copied() {
                Some(found) => Target::Action(found, Some(row)),
                None if read && action == "events" => Target::Events(row),
                None if post && action == "copy" => Target::Copy(row),
                None => return Err(refuse()),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some((Some(of), Target::Nested(Box::new(target), nested))))
}

/// Who asks for what stands below a row must be let see such rows, and the
/// field that holds the way to them.
pub(crate) fn allowed(core: &Core, of: &Type, nested: &Nested, cred: &UserCred) -> Result<()> {
    for (field, plural, _) in &nested.above {
        let above = core.registry.get(plural).map(|it| it.handler.meta());
        let above = above.ok_or_else(|| Error::internal(format!("there is no type {plural}")))?;
        policy::require(cred, above.source.verbs.get, &format!("to get {plural}"))?;
        let meta = of.handler.meta();
        let rank = meta.field(field).map_or(crate::auth::Access::Never, |f| f.list);
        policy::require(cred, rank, &format!("to list {} by {field}", meta.plural()))?;
    }
    Ok(())
}
