//! `Ctx`: a request outside its transaction; `Tx`: inside. Time, ids and the
//! services come in through them, so that tests can hold them still.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::auth::{Access, Authenticator, UserCred};
use crate::cache::{Caches, Written};
use crate::context::{self, Nested};
use crate::db::{self, AnyConnection, Cost, Db, Dialect, Done, Lock, OneRow, Sql, Value};
use crate::event::{Feed, FeedOptions};
use crate::http::Trace;
use crate::i18n::Lang;
use crate::model::{Meta, Owner, Record, Reference, Stamp};
use crate::oplog;
use crate::registry::Registry;
use crate::task::Engine;
use crate::{Error, Result};

/// The moment, cut to the microseconds that a column keeps.
#[must_use]
pub fn now() -> DateTime<Utc> {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the clock")]
    let now = Utc::now();
    DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now)
}

/// A new id: a UUID v7, so that ids sort as they were made and an index on
/// them grows at its end.
#[must_use]
pub fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// An id that carries this moment, to the millisecond: [`made_at`] gives it back.
pub(crate) fn id_of(at: DateTime<Utc>) -> String {
    let (seconds, nanos) = (u64::try_from(at.timestamp()).unwrap_or(0), at.timestamp_subsec_nanos());
    uuid::Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos)).to_string()
}

/// The millisecond that an id carries.
pub(crate) fn made_at(id: &str) -> Option<DateTime<Utc>> {
    let (seconds, nanos) = uuid::Uuid::try_parse(id).ok()?.get_timestamp()?.to_unix();
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
}

/// What a process has once: database, registry, caches, services.
pub struct Core {
    /// The database.
    pub db: Db,
    /// All resource types.
    pub registry: Registry,
    /// Small tables in memory.
    pub caches: Caches,
    /// The task engine.
    pub tasks: Engine,
    /// The webhooks.
    pub(crate) hooks: crate::webhook::Hooks,
    pub(crate) sweeps: crate::idempotency::Sweeps,
    /// The change feed.
    pub feed: Feed,
    auth: Arc<dyn Authenticator>,
    services: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl Core {
    /// Puts a process together.
    #[must_use]
    pub fn new(db: Db, auth: Arc<dyn Authenticator>) -> Self {
        let tasks = Engine::new();
        Self {
            db,
            registry: Registry::collect(),
            caches: Caches::default(),
            tasks,
            hooks: crate::webhook::Hooks::default(),
            sweeps: crate::idempotency::Sweeps::default(),
            feed: Feed::new(FeedOptions::default()),
            auth,
            services: HashMap::new(),
        }
    }

    /// Adds what a service's hooks and tasks need of the outside (a driver, a
    /// setting); they get it by its type.
    #[must_use]
    pub fn with_service<T: Any + Send + Sync>(mut self, service: Arc<T>) -> Self {
        self.services.insert(TypeId::of::<T>(), service);
        self
    }

    /// Sets how the change feed behaves.
    #[must_use]
    pub fn with_feed(mut self, options: FeedOptions) -> Self {
        self.feed = Feed::new(options);
        self
    }

    /// Loads all caches, so that the first requests need not.
    ///
    /// # Errors
    /// What the database says.
    pub async fn warm(self: &Arc<Self>) -> Result<()> {
        let ctx = Ctx::system(self);
        let done = ctx.read(Cost::Unbounded, |tx| {
            tx.ctx.core().registry.types().try_for_each(|of| of.handler.warm(tx))
        });
        done.await?;
        Ok(())
    }

    /// Who is behind a token.
    #[must_use]
    pub fn authenticate(&self, token: &str) -> Option<Arc<UserCred>> {
        self.auth.authenticate(token)
    }
}

/// A request outside of any transaction: cheap to clone, may cross an await.
#[derive(Clone)]
pub struct Ctx {
    core: Arc<Core>,
    cred: Arc<UserCred>,
    request_id: Arc<str>,
    force: bool,
    admitted: bool,
    client_ip: Option<IpAddr>,
    task: bool,
    /// What the path fixed of the rows that it leads to.
    pub(crate) nested: Option<Arc<Nested>>,
    trace: Option<Arc<Trace>>,
    lang: Lang,
    prepared: Option<Prepared>,
}

/// What a type made for a request before its transaction.
pub type Prepared = Arc<dyn Any + Send + Sync>;

impl Ctx {
    /// For a request of somebody.
    pub fn new(core: Arc<Core>, cred: Arc<UserCred>, request_id: impl Into<Arc<str>>) -> Self {
        let (client_ip, task, force, admitted, nested) = (None, false, false, false, None);
        let (request_id, trace, lang, prepared) = (request_id.into(), None, Lang::English, None);
        Self { core, cred, request_id, client_ip, task, force, admitted, nested, trace, lang, prepared }
    }

    /// The same request, which asked for force or did not.
    #[must_use]
    pub(crate) fn with_force(self, force: bool) -> Self {
        Self { force, ..self }
    }

    /// Whether the request asked for force: only where [`crate::model::Manager::FORCE`] says so.
    #[must_use]
    pub fn force(&self) -> bool {
        self.force
    }

    /// The same request, which all webhooks that must be asked have admitted.
    #[must_use]
    pub(crate) fn with_admission(self) -> Self {
        Self { admitted: true, ..self }
    }

    /// Whether all webhooks that must be asked have admitted the request.
    pub(crate) fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// The same request, with what its type made ready.
    #[must_use]
    pub(crate) fn with_prepared(self, it: Prepared) -> Self {
        Self { prepared: Some(it), ..self }
    }

    /// What [`crate::model::Manager::PREPARE`] made for the request, if it ran.
    #[must_use]
    pub fn prepared<T: Any>(&self) -> Option<&T> {
        self.prepared.as_ref()?.downcast_ref()
    }

    /// For a task, which acts for somebody: its id is the request's, too.
    pub fn task(core: Arc<Core>, cred: Arc<UserCred>, task_id: impl Into<Arc<str>>) -> Self {
        Self { task: true, ..Self::new(core, cred, task_id) }
    }

    /// The same, from an address: the audit says from where.
    #[must_use]
    pub fn from_address(mut self, client_ip: Option<IpAddr>) -> Self {
        self.client_ip = client_ip;
        self
    }

    /// The same request, for what stands below another resource.
    #[must_use]
    pub(crate) fn within(self, nested: Nested) -> Self {
        Self { nested: Some(Arc::new(nested)), ..self }
    }

    /// For the platform itself.
    #[must_use]
    pub fn system(core: &Arc<Core>) -> Self {
        Self::new(core.clone(), Arc::new(UserCred::system()), "")
    }

    /// The process.
    #[must_use]
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Who calls.
    #[must_use]
    pub fn cred(&self) -> &Arc<UserCred> {
        &self.cred
    }

    /// The request's id, which the log and the audit carry.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Where the request comes from, if it came from outside.
    #[must_use]
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.client_ip
    }

    /// The task that this is, if it is one.
    #[must_use]
    pub fn task_id(&self) -> Option<&str> {
        self.task.then_some(&*self.request_id)
    }

    /// The same, as a part of a client's trace.
    #[must_use]
    pub fn with_trace(mut self, trace: Trace) -> Self {
        self.trace = Some(Arc::new(trace));
        self
    }

    /// The same, for somebody who reads that language.
    #[must_use]
    pub(crate) fn with_lang(self, lang: Lang) -> Self {
        Self { lang, ..self }
    }

    /// The language of what is told to people.
    pub(crate) fn lang(&self) -> Lang {
        self.lang
    }

    /// The client's trace, if it sent one: what calls others on its behalf
    /// sends them [`Trace::parent`].
    #[must_use]
    pub fn trace(&self) -> Option<&Trace> {
        self.trace.as_deref()
    }

    /// A service by its type.
    ///
    /// # Errors
    /// When the process was put together without it.
    pub fn service<T: Any + Send + Sync>(&self) -> Result<Arc<T>> {
        let found = self.core.services.get(&TypeId::of::<T>()).cloned();
        found
            .and_then(|it| it.downcast().ok())
            .ok_or_else(|| Error::internal(format!("no service {}", std::any::type_name::<T>())))
    }

    /// Runs a read; the closure may run twice, if a connection was broken.
    ///
    /// # Errors
    /// What the closure returns, or 503.
    pub async fn read<R, F>(&self, cost: Cost, f: F) -> Result<Done<R>>
    where
        R: Send + 'static,
        F: Fn(&mut Tx<'_>) -> Result<R> + Send + 'static,
    {
        let ctx = self.clone();
        self.core.db.read(cost, move |conn| f(&mut Tx::new(conn, &ctx))).await
    }

    /// Runs a write in a transaction of its own.
    ///
    /// # Errors
    /// What the closure returns (then nothing was changed), or 503.
    pub async fn write<R, F>(&self, lock: Option<Lock>, f: F) -> Result<Done<R>>
    where
        R: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<R> + Send + 'static,
    {
        let ctx = self.clone();
        self.core.db.write(lock, move |conn| f(&mut Tx::new(conn, &ctx))).await
    }

    /// [`Ctx::write`] of something that can be done again after it was undone;
    /// `of` as for [`Db::write_repeatable`].
    ///
    /// # Errors
    /// What the closure returns (then nothing was changed), or 503.
    pub(crate) async fn write_repeatable<R, F>(
        &self,
        lock: Option<Lock>,
        of: Option<OneRow>,
        mut f: F,
    ) -> Result<Done<R>>
    where
        R: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<R> + Send + 'static,
    {
        let ctx = self.clone();
        self.core.db.write_repeatable(lock, of, move |conn| f(&mut Tx::new(conn, &ctx))).await
    }
}

/// A request inside its transaction: blocking, on the thread of its connection.
pub struct Tx<'a> {
    /// The connection.
    pub conn: &'a mut AnyConnection,
    /// The request.
    pub ctx: &'a Ctx,
    now: DateTime<Utc>,
    /// What this transaction wrote to cached types.
    pub(crate) written: Option<Written>,
    /// The task that an action started, for its answer.
    pub(crate) started_task: Option<String>,
    /// The row that is being changed, as it was, where quotas want to know.
    pub(crate) remembered: Option<Box<dyn Any + Send>>,
    /// Whether all of it will be undone: a dry run.
    pub(crate) rehearsal: bool,
    /// What [`Ctx::nested`] fixes, once it is looked up.
    pub(crate) fixed: Option<context::Fixed>,
    /// Tables of types that were defined at run time which are held, on MySQL.
    /// A part that is undone lets none of them go.
    pub(crate) held: Vec<&'static str>,
}

impl<'a> Tx<'a> {
    /// Opens the inside of a request on a connection that is in a transaction.
    pub fn new(conn: &'a mut AnyConnection, ctx: &'a Ctx) -> Self {
        Self {
            conn,
            ctx,
            now: now(),
            written: None,
            started_task: None,
            remembered: None,
            rehearsal: false,
            fixed: None,
            held: Vec::new(),
        }
    }

    /// The moment of the request: one for all that it writes.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// Who calls.
    #[must_use]
    pub fn cred(&self) -> &UserCred {
        &self.ctx.cred
    }

    /// The caller's rank.
    #[must_use]
    pub fn level(&self) -> Access {
        self.ctx.cred.level
    }

    /// Waits for a named lock, held to the transaction's end. On SQLite there
    /// is one writer, so it is held already.
    ///
    /// # Errors
    /// When the wait is too long.
    pub fn lock(&mut self, name: &str) -> Result<()> {
        let key = db::lock_key(name);
        let sql = match self.conn.dialect() {
            Dialect::Sqlite => return Ok(()),
            Dialect::Postgres => {
                Sql::new("SELECT 1::bigint FROM pg_advisory_xact_lock(").value(key).text(")")
            }
            Dialect::Mysql => Sql::new(db::MYSQL_LOCK).value(db::lock_row(key)).text(" FOR UPDATE"),
        };
        db::load_one::<(i64,)>(self.conn, sql)?;
        Ok(())
    }

    pub(crate) fn stamp(&self) -> Stamp<'_> {
        Stamp { id: new_id(), now: self.now, cred: &self.ctx.cred }
    }

    /// Stores a new row.
    ///
    /// # Errors
    /// 409 when a unique field's value is taken.
    pub fn insert<T: Record>(&mut self, row: &T) -> Result<()> {
        if T::meta().source.cached {
            self.bump_generation::<T>()?;
        }
        self.quota_insert(row)?;
        db::execute(self.conn, &insertion(row, &[], self.conn.dialect()))?;
        Ok(())
    }

    /// Stores a new row and the record that it was made, which on PostgreSQL
    /// is one round trip for both.
    ///
    /// # Errors
    /// 409 when a unique field's value is taken.
    pub fn insert_and_log<T: Record>(&mut self, row: &T, action: &str) -> Result<()> {
        if T::meta().source.cached {
            self.bump_generation::<T>()?;
        }
        self.quota_insert(row)?;
        let notes = oplog::notes(row, None);
        let changes = self.told(T::meta(), action).then(|| notes.clone());
        let owners = self.owners(row);
        let sql = insertion(row, &owners, self.conn.dialect());
        // Without owners its text is the same for all rows of a type; but those
        // that are defined at run time are one Rust type, and change.
        let fixed = owners.is_empty() && !T::meta().is_runtime();
        let execute = if fixed { db::execute_fixed::<Insertion<T>> } else { db::execute };
        if !self.with_record(sql, execute, T::meta(), row.base(), action, notes)? {
            let owner = row.base().owner().unwrap_or_default();
            let (name, own) = (&self.cred().user_name, self.cred().user_id == owner.user_id);
            return Err(if own {
                Error::unauthorized(format!("the user {name}, their project or domain is no longer there"))
            } else {
                Error::conflict("the user, project or domain that it is for is no longer there")
            });
        }
        self.tell(row, action, changes)
    }

    /// The types and ids of the user, project and domain that a row belongs to.
    /// Who creates something may be deleted at this very moment, and so may the
    /// project; nothing must be left without owner.
    fn owners<'r, T: Record>(&self, row: &'r T) -> Vec<(&'static Meta, &'r str)> {
        let Some(Owner { domain_id, project_id, user_id }) = row.base().owner() else { return Vec::new() };
        let ids = [("domain_id", domain_id), ("project_id", project_id), ("user_id", user_id)];
        let of = |(name, id): (&str, &'r str)| {
            let keyword = T::meta().field(name).filter(|_| !id.is_empty())?.references?;
            Some((self.ctx.core().registry.keyword(keyword)?.handler.meta(), id))
        };
        ids.into_iter().filter_map(of).collect()
    }

    /// Makes a row as the platform would for a client, without the client's
    /// hooks: for start-up and other services' hooks. It is stamped and stored.
    ///
    /// # Errors
    /// 409 when a unique field's value is taken.
    pub fn create<T: Record>(&mut self, mut row: T) -> Result<T> {
        row.stamp(&self.stamp());
        self.insert(&row)?;
        Ok(row)
    }

    /// Stores a changed row: a compare-and-set on the version that was read.
    ///
    /// # Errors
    /// 409 when somebody else changed it meanwhile.
    pub fn save<T: Record>(&mut self, row: &mut T) -> Result<()> {
        self.save_with(row, |tx, row, version| Ok(db::execute(tx.conn, &change(row, version, None))? > 0))
    }

    /// Stores a changed row as [`Tx::save`] does, and the record of what was
    /// changed: cheaper than one after the other, since indexed columns that
    /// stayed as they were `before` are left alone, and on PostgreSQL it is
    /// one round trip for both.
    ///
    /// # Errors
    /// 409 when somebody else changed it meanwhile.
    pub fn save_and_log<T: Record>(&mut self, row: &mut T, action: &str, before: &[Value<'_>]) -> Result<()> {
        self.save_noted(row, action, before, None)
    }

    /// [`Tx::save_and_log`], with what else changed that is no column.
    pub(crate) fn save_noted<T: Record>(
        &mut self,
        row: &mut T,
        action: &str,
        before: &[Value<'_>],
        more: Option<(&str, serde_json::Value)>,
    ) -> Result<()> {
        self.save_with(row, |tx, row, version| {
            let mut notes = oplog::notes(row, Some(before));
            if let Some((name, value)) = more {
                notes = oplog::noted(notes, name, value);
            }
            let changes = tx.told(T::meta(), action).then(|| notes.clone());
            let stored = tx.with_record(
                change(row, version, Some(before)),
                db::execute,
                T::meta(),
                row.base(),
                action,
                notes,
            )?;
            if stored {
                tx.tell(row, action, changes)?;
            }
            Ok(stored)
        })
    }

    fn save_with<T: Record>(
        &mut self,
        row: &mut T,
        store: impl FnOnce(&mut Self, &T, i64) -> Result<bool>,
    ) -> Result<()> {
        let meta = T::meta();
        if meta.source.cached {
            self.bump_generation::<T>()?;
        }
        self.quota_change(row)?;
        let before = row.base().anon().version;
        {
            let anon = row.base_mut().anon_mut();
            anon.version = before + 1;
            anon.updated_at = self.now;
        }
        if !store(self, row, before)? {
            row.base_mut().anon_mut().version = before;
            let id = &row.base().anon().id;
            let text =
                format!("{} {id} was changed by somebody else meanwhile; read it again", meta.keyword());
            return Err(Error::conflict(text));
        }
        Ok(())
    }

    /// Removes a row: marks it where the base has a mark, else deletes it.
    ///
    /// # Errors
    /// 409 when somebody else changed it meanwhile.
    pub fn remove<T: Record>(&mut self, row: &mut T) -> Result<()> {
        let now = self.now;
        if row.base().owned().is_some() {
            self.expect_unused(T::meta(), &row.base().anon().id)?;
        }
        if let Some(owned) = row.base_mut().owned_mut() {
            owned.deleted = true;
            owned.deleted_at = Some(now);
            return self.save(row);
        }
        let meta = T::meta();
        if meta.source.cached {
            // First: it waits for those who rely on the row, so that the
            // delete then sees what they made of it.
            self.bump_generation::<T>()?;
        }
        self.quota_remove(row)?;
        let anon = row.base().anon();
        let mut sql = Sql::new("DELETE FROM \"")
            .text(meta.table())
            .text("\" WHERE \"id\" = ")
            .value(&anon.id)
            .text(" AND \"version\" = ")
            .value(anon.version);
        for by in self.ctx.core().registry.referenced_by(meta) {
            sql.push(" AND NOT ");
            used(&mut sql, &by, &anon.id);
        }
        if db::execute(self.conn, &sql)? == 0 {
            self.expect_unused(meta, &anon.id)?;
            let text = format!("{} {} was changed by somebody else meanwhile", meta.keyword(), anon.id);
            return Err(Error::conflict(text));
        }
        if meta.shared() {
            // Those of a row that is only marked stay: whom it was shared with is told of its end.
            crate::sharing::forget(self, meta.keyword(), &anon.id)?;
        }
        Ok(())
    }

    /// Refuses when a living row of any type refers to the row.
    pub(crate) fn expect_unused(&mut self, meta: &'static Meta, id: &str) -> Result<()> {
        let referenced_by = self.ctx.core().registry.referenced_by(meta);
        if referenced_by.is_empty() {
            return Ok(());
        }
        let mut sql = Sql::new("SELECT CASE");
        for by in &referenced_by {
            sql.push(" WHEN ");
            used(&mut sql, by, id);
            sql.push(" THEN '").push(by.keyword).push("'");
        }
        sql.push(" ELSE '' END");
        match db::load_one::<(String,)>(self.conn, sql)? {
            Some((by,)) if !by.is_empty() => {
                let text = format!("{} {id} is still used by a {by}", meta.keyword());
                Err(Error::conflict(text).class("ResourceInUseError"))
            }
            _ => Ok(()),
        }
    }

    /// Sets a row's status, and why, and stores it.
    ///
    /// # Errors
    /// 409 when somebody else changed it meanwhile.
    pub fn set_status<T: Record>(&mut self, row: &mut T, status: &str, reason: &str) -> Result<()> {
        let Some(base) = row.base_mut().status_mut() else {
            return Err(Error::internal(format!("{} has no status", T::meta().keyword())));
        };
        status.clone_into(&mut base.status);
        base.status_reason = reason.chars().take(4096).collect();
        self.save(row)
    }
}

/// Names the `INSERT` of a type's row.
struct Insertion<T>(std::marker::PhantomData<T>);

/// `INSERT` of a row; with owners only if they are there, and stay to the
/// transaction's end.
fn insertion<'r, T: Record>(row: &'r T, owners: &[(&'static Meta, &'r str)], dialect: Dialect) -> Sql<'r> {
    let meta = T::meta();
    let mut values = Vec::with_capacity(meta.fields().len());
    row.write(&mut values);
    let mut sql = Sql::new("INSERT INTO \"").text(meta.table()).text("\" (").text(meta.columns());
    sql.push(if owners.is_empty() { ") VALUES (" } else { ") SELECT " });
    for (i, value) in values.into_iter().enumerate() {
        if i > 0 {
            sql.push(", ");
        }
        sql.bind(value);
    }
    if owners.is_empty() {
        sql.push(")");
        return sql;
    }
    for (i, (owner, _)) in owners.iter().enumerate() {
        sql.push(if i == 0 { " FROM \"" } else { ", \"" }).push(owner.table()).push("\"");
    }
    for (i, (owner, id)) in owners.iter().enumerate() {
        sql.push(if i == 0 { " WHERE \"" } else { " AND \"" })
            .push(owner.table())
            .push("\".\"id\" = ")
            .bind(*id);
        if owner.has("deleted") {
            sql.push(" AND \"").push(owner.table()).push("\".\"deleted\" = FALSE");
        }
    }
    sql.push(dialect.for_key_share());
    sql
}

/// `UPDATE` of a row that is at this version. SQLite writes an index anew for
/// every column of it that is named, whether its value changes or not, so
/// those that are as `before` are left out. The others are always named: the
/// text must not take a form for each set of fields that clients can think of.
fn change<'r, T: Record>(row: &'r T, version: i64, before: Option<&[Value<'_>]>) -> Sql<'r> {
    let meta = T::meta();
    let mut values = Vec::with_capacity(meta.fields().len());
    row.write(&mut values);
    let mut sql = Sql::new("UPDATE \"").text(meta.table()).text("\" SET ");
    let mut comma = "";
    for (i, (field, value)) in meta.stored().zip(values).enumerate() {
        let indexed = field.index || field.unique || field.references.is_some() || field.name == "deleted";
        let same = indexed && before.and_then(|it| it.get(i)).is_some_and(|it| *it == value);
        if same || matches!(field.name, "id" | "created_at") {
            continue;
        }
        sql.push(comma).push("\"").push(field.name).push("\" = ").bind(value);
        comma = ", ";
    }
    sql.push(" WHERE \"id\" = ").bind(&row.base().anon().id).push(" AND \"version\" = ").bind(version);
    sql
}

/// `EXISTS (…)` of living rows that refer to an id.
fn used<'a>(sql: &mut Sql<'a>, by: &Reference, id: &'a str) {
    sql.push("EXISTS (SELECT 1 FROM \"")
        .push(by.table)
        .push("\" WHERE \"")
        .push(by.column)
        .push("\" = ")
        .bind(id);
    sql.push(if by.soft { " AND \"deleted\" = FALSE)" } else { ")" });
}

/// A row's values, to tell later what changed.
pub(crate) fn snapshot<T: Record>(row: &T) -> Vec<Value<'static>> {
    let mut values = Vec::new();
    row.write(&mut values);
    values.into_iter().map(Value::into_owned).collect()
}

/// A row's values, borrowed from it.
pub(crate) fn values<T: Record>(row: &T) -> Vec<Value<'_>> {
    let mut values = Vec::with_capacity(T::meta().fields().len());
    row.write(&mut values);
    values
}
