//! Templates: what a space runs.

use podyard::prelude::*;
use podyard_driver::Container;

use crate::{ContainerField, KUBERNETES, Spaces};

/// What a space runs: a program and how it is started.
#[derive(Debug, Clone, Default, Resource)]
#[resource(
    keyword = "template",
    plural = "templates",
    read = "user",
    write = "admin",
    cached,
    extra(
        kind = "Name of its kind.",
        available = "Whether its program can be run here.",
        unavailable_reason = "Why not."
    )
)]
pub struct Template {
    /// Name and description.
    pub base: StandaloneBase,
    /// The kind that it belongs to.
    #[field(list = "user", create = "required", update = "admin", references = "kind")]
    pub kind_id: String,
    /// What runs it; the server's first driver if not given.
    #[field(list = "user", create = "optional", choices("process", "kubernetes"), max = 32)]
    pub driver: String,
    /// The program and its arguments; `{port}`, `{dir}`, `{base}` and `{podyard}` are replaced. May be empty for a container.
    #[field(list = "admin", create = "optional", update = "admin", max = 65536)]
    pub command: Vec<String>,
    /// More environment for the program, as `NAME=value`.
    #[field(list = "admin", create = "optional", update = "admin", max = 65536)]
    pub env: Vec<String>,
    /// The container, for the driver kubernetes.
    #[field(list = "admin", create = "optional", update = "admin", max = 65536)]
    pub container: Option<ContainerField>,
    /// How long it may take until it is ready, in seconds; the server's own setting if not given.
    #[field(list = "user", create = "optional", update = "admin")]
    pub start_limit: Option<i32>,
    /// Whether its program serves under `{base}` itself, so that the gateway leaves the path as it is.
    #[field(list = "user", create = "optional", update = "admin", default = false)]
    pub keep_prefix: bool,
    /// Words to find it by.
    #[field(list = "user", create = "optional", update = "admin", max = 4096)]
    pub tags: Vec<String>,
    /// A picture, as a URL or an emoji.
    #[field(list = "user", create = "optional", update = "admin")]
    pub icon: String,
    /// Whether new spaces may be made from it.
    #[field(list = "user", create = "optional", update = "admin", default = true)]
    pub enabled: bool,
}

impl Template {
    fn check(&self, spaces: &Spaces) -> Result<()> {
        self.check_container(spaces)?;
        if self.start_limit.is_some_and(|it| !(1..=86_400).contains(&it)) {
            return Err(Error::field("start_limit", "must be from 1 to 86400 seconds"));
        }
        for (field, list) in [("command", &self.command), ("env", &self.env)] {
            if list.iter().any(|text| text.contains('\0')) {
                return Err(Error::field(field, "has a NUL"));
            }
        }
        let named = |pair: &&String| pair.split_once('=').is_none_or(|(name, _)| !is_name(name));
        if let Some(bad) = self.env.iter().find(named) {
            return Err(Error::field("env", format!("{bad:?} is not NAME=value")));
        }
        if let Some(bad) = self.env.iter().find(|pair| pair.starts_with("PODYARD_")) {
            return Err(Error::field("env", format!("{bad:?}: names that begin PODYARD_ are Podyard's own")));
        }
        Ok(())
    }

    /// What only the one or only the other driver takes.
    fn check_container(&self, spaces: &Spaces) -> Result<()> {
        let program = self.command.first().is_some_and(|it| !it.trim().is_empty());
        if self.driver != KUBERNETES {
            if self.container.is_some() {
                return Err(Error::field("container", "is for the driver kubernetes only"));
            }
            if !program {
                return Err(Error::field("command", "must name a program"));
            }
            return Ok(());
        }
        if !self.command.is_empty() && !program {
            return Err(Error::field("command", "must name a program"));
        }
        for (field, list) in [("command", &self.command), ("env", &self.env)] {
            if list.iter().any(|text| text.contains("{podyard}")) {
                return Err(Error::field(field, "names {podyard}, which is in no container"));
            }
        }
        let Some(container) = self.container()? else {
            let text = "is required: the driver kubernetes runs images";
            return Err(Error::field("container.image", text));
        };
        // A process without the driver stores the template all the same; one
        // that has it judges what only it can.
        let Ok(driver) = spaces.driver(KUBERNETES) else { return Ok(()) };
        driver.check(&container).map_err(|error| Error::field("container.patch", error.to_string()))
    }

    /// Its container, if it has one.
    pub(crate) fn container(&self) -> Result<Option<Container>> {
        self.container.as_ref().map(ContainerField::container).transpose()
    }

    /// Whether its program can be run here, or why not.
    pub(crate) fn availability(&self, spaces: &Spaces) -> Result<(), String> {
        let Ok(driver) = spaces.driver(&self.driver) else {
            return Err(format!("it wants the driver {}, which is not here", self.driver));
        };
        let wrong = driver.available(&self.command).err().map(|e| e.to_string());
        // Where it was looked for is the machine's business, not everybody's.
        wrong.map_or(Ok(()), |text| Err(text.split("; looked for").next().unwrap_or_default().to_owned()))
    }
}

fn is_name(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl Manager for Template {
    fn get_customize_columns(tx: &mut Tx<'_>, rows: &[Self], extra: &mut [Extra]) -> Result<()> {
        let kinds = tx.cached::<crate::Kind>()?;
        let spaces = tx.ctx.service::<Spaces>()?;
        for (row, extra) in rows.iter().zip(extra) {
            extra.set("kind", kinds.get(&row.kind_id).map(|kind| kind.name.clone()));
            let availability = row.availability(&spaces);
            extra.set("available", availability.is_ok());
            if let Err(reason) = availability {
                extra.set("unavailable_reason", reason);
            }
        }
        Ok(())
    }
}

impl Model for Template {
    fn customize_create(&mut self, tx: &mut Tx<'_>, _: &TemplateCreate) -> Result<()> {
        let spaces = tx.ctx.service::<Spaces>()?;
        if self.driver.is_empty() {
            spaces.default_driver().clone_into(&mut self.driver);
        }
        self.check(&spaces)
    }

    fn pre_update(&mut self, tx: &mut Tx<'_>, _: &TemplateUpdate) -> Result<()> {
        let spaces = tx.ctx.service::<Spaces>()?;
        self.check(&spaces)
    }
}
