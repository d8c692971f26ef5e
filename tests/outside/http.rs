//! HTTP's habits: what browsers, caches, proxies and clients expect of any
//! server, whatever its resources.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use diesel::connection::{Connection as _, SimpleConnection as _};
use serde_json::{Value, json};

use crate::harness::{Answer, Client, House, Kind, Server, at_once, body, key, until};

on_each_database!(
    a_head_is_a_get_without_its_body,
    options_tell_what_is_possible,
    pages_of_other_origins_may_call_if_told,
    large_answers_are_compressed,
    what_is_known_is_not_sent_again,
    a_tag_covers_what_the_body_shows,
    media_types_have_versions,
    who_asks_too_often_waits,
    heads_have_bounds,
    a_slow_request_is_given_up,
    traces_go_on,
    the_log_names_the_trace,
    what_is_on_its_way_out_says_so,
    discovery_tells_what_a_console_needs,
);

fn start(house: &House, args: &[&str]) -> (Server, Client) {
    let server = house.serve(args);
    let admin = server.admin();
    (server, admin)
}

/// A list that is worth to be compressed.
fn rows(admin: &Client) {
    for i in 0..8 {
        let fields =
            json!({"name": format!("kind {i}"), "description": "the same again and again ".repeat(10)});
        admin.post("/kinds", &body("kind", fields)).expect(201);
    }
}

fn a_head_is_a_get_without_its_body(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin) = start(&house, &[]);
    rows(&admin);
    let id = admin.space("x", "files");
    let token = admin.token.clone().unwrap();
    let subject = ("X-Subject-Token", token.as_str());
    let gzip = ("Accept-Encoding", "gzip");
    let paths = [
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/resources",
        "/resources/spaces",
        "/spaces",
        "/spaces/nonsense",
        "/v3",
        "/",
        "/v3/auth/tokens",
        "/workers",
        "/nowhere",
        "/kinds?limit=5",
        "/kinds?limt=5",
        "/login",
    ];
    for path in paths.into_iter().map(str::to_owned).chain([format!("/spaces/{id}")]) {
        for headers in [&[subject][..], &[subject, gzip]] {
            let get = admin.send("GET", &path, headers, None);
            let head = admin.send("HEAD", &path, headers, None);
            assert_eq!(head.status, get.status, "{path}");
            assert!(head.bytes.is_empty(), "{path}");
            let names = ["content-type", "etag", "cache-control", "vary", "content-encoding"];
            for name in names {
                assert_eq!(head.header(name), get.header(name), "{path}: {name}");
            }
            // An error's body has the id of its request in it, a made-up one of the same length.
            let length = head.header("content-length");
            assert_eq!(length, get.header("content-length"), "{path}");
            assert_eq!(length, get.bytes.len().to_string(), "{path}");
        }
    }
    // It is refused as a GET is.
    admin.nobody().send("HEAD", "/spaces", &[], None).expect(401);
    admin.send("HEAD", "/spaces/x/start", &[], None).expect(404);
}

fn options_tell_what_is_possible(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin) = start(&house, &[]);
    let ann = admin.member("ann");
    let id = ann.space("x", "files");
    let (space, start, log) =
        (format!("/spaces/{id}"), format!("/spaces/{id}/start"), format!("/spaces/{id}/log"));
    for (who, path, allow) in [
        (&ann, "/spaces", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        (&ann, space.as_str(), "GET, HEAD, PUT, PATCH, DELETE, OPTIONS"),
        (&ann, start.as_str(), "POST, OPTIONS"),
        (&ann, log.as_str(), "GET, HEAD, OPTIONS"),
        // What only administrators may is not possible to others.
        (&ann, "/templates", "GET, HEAD, OPTIONS"),
        (&admin, "/templates", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        (&ann, "/templates/x", "GET, HEAD, OPTIONS"),
        (&admin, "/tasks", "GET, HEAD, OPTIONS"),
        (&admin, "/resources", "GET, HEAD, OPTIONS"),
        (&admin, "/healthz", "GET, HEAD, OPTIONS"),
        (&admin, "/v3/auth/tokens", "POST, GET, HEAD, DELETE, OPTIONS"),
        (&admin, "/workers", "GET, HEAD, OPTIONS"),
    ] {
        let answer = who.send("OPTIONS", path, &[], None).expect(204);
        assert!(answer.bytes.is_empty());
        let sorted = |text: &str| {
            let mut all: Vec<_> = text.split(", ").map(str::to_owned).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(sorted(answer.header("allow")), sorted(allow), "{path}");
        // A method that is not there is refused with the same words.
        let refused = who.send("TRACE", path, &[], None).refused(405, "MethodNotAllowedError");
        assert_eq!(sorted(refused.header("allow")), sorted(allow), "{path}");
        assert!(refused.text().contains("possible: "), "{}", refused.text());
    }
    admin.send("OPTIONS", "/nowhere", &[], None).refused(404, "NotFoundError");
    admin.nobody().send("OPTIONS", "/spaces", &[], None).refused(401, "UnauthorizedError");
    // Paths of their own are no secret.
    admin.nobody().send("OPTIONS", "/healthz", &[], None).expect(204);
}

fn pages_of_other_origins_may_call_if_told(kind: Kind) {
    let house = House::new(kind);
    let page = ("Origin", "https://console.example.org");
    let preflight = [
        page,
        ("Access-Control-Request-Method", "PATCH"),
        ("Access-Control-Request-Headers", "x-auth-token"),
    ];
    {
        // None may, unless told.
        let (_server, admin) = start(&house, &[]);
        let answer = admin.send("GET", "/spaces", &[page], None).expect(200);
        assert!(
            answer.headers.keys().all(|it| !it.as_str().starts_with("access-control")),
            "{:?}",
            answer.headers
        );
        let answer = admin.nobody().send("OPTIONS", "/spaces", &preflight, None).expect(401);
        assert_eq!(answer.header("access-control-allow-origin"), "");
    }
    let origins = ["--cors-origin", "https://console.example.org", "--cors-origin", "*.dev.example.org"];
    let (server, admin) = start(&house, &origins);
    for path in ["/spaces", "/spaces/x/start", "/v3/auth/tokens", "/nowhere", "/healthz"] {
        let answer = admin.nobody().send("OPTIONS", path, &preflight, None).expect(204);
        assert_eq!(answer.header("access-control-allow-origin"), page.1, "{path}");
        assert_eq!(answer.header("access-control-allow-credentials"), "true");
        assert!(answer.header("access-control-allow-methods").contains("PATCH"));
        let headers = answer.header("access-control-allow-headers").to_ascii_lowercase();
        for name in ["x-auth-token", "content-type", "if-match", "x-request-id", "traceparent"] {
            assert!(headers.contains(name), "{headers}");
        }
        assert!(answer.header("access-control-max-age").parse::<u32>().is_ok());
        assert_eq!(answer.header("vary"), "Origin");
    }
    // Errors are read by pages, too.
    for (path, status) in [("/spaces", 200), ("/spaces/none", 404), ("/spaces?x=1", 400), ("/nowhere", 404)] {
        let answer = admin.send("GET", path, &[page], None).expect(status);
        assert_eq!(answer.header("access-control-allow-origin"), page.1, "{path}");
        let exposed = answer.header("access-control-expose-headers");
        for name in ["ETag", "Location", "Retry-After", "Server-Timing", "X-Request-Id", "X-Subject-Token"] {
            assert!(exposed.contains(name), "{exposed}");
        }
    }
    let answer = admin.nobody().send("GET", "/spaces", &[page], None).expect(401);
    assert_eq!(answer.header("access-control-allow-origin"), page.1);
    admin.send("GET", "/spaces", &[("Origin", "http://x.dev.example.org")], None).expect(200);
    for other in ["https://evil.example.org", "null", "https://console.example.org.evil.org"] {
        let answer = admin.send("GET", "/spaces", &[("Origin", other)], None).expect(200);
        assert_eq!(answer.header("access-control-allow-origin"), "", "{other}");
        let asks = [("Origin", other), ("Access-Control-Request-Method", "POST")];
        let answer = admin.nobody().send("OPTIONS", "/spaces", &asks, None).expect(401);
        assert_eq!(answer.header("access-control-allow-origin"), "", "{other}");
    }
    // What a space answers is not the platform's, and neither are the pages of the login.
    for path in ["/ws/0123456789abcdef01234567/", "/login"] {
        let answer = admin.send("GET", path, &[page], None);
        assert_eq!(answer.header("access-control-allow-origin"), "", "{path}");
    }
    drop(server);
    // All may, but then without what the browser keeps.
    let (_server, admin) = start(&house, &["--cors-origin", "*"]);
    let answer = admin.send("GET", "/spaces", &[("Origin", "null")], None).expect(200);
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.header("access-control-allow-credentials"), "");
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut out).unwrap();
    out
}

fn large_answers_are_compressed(kind: Kind) {
    let house = House::new(kind);
    let (server, admin) = start(&house, &[]);
    rows(&admin);
    let plain = admin.get("/kinds").expect(200);
    assert_eq!(plain.header("content-encoding"), "");
    assert!(plain.header("vary").contains("Accept-Encoding"), "{:?}", plain.headers);
    let with = |coding: &str, path: &str| admin.send("GET", path, &[("Accept-Encoding", coding)], None);
    for (accepted, coding) in [
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("br;q=1, gzip;q=0.9", "br"),
        ("gzip;q=1.0, zstd;q=0", "gzip"),
    ] {
        let answer = with(accepted, "/kinds").expect(200);
        assert_eq!(answer.header("content-encoding"), coding, "{accepted}");
        assert!(answer.bytes.len() * 2 < plain.bytes.len(), "{coding}: {}", answer.bytes.len());
        if coding == "gzip" {
            assert_eq!(gunzip(&answer.bytes), plain.bytes);
        }
    }
    for accepted in ["identity", "", "gzip;q=0", "compress"] {
        assert_eq!(with(accepted, "/kinds").expect(200).header("content-encoding"), "", "{accepted:?}");
    }
    // What is small or no JSON goes as it is; what is large may also be an error or a document.
    for path in ["/kinds?limit=1", "/healthz", "/metrics", "/login"] {
        assert_eq!(with("gzip", path).header("content-encoding"), "", "{path}");
    }
    let document =
        server.client().send("GET", "/openapi.json", &[("Accept-Encoding", "gzip")], None).expect(200);
    assert_eq!(gunzip(&document.bytes), server.client().get("/openapi.json").bytes);

    // The tag of a compressed answer is one for writes and for asking again.
    let fields = json!({"name": "long", "description": "the same ".repeat(100)});
    let id = key(&admin.post("/kinds", &body("kind", fields)).expect(201).of("kind"), "id");
    let path = format!("/kinds/{id}");
    let small = with("gzip", &path).expect(200);
    let (tag, strong) = (small.header("etag").to_owned(), admin.get(&path).header("etag").to_owned());
    assert!(tag.ends_with("-gzip\"") && tag != strong, "{tag} {strong}");
    for known in [&tag, &strong] {
        let asks = [("If-None-Match", known.as_str()), ("Accept-Encoding", "gzip")];
        admin.send("GET", &path, &asks, None).expect(304);
    }
    let json = ("Content-Type", "application/json");
    admin.send("PUT", &path, &[json, ("If-Match", &tag)], Some(b"{\"name\": \"longer\"}")).expect(200);
    admin.send("PUT", &path, &[json, ("If-Match", &tag)], Some(b"{\"name\": \"longest\"}")).expect(412);
    drop(server);

    let (_server, admin) = start(&house, &["--no-compression"]);
    let answer = admin.send("GET", "/kinds", &[("Accept-Encoding", "gzip")], None).expect(200);
    assert_eq!(answer.header("content-encoding"), "");
}

fn what_is_known_is_not_sent_again(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin) = start(&house, &[]);
    let id = admin.space("x", "files");
    let path = format!("/spaces/{id}");
    let asks = |path: &str, known: &str| admin.send("GET", path, &[("If-None-Match", known)], None);
    for path in [path.as_str(), "/spaces", "/kinds?limit=2", "/resources/spaces", "/openapi.json"] {
        let first = admin.get(path).expect(200);
        let tag = first.header("etag").to_owned();
        assert_eq!(admin.get(path).header("etag"), tag, "{path}");
        let own =
            if path.starts_with("/spaces/") { tag.starts_with("\"1-") } else { tag.starts_with("W/\"") };
        assert!(own, "{path}: {tag}");
        assert!(first.header("cache-control").contains("no-cache"), "{path}");
        let strong = tag.trim_start_matches("W/").to_owned();
        for known in [tag.clone(), strong, format!("\"other\", {tag}"), "*".into(), format!("W/\"a\",{tag}")]
        {
            let same = asks(path, &known).expect(304);
            assert!(same.bytes.is_empty(), "{path}");
            assert!(
                same.header("etag") == tag || known.contains(same.header("etag")),
                "{path}: {:?}",
                same.headers
            );
            assert!(same.header("cache-control").contains("no-cache"));
        }
        asks(path, "\"other\", W/\"1\"").expect(200);
        for wrong in ["1", "\"a\" \"b\"", "\""] {
            assert_eq!(asks(path, wrong).refused(400, "InputParameterError").blamed(), ["If-None-Match"]);
        }
    }
    // A write is seen at once.
    let (one, list) =
        (admin.get(&path).header("etag").to_owned(), admin.get("/spaces").header("etag").to_owned());
    admin.put(&path, &json!({"description": "new"})).expect(200);
    asks(&path, &one).expect(200);
    asks("/spaces", &list).expect(200);
    // What another may see is another answer.
    let ann = admin.member("ann");
    ann.send("GET", "/spaces", &[("If-None-Match", &list)], None).expect(200);
    let vary = admin.get(&path).header("vary").to_owned();
    assert!(vary.contains("X-Auth-Token") && vary.contains("Authorization"), "{vary}");
    // Answers to writes and tokens are nobody's to keep.
    let made = admin.post("/kinds", &json!({"name": "k"})).expect(201);
    assert_eq!((made.header("cache-control"), made.header("etag")), ("no-store", "\"1\""));
    assert_eq!(admin.try_login("admin", "wrong").header("cache-control"), "no-store");
}

fn a_tag_covers_what_the_body_shows(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin) = start(&house, &[]);
    let template = admin.template("Before", &["sh"]);
    let id = admin.space("x", &template);
    let path = format!("/spaces/{id}");
    let first = admin.get(&path).expect(200);
    let tag = first.header("etag").to_owned();
    assert_eq!(first.of("space")["template"], "Before");
    admin.put(&format!("/templates/{template}"), &json!({"name": "After"})).expect(200);
    // The row has not changed, and yet the answer has.
    let second = admin.send("GET", &path, &[("If-None-Match", &tag)], None).expect(200);
    assert_eq!(second.of("space")["template"], "After");
    assert_eq!(second.of("space")["version"], 1);
    assert_ne!(second.header("etag"), tag);
    // And since the row has not, a write that knows it may go on.
    let json = ("Content-Type", "application/json");
    admin.send("PUT", &path, &[json, ("If-Match", &tag)], Some(b"{\"name\": \"y\"}")).expect(200);
    admin.send("PUT", &path, &[json, ("If-Match", &tag)], Some(b"{\"name\": \"z\"}")).expect(412);
    admin.send("PUT", &path, &[json, ("If-Match", "\"2\"")], Some(b"{\"name\": \"z\"}")).expect(200);
    // Another choice of fields is another answer.
    assert_ne!(admin.get(&format!("{path}?field=name")).header("etag"), admin.get(&path).header("etag"));
}

fn media_types_have_versions(kind: Kind) {
    const V1: &str = "application/vnd.podyard.v1+json";
    let house = House::new(kind);
    let (_server, admin) = start(&house, &[]);
    let accepts = |it: &str| admin.send("GET", "/spaces", &[("Accept", it)], None);
    for plain in ["*/*", "application/json", "application/*", "text/html,*/*;q=0.8", "application/json;q=0.5"]
    {
        assert_eq!(accepts(plain).expect(200).header("content-type"), "application/json", "{plain}");
    }
    assert_eq!(accepts(V1).expect(200).header("content-type"), V1);
    assert_eq!(accepts(&format!("application/json;q=0.5, {V1}")).expect(200).header("content-type"), V1);
    for other in
        ["application/vnd.podyard.v2+json", "text/html", "application/xml;q=0.9", "application/json;q=0"]
    {
        let answer = accepts(other).refused(406, "NotAcceptableError");
        assert_eq!(answer.blamed(), ["Accept"], "{other}");
        assert!(answer.text().contains(V1), "{}", answer.text());
    }
    // Refused before anything is changed; errors are problems whatever is accepted.
    let json = ("Content-Type", "application/json");
    let create =
        |headers: &[(&str, &str)]| admin.send("POST", "/kinds", headers, Some(b"{\"name\": \"a kind\"}"));
    create(&[json, ("Accept", "application/vnd.podyard.v2+json")]).refused(406, "NotAcceptableError");
    create(&[("Content-Type", "application/vnd.podyard.v2+json")]).refused(415, "UnsupportedMediaTypeError");
    create(&[("Content-Type", "text/plain")]).refused(415, "UnsupportedMediaTypeError");
    let made = create(&[("Content-Type", V1), ("Accept", V1)]).expect(201);
    assert_eq!(made.header("content-type"), V1);
    create(&[json, ("Accept", V1)]).refused(409, "DuplicateNameError");
}

fn who_asks_too_often_waits(kind: Kind) {
    let house = House::new(kind);
    let quick = ["--rate-limit", "2", "--rate-burst", "10", "--anonymous-rate-limit", "5"];
    let (_server, admin) = start(&house, &quick);
    let ann = admin.member("ann");
    let answers = at_once(4, |_| (0..10).map(|_| ann.get("/spaces")).collect::<Vec<_>>()).concat();
    let (taken, refused): (Vec<&Answer>, Vec<&Answer>) = answers.iter().partition(|it| it.status == 200);
    // Ten at once and two a second, on however slow a machine.
    assert!(taken.len() >= 10 && !refused.is_empty(), "{} {}", taken.len(), refused.len());
    for answer in &taken {
        assert_eq!(answer.header("ratelimit-limit"), "10");
        assert!(answer.header("ratelimit-remaining").parse::<u32>().unwrap() < 10);
        assert!(answer.header("ratelimit-reset").parse::<u32>().unwrap() <= 5);
    }
    for answer in refused {
        let answer = answer.clone().refused(429, "TooManyRequestsError");
        assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1, "{:?}", answer.headers);
        assert_eq!(answer.header("ratelimit-remaining"), "0");
    }
    // It is hers alone, and it ends.
    admin.get("/spaces").expect(200);
    until("she may ask again", Duration::from_secs(20), || (ann.get("/spaces").status == 200).then_some(()));
    // Strangers by their address; who watches over the process is not counted.
    let nobody = admin.nobody();
    let answers: Vec<_> = (0..200).map(|_| nobody.get("/spaces").status).collect();
    assert!(answers.contains(&429) && answers.contains(&401), "{answers:?}");
    for _ in 0..20 {
        nobody.get("/healthz").expect(200);
    }
}

fn heads_have_bounds(kind: Kind) {
    let house = House::new(kind);
    let (server, admin) = start(&house, &["--header-timeout", "1"]);
    let long = format!("/spaces?search={}", "x".repeat(9000));
    admin.get(&long).refused(414, "UriTooLongError");
    admin.post(&long, &json!({"name": "x"})).refused(414, "UriTooLongError");
    let wide = "x".repeat(8000);
    let large: Vec<_> = (0..5).map(|i| (format!("X-Header-{i}"), wide.as_str())).collect();
    let large: Vec<_> = large.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    admin.send("GET", "/spaces", &large, None).refused(431, "HeadersTooLargeError");
    let many: Vec<_> = (0..70).map(|i| format!("X-Header-{i}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "x")).collect();
    admin.send("GET", "/spaces", &many, None).refused(431, "HeadersTooLargeError");
    admin.get("/spaces").expect(200);

    // Whoever sends a head byte by byte is not waited for.
    let mut stream = TcpStream::connect(server.base.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"GET /spaces HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
    let mut said = String::new();
    // The connection ends after the answer, or is broken: either is an end.
    let _ = stream.read_to_string(&mut said);
    assert!(said.starts_with("HTTP/1.1 408 "), "{said:?}");
}

/// Keeps writes to spaces waiting until it is dropped.
enum Obstacle {
    Sqlite(diesel::SqliteConnection),
    Server(crate::harness::Session),
}

impl Obstacle {
    fn new(house: &House) -> Self {
        match &house.database.url {
            None => {
                let path = house.data_dir().join("podyard.sqlite3");
                let mut conn = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
                conn.batch_execute("BEGIN IMMEDIATE").unwrap();
                Self::Sqlite(conn)
            }
            Some(url) => {
                let mut conn = crate::harness::Session::open(url);
                conn.execute(match conn {
                    crate::harness::Session::Postgres(_) => "BEGIN; LOCK TABLE \"kinds\" IN EXCLUSIVE MODE",
                    #[cfg(feature = "mysql")]
                    crate::harness::Session::Mysql(_) => {
                        // The gaps between the rows too.
                        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; BEGIN; SELECT \"id\" FROM \"kinds\" FOR UPDATE"
                    }
                });
                Self::Server(conn)
            }
        }
    }

    fn end(self) {
        match self {
            Self::Sqlite(mut conn) => conn.batch_execute("ROLLBACK").unwrap(),
            Self::Server(mut conn) => conn.execute("ROLLBACK"),
        }
    }
}

fn a_slow_request_is_given_up(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin) = start(&house, &["--request-timeout", "0.5"]);
    let obstacle = Obstacle::new(&house);
    let begun = Instant::now();
    let answer = admin.post("/kinds", &json!({"name": "late"})).refused(504, "TimeoutError");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(answer.text().contains("longer than 0.5 s"), "{}", answer.text());
    // Others are served meanwhile, and after it all are.
    admin.get("/kinds").expect(200);
    obstacle.end();
    until("writes go on", Duration::from_secs(20), || {
        (admin.post("/kinds", &json!({"name": "in time"})).status == 201).then_some(())
    });
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn traces_go_on(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin) = start(&house, &[]);
    let parts = |answer: &Answer| -> Vec<String> {
        answer.header("traceresponse").split('-').map(str::to_owned).collect()
    };
    for path in ["/spaces", "/nowhere", "/healthz", "/v3/auth/tokens"] {
        let answer = admin.send("GET", path, &[("traceparent", PARENT), ("tracestate", "a=1")], None);
        let told = parts(&answer);
        assert_eq!((told.len(), told[1].as_str(), told[3].as_str()), (4, TRACE, "01"), "{path}: {told:?}");
        assert!(told[2].len() == 16 && told[2] != "00f067aa0ba902b7", "{path}: {told:?}");
    }
    let problem = admin.send("GET", "/spaces/none", &[("traceparent", PARENT)], None).expect(404);
    assert_eq!(problem.json()["trace_id"], TRACE);
    for wrong in
        ["nonsense", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", &PARENT.to_uppercase()]
    {
        let told = parts(&admin.send("GET", "/spaces", &[("traceparent", wrong)], None).expect(200));
        assert!(told.len() == 4 && told[1].len() == 32 && told[1] != TRACE, "{wrong}: {told:?}");
    }
    let none = admin.get("/spaces/none").expect(404);
    assert!(none.header("traceresponse").is_empty() && none.json()["trace_id"].is_null());
}

fn the_log_names_the_trace(kind: Kind) {
    let house = House::new(kind);
    let (server, admin) = start(&house, &["--log-format", "json"]);
    admin.send("DELETE", "/spaces/none", &[("traceparent", PARENT)], None).expect(404);
    until("the log has it", Duration::from_secs(10), || {
        let logged = server.logged();
        let lines = logged.lines().filter_map(|it| serde_json::from_str::<Value>(it).ok());
        lines.into_iter().find(|it| it["trace_id"] == TRACE && it["status"] == 404).map(|_| ())
    });
}

fn what_is_on_its_way_out_says_so(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin) = start(&house, &[]);
    let by_plural = admin.get("/resources/spaces").expect(200);
    assert_eq!(by_plural.header("deprecation"), "");
    let by_keyword = admin.get("/resources/space").expect(200);
    assert_eq!(by_keyword.json(), by_plural.json());
    assert!(by_keyword.header("deprecation").starts_with('@'), "{:?}", by_keyword.headers);
    assert!(by_keyword.header("sunset").ends_with(" GMT"));
    assert_eq!(by_keyword.header("link"), "</resources/spaces>; rel=\"successor-version\"");
}

fn discovery_tells_what_a_console_needs(kind: Kind) {
    let house = House::new(kind);
    let (_server, admin) = start(&house, &[]);
    let space = admin.get("/resources/spaces").expect(200).of("resource");
    assert_eq!((space["label"].as_str(), space["label_plural"].as_str()), (Some("Space"), Some("Spaces")));
    let named = |list: &Value, name: &str| -> Value {
        list.as_array().unwrap().iter().find(|it| it["name"] == name).cloned().unwrap()
    };
    let template = named(&space["fields"], "template_id");
    assert_eq!((&template["label"], &template["references"]), (&json!("Template"), &json!("template")));
    assert_eq!(named(&space["fields"], "created_at")["type"], "time");
    let start = named(&space["actions"], "start");
    assert_eq!((&start["method"], &start["path"]), (&json!("POST"), &json!("/spaces/{id}/start")));
    assert_eq!(start["when"], json!(["stopped", "start_failed", "stop_failed"]));
    assert_eq!(start["deprecated"], Value::Null);
    let chinese = admin.send("GET", "/resources/spaces", &[("Accept-Language", "zh-CN")], None).expect(200);
    assert_eq!(chinese.of("resource")["label"], "空间");
    assert_eq!(named(&chinese.of("resource")["fields"], "name")["label"], "名称");
}
