//! `POST /tasks/<id>`: the outside tells a task what it waits for. The one-time
//! token is the right to it, so no login is asked for, and nothing is told
//! but whether the callback was taken.

use actix_web::{HttpRequest, HttpResponse, web};
use schemars::SchemaGenerator;
use serde_json::{Value, json};

use super::{App, json as answer, request};
use crate::ctx::Ctx;
use crate::model::{self, ActionInput};
use crate::task::{CallbackInput, Received, expect_token};
use crate::{Error, Kind, Result};

/// Most bytes that a callback may bring.
const LIMIT: usize = 256 * 1024;
/// The header that the token may stand in.
const HEADER: &str = "X-Callback-Token";

inventory::submit! {
    super::ExtraPaths { paths }
}

/// The task that a request calls back; anything but a task's id is an action
/// or nothing, and the dispatcher's.
pub(super) fn task_of(req: &HttpRequest) -> Option<String> {
    let id = req.uri().path().strip_prefix("/tasks/")?;
    let it = *req.method() == actix_web::http::Method::POST && uuid::Uuid::try_parse(id).is_ok();
    it.then(|| id.to_owned())
}

/// The token and what it brings: in header or parameter, then the whole body
/// is the data; or both in the body.
fn read(req: &HttpRequest, body: &[u8]) -> Result<CallbackInput> {
    let mut token = req.headers().get(HEADER).map(|it| it.to_str().unwrap_or_default().to_owned());
    for (key, value) in request::query_params(req.query_string())? {
        match key.as_ref() {
            "token" if token.is_none() => token = Some(value.into_owned()),
            "token" => return Err(Error::field("token", "is given twice")),
            key => return Err(Error::field(key, "is not a known parameter")),
        }
    }
    let Some(token) = token else {
        return model::read_input(&ActionInput::from_entries(model::entries(
            body,
            "callback",
            "callbacks",
        )?)?);
    };
    let data = match body {
        [] => Value::Null,
        body => serde_json::from_slice(body).map_err(|e| Error::field("body", e.to_string()))?,
    };
    Ok(CallbackInput { token, data })
}

pub(super) async fn take(
    req: &HttpRequest,
    payload: web::Payload,
    app: &App,
    id: &str,
    task: String,
) -> Result<HttpResponse> {
    let body = request::read_body(req, payload, LIMIT.min(app.options.body_limit)).await?;
    let input = read(req, &body)?;
    if !input.token.starts_with(&format!("{task}.")) {
        return Err(Error::new(Kind::NotFound, "there is no such callback token"));
    }
    let ctx = Ctx::system(&app.core).from_address(super::address(req, app.options.trust_forwarded));
    expect_token(&ctx, &input.token).await?;
    let work = ctx.write(None, move |tx| tx.callback(&input.token, &input.data));
    let Ok(done) = tokio::time::timeout(app.options.timeout, work).await else {
        let seconds = app.options.timeout.as_secs_f64();
        let text = format!("it took longer than {seconds} s; a change may have been made all the same");
        return Err(Error::new(Kind::Timeout, text));
    };
    Ok(match done?.value {
        Received::Resumed => answer(200, &json!({"callback": "taken"}), id),
        Received::Early => answer(202, &json!({"callback": "kept"}), id),
    })
}

fn paths(generator: &mut SchemaGenerator) -> Vec<(&'static str, Value)> {
    let input = json!(generator.subschema_for::<CallbackInput>());
    let problem = json!({"$ref": "#/components/responses/Problem"});
    let told = |text: &str, word: &str| {
        json!({"description": text, "content": {"application/json": {"schema": {
            "type": "object", "required": ["callback"], "properties": {"callback": {"const": word}},
        }}}})
    };
    vec![(
        "/tasks/{id}",
        json!({"post": {
            "operationId": "tasks.call_back", "tags": ["tasks"], "security": [],
            "summary": "Tells a task what it waits for; the one-time token is the right to it",
            "parameters": [
                {"name": "token", "in": "query", "schema": {"type": "string"},
                 "description": "The token, if it is not in the body; then the whole body is the data."},
                {"name": HEADER, "in": "header", "schema": {"type": "string"},
                 "description": "The token, if it is neither in the body nor a parameter."},
            ],
            "requestBody": {"content": {"application/json": {"schema": input}}},
            "responses": {
                "200": told("The task goes on.", "taken"),
                "202": told("It came before the task waits, and is kept for it.", "kept"),
                // Whatever is no task's id is an action, which asks for a login.
                "400": problem.clone(), "401": problem.clone(), "404": problem.clone(), "408": problem.clone(), "409": problem.clone(),
                "413": problem.clone(), "415": problem.clone(), "429": problem.clone(), "500": problem.clone(),
                "503": problem,
            },
        }}),
    )]
}
