//! Paths: which space, what of it, and where a login may lead to. All on the raw path; nothing is
//! decoded, so that nothing can be decoded twice.

/// What a path below `/ws` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// `/ws/<sid>/…`; `rest` begins with a slash.
    Inside { sid: &'a str, rest: &'a str },
    /// `/ws/<sid>`, the slash is missing.
    Bare { sid: &'a str },
    /// No space can have this name.
    Nothing,
}

/// Where the cookie reaches the gateway on the way out. `~` cannot stand in a sid.
pub(crate) const LOGOUT: &str = "/ws/~logout";

/// Takes a raw path apart.
pub(crate) fn target(path: &str) -> Target<'_> {
    let Some(after) = path.strip_prefix("/ws/") else { return Target::Nothing };
    let end = after.find('/').unwrap_or(after.len());
    let (sid, rest) = after.split_at(end);
    if !is_sid(sid) {
        Target::Nothing
    } else if rest.is_empty() {
        Target::Bare { sid }
    } else {
        Target::Inside { sid, rest }
    }
}

fn is_sid(s: &str) -> bool {
    (1..=64).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Why a path is refused, if it is. A program behind a prefix must not be asked for something
/// outside of it, and no honest client sends these.
pub(crate) fn refused(path: &str) -> Option<&'static str> {
    if path.split('/').any(is_parent) {
        Some("it has a segment that leads upwards")
    } else if path.contains("%00") {
        Some("it has a NUL")
    } else {
        None
    }
}

/// Is this segment `..`, in any spelling?
fn is_parent(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let (mut i, mut dots) = (0, 0);
    while i < bytes.len() {
        if bytes[i] == b'.' {
            i += 1;
        } else if bytes.len() - i >= 3 && bytes[i..i + 3].eq_ignore_ascii_case(b"%2e") {
            i += 3;
        } else {
            return false;
        }
        dots += 1;
    }
    dots == 2
}

/// Is this a path that a login may lead to? Only into a space of this very server, so that nobody
/// can make a link to the login that ends somewhere else.
pub(crate) fn is_safe_next(next: &str) -> bool {
    let path = next.split(['?', '#']).next().unwrap_or_default();
    next.len() <= 4096
        && next.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
        && !matches!(target(path), Target::Nothing)
        && refused(path).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        assert_eq!(target("/ws/a-b_C1/x/y"), Target::Inside { sid: "a-b_C1", rest: "/x/y" });
        assert_eq!(target("/ws/a/"), Target::Inside { sid: "a", rest: "/" });
        assert_eq!(target("/ws/a//x"), Target::Inside { sid: "a", rest: "//x" });
        assert_eq!(target("/ws/a"), Target::Bare { sid: "a" });
        for bad in ["/ws", "/ws/", "/ws//x", "/ws/a.b/", "/ws/a%2Fb/", "/ws/~logout", "/w/a/"] {
            assert_eq!(target(bad), Target::Nothing, "{bad}");
        }
        assert_eq!(target(&format!("/ws/{}", "a".repeat(65))), Target::Nothing);
    }

    #[test]
    fn refusals() {
        for bad in ["/a/../b", "/..", "/%2e%2E/", "/.%2e/x", "/%2E./x", "/a%00b"] {
            assert!(refused(bad).is_some(), "{bad}");
        }
        for good in ["/a/./b", "/...", "/..a", "/a..", "/%2e%2e%2e", "/%252e%252e/", "/%2F"] {
            assert!(refused(good).is_none(), "{good}");
        }
    }

    #[test]
    fn next() {
        for good in ["/ws/a/", "/ws/a", "/ws/a/x?y=/../&z=http://h/"] {
            assert!(is_safe_next(good), "{good}");
        }
        for bad in [
            "",
            "/",
            "//evil.example/ws/a/",
            "https://evil.example/ws/a/",
            "/ws/../login",
            "/ws/a/../../x",
            "/ws\\a/",
            "/ws/a/\\x",
            "/ws/a/\r\nSet-Cookie: x=y",
            "\t/ws/a/",
            "/login",
            "ws/a/",
        ] {
            assert!(!is_safe_next(bad), "{bad}");
        }
    }
}
