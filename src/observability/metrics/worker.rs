//! The counters of one worker, which only its thread writes, and the handle by which it writes them.

use std::marker::PhantomData;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;

use crate::base::counter::SingleWriterCounter;
use crate::base::label_values::label_values;
use crate::base::user_name::UserName;
use crate::observability::metrics::callers::CallerCounts;
use crate::observability::metrics::histogram::{DurationHistogram, Histogram};
use crate::observability::metrics::route::{CompletedRequest, RouteCounters, RouteTotals};
use crate::observability::phase::Phase;

label_values! {
    /// Outcome of a measured phase.
    AuthOutcome {
        /// The credential is accepted.
        Ok = "ok",
        /// The credential is rejected.
        Refused = "refused",
        /// The server that decides did not respond.
        Unavailable = "unavailable",
        /// A concurrency limit or rate limit was reached.
        Busy = "busy",
    }
}

label_values! {
    /// Protocol of a client connection.
    Protocol {
        /// HTTP/1.0 or 1.1.
        Http1 = "http/1",
        /// HTTP/2.
        Http2 = "http/2",
    }
}

label_values! {
    /// Negotiated version of a TLS handshake.
    TlsVersion {
        /// TLS 1.2.
        Tls12 = "1.2",
        /// TLS 1.3.
        Tls13 = "1.3",
    }
}

label_values! {
    /// Why a TLS handshake or a PROXY protocol header failed.
    HandshakeFailure {
        /// It timed out.
        Timeout = "timeout",
        /// The client disconnected.
        Closed = "closed",
        /// The client sent an alert, for example because it does not trust the certificate.
        Alert = "client_alert",
        /// No common TLS version, cipher suite or protocol.
        Incompatible = "incompatible",
        /// The client sent no certificate, or an invalid one.
        Certificate = "client_certificate",
        /// The client sent an HTTP request without TLS.
        PlainHttp = "plain_http",
        /// The client did not send valid TLS messages.
        Malformed = "malformed",
        /// The PROXY protocol header is missing or invalid, or the peer is not trusted.
        ProxyProtocol = "proxy_protocol",
        /// Any other failure.
        Other = "other",
    }
}

#[derive(Debug)]
pub struct WorkerCounters {
    /// The only thread that may write.
    pub owner: ThreadId,
    routes: Mutex<Vec<Arc<RouteCounters>>>,
    phases: [[DurationHistogram; AuthOutcome::ALL.len()]; Phase::MEASURED.len()],
    opened_connections: [SingleWriterCounter; Protocol::ALL.len()],
    closed_connections: [SingleWriterCounter; Protocol::ALL.len()],
    /// Indexed by version, and by whether a session was resumed.
    handshakes: [[SingleWriterCounter; 2]; TlsVersion::ALL.len()],
    handshake_failures: [SingleWriterCounter; HandshakeFailure::ALL.len()],
    handshake_duration: DurationHistogram,
    /// Only the reader of all workers contends for the lock, every two seconds.
    pub callers: Mutex<CallerCounts>,
}

impl WorkerCounters {
    pub fn new(owner: ThreadId) -> WorkerCounters {
        WorkerCounters {
            owner,
            routes: Mutex::default(),
            phases: Default::default(),
            opened_connections: Default::default(),
            closed_connections: Default::default(),
            handshakes: Default::default(),
            handshake_failures: Default::default(),
            handshake_duration: DurationHistogram::default(),
            callers: Mutex::default(),
        }
    }

    fn route(&self, name: &str) -> Arc<RouteCounters> {
        let mut routes = self.routes.lock();
        if let Some(known) = routes.iter().find(|route| *route.name == *name) {
            return Arc::clone(known);
        }
        let route = Arc::new(RouteCounters::new(name));
        routes.push(Arc::clone(&route));
        route
    }

    pub fn add_to(&self, sum: &mut MetricsTotals) {
        for counters in self.routes.lock().iter() {
            let existing = sum.routes.iter().position(|route| route.name == *counters.name);
            let at = existing.unwrap_or_else(|| {
                sum.routes.push(RouteTotals { name: counters.name.to_string(), ..RouteTotals::default() });
                sum.routes.len() - 1
            });
            counters.add_to(&mut sum.routes[at]);
        }
        for (sums, counters) in sum.phases.iter_mut().zip(&self.phases) {
            sums.iter_mut().zip(counters).for_each(|(sum, durations)| durations.add_to(sum));
        }
        add(&mut sum.opened_connections, &self.opened_connections);
        add(&mut sum.closed_connections, &self.closed_connections);
        for (sums, counters) in sum.handshakes.iter_mut().zip(&self.handshakes) {
            add(sums, counters);
        }
        add(&mut sum.handshake_failures, &self.handshake_failures);
        self.handshake_duration.add_to(&mut sum.handshake_duration);
    }
}

fn add(sums: &mut [u64], counters: &[SingleWriterCounter]) {
    sums.iter_mut().zip(counters).for_each(|(sum, cell)| *sum += cell.get());
}

/// The counts of all workers.
#[derive(Clone, Debug, Default)]
pub struct MetricsTotals {
    /// Requests by route; the empty name has the requests that matched no route.
    pub routes: Vec<RouteTotals>,
    pub(super) phases: [[Histogram; AuthOutcome::ALL.len()]; Phase::MEASURED.len()],
    pub(super) opened_connections: [u64; Protocol::ALL.len()],
    pub(super) closed_connections: [u64; Protocol::ALL.len()],
    pub(super) handshakes: [[u64; 2]; TlsVersion::ALL.len()],
    pub(super) handshake_failures: [u64; HandshakeFailure::ALL.len()],
    pub(super) handshake_duration: Histogram,
}

impl MetricsTotals {
    /// The requests of each route counted after `earlier` was taken.
    pub fn routes_since(&self, earlier: &MetricsTotals) -> Vec<RouteTotals> {
        let since = |route: &RouteTotals| match earlier.routes.iter().find(|earlier| earlier.name == route.name) {
            Some(earlier) => route.since(earlier),
            None => route.clone(),
        };
        self.routes.iter().map(since).collect()
    }
}

/// A handle to the counters of the current thread. It is not `Send`, so no other thread writes to them.
#[derive(Clone, Debug)]
#[expect(
    clippy::redundant_allocation,
    reason = "each request clones a handle, which must not cost a locked instruction"
)]
pub struct WorkerMetrics(Rc<Arc<WorkerCounters>>);

impl WorkerMetrics {
    /// Panics unless the current thread is the owner: concurrent updates would be lost.
    pub(super) fn new(counters: Arc<WorkerCounters>) -> WorkerMetrics {
        assert_eq!(counters.owner, std::thread::current().id(), "only the owning thread writes counters");
        WorkerMetrics(Rc::new(counters))
    }

    /// The counters of a route; the empty name is for requests that match none.
    pub fn route(&self, name: &str) -> Rc<RouteRecorder> {
        Rc::new(RouteRecorder { counters: self.0.route(name), bound: PhantomData })
    }

    /// Records the duration of a phase. Only those in [`Phase::MEASURED`] have metrics.
    pub fn record_phase(&self, phase: Phase, outcome: AuthOutcome, duration: Duration) {
        if let Some(durations) = self.0.phases.get(phase as usize) {
            durations[outcome as usize].record(duration);
        }
    }

    /// Counts a request of a user, if one is proven, and of a client address.
    pub fn record_caller(&self, user: Option<&UserName>, address: IpAddr, status: StatusCode, reason: &'static str) {
        self.0.callers.lock().record(user, address, status.as_u16(), reason);
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn open_connection(&self, protocol: Protocol) -> OpenConnectionGuard {
        self.0.opened_connections[protocol as usize].increment();
        OpenConnectionGuard { worker: self.clone(), protocol }
    }

    /// Records a successful TLS handshake, and whether it resumed a session.
    pub fn record_handshake(&self, version: TlsVersion, resumed: bool, duration: Duration) {
        self.0.handshakes[version as usize][usize::from(resumed)].increment();
        self.0.handshake_duration.record(duration);
    }

    /// Counts a failed handshake.
    pub fn record_handshake_failure(&self, failure: HandshakeFailure) {
        self.0.handshake_failures[failure as usize].increment();
    }
}

/// Counts a connection as closed when dropped.
#[derive(Debug)]
pub struct OpenConnectionGuard {
    worker: WorkerMetrics,
    protocol: Protocol,
}

impl Drop for OpenConnectionGuard {
    fn drop(&mut self) {
        self.worker.0.closed_connections[self.protocol as usize].increment();
    }
}

/// A handle to the counters of a route for the current thread.
#[derive(Debug)]
pub struct RouteRecorder {
    counters: Arc<RouteCounters>,
    bound: PhantomData<Rc<()>>,
}

impl RouteRecorder {
    /// Name of the route; empty for requests that match none.
    pub fn name(&self) -> &str {
        &self.counters.name
    }

    /// Counts a request whose response has ended.
    pub fn record(&self, request: &CompletedRequest<'_>) {
        self.counters.record(request);
    }

    /// Records the time from sending a request to the backend to the head of its response.
    pub fn record_upstream(&self, duration: Duration) {
        self.counters.record_upstream(duration);
    }
}
