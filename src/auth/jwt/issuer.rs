//! One JWT issuer: its keys, allowed algorithms and required claims. Verifies tokens; does not cache the results.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode};

use crate::auth::jwt::claims::{ClaimRules, Claims, VerifiedClaims};
use crate::auth::jwt::encryption::DecryptionKey;
use crate::auth::jwt::issuer_keys::{IssuerKeys, NewerKeys};
use crate::auth::jwt::key_set::KeySet;
use crate::auth::jwt::{Jwt, JwtError, credential_id};
use crate::base::clock::Clock;
use crate::config::JwtOptions;
use crate::config::jwt::IssuerOptions;
use crate::store::TokenId;

/// An identity provider whose tokens are accepted.
pub struct Issuer {
    /// The keys that verify its tokens.
    pub keys: IssuerKeys,
    /// Decrypts its encrypted tokens.
    pub decryption_key: Option<DecryptionKey>,
    algorithms: Vec<Algorithm>,
    /// Accepted values of the header `typ`, in lower case; `None`: any.
    types: Option<Vec<String>>,
    rules: ClaimRules,
}

/// A token with verified signature and claims.
pub struct VerifiedJwt {
    /// What the token proves.
    pub claims: VerifiedClaims,
    /// The [`credential_id`] of the signed token, also of one that was encrypted.
    pub id: TokenId,
    /// The generation of the key set that verified it.
    pub generation: u64,
}

impl Issuer {
    /// Reads the key files of the issuer with this index. Key sets with a URL are fetched later, by
    /// [`IssuerKeys::refresh_forever`].
    pub fn new(options: &JwtOptions, index: usize, clock: &Clock) -> Result<Issuer, String> {
        let issuer = &options.issuers[index];
        Ok(Issuer {
            keys: IssuerKeys::new(issuer, options, clock)?,
            decryption_key: issuer.decryption_key_file.as_deref().map(DecryptionKey::read).transpose()?,
            algorithms: issuer.algorithms.clone(),
            types: issuer.types.as_ref().map(|types| types.iter().map(|typ| media_type(typ)).collect()),
            rules: ClaimRules::new(issuer, index, options.leeway.as_secs()),
        })
    }

    /// Its options.
    pub fn options(&self) -> &IssuerOptions {
        self.rules.options()
    }

    /// Checks the headers that the client sent beside a verified token.
    pub fn check_headers(&self, jwt: &Jwt, verified: &VerifiedJwt) -> Result<(), JwtError> {
        self.rules.check_headers(jwt, &verified.claims)
    }

    /// Verifies the signature, then the claims. `now` is in seconds of Unix time.
    pub async fn verify(&self, token: &[u8], header: &Header, now: u64) -> Result<VerifiedJwt, JwtError> {
        // SECURITY: the operator chooses the algorithms, not the token.
        if !self.algorithms.contains(&header.alg) {
            return Err(JwtError::Invalid("its algorithm is not allowed"));
        }
        // RFC 7515 section 4.1.11: these extensions must be supported, and none is.
        if header.crit.is_some() {
            return Err(JwtError::Invalid("it has critical extensions"));
        }
        let set = self.keys_matching(header).await?;
        let key = set.find(header).ok_or(JwtError::Invalid("its issuer has no matching key"))?;
        let claims = verify_signature(token, key, header.alg)?;
        // SECURITY: tokens of the same issuer for other purposes differ in their type only (RFC 8725 section 3.11).
        let has_type = |types: &Vec<String>| header.typ.as_deref().is_some_and(|typ| types.contains(&media_type(typ)));
        if !self.types.as_ref().is_none_or(has_type) {
            return Err(JwtError::Unacceptable("its type (`typ`) is not accepted"));
        }
        let claims = self.rules.validate(&claims, now)?;
        Ok(VerifiedJwt { claims, id: credential_id(token), generation: set.generation })
    }

    /// The current keys or, if none of them matches the token's header, newer ones.
    ///
    /// SECURITY: a token with an unknown key ID is not rejected while its issuer may have newer keys: it may be valid,
    /// and a rejection would count as a failure of its client.
    async fn keys_matching(&self, header: &Header) -> Result<Arc<KeySet>, JwtError> {
        let current = self.keys.current();
        if let Some(set) = current.as_ref().filter(|set| set.find(header).is_some()) {
            return Ok(Arc::clone(set));
        }
        match (self.keys.newer_than(current.as_ref().map(|set| set.generation)).await, current) {
            (NewerKeys::Found(newer), _) => Ok(newer),
            (_, None) => Err(JwtError::KeysUnavailable),
            (NewerKeys::None, Some(current)) => Ok(current),
            (NewerKeys::NotFetched(wait), Some(_)) => Err(JwtError::UnknownKey(wait)),
        }
    }
}

/// The claims, if the signature is valid. They are validated by [`ClaimRules`], with the gateway's own clock.
fn verify_signature(token: &[u8], key: &DecodingKey, algorithm: Algorithm) -> Result<Claims, JwtError> {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    let decoded = decode::<Claims>(token, key, &validation);
    decoded.map(|decoded| decoded.claims).map_err(|_| JwtError::Invalid("its signature is invalid"))
}

/// A type in lower case and without `application/`, which may be omitted (RFC 7515 section 4.1.9).
fn media_type(typ: &str) -> String {
    let typ = typ.to_ascii_lowercase();
    typ.strip_prefix("application/").map(str::to_owned).unwrap_or(typ)
}
