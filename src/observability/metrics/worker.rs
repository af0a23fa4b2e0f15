//! What one worker counts, in cells that only its thread writes.

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::Mutex;

use crate::observability::metrics::histogram::{DurationHistogram, Histogram, SingleWriterCounter};
use crate::observability::metrics::route::{CompletedRequest, RouteCounters, RouteTotals};

/// A closed set of a label's values.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them, as they are numbered.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The label's value.
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }
    };
}

words! {
    /// A step on the way to knowing who calls, of those that take time.
    AuthPhase {
        /// A bearer is opened.
        Bearer = "bearer",
        /// The verifier says whether a password is right.
        Verifier = "verifier",
        /// The store is asked for a token, or keeps one.
        Store = "store",
        /// The backend is asked about a key that the gateway did not mint.
        ForeignCheck = "foreign_check",
        /// A JWT's signature and claims are checked.
        Jwt = "jwt",
    }
}

words! {
    /// How such a step ended.
    AuthOutcome {
        /// With a yes.
        Ok = "ok",
        /// With a no.
        Refused = "refused",
        /// Nobody could say.
        Unavailable = "unavailable",
        /// Too many ask, or one asks too often.
        Busy = "busy",
    }
}

words! {
    /// What a client's connection speaks.
    Protocol {
        /// HTTP/1.0 or 1.1.
        Http1 = "http/1",
        /// HTTP/2.
        Http2 = "http/2",
    }
}

words! {
    /// The version that a TLS handshake came to.
    TlsVersion {
        /// TLS 1.2.
        Tls12 = "1.2",
        /// TLS 1.3.
        Tls13 = "1.3",
    }
}

words! {
    /// Why a handshake failed.
    HandshakeFailure {
        /// It took too long.
        Timeout = "timeout",
        /// The client went away.
        Closed = "closed",
        /// The client said no: it does not trust our certificate, for one.
        Alert = "client_alert",
        /// There is no version, suite or protocol that both know.
        Incompatible = "incompatible",
        /// The client showed no certificate, or one that is not accepted.
        Certificate = "client_certificate",
        /// What came is no TLS, or not as it must be.
        Malformed = "malformed",
        /// The PROXY protocol's header is missing or wrong, or the peer may not send one.
        ProxyProtocol = "proxy_protocol",
        /// Anything else.
        Other = "other",
    }
}

#[derive(Debug)]
pub struct WorkerCounters {
    /// Who may write.
    pub owner: ThreadId,
    routes: Mutex<Vec<Arc<RouteCounters>>>,
    phases: [[DurationHistogram; AuthOutcome::ALL.len()]; AuthPhase::ALL.len()],
    opened_connections: [SingleWriterCounter; Protocol::ALL.len()],
    closed_connections: [SingleWriterCounter; Protocol::ALL.len()],
    /// By version, and whether a session was resumed.
    handshakes: [[SingleWriterCounter; 2]; TlsVersion::ALL.len()],
    handshake_failures: [SingleWriterCounter; HandshakeFailure::ALL.len()],
    handshake_duration: DurationHistogram,
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
        for cells in self.routes.lock().iter() {
            let known = sum.routes.iter().position(|route| route.name == *cells.name);
            let at = known.unwrap_or_else(|| {
                sum.routes.push(RouteTotals { name: cells.name.to_string(), ..RouteTotals::default() });
                sum.routes.len() - 1
            });
            cells.add_to(&mut sum.routes[at]);
        }
        for (sums, cells) in sum.phases.iter_mut().zip(&self.phases) {
            sums.iter_mut().zip(cells).for_each(|(sum, durations)| durations.add_to(sum));
        }
        add(&mut sum.opened_connections, &self.opened_connections);
        add(&mut sum.closed_connections, &self.closed_connections);
        for (sums, cells) in sum.handshakes.iter_mut().zip(&self.handshakes) {
            add(sums, cells);
        }
        add(&mut sum.handshake_failures, &self.handshake_failures);
        self.handshake_duration.add_to(&mut sum.handshake_duration);
    }
}

fn add(sums: &mut [u64], cells: &[SingleWriterCounter]) {
    sums.iter_mut().zip(cells).for_each(|(sum, cell)| *sum += cell.get());
}

/// What all workers have counted.
#[derive(Clone, Debug, Default)]
pub struct MetricsTotals {
    /// Requests, by route; the one with the empty name has those of no route.
    pub routes: Vec<RouteTotals>,
    pub(super) phases: [[Histogram; AuthOutcome::ALL.len()]; AuthPhase::ALL.len()],
    pub(super) opened_connections: [u64; Protocol::ALL.len()],
    pub(super) closed_connections: [u64; Protocol::ALL.len()],
    pub(super) handshakes: [[u64; 2]; TlsVersion::ALL.len()],
    pub(super) handshake_failures: [u64; HandshakeFailure::ALL.len()],
    pub(super) handshake_duration: Histogram,
}

/// The calling thread's cells. It cannot leave the thread, so nobody else writes to them.
#[derive(Clone, Debug)]
#[expect(
    clippy::redundant_allocation,
    reason = "each request has a handle, and counts it without a locked instruction"
)]
pub struct WorkerMetrics(Rc<Arc<WorkerCounters>>);

impl WorkerMetrics {
    /// SECURITY: only for the owner's thread; what another one added at the same time would be lost.
    pub(super) fn new(cells: Arc<WorkerCounters>) -> WorkerMetrics {
        assert_eq!(cells.owner, std::thread::current().id(), "cells belong to one thread");
        WorkerMetrics(Rc::new(cells))
    }

    /// Where requests of a route are counted; of none, by the empty name.
    pub fn route(&self, name: &str) -> Rc<RouteRecorder> {
        Rc::new(RouteRecorder { cells: self.0.route(name), bound: PhantomData })
    }

    /// A step took so long.
    pub fn record_phase(&self, step: AuthPhase, outcome: AuthOutcome, span: Duration) {
        self.0.phases[step as usize][outcome as usize].record(span);
    }

    /// A connection speaks HTTP until the guard is dropped.
    pub fn open_connection(&self, protocol: Protocol) -> OpenConnectionGuard {
        self.0.opened_connections[protocol as usize].add(1);
        OpenConnectionGuard { worker: self.clone(), protocol }
    }

    /// A TLS handshake succeeded.
    pub fn record_handshake(&self, version: TlsVersion, resumed: bool, span: Duration) {
        self.0.handshakes[version as usize][usize::from(resumed)].add(1);
        self.0.handshake_duration.record(span);
    }

    /// A handshake failed.
    pub fn record_handshake_failure(&self, why: HandshakeFailure) {
        self.0.handshake_failures[why as usize].add(1);
    }
}

/// Counts a connection as open.
#[derive(Debug)]
pub struct OpenConnectionGuard {
    worker: WorkerMetrics,
    protocol: Protocol,
}

impl Drop for OpenConnectionGuard {
    fn drop(&mut self) {
        self.worker.0.closed_connections[self.protocol as usize].add(1);
    }
}

/// Where the calling thread counts a route's requests.
#[derive(Debug)]
pub struct RouteRecorder {
    cells: Arc<RouteCounters>,
    bound: PhantomData<Rc<()>>,
}

impl RouteRecorder {
    /// Its name; empty for no route.
    pub fn name(&self) -> &str {
        &self.cells.name
    }

    /// A request came to its end.
    pub fn record(&self, answered: &CompletedRequest<'_>) {
        self.cells.record(answered);
    }

    /// The backend took so long for the head of its answer.
    pub fn record_upstream(&self, span: Duration) {
        self.cells.record_upstream(span);
    }
}
