//! Error texts in the reader's language; classes and names stay.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use podyard_tests::messages;
use serde_json::json;

use crate::harness::{Answer, Client, House, Kind};

on_each_database!(errors_speak_chinese_to_those_who_ask, the_log_stays_english);

/// The crates whose errors clients see, each with its catalogue, and what else speaks through them.
const CRATES: [(&str, &[&str]); 4] = [
    ("framework", &[]),
    ("services/identity", &[]),
    ("services/spaces", &["services/spaces/driver", "services/spaces/kubernetes"]),
    ("services/spaces/terminal", &[]),
];

/// Sources whose errors only whoever starts a server, migrates a database or looks
/// at a cluster reads, or only tests.
const OPERATORS: [&str; 6] =
    ["/db/portable.rs:", "/db/mysql.rs:", "/db/mod.rs:", "/http/cors.rs:", "/src/doctor.rs:", "_tests.rs:"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn table(of: &str) -> toml::Table {
    let path = root().join(of).join("src/i18n/zh.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The names of a format string's placeholders.
fn holes(text: &str) -> BTreeSet<String> {
    let text = text.replace("{{", "").replace("}}", "");
    text.split('{').skip(1).filter_map(|it| Some(it.split_once('}')?.0.to_owned())).collect()
}

#[test]
fn every_message_has_its_translation() {
    let mut wrong = String::new();
    // What one crate has translated need not be said again in another.
    let mut known = BTreeSet::new();
    for (of, others) in CRATES {
        let catalogue = table(of);
        let messages_of =
            |name: &str| catalogue.get(name).and_then(toml::Value::as_table).cloned().unwrap_or_default();
        let (own, libraries) = (messages_of("messages"), messages_of("libraries"));
        let mut said = messages::under(&root().join(of).join("src"));
        for other in others {
            said.extend(messages::under(&root().join(other).join("src")));
        }
        said.retain(|_, place| !OPERATORS.iter().any(|it| place.contains(it)));
        known.extend(own.keys().cloned());
        for (message, place) in &said {
            if !known.contains(message) {
                let _ = writeln!(wrong, "{of}/src/i18n/zh.toml lacks\n{message:?} = \"\"\n    # {place}");
            }
        }
        for message in own.keys().filter(|it| !said.contains_key(*it)) {
            let _ = writeln!(wrong, "{of}/src/i18n/zh.toml: nobody says {message:?} any more");
        }
        for (message, translation) in own.iter().chain(&libraries) {
            let translation = translation.as_str().unwrap_or_default();
            if translation.is_empty() || holes(message) != holes(translation) {
                let _ = writeln!(
                    wrong,
                    "{of}/src/i18n/zh.toml: {message:?} and {translation:?} differ in their placeholders"
                );
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

fn is_chinese(text: &str) -> bool {
    text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c))
}

const CHINESE: (&str, &str) = ("Accept-Language", "zh-CN,zh;q=0.9,en;q=0.8");

fn post(client: &Client, path: &str, language: (&str, &str), body: &str) -> Answer {
    client.send("POST", path, &[("Content-Type", "application/json"), language], Some(body.as_bytes()))
}

fn errors_speak_chinese_to_those_who_ask(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&["--max-spaces", "1"]);
    let admin = server.admin();
    let ann = admin.member("ann");
    let id = ann.space("x", "files");
    let nobody = admin.nobody();
    let (space, start) = (format!("/spaces/{id}"), format!("/spaces/{id}/stop"));
    let cases: Vec<(Answer, u16, &str)> = vec![
        (ann.send("GET", "/spaces/none", &[CHINESE], None), 404, "ResourceNotFoundError"),
        (ann.send("GET", "/nowhere", &[CHINESE], None), 404, "NotFoundError"),
        (ann.send("GET", "/spaces?limit=0", &[CHINESE], None), 400, "InputParameterError"),
        (ann.send("GET", "/spaces?none=1", &[CHINESE], None), 400, "InputParameterError"),
        (ann.send("GET", "/spaces?created_at=x", &[CHINESE], None), 400, "InputParameterError"),
        (ann.send("TRACE", "/spaces", &[CHINESE], None), 405, "MethodNotAllowedError"),
        (ann.send("GET", "/spaces", &[CHINESE, ("Accept", "text/html")], None), 406, "NotAcceptableError"),
        (post(&ann, "/spaces", CHINESE, "{"), 400, "InputParameterError"),
        (post(&ann, "/spaces", CHINESE, "{\"name\": 7, \"x\": 1}"), 400, "InputParameterError"),
        (post(&ann, "/templates", CHINESE, "{}"), 403, "ForbiddenError"),
        (
            post(&ann, "/spaces", CHINESE, "{\"name\":\"y\",\"template_id\":\"files\",\"spec_id\":\"test\"}"),
            409,
            "SpaceLimitError",
        ),
        (
            post(&ann, "/spaces", CHINESE, "{\"name\":\"y\",\"template_id\":\"no\",\"spec_id\":\"test\"}"),
            400,
            "ReferenceNotFoundError",
        ),
        (
            post(&admin, "/users", CHINESE, "{\"name\":\"bob\",\"password\":\"aaaaaaaa\"}"),
            400,
            "WeakPasswordError",
        ),
        (
            post(
                &admin,
                "/specs",
                CHINESE,
                "{\"name\":\"s\",\"cpu\":\"x\",\"memory\":\"1\",\"storage\":\"1\"}",
            ),
            400,
            "InputParameterError",
        ),
        (post(&ann, &start, CHINESE, ""), 409, "SpaceNotRunningError"),
        (
            ann.send("DELETE", &space, &[CHINESE, ("If-Match", "\"77\"")], None),
            412,
            "PreconditionFailedError",
        ),
        (nobody.send("GET", "/spaces", &[CHINESE], None), 401, "UnauthorizedError"),
        (post(&nobody, "/v3/auth/tokens", CHINESE, "{}"), 400, "InputParameterError"),
        (nobody.send("GET", "/v3/auth/tokens", &[CHINESE], None), 401, "UnauthorizedError"),
    ];
    for (answer, status, class) in cases {
        let answer = answer.refused(status, class);
        let body = answer.json();
        assert!(is_chinese(body["detail"].as_str().unwrap()), "{}: {body}", answer.asked);
        assert!(is_chinese(body["title"].as_str().unwrap()), "{}: {body}", answer.asked);
        assert_eq!(body["details"], body["detail"]);
        assert_eq!(answer.header("content-language"), "zh-CN", "{}", answer.asked);
        assert!(answer.header("vary").contains("Accept-Language"), "{}", answer.asked);
        for error in body["errors"].as_array().into_iter().flatten() {
            assert!(is_chinese(error["message"].as_str().unwrap()), "{}: {error}", answer.asked);
            assert!(error["field"].as_str().unwrap().is_ascii(), "{}: {error}", answer.asked);
        }
    }
    // Word for word, with what the message is about; what clients sent stays as it is.
    let answer = ann.send("GET", "/spaces/none", &[CHINESE], None);
    assert_eq!(answer.json()["detail"], "找不到 space none");
    let answer = post(&ann, "/spaces", CHINESE, "{}").expect(400).json();
    assert_eq!(answer["errors"][0], json!({"field": "name", "message": "必填"}));
    assert!(answer["detail"].as_str().unwrap().starts_with("name: 必填; "), "{answer}");
    // Each part of a batch, too.
    let many =
        post(&admin, "/kinds", CHINESE, "{\"kinds\": [{\"name\": \"a kind\"}, {}]}").expect(207).json();
    assert_eq!(
        (&many["kinds"][0]["status"], &many["kinds"][1]["status"]),
        (&json!(201), &json!(400)),
        "{many}"
    );
    assert_eq!(many["kinds"][1]["body"]["errors"][0]["message"], "必填", "{many}");
    // To everybody else in English.
    for language in ["en", "fr", "en-GB, zh;q=0.5", "zh;q=0", ""] {
        let answer = ann.send("GET", "/spaces/none", &[("Accept-Language", language)], None);
        assert_eq!(answer.json()["detail"], "space none not found", "{language}");
        assert_eq!(answer.header("content-language"), "en", "{language}");
    }
}

fn the_log_stays_english(kind: Kind) {
    let house = House::new(kind);
    let server = house.serve(&[]);
    let admin = server.admin();
    admin.send("GET", "/spaces/none", &[CHINESE], None).expect(404);
    crate::harness::until("the log has it", std::time::Duration::from_secs(10), || {
        server.logged().contains("space none not found").then_some(())
    });
    assert!(!is_chinese(&server.logged()));
}
