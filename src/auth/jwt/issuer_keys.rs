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
use crate::base::watched_files::Watch;
use crate::config::JwtOptions;
use crate::config::jwt::KeysSource;
use crate::outbound::http_client::Origin;

/// An identity provider that takes longer to give its keys is as good as down; and so long a request waits for them.
const PATIENCE: Duration = Duration::from_secs(5);

/// How soon again keys are fetched that could not be.
const RETRY: Duration = Duration::from_secs(10);

/// SECURITY: keys that could not be confirmed for so long are used no more: one of them may have been withdrawn.
const MOST_STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// The keys of one issuer.
pub struct Keys {
    source: Source,
    state: watch::Sender<State>,
    asked: Notify,
    refresh: Duration,
    refetch: Duration,
    clock: Clock,
}

enum Source {
    Url { origin: Origin, target: String },
    File { path: PathBuf, watch: Mutex<Watch> },
    Secret,
}

#[derive(Clone, Default)]
struct State {
    set: Option<Arc<KeySet>>,
    /// When they were last fetched or read to satisfaction.
    confirmed: Option<Tick>,
    /// When the last try ended.
    tried: Option<Tick>,
    failing: bool,
}

impl Keys {
    /// Reads a file; what is fetched comes later.
    pub fn new(source: &KeysSource, options: &JwtOptions, clock: &Clock) -> Result<Keys, String> {
        let mut state = State::default();
        let source = match source {
            KeysSource::Url { url, ca_file } => {
                let origin = Origin::new(&url.origin, ca_file.as_deref(), "auth.jwt_issuers", PATIENCE);
                Source::Url { origin: origin.map_err(|error| error.to_string())?, target: url.target.clone() }
            }
            KeysSource::File(path) => {
                let read = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"));
                let set = read.and_then(|text| KeySet::parse(&text, 1));
                state.set = Some(Arc::new(set.map_err(|why| format!("jwks_file {} {why}", path.display()))?));
                Source::File { path: path.clone(), watch: Mutex::default() }
            }
            KeysSource::Secret(secret) => {
                state.set = Some(Arc::new(KeySet::of_secret(secret)));
                Source::Secret
            }
        };
        Ok(Keys {
            source,
            state: watch::Sender::new(state),
            asked: Notify::new(),
            refresh: options.refresh,
            refetch: options.refetch,
            clock: clock.clone(),
        })
    }

    /// The keys in force, if there are any.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        let state = self.state.borrow();
        let now = self.clock.now();
        let stale = |confirmed| now.since(confirmed) >= MOST_STALE;
        let usable = match self.source {
            Source::Url { .. } => !state.confirmed.is_none_or(stale),
            Source::File { .. } | Source::Secret => true,
        };
        state.set.clone().filter(|_| usable)
    }

    /// Keys that are newer than those of the generation, for a token that none of these fits: fetched if that was not done
    /// just now. Many may ask at once, and wait for the same answer.
    pub async fn newer_than(&self, generation: Option<u64>) -> Option<Arc<KeySet>> {
        let mut state = self.state.subscribe();
        let is_newer = |set: &Arc<KeySet>| Some(set.generation) != generation;
        if let Some(newer) = self.current().filter(is_newer) {
            return Some(newer);
        }
        // SECURITY: made-up tokens must not have the identity provider asked again and again.
        if !matches!(self.source, Source::Url { .. }) || self.was_just_tried() {
            return None;
        }
        self.asked.notify_one();
        let _ = timeout(PATIENCE, state.changed()).await;
        self.current().filter(is_newer)
    }

    fn was_just_tried(&self) -> bool {
        let now = self.clock.now();
        self.state.borrow().tried.is_some_and(|tried| now.since(tried) < self.refetch)
    }

    /// Fetches the keys, again and again. Never ends.
    pub async fn keep(&self) {
        let Source::Url { origin, target } = &self.source else { return std::future::pending().await };
        loop {
            let fetched = fetch(origin, target).await;
            // What went wrong was told, and stands in the state.
            let _ = self.take(fetched, &format!("{}{target}", origin.name()));
            let failing = self.state.borrow().failing;
            let pause = if failing { RETRY.min(self.refresh) } else { self.refresh };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.wanted() => {}
            }
        }
    }

    /// Somebody needs newer keys, and it is time.
    async fn wanted(&self) {
        loop {
            self.asked.notified().await;
            if !self.was_just_tried() {
                return;
            }
        }
    }

    /// Reads a file again if it has changed. Blocks on the file system.
    pub fn look(&self, asked: bool) {
        let Source::File { path, watch } = &self.source else { return };
        let mut watch = watch.lock();
        if asked {
            watch.forget();
        }
        let Some(stamps) = watch.changed([&**path].into_iter()) else { return };
        let read = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"));
        match self.take(read, &path.display().to_string()) {
            Ok(()) => drop(watch.read_well(stamps)),
            Err(why) => drop(watch.failed(&why)),
        }
    }

    /// Whether they could not be fetched or read the last time.
    pub fn is_failing(&self) -> bool {
        self.state.borrow().failing
    }

    /// Puts keys in force. What cannot be used changes nothing, but those who wait for it hear of that.
    fn take(&self, text: Result<Vec<u8>, String>, from: &str) -> Result<(), String> {
        let before = self.state.borrow().clone();
        let next = before.set.as_ref().map_or(1, |set| set.generation + 1);
        let read = text.and_then(|text| match &before.set {
            Some(set) if set.is_of(&text) => Ok(Arc::clone(set)),
            _ => KeySet::parse(&text, next).map(Arc::new),
        });
        let now = self.clock.now();
        match read {
            Ok(set) => {
                if set.generation == next {
                    info!(from, keys = set.len(), "keys of a token issuer in use");
                } else if before.failing {
                    info!(from, "the keys of a token issuer can be had again");
                }
                let confirmed = Some(now);
                self.state.send_replace(State {
                    set: Some(set),
                    confirmed,
                    tried: confirmed,
                    failing: false,
                });
                Ok(())
            }
            Err(why) => {
                if !before.failing {
                    warn!(from, error = why, "no keys of a token issuer; what was read before stays in use");
                }
                self.state.send_replace(State { tried: Some(now), failing: true, ..before });
                Err(why)
            }
        }
    }
}

async fn fetch(origin: &Origin, target: &str) -> Result<Vec<u8>, String> {
    let request = Request::get(target).header(http::header::ACCEPT, "application/json");
    let request = request.body(http_body_util::Full::default()).map_err(|error| error.to_string())?;
    let answer = origin.ask(request).await.map_err(|error| error.to_string())?;
    match answer.status() {
        StatusCode::OK => Ok(answer.into_body().into()),
        status => Err(format!("it was answered {status}")),
    }
}
