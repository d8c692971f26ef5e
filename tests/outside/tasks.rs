//! Tasks, as those see them who wait for them.

use serde_json::{Value, json};

use crate::harness::{Client, HELPER, House, Kind, key, programs, until};

on_each_database!(
    a_task_tells_what_it_did,
    a_start_can_be_cancelled,
    callbacks_take_the_right_token,
    a_failed_task_can_be_retried,
    a_worker_process_takes_its_share,
);

fn start(client: &Client, id: &str) -> String {
    key(&client.act(id, "start").expect(202).json(), "task_id")
}

fn a_task_tells_what_it_did(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let id = ann.space("mine", "files");
    let task = start(&ann, &id);
    ann.wait_for(&id, &["running"]);
    let told = ann.wait_for_task(&task);
    for (name, value) in [
        ("id", json!(task)),
        ("task_name", json!("space-start")),
        ("obj_type", json!("space")),
        ("obj_id", json!(id)),
        ("obj_name", json!("mine")),
        ("status", json!("done")),
        ("cancel_requested", json!(false)),
        ("reason", json!("")),
    ] {
        assert_eq!(told[name], value, "{name} in {told}");
    }
    assert!(told["created_at"].as_str() <= told["ended_at"].as_str(), "{told}");
    let history = told["history"].as_array().unwrap();
    assert_eq!((&history[0]["what"], &history[0]["by"]), (&json!("created"), &json!("ann")), "{told}");
    let attempts: Vec<_> = history.iter().filter(|it| it["what"] == "attempt").collect();
    assert!(!attempts.is_empty(), "{told}");
    for entry in attempts {
        assert!(entry["stage"].is_string() && entry["attempt"].is_number(), "{entry}");
        assert!(entry["started_at"].is_string() && entry["ended_at"].is_string(), "{entry}");
        assert!(entry["outcome"].is_string(), "{entry}");
    }
    for hidden in ["secret", "user_cred", "params", "worker_id", "active_key", "epoch"] {
        assert!(told.get(hidden).is_none(), "{hidden} in {told}");
    }
    let seen = admin.get(&format!("/tasks/{task}")).expect(200).of("task");
    assert!(
        seen.get("params").is_some() && seen.get("secret").is_none() && seen.get("user_cred").is_none(),
        "{seen}"
    );
    // In lists: the own ones only, by whatever can be asked.
    let ids = |client: &Client, query: &str| -> Vec<Value> {
        let rows = client.get(&format!("/tasks{query}")).expect(200).of("tasks");
        rows.as_array().unwrap().iter().map(|it| it["id"].clone()).collect()
    };
    let stop = key(&ann.act(&id, "stop").expect(202).json(), "task_id");
    ann.wait_for_task(&stop);
    let his = bob.space("his", "files");
    let his = start(&bob, &his);
    bob.wait_for_task(&his);
    assert_eq!(ids(&ann, ""), [json!(stop), json!(task)], "the newest first");
    assert_eq!(ids(&bob, ""), [json!(his)]);
    assert_eq!(ids(&admin, "").len(), 3);
    assert_eq!(ids(&ann, "?task_name=space-stop"), [json!(stop)]);
    assert_eq!(
        ids(&ann, &format!("?obj_id={id}&status=done&order_by=created_at")),
        [json!(task), json!(stop)]
    );
    assert_eq!(ids(&ann, "?status=running&status=failed"), Vec::<Value>::new());
    // A task is not made or changed by hand.
    for (method, path) in [
        ("POST", "/tasks".to_owned()),
        ("PUT", format!("/tasks/{task}")),
        ("DELETE", format!("/tasks/{task}")),
    ] {
        let answer = admin.send(method, &path, &[], (method != "DELETE").then_some(b"{}"));
        assert!([403, 405].contains(&answer.status), "{}: {}", answer.asked, answer.text());
    }
}

fn a_start_can_be_cancelled(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let deaf = admin.template("Deaf", &[HELPER, "deaf", "{port}"]);
    let ann = admin.member("ann");
    let id = ann.space("mine", &deaf);
    // As soon as it is asked for, and when its program runs already.
    for wait in [false, true, true] {
        let task = start(&ann, &id);
        if wait {
            until("its program runs", std::time::Duration::from_secs(10), || {
                (programs(&id).len() == 1).then_some(())
            });
        }
        ann.act(&id, "start").refused(409, "SpaceIsRunningError");
        ann.act(&id, "stop").expect(409);
        ann.delete(&format!("/spaces/{id}")).expect(409);
        let cancel = format!("/tasks/{task}/cancel");
        ann.send("POST", &cancel, &[], Some(b"")).expect(200);
        let told = ann.wait_for_task(&task);
        assert_eq!(
            (&told["status"], &told["reason_kind"]),
            (&json!("cancelled"), &json!("cancelled")),
            "{told}"
        );
        assert!(key(&told, "reason").contains("cancelled"), "{told}");
        let space = ann.wait_for(&id, &["stopped"]);
        assert_eq!(space["running"], false);
        assert_eq!(programs(&id), Vec::<i32>::new());
        ann.send("POST", &cancel, &[], Some(b"")).refused(409, "TaskEndedError");
    }
    // One that is done cannot be cancelled either.
    let other = ann.space("other", "files");
    let task = start(&ann, &other);
    ann.wait_for_task(&task);
    ann.send("POST", &format!("/tasks/{task}/cancel"), &[], Some(b"")).refused(409, "TaskEndedError");
    assert_eq!(ann.read_space(&other)["status"], "running");
}

fn callbacks_take_the_right_token(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let deaf = admin.template("Deaf", &[HELPER, "deaf", "{port}"]);
    let id = admin.space("mine", &deaf);
    let task = start(&admin, &id);
    until("it waits", std::time::Duration::from_secs(10), || {
        (admin.get(&format!("/tasks/{task}")).of("task")["status"] == "waiting").then_some(())
    });
    let path = format!("/tasks/{task}/callback");
    for token in ["", "x", &format!("{task}.2.AAAAAAAAAAAAAAAAAAAAAA"), &format!("{task}.1.")] {
        admin.post(&path, &json!({"token": token, "data": "Ready"})).expect(404);
    }
    assert_eq!(admin.post(&path, &json!({"data": 1})).expect(400).blamed(), ["token"]);
    assert_eq!(admin.post(&path, &json!({"token": "x", "more": 1})).expect(400).blamed(), ["more"]);
    assert_eq!(admin.read_space(&id)["status"], "starting");
    admin.send("POST", &format!("/tasks/{task}/cancel"), &[], Some(b"")).expect(200);
    admin.wait_for(&id, &["stopped"]);
}

fn a_failed_task_can_be_retried(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    // It fails until there is a file in its folder.
    let script = "[ -e now ] && exec \"$0\" serve \"$PODYARD_PORT\"; touch now; exit 3";
    let template = admin.template("Second time", &["sh", "-c", script, HELPER]);
    let ann = admin.member("ann");
    let id = ann.space("mine", &template);
    let task = start(&ann, &id);
    assert_eq!(ann.wait_for_task(&task)["status"], "failed");
    let retry = format!("/tasks/{task}/retry");
    ann.send("POST", &retry, &[], Some(b"")).refused(403, "ForbiddenError");
    admin.send("POST", &retry, &[], Some(b"")).expect(200);
    let told = ann.wait_for_task(&task);
    // Whatever a retry makes of it, task and space must say the same.
    let space = ann.wait_for(&id, &["running", "start_failed"]);
    let agree = (told["status"] == "done") == (space["status"] == "running");
    assert!(agree && programs(&id).len() == usize::from(space["running"] == true), "{told} {space}");
    if told["status"] == "done" {
        admin.send("POST", &retry, &[], Some(b"")).refused(409, "TaskNotFailedError");
    }
}

fn a_worker_process_takes_its_share(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-running", "0", "--task-slots", "1"]);
    let mut worker = house.command();
    worker.args(["worker", "--task-lease", "2", "--max-running", "0"]);
    let log = std::fs::File::create(house.folder().join("worker.log")).unwrap();
    worker.stdout(std::process::Stdio::null()).stderr(log);
    let mut worker = worker.spawn().unwrap();
    let admin = server.admin();
    let template = admin.serving_template();
    let ids: Vec<_> = (0..6).map(|i| admin.space(&format!("space {i}"), &template)).collect();
    let tasks: Vec<_> = ids.iter().map(|id| start(&admin, id)).collect();
    for (id, task) in ids.iter().zip(&tasks) {
        let told = admin.wait_for_task(task);
        assert_eq!(told["status"], "done", "{told}");
        let space = admin.wait_for(id, &["running"]);
        admin.get(&key(&space, "url")).expect(200);
        assert_eq!(programs(id).len(), 1);
    }
    let pid = i32::try_from(worker.id()).unwrap();
    crate::harness::kill(pid, rustix::process::Signal::TERM);
    let ended = until("the worker ends", std::time::Duration::from_secs(20), || worker.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
}
