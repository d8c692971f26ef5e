use podyard_driver::Repository;
use serde_json::{Value, json};

use crate::Options;
use crate::pod::pod;
use crate::pod::tests::{run, with};

fn patched(patch: &Value, options: &Options) -> Result<Value, String> {
    let launch = with(|it| {
        it.repository = Some(Repository { url: "https://example.org/a.git".into(), branch: String::new() });
        it.patch = Some(patch.clone());
    });
    pod(&launch, options, &run(), None, None).map_err(|error| error.to_string())
}

fn free() -> Options {
    Options { unsafe_patches: true, ..Options::default() }
}

#[test]
fn what_is_podyards_own() {
    let own = [
        (json!({ "kind": "Job" }), "kind cannot"),
        (json!({ "metadata": { "name": "x" } }), "metadata.name cannot"),
        (json!({ "metadata": { "namespace": "x" } }), "metadata.namespace cannot"),
        (json!({ "metadata": { "labels": { "podyard.dev/space": "s2" } } }), "metadata.labels"),
        (json!({ "metadata": { "labels": { "app.kubernetes.io/managed-by": null } } }), "metadata.labels"),
        (json!({ "metadata": { "annotations": { "podyard.dev/instance": null } } }), "metadata.annotations"),
        (json!({ "metadata": { "ownerReferences": [] } }), "metadata.ownerReferences"),
        (json!({ "status": {} }), "status cannot"),
        (json!({ "spec": { "$patch": "delete" } }), "spec.volumes"),
        (
            json!({ "spec": { "containers": [{ "name": "main", "$patch": "delete" }] } }),
            "\"main\" cannot be removed",
        ),
        (
            json!({ "spec": { "volumes": [{ "name": "files", "persistentVolumeClaim": { "claimName": "x" } }] } }),
            "spec.volumes",
        ),
        (
            json!({ "spec": { "containers": [{ "name": "main", "env": [
                { "name": "PODYARD_SPACE_SECRET", "value": "x" }] }] } }),
            "begin PODYARD_",
        ),
    ];
    for (patch, text) in &own {
        for options in [Options::default(), free()] {
            let error = patched(patch, &options).expect_err(text);
            assert!(error.contains(text), "{patch}: {error}");
        }
    }
}

/// Each is refused with the path of what is wrong, and allowed where all is.
fn refused(cases: impl IntoIterator<Item = (Value, &'static str)>) {
    for (patch, path) in cases {
        let error = patched(&patch, &Options::default()).expect_err(path);
        assert!(error.contains(&format!("patch: {path}")), "{patch}: {path} is not in: {error}");
        let next = error.split_once(path).map(|it| it.1.chars().next());
        assert!(matches!(next, Some(Some(' ' | ':'))), "{patch}: {path} is not all of: {error}");
        assert!(patched(&patch, &free()).is_ok(), "{patch}");
    }
}

#[test]
fn what_a_pod_may_not_have() {
    refused([
        (json!({ "spec": { "hostNetwork": true } }), "spec.hostNetwork"),
        (json!({ "spec": { "hostPID": true } }), "spec.hostPID"),
        (json!({ "spec": { "hostIPC": true } }), "spec.hostIPC"),
        (json!({ "spec": { "automountServiceAccountToken": true } }), "spec.automountServiceAccountToken"),
        (json!({ "spec": { "automountServiceAccountToken": null } }), "spec.automountServiceAccountToken"),
        (json!({ "spec": { "serviceAccountName": "admin" } }), "spec.serviceAccountName"),
        (json!({ "spec": { "serviceAccount": "admin" } }), "spec.serviceAccount"),
        (json!({ "spec": { "nodeName": "n" } }), "spec.nodeName"),
        (json!({ "spec": { "priorityClassName": "system-node-critical" } }), "spec.priorityClassName"),
        (json!({ "spec": { "priority": 2_000_000_000 } }), "spec.priority"),
        (json!({ "spec": { "shareProcessNamespace": true } }), "spec.shareProcessNamespace"),
        (
            json!({ "spec": { "ephemeralContainers": [{ "name": "e", "image": "e" }] } }),
            "spec.ephemeralContainers",
        ),
        (json!({ "spec": { "os": { "name": "windows" } } }), "spec.os.name"),
        // What no release has yet, and what is not what it should be.
        (json!({ "spec": { "hostEverything": true } }), "spec.hostEverything"),
        (json!({ "spec": { "securityContext": [] } }), "spec.securityContext"),
        (json!({ "metadata": { "labels": {}, "selfLink": "x" } }), "metadata.selfLink"),
    ]);
    for (key, value) in [
        ("container.apparmor.security.beta.kubernetes.io/main", "unconfined"),
        ("container.apparmor.security.beta.kubernetes.io/clone", ""),
        ("container.seccomp.security.alpha.kubernetes.io/main", "unconfined"),
        ("seccomp.security.alpha.kubernetes.io/pod", "docker/default-not"),
    ] {
        let error = patched(&json!({ "metadata": { "annotations": { key: value } } }), &Options::default());
        assert!(error.unwrap_err().contains(&format!("patch: metadata.annotations[{key}] ")), "{key}");
    }
}

#[test]
fn what_a_pods_context_may_not_say() {
    let context = |it: Value| json!({ "spec": { "securityContext": it } });
    refused([
        (context(Value::Null), "spec.securityContext.runAsNonRoot"),
        (context(json!({ "runAsNonRoot": false })), "spec.securityContext.runAsNonRoot"),
        (context(json!({ "runAsUser": 0 })), "spec.securityContext.runAsUser"),
        (context(json!({ "runAsUser": -1 })), "spec.securityContext.runAsUser"),
        (context(json!({ "runAsUser": 0.0 })), "spec.securityContext.runAsUser"),
        (context(json!({ "runAsGroup": 0 })), "spec.securityContext.runAsGroup"),
        (context(json!({ "fsGroup": 0 })), "spec.securityContext.fsGroup"),
        (context(json!({ "supplementalGroups": [5, 0] })), "spec.securityContext.supplementalGroups[1]"),
        (context(json!({ "seccompProfile": null })), "spec.securityContext.seccompProfile.type"),
        (
            context(json!({ "seccompProfile": { "type": "Unconfined" } })),
            "spec.securityContext.seccompProfile.type",
        ),
        (
            context(json!({ "appArmorProfile": { "type": "Unconfined" } })),
            "spec.securityContext.appArmorProfile.type",
        ),
        (
            context(json!({ "seLinuxOptions": { "type": "spc_t" } })),
            "spec.securityContext.seLinuxOptions.type",
        ),
        (context(json!({ "seLinuxOptions": { "user": "u" } })), "spec.securityContext.seLinuxOptions.user"),
        (context(json!({ "seLinuxOptions": { "role": "r" } })), "spec.securityContext.seLinuxOptions.role"),
        (
            context(json!({ "windowsOptions": { "hostProcess": true } })),
            "spec.securityContext.windowsOptions.hostProcess",
        ),
        (
            context(json!({ "sysctls": [{ "name": "kernel.msgmax", "value": "1" }] })),
            "spec.securityContext.sysctls[kernel.msgmax].name",
        ),
    ]);
}

#[test]
fn what_no_container_may_have() {
    let host = json!({ "host": "169.254.169.254", "port": 80 });
    let members = [
        (json!({ "securityContext": { "privileged": true } }), "securityContext.privileged"),
        (
            json!({ "securityContext": { "allowPrivilegeEscalation": true } }),
            "securityContext.allowPrivilegeEscalation",
        ),
        (json!({ "securityContext": { "runAsNonRoot": false } }), "securityContext.runAsNonRoot"),
        (json!({ "securityContext": { "runAsUser": 0 } }), "securityContext.runAsUser"),
        (json!({ "securityContext": { "runAsGroup": 0 } }), "securityContext.runAsGroup"),
        (json!({ "securityContext": { "procMount": "Unmasked" } }), "securityContext.procMount"),
        (
            json!({ "securityContext": { "capabilities": { "drop": [] } } }),
            "securityContext.capabilities.drop",
        ),
        (
            json!({ "securityContext": { "capabilities": { "add": ["NET_BIND_SERVICE", "SYS_ADMIN"] } } }),
            "securityContext.capabilities.add[1]",
        ),
        (
            json!({ "securityContext": { "seccompProfile": { "type": "Unconfined" } } }),
            "securityContext.seccompProfile.type",
        ),
        (
            json!({ "securityContext": { "appArmorProfile": { "type": "Unconfined" } } }),
            "securityContext.appArmorProfile.type",
        ),
        (
            json!({ "securityContext": { "seLinuxOptions": { "type": "spc_t" } } }),
            "securityContext.seLinuxOptions.type",
        ),
        (
            json!({ "securityContext": { "windowsOptions": { "hostProcess": true } } }),
            "securityContext.windowsOptions.hostProcess",
        ),
        (json!({ "ports": [{ "containerPort": 9090, "hostPort": 80 }] }), "ports[0].hostPort"),
        (
            json!({ "ports": [{ "containerPort": 9090, "name": "x", "hostIP": "0.0.0.0" }] }),
            "ports[x].hostIP",
        ),
        (json!({ "livenessProbe": { "httpGet": host } }), "livenessProbe.httpGet.host"),
        (json!({ "startupProbe": { "tcpSocket": host } }), "startupProbe.tcpSocket.host"),
        (json!({ "lifecycle": { "postStart": { "httpGet": host } } }), "lifecycle.postStart.httpGet.host"),
        (json!({ "lifecycle": { "preStop": { "tcpSocket": host } } }), "lifecycle.preStop.tcpSocket.host"),
        (json!({ "runWith": "all" }), "runWith"),
    ];
    for (list, name) in [
        ("containers", "main"),
        ("containers", "side"),
        ("initContainers", "clone"),
        ("initContainers", "new"),
    ] {
        for (member, path) in &members {
            let mut container = member.clone();
            container["name"] = json!(name);
            let patch = json!({ "spec": { list: [container] } });
            let error = patched(&patch, &Options::default()).expect_err(path);
            // The program's own port comes before those of the patch.
            let path = if name == "main" { path.replace("ports[0]", "ports[1]") } else { (*path).to_owned() };
            let path = format!("patch: spec.{list}[{name}].{path} ");
            assert!(error.contains(&path), "{patch}: {path:?} is not in: {error}");
            assert!(patched(&patch, &free()).is_ok(), "{patch}");
        }
    }
    refused([(
        json!({ "spec": { "containers": [{ "name": "main", "readinessProbe": { "tcpSocket": host } }] } }),
        "spec.containers[main].readinessProbe.tcpSocket.host",
    )]);
}

#[test]
fn what_no_volume_may_be() {
    let volume = |it: Value| {
        let mut volume = it;
        volume["name"] = json!("v");
        json!({ "spec": { "volumes": [volume] } })
    };
    refused([
        (volume(json!({ "hostPath": { "path": "/" } })), "spec.volumes[v].hostPath"),
        (
            volume(json!({ "ephemeral": { "volumeClaimTemplate": { "spec": {
                "dataSource": { "kind": "PersistentVolumeClaim", "name": "ws-a-b" } } } } })),
            "spec.volumes[v].ephemeral.volumeClaimTemplate.spec.dataSource",
        ),
        (volume(json!({ "nfs": { "server": "s", "path": "/" } })), "spec.volumes[v].nfs"),
        (volume(json!({ "image": { "reference": "r" } })), "spec.volumes[v].image"),
        (
            volume(json!({ "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } })),
            "spec.volumes[v].projected.sources[0].serviceAccountToken",
        ),
        (
            volume(json!({ "projected": { "sources": [{ "secret": {} }, { "podCertificate": {} }] } })),
            "spec.volumes[v].projected.sources[1].podCertificate",
        ),
        (
            volume(json!({ "persistentVolumeClaim": { "claimName": "ws-bob-0123456789abcdef01234567" } })),
            "spec.volumes[v].persistentVolumeClaim.claimName",
        ),
    ]);
}

#[test]
fn what_a_patch_may_do() {
    let profile = json!({ "type": "Localhost", "localhostProfile": "p" });
    let context = json!({
        "runAsUser": 5, "runAsGroup": 5, "appArmorProfile": profile, "seccompProfile": profile,
        "seLinuxOptions": { "type": "container_t", "level": "s0:c1,c2", "user": "" },
    });
    let mut own = context.clone();
    own["capabilities"] = json!({ "add": ["NET_BIND_SERVICE"] });
    own["readOnlyRootFilesystem"] = json!(true);
    let mut whole = context;
    whole["supplementalGroups"] = json!([7]);
    whole["sysctls"] = json!([{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "80" }]);
    let patch = json!({
        "metadata": {
            "labels": { "team": "a" },
            "annotations": {
                "example.org/it": "x",
                "container.apparmor.security.beta.kubernetes.io/main": "runtime/default",
            },
        },
        "spec": {
            "hostUsers": false, "hostname": "h", "priorityClassName": "interactive", "runtimeClassName": "gvisor",
            "hostAliases": [{ "ip": "10.0.0.1", "hostnames": ["a"] }],
            "securityContext": whole,
            "containers": [
                {
                    "name": "main", "securityContext": own, "resources": { "limits": { "example.org/gpu": "1" } },
                    "livenessProbe": { "httpGet": { "path": "/", "port": 1, "host": "" }, "periodSeconds": 9 },
                    "lifecycle": { "preStop": { "exec": { "command": ["sync"] } } },
                    "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
                },
                { "name": "side", "image": "s", "ports": [{ "containerPort": 1 }] },
            ],
            "volumes": [
                { "name": "data", "persistentVolumeClaim": { "claimName": "data" } },
                { "name": "all", "projected": { "sources": [{ "configMap": { "name": "c" } }] } },
            ],
        },
    });
    patched(&patch, &Options::default()).unwrap();
}
