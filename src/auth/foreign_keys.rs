//! Foreign keys: API keys that the gateway did not make. Verifies them at the backend and caches the verdicts; knows no
//! users.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{Mutex, Semaphore, oneshot};
use tracing::{error, warn};

use crate::auth::ApiKey;
use crate::auth::failure_limiter::{Attempt, Charge, Reservation, TooManyFailures};
use crate::auth::key_user::user_of_key;
use crate::auth::system_query::{CHECK_PATH, SystemQueryError, request_ontologies};
use crate::base::clock::{Clock, Tick};
use crate::base::single_flight::SingleFlight;
use crate::base::user_name::UserName;
use crate::config::TokenOptions;
use crate::store::TokenId;
use crate::upstream::UpstreamClient;

/// Maximum number of cached verdicts of each kind. Fewer rejected ones, because clients can send any number of random
/// keys.
const MAX_REJECTED: usize = 100_000;
const MAX_ACCEPTED: usize = 1_000_000;

/// What to do if the backend accepts every key.
pub const UNVERIFIABLE_KEYS_REMEDY: &str =
    "tokens.foreign: reject; `forward` only if the backend verifies keys on its other paths, otherwise any key passes";

/// The result of checking a key at the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyVerdict {
    /// The backend accepts the key.
    Accepted,
    /// The backend rejects the key.
    Rejected,
    /// The backend did not respond, or its response was inconclusive.
    Unknown,
    /// The limit on concurrent checks is reached.
    Busy,
    /// The client has too many failures. The backend was not asked.
    TooManyFailures(TooManyFailures),
}

/// Each check occupies a thread of the backend, and clients can send any number of random keys.
const MAX_CONCURRENT_CHECKS: usize = 64;

/// Validity of a successful check that the backend rejects random keys.
const RANDOM_KEY_CHECK_INTERVAL: Duration = Duration::from_secs(300);

/// Validity of a failed one, so that concurrent checks do not repeat it one after the other.
const RANDOM_KEY_RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// How long after its verdict has expired an accepted key is still known. Its holder has proven it, so it is checked
/// again whatever other clients at the same address do.
const KNOWN_KEY_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);

struct AcceptedKey {
    until: Tick,
    /// The user, if the backend has been asked for it and has responded with a name.
    user: Option<UserName>,
}

/// Checks keys at the backend, with a cache and at most one check per key at a time.
pub struct ForeignKeys {
    /// Entries stay for [`KNOWN_KEY_PERIOD`] after they have expired.
    accepted: DashMap<TokenId, AcceptedKey>,
    rejected: DashMap<TokenId, Tick>,
    checks: SingleFlight<TokenId, KeyVerdict>,
    rechecks: SingleFlight<TokenId, KeyVerdict>,
    check_permits: Arc<Semaphore>,
    /// True if the backend rejects a random key; the result is valid until this time.
    random_key_check: Mutex<Option<(bool, Tick)>>,
    /// `tokens.foreign_accept_ttl`
    accept_ttl: Duration,
    /// `tokens.foreign_reject_ttl`
    reject_ttl: Duration,
    /// `tokens.foreign_user_query`
    user_query: Option<String>,
    clock: Clock,
}

impl ForeignKeys {
    /// An empty cache.
    pub fn new(options: &TokenOptions, clock: Clock) -> ForeignKeys {
        ForeignKeys {
            accepted: DashMap::new(),
            rejected: DashMap::new(),
            checks: SingleFlight::new(KeyVerdict::Unknown),
            rechecks: SingleFlight::new(KeyVerdict::Unknown),
            check_permits: Arc::new(Semaphore::new(MAX_CONCURRENT_CHECKS)),
            random_key_check: Mutex::default(),
            accept_ttl: options.foreign_accept_ttl,
            reject_ttl: options.foreign_reject_ttl,
            user_query: options.foreign_user_query.clone(),
            clock,
        }
    }

    /// The user of an accepted key, if the backend has named one.
    pub fn user_of(&self, id: &TokenId) -> Option<UserName> {
        self.user_query.as_ref()?;
        self.accepted.get(id)?.user.clone()
    }

    /// Checks a key at the backend, or joins a check of the same key. Must be called on a `LocalSet`.
    ///
    /// SECURITY: each check is charged to `attempt`, whatever the backend responds, unless it accepts the key. Otherwise
    /// a client could try any number of keys at a backend that responds to wrong ones with an error or a redirect. Only
    /// a key that was accepted before is checked without a charge.
    pub async fn check(
        self: &Arc<ForeignKeys>,
        id: TokenId,
        key: &ApiKey,
        attempt: &Attempt,
        upstream: &UpstreamClient,
    ) -> KeyVerdict {
        let (reply, verdict) = oneshot::channel();
        if let Some(leader) = self.checks.join(id, reply) {
            if let Some(verdict) = self.cached(&id) {
                leader.finish(verdict);
                return verdict;
            }
            let reservation = match self.accepted.contains_key(&id) {
                true => None,
                false => match attempt.reserve() {
                    Ok(reservation) => Some(reservation),
                    Err(error) => {
                        let verdict = KeyVerdict::TooManyFailures(error.into());
                        leader.finish(verdict);
                        return verdict;
                    }
                },
            };
            if let Ok(permit) = Arc::clone(&self.check_permits).try_acquire_owned() {
                let (cache, key, upstream) = (Arc::clone(self), key.clone(), upstream.clone());
                // A separate task, because other requests may wait for the same verdict even if this client
                // disconnects.
                tokio::task::spawn_local(async move {
                    let verdict = cache.check_and_store(id, key, reservation, &upstream).await;
                    leader.finish(verdict);
                    drop(permit);
                });
            } else {
                leader.finish(KeyVerdict::Busy);
            }
        }
        verdict.await.unwrap_or(KeyVerdict::Unknown)
    }

    /// Asks the backend whether it accepts a key that it has issued. Ignores and changes no cached verdict.
    pub async fn check_again(&self, key: ApiKey, upstream: &UpstreamClient) -> KeyVerdict {
        let (reply, verdict) = oneshot::channel();
        if let Some(leader) = self.rechecks.join(key.id(), reply) {
            let verdict = match self.check_permits.try_acquire() {
                Ok(_permit) if self.has_backend_rejected_random_key(upstream).await => check_key(key, upstream).await,
                Ok(_) => KeyVerdict::Unknown,
                Err(_) => KeyVerdict::Busy,
            };
            leader.finish(verdict);
        }
        verdict.await.unwrap_or(KeyVerdict::Unknown)
    }

    /// Removes expired verdicts.
    pub fn sweep(&self) {
        let now = self.clock.now();
        self.accepted.retain(|_, key| now < key.until.after(KNOWN_KEY_PERIOD));
        self.rejected.retain(|_, until| now < *until);
    }

    /// The cached verdict, unless it has expired.
    pub fn cached(&self, id: &TokenId) -> Option<KeyVerdict> {
        let now = self.clock.now();
        if self.accepted.get(id).is_some_and(|key| now < key.until) {
            return Some(KeyVerdict::Accepted);
        }
        self.rejected.get(id).is_some_and(|until| now < *until).then_some(KeyVerdict::Rejected)
    }

    fn store_verdict(&self, id: TokenId, verdict: KeyVerdict, user: Option<UserName>) {
        let now = self.clock.now();
        match verdict {
            KeyVerdict::Accepted if self.accepted.len() < MAX_ACCEPTED || self.accepted.contains_key(&id) => {
                self.rejected.remove(&id);
                // SECURITY: a user who is denied by name stays denied if the backend does not name the user again.
                let user = user.or_else(|| self.accepted.get(&id)?.user.clone());
                self.accepted.insert(id, AcceptedKey { until: now.after(self.accept_ttl), user });
            }
            KeyVerdict::Rejected => {
                self.accepted.remove(&id);
                if self.rejected.len() < MAX_REJECTED {
                    self.rejected.insert(id, now.after(self.reject_ttl));
                }
            }
            // SECURITY: other verdicts are never cached and never accept a key.
            _ => {}
        }
    }

    /// SECURITY: no key is sent to a backend that did not clearly reject a random one: it could not verify the key, and
    /// it may not be the backend at all.
    async fn check_and_store(
        &self,
        id: TokenId,
        key: ApiKey,
        reservation: Option<Reservation>,
        upstream: &UpstreamClient,
    ) -> KeyVerdict {
        if !self.has_backend_rejected_random_key(upstream).await {
            return KeyVerdict::Unknown;
        }
        let charge = reservation.map(Reservation::start);
        let verdict = check_key(key.clone(), upstream).await;
        let user = match &self.user_query {
            Some(query) if verdict == KeyVerdict::Accepted => user_of_key(query, &key, upstream).await,
            _ => None,
        };
        self.store_verdict(id, verdict, user);
        if verdict == KeyVerdict::Accepted {
            charge.into_iter().for_each(Charge::refund);
        }
        verdict
    }

    /// Returns whether the backend rejects a random key.
    ///
    /// SECURITY: an accepting response proves nothing if the backend accepts every key, because it does not check keys
    /// on this path or because a proxy in front of it responds instead. This request has the same form as all other
    /// checks, so that the backend cannot distinguish them.
    async fn has_backend_rejected_random_key(&self, upstream: &UpstreamClient) -> bool {
        let mut last_check = self.random_key_check.lock().await;
        if let Some((is_rejecting, until)) = *last_check
            && self.clock.now() < until
        {
            return is_rejecting;
        }
        let verdict = check_key(ApiKey::random(), upstream).await;
        if verdict == KeyVerdict::Accepted {
            error!(
                "the backend accepts a random key on {CHECK_PATH}, so foreign keys cannot be verified and are not \
                 accepted. Set {UNVERIFIABLE_KEYS_REMEDY}"
            );
        }
        let is_rejecting = verdict == KeyVerdict::Rejected;
        let interval = if is_rejecting { RANDOM_KEY_CHECK_INTERVAL } else { RANDOM_KEY_RETRY_INTERVAL };
        *last_check = Some((is_rejecting, self.clock.now().after(interval)));
        is_rejecting
    }
}

/// Sends a check of the key to the backend.
async fn check_key(key: ApiKey, upstream: &UpstreamClient) -> KeyVerdict {
    let fingerprint = key.id().fingerprint();
    let why = match request_ontologies(key, upstream).await {
        Ok(body) if !is_error_envelope(&body) => return KeyVerdict::Accepted,
        Ok(_) => format!("the response to {CHECK_PATH} has status 200 but reports an error in its body"),
        Err(SystemQueryError::Rejected) => return KeyVerdict::Rejected,
        Err(SystemQueryError::Failed(why)) => why,
    };
    warn!(key = %fingerprint, why, "cannot verify a key at the backend");
    KeyVerdict::Unknown
}

/// Whether the body of a response with status 200 reports an error.
pub fn is_error_envelope(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct StatusEnvelope {
        status: Option<serde_json::Value>,
    }
    let envelope = serde_json::from_slice::<StatusEnvelope>(body).ok();
    let status = envelope.and_then(|envelope| envelope.status);
    let status = status.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    status.eq_ignore_ascii_case("error") || status.to_ascii_lowercase().starts_with("fail")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_envelope_is_recognised() {
        for body in [r#"{"status":"error","data":"no"}"#, r#"{"data":[],"status":"failed"}"#] {
            assert!(is_error_envelope(body.as_bytes()), "{body}");
        }
        for body in ["", "[]", "{}", r#"{"status":"success","data":["error"]}"#, r#"{"status":null}"#, "<html>"] {
            assert!(!is_error_envelope(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn verdicts_expire() {
        let clock = Clock::manual(0);
        let options = crate::config::testing::load("", &[]).expect("valid").tokens;
        let keys = ForeignKeys::new(&options, clock.clone());
        let [accepted, rejected, unknown] = [&b"accepted"[..], b"rejected", b"unknown"].map(TokenId::from_token);
        keys.store_verdict(accepted, KeyVerdict::Accepted, None);
        keys.store_verdict(rejected, KeyVerdict::Rejected, None);
        keys.store_verdict(unknown, KeyVerdict::Unknown, None);
        assert_eq!(keys.cached(&accepted), Some(KeyVerdict::Accepted));
        assert_eq!(keys.cached(&rejected), Some(KeyVerdict::Rejected));
        assert_eq!(keys.cached(&unknown), None);
        clock.advance(Duration::from_secs(10));
        assert_eq!(keys.cached(&rejected), None);
        assert_eq!(keys.cached(&accepted), Some(KeyVerdict::Accepted));
        clock.advance(Duration::from_secs(290));
        assert_eq!(keys.cached(&accepted), None);
        keys.sweep();
        assert!(keys.accepted.contains_key(&accepted) && keys.rejected.is_empty());
        keys.store_verdict(accepted, KeyVerdict::Unknown, None);
        assert!(keys.accepted.contains_key(&accepted), "an inconclusive response changes nothing");
        keys.store_verdict(accepted, KeyVerdict::Rejected, None);
        assert!(!keys.accepted.contains_key(&accepted));
        keys.store_verdict(accepted, KeyVerdict::Accepted, None);
        assert_eq!(keys.cached(&accepted), Some(KeyVerdict::Accepted));
        clock.advance(keys.accept_ttl + KNOWN_KEY_PERIOD);
        keys.sweep();
        assert!(keys.accepted.is_empty());
    }
}
