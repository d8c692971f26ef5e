//! The garbage collector: what has lost its owner goes; Foreground waits, Orphan lets go.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::Server;
use crate::delete::{Options, delete};
use crate::resource::{Resource, built_in, of_definition};
use crate::route::Target;
use crate::store::{Change, State};
use crate::value::{leaving, list, map, name, namespace, text, uid};

pub(super) fn kind_of(state: &State, store: &str) -> Option<Resource> {
    let definitions = state.all("customresourcedefinitions.apiextensions.k8s.io", None);
    let custom = definitions.iter().flat_map(|it| of_definition(it));
    built_in().into_iter().chain(custom).find(|it| it.store() == store && it.group != "events.k8s.io")
}

pub(crate) fn act(server: &Arc<Server>, change: &Change) {
    let owners = change.new.as_ref().map(|it| list(&it["metadata"]["ownerReferences"]).to_vec());
    let finalizers = change
        .new
        .as_ref()
        .filter(|it| leaving(it))
        .map(|it| list(&it["metadata"]["finalizers"]).to_vec())
        .unwrap_or_default();
    let gone = change.new.is_none();
    let fresh = change.old.is_none() && owners.as_ref().is_some_and(|it| !it.is_empty());
    let waits = |with: &str| finalizers.iter().any(|it| it == with);
    if !(gone || fresh || waits("foregroundDeletion") || waits("orphan")) {
        return;
    }
    // Events own nothing; there are many of them.
    if change.store == "events" {
        return;
    }
    server.store.write(|state| {
        let id = uid(&change.shown).to_owned();
        if fresh && let Some(new) = &change.new {
            let alive = owners.iter().flatten().any(|it| state.by_uid(text(&it["uid"])).is_some());
            if !alive {
                remove(state, &change.store, new);
            }
        }
        if waits("orphan") {
            for (store, child) in children(state, &id) {
                let mut child = Value::clone(&child);
                if let Some(owners) = child["metadata"]["ownerReferences"].as_array_mut() {
                    owners.retain(|it| it["uid"] != id);
                }
                if list(&child["metadata"]["ownerReferences"]).is_empty() {
                    map(&mut child["metadata"]).remove("ownerReferences");
                }
                state.put(&store, child);
            }
            release(state, &change.store, &change.shown, "orphan");
        }
        if gone || waits("foregroundDeletion") {
            for (store, child) in children(state, &id) {
                if !leaving(&child) && !other_owner(state, &child, &id) {
                    remove(state, &store, &child);
                }
            }
        }
        // A blocking child that went, or an owner without any.
        let mut parents: Vec<String> = Vec::new();
        if waits("foregroundDeletion") {
            parents.push(id);
        }
        if gone {
            let owners = list(&change.shown["metadata"]["ownerReferences"]);
            parents.extend(owners.iter().map(|it| text(&it["uid"]).to_owned()));
        }
        for parent in parents {
            let Some((store, owner)) = state.by_uid(&parent) else { continue };
            let blocked = children(state, &parent).iter().any(|(_, child)| {
                list(&child["metadata"]["ownerReferences"])
                    .iter()
                    .any(|it| it["uid"] == parent && it["blockOwnerDeletion"] == true)
            });
            if !blocked {
                release(state, &store, &owner, "foregroundDeletion");
            }
        }
    });
}

fn other_owner(state: &State, child: &Value, than: &str) -> bool {
    list(&child["metadata"]["ownerReferences"])
        .iter()
        .any(|it| it["uid"] != than && state.by_uid(text(&it["uid"])).is_some())
}

fn children(state: &State, of: &str) -> Vec<(String, Arc<Value>)> {
    let mut children = Vec::new();
    for store in state.stores().into_iter().filter(|it| it != "events") {
        for object in state.all(&store, None) {
            if list(&object["metadata"]["ownerReferences"]).iter().any(|it| it["uid"] == of) {
                children.push((store.clone(), object));
            }
        }
    }
    children
}

pub(super) fn remove(state: &mut State, store: &str, object: &Value) {
    let Some(of) = kind_of(state, store) else { return };
    let target = Target {
        of,
        space: Some(namespace(object).to_owned()).filter(|it| !it.is_empty()),
        name: name(object).to_owned(),
        sub: String::new(),
        rest: String::new(),
        verb: "delete",
    };
    let _ = delete(state, &target, &Options::default());
}

/// Takes a finalizer away; without any the object goes.
pub(crate) fn release(state: &mut State, store: &str, of: &Value, finalizer: &str) {
    let Some(is) = state.get(store, namespace(of), name(of)) else { return };
    if uid(&is) != uid(of) || !list(&is["metadata"]["finalizers"]).iter().any(|it| it == finalizer) {
        return;
    }
    let mut new = Value::clone(&is);
    if let Some(finalizers) = new["metadata"]["finalizers"].as_array_mut() {
        finalizers.retain(|it| it != finalizer);
    }
    if list(&new["metadata"]["finalizers"]).is_empty() {
        if leaving(&new) {
            state.remove(store, namespace(of), name(of));
            return;
        }
        map(&mut new["metadata"]).remove("finalizers");
    } else {
        new["metadata"]["finalizers"] = json!(new["metadata"]["finalizers"]);
    }
    state.put(store, new);
}
