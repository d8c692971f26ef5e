//! How a task begins: with the write that asks for it.

use std::time::Duration;

use super::clock::micros;
use super::store::{self, Claimed, Entered, Entry, NewTask};
use super::{TaskType, callback};
use crate::ctx::{Tx, new_id};
use crate::db;
use crate::model::Record;
use crate::{Error, Kind, Result};

/// A task that is about to be started; see [`Tx::task`].
#[must_use = "call .start()"]
pub struct TaskStart<'t, 'a, T: TaskType> {
    tx: &'t mut Tx<'a>,
    row: &'t T::Object,
    also: Vec<&'t T::Object>,
    params: T::Params,
    behind: bool,
    unique: Option<String>,
    priority: i64,
    delay: Duration,
    within: Option<Duration>,
    parent: Option<(&'t str, i64)>,
}

impl<'a> Tx<'a> {
    /// Starts a task on an object. It exists if and only if this transaction
    /// commits, and belongs to whom the object belongs to. Answers its id.
    ///
    /// # Errors
    /// 409 `TaskInProgressError` while another task works on the object.
    pub fn start_task<T: TaskType>(&mut self, row: &T::Object, params: T::Params) -> Result<String> {
        self.task::<T>(row, params).start()
    }

    /// As [`Tx::start_task`], with more to say: `.behind()`, `.unique(key)`,
    /// `.priority(n)`, `.after(delay)`, `.within(time)`, `.also(&others)`, and
    /// then `.start()?`.
    pub fn task<'t, T: TaskType>(
        &'t mut self,
        row: &'t T::Object,
        params: T::Params,
    ) -> TaskStart<'t, 'a, T> {
        TaskStart {
            tx: self,
            row,
            also: Vec::new(),
            params,
            behind: false,
            unique: None,
            priority: T::OPTIONS.priority,
            delay: Duration::ZERO,
            within: T::OPTIONS.timeout_s.map(Duration::from_secs),
            parent: None,
        }
    }

    /// Wakes this process's workers, once the transaction is on disk.
    pub(super) fn wake_workers(&self) {
        let waker = self.ctx.core().tasks.waker();
        db::after_commit(move || waker.due());
    }
}

impl<'t, T: TaskType> TaskStart<'t, '_, T> {
    /// Lets it queue behind the object's active task instead of refusing it;
    /// an object's tasks run in the order in which they were started.
    pub fn behind(mut self) -> Self {
        self.behind = true;
        self
    }

    /// At most one active task has the key: if there is one, its id is the
    /// answer and nothing is started.
    pub fn unique(mut self, key: impl Into<String>) -> Self {
        self.unique = Some(key.into());
        self
    }

    /// 0 to 99, smaller goes first; 50 unless the kind says otherwise.
    pub fn priority(mut self, priority: i64) -> Self {
        self.priority = priority.clamp(0, 99);
        self
    }

    /// Not before so much time.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// How long the whole task may take from now; then the stage that it is in
    /// fails, and its twin runs.
    pub fn within(mut self, time: Duration) -> Self {
        self.within = Some(time);
        self
    }

    /// Further objects that it works on: no other task does meanwhile. The
    /// stages get them by [`super::TaskCtx::objects`].
    pub fn also(mut self, rows: impl IntoIterator<Item = &'t T::Object>) -> Self {
        self.also.extend(rows);
        self
    }

    /// As a part of another task.
    pub(super) fn part_of(mut self, parent: &'t Claimed) -> Self {
        self.parent = Some((&parent.id, parent.seq));
        self.behind = true;
        self
    }

    /// Starts it and answers its id.
    ///
    /// # Errors
    /// 409 `TaskInProgressError` while another task works on one of the objects.
    pub fn start(self) -> Result<String> {
        let Self { tx, row, also, params, behind, unique, priority, delay, within, parent } = self;
        let cred = tx.ctx.cred().clone();
        let now = tx.ctx.core().tasks.clock().now(tx.conn)?;
        let keyword = T::Object::meta().keyword();
        let user_cred = serde_json::to_string(&*cred).map_err(Error::internal)?;
        let own =
            |its: &'_ str, caller: &'_ str| if its.is_empty() { caller.to_owned() } else { its.to_owned() };
        let secret = callback::secret();
        let params = serde_json::to_string(&params).map_err(Error::internal)?;
        let id = new_id();
        let rows = std::iter::once(row).chain(also.iter().copied());
        let members = i64::try_from(also.len()).unwrap_or(0);
        for (i, row) in rows.enumerate() {
            let base = row.base();
            let owner = base.owner().unwrap_or_default();
            let obj_id = &base.anon().id;
            let key = active_key(keyword, obj_id);
            let lane = match parent {
                Some((parent, _)) => store::lane_under(tx.conn, &key, parent)?,
                None => key,
            };
            let member_id = if i == 0 { String::new() } else { new_id() };
            let new = NewTask {
                id: if i == 0 { &id } else { &member_id },
                created_at: tx.now(),
                task_name: T::NAME,
                obj_type: keyword,
                obj_id,
                obj_name: base.standalone().map_or("", |it| it.name.as_str()),
                domain_id: &own(owner.domain_id, &cred.domain_id),
                project_id: &own(owner.project_id, &cred.project_id),
                user_id: &own(owner.user_id, &cred.user_id),
                user_cred: user_cred.clone(),
                params: params.clone(),
                secret: secret.clone(),
                lane: &lane,
                unique_key: unique.as_deref().filter(|_| i == 0),
                priority,
                parent: if i == 0 { parent } else { Some((&id, -1)) },
                members: if i == 0 { members } else { 0 },
                now,
                delay: micros(delay),
                deadline: within.map(|it| now + micros(delay) + micros(it)),
            };
            let busy = || Err(busy(keyword, obj_id));
            if i > 0 {
                if !store::insert(tx.conn, &new, Entry::Member)? {
                    return busy();
                }
                continue;
            }
            match store::enter(tx.conn, &new, behind && members == 0)? {
                Entered::Stored => {}
                Entered::Busy => return busy(),
                Entered::Exists(id) => return Ok(id),
            }
        }
        if delay.is_zero() {
            tx.wake_workers();
        } else {
            let waker = tx.ctx.core().tasks.waker();
            db::after_commit(move || waker.look());
        }
        tx.started_task = Some(id.clone());
        Ok(id)
    }
}

/// What at most one active task has.
pub(super) fn active_key(obj_type: &str, obj_id: &str) -> String {
    format!("{obj_type}:{obj_id}")
}

fn busy(keyword: &str, id: &str) -> Error {
    Error::conflict(format!("another task works on {keyword} {id}; wait for it or cancel it"))
        .class("TaskInProgressError")
}

/// Says in our words that the object's one place is taken.
pub(super) fn in_progress(error: Error, keyword: &str, id: &str) -> Error {
    let taken =
        error.kind() == Kind::Conflict && error.field_errors().iter().any(|it| it.field == "active_key");
    if taken { busy(keyword, id) } else { error }
}
