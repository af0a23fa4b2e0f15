//! One JWT issuer: its keys, allowed algorithms and required claims. Verifies tokens; does not cache the results.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode};

use crate::auth::jwt::JwtError;
use crate::auth::jwt::claims::{ClaimRules, Claims};
use crate::auth::jwt::issuer_keys::{IssuerKeys, NewerKeys};
use crate::auth::jwt::key_set::KeySet;
use crate::base::clock::Clock;
use crate::base::user_name::UserName;
use crate::config::JwtOptions;
use crate::config::jwt::IssuerOptions;

/// An identity provider whose tokens are accepted.
pub struct Issuer {
    /// The keys that verify its tokens.
    pub keys: IssuerKeys,
    algorithms: Vec<Algorithm>,
    rules: ClaimRules,
    tenants: Option<Vec<String>>,
}

/// A token with verified signature and claims.
#[derive(Clone)]
pub struct VerifiedJwt {
    /// The user.
    pub user: UserName,
    /// The generation of the key set that verified it.
    pub generation: u64,
    /// In seconds of Unix time, leeway included.
    pub expires_at: u64,
}

impl Issuer {
    /// Reads key files. Key sets with a URL are fetched later, by [`IssuerKeys::refresh_forever`].
    pub fn new(issuer: &IssuerOptions, options: &JwtOptions, clock: &Clock) -> Result<Issuer, String> {
        Ok(Issuer {
            keys: IssuerKeys::new(&issuer.keys, options, clock)?,
            algorithms: issuer.algorithms.clone(),
            rules: ClaimRules {
                issuer: issuer.issuer.clone(),
                audiences: issuer.audiences.clone(),
                user_claim: issuer.user_claim.clone(),
                leeway: options.leeway.as_secs(),
            },
            tenants: issuer.tenants.clone(),
        })
    }

    /// The `iss` claim of its tokens.
    pub fn name(&self) -> &str {
        &self.rules.issuer
    }

    /// Checks the tenant that the client sent.
    ///
    /// SECURITY: the tenant is a separate header, which the token does not authenticate.
    pub fn check_tenant(&self, tenant: Option<&str>) -> Result<(), JwtError> {
        match &self.tenants {
            Some(tenants) if !tenant.is_some_and(|tenant| tenants.iter().any(|other| other == tenant)) => {
                Err(JwtError::Unacceptable("`x-jwt-tenant-id` is not a tenant of its issuer"))
            }
            _ => Ok(()),
        }
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
        let (user, expires_at) = self.rules.validate(&claims, now)?;
        Ok(VerifiedJwt { user, generation: set.generation, expires_at })
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
