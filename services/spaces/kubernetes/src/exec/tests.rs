use super::pulse::ROOM;
use super::*;

fn end(status: &str) -> (Option<i32>, String) {
    let end = ended(status.as_bytes());
    (end.code, end.reason)
}

#[test]
fn statuses_are_read_by_their_cause() {
    assert_eq!(end(r#"{"metadata":{},"status":"Success"}"#), (Some(0), String::new()));
    for message in ["command terminated with exit code 5", "error executing command [sh], exit code 5"] {
        let status = format!(
            r#"{{"metadata":{{}},"status":"Failure","message":"{message}","reason":"NonZeroExitCode",
                "details":{{"causes":[{{"reason":"ExitCode","message":"5"}}]}}}}"#
        );
        assert_eq!(end(&status), (Some(5), String::new()));
    }
    let internal = r#"{"metadata":{},"status":"Failure","message":"no such file","reason":"InternalError",
        "details":{"causes":[{"message":"no such file"}]},"code":500}"#;
    assert_eq!(end(internal), (None, "no such file".into()));
    assert_eq!(end("x").0, None);
}

#[test]
fn messages_begin_with_their_channel() {
    assert_eq!(message(channel::STDIN, b"ab").into_data(), &b"\0ab"[..]);
    let size = TerminalSize { columns: 100, rows: 30 };
    assert_eq!(resize(size).into_data(), &b"\x04{\"Width\":100,\"Height\":30}"[..]);
}

#[test]
fn scripts_go_without_their_comments() {
    for text in [script(KEEPER), script(SHELL)] {
        assert!(text.lines().all(|line| !line.starts_with([' ', '#']) && !line.is_empty()), "{text}");
    }
    assert!(script("# x\n  a # b\n\nc\n") == "a # b\nc\n");
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

fn pong(pulse: &Pulse) {
    let Message::Ping(said) = pulse.ping() else { panic!("no ping") };
    pulse.heard(&Message::Pong(said));
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_lost_connection() {
    let pulse = Pulse::new();
    pong(&pulse);
    pass(59).await;
    assert!(!pulse.is_lost());
    pass(1).await;
    assert!(pulse.is_lost());
    // Whatever comes is a sign of life.
    pulse.heard(&Message::Binary(Bytes::from_static(b"\x01x")));
    assert!(!pulse.is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_no_pings_is_not_lost() {
    let pulse = Pulse::new();
    pulse.heard(&Message::Binary(Bytes::from_static(b"\x01x")));
    pass(1000).await;
    assert!(!pulse.is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_terminal_that_nobody_reads_is_not_lost() {
    let pulse = Pulse::new();
    pong(&pulse);
    pulse.hold();
    pass(1000).await;
    assert!(!pulse.is_lost());
    pulse.go_on();
    assert!(!pulse.is_lost());
    pass(60).await;
    assert!(pulse.is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_shell_that_reads_nothing_is_not_lost() {
    let pulse = Pulse::new();
    pong(&pulse);
    pulse.send(ROOM + 1);
    pass(1000).await;
    assert!(!pulse.is_lost());
    // Once the server has read it, it can answer again; and some keys hold nobody up.
    pong(&pulse);
    pulse.send(3);
    pass(60).await;
    assert!(pulse.is_lost());
}

/// The scripts, with the real shells of this machine.
mod scripts {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use super::*;

    struct Held {
        id: String,
        keeper: Child,
        pid: String,
        shell: Child,
    }

    fn begin(sh: &str, patience: u32) -> Held {
        let id = id();
        let patience = patience.to_string();
        let mut keeper = Command::new("setsid");
        keeper.args([sh, "-c", &script(KEEPER), "podyard-keeper", &id, &patience]);
        let mut keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut pid = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        let pid = pid.trim().to_owned();
        let mut shell = Command::new("setsid");
        shell.args([sh, "-c", &script(SHELL), "podyard-terminal", &id, &pid, "80", "24"]);
        let mut shell =
            shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // One in the background, one that ignores a hang-up in a session of its own, one that has
        // lost its environment, one that is waited for.
        let work =
            "sleep 7770 &\nsetsid sh -c 'trap \"\" HUP; sleep 7771' &\nenv -i sleep 7772 &\nsleep 7773\n";
        shell.stdin.as_mut().unwrap().write_all(work.as_bytes()).unwrap();
        let held = Held { id, keeper, pid, shell };
        wait("all runs", || held.members().len() >= 5);
        held
    }

    fn wait(what: &str, mut is: impl FnMut() -> bool) {
        for _ in 0..200 {
            if is() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("it did not come to be that {what}");
    }

    impl Held {
        /// The shell and what it has started: by the id, or by the session.
        fn members(&self) -> Vec<String> {
            let session = self.shell.id().to_string();
            let mut found = Vec::new();
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                let pid = entry.file_name().to_string_lossy().into_owned();
                if pid == self.pid || !pid.bytes().all(|it| it.is_ascii_digit()) {
                    continue;
                }
                let read = |name: &str| {
                    String::from_utf8_lossy(&std::fs::read(entry.path().join(name)).unwrap_or_default())
                        .into_owned()
                };
                let stat = read("stat");
                let words: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
                if words.first().is_none_or(|it| ["Z", "X"].contains(it)) || words[1] == self.pid {
                    continue;
                }
                if read("environ").contains(&self.id)
                    || read("cmdline").contains(&self.id)
                    || words[3] == session
                {
                    found.push(pid);
                }
            }
            found
        }

        fn ends(mut self) {
            wait("the shell and all of its children are gone", || {
                let _ = self.shell.try_wait();
                self.members().is_empty()
            });
            wait("the keeper is gone", || self.keeper.try_wait().unwrap().is_some());
        }
    }

    fn shells() -> impl Iterator<Item = &'static str> {
        ["dash", "bash"].into_iter().filter(|sh| Command::new(sh).arg("-c").arg(":").status().is_ok())
    }

    #[test]
    fn the_end_of_its_input_ends_the_terminal() {
        for sh in shells() {
            let mut held = begin(sh, 60);
            drop(held.keeper.stdin.take());
            held.ends();
        }
    }

    #[test]
    fn a_word_ends_the_terminal() {
        for sh in shells() {
            let mut held = begin(sh, 60);
            held.keeper.stdin.as_mut().unwrap().write_all(b"\nend\n").unwrap();
            held.ends();
        }
    }

    #[test]
    fn lines_that_come_no_more_end_the_terminal() {
        for sh in shells() {
            let mut held = begin(sh, 2);
            for _ in 0..12 {
                std::thread::sleep(Duration::from_millis(300));
                held.keeper.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
            }
            assert!(held.members().len() >= 5, "{sh}: lines came, and it ended");
            held.ends();
        }
    }

    #[test]
    fn without_a_keeper_there_is_no_shell() {
        for sh in shells() {
            let mut gone = Command::new("true").spawn().unwrap();
            gone.wait().unwrap();
            let (id, pid) = (id(), gone.id().to_string());
            let mut shell = Command::new(sh);
            shell.args(["-c", &script(SHELL), "podyard-terminal", &id, &pid, "80", "24"]);
            assert_eq!(shell.stdin(Stdio::null()).status().unwrap().code(), Some(126), "{sh}");
        }
    }
}
