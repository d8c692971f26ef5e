//! What templates say of containers, sizes that grow, and several servers that
//! see the same spaces. What a cluster does with it is shown by `clusters`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Client, HELPER, House, Kind, body, key, programs, until};

on_each_database!(
    templates_say_what_runs_them,
    bad_containers_are_refused_by_name_and_change_nothing,
    a_template_of_another_driver_cannot_be_started_here,
    repositories_are_for_containers,
    the_size_of_a_stopped_space_changes,
    a_running_space_grows_in_storage_only,
    changes_of_a_template_hold_from_the_next_start,
    a_template_has_its_own_time_to_start,
    a_start_goes_on_when_the_server_that_began_it_is_killed,
);

/// Runs the binary to its end.
fn podyard(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = std::process::Command::new(crate::harness::podyard());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|it| it.starts_with("PODYARD_") || it.starts_with("KUBE")) {
            command.env_remove(name);
        }
    }
    let output = command.args(args).stdin(std::process::Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_definition_in_the_manifests_is_made_from_the_code() {
    let (code, made, _) = podyard(&["crd"]);
    assert_eq!(code, Some(0));
    assert!(made.contains("spaces.podyard.dev"), "{made}");
    for file in ["custom-resources/crd.yaml", "chart/crds/crd.yaml"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/kubernetes").join(file);
        let kept = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(kept == made, "{file} is another one: put there what `podyard crd` prints");
    }
}

#[test]
fn the_doctor_says_what_is_missing() {
    let (code, said, error) =
        podyard(&["doctor", "kubernetes", "--kubernetes-kubeconfig", "/none/kubeconfig"]);
    assert_eq!(code, Some(1), "{said}{error}");
    assert!(said.contains("FAILED") && said.contains("/none/kubeconfig"), "{said}");
    assert!(error.contains("1 of 1 checks failed"), "{error}");
    let (code, _, error) = podyard(&["serve", "--driver", "process,docker"]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("docker") && error.contains("kubernetes"), "{error}");
}

fn container_template(admin: &Client, name: &str, container: Value) -> crate::harness::Answer {
    let fields = json!({"name": name, "kind_id": "ide", "driver": "kubernetes", "container": container});
    admin.post("/templates", &body("template", fields))
}

fn templates_say_what_runs_them(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    // Without a word the server's first driver.
    let id = admin.serving_template();
    let template = admin.get(&format!("/templates/{id}")).expect(200).of("template");
    assert_eq!(
        (&template["driver"], &template["container"]),
        (&json!("process"), &Value::Null),
        "{template}"
    );
    let space = admin.create_space("x", &id).expect(201).of("space");
    assert_eq!(space["driver"], "process");
    // A container needs no command: its image has one. It can be told of where it cannot be run.
    let container =
        json!({"image": "registry.example.org/ide:1", "port": 3000, "node_selector": {"disk": "fast"}});
    let made = container_template(&admin, "IDE", container.clone()).expect(201).of("template");
    assert_eq!((&made["container"], &made["available"]), (&container, &json!(false)), "{made}");
    assert!(key(&made, "unavailable_reason").contains("kubernetes"), "{made}");
    // A merge patch changes a part of it.
    let path = format!("/templates/{}", key(&made, "id"));
    let patch = json!({"container": {"port": null, "mount": "/home/coder"}});
    let patched = admin.send(
        "PATCH",
        &path,
        &[("Content-Type", "application/merge-patch+json")],
        Some(patch.to_string().as_bytes()),
    );
    let container = patched.expect(200).of("template")["container"].clone();
    assert_eq!(container["mount"], "/home/coder", "{container}");
    assert!(container.get("port").is_none_or(Value::is_null), "{container}");
    assert_eq!(container["image"], "registry.example.org/ide:1");
    // Members see that it is there, not how it is run.
    let ann = admin.member("ann");
    assert_eq!(ann.get(&path).expect(200).of("template")["container"], Value::Null);
    // The document tells what a container may have.
    let schema = admin.get("/openapi.json").expect(200).text();
    for word in ["pull_policy", "probe_path", "tolerationSeconds"] {
        assert!(schema.contains(word), "no {word} in the document");
    }
}

fn bad_containers_are_refused_by_name_and_change_nothing(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let count = || admin.get("/templates?details=total").expect(200).json()["total"].clone();
    let before = count();
    for (container, field) in [
        (Value::Null, "container.image"),
        (json!({}), "container.image"),
        (json!("ide"), "container"),
        (json!({"image": "i d e"}), "container.image"),
        (json!({"image": "ide", "port": 0}), "container.port"),
        (json!({"image": "ide", "port": "8080"}), "container.port"),
        (json!({"image": "ide", "pull_policy": "always"}), "container.pull_policy"),
        (json!({"image": "ide", "run_as": 0}), "container.run_as"),
        (json!({"image": "ide", "mount": "work"}), "container.mount"),
        (
            json!({"image": "ide", "tolerations": [{"key": "a", "operator": "In"}]}),
            "container.tolerations[0].operator",
        ),
        (json!({"image": "ide", "repository": {"url": "ext::sh -c x"}}), "container.repository.url"),
        (json!({"image": "ide", "patch": {"kind": "Secret"}}), "container.patch.kind"),
        (json!({"image": "ide", "privileged": true}), "container.privileged"),
    ] {
        let answer = container_template(&admin, "bad", container.clone());
        assert_eq!(answer.clone().refused(400, "InputParameterError").blamed(), [field], "{container}");
    }
    let fields = |more: Value| {
        let mut all = json!({"name": "bad", "kind_id": "ide", "command": ["true"]});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body("template", all)
    };
    for (more, field) in [
        (json!({"container": {"image": "ide"}}), "container"),
        (json!({"command": []}), "command"),
        (json!({"command": [" "]}), "command"),
        (json!({"driver": "docker"}), "driver"),
        (json!({"start_limit": 0}), "start_limit"),
        (json!({"start_limit": 86401}), "start_limit"),
        (json!({"start_limit": "soon"}), "start_limit"),
        (json!({"driver": "kubernetes", "container": {"image": "ide"}, "command": [""]}), "command"),
    ] {
        let answer = admin.post("/templates", &fields(more.clone()));
        assert_eq!(answer.refused(400, "InputParameterError").blamed(), [field], "{more}");
    }
    assert_eq!(count(), before);
    // Nor does a bad change.
    let good = container_template(&admin, "good", json!({"image": "ide"})).expect(201).of("template");
    let path = format!("/templates/{}", key(&good, "id"));
    for (change, field) in [
        (json!({"container": {"image": "ide", "port": -1}}), "container.port"),
        (json!({"container": null}), "container.image"),
        (json!({"driver": "process"}), "driver"),
    ] {
        let answer = admin.put(&path, &body("template", change));
        assert_eq!(answer.refused(400, "InputParameterError").blamed(), [field]);
    }
    let after = admin.get(&path).expect(200).of("template");
    assert_eq!((&after["container"], &after["version"]), (&json!({"image": "ide"}), &good["version"]));
}

fn a_template_of_another_driver_cannot_be_started_here(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = container_template(&admin, "IDE", json!({"image": "ide"})).expect(201).of("template");
    let space = admin.create_space("x", &key(&template, "id")).expect(201).of("space");
    assert_eq!(space["driver"], "kubernetes");
    let id = key(&space, "id");
    admin.act(&id, "start").refused(409, "TemplateUnavailableError");
    assert_eq!(admin.read_space(&id)["status"], "stopped");
    // What only the driver could tell is 503, and nothing is lost.
    admin.get(&format!("/spaces/{id}/log")).refused(503, "ServiceUnavailableError");
    admin.get(&format!("/spaces/{id}/log?follow=true")).refused(503, "ServiceUnavailableError");
    let history = admin.get(&format!("/spaces/{id}/events")).expect(200).of("events");
    assert_eq!(history[0]["action"], "create", "{history}");
}

fn repositories_are_for_containers(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let create = |template: &str, more: Value| {
        let mut fields = json!({"name": "x", "template_id": template, "spec_id": "test"});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        admin.post("/spaces", &body("space", fields))
    };
    let url = "https://git.example.org/a/b.git";
    let refused = |template: &str, more: Value, field: &str| {
        let answer = create(template, more.clone());
        assert_eq!(answer.refused(400, "InputParameterError").blamed(), [field], "{more}");
    };
    refused("files", json!({"repository": url}), "repository");
    refused("files", json!({"branch": "main"}), "branch");
    let plain = key(&container_template(&admin, "plain", json!({"image": "ide"})).of("template"), "id");
    let cloning = json!({"image": "ide", "repository": {"url": url}});
    let cloning = key(&container_template(&admin, "cloning", cloning).of("template"), "id");
    refused(&plain, json!({"branch": "main"}), "branch");
    refused(&plain, json!({"repository": "--upload-pack=x"}), "repository");
    refused(&plain, json!({"repository": "https://me:secret@git.example.org/a"}), "repository");
    refused(&plain, json!({"repository": url, "branch": "-x"}), "branch");
    let space = create(&cloning, json!({"branch": "next"})).expect(201).of("space");
    let path = format!("/spaces/{}", key(&space, "id"));
    let put = |fields: Value| admin.put(&path, &body("space", fields));
    assert_eq!(put(json!({"branch": "a..b"})).refused(400, "InputParameterError").blamed(), ["branch"]);
    let changed =
        put(json!({"repository": "git@git.example.org:a/c.git", "branch": ""})).expect(200).of("space");
    assert_eq!(
        (&changed["repository"], &changed["branch"]),
        (&json!("git@git.example.org:a/c.git"), &json!(""))
    );
}

/// Asks for another size.
fn resize(client: &Client, id: &str, spec: &str) -> crate::harness::Answer {
    client.put(&format!("/spaces/{id}"), &body("space", json!({"spec_id": spec})))
}

fn the_size_of_a_stopped_space_changes(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.space("x", "files");
    let grown = resize(&ann, &id, "standard").expect(200).of("space");
    assert_eq!((&grown["spec"], &grown["storage"]), (&json!("Standard"), &json!("8Gi")), "{grown}");
    // Its storage grows by a task; a start waits for that and is not refused.
    ann.start(&id);
    let tasks = ann.get(&format!("/tasks?obj_id={id}&task_name=space-resize")).expect(200).of("tasks");
    assert_eq!(tasks[0]["status"], "done", "{tasks}");
    ann.stop(&id);
    // It never shrinks.
    let refused = resize(&ann, &id, "test").refused(400, "StorageShrinkError");
    assert_eq!(refused.blamed(), ["spec_id"]);
    let refused = resize(&ann, &id, "none").expect(400);
    assert_eq!(refused.blamed(), ["spec_id"]);
    admin.send("POST", "/specs/enhanced/disable", &[], Some(b"")).expect(200);
    assert_eq!(resize(&ann, &id, "enhanced").refused(400, "SpecDisabledError").blamed(), ["spec_id"]);
    let after = ann.read_space(&id);
    assert_eq!((&after["spec_id"], &after["status"]), (&json!("standard"), &json!("stopped")));
    // The same storage needs no task.
    let twin = json!({"name": "twin", "cpu": "4", "memory": "4Gi", "storage": "8192Mi"});
    let twin = key(&admin.post("/specs", &body("spec", twin)).expect(201).of("spec"), "id");
    resize(&ann, &id, &twin).expect(200);
    let tasks = ann.get(&format!("/tasks?obj_id={id}&task_name=space-resize")).expect(200).of("tasks");
    assert_eq!(tasks.as_array().unwrap().len(), 1);
}

fn a_running_space_grows_in_storage_only(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let roomy = json!({"name": "roomy", "cpu": "2", "memory": "2048Mi", "storage": "9Gi"});
    let roomy = key(&admin.post("/specs", &body("spec", roomy)).expect(201).of("spec"), "id");
    let space = admin.running_space("x", "files");
    let id = key(&space, "id");
    let refused = resize(&admin, &id, "standard").refused(409, "SpaceIsRunningError");
    assert_eq!(refused.blamed(), ["spec_id"]);
    let grown = resize(&admin, &id, &roomy).expect(200).of("space");
    assert_eq!((&grown["storage"], &grown["status"]), (&json!("9Gi"), &json!("running")));
    until("its storage has grown", Duration::from_secs(10), || {
        let tasks = admin.get(&format!("/tasks?obj_id={id}&task_name=space-resize")).expect(200).of("tasks");
        (tasks[0]["status"] == "done").then_some(())
    });
    assert_eq!(admin.read_space(&id)["status"], "running");
    admin.stop(&id);
}

fn changes_of_a_template_hold_from_the_next_start(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.template("Echo", &[HELPER, "serve", "{port}"]);
    let id = key(&admin.running_space("x", &template), "id");
    let change = json!({"command": [HELPER, "exit", "7"]});
    admin.put(&format!("/templates/{template}"), &body("template", change)).expect(200);
    assert_eq!(admin.read_space(&id)["status"], "running");
    admin.stop(&id);
    admin.act(&id, "start").expect(202);
    let failed = admin.wait_for(&id, &["start_failed"]);
    assert!(key(&failed, "status_reason").contains("exit code 7"), "{failed}");
}

fn a_template_has_its_own_time_to_start(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--start-timeout", "60"]);
    let admin = server.admin();
    let template = admin.template("Deaf", &[HELPER, "deaf", "{port}"]);
    admin.put(&format!("/templates/{template}"), &body("template", json!({"start_limit": 1}))).expect(200);
    let id = admin.space("x", &template);
    let begun = Instant::now();
    admin.act(&id, "start").expect(202);
    admin.wait_for(&id, &["start_failed"]);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    until("nothing of it runs", Duration::from_secs(5), || programs(&id).is_empty().then_some(()));
}

fn a_start_goes_on_when_the_server_that_began_it_is_killed(kind: Kind) {
    let house = House::new(kind);
    let mut first = house.serve(&[]);
    let second = house.serve(&["--task-slots", "0"]);
    let admin = first.admin();
    let slow = admin.template("Slow", &[HELPER, "serve", "{port}", "3000"]);
    let id = admin.space("x", &slow);
    let task = key(&admin.act(&id, "start").expect(202).json(), "task_id");
    until("it waits for its program", Duration::from_secs(10), || {
        let task = admin.get(&format!("/tasks/{task}")).expect(200).of("task");
        (task["status"] == "waiting").then_some(())
    });
    first.kill_9();
    // The other one sees the program answer, calls back whoever waits, and a third goes on.
    let admin = admin.at(&second.base);
    until("it was called back", Duration::from_secs(15), || {
        let task = admin.get(&format!("/tasks/{task}")).expect(200).of("task");
        (task["status"] != "waiting").then_some(())
    });
    let third = house.serve(&[]);
    admin.at(&third.base).wait_for(&id, &["running"]);
    assert_eq!(programs(&id).len(), 1);
    admin.stop(&id);
}
