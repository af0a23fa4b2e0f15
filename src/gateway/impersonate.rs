//! From a proven identity to one that acts as a different user, where the client requests that and a rule allows it.

use crate::auth::impersonation::Permission;
use crate::auth::{Auth, Identity};
use crate::base::user_name::UserName;
use crate::gateway::exchange::Exchange;
use crate::gateway::rejection::Rejection;
use crate::gateway::rewrite::Rewriter;
use crate::gateway::screen::Screened;
use crate::http::headers::HeaderName;

/// The identity with which the request is sent. Without `x-api-impersonate-user` it is the given one.
///
/// SECURITY: a request that no rule allows is rejected. Dropping the header instead would run the query as a different
/// user than the client named. Each decision is written to the audit log, independent of the access log.
pub fn impersonate(
    auth: &Auth,
    rewriter: &Rewriter,
    screened: &Screened,
    identity: Identity,
    exchange: &mut Exchange,
) -> Result<Identity, Rejection> {
    // The header is not forwarded.
    if identity.is_unauthenticated() {
        return Ok(identity);
    }
    let Some(named) = screened.headers().get(HeaderName::XApiImpersonateUser) else { return Ok(identity) };
    let named_text = String::from_utf8_lossy(named).into_owned();
    let with_own_key = rewriter.is_backend_key_forwarded(&identity);
    // SECURITY: a denied user does not act through the credential of a different one either.
    let is_denied = UserName::parse(named).is_ok_and(|user| auth.store().denies(Some(&user), identity.fingerprint()));
    let permitted = auth.impersonation().permit(identity, named, with_own_key);
    let decision = match &permitted {
        _ if is_denied => "denied".to_owned(),
        Ok((_, Permission::Rule(number))) => format!("rule {number}"),
        Ok((_, Permission::BackendDecides)) => "left to the backend".to_owned(),
        Err(_) => "denied".to_owned(),
    };
    exchange.record.acts_as = Some(named_text);
    exchange.record.audit("impersonation", &decision);
    if is_denied {
        return Err(Rejection::CredentialDenied);
    }
    permitted.map(|(identity, _)| identity).map_err(|_| Rejection::ImpersonationDenied)
}
