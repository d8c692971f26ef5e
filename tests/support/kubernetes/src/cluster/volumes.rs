//! Claims: bound to volumes that a provisioner makes, grown, and kept while pods use them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::note::{From, Note, note};
use super::{collector, rewrite};
use crate::Server;
use crate::store::Change;
use crate::value::{leaving, list, map, name, namespace, new_uid, now, quantity, text, uid};

const CLAIMS: &str = "persistentvolumeclaims";
const PROVISIONER: &str = "local.test/dir";
const NODE: &str = "volume.kubernetes.io/selected-node";

pub(crate) fn act(server: &Arc<Server>, change: &Change) {
    match (&change.old, &change.new) {
        (None, Some(claim)) => begin(server, claim),
        (Some(old), Some(claim)) => {
            let node = |it: &Value| it["metadata"]["annotations"].get(NODE).is_some();
            if node(claim) && !node(old) {
                tokio::spawn(provision(server.clone(), claim.clone()));
            }
            let size = |it: &Value| it["spec"]["resources"]["requests"]["storage"].clone();
            if size(old) != size(claim) && claim["status"]["phase"] == "Bound" {
                tokio::spawn(grow(server.clone(), claim.clone()));
            }
            if leaving(claim) {
                protect(server, claim);
            }
        }
        (Some(old), None) => {
            let volume = text(&old["spec"]["volumeName"]).to_owned();
            if !volume.is_empty() {
                server.store.write(|state| state.remove("persistentvolumes", "", &volume));
            }
        }
        (None, None) => {}
    }
}

/// Claims that leave may go once a pod has gone.
pub(crate) fn look_again(server: &Server) {
    let claims = server.store.read(|state| state.all(CLAIMS, None));
    for claim in claims.iter().filter(|it| leaving(it)) {
        protect(server, claim);
    }
}

fn protect(server: &Server, claim: &Value) {
    server.store.write(|state| {
        let used = state
            .all("pods", Some(namespace(claim)))
            .iter()
            .any(|pod| !text(&pod["spec"]["nodeName"]).is_empty() && claims(pod).contains(&name(claim)));
        if !used {
            collector::release(state, CLAIMS, claim, "kubernetes.io/pvc-protection");
        }
    });
}

/// The names of the claims that a pod uses.
pub(crate) fn claims(pod: &Value) -> Vec<&str> {
    list(&pod["spec"]["volumes"])
        .iter()
        .filter_map(|it| it["persistentVolumeClaim"]["claimName"].as_str())
        .collect()
}

fn class(server: &Server, claim: &Value) -> Option<Arc<Value>> {
    let class = text(&claim["spec"]["storageClassName"]).to_owned();
    server.store.read(|state| state.get("storageclasses.storage.k8s.io", "", &class))
}

/// Whether a claim waits for a pod.
pub(crate) fn waits(server: &Server, claim: &Value) -> bool {
    class(server, claim).is_some_and(|it| it["volumeBindingMode"] == "WaitForFirstConsumer")
}

fn begin(server: &Arc<Server>, claim: &Arc<Value>) {
    let Some(class) = class(server, claim) else {
        let named = text(&claim["spec"]["storageClassName"]).to_owned();
        let message = format!("storageclass.storage.k8s.io \"{named}\" not found");
        let note_of = move |server: &Server, claim: &Value| {
            note(
                server,
                claim,
                &Note {
                    from: From::Volumes,
                    warning: true,
                    reason: "ProvisioningFailed",
                    message: &message,
                    container: None,
                },
            );
        };
        note_of(server, claim);
        // Again and again, and the class may come.
        let (server, claim) = (server.clone(), claim.clone());
        tokio::spawn(async move {
            loop {
                server.cluster.sleep(15_000).await;
                let there = server.store.read(|state| {
                    state.get(CLAIMS, namespace(&claim), name(&claim)).filter(|it| uid(it) == uid(&claim))
                });
                match there {
                    None => return,
                    Some(_) if self::class(&server, &claim).is_some() => {
                        return provision(server.clone(), claim).await;
                    }
                    Some(_) => note_of(&server, &claim),
                }
            }
        });
        return;
    };
    if class["volumeBindingMode"] == "WaitForFirstConsumer" {
        note(
            server,
            claim,
            &Note {
                from: From::Volumes,
                warning: false,
                reason: "WaitForFirstConsumer",
                message: "waiting for first consumer to be created before binding",
                container: None,
            },
        );
        return;
    }
    tokio::spawn(provision(server.clone(), claim.clone()));
}

async fn provision(server: Arc<Server>, claim: Arc<Value>) {
    server.cluster.sleep(20).await;
    let marked = rewrite(&server, CLAIMS, &claim, |claim| {
        let annotations = map(&mut claim["metadata"]).entry("annotations").or_insert(json!({}));
        annotations["volume.beta.kubernetes.io/storage-provisioner"] = json!(PROVISIONER);
        annotations["volume.kubernetes.io/storage-provisioner"] = json!(PROVISIONER);
    });
    let Some(marked) = marked else { return };
    note(
        &server,
        &marked,
        &Note {
            from: From::Volumes,
            warning: false,
            reason: "ExternalProvisioning",
            message: "Waiting for a volume to be created either by the external provisioner 'local.test/dir' \
                  or manually by the system administrator. If volume creation is delayed, please verify \
                  that the provisioner is running and correctly registered.",
            container: None,
        },
    );
    // A class whose provisioner does nothing is how a volume that never comes is tried.
    if class(&server, &claim).is_some_and(|it| it["provisioner"] != PROVISIONER) {
        return;
    }
    server.cluster.sleep(300).await;
    let volume = format!("pvc-{}", uid(&claim));
    let size = claim["spec"]["resources"]["requests"]["storage"].clone();
    let there = server.store.write(|state| {
        let is = state.get(CLAIMS, namespace(&claim), name(&claim)).filter(|it| uid(it) == uid(&claim))?;
        state.put(
            "persistentvolumes",
            json!({"kind": "PersistentVolume", "apiVersion": "v1",
            "metadata": {"name": volume, "uid": new_uid(), "creationTimestamp": now(),
                "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
                "finalizers": ["kubernetes.io/pv-protection"]},
            "spec": {"capacity": {"storage": size}, "accessModes": is["spec"]["accessModes"],
                "local": {"path": format!("/srv/volumes/{volume}")},
                "claimRef": {"kind": "PersistentVolumeClaim", "namespace": namespace(&is),
                    "name": name(&is), "uid": uid(&is), "apiVersion": "v1"},
                "persistentVolumeReclaimPolicy": "Delete",
                "storageClassName": is["spec"]["storageClassName"], "volumeMode": "Filesystem"},
            "status": {"phase": "Bound", "lastPhaseTransitionTime": now()}}),
        );
        Some(())
    });
    if there.is_none() {
        return;
    }
    rewrite(&server, CLAIMS, &claim, |claim| {
        let annotations = map(&mut claim["metadata"]).entry("annotations").or_insert(json!({}));
        annotations["pv.kubernetes.io/bind-completed"] = json!("yes");
        annotations["pv.kubernetes.io/bound-by-controller"] = json!("yes");
        claim["spec"]["volumeName"] = json!(volume);
    });
    server.cluster.sleep(30).await;
    rewrite(&server, CLAIMS, &claim, |claim| {
        claim["status"] = json!({"phase": "Bound", "accessModes": claim["spec"]["accessModes"],
            "capacity": {"storage": size}});
    });
}

/// A claim that wants more is told so, and has it a moment later.
async fn grow(server: Arc<Server>, claim: Arc<Value>) {
    note(
        &server,
        &claim,
        &Note {
            from: From::Growth,
            warning: false,
            reason: "ExternalExpanding",
            message: "waiting for an external controller to expand this PVC",
            container: None,
        },
    );
    server.cluster.sleep(1000).await;
    let size = claim["spec"]["resources"]["requests"]["storage"].clone();
    rewrite(&server, CLAIMS, &claim, |claim| {
        let has = quantity(&claim["status"]["capacity"]["storage"]);
        if has < quantity(&size) {
            claim["status"]["capacity"]["storage"] = size;
        }
    });
}
