//! The backends, as one worker thread sees them: pools of keep-alive HTTP/1.1 connections that never leave the thread.
//!
//! Which addresses there are, and which of them are in use, is one thing for the whole process: [`Backends`]. A worker has
//! its own view of them, its [`Upstream`], and tells what its requests met there.
//!
//! The pool takes nothing but [`OutgoingRequest`] values. Two types are that: the request that `gateway::rewrite` makes of a
//! screened and authenticated one, and the question of `auth::foreign` whether a key is good. So a request that nobody
//! authenticated cannot be sent by forgetting something.

mod backends;
mod connect;
mod connection;
mod deadline;
mod endpoint;
mod exchange;
mod health_check;
mod load_balancer;
mod name_resolution;
mod origin;
mod pool;
mod progress_timeout;
mod request_body;
mod response_body;
mod status;

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::{Instant, timeout};

use crate::http::h1::response::ResponseHead;
use crate::http::headers::Headers;
use crate::observability::metrics::Metrics;

pub use backends::Backends;
pub use request_body::{BodyLimits, ReplayBuffer, RequestBody, RequestBodyError};
pub use response_body::{ResponseBody, ResponseBodyError};
pub use status::{EndpointStatus, NameStatus, UpstreamStatus};

use connection::{UpstreamConnection, UpstreamConnectionGuard};
use endpoint::EndpointFailure;
use exchange::{Upload, UpstreamExchange};
use load_balancer::{LoadBalancer, UpstreamInFlight, WorkerEndpoint};

/// So long an address has for a connection at least where others are to be tried after it, if that is no more than half
/// of the time for all.
const MIN_CONNECT_SHARE: Duration = Duration::from_secs(1);

/// What may be sent to the backend.
pub trait OutgoingRequest {
    /// The request as it goes on the wire.
    fn into_message(self) -> OutgoingMessage;
}

/// A request as it goes on the wire, but for what says how its body is framed.
pub struct OutgoingMessage {
    /// Its method, once more.
    pub method: Method,
    /// The request line, its target in origin form, and the fields: `host` among them without its value, none that concern
    /// a hop, none that frame the body.
    pub head: Vec<u8>,
    /// Where in the head the name of the backend belongs, which is known when one is chosen.
    pub host_offset: usize,
    /// Its body.
    pub body: RequestBody,
}

/// The backend's answer; the body streams.
pub struct UpstreamResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its fields, as they came.
    pub fields: Headers,
    /// Its body.
    pub body: ResponseBody,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No address is in use, so nothing was sent.
    #[error("no address of the upstream is in use")]
    Unavailable,
    /// No connection, so nothing was sent.
    #[error("cannot connect to the upstream")]
    Connect(#[source] io::Error),
    /// No connection in time, so nothing was sent.
    #[error("connecting to the upstream took too long")]
    ConnectTimeout,
    /// The request was sent, in part at least, and the connection ended before an answer.
    #[error("the upstream closed the connection without an answer")]
    Closed(#[source] io::Error),
    /// What came back is no HTTP answer.
    #[error("the upstream's answer is not valid HTTP")]
    Invalid(#[source] InvalidResponse),
    /// It wants to change the protocol, which nobody asked for.
    #[error("the upstream answered 101 Switching Protocols, which nobody asked for")]
    UnexpectedUpgrade,
    /// No head of an answer in time.
    #[error("the upstream did not answer in time")]
    ResponseTimeout,
    /// The client's body failed while it was passed on.
    #[error("the request's body did not arrive")]
    RequestBody(RequestBodyError),
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidResponse(pub &'static str);

/// One worker's way to the backends. Clones share the pools.
#[derive(Clone)]
pub struct UpstreamClient(Rc<UpstreamClientInner>);

struct UpstreamClientInner {
    backends: Arc<Backends>,
    worker: usize,
    load_balancer: LoadBalancer,
    metrics: Arc<Metrics>,
}

impl UpstreamClient {
    /// Pools for the calling thread, the `worker`th of those that `backends` was made for; connects to nothing yet.
    pub fn new(backends: Arc<Backends>, worker: usize, metrics: Arc<Metrics>) -> UpstreamClient {
        let lanes = LoadBalancer::new(Arc::clone(&backends), worker);
        UpstreamClient(Rc::new(UpstreamClientInner { backends, worker, load_balancer: lanes, metrics }))
    }

    /// Closes connections that idled too long, or whose address is gone.
    pub fn close_expired(&self) {
        self.0.load_balancer.close_expired();
    }

    /// Sends a request and waits for the head of its answer; the body streams.
    ///
    /// It is sent a second time, on a fresh connection, only where the first time did provably no harm: the reused
    /// connection was closed before any of it was written, or it is a GET or HEAD without a body and no byte of an
    /// answer had come. Where there is no connection, nothing was sent, and another address is tried. `now` is when this is
    /// called, which the caller knows.
    pub async fn send(
        &self,
        outgoing: impl OutgoingRequest,
        now: std::time::Instant,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let message = outgoing.into_message();
        let method = message.method.clone();
        let (lane, now) = match self.0.load_balancer.choose(&[]) {
            Some(lane) => (lane, Instant::from_std(now)),
            // In the heap, as it is seldom so.
            None => (Box::pin(self.wait_for_endpoint()).await?, Instant::now()),
        };
        let mut upload = Upload::new(message, &lane.endpoint.origin.authority);
        let place = UpstreamInFlight::new(lane);
        while let Some(mut connection) = place.target.pool.take_connection(now.into_std()) {
            match self.exchange(&mut connection, &mut upload, &method, now).await {
                Ok(head) => return Ok(self.begin_response(head, connection, upload, place)),
                // Not a byte was written: the next idle connection may do better.
                Err(UpstreamError::Closed(_)) if upload.is_unsent() => {
                    self.0.metrics.upstream_retries.inc();
                }
                Err(UpstreamError::Closed(_)) if upload.rewind() => {
                    self.0.metrics.upstream_retries.inc();
                    break;
                }
                Err(error) => return Err(self.record_failure(error, &place)),
            }
        }
        // In the heap, as most requests find a connection and all would have to be as large.
        let (mut connection, place) = Box::pin(self.connect(place, &mut upload)).await?;
        match self.exchange(&mut connection, &mut upload, &method, Instant::now()).await {
            Ok(head) => Ok(self.begin_response(head, connection, upload, place)),
            Err(error) => Err(self.record_failure(error, &place)),
        }
    }

    /// A new connection, to another address if there is none to this one.
    async fn connect(
        &self,
        mut place: UpstreamInFlight,
        upload: &mut Upload,
    ) -> Result<(Box<UpstreamConnection>, UpstreamInFlight), UpstreamError> {
        let UpstreamClientInner { backends, load_balancer: lanes, .. } = &*self.0;
        let begun = Instant::now();
        let whole = backends.connect_timeout();
        let mut tried = Vec::new();
        loop {
            tried.push(Rc::clone(&place.target));
            let limit = connect_share(whole, begun.elapsed(), lanes.available_besides(&tried));
            let endpoint = &place.target.endpoint;
            let error = match connect::connect(endpoint, limit).await {
                Ok(stream) => {
                    let open = UpstreamConnectionGuard::new(endpoint, self.0.worker);
                    return Ok((Box::new(UpstreamConnection::new(stream, open)), place));
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => UpstreamError::ConnectTimeout,
                Err(error) => UpstreamError::Connect(error),
            };
            let error = match error {
                // Who was not given the whole time may be well: that is for the care of the backends to find out.
                UpstreamError::ConnectTimeout if limit < whole => {
                    backends.record_short_connect_timeout(endpoint);
                    error
                }
                error => self.record_failure(error, &place),
            };
            if begun.elapsed() >= whole {
                return Err(error);
            }
            let Some(next) = lanes.choose(&tried) else { return Err(error) };
            upload.set_host(&next.endpoint.origin.authority);
            place = UpstreamInFlight::new(next);
        }
    }

    /// Waits for the names to be looked up for the first time, if that is what is missing.
    async fn wait_for_endpoint(&self) -> Result<Rc<WorkerEndpoint>, UpstreamError> {
        let UpstreamClientInner { backends, load_balancer: lanes, .. } = &*self.0;
        let mut changes = backends.subscribe();
        let waiting = async {
            loop {
                changes.borrow_and_update();
                // Asked first, as addresses may come in between.
                let that_is_all = backends.has_looked_up_all_names();
                if let Some(lane) = lanes.choose(&[]) {
                    return Ok(lane);
                }
                if that_is_all || changes.changed().await.is_err() {
                    return Err(backends.no_endpoint_error());
                }
            }
        };
        timeout(backends.connect_timeout(), waiting).await.unwrap_or(Err(UpstreamError::ConnectTimeout))
    }

    /// Has it counted that an address gave no answer, where that is its own fault.
    fn record_failure(&self, error: UpstreamError, place: &UpstreamInFlight) -> UpstreamError {
        let why = match &error {
            UpstreamError::Connect(_) => EndpointFailure::Connect,
            UpstreamError::ConnectTimeout => EndpointFailure::ConnectTimeout,
            UpstreamError::Closed(_) => EndpointFailure::Closed,
            UpstreamError::Invalid(_) | UpstreamError::UnexpectedUpgrade => EndpointFailure::InvalidResponse,
            // Who answers others meanwhile has a long query, and is well.
            UpstreamError::ResponseTimeout if place.responses_since() == 0 => {
                EndpointFailure::ResponseTimeout
            }
            UpstreamError::ResponseTimeout | UpstreamError::RequestBody(_) | UpstreamError::Unavailable => {
                return error;
            }
        };
        self.0.backends.record_failure(&place.target.endpoint, why);
        error
    }

    /// The time for the answer runs from the last byte of the request that the backend took.
    async fn exchange(
        &self,
        connection: &mut UpstreamConnection,
        upload: &mut Upload,
        method: &Method,
        now: Instant,
    ) -> Result<ResponseHead, UpstreamError> {
        let limit = self.0.backends.options.response_timeout;
        connection.set_user_timeout(upload.can_be_buffered());
        connection.expect_response(now, limit);
        let mut exchange = UpstreamExchange::new(connection, upload, method);
        let mut is_first = true;
        yield_to_ready_tasks().await;
        poll_fn(|cx| {
            let mut progress = false;
            if let Poll::Ready(result) = exchange.poll(cx, &mut progress) {
                return Poll::Ready(result);
            }
            if progress && !is_first {
                exchange.connection.set_user_timeout(exchange.upload.can_be_buffered());
                exchange.connection.expect_response(Instant::now(), limit);
            }
            is_first = false;
            exchange.connection.poll_response_timeout(cx).map(|()| Err(UpstreamError::ResponseTimeout))
        })
        .await
    }

    fn begin_response(
        &self,
        answer: ResponseHead,
        connection: Box<UpstreamConnection>,
        upload: Upload,
        place: UpstreamInFlight,
    ) -> UpstreamResponse {
        let ResponseHead { status, headers: fields, extent, keep_alive } = answer;
        place.target.counters().responses.increment();
        self.0.backends.record_response(&place.target.endpoint, status);
        let upload = (!upload.is_done()).then(|| Box::new(upload));
        let pause = self.0.backends.options.body_timeout;
        let body = ResponseBody::new(connection, extent, upload, place, keep_alive, pause);
        UpstreamResponse { status, fields, body }
    }
}

/// Lets this thread's other tasks that are ready have their turn first. So requests that came together go up together, and
/// wake the backend once: each time that it has to be woken costs the sender more than anything else about a request.
async fn yield_to_ready_tasks() {
    let mut have_had_it = false;
    poll_fn(|cx| {
        if have_had_it {
            return Poll::Ready(());
        }
        have_had_it = true;
        // To the end of the queue; `yield_now` would wait for the sockets to be asked again besides.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// How long a connection may take, of the `whole` time for one to anybody, so that what does not answer leaves time for
/// the others.
fn connect_share(whole: Duration, spent: Duration, others: usize) -> Duration {
    let left = whole.saturating_sub(spent);
    let even = left / u32::try_from(others + 1).unwrap_or(u32::MAX);
    even.max(MIN_CONNECT_SHARE.min(whole / 2)).min(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_time_is_shared_and_no_share_is_too_short_for_a_handshake() {
        let share = |whole, spent, others| {
            super::connect_share(Duration::from_millis(whole), Duration::from_millis(spent), others)
                .as_millis()
        };
        assert_eq!((share(5000, 0, 0), share(5000, 0, 1), share(5000, 2500, 0)), (5000, 2500, 2500));
        assert_eq!((share(5000, 0, 19), share(5000, 4000, 15)), (1000, 1000));
        assert_eq!((share(600, 0, 19), share(600, 300, 18)), (300, 300), "there is time for a second one");
        assert_eq!((share(5000, 4900, 3), share(5000, 6000, 3)), (100, 0));
    }
}
