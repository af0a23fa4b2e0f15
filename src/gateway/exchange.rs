//! The state of one exchange while the request path decides: the permit of the request and the record of what is known so
//! far. It does not decide anything itself.

use std::rc::Rc;

use crate::admission::RequestPlace;
use crate::auth::Identity;
use crate::gateway::access_record::AccessRecord;
use crate::gateway::context::{Client, Context};
use crate::observability::metrics;

/// A request that was admitted, until its response begins.
pub struct Exchange {
    /// What the access log will contain. It is dropped, and so written, before the permit is released.
    pub record: Box<AccessRecord>,
    /// The place of the request under the limits. The response body holds it until it has ended.
    pub permit: RequestPlace,
}

impl Exchange {
    /// Begins when the request is admitted.
    pub fn new(record: Box<AccessRecord>, permit: RequestPlace) -> Exchange {
        Exchange { record, permit }
    }

    /// What is known of the request from its connection and head.
    pub fn context(&self) -> &Context {
        &self.record.context
    }

    /// The peer of the connection.
    pub fn peer(&self) -> &Client {
        &self.record.context.client
    }

    /// Counts the request for this route from now on.
    pub fn set_route(&mut self, route: &Rc<metrics::Route>) {
        self.record.route = Rc::clone(route);
    }

    /// Records the proven identity.
    pub fn set_identity(&mut self, identity: &Identity) {
        self.record.user = identity.user().cloned();
        self.record.key = Some(identity.fingerprint());
    }
}
