//! Spaces: a cloud IDE. A person picks a template and a size, starts a space,
//! and opens it in the browser under `/ws/<sid>/`.

mod kind;
mod launch;
mod observer;
mod quantity;
mod resolve;
mod seed;
mod space;
mod spec;
mod tasks;
mod template;
mod terminal;

use std::sync::Arc;
use std::time::Duration;

use podyard::worker::Pool;
use podyard_driver::Driver;

pub use kind::Kind;
pub use observer::observe;
pub use quantity::Quantity;
pub use resolve::{Place, resolve};
pub use seed::seed;
pub use space::Space;
pub use spec::Spec;
pub use template::Template;
pub use terminal::{Closed, Whose, note_closed, open_terminal, terminal_space};

podyard::catalogue!(Chinese, "i18n/zh.toml");
podyard::migrations!("spaces", "../../migrations/spaces", "../../migrations/spaces");

/// Logs that are read at once, and that may wait.
const LOGS: (usize, usize) = (4, 64);

/// What the spaces service is set to.
#[derive(Debug, Clone)]
pub struct SpacesOptions {
    /// Most spaces of one user.
    pub max_spaces: i64,
    /// Most spaces of one user that run at once; 0: as many as there are.
    pub max_running: i64,
    /// How long a program may take until it answers.
    pub start_timeout: Duration,
    /// How long a program may take to end when asked, before it is killed.
    pub stop_grace: Duration,
    /// The name of this machine in the rows.
    pub node: String,
}

impl Default for SpacesOptions {
    /// The originals' limits: 20 spaces, one running; 60 s to start.
    fn default() -> Self {
        Self {
            max_spaces: 20,
            max_running: 1,
            start_timeout: Duration::from_secs(60),
            stop_grace: Duration::from_secs(10),
            node: "localhost".into(),
        }
    }
}

/// The spaces service of a process: what hooks and tasks need of the outside.
pub struct Spaces {
    /// Settings.
    pub options: SpacesOptions,
    /// What runs the programs.
    pub driver: Arc<dyn Driver>,
    waiters: observer::Waiters,
    /// Reading logs off the disk.
    pub(crate) logs: Pool,
}

impl Spaces {
    /// Over a driver.
    #[must_use]
    pub fn new(options: SpacesOptions, driver: Arc<dyn Driver>) -> Self {
        Self {
            options,
            driver,
            waiters: observer::Waiters::default(),
            logs: Pool::new("logs", LOGS.0, LOGS.1),
        }
    }
}
