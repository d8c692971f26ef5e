//! Refusals: the API's `Status` bodies.

use serde_json::{Value, json};

use crate::resource::Resource;

/// Why a request is refused.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Value>>,
    /// `Retry-After`, in seconds.
    pub retry: Option<u64>,
    /// What stands in the Status's `metadata`.
    pub metadata: Option<Box<Value>>,
    /// A body that is not a Status: `text/plain`.
    pub text: bool,
}

/// One wrong field.
#[derive(Debug, Clone)]
pub(crate) struct Cause {
    pub reason: &'static str,
    pub message: String,
    pub field: String,
}

impl Cause {
    fn new(reason: &'static str, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), field: field.into() }
    }

    pub fn required(field: impl Into<String>, more: &str) -> Self {
        let message = match more {
            "" => "Required value".to_owned(),
            more => format!("Required value: {more}"),
        };
        Self::new("FieldValueRequired", field, message)
    }

    pub fn invalid(field: impl Into<String>, value: &Value, why: impl AsRef<str>) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {value}: {}", why.as_ref()))
    }

    /// A rule on a whole object, whose value is not shown.
    pub fn broken(field: impl Into<String>, why: &str) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {why}"))
    }

    pub fn forbidden(field: impl Into<String>, why: impl AsRef<str>) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {}", why.as_ref()))
    }

    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new("FieldValueNotFound", field, format!("Not found: {value}"))
    }

    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new("FieldValueDuplicate", field, format!("Duplicate value: {value}"))
    }

    pub fn wrong_type(field: impl Into<String>, is: &str, name: &str, wanted: &str) -> Self {
        Self::new(
            "FieldValueTypeInvalid",
            field,
            format!("Invalid value: \"{is}\": {name} in body must be of type {wanted}: \"{is}\""),
        )
    }

    pub fn unsupported(field: impl Into<String>, value: &Value, known: &[&str]) -> Self {
        let known: Vec<String> = known.iter().map(|it| format!("\"{it}\"")).collect();
        Self::new(
            "FieldValueNotSupported",
            field,
            format!("Unsupported value: {value}: supported values: {}", known.join(", ")),
        )
    }

    fn json(&self) -> Value {
        json!({"reason": self.reason, "message": self.message, "field": self.field})
    }
}

impl Failure {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
            retry: None,
            metadata: None,
            text: false,
        }
    }

    /// A refusal that is plain text.
    pub fn text(code: u16, message: impl Into<String>) -> Self {
        Self { text: true, ..Self::new(code, "", message) }
    }

    pub fn page() -> Self {
        Self::text(404, "404 page not found\n")
    }

    pub fn details(mut self, details: Value) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub fn not_found(of: &Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", of.full())).details(of.details(name))
    }

    pub fn no_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").details(json!({}))
    }

    pub fn no_method() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .details(json!({}))
    }

    pub fn exists(of: &Resource, name: &str, leaving: bool) -> Self {
        let before = if leaving { "object is being deleted: " } else { "" };
        Self::new(409, "AlreadyExists", format!("{before}{} \"{name}\" already exists", of.full()))
            .details(of.details(name))
    }

    pub fn modified(of: &Resource, name: &str) -> Self {
        Self::conflict(
            of,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn conflict(of: &Resource, name: &str, why: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", of.full()),
        )
        .details(of.details(name))
    }

    pub fn forbidden(of: &Resource, name: &str, why: impl AsRef<str>) -> Self {
        Self::new(403, "Forbidden", format!("{} \"{name}\" is forbidden: {}", of.full(), why.as_ref()))
            .details(of.details(name))
    }

    /// 422 of an object; `causes` is not empty.
    pub fn invalid(of: &Resource, name: &str, causes: &[Cause]) -> Self {
        let kind = match of.group.as_str() {
            "" => of.kind.clone(),
            group => format!("{}.{group}", of.kind),
        };
        Self::invalid_as(&kind, &of.group, &of.kind, name, causes)
    }

    /// 422 of what is no stored object: options of a request.
    pub fn options(kind: &str, causes: &[Cause]) -> Self {
        Self::invalid_as(&format!("{kind}.meta.k8s.io"), "meta.k8s.io", kind, "", causes)
    }

    pub fn invalid_as(full: &str, group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let each: Vec<String> = causes.iter().map(|it| format!("{}: {}", it.field, it.message)).collect();
        let all = match each.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut details = json!({"kind": kind});
        if !name.is_empty() {
            details["name"] = json!(name);
        }
        if !group.is_empty() {
            details["group"] = json!(group);
        }
        details["causes"] = causes.iter().map(Cause::json).collect();
        Self::new(422, "Invalid", format!("{full} \"{name}\" is invalid: {all}")).details(details)
    }

    pub fn media(known: &str) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {known}"
            ),
        )
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// The Status.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": self.metadata.as_deref().unwrap_or(&json!({})), "status": "Failure",
            "message": self.message,
        });
        if !self.reason.is_empty() {
            body["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            body["details"] = Value::clone(details);
        }
        body["code"] = json!(self.code);
        body
    }
}
