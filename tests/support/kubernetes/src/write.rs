//! Create, update, patch and delete: one way into the store for all kinds.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::kinds;
use crate::kinds::event;
use crate::managed::{self, Manager};
use crate::resource::Resource;
use crate::route::Target;
use crate::status::{Cause, Failure};
use crate::store::State;
use crate::value::{drop_field, five, leaving, list, map, name, namespace, new_uid, now, text, uid, version};

/// What came of a write.
pub(crate) struct Written {
    pub object: Value,
    pub created: bool,
    /// Fields that nobody knows: told in a `Warning`.
    pub unknown: Vec<String>,
}

/// The options of a write.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub manager: String,
    pub dry: bool,
    pub force: bool,
    /// Unknown fields are refused.
    pub strict: bool,
}

impl Ask {
    fn updater(&self, of: &Resource, sub: &str) -> Manager {
        Manager {
            name: self.manager.clone(),
            apply: false,
            api_version: of.api_version(),
            sub: sub.to_owned(),
        }
    }
}

fn unknown(of: &Resource, object: &mut Value, ask: &Ask) -> Result<Vec<String>, Failure> {
    let unknown = kinds::prune(of, object)?;
    match unknown.first() {
        Some(field) if ask.strict => Err(Failure::bad(format!(
            "{kind} in version \"{}\" cannot be handled as a {kind}: strict decoding error: unknown field \"{field}\"",
            of.version,
            kind = of.kind,
        ))),
        _ => Ok(unknown),
    }
}

/// Whether the body is of the kind that the path says; fills in what it may leave out.
pub(crate) fn fit(of: &Resource, body: &mut Value) -> Result<(), Failure> {
    let kind = text(&body["kind"]);
    let api = text(&body["apiVersion"]);
    if !kind.is_empty() && kind != of.kind {
        let group = if api.is_empty() { "v1" } else { api };
        return Err(Failure::bad(format!(
            "{kind} in version \"{}\" cannot be handled as a {}: converting ({group}.{kind}) to (core.{}): unknown conversion",
            of.version, of.kind, of.kind,
        )));
    }
    if !api.is_empty() && api != of.api_version() {
        return Err(Failure::bad(format!(
            "the API version in the data ({api}) does not match the expected API version ({})",
            of.api_version(),
        )));
    }
    body["kind"] = json!(of.kind);
    body["apiVersion"] = json!(of.api_version());
    if !body["metadata"].is_object() {
        body["metadata"] = json!({});
    }
    Ok(())
}

fn fit_space(target: &Target, object: &mut Value) -> Result<(), Failure> {
    let space = namespace(object);
    if !space.is_empty() && space != target.space() {
        return Err(Failure::bad(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if target.of.namespaced {
        object["metadata"]["namespace"] = json!(target.space());
    } else {
        drop_field(&mut object["metadata"], "namespace");
    }
    Ok(())
}

/// Whether something new may come into the namespace.
fn open_space(state: &State, target: &Target, name: &str) -> Result<(), Failure> {
    let Some(space) = target.space.as_deref() else { return Ok(()) };
    let Some(found) = state.get("namespaces", "", space) else {
        return Err(Failure::new(404, "NotFound", format!("namespaces \"{space}\" not found"))
            .details(json!({"name": space, "kind": "namespaces"})));
    };
    if !leaving(&found) {
        return Ok(());
    }
    let mut refusal = Failure::forbidden(
        &target.of,
        name,
        format!("unable to create new content in namespace {space} because it is being terminated"),
    );
    if let Some(details) = &mut refusal.details {
        details["causes"] = json!([{"reason": "NamespaceTerminating",
            "message": format!("namespace {space} is being terminated"), "field": "metadata.namespace"}]);
    }
    Err(refusal)
}

/// POST. `manager` is given by an apply that makes the object.
pub(crate) fn create(
    state: &mut State,
    target: &Target,
    mut object: Value,
    ask: &Ask,
    applied: bool,
) -> Result<Written, Failure> {
    let of = &target.of;
    fit(of, &mut object)?;
    let managed = object["metadata"]["managedFields"].take();
    fit_space(target, &mut object)?;
    let unknown = unknown(of, &mut object, ask)?;
    open_space(state, target, name(&object))?;
    if !version(&object).is_empty() {
        return Err(Failure::internal("resourceVersion should not be set on objects to be created"));
    }
    let base = text(&object["metadata"]["generateName"]);
    if name(&object).is_empty() {
        if base.is_empty() {
            let cause = Cause::required("metadata.name", "name or generateName is required");
            return Err(Failure::invalid(of, "", &[cause]));
        }
        object["metadata"]["name"] = json!(format!("{base}{}", five()));
    }
    let store = of.store();
    if of.store() == "events" {
        event::to_core(of, &mut object);
    }
    let before = state.get(&store, target.space(), name(&object));
    kinds::admit(state, of, &mut object)?;
    let meta = map(&mut object["metadata"]);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        meta.remove(field);
    }
    meta.insert("uid".to_owned(), json!(new_uid()));
    meta.insert("creationTimestamp".to_owned(), json!(now()));
    meta.remove("generation");
    meta.remove("managedFields");
    if of.generation {
        meta.insert("generation".to_owned(), json!(1));
    }
    if of.has_status() {
        map(&mut object).remove("status");
    }
    let own = object.clone();
    kinds::defaults(of, &mut object, true);
    kinds::validate(of, &object, None, "")?;
    if let Some(before) = before {
        return Err(Failure::exists(of, name(&object), leaving(&before)));
    }
    kinds::quota::check(state, of, &object, None)?;
    if applied {
        object["metadata"]["managedFields"] = managed;
    } else {
        // What the server filled in is nobody's.
        let mut noted = own;
        managed::note(managed::schema(of), None, &mut noted, &ask.updater(of, ""));
        object["metadata"]["managedFields"] = noted["metadata"]["managedFields"].take();
        if object["metadata"]["managedFields"].is_null() {
            drop_field(&mut object["metadata"], "managedFields");
        }
    }
    if !ask.dry {
        object = Value::clone(&state.put(&store, object));
    }
    Ok(Written { object, created: true, unknown })
}

/// Whether the write is meant for the object as it is.
fn same_object(of: &Resource, old: &Value, new: &Value) -> Result<(), Failure> {
    let wanted = name(new);
    if wanted != name(old) {
        return Err(Failure::bad(format!(
            "the name of the object ({wanted}) does not match the name on the URL ({})",
            name(old),
        )));
    }
    if !uid(new).is_empty() && uid(new) != uid(old) {
        return Err(Failure::conflict(
            of,
            wanted,
            &format!(
                "StorageError: invalid object, Code: 4, Key: /registry/{}/{}/{wanted}, ResourceVersion: 0, \
                 AdditionalErrorMsg: Precondition failed: UID in precondition: {}, UID in object meta: {}",
                of.plural,
                namespace(old),
                uid(new),
                uid(old),
            ),
        ));
    }
    if !version(new).is_empty() && version(new) != version(old) {
        return Err(Failure::modified(of, wanted));
    }
    Ok(())
}

/// Writes `new` over `old`. `own_fields`: the managed fields are already in it.
pub(crate) fn replace(
    state: &mut State,
    target: &Target,
    old: &Arc<Value>,
    mut new: Value,
    ask: &Ask,
    own_fields: bool,
) -> Result<Written, Failure> {
    let of = &target.of;
    let sub = target.sub.as_str();
    if of.store() == "events" {
        event::to_core(of, &mut new);
    }
    let unknown = unknown(of, &mut new, ask)?;
    same_object(of, old, &new)?;
    let managed = new["metadata"]["managedFields"].take();
    if sub == "status" {
        let status = new["status"].take();
        new = Value::clone(old);
        if status.is_null() {
            map(&mut new).remove("status");
        } else {
            new["status"] = status;
        }
    } else if of.has_status() {
        match old.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => {
                map(&mut new).remove("status");
            }
        }
    }
    let meta = map(&mut new["metadata"]);
    meta.remove("managedFields");
    for field in [
        "uid",
        "creationTimestamp",
        "generation",
        "generateName",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
    ] {
        match old["metadata"].get(field) {
            Some(value) => meta.insert(field.to_owned(), value.clone()),
            None => meta.remove(field),
        };
    }
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        if meta.get(field).is_some_and(|it| {
            it.is_null()
                || it.as_object().is_some_and(serde_json::Map::is_empty)
                || it.as_array().is_some_and(Vec::is_empty)
        }) {
            meta.remove(field);
        }
    }
    kinds::defaults(of, &mut new, false);
    kinds::validate(of, &new, Some(old), sub)?;
    if of.store() == "persistentvolumeclaims" {
        kinds::may_grow(state, of, &new, old)?;
        kinds::quota::check(state, of, &new, Some(old))?;
    }
    if of.generation && new["spec"] != old["spec"] {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or_default();
        new["metadata"]["generation"] = json!(generation + 1);
    }
    if own_fields {
        new["metadata"]["managedFields"] = managed;
    } else {
        managed::note(managed::schema(of), Some(old), &mut new, &ask.updater(of, sub));
    }
    if new["metadata"]["managedFields"].is_null() {
        drop_field(&mut new["metadata"], "managedFields");
    }
    if timeless(&new) == timeless(old) {
        return Ok(Written { object: Value::clone(old), created: false, unknown });
    }
    if !ask.dry {
        let graceful = new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or_default();
        let last = leaving(&new)
            && list(&new["metadata"]["finalizers"]).is_empty()
            && !list(&old["metadata"]["finalizers"]).is_empty()
            && graceful == 0;
        if last {
            state.remove(&of.store(), namespace(&new), name(&new));
        } else {
            new = Value::clone(&state.put(&of.store(), new));
        }
    }
    Ok(Written { object: new, created: false, unknown })
}

/// An object without the times of its managed fields.
fn timeless(object: &Value) -> Value {
    let mut object = object.clone();
    for entry in
        object["metadata"].get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten()
    {
        drop_field(entry, "time");
    }
    object
}

/// PUT.
pub(crate) fn update(
    state: &mut State,
    target: &Target,
    mut new: Value,
    ask: &Ask,
) -> Result<Written, Failure> {
    let of = &target.of;
    fit(of, &mut new)?;
    fit_space(target, &mut new)?;
    if name(&new) != target.name {
        return Err(Failure::bad(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            name(&new),
            target.name,
        )));
    }
    let old = find(state, target)?;
    let needs = of.custom.is_some() || matches!(of.plural.as_str(), "leases" | "customresourcedefinitions");
    if needs && version(&new).is_empty() {
        let cause = Cause::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
        let full = of.full();
        return Err(Failure::invalid_as(&full, &of.group, &of.plural, &target.name, &[cause]));
    }
    replace(state, target, &old, new, ask, false)
}

/// The object of a path.
pub(crate) fn find(state: &State, target: &Target) -> Result<Arc<Value>, Failure> {
    state
        .get(&target.of.store(), target.space(), &target.name)
        .ok_or_else(|| Failure::not_found(&target.of, &target.name))
}

/// Server-side apply.
pub(crate) fn apply(
    state: &mut State,
    target: &Target,
    mut config: Value,
    ask: &Ask,
) -> Result<Written, Failure> {
    let of = &target.of;
    let api = text(&config["apiVersion"]).to_owned();
    let kind = text(&config["kind"]).to_owned();
    if api.is_empty() || kind.is_empty() {
        let group = api.split_once('/').map_or(String::new(), |it| it.0.to_owned());
        return Err(Failure::bad(format!("invalid object type: {group}/{api}, Kind={kind}")));
    }
    fit(of, &mut config)?;
    if config["metadata"].get("managedFields").is_some_and(|it| !it.is_null()) {
        return Err(Failure::bad("metadata.managedFields must be nil"));
    }
    if name(&config).is_empty() {
        config["metadata"]["name"] = json!(target.name);
    }
    if name(&config) != target.name {
        return Err(Failure::bad(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            name(&config),
            target.name,
        )));
    }
    let space = namespace(&config).to_owned();
    fit_space(target, &mut config)?;
    if of.custom.is_none()
        && let Some(field) = kinds::prune(of, &mut config)?.first()
    {
        return Err(Failure::internal(format!(
            "failed to create typed patch object ({space}/{}; {}, Kind={}): .{field}: field not declared in schema",
            target.name,
            if of.group.is_empty() { format!("/{}", of.version) } else { of.api_version() },
            of.kind,
        )));
    }
    if target.sub.is_empty() && of.has_status() {
        drop_field(&mut config, "status");
    }
    let manager = Manager {
        name: ask.manager.clone(),
        apply: true,
        api_version: of.api_version(),
        sub: target.sub.clone(),
    };
    let old = state.get(&of.store(), target.space(), &target.name);
    let Some(old) = old else {
        if !target.sub.is_empty() {
            return Err(Failure::not_found(of, &target.name));
        }
        if !version(&config).is_empty() {
            return Err(Failure::modified(of, &target.name));
        }
        let mut new = managed::apply(of, None, &config, &manager, ask.force)?;
        new["metadata"]["namespace"] = config["metadata"]["namespace"].clone();
        return create(state, target, new, ask, true);
    };
    if !version(&config).is_empty() && version(&config) != version(&old) {
        return Err(Failure::modified(of, &target.name));
    }
    let new = managed::apply(of, Some(&old), &config, &manager, ask.force)?;
    replace(state, target, &old, new, ask, true)
}
