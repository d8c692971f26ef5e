//! What comes and goes through terminals: clients that are idle, silent, slow
//! or gone, and what is left of them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::harness::terminal::{descriptors, metrics, no_shells, open, resident, running, try_open};
use crate::harness::{House, Kind, until};

#[test]
fn the_idle_and_the_silent_are_closed() {
    let house = House::new(Kind::Sqlite);
    let (_server, _, ann, id) = running(&house, &["--terminal-idle", "2", "--terminal-ping", "1"]);
    let mut shell = open(&ann, &id);
    // As long as something moves, it is not idle.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(800));
        shell.type_in("echo still-$((1+1))\n");
        shell.until("still-2");
    }
    let start = Instant::now();
    let (said, code) = shell.end();
    assert_eq!((&said["error"]["class"], code), (&json!("TerminalIdleError"), CloseCode::Policy), "{said}");
    let took = start.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(6)).contains(&took), "{took:?}");
    no_shells(&id);
    // Pings come, and who leaves them unanswered is gone.
    let mut shell = open(&ann, &id);
    shell.type_in("while sleep 0.5; do echo .; done\n");
    let mut stream = shell.socket.get_ref().try_clone().unwrap();
    let (start, mut bytes, mut piece) = (Instant::now(), Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
        }
        assert!(start.elapsed() < Duration::from_secs(20), "a silent client is still there");
    }
    assert!(bytes.windows(2).any(|it| it == [0x89, 0]), "no ping came");
    assert!(String::from_utf8_lossy(&bytes).contains("TerminalSilentError"));
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    no_shells(&id);
}

#[test]
fn who_does_not_read_stops_the_shell() {
    let house = House::new(Kind::Sqlite);
    let (server, admin, ann, id) = running(&house, &["--terminal-ping", "1"]);
    drop(open(&ann, &id));
    no_shells(&id);
    let before = resident(server.pid());
    let mut all: Vec<_> = (0..10).map(|_| open(&ann, &id)).collect();
    for shell in &mut all {
        shell.type_in("yes 'a line that is repeated for as long as somebody reads it'\n");
    }
    let shown = || metrics(&admin)["podyard_terminal_bytes_shown_total"];
    // What is on the way fills first, which takes a while on a busy machine.
    let mut before_it = shown();
    until("the shells stop", Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_secs(2));
        let now = shown();
        let went_on = now - std::mem::replace(&mut before_it, now);
        (went_on < 1_000_000.0).then_some(())
    });
    let grown = resident(server.pid()).saturating_sub(before);
    assert!(grown < 24 << 20, "{} KiB more are in memory", grown >> 10);
    // Nor is one that only writes read without end.
    let mut deaf = open(&ann, &id);
    deaf.type_in("stty raw -echo; echo ready-$((1+1)); sleep 1000\n");
    deaf.until("ready-2");
    let mut stream = deaf.socket.get_ref().try_clone().unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut frame = vec![0x82, 0xfe, 0xff, 0x00, 0, 0, 0, 0];
    frame.resize(8 + 0xff00, b'x');
    let mut sent = 0_usize;
    while sent < 64 << 20 && stream.write_all(&frame).is_ok() {
        sent += frame.len();
    }
    assert!(sent < 32 << 20, "{sent} bytes were taken for a shell that does not read");
    let grown = resident(server.pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "{} KiB more are in memory", grown >> 10);
    // Ctrl-C passes though the output is stuck, and reading goes on where it stopped.
    let mut first = all.remove(0);
    first.type_in("\u{3}echo over-$((1+1))\n");
    first.until("over-2");
    drop((first, all, deaf, stream));
    no_shells(&id);
}

/// Ends a connection as a network does that breaks.
fn reset(stream: &TcpStream) {
    // SO_LINGER 0 is not in std; a closed reading side with data on the way does the same.
    let _ = stream.shutdown(Shutdown::Both);
}

#[test]
fn a_thousand_come_and_go_and_nothing_is_left() {
    let house = House::new(Kind::Sqlite);
    let (server, admin, ann, id) = running(&house, &["--max-space-terminals", "1000"]);
    let pid = server.pid();
    let token = ann.token.clone().unwrap();
    let address = ann.base.strip_prefix("http://").unwrap().to_owned();
    let path = format!("/spaces/{id}/terminal");
    let one = |i: usize| match i % 5 {
        // Gone before the answer.
        0 => {
            let mut stream = TcpStream::connect(&address).unwrap();
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).unwrap();
            if i.is_multiple_of(2) {
                std::thread::sleep(Duration::from_millis((i % 13) as u64));
            }
        }
        // Opened and closed at once.
        1 => drop(try_open(&ann, &id)),
        // In the middle of output.
        2 => {
            if let Ok(mut shell) = try_open(&ann, &id) {
                shell.type_in("yes\n");
                shell.until("y\r\ny");
                reset(shell.socket.get_ref());
            }
        }
        // With children that ignore a hang-up.
        3 => {
            if let Ok(mut shell) = try_open(&ann, &id) {
                shell.type_in("trap '' HUP; nohup sleep 906 >/dev/null 2>&1 & echo up-$((1+1))\n");
                shell.until("up-2");
            }
        }
        // Politely.
        _ => {
            if let Ok(mut shell) = try_open(&ann, &id) {
                shell.type_in("exit\n");
                let _ = shell.end();
            }
        }
    };
    let rounds = |from: usize, to: usize| {
        let next = std::sync::atomic::AtomicUsize::new(from);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if i >= to {
                            break;
                        }
                        one(i);
                    }
                });
            }
        });
    };
    let names = ["podyard_terminals_open", "podyard_terminal_tasks"];
    let settled = || {
        no_shells(&id);
        until("all terminals are closed", Duration::from_secs(30), || {
            let now = metrics(&admin);
            names.iter().all(|it| now[*it] == 0.0).then_some(())
        });
    };
    let children = || {
        let all = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|it| fs::read_to_string(it.path().join("stat")).ok());
        all.filter(|it| {
            it.rsplit(')').next().is_some_and(|it| it.split_whitespace().nth(1) == Some(&pid.to_string()))
        })
        .count()
    };
    // The first ones warm up what is kept on purpose.
    rounds(0, 100);
    settled();
    let tasks = || metrics(&admin)["podyard_async_tasks"];
    let before = (descriptors(pid), children(), tasks(), resident(pid));
    rounds(100, 1100);
    settled();
    let back = |what: &str, now: &dyn Fn() -> f64, was: f64| {
        let start = Instant::now();
        while now() > was {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}: {} and not {was}", now());
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    // Connections of the tests' own clients and of the database come and go, too.
    back("descriptors", &|| descriptors(pid) as f64, before.0 as f64 + 3.0);
    back("processes", &|| children() as f64, before.1 as f64);
    back("tasks", &tasks, before.2 + 2.0);
    let grown = resident(pid).saturating_sub(before.3);
    assert!(grown < 8 << 20, "{} KiB more are in memory", grown >> 10);
    eprintln!(
        "after 1000 terminals: {} KiB more, {} descriptors, {} children",
        grown >> 10,
        descriptors(pid),
        children()
    );
    let now = metrics(&admin);
    assert!(now["podyard_terminals_opened_total"] >= 800.0, "{}", now["podyard_terminals_opened_total"]);
    // Each that was opened has its end on record, too.
    let count =
        |action: &str| house.count(&format!("SELECT count(*) FROM ops_log WHERE action = '{action}'"));
    until("all ends are on record", Duration::from_secs(60), || {
        (count("terminal_opened") == count("terminal_closed")).then_some(())
    });
    assert!(count("terminal_closed") >= 800);
}
