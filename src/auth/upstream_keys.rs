//! Keys of users at the backend, which their tokens stand for: what becomes of one that the backend refuses.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use http::HeaderValue;
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::auth::verifier::{Platform, Session, VerifyError};
use crate::base::clock::{Clock, Tick};
use crate::base::secret::Secret;
use crate::store::{Revocation, Store, TokenId};

/// So soon after a renewal another one would bring the same.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(30);

/// What there is instead of a key that was refused.
#[derive(Debug)]
pub enum Renewal {
    /// This one.
    Key(HeaderValue),
    /// Nothing: it is the user's key, and the refusal was about something else.
    Same,
    /// Nothing: the user has to log in again. His token has ended.
    Ended,
    /// The platform could not be asked.
    Unavailable,
}

/// Sessions in which keys can be had anew. Kept in this process alone: elsewhere, and after a restart, users log in again.
pub struct UpstreamKeys {
    platform: Option<Platform>,
    sessions: DashMap<TokenId, Kept>,
    ttl: Duration,
    max: usize,
    clock: Clock,
}

#[derive(Clone)]
struct Kept {
    session: Session,
    until: Tick,
    /// When the key was last renewed. Held while it is: all who met the same refusal wait for the same new key.
    renewed: Arc<Mutex<Option<Tick>>>,
}

impl UpstreamKeys {
    /// `platform` is where keys can be had anew; `ttl` and `max` are those of tokens.
    pub fn new(platform: Option<Platform>, ttl: Duration, max: usize, clock: Clock) -> UpstreamKeys {
        UpstreamKeys { platform, sessions: DashMap::new(), ttl, max, clock }
    }

    /// Keeps the session of a token that was just given.
    pub fn keep(&self, id: TokenId, session: Session) {
        if self.sessions.len() < self.max {
            let kept = Kept { session, until: self.clock.now().after(self.ttl), renewed: Arc::default() };
            self.sessions.insert(id, kept);
        }
    }

    /// The backend has refused the key that the identity's token stands for.
    pub async fn renew(&self, store: &Store, id: TokenId, refused: &HeaderValue) -> Renewal {
        let kept = self.sessions.get(&id).map(|kept| kept.clone());
        let (Some(kept), Some(platform)) = (kept, &self.platform) else {
            return self.end(store, id).await;
        };
        let mut renewed = kept.renewed.lock().await;
        let Some(record) = store.find(&id) else { return Renewal::Ended };
        let now = self.clock.now();
        match record.upstream_key().and_then(field_value) {
            Some(current) if current != *refused => return Renewal::Key(current),
            _ if renewed.is_some_and(|at| now.since(at) < RENEWAL_INTERVAL) => return Renewal::Same,
            _ => {}
        }
        let fingerprint = id.fingerprint();
        match platform.key_of(&kept.session).await {
            Ok(key) => {
                *renewed = Some(now);
                let Some(value) = field_value(&key).filter(|value| value != refused) else {
                    return Renewal::Same;
                };
                info!(key = %fingerprint, user = record.user.as_str(), "the platform has another key for this user");
                if store.set_upstream_key(&id, key).await.is_err() {
                    warn!(key = %fingerprint, "the new upstream key could not be kept");
                }
                Renewal::Key(value)
            }
            Err(VerifyError::Wrong) => self.end(store, id).await,
            Err(_) => Renewal::Unavailable,
        }
    }

    /// SECURITY: a token whose key is refused for good is of no use to its owner, and asking for another one brings a new key.
    async fn end(&self, store: &Store, id: TokenId) -> Renewal {
        info!(key = %id.fingerprint(), "the backend refuses the key of this token, which ends");
        self.sessions.remove(&id);
        if store.revoke(Revocation::Token(id.fingerprint())).await.is_err() {
            warn!(key = %id.fingerprint(), "other replicas do not know yet that this token has ended");
        }
        Renewal::Ended
    }

    /// Forgets sessions whose tokens have ended. Called now and then.
    pub fn sweep(&self) {
        let now = self.clock.now();
        self.sessions.retain(|_, kept| now < kept.until);
    }
}

/// A key for a field, marked as sensitive.
pub fn field_value(key: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(key.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}
