//! `Idempotency-Key`: sent twice, done once.

use serde_json::{Value, json};

use crate::harness::{Answer, Client, House, Kind, at_once, key};

on_each_database!(
    the_same_again_is_answered_again,
    twenty_at_once_make_one,
    actions_are_done_once,
    keys_have_a_shape,
    what_failed_is_not_kept,
    answers_with_secrets_are_not_kept,
    a_key_costs_two_statements,
);

fn keyed(client: &Client, path: &str, key: &str, body: &Value) -> Answer {
    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key)];
    client.send("POST", path, &headers, Some(body.to_string().as_bytes()))
}

fn fields(name: &str) -> Value {
    json!({"name": name, "template_id": "files", "spec_id": "test"})
}

fn spaces(client: &Client) -> usize {
    client.get("/spaces").of("spaces").as_array().unwrap().len()
}

fn keys(house: &House) -> i64 {
    house.count("SELECT COUNT(*) FROM idempotency_keys")
}

#[track_caller]
fn is_replay(answer: &Answer, of: &Answer) {
    assert_eq!(of.header("idempotency-replayed"), "");
    assert_eq!(answer.header("idempotency-replayed"), "true", "{}", answer.text());
    for header in ["location", "etag", "content-type"] {
        assert_eq!(answer.header(header), of.header(header), "{header}");
    }
    assert_eq!((answer.status, answer.text()), (of.status, of.text()));
}

fn the_same_again_is_answered_again(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, ben) = (admin.member("ann"), admin.member("ben"));
    let first = keyed(&ann, "/spaces", "k 1", &fields("a")).expect(201);
    let id = key(&first.of("space"), "id");
    is_replay(&keyed(&ann, "/spaces", "k 1", &fields("a")), &first);
    // Even when it has changed since, or is gone.
    ann.delete(&format!("/spaces/{id}")).expect(200);
    is_replay(&keyed(&ann, "/spaces", "k 1", &fields("a")), &first);
    assert_eq!(spaces(&ann), 0);
    // Another request under that key is a mistake.
    for (path, body) in
        [("/spaces", fields("b")), ("/spaces?dry_run=false", fields("a")), ("/spaces/apply", fields("a"))]
    {
        let answer = keyed(&ann, path, "k 1", &body).refused(422, "IdempotencyKeyReusedError");
        assert_eq!(answer.blamed(), ["Idempotency-Key"]);
    }
    // Another user's key is another key, and another key another request.
    keyed(&ben, "/spaces", "k 1", &fields("b")).expect(201);
    keyed(&ann, "/spaces", "k 2", &fields("a")).expect(201);
    // Batches, copies and applies too.
    let many = json!({"space": fields("m"), "count": 2});
    let batch = keyed(&ann, "/spaces", "k 3", &many).expect(207);
    is_replay(&keyed(&ann, "/spaces", "k 3", &many), &batch);
    let copy = keyed(&ann, "/spaces/a/copy", "k 4", &json!({})).expect(201);
    is_replay(&keyed(&ann, "/spaces/a/copy", "k 4", &json!({})), &copy);
    let applied = keyed(&ann, "/spaces/apply", "k 5", &fields("p")).expect(201);
    is_replay(&keyed(&ann, "/spaces/apply", "k 5", &fields("p")), &applied);
    assert_eq!(spaces(&ann), 5);
    // It outlives the process.
    drop(server);
    let server = house.serve(&[]);
    is_replay(&keyed(&ann.at(&server.base), "/spaces", "k 1", &fields("a")), &first);
}

fn twenty_at_once_make_one(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let answers = at_once(20, |_| keyed(&ann, "/spaces", "once", &fields("once")));
    let ids: std::collections::HashSet<_> =
        answers.iter().map(|it| key(&it.clone().expect(201).of("space"), "id")).collect();
    assert_eq!((ids.len(), spaces(&ann)), (1, 1));
    assert_eq!(answers.iter().filter(|it| it.header("idempotency-replayed").is_empty()).count(), 1);
    // Where no name would stop a second one.
    let many = json!({"space": {"name": "m", "template_id": "files", "spec_id": "test"}, "count": 3});
    let answers = at_once(20, |_| keyed(&ann, "/spaces", "many", &many));
    assert!(answers.iter().all(|it| it.status == 207 && it.bytes == answers[0].bytes));
    assert_eq!(spaces(&ann), 4);
    // An action on one row, which no class lock guards.
    let id = ids.iter().next().unwrap();
    let answers = at_once(20, |_| keyed(&ann, &format!("/spaces/{id}/start"), "start", &json!({})));
    let tasks: std::collections::HashSet<_> =
        answers.iter().map(|it| key(&it.clone().expect(202).json(), "task_id")).collect();
    assert_eq!(tasks.len(), 1);
    assert_eq!(ann.get("/tasks").of("tasks").as_array().unwrap().len(), 1);
}

fn actions_are_done_once(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.space("a", "files");
    let first = keyed(&ann, &format!("/spaces/{id}/start"), "s", &json!({})).expect(202);
    assert!(first.header("location").starts_with("/tasks/"));
    is_replay(&keyed(&ann, &format!("/spaces/{id}/start"), "s", &json!({})), &first);
    ann.wait_for(&id, &["running"]);
    is_replay(&keyed(&ann, &format!("/spaces/{id}/start"), "s", &json!({})), &first);
    // One that runs outside of any transaction: the second answer is the first one's, not another change.
    let path = format!("/users/{}/password", ann.user_id());
    let change = json!({"password": "a new password", "original_password": "password-of-ann"});
    let first = keyed(&ann, &path, "p", &change).expect(200);
    let ann = ann.login("ann", "a new password");
    is_replay(&keyed(&ann, &path, "p", &change), &first);
    // Twenty at once: one does it, the others wait for it.
    let change = json!({"password": "a newer password"});
    let answers = at_once(20, |_| keyed(&admin, &path, "q", &change));
    for answer in &answers {
        if answer.status == 409 {
            answer.clone().refused(409, "IdempotencyKeyInUseError");
            assert_eq!(answer.header("retry-after"), "1");
        } else {
            answer.clone().expect(200);
        }
    }
    let changes = "SELECT COUNT(*) FROM ops_log WHERE obj_type = 'user' AND action = 'password'";
    assert_eq!(house.count(changes), 2);
}

fn keys_have_a_shape(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    for wrong in ["", &"x".repeat(256), "tab\there"] {
        let answer = keyed(&admin, "/spaces", wrong, &fields("a")).refused(400, "InputParameterError");
        assert_eq!(answer.blamed(), ["Idempotency-Key"]);
    }
    assert_eq!(spaces(&admin), 0);
    keyed(&admin, "/spaces", &"x".repeat(255), &fields("a")).expect(201);
    keyed(&admin, "/spaces", "!~ \"quoted\"", &fields("b")).expect(201);
    // What is asked for twice anyway takes no key.
    let header = [("Idempotency-Key", "k"), ("Content-Type", "application/json")];
    admin.send("PUT", "/spaces/a", &header, Some(b"{\"description\": \"x\"}")).expect(200);
    admin.send("GET", "/spaces", &header[..1], None).expect(200);
    assert_eq!(keys(&house), 2);
}

fn what_failed_is_not_kept(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "1"]);
    let ann = server.admin().member("ann");
    let id = ann.space("a", "files");
    keyed(&ann, "/spaces", "k", &fields("b")).refused(409, "SpaceLimitError");
    keyed(&ann, "/spaces", "k", &json!({"name": 7})).refused(400, "InputParameterError");
    keyed(&ann, &format!("/spaces/{id}/stop"), "k", &json!({})).refused(409, "SpaceNotRunningError");
    let path = format!("/users/{}/password", ann.user_id());
    let wrong = json!({"password": "a new password", "original_password": "is not hers"});
    keyed(&ann, &path, "k", &wrong).refused(400, "WrongPasswordError");
    assert_eq!(keys(&house), 0);
    ann.delete(&format!("/spaces/{id}")).expect(200);
    keyed(&ann, "/spaces", "k", &fields("b")).expect(201);
    assert_eq!(keys(&house), 1);
}

fn answers_with_secrets_are_not_kept(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let user = json!({"name": "ann", "password": "a very secret one"});
    keyed(&admin, "/users", "k", &user).expect(201);
    let all = "SELECT COUNT(*) FROM idempotency_keys WHERE body LIKE '%secret one%' OR body LIKE '%argon2%' OR id LIKE '%k%k%k%k%k%k%k%'";
    assert_eq!((house.count(all), keys(&house)), (0, 1));
    // A secret that is made up is shown once: not again to who sends the same.
    let hook = json!({"name": "w", "url": "http://127.0.0.1:9/", "resource": "*", "events": ["created"]});
    let made = keyed(&admin, "/webhooks", "w", &hook).expect(201).of("webhook");
    let secret = key(&made, "new_secret");
    keyed(&admin, "/webhooks", "w", &hook).refused(409, "IdempotentAnswerNotKeptError");
    assert_eq!(
        house.count(&format!("SELECT COUNT(*) FROM idempotency_keys WHERE body LIKE '%{secret}%'")),
        0
    );
}

fn a_key_costs_two_statements(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let ann = server.admin().member("ann");
    ann.space("warm", "files");
    let plain = ann.create_space("a", "files").expect(201).statements();
    let with = keyed(&ann, "/spaces", "k", &fields("b")).expect(201).statements();
    let again = keyed(&ann, "/spaces", "k", &fields("b")).expect(201).statements();
    assert!(with <= plain + 2, "{plain} without, {with} with a key");
    assert!(again <= 3, "{again} for a replay");
}
