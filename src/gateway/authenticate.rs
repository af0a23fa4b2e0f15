//! From a screened request to a proven identity.

use std::net::IpAddr;

use crate::auth::guesses::TooMany;
use crate::auth::{Auth, Identity, KeyError};
use crate::fields::Name;
use crate::gateway::rejection::Rejection;
use crate::gateway::rewrite::Rewriter;
use crate::gateway::screen::Screened;
use crate::upstream::Upstream;

/// Whose request this is.
pub async fn authenticate(
    auth: &Auth,
    upstream: &Upstream,
    rewriter: &Rewriter,
    screened: &Screened,
    client: IpAddr,
) -> Result<Identity, Rejection> {
    let identity =
        auth.identify(screened.api_key(), client, upstream).await.map_err(|error| match error {
            KeyError::Ended => Rejection::TokenExpired,
            KeyError::Unknown => Rejection::ApiKeyUnknown,
            KeyError::StoreUnavailable => Rejection::TokenStoreUnavailable,
            KeyError::Unverifiable => Rejection::ApiKeyUnverifiable,
            KeyError::Busy => Rejection::ApiKeyCheckBusy,
            KeyError::TooMany(TooMany(wait)) => Rejection::TooManyFailures(wait),
        })?;
    // SECURITY: refused, not dropped: dropping the field in silence would run the query as somebody else than the
    // client asked for.
    if screened.fields().contains(Name::XApiImpersonateUser) && !rewriter.client_may_impersonate(&identity) {
        return Err(Rejection::ImpersonationDenied);
    }
    Ok(identity)
}
