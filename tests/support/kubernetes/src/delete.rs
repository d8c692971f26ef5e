//! DELETE, of one and of many, and eviction.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::resource::Resource;
use crate::route::Target;
use crate::status::{Cause, Failure};
use crate::store::State;
use crate::value::{in_future, leaving, list, map, name, namespace, now, stamp, text, uid, utc, version};
use crate::write::find;

/// What a deletion asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub grace: Option<i64>,
    pub policy: Option<String>,
    pub uid: Option<String>,
    pub version: Option<String>,
    pub dry: bool,
}

impl Options {
    pub fn parse(body: &Value, query: &dyn Fn(&str) -> String) -> Result<Self, Failure> {
        let string = |value: &Value| value.as_str().map(str::to_owned);
        let given = |name: &str| Some(query(name)).filter(|it| !it.is_empty());
        let policy = string(&body["propagationPolicy"]).or_else(|| given("propagationPolicy"));
        if let Some(policy) = &policy
            && !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan")
        {
            let cause = Cause::unsupported(
                "propagationPolicy",
                &json!(policy),
                &["Foreground", "Background", "Orphan", "nil"],
            );
            return Err(Failure::options("DeleteOptions", &[cause]));
        }
        let grace =
            match given("gracePeriodSeconds") {
                Some(text) => Some(text.parse().map_err(|_| {
                    Failure::bad(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
                })?),
                None => body["gracePeriodSeconds"].as_i64(),
            };
        Ok(Self {
            grace,
            policy,
            uid: string(&body["preconditions"]["uid"]),
            version: string(&body["preconditions"]["resourceVersion"]),
            dry: given("dryRun").is_some() || !list(&body["dryRun"]).is_empty(),
        })
    }
}

fn preconditions(of: &Resource, object: &Value, options: &Options) -> Result<(), Failure> {
    let wrong = |what: &str, wanted: &str, is: &str| {
        let why = format!(
            "Operation cannot be fulfilled on {} \"{}\": the {what} in the precondition ({wanted}) does not match \
             the {what} in record ({is}). The object might have been {}",
            of.kind,
            name(object),
            if what == "UID" { "deleted and then recreated" } else { "modified" },
        );
        let mut details = json!({"name": name(object), "kind": of.kind});
        if !of.group.is_empty() {
            details["group"] = json!(of.group);
        }
        Err(Failure::new(409, "Conflict", why).details(details))
    };
    match (&options.uid, &options.version) {
        (Some(wanted), _) if wanted != uid(object) => wrong("UID", wanted, uid(object)),
        (_, Some(wanted)) if wanted != version(object) => wrong("ResourceVersion", wanted, version(object)),
        _ => Ok(()),
    }
}

/// DELETE of one: what the answer shows.
pub(crate) fn delete(state: &mut State, target: &Target, options: &Options) -> Result<Value, Failure> {
    let of = &target.of;
    let object = find(state, target)?;
    preconditions(of, &object, options)?;
    let mut new = Value::clone(&object);
    let shows = matches!(
        of.store().as_str(),
        "pods"
            | "persistentvolumeclaims"
            | "persistentvolumes"
            | "namespaces"
            | "resourcequotas"
            | "serviceaccounts"
            | "services"
    );
    if of.is_pod() {
        return Ok(delete_pod(state, of, new, options));
    }
    let gone = |object: &Value| {
        let mut details = of.details(name(object));
        details["uid"] = json!(uid(object));
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": details})
    };
    if leaving(&new) {
        return Ok(new);
    }
    let finalizer = match options.policy.as_deref() {
        Some("Foreground") => Some("foregroundDeletion"),
        Some("Orphan") => Some("orphan"),
        _ => None,
    };
    if of.plural == "customresourcedefinitions" {
        finalize(&mut new, "customresourcecleanup.apiextensions.k8s.io");
    }
    if let Some(finalizer) = finalizer {
        finalize(&mut new, finalizer);
    }
    let stays = of.plural == "namespaces" || !list(&new["metadata"]["finalizers"]).is_empty();
    if options.dry {
        return Ok(if shows || stays { new } else { gone(&new) });
    }
    if !stays {
        state.remove(&of.store(), namespace(&new), name(&new));
        return Ok(if shows { new } else { gone(&new) });
    }
    new["metadata"]["deletionTimestamp"] = json!(now());
    if of.plural == "namespaces" {
        new["status"]["phase"] = json!("Terminating");
    } else if of.plural != "customresourcedefinitions" {
        new["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        older(&mut new);
    }
    if of.plural == "customresourcedefinitions" {
        terminating(&mut new);
    }
    Ok(Value::clone(&state.put(&of.store(), new)))
}

fn finalize(object: &mut Value, with: &str) {
    let finalizers = map(&mut object["metadata"]).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(finalizers) = finalizers.as_array_mut()
        && !finalizers.iter().any(|it| it == with)
    {
        finalizers.push(json!(with));
    }
}

fn terminating(definition: &mut Value) {
    let condition = json!({"type": "Terminating", "status": "True", "lastTransitionTime": now(),
        "reason": "InstanceDeletionPending",
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"});
    if let Some(conditions) = definition["status"]["conditions"].as_array_mut() {
        conditions.push(condition);
    }
}

/// A deletion counts as a change where changes are counted.
fn older(object: &mut Value) {
    if let Some(generation) = object["metadata"]["generation"].as_i64() {
        object["metadata"]["generation"] = json!(generation + 1);
    }
}

fn delete_pod(state: &mut State, of: &Resource, mut pod: Value, options: &Options) -> Value {
    let store = of.store();
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    let mut grace = options.grace.unwrap_or(own);
    if grace < 0 {
        grace = 1;
    }
    let phase = text(&pod["status"]["phase"]);
    let unplaced = text(&pod["spec"]["nodeName"]).is_empty();
    if unplaced || matches!(phase, "Succeeded" | "Failed") {
        grace = 0;
    }
    if leaving(&pod) {
        let before = pod["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or_default();
        let asked = options.grace.is_some() || grace == 0;
        if !asked || grace >= before {
            return pod;
        }
        // From when it was first asked for.
        let until = DateTime::parse_from_rfc3339(text(&pod["metadata"]["deletionTimestamp"]))
            .map_or_else(|_| utc(), |it| it.with_timezone(&Utc));
        let until = until - chrono::Duration::seconds(before - grace);
        let left = if grace == 0 { 0 } else { (until - utc()).num_seconds().max(1) };
        pod["metadata"]["deletionTimestamp"] = json!(stamp(until));
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(left);
    } else {
        let seconds = u64::try_from(grace).unwrap_or_default();
        pod["metadata"]["deletionTimestamp"] = json!(in_future(Duration::from_secs(seconds)));
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        older(&mut pod);
    }
    if options.dry {
        return pod;
    }
    let written = state.put(&store, pod);
    if grace == 0 && list(&written["metadata"]["finalizers"]).is_empty() {
        state.remove(&store, namespace(&written), name(&written));
    }
    Value::clone(&written)
}

/// POST of an Eviction.
pub(crate) fn evict(state: &mut State, target: &Target, body: &Value) -> Result<Value, Failure> {
    let options = Options::parse(&body["deleteOptions"], &|_| String::new())?;
    let pod = find(state, target)?;
    preconditions(&target.of, &pod, &options)?;
    if !options.dry {
        let mut pod = Value::clone(&pod);
        let condition = json!({"type": "DisruptionTarget", "status": "True",
            "lastProbeTime": null, "lastTransitionTime": now(), "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting"});
        let conditions = map(&mut pod["status"]).entry("conditions").or_insert_with(|| json!([]));
        if let Some(conditions) = conditions.as_array_mut() {
            conditions.push(condition);
        }
        let written = state.put("pods", pod);
        delete_pod(state, &target.of, Value::clone(&written), &options);
    }
    Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
}
