//! What many spaces cost: requests to the API server for each start and at
//! rest, and memory of the server.
//!
//! `PODYARD_TEST_SPACES` says how many (200), `PODYARD_TEST_REST` for how many
//! seconds they are watched at rest (5). With 1000 and 60 it takes some minutes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::terminal::resident;
use crate::harness::{Client, Cluster, House, Kind, body, until};

/// Most that one request makes.
const AT_ONCE: u64 = 200;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |it| it.parse().unwrap())
}

/// Starts more spaces, until there are so many that run.
fn grow(admin: &Client, template: &str, from: u64, to: u64) {
    let mut there = from;
    while there < to {
        let count = (to - there).min(AT_ONCE);
        let space = json!({"name": format!("s{there}-"), "template_id": template, "spec_id": "test",
            "auto_start": true});
        let mut many = body("space", space);
        many["count"] = json!(count);
        admin.post("/spaces", &many).expect(207);
        there += count;
    }
    until(&format!("{to} run"), Duration::from_secs(600), || {
        let running = admin.get("/spaces?status=running&limit=1&details=total").expect(200).json();
        (running["total"] == to).then_some(())
    });
}

/// What one space costs beside those that are there: its first start, its
/// stop, and its next start.
fn one_more(admin: &Client, cluster: &Cluster, template: &str) -> [BTreeMap<String, u64>; 3] {
    let id = admin.space("more", template);
    cluster.asked();
    admin.start(&id);
    let first = cluster.asked();
    admin.stop(&id);
    let stop = cluster.asked();
    admin.start(&id);
    let next = cluster.asked();
    admin.stop(&id);
    admin.delete(&format!("/spaces/{id}?force=true")).expect(200);
    until("its files are gone", Duration::from_secs(30), || {
        let task = admin.get(&format!("/tasks?obj_id={id}&task_name=space-delete")).expect(200).json();
        (task["tasks"][0]["status"] == "done").then_some(())
    });
    [first, stop, next]
}

#[test]
fn spaces_at_rest_cost_no_requests() {
    let many = number("PODYARD_TEST_SPACES", 200);
    let rest = Duration::from_secs(number("PODYARD_TEST_REST", 5));
    let (house, cluster) = (House::new(Kind::Sqlite), Cluster::start("20"));
    let vast = json!({"memory": "100Ti", "cpu": "100000", "pods": "100000"});
    cluster.send("POST", "/_double/node", Some(&vast)).expect(200);
    let server = house.serve_in(&cluster, &["--max-spaces", "100000"]);
    let admin = server.admin();
    // Containers that only pretend, so that there may be many of them.
    let pretend = json!({"command": [], "container": {"image": "pretend:1"}, "start_limit": 300});
    let quiet = admin.container_template("Quiet", &pretend);
    let mut seen = Vec::new();
    let mut there = 0;
    for count in [many.div_ceil(10), many] {
        cluster.asked();
        let begin = Instant::now();
        grow(&admin, &quiet, there, count);
        let (took, starts) = (begin.elapsed(), cluster.asked());
        let more = one_more(&admin, &cluster, &quiet);
        // What is left of the starts, like looks at slow ones, is over soon.
        until("nothing is asked any more", Duration::from_secs(60), || {
            std::thread::sleep(Duration::from_secs(1));
            cluster.asked().is_empty().then_some(())
        });
        cluster.send("DELETE", "/_double/stats", None).expect(200);
        std::thread::sleep(rest);
        let at_rest = cluster.send("GET", "/_double/stats", None).expect(200).json();
        let asked = cluster.asked();
        let started = count - there;
        let memory = resident(server.pid()) >> 10;
        eprintln!(
            "{started} starts to {count} spaces in {took:?}: {starts:?}\n  one more: first start {:?}, stop {:?}, \
             next start {:?}\n  {count} at rest for {rest:?}: {at_rest}; the server has {memory} KiB",
            more[0], more[1], more[2]
        );
        assert!(asked.is_empty(), "{count} spaces at rest: {asked:?}");
        let total: u64 = starts.values().sum();
        assert!(total <= started * 5, "{total} requests for {started} starts: {starts:?}");
        seen.push((more, at_rest["total"].as_u64().unwrap()));
        there = count;
    }
    let ((few, few_at_rest), (all, all_at_rest)) = (&seen[0], &seen[1]);
    assert_eq!(few, all, "a start and a stop cost the same however many others there are");
    assert_eq!(few[2], BTreeMap::from([("patch pods".to_owned(), 1)]));
    // Watches begin anew once a minute, and the Lease is kept.
    assert!(all_at_rest.abs_diff(*few_at_rest) <= 6, "at rest {few_at_rest}, and with more {all_at_rest}");
}
