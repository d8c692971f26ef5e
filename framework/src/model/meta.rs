//! Metadata of one resource type, put together once per process from what the
//! derive wrote.

use std::sync::OnceLock;

use super::Field;
use crate::auth::Access;

/// The rank that each verb of a type takes. What is not stated is for
/// administrators only.
#[derive(Debug, Clone, Copy)]
pub struct Verbs {
    /// `GET /<plural>`.
    pub list: Access,
    /// `GET /<plural>/<id>`.
    pub get: Access,
    /// `POST /<plural>`.
    pub create: Access,
    /// `PUT /<plural>/<id>`, and actions that do not say otherwise.
    pub update: Access,
    /// `DELETE /<plural>/<id>`.
    pub delete: Access,
}

/// Whose rows a caller without a higher rank sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All rows: the type has no owners.
    All,
    /// The rows of the caller's domain.
    Domain,
    /// The rows of the caller's project.
    Project,
    /// The rows of the caller.
    User,
}

/// What the derive knows of a type.
pub struct MetaSource {
    /// `space`.
    pub keyword: &'static str,
    /// `spaces`: the path and, with `_` for `-`, the table.
    pub plural: &'static str,
    /// The struct's doc comment.
    pub doc: &'static str,
    /// Ranks.
    pub verbs: Verbs,
    /// Whose rows.
    pub scope: Scope,
    /// Whether all rows are kept in memory.
    pub cached: bool,
    /// What its rows use that quotas may limit, beside the number of rows;
    /// none: nothing of it is counted.
    pub quota: Option<&'static [&'static str]>,
    /// Whether its rows change without records in the ops log, so that there
    /// is nothing to watch.
    pub unlogged: bool,
    /// What `get_customize_columns` and `get_extra_details` add, with docs.
    pub extra: &'static [(&'static str, &'static str)],
    /// The columns that say whose a row is, as its base has them.
    pub owner: &'static [&'static str],
    /// The two fields of a joint type.
    pub joint: Option<(&'static str, &'static str)>,
    /// Adds the fields.
    pub fields: fn(&mut Vec<&'static Field>),
}

/// Metadata of a type.
pub struct Meta {
    /// What the derive wrote.
    pub source: MetaSource,
    table: &'static str,
    runtime: bool,
    fields: Vec<&'static Field>,
    /// `"id", "version", …` of the stored fields.
    columns: String,
    list: [u64; 4],
    get: [u64; 4],
    extra: Vec<(&'static str, &'static str)>,
    trash: bool,
    shared: bool,
    tagged: bool,
    fenced: OnceLock<bool>,
    referenced_by: OnceLock<Vec<Reference>>,
    cascades: OnceLock<Vec<Reference>>,
}

/// A field somewhere that holds ids of the type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reference {
    pub(crate) table: &'static str,
    pub(crate) keyword: &'static str,
    pub(crate) column: &'static str,
    /// Whether rows there are only marked when deleted.
    pub(crate) soft: bool,
    /// Whether rows there go with the one that they refer to.
    pub(crate) cascade: bool,
}

impl Meta {
    /// Puts the metadata together.
    ///
    /// # Panics
    /// On a type with more fields than a mask has bits, two fields of a name,
    /// or a mixin that does not fit its base: found at first start.
    #[must_use]
    pub fn new(source: MetaSource) -> Self {
        let mut fields = Vec::new();
        (source.fields)(&mut fields);
        // A path may have hyphens, a table has none.
        let table = if source.plural.contains('-') {
            Box::leak(source.plural.replace('-', "_").into_boxed_str())
        } else {
            source.plural
        };
        Self::assemble(source, table, false, fields)
    }

    /// The metadata of a type that was defined at run time.
    pub(crate) fn at_runtime(source: MetaSource, table: &'static str, fields: Vec<&'static Field>) -> Self {
        Self::assemble(source, table, true, fields)
    }

    fn assemble(source: MetaSource, table: &'static str, runtime: bool, fields: Vec<&'static Field>) -> Self {
        assert!(fields.len() <= 64, "{} has more than 64 fields", source.keyword);
        for (i, field) in fields.iter().enumerate() {
            let twice = fields[..i].iter().any(|it| it.name == field.name);
            assert!(!twice, "{} has two fields {}", source.keyword, field.name);
        }
        let has = |name: &str| fields.iter().any(|f| f.name == name && f.stored);
        let (trash, shared) = (has("pending_deleted"), has("public_scope"));
        assert!(
            !shared || (source.scope != Scope::All && !source.owner.is_empty()),
            "{} is shared but has no owner who could share it",
            source.keyword
        );
        let mut extra = source.extra.to_vec();
        let tagged = has("name") && fields.iter().all(|f| f.name != "metadata");
        if tagged {
            extra.push(("metadata", "Its tags, if `tags=true` asks for them."));
        }
        if shared {
            extra.push(("shared_projects", "Ids of the projects that it is shared with, for its owner."));
            extra.push(("shared_domains", "Ids of the domains that it is shared with, for its owner."));
        }
        let mask = |rank: fn(&Field) -> Access, caller: Access| {
            let bit = |(i, f): (usize, &&'static Field)| u64::from(rank(f).allows(caller)) << i;
            fields.iter().enumerate().map(bit).sum()
        };
        let ranks = [Access::Never, Access::User, Access::Domain, Access::Admin];
        let list = ranks.map(|caller| mask(|f| f.list, caller));
        let get = ranks.map(|caller| mask(|f| f.get, caller));
        let columns: Vec<_> = fields.iter().filter(|f| f.stored).map(|f| format!("\"{}\"", f.name)).collect();
        Self {
            list,
            get,
            columns: columns.join(", "),
            table,
            runtime,
            fields,
            source,
            extra,
            trash,
            shared,
            tagged,
            fenced: OnceLock::new(),
            referenced_by: OnceLock::new(),
            cascades: OnceLock::new(),
        }
    }

    /// `space`.
    #[must_use]
    pub fn keyword(&self) -> &'static str {
        self.source.keyword
    }

    /// `spaces`.
    #[must_use]
    pub fn plural(&self) -> &'static str {
        self.source.plural
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &'static str {
        self.table
    }

    /// Whether it was defined at run time.
    #[must_use]
    pub fn is_runtime(&self) -> bool {
        self.runtime
    }

    /// All fields, those of the base first.
    #[must_use]
    pub fn fields(&self) -> &[&'static Field] {
        &self.fields
    }

    /// The fields that are columns.
    pub fn stored(&self) -> impl Iterator<Item = &'static Field> {
        self.fields.iter().copied().filter(|f| f.stored)
    }

    /// A field by its name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().copied().find(|f| f.name == name)
    }

    /// Whether it has that field as a column.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.field(name).is_some_and(|f| f.stored)
    }

    /// What quotas may limit of it.
    pub(crate) fn counted(&self) -> impl Iterator<Item = &'static str> {
        let parts = self.source.quota;
        parts.map(|_| self.source.plural).into_iter().chain(parts.unwrap_or_default().iter().copied())
    }

    /// Whether its rows use that.
    pub(crate) fn counts(&self, resource: &str) -> bool {
        self.counted().any(|it| it == resource)
    }

    /// What answers have beside the fields, with docs.
    #[must_use]
    pub fn extra(&self) -> &[(&'static str, &'static str)] {
        &self.extra
    }

    /// Whether deleted rows wait before they go.
    #[must_use]
    pub fn trash(&self) -> bool {
        self.trash
    }

    /// Whether rows have tags: those with a name do.
    #[must_use]
    pub fn tagged(&self) -> bool {
        self.tagged
    }

    /// Whether `tags=true` shows them: a field of that name beats the word.
    #[must_use]
    pub fn shows_tags(&self) -> bool {
        self.tagged && self.field("tags").is_none()
    }

    /// Whether rows can be shared.
    #[must_use]
    pub fn shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn columns(&'static self) -> &'static str {
        &self.columns
    }

    /// Bits of the fields that a caller sees in lists.
    #[must_use]
    pub fn list_mask(&self, caller: Access) -> u64 {
        self.list[caller as usize]
    }

    /// Bits of the fields that a caller sees in a get.
    #[must_use]
    pub fn get_mask(&self, caller: Access) -> u64 {
        self.get[caller as usize] | self.list[caller as usize]
    }

    /// Whether it refers to a cached type, so that its reads carry the
    /// caches' generation with them. Set by the registry, which knows all types.
    pub(crate) fn fenced(&self) -> bool {
        self.fenced.get().copied().unwrap_or(false)
    }

    /// The fields of all types that refer to this one. Set by the registry.
    pub(crate) fn referenced_by(&'static self) -> &'static [Reference] {
        self.referenced_by.get().map_or(&[], Vec::as_slice)
    }

    /// The fields of all types whose rows go with the one they refer to.
    pub(crate) fn cascades(&'static self) -> &'static [Reference] {
        self.cascades.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn set_referenced_by(&self, references: Vec<Reference>) {
        let (cascades, refuse) = references.into_iter().partition(|it| it.cascade);
        let _ = self.cascades.set(cascades);
        let _ = self.referenced_by.set(refuse);
    }

    pub(crate) fn set_fenced(&self, fenced: bool) {
        // Tests make several registries of the same types; all say the same.
        let _ = self.fenced.set(fenced);
    }
}
