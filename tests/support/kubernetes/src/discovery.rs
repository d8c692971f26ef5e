//! What is told about the server itself: its version, its health, its kinds.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::Server;
use crate::api::resources;
use crate::http::{self, Request, Response};
use crate::resource::Resource;
use crate::status::Failure;

pub(crate) fn answer(server: &Server, request: &Request) -> Result<Response, Failure> {
    let steps: Vec<&str> = request.path.split('/').filter(|it| !it.is_empty()).collect();
    let aggregated = request.header("accept").contains("as=APIGroupDiscoveryList");
    let all = resources(server);
    let body = match steps.as_slice() {
        ["version"] => json!({"major": "1", "minor": "36", "emulationMajor": "1",
            "emulationMinor": "36", "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
            "gitVersion": "v1.36.2", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "2026-11-20T00:00:00Z", "goVersion": "go1.26.3", "compiler": "gc",
            "platform": "linux/amd64"}),
        ["readyz"] if server.door.leaves() => {
            let checks = "[+]ping ok\n[+]log ok\n[+]informer-sync ok\n[-]shutdown failed: reason withheld\n";
            return Ok(http::text(500, format!("{checks}readyz check failed\n")));
        }
        ["healthz" | "livez" | "readyz"] => return Ok(http::text(200, "ok")),
        ["api"] if aggregated => return Ok(groups_document(&all, true)),
        ["apis"] if aggregated => return Ok(groups_document(&all, false)),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]}),
        ["apis"] => json!({"kind": "APIGroupList", "apiVersion": "v1",
            "groups": groups(&all).iter().map(|(name, of)| group(name, of)).collect::<Vec<_>>()}),
        ["api", "v1"] => resource_list(&all, "", "v1"),
        ["apis", name] => {
            let groups = groups(&all);
            let of = groups.get(*name).ok_or_else(Failure::page)?;
            let mut body = group(name, of);
            body["kind"] = json!("APIGroup");
            body["apiVersion"] = json!("v1");
            body
        }
        ["apis", name, version] => {
            if !all.iter().any(|it| it.group == *name && it.version == *version) {
                return Err(Failure::page());
            }
            resource_list(&all, name, version)
        }
        ["openapi", "v3"] => openapi_index(&all),
        ["openapi", "v3", "api", "v1"] => openapi(&all, "", "v1"),
        ["openapi", "v3", "apis", name, version] => openapi(&all, name, version),
        _ => return Err(Failure::page()),
    };
    Ok(http::json(200, &body))
}

type Groups<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// The groups but the core one, with their versions.
fn groups(all: &[Resource]) -> Groups<'_> {
    let mut groups: Groups<'_> = BTreeMap::new();
    for resource in all.iter().filter(|it| !it.group.is_empty()) {
        let versions = groups.entry(&resource.group).or_default();
        if !versions.contains(&resource.version.as_str()) {
            versions.push(&resource.version);
        }
    }
    groups
}

fn group(name: &str, versions: &[&str]) -> Value {
    let version = |it: &str| json!({"groupVersion": format!("{name}/{it}"), "version": it});
    json!({"name": name, "versions": versions.iter().map(|it| version(it)).collect::<Vec<_>>(),
        "preferredVersion": version(versions.first().copied().unwrap_or_default())})
}

fn resource_list(all: &[Resource], group: &str, version: &str) -> Value {
    let mut resources = Vec::new();
    for of in all.iter().filter(|it| it.group == group && it.version == version) {
        let mut own = json!({"name": of.plural, "singularName": of.singular,
            "namespaced": of.namespaced, "kind": of.kind, "verbs": of.verbs()});
        if !of.short.is_empty() {
            own["shortNames"] = json!(of.short);
        }
        if !of.categories.is_empty() {
            own["categories"] = json!(of.categories);
        }
        resources.push(own);
        for (sub, kind, verbs) in &of.sub {
            let mut own = json!({"name": format!("{}/{sub}", of.plural), "singularName": "",
                "namespaced": of.namespaced, "kind": kind, "verbs": verbs});
            if sub == "scale" {
                own["group"] = json!("autoscaling");
                own["version"] = json!("v1");
            }
            resources.push(own);
        }
    }
    let name = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut body = json!({"kind": "APIResourceList", "groupVersion": name, "resources": resources});
    if !group.is_empty() {
        body["apiVersion"] = json!("v1");
    }
    body
}

/// All groups in one document, as newer clients ask for it.
fn groups_document(all: &[Resource], core: bool) -> Response {
    let versions = |name: &str, versions: &[&str]| -> Vec<Value> {
        versions
            .iter()
            .map(|version| {
                let of = all.iter().filter(|it| it.group == name && it.version == *version);
                json!({"version": version, "freshness": "Current",
                    "resources": of.map(aggregated).collect::<Vec<_>>()})
            })
            .collect()
    };
    let items: Vec<Value> = if core {
        vec![json!({"metadata": {}, "versions": versions("", &["v1"])})]
    } else {
        groups(all)
            .iter()
            .map(|(name, of)| json!({"metadata": {"name": name}, "versions": versions(name, of)}))
            .collect()
    };
    let body = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": items});
    let kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    http::bytes(200, kind, body.to_string())
}

fn aggregated(of: &Resource) -> Value {
    let kind = |kind: &str| json!({"group": of.group, "version": of.version, "kind": kind});
    let mut own = json!({"resource": of.plural, "responseKind": kind(&of.kind),
        "scope": if of.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": of.singular, "verbs": of.verbs()});
    if !of.short.is_empty() {
        own["shortNames"] = json!(of.short);
    }
    if !of.categories.is_empty() {
        own["categories"] = json!(of.categories);
    }
    if !of.sub.is_empty() {
        own["subresources"] = of
            .sub
            .iter()
            .map(|(name, of_kind, verbs)| {
                let mut shown = kind(of_kind);
                if name == "scale" {
                    shown = json!({"group": "autoscaling", "version": "v1", "kind": of_kind});
                }
                json!({"subresource": name, "responseKind": shown, "verbs": verbs})
            })
            .collect();
    }
    own
}

fn openapi_index(all: &[Resource]) -> Value {
    let mut paths = serde_json::Map::new();
    for of in all {
        let path = match of.group.as_str() {
            "" => format!("api/{}", of.version),
            group => format!("apis/{group}/{}", of.version),
        };
        let url = format!("/openapi/v3/{path}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// As much of an OpenAPI document as clients need to see that fields are validated here.
fn openapi(all: &[Resource], group: &str, version: &str) -> Value {
    let mut paths = serde_json::Map::new();
    let mut schemas = serde_json::Map::new();
    let parameters: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation", "force"]
        .iter()
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}}))
        .collect();
    for of in all.iter().filter(|it| it.group == group && it.version == version) {
        let root = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/{version}") };
        let space = if of.namespaced { "/namespaces/{namespace}" } else { "" };
        let kind = json!({"group": group, "version": version, "kind": of.kind});
        let action = |name: &str| {
            json!({"x-kubernetes-action": name, "x-kubernetes-group-version-kind": kind,
                "parameters": parameters, "responses": {}})
        };
        let path = format!("{root}{space}/{}", of.plural);
        paths.insert(path.clone(), json!({"post": action("post")}));
        paths.insert(format!("{path}/{{name}}"), json!({"put": action("put"), "patch": action("patch")}));
        let mut schema = match of.custom.as_deref() {
            Some(version) => version["schema"]["openAPIV3Schema"].clone(),
            None => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        };
        schema["x-kubernetes-group-version-kind"] = json!([kind]);
        schemas.insert(format!("{}.{version}.{}", group, of.kind), schema);
    }
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.2"},
        "paths": paths, "components": {"schemas": schemas}})
}
