//! Renews users' upstream keys when the backend rejects them. Knows nothing about requests.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use http::HeaderValue;
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::auth::ApiKey;
use crate::auth::foreign_keys::{ForeignKeys, KeyVerdict};
use crate::auth::verifier::{PlatformSession, Verifier, VerifyError};
use crate::base::clock::{Clock, Tick};
use crate::base::secret::Secret;
use crate::store::{Revocation, Store, TokenId};
use crate::upstream::UpstreamClient;

/// Minimum time between two renewals of the same key: an earlier one would return the same key. Also between two checks
/// of a key that cannot be renewed.
pub const RENEWAL_INTERVAL: Duration = Duration::from_secs(30);

/// The result of renewing a rejected upstream key.
#[derive(Debug)]
pub enum Renewal {
    /// The new key; send the request again with it.
    NewKey(HeaderValue),
    /// The key is still the user's current key, so the backend rejected the request for a different reason.
    Unchanged,
    /// The token was revoked; the user has to log in again.
    TokenRevoked,
    /// The platform did not respond.
    Unavailable,
}

/// Platform sessions, which can renew upstream keys. Only in the memory of this process: on other replicas, and after a
/// restart, users have to log in again.
pub struct UpstreamKeys {
    verifier: Arc<Verifier>,
    sessions: DashMap<TokenId, RenewableSession>,
    /// When the backend last accepted the key of a token, after it had rejected a request with it.
    accepted: DashMap<TokenId, Tick>,
    ttl: Duration,
    max: usize,
    clock: Clock,
}

#[derive(Clone)]
struct RenewableSession {
    session: PlatformSession,
    expires: Tick,
    /// When the key was last renewed. Locked during a renewal, so that concurrent requests wait for the same new key.
    last_renewal: Arc<Mutex<Option<Tick>>>,
}

impl UpstreamKeys {
    /// If `verifier` is the platform, it renews keys; otherwise a key that the backend rejects revokes the token. `ttl`
    /// and `max` are those of tokens.
    pub fn new(verifier: Arc<Verifier>, ttl: Duration, max: usize, clock: Clock) -> UpstreamKeys {
        UpstreamKeys { verifier, sessions: DashMap::new(), accepted: DashMap::new(), ttl, max, clock }
    }

    /// Stores the session of a new token.
    pub fn store_session(&self, id: TokenId, session: PlatformSession) {
        if self.sessions.len() < self.max {
            let renewable =
                RenewableSession { session, expires: self.clock.now().after(self.ttl), last_renewal: Arc::default() };
            self.sessions.insert(id, renewable);
        }
    }

    /// Renews the upstream key of the token `id` after the backend rejected a request with it. `checks` can ask the
    /// backend about a key.
    pub async fn renew(
        &self,
        store: &Store,
        id: TokenId,
        rejected: &HeaderValue,
        checks: (&ForeignKeys, &UpstreamClient),
    ) -> Renewal {
        let session = self.sessions.get(&id).map(|session| session.clone());
        let (Some(renewable), Some(platform)) = (session, self.verifier.platform()) else {
            return self.revoke_if_rejected(store, id, rejected, checks).await;
        };
        let mut last_renewal = renewable.last_renewal.lock().await;
        let Some(record) = store.find(&id) else { return Renewal::TokenRevoked };
        let now = self.clock.now();
        match record.upstream_key().and_then(sensitive_header_value) {
            Some(current) if current != *rejected => return Renewal::NewKey(current),
            _ if last_renewal.is_some_and(|at| now.since(at) < RENEWAL_INTERVAL) => {
                return Renewal::Unchanged;
            }
            _ => {}
        }
        let fingerprint = id.fingerprint();
        match platform.renew_key(&renewable.session).await {
            Ok(key) => {
                *last_renewal = Some(now);
                let Some(value) = sensitive_header_value(&key).filter(|value| value != rejected) else {
                    return Renewal::Unchanged;
                };
                info!(key = %fingerprint, user = record.user.as_str(), "upstream key renewed");
                if store.set_upstream_key(&id, key).await.is_err() {
                    warn!(key = %fingerprint, "cannot store the renewed upstream key");
                }
                Renewal::NewKey(value)
            }
            Err(VerifyError::WrongCredentials) => self.revoke_if_rejected(store, id, rejected, checks).await,
            Err(_) => Renewal::Unavailable,
        }
    }

    /// Revokes the token if the backend rejects its key, which cannot be renewed. Asks the backend, because it may have
    /// rejected only this request: a path that the user must not use, or one that does not exist.
    async fn revoke_if_rejected(
        &self,
        store: &Store,
        id: TokenId,
        rejected: &HeaderValue,
        (keys, upstream): (&ForeignKeys, &UpstreamClient),
    ) -> Renewal {
        let now = self.clock.now();
        match store.find(&id).as_deref().map(|record| record.upstream_key().and_then(sensitive_header_value)) {
            None => return Renewal::TokenRevoked,
            // A login has replaced it.
            Some(Some(current)) if current != *rejected => return Renewal::NewKey(current),
            _ if self.accepted.get(&id).is_some_and(|at| now.since(*at) < RENEWAL_INTERVAL) => {
                return Renewal::Unchanged;
            }
            _ => {}
        }
        let verdict = match ApiKey::parse(rejected.as_bytes()) {
            Some(key) => keys.check_again(key, upstream).await,
            None => KeyVerdict::Rejected,
        };
        match verdict {
            KeyVerdict::Rejected => self.revoke_token(store, id).await,
            KeyVerdict::Accepted => {
                self.accepted.insert(id, now);
                Renewal::Unchanged
            }
            KeyVerdict::Unknown | KeyVerdict::Busy | KeyVerdict::TooManyFailures(_) => Renewal::Unchanged,
        }
    }

    /// SECURITY: a token whose upstream key is permanently rejected is useless, and a new login gets a new key.
    async fn revoke_token(&self, store: &Store, id: TokenId) -> Renewal {
        info!(key = %id.fingerprint(), "token revoked: the backend rejects its upstream key");
        self.sessions.remove(&id);
        if store.revoke(Revocation::Token(id.fingerprint())).await.is_err() {
            warn!(key = %id.fingerprint(), "the revocation is not yet known to other replicas");
        }
        Renewal::TokenRevoked
    }

    /// Removes the sessions of expired tokens, and old results of checks. Called periodically.
    pub fn sweep(&self) {
        let now = self.clock.now();
        self.sessions.retain(|_, session| now < session.expires);
        self.accepted.retain(|_, at| now.since(*at) < RENEWAL_INTERVAL);
    }
}

/// A key as a header value marked as sensitive; `None` if it contains characters that a header cannot have.
pub fn sensitive_header_value(key: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(key.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}
