//! Identifies a token by its hash: [`TokenId`] for lookups, [`Fingerprint`] for logs.

use std::fmt;
use std::hash::{Hash, Hasher};

use aws_lc_rs::digest::{SHA256, digest};

use crate::base::hex;

/// The first 16 bytes of the SHA-256 of a token or API key.
///
/// SECURITY: to be accepted, an attacker would need a token with the same 128 bits as a live one. A leaked index of
/// these contains no credentials: a token has 160 random bits, so its hash cannot be inverted. Even so, it leaves the
/// process only as a keyed hash; see `store::keys`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenId([u8; 16]);

/// Eight bytes of it, as [`crate::base::identity_hasher`] requires.
impl Hash for TokenId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

impl TokenId {
    /// Hashes a token or API key.
    pub fn from_token(token: &[u8]) -> TokenId {
        let hash = digest(&SHA256, token);
        TokenId(*hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
    }

    /// Parses the 64 hex digits that `sha256sum` prints.
    pub fn from_hex(text: &str) -> Option<TokenId> {
        let hash: [u8; 32] = hex::decode(text.as_bytes())?;
        hash.first_chunk().copied().map(TokenId)
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> TokenId {
        TokenId(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The first 8 hex digits: enough to find a token in a log, and useless as a credential.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint([self.0[0], self.0[1], self.0[2], self.0[3]])
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({}…)", self.fingerprint())
    }
}

/// The first four bytes of a [`TokenId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 4]);

impl Fingerprint {
    /// The number whose eight hex digits logs show.
    pub fn raw(self) -> u32 {
        u32::from_be_bytes(self.0)
    }

    /// Parses the 8 hex digits that logs show.
    pub fn from_hex(text: &str) -> Option<Fingerprint> {
        hex::decode(text.as_bytes()).map(Fingerprint)
    }

    pub(crate) fn from_bytes(bytes: [u8; 4]) -> Fingerprint {
        Fingerprint(bytes)
    }

    pub(crate) fn bytes(self) -> [u8; 4] {
        self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_hash_that_sha256sum_prints() {
        let hex = "2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90";
        assert_eq!(TokenId::from_hex(hex), Some(TokenId::from_token(b"alice")));
        assert_eq!(TokenId::from_hex(&hex.to_uppercase()), Some(TokenId::from_token(b"alice")));
        assert_eq!(TokenId::from_token(b"alice").fingerprint().to_string(), "2bd806c9");
        let all_digits = "0123456789abcdefABCDEF9876543210".repeat(2);
        let expected = 0x0123_4567_89ab_cdef_abcd_ef98_7654_3210_u128.to_be_bytes();
        assert_eq!(TokenId::from_hex(&all_digits), Some(TokenId(expected)));
        for invalid in ["", "2bd8", &hex[1..], &hex.replace('2', "g"), &hex.replacen("2b", "+b", 1)] {
            assert_eq!(TokenId::from_hex(invalid), None, "{invalid}");
        }
        for invalid in (0..=0x7f).map(char::from).filter(|c| !c.is_ascii_hexdigit()) {
            for at in [0, 31, 32, 63] {
                let mut text = hex.to_owned();
                text.replace_range(at..=at, invalid.encode_utf8(&mut [0; 1]));
                assert_eq!(TokenId::from_hex(&text), None, "{text:?}");
            }
        }
    }
}
