//! All resource types of a process, as `inventory` found them. A crate that
//! nothing names registers nothing: the server says `use podyard_spaces as _`.

use std::any::TypeId;
use std::collections::BTreeMap;

use crate::dispatch::ResourceHandler;
use crate::model::{Action, ActionKind, Reference};

/// One registered type; submitted by the derive.
pub struct Entry {
    /// Its dispatcher.
    pub handler: &'static dyn ResourceHandler,
}

inventory::collect!(Entry);

/// A type with its actions.
pub struct Type {
    /// Its dispatcher.
    pub handler: &'static dyn ResourceHandler,
    /// Its actions, properties and details.
    pub actions: BTreeMap<(ActionKind, &'static str), &'static Action>,
}

/// All types, by plural.
pub struct Registry {
    types: BTreeMap<&'static str, Type>,
    by_keyword: BTreeMap<&'static str, &'static str>,
    by_id: BTreeMap<TypeId, &'static str>,
}

impl Registry {
    /// Collects what is registered.
    ///
    /// # Panics
    /// When two types or actions have one name, an action belongs to no type,
    /// or a field refers to a type that is not there: all faults of the
    /// program, found at its first start.
    #[must_use]
    pub fn collect() -> Self {
        let mut it = Self { types: BTreeMap::new(), by_keyword: BTreeMap::new(), by_id: BTreeMap::new() };
        for entry in inventory::iter::<Entry> {
            let meta = entry.handler.meta();
            let (plural, keyword) = (meta.plural(), meta.keyword());
            let new = Type { handler: entry.handler, actions: BTreeMap::new() };
            assert!(it.types.insert(plural, new).is_none(), "two resource types are named {plural}");
            assert!(
                it.by_keyword.insert(keyword, plural).is_none(),
                "two resource types are named {keyword}"
            );
            it.by_id.insert(entry.handler.type_id(), plural);
        }
        for action in inventory::iter::<Action> {
            let owner = it.by_id.get(&(action.of)()).and_then(|plural| it.types.get_mut(plural));
            let Some(owner) = owner else { panic!("action {} belongs to no resource type", action.name) };
            let old = owner.actions.insert((action.kind, action.name), action);
            assert!(old.is_none(), "{} has two actions {}", owner.handler.meta().keyword(), action.name);
        }
        for of in it.types.values() {
            let meta = of.handler.meta();
            let cached = |keyword: &str| it.keyword(keyword).is_some_and(|t| t.handler.meta().source.cached);
            let refers = |f: &&crate::model::Field| f.references.is_some_and(cached);
            // Quotas are cached, too.
            let counted = meta.source.quota.is_some();
            meta.set_fenced(counted || meta.fields().iter().copied().any(|f| refers(&f)));
            let by = |other: &Type| {
                let other = other.handler.meta();
                let holds = |f: &&crate::model::Field| f.references == Some(meta.keyword());
                let soft = other.has("deleted");
                let (table, keyword) = (other.table(), other.keyword());
                other
                    .stored()
                    .filter(holds)
                    .map(move |f| Reference { table, keyword, column: f.name, soft })
                    .collect()
            };
            meta.set_referenced_by(
                it.types.values().flat_map(|other| -> Vec<Reference> { by(other) }).collect(),
            );
        }
        it
    }

    /// A type by its plural.
    #[must_use]
    pub fn get(&self, plural: &str) -> Option<&Type> {
        self.types.get(plural)
    }

    /// A type by its keyword.
    #[must_use]
    pub fn keyword(&self, keyword: &str) -> Option<&Type> {
        self.by_keyword.get(keyword).and_then(|plural| self.types.get(plural))
    }

    /// All types, by plural.
    pub fn types(&self) -> impl Iterator<Item = &Type> {
        self.types.values()
    }
}
