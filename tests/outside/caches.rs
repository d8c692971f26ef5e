//! What is kept in memory is never older than an answer, in one process and
//! in several on one database.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Client, House, Kind, at_once, key, until};

on_each_database!(
    a_change_is_seen_by_the_next_request,
    a_change_is_seen_by_the_other_server,
    a_token_revoked_at_one_server_dies_at_the_other,
    creates_and_switching_off_agree,
    limits_hold_over_two_servers,
);

fn template_of(client: &Client, id: &str) -> Value {
    client.read_space(id)["template"].clone()
}

fn a_change_is_seen_by_the_next_request(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.space("x", "files");
    for i in 0..20 {
        let name = format!("Files {i}");
        admin.put("/templates/files", &json!({"name": name})).expect(200);
        assert_eq!(ann.get("/spaces").of("spaces")[0]["template"], json!(name));
        assert_eq!(template_of(&ann, &id), json!(name));
        admin.put("/specs/test", &json!({"memory": format!("{}Mi", 100 + i)})).expect(200);
        assert_eq!(ann.get("/spaces").of("spaces")[0]["memory"], json!(format!("{}Mi", 100 + i)));
        admin.put("/templates/files", &json!({"enabled": false})).expect(200);
        ann.create_space("y", "files").refused(400, "TemplateDisabledError");
        admin.put("/templates/files", &json!({"enabled": true})).expect(200);
        let made = key(&ann.create_space("y", "files").expect(201).of("space"), "id");
        ann.delete(&format!("/spaces/{made}")).expect(200);
    }
    admin.put("/kinds/builtin", &json!({"name": "Our own"})).expect(200);
    assert_eq!(ann.get("/templates/files").of("template")["kind"], "Our own");
    // A new one can be used at once, and one that is gone at once no more.
    let spec = json!({"name": "new", "cpu": "1", "memory": "1Gi", "storage": "1Gi"});
    let spec = key(&admin.post("/specs", &spec).expect(201).of("spec"), "id");
    let create = || ann.post("/spaces", &json!({"name": "z", "template_id": "files", "spec_id": spec}));
    let made = key(&create().expect(201).of("space"), "id");
    ann.delete(&format!("/spaces/{made}")).expect(200);
    admin.delete(&format!("/specs/{spec}")).expect(200);
    assert_eq!(create().expect(400).blamed(), ["spec_id"]);
}

fn a_change_is_seen_by_the_other_server(kind: Kind) {
    let house = House::new(kind);
    let (one, two) = (house.serve(&[]), house.serve(&[]));
    let admin = one.admin();
    let ann = admin.member("ann");
    let (here, there) = (ann.clone(), ann.at(&two.base));
    let id = here.space("x", "files");
    assert_eq!(template_of(&there, &id), "Files");
    let other_admin = admin.at(&two.base);
    for i in 0..20 {
        let (writer, reader) = if i % 2 == 0 { (&admin, &there) } else { (&other_admin, &here) };
        let name = format!("Files {i}");
        writer.put("/templates/files", &json!({"name": name})).expect(200);
        assert_eq!(reader.get("/spaces").of("spaces")[0]["template"], json!(name), "in the list");
        assert_eq!(template_of(reader, &id), json!(name), "in the row");
        assert_eq!(reader.get("/templates/files").of("template")["name"], json!(name));
        writer.put("/kinds/builtin", &json!({"name": name})).expect(200);
        assert_eq!(reader.get("/templates/files").of("template")["kind"], json!(name));
        writer.put("/templates/files", &json!({"enabled": false})).expect(200);
        reader.create_space("y", "files").refused(400, "TemplateDisabledError");
        writer.put("/templates/files", &json!({"enabled": true})).expect(200);
        let made = key(&reader.create_space("y", "files").expect(201).of("space"), "id");
        reader.delete(&format!("/spaces/{made}")).expect(200);
    }
    // A space of one is the other's too.
    admin.put("/templates/files", &json!({"name": "Files"})).expect(200);
    let template = admin.serving_template();
    let space = there.running_space("both", &template);
    assert_eq!(here.read_space(&key(&space, "id"))["status"], "running");
    here.get(&key(&space, "url")).expect(200);
    here.stop(&key(&space, "id"));
    there.get(&key(&space, "url")).refused(409, "SpaceStoppedError");
}

fn a_token_revoked_at_one_server_dies_at_the_other(kind: Kind) {
    let house = House::new(kind);
    let (one, two) = (house.serve(&[]), house.serve(&[]));
    let admin = one.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let (ann_there, bob_there) = (ann.at(&two.base), bob.at(&two.base));
    ann_there.get("/spaces").expect(200);
    let token = ann.token.clone().unwrap();
    ann.send("DELETE", "/v3/auth/tokens", &[("X-Subject-Token", &token)], None).expect(204);
    until("it is dead there too", Duration::from_secs(2), || {
        (ann_there.get("/spaces").status == 401).then_some(())
    });
    bob_there.get("/spaces").expect(200);
    admin.put("/users/bob", &json!({"enabled": false})).expect(200);
    until("he is out there too", Duration::from_secs(2), || {
        (bob_there.get("/spaces").status == 401).then_some(())
    });
    admin.at(&two.base).get("/spaces").expect(200);
}

/// While one switches a template off and on, others make spaces of it: each
/// create that comes after the answer to a switch knows of it.
fn creates_and_switching_off_agree(kind: Kind) {
    let house = House::new(kind);
    let (one, two) = (house.serve(&["--max-spaces", "1000"]), house.serve(&["--max-spaces", "1000"]));
    let admin = one.admin();
    let clients: Vec<_> =
        (0..4).map(|i| if i % 2 == 0 { admin.clone() } else { admin.at(&two.base) }).collect();
    for round in 0..5 {
        // At the same moment: either is right.
        let answers = at_once(5, |i| match clients.get(i) {
            Some(client) => client.create_space(&format!("{round} {i}"), "files"),
            None => admin.put("/templates/files", &json!({"enabled": false})),
        });
        assert_eq!(answers[4].status, 200, "{}", answers[4].text());
        for answer in &answers[..4] {
            assert!(
                answer.status == 201 || answer.json()["class"] == "TemplateDisabledError",
                "{}",
                answer.text()
            );
        }
        // After it: refused, everywhere.
        for answer in at_once(4, |i| clients[i].create_space(&format!("late {round} {i}"), "files")) {
            answer.refused(400, "TemplateDisabledError");
        }
        admin.put("/templates/files", &json!({"enabled": true})).expect(200);
    }
    // A template goes, or a space comes that keeps it: never both.
    for round in 0..5 {
        let id = admin.serving_template();
        let answers = at_once(2, |i| match i {
            0 => clients[1].create_space(&format!("last {round}"), &id),
            _ => admin.delete(&format!("/templates/{id}")),
        });
        let (made, gone) = (answers[0].status == 201, answers[1].status == 200);
        assert!(made != gone, "{} {}", answers[0].text(), answers[1].text());
        if made {
            answers[1].clone().refused(409, "ResourceInUseError");
            admin.delete(&format!("/spaces/{}", key(&answers[0].of("space"), "id"))).expect(200);
            admin.delete(&format!("/templates/{id}")).expect(200);
        } else {
            assert_eq!(answers[0].blamed(), ["template_id"]);
        }
    }
}

fn limits_hold_over_two_servers(kind: Kind) {
    let house = House::new(kind);
    let (one, two) = (house.serve(&[]), house.serve(&[]));
    let admin = one.admin();
    let template = admin.serving_template();
    let ann = admin.member("ann");
    let both = [ann.clone(), ann.at(&two.base)];
    let won = |answers: &[crate::harness::Answer], status: u16| {
        answers.iter().filter(|it| it.status == status).count()
    };
    let answers = at_once(20, |i| both[i % 2].create_space("the name", &template));
    assert_eq!(won(&answers, 201), 1);
    let answers = at_once(30, |i| both[i % 2].create_space(&format!("space {i}"), &template));
    assert_eq!(won(&answers, 201), 19);
    for lost in answers.iter().filter(|it| it.status != 201) {
        lost.clone().refused(409, "SpaceLimitError");
    }
    let ids: Vec<_> =
        ann.get("/spaces?limit=4").of("spaces").as_array().unwrap().iter().map(|it| key(it, "id")).collect();
    let answers = at_once(4, |i| both[i % 2].act(&ids[0], "start"));
    assert_eq!(won(&answers, 202), 1);
    ann.wait_for(&ids[0], &["running"]);
    ann.stop(&ids[0]);
    let answers = at_once(4, |i| both[i % 2].act(&ids[i], "start"));
    assert_eq!(won(&answers, 202), 1);
    for lost in answers.iter().filter(|it| it.status != 202) {
        lost.clone().refused(409, "OtherSpaceRunningError");
    }
}
