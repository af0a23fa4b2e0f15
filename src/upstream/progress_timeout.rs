//! How long a peer is waited for.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::deadline::Deadline;

/// The longest pause that a peer may make, and the longest that all its pauses may be together. The timer exists only
/// while something is waited for.
pub struct ProgressTimeout {
    max_pause: Duration,
    /// What is left for further pauses, if that is bounded.
    budget: Option<Duration>,
    timer: Deadline,
    waiting_since: Option<Instant>,
}

impl ProgressTimeout {
    /// Patient as long as something comes now and then.
    pub fn new(max_pause: Duration) -> ProgressTimeout {
        ProgressTimeout { max_pause, budget: None, timer: Deadline::default(), waiting_since: None }
    }

    /// Impatient with a peer that sends something now and then and not enough of it: [`ProgressTimeout::earn`].
    pub fn with_budget(longest_pause: Duration) -> ProgressTimeout {
        ProgressTimeout { budget: Some(longest_pause), ..ProgressTimeout::new(longest_pause) }
    }

    /// Something came.
    pub fn record_progress(&mut self) {
        if let (Some(since), Some(left)) = (self.waiting_since.take(), self.budget.as_mut()) {
            *left = left.saturating_sub(since.elapsed());
        }
    }

    /// What came is worth so much waiting.
    pub fn extend_budget(&mut self, worth: Duration) {
        if let Some(left) = self.budget.as_mut() {
            *left = left.saturating_add(worth);
        }
    }

    /// Nothing came; ready when that has lasted too long.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.budget.map_or(self.max_pause, |left| left.min(self.max_pause));
        if self.waiting_since.is_none() {
            let now = Instant::now();
            self.timer.set(now + limit);
            self.waiting_since = Some(now);
        }
        self.timer.poll(cx)
    }
}
