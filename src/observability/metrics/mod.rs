//! All metrics, and their export to Prometheus. They record what happens and decide nothing.
//!
//! Metrics belong to a running gateway, not to the process: each gateway has its own registry. Per-request counts go to
//! [`WorkerMetrics`], whose counters belong to one thread and are summed up for a scrape. Rare events have one shared
//! counter.

mod callers;
mod catalogue;
mod close_cause;
mod exposition;
mod histogram;
mod process;
mod queries;
mod route;
mod store;
mod upstreams;
mod worker;
mod worker_collector;

use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::base::clock;
use crate::observability::log;
use crate::observability::trace;

use catalogue::{Counters, Labelled, MetricCatalogue};
use process::ProcessCollector;
use worker_collector::WorkerCollector;

pub use callers::{CallerTally, TakenCallers};
pub use catalogue::MetricDescriptor;
pub use close_cause::CloseCause;
pub use exposition::ExpositionFormat;
pub use histogram::Histogram;
pub use prometheus_client::metrics::MetricType;
pub use queries::QueryMetrics;
pub use route::{CompletedRequest, RequestOutcome, ResponseCount, RouteTotals};
pub use store::StoreMetrics;
pub use upstreams::{EndpointCounts, UpstreamMetrics};
pub use worker::{
    AuthOutcome, HandshakeFailure, MetricsTotals, OpenConnectionGuard, Protocol, RouteRecorder, TlsVersion,
    WorkerMetrics,
};

/// Declares [`Metrics`]: the groups and collectors, which have modules of their own, and single metrics. The help text of
/// a metric is also its documentation here.
macro_rules! metrics {
    ($($visibility:vis $field:ident: $type:ty = $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// The metrics of one gateway.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            /// Has the metrics without the prefix.
            process: Registry,
            descriptors: Vec<MetricDescriptor>,
            workers: WorkerCollector,
            /// Metrics of statements.
            pub queries: QueryMetrics,
            /// Metrics of the persistent token store.
            pub store: StoreMetrics,
            /// Metrics of the endpoints of each backend.
            pub upstreams: UpstreamMetrics,
            $(#[doc = $help] $visibility $field: $type,)*
        }

        impl Metrics {
            fn register(mut catalogue: MetricCatalogue, process: Registry, workers: WorkerCollector) -> Metrics {
                Metrics {
                    process,
                    workers,
                    queries: QueryMetrics::new(&mut catalogue),
                    store: StoreMetrics::new(&mut catalogue),
                    upstreams: UpstreamMetrics::new(&mut catalogue),
                    $($field: catalogue.register($name, &[$($label),*], $help),)*
                    registry: catalogue.registry,
                    descriptors: catalogue.descriptors,
                }
            }
        }
    };
}

metrics! {
    pub connections: Gauge = "client_connections" [] "Open client connections";
    pub requests_in_flight: Gauge = "requests_in_flight" []
        "Requests that count toward limits.requests, until the end of the response body";
    pub requests_queued: Gauge = "requests_queued" []
        "Requests in flight that are queued because upstream.requests or upstream.requests_per_endpoint is reached";
    pub certificates_unusable: Gauge = "certificates_unusable" []
        "1 if a file of tls could not be used and its previous content is kept, else 0";
    pub tokens_evicted: Counter = "tokens_evicted" []
        "Live tokens that were evicted from memory because tokens.max or tokens.max_per_user was reached";
    pub tokens: Gauge = "tokens" [] "Tokens in memory; expired ones are evicted after some seconds";
    certificates: Labelled<Gauge> = "certificate_expiry_timestamp_seconds" ["names"]
        "Expiry of a server certificate in seconds since the Unix epoch";
    certificate_starts: Labelled<Gauge> = "certificate_start_timestamp_seconds" ["names"]
        "Start of the validity of a server certificate in seconds since the Unix epoch";
    reloads: Counters<1> = "config_reloads" ["outcome"]
        "Configuration reloads; after a `failure` the previous configuration is kept";
    last_reload_successful: Gauge = "config_last_reload_successful" []
        "1 if the last configuration reload succeeded, 0 if the previous configuration was kept";
    last_reload_timestamp: Gauge = "config_last_reload_success_timestamp_seconds" []
        "Time of the last successful configuration load in seconds since the Unix epoch";
    pub restart_pending: Gauge = "config_restart_pending" []
        "Number of changed options that become active only with a restart";
    pub users_unusable: Gauge = "users_unusable" []
        "1 if the users file could not be read and the previous users are kept, else 0";
    pub issuers_unusable: Gauge = "issuers_unusable" []
        "JWT issuers whose keys could not be fetched or read at the last attempt";
    pub accept_failures: Counter = "accept_failures" []
        "Connections not accepted because file descriptors or memory were exhausted";
    pub upstream_retries: Counter = "upstream_retries" []
        "Requests that were sent again because no byte was written, or because the method is safe. Attempts at a \
         different endpoint after a failed connection are not counted.";
    pub authorization_shadow_denials: Counter = "authorization_shadow_denials" []
        "Requests that no authorization rule allows, but that passed in shadow mode";
    limit_rules: Labelled<Counter> = "limit_rule_exceeded" ["rule"]
        "Requests above the limit of a rule of limits.rules; in shadow mode they were forwarded";
    pub panics: Counter = "panics" [] "Requests that ended with a panic";
    log_lines_dropped: Counter = "log_lines_dropped" [] "Log lines lost because an output did not keep up, or its disk was full";
    audit_lines_lost: Counter = "audit_lines_lost" []
        "Lines that an output of the audit log has lost; also counted as dropped log lines";
    spans_dropped: Counter = "trace_spans_dropped" []
        "Trace spans dropped because the queue was full or the collector did not accept them";
    spans_exported: Counter = "trace_spans_exported" [] "Trace spans that the collector accepted";
    connections_ended: Counters<1> = "connections_ended" ["cause"]
        "Client connections that the gateway closed or did not accept, by cause";
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut catalogue = MetricCatalogue::new();
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        catalogue.registry.register(BUILD.name, BUILD.help, build);
        catalogue.add_descriptors(&[BUILD]);
        let workers = WorkerCollector::default();
        catalogue.add_descriptors(worker_collector::DESCRIPTORS);
        catalogue.registry.register_collector(Box::new(workers.clone()));
        let mut process = Registry::default();
        catalogue.add_descriptors(process::DESCRIPTORS);
        process.register_collector(Box::new(ProcessCollector::new()));
        let metrics = Metrics::register(catalogue, process, workers);
        metrics.initialize_series();
        metrics
    }
}

const BUILD: MetricDescriptor = MetricDescriptor {
    name: "build",
    kind: MetricType::Info,
    labels: &["version"],
    help: "Version of the gateway; always 1",
};

impl Metrics {
    /// The counters of the current thread.
    pub fn worker(&self) -> WorkerMetrics {
        self.workers.for_current_thread()
    }

    /// The sums over all workers. Cheap enough to call once a second.
    pub fn totals(&self) -> MetricsTotals {
        self.workers.totals()
    }

    /// The requests by user and by address since the last call. For one reader.
    pub fn take_callers(&self) -> TakenCallers {
        self.workers.take_callers()
    }

    /// Descriptions of all exported metrics, sorted by name.
    pub fn descriptors(&self) -> Vec<MetricDescriptor> {
        let mut descriptors = self.descriptors.clone();
        descriptors.sort_by_key(MetricDescriptor::full_name);
        descriptors
    }

    /// Counts a connection that the gateway closed or did not accept.
    pub fn record_connection_end(&self, cause: CloseCause) {
        self.connections_ended.get_or_create(&[("cause", cause.as_str())]).inc();
    }

    /// The number of client connections that were refused for want of room.
    pub fn refused_connections(&self) -> u64 {
        let at_limit = self.connections_ended.get_or_create(&[("cause", CloseCause::ConnectionsLimit.as_str())]).get();
        at_limit + self.accept_failures.get()
    }

    /// The counter of a rule of `limits.rules`.
    pub fn limit_rule(&self, rule: &str) -> Counter {
        self.limit_rules.get_or_create(&vec![("rule", rule.to_owned())]).clone()
    }

    /// Counts a reload. If it is not `successful`, the previous configuration was kept.
    pub fn record_reload(&self, successful: bool) {
        let outcome = if successful { "success" } else { "failure" };
        self.reloads.get_or_create(&[("outcome", outcome)]).inc();
        if successful {
            self.record_successful_load();
        } else {
            self.last_reload_successful.set(0);
        }
    }

    /// Creates series with the value 0: `rate()` does not see the first event of a series that it creates.
    fn initialize_series(&self) {
        for outcome in ["success", "failure"] {
            drop(self.reloads.get_or_create(&[("outcome", outcome)]));
        }
        for cause in CloseCause::ALL {
            drop(self.connections_ended.get_or_create(&[("cause", cause.as_str())]));
        }
        // The gateway does not start with an invalid configuration.
        self.record_successful_load();
    }

    fn record_successful_load(&self) {
        self.last_reload_successful.set(1);
        let now = clock::since_epoch(SystemTime::now());
        self.last_reload_timestamp.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// Replaces the server certificates: the names of each, and the start and the end of its validity in seconds since
    /// the Unix epoch.
    pub fn set_certificates(&self, validities: &[(String, [i64; 2])]) {
        self.certificates.clear();
        self.certificate_starts.clear();
        for (names, [start, end]) in validities {
            let names = vec![("names", names.clone())];
            self.certificates.get_or_create(&names).set(*end);
            self.certificate_starts.get_or_create(&names).set(*start);
        }
    }

    /// All metrics as text, the response body of `/metrics`.
    pub fn encode(&self, format: ExpositionFormat) -> String {
        let count = |lines: usize| u64::try_from(lines).unwrap_or(u64::MAX);
        for (counter, total) in [
            (&self.log_lines_dropped, count(log::dropped_lines())),
            (&self.audit_lines_lost, count(log::lost_audit_lines())),
            (&self.spans_dropped, trace::dropped_spans()),
            (&self.spans_exported, trace::exported_spans()),
        ] {
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        format.encode(&[&self.registry, &self.process])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Method, StatusCode};

    use super::*;
    use crate::observability::phase::Phase;

    fn record(metrics: &Metrics, route: &str, status: StatusCode, reason: &'static str) {
        metrics.worker().route(route).record(&CompletedRequest {
            method: &Method::POST,
            status,
            reason,
            to_head: Some(Duration::from_millis(1)),
            total: Duration::from_millis(3),
            received: 7,
            sent: 11,
        });
    }

    fn sample_metrics() -> Metrics {
        let metrics = Metrics::default();
        record(&metrics, "query", StatusCode::OK, "");
        record(&metrics, "", StatusCode::NOT_FOUND, "not_found");
        std::thread::scope(|scope| {
            scope.spawn(|| record(&metrics, "query", StatusCode::OK, ""));
            scope.spawn(|| record(&metrics, "", StatusCode::NOT_FOUND, "not_found"));
        });
        let worker = metrics.worker();
        worker.route("query").record_upstream(Duration::from_millis(1));
        worker.record_phase(Phase::Verifier, AuthOutcome::Refused, Duration::from_millis(80));
        worker.record_handshake(TlsVersion::Tls13, true, Duration::from_millis(1));
        worker.record_handshake_failure(HandshakeFailure::Alert);
        let _open = worker.open_connection(Protocol::Http2);
        metrics.record_connection_end(CloseCause::AddressLimit);
        metrics.connections.inc();
        metrics.limit_rule("bots").inc();
        metrics.queries.record("sales", false, Duration::from_millis(1), 1);
        metrics.store.record_operation("fetch", true, Duration::from_millis(2));
        metrics.set_certificates(&[("a.test, b.test".into(), [1_800_000_000, 1_900_000_000])]);
        metrics.record_reload(false);
        let counts = EndpointCounts { in_flight: 1, open_connections: 2, responses: 3, ..EndpointCounts::default() };
        metrics.upstreams.add_endpoint(["default", "timbr", "10.0.0.1:8000"], true, &counts);
        metrics.upstreams.add_lookup_failures("default", "timbr", 0);
        metrics
    }

    #[test]
    fn counts_of_all_workers_are_summed_up() {
        let text = sample_metrics().encode(ExpositionFormat::OpenMetrics);
        for line in [
            "timbr_gateway_requests_total{route=\"query\",method=\"POST\",status=\"2xx\",reason=\"\"} 2",
            "timbr_gateway_requests_total{route=\"none\",method=\"POST\",status=\"4xx\",reason=\"not_found\"} 2",
            "timbr_gateway_rejections_total{reason=\"not_found\"} 2",
            "timbr_gateway_request_duration_seconds_bucket{le=\"0.0025\",route=\"query\"} 0",
            "timbr_gateway_request_duration_seconds_bucket{le=\"0.005\",route=\"query\"} 2",
            "timbr_gateway_request_duration_seconds_sum{route=\"query\"} 0.006",
            "timbr_gateway_upstream_to_head_duration_seconds_count{route=\"query\"} 1",
            "timbr_gateway_response_body_bytes_total{route=\"query\"} 22",
            "timbr_gateway_auth_step_duration_seconds_count{step=\"verifier\",outcome=\"refused\"} 1",
            "timbr_gateway_tls_handshakes_total{version=\"1.3\",resumed=\"true\"} 1",
            "timbr_gateway_handshake_failures_total{kind=\"client_alert\"} 1",
            "timbr_gateway_client_connections_opened_total{protocol=\"http/2\"} 1",
            "timbr_gateway_client_connections_speaking{protocol=\"http/2\"} 0",
            "timbr_gateway_connections_ended_total{cause=\"address_limit\"} 1",
            "timbr_gateway_client_connections 1",
            "timbr_gateway_store_operations_total{operation=\"fetch\",outcome=\"ok\"} 1",
            "timbr_gateway_certificate_expiry_timestamp_seconds{names=\"a.test, b.test\"} 1900000000",
            "timbr_gateway_certificate_start_timestamp_seconds{names=\"a.test, b.test\"} 1800000000",
            "timbr_gateway_config_reloads_total{outcome=\"failure\"} 1",
            "timbr_gateway_config_last_reload_successful 0",
            "# TYPE timbr_gateway_requests counter",
            "# TYPE process_cpu_seconds counter",
            "# EOF",
        ] {
            assert!(text.lines().any(|exported| exported == line), "{line} in {text}");
        }
        assert_eq!(text.matches("# EOF").count(), 1);
    }

    #[test]
    fn the_plain_text_format_names_counters_with_their_suffix() {
        let text = sample_metrics().encode(ExpositionFormat::PlainText);
        assert!(text.contains("# TYPE timbr_gateway_requests_total counter\n"), "{text}");
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    }

    /// By name, type and labels.
    #[test]
    fn the_catalogue_describes_exactly_what_is_exported() {
        let metrics = sample_metrics();
        let text = metrics.encode(ExpositionFormat::PlainText);
        let descriptors = metrics.descriptors();
        let mut exported: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        exported.sort_unstable();
        let type_of = |kind: MetricType| if kind == MetricType::Info { MetricType::Gauge } else { kind };
        let mut known: Vec<_> =
            descriptors.iter().map(|one| format!("{} {}", one.full_name(), type_of(one.kind).as_str())).collect();
        known.sort_unstable();
        assert_eq!(exported, known);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, rest) = line.split_once(['{', ' ']).expect("a name");
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let by = |name: &str| descriptors.iter().find(|one| one.full_name() == name);
            let one = by(name).or_else(|| by(base?)).unwrap_or_else(|| panic!("{name} is not described"));
            let labels = rest.split_once("} ").map_or("", |(labels, _)| labels);
            let mut labels: Vec<_> = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0)).collect();
            labels.retain(|label| *label != "le");
            assert_eq!(labels, one.labels, "{line}");
        }
    }
}
