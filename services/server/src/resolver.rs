//! The gateway's questions, answered by identity and spaces.

use std::pin::Pin;
use std::sync::Arc;

use podyard::Core;
use podyard_gateway::{Ask, LoginError, LoginRequest, Resolution, Resolver, Route, Session};
use podyard_identity::{Credentials, Identity, UserRef};
use podyard_spaces::{Place, Spaces};

pub(crate) struct Platform {
    pub(crate) core: Arc<Core>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) spaces: Arc<Spaces>,
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Platform {
    async fn answer(&self, ask: &Ask) -> Resolution {
        let found = ask.credentials.iter().enumerate().find_map(|(i, it)| {
            let cred = self.core.authenticate(&it.token)?;
            Some((i, cred))
        });
        let Some((used, cred)) = found else { return Resolution { route: Route::Login, used: None } };
        let route = match podyard_spaces::resolve(&self.core, &self.spaces, cred, &ask.sid).await {
            Ok(Place::Open { endpoint, keep_prefix }) => {
                let podyard_driver::Endpoint { addr, secret, through } = endpoint;
                Route::Open { addr, secret, host: None, keep_prefix, through }
            }
            Ok(Place::Starting { name, status }) => {
                Route::Starting { name, waited: None, status_text: status }
            }
            Ok(Place::Stopped { name, reason, exit_code, last_lines }) => {
                Route::Stopped { name, reason, exit_code, last_lines }
            }
            Ok(Place::NotFound) => Route::NotFound,
            Err(error) => {
                tracing::error!(%error, sid = ask.sid, "a space could not be looked up");
                Route::Unavailable
            }
        };
        Resolution { route, used: Some(used) }
    }
}

impl Resolver for Platform {
    fn resolve<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Resolution> {
        Box::pin(self.answer(ask))
    }

    fn login(&self, login: LoginRequest) -> BoxFuture<'_, Result<Session, LoginError>> {
        Box::pin(async move {
            let odd = |text: &str| text.chars().any(char::is_control);
            if odd(&login.user) || login.domain.as_deref().is_some_and(odd) {
                return Err(LoginError::Refused);
            }
            let credentials = Credentials {
                user: UserRef::Name(login.user),
                domain: login.domain.filter(|it| !it.is_empty()).unwrap_or_else(|| "default".into()),
                password: login.password,
                address: login.client_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            };
            match self.identity.login(&self.core, credentials).await {
                Ok((token, it)) => {
                    let micros = u64::try_from(it.expires_at - it.issued_at).unwrap_or(0);
                    Ok(Session { token, max_age: std::time::Duration::from_micros(micros) })
                }
                Err(podyard_identity::LoginError::Wrong) => Err(LoginError::Refused),
                Err(podyard_identity::LoginError::Throttled(seconds)) => {
                    let retry_after = std::time::Duration::from_secs(u64::from(seconds));
                    Err(LoginError::Throttled { retry_after })
                }
                Err(podyard_identity::LoginError::Failed(error)) => {
                    tracing::error!(%error, "a login failed");
                    Err(LoginError::Unavailable)
                }
            }
        })
    }

    fn logout<'a>(&'a self, token: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Some(token) = self.identity.token(token) else { return };
            let ctx = podyard::Ctx::new(self.core.clone(), Arc::new(token.cred.clone()), "");
            let identity = self.identity.clone();
            if let Err(error) = ctx.write(None, move |tx| identity.revoke_token(tx, &token)).await {
                tracing::warn!(%error, "a logout could not revoke its token");
            }
        })
    }
}
