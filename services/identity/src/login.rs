//! Logging in with a password.

use std::sync::Arc;

use podyard::auth::UserCred;
use podyard::db::Cost;
use podyard::model::Record;
use podyard::{Core, Ctx, Error, Result};

use crate::token::{Identity, Token, level};
use crate::{Domain, Project, User, password};

/// How a user is named.
#[derive(Debug, Clone)]
pub enum UserRef {
    /// By the id.
    Id(String),
    /// By the name in a domain.
    Name(String),
}

/// What a person gives to log in.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The user.
    pub user: UserRef,
    /// Id or name of the user's domain; an id needs none.
    pub domain: String,
    /// The password.
    pub password: String,
    /// Where the request comes from.
    pub address: String,
}

/// Why a login was refused.
#[derive(Debug)]
pub enum LoginError {
    /// User or password are wrong, or the user may not log in: one answer for all.
    Wrong,
    /// Too many wrong ones; seconds to wait.
    Throttled(u32),
    /// A fault of ours.
    Failed(Error),
}

impl From<LoginError> for Error {
    fn from(it: LoginError) -> Self {
        match it {
            LoginError::Wrong => {
                Self::unauthorized("user or password are wrong").class("InvalidCredentialError")
            }
            LoginError::Throttled(seconds) => {
                let text = format!("too many failed logins; try again in {seconds} s");
                Self::new(podyard::Kind::TooManyRequests, text)
                    .class("TooManyAttemptsError")
                    .retry_after(seconds)
            }
            LoginError::Failed(error) => error,
        }
    }
}

type Found = Option<(User, Domain, Project)>;

impl Identity {
    /// Checks a password and makes a token.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub async fn login(
        self: &Arc<Self>,
        core: &Arc<Core>,
        it: Credentials,
    ) -> Result<(String, Token), LoginError> {
        let found = find(core, it.user.clone(), it.domain.clone()).await.map_err(LoginError::Failed)?;
        // By the user, however they were named; who does not exist is counted, too.
        let name = match (&found, &it.user) {
            (Some((user, ..)), _) => user.id.clone(),
            (None, UserRef::Id(id)) => format!("id {}", id.to_lowercase()),
            (None, UserRef::Name(name)) => format!("{}/{}", it.domain.to_lowercase(), name.to_lowercase()),
        };
        if let Err(wait) = self.throttle.attempt(&name, &it.address) {
            let seconds = u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX);
            tracing::warn!(user = name, address = it.address, seconds, "login throttled");
            return Err(LoginError::Throttled(seconds));
        }
        let hash =
            found.as_ref().map_or_else(|| self.nobody.clone(), |(user, ..)| user.password_hash.clone());
        let right = self.verify(it.password, hash).await.map_err(LoginError::Failed)?;
        // Hashing took its time: what counts is what the user is now, as of a
        // moment before it is read, so that a revocation meanwhile holds.
        let moment = podyard::now().timestamp_micros();
        let again = match &found {
            Some((user, ..)) => {
                find(core, UserRef::Id(user.id.clone()), String::new()).await.map_err(LoginError::Failed)?
            }
            None => None,
        };
        let same = |now: &(User, Domain, Project)| {
            found.as_ref().is_some_and(|(user, ..)| user.password_hash == now.0.password_hash)
        };
        let allowed = |(user, domain, project): &(User, Domain, Project)| {
            user.enabled && domain.enabled && project.enabled
        };
        let Some((user, domain, project)) = again.filter(|now| right && same(now) && allowed(now)) else {
            tracing::info!(user = name, address = it.address, "login refused");
            return Err(LoginError::Wrong);
        };
        self.throttle.success(&name, &it.address);
        self.issue(credential(&user, &project), &domain.name, &["password"], None, moment)
            .map_err(LoginError::Failed)
    }

    /// Compares a password with a hash on a thread that may block.
    pub(crate) async fn verify(&self, password: String, hash: String) -> Result<bool> {
        self.hashing.block(move || password::verify(&password, &hash)).await
    }

    /// Hashes a password on a thread that may block.
    pub(crate) async fn hash(&self, password: String) -> Result<String> {
        self.hashing.block(move || password::hash(&password)).await?
    }
}

fn credential(user: &User, project: &Project) -> UserCred {
    UserCred {
        user_id: user.id.clone(),
        user_name: user.name.clone(),
        domain_id: user.domain_id.clone(),
        project_id: project.id.clone(),
        project_name: project.name.clone(),
        roles: vec![user.role.clone()],
        level: level(&user.role),
    }
}

/// The user with domain and project, if all three exist.
async fn find(core: &Arc<Core>, user: UserRef, domain: String) -> Result<Found> {
    let ctx = Ctx::system(core);
    let done = ctx.read(Cost::Bounded, move |tx| {
        let user = match &user {
            UserRef::Id(id) => User::select().eq("id", id.clone()).one(tx)?,
            UserRef::Name(name) => {
                let Some(domain) = Domain::select().id_or_name(&domain).one(tx)? else { return Ok(None) };
                User::select().eq("domain_id", domain.id.clone()).eq("name", name.clone()).one(tx)?
            }
        };
        let Some(user) = user else { return Ok(None) };
        let Some(domain) = Domain::select().eq("id", user.domain_id.clone()).one(tx)? else {
            return Ok(None);
        };
        let Some(project) = Project::select().eq("id", user.project_id.clone()).one(tx)? else {
            return Ok(None);
        };
        Ok(Some((user, domain, project)))
    });
    Ok(done.await?.value)
}
