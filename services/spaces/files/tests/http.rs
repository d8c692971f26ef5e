//! The files of a space over real HTTP.
#![expect(clippy::unwrap_used, reason = "clippy knows the tests themselves, not what they share")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const CHANGE: &str = "X-Podyard-Files: 1";

struct Site {
    addr: SocketAddr,
    dir: PathBuf,
    _dir: tempfile::TempDir,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &&str| line.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head.lines().find(line).and_then(|line| line.split_once(": ")).map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.head))
    }
}

impl Site {
    fn new() -> Self {
        Self::with_secret(None)
    }

    fn with_secret(secret: Option<&str>) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("data");
        std::fs::create_dir(&dir).unwrap();
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (served, secret) = (dir.clone(), secret.map(str::to_owned));
        std::thread::spawn(move || podyard_files::run(addr, &served, "/ws/s1/", secret).unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(addr).is_err() {
            assert!(Instant::now() < deadline, "it does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { addr, dir, _dir: temporary }
    }

    fn send(&self, method: &str, target: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        for header in headers {
            request += &format!("{header}\r\n");
        }
        request += &format!("Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(request.as_bytes()).unwrap();
        // One that is refused early may be closed before all is sent.
        let _ = stream.write_all(body);
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut body = bytes[end + 4..].to_vec();
        if head.to_lowercase().contains("transfer-encoding: chunked") {
            body = dechunk(&body);
        }
        Answer { status: head[9..12].parse().unwrap(), head, body }
    }

    fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[], b"")
    }

    fn post(&self, target: &str, body: &Value) -> Answer {
        self.send("POST", target, &[CHANGE, "Content-Type: application/json"], body.to_string().as_bytes())
    }

    fn put(&self, target: &str, header: &str, body: &[u8]) -> Answer {
        self.send("PUT", target, &[CHANGE, header], body)
    }

    fn names(&self) -> Vec<String> {
        names(&self.dir)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        body.extend_from_slice(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 2 + length + 2..];
    }
    body
}

#[test]
fn page_and_its_files() {
    let site = Site::new();
    for (target, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/app.js", "text/javascript"),
        ("/texts.js", "text/javascript"),
        ("/style.css", "text/css"),
        ("/ws/s1/", "text/html; charset=utf-8"),
        ("/ws/s1/app.js", "text/javascript"),
    ] {
        let answer = site.get(target);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{target}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("x-frame-options"), Some("SAMEORIGIN"));
        assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    }
    assert_eq!(site.get("/ws/s1").header("location"), Some("s1/"));
    let page = String::from_utf8(site.get("/").body).unwrap();
    assert!(!page.contains("=\"/") && !page.contains("http://127"), "every address is relative");
    assert_eq!(site.get("/nothing").status, 404);
    assert_eq!(site.get("/api/nothing").json()["error"], "there is nothing at this address");
}

#[test]
fn browse() {
    let site = Site::new();
    let list = site.get("/api/list").json();
    assert_eq!(list, json!({ "path": "", "entries": [], "truncated": false, "limit": 10000 }));
    std::fs::write(site.dir.join("b.txt"), "12345").unwrap();
    std::fs::write(site.dir.join("A.txt"), "").unwrap();
    std::fs::create_dir_all(site.dir.join("zoo/文件 夹")).unwrap();
    symlink("zoo", site.dir.join("link")).unwrap();
    symlink("/etc", site.dir.join("out")).unwrap();
    let list = site.get("/api/list").json();
    let entries: Vec<(&str, &str, u64, bool)> = list["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().unwrap();
            (text("name"), text("type"), entry["size"].as_u64().unwrap(), entry["link"].as_bool().unwrap())
        })
        .collect();
    assert_eq!(
        entries,
        [
            ("link", "folder", 0, true),
            ("zoo", "folder", 0, false),
            ("A.txt", "file", 0, false),
            ("b.txt", "file", 5, false),
            ("out", "other", 0, true),
        ]
    );
    assert!(list["entries"][3]["mtime"].as_i64().unwrap() > 1_700_000_000_000);
    assert_eq!(site.get("/api/list?path=link").json()["entries"][0]["name"], "文件 夹");
    assert_eq!(site.get("/api/list?path=zoo/%E6%96%87%E4%BB%B6%20%E5%A4%B9").status, 200);
    let answer = site.get("/api/list?path=none");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json(), json!({ "error": "\"none\" does not exist", "field": "path" }));
    assert_eq!(site.get("/api/list?path=b.txt").status, 409);

    for index in 0..10_050 {
        std::fs::write(site.dir.join(format!("zoo/{index}")), "").unwrap();
    }
    let list = site.get("/api/list?path=zoo").json();
    assert_eq!((list["entries"].as_array().unwrap().len(), &list["truncated"]), (10_000, &json!(true)));
}

#[test]
fn save_is_conditional() {
    let site = Site::new();
    let path = site.dir.join("run.sh");
    std::fs::write(&path, "one").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
    symlink("run.sh", site.dir.join("link")).unwrap();
    let read = site.get("/api/file?path=run.sh").json();
    assert_eq!((&read["kind"], &read["text"]), (&json!("text"), &json!("one")));
    let known = format!("If-Match: {}", read["etag"].as_str().unwrap());

    let saved = site.put("/api/file?path=run.sh", &known, "zwei".as_bytes());
    assert_eq!(saved.status, 200);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "zwei");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o750);
    // The other tab still has the old one.
    let refused = site.put("/api/file?path=run.sh", &known, b"mine");
    assert_eq!(refused.status, 412);
    assert!(refused.json()["error"].as_str().unwrap().contains("changed by somebody else"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "zwei");
    // The answer's tag is the one to go on with; a link stays a link.
    let known = format!("If-Match: {}", saved.header("etag").unwrap());
    assert_eq!(saved.json()["etag"], *saved.header("etag").unwrap());
    assert_eq!(site.put("/api/file?path=link", &known, b"three").status, 200);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "three");
    assert!(site.dir.join("link").is_symlink());

    // A new file is made once; one that is gone is not saved by an old tag.
    assert_eq!(site.put("/api/file?path=new", "If-None-Match: *", b"").status, 201);
    assert_eq!(site.put("/api/file?path=new", "If-None-Match: *", b"x").status, 409);
    assert_eq!(site.put("/api/file?path=gone", &known, b"x").status, 412);
    assert_eq!(site.put("/api/file?path=new", "X: y", b"x").status, 428);
    assert_eq!(site.put("/api/file?path=no/such", "If-None-Match: *", b"x").status, 404);
    assert_eq!(site.put("/api/file?path=big", "If-None-Match: *", &vec![b'x'; 9 << 20]).status, 413);
    assert_eq!(site.names(), ["link", "new", "run.sh"]);
}

#[test]
fn two_saves_at_once_have_one_winner() {
    let site = Site::new();
    std::fs::write(site.dir.join("file"), "0").unwrap();
    for _ in 0..20 {
        let read = site.get("/api/file?path=file").json();
        let known = format!("If-Match: {}", read["etag"].as_str().unwrap());
        let mut status: Vec<u16> = std::thread::scope(|scope| {
            let save = |text: &'static [u8]| {
                let (site, known) = (&site, &known);
                scope.spawn(move || site.put("/api/file?path=file", known, text).status)
            };
            [save(b"a"), save(b"b")].map(|thread| thread.join().unwrap()).to_vec()
        });
        status.sort_unstable();
        assert_eq!(status, [200, 412]);
    }
}

#[test]
fn what_is_no_text_is_not_edited() {
    let site = Site::new();
    std::fs::write(site.dir.join("binary"), b"a\0b").unwrap();
    std::fs::write(site.dir.join("latin"), b"caf\xe9").unwrap();
    std::fs::write(site.dir.join("large"), vec![b'x'; (2 << 20) + 1]).unwrap();
    for (name, kind) in [("binary", "binary"), ("latin", "binary"), ("large", "large")] {
        let read = site.get(&format!("/api/file?path={name}")).json();
        assert_eq!((&read["kind"], read.get("text")), (&json!(kind), None));
    }
    rustix::fs::mkfifoat(rustix::fs::CWD, site.dir.join("pipe"), rustix::fs::Mode::RWXU).unwrap();
    assert_eq!(site.get("/api/file?path=pipe").status, 409, "and does not wait for a writer");
    assert_eq!(site.get("/api/file?path=").status, 409);
}

#[test]
fn folders_move_delete() {
    let site = Site::new();
    assert_eq!(site.post("/api/folder", &json!({ "path": "a" })).status, 201);
    assert_eq!(site.post("/api/folder", &json!({ "path": "a" })).status, 409);
    assert_eq!(site.post("/api/folder", &json!({ "path": "x/y" })).status, 404);
    assert_eq!(site.post("/api/folder", &json!({})).status, 400);
    std::fs::write(site.dir.join("a/file"), "text").unwrap();
    std::fs::write(site.dir.join("other"), "").unwrap();
    let rename = |from: &str, to: &str| site.post("/api/move", &json!({ "from": from, "to": to })).status;
    assert_eq!(rename("a", "b"), 200);
    assert_eq!(rename("b/file", "file"), 200);
    assert_eq!(rename("file", "other"), 409, "nothing is overwritten");
    assert_eq!(rename("b", "b/c"), 409);
    assert_eq!(rename("none", "x"), 404);
    assert_eq!(rename("file", "b/file"), 200);

    let delete = |query: &str| site.send("DELETE", &format!("/api/entry?{query}"), &[CHANGE], b"").status;
    assert_eq!(delete("path=b"), 409, "not empty");
    symlink("b", site.dir.join("link")).unwrap();
    assert_eq!(delete("path=link&recursive=true"), 204);
    assert!(site.dir.join("b/file").exists(), "only the link is removed");
    assert_eq!(delete("path=b&recursive=true"), 204);
    assert_eq!(delete("path=b"), 404);
    assert_eq!(delete("path=other"), 204);
    assert_eq!(delete("path=&recursive=true"), 400, "never the whole folder");
    assert_eq!(site.names(), [""; 0]);
}

#[test]
fn upload_and_download() {
    let site = Site::new();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let upload =
        |query: &str, body: &[u8]| site.send("PUT", &format!("/api/upload?{query}"), &[CHANGE], body);
    assert_eq!(upload("path=pic%20%E6%96%87.html", &bytes).status, 201);
    assert_eq!(upload("path=pic%20%E6%96%87.html", b"x").status, 409);
    let target = "/api/download?path=pic%20%E6%96%87.html";
    let whole = site.get(target);
    assert_eq!(whole.status, 200);
    assert!(whole.body == bytes);
    assert_eq!(whole.header("content-length"), Some("3000000"));
    assert_eq!(whole.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(
        whole.header("content-disposition"),
        Some("attachment; filename=\"pic _.html\"; filename*=UTF-8''pic%20%E6%96%87.html")
    );
    assert!(whole.header("content-security-policy").unwrap().contains("sandbox"));

    let part = |headers: &[&str]| site.send("GET", target, headers, b"");
    let answer = part(&["Range: bytes=1000-1999"]);
    assert_eq!((answer.status, answer.header("content-range")), (206, Some("bytes 1000-1999/3000000")));
    assert!(answer.body == bytes[1000..2000]);
    let answer = part(&["Range: bytes=-10"]);
    assert!(answer.body == bytes[bytes.len() - 10..]);
    let answer = part(&["Range: bytes=3000000-"]);
    assert_eq!((answer.status, answer.header("content-range")), (416, Some("bytes */3000000")));
    let tag = whole.header("etag").unwrap();
    assert_eq!(part(&["Range: bytes=0-9", &format!("If-Range: {tag}")]).status, 206);
    assert_eq!(part(&["Range: bytes=0-9", "If-Range: \"old\""]).status, 200);
    assert_eq!(part(&[&format!("If-None-Match: {tag}")]).status, 304);
    let head = site.send("HEAD", target, &[], b"");
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("3000000"), 0));

    assert_eq!(upload("path=pic%20%E6%96%87.html&replace=true", b"new").status, 201);
    assert_eq!(site.get(target).body, b"new");
    assert_eq!(upload("path=empty", b"").status, 201);
    assert_eq!(site.get("/api/download?path=empty").body, b"");
    assert_eq!(site.get("/api/download?path=").status, 409);
    std::fs::create_dir(site.dir.join("folder")).unwrap();
    assert_eq!(upload("path=folder&replace=true", b"x").status, 409);
    assert_eq!(site.names(), ["empty", "folder", "pic 文.html"]);
}

#[test]
fn too_large_and_interrupted_uploads_leave_nothing() {
    let site = Site::new();
    let start = |length: u64| {
        let mut stream = TcpStream::connect(site.addr).unwrap();
        write!(
            stream,
            "PUT /api/upload?path=file HTTP/1.1\r\nHost: x\r\n{CHANGE}\r\nContent-Length: {length}\r\n\r\n"
        )
        .unwrap();
        stream
    };
    let mut head = [0; 12];
    start((1 << 30) + 1).read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 413");

    let mut stream = start(10 << 20);
    stream.write_all(&vec![7; 5 << 20]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while site.names().is_empty() {
        assert!(Instant::now() < deadline, "it never began");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_ne!(site.names(), ["file"], "it is not seen before it is whole");
    drop(stream);
    while !site.names().is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", site.names());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_outside_is_reached() {
    let site = Site::new();
    std::fs::write(site.dir.parent().unwrap().join("secret"), "secret").unwrap();
    symlink("..", site.dir.join("up")).unwrap();
    symlink("/etc/passwd", site.dir.join("passwd")).unwrap();
    for path in [
        "../secret",
        "%2e%2e/secret",
        "%2E%2E%2Fsecret",
        "a/../../secret",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "up/secret",
        "passwd",
        ".",
        "..",
        "x%00",
        "%252e%252e/secret",
        "up",
    ] {
        for call in ["list", "file", "download"] {
            let answer = site.get(&format!("/api/{call}?path={path}"));
            assert!([400, 403, 404].contains(&answer.status), "{call} {path}: {}", answer.status);
            assert!(!String::from_utf8_lossy(&answer.body).contains("root:"));
        }
        for call in ["upload?replace=true&path", "file?path"] {
            let answer = site.put(&format!("/api/{call}={path}"), "If-Match: \"x\"", b"x");
            assert!([400, 403, 404, 409, 412].contains(&answer.status), "{call} {path}: {}", answer.status);
        }
    }
    for path in ["../new", "up/new", "/tmp/new", ""] {
        assert!([400, 403].contains(&site.post("/api/folder", &json!({ "path": path })).status), "{path}");
        std::fs::write(site.dir.join("mine"), "").unwrap();
        let moved = site.post("/api/move", &json!({ "from": "mine", "to": path }));
        assert!([400, 403].contains(&moved.status), "{path}");
        let moved = site.post("/api/move", &json!({ "from": "up/secret", "to": "mine2" }));
        assert_eq!(moved.status, 403);
    }
    for target in ["/../secret", "/%2e%2e/secret", "/ws/s1/../../../etc/passwd"] {
        assert_eq!(site.get(target).status, 404, "{target}");
    }
    assert_eq!(names(site.dir.parent().unwrap()), ["data", "secret"]);
}

#[test]
fn secret_is_needed_for_everything() {
    let site = Site::with_secret(Some("0123456789abcdef"));
    for target in ["/", "/app.js", "/api/list", "/nothing"] {
        assert_eq!(site.get(target).status, 403, "{target}");
        for wrong in ["", "0123456789abcde", "0123456789abcdeg", "0123456789abcdef0"] {
            let header = format!("X-Podyard-Space-Secret: {wrong}");
            assert_eq!(site.send("GET", target, &[&header], b"").status, 403);
        }
    }
    let right = "X-Podyard-Space-Secret: 0123456789abcdef";
    assert_eq!(site.send("GET", "/api/list", &[right], b"").status, 200);
    assert_eq!(site.send("GET", "/", &[right], b"").status, 200);
}

#[test]
fn foreign_pages_change_nothing() {
    let site = Site::new();
    let plain = &["Content-Type: text/plain"];
    for (method, target) in [
        ("POST", "/api/folder"),
        ("POST", "/api/move"),
        ("PUT", "/api/upload?path=x"),
        ("PUT", "/api/file?path=x"),
        ("DELETE", "/api/entry?path=x"),
    ] {
        let answer = site.send(method, target, plain, b"{\"path\":\"x\"}");
        assert_eq!(answer.status, 403, "{method} {target}");
        assert!(answer.json()["error"].as_str().unwrap().contains("X-Podyard-Files"));
    }
    assert_eq!(site.names(), [""; 0]);
    assert_eq!(
        site.send("OPTIONS", "/api/folder", &["Origin: http://evil"], b"")
            .header("access-control-allow-origin"),
        None
    );
}
