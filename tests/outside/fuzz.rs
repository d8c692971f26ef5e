//! Requests that nobody would write, made from the server's own document:
//! whatever comes in, the answer is a 2xx or a problem of the client's, nothing
//! panics, and no statement has a word of it.
//!
//! `PODYARD_FUZZ_SECONDS` says for how long (5), `PODYARD_FUZZ_SEED` with what.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};

use crate::harness::{Client, House, Kind, key};

on_each_database!(without mysql: whatever_comes_in_is_answered);

/// In all texts and most numbers that are made up: a statement that holds one
/// was not made of known pieces.
const WORD: &str = "zqx";
const NUMBER: i64 = 86_420_135_797_531;

const TEXTS: [&str; 14] = [
    "",
    " ",
    "zqx",
    "zqx'; DROP TABLE spaces; --",
    "\" OR 1=1 --zqx",
    "zqx\u{0}",
    "\u{202e}zqx\u{1f680}é\u{fffe}",
    "-1zqx",
    "2026-02-30T25:61:61Zzqx",
    "../../zqx",
    "%00%zqx_\\",
    "null",
    "true",
    "99999999999999999999",
];

/// JSON that a [`Value`] cannot hold; it stands for a text while a body is made.
const RAW: [&str; 9] = [
    "86420135797531864201357975318642013579753186420135797531",
    "-9223372036854775809",
    "1e999",
    "-0.0",
    "\"\\ud800zqx\"",
    "\"\\udfff\\ud800\"",
    "{\"zqx\": 1, \"zqx\": 2}",
    "NaN",
    "1e-400",
];

/// What filters and other parameters are made of.
const PIECES: [&str; 40] = [
    "name",
    "status",
    "id",
    "created_at",
    "template",
    "spec",
    "user",
    ".",
    ".",
    "(",
    ")",
    ")",
    ",",
    "'",
    "\"",
    "\\",
    " ",
    "eq",
    "ne",
    "in",
    "between",
    "like",
    "contains",
    "isnull",
    "isempty",
    "regexp",
    "startswith",
    "zqx",
    "86420135797531",
    "-1.5",
    "true",
    "%",
    ";",
    "--",
    "DROP TABLE zqx",
    "' OR 1=1 zqx",
    "é",
    "\u{1f680}",
    "0",
    "-",
];

const PARAMETERS: [&str; 22] = [
    "filter",
    "filter",
    "filter",
    "filter",
    "filter_any",
    "order_by",
    "order",
    "search",
    "limit",
    "offset",
    "marker",
    "total",
    "details",
    "field",
    "exclude",
    "scope",
    "deleted",
    "tag",
    "distinct_field",
    "export",
    "name",
    "zqx",
];

const TYPES: [&str; 7] = [
    "application/json; charset=utf-16",
    "application/merge-patch+json",
    "application/vnd.podyard.v7+json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=zqx",
    "text/plain",
    "zqx",
];

/// Paths whose changes could end the run (the administrator's own user, what
/// every write is asked of): these are rehearsed only.
const REHEARSED: [&str; 6] = ["/users", "/projects", "/domains", "/webhooks", "/resource-types", "/kinds"];

struct Fuzz {
    rng: StdRng,
    document: Value,
    /// Ids and names that there are, by their type's plural.
    known: Vec<(&'static str, Vec<String>)>,
}

fn encoded(text: &str) -> String {
    text.bytes().map(|it| format!("%{it:02X}")).collect()
}

impl Fuzz {
    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of.choose(&mut self.rng).unwrap().clone()
    }

    /// An id or a name: mostly of that type, if there are any.
    fn known(&mut self, plural: &str) -> String {
        let of = self.known.iter().position(|it| it.0 == plural);
        let at = of.filter(|_| !self.one_in(5)).unwrap_or_else(|| self.rng.random_range(0..self.known.len()));
        self.known[at].1.choose(&mut self.rng).unwrap().clone()
    }

    fn text(&mut self) -> String {
        match self.rng.random_range(0..8) {
            0 => self.pick(&TEXTS).to_owned(),
            1 => WORD.repeat(self.rng.random_range(1..2000)),
            2 => self.known(""),
            _ => format!("{WORD}{}", self.rng.random_range(0..50)),
        }
    }

    /// Something where something else should be.
    fn wrong(&mut self) -> Value {
        match self.rng.random_range(0..11) {
            0 => Value::Null,
            1 => json!(self.rng.random::<bool>()),
            2 => json!(NUMBER),
            3 => json!(-NUMBER),
            4 => json!(self.rng.random::<f64>() * 1e300),
            5 => json!({}),
            6 => json!([]),
            7 => {
                let value = self.text();
                Value::Array(vec![value.into(); self.rng.random_range(1..1200)])
            }
            8 => (0..self.rng.random_range(1..300))
                .fold(json!(WORD), |it, i| if i % 2 == 0 { json!([it]) } else { json!({WORD: it}) }),
            9 => format!("@@{}@@", self.rng.random_range(0..RAW.len())).into(),
            _ => self.text().into(),
        }
    }

    /// What a schema allows, more or less.
    fn valid(&mut self, schema: &Value, depth: u32) -> Value {
        if let Some(at) = schema["$ref"].as_str() {
            let schema = self.document.pointer(&at[1..]).unwrap().clone();
            return self.valid(&schema, depth);
        }
        for word in ["anyOf", "oneOf", "enum"] {
            if let Some(all) = schema[word].as_array() {
                let one = self.pick(all);
                return if word == "enum" { one } else { self.valid(&one, depth) };
            }
        }
        if !schema["const"].is_null() {
            return schema["const"].clone();
        }
        if let Some(keyword) = schema["x-references"].as_str() {
            return self.known(&format!("{keyword}s")).into();
        }
        let kind = match &schema["type"] {
            Value::Array(all) => self.pick(all),
            kind => kind.clone(),
        };
        match kind.as_str() {
            Some("object") => {
                let mut object = Map::new();
                let required = schema["required"].as_array().cloned().unwrap_or_default();
                for (name, of) in schema["properties"].as_object().into_iter().flatten() {
                    if required.iter().any(|it| it == name) || (depth < 6 && self.one_in(3)) {
                        let value = self.valid(of, depth + 1);
                        object.insert(name.clone(), value);
                    }
                }
                if schema["additionalProperties"].is_object() {
                    let value = self.valid(&schema["additionalProperties"], depth + 1);
                    object.insert(self.text(), value);
                }
                Value::Object(object)
            }
            Some("array") => {
                let n = if depth < 6 { self.rng.random_range(0..3) } else { 0 };
                (0..n).map(|_| self.valid(&schema["items"], depth + 1)).collect()
            }
            Some("string") => format!("{WORD}{}", self.rng.random_range(0..50)).into(),
            Some("integer" | "number") => json!(self.pick(&[0, 1, 2, 3, 1000, NUMBER])),
            Some("boolean") => json!(self.rng.random::<bool>()),
            Some("null") => Value::Null,
            _ => self.wrong(),
        }
    }

    /// Changes something somewhere in it.
    fn spoil(&mut self, value: &mut Value) {
        match value {
            Value::Object(map) if !map.is_empty() && !self.one_in(4) => {
                let name = self.pick(&map.keys().cloned().collect::<Vec<_>>());
                match self.rng.random_range(0..8) {
                    0 => drop(map.remove(&name)),
                    1 => drop(map.insert(self.text(), self.wrong())),
                    _ => self.spoil(&mut map[&name]),
                }
            }
            Value::Array(list) if !list.is_empty() && !self.one_in(4) => {
                let at = self.rng.random_range(0..list.len());
                self.spoil(&mut list[at]);
            }
            _ => *value = self.wrong(),
        }
    }

    /// A body: as it should be, with wrong values, or with wrong bytes.
    fn body(&mut self, schema: &Value) -> Vec<u8> {
        let mut value = self.valid(schema, 0);
        for _ in 0..self.rng.random_range(0..4) {
            self.spoil(&mut value);
        }
        let mut text = value.to_string();
        for (i, raw) in RAW.iter().enumerate() {
            text = text.replace(&format!("\"@@{i}@@\""), raw);
        }
        let mut bytes = text.into_bytes();
        let at = self.rng.random_range(0..=bytes.len());
        match self.rng.random_range(0..24) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, self.rng.random()),
            2 => bytes.extend_from_within(at..),
            3 => bytes = [b"[".repeat(at % 5000), bytes].concat(),
            4 => bytes.clear(),
            5 => bytes = [b"\xef\xbb\xbf".to_vec(), bytes].concat(),
            _ => {}
        }
        bytes
    }

    /// A path with something for each of its parameters.
    fn path(&mut self, template: &str) -> String {
        let mut path = String::new();
        for (i, piece) in template.split(['{', '}']).enumerate() {
            let fill = if i % 2 == 0 {
                piece.to_owned()
            } else if self.one_in(6) {
                encoded(&self.text().chars().take(40).collect::<String>())
            } else {
                encoded(&self.known(template.split('/').nth(1).unwrap_or_default()))
            };
            path.push_str(&fill);
        }
        path
    }

    fn query(&mut self) -> String {
        let mut all = Vec::new();
        for _ in 0..self.rng.random_range(0..4) {
            let name = self.pick(&PARAMETERS);
            let value: String = if name == "filter" && self.one_in(2) {
                let (field, op) = (self.pick(&PIECES[..7]), self.pick(&PIECES[17..27]));
                format!("{field}.{op}({})", self.text())
            } else {
                (0..self.rng.random_range(1..8)).map(|_| self.pick(&PIECES)).collect()
            };
            all.push(format!("{name}={}", encoded(&value.chars().take(1500).collect::<String>())));
        }
        all.join("&")
    }
}

/// All operations: method, path and the schema of a body.
fn operations(document: &Value) -> Vec<(String, String, Option<Value>)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters")
        {
            let body = &operation["requestBody"]["content"];
            let schema = body.as_object().and_then(|it| it.values().next()).map(|it| it["schema"].clone());
            // Would end the token that the run goes on with.
            if !(method == "delete" && path.starts_with("/v3")) {
                all.push((method.to_uppercase(), path.clone(), schema));
            }
        }
    }
    all
}

/// Some of each, and what is there from the beginning.
fn fill(admin: &Client) -> Vec<(&'static str, Vec<String>)> {
    for i in 0..4 {
        admin.space(&format!("zqx{i}"), "files");
    }
    admin.member("ann");
    let all = ["spaces", "templates", "specs", "kinds", "users", "projects", "domains"];
    let of = |plural: &'static str| {
        let rows = admin.get(&format!("/{plural}")).expect(200).of(plural);
        let names = rows.as_array().unwrap().iter().flat_map(|row| [key(row, "id"), key(row, "name")]);
        (plural, names.collect())
    };
    all.map(of).into()
}

fn whatever_comes_in_is_answered(kind: Kind) {
    let number = |name: &str| std::env::var(name).ok().map(|it| it.parse::<u64>().unwrap());
    let seconds = Duration::from_secs(number("PODYARD_FUZZ_SECONDS").unwrap_or(5));
    let seed = number("PODYARD_FUZZ_SEED").unwrap_or_else(rand::random);
    println!("PODYARD_FUZZ_SEED={seed}");
    let house = House::new(kind);
    let server = house.serve(&["--log", "info,podyard::sql=trace", "--max-running", "2"]);
    let admin = server.admin();
    let ann = admin.member("fuzz");
    let document = admin.get("/openapi.json").expect(200).json();
    let operations = operations(&document);
    let mut fuzz = Fuzz { rng: StdRng::seed_from_u64(seed), document, known: fill(&admin) };
    let (start, mut asked, mut good) = (Instant::now(), 0_u32, 0_u32);
    while start.elapsed() < seconds {
        let (method, template, schema) = fuzz.pick(&operations);
        let mut path = fuzz.path(&template);
        // What is no list takes few parameters.
        let listed = method == "GET" && !template.contains('{');
        let mut query = if listed || fuzz.one_in(8) { fuzz.query() } else { String::new() };
        if method != "GET" && (fuzz.one_in(3) || REHEARSED.iter().any(|it| template.starts_with(it))) {
            query = format!("dry_run=true&{query}");
        }
        if !query.is_empty() {
            path = format!("{path}?{}", query.trim_end_matches('&'));
        }
        let body = schema.map(|it| fuzz.body(&it));
        let media = if fuzz.one_in(12) { fuzz.pick(&TYPES) } else { "application/json" };
        let mut headers = vec![("Content-Type", media)];
        if fuzz.one_in(20) {
            headers.push(("If-Match", "\"zqx-86420135797531\""));
        }
        if fuzz.one_in(20) {
            headers.push(("Idempotency-Key", "zqx"));
        }
        let client = if fuzz.one_in(4) { &ann } else { &admin };
        let shown = || {
            let body = String::from_utf8_lossy(body.as_deref().unwrap_or_default()).into_owned();
            format!("PODYARD_FUZZ_SEED={seed}, request {asked}: {method} {path} {headers:?} {:.2000}", body)
        };
        let answer = client
            .try_send(&method, &path, &headers, body.as_deref())
            .unwrap_or_else(|error| panic!("{}: {error}", shown()));
        // `GET /` is a 300, as Keystone's is.
        assert!(
            (200..=300).contains(&answer.status) || (400..500).contains(&answer.status),
            "{}: {} {}",
            shown(),
            answer.status,
            answer.text()
        );
        if answer.status >= 400 {
            let media = answer.header("content-type");
            assert!(media.starts_with("application/problem+json"), "{}: {media}", shown());
            if method != "HEAD" {
                assert!(answer.json()["class"].is_string(), "{}: {}", shown(), answer.text());
            }
        }
        asked += 1;
        good += u32::from(answer.status < 300);
    }
    println!("{asked} requests, {good} of them good");
    admin.get("/healthz").expect(200);
    admin.get("/spaces").expect(200);
    assert!(good > asked / 50 && good < asked, "{good} of {asked} requests were good: that tries nothing");
    let mut statements = HashSet::new();
    for line in server.logged().lines() {
        assert!(!line.contains("panicked"), "PODYARD_FUZZ_SEED={seed}: {line}");
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        assert!(line["level"] != "ERROR", "PODYARD_FUZZ_SEED={seed}: {line}");
        if line["statement"].is_string() {
            statements.insert(key(&line, "statement"));
        }
    }
    assert!(statements.len() > 50, "only {} statements are in the log", statements.len());
    for statement in statements {
        let theirs = statement.to_lowercase().contains(WORD) || statement.contains(&NUMBER.to_string());
        assert!(!theirs, "PODYARD_FUZZ_SEED={seed}: a statement with what a client sent: {statement}");
    }
}
