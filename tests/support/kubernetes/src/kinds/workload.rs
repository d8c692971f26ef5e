//! Deployments, ReplicaSets and Services: what the server fills in and refuses.

use serde_json::{Value, json};

use super::pod;
use crate::resource::Resource;
use crate::select::has_all;
use crate::status::Cause;
use crate::value::default;

pub(super) fn defaults(of: &Resource, object: &mut Value, new: bool) {
    let spec = &mut object["spec"];
    if !spec.is_object() {
        return;
    }
    default(spec, "replicas", json!(1));
    if spec["template"]["spec"].is_object() {
        pod::template_defaults(&mut spec["template"]["spec"]);
    }
    if of.kind == "Deployment" {
        default(spec, "strategy", json!({}));
        let strategy = &mut spec["strategy"];
        default(strategy, "type", json!("RollingUpdate"));
        if strategy["type"] == "RollingUpdate" {
            default(strategy, "rollingUpdate", json!({}));
            default(&mut strategy["rollingUpdate"], "maxUnavailable", json!("25%"));
            default(&mut strategy["rollingUpdate"], "maxSurge", json!("25%"));
        }
        default(spec, "revisionHistoryLimit", json!(10));
        default(spec, "progressDeadlineSeconds", json!(600));
    }
    if new {
        object["status"] = if of.kind == "Deployment" { json!({}) } else { json!({"replicas": 0}) };
    }
}

pub(super) fn service_defaults(service: &mut Value, new: bool) {
    let spec = &mut service["spec"];
    if !spec.is_object() {
        return;
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        default(port, "protocol", json!("TCP"));
        let target = port["port"].clone();
        default(port, "targetPort", target);
    }
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    if spec["type"] != "ExternalName" {
        if new && spec["clusterIP"].is_null() {
            let part = || rand::random_range(1..255_u8);
            spec["clusterIP"] = json!(format!("10.96.{}.{}", part(), part()));
        }
        let address = spec["clusterIP"].clone();
        if !address.is_null() {
            default(spec, "clusterIPs", json!([address]));
        }
        default(spec, "ipFamilies", json!(["IPv4"]));
        default(spec, "ipFamilyPolicy", json!("SingleStack"));
        default(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    if new {
        service["status"] = json!({"loadBalancer": {}});
    }
}

/// What is wrong with a Deployment.
pub(super) fn validate(of: &Value, old: Option<&Value>) -> Vec<Cause> {
    let (spec, mut causes) = (&of["spec"], Vec::new());
    let labels = &spec["template"]["metadata"]["labels"];
    if !has_all(labels, &spec["selector"]["matchLabels"]) {
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", labels, why));
    }
    if old.is_some_and(|it| it["spec"]["selector"] != spec["selector"]) {
        causes.push(Cause::invalid("spec.selector", &spec["selector"], "field is immutable"));
    }
    causes
}
