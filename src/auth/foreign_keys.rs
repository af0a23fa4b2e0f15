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
use crate::http::h1::request::begin_request;
use crate::http::h1::response::write_field;
use crate::http::headers::HeaderName;
use crate::store::TokenId;
use crate::upstream::{Message, Outgoing, RequestBody, ResponseBody, Upstream, UpstreamError};

/// Documented, cheap, and answered for every good key.
const QUESTION: &str = "/timbr/api/get_ontologies/";

/// A backend that takes longer to say yes or no is as good as down.
const PATIENCE: Duration = Duration::from_secs(15);

/// Most answers remembered of each kind. Bad keys cost a stranger nothing to make up.
const MOST_REJECTED: usize = 100_000;
const MOST_ACCEPTED: usize = 1_000_000;

/// The backend's answer about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes the key.
    Good,
    /// It does not.
    Bad,
    /// It could not be asked, or gave no clear answer.
    Unknown,
    /// It is being asked about as many keys as it may be at once.
    Busy,
}

/// Most keys that the backend is asked about at once. A question holds one of its threads, and strangers can make up
/// keys as fast as they can send them.
const MOST_AT_ONCE: usize = 64;

/// How long it is taken for granted that the backend tells keys apart.
const CONTROL_INTERVAL: Duration = Duration::from_secs(300);

/// How long after it did not, so that those who wait for the same answer do not ask one after the other.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// More of an answer is not read to see what it says of itself.
const MOST_READ: usize = 1024 * 1024;

/// Lifetimes of answers.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Of a yes.
    pub accept: Duration,
    /// Of a no.
    pub reject: Duration,
}

/// Asks, remembers, and never asks twice at once about one key. Clones share what they remember.
#[derive(Clone)]
pub struct ForeignKeys(Arc<Inner>);

struct Inner {
    accepted: DashMap<TokenId, Tick>,
    rejected: DashMap<TokenId, Tick>,
    flights: SingleFlight<TokenId, Verdict>,
    turns: Arc<Semaphore>,
    /// Whether the backend refuses a key that nobody has, and until when that is taken for granted.
    controlled: Mutex<Option<(bool, Tick)>>,
    memory: Memory,
    clock: Clock,
}

impl ForeignKeys {
    /// Knows nothing yet.
    pub fn new(memory: Memory, clock: Clock) -> ForeignKeys {
        ForeignKeys(Arc::new(Inner {
            accepted: DashMap::new(),
            rejected: DashMap::new(),
            flights: SingleFlight::new(Verdict::Unknown),
            turns: Arc::new(Semaphore::new(MOST_AT_ONCE)),
            controlled: Mutex::default(),
            memory,
            clock,
        }))
    }

    /// What the backend said about the key not long ago.
    pub fn remembered(&self, id: &TokenId) -> Option<Verdict> {
        self.0.remembered(id)
    }

    /// Whether the backend takes the key. Must be called on a `LocalSet`.
    pub async fn judge(&self, id: TokenId, key: &ApiKey, upstream: &Upstream) -> Verdict {
        let (reply, verdict) = oneshot::channel();
        if let Some(leader) = self.0.flights.join(id, reply) {
            if let Some(verdict) = self.0.remembered(&id) {
                leader.finish(verdict);
            } else if let Ok(turn) = Arc::clone(&self.0.turns).try_acquire_owned() {
                let (inner, key, upstream) = (Arc::clone(&self.0), key.clone(), upstream.clone());
                // A task of its own: others wait for the answer too, even if this client goes away.
                tokio::task::spawn_local(async move {
                    let verdict = inner.ask(id, key, &upstream).await;
                    leader.finish(verdict);
                    drop(turn);
                });
            } else {
                leader.finish(Verdict::Busy);
            }
        }
        verdict.await.unwrap_or(Verdict::Unknown)
    }

    /// Forgets answers that are too old.
    pub fn sweep(&self) {
        let now = self.0.clock.now();
        self.0.accepted.retain(|_, until| now < *until);
        self.0.rejected.retain(|_, until| now < *until);
    }
}

impl Inner {
    fn remembered(&self, id: &TokenId) -> Option<Verdict> {
        let now = self.clock.now();
        let holds = |map: &DashMap<TokenId, Tick>| map.get(id).is_some_and(|until| now < *until);
        if holds(&self.accepted) {
            return Some(Verdict::Good);
        }
        holds(&self.rejected).then_some(Verdict::Bad)
    }

    fn remember(&self, id: TokenId, verdict: Verdict) {
        let now = self.clock.now();
        match verdict {
            Verdict::Good if self.accepted.len() < MOST_ACCEPTED => {
                self.rejected.remove(&id);
                self.accepted.insert(id, now.after(self.memory.accept));
            }
            Verdict::Bad if self.rejected.len() < MOST_REJECTED => {
                self.rejected.insert(id, now.after(self.memory.reject));
            }
            // SECURITY: no answer is never remembered, and never a yes.
            _ => {}
        }
    }
}

impl Inner {
    async fn ask(&self, id: TokenId, key: ApiKey, upstream: &Upstream) -> Verdict {
        let mut verdict = ask(key, upstream).await;
        if verdict == Verdict::Good && !self.backend_refuses(upstream).await {
            verdict = Verdict::Unknown;
        }
        self.remember(id, verdict);
        verdict
    }

    /// Whether the backend says no to a key that nobody has.
    ///
    /// SECURITY: a yes is worth nothing from a backend that says yes to everybody, be it that it does not look at keys
    /// on this path, or that something before it answers in its place. The question has the form of the others, so that
    /// it cannot be told from them.
    async fn backend_refuses(&self, upstream: &Upstream) -> bool {
        let mut controlled = self.controlled.lock().await;
        if let Some((refuses, until)) = *controlled
            && self.clock.now() < until
        {
            return refuses;
        }
        let verdict = ask(ApiKey::nobodys(), upstream).await;
        if verdict == Verdict::Good {
            error!(
                "the backend takes a key that was made up just now, so its yes proves nothing: no foreign key is \
                 let in. Does it check keys on {QUESTION}? With tokens.foreign=reject or forward it is not asked"
            );
        }
        let refuses = verdict == Verdict::Bad;
        let interval = if refuses { CONTROL_INTERVAL } else { RETRY_INTERVAL };
        *controlled = Some((refuses, self.clock.now().after(interval)));
        refuses
    }
}

/// Asks the backend about a key.
async fn ask(key: ApiKey, upstream: &Upstream) -> Verdict {
    let fingerprint = key.id().fingerprint();
    let asking = async {
        let response = upstream.send(Question { key }, clock::now()).await?;
        let verdict = verdict(response.status);
        Ok(if verdict == Verdict::Good { confirmed(response.body).await } else { verdict })
    };
    match timeout(PATIENCE, asking).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err::<_, UpstreamError>(error)) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            warn!(key = %fingerprint, cause, "the backend could not be asked about a key: {error}");
            Verdict::Unknown
        }
        Err(_) => {
            warn!(key = %fingerprint, "the backend did not say in time whether a key is good");
            Verdict::Unknown
        }
    }
}

/// What an answer with status 200 says of itself: the API's envelope has a `status` too.
async fn confirmed(body: ResponseBody) -> Verdict {
    let Ok(body) = Limited::new(body, MOST_READ).collect().await else {
        warn!("the backend's answer to {QUESTION} breaks off, or is too long to be read");
        return Verdict::Unknown;
    };
    if says_error(&body.to_bytes()) {
        warn!("the backend's answer to {QUESTION} has the status 200 and calls itself an error");
        return Verdict::Unknown;
    }
    Verdict::Good
}

fn says_error(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Envelope {
        status: Option<serde_json::Value>,
    }
    let envelope = serde_json::from_slice::<Envelope>(body).ok();
    let status = envelope.and_then(|envelope| envelope.status);
    let status = status.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    status.eq_ignore_ascii_case("error") || status.to_ascii_lowercase().starts_with("fail")
}

fn verdict(status: StatusCode) -> Verdict {
    match status {
        // SECURITY: only a plain success proves a key. A redirection is how a platform sends strangers to its login.
        StatusCode::OK => Verdict::Good,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Verdict::Bad,
        other => {
            warn!(status = other.as_u16(), "the backend's answer to {QUESTION} tells nothing about a key");
            Verdict::Unknown
        }
    }
}

/// `GET /timbr/api/get_ontologies/` with the key in question.
struct Question {
    key: ApiKey,
}

impl Outgoing for Question {
    fn into_message(self) -> Message {
        let mut head = Vec::new();
        begin_request(&mut head, &Method::GET, &Uri::from_static(QUESTION));
        write_field(&mut head, HeaderName::Host, b"");
        let host = head.len();
        write_field(&mut head, HeaderName::ContentType, b"application/json");
        write_field(&mut head, HeaderName::Accept, b"application/json");
        write_field(&mut head, HeaderName::XApiKey, self.key.expose());
        Message { method: Method::GET, head, host, body: RequestBody::empty() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_success_is_a_yes() {
        for (status, expected) in [
            (200, Verdict::Good),
            (201, Verdict::Unknown),
            (302, Verdict::Unknown),
            (400, Verdict::Unknown),
            (401, Verdict::Bad),
            (403, Verdict::Bad),
            (404, Verdict::Unknown),
            (429, Verdict::Unknown),
            (500, Verdict::Unknown),
            (503, Verdict::Unknown),
        ] {
            assert_eq!(verdict(StatusCode::from_u16(status).expect("valid")), expected, "{status}");
        }
    }

    #[test]
    fn an_envelope_that_speaks_of_an_error_is_no_yes() {
        for body in [r#"{"status":"error","data":"no"}"#, r#"{"data":[],"status":"failed"}"#] {
            assert!(says_error(body.as_bytes()), "{body}");
        }
        for body in
            ["", "[]", "{}", r#"{"status":"success","data":["error"]}"#, r#"{"status":null}"#, "<html>"]
        {
            assert!(!says_error(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn answers_are_remembered_for_their_time() {
        let clock = Clock::manual(0);
        let memory = Memory { accept: Duration::from_secs(300), reject: Duration::from_secs(10) };
        let keys = ForeignKeys::new(memory, clock.clone());
        let (good, bad, unclear) = (TokenId::of(b"good"), TokenId::of(b"bad"), TokenId::of(b"unclear"));
        keys.0.remember(good, Verdict::Good);
        keys.0.remember(bad, Verdict::Bad);
        keys.0.remember(unclear, Verdict::Unknown);
        assert_eq!(keys.0.remembered(&good), Some(Verdict::Good));
        assert_eq!(keys.0.remembered(&bad), Some(Verdict::Bad));
        assert_eq!(keys.0.remembered(&unclear), None);
        clock.advance(Duration::from_secs(10));
        assert_eq!(keys.0.remembered(&bad), None);
        assert_eq!(keys.0.remembered(&good), Some(Verdict::Good));
        clock.advance(Duration::from_secs(290));
        assert_eq!(keys.0.remembered(&good), None);
        keys.sweep();
        assert!(keys.0.accepted.is_empty() && keys.0.rejected.is_empty());
    }
}
