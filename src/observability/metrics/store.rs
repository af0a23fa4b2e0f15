//! Metrics of the persistent token store, if one is configured.

use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::observability::metrics::catalogue::{Counters, Labels, MetricCatalogue};
use crate::observability::metrics::histogram::bucket_bounds;

/// Clones share the same metrics.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    /// 1 while the store responds.
    pub up: Gauge,
    operations: Counters<2>,
    durations: Family<Labels<1>, Histogram, fn() -> Histogram>,
}

impl StoreMetrics {
    pub(super) fn new(catalogue: &mut MetricCatalogue) -> StoreMetrics {
        let metrics = StoreMetrics {
            up: catalogue.register("store_up", &[], "1 while the token store responds, otherwise 0"),
            operations: catalogue.register(
                "store_operations",
                &["operation", "outcome"],
                "Operations of the persistent token store; `outcome` is `ok` or `unavailable`",
            ),
            durations: catalogue.register_metric(
                "store_operation_duration_seconds",
                &["operation"],
                "Duration of operations of the persistent token store",
                Family::new_with_constructor(|| Histogram::new(bucket_bounds())),
            ),
        };
        // `rate()` does not see the first event of a series that it creates.
        drop(metrics.operations.get_or_create(&[("operation", "revoke"), ("outcome", "unavailable")]));
        metrics
    }

    /// Records the result and duration of an operation.
    pub fn record_operation(&self, operation: &'static str, successful: bool, duration: Duration) {
        let outcome = if successful { "ok" } else { "unavailable" };
        self.operations.get_or_create(&[("operation", operation), ("outcome", outcome)]).inc();
        self.durations.get_or_create(&[("operation", operation)]).observe(duration.as_secs_f64());
    }
}

impl Default for StoreMetrics {
    /// Metrics that are not exported.
    fn default() -> StoreMetrics {
        StoreMetrics::new(&mut MetricCatalogue::new())
    }
}
