//! What the gateway asks of the platform.

use std::{fmt, net::IpAddr, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use podyard_driver::Through;

/// Where a token was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The header `X-Auth-Token`.
    AuthToken,
    /// The header `Authorization: Bearer …`.
    Bearer,
    /// The platform's cookie.
    Cookie,
}

/// A string that may be a token of the platform, or may be the program's own and mean nothing
/// here.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// Where it was found.
    pub source: Source,
    /// The string.
    pub token: String,
}

impl fmt::Debug for Credential {
    // Tokens do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("source", &self.source).finish_non_exhaustive()
    }
}

/// One question: may the bearer of one of these credentials use this space, and where is it?
#[derive(Debug, Clone)]
pub struct Ask {
    /// The space, as it stands in the path: 1 to 64 of `A-Z a-z 0-9 _ -`.
    pub sid: String,
    /// What was found, in the order to try: `X-Auth-Token`, bearer, cookies. Never more than six.
    pub credentials: Vec<Credential>,
    /// Where the request came from.
    pub client_ip: Option<IpAddr>,
}

/// The answer to an [`Ask`].
#[derive(Debug, Clone)]
pub struct Resolution {
    /// What to do.
    pub route: Route,
    /// The index in [`Ask::credentials`] of the one that authenticated, if one did.
    ///
    /// It decides what the program may see (`Authorization` is taken out only if it was ours) and
    /// whether `Origin` is checked (only a cookie is sent by a browser of its own accord).
    pub used: Option<usize>,
}

/// What the platform says of a space.
#[derive(Clone)]
pub enum Route {
    /// The program runs and answers here.
    Open {
        /// Where it listens.
        addr: SocketAddr,
        /// Sent to the program as `X-Podyard-Space-Secret`, so that it can tell the gateway from
        /// its neighbours on the same machine. Empty: not sent.
        secret: String,
        /// Whether the program serves under `/ws/<sid>/` itself, so that the path is passed on whole.
        keep_prefix: bool,
        /// The `Host` to send. `None`, nearly always right: what the client sent.
        host: Option<String>,
        /// How it is reached, if not by a connection to `addr`.
        through: Option<Arc<dyn Through>>,
    },
    /// The space is being started.
    Starting {
        /// The space's name, for the page.
        name: String,
        /// For how long already.
        waited: Option<Duration>,
        /// What it is doing.
        status_text: String,
    },
    /// The space does not run.
    Stopped {
        /// The space's name, for the page.
        name: String,
        /// Why, in words.
        reason: Option<String>,
        /// With what its program ended.
        exit_code: Option<i32>,
        /// The last lines that its program wrote.
        last_lines: Vec<String>,
    },
    /// There is no such space, or it is not the caller's: the answer is the same.
    NotFound,
    /// None of the credentials is good.
    Login,
    /// The platform cannot say now (its database is away, for one). A tunnel that is open stays
    /// open.
    Unavailable,
}

impl fmt::Debug for Route {
    // The secret does not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { addr, .. } => f.debug_struct("Open").field("addr", addr).finish_non_exhaustive(),
            Self::Starting { name, .. } => {
                f.debug_struct("Starting").field("name", name).finish_non_exhaustive()
            }
            Self::Stopped { name, .. } => {
                f.debug_struct("Stopped").field("name", name).finish_non_exhaustive()
            }
            Self::NotFound => f.write_str("NotFound"),
            Self::Login => f.write_str("Login"),
            Self::Unavailable => f.write_str("Unavailable"),
        }
    }
}

/// What happened in a space, for those who stop idle ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// A request was passed on.
    Request,
    /// Bytes moved in an open tunnel since the last report, which comes once per
    /// [`recheck`](crate::Options::recheck). An IDE in a forgotten tab pings too: a few hundred
    /// bytes a minute are not somebody at work.
    Tunnel {
        /// From the client to the program.
        up: u64,
        /// From the program to the client.
        down: u64,
    },
}

/// The fields of the login form.
#[derive(Clone)]
pub struct LoginRequest {
    /// The user's name.
    pub user: String,
    /// The password.
    pub password: String,
    /// The domain's name, if one was given.
    pub domain: Option<String>,
    /// Where the request came from.
    pub client_ip: Option<IpAddr>,
}

impl fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginRequest")
            .field("user", &self.user)
            .field("domain", &self.domain)
            .field("client_ip", &self.client_ip)
            .finish_non_exhaustive()
    }
}

/// A login that succeeded.
#[derive(Clone)]
pub struct Session {
    /// The token, for the cookie.
    pub token: String,
    /// How long it is good for.
    pub max_age: Duration,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("max_age", &self.max_age).finish_non_exhaustive()
    }
}

/// Why a login failed. It carries no message: the page words it, so that an unknown user and a
/// wrong password cannot be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginError {
    /// Wrong name, password or domain, or an account that may not log in.
    Refused,
    /// Too many attempts.
    Throttled {
        /// When to try again.
        retry_after: Duration,
    },
    /// The platform cannot check now.
    Unavailable,
}

/// The platform, as the gateway sees it.
pub trait Resolver: Send + Sync + 'static {
    /// Who asks, may they, and where is it? Called for each request, and now and then for each
    /// open tunnel.
    fn resolve<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Resolution>;

    /// Checks a password and opens a session.
    fn login(&self, login: LoginRequest) -> BoxFuture<'_, Result<Session, LoginError>>;

    /// Ends the session of a token. An unknown token is no error.
    fn logout<'a>(&'a self, token: &'a str) -> BoxFuture<'a, ()> {
        let _ = token;
        Box::pin(async {})
    }

    /// Somebody uses the space. Called often; must not wait.
    fn activity(&self, sid: &str, activity: Activity) {
        let _ = (sid, activity);
    }
}
