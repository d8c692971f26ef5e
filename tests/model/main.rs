//! Models.
mod callback;
mod lane;
mod lease;
mod search;
