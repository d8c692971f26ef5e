//! What changes are to one caller: the rows as they are now, through the list
//! conditions and the mask of that caller.

use std::collections::{HashMap, HashSet};

use super::{Change, Position};
use crate::Result;
use crate::auth::UserCred;
use crate::ctx::Tx;
use crate::dispatch::{describe, narrow, visible, write_row};
use crate::model::{Extra, JsonObject, Manager, Meta};
use crate::oplog::CREATE;
use crate::owner;
use crate::query::{ListRequest, Marked, Owner, Select, owner_of};

/// A list, or one row, that somebody watches.
pub struct Watched {
    pub(crate) request: ListRequest,
    /// The one row.
    pub(crate) only: Option<String>,
}

/// What is told of one row.
#[derive(Debug)]
pub struct Told {
    pub(crate) event: &'static str,
    pub(crate) id: String,
    pub(crate) at: Option<Position>,
    /// `{"<keyword>": {…}, …}`.
    pub(crate) data: Vec<u8>,
}

/// Rows of a piece.
pub(crate) const PIECE: i64 = 200;

/// Whether a change is one of the caller's rows, as far as its record tells.
enum Owned {
    Yes,
    No,
    /// The type's owner is not in the record.
    Unknown,
}

fn owned(meta: &Meta, cred: &UserCred, change: &Change) -> Owned {
    let Owner::Of(column, value) = owner_of(meta, cred) else { return Owned::Yes };
    let owner = match column {
        "domain_id" => &change.owner_domain_id,
        "project_id" => &change.owner_project_id,
        _ => &change.owner_user_id,
    };
    match () {
        () if owner.is_empty() => Owned::Unknown,
        () if *owner == value => Owned::Yes,
        () => Owned::No,
    }
}

impl Watched {
    /// The newest change of each row that may concern the caller, in the order
    /// of the feed, and whether the row began in this batch.
    pub(crate) fn pick<'a>(
        &self,
        meta: &Meta,
        cred: &UserCred,
        changes: impl Iterator<Item = &'a Change>,
    ) -> Vec<Change> {
        let mine = |change: &&Change| {
            change.obj_type == meta.keyword()
                && !change.obj_id.is_empty()
                && self.only.as_ref().is_none_or(|id| *id == change.obj_id)
                // Of a row that is shared, the record names the owner only.
                && (meta.shared() || !matches!(owned(meta, cred, change), Owned::No))
        };
        let mut newest: HashMap<&str, (&Change, bool)> = HashMap::new();
        for change in changes.filter(mine) {
            let slot = newest.entry(&change.obj_id).or_insert((change, false));
            *slot = (change, slot.1 || change.action == CREATE);
        }
        let mut picked: Vec<Change> =
            newest.into_values().map(|(change, began)| Change { began, ..change.clone() }).collect();
        picked.sort_by_key(|change| change.at);
        picked
    }

    fn select<T: Manager>(&self, tx: &mut Tx<'_>) -> Result<Select<T>> {
        let mut select = self.request.conditions::<T>(tx)?;
        narrow(tx, &mut select)?;
        Ok(match &self.only {
            Some(id) => select.eq("id", id.clone()),
            None => select,
        })
    }

    /// What a page adds to its rows.
    fn extra<T: Manager>(&self, tx: &mut Tx<'_>, rows: &[T]) -> Result<Vec<Extra>> {
        let mut extra = vec![Extra::default(); rows.len()];
        if !rows.is_empty() && self.request.extra.as_ref().is_none_or(|names| !names.is_empty()) {
            describe(tx, rows, &mut extra)?;
        }
        Ok(extra)
    }

    fn object<T: Manager>(&self, row: &T, extra: &Extra, action: Option<&str>) -> Vec<u8> {
        let mut data = Vec::with_capacity(768);
        JsonObject::open(&mut data, 0).raw(T::meta().keyword());
        write_row(&mut data, row, self.request.mask, extra, self.request.extra.as_deref());
        close(data, action, row.base().anon().version)
    }
}

fn close(mut data: Vec<u8>, action: Option<&str>, version: i64) -> Vec<u8> {
    let mut rest = JsonObject::resume(&mut data);
    if let Some(action) = action {
        rest.member("action", action);
    }
    rest.member("version", &version);
    rest.close();
    data
}

/// The rows as they are now, by id, a piece after another.
pub(crate) fn existing<T: Manager>(tx: &mut Tx<'_>, watched: &Watched, after: &str) -> Result<Vec<Told>> {
    let select = watched.select::<T>(tx)?.after_id(after).order("id", false).limit(PIECE);
    let rows = select.rows(tx)?;
    let extra = watched.extra(tx, &rows)?;
    let told = rows.iter().zip(&extra).map(|(row, extra)| Told {
        event: "existing",
        id: row.base().anon().id.clone(),
        at: None,
        data: watched.object(row, extra, None),
    });
    Ok(told.collect())
}

/// What picked changes are to the caller. One statement, and one or two more
/// where rows are not in the list any more.
pub(crate) fn changed<T: Manager>(
    tx: &mut Tx<'_>,
    watched: &Watched,
    changes: &[Change],
) -> Result<Vec<Told>> {
    let ids = changes.iter().map(|change| change.obj_id.clone());
    let rows = watched.select::<T>(tx)?.is_in("id", ids).rows(tx)?;
    let extra = watched.extra(tx, &rows)?;
    let found: HashMap<&str, (&T, &Extra)> =
        rows.iter().zip(&extra).map(|(row, extra)| (row.base().anon().id.as_str(), (row, extra))).collect();
    let missing: Vec<&Change> =
        changes.iter().filter(|change| !found.contains_key(change.obj_id.as_str())).collect();
    let gone = gone::<T>(tx, &missing)?;
    let mut told = Vec::with_capacity(changes.len());
    for change in changes {
        let (event, data) = match found.get(change.obj_id.as_str()) {
            Some((row, extra)) => {
                let event = if change.began { "created" } else { "updated" };
                (event, watched.object(*row, extra, Some(&change.action)))
            }
            None if gone.contains(&change.obj_id) => ("deleted", ended(T::meta(), change)),
            None => continue,
        };
        told.push(Told { event, id: change.obj_id.clone(), at: Some(change.at), data });
    }
    Ok(told)
}

/// Id and name: the row is not the caller's to see any more.
fn ended(meta: &Meta, change: &Change) -> Vec<u8> {
    let mut data = Vec::with_capacity(192);
    JsonObject::open(&mut data, 0).raw(meta.keyword());
    let mut object = JsonObject::open(&mut data, 0);
    object.member("id", &change.obj_id);
    if meta.has("name") {
        object.member("name", &change.obj_name);
    }
    object.close();
    close(data, Some(&change.action), change.version)
}

/// Which of the rows that the list has not (or not any more) are known to be
/// the caller's: they were deleted, or left the filter.
fn gone<T: Manager>(tx: &mut Tx<'_>, missing: &[&Change]) -> Result<HashSet<String>> {
    let meta = T::meta();
    let (mut mine, mut maybe) = (Vec::new(), Vec::new());
    for change in missing {
        match owned(meta, tx.cred(), change) {
            Owned::Yes => mine.push(*change),
            Owned::No if meta.shared() => maybe.push(*change),
            Owned::No | Owned::Unknown => {}
        }
    }
    if mine.is_empty() && maybe.is_empty() {
        return Ok(HashSet::new());
    }
    let ids = |of: &[&Change]| -> Vec<String> { of.iter().map(|it| it.obj_id.clone()).collect() };
    // Those that the caller may see, wherever they went: deleted, into the trash, out of the filter.
    // Also those that are not below the path (any more).
    let mut select = Select::<T>::new().with_deleted().pending(Marked::Any);
    visible(tx, &mut select)?;
    let rows = select.is_in("id", [ids(&mine), ids(&maybe)].concat()).rows(tx)?;
    let mut gone: HashSet<String> = rows.iter().map(|row| row.base().anon().id.clone()).collect();
    let rest: Vec<&Change> = mine.into_iter().filter(|it| !gone.contains(&it.obj_id)).collect();
    if rest.is_empty() {
        return Ok(gone);
    }
    // The others are hidden from the caller, given to somebody else, or gone for
    // good. Nothing of the caller's is left to ask, so they are told only where
    // the list hides nothing else.
    let any = Select::<T>::new().unscoped().with_deleted().pending(Marked::Any);
    let rows = any.is_in("id", ids(&rest)).rows(tx)?;
    let hidden: HashSet<&str> = rows
        .iter()
        .filter(|row| owner::owns(meta, row.base(), tx.cred()))
        .map(|row| row.base().anon().id.as_str())
        .collect();
    let mut filter = Select::<T>::new();
    visible(tx, &mut filter)?;
    for change in rest {
        let left = !hidden.contains(change.obj_id.as_str());
        if left && filter.admits(&change.obj_id) {
            gone.insert(change.obj_id.clone());
        }
    }
    Ok(gone)
}
