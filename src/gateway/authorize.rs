//! Checks whether the rules allow an authenticated request. `auth::authorization` has the rules; this applies
//! them to a request.

use crate::auth::authorization::Action;
use crate::auth::{Auth, Identity};
use crate::gateway::exchange::Exchange;
use crate::gateway::ontology::requested_ontology;
use crate::gateway::rejection::Rejection;
use crate::gateway::screen::Screened;
use crate::observability::metrics::Metrics;

/// Rejects what no rule allows. In shadow mode it only writes and counts the decision.
pub fn authorize(
    auth: &Auth,
    screened: &Screened,
    identity: &Identity,
    exchange: &Exchange,
    metrics: &Metrics,
) -> Result<(), Rejection> {
    let Some(authorization) = auth.authorization() else { return Ok(()) };
    if identity.is_unauthenticated() {
        return Ok(());
    }
    let ontology = requested_ontology(screened)?;
    let route = exchange.record.route.name();
    let action = Action { route, method: screened.method(), ontology: ontology.as_deref() };
    if authorization.allows(identity, action) {
        return Ok(());
    }
    let decision = if authorization.is_enforced() { "denied" } else { "would be denied" };
    exchange.record.audit("authorization", decision);
    if authorization.is_enforced() {
        return Err(Rejection::NotAuthorized);
    }
    metrics.authorization_shadow_denials.inc();
    Ok(())
}
