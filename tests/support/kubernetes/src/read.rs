//! GET: one object, or a list in pages.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Value, json};

use crate::http::Request;
use crate::kinds::event;
use crate::resource::Resource;
use crate::route::Target;
use crate::select::Selector;
use crate::status::{Cause, Failure};
use crate::store::{State, Store};
use crate::value::{drop_field, name, namespace};
use crate::write::find;

/// What a version parameter says; `watch` answers a bad one otherwise.
pub(crate) fn version_of(text: &str, watch: bool) -> Result<u64, Failure> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        let why = format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        );
        if watch { Failure::internal(why) } else { Failure::bad(format!("invalid resource version: {why}")) }
    })
}

/// Refuses a version that is not there yet, after three seconds.
pub(crate) async fn not_too_new(store: &Store, wanted: u64) -> Result<(), Failure> {
    let newest = || store.read(|state| state.version);
    if wanted <= newest() {
        return Ok(());
    }
    let mut news = store.news();
    let _ = tokio::time::timeout(Duration::from_secs(3), news.wait_for(|it| *it >= wanted)).await;
    let newest = newest();
    if wanted <= newest {
        return Ok(());
    }
    let mut failure = Failure::new(
        504,
        "Timeout",
        format!("Timeout: Too large resource version: {wanted}, current: {newest}"),
    )
    .details(json!({"causes": [{"reason": "ResourceVersionTooLarge",
        "message": "Too large resource version"}], "retryAfterSeconds": 1}));
    failure.retry = Some(1);
    Err(failure)
}

/// What a client is shown of an object of `of`.
pub(crate) fn shown(of: &Resource, object: &Value) -> Value {
    if of.plural == "events" { event::shown(of, object.clone()) } else { object.clone() }
}

pub(crate) fn get(state: &State, target: &Target) -> Result<Value, Failure> {
    Ok(shown(&target.of, &*find(state, target)?))
}

/// Checks the options that list and watch share.
pub(crate) fn check_options(request: &Request, watch: bool) -> Result<(), Failure> {
    let how = request.param("resourceVersionMatch");
    let initial = !request.param("sendInitialEvents").is_empty();
    let field = "resourceVersionMatch";
    let mut causes = Vec::new();
    if watch && initial && how != "NotOlderThan" {
        causes.push(Cause::forbidden(
            field,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    } else if watch && !initial && !how.is_empty() {
        causes.push(Cause::forbidden(
            field,
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ));
        if how != "NotOlderThan" {
            causes.push(Cause::unsupported(field, &json!(how), &["NotOlderThan"]));
        }
    } else if !watch && !how.is_empty() && request.param("resourceVersion").is_empty() {
        causes.push(Cause::forbidden(
            field,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ));
    } else if !watch && !matches!(how, "" | "Exact" | "NotOlderThan") {
        causes.push(Cause::unsupported(field, &json!(how), &["Exact", "NotOlderThan", ""]));
    }
    if causes.is_empty() { Ok(()) } else { Err(Failure::options("ListOptions", &causes)) }
}

pub(crate) fn selector(of: &Resource, request: &Request) -> Result<Selector, Failure> {
    Selector::parse(of, request.param("labelSelector"), request.param("fieldSelector"))
}

/// Where a page begins: after this key, at this version; -1 is the newest.
struct Token {
    version: i64,
    after: String,
}

impl Token {
    fn read(text: &str) -> Result<Self, Failure> {
        let bad =
            |why: &str| Failure::bad(format!("invalid continue token: continue key is not valid: {why}"));
        let bytes = STANDARD_NO_PAD
            .decode(text.trim_end_matches('=').replace('-', "+").replace('_', "/"))
            .map_err(|error| bad(&error.to_string()))?;
        let json: Value = serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?;
        let start = json["start"].as_str().ok_or_else(|| bad("no start"))?;
        Ok(Self {
            version: json["rv"].as_i64().unwrap_or(-1),
            after: start.trim_start_matches('/').trim_end_matches('\0').to_owned(),
        })
    }

    fn write(version: i64, after: &str) -> String {
        let json = json!({"v": "meta.k8s.io/v1", "rv": version, "start": format!("/{after}\u{0}")});
        STANDARD_NO_PAD.encode(json.to_string())
    }
}

/// The list that a request asks for.
pub(crate) async fn list(store: &Store, target: &Target, request: &Request) -> Result<Value, Failure> {
    check_options(request, false)?;
    let of = &target.of;
    let selector = selector(of, request)?;
    let limit: usize = match request.param("limit") {
        "" => 0,
        text => text
            .parse()
            .map_err(|_| Failure::bad(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))?,
    };
    let asked = request.param("resourceVersion");
    let wanted = version_of(asked, false)?;
    let exact = request.param("resourceVersionMatch") == "Exact";
    not_too_new(store, wanted).await?;
    let token = match request.param("continue") {
        "" => None,
        text => Some(Token::read(text)?),
    };
    store.read(|state| {
        let mut at = state.version;
        let mut after = None;
        if let Some(token) = token {
            if let Ok(version) = u64::try_from(token.version) {
                if version < state.compacted {
                    let mut failure = Failure::expired(
                        "The provided continue parameter is too old to display a consistent list result. \
                         You can start a new list without the continue parameter, or use the continue token in \
                         this response to retrieve the remainder of the results. Continuing with the provided \
                         token results in an inconsistent list - objects that were created, modified, or deleted \
                         between the time the first chunk was returned and now may show up in the list.",
                    );
                    failure.metadata = Some(Box::new(json!({"continue": Token::write(-1, &token.after)})));
                    return Err(failure);
                }
                at = version;
            }
            after = Some(token.after);
        } else if exact {
            if wanted < state.compacted {
                return Err(Failure::expired("The resourceVersion for the provided list is too old."));
            }
            at = wanted;
        }
        // Version 0 is served from the cache, which knows no pages.
        let limit = if asked == "0" { 0 } else { limit };
        Ok(page(state, target, &selector, at, after.as_deref(), limit))
    })
}

fn page(
    state: &State,
    target: &Target,
    selector: &Selector,
    at: u64,
    after: Option<&str>,
    limit: usize,
) -> Value {
    let of = &target.of;
    let found: Vec<Arc<Value>> = if at == state.version {
        state.all(&of.store(), target.space.as_deref())
    } else {
        let objects = state.at(&of.store(), at).into_values();
        objects.filter(|it| target.space.as_deref().is_none_or(|s| s == namespace(it))).collect()
    };
    let key = |object: &Value| match (&target.space, of.namespaced) {
        (None, true) => format!("{}/{}", namespace(object), name(object)),
        _ => name(object).to_owned(),
    };
    let mut chosen: Vec<Arc<Value>> = found
        .into_iter()
        .filter(|it| after.is_none_or(|after| key(it).as_str() > after))
        .filter(|it| selector.matches(it))
        .collect();
    let mut meta = json!({"resourceVersion": at.to_string()});
    if limit > 0 && chosen.len() > limit {
        let left = chosen.len() - limit;
        chosen.truncate(limit);
        let last = chosen.last().map(|it| key(it)).unwrap_or_default();
        meta["continue"] = json!(Token::write(i64::try_from(at).unwrap_or(-1), &last));
        if selector.is_empty() {
            meta["remainingItemCount"] = json!(left);
        }
    }
    let items: Vec<Value> = chosen
        .iter()
        .map(|object| {
            let mut item = shown(of, object);
            if of.custom.is_none() {
                drop_field(&mut item, "kind");
                drop_field(&mut item, "apiVersion");
            }
            item
        })
        .collect();
    json!({"kind": of.list_kind, "apiVersion": of.api_version(), "metadata": meta, "items": items})
}
