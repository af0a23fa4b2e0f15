//! Applies `limits.rules` to an authenticated request. `admission` counts; this decides which rules a request is for.

use std::net::IpAddr;
use std::sync::Arc;

use crate::auth::Identity;
use crate::base::glob::Glob;
use crate::base::groups::Groups;
use crate::base::user_name::UserName;
use crate::config::LimitRule;
use crate::gateway::exchange::Exchange;
use crate::gateway::ontology::requested_ontology;
use crate::gateway::rejection::Rejection;
use crate::gateway::screen::Screened;

/// Counts the request for every rule that matches it, and rejects it if it exceeds a limit that is enforced.
pub fn limit(screened: &Screened, identity: &Identity, exchange: &mut Exchange) -> Result<(), Rejection> {
    let (record, permit) = exchange.parts();
    if permit.rules().is_empty() {
        return Ok(());
    }
    let needs_ontology = permit.rules().iter().any(|limiter| limiter.rule.ontologies.is_some());
    let ontology = if needs_ontology { requested_ontology(screened)? } else { None };
    let request = LimitedRequest {
        user: identity.user().map(UserName::to_lower_case),
        groups: identity.groups(),
        address: record.context.origin.address,
        route: record.route.name(),
        ontology: ontology.as_deref(),
    };
    for limiter in &*Arc::clone(permit.rules()) {
        if !request.matches(&limiter.rule) {
            continue;
        }
        if let Err(exceeded) = permit.count_for_rule(limiter) {
            record.limit_rule = Some(Arc::clone(&exceeded.rule));
            if limiter.rule.is_enforced {
                return Err(Rejection::RateLimited(exceeded));
            }
        }
    }
    Ok(())
}

/// What the conditions of a rule are compared with.
struct LimitedRequest<'a> {
    /// In lower case.
    user: Option<UserName>,
    groups: Option<&'a Groups>,
    address: IpAddr,
    route: &'a str,
    ontology: Option<&'a str>,
}

impl LimitedRequest<'_> {
    fn matches(&self, rule: &LimitRule) -> bool {
        self.is_caller_of(rule)
            && rule.addresses.as_ref().is_none_or(|all| all.iter().any(|network| network.contains(&self.address)))
            && rule.routes.as_ref().is_none_or(|routes| routes.iter().any(|route| route == self.route))
            && rule.ontologies.as_ref().is_none_or(|all| self.ontology.is_some_and(|ontology| Glob::any(all, ontology)))
    }

    fn is_caller_of(&self, rule: &LimitRule) -> bool {
        let is_user = |users: &Vec<Glob>| self.user.as_ref().is_some_and(|user| Glob::any(users, user.as_str()));
        match &rule.users {
            None if rule.groups.is_empty() => true,
            users => {
                users.as_ref().is_some_and(is_user)
                    || self.groups.into_iter().flat_map(Groups::iter).any(|group| Glob::any(&rule.groups, group))
            }
        }
    }
}
