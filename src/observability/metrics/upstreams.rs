//! Metrics of the endpoints of each backend. They are not counted here, but set from the state of the endpoints before
//! a scrape.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::observability::metrics::catalogue::{MetricCatalogue, MetricKind};

type EndpointLabels = [(&'static str, String); 3];

const ENDPOINT_LABELS: &[&str] = &["upstream", "backend", "address"];

/// The current state of an endpoint.
#[derive(Clone, Debug)]
pub struct EndpointMetrics {
    /// Name of the upstream.
    pub upstream: String,
    /// Name of the backend.
    pub backend: String,
    /// Address and port.
    pub address: String,
    /// Whether requests are sent to it: it is not ejected.
    pub is_usable: bool,
    /// Requests whose response has not ended.
    pub in_flight: u64,
    /// Requests in flight whose clients have left.
    pub abandoned: u64,
    /// Requests whose clients left before the response was complete.
    pub abandonments: u64,
    /// Open connections, idle or busy.
    pub open_connections: u64,
    /// Responses of any status.
    pub responses: u64,
    /// Requests without a response, and responses with 502, 503 or 504.
    pub failures: u64,
    /// Number of ejections.
    pub ejections: u64,
}

/// The metrics of all endpoints.
#[derive(Debug)]
pub struct UpstreamMetrics {
    usable: Family<EndpointLabels, Gauge>,
    in_flight: Family<EndpointLabels, Gauge>,
    abandoned: Family<EndpointLabels, Gauge>,
    abandonments: Family<EndpointLabels, Counter>,
    connections: Family<EndpointLabels, Gauge>,
    responses: Family<EndpointLabels, Counter>,
    failures: Family<EndpointLabels, Counter>,
    ejections: Family<EndpointLabels, Counter>,
    lookup_failures: Family<[(&'static str, String); 2], Counter>,
}

impl UpstreamMetrics {
    pub(super) fn new(catalogue: &mut MetricCatalogue) -> UpstreamMetrics {
        UpstreamMetrics {
            usable: catalogue.register_family(
                "upstream_usable",
                MetricKind::Gauge,
                ENDPOINT_LABELS,
                "1 while requests are sent to this endpoint, 0 while it is ejected",
            ),
            in_flight: catalogue.register_family(
                "upstream_requests_in_flight",
                MetricKind::Gauge,
                ENDPOINT_LABELS,
                "Requests to this endpoint whose response has not ended",
            ),
            abandoned: catalogue.register_family(
                "upstream_requests_abandoned",
                MetricKind::Gauge,
                ENDPOINT_LABELS,
                "Requests in flight to this endpoint whose clients have left; they count toward upstream.requests and upstream.requests_per_endpoint",
            ),
            abandonments: catalogue.register_family(
                "upstream_abandonments",
                MetricKind::Counter,
                ENDPOINT_LABELS,
                "Requests to this endpoint whose clients left before the response was complete",
            ),
            connections: catalogue.register_family(
                "upstream_connections",
                MetricKind::Gauge,
                ENDPOINT_LABELS,
                "Open connections to this endpoint, idle or busy",
            ),
            responses: catalogue.register_family(
                "upstream_answers",
                MetricKind::Counter,
                ENDPOINT_LABELS,
                "Responses of this endpoint, of any status",
            ),
            failures: catalogue.register_family(
                "upstream_failures",
                MetricKind::Counter,
                ENDPOINT_LABELS,
                "Requests to this endpoint without a response, and its responses with 502, 503 or 504",
            ),
            ejections: catalogue.register_family(
                "upstream_ejections",
                MetricKind::Counter,
                ENDPOINT_LABELS,
                "Ejections of this endpoint",
            ),
            lookup_failures: catalogue.register_family(
                "upstream_lookup_failures",
                MetricKind::Counter,
                &["upstream", "backend"],
                "Failed DNS lookups of a backend's name; its addresses are kept",
            ),
        }
    }

    /// Replaces all values, so that removed endpoints disappear. Of the `removed` ones that still have connections, only
    /// these and their requests are counted. `lookup_failures` has the upstream and the name of each backend that is
    /// resolved by DNS, and the number of failed lookups.
    pub fn update(
        &self,
        endpoints: &[EndpointMetrics],
        removed: &[EndpointMetrics],
        lookup_failures: &[(String, String, u64)],
    ) {
        for family in [&self.usable, &self.in_flight, &self.abandoned, &self.connections] {
            family.clear();
        }
        for family in [&self.abandonments, &self.responses, &self.failures, &self.ejections] {
            family.clear();
        }
        self.lookup_failures.clear();
        for endpoint in endpoints {
            let labels = endpoint.labels();
            self.usable.get_or_create(&labels).set(i64::from(endpoint.is_usable));
            self.abandonments.get_or_create(&labels).inc_by(endpoint.abandonments);
            self.responses.get_or_create(&labels).inc_by(endpoint.responses);
            self.failures.get_or_create(&labels).inc_by(endpoint.failures);
            self.ejections.get_or_create(&labels).inc_by(endpoint.ejections);
        }
        // An address may have been removed and added again, or kept by a reload: its gauges are sums.
        for endpoint in endpoints.iter().chain(removed) {
            let labels = endpoint.labels();
            let count = |value| i64::try_from(value).unwrap_or(i64::MAX);
            self.in_flight.get_or_create(&labels).inc_by(count(endpoint.in_flight));
            self.abandoned.get_or_create(&labels).inc_by(count(endpoint.abandoned));
            self.connections.get_or_create(&labels).inc_by(count(endpoint.open_connections));
        }
        for (upstream, backend, failures) in lookup_failures {
            let labels = [("upstream", upstream.clone()), ("backend", backend.clone())];
            self.lookup_failures.get_or_create(&labels).inc_by(*failures);
        }
    }
}

impl EndpointMetrics {
    fn labels(&self) -> EndpointLabels {
        [("upstream", self.upstream.clone()), ("backend", self.backend.clone()), ("address", self.address.clone())]
    }
}
