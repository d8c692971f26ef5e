//! Versions of what was answered. A row's answer has the tag
//! `"<version>-<hash of the body>"`: `If-Match` asks for the version, which is
//! what a write compares, and `If-None-Match` for the whole, since a body also
//! shows what is not the row's own (its template's name). A list has the hash
//! alone, as a weak tag. A compressed body's tag ends in its coding.

use actix_web::HttpRequest;
use actix_web::http::header;

use crate::dispatch::IfMatch;
use crate::{Error, Result};

/// Codings that a tag may end in.
pub(super) const CODINGS: [&str; 3] = ["-zstd", "-br", "-gzip"];

/// A hash of 64 bits, made for speed: whoever makes two bodies that collide
/// keeps a client from seeing a change of their own.
fn hash(bytes: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |a: u64, b: u64| {
        let wide = u128::from(a) * u128::from(b);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves are folded")]
        let folded = (wide as u64) ^ ((wide >> 64) as u64);
        folded
    };
    let word = |it: &[u8]| {
        let mut word = [0; 8];
        word[..it.len()].copy_from_slice(it);
        u64::from_le_bytes(word)
    };
    let (pairs, rest) = bytes.as_chunks::<16>();
    let mut hash = K ^ bytes.len() as u64;
    for pair in pairs {
        hash = mix(word(&pair[..8]) ^ hash, word(&pair[8..]) ^ 0xa076_1d64_78bd_642f).rotate_left(23);
    }
    let (first, second) = rest.split_at(rest.len().min(8));
    hash = mix(word(first) ^ hash ^ 0xe703_7ed1_a0b4_28db, word(second) ^ K);
    mix(hash, 0x8ebc_6af0_9c88_c6e3)
}

/// The tag of an answer to a `GET`.
pub(super) fn tag(version: Option<i64>, body: &[u8]) -> String {
    match version {
        Some(version) => format!("\"{version}-{:016x}\"", hash(body)),
        None => format!("W/\"{:016x}\"", hash(body)),
    }
}

/// What stands in a tag, whether weak or compressed or not.
fn opaque(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('"') {
        return None;
    }
    Some(CODINGS.iter().find_map(|it| inner.strip_suffix(it)).unwrap_or(inner))
}

/// The tag by which `If-None-Match` knows the answer already, as the client
/// wrote it.
///
/// # Errors
/// 400 for what are no tags.
pub(super) fn known<'a>(req: &'a HttpRequest, tag: &'a str) -> Result<Option<&'a str>> {
    let Some(value) = req.headers().get(header::IF_NONE_MATCH) else { return Ok(None) };
    let wrong = || Error::field("If-None-Match", "must be \"*\" or the ETag of an answer, like \"3\"");
    let text = value.to_str().map_err(|_| wrong())?.trim();
    if text == "*" {
        return Ok(Some(tag));
    }
    let (own, mut found) = (opaque(tag), None);
    for one in text.split(',').map(str::trim) {
        let one_opaque = opaque(one).ok_or_else(wrong)?;
        if found.is_none() && Some(one_opaque) == own {
            found = Some(one);
        }
    }
    Ok(found)
}

/// What `If-Match` asks for.
///
/// # Errors
/// 400 for what are no tags.
pub(super) fn if_match(req: &HttpRequest) -> Result<IfMatch> {
    let Some(value) = req.headers().get(header::IF_MATCH) else { return Ok(IfMatch::Any) };
    let wrong = || Error::field("If-Match", "must be \"*\" or the ETag of an answer, like \"3\"");
    let text = value.to_str().map_err(|_| wrong())?;
    if text.trim() == "*" {
        return Ok(IfMatch::Any);
    }
    let versions: Option<Vec<i64>> = text.split(',').map(|it| version(it.trim())).collect();
    versions.map(IfMatch::Versions).ok_or_else(wrong)
}

/// The version in a tag: 3 of `"3"` and `"3-<hash>"`. A tag that is
/// well-formed but none of ours, or weak, is one of another state.
fn version(tag: &str) -> Option<i64> {
    let inner = opaque(tag)?;
    let number = inner.split('-').next().unwrap_or_default();
    let own = tag.starts_with('"') && number.bytes().all(|b| b.is_ascii_digit()) && !number.starts_with('0');
    Some(number.parse().ok().filter(|_| own).unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn hashes_differ() {
        let mut seen = std::collections::HashSet::new();
        let body = vec![b'x'; 100];
        for n in 0..100 {
            assert!(seen.insert(hash(&body[..n])), "{n}");
            let mut other = body.clone();
            other[n] = b'y';
            assert!(seen.insert(hash(&other)), "{n}");
        }
        assert_eq!(hash(b"abc"), hash(b"abc"));
        assert!(hash(b"12345678abcdefgh") != hash(b"abcdefgh12345678"));
    }

    #[test]
    fn versions() {
        for (tag, it) in [
            ("\"3\"", Some(3)),
            ("\"3-00ff\"", Some(3)),
            ("\"3-00ff-gzip\"", Some(3)),
            ("W/\"3\"", Some(-1)),
            ("\"x\"", Some(-1)),
            ("\"03\"", Some(-1)),
            ("\"\"", Some(-1)),
            ("3", None),
            ("\"3", None),
        ] {
            assert_eq!(version(tag), it, "{tag}");
        }
    }

    #[test]
    fn lists_of_tags_are_compared_weakly() {
        let asks = |text: &'static str| {
            TestRequest::default().insert_header((header::IF_NONE_MATCH, text)).to_http_request()
        };
        let is_known = |text| known(&asks(text), "\"3-ab\"").unwrap().is_some();
        assert!(
            is_known("*") && is_known("\"3-ab\"") && is_known("W/\"3-ab\"") && is_known("\"1\", \"3-ab\"")
        );
        assert!(is_known("\"3-ab-zstd\""));
        assert!(!is_known("\"3\"") && !is_known("\"4-ab\", \"3-ac\""));
        assert!(known(&asks("3-ab"), "\"3-ab\"").is_err());
        assert!(known(&TestRequest::default().to_http_request(), "\"3\"").unwrap().is_none());
    }
}
