//! Configuration: flags, then environment, then a TOML file, then defaults.
//! Each setting is written once, as a clap argument; the file's keys are the
//! flags' names, and become the arguments' defaults.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use podyard::db::DatabaseUrl;

use crate::kubernetes::{ControllerArgs, Doctor, KubernetesArgs};

/// Podyard: resource-oriented control planes, with a cloud IDE on top.
#[derive(Debug, Parser)]
#[command(name = "podyard", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) serve: Box<ServeArgs>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the API and the gateway, and work on tasks (the default).
    Serve(Box<ServeArgs>),
    /// Only work on tasks, beside other processes on the same database.
    Worker(Box<ServeArgs>),
    /// Bring the database's tables up to date (serve does so at start, too).
    Migrate(MigrateArgs),
    /// Give a user a new random password and print it.
    ResetPassword(ResetPasswordArgs),
    /// Open a terminal in a space, here in this one.
    Terminal(TerminalArgs),
    /// Check what Podyard needs of its surroundings.
    #[command(subcommand)]
    Doctor(Box<Doctor>),
    /// Keep pods and claims as the custom resources `Space` say, also while no server is there.
    Controller(Box<ControllerArgs>),
    /// Print the definition of the custom resource `Space`, for kubectl apply.
    Crd,
    /// Print the version.
    Version,
    /// Supervise one program of the process driver.
    #[command(hide = true)]
    Shim {
        /// The program's run folder.
        dir: PathBuf,
    },
    /// Run the shell of a terminal of the process driver.
    #[command(hide = true)]
    Shell {
        /// The program's run folder.
        dir: PathBuf,
        /// The terminal's id.
        terminal: String,
    },
    /// Serve the files of a folder in the browser: the built-in template.
    #[command(hide = true)]
    Files {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
        /// The folder.
        #[arg(long)]
        dir: PathBuf,
        /// The path under which people reach it.
        #[arg(long, default_value = "/")]
        base: String,
    },
}

/// Where the data is.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataArgs {
    /// A TOML file with any of these settings, named as the flags; without
    /// this, podyard.toml here or /etc/podyard/podyard.toml if there is one.
    #[arg(long, env = "PODYARD_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Folder for the embedded database and the spaces' files.
    #[arg(long, env = "PODYARD_DATA_DIR", default_value = "./podyard-data", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// `sqlite://PATH`, `postgres://USER:PASSWORD@HOST/DATABASE` or mysql:// alike; without this, SQLite in the data folder.
    #[arg(long, env = "PODYARD_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub(crate) database_url: Option<DatabaseUrl>,
}

impl DataArgs {
    /// The database, given or in the data folder.
    pub(crate) fn database(&self) -> DatabaseUrl {
        let embedded = || DatabaseUrl::Sqlite(self.data_dir.join("podyard.sqlite3"));
        self.database_url.clone().unwrap_or_else(embedded)
    }
}

/// What runs the programs of spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DriverName {
    /// Programs of this machine.
    Process,
    /// Pods of a cluster.
    Kubernetes,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// Text on a terminal, else JSON.
    Auto,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct MigrateArgs {
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Only name what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Then compare each table with its struct; differences are an error.
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ResetPasswordArgs {
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Name or id of the user.
    #[arg(long, default_value = "admin")]
    pub(crate) user: String,
    /// Name or id of the user's domain, where several have a user of that name.
    #[arg(long)]
    pub(crate) domain: Option<String>,
}

/// What `podyard terminal` needs to know.
#[derive(Debug, Clone, Args)]
pub(crate) struct TerminalArgs {
    /// Id or name of the space.
    pub(crate) space: String,
    /// Where Podyard is.
    #[arg(long, env = "PODYARD_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub(crate) url: String,
    /// Your token (POST /v3/auth/tokens).
    #[arg(long, env = "PODYARD_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Address to listen on.
    #[arg(long, env = "PODYARD_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDR:PORT")]
    pub(crate) listen: SocketAddr,
    /// What the log tells: error, warn, info, debug, trace, or a filter like podyard=debug.
    #[arg(long, env = "PODYARD_LOG", default_value = "info,actix_server=warn", value_name = "FILTER")]
    pub(crate) log: String,
    /// How the log is written, to standard error.
    #[arg(long, env = "PODYARD_LOG_FORMAT", value_enum, default_value = "auto")]
    pub(crate) log_format: LogFormat,
    /// The first administrator's password; without it one is made up and printed once.
    #[arg(long, env = "PODYARD_ADMIN_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    pub(crate) admin_password: Option<String>,
    /// How long a token is good, in seconds.
    #[arg(long, env = "PODYARD_TOKEN_LIFETIME", default_value_t = 86400, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(60..=31_536_000))]
    pub(crate) token_lifetime: u64,
    /// Most spaces of one user.
    #[arg(long, env = "PODYARD_MAX_SPACES", default_value_t = 20, value_name = "N",
          value_parser = clap::value_parser!(i64).range(0..))]
    pub(crate) max_spaces: i64,
    /// Most spaces of one user that run at once; 0: as many as there are.
    #[arg(long, env = "PODYARD_MAX_RUNNING", default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(i64).range(0..))]
    pub(crate) max_running: i64,
    /// How long a space's program may take until it answers, in seconds.
    #[arg(long, env = "PODYARD_START_TIMEOUT", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) start_timeout: u64,
    /// How long a space's program may take to end before it is killed, in seconds.
    #[arg(long, env = "PODYARD_STOP_GRACE", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(crate) stop_grace: u64,
    /// What runs spaces: process (programs of this machine), kubernetes, or both by comma. The first is for
    /// templates that name none.
    #[arg(
        long,
        env = "PODYARD_DRIVER",
        value_enum,
        value_delimiter = ',',
        default_value = "process",
        value_name = "DRIVER"
    )]
    pub(crate) driver: Vec<DriverName>,
    /// The image of Podyard itself: with it the first start makes the built-in template for Kubernetes, too.
    #[arg(long, env = "PODYARD_IMAGE", value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// The name of this machine in the rows of spaces.
    #[arg(long, env = "PODYARD_NODE", default_value = "localhost", value_name = "NAME")]
    pub(crate) node: String,
    /// Threads that serve HTTP; 0: one for each core.
    #[arg(long, env = "PODYARD_HTTP_THREADS", default_value_t = 0, value_name = "N",
          value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub(crate) http_threads: u16,
    /// Connections to PostgreSQL.
    #[arg(long, env = "PODYARD_DATABASE_POOL", default_value_t = 16, value_name = "N",
          value_parser = clap::value_parser!(u32).range(2..=1024))]
    pub(crate) database_pool: u32,
    /// Task stages that run at once in this process; 0: none, for a server beside workers.
    #[arg(long, env = "PODYARD_TASK_SLOTS", default_value_t = 16, value_name = "N",
          value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub(crate) task_slots: u32,
    /// Kinds of task that this process runs, like `space-start`; all, unless said.
    #[arg(long, env = "PODYARD_TASK_NAMES", value_delimiter = ',', value_name = "NAME")]
    pub(crate) task_names: Vec<String>,
    /// How many of a kind run at once in this process, like `space-start=4`. May be given several times.
    #[arg(long, env = "PODYARD_TASK_LIMIT", value_delimiter = ',', value_name = "NAME=N", value_parser = limit)]
    pub(crate) task_limit: Vec<(String, usize)>,
    /// After so many seconds without a sign of life a worker's tasks are taken over.
    #[arg(long, env = "PODYARD_TASK_LEASE", default_value_t = 3, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub(crate) task_lease: u64,
    /// Ended tasks are kept for so many days.
    #[arg(long, env = "PODYARD_TASK_RETENTION", default_value_t = 14, value_name = "DAYS",
          value_parser = clap::value_parser!(u64).range(1..=36_500))]
    pub(crate) task_retention: u64,
    /// The records of who changed what are kept for so many days.
    #[arg(long, env = "PODYARD_EVENT_RETENTION", default_value_t = 90, value_name = "DAYS",
          value_parser = clap::value_parser!(u64).range(1..=36_500))]
    pub(crate) event_retention: u64,
    /// What is deleted into the trash stays there for so many seconds.
    #[arg(long, env = "PODYARD_TRASH_RETENTION", default_value_t = 259_200, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3_153_600_000))]
    pub(crate) trash_retention: u64,
    /// Most bytes of a JSON body.
    #[arg(long, env = "PODYARD_BODY_LIMIT", default_value_t = 1_048_576, value_name = "BYTES")]
    pub(crate) body_limit: usize,
    /// A token for whoever reads /metrics; without it an administrator's is needed.
    #[arg(long, env = "PODYARD_METRICS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) metrics_token: Option<String>,
    /// Believe X-Forwarded-* headers: only behind a proxy of your own that sets them.
    #[arg(long, env = "PODYARD_TRUST_FORWARDED")]
    pub(crate) trust_forwarded: bool,
    /// An origin whose pages may call the API: `https://app.example.org`, `*.example.org`, or `*` for
    /// all. May be given several times; in the file as a list.
    #[arg(long = "cors-origin", env = "PODYARD_CORS_ORIGIN", value_delimiter = ',', value_name = "ORIGIN")]
    pub(crate) cors_origin: Vec<String>,
    /// Requests a second that one user may make; 0: any number.
    #[arg(long, env = "PODYARD_RATE_LIMIT", default_value_t = 0, value_name = "N")]
    pub(crate) rate_limit: u32,
    /// Requests that one user may make at once, after a pause; 0: twice the rate.
    #[arg(long, env = "PODYARD_RATE_BURST", default_value_t = 0, value_name = "N")]
    pub(crate) rate_burst: u32,
    /// Requests a second that one address may make without a token; 0: any number.
    #[arg(long, env = "PODYARD_ANONYMOUS_RATE_LIMIT", default_value_t = 0, value_name = "N")]
    pub(crate) anonymous_rate_limit: u32,
    /// How long a request may take until its answer begins, in seconds.
    #[arg(long, env = "PODYARD_REQUEST_TIMEOUT", default_value_t = 60.0, value_name = "SECONDS",
          value_parser = seconds)]
    pub(crate) request_timeout: f64,
    /// How long a client may take to send the head of a request, in seconds.
    #[arg(long, env = "PODYARD_HEADER_TIMEOUT", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) header_timeout: u64,
    /// Send large answers as they are, also to clients that would accept them compressed.
    #[arg(long, env = "PODYARD_NO_COMPRESSION")]
    pub(crate) no_compression: bool,
    /// Passwords that are checked at once, 19 MiB each; 0: one for each core.
    #[arg(long, env = "PODYARD_PASSWORD_WORKERS", default_value_t = 0, value_name = "N",
          value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub(crate) password_workers: u16,
    /// Passwords that may wait to be checked; beyond it the answer is 503.
    #[arg(long, env = "PODYARD_PASSWORD_QUEUE", default_value_t = 256, value_name = "N")]
    pub(crate) password_queue: u32,
    /// Whose spaces a role may open terminals in, as ROLE=own, ROLE=all or ROLE=none; without this,
    /// everybody in their own. May be given several times.
    #[arg(long, env = "PODYARD_TERMINAL_RIGHT", value_delimiter = ',', value_name = "ROLE=WHOSE")]
    pub(crate) terminal_right: Vec<podyard_terminal::Right>,
    /// Most terminals of this server.
    #[arg(long, env = "PODYARD_MAX_TERMINALS", default_value_t = 1000, value_name = "N")]
    pub(crate) max_terminals: u32,
    /// Most terminals in one space.
    #[arg(long, env = "PODYARD_MAX_SPACE_TERMINALS", default_value_t = 20, value_name = "N")]
    pub(crate) max_space_terminals: u32,
    /// A terminal in which nothing moves for so many seconds is closed.
    #[arg(long, env = "PODYARD_TERMINAL_IDLE", default_value_t = 3600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub(crate) terminal_idle: u64,
    /// How often a terminal's client is asked whether it is still there, in seconds.
    #[arg(long, env = "PODYARD_TERMINAL_PING", default_value_t = 20, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) terminal_ping: u64,
    /// How long requests and stages may take to end after SIGTERM, in seconds.
    #[arg(long, env = "PODYARD_SHUTDOWN_GRACE", default_value_t = 20, value_name = "SECONDS")]
    pub(crate) shutdown_grace: u64,
    #[command(flatten)]
    pub(crate) kubernetes: KubernetesArgs,
}

/// Seconds, also parts of one.
fn seconds(text: &str) -> Result<f64, String> {
    let wrong = || "must be a number of seconds from 0.001 to 86400".to_owned();
    let sane = |it: &f64| (0.001..=86_400.0).contains(it);
    text.parse().ok().filter(sane).ok_or_else(wrong)
}

fn limit(text: &str) -> Result<(String, usize), String> {
    let wrong = || "must be the name of a kind of task and a number from 1, like space-start=4".to_owned();
    let (name, n) = text.split_once('=').ok_or_else(wrong)?;
    let n = n.parse().ok().filter(|it| *it > 0).ok_or_else(wrong)?;
    Ok((name.to_owned(), n))
}

/// Reads the command line, the environment and the file.
pub(crate) fn parse() -> Result<Cli, String> {
    let args: Vec<_> = std::env::args_os().collect();
    let mut command = Cli::command();
    // Helpers of the driver must not fail for a file that lies about.
    let helper = args.get(1).is_some_and(|it| it == "shim" || it == "shell" || it == "files");
    if !helper && let Some((path, file)) = file(&args)? {
        command = with_defaults(command, &path, &file)?;
    }
    let matches = command.get_matches_from(args);
    Cli::from_arg_matches(&matches).map_err(|e| e.to_string())
}

/// The file that is named, or one of the usual two.
fn file(args: &[std::ffi::OsString]) -> Result<Option<(String, toml::Table)>, String> {
    let mut named = std::env::var_os("PODYARD_CONFIG").map(PathBuf::from);
    for (i, arg) in args.iter().enumerate() {
        match arg.to_str() {
            Some("--config") => named = args.get(i + 1).map(PathBuf::from),
            Some(text) => {
                if let Some(path) = text.strip_prefix("--config=") {
                    named = Some(path.into());
                }
            }
            None => {}
        }
    }
    let must = named.is_some();
    let usual = ["podyard.toml", "/etc/podyard/podyard.toml"].map(PathBuf::from);
    let path = named.or_else(|| usual.into_iter().find(|path| path.is_file()));
    let Some(path) = path else { return Ok(None) };
    let name = path.display().to_string();
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.parse() {
            Ok(table) => Ok(Some((name, table))),
            Err(error) => Err(format!("{name}: {error}")),
        },
        Err(error) if must => Err(format!("{name}: {error}")),
        Err(_) => Ok(None),
    }
}

/// The file's values as the arguments' defaults.
fn with_defaults(
    mut command: clap::Command,
    path: &str,
    file: &toml::Table,
) -> Result<clap::Command, String> {
    for (key, value) in file {
        let id = key.replace('-', "_");
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => value.to_string(),
            // A list of texts, for what may be given several times.
            toml::Value::Array(list) if list.iter().all(toml::Value::is_str) && key.starts_with("cors") => {
                list.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
            }
            _ => return Err(format!("{path}: {key}: must be a text, a number, true or false")),
        };
        let knows = |c: &clap::Command| c.get_arguments().any(|arg| arg.get_id() == id.as_str());
        let subs: Vec<String> =
            command.get_subcommands().filter(|c| knows(c)).map(|c| c.get_name().to_owned()).collect();
        if id == "config" || subs.is_empty() {
            return Err(format!("{path}: {key}: is no setting; see podyard serve --help"));
        }
        let is_flag = |c: &clap::Command| {
            c.get_arguments().any(|a| a.get_id() == id.as_str() && !a.get_action().takes_values())
        };
        let flag = command.get_subcommands().any(is_flag);
        if flag && text != "true" && text != "false" {
            return Err(format!("{path}: {key}: must be true or false"));
        }
        let set = |c: clap::Command| {
            let (id, text) = (id.clone(), text.clone());
            if flag && text == "false" { c } else { c.mut_arg(id, |arg| arg.default_value(text)) }
        };
        if knows(&command) {
            command = set(command);
        }
        for name in subs {
            command = command.mut_subcommand(name, set);
        }
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str, args: &[&str]) -> Result<ServeArgs, String> {
        let command = with_defaults(Cli::command(), "podyard.toml", &text.parse().unwrap())?;
        let matches = command.try_get_matches_from(args).map_err(|e| e.to_string())?;
        let cli = Cli::from_arg_matches(&matches).map_err(|e| e.to_string())?;
        Ok(match cli.command {
            Some(Command::Serve(args)) => *args,
            _ => *cli.serve,
        })
    }

    #[test]
    fn flags_beat_the_file_and_the_file_beats_defaults() {
        let file = "listen = \"127.0.0.1:9\"\nmax-spaces = 3\nmax_running = 2\ntrust-forwarded = true";
        for args in [&["podyard", "serve", "--max-running", "7"][..], &["podyard", "--max-running", "7"]] {
            let it = with_file(file, args).unwrap();
            assert_eq!(it.listen.port(), 9);
            assert_eq!((it.max_spaces, it.max_running, it.start_timeout), (3, 7, 60));
            assert!(it.trust_forwarded);
        }
    }

    #[test]
    fn origins_are_a_list_in_the_file() {
        let file = "cors-origin = [\"https://a.org\", \"*.b.org\"]\nrequest-timeout = 2.5";
        let it = with_file(file, &["podyard"]).unwrap();
        assert_eq!(it.cors_origin, ["https://a.org", "*.b.org"]);
        assert!((it.request_timeout - 2.5).abs() < f64::EPSILON);
        let it =
            with_file(file, &["podyard", "--cors-origin", "https://c.org", "--cors-origin", "*"]).unwrap();
        assert_eq!(it.cors_origin, ["https://c.org", "*"]);
        assert!(with_file("request-timeout = 0", &["podyard"]).unwrap_err().contains("request-timeout"));
    }

    #[test]
    fn a_wrong_file_names_the_key() {
        for (file, key) in
            [("lisen = 1", "lisen"), ("listen = [1]", "listen"), ("trust-forwarded = 3", "trust-forwarded")]
        {
            let error = with_file(file, &["podyard"]).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
        assert!(with_file("listen = \"nowhere\"", &["podyard"]).unwrap_err().contains("listen"));
    }

    #[test]
    fn podyard_alone_is_serve() {
        let it = Cli::parse_from(["podyard", "--listen", "127.0.0.1:1"]);
        assert!(it.command.is_none());
        assert_eq!(it.serve.listen.port(), 1);
        assert_eq!(it.serve.driver, [DriverName::Process]);
    }

    #[test]
    fn several_drivers() {
        let it = with_file("driver = \"process,kubernetes\"", &["podyard"]).unwrap();
        assert_eq!(it.driver, [DriverName::Process, DriverName::Kubernetes]);
        let it = with_file("driver = \"process\"", &["podyard", "--driver", "kubernetes"]).unwrap();
        assert_eq!(it.driver, [DriverName::Kubernetes]);
        assert!(with_file("driver = \"docker\"", &["podyard"]).unwrap_err().contains("driver"));
        let it = with_file("kubernetes-namespace = \"ides\"", &["podyard"]).unwrap();
        assert_eq!(it.kubernetes.kubernetes_namespace.as_deref(), Some("ides"));
    }
}
