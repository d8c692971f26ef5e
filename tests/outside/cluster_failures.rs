//! What goes wrong in a cluster, on the real binary: each failure is told in
//! words, and trouble with the API server passes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Answer, Client, Cluster, HELPER, House, Kind, key, random, until};

on_each_database!(
    without mysql:
    each_failure_of_a_pod_is_told_in_words,
    what_a_cluster_refuses_is_told_in_words,
    a_claim_that_cannot_grow_keeps_its_size,
    what_could_not_be_stopped_is_stopped_later,
    a_copy_of_a_pod_changes_nothing,
    a_log_that_cannot_be_had_is_told_as_such,
    the_doctor_tells_what_is_wrong_with_the_login,
    trouble_with_the_api_server_passes,
    watches_that_are_disturbed_do_no_harm,
    after_a_kill_at_any_moment_rows_and_pods_agree,
    the_others_are_seen_while_one_end_hangs,
);

const SOON: Duration = Duration::from_secs(40);

/// A start that must fail: its reason, and how long it took.
fn fails(admin: &Client, name: &str, template: &str) -> (String, Duration) {
    let id = admin.space(name, template);
    let begin = Instant::now();
    let task = key(&admin.act(&id, "start").expect(202).json(), "task_id");
    let space = until(&format!("the start of {name} has failed"), SOON, || {
        let space = admin.read_space(&id);
        assert_ne!(space["status"], "running", "{name}: {space}");
        (space["status"] == "start_failed").then_some(space)
    });
    let took = begin.elapsed();
    let task = admin.wait_for_task(&task);
    assert_eq!(task["status"], "failed", "{task}");
    // A program may have written files before it failed.
    let refused = admin.delete(&format!("/spaces/{id}")).refused(409, "ConfirmationNeededError");
    assert_eq!(refused.blamed(), ["force"]);
    (key(&space, "status_reason"), took)
}

fn each_failure_of_a_pod_is_told_in_words(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    // What is final is told at once, what may come right when the limit is over.
    let cases = [
        ("ends", json!({"command": [HELPER, "exit", "7"]}), "exit code 7", true),
        ("memory", json!({"command": [], "container": {"image": "oom:1"}}), "ran out of memory", true),
        ("command", json!({"command": ["/no/such/binary"]}), "its command cannot be run", true),
        (
            "node",
            json!({"container": {"image": "echo:1", "node_selector": {"disk": "gold"}}}),
            "no node has the labels that it needs",
            false,
        ),
        (
            "class",
            json!({"container": {"image": "echo:1", "storage_class": "no-such-class"}}),
            "no-such-class",
            false,
        ),
        ("deaf", json!({"command": ["sleep", "1000"]}), "does not answer yet", false),
        (
            "secret",
            json!({"container": {"image": "echo:1", "patch": {"spec": {"containers": [
            {"name": "main", "env": [{"name": "KEY", "valueFrom": {"secretKeyRef":
                {"name": "nope", "key": "k"}}}]}]}}}}),
            "secret \"nope\" not found",
            false,
        ),
    ];
    for (name, more, words, at_once) in cases {
        let mut more = more.clone();
        more["start_limit"] = json!(if at_once { 30 } else { 4 });
        let (reason, took) = fails(&admin, name, &admin.container_template(name, &more));
        assert!(reason.contains(words), "{name}: {reason}");
        if at_once {
            assert!(took < Duration::from_secs(15), "{name} took {took:?}");
        }
    }
    // No room: the node is small now.
    cluster.send("POST", "/_double/node", Some(&json!({"memory": "1Mi"}))).expect(200);
    let (reason, _) = fails(&admin, "room", &admin.container_template("room", &json!({"start_limit": 4})));
    assert!(reason.contains("no room"), "{reason}");
    cluster.send("POST", "/_double/node", Some(&json!({"memory": "256Gi"}))).expect(200);
    // Whatever failed left nothing that runs, and every claim.
    until("no pod is left", SOON, || cluster.names("pods").is_empty().then_some(()));
    // The events are there to be read.
    let events = admin.get("/spaces/node/events").expect(200).of("events");
    let told = events.as_array().unwrap().iter().any(|it| it["reason"] == "FailedScheduling");
    assert!(told, "{events}");
}

fn what_a_cluster_refuses_is_told_in_words(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    for (field, value) in [("command", "{podyard}"), ("env", "A={podyard}")] {
        let fields = json!({"name": "x", "kind_id": "ide", "driver": "kubernetes", field: [value],
            "container": {"image": "echo:1"}});
        let refused = admin.post("/templates", &crate::harness::body("template", fields)).expect(400);
        assert_eq!(refused.blamed(), [field]);
    }
    let patch = json!({"spec": {"hostNetwork": true}});
    let fields = json!({"name": "x", "kind_id": "ide", "driver": "kubernetes",
        "container": {"image": "echo:1", "patch": patch}});
    let refused = admin.post("/templates", &crate::harness::body("template", fields)).expect(400);
    assert_eq!(refused.blamed(), ["container.patch"]);
    let echo = admin.container_template(
        "Echo",
        &json!({"container": {"image": "echo:1", "mount": "/home/coder/",
        "probe_path": "{base}"}}),
    );
    let put = |plural: &str, object: &Value| {
        cluster.send("POST", &format!("/api/v1/namespaces/default/{plural}"), Some(object)).expect(201);
    };
    let gone = |plural: &str| {
        cluster.send("DELETE", &format!("/api/v1/namespaces/default/{plural}/x"), None).expect(200);
    };
    // A quota of pods, a quota of storage, a limit.
    put("resourcequotas", &json!({"metadata": {"name": "x"}, "spec": {"hard": {"pods": "0"}}}));
    let (reason, took) = fails(&admin, "pods", &echo);
    assert!(reason.contains("quota") && reason.contains("pods=0"), "{reason}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    gone("resourcequotas");
    put("resourcequotas", &json!({"metadata": {"name": "x"}, "spec": {"hard": {"requests.storage": "1Mi"}}}));
    let (reason, _) = fails(&admin, "storage", &echo);
    assert!(reason.contains("quota") && reason.contains("requests.storage"), "{reason}");
    gone("resourcequotas");
    put(
        "limitranges",
        &json!({"metadata": {"name": "x"}, "spec": {"limits": [
        {"type": "Container", "max": {"memory": "1Mi"}}]}}),
    );
    let (reason, _) = fails(&admin, "limit", &echo);
    assert!(reason.contains("maximum memory usage"), "{reason}");
    gone("limitranges");
    // No right to it, and a login that is not known.
    let fault = |fault: Value| cluster.send("POST", "/_double/faults", Some(&fault)).expect(200);
    let well = || cluster.send("DELETE", "/_double/faults", None).expect(200);
    fault(json!({"verb": "patch", "resource": "pods", "status": 403,
        "message": "pods is forbidden: User \"podyard\" cannot patch resource \"pods\""}));
    fault(json!({"verb": "create", "resource": "pods", "status": 403,
        "message": "pods is forbidden: User \"podyard\" cannot create resource \"pods\""}));
    let (reason, _) = fails(&admin, "right", &echo);
    assert!(reason.contains("no right"), "{reason}");
    well();
    for resource in ["pods", "persistentvolumeclaims"] {
        fault(json!({"resource": resource, "verb": "patch", "status": 401}));
    }
    let (reason, _) = fails(&admin, "login", &echo);
    assert!(reason.contains("login"), "{reason}");
    well();
    // It says nothing at all.
    fault(json!({"resource": "pods", "verb": "patch", "delayMs": 600_000}));
    let hasty = admin.container_template("Hasty", &json!({"start_limit": 2}));
    let (reason, took) = fails(&admin, "silent", &hasty);
    assert!(reason.contains("does not answer"), "{reason}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    well();
    // All of them start once nothing is in the way.
    let id = key(&admin.get("/spaces/login").of("space"), "id");
    admin.start(&id);
}

fn a_claim_that_cannot_grow_keeps_its_size(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    let id = admin.space("x", &admin.container_template("Echo", &json!({})));
    admin.start(&id);
    admin.stop(&id);
    let class = |grows: bool| {
        let path = "/apis/storage.k8s.io/v1/storageclasses/standard";
        cluster.merge(path, &json!({"allowVolumeExpansion": grows})).expect(200);
    };
    let resize = || {
        let path = format!("/spaces/{id}");
        admin.put(&path, &crate::harness::body("space", json!({"spec_id": "standard"}))).expect(200);
        let path = format!("/tasks?obj_id={id}&task_name=space-resize&filter=status.in(done,failed)");
        until("the resize has ended", SOON, || admin.get(&path).expect(200).of("tasks").get(0).cloned())
    };
    let before = admin.read_space(&id);
    class(false);
    let task = resize();
    let after = admin.read_space(&id);
    assert_eq!(
        (&task["status"], &after["spec_id"]),
        (&json!("failed"), &before["spec_id"]),
        "{task} {after}"
    );
    assert!(key(&after, "status_reason").contains("must support resize"), "{after}");
    admin.start(&id);
    admin.stop(&id);
    // Nor does a size that was made larger keep it from its files.
    let larger = crate::harness::body("spec", json!({"storage": "5Gi"}));
    admin.put(&format!("/specs/{}", key(&before, "spec_id")), &larger).expect(200);
    admin.start(&id);
    admin.stop(&id);
    class(true);
    resize();
    until("it has grown", SOON, || (admin.read_space(&id)["storage"] == "8Gi").then_some(()));
    until("its claim has grown", SOON, || {
        let claim = cluster.all("persistentvolumeclaims").remove(0);
        (claim["spec"]["resources"]["requests"]["storage"] == "8Gi").then_some(())
    });
}

fn what_could_not_be_stopped_is_stopped_later(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    let id = admin.space("x", &admin.container_template("Echo", &json!({})));
    admin.start(&id);
    // The login is being changed, say.
    let fault = json!({"resource": "pods", "verb": "delete", "status": 401});
    cluster.send("POST", "/_double/faults", Some(&fault)).expect(200);
    admin.act(&id, "stop").expect(202);
    let failed = admin.wait_for(&id, &["stop_failed"]);
    assert!(key(&failed, "status_reason").contains("login"), "{failed}");
    cluster.send("DELETE", "/_double/faults", None).expect(200);
    let stopped = until("it is stopped", SOON, || {
        let space = admin.read_space(&id);
        (space["status"] == "stopped").then_some(space)
    });
    assert_eq!((&stopped["status_reason"], &stopped["running"]), (&json!(""), &json!(false)), "{stopped}");
    until("its pod is gone", SOON, || cluster.names("pods").is_empty().then_some(()));
    admin.start(&id);
}

fn a_log_that_cannot_be_had_is_told_as_such(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    let id = admin.space("x", &admin.container_template("Echo", &json!({})));
    admin.start(&id);
    for fault in [json!({"status": 500, "message": "its node is away"}), json!({"cut": "before"})] {
        let mut fault = fault;
        fault["resource"] = json!("pods/log");
        cluster.send("POST", "/_double/faults", Some(&fault)).expect(200);
        let answer = admin.get(&format!("/spaces/{id}/log")).expect(503);
        assert!(answer.text().contains("log"), "{}", answer.text());
        cluster.send("DELETE", "/_double/faults", None).expect(200);
    }
    admin.get(&format!("/spaces/{id}/log")).expect(200);
    // Events that do not come keep nobody from the records.
    let slow = json!({"resource": "events", "delayMs": 600_000});
    cluster.send("POST", "/_double/faults", Some(&slow)).expect(200);
    let begin = Instant::now();
    let events = admin.get(&format!("/spaces/{id}/events")).expect(200).of("events");
    assert!(events.as_array().is_some_and(|it| it.iter().any(|it| it["action"] == "create")), "{events}");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}

fn a_copy_of_a_pod_changes_nothing(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    let id = admin.space("x", &admin.container_template("Echo", &json!({})));
    let url = key(&admin.start(&id), "url");
    // As `kubectl debug --copy-to=copy --keep-labels` makes it.
    let real = cluster.all("pods").remove(0);
    let meta = &real["metadata"];
    let copy = json!({"metadata": {"name": "copy", "labels": meta["labels"], "annotations": meta["annotations"]},
        "spec": real["spec"]});
    cluster.send("POST", "/api/v1/namespaces/default/pods", Some(&copy)).expect(201);
    until("the copy runs", SOON, || {
        let copy = cluster.all("pods").into_iter().find(|it| it["metadata"]["name"] == "copy")?;
        (copy["status"]["phase"] == "Running").then_some(())
    });
    admin.get(&url).expect(200);
    admin.stop(&id);
    until("its own pod is gone", SOON, || (cluster.names("pods") == ["copy"]).then_some(()));
    admin.start(&id);
    admin.get(&url).expect(200);
    admin.stop(&id);
    assert_eq!(cluster.names("pods"), ["copy"]);
}

fn the_doctor_tells_what_is_wrong_with_the_login(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let doctor = |file: &std::path::Path, more: &[&str]| {
        let mut command = house.command();
        command.args(["doctor", "kubernetes", "--kubernetes-kubeconfig"]).arg(file).args(more);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = doctor(&cluster.kubeconfig(), &[]);
    assert!(code == Some(0) && said.contains("trial"), "{said}");
    let (code, said) = doctor(&cluster.kubeconfig(), &["--kubernetes-way", "custom-resources"]);
    assert!(code == Some(1) && said.contains("the custom resource Space is not there"), "{said}");
    assert!(said.contains("warning controller: no controller is at work"), "{said}");
    let controller = house.control(&cluster);
    until("the doctor sees the controller", SOON, || {
        let (code, said) = doctor(&cluster.kubeconfig(), &["--kubernetes-way", "custom-resources"]);
        (code == Some(0) && said.contains("makes the pods")).then_some(())
    });
    drop(controller);
    let wrong = tempfile::NamedTempFile::new().unwrap();
    let text = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    std::fs::write(wrong.path(), text.replace("double-admin", "nobody-s")).unwrap();
    let (code, said) = doctor(wrong.path(), &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("FAILED  login") && said.contains("still valid"), "{said}");
    let (code, said) = doctor(&cluster.kubeconfig(), &["--kubernetes-namespace", "nowhere"]);
    assert!(code == Some(1) && said.contains("kubectl create namespace nowhere"), "{said}");
    let (code, said) = doctor(&cluster.kubeconfig(), &["--kubernetes-namespace", "No_Where"]);
    assert!(code == Some(2) && said.contains("lower-case letters"), "{said}");
}

fn trouble_with_the_api_server_passes(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    let id = admin.space("x", &admin.container_template("Echo", &json!({"start_limit": 60})));
    let order = |what: &str, order: &Value| -> Answer {
        cluster.send("POST", &format!("/_double/{what}"), Some(order)).expect(200)
    };
    let troubles = [
        json!({"status": 429, "retryAfter": 1, "count": 2}),
        json!({"status": 500, "count": 2}),
        json!({"status": 503, "count": 2}),
        json!({"verb": "patch", "status": 409, "count": 1}),
        json!({"verb": "watch", "status": 410, "count": 2}),
        json!({"delayMs": 700, "count": 6}),
        json!({"cut": "before", "count": 2}),
        // It was done, and nobody heard of it.
        json!({"verb": "patch", "cut": "after", "count": 1}),
        json!({"verb": "delete", "cut": "after", "count": 1}),
    ];
    let run = |what: &str| {
        admin.act(&id, "start").expect(202);
        let space = until(&format!("it runs in spite of {what}"), SOON, || {
            let space = admin.read_space(&id);
            assert_ne!(space["status"], "start_failed", "{what}: {space}");
            (space["status"] == "running").then_some(space)
        });
        until("it opens", SOON, || (admin.get(&key(&space, "url")).status == 200).then_some(()));
        assert_eq!(cluster.names("pods").len(), 1, "{what}");
    };
    let stop = |what: &str| {
        admin.act(&id, "stop").expect(202);
        until(&format!("it stops in spite of {what}"), SOON, || {
            let space = admin.read_space(&id);
            assert_ne!(space["status"], "stop_failed", "{what}: {space}");
            (space["status"] == "stopped").then_some(())
        });
        until("its pod is gone", SOON, || cluster.names("pods").is_empty().then_some(()));
    };
    for trouble in &troubles {
        let what = trouble.to_string();
        order("faults", trouble);
        order("cut/pods", &json!({}));
        run(&what);
        order("faults", trouble);
        stop(&what);
        cluster.send("DELETE", "/_double/faults", None).expect(200);
    }
    // The server goes away in the middle of a start, and of a stop.
    admin.act(&id, "start").expect(202);
    order("restart", &json!({"milliseconds": 1500}));
    until("it runs in spite of a restart", SOON, || {
        (admin.read_space(&id)["status"] == "running").then_some(())
    });
    admin.act(&id, "stop").expect(202);
    order("restart", &json!({"milliseconds": 1500}));
    until("it stops in spite of a restart", SOON, || {
        (admin.read_space(&id)["status"] == "stopped").then_some(())
    });
}

fn watches_that_are_disturbed_do_no_harm(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    let id = admin.space("x", &admin.container_template("Echo", &json!({})));
    let order = |what: &str, order: Value| {
        cluster.send("POST", &format!("/_double/{what}"), Some(&order)).expect(200);
    };
    let round = |what: &str| {
        let space = admin.start(&id);
        admin.get(&key(&space, "url")).expect(200);
        cluster.pod(&cluster.names("pods")[0], "kill");
        until(&format!("its end is seen: {what}"), SOON, || {
            (admin.read_space(&id)["status"] == "stopped").then_some(())
        });
        admin.start(&id);
        admin.stop(&id);
    };
    order("watches/*", json!({"duplicates": 2}));
    round("everything is said three times");
    order("watches/*", json!({}));
    // What is told of claims and events overtakes what is told of pods.
    order("watches/pods", json!({"delayMs": 700}));
    round("pods come late");
    order("watches/pods", json!({}));
    order("watches/persistentvolumeclaims", json!({"delayMs": 700}));
    order("watches/events", json!({"delayMs": 900}));
    round("claims come late");
    cluster.send("DELETE", "/_double/faults", None).expect(200);
    // Cut, and what was seen last is too old by then.
    for _ in 0..3 {
        order("compact", json!({}));
        order("cut/*", json!({}));
    }
    round("the versions are too old");
}

/// Ten rounds of a start or a stop during which the server dies at a moment nobody chose.
fn after_a_kill_at_any_moment_rows_and_pods_agree(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let mut server = house.serve_in(&cluster, &[]);
    let mut admin = server.admin();
    let echo = admin.container_template("Echo", &json!({}));
    let ids = [admin.space("one", &echo), admin.space("two", &echo)];
    admin.start(&ids[1]);
    for round in 0..10 {
        let (to_start, to_stop) = (&ids[round % 2], &ids[(round + 1) % 2]);
        let pause = Duration::from_millis(random(600));
        let ask = |id: &str, action: &str| {
            let answer = admin.try_send("POST", &format!("/spaces/{id}/{action}"), &[], Some(b""));
            assert_eq!(answer.unwrap().status, 202, "round {round}: {action}");
        };
        ask(to_start, "start");
        ask(to_stop, "stop");
        std::thread::sleep(pause);
        server.kill_9();
        // Now and then it is away for a while.
        if round % 3 == 0 {
            std::thread::sleep(Duration::from_millis(random(1500)));
        }
        server = house.serve_in(&cluster, &[]);
        admin = admin.at(&server.base);
        // What was answered was promised.
        admin.wait_for(to_start, &["running"]);
        admin.wait_for(to_stop, &["stopped"]);
        let pods = until(&format!("one pod is left, killed after {pause:?}"), SOON, || {
            let pods = cluster.all("pods");
            (pods.len() == 1).then_some(pods)
        });
        let sid = key(&admin.read_space(to_start), "sid");
        assert!(key(&pods[0]["metadata"], "name").ends_with(&sid), "round {round}: {}", pods[0]);
        let url = key(&admin.read_space(to_start), "url");
        until("it opens", SOON, || (admin.get(&url).status == 200).then_some(()));
    }
    assert_eq!(cluster.names("persistentvolumeclaims").len(), 2);
}

/// The end of what is left of one space hangs; the others are looked after.
fn the_others_are_seen_while_one_end_hangs(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    let echo = admin.container_template("Echo", &json!({}));
    let spaces: Vec<Value> =
        ["stuck", "one", "two", "asked"].map(|name| admin.running_space(name, &echo)).into();
    let pod = |space: &Value| {
        let sid = key(space, "sid");
        cluster.names("pods").into_iter().find(|it| it.ends_with(&sid)).unwrap()
    };
    let pods: Vec<String> = spaces.iter().map(pod).collect();
    let is_stopped = |space: &Value| admin.read_space(&key(space, "id"))["status"] == "stopped";
    // Whatever deletes a pod waits for its answer, and so does a stop that somebody asked for.
    let held = json!({"verb": "delete", "resource": "pods", "delayMs": 60_000});
    cluster.send("POST", "/_double/faults", Some(&held)).expect(200);
    let exit = format!("/_double/pods/default/{}/exit", pods[0]);
    cluster.send("POST", &exit, Some(&json!({"code": 3}))).expect(200);
    until("the first is shown as over", SOON, || is_stopped(&spaces[0]).then_some(()));
    until("its end hangs", SOON, || {
        let asked = cluster.send("GET", "/_double/stats", None).expect(200).json();
        asked["requests"]["delete pods"].is_u64().then_some(())
    });
    admin.act(&key(&spaces[3], "id"), "stop").expect(202);
    for at in [1, 2] {
        let begin = Instant::now();
        cluster.pod(&pods[at], "kill");
        until("another is shown as over", SOON, || is_stopped(&spaces[at]).then_some(()));
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    }
    // A start comes through, too.
    admin.start(&key(&spaces[1], "id"));
    let left = cluster.names("pods");
    assert!(left.contains(&pods[0]) && left.contains(&pods[3]), "what hangs is still there: {left:?}");
    assert_eq!(admin.read_space(&key(&spaces[3], "id"))["status"], "stopping");
}
