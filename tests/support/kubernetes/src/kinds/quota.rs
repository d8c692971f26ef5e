//! ResourceQuota and LimitRange.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::resource::Resource;
use crate::status::Failure;
use crate::store::State;
use crate::value::{list, map, name, namespace, quantity, text};

/// Lays a namespace's LimitRanges on a new pod.
pub(crate) fn limits(state: &State, of: &Resource, pod: &mut Value) -> Result<(), Failure> {
    let ranges = state.all("limitranges", Some(namespace(pod)));
    let mut told = Vec::new();
    for range in &ranges {
        for limit in list(&range["spec"]["limits"]).iter().filter(|it| it["type"] == "Container") {
            let containers = pod["spec"]["containers"].as_array_mut().into_iter().flatten();
            for container in containers {
                let called = text(&container["name"]).to_owned();
                for (kind, from, word) in
                    [("requests", "defaultRequest", "request"), ("limits", "default", "limit")]
                {
                    for (what, value) in limit[from].as_object().into_iter().flatten() {
                        // A limit of its own is its request as well.
                        let own = &container["resources"];
                        let named = !own[kind][what].is_null()
                            || (kind == "requests" && !own["limits"][what].is_null());
                        if !named {
                            let resources = map(container).entry("resources").or_insert(json!({}));
                            map(resources).entry(kind).or_insert(json!({}))[what] = value.clone();
                            told.push(format!("{what} {word} for container {called}"));
                        }
                    }
                }
                for (what, max) in limit["max"].as_object().into_iter().flatten() {
                    let is = &container["resources"]["limits"][what];
                    let why = match quantity(is).zip(quantity(max)) {
                        None => format!(
                            "maximum {what} usage per Container is {}.  No limit is specified",
                            text(max)
                        ),
                        Some((is_worth, max_worth)) if is_worth > max_worth => format!(
                            "maximum {what} usage per Container is {}, but limit is {}",
                            text(max),
                            text(is)
                        ),
                        _ => continue,
                    };
                    return Err(Failure::forbidden(of, name(pod), why));
                }
            }
        }
    }
    if !told.is_empty() {
        let note = format!("LimitRanger plugin set: {}", told.join("; "));
        let annotations = map(&mut pod["metadata"]).entry("annotations").or_insert(json!({}));
        annotations["kubernetes.io/limit-ranger"] = json!(note);
    }
    Ok(())
}

/// What an object uses, in the words of a quota.
fn usage(object: &Value, store: &str) -> BTreeMap<String, f64> {
    let mut used = BTreeMap::new();
    match store {
        "pods" => {
            let phase = text(&object["status"]["phase"]);
            if matches!(phase, "Succeeded" | "Failed") {
                return used;
            }
            used.insert("pods".to_owned(), 1.0);
            for container in list(&object["spec"]["containers"]) {
                for (kind, before) in [("requests", "requests."), ("limits", "limits.")] {
                    for (what, value) in container["resources"][kind].as_object().into_iter().flatten() {
                        let worth = quantity(value).unwrap_or_default();
                        *used.entry(format!("{before}{what}")).or_default() += worth;
                        if kind == "requests" {
                            *used.entry(what.clone()).or_default() += worth;
                        }
                    }
                }
            }
        }
        "persistentvolumeclaims" => {
            let worth = quantity(&object["spec"]["resources"]["requests"]["storage"]);
            used.insert("persistentvolumeclaims".to_owned(), 1.0);
            used.insert("requests.storage".to_owned(), worth.unwrap_or_default());
        }
        _ => {
            used.insert(format!("count/{store}"), 1.0);
        }
    }
    used
}

fn used(state: &State, space: &str, store: &str) -> BTreeMap<String, f64> {
    let mut sum = BTreeMap::new();
    for object in state.all(store, Some(space)) {
        for (what, worth) in usage(&object, store) {
            *sum.entry(what).or_default() += worth;
        }
    }
    sum
}

/// A worth, as a quota writes it.
fn shown(what: &str, worth: f64) -> String {
    const MEBI: f64 = 1024.0 * 1024.0;
    if what.contains("cpu") {
        return if worth.fract() == 0.0 { format!("{worth}") } else { format!("{}m", worth * 1e3) };
    }
    for (unit, factor) in [("Gi", MEBI * 1024.0), ("Mi", MEBI), ("Ki", 1024.0)] {
        if worth > 0.0 && worth % factor == 0.0 {
            return format!("{}{unit}", worth / factor);
        }
    }
    format!("{worth}")
}

/// Refuses what would exceed a quota of its namespace.
pub(crate) fn check(
    state: &State,
    of: &Resource,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Failure> {
    let store = of.store();
    let space = namespace(object);
    let mut asked = usage(object, &store);
    if let Some(old) = old {
        for (what, worth) in usage(old, &store) {
            *asked.entry(what).or_default() -= worth;
        }
    }
    asked.retain(|_, worth| *worth > 0.0);
    for quota in state.all("resourcequotas", Some(space)) {
        let hard = &quota["spec"]["hard"];
        let missing: Vec<&str> = hard
            .as_object()
            .into_iter()
            .flatten()
            .map(|(what, _)| what.as_str())
            .filter(|what| {
                store == "pods"
                    && old.is_none()
                    && matches!(
                        *what,
                        "requests.cpu"
                            | "requests.memory"
                            | "limits.cpu"
                            | "limits.memory"
                            | "cpu"
                            | "memory"
                    )
                    && !asked.contains_key(*what)
            })
            .collect();
        if !missing.is_empty() {
            let each: Vec<String> =
                missing.iter().map(|what| format!("{what} for: {}", containers(object))).collect();
            let why = format!("failed quota: {}: must specify {}", name(&quota), each.join("; "));
            return Err(Failure::forbidden(of, name(object), why));
        }
        let sum = used(state, space, &store);
        let over: Vec<&String> = asked
            .iter()
            .filter(|(what, worth)| {
                let limit = quantity(&hard[what.as_str()]);
                let is = sum.get(*what).copied().unwrap_or_default();
                limit.is_some_and(|limit| is + **worth > limit)
            })
            .map(|(what, _)| what)
            .collect();
        if over.is_empty() {
            continue;
        }
        let each = |value: &dyn Fn(&str) -> String| {
            over.iter().map(|what| format!("{what}={}", value(what))).collect::<Vec<_>>().join(",")
        };
        let why = format!(
            "exceeded quota: {}, requested: {}, used: {}, limited: {}",
            name(&quota),
            each(&|what| shown(what, asked[what])),
            each(&|what| shown(what, sum.get(what).copied().unwrap_or_default())),
            each(&|what| text(&hard[what]).to_owned()),
        );
        return Err(Failure::forbidden(of, name(object), why));
    }
    Ok(())
}

fn containers(pod: &Value) -> String {
    let names: Vec<&str> = list(&pod["spec"]["containers"]).iter().map(|it| text(&it["name"])).collect();
    names.join(",")
}

/// The status of a quota.
pub(crate) fn status(state: &State, quota: &Value) -> Value {
    let hard = &quota["spec"]["hard"];
    let mut sum = used(state, namespace(quota), "pods");
    sum.extend(used(state, namespace(quota), "persistentvolumeclaims"));
    let used: BTreeMap<&String, String> = hard
        .as_object()
        .into_iter()
        .flatten()
        .map(|(what, _)| (what, shown(what, sum.get(what).copied().unwrap_or_default())))
        .collect();
    json!({"hard": hard, "used": used})
}
