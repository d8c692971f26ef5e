//! The ops log: each write appends, in its own transaction, who did what to
//! which object and what changed. It is the audit and the change feed: who reads
//! it is in `event`.

use chrono::{DateTime, Utc};

use crate::Result;
use crate::auth::Access;
use crate::ctx::{Ctx, Tx, id_of, snapshot, values as values_of};
use crate::db::{self, AnyConnection, ColumnType, Dialect, Sql, Value};
use crate::model::{Base, Field, Meta, Record};

impl Tx<'_> {
    /// Appends a record.
    ///
    /// # Errors
    /// What the database says.
    pub fn log<T: Record>(&mut self, row: &T, action: &str, before: Option<&[Value<'_>]>) -> Result<()> {
        let notes = changes(row, before, action == DELETE);
        let changes = self.told(T::meta(), action).then(|| notes.clone());
        self.append(T::meta(), row.base(), action, notes)?;
        self.tell(row, action, changes)
    }

    /// Appends a record of something that changes no column, with what there is
    /// to say of it.
    ///
    /// # Errors
    /// What the database says.
    pub fn log_noted<T: Record>(
        &mut self,
        row: &T,
        action: &str,
        notes: serde_json::Map<String, serde_json::Value>,
    ) -> Result<()> {
        let notes = notes.into_iter().map(|(name, value)| (name, serde_json::json!({ "new": value })));
        let notes = serde_json::Value::Object(notes.collect()).to_string();
        let changes = self.told(T::meta(), action).then(|| notes.clone());
        self.append(T::meta(), row.base(), action, notes)?;
        self.tell(row, action, changes)
    }

    /// Appends the record of a change for the owner whose row it was until then,
    /// who is told of it and finds it in the audit, but does not see the row any
    /// more; `left` is the row as theirs.
    pub(crate) fn log_left<T: Record>(&mut self, left: &T, action: &str, notes: String) -> Result<()> {
        self.append(T::meta(), left.base(), action, notes)
    }

    /// Appends a record for each living row of a table that is about to go, with
    /// the values of these columns; `true`: of those that nobody may read.
    pub(crate) fn log_all_deleted(
        &mut self,
        keyword: &str,
        table: &str,
        owned: bool,
        columns: &[(&str, ColumnType, bool)],
    ) -> Result<()> {
        let owners = if owned { "\"domain_id\", \"project_id\", \"user_id\"" } else { "'', '', ''" };
        let living = if owned { " WHERE \"deleted\" = FALSE" } else { "" };
        let now = self.now();
        let cred = self.ctx.cred();
        let mut sql = Sql::new(INSERT);
        sql.push("SELECT ").bind(now).push(", ").bind(keyword);
        sql.push(format!(", \"id\", \"name\", \"version\", 'delete', {owners}"));
        for text in [&cred.user_id, &cred.user_name, &cred.project_id, &cred.domain_id, self.ctx.request_id()]
        {
            sql.push(", ").bind(text);
        }
        sql.push(", ").bind(self.ctx.task_id().unwrap_or_default());
        // One row each, and no id of a row comes twice: its random half goes over.
        let time: String = id_of(now).chars().take(TIME_OF_ID).collect();
        sql.push(", ").bind(time).push(" || substr(\"id\", 15), ");
        sql.bind(self.ctx.client_ip().map_or_else(String::new, |ip| ip.to_string()));
        sql.push(", '{\"id\":{\"old\":\"' || \"id\" || '\"}'");
        let dialect = self.conn.dialect();
        for (name, column, secret) in columns {
            if *name == "id" || is_clockwork(name) {
                continue;
            }
            let value = match column {
                _ if *secret => "'\"***\"'".to_owned(),
                ColumnType::Bool => format!("CASE WHEN \"{name}\" THEN 'true' ELSE 'false' END"),
                _ if dialect == Dialect::Postgres => format!("to_json(\"{name}\")::text"),
                // JSON_QUOTE knows texts only.
                _ if dialect == Dialect::Mysql => format!("JSON_EXTRACT(JSON_ARRAY(\"{name}\"), '$[0]')"),
                _ => format!("json_quote(\"{name}\")"),
            };
            sql.push(format!(
                " || CASE WHEN \"{name}\" IS NULL THEN '' ELSE ',\"{name}\":{{\"old\":' || {value} || '}}' END"
            ));
        }
        sql.push(format!(" || '}}' FROM \"{table}\"{living}"));
        db::execute(self.conn, &sql)?;
        Ok(())
    }

    fn append(&mut self, meta: &Meta, row: &dyn Base, action: &str, notes: String) -> Result<()> {
        let mut sql = Sql::new(INSERT);
        sql.push("VALUES (");
        values(&mut sql, self.ctx, self.now(), meta, row, action, notes);
        sql.push(")");
        db::execute_fixed::<Appended>(self.conn, &sql)?;
        self.ctx.core().feed.will_change();
        Ok(())
    }

    /// Runs the write of one row and appends its record; tells whether a row
    /// was written, without which there is no record either.
    /// `execute` runs the write where it is a statement of its own.
    pub(crate) fn with_record(
        &mut self,
        mut write: Sql<'_>,
        execute: fn(&mut AnyConnection, &Sql<'_>) -> Result<usize>,
        meta: &Meta,
        row: &dyn Base,
        action: &str,
        notes: String,
    ) -> Result<bool> {
        if self.conn.dialect() != Dialect::Postgres {
            if execute(self.conn, &write)? == 0 {
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
        self.ctx.core().feed.will_change();
        match db::glance::hold(sql) {
            Ok(()) => Ok(true),
            Err(sql) => Ok(db::execute(self.conn, &sql)? > 0),
        }
    }
}

/// Names the statement that appends a record.
struct Appended;

/// The action of a row's end.
const DELETE: &str = "delete";
/// So many characters of an id tell its time.
const TIME_OF_ID: usize = 14;
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
    let (domain, project, owner) = match row.owner() {
        Some(it) => (it.domain_id, it.project_id, it.user_id),
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
    sql.push(", ").bind(id_of(now));
    sql.push(", ").bind(ctx.client_ip().map_or_else(String::new, |ip| ip.to_string()));
    sql.push(", ").bind(notes);
}

/// What changed, as `{"field": {"old": …, "new": …}}`; for a new row without
/// `old`. What nobody may read is not written in clear either.
pub(crate) fn notes<T: Record>(row: &T, before: Option<&[Value<'_>]>) -> String {
    changes(row, before, false)
}

/// The same; of a row that ends also what stayed, without `new`: afterwards
/// nobody can ask it.
fn changes<T: Record>(row: &T, before: Option<&[Value<'_>]>, ends: bool) -> String {
    let mut out = Vec::with_capacity(512);
    out.push(b'{');
    for (i, (field, value)) in T::meta().stored().zip(values_of(row)).enumerate() {
        if is_clockwork(field.name) {
            continue;
        }
        let old = before.and_then(|values| values.get(i));
        let (old, new) = match (before, old) {
            (Some(_), Some(old)) if *old != value => (Some(old), Some(&value)),
            (Some(_), Some(old)) if ends && !old.is_null() => (Some(old), None),
            (None, _) if !value.is_null() && field.name != "deleted" => (None, Some(&value)),
            _ => continue,
        };
        // Field names are identifiers: nothing in them needs escaping.
        out.extend_from_slice(if out.len() > 1 { b",\"" } else { b"\"" });
        out.extend_from_slice(field.name.as_bytes());
        out.extend_from_slice(b"\":{");
        if let Some(old) = old {
            out.extend_from_slice(b"\"old\":");
            write_json(&mut out, field, old);
        }
        if let Some(new) = new {
            out.extend_from_slice(if old.is_some() { b",\"new\":" } else { b"\"new\":" });
            write_json(&mut out, field, new);
        }
        out.push(b'}');
    }
    out.push(b'}');
    // JSON is UTF-8.
    String::from_utf8(out).unwrap_or_default()
}

/// Writes a value as JSON, which for these kinds cannot fail; of what nobody
/// may read only that it is there.
fn write_json(out: &mut Vec<u8>, field: &Field, value: &Value<'_>) {
    if field.list == Access::Never && field.get == Access::Never {
        out.extend_from_slice(b"\"***\"");
        return;
    }
    let _ = match value {
        Value::Text(Some(text)) => serde_json::to_writer(out, text.as_ref()),
        Value::Int(Some(v)) => serde_json::to_writer(out, v),
        Value::Float(Some(v)) => serde_json::to_writer(out, v),
        Value::Bool(Some(v)) => serde_json::to_writer(out, v),
        _ => {
            out.extend_from_slice(b"null");
            Ok(())
        }
    };
}

/// Whether every write changes it, so that it tells nothing.
fn is_clockwork(name: &str) -> bool {
    matches!(name, "version" | "updated_at" | "created_at" | "deleted_at")
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
