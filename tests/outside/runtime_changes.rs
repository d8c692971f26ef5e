//! Types that an administrator changes and deletes while servers run, several
//! of them, and while one is killed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{House, Kind, Session, at_once, key, kill, random, until};
use crate::runtime_types::{blames, define, device, ids};

on_each_database!(
    a_changed_type_keeps_its_rows,
    a_change_that_would_lose_or_break_rows_is_refused,
    a_type_in_use_is_deleted_by_force_only,
    a_second_server_follows,
    requests_during_changes_never_fail_badly,
    of_many_definitions_of_one_name_one_succeeds,
    a_kill_in_the_middle_of_a_change_leaves_the_old_or_the_new,
    what_fails_or_is_a_rehearsal_leaves_no_table,
    nothing_is_written_to_a_table_that_was_left,
    a_change_does_not_wait_for_ever,
    the_tables_agree_with_the_definitions,
    what_happens_to_types_is_in_the_audit,
);

fn a_changed_type_keeps_its_rows(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    define(
        &admin,
        &json!({"keyword": "plant", "fields": [
            {"name": "height", "type": "integer"}, {"name": "kind", "choices": ["tree", "herb"], "default": "tree"},
            {"name": "uses", "type": "list"}, {"name": "spare"}, {"name": "nick", "default": "x"},
        ]}),
    );
    for (name, height, of) in [("oak", json!(30), "tree"), ("mint", json!(null), "herb")] {
        ann.post("/plants", &json!({"name": name, "height": height, "kind": of, "uses": ["tea"]}))
            .expect(201);
    }
    let before = ann.get("/plants/oak").expect(200).of("plant");
    let change = json!({"description": "What grows.", "access": {"delete": "admin"}, "fields": [
        // Wider, and with a word on those that had none.
        {"name": "height", "type": "number", "default": 0.5, "index": true},
        // Narrower: what is there stays.
        {"name": "kind", "choices": ["tree"], "default": "tree"},
        {"name": "uses", "type": "json"},
        // May be null now.
        {"name": "nick", "unique": "owner"},
        // New, with and without a value for the rows that are there.
        {"name": "water", "type": "integer", "default": 3, "required": true},
        {"name": "seen", "type": "time"},
        {"name": "word", "default": "it's \"quoted\"; DROP TABLE spaces"},
    ]});
    // Both have the same nick.
    let refused = admin.put("/resource-types/plant", &change).refused(409, "DuplicateResourceError");
    assert_eq!(refused.blamed(), ["fields.nick"]);
    assert_eq!(ann.get("/plants/oak").expect(200).of("plant"), before);
    ann.put("/plants/oak", &json!({"nick": "y"})).expect(200);
    let changed = admin.put("/resource-types/plant", &change).expect(200);
    assert_eq!(changed.header("etag"), "\"2\"");
    let (oak, mint) =
        (ann.get("/plants/oak").expect(200).of("plant"), ann.get("/plants/mint").expect(200).of("plant"));
    assert_eq!((&oak["height"], &mint["height"]), (&json!(30.0), &json!(0.5)));
    assert_eq!((&oak["kind"], &mint["kind"]), (&json!("tree"), &json!("herb")));
    assert_eq!(oak["uses"], json!(["tea"]));
    assert_eq!((&oak["nick"], &oak["water"], &oak["seen"]), (&json!("y"), &json!(3), &Value::Null));
    assert_eq!(oak["word"], "it's \"quoted\"; DROP TABLE spaces");
    assert!(oak.get("spare").is_none(), "{oak}");
    assert_eq!(oak["id"], before["id"]);
    assert_eq!(oak["created_at"], before["created_at"]);
    // The new rules hold for what comes.
    blames(
        ann.post("/plants", &json!({"name": "n", "kind": "herb"})),
        400,
        "InputParameterError",
        &["kind", "water"],
    );
    blames(ann.put("/plants/oak", &json!({"spare": "x"})), 400, "InputParameterError", &["spare"]);
    blames(ann.put("/plants/mint", &json!({"nick": "y"})), 409, "DuplicateResourceError", &["nick"]);
    ann.delete("/plants/oak").refused(403, "ForbiddenError");
    // A value outside of its choices may be left as it is.
    ann.put("/plants/mint", &json!({"water": 5})).expect(200);
    ann.put("/plants/mint", &json!({"nick": null, "uses": {"a": 1}})).expect(200);
    // The same again is no change.
    let same = admin.put("/resource-types/plant", &change).expect(200);
    assert_eq!(same.header("etag"), "\"2\"");
    // A part is enough, and the rest stays.
    admin.put("/resource-types/plant", &json!({"description": "Green."})).expect(200);
    let now = admin.get("/resource-types/plant").expect(200).of("resource-type");
    assert_eq!(now["fields"].as_array().unwrap().len(), 7);
    assert_eq!(ids(&ann, "/plants?order_by=name"), ["mint", "oak"]);
}

fn a_change_that_would_lose_or_break_rows_is_refused(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(
        &admin,
        &json!({"keyword": "cup", "fields": [
            {"name": "size", "type": "integer", "default": 1}, {"name": "mark"}, {"name": "owner_ref"},
        ]}),
    );
    let id = key(&admin.post("/cups", &json!({"name": "a", "mark": "m"})).expect(201).of("cup"), "id");
    let change = |fields: Value| admin.put("/resource-types/cup", &json!({"fields": fields}));
    let (size, mark, owner) = (
        json!({"name": "size", "type": "integer", "default": 1}),
        json!({"name": "mark"}),
        json!({"name": "owner_ref"}),
    );
    // A value would be lost.
    let refused = change(json!([size, owner])).refused(409, "FieldInUseError");
    assert!(refused.text().contains(&id), "{}", refused.text());
    assert_eq!(refused.blamed(), ["fields.mark"]);
    // A type that does not widen.
    let text = json!({"name": "size", "type": "text"});
    blames(change(json!([text, mark, owner])), 409, "FieldTypeError", &["fields.size"]);
    // Rows without the value.
    let must = json!({"name": "owner_ref", "required": true});
    blames(change(json!([size, mark, must])), 409, "FieldNeedsDefaultError", &["fields.owner_ref"]);
    let new = json!({"name": "new", "required": true});
    blames(change(json!([size, mark, owner, new])), 409, "FieldNeedsDefaultError", &["fields.new"]);
    // A text that is no id.
    let refers = json!({"name": "mark", "references": "space"});
    blames(change(json!([size, refers, owner])), 409, "ReferenceNotFoundError", &["fields.mark"]);
    let cup = admin.get("/cups/a").expect(200).of("cup");
    assert_eq!((&cup["mark"], &cup["version"]), (&json!("m"), &json!(1)));
    // Defaults may go; what was told twice is lost.
    change(json!([mark, owner])).expect(200);
    let forced = json!({"fields": [owner], "force": true});
    admin.put("/resource-types/cup", &forced).expect(200);
    assert!(admin.get("/cups/a").expect(200).of("cup").get("mark").is_none());
    // The name comes back empty.
    change(json!([owner, mark])).expect(200);
    assert_eq!(admin.get("/cups/a").expect(200).of("cup")["mark"], Value::Null);
}

fn a_type_in_use_is_deleted_by_force_only(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin, &device());
    admin.post("/devices", &json!({"name": "a", "serial": "1"})).expect(201);
    admin.delete("/resource-types/device").refused(409, "ResourceNotEmptyError");
    admin.delete("/resource-types/device?force=false").refused(409, "ResourceNotEmptyError");
    admin.get("/devices/a").expect(200);
    admin.delete("/resource-types/device?force=true").expect(200);
    admin.get("/devices/a").refused(404, "NotFoundError");
    admin.get("/resource-types/device").refused(404, "ResourceNotFoundError");
    assert!(!admin.get("/resources").text().contains("devices"));
    // One of the same name is another, without the rows of the first.
    define(&admin, &json!({"keyword": "device", "fields": [{"name": "serial", "type": "integer"}]}));
    assert!(ids(&admin, "/devices").is_empty());
    admin.post("/devices", &json!({"name": "a", "serial": 1})).expect(201);
    // Rows that were deleted hold up nobody.
    admin.delete("/devices/a").expect(200);
    admin.delete("/resource-types/device").expect(200);
}

fn a_second_server_follows(kind: Kind) {
    let house = House::new(kind);
    let (one, two) = (house.serve(&[]), house.serve(&[]));
    let here = one.admin();
    let there = here.at(&two.base);
    // It learns of a type by the first request for it.
    define(&here, &device());
    there.post("/devices", &json!({"name": "a", "serial": "1"})).expect(201);
    assert_eq!(ids(&here, "/devices"), ["a"]);
    // A change holds at once, since its statements know the old table no more.
    here.put(
        "/resource-types/device",
        &json!({"fields": [{"name": "serial"}, {"name": "volts", "type": "integer"}]}),
    )
    .expect(200);
    let row = there.get("/devices/a").expect(200).of("device");
    assert_eq!(row["volts"], Value::Null, "{row}");
    assert!(row.get("watts").is_none(), "{row}");
    there.put("/devices/a", &json!({"volts": 230})).expect(200);
    there.put("/resource-types/device", &json!({"access": {"write": "admin", "read": "admin"}})).expect(200);
    let ann = here.member("ann");
    let seen = until("the rights have come over", Duration::from_secs(10), || {
        let answer = ann.get("/devices");
        (answer.status != 200).then_some(answer)
    });
    seen.refused(403, "ForbiddenError");
    // Nor does it know one that is gone, or that has come anew.
    there.delete("/resource-types/device?force=true").expect(200);
    here.get("/devices").expect(404);
    define(&there, &json!({"keyword": "device", "fields": [{"name": "serial", "type": "boolean"}]}));
    here.post("/devices", &json!({"name": "a", "serial": true})).expect(201);
    define(&here, &json!({"keyword": "tool", "fields": [{"name": "device_id", "references": "device"}]}));
    let id = key(&there.get("/devices/a").expect(200).of("device"), "id");
    there.post("/tools", &json!({"name": "t", "device_id": id})).expect(201);
    until("the reference has come over", Duration::from_secs(10), || {
        let known = there.get("/resources").text().contains("\"tools\"");
        known.then_some(())
    });
    there.delete("/devices/a").refused(409, "ResourceInUseError");
    // What runs there without requests hears of it too.
    define(&here, &json!({"keyword": "late"}));
    until("the type is known there", Duration::from_secs(10), || {
        there.get("/resources").text().contains("\"lates\"").then_some(())
    });
}

fn requests_during_changes_never_fail_badly(kind: Kind) {
    let house = House::new(kind);
    let (one, two) = (house.serve(&[]), house.serve(&[]));
    let admin = one.admin();
    define(&admin, &json!({"keyword": "thing", "fields": [{"name": "n", "type": "integer", "default": 0}]}));
    let made = std::sync::atomic::AtomicUsize::new(0);
    at_once(6, |i| {
        let client = if i % 2 == 0 { admin.clone() } else { admin.at(&two.base) };
        for round in 0..25 {
            let answer = match i {
                0 => {
                    let extra = json!({"name": format!("x{}", round % 3), "type": "text"});
                    let fields = json!([{"name": "n", "type": "integer", "default": 0}, extra]);
                    client.put("/resource-types/thing", &json!({"fields": fields, "force": true}))
                }
                1 | 2 => client.post("/things", &json!({"name": format!("{i}-{round}"), "n": round})),
                3 => client.put(&format!("/things/2-{}", round / 2), &json!({"n": round + 100})),
                _ => client.get("/things?order_by=n"),
            };
            assert!(
                [200, 201, 404, 409, 503].contains(&answer.status),
                "{}: {} {}",
                answer.asked,
                answer.status,
                answer.text()
            );
            if i != 3 && i != 0 {
                assert!(answer.status < 300 || answer.status == 503, "{}: {}", answer.asked, answer.text());
            }
            if answer.status == 201 {
                made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    // What was answered is there.
    let total = admin.get("/things?details=total&limit=1").expect(200).json();
    assert_eq!(total["total"], made.load(std::sync::atomic::Ordering::Relaxed));
}

fn of_many_definitions_of_one_name_one_succeeds(kind: Kind) {
    let house = House::new(kind);
    let (one, two) = (house.serve(&[]), house.serve(&[]));
    let admin = one.admin();
    let answers = at_once(6, |i| {
        let client = if i % 2 == 0 { admin.clone() } else { admin.at(&two.base) };
        client.post("/resource-types", &json!({"keyword": format!("k{}", i / 3), "plural": "things"}))
    });
    assert_eq!(answers.iter().filter(|it| it.status == 201).count(), 1);
    for answer in answers.into_iter().filter(|it| it.status != 201) {
        answer.refused(409, "DuplicateNameError");
    }
    admin.post("/things", &json!({"name": "x"})).expect(201);
}

fn a_kill_in_the_middle_of_a_change_leaves_the_old_or_the_new(kind: Kind) {
    let house = House::new(kind);
    let mut server = house.serve(&[]);
    let mut admin = server.admin();
    define(&admin, &json!({"keyword": "thing", "fields": [{"name": "n", "type": "integer", "default": 7}]}));
    for i in 0..50 {
        admin.post("/things", &json!({"name": format!("t{i}")})).expect(201);
    }
    for round in 0..6 {
        let pid = server.pid();
        let pause = Duration::from_micros(random(12_000));
        at_once(2, |i| {
            if i == 0 {
                let fields = json!([{"name": "n", "type": "integer", "default": 7},
                    {"name": format!("x{round}"), "type": "text", "default": "given", "index": true}]);
                let change = json!({"fields": fields, "force": true}).to_string();
                let _ = admin.try_send("PUT", "/resource-types/thing", &[], Some(change.as_bytes()));
            } else {
                std::thread::sleep(pause);
                kill(pid, rustix::process::Signal::KILL);
            }
        });
        server.kill_9();
        server = house.serve(&[]);
        admin = admin.at(&server.base);
        // What was begun and not committed goes; the old or the new stays.
        until("one table is there", Duration::from_secs(20), || {
            (tables(&house, "things") == 1).then_some(())
        });
        // Definition, table and rows agree, whichever it is.
        let it = admin.get("/resource-types/thing").expect(200).of("resource-type");
        let names: Vec<_> = it["fields"].as_array().unwrap().iter().map(|field| key(field, "name")).collect();
        let rows = admin.get("/things?limit=100").expect(200).of("things");
        assert_eq!(rows.as_array().unwrap().len(), 50);
        for row in rows.as_array().unwrap() {
            assert_eq!(row["n"], 7);
            if let Some(name) = names.get(1) {
                assert_eq!(row[name], "given", "{row}");
            }
        }
        let name = format!("after-{round}");
        admin.post("/things", &json!({"name": name})).expect(201);
        admin.delete(&format!("/things/{name}")).expect(200);
    }
}

/// How many tables there are that are a type's or were.
fn tables(house: &House, plural: &str) -> i64 {
    let from = match &house.database.url {
        None => "sqlite_master WHERE type = 'table' AND name".to_owned(),
        Some(url) if url.starts_with("mysql:") => {
            "information_schema.tables WHERE table_schema = DATABASE() AND table_name".to_owned()
        }
        Some(_) => {
            "information_schema.tables WHERE table_schema = current_schema() AND table_name".to_owned()
        }
    };
    house.count(&format!("SELECT COUNT(*) FROM {from} LIKE 'rt_{plural}_%'"))
}

fn what_fails_or_is_a_rehearsal_leaves_no_table(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    admin.post("/resource-types?dry_run=true", &device()).expect(200);
    assert_eq!(tables(&house, "devices"), 0);
    admin.get("/devices").expect(404);
    define(&admin, &device());
    for serial in ["1", "2"] {
        admin.post("/devices", &json!({"name": serial, "serial": serial})).expect(201);
    }
    let fields = json!({"fields": [{"name": "serial"}], "force": true});
    admin.put("/resource-types/device?dry_run=true", &fields).expect(200);
    let unique = json!({"fields": [{"name": "serial"}, {"name": "color", "unique": "all"}], "force": true});
    blames(admin.put("/resource-types/device", &unique), 409, "DuplicateResourceError", &["fields.color"]);
    admin.delete("/resource-types/device?dry_run=true&force=true").expect(200);
    assert_eq!(tables(&house, "devices"), 1);
    assert_eq!(ids(&admin, "/devices?order_by=name"), ["1", "2"]);
    admin.put("/resource-types/device", &fields).expect(200);
    assert_eq!(tables(&house, "devices"), 1);
    admin.delete("/resource-types/device?force=true").expect(200);
    assert_eq!(tables(&house, "devices"), 0);
}

/// As a server leaves it that is killed between a change and the end of the
/// old table, where that is not one transaction.
fn nothing_is_written_to_a_table_that_was_left(kind: Kind) {
    let house = House::new(kind);
    let Some(url) = &house.database.url else { return };
    let (one, two) = (house.serve(&[]), house.serve(&[]));
    let (here, there) = (one.admin(), one.admin().at(&two.base));
    let old = key(&define(&here, &json!({"keyword": "thing"})), "table_name");
    there.post("/things", &json!({"name": "a"})).expect(201);
    let changed = here.put("/resource-types/thing", &json!({"description": "New."})).expect(200);
    let new = key(&changed.of("resource-type"), "table_name");
    if kind != Kind::Postgres {
        Session::open(url).execute(&format!("CREATE TABLE \"{old}\" LIKE \"{new}\""));
    }
    there.post("/things", &json!({"name": "b"})).expect(201);
    there.put("/things/a", &json!({"description": "x"})).expect(200);
    assert_eq!(ids(&here, "/things?order_by=name"), ["a", "b"]);
    drop(two);
    let _third = house.serve(&[]);
    until("it is swept away", Duration::from_secs(20), || (tables(&house, "things") == 1).then_some(()));
    assert_eq!(ids(&here, "/things?order_by=name"), ["a", "b"]);
}

fn a_change_does_not_wait_for_ever(kind: Kind) {
    let house = House::new(kind);
    // SQLite has one writer, which needs no lock of a table.
    let Some(url) = &house.database.url else { return };
    let server = house.serve(&[]);
    let admin = server.admin();
    let table = key(&define(&admin, &device()), "table_name");
    admin.post("/devices", &json!({"name": "a", "serial": "1"})).expect(201);
    // As a write to a row does.
    let mut other = Session::open(url);
    other.execute(&match kind {
        Kind::Postgres => format!("BEGIN; LOCK TABLE \"{table}\" IN ROW EXCLUSIVE MODE"),
        _ => format!(
            "BEGIN; SELECT 1 FROM \"podyard_runtime_tables\" WHERE \"name\" = '{table}' LOCK IN SHARE MODE"
        ),
    });
    let start = std::time::Instant::now();
    let change = json!({"description": "New."});
    let refused = admin.put("/resource-types/device", &change).refused(503, "ServiceUnavailableError");
    assert!(!refused.header("retry-after").is_empty());
    admin.delete("/resource-types/device?force=true").refused(503, "ServiceUnavailableError");
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    assert_eq!(ids(&admin, "/devices"), ["a"]);
    other.execute("ROLLBACK");
    admin.put("/resource-types/device", &change).expect(200);
    assert_eq!(ids(&admin, "/devices"), ["a"]);
}

fn the_tables_agree_with_the_definitions(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    for owner in ["none", "domain", "project", "user"] {
        let mut definition = device();
        definition["keyword"] = format!("of_{owner}").into();
        definition["plural"] = format!("of_{owner}s").into();
        definition["owner"] = owner.into();
        define(&admin, &definition);
        let fields = json!([
            {"name": "serial", "unique": "owner"}, {"name": "watts", "type": "number", "default": 1},
            {"name": "more", "references": "space"},
        ]);
        admin
            .put(&format!("/resource-types/of_{owner}"), &json!({"fields": fields, "force": true}))
            .expect(200);
    }
    server.end();
    let output = house.command().args(["migrate", "--check"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("agree"), "{said}");
}

fn what_happens_to_types_is_in_the_audit(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin, &device());
    let id =
        key(&admin.post("/devices", &json!({"name": "a", "serial": "1"})).expect(201).of("device"), "id");
    admin.put("/resource-types/device", &json!({"description": "New."})).expect(200);
    admin.delete("/resource-types/device?force=true").expect(200);
    assert_eq!(actions(&house, "resource-type", "device"), ["create", "update", "delete"]);
    assert_eq!(actions(&house, "device", &id), ["create", "delete"]);
}

/// What the ops log has of an object.
fn actions(house: &House, obj_type: &str, obj_id: &str) -> Vec<String> {
    use diesel::prelude::*;
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Text)]
        action: String,
    }
    let query = diesel::sql_query(format!(
        "SELECT action FROM ops_log WHERE obj_type = '{obj_type}' AND obj_id = '{obj_id}' ORDER BY seq"
    ));
    let rows: Vec<Row> = match &house.database.url {
        #[cfg(feature = "mysql")]
        Some(url) if url.starts_with("mysql:") => {
            query.load(&mut diesel::MysqlConnection::establish(url).unwrap()).unwrap()
        }
        Some(url) => query.load(&mut diesel::PgConnection::establish(url).unwrap()).unwrap(),
        None => {
            let file = house.data_dir().join("podyard.sqlite3");
            query.load(&mut diesel::SqliteConnection::establish(file.to_str().unwrap()).unwrap()).unwrap()
        }
    };
    rows.into_iter().map(|it| it.action).collect()
}
