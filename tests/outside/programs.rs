//! What becomes of programs that do not behave, and of those that do while
//! the server comes and goes.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Client, HELPER, House, Kind, alive, key, kill, programs, until};

on_each_database!(
    a_program_that_ends_at_once_is_a_failed_start,
    a_program_that_ends_later_is_a_stopped_space,
    a_killed_program_is_a_stopped_space,
    a_killed_supervisor_takes_its_program_along,
    a_program_that_never_answers_is_given_up,
    a_program_that_will_not_end_is_killed,
    a_space_restarts_again_and_again,
    a_restart_of_the_server_finds_what_runs,
    what_died_while_nobody_looked_is_shown,
    a_space_whose_program_is_not_here_says_so,
);

fn lines(space: &Value) -> Vec<&str> {
    space["last_lines"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

fn a_program_that_ends_at_once_is_a_failed_start(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.template("Ends", &[HELPER, "exit", "7"]);
    let id = admin.space("ends", &template);
    let task = key(&admin.act(&id, "start").expect(202).json(), "task_id");
    let space = admin.wait_for(&id, &["start_failed"]);
    assert_eq!((&space["exit_code"], &space["exit_signal"]), (&json!(7), &Value::Null), "{space}");
    assert_eq!(lines(&space), ["first line", "second line", "last line"]);
    let reason = key(&space, "status_reason");
    assert!(reason.contains("exit code 7") && reason.contains("last line"), "{reason}");
    let task = admin.wait_for_task(&task);
    assert_eq!(task["status"], "failed", "{task}");
    assert!(key(&task, "reason").contains("exit code 7"), "{task}");
    let log = admin.get(&format!("/spaces/{id}/log")).of("space");
    assert!(key(&log, "log").contains("second line"), "{log}");
    // The page of the space tells it too.
    let page = admin.get(&key(&space, "url")).refused(409, "SpaceStoppedError");
    assert!(page.text().contains("exit code 7"), "{}", page.text());
    let page = admin.send("GET", &key(&space, "url"), &[("Accept", "text/html")], None).expect(409).text();
    assert!(page.contains("exit code 7") && page.contains("second line"), "{page}");
    // It may be tried again, and may go.
    admin.act(&id, "start").expect(202);
    admin.wait_for(&id, &["start_failed"]);
    admin.delete(&format!("/spaces/{id}")).expect(200);
    assert_eq!(programs(&id), Vec::<i32>::new());
}

fn a_program_that_ends_later_is_a_stopped_space(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let space = admin.running_space("ends", &template);
    let (id, url) = (key(&space, "id"), key(&space, "url"));
    // It ends without an answer.
    admin.get(&format!("{url}exit?code=7")).expect(502);
    let space = admin.wait_for(&id, &["stopped"]);
    assert_eq!((&space["exit_code"], &space["running"]), (&json!(7), &json!(false)), "{space}");
    assert!(lines(&space).ends_with(&["asked to end", "with 7"]), "{space}");
    assert!(key(&space, "status_reason").contains("exit code 7"), "{space}");
    assert!(space["stopped_at"].is_string(), "{space}");
    admin.get(&url).refused(409, "SpaceStoppedError");
    // A new run forgets the old one's end.
    let space = admin.start(&id);
    assert_eq!((&space["exit_code"], &space["stopped_at"]), (&Value::Null, &Value::Null), "{space}");
    assert!(lines(&space).is_empty(), "{space}");
    // A clean exit is an end too.
    admin.get(&format!("{url}exit?code=0")).expect(502);
    assert_eq!(admin.wait_for(&id, &["stopped"])["exit_code"], 0);
}

fn a_killed_program_is_a_stopped_space(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let space = admin.running_space("victim", &template);
    let id = key(&space, "id");
    kill(programs(&id)[0], Signal::KILL);
    let space = admin.wait_for(&id, &["stopped"]);
    assert_eq!((&space["exit_code"], &space["exit_signal"]), (&Value::Null, &json!(9)), "{space}");
    assert!(key(&space, "status_reason").contains("signal 9"), "{space}");
    assert!(lines(&space).iter().any(|it| it.starts_with("listening on")), "{space}");
    assert_eq!(programs(&id), Vec::<i32>::new());
    admin.start(&id);
}

fn a_killed_supervisor_takes_its_program_along(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let space = admin.running_space("victim", &template);
    let id = key(&space, "id");
    let program = programs(&id)[0];
    let supervisor = house.programs().into_iter().find(|it| *it != program).unwrap();
    kill(supervisor, Signal::KILL);
    let space = admin.wait_for(&id, &["stopped"]);
    assert_eq!(space["running"], false);
    until("nothing of it runs", Duration::from_secs(5), || house.programs().is_empty().then_some(()));
    assert!(!alive(program));
    admin.start(&id);
    assert_eq!(programs(&id).len(), 1);
}

fn a_program_that_never_answers_is_given_up(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--start-timeout", "1"]);
    let admin = server.admin();
    let deaf = admin.template("Deaf", &[HELPER, "deaf", "{port}"]);
    let mute = admin.template("Mute", &["sleep", "1000"]);
    for (name, template) in [("deaf", deaf), ("mute", mute)] {
        let id = admin.space(name, &template);
        let start = Instant::now();
        admin.act(&id, "start").expect(202);
        // While it starts there is a page that waits.
        let url = key(&admin.read_space(&id), "url");
        let waiting = admin.get(&url).refused(503, "SpaceStartingError");
        assert!(!waiting.header("retry-after").is_empty());
        let space = admin.wait_for(&id, &["start_failed"]);
        let took = start.elapsed();
        assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "{took:?}");
        let reason = key(&space, "status_reason");
        assert!(!reason.is_empty(), "{space}");
        assert_eq!(programs(&id), Vec::<i32>::new(), "{space}");
    }
    assert!(house.programs().is_empty());
}

fn a_program_that_will_not_end_is_killed(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--stop-grace", "1"]);
    let admin = server.admin();
    // It ignores TERM, and so do its children, one of which leaves its group.
    let script = "trap '' TERM; sleep 1001 & setsid sleep 1002 & exec \"$0\" serve \"$PODYARD_PORT\"";
    let stubborn = admin.template("Stubborn", &["sh", "-c", script, HELPER]);
    let space = admin.running_space("stubborn", &stubborn);
    let id = key(&space, "id");
    until("its children run", Duration::from_secs(5), || (programs(&id).len() == 3).then_some(()));
    let start = Instant::now();
    let space = admin.stop(&id);
    let took = start.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "{took:?}");
    assert_eq!(space["exit_signal"], 9, "{space}");
    assert_eq!(programs(&id), Vec::<i32>::new());
    until("its supervisor ends", Duration::from_secs(5), || house.programs().is_empty().then_some(()));
    // One that listens ends at once, by the signal it was asked with.
    let polite = admin.serving_template();
    let space = admin.running_space("polite", &polite);
    let start = Instant::now();
    let space = admin.stop(&key(&space, "id"));
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    assert_eq!(space["exit_signal"], 15, "{space}");
}

fn opens(client: &Client, url: &str) -> Value {
    until("it opens", Duration::from_secs(10), || {
        let answer = client.get(url);
        (answer.status == 200).then(|| answer.json()["pid"].clone())
    })
}

/// The end of the run before must not be taken for the end of the new one.
fn a_space_restarts_again_and_again(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let id = key(&admin.running_space("restarts", &template), "id");
    for round in 0..15 {
        let task = key(&admin.act(&id, "restart").expect(202).json(), "task_id");
        let task = admin.wait_for_task(&task);
        assert_eq!(task["status"], "done", "round {round}: {task}");
        admin.wait_for(&id, &["running"]);
    }
    assert_eq!(programs(&id).len(), 1);
}

fn a_restart_of_the_server_finds_what_runs(kind: Kind) {
    let house = House::new(kind);
    let mut server = house.serve(&[]);
    let mut admin = server.admin();
    let template = admin.serving_template();
    let space = admin.running_space("stays", &template);
    let (id, url) = (key(&space, "id"), key(&space, "url"));
    let pid = opens(&admin, &url);
    for kill_9 in [false, true] {
        if kill_9 {
            server.kill_9();
        } else {
            server.ask_to_end();
            assert!(server.wait(Duration::from_secs(20)).success());
        }
        assert!(alive(i32::try_from(pid.as_i64().unwrap()).unwrap()), "the program ended with the server");
        server = house.serve(&[]);
        admin = admin.at(&server.base);
        // From the first answer on.
        assert_eq!(admin.read_space(&id)["status"], "running");
        assert_eq!(admin.get(&url).expect(200).json()["pid"], pid);
    }
    // It is still looked after: its end is seen, and it can be stopped.
    kill(programs(&id)[0], Signal::KILL);
    admin.wait_for(&id, &["stopped"]);
    admin.start(&id);
    drop(server);
    let server = house.serve(&[]);
    admin = admin.at(&server.base);
    admin.stop(&id);
    assert!(house.programs().is_empty());
}

fn what_died_while_nobody_looked_is_shown(kind: Kind) {
    let house = House::new(kind);
    let mut server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let space = admin.running_space("dies", &template);
    let (id, url) = (key(&space, "id"), key(&space, "url"));
    // The program hears of its end while the server is dying.
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| admin.try_send("GET", &format!("{url}exit?code=9"), &[], None));
        until("it has ended", Duration::from_secs(5), || programs(&id).is_empty().then_some(()));
        server.kill_9();
        let _ = asked.join();
    });
    let server = house.serve(&[]);
    let admin = admin.at(&server.base);
    let space = admin.wait_for(&id, &["stopped"]);
    assert_eq!(space["exit_code"], 9, "{space}");
    assert!(lines(&space).ends_with(&["asked to end", "with 9"]), "{space}");
}

fn a_space_whose_program_is_not_here_says_so(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.template("Absent", &["no-such-program-anywhere", "x"]);
    let row = admin.get(&format!("/templates/{template}")).of("template");
    assert_eq!(row["available"], false);
    assert!(key(&row, "unavailable_reason").contains("no-such-program-anywhere"), "{row}");
    let id = admin.space("absent", &template);
    admin.act(&id, "start").refused(409, "TemplateUnavailableError");
    assert_eq!(admin.read_space(&id)["status"], "stopped");
    assert_eq!(admin.get("/tasks").of("tasks"), json!([]));
}
