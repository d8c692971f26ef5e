//! The claim that keeps a space's files.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use podyard_driver::{Error, Launch, Result};
use serde_json::{Value, json};

use crate::{Options, names, quantity};

/// What is kept of a claim that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) version: String,
    /// Its storage class, if it has one.
    pub(crate) class: Option<String>,
    /// How much it asks for.
    pub(crate) asked: String,
    /// How much it has; empty while it is not bound.
    pub(crate) has: String,
    /// `Pending`, `Bound`, `Lost`.
    pub(crate) phase: String,
    /// Whether it is being removed.
    pub(crate) going: bool,
    /// Whether its file system grows only once a pod uses it anew.
    pub(crate) grows_at_start: bool,
}

impl Kept {
    pub(crate) fn of(claim: &PersistentVolumeClaim) -> Self {
        let (meta, spec, status) = (&claim.metadata, claim.spec.as_ref(), claim.status.as_ref());
        let storage = |map: Option<&std::collections::BTreeMap<String, _>>| {
            let quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
                map.and_then(|it| it.get("storage"));
            quantity.map(|it| it.0.clone()).unwrap_or_default()
        };
        let resources = spec.and_then(|it| it.resources.as_ref());
        let conditions = status.and_then(|it| it.conditions.as_deref()).unwrap_or_default();
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
            class: spec.and_then(|it| it.storage_class_name.clone()),
            asked: storage(resources.and_then(|it| it.requests.as_ref())),
            has: storage(status.and_then(|it| it.capacity.as_ref())),
            phase: status.and_then(|it| it.phase.clone()).unwrap_or_default(),
            going: meta.deletion_timestamp.is_some(),
            grows_at_start: conditions
                .iter()
                .any(|it| it.type_ == "FileSystemResizePending" && it.status == "True"),
        }
    }

    /// Whether it asks for less than `wanted`.
    pub(crate) fn is_less_than(&self, wanted: &str) -> bool {
        quantity::parse(&self.asked) < quantity::parse(wanted)
    }
}

/// The claim's name. One that is there keeps its own: its space may have been
/// another's when it was made.
pub(crate) fn name_of(launch: &Launch, kept: Option<&Kept>) -> String {
    kept.map_or_else(|| names::object_name(launch), |it| it.name.clone())
}

/// The claim of a space, as it is first applied. Later only its size changes:
/// see [`grown`].
pub(crate) fn claim(launch: &Launch, options: &Options, owner: Option<&OwnerReference>) -> Result<Value> {
    let own = launch.container.as_ref().map(|it| it.storage_class.clone()).unwrap_or_default();
    if quantity::parse(&launch.storage).is_none_or(|it| it == 0) {
        return Err(Error::Invalid(format!("the storage {:?} is not a quantity like 8Gi", launch.storage)));
    }
    let mut claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": names::object_name(launch),
            "labels": names::labels(launch, options),
            "annotations": names::annotations(launch),
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": launch.storage } },
        },
    });
    if let Some(class) = [own, options.storage_class.clone()].into_iter().find(|it| !it.is_empty()) {
        claim["spec"]["storageClassName"] = json!(class);
    }
    if let Some(owner) = owner {
        claim["metadata"]["ownerReferences"] = json!([owner]);
    }
    Ok(claim)
}

/// What is merged into a claim that is to be larger.
pub(crate) fn grown(storage: &str) -> Value {
    json!({ "spec": { "resources": { "requests": { "storage": storage } } } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::launch;

    #[test]
    fn a_new_claim() {
        let made = claim(&launch(), &Options::default(), None).unwrap();
        let wanted = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": "ws-ann-0123456789abcdef01234567",
                "labels": {
                    "app.kubernetes.io/name": "space",
                    "app.kubernetes.io/managed-by": "podyard",
                    "podyard.dev/installation": "podyard",
                    "podyard.dev/space": "s1",
                    "podyard.dev/user": "ann",
                    "podyard.dev/sid": "0123456789abcdef01234567",
                },
                "annotations": {
                    "podyard.dev/space": "s1",
                    "podyard.dev/user": "ann",
                    "podyard.dev/name": "My space",
                },
            },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "8Gi" } } },
        });
        assert_eq!(made, wanted);
    }

    #[test]
    fn the_template_names_the_class_before_the_configuration() {
        let options = Options { storage_class: "slow".into(), ..Options::default() };
        let class =
            |launch: &Launch| claim(launch, &options, None).unwrap()["spec"]["storageClassName"].clone();
        assert_eq!(class(&launch()), "slow");
        let mut other = launch();
        other.container.as_mut().unwrap().storage_class = "fast".into();
        assert_eq!(class(&other), "fast");
    }

    #[test]
    fn sizes() {
        let kept = Kept { asked: "4Gi".into(), ..Kept::default() };
        assert!(kept.is_less_than("8Gi") && !kept.is_less_than("4096Mi") && !kept.is_less_than("1G"));
        let wrong = Launch { storage: "much".into(), ..launch() };
        assert!(claim(&wrong, &Options::default(), None).is_err());
    }
}
