//! Types that an administrator defines while the server runs.

use serde_json::{Value, json};

use crate::harness::{Answer, Client, House, Kind, at_once, body, key};

on_each_database!(
    a_type_is_defined_and_its_rows_are_as_all_others,
    rows_are_their_owners,
    ranks_of_types_and_fields_hold,
    only_administrators_define_types,
    values_are_judged_by_their_fields,
    filters_orders_and_pages_work,
    unique_values_are_unique,
    references_hold_in_both_directions,
    what_one_may_not_see_cannot_be_referred_to,
    definitions_that_a_database_would_refuse_are_refused,
    documents_tell_of_it_at_once,
    names_that_are_taken_reserved_or_wicked_are_refused,
    quotas_limit_the_rows_of_owners,
    rows_of_nobody_stay_with_their_type,
);

/// Devices, which belong to users, with a field of each kind.
pub(crate) fn device() -> Value {
    json!({
        "keyword": "device", "plural": "devices", "description": "A thing with a plug.",
        "fields": [
            {"name": "serial", "required": true, "unique": "all", "max": 16, "search": true, "description": "On its back."},
            {"name": "watts", "type": "integer", "min": 1, "max": 4000, "default": 60, "index": true},
            {"name": "weight", "type": "number"},
            {"name": "on", "type": "boolean", "default": false},
            {"name": "bought", "type": "time"},
            {"name": "about", "type": "json"},
            {"name": "labels", "type": "list", "default": []},
            {"name": "color", "choices": ["red", "green"], "default": "red"},
        ],
    })
}

#[track_caller]
pub(crate) fn define(admin: &Client, definition: &Value) -> Value {
    admin.post("/resource-types", &body("resource-type", definition.clone())).expect(201).of("resource-type")
}

#[track_caller]
pub(crate) fn ids(client: &Client, path: &str) -> Vec<String> {
    let rows = client.get(path).expect(200).json();
    let rows = rows.as_object().unwrap().values().find_map(Value::as_array).unwrap().clone();
    rows.iter().map(|it| key(it, "name")).collect()
}

#[track_caller]
pub(crate) fn blames(answer: Answer, status: u16, class: &str, fields: &[&str]) {
    assert_eq!(answer.refused(status, class).blamed(), fields);
}

fn a_type_is_defined_and_its_rows_are_as_all_others(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    admin.get("/devices").expect(404);
    let made = define(&admin, &device());
    assert_eq!(made["id"], "device");
    assert_eq!(made["path"], "/devices");
    let ann = admin.member("ann");
    let answer = ann
        .post(
            "/devices",
            &body(
                "device",
                json!({"name": "lamp", "serial": "A1", "weight": 1.5, "bought": "2026-01-31T12:00:00Z",
                   "about": {"a": [1, null]}, "labels": ["x", "y"]}),
            ),
        )
        .expect(201);
    let lamp = answer.of("device");
    assert_eq!(answer.header("location"), format!("/devices/{}", key(&lamp, "id")));
    assert!(answer.statements() <= 5, "{}", answer.statements());
    for (name, value) in [
        ("serial", json!("A1")),
        ("watts", json!(60)),
        ("weight", json!(1.5)),
        ("on", json!(false)),
        ("bought", json!("2026-01-31T12:00:00Z")),
        ("about", json!({"a": [1, null]})),
        ("labels", json!(["x", "y"])),
        ("color", json!("red")),
        ("status", json!("ready")),
        ("user_id", json!(ann.user_id())),
    ] {
        assert_eq!(lamp[name], value, "{name}");
    }
    let got = ann.get("/devices/lamp").expect(200);
    assert_eq!(got.of("device"), lamp);
    assert_eq!(got.statements(), 1);
    // Changes, their versions and the way back.
    let changed = ann.put("/devices/lamp", &json!({"watts": 40, "on": true, "weight": null})).expect(200);
    assert_eq!(changed.header("etag"), "\"2\"");
    let row = changed.of("device");
    assert_eq!((&row["watts"], &row["on"], &row["weight"]), (&json!(40), &json!(true), &Value::Null));
    let stale = ann.send("PUT", "/devices/lamp", &[("If-Match", "\"1\"")], Some(b"{\"watts\": 5}"));
    stale.refused(412, "PreconditionFailedError");
    ann.delete("/devices/lamp").expect(200);
    ann.get("/devices/lamp").refused(404, "ResourceNotFoundError");
    ann.post("/devices/lamp/dance", &json!({})).refused(404, "ActionNotFoundError");
    // The name and the serial number are free again.
    ann.post("/devices", &json!({"name": "lamp", "serial": "A1"})).expect(201);
    // It is there after a restart.
    drop(server);
    let server = house.serve(&[]);
    let ann = ann.at(&server.base);
    assert_eq!(ids(&ann, "/devices"), ["lamp"]);
}

fn rows_are_their_owners(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    for owner in ["none", "domain", "project", "user"] {
        let ranks = json!({"read": "user", "write": "user"});
        define(&admin, &json!({"keyword": format!("of_{owner}"), "owner": owner, "access": ranks}));
    }
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    // Members of one project, in one domain.
    let same_project = ann.post("/of_projects", &json!({"name": "x"})).expect(201).of("of_project");
    let project = key(&same_project, "project_id");
    for (owner, seen) in [("none", true), ("domain", true), ("user", false)] {
        let path = format!("/of_{owner}s");
        let row = ann.post(&path, &json!({"name": "hers"})).expect(201).of(&format!("of_{owner}"));
        let one = format!("{path}/{}", key(&row, "id"));
        assert_eq!(ids(&bob, &path).len(), usize::from(seen), "{owner}");
        bob.get(&one).expect(if seen { 200 } else { 404 });
        bob.put(&one, &json!({"description": "mine"})).expect(if seen { 200 } else { 404 });
        bob.delete(&one).expect(if seen { 200 } else { 404 });
        assert_eq!(ids(&admin, &path).len(), usize::from(!seen), "{owner}: administrators see all");
        ann.nobody().get(&path).refused(401, "UnauthorizedError");
    }
    let his = bob.post("/of_projects", &json!({"name": "y"})).expect(201).of("of_project");
    let shared = key(&his, "project_id") == project;
    assert_eq!(ids(&bob, "/of_projects").len(), if shared { 2 } else { 1 });
    // Names are unique among those of one owner.
    ann.post("/of_users", &json!({"name": "same"})).expect(201);
    bob.post("/of_users", &json!({"name": "same"})).expect(201);
    ann.post("/of_users", &json!({"name": "same"})).refused(409, "DuplicateNameError");
    ann.post("/of_nones", &json!({"name": "same"})).expect(201);
    blames(bob.post("/of_nones", &json!({"name": "same"})), 409, "DuplicateNameError", &["name"]);
}

fn ranks_of_types_and_fields_hold(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    define(
        &admin,
        &json!({"keyword": "rule", "owner": "none", "access": {"read": "user", "delete": "never"}, "fields": [
            {"name": "open"},
            {"name": "cost", "type": "integer", "list": "admin"},
            {"name": "detail", "list": "never", "get": "user"},
            {"name": "secret", "list": "never"},
            {"name": "fixed", "update": "never"},
        ]}),
    );
    let fields = json!({"name": "r", "open": "o", "cost": 5, "detail": "d", "secret": "s", "fixed": "f"});
    ann.post("/rules", &fields).refused(403, "ForbiddenError");
    admin.post("/rules", &fields).expect(201);
    let seen = ann.get("/rules/r").expect(200).of("rule");
    assert_eq!((&seen["open"], &seen["detail"]), (&json!("o"), &json!("d")));
    assert!(seen.get("cost").is_none() && seen.get("secret").is_none(), "{seen}");
    let listed = &ann.get("/rules").expect(200).of("rules")[0];
    assert!(listed.get("detail").is_none() && listed.get("cost").is_none(), "{listed}");
    assert_eq!(admin.get("/rules").expect(200).of("rules")[0]["cost"], 5);
    // What one may not see one may not ask by.
    blames(ann.get("/rules?cost=5"), 400, "InputParameterError", &["cost"]);
    blames(ann.get("/rules?order_by=cost"), 400, "InputParameterError", &["order_by"]);
    ann.put("/rules/r", &json!({"open": "x"})).refused(403, "ForbiddenError");
    ann.delete("/rules/r").refused(403, "ForbiddenError");
    admin.delete("/rules/r").refused(403, "ForbiddenError");
    blames(admin.put("/rules/r", &json!({"fixed": "x"})), 400, "InputParameterError", &["fixed"]);
    // A field for administrators in a type of everybody.
    define(
        &admin,
        &json!({"keyword": "note", "fields": [{"name": "stamp", "create": "admin", "update": "admin"}]}),
    );
    blames(ann.post("/notes", &json!({"name": "n", "stamp": "x"})), 403, "ForbiddenError", &["stamp"]);
    ann.post("/notes", &json!({"name": "n"})).expect(201);
    blames(ann.put("/notes/n", &json!({"stamp": "x"})), 403, "ForbiddenError", &["stamp"]);
    // What an owner is made of is not for clients.
    blames(ann.post("/notes", &json!({"name": "m", "user_id": "x"})), 403, "ForbiddenError", &["user_id"]);
    assert!(!server.logged().contains("\"s\""), "no values in the log");
}

fn only_administrators_define_types(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    ann.nobody().post("/resource-types", &device()).refused(401, "UnauthorizedError");
    ann.post("/resource-types", &device()).refused(403, "ForbiddenError");
    define(&admin, &device());
    ann.get("/resource-types").refused(403, "ForbiddenError");
    ann.get("/resource-types/device").refused(403, "ForbiddenError");
    ann.put("/resource-types/device", &json!({"fields": []})).refused(403, "ForbiddenError");
    ann.delete("/resource-types/device").refused(403, "ForbiddenError");
    ann.delete("/resource-types/device?force=true").refused(403, "ForbiddenError");
    // Force is for those who know it.
    blames(ann.delete("/devices/x?force=true"), 400, "InputParameterError", &["force"]);
    blames(admin.delete("/resource-types/device?force=maybe"), 400, "InputParameterError", &["force"]);
    blames(admin.delete("/resource-types/device?fource=true"), 400, "InputParameterError", &["fource"]);
    for name in ["table_name", "serial", "keyword", "plural", "owner"] {
        let answer = admin.put("/resource-types/device", &json!({name: "spaces"}));
        blames(answer, 400, "InputParameterError", &[name]);
    }
    ann.get("/devices").expect(200);
}

fn values_are_judged_by_their_fields(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin, &device());
    for (field, bad) in [
        ("serial", json!(null)),
        ("serial", json!(5)),
        ("serial", json!("a text that is too long")),
        ("serial", json!("a\u{0}b")),
        ("watts", json!(0)),
        ("watts", json!(4001)),
        ("watts", json!("60")),
        ("watts", json!(1.5)),
        ("watts", json!(null)),
        ("weight", json!("1")),
        ("on", json!(1)),
        ("bought", json!("yesterday")),
        ("labels", json!("x")),
        ("labels", json!([1])),
        ("color", json!("blue")),
        ("shape", json!("round")),
    ] {
        let mut fields = json!({"name": "n", "serial": "S"});
        fields[field] = bad.clone();
        let answer = admin.post("/devices", &fields);
        assert_eq!(answer.refused(400, "InputParameterError").blamed(), [field], "{field} {bad}");
    }
    blames(admin.post("/devices", &json!({"name": "n"})), 400, "InputParameterError", &["serial"]);
    // All that is wrong is told at once, and nothing was made.
    let answer = admin.post("/devices", &json!({"watts": 0, "color": "blue", "serial": "S"}));
    blames(answer, 400, "InputParameterError", &["color", "watts", "name"]);
    assert!(ids(&admin, "/devices").is_empty());
    let most =
        json!({"name": "n", "serial": "S", "watts": 4000, "about": null, "weight": 1e300, "labels": []});
    admin.post("/devices", &most).expect(201);
    blames(admin.put("/devices/n", &json!({"watts": 4001})), 400, "InputParameterError", &["watts"]);
}

fn filters_orders_and_pages_work(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin, &device());
    for i in 0..7 {
        let color = if i % 2 == 0 { "red" } else { "green" };
        let weight = if i < 3 { Value::Null } else { json!(f64::from(i) / 2.0) };
        let fields = json!({"name": format!("d{i}"), "serial": format!("S{i}"), "watts": 10 * (i + 1),
            "color": color, "on": i == 2, "weight": weight});
        admin.post("/devices", &fields).expect(201);
    }
    assert_eq!(ids(&admin, "/devices?color=green&order_by=name"), ["d1", "d3", "d5"]);
    assert_eq!(ids(&admin, "/devices?watts=10&watts=30&order_by=watts&order=desc"), ["d2", "d0"]);
    assert_eq!(ids(&admin, "/devices?on=true"), ["d2"]);
    assert_eq!(ids(&admin, "/devices?weight=2.5"), ["d5"]);
    assert_eq!(ids(&admin, "/devices?search=s4"), ["d4"]);
    blames(admin.get("/devices?watts=many"), 400, "InputParameterError", &["watts"]);
    blames(admin.get("/devices?colour=red"), 400, "InputParameterError", &["colour"]);
    // Page by page, also where some have no value.
    for order in ["watts", "weight", "created_at", "color"] {
        let (mut seen, mut path) = (Vec::new(), format!("/devices?order_by={order}&limit=2"));
        loop {
            let page = admin.get(&path).expect(200);
            assert_eq!(page.statements(), 1);
            let page = page.json();
            seen.extend(page["devices"].as_array().unwrap().iter().map(|it| key(it, "name")));
            let Some(marker) = page["next_marker"].as_str() else { break };
            path = format!("/devices?order_by={order}&limit=2&marker={marker}");
        }
        assert_eq!(seen.len(), 7, "{order}: {seen:?}");
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 7, "{order}");
    }
    let page = admin.get("/devices?details=total&field=name,watts&limit=1").expect(200).json();
    assert_eq!(page["total"], 7);
    assert_eq!(page["devices"][0].as_object().unwrap().len(), 2);
}

fn unique_values_are_unique(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    define(
        &admin,
        &json!({"keyword": "book", "fields": [
            {"name": "isbn", "unique": "all"}, {"name": "shelf", "type": "integer", "unique": "owner"},
        ]}),
    );
    ann.post("/books", &json!({"name": "a", "isbn": "1", "shelf": 1})).expect(201);
    blames(bob.post("/books", &json!({"name": "a", "isbn": "1"})), 409, "DuplicateResourceError", &["isbn"]);
    bob.post("/books", &json!({"name": "a", "shelf": 1})).expect(201);
    // None is no value that another could have too.
    bob.post("/books", &json!({"name": "b"})).expect(201);
    blames(ann.post("/books", &json!({"name": "b", "shelf": 1})), 409, "DuplicateResourceError", &["shelf"]);
    let answers = at_once(8, |i| ann.post("/books", &json!({"name": format!("n{i}"), "isbn": "2"})));
    assert_eq!(answers.iter().filter(|it| it.status == 201).count(), 1);
    for answer in answers.into_iter().filter(|it| it.status != 201) {
        blames(answer, 409, "DuplicateResourceError", &["isbn"]);
    }
    // A deleted one holds nothing.
    ann.delete("/books/a").expect(200);
    bob.put("/books/b", &json!({"isbn": "1"})).expect(200);
}

fn references_hold_in_both_directions(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    define(&admin, &json!({"keyword": "rack", "owner": "none", "access": {"read": "user"}}));
    define(
        &admin,
        &json!({"keyword": "box", "plural": "boxes", "fields": [
            {"name": "rack_id", "references": "rack"},
            {"name": "inside_id", "references": "box"},
            {"name": "space_id", "references": "space"},
            {"name": "kind_id", "references": "kind"},
        ]}),
    );
    let rack = key(&admin.post("/racks", &json!({"name": "r"})).expect(201).of("rack"), "id");
    let space = ann.space("hers", "files");
    let fields = json!({"name": "b", "rack_id": rack, "space_id": space, "kind_id": "builtin"});
    let boxed = key(&ann.post("/boxes", &fields).expect(201).of("box"), "id");
    ann.post("/boxes", &json!({"name": "c", "inside_id": boxed})).expect(201);
    // What is not there, or not theirs, cannot be referred to.
    for (field, id) in [("rack_id", "nothing"), ("inside_id", &boxed), ("space_id", &space)] {
        let answer = bob.post("/boxes", &json!({"name": "d", field: id}));
        blames(answer, 400, "ReferenceNotFoundError", &[field]);
    }
    assert_eq!(ids(&ann, &format!("/boxes?rack_id={rack}")), ["b"]);
    // What is referred to stays, of whatever type it is.
    admin.delete(&format!("/racks/{rack}")).refused(409, "ResourceInUseError");
    ann.delete(&format!("/spaces/{space}")).refused(409, "ResourceInUseError");
    ann.delete(&format!("/boxes/{boxed}")).refused(409, "ResourceInUseError");
    admin.delete("/resource-types/rack?force=true").refused(409, "ResourceInUseError");
    ann.delete("/boxes/c").expect(200);
    ann.delete(&format!("/boxes/{boxed}")).expect(200);
    admin.delete(&format!("/racks/{rack}")).expect(200);
    ann.delete(&format!("/spaces/{space}")).expect(200);
    // The type that refers first, then the one that is referred to.
    admin.delete("/resource-types/box").expect(200);
    admin.delete("/resource-types/rack").expect(200);
}

fn what_one_may_not_see_cannot_be_referred_to(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let hook = json!({"name": "w", "url": "http://127.0.0.1:9/", "resource": "*", "events": ["created"]});
    let webhook = key(&admin.post("/webhooks", &hook).expect(201).of("webhook"), "id");
    let quota = json!({"scope": "user", "target_id": bob.user_id(), "resource": "spaces", "most": 9});
    let quota = key(&admin.post("/quotas", &quota).expect(201).of("quota"), "id");
    let space = bob.space("his", "files");
    let fields: Vec<_> = ["user", "webhook", "quota", "space"]
        .map(|of| json!({"name": format!("{of}_ref"), "references": of, "update": "user"}))
        .into();
    define(&admin, &json!({"keyword": "link", "fields": fields}));
    let foreign = [("user", bob.user_id()), ("webhook", webhook), ("quota", quota), ("space", space)];
    for (of, id) in &foreign {
        let field = format!("{of}_ref");
        let told = ann.post("/links", &json!({"name": of, field.as_str(): id}));
        blames(told.clone(), 400, "ReferenceNotFoundError", &[field.as_str()]);
        // Nothing tells it from one that is not there.
        let nothing = ann.post("/links", &json!({"name": of, field.as_str(): "no-such-id"}));
        let text = |it: &Answer, id: &str| it.json()["detail"].as_str().unwrap().replace(id, "");
        assert_eq!(text(&told, id), text(&nothing, "no-such-id"));
        admin.post("/links", &json!({"name": of, field.as_str(): id})).expect(201);
    }
    // Her own are hers to refer to, and nothing of hers stands in an administrator's way.
    ann.post("/links", &json!({"name": "own", "user_ref": ann.user_id()})).expect(201);
    assert_eq!(ids(&ann, "/links"), ["own"]);
}

fn definitions_that_a_database_would_refuse_are_refused(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let refused = |field: Value| {
        let wanted = json!({"keyword": "odd", "fields": [field]});
        let answer = admin.post("/resource-types", &body("resource-type", wanted));
        answer.refused(400, "InputParameterError")
    };
    refused(json!({"name": "x", "references": "resource-type"}));
    for word in ["all", "since", "initial", "purge", "without_tag"] {
        refused(json!({"name": word, "type": "boolean", "default": false}));
    }
    for rule in [json!({"index": true}), json!({"unique": "all"}), json!({"unique": "owner"})] {
        let mut field = json!({"name": "x", "max": 513});
        field.as_object_mut().unwrap().extend(rule.as_object().unwrap().clone());
        refused(field.clone());
        field["max"] = 512.into();
        let made = json!({"keyword": "even", "fields": [field]});
        define(&admin, &made);
        // As long as it may be, of the widest characters.
        let widest: String = (0..512).map(|i| char::from_u32(0x1_F300 + i % 500).unwrap()).collect();
        admin.post("/evens", &json!({"name": "wide", "x": widest})).expect(201);
        admin.delete("/resource-types/even?force=true").expect(200);
    }
    // As many that are indexed as there is room for: some databases have a bound of their own.
    let fields: Vec<_> = (0..40).map(|i| json!({"name": format!("f{i}"), "unique": "all"})).collect();
    let answer = admin.post("/resource-types", &json!({"keyword": "wide", "fields": fields}));
    if answer.status == 201 {
        admin.post("/wides", &json!({"name": "w"})).expect(201);
    } else {
        answer.refused(400, "DatabaseCannotError");
    }
    // What is deep becomes a cell as it is.
    define(&admin, &json!({"keyword": "deep", "fields": [{"name": "about", "type": "json"}]}));
    let about = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    let sent = format!(r#"{{"name": "d", "about": {about}}}"#);
    let json = [("Content-Type", "application/json")];
    admin.send("POST", "/deeps", &json, Some(sent.as_bytes())).expect(201);
    assert!(admin.get("/deeps?export=csv").expect(200).text().contains(&about));
}

fn documents_tell_of_it_at_once(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let document = || admin.nobody().get("/openapi.json").expect(200).json();
    assert!(document()["paths"]["/devices"].is_null());
    define(&admin, &device());
    let it = document();
    assert!(it["paths"]["/devices"]["post"].is_object());
    assert!(it["paths"]["/devices/{id}"]["put"].is_object());
    let create = &it["components"]["schemas"]["rt.deviceCreate"];
    assert_eq!(create["additionalProperties"], false);
    let watts = &create["properties"]["watts"];
    assert_eq!((&watts["minimum"], &watts["maximum"]), (&json!(1.0), &json!(4000.0)), "{watts}");
    assert_eq!(create["properties"]["color"]["enum"], json!(["red", "green"]));
    assert_eq!(create["required"], json!(["name", "serial"]));
    let resource = admin.get("/resources/devices").expect(200).of("resource");
    assert_eq!((&resource["runtime"], &resource["keyword"]), (&json!(true), &json!("device")));
    let serial = resource["fields"].as_array().unwrap().iter().find(|it| it["name"] == "serial").unwrap();
    assert_eq!(serial["description"], "On its back.");
    assert_eq!(
        (&serial["unique"], &serial["required"], &serial["max_length"]),
        (&json!(true), &json!(true), &json!(16))
    );
    admin
        .put("/resource-types/device", &json!({"fields": [{"name": "volts", "type": "integer"}]}))
        .expect(200);
    let it = document();
    assert!(it["components"]["schemas"]["rt.device"]["properties"]["volts"].is_object());
    assert!(it["components"]["schemas"]["rt.device"]["properties"]["watts"].is_null());
    admin.delete("/resource-types/device").expect(200);
    assert!(document()["paths"]["/devices"].is_null());
}

fn names_that_are_taken_reserved_or_wicked_are_refused(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin, &json!({"keyword": "device"}));
    for (keyword, plural, blamed) in [
        ("space", "others", "keyword"),
        ("thing", "spaces", "plural"),
        ("spaces", "thing", "keyword"),
        ("device", "others", "keyword"),
        ("devices", "others", "keyword"),
        ("other", "devices", "plural"),
    ] {
        let answer = admin.post("/resource-types", &json!({"keyword": keyword, "plural": plural}));
        assert_eq!(answer.refused(409, "DuplicateNameError").blamed(), [blamed], "{keyword} {plural}");
    }
    let wicked = [
        "",
        "a\"; DROP TABLE spaces; --",
        "a' OR 1=1",
        "../x",
        "a/b",
        "a b",
        "a.b",
        "A",
        "1a",
        "_a",
        "a__b",
        "é",
        "a%00",
    ];
    for name in wicked {
        let answer = admin.post("/resource-types", &json!({"keyword": name, "plural": "fine"})).expect(400);
        assert!(answer.blamed().contains(&"keyword".to_owned()), "{name:?}: {}", answer.text());
        let answer = admin.post("/resource-types", &json!({"keyword": "fine", "fields": [{"name": name}]}));
        assert_eq!(answer.refused(400, "InputParameterError").blamed(), ["fields[0].name"], "{name:?}");
    }
    for plural in ["resources", "events", "v3", "ws", "healthz", "readyz", "metrics", "webhooks"] {
        let answer = admin.post("/resource-types", &json!({"keyword": "thing", "plural": plural}));
        assert!([400, 409].contains(&answer.status), "{plural}: {}", answer.text());
        assert_eq!(answer.blamed(), ["plural"]);
    }
    for field in ["id", "name", "user_id", "deleted", "limit", "filter", "xmin", "rowid", "thing", "things"] {
        let answer = admin.post("/resource-types", &json!({"keyword": "thing", "fields": [{"name": field}]}));
        blames(answer, 400, "InputParameterError", &["fields[0].name"]);
    }
    let many: Vec<_> = (0..60).map(|i| json!({"name": format!("f{i}")})).collect();
    blames(
        admin.post("/resource-types", &json!({"keyword": "thing", "fields": many})),
        400,
        "InputParameterError",
        &["fields"],
    );
    blames(
        admin
            .post("/resource-types", &json!({"keyword": "thing", "fields": [{"name": "a", "tpye": "text"}]})),
        400,
        "InputParameterError",
        &["fields"],
    );
    // Words of SQL are names like any other; texts of people are bound or told.
    let text = "'; DROP TABLE users; -- \" \\";
    let fields: Vec<_> = ["select", "table", "where", "from", "group", "null", "true", "default", "primary"]
        .iter()
        .map(|it| json!({"name": it, "default": text, "description": text, "choices": [text, "x"], "index": true}))
        .collect();
    define(&admin, &json!({"keyword": "union", "plural": "tables", "description": text, "fields": fields}));
    let row = admin.post("/tables", &json!({"name": "x"})).expect(201).of("union");
    assert_eq!(row["select"], text);
    assert_eq!(ids(&admin, "/tables?where=x&order_by=from"), Vec::<String>::new());
    let query = admin.get("/tables?select='%3B%20DROP%20TABLE%20users%3B%20--%20%22%20%5C").expect(200);
    assert_eq!(query.of("tables").as_array().unwrap().len(), 1);
    admin.get("/users").expect(200);
}

fn quotas_limit_the_rows_of_owners(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    define(&admin, &device());
    define(&admin, &json!({"keyword": "rule", "owner": "none"}));
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let quota = |resource: &str| {
        let fields = json!({"scope": "user", "target_id": ann.user_id(), "resource": resource, "most": 2});
        admin.post("/quotas", &fields)
    };
    ann.post("/devices", &json!({"name": "a", "serial": "1"})).expect(201);
    quota("devices").expect(201);
    // What belongs to nobody is counted for nobody.
    assert_eq!(quota("rules").refused(400, "InputParameterError").blamed(), ["resource"]);
    ann.post("/devices", &json!({"name": "b", "serial": "2"})).expect(201);
    let third = json!({"name": "c", "serial": "3"});
    ann.post("/devices", &third).refused(409, "OutOfQuotaError");
    admin.put("/resource-types/device", &json!({"description": "New."})).expect(200);
    ann.post("/devices", &third).refused(409, "OutOfQuotaError");
    bob.post("/devices", &third).expect(201);
    ann.delete("/devices/a").expect(200);
    ann.post("/devices", &json!({"name": "d", "serial": "4"})).expect(201);
    // The rows of a new type of that name are counted from nothing.
    admin.delete("/resource-types/device?force=true").expect(200);
    define(&admin, &device());
    for i in 0..2 {
        ann.post("/devices", &json!({"name": format!("n{i}"), "serial": format!("{i}")})).expect(201);
    }
    ann.post("/devices", &third).refused(409, "OutOfQuotaError");
}

/// Rows without an owner are stored by a statement that is found without its
/// text where it never changes; that of these types does.
fn rows_of_nobody_stay_with_their_type(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    for keyword in ["rack", "shelf"] {
        let plural = if keyword == "rack" { "racks" } else { "shelves" };
        define(&admin, &json!({"keyword": keyword, "plural": plural, "owner": "none"}));
    }
    for round in ["a", "b"] {
        for plural in ["racks", "shelves"] {
            admin.post(&format!("/{plural}"), &json!({"name": format!("{plural} {round}")})).expect(201);
        }
    }
    let fields = json!([{"name": "height", "type": "integer"}]);
    admin.put("/resource-types/rack", &json!({"fields": fields})).expect(200);
    admin.post("/racks", &json!({"name": "racks c", "height": 2})).expect(201);
    admin.post("/shelves", &json!({"name": "shelves c"})).expect(201);
    assert_eq!(ids(&admin, "/racks?order_by=name"), ["racks a", "racks b", "racks c"]);
    assert_eq!(ids(&admin, "/shelves?order_by=name"), ["shelves a", "shelves b", "shelves c"]);
}
