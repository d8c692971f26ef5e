//! Tokens: `p1.<claims>.<mac>`, claims in JSON, signed with HMAC-SHA-256 by a
//! key that all processes of one database share. A token carries who it is
//! for, so checking it asks nobody; what is revoked is a small set in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use hmac::{Hmac, Mac};
use podyard::auth::{Access, Authenticator, UserCred};
use podyard::db::{self, Db, Sql};
use podyard::worker::Pool;
use podyard::{Error, Result, Tx, now};
use serde::{Deserialize, Serialize};

use crate::throttle::Throttle;

/// How long a token is good, unless told otherwise.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The longest lifetime that can be set, in microseconds: a year.
const LONGEST: i64 = 31_536_000_000_000;
/// Most tokens that one may be made from, one from another.
pub(crate) const MOST_ANCESTORS: usize = 8;

/// What identity is set to.
#[derive(Debug, Clone)]
pub struct IdentityOptions {
    /// How long a token is good.
    pub token_lifetime: Duration,
    /// Passwords that are hashed at once; 0: as many as there are cores.
    pub password_workers: usize,
    /// Passwords that may wait for it.
    pub password_queue: usize,
}

impl Default for IdentityOptions {
    fn default() -> Self {
        Self { token_lifetime: LIFETIME, password_workers: 0, password_queue: 256 }
    }
}

/// What a token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Token {
    /// The audit id: names the token without being it.
    pub audit_id: String,
    /// The audit ids of the tokens that it was made from, the first first: to
    /// revoke one of them is to revoke it, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<String>,
    /// How its owner logged in.
    pub methods: Vec<String>,
    /// Microseconds since 1970.
    pub issued_at: i64,
    /// Microseconds since 1970.
    pub expires_at: i64,
    /// Name of the user's domain.
    pub domain_name: String,
    /// For whom.
    pub cred: UserCred,
}

/// The identity service of a process.
pub struct Identity {
    key: Vec<u8>,
    options: IdentityOptions,
    /// Tokens checked lately: parsing and the MAC once, not per request.
    checked: RwLock<HashMap<String, Arc<Checked>>>,
    revoked: RwLock<Revoked>,
    pub(crate) throttle: Throttle,
    /// Compared with for users who do not exist, so that they take as long.
    pub(crate) nobody: String,
    /// Hashing takes 19 MiB each: not more at once than there are cores.
    pub(crate) hashing: Pool,
    last_sync: Mutex<i64>,
}

struct Checked {
    token: Token,
    cred: Arc<UserCred>,
}

#[derive(Default)]
struct Revoked {
    tokens: HashMap<String, i64>,
    /// User → tokens issued before that moment are void.
    users: HashMap<String, (i64, i64)>,
}

impl Identity {
    /// Loads the key (made at the first start) and what is revoked.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub fn open(db: &Db, options: IdentityOptions) -> Result<Self> {
        let key = db.write_blocking(|conn| {
            let read = || Sql::new("SELECT \"value\" FROM \"identity_secrets\" WHERE \"name\" = 'token-key'");
            if let Some((key,)) = db::load_one::<(String,)>(conn, read())? {
                return Ok(key);
            }
            let bytes: [u8; 32] = rand::random();
            // Another process may start for the first time, too: the first key stands.
            let dialect = conn.dialect();
            let sql = Sql::new(dialect.insert_new())
                .text("\"identity_secrets\" (\"name\", \"value\") VALUES ('token-key', ")
                .value(B64.encode(bytes))
                .text(")")
                .text(dialect.or_ignore());
            db::execute(conn, &sql)?;
            db::load_one::<(String,)>(conn, read())?
                .map(|(key,)| key)
                .ok_or_else(|| Error::internal("no key"))
        })?;
        let cores = || std::thread::available_parallelism().map_or(2, usize::from);
        let at_once = if options.password_workers == 0 { cores() } else { options.password_workers };
        let hashing = Pool::new("passwords", at_once, options.password_queue);
        let it = Self {
            key: B64.decode(key).map_err(Error::internal)?,
            options,
            checked: RwLock::default(),
            revoked: RwLock::default(),
            throttle: Throttle::default(),
            nobody: crate::password::hash("nobody has this password")?,
            hashing,
            last_sync: Mutex::new(0),
        };
        let rows = db.read_blocking(|conn| revocations(conn, 0))?;
        it.take(rows);
        Ok(it)
    }

    /// Takes over what other processes have revoked since the last time, and
    /// forgets what has expired. Run it once a second.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn sync(&self, db: &Db) -> Result<()> {
        let since = {
            let mut last = self.last_sync.lock().unwrap_or_else(PoisonError::into_inner);
            // Clocks of two machines differ, and a commit comes later than its moment.
            std::mem::replace(&mut *last, now().timestamp_micros()) - 120_000_000
        };
        let rows = db.read(podyard::db::Cost::Bounded, move |conn| revocations(conn, since)).await?;
        self.take(rows.value);
        let now = now().timestamp_micros();
        if self.forget_expired(now) {
            let expired = move |conn: &mut db::AnyConnection| {
                let sql = Sql::new("DELETE FROM \"revocations\" WHERE \"expires_at\" < ").value(now);
                db::execute(conn, &sql)
            };
            db.write(None, expired).await?;
        }
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        revoked.tokens.retain(|_, expires| *expires > now);
        revoked.users.retain(|_, (_, expires)| *expires > now);
        drop(revoked);
        let mut checked = self.checked.write().unwrap_or_else(PoisonError::into_inner);
        checked.retain(|_, it| it.token.expires_at > now);
        Ok(())
    }

    /// Whether something here has expired, so that its row can go, too.
    fn forget_expired(&self, now: i64) -> bool {
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        revoked.tokens.values().chain(revoked.users.values().map(|(_, expires)| expires)).any(|it| *it <= now)
    }

    fn take(&self, rows: Vec<Revocation>) {
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        for (kind, subject, before, expires) in rows {
            if kind == "token" {
                revoked.tokens.insert(subject, expires);
            } else {
                let slot = revoked.users.entry(subject).or_insert((before, expires));
                *slot = (slot.0.max(before), slot.1.max(expires));
            }
        }
    }

    fn mac(&self, text: &str) -> Result<Hmac<sha2::Sha256>> {
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&self.key).map_err(Error::internal)?;
        mac.update(text.as_bytes());
        Ok(mac)
    }

    /// Makes a token for a credential, as of a moment before the user was last read.
    ///
    /// # Errors
    /// Never in practice.
    pub fn issue(
        &self,
        cred: UserCred,
        domain_name: &str,
        methods: &[&str],
        parent: Option<&Token>,
        issued_at: i64,
    ) -> Result<(String, Token)> {
        let audit: [u8; 16] = rand::random();
        let lifetime = i64::try_from(self.options.token_lifetime.as_micros()).unwrap_or(i64::MAX / 2);
        let token = Token {
            audit_id: B64.encode(audit),
            ancestors: parent
                .map_or_else(Vec::new, |it| [&it.ancestors[..], std::slice::from_ref(&it.audit_id)].concat()),
            methods: methods.iter().map(ToString::to_string).collect(),
            issued_at,
            // A token made from another ends with it: else it could live for ever.
            expires_at: parent.map_or(issued_at + lifetime, |it| it.expires_at),
            domain_name: domain_name.to_owned(),
            cred,
        };
        let claims = B64.encode(serde_json::to_vec(&token).map_err(Error::internal)?);
        let mac = self.mac(&format!("p1.{claims}"))?.finalize().into_bytes();
        Ok((format!("p1.{claims}.{}", B64.encode(mac)), token))
    }

    fn parse(&self, text: &str) -> Option<Token> {
        let (signed, mac) = text.rsplit_once('.')?;
        let claims = signed.strip_prefix("p1.")?;
        self.mac(signed).ok()?.verify_slice(&B64.decode(mac).ok()?).ok()?;
        serde_json::from_slice(&B64.decode(claims).ok()?).ok()
    }

    fn checked(&self, text: &str) -> Option<Arc<Checked>> {
        if text.len() > 8192 {
            return None;
        }
        let known = self.checked.read().unwrap_or_else(PoisonError::into_inner).get(text).cloned();
        let checked = match known {
            Some(it) => it,
            None => {
                let token = self.parse(text)?;
                let it = Arc::new(Checked { cred: Arc::new(token.cred.clone()), token });
                let mut cache = self.checked.write().unwrap_or_else(PoisonError::into_inner);
                if cache.len() >= 10_000 {
                    cache.clear();
                }
                cache.insert(text.to_owned(), it.clone());
                it
            }
        };
        let token = &checked.token;
        if token.expires_at <= now().timestamp_micros() {
            return None;
        }
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        let void = |audit: &String| revoked.tokens.contains_key(audit);
        let user = revoked.users.get(&token.cred.user_id);
        if void(&token.audit_id)
            || token.ancestors.iter().any(void)
            || user.is_some_and(|(before, _)| token.issued_at <= *before)
        {
            return None;
        }
        drop(revoked);
        Some(checked)
    }

    /// What a valid token says.
    #[must_use]
    pub fn token(&self, text: &str) -> Option<Token> {
        self.checked(text).map(|it| it.token.clone())
    }

    /// Revokes one token, and those made from it.
    ///
    /// # Errors
    /// What the database says.
    pub fn revoke_token(self: &Arc<Self>, tx: &mut Tx<'_>, token: &Token) -> Result<()> {
        self.revoke(tx, "token", token.audit_id.clone(), 0, token.expires_at)
    }

    /// Revokes all tokens that a user has.
    ///
    /// # Errors
    /// What the database says.
    pub fn revoke_user(self: &Arc<Self>, tx: &mut Tx<'_>, user_id: &str) -> Result<()> {
        // As long as any token may live: the setting may have been another when it was issued.
        let before = now().timestamp_micros();
        self.revoke(tx, "user", user_id.to_owned(), before, before + LONGEST)
    }

    fn revoke(
        self: &Arc<Self>,
        tx: &mut Tx<'_>,
        kind: &'static str,
        subject: String,
        before: i64,
        expires: i64,
    ) -> Result<()> {
        let sql = Sql::new(
            "INSERT INTO \"revocations\" (\"id\", \"kind\", \"subject\", \"issued_before\", \"created_at\", \
             \"expires_at\") VALUES (",
        )
        .value(podyard::new_id())
        .text(", ")
        .value(kind)
        .text(", ")
        .value(subject.clone())
        .text(", ")
        .value(before)
        .text(", ")
        .value(tx.now())
        .text(", ")
        .value(expires)
        .text(")");
        db::execute(tx.conn, &sql)?;
        let identity = self.clone();
        // A login that read the user before this commit has a token of before it.
        db::after_commit(move || {
            let before = if before > 0 { now().timestamp_micros() } else { 0 };
            identity.take(vec![(kind.to_owned(), subject, before, expires)]);
        });
        Ok(())
    }
}

type Revocation = (String, String, i64, i64);

fn revocations(conn: &mut podyard::db::AnyConnection, since: i64) -> Result<Vec<Revocation>> {
    let sql = Sql::new(
        "SELECT \"kind\", \"subject\", \"issued_before\", \"expires_at\" FROM \"revocations\" WHERE \"created_at\" > ",
    )
    .value(since);
    db::load(conn, sql)
}

impl Authenticator for Identity {
    fn authenticate(&self, token: &str) -> Option<Arc<UserCred>> {
        self.checked(token).map(|it| it.cred.clone())
    }
}

/// The rank that a role gives.
pub(crate) fn level(role: &str) -> Access {
    if role == crate::ADMIN { Access::Admin } else { Access::User }
}
