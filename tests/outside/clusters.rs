//! Spaces in a cluster, on the real binary: the cluster is the double of one,
//! the containers' programs really run.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Client, Cluster, House, Kind, body, key, until};

on_each_database!(
    without mysql:
    a_space_lives_in_a_cluster_from_its_first_start_to_its_delete,
    a_space_is_reached_through_the_api_server,
    a_start_that_cannot_be_says_why_and_leaves_only_the_claim,
    what_happens_outside_is_shown,
    another_server_takes_the_lead,
    a_start_survives_its_server,
    what_nobody_claims_is_removed_after_a_while_and_nothing_else,
);

/// Seconds until something that a cluster or a round of the observer does.
const SOON: Duration = Duration::from_secs(30);

fn only(list: Vec<String>) -> String {
    assert_eq!(list.len(), 1, "{list:?}");
    list.into_iter().next().unwrap()
}

/// The story of a space, whichever way the gateway takes.
fn story(admin: &Client, cluster: &Cluster) -> String {
    let echo = admin.container_template("Echo", &json!({}));
    let id = admin.space("first", &echo);
    assert!(cluster.names("pods").is_empty() && cluster.names("persistentvolumeclaims").is_empty());
    let space = admin.start(&id);
    assert_eq!((&space["driver"], &space["node"]), (&json!("kubernetes"), &json!("node1")), "{space}");
    assert_eq!(space["status_reason"], "", "{space}");
    let pod = only(cluster.names("pods"));
    assert!(pod.starts_with("ws-") && pod.ends_with(&key(&space, "sid")), "{pod}");
    assert_eq!(only(cluster.names("persistentvolumeclaims")), pod);

    // It opens, and the program sees what a program may see.
    let url = key(&space, "url");
    let told = admin.get(&format!("{url}a/b?c=d")).expect(200).json();
    assert_eq!((&told["path"], &told["method"]), (&json!("/a/b?c=d"), &json!("GET")), "{told}");
    for name in ["x-auth-token", "authorization"] {
        assert!(told["headers"].get(name).is_none(), "{name} in {told}");
    }
    assert!(told["headers"]["x-podyard-space-secret"].is_string(), "{told}");
    let big = vec![b'x'; 300_000];
    let told = admin.send("POST", &format!("{url}x"), &[], Some(&big)).expect(200).json();
    assert_eq!(told["body"].as_str().unwrap().len(), big.len());
    id
}

fn a_space_lives_in_a_cluster_from_its_first_start_to_its_delete(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    let id = story(&admin, &cluster);
    let pod = only(cluster.names("pods"));
    let url = key(&admin.read_space(&id), "url");

    // What it wrote, and what was done with it.
    admin.get(&format!("{url}say?n=3")).expect(200);
    let log = admin.get(&format!("/spaces/{id}/log?tail=2")).expect(200).of("space");
    assert_eq!(log["log"], "line 2 of 3\nline 3 of 3\n");
    let events = admin.get("/spaces/first/events").expect(200).of("events");
    let events = events.as_array().unwrap();
    let told = |reason: &str| events.iter().find(|it| it["reason"] == reason);
    let scheduled = told("Scheduled").unwrap_or_else(|| panic!("no Scheduled in {events:?}"));
    assert!(key(scheduled, "message").contains("node1"), "{scheduled}");
    assert!(events.iter().any(|it| it["action"] == "create"), "{events:?}");
    // The newest first; a cluster's own are told by the second.
    let second = |it: &Value| key(it, "created_at")[..19].to_owned();
    let times: Vec<_> = events.iter().map(second).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");

    // A restart is another pod of that name on the same claim.
    let uid = |plural: &str| cluster.all(plural)[0]["metadata"]["uid"].clone();
    let (before, claim) = (uid("pods"), uid("persistentvolumeclaims"));
    admin.act(&id, "restart").expect(202);
    admin.wait_for(&id, &["running"]);
    assert_ne!(uid("pods"), before);
    assert_eq!((uid("persistentvolumeclaims"), only(cluster.names("pods"))), (claim, pod));

    // Stopped, the claim stays; grown, it is larger from then on.
    admin.stop(&id);
    assert!(cluster.names("pods").is_empty());
    admin.put(&format!("/spaces/{id}"), &body("space", json!({"spec_id": "standard"}))).expect(200);
    admin.start(&id);
    until("the claim has grown", SOON, || {
        let claim = &cluster.all("persistentvolumeclaims")[0];
        (claim["spec"]["resources"]["requests"]["storage"] == "8Gi").then_some(())
    });
    let pod = &cluster.all("pods")[0];
    assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"]["memory"], "4Gi", "{pod}");

    // It goes with its files, when that is confirmed.
    admin.delete(&format!("/spaces/{id}")).refused(409, "SpaceIsRunningError");
    admin.stop(&id);
    let refused = admin.delete(&format!("/spaces/{id}")).refused(409, "ConfirmationNeededError");
    assert_eq!(refused.blamed(), ["force"]);
    assert_eq!(cluster.names("persistentvolumeclaims").len(), 1);
    admin.delete(&format!("/spaces/{id}?force=true")).expect(200);
    until("its files are gone", SOON, || cluster.names("persistentvolumeclaims").is_empty().then_some(()));
    // One that was never started has no files.
    let never = admin.space("never", "code-server");
    admin.delete(&format!("/spaces/{never}")).expect(200);
    server.end();
    // Whoever ends gives up the lead.
    assert_eq!(cluster.leader(), "");
}

fn a_space_is_reached_through_the_api_server(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &["--kubernetes-reach", "proxy"]);
    let admin = server.admin();
    let id = story(&admin, &cluster);
    let url = key(&admin.read_space(&id), "url");
    // What the client says of itself to a cluster never gets there.
    let headers = [("Impersonate-User", "nobody"), ("X-Remote-User", "nobody")];
    let told = admin.send("GET", &format!("{url}x"), &headers, None).expect(200).json();
    for name in ["impersonate-user", "x-remote-user"] {
        assert!(told["headers"].get(name).is_none(), "{name} in {told}");
    }
    // A program that is gone is a bad gateway, in the house's words.
    let _ = admin.try_send("GET", &format!("{url}exit?code=1"), &[], None);
    admin.wait_for(&id, &["stopped"]);
    admin.get(&url).refused(409, "SpaceStoppedError");
}

fn a_start_that_cannot_be_says_why_and_leaves_only_the_claim(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    let missing = json!({"container": {"image": "nosuch:1"}, "start_limit": 6});
    let id = admin.space("x", &admin.container_template("Missing", &missing));
    admin.act(&id, "start").expect(202);
    // It is told while it lasts, and on the page that waits.
    let waiting = until("it says what it waits for", SOON, || {
        let space = admin.read_space(&id);
        let told = key(&space, "status_reason").contains("image");
        (told || space["status"] == "start_failed").then_some(space)
    });
    assert_eq!(waiting["status"], "starting", "{waiting}");
    let failed = admin.wait_for(&id, &["start_failed"]);
    assert!(key(&failed, "status_reason").contains("image"), "{failed}");
    until("its pod is gone", SOON, || cluster.names("pods").is_empty().then_some(()));
    assert_eq!(cluster.names("persistentvolumeclaims").len(), 1);
    // With another image it starts, on the same files.
    let good = json!({"container": {"image": "echo:2"}});
    let path = format!("/templates/{}", key(&failed, "template_id"));
    admin.put(&path, &body("template", good)).expect(200);
    let space = admin.start(&id);
    assert_eq!(space["status_reason"], "", "{space}");
    assert_eq!(cluster.names("persistentvolumeclaims").len(), 1);
}

fn what_happens_outside_is_shown(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let mut server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    let id = admin.space("x", &admin.container_template("Echo", &json!({})));
    let stopped = |admin: &Client, what: &str| {
        let space = until(&format!("{what} is shown"), SOON, || {
            let space = admin.read_space(&id);
            (space["status"] == "stopped").then_some(space)
        });
        until("nothing is left of it", SOON, || cluster.names("pods").is_empty().then_some(()));
        key(&space, "status_reason")
    };
    for what in ["kill", "evict", "oom"] {
        admin.start(&id);
        cluster.pod(&only(cluster.names("pods")), what);
        let reason = stopped(&admin, what);
        assert!(!reason.is_empty(), "{what}");
        if what == "oom" {
            assert!(reason.contains("memory"), "{reason}");
        }
    }
    // Nor is it missed while Podyard is away.
    admin.start(&id);
    server.kill_9();
    cluster.pod(&only(cluster.names("pods")), "kill");
    let again = house.serve_in(&cluster, &[]);
    stopped(&admin.at(&again.base), "what happened meanwhile");
}

fn another_server_takes_the_lead(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let mut servers = vec![
        house.serve_in(&cluster, &["--kubernetes-identity", "one"]),
        house.serve_in(&cluster, &["--kubernetes-identity", "two"]),
    ];
    let leader = until("one leads", SOON, || ["one", "two"].iter().position(|it| *it == cluster.leader()));
    let mut first = servers.remove(leader);
    let second = servers.remove(0);
    let admin = first.admin();
    let id = admin.space("x", &admin.container_template("Echo", &json!({})));
    admin.start(&id);
    let pod = only(cluster.names("pods"));
    first.kill_9();
    let admin = admin.at(&second.base);
    // What both see opens at both.
    admin.get(&key(&admin.read_space(&id), "url")).expect(200);
    cluster.pod(&pod, "kill");
    until("the other one shows it", SOON, || (admin.read_space(&id)["status"] == "stopped").then_some(()));
    assert_eq!(cluster.leader(), if leader == 0 { "two" } else { "one" });
    admin.start(&id);
}

fn a_start_survives_its_server(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let mut first = house.serve_in(&cluster, &[]);
    let admin = first.admin();
    let id = admin.space("x", &admin.container_template("Echo", &json!({})));
    for pause in [0, 20, 100, 400] {
        admin.at(&first.base).act(&id, "start").expect(202);
        std::thread::sleep(Duration::from_millis(pause));
        first.kill_9();
        first = house.serve_in(&cluster, &[]);
        let admin = admin.at(&first.base);
        let space = admin.wait_for(&id, &["running"]);
        admin.get(&key(&space, "url")).expect(200);
        assert_eq!((cluster.names("pods").len(), cluster.names("persistentvolumeclaims").len()), (1, 1));
        admin.stop(&id);
    }
}

fn what_nobody_claims_is_removed_after_a_while_and_nothing_else(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let server = house.serve_in(&cluster, &[]);
    let admin = server.admin();
    let id = admin.space("x", &admin.container_template("Echo", &json!({})));
    admin.start(&id);
    let ours = cluster.all("pods").remove(0);
    let pod = |name: &str, managed: Option<&str>, installation: &str| {
        let mut labels = json!({"podyard.dev/installation": installation, "podyard.dev/space": name});
        if let Some(by) = managed {
            labels["app.kubernetes.io/managed-by"] = json!(by);
        }
        let metadata = json!({"name": name, "labels": labels, "annotations": {"podyard.dev/space": name}});
        let container = json!({"name": "main", "image": "echo", "command": ["sleep", "1000"]});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}});
        cluster.send("POST", "/api/v1/namespaces/default/pods", Some(&pod)).expect(201);
    };
    pod("orphan", Some("podyard"), "podyard");
    pod("neighbour", Some("podyard"), "another");
    pod("stranger", Some("helm"), "podyard");
    pod("plain", None, "podyard");
    until("the orphan is gone", Duration::from_secs(60), || {
        (!cluster.names("pods").contains(&"orphan".to_owned())).then_some(())
    });
    let mut left = cluster.names("pods");
    left.sort();
    let own = key(&ours["metadata"], "name");
    let mut wanted = vec!["neighbour".to_owned(), "plain".to_owned(), "stranger".to_owned(), own];
    wanted.sort();
    assert_eq!(left, wanted);
    assert_eq!(admin.read_space(&id)["status"], "running");
}
