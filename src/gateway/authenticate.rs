//! From a screened request to a proven identity. `auth` decides; this maps its errors to rejections.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use crate::auth::failure_limiter::TooManyFailures;
use crate::auth::jwt::JwtError;
use crate::auth::key_exchange::ExchangeError;
use crate::auth::{Auth, ClientCredential, Identity, KeyError, MintError};
use crate::gateway::exchange::Exchange;
use crate::gateway::get_token::mint_rejection;
use crate::gateway::rejection::Rejection;
use crate::gateway::screen::Screened;
use crate::store::{Store, TokenEnd};
use crate::upstream::UpstreamClient;

/// Proves the identity of the request's credential, and records it. Only a request that has to wait for that counts as
/// one without an identity.
pub async fn authenticate(
    auth: &Auth,
    upstream: &UpstreamClient,
    screened: &Screened,
    exchange: &mut Exchange,
) -> Result<Identity, Rejection> {
    let identified = {
        let (record, permit) = exchange.parts();
        let address = record.context.origin.address;
        let mut identifying = pin!(auth.identify(screened.credential(), address, upstream, &record.timing));
        match poll_fn(|cx| Poll::Ready(identifying.as_mut().poll(cx))).await {
            Poll::Ready(identified) => identified,
            Poll::Pending => {
                permit.begin_authentication()?;
                let identified = identifying.await;
                permit.end_authentication();
                identified
            }
        }
    };
    let identity = identified.map_err(|error| {
        let mut claimed_user = match screened.credential() {
            ClientCredential::Password(basic) => Some(&basic.login().user),
            _ => None,
        };
        if let KeyError::Login(MintError::Denied(user)) = &error {
            // This one is proven.
            (exchange.record.user, claimed_user) = (Some(user.clone()), None);
        }
        let rejection = rejection_for(error, auth.store());
        if matches!(screened.credential(), ClientCredential::Password(_)) {
            exchange.record.audit_failed_login(rejection.reason(), claimed_user);
        }
        rejection
    })?;
    exchange.set_identity(&identity);
    // SECURITY: for every kind of credential, as keys and JWTs have no entry in the store that a revocation could end.
    if auth.store().denies(identity.user(), identity.fingerprint()) {
        return Err(Rejection::CredentialDenied);
    }
    // SECURITY: no request passes after a login without a line about it, if the audit log is required.
    if identity.is_new_login() {
        Box::pin(exchange.record.audit_login()).await.map_err(|_| Rejection::AuditUnavailable)?;
    }
    Ok(identity)
}

fn rejection_for(error: KeyError, store: &Store) -> Rejection {
    match error {
        KeyError::TokenEnded(TokenEnd::Expired) => Rejection::TokenExpired,
        KeyError::TokenEnded(TokenEnd::Revoked) => Rejection::TokenRevoked,
        KeyError::TokenEnded(TokenEnd::Evicted) => Rejection::TokenEvicted,
        KeyError::Unknown => Rejection::ApiKeyUnknown,
        KeyError::StoreUnavailable => Rejection::TokenStoreUnavailable,
        KeyError::Unverifiable => Rejection::ApiKeyUnverifiable,
        KeyError::Busy => Rejection::ApiKeyCheckBusy,
        KeyError::PasswordUnsupported => Rejection::BasicMalformed,
        KeyError::Login(error) => mint_rejection(error, store),
        KeyError::Exchange(error) => error.into(),
        KeyError::Jwt(JwtError::Invalid(cause)) => Rejection::JwtInvalid(cause),
        KeyError::Jwt(JwtError::UnknownIssuer) => Rejection::JwtInvalid("its issuer is unknown"),
        KeyError::Jwt(JwtError::Expired) => Rejection::JwtExpired,
        KeyError::Jwt(JwtError::Unacceptable(cause)) => Rejection::JwtUnacceptable(cause),
        KeyError::Jwt(JwtError::UnknownKey(wait)) => Rejection::JwtKeyUnknown(wait),
        KeyError::Jwt(JwtError::KeysUnavailable) => Rejection::JwtKeysUnavailable,
        KeyError::TooManyFailures(TooManyFailures(wait)) => Rejection::TooManyFailures(wait),
    }
}

impl From<ExchangeError> for Rejection {
    fn from(error: ExchangeError) -> Rejection {
        match error {
            ExchangeError::Rejected => Rejection::UserKeyRefused,
            ExchangeError::Unavailable => Rejection::UserKeyUnavailable,
        }
    }
}
