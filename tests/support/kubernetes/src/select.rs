//! Label and field selectors.

use serde_json::{Value, json};

use crate::resource::Resource;
use crate::status::Failure;
use crate::value::text;

/// Which objects are meant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector {
    labels: Vec<Term>,
    fields: Vec<(Vec<String>, bool, String)>,
}

#[derive(Debug, Clone)]
enum Term {
    Is(String, String),
    Not(String, String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Has(String),
    Lacks(String),
    More(String, i64),
    Less(String, i64),
}

impl Selector {
    pub fn parse(of: &Resource, labels: &str, fields: &str) -> Result<Self, Failure> {
        Ok(Self { labels: parse_labels(labels)?, fields: parse_fields(of, fields)? })
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let label = |key: &str| labels.get(key).and_then(Value::as_str);
        let number = |key: &str| label(key).and_then(|it| it.parse::<i64>().ok());
        self.labels.iter().all(|term| match term {
            Term::Is(key, value) => label(key) == Some(value),
            Term::Not(key, value) => label(key) != Some(value),
            Term::In(key, values) => label(key).is_some_and(|it| values.iter().any(|v| v == it)),
            Term::NotIn(key, values) => !label(key).is_some_and(|it| values.iter().any(|v| v == it)),
            Term::Has(key) => label(key).is_some(),
            Term::Lacks(key) => label(key).is_none(),
            Term::More(key, than) => number(key).is_some_and(|it| it > *than),
            Term::Less(key, than) => number(key).is_some_and(|it| it < *than),
        }) && self.fields.iter().all(|(path, equal, wanted)| {
            let found = path.iter().fold(object, |at, step| &at[step.as_str()]);
            (found.as_str().unwrap_or_default() == wanted) == *equal
        })
    }
}

fn parse_labels(selector: &str) -> Result<Vec<Term>, Failure> {
    let mut terms = Vec::new();
    let mut rest = selector.trim();
    while !rest.is_empty() {
        // A comma inside brackets does not end a term.
        let mut depth = 0;
        let end = rest
            .char_indices()
            .find(|(_, letter)| {
                match letter {
                    '(' => depth += 1,
                    ')' => depth -= 1,
                    _ => {}
                }
                *letter == ',' && depth == 0
            })
            .map_or(rest.len(), |(at, _)| at);
        if depth != 0 {
            return Err(Failure::bad("unable to parse requirement: found '', expected: ',' or ')'"));
        }
        terms.push(parse_term(rest[..end].trim())?);
        rest = rest[end..].trim_start_matches(',').trim();
    }
    Ok(terms)
}

fn parse_term(term: &str) -> Result<Term, Failure> {
    let bad = || Failure::bad(format!("unable to parse requirement: {term}"));
    let values = |text: &str| -> Result<Vec<String>, Failure> {
        let inner = text.trim().strip_prefix('(').and_then(|it| it.strip_suffix(')'));
        Ok(inner.ok_or_else(bad)?.split(',').map(|it| it.trim().to_owned()).collect())
    };
    let two = |(a, b): (&str, &str)| (a.trim().to_owned(), b.trim().to_owned());
    if let Some(key) = term.strip_prefix('!') {
        return Ok(Term::Lacks(key.trim().to_owned()));
    }
    if let Some((key, list)) = term.split_once(" notin ") {
        return Ok(Term::NotIn(key.trim().to_owned(), values(list)?));
    }
    if let Some((key, list)) = term.split_once(" in ") {
        return Ok(Term::In(key.trim().to_owned(), values(list)?));
    }
    if let Some(both) = term.split_once("!=") {
        let (key, value) = two(both);
        return Ok(Term::Not(key, value));
    }
    if let Some(both) = term.split_once("==").or_else(|| term.split_once('=')) {
        let (key, value) = two(both);
        return Ok(Term::Is(key, value));
    }
    if let Some((key, value)) = term.split_once('>').map(two) {
        return Ok(Term::More(key, value.parse().map_err(|_| bad())?));
    }
    if let Some((key, value)) = term.split_once('<').map(two) {
        return Ok(Term::Less(key, value.parse().map_err(|_| bad())?));
    }
    if term.contains(' ') || term.is_empty() {
        return Err(bad());
    }
    Ok(Term::Has(term.to_owned()))
}

type FieldTerm = (Vec<String>, bool, String);

fn parse_fields(of: &Resource, selector: &str) -> Result<Vec<FieldTerm>, Failure> {
    selector
        .split(',')
        .filter(|it| !it.is_empty())
        .map(|term| {
            let (field, equal, value) = if let Some((field, value)) = term.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
                (field, true, value)
            } else {
                return Err(Failure::bad(format!("invalid field selector: \"{term}\"; can't understand")));
            };
            if !known(of, field) {
                return Err(unknown(of, field));
            }
            // Events are kept in the form of the core group.
            let field = match of.group.as_str() {
                "events.k8s.io" => field
                    .replace("regarding.", "involvedObject.")
                    .replace("reportingController", "reportingComponent"),
                _ => field.to_owned(),
            };
            let path = field.split('.').map(str::to_owned).collect();
            Ok((path, equal, value.to_owned()))
        })
        .collect()
}

fn known(of: &Resource, field: &str) -> bool {
    let more: &[&str] = match (of.group.as_str(), of.plural.as_str()) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "events") => &[
            "regarding.kind",
            "regarding.name",
            "regarding.namespace",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ("", "namespaces") => &["status.phase"],
        ("", "secrets") => &["type"],
        ("", "nodes") => &["spec.unschedulable"],
        _ => &[],
    };
    matches!(field, "metadata.name" | "metadata.namespace") || more.contains(&field)
}

fn unknown(of: &Resource, field: &str) -> Failure {
    // Kinds with fields of their own say less.
    if matches!(of.plural.as_str(), "pods" | "events" | "namespaces" | "secrets" | "nodes") {
        return Failure::bad(format!("field label not supported: {field}"));
    }
    Failure::bad(format!(
        "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        json!(field)
    ))
}

/// Whether all labels of a `matchLabels` or a node selector are there.
pub(crate) fn has_all(labels: &Value, wanted: &Value) -> bool {
    wanted
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key).map(text) == Some(text(value)))
}
