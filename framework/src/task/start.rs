//! How a task begins: with the write that asks for it.

use super::store::{self, NewTask};
use super::{TaskType, callback};
use crate::ctx::{Tx, new_id};
use crate::db;
use crate::model::Record;
use crate::{Error, Kind, Result};

impl Tx<'_> {
    /// Starts a task on an object. It exists if and only if this transaction
    /// commits, and belongs to whom the object belongs to.
    ///
    /// # Errors
    /// 409 `TaskInProgressError` while another task works on the object.
    #[expect(clippy::needless_pass_by_value, reason = "parameters are made for this call")]
    pub fn start_task<T: TaskType>(&mut self, row: &T::Object, params: T::Params) -> Result<String> {
        let cred = self.ctx.cred().clone();
        let base = row.base();
        let owner = base.owner().unwrap_or_default();
        let own =
            |its: &'_ str, caller: &'_ str| if its.is_empty() { caller.to_owned() } else { its.to_owned() };
        let domain = &own(owner.domain_id, &cred.domain_id);
        let project = &own(owner.project_id, &cred.project_id);
        let user = &own(owner.user_id, &cred.user_id);
        let keyword = T::Object::meta().keyword();
        let (id, obj_id) = (new_id(), &base.anon().id);
        let new = NewTask {
            id: &id,
            now: self.now(),
            task_name: T::NAME,
            obj_type: keyword,
            obj_id,
            obj_name: base.standalone().map_or("", |it| it.name.as_str()),
            domain_id: domain,
            project_id: project,
            user_id: user,
            user_cred: serde_json::to_string(&*cred).map_err(Error::internal)?,
            params: serde_json::to_string(&params).map_err(Error::internal)?,
            secret: callback::secret(),
            active_key: active_key(keyword, obj_id),
        };
        store::insert(self.conn, &new).map_err(|error| in_progress(error, keyword, obj_id))?;
        self.wake_workers();
        self.started_task = Some(id.clone());
        Ok(id)
    }

    /// Wakes this process's workers, once the transaction is on disk.
    pub(super) fn wake_workers(&self) {
        let waker = self.ctx.core().tasks.waker();
        db::after_commit(move || waker.due());
    }
}

/// What at most one active task has.
pub(super) fn active_key(obj_type: &str, obj_id: &str) -> String {
    format!("{obj_type}:{obj_id}")
}

/// Says in our words that the object's one place is taken.
pub(super) fn in_progress(error: Error, keyword: &str, id: &str) -> Error {
    let taken =
        error.kind() == Kind::Conflict && error.field_errors().iter().any(|it| it.field == "active_key");
    if !taken {
        return error;
    }
    Error::conflict(format!("another task works on {keyword} {id}; wait for it or cancel it"))
        .class("TaskInProgressError")
}
