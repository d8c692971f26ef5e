//! What the tests run: the shim, programs of all sorts, and a Podyard that can
//! be killed.
#![expect(clippy::unwrap_used, reason = "it is a part of the tests")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use podyard_driver::{Driver, Launch, Options, ProcessDriver, shell_main, shim_main};

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
