//! The gateway's own answers: a page for people, a problem document (RFC 9457) for programs.
//!
//! The pages need nothing from elsewhere. Their style and script are the same for everybody, so
//! the content policy names them by hash: no page needs a random part, and two answers that must
//! not be told apart are the same bytes.

use std::{fmt::Write as _, sync::LazyLock, time::Duration};

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    http::{Method, StatusCode, header},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{Options, RequestId, origin};

const STYLE: &str = include_str!("pages/style.css");
const WAIT: &str = include_str!("pages/wait.js");

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
        hash(STYLE),
        hash(WAIT)
    )
});

/// One of the gateway's own answers.
#[derive(Debug)]
pub(crate) enum Page<'a> {
    Starting {
        name: &'a str,
        waited: Option<Duration>,
        status_text: &'a str,
    },
    Stopped {
        name: &'a str,
        reason: Option<&'a str>,
        exit_code: Option<i32>,
        last_lines: &'a [String],
    },
    NotFound,
    /// The login form; `next` is where it leads.
    Login {
        next: &'a str,
        failed: Option<LoginFailed>,
    },
    /// The login form, asked for by its own address.
    LoginForm {
        next: &'a str,
    },
    /// The program cannot be reached or broke off.
    BadGateway,
    /// The program does not answer in time.
    GatewayTimeout,
    /// The platform cannot say what becomes of the request.
    Unavailable,
    /// The request was sent by a page of another site.
    CrossSite,
    /// The request is malformed; the text says in what, and begins with the part's name.
    BadRequest(&'a str),
}

/// Why the login form is shown again.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LoginFailed {
    Refused,
    Throttled(Duration),
    Unavailable,
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    class: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

/// The words of a page, in one language.
struct Text {
    title: String,
    /// What it means and what to do.
    says: Vec<String>,
    /// Where the link leads, in words.
    home: &'static str,
}

/// The request's id, if it has one. The same one each time.
pub(crate) fn request_id(req: &HttpRequest, options: &Options) -> Option<String> {
    if let Some(id) = req.extensions().get::<RequestId>() {
        return Some(id.0.clone());
    }
    let Some(name) = options.request_id else {
        return origin::header(req, "x-request-id").map(str::to_owned);
    };
    let id = name(req);
    req.extensions_mut().insert(RequestId(id.clone()));
    Some(id)
}

/// Puts the request's id on an answer of the gateway's own.
pub(crate) fn with_request_id(
    req: &HttpRequest,
    options: &Options,
    mut answer: HttpResponse,
) -> HttpResponse {
    let id = request_id(req, options).and_then(|id| header::HeaderValue::try_from(id).ok());
    if let Some(id) = id {
        answer.headers_mut().insert(header::HeaderName::from_static("x-request-id"), id);
    }
    answer
}

/// Does this client show pages?
pub(crate) fn wants_html(req: &HttpRequest) -> bool {
    let accept = req.headers().get_all(header::ACCEPT).filter_map(|v| v.to_str().ok());
    accept.flat_map(|v| v.split(',')).any(|v| {
        let kind = v.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml")
    })
}

/// Does this client prefer Chinese to English?
fn wants_chinese(req: &HttpRequest) -> bool {
    let (mut chinese, mut english) = (0.0_f32, 0.0_f32);
    let accept = req.headers().get_all(header::ACCEPT_LANGUAGE).filter_map(|v| v.to_str().ok());
    for entry in accept.flat_map(|v| v.split(',')) {
        let (tag, q) = entry.split_once(';').unwrap_or((entry, ""));
        let weight = q.trim().strip_prefix("q=").map_or(1.0, |q| q.trim().parse().unwrap_or(0.0));
        let primary = tag.trim().split('-').next().unwrap_or_default();
        if primary.eq_ignore_ascii_case("zh") {
            chinese = chinese.max(weight);
        } else if primary.eq_ignore_ascii_case("en") {
            english = english.max(weight);
        }
    }
    chinese > english
}

/// Makes the answer.
pub(crate) fn answer(req: &HttpRequest, options: &Options, page: &Page<'_>) -> HttpResponse {
    let status = page.status();
    let mut answer = HttpResponse::build(status);
    answer
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::VARY, "Accept, Accept-Language, Cookie"))
        // With no referrer at all, a browser would send the login form with `Origin: null`.
        .insert_header((header::REFERRER_POLICY, "same-origin"))
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY.as_str()));
    if let Some(after) = page.retry_after() {
        answer.insert_header((header::RETRY_AFTER, after.as_secs().max(1).to_string()));
    }
    if status == StatusCode::UNAUTHORIZED {
        answer.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"podyard\""));
    }
    if wants_html(req) {
        let chinese = wants_chinese(req);
        let html = page.html(options, chinese, req.method() == Method::GET);
        answer.content_type("text/html; charset=utf-8");
        answer.insert_header((header::CONTENT_LANGUAGE, if chinese { "zh" } else { "en" }));
        return with_request_id(req, options, answer.body(html));
    }
    let id = request_id(req, options);
    let (title, class) = page.class();
    let problem = Problem {
        r#type: "about:blank",
        title,
        status: status.as_u16(),
        detail: page.detail(),
        class,
        request_id: id.as_deref(),
    };
    answer.content_type("application/problem+json");
    with_request_id(req, options, answer.body(serde_json::to_string(&problem).unwrap_or_default()))
}

/// Text that is safe in HTML, between tags and in quotes.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            _ => safe.push(c),
        }
    }
    safe
}

impl Page<'_> {
    fn status(&self) -> StatusCode {
        match self {
            Self::Starting { .. } | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Stopped { .. } => StatusCode::CONFLICT,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Login { failed: Some(LoginFailed::Throttled(_)), .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Login { failed: Some(LoginFailed::Unavailable), .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Login { .. } => StatusCode::UNAUTHORIZED,
            Self::LoginForm { .. } => StatusCode::OK,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::CrossSite => StatusCode::FORBIDDEN,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Starting { .. } => Some(Duration::from_secs(2)),
            Self::Unavailable | Self::Login { failed: Some(LoginFailed::Unavailable), .. } => {
                Some(Duration::from_secs(5))
            }
            Self::Login { failed: Some(LoginFailed::Throttled(after)), .. } => Some(*after),
            _ => None,
        }
    }

    /// Title and class of the problem document.
    fn class(&self) -> (&'static str, &'static str) {
        match self {
            Self::Starting { .. } => ("Space is starting", "SpaceStartingError"),
            Self::Stopped { .. } => ("Space is stopped", "SpaceStoppedError"),
            Self::NotFound => ("Not found", "ResourceNotFoundError"),
            Self::Login { failed: Some(LoginFailed::Throttled(_)), .. } => {
                ("Too many requests", "TooManyRequestsError")
            }
            Self::Login { failed: Some(LoginFailed::Unavailable), .. } | Self::Unavailable => {
                ("Service unavailable", "ServiceUnavailableError")
            }
            Self::Login { .. } | Self::LoginForm { .. } => ("Unauthorized", "UnauthorizedError"),
            Self::BadGateway => ("Bad gateway", "BadGatewayError"),
            Self::GatewayTimeout => ("Gateway timeout", "GatewayTimeoutError"),
            Self::CrossSite => ("Forbidden", "ForbiddenError"),
            Self::BadRequest(_) => ("Bad request", "BadRequestError"),
        }
    }

    /// What the problem document says: the page's English, in one line.
    fn detail(&self) -> String {
        match self {
            Self::Starting { status_text, .. } if !status_text.is_empty() => (*status_text).to_owned(),
            Self::BadRequest(detail) => (*detail).to_owned(),
            _ => self.text(false).says.join(" "),
        }
    }

    fn text(&self, chinese: bool) -> Text {
        // Both languages side by side, so that none is forgotten.
        let t = |en: &str, zh: &str| if chinese { zh.to_owned() } else { en.to_owned() };
        let named = |en: &str, zh: &str, name: &str| {
            if chinese { format!("{name} {zh}") } else { format!("{name} {en}") }
        };
        let (title, says) = match self {
            Self::Starting { name, waited, status_text } => {
                let mut says = vec![t("It opens here as soon as it answers.", "就绪后会自动打开。")];
                if let Some(waited) = waited {
                    let s = waited.as_secs();
                    says.push(if chinese {
                        format!("已等待 {s} 秒。")
                    } else {
                        format!("Waiting for {s} s.")
                    });
                }
                if !status_text.is_empty() {
                    says.insert(0, (*status_text).to_owned());
                }
                (named("is starting", "正在启动", name), says)
            }
            Self::Stopped { name, reason, exit_code, .. } => {
                let mut says = Vec::new();
                if let Some(reason) = reason {
                    says.push((*reason).to_owned());
                }
                if let Some(code) = exit_code {
                    says.push(if chinese {
                        format!("程序退出码：{code}。")
                    } else {
                        format!("Its program ended with exit code {code}.")
                    });
                }
                says.push(t("Start it, then load this page again.", "请启动后刷新本页。"));
                (named("is stopped", "已停止", name), says)
            }
            Self::NotFound => (
                t("Nothing here", "找不到"),
                vec![t(
                    "There is no such space, or it is not shared with you.",
                    "没有这个空间，或者您无权访问。",
                )],
            ),
            Self::Login { failed, .. } => (
                t("Log in", "登录"),
                vec![match failed {
                    None => t("Log in to open this space.", "登录后才能打开此空间。"),
                    Some(LoginFailed::Refused) => {
                        t("The name or the password is wrong.", "用户名或密码错误。")
                    }
                    Some(LoginFailed::Throttled(after)) => {
                        let s = after.as_secs().max(1);
                        if chinese {
                            format!("尝试次数过多，请在 {s} 秒后重试。")
                        } else {
                            format!("Too many attempts. Try again in {s} s.")
                        }
                    }
                    Some(LoginFailed::Unavailable) => {
                        t("Logging in does not work right now. Try again soon.", "暂时无法登录，请稍后重试。")
                    }
                }],
            ),
            Self::LoginForm { .. } => (t("Log in", "登录"), Vec::new()),
            Self::BadGateway => (
                t("The program does not answer", "程序没有响应"),
                vec![t(
                    "The space is running, but its program does not accept connections or broke off. \
                     Load this page again; if that does not help, look at the space's log and restart it.",
                    "空间正在运行，但其中的程序拒绝连接或中断了连接。请刷新本页；若仍无效，请查看空间日志并重启。",
                )],
            ),
            Self::GatewayTimeout => (
                t("The program takes too long", "程序响应超时"),
                vec![t(
                    "The space's program accepted the request but did not answer in time. Load this page \
                     again; if that does not help, restart the space.",
                    "空间中的程序已接受请求，但未及时响应。请刷新本页；若仍无效，请重启空间。",
                )],
            ),
            Self::Unavailable => (
                t("Not available right now", "暂时不可用"),
                vec![t(
                    "The platform cannot look up this space right now. Try again soon.",
                    "平台暂时无法查询此空间，请稍后重试。",
                )],
            ),
            Self::CrossSite => (
                t("Refused", "已拒绝"),
                vec![t("The request was sent by another site's page.", "请求来自其他网站的页面。")],
            ),
            Self::BadRequest(detail) => (t("Bad request", "请求无效"), vec![(*detail).to_owned()]),
        };
        Text { title, says, home: if chinese { "前往控制台" } else { "Go to the console" } }
    }

    fn html(&self, options: &Options, chinese: bool, get: bool) -> String {
        let text = self.text(chinese);
        let title = escape(&text.title);
        let mut head = String::new();
        let mut main = format!("<h1>{title}</h1>");
        let bad = matches!(self, Self::Login { failed: Some(_), .. });
        for (i, line) in text.says.iter().enumerate() {
            let attributes = match (self, i) {
                (Self::Starting { .. }, 0) => " id=\"status\" role=\"status\"",
                _ if bad => " class=\"bad\" role=\"alert\"",
                _ => "",
            };
            // Writing to a string does not fail.
            let _ = write!(main, "<p{attributes}>{}</p>", escape(line));
        }
        match self {
            Self::Starting { .. } => {
                main.push_str("<div class=\"bar\"><i></i></div>");
                // Asking a second time must do no harm, so only for a GET.
                if get {
                    head.push_str("<noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript>");
                    let _ = write!(main, "<script>{WAIT}</script>");
                }
            }
            Self::Stopped { last_lines, .. } if !last_lines.is_empty() => {
                let _ = write!(main, "<pre>{}</pre>", escape(&last_lines.join("\n")));
            }
            Self::Login { next, .. } | Self::LoginForm { next } => main.push_str(&form(next, chinese)),
            _ => {}
        }
        if !matches!(self, Self::Login { .. } | Self::LoginForm { .. }) {
            // `/` is where an API begins: no page to send people to.
            if options.home != "/" {
                let _ = write!(main, "<p><a href=\"{}\">{}</a></p>", escape(&options.home), text.home);
            }
        }
        let lang = if chinese { "zh" } else { "en" };
        format!(
            "<!doctype html><html lang=\"{lang}\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <meta name=\"color-scheme\" content=\"light dark\"><meta name=\"robots\" content=\"noindex\">\
             <title>{title} · Podyard</title><style>{STYLE}</style>{head}</head>\
             <body><main>{main}</main></body></html>\n"
        )
    }
}

/// The login form.
fn form(next: &str, chinese: bool) -> String {
    let t = |en: &'static str, zh: &'static str| if chinese { zh } else { en };
    format!(
        "<form method=\"post\" action=\"/login\"><input type=\"hidden\" name=\"next\" value=\"{}\">\
         <label>{}<input name=\"user\" autocomplete=\"username\" required autofocus></label>\
         <label>{}<input name=\"password\" type=\"password\" autocomplete=\"current-password\" required></label>\
         <label>{}<input name=\"domain\" autocomplete=\"organization\"></label>\
         <button>{}</button></form>",
        escape(next),
        t("User", "用户名"),
        t("Password", "密码"),
        t("Domain (may be empty)", "域（可留空）"),
        t("Log in", "登录"),
    )
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn languages() {
        let zh = |v: &str| {
            wants_chinese(&TestRequest::get().insert_header(("accept-language", v)).to_http_request())
        };
        assert!(zh("zh-CN,zh;q=0.9,en;q=0.8"));
        assert!(zh("fr, zh;q=0.2"));
        assert!(!zh("en-GB,zh;q=0.9"));
        assert!(!zh("fr"));
        assert!(!zh("zh;q=0"));
    }

    #[test]
    fn escapes() {
        assert_eq!(escape("<a b='\"&>"), "&lt;a b=&#39;&quot;&amp;&gt;");
        let page = Page::Stopped {
            name: "<script>",
            reason: Some("</p>"),
            exit_code: Some(1),
            last_lines: &["</pre><script>".into()],
        };
        for chinese in [false, true] {
            let html = page.html(&Options::default(), chinese, true);
            assert!(!html.contains("<script>") && !html.contains("</pre><s") && html.contains("&lt;/p&gt;"));
        }
        let html = Page::LoginForm { next: "/ws/a/?\"><x" }.html(&Options::default(), false, true);
        assert!(html.contains("value=\"/ws/a/?&quot;&gt;&lt;x\""));
    }
}
