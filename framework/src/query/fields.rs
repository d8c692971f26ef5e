//! Which fields an answer shows: `field=` names them, `exclude=` leaves some out.

use super::Params;
use crate::model::Meta;
use crate::{Error, Result};

/// The fields, as bits, and the extra columns (`None`: all) that `field=` and
/// `exclude=` leave of those that are `visible`.
pub(crate) fn selection(
    meta: &Meta,
    params: &Params<'_>,
    visible: u64,
) -> Result<(u64, Option<Vec<String>>)> {
    let (mut mask, mut extra) = (visible, None);
    if let Some((fields, extras)) = named(meta, params, visible, "field")? {
        mask = fields;
        extra = Some(extras);
    }
    if let Some((fields, extras)) = named(meta, params, visible, "exclude")? {
        mask &= !fields;
        if !extras.is_empty() {
            let all = || meta.extra().iter().map(|(name, _)| (*name).to_owned()).collect();
            extra = Some(extra.unwrap_or_else(all));
            extra.iter_mut().for_each(|shown| shown.retain(|name| !extras.contains(name)));
        }
    }
    Ok((mask, extra))
}

/// Whether an answer is to show tags: by `tags=true` or `field=metadata`.
pub(crate) fn shows_tags(meta: &Meta, params: &Params<'_>) -> Result<bool> {
    let mut shows = false;
    for (key, value) in params {
        match key.as_ref() {
            "tags" if meta.shows_tags() => match value.as_ref() {
                "true" => shows = true,
                "false" => {}
                _ => return Err(Error::field("tags", "must be true or false")),
            },
            "field" if meta.tagged() => shows |= value.split(',').any(|name| name.trim() == "metadata"),
            _ => {}
        }
    }
    Ok(shows)
}

/// The names of the extra columns and the tags; all of them are no list.
pub(crate) fn with_tags(extra: Option<Vec<String>>) -> Option<Vec<String>> {
    extra.map(|mut names| {
        names.push("metadata".to_owned());
        names
    })
}

fn named(
    meta: &Meta,
    params: &Params<'_>,
    visible: u64,
    parameter: &str,
) -> Result<Option<(u64, Vec<String>)>> {
    let mut found: Option<(u64, Vec<String>)> = None;
    for (_, value) in params.iter().filter(|(key, _)| key == parameter) {
        let (mask, extra) = found.get_or_insert_default();
        for name in value.split(',').map(str::trim) {
            match meta.fields().iter().position(|f| f.name == name) {
                Some(i) if visible >> i & 1 == 1 => *mask |= 1 << i,
                _ if meta.extra().iter().any(|(n, _)| *n == name) => extra.push(name.to_owned()),
                _ => {
                    let text = format!("{name:?} is not a field of {}", meta.keyword());
                    return Err(Error::field(parameter, text));
                }
            }
        }
    }
    Ok(found)
}
