//! EndpointSlices: which pods a Service leads to.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{create, get, is_over, is_ready, owned, owned_by, revise};
use crate::Server;
use crate::select::has_all;
use crate::value::{drop_field, five, leaving, list, name, namespace, now, text, uid};

const SLICES: &str = "endpointslices.discovery.k8s.io";
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Brings the slices of a namespace in line with its pods.
pub(super) fn sync(server: &Arc<Server>, space: &str) {
    let services = server.store.read(|state| state.all("services", Some(space)));
    for service in services {
        let selects = service["spec"]["selector"].as_object().is_some_and(|it| !it.is_empty());
        if !selects {
            continue;
        }
        server.store.write(|state| {
            let Some(service) = get(state, "services", space, name(&service)) else { return };
            let mut pods = state.all("pods", Some(space));
            pods.retain(|it| {
                has_all(&it["metadata"]["labels"], &service["spec"]["selector"])
                    && it["status"]["podIP"].is_string()
                    && !is_over(it)
            });
            let endpoints: Vec<Value> = pods.iter().map(|it| endpoint(it)).collect();
            let (endpoints, ports) = match endpoints.as_slice() {
                [] => (Value::Null, Value::Null),
                _ => (json!(endpoints), ports(&service)),
            };
            let slice = owned(state, SLICES, &service).into_iter().next();
            let Some(slice) = slice else {
                let called = name(&service);
                let _ = create(
                    state,
                    SLICES,
                    json!({"metadata": {"name": format!("{called}-{}", five()),
                        "generateName": format!("{called}-"), "namespace": space,
                        "labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                            "kubernetes.io/service-name": called},
                        "annotations": {TRIGGER: now()},
                        "ownerReferences": owned_by(&service)},
                        "addressType": "IPv4", "endpoints": endpoints, "ports": ports}),
                );
                return;
            };
            if slice["endpoints"] == endpoints && slice["ports"] == ports {
                return;
            }
            // A pod that was only asked to go has nothing to tell the time of.
            let told = serving(&slice["endpoints"]) != serving(&endpoints);
            revise(state, SLICES, &slice, |slice| {
                slice["endpoints"] = endpoints;
                slice["ports"] = ports;
                let generation = slice["metadata"]["generation"].as_i64().unwrap_or_default();
                slice["metadata"]["generation"] = json!(generation + 1);
                if told {
                    slice["metadata"]["annotations"] = json!({TRIGGER: now()});
                } else {
                    drop_field(&mut slice["metadata"], "annotations");
                }
            });
        });
    }
}

fn endpoint(pod: &Value) -> Value {
    let ready = is_ready(pod);
    json!({"addresses": [text(&pod["status"]["podIP"])],
        "conditions": {"ready": ready && !leaving(pod), "serving": ready, "terminating": leaving(pod)},
        "targetRef": {"kind": "Pod", "namespace": namespace(pod), "name": name(pod), "uid": uid(pod)},
        "nodeName": pod["spec"]["nodeName"]})
}

/// Which pods there are, and which of them can be asked.
fn serving(endpoints: &Value) -> Vec<(&Value, &Value)> {
    list(endpoints).iter().map(|it| (&it["targetRef"]["uid"], &it["conditions"]["serving"])).collect()
}

fn ports(service: &Value) -> Value {
    list(&service["spec"]["ports"])
        .iter()
        .map(|it| {
            json!({"name": text(&it["name"]), "protocol": it["protocol"],
                "port": if it["targetPort"].is_u64() { &it["targetPort"] } else { &it["port"] }})
        })
        .collect()
}
