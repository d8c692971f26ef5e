//! Users. To begin with each has one domain, one project and one role.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use podyard::auth::Access;
use podyard::model::{Drafts, Prepare};
use podyard::prelude::*;
use podyard::{Core, Nothing, Prepared};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::domain::DEFAULT_DOMAIN;
use crate::{Domain, Identity, Project, password};

/// The role of those who may do everything.
pub const ADMIN: &str = "admin";
/// The role of everybody else.
pub const MEMBER: &str = "member";

/// A person or a program that may log in.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "user", plural = "users", read = "user", write = "admin")]
pub struct User {
    /// Name and description.
    pub base: StandaloneBase,
    /// The domain; names are unique in it.
    #[field(list = "user", create = "admin", default = "default", references = "domain", index)]
    pub domain_id: String,
    /// The project that what they create belongs to; none given: one of their own is made.
    #[field(list = "user", create = "admin", update = "admin", references = "project", index)]
    pub project_id: String,
    /// What they may do.
    #[field(
        list = "user",
        create = "admin",
        update = "admin",
        default = "member",
        choices("admin", "member")
    )]
    pub role: String,
    /// Whether they may log in. Switching it off revokes their tokens.
    #[field(list = "user", create = "admin", update = "admin", default = true)]
    pub enabled: bool,
    /// Where mail for them goes.
    #[field(list = "user", create = "admin", update = "admin", search)]
    pub email: String,
    /// The password's argon2id hash.
    #[field()]
    pub password_hash: String,
    /// The password; it is kept as a hash only.
    #[field(create = "admin_required", transient)]
    pub password: String,
}

/// Hashes made before the transaction, which nobody must wait for so long: by
/// password, one for each user that is to have it.
struct Hashes(Mutex<HashMap<String, Vec<String>>>);

impl Hashes {
    async fn of(ctx: Ctx, users: Drafts) -> Result<Self> {
        let identity = ctx.service::<Identity>()?;
        let mut hashes: HashMap<String, Vec<String>> = HashMap::new();
        for user in users {
            let Some(password) = user.get("password").and_then(|it| it.as_str()) else { continue };
            if password::check(password).is_ok() {
                let hash = identity.hash(password.to_owned()).await?;
                hashes.entry(password.to_owned()).or_default().push(hash);
            }
        }
        Ok(Self(Mutex::new(hashes)))
    }

    /// Each of them in turn. None is used up: the work may have to be done again.
    fn next(&self, password: &str) -> Option<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hashes = all.get_mut(password)?;
        hashes.rotate_left(1);
        hashes.last().cloned()
    }
}

impl Manager for User {
    const PREPARE: Option<Prepare> =
        Some(|ctx, users| Box::pin(async { Ok(Arc::new(Hashes::of(ctx, users).await?) as Prepared) }));

    const EVENTS: &'static [&'static str] = &["reset-password"];

    fn list_item_filter(tx: &mut Tx<'_>, select: &mut Select<Self>) -> Result<()> {
        match tx.level() {
            Access::Admin => {}
            Access::Domain => select.narrow("domain_id", tx.cred().domain_id.clone()),
            _ => select.narrow("id", tx.cred().user_id.clone()),
        }
        Ok(())
    }

    fn validate_create_data(tx: &mut Tx<'_>, input: &mut UserCreate) -> Result<()> {
        password::check(&input.password)?;
        if input.name.contains('/') {
            return Err(Error::field("name", "must not have a /"));
        }
        if !input.project_id.is_empty() {
            expect_of_domain(tx, &input.project_id, &input.domain_id)?;
        } else {
            let mut project =
                Project { domain_id: input.domain_id.clone(), enabled: true, ..Project::default() };
            project.name.clone_from(&input.name);
            let same =
                Project::select().eq("domain_id", input.domain_id.clone()).eq("name", input.name.clone());
            if same.one(tx)?.is_some() {
                // Of somebody who is gone, or made by hand: it stays whose it is.
                let id = podyard::new_id();
                project.name = format!("{} {}", input.name, &id[id.len() - 8..]).chars().take(128).collect();
            }
            project.description = format!("The project of {}.", input.name);
            let project = tx.create(project)?;
            tx.log(&project, "create", None)?;
            input.project_id.clone_from(&project.id);
        }
        Ok(())
    }
}

impl Model for User {
    fn customize_create(&mut self, tx: &mut Tx<'_>, input: &UserCreate) -> Result<()> {
        let ready = tx.ctx.prepared::<Hashes>().and_then(|it| it.next(&input.password));
        self.password_hash = match ready {
            Some(hash) => hash,
            None => password::hash(&input.password)?,
        };
        Ok(())
    }

    fn pre_update(&mut self, tx: &mut Tx<'_>, input: &UserUpdate) -> Result<()> {
        if input.project_id.is_some() {
            expect_of_domain(tx, &self.project_id, &self.domain_id)?;
        }
        let loses = !self.enabled || self.role != ADMIN;
        if self.id == tx.cred().user_id && loses {
            return Err(Error::conflict("you would lock yourself out").class("ProtectedResourceError"));
        }
        if loses && (input.role.is_some() || input.enabled.is_some()) {
            self.expect_another_admin(tx)?;
        }
        Ok(())
    }

    fn post_update(&mut self, tx: &mut Tx<'_>, before: &Self) -> Result<()> {
        // What a token says must stay true.
        let same = (before.role == self.role, before.project_id == self.project_id, before.name == self.name);
        if same != (true, true, true) || (before.enabled && !self.enabled) {
            tx.ctx.service::<Identity>()?.revoke_user(tx, &self.id)?;
        }
        Ok(())
    }

    fn validate_delete_condition(&self, tx: &mut Tx<'_>) -> Result<()> {
        if self.id == tx.cred().user_id {
            return Err(Error::conflict("you would lock yourself out").class("ProtectedResourceError"));
        }
        if self.role == ADMIN { self.expect_another_admin(tx) } else { Ok(()) }
    }

    fn post_delete(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        tx.ctx.service::<Identity>()?.revoke_user(tx, &self.id)
    }
}

impl User {
    /// Two administrators must not take each other's role at once.
    fn expect_another_admin(&self, tx: &mut Tx<'_>) -> Result<()> {
        tx.lock("identity/admins")?;
        let others = Self::select().unscoped().eq("role", ADMIN.to_owned()).eq("enabled", true);
        if others.ne("id", self.id.clone()).count(tx)? == 0 {
            let text = "no administrator would be left";
            return Err(Error::conflict(text).class("ProtectedResourceError"));
        }
        Ok(())
    }
}

/// A new password.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct PasswordInput {
    /// The password until now; administrators may leave it out for others.
    pub original_password: Option<String>,
    /// The new one.
    pub password: String,
}

#[actions]
impl User {
    /// Changes the password and revokes all tokens of the user.
    #[action(access = "user")]
    async fn perform_password(&self, ctx: &Ctx, input: PasswordInput) -> Result<Nothing> {
        let identity = ctx.service::<Identity>()?;
        password::check(&input.password)?;
        let own = ctx.cred().user_id == self.id;
        match input.original_password {
            Some(original) => {
                let name = format!("password/{}", self.id);
                if let Err(wait) = identity.throttle.attempt(&name, &self.id) {
                    let seconds = u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX);
                    return Err(crate::LoginError::Throttled(seconds).into());
                }
                if !identity.verify(original, self.password_hash.clone()).await? {
                    let error = Error::field("original_password", "is not the present password");
                    return Err(error.class("WrongPasswordError"));
                }
                identity.throttle.success(&name, &self.id);
            }
            None if own || ctx.cred().level != Access::Admin => {
                return Err(Error::field("original_password", "is required"));
            }
            None => {}
        }
        let hash = identity.hash(input.password).await?;
        let (id, checked) = (self.id.clone(), self.password_hash.clone());
        let done = ctx.write(None, move |tx| {
            let found = User::select().eq("id", id.clone()).for_update().one(tx)?;
            let mut user = found.ok_or_else(|| Error::not_found("user", &id))?;
            if user.password_hash != checked {
                return Err(Error::conflict("the password was changed meanwhile"));
            }
            let before = podyard::before(&user);
            user.password_hash = hash;
            tx.save(&mut user)?;
            tx.log(&user, "password", Some(&before))?;
            identity.revoke_user(tx, &user.id)
        });
        done.await?;
        Ok(Nothing {})
    }
}

/// A user's project is one of the user's domain.
fn expect_of_domain(tx: &mut Tx<'_>, project: &str, domain: &str) -> Result<()> {
    let found = Project::select().eq("id", project.to_owned()).eq("domain_id", domain.to_owned()).one(tx)?;
    match found {
        Some(_) => Ok(()),
        None => Err(Error::field("project_id", "is a project of another domain")),
    }
}

/// Revokes the tokens of all users of a domain or project.
pub(crate) fn revoke_all(tx: &mut Tx<'_>, field: &'static str, id: &str) -> Result<()> {
    let identity = tx.ctx.service::<Identity>()?;
    for user in User::select().unscoped().eq(field, id.to_owned()).rows(tx)? {
        identity.revoke_user(tx, &user.id)?;
    }
    Ok(())
}

/// Makes the first domain, project and administrator, unless they are there.
/// Returns the administrator's password if it was made up here, to be shown once.
///
/// # Errors
/// When the given password is too easy, or the database fails.
pub async fn bootstrap(core: &Arc<Core>, given: Option<String>) -> Result<Option<String>> {
    let ctx = Ctx::system(core);
    let there = ctx.read(podyard::db::Cost::Bounded, |tx| {
        Ok(Domain::select().eq("id", DEFAULT_DOMAIN).one(tx)?.is_some())
    });
    if there.await?.value {
        return Ok(None);
    }
    if let Some(password) = &given {
        password::check(password)?;
    }
    let password = given.clone().unwrap_or_else(password::random);
    let hash = {
        let password = password.clone();
        tokio::task::spawn_blocking(move || password::hash(&password)).await.map_err(Error::internal)??
    };
    let done = ctx.write(None, move |tx| {
        tx.lock("identity/bootstrap")?;
        if Domain::select().eq("id", DEFAULT_DOMAIN).one(tx)?.is_some() {
            // Another process was faster.
            return Ok(false);
        }
        let mut domain = Domain { enabled: true, ..Domain::default() };
        domain.id = DEFAULT_DOMAIN.into();
        domain.name = "Default".into();
        let domain = tx.create(domain)?;
        tx.log(&domain, "create", None)?;
        let mut project = Project { domain_id: domain.id.clone(), enabled: true, ..Project::default() };
        project.name = ADMIN.into();
        let project = tx.create(project)?;
        tx.log(&project, "create", None)?;
        let mut user = User {
            domain_id: domain.id.clone(),
            project_id: project.id.clone(),
            role: ADMIN.into(),
            enabled: true,
            password_hash: hash,
            ..User::default()
        };
        user.name = ADMIN.into();
        let user = tx.create(user)?;
        tx.log(&user, "create", None)?;
        Ok(true)
    });
    let made = done.await?.value;
    Ok((made && given.is_none()).then_some(password))
}

/// Gives a user a new random password, for whoever has the machine but lost
/// the login: by id, or by name, with the domain (its id or name) where several
/// have a user of that name. Returns it.
///
/// # Errors
/// 404, 409 where several domains have one, and what the database says.
pub async fn reset_password(core: &Arc<Core>, name: &str, domain: Option<&str>) -> Result<String> {
    let password = password::random();
    let hash = password::hash(&password)?;
    let (name, domain) = (name.to_owned(), domain.map(str::to_owned));
    let ctx = Ctx::system(core);
    let done = ctx.write(None, move |tx| {
        let mut select = User::select().id_or_name(&name).limit(2).for_update();
        if let Some(domain) = &domain {
            let found = Domain::select().id_or_name(domain).one(tx)?;
            let found = found.ok_or_else(|| Error::not_found("domain", domain))?;
            select = select.eq("domain_id", found.base.base.id.clone());
        }
        let mut found = select.rows(tx)?;
        if found.len() > 1 {
            let text =
                format!("several domains have a user {name}; say which with --domain, or give the user's id");
            return Err(Error::conflict(text).class("AmbiguousNameError"));
        }
        let mut user = found.pop().ok_or_else(|| Error::not_found("user", &name))?;
        let before = podyard::before(&user);
        user.password_hash = hash;
        user.enabled = true;
        tx.save(&mut user)?;
        tx.log(&user, "reset-password", Some(&before))?;
        tx.ctx.service::<Identity>()?.revoke_user(tx, &user.id)
    });
    done.await?;
    Ok(password)
}
