//! From an expression of the filter grammar to a condition: which field it
//! means, over which references, whether the caller may ask for it, and of
//! which type its values are.

use super::cond::{Cond, Refers, literal};
use super::grammar;
use crate::auth::UserCred;
use crate::db::{ColumnType, Dialect, Value};
use crate::model::{Field, Meta};
use crate::registry::Registry;

/// Most values of one expression.
pub(super) const MAX_VALUES: usize = 500;
/// Most patterns of one expression.
const MAX_PATTERNS: usize = 50;
/// Most characters of a pattern or a searched text.
pub(super) const MAX_PATTERN: usize = 500;
/// Most references that a way may lead over.
pub(super) const MAX_LEVELS: usize = 3;

/// Who asks, and of what.
pub(super) struct Asker<'a> {
    pub(super) registry: &'a Registry,
    pub(super) cred: &'a UserCred,
    pub(super) dialect: Dialect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    In,
    NotIn,
    Order(&'static str),
    Between,
    Like,
    Contains,
    StartsWith,
    EndsWith,
    Null(bool),
    Empty(bool),
    NullOrEmpty,
    Regexp,
}

/// Fields that an operator is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    All,
    /// All but truths.
    Ordered,
    Text,
}

struct Rule {
    name: &'static str,
    op: Op,
    /// Least and most arguments.
    args: (usize, usize),
    of: For,
}

const fn rule(name: &'static str, op: Op, args: (usize, usize), of: For) -> Rule {
    Rule { name, op, args, of }
}

const RULES: [Rule; 21] = [
    rule("eq", Op::In, (1, MAX_VALUES), For::All),
    rule("equals", Op::In, (1, MAX_VALUES), For::All),
    rule("ne", Op::NotIn, (1, MAX_VALUES), For::All),
    rule("notequals", Op::NotIn, (1, MAX_VALUES), For::All),
    rule("in", Op::In, (1, MAX_VALUES), For::All),
    rule("notin", Op::NotIn, (1, MAX_VALUES), For::All),
    rule("lt", Op::Order("<"), (1, 1), For::Ordered),
    rule("le", Op::Order("<="), (1, 1), For::Ordered),
    rule("gt", Op::Order(">"), (1, 1), For::Ordered),
    rule("ge", Op::Order(">="), (1, 1), For::Ordered),
    rule("between", Op::Between, (2, 2), For::Ordered),
    rule("like", Op::Like, (1, MAX_PATTERNS), For::Text),
    rule("contains", Op::Contains, (1, MAX_PATTERNS), For::Text),
    rule("startswith", Op::StartsWith, (1, MAX_PATTERNS), For::Text),
    rule("endswith", Op::EndsWith, (1, MAX_PATTERNS), For::Text),
    rule("isnull", Op::Null(true), (0, 0), For::All),
    rule("isnotnull", Op::Null(false), (0, 0), For::All),
    rule("isempty", Op::Empty(true), (0, 0), For::Text),
    rule("isnotempty", Op::Empty(false), (0, 0), For::Text),
    rule("isnullorempty", Op::NullOrEmpty, (0, 0), For::Text),
    rule("regexp", Op::Regexp, (1, 3), For::Text),
];

impl For {
    fn takes(self, column: ColumnType) -> bool {
        match self {
            Self::All => true,
            Self::Ordered => column != ColumnType::Bool,
            Self::Text => matches!(column, ColumnType::Text | ColumnType::Json),
        }
    }
}

/// The operators that a field can be filtered with, for discovery.
pub(crate) fn operators(field: &Field) -> Vec<&'static str> {
    let told = |rule: &&Rule| rule.of.takes(field.column) && !["equals", "notequals"].contains(&rule.name);
    RULES.iter().filter(told).map(|rule| rule.name).collect()
}

/// A field that the caller may see in lists, and so may ask for.
pub(super) fn listed(meta: &Meta, cred: &UserCred, name: &str) -> Option<&'static Field> {
    meta.field(name).filter(|field| field.stored && field.list.allows(cred.level))
}

/// A value of a field's type.
///
/// # Errors
/// What is wrong with the text.
pub(super) fn typed(column: ColumnType, text: &str) -> Result<Value<'static>, String> {
    let wrong = |what: &str| format!("{text:?} is not {what}");
    Ok(match column {
        ColumnType::Text | ColumnType::Json => text.to_owned().into(),
        ColumnType::Int => text.parse::<i64>().map_err(|_| wrong("an integer"))?.into(),
        ColumnType::Float => {
            let value = text.parse::<f64>().ok().filter(|v| v.is_finite());
            Value::Float(Some(value.ok_or_else(|| wrong("a number"))?))
        }
        ColumnType::Bool => match text {
            "true" => true.into(),
            "false" => false.into(),
            _ => return Err(wrong("true or false")),
        },
        ColumnType::Time => {
            let time = chrono::DateTime::parse_from_rfc3339(text)
                .map_err(|_| wrong("a time like 2026-01-31T12:00:00Z"))?;
            time.to_utc().into()
        }
    })
}

/// What an expression asks for.
pub(super) struct Asked {
    pub(super) cond: Cond,
    /// How many values it binds.
    pub(super) values: usize,
    pub(super) regexp: bool,
}

/// Reads one `filter=`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn expression(asker: &Asker<'_>, meta: &Meta, text: &str) -> Result<Asked, String> {
    let it = grammar::parse(text)?;
    let rule = RULES.iter().find(|rule| rule.name == it.op).ok_or_else(|| {
        let known: Vec<_> = RULES.iter().map(|rule| rule.name).collect();
        format!("{:?} is not an operator; there are {}", it.op, known.join(", "))
    })?;
    let values = it.args.len();
    let mut leaf = |field: &'static Field| condition(asker, field, rule, &it.args);
    let cond = along(asker, meta, it.path, MAX_LEVELS, &mut leaf)?;
    Ok(Asked { cond, values, regexp: rule.op == Op::Regexp })
}

/// Follows `template.kind.name` to its field and wraps the field's condition
/// in those of the references.
pub(super) fn along(
    asker: &Asker<'_>,
    meta: &Meta,
    path: &str,
    levels: usize,
    leaf: &mut dyn FnMut(&'static Field) -> Result<Cond, String>,
) -> Result<Cond, String> {
    let unknown = |name: &str| format!("{name:?} is not a field of {}", meta.keyword());
    let Some((head, rest)) = path.split_once('.') else {
        return leaf(listed(meta, asker.cred, path).ok_or_else(|| unknown(path))?);
    };
    if levels == 0 {
        return Err(format!("leads over more than {MAX_LEVELS} references"));
    }
    let (column, keyword) = reference(meta, asker.cred, head).ok_or_else(|| unknown(head))?;
    // A type that the caller may not list is none that they can ask about.
    let target = asker.registry.keyword(keyword).map(|of| of.handler.meta());
    let target = target
        .filter(|target| target.source.verbs.list.allows(asker.cred.level))
        .ok_or_else(|| unknown(head))?;
    let cond = along(asker, target, rest, levels - 1, leaf)?;
    let (keyword, table) = (target.keyword(), target.table());
    Ok(Cond::Refers(Box::new(Refers { column, keyword, table, cond, visible: None })))
}

/// The reference that goes by that name: `template` is the field `template_id`,
/// or the only field that refers to a `template`.
fn reference(meta: &Meta, cred: &UserCred, name: &str) -> Option<(&'static str, &'static str)> {
    let refers = |field: &'static Field| {
        let open = field.stored && field.list.allows(cred.level);
        Some((field.name, field.references.filter(|_| open)?))
    };
    let named = |it: &&'static Field| it.name.strip_suffix("_id") == Some(name);
    if let Some(found) = meta.stored().find(|it| named(it)).and_then(refers) {
        return Some(found);
    }
    let mut all = meta.stored().filter_map(refers).filter(|(_, keyword)| *keyword == name);
    all.next().filter(|_| all.next().is_none())
}

fn condition(asker: &Asker<'_>, field: &'static Field, rule: &Rule, args: &[String]) -> Result<Cond, String> {
    let (name, nullable) = (field.name, field.nullable);
    if !rule.of.takes(field.column) {
        return Err(format!(
            "{} is not possible with {name}; possible: {}",
            rule.name,
            operators(field).join(", ")
        ));
    }
    let (least, most) = rule.args;
    if args.len() < least || args.len() > most {
        let wanted = match (least, most) {
            (0, 0) => "no value".to_owned(),
            (1, 1) => "one value".to_owned(),
            (a, b) if a == b => format!("{a} values"),
            (a, b) => format!("{a} to {b} values"),
        };
        return Err(format!("{name}.{} takes {wanted}, not {}", rule.name, args.len()));
    }
    let value = |text: &String| typed(field.column, text).map_err(|wrong| format!("{name}: {wrong}"));
    let values = || args.iter().map(value).collect::<Result<Vec<_>, _>>();
    let patterns = |before: &str, after: &str| {
        let pattern = |text: &String| {
            short(name, text)?;
            let mut pattern = before.to_owned();
            literal(text, &mut pattern);
            pattern.push_str(after);
            Ok(pattern)
        };
        let patterns = args.iter().map(pattern).collect::<Result<Vec<_>, String>>()?;
        Ok::<_, String>(Cond::Like(vec![name], patterns))
    };
    // What a field without a value looks like.
    let empty: &[&str] = if field.column == ColumnType::Json { &["", "[]", "{}", "null"] } else { &[""] };
    let empty = || empty.iter().map(|it| Value::from(*it)).collect::<Vec<_>>();
    Ok(match rule.op {
        Op::In => any_of(name, values()?),
        Op::NotIn => Cond::NotIn { column: name, values: values()?, nullable },
        Op::Order(op) => Cond::Compare(name, op, value(&args[0])?),
        Op::Between => Cond::Between(name, value(&args[0])?, value(&args[1])?),
        Op::Contains => patterns("%", "%")?,
        Op::StartsWith => patterns("", "%")?,
        Op::EndsWith => patterns("%", "")?,
        Op::Like => {
            for text in args {
                short(name, text)?;
            }
            Cond::Like(vec![name], args.iter().map(|text| like(text)).collect())
        }
        Op::Null(yes) => Cond::IsNull(name, yes),
        Op::Empty(true) => Cond::In(name, empty()),
        Op::Empty(false) => Cond::NotIn { column: name, values: empty(), nullable: false },
        Op::NullOrEmpty => Cond::Any(vec![Cond::IsNull(name, true), Cond::In(name, empty())]),
        Op::Regexp => {
            if asker.dialect == Dialect::Sqlite {
                return Err("regexp is not possible on this server: its database, SQLite, has none".into());
            }
            for text in args {
                expect_cheap(text)?;
            }
            Cond::Regexp(name, args.to_vec())
        }
    })
}

/// Equal to one, or any of several.
pub(super) fn any_of(column: &'static str, mut values: Vec<Value<'static>>) -> Cond {
    match (values.len(), values.pop()) {
        (1, Some(value)) => Cond::Compare(column, "=", value),
        (_, last) => {
            values.extend(last);
            Cond::In(column, values)
        }
    }
}

pub(super) fn short(name: &str, text: &str) -> Result<(), String> {
    if text.chars().count() > MAX_PATTERN {
        return Err(format!("{name}: a pattern has at most {MAX_PATTERN} characters"));
    }
    Ok(())
}

/// A pattern of all texts that have this one in them.
pub(super) fn containing(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    literal(text, &mut pattern);
    pattern.push('%');
    pattern
}

/// A pattern of the client: `%` and `_` stand for others, `\` makes them plain.
fn like(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '%' | '_' => pattern.push(c),
            '\\' => {
                let next = chars.next_if(|next| matches!(next, '%' | '_' | '\\'));
                literal(next.unwrap_or('\\').encode_utf8(&mut [0; 4]), &mut pattern);
            }
            c => literal(c.encode_utf8(&mut [0; 4]), &mut pattern),
        }
    }
    pattern
}

/// Refuses patterns that can take a database very long.
fn expect_cheap(text: &str) -> Result<(), String> {
    if text.chars().count() > 100 {
        return Err("a pattern of regexp has at most 100 characters".into());
    }
    if text.matches('{').count() > 1 {
        return Err("a pattern of regexp has at most one count in { }".into());
    }
    let bytes = text.as_bytes();
    let back = bytes.windows(2).any(|it| it[0] == b'\\' && it[1].is_ascii_digit());
    if back { Err("regexp takes no back-references".into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_escaped() {
        assert_eq!(like(r"a%b_c"), "a%b_c");
        assert_eq!(like(r"50\%!"), "50!%!!");
        assert_eq!(like("a\\"), "a\\");
        assert_eq!(like(r"a\\%"), r"a\%");
        assert_eq!(like(r"a\b"), r"a\b");
        let mut plain = String::new();
        literal("1_0%!\\", &mut plain);
        assert_eq!(plain, "1!_0!%!!\\");
    }

    #[test]
    fn values_have_types() {
        assert!(
            typed(ColumnType::Int, "1.5").is_err() && typed(ColumnType::Int, "99999999999999999999").is_err()
        );
        assert!(typed(ColumnType::Float, "inf").is_err() && typed(ColumnType::Float, "nan").is_err());
        assert!(typed(ColumnType::Bool, "1").is_err() && typed(ColumnType::Time, "yesterday").is_err());
        assert_eq!(
            typed(ColumnType::Time, "1970-01-01T00:00:01+00:00").unwrap(),
            Value::Int(Some(1_000_000))
        );
    }

    #[test]
    fn dear_patterns_are_refused() {
        assert!(expect_cheap("^a(b|c)+$").is_ok() && expect_cheap("a{3}").is_ok());
        for bad in [r"(a)\1", "(a{9}){9}", &"x".repeat(101)] {
            assert!(expect_cheap(bad).is_err(), "{bad}");
        }
    }
}
