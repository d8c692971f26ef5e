//! The objects, and every change that was made to them: one counter of versions
//! for all, as in the real one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::value::{name, namespace};

/// `(namespace, name)`; the namespace is empty for what has none.
pub(crate) type Key = (String, String);
pub(crate) type Objects = BTreeMap<Key, Arc<Value>>;

/// One write.
#[derive(Debug)]
pub(crate) struct Change {
    pub version: u64,
    pub store: String,
    pub key: Key,
    pub old: Option<Arc<Value>>,
    /// None: it was removed.
    pub new: Option<Arc<Value>>,
    /// What a watcher of everything is shown.
    pub shown: Arc<Value>,
}

#[derive(Debug)]
pub(crate) struct State {
    /// The newest version.
    pub version: u64,
    /// What is older than this cannot be watched from.
    window: u64,
    /// The same of single kinds: each has a memory of its own.
    windows: BTreeMap<String, u64>,
    /// What is older than this cannot be listed exactly.
    pub compacted: u64,
    stores: BTreeMap<String, Objects>,
    /// The last changes, in the order of their versions.
    log: VecDeque<Arc<Change>>,
}

/// How many changes are kept.
const KEPT: usize = 200_000;

impl State {
    fn new() -> Self {
        Self {
            version: 100,
            window: 0,
            windows: BTreeMap::new(),
            compacted: 0,
            stores: BTreeMap::new(),
            log: VecDeque::new(),
        }
    }

    pub fn get(&self, store: &str, space: &str, name: &str) -> Option<Arc<Value>> {
        self.stores.get(store)?.get(&(space.to_owned(), name.to_owned())).cloned()
    }

    /// All objects of a kind, or those of one namespace, by key.
    pub fn all(&self, store: &str, space: Option<&str>) -> Vec<Arc<Value>> {
        let Some(objects) = self.stores.get(store) else { return Vec::new() };
        objects
            .iter()
            .filter(|((of, _), _)| space.is_none_or(|space| of == space))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// The objects of a namespace whose names begin so.
    pub fn named(&self, store: &str, space: &str, begin: &str) -> Vec<Arc<Value>> {
        let Some(objects) = self.stores.get(store) else { return Vec::new() };
        objects
            .range((space.to_owned(), begin.to_owned())..)
            .take_while(|((of, name), _)| of == space && name.starts_with(begin))
            .map(|(_, object)| object.clone())
            .collect()
    }

    pub fn stores(&self) -> Vec<String> {
        self.stores.keys().cloned().collect()
    }

    pub fn by_uid(&self, uid: &str) -> Option<(String, Arc<Value>)> {
        self.stores.iter().find_map(|(store, objects)| {
            objects
                .values()
                .find(|object| object["metadata"]["uid"] == uid)
                .map(|object| (store.clone(), object.clone()))
        })
    }

    /// What was there at an earlier version.
    pub fn at(&self, store: &str, version: u64) -> Objects {
        let mut objects = self.stores.get(store).cloned().unwrap_or_default();
        for change in self.log.iter().rev().take_while(|it| it.version > version) {
            if change.store != store {
                continue;
            }
            match &change.old {
                Some(old) => objects.insert(change.key.clone(), old.clone()),
                None => objects.remove(&change.key),
            };
        }
        objects
    }

    /// The changes after `version`.
    pub fn since(&self, version: u64) -> Vec<Arc<Change>> {
        let seen = self.log.partition_point(|it| it.version <= version);
        self.log.iter().skip(seen).cloned().collect()
    }

    /// The oldest version that a kind can be watched from.
    pub fn oldest(&self, store: &str) -> u64 {
        self.windows.get(store).copied().unwrap_or_default().max(self.window)
    }

    /// What is older than now cannot be watched from any more, of a kind or of all (`*`).
    pub fn narrow(&mut self, store: &str) {
        if store == "*" {
            self.window = self.version;
        } else {
            self.windows.insert(store.to_owned(), self.version);
        }
    }

    /// What is older than now cannot be listed exactly any more.
    pub fn compact(&mut self) {
        self.compacted = self.version;
    }

    /// Forgets all changes, as a server does that starts anew. (They stay for what
    /// is within the cluster and may not have seen the last of them.)
    pub fn forget(&mut self) {
        self.version += 8;
        self.window = self.version;
        self.compacted = self.version;
    }

    /// Writes an object, with a new version.
    pub fn put(&mut self, store: &str, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let key = (namespace(&object).to_owned(), name(&object).to_owned());
        let new = Arc::new(object);
        let old = self.stores.entry(store.to_owned()).or_default().insert(key.clone(), new.clone());
        self.note(store, key, old, Some(new.clone()), new.clone());
        new
    }

    /// Removes an object; what watchers are told carries the removal's version.
    pub fn remove(&mut self, store: &str, space: &str, name: &str) -> Option<Arc<Value>> {
        let key = (space.to_owned(), name.to_owned());
        let old = self.stores.get_mut(store)?.remove(&key)?;
        self.version += 1;
        let mut shown = Value::clone(&old);
        shown["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let shown = Arc::new(shown);
        self.note(store, key, Some(old), None, shown.clone());
        Some(shown)
    }

    fn note(
        &mut self,
        store: &str,
        key: Key,
        old: Option<Arc<Value>>,
        new: Option<Arc<Value>>,
        shown: Arc<Value>,
    ) {
        let change = Change { version: self.version, store: store.to_owned(), key, old, new, shown };
        self.log.push_back(Arc::new(change));
        if self.log.len() > KEPT
            && let Some(oldest) = self.log.pop_front()
        {
            self.window = self.window.max(oldest.version);
            self.compacted = self.compacted.max(oldest.version);
        }
    }
}

/// The objects behind a lock, with news of changes.
#[derive(Debug)]
pub(crate) struct Store {
    state: Mutex<State>,
    newest: watch::Sender<u64>,
}

impl Store {
    pub fn new() -> Self {
        Self { state: Mutex::new(State::new()), newest: watch::channel(100).0 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock())
    }

    pub fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let version = state.version;
        drop(state);
        self.newest.send_if_modified(|newest| {
            let newer = version > *newest;
            *newest = (*newest).max(version);
            newer
        });
        result
    }

    /// Tells the newest version whenever there is a newer one.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}
