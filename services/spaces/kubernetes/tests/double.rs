//! The driver against the double of the API server, which behaves as recorded
//! from a real cluster.
#![expect(clippy::unwrap_used, reason = "clippy knows the tests themselves, not what they share")]

use std::future::Future;
use std::time::{Duration, Instant};

use http::Request;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use podyard_driver::{Container, Driver, Error, Exit, Launch, Observed, Phase};
use podyard_kubernetes::{KubernetesDriver, Level, Options, Reach, Space, Way, control, crd, doctor};
use podyard_kubernetes_double::{Double, Options as Doubled};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);

struct House {
    double: Double,
    folder: tempfile::TempDir,
    client: Client,
}

impl House {
    async fn new() -> Self {
        let double = Double::start(Doubled { speed: 10.0, ..Doubled::default() }).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        double.write_kubeconfig(&path).unwrap();
        let file = Kubeconfig::read_from(&path).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        Self { double, folder, client }
    }

    fn options(&self) -> Options {
        Options {
            kubeconfig: Some(self.folder.path().join("kubeconfig")),
            lease: Duration::from_secs(3),
            grace: Duration::from_secs(2),
            ..Options::default()
        }
    }

    async fn driver(&self) -> KubernetesDriver {
        KubernetesDriver::open(self.options()).await.unwrap()
    }

    fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::default_namespaced(self.client.clone())
    }

    async fn double(&self, method: &str, path: &str, body: Value) -> Value {
        let request = Request::builder().method(method).uri(format!("/_double/{path}"));
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body).unwrap() };
        let text = self.client.request_text(request.body(body).unwrap()).await.unwrap();
        serde_json::from_str(&text).unwrap_or_default()
    }

    async fn fault(&self, fault: Value) {
        self.double("POST", "faults", fault).await;
    }

    /// How many requests of each sort there were.
    async fn counts(&self) -> Value {
        self.double("GET", "stats", Value::Null).await["requests"].clone()
    }
}

fn launch(id: &str, image: &str) -> Launch {
    Launch {
        id: id.into(),
        sid: format!("{id}0123456789abcdef"),
        base_path: format!("/ws/{id}0123456789abcdef/"),
        command: Vec::new(),
        env: Vec::new(),
        cpu: "100m".into(),
        memory: "64Mi".into(),
        storage: "1Gi".into(),
        user: "ann".into(),
        name: format!("space {id}"),
        container: Some(Container { image: image.into(), port: 8080, ..Container::default() }),
    }
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn seen(driver: &KubernetesDriver, id: &str) -> Option<Observed> {
    driver.list().await.unwrap().into_iter().find(|it| it.id == id)
}

async fn ready(driver: &KubernetesDriver, id: &str) {
    eventually("ready", || async {
        seen(driver, id).await.filter(|it| matches!(it.phase, Phase::Ready { .. }))
    })
    .await;
}

async fn exited(driver: &KubernetesDriver, id: &str) -> Exit {
    eventually("exited", || async {
        match seen(driver, id).await?.phase {
            Phase::Exited(exit) => Some(exit),
            _ => None,
        }
    })
    .await
}

#[tokio::test]
async fn the_whole_story() {
    let house = House::new().await;
    let driver = house.driver().await;
    let launch = launch("s1", "example.org/ide:1");
    assert_eq!(driver.endpoint("s1").await, None);
    let first = driver.start(&launch).await.unwrap();
    assert_eq!(driver.start(&launch).await.unwrap(), first);
    ready(&driver, "s1").await;
    let endpoint = driver.endpoint("s1").await.unwrap();
    assert_eq!(endpoint.addr.port(), 8080);
    assert_eq!(endpoint.secret.len(), 32);
    assert!(driver.node("s1").await.is_some());
    assert!(matches!(driver.delete("s1").await, Err(Error::Running)));
    let told = driver.events("s1").await.unwrap();
    assert!(told.iter().any(|it| it.reason == "Scheduled" && it.about == "pod"), "{told:?}");

    let exit = driver.stop("s1", Duration::from_secs(2)).await.unwrap().unwrap();
    assert_eq!(exit.reason, "");
    assert!(house.pods().get_opt("ws-ann-s10123456789abcdef").await.unwrap().is_none());
    assert!(house.claims().get_opt("ws-ann-s10123456789abcdef").await.unwrap().is_some());
    assert_eq!(driver.stop("s1", Duration::ZERO).await.unwrap(), None);
    assert!(driver.list().await.unwrap().is_empty());

    let second = driver.start(&launch).await.unwrap();
    assert_ne!(second.id, first.id);
    ready(&driver, "s1").await;
    driver.stop("s1", Duration::ZERO).await.unwrap();
    driver.delete("s1").await.unwrap();
    driver.delete("s1").await.unwrap();
    assert!(house.claims().get_opt("ws-ann-s10123456789abcdef").await.unwrap().is_none());
    driver.close().await;
}

#[tokio::test]
async fn what_goes_wrong_is_said() {
    let house = House::new().await;
    let driver = house.driver().await;
    for (id, image, code, words) in [
        ("c1", "example.org/crash:1", Some(3), ""),
        ("c2", "example.org/oom:1", Some(137), "out of memory"),
        ("c3", "example.org/bad-command:1", None, "its command cannot be run"),
        ("c4", "UPPER/Case:!!", None, "is no name of an image"),
    ] {
        driver.start(&launch(id, image)).await.unwrap();
        let exit = exited(&driver, id).await;
        assert_eq!(exit.code, code, "{image}: {exit:?}");
        assert!(exit.reason.contains(words), "{image}: {exit:?}");
        assert!(driver.stop(id, Duration::ZERO).await.unwrap().is_some(), "{image}");
    }
    for (id, image, words) in [
        ("w1", "example.org/nosuch:1", "the image example.org/nosuch:1 cannot be had"),
        ("w2", "example.org/unready:1", "does not answer yet"),
    ] {
        driver.start(&launch(id, image)).await.unwrap();
        eventually(words, || async { seen(&driver, id).await.filter(|it| it.detail.contains(words)) }).await;
        let exit = driver.stop(id, Duration::ZERO).await.unwrap().unwrap();
        assert!(exit.reason.contains(words), "{exit:?}");
    }
    let mut large = launch("w3", "example.org/ide:1");
    large.memory = "900Ti".into();
    driver.start(&large).await.unwrap();
    eventually("no room", || async {
        seen(&driver, "w3").await.filter(|it| it.detail.starts_with("no room"))
    })
    .await;
    driver.stop("w3", Duration::ZERO).await.unwrap();
    let mut classless = launch("w4", "example.org/ide:1");
    classless.container.as_mut().unwrap().storage_class = "no-such-class".into();
    driver.start(&classless).await.unwrap();
    eventually("no volume", || async {
        seen(&driver, "w4")
            .await
            .filter(|it| it.detail.contains("cannot be made") && it.detail.contains("no-such-class"))
    })
    .await;
    driver.stop("w4", Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn what_others_do_to_a_pod_is_seen() {
    let house = House::new().await;
    let driver = house.driver().await;
    driver.start(&launch("s1", "example.org/ide:1")).await.unwrap();
    ready(&driver, "s1").await;
    house.pods().delete("ws-ann-s10123456789abcdef", &DeleteParams::default().grace_period(1)).await.unwrap();
    let exit = exited(&driver, "s1").await;
    assert!(exit.code.is_some() || exit.reason.contains("deleted"), "{exit:?}");
    driver.stop("s1", Duration::ZERO).await.unwrap();
    assert!(driver.list().await.unwrap().is_empty());
    // While nobody looked.
    driver.start(&launch("s1", "example.org/ide:1")).await.unwrap();
    ready(&driver, "s1").await;
    driver.close().await;
    house.pods().delete("ws-ann-s10123456789abcdef", &DeleteParams::default().grace_period(0)).await.unwrap();
    let driver = house.driver().await;
    assert!(driver.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_driver_finds_what_another_left() {
    let house = House::new().await;
    let driver = house.driver().await;
    let started = driver.start(&launch("s1", "example.org/ide:1")).await.unwrap();
    ready(&driver, "s1").await;
    drop(driver);
    let driver = house.driver().await;
    ready(&driver, "s1").await;
    assert_eq!(seen(&driver, "s1").await.unwrap().instance, started.id);
    assert_eq!(driver.start(&launch("s1", "example.org/ide:2")).await.unwrap().id, started.id);
    // Another installation in the same namespace sees nothing of it, and ends nothing.
    let other = Options { installation: "other".into(), ..house.options() };
    let other = KubernetesDriver::open(other).await.unwrap();
    assert!(other.list().await.unwrap().is_empty());
    assert_eq!(other.stop("s1", Duration::ZERO).await.unwrap(), None);
    other.delete("s1").await.unwrap();
    ready(&driver, "s1").await;
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone() {
    let house = House::new().await;
    let driver = house.driver().await;
    let foreign = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "ws-ann-s10123456789abcdef" },
        "spec": { "containers": [{ "name": "main", "image": "example.org/theirs:1" }] },
    });
    let made =
        house.pods().create(&PostParams::default(), &serde_json::from_value(foreign).unwrap()).await.unwrap();
    let error = driver.start(&launch("s1", "example.org/ide:1")).await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable(text) if text.contains("not Podyard's own")), "{error}");
    driver.stop("s1", Duration::ZERO).await.unwrap();
    let there = house.pods().get("ws-ann-s10123456789abcdef").await.unwrap();
    assert_eq!(there.metadata.uid, made.metadata.uid);
    assert!(there.metadata.labels.is_none());
}

#[tokio::test]
async fn one_leads_and_another_takes_over() {
    let house = House::new().await;
    let named = |name: &str| Options { identity: name.into(), ..house.options() };
    let a = KubernetesDriver::open(named("a")).await.unwrap();
    eventually("a leads", || async { a.is_leader().then_some(()) }).await;
    let b = KubernetesDriver::open(named("b")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(a.is_leader() && !b.is_leader());
    a.close().await;
    let began = Instant::now();
    eventually("b leads", || async { b.is_leader().then_some(()) }).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    // One that is cut off is followed once its lease is over.
    let c = KubernetesDriver::open(named("c")).await.unwrap();
    drop(b);
    eventually("c leads", || async { c.is_leader().then_some(()) }).await;
}

#[tokio::test]
async fn files_grow_and_do_not_shrink() {
    let house = House::new().await;
    let driver = house.driver().await;
    let mut launch = launch("s1", "example.org/ide:1");
    assert!(driver.resize(&launch).await.unwrap());
    driver.start(&launch).await.unwrap();
    ready(&driver, "s1").await;
    launch.storage = "2Gi".into();
    assert!(driver.resize(&launch).await.unwrap());
    let claim = house.claims().get("ws-ann-s10123456789abcdef").await.unwrap();
    assert_eq!(claim.status.unwrap().capacity.unwrap()["storage"].0, "2Gi");
    launch.storage = "1Gi".into();
    assert!(matches!(driver.resize(&launch).await, Err(Error::Invalid(_))));
    // A start with a smaller size leaves them as they are.
    driver.stop("s1", Duration::ZERO).await.unwrap();
    driver.start(&launch).await.unwrap();
    ready(&driver, "s1").await;
}

#[tokio::test]
async fn faults_pass() {
    let house = House::new().await;
    let driver = house.driver().await;
    driver.list().await.unwrap();
    house
        .fault(json!({ "verb": "patch", "resource": "pods", "count": 1, "status": 429, "retryAfter": 1 }))
        .await;
    let began = Instant::now();
    driver.start(&launch("s1", "example.org/ide:1")).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    ready(&driver, "s1").await;
    house.fault(json!({ "verb": "patch", "resource": "pods", "count": 1, "status": 500 })).await;
    assert!(matches!(driver.start(&launch("s2", "example.org/ide:1")).await, Err(Error::Io { .. })));
    // Done, though nobody heard: it is found.
    house.fault(json!({ "verb": "patch", "resource": "pods", "count": 1, "cut": "after" })).await;
    let _ = driver.start(&launch("s2", "example.org/ide:1")).await;
    let started = driver.start(&launch("s2", "example.org/ide:1")).await.unwrap();
    ready(&driver, "s2").await;
    assert_eq!(seen(&driver, "s2").await.unwrap().instance, started.id);
    house.fault(json!({ "verb": "patch", "resource": "pods", "count": 1, "status": 403,
        "message": "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1" })).await;
    let error = driver.start(&launch("s3", "example.org/ide:1")).await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable(text) if text.contains("quota")), "{error}");
    house.fault(json!({ "verb": "delete", "resource": "pods", "count": 1, "status": 409 })).await;
    driver.stop("s1", Duration::ZERO).await.unwrap();
    assert!(house.pods().get_opt("ws-ann-s10123456789abcdef").await.unwrap().is_none());
}

#[tokio::test]
async fn a_silent_watch_holds_up_nobody() {
    let house = House::new().await;
    let driver = house.driver().await;
    driver.list().await.unwrap();
    house.double("POST", "watches/pods", json!({ "silent": true })).await;
    driver.start(&launch("s1", "example.org/ide:1")).await.unwrap();
    ready(&driver, "s1").await;
    driver.stop("s1", Duration::from_secs(1)).await.unwrap();
}

#[tokio::test]
async fn what_a_watch_missed_is_found() {
    let house = House::new().await;
    let driver = house.driver().await;
    driver.start(&launch("s1", "example.org/ide:1")).await.unwrap();
    driver.start(&launch("s2", "example.org/ide:1")).await.unwrap();
    ready(&driver, "s1").await;
    ready(&driver, "s2").await;
    // Cut, and too old to go on: all is listed anew.
    house.double("POST", "watches/pods", json!({ "silent": true })).await;
    house.double("POST", "pods/default/ws-ann-s10123456789abcdef/kill", Value::Null).await;
    house.double("POST", "compact", Value::Null).await;
    house.double("DELETE", "faults", Value::Null).await;
    house.double("POST", "cut/*", Value::Null).await;
    assert!(exited(&driver, "s1").await.reason.contains("deleted"));
    ready(&driver, "s2").await;
    // The API server goes away for a while: nothing is taken for dead.
    let mut told = driver.observe();
    house.double("POST", "restart", json!({ "milliseconds": 500 })).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(matches!(seen(&driver, "s2").await.unwrap().phase, Phase::Ready { .. }));
    while let Ok(it) = told.try_recv() {
        assert!(!matches!(it.phase, Phase::Exited(_)), "{it:?}");
    }
    // Each event twice changes nothing.
    house.double("POST", "watches/*", json!({ "duplicates": 1 })).await;
    driver.start(&launch("s3", "example.org/ide:1")).await.unwrap();
    ready(&driver, "s3").await;
    let mut told = driver.observe();
    driver.stop("s3", Duration::from_secs(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut ends = 0;
    while let Ok(it) = told.try_recv() {
        ends += usize::from(it.id == "s3" && matches!(it.phase, Phase::Exited(_)));
    }
    assert_eq!(ends, 1);
}

#[tokio::test]
async fn an_eviction_is_said() {
    let house = House::new().await;
    let driver = house.driver().await;
    driver.start(&launch("s1", "example.org/ide:1")).await.unwrap();
    ready(&driver, "s1").await;
    house.double("POST", "pods/default/ws-ann-s10123456789abcdef/evict", json!({})).await;
    let exit = exited(&driver, "s1").await;
    assert!(exit.reason.contains("evicted"), "{exit:?}");
    driver.stop("s1", Duration::ZERO).await.unwrap();
    // One that is not ready for a moment is still there.
    driver.start(&launch("s2", "example.org/ide:1")).await.unwrap();
    ready(&driver, "s2").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    house.double("POST", "pods/default/ws-ann-s20123456789abcdef/unready", json!({})).await;
    let slow =
        eventually("slow", || async { seen(&driver, "s2").await.filter(|it| !it.detail.is_empty()) }).await;
    assert!(matches!(slow.phase, Phase::Ready { .. }), "{slow:?}");
}

/// A kubelet keeps to the grace that it began with, so a shorter one hurries
/// nothing: but both who asked are told the end.
#[tokio::test]
async fn two_stop_at_once() {
    let house = House::new().await;
    let driver = std::sync::Arc::new(house.driver().await);
    driver.start(&launch("s1", "example.org/stubborn:1")).await.unwrap();
    ready(&driver, "s1").await;
    let first = driver.clone();
    let first = tokio::spawn(async move { first.stop("s1", Duration::from_secs(20)).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let exits = [driver.stop("s1", Duration::ZERO).await.unwrap(), first.await.unwrap().unwrap()];
    assert!(exits.iter().flatten().any(|it| it.code == Some(137)), "{exits:?}");
    assert!(driver.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn logs() {
    let house = House::new().await;
    let driver = house.driver().await;
    let mut launch = launch("s1", "example.org/real:1");
    launch.command =
        ["sh", "-c", "echo one; echo two; sleep 3; echo three; exit 4"].map(str::to_owned).to_vec();
    driver.start(&launch).await.unwrap();
    eventually("a log", || async { driver.log("s1", 1000).await.unwrap().contains("two").then_some(()) })
        .await;
    assert_eq!(driver.log("s1", 4).await.unwrap(), "two\n");
    let mut lines = driver.follow_log("s1", 1).await.unwrap();
    let mut all = Vec::new();
    while let Ok(Some(piece)) = tokio::time::timeout(LIMIT, lines.recv()).await {
        all.extend_from_slice(&piece);
    }
    assert_eq!(String::from_utf8(all).unwrap(), "two\nthree\n");
    let exit = exited(&driver, "s1").await;
    assert_eq!((exit.code, exit.last_lines), (Some(4), vec!["one".into(), "two".into(), "three".into()]));
    assert_eq!(driver.log("none", 10).await.unwrap(), "");
}

#[tokio::test]
async fn what_is_written_arrives_as_it_is() {
    let house = House::new().await;
    let driver = house.driver().await;
    let mut launch = launch("s1", "example.org/real:1");
    let odd = "a $$ b $(HOME) $$(HOME) $x ${y} $";
    launch.env = vec![("ODD".into(), odd.into())];
    let script = r#"printf '%s\n' "$ODD" "$0"; echo $((1 + 1)); exit 4"#;
    launch.command = ["sh", "-c", script, odd].map(str::to_owned).to_vec();
    driver.start(&launch).await.unwrap();
    let exit = exited(&driver, "s1").await;
    assert_eq!((exit.code, exit.last_lines), (Some(4), vec![odd.into(), odd.into(), "2".into()]));
}

#[tokio::test]
async fn a_followed_log_outlives_its_streams() {
    let house = House::new().await;
    let driver = house.driver().await;
    let mut launch = launch("s1", "example.org/real:1");
    let script = r#"BEGIN { while (++i <= 80) { print "line " i; fflush(); system("sleep 0.1") }; exit 4 }"#;
    launch.command = ["awk", script].map(str::to_owned).to_vec();
    driver.start(&launch).await.unwrap();
    eventually("a log", || async { driver.log("s1", 1000).await.unwrap().contains('1').then_some(()) }).await;
    let mut lines = driver.follow_log("s1", 1000).await.unwrap();
    let mut all = String::new();
    let mut ends = vec![("line 40\n", "restart"), ("line 20\n", "cut/logs"), ("line 10\n", "cut/logs")];
    while let Ok(Some(piece)) = tokio::time::timeout(LIMIT, lines.recv()).await {
        all.push_str(std::str::from_utf8(&piece).unwrap());
        if ends.last().is_some_and(|(at, _)| all.contains(at)) {
            let (_, how) = ends.pop().unwrap();
            house.double("POST", how, json!({"milliseconds": 300})).await;
        }
    }
    assert!(ends.is_empty(), "{all}");
    assert_eq!(all, (1..=80).map(|i| format!("line {i}\n")).collect::<String>());
    // It ended with the run, and not before.
    assert_eq!(exited(&driver, "s1").await.code, Some(4));
    let counts = house.counts().await;
    assert!(counts["get pods/log"].as_u64().unwrap() >= 5, "{counts}");
}

#[tokio::test]
async fn a_followed_log_ends_with_its_pod() {
    let house = House::new().await;
    let driver = house.driver().await;
    let mut launch = launch("s1", "example.org/real:1");
    launch.command = ["sh", "-c", "echo one; sleep 100"].map(str::to_owned).to_vec();
    driver.start(&launch).await.unwrap();
    eventually("a log", || async { driver.log("s1", 1000).await.unwrap().contains("one").then_some(()) })
        .await;
    let mut lines = driver.follow_log("s1", 10).await.unwrap();
    assert_eq!(&*lines.recv().await.unwrap(), b"one\n");
    house.pods().delete("ws-ann-s10123456789abcdef", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(tokio::time::timeout(LIMIT, lines.recv()).await.unwrap(), None);
}

#[tokio::test]
async fn through_the_proxy() {
    let house = House::new().await;
    let driver = KubernetesDriver::open(Options { reach: Reach::Proxy, ..house.options() }).await.unwrap();
    driver.start(&launch("s1", "example.org/ide:1")).await.unwrap();
    ready(&driver, "s1").await;
    let way = driver.endpoint("s1").await.unwrap().through.unwrap();
    assert_eq!(way.prefix(), "/api/v1/namespaces/default/pods/ws-ann-s10123456789abcdef:8080/proxy");
    assert!(way.headers().contains(&("authorization".into(), format!("Bearer {}", house.double.token()))));
    way.connect().await.unwrap();
}

#[tokio::test]
async fn by_custom_resources() {
    let house = House::new().await;
    let definition = serde_json::to_value(crd()).unwrap();
    let definitions: Api<
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    > = Api::all(house.client.clone());
    let applied = PatchParams::apply("test");
    definitions.patch("spaces.podyard.dev", &applied, &Patch::Apply(&definition)).await.unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let controller = tokio::spawn(control(house.options(), async {
        let _ = ended.await;
    }));
    let driver =
        KubernetesDriver::open(Options { way: Way::CustomResources, ..house.options() }).await.unwrap();
    let spaces: Api<Space> = Api::default_namespaced(house.client.clone());
    let name = "ws-ann-s10123456789abcdef";

    let started = driver.start(&launch("s1", "example.org/ide:1")).await.unwrap();
    assert_eq!(driver.start(&launch("s1", "example.org/ide:1")).await.unwrap().id, started.id);
    ready(&driver, "s1").await;
    assert_eq!(seen(&driver, "s1").await.unwrap().instance, started.id);
    let phase = |wanted: &'static str| {
        let spaces = spaces.clone();
        async move {
            eventually(wanted, || async {
                let status = spaces.get(name).await.unwrap().status.unwrap_or_default();
                (status.phase == wanted).then_some(())
            })
            .await;
        }
    };
    phase("Ready").await;
    // It is kept: a pod that is deleted from outside is made anew, and the run goes on.
    let first = house.pods().get(name).await.unwrap().metadata.uid;
    house.pods().delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually("made anew", || async {
        house.pods().get_opt(name).await.unwrap().filter(|it| it.metadata.uid != first)
    })
    .await;
    ready(&driver, "s1").await;
    assert_eq!(seen(&driver, "s1").await.unwrap().instance, started.id);

    driver.stop("s1", Duration::from_secs(1)).await.unwrap();
    phase("Stopped").await;
    assert!(house.pods().get_opt(name).await.unwrap().is_none());
    // By hand, as with kubectl.
    let run = json!({ "spec": { "running": true } });
    spaces.patch(name, &PatchParams::default(), &Patch::Merge(&run)).await.unwrap();
    phase("Ready").await;
    let halt = json!({ "spec": { "running": false } });
    spaces.patch(name, &PatchParams::default(), &Patch::Merge(&halt)).await.unwrap();
    phase("Stopped").await;
    driver.delete("s1").await.unwrap();
    assert!(spaces.get_opt(name).await.unwrap().is_none());
    assert!(house.claims().get_opt(name).await.unwrap().is_none());
    end.send(()).unwrap();
    controller.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_doctor_finds_a_cluster_well() {
    let house = House::new().await;
    let options = Options { git_image: "example.org/completes:1".into(), ..house.options() };
    let checks = doctor(&options, std::future::pending()).await;
    assert!(checks.iter().all(|it| it.level == Level::Ok), "{checks:#?}");
    assert_eq!(checks.last().unwrap().name, "trial");
    assert!(house.pods().list(&Default::default()).await.unwrap().items.is_empty());
    assert!(house.claims().list(&Default::default()).await.unwrap().items.is_empty());
    let lost = Options { storage_class: "none".into(), ..options };
    assert!(
        doctor(&lost, std::future::pending())
            .await
            .iter()
            .any(|it| it.level == Level::Failure && it.text.contains("none is not there"))
    );
}

#[tokio::test]
async fn a_doctor_who_is_called_away_leaves_nothing() {
    let house = House::new().await;
    let options = Options { git_image: "example.org/ide:1".into(), ..house.options() };
    let called = async {
        let there =
            || async { house.pods().list(&Default::default()).await.unwrap().items.into_iter().next() };
        eventually("the trial has begun", there).await;
    };
    let checks = doctor(&options, called).await;
    let last = checks.last().unwrap();
    assert!(last.name == "trial" && last.text.contains("it was broken off"), "{checks:#?}");
    assert!(house.pods().list(&Default::default()).await.unwrap().items.is_empty());
    assert!(house.claims().list(&Default::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn watches_wait_longer_after_each_failure() {
    let house = House::new().await;
    house.fault(json!({ "verb": "list", "resource": "pods", "status": 403 })).await;
    let driver = house.driver().await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let tries = house.counts().await["list pods"].as_u64().unwrap();
    assert!((3..=8).contains(&tries), "{tries} tries in 6 s");
    house.double("DELETE", "faults", Value::Null).await;
    eventually("it is seen again", || async { driver.list().await.ok() }).await;
}

/// Prints what the driver asks for: per start and stop, and at rest.
#[tokio::test]
async fn requests_do_not_grow_with_the_spaces_at_rest() {
    let spaces: usize =
        std::env::var("PODYARD_TEST_SPACES").ok().and_then(|it| it.parse().ok()).unwrap_or(30);
    let house = House::new().await;
    let driver = house.driver().await;
    driver.list().await.unwrap();
    eventually("it leads", || async { driver.is_leader().then_some(()) }).await;
    // Small, so that the node has room for all.
    let small =
        |id: &str| Launch { cpu: "1m".into(), memory: "1Mi".into(), ..launch(id, "example.org/ide:1") };
    for i in 0..spaces {
        driver.start(&small(&format!("s{i}"))).await.unwrap();
    }
    for i in 0..spaces {
        ready(&driver, &format!("s{i}")).await;
    }
    house.double("DELETE", "stats", Value::Null).await;
    let rest = Duration::from_secs(6);
    tokio::time::sleep(rest).await;
    let counts = house.counts().await;
    println!("{spaces} spaces at rest for {rest:?}: {counts}");
    let others = counts.as_object().unwrap().iter().filter(|(what, _)| !what.contains("leases"));
    assert_eq!(others.count(), 0, "{counts}");
    house.double("DELETE", "stats", Value::Null).await;
    driver.start(&small("more")).await.unwrap();
    ready(&driver, "more").await;
    println!("a first start: {}", house.counts().await);
    house.double("DELETE", "stats", Value::Null).await;
    driver.stop("more", Duration::from_secs(1)).await.unwrap();
    println!("a stop: {}", house.counts().await);
    house.double("DELETE", "stats", Value::Null).await;
    driver.start(&small("more")).await.unwrap();
    ready(&driver, "more").await;
    println!("a later start: {}", house.counts().await);
}
