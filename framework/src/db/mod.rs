//! Connections, transactions and migrations: one small face, *run this
//! closure with a connection, to read or to write, and give me its result*.
//! What differs between the databases lives here and nowhere else.
//!
//! SQLite: all writes go through one writer thread that commits in groups;
//! bounded reads run inline on a connection of the calling thread, unbounded
//! ones on a few reader threads. PostgreSQL: a pool, and as many threads as it
//! has connections. Never inline, since a round trip would stall a worker.
//! MySQL and MariaDB: as PostgreSQL.

mod checkout;
mod connection;
pub(crate) mod glance;
mod group;
mod migrate;
#[cfg(feature = "mysql")]
mod mysql;
mod part;
mod pool;
#[cfg(feature = "mysql")]
mod portable;
mod queues;
mod schema;
mod sql;
mod value;
mod writer;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::{InstrumentationEvent, SimpleConnection};
use diesel::prelude::*;

use crate::worker::{Report, Reporter};
use crate::{Error, Result};

pub(crate) use group::OneRow;
use group::Work;

pub(crate) use checkout::{MYSQL_LOCK, lock_key, lock_row};
pub use connection::{AnyConnection, Dialect, MultiBackend, MultiRow};
pub use migrate::{MigrationSet, define, pending, revert, run as migrate};
pub(crate) use part::{begin_part, end_part};
pub use schema::differences;
pub(crate) use sql::execute_fixed;
pub use sql::{FromRow, Sql, each, execute, load, load_one};
pub use value::{Column, ColumnType, RowReader, Value};

/// Where the data is.
#[derive(Debug, Clone)]
pub enum DatabaseUrl {
    /// A file.
    Sqlite(PathBuf),
    /// A libpq connection string or URL.
    Postgres(String),
    /// `mysql://USER:PASSWORD@HOST/DATABASE`, for MySQL and MariaDB; only
    /// with the cargo feature `mysql`.
    Mysql(String),
}

impl std::str::FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(url: &str) -> std::result::Result<Self, String> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres(url.to_owned()));
        }
        if url.starts_with("mysql://") {
            return if cfg!(feature = "mysql") {
                Ok(Self::Mysql(url.to_owned()))
            } else {
                Err("this program was built without MySQL: build it with `--features mysql`".to_owned())
            };
        }
        match url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) {
            Some(path) if !path.is_empty() && path != ":memory:" => Ok(Self::Sqlite(PathBuf::from(path))),
            _ => Err("must be sqlite://PATH, postgres://USER:PASSWORD@HOST/DATABASE or mysql://…".to_owned()),
        }
    }
}

impl DatabaseUrl {
    /// Without the password, for the log.
    #[must_use]
    pub fn redacted(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite://{}", path.display()),
            Self::Postgres(url) | Self::Mysql(url) => match (url.split_once("://"), url.rsplit_once('@')) {
                (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
                (Some((scheme, _)), None) => format!("{scheme}://***"),
                _ => "postgres://***".to_owned(),
            },
        }
    }
}

/// How much of the database's time a read may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Bounded by construction: by key, or an indexed page with a limit.
    Bounded,
    /// May walk a whole table: a search, a count, an order without an index.
    Unbounded,
}

/// What a job gave, and what it cost.
#[derive(Debug)]
pub struct Done<R> {
    /// What the closure returned.
    pub value: R,
    /// Statements sent, transaction control not counted.
    pub statements: u32,
    /// Time in the closure with the connection.
    pub time: Duration,
}

/// Sizes of what a [`Db`] keeps.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Connections (and threads) to PostgreSQL or MySQL.
    pub pool: u32,
    /// Threads for unbounded reads of SQLite.
    pub readers: u32,
    /// Jobs that may wait; beyond it the answer is 503.
    pub queue: usize,
    /// Most writes in one commit; 1 has each commit for itself.
    pub group: usize,
    /// The longest that a statement may take, where the database can bound it.
    pub statement_timeout: Duration,
}

impl Default for Options {
    /// 16 connections are near the best rate beside the database; four SQLite
    /// readers keep long scans off the workers.
    fn default() -> Self {
        Self {
            pool: 16,
            readers: 4,
            queue: 4096,
            group: group::GROUP,
            statement_timeout: Duration::from_secs(60),
        }
    }
}

/// A handle to the database; clones share it.
#[derive(Clone)]
pub struct Db(Arc<Shared>);

struct Shared {
    dialect: Dialect,
    url: DatabaseUrl,
    /// Tells connections of this database from those of another in the same
    /// process (tests open several).
    serial: u64,
    sqlite: Option<PathBuf>,
    pool: pool::Threads,
    writer: Option<writer::Writer>,
    /// The task engine's own connections to a server.
    engine: std::sync::OnceLock<pool::Threads>,
}

impl Reporter for Shared {
    fn reports(&self) -> Vec<Report> {
        let writer = self.writer.as_ref().map(writer::Writer::report);
        writer.into_iter().chain([self.pool.report()]).collect()
    }
}

/// A class lock, taken before the transaction's first statement.
#[derive(Debug, Clone)]
pub struct Lock {
    /// What is locked.
    pub name: String,
    /// Whether the transaction will want the caches' generation, which then
    /// comes with the lock.
    pub fenced: bool,
}

/// What to do once a transaction is on disk.
type Hook = Box<dyn FnOnce() + Send>;

thread_local! {
    static AFTER_COMMIT: RefCell<Vec<Hook>> = const { RefCell::new(Vec::new()) };
    static GENERATION: Cell<Option<i64>> = const { Cell::new(None) };
    /// Whether the running transaction has raised it, which may yet be undone.
    static RAISED: Cell<bool> = const { Cell::new(false) };
    static STATEMENTS: Cell<u32> = const { Cell::new(0) };
    /// Whether the running transaction lost a deadlock.
    static DOOMED: Cell<bool> = const { Cell::new(false) };
    static INLINE: RefCell<Option<(u64, AnyConnection)>> = const { RefCell::new(None) };
}

/// Counts every statement that diesel starts on this thread. Transaction
/// control runs outside of [`measure`], so it is never seen in a count.
fn counting() -> Option<Box<dyn diesel::connection::Instrumentation>> {
    Some(Box::new(|event: InstrumentationEvent<'_>| {
        if let InstrumentationEvent::StartQuery { .. } = event {
            glance::observe();
            STATEMENTS.set(STATEMENTS.get().wrapping_add(1));
        }
    }))
}

/// Remembers something to do once the running job's transaction is on disk
/// and before its answer goes out: caches to drop, workers to wake.
pub fn after_commit(hook: impl FnOnce() + Send + 'static) {
    AFTER_COMMIT.with_borrow_mut(|hooks| hooks.push(Box::new(hook)));
}

fn take_hooks() -> Vec<Hook> {
    AFTER_COMMIT.take()
}

/// The caches' generation as the running transaction began, where it was
/// read along.
#[must_use]
pub fn generation() -> Option<i64> {
    GENERATION.get()
}

/// Forgets what the caches' generation was: this transaction has raised it.
pub(crate) fn raised_generation() {
    GENERATION.set(None);
    RAISED.set(true);
}

/// Whether what the running transaction reads is as of a generation that
/// stands, and not of one that may be undone and given to something else.
pub(crate) fn is_generation_settled() -> bool {
    !RAISED.get()
}

/// Forgets what this thread knew of the transaction before.
fn begin_anew() {
    GENERATION.set(None);
    RAISED.set(false);
    DOOMED.set(false);
}

/// Sets what [`generation`] says for the rest of the transaction.
pub fn set_generation(generation: Option<i64>) {
    GENERATION.set(generation);
}

pub(crate) const READ_GENERATION: &str = "SELECT \"generation\" FROM \"cache_generation\"";

fn measure<R>(f: impl FnOnce() -> Result<R>) -> Result<Done<R>> {
    let (before, start) = (STATEMENTS.get(), Instant::now());
    let value = f()?;
    Ok(Done { value, statements: STATEMENTS.get().wrapping_sub(before), time: start.elapsed() })
}

/// What every SQLite connection is set to. `FULL`: what was answered is on
/// disk, group commit pays for it.
const SQLITE_PRAGMAS: &str = "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; \
     PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -4000; \
     PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864; PRAGMA temp_store = MEMORY;";

/// Makes the file and its folder, for this user only: the key of the tokens
/// and everybody's password hashes are in it.
fn private_file(path: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Error::internal)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(path).map_err(Error::internal)?;
    Ok(())
}

/// Has SQLite take no lock at each of its calls, which come by the hundred in
/// a request: a connection is a `&mut` of one thread at a time. Nor does it
/// keep count of its memory, under one lock for all threads.
fn quick_sqlite() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        #[expect(unsafe_code, reason = "SQLite's settings of the process are made by its own call only")]
        // SAFETY: both are called with the arguments that they document. If
        // SQLite runs already, they change nothing and say so.
        unsafe {
            libsqlite3_sys::sqlite3_config(libsqlite3_sys::SQLITE_CONFIG_MULTITHREAD);
            libsqlite3_sys::sqlite3_config(libsqlite3_sys::SQLITE_CONFIG_MEMSTATUS, 0);
        }
    });
}

fn connect_sqlite(path: &Path, write: bool) -> Result<AnyConnection> {
    let text = path.to_str().ok_or_else(|| Error::internal("the database's path is not UTF-8"))?;
    quick_sqlite();
    let mut conn = diesel::SqliteConnection::establish(text).map_err(Error::internal)?;
    conn.batch_execute(SQLITE_PRAGMAS)?;
    if !write {
        conn.batch_execute("PRAGMA query_only = ON")?;
    }
    Ok(AnyConnection::Sqlite(conn))
}

impl Db {
    /// Opens the database and starts its threads.
    ///
    /// # Errors
    /// When it cannot be reached or created.
    pub fn open(url: &DatabaseUrl, options: Options) -> Result<Self> {
        static SERIAL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let _ = diesel::connection::set_default_instrumentation(counting);
        let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let shared = match url {
            DatabaseUrl::Sqlite(path) => {
                private_file(path)?;
                // The writer first: it creates the file and switches to WAL.
                let writer = writer::Writer::start(connect_sqlite(path, true)?, options)?;
                Shared {
                    dialect: Dialect::Sqlite,
                    serial,
                    sqlite: Some(path.clone()),
                    pool: pool::Threads::sqlite(path, options)?,
                    writer: Some(writer),
                    url: url.clone(),
                    engine: std::sync::OnceLock::new(),
                }
            }
            DatabaseUrl::Postgres(server) => Shared {
                dialect: Dialect::Postgres,
                serial,
                sqlite: None,
                pool: pool::Threads::postgres(server, options)?,
                writer: None,
                url: url.clone(),
                engine: std::sync::OnceLock::new(),
            },
            #[cfg(feature = "mysql")]
            DatabaseUrl::Mysql(server) => Shared {
                dialect: Dialect::Mysql,
                serial,
                sqlite: None,
                pool: pool::Threads::mysql(server, options)?,
                writer: None,
                url: url.clone(),
                engine: std::sync::OnceLock::new(),
            },
            #[cfg(not(feature = "mysql"))]
            DatabaseUrl::Mysql(_) => return Err(Error::internal("built without the feature mysql")),
        };
        let shared = Arc::new(shared);
        crate::worker::register(&shared);
        Ok(Self(shared))
    }

    /// Which database this is.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.0.dialect
    }

    /// Where PostgreSQL is, if it is that.
    pub(crate) fn postgres_url(&self) -> Option<&str> {
        match &self.0.url {
            DatabaseUrl::Postgres(url) => Some(url),
            DatabaseUrl::Sqlite(_) | DatabaseUrl::Mysql(_) => None,
        }
    }

    /// A connection beside those of the pool: for what must not be in any
    /// transaction and is rare.
    pub(crate) fn apart(&self) -> Result<AnyConnection> {
        migrate::connect(&self.0.url)
    }

    /// Jobs that wait for a connection now: for the metrics.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.pool.waiting() + self.0.writer.as_ref().map_or(0, writer::Writer::waiting)
    }

    /// Runs a read. It may run twice, if the first connection turns out broken.
    ///
    /// # Errors
    /// What the closure returns, or 503 when the queue is full.
    pub async fn read<R, F>(&self, cost: Cost, f: F) -> Result<Done<R>>
    where
        R: Send + 'static,
        F: Fn(&mut AnyConnection) -> Result<R> + Send + 'static,
    {
        match (&self.0.sqlite, cost) {
            (Some(path), Cost::Bounded) => self.inline(path, f),
            _ => self.0.pool.read(f).await,
        }
    }

    /// Runs a read inline on the calling thread; only for SQLite, whose
    /// bounded reads take microseconds.
    fn inline<R>(&self, path: &Path, f: impl Fn(&mut AnyConnection) -> Result<R>) -> Result<Done<R>> {
        INLINE.with_borrow_mut(|slot| {
            if slot.as_ref().is_none_or(|(serial, _)| *serial != self.0.serial) {
                *slot = Some((self.0.serial, connect_sqlite(path, false)?));
            }
            match slot {
                Some((_, conn)) => {
                    begin_anew();
                    measure(|| f(conn))
                }
                None => Err(Error::internal("no inline connection")),
            }
        })
    }

    /// Runs a write in a transaction of its own, which commits when the
    /// closure returns `Ok`. `lock` names a class lock to take first.
    ///
    /// # Errors
    /// What the closure returns (then nothing is written), or 503.
    pub async fn write<R, F>(&self, lock: Option<Lock>, f: F) -> Result<Done<R>>
    where
        R: Send + 'static,
        F: FnOnce(&mut AnyConnection) -> Result<R> + Send + 'static,
    {
        self.run(lock, group::once(f)).await
    }

    /// [`Db::write`] of something that can be done again after it was undone:
    /// it may run twice, which spares it a savepoint of its own.
    /// `of`: it is of this row, which it reads first.
    ///
    /// # Errors
    /// What the closure returns (then nothing is written), or 503.
    pub(crate) async fn write_repeatable<R, F>(
        &self,
        lock: Option<Lock>,
        of: Option<OneRow>,
        f: F,
    ) -> Result<Done<R>>
    where
        R: Send + 'static,
        F: FnMut(&mut AnyConnection) -> Result<R> + Send + 'static,
    {
        self.run(lock, Work::repeatable(f, of)).await
    }

    async fn run<R, F>(&self, lock: Option<Lock>, work: Work<F>) -> Result<Done<R>>
    where
        R: Send + 'static,
        F: FnMut(&mut AnyConnection) -> Result<R> + Send + 'static,
    {
        match &self.0.writer {
            // One writer is every lock there is.
            Some(writer) => writer.write(work).await,
            None => self.0.pool.write(lock, work).await,
        }
    }

    /// Gives the task engine connections of its own on a server: what keeps
    /// leases alive must not wait behind requests, and its statements are
    /// planned in their own way.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub(crate) fn open_engine(&self) -> Result<()> {
        if self.0.engine.get().is_some() {
            return Ok(());
        }
        let threads = match &self.0.url {
            DatabaseUrl::Postgres(url) => pool::Threads::engine(url)?,
            DatabaseUrl::Sqlite(_) | DatabaseUrl::Mysql(_) => return Ok(()),
        };
        // Another worker of this process may have been quicker.
        let _ = self.0.engine.set(threads);
        Ok(())
    }

    /// [`Db::write`] on the task engine's own connections.
    ///
    /// # Errors
    /// As [`Db::write`].
    pub(crate) async fn write_engine<R, F>(&self, f: F) -> Result<Done<R>>
    where
        R: Send + 'static,
        F: FnOnce(&mut AnyConnection) -> Result<R> + Send + 'static,
    {
        match self.0.engine.get() {
            Some(threads) => threads.write(None, group::once(f)).await,
            None => self.write(None, f).await,
        }
    }

    /// [`Db::write_engine`] for threads that may block.
    ///
    /// # Errors
    /// As [`Db::write`].
    pub(crate) fn write_engine_blocking<R, F>(&self, f: F) -> Result<R>
    where
        R: Send + 'static,
        F: FnOnce(&mut AnyConnection) -> Result<R> + Send + 'static,
    {
        block_on(self.write_engine(f)).map(|done| done.value)
    }

    /// [`Db::write`] for threads that may block: start-up and tests.
    ///
    /// # Errors
    /// As [`Db::write`].
    pub fn write_blocking<R, F>(&self, f: F) -> Result<R>
    where
        R: Send + 'static,
        F: FnOnce(&mut AnyConnection) -> Result<R> + Send + 'static,
    {
        block_on(self.write(None, f)).map(|done| done.value)
    }

    /// [`Db::read`] for threads that may block.
    ///
    /// # Errors
    /// As [`Db::read`].
    pub fn read_blocking<R, F>(&self, f: F) -> Result<R>
    where
        R: Send + 'static,
        F: Fn(&mut AnyConnection) -> Result<R> + Send + 'static,
    {
        block_on(self.read(Cost::Bounded, f)).map(|done| done.value)
    }
}

/// Waits for a future on a thread that is no async one.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

/// Runs a closure of ours, turning a panic in it into an error: one bad hook
/// must not end the thread that everybody's requests go through.
pub(crate) fn guarded<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
        Ok(result) => result,
        Err(panic) if glance::is_ours(panic.as_ref()) => std::panic::resume_unwind(panic),
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(ToString::to_string)
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_owned());
            Err(Error::internal(format!("panic: {text}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_the_database_or_what_is_missing() {
        let parse = |url: &str| url.parse::<DatabaseUrl>();
        assert!(matches!(parse("sqlite://a/b"), Ok(DatabaseUrl::Sqlite(_))));
        assert!(matches!(parse("postgres://u:p@h/d"), Ok(DatabaseUrl::Postgres(_))));
        assert!(parse("oracle://h/d").unwrap_err().contains("sqlite://PATH"));
        if cfg!(feature = "mysql") {
            assert_eq!(parse("mysql://u:p@h/d").unwrap().redacted(), "mysql://***@h/d");
        } else {
            assert!(parse("mysql://u:p@h/d").unwrap_err().contains("--features mysql"));
        }
    }

    #[test]
    fn each_dialect_inserts_or_updates_in_its_own_way() {
        let all = [Dialect::Sqlite, Dialect::Postgres, Dialect::Mysql];
        let [sqlite, postgres, mysql] = all.map(|it| it.or_update("\"id\"", &["a", "b"]));
        assert_eq!(sqlite, postgres);
        assert!(sqlite.ends_with("SET \"a\" = excluded.\"a\", \"b\" = excluded.\"b\""));
        assert!(mysql.ends_with("UPDATE \"a\" = VALUES(\"a\"), \"b\" = VALUES(\"b\")"));
    }
}
