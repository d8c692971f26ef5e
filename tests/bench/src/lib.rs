//! The benchmarks of Podyard: what the framework costs beside code written by hand.
//!
//! `bench` is the tool; it starts a server of one table written by hand (`yardstick`) and the
//! same table as a resource of the framework (`bench-podyard`), drives both over HTTP, and
//! prints what each request cost. This library holds the parts that the tool is made of.

pub mod engine;
pub mod http;
pub mod load;
pub mod peers;
pub mod postgres;
pub mod process;
pub mod report;
pub mod rest;
pub mod startup;
pub mod tasks;

/// Why a benchmark could not be run.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// The result of all that can fail here.
pub type Result<T> = std::result::Result<T, Fault>;
