//! The page `docs/add-a-resource.md`, followed: its file, which stands beside
//! this one, compiles, and its migration and its struct agree.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bookmark;

use podyard::db::{self, DatabaseUrl, Db, Options};

/// The first block of a language.
fn block<'a>(page: &'a str, language: &str) -> &'a str {
    let open = format!("```{language}\n");
    page.split(&open).nth(1).and_then(|rest| rest.split("```").next()).unwrap()
}

const PAGE: &str = include_str!("../../../docs/add-a-resource.md");

#[test]
fn the_page_has_the_file() {
    let file = include_str!("bookmark.rs");
    assert!(file.lines().count() < 60, "a type is one file under 60 lines");
    assert_eq!(
        block(PAGE, "rust"),
        file,
        "docs/add-a-resource.md and framework/tests/page/bookmark.rs differ"
    );
}

#[test]
fn its_migration_agrees_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(&DatabaseUrl::Sqlite(folder.path().join("db")), Options::default()).unwrap();
    db.write_blocking(|conn| {
        for statement in block(PAGE, "sql").split(";\n").filter(|it| !it.trim().is_empty()) {
            db::execute(conn, &db::Sql::new(statement))?;
        }
        Ok(())
    })
    .unwrap();
    let registry = podyard::registry::Registry::collect();
    let meta = registry.get("bookmarks").unwrap().handler.meta();
    let differences = db.read_blocking(move |conn| db::differences(conn, meta)).unwrap();
    assert!(differences.is_empty(), "{differences:#?}");
}
