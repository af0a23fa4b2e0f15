//! Finds the counters of each worker, sums them up for a scrape, and encodes the sums.

use std::fmt::Error;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;

use crate::observability::metrics::callers::TakenCallers;
use crate::observability::metrics::catalogue::{MetricDescriptor, collected_metrics};
use crate::observability::metrics::histogram::Histogram;
use crate::observability::metrics::worker::{
    AuthOutcome, HandshakeFailure, MetricsTotals, Protocol, TlsVersion, WorkerCounters, WorkerMetrics,
};
use crate::observability::phase::Phase;

/// The counters of all worker threads. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct WorkerCollector(Arc<Mutex<Vec<Arc<WorkerCounters>>>>);

impl WorkerCollector {
    /// The counters of the current thread, created with the first call.
    pub fn for_current_thread(&self) -> WorkerMetrics {
        let owner = std::thread::current().id();
        let mut workers = self.0.lock();
        if let Some(existing) = workers.iter().find(|counters| counters.owner == owner) {
            return WorkerMetrics::new(Arc::clone(existing));
        }
        let counters = Arc::new(WorkerCounters::new(owner));
        workers.push(Arc::clone(&counters));
        WorkerMetrics::new(counters)
    }

    /// Moves the counts of callers out of all workers.
    pub fn take_callers(&self) -> TakenCallers {
        let mut taken = TakenCallers::default();
        self.0.lock().iter().for_each(|counters| counters.callers.lock().take_to(&mut taken));
        taken
    }

    /// The sums over all workers, with routes sorted by name.
    pub fn totals(&self) -> MetricsTotals {
        let mut sum = MetricsTotals::default();
        for counters in self.0.lock().iter() {
            counters.add_to(&mut sum);
        }
        sum.routes.sort_by(|a, b| a.name.cmp(&b.name));
        sum
    }
}

collected_metrics! {
    REQUESTS = Counter "requests" ["route", "method", "status", "reason"]
        "Completed requests. `reason` is empty if the backend's response was passed on; `route` is `none` if \
     no route matched";
    REJECTIONS = Counter "rejections" ["reason"]
        "Requests that the gateway rejected, or whose response was cut short, by reason: `requests` without \
     the successful ones";
    DURATION = Histogram "request_duration_seconds" ["route"]
        "Time from the request head to the end of the response";
    TIME_TO_HEAD = Histogram "request_to_head_duration_seconds" ["route"]
        "Time from the request head to the response head";
    UPSTREAM_TIME_TO_HEAD = Histogram "upstream_to_head_duration_seconds" ["route"]
        "Time from sending a request to the backend to the head of its response, including the wait for a connection";
    RECEIVED = Counter "request_body_bytes" ["route"]
        "Bytes of request bodies sent to backends";
    SENT = Counter "response_body_bytes" ["route"]
        "Bytes of response bodies sent to clients";
    AUTH_PHASES = Histogram "auth_step_duration_seconds" ["step", "outcome"]
        "Duration of authentication phases. A token in memory needs none of them";
    OPENED = Counter "client_connections_opened" ["protocol"]
        "Client connections that reached HTTP";
    OPEN = Gauge "client_connections_speaking" ["protocol"]
        "Open client connections that have reached HTTP";
    HANDSHAKES = Counter "tls_handshakes" ["version", "resumed"]
        "Successful TLS handshakes with clients";
    HANDSHAKE_FAILURES = Counter "handshake_failures" ["kind"]
        "Client connections whose TLS handshake or PROXY protocol header failed";
    HANDSHAKE = Histogram "tls_handshake_duration_seconds" []
        "Duration of successful TLS handshakes with clients";
}

/// Encodes one value of a counter.
pub fn encode_counter(metric: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> Result<(), Error> {
    metric.encode_family(labels)?.encode_counter(&value, None::<&Exemplar<NoLabelSet, u64>>)
}

/// Encodes one histogram of a family.
fn encode_histogram(
    metric: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    sum: &Histogram,
) -> Result<(), Error> {
    let mut metric = metric.encode_family(labels)?;
    metric.encode_histogram::<NoLabelSet>(sum.sum_seconds(), sum.count(), &sum.buckets(), None)
}

/// Names the route in a label: an empty value would be the same as no label.
fn route_label(name: &str) -> &str {
    if name.is_empty() { "none" } else { name }
}

impl Collector for WorkerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let totals = self.totals();
        encode_requests(&totals, &mut encoder)?;
        encode_routes(&totals, &mut encoder)?;
        encode_auth_phases(&totals, &mut encoder)?;
        encode_connections(&totals, &mut encoder)
    }
}

fn encode_requests(totals: &MetricsTotals, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let mut metric = REQUESTS.start(encoder)?;
    let mut by_reason: Vec<(&str, u64)> = Vec::new();
    for route in &totals.routes {
        for response in &route.responses {
            let labels = [
                ("route", route_label(&route.name)),
                ("method", response.method),
                ("status", response.status),
                ("reason", response.reason),
            ];
            encode_counter(&mut metric, &labels, response.count)?;
            match by_reason.iter_mut().find(|(reason, _)| *reason == response.reason) {
                _ if response.reason.is_empty() => {}
                Some((_, count)) => *count += response.count,
                None => by_reason.push((response.reason, response.count)),
            }
        }
    }
    let mut metric = REJECTIONS.start(encoder)?;
    by_reason.iter().try_for_each(|(reason, count)| encode_counter(&mut metric, &[("reason", *reason)], *count))
}

fn encode_routes(totals: &MetricsTotals, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    for (descriptor, histogram_of) in [
        (DURATION, (|route| &route.total) as fn(&super::RouteTotals) -> &Histogram),
        (TIME_TO_HEAD, |route| &route.to_head),
        (UPSTREAM_TIME_TO_HEAD, |route| &route.upstream_to_head),
    ] {
        let mut metric = descriptor.start(encoder)?;
        for route in &totals.routes {
            encode_histogram(&mut metric, &[("route", route_label(&route.name))], histogram_of(route))?;
        }
    }
    for (descriptor, count_of) in
        [(RECEIVED, (|route| route.received) as fn(&super::RouteTotals) -> u64), (SENT, |route| route.sent)]
    {
        let mut metric = descriptor.start(encoder)?;
        for route in &totals.routes {
            encode_counter(&mut metric, &[("route", route_label(&route.name))], count_of(route))?;
        }
    }
    Ok(())
}

fn encode_auth_phases(totals: &MetricsTotals, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let mut metric = AUTH_PHASES.start(encoder)?;
    for (phase, outcomes) in Phase::MEASURED.iter().zip(&totals.phases) {
        // A gateway uses few of the phases, and each has few outcomes.
        for (outcome, durations) in AuthOutcome::ALL.iter().zip(outcomes).filter(|(_, durations)| durations.count() > 0)
        {
            encode_histogram(&mut metric, &[("step", phase.as_str()), ("outcome", outcome.as_str())], durations)?;
        }
    }
    Ok(())
}

fn encode_connections(totals: &MetricsTotals, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let mut metric = OPENED.start(encoder)?;
    for (protocol, opened) in Protocol::ALL.iter().zip(totals.opened_connections) {
        encode_counter(&mut metric, &[("protocol", protocol.as_str())], opened)?;
    }
    let mut metric = OPEN.start(encoder)?;
    for (protocol, (opened, closed)) in
        Protocol::ALL.iter().zip(totals.opened_connections.into_iter().zip(totals.closed_connections))
    {
        let open = i64::try_from(opened.saturating_sub(closed)).unwrap_or(i64::MAX);
        metric.encode_family(&[("protocol", protocol.as_str())])?.encode_gauge(&open)?;
    }
    let mut metric = HANDSHAKES.start(encoder)?;
    for (version, counts) in TlsVersion::ALL.iter().zip(totals.handshakes) {
        for (resumed, count) in ["false", "true"].iter().zip(counts) {
            encode_counter(&mut metric, &[("version", version.as_str()), ("resumed", resumed)], count)?;
        }
    }
    let mut metric = HANDSHAKE_FAILURES.start(encoder)?;
    for (kind, count) in HandshakeFailure::ALL.iter().zip(totals.handshake_failures) {
        encode_counter(&mut metric, &[("kind", kind.as_str())], count)?;
    }
    let mut metric = HANDSHAKE.start(encoder)?;
    let durations = &totals.handshake_duration;
    metric.encode_histogram::<NoLabelSet>(durations.sum_seconds(), durations.count(), &durations.buckets(), None)
}
