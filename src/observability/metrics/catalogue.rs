//! Describes each exported metric once: name, kind, labels and help text. The Prometheus registry and `docs/metrics.md`
//! are generated from it; it does not know where values come from.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

/// Prefix of the names of the gateway's own metrics.
pub const PREFIX: &str = "timbr_gateway";

/// Pairs of label name and value.
pub type Labels<const COUNT: usize> = [(&'static str, &'static str); COUNT];

/// One counter for each combination of label values.
pub type Counters<const COUNT: usize> = Family<Labels<COUNT>, Counter>;

/// Metrics whose label values are known only when they are set.
pub type Labelled<M> = Family<Vec<(&'static str, String)>, M>;

/// The description of a metric, without values.
#[derive(Clone, Copy, Debug)]
pub struct MetricDescriptor {
    /// Name without prefix and without the suffix of its kind.
    pub name: &'static str,
    /// Counter, gauge, histogram or info.
    pub kind: MetricType,
    /// Label names, as they are exported.
    pub labels: &'static [&'static str],
    /// Help text.
    pub help: &'static str,
}

impl MetricDescriptor {
    /// Writes the header of the metric, whose values follow.
    pub fn start<'a>(&self, encoder: &'a mut DescriptorEncoder<'_>) -> Result<MetricEncoder<'a>, fmt::Error> {
        encoder.encode_descriptor(self.name, self.help, None, self.kind)
    }

    /// The name in Prometheus, with prefix and suffix. The standard `process_…` metrics have no prefix.
    pub fn full_name(&self) -> String {
        let is_standard = self.name.starts_with("process_");
        let name = if is_standard { self.name.to_owned() } else { format!("{PREFIX}_{}", self.name) };
        match self.kind {
            MetricType::Counter => name + "_total",
            MetricType::Info => name + "_info",
            _ => name,
        }
    }

    /// `seconds` or `bytes`, from the end of the name; empty for plain numbers.
    pub fn unit(&self) -> &'static str {
        ["seconds", "bytes"].into_iter().find(|unit| self.name.ends_with(unit)).unwrap_or_default()
    }
}

/// Declares the metrics that a collector encodes: a constant for each, and the list of all.
macro_rules! collected_metrics {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            const $constant: MetricDescriptor =
                MetricDescriptor { name: $name, kind: MetricType::$kind, labels: &[$($label),*], help: $help };
        )*

        /// Descriptions of these metrics.
        pub const DESCRIPTORS: &[MetricDescriptor] = &[$($constant),*];
    };
}
pub(super) use collected_metrics;

/// Registers metrics and collects their descriptions.
pub struct MetricCatalogue {
    pub registry: Registry,
    pub descriptors: Vec<MetricDescriptor>,
}

impl MetricCatalogue {
    pub fn new() -> MetricCatalogue {
        MetricCatalogue { registry: Registry::with_prefix(PREFIX), descriptors: Vec::new() }
    }

    /// Registers a metric that starts without values.
    pub fn register<M>(&mut self, name: &'static str, labels: &'static [&'static str], help: &'static str) -> M
    where
        M: EncodeMetric + TypedMetric + Clone + Default + fmt::Debug + Send + Sync + 'static,
    {
        self.register_metric(name, labels, help, M::default())
    }

    /// Registers an existing metric. Its clones share the values.
    pub fn register_metric<M>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        metric: M,
    ) -> M
    where
        M: EncodeMetric + TypedMetric + Clone + fmt::Debug + Send + Sync + 'static,
    {
        self.descriptors.push(MetricDescriptor { name, kind: M::TYPE, labels, help });
        self.registry.register(name, help, metric.clone());
        metric
    }

    /// Adds descriptions of metrics that a collector encodes.
    pub fn add_descriptors(&mut self, descriptors: &[MetricDescriptor]) {
        self.descriptors.extend_from_slice(descriptors);
    }
}
