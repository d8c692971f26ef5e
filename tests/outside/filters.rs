//! The filter grammar, asked of the real server: what each operator finds,
//! what cannot be asked for, and whose rows are counted.

use serde_json::{Value, json};

use crate::harness::{Answer, Client, House, Kind, Server, body, key, until};

on_each_database!(
    each_operator_finds_its_rows,
    filters_go_together,
    filters_go_over_references,
    nothing_is_told_of_what_others_have,
    wrong_filters_are_named,
    regexp_is_where_the_database_has_it,
    different_values_are_counted,
    statistics_count_by_status,
    scope_names_a_part_of_what_may_be_seen,
    administrators_see_deleted_rows,
);

fn encoded(text: &str) -> String {
    text.bytes().map(|it| format!("%{it:02X}")).collect()
}

fn rows(answer: &Answer, plural: &str) -> Vec<Value> {
    answer.of(plural).as_array().unwrap().clone()
}

fn names(client: &Client, path: &str) -> Vec<String> {
    let plural = path[1..].split(['?', '/']).next().unwrap();
    rows(&client.get(path).expect(200), plural).iter().map(|it| key(it, "name")).collect()
}

fn specs(client: &Client, filters: &[&str]) -> Vec<String> {
    let filters: String = filters.iter().map(|it| format!("&filter={}", encoded(it))).collect();
    names(client, &format!("/specs?order_by=created_at{filters}"))
}

fn people(kind: Kind) -> (House, Server, Client, Client) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    let ann = admin.member("ann");
    for id in ["test", "standard", "enhanced", "professional"] {
        admin.delete(&format!("/specs/{id}")).expect(200);
    }
    for (name, cpu, description) in [
        ("alpha", "1", ""),
        ("Bravo", "2", "big, (really)"),
        ("50%", "2", "it's"),
        ("a_c", "4", "x\\y"),
        ("abc", "8", ""),
    ] {
        let fields = json!({"name": name, "cpu": cpu, "memory": "1Gi", "storage": "1Gi", "description": description, "enabled": name != "abc"});
        admin.post("/specs", &body("spec", fields)).expect(201);
    }
    (house, server, admin, ann)
}

fn each_operator_finds_its_rows(kind: Kind) {
    let (_house, _server, admin, _) = people(kind);
    let all = ["alpha", "Bravo", "50%", "a_c", "abc"];
    for (filter, found) in [
        ("name.eq(alpha)", &["alpha"][..]),
        ("name.equals(alpha,abc)", &["alpha", "abc"]),
        ("name.eq(ALPHA)", &[]),
        ("name.ne(alpha)", &all[1..]),
        ("name.notequals(alpha,abc)", &["Bravo", "50%", "a_c"]),
        ("cpu.in(1,8)", &["alpha", "abc"]),
        ("cpu.notin(1,8)", &["Bravo", "50%", "a_c"]),
        ("cpu.lt(2)", &["alpha"]),
        ("cpu.le(2)", &["alpha", "Bravo", "50%"]),
        ("cpu.gt(2)", &["a_c", "abc"]),
        ("cpu.ge(4)", &["a_c", "abc"]),
        ("cpu.between(2,4)", &["Bravo", "50%", "a_c"]),
        ("version.between(1,1)", &all),
        ("created_at.gt(2000-01-01T00:00:00Z)", &all),
        ("created_at.lt(2000-01-01T00:00:00Z)", &[]),
        ("enabled.eq(false)", &["abc"]),
        // In any case, and with wildcards in `like` only.
        ("name.like(A%)", &["alpha", "a_c", "abc"]),
        ("name.like(a_c)", &["a_c", "abc"]),
        ("name.like('a\\\\_c')", &["a_c"]),
        ("name.contains(RAV)", &["Bravo"]),
        ("name.contains(%)", &["50%"]),
        ("name.contains(_)", &["a_c"]),
        ("name.contains(lph,rav)", &["alpha", "Bravo"]),
        ("name.startswith(a)", &["alpha", "a_c", "abc"]),
        ("name.endswith(C)", &["a_c", "abc"]),
        ("description.eq('big, (really)')", &["Bravo"]),
        ("description.eq(\"it's\")", &["50%"]),
        ("description.eq('it\\'s')", &["50%"]),
        ("description.contains('\\\\')", &["a_c"]),
        ("description.eq('')", &["alpha", "abc"]),
        ("description.isempty()", &["alpha", "abc"]),
        ("description.isnotempty()", &["Bravo", "50%", "a_c"]),
        ("description.isnullorempty()", &["alpha", "abc"]),
        ("description.isnull()", &[]),
        ("description.isnotnull()", &all),
    ] {
        assert_eq!(specs(&admin, &[filter]), found, "{filter}");
    }
    // NULL differs from every value, and is no value.
    let spec = key(&admin.get("/specs/alpha").of("spec"), "id");
    let fields = json!({"name": "x", "template_id": "files", "spec_id": spec});
    admin.post("/spaces", &fields).expect(201);
    for (filter, n) in [
        ("exit_code.isnull()", 1),
        ("exit_code.isnotnull()", 0),
        ("exit_code.ne(0)", 1),
        ("exit_code.notin(0,1)", 1),
        ("exit_code.eq(0)", 0),
        ("exit_code.lt(5)", 0),
        ("node.isnullorempty()", 1),
        ("node.isnotempty()", 0),
    ] {
        assert_eq!(names(&admin, &format!("/spaces?filter={filter}")).len(), n, "{filter}");
    }
    // A list in a column is empty as `[]`.
    let template = admin.template("tagged", &["/bin/true"]);
    admin.put(&format!("/templates/{template}"), &json!({"tags": ["red", "blue"]})).expect(200);
    assert_eq!(names(&admin, "/templates?filter=tags.contains(RED)"), ["tagged"]);
    assert!(!names(&admin, "/templates?filter=tags.isempty()").contains(&"tagged".to_owned()));
}

fn filters_go_together(kind: Kind) {
    let (_house, _server, admin, _) = people(kind);
    assert_eq!(specs(&admin, &["cpu.eq(2)", "name.startswith(b)"]), ["Bravo"]);
    assert_eq!(specs(&admin, &["cpu.eq(2)", "name.eq(alpha)"]), Vec::<String>::new());
    let any = |rest: &str| {
        names(
            &admin,
            &format!(
                "/specs?order_by=created_at&filter_any=true&filter=cpu.eq(4)&filter=name.eq(alpha){rest}"
            ),
        )
    };
    assert_eq!(any(""), ["alpha", "a_c"]);
    // The rest must hold all the same.
    assert_eq!(any("&cpu=4"), ["a_c"]);
    assert_eq!(any("&search=alp"), ["alpha"]);
    assert_eq!(any("&enabled=false"), Vec::<String>::new());
    assert_eq!(names(&admin, "/specs?filter_any=true&filter=cpu.eq(4)"), ["a_c"]);
    assert_eq!(
        names(&admin, "/specs?filter_any=false&filter=cpu.eq(4)&filter=cpu.eq(8)"),
        Vec::<String>::new()
    );
    // Any of several texts.
    assert_eq!(names(&admin, "/specs?order_by=created_at&search=alp&search=rav"), ["alpha", "Bravo"]);
    let answer = admin.get("/specs?filter=cpu.eq(2)&total=true&limit=1").expect(200);
    assert_eq!((&answer.json()["total"], rows(&answer, "specs").len()), (&json!(2), 1));
}

fn filters_go_over_references(kind: Kind) {
    let (_house, _server, admin, ann) = people(kind);
    let spec = key(&admin.get("/specs/alpha").of("spec"), "id");
    let template = admin.template("Mine", &["/bin/true"]);
    for (name, template) in [("one", "files"), ("two", template.as_str())] {
        let fields = json!({"name": name, "template_id": template, "spec_id": spec});
        ann.post("/spaces", &fields).expect(201);
    }
    let found = |query: &str| names(&ann, &format!("/spaces?order_by=created_at&{query}"));
    assert_eq!(found("template.name=Mine"), ["two"]);
    assert_eq!(found("template.name=Mine&template.name=Files"), ["one", "two"]);
    assert_eq!(found("template.name=Nothing"), Vec::<String>::new());
    assert_eq!(found("filter=template.name.contains(FILE)"), ["one"]);
    assert_eq!(found("filter=template.name.ne(Mine)"), ["one"]);
    assert_eq!(found("template.enabled=true&spec.cpu=1"), ["one", "two"]);
    assert_eq!(found("filter_any=true&filter=template.name.eq(Mine)&filter=name.eq(one)"), ["one", "two"]);
    // Over two of them.
    let kind_name = key(&admin.get("/kinds/builtin").of("kind"), "name");
    assert_eq!(found(&format!("template.kind.name={}", encoded(&kind_name))), ["one", "two"]);
    assert_eq!(found("filter=template.kind.name.eq(none)"), Vec::<String>::new());
    assert_eq!(found("user.name=ann"), ["one", "two"]);
    assert_eq!(ann.get("/spaces?template.name=Mine&total=true").json()["total"], 1);
    assert_eq!(ann.get("/spaces/statistics?template.name=Mine").of("spaces")["total"], 1);
    assert_eq!(ann.get("/spaces?template.name=Mine").statements(), 1);
    for (query, culprit) in [
        ("template.command=x", "template.command"),
        ("filter=template.env.contains(x)", "filter"),
        ("filter=template.nothing.eq(x)", "filter"),
        ("nothing.name=x", "nothing.name"),
        ("name.name=x", "name.name"),
        ("template.=x", "template."),
        (".name=x", ".name"),
        ("template..name=x", "template..name"),
    ] {
        assert_eq!(ann.get(&format!("/spaces?{query}")).expect(400).blamed(), [culprit], "{query}");
    }
    assert_eq!(
        admin.get("/spaces?filter=template.command.contains(true)").of("spaces").as_array().unwrap().len(),
        1
    );
}

/// A row that a caller may not see is none, also when one of theirs refers to
/// it: whatever is asked of it, the answer is the same as if it was not there.
fn nothing_is_told_of_what_others_have(kind: Kind) {
    let (_house, _server, admin, ann) = people(kind);
    let spec = key(&admin.get("/specs/alpha").of("spec"), "id");
    let fields = json!({"name": "x", "template_id": "files", "spec_id": spec});
    ann.post("/spaces", &fields).expect(201);
    let bob = admin.member("bob");
    bob.post("/spaces", &fields).expect(201);
    // An administrator may ask about people; ann only about herself.
    assert_eq!(names(&admin, "/spaces?user.name=bob").len(), 1);
    assert_eq!(names(&ann, "/spaces?user.name=bob").len(), 0);
    assert_eq!(names(&ann, "/spaces?filter=user.name.startswith(b)").len(), 0);
    assert_eq!(names(&ann, "/spaces?filter=user.name.ne(bob)").len(), 1);
    // An administrator of ann's own row stays invisible to her: `users` shows her only herself.
    assert_eq!(names(&ann, "/users"), ["ann"]);
    let user_id = bob.user_id();
    for query in
        [format!("user_id={user_id}"), format!("filter=user_id.eq({user_id})"), "filter=name.ne(y)".into()]
    {
        let theirs = rows(&ann.get(&format!("/spaces?{query}")).expect(200), "spaces");
        assert!(theirs.iter().all(|it| key(it, "user_id") == ann.user_id()), "{query}: {theirs:?}");
    }
    assert_eq!(ann.get("/spaces?distinct_field=user_id").of("spaces").as_array().unwrap().len(), 1);
    assert_eq!(ann.get("/spaces/statistics").of("spaces")["total"], 1);
    assert_eq!(admin.get("/spaces/statistics").of("spaces")["total"], 2);
}

fn wrong_filters_are_named(kind: Kind) {
    let (_house, _server, admin, _) = people(kind);
    let many = format!("name.in({})", vec!["a"; 501].join(","));
    let long = format!("name.contains({})", "x".repeat(501));
    for filter in [
        "",
        "name",
        "name.eq",
        "name.eq(",
        "name.eq(a",
        "name.eq(a))",
        "name.eq(a)b",
        "name.eq(a,)",
        "name.eq()",
        "name.eq('a)",
        "name.is(a)",
        "nothing.eq(a)",
        "name.isnull(a)",
        "name.lt(a,b)",
        "name.between(a)",
        "version.eq(a)",
        "version.eq(1.5)",
        "version.eq(99999999999999999999)",
        "version.contains(1)",
        "enabled.eq(yes)",
        "enabled.lt(true)",
        "created_at.gt(yesterday)",
        "name;DROP TABLE specs.eq(a)",
        &many,
        &long,
    ] {
        let answer =
            admin.get(&format!("/specs?filter={}", encoded(filter))).refused(400, "InputParameterError");
        assert_eq!(answer.blamed(), ["filter"], "{filter}");
    }
    let fifty = vec!["filter=name.eq(a)"; 51].join("&");
    assert_eq!(admin.get(&format!("/specs?{fifty}")).expect(400).blamed(), ["filter"]);
    for (query, culprit) in [
        ("filter_any=maybe", "filter_any"),
        ("filter_any=true&filter_any=true", "filter_any"),
        ("total=maybe", "total"),
        ("exclude=nothing", "exclude"),
        ("scope=world", "scope"),
        ("distinct_field=nothing", "distinct_field"),
        ("distinct_field=cpu,cpu", "distinct_field"),
        ("distinct_field=cpu&order_by=cpu", "order_by"),
        ("distinct_field=cpu&total=true", "total"),
        ("export=xml", "export"),
        ("export=csv&offset=1", "offset"),
        ("export=csv&total=true", "total"),
        ("order_by=-", "order_by"),
        ("order_by=--name", "order_by"),
        ("order_by=name,-name", "order_by"),
    ] {
        assert_eq!(admin.get(&format!("/specs?{query}")).expect(400).blamed(), [culprit], "{query}");
    }
    assert_eq!(admin.get("/tasks?search=x").expect(400).blamed(), ["search"]);
    assert_eq!(specs(&admin, &[]).len(), 5, "nothing has changed");
}

fn regexp_is_where_the_database_has_it(kind: Kind) {
    let (_house, _server, admin, _) = people(kind);
    if kind == Kind::Sqlite {
        let answer = admin.get("/specs?filter=name.regexp(a)").refused(400, "InputParameterError");
        assert!(key(&answer.json(), "detail").contains("SQLite"));
        return;
    }
    assert_eq!(specs(&admin, &["name.regexp('^a.[ch]')"]), ["a_c", "abc"].map(String::from));
    assert_eq!(specs(&admin, &["name.regexp('^B')"]), ["Bravo"]);
    for pattern in ["'('", "'['", "'a**'", "'(a)\\\\1'", "'a{9}{9}'", "'***'"] {
        let answer = admin.get(&format!("/specs?filter={}", encoded(&format!("name.regexp({pattern})"))));
        assert_eq!(answer.refused(400, "InputParameterError").blamed(), ["filter"], "{pattern}");
    }
}

fn different_values_are_counted(kind: Kind) {
    let (_house, _server, admin, _) = people(kind);
    let asked = |query: &str| admin.get(&format!("/specs?{query}")).expect(200);
    let answer = asked("distinct_field=cpu");
    let wanted = json!([{"cpu": "1", "count": 1}, {"cpu": "2", "count": 2}, {"cpu": "4", "count": 1}, {"cpu": "8", "count": 1}]);
    assert_eq!((answer.of("specs"), &answer.json()["limit"]), (wanted, &json!(100)));
    assert_eq!(
        asked("distinct_field=enabled,cpu&filter=cpu.ge(4)").of("specs"),
        json!([{"enabled": false, "cpu": "8", "count": 1}, {"enabled": true, "cpu": "4", "count": 1}])
    );
    let first = asked("distinct_field=cpu&limit=3");
    assert_eq!((rows(&first, "specs").len(), &first.json()["next_offset"]), (3, &json!(3)));
    let last = asked("distinct_field=cpu&limit=3&offset=3");
    assert_eq!(last.of("specs"), json!([{"cpu": "8", "count": 1}]));
    assert!(last.json().get("next_offset").is_none());
    assert_eq!(asked("distinct_field=version").of("specs"), json!([{"version": 1, "count": 5}]));
    let time = key(&asked("distinct_field=created_at").of("specs")[0], "created_at");
    assert_eq!(names(&admin, &format!("/specs?created_at={time}")).len(), 1);
    for field in ["password_hash", "deleted"] {
        assert_eq!(
            admin.get(&format!("/users?distinct_field={field}")).expect(400).blamed(),
            ["distinct_field"]
        );
    }
}

fn statistics_count_by_status(kind: Kind) {
    let (_house, _server, admin, ann) = people(kind);
    let none = json!({"total": 0, "by_status": {}});
    assert_eq!(ann.get("/spaces/statistics").expect(200).of("spaces"), none);
    let spec = key(&admin.get("/specs/alpha").of("spec"), "id");
    let template = admin.serving_template();
    let mut ids = Vec::new();
    for i in 0..3 {
        let fields = json!({"name": format!("space {i}"), "template_id": template, "spec_id": spec});
        ids.push(key(&ann.post("/spaces", &fields).expect(201).of("space"), "id"));
    }
    ann.start(&ids[0]);
    let counted = json!({"total": 3, "by_status": {"running": 1, "stopped": 2}});
    let answer = ann.get("/spaces/statistics").expect(200);
    assert_eq!((answer.of("spaces"), answer.statements()), (counted.clone(), 1));
    assert_eq!(admin.get("/spaces/statistics").of("spaces"), counted);
    assert_eq!(admin.get("/spaces/statistics?scope=user").of("spaces"), none);
    assert_eq!(
        ann.get("/spaces/statistics?name=space+0").of("spaces"),
        json!({"total": 1, "by_status": {"running": 1}})
    );
    // Without a status there is only the number.
    assert_eq!(ann.get("/specs/statistics").of("specs"), json!({"total": 5}));
    assert_eq!(ann.get("/users/statistics").of("users"), json!({"total": 1}));
    for query in ["limit=1", "field=name", "order_by=name", "export=csv"] {
        let answer = ann.get(&format!("/spaces/statistics?{query}")).expect(400);
        assert_eq!(answer.blamed(), [query.split('=').next().unwrap()]);
    }
    ann.nobody().get("/spaces/statistics").expect(401);
    ann.stop(&ids[0]);
}

fn scope_names_a_part_of_what_may_be_seen(kind: Kind) {
    let (_house, _server, admin, ann) = people(kind);
    let spec = key(&admin.get("/specs/alpha").of("spec"), "id");
    for (client, name) in [(&ann, "hers"), (&admin, "an administrator's")] {
        client.post("/spaces", &json!({"name": name, "template_id": "files", "spec_id": spec})).expect(201);
    }
    assert_eq!(names(&ann, "/spaces?scope=user"), ["hers"]);
    for scope in ["project", "domain", "system"] {
        let answer = ann.get(&format!("/spaces?scope={scope}")).refused(403, "ScopeForbiddenError");
        assert_eq!(answer.blamed(), ["scope"]);
    }
    assert_eq!(names(&admin, "/spaces?scope=user"), ["an administrator's"]);
    assert_eq!(names(&admin, "/spaces?scope=project"), ["an administrator's"]);
    assert_eq!(names(&admin, "/spaces?scope=domain").len(), 2);
    assert_eq!(names(&admin, "/spaces?scope=system").len(), 2);
    assert_eq!(admin.get("/spaces?scope=user&total=true").json()["total"], 1);
    // What has no owners has no scope but one.
    assert_eq!(names(&ann, "/specs?scope=system").len(), 5);
    assert_eq!(names(&ann, "/users?scope=system"), ["ann"], "the hook still narrows");
    assert_eq!(ann.get("/specs?scope=user").expect(400).blamed(), ["scope"]);
    assert_eq!(ann.get("/spaces?scope=user&scope=user").expect(400).blamed(), ["scope"]);
}

fn administrators_see_deleted_rows(kind: Kind) {
    let (_house, _server, admin, ann) = people(kind);
    let spec = key(&admin.get("/specs/alpha").of("spec"), "id");
    let mut ids = Vec::new();
    for name in ["stays", "goes"] {
        let fields = json!({"name": name, "template_id": "files", "spec_id": spec});
        ids.push(key(&ann.post("/spaces", &fields).expect(201).of("space"), "id"));
    }
    ann.delete(&format!("/spaces/{}", ids[1]));
    until("the space is gone", std::time::Duration::from_secs(20), || {
        (names(&ann, "/spaces") == ["stays"]).then_some(())
    });
    assert_eq!(names(&admin, "/spaces"), ["stays"]);
    assert_eq!(names(&admin, "/spaces?deleted=false"), ["stays"]);
    assert_eq!(names(&admin, "/spaces?deleted=true"), ["goes"]);
    assert_eq!(names(&admin, "/spaces?deleted=any&order_by=created_at"), ["stays", "goes"]);
    assert_eq!(admin.get("/spaces/statistics?deleted=any").of("spaces")["total"], 2);
    for value in ["true", "any", "false"] {
        assert_eq!(ann.get(&format!("/spaces?deleted={value}")).expect(400).blamed(), ["deleted"]);
    }
    assert_eq!(admin.get("/specs?deleted=true").expect(400).blamed(), ["deleted"]);
    assert_eq!(admin.get("/spaces?pending_deleted=maybe").expect(400).blamed(), ["pending_deleted"]);
}
