//! What the tasks of the proofs work on, and what they leave behind.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use podyard::Core;
use podyard::db::{self, Cost, Sql};
use podyard::prelude::*;
use podyard::task::Task;

/// A thing to work on.
#[derive(Debug, Clone, Resource)]
#[resource(keyword = "thing", plural = "things")]
pub struct Thing {
    /// The base.
    pub base: StatusBase,
    /// How often it was changed.
    #[field(list = "user")]
    pub count: i64,
}

impl Manager for Thing {}
impl Model for Thing {}

pub const TABLES: &str = "CREATE TABLE things (id TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, \
     created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL, \
     status TEXT NOT NULL, status_reason TEXT NOT NULL, count BIGINT NOT NULL); \
     CREATE TABLE effects (obj_id TEXT NOT NULL, task_id TEXT NOT NULL, n BIGINT NOT NULL, place BIGINT NOT NULL); \
     CREATE INDEX effects_obj ON effects (obj_id);";

/// Leaves a mark: the object is locked, so its marks have an order.
pub fn mark(tx: &mut Tx<'_>, thing: &mut Thing, task: &str, n: i64) -> Result<()> {
    thing.count += 1;
    tx.save(thing)?;
    let mut sql = Sql::new("INSERT INTO effects (obj_id, task_id, n, place) VALUES (").value(&thing.id);
    sql.push(", ").bind(task).push(", ").bind(n).push(", ").bind(thing.count).push(")");
    db::execute(tx.conn, &sql)?;
    Ok(())
}

/// The marks on an object, in order.
pub async fn marks(core: &Arc<Core>, id: &str) -> Vec<i64> {
    let id = id.to_owned();
    let read = move |conn: &mut db::AnyConnection| {
        let sql = Sql::new("SELECT n FROM effects WHERE obj_id = ").value(id.clone());
        db::load::<(i64,)>(conn, sql.text(" ORDER BY place"))
    };
    let rows = core.db.read(Cost::Unbounded, read).await.unwrap().value;
    rows.into_iter().map(|(n,)| n).collect()
}

/// All tasks, the oldest first.
pub async fn tasks(core: &Arc<Core>) -> Vec<Task> {
    let read = |tx: &mut Tx<'_>| Task::select().unscoped().order("created_at", false).rows(tx);
    Ctx::system(core).read(Cost::Unbounded, read).await.unwrap().value
}

/// A thing of that name; the same one, if it is there already.
pub fn thing(tx: &mut Tx<'_>, name: &str) -> Result<Thing> {
    if let Some(found) = Thing::select().unscoped().eq("name", name.to_owned()).one(tx)? {
        return Ok(found);
    }
    let mut row = Thing::from_create(&ThingCreate::default());
    row.name = name.into();
    tx.create(row)
}

/// Stages inside of an object now, and the most there ever were.
static INSIDE: LazyLock<Mutex<HashMap<String, (usize, usize)>>> = LazyLock::new(Mutex::default);

/// A stage at work on an object.
pub struct Inside(String);

impl Inside {
    pub fn enter(id: &str) -> Self {
        let mut all = INSIDE.lock().unwrap();
        let entry = all.entry(id.to_owned()).or_default();
        entry.0 += 1;
        entry.1 = entry.1.max(entry.0);
        Self(id.to_owned())
    }

    pub fn most(id: &str) -> usize {
        INSIDE.lock().unwrap().get(id).map_or(0, |it| it.1)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.lock().unwrap().get_mut(&self.0).unwrap().0 -= 1;
    }
}
