//! Spaces: where a person codes.

use chrono::{DateTime, Utc};
use podyard::prelude::*;
use podyard_driver::Exit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::container::{check_branch, check_url};
use crate::quantity::{MEBIBYTE, THOUSANDTH};
use crate::tasks::{
    DeleteParams, ResizeParams, SpaceDelete, SpaceResize, SpaceRestart, SpaceStart, SpaceStop,
};
use crate::{KUBERNETES, Quantity, Spaces, Spec, Template};

/// The row is there, nothing runs.
pub(crate) const STOPPED: &str = "stopped";
/// A task starts it.
pub(crate) const STARTING: &str = "starting";
/// Its program answers.
pub(crate) const RUNNING: &str = "running";
/// A task stops it.
pub(crate) const STOPPING: &str = "stopping";
/// It could not be started; `status_reason` says why.
pub(crate) const START_FAILED: &str = "start_failed";
/// It could not be stopped.
pub(crate) const STOP_FAILED: &str = "stop_failed";

/// A development space.
#[derive(Debug, Clone, Default, Resource)]
#[resource(
    keyword = "space",
    plural = "spaces",
    quota("cpu", "memory", "storage"),
    extra(
        template = "Name of its template.",
        spec = "Name of its size.",
        cpu = "Its processor cores.",
        memory = "Its memory.",
        storage = "Its room for files.",
        running = "Whether it runs now.",
        url = "Where it opens."
    )
)]
pub struct Space {
    /// Name, status and owner.
    pub base: VirtualBase,
    /// The template it was made from.
    #[field(list = "user", create = "required", references = "template", index)]
    pub template_id: String,
    /// Its size. Another one may be given while it is stopped, and takes effect at the next
    /// start; its storage only grows, also while it runs.
    #[field(list = "user", create = "required", update = "user", references = "spec", index)]
    pub spec_id: String,
    /// What runs it: its template's driver.
    #[field(list = "user")]
    pub driver: String,
    /// A git repository that is cloned into its files while they are empty, in place of its template's.
    #[field(list = "user", create = "optional", update = "user", max = 2048)]
    pub repository: String,
    /// The branch of the repository that is cloned; the repository's own choice if empty.
    #[field(list = "user", create = "optional", update = "user", max = 255)]
    pub branch: String,
    /// Its place in the URL: `/ws/<sid>/`.
    #[field(list = "user", unique)]
    pub sid: String,
    /// The node it runs on.
    #[field(list = "admin")]
    pub node: Option<String>,
    /// When it was last started.
    #[field(list = "user")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it last stopped.
    #[field(list = "user")]
    pub stopped_at: Option<DateTime<Utc>>,
    /// What its program last returned.
    #[field(list = "user")]
    pub exit_code: Option<i32>,
    /// The signal that last ended its program.
    #[field(list = "user")]
    pub exit_signal: Option<i32>,
    /// The last lines that its program wrote before it ended.
    #[field(get = "user", max = 65536)]
    pub last_lines: Vec<String>,
    /// Start it at once.
    #[field(create = "optional", transient)]
    pub auto_start: bool,
}

impl Space {
    fn expect_status(&self, wanted: &[&str], to: &str) -> Result<()> {
        if wanted.contains(&self.status.as_str()) {
            return Ok(());
        }
        let class = match (wanted.contains(&RUNNING), self.status.as_str()) {
            (false, RUNNING | STARTING) => "SpaceIsRunningError",
            (true, STOPPED | START_FAILED) => "SpaceNotRunningError",
            _ => "InvalidStatusError",
        };
        let text = format!("space {} is {} and cannot be {to}", self.name, self.status);
        Err(Error::conflict(text).class(class).blame("status"))
    }

    /// One running space per user, unless configured otherwise. The user's
    /// lock is held, so the count stays true to the transaction's end.
    fn expect_room_to_run(&self, tx: &mut Tx<'_>) -> Result<()> {
        let spaces = tx.ctx.service::<Spaces>()?;
        let most = spaces.options.max_running;
        if most == 0 {
            return Ok(());
        }
        let running = Self::select().unscoped().eq("user_id", self.user_id.clone()).ne("id", self.id.clone());
        let running = running.is_in("status", [STARTING.to_owned(), RUNNING.to_owned()]).count(tx)?;
        if running >= most {
            let text =
                format!("{running} other space(s) are running already, of at most {most}; stop one first");
            return Err(Error::conflict(text).class("OtherSpaceRunningError"));
        }
        Ok(())
    }

    /// The owner's class lock is held, so the count stays true.
    fn expect_room(tx: &mut Tx<'_>, user_id: String) -> Result<()> {
        let most = tx.ctx.service::<Spaces>()?.options.max_spaces;
        let own = user_id == tx.cred().user_id;
        let have = Self::select().unscoped().eq("user_id", user_id).count(tx)?;
        if have >= most {
            let who = if own { "you have" } else { "its owner would have" };
            let text = format!("{who} {have} spaces of at most {most}; delete one first");
            return Err(Error::conflict(text).class("SpaceLimitError"));
        }
        Ok(())
    }

    /// What is cloned at its start must be something that can be cloned, by a
    /// driver that does.
    fn check_repository(&self, tx: &mut Tx<'_>) -> Result<()> {
        let named = [("repository", &self.repository), ("branch", &self.branch)];
        let Some((field, _)) = named.iter().find(|(_, text)| !text.is_empty()) else { return Ok(()) };
        if self.driver != KUBERNETES {
            let text = format!("its template's driver {} clones no repositories", self.driver);
            return Err(Error::field(*field, text));
        }
        if !self.repository.is_empty() {
            check_url(&self.repository).map_err(|text| Error::field("repository", text))?;
        }
        check_branch(&self.branch).map_err(|text| Error::field("branch", text))?;
        let templates = tx.cached::<Template>()?;
        let template = templates.get(&self.template_id).map(|it| it.container()).transpose()?.flatten();
        if self.repository.is_empty() && template.is_none_or(|it| it.repository.is_none()) {
            return Err(Error::field("branch", "needs a repository, here or in the template"));
        }
        Ok(())
    }

    /// Whether it may have another size now.
    fn check_resize(&self, tx: &mut Tx<'_>, spec_id: &str) -> Result<()> {
        let specs = tx.cached::<Spec>()?;
        let Some(to) = specs.get(spec_id).filter(|it| it.enabled) else {
            let error = Error::field("spec_id", format!("spec {spec_id} is not enabled"));
            return Err(error.class("SpecDisabledError"));
        };
        let Some(from) = specs.get(&self.spec_id) else { return Ok(()) };
        let size = |text: &str| text.parse::<Quantity>().ok();
        if size(&to.storage) < size(&from.storage) {
            let text = format!(
                "its storage {} is less than the space's {}: storage can only grow",
                to.storage, from.storage
            );
            return Err(Error::field("spec_id", text).class("StorageShrinkError"));
        }
        if [STOPPED, START_FAILED].contains(&self.status.as_str()) {
            return Ok(());
        }
        let alike = size(&to.cpu) == size(&from.cpu) && size(&to.memory) == size(&from.memory);
        if self.status == RUNNING && alike {
            return Ok(());
        }
        let text = format!(
            "space {} is {}: only its storage can grow now; stop it for another cpu or memory",
            self.name, self.status
        );
        Err(Error::conflict(text).class("SpaceIsRunningError").blame("spec_id"))
    }

    fn expect_available(&self, tx: &mut Tx<'_>) -> Result<()> {
        let spaces = tx.ctx.service::<Spaces>()?;
        let templates = tx.cached::<Template>()?;
        let Some(template) = templates.get(&self.template_id) else {
            return Err(Error::conflict("its template is gone").class("TemplateNotFoundError"));
        };
        template.availability(&spaces).map_err(|reason| {
            Error::conflict(format!("template {} cannot be run: {reason}", template.name))
                .class("TemplateUnavailableError")
        })
    }

    /// Notes how its program ended.
    pub(crate) fn ended(&mut self, exit: Option<&Exit>, now: DateTime<Utc>) {
        self.stopped_at = Some(exit.and_then(|it| DateTime::from_timestamp_micros(it.at)).unwrap_or(now));
        self.exit_code = exit.and_then(|it| it.code);
        self.exit_signal = exit.and_then(|it| it.signal);
        self.last_lines = exit.map(|it| it.last_lines.clone()).unwrap_or_default();
        self.node = None;
    }
}

fn lock_of(user_id: &str) -> String {
    // The same name as the class lock of this user's creates.
    format!("spaces/{user_id}")
}

impl Manager for Space {
    // It confirms that the files may go.
    const FORCE: bool = true;

    // What the observer finds, and terminals.
    const EVENTS: &'static [&'static str] =
        &["died", "stopped", "waits", crate::terminal::OPENED, crate::terminal::CLOSED];

    fn validate_create_data(tx: &mut Tx<'_>, input: &mut SpaceCreate) -> Result<()> {
        let templates = tx.cached::<Template>()?;
        if templates.get(&input.template_id).is_none_or(|template| !template.enabled) {
            let error = Error::field("template_id", format!("template {} is not enabled", input.template_id));
            return Err(error.class("TemplateDisabledError"));
        }
        let specs = tx.cached::<Spec>()?;
        if specs.get(&input.spec_id).is_none_or(|spec| !spec.enabled) {
            let error = Error::field("spec_id", format!("spec {} is not enabled", input.spec_id));
            return Err(error.class("SpecDisabledError"));
        }
        // An administrator may make one for somebody else.
        let given = Some(input.user_id.clone()).filter(|id| !id.is_empty());
        let user_id = given.unwrap_or_else(|| tx.cred().user_id.clone());
        Self::expect_room(tx, user_id)
    }

    fn get_customize_columns(tx: &mut Tx<'_>, rows: &[Self], extra: &mut [Extra]) -> Result<()> {
        let templates = tx.cached::<Template>()?;
        let specs = tx.cached::<Spec>()?;
        for (row, extra) in rows.iter().zip(extra) {
            extra.set("template", templates.get(&row.template_id).map(|it| it.name.clone()));
            let spec = specs.get(&row.spec_id);
            extra.set("spec", spec.map(|it| it.name.clone()));
            extra.set("cpu", spec.map(|it| it.cpu.clone()));
            extra.set("memory", spec.map(|it| it.memory.clone()));
            extra.set("storage", spec.map(|it| it.storage.clone()));
            extra.set("running", row.status == RUNNING);
            extra.set("url", format!("/ws/{}/", row.sid));
        }
        Ok(())
    }
}

impl Model for Space {
    fn customize_create(&mut self, tx: &mut Tx<'_>, input: &SpaceCreate) -> Result<()> {
        let bytes: [u8; 12] = rand::random();
        self.sid = bytes.iter().map(|b| format!("{b:02x}")).collect();
        self.status = STOPPED.into();
        let templates = tx.cached::<Template>()?;
        self.driver = templates.get(&self.template_id).map(|it| it.driver.clone()).unwrap_or_default();
        self.check_repository(tx)?;
        if input.auto_start {
            self.expect_available(tx)?;
            self.expect_room_to_run(tx)?;
            self.status = STARTING.into();
        }
        Ok(())
    }

    fn post_create(&mut self, tx: &mut Tx<'_>, input: &SpaceCreate) -> Result<()> {
        if input.auto_start {
            tx.start_task::<SpaceStart>(self, podyard::Nothing {})?;
        }
        Ok(())
    }

    fn validate_update_data(&self, tx: &mut Tx<'_>, input: &mut SpaceUpdate) -> Result<()> {
        match input.spec_id.as_deref() {
            Some(spec_id) if spec_id != self.spec_id => self.check_resize(tx, spec_id),
            _ => Ok(()),
        }
    }

    fn pre_update(&mut self, tx: &mut Tx<'_>, input: &SpaceUpdate) -> Result<()> {
        if input.repository.is_some() || input.branch.is_some() { self.check_repository(tx) } else { Ok(()) }
    }

    fn post_update(&mut self, tx: &mut Tx<'_>, before: &Self) -> Result<()> {
        if self.spec_id == before.spec_id {
            return Ok(());
        }
        let specs = tx.cached::<Spec>()?;
        let storage = |id: &str| specs.get(id).and_then(|it| it.storage.parse::<Quantity>().ok());
        if storage(&self.spec_id) != storage(&before.spec_id) {
            tx.start_task::<SpaceResize>(self, ResizeParams { from: before.spec_id.clone() })?;
        }
        Ok(())
    }

    /// Its storage for as long as it is there; cores (in thousandths) and
    /// memory (in MiB, as storage) while it runs, pending until it does.
    fn quota_use(&self, tx: &mut Tx<'_>) -> Result<Vec<QuotaUse>> {
        let mut uses = vec![QuotaUse::used("spaces", 1)];
        let specs = tx.cached::<Spec>()?;
        let Some(spec) = specs.get(&self.spec_id) else { return Ok(uses) };
        let amount = |text: &str, unit: u128| text.parse::<Quantity>().map_or(0, |it| it.in_units(unit));
        uses.push(QuotaUse::used("storage", amount(&spec.storage, MEBIBYTE)));
        let pending = self.status == STARTING;
        if pending || [RUNNING, STOPPING, STOP_FAILED].contains(&self.status.as_str()) {
            uses.push(QuotaUse { resource: "cpu", amount: amount(&spec.cpu, THOUSANDTH), pending });
            uses.push(QuotaUse { resource: "memory", amount: amount(&spec.memory, MEBIBYTE), pending });
        }
        Ok(uses)
    }

    fn validate_change_owner(&self, tx: &mut Tx<'_>, to: Owner<'_>) -> Result<()> {
        // What runs was started for its owner, and the gateway lets them in.
        self.expect_status(&[STOPPED, START_FAILED], "given to another; stop it first")?;
        if to.user_id == self.user_id { Ok(()) } else { Self::expect_room(tx, to.user_id.to_owned()) }
    }

    fn validate_delete_condition(&self, tx: &mut Tx<'_>) -> Result<()> {
        self.expect_status(&[STOPPED, START_FAILED], "deleted; stop it first")?;
        // What was never started has no files; a start that failed may have left some.
        let started = self.started_at.is_some() || self.version > 1;
        if self.driver == KUBERNETES && started && !tx.ctx.force() {
            let text = format!(
                "with space {} its files go, for good: confirm it by force=true (DELETE …?force=true)",
                self.name
            );
            return Err(Error::conflict(text).class("ConfirmationNeededError").blame("force"));
        }
        Ok(())
    }

    fn post_delete(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        // The row is gone at once; its files go by a task, which survives a crash.
        let params = DeleteParams { driver: self.driver.clone() };
        tx.task::<SpaceDelete>(self, params).behind().start()?;
        Ok(())
    }
}

/// Which part of the log.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct LogQuery {
    /// At most so many bytes of its end; 65536 if not given, 1048576 at most.
    pub bytes: Option<u32>,
    /// At most so many lines of its end.
    pub tail: Option<u32>,
    /// As text that goes on until the run is over, with `tail` lines of what is there at first.
    pub follow: Option<bool>,
}

/// What a space's program wrote.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LogOutput {
    /// The text, standard output and error together.
    pub log: String,
}

#[actions]
impl Space {
    /// Starts the space. Its task ends when the program answers.
    #[action(when("stopped", "start_failed", "stop_failed"))]
    fn perform_start(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        self.expect_status(&[STOPPED, START_FAILED, STOP_FAILED], "started")?;
        self.expect_available(tx)?;
        tx.lock(&lock_of(&self.user_id))?;
        self.expect_room_to_run(tx)?;
        tx.set_status(self, STARTING, "")?;
        // Behind a storage that is just growing.
        tx.task::<SpaceStart>(self, podyard::Nothing {}).behind().start()?;
        Ok(())
    }

    /// Stops the space: asks its program to end, and kills it after a while.
    #[action(when("running", "stop_failed"))]
    fn perform_stop(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        self.expect_status(&[RUNNING, STOP_FAILED], "stopped")?;
        tx.set_status(self, STOPPING, "")?;
        // Behind a storage that is just growing.
        tx.task::<SpaceStop>(self, podyard::Nothing {}).behind().start()?;
        Ok(())
    }

    /// Stops the space and starts it again.
    #[action(when("running", "stop_failed"))]
    fn perform_restart(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        self.expect_status(&[RUNNING, STOP_FAILED], "restarted")?;
        self.expect_available(tx)?;
        tx.lock(&lock_of(&self.user_id))?;
        self.expect_room_to_run(tx)?;
        tx.set_status(self, STARTING, "restarting")?;
        // Behind a storage that is just growing.
        tx.task::<SpaceRestart>(self, podyard::Nothing {}).behind().start()?;
        Ok(())
    }

    /// The end of what the space's program wrote.
    async fn get_details_log(&self, ctx: &Ctx, query: LogQuery) -> Result<LogOutput> {
        let spaces = ctx.service::<Spaces>()?;
        // That one has a route of its own, which knows it by its exact words.
        if query.follow == Some(true) {
            return Err(Error::field(
                "follow",
                "is only for GET /spaces/<id>/log?follow=true, written like this",
            ));
        }
        let bytes = query.bytes.unwrap_or(65536).min(1 << 20);
        let reading = spaces.logs.run(spaces.driver(&self.driver)?.log(&self.id, bytes as usize));
        let mut log = reading.await?.map_err(read_error)?;
        if let Some(tail) = query.tail {
            log = last_lines(&log, tail as usize).to_owned();
        }
        Ok(LogOutput { log })
    }
}

/// A driver's error where something was only to be read.
pub(crate) fn read_error(error: podyard_driver::Error) -> Error {
    use podyard_driver::Error as Driver;
    match &error {
        Driver::Unavailable(_) | Driver::Io { .. } | Driver::Stuck(_) => {
            Error::unavailable(error.to_string(), 1).caused_by(error)
        }
        _ => Error::internal(error),
    }
}

fn last_lines(text: &str, count: usize) -> &str {
    if count == 0 {
        return "";
    }
    let body = text.strip_suffix('\n').unwrap_or(text);
    body.rmatch_indices('\n').nth(count - 1).map_or(text, |(at, _)| &text[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_last_lines_of_a_log() {
        for (text, count, want) in [
            ("", 2, ""),
            ("a\nb\nc\n", 0, ""),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 1, "c"),
            ("a\n", 9, "a\n"),
        ] {
            assert_eq!(last_lines(text, count), want, "{text:?} {count}");
        }
    }
}
