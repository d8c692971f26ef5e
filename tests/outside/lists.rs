//! The grammar of lists, and what two writers at once see.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::harness::{Answer, Client, House, Kind, at_once, body, key};

on_each_database!(
    every_kind_of_field_can_be_filtered_by,
    search_finds_text_as_it_is,
    lists_are_ordered_by_several_fields,
    a_walk_sees_each_row_once_in_both_directions,
    a_walk_can_turn_back,
    each_field_has_its_own_direction,
    only_what_is_asked_for_is_shown,
    what_may_not_be_seen_cannot_be_asked_for,
    a_name_or_an_id_finds_a_row,
    a_lost_race_changes_nothing,
);

fn rows(answer: &Answer, plural: &str) -> Vec<Value> {
    answer.of(plural).as_array().unwrap().clone()
}

fn names(client: &Client, path: &str) -> Vec<String> {
    let plural = path[1..].split(['?', '/']).next().unwrap();
    rows(&client.get(path).expect(200), plural).iter().map(|it| key(it, "name")).collect()
}

/// Sizes with many ties among them, in place of the four of the first start.
fn sizes(admin: &Client) {
    for id in ["test", "standard", "enhanced", "professional"] {
        admin.delete(&format!("/specs/{id}")).expect(200);
    }
    let all = [
        ("alpha", "1", "1Gi", true),
        ("Bravo", "1", "2Gi", false),
        ("charlie", "2", "2Gi", true),
        ("delta_1", "2", "2Gi", true),
        ("deltaX1", "2", "4Gi", false),
        ("echo 100%", "4", "4Gi", true),
        ("foxtrot\\", "4", "1Gi", true),
    ];
    for (name, cpu, memory, enabled) in all {
        let fields =
            json!({"name": name, "cpu": cpu, "memory": memory, "storage": "1Gi", "enabled": enabled});
        admin.post("/specs", &body("spec", fields)).expect(201);
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|it| format!("%{it:02X}")).collect()
}

fn every_kind_of_field_can_be_filtered_by(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    sizes(&admin);
    let by = |query: &str| names(&admin, &format!("/specs?order_by=created_at&{query}"));
    // Text, a truth, a number, a time.
    assert_eq!(by("name=alpha"), ["alpha"]);
    assert_eq!(by("cpu=4"), ["echo 100%", "foxtrot\\"]);
    assert_eq!(by("enabled=false"), ["Bravo", "deltaX1"]);
    assert_eq!(by("enabled=true&cpu=1"), ["alpha"]);
    assert_eq!(by("version=1").len(), 7);
    admin.put("/specs/alpha", &json!({"description": "changed"})).expect(200);
    assert_eq!(by("version=2"), ["alpha"]);
    let alpha = admin.get("/specs/alpha").of("spec");
    let (id, time) = (key(&alpha, "id"), key(&alpha, "created_at"));
    assert_eq!(by(&format!("id={id}")), ["alpha"]);
    assert_eq!(by(&format!("created_at={time}")), ["alpha"]);
    // The same moment in other words.
    let other = time.replace('Z', "%2B00:00");
    assert_eq!(by(&format!("created_at={other}")), ["alpha"]);
    // Exactly that: a capital is another letter, and an empty text is one too.
    assert_eq!(by("name=ALPHA"), Vec::<String>::new());
    assert_eq!(by("name=alph"), Vec::<String>::new());
    assert_eq!(by("description=").len(), 6);
    assert_eq!(by(&format!("name={}", encoded("echo 100%"))), ["echo 100%"]);
    assert_eq!(by("name=echo+100%25"), ["echo 100%"]);
    assert_eq!(by(&format!("name={}", encoded("x' OR '1'='1"))), Vec::<String>::new());
    // Several values are any of them; several fields are all of them.
    assert_eq!(by("name=alpha&name=charlie&name=none"), ["alpha", "charlie"]);
    assert_eq!(by("cpu=1&cpu=2&memory=2Gi"), ["Bravo", "charlie", "delta_1"]);
    assert_eq!(by("enabled=true&enabled=false").len(), 7);
    // A number that may be missing.
    let fields = json!({"name": "x", "template_id": "files", "spec_id": id});
    let id = key(&admin.post("/spaces", &fields).expect(201).of("space"), "id");
    let spaces = |query: &str| rows(&admin.get(&format!("/spaces?{query}")).expect(200), "spaces").len();
    assert_eq!((spaces("exit_code=0"), spaces("exit_signal=9")), (0, 0));
    admin.start(&id);
    crate::harness::kill(crate::harness::programs(&id)[0], rustix::process::Signal::KILL);
    admin.wait_for(&id, &["stopped"]);
    assert_eq!((spaces("exit_code=0"), spaces("exit_signal=9")), (0, 1));
    // A broken number.
    let tasks = |query: &str| rows(&admin.get(&format!("/tasks?{query}")).expect(200), "tasks").len();
    let progress = rows(&admin.get("/tasks").expect(200), "tasks")[0]["progress"].as_f64().unwrap();
    assert_eq!((tasks(&format!("progress={progress}")), tasks("progress=12.5")), (1, 0));
}

fn search_finds_text_as_it_is(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    sizes(&admin);
    let found = |text: &str| names(&admin, &format!("/specs?order_by=created_at&search={}", encoded(text)));
    assert_eq!(found("BRAVO"), ["Bravo"]);
    assert_eq!(found("lt"), ["delta_1", "deltaX1"]);
    assert_eq!(found("delta_1"), ["delta_1"], "_ is no wildcard");
    assert_eq!(found("0%"), ["echo 100%"]);
    assert_eq!(found("%"), ["echo 100%"], "% is no wildcard");
    assert_eq!(found("\\"), ["foxtrot\\"]);
    assert_eq!(found("'"), Vec::<String>::new());
    assert_eq!(found("nothing like it"), Vec::<String>::new());
    assert_eq!(found("").len(), 7);
    admin.put("/specs/alpha", &json!({"description": "for the Bravest"})).expect(200);
    assert_eq!(found("brav"), ["alpha", "Bravo"]);
    assert_eq!(names(&admin, "/specs?search=brav&enabled=true"), ["alpha"]);
}

fn lists_are_ordered_by_several_fields(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    sizes(&admin);
    let made = ["alpha", "Bravo", "charlie", "delta_1", "deltaX1", "echo 100%", "foxtrot\\"];
    let reversed: Vec<_> = made.iter().rev().copied().collect();
    let by = |query: &str| names(&admin, &format!("/specs?{query}"));
    assert_eq!(by(""), reversed, "the newest first, if nobody says otherwise");
    assert_eq!(by("order=asc"), made);
    assert_eq!(by("order_by=created_at"), made);
    assert_eq!(by("order_by=created_at&order=desc"), reversed);
    let mut values: Vec<_> = made.to_vec();
    values.sort_unstable();
    assert_eq!(by("order_by=name"), values, "text is ordered by its bytes on every database");
    let found = by("order_by=memory,cpu&order=desc");
    let mut expected: Vec<(&str, &str, &str)> = vec![
        ("4Gi", "4", "echo 100%"),
        ("4Gi", "2", "deltaX1"),
        ("2Gi", "2", "delta_1"),
        ("2Gi", "2", "charlie"),
        ("2Gi", "1", "Bravo"),
        ("1Gi", "4", "foxtrot\\"),
        ("1Gi", "1", "alpha"),
    ];
    assert_eq!(found, expected.iter().map(|it| it.2).collect::<Vec<_>>());
    assert_eq!(by("order_by=memory&order_by=cpu&order=desc"), found);
    expected.reverse();
    assert_eq!(by("order_by=memory,cpu"), expected.iter().map(|it| it.2).collect::<Vec<_>>());
    assert_eq!(by("order_by=created_at&limit=2&offset=3"), ["delta_1", "deltaX1"]);
}

fn a_walk_sees_each_row_once_in_both_directions(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    sizes(&admin);
    // Some of the rows have no exit code, some the same: all ties.
    let ends = admin.template("Ends", &[crate::harness::HELPER, "exit", "7"]);
    let spec = key(&admin.get("/specs/alpha").of("spec"), "id");
    for i in 0..6 {
        let fields = json!({"name": format!("space {i}"), "template_id": ends, "spec_id": spec, "auto_start": i % 2 == 0});
        let id = key(&admin.post("/spaces", &fields).expect(201).of("space"), "id");
        if i % 2 == 0 {
            admin.wait_for(&id, &["start_failed"]);
        }
    }
    let walk = |plural: &str, query: &str, limit: usize| {
        let mut seen: Vec<String> = Vec::new();
        let mut marker = String::new();
        for _ in 0..50 {
            let answer = admin.get(&format!("/{plural}?{query}&limit={limit}{marker}")).expect(200);
            let page = rows(&answer, plural);
            assert!(page.len() <= limit);
            assert_eq!(answer.json()["limit"], limit);
            seen.extend(page.iter().map(|it| key(it, "id")));
            match answer.json()["next_marker"].as_str() {
                Some(next) => {
                    assert_eq!(page.len(), limit, "a page before the last is full");
                    marker = format!("&marker={next}");
                }
                None => return seen,
            }
        }
        panic!("{plural}?{query} has no end");
    };
    for (plural, query) in [
        ("specs", "order_by=cpu"),
        ("specs", "order_by=memory,cpu"),
        ("specs", "order_by=enabled"),
        ("specs", "order_by=created_at"),
        ("specs", "order_by=id"),
        ("specs", "order_by=name&enabled=true"),
        ("specs", "search=l&order_by=version"),
        ("spaces", "order_by=exit_code"),
        ("spaces", "order_by=exit_code,started_at"),
        ("spaces", "order_by=stopped_at,name"),
        ("spaces", "order_by=status"),
        ("tasks", "order_by=progress"),
    ] {
        let whole = |order: &str| {
            let answer = admin.get(&format!("/{plural}?{query}&order={order}&limit=1000")).expect(200);
            rows(&answer, plural).iter().map(|it| key(it, "id")).collect::<Vec<_>>()
        };
        let (up, mut down) = (whole("asc"), whole("desc"));
        assert!(up.len() >= 3, "{plural}?{query}");
        assert_eq!(up.iter().collect::<HashSet<_>>().len(), up.len());
        for limit in [1, 2, 3, up.len()] {
            assert_eq!(walk(plural, &format!("{query}&order=asc"), limit), up, "{plural}?{query} by {limit}");
            assert_eq!(
                walk(plural, &format!("{query}&order=desc"), limit),
                down,
                "{plural}?{query} by {limit}"
            );
        }
        down.reverse();
        assert_eq!(up, down, "{plural}?{query}: one direction is the other's reverse");
    }
    // A row that goes meanwhile takes no other along.
    let answer = admin.get("/specs?order_by=name&limit=3").expect(200);
    let marker = key(&answer.json(), "next_marker");
    let last = rows(&answer, "specs").pop().unwrap();
    if last["name"] != "alpha" {
        admin.delete(&format!("/specs/{}", key(&last, "id"))).expect(200);
    }
    let rest =
        rows(&admin.get(&format!("/specs?order_by=name&limit=100&marker={marker}")).expect(200), "specs");
    assert_eq!(rest.len(), 4);
    // A marker holds for its own order only.
    let wrong = admin.get(&format!("/specs?order_by=cpu&marker={marker}")).expect(400);
    assert_eq!(wrong.blamed(), ["marker"]);
    let wrong = admin.get(&format!("/specs?order_by=name&marker={marker}&offset=1")).expect(400);
    assert_eq!(wrong.blamed(), ["offset"]);
}

fn ids(page: &Value, plural: &str) -> Vec<String> {
    page[plural].as_array().unwrap().iter().map(|it| key(it, "id")).collect()
}

fn a_walk_can_turn_back(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    sizes(&admin);
    let spec = key(&admin.get("/specs/alpha").of("spec"), "id");
    for i in 0..5 {
        let fields = json!({"name": format!("space {i}"), "template_id": "files", "spec_id": spec});
        admin.post("/spaces", &fields).expect(201);
    }
    for (plural, order) in [
        ("specs", "order_by=cpu"),
        ("specs", "order_by=memory,-cpu"),
        ("specs", "order_by=created_at&order=desc"),
        ("specs", "order_by=name"),
        ("spaces", "order_by=exit_code,-name"),
        ("spaces", "order_by=-started_at,created_at"),
    ] {
        let page = |rest: &str| admin.get(&format!("/{plural}?{order}{rest}")).expect(200).json();
        let all = ids(&page("&limit=1000"), plural);
        for limit in [1, 2, 3] {
            let mut pages = vec![page(&format!("&limit={limit}"))];
            assert!(pages[0].get("previous_marker").is_none(), "the first page has none before it");
            while let Some(next) = pages[pages.len() - 1]["next_marker"].as_str() {
                let next = page(&format!("&limit={limit}&marker={next}"));
                pages.push(next);
            }
            // Back again, page by page, each as it was.
            let mut at = pages.len() - 1;
            let mut seen = pages[at].clone();
            while let Some(previous) = seen["previous_marker"].as_str() {
                seen = page(&format!("&limit={limit}&marker={previous}"));
                at -= 1;
                assert_eq!(ids(&seen, plural), ids(&pages[at], plural), "{plural}?{order} by {limit}");
                assert!(seen["next_marker"].is_string());
            }
            assert_eq!(at, 0);
            let next = page(&format!("&limit=1000&marker={}", key(&seen, "next_marker")));
            assert_eq!(ids(&next, plural), all[limit..], "and forward from there");
        }
        // Who came by an offset can go back too.
        let later = page("&offset=2&limit=2");
        let before = page(&format!("&limit=2&marker={}", key(&later, "previous_marker")));
        assert_eq!(ids(&before, plural), all[..2]);
        assert!(before.get("previous_marker").is_none());
    }
    // Rows that come before do not shift a page, and the row of the marker may go.
    let first = admin.get("/spaces?order_by=name&limit=2").expect(200).json();
    let second = admin
        .get(&format!("/spaces?order_by=name&limit=2&marker={}", key(&first, "next_marker")))
        .expect(200)
        .json();
    let fields = json!({"name": "a new one", "template_id": "files", "spec_id": spec});
    admin.post("/spaces", &fields).expect(201);
    for gone in [ids(&first, "spaces")[1].clone(), ids(&second, "spaces")[0].clone()] {
        admin.delete(&format!("/spaces/{gone}"));
        crate::harness::until("it is gone", std::time::Duration::from_secs(20), || {
            (admin.get(&format!("/spaces/{gone}")).status == 404).then_some(())
        });
    }
    let by = |marker: String| {
        let page = admin.get(&format!("/spaces?order_by=name&limit=10&marker={marker}")).expect(200);
        rows(&page, "spaces").iter().map(|it| key(it, "name")).collect::<Vec<_>>()
    };
    assert_eq!(by(key(&first, "next_marker")), ["space 3", "space 4"]);
    assert_eq!(by(key(&second, "previous_marker")), ["a new one", "space 0"]);
    let wrong = admin.get(&format!("/spaces?order_by=-name&marker={}", key(&second, "previous_marker")));
    assert_eq!(wrong.expect(400).blamed(), ["marker"]);
}

fn each_field_has_its_own_direction(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    sizes(&admin);
    let by = |query: &str| names(&admin, &format!("/specs?{query}"));
    let mixed = ["foxtrot\\", "echo 100%", "deltaX1", "delta_1", "charlie", "alpha", "Bravo"];
    assert_eq!(by("order_by=-cpu,-name").len(), 7);
    assert_eq!(
        by("order_by=-cpu,memory,-name"),
        ["foxtrot\\", "echo 100%", "delta_1", "charlie", "deltaX1", "alpha", "Bravo"]
    );
    assert_eq!(by("order_by=-cpu&order_by=-memory,name")[..2], ["echo 100%", "foxtrot\\"]);
    // A sign beats `order`, which is for the others.
    assert_eq!(by("order_by=-cpu,%2Bmemory,name&order=desc"), by("order_by=-cpu,memory,-name"));
    assert_eq!(by("order_by=-created_at&order=asc"), by(""));
    assert_eq!(by("order_by=cpu&order=desc").len(), mixed.len());
    assert_eq!(
        admin.get("/specs?order_by=+name&order=desc").expect(400).blamed(),
        ["order_by"],
        "that + is a space"
    );
}

fn members(value: &Value) -> Vec<String> {
    let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
    names.sort();
    names
}

fn only_what_is_asked_for_is_shown(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.space("x", "files");
    let first = |query: &str| rows(&ann.get(&format!("/spaces?{query}")).expect(200), "spaces").remove(0);
    assert_eq!(members(&first("field=name")), ["name"]);
    assert_eq!(members(&first("field=name&field=id")), ["id", "name"]);
    assert_eq!(members(&first("field=status,template,name")), ["name", "status", "template"]);
    assert_eq!(first("field=template")["template"], "Files");
    let all = members(&first(""));
    for name in
        ["id", "name", "status", "template", "spec", "cpu", "memory", "storage", "running", "url", "sid"]
    {
        assert!(all.iter().any(|it| it == name), "{name} is not in {all:?}");
    }
    assert!(!members(&first("details=false")).iter().any(|it| it == "template"));
    // What is left out.
    let less = members(&first("exclude=template,name&exclude=status"));
    assert_eq!(less.len() + 3, all.len());
    assert!(!less.iter().any(|it| ["template", "name", "status"].contains(&it.as_str())));
    assert_eq!(members(&first("field=id,name,template&exclude=name")), ["id", "template"]);
    assert_eq!(
        members(&ann.get(&format!("/spaces/{id}?field=id,name&exclude=id")).expect(200).of("space")),
        ["name"]
    );
    // What a get shows beyond a list.
    assert!(!all.iter().any(|it| it == "last_lines"));
    assert!(members(&ann.read_space(&id)).iter().any(|it| it == "last_lines"));
    let one = ann.get(&format!("/spaces/{id}?field=name,last_lines")).expect(200).of("space");
    assert_eq!(members(&one), ["last_lines", "name"]);
    // How many there are is told when asked, and only then.
    for i in 0..4 {
        ann.space(&format!("space {i}"), "files");
    }
    admin.space("another's", "files");
    let answer = ann.get("/spaces?limit=2&details=total").expect(200).json();
    assert_eq!((&answer["total"], answer["spaces"].as_array().unwrap().len()), (&json!(5), 2));
    assert_eq!(ann.get("/spaces?details=total&name=x").json()["total"], 1);
    assert_eq!(ann.get("/spaces?total=true&name=x").json()["total"], 1);
    assert!(ann.get("/spaces?total=false").json().get("total").is_none());
    assert!(ann.get("/spaces").json().get("total").is_none());
    assert_eq!(admin.get("/spaces?details=total&limit=1").json()["total"], 6);
    // A limit beyond the most is the most.
    assert_eq!(ann.get("/spaces?limit=1000000").expect(200).json()["limit"], 1000);
}

fn what_may_not_be_seen_cannot_be_asked_for(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    ann.space("x", "files");
    // Hidden from everybody, from members, and from lists.
    for (plural, field, for_admin) in [
        ("users", "password_hash", false),
        ("users", "password", false),
        ("spaces", "deleted", false),
        ("spaces", "deleted_at", false),
        ("spaces", "node", true),
        ("templates", "env", true),
        ("tasks", "secret", false),
        ("tasks", "user_cred", false),
        ("tasks", "params", false),
        ("tasks", "worker_id", true),
    ] {
        for client in [&ann, &admin] {
            let open = for_admin && std::ptr::eq(client, &admin);
            for (query, culprit) in [
                (format!("{field}=x"), field),
                (format!("filter={field}.ne(x)"), "filter"),
                (format!("distinct_field={field}"), "distinct_field"),
                (format!("order_by={field}"), "order_by"),
                (format!("field={field}"), "field"),
            ] {
                let answer = client.get(&format!("/{plural}?{query}"));
                if open {
                    answer.expect(200);
                } else {
                    let answer = answer.expect(400);
                    assert_eq!(answer.blamed(), [culprit], "{plural}?{query}");
                    // As a field that there is not at all.
                    let none =
                        client.get(&format!("/{plural}?{}", query.replace(field, "no_such"))).expect(400);
                    let words =
                        |it: &Answer| key(&it.json(), "detail").replace(field, "…").replace("no_such", "…");
                    // For administrators `deleted` is a word of its own.
                    if query != "deleted=x" || std::ptr::eq(client, &ann) {
                        assert_eq!(words(&answer), words(&none));
                    }
                }
            }
            for row in rows(&client.get(&format!("/{plural}")).expect(200), plural) {
                assert_eq!(row.get(field).is_some(), open, "{field} in {row}");
            }
        }
    }
}

fn a_name_or_an_id_finds_a_row(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.space("a name / with % signs", "files");
    let path = format!("/spaces/{}", encoded("a name / with % signs"));
    assert_eq!(ann.get(&path).expect(200).of("space")["id"], json!(id));
    ann.put(&path, &json!({"description": "found"})).expect(200);
    assert_eq!(ann.read_space(&id)["description"], "found");
    // Two of a name are told apart by their ids only.
    let other = admin.space("a name / with % signs", "files");
    admin.get(&path).refused(409, "AmbiguousNameError");
    admin.delete(&path).refused(409, "AmbiguousNameError");
    assert_eq!(ann.get(&path).expect(200).of("space")["id"], json!(id));
    admin.delete(&format!("/spaces/{other}")).expect(200);
    assert_eq!(admin.get(&path).expect(200).of("space")["id"], json!(id));
}

fn a_lost_race_changes_nothing(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.space("x", "files");
    let path = format!("/spaces/{id}");
    let json = ("Content-Type", "application/json");
    let tag = ann.get(&path).expect(200).header("etag").to_owned();
    assert!(tag.starts_with("\"1-"), "{tag}");
    let put = |tag: &str, name: &str| {
        let text = json!({"name": name}).to_string();
        ann.send("PUT", &path, &[json, ("If-Match", tag)], Some(text.as_bytes()))
    };
    let changed = put(&tag, "first").expect(200);
    assert_eq!(changed.header("etag"), "\"2\"");
    put(&tag, "second").refused(412, "PreconditionFailedError");
    ann.send("DELETE", &path, &[("If-Match", &tag)], None).refused(412, "PreconditionFailedError");
    ann.send("POST", &format!("{path}/start"), &[("If-Match", &tag)], Some(b""))
        .refused(412, "PreconditionFailedError");
    assert_eq!(ann.read_space(&id)["name"], "first");
    assert_eq!(ann.read_space(&id)["status"], "stopped");
    // Any version, or one of several.
    put("*", "third").expect(200);
    put("\"1\", \"3\"", "fourth").expect(200);
    // What changes nothing is no change.
    let same = put("\"4\"", "fourth").expect(200);
    assert_eq!(same.header("etag"), "\"4\"");
    let before = ann.read_space(&id);
    let again = ann.put(&path, &json!({})).expect(200).of("space");
    assert_eq!((&again["version"], &again["updated_at"]), (&before["version"], &before["updated_at"]));
    // Of many who know the same version one wins.
    let answers = at_once(8, |i| put("\"4\"", &format!("by {i}")));
    let won: Vec<_> = answers.iter().filter(|it| it.status == 200).collect();
    assert_eq!(won.len(), 1);
    for lost in answers.iter().filter(|it| it.status != 200) {
        assert!([409, 412].contains(&lost.status), "{}", lost.text());
    }
    let now = ann.read_space(&id);
    assert_eq!((&now["version"], &now["name"]), (&json!(5), &won[0].of("space")["name"]));
    // Who names no version goes by the order of coming: each is a change of its own.
    let answers = at_once(8, |i| ann.put(&path, &json!({"description": format!("by {i}")})));
    let won = answers.iter().filter(|it| it.status == 200).count();
    for lost in answers.iter().filter(|it| it.status != 200) {
        lost.clone().refused(409, "ConflictError");
    }
    assert!(won >= 1);
    assert_eq!(ann.read_space(&id)["version"], 5 + i64::try_from(won).unwrap());
}
