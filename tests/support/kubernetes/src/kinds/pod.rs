//! Pods: what the server fills in, and what it refuses.

use serde_json::{Value, json};

use super::{label_errors, subdomain_error};
use crate::resource::Resource;
use crate::status::{Cause, Failure};
use crate::store::State;
use crate::value::{default, five, list, map, name, namespace, quantity, text};

/// What admission does before the pod is looked at.
pub(crate) fn admit(state: &State, of: &Resource, pod: &mut Value) -> Result<(), Failure> {
    if !pod["spec"].is_object() {
        return Ok(());
    }
    let space = namespace(pod).to_owned();
    let account = match text(&pod["spec"]["serviceAccountName"]) {
        "" => "default".to_owned(),
        account => account.to_owned(),
    };
    if state.get("serviceaccounts", &space, &account).is_none() {
        return Err(Failure::forbidden(
            of,
            name(pod),
            format!(
                "error looking up service account {space}/{account}: serviceaccount \"{account}\" not found"
            ),
        ));
    }
    let class = text(&pod["spec"]["priorityClassName"]);
    if !class.is_empty() && state.get("priorityclasses.scheduling.k8s.io", "", class).is_none() {
        let why = format!("no PriorityClass with name {class} was found");
        return Err(Failure::forbidden(of, name(pod), why));
    }
    pod["spec"]["serviceAccountName"] = json!(account);
    pod["spec"]["serviceAccount"] = json!(account);
    super::quota::limits(state, of, pod)?;
    if pod["spec"]["automountServiceAccountToken"] != false {
        token_volume(pod);
    }
    Ok(())
}

/// The volume with the service account's token, in every container.
fn token_volume(pod: &mut Value) {
    let path = "/var/run/secrets/kubernetes.io/serviceaccount";
    let spec = map(&mut pod["spec"]);
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if list(volumes).iter().any(|it| text(&it["name"]).starts_with("kube-api-access-")) {
        return;
    }
    let name = format!("kube-api-access-{}", five());
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({"name": name, "projected": {"sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace",
                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ], "defaultMode": 420}}));
    }
    for kind in ["containers", "initContainers"] {
        for container in spec.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounts = map(container).entry("volumeMounts").or_insert_with(|| json!([]));
            if let Some(mounts) = mounts.as_array_mut() {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": path}));
            }
        }
    }
}

/// Fills in what is left out.
pub(crate) fn defaults(pod: &mut Value) {
    if !pod["spec"].is_object() {
        return;
    }
    let spec = &mut pod["spec"];
    template_defaults(spec);
    let values = [
        ("priority", json!(0)),
        ("enableServiceLinks", json!(true)),
        ("preemptionPolicy", json!("PreemptLowerPriority")),
    ];
    for (field, value) in values {
        default(spec, field, value);
    }
    default(spec, "tolerations", json!([]));
    if let Some(tolerations) = spec["tolerations"].as_array_mut() {
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            let there = tolerations
                .iter()
                .any(|it| it["key"] == key || (it.get("key").is_none() && it["operator"] == "Exists"));
            if !there {
                tolerations.push(json!({"key": key, "operator": "Exists",
                    "effect": "NoExecute", "tolerationSeconds": 300}));
            }
        }
    }
}

/// What is filled in already where a pod is only a template.
pub(super) fn template_defaults(spec: &mut Value) {
    let values = [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("securityContext", json!({})),
        ("schedulerName", json!("default-scheduler")),
    ];
    for (field, value) in values {
        default(spec, field, value);
    }
    for kind in ["containers", "initContainers"] {
        for container in spec.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
            container_defaults(container);
        }
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        for kind in ["secret", "configMap", "projected", "downwardAPI"] {
            if volume[kind].is_object() {
                default(&mut volume[kind], "defaultMode", json!(420));
            }
        }
    }
}

fn container_defaults(container: &mut Value) {
    let image = text(&container["image"]);
    let tag = image.rsplit('/').next().unwrap_or_default().split_once(':').map(|it| it.1);
    let pull =
        if tag.is_none_or(|it| it == "latest") && !image.contains('@') { "Always" } else { "IfNotPresent" };
    default(container, "imagePullPolicy", json!(pull));
    default(container, "terminationMessagePath", json!("/dev/termination-log"));
    default(container, "terminationMessagePolicy", json!("File"));
    default(container, "resources", json!({}));
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        default(port, "protocol", json!("TCP"));
    }
    for env in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if env["valueFrom"]["fieldRef"].is_object() {
            default(&mut env["valueFrom"]["fieldRef"], "apiVersion", json!("v1"));
        }
    }
    for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe) {
            for (field, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                default(probe, field, json!(value));
            }
            if probe["httpGet"].is_object() {
                default(&mut probe["httpGet"], "scheme", json!("HTTP"));
                default(&mut probe["httpGet"], "path", json!("/"));
            }
        }
    }
    // Limits are requests where none is named.
    let limits = container["resources"]["limits"].clone();
    for (what, limit) in limits.as_object().into_iter().flatten() {
        let requests = map(&mut container["resources"]).entry("requests").or_insert_with(|| json!({}));
        default(requests, what, limit.clone());
    }
}

/// The status of a pod that was just made.
pub(crate) fn first_status(pod: &Value) -> Value {
    json!({"phase": "Pending", "qosClass": class_of(pod)})
}

fn class_of(pod: &Value) -> &'static str {
    let containers = || list(&pod["spec"]["containers"]).iter();
    let resources = |it: &Value, kind: &str| it["resources"][kind].clone();
    if containers().all(|it| {
        let none = |kind| resources(it, kind).as_object().is_none_or(serde_json::Map::is_empty);
        none("limits") && none("requests")
    }) {
        return "BestEffort";
    }
    let sure = |it: &Value| {
        ["cpu", "memory"].iter().all(|what| {
            let (limit, request) = (&it["resources"]["limits"][what], &it["resources"]["requests"][what]);
            !limit.is_null() && limit == request
        })
    };
    if containers().all(sure) { "Guaranteed" } else { "Burstable" }
}

/// What is wrong with a pod.
pub(crate) fn validate(pod: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    causes.extend(subdomain_error(name(pod)));
    causes.extend(label_errors(pod));
    let spec = &pod["spec"];
    if list(&spec["containers"]).is_empty() {
        causes.push(Cause::required("spec.containers", ""));
        return causes;
    }
    let volumes: Vec<&str> = list(&spec["volumes"]).iter().map(|it| text(&it["name"])).collect();
    let mut names: Vec<&str> = Vec::new();
    for kind in ["containers", "initContainers"] {
        for (at, container) in list(&spec[kind]).iter().enumerate() {
            let at = format!("spec.{kind}[{at}]");
            let name = text(&container["name"]);
            if name.is_empty() {
                causes.push(Cause::required(format!("{at}.name"), ""));
            } else if names.contains(&name) {
                causes.push(Cause::duplicate(format!("{at}.name"), &json!(name)));
            }
            names.push(name);
            let image = text(&container["image"]);
            if image.is_empty() {
                causes.push(Cause::required(format!("{at}.image"), ""));
            }
            for (index, mount) in list(&container["volumeMounts"]).iter().enumerate() {
                if !volumes.contains(&text(&mount["name"])) {
                    let field = format!("{at}.volumeMounts[{index}].name");
                    causes.push(Cause::not_found(field, &mount["name"]));
                }
            }
            for (what, request) in container["resources"]["requests"].as_object().into_iter().flatten() {
                let limit = &container["resources"]["limits"][what];
                if quantity(limit).zip(quantity(request)).is_some_and(|(limit, it)| it > limit) {
                    causes.push(Cause::invalid(
                        format!("{at}.resources.requests"),
                        request,
                        format!("must be less than or equal to {what} limit of {}", text(limit)),
                    ));
                }
            }
        }
    }
    let policy = &spec["restartPolicy"];
    if !matches!(text(policy), "Always" | "OnFailure" | "Never") {
        let known = ["Always", "OnFailure", "Never"];
        causes.push(Cause::unsupported("spec.restartPolicy", policy, &known));
    }
    causes
}

/// The few changes that a pod's spec allows.
pub(crate) fn validate_update(old: &Value, new: &Value) -> Vec<Cause> {
    let mut allowed = new["spec"].clone();
    let before = &old["spec"];
    for kind in ["containers", "initContainers"] {
        let images: Vec<Value> = list(&before[kind]).iter().map(|it| it["image"].clone()).collect();
        let containers = allowed.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, image) in containers.zip(images) {
            container["image"] = image;
        }
    }
    let kept = list(&before["tolerations"]).iter().all(|it| list(&new["spec"]["tolerations"]).contains(it));
    let copied = ["activeDeadlineSeconds", if kept { "tolerations" } else { "" }];
    for field in copied {
        match before.get(field) {
            Some(value) => allowed[field] = value.clone(),
            None => crate::value::drop_field(&mut allowed, field),
        }
    }
    if allowed == *before {
        return Vec::new();
    }
    vec![Cause::forbidden(
        "spec",
        "pod updates may not change fields other than `spec.containers[*].image`,\
         `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` \
         (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` \
         (allow it to be set to 1 if it was previously negative)\n@@ the difference is not shown @@\n",
    )]
}
