//! Resource types as a resource: what an administrator writes is the type.

use super::spec::{self, Fields, Owner, Ranks};
use super::{generation, names, of, table};
use crate::auth::Access;
use crate::ctx::Tx;
use crate::model::{AnonBase, Extra, Manager, Model};
use crate::{Error, FieldError, Resource, Result};

/// A resource type that was defined at run time: its rows have the same paths,
/// filters, permissions, audit and documentation as those of any other.
#[derive(Debug, Clone, Default, Resource)]
#[resource(
    keyword = "resource-type",
    plural = "resource-types",
    read = "admin",
    write = "admin",
    extra(path = "Where its rows are.")
)]
pub struct ResourceType {
    /// Id, version and times; the id is the keyword.
    pub base: AnonBase,
    /// The word for one: the key around a row in JSON.
    #[field(list = "admin", create = "required", unique, max = 31)]
    pub keyword: String,
    /// The word for many: the path. The keyword and `s` if none is given.
    #[field(list = "admin", create = "optional", unique, max = 31)]
    pub plural: String,
    /// What it is; the API's documentation.
    #[field(list = "admin", create = "optional", update = "admin", multiline, max = 1024)]
    pub description: String,
    /// Whose a row is, and so who sees it.
    #[field(
        list = "admin",
        create = "optional",
        default = "user",
        choices("none", "domain", "project", "user"),
        max = 16
    )]
    pub owner: String,
    /// The rank that each verb takes; not stated: administrators, or, where
    /// rows have owners, everybody on what is theirs.
    #[field(list = "admin", create = "optional", update = "admin")]
    pub access: Ranks,
    /// The fields, beside those that every type has.
    #[field(list = "admin", create = "optional", update = "admin", max = 262144)]
    pub fields: Fields,
    /// Whether values may be lost by the change: those of fields that are not there any more.
    #[field(update = "admin", transient)]
    pub force: bool,
    /// Where its rows are kept.
    #[field(get = "admin")]
    pub table_name: String,
    /// The first part of its indexes' names.
    #[field()]
    pub serial: i64,
}

impl ResourceType {
    /// The generation of definitions that this one came with.
    fn known_as(&mut self, generation: i64) {
        self.table_name = table::name(&self.plural, generation);
    }

    /// What is wrong with it, beside the types that there are.
    fn check(&self, tx: &Tx<'_>, others: &[Self]) -> Result<()> {
        let registry = &tx.ctx.core().registry;
        let mut wrong: Vec<FieldError> = Vec::new();
        for (of, name) in [("keyword", &self.keyword), ("plural", &self.plural)] {
            names::check_type_name(of, name, &mut wrong);
            let taken = registry.compiled(name)
                || others.iter().any(|it| it.id != self.id && (it.keyword == *name || it.plural == *name));
            if taken {
                let message = format!("there is a resource type {name:?} already");
                return Err(Error::conflict(message).class("DuplicateNameError").blame(of));
            }
        }
        if self.keyword == self.plural {
            wrong.push(FieldError { field: "plural".into(), message: "must differ from keyword".into() });
        }
        let known = |keyword: &str| {
            registry.compiled_keyword(keyword).is_some()
                || keyword == self.keyword
                || others.iter().any(|it| it.keyword == keyword)
        };
        let base = of::base_fields(Owner::parse(&self.owner));
        spec::check_fields(&self.fields, (&self.keyword, &self.plural), &base, known, &mut wrong);
        if wrong.is_empty() { Ok(()) } else { Err(Error::fields(wrong)) }
    }

    /// Keywords of others that hold ids of its rows.
    fn referrer<'a>(&self, others: &'a [Self]) -> Option<&'a str> {
        let refers = |it: &&Self| {
            it.id != self.id && it.fields.0.iter().any(|f| f.references.as_ref() == Some(&self.keyword))
        };
        others.iter().find(refers).map(|it| it.keyword.as_str())
    }
}

impl Manager for ResourceType {
    const FORCE: bool = true;

    fn validate_create_data(_: &mut Tx<'_>, input: &mut ResourceTypeCreate) -> Result<()> {
        if input.plural.is_empty() {
            input.plural = format!("{}s", input.keyword);
        }
        Ok(())
    }

    fn get_customize_columns(_: &mut Tx<'_>, rows: &[Self], extra: &mut [Extra]) -> Result<()> {
        for (row, extra) in rows.iter().zip(extra) {
            extra.set("path", format!("/{}", row.plural));
        }
        Ok(())
    }
}

impl Model for ResourceType {
    fn customize_create(&mut self, tx: &mut Tx<'_>, _: &ResourceTypeCreate) -> Result<()> {
        let generation = generation::raise(tx)?;
        self.base.id.clone_from(&self.keyword);
        self.serial = generation;
        self.known_as(generation);
        let others = generation::rows(tx.conn)?;
        // It is not there yet: one of its name is another.
        if others.iter().any(|it| it.keyword == self.keyword) {
            let message = format!("there is a resource type {:?} already", self.keyword);
            return Err(Error::conflict(message).class("DuplicateNameError").blame("keyword"));
        }
        self.check(tx, &others)?;
        table::create(tx, self)
    }

    fn post_create(&mut self, tx: &mut Tx<'_>, _: &ResourceTypeCreate) -> Result<()> {
        generation::publish(tx)
    }

    fn pre_update(&mut self, tx: &mut Tx<'_>, _: &ResourceTypeUpdate) -> Result<()> {
        let new = generation::raise(tx)?;
        let others = generation::rows(tx.conn)?;
        let Some(old) = others.iter().find(|it| it.id == self.id) else {
            return Err(Error::not_found("resource-type", &self.id));
        };
        let same =
            old.fields == self.fields && old.access == self.access && old.description == self.description;
        if same {
            return Ok(());
        }
        self.check(tx, &others)?;
        self.known_as(new);
        let core = tx.ctx.core().clone();
        let table_of = |keyword: &str| {
            let runtime = others.iter().find(|it| it.keyword == keyword).map(|it| it.table_name.clone());
            let compiled =
                || core.registry.compiled_keyword(keyword).map(|it| it.handler.meta().table().to_owned());
            runtime.or_else(compiled)
        };
        table::Change { old, new: self, force: self.force, table_of: &table_of }.run(tx)
    }

    fn post_update(&mut self, tx: &mut Tx<'_>, _: &Self) -> Result<()> {
        generation::publish(tx)
    }

    fn pre_delete(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        generation::raise(tx)?;
        let others = generation::rows(tx.conn)?;
        if let Some(by) = self.referrer(&others) {
            let message = format!("resource type {} is still referred to by {by}", self.keyword);
            return Err(Error::conflict(message).class("ResourceInUseError"));
        }
        // First: who creates a row holds the quotas, and then waits for the table.
        crate::quota::forget_all(tx, &self.plural)?;
        table::lock(tx, &self.table_name)?;
        if !tx.ctx.force() && table::any_rows(tx, self)? {
            let message = format!("{} has rows; delete them first, or with force=true", self.plural);
            return Err(Error::conflict(message).class("ResourceNotEmptyError"));
        }
        let owned = Owner::parse(&self.owner) != Owner::None;
        crate::quota::forget_all(tx, &self.plural)?;
        let base = of::base_fields(Owner::parse(&self.owner));
        let hidden = |list: Access, get: Access| list == Access::Never && get == Access::Never;
        let base = base.iter().map(|f| (f.name, f.column, hidden(f.list, f.get)));
        let own = self.fields.0.iter();
        let own = own.map(|f| (f.name.as_str(), f.kind.column(), hidden(f.list, f.get.unwrap_or(f.list))));
        let columns: Vec<_> = base.chain(own).collect();
        tx.log_all_deleted(&self.keyword, &self.table_name, owned, &columns)?;
        table::drop_table(tx, &self.table_name)
    }

    fn post_delete(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        generation::publish(tx)
    }
}
