//! Identity: who may use Podyard. Domains, projects and users as resources;
//! tokens in Keystone's v3 shape, signed, expiring and revocable, checked
//! without a statement to the database.

mod domain;
mod http;
mod login;
mod password;
mod project;
mod throttle;
mod token;
mod user;

pub use domain::Domain;
pub use http::configure;
pub use login::{Credentials, LoginError, UserRef};
pub use project::Project;
pub use token::{Identity, IdentityOptions, Token};
pub use user::{ADMIN, MEMBER, User, bootstrap, reset_password};

podyard::catalogue!(Chinese, "i18n/zh.toml");
podyard::migrations!("identity", "../../migrations/identity", "../../migrations/identity");
