//! `GET /workers`: the pools of this process, for administrators.

use actix_web::{HttpRequest, HttpResponse, web};
use schemars::SchemaGenerator;
use serde_json::{Value, json};

use super::{App, authenticate, json as answer, problem, request, request_id};
use crate::auth::Access;
use crate::worker::{Report, reports};
use crate::{Error, Result, policy};

inventory::submit! {
    super::ExtraPaths { paths }
}

fn allowed(app: &App, req: &HttpRequest) -> Result<()> {
    let cred = authenticate(&app.core, req)?;
    policy::require(&cred, Access::Admin, "to list workers")?;
    match request::query_params(req.query_string())?.first() {
        Some((key, _)) => Err(Error::field(key.clone().into_owned(), "is not a known parameter")),
        None => Ok(()),
    }
}

fn respond(req: &HttpRequest, result: Result<Value>) -> HttpResponse {
    let id = request_id(req);
    match result {
        Ok(value) => answer(200, &value, &id),
        Err(error) => problem(&error, req, &id),
    }
}

pub(super) async fn list(req: HttpRequest, app: web::Data<App>) -> HttpResponse {
    let result = allowed(&app, &req).map(|()| json!({"workers": reports()}));
    respond(&req, result)
}

pub(super) async fn get(req: HttpRequest, name: web::Path<String>, app: web::Data<App>) -> HttpResponse {
    let found = || reports().into_iter().find(|it| it.name == *name);
    let result = allowed(&app, &req).and_then(|()| {
        let worker = found().ok_or_else(|| Error::not_found("worker", &name))?;
        Ok(json!({"worker": worker}))
    });
    respond(&req, result)
}

fn paths(generator: &mut SchemaGenerator) -> Vec<(&'static str, Value)> {
    let report = json!(generator.subschema_for::<Report>());
    let problem = json!({"$ref": "#/components/responses/Problem"});
    let operation = |id: &str, summary: &str, key: &str, schema: Value| {
        json!({"get": {
            "operationId": id, "tags": ["platform"], "summary": summary,
            "responses": {
                "200": {"description": "What they do now.", "content": {"application/json": {"schema": {
                    "type": "object", "required": [key], "properties": {key: schema},
                }}}},
                "400": problem.clone(), "401": problem.clone(), "403": problem.clone(), "404": problem.clone(),
            },
        }})
    };
    let all = json!({"type": "array", "items": report.clone()});
    let mut one = operation("workers.get", "One pool of this process", "worker", report);
    one["parameters"] = json!([{
        "name": "name", "in": "path", "required": true, "schema": {"type": "string"}, "description": "Its name.",
    }]);
    vec![
        ("/workers", operation("workers.list", "The pools of this process", "workers", all)),
        ("/workers/{name}", one),
    ]
}
