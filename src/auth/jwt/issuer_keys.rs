//! The current keys of an issuer: fetches or reads them again, and keeps the previous ones on failure.

use std::convert::Infallible as Never;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::auth::jwt::key_set::KeySet;
use crate::auth::{FileReload, changed_file};
use crate::base::clock::{Clock, Tick};
use crate::base::input_file;
use crate::base::watched_files::FileWatch;
use crate::config::JwtOptions;
use crate::config::jwt::{IssuerOptions, JwksSource};
use crate::config::options::AUTH;
use crate::config::url::{self, ResourceUrl};
use crate::outbound::http_client::HttpClient;

/// Timeout for fetching keys, and for a request that waits for them.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between attempts after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// SECURITY: fetched keys that were not confirmed for this time are not used any more: one may have been revoked.
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
    Remote {
        origin: HttpClient,
        target: String,
        /// Set if the URL of the keys is in a document at this one.
        discovery: Option<Discovery>,
    },
    File {
        path: PathBuf,
        watch: Mutex<FileWatch>,
    },
    Secret,
}

/// What the keys that a discovery document names are fetched with.
struct Discovery {
    /// The document must be of this issuer.
    issuer: String,
    ca_file: Option<PathBuf>,
}

/// The result of looking for newer keys.
pub enum NewerKeys {
    /// Keys that were fetched since.
    Found(Arc<KeySet>),
    /// A fetch has just confirmed the current keys, or they cannot be fetched.
    None,
    /// Unknown: the last attempt was too recent, or this one failed. The next one is possible after this time.
    NotFetched(Duration),
}

#[derive(Clone, Default)]
struct IssuerKeysState {
    set: Option<Arc<KeySet>>,
    /// The last successful fetch or read.
    confirmed_at: Option<Tick>,
    /// The begin of the last attempt.
    begun_at: Option<Tick>,
    /// The end of the last attempt.
    attempted_at: Option<Tick>,
    is_failing: bool,
}

impl IssuerKeys {
    /// Reads a key file. Keys with a URL are fetched later, by [`IssuerKeys::refresh_forever`].
    pub fn new(issuer: &IssuerOptions, options: &JwtOptions, clock: &Clock) -> Result<IssuerKeys, String> {
        let mut state = IssuerKeysState::default();
        let location = match &issuer.keys {
            JwksSource::Url { url, ca_file, is_discovery } => {
                let ca_file = ca_file.clone();
                let origin = client(url, ca_file.as_deref())?;
                let discovery = is_discovery.then(|| Discovery { issuer: issuer.issuer.clone(), ca_file });
                IssuerKeysLocation::Remote { origin, target: url.target.clone(), discovery }
            }
            JwksSource::File(path) => {
                let read = input_file::read(path).map_err(|error| format!("cannot be read: {error}"));
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
            location,
            state: watch::Sender::new(state),
            refresh_requested: Notify::new(),
            refresh_interval: options.refresh,
            min_refetch_interval: options.refetch,
            clock: clock.clone(),
        })
    }

    /// The current keys; `None` before the first successful fetch, or when they are too old.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        let state = self.state.borrow();
        let now = self.clock.now();
        let is_stale = |confirmed| now.since(confirmed) >= MAX_STALENESS;
        let is_usable = match self.location {
            IssuerKeysLocation::Remote { .. } => !state.confirmed_at.is_none_or(is_stale),
            IssuerKeysLocation::File { .. } | IssuerKeysLocation::Secret => true,
        };
        state.set.clone().filter(|_| is_usable)
    }

    /// The generation of the current keys; `None` if there are none.
    pub fn generation(&self) -> Option<u64> {
        self.current().map(|set| set.generation)
    }

    /// Looks for keys newer than `generation`, for a token that no current key matches. Requests a fetch, unless one was
    /// just attempted. Concurrent callers wait for the same fetch.
    pub async fn newer_than(&self, generation: Option<u64>) -> NewerKeys {
        let (mut state, asked_at) = (self.state.subscribe(), self.clock.now());
        let is_newer = |set: &Arc<KeySet>| Some(set.generation) != generation;
        if let Some(newer) = self.current().filter(is_newer) {
            return NewerKeys::Found(newer);
        }
        if matches!(self.location, IssuerKeysLocation::File { .. } | IssuerKeysLocation::Secret) {
            return NewerKeys::None;
        }
        // SECURITY: forged tokens must not cause unlimited requests to the identity provider.
        if let Some(wait) = self.wait_until_fetch_allowed() {
            return NewerKeys::NotFetched(wait);
        }
        self.refresh_requested.notify_one();
        let _ = timeout(FETCH_TIMEOUT, state.changed()).await;
        if let Some(newer) = self.current().filter(is_newer) {
            return NewerKeys::Found(newer);
        }
        // A fetch that had begun before may have missed a key that was published since.
        let state = self.state.borrow();
        let has_succeeded = state.attempted_at >= state.begun_at && !state.is_failing;
        match state.begun_at.is_some_and(|at| at >= asked_at) && has_succeeded {
            true => NewerKeys::None,
            false => NewerKeys::NotFetched(self.min_refetch_interval),
        }
    }

    /// The rest of the interval after the last attempt, during which no token causes another one.
    fn wait_until_fetch_allowed(&self) -> Option<Duration> {
        let since = self.clock.now().since(self.state.borrow().attempted_at?);
        self.min_refetch_interval.checked_sub(since).filter(|wait| !wait.is_zero())
    }

    /// Fetches the keys periodically and on request. Never returns.
    pub async fn refresh_forever(&self) -> Never {
        let IssuerKeysLocation::Remote { origin, target, .. } = &self.location else {
            return std::future::pending().await;
        };
        loop {
            // Wakes no waiting request.
            self.state.send_if_modified(|state| {
                state.begun_at = Some(self.clock.now());
                false
            });
            // `update` logged a failure and set the state.
            let _ = self.update(self.fetch().await, &format!("{}{target}", origin.authority()));
            let is_failing = self.state.borrow().is_failing;
            let interval = if is_failing { RETRY_INTERVAL.min(self.refresh_interval) } else { self.refresh_interval };
            tokio::select! {
                () = sleep(interval) => {}
                () = self.wait_for_refresh_request() => {}
            }
        }
    }

    /// Fetches the key set. Does nothing with keys that have no URL.
    async fn fetch(&self) -> Result<Vec<u8>, String> {
        let IssuerKeysLocation::Remote { origin, target, discovery } = &self.location else { return Ok(Vec::new()) };
        let document = fetch(origin, target).await?;
        match discovery {
            Some(discovery) => discovery.fetch_keys(&document).await,
            None => Ok(document),
        }
    }

    /// Fetches the keys of an issuer with a URL once, and checks that they can be used. `None` for other issuers.
    pub async fn check(issuer: &IssuerOptions, options: &JwtOptions) -> Option<Result<(), String>> {
        matches!(issuer.keys, JwksSource::Url { .. }).then_some(())?;
        let check = async {
            let fetched = IssuerKeys::new(issuer, options, &Clock::system())?.fetch().await?;
            KeySet::parse(&fetched, 1).map(drop)
        };
        Some(check.await)
    }

    /// Waits until newer keys are requested and the last attempt is not too recent.
    async fn wait_for_refresh_request(&self) {
        loop {
            self.refresh_requested.notified().await;
            if self.wait_until_fetch_allowed().is_none() {
                return;
            }
        }
    }

    /// Reloads the key file. Blocks on the file system.
    pub fn reload_file(&self, reload: FileReload) {
        let IssuerKeysLocation::File { path, watch } = &self.location else { return };
        let mut watch = watch.lock();
        let Some(stamps) = changed_file(&mut watch, path, reload) else { return };
        let read = input_file::read(path).map(|text| text.to_vec());
        let read = read.map_err(|error| format!("cannot be read: {error}"));
        match self.update(read, &path.display().to_string()) {
            Ok(()) => drop(watch.record_success(stamps)),
            Err(why) => drop(watch.record_failure(&why)),
        }
    }

    /// Returns whether the last attempt to fetch or read the keys failed.
    pub fn is_failing(&self) -> bool {
        self.state.borrow().is_failing
    }

    /// Activates the keys in `text`. On failure the previous keys stay active, and waiting requests are notified.
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
                    info!(from, keys = set.len(), "token issuer keys loaded");
                } else if before.is_failing {
                    info!(from, "token issuer keys are available again");
                }
                self.state.send_replace(IssuerKeysState {
                    set: Some(set),
                    confirmed_at: Some(now),
                    attempted_at: Some(now),
                    is_failing: false,
                    ..before
                });
                Ok(())
            }
            Err(why) => {
                match (before.is_failing, &before.set) {
                    (true, _) => {}
                    (false, Some(_)) => {
                        warn!(from, error = why, "cannot load token issuer keys; the previous keys stay active");
                    }
                    (false, None) => {
                        warn!(from, error = why, "cannot load token issuer keys; until then its tokens are rejected");
                    }
                }
                self.state.send_replace(IssuerKeysState { attempted_at: Some(now), is_failing: true, ..before });
                Err(why)
            }
        }
    }
}

impl Discovery {
    /// Fetches the keys that the document names.
    async fn fetch_keys(&self, document: &[u8]) -> Result<Vec<u8>, String> {
        #[derive(Deserialize)]
        struct Document {
            issuer: String,
            jwks_uri: String,
        }
        let found: Document = serde_json::from_slice(document)
            .map_err(|_| "the discovery document does not have `issuer` and `jwks_uri`".to_owned())?;
        // SECURITY: OpenID Connect Discovery 1.0 section 4.3; otherwise one issuer could publish keys for another one.
        if found.issuer != self.issuer {
            return Err(format!("the discovery document is of the issuer {:?}", found.issuer));
        }
        let url = url::parse_trusted_resource(&found.jwks_uri).map_err(|message| format!("its jwks_uri {message}"))?;
        fetch(&client(&url, self.ca_file.as_deref())?, &url.target).await
    }
}

fn client(url: &ResourceUrl, ca_file: Option<&Path>) -> Result<HttpClient, String> {
    HttpClient::new(&url.origin, ca_file, AUTH.jwt_issuers.key, FETCH_TIMEOUT).map_err(|error| error.to_string())
}

async fn fetch(origin: &HttpClient, target: &str) -> Result<Vec<u8>, String> {
    let request = Request::get(target).header(http::header::ACCEPT, "application/json");
    let request = request.body(http_body_util::Full::default()).map_err(|error| error.to_string())?;
    let response = origin.send(request).await.map_err(|error| error.to_string())?;
    match response.status() {
        StatusCode::OK => Ok(response.into_body().into()),
        status => Err(format!("the response has status {status}")),
    }
}
