//! `?watch=true`: whoever watches hears of all that is theirs, in order, once,
//! and of nothing else, whatever happens to servers, tokens and connections.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use diesel::Connection as _;
use diesel::connection::SimpleConnection as _;
use serde_json::{Value, json};

use crate::harness::{Client, House, Kind, Session, at_once, body, key, until};

on_each_database!(
    an_owner_hears_of_each_change_in_order,
    strangers_hear_nothing_and_administrators_all,
    what_leaves_the_filter_is_told_as_deleted,
    a_stream_may_begin_with_what_is_there,
    after_a_kill_a_watcher_goes_on_and_has_missed_nothing,
    two_servers_and_many_writers_lose_nothing,
    a_token_that_ends_ends_the_stream,
    a_server_that_is_asked_to_end_ends_its_streams,
    what_is_kept_no_longer_is_gone,
    what_cannot_be_watched_is_refused,
    one_user_cannot_take_all_streams,
    what_is_given_away_is_told_to_both,
    what_stands_below_another_row_is_watched_there,
    a_place_in_another_log_is_none_in_this,
);

/// Generous: the machine may be slow, and other tests write to the same PostgreSQL.
const SOON: Duration = Duration::from_secs(30);

/// One event of a stream.
#[derive(Debug, Clone)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

/// An open stream.
struct Watch {
    socket: TcpStream,
    events: Receiver<Event>,
    head: String,
}

fn parse(socket: TcpStream, tell: impl Fn(Event) -> bool) -> std::io::Result<()> {
    let mut reader = BufReader::new(socket);
    let mut text = Vec::new();
    loop {
        let mut size = String::new();
        reader.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 {
            return Ok(());
        }
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk)?;
        text.extend_from_slice(&chunk[..size]);
        while let Some(end) = text.windows(2).position(|it| it == b"\n\n") {
            let block: Vec<u8> = text.drain(..end + 2).collect();
            let block = String::from_utf8(block).unwrap();
            let field = |name: &str| {
                let start = format!("{name}: ");
                block.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_default().to_owned()
            };
            let (id, name, data) = (field("id"), field("event"), field("data"));
            let data = if data.is_empty() { Value::Null } else { serde_json::from_str(&data).unwrap() };
            if !tell(Event { id, name, data }) {
                return Ok(());
            }
        }
    }
}

impl Watch {
    /// Opens a stream and waits for its head.
    #[track_caller]
    fn open(client: &Client, path: &str, last: Option<&str>) -> Self {
        let mut socket = TcpStream::connect(client.base.strip_prefix("http://").unwrap()).unwrap();
        let token = client.token.as_deref().unwrap();
        let last = last.map(|it| format!("Last-Event-ID: {it}\r\n")).unwrap_or_default();
        let asked = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n{last}Connection: close\r\n\r\n"
        );
        socket.write_all(asked.as_bytes()).unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            assert_eq!(socket.read(&mut byte).unwrap(), 1, "{path}: {}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        let (tell, events) = channel();
        let reading = socket.try_clone().unwrap();
        std::thread::spawn(move || parse(reading, |event| tell.send(event).is_ok()));
        Self { socket, events, head }
    }

    /// The next event, heartbeats left out; none: the stream has ended.
    #[track_caller]
    fn next(&self) -> Option<Event> {
        let end = Instant::now() + SOON;
        loop {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(event) if event.name.is_empty() => {}
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => panic!("no event came within {SOON:?}"),
            }
        }
    }

    /// The next event, which must be this one of a space.
    #[track_caller]
    fn expect(&self, name: &str, id: &str) -> Event {
        let event = self.next().expect("the stream has ended");
        assert_eq!((event.name.as_str(), &event.data["space"]["id"]), (name, &json!(id)), "{event:?}");
        event
    }

    #[track_caller]
    fn ready(&self) -> String {
        let event = self.next().expect("the stream has ended");
        assert_eq!(event.name, "ready", "{event:?}");
        assert_eq!(event.data["position"], event.id);
        event.id
    }

    /// Reads on until an event of that name.
    #[track_caller]
    fn find(&self, name: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.next().expect("the stream has ended");
            if wanted(&event) && event.name == name {
                return event;
            }
        }
    }

    /// Whether there is silence about spaces up to the creation of another
    /// one, which `herald` makes and this stream hears of.
    #[track_caller]
    fn silent_until(&self, herald: &Client, name: &str) {
        let id = herald.space(name, "files");
        self.expect("created", &id);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn rename(client: &Client, id: &str, name: &str) {
    client.put(&format!("/spaces/{id}"), &json!({"name": name})).expect(200);
}

fn an_owner_hears_of_each_change_in_order(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let ann = admin.member("ann");
    let all = Watch::open(&ann, "/spaces?watch=true", None);
    for header in ["content-type: text/event-stream", "cache-control: no-cache", "x-accel-buffering: no"] {
        assert!(all.head.contains(header), "{}", all.head);
    }
    let begin = all.ready();
    let id = ann.space("one", &template);
    let created = all.expect("created", &id);
    assert_eq!((&created.data["action"], &created.data["version"]), (&json!("create"), &json!(1)));
    // It is what a list shows, with the page's columns and nothing of administrators.
    let listed = ann.get("/spaces").of("spaces")[0].clone();
    assert_eq!(created.data["space"], listed);
    assert!(listed.get("node").is_none());
    let one = Watch::open(&ann, "/spaces/one?watch=true&field=name,status", None);
    one.ready();
    rename(&ann, &id, "two");
    let updated = all.expect("updated", &id);
    assert_eq!((&updated.data["action"], &updated.data["space"]["name"]), (&json!("update"), &json!("two")));
    let narrow = one.next().unwrap();
    assert_eq!(narrow.data["space"], json!({"name": "two", "status": "stopped"}));
    // The action and what its task makes of it.
    ann.act(&id, "start").expect(202);
    let mut versions = vec![updated.data["version"].as_i64().unwrap()];
    let mut actions = Vec::new();
    loop {
        let event = all.expect("updated", &id);
        actions.push(key(&event.data, "action"));
        versions.push(event.data["version"].as_i64().unwrap());
        if event.data["space"]["status"] == "running" && actions.last().is_some_and(|it| it != "start") {
            break;
        }
    }
    assert!(versions.is_sorted(), "{versions:?}");
    // The action, then the task; both at once where the feed was held up.
    assert!(
        ["start", "space-start"].ends_with(&actions.iter().map(String::as_str).collect::<Vec<_>>()),
        "{actions:?}"
    );
    ann.stop(&id);
    ann.delete(&format!("/spaces/{id}")).expect(200);
    let deleted = all.find("deleted", |_| true);
    assert_eq!(deleted.data["space"], json!({"id": id, "name": "two"}));
    assert_eq!(deleted.data["action"], "delete");
    one.find("deleted", |_| true);
    // All of it again, from the beginning; what changed often may come once.
    let again = Watch::open(&ann, "/spaces?watch=true", Some(&begin));
    assert_eq!(again.ready(), begin);
    assert_eq!(again.find("deleted", |_| true).id, deleted.id);
    let since = Watch::open(&ann, &format!("/spaces?watch=true&since={}", deleted.id), None);
    since.ready();
    since.silent_until(&ann, "three");
    again.expect("created", &key(&ann.read_space("three"), "id"));
}

fn strangers_hear_nothing_and_administrators_all(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let id = ann.space("hers", "files");
    let paths = [
        "/spaces?watch=true".to_owned(),
        format!("/spaces?watch=true&id={id}&id=none"),
        format!("/spaces?watch=true&user_id={}", ann.user_id()),
        "/spaces?watch=true&status=running".into(),
    ];
    let his: Vec<_> = paths.iter().map(|path| Watch::open(&bob, path, None)).collect();
    let users = Watch::open(&bob, "/users?watch=true", None);
    let everything = Watch::open(&admin, "/spaces?watch=true&field=id,name,node", None);
    for watch in his.iter().chain([&users, &everything]) {
        watch.ready();
    }
    bob.get(&format!("/spaces/{id}?watch=true")).refused(404, "ResourceNotFoundError");
    rename(&ann, &id, "still hers");
    ann.delete(&format!("/spaces/{id}")).expect(200);
    // Somebody who is gone for good, of whom a member must not hear either.
    let gone = admin.member("cid").user_id();
    admin.delete(&format!("/users/{gone}")).expect(200);
    let name = everything.find("deleted", |it| it.data["space"]["id"] == json!(id));
    assert_eq!(name.data["space"]["name"], "still hers");
    his[0].silent_until(&bob, "his");
    let hers = ann.user_id();
    for watch in &his {
        while let Ok(event) = watch.events.try_recv() {
            assert!(!event.data.to_string().contains(&id), "{event:?}");
            assert!(!event.data.to_string().contains(&hers), "{event:?}");
        }
    }
    // Of users he hears of himself only.
    let his_id = bob.user_id();
    admin.put(&format!("/users/{his_id}"), &json!({"description": "changed"})).expect(200);
    let event = users.next().unwrap();
    assert_eq!(event.data["user"]["id"], json!(his_id), "{event:?}");
    // An administrator hears of each, also of who is gone.
    let all = Watch::open(&admin, "/users?watch=true", Some("0-0"));
    all.find("deleted", |it| it.data["user"]["id"] == json!(gone));
}

fn what_leaves_the_filter_is_told_as_deleted(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let watch = Watch::open(&ann, "/spaces?watch=true&name=kept", None);
    watch.ready();
    let id = ann.space("kept", "files");
    watch.expect("created", &id);
    rename(&ann, &id, "left");
    let left = watch.expect("deleted", &id);
    assert_eq!(left.data["space"], json!({"id": id, "name": "left"}));
    rename(&ann, &id, "kept");
    let back = watch.expect("updated", &id);
    assert_eq!(back.data["space"]["name"], "kept");
}

fn a_stream_may_begin_with_what_is_there(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "1000"]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    bob.space("his", "files");
    // More than a piece.
    let made = at_once(8, |i| (0..27).map(|j| ann.space(&format!("s-{i}-{j}"), "files")).collect::<Vec<_>>());
    let mut made = made.concat();
    // A writer that goes on while it is read.
    let (watch, later) = std::thread::scope(|scope| {
        let writer =
            scope.spawn(|| (0..20).map(|i| ann.space(&format!("later-{i}"), "files")).collect::<Vec<_>>());
        let watch = Watch::open(&ann, "/spaces?watch=true&initial=true", None);
        (watch, writer.join().unwrap())
    });
    made.extend(later);
    let mut seen = Vec::new();
    loop {
        let event = watch.next().unwrap();
        match event.name.as_str() {
            "existing" => {
                assert!(event.id.is_empty(), "who goes away here begins anew: {event:?}");
                seen.push(key(&event.data["space"], "id"));
            }
            "ready" => break,
            other => panic!("{other}"),
        }
    }
    assert!(seen.len() >= 216 && seen.is_sorted(), "{}", seen.len());
    let last = ann.space("the last", "files");
    loop {
        let event = watch.next().unwrap();
        let id = key(&event.data["space"], "id");
        if id == last {
            break;
        }
        seen.push(id);
    }
    seen.sort();
    seen.dedup();
    made.sort();
    assert_eq!(seen, made);
}

/// The newest version of each space that a stream told.
#[derive(Default)]
struct Picture(BTreeMap<String, i64>);

impl Picture {
    #[track_caller]
    fn take(&mut self, event: &Event) {
        let id = key(&event.data["space"], "id");
        let version = event.data["version"].as_i64().unwrap();
        let known = self.0.entry(id).or_insert(0);
        assert!(*known <= version, "back from {known} in {event:?}");
        *known = version;
    }

    fn of(client: &Client) -> Self {
        let mut it = Self::default();
        let mut path = "/spaces?limit=1000&order_by=id".to_owned();
        loop {
            let page = client.get(&path).expect(200).json();
            for space in page["spaces"].as_array().unwrap() {
                it.0.insert(key(space, "id"), space["version"].as_i64().unwrap());
            }
            let Some(marker) = page["next_marker"].as_str() else { return it };
            path = format!("/spaces?limit=1000&order_by=id&marker={marker}");
        }
    }
}

fn after_a_kill_a_watcher_goes_on_and_has_missed_nothing(kind: Kind) {
    let house = House::new(kind);
    let mut server = house.serve(&["--max-spaces", "100000"]);
    let ann = server.admin();
    let watch = Watch::open(&ann, "/spaces?watch=true", None);
    let mut last = watch.ready();
    let mut seen = Picture::default();
    let mut positions = Vec::new();
    let writer = |client: &Client, round: usize| {
        let mut n = 0;
        loop {
            let fields = json!({"name": format!("r{round}-{n}"), "template_id": "files", "spec_id": "test"});
            let text = fields.to_string();
            let headers = [("Content-Type", "application/json")];
            if client.try_send("POST", "/spaces", &headers, Some(text.as_bytes())).is_err() {
                return;
            }
            n += 1;
        }
    };
    let mut watch = Some(watch);
    for round in 0..3 {
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4).map(|_| ann.at(&server.base)).collect();
            for (i, client) in clients.into_iter().enumerate() {
                scope.spawn(move || writer(&client, round * 10 + i));
            }
            let stream = watch.take().unwrap();
            for _ in 0..15 {
                let event = stream.next().unwrap();
                seen.take(&event);
                positions.push(event.id.clone());
                last = event.id;
            }
            server.kill_9();
        });
        server = house.serve(&["--max-spaces", "100000"]);
        watch = Some(Watch::open(&ann.at(&server.base), "/spaces?watch=true", Some(&last)));
        assert_eq!(watch.as_ref().unwrap().ready(), last);
    }
    let ann = ann.at(&server.base);
    let end = ann.space("the end", "files");
    loop {
        let event = watch.as_ref().unwrap().next().unwrap();
        seen.take(&event);
        positions.push(event.id.clone());
        if event.data["space"]["id"] == json!(end) {
            break;
        }
    }
    assert_eq!(seen.0, Picture::of(&ann).0);
    let n = positions.len();
    positions.sort();
    positions.dedup();
    assert_eq!(positions.len(), n, "no event came twice");
}

/// Two servers on one database (on SQLite, two on one file), 16 writers on
/// both, watchers on both. On PostgreSQL somebody besides holds a
/// transaction open in which a record was written long before the others.
fn two_servers_and_many_writers_lose_nothing(kind: Kind) {
    let house = House::new(kind);
    let servers = [house.serve(&["--max-spaces", "1000"]), house.serve(&["--max-spaces", "1000"])];
    let admin = servers[0].admin();
    let there = admin.at(&servers[1].base);
    let watches = [&admin, &there].map(|client| {
        let watch = Watch::open(client, "/spaces?watch=true", None);
        watch.ready();
        watch
    });
    let held = admin.space("held", "files");
    for watch in &watches {
        watch.expect("created", &held);
    }
    let mut holder = house.database.url.as_ref().map(|url| {
        let mut conn = Session::open(url);
        let copied = "obj_type, obj_name, obj_version, action, owner_domain_id, owner_project_id, owner_user_id, \
                      user_id, user_name, project_id, request_id, notes";
        conn.execute(&format!(
            "BEGIN; INSERT INTO ops_log (id, at, obj_id, {copied}) \
             SELECT 'held', at, obj_id, {copied} FROM ops_log WHERE obj_id = '{held}'"
        ));
        conn
    });
    let people: Vec<_> = (0..16).map(|i| if i % 2 == 0 { admin.clone() } else { there.clone() }).collect();
    at_once(16, |i| {
        let client = &people[i];
        for n in 0..6 {
            let id = client.space(&format!("w{i}-{n}"), "files");
            rename(client, &id, &format!("w{i}-{n}-again"));
            if n % 3 == 0 {
                client.delete(&format!("/spaces/{id}")).expect(200);
            }
        }
    });
    if let Some(conn) = &mut holder {
        // What may still be followed by an older record is not told.
        for watch in &watches {
            let told = watch.events.try_iter().find(|it| !it.name.is_empty());
            assert!(told.is_none(), "a record below could still come: {told:?}");
        }
        let metrics = admin.get("/metrics").expect(200).text();
        assert!(metrics.contains("podyard_watchers 1\n"), "{metrics}");
        until("the lag shows", SOON, || {
            let metrics = admin.get("/metrics").expect(200).text();
            let line = metrics.lines().find_map(|it| it.strip_prefix("podyard_feed_lag_seconds "))?;
            (line.parse::<f64>().unwrap() > 0.0).then_some(())
        });
        conn.execute("COMMIT");
    }
    let end = there.space("the end", "files");
    let truth = Picture::of(&admin);
    let mut stories = Vec::new();
    for watch in &watches {
        let (mut picture, mut story) = (Picture::default(), Vec::new());
        loop {
            let event = watch.next().unwrap();
            story.push(event.clone());
            picture.take(&event);
            if event.name == "deleted" {
                picture.0.remove(&key(&event.data["space"], "id"));
            }
            if event.data["space"]["id"] == json!(end) {
                break;
            }
        }
        if kind == Kind::Postgres {
            assert_eq!(
                story[0].data["space"]["id"],
                json!(held),
                "the oldest transaction's record is the first"
            );
        } else {
            picture.0.insert(held.clone(), 1);
        }
        assert_eq!(picture.0, truth.0);
        let ids: Vec<_> = story.iter().map(|it| it.id.clone()).collect();
        stories.push(ids);
    }
    for ids in &stories {
        let order: Vec<(i64, i64)> = ids
            .iter()
            .map(|it| {
                let parts: Vec<_> = it.split('-').collect();
                (parts[0].parse().unwrap(), parts[1].parse().unwrap())
            })
            .collect();
        assert!(order.windows(2).all(|it| it[0] < it[1]), "{order:?}");
    }
}

fn a_token_that_ends_ends_the_stream(kind: Kind) {
    let house = House::new(kind);
    let servers = [house.serve(&[]), house.serve(&[])];
    let admin = servers[0].admin();
    let ann = admin.member("ann");
    let again = ann.login("ann", "password-of-ann");
    let watches = [
        Watch::open(&ann, "/spaces?watch=true", None),
        Watch::open(&ann.at(&servers[1].base), "/spaces?watch=true", None),
    ];
    let other = Watch::open(&again, "/spaces?watch=true", None);
    for watch in watches.iter().chain([&other]) {
        watch.ready();
    }
    let token = ann.token.clone().unwrap();
    ann.send("DELETE", "/v3/auth/tokens", &[("X-Subject-Token", &token)], None).expect(204);
    for watch in &watches {
        let end = watch.next().unwrap();
        assert_eq!((end.name.as_str(), &end.data["class"]), ("end", &json!("UnauthorizedError")), "{end:?}");
        assert!(watch.next().is_none());
    }
    // Another token of the same user goes on, until the user is disabled.
    other.silent_until(&again, "mine");
    let id = again.user_id();
    admin.put(&format!("/users/{id}"), &json!({"enabled": false})).expect(200);
    assert_eq!(other.next().unwrap().name, "end");
    assert!(other.next().is_none());
}

fn a_server_that_is_asked_to_end_ends_its_streams(kind: Kind) {
    let house = House::new(kind);
    let mut server = house.serve(&[]);
    let ann = server.admin();
    let watches: Vec<_> = (0..5).map(|_| Watch::open(&ann, "/spaces?watch=true", None)).collect();
    let positions: Vec<_> = watches.iter().map(Watch::ready).collect();
    server.ask_to_end();
    let asked = Instant::now();
    for watch in &watches {
        let end = watch.next().unwrap();
        assert_eq!((end.name.as_str(), &end.data["class"]), ("end", &json!("ServiceUnavailableError")));
        assert!(watch.next().is_none());
    }
    assert!(server.wait(SOON).success());
    assert!(asked.elapsed() < Duration::from_secs(10), "streams held it up for {:?}", asked.elapsed());
    let server = house.serve(&[]);
    let ann = ann.at(&server.base);
    let id = ann.space("afterwards", "files");
    let watch = Watch::open(&ann, "/spaces?watch=true", Some(&positions[0]));
    watch.ready();
    watch.expect("created", &id);
}

fn execute(house: &House, sql: &str) {
    match &house.database.url {
        Some(url) => Session::open(url).execute(sql),
        None => {
            let file = house.data_dir().join("podyard.sqlite3");
            let mut conn = diesel::SqliteConnection::establish(file.to_str().unwrap()).unwrap();
            conn.batch_execute(&format!("PRAGMA busy_timeout = 10000; {sql}")).unwrap();
        }
    }
}

fn what_is_kept_no_longer_is_gone(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--event-retention", "30"]);
    let ann = server.admin();
    let watch = Watch::open(&ann, "/spaces?watch=true", None);
    let begin = watch.ready();
    let old = ann.space("old", "files");
    let kept = watch.expect("created", &old).id;
    server.end();
    // All of it was long ago; what comes now was not.
    execute(&house, "UPDATE ops_log SET at = at - 31 * 86400000000");
    let server = house.serve(&["--event-retention", "29"]);
    let ann = ann.at(&server.base);
    let new = ann.space("new", "files");
    until("the sweep has run", SOON, || {
        let events = ann.get("/events?obj_type=space").expect(200).of("events");
        (events.as_array().unwrap().len() == 1).then_some(())
    });
    for path in ["/spaces?watch=true&since=0-0".to_owned(), format!("/spaces?watch=true&since={begin}")] {
        ann.get(&path).refused(410, "EventsExpiredError");
    }
    let last = [("Last-Event-ID", begin.as_str())];
    ann.send("GET", "/spaces?watch=true", &last, None).refused(410, "EventsExpiredError");
    // Of another database.
    ann.get("/spaces?watch=true&since=4611686018427387904-1").refused(410, "EventsExpiredError");
    // Exactly what was removed was seen.
    let watch = Watch::open(&ann, "/spaces?watch=true", Some(&kept));
    watch.ready();
    watch.expect("created", &new);
}

fn what_cannot_be_watched_is_refused(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.space("mine", "files");
    for (path, field) in [
        ("/spaces?watch=maybe", "watch"),
        ("/spaces?watch=false", "watch"),
        ("/spaces?watch=true&watch=true", "watch"),
        ("/spaces?watch=true&limit=5", "limit"),
        ("/spaces?watch=true&offset=5", "offset"),
        ("/spaces?watch=true&marker=x", "marker"),
        ("/spaces?watch=true&order_by=name", "order_by"),
        ("/spaces?watch=true&order=asc", "order"),
        ("/spaces?watch=true&details=total", "details"),
        ("/spaces?watch=true&since=yesterday", "since"),
        ("/spaces?watch=true&since=1-2&initial=true", "initial"),
        ("/spaces?watch=true&initial=1", "initial"),
        ("/spaces?watch=true&nonsense=1", "nonsense"),
        ("/spaces?watch=true&node=x", "node"),
        ("/spaces?initial=true", "initial"),
        ("/spaces/mine?watch=true&status=running", "status"),
        ("/spaces/mine/log?watch=true", "watch"),
        ("/resources?watch=true", "watch"),
        ("/events?watch=true", "watch"),
    ] {
        let answer = ann.get(path).expect(400);
        assert_eq!(answer.blamed(), [field], "{path}: {}", answer.text());
    }
    ann.get("/usages?watch=true").refused(400, "NotWatchableError");
    let last = [("Last-Event-ID", "x")];
    assert_eq!(ann.send("GET", "/spaces?watch=true", &last, None).expect(400).blamed(), ["Last-Event-ID"]);
    ann.nobody().get("/spaces?watch=true").refused(401, "UnauthorizedError");
    ann.get("/nothing?watch=true").expect(404);
    ann.get("/spaces/none?watch=true").refused(404, "ResourceNotFoundError");
    ann.post("/spaces?watch=true", &body("space", json!({}))).expect(400);
    ann.delete(&format!("/spaces/{id}?watch=true")).expect(400);
    let resource = ann.get("/resources/spaces").of("resource");
    assert_eq!(
        (&resource["watch"], &ann.get("/resources/usages").of("resource")["watch"]),
        (&json!(true), &json!(false))
    );
}

fn one_user_cannot_take_all_streams(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let watches: Vec<_> = (0..50).map(|_| Watch::open(&ann, "/spaces?watch=true", None)).collect();
    let refused = ann.get("/spaces?watch=true").refused(429, "TooManyWatchersError");
    assert!(!refused.header("retry-after").is_empty());
    Watch::open(&bob, "/spaces?watch=true", None).ready();
    // A client that goes gives its place back, once something could not be sent to it.
    drop(watches);
    let mut n = 0;
    until("a place is free", SOON, || {
        n += 1;
        let id = ann.space(&format!("news-{n}"), "files");
        ann.delete(&format!("/spaces/{id}")).expect(200);
        let metrics = admin.get("/metrics").expect(200).text();
        let open = metrics.lines().find_map(|it| it.strip_prefix("podyard_watchers "))?;
        (open.parse::<f64>().unwrap() < 50.0).then_some(())
    });
    Watch::open(&ann, "/spaces?watch=true", None).ready();
}

fn what_is_given_away_is_told_to_both(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob, eve) = (admin.member("ann"), admin.member("bob"), admin.member("eve"));
    let [hers, his, strange, all] = [&ann, &bob, &eve, &admin].map(|it| {
        let watch = Watch::open(it, "/spaces?watch=true", None);
        watch.ready();
        watch
    });
    let id = ann.space("given", "files");
    for watch in [&hers, &all] {
        watch.expect("created", &id);
    }
    admin.post(&format!("/spaces/{id}/change-owner"), &json!({"user_id": bob.user_id()})).expect(200);
    let left = hers.expect("deleted", &id);
    assert_eq!(left.data["space"], json!({"id": id, "name": "given"}));
    assert_eq!(left.data["action"], "change-owner");
    let come = his.expect("updated", &id);
    assert_eq!(come.data["space"]["user_id"], bob.user_id());
    let seen = all.expect("updated", &id);
    assert_eq!(seen.data["space"]["user_id"], bob.user_id());
    // What happens to it from now on is his alone.
    rename(&bob, &id, "his");
    his.expect("updated", &id);
    let mark = ann.space("mark", "files");
    hers.expect("created", &mark);
    let mark = eve.space("mark", "files");
    strange.expect("created", &mark);
}

fn what_stands_below_another_row_is_watched_there(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let (mine, other) = (admin.template("Mine", &["x"]), admin.template("Other", &["x"]));
    let there = ann.space("there", &mine);
    let watch = Watch::open(&ann, &format!("/templates/{mine}/spaces?watch=true&initial=true"), None);
    watch.expect("existing", &there);
    watch.ready();
    let (elsewhere, his) = (ann.space("elsewhere", &other), bob.space("his", &mine));
    let new = ann.space("new", &mine);
    watch.find("created", |it| {
        // Of what is hers and not below it at most that it is not there.
        let id = &it.data["space"]["id"];
        assert!(*id != json!(his) && (*id != json!(elsewhere) || it.name == "deleted"), "{it:?}");
        *id == json!(new)
    });
    ann.delete(&format!("/spaces/{there}")).expect(200);
    watch.find("deleted", |it| it.data["space"]["id"] == json!(there));
    // One row, too.
    let one = Watch::open(&ann, &format!("/templates/{mine}/spaces/{new}?watch=true"), None);
    one.ready();
    rename(&ann, &new, "newer");
    one.expect("updated", &new);
    // The path is checked as for a list.
    ann.get("/templates/none/spaces?watch=true").refused(404, "ResourceNotFoundError");
}

fn a_place_in_another_log_is_none_in_this(kind: Kind) {
    let (one, two) = (House::new(kind), House::new(kind));
    let (here, there) = (one.serve(&[]), two.serve(&[]));
    let (here, there) = (here.admin(), there.admin());
    for i in 0..3 {
        here.space(&format!("s{i}"), "files");
        there.space(&format!("s{i}"), "files");
    }
    let place = Watch::open(&here, "/spaces?watch=true", None).ready();
    let again = Watch::open(&here, "/spaces?watch=true", Some(&place));
    again.ready();
    there.get(&format!("/spaces?watch=true&since={place}")).refused(410, "EventsExpiredError");
    let headers = [("Last-Event-ID", place.as_str())];
    there.send("GET", "/spaces?watch=true", &headers, None).refused(410, "EventsExpiredError");
    // It is the log's own, not the process's.
    let server = one.serve(&[]);
    Watch::open(&here.at(&server.base), "/spaces?watch=true", Some(&place)).ready();
}
