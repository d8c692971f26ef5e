//! What a resource is: its fields and their metadata, the bases it may stand
//! on, and the hooks with which it differs from every other resource.

mod action;
mod base;
pub(crate) mod builtin;
mod field;
mod input;
mod meta;
mod view;

pub use action::{Action, ActionInput, ActionKind, ActionOutput, Outcome, Run, read_input, read_query};
pub use base::{
    AnonBase, Base, Defaults, DomainBase, Enabled, External, Owner, Sharing, Stamp, StandaloneBase,
    StatusBase, Trash, UserBase, VirtualBase,
};
pub use builtin::AnyRow;
pub use field::{Create, Field, Range};
pub(crate) use input::{Entries, entries, fill, parse_object as object};
pub use input::{Input, Mode, parse_field, parse_value};
pub(crate) use meta::Reference;
pub use meta::{Meta, MetaSource, Scope, Verbs};
pub use view::{Extra, JsonObject};

use std::any::{Any, TypeId};

use crate::Result;
use crate::ctx::{Ctx, Prepared, Tx};
use crate::db::{RowReader, Value};
use crate::query::Select;
use crate::quota::QuotaUse;
use crate::task::BoxFuture;

/// A struct whose fields are columns: a base or a whole resource. Written by
/// `#[derive(Columns)]`, never by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no columns",
    note = "a base or a mixin is a struct with #[derive(Columns)], which the prelude names DeriveColumns"
)]
pub trait Columns: Sized {
    /// What a client may send to create one.
    type Create: Input + Default + Clone + Send;
    /// What a client may send to change one.
    type Update: Input + Default + Clone + Send;

    /// Adds the fields, those of the base first.
    fn fields(out: &mut Vec<&'static Field>);

    /// Reads it from a row, in the order of [`Columns::fields`].
    ///
    /// # Errors
    /// When a column holds something else.
    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self>;

    /// Adds the values, in the order of [`Columns::fields`].
    fn write<'a>(&'a self, out: &mut Vec<Value<'a>>);

    /// Writes the fields that the caller may see.
    fn view(&self, out: &mut JsonObject<'_>);

    /// A new row from what the client sent.
    fn from_create(input: &Self::Create) -> Self;

    /// Takes over what the client wants changed.
    fn apply(&mut self, input: &Self::Update);

    /// Fills what the framework gives each new row: id, times, owner.
    fn stamp(&mut self, by: &Stamp<'_>);

    /// The mixin of that type, if it has one.
    fn mixin(&self, of: TypeId) -> Option<&dyn Any> {
        let _ = of;
        None
    }

    /// The mixin of that type, to be changed.
    fn mixin_mut(&mut self, of: TypeId) -> Option<&mut dyn Any> {
        let _ = of;
        None
    }
}

/// A resource type's row. Written by `#[derive(Resource)]`. It is not
/// `Serialize`: the only way to JSON is through a caller's view, so that a
/// column for administrators cannot leak by an action's answer:
///
/// ```compile_fail,E0277
/// use podyard::prelude::*;
///
/// /// A thing.
/// #[derive(Debug, Clone, Default, Resource)]
/// #[resource(keyword = "thing", plural = "things")]
/// pub struct Thing {
///     pub base: StandaloneBase,
/// }
///
/// impl Manager for Thing {}
///
/// impl Model for Thing {}
///
/// #[actions]
/// impl Thing {
///     /// Answers rows.
///     fn get_property_all(tx: &mut Tx<'_>) -> Result<Vec<Thing>> {
///         Thing::select().rows(tx)
///     }
/// }
/// ```
pub trait Record: Columns + Clone + Send + Sync + 'static {
    /// The type's metadata.
    fn meta() -> &'static Meta;

    /// What the row uses of what quotas limit: [`Model::quota_use`].
    ///
    /// # Errors
    /// As the hook says.
    fn uses(&self, tx: &mut Tx<'_>) -> Result<Vec<QuotaUse>>;

    /// The base, whichever it is.
    fn base(&self) -> &dyn Base;

    /// The base, to be changed.
    fn base_mut(&mut self) -> &mut dyn Base;

    /// The mixin of that type, if it has one: `row.find_mixin::<Trash>()`.
    #[must_use]
    fn find_mixin<M: Any>(&self) -> Option<&M> {
        self.mixin(TypeId::of::<M>())?.downcast_ref()
    }

    /// A query over the type's rows.
    #[must_use]
    fn select() -> Select<Self> {
        Select::new()
    }
}

/// The bodies of a create.
pub type Drafts = Vec<serde_json::Map<String, serde_json::Value>>;

/// What makes something ready for a create.
pub type Prepare = fn(Ctx, Drafts) -> BoxFuture<'static, Result<Prepared>>;

/// The collection: hooks that belong to `/<plural>`. All have defaults, all
/// run inside the request's transaction, all may fail.
pub trait Manager: Model {
    /// Whether `DELETE …?force=true` means something to it; its hooks then
    /// ask [`crate::Ctx::force`].
    const FORCE: bool = false;

    /// What a create takes long for and asks no database for (hashing a
    /// password): done before the transaction, for all bodies of the request,
    /// as they were sent. Hooks find it by [`crate::Ctx::prepared`], and do
    /// without where it is not there.
    const PREPARE: Option<Prepare> = None;

    /// What its log says was done beside `create`, `update`, `delete`, its
    /// actions and its tasks: webhooks may ask to be told of it.
    const EVENTS: &'static [&'static str] = &[];

    /// Adds conditions to every list and look-up. Scope and deletion are
    /// already in; a hook can only narrow.
    ///
    /// # Errors
    /// Ends the request.
    fn list_item_filter(tx: &mut Tx<'_>, select: &mut Select<Self>) -> Result<()> {
        let _ = (tx, select);
        Ok(())
    }

    /// Adds what is not a column to the rows of a page: called once for the
    /// whole page, so that nobody writes a query per row.
    ///
    /// # Errors
    /// Ends the request.
    fn get_customize_columns(tx: &mut Tx<'_>, rows: &[Self], extra: &mut [Extra]) -> Result<()> {
        let _ = (tx, rows, extra);
        Ok(())
    }

    /// Checks and completes what a client wants created. The class lock is
    /// held: nobody else creates one for the same owner meanwhile.
    ///
    /// # Errors
    /// Refuses the create.
    fn validate_create_data(tx: &mut Tx<'_>, input: &mut Self::Create) -> Result<()> {
        let _ = (tx, input);
        Ok(())
    }

    /// After all rows of one create are made.
    ///
    /// # Errors
    /// Undoes the create.
    fn on_create_complete(tx: &mut Tx<'_>, rows: &[Self]) -> Result<()> {
        let _ = (tx, rows);
        Ok(())
    }
}

/// One row: hooks that belong to `/<plural>/<id>`. All have defaults, all run
/// inside the request's transaction under the object's lock, all may fail.
pub trait Model: Record {
    /// Sets what the client did not, on a row that is not stored yet.
    ///
    /// # Errors
    /// Refuses the create.
    fn customize_create(&mut self, tx: &mut Tx<'_>, input: &Self::Create) -> Result<()> {
        let _ = (tx, input);
        Ok(())
    }

    /// After the row is stored: other rows, tasks.
    ///
    /// # Errors
    /// Undoes the create.
    fn post_create(&mut self, tx: &mut Tx<'_>, input: &Self::Create) -> Result<()> {
        let _ = (tx, input);
        Ok(())
    }

    /// What the row uses, as it is now, of what quotas may limit; for types
    /// that say `quota`. Each write takes and gives back the difference.
    ///
    /// # Errors
    /// Ends the request.
    fn quota_use(&self, tx: &mut Tx<'_>) -> Result<Vec<QuotaUse>> {
        let _ = tx;
        Ok(vec![QuotaUse::used(Self::meta().plural(), 1)])
    }

    /// Adds to the answer of a get of one row, beside the page's columns.
    ///
    /// # Errors
    /// Ends the request.
    fn get_extra_details(&self, tx: &mut Tx<'_>, extra: &mut Extra) -> Result<()> {
        let _ = (tx, extra);
        Ok(())
    }

    /// Checks and completes what a client wants changed.
    ///
    /// # Errors
    /// Refuses the update.
    fn validate_update_data(&self, tx: &mut Tx<'_>, input: &mut Self::Update) -> Result<()> {
        let _ = (tx, input);
        Ok(())
    }

    /// The changes are in the row, which is not stored yet.
    ///
    /// # Errors
    /// Refuses the update.
    fn pre_update(&mut self, tx: &mut Tx<'_>, input: &Self::Update) -> Result<()> {
        let _ = (tx, input);
        Ok(())
    }

    /// After the changed row is stored; `before` is what it was.
    ///
    /// # Errors
    /// Undoes the update.
    fn post_update(&mut self, tx: &mut Tx<'_>, before: &Self) -> Result<()> {
        let _ = (tx, before);
        Ok(())
    }

    /// Whether it may become that owner's.
    ///
    /// # Errors
    /// Refuses the change.
    fn validate_change_owner(&self, tx: &mut Tx<'_>, to: Owner<'_>) -> Result<()> {
        let _ = (tx, to);
        Ok(())
    }

    /// Whether it may be deleted now; of a type with a trash, asked before it
    /// is marked, too.
    ///
    /// # Errors
    /// Refuses the delete.
    fn validate_delete_condition(&self, tx: &mut Tx<'_>) -> Result<()> {
        let _ = tx;
        Ok(())
    }

    /// Delete is allowed and begins: the place to start a task that does it.
    ///
    /// # Errors
    /// Refuses the delete.
    fn customize_delete(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        let _ = tx;
        Ok(())
    }

    /// Just before the row goes: release what it holds.
    ///
    /// # Errors
    /// Refuses the delete.
    fn pre_delete(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        let _ = tx;
        Ok(())
    }

    /// The delete itself: a mark where the base has one, else the row goes.
    /// A type whose delete takes time overrides it to do nothing and starts a
    /// task in [`Model::customize_delete`].
    ///
    /// # Errors
    /// Undoes the delete.
    fn delete(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        tx.remove(self)
    }

    /// After the row is gone.
    ///
    /// # Errors
    /// Undoes the delete.
    fn post_delete(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        let _ = tx;
        Ok(())
    }
}
