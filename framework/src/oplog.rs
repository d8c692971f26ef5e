//! The ops log: each write appends, in its own transaction, who did what to
//! which object and what changed. It is the audit and the change feed: who reads
//! it is in `event`.

use chrono::{DateTime, Utc};

use crate::Result;
use crate::auth::Access;
use crate::ctx::{Ctx, Tx, new_id, snapshot, value_json};
use crate::db::{self, Dialect, Sql, Value};
use crate::model::{Base, Field, Meta, Record};

impl Tx<'_> {
    /// Appends a record.
    ///
    /// # Errors
    /// What the database says.
    pub fn log<T: Record>(&mut self, row: &T, action: &str, before: Option<&[Value<'static>]>) -> Result<()> {
        let notes = changes(row, before, action == DELETE);
        self.append(T::meta(), row.base(), action, notes)
    }

    fn append(&mut self, meta: &Meta, row: &dyn Base, action: &str, notes: String) -> Result<()> {
        let mut sql = Sql::new(INSERT);
        sql.push("VALUES (");
        values(&mut sql, self.ctx, self.now(), meta, row, action, notes);
        sql.push(")");
        db::execute(self.conn, &sql)?;
        self.ctx.core().feed.will_change();
        Ok(())
    }

    /// Runs the write of one row and appends its record; tells whether a row
    /// was written, without which there is no record either.
    pub(crate) fn with_record(
        &mut self,
        mut write: Sql<'_>,
        meta: &Meta,
        row: &dyn Base,
        action: &str,
        notes: String,
    ) -> Result<bool> {
        if self.conn.dialect() == Dialect::Sqlite {
            if db::execute(self.conn, &write)? == 0 {
                return Ok(false);
            }
            self.append(meta, row, action, notes)?;
            return Ok(true);
        }
        write.push(" RETURNING 1");
        let mut sql = Sql::new("WITH written AS (");
        sql.append(write);
        sql.push(") ").push(INSERT).push("SELECT ");
        values(&mut sql, self.ctx, self.now(), meta, row, action, notes);
        sql.push(" FROM written");
        let written = db::execute(self.conn, &sql)? > 0;
        self.ctx.core().feed.will_change();
        Ok(written)
    }
}

/// The action of a row's end.
const DELETE: &str = "delete";
/// The action of a row's beginning.
pub(crate) const CREATE: &str = "create";

const INSERT: &str = "INSERT INTO \"ops_log\" (\"at\", \"obj_type\", \"obj_id\", \"obj_name\", \"obj_version\", \
     \"action\", \"owner_domain_id\", \"owner_project_id\", \"owner_user_id\", \"user_id\", \"user_name\", \
     \"project_id\", \"domain_id\", \"request_id\", \"task_id\", \"id\", \"client_ip\", \"notes\") ";

fn values<'a>(
    sql: &mut Sql<'a>,
    ctx: &'a Ctx,
    now: DateTime<Utc>,
    meta: &Meta,
    row: &'a dyn Base,
    action: &'a str,
    notes: String,
) {
    let cred = ctx.cred();
    let name = row.standalone().map_or("", |it| it.name.as_str());
    let (domain, project, owner) = match row.owned() {
        Some(it) => (it.domain_id.as_str(), it.project_id.as_str(), it.user_id.as_str()),
        None => ("", "", ""),
    };
    sql.bind(now);
    for text in [meta.keyword(), &row.anon().id, name] {
        sql.push(", ").bind(text);
    }
    sql.push(", ").bind(row.anon().version);
    let texts = [
        action,
        domain,
        project,
        owner,
        &cred.user_id,
        &cred.user_name,
        &cred.project_id,
        &cred.domain_id,
        ctx.request_id(),
        ctx.task_id().unwrap_or_default(),
    ];
    for text in texts {
        sql.push(", ").bind(text);
    }
    sql.push(", ").bind(new_id());
    sql.push(", ").bind(ctx.client_ip().map_or_else(String::new, |ip| ip.to_string()));
    sql.push(", ").bind(notes);
}

/// What changed, as `{"field": {"old": …, "new": …}}`; for a new row without
/// `old`. What nobody may read is not written in clear either.
pub(crate) fn notes<T: Record>(row: &T, before: Option<&[Value<'static>]>) -> String {
    changes(row, before, false)
}

/// The same; of a row that ends also what stayed, without `new`: afterwards
/// nobody can ask it.
fn changes<T: Record>(row: &T, before: Option<&[Value<'static>]>, ends: bool) -> String {
    let mut now = Vec::new();
    row.write(&mut now);
    let mut map = serde_json::Map::new();
    for (i, (field, value)) in T::meta().stored().zip(now).enumerate() {
        if is_clockwork(field) {
            continue;
        }
        let shown = |value: &Value<'_>| shown(field, value);
        match before.and_then(|values| values.get(i)) {
            Some(old) if *old != value => {
                let pair = serde_json::json!({"old": shown(old), "new": shown(&value)});
                map.insert(field.name.into(), pair);
            }
            Some(old) if ends && !old.is_null() => {
                map.insert(field.name.into(), serde_json::json!({"old": shown(old)}));
            }
            None if before.is_none() && !value.is_null() && field.name != "deleted" => {
                map.insert(field.name.into(), serde_json::json!({"new": shown(&value)}));
            }
            _ => {}
        }
    }
    serde_json::Value::Object(map).to_string()
}

/// Whether every write changes it, so that it tells nothing.
fn is_clockwork(field: &Field) -> bool {
    matches!(field.name, "version" | "updated_at" | "created_at" | "deleted_at")
}

fn shown(field: &Field, value: &Value<'_>) -> serde_json::Value {
    let hidden = field.list == Access::Never && field.get == Access::Never;
    if hidden { "***".into() } else { value_json(value) }
}

/// A row's values before a change, for [`Tx::log`].
pub fn before<T: Record>(row: &T) -> Vec<Value<'static>> {
    snapshot(row)
}
