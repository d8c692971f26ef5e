//! The built-in kinds as types: which fields there are, and of which type.

use k8s_openapi::api::{
    apps::v1 as apps, batch::v1 as batch, coordination::v1 as coordination, core::v1 as core,
    networking::v1 as networking, policy::v1 as policy, rbac::v1 as rbac, storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::resource::Resource;
use crate::status::Failure;
use crate::value::quantity;

/// Reads it as its type and writes it again.
fn through<T: Serialize + DeserializeOwned>(object: &Value) -> Result<Value, String> {
    let typed: T = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
    serde_json::to_value(typed).map_err(|error| error.to_string())
}

/// Removes the fields that the kind does not have; returns their names.
pub(crate) fn prune(of: &Resource, object: &mut Value) -> Result<Vec<String>, Failure> {
    let refused = |why: &str| {
        let kind = &of.kind;
        Failure::bad(format!("{kind} in version \"{}\" cannot be handled as a {kind}: {why}", of.version))
    };
    if of.group != "apiextensions.k8s.io" && !quantities(object, "") {
        return Err(refused(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ));
    }
    // These are written with microseconds.
    if of.kind == "Lease" {
        for field in ["acquireTime", "renewTime"] {
            let time = &object["spec"][field];
            if time.as_str().is_some_and(|time| !time.contains('.')) {
                return Err(refused(&format!("parsing time {time} as \"2006-01-02T15:04:05.000000Z07:00\"")));
            }
        }
    }
    let typed = match (of.group.as_str(), of.kind.as_str()) {
        ("", "Pod") => through::<core::Pod>(object),
        ("", "PersistentVolumeClaim") => through::<core::PersistentVolumeClaim>(object),
        ("", "ConfigMap") => through::<core::ConfigMap>(object),
        ("", "Secret") => through::<core::Secret>(object),
        ("", "Service") => through::<core::Service>(object),
        ("", "ServiceAccount") => through::<core::ServiceAccount>(object),
        ("", "Namespace") => through::<core::Namespace>(object),
        ("", "LimitRange") => through::<core::LimitRange>(object),
        ("", "ResourceQuota") => through::<core::ResourceQuota>(object),
        ("apps", "Deployment") => through::<apps::Deployment>(object),
        ("apps", "ReplicaSet") => through::<apps::ReplicaSet>(object),
        ("apps", "StatefulSet") => through::<apps::StatefulSet>(object),
        ("batch", "Job") => through::<batch::Job>(object),
        ("coordination.k8s.io", "Lease") => through::<coordination::Lease>(object),
        ("networking.k8s.io", "NetworkPolicy") => through::<networking::NetworkPolicy>(object),
        ("networking.k8s.io", "Ingress") => through::<networking::Ingress>(object),
        ("policy", "PodDisruptionBudget") => through::<policy::PodDisruptionBudget>(object),
        ("rbac.authorization.k8s.io", "Role") => through::<rbac::Role>(object),
        ("rbac.authorization.k8s.io", "RoleBinding") => through::<rbac::RoleBinding>(object),
        ("rbac.authorization.k8s.io", "ClusterRole") => through::<rbac::ClusterRole>(object),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => through::<rbac::ClusterRoleBinding>(object),
        ("storage.k8s.io", "StorageClass") => through::<storage::StorageClass>(object),
        ("apiextensions.k8s.io", _) => through::<CustomResourceDefinition>(object),
        _ => return Ok(Vec::new()),
    };
    let typed = typed.map_err(|error| refused(&format!("json: cannot unmarshal: {error}")))?;
    let mut gone = Vec::new();
    strip(object, &typed, "", &mut gone);
    Ok(gone)
}

/// Numbers become text where a quantity is meant; false if one is none.
fn quantities(value: &mut Value, field: &str) -> bool {
    let meant =
        matches!(field, "limits" | "requests" | "capacity" | "hard" | "defaultRequest" | "max" | "min");
    match value {
        Value::Object(map) => map.iter_mut().all(|(name, value)| {
            if meant && (value.is_number() || value.is_string()) {
                if value.is_number() {
                    *value = json!(value.to_string());
                }
                return quantity(value).is_some();
            }
            quantities(value, name)
        }),
        Value::Array(items) => items.iter_mut().all(|item| quantities(item, "")),
        _ => true,
    }
}

/// Removes from `object` what `typed` does not have.
fn strip(object: &mut Value, typed: &Value, at: &str, gone: &mut Vec<String>) {
    match (object, typed) {
        (Value::Object(object), Value::Object(typed)) => object.retain(|field, value| {
            let path = if at.is_empty() { field.clone() } else { format!("{at}.{field}") };
            match typed.get(field) {
                Some(typed) => {
                    strip(value, typed, &path, gone);
                    true
                }
                None if value.is_null() => false,
                // A status of a newer version is none of the writer's business.
                None if path.starts_with("status") || is_empty(value) => true,
                None => {
                    gone.push(path);
                    false
                }
            }
        }),
        (Value::Array(object), Value::Array(typed)) => {
            for (index, (value, typed)) in object.iter_mut().zip(typed).enumerate() {
                strip(value, typed, &format!("{at}[{index}]"), gone);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
