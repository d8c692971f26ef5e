//! Makes MySQL's definitions of tables from those that are written once, for
//! SQLite. What is translated:
//!
//! | written | becomes |
//! | --- | --- |
//! | `TEXT` | `LONGTEXT`; in a key or index of the same file `VARCHAR(255)`, since MySQL indexes no endless text |
//! | `DOUBLE PRECISION`, `INTEGER`, `AUTOINCREMENT` | `DOUBLE`, `BIGINT`, `AUTO_INCREMENT` |
//! | a unique index `… WHERE condition` | a generated column, NULL where the condition does not hold, in the last column's place |
//! | an index `… WHERE flag = FALSE` | the same with `flag` as its first column |
//! | an index `… WHERE x IS NOT NULL`, or on any other condition | the same without it |
//! | an index on more texts than fit | the same on their heads; a unique one is refused |
//! | `CREATE TRIGGER … WHEN condition BEGIN` | `… FOR EACH ROW BEGIN IF condition THEN` |
//! | `DROP INDEX name` | the same, with the table that it is on |
//! | `WITHOUT ROWID` | nothing |
//!
//! All else goes through as it is. What cannot be said so (an index on an
//! expression) is written for MySQL in a folder of its own, whose migrations
//! take the place of those of the same version. Names of tables and columns are put in
//! quotes, so that MySQL's many reserved words do no harm.

use super::mysql::COLLATION;

/// The type of a text that is part of a key. Three of them are as much as an
/// index can hold.
pub(super) const TEXT_KEY: &str = "VARCHAR(255)";

/// Texts that fit into one index, of [`TEXT_KEY`].
const MOST_TEXTS: usize = 3;

/// What of a text is indexed where more of them stand in one index.
const TEXT_HEAD: &str = "(64)";

/// What to do, in order.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// A statement.
    Sql(String),
    /// An index on a table that is there already.
    Index(Index),
    /// Drops an index, whose table the database must tell.
    DropIndex { name: String, if_exists: bool },
}

/// An index to be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Index {
    name: String,
    pub(super) table: String,
    unique: bool,
    /// Column and direction.
    parts: Vec<(String, &'static str)>,
    /// The columns of which the head only is indexed.
    heads: Vec<String>,
    /// The condition under which a row takes part in a unique index.
    pub(super) generated: Option<String>,
}

impl Index {
    /// Its columns, in order.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(name, _)| name.as_str())
    }

    /// Its last column.
    pub(super) fn last(&self) -> &str {
        self.parts.last().map_or("", |(name, _)| name)
    }

    /// As `CREATE TABLE` and `ALTER TABLE … ADD` want it.
    pub(super) fn definition(&self) -> String {
        let mut parts = Vec::new();
        for (i, (name, direction)) in self.parts.iter().enumerate() {
            let name = match &self.generated {
                Some(_) if i + 1 == self.parts.len() => generated_name(name),
                _ => name.clone(),
            };
            let head = if self.heads.contains(&name) { TEXT_HEAD } else { "" };
            parts.push(format!("\"{name}\"{head}{direction}"));
        }
        let unique = if self.unique { "UNIQUE " } else { "" };
        format!("{unique}INDEX \"{}\" ({})", self.name, parts.join(", "))
    }
}

/// What a generated column has after the name of the one that it stands for.
const GENERATED: &str = "__unique";

fn generated_name(column: &str) -> String {
    format!("{column}{GENERATED}")
}

/// The definition of a generated column.
pub(super) fn generated(column: &str, kind: &str, condition: &str) -> String {
    format!(
        "\"{}\" {kind} GENERATED ALWAYS AS (CASE WHEN {condition} THEN \"{column}\" END) STORED",
        generated_name(column)
    )
}

#[derive(Debug, Clone)]
struct Token<'a> {
    text: &'a str,
    at: usize,
    spaced: bool,
}

impl Token<'_> {
    fn is(&self, word: &str) -> bool {
        self.text.eq_ignore_ascii_case(word)
    }
}

/// Words, numbers, texts, names in quotes, and signs one by one.
fn tokens(sql: &str) -> Result<Vec<Token<'_>>, String> {
    let bytes = sql.as_bytes();
    let (mut found, mut at, mut spaced) = (Vec::new(), 0, false);
    while at < bytes.len() {
        let from = at;
        match bytes[at] {
            b if b.is_ascii_whitespace() => {
                at += 1;
                spaced = true;
                continue;
            }
            b'-' if bytes.get(at + 1) == Some(&b'-') => {
                at = sql[at..].find('\n').map_or(bytes.len(), |n| at + n);
                spaced = true;
                continue;
            }
            quote @ (b'\'' | b'"') => {
                loop {
                    at += 1;
                    at += bytes[at..].iter().position(|b| *b == quote).ok_or("a quote is not closed")? + 1;
                    // A doubled one stands for itself.
                    if bytes.get(at) != Some(&quote) {
                        break;
                    }
                }
            }
            b if b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80 => {
                while bytes.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80) {
                    at += 1;
                }
            }
            _ => at += 1,
        }
        found.push(Token { text: &sql[from..at], at: from, spaced });
        spaced = false;
    }
    Ok(found)
}

/// Splits at the semicolons that are in no trigger's body.
fn statements<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let (mut found, mut from, mut depth) = (Vec::new(), 0, 0_usize);
    for (i, token) in tokens.iter().enumerate() {
        let trigger = tokens[from..].first().is_some_and(|it| it.is("CREATE"))
            && tokens[from..i].iter().take(3).any(|it| it.is("TRIGGER"));
        if trigger && (token.is("BEGIN") || token.is("CASE")) {
            depth += 1;
        } else if trigger && token.is("END") {
            depth = depth.saturating_sub(1);
        } else if token.text == ";" && depth == 0 {
            found.push(&tokens[from..i]);
            from = i + 1;
        }
    }
    found.push(&tokens[from..]);
    found.retain(|it| !it.is_empty());
    found
}

/// Tokens as text, spaced as they were.
fn render(tokens: &[Token<'_>]) -> String {
    let mut text = String::new();
    for (i, token) in tokens.iter().enumerate() {
        if i > 0 && token.spaced {
            text.push(' ');
        }
        text.push_str(token.text);
    }
    text
}

/// A name without its quotes.
fn name(token: Option<&Token<'_>>) -> Result<String, String> {
    let token = token.ok_or("a name is missing")?;
    let bare = token.text.trim_matches('"');
    if bare.is_empty() || bare.starts_with(|c: char| !(c.is_alphanumeric() || c == '_')) {
        return Err(format!("{:?} is no name", token.text));
    }
    Ok(bare.to_owned())
}

/// Whether the tokens begin with these words; gives what follows.
fn after<'t, 'a>(tokens: &'t [Token<'a>], words: &[&str]) -> Option<&'t [Token<'a>]> {
    let fits = tokens.len() >= words.len() && tokens.iter().zip(words).all(|(token, word)| token.is(word));
    fits.then(|| &tokens[words.len()..])
}

/// Skips words if they are there.
fn skip<'t, 'a>(tokens: &'t [Token<'a>], words: &[&str]) -> &'t [Token<'a>] {
    after(tokens, words).unwrap_or(tokens)
}

/// What stands in the first parentheses, split at commas, and what follows.
type Parenthesised<'t, 'a> = (Vec<&'t [Token<'a>]>, &'t [Token<'a>]);

fn parenthesised<'t, 'a>(tokens: &'t [Token<'a>]) -> Result<Parenthesised<'t, 'a>, String> {
    if tokens.first().is_none_or(|it| it.text != "(") {
        return Err(format!("( is missing before {}", render(tokens)));
    }
    let (mut items, mut from, mut depth) = (Vec::new(), 1, 0_usize);
    for (i, token) in tokens.iter().enumerate() {
        match token.text {
            "(" => depth += 1,
            ")" if depth == 1 => {
                items.push(&tokens[from..i]);
                return Ok((items, &tokens[i + 1..]));
            }
            ")" => depth -= 1,
            "," if depth == 1 => {
                items.push(&tokens[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    Err(") is missing".to_owned())
}

/// Translates definitions. What it does not know goes through as it is.
pub(super) fn translate(sql: &str) -> Result<Vec<Step>, String> {
    let tokens = tokens(sql)?;
    let statements = statements(&tokens);
    let mut indexes = Vec::new();
    for statement in &statements {
        indexes.extend(index(statement)?);
    }
    // An index on a table of this file is a part of the table.
    let tables: Vec<String> = statements.iter().filter_map(|it| table_name(it)).collect();
    let mut steps = Vec::new();
    for statement in &statements {
        if let Some(rest) = after(statement, &["CREATE", "TABLE"]) {
            steps.push(Step::Sql(table(rest, &indexes)?));
        } else if let Some(index) = index(statement)? {
            if !tables.contains(&index.table) {
                steps.push(Step::Index(index));
            }
        } else if after(statement, &["CREATE", "TRIGGER"]).is_some() {
            steps.push(Step::Sql(trigger(statement)));
        } else if let Some(rest) = after(statement, &["DROP", "INDEX"]) {
            let shorter = skip(rest, &["IF", "EXISTS"]);
            let if_exists = shorter.len() < rest.len();
            steps.push(Step::DropIndex { name: name(shorter.first())?, if_exists });
        } else if let Some(rest) = after(statement, &["ALTER", "TABLE"]) {
            steps.push(Step::Sql(alter(rest, &indexes)?));
        } else {
            steps.push(Step::Sql(verbatim(sql, statement)));
        }
    }
    Ok(steps)
}

fn verbatim(sql: &str, statement: &[Token<'_>]) -> String {
    match (statement.first(), statement.last()) {
        (Some(first), Some(last)) => sql[first.at..last.at + last.text.len()].to_owned(),
        _ => String::new(),
    }
}

fn table_name(statement: &[Token<'_>]) -> Option<String> {
    let rest = skip(after(statement, &["CREATE", "TABLE"])?, &["IF", "NOT", "EXISTS"]);
    name(rest.first()).ok()
}

/// `CREATE INDEX`; `None`: it is something else.
fn index(statement: &[Token<'_>]) -> Result<Option<Index>, String> {
    let unique = after(statement, &["CREATE", "UNIQUE", "INDEX"]);
    let Some(rest) = unique.or_else(|| after(statement, &["CREATE", "INDEX"])) else { return Ok(None) };
    let rest = skip(rest, &["IF", "NOT", "EXISTS"]);
    let mut it = Index {
        name: name(rest.first())?,
        table: name(rest.get(2))?,
        unique: unique.is_some(),
        parts: Vec::new(),
        heads: Vec::new(),
        generated: None,
    };
    let wrong = |what: &str| format!("index {}: {what}", it.name);
    let (items, tail) = parenthesised(rest.get(3..).unwrap_or_default())?;
    let mut parts = Vec::new();
    for item in items {
        let direction = match item.get(1..).unwrap_or_default() {
            [] => "",
            [one] if one.is("ASC") => "",
            [one] if one.is("DESC") => " DESC",
            _ => return Err(wrong("MySQL has only indexes on columns")),
        };
        parts.push((name(item.first())?, direction));
    }
    if let Some(condition) = after(tail, &["WHERE"]) {
        let column = name(condition.first())?;
        let not_null = condition.len() == 4 && after(&condition[1..], &["IS", "NOT", "NULL"]).is_some();
        let flag = condition.len() == 3 && condition[1].is("=");
        let flag = flag && (condition[2].is("FALSE") || condition[2].is("TRUE"));
        // NULLs differ from each other in a unique index, as they should.
        let by_itself = not_null && parts.iter().any(|(it, _)| *it == column);
        if it.unique && !by_itself {
            it.generated = Some(render(condition));
        } else if flag && !it.unique && parts.iter().all(|(it, _)| *it != column) {
            parts.insert(0, (column, ""));
        }
    } else if !tail.is_empty() {
        return Err(wrong("has an end that is not known"));
    }
    it.parts = parts;
    Ok(Some(it))
}

/// `CREATE TRIGGER`, which here says that it is for each row, and has its
/// condition inside.
fn trigger(statement: &[Token<'_>]) -> String {
    let known = statement.windows(3).any(|it| after(it, &["FOR", "EACH", "ROW"]).is_some());
    let body = statement.iter().position(|it| it.is("BEGIN")).unwrap_or(statement.len());
    let (head, body) = statement.split_at(body);
    let when = head.iter().position(|it| it.is("WHEN")).unwrap_or(head.len());
    let (head, condition) = head.split_at(when);
    let each = if known { "" } else { " FOR EACH ROW" };
    let (head, inner) = (render(head), body.get(1..body.len().saturating_sub(1)).unwrap_or_default());
    match condition {
        [] => format!("{head}{each} {}", render(body)),
        [_, condition @ ..] => {
            format!("{head}{each} BEGIN IF {} THEN {} END IF; END", render(condition), render(inner))
        }
    }
}

/// The columns in a `PRIMARY KEY (…)` or `UNIQUE (…)` of a table.
fn keyed(item: &[Token<'_>]) -> Option<Vec<String>> {
    let rest = if item.first().is_some_and(|it| it.is("CONSTRAINT")) { item.get(2..)? } else { item };
    let rest = after(rest, &["PRIMARY", "KEY"]).or_else(|| after(rest, &["UNIQUE"]))?;
    let (columns, _) = parenthesised(rest).ok()?;
    columns.into_iter().map(|it| name(it.first()).ok()).collect()
}

/// From the name of a table to the end of its definition.
fn table(rest: &[Token<'_>], indexes: &[Index]) -> Result<String, String> {
    let shorter = skip(rest, &["IF", "NOT", "EXISTS"]);
    let exists = if shorter.len() < rest.len() { "IF NOT EXISTS " } else { "" };
    let table = name(shorter.first())?;
    let (items, _) = parenthesised(&shorter[1..])?;
    let indexes: Vec<&Index> = indexes.iter().filter(|it| it.table == table).collect();
    let mut keys: Vec<String> = items.iter().filter_map(|it| keyed(it)).flatten().collect();
    keys.extend(indexes.iter().flat_map(|it| it.columns().map(str::to_owned)));
    let (mut parts, mut kinds) = (Vec::new(), Vec::new());
    for item in &items {
        let constraint = ["PRIMARY", "UNIQUE", "FOREIGN", "CHECK", "CONSTRAINT"];
        if item.first().is_some_and(|it| constraint.iter().any(|word| it.is(word))) {
            let columns = keyed(item).map(|it| it.join("\", \""));
            match (columns, item.iter().position(|it| it.text == "(")) {
                (Some(columns), Some(open)) => {
                    parts.push(format!("{} (\"{columns}\")", render(&item[..open])));
                }
                _ => parts.push(render(item)),
            }
            continue;
        }
        let (column, kind, rest) = column(item, &keys)?;
        parts.push(format!("\"{column}\" {kind}{rest}"));
        kinds.push((column, kind));
    }
    for index in indexes {
        let kind = |column: &str| kinds.iter().find(|(it, _)| it == column).map(|(_, kind)| kind.as_str());
        let texts = index.columns().filter(|it| kind(it) == Some(TEXT_KEY)).count();
        let mut index = index.clone();
        if texts > MOST_TEXTS && !index.unique {
            index.heads =
                index.columns().filter(|it| kind(it) == Some(TEXT_KEY)).map(str::to_owned).collect();
        } else if texts > MOST_TEXTS {
            return Err(format!("index {}: MySQL takes {MOST_TEXTS} texts in one at most", index.name));
        }
        if let Some(condition) = &index.generated {
            let kind = kind(index.last()).ok_or("an index on a column that is not there")?;
            parts.push(generated(index.last(), kind, condition));
        }
        parts.push(index.definition());
    }
    Ok(format!(
        "CREATE TABLE {exists}\"{table}\" (\n    {}\n) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = {COLLATION}",
        parts.join(",\n    ")
    ))
}

/// A column's name, type, and the rest of its definition.
fn column(item: &[Token<'_>], keys: &[String]) -> Result<(String, String, String), String> {
    let column = name(item.first())?;
    let item = item.get(1..).unwrap_or_default();
    let mut rest =
        after(item, &["DOUBLE", "PRECISION"]).or_else(|| item.get(1..)).ok_or("a type is missing")?;
    let is_key = keys.contains(&column)
        || rest.windows(2).any(|it| after(it, &["PRIMARY", "KEY"]).is_some())
        || rest.iter().any(|it| it.is("UNIQUE"));
    let text = item[0].is("TEXT");
    let kind = match item[0].text.to_ascii_uppercase().as_str() {
        "TEXT" if is_key => TEXT_KEY.to_owned(),
        "TEXT" => "LONGTEXT".to_owned(),
        "INTEGER" => "BIGINT".to_owned(),
        "DOUBLE" => "DOUBLE".to_owned(),
        // As it is, with its length.
        _ => {
            let end = rest.first().filter(|it| it.text == "(").and(rest.iter().position(|it| it.text == ")"));
            let (length, others) = rest.split_at(end.map_or(0, |end| end + 1));
            rest = others;
            format!("{}{}", item[0].text, render(length))
        }
    };
    let mut out = String::new();
    let mut default = false;
    for token in rest {
        out.push_str(if token.spaced { " " } else { "" });
        // A long text has a default only as an expression.
        let wrap = default && text && token.text != "(";
        default = token.is("DEFAULT");
        match token.text {
            it if token.is("AUTOINCREMENT") && !it.is_empty() => out.push_str("AUTO_INCREMENT"),
            it if wrap => out.push_str(&format!("({it})")),
            it => out.push_str(it),
        }
    }
    Ok((column, kind, out))
}

/// From the name of a table to the end of what is altered.
fn alter(rest: &[Token<'_>], indexes: &[Index]) -> Result<String, String> {
    let table = name(rest.first())?;
    let what = rest.get(1..).unwrap_or_default();
    let adds = after(what, &["ADD", "COLUMN"]).or_else(|| {
        let it = after(what, &["ADD"])?;
        let words = ["CONSTRAINT", "PRIMARY", "UNIQUE", "FOREIGN", "CHECK", "INDEX", "KEY"];
        (!it.first().is_some_and(|t| words.iter().any(|word| t.is(word)))).then_some(it)
    });
    let Some(item) = adds else { return Ok(format!("ALTER TABLE \"{table}\" {}", render(what))) };
    let keys: Vec<String> = indexes
        .iter()
        .filter(|it| it.table == table)
        .flat_map(|it| it.columns().map(str::to_owned))
        .collect();
    let (column, kind, rest) = column(item, &keys)?;
    Ok(format!("ALTER TABLE \"{table}\" ADD COLUMN \"{column}\" {kind}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(text: &str) -> Vec<String> {
        let steps = translate(text).unwrap();
        steps
            .into_iter()
            .map(|step| match step {
                Step::Sql(sql) => {
                    sql.split_whitespace().collect::<Vec<_>>().join(" ").replace(COLLATION, "C")
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_table_takes_its_indexes_along() {
        let got = sql("-- a comment; with a semicolon\n\
             CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, note TEXT NOT NULL DEFAULT 'a;b', \
             key BIGINT, x DOUBLE PRECISION NOT NULL, deleted BOOLEAN NOT NULL);\n\
             CREATE UNIQUE INDEX t__name_key ON t (name) WHERE deleted = FALSE;\n\
             CREATE INDEX t_key ON t (key DESC, id) WHERE deleted = FALSE;\n\
             CREATE UNIQUE INDEX t__key_key ON t (key) WHERE key IS NOT NULL;");
        assert_eq!(
            got,
            [
                "CREATE TABLE \"t\" ( \"id\" VARCHAR(255) PRIMARY KEY NOT NULL, \"name\" VARCHAR(255) NOT NULL, \
              \"note\" LONGTEXT NOT NULL DEFAULT ('a;b'), \"key\" BIGINT, \"x\" DOUBLE NOT NULL, \
              \"deleted\" BOOLEAN NOT NULL, \"name__unique\" VARCHAR(255) GENERATED ALWAYS AS (CASE WHEN \
              deleted = FALSE THEN \"name\" END) STORED, UNIQUE INDEX \"t__name_key\" (\"name__unique\"), \
              INDEX \"t_key\" (\"deleted\", \"key\" DESC, \"id\"), UNIQUE INDEX \"t__key_key\" (\"key\") ) \
              ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = C"
            ]
        );
    }

    #[test]
    fn a_type_with_a_length_keeps_it() {
        let got = sql(
            "CREATE TABLE t (\"id\" TEXT NOT NULL PRIMARY KEY, \"x\" VARCHAR(512) NOT NULL DEFAULT '', \
             \"deleted\" BOOLEAN NOT NULL); CREATE UNIQUE INDEX \"t__x_key\" ON \"t\" (\"x\") WHERE \"deleted\" = FALSE;",
        );
        assert!(got[0].contains("\"x\" VARCHAR(512) NOT NULL DEFAULT '', "), "{got:?}");
        assert!(got[0].contains("\"x__unique\" VARCHAR(512) GENERATED ALWAYS AS (CASE"), "{got:?}");
    }

    #[test]
    fn what_sqlite_says_in_its_own_way_is_translated() {
        let got = sql(
            "CREATE TABLE t (seq INTEGER PRIMARY KEY AUTOINCREMENT, a TEXT, b TEXT, PRIMARY KEY (a, b)) \
             WITHOUT ROWID;\n\
             CREATE TRIGGER w AFTER INSERT ON t WHEN NEW.a = 'x' BEGIN DELETE FROM v WHERE a = NEW.a; END;\n\
             CREATE TRIGGER r AFTER INSERT ON t BEGIN INSERT INTO u VALUES (NEW.a); DELETE FROM v; END;\n\
             ALTER TABLE u ADD COLUMN c TEXT NOT NULL DEFAULT ''; INSERT INTO u (a) VALUES ('it''s; x');",
        );
        assert_eq!(
            got,
            [
                "CREATE TABLE \"t\" ( \"seq\" BIGINT PRIMARY KEY AUTO_INCREMENT, \"a\" VARCHAR(255), \
                 \"b\" VARCHAR(255), PRIMARY KEY (\"a\", \"b\") ) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = C",
                "CREATE TRIGGER w AFTER INSERT ON t FOR EACH ROW BEGIN IF NEW.a = 'x' THEN DELETE FROM v WHERE \
                 a = NEW.a; END IF; END",
                "CREATE TRIGGER r AFTER INSERT ON t FOR EACH ROW BEGIN INSERT INTO u VALUES (NEW.a); DELETE FROM v; END",
                "ALTER TABLE \"u\" ADD COLUMN \"c\" LONGTEXT NOT NULL DEFAULT ('')",
                "INSERT INTO u (a) VALUES ('it''s; x')",
            ]
        );
    }

    #[test]
    fn indexes_of_older_tables_are_added_and_dropped() {
        let steps = translate("CREATE INDEX i ON t (a); DROP INDEX IF EXISTS j;").unwrap();
        assert!(matches!(&steps[0], Step::Index(it) if it.definition() == "INDEX \"i\" (\"a\")"));
        assert_eq!(steps[1], Step::DropIndex { name: "j".into(), if_exists: true });
        assert!(translate("CREATE INDEX i ON t (LOWER(a))").is_err());
        assert!(translate("CREATE TABLE t (a TEXT DEFAULT 'x)").is_err());
    }
}
