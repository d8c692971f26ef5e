//! What a pod must keep to, whatever a template's patch says.
//!
//! The rule: a patch may add to a pod and change it, but for what makes it
//! Podyard's (name, namespace, owner, labels and annotations of `podyard.dev/`,
//! the program's container, its files and its mark), and it may not undo the
//! rules that keep the program from its node and from the cluster, unless
//! [`crate::Options::unsafe_patches`] allows that. These are the rules of the
//! Pod Security Standard "restricted", and no service account token.

use serde_json::{Map, Value, json};

use crate::names::{DOMAIN, MANAGED_BY};

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

/// The volumes that are no way out of the pod.
const VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
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
    let spec = &pod["spec"];
    for host in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[host] == true {
            return Err(refused(&format!("spec.{host}")));
        }
    }
    if spec["automountServiceAccountToken"] != false {
        return Err(refused("spec.automountServiceAccountToken"));
    }
    for name in ["serviceAccountName", "serviceAccount", "nodeName", "ephemeralContainers"] {
        if spec.get(name).is_some() {
            return Err(refused(&format!("spec.{name}")));
        }
    }
    context(&spec["securityContext"], "spec.securityContext")?;
    if spec["securityContext"]["runAsNonRoot"] != true {
        return Err(refused("spec.securityContext.runAsNonRoot"));
    }
    if !is_profile(&spec["securityContext"]["seccompProfile"]) {
        return Err(refused("spec.securityContext.seccompProfile"));
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let kinds = volume.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        if let Some(kind) = kinds.filter(|it| *it != "name").find(|it| !VOLUMES.contains(it)) {
            return Err(refused(&format!("spec.volumes[{}].{kind}", text(&volume["name"]))));
        }
        let sources = volume["projected"]["sources"].as_array();
        if sources.into_iter().flatten().any(|it| it.get("serviceAccountToken").is_some()) {
            return Err(refused(&format!("spec.volumes[{}].projected", text(&volume["name"]))));
        }
    }
    for list in ["containers", "initContainers"] {
        for one in spec[list].as_array().into_iter().flatten() {
            container(one, &format!("spec.{list}[{}]", text(&one["name"])))?;
        }
    }
    Ok(())
}

fn container(container: &Value, at: &str) -> Result<(), String> {
    let own = &container["securityContext"];
    let path = format!("{at}.securityContext");
    context(own, &path)?;
    if own["privileged"] == true {
        return Err(refused(&format!("{path}.privileged")));
    }
    if own["allowPrivilegeEscalation"] != false {
        return Err(refused(&format!("{path}.allowPrivilegeEscalation")));
    }
    let drops = own["capabilities"]["drop"].as_array().is_some_and(|it| it.iter().any(|it| it == "ALL"));
    let adds = own["capabilities"]["add"].as_array().map_or(&[][..], Vec::as_slice);
    if !drops || adds.iter().any(|it| it != "NET_BIND_SERVICE") {
        return Err(refused(&format!("{path}.capabilities")));
    }
    if own.get("procMount").is_some_and(|it| it != "Default") {
        return Err(refused(&format!("{path}.procMount")));
    }
    if container["ports"].as_array().into_iter().flatten().any(|it| it.get("hostPort").is_some()) {
        return Err(refused(&format!("{at}.ports.hostPort")));
    }
    Ok(())
}

/// What the pod's and a container's context have in common.
fn context(context: &Value, at: &str) -> Result<(), String> {
    let wrong = |name: &str| Err(refused(&format!("{at}.{name}")));
    if context["runAsNonRoot"] == false {
        return wrong("runAsNonRoot");
    }
    if context["runAsUser"] == 0 {
        return wrong("runAsUser");
    }
    if context.get("seccompProfile").is_some_and(|it| !is_profile(it)) {
        return wrong("seccompProfile");
    }
    if context.get("sysctls").is_some_and(|it| !it.is_null()) {
        return wrong("sysctls");
    }
    Ok(())
}

fn is_profile(profile: &Value) -> bool {
    profile["type"] == "RuntimeDefault" || profile["type"] == "Localhost"
}

fn refused(path: &str) -> String {
    format!("{path} would undo what keeps a program from its node; the configuration does not allow that")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
