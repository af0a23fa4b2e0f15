//! Applies `limits.rules` to an authenticated request. `admission` counts; this decides which rules a request is for.

use std::net::IpAddr;
use std::sync::Arc;

use crate::auth::Identity;
use crate::base::glob::Glob;
use crate::base::groups::Groups;
use crate::base::user_name::UserName;
use crate::config::LimitRule;
use crate::gateway::authorize::StatementSource;
use crate::gateway::exchange::Exchange;
use crate::gateway::ontology::{HeadOntology, requested_ontology};
use crate::gateway::rejection::Rejection;
use crate::gateway::screen::Screened;
use crate::http::statement::{Statement, StatementClass, StatementFormat};

/// A request whose body may name the ontology that rules depend on.
pub struct LimitCheck {
    /// Where its statement is.
    pub source: StatementSource,
    /// If it names an ontology, the request has been counted for that.
    head: HeadOntology,
    /// Whether a rule that depends on the ontology is enforced.
    is_enforced: bool,
}

/// Counts the request for every rule that matches it, and rejects it if it exceeds a limit that is enforced. `Some` if
/// rules depend on the ontology, and the body may name it: then [`limit_statement`] examines that.
pub fn limit(
    screened: &Screened,
    identity: &Identity,
    exchange: &mut Exchange,
) -> Result<Option<LimitCheck>, Rejection> {
    let (_, permit) = exchange.parts();
    if permit.rules().is_empty() {
        return Ok(None);
    }
    let by_ontology = || permit.rules().iter().filter(|limiter| limiter.rule.ontologies.is_some());
    let needs_ontology = by_ontology().next().is_some();
    let is_enforced = by_ontology().any(|limiter| limiter.rule.is_enforced);
    let ontology = match if needs_ontology { requested_ontology(screened) } else { Ok(None) } {
        Ok(ontology) => ontology,
        Err(ambiguous) if is_enforced => return Err(ambiguous),
        // It may be for either of them.
        Err(_) => return count(identity, exchange, Ontology::Any, |_| true).map(|()| None),
    };
    let source = if needs_ontology { StatementSource::of_request(screened) } else { None };
    let source = source.filter(|source| ontology.is_none() || source.format != StatementFormat::Sql);
    let is_known = ontology.is_some() || source.is_none();
    let named = Ontology::Named(ontology.as_deref());
    count(identity, exchange, named, |rule| is_known || rule.ontologies.is_none())?;
    Ok(source.map(|source| LimitCheck { source, head: HeadOntology::new(screened, ontology), is_enforced }))
}

/// Counts a request whose body is there for the rules that depend on its ontology.
pub fn limit_statement(
    check: &LimitCheck,
    statement: &Statement<'_>,
    identity: &Identity,
    exchange: &mut Exchange,
) -> Result<(), Rejection> {
    let is_ambiguous = check.head.differs_from(statement.ontology.as_deref());
    if is_ambiguous && check.is_enforced {
        return Err(Rejection::OntologyAmbiguous);
    }
    if check.head.named.is_some() {
        return Ok(());
    }
    let is_understood =
        statement.class != StatementClass::Unknown || statement.text.is_some() || statement.mcp.is_some();
    let ontology = match statement.ontology.as_deref() {
        // SECURITY: a body that cannot be read may name any of them.
        None if !is_understood => Ontology::Any,
        Some(_) if is_ambiguous => Ontology::Any,
        name => Ontology::Named(name),
    };
    count(identity, exchange, ontology, |rule| rule.ontologies.is_some())
}

fn count(
    identity: &Identity,
    exchange: &mut Exchange,
    ontology: Ontology<'_>,
    is_due: impl Fn(&LimitRule) -> bool,
) -> Result<(), Rejection> {
    let (record, permit) = exchange.parts();
    let request = LimitedRequest {
        user: identity.user().map(UserName::to_lower_case),
        groups: identity.groups(),
        address: record.context.origin.address,
        route: record.route.name(),
        ontology,
    };
    for limiter in &*Arc::clone(permit.rules()) {
        if !is_due(&limiter.rule) || !request.matches(&limiter.rule) {
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

/// What is known of the ontology of a request.
enum Ontology<'a> {
    Named(Option<&'a str>),
    Any,
}

/// What the conditions of a rule are compared with.
struct LimitedRequest<'a> {
    /// In lower case.
    user: Option<UserName>,
    groups: Option<&'a Groups>,
    address: IpAddr,
    route: &'a str,
    ontology: Ontology<'a>,
}

impl LimitedRequest<'_> {
    fn matches(&self, rule: &LimitRule) -> bool {
        self.is_caller_of(rule)
            && rule.addresses.as_ref().is_none_or(|all| all.iter().any(|network| network.contains(&self.address)))
            && rule.routes.as_ref().is_none_or(|routes| routes.iter().any(|route| route == self.route))
            && rule.ontologies.as_ref().is_none_or(|all| match self.ontology {
                Ontology::Named(name) => name.is_some_and(|name| Glob::any(all, name)),
                Ontology::Any => true,
            })
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
