//! Compression of JSON that is worth it. Only whole bodies: what streams (an
//! export, events) and what spaces answer goes as it is.

use std::io::Write as _;
use std::sync::LazyLock;

use actix_web::HttpResponse;
use actix_web::body::{BodySize, BoxBody, MessageBody as _};
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::web::Bytes;

use crate::worker::Pool;

/// Below it a packet is a packet.
const LEAST: u64 = 1024;
/// Above it compressing takes long enough to be done on another thread.
const INLINE: u64 = 64 * 1024;

static POOL: LazyLock<Pool> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    Pool::new("compression", cores, 64)
});

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Zstd,
    Brotli,
    Gzip,
}

impl Coding {
    /// The best that the client accepts; none: as it is.
    pub(super) fn accepted(header: &str) -> Option<Self> {
        let mut best: Option<(f32, Self)> = None;
        for range in header.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let coding = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "zstd" => Self::Zstd,
                "br" => Self::Brotli,
                "gzip" | "x-gzip" => Self::Gzip,
                _ => continue,
            };
            let quality = parts.find_map(|it| it.strip_prefix("q=")?.trim().parse().ok()).unwrap_or(1.0);
            let better = |(most, it): (f32, Self)| {
                quality > most || ((quality - most).abs() < f32::EPSILON && (coding as u8) < (it as u8))
            };
            if quality > 0.0 && best.is_none_or(better) {
                best = Some((quality, coding));
            }
        }
        best.map(|(_, it)| it)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }

    /// None: it could not be, so it goes as it is.
    fn compress(self, body: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Zstd => zstd::bulk::compress(body, 1).ok(),
            Self::Brotli => {
                let params = brotli::enc::BrotliEncoderParams { quality: 2, ..Default::default() };
                let mut out = Vec::with_capacity(body.len() / 4);
                brotli::BrotliCompress(&mut &*body, &mut out, &params).ok()?;
                Some(out)
            }
            Self::Gzip => {
                let out = Vec::with_capacity(body.len() / 4);
                let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
                encoder.write_all(body).ok()?;
                encoder.finish().ok()
            }
        }
    }
}

/// Whether an answer is JSON of a size that is worth it.
pub(super) fn is_worth_it(response: &HttpResponse<BoxBody>) -> bool {
    let headers = response.headers();
    let json =
        |it: &HeaderValue| it.as_bytes().starts_with(b"application/") && it.as_bytes().ends_with(b"json");
    matches!(response.body().size(), BodySize::Sized(n) if n >= LEAST)
        && headers.get(header::CONTENT_TYPE).is_some_and(json)
        && !headers.contains_key(header::CONTENT_ENCODING)
}

/// The answer, compressed.
pub(super) async fn compressed(response: HttpResponse<BoxBody>, coding: Coding) -> HttpResponse<BoxBody> {
    let (mut response, body) = response.into_parts();
    let body = match body.try_into_bytes() {
        Ok(bytes) => bytes,
        Err(body) => return response.set_body(body),
    };
    let small = if body.len() as u64 > INLINE {
        let body = body.clone();
        POOL.block(move || coding.compress(&body)).await.ok().flatten()
    } else {
        coding.compress(&body)
    };
    let Some(small) = small.filter(|it| it.len() < body.len()) else {
        return response.set_body(BoxBody::new(body));
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    retag(headers, coding);
    response.set_body(BoxBody::new(Bytes::from(small)))
}

/// A strong tag names these very bytes, so compressed ones have another.
fn retag(headers: &mut HeaderMap, coding: Coding) {
    let tag = headers.get(header::ETAG).and_then(|it| it.to_str().ok());
    let Some(inner) = tag.and_then(|it| it.strip_prefix('"')?.strip_suffix('"')) else { return };
    if let Ok(value) = HeaderValue::from_str(&format!("\"{inner}-{}\"", coding.name())) {
        headers.insert(header::ETAG, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted() {
        for (header, coding) in [
            ("", None),
            ("identity", None),
            ("gzip", Some(Coding::Gzip)),
            ("gzip, deflate, br", Some(Coding::Brotli)),
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("gzip;q=1, br;q=0.5", Some(Coding::Gzip)),
            ("zstd;q=0, gzip;q=0.1", Some(Coding::Gzip)),
        ] {
            assert_eq!(Coding::accepted(header), coding, "{header}");
        }
    }

    #[test]
    fn each_coding_makes_it_smaller() {
        let body = b"{\"name\": \"the same again\"}".repeat(100);
        for coding in [Coding::Zstd, Coding::Brotli, Coding::Gzip] {
            assert!(coding.compress(&body).unwrap().len() < body.len() / 4, "{coding:?}");
        }
    }
}
