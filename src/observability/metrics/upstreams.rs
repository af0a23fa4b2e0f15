//! Metrics of the endpoints of each backend. They are not counted here, but set from the state of the endpoints before
//! a scrape.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;

use crate::observability::metrics::catalogue::{Labelled, MetricCatalogue};

type EndpointLabels = [(&'static str, String); 3];

const ENDPOINT_LABELS: &[&str; 3] = &["upstream", "backend", "address"];

/// The counts of an endpoint, summed over all workers.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct EndpointCounts {
    /// Requests whose responses are not complete.
    pub in_flight: u64,
    /// Requests in flight whose clients have left.
    pub abandoned: u64,
    /// Requests whose clients left before the response was complete.
    pub abandonments: u64,
    /// Requests in flight whose responses have not begun.
    pub waiting: u64,
    /// How long several requests have waited without any response.
    pub silent_seconds: u64,
    /// Open connections, idle or with a request.
    #[serde(rename = "open")]
    pub open_connections: u64,
    /// Responses of any status.
    #[serde(rename = "answers")]
    pub responses: u64,
    /// Requests without a response, and responses with 502, 503 or 504.
    pub failures: u64,
    /// The number of ejections.
    pub ejections: u64,
}

/// The name, help text and value of a metric that each endpoint has.
type EndpointMetric = (&'static str, &'static str, fn(&EndpointCounts) -> u64);

/// What an endpoint has now. Endpoints that were removed have it until their last connection is closed.
const GAUGES: [EndpointMetric; 3] = [
    ("upstream_requests_in_flight", "Requests to this endpoint whose response has not ended", |counts| {
        counts.in_flight
    }),
    (
        "upstream_requests_abandoned",
        "Requests in flight to this endpoint whose clients have left; they count toward upstream.requests and \
         upstream.requests_per_endpoint",
        |counts| counts.abandoned,
    ),
    ("upstream_connections", "Open connections to this endpoint, idle or busy", |counts| counts.open_connections),
];

const COUNTERS: [EndpointMetric; 4] = [
    (
        "upstream_abandonments",
        "Requests to this endpoint whose clients left before the response was complete",
        |counts| counts.abandonments,
    ),
    ("upstream_answers", "Responses of this endpoint, of any status", |counts| counts.responses),
    (
        "upstream_failures",
        "Requests to this endpoint without a response, and its responses with 502, 503 or 504",
        |counts| counts.failures,
    ),
    ("upstream_ejections", "Ejections of this endpoint", |counts| counts.ejections),
];

/// The metrics of all endpoints.
#[derive(Debug)]
pub struct UpstreamMetrics {
    usable: Family<EndpointLabels, Gauge>,
    silent_seconds: Family<EndpointLabels, Gauge>,
    gauges: [Family<EndpointLabels, Gauge>; GAUGES.len()],
    counters: [Family<EndpointLabels, Counter>; COUNTERS.len()],
    lookup_failures: Labelled<Counter>,
}

impl UpstreamMetrics {
    pub(super) fn new(catalogue: &mut MetricCatalogue) -> UpstreamMetrics {
        UpstreamMetrics {
            usable: catalogue.register(
                "upstream_usable",
                ENDPOINT_LABELS,
                "1 while requests are sent to this endpoint, 0 while it is ejected",
            ),
            silent_seconds: catalogue.register(
                "upstream_silent_seconds",
                ENDPOINT_LABELS,
                "How long several requests to this endpoint have waited without any response from it; 0 otherwise",
            ),
            gauges: GAUGES.map(|(name, help, _)| catalogue.register(name, ENDPOINT_LABELS, help)),
            counters: COUNTERS.map(|(name, help, _)| catalogue.register(name, ENDPOINT_LABELS, help)),
            lookup_failures: catalogue.register(
                "upstream_lookup_failures",
                &["upstream", "backend"],
                "Failed DNS lookups of a backend's name; its addresses are kept",
            ),
        }
    }

    /// Removes all values, so that endpoints that no longer exist disappear.
    pub fn clear(&self) {
        self.usable.clear();
        self.silent_seconds.clear();
        self.gauges.iter().for_each(Family::clear);
        self.counters.iter().for_each(Family::clear);
        self.lookup_failures.clear();
    }

    /// Sets the values of an endpoint. `names` are those of the upstream and the backend, and the address with its port;
    /// `is_usable`: requests are sent to it.
    pub fn add_endpoint(&self, names: [&str; 3], is_usable: bool, counts: &EndpointCounts) {
        let labels = endpoint_labels(names);
        self.usable.get_or_create(&labels).set(i64::from(is_usable));
        let silent_seconds = i64::try_from(counts.silent_seconds).unwrap_or(i64::MAX);
        self.silent_seconds.get_or_create(&labels).set(silent_seconds);
        for (family, (.., value)) in self.counters.iter().zip(COUNTERS) {
            family.get_or_create(&labels).inc_by(value(counts));
        }
        self.add_connections(names, counts);
    }

    /// Adds the open connections of an endpoint and their requests. An address may have been removed and added again, or
    /// kept by a reload: its gauges are sums.
    pub fn add_connections(&self, names: [&str; 3], counts: &EndpointCounts) {
        let labels = endpoint_labels(names);
        for (family, (.., value)) in self.gauges.iter().zip(GAUGES) {
            family.get_or_create(&labels).inc_by(i64::try_from(value(counts)).unwrap_or(i64::MAX));
        }
    }

    /// Sets the number of failed lookups of a backend that is resolved by DNS.
    pub fn add_lookup_failures(&self, upstream: &str, backend: &str, failures: u64) {
        let labels = vec![("upstream", upstream.to_owned()), ("backend", backend.to_owned())];
        self.lookup_failures.get_or_create(&labels).inc_by(failures);
    }
}

fn endpoint_labels(names: [&str; 3]) -> EndpointLabels {
    let [upstream, backend, address] = names.map(str::to_owned);
    [("upstream", upstream), ("backend", backend), ("address", address)]
}
