//! Conditions of a statement and the SQL they become: compiled once for all
//! types. Names in them are `'static` metadata; values are bound.

use super::order::{self, Order};
use crate::Result;
use crate::ctx::Tx;
use crate::db::{Dialect, Sql, Value};

/// One condition on the rows of a table.
#[derive(Debug, Clone)]
pub(crate) enum Cond {
    /// `column op value`.
    Compare(&'static str, &'static str, Value<'static>),
    In(&'static str, Vec<Value<'static>>),
    /// None of the values; NULL is different from each.
    NotIn {
        column: &'static str,
        values: Vec<Value<'static>>,
        nullable: bool,
    },
    Between(&'static str, Value<'static>, Value<'static>),
    IsNull(&'static str, bool),
    /// Any of the columns is like any of the patterns, in any ASCII case.
    Like(Vec<&'static str>, Vec<String>),
    Regexp(&'static str, Vec<String>),
    IdOrName(String),
    After(Vec<Order>, Vec<Value<'static>>),
    /// The column's value is, or is not, one of those that a statement gives.
    Within(&'static str, Sql<'static>, bool),
    /// The id is one of the few that a statement gives.
    Shared(Sql<'static>),
    Any(Vec<Cond>),
    /// The row that the column names, of another type, is one that the caller
    /// may see and that has the condition.
    Refers(Box<Refers>),
}

/// See [`Cond::Refers`].
#[derive(Debug, Clone)]
pub(crate) struct Refers {
    pub(super) column: &'static str,
    pub(super) keyword: &'static str,
    pub(super) table: &'static str,
    pub(super) cond: Cond,
    /// What narrows the rows to those that the caller may see; filled in
    /// inside the transaction, since hooks say it.
    pub(super) visible: Option<Vec<Cond>>,
}

/// What narrows the rows of a type to those that a caller may see.
#[derive(Debug)]
pub struct Visible(pub(super) Vec<Cond>);

/// Asks the types that conditions refer to what of them the caller may see.
pub(super) fn resolve(tx: &mut Tx<'_>, conds: &mut [Cond]) -> Result<()> {
    for cond in conds {
        match cond {
            Cond::Any(all) => resolve(tx, all)?,
            Cond::Refers(it) => {
                let ctx = tx.ctx;
                let target = ctx.core().registry.keyword(it.keyword);
                let target =
                    target.ok_or_else(|| crate::Error::internal(format!("no type {}", it.keyword)))?;
                it.visible = Some(target.handler.visible(tx)?.0);
                resolve(tx, std::slice::from_mut(&mut it.cond))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What stands for itself in a pattern; `!` escapes, since a backslash means
/// something of its own to some databases.
pub(super) fn literal(text: &str, pattern: &mut String) {
    for c in text.chars() {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
}

fn column(sql: &mut Sql<'_>, name: &'static str) {
    sql.push("\"").push(name).push("\"");
}

impl Cond {
    pub(super) fn write(self, sql: &mut Sql<'static>, dialect: Dialect) {
        match self {
            Self::Compare(name, op, value) => {
                column(sql, name);
                sql.push(" ").push(op).push(" ").bind(value);
            }
            Self::In(name, values) => {
                column(sql, name);
                sql.push(" IN ").list(values);
            }
            Self::NotIn { column: name, values, nullable } => {
                sql.push("(\"").push(name).push("\" NOT IN ").list(values);
                if nullable {
                    sql.push(" OR \"").push(name).push("\" IS NULL");
                }
                sql.push(")");
            }
            Self::Between(name, low, high) => {
                column(sql, name);
                sql.push(" BETWEEN ").bind(low).push(" AND ").bind(high);
            }
            Self::IsNull(name, yes) => {
                column(sql, name);
                sql.push(if yes { " IS NULL" } else { " IS NOT NULL" });
            }
            Self::Like(columns, patterns) => {
                let mut open = "(";
                for name in columns {
                    for pattern in &patterns {
                        sql.push(open).push("LOWER(\"").push(name).push("\") LIKE LOWER(");
                        sql.bind(pattern.clone()).push(") ESCAPE '!'");
                        open = " OR ";
                    }
                }
                sql.push(if open == "(" { "FALSE" } else { ")" });
            }
            Self::Regexp(name, patterns) => {
                let mut open = "(";
                for pattern in patterns {
                    sql.push(open);
                    column(sql, name);
                    // SQLite has none; the parser has refused it there.
                    sql.push(if dialect == Dialect::Postgres { " ~ " } else { " REGEXP " }).bind(pattern);
                    open = " OR ";
                }
                sql.push(")");
            }
            Self::IdOrName(id) => {
                sql.push("(\"id\" = ").bind(id.clone()).push(" OR \"name\" = ").bind(id).push(")");
            }
            Self::After(order, values) => order::after(sql, &order, &values, dialect),
            Self::Within(name, values, is) => {
                column(sql, name);
                sql.push(if is { " IN (" } else { " NOT IN (" }).append(values).push(")");
            }
            Self::Shared(ids) => {
                // As an array that is made first, so that PostgreSQL can unite
                // the index on ids with the owner's.
                let (open, close) = match dialect {
                    Dialect::Postgres => (" = ANY(ARRAY(", "))"),
                    Dialect::Sqlite | Dialect::Mysql => (" IN (", ")"),
                };
                column(sql, "id");
                sql.push(open).append(ids).push(close);
            }
            Self::Any(all) => {
                let mut open = "(";
                for cond in all {
                    sql.push(open);
                    cond.write(sql, dialect);
                    open = " OR ";
                }
                sql.push(if open == "(" { "FALSE" } else { ")" });
            }
            Self::Refers(it) => {
                let it = *it;
                column(sql, it.column);
                sql.push(" IN (SELECT \"id\" FROM \"").push(it.table).push("\" WHERE ");
                it.cond.write(sql, dialect);
                // Nobody said what may be seen: nothing may.
                for cond in it.visible.unwrap_or_else(|| vec![Self::Any(Vec::new())]) {
                    sql.push(" AND ");
                    cond.write(sql, dialect);
                }
                sql.push(")");
            }
        }
    }
}
