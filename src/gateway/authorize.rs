//! Checks whether the rules allow an authenticated request. `auth::authorization` has the rules; this applies
//! them to a request, and to the statement in its body if a rule depends on it.

use http::Method;

use crate::auth::authorization::{Action, Authorization};
use crate::auth::{Auth, Identity};
use crate::base::groups::Groups;
use crate::base::truncate::truncate;
use crate::config::{AGENT_LOG_PATHS, THRIFT_PATHS};
use crate::gateway::exchange::Exchange;
use crate::gateway::ontology::{HeadOntology, requested_ontology};
use crate::gateway::rejection::Rejection;
use crate::gateway::screen::Screened;
use crate::http::headers::HeaderName;
use crate::http::media_type::essence;
use crate::http::statement::{Statement, StatementFormat};
use crate::observability::metrics::Metrics;

/// The texts of a record for `explain` are short.
const MAX_DETAIL: usize = 512;

/// How the body of a request carries a statement.
#[derive(Clone, Copy, Debug)]
pub struct StatementSource {
    /// The syntax of the body.
    pub format: StatementFormat,
    /// Whether the body is the text that the backend reads.
    is_plain: bool,
}

/// A request that cannot be decided before its body is there.
pub struct StatementCheck {
    /// Where its statement is.
    pub source: StatementSource,
    method: Method,
    head: HeadOntology,
}

/// Rejects what no rule allows. In shadow mode it only writes and counts the decision. `Some` if the decision depends on
/// the statement in the body: then [`authorize_statement`] makes it.
pub fn authorize(
    auth: &Auth,
    screened: &Screened,
    identity: &Identity,
    exchange: &Exchange,
    metrics: &Metrics,
) -> Result<Option<StatementCheck>, Rejection> {
    let Some(authorization) = auth.authorization() else { return Ok(None) };
    if identity.is_unauthenticated() {
        return Ok(None);
    }
    let ontology = match requested_ontology(screened) {
        Ok(ontology) => ontology,
        Err(ambiguous) => return deny(authorization, || ambiguous, exchange, metrics).map(|()| None),
    };
    if authorization.depends_on_statements()
        && let Some(source) = StatementSource::of_request(screened)
    {
        let (method, head) = (screened.method().clone(), HeadOntology::new(screened, ontology));
        return Ok(Some(StatementCheck { source, method, head }));
    }
    let route = exchange.record.route.name();
    let action = Action { route, method: screened.method(), ontology: ontology.as_deref(), statement: None, mcp: None };
    decide(authorization, action, identity, exchange, metrics).map(|()| None)
}

/// Decides about a request whose body is there.
pub fn authorize_statement(
    auth: &Auth,
    check: &StatementCheck,
    statement: &Statement<'_>,
    identity: &Identity,
    exchange: &Exchange,
    metrics: &Metrics,
) -> Result<(), Rejection> {
    let Some(authorization) = auth.authorization() else { return Ok(()) };
    let (in_head, in_body) = (check.head.named.as_deref(), statement.ontology.as_deref());
    if check.head.differs_from(in_body) {
        return deny(authorization, || Rejection::OntologyAmbiguous, exchange, metrics);
    }
    // The database of a session is not named again by its statements.
    let ontology = in_head.or(in_body.filter(|_| !statement.is_session_call()));
    let (route, class) = (exchange.record.route.name(), Some(statement.class));
    let action = Action { route, method: &check.method, ontology, statement: class, mcp: statement.mcp.as_ref() };
    decide(authorization, action, identity, exchange, metrics)
}

fn decide(
    authorization: &Authorization,
    action: Action<'_>,
    identity: &Identity,
    exchange: &Exchange,
    metrics: &Metrics,
) -> Result<(), Rejection> {
    if authorization.allows(identity, action) {
        return Ok(());
    }
    deny(authorization, || Rejection::NotAuthorized(groups_detail(identity.groups())), exchange, metrics)
}

fn deny(
    authorization: &Authorization,
    rejection: impl FnOnce() -> Rejection,
    exchange: &Exchange,
    metrics: &Metrics,
) -> Result<(), Rejection> {
    let decision = if authorization.is_enforced() { "denied" } else { "would be denied" };
    exchange.record.audit("authorization", decision);
    if authorization.is_enforced() {
        return Err(rejection());
    }
    metrics.authorization_shadow_denials.inc();
    Ok(())
}

/// The groups that the rules were compared with, for `explain`.
fn groups_detail(groups: Option<&Groups>) -> String {
    let Some(groups) = groups else { return "no groups are known of the caller".to_owned() };
    let mut detail = "the groups of the caller: ".to_owned();
    for (at, name) in groups.iter().enumerate() {
        // A caller may have far more groups than are kept, and be denied often.
        if detail.len() >= MAX_DETAIL {
            break;
        }
        detail += if at == 0 { "" } else { "; " };
        detail += truncate(name, MAX_DETAIL);
    }
    truncate(&detail, MAX_DETAIL).to_owned()
}

impl StatementSource {
    /// `None` if the request carries no statement.
    pub fn of_request(screened: &Screened) -> Option<StatementSource> {
        Some(StatementSource { format: statement_format(screened)?, is_plain: is_plain_text(screened) })
    }

    /// The statement in the body, which is `None` if it is larger than `limits.buffer`.
    ///
    /// SECURITY: the class of a body that was not read completely is unknown.
    pub fn read(self, body: Option<&[u8]>) -> Statement<'_> {
        self.plain_text(body).map_or(Statement::UNKNOWN, |body| Statement::read(self.format, body))
    }

    /// The body, if it is the text that the backend reads.
    pub fn plain_text(self, body: Option<&[u8]>) -> Option<&[u8]> {
        body.filter(|_| self.is_plain)
    }
}

/// SECURITY: a backend that decompresses or converts the body reads a different statement.
fn is_plain_text(screened: &Screened) -> bool {
    let headers = screened.headers();
    // What follows `charset`: also `charset*=utf-8''utf-7` (RFC 8187) names one, and another parameter may follow.
    let is_plain = |rest: &str| {
        let name = rest.strip_prefix('=').and_then(|rest| rest.split([';', ' ', '\t']).next());
        name.is_some_and(|name| ["utf-8", "utf8", "us-ascii"].contains(&name))
    };
    headers.all(HeaderName::ContentEncoding).all(|value| value.eq_ignore_ascii_case(b"identity"))
        && headers.all(HeaderName::ContentType).all(|value| {
            let value = String::from_utf8_lossy(value).to_ascii_lowercase().replace('"', "");
            value.split("charset").skip(1).all(is_plain)
        })
}

/// How the body of a request carries a statement; `None` if it carries none.
///
/// SECURITY: the path decides where a service reads statements from any body, as a route can accept every
/// `Content-Type`, or none.
pub fn statement_format(screened: &Screened) -> Option<StatementFormat> {
    let path = screened.path().trim_end_matches('/');
    let is_below = |prefixes: &[&str]| {
        prefixes.iter().filter_map(|prefix| path.strip_prefix(prefix.trim_end_matches('/'))).any(is_end_of_segment)
    };
    if is_below(&["/timbr/api/mcp/"]) {
        return Some(StatementFormat::Mcp);
    }
    if path == "/timbr/api/query" {
        return Some(StatementFormat::Json);
    }
    if path.starts_with("/timbr/openapi/ontology/") && path.ends_with("/query") {
        return Some(StatementFormat::Sql);
    }
    let media_type = screened.headers().single(HeaderName::ContentType).and_then(essence);
    let is_thrift = media_type.is_some_and(|media_type| media_type.eq_ignore_ascii_case(b"application/x-thrift"))
        || (is_below(&THRIFT_PATHS) && !is_below(&AGENT_LOG_PATHS));
    is_thrift.then_some(StatementFormat::Thrift)
}

fn is_end_of_segment(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_in_a_detail_are_those_that_fit() {
        for names in [&["a", "b"][..], &[], &["é; ".repeat(200).as_str(), "z"], &["x".repeat(30_000).as_str()]] {
            let groups = Groups::new(names.iter().map(|name| Box::from(*name)).collect()).expect("few");
            let all = format!("the groups of the caller: {groups}");
            assert_eq!(groups_detail(Some(&groups)), truncate(&all, MAX_DETAIL));
        }
        let many = Groups::new((0..1000).map(|number| format!("group {number}").into()).collect()).expect("few");
        let detail = groups_detail(Some(&many));
        assert!(detail.len() == MAX_DETAIL && detail.contains("group 0; group 1; group 10; "), "{detail}");
        assert_eq!(groups_detail(None), "no groups are known of the caller");
    }
}
