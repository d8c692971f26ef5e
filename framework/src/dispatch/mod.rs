//! The pipelines: what happens, in which order, for each request on a
//! resource. Generic over the type and as thin as can be; what needs only
//! metadata is in functions that are compiled once.

mod any_row;
mod apply;
mod batch;
mod export;
mod lists;
mod merge;
mod pipeline;

pub(crate) use batch::{Each, Rows, apply as apply_each, bodies, each, narrows};
pub use batch::{MOST_CREATED, MOST_ROWS, Part};
pub use export::{Chunk, Place};

pub(crate) use pipeline::{describe, enveloped, narrow, visible, write_row};

use std::any::{Any, TypeId};
use std::marker::PhantomData;

use crate::ctx::Tx;
use crate::db::Sql;
use crate::event::{Change, Told, Watched, rows};
use crate::model::{Action, ActionInput, Manager, Meta, Prepare};
use crate::query::{ListRequest, Visible};
use crate::quota::QuotaUse;
use crate::{Error, Result};

/// What a pipeline answers: the body and what the headers are made from.
#[derive(Debug, Default)]
pub struct Reply {
    /// JSON.
    pub body: Vec<u8>,
    /// The row's version, for the `ETag`.
    pub version: Option<i64>,
    /// The row's id, for `Location`.
    pub id: Option<String>,
    /// The task that was started.
    pub task: Option<String>,
    /// Whether the row is new.
    pub created: bool,
    /// Whether the body is made by an action and may hold what must not be
    /// kept, not even for who sends the same again.
    pub private: bool,
}

/// The answer to a write, whole: what is kept under an idempotency key.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// The HTTP status.
    pub(crate) status: u16,
    /// Where the resource is, or its task.
    pub(crate) location: Option<String>,
    /// The body.
    pub(crate) reply: Reply,
}

/// What a client says of the version it knows.
#[derive(Debug, Clone, Default)]
pub enum IfMatch {
    /// Nothing.
    #[default]
    Any,
    /// One of these.
    Versions(Vec<i64>),
}

impl IfMatch {
    pub(crate) fn check(&self, keyword: &str, id: &str, version: i64) -> Result<()> {
        match self {
            Self::Any => Ok(()),
            Self::Versions(versions) if versions.contains(&version) => Ok(()),
            Self::Versions(_) => {
                let text = format!("{keyword} {id} is at version {version}, not the one of If-Match");
                Err(Error::new(crate::Kind::PreconditionFailed, text))
            }
        }
    }
}

/// Which fields an answer shows.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// Bits of the fields; `None`: all that the caller may see.
    pub mask: Option<u64>,
    /// Names of the extra columns; `None`: all.
    pub extra: Option<Vec<String>>,
    /// Whether to show the tags.
    pub tags: bool,
}

/// The dispatcher of one type, without the type: object-safe, synchronous,
/// inside the transaction. [`Handler`] is the implementor for all compiled types;
/// those defined at run time have one that wraps it.
pub trait ResourceHandler: Send + Sync {
    /// The row's type.
    fn type_id(&self) -> TypeId;
    /// The type's metadata.
    fn meta(&self) -> &'static Meta;
    /// `GET /<plural>`.
    ///
    /// # Errors
    /// As the hooks say.
    fn list(&self, tx: &mut Tx<'_>, request: &ListRequest) -> Result<Reply>;
    /// The next rows of `GET /<plural>?export=`.
    ///
    /// # Errors
    /// As the hooks say.
    fn export(&self, tx: &mut Tx<'_>, request: &ListRequest, place: &Place) -> Result<Chunk>;
    /// `GET /<plural>/statistics`.
    ///
    /// # Errors
    /// As the hooks say.
    fn statistics(&self, tx: &mut Tx<'_>, request: &ListRequest) -> Result<Reply>;
    /// What narrows the type's rows to those that the caller may see, for
    /// conditions on rows that refer to them.
    ///
    /// # Errors
    /// As the hooks say.
    fn visible(&self, tx: &mut Tx<'_>) -> Result<Visible>;
    /// `GET /<plural>/<id>`.
    ///
    /// # Errors
    /// 404, and as the hooks say.
    fn get(&self, tx: &mut Tx<'_>, id: &str, shown: &Shown) -> Result<Reply>;
    /// `POST /<plural>`.
    ///
    /// # Errors
    /// 400, 403, 409, and as the hooks say.
    fn create(&self, tx: &mut Tx<'_>, body: &[u8]) -> Result<Reply>;
    /// `POST /<plural>` with many bodies: each is judged by itself.
    ///
    /// # Errors
    /// Those that undo them all.
    fn create_many(&self, tx: &mut Tx<'_>, bodies: &[String]) -> Result<Vec<Part>>;
    /// `POST /<plural>/apply`: creates it, or updates what differs in the row
    /// of that name.
    ///
    /// # Errors
    /// 400, 403, 404, 409, and as the hooks say.
    fn apply(&self, tx: &mut Tx<'_>, body: &[u8]) -> Result<Reply>;
    /// `POST /<plural>/<id>/copy`.
    ///
    /// # Errors
    /// 400, 403, 404, 409, and as the hooks say.
    fn copy(&self, tx: &mut Tx<'_>, id: &str, body: &[u8]) -> Result<Reply>;
    /// Ids of the rows that a batch is about, held to the transaction's end.
    ///
    /// # Errors
    /// 400 when there are more than `most`.
    fn ids(&self, tx: &mut Tx<'_>, request: &ListRequest, most: usize) -> Result<Vec<String>>;
    /// `PUT /<plural>/<id>`, or `PATCH`, which is a JSON merge patch.
    ///
    /// # Errors
    /// 400, 403, 404, 409, 412, and as the hooks say.
    fn update(&self, tx: &mut Tx<'_>, id: &str, body: &[u8], known: &IfMatch, patch: bool) -> Result<Reply>;
    /// `DELETE /<plural>/<id>`; `purge`: for good, where the type has a trash.
    ///
    /// # Errors
    /// 404, 409, 412, and as the hooks say.
    fn delete(&self, tx: &mut Tx<'_>, id: &str, known: &IfMatch, purge: bool) -> Result<Reply>;
    /// `POST /<plural>/<id>/<action>` and `GET /<plural>/<id>/<detail>`, inside
    /// the transaction; `write` where it may change the row.
    ///
    /// # Errors
    /// 404, 409, 412, and as the method says.
    fn act(
        &self,
        tx: &mut Tx<'_>,
        id: &str,
        action: &'static Action,
        input: &ActionInput,
        known: &IfMatch,
    ) -> Result<Reply>;
    /// `POST /<plural>/<action>` and `GET /<plural>/<property>`, inside the transaction.
    ///
    /// # Errors
    /// As the method says.
    fn act_class(&self, tx: &mut Tx<'_>, action: &'static Action, input: &ActionInput) -> Result<Reply>;
    /// The row, for an action outside of the transaction; `change`: one that
    /// is to change it.
    ///
    /// # Errors
    /// 404, 409, 412.
    fn load(&self, tx: &mut Tx<'_>, id: &str, known: &IfMatch, change: bool) -> Result<Box<dyn Any + Send>>;
    /// What an action gave, as a body; for actions outside of the transaction
    /// that answer a row.
    ///
    /// # Errors
    /// As the hooks say.
    fn show(&self, tx: &mut Tx<'_>, row: Box<dyn Any + Send>) -> Result<Reply>;
    /// Loads the type's cache, if it has one, before the first request needs it.
    ///
    /// # Errors
    /// What the database says.
    fn warm(&self, tx: &mut Tx<'_>) -> Result<()>;
    /// What the living rows of an owner use: the sum for a quota.
    ///
    /// # Errors
    /// What the database says.
    fn uses(&self, tx: &mut Tx<'_>, column: &'static str, owner: &str) -> Result<Vec<QuotaUse>>;
    /// Whether `DELETE …?force=true` means something to it.
    fn takes_force(&self) -> bool {
        false
    }
    /// What is to be done before a create's transaction.
    fn prepare(&self) -> Option<Prepare> {
        None
    }
    /// What its log has beside the usual: [`Manager::EVENTS`].
    fn events(&self) -> &'static [&'static str] {
        &[]
    }
    /// Whether the caller may refer to that row.
    ///
    /// # Errors
    /// What the database says.
    fn exists(&self, tx: &mut Tx<'_>, id: &str) -> Result<bool>;
    /// The rows of a watched list as they are now, a piece at a time.
    ///
    /// # Errors
    /// As the hooks say.
    fn existing(&self, tx: &mut Tx<'_>, watched: &Watched, after: &str) -> Result<Vec<Told>>;
    /// What changes are to the caller of a watched list.
    ///
    /// # Errors
    /// As the hooks say.
    fn changed(&self, tx: &mut Tx<'_>, watched: &Watched, changes: &[Change]) -> Result<Vec<Told>>;
    /// The id of the row that has this id or name, if the caller may see it.
    ///
    /// # Errors
    /// 404, 409.
    fn resolve(&self, tx: &mut Tx<'_>, id: &str) -> Result<String>;
    /// `SELECT` of the ids of all rows that the caller may see.
    ///
    /// # Errors
    /// As the hooks say.
    fn visible_ids(&self, tx: &mut Tx<'_>) -> Result<Sql<'static>>;
    /// Deletes the rows that refer by this field to one that goes.
    ///
    /// # Errors
    /// As the hooks say.
    fn detach(&self, tx: &mut Tx<'_>, field: &'static str, id: &str) -> Result<()>;
}

/// The dispatcher of a type.
pub struct Handler<T>(PhantomData<fn() -> T>);

impl<T> Handler<T> {
    /// The only value.
    pub const NEW: Self = Self(PhantomData);
}

impl<T: Manager> ResourceHandler for Handler<T> {
    fn type_id(&self) -> TypeId {
        TypeId::of::<T>()
    }

    fn meta(&self) -> &'static Meta {
        T::meta()
    }

    fn list(&self, tx: &mut Tx<'_>, request: &ListRequest) -> Result<Reply> {
        lists::list::<T>(tx, request)
    }

    fn export(&self, tx: &mut Tx<'_>, request: &ListRequest, place: &Place) -> Result<Chunk> {
        export::chunk::<T>(tx, request, place)
    }

    fn statistics(&self, tx: &mut Tx<'_>, request: &ListRequest) -> Result<Reply> {
        lists::statistics::<T>(tx, request)
    }

    fn visible(&self, tx: &mut Tx<'_>) -> Result<Visible> {
        let mut select = T::select();
        T::list_item_filter(tx, &mut select)?;
        Ok(select.visible(tx.cred()))
    }

    fn get(&self, tx: &mut Tx<'_>, id: &str, shown: &Shown) -> Result<Reply> {
        pipeline::get::<T>(tx, id, shown)
    }

    fn create(&self, tx: &mut Tx<'_>, body: &[u8]) -> Result<Reply> {
        pipeline::create::<T>(tx, body)
    }

    fn create_many(&self, tx: &mut Tx<'_>, bodies: &[String]) -> Result<Vec<Part>> {
        pipeline::create_many::<T>(tx, bodies)
    }

    fn apply(&self, tx: &mut Tx<'_>, body: &[u8]) -> Result<Reply> {
        apply::apply::<T>(tx, body)
    }

    fn copy(&self, tx: &mut Tx<'_>, id: &str, body: &[u8]) -> Result<Reply> {
        apply::copy::<T>(tx, id, body)
    }

    fn ids(&self, tx: &mut Tx<'_>, request: &ListRequest, most: usize) -> Result<Vec<String>> {
        pipeline::ids::<T>(tx, request, most)
    }

    fn update(&self, tx: &mut Tx<'_>, id: &str, body: &[u8], known: &IfMatch, patch: bool) -> Result<Reply> {
        pipeline::update::<T>(tx, id, body, known, patch)
    }

    fn delete(&self, tx: &mut Tx<'_>, id: &str, known: &IfMatch, purge: bool) -> Result<Reply> {
        pipeline::delete::<T>(tx, id, known, purge)
    }

    fn act(
        &self,
        tx: &mut Tx<'_>,
        id: &str,
        action: &'static Action,
        input: &ActionInput,
        known: &IfMatch,
    ) -> Result<Reply> {
        pipeline::act::<T>(tx, id, action, input, known)
    }

    fn act_class(&self, tx: &mut Tx<'_>, action: &'static Action, input: &ActionInput) -> Result<Reply> {
        pipeline::act_class::<T>(tx, action, input)
    }

    fn load(&self, tx: &mut Tx<'_>, id: &str, known: &IfMatch, change: bool) -> Result<Box<dyn Any + Send>> {
        let row = pipeline::find::<T>(tx, id, false)?;
        if change {
            crate::sharing::expect_own(tx, &row)?;
            crate::trash::expect_living(&row)?;
        }
        known.check(T::meta().keyword(), id, row.base().anon().version)?;
        Ok(Box::new(row))
    }

    fn show(&self, tx: &mut Tx<'_>, row: Box<dyn Any + Send>) -> Result<Reply> {
        let row = row.downcast::<T>().map_err(|_| Error::internal("another type's row"))?;
        pipeline::reply(tx, &*row, &Shown::default())
    }

    fn warm(&self, tx: &mut Tx<'_>) -> Result<()> {
        if T::meta().source.cached {
            tx.cached::<T>()?;
        }
        Ok(())
    }

    fn uses(&self, tx: &mut Tx<'_>, column: &'static str, owner: &str) -> Result<Vec<QuotaUse>> {
        let rows = T::select().unscoped().eq(column, owner.to_owned()).rows(tx)?;
        let mut uses = Vec::new();
        for row in &rows {
            uses.append(&mut row.uses(tx)?);
        }
        Ok(uses)
    }

    fn takes_force(&self) -> bool {
        T::FORCE
    }

    fn prepare(&self) -> Option<Prepare> {
        T::PREPARE
    }

    fn events(&self) -> &'static [&'static str] {
        T::EVENTS
    }

    fn exists(&self, tx: &mut Tx<'_>, id: &str) -> Result<bool> {
        // To refer to a row is to tell that it is there.
        if !T::meta().source.verbs.get.allows(tx.level()) {
            return Ok(false);
        }
        let mut select = T::select().eq("id", id.to_owned());
        T::list_item_filter(tx, &mut select)?;
        if T::meta().source.cached && select.admits(id) {
            return Ok(tx.cached::<T>()?.contains_key(id));
        }
        // Held to the transaction's end: it must not go before who refers to it is there.
        Ok(select.for_key_share().one(tx)?.is_some())
    }

    fn existing(&self, tx: &mut Tx<'_>, watched: &Watched, after: &str) -> Result<Vec<Told>> {
        rows::existing::<T>(tx, watched, after)
    }

    fn changed(&self, tx: &mut Tx<'_>, watched: &Watched, changes: &[Change]) -> Result<Vec<Told>> {
        rows::changed::<T>(tx, watched, changes)
    }

    fn resolve(&self, tx: &mut Tx<'_>, id: &str) -> Result<String> {
        let row = pipeline::find::<T>(tx, id, false)?;
        Ok(row.base().anon().id.clone())
    }

    fn visible_ids(&self, tx: &mut Tx<'_>) -> Result<Sql<'static>> {
        let mut select = T::select();
        T::list_item_filter(tx, &mut select)?;
        Ok(select.ids(tx))
    }

    fn detach(&self, tx: &mut Tx<'_>, field: &'static str, id: &str) -> Result<()> {
        pipeline::detach::<T>(tx, field, id)
    }
}
