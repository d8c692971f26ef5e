//! A random walk: several users with different rights do random things, and
//! every answer is compared with a small model of what the server should know.
//! `PODYARD_TEST_SEED` walks again where a walk has failed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::harness::{Answer, Client, House, Kind, body, key, random};

on_each_database!(every_answer_of_a_random_walk_is_the_models);

const STEPS: usize = 600;
const MOST_SPACES: usize = 6;
const NAMES: [&str; 7] = ["a", "B", "a b", "ä", "名前", "x_%", "100%"];
const TEXTS: [&str; 4] = ["", "some text", "line\nline", "Ünï \"quoted\" \\ '; --"];

/// xorshift64*: small, and the same walk for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n as u64).unwrap()
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone)]
struct Spec {
    name: String,
    enabled: bool,
    version: i64,
}

#[derive(Clone)]
struct Space {
    name: String,
    description: String,
    owner: usize,
    spec: String,
    version: i64,
    /// Its place among all that were ever made.
    made: usize,
}

struct Walk {
    random: Random,
    /// The administrator first.
    users: Vec<(Client, String)>,
    specs: BTreeMap<String, Spec>,
    spaces: BTreeMap<String, Space>,
    gone: BTreeSet<String>,
    made: usize,
    story: String,
}

impl Drop for Walk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines: Vec<_> = self.story.lines().collect();
            eprintln!("the last steps:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
        }
    }
}

fn every_answer_of_a_random_walk_is_the_models(kind: Kind) {
    let seed = std::env::var("PODYARD_TEST_SEED").ok().and_then(|it| it.parse().ok());
    let seed = seed.unwrap_or_else(|| random(u64::from(u32::MAX)) + 1);
    println!("PODYARD_TEST_SEED={seed}");
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", &MOST_SPACES.to_string()]);
    let admin = server.admin();
    let mut users = vec![(admin.clone(), admin.user_id())];
    for name in ["ann", "bob"] {
        let client = admin.member(name);
        let id = client.user_id();
        users.push((client, id));
    }
    let mut walk = Walk {
        random: Random(seed),
        users,
        specs: BTreeMap::new(),
        spaces: BTreeMap::new(),
        gone: BTreeSet::new(),
        made: 0,
        story: String::new(),
    };
    for row in admin.get("/specs").of("specs").as_array().unwrap() {
        let spec = Spec { name: key(row, "name"), enabled: true, version: row["version"].as_i64().unwrap() };
        walk.specs.insert(key(row, "id"), spec);
    }
    for _ in 0..STEPS {
        walk.step();
    }
    // Whoever asks in the end sees what the model says.
    for user in 0..walk.users.len() {
        walk.list(user, "", |_, _| true);
    }
}

impl Walk {
    fn step(&mut self) {
        let user = self.random.below(self.users.len());
        match self.random.below(100) {
            0..25 => self.create(user),
            25..40 => self.read(user),
            40..58 => self.change(user),
            58..70 => self.delete(user),
            70..84 => self.lists(user),
            84..88 => self.create_spec(user),
            88..94 => self.change_spec(user),
            94..97 => self.delete_spec(user),
            _ => self.nonsense(user),
        }
    }

    fn told(&mut self, answer: &Answer) {
        writeln!(self.story, "{} -> {} {}", answer.asked, answer.status, answer.text()).unwrap();
    }

    fn sees(&self, user: usize, space: &Space) -> bool {
        user == 0 || space.owner == user
    }

    /// The id of some space, not always one that the user may see.
    fn some_space(&mut self) -> String {
        let ids: Vec<_> = self.spaces.keys().cloned().collect();
        let gone: Vec<_> = self.gone.iter().cloned().collect();
        if ids.is_empty() || self.random.chance(10) {
            return if gone.is_empty() { "nothing".into() } else { self.random.one(&gone).clone() };
        }
        self.random.one(&ids).clone()
    }

    /// The space, if that user can find it by that id.
    fn found(&self, user: usize, id: &str) -> Option<Space> {
        self.spaces.get(id).filter(|it| self.sees(user, it)).cloned()
    }

    fn same(&self, shown: &Value, id: &str, space: &Space) {
        assert_eq!(shown["id"], id, "{shown}");
        assert_eq!(shown["name"], space.name.as_str(), "{shown}");
        assert_eq!(shown["description"], space.description.as_str(), "{shown}");
        assert_eq!(shown["version"], space.version, "{shown}");
        assert_eq!(shown["spec_id"], space.spec.as_str(), "{shown}");
        assert_eq!(shown["user_id"], self.users[space.owner].1.as_str(), "{shown}");
        assert_eq!(shown["spec"], self.specs[&space.spec].name.as_str(), "{shown}");
        assert_eq!(shown["status"], "stopped", "{shown}");
    }

    fn create(&mut self, user: usize) {
        let name = (*self.random.one(&NAMES)).to_owned();
        let description = (*self.random.one(&TEXTS)).to_owned();
        let specs: Vec<_> = self.specs.keys().cloned().collect();
        let spec = if self.random.chance(5) { "no such".into() } else { self.random.one(&specs).clone() };
        let fields =
            json!({"name": name, "description": description, "template_id": "files", "spec_id": spec});
        let sent = if self.random.chance(50) { body("space", fields) } else { fields };
        let answer = self.users[user].0.post("/spaces", &sent);
        self.told(&answer);
        let own: Vec<_> = self.spaces.values().filter(|it| it.owner == user).collect();
        let known = self.specs.get(&spec);
        if known.is_none() {
            assert_eq!(answer.refused(400, "ReferenceNotFoundError").blamed(), ["spec_id"]);
        } else if known.is_some_and(|it| !it.enabled) {
            assert_eq!(answer.refused(400, "SpecDisabledError").blamed(), ["spec_id"]);
        } else if own.len() >= MOST_SPACES {
            answer.refused(409, "SpaceLimitError");
        } else if own.iter().any(|it| it.name == name) {
            assert_eq!(answer.refused(409, "DuplicateNameError").blamed(), ["name"]);
        } else {
            let answer = answer.expect(201);
            let shown = answer.of("space");
            let id = key(&shown, "id");
            assert_eq!(answer.header("location"), format!("/spaces/{id}"));
            let space = Space { name, description, owner: user, spec, version: 1, made: self.made };
            self.made += 1;
            self.same(&shown, &id, &space);
            self.spaces.insert(id, space);
        }
    }

    fn read(&mut self, user: usize) {
        if self.random.chance(30) {
            return self.read_by_name(user);
        }
        let id = self.some_space();
        let answer = self.users[user].0.get(&format!("/spaces/{id}"));
        self.told(&answer);
        match self.found(user, &id) {
            Some(space) => self.same(&answer.expect(200).of("space"), &id, &space),
            None => drop(answer.refused(404, "ResourceNotFoundError")),
        }
    }

    fn read_by_name(&mut self, user: usize) {
        let name = *self.random.one(&NAMES);
        let answer = self.users[user].0.get(&format!("/spaces/{}", escaped(name)));
        self.told(&answer);
        let named: Vec<_> =
            self.spaces.iter().filter(|(_, it)| it.name == name && self.sees(user, it)).collect();
        match named.as_slice() {
            [] => drop(answer.refused(404, "ResourceNotFoundError")),
            [(id, space)] => self.same(&answer.expect(200).of("space"), id, space),
            _ => drop(answer.refused(409, "AmbiguousNameError")),
        }
    }

    /// The tag to send, and whether it is the row's.
    fn if_match(&mut self, version: Option<i64>) -> (Option<String>, bool) {
        match self.random.below(4) {
            0 => (version.map(|it| format!("\"{it}\"")), true),
            1 => (version.map(|it| format!("\"{}\"", it + 1)), version.is_none()),
            _ => (None, true),
        }
    }

    fn send(&self, user: usize, method: &str, path: &str, tag: Option<&str>, sent: Option<&Value>) -> Answer {
        let bytes = sent.map(|it| it.to_string().into_bytes());
        let mut headers = Vec::new();
        if sent.is_some() {
            headers.push(("Content-Type", "application/json"));
        }
        headers.extend(tag.map(|it| ("If-Match", it)));
        self.users[user].0.send(method, path, &headers, bytes.as_deref())
    }

    fn change(&mut self, user: usize) {
        let id = self.some_space();
        let space = self.found(user, &id);
        let (tag, fits) = self.if_match(space.as_ref().map(|it| it.version));
        let mut fields = json!({});
        if self.random.chance(60) {
            fields["name"] = (*self.random.one(&NAMES)).into();
        }
        if self.random.chance(60) {
            fields["description"] = (*self.random.one(&TEXTS)).into();
        }
        let method = *self.random.one(&["PUT", "PATCH"]);
        let answer = self.send(user, method, &format!("/spaces/{id}"), tag.as_deref(), Some(&fields));
        self.told(&answer);
        let Some(old) = space else { return drop(answer.refused(404, "ResourceNotFoundError")) };
        if !fits {
            return drop(answer.refused(412, "PreconditionFailedError"));
        }
        let mut new = old.clone();
        if let Some(name) = fields["name"].as_str() {
            new.name = name.to_owned();
        }
        if let Some(text) = fields["description"].as_str() {
            new.description = text.to_owned();
        }
        if new.name == old.name && new.description == old.description {
            return self.same(&answer.expect(200).of("space"), &id, &old);
        }
        let taken =
            |(other, it): (&String, &Space)| *other != id && it.owner == old.owner && it.name == new.name;
        if self.spaces.iter().any(taken) {
            return drop(answer.refused(409, "DuplicateNameError"));
        }
        new.version += 1;
        self.same(&answer.expect(200).of("space"), &id, &new);
        self.spaces.insert(id, new);
    }

    fn delete(&mut self, user: usize) {
        let id = self.some_space();
        let space = self.found(user, &id);
        let (tag, fits) = self.if_match(space.as_ref().map(|it| it.version));
        let answer = self.send(user, "DELETE", &format!("/spaces/{id}"), tag.as_deref(), None);
        self.told(&answer);
        if space.is_none() {
            drop(answer.refused(404, "ResourceNotFoundError"));
        } else if fits {
            answer.expect(200);
            self.spaces.remove(&id);
            self.gone.insert(id);
        } else {
            drop(answer.refused(412, "PreconditionFailedError"));
        }
    }

    fn lists(&mut self, user: usize) {
        let name = *self.random.one(&NAMES);
        match self.random.below(5) {
            0 => self.list(user, "", |_, _| true),
            1 => self.list(user, &format!("name={}", escaped(name)), |_, it| it.name == name),
            2 => {
                let query = format!("name={}&name=a&order_by=name&order=asc", escaped(name));
                self.list(user, &query, |_, it| it.name == name || it.name == "a");
            }
            3 => {
                let specs: Vec<_> = self.specs.keys().cloned().collect();
                let spec = self.random.one(&specs).clone();
                self.list(user, &format!("spec_id={spec}&order=asc"), |_, it| it.spec == spec);
            }
            _ => {
                let part = *self.random.one(&["a", "%", "_", "line", "SOME", "ä"]);
                let contains = |text: &str| text.to_ascii_lowercase().contains(&part.to_ascii_lowercase());
                self.list(user, &format!("search={}", escaped(part)), |_, it| {
                    contains(&it.name) || contains(&it.description)
                });
            }
        }
    }

    /// Pages through a list and holds it against the model's.
    fn list(&mut self, user: usize, query: &str, wanted: impl Fn(&str, &Space) -> bool) {
        let limit = self.random.below(4) + 1;
        let mut shown = Vec::new();
        let mut marker = String::new();
        loop {
            let path = format!("/spaces?limit={limit}&details=total&{query}{marker}");
            let answer = self.users[user].0.get(path.trim_end_matches('&'));
            self.told(&answer);
            let page = answer.expect(200).json();
            let rows = page["spaces"].as_array().unwrap();
            assert!(rows.len() <= limit, "{page}");
            shown.extend(rows.iter().cloned());
            match page["next_marker"].as_str() {
                Some(next) => marker = format!("&marker={next}"),
                None => {
                    let here = self.spaces.iter().filter(|(id, it)| self.sees(user, it) && wanted(id, it));
                    assert_eq!(page["total"], here.count(), "{query}");
                    break;
                }
            }
        }
        let mut rows: Vec<_> =
            self.spaces.iter().filter(|(id, it)| self.sees(user, it) && wanted(id, it)).collect();
        if query.contains("order_by=name") {
            rows.sort_by_key(|(id, it)| (it.name.clone(), (*id).clone()));
        } else {
            rows.sort_by_key(|(_, it)| it.made);
            if !query.contains("order=asc") {
                rows.reverse();
            }
        }
        assert_eq!(shown.len(), rows.len(), "{query}");
        for (shown, (id, space)) in shown.iter().zip(rows) {
            self.same(shown, id, space);
        }
    }

    fn create_spec(&mut self, user: usize) {
        let name = format!("spec {}", self.random.below(6));
        let fields = json!({"name": name, "cpu": "1", "memory": "1Gi", "storage": "1Gi"});
        let answer = self.users[user].0.post("/specs", &fields);
        self.told(&answer);
        if user != 0 {
            drop(answer.refused(403, "ForbiddenError"));
        } else if self.specs.values().any(|it| it.name == name) {
            assert_eq!(answer.refused(409, "DuplicateNameError").blamed(), ["name"]);
        } else {
            let id = key(&answer.expect(201).of("spec"), "id");
            self.specs.insert(id, Spec { name, enabled: true, version: 1 });
        }
    }

    fn change_spec(&mut self, user: usize) {
        let ids: Vec<_> = self.specs.keys().cloned().collect();
        let id = self.random.one(&ids).clone();
        let fields = if self.random.chance(50) {
            json!({"enabled": self.random.chance(60)})
        } else {
            json!({"name": format!("spec {}", self.random.below(6))})
        };
        let answer = self.users[user].0.put(&format!("/specs/{id}"), &fields);
        self.told(&answer);
        if user != 0 {
            return drop(answer.refused(403, "ForbiddenError"));
        }
        let mut new = self.specs[&id].clone();
        if let Some(name) = fields["name"].as_str() {
            if self.specs.iter().any(|(other, it)| *other != id && it.name == name) {
                return drop(answer.refused(409, "DuplicateNameError"));
            }
            new.version += i64::from(new.name != name);
            name.clone_into(&mut new.name);
        }
        if let Some(enabled) = fields["enabled"].as_bool() {
            new.version += i64::from(new.enabled != enabled);
            new.enabled = enabled;
        }
        assert_eq!(answer.expect(200).of("spec")["version"], new.version);
        self.specs.insert(id, new);
    }

    fn delete_spec(&mut self, user: usize) {
        let ids: Vec<_> = self.specs.keys().cloned().collect();
        let id = self.random.one(&ids).clone();
        if self.specs.len() < 3 {
            return;
        }
        let answer = self.users[user].0.delete(&format!("/specs/{id}"));
        self.told(&answer);
        if user != 0 {
            drop(answer.refused(403, "ForbiddenError"));
        } else if self.spaces.values().any(|it| it.spec == id) {
            drop(answer.refused(409, "ResourceInUseError"));
        } else {
            answer.expect(200);
            self.specs.remove(&id);
        }
    }

    /// What is no request at all changes nothing; the next steps would see it.
    fn nonsense(&mut self, user: usize) {
        let id = self.some_space();
        let there = self.found(user, &id).is_some();
        let unless_missing = |status| if there { status } else { 404 };
        let (method, path, sent, status) = match self.random.below(7) {
            0 => ("POST", "/spaces".to_owned(), json!({"name": 1}), 400),
            1 => ("POST", "/spaces".to_owned(), json!({"name": "a", "unknown": true}), 400),
            2 => ("PUT", format!("/spaces/{id}"), json!({"version": 99}), 400),
            3 => ("PUT", format!("/spaces/{id}"), json!({"name": ""}), 400),
            4 => ("POST", format!("/spaces/{id}/fly"), json!({}), 404),
            5 => ("POST", format!("/spaces/{id}/stop"), json!({}), unless_missing(409)),
            _ => ("POST", format!("/spaces/{id}"), json!({}), 404),
        };
        let answer = self.send(user, method, &path, None, Some(&sent));
        self.told(&answer);
        assert_eq!(answer.status, status, "{}: {}", answer.asked, answer.text());
    }
}

/// A text as a part of a URL.
fn escaped(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}
