//! The ops log: each write appends, in its own transaction, who did what to
//! which object and what changed. It is the audit and, later, the change feed.

use chrono::{DateTime, Utc};

use crate::Result;
use crate::ctx::{Ctx, Tx, snapshot, value_json};
use crate::db::{self, Dialect, Sql, Value};
use crate::model::{Base, Meta, Record};

impl Tx<'_> {
    /// Appends a record.
    ///
    /// # Errors
    /// What the database says.
    pub fn log<T: Record>(&mut self, row: &T, action: &str, before: Option<&[Value<'static>]>) -> Result<()> {
        let notes = notes::<T>(row, before);
        let changes = self.told(T::meta(), action).then(|| notes.clone());
        self.append(T::meta(), row.base(), action, notes)?;
        self.tell(row, action, changes)
    }

    /// Appends a record for each living row of a table that is about to go.
    pub(crate) fn log_all_deleted(&mut self, keyword: &str, table: &str, owned: bool) -> Result<()> {
        let owners = if owned { "\"domain_id\", \"project_id\", \"user_id\"" } else { "'', '', ''" };
        let living = if owned { " WHERE \"deleted\" = FALSE" } else { "" };
        let now = self.now();
        let cred = self.ctx.cred();
        let mut sql = Sql::new(INSERT);
        sql.push("SELECT ").bind(now).push(", ").bind(keyword);
        sql.push(format!(", \"id\", \"name\", \"version\", 'delete', {owners}"));
        for text in [&cred.user_id, &cred.user_name, &cred.project_id, self.ctx.request_id()] {
            sql.push(", ").bind(text);
        }
        sql.push(format!(", '{{}}' FROM \"{table}\"{living}"));
        db::execute(self.conn, &sql)?;
        Ok(())
    }

    fn append(&mut self, meta: &Meta, row: &dyn Base, action: &str, notes: String) -> Result<()> {
        let mut sql = Sql::new(INSERT);
        sql.push("VALUES (");
        values(&mut sql, self.ctx, self.now(), meta, row, action, notes);
        sql.push(")");
        db::execute(self.conn, &sql)?;
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
        Ok(db::execute(self.conn, &sql)? > 0)
    }
}

const INSERT: &str = "INSERT INTO \"ops_log\" (\"at\", \"obj_type\", \"obj_id\", \"obj_name\", \"obj_version\", \
     \"action\", \"owner_domain_id\", \"owner_project_id\", \"owner_user_id\", \"user_id\", \"user_name\", \
     \"project_id\", \"request_id\", \"notes\") ";

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
    let (domain, project, owner) = match row.owner() {
        Some(it) => (it.domain_id, it.project_id, it.user_id),
        None => ("", "", ""),
    };
    sql.bind(now);
    for text in [meta.keyword(), &row.anon().id, name] {
        sql.push(", ").bind(text);
    }
    sql.push(", ").bind(row.anon().version);
    let texts =
        [action, domain, project, owner, &cred.user_id, &cred.user_name, &cred.project_id, ctx.request_id()];
    for text in texts {
        sql.push(", ").bind(text);
    }
    sql.push(", ").bind(notes);
}

/// What changed, as `{"field": {"old": …, "new": …}}`; for a new row
/// `{"field": value}`. What nobody may read is not written in clear either.
pub(crate) fn notes<T: Record>(row: &T, before: Option<&[Value<'static>]>) -> String {
    let mut now = Vec::new();
    row.write(&mut now);
    let mut map = serde_json::Map::new();
    for (i, (field, value)) in T::meta().stored().zip(now).enumerate() {
        if matches!(field.name, "version" | "updated_at" | "created_at" | "deleted_at") {
            continue;
        }
        let hidden = field.list == crate::auth::Access::Never && field.get == crate::auth::Access::Never;
        let shown = |value: &Value<'_>| if hidden { "***".into() } else { value_json(value) };
        match before.and_then(|values| values.get(i)) {
            Some(old) if *old == value => {}
            Some(old) => {
                let pair = serde_json::json!({"old": shown(old), "new": shown(&value)});
                map.insert(field.name.into(), pair);
            }
            None if before.is_none() && !value.is_null() && field.name != "deleted" => {
                map.insert(field.name.into(), shown(&value));
            }
            None => {}
        }
    }
    serde_json::Value::Object(map).to_string()
}

/// Notes with one more member: what hangs on the row and is no column of it.
pub(crate) fn noted(notes: String, name: &str, value: serde_json::Value) -> String {
    match serde_json::from_str::<serde_json::Map<_, _>>(&notes) {
        Ok(mut map) => {
            map.insert(name.to_owned(), value);
            serde_json::Value::Object(map).to_string()
        }
        Err(_) => notes,
    }
}

/// A row's values before a change, for [`Tx::log`].
pub fn before<T: Record>(row: &T) -> Vec<Value<'static>> {
    snapshot(row)
}
