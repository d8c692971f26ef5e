//! Looks at a cluster and says what it lacks for spaces to run on it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, ListParams, PostParams};
use podyard_driver::{Container, Driver as _, Launch, Phase};
use tokio::time::Instant;

use crate::driver::Role;
use crate::error::{ask, is, raw, status, told};
use crate::options::{Cluster, connect};
use crate::{KubernetesDriver, Options, Reach, Way, lease};

/// How long the trial pod may take: its image may have to be pulled.
const TRIAL: Duration = Duration::from_secs(120);
/// The oldest minor version of Kubernetes 1 that this was made for.
const OLDEST: u32 = 30;

/// How good something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Spaces run, but not all that they could do works.
    Warning,
    /// Spaces do not run.
    Failure,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What, in one or two words.
    pub name: String,
    /// How good it is.
    pub level: Level,
    /// What was found.
    pub text: String,
    /// What to do about it; empty if it is as it should be.
    pub advice: String,
}

fn check(name: &str, level: Level, text: impl Into<String>, advice: &str) -> Check {
    Check { name: name.to_owned(), level, text: text.into(), advice: advice.to_owned() }
}

/// Looks at all that spaces need, ending with a pod and a claim on trial. What
/// cannot be looked at because something before it fails is left out. The trial is
/// broken off, and what it made removed, as soon as `stop` says so.
pub async fn doctor(options: &Options, stop: impl Future<Output = ()>) -> Vec<Check> {
    let mut checks = Vec::new();
    let cluster = match connect(options).await {
        Ok(cluster) => cluster,
        Err(error) => {
            let advice = "Give a kubeconfig file, or run Podyard in a pod with a service account.";
            return vec![check("login", Level::Failure, error.to_string(), advice)];
        }
    };
    let reached = version(&cluster).await;
    let lost = reached.level == Level::Failure;
    checks.push(reached);
    if lost {
        return checks;
    }
    checks.push(namespace(&cluster).await);
    checks.extend(rights(&cluster, options).await);
    checks.push(storage(&cluster, options).await);
    if options.way == Way::CustomResources {
        checks.push(definition(&cluster).await);
        checks.push(controller(&cluster, options).await);
    }
    if checks.iter().all(|it| it.level != Level::Failure) {
        checks.push(trial(options, stop).await);
    }
    checks
}

async fn version(cluster: &Cluster) -> Check {
    let url = &cluster.config.cluster_url;
    let answer = match raw("its version", cluster.client.apiserver_version()).await {
        Ok(Err(error)) if is(&error, 401) || matches!(error, kube::Error::Auth(_)) => {
            let advice = "See that the token or the certificate of the kubeconfig file is the cluster's and still valid.";
            let text = format!("{url} does not take the login: {}", told("its version", error));
            return check("login", Level::Failure, text, advice);
        }
        Ok(answer) => answer.map_err(|error| told("its version", error)),
        Err(error) => Err(error),
    };
    match answer {
        Ok(version) => {
            let minor: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
            let old = version.major == "1" && minor.parse::<u32>().is_ok_and(|it| it < OLDEST);
            let text = format!("{url} is Kubernetes {}", version.git_version);
            if old {
                let advice = format!("Podyard is made for Kubernetes 1.{OLDEST} and newer.");
                check("cluster", Level::Warning, text, &advice)
            } else {
                check("cluster", Level::Ok, text, "")
            }
        }
        Err(error) => {
            let advice = "See that the address is right and can be reached from here, and that its certificate is trusted.";
            check("cluster", Level::Failure, format!("{url} does not answer: {error}"), advice)
        }
    }
}

async fn namespace(cluster: &Cluster) -> Check {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let name = &cluster.namespace;
    match raw("the namespace", api.get(name)).await {
        Ok(Ok(_)) => check("namespace", Level::Ok, format!("{name} is there"), ""),
        Ok(Err(error)) if is(&error, 404) => {
            let advice = format!("kubectl create namespace {name}");
            check("namespace", Level::Failure, format!("{name} is not there"), &advice)
        }
        // With the least rights it cannot be seen; the trial will tell.
        Ok(Err(error)) if is(&error, 403) => {
            check("namespace", Level::Ok, format!("{name} (Podyard may not see whether it is there)"), "")
        }
        Ok(Err(error)) => check("namespace", Level::Failure, error.to_string(), "Try again."),
        Err(error) => check("namespace", Level::Failure, error.to_string(), "Try again."),
    }
}

/// What Podyard does: group, resource, subresource, verbs, and what for.
type Right = (&'static str, &'static str, &'static str, &'static [&'static str], Level);

/// The rights that the driver uses, which are those of its Role.
const RIGHTS: &[Right] = &[
    ("", "pods", "", &["get", "list", "watch", "create", "patch", "delete"], Level::Failure),
    (
        "",
        "persistentvolumeclaims",
        "",
        &["get", "list", "watch", "create", "patch", "delete"],
        Level::Failure,
    ),
    ("coordination.k8s.io", "leases", "", &["get", "create", "update"], Level::Failure),
    ("", "pods", "log", &["get"], Level::Warning),
    ("", "events", "", &["list"], Level::Warning),
    ("", "pods", "exec", &["get", "create"], Level::Warning),
];
const PROXY: &[Right] =
    &[("", "pods", "proxy", &["get", "create", "update", "patch", "delete"], Level::Failure)];
const CUSTOM: &[Right] = &[
    ("podyard.dev", "spaces", "", &["get", "list", "watch", "create", "patch", "delete"], Level::Failure),
    ("podyard.dev", "spaces", "status", &["patch"], Level::Failure),
];

async fn rights(cluster: &Cluster, options: &Options) -> Vec<Check> {
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let mut all = RIGHTS.to_vec();
    if options.reach == Reach::Proxy {
        all.extend(PROXY);
    }
    if options.way == Way::CustomResources {
        all.extend(CUSTOM);
    }
    let mut checks = Vec::new();
    for (group, resource, subresource, verbs, level) in all {
        let what =
            [resource, subresource].into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join("/");
        let mut lacking = Vec::new();
        for verb in verbs {
            let attributes = ResourceAttributes {
                group: Some(group.to_owned()),
                namespace: Some(cluster.namespace.clone()),
                resource: Some(resource.to_owned()),
                subresource: Some(subresource.to_owned()).filter(|it| !it.is_empty()),
                verb: Some((*verb).to_owned()),
                ..ResourceAttributes::default()
            };
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(attributes),
                    ..SelfSubjectAccessReviewSpec::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            match ask("a right", api.create(&PostParams::default(), &review)).await {
                Ok(review) if review.status.as_ref().is_some_and(|it| it.allowed) => {}
                Ok(_) => lacking.push(*verb),
                Err(error) => {
                    checks.push(check("rights", level, format!("{what}: {error}"), "Try again."));
                    break;
                }
            }
        }
        if !lacking.is_empty() {
            let text = format!("Podyard may not {} {what}", lacking.join(", "));
            let advice = "Bind the Role of Podyard's manifests to the account that it uses.";
            checks.push(check("rights", level, text, advice));
        }
    }
    if checks.is_empty() {
        checks.push(check("rights", Level::Ok, "Podyard may do all that it needs", ""));
    }
    checks
}

async fn storage(cluster: &Cluster, options: &Options) -> Check {
    const NAME: &str = "storage";
    let api: Api<StorageClass> = Api::all(cluster.client.clone());
    let classes = match raw("the storage classes", api.list(&ListParams::default())).await {
        Ok(Ok(list)) => list.items,
        Ok(Err(error)) if is(&error, 403) => {
            let advice = "Nothing, if the trial succeeds. To look before: let it list storageclasses.";
            return check(NAME, Level::Warning, "Podyard may not see the storage classes", advice);
        }
        Ok(Err(error)) => return check(NAME, Level::Failure, error.to_string(), "Try again."),
        Err(error) => return check(NAME, Level::Failure, error.to_string(), "Try again."),
    };
    chosen_class(&classes, &options.storage_class)
}

fn chosen_class(classes: &[StorageClass], wanted: &str) -> Check {
    const NAME: &str = "storage";
    let name = |it: &StorageClass| it.metadata.name.clone().unwrap_or_default();
    let names: Vec<String> = classes.iter().map(name).collect();
    let is_default = |it: &&StorageClass| {
        let annotations = it.metadata.annotations.as_ref();
        annotations
            .and_then(|it| it.get("storageclass.kubernetes.io/is-default-class"))
            .is_some_and(|it| it == "true")
    };
    let found = if wanted.is_empty() {
        classes.iter().find(is_default)
    } else {
        classes.iter().find(|it| name(it) == wanted)
    };
    let Some(class) = found else {
        let there = if names.is_empty() {
            "there is none".to_owned()
        } else {
            format!("there are {}", names.join(", "))
        };
        return if wanted.is_empty() {
            let advice = "Name one of them in Podyard's configuration, or mark one as the default.";
            check(NAME, Level::Failure, format!("the cluster has no default storage class; {there}"), advice)
        } else {
            let text = format!("the storage class {wanted} is not there; {there}");
            check(NAME, Level::Failure, text, "Name another in Podyard's configuration.")
        };
    };
    let name = name(class);
    if class.allow_volume_expansion == Some(true) {
        check(NAME, Level::Ok, format!("the storage class {name}, whose volumes can grow"), "")
    } else {
        let advice = "If spaces are to grow, use a class with allowVolumeExpansion.";
        check(NAME, Level::Warning, format!("volumes of the storage class {name} cannot grow"), advice)
    }
}

async fn definition(cluster: &Cluster) -> Check {
    let api: Api<crate::Space> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    match raw("the custom resource", api.list(&ListParams::default().limit(1))).await {
        Ok(Ok(_)) => check("definition", Level::Ok, "the custom resource Space is there", ""),
        Ok(Err(error)) => {
            let text = status(&error).map_or_else(|| error.to_string(), |it| it.message.clone());
            let advice = "Apply the CustomResourceDefinition of Podyard's manifests.";
            check(
                "definition",
                Level::Failure,
                format!("the custom resource Space is not there: {text}"),
                advice,
            )
        }
        Err(error) => check("definition", Level::Failure, error.to_string(), "Try again."),
    }
}

/// Whether somebody makes pods of custom resources, as far as the Lease tells.
async fn controller(cluster: &Cluster, options: &Options) -> Check {
    const NAME: &str = "controller";
    let advice = "Run `podyard controller`, which the manifests' custom-resources bring.";
    let api: Api<Lease> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    match ask("the controller's Lease", api.get_opt(&lease::name(options, Role::Controller))).await {
        Ok(found) => match found.and_then(|it| it.spec).filter(is_held) {
            Some(held) => {
                let who = held.holder_identity.unwrap_or_default();
                check(NAME, Level::Ok, format!("{who} makes the pods"), "")
            }
            None => check(NAME, Level::Warning, "no controller is at work", advice),
        },
        Err(error) => check(NAME, Level::Warning, error.to_string(), advice),
    }
}

/// Whether it was renewed not long ago, by clocks that may differ a little.
fn is_held(lease: &LeaseSpec) -> bool {
    let length = i64::from(lease.lease_duration_seconds.unwrap_or(0)) + 30;
    let now = Timestamp::now().as_second();
    let renewed = lease.renew_time.as_ref().map_or(0, |it| it.0.as_second());
    lease.holder_identity.as_ref().is_some_and(|it| !it.is_empty()) && now - renewed < length
}

/// Runs a pod that writes into its files, as a space's does, and removes both.
async fn trial(options: &Options, stop: impl Future<Output = ()>) -> Check {
    const NAME: &str = "trial";
    // Another installation's: to a server that runs already it is no orphan.
    let installation = format!("{}-doctor", options.installation);
    let options = Options { way: Way::Pods, reach: Reach::Direct, installation, ..options.clone() };
    let image = options.git_image.clone();
    let driver = match KubernetesDriver::with_role(options, Role::Guest).await {
        Ok(driver) => driver,
        Err(error) => return check(NAME, Level::Failure, error.to_string(), "Try again."),
    };
    let mark: String = rand::random::<[u8; 6]>().iter().map(|it| format!("{it:02x}")).collect();
    let launch = Launch {
        id: format!("doctor-{mark}"),
        sid: mark,
        base_path: "/".to_owned(),
        command: ["sh", "-c", "touch {dir}/trial && rm {dir}/trial"].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cpu: "100m".to_owned(),
        memory: "64Mi".to_owned(),
        storage: "64Mi".to_owned(),
        user: "doctor".to_owned(),
        name: "Podyard's doctor".to_owned(),
        container: Some(Container { image, port: 8080, run_as: Some(1000), ..Container::default() }),
    };
    let began = Instant::now();
    let result = tokio::select! {
        result = run_trial(&driver, &launch) => result,
        () = stop => Err("it was broken off".to_owned()),
    };
    let removed = async {
        driver.stop(&launch.id, Duration::ZERO).await?;
        driver.delete(&launch.id).await
    };
    let removed = removed.await;
    driver.end().await;
    match (result, removed) {
        (Ok(()), Ok(())) => {
            let text = format!("a pod with files ran and was removed, in {} s", began.elapsed().as_secs());
            check(NAME, Level::Ok, text, "")
        }
        (Ok(()), Err(error)) => {
            let text = format!("a pod with files ran, but cannot be removed: {error}");
            check(NAME, Level::Failure, text, "Remove what has the label podyard.dev/user=doctor.")
        }
        (Err(why), _) => check(
            NAME,
            Level::Failure,
            format!("a pod with files does not run: {why}"),
            "Mend what it says and try again.",
        ),
    }
}

async fn run_trial(driver: &KubernetesDriver, launch: &Launch) -> Result<(), String> {
    let told = |error: podyard_driver::Error| error.to_string();
    driver.start(launch).await.map_err(told)?;
    let deadline = Instant::now() + TRIAL;
    let mut last = String::new();
    while Instant::now() < deadline {
        let all = driver.list().await.map_err(told)?;
        let Some(seen) = all.into_iter().find(|it| it.id == launch.id) else {
            return Err("it was gone".to_owned());
        };
        match seen.phase {
            Phase::Exited(exit) if exit.code == Some(0) => return Ok(()),
            Phase::Exited(exit) => {
                let code = exit.code.map(|it| format!("exit code {it}"));
                let parts = [exit.reason, code.unwrap_or_default(), exit.last_lines.join("; ")];
                return Err(parts.into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join(": "));
            }
            _ => last = seen.detail,
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(if last.is_empty() { format!("it was not done after {} s", TRIAL.as_secs()) } else { last })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn class(name: &str, default: bool, grows: bool) -> StorageClass {
        let default = if default { "true" } else { "false" };
        serde_json::from_value(json!({
            "metadata": { "name": name, "annotations": { "storageclass.kubernetes.io/is-default-class": default } },
            "provisioner": "p", "allowVolumeExpansion": grows,
        }))
        .unwrap()
    }

    #[test]
    fn classes() {
        let all = [class("slow", false, false), class("fast", true, true)];
        assert_eq!(chosen_class(&all, "").level, Level::Ok);
        assert_eq!(chosen_class(&all, "slow").level, Level::Warning);
        let none = chosen_class(&all, "other");
        assert_eq!(none.level, Level::Failure);
        assert!(none.text.contains("slow, fast"), "{}", none.text);
        assert!(chosen_class(&all[..1], "").text.contains("no default"));
        assert!(chosen_class(&[], "").text.contains("there is none"));
    }
}
