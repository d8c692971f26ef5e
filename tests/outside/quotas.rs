//! Quotas: what is limited is never exceeded, also when many ask at once, and
//! what is given back can be had again.

use serde_json::{Value, json};

use crate::harness::{Client, House, Kind, at_once, body, key};

on_each_database!(
    a_users_quota_holds_when_many_create_at_once,
    what_fails_to_start_gives_back_what_it_held,
    domain_project_and_user_are_counted_apart,
    a_quota_for_each_and_one_of_its_own,
    only_administrators_set_quotas,
    bad_quotas_are_refused_by_name,
    counters_begin_with_what_is_there,
    a_recount_finds_what_was_changed_behind,
    without_a_quota_nothing_is_counted,
);

fn quota(admin: &Client, scope: &str, target: &str, resource: &str, most: i64) -> String {
    let fields = json!({"scope": scope, "target_id": target, "resource": resource, "most": most});
    key(&admin.post("/quotas", &body("quota", fields)).expect(201).of("quota"), "id")
}

fn usage(client: &Client, id: &str) -> (i64, i64) {
    let row = client.get(&format!("/usages/{id}")).expect(200).of("usage");
    (row["used"].as_i64().unwrap(), row["pending"].as_i64().unwrap())
}

fn a_users_quota_holds_when_many_create_at_once(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "100"]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let id = quota(&admin, "user", &ann.user_id(), "spaces", 5);
    let answers = at_once(16, |i| ann.create_space(&format!("space {i}"), "files"));
    assert_eq!(answers.iter().filter(|it| it.status == 201).count(), 5);
    for answer in answers.into_iter().filter(|it| it.status != 201) {
        let answer = answer.refused(409, "OutOfQuotaError");
        assert_eq!(answer.blamed(), ["spaces"]);
        assert!(answer.json()["detail"].as_str().unwrap().contains('5'), "{answer:?}");
    }
    assert_eq!(usage(&ann, &id), (5, 0));
    // Another's is not touched, and what is deleted may be made again.
    for i in 0..6 {
        bob.space(&format!("space {i}"), "files");
    }
    let first = key(&ann.get("/spaces?limit=1").of("spaces")[0], "id");
    ann.delete(&format!("/spaces/{first}")).expect(200);
    assert_eq!(usage(&ann, &id), (4, 0));
    let answers = at_once(8, |i| ann.create_space(&format!("again {i}"), "files"));
    assert_eq!(answers.iter().filter(|it| it.status == 201).count(), 1);
    // Raised and lowered: what is there stays.
    admin.put(&format!("/quotas/{id}"), &json!({"most": 6})).expect(200);
    ann.space("the sixth", "files");
    admin.put(&format!("/quotas/{id}"), &json!({"most": 1})).expect(200);
    ann.create_space("the seventh", "files").refused(409, "OutOfQuotaError");
    assert_eq!(ann.get("/spaces").of("spaces").as_array().unwrap().len(), 6);
    admin.delete(&format!("/quotas/{id}")).expect(200);
    ann.get(&format!("/usages/{id}")).expect(404);
    ann.space("the seventh", "files");
}

fn what_fails_to_start_gives_back_what_it_held(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-running", "0"]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let serving = admin.serving_template();
    let failing = admin.template("failing", &["/bin/sh", "-c", "exit 3"]);
    let id = quota(&admin, "user", &ann.user_id(), "cpu", 1_000_000);
    let good = ann.running_space("good", &serving);
    let (one, pending) = usage(&ann, &id);
    assert!(one > 0 && pending == 0, "{one} {pending}");
    // Room for this one and no other.
    admin.put(&format!("/quotas/{id}"), &json!({"most": one * 2})).expect(200);
    let bad = ann.space("bad", &failing);
    ann.act(&bad, "start").expect(202);
    ann.wait_for(&bad, &["start_failed"]);
    assert_eq!(usage(&ann, &id), (one, 0));
    admin.put(&format!("/quotas/{id}"), &json!({"most": one})).expect(200);
    let other = ann.space("other", &serving);
    ann.act(&other, "start").refused(409, "OutOfQuotaError");
    assert_eq!(ann.read_space(&other)["status"], "stopped");
    ann.stop(&key(&good, "id"));
    assert_eq!(usage(&ann, &id), (0, 0));
    ann.start(&other);
    assert_eq!(usage(&ann, &id), (one, 0));
}

fn domain_project_and_user_are_counted_apart(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let me = ann.get("/users").of("users")[0].clone();
    let project = quota(&admin, "project", &key(&me, "project_id"), "spaces", 2);
    let domain = quota(&admin, "domain", &key(&me, "domain_id"), "spaces", 3);
    ann.space("one", "files");
    ann.space("two", "files");
    bob.space("one", "files");
    let refused = bob.create_space("two", "files").refused(409, "OutOfQuotaError");
    assert!(refused.json()["detail"].as_str().unwrap().contains("domain"), "{refused:?}");
    // What is refused for one of them is taken from none of them.
    assert_eq!(usage(&admin, &domain), (3, 0));
    let same = key(&bob.get("/users").of("users")[0], "project_id") == key(&me, "project_id");
    assert_eq!(usage(&admin, &project).0, if same { 3 } else { 2 });
}

fn a_quota_for_each_and_one_of_its_own(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    quota(&admin, "user", "", "spaces", 1);
    quota(&admin, "user", &bob.user_id(), "spaces", 2);
    ann.space("one", "files");
    ann.create_space("two", "files").refused(409, "OutOfQuotaError");
    bob.space("one", "files");
    bob.space("two", "files");
    bob.create_space("three", "files").refused(409, "OutOfQuotaError");
    let shown = ann.get("/quotas").of("quotas");
    assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");
    let used = ann.get("/usages").of("usages");
    assert_eq!((&used[0]["used"], &used[0]["most"]), (&json!(1), &json!(1)), "{used}");
}

fn only_administrators_set_quotas(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let of_bob = quota(&admin, "user", &bob.user_id(), "spaces", 1);
    bob.space("one", "files");
    let wanted = json!({"scope": "user", "target_id": ann.user_id(), "resource": "spaces", "most": 9});
    ann.post("/quotas", &body("quota", wanted)).expect(403);
    ann.put(&format!("/quotas/{of_bob}"), &json!({"most": 9})).expect(403);
    ann.delete(&format!("/quotas/{of_bob}")).expect(403);
    ann.post("/usages/recount", &json!({})).expect(403);
    ann.get(&format!("/quotas/{of_bob}")).expect(404);
    ann.get(&format!("/usages/{of_bob}")).expect(404);
    for plural in ["quotas", "usages"] {
        assert_eq!(ann.get(&format!("/{plural}")).of(plural), json!([]));
    }
    admin.post("/usages", &json!({})).expect(403);
}

fn bad_quotas_are_refused_by_name(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let me = admin.user_id();
    let good = json!({"scope": "user", "target_id": me, "resource": "spaces", "most": 3});
    for (field, value) in [
        ("scope", json!("galaxy")),
        ("target_id", json!("nobody")),
        ("resource", json!("unicorns")),
        ("most", json!(-1)),
        ("most", json!("many")),
        ("used", json!(0)),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        let answer = admin.post("/quotas", &body("quota", bad)).expect(400);
        assert_eq!(answer.blamed(), [field]);
    }
    admin.post("/quotas", &body("quota", good.clone())).expect(201);
    admin.post("/quotas", &body("quota", good)).expect(409);
    let id = format!("user:{me}:spaces");
    assert_eq!(admin.put(&format!("/quotas/{id}"), &json!({"most": -5})).expect(400).blamed(), ["most"]);
    assert_eq!(admin.get(&format!("/quotas/{id}")).of("quota")["most"], 3);
}

fn counters_begin_with_what_is_there(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    for i in 0..3 {
        ann.space(&format!("space {i}"), "files");
    }
    let id = quota(&admin, "user", &ann.user_id(), "spaces", 4);
    // The first use counts, also when several are the first.
    let answers = at_once(6, |i| ann.create_space(&format!("more {i}"), "files"));
    assert_eq!(answers.iter().filter(|it| it.status == 201).count(), 1);
    assert_eq!(usage(&ann, &id), (4, 0));
}

fn a_recount_finds_what_was_changed_behind(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = quota(&admin, "user", &ann.user_id(), "storage", 1 << 40);
    ann.space("one", "files");
    let (before, _) = usage(&ann, &id);
    let right = admin.post("/usages/recount", &json!({})).expect(200).of("usages");
    assert_eq!(right, json!({"checked": 1, "corrected": 0}));
    // Another size behind the reference: the next use counts anew.
    let space = ann.get("/spaces").of("spaces")[0].clone();
    let spec = admin.get(&format!("/specs/{}", key(&space, "spec_id"))).of("spec");
    let double =
        json!({"storage": format!("{}", Value::from(format!("{}Mi", before * 2))).trim_matches('"')});
    admin.put(&format!("/specs/{}", key(&spec, "id")), &double).expect(200);
    ann.space("two", "files");
    assert_eq!(usage(&ann, &id), (before * 4, 0));
}

fn without_a_quota_nothing_is_counted(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let plain = admin.create_space("one", "files").expect(201).statements();
    assert_eq!(admin.get("/usages").of("usages"), json!([]));
    quota(&admin, "user", &admin.user_id(), "spaces", 100);
    admin.create_space("the first counts", "files").expect(201);
    let counted = admin.create_space("two", "files").expect(201).statements();
    assert!(counted <= plain + 1, "{plain} without, {counted} with");
    // With quotas on all that there is: still one more.
    for (scope, target) in [("project", ""), ("domain", ""), ("user", "")] {
        quota(&admin, scope, target, "storage", 1 << 40);
        quota(&admin, scope, target, "cpu", 1 << 40);
    }
    admin.create_space("the first counts again", "files").expect(201);
    let counted = admin.create_space("three", "files").expect(201).statements();
    assert!(counted <= plain + 1, "{plain} without, {counted} with all");
}
