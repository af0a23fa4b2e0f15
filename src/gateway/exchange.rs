//! The state of one exchange while the request path decides: the permit of the request, and the record of what is
//! known so far. It does not decide anything itself.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::RequestPermit;
use crate::auth::Identity;
use crate::gateway::access_record::AccessRecord;
use crate::gateway::context::{Peer, RequestContext};
use crate::gateway::cors::CorsGrant;
use crate::gateway::response_edits::ResponseEdits;
use crate::http::statement::Statement;
use crate::observability::metrics;
use crate::observability::queries::Cancellation;

/// A request that was admitted, until its response begins.
pub struct Exchange {
    /// The record of the request. It is dropped, and so written, before the permit is released.
    pub record: Box<AccessRecord>,
    /// The permit of the request. `None` once the request was sent: then the response of the backend has it.
    pub permit: Option<Box<RequestPermit>>,
    /// What the page that sent the request may do with the response; `None` for other clients.
    pub cors: Option<CorsGrant>,
    /// What a 401 of the gateway also offers to the client.
    pub challenge: Option<Cow<'static, str>>,
    /// What is changed in the backend's response.
    pub edits: ResponseEdits,
    /// The time after which the response begins before the backend's.
    pub padding: Option<Duration>,
    /// By which an operator can cancel the query; `None` without a query journal.
    pub cancellation: Option<Arc<Cancellation>>,
}

impl Exchange {
    /// Begins when the request is admitted.
    pub fn new(record: Box<AccessRecord>, permit: Box<RequestPermit>, cors: Option<CorsGrant>) -> Exchange {
        let edits = ResponseEdits::default();
        Exchange { record, permit: Some(permit), cors, challenge: None, edits, padding: None, cancellation: None }
    }

    /// The permit, before the request is sent.
    pub fn permit(&mut self) -> &mut RequestPermit {
        self.parts().1
    }

    /// The record and the permit, before the request is sent.
    pub fn parts(&mut self) -> (&mut AccessRecord, &mut RequestPermit) {
        (&mut self.record, self.permit.as_mut().expect("it is taken when the request is sent"))
    }

    /// Facts about the request from its connection and head.
    pub fn context(&self) -> &RequestContext {
        &self.record.context
    }

    /// The peer of the connection.
    pub fn peer(&self) -> &Peer {
        &self.record.context.peer
    }

    /// Counts the request for this route from now on.
    pub fn set_route(&mut self, route: &Rc<metrics::RouteRecorder>) {
        self.record.route = Rc::clone(route);
    }

    /// Records the proven identity, if there is one.
    pub fn set_identity(&mut self, identity: &Identity) {
        self.record.user = identity.user().cloned();
        if identity.is_unauthenticated() {
            return;
        }
        self.record.key = Some(identity.fingerprint());
    }

    /// Lists the query as running, if there is a query journal. The calls of a Thrift session are not listed.
    pub fn begin_query(&mut self, statement: &Statement<'_>) {
        let (record, permit) = self.parts();
        let Some(mut query) = record.query.take() else { return };
        if !statement.is_session_call() {
            let context = &record.context;
            query.begin(statement, record.acts_as.as_deref(), context.request_id(), context.started_at, permit);
            record.query = Some(query);
        }
    }
}
