//! Downloads: streamed, in parts if asked, and never shown by the browser as a
//! page of this site.

use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt;

use actix_web::body::SizedStream;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Bytes, BytesMut};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::Files;
use crate::api::{PathQuery, on_disk};
use crate::error::{Error, Result};
use crate::place::{etag, open_file};

/// How much is read at once.
const PIECE: usize = 128 << 10;

/// What RFC 8187 lets stand unescaped in a file name.
const ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(crate) async fn download(
    files: web::Data<Files>,
    query: web::Query<PathQuery>,
    request: HttpRequest,
) -> Result<HttpResponse> {
    let path = query.path.clone();
    let (file, found) = on_disk(move || open_file(&path, &files.place.existing(&path)?)).await?;
    let (size, tag) = (found.size(), etag(&found));
    let name = query.path.rsplit('/').next().unwrap_or_default();

    let headers = request.headers();
    if header_text(headers, &header::IF_NONE_MATCH) == Some(&tag) {
        return Ok(HttpResponse::NotModified().insert_header((header::ETAG, tag)).finish());
    }
    // A part of another version than the one that was begun is of no use.
    let same_version = header_text(headers, &header::IF_RANGE).is_none_or(|known| known == tag);
    let range = match header_text(headers, &header::RANGE).filter(|_| same_version) {
        Some(text) => parse_range(text, size),
        None => Range::Whole,
    };

    let (mut response, first, length) = match range {
        Range::Whole => (HttpResponse::Ok(), 0, size),
        Range::Part { first, length } => {
            let mut response = HttpResponse::PartialContent();
            let last = first + length - 1;
            response.insert_header((header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}")));
            (response, first, length)
        }
        Range::Outside => {
            return Ok(HttpResponse::RangeNotSatisfiable()
                .insert_header((header::CONTENT_RANGE, format!("bytes */{size}")))
                .finish());
        }
    };
    response
        .insert_header((header::CONTENT_TYPE, content_type(name)))
        .insert_header((header::CONTENT_DISPOSITION, disposition(name)))
        // Should a browser show it nevertheless: without scripts, as nobody.
        .insert_header((header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"))
        .insert_header((header::CACHE_CONTROL, "private, no-cache"))
        .insert_header((header::ACCEPT_RANGES, "bytes"))
        .insert_header((header::ETAG, tag));

    let mut file = tokio::fs::File::from_std(file);
    file.seek(SeekFrom::Start(first)).await.map_err(|error| Error::io(&query.path, &error))?;
    let pieces = futures_util::stream::try_unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut piece = BytesMut::with_capacity(PIECE.min(usize::try_from(left).unwrap_or(PIECE)));
        let count = (&mut file).take(left).read_buf(&mut piece).await?;
        if count == 0 {
            // It became shorter. The length is sent already: break off.
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        }
        Ok::<_, std::io::Error>(Some((Bytes::from(piece), (file, left - count as u64))))
    });
    Ok(response.body(SizedStream::new(length, Box::pin(pieces))))
}

fn header_text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part { first: u64, length: u64 },
    Outside,
}

/// One range. Of several, and of what is no range, the whole is sent, as the
/// standard allows.
fn parse_range(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let (first, last) = (first.trim(), last.trim());
    let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first > last => return Range::Whole,
        (Ok(first), Ok(last)) => (first, last.min(size.saturating_sub(1))),
        (Ok(first), Err(_)) if last.is_empty() => (first, size.saturating_sub(1)),
        // The last so many bytes.
        (Err(_), Ok(0)) if first.is_empty() => return Range::Outside,
        (Err(_), Ok(count)) if first.is_empty() => (size.saturating_sub(count), size.saturating_sub(1)),
        _ => return Range::Whole,
    };
    if first >= size { Range::Outside } else { Range::Part { first, length: last - first + 1 } }
}

fn disposition(name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_graphic() && c != '"' && c != '\\' || c == ' ' { c } else { '_' })
        .collect();
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{}", utf8_percent_encode(name, ATTR_CHAR))
}

fn content_type(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "txt" | "md" | "log" | "rs" | "go" | "py" | "c" | "h" | "cpp" | "java" | "sh" | "toml" | "yaml"
        | "yml" | "ini" | "conf" | "sql" | "ts" | "tsx" | "jsx" | "vue" => "text/plain; charset=utf-8",
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "json" | "map" => "application/json",
        "xml" => "application/xml",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "tar" => "application/x-tar",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        "ico" => "image/x-icon",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |first, length| Range::Part { first, length };
        assert_eq!(parse_range("bytes=0-4", 10), part(0, 5));
        assert_eq!(parse_range("bytes=4-", 10), part(4, 6));
        assert_eq!(parse_range("bytes=-3", 10), part(7, 3));
        assert_eq!(parse_range("bytes=-30", 10), part(0, 10));
        assert_eq!(parse_range("bytes=8-99", 10), part(8, 2));
        assert_eq!(parse_range("bytes=10-", 10), Range::Outside);
        assert_eq!(parse_range("bytes=-0", 10), Range::Outside);
        assert_eq!(parse_range("bytes=0-", 0), Range::Outside);
        for text in ["bytes=0-1,3-4", "bytes=x-", "lines=1-2", "bytes=5-4", "bytes=--5"] {
            assert_eq!(parse_range(text, 10), Range::Whole, "{text}");
        }
    }

    #[test]
    fn names_in_headers() {
        assert_eq!(
            disposition("a \"b\"\r\n文.txt"),
            "attachment; filename=\"a _b____.txt\"; filename*=UTF-8''a%20%22b%22%0D%0A%E6%96%87.txt"
        );
    }
}
