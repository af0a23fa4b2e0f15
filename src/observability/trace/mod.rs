//! Decides which requests are traced, and records them as plain structs that the exporter's thread receives. It knows
//! nothing of the export; if the exporter does not keep up, traces are dropped and counted, and no request waits.

mod sampler;

use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use tokio::sync::mpsc;

use crate::observability::metrics::AuthOutcome;
use crate::observability::phase::Phase;

pub use sampler::Sampler;

/// Number of spans that were not exported.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Number of spans that the collector accepted.
static EXPORTED: AtomicU64 = AtomicU64::new(0);

/// One for all gateways of the process, because the environment variables that configure it belong to the process.
static TRACER: OnceLock<Tracer> = OnceLock::new();

/// Samples requests and queues their traces for the exporter.
#[derive(Debug)]
pub struct Tracer {
    sampler: Sampler,
    sender: mpsc::Sender<FinishedTrace>,
}

impl Tracer {
    /// Returns a tracer and the queue that it fills, which holds at most `max_queued_requests` traces.
    pub fn new(sampler: Sampler, max_queued_requests: usize) -> (Tracer, mpsc::Receiver<FinishedTrace>) {
        let (sender, receiver) = mpsc::channel(max_queued_requests);
        (Tracer { sampler, sender }, receiver)
    }

    /// Makes this the tracer of the process. Has no effect if there is one already.
    pub fn install(self) {
        let _ = TRACER.set(self);
    }

    /// The tracer of the process; `None` if traces are off.
    pub fn installed() -> Option<&'static Tracer> {
        TRACER.get()
    }

    /// Starts the trace of a request if it is sampled. `parent` is the client's span and the client's sampling
    /// decision.
    pub fn start(&'static self, trace_id: TraceId, parent: Option<(SpanId, bool)>) -> Option<Box<Trace>> {
        self.sampler.is_sampled(&trace_id, parent.map(|(_, sampled)| sampled)).then(|| {
            Box::new(Trace {
                tracer: self,
                trace_id,
                parent_span_id: parent.map(|(id, _)| id),
                span_id: random_span_id(),
                upstream_span_id: random_span_id(),
                handshake_interval: None,
                upstream_interval: None,
                phases: RefCell::default(),
            })
        })
    }
}

/// Number of spans that did not fit into the queue, or that the collector did not accept.
pub fn dropped_spans() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Number of spans that the collector accepted.
pub fn exported_spans() -> u64 {
    EXPORTED.load(Ordering::Relaxed)
}

/// Adds to [`dropped_spans`].
pub fn add_dropped(spans: usize) {
    DROPPED.fetch_add(spans as u64, Ordering::Relaxed);
}

/// Adds to [`exported_spans`].
pub fn add_exported(spans: usize) {
    EXPORTED.fetch_add(spans as u64, Ordering::Relaxed);
}

/// W3C Trace Context level 1, section 3.2.2.3.
pub type TraceId = [u8; 16];

/// W3C Trace Context level 1, section 3.2.2.4.
pub type SpanId = [u8; 8];

/// Span ids must be unique and not zero, but need not be secret.
pub fn random_span_id() -> SpanId {
    fastrand::u64(1..).to_be_bytes()
}

/// The trace of a request that is being served.
#[derive(Debug)]
pub struct Trace {
    tracer: &'static Tracer,
    /// Trace id of all its spans.
    pub trace_id: TraceId,
    /// The client's span; `None` if the client sent no trace context.
    pub parent_span_id: Option<SpanId>,
    /// The server span of the request.
    pub span_id: SpanId,
    /// The client span of the backend request, which is the parent of the backend's span.
    pub upstream_span_id: SpanId,
    /// The TLS handshake; `None` unless this is the first request of its connection.
    pub handshake_interval: Option<Interval>,
    /// From sending the request to the backend to the head of its response; `None` if none was sent.
    pub upstream_interval: Option<Interval>,
    /// Phases of authentication, in the order in which they ended.
    pub phases: RefCell<Vec<(Phase, AuthOutcome, Interval)>>,
}

/// Start and end on the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// Inclusive start.
    pub start: Instant,
    /// Never before `start`.
    pub end: Instant,
}

impl Trace {
    /// Queues the trace for export, or drops it if the queue is full.
    pub fn finish(self, interval: Interval, attributes: RequestAttributes) {
        let tracer = self.tracer;
        let finished = FinishedTrace { trace: self, interval, attributes, clocks: (Instant::now(), SystemTime::now()) };
        if let Err(error) = tracer.sender.try_send(finished) {
            add_dropped(error.into_inner().span_count());
        }
    }
}

/// Attributes of a request's span.
///
/// SECURITY: no query, header, body or key; of a key only the fingerprint.
#[derive(Debug)]
pub struct RequestAttributes {
    /// Request method.
    pub method: String,
    /// Name of the route; empty if none matched.
    pub route: String,
    /// Request path without the query.
    pub path: String,
    /// Status code of the response.
    pub status: u16,
    /// Why the gateway rejected the request; empty if it did not.
    pub reason: &'static str,
    /// Client address.
    pub client: String,
    /// `1.1` or `2`.
    pub protocol: &'static str,
    /// Whether the client used TLS.
    pub is_tls: bool,
    /// The authenticated user; `None` if unknown.
    pub user: Option<String>,
    /// Fingerprint of the key; `None` if it was not verified.
    pub key: Option<String>,
    /// The request id, as in the log.
    pub request_id: String,
    /// Bytes of the request body.
    pub received: u64,
    /// Bytes of the response body.
    pub sent: u64,
}

/// The trace of a request whose response has ended.
#[derive(Debug)]
pub struct FinishedTrace {
    /// What was recorded while the request was served.
    pub trace: Trace,
    /// From the request head to the end of the response.
    pub interval: Interval,
    /// Attributes of the server span.
    pub attributes: RequestAttributes,
    /// The monotonic and the wall clock, read at the same moment.
    pub clocks: (Instant, SystemTime),
}

impl FinishedTrace {
    /// Number of spans that are exported for this trace.
    pub fn span_count(&self) -> usize {
        let Trace { handshake_interval, upstream_interval, phases, .. } = &self.trace;
        1 + [handshake_interval, upstream_interval].into_iter().flatten().count() + phases.borrow().len()
    }
}
