//! The logins with a password that were verified a short while ago, so that a client which sends its password with each
//! request does not cause a check for each. Knows tokens, not passwords.

use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key};
use aws_lc_rs::rand;
use dashmap::DashMap;
use http::HeaderValue;

use crate::auth::bearer::Credentials;
use crate::auth::token::login_bytes;
use crate::base::clock::{Clock, Tick};
use crate::store::{TokenId, hmac_tag};

/// Maximum number of cached logins. Beyond it, passwords are verified with each request.
const MAX_CACHED: usize = 100_000;

/// A keyed hash of a user name and a password. The key is random and of this process.
pub type LoginKey = [u8; 32];

/// Verified logins and their tokens.
pub struct PasswordLogins {
    logins: DashMap<LoginKey, VerifiedPassword>,
    key: Key,
    ttl: Duration,
    clock: Clock,
}

struct VerifiedPassword {
    id: TokenId,
    token: HeaderValue,
    until: Tick,
}

impl PasswordLogins {
    /// Without logins. A login is verified again after `ttl`.
    pub fn new(ttl: Duration, clock: Clock) -> PasswordLogins {
        let mut key = [0; 32];
        rand::fill(&mut key).expect("the system's random source works");
        PasswordLogins { logins: DashMap::new(), key: Key::new(HMAC_SHA256, &key), ttl, clock }
    }

    /// The key of a login.
    pub fn key(&self, login: &Credentials) -> LoginKey {
        *hmac_tag(&self.key, &[&login_bytes(login)])
    }

    /// The token of a verified login, unless that was too long ago.
    ///
    /// SECURITY: the caller must check that the token is still valid: it ends when the user is removed or has a new
    /// password.
    pub fn find(&self, key: &LoginKey) -> Option<(TokenId, HeaderValue)> {
        let login = self.logins.get(key).filter(|login| self.clock.now() < login.until)?;
        Some((login.id, login.token.clone()))
    }

    /// Stores a login whose password was verified.
    pub fn insert(&self, key: LoginKey, id: TokenId, token: HeaderValue) {
        if self.logins.len() < MAX_CACHED || self.logins.contains_key(&key) {
            self.logins.insert(key, VerifiedPassword { id, token, until: self.clock.now().after(self.ttl) });
        }
    }

    /// Removes old logins. Called periodically.
    pub fn sweep(&self) {
        let now = self.clock.now();
        self.logins.retain(|_, login| now < login.until);
    }
}
