//! From a screened request to a proven identity. `auth` decides; this maps its errors to rejections.

use crate::auth::failure_limiter::TooManyFailures;
use crate::auth::jwt::JwtError;
use crate::auth::{Auth, Identity, KeyError};
use crate::gateway::exchange::Exchange;
use crate::gateway::rejection::Rejection;
use crate::gateway::screen::Screened;
use crate::upstream::UpstreamClient;

/// Proves the identity of the request's credential.
pub async fn authenticate(
    auth: &Auth,
    upstream: &UpstreamClient,
    screened: &Screened,
    exchange: &Exchange,
) -> Result<Identity, Rejection> {
    let (client, timing) = (exchange.context().origin.address, &exchange.record.timing);
    auth.identify(screened.credential(), client, upstream, timing).await.map_err(|error| match error {
        KeyError::TokenExpired => Rejection::TokenExpired,
        KeyError::Unknown => Rejection::ApiKeyUnknown,
        KeyError::StoreUnavailable => Rejection::TokenStoreUnavailable,
        KeyError::Unverifiable => Rejection::ApiKeyUnverifiable,
        KeyError::Busy => Rejection::ApiKeyCheckBusy,
        KeyError::Jwt(JwtError::Invalid(cause)) => Rejection::JwtInvalid(cause),
        KeyError::Jwt(JwtError::Expired) => Rejection::JwtExpired,
        KeyError::Jwt(JwtError::Unacceptable(cause)) => Rejection::JwtUnacceptable(cause),
        KeyError::Jwt(JwtError::UnknownKey(wait)) => Rejection::JwtKeyUnknown(wait),
        KeyError::Jwt(JwtError::KeysUnavailable) => Rejection::JwtKeysUnavailable,
        KeyError::TooManyFailures(TooManyFailures(wait)) => Rejection::TooManyFailures(wait),
    })
}
