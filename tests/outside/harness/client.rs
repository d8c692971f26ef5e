//! An HTTP client, and one that sends bytes as they are given.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::http::{HeaderMap, Request};

/// Somebody who talks to a server.
#[derive(Clone)]
pub(crate) struct Client {
    /// `http://ADDR`.
    pub(crate) base: String,
    /// The token that goes with each request.
    pub(crate) token: Option<String>,
    agent: ureq::Agent,
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) asked: String,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|e| panic!("{}: {e} in {:?}", self.asked, self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default()
    }

    /// This status, or the test fails and shows the answer.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}: {}", self.asked, self.text());
        self
    }

    /// An error: its status, its class and its shape.
    #[track_caller]
    pub(crate) fn refused(self, status: u16, class: &str) -> Self {
        let it = self.expect(status);
        assert!(
            it.header("content-type").starts_with("application/problem+json"),
            "{}: {:?}",
            it.asked,
            it.headers
        );
        let body = it.json();
        assert_eq!(body["class"], class, "{}: {body}", it.asked);
        for member in ["type", "title", "detail", "request_id"] {
            // The gateway's are looked at by a test of their own.
            let there = body[member].is_string() || (member == "request_id" && it.asked.contains(" /ws/"));
            assert!(there, "{}: no {member} in {body}", it.asked);
        }
        assert_eq!(body["status"], status, "{}: {body}", it.asked);
        it
    }

    /// The fields that are blamed.
    pub(crate) fn blamed(&self) -> Vec<String> {
        let body: Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
        let errors = body["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().filter_map(|it| Some(it["field"].as_str()?.to_owned())).collect()
    }

    /// The one member under which a resource stands.
    #[track_caller]
    pub(crate) fn of(&self, key: &str) -> Value {
        let mut body = self.json();
        assert!(!body[key].is_null(), "{}: no {key} in {body}", self.asked);
        body[key].take()
    }

    /// The statements that it took, as the answer says.
    #[track_caller]
    pub(crate) fn statements(&self) -> u32 {
        let timing = self.header("server-timing");
        let text = timing.split("desc=\"").nth(1).and_then(|it| it.split(' ').next());
        let number = text.and_then(|it| it.parse().ok());
        number.unwrap_or_else(|| panic!("{}: Server-Timing is {timing:?}", self.asked))
    }
}

/// A body with the keyword around it.
pub(crate) fn body(keyword: &str, fields: Value) -> Value {
    json!({ keyword: fields })
}

/// A member that is a text.
#[track_caller]
pub(crate) fn key(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}

impl Client {
    /// Nobody yet.
    pub(crate) fn new(base: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .allow_non_standard_methods(true)
            .timeout_global(Some(Duration::from_secs(60)))
            .build();
        Self { base: base.to_owned(), token: None, agent: config.into() }
    }

    /// The same place with another token.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// The same place without one.
    pub(crate) fn nobody(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// The same person at another server.
    pub(crate) fn at(&self, base: &str) -> Self {
        Self { token: self.token.clone(), ..Self::new(base) }
    }

    /// Sends a request, or says why there is no answer.
    pub(crate) fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("X-Auth-Token", token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let asked = format!("{method} {path}");
        let sent = match body {
            Some(body) => request.body(body).map_err(ureq::Error::from).and_then(|it| self.agent.run(it)),
            None => request.body(()).map_err(ureq::Error::from).and_then(|it| self.agent.run(it)),
        };
        let mut response = sent.map_err(|e| format!("{asked}: {e}"))?;
        let mut bytes = Vec::new();
        response.body_mut().as_reader().read_to_end(&mut bytes).map_err(|e| format!("{asked}: {e}"))?;
        Ok(Answer { asked, status: response.status().as_u16(), headers: response.headers().clone(), bytes })
    }

    #[track_caller]
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Answer {
        match self.try_send(method, path, headers, body) {
            Ok(it) => it,
            Err(error) => panic!("{error}"),
        }
    }

    #[track_caller]
    fn send_json(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send(method, path, &[("Content-Type", "application/json")], Some(body.to_string().as_bytes()))
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], None)
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send_json("POST", path, body)
    }

    #[track_caller]
    pub(crate) fn put(&self, path: &str, body: &Value) -> Answer {
        self.send_json("PUT", path, body)
    }

    #[track_caller]
    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], None)
    }

    /// Tries to log in.
    #[track_caller]
    pub(crate) fn try_login(&self, user: &str, password: &str) -> Answer {
        let user = json!({"name": user, "domain": {"id": "default"}, "password": password});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        self.nobody().post("/v3/auth/tokens", &json!({"auth": {"identity": identity}}))
    }

    /// Logs in.
    #[track_caller]
    pub(crate) fn login(&self, user: &str, password: &str) -> Self {
        let answer = self.try_login(user, password).expect(201);
        let token = answer.header("x-subject-token");
        assert!(!token.is_empty(), "no X-Subject-Token: {:?}", answer.headers);
        self.with_token(token)
    }

    /// Makes a member, as an administrator, and logs in as them.
    #[track_caller]
    pub(crate) fn member(&self, name: &str) -> Self {
        let password = format!("password-of-{name}");
        self.post("/users", &body("user", json!({"name": name, "password": password}))).expect(201);
        self.login(name, &password)
    }

    /// The caller's own id.
    #[track_caller]
    pub(crate) fn user_id(&self) -> String {
        let token = self.token.clone().unwrap();
        let answer = self.send("GET", "/v3/auth/tokens", &[("X-Subject-Token", &token)], None).expect(200);
        key(&answer.json()["token"]["user"], "id")
    }

    /// Makes a template, as an administrator. Gives its id.
    #[track_caller]
    pub(crate) fn template(&self, name: &str, command: &[&str]) -> String {
        let fields = json!({"name": name, "kind_id": "builtin", "command": command});
        key(&self.post("/templates", &body("template", fields)).expect(201).of("template"), "id")
    }

    /// A template of the tests' own program.
    #[track_caller]
    pub(crate) fn serving_template(&self) -> String {
        self.template("Echo", &[super::HELPER, "serve", "{port}"])
    }

    /// Asks for a space of the smallest size.
    #[track_caller]
    pub(crate) fn create_space(&self, name: &str, template: &str) -> Answer {
        self.post(
            "/spaces",
            &body("space", json!({"name": name, "template_id": template, "spec_id": "test"})),
        )
    }

    /// Makes a space. Gives its id.
    #[track_caller]
    pub(crate) fn space(&self, name: &str, template: &str) -> String {
        key(&self.create_space(name, template).expect(201).of("space"), "id")
    }

    #[track_caller]
    pub(crate) fn read_space(&self, id: &str) -> Value {
        self.get(&format!("/spaces/{id}")).expect(200).of("space")
    }

    /// Asks for an action without an input.
    #[track_caller]
    pub(crate) fn act(&self, id: &str, action: &str) -> Answer {
        self.send("POST", &format!("/spaces/{id}/{action}"), &[], Some(b""))
    }

    /// Waits until the space has one of the statuses. Gives its row.
    #[track_caller]
    pub(crate) fn wait_for(&self, id: &str, wanted: &[&str]) -> Value {
        super::until(&format!("the space is {wanted:?}"), Duration::from_secs(20), || {
            let space = self.read_space(id);
            let status = key(&space, "status");
            if wanted.contains(&status.as_str()) {
                return Some(space);
            }
            let over = ["running", "stopped", "start_failed", "stop_failed"].contains(&status.as_str());
            let moving = ["running", "stopped"].contains(&status.as_str());
            assert!(!over || moving, "it is {status} and not {wanted:?}: {space}");
            None
        })
    }

    /// Starts a space and waits until it runs. Gives its row.
    #[track_caller]
    pub(crate) fn start(&self, id: &str) -> Value {
        self.act(id, "start").expect(202);
        self.wait_for(id, &["running"])
    }

    /// Stops a space and waits until it has stopped. Gives its row.
    #[track_caller]
    pub(crate) fn stop(&self, id: &str) -> Value {
        self.act(id, "stop").expect(202);
        self.wait_for(id, &["stopped"])
    }

    /// Makes a space and starts it. Gives its row.
    #[track_caller]
    pub(crate) fn running_space(&self, name: &str, template: &str) -> Value {
        let id = self.space(name, template);
        self.start(&id)
    }

    /// Waits until a task has ended. Gives its row.
    #[track_caller]
    pub(crate) fn wait_for_task(&self, id: &str) -> Value {
        super::until("the task has ended", Duration::from_secs(20), || {
            let task = self.get(&format!("/tasks/{id}")).expect(200).of("task");
            ["done", "failed", "cancelled"].contains(&key(&task, "status").as_str()).then_some(task)
        })
    }
}

/// Sends bytes as they are and reads the first answer.
#[track_caller]
pub(crate) fn raw(base: &str, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(base.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(bytes).unwrap();
    let asked =
        String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).lines().next().unwrap_or_default().to_owned();
    let mut got = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        let end = got.windows(4).position(|it| it == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&got[..end]).into_owned();
            let mut lines = head.lines();
            let status = lines.next().and_then(|it| it.split(' ').nth(1)?.parse().ok());
            let mut headers = HeaderMap::new();
            for (name, value) in lines.filter_map(|it| it.split_once(':')) {
                let name: ureq::http::HeaderName = name.parse().unwrap();
                headers.append(name, value.trim().parse().unwrap());
            }
            let length =
                headers.get("content-length").and_then(|it| it.to_str().ok()?.parse().ok()).unwrap_or(0);
            if got.len() >= end + 4 + length {
                let bytes = got[end + 4..end + 4 + length].to_vec();
                return Answer { asked, status: status.unwrap_or(0), headers, bytes };
            }
        }
        let n = stream.read(&mut piece).unwrap_or_else(|e| panic!("{asked}: {e}"));
        assert!(n > 0, "{asked}: the connection was closed after {:?}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&piece[..n]);
    }
}
