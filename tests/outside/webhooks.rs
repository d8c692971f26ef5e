//! Webhooks, with a receiver of our own behind them.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::harness::{Answer, Client, House, Kind, body, key, until};

on_each_database!(
    what_happened_is_told_and_signed,
    what_was_refused_is_not_told,
    a_receiver_that_was_down_is_told_later_and_in_order,
    what_was_answered_is_told_after_a_kill,
    a_refused_create_leaves_nothing,
    a_patch_is_judged_as_the_clients_own_input,
    updates_deletes_and_actions_are_asked_with_the_row,
    no_way_around_leads_past_a_webhook,
    a_row_that_changes_meanwhile_is_not_written,
    a_receiver_that_hangs_or_talks_nonsense_fails_or_is_ignored,
    webhooks_are_for_administrators_and_keep_their_secret,
    addresses_of_the_clouds_secrets_are_refused,
    a_second_server_asks_too,
    no_webhook_costs_nothing,
    who_was_asked_is_not_asked_again_under_the_same_key,
    events_that_never_come_are_refused,
);

/// Long enough for a slow machine.
const SOON: Duration = Duration::from_secs(30);

/// A request that came.
#[derive(Debug, Clone)]
struct Told {
    headers: HashMap<String, String>,
    text: String,
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    fn event(&self) -> &str {
        &self.headers["x-podyard-event"]
    }
}

/// What the receiver does.
enum Does {
    Answer(u16, Value),
    Hang,
}

fn yes() -> Does {
    Does::Answer(200, json!({"allowed": true}))
}

type Decide = dyn Fn(&Told) -> Does + Send + Sync;

/// An HTTP server that keeps what it is told.
struct Receiver {
    addr: SocketAddr,
    told: Arc<Mutex<Vec<Told>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn receive(stream: &mut TcpStream) -> Option<Told> {
    stream.set_read_timeout(Some(SOON)).ok()?;
    let (mut got, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut piece).ok().filter(|n| *n > 0)?;
        got.extend_from_slice(&piece[..n]);
        let Some(end) = got.windows(4).position(|it| it == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&got[..end]).into_owned();
        let pairs = head.lines().skip(1).filter_map(|it| it.split_once(": "));
        let headers: HashMap<_, _> =
            pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        let length: usize = headers.get("content-length")?.parse().ok()?;
        if got.len() >= end + 4 + length {
            let text = String::from_utf8(got[end + 4..end + 4 + length].to_vec()).unwrap();
            return Some(Told { headers, text });
        }
    }
}

impl Receiver {
    fn new(decide: impl Fn(&Told) -> Does + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), decide)
    }

    fn at(addr: SocketAddr, decide: impl Fn(&Told) -> Does + Send + Sync + 'static) -> Self {
        let listener = until("the port is free", SOON, || TcpListener::bind(addr).ok());
        let (addr, told, end) =
            (listener.local_addr().unwrap(), Arc::default(), Arc::new(AtomicBool::new(false)));
        let decide: Arc<Decide> = Arc::new(decide);
        let (list, stop): (Arc<Mutex<Vec<Told>>>, _) = (Arc::clone(&told), end.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (decide, list, stop) = (decide.clone(), list.clone(), stop.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some(it) = receive(&mut stream) else { return };
                    let does = decide(&it);
                    list.lock().unwrap().push(it);
                    let Does::Answer(status, body) = does else {
                        while !stop.load(Ordering::SeqCst) {
                            std::thread::sleep(Duration::from_millis(20));
                        }
                        return;
                    };
                    let body = body.to_string();
                    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
                    let _ = stream.write_all((head + &body).as_bytes());
                });
            }
        });
        Self { addr, told, end, thread: Some(thread) }
    }

    fn url(&self) -> String {
        format!("http://{}/hook?a=b", self.addr)
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// Waits until so much was told.
    #[track_caller]
    fn wait(&self, n: usize) -> Vec<Told> {
        until(&format!("{n} were told"), SOON, || {
            let told = self.told();
            (told.len() >= n).then_some(told)
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[track_caller]
fn hook(admin: &Client, name: &str, url: &str, resource: &str, events: &[&str]) -> Value {
    hook_with(
        admin,
        json!({"name": name, "url": url, "resource": resource, "events": events, "secret": "the secret"}),
    )
}

#[track_caller]
fn hook_with(admin: &Client, fields: Value) -> Value {
    admin.post("/webhooks", &body("webhook", fields)).expect(201).of("webhook")
}

fn define(admin: &Client) {
    let fields = json!([{"name": "size", "type": "integer", "default": 1, "max": 10},
        {"name": "stamp", "create": "admin", "update": "admin"}]);
    admin.post("/resource-types", &json!({"keyword": "thing", "fields": fields})).expect(201);
}

fn what_happened_is_told_and_signed(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    define(&admin);
    let receiver = Receiver::new(|_| Does::Answer(204, Value::Null));
    let made = hook(&admin, "all", &receiver.url(), "*", &["created", "updated", "deleted", "start"]);
    let thing = ann.post("/things", &json!({"name": "a"})).expect(201);
    assert!(thing.json().get("task_id").is_none(), "{}", thing.text());
    let id = key(&thing.of("thing"), "id");
    ann.put(&format!("/things/{id}"), &json!({"size": 5})).expect(200);
    ann.delete(&format!("/things/{id}")).expect(200);
    let told = receiver.wait(3);
    let events: Vec<_> = told.iter().map(Told::event).collect();
    assert_eq!(events, ["created", "updated", "deleted"]);
    let deliveries: std::collections::HashSet<_> =
        told.iter().map(|it| it.headers["x-podyard-delivery"].clone()).collect();
    assert_eq!(deliveries.len(), 3);
    for it in &told {
        let timestamp = &it.headers["x-podyard-timestamp"];
        let mut code = Hmac::<Sha256>::new_from_slice(b"the secret").unwrap();
        code.update(format!("{timestamp}.{}", it.text).as_bytes());
        let hex: String = code.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(it.headers["x-podyard-signature"], format!("sha256={hex}"));
        assert_eq!(it.headers["content-type"], "application/json");
        let body = it.json();
        assert_eq!((&body["resource"], &body["id"]), (&json!("thing"), &json!(id)));
        assert_eq!(body["user"]["name"], "ann");
    }
    let updated = told[1].json();
    assert_eq!(updated["changes"]["size"], json!({"old": 1, "new": 5}));
    assert_eq!((&updated["object"]["size"], &updated["version"]), (&json!(5), &json!(2)));
    // Compiled types and their actions as well.
    let template = admin.serving_template();
    receiver.wait(4);
    let space = ann.space("hers", &template);
    ann.start(&space);
    let told = receiver.wait(6);
    let of_space: Vec<_> =
        told.iter().filter(|it| it.json()["id"] == json!(space)).map(Told::event).collect();
    assert_eq!(of_space, ["created", "start"]);
    // Whose the change was cannot see or cancel that it is told.
    let tasks = ann.get("/tasks?limit=100").expect(200).text();
    assert!(!tasks.contains("webhook"), "{tasks}");
    let path = format!("/webhooks/{}/deliveries", key(&made, "id"));
    let all = until("all are delivered", SOON, || {
        let all = admin.get(&path).expect(200).of("webhook");
        let all = all.as_array().unwrap().clone();
        all.iter().all(|it| it["status"] == "done").then_some(all)
    });
    assert_eq!(all.len(), told.len());
    ann.get(&path).refused(403, "ForbiddenError");
    // What is deleted or disabled is told no more.
    admin.put("/webhooks/all", &json!({"enabled": false})).expect(200);
    ann.post("/things", &json!({"name": "b"})).expect(201);
    admin.put("/webhooks/all", &json!({"enabled": true})).expect(200);
    ann.post("/things", &json!({"name": "c"})).expect(201);
    let told = receiver.wait(7);
    assert_eq!(told[6].json()["object"]["name"], "c");
    admin.delete("/webhooks/all").expect(200);
    ann.post("/things", &json!({"name": "d"})).expect(201);
    assert!(
        admin
            .get("/webhook-deliveries?obj_type=thing")
            .expect(200)
            .of("webhook-deliveries")
            .as_array()
            .unwrap()
            .len()
            == 4
    );
}

fn what_was_refused_is_not_told(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin);
    let receiver = Receiver::new(|_| yes());
    hook(&admin, "all", &receiver.url(), "thing", &["created"]);
    admin.post("/things", &json!({"name": "a"})).expect(201);
    admin.post("/things", &json!({"name": "a"})).refused(409, "DuplicateNameError");
    admin.post("/things", &json!({"name": "b", "size": 11})).refused(400, "InputParameterError");
    admin.put("/things/a", &json!({"size": 2})).expect(200);
    admin.post("/things", &json!({"name": "c"})).expect(201);
    let told = receiver.wait(2);
    let mut names: Vec<_> = told.iter().map(|it| key(&it.json()["object"], "name")).collect();
    names.sort();
    assert_eq!(names, ["a", "c"]);
    assert_eq!(
        admin.get("/webhook-deliveries").expect(200).of("webhook-deliveries").as_array().unwrap().len(),
        2
    );
}

fn a_receiver_that_was_down_is_told_later_and_in_order(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin);
    let receiver = Receiver::new(|_| Does::Answer(500, Value::Null));
    let addr = receiver.addr;
    hook(&admin, "all", &receiver.url(), "thing", &["created", "updated"]);
    admin.post("/things", &json!({"name": "a"})).expect(201);
    for size in 2..5 {
        admin.put("/things/a", &json!({"size": size})).expect(200);
    }
    let first = receiver.wait(1);
    drop(receiver);
    let again = Receiver::at(addr, |_| yes());
    let told = again.wait(4);
    let versions: Vec<_> = told.iter().map(|it| it.json()["version"].as_i64().unwrap()).collect();
    assert_eq!(versions, [1, 2, 3, 4]);
    // The same delivery has the same id.
    assert_eq!(first[0].headers["x-podyard-delivery"], told[0].headers["x-podyard-delivery"]);
    assert_eq!(first[0].json()["version"], 1);
}

fn what_was_answered_is_told_after_a_kill(kind: Kind) {
    let house = House::new(kind);
    let mut server = house.serve(&[]);
    let admin = server.admin();
    define(&admin);
    let receiver = Receiver::new(|_| Does::Hang);
    let addr = receiver.addr;
    hook(&admin, "all", &receiver.url(), "thing", &["created"]);
    admin.post("/things", &json!({"name": "a"})).expect(201);
    server.kill_9();
    drop(receiver);
    let again = Receiver::at(addr, |_| yes());
    let _server = house.serve(&[]);
    assert_eq!(again.wait(1)[0].json()["object"]["name"], "a");
}

fn a_refused_create_leaves_nothing(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    define(&admin);
    let receiver = Receiver::new(|it| {
        let input = it.json()["input"].clone();
        Does::Answer(
            200,
            match input["name"].as_str() {
                Some("bad") => json!({"allowed": false, "message": "not on a Sunday"}),
                Some("big") => json!({"allowed": false, "message": "is too big", "field": "size"}),
                _ => json!({"allowed": true}),
            },
        )
    });
    hook(&admin, "gate", &receiver.url(), "*", &["before_create"]);
    let refused = ann.post("/things", &json!({"name": "bad"})).refused(403, "AdmissionRefusedError");
    assert!(refused.text().contains("not on a Sunday"), "{}", refused.text());
    let refused =
        ann.post("/things", &json!({"name": "big", "size": 9})).refused(400, "AdmissionRefusedError");
    assert_eq!(refused.blamed(), ["size"]);
    assert!(ann.get("/things").expect(200).of("things").as_array().unwrap().is_empty());
    ann.create_space("bad", "files").refused(403, "AdmissionRefusedError");
    let asked = receiver.told();
    assert_eq!(asked.len(), 3);
    let question = asked[0].json();
    assert_eq!(question["user"]["id"], json!(ann.user_id()));
    assert_eq!(question["user"]["level"], "user");
    assert_eq!((&question["event"], &question["object"]), (&json!("before_create"), &Value::Null));
    ann.post("/things", &json!({"thing": {"name": "good"}})).expect(201);
    ann.create_space("good", "files").expect(201);
    // Whom nobody lets create is not asked for.
    let n = receiver.told().len();
    ann.post("/templates", &json!({"name": "bad"})).refused(403, "ForbiddenError");
    ann.nobody().post("/things", &json!({"name": "bad"})).expect(401);
    assert_eq!(receiver.told().len(), n);
    // Passwords are shown to nobody, and arrive all the same.
    admin.member("bob");
    let told = receiver.told();
    let user = told.last().unwrap();
    assert_eq!(user.json()["input"], json!({"name": "bob", "password": "***"}), "{}", user.text);
}

fn a_patch_is_judged_as_the_clients_own_input(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    define(&admin);
    let receiver = Receiver::new(|it| {
        let patch = match it.json()["input"]["name"].as_str() {
            Some("plain") => json!({"size": 7, "description": "patched"}),
            Some("large") => json!({"size": 11}),
            Some("stamped") => json!({"stamp": "x"}),
            _ => json!({"colour": "red"}),
        };
        Does::Answer(200, json!({"allowed": true, "patch": patch}))
    });
    hook(&admin, "patch", &receiver.url(), "thing", &["before_create"]);
    let made = ann.post("/things", &json!({"name": "plain", "size": 2})).expect(201).of("thing");
    assert_eq!((&made["size"], &made["description"]), (&json!(7), &json!("patched")));
    let blamed = |answer: Answer, status, class: &str, field: &str| {
        assert_eq!(answer.refused(status, class).blamed(), [field]);
    };
    blamed(ann.post("/things", &json!({"name": "large"})), 400, "InputParameterError", "size");
    blamed(ann.post("/things", &json!({"name": "stamped"})), 403, "ForbiddenError", "stamp");
    blamed(ann.post("/things", &json!({"name": "other"})), 400, "InputParameterError", "colour");
    admin.post("/things", &json!({"name": "stamped"})).expect(201);
    // Each is shown what the one before it made of it.
    let second = Receiver::new(|_| yes());
    hook(&admin, "second", &second.url(), "thing", &["before_create"]);
    ann.delete("/things/plain").expect(200);
    ann.post("/things", &json!({"name": "plain"})).expect(201);
    assert_eq!(second.wait(1)[0].json()["input"]["size"], 7);
}

fn updates_deletes_and_actions_are_asked_with_the_row(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    define(&admin);
    let receiver = Receiver::new(|it| {
        let question = it.json();
        let allowed = question["object"]["name"] != "kept";
        Does::Answer(200, json!({"allowed": allowed, "message": "it is kept", "patch": {}}))
    });
    hook(&admin, "gate", &receiver.url(), "*", &["before_update", "before_delete", "before_start"]);
    ann.post("/things", &json!({"name": "kept"})).expect(201);
    ann.post("/things", &json!({"name": "free"})).expect(201);
    ann.put("/things/kept", &json!({"size": 2})).refused(403, "AdmissionRefusedError");
    ann.delete("/things/kept").refused(403, "AdmissionRefusedError");
    let kept = ann.get("/things/kept").expect(200).of("thing");
    assert_eq!((&kept["size"], &kept["version"]), (&json!(1), &json!(1)));
    ann.put("/things/free", &json!({"size": 2})).expect(200);
    ann.delete("/things/free").expect(200);
    let asked = receiver.told();
    let events: Vec<_> = asked.iter().map(Told::event).collect();
    assert_eq!(events, ["before_update", "before_delete", "before_update", "before_delete"]);
    assert_eq!(asked[2].json()["input"], json!({"size": 2}));
    assert_eq!(asked[2].json()["object"]["size"], 1);
    // Another's row is not there, and nobody is asked about it.
    bob.put("/things/kept", &json!({"size": 2})).refused(404, "ResourceNotFoundError");
    bob.delete("/things/kept").refused(404, "ResourceNotFoundError");
    assert_eq!(receiver.told().len(), 4);
    let template = admin.serving_template();
    let (kept, free) = (ann.space("kept", &template), ann.space("free", &template));
    ann.act(&kept, "start").refused(403, "AdmissionRefusedError");
    ann.start(&free);
    assert_eq!(receiver.told()[4].event(), "before_start");
}

fn no_way_around_leads_past_a_webhook(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    define(&admin);
    let receiver = Receiver::new(|_| Does::Answer(200, json!({"allowed": false, "message": "no"})));
    ann.post("/things", &json!({"name": "kept"})).expect(201);
    // Each of them alone: what another event asks must not hide what this one misses.
    let ways = |which: &str| -> Vec<Answer> {
        match which {
            "before_create" => vec![
                ann.post("/things/apply", &json!({"name": "new"})),
                ann.post("/things/kept/copy", &json!({})),
            ],
            "before_update" => vec![
                ann.post("/things/apply", &json!({"name": "kept", "size": 3})),
                ann.post("/things/apply", &json!({"name": "kept", "metadata": {"a": "b"}})),
            ],
            _ => Vec::new(),
        }
    };
    let batches = |which: &str| match which {
        "before_create" => ann.post("/things", &json!({"things": [{"name": "new"}]})),
        "before_update" => ann.put("/things?all=true", &json!({"size": 3})),
        _ => ann.delete("/things?all=true"),
    };
    let before = ann.get("/things").expect(200).of("things");
    for event in ["before_create", "before_update", "before_delete"] {
        let made = hook(&admin, event, &receiver.url(), "thing", &[event]);
        for answer in ways(event) {
            answer.refused(409, "AdmissionRequiredError");
        }
        let part = batches(event).expect(207).of("things")[0].clone();
        assert_eq!(part["body"]["class"], "AdmissionRequiredError", "{event}: {part}");
        assert_eq!(ann.get("/things").expect(200).of("things"), before, "{event}");
        admin.delete(&format!("/webhooks/{}", key(&made, "id"))).expect(200);
    }
    assert!(receiver.told().is_empty());
    ann.post("/things/apply", &json!({"name": "kept", "size": 3})).expect(200);
}

fn a_row_that_changes_meanwhile_is_not_written(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin);
    admin.post("/things", &json!({"name": "a"})).expect(201);
    let (other, meddle) = (admin.clone(), Arc::new(AtomicBool::new(true)));
    let meddles = meddle.clone();
    let count = std::sync::atomic::AtomicUsize::new(0);
    let receiver = Receiver::new(move |_| {
        if meddles.swap(false, Ordering::SeqCst) {
            let size = 9 - count.fetch_add(1, Ordering::SeqCst);
            other.put("/things/a", &json!({"size": size})).expect(200);
        }
        yes()
    });
    hook(&admin, "gate", &receiver.url(), "thing", &["before_update", "before_delete"]);
    admin.put("/things/a", &json!({"description": "x"})).refused(409, "ConflictError");
    let row = admin.get("/things/a").expect(200).of("thing");
    assert_eq!((&row["size"], &row["description"], &row["version"]), (&json!(9), &json!(""), &json!(2)));
    meddle.store(true, Ordering::SeqCst);
    admin.put("/things/a", &json!({"size": 1})).refused(409, "ConflictError");
    meddle.store(true, Ordering::SeqCst);
    let known = [("If-Match", "\"3\"")];
    admin.send("DELETE", "/things/a", &known, None).refused(412, "PreconditionFailedError");
    admin.put("/things/a", &json!({"size": 3})).expect(200);
}

fn a_receiver_that_hangs_or_talks_nonsense_fails_or_is_ignored(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin);
    let receiver = Receiver::new(|it| match it.json()["input"]["name"].as_str() {
        Some("hang") => Does::Hang,
        Some("error") => Does::Answer(500, json!({"allowed": true})),
        Some("nonsense") => Does::Answer(200, json!({"maybe": 1})),
        Some("moved") => Does::Answer(302, json!({})),
        Some("large") => Does::Answer(200, json!({"allowed": true, "message": "x".repeat(300_000)})),
        _ => yes(),
    });
    let closed = Receiver::new(|_| yes());
    let nobody = closed.url();
    drop(closed);
    let fields = |name: &str, policy: &str, url: &str| {
        json!({"name": name, "url": url, "resource": "thing", "events": ["before_create"], "timeout": 1,
            "failure_policy": policy})
    };
    hook_with(&admin, fields("gate", "fail", &receiver.url()));
    let all = ["hang", "error", "nonsense", "moved", "large"];
    for name in all {
        let refused = admin.post("/things", &json!({"name": name})).refused(503, "WebhookUnavailableError");
        assert!(!refused.header("retry-after").is_empty());
        assert!(!refused.text().contains(&receiver.addr.port().to_string()), "{}", refused.text());
    }
    admin.post("/things", &json!({"name": "fine"})).expect(201);
    assert_eq!(admin.get("/things").expect(200).of("things").as_array().unwrap().len(), 1);
    admin.put("/webhooks/gate", &json!({"url": nobody})).expect(200);
    admin.post("/things", &json!({"name": "closed"})).refused(503, "WebhookUnavailableError");
    admin.put("/webhooks/gate", &json!({"failure_policy": "ignore"})).expect(200);
    admin.post("/things", &json!({"name": "closed"})).expect(201);
    admin.put("/webhooks/gate", &json!({"url": receiver.url()})).expect(200);
    for name in all {
        admin.post("/things", &json!({"name": name})).expect(201);
    }
}

fn webhooks_are_for_administrators_and_keep_their_secret(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    define(&admin);
    let url = "http://127.0.0.1:9/x";
    let fields = json!({"name": "w", "url": url, "resource": "thing", "events": ["created"]});
    ann.post("/webhooks", &fields).refused(403, "ForbiddenError");
    ann.get("/webhooks").refused(403, "ForbiddenError");
    ann.get("/webhook-deliveries").refused(403, "ForbiddenError");
    // One that is made up is shown once; one that was given is not.
    let made = admin.post("/webhooks", &fields).expect(201).of("webhook");
    let secret = key(&made, "new_secret");
    assert!(secret.len() >= 32, "{secret}");
    let mut given = fields.clone();
    given["name"] = "given".into();
    given["secret"] = "told-by-us-7531".into();
    let answer = admin.post("/webhooks", &given).expect(201);
    assert!(!answer.text().contains("7531") && answer.of("webhook").get("new_secret").is_none());
    for text in [
        admin.get("/webhooks").expect(200).text(),
        admin.get("/webhooks/w").expect(200).text(),
        admin.put("/webhooks/w", &json!({"secret": "told-by-us-7531"})).expect(200).text(),
        admin.get("/webhooks/w").expect(200).text(),
        server.logged(),
    ] {
        assert!(!text.contains(&secret) && !text.contains("7531"), "{text}");
    }
    for (field, bad) in [
        ("url", json!("ftp://x")),
        ("resource", json!("nothing")),
        ("resource", json!("task")),
        ("resource", json!("webhook")),
        ("events", json!([])),
        ("events", json!(["create"])),
        ("events", json!(["a b"])),
        ("timeout", json!(0)),
        ("timeout", json!(11)),
        ("failure_policy", json!("maybe")),
    ] {
        let mut wrong = fields.clone();
        wrong["name"] = "wrong".into();
        wrong[field] = bad.clone();
        let answer = admin.post("/webhooks", &wrong);
        assert_eq!(answer.refused(400, "InputParameterError").blamed(), [field], "{field} {bad}");
    }
    assert_eq!(admin.get("/webhooks").expect(200).of("webhooks").as_array().unwrap().len(), 2);
}

fn addresses_of_the_clouds_secrets_are_refused(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin);
    for url in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fe80::1]/",
        "http://0.0.0.0/",
        "http://100.100.100.200/",
        "http://user:password@127.0.0.1/",
        "file:///etc/passwd",
    ] {
        let fields = json!({"name": "w", "url": url, "resource": "thing", "events": ["created"]});
        assert_eq!(
            admin.post("/webhooks", &fields).refused(400, "InputParameterError").blamed(),
            ["url"],
            "{url}"
        );
    }
}

fn a_second_server_asks_too(kind: Kind) {
    let house = House::new(kind);
    let (one, two) = (house.serve(&[]), house.serve(&[]));
    let admin = one.admin();
    let there = admin.at(&two.base);
    define(&admin);
    let receiver = Receiver::new(|_| Does::Answer(200, json!({"allowed": false, "message": "no"})));
    hook(&admin, "gate", &receiver.url(), "thing", &["before_create"]);
    admin.post("/things", &json!({"name": "here"})).refused(403, "AdmissionRefusedError");
    let mut n = 0;
    let refused = until("the webhook is known there", SOON, || {
        n += 1;
        let answer = there.post("/things", &json!({"name": format!("there {n}")}));
        (answer.status != 201).then_some(answer)
    });
    refused.refused(403, "AdmissionRefusedError");
}

fn no_webhook_costs_nothing(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin);
    let cost = |name: &str| {
        let made = admin.post("/things", &json!({"name": name})).expect(201).statements();
        let changed = admin.put(&format!("/things/{name}"), &json!({"size": 2})).expect(200).statements();
        [made, changed]
    };
    let before = cost("a");
    let receiver = Receiver::new(|_| yes());
    // One for another type or event is none.
    hook(&admin, "other", &receiver.url(), "space", &["created", "before_create"]);
    hook(&admin, "event", &receiver.url(), "thing", &["deleted", "before_delete"]);
    assert_eq!(cost("b"), before);
    assert!(receiver.told().is_empty());
}

fn who_was_asked_is_not_asked_again_under_the_same_key(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin);
    let allow = Arc::new(AtomicBool::new(true));
    let allows = allow.clone();
    let receiver = Receiver::new(move |_| {
        Does::Answer(200, json!({"allowed": allows.load(Ordering::SeqCst), "message": "no"}))
    });
    hook(&admin, "gate", &receiver.url(), "thing", &["before_create"]);
    hook(&admin, "switch", &receiver.url(), "template", &["before_disable"]);
    let send = |path: &str, body: &Value| {
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", path)];
        admin.send("POST", path, &headers, Some(body.to_string().as_bytes()))
    };
    let asks = [("/things", json!({"name": "a"}), 201), ("/templates/files/disable", json!({}), 200)];
    let first: Vec<_> = asks.iter().map(|(path, body, status)| send(path, body).expect(*status)).collect();
    assert_eq!(receiver.told().len(), 2);
    allow.store(false, Ordering::SeqCst);
    for ((path, body, status), first) in asks.iter().zip(first) {
        let again = send(path, body).expect(*status);
        assert_eq!((again.header("idempotency-replayed"), again.text()), ("true", first.text()), "{path}");
        // Another request under that key is told so, and another key is asked for.
        send(path, &json!({"name": "b"})).refused(422, "IdempotencyKeyReusedError");
    }
    assert_eq!(receiver.told().len(), 2);
    admin.post("/things", &json!({"name": "c"})).refused(403, "AdmissionRefusedError");
}

fn events_that_never_come_are_refused(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin);
    let create = |resource: &str, events: &[&str]| {
        let name = format!("w {resource} {}", events.join(" "));
        let fields =
            json!({"name": name, "url": "http://127.0.0.1:9/", "resource": resource, "events": events});
        admin.post("/webhooks", &body("webhook", fields))
    };
    for (resource, event, possible) in [
        ("thing", "creatd", "created"),
        ("thing", "start", "before_metadata"),
        ("space", "before_created", "before_create"),
        ("space", "before_space-start", "space-start"),
        ("*", "create", "before_start"),
    ] {
        let answer = create(resource, &["updated", event]).refused(400, "InputParameterError");
        assert_eq!(answer.blamed(), ["events"], "{resource} {event}");
        assert!(answer.text().contains(possible), "{}", answer.text());
    }
    for (resource, events) in [
        (
            "thing",
            &["created", "updated", "deleted", "before_delete", "change-owner", "before_change-owner"][..],
        ),
        ("space", &["start", "before_start", "space-start", "died", "metadata"]),
        ("user", &["password", "reset-password", "before_password", "enable"]),
        ("*", &["start", "created", "before_update"]),
    ] {
        create(resource, events).expect(201);
    }
}
