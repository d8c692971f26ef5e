//! The rules of spaces, when many requests come at the same moment.

use serde_json::json;

use crate::harness::{Answer, Client, House, Kind, Server, at_once, body, key, programs};

on_each_database!(
    of_twenty_creates_with_one_name_one_succeeds,
    of_thirty_creates_twenty_succeed,
    of_two_starts_of_a_space_one_succeeds,
    of_two_starts_of_two_spaces_one_succeeds,
    of_many_creates_that_start_one_runs,
    each_rule_has_its_own_class,
);

fn people(house: &House, args: &[&str]) -> (Server, Client, Client) {
    let server = house.serve(args);
    let admin = server.admin();
    let ann = admin.member("ann");
    (server, admin, ann)
}

fn with_status(answers: &[Answer], status: u16) -> Vec<&Answer> {
    answers.iter().filter(|it| it.status == status).collect()
}

fn count(client: &Client) -> usize {
    client.get("/spaces?limit=1000").expect(200).of("spaces").as_array().unwrap().len()
}

fn of_twenty_creates_with_one_name_one_succeeds(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin, ann) = people(&house, &[]);
    let answers = at_once(20, |_| ann.create_space("the name", "files"));
    assert_eq!(with_status(&answers, 201).len(), 1);
    for answer in answers.into_iter().filter(|it| it.status != 201) {
        let answer = answer.refused(409, "DuplicateNameError");
        assert_eq!(answer.blamed(), ["name"]);
    }
    assert_eq!(count(&ann), 1);
    // Another's space may have the name, and hers again once it is deleted.
    admin.member("bob").space("the name", "files");
    let id = key(&ann.get("/spaces").of("spaces")[0], "id");
    ann.delete(&format!("/spaces/{id}")).expect(200);
    ann.space("the name", "files");
    // A rename goes by the same rule, also when many come at once.
    let ids: Vec<_> = (0..4).map(|i| ann.space(&format!("space {i}"), "files")).collect();
    let renamed = at_once(4, |i| ann.put(&format!("/spaces/{}", ids[i]), &json!({"name": "wanted"})));
    assert_eq!(with_status(&renamed, 200).len(), 1);
    for answer in renamed.into_iter().filter(|it| it.status != 200) {
        answer.refused(409, "DuplicateNameError");
    }
}

fn of_thirty_creates_twenty_succeed(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin, ann) = people(&house, &[]);
    let bob = admin.member("bob");
    // Bob does the same at the same time: his limit is his own.
    let answers = at_once(40, |i| match i {
        0..30 => ann.create_space(&format!("space {i}"), "files"),
        _ => bob.create_space(&format!("space {i}"), "files"),
    });
    let (hers, his) = answers.split_at(30);
    assert_eq!(with_status(hers, 201).len(), 20);
    assert_eq!(with_status(his, 201).len(), 10);
    for answer in hers.iter().filter(|it| it.status != 201) {
        answer.clone().refused(409, "SpaceLimitError");
    }
    assert_eq!((count(&ann), count(&bob)), (20, 10));
    // One goes, one may come.
    let id = key(&ann.get("/spaces?limit=1").of("spaces")[0], "id");
    ann.delete(&format!("/spaces/{id}")).expect(200);
    let answers = at_once(5, |i| ann.create_space(&format!("again {i}"), "files"));
    assert_eq!(with_status(&answers, 201).len(), 1);
}

fn of_two_starts_of_a_space_one_succeeds(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin, ann) = people(&house, &[]);
    let template = admin.serving_template();
    let id = ann.space("mine", &template);
    for _ in 0..3 {
        let answers = at_once(4, |_| ann.act(&id, "start"));
        assert_eq!(with_status(&answers, 202).len(), 1);
        for answer in answers.iter().filter(|it| it.status != 202) {
            answer.clone().refused(409, "SpaceIsRunningError");
        }
        ann.wait_for(&id, &["running"]);
        assert_eq!(programs(&id).len(), 1);
        let answers = at_once(4, |_| ann.act(&id, "stop"));
        assert_eq!(with_status(&answers, 202).len(), 1);
        assert_eq!(with_status(&answers, 409).len(), 3);
        ann.wait_for(&id, &["stopped"]);
    }
}

fn of_two_starts_of_two_spaces_one_succeeds(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin, ann) = people(&house, &[]);
    let template = admin.serving_template();
    let ids = ["one", "two", "three"].map(|name| ann.space(name, &template));
    let answers = at_once(3, |i| ann.act(&ids[i], "start"));
    assert_eq!(with_status(&answers, 202).len(), 1);
    for answer in answers.iter().filter(|it| it.status != 202) {
        answer.clone().refused(409, "OtherSpaceRunningError");
    }
    let started = answers.iter().position(|it| it.status == 202).unwrap();
    ann.wait_for(&ids[started], &["running"]);
    // A running one does not stand in its own way, and bob's is not in hers.
    ann.act(&ids[started], "restart").expect(202);
    ann.wait_for(&ids[started], &["running"]);
    let bob = admin.member("bob");
    bob.running_space("his", &template);
    let other = &ids[(started + 1) % 3];
    ann.act(other, "start").refused(409, "OtherSpaceRunningError");
    ann.stop(&ids[started]);
    ann.start(other);
}

fn of_many_creates_that_start_one_runs(kind: Kind) {
    let house = House::new(kind);
    let (server, admin, ann) = people(&house, &[]);
    let template = admin.serving_template();
    let create = |who: &Client, i: usize| {
        let fields = json!({"name": format!("space {i}"), "template_id": template, "spec_id": "test", "auto_start": true});
        who.post("/spaces", &body("space", fields))
    };
    let answers = at_once(8, |i| create(&ann, i));
    let made = with_status(&answers, 201);
    assert_eq!(made.len(), 1);
    for answer in answers.iter().filter(|it| it.status != 201) {
        answer.clone().refused(409, "OtherSpaceRunningError");
    }
    // What was refused left nothing behind.
    assert_eq!(count(&ann), 1);
    let space = made[0].of("space");
    assert_eq!(space["status"], "starting");
    ann.wait_for_task(&key(&made[0].json(), "task_id"));
    ann.wait_for(&key(&space, "id"), &["running"]);
    drop(server);

    // Unless it is allowed: then all run.
    let server = house.serve(&["--max-running", "0"]);
    let bob = server.admin().member("bob");
    let answers = at_once(3, |i| create(&bob, i));
    assert_eq!(with_status(&answers, 201).len(), 3);
    for answer in &answers {
        bob.wait_for(&key(&answer.of("space"), "id"), &["running"]);
    }
}

fn each_rule_has_its_own_class(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin, ann) = people(&house, &["--max-spaces", "2"]);
    let create = |template: &str, spec: &str| {
        ann.post("/spaces", &json!({"name": "x", "template_id": template, "spec_id": spec}))
    };
    let field = |answer: Answer, class: &str, field: &str| {
        assert_eq!(answer.refused(400, class).blamed(), [field]);
    };
    field(create("no-such", "test"), "ReferenceNotFoundError", "template_id");
    field(create("files", "no-such"), "ReferenceNotFoundError", "spec_id");
    let closed = admin.template("Closed", &["sh"]);
    admin.put(&format!("/templates/{closed}"), &json!({"enabled": false})).expect(200);
    field(create(&closed, "test"), "TemplateDisabledError", "template_id");
    admin.put("/specs/enhanced", &json!({"enabled": false})).expect(200);
    field(create("files", "enhanced"), "SpecDisabledError", "spec_id");
    assert_eq!(count(&ann), 0);

    let id = ann.space("one", "files");
    ann.act(&id, "stop").refused(409, "SpaceNotRunningError");
    ann.act(&id, "restart").refused(409, "SpaceNotRunningError");
    ann.act(&id, "dance").refused(404, "ActionNotFoundError");
    ann.create_space("one", "files").refused(409, "DuplicateNameError");
    let absent = admin.template("Absent", &["no-such-program-anywhere"]);
    let id = ann.space("two", &absent);
    let refused = ann.act(&id, "start").refused(409, "TemplateUnavailableError");
    assert!(refused.text().contains("no-such-program-anywhere"), "{}", refused.text());
    ann.create_space("three", "files").refused(409, "SpaceLimitError");

    // What is used stays.
    admin.delete(&format!("/templates/{absent}")).refused(409, "ResourceInUseError");
    admin.delete("/specs/test").refused(409, "ResourceInUseError");
    admin.delete("/kinds/builtin").refused(409, "ResourceInUseError");
    ann.delete(&format!("/spaces/{id}")).expect(200);
    admin.delete(&format!("/templates/{absent}")).expect(200);
}
