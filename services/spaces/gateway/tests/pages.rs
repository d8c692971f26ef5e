//! The gateway's own answers, and the login.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::time::Duration;

use common::{Reply, Server, TOKEN, canned, get};
use podyard_gateway::{Options, Route};

const PROGRAM: &str = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nprogram";

fn class(reply: &Reply) -> String {
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    let text = reply.text();
    text.split("\"class\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
}

/// Its own pages are not stored, need nothing from elsewhere and run nothing that is not theirs.
fn is_own_page(reply: &Reply) {
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"));
    assert!(!reply.text().contains("src=") && !reply.text().contains("style="), "{}", reply.text());
}

#[actix_web::test]
async fn a_starting_space_opens_by_itself() {
    let server = Server::start();
    let starting = Route::Starting {
        name: "<my space>".into(),
        waited: Some(Duration::from_secs(3)),
        status_text: "pulling <image>".into(),
    };
    server.platform.set("s1", starting);
    let page = server.get("/ws/s1/", "Accept: text/html,*/*\r\n").await;
    assert_eq!((page.status, page.header("retry-after")), (503, Some("2")));
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    is_own_page(&page);
    assert!(page.text().contains("<noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript>"));
    assert!(
        page.text().contains("&lt;my space&gt; is starting") && page.text().contains("pulling &lt;image&gt;")
    );
    let page =
        server.get("/ws/s1/", "Accept: text/html\r\nAccept-Language: zh-CN,zh;q=0.9,en;q=0.8\r\n").await;
    assert!(page.text().contains("正在启动") && page.text().contains("lang=\"zh\""));
    let polled = server.get("/ws/s1/", "Accept: application/json\r\n").await;
    assert_eq!(
        (polled.status, class(&polled).as_str(), polled.header("retry-after")),
        (503, "SpaceStartingError", Some("2"))
    );
    assert!(polled.text().contains("\"detail\":\"pulling <image>\""));

    server.platform.open("s1", canned(PROGRAM).await);
    let opened = server.get("/ws/s1/", "Accept: application/json\r\n").await;
    assert_eq!((opened.status, opened.text().as_str()), (200, "program"));
}

#[actix_web::test]
async fn a_stopped_space_says_why() {
    let server = Server::start();
    let stopped = Route::Stopped {
        name: "ide".into(),
        reason: Some("its program ended".into()),
        exit_code: Some(137),
        last_lines: vec!["out of <memory>".into(), "killed".into()],
    };
    server.platform.set("s1", stopped);
    let page = server.get("/ws/s1/", "Accept: text/html\r\n").await;
    assert_eq!(page.status, 409);
    is_own_page(&page);
    for part in
        ["ide is stopped", "its program ended", "exit code 137", "<pre>out of &lt;memory&gt;\nkilled</pre>"]
    {
        assert!(page.text().contains(part), "{part}: {}", page.text());
    }
    let problem = server.get("/ws/s1/", "").await;
    assert_eq!((problem.status, class(&problem).as_str()), (409, "SpaceStoppedError"));
}

fn without_date(reply: &Reply) -> (String, Vec<u8>) {
    let head: Vec<&str> = reply.head.lines().filter(|l| !l.to_lowercase().starts_with("date:")).collect();
    (head.join("\n"), reply.body.clone())
}

#[actix_web::test]
async fn unknown_and_not_yours_are_the_same() {
    let server = Server::start();
    server.platform.set("theirs", Route::NotFound);
    for accept in ["Accept: text/html\r\n", "Accept: */*\r\n", ""] {
        let theirs = server.get("/ws/theirs/x", accept).await;
        assert_eq!(theirs.status, 404);
        for path in ["/ws/unknown/x", "/ws/no.sid/x", "/ws/", "/ws//", "/ws"] {
            let other = server.get(path, accept).await;
            assert_eq!(without_date(&theirs), without_date(&other), "{path} {accept}");
        }
    }
    let asked = server.platform.asked.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(asked, 6, "a malformed name is not looked up");
}

#[actix_web::test]
async fn without_a_credential_there_is_a_form() {
    let server = Server::start();
    server.platform.open("s1", canned(PROGRAM).await);
    let page = server.browse("/ws/s1/a?b=%22%3E", "").await;
    assert_eq!(page.status, 401);
    assert!(page.header("www-authenticate").is_some());
    is_own_page(&page);
    assert!(page.text().contains("action=\"/login\"") && page.text().contains("value=\"/ws/s1/a?b=%22%3E\""));
    // The same for a space that does not exist.
    assert_eq!(server.browse("/ws/unknown/", "Cookie: podyard_session=stale\r\n").await.status, 401);
    let problem = server.ask(&get(server.addr, "/ws/s1/", "")).await;
    assert_eq!((problem.status, class(&problem).as_str()), (401, "UnauthorizedError"));
}

async fn login(server: &Server, form: &str, headers: &str) -> Reply {
    let request = format!(
        "POST /login HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAccept: text/html\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n{headers}\r\n{form}",
        server.addr,
        form.len()
    );
    server.ask(&request).await
}

#[actix_web::test]
async fn logging_in_and_out() {
    let server = Server::start();
    server.platform.open("s1", canned(PROGRAM).await);
    let ours = format!("Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", server.addr);
    let form = "user=ann&password=correct+horse&domain=&next=%2Fws%2Fs1%2Fa%3Fb%3Dc";
    let reply = login(&server, form, &ours).await;
    assert_eq!((reply.status, reply.header("location")), (303, Some("/ws/s1/a?b=c")));
    let cookie = format!("podyard_session={TOKEN}; Path=/ws/; Max-Age=3600; HttpOnly; SameSite=Lax");
    assert_eq!(reply.all("set-cookie"), [cookie]);
    let seen = server.platform.logins.lock().unwrap()[0].clone();
    assert_eq!((seen.user.as_str(), seen.domain, seen.client_ip), ("ann", None, Some([127, 0, 0, 1].into())));
    let opened = server.browse("/ws/s1/a?b=c", &format!("Cookie: podyard_session={TOKEN}\r\n")).await;
    assert_eq!(opened.text(), "program");

    let post = |path: &str, headers: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n",
            server.addr
        )
    };
    let reply = server.ask(&post("/logout", &ours)).await;
    assert_eq!((reply.status, reply.header("location")), (307, Some("/ws/~logout")));
    let reply = server.ask(&post("/ws/~logout", &format!("{ours}Cookie: podyard_session={TOKEN}\r\n"))).await;
    assert_eq!((reply.status, reply.header("location")), (303, Some("/login")));
    assert!(reply.header("set-cookie").unwrap().contains("podyard_session=; Path=/ws/; Max-Age=0"));
    assert_eq!(server.platform.logouts.lock().unwrap()[..], [TOKEN]);
    for path in ["/logout", "/ws/~logout"] {
        let foreign =
            post(path, &format!("Origin: http://evil.example\r\nCookie: podyard_session={TOKEN}\r\n"));
        assert_eq!(server.ask(&foreign).await.status, 403);
    }
    assert_eq!(server.platform.logouts.lock().unwrap().len(), 1);
}

#[actix_web::test]
async fn the_cookie_is_secure_by_https() {
    let server =
        Server::with(Options { trust_forwarded: true, home: "/console/".into(), ..Options::default() });
    let headers = "Origin: https://ide.example\r\nX-Forwarded-Host: ide.example\r\nX-Forwarded-Proto: https\r\n\
                   X-Forwarded-For: 9.9.9.9\r\n";
    let reply = login(&server, "user=ann&password=correct+horse", headers).await;
    assert!(reply.header("set-cookie").unwrap().ends_with("; SameSite=Lax; Secure"));
    assert_eq!(reply.header("location"), Some("/console/"));
    assert_eq!(server.platform.logins.lock().unwrap()[0].client_ip, Some([9, 9, 9, 9].into()));
}

#[actix_web::test]
async fn failed_logins_tell_nothing() {
    let server = Server::start();
    let ours = format!("Origin: http://{}\r\n", server.addr);
    let wrong = login(&server, "user=ann&password=x&next=/ws/s1/", &ours).await;
    let unknown = login(&server, "user=nobody&password=x&next=/ws/s1/", &ours).await;
    assert_eq!(wrong.status, 401);
    assert_eq!(without_date(&wrong), without_date(&unknown));
    assert_eq!(wrong.header("set-cookie"), None);
    assert!(wrong.text().contains("value=\"/ws/s1/\""));
    let busy = login(&server, "user=busy&password=x", &ours).await;
    assert_eq!((busy.status, busy.header("retry-after")), (429, Some("17")));
    assert_eq!(login(&server, "user=ann", &ours).await.status, 400);
}

#[actix_web::test]
async fn other_sites_cannot_log_somebody_in() {
    let server = Server::start();
    let addr = server.addr;
    let form = "user=ann&password=correct+horse&next=/ws/s1/";
    for headers in [
        "Origin: http://evil.example\r\n".to_owned(),
        "Origin: null\r\n".into(),
        "Sec-Fetch-Site: cross-site\r\n".into(),
        "Sec-Fetch-Site: same-site\r\n".into(),
        format!("Origin: http://{addr}\r\nSec-Fetch-Site: cross-site\r\n"),
        "Origin: http://evil.example\r\nSec-Fetch-Site: same-origin\r\n".into(),
        // A browser says one or the other.
        String::new(),
    ] {
        let reply = login(&server, form, &headers).await;
        assert_eq!((reply.status, reply.header("set-cookie")), (403, None), "{headers}");
    }
    assert!(server.platform.logins.lock().unwrap().is_empty());
}

#[actix_web::test]
async fn a_login_leads_only_into_a_space() {
    let server = Server::start();
    let ours = format!("Origin: http://{}\r\n", server.addr);
    let to = async |next: &str| {
        let encoded = next.replace('%', "%25").replace('&', "%26");
        let reply = login(&server, &format!("user=ann&password=correct+horse&next={encoded}"), &ours).await;
        assert_eq!(reply.all("set-cookie").len(), 1, "{next}");
        let page = server.browse(&format!("/login?next={encoded}"), "").await;
        assert!(!page.text().contains("evil.example"), "{next}");
        reply.header("location").unwrap().to_owned()
    };
    for next in [
        "https://evil.example/ws/s1/",
        "//evil.example/",
        "/\\evil.example",
        "/ws/\\evil.example",
        "/ws/../login",
        "/ws/s1/../..",
        "/ws/s1/%2e%2e/",
        "javascript:alert(1)",
        "/login",
        "",
    ] {
        assert_eq!(to(next).await, "/", "{next}");
    }
    for next in ["/ws/s1/", "/ws/s1/%0D%0ASet-Cookie:%20a=b?c=http://x/"] {
        assert_eq!(to(next).await, next);
    }
    // Once decoded, this one has a line break in it.
    let reply =
        login(&server, "user=ann&password=correct+horse&next=/ws/s1/%0D%0ASet-Cookie:a=b", &ours).await;
    assert_eq!((reply.header("location"), reply.all("set-cookie").len()), (Some("/"), 1));
    let page = server.browse("/login?next=/ws/s1/x", "").await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("value=\"/ws/s1/x\""));
}
