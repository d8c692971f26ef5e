//! Against what a real cluster said: the decisive parts of its answers.

use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};

use super::*;
use crate::events::happening;
use crate::seen::Seen;

fn fixture(name: &str) -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(format!("{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn pod(name: &str) -> Pod {
    let told = fixture(name);
    let pod = json!({
        "metadata": { "name": "p", "deletionTimestamp": told.get("deletionTimestamp") },
        "spec": {
            "restartPolicy": told["restartPolicy"],
            "containers": [{ "name": "main", "resources": { "limits": { "memory": "32Mi" } } }],
        },
        "status": told["status"],
    });
    serde_json::from_value(pod).unwrap()
}

fn events(name: &str) -> Vec<Happening> {
    let told: Vec<Event> = serde_json::from_value(fixture(name)["events"].clone()).unwrap();
    told.iter().map(happening).collect()
}

fn starting(name: &str, wanted: &str) {
    let (stage, why) = stage(&pod(name));
    assert_eq!(stage, Stage::Starting, "{name}");
    assert_eq!(why, wanted, "{name}");
}

fn over(name: &str, code: Option<i32>, wanted: &str) -> Ended {
    let (Stage::Over(ended), why) = stage(&pod(name)) else { panic!("{name} is not over") };
    assert_eq!((ended.code, ended.reason.as_str()), (code, wanted), "{name}");
    assert_eq!(why, wanted, "{name}");
    ended
}

#[test]
fn on_its_way() {
    starting("created", "");
    starting("creating", "");
    starting("not_ready_yet", "its program runs and does not answer yet");
    assert_eq!(stage(&Pod::default()), (Stage::Starting, String::new()));
}

#[test]
fn ready_and_slow() {
    assert_eq!(stage(&pod("ready")), (Stage::Ready, String::new()));
    assert_eq!(stage(&pod("not_ready_any_more")), (Stage::Ready, "its program is slow to answer".to_owned()));
}

#[test]
fn no_room() {
    starting(
        "no_room",
        "no room: no node has enough left: 0/1 nodes are available: 1 Insufficient memory. no new claims to \
         deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    );
    let (_, why) = stage(&pod("no_node"));
    assert!(why.starts_with("no node has the labels that it needs: 0/1 nodes are available: "), "{why}");
}

#[test]
fn no_image() {
    let wanted = "the image docker.io/library/nosuchimage:1.0 cannot be had: rpc error: code = NotFound desc = \
                  failed to pull and unpack image \"docker.io/library/nosuchimage:1.0\": failed to resolve \
                  reference \"docker.io/library/nosuchimage:1.0\": docker.io/library/nosuchimage:1.0: not found";
    starting("image_not_found", wanted);
    // The two alternate: what is told stays the same.
    starting("image_back_off", wanted);
    over("image_name", None, "\"UPPER/Case:!!\" is no name of an image");
}

#[test]
fn crashes() {
    let told =
        over("crash_loop", Some(3), "its program crashes again and again (2 times; the last: exit code 3)");
    assert!(told.at > 0);
    starting("crash_between", "its program ended and is started again");
    let ended = over("failed", Some(3), "");
    assert!(ended.at > 1_700_000_000_000_000);
    over("ended", Some(0), "");
}

#[test]
fn out_of_memory() {
    over("out_of_memory", Some(137), "it ran out of memory: it may use 32Mi");
}

#[test]
fn what_cannot_be_run() {
    let (Stage::Over(ended), _) = stage(&pod("bad_command")) else { panic!("not over") };
    assert_eq!(ended.code, None);
    assert!(ended.reason.starts_with("its command cannot be run: "), "{}", ended.reason);
    assert!(ended.reason.contains("/no/such/binary"));
    starting("missing_secret", "it cannot be made: secret \"nope\" not found");
}

#[test]
fn a_step_before_it() {
    over("init_failed", None, "the container \"prep\", which runs before the program, failed: exit code 4");
    let mut clone = pod("init_failed");
    clone.status.as_mut().unwrap().init_container_statuses.as_mut().unwrap()[0].name = CLONE.into();
    let (Stage::Over(ended), _) = stage(&clone) else { panic!("not over") };
    assert_eq!(ended.reason, "its repository cannot be cloned: exit code 4");
}

#[test]
fn what_the_cluster_does() {
    over("deadline", Some(0), "the time that it may run was over");
    over("evicted", Some(0), "it was evicted, as when its node is emptied");
    let status =
        json!({ "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory." });
    let pod: Pod = serde_json::from_value(json!({ "metadata": {}, "status": status })).unwrap();
    let (Stage::Over(ended), _) = stage(&pod) else { panic!("not over") };
    assert_eq!(
        ended.reason,
        "its node was short of something and evicted it: The node was low on resource: memory."
    );
    assert_eq!(ended.code, None);
}

#[test]
fn volumes() {
    let (_, why) = stage(&pod("claim_missing"));
    assert!(why.starts_with("the volume of its files is not there yet: 0/1 nodes are available: "), "{why}");
    let told = events("claim_events");
    let only = |reason: &str| told.iter().filter(|it| it.reason == reason).cloned().collect::<Vec<_>>();
    assert_eq!(
        of_events(&only("ProvisioningFailed")).unwrap(),
        "the volume of its files cannot be made: storageclass.storage.k8s.io \"no-such-class\" not found"
    );
    assert_eq!(of_events(&only("WaitForFirstConsumer")), None);
}

#[test]
fn a_probe_that_fails() {
    let told = of_events(&events("not_ready_yet")).unwrap();
    assert_eq!(
        told,
        "its program runs and does not answer yet: Readiness probe failed: cat: can't open '/tmp/ok': \
         No such file or directory"
    );
}

#[test]
fn a_deleted_pod_runs_until_its_program_has_ended() {
    let mut pod = pod("ready");
    let now = jiff::Timestamp::from_second(1).unwrap();
    pod.metadata.deletion_timestamp = Some(Time(now));
    assert_eq!(stage(&pod).0, Stage::Ready);
}

/// A pod whose node is not heard of any more: the kubelet's last word stays, and the
/// cluster adds its own.
fn unheard(reason: &str) -> Pod {
    let mut pod = pod("ready");
    let mut target = json!({ "type": "DisruptionTarget", "status": "True", "reason": reason });
    target["message"] = json!("Taint manager: deleting due to NoExecute taint");
    let conditions = pod.status.as_mut().unwrap().conditions.as_mut().unwrap();
    conditions.iter_mut().find(|it| it.type_ == "Ready").unwrap().status = "False".to_owned();
    conditions.push(serde_json::from_value(target).unwrap());
    pod.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::now()));
    pod.metadata.deletion_grace_period_seconds = Some(30);
    pod
}

#[test]
fn a_lost_node() {
    for reason in ["DeletionByTaintManager", "DeletionByPodGC"] {
        let pod = unheard(reason);
        let ended = Ended { reason: "its node was lost".to_owned(), ..Ended::default() };
        assert_eq!(stage(&pod), (Stage::Over(ended), "its node was lost".to_owned()), "{reason}");
        assert!(Seen::of(&pod).is_given_up(), "{reason}");
    }
    // It is not going yet: its node may come back.
    let mut pod = unheard("DeletionByTaintManager");
    pod.metadata.deletion_timestamp = None;
    assert_eq!(stage(&pod).0, Stage::Ready);
    assert!(!Seen::of(&pod).is_given_up());
}

#[test]
fn a_node_that_ends_its_pods_itself_is_not_lost() {
    let told = |pod: &mut Pod, of: &str, is: &str| {
        let conditions = pod.status.as_mut().unwrap().conditions.as_mut().unwrap();
        conditions.iter_mut().find(|it| it.type_ == of).unwrap().status = is.to_owned();
    };
    let mut pod = unheard("DeletionByTaintManager");
    told(&mut pod, "Ready", "True");
    assert_eq!(stage(&pod).0, Stage::Ready);
    // Its kubelet says itself that a container is not ready any more.
    told(&mut pod, "Ready", "False");
    told(&mut pod, "ContainersReady", "False");
    assert_eq!(stage(&pod), (Stage::Ready, "its program is slow to answer".to_owned()));
    assert!(!Seen::of(&pod).is_given_up());
    let mut evicted = unheard("EvictionByEvictionAPI");
    assert_eq!(stage(&evicted).0, Stage::Ready);
    assert!(!Seen::of(&evicted).is_given_up());
    // So it is only once it had its time, twice its grace and 30 s.
    let ago = |seconds: i64| Some(Time(jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds)));
    evicted.metadata.deletion_timestamp = ago(50);
    assert!(!Seen::of(&evicted).is_given_up());
    evicted.metadata.deletion_timestamp = ago(61);
    assert!(Seen::of(&evicted).is_given_up());
}

/// A pod that is ready but for a container beside the program that crashes: among the
/// others, or among the first (`Always`: one that stays).
fn crashing(first: bool, state: &Value) -> Pod {
    let mut pod = pod("not_ready_yet");
    let container = json!({
        "name": "logger", "image": "logger:1", "imageID": "", "ready": false, "restartCount": 2,
        "state": state, "lastState": { "terminated": { "exitCode": 5 } },
    });
    let container = serde_json::from_value(container).unwrap();
    let status = pod.status.as_mut().unwrap();
    if first {
        status.init_container_statuses.get_or_insert_default().push(container);
        let own = json!([{ "name": "logger", "restartPolicy": "Always" }]);
        pod.spec.as_mut().unwrap().init_containers = Some(serde_json::from_value(own).unwrap());
    } else {
        status.container_statuses.as_mut().unwrap().push(container);
    }
    pod
}

#[test]
fn what_crashes_beside_the_program_does_not_end_it() {
    let wanted = "its container \"logger\" crashes again and again (3 times; the last: exit code 5)";
    let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
    for first in [true, false] {
        let mut pod = crashing(first, &waiting);
        assert_eq!(stage(&pod), (Stage::Starting, wanted.to_owned()));
        pod.status.as_mut().unwrap().container_statuses.as_mut().unwrap().retain(|it| it.name != MAIN);
        assert_eq!(stage(&pod), (Stage::Starting, wanted.to_owned()));
    }
    // One that only runs before the program still holds it up for ever.
    let mut plain = crashing(true, &waiting);
    plain.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[0].restart_policy = None;
    assert!(matches!(stage(&plain).0, Stage::Over(_)));
}

#[test]
fn what_stays_beside_the_program_may_end_once() {
    let mut pod = crashing(true, &json!({ "terminated": { "exitCode": 5 } }));
    pod.spec.as_mut().unwrap().restart_policy = Some("Never".to_owned());
    assert_eq!(stage(&pod).0, Stage::Starting);
    pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[0].restart_policy = None;
    let (Stage::Over(ended), _) = stage(&pod) else { panic!("not over") };
    assert_eq!(ended.reason, "the container \"logger\", which runs before the program, failed: exit code 5");
}
