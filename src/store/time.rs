//! Timestamps that survive a process and that replicas share.
//!
//! SECURITY: lifetimes are measured on the monotonic clock (`base::clock`). [`StoreClock`] maps it to timestamps:
//! once at start, or repeatedly by the time of the server that all replicas share. So changing a machine's wall clock
//! does not change how long a token lives.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::clock::{Clock, Tick, millis};

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

/// Converts between the ticks of this process and timestamps.
#[derive(Debug)]
pub struct StoreClock {
    clock: Clock,
    /// The timestamp of tick zero, in milliseconds.
    origin: AtomicU64,
    /// The tick of the last synchronization with a server; 0: none yet.
    synchronized: AtomicU64,
}

/// The clock loses at most this part of its speed to become slower than the server's.
const MAX_SLOWDOWN: u64 = 1000;

/// The clock follows another replica's by at most this time: further ahead, that one is wrong.
const MAX_ADVANCE: Duration = Duration::from_secs(600);

impl StoreClock {
    /// Reads the wall clock once; changing that later has no effect.
    pub fn new(clock: Clock) -> StoreClock {
        let origin = clock.unix_seconds().saturating_mul(1000).saturating_sub(clock.now().raw());
        StoreClock { clock, origin: AtomicU64::new(origin), synchronized: AtomicU64::new(0) }
    }

    /// Synchronizes with the clock of a server, whose time is `now`. Called by one thread.
    ///
    /// SECURITY: after the first time, the clock never goes backward. A revocation would otherwise not cover the tokens
    /// that were minted just before the server's clock was set back, or by the time of a different server.
    pub fn set_now(&self, now: Timestamp) {
        let tick = self.clock.now().raw();
        let origin = now.0.saturating_sub(tick);
        let before = self.synchronized.load(Ordering::Relaxed);
        if before == 0 {
            self.synchronized.store(tick.max(1), Ordering::Relaxed);
            self.origin.store(origin, Ordering::Relaxed);
            return;
        }
        let slack = tick.saturating_sub(before) / MAX_SLOWDOWN;
        if slack > 0 {
            self.synchronized.store(tick, Ordering::Relaxed);
        }
        let slowed = self.origin.load(Ordering::Relaxed).saturating_sub(slack);
        self.origin.store(origin.max(slowed), Ordering::Relaxed);
    }

    /// Another replica has given this time, so it has passed. The value that contains it must have been unsealed.
    pub fn advance_to(&self, time: Timestamp) {
        let ahead = time.millis_since(self.now());
        if ahead > 0 && ahead <= millis(MAX_ADVANCE) {
            self.origin.fetch_add(ahead, Ordering::Relaxed);
        }
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

    #[test]
    fn the_clock_never_goes_backward_after_it_was_synchronized() {
        let clock = Clock::manual(1_000);
        let store_clock = StoreClock::new(clock.clone());
        store_clock.set_now(Timestamp(500_000));
        assert_eq!(store_clock.now(), Timestamp(500_000), "the wall clock of this machine may be wrong");
        store_clock.advance_to(Timestamp(500_010));
        assert_eq!(store_clock.now(), Timestamp(500_010));
        store_clock.advance_to(Timestamp(500_000));
        store_clock.advance_to(Timestamp(9_000_000));
        assert_eq!(store_clock.now(), Timestamp(500_010), "neither backward nor far ahead");
        // A server that is 5 s behind: the clock becomes slower until both agree.
        let (mut last, mut server) = (store_clock.now(), Timestamp(495_010));
        for _ in 0..40_000 {
            clock.advance(Duration::from_millis(250));
            server = server.after(Duration::from_millis(250));
            store_clock.set_now(server);
            assert!(store_clock.now() > last, "{last:?} {:?}", store_clock.now());
            last = store_clock.now();
        }
        assert_eq!(last, server);
    }
}
