//! Logs of spaces that are followed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use crate::harness::{Client, House, Kind, key, until};

on_each_database!(
    a_log_is_followed_to_the_end_of_its_run,
    whoever_follows_slowly_or_goes_away_holds_nobody_up,
    a_log_is_not_for_strangers,
    a_log_ends_with_the_token,
);

/// Lines of an answer that goes on, as they come; the end is the channel's.
struct Following {
    lines: Receiver<String>,
    head: String,
    stream: TcpStream,
}

/// Asks, and reads nothing yet.
fn ask(client: &Client, path: &str) -> TcpStream {
    let addr = client.base.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(addr).unwrap();
    let token = client.token.clone().unwrap_or_default();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nX-Auth-Token: {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

impl Following {
    fn open(client: &Client, path: &str) -> Self {
        Self::of(ask(client, path))
    }

    fn of(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "no head: {head}");
        }
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            // Chunks: a length, the bytes, and an empty line behind them.
            loop {
                let mut length = String::new();
                if reader.read_line(&mut length).unwrap_or(0) == 0 {
                    return;
                }
                let Ok(length) = usize::from_str_radix(length.trim(), 16) else { return };
                let mut piece = vec![0; length + 2];
                if reader.read_exact(&mut piece).is_err() || length == 0 {
                    return;
                }
                text.push_str(&String::from_utf8_lossy(&piece[..length]));
                while let Some((line, rest)) = text.split_once('\n') {
                    let (line, rest) = (line.to_owned(), rest.to_owned());
                    if tell.send(line).is_err() {
                        return;
                    }
                    text = rest;
                }
            }
        });
        Self { lines, head, stream }
    }

    #[track_caller]
    fn next(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|e| panic!("no line: {e}"))
    }

    #[track_caller]
    fn ends(&self) {
        let end = self.lines.recv_timeout(Duration::from_secs(20));
        assert_eq!(end, Err(RecvTimeoutError::Disconnected));
    }
}

fn a_log_is_followed_to_the_end_of_its_run(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let space = admin.running_space("x", &template);
    let (id, url) = (key(&space, "id"), key(&space, "url"));
    let say = |n: u32| drop(admin.get(&format!("{url}say?n={n}")).expect(200));
    say(5);
    let path = |more: &str| format!("/spaces/{id}/log?follow=true{more}");
    // By name as well, and as text.
    let all = Following::open(&admin, "/spaces/x/log?follow=true&tail=2");
    assert!(all.head.starts_with("HTTP/1.1 200 "), "{}", all.head);
    assert!(all.head.to_lowercase().contains("content-type: text/plain"), "{}", all.head);
    assert_eq!([all.next(), all.next()], ["line 4 of 5", "line 5 of 5"]);
    let none = Following::open(&admin, &path("&tail=0"));
    say(2);
    for follower in [&all, &none] {
        assert_eq!([follower.next(), follower.next()], ["line 1 of 2", "line 2 of 2"]);
    }
    // The same in one answer.
    let log = admin.get(&format!("/spaces/{id}/log?tail=1")).expect(200).of("space");
    assert_eq!(log["log"], "line 2 of 2\n");
    // It ends with the run, and not before its last words.
    let _ = admin.try_send("GET", &format!("{url}exit?code=3"), &[], None);
    for follower in [&all, &none] {
        assert_eq!([follower.next(), follower.next()], ["asked to end", "with 3"]);
        follower.ends();
    }
    admin.wait_for(&id, &["stopped"]);
    let over = Following::open(&admin, &path("&tail=1"));
    assert_eq!(over.next(), "with 3");
    over.ends();
    for (query, field) in [
        ("follow=true&tail=x", "tail"),
        ("follow=true&tail=-1", "tail"),
        ("follow=true&bytes=5", "bytes"),
        ("follow=true&none=1", "none"),
        ("follow=maybe", "follow"),
        ("tail=x", "tail"),
    ] {
        let answer = admin.get(&format!("/spaces/{id}/log?{query}"));
        assert_eq!(answer.refused(400, "InputParameterError").blamed(), [field], "{query}");
    }
}

fn whoever_follows_slowly_or_goes_away_holds_nobody_up(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let space = admin.running_space("x", &template);
    let (id, url) = (key(&space, "id"), key(&space, "url"));
    let open_files = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    // Once, so that whatever is kept is open already.
    Following::open(&admin, &format!("/spaces/{id}/log?follow=true")).next();
    let before = open_files();
    // One that reads nothing while four megabytes come.
    let slow = ask(&admin, &format!("/spaces/{id}/log?follow=true&tail=0"));
    std::thread::sleep(Duration::from_millis(500));
    admin.get(&format!("{url}say?n=200000")).expect(200);
    let brisk = Following::open(&admin, &format!("/spaces/{id}/log?follow=true&tail=1"));
    assert_eq!(brisk.next(), "line 200000 of 200000");
    let slow = Following::of(slow);
    for i in 1..=200_000 {
        assert_eq!(slow.next(), format!("line {i} of 200000"));
    }
    // Gone, they leave nothing behind, although the log goes on.
    let many: Vec<_> =
        (0..5).map(|_| Following::open(&admin, &format!("/spaces/{id}/log?follow=true"))).collect();
    for follower in many.iter().chain([&slow, &brisk]) {
        follower.stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
    drop((many, slow, brisk));
    until("nobody follows any more", Duration::from_secs(20), || (open_files() <= before + 2).then_some(()));
    admin.get(&format!("{url}say?n=1")).expect(200);
}

fn a_log_is_not_for_strangers(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let id = ann.space("x", "files");
    let path = format!("/spaces/{id}/log?follow=true");
    bob.get(&path).refused(404, "ResourceNotFoundError");
    bob.get("/spaces/none/log?follow=true").refused(404, "ResourceNotFoundError");
    bob.nobody().get(&path).refused(401, "UnauthorizedError");
    // One that never ran has none, and that is its end.
    assert_eq!(ann.get(&path).expect(200).text(), "");
    assert_eq!(admin.get(&path).expect(200).text(), "");
}

fn a_log_ends_with_the_token(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let space = ann.running_space("x", &admin.serving_template());
    let (path, url) = (format!("/spaces/{}/log?follow=true&tail=0", key(&space, "id")), key(&space, "url"));
    let (revoked, kept) = (Following::open(&ann, &path), Following::open(&admin, &path));
    let token = ann.token.clone().unwrap();
    ann.send("DELETE", "/v3/auth/tokens", &[("X-Subject-Token", &token)], None).expect(204);
    // Though nothing is written meanwhile.
    revoked.ends();
    // Whoever still may goes on.
    let again = ann.login("ann", "password-of-ann");
    again.get(&format!("{url}say?n=1")).expect(200);
    assert_eq!(kept.next(), "line 1 of 1");
}
