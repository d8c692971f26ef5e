//! Spaces: a cloud IDE. A person picks a template and a size, starts a space,
//! and opens it in the browser under `/ws/<sid>/`.

mod container;
mod happenings;
mod http;
mod kind;
mod launch;
mod observer;
mod quantity;
mod resolve;
mod seats;
mod seed;
mod space;
mod spec;
mod tasks;
mod template;
mod terminal;

use std::sync::Arc;
use std::time::Duration;

use podyard::worker::Pool;
use podyard::{Error, Result};
use podyard_driver::Driver;

pub use container::ContainerField;
pub use http::configure;
pub use kind::Kind;
pub use observer::observe;
pub use quantity::Quantity;
pub use resolve::{Place, resolve};
pub use seats::{Full, Seat, Seats};
pub use seed::seed;
pub use space::Space;
pub use spec::Spec;
pub use template::Template;
pub use terminal::{Closed, Whose, note_closed, open_terminal, terminal_space};

podyard::catalogue!(Chinese, "i18n/zh.toml");
podyard::migrations!("spaces", "../../migrations/spaces", "../../migrations/spaces");

/// The driver of programs of this machine.
pub(crate) const PROCESS: &str = "process";
/// The driver of containers in a cluster.
pub(crate) const KUBERNETES: &str = "kubernetes";

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
    /// The image of Podyard itself, for the built-in template on Kubernetes.
    pub image: Option<String>,
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
            image: None,
        }
    }
}

/// The spaces service of a process: what hooks and tasks need of the outside.
pub struct Spaces {
    /// Settings.
    pub options: SpacesOptions,
    /// What runs the programs, each with the starts that wait for it; the
    /// first is for templates that name none.
    drivers: Vec<(Arc<dyn Driver>, Arc<observer::Waiters>)>,
    /// Reading logs off the disk.
    pub(crate) logs: Pool,
    /// Who follows logs.
    pub(crate) followers: Arc<Seats>,
}

impl Spaces {
    /// Over some drivers, each of another name; the first is for templates
    /// that name none.
    #[must_use]
    pub fn new(options: SpacesOptions, drivers: Vec<Arc<dyn Driver>>) -> Self {
        let drivers = drivers.into_iter().map(|it| (it, Arc::default())).collect();
        let logs = Pool::new("logs", LOGS.0, LOGS.1);
        Self { options, drivers, logs, followers: Arc::default() }
    }

    fn find(&self, name: &str) -> Result<&(Arc<dyn Driver>, Arc<observer::Waiters>)> {
        let found = self.drivers.iter().find(|(it, _)| it.name() == name);
        found.ok_or_else(|| Error::unavailable(format!("the driver {name} is not here"), 5))
    }

    /// The driver of that name.
    ///
    /// # Errors
    /// 503: another process may have it.
    pub fn driver(&self, name: &str) -> Result<&Arc<dyn Driver>> {
        self.find(name).map(|(driver, _)| driver)
    }

    pub(crate) fn waiters(&self, name: &str) -> Result<&observer::Waiters> {
        self.find(name).map(|(_, waiters)| &**waiters)
    }

    pub(crate) fn driven(&self) -> &[(Arc<dyn Driver>, Arc<observer::Waiters>)] {
        &self.drivers
    }

    /// Ends the logs that are followed, which would not end of themselves, and takes no more.
    pub fn shut_down(&self) {
        self.followers.shut_down();
    }

    /// The process ends: other processes take over what this one looked after.
    pub async fn close(&self) {
        for (driver, _) in &self.drivers {
            driver.close().await;
        }
    }

    /// The name of the driver for templates that name none.
    #[must_use]
    pub fn default_driver(&self) -> &'static str {
        self.drivers.first().map_or(PROCESS, |(it, _)| it.name())
    }
}
