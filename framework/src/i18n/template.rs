//! A message with placeholders, as `format!` has it: what recognises a
//! finished message and writes it anew in another language.

use std::borrow::Cow;

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Hole(String),
}

/// The pieces of a format string: text, hole, text, …; `{}` is numbered, and
/// what stands after a colon (`{x:?}`) is the sources' business.
fn pieces(format: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut text, mut next) = (String::new(), 0);
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' if chars.peek() == Some(&c) => {
                chars.next();
                text.push(c);
            }
            '{' => {
                let hole: String = chars.by_ref().take_while(|c| *c != '}').collect();
                let name = hole.split(':').next().unwrap_or_default().trim();
                let name = if name.is_empty() {
                    next += 1;
                    (next - 1).to_string()
                } else {
                    name.to_owned()
                };
                pieces.push(Piece::Text(std::mem::take(&mut text)));
                pieces.push(Piece::Hole(name));
            }
            c => text.push(c),
        }
    }
    pieces.push(Piece::Text(text));
    pieces
}

/// The names of a format string's placeholders, sorted: a translation has the
/// same ones.
#[must_use]
pub fn placeholders(format: &str) -> Vec<String> {
    let holes = pieces(format).into_iter().filter_map(|it| match it {
        Piece::Hole(name) => Some(name),
        Piece::Text(_) => None,
    });
    let mut names: Vec<_> = holes.collect();
    names.sort_unstable();
    names
}

/// A message and its translation.
#[derive(Debug)]
pub(super) struct Template {
    /// The text before each hole, and after the last.
    texts: Vec<String>,
    holes: Vec<String>,
    to: Vec<Piece>,
}

impl Template {
    pub(super) fn new(from: &str, to: &str) -> Self {
        let (mut texts, mut holes) = (Vec::new(), Vec::new());
        for piece in pieces(from) {
            match piece {
                Piece::Text(text) => texts.push(text),
                Piece::Hole(name) => holes.push(name),
            }
        }
        Self { texts, holes, to: pieces(to) }
    }

    /// How much of it is its own words.
    pub(super) fn weight(&self) -> usize {
        self.texts.iter().map(String::len).sum()
    }

    /// What stands in the holes, if the message was made from this.
    pub(super) fn captures<'a>(&self, message: &'a str) -> Option<Vec<&'a str>> {
        let (first, rest) = self.texts.split_first()?;
        let mut left = message.strip_prefix(first.as_str())?;
        let Some((last, middle)) = rest.split_last() else { return left.is_empty().then(Vec::new) };
        // A bare hole would be made from anything.
        if self.weight() == 0 {
            return None;
        }
        left = left.strip_suffix(last.as_str())?;
        let mut captures = Vec::with_capacity(self.holes.len());
        for text in middle {
            let at = left.find(text.as_str())?;
            captures.push(&left[..at]);
            left = &left[at + text.len()..];
        }
        captures.push(left);
        Some(captures)
    }

    /// The translation with the holes filled.
    pub(super) fn fill(&self, captures: &[Cow<'_, str>]) -> String {
        let value = |name: &str| self.holes.iter().position(|it| it == name).and_then(|i| captures.get(i));
        let part = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Hole(name) => value(name).map(ToString::to_string).unwrap_or_default(),
        };
        self.to.iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        assert_eq!(placeholders("{} of {most}, {x:?} and {{no}} {}"), ["0", "1", "most", "x"]);
        assert!(placeholders("none {{at}} all").is_empty());
    }

    #[test]
    fn messages_are_recognised() {
        let it = Template::new("you have {have} of at most {most}; go", "最多 {most}，已有 {have}");
        let captures = it.captures("you have 3 of at most 5; go").unwrap();
        assert_eq!(captures, ["3", "5"]);
        let captures: Vec<_> = captures.into_iter().map(Cow::from).collect();
        assert_eq!(it.fill(&captures), "最多 5，已有 3");
        assert!(it.captures("you have 3 of at most 5").is_none());
        assert!(Template::new("{0}", "{0}").captures("anything").is_none());
        assert!(Template::new("exact", "x").captures("exactly").is_none());
        // Overlapping ends must not be counted twice.
        assert!(Template::new("ab{0}ba", "x").captures("aba").is_none());
    }
}
