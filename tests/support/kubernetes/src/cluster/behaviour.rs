//! What a container does: by its image's name, or by the pod's annotation
//! `double/behaviour` (`double/behaviour.<container>` for one of several).
//!
//! The words, and the images' names that mean the same:
//! - `missing-image` (`nosuchimage`, `nosuch…`): the image cannot be pulled.
//! - `crash` (`crash`): ends with code 3 at once, writing two lines.
//! - `oom` (`oom`): is killed for its memory after a moment.
//! - `complete` (`completes`): ends with code 0 after a moment.
//! - `bad-command` (`bad-command`): cannot be started.
//! - `unready` (`unready`): its probe never passes.
//! - `ignore-term` (`stubborn`): does not end when asked to.
//! - `pretend` (`pretend`): runs until it is asked to end, and its probes pass,
//!   also where all others really run.
//! - `real`: its command runs as a process of this machine. `0.0.0.0` in arguments
//!   and environment becomes the pod's own address, and the paths of its volumes
//!   the folders where they are.
//!
//! Without any, a container runs until it is asked to end.

use serde_json::Value;

use crate::value::text;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Runs until it is asked to end.
    Serve,
    Exit {
        code: i32,
        after: u32,
    },
    Oom,
    CannotStart,
    Real,
}

#[derive(Debug, Clone)]
pub(crate) struct Behaviour {
    pub plan: Plan,
    /// Why the image is not there.
    pub image: Result<(), ImageFault>,
    pub unready: bool,
    pub stubborn: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImageFault {
    /// With what makes it unreadable.
    Invalid(String),
    /// With its full name.
    Missing(String),
}

pub(crate) fn of(pod: &Value, container: &Value, all_real: bool) -> Behaviour {
    let annotations = &pod["metadata"]["annotations"];
    let own = format!("double/behaviour.{}", text(&container["name"]));
    let words = match text(&annotations[own.as_str()]) {
        "" => text(&annotations["double/behaviour"]),
        own => own,
    };
    let image = text(&container["image"]);
    let short = image.rsplit('/').next().unwrap_or_default();
    let short = short.split([':', '@']).next().unwrap_or_default();
    let has = |word: &str, called: &str| words.split([',', ' ']).any(|it| it == word) || short == called;
    let plan = if has("crash", "crash") {
        Plan::Exit { code: 3, after: 0 }
    } else if has("complete", "completes") {
        Plan::Exit { code: 0, after: 1000 }
    } else if has("oom", "oom") {
        Plan::Oom
    } else if has("bad-command", "bad-command") {
        Plan::CannotStart
    } else if has("pretend", "pretend") {
        Plan::Serve
    } else if has("real", "real") || all_real {
        Plan::Real
    } else {
        Plan::Serve
    };
    let missing = has("missing-image", "nosuchimage") || short.starts_with("nosuch");
    let image = match unreadable(image) {
        Some(why) => Err(ImageFault::Invalid(why)),
        None if missing => Err(ImageFault::Missing(full_name(image))),
        None => Ok(()),
    };
    Behaviour { plan, image, unready: has("unready", "unready"), stubborn: has("ignore-term", "stubborn") }
}

/// What makes an image's name unreadable.
fn unreadable(image: &str) -> Option<String> {
    let (path, tag) = match image.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (image, ""),
    };
    let path = path.split('@').next().unwrap_or_default();
    let repository = match path.split_once('/') {
        // The first part may be a host, which knows no case.
        Some((host, rest)) if host.contains(['.', ':']) || host.chars().any(|it| it.is_ascii_uppercase()) => {
            rest
        }
        _ => path,
    };
    if repository.chars().any(|it| it.is_ascii_uppercase()) {
        return Some(format!("invalid reference format: repository name ({repository}) must be lowercase"));
    }
    let fine = |it: char| it.is_ascii_alphanumeric() || "-_./:".contains(it);
    let bad_tag = !tag.chars().all(|it| it.is_ascii_alphanumeric() || "-_.".contains(it));
    (!path.chars().all(fine) || path.is_empty() || bad_tag).then(|| "invalid reference format".to_owned())
}

/// With the registry, as messages call it.
fn full_name(image: &str) -> String {
    let first = image.split('/').next().unwrap_or_default();
    let name = match image.split_once('/') {
        Some(_) if first.contains(['.', ':']) || first == "localhost" => image.to_owned(),
        Some(_) => format!("docker.io/{image}"),
        None => format!("docker.io/library/{image}"),
    };
    let tagged = name.rsplit('/').next().is_some_and(|it| it.contains(':'));
    if tagged { name } else { format!("{name}:latest") }
}
