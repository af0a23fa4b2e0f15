//! What the gateway counts, and how Prometheus reads it.
//!
//! Metrics belong to a running gateway, not to the process: each has its own registry. What happens with each request is
//! counted by [`Worker`], in cells of the thread's own that are summed up when somebody reads them; what is rare has one
//! counter for all.

mod catalogue;
mod close_cause;
mod exposition;
mod histogram;
mod process;
mod route;
mod store;
mod upstreams;
mod worker;
mod worker_collector;

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::observability::log;
use crate::observability::trace;

use catalogue::{Counters, MetricCatalogue};
use process::ProcessCollector;
use worker_collector::WorkerCollector;

pub use catalogue::{MetricDescriptor, MetricKind};
pub use close_cause::CloseCause;
pub use exposition::ExpositionFormat;
pub use histogram::Histogram;
pub use route::{CompletedRequest, ResponseCount, RouteTotals};
pub use store::StoreMetrics;
pub use upstreams::{EndpointMetrics, UpstreamMetrics};
pub use worker::{
    AuthOutcome, AuthPhase, HandshakeFailure, MetricsTotals, OpenConnectionGuard, Protocol, RouteRecorder,
    TlsVersion, WorkerMetrics,
};

/// Counters and gauges.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Without the gateway's prefix.
    process: Registry,
    descriptors: Vec<MetricDescriptor>,
    workers: WorkerCollector,
    /// Client connections that are open.
    pub connections: Gauge,
    /// Requests that are being answered.
    pub requests_in_flight: Gauge,
    /// Requests of these that wait for `upstream.requests`.
    pub requests_queued: Gauge,
    /// 1 while certificate files cannot be used, and what was read before stays in use.
    pub certificates_unusable: Gauge,
    /// How the token store does.
    pub store: StoreMetrics,
    /// Tokens in memory.
    pub tokens: Gauge,
    /// When certificates end, by the names that they are for.
    certificates: Family<Vec<(&'static str, String)>, Gauge>,
    reloads: Counters<1>,
    last_reload_successful: Gauge,
    last_reload_timestamp: Gauge,
    /// 1 while the users file cannot be used, and what was read before stays in use.
    pub users_unusable: Gauge,
    /// Token issuers whose keys could not be fetched or read the last time.
    pub issuers_unusable: Gauge,
    /// Connections that could not be accepted for want of descriptors or memory.
    pub accept_failures: Counter,
    /// How the backends are.
    pub upstreams: UpstreamMetrics,
    /// Requests that were sent to the backend a second time, as the first time did provably no harm.
    pub upstream_retries: Counter,
    /// Requests that no rule allows, and that passed because rules are only tried out.
    pub authorization_shadow_denials: Counter,
    /// Requests that a defect of the gateway ended.
    pub panics: Counter,
    /// Lines of the log that nobody took in time.
    log_lines_dropped: Counter,
    spans_dropped: Counter,
    spans_exported: Counter,
    connections_ended: Counters<1>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut of = MetricCatalogue::new();
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        of.registry.register("build", BUILD.help, build);
        of.add_descriptors(&[BUILD]);
        let workers = WorkerCollector::default();
        of.add_descriptors(worker_collector::DESCRIPTORS);
        of.registry.register_collector(Box::new(workers.clone()));
        let mut process = Registry::default();
        of.add_descriptors(process::DESCRIPTORS);
        process.register_collector(Box::new(ProcessCollector::new()));
        let connections = of.register_gauge("client_connections", "Client connections that are open");
        let requests_in_flight = of
            .register_gauge("requests_in_flight", "Requests that are being answered, their bodies included");
        let requests_queued = of.register_gauge(
            "requests_queued",
            "Requests of these that wait for their turn, where upstream.requests limits them",
        );
        let certificates_unusable = of.register_gauge(
            "certificates_unusable",
            "1 while certificate files cannot be used, and what was read before stays in use",
        );
        let store = StoreMetrics::new(&mut of);
        let tokens =
            of.register_gauge("tokens", "Tokens that are kept in memory; ended ones for some seconds more");
        let certificates = of.register_gauges(
            "certificate_expiry_timestamp_seconds",
            &["names"],
            "When a certificate that clients are shown ends, in seconds of Unix time",
        );
        let reloads = of.register_counters(
            "config_reloads",
            &["outcome"],
            "Reloads of the configuration: `success`, or `failure`, where what was in force stayed",
        );
        let last_reload_successful = of.register_gauge(
            "config_last_reload_successful",
            "1 if the configuration could be used when it was read last, 0 if what was read before is in force",
        );
        let last_reload_success = of.register_gauge(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read, in seconds of Unix time",
        );
        let users_unusable = of.register_gauge(
            "users_unusable",
            "1 while the users file cannot be used, and what was read before stays in use",
        );
        let issuers_unusable = of.register_gauge(
            "issuers_unusable",
            "Token issuers whose keys could not be fetched or read the last time",
        );
        let accept_failures = of.register_counter(
            "accept_failures",
            "Connections not accepted for want of descriptors or memory",
        );
        let upstream_retries =
            of.register_counter("upstream_retries", "Requests sent to the upstream a second time");
        let upstreams = UpstreamMetrics::new(&mut of);
        let authorization_shadow_denials = of.register_counter(
            "authorization_shadow_denials",
            "Requests that no rule allows, and that passed because rules are only tried out",
        );
        let panics = of.register_counter("panics", "Requests that a defect of the gateway ended");
        let log_lines_dropped =
            of.register_counter("log_lines_dropped", "Lines of the log that nobody took in time");
        let spans_dropped = of.register_counter(
            "trace_spans_dropped",
            "Spans of traces that were not taken in time, or by no receiver",
        );
        let spans_exported =
            of.register_counter("trace_spans_exported", "Spans of traces that the receiver took");
        let connections_ended = of.register_counters(
            "connections_ended",
            &["cause"],
            "Client connections that the gateway ended or did not take, by cause",
        );
        let metrics = Metrics {
            registry: of.registry,
            process,
            descriptors: of.descriptors,
            workers,
            connections,
            requests_in_flight,
            requests_queued,
            certificates_unusable,
            store,
            tokens,
            certificates,
            reloads,
            last_reload_successful,
            last_reload_timestamp: last_reload_success,
            users_unusable,
            issuers_unusable,
            accept_failures,
            upstreams,
            upstream_retries,
            authorization_shadow_denials,
            panics,
            log_lines_dropped,
            spans_dropped,
            spans_exported,
            connections_ended,
        };
        metrics.initialize_series();
        metrics
    }
}

const BUILD: MetricDescriptor =
    MetricDescriptor::new("build", MetricKind::Info, &["version"], "Which gateway this is; always 1");

impl Metrics {
    /// Where the calling thread counts. The same cells each time.
    pub fn worker(&self) -> WorkerMetrics {
        self.workers.for_current_thread()
    }

    /// What all workers have counted so far. Cheap enough for once a second.
    pub fn totals(&self) -> MetricsTotals {
        self.workers.totals()
    }

    /// What is exported, in the order of names.
    pub fn descriptors(&self) -> Vec<MetricDescriptor> {
        let mut described = self.descriptors.clone();
        described.sort_by_key(MetricDescriptor::full_name);
        described
    }

    /// A connection was ended or not taken.
    pub fn record_connection_end(&self, cause: CloseCause) {
        self.connections_ended.get_or_create(&[("cause", cause.as_str())]).inc();
    }

    /// The configuration was read again: whether it could be used.
    pub fn record_reload(&self, successful: bool) {
        let outcome = if successful { "success" } else { "failure" };
        self.reloads.get_or_create(&[("outcome", outcome)]).inc();
        if successful {
            self.record_successful_load();
        } else {
            self.last_reload_successful.set(0);
        }
    }

    /// A series that comes into being with its first event hides that event from `rate()`.
    fn initialize_series(&self) {
        for outcome in ["success", "failure"] {
            drop(self.reloads.get_or_create(&[("outcome", outcome)]));
        }
        for cause in CloseCause::ALL {
            drop(self.connections_ended.get_or_create(&[("cause", cause.as_str())]));
        }
        // What cannot be read does not start.
        self.record_successful_load();
    }

    fn record_successful_load(&self) {
        self.last_reload_successful.set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_reload_timestamp.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// The certificates that clients are shown: the names that each is for, and when it ends, in seconds of Unix time.
    pub fn set_certificates(&self, ends: &[(String, i64)]) {
        self.certificates.clear();
        for (names, end) in ends {
            self.certificates.get_or_create(&vec![("names", names.clone())]).set(*end);
        }
    }

    /// All of them as text.
    pub fn encode(&self, format: ExpositionFormat) -> String {
        let dropped = u64::try_from(log::dropped_lines()).unwrap_or(u64::MAX);
        self.log_lines_dropped.inc_by(dropped.saturating_sub(self.log_lines_dropped.get()));
        for (counter, total) in
            [(&self.spans_dropped, trace::dropped_spans()), (&self.spans_exported, trace::exported_spans())]
        {
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

    fn note(metrics: &Metrics, route: &str, status: StatusCode, reason: &'static str) {
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
        note(&metrics, "query", StatusCode::OK, "");
        note(&metrics, "", StatusCode::NOT_FOUND, "not_found");
        std::thread::scope(|scope| {
            scope.spawn(|| note(&metrics, "query", StatusCode::OK, ""));
            scope.spawn(|| note(&metrics, "", StatusCode::NOT_FOUND, "not_found"));
        });
        let worker = metrics.worker();
        worker.route("query").record_upstream(Duration::from_millis(1));
        worker.record_phase(AuthPhase::Verifier, AuthOutcome::Refused, Duration::from_millis(80));
        worker.record_handshake(TlsVersion::Tls13, true, Duration::from_millis(1));
        worker.record_handshake_failure(HandshakeFailure::Alert);
        let _open = worker.open_connection(Protocol::Http2);
        metrics.record_connection_end(CloseCause::AddressLimit);
        metrics.connections.inc();
        metrics.store.record_operation("fetch", true, Duration::from_millis(2));
        metrics.set_certificates(&[("a.test, b.test".into(), 1_900_000_000)]);
        metrics.record_reload(false);
        let line = EndpointMetrics {
            backend: "timbr".into(),
            address: "10.0.0.1:8000".into(),
            is_usable: true,
            in_flight: 1,
            open_connections: 2,
            responses: 3,
            failures: 0,
            ejections: 0,
        };
        metrics.upstreams.update(&[line], &[("timbr".into(), 0)]);
        metrics
    }

    #[test]
    fn what_workers_count_is_told_together() {
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
            "timbr_gateway_config_reloads_total{outcome=\"failure\"} 1",
            "timbr_gateway_config_last_reload_successful 0",
            "# TYPE timbr_gateway_requests counter",
            "# TYPE process_cpu_seconds counter",
            "# EOF",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} in {text}");
        }
        assert_eq!(text.matches("# EOF").count(), 1);
    }

    #[test]
    fn the_plain_form_names_counters_by_what_they_show() {
        let text = sample_metrics().encode(ExpositionFormat::PlainText);
        assert!(text.contains("# TYPE timbr_gateway_requests_total counter\n"), "{text}");
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    }

    /// What the catalogue says is what is exported, by name, form and labels.
    #[test]
    fn the_catalogue_is_true() {
        let metrics = sample_metrics();
        let text = metrics.encode(ExpositionFormat::PlainText);
        let described = metrics.descriptors();
        let mut told: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        told.sort_unstable();
        let form =
            |form: MetricKind| if form == MetricKind::Info { "gauge".to_owned() } else { form.to_string() };
        let mut known: Vec<_> =
            described.iter().map(|one| format!("{} {}", one.full_name(), form(one.kind))).collect();
        known.sort_unstable();
        assert_eq!(told, known);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, rest) = line.split_once(['{', ' ']).expect("a name");
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let by = |name: &str| described.iter().find(|one| one.full_name() == name);
            let one = by(name).or_else(|| by(base?)).unwrap_or_else(|| panic!("{name} is not described"));
            let labels = rest.split_once("} ").map_or("", |(labels, _)| labels);
            let mut labels: Vec<_> =
                labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0)).collect();
            labels.retain(|label| *label != "le");
            assert_eq!(labels, one.labels, "{line}");
        }
    }
}
