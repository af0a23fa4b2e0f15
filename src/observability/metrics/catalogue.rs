//! Describes each exported metric once: name, kind, labels and help text. The Prometheus registry and `docs/metrics.md`
//! are generated from it; it does not know where values come from.

use std::fmt;
use std::hash::Hash;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::observability::metrics::histogram::bucket_bounds;

/// Prefix of the names of the gateway's own metrics.
pub const PREFIX: &str = "timbr_gateway";

/// Pairs of label name and value.
pub type Labels<const COUNT: usize> = [(&'static str, &'static str); COUNT];

/// One counter for each combination of label values.
pub type Counters<const COUNT: usize> = Family<Labels<COUNT>, Counter>;

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// A number that only grows.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// Durations in buckets.
    Histogram,
    /// Always 1; the labels carry the information.
    Info,
}

impl MetricKind {
    /// The corresponding type of the `prometheus_client` library.
    pub fn metric_type(self) -> MetricType {
        match self {
            MetricKind::Counter => MetricType::Counter,
            MetricKind::Gauge => MetricType::Gauge,
            MetricKind::Histogram => MetricType::Histogram,
            MetricKind::Info => MetricType::Info,
        }
    }
}

impl fmt::Display for MetricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
            MetricKind::Info => "info",
        })
    }
}

/// The description of a metric, without values.
#[derive(Clone, Copy, Debug)]
pub struct MetricDescriptor {
    /// Name without prefix and without the suffix of its kind.
    pub name: &'static str,
    /// Counter, gauge, histogram or info.
    pub kind: MetricKind,
    /// Label names, as they are exported.
    pub labels: &'static [&'static str],
    /// Help text.
    pub help: &'static str,
    /// True for a standard `process_…` metric, which has no prefix.
    pub is_process_metric: bool,
}

impl MetricDescriptor {
    /// Describes a metric of the gateway itself.
    pub const fn new(
        name: &'static str,
        kind: MetricKind,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> MetricDescriptor {
        MetricDescriptor { name, kind, labels, help, is_process_metric: false }
    }

    /// The name in Prometheus, with prefix and suffix.
    pub fn full_name(&self) -> String {
        let name = if self.is_process_metric { self.name.to_owned() } else { format!("{PREFIX}_{}", self.name) };
        match self.kind {
            MetricKind::Counter => name + "_total",
            MetricKind::Info => name + "_info",
            MetricKind::Gauge | MetricKind::Histogram => name,
        }
    }

    /// `seconds` or `bytes`, from the end of the name; empty for plain numbers.
    pub fn unit(&self) -> &'static str {
        ["seconds", "bytes"].into_iter().find(|unit| self.name.ends_with(unit)).unwrap_or_default()
    }
}

/// Registers metrics and collects their descriptions.
pub struct MetricCatalogue {
    pub registry: Registry,
    pub descriptors: Vec<MetricDescriptor>,
}

impl MetricCatalogue {
    pub fn new() -> MetricCatalogue {
        MetricCatalogue { registry: Registry::with_prefix(PREFIX), descriptors: Vec::new() }
    }

    pub fn register_gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        self.descriptors.push(MetricDescriptor::new(name, MetricKind::Gauge, &[], help));
        self.registry.register(name, help, gauge.clone());
        gauge
    }

    pub fn register_counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        let counter = Counter::default();
        self.descriptors.push(MetricDescriptor::new(name, MetricKind::Counter, &[], help));
        self.registry.register(name, help, counter.clone());
        counter
    }

    pub fn register_counters<const COUNT: usize>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; COUNT],
        help: &'static str,
    ) -> Counters<COUNT> {
        let counters = Counters::default();
        self.descriptors.push(MetricDescriptor::new(name, MetricKind::Counter, labels, help));
        self.registry.register(name, help, counters.clone());
        counters
    }

    /// Histograms with the buckets of [`Histogram`](crate::observability::metrics::Histogram).
    pub fn register_histograms<const COUNT: usize>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; COUNT],
        help: &'static str,
    ) -> Family<Labels<COUNT>, Histogram, fn() -> Histogram> {
        let histograms = Family::new_with_constructor((|| Histogram::new(bucket_bounds())) as fn() -> Histogram);
        self.descriptors.push(MetricDescriptor::new(name, MetricKind::Histogram, labels, help));
        self.registry.register(name, help, histograms.clone());
        histograms
    }

    /// Gauges whose label values come from the configuration.
    pub fn register_gauges(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Family<Vec<(&'static str, String)>, Gauge> {
        let gauges = Family::default();
        self.descriptors.push(MetricDescriptor::new(name, MetricKind::Gauge, labels, help));
        self.registry.register(name, help, gauges.clone());
        gauges
    }

    /// Metrics whose label values are known only when they are set.
    pub fn register_family<L, M>(
        &mut self,
        name: &'static str,
        kind: MetricKind,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Family<L, M>
    where
        L: Clone + Hash + Eq + EncodeLabelSet + fmt::Debug + Send + Sync + 'static,
        M: Default + EncodeMetric + TypedMetric + fmt::Debug + Send + Sync + 'static,
    {
        let family = Family::default();
        self.descriptors.push(MetricDescriptor::new(name, kind, labels, help));
        self.registry.register(name, help, family.clone());
        family
    }

    /// Adds descriptions of metrics that a collector encodes.
    pub fn add_descriptors(&mut self, descriptors: &[MetricDescriptor]) {
        self.descriptors.extend_from_slice(descriptors);
    }
}
