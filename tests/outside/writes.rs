//! Writes of many, rehearsed, applied and copied.

use serde_json::{Value, json};

use crate::harness::{Answer, Client, House, Kind, key};

on_each_database!(
    a_list_of_bodies_makes_one_row_each,
    a_count_makes_numbered_names,
    batches_have_bounds,
    a_batch_is_under_the_same_limits,
    a_batch_takes_of_a_quota_what_it_made,
    rows_are_changed_by_id_and_by_filter,
    rows_are_deleted_and_acted_on_at_once,
    a_batch_names_its_rows,
    strangers_rows_are_no_part_of_a_batch,
    a_dry_run_leaves_nothing,
    patches_are_merged,
    apply_creates_or_changes_what_differs,
    apply_takes_rights,
    a_copy_is_a_create,
    batch_statements_grow_with_rows_only,
);

/// The parts of a 207.
#[track_caller]
fn parts(answer: &Answer, plural: &str) -> Vec<Value> {
    assert_eq!(answer.status, 207, "{}: {}", answer.asked, answer.text());
    answer.json()[plural].as_array().unwrap().clone()
}

fn statuses(parts: &[Value]) -> Vec<u64> {
    parts.iter().map(|it| it["status"].as_u64().unwrap()).collect()
}

fn fields(name: &str) -> Value {
    json!({"name": name, "template_id": "files", "spec_id": "test"})
}

fn names(client: &Client) -> Vec<String> {
    let list = client.get("/spaces?order_by=name&limit=1000").expect(200).of("spaces");
    list.as_array().unwrap().iter().map(|it| key(it, "name")).collect()
}

fn records(house: &House) -> i64 {
    house.count("SELECT COUNT(*) FROM ops_log")
}

fn a_list_of_bodies_makes_one_row_each(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let ann = server.admin().member("ann");
    let auto = json!({"name": "auto", "template_id": "files", "spec_id": "test", "auto_start": true});
    let no_template = json!({"name": "x", "template_id": "none", "spec_id": "test"});
    let list = json!({"spaces": [
        fields("one"), {"space": fields("two")}, fields("one"), {"name": "x"}, no_template, 7, auto
    ]});
    let answer = ann.post("/spaces", &list);
    let made = parts(&answer, "spaces");
    assert_eq!(statuses(&made), [201, 201, 409, 400, 400, 400, 201]);
    assert_eq!(made[0]["body"]["space"]["name"], "one");
    assert_eq!(made[0]["id"], made[0]["body"]["space"]["id"]);
    assert_eq!(made[1]["body"]["space"]["url"].as_str().unwrap().len(), 29);
    assert_eq!(made[2]["body"]["class"], "DuplicateNameError");
    assert_eq!(made[2]["body"]["request_id"], answer.header("x-request-id"));
    assert!(made[2].get("id").is_none());
    assert_eq!(made[3]["body"]["errors"][0]["field"], "template_id");
    assert_eq!(made[4]["body"]["class"], "ReferenceNotFoundError");
    assert!(made[6]["body"]["task_id"].is_string() && made[0]["body"]["task_id"].is_null());
    assert_eq!(names(&ann), ["auto", "one", "two"]);
    // Each has its record; those that were refused have none.
    assert_eq!(house.count("SELECT COUNT(*) FROM ops_log WHERE obj_type = 'space' AND action = 'create'"), 3);
    ann.wait_for(&key(&made[6], "id"), &["running"]);
    assert_eq!(ann.get("/tasks").of("tasks").as_array().unwrap().len(), 1);
}

fn a_count_makes_numbered_names(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let ann = server.admin().member("ann");
    let many = |name: &str, n: Value| ann.post("/spaces", &json!({"space": fields(name), "count": n}));
    assert_eq!(statuses(&parts(&many("x", json!(3)), "spaces")), [201, 201, 201]);
    assert_eq!(statuses(&parts(&many("y##", json!(2)), "spaces")), [201, 201]);
    assert_eq!(statuses(&parts(&many("z", json!(1)), "spaces")), [201]);
    assert_eq!(names(&ann), ["x-1", "x-2", "x-3", "y01", "y02", "z-1"]);
    // Those that are there stay; the others are made.
    assert_eq!(statuses(&parts(&many("x", json!(4)), "spaces")), [409, 409, 409, 201]);
    for wrong in [json!(0), json!(-1), json!("2"), json!(1.5), json!(null), json!(201), json!(1e99)] {
        assert_eq!(many("w", wrong).refused(400, "InputParameterError").blamed(), ["count"]);
    }
    // In a bare body it is a field, which spaces have not.
    let mut bare = fields("w");
    bare["count"] = 2.into();
    assert_eq!(ann.post("/spaces", &bare).refused(400, "InputParameterError").blamed(), ["count"]);
    assert_eq!(names(&ann).len(), 7);
}

fn batches_have_bounds(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "500"]);
    let ann = server.admin().member("ann");
    let list = |n: usize| json!({"spaces": (0..n).map(|i| fields(&format!("n{i:03}"))).collect::<Vec<_>>()});
    for n in [0, 201] {
        assert_eq!(ann.post("/spaces", &list(n)).refused(400, "InputParameterError").blamed(), ["spaces"]);
    }
    let mut both = list(2);
    both["count"] = 2.into();
    assert_eq!(ann.post("/spaces", &both).refused(400, "InputParameterError").blamed(), ["count"]);
    assert!(names(&ann).is_empty());
    let made = parts(&ann.post("/spaces", &list(200)), "spaces");
    assert!(statuses(&made).iter().all(|it| *it == 201));
    assert_eq!(names(&ann).len(), 200);
    let one = json!({"space": fields("list of one")});
    ann.post("/spaces", &json!({"spaces": [one]})).expect(207);
    // What leaves no row out is no condition: nothing is done by mistake.
    for nothing in ["", "?scope=user", "?filter_any=true", "?search=", "?search=%20&filter_any=true"] {
        let path = format!("/spaces{nothing}");
        ann.put(&path, &json!({"description": "all"})).refused(400, "ConditionRequiredError");
        ann.delete(&path).refused(400, "ConditionRequiredError");
    }
    assert_eq!(ann.get("/spaces?description=all&details=total&limit=1").json()["total"], 0);
    ann.put("/spaces?all=true", &json!({"description": "all"})).expect(207);
    assert_eq!(ann.get("/spaces?description=all&details=total&limit=1").json()["total"], 201);
}

fn a_batch_is_under_the_same_limits(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "3"]);
    let ann = server.admin().member("ann");
    let made = parts(&ann.post("/spaces", &json!({"space": fields("x"), "count": 5})), "spaces");
    assert_eq!(statuses(&made), [201, 201, 201, 409, 409]);
    assert_eq!(made[4]["body"]["class"], "SpaceLimitError");
    // One that is refused leaves room for the next.
    ann.delete("/spaces?name=x-1&name=x-2").expect(207);
    let list = json!({"spaces": [fields("x-3"), fields("a"), fields("b"), fields("c")]});
    assert_eq!(statuses(&parts(&ann.post("/spaces", &list), "spaces")), [409, 201, 201, 409]);
    assert_eq!(names(&ann), ["a", "b", "x-3"]);
}

fn a_batch_takes_of_a_quota_what_it_made(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let quota = json!({"scope": "user", "target_id": ann.user_id(), "resource": "spaces", "most": 3});
    let id = key(&admin.post("/quotas", &quota).expect(201).of("quota"), "id");
    let used = || ann.get(&format!("/usages/{id}")).expect(200).of("usage")["used"].as_i64().unwrap();
    // The second is refused after the quota was taken for it.
    let list = json!({"spaces": [fields("a"), fields("a"), fields("b"), fields("c"), fields("d")]});
    ann.post("/spaces?dry_run=true", &list).expect(207);
    let made = parts(&ann.post("/spaces", &list), "spaces");
    assert_eq!(statuses(&made), [201, 409, 201, 201, 409]);
    assert_eq!(made[4]["body"]["class"], "OutOfQuotaError");
    assert_eq!(used(), 3);
    ann.delete("/spaces?all=true&dry_run=true").expect(207);
    assert_eq!(used(), 3);
    assert_eq!(statuses(&parts(&ann.delete("/spaces?name=a&name=b"), "spaces")), [200, 200]);
    assert_eq!(used(), 1);
}

fn rows_are_changed_by_id_and_by_filter(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let ann = server.admin().member("ann");
    let ids: Vec<_> = ["a", "b", "c"].map(|name| ann.space(name, "files")).into();
    let change = json!({"space": {"description": "new"}});
    let done = parts(&ann.put(&format!("/spaces?id={}&id={}&id=nobody", ids[1], ids[0]), &change), "spaces");
    assert_eq!(statuses(&done), [200, 200, 404]);
    assert_eq!([key(&done[0], "id"), key(&done[1], "id")], [ids[0].clone(), ids[1].clone()]);
    assert_eq!(done[0]["body"]["space"]["description"], "new");
    assert_eq!(done[2]["id"], "nobody");
    assert_eq!(done[2]["body"]["class"], "ResourceNotFoundError");
    assert_eq!(ann.read_space(&ids[2])["description"], "");
    // Each by itself: one name cannot be two rows'.
    let done = parts(&ann.put("/spaces?name=b&name=c", &json!({"name": "same"})), "spaces");
    assert_eq!(statuses(&done), [200, 409]);
    assert_eq!(done[1]["body"]["class"], "DuplicateNameError");
    assert_eq!(names(&ann), ["a", "c", "same"]);
    // A body that is wrong is wrong for each; a name that nobody has is no error.
    let done = parts(&ann.put("/spaces?all=true", &json!({"nonsense": 1})), "spaces");
    assert_eq!(statuses(&done), [400, 400, 400]);
    assert!(parts(&ann.put("/spaces?name=nobody", &change), "spaces").is_empty());
    let done =
        parts(&ann.send("PATCH", "/spaces?description=new", &[], Some(b"{\"description\": null}")), "spaces");
    assert_eq!(statuses(&done), [200, 200]);
    assert!(ann.get("/spaces?description=new").of("spaces").as_array().unwrap().is_empty());
}

fn rows_are_deleted_and_acted_on_at_once(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-running", "2"]);
    let ann = server.admin().member("ann");
    let ids: Vec<_> = ["a", "b", "c"].map(|name| ann.space(name, "files")).into();
    // Two may run: the third is told so, and stays as it was.
    let done = parts(&ann.post("/spaces/start?status=stopped", &json!({})), "spaces");
    assert_eq!(statuses(&done), [202, 202, 409]);
    assert_eq!(done[2]["body"]["class"], "OtherSpaceRunningError");
    for part in &done[..2] {
        assert_eq!(part["body"]["space"]["status"], "starting");
        assert_eq!(ann.wait_for_task(&key(&part["body"], "task_id"))["status"], "done");
    }
    assert_eq!(ann.read_space(&ids[2])["status"], "stopped");
    assert_eq!(ann.get("/tasks").of("tasks").as_array().unwrap().len(), 2);
    let done = parts(&ann.delete("/spaces?all=true"), "spaces");
    assert_eq!(statuses(&done), [409, 409, 200]);
    assert_eq!(done[0]["body"]["class"], "SpaceIsRunningError");
    assert_eq!(names(&ann), ["a", "b"]);
    let done = parts(&ann.post("/spaces/stop?status=running", &json!({})), "spaces");
    assert_eq!(statuses(&done), [202, 202]);
    for part in &done {
        ann.wait_for_task(&key(&part["body"], "task_id"));
    }
    assert_eq!(
        statuses(&parts(
            &ann.delete(&format!("/spaces?id={}&id={}&id={}", ids[0], ids[1], ids[2])),
            "spaces"
        )),
        [200, 200, 404]
    );
    assert!(names(&ann).is_empty());
}

fn a_batch_names_its_rows(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let id = admin.space("a", "files");
    let before = records(&house);
    let json_type = ("Content-Type", "application/json");
    for (method, path) in
        [("PUT", "/spaces"), ("PATCH", "/spaces"), ("DELETE", "/spaces"), ("POST", "/spaces/start")]
    {
        let send = |query: &str, headers: &[(&str, &str)]| {
            admin.send(method, &format!("{path}{query}"), headers, Some(b"{}"))
        };
        assert_eq!(send("", &[json_type]).refused(400, "ConditionRequiredError").blamed(), ["id"]);
        for (query, blamed) in [
            ("?nonsense=1", "nonsense"),
            ("?limit=1", "limit"),
            ("?all=true&order_by=name", "order_by"),
            ("?all=false", "all"),
            ("?all=true&field=id", "field"),
            ("?all=true&dry_run=perhaps", "dry_run"),
            ("?sid=x&password=x", "password"),
        ] {
            assert_eq!(
                send(query, &[json_type]).refused(400, "InputParameterError").blamed(),
                [blamed],
                "{query}"
            );
        }
        let answer = send(&format!("?id={id}"), &[json_type, ("If-Match", "\"1\"")]);
        assert_eq!(answer.refused(400, "InputParameterError").blamed(), ["If-Match"]);
    }
    admin
        .send("DELETE", "/spaces?all=true", &[json_type], Some(b"{\"a\": 1}"))
        .refused(400, "InputParameterError");
    admin.post("/spaces/nonsense?all=true", &json!({})).refused(404, "ActionNotFoundError");
    let text = json!({"password": "something else"});
    admin.post("/users/password?all=true", &text).refused(400, "BatchNotPossibleError");
    assert_eq!(records(&house), before);
}

fn strangers_rows_are_no_part_of_a_batch(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, ben) = (admin.member("ann"), admin.member("ben"));
    let (hers, his) = (ann.space("hers", "files"), ben.space("his", "files"));
    let query = format!("/spaces?id={hers}&id={his}");
    let done = parts(&ben.put(&query, &json!({"description": "ben was here"})), "spaces");
    assert_eq!(statuses(&done), [404, 200]);
    assert_eq!(ann.read_space(&hers)["description"], "");
    assert_eq!(statuses(&parts(&ben.put("/spaces?all=true", &json!({"description": "x"})), "spaces")), [200]);
    assert_eq!(statuses(&parts(&ben.delete(&query), "spaces")), [404, 200]);
    assert_eq!(names(&ann), ["hers"]);
    // Rights come first: members change no templates, however many.
    ben.put("/templates?all=true", &json!({"enabled": false})).refused(403, "ForbiddenError");
    ben.delete("/templates?all=true").refused(403, "ForbiddenError");
    ben.post("/templates", &json!({"templates": []})).refused(403, "ForbiddenError");
    ben.delete("/tasks?all=true").refused(403, "ForbiddenError");
    admin.post("/templates/files/copy", &json!({})).expect(201);
    ben.post("/templates/files/copy", &json!({})).refused(403, "ForbiddenError");
    ben.post(&format!("/spaces/{hers}/copy"), &json!({})).refused(404, "ResourceNotFoundError");
    admin.post("/tasks/x/copy", &json!({})).refused(403, "ForbiddenError");
}

fn a_dry_run_leaves_nothing(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.space("there", "files");
    let state = || {
        let (records, tasks) = (records(&house), house.count("SELECT COUNT(*) FROM tasks"));
        let keys = house.count("SELECT COUNT(*) FROM idempotency_keys");
        let generation = house.count("SELECT generation FROM cache_generation");
        (
            records,
            tasks,
            keys,
            generation,
            ann.get("/spaces").of("spaces"),
            admin.get("/templates").of("templates"),
        )
    };
    let before = state();
    let dry = |answer: Answer, status: u16| {
        let answer = answer.expect(status);
        assert_eq!(answer.header("x-dry-run"), "true", "{}", answer.asked);
        for header in ["location", "etag", "idempotency-replayed"] {
            assert_eq!(answer.header(header), "", "{}: {header}", answer.asked);
        }
        assert!(!answer.text().contains("task_id"), "{}", answer.text());
        answer
    };
    let auto = json!({"name": "auto", "template_id": "files", "spec_id": "test", "auto_start": true});
    let made = dry(ann.post("/spaces?dry_run=true", &auto), 200);
    assert_eq!(made.of("space")["status"], "starting");
    let made = dry(ann.post("/spaces?dry_run=true", &json!({"space": fields("x"), "count": 2})), 207);
    assert_eq!(statuses(&parts(&made, "spaces")), [200, 200]);
    let key = [("Idempotency-Key", "k"), ("Content-Type", "application/json")];
    dry(ann.send("POST", "/spaces?dry_run=true", &key, Some(fields("keyed").to_string().as_bytes())), 200);
    let path = format!("/spaces/{id}");
    let changed = dry(ann.put(&format!("{path}?dry_run=true"), &json!({"name": "other"})), 200);
    assert_eq!(changed.of("space")["name"], "other");
    dry(ann.put("/spaces?all=true&dry_run=true", &json!({"name": "other"})), 207);
    let started = dry(ann.post(&format!("{path}/start?dry_run=true"), &json!({})), 200);
    assert_eq!(started.of("space")["status"], "starting");
    dry(ann.post("/spaces/start?all=true&dry_run=true", &json!({})), 207);
    dry(ann.post(&format!("{path}/copy?dry_run=true"), &json!({})), 200);
    dry(ann.post("/spaces/apply?dry_run=true", &fields("applied")), 200);
    dry(ann.delete(&format!("{path}?dry_run=true")), 200);
    dry(ann.delete("/spaces?all=true&dry_run=true"), 207);
    dry(admin.put("/templates/files?dry_run=true", &json!({"enabled": false, "name": "Off"})), 200);
    assert_eq!(state(), before, "a dry run has left something");
    // The same hooks judge it.
    ann.post("/spaces?dry_run=true", &fields("there")).refused(409, "DuplicateNameError");
    ann.post("/spaces?dry_run=true", &json!({"name": "x"})).refused(400, "InputParameterError");
    ann.post(&format!("{path}/stop?dry_run=true"), &json!({})).refused(409, "SpaceNotRunningError");
    admin.delete("/templates/files?dry_run=true").refused(409, "ResourceInUseError");
    let password = json!({"password": "something else"});
    let answer = admin.post(&format!("/users/{}/password?dry_run=true", ann.user_id()), &password);
    assert_eq!(answer.refused(400, "InputParameterError").blamed(), ["dry_run"]);
    // `false` is for real; anything else is a mistake.
    ann.post("/spaces?dry_run=1", &fields("x")).refused(400, "InputParameterError");
    ann.get("/spaces?dry_run=true").refused(400, "InputParameterError");
    assert_eq!(state(), before);
    ann.post("/spaces?dry_run=false", &fields("x")).expect(201);
    // What was cached is not what was rehearsed.
    ann.create_space("y", "files").expect(201);
}

fn patches_are_merged(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.template("T", &["sh"]);
    let path = format!("/templates/{template}");
    let merge = ("Content-Type", "application/merge-patch+json");
    let patch = |body: Value| admin.send("PATCH", &path, &[merge], Some(body.to_string().as_bytes()));
    admin
        .put(&path, &json!({"description": "long", "icon": "i", "enabled": false, "tags": ["a"]}))
        .expect(200);
    // What has a default goes back to it; what has none cannot be taken away.
    let row = patch(json!({"description": null, "enabled": null, "tags": null, "icon": "j"}))
        .expect(200)
        .of("template");
    assert_eq!((&row["description"], &row["enabled"], &row["tags"]), (&json!(""), &json!(true), &json!([])));
    assert_eq!((&row["icon"], &row["name"]), (&json!("j"), &json!("T")));
    for name in ["name", "command", "kind_id"] {
        assert_eq!(patch(json!({name: null})).refused(400, "InputParameterError").blamed(), [name]);
    }
    assert_eq!(
        admin.put(&path, &json!({"description": null})).refused(400, "InputParameterError").blamed(),
        ["description"]
    );
    // A list is a value: it is replaced.
    patch(json!({"tags": ["x", "y"]})).expect(200);
    assert_eq!(patch(json!({"tags": ["z"]})).expect(200).of("template")["tags"], json!(["z"]));
    assert_eq!(patch(json!({"tags": {"a": 1}})).refused(400, "InputParameterError").blamed(), ["tags"]);
    for wrong in ["application/json-patch+json", "application/strategic-merge-patch+json", "text/plain"] {
        let answer = admin.send("PATCH", &path, &[("Content-Type", wrong)], Some(b"[]"));
        let answer = answer.refused(415, "UnsupportedMediaTypeError");
        assert_eq!(answer.header("accept-patch"), "application/merge-patch+json, application/json");
    }
}

fn apply_creates_or_changes_what_differs(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let apply = |body: &Value| ann.post("/spaces/apply", body);
    let mut wanted = fields("mine");
    let first = apply(&json!({"space": wanted})).expect(201);
    let row = first.of("space");
    assert_eq!(first.header("location"), format!("/spaces/{}", key(&row, "id")));
    // The same again changes nothing.
    let again = apply(&json!({"space": wanted})).expect(200);
    assert_eq!((again.of("space"), again.header("location")), (row.clone(), ""));
    wanted["description"] = "wanted".into();
    wanted["auto_start"] = true.into();
    let changed = apply(&wanted).expect(200);
    assert_eq!(changed.of("space")["version"], 2);
    assert_eq!(changed.of("space")["description"], "wanted");
    assert_eq!(changed.of("space")["status"], "stopped", "an input of the create has no say later");
    // What cannot be changed is named, and nothing else is changed. (Of a size that could be, too.)
    let wrong = json!({"name": "mine", "description": "x", "template_id": "other", "spec_id": "other"});
    let answer = apply(&wrong).refused(409, "ImmutableFieldError");
    assert_eq!(answer.blamed(), ["template_id"]);
    assert_eq!(ann.read_space(&key(&row, "id"))["version"], 2);
    for (body, field) in [
        (json!({"description": "x"}), "name"),
        (json!({"name": 7}), "name"),
        (json!({"name": "mine", "nonsense": 1}), "nonsense"),
        (json!({"name": "mine", "sid": "x"}), "sid"),
        (json!({"name": "mine", "description": 7}), "description"),
        (json!({"name": "fresh"}), "template_id"),
    ] {
        assert_eq!(apply(&body).refused(400, "InputParameterError").blamed()[0], field, "{body}");
    }
    // Many: each by itself.
    let list = json!({"spaces": [fields("new"), wanted, wrong, {"description": "nobody"}]});
    let done = parts(&apply(&list), "spaces");
    assert_eq!(statuses(&done), [201, 200, 409, 400]);
    assert_eq!(done[1]["id"], row["id"]);
    assert_eq!(done[1]["body"]["space"]["version"], 2);
    assert_eq!(names(&ann), ["mine", "new"]);
    // Twenty at once make one.
    let made = crate::harness::at_once(20, |_| apply(&fields("race")).status);
    assert_eq!(made.iter().filter(|it| **it == 201).count(), 1, "{made:?}");
    assert_eq!(made.iter().filter(|it| **it == 200).count(), 19, "{made:?}");
    // What has no names cannot be applied.
    admin.post("/tasks/apply", &json!({"name": "x"})).refused(403, "ForbiddenError");
}

fn apply_takes_rights(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, ben) = (admin.member("ann"), admin.member("ben"));
    // Another's space of that name is not found: one of one's own is made.
    let hers = ann.space("same", "files");
    ben.post("/spaces/apply", &fields("same")).expect(201);
    let made = admin.post("/spaces/apply", &fields("same")).expect(201);
    assert_ne!(key(&made.of("space"), "id"), hers);
    ben.post("/templates/apply", &json!({"name": "Files"})).refused(403, "ForbiddenError");
    ben.post("/users/apply", &json!({"name": "ben"})).refused(403, "ForbiddenError");
    let user = json!({"name": "ben", "email": "ben@example.org", "password": "is not looked at"});
    assert_eq!(admin.post("/users/apply", &user).expect(200).of("user")["email"], "ben@example.org");
    ben.login("ben", "password-of-ben");
    // A space is not changed through a template's name.
    let command = json!({"name": "Files", "command": ["x"], "kind_id": "builtin"});
    admin.post("/templates/apply?dry_run=true", &command).expect(200);
}

fn a_copy_is_a_create(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "5"]);
    let admin = server.admin();
    let (ann, ben) = (admin.member("ann"), admin.member("ben"));
    let id = ann.space("mine", "files");
    ann.put(&format!("/spaces/{id}"), &json!({"description": "words"})).expect(200);
    let path = format!("/spaces/{id}/copy");
    let copy = ann.post(&path, &json!({})).expect(201);
    let row = copy.of("space");
    assert_eq!(copy.header("location"), format!("/spaces/{}", key(&row, "id")));
    assert_eq!((key(&row, "name"), key(&row, "description")), ("mine-copy".into(), "words".into()));
    assert_eq!((&row["version"], &row["status"]), (&json!(1), &json!("stopped")));
    assert_ne!(row["sid"], ann.read_space(&id)["sid"]);
    assert_eq!(ann.send("POST", &path, &[], None).expect(201).of("space")["name"], "mine-copy-2");
    let named = ann.post("/spaces/mine/copy", &json!({"space": {"name": "other", "description": "own"}}));
    assert_eq!(named.expect(201).of("space")["description"], "own");
    ann.post(&path, &json!({"name": "mine"})).refused(409, "DuplicateNameError");
    assert_eq!(
        ann.post(&path, &json!({"nonsense": 1})).refused(400, "InputParameterError").blamed(),
        ["nonsense"]
    );
    assert_eq!(ann.post(&path, &json!({"sid": "x"})).refused(400, "InputParameterError").blamed(), ["sid"]);
    // A long name is cut to make room.
    let long = "x".repeat(128);
    ann.put(&format!("/spaces/{id}"), &json!({"name": long})).expect(200);
    assert_eq!(
        key(&ann.post(&path, &json!({})).expect(201).of("space"), "name"),
        format!("{}-copy", &long[..123])
    );
    // It is whose who makes it, and under their limits.
    ann.post(&path, &json!({})).refused(409, "SpaceLimitError");
    ben.post(&path, &json!({})).refused(404, "ResourceNotFoundError");
    let row = admin.post(&path, &json!({})).expect(201).of("space");
    assert_eq!(key(&row, "user_id"), admin.user_id());
    // What must be given again is asked for.
    let user = format!("/users/{}/copy", ben.user_id());
    assert_eq!(admin.post(&user, &json!({})).refused(400, "InputParameterError").blamed(), ["password"]);
}

fn batch_statements_grow_with_rows_only(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "100"]);
    let ann = server.admin().member("ann");
    let _ = ann.space("warm", "files");
    let made = |n: usize, name: &str| {
        ann.post("/spaces", &json!({"space": fields(name), "count": n})).expect(207).statements()
    };
    let one = ann.create_space("one", "files").expect(201).statements();
    assert_eq!(made(1, "a"), one, "a batch of one takes what one takes");
    let (five, ten) = (made(5, "b"), made(10, "c"));
    let each = (ten - five) / 5;
    assert!(each <= one && ten == made(10, "d"), "{one} for one, {five} for 5, {ten} for 10");
    assert_eq!(ten, five + 5 * each);
    let change = |query: &str, text: &str| {
        ann.put(&format!("/spaces?{query}"), &json!({"description": text})).expect(207).statements()
    };
    let (one, ten) = (change("name=one", "x"), change("search=c-", "x"));
    assert!(ten <= 1 + 10 * (one - 1), "{one} for one, {ten} for ten");
}
