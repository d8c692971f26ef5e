//! Requests as the rest sees them, and answers.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::status::Failure;

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Response = hyper::Response<Body>;

/// A request that was read.
pub(crate) struct Request {
    pub method: Method,
    pub path: String,
    pub raw_query: String,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub upgrade: Option<OnUpgrade>,
}

impl Request {
    /// Reads all of it.
    pub async fn read(mut request: hyper::Request<Incoming>) -> Result<Self, hyper::Error> {
        let upgrading = request.headers().contains_key(header::UPGRADE);
        let upgrade = upgrading.then(|| hyper::upgrade::on(&mut request));
        let (head, body) = request.into_parts();
        let body = if upgrading { Bytes::new() } else { body.collect().await?.to_bytes() };
        let raw_query = head.uri.query().unwrap_or_default().to_owned();
        Ok(Self {
            method: head.method,
            path: head.uri.path().to_owned(),
            query: pairs(&raw_query),
            raw_query,
            headers: head.headers,
            body,
            upgrade,
        })
    }

    /// The first value of a parameter; empty if it is not there.
    pub fn param(&self, name: &str) -> &str {
        self.query.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.param(name), "true" | "1" | "True")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default()
    }
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    query
        .split('&')
        .filter(|it| !it.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body whose pieces come one by one: each is one chunk. An error cuts the connection.
pub(crate) fn pieces(from: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    let frames = stream::unfold(from, async |mut from| {
        let piece = from.recv().await?;
        Some((piece.map(Frame::data), from))
    });
    StreamBody::new(frames).boxed_unsync()
}

pub(crate) fn answer(code: u16, kind: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if let Ok(id) = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()) {
        headers.insert("Audit-Id", id);
    }
    if !kind.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    response
}

pub(crate) fn json(code: u16, body: &Value) -> Response {
    answer(code, "application/json", full(body.to_string()))
}

pub(crate) fn text(code: u16, body: impl Into<Bytes>) -> Response {
    answer(code, "text/plain; charset=utf-8", full(body))
}

pub(crate) fn stream(kind: &'static str, from: mpsc::Receiver<io::Result<Bytes>>) -> Response {
    answer(200, kind, pieces(from))
}

pub(crate) fn bytes(code: u16, kind: &'static str, body: impl Into<Bytes>) -> Response {
    answer(code, kind, full(body))
}

/// No headers at all but those that HTTP needs.
pub(crate) fn bare(code: u16, body: &'static str) -> Response {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

pub(crate) fn refusal(failure: &Failure) -> Response {
    let mut response = if failure.text {
        text(failure.code, failure.message.clone())
    } else {
        json(failure.code, &failure.body())
    };
    if let Some(seconds) = failure.retry {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
