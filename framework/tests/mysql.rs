//! What is MySQL's own: definitions that are written for all databases, and
//! texts that compare as on the others. On the server that
//! `PODYARD_TEST_MYSQL_URL` names, with the feature `mysql`.
#![cfg(feature = "mysql")]
#![expect(clippy::unwrap_used, reason = "a test may stop at once")]

use diesel::connection::{Connection as _, SimpleConnection as _};
use podyard::db::{self, AnyConnection, DatabaseUrl, Db, Options, Sql};
use podyard::{Error, Kind};

struct Database {
    server: String,
    name: String,
    url: DatabaseUrl,
}

impl Database {
    /// None: no server is named.
    fn new() -> Option<Self> {
        let server = std::env::var("PODYARD_TEST_MYSQL_URL").ok()?;
        let name = format!("test_{}", podyard::new_id().replace('-', ""));
        let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0).parse().unwrap();
        let it = Self { server, name, url };
        it.on_server(&format!("CREATE DATABASE {}", it.name));
        Some(it)
    }

    fn on_server(&self, sql: &str) {
        diesel::MysqlConnection::establish(&self.server).unwrap().batch_execute(sql).unwrap();
    }

    fn open(&self) -> Db {
        Db::open(&self.url, Options { pool: 4, ..Options::default() }).unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.on_server(&format!("DROP DATABASE {}", self.name));
    }
}

fn run(conn: &mut AnyConnection, sql: &str) -> Result<usize, Error> {
    db::execute(conn, &Sql::new(sql.to_owned()))
}

fn number(conn: &mut AnyConnection, sql: &'static str) -> i64 {
    db::load_one::<(i64,)>(conn, Sql::new(sql)).unwrap().unwrap().0
}

/// `CREATE`, and then what a later migration would add.
const TABLE: &str = "CREATE TABLE things (id TEXT PRIMARY KEY NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL, \
     note TEXT NOT NULL DEFAULT 'it''s; so', mark TEXT, deleted BOOLEAN NOT NULL);\n\
     CREATE UNIQUE INDEX things__name_key ON things (key, name) WHERE deleted = FALSE;";
const LATER: &str = "ALTER TABLE things ADD COLUMN rank BIGINT NOT NULL DEFAULT 7;\n\
     CREATE UNIQUE INDEX things__mark_key ON things (mark) WHERE deleted = FALSE;\n\
     CREATE INDEX things_note ON things (note);\n\
     CREATE TRIGGER things_more AFTER INSERT ON things BEGIN INSERT INTO seen VALUES (NEW.id); END;";

#[test]
fn definitions_for_all_databases_mean_the_same() {
    let Some(database) = Database::new() else { return };
    let db = database.open();
    let made = db.write_blocking(|conn| {
        db::define(conn, TABLE)?;
        db::define(conn, "CREATE TABLE seen (id TEXT NOT NULL);")?;
        db::define(conn, LATER)
    });
    made.unwrap();
    let insert = |id: &str, name: &str, mark: &str, deleted: bool| {
        let sql = format!(
            "INSERT INTO \"things\" (\"id\", \"key\", \"name\", \"mark\", \"deleted\") \
             VALUES ('{id}', 'k', '{name}', '{mark}', {deleted})"
        );
        db.write_blocking(move |conn| run(conn, &sql))
    };
    insert("1", "a", "m1", false).unwrap();
    // Case counts, and so does a space at the end.
    insert("2", "A", "m2", false).unwrap();
    insert("3", "a ", "m3", false).unwrap();
    for (id, name, mark, field) in
        [("4", "a", "m4", "name"), ("4", "b", "m1", "mark"), ("1", "c", "m5", "id")]
    {
        let error = insert(id, name, mark, false).unwrap_err();
        assert_eq!(
            (error.kind(), error.field_errors()[0].field.as_str()),
            (Kind::Conflict, field),
            "{error}"
        );
    }
    // Deleted rows hold no name.
    insert("5", "a", "m1", true).unwrap();
    insert("6", "a", "m1", true).unwrap();
    let error = insert("7", &"x".repeat(256), "m7", false).unwrap_err();
    assert_eq!((error.kind(), error.field_errors()[0].field.as_str()), (Kind::BadRequest, "name"), "{error}");
    let checks = db.read_blocking(|conn| {
        assert_eq!(number(conn, "SELECT COUNT(*) FROM seen"), 5);
        assert_eq!(number(conn, "SELECT COUNT(*) FROM things WHERE \"name\" = 'a'"), 3);
        assert_eq!(
            number(conn, "SELECT COUNT(*) FROM things WHERE \"rank\" = 7 AND \"note\" = 'it''s; so'"),
            5
        );
        // A backslash is a backslash, and `||` puts texts together.
        let like = "SELECT COUNT(*) FROM things WHERE 'a_c' LIKE 'a\\_c' ESCAPE '\\' AND 'a' || '\\' = 'a\\'";
        assert_eq!(number(conn, like), 5);
        Ok(())
    });
    checks.unwrap();
    db.write_blocking(|conn| db::define(conn, "DROP INDEX things__mark_key; DROP INDEX IF EXISTS no_such;"))
        .unwrap();
    insert("8", "d", "m1", false).unwrap();
}

/// To MySQL a deadlock ends one of the transactions, and what it does after
/// is another: none of it may stand, even if the error is not heeded.
#[test]
fn who_lost_a_deadlock_commits_nothing() {
    let Some(database) = Database::new() else { return };
    let db = database.open();
    db.write_blocking(|conn| {
        db::define(conn, "CREATE TABLE pairs (id TEXT PRIMARY KEY NOT NULL, n BIGINT NOT NULL);")?;
        run(conn, "INSERT INTO pairs VALUES ('a', 0), ('b', 0), ('after', 0)")
    })
    .unwrap();
    let barrier = std::sync::Arc::new(std::sync::Barrier::new(2));
    let results: Vec<_> = std::thread::scope(|scope| {
        let run_one = |first: &'static str, then: &'static str| {
            let (db, barrier) = (db.clone(), barrier.clone());
            scope.spawn(move || {
                db.write_blocking(move |conn| {
                    let add = |id| format!("UPDATE pairs SET n = n + 1 WHERE id = '{id}'");
                    run(conn, &add(first))?;
                    barrier.wait();
                    // Whether that fails or not, it goes on.
                    let _ = run(conn, &add(then));
                    run(conn, &add("after"))
                })
            })
        };
        let threads = [run_one("a", "b"), run_one("b", "a")];
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let lost: Vec<_> = results.iter().filter_map(|it| it.as_ref().err()).collect();
    assert_eq!(lost.len(), 1, "{results:?}");
    assert_eq!(lost[0].kind(), Kind::Unavailable);
    let sums = db.read_blocking(|conn| {
        let of = |conn: &mut AnyConnection, sql| number(conn, sql);
        Ok((of(conn, "SELECT SUM(n) FROM pairs"), of(conn, "SELECT n FROM pairs WHERE id = 'after'")))
    });
    assert_eq!(sums.unwrap(), (3, 1));
}

/// Two at once, and then nothing is left to do; undone, nothing is left.
#[test]
fn migrations_run_once_and_can_be_undone() {
    let Some(database) = Database::new() else { return };
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(|| db::migrate(&database.url).unwrap()));
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert!(done[0].is_empty() != done[1].is_empty(), "{done:?}");
    assert!(db::pending(&database.url).unwrap().is_empty());
    let all = done.concat();
    let mut undone = db::revert(&database.url).unwrap();
    undone.reverse();
    assert_eq!(all, undone);
    assert_eq!(db::migrate(&database.url).unwrap(), all);
}
