//! The whole story, from an empty folder to bytes from a running program and
//! back to nothing.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{House, Kind, body, key, programs, until};

on_each_database!(
    a_newcomer_gets_from_the_first_start_to_an_open_space_and_back,
    the_made_up_password_is_shown_once,
    an_administrator_adds_a_program_of_their_own,
);

/// The generated password in what a server said.
fn password(said: &str) -> Option<String> {
    let line = said.lines().find(|it| it.contains("user admin"))?;
    Some(line.rsplit("password ").next()?.trim().to_owned())
}

fn the_made_up_password_is_shown_once(kind: Kind) {
    let house = House::new(kind);
    let first = house.setup(&[]).env("PODYARD_ADMIN_PASSWORD", None).start();
    let given = password(&first.said()).unwrap_or_else(|| panic!("no password in {:?}", first.said()));
    assert_eq!(first.said().matches(&given).count(), 1, "{}", first.said());
    assert!(!first.logged().contains(&given), "the password is in the log");
    first.client().login("admin", &given);
    first.end();
    let second = house.setup(&[]).env("PODYARD_ADMIN_PASSWORD", None).start();
    assert_eq!(password(&second.said()), None, "{}", second.said());
    second.client().login("admin", &given);
}

fn a_newcomer_gets_from_the_first_start_to_an_open_space_and_back(kind: Kind) {
    let house = House::new(kind);
    let server = house.setup(&[]).env("PODYARD_ADMIN_PASSWORD", None).start();
    let given = password(&server.said()).unwrap();

    // Logging in, in Keystone's shape.
    let answer = server.client().try_login("admin", &given).expect(201);
    let token = answer.header("x-subject-token").to_owned();
    assert!(!token.is_empty());
    let told = answer.json()["token"].clone();
    assert_eq!(told["methods"], json!(["password"]));
    assert_eq!((&told["user"]["name"], &told["project"]["name"]), (&json!("admin"), &json!("admin")));
    assert_eq!(told["user"]["domain"], json!({"id": "default", "name": "Default"}));
    assert_eq!(told["project"]["domain"]["id"], "default");
    assert!(told["roles"].as_array().unwrap().iter().any(|it| it["name"] == "admin"), "{told}");
    let (issued, expires) = (key(&told, "issued_at"), key(&told, "expires_at"));
    assert!(issued < expires && issued.ends_with('Z') && issued.len() == 27, "{issued} {expires}");
    assert!(told["audit_ids"][0].is_string() && told["catalog"].is_array(), "{told}");
    assert!(!answer.text().contains(&given), "the password comes back");

    // Both headers work.
    let client = server.client();
    client.send("GET", "/kinds", &[("X-Auth-Token", &token)], None).expect(200);
    client.send("GET", "/kinds", &[("Authorization", &format!("Bearer {token}"))], None).expect(200);
    let admin = client.with_token(&token);

    // There is something to choose from.
    let rows =
        |plural: &str| admin.get(&format!("/{plural}")).expect(200).of(plural).as_array().unwrap().clone();
    assert!(rows("kinds").len() >= 3);
    let specs = rows("specs");
    assert!(specs.len() >= 4);
    for spec in &specs {
        assert!(!key(spec, "name").is_empty() && !key(spec, "cpu").is_empty(), "{spec}");
        assert!(key(spec, "memory").ends_with("Gi") && key(spec, "storage").ends_with("Gi"), "{spec}");
    }
    let templates = rows("templates");
    let named =
        |name: &str| templates.iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let files = named("Files");
    assert_eq!((&files["available"], &files["kind"]), (&json!(true), &json!("Built-in")), "{files}");
    for (name, program) in [("code-server", "code-server"), ("JupyterLab", "jupyter-lab")] {
        let template = named(name);
        match template["available"].as_bool() {
            Some(true) => {}
            Some(false) => assert!(key(template, "unavailable_reason").contains(program), "{template}"),
            None => panic!("{template}"),
        }
    }

    // A member.
    let user = json!({"name": "ann", "password": "correct horse battery"});
    let made = admin.post("/users", &body("user", user)).expect(201);
    assert_eq!(made.of("user")["role"], "member");
    assert!(!made.text().contains("correct horse") && !made.text().contains("argon2"), "{}", made.text());
    let ann = client.login("ann", "correct horse battery");

    // A space: a row at first.
    let made = ann.create_space("first", &key(files, "id")).expect(201);
    let space = made.of("space");
    let id = key(&space, "id");
    assert_eq!(made.header("location"), format!("/spaces/{id}"));
    assert_eq!((&space["status"], &space["running"]), (&json!("stopped"), &json!(false)));
    assert_eq!((&space["template"], &space["spec"]), (&json!("Files"), &json!("Test")));
    ann.get(made.header("location")).expect(200);
    let url = key(&space, "url");
    assert_eq!(url, format!("/ws/{}/", key(&space, "sid")));
    ann.get(&url).refused(409, "SpaceStoppedError");

    // It starts.
    let started = ann.act(&id, "start").expect(202);
    let task_id = key(&started.json(), "task_id");
    assert_eq!(started.header("location"), format!("/tasks/{task_id}"));
    assert_eq!(started.of("space")["status"], "starting");
    let space = ann.wait_for(&id, &["running"]);
    assert!(space["started_at"].is_string() && space["running"] == true, "{space}");
    let task = ann.get(&format!("/tasks/{task_id}")).expect(200).of("task");
    assert_eq!((&task["status"], &task["obj_id"]), (&json!("done"), &json!(id)), "{task}");
    let stages: Vec<_> =
        task["history"].as_array().unwrap().iter().filter_map(|it| it["stage"].as_str()).collect();
    assert_eq!(stages, ["on_init", "on_started"], "{task}");
    let list = ann.get("/spaces").expect(200).of("spaces");
    assert_eq!(
        (&list[0]["template"], &list[0]["spec"], &list[0]["running"]),
        (&json!("Files"), &json!("Test"), &json!(true))
    );

    // It opens, and keeps what is written in it.
    let page = ann.send("GET", &url, &[("Accept", "text/html")], None).expect(200);
    assert!(page.text().contains("<html"), "{}", page.text());
    let file = format!("{url}api/file?path=hello.txt");
    let text = "bytes that a person wrote\n".repeat(1000);
    let headers = [("X-Podyard-Files", "1"), ("If-None-Match", "*")];
    ann.send("PUT", &file, &headers, Some(text.as_bytes())).expect(201);
    assert_eq!(ann.get(&file).expect(200).json()["text"], text);
    let download = format!("{url}api/download?path=hello.txt");
    assert_eq!(ann.get(&download).expect(200).text(), text);
    let log = ann.get(&format!("/spaces/{id}/log")).expect(200).of("space");
    assert!(log["log"].is_string(), "{log}");

    // It restarts as another process with the same files.
    let before = programs(&id);
    assert_eq!(before.len(), 1);
    ann.act(&id, "restart").expect(202);
    ann.wait_for(&id, &["running"]);
    let after = programs(&id);
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    assert_eq!(ann.get(&download).expect(200).text(), text);

    // It has another name.
    let renamed = ann.put(&format!("/spaces/{id}"), &body("space", json!({"name": "second"}))).expect(200);
    assert_eq!(renamed.of("space")["name"], "second");
    assert_eq!(ann.get("/spaces/second").expect(200).of("space")["id"], json!(id));
    ann.get("/spaces/first").refused(404, "ResourceNotFoundError");

    // It cannot go while it runs; then it stops, and goes.
    ann.delete(&format!("/spaces/{id}")).refused(409, "SpaceIsRunningError");
    let stopped = ann.act(&id, "stop").expect(202);
    assert_eq!(stopped.of("space")["status"], "stopping");
    let space = ann.wait_for(&id, &["stopped"]);
    assert!(space["stopped_at"].is_string() && space["running"] == false, "{space}");
    assert_eq!(programs(&id), Vec::<i32>::new());
    let folder = house.data_dir().join("spaces").join(&id);
    assert!(folder.is_dir(), "no {}", folder.display());
    ann.delete(&format!("/spaces/{id}")).expect(200);
    ann.get(&format!("/spaces/{id}")).refused(404, "ResourceNotFoundError");
    ann.get(&url).refused(404, "ResourceNotFoundError");
    assert_eq!(ann.get("/spaces").of("spaces"), json!([]));
    until("its files are gone", Duration::from_secs(10), || (!folder.exists()).then_some(()));
    server.end();
}

fn an_administrator_adds_a_program_of_their_own(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let ann = admin.member("ann");
    // Members see that it is there, but not how it is started.
    let seen = ann.get(&format!("/templates/{template}")).expect(200).of("template");
    assert_eq!((&seen["available"], &seen["command"]), (&json!(true), &Value::Null), "{seen}");
    let space = ann.running_space("mine", &template);
    let url = key(&space, "url");
    let told = ann.get(&format!("{url}a/b?c=d")).expect(200).json();
    assert_eq!((&told["path"], &told["method"]), (&json!("/a/b?c=d"), &json!("GET")));
    assert_eq!(told["pid"], json!(programs(&key(&space, "id"))[0]));
    let told = ann.send("POST", &format!("{url}x"), &[], Some(b"some bytes")).expect(200).json();
    assert_eq!((&told["method"], &told["body"]), (&json!("POST"), &json!("some bytes")));
    let log = ann.get(&format!("/spaces/{}/log", key(&space, "id"))).expect(200).of("space");
    assert!(key(&log, "log").contains("listening on "), "{log}");
    let log = ann.get(&format!("/spaces/{}/log?bytes=4", key(&space, "id"))).expect(200).of("space");
    assert_eq!(key(&log, "log").len(), 4, "{log}");
}
