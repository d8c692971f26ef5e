//! Reads Rust sources for the messages that people get to see: the texts in
//! errors, wherever they are made. No parser, only tokens: what leads to an
//! error is followed within its file, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A piece of a source.
#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

use Token::{Sign, Text, Word};

/// Messages, and where each stands first.
pub type Messages = BTreeMap<String, String>;

/// Ways to make an error, and which argument is its message.
const MAKERS: [(&str, usize); 12] = [
    ("field", 1),
    ("new", 1),
    ("bad_request", 0),
    ("unauthorized", 0),
    ("forbidden", 0),
    ("conflict", 0),
    ("unavailable", 0),
    ("require", 2),
    // The driver's.
    ("Invalid", 0),
    ("Unavailable", 0),
    ("Stuck", 0),
    ("io", 0),
];
/// Small letters that make a text one for people: `GET, POST` needs no translation.
const LETTERS: usize = 2;

/// All messages in the sources under a folder.
///
/// # Panics
/// When a source cannot be read.
#[must_use]
pub fn under(folder: &Path) -> Messages {
    let mut messages = Messages::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for path in entries.filter_map(|it| Some(it.ok()?.path())) {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let source =
                    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                for (line, text) in of_source(&source) {
                    messages.entry(text).or_insert_with(|| format!("{}:{line}", path.display()));
                }
            }
        }
    }
    messages
}

/// The messages of one source, with their lines.
fn of_source(source: &str) -> Vec<(usize, String)> {
    // Unit tests stand at a file's end.
    let source = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let tokens = tokens(source);
    let mut finder = Finder { tokens: &tokens, found: BTreeSet::new(), makers: BTreeMap::new() };
    finder.follow();
    finder.found.into_iter().map(|(line, text)| (line, normal(&text))).filter(|(_, it)| speaks(it)).collect()
}

/// Whether a text has words of its own.
fn speaks(text: &str) -> bool {
    let mut inside = 0;
    let own = text.chars().filter(|c| {
        match c {
            '{' => inside += 1,
            '}' => inside -= 1,
            _ => {}
        }
        inside == 0 && c.is_alphabetic() && !c.is_uppercase()
    });
    own.count() >= LETTERS
}

/// A format string as catalogues have it: `{}` numbered, no `:?`.
fn normal(format: &str) -> String {
    let (mut out, mut next) = (String::new(), 0);
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        out.push(c);
        if c != '{' {
            continue;
        }
        if chars.peek() == Some(&'{') {
            out.extend(chars.next());
            continue;
        }
        let hole: String = chars.by_ref().take_while(|c| *c != '}').collect();
        match hole.split(':').next().unwrap_or_default() {
            "" => {
                out.push_str(&next.to_string());
                next += 1;
            }
            name => out.push_str(name),
        }
        out.push('}');
    }
    out
}

struct Finder<'a> {
    tokens: &'a [(usize, Token)],
    found: BTreeSet<(usize, String)>,
    /// Closures and functions of this file that make errors: which argument is the message.
    makers: BTreeMap<String, usize>,
}

impl Finder<'_> {
    fn at(&self, i: usize) -> Option<&Token> {
        self.tokens.get(i).map(|(_, it)| it)
    }

    fn is(&self, i: usize, sign: char) -> bool {
        self.at(i) == Some(&Sign(sign))
    }

    fn word(&self, i: usize) -> Option<&str> {
        match self.at(i) {
            Some(Word(it)) => Some(it),
            _ => None,
        }
    }

    /// Where the bracket that opens at `i` closes.
    fn close(&self, i: usize) -> usize {
        let mut depth = 0;
        for at in i..self.tokens.len() {
            match self.at(at) {
                Some(Sign('(' | '[' | '{')) => depth += 1,
                Some(Sign(')' | ']' | '}')) => {
                    depth -= 1;
                    if depth == 0 {
                        return at;
                    }
                }
                _ => {}
            }
        }
        self.tokens.len()
    }

    /// The arguments of the call whose bracket opens at `i`, as ranges.
    fn arguments(&self, i: usize) -> Vec<(usize, usize)> {
        let end = self.close(i);
        let (mut from, mut depth) = (i + 1, 0);
        let mut all = Vec::new();
        for at in i + 1..end {
            match self.at(at) {
                Some(Sign('(' | '[' | '{')) => depth += 1,
                Some(Sign(')' | ']' | '}')) => depth -= 1,
                Some(Sign(',')) if depth == 0 => {
                    all.push((from, at));
                    from = at + 1;
                }
                _ => {}
            }
        }
        if from < end {
            all.push((from, end));
        }
        all
    }

    fn follow(&mut self) {
        // Twice: what makes errors may be used before it is found out.
        for _ in 0..3 {
            for i in 0..self.tokens.len() {
                self.look(i);
            }
        }
    }

    fn look(&mut self, i: usize) {
        // Error::field(…), Self::unavailable(…), policy::require(…)
        let path = self.is(i + 1, ':') && self.is(i + 2, ':') && self.is(i + 4, '(');
        if path && matches!(self.word(i), Some("Error" | "Self" | "policy")) {
            let maker = self.word(i + 3).and_then(|name| MAKERS.iter().find(|(it, _)| *it == name));
            // Only errors are made from a kind or a text; others' `new` are not.
            let kind = |it: &Self| it.word(i + 3) != Some("new") || it.names_kind(i + 5);
            if let Some((_, index)) = maker
                && kind(self)
            {
                self.argument(i + 4, *index);
            }
        }
        // Err(format!(…)), ok_or("…"), map_err(|_| wrong("…")): of functions whose error is a text.
        let fails =
            matches!(self.word(i), Some("Err" | "ok_or" | "ok_or_else" | "map_err")) && self.is(i + 1, '(');
        if fails {
            let end = self.close(i + 1);
            let other = |at: usize| matches!(self.word(at), Some("Error" | "Self" | "tracing" | "Diesel"));
            if !(i + 2..end).any(other) {
                let text =
                    |at: usize| matches!(self.at(at), Some(Text(_))) || self.word(at) == Some("format");
                let direct = i + 2 + if self.is(i + 2, '|') { 1 + self.to_bar(i + 3) } else { 0 };
                let inside =
                    (direct..end).find(|at| self.word(*at) == Some("format") && self.is(at + 1, '!'));
                let direct = if text(direct) { direct } else { inside.unwrap_or(end) };
                if direct < end {
                    self.texts(direct, end);
                    self.holes(direct, end, direct);
                }
                let mut names: Vec<_> =
                    (i + 2..end).filter_map(|at| self.word(at).map(str::to_owned)).collect();
                names.retain(|it| self.makes_text(it, i));
                for name in names {
                    self.name(&name, i);
                }
            }
        }
        // FieldError { message: … } and FieldError { field, message }
        if self.word(i) == Some("FieldError") && self.is(i + 1, '{') {
            for (from, to) in self.arguments(i + 1) {
                if self.word(from) == Some("message") {
                    self.expression(if self.is(from + 1, ':') { from + 2 } else { from }, to);
                }
            }
        }
        // #[error("…")]
        if self.word(i) == Some("error") && self.is(i + 1, '(') && i > 1 && self.is(i - 1, '[') {
            self.texts(i + 2, self.close(i + 1));
        }
        // A closure or function of this file.
        if self.is(i + 1, '(')
            && i > 0
            && self.word(i - 1) != Some("fn")
            && let Some(index) = self.word(i).and_then(|it| self.makers.get(it)).copied()
        {
            self.argument(i + 1, index);
        }
    }

    /// How far it is to the bar that ends a closure's parameters, and past it.
    fn to_bar(&self, from: usize) -> usize {
        (from..self.tokens.len()).position(|at| self.is(at, '|')).map_or(0, |it| it + 1)
    }

    /// Whether a name is a closure before here that formats a text.
    fn makes_text(&self, name: &str, before: usize) -> bool {
        (1..before).any(|at| {
            self.word(at) == Some(name)
                && self.word(at - 1) == Some("let")
                && self.is(at + 1, '=')
                && self.is(at + 2, '|')
                && {
                    let body = at + 3 + self.to_bar(at + 3);
                    let body = body + usize::from(self.is(body, '{'));
                    self.word(body) == Some("format")
                }
        })
    }

    fn names_kind(&self, i: usize) -> bool {
        (i..i + 4).any(|at| matches!(self.word(at), Some("Kind" | "kind")))
    }

    fn argument(&mut self, open: usize, index: usize) {
        if let Some((from, to)) = self.arguments(open).get(index).copied() {
            self.expression(from, to);
        }
    }

    /// Collects what an expression says, and follows the name that it is.
    fn expression(&mut self, from: usize, to: usize) {
        self.texts(from, to);
        let alone = to == from + 1 || self.is(from + 1, '.') || (self.is(from, '&') && to == from + 2);
        let at = if self.is(from, '&') { from + 1 } else { from };
        if let Some(name) = self.word(at).map(str::to_owned).filter(|_| alone) {
            self.name(&name, at);
        }
        self.holes(from, to, from);
    }

    /// Follows the names within format strings' own holes: `{what}`.
    fn holes(&mut self, from: usize, to: usize, before: usize) {
        let holes: Vec<_> = (from..to)
            .filter_map(|at| match self.at(at) {
                Some(Text(text)) => Some(text.clone()),
                _ => None,
            })
            .flat_map(|text| holes(&text))
            .collect();
        for name in holes {
            self.name(&name, before);
        }
    }

    /// What a name stands for: a `let` before it, or a parameter.
    fn name(&mut self, name: &str, before: usize) {
        for i in (0..before).rev() {
            if self.word(i) != Some(name) {
                continue;
            }
            let is_let = i > 0 && (self.word(i - 1) == Some("let") || self.word(i - 1) == Some("mut"));
            if is_let {
                let mut end = i;
                let mut depth = 0;
                while end < self.tokens.len() {
                    match self.at(end) {
                        Some(Sign('(' | '[' | '{')) => depth += 1,
                        Some(Sign(')' | ']' | '}')) => depth -= 1,
                        Some(Sign(';')) if depth == 0 => break,
                        _ => {}
                    }
                    end += 1;
                }
                // One that makes an error is found as such.
                let makes = |at: usize| self.word(at) == Some("Error") && self.is(at + 1, ':');
                if (i..end).any(makes) {
                    return;
                }
                self.texts(i, end);
                self.holes(i, end, end);
                return;
            }
            if self.is(i + 1, ':') && !self.is(i + 2, ':') && self.parameter(i) {
                return;
            }
            if self.word(i) == Some("fn") {
                return;
            }
        }
    }

    /// If the word at `i` is a parameter: of what, and which.
    fn parameter(&mut self, i: usize) -> bool {
        let (mut index, mut depth) = (0, 0);
        for at in (0..i).rev() {
            match self.at(at) {
                Some(Sign(')' | ']' | '>')) => depth += 1,
                Some(Sign('[' | '<')) => depth -= 1,
                Some(Sign('(')) if depth > 0 => depth -= 1,
                Some(Sign(',')) if depth == 0 => index += 1,
                // let name = |…|, let name = move |…|
                Some(Sign('|')) => {
                    let equals = if self.word(at - 1) == Some("move") { at - 2 } else { at - 1 };
                    let name = self.word(equals - 1).map(str::to_owned);
                    if let Some(name) = name.filter(|_| self.is(equals, '=')) {
                        self.makers.insert(name, index);
                    }
                    return true;
                }
                Some(Sign('(')) => {
                    // fn name(…), fn name<…>(…)
                    let mut name = at - 1;
                    if self.is(name, '>') {
                        while name > 0 && !self.is(name, '<') {
                            name -= 1;
                        }
                        name -= 1;
                    }
                    if name > 0 && self.word(name - 1) == Some("fn") {
                        // A receiver is no argument of a call by a dot.
                        let method = (at..at + 5).any(|at| self.word(at) == Some("self"));
                        if let Some(name) = self.word(name).map(str::to_owned) {
                            self.makers.insert(name, index - usize::from(method));
                        }
                        return true;
                    }
                    return false;
                }
                Some(Sign(';' | '{' | '}')) => return false,
                _ => {}
            }
        }
        false
    }

    fn texts(&mut self, from: usize, to: usize) {
        let mut at = from;
        while at < to {
            // What joins, splits and looks up is no message.
            let plumbing = [
                "join",
                "split",
                "contains",
                "starts_with",
                "ends_with",
                "get",
                "replace",
                "has",
                "eq",
                "ne",
                "is_in",
            ];
            let call = self.word(at).is_some_and(|it| plumbing.contains(&it)) && self.is(at + 1, '(');
            let escape = self.word(at) == Some("class") && self.is(at + 1, '(');
            if (call || escape) && self.is(at.saturating_sub(1), '.') {
                at = self.close(at + 1);
                continue;
            }
            // schema["type"]
            let index = self.is(at.saturating_sub(1), '[') && self.word(at.saturating_sub(2)).is_some();
            if let (line, Text(text)) = &self.tokens[at]
                && !index
            {
                // A plain text's braces are its own.
                let format = at >= 2 && self.is(at - 1, '(') && self.is(at - 2, '!');
                let attribute = at >= 2 && self.is(at - 1, '(') && self.word(at - 2) == Some("error");
                let text = if format || attribute {
                    text.clone()
                } else {
                    text.replace('{', "{{").replace('}', "}}")
                };
                self.found.insert((*line, text));
            }
            at += 1;
        }
    }
}

/// Names in a format string.
fn holes(format: &str) -> Vec<String> {
    let parts = format.split('{').skip(1).filter_map(|it| it.split(['}', ':']).next());
    // A statement is not for people.
    let name = |it: &&str| it.starts_with(|c: char| c.is_ascii_lowercase()) && *it != "sql";
    parts.filter(name).map(str::to_owned).collect()
}

fn tokens(source: &str) -> Vec<(usize, Token)> {
    let chars: Vec<char> = source.chars().collect();
    let mut tokens = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < chars.len() {
        let c = chars[i];
        match c {
            '\n' => line += 1,
            '/' if chars.get(i + 1) == Some(&'/') => {
                while i + 1 < chars.len() && chars[i + 1] != '\n' {
                    i += 1;
                }
            }
            '\'' => {
                // A character; else a lifetime, whose name is a word that nobody looks for.
                if chars.get(i + 1) == Some(&'\\') {
                    i += 2;
                    while i < chars.len() && chars[i] != '\'' {
                        i += 1;
                    }
                } else if chars.get(i + 2) == Some(&'\'') {
                    i += 2;
                }
            }
            'r' if matches!(chars.get(i + 1), Some('"' | '#')) && raw(&chars, i).is_some() => {
                let (text, end) = raw(&chars, i).unwrap_or_default();
                let begin = line;
                line += text.matches('\n').count();
                tokens.push((begin, Text(text)));
                i = end;
            }
            '"' => {
                let begin = line;
                let mut text = String::new();
                i += 1;
                while i < chars.len() && chars[i] != '"' {
                    if chars[i] == '\\' {
                        i += 1;
                        match chars[i] {
                            'n' => text.push('\n'),
                            't' => text.push('\t'),
                            '0' => text.push('\0'),
                            '\n' => {
                                line += 1;
                                while chars.get(i + 1).is_some_and(|c| c.is_whitespace()) {
                                    i += 1;
                                    line += usize::from(chars[i] == '\n');
                                }
                            }
                            other => text.push(other),
                        }
                    } else {
                        line += usize::from(chars[i] == '\n');
                        text.push(chars[i]);
                    }
                    i += 1;
                }
                tokens.push((begin, Text(text)));
            }
            c if c.is_alphanumeric() || c == '_' => {
                let mut word = String::new();
                while i < chars.len() && (chars[i].is_alphanumeric() || chars[i] == '_') {
                    word.push(chars[i]);
                    i += 1;
                }
                tokens.push((line, Word(word)));
                continue;
            }
            c if c.is_whitespace() => {}
            c => tokens.push((line, Sign(c))),
        }
        i += 1;
    }
    tokens
}

/// A raw text that begins at `i`, and where it ends.
fn raw(chars: &[char], i: usize) -> Option<(String, usize)> {
    let hashes = chars[i + 1..].iter().take_while(|c| **c == '#').count();
    let start = i + 1 + hashes;
    if chars.get(start) != Some(&'"') {
        return None;
    }
    let end = (start + 1..chars.len())
        .find(|at| chars[*at] == '"' && (1..=hashes).all(|n| chars.get(at + n) == Some(&'#')))?;
    Some((chars[start + 1..end].iter().collect(), end + hashes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_wherever_an_error_is_made() {
        let source = r##"
            // Error::conflict("in a comment")
            fn a(field: &str) -> Result<()> {
                let wrong = |what: &str| Error::field(field, format!("{text:?} is not {what}"));
                let weak = |text: &str| Err(Error::field("password", text).class("WeakPasswordError"));
                if x { return weak("too short, has {n}"); }
                let text = format!("{} has no {} {name}", a, if read { "detail" } else { "action" });
                let _ = Vec::new("no error");
                Err(Error::new(Kind::NotFound, text).class("NoClass"))?;
                let blame = |key: &str, message: String| wrong.push(FieldError { field: key, message });
                blame("a", "is required".into());
                Err(format!("is longer than {}", self.max))?;
                let odd = |what: &str| format!("{text:?} is odd: {what}");
                x.parse().map_err(|_| odd("no number"))?;
                x.ok_or("there is none")?;
                "not a message".parse().map_err(|_| wrong("an integer"))
            }
            fn require(cred: &Cred, rank: Access, what: &str) -> Result<()> {
                Err(Error::forbidden(format!("{what} is not allowed to {}", cred.name)))
            }
            fn b() { require(cred, Access::User, &format!("to {verb} {}", plural)); }
            #[error("it runs: {0}")]
            "##;
        let found: Vec<_> = of_source(source).into_iter().map(|(_, it)| it).collect();
        for wanted in [
            "{text} is not {what}",
            "an integer",
            "too short, has {{n}}",
            "{0} has no {1} {name}",
            "detail",
            "is required",
            "{text} is odd: {what}",
            "no number",
            "there is none",
            "is longer than {0}",
            "{what} is not allowed to {0}",
            "to {verb} {0}",
            "it runs: {0}",
        ] {
            assert!(found.iter().any(|it| it == wanted), "{wanted} is not in {found:#?}");
        }
        for other in ["in a comment", "no error", "NoClass", "WeakPasswordError", "password", "not a message"]
        {
            assert!(!found.iter().any(|it| it == other), "{other} is in {found:#?}");
        }
    }
}
