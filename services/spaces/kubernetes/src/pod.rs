//! The pod of a space, and the one place where it is made: the driver and the
//! controller apply what [`pod`] returns.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use podyard_driver::{Container, Error, Launch, Repository, Result};
use serde_json::{Value, json};

use crate::claim::{Kept, name_of};
use crate::guard::{self, FILES, MAIN};
use crate::{Options, names, patch, quantity};

/// The container that clones a repository.
pub(crate) const CLONE: &str = "clone";
/// Where files are if the template does not say.
const MOUNT: &str = "/workspace";
/// The group that files belong to where the template names no user: a program
/// is put into it, whoever its image says it runs as.
const GROUP: i64 = 1000;

/// Clones a repository, but only into files that are empty. What it is to
/// clone comes in as arguments, never as a part of the script. It may be cut
/// off at any moment and run again: everything is fetched beside the files
/// first, and moved once it is whole.
const CLONE_SCRIPT: &str = r#"set -eu
umask 002
url=$1 branch=$2 dir=$3
new=$dir/.podyard-clone
if [ ! -e "$new/whole" ]; then
  rm -rf "$new"
  if [ -n "$(ls -A "$dir" | grep -vx lost+found)" ]; then
    echo "the files are not empty: nothing is cloned"
    exit 0
  fi
  mkdir "$new"
  if [ -n "$branch" ]; then
    git clone --branch="$branch" -- "$url" "$new/files"
  else
    git clone -- "$url" "$new/files"
  fi
  touch "$new/whole"
fi
find "$new/files" -mindepth 1 -maxdepth 1 -exec mv -n -- {} "$dir/" \;
rm -rf "$new"
"#;

/// What is new for every run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Its id.
    pub(crate) instance: String,
    /// By which the program knows the gateway. That it is in the pod makes an
    /// apply onto a pod of another run fail as a whole: pods do not change.
    pub(crate) secret: String,
}

impl Run {
    pub(crate) fn new() -> Self {
        let hex = |bytes: [u8; 16]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { instance: hex(rand::random()), secret: hex(rand::random()) }
    }
}

/// The pod of a space, as it is applied.
pub(crate) fn pod(
    launch: &Launch,
    options: &Options,
    run: &Run,
    kept: Option<&Kept>,
    owner: Option<&OwnerReference>,
) -> Result<Value> {
    let container = check(launch)?;
    let words = Words { port: container.port, dir: mount(container), base: &launch.base_path };
    let name = names::object_name(launch);
    let mut annotations = names::annotations(launch);
    annotations.insert(names::INSTANCE.to_owned(), json!(run.instance));

    let group = container.run_as.unwrap_or(GROUP);
    let mut context = json!({
        "runAsNonRoot": true,
        "fsGroup": group,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    if let Some(user) = container.run_as {
        context["runAsUser"] = json!(user);
        context["runAsGroup"] = json!(user);
    }
    let mut spec = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": options.grace.as_secs().max(1),
        "securityContext": context,
        "containers": [main(launch, container, run, &words)],
        "volumes": [{ "name": FILES, "persistentVolumeClaim": { "claimName": name_of(launch, kept) } }],
    });
    if let Some(repository) = &container.repository {
        spec["initContainers"] = json!([clone(repository, options, group, words.dir, &main_limits(launch))]);
    }
    let secrets = options.pull_secrets.iter().chain(&container.pull_secrets);
    let secrets: std::collections::BTreeSet<&String> = secrets.collect();
    if !secrets.is_empty() {
        spec["imagePullSecrets"] = secrets.iter().map(|it| json!({ "name": it })).collect();
    }
    let mut selector = options.node_selector.clone();
    selector.extend(container.node_selector.clone());
    if !selector.is_empty() {
        spec["nodeSelector"] = json!(selector);
    }
    if !container.tolerations.is_empty() {
        spec["tolerations"] = json!(container.tolerations);
    }
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": names::labels(launch, options), "annotations": annotations },
        "spec": spec,
    });
    if let Some(owner) = owner {
        pod["metadata"]["ownerReferences"] = json!([owner]);
    }
    patched(pod, container, options)
}

/// The pod with the template's patch laid over it.
fn patched(mut pod: Value, container: &Container, options: &Options) -> Result<Value> {
    let wrong = |why: String| Error::Invalid(format!("the template's patch: {why}"));
    if let Some(patch) = &container.patch {
        let before = pod.clone();
        patch::lay(&mut pod, patch).map_err(wrong)?;
        guard::unchanged(&before, &pod).map_err(wrong)?;
    }
    guard::secure(&mut pod);
    if !options.unsafe_patches {
        guard::check(&pod).map_err(wrong)?;
    }
    Ok(pod)
}

/// The program's container.
fn main(launch: &Launch, container: &Container, run: &Run, words: &Words<'_>) -> Value {
    let mut env: Vec<Value> = Vec::new();
    let mut set = |name: &str, value: &str| env.push(json!({ "name": name, "value": literal(value) }));
    // What the template says comes after HOME, which it may change, and cannot
    // name what is Podyard's own.
    let own_home = launch.env.iter().any(|(name, _)| name == "HOME");
    if !own_home {
        set("HOME", words.dir);
    }
    // The last of equal names counts, and the cluster wants each once.
    for (i, (name, value)) in launch.env.iter().enumerate() {
        if !launch.env[i + 1..].iter().any(|(later, _)| later == name) {
            set(name, &words.in_text(value));
        }
    }
    for (name, value) in [
        ("PODYARD_SPACE_ID", launch.id.as_str()),
        ("PODYARD_SPACE_SID", &launch.sid),
        ("PODYARD_SPACE_DIR", words.dir),
        ("PODYARD_SPACE_SECRET", &run.secret),
        ("PODYARD_PORT", &words.port.to_string()),
        ("PODYARD_BASE_PATH", &launch.base_path),
        ("PODYARD_CPU", &launch.cpu),
        ("PODYARD_MEMORY", &launch.memory),
        ("PODYARD_STORAGE", &launch.storage),
    ] {
        set(name, value);
    }
    let probe = if container.probe_path.is_empty() {
        json!({ "tcpSocket": { "port": container.port } })
    } else {
        json!({ "httpGet": {
            "path": words.in_text(&container.probe_path),
            "port": container.port,
            "httpHeaders": [{ "name": "X-Podyard-Space-Secret", "value": run.secret }],
        } })
    };
    let mut main = json!({
        "name": MAIN,
        "image": container.image,
        "workingDir": words.dir,
        "env": env,
        "ports": [{ "name": "http", "containerPort": container.port }],
        "resources": main_limits(launch),
        "volumeMounts": [{ "name": FILES, "mountPath": words.dir }],
        "readinessProbe": probe,
    });
    main["readinessProbe"]["periodSeconds"] = json!(2);
    main["readinessProbe"]["timeoutSeconds"] = json!(2);
    main["readinessProbe"]["failureThreshold"] = json!(3);
    if !container.pull_policy.is_empty() {
        main["imagePullPolicy"] = json!(container.pull_policy);
    }
    if !launch.command.is_empty() {
        main["command"] = launch.command.iter().map(|it| json!(literal(&words.in_text(it)))).collect();
    }
    main
}

/// What it may use is what is kept for it.
fn main_limits(launch: &Launch) -> Value {
    let size = json!({ "cpu": launch.cpu, "memory": launch.memory });
    json!({ "requests": size, "limits": size })
}

fn clone(repository: &Repository, options: &Options, user: i64, dir: &str, limits: &Value) -> Value {
    let script = literal(CLONE_SCRIPT);
    json!({
        "name": CLONE,
        "image": options.git_image,
        "command": ["sh", "-c", script, CLONE, literal(&repository.url), literal(&repository.branch), literal(dir)],
        "env": [
            { "name": "HOME", "value": "/tmp" },
            { "name": "GIT_TERMINAL_PROMPT", "value": "0" },
            { "name": "GIT_ALLOW_PROTOCOL", "value": "https:http:ssh:git" },
        ],
        // The image's own user is root, more often than not.
        "securityContext": { "runAsUser": user, "runAsGroup": user },
        "resources": limits,
        "volumeMounts": [{ "name": FILES, "mountPath": dir }],
    })
}

/// A text as the kubelet is to leave it: it replaces `$(NAME)` in commands and
/// environments, and takes `$$` for a dollar.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// What the words in braces stand for.
struct Words<'a> {
    port: u16,
    dir: &'a str,
    base: &'a str,
}

impl Words<'_> {
    fn in_text(&self, text: &str) -> String {
        text.replace("{port}", &self.port.to_string()).replace("{dir}", self.dir).replace("{base}", self.base)
    }
}

/// Where a space's files are in its container.
pub(crate) fn mount(container: &Container) -> &str {
    if container.mount.is_empty() { MOUNT } else { &container.mount }
}

/// What no pod can be made of.
pub(crate) fn check(launch: &Launch) -> Result<&Container> {
    let Some(container) = &launch.container else {
        return Err(Error::Invalid("the template says nothing of a container: it needs an image".to_owned()));
    };
    if container.image.trim().is_empty() {
        return Err(Error::Invalid("the template names no image".to_owned()));
    }
    if container.port == 0 {
        return Err(Error::Invalid("the template names no port that its program listens on".to_owned()));
    }
    if container.run_as.is_some_and(|user| user < 1) {
        return Err(Error::Invalid("run_as must be a user other than root: 1 or more".to_owned()));
    }
    let dir = mount(container);
    let parts = dir.strip_prefix('/').filter(|it| !it.is_empty());
    if parts.is_none_or(|it| it.split('/').any(|it| matches!(it, "" | "." | ".."))) || dir.contains(':') {
        return Err(Error::Invalid(format!("the mount {dir:?} is not the full path of a folder")));
    }
    launch.check()?;
    let mut words = launch.command.iter().chain(launch.env.iter().map(|(_, value)| value));
    if words.any(|it| it.contains("{podyard}")) {
        return Err(Error::Invalid(
            "the command or the environment names {podyard}, which is in no container".to_owned(),
        ));
    }
    for (what, text) in [("cpu", &launch.cpu), ("memory", &launch.memory)] {
        if quantity::parse(text).is_none_or(|it| it == 0) {
            return Err(Error::Invalid(format!("{what}: {text:?} is not a quantity like 2, 500m or 4Gi")));
        }
    }
    if let Some(repository) = &container.repository {
        check_repository(repository)?;
    }
    Ok(container)
}

/// What git must not be given: it takes some texts for options or programs.
fn check_repository(repository: &Repository) -> Result<()> {
    let odd = |text: &str| text.starts_with('-') || text.chars().any(|c| c.is_control() || c.is_whitespace());
    let url = &repository.url;
    let known = ["https://", "http://", "ssh://", "git://"]
        .iter()
        .any(|it| url.strip_prefix(it).is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', '-'])));
    // user@host:path, as git and ssh write it.
    let short = url.split_once(':').is_some_and(|(host, path)| {
        host.contains('@') && !host.contains('/') && !path.is_empty() && !path.starts_with([':', '-'])
    });
    if odd(url) || !(known || short) {
        return Err(Error::Invalid(format!(
            "the repository {url:?} is not an address like https://example.org/it.git"
        )));
    }
    if odd(&repository.branch) {
        return Err(Error::Invalid(format!("the branch {:?} is not a name", repository.branch)));
    }
    Ok(())
}

#[cfg(test)]
#[path = "pod_tests.rs"]
pub(crate) mod tests;
