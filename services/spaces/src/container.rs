//! What a template says of its container: one JSON object, judged in full
//! before it is stored.

use std::collections::BTreeMap;

use podyard::db::{Column, ColumnType, RowReader, Value};
use podyard::{Error, Result};
use podyard_driver::{Container, Repository};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

/// As it is stored: JSON that `ContainerSpec` has judged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerField(serde_json::Value);

impl From<serde_json::Value> for ContainerField {
    fn from(value: serde_json::Value) -> Self {
        Self(value)
    }
}

impl Column for ContainerField {
    const TYPE: ColumnType = ColumnType::Json;

    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        serde_json::Value::read(row).map(Self)
    }

    fn value(&self) -> Value<'_> {
        self.0.value()
    }
}

impl JsonSchema for ContainerField {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Container".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        ContainerSpec::json_schema(generator)
    }
}

/// A container, for templates that run on Kubernetes.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ContainerSpec {
    /// The image, best with a tag or a digest. With an empty command its own program runs.
    image: String,
    /// When the image is pulled; without this the cluster's own rule holds.
    #[serde(default)]
    pull_policy: Option<PullPolicy>,
    /// Names of secrets with logins for the image's registry.
    #[serde(default)]
    pull_secrets: Vec<String>,
    /// The port that the program listens on; 8080 if not given.
    #[serde(default)]
    port: Option<u16>,
    /// The path that tells by HTTP whether the program is ready; without it an open port does.
    #[serde(default)]
    probe_path: Option<String>,
    /// Where the space's files are; `/workspace` if not given.
    #[serde(default)]
    mount: Option<String>,
    /// The storage class of the files; the server's own setting, or the cluster's, if not given.
    #[serde(default)]
    storage_class: Option<String>,
    /// Labels that a node must have.
    #[serde(default)]
    node_selector: BTreeMap<String, String>,
    /// Taints of nodes that are borne.
    #[serde(default)]
    tolerations: Vec<Toleration>,
    /// The user that it runs as, by number; 1000 if not given.
    #[serde(default)]
    run_as: Option<i64>,
    /// A repository that is cloned into empty files.
    #[serde(default)]
    repository: Option<RepositorySpec>,
    /// Laid over the pod as a strategic merge patch.
    #[serde(default)]
    patch: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// As Kubernetes writes it.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Toleration {
    /// The taint's key; empty with `Exists`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// `Equal` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    operator: Option<Operator>,
    /// The taint's value, with `Equal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// The taint's effect; any if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    effect: Option<Effect>,
    /// For how long, with `NoExecute`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    toleration_seconds: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
enum Operator {
    Exists,
    Equal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
enum Effect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

/// A git repository.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RepositorySpec {
    /// Where it is: `https://…`, `ssh://…`, `git@host:path`.
    url: String,
    /// Its branch; the repository's own choice if not given.
    #[serde(default)]
    branch: Option<String>,
}

const PORT: u16 = 8080;
const MOUNT: &str = "/workspace";
const RUN_AS: i64 = 1000;

/// A member of the object, as errors name it.
fn member(path: impl std::fmt::Display) -> String {
    format!("container.{path}")
}

impl ContainerField {
    /// What a driver is told, or what is wrong with it, by the member's path:
    /// `container.tolerations[0].effect`.
    ///
    /// # Errors
    /// 400 that names the member.
    pub(crate) fn container(&self) -> Result<Container> {
        let spec: ContainerSpec = serde_path_to_error::deserialize(&self.0).map_err(|error| {
            let path = error.path().to_string();
            let text = error.into_inner().to_string();
            // What is missing or unknown is named in the text, and the path is its parent's.
            let named = text.split('`').nth(1).filter(|_| text.contains("field `"));
            match (named, path.as_str()) {
                (Some(name), "." | "") => Error::field(member(name), text.clone()),
                (Some(name), path) if !path.ends_with(name) => {
                    Error::field(member(format!("{path}.{name}")), text.clone())
                }
                (_, "." | "") => Error::field("container", text.clone()),
                (_, path) => Error::field(member(path), text.clone()),
            }
        })?;
        spec.check()?;
        Ok(spec.into_container())
    }
}

impl ContainerSpec {
    fn check(&self) -> Result<()> {
        if !is_image(&self.image) {
            return Err(Error::field(
                member("image"),
                "must name an image, like registry.example.org/team/ide:1.2",
            ));
        }
        for (i, name) in self.pull_secrets.iter().enumerate() {
            if !is_dns_name(name) {
                return Err(Error::field(
                    member(format!("pull_secrets[{i}]")),
                    "must be the name of a secret",
                ));
            }
        }
        if self.port == Some(0) {
            return Err(Error::field(member("port"), "must be from 1 to 65535"));
        }
        if self.probe_path.as_ref().is_some_and(|it| !is_path(it)) {
            return Err(Error::field(member("probe_path"), "must be a path that begins with /"));
        }
        if self.mount.as_ref().is_some_and(|it| !is_mount(it)) {
            return Err(Error::field(
                member("mount"),
                "must be an absolute path below /, without . and .. in it",
            ));
        }
        if self.storage_class.as_ref().is_some_and(|it| !is_dns_name(it)) {
            return Err(Error::field(member("storage_class"), "must be the name of a storage class"));
        }
        for (key, value) in &self.node_selector {
            if !is_label_key(key) {
                return Err(Error::field(member(format!("node_selector.{key}")), "is not a label's name"));
            }
            if !is_label_value(value) {
                return Err(Error::field(
                    member(format!("node_selector.{key}")),
                    "has a value that no label can have",
                ));
            }
        }
        for (i, toleration) in self.tolerations.iter().enumerate() {
            toleration.check(&format!("tolerations[{i}]"))?;
        }
        if self.run_as.is_some_and(|id| !(1..=i64::from(u32::MAX >> 1)).contains(&id)) {
            return Err(Error::field(member("run_as"), "must be from 1 to 2147483647: root is not allowed"));
        }
        if let Some(repository) = &self.repository {
            check_url(&repository.url).map_err(|message| Error::field(member("repository.url"), message))?;
            let branch = repository.branch.as_deref().unwrap_or_default();
            check_branch(branch).map_err(|message| Error::field(member("repository.branch"), message))?;
        }
        for key in self.patch.iter().flat_map(serde_json::Map::keys) {
            if key != "metadata" && key != "spec" {
                return Err(Error::field(member(format!("patch.{key}")), "a patch has metadata and spec"));
            }
        }
        Ok(())
    }

    fn into_container(self) -> Container {
        let pull_policy = match self.pull_policy {
            None => "",
            Some(PullPolicy::Always) => "Always",
            Some(PullPolicy::IfNotPresent) => "IfNotPresent",
            Some(PullPolicy::Never) => "Never",
        };
        Container {
            image: self.image,
            pull_policy: pull_policy.to_owned(),
            pull_secrets: self.pull_secrets,
            port: self.port.unwrap_or(PORT),
            probe_path: self.probe_path.unwrap_or_default(),
            mount: self.mount.map_or_else(|| MOUNT.to_owned(), |it| it.trim_end_matches('/').to_owned()),
            storage_class: self.storage_class.unwrap_or_default(),
            node_selector: self.node_selector,
            // A struct of texts and numbers always serialises.
            tolerations: self.tolerations.iter().filter_map(|it| serde_json::to_value(it).ok()).collect(),
            run_as: Some(self.run_as.unwrap_or(RUN_AS)),
            repository: self
                .repository
                .map(|it| Repository { url: it.url, branch: it.branch.unwrap_or_default() }),
            patch: self.patch.map(serde_json::Value::Object),
            start_limit: 0,
        }
    }
}

impl Toleration {
    fn check(&self, path: &str) -> Result<()> {
        let at = |name: &str| format!("{path}.{name}");
        let key = self.key.as_deref().unwrap_or_default();
        if !key.is_empty() && !is_label_key(key) {
            return Err(Error::field(member(at("key")), "is not a taint's key"));
        }
        let exists = self.operator == Some(Operator::Exists);
        if key.is_empty() && !exists {
            return Err(Error::field(member(at("key")), "is needed unless the operator is Exists"));
        }
        if exists && self.value.as_ref().is_some_and(|it| !it.is_empty()) {
            return Err(Error::field(member(at("value")), "must be empty with the operator Exists"));
        }
        if self.value.as_ref().is_some_and(|it| !is_label_value(it)) {
            return Err(Error::field(member(at("value")), "is not a taint's value"));
        }
        if self.toleration_seconds.is_some() && self.effect != Some(Effect::NoExecute) {
            return Err(Error::field(member(at("tolerationSeconds")), "is only for the effect NoExecute"));
        }
        Ok(())
    }
}

/// Where a repository may be. What a shell, git's options or its helpers would
/// take for something else is refused, and so are passwords, which all who see
/// the space would see.
pub(crate) fn check_url(url: &str) -> Result<(), String> {
    let wrong = || Err("must be like https://host/path, ssh://host/path or git@host:path".to_owned());
    if url.len() > 2048 || !is_plain(url) || url.starts_with('-') {
        return wrong();
    }
    let host = |rest: &str| {
        let authority = rest.split('/').next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        !host.is_empty() && !host.starts_with('-') && rest.contains('/')
    };
    if let Some((scheme, rest)) = url.split_once("://") {
        let authority = rest.split('/').next().unwrap_or_default();
        let user = authority.rsplit_once('@').map(|(user, _)| user);
        if user.is_some_and(|it| it.contains(':') || scheme != "ssh") {
            return Err("must not carry a login: use a secret of the template's patch".to_owned());
        }
        let known = ["https", "http", "ssh", "git"].contains(&scheme);
        return if known && host(rest) && user.is_none_or(|it| !it.starts_with('-')) {
            Ok(())
        } else {
            wrong()
        };
    }
    // As ssh writes it: user@host:path.
    let short = url.split_once(':').and_then(|(who, path)| Some((who.split_once('@')?, path)));
    match short {
        Some(((user, host), path))
            if is_word(user) && is_word(host) && !path.is_empty() && !path.starts_with([':', '-']) =>
        {
            Ok(())
        }
        _ => wrong(),
    }
}

/// A branch's name by git's rules; empty: none is named.
pub(crate) fn check_branch(branch: &str) -> Result<(), String> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || "~^:?*[\\\"'$`;&|<>(){}".contains(c);
    let bad = branch.len() > 255
        || branch.starts_with(['-', '/', '.'])
        || branch.ends_with(['/', '.'])
        || branch.ends_with(".lock")
        || ["..", "//", "@{", "/."].iter().any(|it| branch.contains(it))
        || branch.contains(odd);
    if bad { Err("is not the name of a branch".to_owned()) } else { Ok(()) }
}

/// Visible ASCII, without what a shell or a browser reads as something else.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && !"\"'`\\<>{}|^;$".contains(c))
}

fn is_word(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !text.starts_with('-') && !text.is_empty() && text.chars().all(fine)
}

/// Near enough to what registries take; the cluster says the rest.
fn is_image(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    text.len() <= 1024
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        && text.chars().all(fine)
        && !text.contains("//")
}

/// As Kubernetes names objects: DNS labels with dots between them.
fn is_dns_name(text: &str) -> bool {
    let label = |it: &str| {
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !it.is_empty() && !it.starts_with('-') && !it.ends_with('-') && it.chars().all(fine)
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// A path, in which words in braces may stand for what is known at the start.
fn is_path(text: &str) -> bool {
    let bare = text.replace("{base}", "/").replace("{port}", "1").replace("{dir}", "/");
    bare.starts_with('/') && is_plain(&bare)
}

fn is_mount(text: &str) -> bool {
    let part = |it: &str| !it.is_empty() && it != "." && it != "..";
    let inner = text.strip_prefix('/').map(|it| it.strip_suffix('/').unwrap_or(it));
    is_plain(text) && !text.contains(':') && inner.is_some_and(|it| it.split('/').all(part))
}

fn is_label_value(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.is_empty()
        || (text.len() <= 63 && text.starts_with(edge) && text.ends_with(edge) && text.chars().all(fine))
}

fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_dns_name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn blamed(value: serde_json::Value) -> String {
        let error = ContainerField(value.clone()).container().expect_err(&value.to_string());
        error.field_errors()[0].field.clone()
    }

    #[test]
    fn an_image_is_enough() {
        let it = ContainerField(json!({"image": "ide"})).container().unwrap();
        assert_eq!((it.port, it.mount.as_str(), it.run_as), (8080, "/workspace", Some(1000)));
        assert!(it.pull_policy.is_empty() && it.repository.is_none() && it.patch.is_none());
    }

    #[test]
    fn everything_there_is() {
        let all = json!({
            "image": "registry.example.org:5000/team/ide@sha256:0123abcd", "pull_policy": "Always",
            "pull_secrets": ["registry.login"], "port": 3000, "probe_path": "{base}healthz?full=1",
            "mount": "/home/coder", "storage_class": "fast", "run_as": 1001,
            "node_selector": {"kubernetes.io/arch": "amd64", "disk": ""},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
                            {"operator": "Exists"}, {"key": "a.b/c", "value": "d"}],
            "repository": {"url": "https://git.example.org/a/b.git", "branch": "feature/x"},
            "patch": {"spec": {"priorityClassName": "low"}},
        });
        let it = ContainerField(all).container().unwrap();
        assert_eq!((it.port, it.run_as), (3000, Some(1001)));
        assert_eq!(it.tolerations[0]["tolerationSeconds"], 30);
        assert_eq!(it.tolerations[1], json!({"operator": "Exists"}));
        assert_eq!(it.repository.unwrap().branch, "feature/x");
    }

    #[test]
    fn errors_name_the_member() {
        for (value, field) in [
            (json!("ide"), "container"),
            (json!({}), "container.image"),
            (json!({"image": ""}), "container.image"),
            (json!({"image": "a b"}), "container.image"),
            (json!({"image": "ide;rm"}), "container.image"),
            (json!({"image": 7}), "container.image"),
            (json!({"image": "a", "imag": "b"}), "container.imag"),
            (json!({"image": "a", "pull_policy": "Sometimes"}), "container.pull_policy"),
            (json!({"image": "a", "pull_secrets": ["ok", "Not_Ok"]}), "container.pull_secrets[1]"),
            (json!({"image": "a", "port": 0}), "container.port"),
            (json!({"image": "a", "port": 70000}), "container.port"),
            (json!({"image": "a", "port": "80"}), "container.port"),
            (json!({"image": "a", "probe_path": "healthz"}), "container.probe_path"),
            (json!({"image": "a", "mount": "relative"}), "container.mount"),
            (json!({"image": "a", "mount": "/a/../b"}), "container.mount"),
            (json!({"image": "a", "mount": "/"}), "container.mount"),
            (json!({"image": "a", "storage_class": "Fast"}), "container.storage_class"),
            (json!({"image": "a", "node_selector": {"a b": "c"}}), "container.node_selector.a b"),
            (json!({"image": "a", "node_selector": {"a": 1}}), "container.node_selector.a"),
            (json!({"image": "a", "tolerations": [{}]}), "container.tolerations[0].key"),
            (
                json!({"image": "a", "tolerations": [{"key": "a", "effect": "x"}]}),
                "container.tolerations[0].effect",
            ),
            (json!({"image": "a", "tolerations": [{"keys": "a"}]}), "container.tolerations[0].keys"),
            (
                json!({"image": "a", "tolerations": [{"key": "a", "operator": "Exists", "value": "v"}]}),
                "container.tolerations[0].value",
            ),
            (json!({"image": "a", "run_as": 0}), "container.run_as"),
            (json!({"image": "a", "run_as": -1}), "container.run_as"),
            (json!({"image": "a", "repository": {}}), "container.repository.url"),
            (json!({"image": "a", "repository": {"url": "--upload-pack=x"}}), "container.repository.url"),
            (
                json!({"image": "a", "repository": {"url": "https://h/p", "branch": "-x"}}),
                "container.repository.branch",
            ),
            (json!({"image": "a", "patch": []}), "container.patch"),
            (json!({"image": "a", "patch": {"status": {}}}), "container.patch.status"),
        ] {
            assert_eq!(blamed(value.clone()), field, "{value}");
        }
    }

    #[test]
    fn repositories() {
        for good in [
            "https://github.com/a/b.git",
            "http://git.local:3000/a",
            "ssh://git@host:22/a",
            "git@host.example.org:a/b.git",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "-oProxyCommand=x",
            "https://",
            "https://host",
            "file:///etc",
            "ext::sh -c x",
            "ext::sh",
            "/etc",
            "https://user:token@host/a",
            "https://token@host/a",
            "ssh://-oProxyCommand=x/a",
            "ssh://-l@host/a",
            "git@-host:a",
            "https://h/a b",
            "https://h/$(x)",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
        for bad in ["-b", "a..b", "a b", "/a", "a/", "a.lock", "a~1", "$(x)", "@{0"] {
            assert!(check_branch(bad).is_err(), "{bad}");
        }
        for good in ["", "main", "feature/x-1_2", "v1.0"] {
            assert_eq!(check_branch(good), Ok(()), "{good}");
        }
    }
}
