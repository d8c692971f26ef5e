//! Names and labels of what belongs to a space.
//!
//! An object is Podyard's only if it carries both marks: that Podyard manages
//! it, and which installation does. All lists and watches select by both.

use std::fmt::Write as _;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::Options;
use podyard_driver::Launch;

/// The field manager of all that is applied.
pub(crate) const MANAGER: &str = "podyard";
/// What stands before the names of Podyard's own labels and annotations.
pub(crate) const DOMAIN: &str = "podyard.dev/";
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub(crate) const INSTALLATION: &str = "podyard.dev/installation";
/// The space's id; as a label where that may be one, always as an annotation.
pub(crate) const SPACE: &str = "podyard.dev/space";
pub(crate) const USER: &str = "podyard.dev/user";
pub(crate) const SID: &str = "podyard.dev/sid";
/// The space's name, for people.
pub(crate) const TITLE: &str = "podyard.dev/name";
/// The run that a pod is of.
pub(crate) const INSTANCE: &str = "podyard.dev/instance";

/// What the names of spaces' pods and claims begin with.
pub(crate) const SPACES: &str = "ws-";

/// Most that a pod's name may have: it becomes a host name.
const MOST: usize = 63;
/// Most of it that is left to the space's `sid`.
const MOST_SID: usize = 32;
/// Hexadecimal digits that stand for what was left out of a name.
const DIGEST: usize = 12;

/// The name of a space's pod and claim: `ws-<uid>-<sid>`.
pub(crate) fn object_name(launch: &Launch) -> String {
    name_for(&launch.user, &launch.sid)
}

fn name_for(user: &str, sid: &str) -> String {
    let sid = part(sid, MOST_SID);
    let user = part(user, MOST - "ws--".len() - sid.len());
    format!("{SPACES}{user}-{sid}")
}

/// `text` as a piece of a name: as it is if it may stand there, a UUID without
/// its dashes, anything else cut and told apart by a digest of the whole.
pub(crate) fn part(text: &str, most: usize) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.is_empty() && text.len() <= most && text.chars().all(plain) {
        return text.to_owned();
    }
    let bare = text.replace('-', "");
    if is_uuid(text) && bare.len() <= most {
        return bare;
    }
    let kept =
        text.to_ascii_lowercase().chars().filter(|c| plain(*c)).take(most - DIGEST).collect::<String>();
    kept + &digest(text)[..DIGEST]
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(i, c)| match i {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_digit() || ('a'..='f').contains(&c),
        })
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// `text` as a label's value.
pub(crate) fn label(text: &str) -> String {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let fits = text.len() <= MOST && text.chars().all(inside);
    if fits && ends(text.chars().next()) && ends(text.chars().last()) {
        text.to_owned()
    } else {
        format!("x{}", &digest(text)[..40])
    }
}

/// Selects all that belongs to this installation.
pub(crate) fn selector(options: &Options) -> String {
    format!("{MANAGED_BY}={MANAGER},{INSTALLATION}={}", label(&options.installation))
}

/// Selects what belongs to one space of this installation.
pub(crate) fn selector_of(options: &Options, space: &str) -> String {
    format!("{},{SPACE}={}", selector(options), label(space))
}

/// The labels of a space's objects.
pub(crate) fn labels(launch: &Launch, options: &Options) -> Map<String, Value> {
    let mut labels = Map::new();
    for (key, value) in [
        ("app.kubernetes.io/name", "space".to_owned()),
        (MANAGED_BY, MANAGER.to_owned()),
        (INSTALLATION, label(&options.installation)),
        (SPACE, label(&launch.id)),
        (USER, label(&launch.user)),
        (SID, label(&launch.sid)),
    ] {
        labels.insert(key.to_owned(), json!(value));
    }
    labels
}

/// The annotations of a space's objects.
pub(crate) fn annotations(launch: &Launch) -> Map<String, Value> {
    let mut annotations = Map::new();
    for (key, value) in [(SPACE, &launch.id), (USER, &launch.user), (TITLE, &launch.name)] {
        annotations.insert(key.to_owned(), json!(value));
    }
    annotations
}

/// The space that an object belongs to; none if it is not of this installation.
pub(crate) fn space_of(meta: &ObjectMeta, options: &Options) -> Option<String> {
    let labels = meta.labels.as_ref()?;
    let ours = labels.get(MANAGED_BY).is_some_and(|it| it == MANAGER)
        && labels.get(INSTALLATION).is_some_and(|it| *it == label(&options.installation));
    let named = meta.annotations.as_ref().and_then(|it| it.get(SPACE)).or_else(|| labels.get(SPACE))?;
    ours.then(|| named.clone())
}

/// The space whose pod this is. A copy of one carries all its marks, but cannot
/// have its name: it is somebody else's.
pub(crate) fn space_of_pod(meta: &ObjectMeta, options: &Options) -> Option<String> {
    let space = space_of(meta, options)?;
    let labels = meta.labels.as_ref()?;
    let user = meta.annotations.as_ref().and_then(|it| it.get(USER)).or_else(|| labels.get(USER));
    let (Some(user), Some(sid)) = (user, labels.get(SID)) else { return Some(space) };
    // What no label can be is not to be had from it.
    let is_told = !is_digest(user) && !is_digest(sid);
    (!is_told || meta.name.as_deref() == Some(&*name_for(user, sid))).then_some(space)
}

/// Whether [`label`] may have made this of something else.
fn is_digest(label: &str) -> bool {
    label.len() == 41 && label.starts_with('x')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(user: &str, sid: &str) -> String {
        let launch = Launch { user: user.into(), sid: sid.into(), ..crate::pod::tests::launch() };
        object_name(&launch)
    }

    #[test]
    fn names_are_short_and_unique() {
        let sid = "0123456789abcdef01234567";
        assert_eq!(named("ann", sid), format!("ws-ann-{sid}"));
        assert_eq!(
            named("0192f0c4-7a8e-7000-8000-0123456789ab", sid),
            format!("ws-0192f0c47a8e700080000123456789ab-{sid}")
        );
        assert_eq!(named("Ann", sid), format!("ws-ann{}-{sid}", &digest("Ann")[..DIGEST]));
        let hard = [
            "",
            "-",
            "Ann",
            "ann.",
            "ANN",
            "Ä",
            "日本",
            "a_b",
            "a-b",
            "a/b",
            &"x".repeat(64),
            &"x".repeat(65),
        ];
        let names: std::collections::BTreeSet<String> = hard.iter().map(|it| named(it, sid)).collect();
        assert_eq!(names.len(), hard.len());
        for name in names.iter().chain([&named("ann", "S-1"), &named("ann", &"y".repeat(90))]) {
            assert!(name.len() <= 63, "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
            assert!(!name.ends_with('-'), "{name}");
        }
    }

    #[test]
    fn labels_are_valid() {
        assert_eq!(label("a-b_c.D"), "a-b_c.D");
        for odd in ["", "-a", "a_", "a b", "ä", &"x".repeat(64)] {
            assert_eq!(label(odd).len(), 41, "{odd}");
        }
        assert_ne!(label("-a"), label("a-"));
    }

    #[test]
    fn only_our_own() {
        let options = Options::default();
        let meta = |pairs: &[(&str, &str)]| ObjectMeta {
            labels: Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            ..ObjectMeta::default()
        };
        let ours = [(MANAGED_BY, MANAGER), (INSTALLATION, "podyard"), (SPACE, "s1")];
        assert_eq!(space_of(&meta(&ours), &options).as_deref(), Some("s1"));
        assert_eq!(space_of(&meta(&ours[1..]), &options), None);
        assert_eq!(space_of(&meta(&[ours[0], (INSTALLATION, "other"), ours[2]]), &options), None);
        assert_eq!(space_of(&ObjectMeta::default(), &options), None);
    }

    #[test]
    fn a_copy_is_somebody_elses() {
        let (options, launch) = (Options::default(), crate::pod::tests::launch());
        let texts = |map: Map<String, Value>| {
            map.into_iter().map(|(key, it)| (key, it.as_str().unwrap_or_default().to_owned())).collect()
        };
        let mut meta = ObjectMeta {
            name: Some(object_name(&launch)),
            labels: Some(texts(labels(&launch, &options))),
            annotations: Some(texts(annotations(&launch))),
            ..ObjectMeta::default()
        };
        assert_eq!(space_of_pod(&meta, &options), Some(launch.id.clone()));
        meta.annotations = None;
        assert_eq!(space_of_pod(&meta, &options), Some(launch.id));
        meta.name = Some("copy".into());
        assert_eq!(space_of_pod(&meta, &options), None);
    }
}
