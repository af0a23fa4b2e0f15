//! Makes tokens, and recognises tokens made with a known salt. Knows nothing about where they are stored.
//!
//! ```text
//! tk_ + 40 hex digits (160 bits) + 16 hex digits (a keyed checksum over them)
//! ```
//!
//! The 160 bits are a keyed hash of a random seed, the user name and the password. The store contains the seed and the
//! token's hash. The token can be made again only with the same user name and password, so no stored value is a
//! credential.

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use aws_lc_rs::rand;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::auth::bearer::Credentials;
use crate::base::hex;
use crate::base::secret::Secret;
use crate::store::{LoginId, Seed, derive_key};

const TOKEN_PREFIX: &str = "tk_";
const BODY_BYTES: usize = 20;
const CHECKSUM_BYTES: usize = 8;
const TOKEN_LENGTH: usize = TOKEN_PREFIX.len() + 2 * (BODY_BYTES + CHECKSUM_BYTES);

/// Makes and recognises tokens, with keys derived from the salts.
pub struct TokenMint {
    /// One per salt. The first one, of the primary salt, makes new tokens.
    keys: Vec<TokenKeys>,
}

struct TokenKeys {
    checksum_key: Key,
    login_key: Key,
    body_key: Key,
}

impl TokenMint {
    /// `salts` are Fernet keys, validated by the configuration; there is at least one.
    pub fn new(salts: &[Secret]) -> TokenMint {
        TokenMint { keys: salts.iter().map(TokenKeys::derive).collect() }
    }

    /// The store's key for the seed of a login.
    pub fn login_id(&self, login: &Credentials) -> LoginId {
        let tag = hmac(&self.primary().login_key, &[&login_bytes(login)]);
        LoginId(tag[..16].try_into().expect("a tag has 32 bytes"))
    }

    /// A new random seed.
    pub fn new_seed(&self) -> Seed {
        let mut seed = Seed::default();
        rand::fill(&mut seed).expect("the system's random source works");
        seed
    }

    /// The token of a login and a seed.
    pub fn token(&self, login: &Credentials, seed: &Seed) -> Secret {
        let keys = self.primary();
        let tag = hmac(&keys.body_key, &[seed, &login_bytes(login)]);
        let body = &tag[..BODY_BYTES];
        let check = hmac(&keys.checksum_key, &[body]);
        let digits = |bytes| Zeroizing::new(hex::encode(bytes));
        Secret::new([TOKEN_PREFIX, &*digits(body), &*digits(&check[..CHECKSUM_BYTES])].concat())
    }

    /// The index of the salt that the token was made with, by this gateway or a replica; `None` if no salt matches.
    /// Does not check whether the token is still valid.
    pub fn salt_index_of(&self, token: &[u8]) -> Option<u8> {
        let (body, check) = parse_token(token)?;
        let fits = |keys: &TokenKeys| hmac(&keys.checksum_key, &[&body])[..CHECKSUM_BYTES].ct_eq(&check);
        // SECURITY: tries all salts, so that the duration does not reveal which one matched.
        self.keys.iter().zip(0..).fold(None, |maker, (keys, salt)| if fits(keys).into() { Some(salt) } else { maker })
    }

    fn primary(&self) -> &TokenKeys {
        &self.keys[0]
    }
}

impl TokenKeys {
    fn derive(salt: &Secret) -> TokenKeys {
        let derive = |purpose: &str| Key::new(HMAC_SHA256, &*derive_key(salt, purpose));
        TokenKeys {
            checksum_key: derive("timbr-gateway token checksum 1"),
            login_key: derive("timbr-gateway login index 1"),
            body_key: derive("timbr-gateway token body 1"),
        }
    }
}

fn hmac(key: &Key, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let tag = sign(key, &Zeroizing::new(parts.concat()));
    Zeroizing::new(tag.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// A user name contains no NUL, so the encoding is unambiguous.
fn login_bytes(login: &Credentials) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([login.user.as_str().as_bytes(), b"\0", login.password.expose().as_bytes()].concat())
}

fn parse_token(token: &[u8]) -> Option<([u8; BODY_BYTES], [u8; CHECKSUM_BYTES])> {
    if token.len() != TOKEN_LENGTH {
        return None;
    }
    let digits = token.strip_prefix(TOKEN_PREFIX.as_bytes())?;
    // A token has one spelling.
    let bytes: [u8; BODY_BYTES + CHECKSUM_BYTES] =
        hex::decode(digits).filter(|_| !digits.iter().any(u8::is_ascii_uppercase))?;
    let (body, check) = bytes.split_at(BODY_BYTES);
    Some((body.try_into().ok()?, check.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::user_name::UserName;

    const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
    const OTHER: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";

    fn mint(salts: &[&str]) -> TokenMint {
        TokenMint::new(&salts.iter().map(|salt| Secret::new((*salt).to_owned())).collect::<Vec<_>>())
    }

    fn login(user: &str, password: &str) -> Credentials {
        let user = UserName::parse(user.as_bytes()).expect("valid");
        Credentials { user, password: Secret::new(password.into()) }
    }

    #[test]
    fn a_token_is_tk_and_56_hex_digits() {
        let mint = mint(&[SALT]);
        let token = mint.token(&login("alice", "secret"), &mint.new_seed());
        assert_eq!(token.expose().len(), TOKEN_LENGTH);
        assert!(token.expose()[3..].bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        assert!(mint.salt_index_of(token.expose().as_bytes()) == Some(0));
    }

    #[test]
    fn a_token_depends_on_seed_user_and_password() {
        let mint = mint(&[SALT]);
        let seed = mint.new_seed();
        let token = |user, password, seed: &Seed| mint.token(&login(user, password), seed).expose().to_owned();
        let first = token("alice", "secret", &seed);
        assert_eq!(first, token("alice", "secret", &seed));
        assert_ne!(first, token("alice", "secret", &mint.new_seed()));
        assert_ne!(first, token("alice", "other", &seed));
        assert_ne!(first, token("bob", "secret", &seed));
        assert_ne!(mint.login_id(&login("a", "bc")), mint.login_id(&login("ab", "c")));
    }

    #[test]
    fn only_tokens_of_known_salts_are_recognised() {
        let (old, new) = (mint(&[SALT]), mint(&[OTHER, SALT]));
        let token = old.token(&login("alice", "secret"), &old.new_seed());
        assert_eq!(new.salt_index_of(token.expose().as_bytes()), Some(1), "a rotated salt");
        assert!(mint(&[OTHER]).salt_index_of(token.expose().as_bytes()).is_none());

        let mut changed = token.expose().to_owned().into_bytes();
        for i in 0..changed.len() {
            let right = changed[i];
            changed[i] = if right == b'0' { b'1' } else { b'0' };
            assert!(old.salt_index_of(&changed).is_none(), "character {i}");
            changed[i] = right;
        }
        for foreign in ["", "tk_", "tk_ab12", &token.expose().to_uppercase(), &format!("{}0", token.expose())] {
            assert!(old.salt_index_of(foreign.as_bytes()).is_none(), "{foreign}");
        }
    }
}
