//! The keys that protect what leaves this process: record names are keyed hashes, values are sealed.
//!
//! It knows neither the format of a value nor where it is stored.
//!
//! SECURITY: all keys are derived from the keys of the store (`store.key`), one for each purpose. Clients do not have
//! them, although they have the salt. A dump of the store, or the right to write to it, yields no token, user name or
//! password, and cannot forge one. A value is bound to the name of its record, so it cannot be moved to a different
//! one.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::base::user_name::UserName;
use crate::config::{StoreKey, StoreKeyOptions};
use crate::store::{LoginId, TokenId};

/// The number of a key in the ring. It stays the same while the process runs.
pub type KeyNumber = u8;

/// The number of the key that makes new tokens.
pub const PRIMARY_KEY: KeyNumber = 0;

/// The keys of the store, the primary one first. Each use has keys of its own, which are derived from them.
pub struct KeyRing {
    /// Not empty.
    keys: Vec<StoreKey>,
    /// The keys for the checksums of tokens; `None`: the same. Used only with tokens in memory.
    checksum_keys: Option<Vec<StoreKey>>,
}

impl KeyRing {
    /// At least one key.
    pub fn new(keys: &[StoreKey]) -> KeyRing {
        KeyRing { keys: keys.to_vec(), checksum_keys: None }
    }

    /// The keys that these options configure.
    ///
    /// SECURITY: a process with a random key would take the tokens of the process before it for invented keys: it would
    /// charge their holders with failures and send the tokens to the backend. So the checksums of tokens have keys that
    /// holders of a salt know as well. What they forge with them shows only that it has expired.
    pub fn from_options(options: &StoreKeyOptions) -> KeyRing {
        match options {
            StoreKeyOptions::Configured(keys) | StoreKeyOptions::OfSalts(keys) => KeyRing::new(keys),
            StoreKeyOptions::Random { checksum_keys } => {
                KeyRing { keys: vec![StoreKey::random()], checksum_keys: Some(checksum_keys.clone()) }
            }
        }
    }

    /// A key for one purpose from each key of the ring, in the same sequence.
    pub fn derive(&self, purpose: &str) -> impl Iterator<Item = Zeroizing<[u8; 32]>> {
        derive(&self.keys, purpose)
    }

    /// The keys for the checksums of tokens, the one for new tokens first.
    pub fn derive_checksum_keys(&self, purpose: &str) -> impl Iterator<Item = Zeroizing<[u8; 32]>> {
        derive(self.checksum_keys.as_ref().unwrap_or(&self.keys), purpose)
    }

    /// A key for one purpose from the primary key.
    pub fn derive_primary(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        self.derive(purpose).next().expect("a ring has a key")
    }
}

fn derive(keys: &[StoreKey], purpose: &str) -> impl Iterator<Item = Zeroizing<[u8; 32]>> {
    keys.iter().map(move |key| hmac_tag(&hmac::Key::new(HMAC_SHA256, key.bytes()), &[purpose.as_bytes()]))
}

/// The keyed hash of the parts, one after the other. The caller sees to it that they are unambiguous.
pub fn hmac_tag(key: &hmac::Key, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let tag = hmac::sign(key, &Zeroizing::new(parts.concat()));
    Zeroizing::new(tag.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// The name of a record in the store: a keyed hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordName(pub [u8; 16]);

impl fmt::Display for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// The keys for record names and values, one pair for each key of the ring.
pub struct StoreKeys(Vec<RecordKeys>);

struct RecordKeys {
    index_key: hmac::Key,
    seal_key: LessSafeKey,
}

impl StoreKeys {
    /// Derives the keys.
    pub fn new(ring: &KeyRing) -> StoreKeys {
        let pairs = ring.derive("store index 2").zip(ring.derive("store seal 2"));
        let keys = pairs.map(|(index, seal)| RecordKeys {
            index_key: hmac::Key::new(HMAC_SHA256, &*index),
            seal_key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, &*seal).expect("the key has 32 bytes")),
        });
        StoreKeys(keys.collect())
    }

    /// The numbers of all keys.
    pub fn numbers(&self) -> impl Iterator<Item = KeyNumber> + use<> {
        (0..).take(self.0.len())
    }

    /// The record name of a token that this key made.
    pub fn token_name(&self, key: KeyNumber, id: &TokenId) -> RecordName {
        self.record_name(key, &[b"token", id.bytes()])
    }

    /// The record name of a login.
    pub fn login_name(&self, login: &LoginId) -> RecordName {
        self.record_name(PRIMARY_KEY, &[b"login", &login.0])
    }

    /// A pseudonym for a user, which can be counted but not read.
    pub fn hashed_user(&self, user: &UserName) -> RecordName {
        self.record_name(PRIMARY_KEY, &[b"user", user.as_str().as_bytes()])
    }

    /// The record name of the mark with this id.
    pub fn mark_name(&self, id: &[u8]) -> RecordName {
        self.record_name(PRIMARY_KEY, &[b"mark", id])
    }

    fn record_name(&self, key: KeyNumber, parts: &[&[u8]]) -> RecordName {
        let tag = hmac_tag(&self.0[usize::from(key)].index_key, parts);
        RecordName(tag[..16].try_into().expect("a tag has 32 bytes"))
    }

    /// Seals `plaintext` with this key: nonce, ciphertext, tag. Only the same `context` opens it.
    pub fn seal(&self, key: KeyNumber, context: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).expect("the system's random source works");
        let mut ciphertext = Zeroizing::new(plaintext.to_vec());
        let tag = self.0[usize::from(key)].seal_key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context),
            &mut ciphertext,
        );
        [&nonce[..], &ciphertext, tag.expect("the plaintext is short").as_ref()].concat()
    }

    /// The plaintext, and the number of the key that sealed it. `None` if no key opens it for this `context`.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Option<(KeyNumber, Zeroizing<Vec<u8>>)> {
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_LEN>()?;
        self.0.iter().zip(0..).find_map(|(keys, number)| {
            let mut plaintext = Zeroizing::new(ciphertext.to_vec());
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let length = keys.seal_key.open_in_place(nonce, Aad::from(context), &mut plaintext).ok()?.len();
            plaintext.truncate(length);
            Some((number, plaintext))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
    const OTHER: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";

    fn keys(ring: &[&str]) -> StoreKeys {
        let ring: Vec<_> = ring.iter().map(|key| StoreKey::parse(key).expect("32 bytes")).collect();
        StoreKeys::new(&KeyRing::new(&ring))
    }

    #[test]
    fn a_value_opens_only_with_its_key_in_its_context() {
        let sealed = keys(&[KEY]).seal(PRIMARY_KEY, b"here", b"a text");
        assert!(!sealed.windows(6).any(|six| six == b"a text"));
        let open = |ring: &[&str], context: &[u8], sealed: &[u8]| {
            keys(ring).open(context, sealed).map(|(key, plaintext)| (key, plaintext.to_vec()))
        };
        assert_eq!(open(&[KEY], b"here", &sealed), Some((0, b"a text".to_vec())));
        assert_eq!(open(&[OTHER, KEY], b"here", &sealed), Some((1, b"a text".to_vec())));
        assert_eq!(open(&[OTHER], b"here", &sealed), None);
        assert_eq!(open(&[KEY], b"there", &sealed), None);
        for end in 0..sealed.len() {
            assert_eq!(open(&[KEY], b"here", &sealed[..end]), None, "{end}");
            let mut changed = sealed.clone();
            changed[end] ^= 1;
            assert_eq!(open(&[KEY], b"here", &changed), None, "{end}");
        }
        assert_ne!(
            keys(&[KEY]).seal(PRIMARY_KEY, b"here", b"a text"),
            sealed,
            "equal plaintexts have different ciphertexts"
        );
    }

    #[test]
    fn record_names_depend_on_the_key_and_on_the_kind_of_record() {
        let (one, both) = (keys(&[KEY]), keys(&[OTHER, KEY]));
        let id = TokenId::from_token(b"tk_");
        assert!(one.token_name(0, &id) == both.token_name(1, &id));
        assert!(one.token_name(0, &id) != both.token_name(0, &id));
        assert!(one.login_name(&LoginId([7; 16])) != both.login_name(&LoginId([7; 16])));
        assert_eq!(one.token_name(0, &id).to_string().len(), 22);
    }
}
