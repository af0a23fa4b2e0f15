//! Checks whether the rules allow an authenticated request. `auth::authorization` has the rules; this applies
//! them to a request.

use std::borrow::Cow;

use crate::auth::authorization::Action;
use crate::auth::{Auth, Identity};
use crate::base::percent;
use crate::gateway::exchange::Exchange;
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
    let ontology = ontology_in_path(screened.path());
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

/// The ontology that a path of the API names. `route` has already rejected ambiguous paths.
pub(super) fn ontology_in_path(path: &str) -> Option<Cow<'_, str>> {
    let mut segments = path.strip_prefix("/timbr/")?.split('/');
    let segment = match (segments.next()?, segments.next()?) {
        ("openapi", "ontology") | ("api", "q" | "get_ontology" | "get_config" | "clear_cache") => segments.next()?,
        _ => return None,
    };
    percent::decode(segment).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_ontologies() {
        for (path, expected) in [
            ("/timbr/openapi/ontology/sales/query", Some("sales")),
            ("/timbr/api/q/sales/concept/customer", Some("sales")),
            ("/timbr/api/get_ontology/my%20sales", Some("my sales")),
            ("/timbr/api/get_config/s%C3%A9", Some("sé")),
            ("/timbr/api/clear_cache/sales/", Some("sales")),
            ("/timbr/api/clear_cache/%ff", None),
            ("/timbr/api/clear_cache/", None),
            ("/timbr/api/query/", None),
            ("/timbr/api/get_ontologies/", None),
            ("/timbr/openapi/get-async-results/x", None),
            ("/other/openapi/ontology/sales", None),
        ] {
            assert_eq!(ontology_in_path(path).as_deref(), expected, "{path}");
        }
    }
}
