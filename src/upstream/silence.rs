//! Notices that an endpoint sends no response although requests wait. `upstream.response_timeout` has to be as long as the
//! longest query; this is for operators, and decides nothing.

use std::time::{Duration, Instant};

use crate::observability::metrics::EndpointCounts;

/// A single request may be a long query.
const MIN_WAITING: u64 = 2;

/// This time without a response is reported.
pub const LONG_SILENCE: Duration = Duration::from_secs(60);

/// Since when an endpoint has sent no response.
#[derive(Debug, Default)]
pub struct Silence {
    responses: u64,
    since: Option<Instant>,
    is_reported: bool,
}

/// What to log about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SilenceEvent {
    /// It has sent no response for [`LONG_SILENCE`], and requests wait.
    Began,
    /// It responds again, or at most one request waits.
    Ended,
}

impl Silence {
    /// Adds a sample. Call this periodically.
    pub fn observe(&mut self, counts: &EndpointCounts, now: Instant) -> Option<SilenceEvent> {
        if counts.responses != self.responses {
            (self.responses, self.since) = (counts.responses, None);
        }
        self.since = (counts.waiting >= MIN_WAITING).then(|| self.since.unwrap_or(now));
        let is_long = self.duration(now) >= LONG_SILENCE;
        match (std::mem::replace(&mut self.is_reported, is_long), is_long) {
            (false, true) => Some(SilenceEvent::Began),
            (true, false) => Some(SilenceEvent::Ended),
            _ => None,
        }
    }

    /// How long several requests have waited without any response.
    pub fn duration(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_requests_without_any_response_are_a_silence() {
        let (mut silence, start) = (Silence::default(), Instant::now());
        let mut observe = |seconds: u64, responses, waiting| {
            let now = start + Duration::from_secs(seconds);
            let event = silence.observe(&EndpointCounts { responses, waiting, ..EndpointCounts::default() }, now);
            (event, silence.duration(now).as_secs())
        };
        assert_eq!(observe(0, 5, 1), (None, 0), "one long query");
        assert_eq!(observe(10, 5, 2), (None, 0));
        assert_eq!(observe(69, 5, 3), (None, 59));
        assert_eq!(observe(70, 6, 3), (None, 0), "a response");
        assert_eq!(observe(130, 6, 3), (Some(SilenceEvent::Began), 60));
        assert_eq!(observe(140, 6, 2), (None, 70));
        assert_eq!(observe(150, 7, 2), (Some(SilenceEvent::Ended), 0));
    }
}
