//! What a pod must keep to, whatever a template's patch says.
//!
//! The rule: a patch may add to a pod and change it, but for what makes it
//! Podyard's (name, namespace, owner, labels and annotations of `podyard.dev/`,
//! the program's container, its files and its mark), and it may not undo the
//! rules that keep the program from its node and from the cluster, unless
//! [`crate::Options::unsafe_patches`] allows that. These are the rules of the
//! Pod Security Standard "restricted", and no service account token. What a
//! pod may have is in [`crate::allowed`]; here is what it must have.

use serde_json::{Map, Value, json};

use crate::allowed::{self, Not};
use crate::names::{self, DOMAIN, MANAGED_BY};

/// The program's container.
pub(crate) const MAIN: &str = "main";
/// The volume with the space's files.
pub(crate) const FILES: &str = "files";

/// What must be equal before and after the patch.
const OWN: &[&str] = &[
    "/apiVersion",
    "/kind",
    "/metadata/name",
    "/metadata/namespace",
    "/metadata/generateName",
    "/metadata/ownerReferences",
    "/metadata/finalizers",
    "/metadata/uid",
    "/metadata/resourceVersion",
    "/status",
];

/// Says what a patch changed that it may not.
pub(crate) fn unchanged(before: &Value, after: &Value) -> Result<(), String> {
    if let Some(path) = OWN.iter().find(|path| before.pointer(path) != after.pointer(path)) {
        return Err(format!("{} cannot be patched", path[1..].replace('/', ".")));
    }
    for kind in ["labels", "annotations"] {
        let own = |pod: &Value| -> Map<String, Value> {
            let all = pod["metadata"][kind].as_object().cloned().unwrap_or_default();
            all.into_iter().filter(|(key, _)| key.starts_with(DOMAIN) || key == MANAGED_BY).collect()
        };
        if own(before) != own(after) {
            return Err(format!(
                "metadata.{kind}: what begins with {DOMAIN} cannot be patched, nor {MANAGED_BY}"
            ));
        }
    }
    let named = |pod: &Value, list: &str, name: &str| {
        pod["spec"][list].as_array().and_then(|it| it.iter().find(|it| it["name"] == name).cloned())
    };
    if named(before, "volumes", FILES) != named(after, "volumes", FILES) {
        return Err(format!("spec.volumes: {FILES:?}, the space's files, cannot be patched"));
    }
    let main = named(after, "containers", MAIN);
    let Some(main) = main else { return Err(format!("spec.containers: {MAIN:?} cannot be removed")) };
    let before = named(before, "containers", MAIN).unwrap_or_default();
    let ours = |container: &Value| -> Vec<Value> {
        let of = |list: &str| container[list].as_array().cloned().unwrap_or_default();
        let env = of("env")
            .into_iter()
            .filter(|it| it["name"].as_str().is_some_and(|it| it.starts_with("PODYARD_")));
        let mounts = of("volumeMounts").into_iter().filter(|it| it["name"] == FILES);
        let mut all: Vec<Value> = env.chain(mounts).collect();
        all.sort_by_key(Value::to_string);
        all
    };
    if ours(&before) != ours(&main) {
        return Err(format!(
            "spec.containers[{MAIN}]: the mount of {FILES:?} and variables that begin PODYARD_ cannot be patched"
        ));
    }
    Ok(())
}

/// Gives every container the rules that it does not set itself.
pub(crate) fn secure(pod: &mut Value) {
    for list in ["containers", "initContainers"] {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let context = container.entry("securityContext").or_insert_with(|| json!({}));
            let Some(context) = context.as_object_mut() else { continue };
            context.entry("allowPrivilegeEscalation").or_insert(json!(false));
            let capabilities = context.entry("capabilities").or_insert_with(|| json!({}));
            if let Some(capabilities) = capabilities.as_object_mut() {
                capabilities.entry("drop").or_insert(json!(["ALL"]));
            }
        }
    }
}

/// Says which rule a pod breaks.
pub(crate) fn check(pod: &Value) -> Result<(), String> {
    allowed::check(pod).map_err(|not| match not {
        Not::Safe(path) => refused(&path),
        Not::Known(path) => format!(
            "{path} is not among what is known to keep a program from its node; the configuration does not allow \
             others"
        ),
    })?;
    let spec = &pod["spec"];
    for (path, wanted) in [
        ("automountServiceAccountToken", json!(false)),
        ("securityContext.runAsNonRoot", json!(true)),
        // What it is, was looked at above.
        ("securityContext.seccompProfile.type", Value::Null),
    ] {
        let is = path.split('.').fold(spec, |at, name| &at[name]);
        if is.is_null() || !(wanted.is_null() || *is == wanted) {
            return Err(refused(&format!("spec.{path}")));
        }
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let claim = volume["persistentVolumeClaim"]["claimName"].as_str();
        if volume["name"] != FILES && claim.is_some_and(|it| it.starts_with(names::SPACES)) {
            let path = format!("spec.volumes[{}].persistentVolumeClaim.claimName", text(&volume["name"]));
            return Err(format!("{path}: the files of spaces belong to them alone"));
        }
    }
    for list in ["containers", "initContainers"] {
        for one in spec[list].as_array().into_iter().flatten() {
            let context = &one["securityContext"];
            let wrong = |member: &str| {
                Err(refused(&format!("spec.{list}[{}].securityContext.{member}", text(&one["name"]))))
            };
            if context["allowPrivilegeEscalation"] != false {
                return wrong("allowPrivilegeEscalation");
            }
            let drop = context["capabilities"]["drop"].as_array();
            if !drop.is_some_and(|it| it.iter().any(|it| it == "ALL")) {
                return wrong("capabilities.drop");
            }
        }
    }
    Ok(())
}

fn refused(path: &str) -> String {
    format!("{path} would undo what keeps a program from its node; the configuration does not allow that")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
