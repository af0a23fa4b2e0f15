//! JSON Web Tokens of identity providers (RFC 7519): whose they are, if they can be believed.
//!
//! A token that was verified is remembered until it ends, or until its issuer's keys change: a signature costs more than
//! everything else that is done about a request.

mod claims;
mod issuer;
mod issuer_keys;
mod key_set;

use std::convert::Infallible as Never;
use std::future::poll_fn;
use std::task::Poll;

use dashmap::DashMap;
use jsonwebtoken::decode_header;

use crate::base::byte_class::ByteClass;
use crate::base::clock::Clock;
use crate::base::user_name::UserName;
use crate::config::{JwtOptions, Problem};
use crate::observability::auth_timing::AuthTiming;
use crate::observability::metrics::AuthOutcome;
use crate::observability::phase::Phase;
use crate::store::TokenId;

use issuer::Issuer;

/// Most tokens that are remembered; beyond it each is verified each time.
const MAX_CACHED: usize = 100_000;

/// A token as a client sent it: three words of base64 with dots between them, and the tenant that it named.
#[derive(Clone)]
pub struct Jwt {
    token: Box<[u8]>,
    tenant: Option<Box<str>>,
}

/// Why a token proves nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Nobody whom we know has made it.
    #[error("{0}")]
    Invalid(&'static str),
    /// It was good.
    #[error("it has expired")]
    Expired,
    /// It is genuine, and not meant for us, or of no use.
    #[error("{0}")]
    Unacceptable(&'static str),
    /// The issuer's keys are not there.
    #[error("the keys of its issuer cannot be had")]
    KeysUnavailable,
}

impl Jwt {
    /// Checks the values of the fields.
    pub fn parse(token: &[u8], tenant: Option<&[u8]>) -> Option<Jwt> {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        let three = token.iter().filter(|byte| **byte == b'.').count() == 2;
        let tenant = match tenant {
            None => None,
            Some(tenant) => Some(parse_tenant(tenant)?.into()),
        };
        (three && token.iter().all(plain)).then(|| Jwt { token: token.into(), tenant })
    }

    /// The token, for the field of another request.
    pub fn expose(&self) -> &[u8] {
        &self.token
    }

    /// The tenant that the client named.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// The name under which it is remembered.
    pub fn id(&self) -> TokenId {
        TokenId::from_token(&self.token)
    }
}

fn outcome(verified: &Result<UserName, JwtError>) -> AuthOutcome {
    match verified {
        Ok(_) => AuthOutcome::Ok,
        Err(JwtError::KeysUnavailable) => AuthOutcome::Unavailable,
        Err(_) => AuthOutcome::Refused,
    }
}

/// The name of a tenant: 1 to 256 printable ASCII characters, no space and no comma.
fn parse_tenant(value: &[u8]) -> Option<&str> {
    let valid = (1..=256).contains(&value.len()) && ByteClass::API_KEY.contains_all(value);
    std::str::from_utf8(value).ok().filter(|_| valid)
}

/// All issuers, and what was verified of them.
pub struct JwtVerifier {
    issuers: Vec<Issuer>,
    cache: DashMap<TokenId, CachedJwt>,
    clock: Clock,
}

struct CachedJwt {
    user: UserName,
    issuer: usize,
    /// Of the issuer's keys, when the signature was verified with one of them.
    generation: u64,
    /// Seconds of Unix time.
    expires_at: u64,
}

impl JwtVerifier {
    /// Reads the files that the issuers name; keys that come from elsewhere are fetched by [`JwtVerifier::keep`].
    pub fn new(options: &JwtOptions, clock: &Clock) -> Result<JwtVerifier, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut issuers = Vec::with_capacity(options.issuers.len());
        for (index, issuer) in options.issuers.iter().enumerate() {
            match Issuer::new(issuer, options, clock) {
                Ok(issuer) => issuers.push(issuer),
                Err(message) => problems.push(Problem::new(format!("auth.jwt_issuers[{index}]"), message)),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(JwtVerifier { issuers, cache: DashMap::new(), clock: clock.clone() })
    }

    /// Whose token this is.
    pub async fn verify(&self, jwt: &Jwt, id: TokenId, steps: &AuthTiming) -> Result<UserName, JwtError> {
        let now = self.clock.unix_seconds();
        if let Some(known) = self.cache.get(&id) {
            let issuer = &self.issuers[known.issuer];
            if now < known.expires_at && issuer.generation() == Some(known.generation) {
                issuer.check_tenant(jwt.tenant())?;
                return Ok(known.user.clone());
            }
        }
        // In the heap, as a token is judged once and then known.
        Box::pin(steps.measure(Phase::Jwt, self.verify_uncached(jwt, id, now), outcome)).await
    }

    async fn verify_uncached(&self, jwt: &Jwt, id: TokenId, now: u64) -> Result<UserName, JwtError> {
        let token = jwt.expose();
        let header = decode_header(token)
            .map_err(|_| JwtError::Invalid("its header is not in order, or names an unknown algorithm"))?;
        // Only to find whose keys are to be tried; nothing of this is believed.
        let claimed = claims::claimed_issuer(token).ok_or(JwtError::Invalid("it names no issuer"))?;
        let found = self.issuers.iter().enumerate().find(|(_, issuer)| issuer.name() == claimed);
        let (index, issuer) = found.ok_or(JwtError::Invalid("its issuer is not known here"))?;
        let verified = issuer.verify(token, &header, now).await?;
        issuer.check_tenant(jwt.tenant())?;
        if self.cache.len() < MAX_CACHED {
            let issuer::VerifiedJwt { user, generation, expires_at: until } = &verified;
            let user = user.clone();
            self.cache
                .insert(id, CachedJwt { user, issuer: index, generation: *generation, expires_at: *until });
        }
        Ok(verified.user)
    }

    /// Fetches keys, again and again. Never ends.
    pub async fn refresh_keys(&self) -> Never {
        let mut keeping: Vec<_> = self.issuers.iter().map(|issuer| Box::pin(issuer.refresh_keys())).collect();
        // All at once, in this task: there are few.
        poll_fn(|cx| {
            for one in &mut keeping {
                let _ = one.as_mut().poll(cx);
            }
            Poll::Pending
        })
        .await
    }

    /// Reads key files again if they have changed. Blocks on the file system.
    pub fn reload_key_files(&self, asked: bool) {
        self.issuers.iter().for_each(|issuer| issuer.reload_key_file(asked));
    }

    /// How many issuers' keys could not be read or fetched the last time.
    pub fn failing_issuer_count(&self) -> usize {
        self.issuers.iter().filter(|issuer| issuer.is_failing()).count()
    }

    /// Forgets what has ended. Called now and then.
    pub fn sweep(&self) {
        let now = self.clock.unix_seconds();
        self.cache.retain(|_, known| now < known.expires_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_three_words() {
        assert!(Jwt::parse(b"a-_.b.c", Some(b"acme")).is_some_and(|jwt| jwt.tenant() == Some("acme")));
        // An unsigned one has no third word; it is refused for its algorithm.
        assert!(Jwt::parse(b"a.b.", None).is_some());
        for wrong in ["", "a", "a.b", "a.b.c.d", "a.b.c,d.e.f", "a b.c.d", "a.b.c=", "a.b/c.d"] {
            assert!(Jwt::parse(wrong.as_bytes(), None).is_none(), "{wrong}");
        }
        for wrong in ["", "a b", "a,b"] {
            assert!(Jwt::parse(b"a.b.c", Some(wrong.as_bytes())).is_none(), "{wrong}");
        }
    }
}
