//! What the black-box tests and their helper share: a PostgreSQL of their own.
//! The tests themselves are in `outside/`.

pub mod messages;
#[cfg(feature = "mysql")]
pub mod mysql;
pub mod postgres;
