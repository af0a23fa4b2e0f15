//! Exchanges a proven login for the user's own key at the backend, by the statement `SHOW TOKEN`, as `langchain-timbr`
//! does it. Knows neither requests nor tokens of the gateway.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use http::HeaderValue;
use serde::Deserialize;
use tokio::sync::{Semaphore, oneshot};
use tracing::{info, warn};

use crate::auth::ApiKey;
use crate::auth::jwt::Jwt;
use crate::auth::system_query::{SystemCredential, SystemQueryError, query};
use crate::auth::upstream_keys::{RENEWAL_INTERVAL, Renewal, sensitive_header_value};
use crate::base::clock::{Clock, Tick};
use crate::base::secret::Secret;
use crate::base::single_flight::SingleFlight;
use crate::store::TokenId;
use crate::upstream::UpstreamClient;

/// The statement that returns the key of its sender.
const STATEMENT: &str = "SHOW TOKEN";

/// Each exchange occupies a thread of the backend.
const MAX_CONCURRENT_EXCHANGES: usize = 64;

/// Maximum number of JWTs whose keys are cached, as many as verified JWTs. Beyond it, each request is an exchange.
const MAX_CACHED: usize = 100_000;

/// Why an exchange failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeError {
    /// The backend rejects the login.
    Rejected,
    /// The backend did not respond, or its response has no key.
    Unavailable,
}

/// Users' keys, by the JWT that was exchanged for them. Only in the memory of this process.
pub struct KeyExchange {
    keys: Arc<DashMap<TokenId, ExchangedKey>>,
    exchanges: SingleFlight<TokenId, Result<HeaderValue, ExchangeError>>,
    permits: Arc<Semaphore>,
    clock: Clock,
}

#[derive(Clone)]
struct ExchangedKey {
    key: HeaderValue,
    jwt: Jwt,
    exchanged: Tick,
    /// The end of the JWT's life.
    expires: Tick,
}

/// `[{"token": "tk_…"}]`.
///
/// SECURITY: exactly one row. With several rows, or a duplicate member, it is not clear whose key it is.
#[derive(Deserialize)]
struct ShownToken {
    token: String,
}

impl KeyExchange {
    /// Without keys.
    pub fn new(clock: Clock) -> KeyExchange {
        KeyExchange {
            keys: Arc::default(),
            exchanges: SingleFlight::new(Err(ExchangeError::Unavailable)),
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_EXCHANGES)),
            clock,
        }
    }

    /// Exchanges the key that a login has returned. The caller stores the result with the token of the login.
    pub async fn key_of_login(&self, key: &Secret, upstream: &UpstreamClient) -> Result<Secret, ExchangeError> {
        let _permit = self.permits.try_acquire().map_err(|_| ExchangeError::Unavailable)?;
        let key = ApiKey::parse(key.expose().as_bytes()).ok_or(ExchangeError::Unavailable)?;
        show_token(SystemCredential::Key(key), upstream).await
    }

    /// The key of the user of a verified JWT that ends at `expires_at`, in seconds of Unix time. Must be called on a
    /// `LocalSet`.
    pub async fn key_of_jwt(
        &self,
        jwt: &Jwt,
        expires_at: u64,
        upstream: &UpstreamClient,
    ) -> Result<(TokenId, HeaderValue), ExchangeError> {
        // SECURITY: the headers beside a JWT can select a different user or tenant at the backend.
        let id = jwt.id_with_headers();
        let now = self.clock.now();
        let cached = self.keys.get(&id).filter(|cached| now < cached.expires).map(|cached| cached.key.clone());
        let key = match cached {
            Some(key) => key,
            None => {
                let life = Duration::from_secs(expires_at.saturating_sub(self.clock.unix_seconds()));
                self.exchange(id, jwt, now.after(life), upstream).await?
            }
        };
        Ok((id, key))
    }

    /// Exchanges the JWT again after the backend rejected a request with the key.
    pub async fn renew(&self, id: TokenId, rejected: &HeaderValue, upstream: &UpstreamClient) -> Renewal {
        let Some(cached) = self.keys.get(&id).map(|cached| cached.clone()) else { return Renewal::Unchanged };
        if cached.key != *rejected {
            return Renewal::NewKey(cached.key);
        }
        if self.clock.now().since(cached.exchanged) < RENEWAL_INTERVAL {
            return Renewal::Unchanged;
        }
        match self.exchange(id, &cached.jwt, cached.expires, upstream).await {
            Ok(key) if key != *rejected => {
                info!(key = %id.fingerprint(), "upstream key of a JWT renewed");
                Renewal::NewKey(key)
            }
            Ok(_) | Err(ExchangeError::Rejected) => Renewal::Unchanged,
            Err(ExchangeError::Unavailable) => Renewal::Unavailable,
        }
    }

    /// Exchanges a JWT, or joins an exchange of the same one.
    async fn exchange(
        &self,
        id: TokenId,
        jwt: &Jwt,
        expires: Tick,
        upstream: &UpstreamClient,
    ) -> Result<HeaderValue, ExchangeError> {
        let (reply, exchanged) = oneshot::channel();
        // Without a permit, the leader is dropped, and all waiting requests get `Unavailable`.
        if let Some(leader) = self.exchanges.join(id, reply)
            && let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned()
        {
            let (keys, jwt, upstream) = (Arc::clone(&self.keys), jwt.clone(), upstream.clone());
            let now = self.clock.now();
            // A separate task, because other requests may wait for the same key even if this client disconnects.
            tokio::task::spawn_local(async move {
                let shown = show_token(SystemCredential::Jwt(jwt.clone()), &upstream).await;
                let key = shown.and_then(|key| sensitive_header_value(&key).ok_or(ExchangeError::Unavailable));
                match &key {
                    Ok(key) if keys.len() < MAX_CACHED || keys.contains_key(&id) => {
                        keys.insert(id, ExchangedKey { key: key.clone(), jwt, exchanged: now, expires });
                    }
                    Err(ExchangeError::Rejected) => drop(keys.remove(&id)),
                    _ => {}
                }
                leader.finish(key);
                drop(permit);
            });
        }
        exchanged.await.unwrap_or(Err(ExchangeError::Unavailable))
    }

    /// Removes the keys of expired JWTs. Called periodically.
    pub fn sweep(&self) {
        let now = self.clock.now();
        self.keys.retain(|_, cached| now < cached.expires);
    }
}

async fn show_token(credential: SystemCredential, upstream: &UpstreamClient) -> Result<Secret, ExchangeError> {
    match query(STATEMENT, credential, upstream).await {
        Ok(body) => shown_key(&body).ok_or_else(|| {
            warn!("the backend's response to {STATEMENT} is not one row with a key in `token`");
            ExchangeError::Unavailable
        }),
        Err(SystemQueryError::Rejected) => Err(ExchangeError::Rejected),
        Err(SystemQueryError::Failed(why)) => {
            warn!(why, "the backend did not respond to {STATEMENT} with a key");
            Err(ExchangeError::Unavailable)
        }
    }
}

fn shown_key(body: &[u8]) -> Option<Secret> {
    let [ShownToken { token }] = serde_json::from_slice::<[ShownToken; 1]>(body).ok()?;
    ApiKey::is_valid(token.as_bytes()).then(|| Secret::new(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_must_be_one_row_with_a_key() {
        let key = |body: &str| shown_key(body.as_bytes()).map(|key| key.expose().to_owned());
        assert_eq!(key(r#"[{"token": "tk_1"}]"#).as_deref(), Some("tk_1"));
        assert_eq!(key(r#"[{"user": "alice", "token": "tk_1"}]"#).as_deref(), Some("tk_1"));
        for body in [
            "",
            "[]",
            r#"{"token": "tk_1"}"#,
            r#"[{"token": "tk_1"}, {"token": "tk_2"}]"#,
            r#"[{"token": "tk_1", "token": "tk_2"}]"#,
            r#"[{"token": "a b"}]"#,
            r#"[{"token": null}]"#,
            r#"[{"key": "tk_1"}]"#,
            r#"{"status": "error", "data": "no"}"#,
        ] {
            assert_eq!(key(body), None, "{body}");
        }
    }
}
