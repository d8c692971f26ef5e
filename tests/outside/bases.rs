//! What every type can do that has the columns for it: switches, tags, owners,
//! and paths below other rows, on types that people use.

use serde_json::{Value, json};

use crate::harness::{Client, House, Kind, body, key};

on_each_database!(
    what_is_enabled_is_disabled_by_an_action,
    a_disabled_user_is_out_at_once,
    a_space_is_tagged,
    tags_that_are_wrong_change_nothing,
    tags_of_administrators_are_theirs,
    lists_are_filtered_by_tags,
    spaces_are_found_below_projects_and_templates,
    a_path_below_anothers_row_tells_nothing,
    a_space_is_given_to_another,
    an_administrator_makes_a_space_for_another,
    a_status_is_set_by_hand,
    the_description_tells_of_what_is_built_in
);

fn empty() -> Value {
    json!({})
}

fn what_is_enabled_is_disabled_by_an_action(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    for (plural, keyword, id) in [("templates", "template", "files"), ("specs", "spec", "test")] {
        let path = format!("/{plural}/{id}");
        ann.post(&format!("{path}/disable"), &empty()).refused(403, "ForbiddenError");
        let off = admin.post(&format!("{path}/disable"), &empty()).expect(200).of(keyword);
        assert_eq!(off["enabled"], false);
        // The type's own rules see it.
        assert_eq!(ann.create_space("x", "files").expect(400).blamed().len(), 1);
        assert_eq!(admin.post(&format!("{path}/enable"), &empty()).expect(200).of(keyword)["enabled"], true);
        admin.post(&format!("{path}/enable"), &json!({"x": 1})).expect(400);
        admin.post(&format!("/{plural}/nope/enable"), &empty()).refused(404, "ResourceNotFoundError");
    }
    ann.space("x", "files");
    admin.post("/kinds/builtin/disable", &empty()).refused(404, "ActionNotFoundError");
    // One's own domain and project stay.
    admin.post("/domains/default/disable", &empty()).refused(409, "ProtectedResourceError");
}

fn a_disabled_user_is_out_at_once(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.user_id();
    ann.get("/spaces").expect(200);
    ann.post(&format!("/users/{id}/enable"), &empty()).refused(403, "ForbiddenError");
    admin.post(&format!("/users/{id}/disable"), &empty()).expect(200);
    ann.get("/spaces").expect(401);
    ann.try_login("ann", "password-of-ann").expect(401);
    admin.post(&format!("/users/{id}/enable"), &empty()).expect(200);
    ann.try_login("ann", "password-of-ann").expect(201);
}

fn tags_of(client: &Client, id: &str) -> Value {
    client.get(&format!("/spaces/{id}/metadata")).expect(200).of("space")["metadata"].clone()
}

fn a_space_is_tagged(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let fields = json!({"name": "x", "template_id": "files", "spec_id": "test", "metadata": {"env": "test"}});
    let made = ann.post("/spaces", &body("space", fields)).expect(201).of("space");
    let id = key(&made, "id");
    let path = format!("/spaces/{id}/metadata");
    assert_eq!(tags_of(&ann, &id), json!({"env": "test"}));
    let answer = ann.post(&path, &json!({"env": null, "team": "a", "note": "two\nlines"})).expect(200);
    assert_eq!(answer.of("space")["metadata"], json!({"team": "a", "note": "two\nlines"}));
    // It is a change of the row: its version says so.
    assert_eq!(ann.read_space(&id)["version"], 2);
    let stale = [("If-Match", "\"1\""), ("Content-Type", "application/json")];
    ann.send("POST", &path, &stale, Some(b"{\"a\": \"b\"}")).expect(412);
    // Nothing new is no change.
    ann.post(&path, &json!({"team": "a", "gone": null})).expect(200);
    assert_eq!(ann.read_space(&id)["version"], 2);
    // What a get gives can be sent back.
    let whole = json!({"metadata": {"env": "prod"}});
    let answer = ann.post(&format!("/spaces/{id}/set-metadata"), &whole).expect(200);
    assert_eq!(answer.of("space")["metadata"], json!({"env": "prod"}));
    for path in [path, format!("/spaces/{id}/set-metadata")] {
        bob.post(&path, &json!({"a": "b"})).refused(404, "ResourceNotFoundError");
    }
    bob.get(&format!("/spaces/{id}/metadata")).refused(404, "ResourceNotFoundError");
    // On request, in a get and in a list.
    assert!(ann.read_space(&id).get("metadata").is_none());
    for query in ["tags=true", "field=metadata", "field=name,metadata"] {
        let got = ann.get(&format!("/spaces/{id}?{query}")).expect(200).of("space");
        assert_eq!(got["metadata"], json!({"env": "prod"}), "{query}");
        let list = ann.get(&format!("/spaces?{query}")).expect(200);
        assert_eq!(list.statements(), 2, "{query}");
        assert_eq!(list.of("spaces")[0]["metadata"], json!({"env": "prod"}), "{query}");
    }
    let list = ann.get("/spaces?details=false&tags=true").expect(200).of("spaces");
    assert_eq!(list[0]["metadata"], json!({"env": "prod"}));
    assert!(list[0].get("template").is_none());
    assert!(ann.get("/spaces?tags=false").expect(200).of("spaces")[0].get("metadata").is_none());
    assert_eq!(ann.get("/spaces?tags=perhaps").expect(400).blamed(), ["tags"]);
    assert_eq!(ann.get(&format!("/spaces/{id}?tag=a")).expect(400).blamed(), ["tag"]);
    // Templates have a field of that name, which beats the word.
    assert_eq!(admin.get("/templates/files?tags=true").expect(400).blamed(), ["tags"]);
    assert_eq!(
        admin.get("/templates/files?field=metadata").expect(200).of("template")["metadata"],
        json!({})
    );
}

fn tags_that_are_wrong_change_nothing(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let id = admin.space("x", "files");
    let path = format!("/spaces/{id}/metadata");
    admin.post(&path, &json!({"good": "1"})).expect(200);
    for (key, value) in [
        ("", json!("x")),
        (" a", json!("x")),
        ("a:b", json!("x")),
        ("a\u{0}", json!("x")),
        ("a", json!("x\u{0}")),
        ("a", json!("x".repeat(4097))),
        ("a", json!(1)),
        ("a", json!({})),
        ("a", json!(["x"])),
        ("sys:", json!("x")),
        ("__", json!("x")),
        (&"k".repeat(65), json!("x")),
    ] {
        let answer = admin.post(&path, &json!({"good": "2", key: value})).expect(400);
        assert_eq!(answer.blamed(), [key], "{value}");
        let fields =
            json!({"name": "y", "template_id": "files", "spec_id": "test", "metadata": {key: value}});
        admin.post("/spaces", &fields).expect(400);
    }
    let fields = json!({"name": "y", "template_id": "files", "spec_id": "test", "metadata": "x"});
    assert_eq!(admin.post("/spaces", &fields).expect(400).blamed(), ["metadata"]);
    let many: serde_json::Map<_, _> = (0..100).map(|i| (format!("k{i}"), json!("v"))).collect();
    admin.post(&path, &many.clone().into()).expect(400);
    admin.post(&format!("/spaces/{id}/set-metadata"), &json!({"a": null})).expect(400);
    assert_eq!(tags_of(&admin, &id), json!({"good": "1"}));
    admin.post(&format!("/spaces/{id}/set-metadata"), &many.into()).expect(200);
    // The longest of all, in the widest of letters.
    let long = json!({"\u{1F600}".repeat(64): "\u{1F600}".repeat(4096)});
    let other = admin.space("y", "files");
    admin.post(&format!("/spaces/{other}/metadata"), &long).expect(200);
    assert_eq!(tags_of(&admin, &other), long);
}

fn tags_of_administrators_are_theirs(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.space("x", "files");
    let path = format!("/spaces/{id}/metadata");
    let tags = json!({"sys:cost": "7", "__internal": "secret", "own": "1"});
    for one in [json!({"sys:cost": "7"}), json!({"__internal": "secret"}), tags.clone()] {
        ann.post(&path, &one).refused(403, "ForbiddenError");
    }
    admin.post(&path, &tags).expect(200);
    assert_eq!(tags_of(&admin, &id), tags);
    let seen = json!({"sys:cost": "7", "own": "1"});
    assert_eq!(tags_of(&ann, &id), seen);
    assert_eq!(ann.get("/spaces?tags=true").expect(200).of("spaces")[0]["metadata"], seen);
    assert_eq!(ann.get("/spaces?tag=__internal").expect(400).blamed(), ["tag"]);
    assert_eq!(ann.get("/spaces?without_tag=__internal").expect(400).blamed(), ["without_tag"]);
    assert_eq!(
        admin.get("/spaces?tag=__internal:secret").expect(200).of("spaces").as_array().unwrap().len(),
        1
    );
    assert!(!ann.get("/spaces/tags").expect(200).text().contains("internal"));
    assert!(admin.get("/spaces/tags").expect(200).text().contains("internal"));
    // What its owner replaces are their own.
    for key in ["sys:cost", "__internal"] {
        assert_eq!(
            ann.post(&format!("/spaces/{id}/set-metadata"), &json!({key: "x"})).expect(400).blamed(),
            [key]
        );
    }
    ann.post(&format!("/spaces/{id}/set-metadata"), &json!({"new": "2"})).expect(200);
    assert_eq!(tags_of(&admin, &id), json!({"sys:cost": "7", "__internal": "secret", "new": "2"}));
    ann.post(&path, &json!({"sys:cost": null})).refused(403, "ForbiddenError");
    // On what one only reads.
    ann.post("/templates/files/metadata", &json!({"a": "b"})).refused(403, "ForbiddenError");
    admin.post("/templates/files/metadata", &json!({"a": "b"})).expect(200);
    assert_eq!(
        ann.get("/templates/files/metadata").expect(200).of("template")["metadata"],
        json!({"a": "b"})
    );
}

fn lists_are_filtered_by_tags(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    for (name, tags) in [
        ("a", json!({"env": "prod", "team": "x"})),
        ("b", json!({"env": "test"})),
        ("c", json!({"env": "prod"})),
    ] {
        let id = ann.space(name, "files");
        ann.post(&format!("/spaces/{id}/metadata"), &tags).expect(200);
    }
    ann.space("d", "files");
    let hers = bob.space("e", "files");
    bob.post(&format!("/spaces/{hers}/metadata"), &json!({"env": "prod"})).expect(200);
    let names = |query: &str| {
        let list = ann.get(&format!("/spaces?order_by=name&{query}")).expect(200);
        assert_eq!(list.statements(), 1, "{query}");
        let list = list.of("spaces");
        list.as_array().unwrap().iter().map(|it| key(it, "name")).collect::<Vec<_>>().join("")
    };
    assert_eq!(names("tag=env"), "abc");
    assert_eq!(names("tag=env:prod"), "ac");
    assert_eq!(names("tag=env:prod&tag=team"), "a");
    assert_eq!(names("tag=env:nope"), "");
    assert_eq!(names("tag=env:"), "");
    assert_eq!(names("without_tag=env"), "d");
    assert_eq!(names("tag=env&without_tag=team"), "bc");
    assert_eq!(names("tag=env:prod&name=c"), "c");
    assert_eq!(names("tag=env:pro%25"), "", "a pattern is a text");
    for bad in ["tag=", "tag=:x", "without_tag=a:b", "without_tag="] {
        assert_eq!(ann.get(&format!("/spaces?{bad}")).expect(400).blamed(), [bad.split('=').next().unwrap()]);
    }
    // Rows without a name have none.
    assert_eq!(ann.get("/tasks?tag=a").expect(400).blamed(), ["tag"]);
    // The pairs in use, of what the caller sees.
    let pairs = ann.get("/spaces/tags").expect(200).of("spaces")["tags"].clone();
    let pair = |key: &str, value: &str, count: i64| json!({"key": key, "value": value, "count": count});
    assert_eq!(pairs, json!([pair("env", "prod", 2), pair("env", "test", 1), pair("team", "x", 1)]));
    assert_eq!(bob.get("/spaces/tags").expect(200).of("spaces")["tags"], json!([pair("env", "prod", 1)]));
    // What is gone counts no more.
    bob.delete(&format!("/spaces/{hers}")).expect(200);
    assert_eq!(admin.get("/spaces/tags").expect(200).of("spaces")["tags"], pairs);
}

fn spaces_are_found_below_projects_and_templates(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let echo = admin.template("Echo", &["true"]);
    let one = ann.space("one", "files");
    ann.space("two", &echo);
    bob.space("three", "files");
    let names = |client: &Client, path: &str| {
        let list = client.get(path).expect(200).of("spaces");
        let mut names: Vec<_> = list.as_array().unwrap().iter().map(|it| key(it, "name")).collect();
        names.sort();
        names.join(" ")
    };
    // By id and by name; with the plain list's parameters.
    for template in ["files", "Files"] {
        assert_eq!(names(&ann, &format!("/templates/{template}/spaces")), "one");
        assert_eq!(names(&admin, &format!("/templates/{template}/spaces")), "one three");
    }
    assert_eq!(names(&admin, "/templates/files/spaces?name=three&field=name"), "three");
    assert_eq!(names(&admin, "/specs/test/spaces?order_by=name&limit=2"), "one three");
    assert_eq!(names(&ann, "/projects/ann/spaces"), "one two");
    assert_eq!(names(&admin, "/projects/bob/spaces"), "three");
    assert_eq!(names(&admin, "/users/ann/spaces"), "one two");
    let below = ann.get("/kinds/ide/templates").expect(200).of("templates");
    assert_eq!(below.as_array().unwrap().iter().map(|it| key(it, "id")).collect::<Vec<_>>(), ["code-server"]);
    assert_eq!(admin.get("/templates/files/spaces?x=1").expect(400).blamed(), ["x"]);
    let path = format!("/templates/files/spaces/{one}");
    assert_eq!(ann.get(&path).expect(200).of("space")["name"], "one");
    assert_eq!(ann.get("/templates/files/spaces/one").expect(200).of("space")["id"], one.as_str());
    ann.get(&format!("/templates/{echo}/spaces/{one}")).refused(404, "ResourceNotFoundError");
    ann.put(&path, &json!({"description": "first"})).expect(200);
    assert_eq!(ann.read_space(&one)["description"], "first");
    ann.post(&format!("{path}/metadata"), &json!({"a": "b"})).expect(200);
    ann.get(&format!("{path}/log")).expect(200);
    ann.post(&format!("/templates/{echo}/spaces/{one}/start"), &empty())
        .refused(404, "ResourceNotFoundError");
    // A create takes the template of the path.
    let made = ann.post("/templates/files/spaces", &json!({"name": "four", "spec_id": "test"})).expect(201);
    assert!(made.header("location").starts_with("/spaces/"), "{:?}", made.headers);
    assert_eq!(made.of("space")["template_id"], "files");
    let both = json!({"name": "five", "spec_id": "test", "template_id": "files"});
    ann.post("/templates/Files/spaces", &both).expect(201);
    ann.post(&format!("/templates/{echo}/spaces"), &both).refused(400, "ContextError");
    ann.post("/projects/ann/spaces", &json!({"name": "six", "spec_id": "test", "template_id": "files"}))
        .expect(201);
    ann.delete("/templates/files/spaces/six").expect(200);
    ann.get("/spaces/six").expect(404);
    for (method, path) in [("DELETE", "/templates/files/spaces"), ("POST", "/templates/files/spaces/one")] {
        ann.send(method, path, &[], None).expect(405);
    }
    for path in ["/templates/files/nothing", "/templates/files/spaces/one/log/x", "/spaces/one/templates"] {
        ann.get(path).expect(404);
    }
}

fn a_path_below_anothers_row_tells_nothing(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let id = ann.space("x", "files");
    for path in [
        "/projects/ann/spaces".to_owned(),
        format!("/projects/ann/spaces/{id}"),
        format!("/users/ann/spaces/{id}/log"),
        "/projects/nobody/spaces".into(),
        format!("/templates/files/spaces/{id}"),
    ] {
        bob.get(&path).refused(404, "ResourceNotFoundError");
        admin.nobody().get(&path).expect(401);
    }
    bob.put(&format!("/templates/files/spaces/{id}"), &json!({"name": "y"}))
        .refused(404, "ResourceNotFoundError");
    bob.delete(&format!("/templates/files/spaces/{id}")).refused(404, "ResourceNotFoundError");
    bob.post(&format!("/templates/files/spaces/{id}/start"), &empty()).refused(404, "ResourceNotFoundError");
    let fields = json!({"name": "y", "spec_id": "test", "template_id": "files"});
    bob.post("/projects/ann/spaces", &fields).refused(404, "ResourceNotFoundError");
    assert_eq!(ann.read_space(&id)["name"], "x");
}

fn a_space_is_given_to_another(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "1"]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let template = admin.serving_template();
    let id = ann.space("x", &template);
    let to = |user: &str| json!({"user_id": user});
    let path = format!("/spaces/{id}/change-owner");
    ann.post(&path, &to(&bob.user_id())).refused(403, "ForbiddenError");
    assert_eq!(admin.post(&path, &to("nobody")).expect(400).blamed(), ["user_id"]);
    assert_eq!(admin.post(&path, &json!({"owner": "x"})).expect(400).blamed(), ["owner"]);
    ann.start(&id);
    admin.post(&path, &to(&bob.user_id())).refused(409, "SpaceIsRunningError");
    ann.stop(&id);
    // The new owner has one already, and may have no more.
    let his = bob.space("x", "files");
    admin.post(&path, &to(&bob.user_id())).refused(409, "SpaceLimitError");
    bob.delete(&format!("/spaces/{his}")).expect(200);
    let given = admin.post(&path, &to(&bob.user_id())).expect(200).of("space");
    assert_eq!(given["user_id"], bob.user_id().as_str());
    assert_eq!(given["project_id"], bob.get("/projects/bob").expect(200).of("project")["id"]);
    ann.get(&format!("/spaces/{id}")).refused(404, "ResourceNotFoundError");
    // It is the other's now, with what is in it.
    let space = bob.start(&id);
    bob.get(&key(&space, "url")).expect(200);
    let strange = ann.get(&key(&space, "url"));
    assert!([403, 404].contains(&strange.status), "{}", strange.status);
}

fn an_administrator_makes_a_space_for_another(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "1"]);
    let admin = server.admin();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let fields = |name: &str| json!({"name": name, "template_id": "files", "spec_id": "test", "user_id": ann.user_id()});
    bob.post("/spaces", &fields("x")).refused(403, "ForbiddenError");
    let made = admin.post("/spaces", &fields("x")).expect(201).of("space");
    assert_eq!(made["user_id"], ann.user_id().as_str());
    ann.get("/spaces/x").expect(200);
    // Her limit counts, not the administrator's.
    admin.post("/spaces", &fields("y")).refused(409, "SpaceLimitError");
    admin.space("x", "files");
}

fn a_status_is_set_by_hand(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.space("x", "files");
    let path = format!("/spaces/{id}/status");
    ann.post(&path, &json!({"status": "start_failed"})).refused(403, "ForbiddenError");
    assert_eq!(admin.post(&path, &json!({})).expect(400).blamed(), ["status"]);
    let set =
        admin.post(&path, &json!({"status": "start_failed", "reason": "as told"})).expect(200).of("space");
    assert_eq!((&set["status"], &set["status_reason"]), (&json!("start_failed"), &json!("as told")));
    admin.post("/specs/test/status", &json!({"status": "x"})).refused(404, "ActionNotFoundError");
}

fn the_description_tells_of_what_is_built_in(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let space = admin.get("/resources/spaces").expect(200).of("resource");
    let names: Vec<_> = space["actions"].as_array().unwrap().iter().map(|it| key(it, "name")).collect();
    for name in ["start", "metadata", "set-metadata", "tags", "change-owner", "status"] {
        assert!(names.contains(&name.to_owned()), "{name} is not in {names:?}");
    }
    for name in ["enable", "undelete", "public"] {
        assert!(!names.contains(&name.to_owned()), "{name} is in {names:?}");
    }
    let contexts: Vec<_> = space["contexts"].as_array().unwrap().iter().map(|it| key(it, "path")).collect();
    assert!(contexts.contains(&"/projects/{id}/spaces".to_owned()), "{contexts:?}");
    let document = server.client().get("/openapi.json").expect(200).json();
    let paths = &document["paths"];
    for (path, method) in [
        ("/projects/{id}/spaces", "get"),
        ("/templates/{id}/spaces", "post"),
        ("/templates/{id}/enable", "post"),
        ("/spaces/{id}/metadata", "get"),
        ("/spaces/{id}/metadata", "post"),
        ("/spaces/tags", "get"),
    ] {
        assert!(paths[path][method].is_object(), "{method} {path}");
    }
}
