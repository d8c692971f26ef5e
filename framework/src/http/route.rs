//! From a path to what it means: nine routes serve any number of types.

use std::borrow::Cow;

use actix_web::http::Method;

use super::nested;
use crate::context::Nested;
use crate::ctx::Core;
use crate::model::{Action, ActionKind};
use crate::registry::Type;
use crate::{Error, Kind, Result};

/// What a request asks for, once its path is read.
pub(crate) enum Target {
    Discovery(Option<String>),
    List,
    Statistics,
    Create,
    Apply,
    Copy(String),
    UpdateMany,
    DeleteMany,
    ActMany(&'static Action),
    Get(String),
    Update(String),
    Delete(String),
    Action(&'static Action, Option<String>),
    /// The records of one row.
    Events(String),
    /// The same below a row of another type.
    Nested(Box<Target>, Nested),
}

impl Target {
    /// Whether it is a list of rows, which can be exported.
    pub(crate) fn lists(&self) -> bool {
        match self {
            Self::List => true,
            Self::Nested(target, _) => target.lists(),
            _ => false,
        }
    }
}

/// Whether `GET /<plural>/<name>` is something else than the row of that name.
pub(crate) fn hides(of: &Type, name: &str) -> bool {
    name == STATISTICS || of.actions.contains_key(&(ActionKind::Property, name))
}

const STATISTICS: &str = "statistics";

/// Finds what the path means.
pub(crate) fn route<'a>(
    core: &'a Core,
    method: &Method,
    segments: &[Cow<'_, str>],
) -> Result<(Option<&'a Type>, Target)> {
    let nowhere = || Error::new(Kind::NotFound, "there is nothing at this path").class("NotFoundError");
    let Some(plural) = segments.first() else { return Err(nowhere()) };
    let read = *method == Method::GET || *method == Method::HEAD;
    let not_allowed = |allow: &str| {
        Error::new(Kind::MethodNotAllowed, format!("{method} is not possible here; possible: {allow}"))
    };
    if plural == "resources" {
        return match segments {
            _ if !read => Err(not_allowed("GET")),
            [_] => Ok((None, Target::Discovery(None))),
            [_, name] => Ok((None, Target::Discovery(Some(name.to_string())))),
            _ => Err(nowhere()),
        };
    }
    let Some(of) = core.registry.get(plural) else { return Err(nowhere()) };
    if segments.len() > 2
        && let Some(found) = nested::route(core, method, segments)?
    {
        return Ok(found);
    }
    let action = |kind, name: &str| of.actions.get(&(kind, name)).copied();
    let no_action = |name: &str| {
        let text = format!(
            "{} has no {} {name}",
            of.handler.meta().keyword(),
            if read { "detail" } else { "action" }
        );
        Error::new(Kind::NotFound, text).class(if read { "SpecNotFoundError" } else { "ActionNotFoundError" })
    };
    let target = match segments {
        [_] if read => Target::List,
        [_] if *method == Method::POST => Target::Create,
        [_] if *method == Method::PUT || *method == Method::PATCH => Target::UpdateMany,
        [_] if *method == Method::DELETE => Target::DeleteMany,
        [_] => return Err(not_allowed("GET, POST, PUT, PATCH, DELETE")),
        [_, name] if read => match action(ActionKind::Property, name) {
            Some(found) => Target::Action(found, None),
            None if name == STATISTICS => Target::Statistics,
            None => Target::Get(name.to_string()),
        },
        [_, name] if *method == Method::POST => {
            match (action(ActionKind::Class, name), action(ActionKind::Item, name)) {
                (Some(found), _) => Target::Action(found, None),
                (None, _) if name == "apply" => Target::Apply,
                (None, Some(found)) => Target::ActMany(found),
                (None, None) => return Err(no_action(name)),
            }
        }
        [_, id] if *method == Method::PUT || *method == Method::PATCH => Target::Update(id.to_string()),
        [_, id] if *method == Method::DELETE => Target::Delete(id.to_string()),
        [_, _] => return Err(not_allowed("GET, PUT, PATCH, DELETE, POST")),
        [_, id, name] if read => match action(ActionKind::Detail, name) {
            Some(found) => Target::Action(found, Some(id.to_string())),
            None if name == "events" => Target::Events(id.to_string()),
            None => return Err(no_action(name)),
        },
        [_, id, name] if *method == Method::POST => match action(ActionKind::Item, name) {
            Some(found) => Target::Action(found, Some(id.to_string())),
            None if name == "copy" => Target::Copy(id.to_string()),
            None => return Err(no_action(name)),
        },
        [_, _, _] => return Err(not_allowed("GET, POST")),
        _ => return Err(nowhere()),
    };
    Ok((Some(of), target))
}
