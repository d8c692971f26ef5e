//! Models.
mod callback;
mod fan_in;
mod lane;
mod lease;
mod search;
