//! What the steps took by which a request's caller was found out.

use std::time::Instant;

use crate::base::clock;
use crate::observability::metrics::{Outcome, Step, Worker};
use crate::observability::trace::{Span, Trace};

/// Notes them for one request.
#[derive(Debug)]
pub struct Steps {
    worker: Worker,
    /// Where the request is traced.
    pub trace: Option<Box<Trace>>,
}

impl Steps {
    /// Of a request of the calling thread's.
    pub fn new(worker: Worker) -> Steps {
        Steps { worker, trace: None }
    }

    /// Notes what a step takes, and how it ends.
    pub async fn of<T>(
        &self,
        step: Step,
        doing: impl Future<Output = T>,
        outcome: impl FnOnce(&T) -> Outcome,
    ) -> T {
        let begun = clock::now();
        let done = doing.await;
        self.note(step, begun, outcome(&done));
        done
    }

    /// The same of a step that does not wait for anything.
    pub fn of_now<T>(&self, step: Step, doing: impl FnOnce() -> T, outcome: impl FnOnce(&T) -> Outcome) -> T {
        let begun = clock::now();
        let done = doing();
        self.note(step, begun, outcome(&done));
        done
    }

    fn note(&self, step: Step, begun: Instant, outcome: Outcome) {
        let ended = clock::now();
        self.worker.step(step, outcome, ended.duration_since(begun));
        if let Some(trace) = &self.trace {
            trace.step(step, outcome, Span { begun, ended });
        }
    }
}
