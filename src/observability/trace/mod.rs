//! Which requests are traced, and what is noted of them: light structs that the request's worker fills and a thread of the
//! exporter's takes. Where nobody takes them in time they are dropped and counted; no request ever waits.

mod sampler;

use std::cell::{Cell, RefCell};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use tokio::sync::mpsc;

use crate::observability::metrics::{AuthOutcome, AuthPhase};

pub use sampler::Sampler;

/// Spans that were not exported.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Spans that a receiver took.
static EXPORTED: AtomicU64 = AtomicU64::new(0);

/// Where all gateways of the process send their traces, as the variables that say so are the process's.
static TRACER: OnceLock<Tracer> = OnceLock::new();

/// Decides about requests, and takes what is noted of them.
#[derive(Debug)]
pub struct Tracer {
    sampler: Sampler,
    sender: mpsc::Sender<FinishedTrace>,
}

impl Tracer {
    /// One that hands on what it takes; so many requests may wait.
    pub fn new(sampler: Sampler, most_waiting: usize) -> (Tracer, mpsc::Receiver<FinishedTrace>) {
        let (finished, receiver) = mpsc::channel(most_waiting);
        (Tracer { sampler, sender: finished }, receiver)
    }

    /// Takes the traces of this process from now on. The first one does.
    pub fn install(self) {
        let _ = TRACER.set(self);
    }

    /// The one that was installed.
    pub fn installed() -> Option<&'static Tracer> {
        TRACER.get()
    }

    /// Begins to note a request, if it is to be traced. `parent` is the client's span, and whether the client traces it.
    pub fn start(&'static self, trace_id: TraceId, parent: Option<(SpanId, bool)>) -> Option<Box<Trace>> {
        self.sampler.is_sampled(&trace_id, parent.map(|(_, sampled)| sampled)).then(|| {
            Box::new(Trace {
                tracer: self,
                trace_id,
                parent_span_id: parent.map(|(id, _)| id),
                span_id: random_span_id(),
                upstream_span_id: random_span_id(),
                handshake_interval: Cell::new(None),
                upstream_interval: Cell::new(None),
                phases: RefCell::default(),
            })
        })
    }
}

/// Spans that nobody took in time, or that no receiver took.
pub fn dropped_spans() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Spans that a receiver took.
pub fn exported_spans() -> u64 {
    EXPORTED.load(Ordering::Relaxed)
}

/// So many spans are lost.
pub fn add_dropped(spans: usize) {
    DROPPED.fetch_add(spans as u64, Ordering::Relaxed);
}

/// So many spans have arrived.
pub fn add_exported(spans: usize) {
    EXPORTED.fetch_add(spans as u64, Ordering::Relaxed);
}

/// W3C Trace Context level 1, section 3.2.2.3.
pub type TraceId = [u8; 16];

/// The same, section 3.2.2.4.
pub type SpanId = [u8; 8];

/// Ids must differ, not be secret.
fn random_span_id() -> SpanId {
    fastrand::u64(1..).to_be_bytes()
}

/// A traced request that goes on.
#[derive(Debug)]
pub struct Trace {
    tracer: &'static Tracer,
    trace_id: TraceId,
    parent_span_id: Option<SpanId>,
    span_id: SpanId,
    upstream_span_id: SpanId,
    handshake_interval: Cell<Option<Interval>>,
    upstream_interval: Cell<Option<Interval>>,
    phases: RefCell<Vec<(AuthPhase, AuthOutcome, Interval)>>,
}

/// From when to when.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// When it began.
    pub start: Instant,
    /// When it ended.
    pub end: Instant,
}

impl Trace {
    /// The span that asks the backend: the parent of the backend's own.
    pub fn upstream_span_id(&self) -> SpanId {
        self.upstream_span_id
    }

    /// Notes a step of authentication.
    pub fn record_phase(&self, step: AuthPhase, outcome: AuthOutcome, span: Interval) {
        self.phases.borrow_mut().push((step, outcome, span));
    }

    /// Notes the TLS handshake before the connection's first request.
    pub fn record_handshake(&self, span: Interval) {
        self.handshake_interval.set(Some(span));
    }

    /// Notes the backend's part.
    pub fn record_upstream(&self, span: Interval) {
        self.upstream_interval.set(Some(span));
    }

    /// Hands on what was noted.
    pub fn finish(self, span: Interval, said: RequestAttributes) {
        let finished = FinishedTrace {
            trace_id: self.trace_id,
            parent_span_id: self.parent_span_id,
            span_id: self.span_id,
            upstream_span_id: self.upstream_span_id,
            interval: span,
            handshake_interval: self.handshake_interval.get(),
            upstream_interval: self.upstream_interval.get(),
            phases: self.phases.into_inner(),
            attributes: said,
            clocks: (Instant::now(), SystemTime::now()),
        };
        if let Err(error) = self.tracer.sender.try_send(finished) {
            add_dropped(error.into_inner().span_count());
        }
    }
}

/// What is said of a request.
///
/// SECURITY: neither query nor field nor body nor key, of which only the fingerprint.
#[derive(Debug)]
pub struct RequestAttributes {
    /// Its method.
    pub method: String,
    /// The route's name; empty for none.
    pub route: String,
    /// The path.
    pub path: String,
    /// The answer's status.
    pub status: u16,
    /// Why the gateway refused it; empty if it did not.
    pub reason: &'static str,
    /// The client's address.
    pub client: String,
    /// `1.1` or `2`.
    pub protocol: &'static str,
    /// Whether the client spoke TLS.
    pub is_tls: bool,
    /// Whose request it is, if that is known.
    pub user: Option<String>,
    /// The key's fingerprint, if it was proven.
    pub key: Option<String>,
    /// The request's id.
    pub request_id: String,
    /// The backend's address, as the configuration has it.
    pub backend: Option<String>,
    /// Bytes of its body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
}

/// A traced request that has come to its end.
#[derive(Debug)]
pub struct FinishedTrace {
    /// The trace that it belongs to.
    pub trace_id: TraceId,
    /// The client's span.
    pub parent_span_id: Option<SpanId>,
    /// Its own.
    pub span_id: SpanId,
    /// The span that asked the backend.
    pub upstream_span_id: SpanId,
    /// All of it.
    pub interval: Interval,
    /// The TLS handshake, if it is the first on its connection.
    pub handshake_interval: Option<Interval>,
    /// The backend's part, if it was asked.
    pub upstream_interval: Option<Interval>,
    /// Steps of authentication.
    pub phases: Vec<(AuthPhase, AuthOutcome, Interval)>,
    /// What is said of it.
    pub attributes: RequestAttributes,
    /// Both clocks at one moment.
    pub clocks: (Instant, SystemTime),
}

impl FinishedTrace {
    /// How many spans it makes.
    pub fn span_count(&self) -> usize {
        1 + usize::from(self.handshake_interval.is_some())
            + usize::from(self.upstream_interval.is_some())
            + self.phases.len()
    }
}
