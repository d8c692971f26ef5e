//! Terminals in pods: the driver against the double of the API server, whose
//! execs are real shells, which go on when their client goes.
#![expect(clippy::unwrap_used, reason = "clippy knows the tests themselves, not what they share")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use podyard_driver::{Container, Driver, Error, Launch, Terminal, TerminalEnd, TerminalInput, TerminalSize};
use podyard_kubernetes::{KubernetesDriver, Options};
use podyard_kubernetes_double::{Double, Options as Doubled};

const SIZE: TerminalSize = TerminalSize { columns: 100, rows: 30 };

struct House {
    double: Double,
    folder: tempfile::TempDir,
}

impl House {
    async fn new() -> Self {
        let double = Double::start(Doubled { speed: 20.0, ..Doubled::default() }).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        double.write_kubeconfig(&folder.path().join("kubeconfig")).unwrap();
        Self { double, folder }
    }

    /// By which its processes are told from those of other tests.
    fn tag(&self) -> String {
        self.folder.path().file_name().unwrap().to_string_lossy().into_owned()
    }

    /// The scripts in its pods that hold terminals.
    fn keepers(&self) -> usize {
        let tag = self.tag();
        let has = |path: std::path::PathBuf, word: &str| {
            String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).contains(word)
        };
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter(|it| {
            has(it.path().join("cmdline"), "podyard-keeper") && has(it.path().join("environ"), &tag)
        })
        .count()
    }

    async fn driver(&self) -> KubernetesDriver {
        let kubeconfig = Some(self.folder.path().join("kubeconfig"));
        let lease = Duration::from_secs(3);
        KubernetesDriver::open(Options { kubeconfig, lease, ..Options::default() }).await.unwrap()
    }

    /// A driver with a space that runs.
    async fn running(&self) -> KubernetesDriver {
        let driver = self.driver().await;
        self.start(&driver).await;
        driver
    }

    async fn start(&self, driver: &KubernetesDriver) {
        let launch = Launch {
            id: "s1".into(),
            sid: "s10123456789abcdef".into(),
            base_path: "/ws/s10123456789abcdef/".into(),
            command: Vec::new(),
            env: vec![("OWN".into(), self.tag())],
            cpu: "100m".into(),
            memory: "64Mi".into(),
            storage: "1Gi".into(),
            user: "ann".into(),
            name: "space".into(),
            container: Some(Container {
                image: "example.org/ide:1".into(),
                port: 8080,
                ..Container::default()
            }),
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while driver.start(&launch).await.is_err() || driver.endpoint("s1").await.is_none() {
            assert!(Instant::now() < deadline, "it does not run");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

struct Shell {
    terminal: Terminal,
    seen: Vec<u8>,
}

async fn open(driver: &KubernetesDriver) -> Shell {
    Shell { terminal: driver.terminal("s1", SIZE).await.unwrap(), seen: Vec::new() }
}

impl Shell {
    async fn type_in(&self, text: &str) {
        self.send(Bytes::copy_from_slice(text.as_bytes())).await;
    }

    async fn send(&self, bytes: Bytes) {
        self.terminal.input.send(TerminalInput::Data(bytes)).await.unwrap();
    }

    async fn until(&mut self, text: &str) {
        let reading = async {
            loop {
                let seen = String::from_utf8_lossy(&self.seen).into_owned();
                if let Some(at) = seen.find(text) {
                    self.seen = seen.as_bytes()[at + text.len()..].to_vec();
                    return;
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
        });
    }

    async fn end(mut self) -> TerminalEnd {
        let reading = async {
            while self.terminal.output.recv().await.is_some() {}
            self.terminal.end.await.unwrap()
        };
        tokio::time::timeout(Duration::from_secs(30), reading).await.expect("an end")
    }
}

/// The processes with that command line.
fn running(line: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|it| std::fs::read(it.path().join("cmdline")).ok());
    lines.filter(|it| String::from_utf8_lossy(it).replace('\0', " ").trim() == line).count()
}

/// Starts children that outlive a hang-up, each of so many seconds.
async fn with_children(driver: &KubernetesDriver, seconds: u32) -> Shell {
    let mut shell = open(driver).await;
    let line = format!("sleep {seconds}");
    let work = format!(
        "{line} & nohup {line} >/dev/null 2>&1 & setsid sh -c 'trap \"\" HUP; {line}; true' & echo up-$((1+1))\n"
    );
    shell.type_in(&work).await;
    shell.until("up-2").await;
    until("children run", 10, || running(&line) == 3).await;
    shell
}

async fn until(what: &str, seconds: u64, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !is() {
        assert!(Instant::now() < deadline, "it did not come to be that {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn gone(seconds: u32, within: u64) {
    let line = format!("sleep {seconds}");
    until("all children are gone", within, || running(&line) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_of_the_right_size_that_tells_its_end() {
    let house = House::new().await;
    let driver = house.running().await;
    let mut shell = open(&driver).await;
    shell.type_in("x=; echo \"größer $x空間 $TERM <$OWN> ${LC_ALL:-${LC_CTYPE:-$LANG}}\"; stty size\n").await;
    shell.until(&format!("größer 空間 xterm-256color <{}> ", house.tag())).await;
    shell.until("30 100").await;
    shell.terminal.input.send(TerminalInput::Resize(TerminalSize { columns: 132, rows: 43 })).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    shell.type_in("stty size\n").await;
    shell.until("43 132").await;
    shell.type_in("stty raw -echo; printf g$((1+1))o; head -c 50000 | cat\n").await;
    shell.until("g2o").await;
    let bytes: Vec<u8> = (0..50_000_u32).map(|it| it.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    let input = shell.terminal.input.clone();
    let sent = bytes.clone();
    tokio::spawn(async move {
        for piece in sent.chunks(7000) {
            input.send(TerminalInput::Data(Bytes::copy_from_slice(piece))).await.unwrap();
        }
    });
    let mut back = Vec::new();
    while back.len() < bytes.len() {
        back.extend_from_slice(&shell.terminal.output.recv().await.unwrap());
    }
    assert!(back[..bytes.len()] == bytes, "what came back is not what was sent");
    shell.type_in("stty sane\nexit 7\n").await;
    assert_eq!(shell.end().await, TerminalEnd { code: Some(7), reason: String::new() });
    drop(house.double);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_ends_it_ends_its_children() {
    let house = House::new().await;
    let driver = house.running().await;
    // The client goes.
    drop(with_children(&driver, 5551).await);
    gone(5551, 10).await;
    // The shell goes.
    let shell = with_children(&driver, 5552).await;
    shell.type_in("exit 3\n").await;
    assert_eq!(shell.end().await.code, Some(3));
    gone(5552, 10).await;
    // Whoever opens and is gone at once.
    let held = driver.terminal("s1", SIZE).await.unwrap();
    assert!(house.keepers() > 0, "a keeper is not seen");
    drop(held);
    for _ in 0..10 {
        drop(driver.terminal("s1", SIZE).await.unwrap());
    }
    until("nothing is left", 15, || house.keepers() == 0).await;
    drop(house.double);
}

/// The worst: this process dies, and the cluster goes on as if nothing was.
#[test]
fn a_podyard_that_is_killed_leaves_no_shell() {
    let outside = tokio::runtime::Runtime::new().unwrap();
    let house = outside.block_on(House::new());
    let inside = tokio::runtime::Runtime::new().unwrap();
    let shell = inside.block_on(async {
        let driver = house.running().await;
        let shell = with_children(&driver, 5553).await;
        std::mem::forget(driver);
        shell
    });
    // All its connections break, and nobody says anything any more.
    inside.shutdown_background();
    std::mem::forget(shell);
    outside.block_on(async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(running("sleep 5553"), 3, "the cluster itself ends nothing");
        // Its patience, and a look at every process of a busy machine.
        gone(5553, 150).await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_stops_the_shell() {
    let house = House::new().await;
    let driver = house.running().await;
    let shell = open(&driver).await;
    shell.type_in("yes 'a line of one who does not read'\n").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let is = |it: &std::fs::DirEntry| {
            std::fs::read(it.path().join("cmdline")).is_ok_and(|it| it.ends_with(b"one who does not read\0"))
        };
        let stat = std::fs::read_to_string(all.into_iter().find(is).unwrap().path().join("stat")).unwrap();
        let words: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().map(str::to_owned).collect();
        words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap()
    };
    let before = used();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(used() <= before + 1, "it goes on writing");
    // Ctrl-C reaches it all the same.
    let mut shell = shell;
    shell.type_in("\u{3}echo over-$((1+1))\n").await;
    shell.until("over-2").await;
    drop(house.double);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_end_is_the_terminals() {
    let house = House::new().await;
    let driver = house.running().await;
    let shell = open(&driver).await;
    driver.stop("s1", Duration::from_secs(1)).await.unwrap();
    assert_eq!(shell.end().await, TerminalEnd { code: None, reason: "the space has ended".into() });
    // A shell that is killed alone has its own end.
    house.start(&driver).await;
    let mut shell = open(&driver).await;
    shell.type_in("echo up-$((1+1)); kill -s KILL $$\n").await;
    shell.until("up-2").await;
    assert_eq!(shell.end().await, TerminalEnd { code: Some(137), reason: String::new() });
    driver.stop("s1", Duration::from_secs(1)).await.unwrap();
    assert!(matches!(driver.terminal("s1", SIZE).await, Err(Error::Unavailable(_))));
    drop(house.double);
}
