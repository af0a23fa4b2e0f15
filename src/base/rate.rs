//! The generic cell rate algorithm: a leaky bucket that is stored as the moment at which it will be empty. Its level is
//! the time until then.

use std::time::Duration;

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The time in which one request drains.
    interval: Duration,
    /// The time in which a full bucket drains.
    capacity: Duration,
}

impl Rate {
    /// `per_second` requests on average, and up to `burst` of them at once. `None` if the rate is not positive, or if
    /// it is too high or too low to be measured.
    pub fn new(per_second: f64, burst: u32) -> Option<Rate> {
        let interval = Duration::try_from_secs_f64(per_second.recip()).ok()?;
        let capacity = interval.checked_mul(burst)?;
        // A clock that counts nanoseconds cannot distinguish shorter intervals.
        (per_second > 0.0 && interval >= Duration::from_nanos(100) && capacity <= MAX_CAPACITY && burst > 0)
            .then_some(Rate { interval, capacity })
    }

    /// A bucket for `count` events that drains in a minute; `None` if it is 0.
    pub fn per_minute(count: u32) -> Option<Rate> {
        let capacity = Duration::from_secs(60);
        (count > 0).then(|| Rate { interval: (capacity / count).max(Duration::from_millis(1)), capacity })
    }

    /// Adds an event to a bucket with this level: the level afterwards, or the time until there is room again.
    pub fn admit(self, level: Duration) -> Result<Duration, Duration> {
        let after = level + self.interval;
        match after.checked_sub(self.capacity) {
            None | Some(Duration::ZERO) => Ok(after),
            Some(wait) => Err(wait),
        }
    }

    /// As [`Rate::admit`], with `pending` events that are not in the bucket yet.
    pub fn admit_after(self, level: Duration, pending: u32) -> Result<Duration, Duration> {
        self.admit(level + self.interval * pending)
    }

    /// Adds an event even if it exceeds the capacity, and returns the new level. What exceeds the capacity has to
    /// drain before the next event is admitted.
    pub fn fill(self, level: Duration) -> Duration {
        self.fill_by(level, 1)
    }

    /// As [`Rate::fill`], with `count` events.
    pub fn fill_by(self, level: Duration, count: u32) -> Duration {
        level.saturating_add(self.interval.saturating_mul(count)).min(self.capacity * MAX_OVERFILL)
    }

    /// The share of one of `count` processes, at least one event at a time.
    pub fn divided_by(self, count: u32) -> Rate {
        let interval = self.interval.saturating_mul(count.max(1)).min(MAX_CAPACITY);
        Rate { interval, capacity: self.capacity.max(interval) }
    }
}

/// How many times its capacity a bucket holds at most. More than once, because several processes may admit events before
/// they have heard of each other's; limited, because others who share the bucket have to wait, too.
const MAX_OVERFILL: u32 = 10;

/// The longest time in which a full bucket drains.
const MAX_CAPACITY: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let rate = Rate::new(2.0, 3).expect("valid");
        let mut empty_at = 0;
        for (millis, expected) in [
            (0, Ok(())),
            (0, Ok(())),
            (0, Ok(())),
            (0, Err(500)),
            (400, Err(100)),
            (500, Ok(())),
            (501, Err(499)),
            (9000, Ok(())),
            (9000, Ok(())),
            (9000, Ok(())),
            (9000, Err(500)),
        ] {
            let level = Duration::from_millis(u64::saturating_sub(empty_at, millis));
            let result = rate.admit(level).map(|after| empty_at = millis + after.as_millis() as u64);
            assert_eq!(result.map_err(|wait| wait.as_millis()), expected, "after {millis} ms");
        }
    }

    #[test]
    fn an_overfull_bucket_drains_before_the_next_event() {
        let rate = Rate::per_minute(2).expect("valid");
        let filled = |count| (0..count).fold(Duration::ZERO, |level, _| rate.fill(level));
        assert_eq!(rate.admit(filled(5)), Err(Duration::from_secs(120)));
        assert_eq!(filled(1000), Duration::from_secs(600));
        assert!(rate.admit_after(Duration::ZERO, 1).is_ok() && rate.admit_after(Duration::ZERO, 2).is_err());
        assert_eq!(Rate::per_minute(0), None);
        assert_eq!(rate.fill_by(Duration::ZERO, 5), filled(5));
        assert_eq!(rate.fill_by(Duration::ZERO, u32::MAX), Duration::from_secs(600));
    }

    #[test]
    fn a_share_has_its_part_of_rate_and_burst() {
        let admitted = |rate: Rate, seconds: u64| {
            let at = |step: u64| Duration::from_millis(100 * step);
            let admit = |(count, empty): (u32, Duration), step: u64| match rate.admit(empty.saturating_sub(at(step))) {
                Ok(after) => (count + 1, at(step) + after),
                Err(_) => (count, empty),
            };
            (0..10 * seconds).fold((0, Duration::ZERO), admit).0
        };
        let rate = Rate::new(4.0, 8).expect("valid");
        assert_eq!(
            (admitted(rate, 60), admitted(rate.divided_by(4), 60), admitted(rate.divided_by(1), 60)),
            (247, 61, 247)
        );
        assert_eq!(Rate::new(1.0, 1).expect("valid").divided_by(10), Rate::new(0.1, 1).expect("valid"));
    }

    #[test]
    fn rates_are_bounded() {
        for (per_second, burst) in [(0.0, 1), (-1.0, 1), (f64::NAN, 1), (1.0, 0), (1e9, 1), (1e-9, 1), (0.1, u32::MAX)]
        {
            assert_eq!(Rate::new(per_second, burst), None, "{per_second} {burst}");
        }
        assert!(Rate::new(0.01, 1).is_some() && Rate::new(1e6, 1000).is_some());
    }
}
