//! The task engine's protocols as models, searched in full for small sizes:
//! each interleaving of a few transactions, deaths and lost answers, where a
//! test of the engine itself only meets the few that happen. The models are
//! written after the engine's statements and have its names; nothing checks
//! that they say the same, so who changes one of the files that a model names
//! changes the model.
//!
//! Each model has planted bugs as its parameters, and a test for each that the
//! search finds it: a model that cannot fail proves nothing.

mod callback;
mod fan_in;
mod lane;
mod lease;
mod search;
mod table;
