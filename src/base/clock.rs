//! Time, so that tests can turn it.
//!
//! Lifetimes of tokens and caches are measured on the monotonic clock: an operator or an NTP daemon that sets
//! the wall clock neither kills tokens early nor lets them live on. The wall clock is read only to judge the
//! timestamp inside a bearer.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Reads the monotonic clock, for [`recent`] and [`wall`] too.
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

/// What this thread has read last: the present, for who knows that it was a moment ago.
pub fn recent() -> Instant {
    READ.get().map_or_else(now, |read| read.now)
}

/// The wall clock at the moment that this thread has read last, since the Unix epoch. For texts: it follows a clock that is
/// set with up to a second's delay.
pub fn unix_time() -> Duration {
    let read = READ.get().unwrap_or_else(|| ClockReading::at(now()));
    read.since_epoch + read.now.duration_since(read.anchor)
}

/// Reading a clock costs as much as a hundred instructions, and several parts of a request's way want to know the time, all
/// of them within microseconds.
#[derive(Clone, Copy)]
struct ClockReading {
    now: Instant,
    /// When the wall clock was read, and what it showed.
    anchor: Instant,
    since_epoch: Duration,
    /// When it is to be read again: compared at each reading, which a difference would be too dear for.
    anchored_until: Instant,
}

impl ClockReading {
    fn at(now: Instant) -> ClockReading {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        ClockReading { now, anchor: now, since_epoch, anchored_until: now + WALL_CLOCK_INTERVAL }
    }
}

/// So long the wall clock is not read again.
const WALL_CLOCK_INTERVAL: Duration = Duration::from_secs(1);

thread_local! {
    static READ: Cell<Option<ClockReading>> = const { Cell::new(None) };
}

/// Milliseconds since this process made its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

impl Tick {
    /// The moment `span` later; saturates instead of wrapping.
    pub fn after(self, span: Duration) -> Tick {
        Tick(self.0.saturating_add(millis(span)))
    }

    /// How long ago `earlier` was, seen from here; zero if it lies ahead.
    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// As a number for an atomic; [`Tick::from_raw`] is its inverse.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// From the number that [`Tick::raw`] gave.
    pub fn from_raw(raw: u64) -> Tick {
        Tick(raw)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
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
    /// The machine's clocks.
    pub fn system() -> Clock {
        Clock(ClockSource::System { start: Instant::now() })
    }

    /// A clock that stands still at `unix_start` seconds after the epoch until [`Clock::advance`] moves it.
    pub fn manual(unix_start: u64) -> Clock {
        Clock(ClockSource::Manual { millis: Arc::default(), unix_start })
    }

    /// Moves a manual clock; a system clock is left alone.
    pub fn advance(&self, by: Duration) {
        if let ClockSource::Manual { millis: now, .. } = &self.0 {
            now.fetch_add(millis(by), Ordering::Relaxed);
        }
    }

    /// Monotonic now.
    pub fn now(&self) -> Tick {
        match &self.0 {
            ClockSource::System { start } => Tick(millis(start.elapsed())),
            ClockSource::Manual { millis, .. } => Tick(millis.load(Ordering::Relaxed)),
        }
    }

    /// Wall time in whole seconds since the Unix epoch; zero if the machine's clock stands before it.
    pub fn unix_seconds(&self) -> u64 {
        match &self.0 {
            ClockSource::System { .. } => {
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
            }
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
            now();
            let read = SystemTime::now().duration_since(UNIX_EPOCH).expect("later");
            assert!(read.abs_diff(unix_time()) < Duration::from_millis(100), "{read:?}");
            assert!(recent() <= now());
        }
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Tick::from_raw(5).since(Tick::from_raw(9)), Duration::ZERO);
        assert_eq!(Tick::from_raw(u64::MAX).after(Duration::MAX).raw(), u64::MAX);
    }
}
