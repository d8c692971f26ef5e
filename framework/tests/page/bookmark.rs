//! Bookmarks: pages that a person wants to find again.

use podyard::prelude::*;

/// A page that a person wants to find again.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "bookmark", plural = "bookmarks")]
pub struct Bookmark {
    /// Name, status and owner.
    pub base: VirtualBase,
    /// Where it leads.
    #[field(list = "user", create = "required", update = "user", search, max = 2048)]
    pub url: String,
    /// How good it is, from 1 to 5.
    #[field(list = "user", create = "optional", update = "user", default = 3)]
    pub stars: i32,
}

impl Manager for Bookmark {
    fn validate_create_data(_: &mut Tx<'_>, input: &mut BookmarkCreate) -> Result<()> {
        if !input.url.starts_with("https://") {
            return Err(Error::field("url", "must begin with https://"));
        }
        Ok(())
    }
}

impl Model for Bookmark {}

/// What rating takes.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct RateInput {
    /// From 1 to 5.
    pub stars: i32,
}

#[actions]
impl Bookmark {
    /// Gives the bookmark its stars.
    fn perform_rate(&mut self, tx: &mut Tx<'_>, input: RateInput) -> Result<()> {
        if !(1..=5).contains(&input.stars) {
            return Err(Error::field("stars", "must be from 1 to 5"));
        }
        self.stars = input.stars;
        tx.save(self)
    }
}
