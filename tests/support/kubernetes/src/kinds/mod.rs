//! What is special to each kind: what is filled in, what is refused.

mod definition;
pub(crate) mod event;
pub(crate) mod pod;
pub(crate) mod quota;
mod schema;
pub(crate) mod typed;
mod workload;

use serde_json::{Value, json};

use crate::resource::Resource;
use crate::status::{Cause, Failure};
use crate::store::State;
use crate::value::{default, leaving, list, map, name, quantity, text};

/// Admission of a new object, before it is looked at: may change it.
pub(crate) fn admit(state: &State, of: &Resource, object: &mut Value) -> Result<(), Failure> {
    match of.store().as_str() {
        "pods" => pod::admit(state, of, object),
        "persistentvolumeclaims" => {
            if object["spec"].is_object() && object["spec"]["storageClassName"].is_null() {
                let class = state.all("storageclasses.storage.k8s.io", None).into_iter().find(|it| {
                    it["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
                });
                if let Some(class) = class {
                    object["spec"]["storageClassName"] = json!(name(&class));
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Fills in what is left out.
pub(crate) fn defaults(of: &Resource, object: &mut Value, new: bool) {
    if let Some(version) = of.custom.as_deref() {
        schema::default_all(object, &version["schema"]["openAPIV3Schema"]);
        return;
    }
    match of.store().as_str() {
        "pods" => {
            pod::defaults(object);
            if new {
                object["status"] = pod::first_status(object);
            }
        }
        "persistentvolumeclaims" => {
            if object["spec"].is_object() {
                default(&mut object["spec"], "volumeMode", json!("Filesystem"));
            }
            if new {
                map(&mut object["metadata"])
                    .entry("finalizers")
                    .or_insert_with(|| json!(["kubernetes.io/pvc-protection"]));
                object["status"] = json!({"phase": "Pending"});
            }
        }
        "namespaces" => {
            let name = name(object).to_owned();
            let labels = map(&mut object["metadata"]).entry("labels").or_insert_with(|| json!({}));
            labels["kubernetes.io/metadata.name"] = json!(name);
            if new {
                object["spec"] = json!({"finalizers": ["kubernetes"]});
                object["status"] = json!({"phase": "Active"});
            }
        }
        "deployments.apps" | "replicasets.apps" => workload::defaults(of, object, new),
        "services" => workload::service_defaults(object, new),
        "resourcequotas" if new => object["status"] = json!({}),
        "secrets" => {
            default(object, "type", json!("Opaque"));
            encode_secret(object);
        }
        "storageclasses.storage.k8s.io" => {
            default(object, "reclaimPolicy", json!("Delete"));
            default(object, "volumeBindingMode", json!("Immediate"));
        }
        "customresourcedefinitions.apiextensions.k8s.io" => definition::defaults(object, new),
        _ => {}
    }
}

/// `stringData` becomes `data`.
fn encode_secret(secret: &mut Value) {
    use base64::Engine as _;
    let Some(plain) = map(secret).remove("stringData") else { return };
    let data = map(secret).entry("data").or_insert_with(|| json!({}));
    for (key, value) in plain.as_object().into_iter().flatten() {
        data[key] = json!(base64::engine::general_purpose::STANDARD.encode(text(value)));
    }
}

/// What is wrong with an object; `old` if it is changed.
pub(crate) fn validate(of: &Resource, object: &Value, old: Option<&Value>, sub: &str) -> Result<(), Failure> {
    let mut causes = Vec::new();
    if let Some(old) = old {
        causes.extend(new_finalizers(old, object));
    }
    causes.extend(owner_errors(object));
    if let Some(version) = of.custom.as_deref() {
        causes.extend(subdomain_error(name(object)).filter(|_| old.is_none()));
        let schema = &version["schema"]["openAPIV3Schema"];
        causes.extend(schema::validate(object, old, schema));
    } else {
        match of.store().as_str() {
            "pods" => {
                causes.extend(pod::validate(object));
                if let Some(old) = old.filter(|_| sub.is_empty()) {
                    causes.extend(pod::validate_update(old, object));
                }
            }
            "persistentvolumeclaims" => causes.extend(claim_errors(object, old, sub)),
            "namespaces" => causes.extend(label_name_error(name(object))),
            "events" => causes.extend(event::validate(object)),
            "leases.coordination.k8s.io" => causes.extend(lease_errors(object)),
            "customresourcedefinitions.apiextensions.k8s.io" => {
                causes.extend(definition::validate(object));
            }
            kind => {
                if kind == "deployments.apps" {
                    causes.extend(workload::validate(object, old));
                }
                causes.extend(label_errors(object));
                causes.extend(subdomain_error(name(object)).filter(|_| !of.group.starts_with("rbac")));
            }
        }
    }
    if causes.is_empty() { Ok(()) } else { Err(Failure::invalid(of, name(object), &causes)) }
}

fn lease_errors(lease: &Value) -> Vec<Cause> {
    let seconds = &lease["spec"]["leaseDurationSeconds"];
    if seconds.as_i64().is_some_and(|it| it <= 0) {
        return vec![Cause::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0")];
    }
    Vec::new()
}

fn claim_errors(claim: &Value, old: Option<&Value>, sub: &str) -> Vec<Cause> {
    let mut causes: Vec<Cause> = label_errors(claim);
    let Some(old) = old else {
        causes.extend(subdomain_error(name(claim)));
        let spec = &claim["spec"];
        if list(&spec["accessModes"]).is_empty() {
            causes.push(Cause::required("spec.accessModes", "at least 1 access mode is required"));
        }
        if spec["resources"]["requests"]["storage"].is_null() {
            causes.push(Cause::required("spec.resources[storage]", ""));
        }
        return causes;
    };
    if !sub.is_empty() {
        return causes;
    }
    let mut same = claim["spec"].clone();
    let before = &old["spec"];
    let bound = old["status"]["phase"] == "Bound";
    let storage = |spec: &Value| spec["resources"]["requests"]["storage"].clone();
    if bound && storage(&same) != storage(before) {
        let capacity = quantity(&old["status"]["capacity"]["storage"]);
        if quantity(&storage(&same)).zip(capacity).is_some_and(|(wanted, is)| wanted < is) {
            causes.push(Cause::forbidden(
                "spec.resources.requests.storage",
                "field can not be less than status.capacity",
            ));
        }
        same["resources"] = before["resources"].clone();
    }
    // The binder writes this once.
    if before["volumeName"].is_null() {
        crate::value::drop_field(&mut same, "volumeName");
    }
    if same != *before {
        causes.push(Cause::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and \
             volumeAttributesClassName for bound claims\n@@ the difference is not shown @@\n",
        ));
    }
    causes
}

/// Admission of a larger claim: its storage class must allow it.
pub(crate) fn may_grow(state: &State, of: &Resource, claim: &Value, old: &Value) -> Result<(), Failure> {
    let size = |it: &Value| quantity(&it["spec"]["resources"]["requests"]["storage"]);
    if size(claim) <= size(old) {
        return Ok(());
    }
    let class = text(&claim["spec"]["storageClassName"]);
    let class = state.get("storageclasses.storage.k8s.io", "", class);
    if class.is_some_and(|it| it["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    Err(Failure::forbidden(
        of,
        name(claim),
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
         support resize",
    ))
}

fn new_finalizers(old: &Value, new: &Value) -> Option<Cause> {
    let had = list(&old["metadata"]["finalizers"]);
    let more: Vec<String> = list(&new["metadata"]["finalizers"])
        .iter()
        .filter(|it| !had.contains(it))
        .map(Value::to_string)
        .collect();
    (leaving(old) && !more.is_empty()).then(|| {
        Cause::forbidden(
            "metadata.finalizers",
            format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                more.join(", ")
            ),
        )
    })
}

fn owner_errors(object: &Value) -> Vec<Cause> {
    let owners = list(&object["metadata"]["ownerReferences"]);
    let mut causes = Vec::new();
    for owner in owners {
        if text(&owner["uid"]).is_empty() {
            let field = "metadata.ownerReferences.uid";
            causes.push(Cause::invalid(field, &owner["uid"], "must not be empty"));
        }
    }
    if owners.iter().filter(|it| it["controller"] == true).count() > 1 {
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            &object["metadata"]["ownerReferences"],
            "Only one reference can have Controller set to true",
        ));
    }
    causes
}

fn is_label(text: &str) -> bool {
    let ends = |it: Option<char>| it.is_some_and(|it| it.is_ascii_lowercase() || it.is_ascii_digit());
    text.len() <= 63
        && ends(text.chars().next())
        && ends(text.chars().last())
        && text.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-')
}

pub(crate) fn label_name_error(name: &str) -> Option<Cause> {
    (!is_label(name)).then(|| {
        Cause::invalid(
            "metadata.name",
            &json!(name),
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
             and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', \
             regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        )
    })
}

pub(crate) fn subdomain_error(name: &str) -> Option<Cause> {
    let fine = name.len() <= 253 && name.split('.').all(is_label);
    (!fine).then(|| {
        Cause::invalid(
            "metadata.name",
            &json!(name),
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
             '-' or '.', and must start and end with an alphanumeric character (e.g. \
             'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        )
    })
}

pub(crate) fn label_errors(object: &Value) -> Vec<Cause> {
    let fine = |text: &str| {
        let ends = |it: Option<char>| it.is_none_or(|it| it.is_ascii_alphanumeric());
        text.len() <= 63
            && ends(text.chars().next())
            && ends(text.chars().last())
            && text.chars().all(|it| it.is_ascii_alphanumeric() || "-_.".contains(it))
    };
    object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !fine(text(value)))
        .map(|(_, value)| {
            Cause::invalid(
                "metadata.labels",
                value,
                "a valid label must be an empty string or consist of alphanumeric characters, \
                 '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
                 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
                 '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            )
        })
        .collect()
}

/// Removes the fields that a kind does not have; returns their names. Wrong types are refused.
pub(crate) fn prune(of: &Resource, object: &mut Value) -> Result<Vec<String>, Failure> {
    match of.custom.as_deref() {
        Some(version) => Ok(schema::prune(object, &version["schema"]["openAPIV3Schema"])),
        None => typed::prune(of, object),
    }
}
