//! What is another's looks like what never was.

use serde_json::{Value, json};

use crate::harness::{Answer, Client, House, Kind, body, key};

on_each_database!(anothers_space_cannot_be_told_from_none, administrators_see_all);

/// One of ann's, running, with a task; and bob, who is not to know.
struct Scene {
    admin: Client,
    bob: Client,
    space: Value,
    task: String,
}

fn scene(admin: Client) -> Scene {
    let template = admin.serving_template();
    let (ann, bob) = (admin.member("ann"), admin.member("bob"));
    let id = ann.space("the secret one", &template);
    let task = key(&ann.act(&id, "start").expect(202).json(), "task_id");
    let space = ann.wait_for(&id, &["running"]);
    Scene { admin, bob, space, task }
}

/// Status, headers that matter and body, with the names of what was asked for
/// taken out.
fn essence(answer: &Answer, names: &[&str]) -> (u16, Vec<String>, String) {
    let mut text = answer.text();
    let id = serde_json::from_slice::<Value>(&answer.bytes)
        .ok()
        .and_then(|it| Some(it["request_id"].as_str()?.to_owned()));
    for name in names.iter().copied().chain(id.as_deref()) {
        text = text.replace(name, "…").replace(&name.replace(' ', "%20"), "…");
    }
    // Whether the connection is kept depends on whether the request's body had
    // arrived when the answer went out.
    let keys = answer.headers.keys().filter(|it| *it != "connection");
    let mut headers: Vec<_> = keys.map(ToString::to_string).collect();
    headers.sort();
    (answer.status, headers, text)
}

fn anothers_space_cannot_be_told_from_none(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let Scene { admin, bob, space, task } = scene(server.admin());
    let (id, sid) = (key(&space, "id"), key(&space, "sid"));
    let name = "the secret one";
    // Of the same length and shape, and nobody's.
    let no_id = "01a1fc34-0000-7000-8000-000000000000";
    let no_sid = "0123456789abcdef01234567";
    let no_name = "the absent one";
    let send = |method: &str, path: &str, headers: &[(&str, &str)], body: Option<&str>| {
        bob.send(method, path, headers, body.map(str::as_bytes))
    };
    let same = |method: &str, path: &str, headers: &[(&str, &str)], body: Option<&str>| {
        let fill = |id: &str, name: &str, sid: &str, task: &str| {
            let name = name.replace(' ', "%20");
            path.replace("{id}", id).replace("{name}", &name).replace("{sid}", sid).replace("{task}", task)
        };
        let real = send(method, &fill(&id, name, &sid, &task), headers, body);
        let none = send(method, &fill(no_id, no_name, no_sid, no_id), headers, body);
        let names = [id.as_str(), name, sid.as_str(), task.as_str(), no_id, no_name, no_sid];
        assert!([404, 400, 412].contains(&real.status), "{}: {}", real.asked, real.text());
        assert_eq!(essence(&real, &names), essence(&none, &names), "{}", real.asked);
        real.status
    };
    let json = &[("Content-Type", "application/json")][..];
    let known = &[("Content-Type", "application/json"), ("If-Match", "\"1\"")][..];
    for place in ["{id}", "{name}"] {
        let space = format!("/spaces/{place}");
        assert_eq!(same("GET", &space, &[], None), 404);
        assert_eq!(same("GET", &format!("{space}?field=name"), &[], None), 404);
        assert_eq!(same("GET", &format!("{space}/log"), &[], None), 404);
        assert_eq!(same("GET", &format!("{space}/log?bytes=x"), &[], None), 404);
        for action in ["start", "stop", "restart"] {
            assert_eq!(same("POST", &format!("{space}/{action}"), &[], Some("")), 404);
            same("POST", &format!("{space}/{action}"), json, Some("{\"x\": 1}"));
        }
        assert_eq!(same("PUT", &space, json, Some("{\"name\": \"mine now\"}")), 404);
        assert_eq!(same("PATCH", &space, json, Some("{\"name\": \"mine now\"}")), 404);
        assert_eq!(same("PUT", &space, known, Some("{\"name\": \"mine now\"}")), 404);
        same("PUT", &space, json, Some("{\"nonsense\": 1}"));
        assert_eq!(same("DELETE", &space, &[], None), 404);
        assert_eq!(same("DELETE", &space, &[("If-Match", "\"99\"")], None), 404);
    }
    for accept in ["*/*", "text/html"] {
        for path in ["/ws/{sid}/", "/ws/{sid}", "/ws/{sid}/a/b?c"] {
            let answer = send("GET", &path.replace("{sid}", &sid), &[("Accept", accept)], None);
            if path != "/ws/{sid}" {
                assert_eq!(answer.status, 404, "{}", answer.text());
            }
            let none = send("GET", &path.replace("{sid}", no_sid), &[("Accept", accept)], None);
            assert_eq!(essence(&answer, &[&sid, no_sid]), essence(&none, &[&sid, no_sid]), "{path}");
        }
        assert_eq!(same("POST", "/ws/{sid}/x", &[("Accept", accept)], Some("text")), 404);
    }
    assert_eq!(same("GET", "/tasks/{task}", &[], None), 404);
    assert_eq!(same("POST", "/tasks/{task}/cancel", &[], Some("")), 404);
    let callback = json!({"token": format!("{task}.1.AAAAAAAAAAAAAAAAAAAAAA"), "data": {}}).to_string();
    assert_eq!(same("POST", "/tasks/{task}/callback", json, Some(&callback)), 404);

    // Lists, by whatever they are asked.
    let owner = key(&space, "user_id");
    for query in [
        String::new(),
        format!("?id={id}"),
        "?name=the%20secret%20one".to_owned(),
        "?search=secret".to_owned(),
        format!("?user_id={owner}"),
        format!("?sid={sid}"),
        "?details=total".to_owned(),
        "?status=running".to_owned(),
    ] {
        let answer = bob.get(&format!("/spaces{query}")).expect(200);
        assert_eq!(answer.of("spaces"), json!([]), "{query}");
        assert!(answer.json()["total"].as_i64().unwrap_or(0) == 0, "{}", answer.text());
    }
    for query in [String::new(), format!("?id={task}"), format!("?obj_id={id}"), format!("?user_id={owner}")]
    {
        assert_eq!(bob.get(&format!("/tasks{query}")).expect(200).of("tasks"), json!([]), "{query}");
    }

    // Nothing has changed, and the name and the place to run are not taken.
    let now = admin.read_space(&id);
    assert_eq!(
        (&now["status"], &now["name"], &now["version"]),
        (&json!("running"), &json!(name), &space["version"])
    );
    let own = bob.space(name, "files");
    bob.start(&own);
    assert_eq!(bob.get("/spaces/the%20secret%20one").of("space")["id"], json!(own));
}

fn administrators_see_all(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let Scene { admin, space, task, .. } = scene(server.admin());
    let (id, url) = (key(&space, "id"), key(&space, "url"));
    assert_eq!(admin.get("/spaces").of("spaces")[0]["id"], json!(id));
    assert_eq!(admin.get(&format!("/tasks/{task}")).of("task")["status"], "done");
    admin.get(&url).expect(200);
    assert!(key(&admin.get(&format!("/spaces/{id}/log")).of("space"), "log").contains("listening"));
    let renamed =
        admin.put(&format!("/spaces/{id}"), &body("space", json!({"name": "by the admin"}))).expect(200);
    assert_eq!(renamed.of("space")["user_id"], space["user_id"], "it stays its owner's");
    admin.stop(&id);
    admin.start(&id);
    admin.stop(&id);
    admin.delete(&format!("/spaces/{id}")).expect(200);
}
