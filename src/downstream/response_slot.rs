//! How far the client has read a response, and how fast. It knows nothing about connections or protocols.

use std::task::Waker;
use std::time::{Duration, Instant};

/// The response of a request in flight.
#[derive(Default)]
pub struct ResponseSlot {
    pub progress: ResponseProgress,
    pub reading: ReadDebt,
    /// Wakes the task that sends the response.
    pub waker: Option<Waker>,
}

/// Aborts responses whose client has not made room for more data in `limit`, or only very slowly. At most half of those
/// are aborted at once, those that have waited longest first: a response may wait only because the unread data of
/// others fills the window of the connection.
pub fn abort_blocked(slots: &mut [ResponseSlot], now: Instant, limit: Duration) {
    let mut blocked: Vec<_> = (slots.iter().enumerate())
        .filter_map(|(index, slot)| match slot.progress {
            ResponseProgress::WaitingForClient(since) if slot.reading.debt + now.duration_since(since) >= limit => {
                Some((since, index))
            }
            _ => None,
        })
        .collect();
    blocked.sort_unstable();
    for (_, index) in &blocked[..blocked.len().div_ceil(2)] {
        slots[*index].progress = ResponseProgress::TimedOut;
        if let Some(waker) = slots[*index].waker.take() {
            waker.wake();
        }
    }
}

/// By how much a client is slower than `limits.response_rate`.
///
/// SECURITY: single bytes are progress, so without it a client could hold a response, and with it the backend, for any
/// time.
#[derive(Clone, Copy, Default)]
pub struct ReadDebt {
    pub debt: Duration,
    /// Since the last update: the time for which the gateway waited for the client, and the bytes that it has read.
    waited: Duration,
    pub bytes: u64,
}

impl ReadDebt {
    /// Adds a pause that has ended.
    pub fn add_pause(&mut self, since: Instant) {
        self.waited += since.elapsed();
    }

    /// Compares what was read since the last update with this rate, in bytes per second.
    pub fn update(&mut self, min_rate: u64) {
        let earned = Duration::from_micros(self.bytes.saturating_mul(1_000_000) / min_rate.max(1));
        *self = ReadDebt { debt: (self.debt + self.waited).saturating_sub(earned), ..ReadDebt::default() };
    }
}

/// Progress of a response's body.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum ResponseProgress {
    /// No request has this index.
    #[default]
    Unused,
    /// The client can receive more data.
    WaitingForBackend,
    /// Since then, the client has not made room for more data.
    WaitingForClient(Instant),
    /// The client did not make room in time: the response is to be aborted.
    TimedOut,
}
