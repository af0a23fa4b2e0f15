//! A timeout on the time without progress, and on the total of such pauses. It knows nothing about what makes the
//! progress.
//!
//! Its users are `request_body.rs`, which detects a stalled upload of a client, and `response_body.rs`.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::deadline::Deadline;

/// The maximum length of one pause of a peer, and optionally of all its pauses together. The timer runs only while the
/// gateway waits for the peer.
pub struct ProgressTimeout {
    max_pause: Duration,
    /// The remaining time for pauses, if their total is limited.
    budget: Option<Duration>,
    /// `None` before the first pause, which most messages do not have.
    pauses: Option<Box<Pauses>>,
}

#[derive(Default)]
struct Pauses {
    timer: Deadline,
    waiting_since: Option<Instant>,
    /// The length of all pauses that have ended, if their total is limited.
    waited: Duration,
}

impl ProgressTimeout {
    /// Limits each pause, but not their total.
    pub fn new(max_pause: Duration) -> ProgressTimeout {
        ProgressTimeout { max_pause, budget: None, pauses: None }
    }

    /// Limits the total of all pauses too, which ends a peer that sends too slowly: see
    /// [`ProgressTimeout::extend_budget`].
    pub fn with_budget(max_pause: Duration) -> ProgressTimeout {
        ProgressTimeout { budget: Some(max_pause), ..ProgressTimeout::new(max_pause) }
    }

    /// Call this when data has arrived.
    pub fn record_progress(&mut self) {
        let Some(pauses) = &mut self.pauses else { return };
        if let (Some(since), Some(budget)) = (pauses.waiting_since.take(), self.budget.as_mut()) {
            let pause = since.elapsed();
            *budget = budget.saturating_sub(pause);
            pauses.waited += pause;
        }
    }

    /// The length of all pauses, with the current one.
    pub fn waited(&self) -> Duration {
        let Some(pauses) = &self.pauses else { return Duration::ZERO };
        pauses.waited + pauses.waiting_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Adds to the budget for pauses, in proportion to the data that has arrived.
    pub fn extend_budget(&mut self, time: Duration) {
        if let Some(budget) = self.budget.as_mut() {
            *budget = budget.saturating_add(time);
        }
    }

    /// Call this while waiting. Ready when the current pause is too long.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.budget.map_or(self.max_pause, |budget| budget.min(self.max_pause));
        let pauses = self.pauses.get_or_insert_default();
        if pauses.waiting_since.is_none() {
            let now = Instant::now();
            pauses.timer.set(now + limit);
            pauses.waiting_since = Some(now);
        }
        pauses.timer.poll(cx)
    }
}
