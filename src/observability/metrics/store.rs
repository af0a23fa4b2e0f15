//! How the store of tokens does, where there is one behind the memory.

use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::observability::metrics::catalogue::{Counters, Labels, MetricCatalogue};

/// A handle; clones count together.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    /// 1 while it answers.
    pub up: Gauge,
    operations: Counters<2>,
    durations: Family<Labels<1>, Histogram, fn() -> Histogram>,
}

impl StoreMetrics {
    pub(super) fn new(of: &mut MetricCatalogue) -> StoreMetrics {
        StoreMetrics {
            up: of.register_gauge("store_up", "1 while the token store answers, 0 while it does not"),
            operations: of.register_counters(
                "store_operations",
                &["operation", "outcome"],
                "What the store behind the memory was asked for, and whether it answered: `ok` or `unavailable`",
            ),
            durations: of.register_histograms(
                "store_operation_duration_seconds",
                &["operation"],
                "What the store behind the memory took to answer",
            ),
        }
    }

    /// It answered, or not, after so long.
    pub fn record_operation(&self, operation: &'static str, answered: bool, span: Duration) {
        let outcome = if answered { "ok" } else { "unavailable" };
        self.operations.get_or_create(&[("operation", operation), ("outcome", outcome)]).inc();
        self.durations.get_or_create(&[("operation", operation)]).observe(span.as_secs_f64());
    }
}

impl Default for StoreMetrics {
    /// Of a store that nobody watches.
    fn default() -> StoreMetrics {
        StoreMetrics::new(&mut MetricCatalogue::new())
    }
}
