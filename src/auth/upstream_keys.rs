//! Keys of users at the backend, which their tokens stand for: what becomes of one that the backend refuses.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use http::HeaderValue;
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::auth::verifier::{Platform, PlatformSession, VerifyError};
use crate::base::clock::{Clock, Tick};
use crate::base::secret::Secret;
use crate::store::{Revocation, Store, TokenId};

/// So soon after a renewal another one would bring the same.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(30);

/// What there is instead of a key that was refused.
#[derive(Debug)]
pub enum Renewal {
    /// This one.
    NewKey(HeaderValue),
    /// Nothing: it is the user's key, and the refusal was about something else.
    Unchanged,
    /// Nothing: the user has to log in again. His token has ended.
    TokenRevoked,
    /// The platform could not be asked.
    Unavailable,
}

/// Sessions in which keys can be had anew. Kept in this process alone: elsewhere, and after a restart, users log in again.
pub struct UpstreamKeys {
    platform: Option<Platform>,
    sessions: DashMap<TokenId, RenewableSession>,
    ttl: Duration,
    max: usize,
    clock: Clock,
}

#[derive(Clone)]
struct RenewableSession {
    session: PlatformSession,
    expires: Tick,
    /// When the key was last renewed. Held while it is: all who met the same refusal wait for the same new key.
    last_renewal: Arc<Mutex<Option<Tick>>>,
}

impl UpstreamKeys {
    /// `platform` is where keys can be had anew; `ttl` and `max` are those of tokens.
    pub fn new(platform: Option<Platform>, ttl: Duration, max: usize, clock: Clock) -> UpstreamKeys {
        UpstreamKeys { platform, sessions: DashMap::new(), ttl, max, clock }
    }

    /// Keeps the session of a token that was just given.
    pub fn store_session(&self, id: TokenId, session: PlatformSession) {
        if self.sessions.len() < self.max {
            let kept = RenewableSession {
                session,
                expires: self.clock.now().after(self.ttl),
                last_renewal: Arc::default(),
            };
            self.sessions.insert(id, kept);
        }
    }

    /// The backend has refused the key that the identity's token stands for.
    pub async fn renew(&self, store: &Store, id: TokenId, refused: &HeaderValue) -> Renewal {
        let kept = self.sessions.get(&id).map(|kept| kept.clone());
        let (Some(kept), Some(platform)) = (kept, &self.platform) else {
            return self.revoke_token(store, id).await;
        };
        let mut renewed = kept.last_renewal.lock().await;
        let Some(record) = store.find(&id) else { return Renewal::TokenRevoked };
        let now = self.clock.now();
        match record.upstream_key().and_then(sensitive_header_value) {
            Some(current) if current != *refused => return Renewal::NewKey(current),
            _ if renewed.is_some_and(|at| now.since(at) < RENEWAL_INTERVAL) => return Renewal::Unchanged,
            _ => {}
        }
        let fingerprint = id.fingerprint();
        match platform.renew_key(&kept.session).await {
            Ok(key) => {
                *renewed = Some(now);
                let Some(value) = sensitive_header_value(&key).filter(|value| value != refused) else {
                    return Renewal::Unchanged;
                };
                info!(key = %fingerprint, user = record.user.as_str(), "the platform has another key for this user");
                if store.set_upstream_key(&id, key).await.is_err() {
                    warn!(key = %fingerprint, "the new upstream key could not be kept");
                }
                Renewal::NewKey(value)
            }
            Err(VerifyError::WrongCredentials) => self.revoke_token(store, id).await,
            Err(_) => Renewal::Unavailable,
        }
    }

    /// SECURITY: a token whose key is refused for good is of no use to its owner, and asking for another one brings a new key.
    async fn revoke_token(&self, store: &Store, id: TokenId) -> Renewal {
        info!(key = %id.fingerprint(), "the backend refuses the key of this token, which ends");
        self.sessions.remove(&id);
        if store.revoke(Revocation::Token(id.fingerprint())).await.is_err() {
            warn!(key = %id.fingerprint(), "other replicas do not know yet that this token has ended");
        }
        Renewal::TokenRevoked
    }

    /// Forgets sessions whose tokens have ended. Called now and then.
    pub fn sweep(&self) {
        let now = self.clock.now();
        self.sessions.retain(|_, kept| now < kept.expires);
    }
}

/// A key for a field, marked as sensitive.
pub fn sensitive_header_value(key: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(key.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}
