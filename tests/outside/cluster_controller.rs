//! Spaces as custom resources, on the real binary: `podyard controller` keeps
//! them, whether Podyard's servers are there or not.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Answer, Cluster, HELPER, House, Kind, key, until};

on_each_database!(
    without mysql:
    a_space_is_kept_while_podyard_is_away,
    a_resource_that_was_made_by_hand,
    why_a_pod_is_not_made_is_told,
    two_servers_share_resources_and_the_proxy,
);

const SOON: Duration = Duration::from_secs(40);

const WAY: [&str; 2] = ["--kubernetes-way", "custom-resources"];

/// The pod of that name, once it is another one than before and ready.
#[track_caller]
fn made_anew(cluster: &Cluster, name: &str, before: &Value) -> Value {
    until("the pod is made anew", SOON, || {
        let pod = cluster.all("pods").into_iter().find(|it| it["metadata"]["name"] == name)?;
        let conditions = pod["status"]["conditions"].as_array()?;
        let ready = conditions.iter().any(|it| it["type"] == "Ready" && it["status"] == "True");
        (ready && pod["metadata"]["uid"] != *before).then(|| pod["metadata"]["uid"].clone())
    })
}

#[track_caller]
fn phase(cluster: &Cluster, name: &str, wanted: &str) -> Value {
    until(&format!("{name} is {wanted}"), SOON, || {
        let status = cluster.space(name)?["status"].take();
        (status["phase"] == wanted).then_some(status)
    })
}

fn a_space_is_kept_while_podyard_is_away(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let _controller = house.control(&cluster);
    let mut server = house.serve_in(&cluster, &WAY);
    let admin = server.admin();
    let id = admin.space("work", &admin.container_template("Echo", &json!({})));
    let url = key(&admin.start(&id), "url");
    admin.get(&url).expect(200);
    let pod = cluster.all("pods").remove(0);
    let (name, first) = (key(&pod["metadata"], "name"), pod["metadata"]["uid"].clone());
    let status = phase(&cluster, &name, "Ready");
    assert_eq!((&status["pod"], &status["node"]), (&json!(name), &json!("node1")), "{status}");
    let spec = cluster.space(&name).unwrap()["spec"].take();
    assert_eq!((&spec["title"], &spec["running"]), (&json!("work"), &json!(true)), "{spec}");
    // Nobody of Podyard's API is there, and its pod goes, in one way and another.
    server.kill_9();
    cluster.delete_pod(&name);
    let second = made_anew(&cluster, &name, &first);
    cluster.pod(&name, "kill");
    let third = made_anew(&cluster, &name, &second);
    phase(&cluster, &name, "Ready");
    cluster.pod(&name, "evict");
    let third = made_anew(&cluster, &name, &third);
    phase(&cluster, &name, "Ready");
    // Back, it shows what is, and brings the way there.
    let server = house.serve_in(&cluster, &WAY);
    let admin = admin.at(&server.base);
    until("it opens", SOON, || (admin.get(&url).status == 200).then_some(()));
    assert_eq!(admin.read_space(&id)["status"], "running");
    // It is the same while Podyard is there.
    cluster.delete_pod(&name);
    made_anew(&cluster, &name, &third);
    until("it opens", SOON, || (admin.get(&url).status == 200).then_some(()));
    assert_eq!(admin.read_space(&id)["status"], "running");
    let events = admin.get(&format!("/spaces/{id}/events")).expect(200).of("events");
    assert!(!events.as_array().unwrap().iter().any(|it| it["action"] == "died"), "{events}");
    // Whoever stops it in the cluster is heard.
    merge(&cluster, &name, &json!({"spec": {"running": false}})).expect(200);
    let stopped = admin.wait_for(&id, &["stopped"]);
    assert_eq!(stopped["status_reason"], "it was stopped in the cluster");
    admin.start(&id);
    // It ends when Podyard says so, and with it all that there was of it.
    admin.stop(&id);
    phase(&cluster, &name, "Stopped");
    assert!(cluster.names("pods").is_empty());
    admin.delete(&format!("/spaces/{id}?force=true")).expect(200);
    until("all of it is gone", SOON, || {
        (cluster.space(&name).is_none() && cluster.names("persistentvolumeclaims").is_empty()).then_some(())
    });
}

fn merge(cluster: &Cluster, name: &str, patch: &Value) -> Answer {
    cluster.merge(&format!("{}/{name}", Cluster::spaces_path()), patch)
}

/// As it could be written by hand.
fn written(name: &str, labels: &str, more: &str) -> String {
    format!(
        "apiVersion: podyard.dev/v1alpha1\nkind: Space\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n\
         spec:\n  id: {name}\n  sid: {name}\n  user: ann\n  title: By hand\n  basePath: /ws/{name}/\n  running: true\n  \
         image: echo:1\n  command: ['{HELPER}', serve-at, 0.0.0.0, '{{port}}']\n  port: 8080\n  cpu: 100m\n  \
         memory: 64Mi\n  storage: 1Gi\n{more}"
    )
}

fn a_resource_that_was_made_by_hand(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let _controller = house.control(&cluster);
    let path = |name: &str| format!("{}/{name}", Cluster::spaces_path());
    let labels = "app.kubernetes.io/managed-by: podyard, podyard.dev/installation: podyard";
    let apply =
        |name: &str, labels: &str, more: &str| cluster.apply(&path(name), &written(name, labels, more));
    // The cluster itself refuses what is none, by the definition.
    let refused = apply("bad", labels, "  runAs: 0\n");
    assert!(refused.status == 422 && refused.text().contains("runAs"), "{}", refused.text());
    // One that cannot be, and one that is not Podyard's.
    apply("odd", labels, "  mount: odd\n").expect(201);
    apply("strange", "team: ours", "").expect(201);
    apply("mine", labels, "").expect(201);
    let status = phase(&cluster, "mine", "Ready");
    let (name, node) = (key(&status, "pod"), key(&status, "node"));
    assert!(name.starts_with("ws-ann-") && node == "node1", "{status}");
    assert_eq!(status["conditions"][0]["status"], "True", "{status}");
    // It is found as Podyard's own are.
    let found =
        cluster.send("GET", &format!("{}?labelSelector=podyard.dev/user=ann", Cluster::spaces_path()), None);
    assert_eq!(found.expect(200).json()["items"].as_array().map(Vec::len), Some(2));
    let failed = phase(&cluster, "odd", "Failed");
    assert!(key(&failed, "message").contains("odd"), "{failed}");
    // Another with the same id takes nothing from it.
    let copy = written("mine", labels, "").replace("name: mine,", "name: copy,");
    cluster.apply(&path("copy"), &copy.replace("running: true", "running: false")).expect(201);
    let failed = phase(&cluster, "copy", "Failed");
    assert!(key(&failed, "message").contains("another resource has the id mine"), "{failed}");
    assert_eq!(cluster.names("pods"), [name.as_str()]);
    cluster.send("DELETE", &path("copy"), None).expect(200);
    until("the copy is gone", SOON, || cluster.space("copy").is_none().then_some(()));
    assert_eq!(cluster.names("pods"), [name.as_str()]);
    // What its objects are known by stays what it is.
    for fixed in ["id", "sid"] {
        let refused = merge(&cluster, "mine", &json!({"spec": {fixed: "other"}}));
        assert!(refused.status == 422 && refused.text().contains("cannot be changed"), "{}", refused.text());
    }
    // It is kept.
    let first = cluster.all("pods")[0]["metadata"]["uid"].clone();
    cluster.delete_pod(&name);
    made_anew(&cluster, &name, &first);
    // It stops, with its files kept, and starts again.
    let run = |running: bool| merge(&cluster, "mine", &json!({"spec": {"running": running}})).expect(200);
    run(false);
    let status = phase(&cluster, "mine", "Stopped");
    assert_eq!((&status["pod"], &status["node"]), (&Value::Null, &Value::Null), "{status}");
    assert!(cluster.names("pods").is_empty());
    assert_eq!(cluster.names("persistentvolumeclaims"), [name.as_str()]);
    run(true);
    phase(&cluster, "mine", "Ready");
    // A Podyard that knows of no such space stops it, and leaves its files alone.
    let server = house.serve_in(&cluster, &WAY);
    phase(&cluster, "mine", "Stopped");
    assert_eq!(cluster.space("mine").unwrap()["spec"]["running"], false);
    assert_eq!(cluster.names("persistentvolumeclaims"), [name.as_str()]);
    server.end();
    // Deleted, all of it goes.
    cluster.send("DELETE", &path("mine"), None).expect(200);
    until("its files are gone", SOON, || {
        (!cluster.names("persistentvolumeclaims").contains(&name)).then_some(())
    });
    // What was not Podyard's nobody has touched.
    assert!(cluster.space("strange").unwrap()["status"].is_null());
    assert!(cluster.names("pods").is_empty());
}

fn why_a_pod_is_not_made_is_told(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let controller = house.control(&cluster);
    let server = house.serve_in(&cluster, &WAY);
    let admin = server.admin();
    let id = admin.space("work", &admin.container_template("Echo", &json!({"start_limit": 60})));
    let url = key(&admin.start(&id), "url");
    let told = |words: &str| {
        until(&format!("{words:?} is told"), SOON, || {
            let space = admin.read_space(&id);
            key(&space, "status_reason").contains(words).then(|| key(&space, "status"))
        })
    };
    // The pod goes, and there is no room for the next one.
    let room = |memory: &str| {
        cluster.send("POST", "/_double/node", Some(&json!({"memory": memory}))).expect(200);
    };
    room("1Mi");
    cluster.delete_pod(&cluster.names("pods")[0]);
    assert_eq!(told("no room"), "running");
    room("256Gi");
    until("it is well again", SOON, || (admin.read_space(&id)["status_reason"] == "").then_some(()));
    until("it opens", SOON, || (admin.get(&url).status == 200).then_some(()));
    admin.stop(&id);
    // Nobody makes pods.
    drop(controller);
    admin.act(&id, "start").expect(202);
    assert_eq!(told("no controller has made its pod yet"), "starting");
    let _controller = house.controller(&cluster);
    admin.wait_for(&id, &["running"]);
}

fn two_servers_share_resources_and_the_proxy(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let _controller = house.control(&cluster);
    let args = [&WAY[..], &["--kubernetes-reach", "proxy"]].concat();
    let mut first = house.serve_in(&cluster, &args);
    let second = house.serve_in(&cluster, &args);
    let admin = first.admin();
    let id = admin.space("work", &admin.container_template("Echo", &json!({})));
    let url = key(&admin.start(&id), "url");
    let other = admin.at(&second.base);
    let opens =
        || until("it opens by the other server", SOON, || (other.get(&url).status == 200).then_some(()));
    opens();
    // The one that leads dies, and so does the pod.
    first.kill_9();
    let (name, before) = (cluster.names("pods").remove(0), cluster.all("pods")[0]["metadata"]["uid"].clone());
    cluster.delete_pod(&name);
    made_anew(&cluster, &name, &before);
    opens();
    assert_eq!(other.read_space(&id)["status"], "running");
    other.stop(&id);
    phase(&cluster, &name, "Stopped");
    other.delete(&format!("/spaces/{id}")).refused(409, "ConfirmationNeededError");
    other.delete(&format!("/spaces/{id}?force=true")).expect(200);
    until("all of it is gone", SOON, || cluster.names("persistentvolumeclaims").is_empty().then_some(()));
}
