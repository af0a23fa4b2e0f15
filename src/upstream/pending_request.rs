//! A request while the gateway waits for the head of its response, and what follows if its client leaves meanwhile.

use std::rc::Rc;

use http::Method;

use crate::admission::RequestPermit;
use crate::upstream::SendOptions;
use crate::upstream::abandoned::abandon_before_response;
use crate::upstream::connection::UpstreamConnection;
use crate::upstream::load_balancer::{UpstreamInFlight, WorkerEndpoint};

/// A request from the choice of its endpoint to the head of the response.
///
/// SECURITY: if it is dropped after a byte was sent, because its client has left, it still counts as long as the backend
/// works on it.
pub struct PendingRequest {
    /// `None` only while it is dropped.
    in_flight: Option<UpstreamInFlight>,
    pub connection: Option<Box<UpstreamConnection>>,
    pub method: Method,
    pub options: SendOptions,
    /// At least one byte was written to `connection`.
    pub is_sent: bool,
}

impl PendingRequest {
    pub fn new(
        target: Rc<WorkerEndpoint>,
        permit: Option<Box<RequestPermit>>,
        method: Method,
        options: SendOptions,
    ) -> PendingRequest {
        let in_flight = Some(UpstreamInFlight::new(target, permit));
        PendingRequest { in_flight, connection: None, method, options, is_sent: false }
    }

    pub fn in_flight(&mut self) -> &mut UpstreamInFlight {
        self.in_flight.as_mut().expect("it is taken with the request itself")
    }

    pub fn into_parts(mut self) -> (Box<UpstreamConnection>, UpstreamInFlight) {
        let parts = self.connection.take().zip(self.in_flight.take());
        parts.expect("a response arrives on a connection")
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        if let (Some(connection), Some(in_flight), true) = (self.connection.take(), self.in_flight.take(), self.is_sent)
        {
            let response_timeout = self.options.response_timeout;
            abandon_before_response(in_flight, connection, self.method.clone(), response_timeout);
        }
    }
}
