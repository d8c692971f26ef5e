//! Terminals of the process driver, with real shells on real ptys.
#![expect(clippy::unwrap_used, reason = "clippy knows the tests themselves, not what they share")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use podyard_driver::{
    Driver, Error, Launch, Options, ProcessDriver, Terminal, TerminalEnd, TerminalInput, TerminalSize,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-driver-program");
const ID: &str = "0198c0de-0000-7000-8000-000000000002";
const SIZE: TerminalSize = TerminalSize { columns: 100, rows: 30 };

/// A space that runs, in a folder of its own.
struct House {
    root: tempfile::TempDir,
    driver: ProcessDriver,
}

impl House {
    async fn new() -> Self {
        Self::with_env(&[]).await
    }

    async fn with_env(env: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = Options { data_dir: root.path().to_owned(), podyard: PROGRAM.into() };
        let house = Self { driver: ProcessDriver::open(options).await.unwrap(), root };
        let launch = Launch {
            id: ID.into(),
            sid: "s1".into(),
            base_path: "/ws/s1/".into(),
            command: ["sh", "-c", "exec sleep 10000"].map(str::to_owned).to_vec(),
            env: env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
            cpu: "1".into(),
            memory: "1Gi".into(),
            storage: "1Gi".into(),
            user: String::new(),
            name: String::new(),
            container: None,
        };
        house.driver.start(&launch).await.unwrap();
        house
    }

    async fn open(&self) -> Shell {
        Shell { terminal: self.try_open().await.unwrap(), seen: Vec::new() }
    }

    /// Also while the space has just been started.
    async fn try_open(&self) -> Result<Terminal, Error> {
        for _ in 0..200 {
            match self.driver.terminal(ID, SIZE).await {
                Err(Error::Unavailable(_)) if self.lives().await => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                other => return other,
            }
        }
        panic!("no terminal");
    }

    async fn lives(&self) -> bool {
        self.driver.list().await.unwrap().iter().any(|it| it.id == ID)
    }

    /// The command lines of the terminals' shells and all that they started, and of their supervisors.
    fn processes(&self) -> Vec<String> {
        processes(self.root.path())
    }

    async fn nothing_left(&self) {
        nothing_left(self.root.path()).await;
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let mark = self.root.path().canonicalize().unwrap();
        for (pid, environ, _) in all() {
            if environ.contains(&*mark.to_string_lossy()) {
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_raw(pid).unwrap(),
                    rustix::process::Signal::KILL,
                );
            }
        }
    }
}

fn all() -> Vec<(i32, String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let read = |name| {
            String::from_utf8_lossy(&std::fs::read(entry.path().join(name)).unwrap_or_default()).into_owned()
        };
        found.push((pid, read("environ"), read("cmdline").replace('\0', " ")));
    }
    found
}

fn processes(root: &Path) -> Vec<String> {
    let mark = root.canonicalize().unwrap().to_string_lossy().into_owned();
    let of_it = |environ: &str, line: &str| {
        (environ.contains(&mark) && environ.contains("PODYARD_TERMINAL="))
            || (line.contains(&mark) && line.contains(" shell "))
    };
    all().into_iter().filter(|(_, environ, line)| of_it(environ, line)).map(|(.., line)| line).collect()
}

async fn nothing_left(root: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = processes(root);
        let files = std::fs::read_dir(root.join("spaces").join(ID).join("run/terminals"));
        let files = files.map_or(0, Iterator::count);
        if left.is_empty() && files == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "left: {left:?}, {files} files");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A terminal, and what was seen in it.
struct Shell {
    terminal: Terminal,
    seen: Vec<u8>,
}

impl Shell {
    async fn type_in(&self, text: &str) {
        self.send(text.as_bytes()).await;
    }

    async fn send(&self, bytes: &[u8]) {
        self.terminal.input.send(TerminalInput::Data(Bytes::copy_from_slice(bytes))).await.unwrap();
    }

    async fn resize(&self, columns: u16, rows: u16) {
        let size = TerminalSize { columns, rows };
        self.terminal.input.send(TerminalInput::Resize(size)).await.unwrap();
    }

    /// Reads until the text has come. Gives all that came before and with it.
    async fn until(&mut self, text: &str) -> String {
        let reading = async {
            loop {
                let seen = String::from_utf8_lossy(&self.seen).into_owned();
                if let Some(at) = seen.find(text) {
                    let upto = seen[..at + text.len()].to_owned();
                    self.seen = self.seen.split_off(upto.len().min(self.seen.len()));
                    return upto;
                }
                match self.terminal.output.recv().await {
                    Some(bytes) => self.seen.extend_from_slice(&bytes),
                    None => panic!("it is over, and {text:?} is not in {seen:?}"),
                }
            }
        };
        let read = tokio::time::timeout(Duration::from_secs(20), reading).await;
        read.unwrap_or_else(|_| {
            panic!("{text:?} does not come after {:?}", String::from_utf8_lossy(&self.seen))
        })
    }

    /// All that still comes, and how it ended.
    async fn rest(mut self) -> (String, TerminalEnd) {
        let reading = async {
            while let Some(bytes) = self.terminal.output.recv().await {
                self.seen.extend_from_slice(&bytes);
            }
            self.terminal.end.await.unwrap()
        };
        let end = tokio::time::timeout(Duration::from_secs(20), reading).await.expect("an end");
        (String::from_utf8_lossy(&self.seen).into_owned(), end)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_in_the_spaces_folder_with_its_environment() {
    let house = House::with_env(&[("OWN", "of-the-template")]).await;
    let mut shell = house.open().await;
    // The line itself is echoed, too; what it says stands between other signs.
    shell.type_in("x=; echo \"<$x<$OWN|$PODYARD_SPACE_SID|$TERM|${LC_ALL:-${LC_CTYPE:-$LANG}}|$(pwd)|$HOME|$BASH>$x>\"\n").await;
    shell.until("<<").await;
    let said = shell.until(">>").await;
    let folder = house.root.path().canonicalize().unwrap().join("spaces").join(ID).join("data");
    let folder = folder.to_str().unwrap();
    let words: Vec<_> = said.split('|').collect();
    assert!(said.contains("of-the-template|s1|xterm-256color|"), "{said}");
    assert!(words[3].to_lowercase().replace('-', "").contains("utf8"), "{said}");
    assert!(said.contains(&format!("|{folder}|{folder}|")), "{said}");
    // bash is on this machine.
    assert!(said.contains("/bash>") || !Path::new("/usr/bin/bash").exists(), "{said}");
    shell.type_in("test -t 0 && test -t 1 && test -t 2 && : </dev/tty && echo a-terminal-$((1+1))\n").await;
    shell.until("a-terminal-2").await;
    shell.type_in("exit\n").await;
    assert_eq!(shell.rest().await.1, TerminalEnd { code: Some(0), reason: String::new() });
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_is_there_at_first_and_changes() {
    let house = House::new().await;
    let mut shell = house.open().await;
    shell.type_in("stty size\n").await;
    shell.until("30 100").await;
    shell.resize(132, 43).await;
    shell.type_in("stty size\n").await;
    shell.until("43 132").await;
    // Who runs in it is told of a change.
    shell.type_in("trap 'echo now-$(stty size)' WINCH; echo armed-$((1+1))\n").await;
    shell.until("armed-2").await;
    shell.resize(77, 22).await;
    shell.type_in("\n").await;
    shell.until("now-22 77").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_as_they_are() {
    let house = House::new().await;
    let mut shell = house.open().await;
    shell.type_in("x=; echo \"größer $x空間 🦀\"\n").await;
    shell.until("größer 空間 🦀\r\n").await;
    // One key erases a whole character, of however many bytes.
    shell.type_in("cat | od -An -tx1\n").await;
    shell.until("od -An -tx1").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    shell.type_in("a空\u{7f}b\n\u{4}").await;
    shell.until("61 62 0a").await;
    shell.type_in("stty raw -echo; printf g$((1+1))o; head -c 100000 | cat\n").await;
    shell.until("g2o").await;
    let bytes: Vec<u8> = (0..100_000_u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let input = shell.terminal.input.clone();
    let sent = bytes.clone();
    tokio::spawn(async move {
        for piece in sent.chunks(7000) {
            input.send(TerminalInput::Data(Bytes::copy_from_slice(piece))).await.unwrap();
        }
    });
    let mut back = std::mem::take(&mut shell.seen);
    while back.len() < bytes.len() {
        back.extend_from_slice(&shell.terminal.output.recv().await.unwrap());
    }
    assert!(back[..bytes.len()] == bytes, "what came back is not what was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn its_end_is_told_after_all_that_it_wrote() {
    let house = House::new().await;
    for (line, code) in [
        ("exit 7", Some(7)),
        ("exit", Some(0)),
        ("false; exit", Some(1)),
        ("exec sh -c 'exit 255'", Some(255)),
    ] {
        let shell = house.open().await;
        shell.type_in(&format!("seq 1 20000; {line}\n")).await;
        let (seen, end) = shell.rest().await;
        assert_eq!(end, TerminalEnd { code, reason: String::new() }, "{line}");
        assert!(
            seen.contains("\r\n19999\r\n20000\r\n"),
            "{line}: {}",
            &seen[seen.len().saturating_sub(200)..]
        );
    }
    let shell = house.open().await;
    shell.type_in("kill -9 $$\n").await;
    let (_, end) = shell.rest().await;
    assert_eq!(end, TerminalEnd { code: None, reason: "the shell was ended by signal 9".into() });
    // Ctrl-D at the prompt, Ctrl-C to what runs.
    let mut shell = house.open().await;
    shell.type_in("echo begin-$((1+1)); sleep 1000\n").await;
    shell.until("begin-2").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    shell.type_in("\u{3}").await;
    shell.type_in("echo still-$((40+2))\n").await;
    shell.until("still-42").await;
    shell.type_in("\u{4}").await;
    shell.rest().await;
    house.nothing_left().await;
}

/// One in the background, one that ignores a hang-up, one in a session of its
/// own that has lost its environment.
const CHILDREN: &str = "sleep 6660 & nohup sleep 6661 >/dev/null 2>&1 & \
    setsid env -i /bin/sh -c 'trap \"\" HUP TERM; exec sleep 6662' & echo ready-$((1+1))\n";

fn sleeps(numbers: std::ops::RangeInclusive<u32>) -> Vec<String> {
    let is = |line: &str| numbers.clone().any(|number| line.trim() == format!("sleep {number}"));
    all().into_iter().map(|(.., line)| line).filter(|line| is(line)).collect()
}

/// Only one test at a time may look for these.
static CHILDREN_LOCK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn no_children() {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !sleeps(6660..=6662).is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", sleeps(6660..=6662));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn with_children(house: &House) -> Shell {
    let mut shell = house.open().await;
    shell.type_in(CHILDREN).await;
    shell.until("ready-2").await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while sleeps(6660..=6662).len() < 3 {
        assert!(Instant::now() < deadline, "only {:?}", sleeps(6660..=6662));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shell
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_ends_it_ends_its_children() {
    let _lock = CHILDREN_LOCK.lock().await;
    let house = House::new().await;
    // The client goes.
    drop(with_children(&house).await);
    no_children().await;
    house.nothing_left().await;
    // The shell goes.
    let shell = with_children(&house).await;
    shell.type_in("exit 3\n").await;
    assert_eq!(shell.rest().await.1.code, Some(3));
    no_children().await;
    house.nothing_left().await;
    // The shell is killed.
    let shell = with_children(&house).await;
    shell.type_in("kill -9 $$\n").await;
    shell.rest().await;
    no_children().await;
    // Its supervisor is killed: what bears the terminal's mark goes all the same.
    let mut shell = house.open().await;
    shell.type_in("nohup sleep 6660 >/dev/null 2>&1 & echo ready-$((1+1))\n").await;
    shell.until("ready-2").await;
    let supervisor = all().into_iter().find(|(.., line)| {
        line.contains(" shell ")
            && line.contains(&*house.root.path().canonicalize().unwrap().to_string_lossy())
    });
    let supervisor = rustix::process::Pid::from_raw(supervisor.unwrap().0).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    assert_eq!(shell.rest().await.1.code, None);
    no_children().await;
    house.nothing_left().await;
    // The space is stopped: nothing runs when that returns.
    let shell = with_children(&house).await;
    let other = house.open().await;
    house.driver.stop(ID, Duration::from_secs(5)).await.unwrap();
    assert_eq!(house.processes(), Vec::<String>::new());
    assert_eq!(sleeps(6660..=6662), Vec::<String>::new());
    for shell in [shell, other] {
        let end = shell.rest().await.1;
        assert_eq!(end.code, None);
        assert!(end.reason.contains("the space"), "{end:?}");
    }
    assert!(matches!(house.driver.terminal(ID, SIZE).await, Err(Error::Unavailable(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_space_that_dies_takes_its_terminals_along() {
    let house = House::new().await;
    let shell = house.open().await;
    let file = house.root.path().join("spaces").join(ID).join("run/instance");
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let shim = rustix::process::Pid::from_raw(file["shim"].as_i64().unwrap() as i32).unwrap();
    let _ = rustix::process::kill_process(shim, rustix::process::Signal::KILL);
    let end = shell.rest().await.1;
    assert_eq!(end.code, None, "{end:?}");
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_stops_the_shell() {
    let house = House::new().await;
    let shell = house.open().await;
    shell.type_in("yes\n").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let used = || {
        let yes = all().into_iter().find(|(_, environ, line)| {
            line.trim() == "yes"
                && environ.contains(&*house.root.path().canonicalize().unwrap().to_string_lossy())
        });
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", yes.unwrap().0)).unwrap();
        let words: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().map(str::to_owned).collect();
        (words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap(), words[0].clone())
    };
    let before = used();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert_eq!(used(), before, "it goes on writing");
    // Then it is read again, and goes on.
    let mut shell = shell;
    let mut count = 0;
    while count < 1_000_000 {
        count += shell.terminal.output.recv().await.unwrap().len();
    }
    drop(shell);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_podyard_that_is_killed_leaves_no_shell() {
    let _lock = CHILDREN_LOCK.lock().await;
    let root = tempfile::tempdir().unwrap();
    let mut podyard = Command::new(PROGRAM);
    podyard.args(["hold", root.path().to_str().unwrap(), ID]).stdout(Stdio::null());
    let mut podyard = podyard.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while sleeps(6660..=6662).len() < 3 || processes(root.path()).is_empty() {
        assert!(Instant::now() < deadline, "no terminal");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    podyard.kill().unwrap();
    podyard.wait().unwrap();
    no_children().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !processes(root.path()).is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", processes(root.path()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The space itself lives on, and its stop tidies up.
    let options = Options { data_dir: root.path().to_owned(), podyard: PROGRAM.into() };
    let driver = ProcessDriver::open(options).await.unwrap();
    assert_eq!(driver.list().await.unwrap().len(), 1);
    driver.stop(ID, Duration::from_secs(5)).await.unwrap();
    nothing_left(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_come_and_go() {
    let house = House::new().await;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    drop(house.open().await);
    house.nothing_left().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = (descriptors(), tasks());
    for _ in 0..20 {
        let opening = (0..10).map(|_| house.try_open());
        let opened: Vec<_> = futures_join(opening).await;
        drop(opened);
    }
    house.nothing_left().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((descriptors(), tasks()), before);
}

async fn futures_join<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut done = Vec::new();
    for it in all {
        done.push(it.await);
    }
    done
}
