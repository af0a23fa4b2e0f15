//! The keys that protect what leaves this process: record names are keyed hashes, values are sealed.
//!
//! It knows neither the format of a value nor where it is stored.
//!
//! SECURITY: all keys are derived from the salts, one for each purpose. Only a holder of the salt that made a record
//! can find and open it. A dump of the store, or the right to write to it, yields no token, user name or password,
//! and cannot forge one. A value is bound to the name of its record, so it cannot be moved to a different one.

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

/// The number of the first salt in the configuration, which makes new tokens.
pub const PRIMARY_SALT: u8 = 0;

/// Derives a key from `salt` for one purpose. `salt` is a Fernet key, which the configuration has validated.
pub fn derive_key(salt: &Secret, purpose: &str) -> Zeroizing<[u8; 32]> {
    // The decoded bytes, because the same salt may be written with or without padding.
    let bytes = URL_SAFE_NO_PAD.decode(salt.expose().trim_end_matches('=')).map(Zeroizing::new);
    let root = hmac::Key::new(HMAC_SHA256, &bytes.expect("the configuration has validated the salts"));
    hmac_tag(&root, &[purpose.as_bytes()])
}

fn hmac_tag(key: &hmac::Key, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
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

/// The keys of all salts; the number of a salt is its index.
pub struct StoreKeys(Vec<SaltKeys>);

struct SaltKeys {
    index_key: hmac::Key,
    seal_key: LessSafeKey,
    salt_name: String,
}

impl StoreKeys {
    /// `salts` are Fernet keys; there is at least one, and the primary one is first.
    pub fn new(salts: &[Secret]) -> StoreKeys {
        let derive = |salt: &Secret| SaltKeys {
            index_key: hmac::Key::new(HMAC_SHA256, &*derive_key(salt, "timbr-gateway store index 1")),
            seal_key: LessSafeKey::new(
                UnboundKey::new(&AES_256_GCM_SIV, &*derive_key(salt, "timbr-gateway store seal 1"))
                    .expect("the key has 32 bytes"),
            ),
            salt_name: salt_name(salt),
        };
        StoreKeys(salts.iter().map(derive).collect())
    }

    /// The [name](salt_name) of each salt.
    pub fn salt_names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|keys| keys.salt_name.as_str())
    }

    /// The record name of a token that this salt made.
    pub fn token_name(&self, salt: u8, id: &TokenId) -> RecordName {
        self.record_name(salt, &[b"token", id.bytes()])
    }

    /// The record name of a login.
    pub fn login_name(&self, login: &LoginId) -> RecordName {
        self.record_name(PRIMARY_SALT, &[b"login", &login.0])
    }

    /// A pseudonym for a user, which can be counted but not read.
    pub fn hashed_user(&self, user: &UserName) -> RecordName {
        self.record_name(PRIMARY_SALT, &[b"user", user.as_str().as_bytes()])
    }

    fn record_name(&self, salt: u8, parts: &[&[u8]]) -> RecordName {
        let tag = hmac_tag(&self.0[usize::from(salt)].index_key, parts);
        RecordName(tag[..16].try_into().expect("a tag has 32 bytes"))
    }

    /// Seals `plaintext` with the key of this salt: nonce, ciphertext, tag. Only the same `context` opens it.
    pub fn seal(&self, salt: u8, context: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).expect("the system's random source works");
        let mut ciphertext = Zeroizing::new(plaintext.to_vec());
        let tag = self.0[usize::from(salt)].seal_key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context),
            &mut ciphertext,
        );
        [&nonce[..], &ciphertext, tag.expect("the plaintext is short").as_ref()].concat()
    }

    /// The plaintext, and the number of the salt that sealed it. `None` if no salt opens it for this `context`.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Option<(u8, Zeroizing<Vec<u8>>)> {
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_LEN>()?;
        self.0.iter().zip(0..).find_map(|(keys, salt)| {
            let mut plaintext = Zeroizing::new(ciphertext.to_vec());
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let length = keys.seal_key.open_in_place(nonce, Aad::from(context), &mut plaintext).ok()?.len();
            plaintext.truncate(length);
            Some((salt, plaintext))
        })
    }
}

/// The public name of a salt: 8 hex digits that reveal nothing else about it.
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
    fn a_value_opens_only_with_its_salt_in_its_context() {
        let sealed = keys(&[SALT]).seal(PRIMARY_SALT, b"here", b"a text");
        assert!(!sealed.windows(6).any(|six| six == b"a text"));
        let open = |salts: &[&str], context: &[u8], sealed: &[u8]| {
            keys(salts).open(context, sealed).map(|(salt, plaintext)| (salt, plaintext.to_vec()))
        };
        assert_eq!(open(&[SALT], b"here", &sealed), Some((0, b"a text".to_vec())));
        assert_eq!(open(&[OTHER, SALT], b"here", &sealed), Some((1, b"a text".to_vec())));
        assert_eq!(open(&[OTHER], b"here", &sealed), None);
        assert_eq!(open(&[SALT], b"there", &sealed), None);
        for end in 0..sealed.len() {
            assert_eq!(open(&[SALT], b"here", &sealed[..end]), None, "{end}");
            let mut changed = sealed.clone();
            changed[end] ^= 1;
            assert_eq!(open(&[SALT], b"here", &changed), None, "{end}");
        }
        assert_ne!(
            keys(&[SALT]).seal(PRIMARY_SALT, b"here", b"a text"),
            sealed,
            "equal plaintexts have different ciphertexts"
        );
    }

    #[test]
    fn record_names_depend_on_the_salt_and_on_the_kind_of_record() {
        let (one, both) = (keys(&[SALT]), keys(&[OTHER, SALT]));
        let id = TokenId::from_token(b"tk_");
        assert!(one.token_name(0, &id) == both.token_name(1, &id));
        assert!(one.token_name(0, &id) != both.token_name(0, &id));
        assert!(one.login_name(&LoginId([7; 16])) != both.login_name(&LoginId([7; 16])));
        assert_eq!(one.token_name(0, &id).to_string().len(), 22);
        assert_eq!(
            both.salt_names().collect::<Vec<_>>(),
            [salt_name(&Secret::new(OTHER.into())), salt_name(&Secret::new(SALT.into()))]
        );
    }
}
