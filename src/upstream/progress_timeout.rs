//! How long a peer is waited for.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::deadline::Deadline;

/// The longest pause that a peer may make, and the longest that all its pauses may be together. The timer exists only
/// while something is waited for.
pub struct Patience {
    longest_pause: Duration,
    /// What is left for further pauses, if that is bounded.
    left: Option<Duration>,
    timer: Deadline,
    waiting_since: Option<Instant>,
}

impl Patience {
    /// Patient as long as something comes now and then.
    pub fn new(longest_pause: Duration) -> Patience {
        Patience { longest_pause, left: None, timer: Deadline::default(), waiting_since: None }
    }

    /// Impatient with a peer that sends something now and then and not enough of it: [`Patience::earn`].
    pub fn bounded(longest_pause: Duration) -> Patience {
        Patience { left: Some(longest_pause), ..Patience::new(longest_pause) }
    }

    /// Something came.
    pub fn renew(&mut self) {
        if let (Some(since), Some(left)) = (self.waiting_since.take(), self.left.as_mut()) {
            *left = left.saturating_sub(since.elapsed());
        }
    }

    /// What came is worth so much waiting.
    pub fn earn(&mut self, worth: Duration) {
        if let Some(left) = self.left.as_mut() {
            *left = left.saturating_add(worth);
        }
    }

    /// Nothing came; ready when that has lasted too long.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.left.map_or(self.longest_pause, |left| left.min(self.longest_pause));
        if self.waiting_since.is_none() {
            let now = Instant::now();
            self.timer.set(now + limit);
            self.waiting_since = Some(now);
        }
        self.timer.poll(cx)
    }
}
