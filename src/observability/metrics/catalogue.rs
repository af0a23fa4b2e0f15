//! What is exported, each once: its name, form, labels and meaning. The registry and `docs/metrics.md` are made of this.

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

/// Names of the gateway's own metrics begin so.
pub const PREFIX: &str = "timbr_gateway";

/// Values of labels, in the order of their names.
pub type Labels<const COUNT: usize> = [(&'static str, &'static str); COUNT];

/// Counters that differ in their labels.
pub type Counters<const COUNT: usize> = Family<Labels<COUNT>, Counter>;

/// The form of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How long things took, in buckets.
    Histogram,
    /// It is always 1, and says something by its labels.
    Info,
}

impl MetricKind {
    /// As the library calls it.
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

/// A metric, before it has a value.
#[derive(Clone, Copy, Debug)]
pub struct MetricDescriptor {
    /// Its name, without prefix and without what its form appends.
    pub name: &'static str,
    /// Its form.
    pub kind: MetricKind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
    /// Whether the name is not the gateway's own but one that all processes share.
    pub is_process_metric: bool,
}

impl MetricDescriptor {
    /// One of the gateway's own.
    pub const fn new(
        name: &'static str,
        kind: MetricKind,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> MetricDescriptor {
        MetricDescriptor { name, kind, labels, help, is_process_metric: false }
    }

    /// As Prometheus calls it.
    pub fn full_name(&self) -> String {
        let name =
            if self.is_process_metric { self.name.to_owned() } else { format!("{PREFIX}_{}", self.name) };
        match self.kind {
            MetricKind::Counter => name + "_total",
            MetricKind::Info => name + "_info",
            MetricKind::Gauge | MetricKind::Histogram => name,
        }
    }
}

impl MetricDescriptor {
    /// What it is counted in; empty for numbers of things.
    pub fn unit(&self) -> &'static str {
        ["seconds", "bytes"].into_iter().find(|unit| self.name.ends_with(unit)).unwrap_or_default()
    }
}

/// Registers and describes.
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

    /// With the buckets of [`DurationHistogram`](crate::observability::metrics::histogram::Durations).
    pub fn register_histograms<const COUNT: usize>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; COUNT],
        help: &'static str,
    ) -> Family<Labels<COUNT>, Histogram, fn() -> Histogram> {
        let histograms =
            Family::new_with_constructor((|| Histogram::new(bucket_bounds())) as fn() -> Histogram);
        self.descriptors.push(MetricDescriptor::new(name, MetricKind::Histogram, labels, help));
        self.registry.register(name, help, histograms.clone());
        histograms
    }

    /// One for each of what the configuration names.
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

    /// Values that differ in labels which are known only when they are told.
    pub fn register_family<L, M>(
        &mut self,
        name: &'static str,
        form: MetricKind,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Family<L, M>
    where
        L: Clone + Hash + Eq + EncodeLabelSet + fmt::Debug + Send + Sync + 'static,
        M: Default + EncodeMetric + TypedMetric + fmt::Debug + Send + Sync + 'static,
    {
        let family = Family::default();
        self.descriptors.push(MetricDescriptor::new(name, form, labels, help));
        self.registry.register(name, help, family.clone());
        family
    }

    /// Describes what a collector encodes.
    pub fn add_descriptors(&mut self, described: &[MetricDescriptor]) {
        self.descriptors.extend_from_slice(described);
    }
}
