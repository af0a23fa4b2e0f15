//! Clocks: a cached reading for each thread, and a [`Clock`] that tests can set.
//!
//! Lifetimes of tokens and caches are measured on the monotonic clock, so setting the wall clock (by an operator or
//! NTP) neither expires tokens early nor extends them. The wall clock is read only to check the timestamp in a bearer.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Reads the monotonic clock, and caches the reading for [`recent`] and [`unix_time`].
pub fn now() -> Instant {
    let now = Instant::now();
    READ.with(|read| {
        read.set(Some(match read.get() {
            Some(before) if now < before.anchored_until => ClockReading { now, ..before },
            _ => ClockReading::at(now),
        }));
    });
    now
}

/// The last reading of this thread, for callers that read the clock a moment ago.
pub fn recent() -> Instant {
    READ.get().map_or_else(now, |read| read.now)
}

/// The wall clock at the last reading of this thread, since the Unix epoch. For display only: a change of the wall
/// clock is visible after up to one second.
pub fn unix_time() -> Duration {
    let read = READ.get().unwrap_or_else(|| ClockReading::at(now()));
    read.since_epoch + read.now.duration_since(read.anchor)
}

/// The time since the Unix epoch; zero before it.
pub fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A duration in milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Reading a clock costs about a hundred instructions, and several steps of a request need the time within microseconds
/// of each other.
#[derive(Clone, Copy)]
struct ClockReading {
    now: Instant,
    /// When the wall clock was read.
    anchor: Instant,
    since_epoch: Duration,
    /// When the wall clock is read again. Stored as a deadline, because comparing is cheaper than subtracting at each
    /// reading.
    anchored_until: Instant,
}

impl ClockReading {
    fn at(now: Instant) -> ClockReading {
        let since_epoch = since_epoch(SystemTime::now());
        ClockReading { now, anchor: now, since_epoch, anchored_until: now + WALL_CLOCK_INTERVAL }
    }
}

/// How long a reading of the wall clock is reused.
const WALL_CLOCK_INTERVAL: Duration = Duration::from_secs(1);

thread_local! {
    static READ: Cell<Option<ClockReading>> = const { Cell::new(None) };
}

/// Milliseconds since the [`Clock`] was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

impl Tick {
    /// The moment `duration` later; saturates instead of overflowing.
    pub fn after(self, duration: Duration) -> Tick {
        Tick(self.0.saturating_add(millis(duration)))
    }

    /// The time since `earlier`; zero if `earlier` is in the future.
    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// A number that fits into an atomic; [`Tick::from_raw`] is the inverse.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Converts a number from [`Tick::raw`] back.
    pub fn from_raw(raw: u64) -> Tick {
        Tick(raw)
    }
}

/// A source of monotonic and wall time.
#[derive(Clone, Debug)]
pub struct Clock(ClockSource);

#[derive(Clone, Debug)]
enum ClockSource {
    System { start: Instant },
    Manual { millis: Arc<AtomicU64>, unix_start: u64 },
}

impl Clock {
    /// Uses the clocks of the system.
    pub fn system() -> Clock {
        Clock(ClockSource::System { start: Instant::now() })
    }

    /// For tests: starts at `unix_start` seconds after the epoch, and moves only by [`Clock::advance`].
    pub fn manual(unix_start: u64) -> Clock {
        Clock(ClockSource::Manual { millis: Arc::default(), unix_start })
    }

    /// Advances a manual clock; has no effect on a system clock.
    pub fn advance(&self, by: Duration) {
        if let ClockSource::Manual { millis: now, .. } = &self.0 {
            now.fetch_add(millis(by), Ordering::Relaxed);
        }
    }

    /// The current monotonic time.
    pub fn now(&self) -> Tick {
        match &self.0 {
            ClockSource::System { start } => Tick(millis(start.elapsed())),
            ClockSource::Manual { millis, .. } => Tick(millis.load(Ordering::Relaxed)),
        }
    }

    /// Wall clock time in whole seconds since the Unix epoch; zero if the system clock is before the epoch.
    pub fn unix_seconds(&self) -> u64 {
        match &self.0 {
            ClockSource::System { .. } => since_epoch(SystemTime::now()).as_secs(),
            ClockSource::Manual { millis, unix_start } => unix_start + millis.load(Ordering::Relaxed) / 1000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_advance() {
        let clock = Clock::manual(1_000);
        let before = clock.now();
        assert_eq!(clock.now(), before);
        clock.advance(Duration::from_secs(90));
        assert_eq!(clock.now().since(before), Duration::from_secs(90));
        assert_eq!(clock.unix_seconds(), 1_090);
    }

    #[test]
    fn unix_time_follows_the_system_clock() {
        for _ in 0..3 {
            let system = || SystemTime::now().duration_since(UNIX_EPOCH).expect("later");
            let before = system();
            now();
            let (read, after, slack) = (unix_time(), system(), Duration::from_millis(100));
            assert!(before <= read + slack && read <= after + slack, "{before:?} {read:?} {after:?}");
            assert!(recent() <= now());
        }
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Tick::from_raw(5).since(Tick::from_raw(9)), Duration::ZERO);
        assert_eq!(Tick::from_raw(u64::MAX).after(Duration::MAX).raw(), u64::MAX);
    }
}
