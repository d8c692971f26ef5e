//! A PostgreSQL of our own, with nothing switched off that keeps data safe.

use std::{
    cell::RefCell,
    fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use diesel::{PgConnection, RunQueryDsl as _, connection::SimpleConnection as _, prelude::*};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{Result, process};

/// An environment variable with the URL of a server to use instead of one of our own.
pub const URL_VARIABLE: &str = "PODYARD_BENCH_POSTGRES_URL";

/// A cluster: our own, which ends with this value, or somebody's.
pub struct Cluster {
    /// The URL without the database's name, as in `postgres://user@host:port`.
    base: String,
    /// What follows the database's name in the URL.
    options: String,
    /// The first process of the cluster, where it runs on this machine.
    postmaster: Option<u32>,
    /// What the server says of its version.
    pub version: String,
    /// The databases made in it.
    made: RefCell<Vec<String>>,
    own: Option<Own>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.own.is_none() {
            // Somebody's server is left as it was found. What fails is left to its owner.
            if let Ok(mut connection) = self.connect("postgres") {
                for name in self.made.take() {
                    let _ = connection.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
                }
            }
        }
    }
}

struct Own {
    child: Child,
    _folder: TempDir,
}

impl Drop for Own {
    fn drop(&mut self) {
        // SIGINT is PostgreSQL's fast shutdown. Nothing can be done with an error here.
        let _ = process::stop(&mut self.child, Signal::INT);
    }
}

impl Cluster {
    /// Uses the server of the environment, or makes one.
    pub fn open() -> Result<Self> {
        let (url, own) = match std::env::var(URL_VARIABLE) {
            Ok(url) => (url, None),
            Err(_) => {
                let (url, own) = start()?;
                (url, Some(own))
            }
        };
        let (rest, options) = url.split_once('?').map_or((url.as_str(), ""), |(rest, after)| (rest, after));
        let scheme = rest.find("://").ok_or("the URL of PostgreSQL has no ://")? + 3;
        let base = rest[scheme..].find('/').map_or(rest, |slash| &rest[..scheme + slash]);
        let options = if options.is_empty() { String::new() } else { format!("?{options}") };

        let mut connection = PgConnection::establish(&url)?;
        let (version, backend) = diesel::select((
            diesel::dsl::sql::<diesel::sql_types::Text>("current_setting('server_version')"),
            diesel::dsl::sql::<diesel::sql_types::Integer>("pg_backend_pid()"),
        ))
        .get_result::<(String, i32)>(&mut connection)?;
        // A number of another machine would name a stranger here, or nobody.
        let postmaster = u32::try_from(backend)
            .ok()
            .filter(|id| {
                fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == "postgres")
            })
            .and_then(process::parent);
        Ok(Self { base: base.to_owned(), options, postmaster, version, made: RefCell::default(), own })
    }

    /// Makes an empty database, in the place of one of the same name, and gives its URL.
    pub fn create(&self, name: &str) -> Result<String> {
        let mut connection = self.connect("postgres")?;
        connection.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))?;
        connection.batch_execute(&format!("CREATE DATABASE {name}"))?;
        self.made.borrow_mut().push(name.to_owned());
        Ok(format!("{}/{name}{}", self.base, self.options))
    }

    /// Does now what would otherwise start in the middle of a measurement.
    pub fn settle(&self, name: &str) -> Result<()> {
        let mut connection = self.connect(name)?;
        connection.batch_execute("VACUUM ANALYZE")?;
        connection.batch_execute("CHECKPOINT")?;
        Ok(())
    }

    /// The CPU time of all its processes so far; none if it runs elsewhere.
    #[must_use]
    pub fn cpu(&self) -> Option<Duration> {
        self.postmaster.map(process::cpu)
    }

    fn connect(&self, name: &str) -> Result<PgConnection> {
        Ok(PgConnection::establish(&format!("{}/{name}{}", self.base, self.options))?)
    }
}

/// Makes a cluster in a temporary folder and starts it on a free port.
fn start() -> Result<(String, Own)> {
    let folder = tempfile::Builder::new().prefix("podyard-bench-postgres-").tempdir()?;
    let data = folder.path().join("data");
    let log = folder.path().join("log");
    let user = user()?;
    let command = |name: &str| -> Result<Command> {
        let mut command = Command::new(program(name)?);
        command.env("LC_ALL", "C").current_dir(folder.path()).stdin(Stdio::null());
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        Ok(command)
    };
    if let Some((uid, gid)) = user {
        chown(folder.path(), Some(uid), Some(gid))?;
    }

    let made = command("initdb")?
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--pgdata"])
        .arg(&data)
        .output()?;
    if !made.status.success() {
        return Err(format!("initdb: {}", String::from_utf8_lossy(&made.stderr)).into());
    }

    let port = process::free_address()?.port();
    let output = fs::File::create(&log)?;
    let mut server = command("postgres")?;
    server.arg("-D").arg(&data).arg("-k").arg(folder.path()).arg("-p").arg(port.to_string());
    for setting in [
        "listen_addresses=127.0.0.1",
        "fsync=on",
        "synchronous_commit=on",
        "full_page_writes=on",
        "shared_buffers=512MB",
        "max_wal_size=4GB",
        "max_connections=200",
    ] {
        server.args(["-c", setting]);
    }
    let child = server.stdout(output.try_clone()?).stderr(output).spawn()?;
    let mut own = Own { child, _folder: folder };
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let start = Instant::now();
    while let Err(error) = PgConnection::establish(&url) {
        if own.child.try_wait()?.is_some() || start.elapsed() > Duration::from_secs(30) {
            return Err(format!("PostgreSQL did not start: {error}\n{}", process::end_of(&log)).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((url, own))
}

/// Whom PostgreSQL has to run as: it refuses root.
fn user() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| {
            let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2);
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .map(Some)
        .ok_or_else(|| "PostgreSQL does not run as root, and there is no user postgres or nobody".into())
}

/// The newest of PostgreSQL's programs by this name.
fn program(name: &str) -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.is_file())
        .collect();
    versions.sort();
    let packaged = versions.pop().map(|(_, path)| path);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .or(packaged)
        .ok_or_else(|| format!("{name} not found: install PostgreSQL, or set {URL_VARIABLE}").into())
}
