//! How many statements each request takes, as its answer says. These are
//! promises: more is a regression, whatever the clock says.

use serde_json::json;

use crate::harness::{Client, House, Kind, key};

on_each_database!(each_request_takes_few_statements, a_list_takes_as_many_for_one_row_as_for_twenty);

/// Checks an answer against a promise, and goes on: all that breaks one is
/// told at the end.
struct Promises(std::cell::RefCell<Vec<String>>);

impl Promises {
    fn most(&self, answer: &crate::harness::Answer, most: u32) {
        let n = answer.statements();
        eprintln!("{}: {n} of {most}", answer.asked);
        if n > most {
            self.0
                .borrow_mut()
                .push(format!("{} takes {n} statements, at most {most} are promised", answer.asked));
        }
    }
}

fn each_request_takes_few_statements(kind: Kind) {
    let promises = Promises(Vec::new().into());
    let most = |answer: &crate::harness::Answer, n| promises.most(answer, n);
    let house = House::new(kind);
    let server = house.serve(&["--max-running", "0"]);
    let admin = server.admin();
    let template = admin.serving_template();
    let ann = admin.member("ann");
    // What is kept in memory is read at its first use after a change, once.
    let first = ann.space("before", &template);
    let _ = (ann.get("/spaces").expect(200), ann.get("/templates").expect(200));
    ann.delete(&format!("/spaces/{first}")).expect(200);
    for client in [&admin, &ann] {
        for round in ["first", "second"] {
            let made = client.create_space(&format!("plain {round}"), &template).expect(201);
            most(&made, 5);
            let plain = key(&made.of("space"), "id");
            let fields = json!({"name": format!("auto {round}"), "template_id": template, "spec_id": "test", "auto_start": true});
            let made = client.post("/spaces", &fields).expect(201);
            most(&made, 5);
            let auto = key(&made.of("space"), "id");
            client.wait_for(&auto, &["running"]);
            for path in [
                "/spaces",
                "/spaces?limit=1",
                "/spaces?search=plain&order_by=name",
                "/templates",
                "/specs",
                "/kinds",
                "/users",
                "/tasks",
            ] {
                most(&client.get(path).expect(200), 1);
            }
            for path in
                [format!("/spaces/{plain}"), "/templates/files".into(), "/specs/test".into(), "/users".into()]
            {
                most(&client.get(&path).expect(200), 1);
            }
            most(
                &client
                    .put(&format!("/spaces/{plain}"), &json!({"name": format!("renamed {round}")}))
                    .expect(200),
                4,
            );
            for (action, status) in [("start", "running"), ("restart", "running"), ("stop", "stopped")] {
                most(&client.act(&plain, action).expect(202), 6);
                client.wait_for(&plain, &[status]);
            }
            most(&client.delete(&format!("/spaces/{plain}")).expect(200), 4);
            client.stop(&auto);
            client.delete(&format!("/spaces/{auto}")).expect(200);
        }
    }
    for round in 0..2 {
        let fields = json!({"name": format!("spec {round}"), "cpu": "1", "memory": "1Gi", "storage": "1Gi"});
        let made = admin.post("/specs", &fields).expect(201);
        most(&made, 5);
        let path = format!("/specs/{}", key(&made.of("spec"), "id"));
        most(&admin.put(&path, &json!({"cpu": "2"})).expect(200), 4);
        most(&admin.delete(&path).expect(200), 4);
    }
    let broken = promises.0.take();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The token check takes no statement: what is refused by it asks nothing,
/// and what is let in takes as many however the token comes.
fn same_by_either_header(client: &Client, path: &str) -> u32 {
    let token = client.token.clone().unwrap();
    let one = client.get(path).expect(200).statements();
    let bearer = format!("Bearer {token}");
    let two = client.nobody().send("GET", path, &[("Authorization", &bearer)], None).expect(200).statements();
    assert_eq!(one, two, "{path}");
    one
}

fn a_list_takes_as_many_for_one_row_as_for_twenty(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "100"]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let count = |client: &Client, path: &str| same_by_either_header(client, path);
    ann.space("0", "files");
    let before = [count(&ann, "/spaces"), count(&admin, "/spaces"), count(&ann, "/spaces?details=total")];
    for i in 1..20 {
        ann.space(&i.to_string(), "files");
    }
    assert_eq!(ann.get("/spaces").of("spaces").as_array().unwrap().len(), 20);
    let after = [count(&ann, "/spaces"), count(&admin, "/spaces"), count(&ann, "/spaces?details=total")];
    assert_eq!(before, after);
    assert_eq!(after, [1, 1, 2]);
    assert_eq!(count(&ann, "/spaces?limit=5"), 1);
}
