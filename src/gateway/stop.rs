//! Rejects requests that an operator has stopped: by user, route or ontology. The store has the list; this compares a
//! request with it.
//!
//! A stop protects the backend and replaces no rule: a request that names no ontology, or names it where the gateway does
//! not read it, is not stopped by its ontology.

use crate::auth::{Auth, Identity};
use crate::base::user_name::UserName;
use crate::gateway::authorize::StatementSource;
use crate::gateway::exchange::Exchange;
use crate::gateway::ontology::requested_ontology;
use crate::gateway::rejection::{Rejection, StoppedRequest};
use crate::gateway::screen::Screened;
use crate::http::statement::Statement;
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

/// What the ontology of a request is found by, after it has waited for a slot.
pub struct QueuedOntology {
    in_head: Option<Box<str>>,
    in_body: Option<StatementSource>,
}

impl QueuedOntology {
    /// Of a request that may have to wait.
    pub fn new(screened: &Screened) -> QueuedOntology {
        let in_head = requested_ontology(screened).ok().flatten().map(|name| Box::from(&*name));
        let in_body = if in_head.is_none() { StatementSource::of_request(screened) } else { None };
        QueuedOntology { in_head, in_body }
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
        match (&self.in_head, self.in_body) {
            (Some(ontology), _) => reject_if_stopped(store, StopKind::Ontology, ontology),
            (None, Some(source)) => reject_stopped_statement(auth, &source.read(body)),
            (None, None) => Ok(()),
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
