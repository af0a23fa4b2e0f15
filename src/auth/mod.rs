//! Authentication: verifies credentials and makes every [`Identity`]. It knows nothing about routes, forwarding or HTTP
//! responses.

mod api_key;
pub mod authorization;
pub mod bearer;
mod credential_file;
mod error;
pub mod failure_limiter;
pub mod foreign_keys;
mod held_access;
mod identity;
pub mod impersonation;
pub mod jwt;
pub mod key_exchange;
mod key_user;
mod keys_file;
mod loading;
mod login;
mod password_logins;
mod system_query;
pub mod token;
mod token_acceptance;
pub mod token_binding;
pub mod upstream_keys;
pub mod verifier;

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::watched_files::{FileStamps, FileWatch};
use crate::config::ForeignKeyPolicy;
use crate::observability::auth_timing::AuthTiming;
use crate::observability::metrics::AuthOutcome;
use crate::observability::phase::Phase;
use crate::store::{SaltName, Store, TokenEnd, TokenId, TokenRecord, Unavailable};
use crate::upstream::UpstreamClient;

pub use api_key::{ApiKey, BasicKey, BasicPassword, ClientCredential, basic_authorization, bearer_token};
pub use error::{KeyError, MintError, MintFailure};
pub use held_access::HeldAccess;
pub use identity::Identity;
pub use loading::EndedLogins;
pub use login::MintedToken;

use authorization::Authorization;
use bearer::BearerOpener;
use failure_limiter::FailureLimiter;
use foreign_keys::{ForeignKeys, KeyVerdict};
use impersonation::Impersonation;
use jwt::{Jwt, JwtError, JwtVerifier};
use key_exchange::KeyExchange;
use keys_file::KnownKeys;
use password_logins::PasswordLogins;
use token::{AuthenticToken, TokenMint};
use token_acceptance::TokenAcceptance;
use token_binding::TokenBinder;
use upstream_keys::{Renewal, UpstreamKeys, sensitive_header_value};
use verifier::{UsersFile, Verifier};

/// A token is looked up until this time after the expiry that it states, as clocks differ.
const EXPIRY_TOLERANCE: Duration = Duration::from_secs(60);

/// When to read a file again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileReload {
    /// If it has changed since it was last read.
    IfChanged,
    /// In any case, as requested by an operator.
    Always,
}

/// The authentication state of one configuration snapshot, shared by all workers.
pub struct Auth {
    bearer_opener: BearerOpener,
    token_mint: TokenMint,
    verifier: Arc<Verifier>,
    token_binder: TokenBinder,
    /// The lifetime of new tokens.
    token_ttl: Duration,
    store: Arc<Store>,
    salt_names: Vec<SaltName>,
    known_keys: KnownKeys,
    foreign_policy: ForeignKeyPolicy,
    foreign_keys: Arc<ForeignKeys>,
    failure_limiter: Arc<FailureLimiter>,
    token_acceptance: TokenAcceptance,
    /// The limiter of the active snapshot: it receives the failures that other replicas report.
    active_limiter: Arc<Mutex<Weak<FailureLimiter>>>,
    jwt_verifier: Arc<JwtVerifier>,
    impersonation: Impersonation,
    authorization: Option<Authorization>,
    /// Set where `upstream.credential` sends the user's own key.
    upstream_keys: Option<Arc<UpstreamKeys>>,
    /// Set where the gateway asks the backend for the user's own key.
    key_exchange: Option<Arc<KeyExchange>>,
    password_logins: Arc<PasswordLogins>,
}

impl Auth {
    /// What the backend makes of the tokens that are forwarded to it.
    pub fn token_acceptance(&self) -> &TokenAcceptance {
        &self.token_acceptance
    }

    /// Verifies a credential. `client` is the client's address.
    pub async fn identify(
        &self,
        credential: &ClientCredential,
        client: IpAddr,
        upstream: &UpstreamClient,
        timing: &AuthTiming,
    ) -> Result<Identity, KeyError> {
        match credential {
            ClientCredential::Key(key) => self.identify_key(key, client, upstream, timing).await,
            ClientCredential::Basic(basic) => self.identify_key(basic.key(), client, upstream, timing).await,
            ClientCredential::Password(basic) => self.identify_password(basic, client, upstream, timing).await,
            ClientCredential::Jwt(jwt) | ClientCredential::BearerJwt(jwt) => {
                self.identify_jwt(jwt, client, upstream, timing).await
            }
            ClientCredential::Unchecked(_) => Ok(Identity::unauthenticated(client)),
        }
    }

    /// SECURITY: a token without a valid signature counts as a failure. A token that has expired, or has a different
    /// audience, does not: a known issuer signed it.
    async fn identify_jwt(
        &self,
        jwt: &Jwt,
        client: IpAddr,
        upstream: &UpstreamClient,
        timing: &AuthTiming,
    ) -> Result<Identity, KeyError> {
        let id = jwt.id();
        // SECURITY: decrypting is expensive, so a client with too many failures cannot cause it.
        if jwt.is_encrypted() && !self.jwt_verifier.is_cached(&id) {
            let reserved = self.failure_limiter.begin_attempt(client).reserve();
            drop(reserved.map_err(|error| KeyError::TooManyFailures(error.into()))?);
        }
        match self.jwt_verifier.verify(jwt, id, timing).await {
            Ok((caller, id)) => {
                let exchanged = match &self.key_exchange {
                    None => None,
                    Some(exchange) => {
                        let exchanged = Box::pin(exchange.key_of_jwt(jwt, caller.expires_at, upstream)).await;
                        Some(exchanged.map_err(KeyError::Exchange)?)
                    }
                };
                Ok(Identity::from_jwt(caller, id, exchanged))
            }
            // SECURITY: the operator states that the backend verifies them with every request.
            Err(JwtError::UnknownIssuer) if self.jwt_verifier.forwards_unknown_issuers() => {
                Ok(Identity::from_foreign_jwt(jwt::credential_id(jwt.expose())))
            }
            Err(error @ (JwtError::Invalid(_) | JwtError::UnknownIssuer)) => {
                self.failure_limiter.begin_attempt(client).record_failure().map_err(KeyError::TooManyFailures)?;
                Err(KeyError::Jwt(error))
            }
            Err(error) => Err(KeyError::Jwt(error)),
        }
    }

    /// SECURITY: every `Ok` is proven by the token store, by the operator's keys file, or by the backend. With
    /// `tokens.foreign=forward` the operator states that the backend verifies every request.
    ///
    /// Known keys are accepted regardless of failures from the same address. An expired token of this gateway is not a
    /// failure. Its checksum cannot be made without the key of the store, or, while that is a random one or one of the
    /// salts, without a salt. A client that makes one gains nothing: the backend is not asked about it, and the store
    /// would have to know its 128 random bits.
    async fn identify_key(
        &self,
        key: &ApiKey,
        client: IpAddr,
        upstream: &UpstreamClient,
        timing: &AuthTiming,
    ) -> Result<Identity, KeyError> {
        let id = key.id();
        if let Some(known) = self.known_keys.find(&id) {
            let upstream_key = known.upstream_key.as_deref().cloned();
            return Ok(Identity::from_key(Some(known.user.clone()), upstream_key, id));
        }
        if let Some(record) = self.store.find(&id) {
            return self.token_identity(id, &record);
        }
        if let Some(AuthenticToken { key, expires }) = self.token_mint.recognize(key.expose()) {
            if expires.saturating_add(EXPIRY_TOLERANCE.as_secs()) < self.store.now().unix_seconds() {
                return Err(KeyError::TokenEnded(TokenEnd::Expired));
            }
            // SECURITY: an unavailable store neither accepts nor rejects a token. Boxed, because this branch is rare
            // and would otherwise enlarge the future of every request.
            return match Box::pin(timing.measure(Phase::Store, self.store.fetch(&id, key), store_outcome)).await {
                Ok(Ok(record)) => self.token_identity(id, &record),
                Ok(Err(end)) => Err(KeyError::TokenEnded(end)),
                Err(Unavailable) => Err(KeyError::StoreUnavailable),
            };
        }
        let attempt = || self.failure_limiter.begin_attempt(client);
        let known = match self.foreign_policy {
            ForeignKeyPolicy::Reject => Some(KeyVerdict::Rejected),
            ForeignKeyPolicy::Forward => Some(KeyVerdict::Accepted),
            ForeignKeyPolicy::Verify => self.foreign_keys.cached(&id),
        };
        let verdict = match known {
            Some(KeyVerdict::Rejected) => {
                attempt().record_failure().map_or_else(KeyVerdict::TooManyFailures, |()| KeyVerdict::Rejected)
            }
            Some(verdict) => verdict,
            None => {
                let attempt = attempt();
                let check = self.foreign_keys.check(id, key, &attempt, upstream);
                // Boxed: see above.
                Box::pin(timing.measure(Phase::ForeignCheck, check, verdict_outcome)).await
            }
        };
        match verdict {
            KeyVerdict::Accepted => Ok(Identity::from_foreign_key(self.foreign_keys.user_of(&id), id)),
            KeyVerdict::Rejected => Err(KeyError::Unknown),
            KeyVerdict::Unknown => Err(KeyError::Unverifiable),
            KeyVerdict::Busy => Err(KeyError::Busy),
            KeyVerdict::TooManyFailures(failures) => Err(KeyError::TooManyFailures(failures)),
        }
    }

    /// SECURITY: the verifier must still confirm the login, as it is configured now and with the users that it has
    /// now. Where the backend receives the user's own key, a token without one is not accepted.
    fn token_identity(&self, id: TokenId, record: &TokenRecord) -> Result<Identity, KeyError> {
        let revoked = KeyError::TokenEnded(TokenEnd::Revoked);
        if !self.token_binder.is_bound(record, &self.verifier) {
            return Err(revoked);
        }
        let upstream_key = match &self.upstream_keys {
            None => None,
            Some(_) => Some(record.upstream_key().and_then(sensitive_header_value).ok_or(revoked)?),
        };
        Ok(Identity::from_token(id, record, upstream_key))
    }

    /// Renews the upstream key after the backend rejected it. `None` if the identity has no renewable key.
    pub async fn renew_upstream_key(&self, identity: &Identity, upstream: &UpstreamClient) -> Option<Renewal> {
        let (id, rejected) = identity.renewable_key()?;
        if identity.is_jwt() {
            return Some(self.key_exchange.as_ref()?.renew(id, rejected, upstream).await);
        }
        let checks = (&*self.foreign_keys, upstream);
        Some(self.upstream_keys.as_ref()?.renew(&self.store, id, rejected, checks).await)
    }

    /// The impersonation rules.
    pub fn impersonation(&self) -> &Impersonation {
        &self.impersonation
    }

    /// The authorization rules, unless `authorization.mode` is `off`.
    pub fn authorization(&self) -> Option<&Authorization> {
        self.authorization.as_ref()
    }

    /// Removes expired entries. Called periodically, outside of requests.
    pub fn sweep(&self) {
        self.store.sweep();
        self.foreign_keys.sweep();
        self.jwt_verifier.sweep();
        self.upstream_keys.iter().for_each(|keys| keys.sweep());
        self.key_exchange.iter().for_each(|keys| keys.sweep());
        self.password_logins.sweep();
        self.failure_limiter.sweep();
    }

    /// The token store, for admin commands.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The names of the salts for operators, the primary one first.
    pub fn salt_names(&self) -> &[SaltName] {
        &self.salt_names
    }

    /// Reloads the files of the verifier and of the token issuers. Blocks on the file system.
    ///
    /// SECURITY: tokens of users that were removed from the file, or have a new password, are not accepted any more.
    /// Their entries are freed here.
    pub fn reload_files(&self, reload: FileReload) -> EndedLogins {
        self.jwt_verifier.reload_key_files(reload);
        let has_ended = self.verifier.users_file().is_some_and(|users| !users.reload(reload).is_empty());
        if has_ended { self.end_unbound_tokens() } else { EndedLogins::default() }
    }

    /// Returns whether the verifier's file is invalid, so that its previous content is still active.
    pub fn is_verifier_failing(&self) -> bool {
        self.verifier.users_file().is_some_and(UsersFile::is_failing)
    }

    /// Returns whether no user can log in, because the users file has none.
    pub fn has_no_users(&self) -> bool {
        self.verifier.users_file().is_some_and(UsersFile::is_empty)
    }

    /// The JWT issuers and their keys. A reload that does not change them keeps the same instance.
    pub fn jwt_verifier(&self) -> &Arc<JwtVerifier> {
        &self.jwt_verifier
    }

    /// The number of issuers whose keys could not be read or fetched at the last attempt.
    pub fn failing_issuer_count(&self) -> usize {
        self.jwt_verifier.failing_issuer_count()
    }

    /// The number of keys in `tokens.keys_file`.
    pub fn known_key_count(&self) -> usize {
        self.known_keys.len()
    }
}

/// The state of a file that has to be read again; `None` if it is unchanged. Blocks on the file system.
fn changed_file(watch: &mut FileWatch, path: &Path, reload: FileReload) -> Option<FileStamps> {
    if reload == FileReload::Always {
        watch.reset();
    }
    watch.changed([path].into_iter())
}

fn store_outcome<T>(result: &Result<T, Unavailable>) -> AuthOutcome {
    if result.is_ok() { AuthOutcome::Ok } else { AuthOutcome::Unavailable }
}

fn verdict_outcome(verdict: &KeyVerdict) -> AuthOutcome {
    match verdict {
        KeyVerdict::Accepted => AuthOutcome::Ok,
        KeyVerdict::Rejected => AuthOutcome::Refused,
        KeyVerdict::Unknown => AuthOutcome::Unavailable,
        KeyVerdict::Busy | KeyVerdict::TooManyFailures(_) => AuthOutcome::Busy,
    }
}
