//! `kill -9` of the server in the middle of things: what it says after its
//! restart is true, and what it had promised comes to an end.

use std::time::Duration;

use serde_json::json;

use crate::harness::{
    Answer, Client, HELPER, House, Kind, Server, alive, at_once, key, programs, random, until,
};

on_each_database!(
    after_a_kill_at_any_moment_every_space_is_in_a_true_state,
    a_task_of_an_answered_create_survives_a_kill,
);

/// After a restart all must be true within this.
const BOUND: Duration = Duration::from_secs(15);

/// A program that takes 80 ms until it answers and 80 ms until it ends, so
/// that the moments in between are hit too.
const SLOW: &str = "trap 'sleep 0.08; exit 0' TERM; \"$0\" serve \"$PODYARD_PORT\" 80 & wait; wait";

/// Those of a space's processes that serve.
fn serving(programs: &[i32]) -> Vec<i32> {
    let helper = |pid: &&i32| {
        let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        args.starts_with(HELPER.as_bytes())
    };
    programs.iter().filter(helper).copied().collect()
}

/// Waits until the space is in one of the states that last, and holds it
/// against what really runs.
fn settled(client: &Client, id: &str) -> String {
    let mut last = String::new();
    until("a space's row and its program agree", BOUND, || {
        let space = client.read_space(id);
        let (status, all) = (key(&space, "status"), programs(id));
        let living = if status == "running" { serving(&all) } else { all };
        let opens = client.get(&key(&space, "url"));
        let agree = match status.as_str() {
            "running" => opens.status == 200 && living.len() == 1 && opens.json()["pid"] == json!(living[0]),
            "stopped" | "start_failed" => opens.status == 409 && living.is_empty(),
            _ => false,
        };
        let now = format!("{status}, {} programs, /ws/ answers {}", living.len(), opens.status);
        if now != last {
            last.clone_from(&now);
            eprintln!("space {id}: {now}");
        }
        agree.then_some(status)
    })
}

/// A request that may or may not get its answer.
fn ask(client: &Client, id: &str, action: &str) -> Option<Answer> {
    client.try_send("POST", &format!("/spaces/{id}/{action}"), &[], Some(b"")).ok()
}

/// Ten rounds, each of which kills the server during the start of one space
/// and the stop of another, at a moment nobody chose.
fn after_a_kill_at_any_moment_every_space_is_in_a_true_state(kind: Kind) {
    let house = House::new(kind);
    let mut server = house.serve(&["--max-running", "0"]);
    let mut ann = server.admin();
    let template = ann.template("Slow", &["sh", "-c", SLOW, HELPER]);
    let ids = [ann.space("one", &template), ann.space("two", &template)];
    ann.start(&ids[1]);
    for round in 0..10 {
        let (to_start, to_stop) = (&ids[round % 2], &ids[(round + 1) % 2]);
        let pause = Duration::from_micros(random(150_000));
        eprintln!("round {round}: killed after {pause:?}");
        let pid = server.pid();
        let answers = at_once(3, |i| match i {
            0 => ask(&ann, to_start, "start"),
            1 => ask(&ann, to_stop, "stop"),
            _ => {
                std::thread::sleep(pause);
                crate::harness::kill(pid, rustix::process::Signal::KILL);
                None
            }
        });
        server.kill_9();
        assert!(!alive(pid));
        server = house.serve(&["--max-running", "0"]);
        ann = ann.at(&server.base);
        for answer in answers.iter().flatten() {
            // What was answered was promised.
            let task = key(&answer.clone().expect(202).json(), "task_id");
            let task = ann.wait_for_task(&task);
            assert_eq!(task["status"], "done", "{task}");
        }
        let states = [settled(&ann, to_start), settled(&ann, to_stop)];
        if answers[0].is_some() {
            assert_eq!(states[0], "running", "it was promised");
        }
        if answers[1].is_some() {
            assert_eq!(states[1], "stopped", "it was promised");
        }
        // For the next round: the one that was started runs, the other does not.
        if states[0] != "running" {
            ann.start(to_start);
        }
        if states[1] == "running" {
            ann.stop(to_stop);
        }
    }
    // Nothing is there that no row knows of.
    for id in &ids {
        if ann.read_space(id)["running"] == true {
            ann.stop(id);
        }
    }
    until("nothing runs any more", BOUND, || house.programs().is_empty().then_some(()));
}

fn start_later(house: &House) -> Server {
    house.serve(&["--max-running", "0"])
}

/// Many tasks at once, and the server dies as soon as they are answered.
fn a_task_of_an_answered_create_survives_a_kill(kind: Kind) {
    let house = House::new(kind);
    let mut server = start_later(&house);
    let ann = server.admin();
    let template = ann.serving_template();
    let made = at_once(5, |i| {
        let fields =
            json!({"name": format!("s{i}"), "template_id": template, "spec_id": "test", "auto_start": true});
        ann.post("/spaces", &fields).expect(201)
    });
    server.kill_9();
    let server = start_later(&house);
    let ann = ann.at(&server.base);
    for answer in &made {
        let task = ann.wait_for_task(&key(&answer.json(), "task_id"));
        assert_eq!(task["status"], "done", "{task}");
        assert_eq!(settled(&ann, &key(&answer.of("space"), "id")), "running");
    }
    assert_eq!(ann.get("/tasks").of("tasks").as_array().unwrap().len(), 5);
}
