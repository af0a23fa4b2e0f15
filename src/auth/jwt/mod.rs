//! Verifies JSON Web Tokens of identity providers (RFC 7519). Knows no other kind of credential.
//!
//! A verified token is cached until it expires or its issuer's keys change: verifying a signature costs more than the
//! rest of a request.

mod claims;
mod encryption;
mod issuer;
mod issuer_keys;
mod key_set;

use std::convert::Infallible as Never;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use dashmap::DashMap;
use jsonwebtoken::decode_header;
use zeroize::Zeroizing;

use crate::auth::FileReload;
use crate::base::byte_class::ByteClass;
use crate::base::clock::Clock;
use crate::base::groups::Groups;
use crate::base::user_name::UserName;
use crate::config::jwt::IssuerOptions;
use crate::config::{JwtOptions, Problem, UnknownIssuers};
use crate::http::headers::{HeaderName, Headers};
use crate::observability::auth_timing::AuthTiming;
use crate::observability::metrics::AuthOutcome;
use crate::observability::phase::Phase;
use crate::store::TokenId;

use issuer::{Issuer, VerifiedJwt};
use issuer_keys::IssuerKeys;

/// Maximum number of cached tokens. Beyond it, tokens are verified with each request.
const MAX_CACHED: usize = 100_000;

/// The headers that clients send beside a token. Their values are judged by the issuer's rules and, like the token,
/// forwarded.
const TOKEN_HEADERS: [HeaderName; 4] =
    [HeaderName::XJwtTenantId, HeaderName::XJwtIssuer, HeaderName::XJwtClientId, HeaderName::XJwtNonce];

/// The parts of a signed token (RFC 7515) and of an encrypted one (RFC 7516), separated by dots.
const SIGNED_PARTS: usize = 3;
const ENCRYPTED_PARTS: usize = 5;

/// Fetches the keys of the issuers that have a URL, and says for each issuer whether they can be used.
pub async fn check_issuer_keys(options: &JwtOptions) -> Vec<(&str, Result<(), String>)> {
    let mut results = Vec::new();
    for issuer in &options.issuers {
        results.extend(IssuerKeys::check(issuer, options).await.map(|result| (issuer.issuer.as_str(), result)));
    }
    results
}

fn part_count(token: &[u8]) -> usize {
    token.split(|byte| *byte == b'.').count()
}

/// Identifies a credential in logs, limits and denials: the hash of a key, of an encrypted token, or of what a signature
/// covers.
///
/// SECURITY: not of the signature, which can be written in several ways: ECDSA verifies (r, n - s) where it verifies
/// (r, s). A client could send a denied token again in a different text.
pub fn credential_id(credential: &[u8]) -> TokenId {
    let signature = credential.iter().rposition(|byte| *byte == b'.');
    let is_signed = part_count(credential) == SIGNED_PARTS && decode_header(credential).is_ok();
    TokenId::from_token(&credential[..signature.filter(|_| is_signed).unwrap_or(credential.len())])
}

/// A token as sent by a client, three or five base64 parts separated by dots, with the headers that describe it.
#[derive(Clone)]
pub struct Jwt {
    token: Box<[u8]>,
    headers: Box<[(HeaderName, Box<str>)]>,
}

/// The caller that a token proves.
#[derive(Clone, Debug)]
pub struct JwtCaller {
    /// The user.
    pub user: UserName,
    /// The groups or roles; `None` if the issuer has no claim for them.
    pub groups: Option<Groups>,
    /// When the token expires, in seconds of Unix time, leeway included.
    pub expires_at: u64,
    /// The index of the issuer.
    pub issuer: usize,
}

/// The caller of a verified token, and the token's [`credential_id`].
pub type JwtIdentity = (JwtCaller, TokenId);

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// No configured issuer has this name or, for an encrypted token, a key.
    #[error("its issuer is unknown")]
    UnknownIssuer,
    /// Not signed by a known issuer.
    #[error("{0}")]
    Invalid(&'static str),
    /// Expired, leeway included.
    #[error("it has expired")]
    Expired,
    /// Signed by a known issuer, but its claims are not accepted.
    #[error("{0}")]
    Unacceptable(&'static str),
    /// No current key of its issuer has its key ID, and newer keys cannot be fetched before this time has passed.
    #[error("its issuer has no matching key yet")]
    UnknownKey(Duration),
    /// The issuer's keys could not be fetched.
    #[error("the keys of its issuer are unavailable")]
    KeysUnavailable,
}

impl Jwt {
    /// Parses the token and the headers beside it; `None` if one is malformed.
    pub fn parse(token: &[u8], headers: &Headers) -> Option<Jwt> {
        let is_valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        let has_form = matches!(part_count(token), SIGNED_PARTS | ENCRYPTED_PARTS);
        let of_token = TOKEN_HEADERS.iter().filter_map(|name| Some((*name, headers.get(*name)?)));
        let of_token = of_token.map(|(name, value)| Some((name, parse_token_header(value)?.into())));
        let headers = of_token.collect::<Option<_>>()?;
        (has_form && token.iter().all(is_valid)).then(|| Jwt { token: token.into(), headers })
    }

    /// The header value, to send in a request.
    pub fn expose(&self) -> &[u8] {
        &self.token
    }

    /// Whether the token is encrypted.
    pub fn is_encrypted(&self) -> bool {
        part_count(&self.token) == ENCRYPTED_PARTS
    }

    /// The headers beside the token, to send in a request.
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, &str)> {
        self.headers.iter().map(|(name, value)| (*name, &**value))
    }

    /// One of the headers beside the token.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// The hash of the token with its signature: the key of the cache.
    pub fn id(&self) -> TokenId {
        TokenId::from_token(&self.token)
    }

    /// The hash of the token and the headers beside it.
    pub fn id_with_headers(&self) -> TokenId {
        let mut text = self.token.to_vec();
        // Neither a token nor the value of a header contains a comma.
        self.headers()
            .for_each(|(name, value)| text.extend_from_slice(format!(",{},{value}", name.as_str()).as_bytes()));
        TokenId::from_token(&text)
    }
}

fn outcome(verified: &Result<JwtIdentity, JwtError>) -> AuthOutcome {
    match verified {
        Ok(_) => AuthOutcome::Ok,
        Err(JwtError::KeysUnavailable | JwtError::UnknownKey(_)) => AuthOutcome::Unavailable,
        Err(_) => AuthOutcome::Refused,
    }
}

/// 1 to 256 printable ASCII characters without space and comma.
fn parse_token_header(value: &[u8]) -> Option<&str> {
    let is_valid = (1..=256).contains(&value.len()) && ByteClass::API_KEY.contains_all(value);
    std::str::from_utf8(value).ok().filter(|_| is_valid)
}

/// All issuers, with a cache of verified tokens.
pub struct JwtVerifier {
    issuers: Vec<Issuer>,
    forwards_unknown_issuers: bool,
    cache: DashMap<TokenId, VerifiedJwt>,
    clock: Clock,
}

impl JwtVerifier {
    /// Reads the issuers' key files. Keys with a URL are fetched by [`JwtVerifier::refresh_keys`].
    pub fn new(options: &JwtOptions, clock: &Clock) -> Result<JwtVerifier, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut issuers = Vec::with_capacity(options.issuers.len());
        for index in 0..options.issuers.len() {
            match Issuer::new(options, index, clock) {
                Ok(issuer) => issuers.push(issuer),
                Err(message) => problems.push(Problem::new(format!("auth.jwt_issuers[{index}]"), message)),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let forwards_unknown_issuers = options.unknown_issuers == UnknownIssuers::Forward;
        Ok(JwtVerifier { issuers, forwards_unknown_issuers, cache: DashMap::new(), clock: clock.clone() })
    }

    /// Verifies a token and returns its caller and its [`credential_id`]. `id` is [`Jwt::id`].
    pub async fn verify(&self, jwt: &Jwt, id: TokenId, timing: &AuthTiming) -> Result<JwtIdentity, JwtError> {
        let now = self.clock.unix_seconds();
        if let Some(verified) = self.cache.get(&id) {
            let caller = &verified.claims.caller;
            let issuer = &self.issuers[caller.issuer];
            if now < caller.expires_at && issuer.keys.generation() == Some(verified.generation) {
                issuer.check_headers(jwt, &verified)?;
                return Ok((caller.clone(), verified.id));
            }
        }
        // Boxed, because a token is verified once and then cached.
        Box::pin(timing.measure(Phase::Jwt, self.verify_uncached(jwt, id, now), outcome)).await
    }

    async fn verify_uncached(&self, jwt: &Jwt, id: TokenId, now: u64) -> Result<JwtIdentity, JwtError> {
        let decrypted = if jwt.is_encrypted() { Some(self.decrypt(jwt.expose())?) } else { None };
        let token = decrypted.as_ref().map_or(jwt.expose(), |(_, token)| token);
        let header = decode_header(token)
            .map_err(|_| JwtError::Invalid("its header is malformed or has an unknown algorithm"))?;
        // Only selects the keys to verify with; not trusted.
        let claimed = claims::claimed_issuer(token).ok_or(JwtError::Invalid("it has no issuer (`iss`)"))?;
        let (index, issuer) = self.issuer(&claimed).ok_or(JwtError::UnknownIssuer)?;
        // Several issuers may encrypt for the same key.
        let is_own_key = || issuer.decryption_key.as_ref().is_some_and(|key| key.decrypt(jwt.expose()).is_ok());
        if decrypted.as_ref().is_some_and(|(key_of, _)| *key_of != index) && !is_own_key() {
            return Err(JwtError::Invalid("it is encrypted with the key of a different issuer"));
        }
        let verified = issuer.verify(token, &header, now).await?;
        issuer.check_headers(jwt, &verified)?;
        let identity = (verified.claims.caller.clone(), verified.id);
        if self.cache.len() < MAX_CACHED {
            self.cache.insert(id, verified);
        }
        Ok(identity)
    }

    fn issuer(&self, name: &str) -> Option<(usize, &Issuer)> {
        self.issuers.iter().enumerate().find(|(_, issuer)| issuer.options().issuer == name)
    }

    /// The [`credential_id`] that the caller with this credential has; `None` for an encrypted token that is not accepted.
    pub fn credential_id(&self, credential: &[u8]) -> Option<TokenId> {
        let is_encrypted = part_count(credential) == ENCRYPTED_PARTS
            && credential.split(|byte| *byte == b'.').next().is_some_and(encryption::is_header);
        if !is_encrypted {
            return Some(credential_id(credential));
        }
        let is_known = |token: &[u8]| claims::claimed_issuer(token).is_some_and(|name| self.issuer(&name).is_some());
        match self.decrypt(credential) {
            Ok((_, token)) if is_known(&token) => Some(credential_id(&token)),
            Ok(_) | Err(JwtError::UnknownIssuer) if self.forwards_unknown_issuers => Some(credential_id(credential)),
            _ => None,
        }
    }

    /// The signed token inside an encrypted one, and the issuer whose key has decrypted it.
    fn decrypt(&self, token: &[u8]) -> Result<(usize, Zeroizing<Vec<u8>>), JwtError> {
        let keys = self.issuers.iter().enumerate();
        let mut keys = keys.filter_map(|(index, issuer)| Some((index, issuer.decryption_key.as_ref()?))).peekable();
        keys.peek().ok_or(JwtError::UnknownIssuer)?;
        let (index, token) = keys
            .find_map(|(index, key)| Some((index, key.decrypt(token).ok()?)))
            .ok_or(JwtError::Invalid("it cannot be decrypted"))?;
        // SECURITY: everyone can encrypt, so the content must be signed.
        let is_signed = part_count(&token) == SIGNED_PARTS;
        is_signed.then_some((index, token)).ok_or(JwtError::Invalid("it is encrypted, but not signed"))
    }

    /// The options of an issuer, by [`JwtCaller::issuer`].
    pub fn issuer_options(&self, index: usize) -> &IssuerOptions {
        self.issuers[index].options()
    }

    /// Whether a token was verified before. Not whether it is still valid.
    pub fn is_cached(&self, id: &TokenId) -> bool {
        self.cache.contains_key(id)
    }

    /// Whether a verified token that expires at this time, in seconds of Unix time, has expired.
    pub fn has_expired(&self, expires_at: u64) -> bool {
        self.clock.unix_seconds() >= expires_at
    }

    /// Whether tokens of unknown issuers are forwarded, for the backend to verify.
    pub fn forwards_unknown_issuers(&self) -> bool {
        self.forwards_unknown_issuers
    }

    /// Fetches keys periodically. Never returns.
    pub async fn refresh_keys(&self) -> Never {
        let keys = self.issuers.iter().map(|issuer| &issuer.keys);
        let mut refreshing: Vec<_> = keys.map(|keys| Box::pin(keys.refresh_forever())).collect();
        // All in this task: there are few issuers.
        poll_fn(|cx| {
            for refresh in &mut refreshing {
                let _ = refresh.as_mut().poll(cx);
            }
            Poll::Pending
        })
        .await
    }

    /// Reloads the key files. Blocks on the file system.
    pub fn reload_key_files(&self, reload: FileReload) {
        self.issuers.iter().for_each(|issuer| issuer.keys.reload_file(reload));
    }

    /// The number of issuers whose keys could not be read or fetched at the last attempt.
    pub fn failing_issuer_count(&self) -> usize {
        self.issuers.iter().filter(|issuer| issuer.keys.is_failing()).count()
    }

    /// Removes expired tokens from the cache. Called periodically.
    pub fn sweep(&self) {
        let now = self.clock.unix_seconds();
        self.cache.retain(|_, verified| now < verified.claims.caller.expires_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(token: &str, tenant: Option<&str>) -> Option<Jwt> {
        let mut headers = Headers::new();
        tenant.into_iter().for_each(|tenant| headers.push(HeaderName::XJwtTenantId, tenant.as_bytes()));
        Jwt::parse(token.as_bytes(), &headers)
    }

    #[test]
    fn a_token_has_three_or_five_parts() {
        let jwt = parse("a-_.b.c", Some("acme")).expect("valid");
        assert_eq!(jwt.headers().collect::<Vec<_>>(), [(HeaderName::XJwtTenantId, "acme")]);
        // An unsigned token has an empty third part; it is rejected for its algorithm.
        assert!(parse("a.b.", None).is_some_and(|jwt| !jwt.is_encrypted()));
        assert!(parse("a.b.c.d.e", None).is_some_and(|jwt| jwt.is_encrypted()));
        for wrong in ["", "a", "a.b", "a.b.c.d", "a.b.c.d.e.f", "a.b.c,d.e.f", "a b.c.d", "a.b.c=", "a.b/c.d"] {
            assert!(parse(wrong, None).is_none(), "{wrong}");
        }
        for wrong in ["", "a b", "a,b"] {
            assert!(parse("a.b.c", Some(wrong)).is_none(), "{wrong}");
        }
    }
}
