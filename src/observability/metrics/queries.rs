//! Metrics of statements by ontology, while the query journal is on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

use crate::observability::metrics::catalogue::{Labelled, MetricCatalogue};

/// Maximum number of ontologies with series of their own.
const MAX_ONTOLOGIES: usize = 50;

/// The label of all other ontologies. Only a successful statement adds an ontology.
const OTHER: &str = "other";

/// The label of statements that name no ontology.
const NONE: &str = "none";

type Seconds = Counter<f64, AtomicU64>;

/// Clones share the same metrics.
#[derive(Clone, Debug)]
pub struct QueryMetrics {
    counts: Labelled<Counter>,
    durations: Labelled<Seconds>,
    bytes: Labelled<Counter>,
    ontologies: Arc<Mutex<HashMap<Box<str>, OntologyCounters>>>,
}

#[derive(Clone, Debug)]
struct OntologyCounters {
    ok: Counter,
    error: Counter,
    duration: Seconds,
    bytes: Counter,
}

impl QueryMetrics {
    pub(super) fn new(catalogue: &mut MetricCatalogue) -> QueryMetrics {
        QueryMetrics {
            counts: catalogue.register(
                "queries",
                &["ontology", "outcome"],
                "Statements that ended, while journal.enabled is set; `outcome` is `ok` or `error`. An ontology has its own \
                 label from its first `ok` on, if there are fewer than 50; the others are `other`.",
            ),
            durations: catalogue.register(
                "query_duration_seconds",
                &["ontology"],
                "Sum of the durations of these statements, to the end of the response",
            ),
            bytes: catalogue.register(
                "query_response_bytes",
                &["ontology"],
                "Bytes of the response bodies of these statements",
            ),
            ontologies: Arc::default(),
        }
    }

    /// Counts a statement that has ended.
    pub fn record(&self, ontology: &str, is_error: bool, duration: Duration, sent: u64) {
        let mut ontologies = self.ontologies.lock();
        let has_room = !is_error && ontologies.len() < MAX_ONTOLOGIES;
        let label = match ontology {
            "" => NONE,
            known if has_room || ontologies.contains_key(known) => known,
            _ => OTHER,
        };
        if !ontologies.contains_key(label) {
            ontologies.insert(label.into(), self.counters(label));
        }
        let counters = &ontologies[label];
        if is_error {
            counters.error.inc()
        } else {
            counters.ok.inc()
        };
        counters.duration.inc_by(duration.as_secs_f64());
        counters.bytes.inc_by(sent);
    }

    fn counters(&self, ontology: &str) -> OntologyCounters {
        let labels = vec![("ontology", ontology.to_owned())];
        let with_outcome = |outcome: &str| [labels.clone(), vec![("outcome", outcome.to_owned())]].concat();
        // One statement each, as each one holds a lock of the family.
        let ok = self.counts.get_or_create(&with_outcome("ok")).clone();
        let error = self.counts.get_or_create(&with_outcome("error")).clone();
        let duration = self.durations.get_or_create(&labels).clone();
        let bytes = self.bytes.get_or_create(&labels).clone();
        OntologyCounters { ok, error, duration, bytes }
    }
}

impl Default for QueryMetrics {
    /// Metrics that are not exported.
    fn default() -> QueryMetrics {
        QueryMetrics::new(&mut MetricCatalogue::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_labels_is_bounded_and_only_success_adds_one() {
        let metrics = QueryMetrics::default();
        let count = |ontology: &str, outcome: &str| {
            let labels = vec![("ontology", ontology.to_owned()), ("outcome", outcome.to_owned())];
            metrics.counts.get(&labels).map(|counter| counter.get())
        };
        metrics.record("invented", true, Duration::ZERO, 0);
        metrics.record("", false, Duration::ZERO, 0);
        for number in 0..1000 {
            metrics.record(&format!("ontology-{number}"), false, Duration::from_millis(500), 3);
        }
        metrics.record("ontology-0", true, Duration::ZERO, 0);
        assert!(metrics.ontologies.lock().len() <= MAX_ONTOLOGIES);
        assert_eq!(
            (count("invented", "error"), count("none", "ok"), count("other", "error")),
            (None, Some(1), Some(1))
        );
        assert_eq!((count("ontology-0", "ok"), count("ontology-0", "error")), (Some(1), Some(1)));
        let others = 1000 - (MAX_ONTOLOGIES as u64 - 2);
        assert_eq!((count("other", "ok"), count("ontology-999", "ok")), (Some(others), None));
    }
}
