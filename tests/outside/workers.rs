//! Worker managers: what runs at once is bounded, what waits is bounded, and
//! both can be looked at.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{ADMIN_PASSWORD, Client, House, Kind, at_once, key, until};

on_each_database!(
    pools_can_be_looked_at,
    only_administrators_look,
    too_many_logins_are_refused_and_then_go_on
);

fn pool(admin: &Client, name: &str) -> Value {
    admin.get(&format!("/workers/{name}")).expect(200).of("worker")
}

fn pools_can_be_looked_at(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--task-slots", "7", "--database-pool", "5"]);
    let admin = server.admin();
    let all = admin.get("/workers").expect(200).of("workers");
    let names: Vec<_> = all.as_array().unwrap().iter().map(|it| key(it, "name")).collect();
    let mut wanted = vec!["logs", "passwords", "task-slots"];
    wanted.extend(match kind {
        Kind::Sqlite => &["sqlite-reader", "sqlite-writer"][..],
        Kind::Postgres => &["postgres"],
        #[cfg(feature = "mysql")]
        Kind::Mysql => &["mysql"],
    });
    for name in &wanted {
        assert!(names.iter().any(|it| it == name), "{name} is not in {names:?}");
        let one = pool(&admin, name);
        for number in ["active", "queued", "done", "rejected", "panicked"] {
            assert!(one[number].is_u64(), "{one}");
        }
        assert!(one["parallel"].as_u64().unwrap() > 0, "{one}");
    }
    assert_eq!(pool(&admin, "task-slots")["parallel"], 7);
    if kind != Kind::Sqlite {
        assert_eq!(pool(&admin, wanted[3])["parallel"], 5);
    }
    // They count: logins hash passwords, and one was made to get here.
    let before = pool(&admin, "passwords")["done"].as_u64().unwrap();
    assert!(before >= 1);
    server.admin();
    until("the login is counted", Duration::from_secs(10), || {
        (pool(&admin, "passwords")["done"].as_u64() == Some(before + 1)).then_some(())
    });
    let id = admin.space("x", "files");
    admin.get(&format!("/spaces/{id}/log")).expect(200);
    assert!(pool(&admin, "logs")["done"].as_u64().unwrap() >= 1);
    // The same in the metrics.
    let metrics = admin.get("/metrics").expect(200).text();
    assert!(metrics.contains("podyard_pool_parallel{pool=\"task-slots\"} 7\n"), "{metrics}");
    for name in ["active", "queued", "done_total", "rejected_total", "wait_seconds_total"] {
        assert!(metrics.contains(&format!("podyard_pool_{name}{{pool=\"passwords\"}} ")), "{name}");
    }
}

fn only_administrators_look(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    for path in ["/workers", "/workers/passwords", "/workers/none"] {
        ann.get(path).refused(403, "ForbiddenError");
        ann.nobody().get(path).refused(401, "UnauthorizedError");
        ann.post(path, &Value::Null).refused(405, "MethodNotAllowedError");
    }
    admin.get("/workers/none").refused(404, "ResourceNotFoundError");
    assert_eq!(admin.get("/workers?x=1").refused(400, "InputParameterError").blamed(), ["x"]);
}

fn too_many_logins_are_refused_and_then_go_on(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--password-workers", "1", "--password-queue", "1"]);
    let admin = server.admin();
    // One is checked, one waits, and the others hear so. Right passwords, so that nothing is throttled.
    let answers = until("some are refused", Duration::from_secs(60), || {
        let answers = at_once(12, |_| server.client().try_login("admin", ADMIN_PASSWORD));
        answers.iter().any(|it| it.status == 503).then_some(answers)
    });
    assert!(answers.iter().any(|it| it.status == 201), "some are served");
    for answer in answers.into_iter().filter(|it| ![201, 429].contains(&it.status)) {
        let answer = answer.refused(503, "ServiceUnavailableError");
        assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1, "{:?}", answer.headers);
    }
    let report = pool(&admin, "passwords");
    assert!(report["rejected"].as_u64().unwrap() > 0 && report["queue"] == 1, "{report}");
    // It goes on as if nothing had been.
    until("a login succeeds", Duration::from_secs(30), || {
        (server.client().try_login("admin", ADMIN_PASSWORD).status == 201).then_some(())
    });
    let report = pool(&admin, "passwords");
    assert_eq!((&report["active"], &report["queued"]), (&Value::from(0), &Value::from(0)), "{report}");
}
