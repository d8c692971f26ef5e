//! A row without its type, for built-in actions.

use std::any::{Any, TypeId};

use super::pipeline;
use crate::Result;
use crate::ctx::{Tx, snapshot};
use crate::db::Value;
use crate::model::builtin::entry;
use crate::model::{AnyRow, Base, Manager, Meta, Mode, Owner, fill};
use crate::oplog;
use crate::webhook::expect_admitted;

/// The only implementor: a trait's blanket implementation would give every
/// row two methods of one name.
pub(super) struct Typed<'r, T>(pub(super) &'r mut T);

impl<T: Manager> AnyRow for Typed<'_, T> {
    fn meta(&self) -> &'static Meta {
        T::meta()
    }

    fn base(&self) -> &dyn Base {
        self.0.base()
    }

    fn base_mut(&mut self) -> &mut dyn Base {
        self.0.base_mut()
    }

    fn mixin(&mut self, of: TypeId) -> Option<&mut dyn Any> {
        self.0.mixin_mut(of)
    }

    fn values(&self) -> Vec<Value<'static>> {
        snapshot(self.0)
    }

    fn save(
        &mut self,
        tx: &mut Tx<'_>,
        action: &str,
        before: &[Value<'_>],
        more: Option<(&str, serde_json::Value)>,
    ) -> Result<()> {
        tx.save_noted(self.0, action, before, more)
    }

    fn give(&mut self, tx: &mut Tx<'_>, action: &str, to: Owner<'_>) -> Result<()> {
        let before = snapshot(self.0);
        let mut left = self.0.clone();
        self.0.base_mut().set_owner(to);
        tx.save_and_log(self.0, action, &before)?;
        left.base_mut().anon_mut().version = self.0.base().anon().version;
        tx.log_left(&left, action, oplog::notes(self.0, Some(&before)))
    }

    fn set(
        &mut self,
        tx: &mut Tx<'_>,
        action: &str,
        field: &'static str,
        value: serde_json::Value,
    ) -> Result<()> {
        // What asks before updates is not got around by an action that is one.
        expect_admitted(tx, T::meta(), "update")?;
        let raw = serde_json::value::to_raw_value(&value).map_err(crate::Error::internal)?;
        let entries = entry(field, &raw);
        let mut input = T::Update::default();
        fill(T::meta(), &entries, tx.level(), Mode::Update, &mut input)?;
        pipeline::check_references(tx, T::meta(), &entries, &mut pipeline::Checked::new())?;
        pipeline::change(tx, self.0, &mut input, action)
    }

    fn validate_change_owner(&self, tx: &mut Tx<'_>, to: Owner<'_>) -> Result<()> {
        self.0.validate_change_owner(tx, to)
    }
}
