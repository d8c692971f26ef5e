//! Who may come in, and what they may do then.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use diesel::prelude::*;
use diesel::sql_types::Text;
use hmac::Mac as _;
use serde_json::{Value, json};

use crate::harness::{ADMIN_PASSWORD, Answer, Client, House, Kind, Server, body, key};

on_each_database!(
    every_route_denies_without_a_token,
    a_revoked_token_is_dead_at_once,
    a_token_from_a_token_dies_with_it,
    a_whole_line_of_tokens_dies_with_the_first,
    the_last_way_in_stays_open,
    users_with_odd_names_are_a_clear_error,
    tokens_expire_and_cannot_be_forged,
    wrong_logins_tell_nothing,
    many_wrong_passwords_are_throttled,
    a_disabled_user_is_out_at_once,
    members_have_no_administrators_rights,
    a_new_password_ends_all_sessions,
);

/// An id of nothing.
const SOME_ID: &str = "01890000-0000-7000-8000-000000000000";

/// The operations of the API's document: method, path with its parameters
/// filled in, and whether it takes a token.
fn operations(client: &Client) -> Vec<(String, String, bool)> {
    let document = client.get("/openapi.json").expect(200).json();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if ["get", "post", "put", "patch", "delete"].contains(&method.as_str()) {
                let path = path.replace("{id}", SOME_ID).replace("{name}", "spaces");
                assert!(!path.contains('{'), "{path}");
                found.push((method.to_uppercase(), path, operation["security"] != json!([])));
            }
        }
    }
    found
}

fn every_route_denies_without_a_token(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let client = server.client();
    let all = operations(&client);
    assert!(all.len() > 40, "{all:?}");
    let mut open: Vec<_> = all.iter().filter(|it| !it.2).map(|it| format!("{} {}", it.0, it.1)).collect();
    open.sort();
    let expected = [
        "GET /",
        "GET /healthz",
        "GET /openapi.json",
        "GET /readyz",
        "GET /v3",
        // A callback, whose own token is the right to it.
        &format!("POST /tasks/{SOME_ID}"),
        "POST /v3/auth/tokens",
    ];
    assert_eq!(open, expected, "what takes no token");
    let hidden = [("GET", "/metrics"), ("GET", "/nothing"), ("POST", "/nothing/at/all"), ("GET", "/v4")];
    let hidden = hidden.map(|(method, path)| (method.to_owned(), path.to_owned(), true));
    for (method, path, closed) in all.iter().chain(&hidden) {
        let sent: Option<&[u8]> = (method != "GET" && method != "DELETE").then_some(b"{}");
        let json = ("Content-Type", "application/json");
        for token in [None, Some("nonsense"), Some("p1.e30.AAAA"), Some("")] {
            let mut headers = vec![json];
            headers.extend(token.map(|it| ("X-Auth-Token", it)));
            let answer = client.send(method, path, &headers, sent);
            if *closed {
                let answer = answer.expect(401);
                assert!(
                    !answer.header("www-authenticate").is_empty(),
                    "{}: {:?}",
                    answer.asked,
                    answer.headers
                );
            } else {
                assert!([200, 300, 400].contains(&answer.status), "{}: {}", answer.asked, answer.text());
            }
        }
        if *closed {
            let bearer = ("Authorization", "Bearer nonsense");
            client.send(method, path, &[json, bearer], sent).expect(401);
            client.send(method, path, &[json, ("Authorization", "Basic YWRtaW46eA==")], sent).expect(401);
        }
    }
    client.get("/ws/0123456789abcdef/").expect(401);
}

fn revoke(client: &Client, token: &str) -> Answer {
    client.send("DELETE", "/v3/auth/tokens", &[("X-Subject-Token", token)], None)
}

fn a_whole_line_of_tokens_dies_with_the_first(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let first = server.admin();
    let mut line = vec![first.clone()];
    for _ in 0..3 {
        let identity = json!({"methods": ["token"], "token": {"id": line.last().unwrap().token}});
        let answer =
            first.nobody().post("/v3/auth/tokens", &json!({"auth": {"identity": identity}})).expect(201);
        line.push(first.with_token(answer.header("x-subject-token")));
    }
    line.iter().for_each(|it| drop(it.get("/spaces").expect(200)));
    revoke(&server.admin(), first.token.as_deref().unwrap()).expect(204);
    line.iter().for_each(|it| drop(it.get("/spaces").expect(401)));
}

fn the_last_way_in_stays_open(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let fields = json!({"name": "second", "password": ADMIN_PASSWORD, "role": "admin"});
    admin.post("/users", &body("user", fields)).expect(201);
    let second = server.client().login("second", ADMIN_PASSWORD);
    admin.put("/users/admin", &json!({"role": "member"})).refused(409, "ProtectedResourceError");
    admin.put("/domains/default", &json!({"enabled": false})).refused(409, "ProtectedResourceError");
    admin.put("/projects/admin", &json!({"enabled": false})).refused(409, "ProtectedResourceError");
    // Both at once: one of them at least stays what they are.
    std::thread::scope(|scope| {
        scope.spawn(|| admin.put("/users/second", &json!({"role": "member"})));
        scope.spawn(|| second.put("/users/admin", &json!({"role": "member"})));
    });
    let ways =
        ["admin", "second"].map(|name| server.client().login(name, ADMIN_PASSWORD).get("/metrics").status);
    assert!(ways.contains(&200), "{ways:?}");
}

fn users_with_odd_names_are_a_clear_error(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    for user in [json!({"name": "a\0b"}), json!({"id": "\0"}), json!({"name": "a", "domain": {"id": "d\0"}})]
    {
        let mut user = user;
        user["password"] = "x".into();
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let answer = server.client().post("/v3/auth/tokens", &json!({"auth": {"identity": identity}}));
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
}

fn a_revoked_token_is_dead_at_once(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let (one, two) = (server.admin(), server.admin());
    let token = one.token.clone().unwrap();
    one.get("/spaces").expect(200);
    revoke(&one, &token).expect(204);
    one.get("/spaces").expect(401);
    one.send("GET", "/v3/auth/tokens", &[("X-Subject-Token", &token)], None).expect(401);
    let gone = two.send("GET", "/v3/auth/tokens", &[("X-Subject-Token", &token)], None);
    gone.refused(404, "TokenNotFoundError");
    two.get("/spaces").expect(200);
    // It stays dead after a restart.
    server.end();
    let server = house.serve(&[]);
    one.at(&server.base).get("/spaces").expect(401);
    two.at(&server.base).get("/spaces").expect(200);
    // Nobody revokes a stranger's token.
    let admin = two.at(&server.base);
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    revoke(&ann, bob.token.as_deref().unwrap()).refused(404, "TokenNotFoundError");
    bob.get("/spaces").expect(200);
}

fn a_token_from_a_token_dies_with_it(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let parent = server.admin();
    let token = parent.token.clone().unwrap();
    let identity = json!({"methods": ["token"], "token": {"id": token}});
    let answer =
        server.client().post("/v3/auth/tokens", &json!({"auth": {"identity": identity}})).expect(201);
    let child = parent.with_token(answer.header("x-subject-token"));
    let told = |it: &Client| {
        let token = it.token.clone().unwrap();
        it.send("GET", "/v3/auth/tokens", &[("X-Subject-Token", &token)], None).expect(200).json()["token"]
            .take()
    };
    assert_eq!(told(&child)["expires_at"], told(&parent)["expires_at"], "it must not outlive its parent");
    revoke(&parent, &token).expect(204);
    child.get("/spaces").expect(401);
}

/// The key with which the servers of a house sign, from their database.
fn signing_key(house: &House) -> Vec<u8> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        value: String,
    }
    let query = diesel::sql_query("SELECT value FROM identity_secrets WHERE name = 'token-key'");
    let row: Row = match &house.database.url {
        #[cfg(feature = "mysql")]
        Some(url) if url.starts_with("mysql:") => {
            query.get_result(&mut diesel::MysqlConnection::establish(url).unwrap()).unwrap()
        }
        Some(url) => query.get_result(&mut PgConnection::establish(url).unwrap()).unwrap(),
        None => {
            let file = house.data_dir().join("podyard.sqlite3");
            query.get_result(&mut SqliteConnection::establish(file.to_str().unwrap()).unwrap()).unwrap()
        }
    };
    B64.decode(row.value).unwrap()
}

fn signed(key: &[u8], claims: &Value) -> String {
    let text = format!("p1.{}", B64.encode(claims.to_string()));
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    format!("{text}.{}", B64.encode(mac.finalize().into_bytes()))
}

fn tokens_expire_and_cannot_be_forged(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--token-lifetime", "60"]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let token = ann.token.clone().unwrap();
    let mut parts = token.split('.').skip(1);
    let (claims, mac) = (parts.next().unwrap(), parts.next().unwrap());
    let claims: Value = serde_json::from_slice(&B64.decode(claims).unwrap()).unwrap();
    let (issued, expires) = (claims["issued_at"].as_i64().unwrap(), claims["expires_at"].as_i64().unwrap());
    assert_eq!(expires - issued, 60_000_000, "{claims}");
    let changed = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };

    // What a stranger can do: other claims under the old code, codes of other keys, none.
    let later = changed("expires_at", json!(expires + 1_000_000));
    for forged in [
        format!("p1.{}.{mac}", B64.encode(later.to_string())),
        format!("p1.{}.", B64.encode(later.to_string())),
        format!("p1.{}", B64.encode(later.to_string())),
        signed(b"", &later),
        signed(b"another key of thirty-two bytes..", &later),
        token.replacen("p1.", "p2.", 1),
        token[..token.len() - 2].to_owned(),
    ] {
        ann.with_token(&forged).get("/spaces").expect(401);
    }

    // Signed as the server signs, a token is good until its end and not longer.
    let key = signing_key(&house);
    ann.with_token(&signed(&key, &later)).get("/spaces").expect(200);
    let over = changed("expires_at", json!(issued - 1));
    ann.with_token(&signed(&key, &over)).get("/spaces").expect(401);
}

/// The answer without what differs from request to request.
fn essence(answer: &Answer) -> (u16, Value) {
    let mut body = answer.json();
    body["request_id"].take();
    (answer.status, body)
}

fn wrong_logins_tell_nothing(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    admin.member("ann");
    let client = server.client();
    let wrong = client.try_login("ann", "not her password").refused(401, "InvalidCredentialError");
    let unknown = client.try_login("nobody", "not her password").refused(401, "InvalidCredentialError");
    assert_eq!(essence(&wrong), essence(&unknown));
    assert!(wrong.header("x-subject-token").is_empty());
    let identity =
        |user: Value| json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}});
    let elsewhere = json!({"name": "ann", "domain": {"id": "elsewhere"}, "password": "password-of-ann"});
    let elsewhere = client.post("/v3/auth/tokens", &identity(elsewhere));
    assert_eq!(essence(&elsewhere), essence(&wrong));
    // A name is not a password, and an empty one is none.
    client.try_login("ann", "").expect(401);
    // What is malformed is told by name.
    let cases = [
        (json!({}), "auth"),
        (json!({"auth": {"identity": {"methods": ["magic"]}}}), "auth.identity.methods"),
        (json!({"auth": {"identity": {"methods": ["password"]}}}), "auth.identity.password"),
        (identity(json!({"password": "x"})), "auth.identity.password.user.name"),
        (identity(json!({"name": "ann", "password": 7})), "auth.identity.password.user.password"),
        (identity(json!({"name": "ann", "password": "x", "x": 1})), "auth.identity.password.user.x"),
    ];
    for (body, field) in cases {
        let answer = client.post("/v3/auth/tokens", &body).expect(400);
        assert_eq!(answer.blamed(), [field], "{body}: {}", answer.text());
    }
}

fn many_wrong_passwords_are_throttled(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let client = server.client();
    for _ in 0..5 {
        client.try_login("ann", "wrong password").expect(401);
    }
    for password in ["wrong password", "password-of-ann"] {
        let refused = client.try_login("ann", password).refused(429, "TooManyAttemptsError");
        let seconds: u32 = refused.header("retry-after").parse().unwrap();
        assert!((1..=10).contains(&seconds), "{seconds}");
    }
    // The session that she has goes on, and others may log in.
    ann.get("/spaces").expect(200);
    client.login("admin", ADMIN_PASSWORD);
    // Somebody who is not there is throttled as well, or it could be told.
    for _ in 0..5 {
        client.try_login("nobody", "wrong password").expect(401);
    }
    client.try_login("nobody", "wrong password").refused(429, "TooManyAttemptsError");
}

fn a_disabled_user_is_out_at_once(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    ann.get("/spaces").expect(200);
    let enable = |on: bool| admin.put("/users/ann", &body("user", json!({"enabled": on}))).expect(200);
    enable(false);
    ann.get("/spaces").expect(401);
    let refused = server.client().try_login("ann", "password-of-ann").refused(401, "InvalidCredentialError");
    let unknown = server.client().try_login("nobody", "password-of-ann").expect(401);
    assert_eq!(essence(&refused), essence(&unknown));
    enable(true);
    ann.get("/spaces").expect(401);
    server.client().login("ann", "password-of-ann").get("/spaces").expect(200);
    // A user who is deleted is out as well.
    let bob = admin.member("bob");
    admin.delete("/users/bob").expect(200);
    bob.get("/spaces").expect(401);
    server.client().try_login("bob", "password-of-bob").expect(401);
    // An administrator cannot lock themselves out.
    for change in [json!({"enabled": false}), json!({"role": "member"})] {
        admin.put("/users/admin", &body("user", change)).refused(409, "ProtectedResourceError");
    }
    admin.delete("/users/admin").refused(409, "ProtectedResourceError");
}

fn members_have_no_administrators_rights(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let (own, other) = (ann.user_id(), bob.user_id());
    let create = [
        ("/templates", json!({"name": "x", "kind_id": "builtin", "command": ["sh"]})),
        ("/specs", json!({"name": "x", "cpu": "1", "memory": "1Gi", "storage": "1Gi"})),
        ("/kinds", json!({"name": "x"})),
        ("/users", json!({"name": "x", "password": "a password"})),
        ("/projects", json!({"name": "x"})),
        ("/domains", json!({"name": "x"})),
    ];
    for (path, fields) in create {
        ann.post(path, &fields).refused(403, "ForbiddenError");
    }
    for path in
        ["/templates/files", "/specs/test", "/kinds/builtin", "/domains/default", &format!("/users/{own}")]
    {
        ann.put(path, &json!({"name": "x"})).refused(403, "ForbiddenError");
        ann.delete(path).refused(403, "ForbiddenError");
    }
    for change in [json!({"role": "admin"}), json!({"enabled": true}), json!({"project_id": "x"})] {
        ann.put(&format!("/users/{own}"), &change).refused(403, "ForbiddenError");
    }
    // They see themselves and nobody else.
    let users = ann.get("/users").expect(200).of("users");
    assert_eq!(users.as_array().unwrap().len(), 1, "{users}");
    assert_eq!(users[0]["id"], json!(own));
    ann.get(&format!("/users/{other}")).refused(404, "ResourceNotFoundError");
    ann.get("/users/admin").refused(404, "ResourceNotFoundError");
    assert_eq!(ann.get("/projects").of("projects").as_array().unwrap().len(), 1);
    // Nobody else's password, nor their own without the old one.
    let new = json!({"password": "another password"});
    ann.post(&format!("/users/{other}/password"), &new).refused(404, "ResourceNotFoundError");
    let missing = ann.post(&format!("/users/{own}/password"), &new).expect(400);
    assert_eq!(missing.blamed(), ["original_password"]);
    // A space is its maker's, whatever they say.
    let fields = json!({"name": "x", "template_id": "files", "spec_id": "test", "user_id": other});
    assert_eq!(ann.post("/spaces", &fields).expect(403).blamed(), ["user_id"]);
    let id = ann.space("x", "files");
    for name in
        ["user_id", "project_id", "status", "sid", "version", "id", "deleted", "created_at", "template_id"]
    {
        let refused = ann.put(&format!("/spaces/{id}"), &json!({name: "x"})).expect(400);
        assert_eq!(refused.blamed(), [name]);
    }
    // What only administrators see is not there for members, in no way.
    let space = ann.read_space(&id);
    assert!(space.get("node").is_none() && space.get("deleted").is_none(), "{space}");
    assert!(admin.read_space(&id).get("node").is_some());
    let template = ann.get("/templates/files").of("template");
    assert!(template.get("command").is_none() && template.get("env").is_none(), "{template}");
    assert!(admin.get("/templates/files").of("template")["command"].is_array());
    assert!(admin.get("/users/ann").of("user").get("password_hash").is_none());
}

fn session(server: &Server, password: &str) -> Client {
    server.client().login("ann", password)
}

fn a_new_password_ends_all_sessions(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.user_id();
    let path = format!("/users/{id}/password");
    let wrong = json!({"original_password": "not it at all", "password": "the new password"});
    ann.post(&path, &wrong).refused(400, "WrongPasswordError");
    let weak = json!({"original_password": "password-of-ann", "password": "short"});
    let weak = ann.post(&path, &weak).refused(400, "WeakPasswordError");
    assert_eq!(weak.blamed(), ["password"]);
    let right = json!({"original_password": "password-of-ann", "password": "the new password"});
    ann.post(&path, &right).expect(200);
    ann.get("/spaces").expect(401);
    server.client().try_login("ann", "password-of-ann").expect(401);
    let ann = session(&server, "the new password");
    ann.get("/spaces").expect(200);
    // An administrator sets one without knowing the old.
    admin.post(&path, &json!({"password": "given by the admin"})).expect(200);
    ann.get("/spaces").expect(401);
    let ann = session(&server, "given by the admin");
    // Another role is another token.
    admin.put("/users/ann", &json!({"role": "admin"})).expect(200);
    ann.get("/spaces").expect(401);
    let ann = session(&server, "given by the admin");
    assert_eq!(key(&ann.get("/kinds/builtin").of("kind"), "name"), "Built-in");
    ann.post("/kinds", &json!({"name": "by ann"})).expect(201);
}
