//! A live token as this process holds it in memory: everything about it except the token itself.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::base::clock::Tick;
use crate::base::groups::Groups;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::store::keys::KeyNumber;
use crate::store::{LoginId, Seed, Timestamp, TokenId};

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

#[cfg(test)]
impl NewToken {
    /// A token of this user, for a login that consists of one repeated byte.
    pub fn example(user: &str, login: u8) -> NewToken {
        let user = UserName::parse(user.as_bytes()).expect("valid");
        let (login, binding) = (LoginId([login; 16]), TokenBinding([0; 8]));
        NewToken { login, user, groups: None, upstream_key: None, binding, key: 0 }
    }
}

/// Binds a token to what has proven its login: a keyed hash of the verifier and its evidence. The store keeps it with
/// the token, and does not know what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBinding(pub [u8; 8]);

/// A stored token. With its reference counts it takes 128 bytes, which is a size class of the allocator; one byte more
/// would take 160.
#[derive(Debug)]
pub struct TokenRecord {
    pub(super) id: TokenId,
    /// The user that it authenticates.
    pub user: UserName,
    /// When it expires, used or not.
    pub expires: Tick,
    pub(super) login: LoginId,
    /// Together with the login it makes the token again.
    pub(super) seed: Seed,
    minted: [u8; 6],
    /// What has proven the login.
    pub binding: TokenBinding,
    /// The key that made it.
    pub key: KeyNumber,
    /// Boxed because few tokens have any.
    extras: Option<Box<Extras>>,
    last_used: AtomicU64,
    /// The generation of verifiers that last confirmed the binding.
    confirmed: AtomicU32,
    /// It is the token that its login receives.
    is_current: AtomicBool,
}

const _: () = assert!(size_of::<TokenRecord>() == 128 - 2 * size_of::<usize>());

/// What not every token has.
#[derive(Clone, Debug)]
struct Extras {
    groups: Option<Groups>,
    upstream_key: Option<Secret>,
}

/// Resolution of the last use where tokens have no idle lifetime.
const LAST_USED_RESOLUTION: Duration = Duration::from_secs(60);

impl TokenRecord {
    /// A token that was last used at `now`.
    pub(super) fn new(
        id: TokenId,
        token: NewToken,
        seed: Seed,
        minted: Timestamp,
        now: Tick,
        expires: Tick,
    ) -> TokenRecord {
        let NewToken { login, user, groups, upstream_key, binding, key } = token;
        let has_extras = groups.is_some() || upstream_key.is_some();
        // Six bytes are enough until the year 10889.
        let [_, _, minted @ ..] = minted.0.min((1 << 48) - 1).to_be_bytes();
        TokenRecord {
            id,
            user,
            expires,
            login,
            seed,
            minted,
            binding,
            key,
            extras: has_extras.then(|| Box::new(Extras { groups, upstream_key })),
            last_used: AtomicU64::new(now.raw()),
            confirmed: AtomicU32::new(0),
            is_current: AtomicBool::new(false),
        }
    }

    /// A copy with a new key for the backend.
    pub(super) fn with_upstream_key(&self, upstream_key: Secret) -> TokenRecord {
        let token = NewToken { upstream_key: Some(upstream_key), ..self.token() };
        let record = TokenRecord::new(self.id, token, self.seed, self.minted(), self.last_used(), self.expires);
        record.set_current(self.is_current());
        record
    }

    /// What was stored.
    pub(super) fn token(&self) -> NewToken {
        NewToken {
            login: self.login,
            user: self.user.clone(),
            groups: self.groups().cloned(),
            upstream_key: self.upstream_key().cloned(),
            binding: self.binding,
            key: self.key,
        }
    }

    /// When it was minted.
    pub fn minted(&self) -> Timestamp {
        let [a, b, c, d, e, f] = self.minted;
        Timestamp(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    /// The user's groups, as they were at the login.
    pub fn groups(&self) -> Option<&Groups> {
        self.extras.as_ref()?.groups.as_ref()
    }

    /// The key that the backend receives instead of the token; `None`: the backend receives the token.
    pub fn upstream_key(&self) -> Option<&Secret> {
        self.extras.as_ref()?.upstream_key.as_ref()
    }

    /// True if it is the token that its login receives.
    pub(super) fn is_current(&self) -> bool {
        self.is_current.load(Ordering::Relaxed)
    }

    pub(super) fn set_current(&self, is_current: bool) {
        self.is_current.store(is_current, Ordering::Relaxed);
    }

    /// True if the verifiers of this generation have confirmed the binding. Generations start at 1.
    pub fn is_confirmed_by(&self, generation: u32) -> bool {
        self.confirmed.load(Ordering::Relaxed) == generation
    }

    /// Records that the verifiers of this generation confirm the binding.
    pub fn set_confirmed_by(&self, generation: u32) {
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
