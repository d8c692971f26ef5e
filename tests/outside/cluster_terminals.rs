//! Terminals in pods, on the real binary: the same as in any other space, and
//! over with the pod.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::protocol::frame::coding::CloseCode;

use crate::harness::terminal::{
    command, descriptors, metrics, no_shells, open, records, resident, shells, try_open,
};
use crate::harness::{Client, Cluster, House, Kind, Server, at_once, key, programs, until};

on_each_database!(
    without mysql:
    a_shell_in_a_pod,
    it_ends_with_the_pod,
);

const SOON: Duration = Duration::from_secs(30);

/// A server in a cluster, an administrator, and a member with a space that runs.
fn running(house: &House, cluster: &Cluster, args: &[&str]) -> (Server, Client, Client, String) {
    let server = house.serve_in(cluster, args);
    let admin = server.admin();
    let template = admin.container_template("Echo", &json!({}));
    let ann = admin.member("ann");
    let id = key(&ann.running_space("work", &template), "id");
    (server, admin, ann, id)
}

/// What runs of a space: its program, shells and what looks after them.
#[track_caller]
fn only_its_program(id: &str) {
    let begin = Instant::now();
    loop {
        let left = programs(id);
        if left.len() == 1 {
            return;
        }
        let line = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).chars().take(60).collect::<String>()
        };
        let lines: Vec<_> = left.iter().map(line).collect();
        assert!(begin.elapsed() < SOON, "not only its program is left: {lines:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn a_shell_in_a_pod(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let (_server, admin, ann, id) = running(&house, &cluster, &[]);
    only_its_program(&id);
    let mut shell = open(&ann, &id);
    assert_eq!(shell.head["sec-websocket-protocol"], "podyard.terminal.v1");
    shell.type_in("x=; echo \"größer $x空間 🦀 $TERM $PODYARD_SPACE_ID\"; stty size\n");
    shell.until(&format!("größer 空間 🦀 xterm-256color {id}"));
    shell.until("30 100");
    shell.control(r#"{"resize": {"columns": 132, "rows": 43}}"#);
    until("the size is another one", SOON, || {
        shell.type_in("echo \"<$(stty size)>\"\n");
        // The first is the echo of what was typed.
        shell.until("<$(stty size)>");
        shell.until("<");
        (shell.until(">") == "43 132>").then_some(())
    });
    shell.type_in("nohup sleep 908 & exit 7\n");
    assert_eq!(shell.end(), (json!({"exit": {"code": 7, "reason": ""}}), CloseCode::Normal));
    only_its_program(&id);
    let both = until("its end is noted", SOON, || {
        let found = records(&admin, &id);
        (found.len() == 2).then_some(found)
    });
    let (opened, closed) = (&both[0], &both[1]);
    assert_eq!((&opened["user_name"], &opened["client_ip"]), (&json!("ann"), &json!("127.0.0.1")));
    let note = |name: &str| closed["notes"][name]["new"].clone();
    assert_eq!((note("exit_code"), note("why")), (json!(7), json!("shell")), "{closed}");
    // The same right, and the same command.
    assert_eq!(try_open(&admin, &id).err().unwrap().status, 403);
    let mut child = command(&house, &ann, "work");
    let mut child =
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all("x=; echo größer $x空間; exit 9\n".as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("größer 空間"));
    only_its_program(&id);
}

fn it_ends_with_the_pod(kind: Kind) {
    let (house, cluster) = (House::new(kind), Cluster::start("10"));
    let (_server, admin, ann, id) = running(&house, &cluster, &[]);
    let over = |what: &str, end: &dyn Fn(&str)| {
        let mut shell = open(&ann, &id);
        shell.type_in("trap '' HUP TERM; nohup sleep 909 & sleep 910\n");
        until("it runs", SOON, || (shells(&id) >= 3).then_some(()));
        end(&cluster.names("pods")[0]);
        let (said, code) = shell.end();
        let exit = &said["exit"];
        assert_eq!((&exit["code"], code), (&Value::Null, CloseCode::Normal), "{what}: {said}");
        assert_eq!(exit["reason"], "the space has ended", "{what}");
        admin.wait_for(&id, &["stopped"]);
        assert_eq!(try_open(&ann, &id).err().unwrap().status, 409, "{what}");
        no_shells(&id);
        let last = until("its end is noted", SOON, || {
            records(&admin, &id).pop().filter(|it| it["action"] == "terminal_closed")
        });
        assert_eq!(last["notes"]["why"]["new"], "shell", "{what}: {last}");
    };
    over("its stop", &|_| drop(ann.act(&id, "stop").expect(202)));
    ann.start(&id);
    over("a pod that somebody deletes", &|pod| cluster.delete_pod(pod));
    ann.start(&id);
    over("a pod that is gone at once", &|pod| cluster.pod(pod, "kill"));
}

/// The thousand of `terminal_flow`, in small: in pods each is two connections
/// to the API server, and two processes that nobody ends but ourselves.
#[test]
fn they_come_and_go_and_nothing_is_left() {
    let (house, cluster) = (House::new(Kind::Sqlite), Cluster::start("10"));
    let (server, admin, ann, id) = running(&house, &cluster, &["--max-space-terminals", "100"]);
    let pid = server.pid();
    let one = |i: usize| {
        // Whoever is gone at once, in the middle of output, with children that stay, or with a word.
        let Ok(mut shell) = try_open(&ann, &id) else { return };
        match i % 4 {
            0 => {}
            1 => {
                shell.type_in("yes\n");
                shell.until("y\r\ny");
            }
            2 => {
                shell.type_in("trap '' HUP; nohup sleep 911 >/dev/null 2>&1 & echo up-$((1+1))\n");
                shell.until("up-2");
            }
            _ => {
                shell.type_in("exit\n");
                shell.end();
            }
        }
    };
    // Four at once: the double's pods share a machine, where each end looks at all processes.
    let rounds = |count: usize| {
        for round in 0..count {
            at_once(4, |i| one(round + i));
            only_its_program(&id);
        }
        until("all terminals are closed", SOON, || {
            let now = metrics(&admin);
            ["podyard_terminals_open", "podyard_terminal_tasks"]
                .iter()
                .all(|it| now[*it] == 0.0)
                .then_some(())
        });
    };
    // The first ones warm up what is kept on purpose.
    rounds(2);
    let tasks = || metrics(&admin)["podyard_async_tasks"];
    let before = (descriptors(pid), tasks(), resident(pid));
    rounds(8);
    // Connections of the tests' own clients and to the cluster come and go, too.
    until("descriptors and tasks are as they were", SOON, || {
        (descriptors(pid) <= before.0 + 3 && tasks() <= before.1 + 2.0).then_some(())
    });
    let grown = resident(pid).saturating_sub(before.2);
    assert!(grown < 8 << 20, "{} KiB more are in memory", grown >> 10);
    let count =
        |action: &str| house.count(&format!("SELECT count(*) FROM ops_log WHERE action = '{action}'"));
    until("all ends are on record", SOON, || {
        (count("terminal_opened") == count("terminal_closed")).then_some(())
    });
    assert!(count("terminal_closed") >= 38);
}
