//! A PostgreSQL cluster in a temporary folder, and one that all test processes
//! of this machine's user share and that ends when nobody uses it any more.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, PgConnection};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The variable that names a server to use instead of one of our own.
pub const URL_VARIABLE: &str = "PODYARD_TEST_POSTGRES_URL";

/// A shared cluster that nobody has used for so long ends.
const IDLE: Duration = Duration::from_secs(30);

/// A result whose error is a sentence.
pub type Result<T> = std::result::Result<T, String>;

fn text(what: &str) -> impl FnOnce(io::Error) -> String + '_ {
    move |error| format!("{what}: {error}")
}

/// A cluster of our own. It ends, and its folder goes, with this value.
#[derive(Debug)]
pub struct Cluster {
    folder: TempDir,
    port: u16,
    user: Option<(u32, u32)>,
    child: Option<Child>,
}

impl Cluster {
    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// A sentence that says what to install, or what PostgreSQL said.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("podyard-tests-postgres-").tempdir();
        let folder = folder.map_err(text("a temporary folder"))?;
        let user = user()?;
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid)).map_err(text("chown"))?;
        }
        let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|it| it.local_addr());
        let port = free.map_err(text("a free port"))?.port();
        let mut it = Self { folder, port, user, child: None };
        let made = it
            .command("initdb")?
            .args([
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "--pgdata",
            ])
            .arg(it.data())
            .output()
            .map_err(text("initdb"))?;
        if !made.status.success() {
            return Err(format!("initdb: {}", String::from_utf8_lossy(&made.stderr)));
        }
        it.start()?;
        Ok(it)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(program(name)?);
        command.env("LC_ALL", "C").current_dir(self.folder.path()).stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        Ok(command)
    }

    /// Starts it, again on the same port.
    ///
    /// # Errors
    /// What PostgreSQL said.
    pub fn start(&mut self) -> Result<()> {
        let log = self.folder.path().join("log");
        let output = File::options().create(true).append(true).open(&log).map_err(text("the log"))?;
        let mut server = self.command("postgres")?;
        server
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.folder.path())
            .arg("-p")
            .arg(self.port.to_string());
        // The machine is not expected to lose its power during a test.
        for setting in [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "full_page_writes=off",
            "shared_buffers=64MB",
            "max_connections=400",
            "autovacuum_naptime=10min",
        ] {
            server.args(["-c", setting]);
        }
        let errors = output.try_clone().map_err(text("the log"))?;
        server.stdout(output).stderr(errors).process_group(0);
        let mut child = server.spawn().map_err(text("postgres"))?;
        let start = Instant::now();
        while let Err(error) = PgConnection::establish(&self.url()) {
            if child.try_wait().map_err(text("postgres"))?.is_some()
                || start.elapsed() > Duration::from_secs(60)
            {
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("PostgreSQL did not start: {error}\n{said}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = Some(child);
        Ok(())
    }

    /// Stops it as fast as it can without losing anything.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::INT);
        }
        let start = Instant::now();
        while let Ok(None) = child.try_wait() {
            if start.elapsed() > Duration::from_secs(20) {
                let _ = child.kill();
                let _ = child.wait();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The URL of its database `postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs SQL on a server.
///
/// # Errors
/// What PostgreSQL said.
pub fn execute(url: &str, sql: &str) -> Result<()> {
    let mut connection = PgConnection::establish(url).map_err(|error| format!("{url}: {error}"))?;
    connection.batch_execute(sql).map_err(|error| format!("{sql}: {error}"))
}

/// A use of the server that all test processes share: while this value lives,
/// the server does.
#[derive(Debug)]
pub struct Shared {
    /// The URL of its database `postgres`.
    pub url: String,
    _use: Option<File>,
}

/// Finds the server of the environment, or the shared one, or starts that
/// with `helper`, this crate's binary.
///
/// # Errors
/// A sentence that says what to install, or what went wrong.
pub fn shared(folder: &Path, helper: &Path) -> Result<Shared> {
    if let Ok(url) = std::env::var(URL_VARIABLE) {
        return Ok(Shared { url, _use: None });
    }
    fs::create_dir_all(folder).map_err(text("the folder for PostgreSQL's state"))?;
    let door = open(&folder.join("door"))?;
    door.lock().map_err(text("the lock on PostgreSQL's state"))?;
    let use_ = open(&folder.join("users"))?;
    use_.lock_shared().map_err(text("the lock on PostgreSQL's state"))?;
    let state = folder.join("url");
    if let Ok(url) = fs::read_to_string(&state)
        && PgConnection::establish(&url).is_ok()
    {
        return Ok(Shared { url, _use: Some(use_) });
    }
    let _ = fs::remove_file(&state);
    let log = folder.join("keeper.log");
    let output = File::create(&log).map_err(text("the keeper's log"))?;
    let errors = output.try_clone().map_err(text("the keeper's log"))?;
    let mut keeper = Command::new(helper)
        .arg("postgres")
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(text("the keeper of PostgreSQL"))?;
    let start = Instant::now();
    loop {
        if let Ok(url) = fs::read_to_string(&state) {
            return Ok(Shared { url, _use: Some(use_) });
        }
        if keeper.try_wait().map_err(text("the keeper"))?.is_some()
            || start.elapsed() > Duration::from_secs(120)
        {
            return Err(fs::read_to_string(&log).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn open(path: &Path) -> Result<File> {
    let file = File::options().create(true).write(true).truncate(false).open(path);
    file.map_err(|error| format!("{}: {error}", path.display()))
}

/// Keeps the shared cluster until nobody has used it for a while; the body of
/// the helper's `postgres <folder>`.
///
/// # Errors
/// A sentence that says what to install, or what went wrong.
pub fn keep(folder: &Path) -> Result<()> {
    // It outlives the test that started it.
    let _ = rustix::process::setsid();
    let cluster = Cluster::new()?;
    let state = folder.join("url");
    let new = folder.join("url.new");
    fs::write(&new, cluster.url())
        .and_then(|()| fs::rename(&new, &state))
        .map_err(text("PostgreSQL's state"))?;
    let (door, users) = (open(&folder.join("door"))?, open(&folder.join("users"))?);
    let mut used = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(500));
        if users.try_lock().is_err() {
            used = Instant::now();
            continue;
        }
        let _ = users.unlock();
        if used.elapsed() < IDLE {
            continue;
        }
        // Nobody may come while it goes.
        door.lock().map_err(text("the lock on PostgreSQL's state"))?;
        if users.try_lock().is_ok() {
            let _ = fs::remove_file(&state);
            drop(cluster);
            return Ok(());
        }
        let _ = door.unlock();
        used = Instant::now();
    }
}

/// Whom PostgreSQL has to run as: it refuses root.
fn user() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").map_err(text("/etc/passwd"))?;
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let found = ["postgres", "nobody"].into_iter().find_map(find);
    found
        .map(Some)
        .ok_or_else(|| "PostgreSQL does not run as root, and there is no user postgres or nobody".into())
}

/// One of PostgreSQL's programs, the newest where there are several.
fn program(name: &str) -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path().join("bin").join(name);
            Some((entry.file_name().to_str()?.parse().ok()?, path)).filter(|(_, path)| path.is_file())
        })
        .collect();
    versions.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = || std::env::split_paths(&path).map(|it| it.join(name)).find(|it| it.is_file());
    versions.pop().map(|(_, path)| path).or_else(on_path).ok_or_else(|| {
        format!(
            "there is no {name}: install PostgreSQL (on Debian: apt install postgresql), or set {URL_VARIABLE} \
             to a server's URL, or PODYARD_TEST_DATABASES=sqlite to leave PostgreSQL out"
        )
    })
}
