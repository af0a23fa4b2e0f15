//! Requests whose clients have left before the backend has responded completely.
//!
//! The gateway half-closes the connection. A backend that watches for the departure of its client then ends the query;
//! one that does not (WSGI) executes it to its end. In both cases the slot, the endpoint's count and that of the caller are
//! kept until the backend has responded or closed the connection: otherwise clients that leave again and again could put
//! any number of queries on the backend.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use http::Method;
use http_body::Body;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::upstream::connection::UpstreamConnection;
use crate::upstream::exchange::ResponseHeadReader;
use crate::upstream::load_balancer::{UpstreamInFlight, WorkerEndpoint};
use crate::upstream::response_body::ResponseBody;

/// Maximum bytes that are read and discarded. A backend that still sends after that notices the closed connection with
/// its next write, so the rest need not be transferred.
const MAX_DISCARDED: u64 = 1024 * 1024;

/// A request that was sent, at least in part, and whose client has left.
pub struct AbandonedRequest {
    stage: Stage,
    /// The response timeout of its route; `None`: that of the upstream.
    response_timeout: Option<Duration>,
    // Fields are dropped from top to bottom: the connection is closed before the permit is released.
    _in_flight: UpstreamInFlight,
    _count: AbandonedCount,
}

enum Stage {
    /// The head of the response has not arrived.
    Head(Box<UpstreamConnection>, Method),
    /// The rest of this body has not arrived.
    Body(Box<ResponseBody>),
}

/// Counts an abandoned request of an endpoint while it exists.
struct AbandonedCount(Rc<WorkerEndpoint>);

impl Drop for AbandonedCount {
    fn drop(&mut self) {
        self.0.counters().abandoned.decrement();
    }
}

/// Abandons a request whose response has not begun.
pub fn abandon_before_response(
    in_flight: UpstreamInFlight,
    connection: Box<UpstreamConnection>,
    method: Method,
    response_timeout: Option<Duration>,
) {
    hand_over(in_flight, Stage::Head(connection, method), response_timeout);
}

/// Abandons a request whose response has begun.
pub fn abandon_response(in_flight: UpstreamInFlight, body: Box<ResponseBody>) {
    hand_over(in_flight, Stage::Body(body), None);
}

fn hand_over(mut in_flight: UpstreamInFlight, stage: Stage, response_timeout: Option<Duration>) {
    // Requests of the gateway itself have no client, and no permit that could limit their number.
    let Some(permit) = &mut in_flight.permit else { return };
    permit.abandon();
    let target = Rc::clone(&in_flight.target);
    target.counters().abandonments.increment();
    if let Some(sender) = &target.abandoned {
        target.counters().abandoned.increment();
        let count = AbandonedCount(Rc::clone(&target));
        let request = AbandonedRequest { stage, response_timeout, _in_flight: in_flight, _count: count };
        // Without a receiver the worker ends, and the request is dropped.
        let _ = sender.send(request);
    }
}

/// Finishes all abandoned requests of a worker's client, each within the response timeout of its route, or `limit`.
/// Ends with the last sender.
pub async fn finish_all(mut requests: UnboundedReceiver<AbandonedRequest>, limit: Duration, max_pause: Duration) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            request = requests.recv() => {
                let Some(request) = request else { break };
                tasks.spawn_local(async move {
                    let limit = request.response_timeout.unwrap_or(limit);
                    let _ = timeout(limit, request.finish(max_pause)).await;
                });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}

impl AbandonedRequest {
    /// Waits until the backend has responded or closed the connection.
    async fn finish(self, max_pause: Duration) {
        let AbandonedRequest { stage, _in_flight, _count, .. } = self;
        let mut body = match stage {
            Stage::Body(mut body) => {
                body.half_close();
                body
            }
            Stage::Head(mut connection, method) => {
                connection.half_close();
                let mut reader = ResponseHeadReader::default();
                match poll_fn(|cx| reader.poll(&mut connection, &method, cx)).await {
                    Ok(head) => Box::new(ResponseBody::without_request(connection, head.extent, max_pause)),
                    Err(_) => return,
                }
            }
        };
        let mut read = 0;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > MAX_DISCARDED {
                return;
            }
        }
    }
}
