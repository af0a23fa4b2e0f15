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

use crate::observability::metrics::histogram::bounds;

/// Names of the gateway's own metrics begin so.
pub const PREFIX: &str = "timbr_gateway";

/// Values of labels, in the order of their names.
pub type Labels<const COUNT: usize> = [(&'static str, &'static str); COUNT];

/// Counters that differ in their labels.
pub type Counters<const COUNT: usize> = Family<Labels<COUNT>, Counter>;

/// The form of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How long things took, in buckets.
    Histogram,
    /// It is always 1, and says something by its labels.
    Info,
}

impl Form {
    /// As the library calls it.
    pub fn metric_type(self) -> MetricType {
        match self {
            Form::Counter => MetricType::Counter,
            Form::Gauge => MetricType::Gauge,
            Form::Histogram => MetricType::Histogram,
            Form::Info => MetricType::Info,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Counter => "counter",
            Form::Gauge => "gauge",
            Form::Histogram => "histogram",
            Form::Info => "info",
        })
    }
}

/// A metric, before it has a value.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its name, without prefix and without what its form appends.
    pub name: &'static str,
    /// Its form.
    pub form: Form,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
    /// Whether the name is not the gateway's own but one that all processes share.
    pub of_the_process: bool,
}

impl Described {
    /// One of the gateway's own.
    pub const fn new(
        name: &'static str,
        form: Form,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Described {
        Described { name, form, labels, help, of_the_process: false }
    }

    /// As Prometheus calls it.
    pub fn full_name(&self) -> String {
        let name = if self.of_the_process { self.name.to_owned() } else { format!("{PREFIX}_{}", self.name) };
        match self.form {
            Form::Counter => name + "_total",
            Form::Info => name + "_info",
            Form::Gauge | Form::Histogram => name,
        }
    }
}

impl Described {
    /// What it is counted in; empty for numbers of things.
    pub fn unit(&self) -> &'static str {
        ["seconds", "bytes"].into_iter().find(|unit| self.name.ends_with(unit)).unwrap_or_default()
    }
}

/// Registers and describes.
pub struct Catalogue {
    pub registry: Registry,
    pub described: Vec<Described>,
}

impl Catalogue {
    pub fn new() -> Catalogue {
        Catalogue { registry: Registry::with_prefix(PREFIX), described: Vec::new() }
    }

    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        self.described.push(Described::new(name, Form::Gauge, &[], help));
        self.registry.register(name, help, gauge.clone());
        gauge
    }

    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        let counter = Counter::default();
        self.described.push(Described::new(name, Form::Counter, &[], help));
        self.registry.register(name, help, counter.clone());
        counter
    }

    pub fn counters<const COUNT: usize>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; COUNT],
        help: &'static str,
    ) -> Counters<COUNT> {
        let counters = Counters::default();
        self.described.push(Described::new(name, Form::Counter, labels, help));
        self.registry.register(name, help, counters.clone());
        counters
    }

    /// With the buckets of [`Durations`](crate::observability::metrics::histogram::Durations).
    pub fn histograms<const COUNT: usize>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; COUNT],
        help: &'static str,
    ) -> Family<Labels<COUNT>, Histogram, fn() -> Histogram> {
        let histograms = Family::new_with_constructor((|| Histogram::new(bounds())) as fn() -> Histogram);
        self.described.push(Described::new(name, Form::Histogram, labels, help));
        self.registry.register(name, help, histograms.clone());
        histograms
    }

    /// One for each of what the configuration names.
    pub fn gauges(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Family<Vec<(&'static str, String)>, Gauge> {
        let gauges = Family::default();
        self.described.push(Described::new(name, Form::Gauge, labels, help));
        self.registry.register(name, help, gauges.clone());
        gauges
    }

    /// Values that differ in labels which are known only when they are told.
    pub fn family<L, M>(
        &mut self,
        name: &'static str,
        form: Form,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Family<L, M>
    where
        L: Clone + Hash + Eq + EncodeLabelSet + fmt::Debug + Send + Sync + 'static,
        M: Default + EncodeMetric + TypedMetric + fmt::Debug + Send + Sync + 'static,
    {
        let family = Family::default();
        self.described.push(Described::new(name, form, labels, help));
        self.registry.register(name, help, family.clone());
        family
    }

    /// Describes what a collector encodes.
    pub fn collected(&mut self, described: &[Described]) {
        self.described.extend_from_slice(described);
    }
}
