//! What needs a look at what is there: declarative apply (create, or update
//! what differs, by name) and copy.

use std::borrow::Cow;

use super::any_row::Typed;
use super::pipeline::{change, check_references, create, find, reply};
use super::{Reply, Shown, batch, merge};
use crate::auth::Access;
use crate::ctx::{Tx, values};
use crate::model::{Entries, Input as _, JsonObject, Manager, Mode, Scope};
use crate::query::Select;
use crate::webhook::expect_admitted;
use crate::{Error, FieldError, Kind, Result, policy, tags};

/// The caller's own rows, whatever their rank lets them see besides: those
/// among which a name is theirs to give.
fn own<T: Manager>(tx: &mut Tx<'_>) -> Result<Select<T>> {
    let cred = tx.cred();
    let select = T::select().unscoped();
    let mut select = match T::meta().source.scope {
        Scope::All => select,
        Scope::Domain => select.eq("domain_id", cred.domain_id.clone()),
        Scope::Project => select.eq("project_id", cred.project_id.clone()),
        Scope::User => select.eq("user_id", cred.user_id.clone()),
    };
    T::list_item_filter(tx, &mut select)?;
    Ok(select)
}

pub(super) fn apply<T: Manager>(tx: &mut Tx<'_>, body: &[u8]) -> Result<Reply> {
    let meta = T::meta();
    let require = |tx: &Tx<'_>, rank: Access, verb: &str| {
        policy::require(tx.cred(), rank, &format!("to {verb} {}", meta.plural()))
    };
    if !meta.has("name") {
        let text = format!("{} have no names to be found by", meta.plural());
        return Err(Error::new(Kind::NotFound, text).class("ActionNotFoundError"));
    }
    let entries = crate::model::entries(body, meta.keyword(), meta.plural())?;
    let name = entries.iter().find(|(key, _)| key == "name").map(|(_, value)| value);
    let name = name.ok_or_else(|| Error::field("name", "is required"))?;
    let name: String = crate::model::parse_value(name).map_err(|text| Error::field("name", text))?;
    let mut found = own::<T>(tx)?.eq("name", name.clone()).limit(2).for_update().rows(tx)?;
    if found.len() > 1 {
        let text = format!("several {} are named {name}", meta.plural());
        return Err(Error::conflict(text).class("AmbiguousNameError"));
    }
    let Some(mut row) = found.pop() else {
        require(tx, meta.source.verbs.create, "create")?;
        return create::<T>(tx, body);
    };
    require(tx, meta.source.verbs.update, "update")?;
    expect_admitted(tx, meta, "update")?;
    tx.remember(&row);
    let mut entries = entries;
    let tags = tags::take(tx, meta, &mut entries)?;
    // What is there already passes, even where a rule has become stricter since.
    let changed = merge::without_unchanged(tx, &row, &entries)?;
    let changes = differences(&row, &changed, tx.level())?;
    if !changes.is_empty() {
        let mut input = T::Update::default();
        crate::model::fill(meta, &changes, tx.level(), Mode::Update, &mut input)?;
        check_references(tx, meta, &changes, &mut Vec::new())?;
        change(tx, &mut row, &mut input, "update")?;
    }
    tags::set(&mut Typed(&mut row), tx, tags)?;
    reply(tx, &row, &Shown::default())
}

/// The members of a body that are not as the row has them. What is an input
/// only (a password) has nothing to be compared with and is passed over.
fn differences<'a, T: Manager>(row: &T, entries: &Entries<'a>, level: Access) -> Result<Entries<'a>> {
    let meta = T::meta();
    let (mut update, mut created) = (T::Update::default(), T::Create::default());
    let mut wrong = Vec::new();
    for (key, value) in entries {
        let field = meta.field(key);
        let set = match field {
            None => Ok(false),
            Some(f) if !f.update.allows(level) && !f.create.access.allows(level) => {
                Err("cannot be given".into())
            }
            Some(f) if f.update == Access::Never => created.set(f.name, value),
            Some(f) => update.set(f.name, value),
        };
        let message = match set {
            Ok(true) => continue,
            Ok(false) => "is not a known field".into(),
            Err(text) => text,
        };
        wrong.push(FieldError { field: key.to_string(), message });
    }
    if !wrong.is_empty() {
        return Err(Error::fields(wrong));
    }
    let (fresh, mut wanted) = (T::from_create(&created), row.clone());
    wanted.apply(&update);
    let (is, asked, given) = (values(row), values(&wanted), values(&fresh));
    let mut changes = Entries::new();
    let mut fixed = Vec::new();
    for (key, value) in entries {
        let Some((at, field)) = meta.stored().enumerate().find(|(_, f)| f.name == key) else { continue };
        if field.update == Access::Never {
            if is[at] != given[at] {
                fixed.push(field.name);
            }
        } else if is[at] != asked[at] {
            changes.push((key.clone(), *value));
        }
    }
    if fixed.is_empty() {
        return Ok(changes);
    }
    let text = format!("{} differs from what is there and cannot be changed", fixed.join(", "));
    let error = Error::conflict(text).class("ImmutableFieldError");
    Err(fixed.into_iter().fold(error, Error::blame))
}

pub(super) fn copy<T: Manager>(tx: &mut Tx<'_>, id: &str, body: &[u8]) -> Result<Reply> {
    let meta = T::meta();
    let level = tx.level();
    let given = crate::model::entries(body, meta.keyword(), meta.plural())?;
    let source = find::<T>(tx, id, false)?;
    // What the caller may both see and give, but for the owners: a copy is the
    // caller's own, unless they say otherwise.
    let owners = ["domain_id", "project_id", "user_id"];
    let owned = source.base().owner().is_some();
    let visible = meta.get_mask(level);
    let may = |(i, f): (usize, &&crate::model::Field)| {
        let owner = owned && owners.contains(&f.name);
        (f.stored && !owner && visible >> i & 1 == 1 && f.create.access.allows(level)).then_some(1_u64 << i)
    };
    let mask = meta.fields().iter().enumerate().filter_map(may).sum();
    let mut out = Vec::with_capacity(512);
    let mut object = JsonObject::open(&mut out, mask);
    source.view(&mut object);
    object.close();
    let own = crate::model::object(std::str::from_utf8(&out).map_err(Error::internal)?)?;
    let name = match source.base().standalone() {
        Some(it) if !given.iter().any(|(key, _)| key == "name") => {
            Some(serde_json::Value::from(free_name::<T>(tx, &it.name)?).to_string())
        }
        _ => None,
    };
    let taken = own.iter().filter(|(key, _)| !given.iter().any(|(other, _)| other == key));
    let members = taken.chain(&given).map(|(key, value)| {
        let value = if key == "name" { name.as_deref() } else { None }.unwrap_or(value.get());
        (key.as_ref(), value)
    });
    let body = batch::joined(members);
    create::<T>(tx, body.as_bytes())
}

/// `<name>-copy`, or `-copy-2` and so on: the first that the caller has not.
fn free_name<T: Manager>(tx: &mut Tx<'_>, name: &str) -> Result<String> {
    const ROUND: usize = 50;
    let most = T::meta().field("name").map_or(128, |f| f.max);
    let nth = |n: usize| {
        let end: Cow<'_, str> = if n == 1 { "-copy".into() } else { format!("-copy-{n}").into() };
        let start: String = name.chars().take(most - end.len()).collect();
        format!("{}{end}", start.trim_end())
    };
    for round in 0..20 {
        let names: Vec<_> = (1..=ROUND).map(|i| nth(round * ROUND + i)).collect();
        let rows = own::<T>(tx)?.is_in("name", names.clone()).rows(tx)?;
        let has =
            |name: &String| rows.iter().any(|r| r.base().standalone().is_some_and(|it| it.name == *name));
        if let Some(free) = names.into_iter().find(|name| !has(name)) {
            return Ok(free);
        }
    }
    Err(Error::conflict(format!("there are 1000 copies of {name} already; give a name")).blame("name"))
}
