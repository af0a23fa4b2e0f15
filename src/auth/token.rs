//! Makes tokens, and recognises tokens made with a known key. Knows nothing about where they are stored.
//!
//! ```text
//! tk_ + 8 hex digits (expiry) + 32 hex digits (128 bits) + 16 hex digits (a keyed checksum over them)
//! ```
//!
//! The 128 bits are a keyed hash of a random seed, the user name and the password. The store contains the seed and the
//! token's hash. The token can be made again only with the same user name and password, so no stored value is a
//! credential.
//!
//! The expiry is in seconds since the Unix epoch. It serves to tell an expired token from one that the store has lost;
//! whether a token is valid is decided by the store alone.

use std::cell::RefCell;

use aws_lc_rs::hmac::{HMAC_SHA256, Key};
use aws_lc_rs::rand;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::auth::bearer::Credentials;
use crate::base::groups::Groups;
use crate::base::hex;
use crate::base::secret::Secret;
use crate::store::{KeyNumber, KeyRing, LoginId, Seed, TokenBinding, TokenId, hmac_tag};

const TOKEN_PREFIX: &str = "tk_";
const EXPIRY_BYTES: usize = 4;
const BODY_BYTES: usize = 20;
const CHECKSUM_BYTES: usize = 8;
const TOKEN_LENGTH: usize = TOKEN_PREFIX.len() + 2 * (BODY_BYTES + CHECKSUM_BYTES);

/// Makes and recognises tokens, with keys derived from those of the store.
pub struct TokenMint {
    /// The first one makes new tokens.
    checksum_keys: Vec<Key>,
    login_key: Key,
    body_key: Key,
}

/// A token that this gateway or a replica has made. It may have expired or been revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthenticToken {
    /// The number of the key of its checksum. In a store outside the process this key made the whole token.
    pub key: KeyNumber,
    /// When it expires, in seconds since the Unix epoch.
    pub expires: u64,
}

impl TokenMint {
    /// Derives the keys.
    pub fn new(ring: &KeyRing) -> TokenMint {
        let key = |bytes: Zeroizing<[u8; 32]>| Key::new(HMAC_SHA256, &*bytes);
        TokenMint {
            checksum_keys: ring.derive_checksum_keys("token checksum 2").map(key).collect(),
            login_key: key(ring.derive_primary("login index 2")),
            body_key: key(ring.derive_primary("token body 2")),
        }
    }

    /// The store's key for the seed of a login.
    ///
    /// SECURITY: a login that was proven differently is a different one: it does not receive a token that ends with
    /// another proof, or has ended with it. The same applies to a login of a user whose groups have changed.
    pub fn login_id(&self, login: &Credentials, binding: &TokenBinding, groups: Option<&Groups>) -> LoginId {
        let mut tag = hmac_tag(&self.login_key, &[&binding.0, &login_bytes(login)]);
        for name in groups.iter().flat_map(|groups| groups.iter()) {
            tag = hmac_tag(&self.login_key, &[&*tag, name.as_bytes()]);
        }
        LoginId(tag[..16].try_into().expect("a tag has 32 bytes"))
    }

    /// A new random seed for a token that expires at this time, in seconds since the Unix epoch.
    pub fn new_seed(&self, expires: u64) -> Seed {
        let mut seed = Seed::default();
        let (expiry, random) = seed.split_at_mut(EXPIRY_BYTES);
        expiry.copy_from_slice(&u32::try_from(expires).unwrap_or(u32::MAX).to_be_bytes());
        rand::fill(random).expect("the system's random source works");
        seed
    }

    /// The token of a login and a seed.
    pub fn token(&self, login: &Credentials, seed: &Seed) -> Secret {
        let tag = hmac_tag(&self.body_key, &[seed, &login_bytes(login)]);
        let body = Zeroizing::new([&seed[..EXPIRY_BYTES], &tag[..BODY_BYTES - EXPIRY_BYTES]].concat());
        let check = hmac_tag(&self.checksum_keys[0], &[&body]);
        let digits = |bytes| Zeroizing::new(hex::encode(bytes));
        Secret::new([TOKEN_PREFIX, &*digits(&body), &*digits(&check[..CHECKSUM_BYTES])].concat())
    }

    /// Recognises a token; `None` if no key has made it. Does not check whether the token is still valid.
    pub fn recognize(&self, token: &[u8]) -> Option<AuthenticToken> {
        let (body, check) = parse_token(token)?;
        let fits = |key: &Key| hmac_tag(key, &[&body])[..CHECKSUM_BYTES].ct_eq(&check);
        // SECURITY: tries all keys, so that the duration does not reveal which one matched.
        let numbered = self.checksum_keys.iter().zip(0..);
        let maker = numbered.fold(None, |maker, (key, number)| if fits(key).into() { Some(number) } else { maker });
        let expires = u64::from(u32::from_be_bytes(*body.first_chunk().expect("a body has 20 bytes")));
        maker.map(|key| AuthenticToken { key, expires })
    }
}

/// The tokens of one login. A token takes several keyed hashes, so the last one is kept.
pub struct LoginTokens<'a> {
    mint: &'a TokenMint,
    login: &'a Credentials,
    last: RefCell<Option<(Seed, Secret, TokenId)>>,
}

impl LoginTokens<'_> {
    /// For this login.
    pub fn new<'a>(mint: &'a TokenMint, login: &'a Credentials) -> LoginTokens<'a> {
        LoginTokens { mint, login, last: RefCell::new(None) }
    }

    /// The id of the token of a seed.
    pub fn id(&self, seed: &Seed) -> TokenId {
        let mut last = self.last.borrow_mut();
        if let Some((made_of, _, id)) = &*last
            && made_of == seed
        {
            return *id;
        }
        let token = self.mint.token(self.login, seed);
        let id = TokenId::from_token(token.expose().as_bytes());
        *last = Some((*seed, token, id));
        id
    }

    /// The token of a seed, after its id.
    pub fn into_token(self, seed: &Seed) -> (TokenId, Secret) {
        let id = self.id(seed);
        let (_, token, _) = self.last.into_inner().expect("it was made for its id");
        (id, token)
    }
}

/// A user name contains no NUL, so the encoding is unambiguous.
pub(super) fn login_bytes(login: &Credentials) -> Zeroizing<Vec<u8>> {
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
    use crate::config::StoreKey;

    const KEY: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
    const OTHER: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";
    const EXPIRES: u64 = 1_700_000_000;

    fn mint(keys: &[&str]) -> TokenMint {
        let keys: Vec<_> = keys.iter().map(|key| StoreKey::parse(key).expect("32 bytes")).collect();
        TokenMint::new(&KeyRing::new(&keys))
    }

    fn login(user: &str, password: &str) -> Credentials {
        let user = UserName::parse(user.as_bytes()).expect("valid");
        Credentials { user, password: Secret::new(password.into()) }
    }

    #[test]
    fn a_token_is_tk_and_56_hex_digits() {
        let mint = mint(&[KEY]);
        let token = mint.token(&login("alice", "secret"), &mint.new_seed(EXPIRES));
        assert_eq!(token.expose().len(), TOKEN_LENGTH);
        assert!(token.expose()[3..].bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        let recognized = mint.recognize(token.expose().as_bytes());
        assert_eq!(recognized, Some(AuthenticToken { key: 0, expires: EXPIRES }));
    }

    #[test]
    fn a_token_depends_on_seed_user_and_password() {
        let mint = mint(&[KEY]);
        let seed = mint.new_seed(EXPIRES);
        let token = |user, password, seed: &Seed| mint.token(&login(user, password), seed).expose().to_owned();
        let first = token("alice", "secret", &seed);
        assert_eq!(first, token("alice", "secret", &seed));
        assert_ne!(first, token("alice", "secret", &mint.new_seed(EXPIRES)));
        assert_ne!(first, token("alice", "other", &seed));
        assert_ne!(first, token("bob", "secret", &seed));
        let id = |user, password, binding, groups: &[&str]| {
            let groups = Groups::new(groups.iter().map(|name| Box::from(*name)).collect()).expect("few");
            mint.login_id(&login(user, password), &TokenBinding([binding; 8]), Some(&groups))
        };
        assert_ne!(id("a", "bc", 1, &[]), id("ab", "c", 1, &[]));
        assert_ne!(id("a", "bc", 1, &[]), id("a", "bc", 2, &[]));
        assert_ne!(id("a", "bc", 1, &["d"]), id("a", "bc", 1, &[]));
        assert_ne!(id("a", "bc", 1, &["d", "e"]), id("a", "bc", 1, &["de"]));
        assert_eq!(id("a", "bc", 1, &["d", "e"]), id("a", "bc", 1, &["d", "e"]));
    }

    #[test]
    fn the_kept_token_is_returned_for_its_own_seed_only() {
        let (mint, login) = (mint(&[KEY]), login("alice", "secret"));
        let (one, other) = (mint.new_seed(EXPIRES), mint.new_seed(EXPIRES));
        let id = |seed| TokenId::from_token(mint.token(&login, seed).expose().as_bytes());
        for (asked, wanted) in [([&one, &one], &one), ([&one, &other], &other), ([&other, &one], &other)] {
            let tokens = LoginTokens::new(&mint, &login);
            assert_eq!(asked.map(|seed| tokens.id(seed)), asked.map(id));
            let (of_token, token) = tokens.into_token(wanted);
            assert_eq!((token.expose(), of_token), (mint.token(&login, wanted).expose(), id(wanted)));
        }
    }

    #[test]
    fn only_tokens_of_known_keys_are_recognised() {
        let (old, new) = (mint(&[KEY]), mint(&[OTHER, KEY]));
        let token = old.token(&login("alice", "secret"), &old.new_seed(EXPIRES));
        let key = |mint: &TokenMint, token: &[u8]| mint.recognize(token).map(|token| token.key);
        assert_eq!(key(&new, token.expose().as_bytes()), Some(1), "a rotated key");
        assert_eq!(key(&mint(&[OTHER]), token.expose().as_bytes()), None);

        let mut changed = token.expose().to_owned().into_bytes();
        for i in 0..changed.len() {
            let right = changed[i];
            changed[i] = if right == b'0' { b'1' } else { b'0' };
            if changed[i] != right {
                assert_eq!(key(&old, &changed), None, "character {i}");
            }
            changed[i] = right;
        }
        for foreign in ["", "tk_", "tk_ab12", &token.expose().to_uppercase(), &format!("{}0", token.expose())] {
            assert_eq!(key(&old, foreign.as_bytes()), None, "{foreign}");
        }
    }
}
