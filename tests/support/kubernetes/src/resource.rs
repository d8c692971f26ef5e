//! What kinds of objects there are.

use std::sync::Arc;

use serde_json::{Value, json};

/// A kind of object, in one version.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub namespaced: bool,
    pub short: Vec<String>,
    pub categories: Vec<String>,
    /// `(name, kind, verbs)` of the subresources.
    pub sub: Vec<(String, String, Vec<String>)>,
    /// Whether `metadata.generation` is kept.
    pub generation: bool,
    /// The schema of a custom resource, with its columns.
    pub custom: Option<Arc<Value>>,
}

const ALL: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Resource {
    /// The name under which the objects are kept: events of both groups are one store.
    pub fn store(&self) -> String {
        match self.plural.as_str() {
            "events" => "events".to_owned(),
            plural => self.full_of(plural),
        }
    }

    fn full_of(&self, plural: &str) -> String {
        match self.group.as_str() {
            "" => plural.to_owned(),
            group => format!("{plural}.{group}"),
        }
    }

    /// `deployments.apps`, as messages call it.
    pub fn full(&self) -> String {
        self.full_of(&self.plural)
    }

    pub fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// The `details` of a Status about one of them.
    pub fn details(&self, name: &str) -> Value {
        let mut details = json!({"kind": self.plural});
        if !name.is_empty() {
            details["name"] = json!(name);
        }
        if !self.group.is_empty() {
            details["group"] = json!(self.group);
        }
        details
    }

    pub fn verbs(&self) -> Vec<&'static str> {
        if self.plural == "selfsubjectaccessreviews" {
            return vec!["create"];
        }
        ALL.into_iter().filter(|verb| !(self.plural == "namespaces" && *verb == "deletecollection")).collect()
    }

    /// Whether there is a `/status` apart from the main path.
    pub fn has_status(&self) -> bool {
        self.sub.iter().any(|(name, ..)| name == "status")
    }

    /// Whether its objects are removed by a DELETE with a grace, or at once.
    pub fn is_pod(&self) -> bool {
        self.group.is_empty() && self.plural == "pods"
    }
}

/// The kinds that every server has.
pub(crate) fn built_in() -> Vec<Resource> {
    // group, version, plural, kind, namespaced, short names, subresources, generation
    type Row =
        (&'static str, &'static str, &'static str, &'static str, bool, &'static str, &'static str, bool);
    let table: &[Row] = &[
        ("", "v1", "configmaps", "ConfigMap", true, "cm", "", false),
        ("", "v1", "endpoints", "Endpoints", true, "ep", "", false),
        ("", "v1", "events", "Event", true, "ev", "", false),
        ("", "v1", "limitranges", "LimitRange", true, "limits", "", false),
        ("", "v1", "namespaces", "Namespace", false, "ns", "status", false),
        ("", "v1", "nodes", "Node", false, "no", "status", false),
        ("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", true, "pvc", "status", false),
        ("", "v1", "persistentvolumes", "PersistentVolume", false, "pv", "status", false),
        ("", "v1", "pods", "Pod", true, "po", "status attach exec eviction log portforward proxy", true),
        ("", "v1", "resourcequotas", "ResourceQuota", true, "quota", "status", false),
        ("", "v1", "secrets", "Secret", true, "", "", false),
        ("", "v1", "serviceaccounts", "ServiceAccount", true, "sa", "token", false),
        ("", "v1", "services", "Service", true, "svc", "status", false),
        ("apps", "v1", "deployments", "Deployment", true, "deploy", "scale status", true),
        ("apps", "v1", "replicasets", "ReplicaSet", true, "rs", "scale status", true),
        ("apps", "v1", "statefulsets", "StatefulSet", true, "sts", "scale status", true),
        (
            "authorization.k8s.io",
            "v1",
            "selfsubjectaccessreviews",
            "SelfSubjectAccessReview",
            false,
            "",
            "",
            false,
        ),
        ("batch", "v1", "jobs", "Job", true, "", "status", true),
        ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true, "", "", true),
        ("events.k8s.io", "v1", "events", "Event", true, "ev", "", false),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "clusterrolebindings",
            "ClusterRoleBinding",
            false,
            "",
            "",
            false,
        ),
        ("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", false, "", "", false),
        ("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", true, "", "", false),
        ("rbac.authorization.k8s.io", "v1", "roles", "Role", true, "", "", false),
        ("networking.k8s.io", "v1", "ingresses", "Ingress", true, "ing", "status", true),
        ("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", true, "netpol", "", true),
        ("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", true, "pdb", "status", true),
        ("storage.k8s.io", "v1", "storageclasses", "StorageClass", false, "sc", "", false),
        (
            "apiextensions.k8s.io",
            "v1",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            false,
            "crd crds",
            "status",
            true,
        ),
        ("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", false, "pc", "", true),
        ("coordination.k8s.io", "v1", "leases", "Lease", true, "", "", false),
    ];
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    table
        .iter()
        .map(|&(group, version, plural, kind, namespaced, short, sub, generation)| Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            kind: kind.to_owned(),
            list_kind: format!("{kind}List"),
            namespaced,
            short: words(short),
            categories: if matches!(plural, "pods" | "services" | "deployments") {
                vec!["all".to_owned()]
            } else {
                vec![]
            },
            sub: words(sub).into_iter().map(|name| sub_of(kind, name)).collect(),
            generation,
            custom: None,
        })
        .collect()
}

fn sub_of(kind: &str, name: String) -> (String, String, Vec<String>) {
    let (kind, verbs): (&str, &[&str]) = match name.as_str() {
        "attach" => ("PodAttachOptions", &["create", "get"]),
        "exec" => ("PodExecOptions", &["create", "get"]),
        "portforward" => ("PodPortForwardOptions", &["create", "get"]),
        "proxy" => ("PodProxyOptions", &["create", "delete", "get", "patch", "update"]),
        "eviction" => ("Eviction", &["create"]),
        "log" => ("Pod", &["get"]),
        "scale" => ("Scale", &["get", "patch", "update"]),
        "token" => ("TokenRequest", &["create"]),
        _ => (kind, &["get", "patch", "update"]),
    };
    (name, kind.to_owned(), verbs.iter().map(|it| (*it).to_owned()).collect())
}

/// The kinds that a CustomResourceDefinition adds: one for each version that is served.
pub(crate) fn of_definition(definition: &Value) -> Vec<Resource> {
    let spec = &definition["spec"];
    let accepted = &definition["status"]["acceptedNames"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().map(text).collect() };
    if text(&accepted["kind"]).is_empty() {
        return Vec::new();
    }
    spec["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|version| version["served"] == true)
        .map(|version| {
            let kind = text(&accepted["kind"]);
            let sub = version["subresources"]["status"]
                .is_object()
                .then(|| sub_of(&kind, "status".to_owned()))
                .into_iter()
                .collect();
            Resource {
                group: text(&spec["group"]),
                version: text(&version["name"]),
                plural: text(&accepted["plural"]),
                singular: text(&accepted["singular"]),
                list_kind: text(&accepted["listKind"]),
                kind,
                namespaced: spec["scope"] == "Namespaced",
                short: list(&accepted["shortNames"]),
                categories: list(&accepted["categories"]),
                sub,
                generation: true,
                custom: Some(Arc::new(version.clone())),
            }
        })
        .collect()
}
