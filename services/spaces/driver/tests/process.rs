//! The process driver, with real processes.
#![expect(clippy::unwrap_used, reason = "clippy knows the tests themselves, not what they share")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podyard_driver::{
    Driver, Endpoint, Error, Exit, Launch, Observed, Options, Phase, ProcessDriver, Result,
};
use tokio::sync::broadcast::Receiver;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-driver-program");
const ID: &str = "0198c0de-0000-7000-8000-000000000001";
const GRACE: Duration = Duration::from_secs(5);

/// A data folder that leaves no program behind when a test fails.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if std::thread::panicking() && self.path().join("spaces").join(ID).join("run/instance").exists() {
            kill(shim_pid(self.path()));
        }
    }
}

async fn open(root: &Path) -> ProcessDriver {
    ProcessDriver::open(Options { data_dir: root.to_owned(), podyard: PROGRAM.into() }).await.unwrap()
}

fn launch(command: &[&str]) -> Launch {
    Launch {
        id: ID.into(),
        sid: "s1".into(),
        base_path: "/ws/s1/".into(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        env: Vec::new(),
        cpu: "2".into(),
        memory: "1Gi".into(),
        storage: "5Gi".into(),
        user: String::new(),
        name: String::new(),
        container: None,
    }
}

fn sh(script: &str) -> Launch {
    launch(&["sh", "-c", script])
}

fn serve() -> Launch {
    launch(&["{podyard}", "serve", "{port}"])
}

async fn next(events: &mut Receiver<Observed>) -> Observed {
    tokio::time::timeout(Duration::from_secs(20), events.recv()).await.expect("an event").unwrap()
}

async fn ready(events: &mut Receiver<Observed>) -> (String, Endpoint) {
    loop {
        let seen = next(events).await;
        match seen.phase {
            Phase::Starting => {}
            Phase::Ready { endpoint } => return (seen.instance, endpoint),
            Phase::Exited(exit) => panic!("it exited: {exit:?}"),
        }
    }
}

async fn exited(events: &mut Receiver<Observed>) -> Exit {
    loop {
        if let Phase::Exited(exit) = next(events).await.phase {
            return exit;
        }
    }
}

/// The processes that bear the mark of a space under `root`.
fn alive(root: &Path) -> Vec<String> {
    let mark = format!("PODYARD_SPACE_DIR={}/", root.canonicalize().unwrap().join("spaces").display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environ).contains(&mark) {
            found.push(std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default());
        }
    }
    found
}

fn shim_pid(root: &Path) -> i32 {
    let path = root.join("spaces").join(ID).join("run/instance");
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Ok(text) = std::fs::read_to_string(&path) {
            let file: serde_json::Value = serde_json::from_str(&text).unwrap();
            return file["shim"].as_i64().unwrap() as i32;
        }
        assert!(Instant::now() < deadline, "no instance");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn becomes_ready_by_http_and_stops() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    let mut events = driver.observe();
    let instance = driver.start(&serve()).await?;
    assert_eq!(driver.endpoint(ID).await, None, "not before it answers");
    let (seen, endpoint) = ready(&mut events).await;
    assert_eq!(seen, instance.id);
    assert_eq!(endpoint.secret.len(), 64);
    assert_eq!(driver.endpoint(ID).await, Some(endpoint.clone()));
    assert!(!format!("{endpoint:?}").contains(&endpoint.secret));
    assert!(matches!(driver.delete(ID).await, Err(Error::Running)));

    let began = Instant::now();
    let exit = driver.stop(ID, GRACE).await?.unwrap();
    assert_eq!(exit.signal, Some(15));
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(alive(root.path()), [""; 0]);
    TcpListener::bind(endpoint.addr).expect("its port is free");
    assert_eq!(driver.endpoint(ID).await, None);
    assert_eq!(exited(&mut events).await, exit);
    // Again: the same answer, and nothing to tell.
    assert_eq!(driver.stop(ID, GRACE).await?, Some(exit));
    assert_eq!(driver.list().await?, []);
    driver.delete(ID).await?;
    driver.delete(ID).await?;
    assert!(!root.path().join("spaces").join(ID).exists());
    assert_eq!(driver.stop(ID, GRACE).await?, None);
    Ok(())
}

#[tokio::test]
async fn open_port_is_not_ready() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    driver.start(&launch(&["{podyard}", "mute", "{port}"])).await?;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let seen = driver.list().await?;
    assert!(matches!(seen[..], [Observed { phase: Phase::Starting, .. }]), "{seen:?}");
    driver.stop(ID, GRACE).await?;
    Ok(())
}

#[tokio::test]
async fn stubborn_program_is_killed_after_the_grace() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    driver.start(&sh("trap '' TERM; echo on; while :; do sleep 0.1; done")).await?;
    let log = root.path().join("spaces").join(ID).join("run/log");
    until("it ignores TERM", || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("on"))).await;
    let began = Instant::now();
    let exit = driver.stop(ID, Duration::from_millis(700)).await?.unwrap();
    assert_eq!(exit.signal, Some(9));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(700) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!(alive(root.path()), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn second_stop_hurries_the_first() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    driver.start(&sh("trap '' TERM; echo on; while :; do sleep 0.1; done")).await?;
    let log = root.path().join("spaces").join(ID).join("run/log");
    until("it ignores TERM", || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("on"))).await;
    let began = Instant::now();
    let (first, second) = tokio::join!(driver.stop(ID, Duration::from_secs(60)), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        driver.stop(ID, Duration::ZERO).await
    });
    assert_eq!(first?.unwrap().signal, Some(9));
    assert_eq!(second?.unwrap().signal, Some(9));
    assert!(began.elapsed() < Duration::from_secs(3));
    Ok(())
}

#[tokio::test]
async fn nothing_of_the_tree_is_left() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    let mut events = driver.observe();
    driver.start(&launch(&["{podyard}", "tree", "{port}"])).await?;
    ready(&mut events).await;
    until("the daemon runs", || alive(root.path()).iter().any(|line| line.contains("while :"))).await;
    driver.stop(ID, Duration::from_millis(500)).await?;
    assert_eq!(alive(root.path()), [""; 0]);

    // The same when the program ends by itself.
    driver.start(&launch(&["sh", "-c", "\"$0\" daemon; sleep 0.2; exit 3", PROGRAM])).await?;
    let exit = exited(&mut events).await;
    let exit = if exit.code.is_none() { exited(&mut events).await } else { exit };
    assert_eq!(exit.code, Some(3));
    assert_eq!(alive(root.path()), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn crash_tells_code_and_last_lines() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    let mut events = driver.observe();
    driver.start(&sh("echo of an older run; exit 1")).await?;
    assert_eq!(exited(&mut events).await.last_lines, ["of an older run"]);
    let began = Instant::now();
    driver.start(&sh("i=0; while [ $i -lt 30 ]; do echo line $i; i=$((i+1)); done; printf '\\033[31mred\\033[0m\\377\\n' >&2; exit 7")).await?;
    let exit = exited(&mut events).await;
    assert!(began.elapsed() < Duration::from_secs(1), "told within a second");
    assert_eq!((exit.code, exit.signal), (Some(7), None));
    assert_eq!(exit.last_lines.len(), 20);
    assert_eq!(exit.last_lines[18..], ["line 29", "red\u{fffd}"]);
    assert!(driver.log(ID, 1 << 20).await?.starts_with("of an older run\nline 0\n"));
    assert_eq!(driver.log(ID, 3).await?.len(), 5, "one byte is no UTF-8");
    let seen = driver.list().await?;
    assert!(matches!(&seen[..], [Observed { phase: Phase::Exited(e), .. }] if *e == exit), "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn exit_is_read_by_the_next_driver() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    let instance = driver.start(&sh("sleep 0.3; echo bye; exit 4")).await?;
    drop(driver);
    tokio::time::sleep(Duration::from_millis(800)).await;
    let driver = open(root.path()).await;
    let seen = driver.list().await?;
    let [Observed { instance: seen, phase: Phase::Exited(exit), .. }] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((seen, exit.code, &exit.last_lines[..]), (&instance.id, Some(4), &["bye".to_owned()][..]));
    Ok(())
}

#[tokio::test]
async fn program_is_adopted_by_the_next_driver() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    let mut events = driver.observe();
    let instance = driver.start(&serve()).await?;
    let (_, endpoint) = ready(&mut events).await;
    drop(driver);
    let driver = open(root.path()).await;
    // At once, without asking the program again.
    assert_eq!(driver.endpoint(ID).await, Some(endpoint));
    let mut events = driver.observe();
    assert_eq!(driver.start(&serve()).await?, instance);
    assert_eq!(alive(root.path()).len(), 1);
    driver.stop(ID, GRACE).await?;
    assert_eq!(exited(&mut events).await.signal, Some(15));
    Ok(())
}

#[tokio::test]
async fn killed_shim_takes_the_program_with_it() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    let mut events = driver.observe();
    let instance = driver.start(&launch(&["{podyard}", "tree", "{port}"])).await?;
    let (_, endpoint) = ready(&mut events).await;
    until("the daemon runs", || alive(root.path()).iter().any(|line| line.contains("while :"))).await;
    let began = Instant::now();
    kill(shim_pid(root.path()));
    let exit = exited(&mut events).await;
    assert!(began.elapsed() < Duration::from_secs(1), "told within a second");
    assert_eq!((exit.code, exit.signal), (None, None));
    assert_eq!(alive(root.path()), [""; 0]);
    TcpListener::bind(endpoint.addr).expect("its port is free");
    let again = driver.start(&serve()).await?;
    assert_ne!(again.id, instance.id);

    // And when nobody watched.
    ready(&mut events).await;
    drop(driver);
    kill(shim_pid(root.path()));
    until("the shim is dead", || alive(root.path()).is_empty()).await;
    let driver = open(root.path()).await;
    let seen = driver.list().await?;
    assert!(
        matches!(&seen[..], [Observed { instance, phase: Phase::Exited(_), .. }] if *instance == again.id),
        "{seen:?}"
    );
    assert!(driver.stop(ID, GRACE).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn shim_that_hangs_is_killed() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    let mut events = driver.observe();
    driver.start(&serve()).await?;
    ready(&mut events).await;
    let shim = rustix::process::Pid::from_raw(shim_pid(root.path())).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::STOP).unwrap();
    driver.stop(ID, Duration::from_millis(100)).await?.unwrap();
    assert_eq!(alive(root.path()), [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_starts_make_one_program() -> Result<()> {
    let root = Root::new();
    for _ in 0..10 {
        // Two drivers, as of two processes, and two starts in each.
        let (a, b) = (open(root.path()).await, open(root.path()).await);
        let launch = serve();
        let (w, x, y, z) =
            tokio::join!(a.start(&launch), b.start(&launch), a.start(&launch), b.start(&launch));
        let instance = w?;
        assert_eq!([&x?, &y?, &z?], [&instance; 3]);
        let mut events = b.observe();
        if b.endpoint(ID).await.is_none() {
            ready(&mut events).await;
        }
        assert_eq!(alive(root.path()).len(), 1);
        let (one, other) = tokio::join!(a.stop(ID, GRACE), b.stop(ID, GRACE));
        assert_eq!(one?, other?);
        assert_eq!(alive(root.path()), [""; 0]);
    }
    Ok(())
}

#[tokio::test]
async fn other_driver_sees_what_one_starts() -> Result<()> {
    let root = Root::new();
    let (a, b) = (open(root.path()).await, open(root.path()).await);
    let mut events = a.observe();
    a.start(&serve()).await?;
    let (_, endpoint) = ready(&mut events).await;
    assert_eq!(b.endpoint(ID).await, Some(endpoint));
    let mut others = b.observe();
    a.stop(ID, GRACE).await?;
    assert_eq!(exited(&mut others).await.signal, Some(15));
    assert_eq!(b.endpoint(ID).await, None);
    Ok(())
}

#[tokio::test]
async fn log_is_bounded() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    let run = root.path().join("spaces").join(ID).join("run");
    driver.start(&sh("yes a line that is written over and over")).await?;
    until("the log was begun anew", || run.join("log.1").exists()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    for name in ["log", "log.1"] {
        // It is away for an instant whenever it is begun anew.
        let length = run.join(name).metadata().map_or(0, |file| file.len());
        assert!(length <= 5 << 20);
    }
    let began = Instant::now();
    let exit = driver.stop(ID, GRACE).await?.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "a flood does not drown the stop");
    assert_eq!(exit.last_lines.len(), 20);
    let length = driver.log(ID, 20 << 20).await?.len();
    assert!(length > 4 << 20 && length <= 10 << 20, "both files: {length}");
    assert_eq!(alive(root.path()), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn missing_program_is_told() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    let error = driver.start(&launch(&["no-such-program"])).await.unwrap_err().to_string();
    assert!(error.contains("\"no-such-program\" was not found; looked for it in PATH: /"), "{error}");
    let error = driver.start(&launch(&["/no/such"])).await.unwrap_err().to_string();
    assert!(error.contains("/no/such was not found"), "{error}");
    assert!(matches!(driver.start(&launch(&["./x"])).await, Err(Error::Invalid(_))));
    assert!(matches!(driver.start(&launch(&[])).await, Err(Error::Invalid(_))));
    assert!(driver.available(&["sh".into()])?.is_absolute());
    assert_eq!(driver.available(&["{podyard}".into()])?, Path::new(PROGRAM));
    assert_eq!(driver.list().await?, []);
    let mut escape = serve();
    escape.id = "../x".into();
    assert!(matches!(driver.start(&escape).await, Err(Error::Invalid(_))));
    Ok(())
}

#[tokio::test]
async fn environment_holds_what_it_should_and_no_more() -> Result<()> {
    // Podyard's own environment is that of this test's process: cargo's.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    let root = Root::new();
    let driver = open(root.path()).await;
    let mut events = driver.observe();
    let mut launch = launch(&["sh", "-c", "pwd; echo $0 $1 $2; env; sleep 0.1", "{port}", "{dir}", "{base}"]);
    launch.env = vec![("LISTEN".into(), "127.0.0.1:{port}{base}".into())];
    driver.start(&launch).await?;
    exited(&mut events).await;
    let log = driver.log(ID, 1 << 16).await?;
    let mut lines = log.lines();
    let dir = root.path().canonicalize().unwrap().join("spaces").join(ID).join("data");
    let dir = dir.to_str().unwrap();
    assert_eq!(lines.next(), Some(dir));
    let words = lines.next().unwrap();
    let env: HashMap<&str, &str> = lines.filter_map(|line| line.split_once('=')).collect();
    let port = env["PODYARD_PORT"];
    assert_eq!(words, format!("{port} {dir} /ws/s1/"));
    assert_eq!(env["LISTEN"], format!("127.0.0.1:{port}/ws/s1/"));
    assert_eq!((env["HOME"], env["PODYARD_SPACE_ID"], env["PODYARD_SPACE_SID"]), (dir, ID, "s1"));
    let mut names: Vec<&str> = env.keys().copied().filter(|name| name.starts_with("PODYARD_")).collect();
    names.sort_unstable();
    assert_eq!(
        names.join(" "),
        "PODYARD_BASE_PATH PODYARD_CPU PODYARD_MEMORY PODYARD_PORT PODYARD_SPACE_DIR PODYARD_SPACE_ID \
         PODYARD_SPACE_SECRET PODYARD_SPACE_SID PODYARD_STORAGE"
    );
    assert!(!env.keys().any(|name| name.starts_with("CARGO")), "{env:?}");
    launch.env = vec![("PODYARD_MASTER_KEY".into(), String::new())];
    driver.stop(ID, GRACE).await?;
    assert!(matches!(driver.start(&launch).await, Err(Error::Invalid(_))));
    Ok(())
}

#[tokio::test]
async fn read_only_folders_are_deleted() -> Result<()> {
    let root = Root::new();
    let driver = open(root.path()).await;
    let mut events = driver.observe();
    driver.start(&sh("mkdir -p cache/deep; touch cache/deep/file; chmod -R a-w cache")).await?;
    assert_eq!(exited(&mut events).await.code, Some(0));
    driver.delete(ID).await?;
    assert_eq!(std::fs::read_dir(root.path().join("trash")).unwrap().count(), 0);
    assert_eq!(driver.list().await?, []);
    Ok(())
}

/// Podyard is killed at all sorts of moments around a start; whatever is
/// left, the next one reads it truly and gets one program out of it.
#[tokio::test]
async fn killed_podyard_leaves_the_truth() -> Result<()> {
    let root = Root::new();
    for round in 0..30_u64 {
        let mut podyard = Command::new(PROGRAM)
            .args(["drive".as_ref(), root.path().as_os_str(), ID.as_ref()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        if round % 10 == 9 {
            let mut line = String::new();
            BufReader::new(podyard.stdout.take().unwrap()).read_line(&mut line).unwrap();
        } else {
            std::thread::sleep(Duration::from_micros(500 * round));
        }
        podyard.kill().unwrap();
        podyard.wait().unwrap();

        let driver = open(root.path()).await;
        let mut events = driver.observe();
        let seen = driver.list().await?;
        assert!(seen.len() <= 1);
        let instance = driver.start(&serve()).await?;
        if let [Observed { instance: seen, phase: Phase::Starting | Phase::Ready { .. }, .. }] = &seen[..] {
            assert_eq!(*seen, instance.id, "what lives is adopted");
        }
        if driver.endpoint(ID).await.is_none() {
            assert_eq!(ready(&mut events).await.0, instance.id);
        }
        assert_eq!(alive(root.path()).len(), 1);
        assert!(driver.stop(ID, GRACE).await?.is_some());
        assert_eq!(alive(root.path()), [""; 0]);
    }
    Ok(())
}
