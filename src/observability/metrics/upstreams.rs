//! How each address of the backends is, at the moment in which somebody reads it. Not counted here: whoever looks after the
//! backends knows it.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::observability::metrics::catalogue::{MetricCatalogue, MetricKind};

type EndpointLabels = [(&'static str, String); 2];

const ENDPOINT_LABELS: &[&str] = &["backend", "address"];

/// One address.
#[derive(Clone, Debug)]
pub struct EndpointMetrics {
    /// The backend's name.
    pub backend: String,
    /// Where it is.
    pub address: String,
    /// Whether requests go there.
    pub is_usable: bool,
    /// Requests that were sent and whose answers have not ended.
    pub in_flight: u64,
    /// Connections that are open.
    pub open_connections: u64,
    /// Answers, whatever their status.
    pub responses: u64,
    /// Requests without an answer, and answers with 502, 503 or 504.
    pub failures: u64,
    /// How often it was taken out of use.
    pub ejections: u64,
}

/// All of them.
#[derive(Debug)]
pub struct UpstreamMetrics {
    usable: Family<EndpointLabels, Gauge>,
    in_flight: Family<EndpointLabels, Gauge>,
    connections: Family<EndpointLabels, Gauge>,
    responses: Family<EndpointLabels, Counter>,
    failures: Family<EndpointLabels, Counter>,
    ejections: Family<EndpointLabels, Counter>,
    lookup_failures: Family<[(&'static str, String); 1], Counter>,
}

impl UpstreamMetrics {
    pub(super) fn new(of: &mut MetricCatalogue) -> UpstreamMetrics {
        UpstreamMetrics {
            usable: of.register_family(
                "upstream_usable",
                MetricKind::Gauge,
                ENDPOINT_LABELS,
                "1 while requests go to this address of a backend, 0 while it is out of use",
            ),
            in_flight: of.register_family(
                "upstream_requests_in_flight",
                MetricKind::Gauge,
                ENDPOINT_LABELS,
                "Requests that were sent to this address and whose answers have not ended",
            ),
            connections: of.register_family(
                "upstream_connections",
                MetricKind::Gauge,
                ENDPOINT_LABELS,
                "Connections to this address that are open, idle or busy",
            ),
            responses: of.register_family(
                "upstream_answers",
                MetricKind::Counter,
                ENDPOINT_LABELS,
                "Answers of this address, whatever their status",
            ),
            failures: of.register_family(
                "upstream_failures",
                MetricKind::Counter,
                ENDPOINT_LABELS,
                "Requests that this address did not answer, and its answers with 502, 503 or 504",
            ),
            ejections: of.register_family(
                "upstream_ejections",
                MetricKind::Counter,
                ENDPOINT_LABELS,
                "How often this address was taken out of use",
            ),
            lookup_failures: of.register_family(
                "upstream_lookup_failures",
                MetricKind::Counter,
                &["backend"],
                "How often a backend's name could not be looked up; its addresses stay as they were",
            ),
        }
    }

    /// Takes over how they are now, and forgets addresses that are gone. `names` are those that are looked up, and how
    /// often that failed.
    pub fn update(&self, lines: &[EndpointMetrics], names: &[(String, u64)]) {
        for family in [&self.usable, &self.in_flight, &self.connections] {
            family.clear();
        }
        for family in [&self.responses, &self.failures, &self.ejections] {
            family.clear();
        }
        self.lookup_failures.clear();
        for line in lines {
            let of = [("backend", line.backend.clone()), ("address", line.address.clone())];
            let gauge = |value| i64::try_from(value).unwrap_or(i64::MAX);
            self.usable.get_or_create(&of).set(i64::from(line.is_usable));
            self.in_flight.get_or_create(&of).set(gauge(line.in_flight));
            self.connections.get_or_create(&of).set(gauge(line.open_connections));
            self.responses.get_or_create(&of).inc_by(line.responses);
            self.failures.get_or_create(&of).inc_by(line.failures);
            self.ejections.get_or_create(&of).inc_by(line.ejections);
        }
        for (backend, failures) in names {
            self.lookup_failures.get_or_create(&[("backend", backend.clone())]).inc_by(*failures);
        }
    }
}
