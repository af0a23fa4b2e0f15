//! Time that outlives a process and that replicas share.
//!
//! SECURITY: lifetimes are measured on the monotonic clock (`clock`); a stamp is tied to it once, or again and again by
//! the time of the server that all replicas share. So nobody's wall clock decides how long a token lives.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::clock::{Clock, Tick};

/// Milliseconds since the Unix epoch, by the clock of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Whole seconds since the Unix epoch.
    pub fn unix_seconds(self) -> u64 {
        self.0 / 1000
    }
}

/// What turns ticks of this process into stamps and back.
#[derive(Debug)]
pub struct StoreClock {
    clock: Clock,
    /// The stamp of tick zero.
    origin: AtomicU64,
}

impl StoreClock {
    /// Tied to the wall clock as it stands now; setting that later changes nothing.
    pub fn new(clock: Clock) -> StoreClock {
        let origin = clock.unix_seconds().saturating_mul(1000).saturating_sub(clock.now().raw());
        StoreClock { clock, origin: AtomicU64::new(origin) }
    }

    /// Ties the present to the time of another clock.
    pub fn set_now(&self, now: Timestamp) {
        self.origin.store(now.0.saturating_sub(self.clock.now().raw()), Ordering::Relaxed);
    }

    /// The present.
    pub fn now(&self) -> Timestamp {
        self.timestamp(self.clock.now())
    }

    /// What the store calls this moment.
    pub fn timestamp(&self, tick: Tick) -> Timestamp {
        Timestamp(self.origin.load(Ordering::Relaxed).saturating_add(tick.raw()))
    }

    /// The moment in this process; what was before it began is its beginning.
    pub fn tick(&self, stamp: Timestamp) -> Tick {
        Tick::from_raw(stamp.0.saturating_sub(self.origin.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn stamps_and_ticks_turn_into_each_other_and_follow_the_clock_they_are_tied_to() {
        let clock = Clock::manual(1_000);
        clock.advance(Duration::from_secs(5));
        let calendar = StoreClock::new(clock.clone());
        assert_eq!(calendar.now(), Timestamp(1_005_000));
        assert_eq!(calendar.tick(calendar.now()), clock.now());
        calendar.set_now(Timestamp(9_000_000));
        clock.advance(Duration::from_millis(7));
        assert_eq!(calendar.now(), Timestamp(9_000_007));
        assert_eq!(calendar.tick(Timestamp(3)), Tick::from_raw(0));
    }
}
