//! What the gateway counts, and how Prometheus reads it.
//!
//! Metrics belong to a running gateway, not to the process: each has its own registry.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::telemetry;

/// Counters and gauges.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Client connections that are open.
    pub connections: Gauge,
    /// Requests that are being answered.
    pub requests_in_flight: Gauge,
    /// 1 while certificate files cannot be used, and what was read before stays in use.
    pub certificates_unusable: Gauge,
    /// 1 while the token store answers.
    pub store_up: Gauge,
    /// 1 while the users file cannot be used, and what was read before stays in use.
    pub users_unusable: Gauge,
    /// Token issuers whose keys could not be fetched or read the last time.
    pub issuers_unusable: Gauge,
    /// Connections that could not be accepted for want of descriptors or memory.
    pub accept_failures: Counter,
    /// Requests that were sent to the backend a second time, as the first time did provably no harm.
    pub upstream_retries: Counter,
    /// Requests that no rule allows, and that passed because rules are only tried out.
    pub authorization_shadow_denials: Counter,
    /// Requests that a defect of the gateway ended.
    pub panics: Counter,
    /// Lines of the log that nobody took in time.
    log_lines_dropped: Counter,
    rejections: Family<Reason, Counter>,
    connections_ended: Family<Ending, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ending {
    cause: &'static str,
}

/// Why the gateway ended a client's connection, or did not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// `limits.connections`.
    Connections,
    /// `limits.connections_per_address`.
    Address,
    /// `limits.requests_per_connection`.
    Requests,
    /// `timeouts.connection_age`.
    Age,
    /// The TLS handshake failed.
    HandshakeFailed,
    /// `timeouts.handshake`.
    HandshakeTimeout,
    /// `timeouts.header`.
    HeaderTimeout,
    /// `timeouts.idle`.
    IdleTimeout,
    /// `timeouts.write`.
    WriteTimeout,
    /// `limits.control_frames`.
    ControlFrames,
    /// `limits.resets`, or another count by which HTTP/2 tells abuse.
    Resets,
}

impl Cause {
    fn word(self) -> &'static str {
        match self {
            Cause::Connections => "connections_limit",
            Cause::Address => "address_limit",
            Cause::Requests => "requests_limit",
            Cause::Age => "age",
            Cause::HandshakeFailed => "handshake_failed",
            Cause::HandshakeTimeout => "handshake_timeout",
            Cause::HeaderTimeout => "header_timeout",
            Cause::IdleTimeout => "idle_timeout",
            Cause::WriteTimeout => "write_timeout",
            Cause::ControlFrames => "control_frames",
            Cause::Resets => "resets",
        }
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("timbr_gateway");
        let connections = Gauge::default();
        registry.register("client_connections", "Client connections that are open", connections.clone());
        let requests_in_flight = Gauge::default();
        registry.register(
            "requests_in_flight",
            "Requests that are being answered, their bodies included",
            requests_in_flight.clone(),
        );
        let certificates_unusable = Gauge::default();
        registry.register(
            "certificates_unusable",
            "1 while certificate files cannot be used, and what was read before stays in use",
            certificates_unusable.clone(),
        );
        let store_up = Gauge::default();
        registry.register(
            "store_up",
            "1 while the token store answers, 0 while it does not",
            store_up.clone(),
        );
        let users_unusable = Gauge::default();
        registry.register(
            "users_unusable",
            "1 while the users file cannot be used, and what was read before stays in use",
            users_unusable.clone(),
        );
        let issuers_unusable = Gauge::default();
        registry.register(
            "issuers_unusable",
            "Token issuers whose keys could not be fetched or read the last time",
            issuers_unusable.clone(),
        );
        let mut counter = |name, help| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let accept_failures =
            counter("accept_failures", "Connections not accepted for want of descriptors or memory");
        let upstream_retries = counter("upstream_retries", "Requests sent to the upstream a second time");
        let authorization_shadow_denials = counter(
            "authorization_shadow_denials",
            "Requests that no rule allows, and that passed because rules are only tried out",
        );
        let panics = counter("panics", "Requests that a defect of the gateway ended");
        let log_lines_dropped = counter("log_lines_dropped", "Lines of the log that nobody took in time");
        let rejections = Family::default();
        registry.register("rejections", "Requests that the gateway refused, by reason", rejections.clone());
        let connections_ended = Family::default();
        registry.register(
            "connections_ended",
            "Client connections that the gateway ended or did not take, by cause",
            connections_ended.clone(),
        );
        Metrics {
            registry,
            connections,
            requests_in_flight,
            certificates_unusable,
            store_up,
            users_unusable,
            issuers_unusable,
            accept_failures,
            upstream_retries,
            authorization_shadow_denials,
            panics,
            log_lines_dropped,
            rejections,
            connections_ended,
        }
    }
}

impl Metrics {
    /// A request was refused.
    pub fn rejected(&self, reason: &'static str) {
        self.rejections.get_or_create(&Reason { reason }).inc();
    }

    /// A connection was ended or not taken.
    pub fn connection_ended(&self, cause: Cause) {
        self.connections_ended.get_or_create(&Ending { cause: cause.word() }).inc();
    }

    /// All of them as OpenMetrics text.
    pub fn text(&self) -> String {
        let dropped = u64::try_from(telemetry::dropped_lines()).unwrap_or(u64::MAX);
        self.log_lines_dropped.inc_by(dropped.saturating_sub(self.log_lines_dropped.get()));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing into memory does not fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::default();
        metrics.rejected("not_found");
        metrics.rejected("not_found");
        metrics.connection_ended(Cause::Address);
        metrics.connections.inc();
        let text = metrics.text();
        for line in [
            "timbr_gateway_rejections_total{reason=\"not_found\"} 2",
            "timbr_gateway_connections_ended_total{cause=\"address_limit\"} 1",
            "timbr_gateway_client_connections 1",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
