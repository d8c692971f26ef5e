//! What the tests run: the shim, programs of all sorts, and a Podyard that can
//! be killed.
#![expect(clippy::unwrap_used, reason = "it is a part of the tests")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use podyard_driver::{
    Driver, Launch, Options, ProcessDriver, TerminalInput, TerminalSize, shell_main, shim_main,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments[1..].iter().map(String::as_str).collect();
    match words.as_slice() {
        ["shim", run] => return shim_main(Path::new(run)),
        ["shell", run, id] => return shell_main(Path::new(run), id),
        ["serve", port] => serve(port),
        // Accepts and never answers.
        ["mute", port] => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse().unwrap())).unwrap();
            let _held: Vec<_> = listener.incoming().collect();
        }
        // Starts one that leaves its session, and serves.
        ["tree", port] => {
            let me = std::env::current_exe().unwrap();
            Command::new(&me).arg("daemon").spawn().unwrap().wait().unwrap();
            serve(port);
        }
        // Forks twice, with a session of its own, and ignores TERM.
        ["daemon"] => {
            Command::new("sh")
                .args([
                    "-c",
                    "trap '' TERM HUP; setsid sh -c \"trap '' TERM HUP; while :; do sleep 1; done\" & ",
                ])
                .process_group(0)
                .spawn()
                .unwrap()
                .wait()
                .unwrap();
        }
        // A Podyard: starts the space and waits to be killed.
        ["drive", root, port_of] => drive(root, port_of),
        // A Podyard that holds a terminal open, and waits to be killed.
        ["hold", root, id] => hold(root, id),
        other => panic!("no program {other:?}"),
    }
    ExitCode::SUCCESS
}

fn serve(port: &str) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse().unwrap())).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let _ = stream.read(&mut [0; 2048]);
        let _ = stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    }
}

fn drive(root: &str, id: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let podyard = std::env::current_exe().unwrap();
        let driver = ProcessDriver::open(Options { data_dir: root.into(), podyard }).await.unwrap();
        let launch = Launch {
            id: id.into(),
            sid: "sid".into(),
            base_path: "/ws/sid/".into(),
            command: vec!["{podyard}".into(), "serve".into(), "{port}".into()],
            env: Vec::new(),
            cpu: String::new(),
            memory: String::new(),
            storage: String::new(),
            user: String::new(),
            name: String::new(),
            container: None,
        };
        println!("{}", driver.start(&launch).await.unwrap().id);
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
}

fn hold(root: &str, id: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = Options { data_dir: root.into(), podyard: std::env::current_exe().unwrap() };
        let driver = ProcessDriver::open(options).await.unwrap();
        let launch = Launch {
            id: id.into(),
            sid: "s1".into(),
            base_path: "/ws/s1/".into(),
            command: ["sh", "-c", "exec sleep 10000"].map(str::to_owned).to_vec(),
            env: Vec::new(),
            cpu: "1".into(),
            memory: "1Gi".into(),
            storage: "1Gi".into(),
            user: String::new(),
            name: String::new(),
            container: None,
        };
        driver.start(&launch).await.unwrap();
        let size = TerminalSize { columns: 80, rows: 24 };
        let mut terminal = loop {
            match driver.terminal(id, size).await {
                Ok(terminal) => break terminal,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let work = "sleep 6660 & nohup sleep 6661 >/dev/null 2>&1 & \
            setsid env -i /bin/sh -c 'trap \"\" HUP TERM; exec sleep 6662' &\n";
        terminal.input.send(TerminalInput::Data(work.into())).await.unwrap();
        while terminal.output.recv().await.is_some() {}
    });
}
