//! All workers' cells, summed up when somebody reads them.

use std::fmt::Error;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::exemplar::Exemplar;

use crate::observability::metrics::catalogue::{Described, Form};
use crate::observability::metrics::histogram::Histogram;
use crate::observability::metrics::worker::{
    HandshakeFailure, Outcome, Protocol, Step, Sum, TlsVersion, Worker, WorkerCells,
};

/// The cells of each thread that counts.
#[derive(Clone, Debug, Default)]
pub struct Workers(Arc<Mutex<Vec<Arc<WorkerCells>>>>);

impl Workers {
    /// The calling thread's cells, which it has from its first question on.
    pub fn mine(&self) -> Worker {
        let owner = std::thread::current().id();
        let mut workers = self.0.lock();
        if let Some(known) = workers.iter().find(|cells| cells.owner == owner) {
            return Worker::new(Arc::clone(known));
        }
        let cells = Arc::new(WorkerCells::new(owner));
        workers.push(Arc::clone(&cells));
        Worker::new(cells)
    }

    /// What all have counted.
    pub fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for cells in self.0.lock().iter() {
            cells.add_to(&mut sum);
        }
        sum.routes.sort_by(|a, b| a.name.cmp(&b.name));
        sum
    }
}

const REQUESTS: Described = Described::new(
    "requests",
    Form::Counter,
    &["route", "method", "status", "reason"],
    "Requests that have ended. `reason` is empty where the backend's answer came through; `route` is `none` where no route \
     was found",
);
const REJECTIONS: Described = Described::new(
    "rejections",
    Form::Counter,
    &["reason"],
    "Requests that the gateway refused, or that broke off, by reason: `requests` without what went well",
);
const DURATION: Described = Described::new(
    "request_duration_seconds",
    Form::Histogram,
    &["route"],
    "From the head of a request to the end of its answer",
);
const TO_HEAD: Described = Described::new(
    "request_to_head_duration_seconds",
    Form::Histogram,
    &["route"],
    "From the head of a request to the head of its answer",
);
const UPSTREAM_TO_HEAD: Described = Described::new(
    "upstream_to_head_duration_seconds",
    Form::Histogram,
    &["route"],
    "From a request's way to the backend to the head of the backend's answer, waiting for a connection included",
);
const RECEIVED: Described = Described::new(
    "request_body_bytes",
    Form::Counter,
    &["route"],
    "Bytes of requests' bodies that were passed on to the backend",
);
const SENT: Described = Described::new(
    "response_body_bytes",
    Form::Counter,
    &["route"],
    "Bytes of answers' bodies that were handed on to clients",
);
const STEPS: Described = Described::new(
    "auth_step_duration_seconds",
    Form::Histogram,
    &["step", "outcome"],
    "What the steps took by which the gateway learns who calls. A token that is in memory takes none of them",
);
const OPENED: Described = Described::new(
    "client_connections_opened",
    Form::Counter,
    &["protocol"],
    "Client connections that came to speak HTTP",
);
const OPEN: Described = Described::new(
    "client_connections_speaking",
    Form::Gauge,
    &["protocol"],
    "Client connections that are open and have come to speak HTTP",
);
const HANDSHAKES: Described = Described::new(
    "tls_handshakes",
    Form::Counter,
    &["version", "resumed"],
    "TLS handshakes with clients that succeeded",
);
const HANDSHAKE_FAILURES: Described = Described::new(
    "handshake_failures",
    Form::Counter,
    &["kind"],
    "Client connections that came to no HTTP, as their TLS handshake or PROXY header failed",
);
const HANDSHAKE: Described = Described::new(
    "tls_handshake_duration_seconds",
    Form::Histogram,
    &[],
    "What TLS handshakes with clients took that succeeded",
);

/// What is encoded here.
pub const DESCRIBED: &[Described] = &[
    REQUESTS,
    REJECTIONS,
    DURATION,
    TO_HEAD,
    UPSTREAM_TO_HEAD,
    RECEIVED,
    SENT,
    STEPS,
    OPENED,
    OPEN,
    HANDSHAKES,
    HANDSHAKE_FAILURES,
    HANDSHAKE,
];

/// Encodes one metric after the other.
pub struct Encoding<'a>(pub DescriptorEncoder<'a>);

impl Encoding<'_> {
    /// Begins with a metric.
    pub fn begin(&mut self, what: &Described) -> Result<MetricEncoder<'_>, Error> {
        self.0.encode_descriptor(what.name, what.help, None, what.form.metric_type())
    }
}

/// One value of a counter.
pub fn counter(
    metric: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: u64,
) -> Result<(), Error> {
    metric.encode_family(labels)?.encode_counter(&value, None::<&Exemplar<NoLabelSet, u64>>)
}

/// One histogram.
fn histogram(
    metric: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    sum: &Histogram,
) -> Result<(), Error> {
    let mut metric = metric.encode_family(labels)?;
    metric.encode_histogram::<NoLabelSet>(sum.seconds(), sum.count(), &sum.buckets(), None)
}

/// A label must say something.
fn label(name: &str) -> &str {
    if name.is_empty() { "none" } else { name }
}

impl Collector for Workers {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (sum, mut to) = (self.sum(), Encoding(encoder));
        requests(&sum, &mut to)?;
        routes(&sum, &mut to)?;
        steps(&sum, &mut to)?;
        connections(&sum, &mut to)
    }
}

fn requests(sum: &Sum, to: &mut Encoding<'_>) -> Result<(), Error> {
    let mut metric = to.begin(&REQUESTS)?;
    let mut by_reason: Vec<(&str, u64)> = Vec::new();
    for route in &sum.routes {
        for answers in &route.answers {
            let labels = [
                ("route", label(&route.name)),
                ("method", answers.method),
                ("status", answers.status),
                ("reason", answers.reason),
            ];
            counter(&mut metric, &labels, answers.count)?;
            match by_reason.iter_mut().find(|(reason, _)| *reason == answers.reason) {
                _ if answers.reason.is_empty() => {}
                Some((_, count)) => *count += answers.count,
                None => by_reason.push((answers.reason, answers.count)),
            }
        }
    }
    let mut metric = to.begin(&REJECTIONS)?;
    by_reason.iter().try_for_each(|(reason, count)| counter(&mut metric, &[("reason", *reason)], *count))
}

fn routes(sum: &Sum, to: &mut Encoding<'_>) -> Result<(), Error> {
    for (what, which) in [
        (DURATION, (|route| &route.total) as fn(&super::RouteSum) -> &Histogram),
        (TO_HEAD, |route| &route.to_head),
        (UPSTREAM_TO_HEAD, |route| &route.upstream_to_head),
    ] {
        let mut metric = to.begin(&what)?;
        for route in &sum.routes {
            histogram(&mut metric, &[("route", label(&route.name))], which(route))?;
        }
    }
    for (what, which) in
        [(RECEIVED, (|route| route.received) as fn(&super::RouteSum) -> u64), (SENT, |route| route.sent)]
    {
        let mut metric = to.begin(&what)?;
        for route in &sum.routes {
            counter(&mut metric, &[("route", label(&route.name))], which(route))?;
        }
    }
    Ok(())
}

fn steps(sum: &Sum, to: &mut Encoding<'_>) -> Result<(), Error> {
    let mut metric = to.begin(&STEPS)?;
    for (step, outcomes) in Step::ALL.iter().zip(&sum.steps) {
        // Most gateways know most steps not at all, and a step few outcomes.
        for (outcome, taken) in Outcome::ALL.iter().zip(outcomes).filter(|(_, taken)| taken.count() > 0) {
            histogram(&mut metric, &[("step", step.word()), ("outcome", outcome.word())], taken)?;
        }
    }
    Ok(())
}

fn connections(sum: &Sum, to: &mut Encoding<'_>) -> Result<(), Error> {
    let mut metric = to.begin(&OPENED)?;
    for (protocol, opened) in Protocol::ALL.iter().zip(sum.opened) {
        counter(&mut metric, &[("protocol", protocol.word())], opened)?;
    }
    let mut metric = to.begin(&OPEN)?;
    for (protocol, (opened, closed)) in Protocol::ALL.iter().zip(sum.opened.into_iter().zip(sum.closed)) {
        let open = i64::try_from(opened.saturating_sub(closed)).unwrap_or(i64::MAX);
        metric.encode_family(&[("protocol", protocol.word())])?.encode_gauge(&open)?;
    }
    let mut metric = to.begin(&HANDSHAKES)?;
    for (version, counts) in TlsVersion::ALL.iter().zip(sum.handshakes) {
        for (resumed, count) in ["false", "true"].iter().zip(counts) {
            counter(&mut metric, &[("version", version.word()), ("resumed", resumed)], count)?;
        }
    }
    let mut metric = to.begin(&HANDSHAKE_FAILURES)?;
    for (kind, count) in HandshakeFailure::ALL.iter().zip(sum.handshake_failures) {
        counter(&mut metric, &[("kind", kind.word())], count)?;
    }
    let mut metric = to.begin(&HANDSHAKE)?;
    let handshake = &sum.handshake;
    metric.encode_histogram::<NoLabelSet>(handshake.seconds(), handshake.count(), &handshake.buckets(), None)
}
