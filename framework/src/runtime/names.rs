//! The words that a type and its fields may be named by: they become paths,
//! keys of JSON and names in SQL, so they are plain, and not taken.

use crate::FieldError;

/// Plurals and keywords that paths have or may come to have.
const RESERVED: &[&str] = &[
    "api",
    "assets",
    "auth",
    "batch",
    "console",
    "docs",
    "events",
    "export",
    "files",
    "graphql",
    "health",
    "healthz",
    "limits",
    "livez",
    "login",
    "logout",
    "metadata",
    "metrics",
    "openapi",
    "quotas",
    "ready",
    "readyz",
    "resource",
    "resources",
    "search",
    "static",
    "statistics",
    "status",
    "tags",
    "task_id",
    "total",
    "types",
    "ui",
    "usages",
    "v1",
    "v2",
    "v3",
    "version",
    "versions",
    "watch",
    "webhooks",
    "workers",
    "ws",
];

/// Columns of bases, parameters of requests, names that databases keep.
pub(super) const RESERVED_FIELDS: &[&str] = &[
    "all",
    "apply",
    "base",
    "cmax",
    "cmin",
    "copy",
    "count",
    "created_at",
    "ctid",
    "deleted",
    "deleted_at",
    "description",
    "details",
    "distinct_field",
    "domain",
    "domain_id",
    "domain_src",
    "dry_run",
    "enabled",
    "exclude",
    "export",
    "export_keys",
    "external_id",
    "field",
    "filter",
    "filter_any",
    "force",
    "format",
    "id",
    "initial",
    "is_public",
    "join",
    "joint_filter",
    "limit",
    "links",
    "marker",
    "meta",
    "metadata",
    "name",
    "next_marker",
    "offset",
    "oid",
    "order",
    "order_by",
    "owner",
    "paging_marker",
    "paging_order",
    "pending_deleted",
    "pending_deleted_at",
    "previous_marker",
    "project",
    "project_id",
    "public_scope",
    "public_src",
    "purge",
    "rowid",
    "scope",
    "search",
    "shared_domains",
    "shared_projects",
    "since",
    "source",
    "status",
    "status_reason",
    "system_tags",
    "tableoid",
    "tag",
    "tags",
    "task_id",
    "total",
    "updated_at",
    "user",
    "user_id",
    "user_tags",
    "version",
    "watch",
    "with_meta",
    "without_tag",
    "xmax",
    "xmin",
];

/// What is wrong with a name, if anything.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let shape = name.len() <= 31
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !name.contains("__")
        && !name.ends_with('_');
    if shape {
        return Ok(());
    }
    Err("must begin with a small letter and have small letters, digits and single _, at most 31".into())
}

/// What is wrong with the words for a type, if anything.
pub(super) fn check_type_name(of: &str, name: &str, wrong: &mut Vec<FieldError>) {
    let mut blame = |message: String| wrong.push(FieldError { field: of.to_owned(), message });
    match check_name(name) {
        Err(message) => blame(message),
        Ok(()) if RESERVED.contains(&name) => blame(format!("{name:?} is reserved")),
        Ok(()) => {}
    }
}
