//! Which requests are traced, and what is noted of them: light structs that the request's worker fills and a thread of the
//! exporter's takes. Where nobody takes them in time they are dropped and counted; no request ever waits.

mod sampler;

use std::cell::{Cell, RefCell};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use tokio::sync::mpsc;

use crate::observability::metrics::{Outcome, Step};

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
    finished: mpsc::Sender<Finished>,
}

impl Tracer {
    /// One that hands on what it takes; so many requests may wait.
    pub fn new(sampler: Sampler, most_waiting: usize) -> (Tracer, mpsc::Receiver<Finished>) {
        let (finished, receiver) = mpsc::channel(most_waiting);
        (Tracer { sampler, finished }, receiver)
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
    pub fn begin(&'static self, trace_id: TraceId, parent: Option<(SpanId, bool)>) -> Option<Box<Trace>> {
        self.sampler.wants(&trace_id, parent.map(|(_, sampled)| sampled)).then(|| {
            Box::new(Trace {
                tracer: self,
                trace_id,
                parent: parent.map(|(id, _)| id),
                id: span_id(),
                upstream: span_id(),
                handshake: Cell::new(None),
                asked: Cell::new(None),
                steps: RefCell::default(),
            })
        })
    }
}

/// Spans that nobody took in time, or that no receiver took.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Spans that a receiver took.
pub fn exported() -> u64 {
    EXPORTED.load(Ordering::Relaxed)
}

/// So many spans are lost.
pub fn note_dropped(spans: usize) {
    DROPPED.fetch_add(spans as u64, Ordering::Relaxed);
}

/// So many spans have arrived.
pub fn note_exported(spans: usize) {
    EXPORTED.fetch_add(spans as u64, Ordering::Relaxed);
}

/// W3C Trace Context level 1, section 3.2.2.3.
pub type TraceId = [u8; 16];

/// The same, section 3.2.2.4.
pub type SpanId = [u8; 8];

/// Ids must differ, not be secret.
fn span_id() -> SpanId {
    fastrand::u64(1..).to_be_bytes()
}

/// A traced request that goes on.
#[derive(Debug)]
pub struct Trace {
    tracer: &'static Tracer,
    trace_id: TraceId,
    parent: Option<SpanId>,
    id: SpanId,
    upstream: SpanId,
    handshake: Cell<Option<Span>>,
    asked: Cell<Option<Span>>,
    steps: RefCell<Vec<(Step, Outcome, Span)>>,
}

/// From when to when.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// When it began.
    pub begun: Instant,
    /// When it ended.
    pub ended: Instant,
}

impl Trace {
    /// The span that asks the backend: the parent of the backend's own.
    pub fn upstream_id(&self) -> SpanId {
        self.upstream
    }

    /// Notes a step of authentication.
    pub fn step(&self, step: Step, outcome: Outcome, span: Span) {
        self.steps.borrow_mut().push((step, outcome, span));
    }

    /// Notes the TLS handshake before the connection's first request.
    pub fn handshake(&self, span: Span) {
        self.handshake.set(Some(span));
    }

    /// Notes the backend's part.
    pub fn asked(&self, span: Span) {
        self.asked.set(Some(span));
    }

    /// Hands on what was noted.
    pub fn finish(self, span: Span, said: Said) {
        let finished = Finished {
            trace_id: self.trace_id,
            parent: self.parent,
            id: self.id,
            upstream: self.upstream,
            span,
            handshake: self.handshake.get(),
            asked: self.asked.get(),
            steps: self.steps.into_inner(),
            said,
            now: (Instant::now(), SystemTime::now()),
        };
        if let Err(error) = self.tracer.finished.try_send(finished) {
            note_dropped(error.into_inner().spans());
        }
    }
}

/// What is said of a request.
///
/// SECURITY: neither query nor field nor body nor key, of which only the fingerprint.
#[derive(Debug)]
pub struct Said {
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
    pub secure: bool,
    /// Whose request it is, if that is known.
    pub user: Option<String>,
    /// The key's fingerprint, if it was proven.
    pub key: Option<String>,
    /// The request's id.
    pub request_id: String,
    /// The backend's address, as the configuration has it.
    pub server: Option<String>,
    /// Bytes of its body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
}

/// A traced request that has come to its end.
#[derive(Debug)]
pub struct Finished {
    /// The trace that it belongs to.
    pub trace_id: TraceId,
    /// The client's span.
    pub parent: Option<SpanId>,
    /// Its own.
    pub id: SpanId,
    /// The span that asked the backend.
    pub upstream: SpanId,
    /// All of it.
    pub span: Span,
    /// The TLS handshake, if it is the first on its connection.
    pub handshake: Option<Span>,
    /// The backend's part, if it was asked.
    pub asked: Option<Span>,
    /// Steps of authentication.
    pub steps: Vec<(Step, Outcome, Span)>,
    /// What is said of it.
    pub said: Said,
    /// Both clocks at one moment.
    pub now: (Instant, SystemTime),
}

impl Finished {
    /// How many spans it makes.
    pub fn spans(&self) -> usize {
        1 + usize::from(self.handshake.is_some()) + usize::from(self.asked.is_some()) + self.steps.len()
    }
}
