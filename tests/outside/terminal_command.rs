//! `podyard terminal`: a space's terminal in one's own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::terminal::{command, no_shells, running};
use crate::harness::{House, Kind, kill, until};

#[test]
fn the_command_is_a_terminal_too() {
    let house = House::new(Kind::Sqlite);
    let (_server, _, ann, id) = running(&house, &[]);
    // With a pipe: what is in it is typed, then the end.
    let mut child = command(&house, &ann, "work");
    let mut child =
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all("x=; echo größer $x空間; exit 9\n".as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("größer 空間"));
    let mut child = command(&house, &ann, &id);
    let output = child.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "the end of the input ends the shell: {output:?}");
    // Errors in words.
    let said = |mut command: Command| {
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = said(command(&house, &ann, "none"));
    assert!(code == Some(255) && text.contains("space none not found"), "{code:?} {text}");
    let (code, text) = said(command(&house, &ann.with_token("nonsense"), "work"));
    assert!(code == Some(255) && text.contains("token"), "{code:?} {text}");
    let (code, text) = said(command(&house, &ann.at("ftp://x"), "work"));
    assert!(code == Some(255) && text.contains("http://"), "{code:?} {text}");
    let (code, text) = said(command(&house, &ann.at("http://127.0.0.1:1"), "work"));
    assert!(code == Some(255) && text.contains("127.0.0.1:1"), "{code:?} {text}");
    let mut without = command(&house, &ann, "work");
    without.env_remove("PODYARD_TOKEN");
    let (code, text) = said(without);
    assert!(code == Some(2) && text.contains("--token"), "{code:?} {text}");
    no_shells(&id);
}

/// A pty whose other side a command has.
struct Pty {
    ours: fs::File,
    theirs: fs::File,
    seen: String,
}

impl Pty {
    fn new(columns: u16, rows: u16) -> Self {
        use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).unwrap();
        unlockpt(&ours).unwrap();
        let theirs = ioctl_tiocgptpeer(&ours, flags).unwrap();
        let it = Self { ours: ours.into(), theirs: theirs.into(), seen: String::new() };
        it.resize(columns, rows);
        it
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.ours, size).unwrap();
    }

    fn modes(&self) -> String {
        format!("{:?}", rustix::termios::tcgetattr(&self.theirs).unwrap())
    }

    fn give_to(&self, command: &mut Command) {
        let side = || Stdio::from(self.theirs.try_clone().unwrap());
        command.stdin(side()).stdout(side()).stderr(side());
    }

    #[track_caller]
    fn until(&mut self, text: &str) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        while !self.seen.contains(text) {
            let wait = Timespec { tv_sec: 20, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&self.ours, PollFlags::IN)], Some(&wait)).unwrap();
            assert!(ready > 0, "{text:?} does not come after {:?}", self.seen);
            let mut piece = [0; 4096];
            let count = self.ours.read(&mut piece).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        self.seen.clear();
    }
}

#[test]
fn ones_own_terminal_is_as_it_was_before() {
    let house = House::new(Kind::Sqlite);
    let (_server, _, ann, id) = running(&house, &[]);
    let mut pty = Pty::new(90, 25);
    let before = pty.modes();
    let mut child = command(&house, &ann, "work");
    pty.give_to(&mut child);
    let mut child = child.spawn().unwrap();
    pty.ours.write_all(b"stty size; echo here-$((1+1))\n").unwrap();
    pty.until("25 90");
    assert_ne!(pty.modes(), before, "it is raw meanwhile");
    pty.resize(111, 33);
    kill(i32::try_from(child.id()).unwrap(), Signal::WINCH);
    std::thread::sleep(Duration::from_millis(300));
    pty.ours.write_all(b"stty size\n").unwrap();
    pty.until("33 111");
    // Keys that end things here end them there.
    pty.ours.write_all(b"sleep 907\n").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    pty.ours.write_all(b"\x03echo back-$((1+1))\n").unwrap();
    pty.until("back-2");
    pty.ours.write_all(b"exit 3\n").unwrap();
    let status = until("it has ended", Duration::from_secs(10), || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(3));
    assert_eq!(pty.modes(), before);
    // Signals, too, leave it as it was, and end the shell.
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut pty = Pty::new(80, 24);
        let before = pty.modes();
        let mut child = command(&house, &ann, "work");
        pty.give_to(&mut child);
        let mut child = child.spawn().unwrap();
        pty.ours.write_all(b"echo here-$((1+1))\n").unwrap();
        pty.until("here-2");
        assert_ne!(pty.modes(), before);
        kill(i32::try_from(child.id()).unwrap(), signal);
        let status = until("it has ended", Duration::from_secs(10), || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(128 + signal.as_raw()), "{signal:?}");
        assert_eq!(pty.modes(), before, "{signal:?}");
        no_shells(&id);
    }
}
