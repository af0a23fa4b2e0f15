//! Rejects requests that an operator has stopped: by user, route or ontology. The store has the list; this compares a
//! request with it.
//!
//! A stop protects the backend and replaces no rule: a request that names no ontology, or names it where the gateway does
//! not read it, is not stopped by its ontology.

use crate::auth::{Auth, Identity};
use crate::base::user_name::UserName;
use crate::gateway::authorize::{StatementSource, statement_format};
use crate::gateway::exchange::Exchange;
use crate::gateway::ontology::{ontology_in_path, ontology_in_user_name, requested_ontology};
use crate::gateway::rejection::{Rejection, StoppedRequest};
use crate::gateway::screen::Screened;
use crate::http::statement::{Statement, StatementFormat};
use crate::store::{StopKind, StopTarget, Store};

/// Rejects a request whose route, user or ontology is stopped. `Some` if the ontology may be in the body: then
/// [`reject_stopped_statement`] decides.
pub fn reject_stopped(
    auth: &Auth,
    screened: &Screened,
    identity: &Identity,
    exchange: &Exchange,
) -> Result<Option<StatementSource>, Rejection> {
    let store = auth.store();
    if !store.has_denials() {
        return Ok(None);
    }
    reject_stopped_caller(store, identity, exchange)?;
    if !store.stops_ontologies() {
        return Ok(None);
    }
    match requested_ontology(screened)? {
        Some(ontology) => reject_if_stopped(store, StopKind::Ontology, &ontology).map(|()| None),
        None => Ok(StatementSource::of_request(screened)),
    }
}

fn reject_stopped_caller(store: &Store, identity: &Identity, exchange: &Exchange) -> Result<(), Rejection> {
    reject_if_stopped(store, StopKind::Route, exchange.record.route.name())?;
    // SECURITY: who a request acts as counts too, or a stopped user's work could go on in the name of a service.
    let users = [identity.user().map(UserName::as_str), exchange.record.acts_as.as_deref()];
    users.into_iter().flatten().try_for_each(|user| reject_if_stopped(store, StopKind::User, user))
}

/// What the ontology of a request is found by after it has waited for a slot, besides its path and its body. It is kept for
/// each request that needs a slot, so it is little.
pub struct QueuedOntology {
    in_user_name: Option<Box<str>>,
    in_body: Option<StatementFormat>,
}

impl QueuedOntology {
    /// Of a request that may have to wait.
    pub fn new(screened: &Screened) -> QueuedOntology {
        QueuedOntology {
            in_user_name: ontology_in_user_name(screened.credential()).map(Box::from),
            in_body: statement_format(screened),
        }
    }

    /// Rejects the request if it was stopped while it waited. The others behind it are rejected as quickly as their turn
    /// comes, so that the backend gets none of them.
    pub fn reject_stopped(
        &self,
        auth: &Auth,
        identity: &Identity,
        exchange: &Exchange,
        body: Option<&[u8]>,
    ) -> Result<(), Rejection> {
        let store = auth.store();
        if !store.has_denials() {
            return Ok(());
        }
        reject_stopped_caller(store, identity, exchange)?;
        let in_path = ontology_in_path(exchange.record.path());
        match (self.in_user_name.as_deref().or(in_path.as_deref()), self.in_body, body) {
            (Some(ontology), ..) => reject_if_stopped(store, StopKind::Ontology, ontology),
            (None, Some(format), Some(body)) => reject_stopped_statement(auth, &Statement::read(format, body)),
            _ => Ok(()),
        }
    }
}

/// Rejects a request whose body names a stopped ontology.
pub fn reject_stopped_statement(auth: &Auth, statement: &Statement<'_>) -> Result<(), Rejection> {
    match &statement.ontology {
        Some(ontology) => reject_if_stopped(auth.store(), StopKind::Ontology, ontology),
        None => Ok(()),
    }
}

/// Rejects a request of what has this name, if it is stopped.
pub fn reject_if_stopped(store: &Store, kind: StopKind, name: &str) -> Result<(), Rejection> {
    let Some(stop) = store.find_stop(|| StopTarget::new(kind, name)) else { return Ok(()) };
    let retry_after = stop.note.has_end.then(|| store.time_left(&stop));
    Err(Rejection::StoppedByOperator(Box::new(StoppedRequest { stop, retry_after })))
}
