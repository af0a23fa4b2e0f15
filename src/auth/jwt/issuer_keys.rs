//! An issuer's keys over time: fetched or read again, and what is in force meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::auth::jwt::key_set::KeySet;
use crate::base::clock::{Clock, Tick};
use crate::base::watched_files::FileWatch;
use crate::config::JwtOptions;
use crate::config::jwt::JwksSource;
use crate::config::options::AUTH;
use crate::outbound::http_client::HttpClient;

/// An identity provider that takes longer to give its keys is as good as down; and so long a request waits for them.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How soon again keys are fetched that could not be.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// SECURITY: keys that could not be confirmed for so long are used no more: one of them may have been withdrawn.
const MAX_STALENESS: Duration = Duration::from_secs(24 * 60 * 60);

/// The keys of one issuer.
pub struct IssuerKeys {
    location: IssuerKeysLocation,
    state: watch::Sender<IssuerKeysState>,
    refresh_requested: Notify,
    refresh_interval: Duration,
    min_refetch_interval: Duration,
    clock: Clock,
}

enum IssuerKeysLocation {
    Url { origin: HttpClient, target: String },
    File { path: PathBuf, watch: Mutex<FileWatch> },
    Secret,
}

#[derive(Clone, Default)]
struct IssuerKeysState {
    set: Option<Arc<KeySet>>,
    /// When they were last fetched or read to satisfaction.
    confirmed_at: Option<Tick>,
    /// When the last try ended.
    attempted_at: Option<Tick>,
    is_failing: bool,
}

impl IssuerKeys {
    /// Reads a file; what is fetched comes later.
    pub fn new(source: &JwksSource, options: &JwtOptions, clock: &Clock) -> Result<IssuerKeys, String> {
        let mut state = IssuerKeysState::default();
        let source = match source {
            JwksSource::Url { url, ca_file } => {
                let origin =
                    HttpClient::new(&url.origin, ca_file.as_deref(), AUTH.jwt_issuers.key, FETCH_TIMEOUT);
                IssuerKeysLocation::Url {
                    origin: origin.map_err(|error| error.to_string())?,
                    target: url.target.clone(),
                }
            }
            JwksSource::File(path) => {
                let read = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"));
                let set = read.and_then(|text| KeySet::parse(&text, 1));
                state.set = Some(Arc::new(set.map_err(|why| format!("jwks_file {} {why}", path.display()))?));
                IssuerKeysLocation::File { path: path.clone(), watch: Mutex::default() }
            }
            JwksSource::Secret(secret) => {
                state.set = Some(Arc::new(KeySet::from_secret(secret)));
                IssuerKeysLocation::Secret
            }
        };
        Ok(IssuerKeys {
            location: source,
            state: watch::Sender::new(state),
            refresh_requested: Notify::new(),
            refresh_interval: options.refresh,
            min_refetch_interval: options.refetch,
            clock: clock.clone(),
        })
    }

    /// The keys in force, if there are any.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        let state = self.state.borrow();
        let now = self.clock.now();
        let stale = |confirmed| now.since(confirmed) >= MAX_STALENESS;
        let usable = match self.location {
            IssuerKeysLocation::Url { .. } => !state.confirmed_at.is_none_or(stale),
            IssuerKeysLocation::File { .. } | IssuerKeysLocation::Secret => true,
        };
        state.set.clone().filter(|_| usable)
    }

    /// Keys that are newer than those of the generation, for a token that none of these fits: fetched if that was not done
    /// just now. Many may ask at once, and wait for the same answer.
    pub async fn wait_for_newer(&self, generation: Option<u64>) -> Option<Arc<KeySet>> {
        let mut state = self.state.subscribe();
        let is_newer = |set: &Arc<KeySet>| Some(set.generation) != generation;
        if let Some(newer) = self.current().filter(is_newer) {
            return Some(newer);
        }
        // SECURITY: made-up tokens must not have the identity provider asked again and again.
        if !matches!(self.location, IssuerKeysLocation::Url { .. }) || self.is_just_attempted() {
            return None;
        }
        self.refresh_requested.notify_one();
        let _ = timeout(FETCH_TIMEOUT, state.changed()).await;
        self.current().filter(is_newer)
    }

    fn is_just_attempted(&self) -> bool {
        let now = self.clock.now();
        self.state.borrow().attempted_at.is_some_and(|tried| now.since(tried) < self.min_refetch_interval)
    }

    /// Fetches the keys, again and again. Never ends.
    pub async fn refresh_forever(&self) {
        let IssuerKeysLocation::Url { origin, target } = &self.location else {
            return std::future::pending().await;
        };
        loop {
            let fetched = fetch_key_set(origin, target).await;
            // What went wrong was told, and stands in the state.
            let _ = self.update(fetched, &format!("{}{target}", origin.authority()));
            let failing = self.state.borrow().is_failing;
            let pause =
                if failing { RETRY_INTERVAL.min(self.refresh_interval) } else { self.refresh_interval };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.wait_for_refresh_request() => {}
            }
        }
    }

    /// Somebody needs newer keys, and it is time.
    async fn wait_for_refresh_request(&self) {
        loop {
            self.refresh_requested.notified().await;
            if !self.is_just_attempted() {
                return;
            }
        }
    }

    /// Reads a file again if it has changed. Blocks on the file system.
    pub fn reload_file(&self, asked: bool) {
        let IssuerKeysLocation::File { path, watch } = &self.location else { return };
        let mut watch = watch.lock();
        if asked {
            watch.reset();
        }
        let Some(stamps) = watch.changed([&**path].into_iter()) else { return };
        let read = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"));
        match self.update(read, &path.display().to_string()) {
            Ok(()) => drop(watch.record_success(stamps)),
            Err(why) => drop(watch.record_failure(&why)),
        }
    }

    /// Whether they could not be fetched or read the last time.
    pub fn is_failing(&self) -> bool {
        self.state.borrow().is_failing
    }

    /// Puts keys in force. What cannot be used changes nothing, but those who wait for it hear of that.
    fn update(&self, text: Result<Vec<u8>, String>, from: &str) -> Result<(), String> {
        let before = self.state.borrow().clone();
        let next = before.set.as_ref().map_or(1, |set| set.generation + 1);
        let read = text.and_then(|text| match &before.set {
            Some(set) if set.is_parsed_from(&text) => Ok(Arc::clone(set)),
            _ => KeySet::parse(&text, next).map(Arc::new),
        });
        let now = self.clock.now();
        match read {
            Ok(set) => {
                if set.generation == next {
                    info!(from, keys = set.len(), "keys of a token issuer in use");
                } else if before.is_failing {
                    info!(from, "the keys of a token issuer can be had again");
                }
                let confirmed = Some(now);
                self.state.send_replace(IssuerKeysState {
                    set: Some(set),
                    confirmed_at: confirmed,
                    attempted_at: confirmed,
                    is_failing: false,
                });
                Ok(())
            }
            Err(why) => {
                if !before.is_failing {
                    warn!(from, error = why, "no keys of a token issuer; what was read before stays in use");
                }
                self.state.send_replace(IssuerKeysState {
                    attempted_at: Some(now),
                    is_failing: true,
                    ..before
                });
                Err(why)
            }
        }
    }
}

async fn fetch_key_set(origin: &HttpClient, target: &str) -> Result<Vec<u8>, String> {
    let request = Request::get(target).header(http::header::ACCEPT, "application/json");
    let request = request.body(http_body_util::Full::default()).map_err(|error| error.to_string())?;
    let answer = origin.send(request).await.map_err(|error| error.to_string())?;
    match answer.status() {
        StatusCode::OK => Ok(answer.into_body().into()),
        status => Err(format!("it was answered {status}")),
    }
}
