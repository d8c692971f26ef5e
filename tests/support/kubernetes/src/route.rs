//! What a path means.

use hyper::Method;

use crate::http::Request;
use crate::resource::Resource;
use crate::status::Failure;

/// What a request is about.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub of: Resource,
    pub space: Option<String>,
    pub name: String,
    pub sub: String,
    /// What follows the subresource, for the proxy.
    pub rest: String,
    pub verb: &'static str,
}

impl Target {
    /// The namespace, empty for what has none.
    pub fn space(&self) -> &str {
        self.space.as_deref().unwrap_or_default()
    }

    /// `pods/exec`.
    pub fn resource(&self) -> String {
        match self.sub.as_str() {
            "" => self.of.plural.clone(),
            sub => format!("{}/{sub}", self.of.plural),
        }
    }

    /// The target of a path below `/api/v1` or `/apis/<group>/<version>`, which is
    /// `steps`; `known` are the kinds of that group and version.
    pub fn parse(request: &Request, known: &[Resource], steps: &str) -> Result<Self, Failure> {
        let mut left = steps.splitn(6, '/').filter(|it| !it.is_empty());
        let mut next = || left.next().unwrap_or_default();
        let first = next();
        let find = |plural: &str| {
            known.iter().find(|it| it.plural == plural).cloned().ok_or_else(Failure::no_resource)
        };
        let (of, space, name) = if first == "namespaces" {
            let space = next();
            let second = next();
            if second.is_empty() || matches!(second, "status" | "finalize") {
                let of = find("namespaces")?;
                return Self::finish(request, of, None, space, second, "");
            }
            let of = find(second)?;
            if !of.namespaced {
                return Err(Failure::no_resource());
            }
            (of, Some(space.to_owned()), next())
        } else {
            (find(first)?, None, next())
        };
        // A path of one more part for what has no namespace.
        if of.namespaced && space.is_none() && !name.is_empty() {
            return Err(Failure::no_resource());
        }
        let sub = next();
        let rest = match (sub, space.is_some()) {
            ("", _) => String::new(),
            (_, true) => steps.splitn(6, '/').nth(5).unwrap_or_default().to_owned(),
            (_, false) => steps.splitn(4, '/').nth(3).unwrap_or_default().to_owned(),
        };
        Self::finish(request, of, space, name, sub, &rest)
    }

    fn finish(
        request: &Request,
        of: Resource,
        space: Option<String>,
        name: &str,
        sub: &str,
        rest: &str,
    ) -> Result<Self, Failure> {
        let verb = match (&request.method, name.is_empty()) {
            (&Method::GET | &Method::HEAD, true) if request.flag("watch") => "watch",
            (&Method::GET | &Method::HEAD, true) => "list",
            (&Method::GET | &Method::HEAD, false) => "get",
            (&Method::POST, empty) if empty == sub.is_empty() => "create",
            (&Method::PUT, false) => "update",
            (&Method::PATCH, false) => "patch",
            (&Method::DELETE, true) => "deletecollection",
            (&Method::DELETE, false) => "delete",
            _ => return Err(Failure::no_method()),
        };
        let space = space.filter(|it| !it.is_empty());
        let name = name.to_owned();
        let (sub, rest) = (sub.to_owned(), rest.to_owned());
        if !sub.is_empty() && !of.sub.iter().any(|(known, ..)| *known == sub) && sub != "finalize" {
            return Err(Failure::no_resource());
        }
        Ok(Self { of, space, name, sub, rest, verb })
    }
}
