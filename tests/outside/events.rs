//! `GET /events`: who did what to which object, from where, and what changed;
//! told to those whom it concerns.

use serde_json::{Value, json};

use crate::harness::{Client, House, Kind, body, key, until};

on_each_database!(
    the_audit_says_who_did_what_from_where,
    the_audit_is_for_those_whom_it_concerns,
    notes_hide_what_the_type_hides,
    a_write_takes_no_more_statements_while_somebody_watches,
);

#[track_caller]
fn events(client: &Client, query: &str) -> Vec<Value> {
    client.get(&format!("/events?{query}")).expect(200).of("events").as_array().unwrap().clone()
}

fn actions(events: &[Value]) -> Vec<String> {
    events.iter().map(|it| key(it, "action")).collect()
}

fn the_audit_says_who_did_what_from_where(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--trust-forwarded"]);
    let admin = server.admin();
    let template = admin.serving_template();
    let ann = admin.member("ann");
    let id = ann.space("one", &template);
    let headers = [
        ("Content-Type", "application/json"),
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Request-Id", "my-request"),
    ];
    let new = json!({"name": "two", "description": "better"}).to_string();
    ann.send("PUT", &format!("/spaces/{id}"), &headers, Some(new.as_bytes())).expect(200);
    let task = key(&ann.act(&id, "start").expect(202).json(), "task_id");
    ann.wait_for(&id, &["running"]);
    ann.stop(&id);
    ann.delete(&format!("/spaces/{id}")).expect(200);
    let all = until("its tasks have ended", std::time::Duration::from_secs(20), || {
        let all = events(&ann, &format!("obj_id={id}"));
        actions(&all).contains(&"space-delete".into()).then_some(all.clone()).or(Some(all))
    });
    let order = actions(&all);
    let expected = ["delete", "space-stop", "stop", "space-start", "start", "update", "create"];
    let known: Vec<_> = order.iter().filter(|it| *it != "space-delete").collect();
    assert_eq!(known, expected, "the newest first");
    let of = |action: &str| all.iter().find(|it| it["action"] == action).unwrap().clone();
    let update = of("update");
    assert_eq!(
        update["notes"],
        json!({
            "name": {"old": "one", "new": "two"}, "description": {"old": "", "new": "better"},
        })
    );
    let user_id = ann.user_id();
    for (field, value) in [
        ("client_ip", "203.0.113.9"),
        ("request_id", "my-request"),
        ("user_name", "ann"),
        ("user_id", &user_id),
        ("owner_user_id", &user_id),
        ("obj_type", "space"),
        ("obj_name", "two"),
        ("domain_id", "default"),
        ("owner_domain_id", "default"),
        ("task_id", ""),
    ] {
        assert_eq!(update[field], value, "{field} of {update}");
    }
    assert_eq!((&update["obj_version"], &update["version"]), (&json!(2), &json!(2)));
    assert_eq!(of("create")["client_ip"], "127.0.0.1");
    assert_eq!(of("create")["notes"]["name"], json!({"new": "one"}));
    let by_task = of("space-start");
    assert_eq!((&by_task["task_id"], &by_task["user_name"]), (&json!(task), &json!("ann")), "{by_task}");
    assert_eq!(by_task["notes"]["status"], json!({"old": "starting", "new": "running"}));
    assert!(by_task["notes"]["started_at"]["new"].as_str().unwrap().ends_with('Z'), "{by_task}");
    assert_eq!(of("delete")["notes"]["description"], json!({"old": "better"}), "what it was, for good");
    // One of them, and filters by each.
    let one = ann.get(&format!("/events/{}", key(&update, "id"))).expect(200).of("event");
    assert_eq!(one, update);
    for (query, n) in [
        (format!("obj_id={id}&action=update"), 1),
        (format!("obj_id={id}&action=update&action=create"), 2),
        ("request_id=my-request".into(), 1),
        ("client_ip=203.0.113.9".into(), 1),
        (format!("task_id={task}"), 1),
        (format!("obj_type=space&user_id={user_id}&obj_name=two&action=delete"), 1),
        ("obj_type=template".into(), 0),
        ("search=TWO&action=update".into(), 1),
    ] {
        assert_eq!(events(&ann, &query).len(), n, "{query}");
    }
    // Pages.
    let mut path = format!("/events?obj_id={id}&limit=2");
    let mut paged = Vec::new();
    loop {
        let page = ann.get(&path).expect(200).json();
        paged.extend(page["events"].as_array().unwrap().clone());
        let Some(marker) = page["next_marker"].as_str() else { break };
        path = format!("/events?obj_id={id}&limit=2&marker={marker}");
    }
    assert_eq!(actions(&paged).iter().filter(|it| *it != "space-delete").collect::<Vec<_>>(), expected);
    // It cannot be written.
    ann.post("/events", &body("event", json!({}))).refused(403, "ForbiddenError");
    admin.delete(&format!("/events/{}", key(&update, "id"))).refused(403, "ForbiddenError");
    // The history of a row.
    let other = ann.space("other", &template);
    let history = ann.get("/spaces/other/events").expect(200).of("events");
    assert_eq!(actions(history.as_array().unwrap()), ["create"]);
    assert_eq!(history[0]["obj_id"], json!(other));
    assert_eq!(ann.get("/spaces/other/events?obj_id=x").expect(400).blamed(), ["obj_id"]);
    ann.get("/spaces/none/events").refused(404, "ResourceNotFoundError");
}

fn the_audit_is_for_those_whom_it_concerns(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let id = ann.space("hers", "files");
    let all = events(&ann, "");
    let record = key(&all[0], "id");
    assert_eq!(actions(&all), ["create"], "only her own");
    assert!(events(&bob, "").is_empty());
    assert!(events(&bob, &format!("obj_id={id}")).is_empty());
    assert!(events(&bob, &format!("user_id={}", ann.user_id())).is_empty());
    bob.get(&format!("/events/{record}")).refused(404, "ResourceNotFoundError");
    bob.get(&format!("/spaces/{id}/events")).refused(404, "ResourceNotFoundError");
    bob.nobody().get("/events").refused(401, "UnauthorizedError");
    // An administrator's hand on what is hers is hers to know.
    admin.put(&format!("/spaces/{id}"), &json!({"description": "seen by admin"})).expect(200);
    let hers = events(&ann, "action=update");
    assert_eq!((hers.len(), &hers[0]["user_name"]), (1, &json!("admin")));
    // Administrators see all.
    let types: Vec<_> = events(&admin, "limit=1000").iter().map(|it| key(it, "obj_type")).collect();
    for wanted in ["space", "user", "project", "domain", "template"] {
        assert!(types.iter().any(|it| it == wanted), "{wanted}: {types:?}");
    }
    assert_eq!(events(&admin, &format!("obj_id={id}")).len(), 2);
    // A refused request changed nothing and is not in it.
    let before = events(&admin, "limit=1000").len();
    bob.put(&format!("/spaces/{id}"), &json!({"description": "mine now"})).expect(404);
    ann.post("/templates", &body("template", json!({"name": "x"}))).expect(403);
    ann.try_login("ann", "wrong");
    assert_eq!(events(&admin, "limit=1000").len(), before);
}

fn notes_hide_what_the_type_hides(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let ann = admin.member("ann");
    let id = key(&ann.running_space("one", &template), "id");
    let started = |client: &Client| {
        events(client, &format!("obj_id={id}&action=space-start")).remove(0)["notes"].clone()
    };
    let (hers, all) = (started(&ann), started(&admin));
    assert!(hers.get("node").is_none(), "the node is for administrators: {hers}");
    assert!(all["node"]["new"].is_string(), "{all}");
    assert_eq!(hers["status"], all["status"]);
    assert!(hers.get("changes").is_none());
    // What nobody may read is not even there for administrators.
    let created = events(&admin, "obj_type=user&action=create");
    let of_ann = created.iter().find(|it| it["obj_name"] == "ann").unwrap();
    assert!(
        of_ann["notes"].get("password_hash").is_none() && !of_ann.to_string().contains("argon2"),
        "{of_ann}"
    );
    let asked = admin.get("/events?field=changes").expect(400);
    assert_eq!(asked.blamed(), ["field"]);
    let bare = events(&ann, &format!("obj_id={id}&field=id,action"));
    assert!(bare[0].get("notes").is_none());
}

fn a_write_takes_no_more_statements_while_somebody_watches(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "100"]);
    let ann = server.admin();
    let count = |round: &str| {
        let made = ann.create_space(round, "files").expect(201);
        let id = key(&made.of("space"), "id");
        let changed = ann.put(&format!("/spaces/{id}"), &json!({"description": round})).expect(200);
        let deleted = ann.delete(&format!("/spaces/{id}")).expect(200);
        [made.statements(), changed.statements(), deleted.statements()]
    };
    count("warm");
    let before = count("before");
    let answer = std::thread::scope(|scope| {
        let client = ann.clone();
        scope.spawn(move || {
            // Ends with the server; what it says is another test's.
            let _ = client.try_send("GET", "/spaces?watch=true", &[], None);
        });
        until("it watches", std::time::Duration::from_secs(20), || {
            ann.get("/metrics").text().contains("podyard_watchers 1\n").then_some(())
        });
        let during = count("during");
        server.end();
        during
    });
    assert_eq!(answer, before);
    let one = house.serve(&[]);
    let ann = ann.at(&one.base);
    assert_eq!(ann.get("/events").expect(200).statements(), 1);
}
