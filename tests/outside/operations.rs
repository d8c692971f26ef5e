//! What operators do: start, configure, watch, stop, upgrade.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use podyard_tests::postgres::Cluster;
use serde_json::json;

use crate::harness::{ADMIN_PASSWORD, Answer, Database, House, Kind, body, key, programs, until};

on_each_database!(
    health_and_readiness_are_told_to_everybody,
    metrics_are_for_administrators,
    request_ids_come_back,
    a_request_under_way_is_ended_before_the_server,
    an_idle_server_ends_at_once,
    migrations_run_once,
    a_file_and_the_environment_configure_it,
    a_lost_password_can_be_replaced,
    two_first_starts_at_once_make_one_administrator,
    the_log_has_no_secrets,
    every_answer_of_ours_has_the_house_headers,
);

fn health_and_readiness_are_told_to_everybody(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let client = server.client();
    assert_eq!(client.get("/healthz").expect(200).json()["status"], "ok");
    assert_eq!(client.get("/readyz").expect(200).json()["status"], "ready");
    let started = server.said();
    assert!(started.contains("ready after"), "{started}");
}

fn metrics_are_for_administrators(kind: Kind) {
    let house = House::new(kind);
    let server = house.setup(&[]).env("PODYARD_METRICS_TOKEN", Some("a token for the scraper")).start();
    let admin = server.admin();
    let ann = admin.member("ann");
    ann.nobody().get("/metrics").refused(401, "UnauthorizedError");
    ann.get("/metrics").refused(403, "ForbiddenError");
    ann.with_token("a token for the scrapeR").get("/metrics").expect(401);
    admin.space("x", "files");
    ann.get("/spaces").expect(200);
    let bearer = [("Authorization", "Bearer a token for the scraper")];
    let scraped = ann.nobody().send("GET", "/metrics", &bearer, None).expect(200);
    let text = admin.get("/metrics").expect(200);
    assert!(text.header("content-type").starts_with("text/plain; version=0.0.4"), "{:?}", text.headers);
    for text in [scraped.text(), text.text()] {
        let mut names = 0;
        for line in text.lines().filter(|it| !it.is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                assert!(comment.starts_with("HELP ") || comment.starts_with("TYPE "), "{line}");
                names += 1;
                continue;
            }
            let (_, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
        }
        assert!(names > 10, "{text}");
        let line = |start: &str| text.lines().find(|it| it.starts_with(start)).map(str::to_owned);
        assert!(text.contains("resource=\"spaces\""), "{text}");
        let memory = line("process_resident_memory_bytes").unwrap();
        assert!(memory.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 1e6, "{memory}");
        assert!(line("podyard_gateway_requests_total").is_some(), "{text}");
    }
    // The scraper's token opens nothing else.
    ann.nobody().send("GET", "/spaces", &bearer, None).expect(401);
}

fn request_ids_come_back(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    for (method, path, sent, status) in [
        ("GET", "/spaces", None, 200),
        ("GET", "/spaces/x", None, 404),
        ("POST", "/spaces", Some(&b"{"[..]), 400),
    ] {
        let answer = admin.send(method, path, &[("X-Request-Id", "my-own.id:7")], sent).expect(status);
        assert_eq!(answer.header("x-request-id"), "my-own.id:7");
        if status != 200 {
            assert_eq!(answer.json()["request_id"], "my-own.id:7");
        }
        // One that nobody gave is new each time.
        let ids = [admin.send(method, path, &[], sent), admin.send(method, path, &[], sent)];
        let ids = ids.map(|it| it.header("x-request-id").to_owned());
        assert!(ids[0].len() > 10 && ids[0] != ids[1], "{ids:?}");
        // One that is no id is not believed.
        for bad in ["a b", "\"x\"", "<x>", &"x".repeat(65), "a=b"] {
            let answer = admin.send(method, path, &[("X-Request-Id", bad)], sent);
            assert_ne!(answer.header("x-request-id"), bad);
        }
    }
    let token =
        admin.send("POST", "/v3/auth/tokens", &[("X-Request-Id", "login-1")], Some(b"{}")).expect(400);
    assert_eq!(token.json()["request_id"], "login-1");
    admin.nobody().send("GET", "/spaces", &[("X-Request-Id", "no-token")], None).expect(401);
    // Its lines gather for a moment before they are written.
    let start = std::time::Instant::now();
    while !server.logged().contains("my-own.id:7") {
        assert!(start.elapsed().as_secs() < 5, "the log names the request");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn a_request_under_way_is_ended_before_the_server(kind: Kind) {
    let house = House::new(kind);
    let mut server = house.serve(&["--shutdown-grace", "10"]);
    let admin = server.admin();
    let template = admin.serving_template();
    let space = admin.running_space("slow", &template);
    let (id, url) = (key(&space, "id"), key(&space, "url"));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| admin.try_send("GET", &format!("{url}slow?ms=1500"), &[], None));
        std::thread::sleep(Duration::from_millis(400));
        server.ask_to_end();
        let status = server.wait(Duration::from_secs(15));
        assert_eq!(status.code(), Some(0));
        let answer = slow.join().unwrap().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.json()["pid"].is_number());
    });
    assert!(
        (Duration::from_millis(1300)..Duration::from_secs(8)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    // The space goes on without it.
    assert_eq!(programs(&id).len(), 1);
    admin.try_send("GET", "/healthz", &[], None).unwrap_err();
}

fn an_idle_server_ends_at_once(kind: Kind) {
    let house = House::new(kind);
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut server = house.serve(&[]);
        let admin = server.admin();
        // A connection that is kept open holds up nobody.
        admin.get("/spaces").expect(200);
        let start = Instant::now();
        crate::harness::kill(server.pid(), signal);
        let status = server.wait(Duration::from_secs(10));
        assert_eq!(status.code(), Some(0));
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}

/// Runs a command to its end, which must come soon.
fn run(command: &mut Command) -> (i32, String, String) {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("it does not end: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |it: Vec<u8>| String::from_utf8_lossy(&it).into_owned();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

fn migrations_run_once(kind: Kind) {
    let house = House::new(kind);
    std::fs::create_dir_all(house.data_dir()).unwrap();
    let (code, pending, error) = run(house.command().args(["migrate", "--dry-run"]));
    assert_eq!(code, 0, "{error}");
    assert!(pending.lines().filter(|it| it.starts_with("pending: ")).count() >= 4, "{pending}");
    let (code, done, error) = run(house.command().arg("migrate"));
    assert_eq!(code, 0, "{error}");
    assert_eq!(done.matches("done: ").count(), pending.matches("pending: ").count(), "{done}");
    assert!(!done.contains("password") && !pending.contains("postgres@"), "{done}");
    for command in [&["migrate"][..], &["migrate", "--dry-run"]] {
        let (code, again, error) = run(house.command().args(command));
        assert_eq!(code, 0, "{error}");
        assert!(again.contains(": 0 migrations"), "{again}");
    }
    // A server on it finds it as it is.
    let server = house.serve(&[]);
    server.admin().get("/spaces").expect(200);
    assert!(!server.logged().contains("\"migrated\""), "{}", server.logged());
}

fn a_file_and_the_environment_configure_it(kind: Kind) {
    let house = House::new(kind);
    let file = house.folder().join("my.toml");
    std::fs::write(&file, "max-spaces = 1\nmax_running = 0\nnode = \"from-the-file\"\n").unwrap();
    let file = file.to_str().unwrap();
    let server = house.setup(&["--config", file]).env("PODYARD_NODE", Some("from-the-environment")).start();
    let admin = server.admin();
    let template = admin.serving_template();
    let space = admin.running_space("one", &template);
    assert_eq!(space["node"], "from-the-environment", "the environment beats the file");
    admin.create_space("two", "files").refused(409, "SpaceLimitError");
    drop(server);
    // Flags beat both.
    let server =
        house.setup(&["--config", file, "--max-spaces", "2"]).env("PODYARD_MAX_SPACES", Some("7")).start();
    let admin = server.admin();
    admin.space("two", "files");
    admin.create_space("three", "files").refused(409, "SpaceLimitError");
    drop(server);
    // A file that lies in the folder is found by its name.
    std::fs::write(house.folder().join("podyard.toml"), "max-spaces = 3\n").unwrap();
    let server = house.serve(&[]);
    let admin = server.admin();
    admin.space("three", "files");
    admin.create_space("four", "files").refused(409, "SpaceLimitError");
}

fn a_lost_password_can_be_replaced(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    // Beside the running server, too.
    let (code, said, error) = run(house.command().args(["reset-password", "--user", "admin"]));
    assert_eq!(code, 0, "{error}");
    let given = said.trim().rsplit("password ").next().unwrap().to_owned();
    server.client().try_login("admin", ADMIN_PASSWORD).expect(401);
    server.client().login("admin", &given).get("/users").expect(200);
    until("the old session ends", Duration::from_secs(3), || {
        (admin.get("/spaces").status == 401).then_some(())
    });
    let (code, _, error) = run(house.command().args(["reset-password", "--user", "nobody"]));
    assert!(code == 1 && error.contains("nobody"), "{code} {error}");
}

fn two_first_starts_at_once_make_one_administrator(kind: Kind) {
    let house = House::new(kind);
    let servers = crate::harness::at_once(3, |_| house.serve(&[]));
    let admin = servers[0].admin();
    for plural in ["users", "domains", "projects"] {
        let rows = admin.get(&format!("/{plural}")).expect(200).of(plural);
        assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    }
    let count = |plural: &str| admin.get(&format!("/{plural}")).of(plural).as_array().unwrap().len();
    assert_eq!((count("kinds"), count("templates"), count("specs")), (3, 3, 4));
    // A token of one is good at all.
    for server in &servers {
        admin.at(&server.base).get("/spaces").expect(200);
    }
}

fn the_log_has_no_secrets(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--log", "debug"]);
    let admin = server.admin();
    let ann = admin.member("ann");
    server.client().try_login("ann", "a-wrong-password-here").expect(401);
    let template = admin.serving_template();
    let space = ann.running_space("x", &template);
    ann.get(&key(&space, "url")).expect(200);
    let own = ann.user_id();
    let new = json!({"original_password": "password-of-ann", "password": "the-new-password"});
    ann.post(&format!("/users/{own}/password"), &new).expect(200);
    admin
        .post("/users", &body("user", json!({"name": "x", "password": "in-a-bad-request", "y": 1})))
        .expect(400);
    let log = server.logged();
    for secret in [
        ADMIN_PASSWORD,
        "password-of-ann",
        "a-wrong-password-here",
        "the-new-password",
        "in-a-bad-request",
        admin.token.as_deref().unwrap(),
        ann.token.as_deref().unwrap(),
        "argon2",
    ] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    for line in log.lines() {
        let entry: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(entry["timestamp"].is_string() && entry["level"].is_string(), "{line}");
    }
}

fn every_answer_of_ours_has_the_house_headers(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let id = admin.space("x", "files");
    for (path, status, keep) in [
        ("/spaces".to_owned(), 200, "private, no-cache"),
        (format!("/spaces/{id}"), 200, "private, no-cache"),
        ("/spaces/x/y".to_owned(), 404, "no-store"),
        ("/resources".to_owned(), 200, "private, no-cache"),
    ] {
        let answer = admin.get(&path).expect(status);
        assert_eq!(answer.header("cache-control"), keep, "{path}");
        assert!(!answer.header("x-request-id").is_empty(), "{path}");
    }
    let answer = admin.get("/spaces").expect(200);
    assert!(answer.header("server-timing").starts_with("db;dur="), "{:?}", answer.headers);
}

fn podyard(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(crate::harness::podyard());
    command.env_clear().args(args).current_dir(std::env::temp_dir());
    run(&mut command)
}

#[test]
fn the_version_is_told() {
    let (code, said, _) = podyard(&["version"]);
    assert_eq!((code, said.trim()), (0, concat!("podyard ", env!("CARGO_PKG_VERSION"))));
    assert_eq!(podyard(&["--version"]).0, 0);
}

#[test]
fn the_help_is_complete() {
    let (code, help, _) = podyard(&["serve", "--help"]);
    assert_eq!(code, 0);
    for option in [
        "--config",
        "--data-dir",
        "--database-url",
        "--listen",
        "--log",
        "--log-format",
        "--admin-password",
        "--token-lifetime",
        "--max-spaces",
        "--max-running",
        "--start-timeout",
        "--stop-grace",
        "--node",
        "--http-threads",
        "--database-pool",
        "--task-slots",
        "--task-lease",
        "--task-retention",
        "--trash-retention",
        "--body-limit",
        "--metrics-token",
        "--trust-forwarded",
        "--shutdown-grace",
    ] {
        assert!(
            help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")),
            "no {option} in {help}"
        );
        let variable = format!("PODYARD_{}", option[2..].to_uppercase().replace('-', "_"));
        assert!(help.contains(&variable), "no {variable} in {help}");
    }
    for default in ["127.0.0.1:8080", "./podyard-data"] {
        assert!(help.contains(default), "no {default} in {help}");
    }
    let (code, help, _) = podyard(&["--help"]);
    assert_eq!(code, 0);
    for command in ["serve", "worker", "migrate", "version"] {
        assert!(help.contains(command), "no {command} in {help}");
    }
    assert!(!help.contains("shim"), "{help}");
}

#[test]
fn a_wrong_option_is_named() {
    for (args, culprit) in [
        (&["serve", "--nonsense"][..], "--nonsense"),
        (&["serve", "--listen", "nowhere"], "--listen"),
        (&["serve", "--max-spaces", "many"], "--max-spaces"),
        (&["serve", "--token-lifetime", "1"], "--token-lifetime"),
        (&["serve", "--database-url", "mongodb://x/y"], "--database-url"),
        (&["serve", "--log-format", "yaml"], "--log-format"),
        (&["dance"], "dance"),
        (&["serve", "--config", "/no/such/file.toml"], "/no/such/file.toml"),
    ] {
        let (code, _, error) = podyard(args);
        assert_eq!(code, 2, "{args:?}: {error}");
        assert!(error.contains(culprit), "{args:?}: {error}");
    }
    // In a file by its key, in a variable by the option.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.toml");
    for (text, culprit) in [
        ("nonsense = 1", "nonsense"),
        ("listen = \"nowhere\"", "listen"),
        ("max-spaces = [1]", "max-spaces"),
        ("= = =", "x.toml"),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, _, error) = podyard(&["serve", "--config", file.to_str().unwrap()]);
        assert_eq!(code, 2, "{text}: {error}");
        assert!(error.contains(culprit), "{text}: {error}");
    }
    let mut command = Command::new(crate::harness::podyard());
    let (code, _, error) = run(command.env_clear().env("PODYARD_MAX_RUNNING", "x").arg("serve"));
    assert!(code == 2 && error.contains("--max-running"), "{code} {error}");
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, error) = podyard(&["serve", "--data-dir", data, "--listen", &address]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains(&address) && error.contains("in use"), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    // A folder that is none.
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let (code, _, error) =
        podyard(&["serve", "--data-dir", file.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert!(code == 1 && error.contains("--data-dir") && error.contains("file"), "{code} {error}");
    // A database that is none, with its password kept back.
    let url = format!("postgres://someone:secret-word@{address}/x?connect_timeout=2");
    let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let nobody = closed.local_addr().unwrap().to_string();
    drop(closed);
    let url = url.replace(&address, &nobody);
    let (code, _, error) =
        podyard(&["serve", "--data-dir", data, "--database-url", &url, "--listen", "127.0.0.1:0"]);
    assert!(code == 1 && error.contains(&nobody) && !error.contains("secret-word"), "{code} {error}");
    let other = folder.path().join("no-database");
    std::fs::write(&other, "this is no SQLite database, but it is long enough to be looked at ".repeat(100))
        .unwrap();
    let url = format!("sqlite://{}", other.display());
    let (code, _, error) =
        podyard(&["serve", "--data-dir", data, "--database-url", &url, "--listen", "127.0.0.1:0"]);
    assert!(code == 1 && error.contains("no-database"), "{code} {error}");
    // An easy password for the administrator.
    let new = folder.path().join("new");
    let args = [
        "serve",
        "--data-dir",
        new.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--admin-password",
        "short",
    ];
    let (code, _, error) = podyard(&args);
    assert!(code == 1 && error.contains("password"), "{code} {error}");
}

/// A server that lost its database says so, and is itself again when it is back.
#[test]
fn it_survives_an_outage_of_its_database() {
    if !Kind::Postgres.is_wanted() {
        return;
    }
    let mut cluster = Cluster::new().unwrap_or_else(|e| panic!("{e}"));
    let house = House::with(Database::at(cluster.url()));
    let server = house.serve(&[]);
    let admin = server.admin();
    let template = admin.serving_template();
    let space = admin.running_space("x", &template);
    let (id, url) = (key(&space, "id"), key(&space, "url"));
    cluster.stop();
    admin.get("/healthz").expect(200);
    admin.get("/readyz").expect(503);
    let ask: [&dyn Fn() -> Answer; 3] =
        [&|| admin.get("/spaces"), &|| admin.create_space("y", "files"), &|| admin.act(&id, "stop")];
    for ask in ask {
        let start = Instant::now();
        let answer = ask();
        let took = start.elapsed();
        assert!(took < Duration::from_secs(6), "{} was left waiting for {took:?}", answer.asked);
        let answer = answer.refused(503, "ServiceUnavailableError");
        assert!(
            !answer.header("retry-after").is_empty() && !answer.text().contains("postgres"),
            "{}",
            answer.text()
        );
    }
    admin.nobody().get("/spaces").expect(401);
    cluster.start().unwrap();
    until("it is ready again", Duration::from_secs(10), || {
        (admin.get("/readyz").status == 200).then_some(())
    });
    assert_eq!(admin.read_space(&id)["status"], "running");
    admin.get(&url).expect(200);
    // Its workers are too.
    admin.stop(&id);
    admin.start(&id);
    // A restart of the database between two requests is not even seen by one that reads.
    cluster.stop();
    cluster.start().unwrap();
    admin.get("/spaces").expect(200);
    admin.stop(&id);
}
