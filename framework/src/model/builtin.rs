//! Built-in actions: what every type can do that has the columns for it. They
//! stand in the registry beside a type's own, which come first, so discovery,
//! the API's document and the dispatcher know no difference.

use std::any::{Any, TypeId};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use super::action::{OnClass, OnRow};
use super::{
    Action, ActionInput, ActionKind, ActionOutput, Base, Entries, Field, Meta, Owner, Run, read_input,
};
use crate::auth::Access;
use crate::ctx::Tx;
use crate::db::{ColumnType, Value};
use crate::{Error, Nothing, Result, owner, sharing, tags, trash};

/// A row of any type, as built-in actions see it.
pub trait AnyRow {
    /// The type's metadata.
    fn meta(&self) -> &'static Meta;
    /// The base, whichever it is.
    fn base(&self) -> &dyn Base;
    /// The base, to be changed.
    fn base_mut(&mut self) -> &mut dyn Base;
    /// The mixin of that type, to be changed.
    fn mixin(&mut self, of: TypeId) -> Option<&mut dyn Any>;
    /// The row's values, to tell later what changed.
    fn values(&self) -> Vec<Value<'static>>;
    /// Stores the changed row and its record, with one more note where
    /// something changed that is no column.
    ///
    /// # Errors
    /// 409 when a unique field's value is taken.
    fn save(
        &mut self,
        tx: &mut Tx<'_>,
        action: &str,
        before: &[Value<'static>],
        more: Option<(&str, serde_json::Value)>,
    ) -> Result<()>;
    /// Makes the row somebody else's and stores it, with a record for each of
    /// the two owners.
    ///
    /// # Errors
    /// 409 when a unique field's value is taken.
    fn give(&mut self, tx: &mut Tx<'_>, action: &str, to: Owner<'_>) -> Result<()>;
    /// Changes a field as a client's update would, with the type's hooks.
    ///
    /// # Errors
    /// As the hooks say.
    fn set(
        &mut self,
        tx: &mut Tx<'_>,
        action: &str,
        field: &'static str,
        value: serde_json::Value,
    ) -> Result<()>;
    /// The type's hook.
    ///
    /// # Errors
    /// As the hook says.
    fn validate_change_owner(&self, tx: &mut Tx<'_>, to: Owner<'_>) -> Result<()>;
}

impl dyn AnyRow + '_ {
    /// The row's id.
    pub(crate) fn id(&self) -> &str {
        &self.base().anon().id
    }

    /// The mixin, which the metadata promised.
    pub(crate) fn expect<M: Any>(&mut self) -> Result<&mut M> {
        let keyword = self.meta().keyword();
        let found = self.mixin(TypeId::of::<M>()).and_then(<dyn Any>::downcast_mut);
        found.ok_or_else(|| {
            Error::internal(format!("{keyword} has columns of {} without it", std::any::type_name::<M>()))
        })
    }
}

/// An action, and which types have it.
pub(crate) struct BuiltIn {
    pub(crate) applies: fn(&Meta) -> bool,
    pub(crate) action: Action,
}

type Schemas = fn(&mut SchemaGenerator) -> Schema;

impl BuiltIn {
    const fn new(
        applies: fn(&Meta) -> bool,
        name: &'static str,
        kind: ActionKind,
        run: Run,
        doc: &'static str,
    ) -> Self {
        let action = Action {
            of: TypeId::of::<()>,
            name,
            kind,
            doc,
            deprecated: None,
            access: None,
            when: &[],
            run,
            input: |g| g.subschema_for::<Nothing>(),
            output: None,
        };
        Self { applies, action }
    }

    /// `POST /<plural>/<id>/<name>`.
    pub(crate) const fn item(
        applies: fn(&Meta) -> bool,
        name: &'static str,
        run: OnRow,
        doc: &'static str,
    ) -> Self {
        Self::new(applies, name, ActionKind::Item, Run::AnyItem(run), doc)
    }

    /// `GET /<plural>/<id>/<name>`.
    pub(crate) const fn detail(
        applies: fn(&Meta) -> bool,
        name: &'static str,
        run: OnRow,
        doc: &'static str,
    ) -> Self {
        Self::new(applies, name, ActionKind::Detail, Run::AnyItem(run), doc)
    }

    /// `GET /<plural>/<name>`.
    pub(crate) const fn property(
        applies: fn(&Meta) -> bool,
        name: &'static str,
        run: OnClass,
        doc: &'static str,
    ) -> Self {
        Self::new(applies, name, ActionKind::Property, Run::AnyClass(run), doc)
    }

    pub(crate) const fn access(mut self, access: Access) -> Self {
        self.action.access = Some(access);
        self
    }

    pub(crate) const fn input(mut self, input: Schemas) -> Self {
        self.action.input = input;
        self
    }

    pub(crate) const fn output(mut self, output: Schemas) -> Self {
        self.action.output = Some(output);
        self
    }
}

static OWN: [BuiltIn; 3] = [
    BuiltIn::item(can_switch, "enable", enable, "Switches it on."),
    BuiltIn::item(can_switch, "disable", disable, "Switches it off."),
    BuiltIn::item(
        |meta| meta.has("status") && meta.has("status_reason"),
        "status",
        set_status,
        "Sets the status by hand, for administrators who know better.",
    )
    .access(Access::Admin)
    .input(|g| g.subschema_for::<StatusInput>()),
];

/// The built-in actions of a type. What nobody may do there is not there.
pub(crate) fn of(meta: &Meta) -> impl Iterator<Item = &'static Action> {
    let verbs = meta.source.verbs;
    let possible = move |action: &&'static Action| {
        let own = match action.kind {
            ActionKind::Property => verbs.list,
            ActionKind::Detail => verbs.get,
            ActionKind::Item | ActionKind::Class => verbs.update,
        };
        action.access.unwrap_or(own) != Access::Never && own != Access::Never
    };
    let all = OWN.iter().chain(&owner::ACTIONS).chain(&trash::ACTIONS).chain(&sharing::ACTIONS);
    let all = all.chain(&tags::ACTIONS).filter(|it| (it.applies)(meta));
    all.map(|it| &it.action).filter(possible).collect::<Vec<_>>().into_iter()
}

fn can_switch(meta: &Meta) -> bool {
    let good = |f: &Field| f.stored && f.column == ColumnType::Bool && f.update != Access::Never;
    meta.field("enabled").is_some_and(good)
}

fn enable(row: &mut dyn AnyRow, tx: &mut Tx<'_>, input: &ActionInput) -> Result<ActionOutput> {
    switch(row, tx, input, "enable", true)
}

fn disable(row: &mut dyn AnyRow, tx: &mut Tx<'_>, input: &ActionInput) -> Result<ActionOutput> {
    switch(row, tx, input, "disable", false)
}

fn switch(
    row: &mut dyn AnyRow,
    tx: &mut Tx<'_>,
    input: &ActionInput,
    action: &str,
    to: bool,
) -> Result<ActionOutput> {
    let _: Nothing = read_input(input)?;
    row.set(tx, action, "enabled", to.into())?;
    Ok(ActionOutput::Row)
}

/// A status set by hand.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct StatusInput {
    /// The status.
    pub status: String,
    /// Why, for whoever reads it later.
    #[serde(default)]
    pub reason: String,
}

fn set_status(row: &mut dyn AnyRow, tx: &mut Tx<'_>, input: &ActionInput) -> Result<ActionOutput> {
    let input: StatusInput = read_input(input)?;
    let meta = row.meta();
    for (name, text) in [("status", &input.status), ("status_reason", &input.reason)] {
        if let Some(Err(wrong)) = meta.field(name).map(|field| field.check_text(text)) {
            return Err(Error::field(if name == "status" { name } else { "reason" }, wrong));
        }
    }
    if input.status.is_empty() {
        return Err(Error::field("status", "must not be empty"));
    }
    let before = row.values();
    if let Some(status) = row.base_mut().status_mut() {
        status.status = input.status;
        status.status_reason = input.reason;
    }
    row.save(tx, "status", &before, None)?;
    Ok(ActionOutput::Row)
}

/// The members of a body that has one, as the pipelines read them.
pub(crate) fn entry<'a>(field: &'static str, value: &'a serde_json::value::RawValue) -> Entries<'a> {
    vec![(field.into(), value)]
}
