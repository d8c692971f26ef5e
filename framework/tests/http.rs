//! HTTP's habits that no service of ours has a use for yet: actions on their
//! way out, and a stream under a HEAD.
#![expect(clippy::unwrap_used, reason = "a test may stop at once")]

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{Method, StatusCode};
use actix_web::middleware::from_fn;
use actix_web::{HttpResponse, test, web};
use podyard::Core;
use podyard::auth::{Access, Authenticator, UserCred};
use podyard::db::{self, DatabaseUrl, Db, Options, Sql};
use podyard::http::{App, HttpOptions};
use podyard::prelude::*;
use serde_json::{Value, json};

/// A lamp.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "lamp", plural = "lamps", read = "user", write = "user")]
pub struct Lamp {
    /// The base.
    pub base: StandaloneBase,
}

impl Manager for Lamp {}
impl Model for Lamp {}

#[actions]
impl Lamp {
    /// Switches it on, as it was done once.
    #[action(deprecated = "2026-11-21", sunset = "2027-06-30", successor = "switch")]
    fn perform_light(&mut self, _: &mut Tx<'_>) -> Result<()> {
        Ok(())
    }

    /// Switches it on.
    fn perform_switch(&mut self, _: &mut Tx<'_>) -> Result<()> {
        Ok(())
    }

    /// Counts them, no longer for long.
    #[action(deprecated = "2026-01-01")]
    fn get_property_number(_: &mut Tx<'_>) -> Result<i64> {
        Ok(1)
    }
}

const TABLE: &str = "CREATE TABLE lamps (id TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, \
     created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL)";

/// Everybody with a token is the platform.
struct Anybody;

impl Authenticator for Anybody {
    fn authenticate(&self, _: &str) -> Option<Arc<UserCred>> {
        Some(Arc::new(UserCred { level: Access::Admin, ..UserCred::system() }))
    }
}

fn app(folder: &std::path::Path, options: HttpOptions) -> web::Data<App> {
    let url = DatabaseUrl::Sqlite(folder.join("db"));
    db::migrate(&url).unwrap();
    let db = Db::open(&url, Options::default()).unwrap();
    db.write_blocking(|conn| db::execute(conn, &Sql::new(TABLE)).map(|_| ())).unwrap();
    let core = Core::new(db, Arc::new(Anybody));
    web::Data::new(App::new(Arc::new(core), options))
}

macro_rules! serve {
    ($app:expr) => {
        test::init_service(
            actix_web::App::new()
                .wrap(from_fn(podyard::http::manners))
                .app_data($app)
                .route("/endless", web::get().to(endless))
                .configure(podyard::http::configure),
        )
        .await
    };
}

/// Lines without end.
async fn endless() -> HttpResponse {
    let line = || Ok::<_, std::io::Error>(web::Bytes::from_static(b"data: 1\n\n"));
    let lines = futures_util::stream::repeat_with(line);
    HttpResponse::Ok().content_type("text/event-stream").streaming(lines)
}

fn ask(method: Method, path: &str) -> test::TestRequest {
    test::TestRequest::with_uri(path).method(method).insert_header(("X-Auth-Token", "x"))
}

#[actix_web::test]
async fn deprecated_actions_say_so_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let service = serve!(app(folder.path(), HttpOptions::default()));
    let new = ask(Method::POST, "/lamps").set_json(json!({"name": "a b"})).to_request();
    let made: Value = test::call_and_read_body_json(&service, new).await;
    let id = made["lamp"]["id"].as_str().unwrap().to_owned();

    let answer =
        test::call_service(&service, ask(Method::POST, &format!("/lamps/{id}/light")).to_request()).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let header = |name: &str| answer.headers().get(name).and_then(|it| it.to_str().ok()).unwrap_or_default();
    assert_eq!(header("deprecation"), "@1795219200");
    assert_eq!(header("sunset"), "Wed, 30 Jun 2027 00:00:00 GMT");
    let instead = format!("</lamps/{}/switch>; rel=\"successor-version\"", id.replace('-', "%2D"));
    assert_eq!(header("link"), instead);

    // Also where it is refused, and without a successor or an end.
    let answer = test::call_service(&service, ask(Method::POST, "/lamps/none/light").to_request()).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(answer.headers().contains_key("deprecation"));
    let answer = test::call_service(&service, ask(Method::GET, "/lamps/number").to_request()).await;
    assert!(answer.headers().contains_key("deprecation"));
    assert!(!answer.headers().contains_key("sunset") && !answer.headers().contains_key("link"));
    let answer =
        test::call_service(&service, ask(Method::POST, &format!("/lamps/{id}/switch")).to_request()).await;
    assert!(!answer.headers().contains_key("deprecation"));

    let document: Value =
        test::call_and_read_body_json(&service, ask(Method::GET, "/openapi.json").to_request()).await;
    assert_eq!(document["paths"]["/lamps/{id}/light"]["post"]["deprecated"], true);
    assert!(document["paths"]["/lamps/{id}/switch"]["post"].get("deprecated").is_none());
    let about: Value =
        test::call_and_read_body_json(&service, ask(Method::GET, "/resources/lamps").to_request()).await;
    let actions = about["resource"]["actions"].as_array().unwrap();
    let light = actions.iter().find(|it| it["name"] == "light").unwrap();
    assert_eq!(
        light["deprecated"],
        json!({"since": "2026-11-21", "sunset": "2027-06-30", "successor": "switch"})
    );
}

#[actix_web::test]
async fn the_head_of_a_stream_has_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let service = serve!(app(folder.path(), HttpOptions::default()));
    let gzip = ("Accept-Encoding", "gzip");
    let head = ask(Method::HEAD, "/endless").insert_header(gzip).to_request();
    let answer = test::call_service(&service, head).await;
    assert_eq!(answer.headers().get("content-type").unwrap(), "text/event-stream");
    assert!(!answer.headers().contains_key("content-encoding"));
    let body = tokio::time::timeout(Duration::from_secs(10), test::read_body(answer)).await;
    assert!(body.expect("it has an end").is_empty());
    // A stream is never compressed either.
    let get = ask(Method::GET, "/endless").insert_header(gzip).to_request();
    let answer = test::call_service(&service, get).await;
    assert!(!answer.headers().contains_key("content-encoding"));
}
