//! The lifetimes and the number of tokens in memory. A reload can change them while requests read them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::TokenOptions;

/// The lifetimes and the maximum number of tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenLimits {
    /// Absolute lifetime of a token.
    pub ttl: Duration,
    /// Lifetime without use; `None`: unlimited.
    pub idle_ttl: Option<Duration>,
    /// Maximum number of tokens; when it is reached, the oldest is evicted.
    pub max: usize,
    /// Maximum number of tokens of one user; when it is reached, the user's oldest is evicted. 0: no limit.
    pub max_per_user: usize,
}

impl TokenLimits {
    /// The limits that these options set.
    pub fn new(tokens: &TokenOptions) -> TokenLimits {
        TokenLimits { ttl: tokens.ttl, idle_ttl: tokens.idle_ttl, max: tokens.max, max_per_user: tokens.max_per_user }
    }

    /// The interval for writing the last uses of tokens to a persistent store: at most `max_delay`, and short enough
    /// that no token becomes idle there while it is in use.
    pub(super) fn write_interval(&self, max_delay: Duration) -> Duration {
        self.idle_ttl.map_or(max_delay, |ttl| (ttl / 16).clamp(Duration::from_millis(100), max_delay))
    }
}

/// The limits as all threads share them: written rarely, read with each lookup.
#[derive(Debug)]
pub(super) struct AtomicTokenLimits {
    /// Nanoseconds.
    ttl: AtomicU64,
    /// Nanoseconds; [`NO_IDLE_TTL`] for none.
    idle_ttl: AtomicU64,
    max: AtomicUsize,
    max_per_user: AtomicUsize,
}

const NO_IDLE_TTL: u64 = u64::MAX;

impl AtomicTokenLimits {
    pub fn new(limits: TokenLimits) -> AtomicTokenLimits {
        let atomic = AtomicTokenLimits {
            ttl: AtomicU64::new(0),
            idle_ttl: AtomicU64::new(0),
            max: AtomicUsize::new(0),
            max_per_user: AtomicUsize::new(0),
        };
        atomic.set(limits);
        atomic
    }

    pub fn set(&self, limits: TokenLimits) {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(NO_IDLE_TTL - 1);
        self.ttl.store(nanos(limits.ttl), Ordering::Relaxed);
        self.idle_ttl.store(limits.idle_ttl.map_or(NO_IDLE_TTL, nanos), Ordering::Relaxed);
        self.max.store(limits.max, Ordering::Relaxed);
        self.max_per_user.store(limits.max_per_user, Ordering::Relaxed);
    }

    pub fn load(&self) -> TokenLimits {
        TokenLimits { ttl: self.ttl(), idle_ttl: self.idle_ttl(), max: self.max(), max_per_user: self.max_per_user() }
    }

    pub fn ttl(&self) -> Duration {
        Duration::from_nanos(self.ttl.load(Ordering::Relaxed))
    }

    pub fn idle_ttl(&self) -> Option<Duration> {
        let nanos = self.idle_ttl.load(Ordering::Relaxed);
        (nanos != NO_IDLE_TTL).then(|| Duration::from_nanos(nanos))
    }

    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    pub fn max_per_user(&self) -> usize {
        self.max_per_user.load(Ordering::Relaxed)
    }
}
