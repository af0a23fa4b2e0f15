//! Sends a request to a backend: takes a connection of the chosen endpoint or opens one, and waits for the response
//! head. It does not know how an endpoint is chosen, when a retry is allowed, or which bytes an exchange consists of.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::sync::mpsc::unbounded_channel;
use tokio::time::{Instant, timeout};

use crate::admission::{EndpointChooser, RequestPermit};
use crate::config::{AbandonedPolicy, UpstreamOptions};
use crate::http::h1::response::ResponseHead;
use crate::observability::metrics::Metrics;
use crate::upstream::abandoned::finish_all;
use crate::upstream::backends::Backends;
use crate::upstream::connect::{connect, connect_share};
use crate::upstream::connection::{UNACKNOWLEDGED_TIMEOUT, UpstreamConnection, UpstreamConnectionGuard};
use crate::upstream::endpoint::EndpointFailure;
use crate::upstream::exchange::{Upload, UpstreamExchange};
use crate::upstream::load_balancer::{LoadBalancer, UpstreamInFlight, WorkerEndpoint};
use crate::upstream::pending_request::PendingRequest;
use crate::upstream::retry::{Retry, decide_retry};
use crate::upstream::{OutgoingRequest, RequestBodyError, ResponseBody, UpstreamError, UpstreamResponse};

/// The time by which an idle connection is closed before the backend closes it.
const IDLE_MARGIN: Duration = Duration::from_millis(500);

/// One worker's client for all backends. Clones share the pools.
#[derive(Clone)]
pub struct UpstreamClient(Rc<UpstreamClientInner>);

struct UpstreamClientInner {
    backends: Arc<Backends>,
    worker: usize,
    load_balancer: LoadBalancer,
    metrics: Arc<Metrics>,
}

impl UpstreamClient {
    /// Creates the client of the worker with index `worker`, for the calling thread. Connects to nothing yet.
    pub fn new(backends: Arc<Backends>, worker: usize, metrics: Arc<Metrics>) -> UpstreamClient {
        let abandoned = (backends.options.abandoned == AbandonedPolicy::HalfClose).then(|| {
            let (sender, receiver) = unbounded_channel();
            let UpstreamOptions { response_timeout, body_timeout, .. } = backends.options;
            tokio::task::spawn_local(finish_all(receiver, response_timeout, body_timeout));
            sender
        });
        let load_balancer = LoadBalancer::new(Arc::clone(&backends), worker, abandoned);
        UpstreamClient(Rc::new(UpstreamClientInner { backends, worker, load_balancer, metrics }))
    }

    /// Whether this client sends requests to these backends.
    pub fn is_for(&self, backends: &Arc<Backends>) -> bool {
        Arc::ptr_eq(&self.0.backends, backends)
    }

    /// The endpoints, for the limit on the requests of each.
    pub fn endpoints(&self) -> Arc<dyn EndpointChooser> {
        Arc::clone(&self.0.backends) as Arc<dyn EndpointChooser>
    }

    /// Returns whether a URL with this host and port names one of the backends; the port is `None` if the URL has none.
    pub fn is_backend(&self, host: &str, port: Option<u16>) -> bool {
        self.0.backends.has_name(host, port)
    }

    /// Closes connections that exceeded the idle timeout, and those of removed endpoints.
    pub fn close_expired(&self) {
        self.0.load_balancer.close_expired();
    }

    /// Sends a request and waits for the response head; the body of the response is streamed.
    ///
    /// If a reused connection is closed without a response, [`decide_retry`] decides whether the request is sent again.
    /// If connecting fails, nothing was sent, and a different endpoint is tried. `now` is the current time, which the
    /// caller already has.
    ///
    /// `permit` is held until the backend has responded completely, even if the caller does not wait for that; `None`
    /// for a request of the gateway itself.
    pub async fn send(
        &self,
        outgoing: impl OutgoingRequest,
        mut permit: Option<Box<RequestPermit>>,
        now: std::time::Instant,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let options = outgoing.options();
        let message = outgoing.into_message();
        let method = message.method.clone();
        let (target, now) = match self.choose(&[], options.affinity, &mut permit) {
            Some(target) => (target, Instant::from_std(now)),
            // Boxed because it is rare: an inline future would enlarge this one.
            None => (Box::pin(self.wait_for_endpoint(options.affinity, &mut permit)).await?, Instant::now()),
        };
        let mut upload = Upload::new(*message, &target.endpoint.origin.authority);
        let mut request = PendingRequest::new(target, permit, method, options);
        while let Some(connection) = request.in_flight().target.pool.take_connection(now.into_std()) {
            match self.exchange(&mut request, connection, &mut upload, now).await {
                Ok(head) => return Ok(self.begin_response(head, request, upload)),
                Err(error) => {
                    let Some(retry) = decide_retry(&error, &upload, now.elapsed()) else {
                        return Err(self.record_failure(error, request.in_flight()));
                    };
                    self.0.metrics.upstream_retries.inc();
                    if retry == Retry::OnNewConnection {
                        upload.rewind();
                        break;
                    }
                }
            }
        }
        // Boxed because most requests reuse a connection: an inline future would enlarge all of them.
        let connection = Box::pin(self.connect(request.in_flight(), &mut upload, options.affinity)).await?;
        match self.exchange(&mut request, connection, &mut upload, Instant::now()).await {
            Ok(head) => Ok(self.begin_response(head, request, upload)),
            Err(error) => Err(self.record_failure(error, request.in_flight())),
        }
    }

    /// Chooses an endpoint other than those in `tried`: at first the one of the request's slot, if it has one. Where the
    /// number of requests of each endpoint is limited, the slot then counts for the chosen one.
    fn choose(
        &self,
        tried: &[Rc<WorkerEndpoint>],
        affinity: Option<u64>,
        permit: &mut Option<Box<RequestPermit>>,
    ) -> Option<Rc<WorkerEndpoint>> {
        let load_balancer = &self.0.load_balancer;
        let slot = permit.as_deref_mut().and_then(RequestPermit::slot);
        let Some((slot, limit)) = slot.and_then(|slot| slot.endpoint_limit().map(|limit| (slot, limit))) else {
            return load_balancer.choose(tried, affinity, None);
        };
        if let (Some(load), []) = (slot.endpoint(), tried)
            && let Some(target) = load_balancer.find(load)
        {
            return Some(target);
        }
        loop {
            let target = load_balancer.choose(tried, affinity, Some(limit))?;
            // A different worker may have been faster.
            if slot.move_to(&target.endpoint.load) {
                return Some(target);
            }
        }
    }

    /// Opens a new connection, to a different endpoint if this one fails.
    async fn connect(
        &self,
        in_flight: &mut UpstreamInFlight,
        upload: &mut Upload,
        affinity: Option<u64>,
    ) -> Result<Box<UpstreamConnection>, UpstreamError> {
        let UpstreamClientInner { backends, load_balancer, .. } = &*self.0;
        let mut started = Instant::now();
        let total = backends.options.connect_timeout;
        let mut tried = Vec::new();
        loop {
            tried.push(Rc::clone(&in_flight.target));
            let limit = connect_share(total, started.elapsed(), load_balancer.available_besides(&tried));
            let endpoint = &in_flight.target.endpoint;
            let error = match connect(endpoint, limit).await {
                Ok(stream) => {
                    let guard = UpstreamConnectionGuard::new(endpoint, self.0.worker);
                    return Ok(Box::new(UpstreamConnection::new(stream, guard)));
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => UpstreamError::ConnectTimeout,
                Err(error) => UpstreamError::Connect(error),
            };
            let error = match error {
                // An endpoint that did not get the full timeout may be healthy: the health checker finds out.
                UpstreamError::ConnectTimeout if limit < total => {
                    backends.record_short_connect_timeout(endpoint);
                    error
                }
                error => self.record_failure(error, in_flight),
            };
            if started.elapsed() >= total {
                return Err(error);
            }
            let next = match self.choose(&tried, affinity, &mut in_flight.permit) {
                Some(next) => next,
                None => {
                    let waiting_since = Instant::now();
                    let next = self.wait_for_untried(&tried, affinity, &mut in_flight.permit).await?.ok_or(error)?;
                    started += waiting_since.elapsed();
                    next
                }
            };
            upload.set_host(&next.endpoint.origin.authority);
            in_flight.move_to(next);
        }
    }

    /// Waits until an endpoint that was not tried has room, if the number of requests of each is limited. `None`: no other
    /// endpoint is available.
    async fn wait_for_untried(
        &self,
        tried: &[Rc<WorkerEndpoint>],
        affinity: Option<u64>,
        permit: &mut Option<Box<RequestPermit>>,
    ) -> Result<Option<Rc<WorkerEndpoint>>, UpstreamError> {
        let Some(permit) = permit.as_deref_mut() else { return Ok(None) };
        let is_limited = permit.slot().is_some_and(|slot| slot.endpoint_limit().is_some());
        if !is_limited || self.0.load_balancer.available_besides(tried) == 0 {
            return Ok(None);
        }
        let tried = tried.iter().map(|target| Arc::clone(&target.endpoint.load)).collect();
        let untried: Arc<dyn EndpointChooser> = self.0.backends.besides(tried);
        permit.wait_for_other(&untried, affinity).await.map_err(UpstreamError::Queue)?;
        let load = permit.slot().and_then(|slot| slot.endpoint());
        Ok(load.and_then(|load| self.0.load_balancer.find(load)))
    }

    /// Waits for the first lookup of the names if no endpoint is known yet.
    async fn wait_for_endpoint(
        &self,
        affinity: Option<u64>,
        permit: &mut Option<Box<RequestPermit>>,
    ) -> Result<Rc<WorkerEndpoint>, UpstreamError> {
        let backends = &self.0.backends;
        let mut changes = backends.subscribe();
        let waiting = async {
            loop {
                changes.borrow_and_update();
                // Read before choosing, because endpoints may appear in between.
                let is_complete = backends.has_looked_up_all_names();
                if let Some(target) = self.choose(&[], affinity, permit) {
                    return Ok(target);
                }
                if is_complete || changes.changed().await.is_err() {
                    return Err(backends.no_endpoint_error());
                }
            }
        };
        timeout(backends.options.connect_timeout, waiting).await.unwrap_or(Err(UpstreamError::ConnectTimeout))
    }

    /// Counts a failure of the endpoint, if the error is the endpoint's fault.
    fn record_failure(&self, error: UpstreamError, in_flight: &UpstreamInFlight) -> UpstreamError {
        let failure = match &error {
            UpstreamError::Connect(_) => EndpointFailure::Connect,
            UpstreamError::ConnectTimeout => EndpointFailure::ConnectTimeout,
            UpstreamError::Closed(_) => EndpointFailure::Closed,
            UpstreamError::Invalid(_) | UpstreamError::UnexpectedUpgrade => EndpointFailure::InvalidResponse,
            // An endpoint that responded to other requests meanwhile is healthy: this is a long query.
            UpstreamError::ResponseTimeout if in_flight.responses_since() == 0 => EndpointFailure::ResponseTimeout,
            UpstreamError::ResponseTimeout | UpstreamError::RequestBody(_) | UpstreamError::Queue(_) => {
                return error;
            }
        };
        self.0.backends.record_failure(&in_flight.target.endpoint, failure);
        error
    }

    /// Sends the request on a connection and waits for the response head. The response timeout starts with the last
    /// byte of the request that the backend accepted.
    async fn exchange(
        &self,
        request: &mut PendingRequest,
        mut connection: Box<UpstreamConnection>,
        upload: &mut Upload,
        now: Instant,
    ) -> Result<ResponseHead, UpstreamError> {
        let limit = request.options.response_timeout.unwrap_or(self.0.backends.options.response_timeout);
        connection.set_user_timeout(user_timeout(upload));
        connection.expect_response(now, limit);
        let PendingRequest { connection: slot, method, is_sent, .. } = request;
        let mut exchange = UpstreamExchange::new(slot.insert(connection), upload, method);
        let mut is_first = true;
        yield_to_ready_tasks().await;
        let result = poll_fn(|cx| {
            let mut progress = false;
            let polled = exchange.poll(cx, &mut progress);
            *is_sent = !exchange.upload.is_unsent();
            if let Poll::Ready(result) = polled {
                return Poll::Ready(result);
            }
            if progress && !is_first {
                exchange.connection.set_user_timeout(user_timeout(exchange.upload));
                exchange.connection.expect_response(Instant::now(), limit);
            }
            is_first = false;
            ready!(exchange.connection.poll_response_timeout(cx));
            if !exchange.upload.awaits_client() {
                return Poll::Ready(Err(UpstreamError::ResponseTimeout));
            }
            // The backend cannot respond before the client has sent the rest; `timeouts.body` limits its pauses.
            exchange.connection.expect_response(Instant::now(), limit);
            exchange.connection.poll_response_timeout(cx).map(|()| Err(UpstreamError::ResponseTimeout))
        })
        .await;
        // After an error of the client, the backend may still process the part of the request that it has received.
        if !matches!(result, Ok(_) | Err(UpstreamError::RequestBody(_))) {
            request.connection = None;
        }
        match result {
            Err(UpstreamError::Closed(_)) if upload.is_client_slow() => {
                Err(UpstreamError::RequestBody(RequestBodyError::Stalled))
            }
            result => result,
        }
    }

    fn begin_response(&self, head: ResponseHead, request: PendingRequest, upload: Upload) -> UpstreamResponse {
        let options = request.options;
        let (mut connection, mut in_flight) = request.into_parts();
        let ResponseHead { status, headers, extent, keep_alive, max_idle } = head;
        if let Some(limit) = max_idle {
            connection.max_idle = limit.saturating_sub(IDLE_MARGIN);
        }
        in_flight.begin_response();
        self.0.backends.record_response(&in_flight.target.endpoint, status, in_flight.was_ejected);
        // SECURITY: a backend that responds before it has read the request may take the rest for the next request.
        let is_reusable = keep_alive && upload.is_done();
        let upload = (!upload.is_done()).then(|| Box::new(upload));
        let max_pause = options.body_timeout.unwrap_or(self.0.backends.options.body_timeout);
        let body = Box::new(ResponseBody::new(connection, extent, upload, in_flight, is_reusable, max_pause));
        UpstreamResponse { status, headers, body }
    }
}

/// The user timeout while a request is sent: none if its body may fill the buffers of a busy backend.
fn user_timeout(upload: &Upload) -> Option<Duration> {
    upload.can_be_buffered().then_some(UNACKNOWLEDGED_TIMEOUT)
}

/// Lets the other ready tasks of this thread run first. Requests that arrive together are then sent together and wake
/// the backend once: waking it is the most expensive part of sending a request.
async fn yield_to_ready_tasks() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if has_yielded {
            return Poll::Ready(());
        }
        has_yielded = true;
        // Moves the task to the end of the run queue; `yield_now` would also poll the sockets first.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
