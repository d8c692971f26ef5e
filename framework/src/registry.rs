//! All resource types of a process: those that `inventory` found, and those
//! that were defined at run time. A crate that nothing names registers
//! nothing: the server says `use podyard_spaces as _`.

use std::any::TypeId;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use crate::context::{self, Context, Contexts};
use crate::dispatch::ResourceHandler;
use crate::model::{Action, ActionKind, Field, Meta, Reference, builtin};

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
    contexts: Contexts,
    runtime: RwLock<Runtime>,
    /// The API's document and the generation that it is of.
    pub(crate) document: Mutex<Option<(i64, actix_web::web::Bytes, String)>>,
}

/// The types that were defined at run time, as of a generation.
#[derive(Default)]
struct Runtime {
    generation: i64,
    types: Vec<&'static Type>,
    by_plural: HashMap<&'static str, &'static Type>,
    by_keyword: HashMap<&'static str, &'static Type>,
    /// Who holds ids of a type, by the type's keyword.
    references: HashMap<&'static str, Vec<Reference>>,
    contexts: Contexts,
}

/// The fields of a type that hold ids of another.
fn references(of: &Type) -> impl Iterator<Item = (&'static str, Reference)> {
    let meta = of.handler.meta();
    let (table, keyword, soft) = (meta.table(), meta.keyword(), meta.has("deleted"));
    let reference =
        move |f: &'static Field| Reference { table, keyword, column: f.name, soft, cascade: f.cascade };
    meta.stored().filter_map(move |f| Some((f.references?, reference(f))))
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
        let mut it = Self {
            types: BTreeMap::new(),
            by_keyword: BTreeMap::new(),
            by_id: BTreeMap::new(),
            runtime: RwLock::default(),
            document: Mutex::default(),
            contexts: Contexts::new(),
        };
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
        for of in it.types.values_mut() {
            for action in builtin::of(of.handler.meta()) {
                // A type's own is the one that counts.
                of.actions.entry((action.kind, action.name)).or_insert(action);
            }
        }
        it.contexts = context::find(it.types.values(), &|keyword| it.compiled_keyword(keyword));
        for of in it.types.values() {
            let meta = of.handler.meta();
            let cached = |keyword: &str| it.keyword(keyword).is_some_and(|t| t.handler.meta().source.cached);
            let refers = |f: &&Field| f.references.is_some_and(cached);
            // Quotas are cached, too.
            let counted = meta.source.quota.is_some();
            meta.set_fenced(counted || meta.fields().iter().copied().any(|f| refers(&f)));
            let by = it.types.values().flat_map(references);
            meta.set_referenced_by(
                by.filter(|(keyword, _)| *keyword == meta.keyword()).map(|(_, by)| by).collect(),
            );
        }
        it
    }

    fn runtime(&self) -> RwLockReadGuard<'_, Runtime> {
        self.runtime.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A type by its plural.
    #[must_use]
    pub fn get(&self, plural: &str) -> Option<&Type> {
        self.types.get(plural).or_else(|| self.runtime().by_plural.get(plural).copied())
    }

    /// A type by its keyword.
    #[must_use]
    pub fn keyword(&self, keyword: &str) -> Option<&Type> {
        self.compiled_keyword(keyword).or_else(|| self.runtime().by_keyword.get(keyword).copied())
    }

    /// All types: those of the program by plural, then those defined at run time.
    pub fn types(&self) -> impl Iterator<Item = &Type> {
        let runtime = self.runtime().types.clone();
        self.types.values().chain(runtime)
    }

    /// A type of the program by its keyword.
    pub(crate) fn compiled_keyword(&self, keyword: &str) -> Option<&Type> {
        self.by_keyword.get(keyword).and_then(|plural| self.types.get(plural))
    }

    /// Whether a type of the program has that plural or keyword.
    pub(crate) fn compiled(&self, name: &str) -> bool {
        self.types.contains_key(name) || self.by_keyword.contains_key(name)
    }

    /// The generation of what was defined at run time; 0: nothing was read yet.
    pub(crate) fn generation(&self) -> i64 {
        self.runtime().generation
    }

    /// What leads from a type to another below it, by their names in a path.
    pub(crate) fn context(&self, above: &str, below: &str) -> Option<Context> {
        let found = |all: &Contexts| {
            let it = all.iter().find(|((a, b), _)| *a == above && *b == below);
            it.map(|(_, context)| context.clone())
        };
        found(&self.contexts).or_else(|| found(&self.runtime().contexts))
    }

    /// All of them.
    pub(crate) fn contexts(&self) -> Contexts {
        let mut all = self.runtime().contexts.clone();
        all.extend(self.contexts.clone());
        all
    }

    /// All fields that hold ids of a type.
    pub(crate) fn referenced_by(&self, meta: &'static Meta) -> Vec<Reference> {
        let mut all = meta.referenced_by().to_vec();
        all.extend(self.runtime().references.get(meta.keyword()).into_iter().flatten());
        all
    }

    /// Takes over what was defined at run time, unless something newer is
    /// here. `build` is given a way to what it made before, by table.
    pub(crate) fn install(
        &self,
        generation: i64,
        build: impl FnOnce(&dyn Fn(&str) -> Option<&'static Type>, &dyn Fn(&str) -> bool) -> Vec<&'static Type>,
    ) {
        let mut runtime = self.runtime.write().unwrap_or_else(PoisonError::into_inner);
        if runtime.generation >= generation {
            return;
        }
        let known = |table: &str| runtime.types.iter().copied().find(|of| of.handler.meta().table() == table);
        let cached =
            |keyword: &str| self.compiled_keyword(keyword).is_some_and(|of| of.handler.meta().source.cached);
        let types = build(&known, &cached);
        let mut new = Runtime { generation, ..Runtime::default() };
        for of in &types {
            let meta = of.handler.meta();
            new.by_plural.insert(meta.plural(), of);
            new.by_keyword.insert(meta.keyword(), of);
            for (keyword, by) in references(of) {
                new.references.entry(keyword).or_default().push(by);
            }
        }
        let of =
            |keyword: &str| self.compiled_keyword(keyword).or_else(|| new.by_keyword.get(keyword).copied());
        new.contexts = context::find(types.iter().copied(), &of);
        new.types = types;
        *runtime = new;
    }
}
