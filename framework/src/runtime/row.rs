//! A row of a type that was defined at run time. The pipelines are generic
//! over Rust types; all these types are one of them, [`DynRow`], and which of
//! them is meant stands in a thread-local for as long as a call lasts: a
//! pipeline is synchronous and stays on its thread.

use std::any::{Any, TypeId};
use std::cell::Cell;
use std::sync::LazyLock;

use serde_json::value::RawValue;

use super::of::{DynType, Own, parse};
use super::spec::FieldType;
use super::table;
use crate::Result;
use crate::auth::Access;
use crate::ctx::Tx;
use crate::db::{Column as _, RowReader, Sql, Value};
use crate::dispatch::{Chunk, Handler, IfMatch, Part, Place, Reply, ResourceHandler, Shown};
use crate::event::{Change, Told, Watched};
use crate::model::{
    Action, ActionInput, Base, Columns, Field, Input, JsonObject, Manager, Meta, MetaSource, Model, Record,
    Scope, Stamp, StandaloneBase, Verbs, VirtualBase,
};
use crate::query::{ListRequest, Visible};
use crate::quota::QuotaUse;

thread_local! {
    static CURRENT: Cell<Option<&'static DynType>> = const { Cell::new(None) };
}

/// What stands where no call is under way: a type without rows or rights.
static NONE: LazyLock<DynType> = LazyLock::new(|| {
    let verbs = [Access::Never; 5];
    let [list, get, create, update, delete] = verbs;
    let verbs = Verbs { list, get, create, update, delete };
    let source = MetaSource {
        keyword: "none",
        plural: "none",
        doc: "",
        verbs,
        scope: Scope::All,
        cached: false,
        unlogged: false,
        quota: None,
        extra: &[],
        owner: &[],
        joint: None,
        fields: |_| {},
    };
    let mut fields = Vec::new();
    StandaloneBase::fields(&mut fields);
    DynType { meta: Meta::at_runtime(source, "rt_none", fields), owned: false, own: &[] }
});

fn current() -> &'static DynType {
    CURRENT.get().unwrap_or_else(|| &NONE)
}

/// Says which type is meant until it is dropped.
struct Within(Option<&'static DynType>);

impl Within {
    fn new(of: &'static DynType) -> Self {
        Self(CURRENT.replace(Some(of)))
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// One of the two bases, or what stands for one of them.
#[derive(Debug, Clone)]
pub(super) enum Either<P, O> {
    /// Of a type without owners.
    Plain(P),
    /// Of a type whose rows belong to somebody.
    Owned(O),
}

impl<P: Default, O: Default> Either<P, O> {
    fn of(it: &DynType) -> Self {
        if it.owned { Self::Owned(O::default()) } else { Self::Plain(P::default()) }
    }
}

impl<P: Input, O: Input> Input for Either<P, O> {
    fn set(&mut self, field: &str, value: &RawValue) -> Result<bool, String> {
        match self {
            Self::Plain(it) => it.set(field, value),
            Self::Owned(it) => it.set(field, value),
        }
    }
}

/// What a client gave: the base's part, and values of own fields by their place.
#[derive(Debug, Clone)]
pub(super) struct DynInput<P, O> {
    base: Either<P, O>,
    own: Vec<Option<Value<'static>>>,
}

type DynCreate = DynInput<<StandaloneBase as Columns>::Create, <VirtualBase as Columns>::Create>;
type DynUpdate = DynInput<<StandaloneBase as Columns>::Update, <VirtualBase as Columns>::Update>;

impl<P: Default, O: Default> Default for DynInput<P, O> {
    fn default() -> Self {
        let of = current();
        Self { base: Either::of(of), own: vec![None; of.own.len()] }
    }
}

impl<P: Input, O: Input> Input for DynInput<P, O> {
    fn set(&mut self, field: &str, value: &RawValue) -> Result<bool, String> {
        let found = current().own.iter().zip(&mut self.own).find(|(own, _)| own.field.name == field);
        match found {
            Some((own, slot)) => {
                *slot = Some(parse(own.kind, &own.field, value)?);
                Ok(true)
            }
            None => self.base.set(field, value),
        }
    }
}

/// A row of any of these types.
#[derive(Clone)]
pub(super) struct DynRow {
    of: &'static DynType,
    base: Either<StandaloneBase, VirtualBase>,
    own: Vec<Value<'static>>,
}

fn read(own: &Own, row: &mut RowReader<'_, '_, '_>) -> Result<Value<'static>> {
    Ok(match own.kind {
        FieldType::Text | FieldType::Json | FieldType::List => {
            Value::Text(row.text()?.map(std::borrow::Cow::Owned))
        }
        FieldType::Integer | FieldType::Time => Value::Int(row.int()?),
        FieldType::Number => Value::Float(row.float()?),
        FieldType::Boolean => Value::Bool(row.bool()?),
    })
}

fn borrowed<'a>(value: &'a Value<'static>) -> Value<'a> {
    match value {
        Value::Text(Some(text)) => text.as_ref().into(),
        other => other.clone(),
    }
}

fn json(kind: FieldType, value: &Value<'static>, out: &mut Vec<u8>) -> serde_json::Result<()> {
    match (kind, value) {
        // JSON as we wrote it ourselves.
        (FieldType::Json | FieldType::List, Value::Text(Some(text))) => {
            out.extend_from_slice(text.as_bytes());
            Ok(())
        }
        (FieldType::Time, Value::Int(Some(micros))) => {
            chrono::DateTime::from_timestamp_micros(*micros).json(out)
        }
        (_, Value::Text(Some(text))) => serde_json::to_writer(out, text),
        (_, Value::Int(Some(it))) => serde_json::to_writer(out, it),
        (_, Value::Float(Some(it))) => serde_json::to_writer(out, it),
        (_, Value::Bool(Some(it))) => serde_json::to_writer(out, it),
        _ => serde_json::to_writer(out, &()),
    }
}

impl Columns for DynRow {
    type Create = DynCreate;
    type Update = DynUpdate;

    fn fields(out: &mut Vec<&'static Field>) {
        out.extend(current().meta.fields());
    }

    fn read(row: &mut RowReader<'_, '_, '_>) -> Result<Self> {
        let of = current();
        let base = if of.owned {
            Either::Owned(VirtualBase::read(row)?)
        } else {
            Either::Plain(StandaloneBase::read(row)?)
        };
        let own = of.own.iter().map(|own| read(own, row)).collect::<Result<_>>()?;
        Ok(Self { of, base, own })
    }

    fn write<'a>(&'a self, out: &mut Vec<Value<'a>>) {
        match &self.base {
            Either::Plain(it) => it.write(out),
            Either::Owned(it) => it.write(out),
        }
        out.extend(self.own.iter().map(borrowed));
    }

    fn view(&self, out: &mut JsonObject<'_>) {
        match &self.base {
            Either::Plain(it) => it.view(out),
            Either::Owned(it) => it.view(out),
        }
        for (own, value) in self.of.own.iter().zip(&self.own) {
            out.field_with(own.field.name, |out| json(own.kind, value, out));
        }
    }

    fn from_create(input: &Self::Create) -> Self {
        let of = current();
        let base = match &input.base {
            Either::Plain(it) => Either::Plain(StandaloneBase::from_create(it)),
            Either::Owned(it) => Either::Owned(VirtualBase::from_create(it)),
        };
        let given = |(own, value): (&Own, &Option<Value<'static>>)| {
            value.clone().unwrap_or_else(|| own.default.clone())
        };
        Self { of, base, own: of.own.iter().zip(&input.own).map(given).collect() }
    }

    fn apply(&mut self, input: &Self::Update) {
        match (&mut self.base, &input.base) {
            (Either::Plain(it), Either::Plain(input)) => it.apply(input),
            (Either::Owned(it), Either::Owned(input)) => it.apply(input),
            // Both are made by the same type.
            _ => {}
        }
        for (value, given) in self.own.iter_mut().zip(&input.own) {
            if let Some(given) = given {
                value.clone_from(given);
            }
        }
    }

    fn stamp(&mut self, by: &Stamp<'_>) {
        match &mut self.base {
            Either::Plain(it) => it.stamp(by),
            Either::Owned(it) => it.stamp(by),
        }
    }
}

impl Record for DynRow {
    fn meta() -> &'static Meta {
        &current().meta
    }

    fn uses(&self, tx: &mut Tx<'_>) -> Result<Vec<QuotaUse>> {
        self.quota_use(tx)
    }

    fn base(&self) -> &dyn Base {
        match &self.base {
            Either::Plain(it) => it,
            Either::Owned(it) => it,
        }
    }

    fn base_mut(&mut self) -> &mut dyn Base {
        match &mut self.base {
            Either::Plain(it) => it,
            Either::Owned(it) => it,
        }
    }
}

impl Model for DynRow {}

impl Manager for DynRow {}

/// The dispatcher of one of these types: that of all rows, told which is meant.
pub(super) struct DynHandler(pub(super) &'static DynType);

const ROWS: Handler<DynRow> = Handler::NEW;

/// What the handler of all rows does, with the type told for as long;
/// `true` where one may write or rely on a row: the table then stays as it is.
macro_rules! within {
    (holding: $holds:literal; $($name:ident($($arg:ident: $ty:ty),*) -> $out:ty;)+) => {$(
        fn $name(&self, tx: &mut Tx<'_>, $($arg: $ty),*) -> Result<$out> {
            if $holds {
                table::hold(tx, self.0.meta.table())?;
            }
            let _within = Within::new(self.0);
            ROWS.$name(tx, $($arg),*)
        }
    )+};
}

impl ResourceHandler for DynHandler {
    fn type_id(&self) -> TypeId {
        TypeId::of::<DynRow>()
    }

    fn meta(&self) -> &'static Meta {
        &self.0.meta
    }

    within! {
        holding: false;
        list(request: &ListRequest) -> Reply;
        export(request: &ListRequest, place: &Place) -> Chunk;
        statistics(request: &ListRequest) -> Reply;
        visible() -> Visible;
        get(id: &str, shown: &Shown) -> Reply;
        show(row: Box<dyn Any + Send>) -> Reply;
        warm() -> ();
        uses(column: &'static str, owner: &str) -> Vec<QuotaUse>;
        existing(watched: &Watched, after: &str) -> Vec<Told>;
        changed(watched: &Watched, changes: &[Change]) -> Vec<Told>;
        resolve(id: &str) -> String;
        visible_ids() -> Sql<'static>;
    }

    within! {
        holding: true;
        create(body: &[u8]) -> Reply;
        create_many(bodies: &[String]) -> Vec<Part>;
        apply(body: &[u8]) -> Reply;
        copy(id: &str, body: &[u8]) -> Reply;
        ids(request: &ListRequest, most: usize) -> Vec<String>;
        update(id: &str, body: &[u8], known: &IfMatch, patch: bool) -> Reply;
        delete(id: &str, known: &IfMatch, purge: bool) -> Reply;
        act(id: &str, action: &'static Action, input: &ActionInput, known: &IfMatch) -> Reply;
        act_class(action: &'static Action, input: &ActionInput) -> Reply;
        load(id: &str, known: &IfMatch, change: bool) -> Box<dyn Any + Send>;
        detach(field: &'static str, id: &str) -> ();
        exists(id: &str) -> bool;
    }
}
