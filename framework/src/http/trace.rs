//! W3C trace context: a request belongs to the trace that its client says it
//! does, so that what it did can be found by the client's own id.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
static TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// Most bytes of a `tracestate` that are carried on, as the standard has it.
const STATE: usize = 512;

/// A request's place in a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Names the whole trace: 32 hexadecimal digits.
    pub trace_id: String,
    /// Names this request in it: 16 hexadecimal digits.
    pub span_id: String,
    /// Whether the client records its trace.
    pub sampled: bool,
    /// What others want to be carried on.
    pub state: Option<String>,
}

impl Trace {
    /// The trace that a client's headers name; a new one where what they
    /// name is none; nothing where they name nothing.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let parent = headers.get(&TRACEPARENT)?;
        let only = headers.get_all(&TRACEPARENT).count() == 1;
        let known = parent.to_str().ok().filter(|_| only).and_then(parse);
        let mut states = headers.get_all(&TRACESTATE).filter_map(|it| it.to_str().ok());
        let state = states.next().filter(|it| known.is_some() && it.len() <= STATE).map(str::to_owned);
        let (trace_id, sampled) = known.unwrap_or_else(|| (hex(rand::random()), false));
        let span: [u8; 16] = rand::random();
        Some(Self { trace_id, span_id: hex(span)[..16].to_owned(), sampled, state })
    }

    /// The header that tells the next server of it: this request is its parent.
    #[must_use]
    pub fn parent(&self) -> String {
        format!("00-{}-{}-0{}", self.trace_id, self.span_id, u8::from(self.sampled))
    }

    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::from_str(&self.parent()) {
            headers.insert(TRACERESPONSE.clone(), value);
        }
    }
}

fn hex(bytes: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(bytes).max(1 << 64))
}

/// Trace id and whether it is sampled, of a `traceparent`.
fn parse(text: &str) -> Option<(String, bool)> {
    let digits = |it: &str, n: usize| {
        it.len() == n && it.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let sound = digits(version, 2) && digits(trace, 32) && digits(span, 16) && digits(flags, 2);
    let nothing = |it: &str| it.bytes().all(|b| b == b'0');
    // Later versions may have more parts; this one has none.
    let whole = version != "ff" && (version != "00" || parts.next().is_none());
    let flags = u8::from_str_radix(flags, 16).unwrap_or(0);
    (sound && whole && !nothing(trace) && !nothing(span)).then(|| (trace.to_owned(), flags & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn parents() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736".to_owned();
        assert_eq!(parse(GOOD), Some((id.clone(), true)));
        assert_eq!(parse(&GOOD.replace("00-4", "cc-4").replace("-01", "-00-more")), Some((id, false)));
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_request_has_a_span_of_its_own() {
        let mut headers = HeaderMap::new();
        assert_eq!(Trace::of(&headers), None);
        headers.insert(TRACEPARENT.clone(), HeaderValue::from_static(GOOD));
        headers.insert(TRACESTATE.clone(), HeaderValue::from_static("a=1"));
        let trace = Trace::of(&headers).unwrap();
        assert!(trace.sampled && trace.state.as_deref() == Some("a=1"));
        assert_ne!(trace.span_id, "00f067aa0ba902b7");
        assert!(parse(&trace.parent()).is_some());
        headers.insert(TRACEPARENT.clone(), HeaderValue::from_static("nonsense"));
        let new = Trace::of(&headers).unwrap();
        assert!(new.state.is_none() && parse(&new.parent()).is_some());
    }
}
