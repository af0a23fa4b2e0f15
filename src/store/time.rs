//! Timestamps that survive a process and that replicas share.
//!
//! SECURITY: lifetimes are measured on the monotonic clock (`base::clock`). [`StoreClock`] maps it to timestamps:
//! once at start, or repeatedly by the time of the server that all replicas share. So changing a machine's wall clock
//! does not change how long a token lives.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::clock::{Clock, Tick};

/// Milliseconds since the Unix epoch, by the clock of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Whole seconds since the Unix epoch.
    pub fn unix_seconds(self) -> u64 {
        self.0 / 1000
    }

    pub(super) fn after(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(millis(duration)))
    }

    pub(super) fn before(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(millis(duration)))
    }

    /// Milliseconds since `earlier`; 0 if that is in the future.
    pub(super) fn millis_since(self, earlier: Timestamp) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Converts between the ticks of this process and timestamps.
#[derive(Debug)]
pub struct StoreClock {
    clock: Clock,
    /// The timestamp of tick zero, in milliseconds.
    origin: AtomicU64,
}

impl StoreClock {
    /// Reads the wall clock once; changing that later has no effect.
    pub fn new(clock: Clock) -> StoreClock {
        let origin = clock.unix_seconds().saturating_mul(1000).saturating_sub(clock.now().raw());
        StoreClock { clock, origin: AtomicU64::new(origin) }
    }

    /// Synchronizes with the clock of a server, whose time is `now`.
    pub fn set_now(&self, now: Timestamp) {
        self.origin.store(now.0.saturating_sub(self.clock.now().raw()), Ordering::Relaxed);
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        self.timestamp(self.clock.now())
    }

    /// The current tick of the monotonic clock.
    pub fn now_tick(&self) -> Tick {
        self.clock.now()
    }

    /// The timestamp of a tick.
    pub fn timestamp(&self, tick: Tick) -> Timestamp {
        Timestamp(self.origin.load(Ordering::Relaxed).saturating_add(tick.raw()))
    }

    /// The tick of a timestamp; zero if that is before the start of this process.
    pub fn tick(&self, timestamp: Timestamp) -> Tick {
        Tick::from_raw(timestamp.0.saturating_sub(self.origin.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_and_ticks_convert_both_ways_and_follow_the_synchronized_clock() {
        let clock = Clock::manual(1_000);
        clock.advance(Duration::from_secs(5));
        let store_clock = StoreClock::new(clock.clone());
        assert_eq!(store_clock.now(), Timestamp(1_005_000));
        assert_eq!(store_clock.tick(store_clock.now()), clock.now());
        store_clock.set_now(Timestamp(9_000_000));
        clock.advance(Duration::from_millis(7));
        assert_eq!(store_clock.now(), Timestamp(9_000_007));
        assert_eq!(store_clock.tick(Timestamp(3)), Tick::from_raw(0));
    }
}
