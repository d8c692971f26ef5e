//! The resource types of this installation: each file in `types/` is one, and
//! its tables come from `migrations/site`, whose SQL all databases understand.
//! How to add one: docs/add-a-resource.md.

include!(concat!(env!("OUT_DIR"), "/types.rs"));

podyard::migrations!("site", "../../migrations/site", "../../migrations/site");
