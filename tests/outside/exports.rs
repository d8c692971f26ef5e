//! Exports: whole lists as files, in constant memory, whoever reads how slowly.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Client, House, Kind, body, key, until};

on_each_database!(
    a_list_becomes_csv,
    a_list_becomes_ndjson,
    an_export_has_all_rows_once,
    a_large_export_takes_little_memory,
    slow_readers_hold_nobody_up,
    an_export_that_fails_is_broken_off,
);

/// The socket's own matter, so on one database: a client that takes nothing
/// for a minute is let go, whatever was still to be sent.
#[cfg(target_os = "linux")]
#[test]
fn who_takes_nothing_is_let_go() {
    let house = House::new(Kind::Sqlite);
    let server = house.serve(&[]);
    let admin = server.admin();
    fill(&house, 20_000);
    let stream = stalled(&admin, "/specs?export=csv");
    // The server's end of it, as the kernel lists it: both ports, in hex.
    let (here, there) = (stream.local_addr().unwrap().port(), stream.peer_addr().unwrap().port());
    let is_open = || {
        let all = std::fs::read_to_string("/proc/net/tcp").unwrap();
        all.lines().any(|it| it.contains(&format!(":{there:04X} 0100007F:{here:04X} 01 ")))
    };
    assert!(is_open());
    crate::harness::until("the connection is ended", Duration::from_secs(120), || (!is_open()).then_some(()));
    drop(stream);
    admin.get("/specs?limit=1").expect(200);
}

/// The cells of a file of CSV.
fn cells(text: &str) -> Vec<Vec<String>> {
    let mut rows = vec![vec![String::new()]];
    let (mut quoted, mut chars) = (false, text.chars().peekable());
    while let Some(c) = chars.next() {
        let row = rows.last_mut().unwrap();
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => row.last_mut().unwrap().push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(String::new()),
            '\r' if !quoted => {}
            '\n' if !quoted => rows.push(vec![String::new()]),
            c => row.last_mut().unwrap().push(c),
        }
    }
    assert!(!quoted);
    assert_eq!(rows.pop().unwrap(), [""], "the last line ends");
    rows
}

fn spec(admin: &Client, name: &str, description: &str) {
    let fields =
        json!({"name": name, "cpu": "1", "memory": "1Gi", "storage": "1Gi", "description": description});
    admin.post("/specs", &body("spec", fields)).expect(201);
}

fn a_list_becomes_csv(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let awkward = ["=1+1", "-2", "@x", "+y", "a,b", "say \"x\"", "two\nlines", "", "ünï 名字", "'quoted'"];
    for (i, text) in awkward.iter().enumerate() {
        spec(&admin, &format!("awkward {i}"), text);
    }
    let answer = admin
        .get("/specs?export=csv&field=name,description,version&search=awkward&order_by=created_at")
        .expect(200);
    assert!(answer.header("content-type").starts_with("text/csv"), "{:?}", answer.headers);
    assert_eq!(answer.header("content-disposition"), "attachment; filename=\"specs.csv\"");
    let found = cells(&answer.text());
    assert_eq!(found[0], ["version", "name", "description"]);
    assert_eq!(found.len(), awkward.len() + 1);
    for (row, text) in found[1..].iter().zip(awkward) {
        let safe = if text.starts_with(['=', '-', '@', '+']) { format!("'{text}") } else { text.to_owned() };
        assert_eq!((row[0].as_str(), &row[2]), ("1", &safe));
    }
    // As a list shows it: extra columns too, and nothing that the caller may not see.
    let ann = admin.member("ann");
    ann.space("x", "files");
    let mine = cells(&ann.get("/spaces?export=csv").expect(200).text());
    let column = |name: &str| mine[0].iter().position(|it| it == name);
    assert_eq!(mine[1][column("template").unwrap()], "Files");
    assert_eq!(mine[1][column("running").unwrap()], "false");
    assert_eq!(mine[1][column("exit_code").unwrap()], "");
    assert!(column("node").is_none() && column("deleted").is_none());
    assert!(ann.get("/templates?export=csv").expect(200).text().contains("[\"\"") || !mine.is_empty());
    let without = cells(&ann.get("/spaces?export=csv&exclude=template,name&details=true").expect(200).text());
    assert!(!without[0].iter().any(|it| it == "template" || it == "name"));
    // By `Accept`, an empty list, and a limit.
    let by = |accept: &str| ann.send("GET", "/spaces", &[("Accept", accept)], None).expect(200);
    assert_eq!(cells(&by("text/csv").text()), mine);
    assert!(by("application/json, text/csv").json()["spaces"].is_array());
    assert!(by("text/html, */*").json()["spaces"].is_array());
    assert_eq!(cells(&admin.get("/specs?export=csv&field=name&name=none").text()), [["name"]]);
    assert_eq!(cells(&admin.get("/specs?export=csv&field=name&limit=3").text()).len(), 4);
    ann.nobody().get("/spaces?export=csv").expect(401);
    assert_eq!(ann.get("/spaces?export=csv&filter=x").expect(400).blamed(), ["filter"]);
}

fn a_list_becomes_ndjson(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let answer = admin.get("/templates?export=ndjson&order_by=name").expect(200);
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    assert_eq!(answer.header("content-disposition"), "attachment; filename=\"templates.ndjson\"");
    let lines: Vec<Value> = answer.text().lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    let listed = admin.get("/templates?order_by=name&limit=1000").expect(200).of("templates");
    assert_eq!(Value::from(lines), listed, "what a list shows, a line each");
    let by = admin.send("GET", "/templates?order_by=name", &[("Accept", "application/x-ndjson")], None);
    assert_eq!(by.expect(200).text(), answer.text());
    assert_eq!(admin.get("/specs?export=ndjson&name=none").expect(200).text(), "");
}

/// Adds so many rows, each larger than a kilobyte, past the server.
fn fill(house: &House, rows: u32) {
    let text = "x".repeat(1000);
    let values = format!("'fill ' || n, '{text}', '1', '1Gi', '1Gi', TRUE");
    let columns = "id, version, created_at, updated_at, name, description, cpu, memory, storage, enabled";
    run(
        house,
        &format!(
            "INSERT INTO specs ({columns}) WITH RECURSIVE numbers(n) AS \
             (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows}) SELECT 'fill-' || n, 1, n / 7, n, {values} FROM numbers"
        ),
    );
}

/// Runs a statement on the database itself.
fn run(house: &House, sql: &str) {
    match &house.database.url {
        Some(url) => crate::harness::Session::open(url).execute(sql),
        None => {
            use diesel::connection::SimpleConnection as _;
            let file = house.data_dir().join("podyard.sqlite3");
            let mut conn =
                <diesel::SqliteConnection as diesel::Connection>::establish(file.to_str().unwrap()).unwrap();
            conn.batch_execute(&format!("PRAGMA busy_timeout = 20000; {sql}")).unwrap();
        }
    }
}

fn an_export_has_all_rows_once(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    fill(&house, 1234);
    for order in ["created_at", "-created_at", "name", "version,-created_at", "id"] {
        let text = admin
            .get(&format!("/specs?export=ndjson&field=id&search=fill&order_by={order}"))
            .expect(200)
            .text();
        let mut ids: Vec<String> =
            text.lines().map(|it| key(&serde_json::from_str(it).unwrap(), "id")).collect();
        assert_eq!(ids.len(), 1234, "{order}");
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 1234, "{order}");
    }
    for (limit, wanted) in [(1, 1), (250, 250), (251, 251), (1200, 1200), (5000, 1234)] {
        let text =
            admin.get(&format!("/specs?export=csv&field=id&filter=name.startswith(fill)&limit={limit}"));
        assert_eq!(cells(&text.expect(200).text()).len(), wanted + 1, "with its header");
    }
}

/// Kilobytes of memory that the process holds.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|it| it.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Asks and reads only the beginning of the answer.
fn stalled(client: &Client, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(client.base.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let token = client.token.as_deref().unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n\r\n").unwrap();
    let mut beginning = [0; 64];
    stream.read_exact(&mut beginning).unwrap();
    assert!(beginning.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&beginning));
    stream
}

fn a_large_export_takes_little_memory(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    fill(&house, 30_000);
    admin.get("/specs?limit=1000").expect(200);
    let before = resident(server.pid());
    let answer = admin.get("/specs?export=ndjson&search=fill").expect(200);
    assert!(answer.bytes.len() > 30_000_000, "{}", answer.bytes.len());
    assert_eq!(answer.bytes.iter().filter(|it| **it == b'\n').count(), 30_000);
    // It was told in pieces; none was kept.
    let grown = resident(server.pid()) - before;
    assert!(grown < 15_000, "{grown} kB for {} bytes", answer.bytes.len());
}

fn slow_readers_hold_nobody_up(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    fill(&house, 20_000);
    // More than there are connections; none of them reads on.
    let streams: Vec<_> = (0..24).map(|_| stalled(&admin, "/specs?export=csv")).collect();
    for _ in 0..3 {
        admin.get("/specs?search=fill&limit=1").expect(200);
        admin.get("/specs/statistics").expect(200);
        spec(&admin, &format!("new {}", crate::harness::random(u64::MAX)), "");
    }
    drop(streams);
    admin.get("/specs?total=true&limit=1").expect(200);
}

fn an_export_that_fails_is_broken_off(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    fill(&house, 30_000);
    let mut whole = stalled(&admin, "/specs?export=ndjson&limit=2000");
    let mut stream = stalled(&admin, "/specs?export=ndjson");
    let mut text = Vec::new();
    let mut piece = [0; 1 << 16];
    while !text.ends_with(b"\r\n0\r\n\r\n") {
        let n = whole.read(&mut piece).unwrap();
        assert!(n > 0, "one that does not fail ends as it should");
        text.extend_from_slice(&piece[..n]);
    }
    run(&house, "ALTER TABLE specs RENAME TO elsewhere");
    text.clear();
    // Either the end of the connection or a reset: but never the last piece.
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        text.extend_from_slice(&piece[..n]);
    }
    assert!(text.len() < 30_000_000, "it was read to its end before the table went");
    assert!(!text.ends_with(b"\r\n0\r\n\r\n"), "a part was told as the whole");
    until("the log says so", Duration::from_secs(10), || {
        server.logged().contains("an export was broken off").then_some(())
    });
    run(&house, "ALTER TABLE elsewhere RENAME TO specs");
    admin.get("/specs?limit=1").expect(200);
}
