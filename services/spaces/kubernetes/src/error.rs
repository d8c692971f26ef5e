//! What the API server refuses, in words, and for how long it is asked.

use std::future::Future;
use std::io;
use std::time::Duration;

use kube::core::Status;
use podyard_driver::{Error, Result};

/// How long an answer may take, with all repetitions.
const LIMIT: Duration = Duration::from_secs(30);

/// Asks the API server for something, within a limit.
pub(crate) async fn ask<T>(
    what: &str,
    request: impl Future<Output = std::result::Result<T, kube::Error>>,
) -> Result<T> {
    raw(what, request).await?.map_err(|error| told(what, error))
}

/// The same, with the API server's own error for whoever wants to look at it.
pub(crate) async fn raw<T>(
    what: &str,
    request: impl Future<Output = std::result::Result<T, kube::Error>>,
) -> Result<std::result::Result<T, kube::Error>> {
    tokio::time::timeout(LIMIT, request).await.map_err(|_| Error::Io {
        what: what.to_owned(),
        source: io::Error::new(io::ErrorKind::TimedOut, "the cluster does not answer"),
    })
}

/// The status of an answer; none if there was no answer.
pub(crate) fn status(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// Whether the answer was this code.
pub(crate) fn is(error: &kube::Error, code: u16) -> bool {
    status(error).is_some_and(|it| it.code == code)
}

/// An answer that passes is an `Io`, which is tried again; the others say what
/// has to be changed.
pub(crate) fn told(what: &str, error: kube::Error) -> Error {
    let status = match error {
        kube::Error::Api(status) => status,
        kube::Error::Auth(error) => {
            return Error::Unavailable(format!("the cluster's login cannot be made: {error}"));
        }
        other => return Error::Io { what: what.to_owned(), source: io::Error::other(reason(&other)) },
    };
    let message = &status.message;
    let kind = status.details.as_ref().map_or("", |it| it.kind.as_str());
    match status.code {
        401 => Error::Unavailable("the cluster does not know Podyard's login".to_owned()),
        403 if is_quota(message) => {
            Error::Unavailable(format!("the quota of the cluster's namespace has no room for it: {message}"))
        }
        403 if message.contains("because it is being terminated") => {
            Error::Unavailable(format!("the cluster's namespace is being removed: {message}"))
        }
        403 if message.contains("cannot") => {
            Error::Unavailable(format!("Podyard has no right to that in the cluster: {message}"))
        }
        403 => Error::Unavailable(format!("the cluster does not allow it: {message}")),
        404 if kind == "namespaces" => {
            Error::Unavailable(format!("the cluster's namespace is not there: {message}"))
        }
        400 | 422 => Error::Invalid(format!("the cluster does not take it: {message}")),
        // Others that changed it at the same time, too many requests, the server's own trouble.
        code => Error::Io {
            what: what.to_owned(),
            source: io::Error::other(format!("the cluster answers {code}: {message}")),
        },
    }
}

/// What an admission says when something is full or has no size.
fn is_quota(message: &str) -> bool {
    [
        "exceeded quota",
        "failed quota",
        "maximum memory usage",
        "maximum cpu usage",
        "minimum memory usage",
        "minimum cpu usage",
        "must specify limits",
    ]
    .iter()
    .any(|it| message.contains(it))
        || message.contains("usage per Container")
        || message.contains("usage per Pod")
}

/// An error with all that caused it.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    // That it was a service says nothing to anybody.
    let mut text = error.to_string().trim_start_matches("ServiceError: ").to_owned();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use kube::core::response::StatusDetails;

    use super::*;

    fn answer(code: u16, kind: &str, message: &str) -> Error {
        let details: StatusDetails = serde_json::from_value(serde_json::json!({ "kind": kind })).unwrap();
        let status = Status { code, message: message.into(), details: Some(details), ..Status::default() };
        told("it cannot be done", kube::Error::Api(status.boxed()))
    }

    #[test]
    fn what_a_cluster_refuses() {
        let quota = answer(
            403,
            "pods",
            "pods \"b\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1",
        );
        assert!(matches!(&quota, Error::Unavailable(text) if text.contains("quota of")), "{quota}");
        let limit = answer(
            403,
            "pods",
            "pods \"x\" is forbidden: maximum memory usage per Container is 64Mi, but limit is 128Mi",
        );
        assert!(matches!(&limit, Error::Unavailable(text) if text.contains("quota of")), "{limit}");
        let right = answer(
            403,
            "pods",
            "pods is forbidden: User \"u\" cannot create resource \"pods\" in API group \"\"",
        );
        assert!(matches!(&right, Error::Unavailable(text) if text.contains("no right")), "{right}");
        let gone = answer(404, "namespaces", "namespaces \"x\" not found");
        assert!(
            matches!(&gone, Error::Unavailable(text) if text.contains("namespace is not there")),
            "{gone}"
        );
        let wrong = answer(422, "Pod", "Pod \"x\" is invalid: spec");
        assert!(matches!(&wrong, Error::Invalid(text) if text.contains("spec")), "{wrong}");
        assert!(matches!(answer(401, "", "Unauthorized"), Error::Unavailable(_)));
    }

    #[test]
    fn what_passes() {
        for code in [409, 429, 500, 503, 504] {
            assert!(matches!(answer(code, "pods", "m"), Error::Io { .. }), "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_has_an_end() {
        let silent = ask::<()>("it cannot be done", std::future::pending()).await.unwrap_err();
        assert!(silent.to_string().contains("it cannot be done"), "{silent}");
    }
}
