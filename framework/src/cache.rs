//! Small tables kept in memory (templates, sizes), never stale: every write to
//! one raises a generation in its own transaction, and whoever uses a cache
//! compares the generation that its own transaction read along. That holds
//! over processes too, and costs no statement where the read carries it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;
use crate::ctx::Tx;
use crate::db::{self, Sql};
use crate::model::Record;

/// All rows of a cached type by id.
pub type Rows<T> = HashMap<String, Arc<T>>;

/// The rows of one type and the generation that they are of.
type Cached = (i64, Arc<dyn Any + Send + Sync>);

/// The caches of a process.
#[derive(Default)]
pub struct Caches(Mutex<HashMap<TypeId, Cached>>);

impl Caches {
    fn get<T: Record>(&self, generation: i64) -> Option<Arc<Rows<T>>> {
        let caches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, rows) = caches.get(&TypeId::of::<T>())?;
        (*of == generation).then(|| rows.clone().downcast().ok()).flatten()
    }

    fn put<T: Record>(&self, generation: i64, rows: Arc<Rows<T>>) {
        let mut caches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A slow reader must not put back what a faster one has replaced.
        if caches.get(&TypeId::of::<T>()).is_none_or(|(of, _)| *of <= generation) {
            caches.insert(TypeId::of::<T>(), (generation, rows));
        }
    }
}

impl Tx<'_> {
    /// All rows of a cached type, as of this transaction.
    ///
    /// # Errors
    /// What the database says.
    pub fn cached<T: Record>(&mut self) -> Result<Arc<Rows<T>>> {
        let generation = match &self.written {
            None => Some(self.generation()?),
            // What this transaction wrote itself nobody else may see yet; the
            // other types are as they were before.
            Some(written) if written.types.contains(&TypeId::of::<T>()) => None,
            Some(written) => written.generation,
        };
        if let Some(generation) = generation
            && let Some(rows) = self.ctx.core().caches.get::<T>(generation)
        {
            return Ok(rows);
        }
        let rows = T::select().unscoped().rows(self)?;
        let rows: Rows<T> =
            rows.into_iter().map(|row| (row.base().anon().id.clone(), Arc::new(row))).collect();
        let rows = Arc::new(rows);
        if let (Some(generation), None) = (generation, &self.written)
            && db::is_generation_settled()
        {
            self.ctx.core().caches.put(generation, rows.clone());
        }
        Ok(rows)
    }

    /// The caches' generation, or −1 where this transaction changes it.
    pub(crate) fn cache_generation(&mut self) -> Result<i64> {
        if self.written.is_some() { Ok(-1) } else { self.generation() }
    }

    fn generation(&mut self) -> Result<i64> {
        if let Some(generation) = db::generation() {
            return Ok(generation);
        }
        let row = db::load_one::<(i64,)>(self.conn, Sql::new(db::READ_GENERATION))?;
        let generation = row.map_or(0, |(it,)| it);
        db::set_generation(Some(generation));
        Ok(generation)
    }

    /// Makes every cache stale, once this transaction commits.
    pub(crate) fn bump_generation<T: Record>(&mut self) -> Result<()> {
        let sql = Sql::new("UPDATE \"cache_generation\" SET \"generation\" = \"generation\" + 1");
        db::execute(self.conn, &sql)?;
        let written =
            self.written.get_or_insert_with(|| Written { generation: db::generation(), types: Vec::new() });
        written.types.push(TypeId::of::<T>());
        // Whoever comes next in this group of writes reads it anew, and keeps
        // nothing of it: the group may be undone, and the number given again.
        db::raised_generation();
        Ok(())
    }
}

/// What a transaction did to cached types.
#[derive(Clone)]
pub(crate) struct Written {
    /// The generation before, if it was known.
    generation: Option<i64>,
    /// The types that it wrote to.
    types: Vec<TypeId>,
}
