//! What the gateway remembers about tokens: by the token's hash, never by the token.

pub mod memory;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};

use crate::clock::Tick;
use crate::user_name::UserName;

pub use memory::MemoryStore;

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

/// What is kept for a live token.
#[derive(Debug)]
pub struct TokenRecord {
    /// Whose it is.
    pub user: UserName,
    /// When it ends, used or not.
    pub expires: Tick,
    last_used: AtomicU64,
}

impl TokenRecord {
    /// A token minted at `minted` that lives until `expires`.
    pub fn new(user: UserName, minted: Tick, expires: Tick) -> TokenRecord {
        TokenRecord { user, expires, last_used: AtomicU64::new(minted.raw()) }
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
