//! The page `docs/add-a-resource.md`, followed: its file compiles, and its
//! migration and its struct agree.

use std::path::Path;

/// The blocks of a language, in order.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let open = format!("```{language}\n");
    page.split(&open).skip(1).filter_map(|rest| rest.split("```").next().map(str::to_owned)).collect()
}

const MAIN: &str = r#"
fn main() {
    use podyard::db::{self, Cost, DatabaseUrl, Db, Options};
    let folder = tempfile::tempdir().expect("a folder");
    let db = Db::open(&DatabaseUrl::Sqlite(folder.path().join("db")), Options::default()).expect("a database");
    db.write_blocking(|conn| {
        for statement in SQL.split(";\n").filter(|it| !it.trim().is_empty()) {
            db::execute(conn, &db::Sql::new(statement))?;
        }
        Ok(())
    })
    .expect("the migration runs");
    let registry = podyard::registry::Registry::collect();
    let meta = registry.get("bookmarks").expect("it is registered").handler.meta();
    let differences = db.read_blocking(move |conn| db::differences(conn, meta)).expect("it can be compared");
    assert!(differences.is_empty(), "{differences:#?}");
    let _ = Cost::Bounded;
}
"#;

#[test]
fn the_page_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/add-a-resource.md")).unwrap();
    let file = blocks(&page, "rust").remove(0);
    assert!(file.lines().count() < 60, "a type is one file under 60 lines");
    let up = blocks(&page, "sql").remove(0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bookmark.rs");
    std::fs::write(&path, format!("{file}\nconst SQL: &str = {up:?};\n{MAIN}")).unwrap();
    trybuild::TestCases::new().pass(&path);
}
