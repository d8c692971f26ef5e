//! Black-box tests: each starts the real `podyard` binary as a process and
//! talks to it as anybody would, once on SQLite, once on PostgreSQL and, with
//! the cargo feature `mysql`, once on MySQL.
//!
//! `PODYARD_BIN` names the binary (else it is built) and `PODYARD_MYSQL_BIN` the one
//! for the tests on MySQL (else that one, too), `PODYARD_TEST_POSTGRES_URL`
//! a PostgreSQL (else the tests start one), `PODYARD_TEST_DATABASES=sqlite`
//! leaves PostgreSQL out, `PODYARD_TEST_MYSQL_URL` names a MySQL or MariaDB,
//! `UPDATE_SNAPSHOTS=1` rewrites what is in `snapshots/`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[macro_use]
mod harness;

mod auth;
mod bad_input;
mod bases;
mod caches;
mod cluster_controller;
mod cluster_failures;
mod cluster_scale;
mod cluster_terminals;
mod clusters;
mod corners;
mod crash;
mod drivers;
mod events;
mod exports;
mod filters;
mod fuzz;
mod gateway;
mod http;
mod idempotency;
mod languages;
mod limits;
mod lists;
mod logs;
mod model;
mod openapi;
mod operations;
mod programs;
mod quotas;
mod runtime_changes;
mod runtime_types;
mod statements;
mod story;
mod strangers;
mod tasks;
mod terminal;
mod terminal_command;
mod terminal_flow;
mod watch;
mod webhooks;
mod workers;
mod writes;
