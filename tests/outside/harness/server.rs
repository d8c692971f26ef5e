//! The real binary as a process.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::{Client, Database, HELPER, Kind, alive, kill, programs_under, until};

/// The administrator's password in every house that does not say otherwise.
pub(crate) const ADMIN_PASSWORD: &str = "the-password-of-admin";

/// The binary: `PODYARD_BIN`, or built once for a run of tests.
pub(crate) fn podyard() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| built("PODYARD_BIN", "podyard-server", "podyard"))
}

/// A binary of the workspace: named by a variable, or built once for a run of tests.
pub(crate) fn built(variable: &str, package: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "{variable}: there is no {}", path.display());
        return path.canonicalize().unwrap();
    }
    let folder = Path::new(HELPER).parent().unwrap();
    // nextest runs each test in a process of its own: the first builds for all of its run.
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("built-{name}"));
    let lock =
        File::options().create(true).truncate(false).write(true).open(state.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_default();
    if run.is_empty() || fs::read_to_string(&state).unwrap_or_default() != run {
        let profile = match folder.file_name().and_then(|it| it.to_str()) {
            Some("debug") | None => "dev",
            Some(it) => it,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", package, "--profile", profile]);
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(built.success(), "{package} does not build");
        fs::write(&state, run).unwrap();
    }
    folder.join(name)
}

/// A data folder and a database: where servers live. At its end nothing that
/// was started in it is left.
pub(crate) struct House {
    pub(crate) database: Database,
    folder: TempDir,
    logs: AtomicU32,
}

impl House {
    pub(crate) fn new(kind: Kind) -> Self {
        Self::with(Database::new(kind))
    }

    pub(crate) fn with(database: Database) -> Self {
        let folder = tempfile::Builder::new().prefix("podyard-tests-").tempdir().unwrap();
        Self { database, folder, logs: AtomicU32::new(0) }
    }

    /// A folder for whatever a test keeps beside the data.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The binary, told nothing by this process's environment.
    pub(crate) fn command(&self) -> Command {
        let on_mysql = self.database.url.as_ref().is_some_and(|it| it.starts_with("mysql:"));
        let with_mysql = on_mysql.then(|| std::env::var_os("PODYARD_MYSQL_BIN")).flatten();
        let mut command = with_mysql.map_or_else(|| Command::new(podyard()), Command::new);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|it| it.starts_with("PODYARD_")) {
                command.env_remove(name);
            }
        }
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("PODYARD_DATA_DIR", self.data_dir());
        if let Some(url) = &self.database.url {
            command.env("PODYARD_DATABASE_URL", url);
        }
        command
    }

    /// A server to be, with further arguments.
    pub(crate) fn setup(&self, args: &[&str]) -> Setup<'_> {
        let mut command = self.command();
        command.args(["serve", "--listen", "127.0.0.1:0", "--task-lease", "2"]).args(args);
        command.env("PODYARD_ADMIN_PASSWORD", ADMIN_PASSWORD);
        Setup { house: self, command }
    }

    /// Starts a server with further arguments.
    #[track_caller]
    pub(crate) fn serve(&self, args: &[&str]) -> Server {
        self.setup(args).start()
    }

    /// The one number that a query answers.
    #[track_caller]
    pub(crate) fn count(&self, sql: &str) -> i64 {
        use diesel::connection::Connection as _;
        use diesel::deserialize::QueryableByName;
        use diesel::query_dsl::RunQueryDsl as _;
        #[derive(QueryableByName)]
        struct Number {
            #[diesel(sql_type = diesel::sql_types::BigInt)]
            number: i64,
        }
        let query = diesel::sql_query(format!("SELECT ({sql}) AS number"));
        let number: Number = match &self.database.url {
            #[cfg(feature = "mysql")]
            Some(url) if url.starts_with("mysql:") => {
                query.get_result(&mut diesel::MysqlConnection::establish(url).unwrap()).unwrap()
            }
            Some(url) => query.get_result(&mut diesel::PgConnection::establish(url).unwrap()).unwrap(),
            None => {
                let file = self.data_dir().join("podyard.sqlite3");
                query
                    .get_result(&mut diesel::SqliteConnection::establish(file.to_str().unwrap()).unwrap())
                    .unwrap()
            }
        };
        number.number
    }

    /// Changes rows behind the server's back.
    #[track_caller]
    pub(crate) fn execute(&self, sql: &str) {
        use diesel::connection::{Connection as _, SimpleConnection as _};
        match &self.database.url {
            #[cfg(feature = "mysql")]
            Some(url) if url.starts_with("mysql:") => {
                diesel::MysqlConnection::establish(url).unwrap().batch_execute(sql).unwrap();
            }
            Some(url) => diesel::PgConnection::establish(url).unwrap().batch_execute(sql).unwrap(),
            None => {
                let file = self.data_dir().join("podyard.sqlite3");
                let mut there = diesel::SqliteConnection::establish(file.to_str().unwrap()).unwrap();
                there.batch_execute(&format!("PRAGMA busy_timeout = 5000; {sql}")).unwrap();
            }
        }
    }

    /// All that runs of the spaces in here.
    pub(crate) fn programs(&self) -> Vec<i32> {
        let folder = self.folder.path().canonicalize().unwrap_or_else(|_| self.folder.path().to_owned());
        programs_under(&folder)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            let left = self.programs();
            if left.is_empty() {
                return;
            }
            for pid in left {
                kill(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A server that is not started yet.
pub(crate) struct Setup<'a> {
    house: &'a House,
    pub(crate) command: Command,
}

impl Setup<'_> {
    /// Sets or, with `None`, leaves out a variable.
    pub(crate) fn env(mut self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.command.env(name, value),
            None => self.command.env_remove(name),
        };
        self
    }

    /// Starts it and waits until it listens.
    #[track_caller]
    pub(crate) fn start(mut self) -> Server {
        let number = self.house.logs.fetch_add(1, Ordering::Relaxed);
        let log = self.house.folder.path().join(format!("log-{number}"));
        self.command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut child = self.command.spawn().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (tell, told) = mpsc::channel();
        let (lines, stdout) = (said.clone(), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listens on ") {
                    let base = rest.split_whitespace().next().unwrap_or_default().to_owned();
                    let _ = tell.send(base);
                }
                lines.lock().unwrap().push(line);
            }
        });
        let Ok(base) = told.recv_timeout(Duration::from_secs(60)) else {
            let _ = child.kill();
            panic!("the server did not start: {}", fs::read_to_string(&log).unwrap_or_default());
        };
        Server { child, base, log, said }
    }
}

/// A server that runs.
pub(crate) struct Server {
    child: Child,
    /// `http://ADDR`.
    pub(crate) base: String,
    log: PathBuf,
    said: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Somebody who has not logged in.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.base)
    }

    #[track_caller]
    pub(crate) fn admin(&self) -> Client {
        self.client().login("admin", ADMIN_PASSWORD)
    }

    /// What it has written to standard output so far.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    /// What it has logged so far.
    pub(crate) fn logged(&self) -> String {
        // Lines are gathered for some milliseconds before they are written.
        std::thread::sleep(Duration::from_millis(100));
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Ends it in the middle of whatever it does.
    pub(crate) fn kill_9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end.
    pub(crate) fn ask_to_end(&self) {
        kill(self.pid(), Signal::TERM);
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self, within: Duration) -> ExitStatus {
        until("the server has ended", within, || self.child.try_wait().unwrap())
    }

    /// Ends it as an operator would.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.ask_to_end();
        let status = self.wait(Duration::from_secs(20));
        assert!(status.success(), "the server ended with {status}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if alive(self.pid()) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        if std::thread::panicking() {
            eprintln!("the end of the server's log:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        } else if let Some(at) = lines.iter().position(|it| it.contains(" panicked at ")) {
            // Whatever was answered: a part of the server has ended that was to go on.
            panic!("the server panicked:\n{}", lines[at..lines.len().min(at + 40)].join("\n"));
        }
    }
}
