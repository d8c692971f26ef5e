//! Models.
mod callback;
mod lease;
mod search;
