//! Disks: a type with every feature switched on, written after docs/ alone.
use podyard::prelude::*;
/// A disk, which can do whatever a type can.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "disk", plural = "disks", quota("gigabytes"), extra(shout = "Its name, louder."))]
pub struct Disk {
    pub base: VirtualBase,
    #[mixin]
    pub switch: Enabled,
    #[mixin]
    pub trash: Trash,
    #[mixin]
    pub sharing: Sharing,
    #[mixin]
    pub external: External,
    /// Its serial number.
    #[field(list = "user", create = "optional", unique, search, max = 64)]
    pub serial: Option<String>,
    /// What it is made of.
    #[field(list = "user", create = "optional", choices("ssd", "hdd"), default = "ssd", index)]
    pub medium: String,
    /// In GB.
    #[field(get = "user", create = "required", update = "domain")]
    pub size: i64,
    /// Where it is, and with what it goes.
    #[field(list = "user", create = "optional", update = "user", references = "rack", cascade, index)]
    pub rack_id: Option<String>,
    /// Whether it is in use at once.
    #[field(create = "optional", transient)]
    pub mounted: bool,
}
impl Manager for Disk {
    fn get_customize_columns(_: &mut Tx<'_>, rows: &[Self], extra: &mut [Extra]) -> Result<()> {
        rows.iter().zip(extra).map(|(row, it)| it.set("shout", row.name.to_uppercase())).try_for_each(Ok)
    }
}
impl Model for Disk {
    fn quota_use(&self, _: &mut Tx<'_>) -> Result<Vec<QuotaUse>> {
        Ok(vec![QuotaUse::used("disks", 1), QuotaUse::used("gigabytes", self.size)])
    }
    fn customize_create(&mut self, _: &mut Tx<'_>, input: &DiskCreate) -> Result<()> {
        self.status = if input.mounted { "mounted" } else { "ready" }.into();
        Ok(())
    }
}
#[derive(Deserialize, JsonSchema)]
struct Growth {
    /// GB more.
    by: u16,
}
#[actions]
impl Disk {
    /// Makes it larger.
    #[action(when("ready"))]
    fn perform_grow(&mut self, tx: &mut Tx<'_>, input: Growth) -> Result<()> {
        self.size += i64::from(input.by);
        tx.start_task::<Format>(self, Nothing {})?;
        tx.set_status(self, "formatting", "")
    }
    /// What it holds.
    fn get_details_content(&self, _: &mut Tx<'_>) -> Result<String> {
        Ok(format!("{} GB of nothing", self.size))
    }
    /// What disks are made of.
    fn get_property_media(_: &mut Tx<'_>) -> Result<[&'static str; 2]> {
        Ok(["ssd", "hdd"])
    }
}
/// Formats a disk.
pub struct Format;
#[stages(object = Disk)]
impl Format {
    async fn on_init(_: &mut TaskCtx<Disk>) -> Stage {
        Stage::complete().with(|tx, disk: &mut Disk| tx.set_status(disk, "ready", ""))
    }
    async fn on_init_failed(_: &mut TaskCtx<Disk>, why: Reason) -> Stage {
        Stage::fail(why)
    }
}
