//! What a container is started with: its command, its environment, its folder.

use std::path::PathBuf;

use base64::Engine as _;
use serde_json::Value;

use super::Pod;
use super::expand::expand;
use super::process::MARKER;
use crate::Server;
use crate::value::{list, name, namespace, text, uid};

/// What a container is started with.
pub(crate) struct Start {
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    pub dir: PathBuf,
    pub marker: String,
}

/// What is missing, in the kubelet's words.
pub(crate) fn missing(server: &Server, pod: &Value, container: &Value) -> Option<String> {
    let space = namespace(pod);
    let lacks = |store: &str, word: &str, of: &Value| -> Option<String> {
        let called = text(&of["name"]);
        if of["optional"] == true || called.is_empty() {
            return None;
        }
        match server.store.read(|state| state.get(store, space, called)) {
            None => Some(format!("{word} \"{called}\" not found")),
            Some(found) => {
                let key = of["key"].as_str()?;
                found["data"].get(key).is_none().then(|| {
                    let word = if word == "secret" { "Secret" } else { "ConfigMap" };
                    format!("couldn't find key {key} in {word} {space}/{called}")
                })
            }
        }
    };
    list(&container["env"]).iter().map(|it| &it["valueFrom"]).chain(list(&container["envFrom"])).find_map(
        |from| {
            ["secretKeyRef", "secretRef"]
                .iter()
                .find_map(|it| lacks("secrets", "secret", &from[*it]))
                .or_else(|| {
                    ["configMapKeyRef", "configMapRef"]
                        .iter()
                        .find_map(|it| lacks("configmaps", "configmap", &from[*it]))
                })
        },
    )
}

/// The folder of a volume: a claim's lives as long as the claim.
fn folder(server: &Server, pod: &Value, volume: &str) -> PathBuf {
    let claim = list(&pod["spec"]["volumes"])
        .iter()
        .find(|it| it["name"] == volume)
        .and_then(|it| it["persistentVolumeClaim"]["claimName"].as_str())
        .and_then(|claim| {
            server.store.read(|state| state.get("persistentvolumeclaims", namespace(pod), claim))
        });
    match claim {
        Some(claim) => server.cluster.dir(&format!("volume-{}", uid(&claim))),
        None => server.cluster.dir(&format!("pod-{}/{volume}", uid(pod))),
    }
}

pub(crate) fn start(server: &Server, pod: &Value, container: &Value, known: &Pod, id: &str) -> Start {
    let mounts: Vec<(String, String)> = list(&container["volumeMounts"])
        .iter()
        .filter(|it| !text(&it["mountPath"]).starts_with("/var/run/secrets/"))
        .map(|it| {
            let mut dir = folder(server, pod, text(&it["name"]));
            if let Some(below) = it["subPath"].as_str() {
                dir.push(below);
                let _ = std::fs::create_dir_all(&dir);
            }
            (text(&it["mountPath"]).to_owned(), dir.display().to_string())
        })
        .collect();
    // What is a place in the container is another one here.
    let here = |word: &str| {
        let mut word = word.replace("0.0.0.0", &known.ip.to_string());
        for (path, dir) in &mounts {
            word = replace_path(&word, path, dir);
        }
        word
    };
    let mut env: Vec<(String, String)> = Vec::new();
    for variable in list(&container["env"]) {
        // What stands before a variable can be named in it.
        let value = match &variable["value"] {
            Value::String(value) if !value.is_empty() => Some(expand(value, &env)),
            _ if variable["valueFrom"].is_object() => from(server, pod, &variable["valueFrom"], known),
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            env.push((text(&variable["name"]).to_owned(), here(&value)));
        }
    }
    let command = list(&container["command"])
        .iter()
        .chain(list(&container["args"]))
        .map(|it| here(&expand(text(it), &env)))
        .collect();
    // The runtime's own can be named in nothing, and be set to something else.
    env.insert(0, ("HOSTNAME".to_owned(), name(pod).to_owned()));
    let marker = format!("{}/{id}", server.cluster.marker);
    env.push((MARKER.to_owned(), marker.clone()));
    let own = server.cluster.dir(&format!("container-{id}"));
    let dir = match container["workingDir"].as_str().map(here).map(PathBuf::from) {
        Some(dir) if dir.is_dir() => dir,
        _ => own,
    };
    Start { command, env, dir, marker }
}

/// Replaces a path where it stands as a whole.
fn replace_path(word: &str, path: &str, dir: &str) -> String {
    let mut result = String::new();
    let mut rest = word;
    while let Some(at) = rest.find(path) {
        let (before, after) = rest.split_at(at);
        let after = &after[path.len()..];
        let begins = before.chars().last().is_none_or(|it| !it.is_ascii_alphanumeric() && it != '/');
        let ends = after.chars().next().is_none_or(|it| !it.is_ascii_alphanumeric() && it != '-');
        result.push_str(before);
        result.push_str(if begins && ends { dir } else { path });
        rest = after;
    }
    result.push_str(rest);
    result
}

fn from(server: &Server, pod: &Value, from: &Value, known: &Pod) -> Option<String> {
    let space = namespace(pod);
    if let Some(path) = from["fieldRef"]["fieldPath"].as_str() {
        return Some(match path {
            "status.podIP" => known.ip.to_string(),
            "spec.nodeName" => "node1".to_owned(),
            path => path.split('.').fold(pod, |at, it| &at[it]).as_str()?.to_owned(),
        });
    }
    for (kind, store) in [("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")] {
        let of = &from[kind];
        if of.is_object() {
            let found = server.store.read(|state| state.get(store, space, text(&of["name"])))?;
            let value = found["data"][text(&of["key"])].as_str()?.to_owned();
            if store == "configmaps" {
                return Some(value);
            }
            let bytes = base64::engine::general_purpose::STANDARD.decode(value).ok()?;
            return String::from_utf8(bytes).ok();
        }
    }
    None
}
