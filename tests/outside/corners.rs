//! Where two rules meet: owners that contradict each other, names that paths
//! have, values that were allowed once, markers that would not fit, and what
//! databases would each say in their own way.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Client, House, Kind, Session, at_once, body, key, until};
use crate::runtime_types::define;

on_each_database!(
    owners_that_contradict_each_other_are_refused,
    a_users_project_is_of_the_users_domain,
    a_lost_password_of_a_name_in_two_domains_needs_the_domain,
    what_is_accepted_is_weighed,
    types_are_named_in_json_words,
    names_that_paths_have_are_refused,
    a_given_space_is_in_the_audit_of_both_owners,
    a_batch_of_users_holds_up_nobody,
    built_in_batches_are_in_the_document,
    nothing_is_made_for_a_project_that_goes,
    markers_of_long_values_fit_into_a_uri,
    what_is_there_already_passes,
    records_of_a_type_deleted_by_force_have_its_values,
    types_are_deleted_by_force_in_a_batch,
    of_two_values_that_are_taken_the_first_is_blamed,
    a_required_field_that_nobody_can_give_is_refused,
);

fn project(admin: &Client, name: &str, domain: &str) -> String {
    let fields = json!({"name": name, "domain_id": domain});
    key(&admin.post("/projects", &body("project", fields)).expect(201).of("project"), "id")
}

fn domain(admin: &Client, name: &str) -> String {
    key(&admin.post("/domains", &body("domain", json!({"name": name}))).expect(201).of("domain"), "id")
}

fn user(admin: &Client, name: &str, domain: &str) -> Value {
    let fields = json!({"name": name, "domain_id": domain, "password": "a-password-of-many"});
    admin.post("/users", &body("user", fields)).expect(201).of("user")
}

fn owners_that_contradict_each_other_are_refused(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let other = domain(&admin, "other");
    let (ann, bob) = (user(&admin, "ann", "default"), user(&admin, "bob", &other));
    let create = |owner: Value| {
        let mut fields = json!({"name": "x", "template_id": "files", "spec_id": "test"});
        fields.as_object_mut().unwrap().extend(owner.as_object().unwrap().clone());
        admin.post("/spaces", &body("space", fields))
    };
    for (owner, blamed) in [
        (json!({"user_id": ann["id"], "project_id": bob["project_id"]}), "project_id"),
        (json!({"user_id": ann["id"], "project_id": project(&admin, "p", "default")}), "project_id"),
        (json!({"user_id": ann["id"], "domain_id": other}), "domain_id"),
        (json!({"project_id": ann["project_id"], "domain_id": other}), "domain_id"),
    ] {
        let answer = create(owner.clone()).refused(400, "InputParameterError");
        assert_eq!(answer.blamed(), [blamed], "{owner}");
    }
    let whole = json!({"user_id": bob["id"], "project_id": bob["project_id"], "domain_id": other});
    let made = create(whole.clone()).expect(201).of("space");
    for name in ["user_id", "project_id", "domain_id"] {
        assert_eq!(made[name], whole[name], "{name}");
    }
    // Nor is it given to two.
    let path = format!("/spaces/{}/change-owner", key(&made, "id"));
    let both = json!({"user_id": ann["id"], "project_id": bob["project_id"]});
    assert_eq!(admin.post(&path, &both).expect(400).blamed(), ["project_id"]);
}

fn a_users_project_is_of_the_users_domain(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let other = domain(&admin, "other");
    let (here, there) = (project(&admin, "here", "default"), project(&admin, "there", &other));
    let create = |name: &str, project: &str| {
        let fields = json!({"name": name, "password": "a-password-of-many", "project_id": project});
        admin.post("/users", &body("user", fields))
    };
    assert_eq!(create("x", &there).refused(400, "InputParameterError").blamed(), ["project_id"]);
    create("x", &here).expect(201);
    let moved = admin.put("/users/x", &json!({"project_id": there}));
    assert_eq!(moved.refused(400, "InputParameterError").blamed(), ["project_id"]);
}

fn a_lost_password_of_a_name_in_two_domains_needs_the_domain(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let other = domain(&admin, "other");
    let (here, there) = (user(&admin, "ann", "default"), user(&admin, "ann", &other));
    let version = |of: &Value| admin.get(&format!("/users/{}", key(of, "id"))).of("user")["version"].clone();
    let reset = |more: &[&str]| {
        let done = house.command().args(["reset-password", "--user", "ann"]).args(more).output().unwrap();
        (done.status.success(), String::from_utf8(done.stderr).unwrap())
    };
    let (done, error) = reset(&[]);
    assert!(!done && error.contains("--domain"), "{error}");
    assert_eq!((version(&here), version(&there)), (json!(1), json!(1)));
    let (done, error) = reset(&["--domain", "other"]);
    assert!(done, "{error}");
    assert_eq!((version(&here), version(&there)), (json!(1), json!(2)));
    let (done, error) = reset(&["--domain", "nowhere"]);
    assert!(!done && error.contains("nowhere"), "{error}");
}

fn what_is_accepted_is_weighed(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let id = admin.space("x", "files");
    let get = |path: &str, accept: &str| admin.send("GET", path, &[("Accept", accept)], None);
    for (accept, kind) in [
        ("text/csv;q=0, */*", "application/json"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("application/json;q=0.1, text/csv", "text/csv; charset=utf-8; header=present"),
        ("text/csv;q=0, application/x-ndjson;q=0.1", "application/x-ndjson"),
        ("application/json;q=0, application/*", "application/vnd.podyard.v1+json"),
    ] {
        assert_eq!(get("/spaces", accept).expect(200).header("content-type"), kind, "{accept}");
    }
    for accept in ["text/csv", "application/x-ndjson", "*/*;q=0", "application/json;q=0"] {
        let answer = get(&format!("/spaces/{id}"), accept).refused(406, "NotAcceptableError");
        assert_eq!(answer.blamed(), ["Accept"], "{accept}");
    }
    let user = admin.user_id();
    let nested = get(&format!("/users/{user}/spaces"), "text/csv").expect(200);
    assert!(nested.header("content-type").starts_with("text/csv"), "{:?}", nested.headers);
}

fn types_are_named_in_json_words(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let id = admin.space("x", "files");
    let create = |field: &str, value: Value| {
        let mut fields = json!({"name": "n", "kind_id": "builtin", "command": ["x"]});
        fields[field] = value;
        ("/templates".to_owned(), body("template", fields))
    };
    let quota = |most: Value| {
        let fields =
            json!({"scope": "user", "target_id": admin.user_id(), "resource": "spaces", "most": most});
        ("/quotas".to_owned(), body("quota", fields))
    };
    for ((path, body), english, chinese) in [
        (create("name", json!(1)), "expected a string", "字符串"),
        (create("command", json!({})), "object, expected an array", "数组"),
        (create("enabled", json!("x")), "expected a boolean", "布尔值"),
        (quota(json!("x")), "expected an integer", "整数"),
        (quota(json!(1.5)), "number `1.5`, expected an integer", "整数"),
        (
            (format!("/spaces/{id}/change-owner"), json!({"user_id": []})),
            "array, expected a string",
            "字符串",
        ),
    ] {
        let text = admin.post(&path, &body).expect(400).text();
        assert!(text.contains(english), "{path} {body}: {text}");
        let rust = ["i64", "u32", "f64", "sequence", "a map", "struct "];
        assert!(!rust.iter().any(|it| text.contains(it)), "{path} {body}: {text}");
        let headers = [("Content-Type", "application/json"), ("Accept-Language", "zh-CN")];
        let text = admin.send("POST", &path, &headers, Some(body.to_string().as_bytes())).expect(400).text();
        assert!(text.contains(chinese) && !text.contains("expected"), "{path} {body}: {text}");
    }
}

fn names_that_paths_have_are_refused(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let id = admin.space("x", "files");
    // `GET /spaces/tags` and `GET /spaces/statistics` are no rows.
    for name in ["statistics", "tags"] {
        let answer = admin.create_space(name, "files").refused(400, "InputParameterError");
        assert_eq!(answer.blamed(), ["name"], "{name}");
        let answer = admin.put(&format!("/spaces/{id}"), &json!({"name": name}));
        assert_eq!(answer.refused(400, "InputParameterError").blamed(), ["name"], "{name}");
        let apply = json!({"name": name, "template_id": "files", "spec_id": "test"});
        assert_eq!(admin.post("/spaces/apply", &apply).expect(400).blamed(), ["name"], "{name}");
    }
    // What no GET has is a name as any other.
    admin.space("apply", "files");
    assert_eq!(admin.get("/spaces/apply").expect(200).of("space")["name"], "apply");
    // One that is there from before is found by its id.
    if let Some(url) = &house.database.url {
        Session::open(url).execute(&format!("UPDATE spaces SET name = 'statistics' WHERE id = '{id}'"));
        assert_eq!(admin.read_space(&id)["name"], "statistics");
        admin.put(&format!("/spaces/{id}"), &json!({"name": "statistics", "description": "d"})).expect(200);
    }
}

fn a_given_space_is_in_the_audit_of_both_owners(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob, eve) = (admin.member("ann"), admin.member("bob"), admin.member("eve"));
    let id = ann.space("x", "files");
    admin.post(&format!("/spaces/{id}/change-owner"), &json!({"user_id": bob.user_id()})).expect(200);
    let records = |of: &Client| {
        of.get(&format!("/events?obj_id={id}&action=change-owner"))
            .expect(200)
            .of("events")
            .as_array()
            .unwrap()
            .clone()
    };
    for who in [&ann, &bob] {
        let records = records(who);
        assert_eq!(records.len(), 1, "{records:?}");
        let change = json!({"old": ann.user_id(), "new": bob.user_id()});
        assert_eq!(records[0]["notes"]["user_id"], change);
        assert_eq!(
            (&records[0]["owner_user_id"], &records[0]["obj_version"]),
            (&json!(who.user_id()), &json!(2))
        );
    }
    assert!(records(&eve).is_empty());
}

fn a_batch_of_users_holds_up_nobody(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let users: Vec<_> =
        (0..40).map(|i| json!({"name": format!("u{i}"), "password": format!("password {i}")})).collect();
    let start = std::time::Instant::now();
    let took = at_once(2, |i| {
        if i == 0 {
            let made = admin.post("/users", &json!({"users": users})).expect(207).of("users");
            assert!(made.as_array().unwrap().iter().all(|it| it["status"] == 201), "{made}");
            return vec![start.elapsed()];
        }
        // Somebody who writes meanwhile.
        let mut took = Vec::new();
        while start.elapsed() < Duration::from_millis(300) {
            let begin = std::time::Instant::now();
            ann.post("/spaces/apply", &json!({"name": "x", "template_id": "files", "spec_id": "test"}));
            took.push(begin.elapsed());
        }
        took
    });
    let (batch, longest) = (took[0][0], *took[1].iter().max().unwrap());
    // Hashing is most of the batch; the writer is free while it goes on.
    assert!(longest < batch / 2, "a write took {longest:?} beside a batch of {batch:?}");
    // The hashes are theirs: each logs in with their own, and no two are alike.
    ann.login("u7", "password 7");
    ann.try_login("u7", "password 8").expect(401);
    assert_eq!(house.count("SELECT COUNT(DISTINCT password_hash) FROM users WHERE name LIKE 'u%'"), 40);
}

fn built_in_batches_are_in_the_document(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let document = server.client().get("/openapi.json").expect(200).json();
    for path in ["/templates/enable", "/spaces/metadata", "/spaces/change-owner", "/spaces/start"] {
        let post = &document["paths"][path]["post"];
        assert!(post["responses"]["207"].is_object(), "{path}: {post}");
        assert!(post["parameters"].to_string().contains("dry_run"), "{path}");
    }
    let one = &document["paths"]["/templates/{id}/enable"]["post"];
    assert!(one["parameters"].to_string().contains("dry_run"), "{one}");
    for path in ["/resource-types", "/resource-types/{id}"] {
        let delete = &document["paths"][path]["delete"]["parameters"];
        assert!(delete.as_array().unwrap().iter().any(|it| it["name"] == "force"), "{path}: {delete}");
    }
    let admin = server.admin();
    let many = admin.post("/templates/disable?id=files", &json!({})).expect(207).of("templates");
    assert_eq!(many[0]["status"], 200, "{many}");
}

fn markers_of_long_values_fit_into_a_uri(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let fields = json!([{"name": "text", "max": 100_000, "required": true}]);
    define(&admin, &json!({"keyword": "note", "fields": fields}));
    // They differ far behind.
    let long = |i: usize| format!("{}{i}", "字".repeat(9000));
    for i in 0..6 {
        admin.post("/notes", &json!({"name": format!("n{i}"), "text": long(i)})).expect(201);
    }
    for order in ["text", "-text"] {
        let mut wanted: Vec<_> = (0..6).map(|i| format!("n{i}")).collect();
        if order.starts_with('-') {
            wanted.reverse();
        }
        let page = |marker: &str| {
            let answer =
                admin.get(&format!("/notes?order_by={order}&limit=2&field=name{marker}")).expect(200);
            let names: Vec<_> =
                answer.of("notes").as_array().unwrap().iter().map(|it| key(it, "name")).collect();
            (names, answer.json())
        };
        let marked = |body: &Value, name: &str| {
            let marker = key(body, name);
            assert!(marker.len() < 4096, "{}", marker.len());
            format!("&marker={marker}")
        };
        let (first, body) = page("");
        let (second, body2) = page(&marked(&body, "next_marker"));
        let (third, _) = page(&marked(&body2, "next_marker"));
        assert_eq!([first.clone(), second, third].concat(), wanted, "{order}");
        let (back, _) = page(&marked(&body2, "previous_marker"));
        assert_eq!(back, first, "{order}");
        // Of a row that is gone the beginning is left: nothing is passed over.
        admin.delete(&format!("/notes/{}", wanted[1])).expect(200);
        let (rest, _) = page(&marked(&body, "next_marker"));
        assert!(rest.iter().all(|it| *it != wanted[1]) && rest.len() == 2, "{rest:?}");
        let all = admin.get(&format!("/notes?order_by={order}&field=name{}", marked(&body, "next_marker")));
        let all = all.expect(200).text();
        assert!(wanted[2..].iter().all(|it| all.contains(it.as_str())), "{order}: {all}");
        admin
            .post("/notes", &json!({"name": wanted[1], "text": long(wanted[1][1..].parse().unwrap())}))
            .expect(201);
        // An export begins there, too.
        let path =
            format!("/notes?order_by={order}&export=ndjson&field=name{}", marked(&body2, "next_marker"));
        assert_eq!(admin.get(&path).expect(200).text().lines().count(), 2, "{order}");
    }
}

fn what_is_there_already_passes(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let fields = |choices: Value| json!([{"name": "color", "choices": choices, "default": "red"}, {"name": "space", "references": "space"}]);
    define(
        &admin,
        &json!({"keyword": "thing", "owner": "project", "fields": fields(json!(["red", "blue"]))}),
    );
    let (hers, his) = (ann.space("hers", "files"), bob.space("his", "files"));
    let made =
        ann.post("/things", &json!({"name": "a", "color": "blue", "space": hers})).expect(201).of("thing");
    let id = key(&made, "id");
    admin.put("/resource-types/thing", &json!({"fields": fields(json!(["red"]))})).expect(200);
    // What it refers to is another's now.
    admin.post(&format!("/spaces/{hers}/change-owner"), &json!({"user_id": bob.user_id()})).expect(200);
    let path = format!("/things/{id}");
    let whole = json!({"name": "b", "color": "blue", "space": hers});
    let put = until("the type has changed", Duration::from_secs(5), || {
        let put = ann.put(&path, &whole);
        (put.status != 503).then_some(put)
    });
    assert_eq!(put.expect(200).of("thing")["name"], "b");
    ann.send("PATCH", &path, &[], Some(json!({"color": "blue", "description": "d"}).to_string().as_bytes()))
        .expect(200);
    ann.post("/things/apply", &json!({"name": "b", "color": "blue", "space": hers, "description": "e"}))
        .expect(200);
    // Another value is judged as ever.
    assert_eq!(ann.put(&path, &json!({"color": "green"})).expect(400).blamed(), ["color"]);
    assert_eq!(
        ann.put(&path, &json!({"space": his})).refused(400, "ReferenceNotFoundError").blamed(),
        ["space"]
    );
    ann.put(&path, &json!({"color": "red"})).expect(200);
    assert_eq!(ann.put(&path, &json!({"color": "blue"})).expect(400).blamed(), ["color"]);
}

fn records_of_a_type_deleted_by_force_have_its_values(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let fields = json!([
        {"name": "size", "type": "integer"}, {"name": "on", "type": "boolean", "default": true},
        {"name": "about", "type": "json"}, {"name": "secret", "list": "never"}, {"name": "none"},
        {"name": "ratio", "type": "number"},
    ]);
    define(&admin, &json!({"keyword": "thing", "owner": "project", "fields": fields}));
    let row = json!({"name": "a \"b\" 'c' \\", "description": "d'e", "size": 7, "about": {"x": [1, "y"]}, "secret": "s-e-c",
        "ratio": 0.5});
    let made = admin.post("/things", &row).expect(201).of("thing");
    admin.delete("/resource-types/thing?force=true").expect(200);
    let found = admin.get(&format!("/events?obj_id={}&action=delete", key(&made, "id"))).expect(200);
    assert!(!found.text().contains("s-e-c"), "{}", found.text());
    let notes = found.of("events")[0]["notes"].clone();
    assert_eq!(notes["name"], json!({"old": row["name"]}), "{notes}");
    assert_eq!(notes["description"]["old"], "d'e");
    assert_eq!(
        (&notes["size"]["old"], &notes["on"]["old"], &notes["ratio"]["old"]),
        (&json!(7), &json!(true), &json!(0.5))
    );
    assert_eq!(notes["user_id"]["old"], admin.user_id());
    assert_eq!(notes["secret"]["old"], "***");
    let about: Value = serde_json::from_str(notes["about"]["old"].as_str().unwrap()).unwrap();
    assert_eq!(about, row["about"]);
    assert!(notes.get("none").is_none() && notes.get("version").is_none(), "{notes}");
}

fn types_are_deleted_by_force_in_a_batch(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin, &json!({"keyword": "thing", "fields": []}));
    admin.post("/things", &json!({"name": "a"})).expect(201);
    let path = "/resource-types?id=thing";
    let part = |answer: &Value| answer[0]["status"].clone();
    assert_eq!(part(&admin.delete(path).expect(207).of("resource-types")), 409);
    assert_eq!(admin.delete(&format!("{path}&force=perhaps")).expect(400).blamed(), ["force"]);
    assert_eq!(part(&admin.delete(&format!("{path}&force=true")).expect(207).of("resource-types")), 200);
    admin.get("/things").expect(404);
    // Where force means nothing it is no parameter.
    assert_eq!(admin.delete("/kinds?all=true&force=true").expect(400).blamed(), ["force"]);
}

fn of_two_values_that_are_taken_the_first_is_blamed(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let unique = |name: &str| json!({"name": name, "unique": "all"});
    define(&admin, &json!({"keyword": "thing", "fields": [unique("one"), unique("two")]}));
    admin.post("/things", &json!({"name": "a", "one": "1", "two": "2"})).expect(201);
    let blamed = |fields: Value, class: &str| {
        let answer = until("the type has changed", Duration::from_secs(5), || {
            let answer = admin.post("/things", &fields);
            (answer.status != 503).then_some(answer)
        });
        answer.refused(409, class).blamed()
    };
    let all = json!({"name": "a", "one": "1", "two": "2"});
    assert_eq!(blamed(all, "DuplicateNameError"), ["name"]);
    assert_eq!(blamed(json!({"name": "b", "one": "1", "two": "2"}), "DuplicateResourceError"), ["one"]);
    // Also after one came before them.
    let fields = json!([unique("zero"), unique("one"), unique("two")]);
    admin.put("/resource-types/thing", &json!({"fields": fields})).expect(200);
    admin.post("/things", &json!({"name": "c", "zero": "0", "one": "c"})).expect(201);
    let all = json!({"name": "a", "zero": "0", "one": "1", "two": "2"});
    assert_eq!(blamed(all, "DuplicateNameError"), ["name"]);
    let rest = json!({"name": "d", "zero": "0", "one": "1", "two": "2"});
    assert_eq!(blamed(rest, "DuplicateResourceError"), ["zero"]);
}

fn a_required_field_that_nobody_can_give_is_refused(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let fields = json!([{"name": "x", "create": "never", "required": true}]);
    let answer = admin.post("/resource-types", &json!({"keyword": "thing", "fields": fields}));
    assert_eq!(answer.refused(400, "InputParameterError").blamed(), ["fields[0].required"]);
}

fn nothing_is_made_for_a_project_that_goes(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let of = |it: &Client| key(&it.get(&format!("/users/{}", it.user_id())).of("user"), "project_id");
    let (hers, his) = (of(&ann), of(&bob));
    // SQLite has one writer: there is no such moment.
    let Some(url) = &house.database.url else { return };
    // Two that are being deleted, past Podyard: one goes, one stays.
    for (who, project, end, status) in [(&ann, hers, "COMMIT", 401), (&bob, his, "ROLLBACK", 201)] {
        let mut session = Session::open(url);
        session.execute(&format!("BEGIN; DELETE FROM projects WHERE id = '{project}'"));
        std::thread::scope(|scope| {
            let made = scope.spawn(|| who.create_space("x", "files"));
            std::thread::sleep(Duration::from_millis(500));
            assert!(!made.is_finished(), "it does not wait for what becomes of the project");
            session.execute(end);
            made.join().unwrap().expect(status);
        });
    }
    assert_eq!(house.count("SELECT COUNT(*) FROM spaces"), 1);
}
