//! Spaces on Kubernetes: a pod and a claim for each.
//!
//! [`KubernetesDriver`] is the driver. What it makes of a space is said in one
//! place (`pod`, `claim`), what it knows comes from two watches
//! (`watches`, `cache`), and what a cluster's answers mean is told in words (`why`).

mod allowed;
mod background;
mod cache;
mod change;
mod claim;
mod controller;
mod custom;
mod doctor;
mod driver;
mod error;
mod events;
mod exec;
mod guard;
mod known;
mod lease;
mod log;
mod names;
mod options;
mod patch;
mod pod;
mod quantity;
mod seen;
mod space;
mod through;
mod watches;
mod why;

pub use controller::control;
pub use doctor::{Check, Level, doctor};
pub use driver::KubernetesDriver;
pub use options::{Options, Reach, Way};
pub use space::{GitRepository, Space, SpaceSpec, SpaceStatus, Variable, crd};
