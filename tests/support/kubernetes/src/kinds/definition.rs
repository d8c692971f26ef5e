//! CustomResourceDefinitions.

use serde_json::{Value, json};

use crate::status::Cause;
use crate::value::{default, list, name, text};

pub(crate) fn defaults(definition: &mut Value, new: bool) {
    let spec = &mut definition["spec"];
    if !spec.is_object() {
        return;
    }
    let kind = text(&spec["names"]["kind"]).to_owned();
    default(&mut spec["names"], "listKind", json!(format!("{kind}List")));
    default(&mut spec["names"], "singular", json!(kind.to_lowercase()));
    default(spec, "conversion", json!({"strategy": "None"}));
    if new {
        let stored: Vec<Value> = list(&spec["versions"])
            .iter()
            .filter(|it| it["storage"] == true)
            .map(|it| it["name"].clone())
            .collect();
        definition["status"] = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""},
            "storedVersions": stored});
    }
}

pub(crate) fn validate(definition: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &definition["spec"];
    let wanted = format!("{}.{}", text(&spec["names"]["plural"]), text(&spec["group"]));
    if name(definition) != wanted {
        causes.push(Cause::invalid(
            "metadata.name",
            &definition["metadata"]["name"],
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if !matches!(text(&spec["scope"]), "Namespaced" | "Cluster") {
        causes.push(Cause::unsupported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]));
    }
    for (at, version) in list(&spec["versions"]).iter().enumerate() {
        if !version["schema"]["openAPIV3Schema"].is_object() {
            let field = format!("spec.versions[{at}].schema.openAPIV3Schema");
            causes.push(Cause::required(field, ""));
        }
    }
    if list(&spec["versions"]).iter().filter(|it| it["storage"] == true).count() != 1 {
        causes.push(Cause::invalid(
            "spec.versions",
            &spec["versions"],
            "must have exactly one version marked as storage version",
        ));
    }
    causes
}
