//! What is kept outside of this process, unreadable there: names are keyed hashes, values are sealed.
//!
//! SECURITY: all keys are derived from the salts, each for one purpose. What a salt made can be found and opened by who has
//! that salt, and by nobody else: neither a dump of the store nor the right to write to it yields a token, a name or a
//! password, or makes one. A value is sealed for its place, so that it cannot be moved to another.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::base::hex;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::store::{LoginId, TokenId};

/// The key that `salt` gives for one purpose. `salt` is a Fernet key, as the configuration has checked.
pub fn derive_key(salt: &Secret, purpose: &str) -> Zeroizing<[u8; 32]> {
    // The bytes, not the text: the same salt may be written with or without padding.
    let bytes = URL_SAFE_NO_PAD.decode(salt.expose().trim_end_matches('=')).map(Zeroizing::new);
    let root = hmac::Key::new(HMAC_SHA256, &bytes.expect("the configuration checked the salts"));
    hmac_tag(&root, &[purpose.as_bytes()])
}

fn hmac_tag(key: &hmac::Key, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let tag = hmac::sign(key, &Zeroizing::new(parts.concat()));
    Zeroizing::new(tag.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// The name under which something is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordName(pub [u8; 16]);

impl fmt::Display for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// The keys of all salts, the primary one's first.
pub struct StoreKeys(Vec<SaltKeys>);

struct SaltKeys {
    index_key: hmac::Key,
    seal_key: LessSafeKey,
    salt_name: String,
}

impl StoreKeys {
    /// `salts` are Fernet keys; there is at least one.
    pub fn new(salts: &[Secret]) -> StoreKeys {
        let of = |salt: &Secret| SaltKeys {
            index_key: hmac::Key::new(HMAC_SHA256, &*derive_key(salt, "timbr-gateway store index 1")),
            seal_key: LessSafeKey::new(
                UnboundKey::new(&AES_256_GCM_SIV, &*derive_key(salt, "timbr-gateway store seal 1"))
                    .expect("the key has its 32 bytes"),
            ),
            salt_name: salt_name(salt),
        };
        StoreKeys(salts.iter().map(of).collect())
    }

    /// Names of the salts, as [`salt_name`] gives them.
    pub fn salt_names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|keys| keys.salt_name.as_str())
    }

    /// Where a token is kept that the salt with this number made.
    pub fn token_name(&self, salt: u8, id: &TokenId) -> RecordName {
        self.record_name(usize::from(salt), &[b"token", id.bytes()])
    }

    /// Where a login's seed is kept.
    pub fn login_name(&self, login: &LoginId) -> RecordName {
        self.record_name(0, &[b"login", &login.0])
    }

    /// A user, to be counted and not to be read.
    pub fn hashed_user(&self, user: &UserName) -> RecordName {
        self.record_name(0, &[b"user", user.as_str().as_bytes()])
    }

    fn record_name(&self, salt: usize, parts: &[&[u8]]) -> RecordName {
        RecordName(hmac_tag(&self.0[salt].index_key, parts)[..16].try_into().expect("a tag has 32 bytes"))
    }

    /// Seals `text` for `place` with the salt of this number.
    pub fn seal(&self, salt: u8, place: &[u8], text: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).expect("the system's random source works");
        let mut sealed = Zeroizing::new(text.to_vec());
        let tag = self.0[usize::from(salt)].seal_key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(place),
            &mut sealed,
        );
        [&nonce[..], &sealed, tag.expect("the text is short").as_ref()].concat()
    }

    /// What was sealed for `place`, and the number of the salt that did it.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Option<(u8, Zeroizing<Vec<u8>>)> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
        self.0.iter().zip(0..).find_map(|(keys, salt)| {
            let mut text = Zeroizing::new(rest.to_vec());
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let length = keys.seal_key.open_in_place(nonce, Aad::from(place), &mut text).ok()?.len();
            text.truncate(length);
            Some((salt, text))
        })
    }
}

/// What operators call a salt: 8 hex digits that say nothing else about it.
pub fn salt_name(salt: &Secret) -> String {
    hex::encode(&derive_key(salt, "timbr-gateway salt name 1")[..4])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
    const OTHER: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";

    fn keys(salts: &[&str]) -> StoreKeys {
        StoreKeys::new(&salts.iter().map(|salt| Secret::new((*salt).to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_with_its_salt_and_nowhere_else() {
        let sealed = keys(&[SALT]).seal(0, b"here", b"a text");
        assert!(!sealed.windows(6).any(|six| six == b"a text"));
        let opened = |salts: &[&str], place: &[u8], sealed: &[u8]| {
            keys(salts).open(place, sealed).map(|(salt, text)| (salt, text.to_vec()))
        };
        assert_eq!(opened(&[SALT], b"here", &sealed), Some((0, b"a text".to_vec())));
        assert_eq!(opened(&[OTHER, SALT], b"here", &sealed), Some((1, b"a text".to_vec())));
        assert_eq!(opened(&[OTHER], b"here", &sealed), None);
        assert_eq!(opened(&[SALT], b"there", &sealed), None);
        for end in 0..sealed.len() {
            assert_eq!(opened(&[SALT], b"here", &sealed[..end]), None, "{end}");
            let mut changed = sealed.clone();
            changed[end] ^= 1;
            assert_eq!(opened(&[SALT], b"here", &changed), None, "{end}");
        }
        assert_ne!(keys(&[SALT]).seal(0, b"here", b"a text"), sealed, "the same text never looks the same");
    }

    #[test]
    fn names_depend_on_the_salt_and_on_what_they_are_for() {
        let (one, both) = (keys(&[SALT]), keys(&[OTHER, SALT]));
        let id = TokenId::from_token(b"tk_");
        assert!(
            one.token_name(0, &id) == both.token_name(1, &id)
                && one.token_name(0, &id) != both.token_name(0, &id)
        );
        assert!(one.login_name(&LoginId([7; 16])) != both.login_name(&LoginId([7; 16])));
        assert_eq!(one.token_name(0, &id).to_string().len(), 22);
        assert_eq!(
            both.salt_names().collect::<Vec<_>>(),
            [salt_name(&Secret::new(OTHER.into())), salt_name(&Secret::new(SALT.into()))]
        );
    }
}
