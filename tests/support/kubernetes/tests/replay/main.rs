//! Each recorded scenario is sent to the double; what a client decides by must be the
//! same: statuses, bodies, the order of events, the frames of exec sessions.
//!
//! The recorded containers ran a shell's commands; here they run as processes of this
//! machine. Where a recording shows what belongs to its own node (a shell's prompt, a
//! runtime's message, which changes of a busy kubelet fell into one write), only the
//! milestones are compared: `loose` in a fixture names such objects.
#![expect(clippy::unwrap_used, reason = "it is a test")]

mod client;
mod essence;
mod terminal;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use podyard_kubernetes_double::{Double, Options};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

struct Replay {
    at: String,
    token: &'static str,
    pace: f64,
    /// What was recorded and what it is here: versions, uids, tokens of pages.
    versions: HashMap<String, String>,
    words: HashMap<String, String>,
    /// The image of the template that a hash in a recorded name stands for.
    hashes: HashMap<String, String>,
    wrong: Vec<String>,
}

/// Replays a scenario, so many times faster than it was recorded.
async fn replay(name: &str, pace: f64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/{name}.json"));
    let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let options = Options { speed: pace, real: true, ..Options::default() };
    let double = Double::start(options).await.unwrap();
    let mut replay = Replay {
        at: double.url().trim_start_matches("http://").to_owned(),
        token: double.token(),
        pace,
        versions: HashMap::new(),
        words: HashMap::new(),
        hashes: serde_json::from_value(fixture["hashes"].clone()).unwrap_or_default(),
        wrong: Vec::new(),
    };
    replay.set_up(&fixture["setup"]).await;
    replay.steps(fixture["steps"].as_array().unwrap()).await;
    double.stop().await;
    assert!(replay.wrong.is_empty(), "{name}:\n{}", replay.wrong.join("\n"));
}

enum Later {
    Watch(usize, JoinHandle<Vec<Value>>),
    Session(usize, JoinHandle<Vec<Value>>),
    Follow(usize, JoinHandle<Value>),
}

impl Replay {
    async fn set_up(&mut self, steps: &Value) {
        for step in steps.as_array().unwrap() {
            if let Some(pause) = step["pause"].as_u64() {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                continue;
            }
            if let Some(path) = step["wait"].as_str() {
                let (phase, has) = (&step["phase"], &step["has"]);
                let end = Instant::now() + Duration::from_secs(20);
                loop {
                    let get = json!({"method": "GET", "path": path});
                    let object = client::body_of(client::send(&self.at, Some(self.token), &get).await).await;
                    let ready =
                        phase != "Running" || object["status"]["containerStatuses"][0]["ready"] == true;
                    if object["status"]["phase"] == *phase && ready && (has.is_null() || within(has, &object))
                    {
                        break;
                    }
                    assert!(Instant::now() < end, "{path} does not become {phase}{has}: {object}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                continue;
            }
            let response = client::send(&self.at, Some(self.token), step).await;
            let status = response.status().as_u16();
            let body = client::body_of(response).await;
            assert!(status < 300, "setup: {step}: {body}");
        }
    }

    async fn steps(&mut self, steps: &[Value]) {
        let start = Instant::now();
        let first = steps.iter().filter_map(|it| it["t"].as_f64()).fold(f64::MAX, f64::min);
        let mut later = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let t = (step["t"].as_f64().unwrap() - first) / self.pace;
            tokio::time::sleep_until(start + Duration::from_secs_f64(t)).await;
            let sent = self.current(step, self.translated(step)).await;
            let account = step["as"].as_str().map(str::to_owned);
            let token = match account.as_deref() {
                None => Some(self.token.to_owned()),
                Some("none") => None,
                Some(other) => Some(match other.split_once(':') {
                    Some(("account", account)) => format!("double-account.{}", account.replace('/', ".")),
                    _ => "wrong".to_owned(),
                }),
            };
            let response = client::send(&self.at, token.as_deref(), &sent).await;
            let status = response.status().as_u16();
            if json!(status) != step["status"] {
                let body = client::body_of(response).await;
                self.fail(index, step, &format!("status {status}: {body}"));
                continue;
            }
            if let Some(wanted) = step["warning"].as_str() {
                let is = response.headers().get("Warning").and_then(|it| it.to_str().ok());
                if is != Some(wanted) {
                    self.fail(index, step, &format!("warning {is:?}"));
                }
            }
            if step["events"].is_array() {
                let time = step["for"].as_f64().unwrap_or(1.0) / self.pace + 2.5;
                let time = Duration::from_secs_f64(time);
                later.push(Later::Watch(index, tokio::spawn(client::lines(response, time))));
            } else if step["frames"].is_array() && status == 101 {
                let is = response
                    .headers()
                    .get("Sec-WebSocket-Protocol")
                    .map(|it| it.to_str().unwrap().to_owned());
                if is.as_deref() != step["protocol"].as_str() {
                    self.fail(index, step, &format!("subprotocol {is:?}"));
                }
                let frames = step["frames"].as_array().unwrap().clone();
                let ends = frames.len();
                let task = tokio::spawn(async move { client::session(response, &frames).await });
                // One after the other, as they were recorded.
                let next = steps.get(index + 1).and_then(|it| it["t"].as_f64()).unwrap_or(f64::MAX);
                let alone = ends > 0
                    && next - step["t"].as_f64().unwrap() > 0.0
                    && steps
                        .get(index + 1)
                        .is_none_or(|it| it["method"] != "DELETE" && it["frames"].is_array());
                if alone && !step["path"].as_str().unwrap().contains("/g") {
                    let got = task.await.unwrap();
                    self.compare_frames(index, step, &got);
                } else {
                    later.push(Later::Session(index, task));
                }
            } else if step["follow"] == true {
                later.push(Later::Follow(index, tokio::spawn(client::body_of(response))));
            } else {
                let body = client::body_of(response).await;
                self.compare(index, step, &body);
            }
        }
        let mut watched = Vec::new();
        for one in later {
            match one {
                Later::Watch(index, task) => watched.push((index, task.await.unwrap())),
                Later::Session(index, task) => {
                    let got = task.await.unwrap();
                    self.compare_frames(index, &steps[index], &got);
                }
                Later::Follow(index, task) => {
                    let body = task.await.unwrap();
                    let text = body["text"].as_str().unwrap_or_default();
                    if !text.contains("tick 10")
                        && !text.contains("no newline")
                        && steps[index]["path"].as_str().unwrap().contains("talk")
                    {
                        self.fail(index, &steps[index], &format!("followed: {text}"));
                    }
                }
            }
        }
        for set in watched.iter().flat_map(|it| &it.1).map(|it| &it["object"]) {
            let image = &set["spec"]["template"]["spec"]["containers"][0]["image"];
            let hash = set["metadata"]["labels"]["pod-template-hash"].as_str();
            let recorded = self.hashes.iter().find(|it| *image == *it.1);
            if let (Some(hash), Some((recorded, _))) = (hash, recorded) {
                self.words.insert(recorded.clone(), hash.to_owned());
            }
        }
        for (index, events) in watched {
            let mut step = steps[index].clone();
            let (mut told, mut loose) = (step["events"].to_string(), step["loose"].to_string());
            for hash in self.hashes.keys() {
                let Some(here) = self.words.get(hash) else { continue };
                told = told.replace(hash, here);
                loose = loose.replace(hash, here);
            }
            step["events"] = serde_json::from_str(&told).unwrap();
            step["loose"] = serde_json::from_str(&loose).unwrap();
            self.compare_events(index, &step, &events);
        }
    }

    fn fail(&mut self, index: usize, step: &Value, why: &str) {
        let (method, path, query) = (&step["method"], &step["path"], &step["query"]);
        self.wrong.push(format!("[{index}] {method} {path} {query} ({}): {why}", step["note"]));
    }

    /// The version at `path`, as it is now.
    async fn version_at(&self, path: &str) -> Option<String> {
        let get = json!({"method": "GET", "path": path});
        let body = client::body_of(client::send(&self.at, Some(self.token), &get).await).await;
        body["metadata"]["resourceVersion"].as_str().map(str::to_owned)
    }

    /// Versions that no recorded answer told are the newest ones.
    async fn current(&self, step: &Value, mut sent: Value) -> Value {
        let unknown = |version: &str| {
            version.parse().is_ok_and(|it: u64| it > 300 && it != 99_999_999)
                && !self.versions.contains_key(version)
        };
        let query = step["query"].as_str().unwrap_or_default();
        let asked = query.split('&').find_map(|it| it.strip_prefix("resourceVersion="));
        if let Some(asked) = asked.filter(|it| unknown(it)) {
            let newest = self.version_at("/api/v1/nodes").await.unwrap();
            let query = sent["query"]
                .as_str()
                .unwrap()
                .replace(&format!("resourceVersion={asked}"), &format!("resourceVersion={newest}"));
            sent["query"] = json!(query);
        }
        let own = step["body"]["metadata"]["resourceVersion"].as_str();
        if own.is_some_and(unknown)
            && let Some(newest) = self.version_at(step["path"].as_str().unwrap()).await
        {
            sent["body"]["metadata"]["resourceVersion"] = json!(newest);
        }
        sent
    }

    /// A step with what was recorded replaced by what it is here.
    fn translated(&self, step: &Value) -> Value {
        let mut step = step.clone();
        if let Some(query) = step["query"].as_str() {
            let pairs: Vec<String> = query
                .split('&')
                .map(|pair| match pair.split_once('=') {
                    Some(("resourceVersion", version)) => {
                        format!("resourceVersion={}", self.versions.get(version).map_or(version, |it| it))
                    }
                    Some(("continue", token)) => {
                        format!("continue={}", self.words.get(token).map_or(token, |it| it))
                    }
                    Some((key, value)) => {
                        let value = self
                            .words
                            .iter()
                            .fold(value.to_owned(), |value, (from, to)| value.replace(from, to));
                        format!("{key}={value}")
                    }
                    _ => pair.to_owned(),
                })
                .collect();
            step["query"] = json!(pairs.join("&"));
        }
        let here = step["body"]["metadata"]["resourceVersion"].as_str().and_then(|it| self.versions.get(it));
        if let Some(here) = here {
            step["body"]["metadata"]["resourceVersion"] = json!(here);
        }
        for field in ["body", "path"] {
            if !step[field].is_null() {
                let mut text = step[field].to_string();
                for (from, to) in &self.words {
                    text = text.replace(from, to);
                }
                step[field] = serde_json::from_str(&text).unwrap();
            }
        }
        step
    }

    fn compare(&mut self, index: usize, step: &Value, body: &Value) {
        let meta = &body["metadata"];
        for (field, here) in [
            ("version", &meta["resourceVersion"]),
            ("uid", &meta["uid"]),
            ("continue", &meta["continue"]),
            ("called", &meta["name"]),
        ] {
            if let (Some(recorded), Some(here)) = (step[field].as_str(), here.as_str()) {
                let known = if field == "version" { &mut self.versions } else { &mut self.words };
                known.insert(recorded.to_owned(), here.to_owned());
            }
        }
        let mut expect = step["expect"].clone();
        for (from, to) in &self.words {
            expect = serde_json::from_str(&expect.to_string().replace(from, to)).unwrap();
        }
        let Some((how, wanted)) = expect.as_object().and_then(|it| it.iter().next()) else { return };
        let wrong = match how.as_str() {
            "exact" => !within(wanted, body),
            "subset" => !within(wanted, body),
            // How far it is at a moment, its watch tells.
            "essence" => {
                let (mut wanted, mut is) = (wanted.clone(), essence::of(body));
                if matches!(wanted["kind"].as_str(), Some("Pod" | "Deployment")) {
                    for field in ["phase", "reason", "node", "ip", "conditions", "containers", "status"] {
                        for it in [&mut wanted, &mut is] {
                            it.as_object_mut().unwrap().remove(field);
                        }
                    }
                }
                !alike(&wanted, &is)
            }
            "text" => {
                // Stamps are of their time.
                let plain = |text: &str| -> Vec<String> {
                    text.lines().map(|it| it.split_once("Z ").map_or(it, |it| it.1).to_owned()).collect()
                };
                let (wanted, is) = (wanted.as_str().unwrap(), body["text"].as_str().unwrap_or_default());
                !wanted.starts_with("apiVersion") && plain(wanted) != plain(is)
            }
            "list" => {
                let names: Vec<&Value> =
                    body["items"].as_array().unwrap().iter().map(|it| &it["metadata"]["name"]).collect();
                let items = wanted.get("items").is_some_and(|it| *it != json!(names));
                body["kind"] != wanted["kind"]
                    || items
                    || meta["continue"].is_string() != wanted["continue"]
                    || meta["remainingItemCount"].is_u64() != wanted["remaining"].is_u64()
            }
            "resources" => {
                let is: BTreeMap<&str, Value> = body["resources"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|it| (it["name"].as_str().unwrap(), json!([it["kind"], it["namespaced"]])))
                    .collect();
                wanted.as_object().unwrap().iter().any(|(name, it)| is.get(name.as_str()) != Some(it))
            }
            "groups" => {
                let is: Vec<&Value> =
                    body["groups"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
                wanted.as_array().unwrap().iter().any(|it| !is.contains(&it))
            }
            "table" => body["columnDefinitions"][0]["name"] != wanted["columns"][0],
            other => panic!("nothing compares {other}"),
        };
        if wrong {
            let is = if how == "essence" { essence::of(body) } else { body.clone() };
            self.fail(index, step, &format!("\n   wanted {wanted}\n   is     {is}"));
        }
    }

    fn compare_events(&mut self, index: usize, step: &Value, events: &[Value]) {
        let wanted = by_object(
            step["events"]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| (it[0].as_str().unwrap(), it[1].clone(), it[2].clone())),
        );
        let is = by_object(events.iter().map(|it| {
            let object = &it["object"];
            let kind = it["type"].as_str().unwrap();
            let shown = match kind {
                "ERROR" => json!({"exact": {"code": object["code"], "reason": object["reason"]}}),
                "BOOKMARK" => json!({"kind": object["kind"],
                    "initial": object["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"}),
                _ => essence::of(object),
            };
            let meta = &object["metadata"];
            let name = match object["kind"].as_str() {
                Some("Event") => Value::Null,
                _ => meta.get("generateName").unwrap_or(&meta["name"]).clone(),
            };
            (kind, name, shown)
        }));
        for (name, wanted) in &wanted {
            let is = is.get(name).cloned().unwrap_or_default();
            // Of events only what was told first counts, and bookmarks come when they do.
            let told = wanted.iter().any(|it| it.1["kind"] == "Event") || name.starts_with("BOOKMARK");
            let loose = step["loose"]
                .as_array()
                .is_some_and(|it| it.iter().any(|it| it.as_str() == Some(name.trim_matches('"'))));
            let fine = if told || loose {
                let mut left = is.iter();
                wanted.iter().all(|it| left.any(|is| is.0 == it.0 && alike(&it.1, &is.1)))
            } else {
                // The recorder went before the watch did.
                wanted.len() <= is.len()
                    && wanted.iter().zip(&is).all(|(it, is)| it.0 == is.0 && alike(&it.1, &is.1))
            };
            if !fine {
                let show = |it: &[(String, Value)]| {
                    it.iter().map(|it| format!("      {} {}", it.0, it.1)).collect::<Vec<_>>().join("\n")
                };
                self.fail(index, step, &format!("{name}\n   wanted\n{}\n   is\n{}", show(wanted), show(&is)));
            }
        }
    }

    fn compare_frames(&mut self, index: usize, step: &Value, got: &[Value]) {
        let wanted: Vec<Value> = joined(step["frames"].as_array().unwrap());
        let is = joined(got);
        let fine = wanted.len() == is.len()
            && wanted.iter().zip(&is).all(|(wanted, is)| {
                let same_kind = wanted[0] == is[0];
                same_kind
                    && match wanted[0].as_str().unwrap() {
                        "out" => {
                            wanted[1] == is[1]
                                && (wanted[2] == false || wanted[2] == is[2] || wanted[2].is_u64())
                        }
                        "status" => within(&wanted[1], &is[1]),
                        _ => wanted == is,
                    }
            });
        if !fine {
            self.fail(index, step, &format!("\n   wanted {}\n   is     {}", json!(wanted), json!(is)));
        }
    }
}

/// Runs of one channel become one; what the client sent is left out.
fn joined(frames: &[Value]) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    let mut first = true;
    for frame in frames
        .iter()
        .filter(|it| ["out", "status", "close", "eof", "text"].contains(&it[0].as_str().unwrap()))
    {
        // The first frame is empty and stands alone.
        if let Some(last) = all.last_mut()
            && !first
            && last[0] == "out"
            && frame[0] == "out"
            && last[1] == frame[1]
        {
            last[2] = match (&last[2], &frame[2]) {
                (Value::String(a), Value::String(b)) => json!(format!("{a}{b}")),
                (Value::Number(a), Value::Number(b)) => json!(a.as_u64().unwrap() + b.as_u64().unwrap()),
                _ => json!(false),
            };
            continue;
        }
        first = all.is_empty();
        all.push(frame.clone());
    }
    all
}

type Seen = Vec<(String, Value)>;

/// What is told of each object, without repetitions.
fn by_object<'a>(events: impl Iterator<Item = (&'a str, Value, Value)>) -> BTreeMap<String, Seen> {
    let mut all: BTreeMap<String, Seen> = BTreeMap::new();
    for (kind, name, shown) in events {
        let event = shown["kind"] == "Event" && kind != "BOOKMARK";
        let key = match kind {
            "BOOKMARK" => "BOOKMARK".to_owned(),
            _ if event => format!("events of {}", shown["about"]),
            _ => name.to_string(),
        };
        let seen = all.entry(key).or_default();
        if event {
            let known = seen.iter().any(|it| it.1 == shown);
            if kind == "ADDED" && !known {
                seen.push((kind.to_owned(), shown));
            }
        } else if seen.last().is_none_or(|it| it.1 != shown || it.0 != kind) {
            seen.push((kind.to_owned(), shown));
        }
    }
    all
}

/// Whether all of `wanted` is in `is`.
fn within(wanted: &Value, is: &Value) -> bool {
    match (wanted, is) {
        (Value::Object(wanted), Value::Object(is)) => {
            wanted.iter().all(|(key, value)| is.get(key).is_some_and(|is| within(value, is)))
        }
        // Causes come in any order.
        (Value::Array(wanted), Value::Array(is)) if wanted.iter().any(|it| it["field"].is_string()) => {
            wanted.len() == is.len() && wanted.iter().all(|a| is.iter().any(|b| within(a, b)))
        }
        (Value::Array(wanted), Value::Array(is)) => {
            wanted.len() == is.len() && wanted.iter().zip(is).all(|(a, b)| within(a, b))
        }
        _ => wanted == is,
    }
}

/// Equal; of events the message only where it was recorded.
fn alike(wanted: &Value, is: &Value) -> bool {
    if wanted["kind"] == "Event" { within(wanted, is) } else { wanted == is }
}

macro_rules! scenarios {
    ($($test:ident $name:literal $pace:literal;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                replay($name, $pace).await;
            }
        )*
    };
}

/// Each event of a watch is one chunk and one line, on the wire.
#[tokio::test]
async fn an_event_is_one_chunk() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let double = Double::start(Options::default()).await.unwrap();
    let at = double.url().trim_start_matches("http://").to_owned();
    let mut stream = tokio::net::TcpStream::connect(&at).await.unwrap();
    let path = "/api/v1/namespaces?watch=true&timeoutSeconds=1";
    let token = double.token();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {at}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, mut rest) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.to_lowercase().contains("transfer-encoding: chunked"), "{head}");
    let mut events = 0;
    loop {
        let (size, after) = rest.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        let line = &after[..size];
        assert!(line.ends_with('\n') && line.lines().count() == 1, "{line}");
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["type"], "ADDED");
        events += 1;
        rest = &after[size + 2..];
    }
    assert_eq!(events, 2);
    double.stop().await;
}

scenarios! {
    discovery "01-discovery" 4.0;
    namespace "02a-namespace" 2.0;
    claim_immediate "02b-pvc-immediate" 2.0;
    claim_for_a_consumer "02c-pvc-wait-for-first-consumer" 2.0;
    pod_lifecycle "02d-pod-lifecycle" 2.0;
    pod_completes "02e-pod-completes" 1.0;
    pod_apply "02f-pod-apply" 1.0;
    error_bodies "03a-error-bodies" 2.0;
    service_account "03b-forbidden-service-account" 2.0;
    quota "03c-quota" 2.0;
    image_pull_failure "03d-image-pull-failure" 10.0;
    unschedulable "03e-unschedulable" 4.0;
    unschedulable_selector "03f-unschedulable-selector" 4.0;
    crash_loop "03g-crash-loop" 10.0;
    oom_killed "03h-oomkilled" 2.0;
    readiness "03i-readiness" 1.0;
    bad_image_name "03j-bad-image-name" 2.0;
    bad_command "03k-bad-command" 2.0;
    missing_secret "03l-missing-secret" 2.0;
    delete_graceful "04a-delete-graceful" 4.0;
    delete_force "04b-delete-force" 2.0;
    claim_in_use "04c-pvc-in-use" 2.0;
    delete_options "04d-delete-options" 1.0;
    owner_references "04e-owner-references" 1.0;
    list "05a-list" 4.0;
    watch "05b-watch" 1.0;
    exec_handshake "06a-exec-handshake" 4.0;
    exec_results "06b-exec-results" 2.0;
    exec_pod_goes "06e-exec-pod-goes" 1.0;
    exec_rights "06i-exec-rbac" 4.0;
    logs "07-logs" 1.0;
    attach_and_forward "06g-attach-portforward" 4.0;
    lease "08a-lease" 1.0;
    events "08b-events" 1.0;
    definitions "08c-crd" 1.0;
    rollout "09a-deployment-rollout" 2.0;
    bad_image "09b-deployment-bad-image" 2.0;
}
