//! Keys that the gateway did not mint: the backend is asked once whether they are good.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use http::{Method, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::time::timeout;
use tracing::{error, warn};

use crate::auth::ApiKey;
use crate::base::clock::{self, Clock, Tick};
use crate::base::single_flight::SingleFlight;
use crate::http::h1::request::write_request_start;
use crate::http::h1::response::write_header;
use crate::http::headers::HeaderName;
use crate::store::TokenId;
use crate::upstream::{
    OutgoingMessage, OutgoingRequest, RequestBody, ResponseBody, UpstreamClient, UpstreamError,
};

/// Documented, cheap, and answered for every good key.
const CHECK_PATH: &str = "/timbr/api/get_ontologies/";

/// A backend that takes longer to say yes or no is as good as down.
const CHECK_TIMEOUT: Duration = Duration::from_secs(15);

/// Most answers remembered of each kind. Bad keys cost a stranger nothing to make up.
const MAX_REJECTED: usize = 100_000;
const MAX_ACCEPTED: usize = 1_000_000;

/// The backend's answer about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyVerdict {
    /// It takes the key.
    Accepted,
    /// It does not.
    Rejected,
    /// It could not be asked, or gave no clear answer.
    Unknown,
    /// It is being asked about as many keys as it may be at once.
    Busy,
}

/// Most keys that the backend is asked about at once. A question holds one of its threads, and strangers can make up
/// keys as fast as they can send them.
const MAX_CONCURRENT_CHECKS: usize = 64;

/// How long it is taken for granted that the backend tells keys apart.
const RANDOM_KEY_CHECK_INTERVAL: Duration = Duration::from_secs(300);

/// How long after it did not, so that those who wait for the same answer do not ask one after the other.
const RANDOM_KEY_RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// More of an answer is not read to see what it says of itself.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;

/// Lifetimes of answers.
#[derive(Clone, Copy, Debug)]
pub struct VerdictTtls {
    /// Of a yes.
    pub accept: Duration,
    /// Of a no.
    pub reject: Duration,
}

/// Asks, remembers, and never asks twice at once about one key. Clones share what they remember.
#[derive(Clone)]
pub struct ForeignKeys(Arc<ForeignKeyCache>);

struct ForeignKeyCache {
    accepted: DashMap<TokenId, Tick>,
    rejected: DashMap<TokenId, Tick>,
    flights: SingleFlight<TokenId, KeyVerdict>,
    check_permits: Arc<Semaphore>,
    /// Whether the backend refuses a key that nobody has, and until when that is taken for granted.
    random_key_check: Mutex<Option<(bool, Tick)>>,
    ttls: VerdictTtls,
    clock: Clock,
}

impl ForeignKeys {
    /// Knows nothing yet.
    pub fn new(memory: VerdictTtls, clock: Clock) -> ForeignKeys {
        ForeignKeys(Arc::new(ForeignKeyCache {
            accepted: DashMap::new(),
            rejected: DashMap::new(),
            flights: SingleFlight::new(KeyVerdict::Unknown),
            check_permits: Arc::new(Semaphore::new(MAX_CONCURRENT_CHECKS)),
            random_key_check: Mutex::default(),
            ttls: memory,
            clock,
        }))
    }

    /// What the backend said about the key not long ago.
    pub fn cached(&self, id: &TokenId) -> Option<KeyVerdict> {
        self.0.cached(id)
    }

    /// Whether the backend takes the key. Must be called on a `LocalSet`.
    pub async fn check(&self, id: TokenId, key: &ApiKey, upstream: &UpstreamClient) -> KeyVerdict {
        let (reply, verdict) = oneshot::channel();
        if let Some(leader) = self.0.flights.join(id, reply) {
            if let Some(verdict) = self.0.cached(&id) {
                leader.finish(verdict);
            } else if let Ok(turn) = Arc::clone(&self.0.check_permits).try_acquire_owned() {
                let (inner, key, upstream) = (Arc::clone(&self.0), key.clone(), upstream.clone());
                // A task of its own: others wait for the answer too, even if this client goes away.
                tokio::task::spawn_local(async move {
                    let verdict = inner.ask(id, key, &upstream).await;
                    leader.finish(verdict);
                    drop(turn);
                });
            } else {
                leader.finish(KeyVerdict::Busy);
            }
        }
        verdict.await.unwrap_or(KeyVerdict::Unknown)
    }

    /// Forgets answers that are too old.
    pub fn sweep(&self) {
        let now = self.0.clock.now();
        self.0.accepted.retain(|_, until| now < *until);
        self.0.rejected.retain(|_, until| now < *until);
    }
}

impl ForeignKeyCache {
    fn cached(&self, id: &TokenId) -> Option<KeyVerdict> {
        let now = self.clock.now();
        let holds = |map: &DashMap<TokenId, Tick>| map.get(id).is_some_and(|until| now < *until);
        if holds(&self.accepted) {
            return Some(KeyVerdict::Accepted);
        }
        holds(&self.rejected).then_some(KeyVerdict::Rejected)
    }

    fn store_verdict(&self, id: TokenId, verdict: KeyVerdict) {
        let now = self.clock.now();
        match verdict {
            KeyVerdict::Accepted if self.accepted.len() < MAX_ACCEPTED => {
                self.rejected.remove(&id);
                self.accepted.insert(id, now.after(self.ttls.accept));
            }
            KeyVerdict::Rejected if self.rejected.len() < MAX_REJECTED => {
                self.rejected.insert(id, now.after(self.ttls.reject));
            }
            // SECURITY: no answer is never remembered, and never a yes.
            _ => {}
        }
    }
}

impl ForeignKeyCache {
    async fn ask(&self, id: TokenId, key: ApiKey, upstream: &UpstreamClient) -> KeyVerdict {
        let mut verdict = check_key(key, upstream).await;
        if verdict == KeyVerdict::Accepted && !self.has_backend_rejected_random_key(upstream).await {
            verdict = KeyVerdict::Unknown;
        }
        self.store_verdict(id, verdict);
        verdict
    }

    /// Whether the backend says no to a key that nobody has.
    ///
    /// SECURITY: a yes is worth nothing from a backend that says yes to everybody, be it that it does not look at keys
    /// on this path, or that something before it answers in its place. The question has the form of the others, so that
    /// it cannot be told from them.
    async fn has_backend_rejected_random_key(&self, upstream: &UpstreamClient) -> bool {
        let mut controlled = self.random_key_check.lock().await;
        if let Some((refuses, until)) = *controlled
            && self.clock.now() < until
        {
            return refuses;
        }
        let verdict = check_key(ApiKey::random(), upstream).await;
        if verdict == KeyVerdict::Accepted {
            error!(
                "the backend takes a key that was made up just now, so its yes proves nothing: no foreign key is \
                 let in. Does it check keys on {CHECK_PATH}? With tokens.foreign=reject or forward it is not asked"
            );
        }
        let refuses = verdict == KeyVerdict::Rejected;
        let interval = if refuses { RANDOM_KEY_CHECK_INTERVAL } else { RANDOM_KEY_RETRY_INTERVAL };
        *controlled = Some((refuses, self.clock.now().after(interval)));
        refuses
    }
}

/// Asks the backend about a key.
async fn check_key(key: ApiKey, upstream: &UpstreamClient) -> KeyVerdict {
    let fingerprint = key.id().fingerprint();
    let asking = async {
        let response = upstream.send(KeyCheckRequest { key }, clock::now()).await?;
        let verdict = status_verdict(response.status);
        Ok(if verdict == KeyVerdict::Accepted { body_verdict(response.body).await } else { verdict })
    };
    match timeout(CHECK_TIMEOUT, asking).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err::<_, UpstreamError>(error)) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            warn!(key = %fingerprint, cause, "the backend could not be asked about a key: {error}");
            KeyVerdict::Unknown
        }
        Err(_) => {
            warn!(key = %fingerprint, "the backend did not say in time whether a key is good");
            KeyVerdict::Unknown
        }
    }
}

/// What an answer with status 200 says of itself: the API's envelope has a `status` too.
async fn body_verdict(body: ResponseBody) -> KeyVerdict {
    let Ok(body) = Limited::new(body, MAX_RESPONSE_BYTES).collect().await else {
        warn!("the backend's answer to {CHECK_PATH} breaks off, or is too long to be read");
        return KeyVerdict::Unknown;
    };
    if is_error_envelope(&body.to_bytes()) {
        warn!("the backend's answer to {CHECK_PATH} has the status 200 and calls itself an error");
        return KeyVerdict::Unknown;
    }
    KeyVerdict::Accepted
}

fn is_error_envelope(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct StatusEnvelope {
        status: Option<serde_json::Value>,
    }
    let envelope = serde_json::from_slice::<StatusEnvelope>(body).ok();
    let status = envelope.and_then(|envelope| envelope.status);
    let status = status.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    status.eq_ignore_ascii_case("error") || status.to_ascii_lowercase().starts_with("fail")
}

fn status_verdict(status: StatusCode) -> KeyVerdict {
    match status {
        // SECURITY: only a plain success proves a key. A redirection is how a platform sends strangers to its login.
        StatusCode::OK => KeyVerdict::Accepted,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => KeyVerdict::Rejected,
        other => {
            warn!(status = other.as_u16(), "the backend's answer to {CHECK_PATH} tells nothing about a key");
            KeyVerdict::Unknown
        }
    }
}

/// `GET /timbr/api/get_ontologies/` with the key in question.
struct KeyCheckRequest {
    key: ApiKey,
}

impl OutgoingRequest for KeyCheckRequest {
    fn into_message(self) -> OutgoingMessage {
        let mut head = Vec::new();
        write_request_start(&mut head, &Method::GET, &Uri::from_static(CHECK_PATH));
        write_header(&mut head, HeaderName::Host, b"");
        let host = head.len();
        write_header(&mut head, HeaderName::ContentType, b"application/json");
        write_header(&mut head, HeaderName::Accept, b"application/json");
        write_header(&mut head, HeaderName::XApiKey, self.key.expose());
        OutgoingMessage { method: Method::GET, head, host_offset: host, body: RequestBody::empty() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_success_is_a_yes() {
        for (status, expected) in [
            (200, KeyVerdict::Accepted),
            (201, KeyVerdict::Unknown),
            (302, KeyVerdict::Unknown),
            (400, KeyVerdict::Unknown),
            (401, KeyVerdict::Rejected),
            (403, KeyVerdict::Rejected),
            (404, KeyVerdict::Unknown),
            (429, KeyVerdict::Unknown),
            (500, KeyVerdict::Unknown),
            (503, KeyVerdict::Unknown),
        ] {
            assert_eq!(status_verdict(StatusCode::from_u16(status).expect("valid")), expected, "{status}");
        }
    }

    #[test]
    fn an_envelope_that_speaks_of_an_error_is_no_yes() {
        for body in [r#"{"status":"error","data":"no"}"#, r#"{"data":[],"status":"failed"}"#] {
            assert!(is_error_envelope(body.as_bytes()), "{body}");
        }
        for body in
            ["", "[]", "{}", r#"{"status":"success","data":["error"]}"#, r#"{"status":null}"#, "<html>"]
        {
            assert!(!is_error_envelope(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn answers_are_remembered_for_their_time() {
        let clock = Clock::manual(0);
        let memory = VerdictTtls { accept: Duration::from_secs(300), reject: Duration::from_secs(10) };
        let keys = ForeignKeys::new(memory, clock.clone());
        let (good, bad, unclear) =
            (TokenId::from_token(b"good"), TokenId::from_token(b"bad"), TokenId::from_token(b"unclear"));
        keys.0.store_verdict(good, KeyVerdict::Accepted);
        keys.0.store_verdict(bad, KeyVerdict::Rejected);
        keys.0.store_verdict(unclear, KeyVerdict::Unknown);
        assert_eq!(keys.0.cached(&good), Some(KeyVerdict::Accepted));
        assert_eq!(keys.0.cached(&bad), Some(KeyVerdict::Rejected));
        assert_eq!(keys.0.cached(&unclear), None);
        clock.advance(Duration::from_secs(10));
        assert_eq!(keys.0.cached(&bad), None);
        assert_eq!(keys.0.cached(&good), Some(KeyVerdict::Accepted));
        clock.advance(Duration::from_secs(290));
        assert_eq!(keys.0.cached(&good), None);
        keys.sweep();
        assert!(keys.0.accepted.is_empty() && keys.0.rejected.is_empty());
    }
}
