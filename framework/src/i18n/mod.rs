//! What is told to people, in their language. Programs read classes and field
//! names, which stay as they are; the log stays English.
//!
//! Messages are written in English where the error is made, as any text:
//! `Error::conflict(format!("{n} of {most} are used"))`. A catalogue (a TOML
//! file beside each crate's sources) has the same text with its placeholders
//! as a key, and a finished message is recognised by it: so nobody has to
//! write messages in another way, and what libraries say can be translated,
//! too. What no catalogue knows stays English. A test reads the sources and
//! names every message that lacks its translation.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

mod language;
mod template;

pub use language::Lang;
use template::Template;
pub use template::placeholders;

/// The translations that a crate brings: submit one with [`catalogue!`](crate::catalogue).
pub struct Catalogue {
    /// Into which language.
    pub lang: Lang,
    /// A TOML file with the tables `messages` (what the crate's sources say),
    /// and, if it has any, `libraries` (what others say) and `labels`.
    pub toml: &'static str,
}

inventory::collect!(Catalogue);

/// Adds a crate's translations: `podyard::catalogue!(Chinese, "i18n/zh.toml")`.
#[macro_export]
macro_rules! catalogue {
    ($lang:ident, $path:literal) => {
        $crate::inventory::submit! {
            $crate::i18n::Catalogue { lang: $crate::i18n::Lang::$lang, toml: include_str!($path) }
        }
    };
}

crate::catalogue!(Chinese, "zh.toml");

#[derive(Default)]
struct Texts {
    /// Those with most words of their own first: they say most surely what is meant.
    templates: Vec<Template>,
    labels: HashMap<String, String>,
}

static CHINESE: LazyLock<Texts> = LazyLock::new(|| load(Lang::Chinese));

/// # Panics
/// On a file that is no catalogue: a fault of the program, which tests find.
fn load(lang: Lang) -> Texts {
    let mut texts = Texts::default();
    for catalogue in inventory::iter::<Catalogue>.into_iter().filter(|it| it.lang == lang) {
        let table: toml::Table = catalogue.toml.parse().expect("a catalogue is TOML");
        let part = |name: &str| table.get(name).and_then(toml::Value::as_table).into_iter().flatten();
        let text = |value: &toml::Value| value.as_str().expect("a translation is a text").to_owned();
        let messages = part("messages").chain(part("libraries"));
        texts.templates.extend(messages.map(|(from, to)| Template::new(from, &text(to))));
        texts.labels.extend(part("labels").map(|(from, to)| (from.clone(), text(to))));
    }
    texts.templates.sort_by_key(|it| std::cmp::Reverse(it.weight()));
    texts
}

/// How deep the parts of a message are looked up, too: `name: must not be empty`.
const DEPTH: u8 = 3;
/// A longer message is mostly what a client sent: it is told as it is.
const LONGEST: usize = 4096;

/// A message in a language.
#[must_use]
pub fn text(lang: Lang, message: &str) -> Cow<'_, str> {
    match lang {
        Lang::English => message.into(),
        Lang::Chinese => translate(&CHINESE, message, DEPTH),
    }
}

fn translate<'a>(texts: &Texts, message: &'a str, depth: u8) -> Cow<'a, str> {
    if depth == 0 || message.is_empty() || message.len() > LONGEST {
        return message.into();
    }
    let found = texts.templates.iter().find_map(|it| Some((it, it.captures(message)?)));
    match found {
        Some((template, captures)) => {
            let captures: Vec<_> = captures.into_iter().map(|it| translate(texts, it, depth - 1)).collect();
            template.fill(&captures).into()
        }
        None => message.into(),
    }
}

/// A label (the name of a type or field, for a console) in a language.
#[must_use]
pub fn label(lang: Lang, english: &str) -> Cow<'_, str> {
    match lang {
        Lang::English => english.into(),
        Lang::Chinese => CHINESE.labels.get(english).map_or(english.into(), |it| it.clone().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pairs: &[(&str, &str)]) -> Texts {
        let mut templates: Vec<_> = pairs.iter().map(|(from, to)| Template::new(from, to)).collect();
        templates.sort_by_key(|it| std::cmp::Reverse(it.weight()));
        Texts { templates, labels: HashMap::new() }
    }

    #[test]
    fn the_most_specific_template_wins_and_parts_are_translated() {
        let texts = texts(&[
            ("{0}: {1}", "{0}：{1}"),
            ("{keyword} {id} not found", "找不到 {keyword} {id}"),
            ("is required", "必填"),
            ("{what} is not allowed to {name}", "{name} 无权{what}"),
            ("to {verb} {0}", "{verb} {0}"),
            ("list", "列出"),
        ]);
        let chinese = |text| translate(&texts, text, DEPTH).into_owned();
        assert_eq!(chinese("space a b not found"), "找不到 space a b");
        assert_eq!(chinese("name: is required"), "name：必填");
        assert_eq!(chinese("to list users is not allowed to ann"), "ann 无权列出 users");
        assert_eq!(chinese("nobody has written this"), "nobody has written this");
    }

    #[test]
    fn the_catalogues_are_read() {
        assert_eq!(text(Lang::Chinese, "space x not found"), "找不到 space x");
        assert_eq!(text(Lang::English, "space x not found"), "space x not found");
        assert_eq!(label(Lang::Chinese, "Name"), "名称");
    }
}
