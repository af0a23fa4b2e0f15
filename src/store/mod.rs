//! What the gateway remembers about tokens: by the token's hash, never by the token.

pub mod memory;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};

use crate::clock::{Clock, Tick};
use crate::secret::Secret;
use crate::user_name::UserName;

pub use memory::{Limits, MemoryStore};

/// SHA-256 of a token or key: the name under which it is kept.
///
/// SECURITY: an index of these is no list of credentials; a token has 160 random bits, so its hash cannot be
/// turned back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenId([u8; 32]);

/// For [`crate::prehashed`] too.
impl Hash for TokenId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

impl TokenId {
    /// The name of this token.
    pub fn of(token: &[u8]) -> TokenId {
        let hash = digest(&SHA256, token);
        TokenId(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// From the 64 hex digits that `sha256sum` prints.
    pub fn from_hex(text: &str) -> Option<TokenId> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let mut id = [0; 32];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(TokenId(id))
    }

    /// The first 8 hex digits: enough to find a token in a log, nothing to use it with.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint([self.0[0], self.0[1], self.0[2], self.0[3]])
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({}…)", self.fingerprint())
    }
}

/// The beginning of a [`TokenId`], for logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 4]);

impl Fingerprint {
    /// As a number, whose eight hex digits logs show.
    pub fn raw(self) -> u32 {
        u32::from_be_bytes(self.0)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.raw())
    }
}

/// A login as the index knows it: a keyed hash of user name and password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoginId(pub [u8; 16]);

/// The random part that, together with the login itself, makes a token; see `auth::token`.
pub type Seed = [u8; 20];

/// Where tokens are kept.
#[derive(Debug)]
pub enum Store {
    /// In this process alone.
    Memory(MemoryStore),
}

/// The store cannot be asked: nothing is known of the token, neither that it lives nor that it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token store does not answer")]
pub struct Unavailable;

/// A token that is to be kept.
#[derive(Debug)]
pub struct NewToken {
    /// The login that it is for.
    pub login: LoginId,
    /// Whose it is.
    pub user: UserName,
    /// What the backend is shown instead of the token.
    pub upstream_key: Option<Secret>,
}

impl Store {
    /// Tokens in the memory of this process.
    pub fn memory(limits: Limits, clock: Clock) -> Store {
        Store::Memory(MemoryStore::new(limits, clock))
    }

    /// The live token with this name, if it is known here, noting its use. Never waits.
    pub fn find(&self, id: &TokenId) -> Option<Arc<TokenRecord>> {
        match self {
            Store::Memory(memory) => memory.find(id),
        }
    }

    /// The live token with this name, that [`Store::find`] does not know: others may have minted it.
    #[allow(clippy::unused_async, reason = "other stores are asked over the network")]
    pub async fn fetch(&self, _id: &TokenId) -> Result<Option<Arc<TokenRecord>>, Unavailable> {
        match self {
            Store::Memory(_) => Ok(None),
        }
    }

    /// The seed of the login's live token, if it is known here and has a tenth of its life before it. Never waits.
    pub fn seed_of(&self, login: &LoginId, id_of: impl Fn(&Seed) -> TokenId) -> Option<Seed> {
        match self {
            Store::Memory(memory) => memory.seed_of(login, id_of),
        }
    }

    /// Keeps a token for the login, unless somebody kept one first: then that one's seed is given back.
    #[allow(clippy::unused_async, reason = "other stores are asked over the network")]
    pub async fn insert(
        &self,
        new: NewToken,
        seed: Seed,
        id_of: impl Fn(&Seed) -> TokenId,
    ) -> Result<Seed, Unavailable> {
        let NewToken { login, user, upstream_key } = new;
        let record =
            |minted, expires| TokenRecord::new(user, minted, expires).with_upstream_key(upstream_key);
        match self {
            Store::Memory(memory) => Ok(memory.insert(login, seed, record, id_of)),
        }
    }

    /// Has the backend shown another key instead of a live token from now on; nothing happens if it lives no more.
    #[allow(clippy::unused_async, reason = "other stores are asked over the network")]
    pub async fn set_upstream_key(&self, id: &TokenId, key: Secret) -> Result<(), Unavailable> {
        match self {
            Store::Memory(memory) => memory.set_upstream_key(id, key),
        }
        Ok(())
    }

    /// Forgets what has ended. Called now and then, off the path of requests.
    pub fn sweep(&self) {
        match self {
            Store::Memory(memory) => memory.sweep(),
        }
    }
}

/// What is kept for a live token.
#[derive(Debug)]
pub struct TokenRecord {
    /// Whose it is.
    pub user: UserName,
    /// When it ends, used or not.
    pub expires: Tick,
    upstream_key: Option<Secret>,
    last_used: AtomicU64,
}

impl TokenRecord {
    /// A token minted at `minted` that lives until `expires`.
    pub fn new(user: UserName, minted: Tick, expires: Tick) -> TokenRecord {
        TokenRecord { user, expires, upstream_key: None, last_used: AtomicU64::new(minted.raw()) }
    }

    /// The same token, with what the backend is shown in its place.
    pub fn with_upstream_key(self, upstream_key: Option<Secret>) -> TokenRecord {
        TokenRecord { upstream_key, ..self }
    }

    /// What the backend is shown instead of the token, if that is not the token itself.
    pub fn upstream_key(&self) -> Option<&Secret> {
        self.upstream_key.as_ref()
    }

    /// When it was last used.
    pub fn last_used(&self) -> Tick {
        Tick::from_raw(self.last_used.load(Ordering::Relaxed))
    }

    /// Notes a use. Written seldom, measured by the time that it may go unused, so that a busy token is not a cache
    /// line that all cores fight for.
    fn touch(&self, now: Tick, idle_ttl: Duration) {
        if now.since(self.last_used()) >= (idle_ttl / 16).min(Duration::from_secs(1)) {
            self.last_used.store(now.raw(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_what_sha256sum_prints() {
        let hex = "2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90";
        assert_eq!(TokenId::from_hex(hex), Some(TokenId::of(b"alice")));
        assert_eq!(TokenId::from_hex(&hex.to_uppercase()), Some(TokenId::of(b"alice")));
        assert_eq!(TokenId::of(b"alice").fingerprint().to_string(), "2bd806c9");
        for wrong in ["", "2bd8", &hex[1..], &hex.replace('2', "g"), &hex.replacen("2b", "+b", 1)] {
            assert_eq!(TokenId::from_hex(wrong), None, "{wrong}");
        }
    }
}
