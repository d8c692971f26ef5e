//! Each recorded scenario is sent to the double; what a client decides by must be the
//! same: statuses, bodies, the order of events, the frames of exec sessions.
//!
//! The recorded containers ran a shell's commands; here they run as processes of this
//! machine. Where a recording shows what belongs to its own node (a shell's prompt, a
//! runtime's message, which changes of a busy kubelet fell into one write), only the
//! milestones are compared: `loose` in a fixture names such objects.
#![expect(clippy::unwrap_used, reason = "it is a test")]

mod client;
mod compare;
mod essence;
mod session;
mod terminal;
mod wire;

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use podyard_kubernetes_double::{Double, Options};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

struct Replay {
    at: String,
    token: &'static str,
    pace: f64,
    /// What was recorded and what it is here: versions, uids, tokens of pages.
    versions: HashMap<String, String>,
    words: HashMap<String, String>,
    /// Hashes of templates in recorded names: the image that each stands for.
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

/// What goes on while later steps are taken.
enum Later {
    Watch(usize, client::Lines),
    Session(usize, JoinHandle<Result<(), String>>),
    Follow(usize, JoinHandle<Value>),
    Wire(usize, JoinHandle<Vec<String>>),
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
                    let all = has.is_null() || compare::within(has, &object);
                    if object["status"]["phase"] == *phase && ready && all {
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
        let mut start = Instant::now();
        let first = steps.iter().filter_map(|it| it["t"].as_f64()).fold(f64::MAX, f64::min);
        let mut later = Vec::new();
        let pace = self.pace;
        let after = |t: f64| Duration::from_secs_f64((t - first) / pace);
        for (index, step) in steps.iter().enumerate() {
            tokio::time::sleep_until(start + after(step["t"].as_f64().unwrap())).await;
            if step["wait"].is_string() {
                self.set_up(&json!([step])).await;
                continue;
            }
            let sent = self.current(step, self.translated(step)).await;
            let token = self.token_of(step);
            if step["refused"] == true {
                if !client::refused(&self.at).await {
                    self.fail(index, step, "it still listens");
                }
                continue;
            }
            if step["chunks"].is_array() {
                let (at, step) = (self.at.clone(), step.clone());
                let begun = wire::begin(&at, self.token, &step).await;
                later.push(Later::Wire(index, tokio::spawn(wire::rest(begun, step))));
                continue;
            }
            let response = client::send(&self.at, token.as_deref(), &sent).await;
            let status = response.status().as_u16();
            if json!(status) != step["status"] {
                let body = client::body_of(response).await;
                self.fail(index, step, &format!("status {status}: {body}"));
                continue;
            }
            let header = |name: &str| response.headers().get(name).and_then(|it| it.to_str().ok());
            for (name, field) in [("Warning", "warning"), ("Sec-WebSocket-Protocol", "protocol")] {
                if let Some(wanted) = step[field].as_str()
                    && header(name) != Some(wanted)
                {
                    let why = format!("{field} {:?}", header(name));
                    self.fail(index, step, &why);
                }
            }
            if step["events"].is_array() {
                // The seconds that a client gives are not the cluster's.
                let own = asked(step, "timeoutSeconds").and_then(|it| it.parse().ok()).unwrap_or(0.0);
                let time = (step["for"].as_f64().unwrap_or(1.0) / self.pace).max(own) + 2.5;
                later.push(Later::Watch(index, client::Lines::of(response, Duration::from_secs_f64(time))));
            } else if status == 101 {
                let frames = step["frames"].as_array().expect("a session has frames").clone();
                let (done, mut behind) = watch::channel(0);
                let task = tokio::spawn(async move { session::live(response, &frames, pace, &done).await });
                match step["meanwhile"].as_u64() {
                    // It was open while later steps were taken: those waited for its begin.
                    Some(count) => {
                        let _ = behind.wait_for(|it| u64::try_from(*it).unwrap() >= count).await;
                        later.push(Later::Session(index, task));
                    }
                    None => {
                        self.ended(index, step, task).await;
                        start = Instant::now() - after(step["until"].as_f64().unwrap());
                    }
                }
            } else if step["follow"] == true {
                later.push(Later::Follow(index, tokio::spawn(client::body_of(response))));
            } else {
                let body = client::body_of(response).await;
                self.compare(index, step, &body);
            }
        }
        for one in later {
            match one {
                Later::Watch(index, lines) => self.watched(index, &steps[index], lines).await,
                Later::Session(index, task) => self.ended(index, &steps[index], task).await,
                Later::Wire(index, task) => {
                    for why in task.await.unwrap() {
                        self.fail(index, &steps[index], &why);
                    }
                }
                Later::Follow(index, task) => {
                    let body = task.await.unwrap();
                    self.compare(index, &steps[index], &body);
                }
            }
        }
    }

    /// The events of a watch. One that has its own time is seen to its end, every
    /// other until all that was recorded has come.
    async fn watched(&mut self, index: usize, step: &Value, mut lines: client::Lines) {
        let to_its_end = step["ends"] == true || asked(step, "timeoutSeconds").is_some();
        let mut events = Vec::new();
        loop {
            if !to_its_end && compare::events(&self.named(step), &events, self.pace).is_empty() {
                return;
            }
            match lines.next().await {
                Some(event) => {
                    self.learn(&event["object"]);
                    events.push(event);
                }
                None => break,
            }
        }
        for why in compare::events(&self.named(step), &events, self.pace) {
            self.fail(index, step, &why);
        }
        let lasts = step["lasts"].as_f64().unwrap_or_default() * 0.95 / self.pace;
        if step["ends"] == true && lines.ended().is_none_or(|it| it.as_secs_f64() < lasts) {
            let why = format!("it does not end as it should: {:?}", lines.ended());
            self.fail(index, step, &why);
        }
    }

    /// What a hash of the recording is here: that of the ReplicaSet with the same image.
    fn learn(&mut self, set: &Value) {
        let image = &set["spec"]["template"]["spec"]["containers"][0]["image"];
        let hash = set["metadata"]["labels"]["pod-template-hash"].as_str();
        let recorded = self.hashes.iter().find(|it| *image == *it.1);
        if let (Some(hash), Some((recorded, _))) = (hash, recorded) {
            self.words.insert(recorded.clone(), hash.to_owned());
        }
    }

    /// A step whose objects are called as they are here.
    fn named(&self, step: &Value) -> Value {
        let here = |hash| self.words.get(hash).map(|here| (hash, here));
        let words: Vec<(&String, &String)> = self.hashes.keys().filter_map(here).collect();
        if words.is_empty() {
            return step.clone();
        }
        let text = words.iter().fold(step.to_string(), |text, (from, to)| text.replace(*from, to));
        serde_json::from_str(&text).unwrap()
    }

    async fn ended(&mut self, index: usize, step: &Value, task: JoinHandle<Result<(), String>>) {
        if let Err(why) = task.await.unwrap() {
            self.fail(index, step, &why);
        }
    }

    /// The token of who asks.
    fn token_of(&self, step: &Value) -> Option<String> {
        match step["as"].as_str() {
            None => Some(self.token.to_owned()),
            Some("none") => None,
            Some(other) => Some(match other.split_once(':') {
                Some(("account", account)) => format!("double-account.{}", account.replace('/', ".")),
                _ => "wrong".to_owned(),
            }),
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
        if let Some(asked) = asked(step, "resourceVersion").filter(|it| unknown(it)) {
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
}

/// What a step asks for in its query.
fn asked<'a>(step: &'a Value, name: &str) -> Option<&'a str> {
    let query = step["query"].as_str().unwrap_or_default();
    query.split('&').find_map(|it| it.strip_prefix(name)?.strip_prefix('='))
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

scenarios! {
    discovery "01-discovery" 4.0;
    namespace "02a-namespace" 4.0;
    claim_immediate "02b-pvc-immediate" 4.0;
    claim_for_a_consumer "02c-pvc-wait-for-first-consumer" 4.0;
    pod_lifecycle "02d-pod-lifecycle" 4.0;
    pod_completes "02e-pod-completes" 2.0;
    pod_apply "02f-pod-apply" 2.0;
    managed_fields "02g-managed-fields-example" 4.0;
    error_bodies "03a-error-bodies" 2.0;
    service_account "03b-forbidden-service-account" 2.0;
    quota "03c-quota" 2.0;
    image_pull_failure "03d-image-pull-failure" 20.0;
    unschedulable "03e-unschedulable" 4.0;
    unschedulable_selector "03f-unschedulable-selector" 4.0;
    crash_loop "03g-crash-loop" 20.0;
    oom_killed "03h-oomkilled" 4.0;
    readiness "03i-readiness" 5.0;
    bad_image_name "03j-bad-image-name" 4.0;
    bad_command "03k-bad-command" 4.0;
    missing_secret "03l-missing-secret" 4.0;
    liveness "03m-liveness-restart" 5.0;
    delete_graceful "04a-delete-graceful" 8.0;
    delete_force "04b-delete-force" 2.0;
    claim_in_use "04c-pvc-in-use" 4.0;
    delete_options "04d-delete-options" 2.0;
    owner_references "04e-owner-references" 3.0;
    list "05a-list" 4.0;
    watch_variants "05b-watch" 8.0;
    gone "05c-gone-410" 4.0;
    bookmarks "05d-bookmarks-idle" 60.0;
    wire_bytes "05e-wire-bytes" 2.0;
    exec_handshake "06a-exec-handshake" 4.0;
    exec_results "06b-exec-results" 10.0;
    exec_terminal "06c-exec-tty" 10.0;
    exec_client_goes "06d-exec-client-goes" 10.0;
    exec_pod_goes "06e-exec-pod-goes" 4.0;
    exec_idle "06f-exec-idle" 100.0;
    exec_terminal_more "06h-exec-tty-more" 10.0;
    exec_rights "06i-exec-rbac" 10.0;
    attach_and_forward "06g-attach-portforward" 4.0;
    logs "07-logs" 3.0;
    lease "08a-lease" 1.0;
    events "08b-events" 1.0;
    definitions "08c-crd" 2.0;
    rollout "09a-deployment-rollout" 2.0;
    bad_image "09b-deployment-bad-image" 2.0;
    restart "10-apiserver-restart" 30.0;
}
