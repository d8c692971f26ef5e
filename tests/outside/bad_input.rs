//! What cannot be understood is refused with the culprit's name, and changes
//! nothing.

use serde_json::{Value, json};

use crate::harness::{Answer, Client, House, Kind, key, raw};

on_each_database!(
    bad_bodies_name_the_field,
    bad_parameters_are_named,
    bad_paths_are_refused,
    bodies_without_end_are_refused,
    wrong_methods_and_types_say_what_is_right,
    bad_etags_are_named,
    bad_actions_name_the_field,
    requests_that_are_no_http_do_no_harm,
);

/// All that can be listed, to see that nothing has changed.
fn snapshot(admin: &Client) -> Vec<Value> {
    let all = ["spaces", "templates", "specs", "kinds", "users", "projects", "domains", "tasks"];
    all.iter().map(|it| admin.get(&format!("/{it}?limit=1000&order_by=id")).expect(200).of(it)).collect()
}

/// A 4xx problem that blames the field (if one is named).
#[track_caller]
fn blames(answer: &Answer, status: u16, field: Option<&str>) {
    let asked = &answer.asked;
    assert_eq!(answer.status, status, "{asked}: {}", answer.text());
    assert!(
        answer.header("content-type").starts_with("application/problem+json"),
        "{asked}: {:?}",
        answer.headers
    );
    let body = answer.json();
    assert!(body["class"].is_string() && body["request_id"].is_string(), "{asked}: {body}");
    if let Some(field) = field {
        assert!(answer.blamed().iter().any(|it| it == field), "{asked}: {field} is not blamed: {body}");
    }
}

struct Scene {
    house: House,
    server: crate::harness::Server,
    admin: Client,
    id: String,
}

fn scene(kind: Kind) -> Scene {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let id = admin.space("there", "files");
    Scene { house, server, admin, id }
}

fn bad_bodies_name_the_field(kind: Kind) {
    let Scene { house: _house, server: _server, admin, id } = scene(kind);
    let before = snapshot(&admin);
    let json = [("Content-Type", "application/json")];
    let long = "x".repeat(129);
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let deeper = format!("{{\"name\": {}1{}}}", "[".repeat(200_000), "]".repeat(200_000));
    // In place of the fields of a space that would be good.
    let space = |change: &str| {
        format!("{{\"name\": \"x\", \"template_id\": \"files\", \"spec_id\": \"test\", {change}}}")
    };
    let named =
        |name: &str| format!("{{\"name\": {name}, \"template_id\": \"files\", \"spec_id\": \"test\"}}");
    let cases: Vec<(String, u16, &str)> = vec![
        // No JSON.
        ("{".into(), 400, "body"),
        ("{\"name\": }".into(), 400, "body"),
        ("nonsense".into(), 400, "body"),
        ("[1, 2]".into(), 400, "body"),
        ("7".into(), 400, "body"),
        ("null".into(), 400, "body"),
        ("\"text\"".into(), 400, "body"),
        ("{} {}".into(), 400, "body"),
        ("{\"name\": \"a\",}".into(), 400, "body"),
        ("{'name': 'a'}".into(), 400, "body"),
        ("{\"name\": NaN}".into(), 400, "body"),
        ("{\"name\": \"\\ud800\", \"template_id\": \"files\", \"spec_id\": \"test\"}".into(), 400, "name"),
        (deep.clone(), 400, "body"),
        (deeper, 400, "name"),
        (format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000)), 400, "a"),
        // Missing, unknown, twice, not to be given.
        ("{}".into(), 400, "name"),
        (String::new(), 400, "name"),
        ("{\"name\": \"x\"}".into(), 400, "template_id"),
        ("{\"name\": \"x\", \"template_id\": \"files\"}".into(), 400, "spec_id"),
        (space("\"nonsense\": 1"), 400, "nonsense"),
        (space("\"Name\": \"y\""), 400, "Name"),
        (space("\"name\": \"y\""), 400, "body"),
        (space("\"id\": \"mine\""), 400, "id"),
        (space("\"status\": \"running\""), 400, "status"),
        (space("\"user_id\": \"x\""), 400, "user_id"),
        (space("\"sid\": \"x\""), 400, "sid"),
        (space("\"created_at\": \"2026-01-01T00:00:00Z\""), 400, "created_at"),
        (space("\"template\": \"Files\""), 400, "template"),
        (format!("{{\"space\": {}, \"more\": 1}}", named("\"x\"")), 400, "more"),
        // Wrong types.
        (named("7"), 400, "name"),
        (named("null"), 400, "name"),
        (named("true"), 400, "name"),
        (named("[]"), 400, "name"),
        (named("{\"a\": 1}"), 400, "name"),
        (named(&deep), 400, "name"),
        (space("\"description\": null"), 400, "description"),
        (space("\"auto_start\": \"yes\""), 400, "auto_start"),
        (space("\"auto_start\": 1"), 400, "auto_start"),
        (space("\"auto_start\": null"), 400, "auto_start"),
        ("{\"name\": \"x\", \"template_id\": 7, \"spec_id\": \"test\"}".into(), 400, "template_id"),
        ("{\"name\": \"x\", \"template_id\": \"\", \"spec_id\": \"test\"}".into(), 400, "template_id"),
        (
            "{\"name\": \"x\", \"template_id\": 123456789012345678901234567890123456789, \"spec_id\": \"test\"}".into(),
            400,
            "template_id",
        ),
        (space("\"auto_start\": 99999999999999999999999999999999999999999"), 400, "auto_start"),
        (space("\"auto_start\": 1e999"), 400, "auto_start"),
        // Names that are none.
        (named("\"\""), 400, "name"),
        (named("\" \""), 400, "name"),
        (named("\"\\t\""), 400, "name"),
        (named("\" x\""), 400, "name"),
        (named("\"x \""), 400, "name"),
        (named(&format!("\"{long}\"")), 400, "name"),
        (named(&format!("\"{}\"", "é".repeat(129))), 400, "name"),
        (named(&format!("\"{}\"", "x".repeat(900_000))), 400, "name"),
        (named("\"a\\u0000b\""), 400, "name"),
        (named("\"a\\nb\""), 400, "name"),
        (named("\"a\\u001bb\""), 400, "name"),
        (named("\"a\\u007fb\""), 400, "name"),
        (named("\"a\\u0085b\""), 400, "name"),
        (named("\"a\\u202eb\""), 400, "name"),
        (named("\"a\u{202e}b\""), 400, "name"),
        (named("\"a\\u2066b\""), 400, "name"),
        (named("\"a\\ufeffb\""), 400, "name"),
        (space(&format!("\"description\": \"{}\"", "x".repeat(1025))), 400, "description"),
        (space("\"description\": \"a\\u0000b\""), 400, "description"),
    ];
    for (body, status, field) in &cases {
        let answer = admin.send("POST", "/spaces", &json, Some(body.as_bytes()));
        blames(&answer, *status, Some(field));
        // The same in the envelope, where there is one.
        if body.starts_with('{') && !body.contains("\"more\"") && *field != "body" {
            let answer =
                admin.send("POST", "/spaces", &json, Some(format!("{{\"space\": {body}}}").as_bytes()));
            blames(&answer, *status, Some(field));
        }
    }
    // Bytes that are no text.
    for bytes in [
        &b"{\"name\": \"\xff\"}"[..],
        b"\xff\xfe",
        b"\x00",
        b"\xef\xbb\xbf{}",
        b"{\"name\": \"a\x00b\"}",
        b"{\"n\xc0\xaf\": 1}",
    ] {
        blames(&admin.send("POST", "/spaces", &json, Some(bytes)), 400, Some("body"));
    }
    // Several culprits are named at once.
    let answer = admin.send("POST", "/spaces", &json, Some(b"{\"name\": 7, \"x\": 1, \"y\": 2}"));
    assert_eq!(answer.blamed(), ["name", "x", "y", "template_id", "spec_id"]);
    // Updates go by the same rules.
    for (body, field) in [
        ("{", "body"),
        ("{\"name\": null}", "name"),
        ("{\"name\": \"\"}", "name"),
        ("{\"name\": \"a\\u0000\"}", "name"),
        ("{\"nonsense\": 1}", "nonsense"),
        ("{\"template_id\": \"files\"}", "template_id"),
        ("{\"auto_start\": true}", "auto_start"),
        ("{\"version\": 9}", "version"),
        ("{\"name\": \"a\", \"name\": \"b\"}", "body"),
    ] {
        for method in ["PUT", "PATCH"] {
            let answer = admin.send(method, &format!("/spaces/{id}"), &json, Some(body.as_bytes()));
            blames(&answer, 400, Some(field));
        }
    }
    // So do other types, each with what is its own.
    for (path, body, field) in [
        ("/templates", json!({"name": "x", "kind_id": "no-such", "command": ["sh"]}), "kind_id"),
        ("/templates", json!({"name": "x", "kind_id": "builtin", "command": []}), "command"),
        ("/templates", json!({"name": "x", "kind_id": "builtin", "command": [""]}), "command"),
        ("/templates", json!({"name": "x", "kind_id": "builtin", "command": "sh"}), "command"),
        ("/templates", json!({"name": "x", "kind_id": "builtin", "command": ["a\u{0}b"]}), "command"),
        (
            "/templates",
            json!({"name": "x", "kind_id": "builtin", "command": ["sh"], "env": ["no sign"]}),
            "env",
        ),
        (
            "/templates",
            json!({"name": "x", "kind_id": "builtin", "command": ["sh"], "env": ["PODYARD_X=1"]}),
            "env",
        ),
        (
            "/templates",
            json!({"name": "x", "kind_id": "builtin", "command": ["sh"], "driver": "magic"}),
            "driver",
        ),
        ("/specs", json!({"name": "x", "cpu": "lots", "memory": "1Gi", "storage": "1Gi"}), "cpu"),
        ("/specs", json!({"name": "x", "cpu": "0", "memory": "1Gi", "storage": "1Gi"}), "cpu"),
        ("/specs", json!({"name": "x", "cpu": "-1", "memory": "1Gi", "storage": "1Gi"}), "cpu"),
        ("/specs", json!({"name": "x", "cpu": 2, "memory": "1Gi", "storage": "1Gi"}), "cpu"),
        ("/specs", json!({"name": "x", "cpu": "1", "memory": "1gi", "storage": "1Gi"}), "memory"),
        (
            "/specs",
            json!({"name": "x", "cpu": "1", "memory": "1Gi", "storage": "99999999999999999999999P"}),
            "storage",
        ),
        ("/users", json!({"name": "x", "password": "short"}), "password"),
        ("/users", json!({"name": "a/b", "password": "long enough"}), "name"),
        ("/users", json!({"name": "x", "password": "long enough", "role": "king"}), "role"),
        ("/users", json!({"name": "x", "password": "long enough", "domain_id": "no-such"}), "domain_id"),
        ("/users", json!({"name": "x", "password": "long enough", "password_hash": "x"}), "password_hash"),
    ] {
        blames(&admin.post(path, &body), 400, Some(field));
    }
    // What is odd but good stays as it is given.
    assert_eq!(snapshot(&admin), before, "something has changed");
    for name in [
        "ünïcödé 名字 🚀",
        "\"quotes\" & <tags>",
        "'; DROP TABLE spaces; --",
        "%00",
        "a\\b",
        &"é".repeat(128),
    ] {
        let made = admin.create_space(name, "files").expect(201).of("space");
        assert_eq!(made["name"], *name);
        let found = admin.get(&format!("/spaces/{}", key(&made, "id"))).of("space");
        assert_eq!(found["name"], *name);
    }
}

fn bad_parameters_are_named(kind: Kind) {
    let Scene { house: _house, server: _server, admin, id } = scene(kind);
    let before = snapshot(&admin);
    let long = format!("search={}", "x".repeat(20_000));
    let many = (0..300).map(|i| format!("name={i}")).collect::<Vec<_>>().join("&");
    for (query, field) in [
        ("nonsense=1", "nonsense"),
        ("Name=x", "Name"),
        ("filter=name.resembles(x)", "filter"),
        ("filter.0=name.like(x)", "filter.0"),
        ("name__like=x", "name__like"),
        ("name%3E=x", "name>"),
        ("name!=x", "name!"),
        ("=x", ""),
        ("password_hash=x", "password_hash"),
        ("deleted=maybe", "deleted"),
        ("last_lines=x", "last_lines"),
        ("auto_start=true", "auto_start"),
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=1.5", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("offset=-1", "offset"),
        ("offset=x", "offset"),
        ("order=up", "order"),
        ("order_by=nonsense", "order_by"),
        ("order_by=", "order_by"),
        ("order_by=name,name", "order_by"),
        ("order_by=deleted", "order_by"),
        ("order_by=name;DROP", "order_by"),
        ("marker=x", "marker"),
        ("marker=", "marker"),
        ("marker=W10", "marker"),
        ("marker=bnVsbA", "marker"),
        ("marker=%F0%9F%9A%80", "marker"),
        ("field=nonsense", "field"),
        ("field=deleted", "field"),
        ("field=", "field"),
        ("details=maybe", "details"),
        ("version=x", "version"),
        ("version=1.0", "version"),
        ("exit_code=99999999999999999999", "exit_code"),
        ("created_at=yesterday", "created_at"),
        ("created_at=2026-13-01T00:00:00Z", "created_at"),
        ("name=%00", "name"),
        ("name=%01", "name"),
        ("name=%ff", "name"),
        ("search=%00", "search"),
        ("%00=x", "query"),
        ("%ff=x", "query"),
        (&many, "query"),
        ("watch=maybe", "watch"),
    ] {
        blames(&admin.get(&format!("/spaces?{query}")), 400, Some(field));
    }
    // Long, but a good question.
    let answer = admin.get(&format!("/spaces?{long}"));
    assert!([200, 400, 414].contains(&answer.status), "{}", answer.status);
    // Elsewhere nothing is understood that belongs to lists.
    for query in ["limit=1", "name=x", "nonsense=1"] {
        let field = query.split('=').next();
        blames(&admin.get(&format!("/spaces/{id}?{query}")), 400, field);
        blames(&admin.send("DELETE", &format!("/spaces/{id}?{query}"), &[], None), 400, field);
        blames(&admin.put(&format!("/spaces/{id}?{query}"), &json!({"name": "y"})), 400, field);
        blames(&admin.post(&format!("/spaces?{query}"), &json!({"name": "y"})), 400, field);
        blames(&admin.send("POST", &format!("/spaces/{id}/start?{query}"), &[], Some(b"")), 400, field);
        blames(&admin.get(&format!("/spaces/{id}/log?{query}")), 400, field);
        blames(&admin.post(&format!("/v3/auth/tokens?{query}"), &json!({})), 400, field);
    }
    for value in ["x", "-1", "1.5", "99999999999999", "null"] {
        blames(&admin.get(&format!("/spaces/{id}/log?bytes={value}")), 400, Some("bytes"));
    }
    assert_eq!(snapshot(&admin), before, "something has changed");
}

/// One request whose path goes out as it is written here.
fn plain(admin: &Client, method: &str, path: &str) -> Answer {
    let token = admin.token.as_deref().unwrap();
    let text =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nContent-Length: 0\r\n\r\n");
    raw(&admin.base, text.as_bytes())
}

fn bad_paths_are_refused(kind: Kind) {
    let Scene { house: _house, server: _server, admin, id } = scene(kind);
    let before = snapshot(&admin);
    let sid = key(&admin.read_space(&id), "sid");
    let long = format!("/spaces/{}", "x".repeat(600));
    for path in [
        "/spaces/%00",
        "/spaces/a%00b",
        "/%00",
        "/spaces/..",
        "/spaces/../users",
        "/spaces/%2e%2e",
        "/spaces/%2e%2e/users",
        "/spaces/.%2E/users",
        "/spaces/.",
        "/../../etc/passwd",
        "/spaces//start",
        "//spaces",
        "/spaces/%0a",
        "/spaces/%1b",
        "/spaces/%7f",
        "/spaces/%ff",
        "/spaces/%c0%ae%c0%ae",
        long.as_str(),
    ] {
        for method in ["GET", "DELETE", "POST"] {
            blames(&plain(&admin, method, path), 400, Some("path"));
        }
    }
    // Names that are odd but good name nothing.
    for path in [
        "/spaces/%252e%252e",
        "/spaces/...",
        "/spaces/%2Fetc%2Fpasswd",
        "/spaces/a%2e%2e",
        "/spaces/%",
        "/spaces/%zz",
        "/spaces/%25",
        "/nonsense",
        "/spaces/a/b/c",
        "/spaces/x/log/y",
        "/v3/nonsense",
        "/v3/auth",
        "/resources/nonsense",
        "/resources/a/b",
        "/Spaces",
    ] {
        let answer = plain(&admin, "GET", path);
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
        assert!(
            answer.header("content-type").starts_with("application/problem+json"),
            "{path}: {:?}",
            answer.headers
        );
    }
    // In a space's place too, before its program hears of it.
    for path in ["..", "%2e%2e/x", "a/../../b", "a%00b", ".%2e/"] {
        let answer = plain(&admin, "GET", &format!("/ws/{sid}/{path}"));
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
        assert_eq!(answer.json()["class"], "BadRequestError", "{path}");
    }
    for path in ["/ws/../spaces", "/ws/%2e%2e/spaces", "/ws//x", "/ws/", "/ws", "/ws/a.b/", "/ws/%00/"] {
        let answer = plain(&admin, "GET", path);
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.text());
    }
    assert_eq!(snapshot(&admin), before, "something has changed");
}

fn bodies_without_end_are_refused(kind: Kind) {
    let Scene { house: _house, server: _server, admin, id } = scene(kind);
    let before = snapshot(&admin);
    let json = [("Content-Type", "application/json")];
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(10 << 20));
    for (method, path) in [
        ("POST", "/spaces".to_owned()),
        ("PUT", format!("/spaces/{id}")),
        ("POST", format!("/spaces/{id}/start")),
        ("POST", "/v3/auth/tokens".to_owned()),
        ("POST", "/users".to_owned()),
    ] {
        let answer = admin.send(method, &path, &json, Some(large.as_bytes()));
        blames(&answer, 413, Some("body"));
        assert_eq!(answer.json()["class"], "TooLargeEntityError");
    }
    // Who has no token is told that, and can read it.
    let answer = admin.nobody().send("POST", "/spaces", &json, Some(large.as_bytes()));
    assert_eq!(answer.status, 401, "{}", answer.text());
    // On one connection: the answer comes, and the next request is answered too.
    let token = admin.token.as_deref().unwrap();
    let head = |length: usize| {
        format!(
            "POST /spaces HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut bytes = head(large.len()).into_bytes();
    bytes.extend_from_slice(large.as_bytes());
    blames(&raw(&admin.base, &bytes), 413, Some("body"));
    // In pieces, without saying how many.
    let mut bytes = format!(
        "POST /spaces HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for piece in large.as_bytes().chunks(1 << 16) {
        bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    blames(&raw(&admin.base, &bytes), 413, Some("body"));
    // Just within the limit it is a name that is too long.
    let fits = format!(
        "{{\"name\": \"{}\", \"template_id\": \"files\", \"spec_id\": \"test\"}}",
        "x".repeat(1_000_000)
    );
    blames(&admin.send("POST", "/spaces", &json, Some(fits.as_bytes())), 400, Some("name"));
    assert_eq!(snapshot(&admin), before, "something has changed");
}

fn wrong_methods_and_types_say_what_is_right(kind: Kind) {
    let Scene { house: _house, server: _server, admin, id } = scene(kind);
    let before = snapshot(&admin);
    for (method, path, allow) in [
        ("PROPFIND", "/spaces".to_owned(), "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        ("PROPFIND", format!("/spaces/{id}"), "GET, HEAD, PUT, PATCH, DELETE, OPTIONS"),
        ("PUT", format!("/spaces/{id}/start"), "POST, OPTIONS"),
        ("DELETE", format!("/spaces/{id}/log"), "GET, HEAD, OPTIONS"),
        ("POST", "/resources".to_owned(), "GET, HEAD, OPTIONS"),
    ] {
        let answer = admin.send(method, &path, &[], None);
        blames(&answer, 405, None);
        assert_eq!(answer.header("allow"), allow, "{method} {path}");
    }
    // Routes of their own go by the same rule.
    for (method, path) in [
        ("DELETE", "/healthz"),
        ("POST", "/openapi.json"),
        ("PUT", "/v3/auth/tokens"),
        ("POST", "/metrics"),
        ("PUT", "/login"),
    ] {
        let sent: Option<&[u8]> = (method != "DELETE").then_some(b"");
        let answer = admin.send(method, path, &[], sent);
        assert!([404, 405].contains(&answer.status), "{method} {path}: {}", answer.status);
    }
    let good = json!({"name": "x", "template_id": "files", "spec_id": "test"}).to_string();
    for wrong in ["text/plain", "application/xml", "multipart/form-data; boundary=x", "nonsense", ""] {
        for (method, path) in [
            ("POST", "/spaces".to_owned()),
            ("PUT", format!("/spaces/{id}")),
            ("POST", "/v3/auth/tokens".to_owned()),
        ] {
            let answer = admin.send(method, &path, &[("Content-Type", wrong)], Some(good.as_bytes()));
            blames(&answer, 415, Some("Content-Type"));
        }
    }
    assert_eq!(snapshot(&admin), before, "something has changed");
    for right in [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/merge-patch+json",
    ] {
        let answer = admin.send("PATCH", &format!("/spaces/{id}"), &[("Content-Type", right)], Some(b"{}"));
        assert_eq!(answer.status, 200, "{right}: {}", answer.text());
    }
    // A HEAD is a GET without its body.
    let head = admin.send("HEAD", &format!("/spaces/{id}"), &[], None).expect(200);
    assert!(head.bytes.is_empty() && !head.header("etag").is_empty());
    admin.send("HEAD", "/spaces/nonsense", &[], None).expect(404);
}

fn bad_etags_are_named(kind: Kind) {
    let Scene { house: _house, server: _server, admin, id } = scene(kind);
    let before = snapshot(&admin);
    let json = ("Content-Type", "application/json");
    let path = format!("/spaces/{id}");
    // Well-formed, but none of ours (a weak one never matches): the row is in another state.
    for other in ["\"x\"", "W/\"1\"", "\"99999999999999999999\"", "\"+1\"", "\"01\"", "\"7\", \"8\""] {
        let tag = ("If-Match", other);
        admin.send("PUT", &path, &[json, tag], Some(b"{\"name\": \"y\"}")).expect(412);
        admin.send("DELETE", &path, &[tag], None).expect(412);
    }
    for wrong in ["1", "\"", "", "\"1\" \"2\"", "**"] {
        let tag = ("If-Match", wrong);
        blames(&admin.send("PUT", &path, &[json, tag], Some(b"{\"name\": \"y\"}")), 400, Some("If-Match"));
        blames(&admin.send("DELETE", &path, &[tag], None), 400, Some("If-Match"));
        blames(&admin.send("POST", &format!("{path}/start"), &[tag], Some(b"")), 400, Some("If-Match"));
    }
    assert_eq!(snapshot(&admin), before, "something has changed");
}

fn bad_actions_name_the_field(kind: Kind) {
    let Scene { house: _house, server: _server, admin, id } = scene(kind);
    let before = snapshot(&admin);
    for action in ["start", "stop", "restart"] {
        let path = format!("/spaces/{id}/{action}");
        blames(&admin.post(&path, &json!({"nonsense": 1})), 400, Some("nonsense"));
        for body in ["{", "[]", "7", "{} x"] {
            let answer =
                admin.send("POST", &path, &[("Content-Type", "application/json")], Some(body.as_bytes()));
            blames(&answer, 400, Some("body"));
        }
    }
    let own = admin.user_id();
    let path = format!("/users/{own}/password");
    for (body, field) in [
        (json!({}), "password"),
        (json!({"password": 7}), "password"),
        (json!({"password": null, "original_password": "x"}), "password"),
        (json!({"password": "long enough", "original_password": 7}), "original_password"),
        (json!({"password": "long enough", "more": 7}), "more"),
        (json!({"password": "short", "original_password": "x"}), "password"),
        (json!({"password": "x".repeat(300), "original_password": "x"}), "password"),
    ] {
        blames(&admin.post(&path, &body), 400, Some(field));
    }
    for (method, path) in [
        ("POST", format!("/spaces/{id}/nonsense")),
        ("POST", "/spaces/nonsense".to_owned()),
        ("GET", format!("/spaces/{id}/nonsense")),
        ("GET", format!("/spaces/{id}/start")),
        ("POST", format!("/spaces/{id}/log")),
        ("POST", "/nonsense".to_owned()),
    ] {
        let sent: Option<&[u8]> = (method == "POST").then_some(b"{}");
        blames(&admin.send(method, &path, &[("Content-Type", "application/json")], sent), 404, None);
    }
    // A delete takes nothing along.
    let token = admin.token.as_deref().unwrap();
    let text = format!(
        "DELETE /spaces/{id} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nContent-Type: application/json\r\n\
         Content-Length: 9\r\n\r\n{{\"a\": 12}}"
    );
    blames(&raw(&admin.base, text.as_bytes()), 400, Some("body"));
    assert_eq!(snapshot(&admin), before, "something has changed");
}

fn requests_that_are_no_http_do_no_harm(kind: Kind) {
    use std::io::{Read as _, Write as _};
    let Scene { house: _house, server, admin, .. } = scene(kind);
    let before = snapshot(&admin);
    let token = admin.token.clone().unwrap();
    let cases: Vec<Vec<u8>> = vec![
        b"nonsense\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET /spaces HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /sp\x00aces HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"GET /spaces HTTP/1.1\r\nHost x\r\n\r\n".to_vec(),
        b"GET /spaces HTTP/1.1\r\nX-A\x00: x\r\n\r\n".to_vec(),
        format!("POST /spaces HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nContent-Length: -1\r\n\r\n").into_bytes(),
        format!("POST /spaces HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{{}}   ")
            .into_bytes(),
        format!(
            "POST /spaces HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        .into_bytes(),
        format!("POST /spaces HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").into_bytes(),
        // One that goes away in the middle.
        format!("POST /spaces HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nContent-Length: 900\r\n\r\n{{\"name\":").into_bytes(),
        format!("GET /spaces HTTP/1.1\r\nX-Long: {}\r\n\r\n", "x".repeat(200_000)).into_bytes(),
        format!("GET /spaces HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(5000)).into_bytes(),
    ];
    for bytes in cases {
        let mut stream = std::net::TcpStream::connect(server.base.strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        let text = String::from_utf8_lossy(&got);
        let what = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned();
        // Either the connection just ends, or it says that it was the client's fault.
        assert!(got.is_empty() || text.starts_with("HTTP/1.1 4"), "{what:?}: {text}");
    }
    assert_eq!(snapshot(&admin), before, "something has changed");
}
