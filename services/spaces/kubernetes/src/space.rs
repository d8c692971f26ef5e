//! The custom resource: a space as `kubectl` shows it.
//!
//! Its spec is what the pod builder needs and whether the space is to run; the
//! schema of its definition is made from these structs.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, CustomResourceExt as _};
use podyard_driver::{Container, Launch, Repository};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a space is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "podyard.dev",
    version = "v1alpha1",
    kind = "Space",
    plural = "spaces",
    namespaced,
    status = "SpaceStatus",
    derive = "PartialEq",
    doc = "A development space of Podyard.",
    category = "podyard",
    printcolumn = r#"{"name":"Title","type":"string","jsonPath":".spec.title"}"#,
    printcolumn = r#"{"name":"User","type":"string","jsonPath":".spec.user"}"#,
    printcolumn = r#"{"name":"Running","type":"boolean","jsonPath":".spec.running"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.message","priority":1}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".status.node","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct SpaceSpec {
    /// The space's id in Podyard.
    #[schemars(length(min = 1, max = 64), extend("x-kubernetes-validations" = fixed()))]
    pub id: String,
    /// Its place in the URL.
    #[schemars(length(min = 1), extend("x-kubernetes-validations" = fixed()))]
    pub sid: String,
    /// The id of the user whose space it is.
    pub user: String,
    /// Its name, for people.
    #[serde(default)]
    pub title: String,
    /// The path under which people reach it.
    pub base_path: String,
    /// Whether it is to run.
    #[serde(default)]
    pub running: bool,
    /// Which run it is to be. With another one than its pod is of, the pod is
    /// made anew, from this spec as it is then.
    #[serde(default)]
    pub run: String,
    /// The program and its arguments; the image's own if empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// More environment for the program.
    #[serde(default)]
    pub env: Vec<Variable>,
    /// How much CPU it may use.
    pub cpu: String,
    /// How much memory it may use.
    pub memory: String,
    /// How much its files may take.
    pub storage: String,
    /// The image.
    #[schemars(length(min = 1))]
    pub image: String,
    /// When the image is pulled; the cluster's own rule if empty.
    #[serde(default)]
    pub pull_policy: String,
    /// Names of secrets with the image registry's logins.
    #[serde(default)]
    pub pull_secrets: Vec<String>,
    /// The port that the program listens on.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The path of the readiness probe; an open port is enough if empty.
    #[serde(default)]
    pub probe_path: String,
    /// Where the space's files are.
    #[serde(default)]
    pub mount: String,
    /// The storage class; the default if empty.
    #[serde(default)]
    pub storage_class: String,
    /// Labels that a node must have.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations, as a pod has them.
    #[serde(default)]
    #[schemars(schema_with = "objects")]
    pub tolerations: Vec<Value>,
    /// The user that it runs as; the image's own if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub run_as: Option<i64>,
    /// A repository that is cloned into empty files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<GitRepository>,
    /// What is laid over the pod as a strategic merge patch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object")]
    pub patch: Option<Value>,
}

/// A variable of the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

/// A git repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GitRepository {
    /// Where it is.
    pub url: String,
    /// Its branch; the repository's own choice if empty.
    #[serde(default)]
    pub branch: String,
}

/// What a space is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SpaceStatus {
    /// `Stopped`, `Starting`, `Ready`, `Stopping`, `Ended`, `Failed`.
    #[serde(default)]
    pub phase: String,
    /// Why it is no further, or how it ended.
    #[serde(default)]
    pub message: String,
    /// Its pod. (Written as `null` where there is none, which removes it.)
    #[serde(default)]
    pub pod: Option<String>,
    /// The node that its pod is on.
    #[serde(default)]
    pub node: Option<String>,
    /// The run that this is said of.
    #[serde(default)]
    pub run: String,
    /// The generation of the spec that this is said of.
    #[serde(default)]
    pub observed_generation: i64,
    /// `Ready`: whether its program answers.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// The rule of what cannot be changed: objects in the cluster carry it as their label.
fn fixed() -> Value {
    json!([{ "rule": "self == oldSelf", "message": "cannot be changed" }])
}

/// An object of any kind.
fn object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "nullable": true, "x-kubernetes-preserve-unknown-fields": true })
}

/// A list of them.
fn objects(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    })
}

/// The definition of the custom resource, as JSON, which `kubectl apply` takes.
#[must_use]
pub fn crd() -> CustomResourceDefinition {
    Space::crd()
}

impl SpaceSpec {
    pub(crate) fn of(launch: &Launch, run: &str) -> Self {
        let container = launch.container.clone().unwrap_or_default();
        Self {
            id: launch.id.clone(),
            sid: launch.sid.clone(),
            user: launch.user.clone(),
            title: launch.name.clone(),
            base_path: launch.base_path.clone(),
            running: true,
            run: run.to_owned(),
            command: launch.command.clone(),
            env: launch.env.iter().cloned().map(|(name, value)| Variable { name, value }).collect(),
            cpu: launch.cpu.clone(),
            memory: launch.memory.clone(),
            storage: launch.storage.clone(),
            image: container.image,
            pull_policy: container.pull_policy,
            pull_secrets: container.pull_secrets,
            port: container.port,
            probe_path: container.probe_path,
            mount: container.mount,
            storage_class: container.storage_class,
            node_selector: container.node_selector,
            tolerations: container.tolerations,
            run_as: container.run_as,
            repository: container.repository.map(|it| GitRepository { url: it.url, branch: it.branch }),
            patch: container.patch,
        }
    }

    pub(crate) fn launch(&self) -> Launch {
        Launch {
            id: self.id.clone(),
            sid: self.sid.clone(),
            base_path: self.base_path.clone(),
            command: self.command.clone(),
            env: self.env.iter().map(|it| (it.name.clone(), it.value.clone())).collect(),
            cpu: self.cpu.clone(),
            memory: self.memory.clone(),
            storage: self.storage.clone(),
            user: self.user.clone(),
            name: self.title.clone(),
            container: Some(Container {
                image: self.image.clone(),
                pull_policy: self.pull_policy.clone(),
                pull_secrets: self.pull_secrets.clone(),
                port: self.port,
                probe_path: self.probe_path.clone(),
                mount: self.mount.clone(),
                storage_class: self.storage_class.clone(),
                node_selector: self.node_selector.clone(),
                tolerations: self.tolerations.clone(),
                run_as: self.run_as,
                repository: self
                    .repository
                    .as_ref()
                    .map(|it| Repository { url: it.url.clone(), branch: it.branch.clone() }),
                patch: self.patch.clone(),
                // Whoever waits counts it.
                start_limit: 0,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::launch;

    #[test]
    fn a_launch_comes_back() {
        let mut launch = launch();
        let container = launch.container.as_mut().unwrap();
        container.repository = Some(Repository { url: "https://example.org/a".into(), branch: "b".into() });
        container.patch = Some(serde_json::json!({ "spec": { "priority": 1 } }));
        container.run_as = Some(7);
        container.tolerations = vec![serde_json::json!({ "key": "a" })];
        let spec = SpaceSpec::of(&launch, "r");
        let through: SpaceSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(through.launch(), launch);
    }

    #[test]
    fn the_schema_is_structural_and_says_what_must_be_there() {
        let crd = serde_json::to_value(crd()).unwrap();
        assert_eq!(crd["metadata"]["name"], "spaces.podyard.dev");
        let version = &crd["spec"]["versions"][0];
        assert_eq!(version["name"], "v1alpha1");
        assert_eq!(version["subresources"]["status"], serde_json::json!({}));
        let columns: Vec<&str> = version["additionalPrinterColumns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["name"].as_str().unwrap())
            .collect();
        assert_eq!(columns, ["Title", "User", "Running", "Phase", "Message", "Node", "Age"]);
        let schema = &version["schema"]["openAPIV3Schema"];
        let spec = &schema["properties"]["spec"];
        let mut required: Vec<&str> =
            spec["required"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        required.sort_unstable();
        assert_eq!(required, ["basePath", "cpu", "id", "image", "memory", "port", "sid", "storage", "user"]);
        assert_eq!(spec["properties"]["patch"]["x-kubernetes-preserve-unknown-fields"], true);
        // What the API server refuses in a schema.
        let text = schema.to_string();
        for word in ["$ref", "\"definitions\"", "\"$defs\"", "\"type\":[", "additionalProperties\":false"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }
}
