//! All workers' cells, summed up when somebody reads them.

use std::fmt::Error;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::exemplar::Exemplar;

use crate::observability::metrics::catalogue::{MetricDescriptor, MetricKind};
use crate::observability::metrics::histogram::Histogram;
use crate::observability::metrics::worker::{
    AuthOutcome, AuthPhase, HandshakeFailure, MetricsTotals, Protocol, TlsVersion, WorkerCounters,
    WorkerMetrics,
};

/// The cells of each thread that counts.
#[derive(Clone, Debug, Default)]
pub struct WorkerCollector(Arc<Mutex<Vec<Arc<WorkerCounters>>>>);

impl WorkerCollector {
    /// The calling thread's cells, which it has from its first question on.
    pub fn for_current_thread(&self) -> WorkerMetrics {
        let owner = std::thread::current().id();
        let mut workers = self.0.lock();
        if let Some(known) = workers.iter().find(|cells| cells.owner == owner) {
            return WorkerMetrics::new(Arc::clone(known));
        }
        let cells = Arc::new(WorkerCounters::new(owner));
        workers.push(Arc::clone(&cells));
        WorkerMetrics::new(cells)
    }

    /// What all have counted.
    pub fn totals(&self) -> MetricsTotals {
        let mut sum = MetricsTotals::default();
        for cells in self.0.lock().iter() {
            cells.add_to(&mut sum);
        }
        sum.routes.sort_by(|a, b| a.name.cmp(&b.name));
        sum
    }
}

const REQUESTS: MetricDescriptor = MetricDescriptor::new(
    "requests",
    MetricKind::Counter,
    &["route", "method", "status", "reason"],
    "Requests that have ended. `reason` is empty where the backend's answer came through; `route` is `none` where no route \
     was found",
);
const REJECTIONS: MetricDescriptor = MetricDescriptor::new(
    "rejections",
    MetricKind::Counter,
    &["reason"],
    "Requests that the gateway refused, or that broke off, by reason: `requests` without what went well",
);
const DURATION: MetricDescriptor = MetricDescriptor::new(
    "request_duration_seconds",
    MetricKind::Histogram,
    &["route"],
    "From the head of a request to the end of its answer",
);
const TIME_TO_HEAD: MetricDescriptor = MetricDescriptor::new(
    "request_to_head_duration_seconds",
    MetricKind::Histogram,
    &["route"],
    "From the head of a request to the head of its answer",
);
const UPSTREAM_TIME_TO_HEAD: MetricDescriptor = MetricDescriptor::new(
    "upstream_to_head_duration_seconds",
    MetricKind::Histogram,
    &["route"],
    "From a request's way to the backend to the head of the backend's answer, waiting for a connection included",
);
const RECEIVED: MetricDescriptor = MetricDescriptor::new(
    "request_body_bytes",
    MetricKind::Counter,
    &["route"],
    "Bytes of requests' bodies that were passed on to the backend",
);
const SENT: MetricDescriptor = MetricDescriptor::new(
    "response_body_bytes",
    MetricKind::Counter,
    &["route"],
    "Bytes of answers' bodies that were handed on to clients",
);
const AUTH_PHASES: MetricDescriptor = MetricDescriptor::new(
    "auth_step_duration_seconds",
    MetricKind::Histogram,
    &["step", "outcome"],
    "What the steps took by which the gateway learns who calls. A token that is in memory takes none of them",
);
const OPENED: MetricDescriptor = MetricDescriptor::new(
    "client_connections_opened",
    MetricKind::Counter,
    &["protocol"],
    "Client connections that came to speak HTTP",
);
const OPEN: MetricDescriptor = MetricDescriptor::new(
    "client_connections_speaking",
    MetricKind::Gauge,
    &["protocol"],
    "Client connections that are open and have come to speak HTTP",
);
const HANDSHAKES: MetricDescriptor = MetricDescriptor::new(
    "tls_handshakes",
    MetricKind::Counter,
    &["version", "resumed"],
    "TLS handshakes with clients that succeeded",
);
const HANDSHAKE_FAILURES: MetricDescriptor = MetricDescriptor::new(
    "handshake_failures",
    MetricKind::Counter,
    &["kind"],
    "Client connections that came to no HTTP, as their TLS handshake or PROXY header failed",
);
const HANDSHAKE: MetricDescriptor = MetricDescriptor::new(
    "tls_handshake_duration_seconds",
    MetricKind::Histogram,
    &[],
    "What TLS handshakes with clients took that succeeded",
);

/// What is encoded here.
pub const DESCRIPTORS: &[MetricDescriptor] = &[
    REQUESTS,
    REJECTIONS,
    DURATION,
    TIME_TO_HEAD,
    UPSTREAM_TIME_TO_HEAD,
    RECEIVED,
    SENT,
    AUTH_PHASES,
    OPENED,
    OPEN,
    HANDSHAKES,
    HANDSHAKE_FAILURES,
    HANDSHAKE,
];

/// Encodes one metric after the other.
pub struct CollectorEncoder<'a>(pub DescriptorEncoder<'a>);

impl CollectorEncoder<'_> {
    /// Begins with a metric.
    pub fn start_metric(&mut self, what: &MetricDescriptor) -> Result<MetricEncoder<'_>, Error> {
        self.0.encode_descriptor(what.name, what.help, None, what.kind.metric_type())
    }
}

/// One value of a counter.
pub fn encode_counter(
    metric: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: u64,
) -> Result<(), Error> {
    metric.encode_family(labels)?.encode_counter(&value, None::<&Exemplar<NoLabelSet, u64>>)
}

/// One histogram.
fn encode_histogram(
    metric: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    sum: &Histogram,
) -> Result<(), Error> {
    let mut metric = metric.encode_family(labels)?;
    metric.encode_histogram::<NoLabelSet>(sum.sum_seconds(), sum.count(), &sum.buckets(), None)
}

/// A label must say something.
fn route_label(name: &str) -> &str {
    if name.is_empty() { "none" } else { name }
}

impl Collector for WorkerCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (sum, mut to) = (self.totals(), CollectorEncoder(encoder));
        encode_requests(&sum, &mut to)?;
        encode_routes(&sum, &mut to)?;
        encode_auth_phases(&sum, &mut to)?;
        encode_connections(&sum, &mut to)
    }
}

fn encode_requests(sum: &MetricsTotals, to: &mut CollectorEncoder<'_>) -> Result<(), Error> {
    let mut metric = to.start_metric(&REQUESTS)?;
    let mut by_reason: Vec<(&str, u64)> = Vec::new();
    for route in &sum.routes {
        for answers in &route.responses {
            let labels = [
                ("route", route_label(&route.name)),
                ("method", answers.method),
                ("status", answers.status),
                ("reason", answers.reason),
            ];
            encode_counter(&mut metric, &labels, answers.count)?;
            match by_reason.iter_mut().find(|(reason, _)| *reason == answers.reason) {
                _ if answers.reason.is_empty() => {}
                Some((_, count)) => *count += answers.count,
                None => by_reason.push((answers.reason, answers.count)),
            }
        }
    }
    let mut metric = to.start_metric(&REJECTIONS)?;
    by_reason
        .iter()
        .try_for_each(|(reason, count)| encode_counter(&mut metric, &[("reason", *reason)], *count))
}

fn encode_routes(sum: &MetricsTotals, to: &mut CollectorEncoder<'_>) -> Result<(), Error> {
    for (what, which) in [
        (DURATION, (|route| &route.total) as fn(&super::RouteTotals) -> &Histogram),
        (TIME_TO_HEAD, |route| &route.to_head),
        (UPSTREAM_TIME_TO_HEAD, |route| &route.upstream_to_head),
    ] {
        let mut metric = to.start_metric(&what)?;
        for route in &sum.routes {
            encode_histogram(&mut metric, &[("route", route_label(&route.name))], which(route))?;
        }
    }
    for (what, which) in
        [(RECEIVED, (|route| route.received) as fn(&super::RouteTotals) -> u64), (SENT, |route| route.sent)]
    {
        let mut metric = to.start_metric(&what)?;
        for route in &sum.routes {
            encode_counter(&mut metric, &[("route", route_label(&route.name))], which(route))?;
        }
    }
    Ok(())
}

fn encode_auth_phases(sum: &MetricsTotals, to: &mut CollectorEncoder<'_>) -> Result<(), Error> {
    let mut metric = to.start_metric(&AUTH_PHASES)?;
    for (step, outcomes) in AuthPhase::ALL.iter().zip(&sum.phases) {
        // Most gateways know most steps not at all, and a step few outcomes.
        for (outcome, taken) in AuthOutcome::ALL.iter().zip(outcomes).filter(|(_, taken)| taken.count() > 0) {
            encode_histogram(&mut metric, &[("step", step.word()), ("outcome", outcome.word())], taken)?;
        }
    }
    Ok(())
}

fn encode_connections(sum: &MetricsTotals, to: &mut CollectorEncoder<'_>) -> Result<(), Error> {
    let mut metric = to.start_metric(&OPENED)?;
    for (protocol, opened) in Protocol::ALL.iter().zip(sum.opened_connections) {
        encode_counter(&mut metric, &[("protocol", protocol.word())], opened)?;
    }
    let mut metric = to.start_metric(&OPEN)?;
    for (protocol, (opened, closed)) in
        Protocol::ALL.iter().zip(sum.opened_connections.into_iter().zip(sum.closed_connections))
    {
        let open = i64::try_from(opened.saturating_sub(closed)).unwrap_or(i64::MAX);
        metric.encode_family(&[("protocol", protocol.word())])?.encode_gauge(&open)?;
    }
    let mut metric = to.start_metric(&HANDSHAKES)?;
    for (version, counts) in TlsVersion::ALL.iter().zip(sum.handshakes) {
        for (resumed, count) in ["false", "true"].iter().zip(counts) {
            encode_counter(&mut metric, &[("version", version.word()), ("resumed", resumed)], count)?;
        }
    }
    let mut metric = to.start_metric(&HANDSHAKE_FAILURES)?;
    for (kind, count) in HandshakeFailure::ALL.iter().zip(sum.handshake_failures) {
        encode_counter(&mut metric, &[("kind", kind.word())], count)?;
    }
    let mut metric = to.start_metric(&HANDSHAKE)?;
    let handshake = &sum.handshake_duration;
    metric.encode_histogram::<NoLabelSet>(
        handshake.sum_seconds(),
        handshake.count(),
        &handshake.buckets(),
        None,
    )
}
