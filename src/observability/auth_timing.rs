//! Measures the phases of authenticating one request, for metrics and its trace.

use std::time::Instant;

use crate::base::clock;
use crate::observability::metrics::{AuthOutcome, WorkerMetrics};
use crate::observability::phase::Phase;
use crate::observability::trace::{Interval, Trace};

/// Records the phases of one request.
#[derive(Debug)]
pub struct AuthTiming {
    worker: WorkerMetrics,
    /// The trace of the request, if it is sampled.
    pub trace: Option<Box<Trace>>,
}

impl AuthTiming {
    /// For a request that the thread of `worker` serves.
    pub fn new(worker: WorkerMetrics) -> AuthTiming {
        AuthTiming { worker, trace: None }
    }

    /// The metrics of the request's thread.
    pub fn worker(&self) -> &WorkerMetrics {
        &self.worker
    }

    /// Awaits `future` and records its duration as that of `phase`, with the outcome that `outcome` derives from its
    /// result.
    pub async fn measure<T>(
        &self,
        phase: Phase,
        future: impl Future<Output = T>,
        outcome: impl FnOnce(&T) -> AuthOutcome,
    ) -> T {
        let start = clock::now();
        let result = future.await;
        self.record(phase, start, outcome(&result));
        result
    }

    /// [`AuthTiming::measure`] for a phase that does not wait.
    pub fn measure_sync<T>(&self, phase: Phase, run: impl FnOnce() -> T, outcome: impl FnOnce(&T) -> AuthOutcome) -> T {
        let start = clock::now();
        let result = run();
        self.record(phase, start, outcome(&result));
        result
    }

    fn record(&self, phase: Phase, start: Instant, outcome: AuthOutcome) {
        let end = clock::now();
        self.worker.record_phase(phase, outcome, end.duration_since(start));
        if let Some(trace) = &self.trace {
            trace.phases.borrow_mut().push((phase, outcome, Interval { start, end }));
        }
    }
}
