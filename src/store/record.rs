//! A live token as it is remembered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::clock::Tick;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::store::{LoginId, Seed, Timestamp};

/// A token that is to be kept.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// The login that it is for.
    pub login: LoginId,
    /// Whose it is.
    pub user: UserName,
    /// What the backend is shown instead of the token.
    pub upstream_key: Option<Secret>,
    /// The number of the salt that made it.
    pub salt: u8,
}

/// What is kept for a live token.
#[derive(Debug)]
pub struct TokenRecord {
    /// Whose it is.
    pub user: UserName,
    /// When it ends, used or not.
    pub expires: Tick,
    pub(super) login: LoginId,
    /// What it is made from again for its login.
    pub(super) seed: Seed,
    pub(super) minted: Timestamp,
    /// The number of the salt that made it.
    pub(super) salt: u8,
    /// Few have one, so it is kept apart.
    upstream_key: Option<Box<Secret>>,
    last_used: AtomicU64,
}

/// How exactly a use is noted where nothing ends for want of use.
const LAST_USED_RESOLUTION: Duration = Duration::from_secs(60);

impl TokenRecord {
    /// A token minted now that lives until `expires`.
    pub(super) fn new(
        token: NewToken,
        seed: Seed,
        minted: Timestamp,
        now: Tick,
        expires: Tick,
    ) -> TokenRecord {
        let NewToken { login, user, upstream_key, salt } = token;
        let upstream_key = upstream_key.map(Box::new);
        let last_used = AtomicU64::new(now.raw());
        TokenRecord { user, expires, login, seed, minted, salt, upstream_key, last_used }
    }

    /// The same token, which another salt than the primary one made.
    pub(super) fn with_salt(self, salt: u8) -> TokenRecord {
        TokenRecord { salt, ..self }
    }

    /// The same token with another key for the backend.
    pub(super) fn with_upstream_key(&self, upstream_key: Option<Secret>) -> TokenRecord {
        TokenRecord {
            user: self.user.clone(),
            expires: self.expires,
            login: self.login,
            seed: self.seed,
            minted: self.minted,
            salt: self.salt,
            upstream_key: upstream_key.map(Box::new),
            last_used: AtomicU64::new(self.last_used().raw()),
        }
    }

    /// What the backend is shown instead of the token, if that is not the token itself.
    pub fn upstream_key(&self) -> Option<&Secret> {
        self.upstream_key.as_deref()
    }

    /// When it was last used.
    pub fn last_used(&self) -> Tick {
        Tick::from_raw(self.last_used.load(Ordering::Relaxed))
    }

    /// Notes a use. Written seldom, measured by the time that it may go unused, so that a busy token is not a cache
    /// line that all cores fight for.
    pub(super) fn touch(&self, now: Tick, idle_ttl: Option<Duration>) {
        let grain = idle_ttl.map_or(LAST_USED_RESOLUTION, |ttl| (ttl / 16).min(Duration::from_secs(1)));
        if now.since(self.last_used()) >= grain {
            self.set_last_used(now);
        }
    }

    pub(super) fn set_last_used(&self, when: Tick) {
        self.last_used.store(when.raw(), Ordering::Relaxed);
    }
}
