//! What the steps took by which a request's caller was found out.

use std::time::Instant;

use crate::base::clock;
use crate::observability::metrics::{AuthOutcome, AuthPhase, WorkerMetrics};
use crate::observability::trace::{Interval, Trace};

/// Notes them for one request.
#[derive(Debug)]
pub struct AuthTiming {
    worker: WorkerMetrics,
    /// Where the request is traced.
    pub trace: Option<Box<Trace>>,
}

impl AuthTiming {
    /// Of a request of the calling thread's.
    pub fn new(worker: WorkerMetrics) -> AuthTiming {
        AuthTiming { worker, trace: None }
    }

    /// Notes what a step takes, and how it ends.
    pub async fn measure<T>(
        &self,
        step: AuthPhase,
        doing: impl Future<Output = T>,
        outcome: impl FnOnce(&T) -> AuthOutcome,
    ) -> T {
        let begun = clock::now();
        let done = doing.await;
        self.record(step, begun, outcome(&done));
        done
    }

    /// The same of a step that does not wait for anything.
    pub fn measure_sync<T>(
        &self,
        step: AuthPhase,
        doing: impl FnOnce() -> T,
        outcome: impl FnOnce(&T) -> AuthOutcome,
    ) -> T {
        let begun = clock::now();
        let done = doing();
        self.record(step, begun, outcome(&done));
        done
    }

    fn record(&self, step: AuthPhase, begun: Instant, outcome: AuthOutcome) {
        let ended = clock::now();
        self.worker.record_phase(step, outcome, ended.duration_since(begun));
        if let Some(trace) = &self.trace {
            trace.record_phase(step, outcome, Interval { start: begun, end: ended });
        }
    }
}
