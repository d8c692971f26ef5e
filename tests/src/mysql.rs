//! The MySQL or MariaDB server that the tests use. `build/test` starts one.

use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, MysqlConnection};

/// The variable that names the server.
pub const URL_VARIABLE: &str = "PODYARD_TEST_MYSQL_URL";

/// The server of the environment.
///
/// # Errors
/// A sentence that says which variable is missing.
pub fn url() -> Result<String, String> {
    std::env::var(URL_VARIABLE).map_err(|_| {
        format!(
            "{URL_VARIABLE} must name a server, like mysql://root@127.0.0.1:3306/mysql; build/test starts one"
        )
    })
}

/// Makes a session take the SQL that the other databases take, and lock as little as Podyard's do.
pub const SESSION: &str = "SET SESSION sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES' \
     /*M! , max_recursive_iterations = 10000000 */ /*!80000 , cte_max_recursion_depth = 10000000 */; \
     SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// Runs SQL on a server, of the kind that the others take too.
///
/// # Errors
/// What MySQL said.
pub fn execute(url: &str, sql: &str) -> Result<(), String> {
    let mut connection = MysqlConnection::establish(url).map_err(|error| format!("{url}: {error}"))?;
    connection.batch_execute(SESSION).map_err(|error| format!("{SESSION}: {error}"))?;
    connection.batch_execute(sql).map_err(|error| format!("{sql}: {error}"))
}
