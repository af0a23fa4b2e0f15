//! A live token as this process holds it in memory: everything about it except the token itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::clock::Tick;
use crate::base::groups::Groups;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::store::keys::KeyNumber;
use crate::store::{LoginId, Seed, Timestamp};

/// A token that is to be stored.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// The login that requested it.
    pub login: LoginId,
    /// The user that it authenticates.
    pub user: UserName,
    /// The user's groups, if the verifier of the login knows them.
    pub groups: Option<Groups>,
    /// The key that the backend receives instead of the token; `None`: the backend receives the token.
    pub upstream_key: Option<Secret>,
    /// What has proven the login.
    pub binding: TokenBinding,
    /// The key that made it.
    pub key: KeyNumber,
}

/// Binds a token to what has proven its login: a keyed hash of the verifier and its evidence. The store keeps it with
/// the token, and does not know what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBinding(pub [u8; 8]);

/// A stored token.
#[derive(Debug)]
pub struct TokenRecord {
    /// The user that it authenticates.
    pub user: UserName,
    /// The user's groups, as they were at the login.
    pub groups: Option<Groups>,
    /// When it expires, used or not.
    pub expires: Tick,
    pub(super) login: LoginId,
    /// Together with the login it makes the token again.
    pub(super) seed: Seed,
    pub(super) minted: Timestamp,
    /// What has proven the login.
    pub binding: TokenBinding,
    /// The key that made it.
    pub key: KeyNumber,
    /// Boxed because few tokens have one.
    upstream_key: Option<Box<Secret>>,
    last_used: AtomicU64,
    /// The generation of verifiers that last confirmed the binding.
    confirmed: AtomicU64,
}

/// Resolution of the last use where tokens have no idle lifetime.
const LAST_USED_RESOLUTION: Duration = Duration::from_secs(60);

impl TokenRecord {
    /// A token that was last used at `now`.
    pub(super) fn new(token: NewToken, seed: Seed, minted: Timestamp, now: Tick, expires: Tick) -> TokenRecord {
        let NewToken { login, user, groups, upstream_key, binding, key } = token;
        let upstream_key = upstream_key.map(Box::new);
        let (last_used, confirmed) = (AtomicU64::new(now.raw()), AtomicU64::new(0));
        TokenRecord { user, groups, expires, login, seed, minted, binding, key, upstream_key, last_used, confirmed }
    }

    /// A copy with a new key for the backend.
    pub(super) fn with_upstream_key(&self, upstream_key: Secret) -> TokenRecord {
        TokenRecord {
            user: self.user.clone(),
            groups: self.groups.clone(),
            expires: self.expires,
            login: self.login,
            seed: self.seed,
            minted: self.minted,
            binding: self.binding,
            key: self.key,
            upstream_key: Some(Box::new(upstream_key)),
            last_used: AtomicU64::new(self.last_used().raw()),
            confirmed: AtomicU64::new(0),
        }
    }

    /// The key that the backend receives instead of the token; `None`: the backend receives the token.
    pub fn upstream_key(&self) -> Option<&Secret> {
        self.upstream_key.as_deref()
    }

    /// True if the verifiers of this generation have confirmed the binding. Generations start at 1.
    pub fn is_confirmed_by(&self, generation: u64) -> bool {
        self.confirmed.load(Ordering::Relaxed) == generation
    }

    /// Records that the verifiers of this generation confirm the binding.
    pub fn set_confirmed_by(&self, generation: u64) {
        self.confirmed.store(generation, Ordering::Relaxed);
    }

    /// When it was last used, to a minute or a sixteenth of the idle lifetime.
    pub fn last_used(&self) -> Tick {
        Tick::from_raw(self.last_used.load(Ordering::Relaxed))
    }

    /// Records a use. It writes only if the last write is older than a fraction of the idle lifetime: otherwise all
    /// cores would contend for the cache line of a busy token.
    pub(super) fn touch(&self, now: Tick, idle_ttl: Option<Duration>) {
        let resolution = idle_ttl.map_or(LAST_USED_RESOLUTION, |ttl| (ttl / 16).min(Duration::from_secs(1)));
        if now.since(self.last_used()) >= resolution {
            self.set_last_used(now);
        }
    }

    pub(super) fn set_last_used(&self, when: Tick) {
        self.last_used.store(when.raw(), Ordering::Relaxed);
    }
}
