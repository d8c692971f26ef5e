use std::net::Ipv4Addr;

use super::*;

fn seen(uid: &str, version: u64, stage: Stage) -> Seen {
    Seen {
        name: "ws-a-b".into(),
        uid: uid.into(),
        owner: Box::default(),
        version,
        instance: format!("run-{uid}").into(),
        secret: "hush".into(),
        node: None,
        ip: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
        port: 8080,
        made_at: 1,
        stage,
        why: String::new(),
        going: false,
        given_up: None,
        speaker: None,
    }
}

fn over(code: i32) -> Stage {
    Stage::Over(Ended { code: Some(code), at: 7, ..Ended::default() })
}

struct Watched {
    cache: Cache,
    told: broadcast::Receiver<Observed>,
    finished: mpsc::UnboundedReceiver<Finished>,
}

impl Watched {
    fn new() -> Self {
        Self::of(false)
    }

    fn of(remade: bool) -> Self {
        let (to, finished) = mpsc::unbounded_channel();
        let ways =
            Box::new(|seen: &Seen, addr| Endpoint { addr, secret: seen.secret.to_string(), through: None });
        let cache = Cache::new(to, ways, remade);
        let told = cache.observe();
        Self { cache, told, finished }
    }

    /// What was told since the last time.
    fn told(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Ok(it) = self.told.try_recv() {
            let phase = match it.phase {
                Phase::Starting => "starting".to_owned(),
                Phase::Ready { endpoint } => format!("ready {}", endpoint.addr),
                Phase::Exited(exit) => format!("exited {:?} {}", exit.code, exit.last_lines.join("|")),
            };
            all.push(format!("{} {} {phase} {}", it.id, it.instance, it.detail).trim_end().to_owned());
        }
        all
    }
}

#[test]
fn a_run_is_told_once() {
    let mut it = Watched::new();
    it.cache.put("s", seen("1", 1, Stage::Starting), true);
    it.cache.put("s", seen("1", 1, Stage::Starting), false);
    it.cache.put("s", seen("1", 2, Stage::Ready), false);
    it.cache.put("s", seen("1", 2, Stage::Ready), false);
    it.cache.put("s", seen("1", 1, Stage::Starting), false);
    assert_eq!(it.told(), ["s run-1 starting", "s run-1 ready 10.0.0.1:8080"]);
    assert_eq!(it.cache.endpoint("s").unwrap().addr.to_string(), "10.0.0.1:8080");
    // That it ended is told once its log was read.
    it.cache.put("s", seen("1", 3, over(3)), false);
    assert!(it.told().is_empty());
    assert_eq!(it.cache.endpoint("s"), None);
    assert_eq!(it.finished.try_recv().unwrap().0, "s");
    it.cache.finish("s", "1", vec!["bye".into()]);
    it.cache.finish("s", "1", vec!["bye".into()]);
    assert_eq!(it.told(), ["s run-1 exited Some(3) bye"]);
    it.cache.put("s", seen("1", 4, over(3)), false);
    it.cache.gone("s", "1");
    assert!(it.told().is_empty());
    // It is listed until somebody takes note.
    assert_eq!(it.cache.list().len(), 1);
    assert_eq!(it.cache.take_note("s").unwrap().code, Some(3));
    assert!(it.cache.list().is_empty());
}

#[test]
fn what_others_delete_is_said() {
    let mut it = Watched::new();
    it.cache.put("s", seen("1", 1, Stage::Ready), false);
    let mut going = seen("1", 2, Stage::Ready);
    going.going = true;
    it.cache.put("s", going, false);
    it.cache.gone("s", "1");
    // The watch's old news of it are no new run.
    it.cache.put("s", seen("1", 2, Stage::Ready), false);
    assert_eq!(
        it.told(),
        [
            "s run-1 ready 10.0.0.1:8080",
            "s run-1 ready 10.0.0.1:8080 its pod is being deleted in the cluster",
            "s run-1 exited None  its pod was deleted in the cluster",
        ]
    );
    assert!(it.cache.pod("s").is_none());
}

#[test]
fn what_is_stopped_here_needs_no_words() {
    let mut it = Watched::new();
    it.cache.put("s", seen("1", 1, Stage::Ready), false);
    it.cache.stopping("s", "1");
    it.cache.gone("s", "1");
    assert_eq!(it.told(), ["s run-1 ready 10.0.0.1:8080", "s run-1 exited None"]);
}

#[test]
fn what_does_not_go_is_given_up() {
    let mut it = Watched::new();
    let going = |given_up: i64| Seen { going: true, given_up: Some(given_up), ..seen("1", 2, Stage::Ready) };
    it.cache.put("s", going(i64::MAX), false);
    it.cache.give_up_lost();
    assert!(it.finished.try_recv().is_err());
    it.cache.put("s", Seen { version: 3, ..going(1) }, false);
    it.told();
    it.cache.give_up_lost();
    it.cache.give_up_lost();
    assert_eq!(it.finished.try_recv().unwrap().0, "s");
    assert!(it.finished.try_recv().is_err());
    it.cache.finish("s", "1", Vec::new());
    assert_eq!(it.told(), ["s run-1 exited None  its node was lost"]);
}

#[test]
fn a_controller_makes_a_pod_anew() {
    let mut it = Watched::of(true);
    it.cache.put("s", seen("1", 1, Stage::Ready), false);
    it.cache.gone("s", "1");
    assert!(matches!(it.cache.list()[..], [Observed { phase: Phase::Starting, .. }]));
    let mut next = seen("2", 5, Stage::Starting);
    (next.made_at, next.instance) = (2, "run-1".into());
    it.cache.put("s", next, false);
    assert_eq!(
        it.told(),
        [
            "s run-1 ready 10.0.0.1:8080",
            "s run-1 starting its pod was deleted in the cluster and is made anew",
            "s run-1 starting",
        ]
    );
    // What this process ends is not awaited.
    it.cache.stopping("s", "2");
    it.cache.gone("s", "2");
    assert_eq!(it.told(), ["s run-1 exited None"]);
}

#[test]
fn a_program_that_ends_with_its_pods_deletion_did_not_end_by_itself() {
    let going = |stage: Stage| Seen { going: true, ..seen("1", 2, stage) };
    // For a controller's space the run goes on in the next pod.
    let mut it = Watched::of(true);
    it.cache.put("s", seen("1", 1, Stage::Ready), false);
    it.cache.put("s", going(over(143)), false);
    it.cache.gone("s", "1");
    assert_eq!(
        it.told()[1..],
        [
            "s run-1 starting its pod is being deleted in the cluster",
            "s run-1 starting its pod was deleted in the cluster and is made anew",
        ]
    );
    // Unless nobody wants it any more.
    it.cache.await_no_more("s", "enough");
    it.cache.await_no_more("s", "enough");
    assert_eq!(it.told(), ["s run-1 exited None  enough"]);
    // Elsewhere it is over, with the true reason, or none if this process did it.
    for (stopping, reason) in [(false, "  its pod was deleted in the cluster"), (true, "")] {
        let mut it = Watched::new();
        it.cache.put("s", seen("1", 1, Stage::Ready), false);
        if stopping {
            it.cache.stopping("s", "1");
        }
        it.cache.put("s", going(over(143)), false);
        it.cache.finish("s", "1", Vec::new());
        assert_eq!(it.told()[1..], [format!("s run-1 exited Some(143){reason}")]);
    }
    // One that had ended by itself before is over all the same.
    let mut it = Watched::of(true);
    it.cache.put("s", seen("1", 1, over(3)), false);
    it.cache.put("s", going(over(3)), false);
    it.cache.finish("s", "1", Vec::new());
    it.cache.gone("s", "1");
    assert_eq!(it.told(), ["s run-1 exited Some(3)"]);
}

#[test]
fn one_pod_follows_another() {
    let mut it = Watched::new();
    it.cache.put("s", seen("1", 5, Stage::Ready), false);
    let mut next = seen("2", 9, Stage::Starting);
    next.made_at = 2;
    it.cache.put("s", next, true);
    // What comes late of the first changes nothing.
    it.cache.put("s", seen("1", 8, Stage::Ready), false);
    it.cache.gone("s", "1");
    assert_eq!(
        it.told(),
        [
            "s run-1 ready 10.0.0.1:8080",
            "s run-1 exited None  its pod was deleted in the cluster",
            "s run-2 starting",
        ]
    );
    assert_eq!(&*it.cache.pod("s").unwrap().uid, "2");
}

#[test]
fn a_list_tells_what_went_and_spares_what_is_new() {
    let mut it = Watched::new();
    it.cache.put("old", seen("1", 1, Stage::Ready), false);
    let began = Instant::now();
    it.cache.put("new", seen("2", 2, Stage::Starting), true);
    it.told();
    it.cache.pods_listed(&HashSet::new(), began);
    assert_eq!(it.told(), ["old run-1 exited None  its pod was deleted in the cluster"]);
    assert!(it.cache.pod("new").is_some());
    // The watch has it now: the next list decides.
    it.cache.put("new", seen("2", 2, Stage::Starting), false);
    it.cache.pods_listed(&HashSet::new(), Instant::now());
    assert!(it.cache.pod("new").is_none());
}

#[test]
fn events_say_more_while_it_starts() {
    let mut it = Watched::new();
    it.cache.put("s", seen("1", 1, Stage::Starting), false);
    it.cache.explain("s", "1", "no volume".into());
    it.cache.explain("s", "1", "no volume".into());
    it.cache.explain("s", "0", "of another".into());
    it.cache.put("s", seen("1", 2, Stage::Starting), false);
    assert_eq!(it.cache.why("s"), "no volume");
    it.cache.put("s", seen("1", 3, Stage::Ready), false);
    assert_eq!(it.told(), ["s run-1 starting", "s run-1 starting no volume", "s run-1 ready 10.0.0.1:8080"]);
}

#[test]
fn nothing_is_listed_before_all_was_seen() {
    let it = Watched::new();
    assert!(it.cache.synced().is_err());
    it.cache.failed("forbidden".into());
    assert_eq!(it.cache.synced(), Err("forbidden".into()));
    it.cache.pods_listed(&HashSet::new(), Instant::now());
    assert!(it.cache.synced().is_err());
    it.cache.claims_listed(HashMap::new());
    assert_eq!(it.cache.synced(), Ok(()));
    // A cluster that goes away later leaves what was known.
    it.cache.failed("away".into());
    assert_eq!(it.cache.synced(), Ok(()));
}

/// Prints what 10,000 pods take.
#[cfg(target_os = "linux")]
#[test]
fn ten_thousand_pods_are_small() {
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
    let it = Watched::new();
    drop(it.told);
    let before = resident();
    for i in 0..10_000_u32 {
        let mut seen = seen("", 1, Stage::Ready);
        seen.name = format!("ws-0192f0c47a8e700080000123456789ab-{i:024x}").into();
        seen.uid = format!("0192f0c4-7a8e-7000-8000-{i:012x}").into();
        seen.instance = format!("{i:032x}").into();
        seen.secret = format!("{i:032x}").into();
        seen.node = Some("node-with-a-name".into());
        seen.speaker = Some("main".into());
        let space = format!("0192f0c4-7a8e-7000-8001-{i:012x}");
        it.cache.put(&space, seen, false);
        let kept = Kept {
            name: format!("ws-0192f0c47a8e700080000123456789ab-{i:024x}"),
            uid: format!("0192f0c4-7a8e-7000-8002-{i:012x}"),
            version: "1234567".into(),
            class: Some("standard".into()),
            asked: "8Gi".into(),
            has: "8Gi".into(),
            phase: "Bound".into(),
            ..Kept::default()
        };
        it.cache.put_claim(&space, kept);
    }
    let taken = resident() - before;
    println!("10,000 pods and claims take {} KiB, {} bytes each", taken >> 10, taken / 10_000);
    assert!(taken < 24 << 20, "{taken}");
}
